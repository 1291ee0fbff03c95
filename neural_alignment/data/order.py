"""Which record stands where in a run: a pure function of the seed, close enough to the files' order to read fast.

The records of an epoch are those of all blocks (neighbours in a file, read at once) in an order of the epoch's own: the
*stream*. It is cut into *windows* of equal length, and each window is permuted as a whole.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import tensorflow as tf

# Functions of input pipelines hold no Python control flow on tensors: AutoGraph has nothing to do in them, slowly.
as_it_is = tf.autograph.experimental.do_not_convert
SHUFFLE_ROUNDS = 8  # of the cipher behind the order; with TensorFlow's 4, neighbours stay correlated


def permuted(index: tf.Tensor, size: tf.Tensor | int, seed: tf.Tensor) -> tf.Tensor:
    """The elements at `index` of a permutation of 0..size-1, without making the permutation.

    Args:
        index: `(n,)` int64, in 0..size-1.
        size: number of elements that are permuted.
        seed: `(2,)` int64. It is hashed: `tf.random.experimental.index_shuffle` takes it as the key of its cipher as it
            is, and the permutations of neighbouring seeds then resemble each other.

    Returns:
        `(n,)` int64.
    """
    key = tf.random.stateless_uniform([3], seed, minval=None, maxval=None, dtype=tf.uint32)
    last = tf.cast(size, tf.int64) - 1
    return tf.raw_ops.RandomIndexShuffle(index=index, seed=key, max_index=last, rounds=SHUFFLE_ROUNDS)


@dataclasses.dataclass(frozen=True)
class Stream:
    """The blocks of one epoch, in the epoch's order.

    Attributes:
        first: `(blocks,)` int64, the first record of each block.
        size: `(blocks,)` int64, how many records it has.
        end: `(blocks,)` int64, the place in the stream after its last record.
    """

    first: tf.Tensor
    size: tf.Tensor
    end: tf.Tensor

    def records(self, places: tf.Tensor) -> tf.Tensor:
        """The records at places of the stream, both `(n,)` int64."""
        block = tf.searchsorted(self.end, places, side="right")
        return tf.gather(self.first + self.size - self.end, block) + places

    def runs(self, begin: tf.Tensor, end: tf.Tensor) -> tf.data.Dataset:
        """The pairs (first record, how many) that make up the stream from place `begin` to before `end`."""
        low, high = tf.maximum(self.end - self.size, begin), tf.minimum(self.end, end)
        kept = high > low
        low, count = tf.boolean_mask(low, kept), tf.boolean_mask(high - low, kept)
        return tf.data.Dataset.from_tensor_slices((self.records(low), count))


class Order:
    """The order of the training records of a run.

    Args:
        blocks: `(blocks, 2)`: the first record and the number of records of each.
        examples: how many records an epoch has, at most all that the blocks hold.
        used: how many of these are trained on: whole batches.
        window: records that are permuted together.
        seed: the order is a function of this.
        shuffle: False keeps the order of the blocks.
    """

    def __init__(self, blocks: np.ndarray, examples: int, used: int, window: int, seed: int, shuffle: bool):
        self.window, self.examples, self.used = min(window, examples), examples, used
        self.windows = -(-used // self.window)  # per epoch
        self._shuffle = shuffle
        with tf.device("CPU:0"):  # made here, so that graphs hold a reference to them and no copy
            self._seed = tf.constant(seed, tf.int64)
            self._blocks = tf.constant(blocks[:, 0], tf.int64), tf.constant(blocks[:, 1], tf.int64)

    def stream(self, epoch: tf.Tensor) -> Stream:
        """The blocks in the order of an epoch."""
        first, size = self._blocks
        if self._shuffle:
            count = tf.size(first, tf.int64)
            # Negative: no seed of a window, nor of an augmentation.
            order = permuted(tf.range(count), count, tf.stack([self._seed, tf.bitwise.invert(epoch)]))
            first, size = tf.gather(first, order), tf.gather(size, order)
        return Stream(first, size, tf.cumsum(size))

    def in_window(self, epoch: tf.Tensor, window: tf.Tensor, places: tf.Tensor) -> tf.Tensor:
        """Where in the stream of its window, counted from 0, the record for each place of an epoch stands.

        Args:
            epoch: scalar int64.
            window: scalar int64: the window of the epoch that all places are in.
            places: `(n,)` int64: places in the epoch.

        Returns:
            `(n,)` int64.
        """
        begin = window * self.window
        index = places - begin
        if not self._shuffle:
            return index
        seed = tf.stack([tf.bitwise.invert(self._seed), epoch * self.windows + window])
        return permuted(index, tf.minimum(self.examples - begin, self.window), seed)

    def record(self, position: tf.Tensor) -> tf.Tensor:
        """The record at a position of the run, scalar int64, counted in trained examples over all epochs."""
        epoch, place = position // self.used, position % self.used
        window = place // self.window
        index = self.in_window(epoch, window, place[tf.newaxis])
        return self.stream(epoch).records(window * self.window + index)[0]
