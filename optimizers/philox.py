"""Philox 4x32-10 (Salmon et al. 2011) in 32-bit operations, for programs that run on a TPU.

XLA's own generator computes the four words of each block in an array of shape `(blocks, 4)`. A TPU pads the last axis
to 128 entries: memory and traffic are 32 times those of the words, and the compiler needs minutes for a large array.
Here each of the four words is a separate array. The words are the same as those of TensorFlow's generators.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator

import tensorflow as tf

Tensor = tf.Tensor

_ROUNDS = 10
_MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
_KEY_STEPS = 0x9E3779B9, 0xBB67AE85

_LANES = 128
"""Entries of the last axis of an array that a TPU stores without padding."""

_programs_for_tpu = contextvars.ContextVar("programs_for_tpu", default=False)


@contextlib.contextmanager
def program_for_tpu() -> Iterator[None]:
    """A context for tracing a program that a TPU will run, without a `tf.distribute.TPUStrategy`."""
    token = _programs_for_tpu.set(True)
    try:
        yield
    finally:
        _programs_for_tpu.reset(token)


def is_for_tpu() -> bool:
    """Whether the operations that are created now will run on a TPU."""
    return _programs_for_tpu.get() or isinstance(tf.distribute.get_strategy(), tf.distribute.TPUStrategy)


def words(pair: Tensor, counter: Tensor, examples: Tensor, blocks: Tensor) -> Tensor:
    """Returns the words of consecutive blocks, `(examples, 4 * blocks)`, uint32.

    Args:
        pair: the key, two int32 numbers.
        counter: the counter of the first block of the first example, a uint64 scalar.
        examples: number of examples.
        blocks: number of blocks of four words for each example.
    """
    # Consecutive blocks are in one column. A move along the rows and one transposition of a large matrix, both of which
    # are cheap on a TPU, bring the words of a block together. If an example has a column, a TPU needs no transposition:
    # it multiplies large batches in this layout.
    known = tf.get_static_value(examples)
    columns = _LANES if known is None or known % _LANES else known
    rows = (examples * blocks + columns - 1) // columns
    key, start = (tuple(tf.unstack(tf.bitcast(number, tf.uint32))) for number in (pair, counter))
    # A zero that TensorFlow cannot evaluate. Otherwise it would store the counters of all blocks in the program.
    counters = _sum(start, tf.bitwise.bitwise_and(key[1], _constant(0)))
    for offset in (tf.range(columns)[None] * rows, tf.range(rows)[:, None]):
        counters = _sum(counters, tf.cast(offset, tf.uint32))
    planes = _generate(key, counters)
    stacked = tf.reshape(tf.stack(planes, axis=1), [4 * rows, columns])
    flat = tf.reshape(tf.transpose(stacked), [-1])[: 4 * examples * blocks]
    return tf.reshape(flat, [examples, 4 * blocks])


def _sum(number: tuple[Tensor, Tensor], added: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the sum of a number of 64 bits, in two halves as the result is (the lower one first), and one of 32."""
    low = number[0] + added
    return low, number[1] + tf.cast(low < added, tf.uint32)


def _generate(key: tuple[Tensor, Tensor], counters: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Returns the four words of each block, each in the shape of the counters.

    Args:
        key: the lower and the upper 32 bits of the key.
        counters: the lower and the upper 32 bits of the counters of the blocks.
    """
    state = *counters, tf.zeros_like(counters[0]), tf.zeros_like(counters[0])
    for _ in range(_ROUNDS):
        (high_0, low_0), (high_1, low_1) = map(_product, state[::2], _MULTIPLIERS)
        state = _xor(high_1, state[1], key[0]), low_1, _xor(high_0, state[3], key[1]), low_0
        key = tuple(part + _constant(step) for part, step in zip(key, _KEY_STEPS, strict=True))
    return state


def _product(value: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """Returns the upper and the lower 32 bits of a product. TPUs have no products of 64 bits."""
    (upper, lower), (factor_upper, factor_lower) = _halves(value), map(_constant, (factor >> 16, factor & 0xFFFF))
    first, second = lower * factor_upper, upper * factor_lower
    carried = _halves(lower * factor_lower)[0] + _halves(first)[1] + _halves(second)[1]
    high = upper * factor_upper + _halves(first)[0] + _halves(second)[0] + _halves(carried)[0]
    return high, value * _constant(factor)


def _halves(value: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the upper and the lower 16 bits of each number."""
    return tf.bitwise.right_shift(value, _constant(16)), tf.bitwise.bitwise_and(value, _constant(0xFFFF))


def _xor(first: Tensor, second: Tensor, third: Tensor) -> Tensor:
    return tf.bitwise.bitwise_xor(tf.bitwise.bitwise_xor(first, second), third)


def _constant(value: int) -> Tensor:
    return tf.constant(value, tf.uint32)
