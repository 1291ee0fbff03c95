"""Keras' batch normalisation with TensorFlow's fused kernels."""

from __future__ import annotations

import keras
import tensorflow as tf

from neural_alignment.layers import PACKAGE

Tensor = tf.Tensor


@keras.saving.register_keras_serializable(package=PACKAGE)
class FusedBatchNormalization(keras.layers.BatchNormalization):
    """Batch normalisation of images, in training by one TensorFlow kernel each way.

    Keras 3 on TensorFlow composes the training pass of a dozen passes over the activations. The fused kernel computes
    the same function: outputs, gradients and moving statistics are Keras' to rounding. It is taken for float32 images
    `(batch, height, width, channels)`; in inference, under another dtype, with a mask, or synchronised over replicas,
    the layer is Keras'. Arguments are those of `keras.layers.BatchNormalization`.
    """

    def call(self, inputs: Tensor, training: bool | None = None, mask: Tensor | None = None) -> Tensor:
        """Normalises a batch.

        Args:
            inputs: `(batch, ..., channels)`.
            training: whether by the statistics of the batch, which the moving ones then follow.
            mask: as in Keras.
        """
        if not (training and self.trainable and mask is None and self._fits(inputs)):
            return super().call(inputs, training=training, mask=mask)
        scale = self.gamma if self.scale else tf.ones_like(self.moving_mean)
        offset = self.beta if self.center else tf.zeros_like(self.moving_mean)
        outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=inputs, scale=scale, offset=offset, mean=[], variance=[], epsilon=self.epsilon, is_training=True
        )
        # The kernel returns the variance of the population that the batch is a sample of; Keras keeps the batch's own.
        count = tf.cast(tf.size(inputs) // tf.shape(inputs)[-1], variance.dtype)
        variance *= (count - 1.0) / count
        for moving, batch in ((self.moving_mean, mean), (self.moving_variance, variance)):
            moving.assign(moving * self.momentum + batch * (1.0 - self.momentum))
        return outputs

    def _fits(self, inputs: Tensor) -> bool:
        return (
            inputs.dtype == tf.float32
            and self.variable_dtype == "float32"
            and len(inputs.shape) == 4
            and self.axis in (-1, 3)
            and not self.synchronized
            and not getattr(self, "renorm", False)
        )
