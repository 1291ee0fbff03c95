"""The Add task of Boopathy and Fiete 2022 (Appendices F and K), with the random numbers of the published code.

The published code uses NumPy's legacy generator. It seeds the generator again before it draws the sequences, the
weights and the orders. The same numbers are drawn here, so that losses can be compared with the printed ones digit by
digit.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from neural_alignment.data.pipeline import Batching, Dataset, Share, check_integer

Array = np.ndarray

PUBLISHED_SEED = 99
"""Seed of the published code."""

DELAYS = (2, 5)
"""Delays of the two terms of the target, in steps (equation 59)."""


class Sequences(NamedTuple):
    """Sequences of the task.

    Attributes:
        inputs: `(sequences, steps, 1)` float32, 0 or 1.
        targets: of the same shape.
    """

    inputs: Array
    targets: Array


class Orders(NamedTuple):
    """The orders of the sequences in one epoch.

    The position of a sequence in its batch determines the row of the initial state from which it starts.

    Attributes:
        updates: `(training sequences,)`, for the training steps.
        test: `(test sequences,)`, for the test loss.
        train: `(training sequences,)`, for the training loss.
    """

    updates: Array
    test: Array
    train: Array


class AddTask(Dataset):
    """y(t) = 0.5 + 0.5 x(t - 2) - 0.25 x(t - 5), with x(t) from a fair coin (equation 59).

    As in the published code, time wraps around, and zeros replace the delayed inputs of the first 2 and 5 sequences
    rather than those of the first 2 and 5 steps.

    Args:
        batching: batch sizes, and the seed of the orders.
        train_sequences: number of training sequences.
        test_sequences: number of test sequences.
        steps: number of steps in each sequence.
        sequences_seed: seed of the coin tosses.

    Attributes:
        train_split: the training sequences.
        test_split: the test sequences.
    """

    def __init__(
        self,
        batching: Batching,
        train_sequences: int = 300,
        test_sequences: int = 100,
        steps: int = 100,
        sequences_seed: int = PUBLISHED_SEED,
    ):
        super().__init__(
            batching,
            input_shape=(steps, 1),
            classes=1,
            train_examples=train_sequences,
            validation_examples=test_sequences,
        )
        inputs, targets = _draw(train_sequences + test_sequences, steps, sequences_seed)
        self.train_split = Sequences(inputs[:train_sequences], targets[:train_sequences])
        self.test_split = Sequences(inputs[train_sequences:], targets[train_sequences:])

    @property
    def example_spec(self) -> tuple[tf.TensorSpec, tf.TensorSpec]:  # noqa: D102 (inherited)
        spec = tf.TensorSpec(self.input_shape, tf.float32)
        return spec, spec

    def orders(self) -> Iterator[Orders]:
        """Yields the orders of one epoch after another, without end."""
        draws = np.random.RandomState(self.batching.seed)
        counts = (self.train_examples, self.validation_examples, self.train_examples)
        while True:
            yield Orders(*(draws.permutation(count) for count in counts))

    def train(self, start_step: int = 0, worker: int = 0, workers: int = 1) -> tf.data.Dataset:  # noqa: D102 (inherited)
        check_integer("start_step", start_step, at_least=0)
        share = Share.of("batch_size", self.batching.batch_size, worker, workers)
        epochs, first = divmod(start_step, self.steps_per_epoch)

        def batches() -> Iterator[Array]:
            for number, orders in enumerate(self.orders()):
                order = orders.updates if self.batching.shuffle else np.arange(self.train_examples)
                whole = order[: self.steps_per_epoch * share.size].reshape(-1, share.size)
                if number >= epochs:
                    yield whole[:, share.begin : share.begin + share.rows]

        spec = tf.TensorSpec((self.steps_per_epoch, share.rows), tf.int64)
        chosen = tf.data.Dataset.from_generator(batches, output_signature=spec).unbatch().skip(first)
        return chosen.map(self._examples(self.train_split))

    def validation(self, worker: int = 0, workers: int = 1, fill: bool = False) -> tf.data.Dataset:  # noqa: D102 (inherited)
        share = Share.of("validation_batch_size", self.batching.validation_batch_size, worker, workers)
        numbers = share.validation_rows(self.validation_examples, fill)
        examples = self._examples(self.test_split)

        def batch(numbers: tf.Tensor) -> tuple[tf.Tensor, ...]:
            inputs, targets = examples(tf.maximum(numbers, 0))
            if not fill:
                return inputs, targets
            weights = tf.cast(numbers >= 0, tf.float32)
            return inputs * weights[:, None, None], targets * weights[:, None, None], weights

        return tf.data.Dataset.from_tensor_slices(numbers).batch(share.rows, drop_remainder=fill).map(batch)

    @staticmethod
    def _examples(split: Sequences):
        """Returns a function from the numbers of sequences to their inputs and targets."""
        inputs, targets = tf.constant(split.inputs), tf.constant(split.targets)
        return lambda numbers: (tf.gather(inputs, numbers), tf.gather(targets, numbers))


def _draw(sequences: int, steps: int, seed: int) -> tuple[Array, Array]:
    """Returns inputs and targets, `(sequences, steps, 1)` float32."""
    x = np.random.RandomState(seed).binomial(1, 0.5, (sequences, steps))
    delayed = [np.roll(x, delay, axis=1) for delay in DELAYS]
    for delay, values in zip(DELAYS, delayed, strict=True):
        values[:delay] = 0
    y = 0.5 + 0.5 * delayed[0] - 0.25 * delayed[1]
    return tuple(values[..., None].astype(np.float32) for values in (x, y))
