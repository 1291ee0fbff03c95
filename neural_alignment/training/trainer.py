"""The trainer, which trains one model on one data set. Runs and the experiments of the papers use it."""

from __future__ import annotations

import math
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
from neural_alignment.training.stepping import BatchStepper, Stepper, Tracing

Tensor = tf.Tensor


class Trainer:
    """Trains and evaluates one model on one data set.

    `start` chooses the first batch, `advance` makes training steps. `reset` returns to the initial state, so that
    several learning rates can share one graph.

    Args:
        model: a compiled model.
        dataset: the data set.
        devices: the devices that compute the steps. Default: those of the current TensorFlow strategy.
        tracing: traces the graph of a step; None if that has not begun.

    Attributes:
        model: the model.
        dataset: the data set.
        devices: the devices.
    """

    def __init__(
        self,
        model: AlignedModel,
        dataset: data.Dataset,
        devices: Distribution | None = None,
        tracing: Tracing | None = None,
    ):
        self.model = model
        self.dataset = dataset
        self.devices = devices or Distribution(tf.distribute.get_strategy())
        self._tracing = tracing
        self._stepper: Stepper | BatchStepper | None = None
        self._initial: list[np.ndarray] | None = None

    @classmethod
    def from_config(cls, config: Config) -> Trainer:
        """Returns a trainer for a configuration, with its data and its compiled model.

        Raises:
            ConfigError: if the options do not fit the devices, the data or the memory.
            DataError: if the data cannot be read.
        """
        devices = distribution.create(config.runtime)
        devices.check(config)
        dataset = setup.load_data(config)
        devices.check_evaluation(config, dataset)
        return cls(setup.compiled_model(config, dataset, devices.scope()), dataset, devices)

    @property
    def step(self) -> int:
        """The number of global steps made so far."""
        return self.model.global_step

    def start(self, step: int = 0, train_on: Callable[[Any, Any], None] | None = None) -> None:
        """Prepares training from the batch of a global step on.

        Args:
            step: the global step of the first batch.
            train_on: makes one step on the inputs and targets of a batch. Default: the training step of the model.
        """
        batches = self.devices.train(self.dataset, step)
        if train_on is None:
            self._stepper = Stepper(self.model, batches, self.devices.seconds_per_call, self._tracing)
        else:
            self._stepper = BatchStepper(self.model, batches, train_on)

    def trace(self, step: int) -> None:
        """Traces the graph of a training step, unless this has been done, without making a step.

        Args:
            step: the global step of the batch with which the training will start.

        Raises:
            Exception: any error of the code of the step, such as that of a user's rule.
        """
        if self._tracing is None:
            batches = iter(self.devices.train(self.dataset, step))
            self._tracing = Tracing(self.model, batches, batches.element_spec)
        self._tracing.result()

    def trace_in_background(self) -> None:
        """Begins to trace the graph of a training step in another thread."""
        self._stepper.trace_in_background()

    def advance(self, limit: int) -> dict[str, float]:
        """Makes at least one step in one graph call. Returns the means since the metrics were reset, by Keras' names.

        A call makes `steps_per_execution` steps, or fewer because of `limit` or because signals must be checked.

        Args:
            limit: maximum number of steps.
        """
        return self._stepper(limit)

    def means(self) -> dict[str, float]:
        """Returns the means of J, R and the metrics over the steps since the metrics were reset.

        R is NaN if it was not computed for every layer in any of these steps.
        """
        means = named(self.model.get_metrics_result())
        return means if self.model.regulariser_is_defined else {**means, "R": math.nan}

    def train(self, steps: int, tell: Callable[[float], None] = lambda part: None) -> dict[str, float]:
        """Makes exactly `steps` steps. Returns the means since the metrics were reset.

        Args:
            steps: the number of global steps.
            tell: called after every graph call with the finished fraction of the steps, 0 to 1.
        """
        end, means = self.step + steps, {}
        while self.step < end:
            means = self.advance(end - self.step)
            tell(1 - (end - self.step) / steps)
        return means

    def train_epoch(self, tell: Callable[[float], None] = lambda part: None) -> dict[str, float]:
        """Trains for one epoch. Returns the means over its steps.

        Args:
            tell: called after every graph call with the finished fraction of the epoch, 0 to 1.
        """
        self.model.reset_metrics()
        return self.train(self.dataset.steps_per_epoch, tell)

    def evaluate(self, dataset: data.Dataset | None = None) -> MetricsRow:
        """Returns J and the metrics on the whole validation split of a data set.

        Args:
            dataset: the data set. Default: the data set of the trainer.

        Raises:
            DataError: if a record of the data is damaged.
        """
        dataset = dataset or self.dataset
        try:
            return named(self.devices.evaluate(self.model, dataset))
        except tf.errors.OpError as error:
            # Here, because only the data set that was read can tell which record an error names.
            raise dataset.explain(error) or error from None

    def inference(self, function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Any, Any], Tensor]:
        """Compiles a function of targets and of the outputs of the model in inference mode.

        Args:
            function: a function of the targets `(batch, ...)` and the outputs `(batch, ...)`.

        Returns:
            A compiled function of the inputs `(batch, ...)` and the targets, for batches of any size. It calls
            `function` with the targets and the outputs of the model.
        """
        signature = [tf.TensorSpec((None, *spec.shape), spec.dtype) for spec in self.dataset.example_spec]

        def run(inputs: Tensor, targets: Tensor) -> Tensor:
            return function(targets, self.model(inputs, training=False))

        return tf.function(run, input_signature=signature, autograph=False)

    def keep_initial_state(self) -> None:
        """Copies the state of the model and of its optimizer, for `reset`."""
        self._initial = [keras.ops.convert_to_numpy(variable) for variable in self._variables]

    def reset(self, learning_rate: float | None = None) -> None:
        """Returns to the first batch and to the state at the call of `keep_initial_state`, which must come first.

        Args:
            learning_rate: the new learning rate of the optimizer of J. Default: the initial one.
        """
        for variable, value in zip(self._variables, self._initial, strict=True):
            variable.assign(value)
        if learning_rate is not None:
            self.model.optimizer.learning_rate = learning_rate
        self.start()

    @property
    def _variables(self) -> list[Any]:
        return [*self.model.variables, *self.model.optimizer.variables, *self.model.watched]


def named(results: dict[str, float]) -> MetricsRow:
    """Renames the results of Keras as in `metrics.csv`: `loss` to `J`, and `regulariser` to `R`."""
    names = {"loss": "J", "regulariser": "R"}
    return {names.get(key, key): float(value) for key, value in results.items()}
