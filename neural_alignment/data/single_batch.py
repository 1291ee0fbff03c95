"""A data set in memory that is used as one batch at every step."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from neural_alignment.data.pipeline import Batching, Dataset


class SingleBatch(Dataset):
    """A data set with one batch of all examples, for every training step and for validation.

    Args:
        inputs: `(examples, ...)`, of any dtype.
        labels: classes `(examples,)`.
        classes: number of classes.
    """

    def __init__(self, inputs: np.ndarray, labels: np.ndarray, classes: int):
        examples = len(inputs)
        super().__init__(
            Batching(examples, seed=0, shuffle=False),
            input_shape=inputs.shape[1:],
            classes=classes,
            train_examples=examples,
            validation_examples=examples,
        )
        self._batch = inputs, labels

    def train(self, start_step: int = 0, worker: int = 0, workers: int = 1) -> tf.data.Dataset:  # noqa: D102 (inherited)
        del start_step, worker, workers
        return tf.data.Dataset.from_tensors(self._batch).repeat()

    def validation(self, worker: int = 0, workers: int = 1, fill: bool = False) -> tf.data.Dataset:  # noqa: D102 (inherited)
        del worker, workers, fill
        return tf.data.Dataset.from_tensors(self._batch)
