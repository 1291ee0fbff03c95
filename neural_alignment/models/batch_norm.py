"""Batch normalisation: Keras' layer with TensorFlow's fused kernels, and the variant of Boopathy and Fiete 2022."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from neural_alignment.errors import ArgumentError
from neural_alignment.serialization import serializable

Tensor = tf.Tensor


@serializable
class FusedBatchNormalization(keras.layers.BatchNormalization):
    """`keras.layers.BatchNormalization` that trains on images with TensorFlow's fused kernels.

    In training, Keras 3 on TensorFlow reads the activations a dozen times. The fused kernel computes the same function
    in one operation: outputs, gradients and moving statistics equal those of Keras up to rounding. It is used in
    training for float32 images `(batch, height, width, channels)`. In inference, with another dtype or shape, with a
    mask, or when synchronised over replicas, the layer uses Keras' implementation.

    With `train_scale_and_shift=False` scale and shift keep their initial values. In training the layer still normalises
    by the statistics of the batch and updates the moving statistics, like `trainable=False` in TensorFlow 1. In
    contrast, Keras' `layer.trainable = False` switches the layer to inference mode.

    Args:
        *args: as in `keras.layers.BatchNormalization`.
        train_scale_and_shift: whether scale and shift are trained.
        **kwargs: as in `keras.layers.BatchNormalization`.
    """

    def __init__(self, *args: Any, train_scale_and_shift: bool = True, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.train_scale_and_shift = train_scale_and_shift

    def add_weight(self, *args: Any, **kwargs: Any) -> Any:
        """Creates a weight as in Keras. Scale and shift are created as non-trainable if they are not trained.

        If `trainable` were set later, `model.trainable = True` would overwrite it.
        """
        if not self.train_scale_and_shift:
            kwargs["trainable"] = False
        return super().add_weight(*args, **kwargs)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        config = super().get_config()
        # Omitted at its default, so that Keras' own layer accepts the configuration.
        return config if self.train_scale_and_shift else {**config, "train_scale_and_shift": False}

    def call(self, inputs: Tensor, training: bool | None = None, mask: Tensor | None = None) -> Tensor:
        """Normalises a batch.

        Args:
            inputs: `(batch, ..., channels)`.
            training: whether to use the statistics of the batch and update the moving statistics.
            mask: as in Keras.

        Returns:
            The normalised batch, in the shape of `inputs`.
        """
        if not (training and self.trainable and mask is None and self._fits(inputs)):
            return super().call(inputs, training=training, mask=mask)
        scale = self.gamma if self.scale else tf.ones_like(self.moving_mean)
        offset = self.beta if self.center else tf.zeros_like(self.moving_mean)
        outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=inputs, scale=scale, offset=offset, mean=[], variance=[], epsilon=self.epsilon, is_training=True
        )
        # The kernel returns the unbiased variance; Keras' moving statistics use the biased variance of the batch.
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


@serializable
class BatchAxisNormalization(keras.layers.Layer):
    """Batch normalisation as in the published code of Boopathy and Fiete 2022.

    y = (x - mean(x)) / sqrt(var(x) + epsilon), with the mean and the biased variance over the batch axis, separate for
    every position and channel. There are no scale, shift and moving statistics. Evaluation also uses the statistics of
    the batch, so the output for an example depends on the other examples in its batch.

    Args:
        epsilon: added to the variance; positive.
        **kwargs: as in `keras.layers.Layer`.

    Raises:
        ValueError: if `epsilon` is not positive.
    """

    whole_batch_reason = "uses the statistics of the whole batch"
    """Why a batch must not be divided among replicas or into minibatches. See `AlignedModel.compile`."""

    def __init__(self, epsilon: float = 1e-6, **kwargs: object):
        super().__init__(**kwargs)
        if not epsilon > 0:
            raise ArgumentError("epsilon", "must be positive", epsilon, "epsilon=1e-6")
        self.epsilon = float(epsilon)

    def call(self, inputs: Tensor) -> Tensor:
        """Normalises a batch `(batch, ...)`. Half-precision inputs are normalised in float32, as in Keras."""
        wide = tf.cast(inputs, tf.float32) if inputs.dtype.size < tf.float32.size else inputs
        outputs = _fused(wide, self.epsilon) if _is_fusible(wide) else _normalized(wide, self.epsilon)
        return tf.cast(outputs, inputs.dtype)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """Returns the shape of the inputs."""
        return input_shape

    def get_config(self) -> dict[str, object]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "epsilon": self.epsilon}


def _is_fusible(inputs: Tensor) -> bool:
    """Returns whether TensorFlow's fused kernel can be used. On GPUs it does not support such a small `epsilon`."""
    known = inputs.dtype == tf.float32 and len(inputs.shape) > 1 and inputs.shape[1:].is_fully_defined()
    return known and not tf.config.list_physical_devices("GPU")


def _fused(inputs: Tensor, epsilon: float) -> Tensor:
    """Standardises over the first axis with the fused kernel, which treats every position as a separate channel.

    TensorFlow's gradient would keep the inputs. The formula in `_normalized` needs the outputs y, which the next
    nonlinearity may keep as well. It is the gradient of the fused kernel at y, whose mean is 0, with the scale r.
    """
    size = inputs.shape[1:].num_elements()

    @tf.custom_gradient
    def operation(inputs: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        zeros = tf.zeros([size])
        outputs, _, variance, *_, reserved = tf.raw_ops.FusedBatchNormV3(
            x=inputs, scale=tf.ones([size]), offset=zeros, mean=[], variance=[], epsilon=epsilon, is_training=True
        )
        # The kernel returns the unbiased variance.
        examples = tf.cast(tf.shape(inputs)[0], variance.dtype)
        scale = tf.math.rsqrt(variance * ((examples - 1.0) / examples) + epsilon)

        def gradient(upstream: Tensor) -> Tensor:
            return tf.raw_ops.FusedBatchNormGradV3(
                y_backprop=upstream,
                x=outputs,
                scale=scale,
                reserve_space_1=zeros,
                reserve_space_2=tf.fill([size], 1.0 - epsilon),
                reserve_space_3=reserved,
                epsilon=epsilon,
                is_training=True,
            ).x_backprop

        return outputs, gradient

    outputs = operation(tf.reshape(inputs, [-1, 1, 1, size]))
    return tf.reshape(outputs, tf.shape(inputs))


def _normalized(inputs: Tensor, epsilon: float) -> Tensor:
    """Standardises over the first axis. The explicit gradient needs only the outputs, which saves memory.

    With the outputs y and r = 1 / sqrt(var + epsilon), dx = r (dy - mean(dy) - y mean(dy y)).
    """

    @tf.custom_gradient
    def operation(inputs: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        centred = inputs - tf.reduce_mean(inputs, axis=0)
        scale = tf.math.rsqrt(tf.reduce_mean(tf.square(centred), axis=0) + epsilon)
        outputs = centred * scale

        def gradient(upstream: Tensor) -> Tensor:
            along = tf.reduce_mean(upstream * outputs, axis=0)
            return scale * (upstream - tf.reduce_mean(upstream, axis=0) - outputs * along)

        return outputs, gradient

    return operation(inputs)
