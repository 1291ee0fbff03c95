"""The order of the training records: a pure function of the seed, designed so that records can be read fast.

A *block* is a group of neighbouring records in a file that are read at once. In each epoch the blocks are shuffled; the
sequence of their records is the *stream* of the epoch. The stream is cut into *windows* of equal length, and the
records of each window are permuted.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import tensorflow as tf

# The functions of the input pipelines contain no Python control flow on tensors, so AutoGraph would only slow tracing.
without_autograph = tf.autograph.experimental.do_not_convert
SHUFFLE_ROUNDS = 8  # rounds of the cipher; with TensorFlow's default of 4, neighbours stay correlated


def permuted(index: tf.Tensor, size: tf.Tensor | int, seed: tf.Tensor) -> tf.Tensor:
    """Returns the elements at `index` of a random permutation of 0..size-1, without computing the whole permutation.

    Args:
        index: `(n,)` int64, in 0..size-1.
        size: number of permuted elements.
        seed: `(2,)` int64. It is hashed first, because `tf.random.experimental.index_shuffle` uses the seed directly as
            the key of its cipher, and neighbouring keys give similar permutations.

    Returns:
        `(n,)` int64.
    """
    key = tf.random.stateless_uniform([3], seed, minval=None, maxval=None, dtype=tf.uint32)
    last = tf.cast(size, tf.int64) - 1
    return tf.raw_ops.RandomIndexShuffle(index=index, seed=key, max_index=last, rounds=SHUFFLE_ROUNDS)


@dataclasses.dataclass(frozen=True)
class Stream:
    """The blocks of one epoch, in the order of the epoch.

    Attributes:
        first: `(blocks,)` int64, the first record of each block.
        size: `(blocks,)` int64, the number of records in each block.
        end: `(blocks,)` int64, the position in the stream after the last record of each block.
    """

    first: tf.Tensor
    size: tf.Tensor
    end: tf.Tensor

    def records(self, positions: tf.Tensor) -> tf.Tensor:
        """Returns the records at positions in the stream, both `(n,)` int64."""
        block = tf.searchsorted(self.end, positions, side="right")
        return tf.gather(self.first + self.size - self.end, block) + positions

    def runs(self, begin: tf.Tensor, end: tf.Tensor) -> tf.data.Dataset:
        """Returns the part of the stream from position `begin` to before `end`, as pairs (first record, count)."""
        low, high = tf.maximum(self.end - self.size, begin), tf.minimum(self.end, end)
        kept = high > low
        low, count = tf.boolean_mask(low, kept), tf.boolean_mask(high - low, kept)
        return tf.data.Dataset.from_tensor_slices((self.records(low), count))


class Order:
    """The order of the training records of a run.

    Args:
        blocks: `(blocks, 2)`, the first record and the number of records of each block.
        examples: number of records per epoch, at most the number of records in the blocks.
        used: number of these records that are trained on: a multiple of the batch size.
        window: number of records that are permuted together.
        seed: seed of the order.
        shuffle: whether to shuffle. If False, the records keep the order of the blocks.
    """

    def __init__(self, blocks: np.ndarray, examples: int, used: int, window: int, seed: int, shuffle: bool):
        self.window, self.examples, self.used = min(window, examples), examples, used
        self.windows = -(-used // self.window)  # per epoch
        self._shuffle = shuffle
        with tf.device("CPU:0"):  # created eagerly, so that graphs reference them instead of copying them
            self._seed = tf.constant(seed, tf.int64)
            self._blocks = tf.constant(blocks[:, 0], tf.int64), tf.constant(blocks[:, 1], tf.int64)

    def stream(self, epoch: tf.Tensor) -> Stream:
        """Returns the blocks in the order of an epoch."""
        first, size = self._blocks
        if self._shuffle:
            count = tf.size(first, tf.int64)
            # Negative, so it never equals the seed of a window or an augmentation.
            order = permuted(tf.range(count), count, tf.stack([self._seed, tf.bitwise.invert(epoch)]))
            first, size = tf.gather(first, order), tf.gather(size, order)
        return Stream(first, size, tf.cumsum(size))

    def in_window(self, epoch: tf.Tensor, window: tf.Tensor, positions: tf.Tensor) -> tf.Tensor:
        """Returns, for positions in an epoch, the positions of their records in the window before it is permuted.

        Args:
            epoch: scalar int64.
            window: scalar int64, the window that contains all positions.
            positions: `(n,)` int64, positions in the epoch.

        Returns:
            `(n,)` int64, counted from the beginning of the window.
        """
        begin = window * self.window
        index = positions - begin
        if not self._shuffle:
            return index
        seed = tf.stack([tf.bitwise.invert(self._seed), epoch * self.windows + window])
        return permuted(index, tf.minimum(self.examples - begin, self.window), seed)

    def record(self, position: tf.Tensor) -> tf.Tensor:
        """Returns the record at a position of the run, counted in training examples over all epochs: scalar int64."""
        epoch, position_in_epoch = position // self.used, position % self.used
        window = position_in_epoch // self.window
        index = self.in_window(epoch, window, position_in_epoch[tf.newaxis])
        return self.stream(epoch).records(window * self.window + index)[0]
