"""Stateless noise: the same on every device, with and without XLA, and after a resume.

TensorFlow's normal and uniform numbers differ between its CPU kernels and XLA; only the underlying random bits are
equal. This module draws those bits and converts them to numbers with ordinary operations.
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import tensorflow as tf

from optimizers import philox

Tensor = tf.Tensor


MASK = 0x7FFFFFFF
"""The bits of a seed that a key contains."""


class Seed(int):
    """A seed that graphs read from a variable, so that a graph can be used with another seed.

    Attributes:
        variable: the seed as a key contains it, int32.
    """

    variable: tf.Variable

    def __new__(cls, value: int) -> Seed:
        """Creates the seed and its variable."""
        seed = super().__new__(cls, value)
        seed.variable = tf.Variable(value & MASK, trainable=False, dtype=tf.int32)
        return seed


def key(seed: int, name: str, *counters: Any) -> Tensor:
    """Returns the key of a draw: two int32 numbers, computed from a seed, a name and any number of integer counters."""
    start = [seed.variable if isinstance(seed, Seed) else seed & MASK, zlib.crc32(name.encode()) & MASK]
    pair = tf.stack(start) if isinstance(seed, Seed) else tf.constant(start, tf.int32)
    for counter in counters:
        pair = tf.random.experimental.stateless_fold_in(pair, tf.cast(counter, tf.int32), alg="philox")
    return pair


DISTRIBUTIONS = ("normal", "uniform", "sign")
"""The distributions that `draw` supports. All have mean 0. The last two cost less than the first."""


def draw(
    distribution: str, shape: Any, pair: Tensor, stddev: float, dtype: tf.DType = tf.float32, first: Any = 0
) -> Tensor:
    """Draws independent, identically distributed numbers with mean 0.

    The numbers of an example depend only on the key and on the index of the example. The draw for a part of a batch,
    such as that of a replica, therefore equals this part of the draw for the whole batch, if `first` is given.

    Args:
        distribution: `"normal"`, `"uniform"` (between -sqrt(3) stddev and sqrt(3) stddev) or `"sign"` (-stddev or
            stddev).
        shape: shape of the result, `(examples, ...)`.
        pair: the key, from `key`.
        stddev: standard deviation of the numbers.
        dtype: dtype of the result.
        first: index within the whole batch of the first example.

    Returns:
        The numbers, in the shape `shape`.
    """
    shape = tf.convert_to_tensor(shape, tf.int32)
    known = tf.get_static_value(shape)
    shape = shape if known is None else known
    wide = tf.float64 if dtype == tf.float64 else tf.float32
    examples = tf.convert_to_tensor(shape[0]) if shape.shape[0] else tf.constant(1)
    numbers = _DRAWS[distribution](examples, tf.reduce_prod(shape[1:]), pair, first, wide)
    return tf.cast(tf.reshape(stddev * numbers, shape), dtype)


TABLE = 2**16
"""Size from which `resample` leaves entries out, so that the rest fits into the cache of a processor."""


def resample(values: Tensor, pair: Tensor) -> Tensor:
    """Draws each entry of the result from the entries of `values`, independently and with replacement.

    If there are at least twice as many entries as `TABLE`, the numbers are drawn from about `TABLE` of them, at equal
    distances. Of independent values, this is a sample of the same distribution; drawing from all of them would take
    several times as long, because most reads of a large array miss the cache.

    Args:
        values: a sample of a distribution, of any shape that is known when a graph is traced.
        pair: the key, from `key`.

    Returns:
        The numbers, in the shape of `values`.
    """
    values = tf.convert_to_tensor(values)
    size = values.shape.num_elements()
    # The number of columns of a kernel is often a power of two; an odd distance reaches all columns.
    table = tf.reshape(values, [-1])[:: size // TABLE | 1]
    count = table.shape[0]
    unit = _unit(_bits(tf.constant(1), tf.constant(size), pair, 0)[0], tf.float32)
    places = tf.minimum(tf.cast(unit * float(count), tf.int32), count - 1)
    return tf.reshape(tf.gather(table, places), values.shape)


def _normal(examples: Tensor, features: Tensor, pair: Tensor, first: Any, dtype: tf.DType) -> Tensor:
    """Draws standard normal numbers, two from every two uniform numbers (Box and Muller 1958)."""
    half = (features + 1) // 2
    unit = _unit(_bits(examples, 2 * half, pair, first), dtype)
    radius = tf.sqrt(-2.0 * tf.math.log(unit[:, :half]))
    turn = unit[:, half:] * 6.283185307179586
    return tf.concat([radius * tf.cos(turn), radius * tf.sin(turn)], axis=1)[:, :features]


def _uniform(examples: Tensor, features: Tensor, pair: Tensor, first: Any, dtype: tf.DType) -> Tensor:
    """Draws uniform numbers with standard deviation 1."""
    return (2.0 * _unit(_bits(examples, features, pair, first), dtype) - 1.0) * 3.0**0.5


def _sign(examples: Tensor, features: Tensor, pair: Tensor, first: Any, dtype: tf.DType) -> Tensor:
    """Draws 1 or -1, each from one random bit."""
    bits = _bits(examples, (features + 31) // 32, pair, first)
    single = tf.bitwise.right_shift(bits[:, :, None], tf.constant(np.arange(32), tf.uint32))
    single = tf.cast(tf.bitwise.bitwise_and(single, tf.constant(1, tf.uint32)), dtype)
    return 2.0 * tf.reshape(single, [examples, -1])[:, :features] - 1.0


_DRAWS = {"normal": _normal, "uniform": _uniform, "sign": _sign}


def _unit(bits: Tensor, dtype: tf.DType) -> Tensor:
    """Converts the upper 24 of 32 bits to uniform numbers in (0, 1]."""
    return (tf.cast(tf.bitwise.right_shift(bits, tf.constant(8, tf.uint32)), dtype) + 0.5) * 2.0**-24


def _bits(examples: Tensor, columns: Tensor, pair: Tensor, first: Any) -> Tensor:
    """Draws 32 random bits for each entry of `(examples, columns)`, beginning with the example `first`.

    Philox (Salmon et al. 2011) generates four 32-bit words for each pair of key and counter. Each example begins with a
    new counter value, so its bits do not depend on the other examples.
    """
    blocks = (columns + 3) // 4
    counter = tf.cast(first, tf.uint64) * tf.cast(blocks, tf.uint64)
    if philox.is_for_tpu():
        bits = philox.words(pair, counter, examples, blocks)
    else:
        bits = tf.raw_ops.StatelessRandomUniformFullIntV2(
            shape=tf.stack([examples, 4 * blocks]),
            key=tf.bitcast(pair, tf.uint64)[None],
            counter=tf.stack([counter, tf.zeros([], tf.uint64)]),
            alg=tf.random.Algorithm.PHILOX.value,
            dtype=tf.uint32,
        )
    return bits[:, :columns]
