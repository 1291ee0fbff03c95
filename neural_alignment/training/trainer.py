"""The trainer: one model on one data set. Runs and the experiments of the papers train with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from neural_alignment import data
from neural_alignment.config import Config
from neural_alignment.training import distribution, setup
from neural_alignment.training.distribution import Distribution
from neural_alignment.training.metrics import MetricsRow
from neural_alignment.training.model import AlignedModel
from neural_alignment.training.stepping import BatchStepper, Stepper

Tensor = tf.Tensor


class Trainer:
    """Trains and evaluates one model on one data set.

    `start` chooses the first batch, `advance` makes training steps. `reset` returns to the initial state, so that
    several learning rates can share one graph.

    Args:
        model: a compiled model.
        dataset: the data set.
        devices: the devices that compute the steps. Default: this process only.

    Attributes:
        model: the model.
        dataset: the data set.
        devices: the devices.
    """

    def __init__(self, model: AlignedModel, dataset: data.Dataset, devices: Distribution | None = None):
        self.model = model
        self.dataset = dataset
        self.devices = devices or Distribution(tf.distribute.get_strategy())
        self._stepper: Stepper | BatchStepper | None = None
        self._initial: list[np.ndarray] | None = None

    @classmethod
    def from_config(cls, config: Config) -> Trainer:
        """Returns the trainer of a configuration: its data, and its model as drawn from the seed.

        Raises:
            ConfigError: if the model and the data do not fit.
            DataError: if the data cannot be read.
        """
        devices = distribution.create(config.runtime)
        devices.check(config)
        dataset = setup.load_data(config)
        return cls(setup.compiled_model(config, dataset, devices.scope()), dataset, devices)

    @property
    def step(self) -> int:
        """The number of global steps made."""
        return self.model.global_step

    def start(self, step: int = 0, train_on: Callable[[Any, Any], None] | None = None) -> None:
        """Begins training with the batch of a global step.

        Args:
            step: the number of the first batch.
            train_on: makes one step on the inputs and targets of a batch. Default: the training step of the model.
        """
        batches = self.devices.train(self.dataset, step)
        if train_on is None:
            self._stepper = Stepper(self.model, batches, self.devices.seconds_per_call)
        else:
            self._stepper = BatchStepper(self.model, batches, train_on)

    def trace_in_background(self) -> None:
        """Begins to trace the graph of a training step in another thread."""
        self._stepper.trace_in_background()

    def advance(self, limit: int) -> dict[str, float]:
        """Makes one to `limit` steps in one graph call; returns the means since the metrics were reset.

        A call makes `steps_per_execution` steps, fewer if signals must be checked.
        """
        return self._stepper(limit)

    def means(self) -> dict[str, float]:
        """Returns the means of J, R and the metrics over the steps since the metrics were reset."""
        return named(self.model.get_metrics_result())

    def train(self, steps: int, tell: Callable[[float], None] = lambda part: None) -> dict[str, float]:
        """Makes exactly `steps` steps; returns the means since the metrics were reset.

        Args:
            steps: the number of global steps.
            tell: receives the finished part of the steps, 0 to 1, after every graph call.
        """
        end, means = self.step + steps, {}
        while self.step < end:
            means = self.advance(end - self.step)
            tell(1 - (end - self.step) / steps)
        return means

    def train_epoch(self, tell: Callable[[float], None] = lambda part: None) -> dict[str, float]:
        """Trains for one epoch; returns the means over its steps.

        Args:
            tell: receives the finished part of the epoch, 0 to 1, after every graph call.
        """
        self.model.reset_metrics()
        return self.train(self.dataset.steps_per_epoch, tell)

    def evaluate(self, dataset: data.Dataset | None = None) -> MetricsRow:
        """Returns J and the metrics on the whole validation part of a data set.

        Args:
            dataset: the data set. Default: the one that is trained on.

        Raises:
            tf.errors.OpError: if a record of the data is damaged; `dataset.explain` says which.
        """
        return named(self.devices.evaluate(self.model, dataset or self.dataset))

    def inference(self, function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Any, Any], Tensor]:
        """Compiles a function of the targets and the outputs of the model in inference mode.

        Args:
            function: of targets `(batch, ...)` and outputs `(batch, ...)`.

        Returns:
            The compiled function of inputs `(batch, ...)` and targets, for batches of any size.
        """
        signature = [tf.TensorSpec((None, *spec.shape), spec.dtype) for spec in self.dataset.example_spec]

        def run(inputs: Tensor, targets: Tensor) -> Tensor:
            return function(targets, self.model(inputs, training=False))

        return tf.function(run, input_signature=signature, autograph=False)

    def keep_initial_state(self) -> None:
        """Copies the state of the model and of its optimizer, for `reset`."""
        self._initial = [keras.ops.convert_to_numpy(variable) for variable in self._variables]

    def reset(self, learning_rate: float | None = None) -> None:
        """Returns to the state of `keep_initial_state` and to the first batch.

        Args:
            learning_rate: the new learning rate of J's optimizer. Default: the initial one.
        """
        for variable, value in zip(self._variables, self._initial, strict=True):
            variable.assign(value)
        if learning_rate is not None:
            self.model.optimizer.learning_rate = learning_rate
        self.start()

    @property
    def _variables(self) -> list[Any]:
        return [*self.model.variables, *self.model.optimizer.variables]


def named(results: dict[str, float]) -> MetricsRow:
    """Returns the results of Keras under the names that they have in `metrics.csv`."""
    names = {"loss": "J", "regulariser": "R"}
    return {names.get(key, key): float(value) for key, value in results.items()}
