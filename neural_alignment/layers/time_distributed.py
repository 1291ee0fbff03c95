"""A wrapper that applies an aligned layer to every time step at once."""

from __future__ import annotations

import contextlib

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
    examples and time steps. The native wrapper calls the layer at each step, and R_l would be a sum over the steps.
    Other layers are called as in the native wrapper. With `examples`, R_l uses all time steps of the first examples;
    outside of an `AlignedModel` each time step counts as an example.
    """

    def call(self, inputs: Tensor, training: bool | None = None, mask: Tensor | None = None) -> Tensor:
        """Applies the layer to each time step of `inputs` `(batch, steps, ...)`."""
        layer = self.layer
        inner = (
            [layer.forward_layer, layer.backward_layer] if isinstance(layer, keras.layers.Bidirectional) else [layer]
        )
        if not all(isinstance(each, AlignedLayer | AlignedAttention) and each.alignment is not None for each in inner):
            return super().call(inputs, training=training, mask=mask)
        batch, steps = tf.unstack(tf.shape(inputs)[:2])
        options = {"training": training}
        if mask is not None and isinstance(inner[0], keras.layers.RNN):
            options["mask"] = tf.reshape(mask, tf.concat([[batch * steps], tf.shape(mask)[2:]], axis=0))
        flat = tf.reshape(inputs, tf.concat([[batch * steps], tf.shape(inputs)[2:]], axis=0))
        flat = tf.ensure_shape(flat, [None, *inputs.shape[2:]])
        state = current_pass()
        changed = contextlib.nullcontext()
        if state is not None:
            changed = changed_pass(first_example=state.first_example * steps, rows=state.rows * steps)
        with changed:
            outputs = layer.call(flat, **options)
        shaped = tf.reshape(outputs, tf.concat([[batch, steps], tf.shape(outputs)[1:]], axis=0))
        return tf.ensure_shape(shaped, [*inputs.shape[:2], *outputs.shape[1:]])
