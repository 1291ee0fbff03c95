"""How alike two tensors are: the angle between them and the ratio of their norms."""

from __future__ import annotations

import tensorflow as tf

Tensor = tf.Tensor


def angle(first: Tensor, second: Tensor) -> Tensor:
    """Returns the angle in degrees between two tensors of one shape, flattened.

    arccos(<a, b> / (||a|| ||b||)), computed as 2 atan2(||u - v||, ||u + v||) of the unit vectors: arccos loses all
    digits near 0 and 180 degrees. NaN where a tensor is zero or not finite: then there is no angle.

    Args:
        first: any shape.
        second: the same shape.
    """
    return _angle(*(tf.reshape(tf.cast(tensor, tf.float32), [-1]) for tensor in (first, second)))


# A graph of its own: a deep network has a hundred angles, and TensorFlow takes seconds to add so many operations.
@tf.function(input_signature=[tf.TensorSpec([None], tf.float32)] * 2, autograph=False)
def _angle(first: Tensor, second: Tensor) -> Tensor:
    first, second = _unit(first), _unit(second)
    return 2.0 * tf.atan2(tf.norm(first - second), tf.norm(first + second)) * (180.0 / 3.141592653589793)


def norm_ratio(backward: Tensor, forward: Tensor) -> Tensor:
    """Returns ||B|| / ||W||."""
    return tf.norm(tf.cast(backward, tf.float32)) / tf.norm(tf.cast(forward, tf.float32))


def _unit(vector: Tensor) -> Tensor:
    """Scales a vector to norm 1; dividing by the largest entry first keeps the squares in range."""
    vector = vector / tf.reduce_max(tf.abs(vector))
    return vector / tf.norm(vector)
