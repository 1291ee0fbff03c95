"""The angle between two tensors and the ratio of their norms."""

from __future__ import annotations

import math

import tensorflow as tf

Tensor = tf.Tensor


def angle(first: Tensor, second: Tensor) -> Tensor:
    """Returns the angle in degrees between two flattened tensors.

    arccos(<a, b> / (||a|| ||b||)) is computed as 2 atan2(||u - v||, ||u + v||) with the unit vectors u and v, because
    arccos loses all digits near 0 and 180 degrees. The angle is NaN if a tensor is zero or not finite.

    Args:
        first: any shape.
        second: the same shape.
    """
    return _angle(*(tf.reshape(tf.cast(tensor, tf.float32), [-1]) for tensor in (first, second)))


# Traced once: a deep network has a hundred angles, and tracing these operations a hundred times would take seconds.
@tf.function(input_signature=[tf.TensorSpec([None], tf.float32)] * 2, autograph=False)
def _angle(first: Tensor, second: Tensor) -> Tensor:
    first, second = _unit(first), _unit(second)
    return 2.0 * tf.atan2(tf.norm(first - second), tf.norm(first + second)) * (180.0 / 3.141592653589793)


def norm_ratio(backward: Tensor, forward: Tensor) -> Tensor:
    """Returns ||B|| / ||W||; NaN if W is zero or a norm is not finite.

    Args:
        backward: B, any shape.
        forward: W, any shape.
    """
    numerator, denominator = (tf.norm(tf.cast(kernel, tf.float32)) for kernel in (backward, forward))
    ratio = numerator / denominator
    defined = tf.math.is_finite(ratio) & tf.math.is_finite(denominator)
    return tf.where(defined, ratio, math.nan)


def _unit(vector: Tensor) -> Tensor:
    """Scales a vector to norm 1, first by its largest entry so that the squares stay in range."""
    vector = vector / tf.reduce_max(tf.abs(vector))
    return vector / tf.norm(vector)
