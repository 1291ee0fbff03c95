"""Noise that is a function of names and numbers alone: the same on any device, compiled or not, and after a resume.

TensorFlow's own normal and uniform numbers differ between its CPU kernels and XLA, because only the bits under them are
the same. Those bits are drawn here, and turned into numbers by ordinary operations.
"""

from __future__ import annotations

import zlib
from typing import Any

import tensorflow as tf

Tensor = tf.Tensor


def key(seed: int, name: str, *counters: Any) -> Tensor:
    """Returns the key of a draw, an int32 pair: a function of a seed, a name and any number of counters."""
    pair = tf.constant([seed & 0x7FFFFFFF, zlib.crc32(name.encode()) & 0x7FFFFFFF], tf.int32)
    for counter in counters:
        pair = tf.random.experimental.stateless_fold_in(pair, tf.cast(counter, tf.int32), alg="philox")
    return pair


def draw(distribution: str, shape: Any, pair: Tensor, stddev: float, dtype: tf.DType = tf.float32) -> Tensor:
    """Draws i.i.d. numbers of mean 0.

    Args:
        distribution: `"normal"`, or `"uniform"` between plus and minus stddev times the root of 3.
        shape: of the result, `(examples, ...)`; what an example gets does not depend on how many there are.
        pair: what `key` returned.
        stddev: standard deviation, whichever the distribution.
        dtype: of the result.
    """
    shape = tf.convert_to_tensor(shape, tf.int32)
    wide = tf.float64 if dtype == tf.float64 else tf.float32
    if distribution == "uniform":
        numbers = (2.0 * _unit(shape, pair, wide) - 1.0) * (stddev * 3.0**0.5)
        return tf.cast(numbers, dtype)
    examples = shape[0] if shape.shape[0] else 1
    features = tf.reduce_prod(shape[1:])
    unit = _unit([examples, 2, (features + 1) // 2], pair, wide)
    # Box and Muller 1958: two uniform numbers make two normal ones.
    radius = stddev * tf.sqrt(-2.0 * tf.math.log(unit[:, :1]))
    turn = unit[:, 1:] * 6.283185307179586
    numbers = tf.reshape(tf.concat([radius * tf.cos(turn), radius * tf.sin(turn)], axis=1), [examples, -1])
    return tf.cast(tf.reshape(numbers[:, :features], shape), dtype)


def _unit(shape: Any, pair: Tensor, dtype: tf.DType) -> Tensor:
    """Draws uniform numbers in (0, 1] from 24 random bits each."""
    bits = tf.random.stateless_uniform(shape, pair, minval=None, maxval=None, dtype=tf.uint32, alg="philox")
    return (tf.cast(tf.bitwise.right_shift(bits, tf.constant(8, tf.uint32)), dtype) + 0.5) * 2.0**-24
