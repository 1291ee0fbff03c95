"""A wrapper that applies an aligned layer to every time step at once."""

from __future__ import annotations

import contextlib
import inspect
from typing import Any

import keras
import tensorflow as tf

from neural_alignment.alignments import changed_pass, current_pass
from neural_alignment.errors import ArgumentError, Words
from neural_alignment.keras_internals import all_layers
from neural_alignment.layers.attention import AlignedAttention
from neural_alignment.layers.base import AlignedLayer
from neural_alignment.serialization import serializable

Tensor = tf.Tensor


@serializable
class TimeDistributed(keras.layers.TimeDistributed):
    """`keras.layers.TimeDistributed` for layers with an alignment, and for models and other layers that contain them.

    The native wrapper calls the layer once for each time step, so a rule that reads signals would add R for each step.
    This one calls an aligned layer once, with the time steps as further examples of the batch, so that R_l is a mean
    over examples and time steps. Batch normalisation in it also uses the statistics of all time steps. Layers without
    an alignment are called as in the native wrapper. With `examples`, R_l uses all time steps of the first examples;
    outside of an `AlignedModel` each time step counts as an example.

    Args:
        layer: the layer.
        **kwargs: as in the native wrapper.

    Raises:
        ValueError: if an aligned layer is, or contains, a stateful layer, because each time step of each example would
            have its own state.
    """

    def __init__(self, layer: Any, **kwargs: Any):
        super().__init__(layer, **kwargs)
        if not self._is_aligned:
            return
        for each in self._parts:
            if getattr(each, "stateful", False):
                requirement = "must not be stateful if it has an alignment: all time steps are examples of one batch"
                found = Words(f"{type(each).__name__} {each.name!r} with stateful=True")
                raise ArgumentError("layer", requirement, found, "stateful=False")

    @property
    def _parts(self) -> list[Any]:
        """The layer and the layers in it."""
        return [self.layer, *all_layers(self.layer)]

    @property
    def _is_aligned(self) -> bool:
        kinds = AlignedLayer | AlignedAttention
        return any(isinstance(each, kinds) and each.alignment is not None for each in self._parts)

    def call(self, inputs: Tensor, training: bool | None = None, mask: Tensor | None = None) -> Any:
        """Applies the layer to each time step of `inputs` `(batch, steps, ...)`."""
        if not self._is_aligned:
            return super().call(inputs, training=training, mask=mask)
        batch, steps = tf.unstack(tf.shape(inputs)[:2])

        def flat(tensor: Tensor) -> Tensor:
            rows = tf.reshape(tensor, tf.concat([[batch * steps], tf.shape(tensor)[2:]], axis=0))
            return tf.ensure_shape(rows, [None, *tensor.shape[2:]])

        def unflattened(tensor: Tensor) -> Tensor:
            shaped = tf.reshape(tensor, tf.concat([[batch, steps], tf.shape(tensor)[1:]], axis=0))
            return tf.ensure_shape(shaped, [*inputs.shape[:2], *tensor.shape[1:]])

        options = {"training": training, "mask": None if mask is None else flat(mask)}
        taken = inspect.signature(self.layer.call).parameters
        options = {name: value for name, value in options.items() if name in taken}
        state = current_pass()
        changed = contextlib.nullcontext()
        if state is not None:
            changed = changed_pass(first_example=state.first_example * steps, rows=state.rows * steps)
        with changed:
            outputs = self.layer.call(flat(inputs), **options)
        return keras.tree.map_structure(unflattened, outputs)
