"""What the accuracies of Boopathy and Fiete 2022 are found by: one network trained at several learning rates."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import keras
import numpy as np
import tensorflow as tf

from neural_alignment import config as configuration
from neural_alignment.config import Config
from neural_alignment.data import Dataset
from neural_alignment.papers.pieces import Arrays, Tell
from neural_alignment.training import setup
from neural_alignment.training.stepping import Stepper

Tensor = tf.Tensor


def swept(tell: Tell, config: Config, rates: Sequence[float], test_split: str | None) -> Arrays:
    """Trains a network at each of some rates, all from the same weights, and evaluates it after every epoch.

    A run of dozens of steps takes less time than the start of its process and the making of its graph, so the rates
    share them. Each is the run that `train` would make of the configuration. A rate at which J becomes infinite ends
    there, as a run does.

    Args:
        tell: told the progress.
        config: of the run; its learning rate is not read, and has no schedule.
        rates: learning rates of J's optimizer.
        test_split: of the data set, for the real test accuracy; none where there is no such split.

    Returns:
        `train_loss` (rates, epochs), the mean of J over each epoch; `validation_accuracy` (rates, epochs), percent;
        both NaN behind a divergence. `test_accuracy` (), percent, of the network of the best validation accuracy over
        rates and epochs, the first of equals; NaN without a test split, or where all rates diverge in the first epoch.
    """
    dataset = setup.load_data(config)
    validation = list(dataset.validation())
    losses, accuracies = (np.full((len(rates), config.epochs), math.nan) for _ in range(2))
    best, weights = -math.inf, None
    network = _Network(config, dataset)
    for row, rate in enumerate(rates):
        network.begin(rate)
        for epoch in range(config.epochs):
            losses[row, epoch] = network.train_epoch()
            if not math.isfinite(losses[row, epoch]):
                break
            accuracies[row, epoch] = network.accuracy(validation)
            if accuracies[row, epoch] > best:
                best, weights = accuracies[row, epoch], network.weights()
            tell((row + (epoch + 1) / config.epochs) / len(rates))
    test = math.nan
    if test_split is not None and weights is not None:
        network.restore(weights)
        test = network.accuracy(setup.load_test_data(config, test_split).validation())
    return {"train_loss": losses, "validation_accuracy": accuracies, "test_accuracy": np.array(test)}


class _Network:
    """The network of a configuration while it is trained.

    Args:
        config: of the run.
        dataset: its data.
    """

    def __init__(self, config: Config, dataset: Dataset):
        self._dataset, self._steps = dataset, dataset.steps_per_epoch
        config = configuration.override(config, [f"runtime.steps_per_execution={self._steps}"])
        self._model = setup.build_model(config, dataset.classes, dataset.input_shape, self._steps)
        setup.compile_model(self._model, config, dataset.classes, self._steps)
        self._variables = [*self._model.variables, *self._model.optimizer.variables]
        self._initial = [keras.ops.convert_to_numpy(variable) for variable in self._variables]
        images = tf.TensorSpec((None, *dataset.input_shape), tf.float32)
        signature = (images, tf.TensorSpec((None,), tf.int32))
        self._hits = tf.function(self._count, input_signature=signature, autograph=False)

    def begin(self, rate: float) -> None:
        """Goes back to the initial state, of the optimizer as well, and to the first batch, with another rate."""
        for variable, value in zip(self._variables, self._initial, strict=True):
            variable.assign(value)
        self._model.optimizer.learning_rate = rate
        self._advance = Stepper(self._model, self._dataset.train())

    def train_epoch(self) -> float:
        """Trains for one epoch; returns the mean of J, all terms of it."""
        self._model.reset_metrics()
        return self._advance(self._steps)["loss"]

    def accuracy(self, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
        """Returns how many of the examples are recognised, percent."""
        hits, examples = 0, 0
        for images, labels in batches:
            hits += int(self._hits(images, labels))
            examples += len(labels)
        return 100.0 * hits / examples

    def weights(self) -> list[np.ndarray]:
        """Returns the values of what is trained."""
        return [keras.ops.convert_to_numpy(variable) for variable in self._model.trainable_variables]

    def restore(self, weights: Sequence[np.ndarray]) -> None:
        """Puts back what `weights` returned, of this network or of its like."""
        for variable, value in zip(self._model.trainable_variables, weights, strict=True):
            variable.assign(value)

    def _count(self, images: Tensor, labels: Tensor) -> Tensor:
        chosen = tf.argmax(self._model(images, training=False), axis=-1, output_type=labels.dtype)
        return tf.math.count_nonzero(chosen == labels)
