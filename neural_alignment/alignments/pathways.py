"""Operations on the forward and backward paths of a layer: noise, bias, nonlinearity, centring, normalisation.

`Signals` in `base.py` applies them in order. "Feature-wise" operations act on each example, over height, width and
channels. "Batch-wise" operations act on each position, over the examples (Kunin et al. 2020, Appendix B.1.3; Table 5).
The option docstrings give the abbreviations of Table 5, such as BI (backward input) and FO (forward output).
"""

from __future__ import annotations

from typing import Literal

import pydantic
import tensorflow as tf

from neural_alignment.errors import ArgumentError
from neural_alignment.options import Options
from optimizers import noise

Tensor = tf.Tensor

SMALLEST_NORM = 1e-6
"""Lower bound of the norm by which an example is divided when it is normalised."""


class InputPath(Options):
    """Operations on the input of both projections (Table 5, BI; sigma)."""

    noise: Literal["normal", "uniform", "sign"] | None = None
    """Distribution of the noise that replaces the input. Default: no noise. The paper uses "normal". "uniform" and
    "sign" (plus or minus `stddev`) have the same mean and variance; drawing them takes half and a quarter of the
    time."""
    stddev: pydantic.PositiveFloat = 1.0
    """Standard deviation of the noise, for every distribution."""
    feature_center: bool = False
    """Whether to subtract the feature-wise mean (BI FWMC)."""
    feature_normalize: bool = False
    """Whether to divide by the feature-wise norm (BI FWL2N). This centres first, so `feature_center` then has no
    additional effect."""
    batch_center: bool = False
    """Whether to subtract the batch-wise mean (BI BWMC), on the backward path only."""

    @pydantic.model_validator(mode="after")
    def _stddev_needs_noise(self):
        if self.noise is None and "stddev" in self.model_fields_set and self.stddev != 1.0:
            raise ArgumentError("stddev", "must be left out without `noise`", self.stddev, "noise: normal")
        return self


class ForwardOutput(Options):
    """Operations on the forward projection W^T x (Table 5, FO)."""

    bias: bool = False
    """Whether to add the bias of the layer."""
    relu: bool = False
    """Whether to apply the nonlinearity that follows the layer, a ReLU in the paper."""
    batch_center: bool = False
    """Whether to subtract the batch-wise mean."""
    feature_center: bool = False
    """Whether to subtract the feature-wise mean."""
    feature_normalize: bool = False
    """Whether to divide by the feature-wise norm, after centring."""

    @property
    def centers_features(self) -> bool:
        """Whether each example is centred over its features, which normalisation does too."""
        return self.feature_center or self.feature_normalize


class BackwardOutput(Options):
    """Operations on the backward projection B^T x (Table 5, BO)."""

    bias: bool = False
    """Whether to add the bias of the layer."""
    relu: bool = False
    """Whether to apply the nonlinearity that follows the layer, a ReLU in the paper."""
    feature_center: bool = False
    """Whether to subtract the feature-wise mean."""
    feature_normalize: bool = False
    """Whether to divide by the feature-wise norm, after centring."""


def feature_center(signal: Tensor) -> Tensor:
    """Subtracts from each example its mean over all features."""
    return signal - tf.reduce_mean(signal, axis=range(1, signal.shape.rank), keepdims=True)


def feature_normalize(signal: Tensor) -> Tensor:
    """Centres each example over its features and divides it by its norm: (x - mean) / max(||x - mean||, 1e-6).

    Half precision is cast to float32, because it cannot represent the squares of large signals, or 1e-12.
    """
    wide = signal if signal.dtype == tf.float64 else tf.cast(signal, tf.float32)
    return tf.cast(feature_center(wide) * inverse_norm(wide), signal.dtype)


def inverse_norm(signal: Tensor) -> Tensor:
    """Returns 1 / max(||x - mean||, 1e-6) of each example `(batch, 1, ...)`; see `feature_normalize`."""
    energy = tf.reduce_sum(tf.square(feature_center(signal)), axis=range(1, signal.shape.rank), keepdims=True)
    return tf.math.rsqrt(tf.maximum(energy, SMALLEST_NORM**2))


def batch_center(signal: Tensor) -> Tensor:
    """Subtracts from each position its mean over the whole batch, on all replicas."""
    mean, replica = batch_mean(signal), tf.distribute.get_replica_context()
    if replica is not None and replica.num_replicas_in_sync > 1:
        if signal.shape[0] is None or tf.executing_eagerly():  # Replicas may have different numbers of examples.
            count = tf.cast(tf.shape(signal)[0], tf.float64 if mean.dtype == tf.float64 else tf.float32)
            share = count / replica.all_reduce(tf.distribute.ReduceOp.MEAN, count)  # Exactly 1 if they are equal.
            mean *= tf.cast(share, mean.dtype)
        mean = replica.all_reduce(tf.distribute.ReduceOp.MEAN, mean)
    return signal - mean


def batch_mean(signal: Tensor) -> Tensor:
    """Returns the mean over the examples on this replica `(1, ...)`, which is 0 if there is none."""
    mean = tf.reduce_mean(signal, axis=0, keepdims=True)
    if signal.shape[0]:
        return mean
    return tf.math.multiply_no_nan(mean, tf.cast(tf.shape(signal)[0] > 0, mean.dtype))


def standardise(signal: Tensor, options: ForwardOutput | BackwardOutput | InputPath, batch: bool) -> Tensor:
    """Applies the centring and normalisation in `options`. Batch-wise centring is applied only if `batch` is true."""
    if options.feature_normalize:
        signal = feature_normalize(signal)
    elif options.feature_center:
        signal = feature_center(signal)
    return batch_center(signal) if batch and options.batch_center else signal


def noise_key(seed: int, layer: str, step: Tensor | int) -> Tensor:
    """Returns the random key of one layer at one step."""
    return noise.key(seed, layer, step)


def draw_noise(options: InputPath, like: Tensor, key: Tensor, first_example: Tensor | int = 0) -> Tensor:
    """Draws independent, identically distributed noise with the shape and dtype of `like`.

    Args:
        options: distribution and standard deviation.
        like: `(batch, ...)`, a part of the step's batch.
        key: the result of `noise_key`.
        first_example: index of the first example of `like` within the batch of the step.
    """
    drawn = noise.draw(options.noise, tf.shape(like), key, options.stddev, like.dtype, first_example)
    return tf.ensure_shape(drawn, like.shape)
