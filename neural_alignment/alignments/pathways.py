"""What a rule may do to the two paths of a layer: noise, bias, nonlinearity, centring, normalisation.

The order in which they act is in `Signals` (`base.py`). "Feature-wise" means per example, over all of height, width and
channel; "batch-wise" means over the examples, per position (Kunin et al. 2020, Appendix B.1.3; Table 5).
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
"""Below this norm an example is divided by this number when it is normalised."""


class InputPath(Options):
    """Operations on the input that both projections see (Table 5, BI; sigma).

    Attributes:
        noise: distribution of the noise that takes the input's place; none by default. "normal" is the paper's;
            "uniform" and "sign" (plus or minus `stddev`) have the same first two moments and are made in half and in
            a quarter of the time.
        stddev: standard deviation of that noise, whichever the distribution.
        feature_center: BI FWMC.
        feature_normalize: BI FWL2N; centres first, so that `feature_center` changes nothing beside it.
        batch_center: BI BWMC; acts on the backward path alone.
    """

    noise: Literal["normal", "uniform", "sign"] | None = None
    stddev: pydantic.PositiveFloat = 1.0
    feature_center: bool = False
    feature_normalize: bool = False
    batch_center: bool = False

    @pydantic.model_validator(mode="after")
    def _stddev_needs_noise(self):
        if self.noise is None and "stddev" in self.model_fields_set and self.stddev != 1.0:
            raise ArgumentError("stddev", "must be left out without `noise`", self.stddev, "noise: normal")
        return self


class ForwardOutput(Options):
    """Operations on the forward projection W^T x (Table 5, FO)."""

    bias: bool = False
    relu: bool = False
    batch_center: bool = False
    feature_center: bool = False
    feature_normalize: bool = False

    @property
    def standardises(self) -> bool:
        """Whether anything acts after the nonlinearity."""
        return self.batch_center or self.feature_center or self.feature_normalize


class BackwardOutput(Options):
    """Operations on the backward projection B^T x (Table 5, BO)."""

    bias: bool = False
    relu: bool = False
    feature_center: bool = False
    feature_normalize: bool = False

    @property
    def linear(self) -> bool:
        """Whether the backward projection stays linear in B (up to the bias, a constant)."""
        return not (self.relu or self.feature_center or self.feature_normalize)


def feature_center(signal: Tensor) -> Tensor:
    """Subtracts from each example its mean over all features."""
    return signal - tf.reduce_mean(signal, axis=range(1, signal.shape.rank), keepdims=True)


def feature_normalize(signal: Tensor) -> Tensor:
    """Centres each example over its features and divides it by its norm, (x - mean) / max(||x - mean||, 1e-6).

    Half precision is widened meanwhile: it holds neither the squares of large signals nor 1e-12.
    """
    wide = signal if signal.dtype == tf.float64 else tf.cast(signal, tf.float32)
    centred = feature_center(wide)
    energy = tf.reduce_sum(tf.square(centred), axis=range(1, signal.shape.rank), keepdims=True)
    return tf.cast(centred * tf.math.rsqrt(tf.maximum(energy, SMALLEST_NORM**2)), signal.dtype)


def batch_center(signal: Tensor) -> Tensor:
    """Subtracts from each position its mean over the batch, that of all replicas."""
    mean = tf.reduce_mean(signal, axis=0, keepdims=True)
    replica = tf.distribute.get_replica_context()
    if replica is not None and replica.num_replicas_in_sync > 1:
        mean = replica.all_reduce(tf.distribute.ReduceOp.MEAN, mean)
    return signal - mean


def standardise(signal: Tensor, options: ForwardOutput | BackwardOutput | InputPath, batch: bool) -> Tensor:
    """Applies the centring and normalisation that `options` asks for; `batch` allows the batch-wise one."""
    if options.feature_normalize:
        signal = feature_normalize(signal)
    elif options.feature_center:
        signal = feature_center(signal)
    return batch_center(signal) if batch and options.batch_center else signal


def noise_key(seed: int, layer: str, step: Tensor | int) -> Tensor:
    """Returns the key of the noise of one layer at one step: that of the run's seed, its name and the step."""
    return noise.key(seed, layer, step)


def draw_noise(options: InputPath, like: Tensor, key: Tensor, first_example: Tensor | int = 0) -> Tensor:
    """Draws i.i.d. noise of the shape and dtype of `like`; there is no scaling by the fan-in.

    Args:
        options: distribution and standard deviation.
        like: `(batch, ...)`, a part of the step's batch.
        key: what `noise_key` returned.
        first_example: place in the step's batch of the first example of `like`.
    """
    drawn = noise.draw(options.noise, tf.shape(like), key, options.stddev, like.dtype, first_example)
    return tf.ensure_shape(drawn, like.shape)
