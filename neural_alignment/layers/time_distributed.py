"""A wrapper that applies an aligned layer to every time step at once."""

from __future__ import annotations

import contextlib
from typing import Any

import keras
import tensorflow as tf

from neural_alignment.alignments import changed_pass, current_pass
from neural_alignment.layers.attention import AlignedAttention
from neural_alignment.layers.base import AlignedLayer
from neural_alignment.serialization import serializable

Tensor = tf.Tensor


@serializable
class TimeDistributed(keras.layers.TimeDistributed):
    """`keras.layers.TimeDistributed` for layers with an alignment.

    An aligned layer is called once, with the time steps as further examples of the batch, so that R_l is a mean over
    examples and time steps. The native wrapper calls the layer at each step, and R_l of a rule that reads signals would
    be a sum over the steps. Other layers are called as in the native wrapper. With `examples`, R_l uses all time steps
    of the first examples; outside of an `AlignedModel` each time step counts as an example.

    Args:
        layer: the layer.
        **kwargs: as in the native wrapper.

    Raises:
        ValueError: if an aligned layer in it is stateful, because each time step of each example would have its own
            state.
    """

    def __init__(self, layer: Any, **kwargs: Any):
        super().__init__(layer, **kwargs)
        if self._is_aligned and any(getattr(each, "stateful", False) for each in self._inner):
            raise ValueError(
                "`layer` must not be stateful if it has an alignment: all time steps are examples of one batch. "
                f"Received {type(layer).__name__} {layer.name!r} with stateful=True. Example: stateful=False."
            )

    @property
    def _inner(self) -> list[Any]:
        """The layer, or the two layers of a bidirectional one."""
        layer = self.layer
        return [layer.forward_layer, layer.backward_layer] if isinstance(layer, keras.layers.Bidirectional) else [layer]

    @property
    def _is_aligned(self) -> bool:
        kinds = AlignedLayer | AlignedAttention
        return all(isinstance(each, kinds) and each.alignment is not None for each in self._inner)

    def call(self, inputs: Tensor, training: bool | None = None, mask: Tensor | None = None) -> Tensor:
        """Applies the layer to each time step of `inputs` `(batch, steps, ...)`."""
        if not self._is_aligned:
            return super().call(inputs, training=training, mask=mask)
        batch, steps = tf.unstack(tf.shape(inputs)[:2])
        options = {"training": training}
        if mask is not None and isinstance(self._inner[0], keras.layers.RNN):
            options["mask"] = tf.reshape(mask, tf.concat([[batch * steps], tf.shape(mask)[2:]], axis=0))
        flat = tf.reshape(inputs, tf.concat([[batch * steps], tf.shape(inputs)[2:]], axis=0))
        flat = tf.ensure_shape(flat, [None, *inputs.shape[2:]])
        state = current_pass()
        changed = contextlib.nullcontext()
        if state is not None:
            changed = changed_pass(first_example=state.first_example * steps, rows=state.rows * steps)
        with changed:
            outputs = self.layer.call(flat, **options)
        shaped = tf.reshape(outputs, tf.concat([[batch, steps], tf.shape(outputs)[1:]], axis=0))
        return tf.ensure_shape(shaped, [*inputs.shape[:2], *outputs.shape[1:]])
