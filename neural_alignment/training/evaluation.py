"""Evaluation for a row of `metrics.csv`: J, metrics, learning rates, and the alignment of W and B."""

from __future__ import annotations

import functools
import math
from typing import Any

import keras
import tensorflow as tf

from neural_alignment import data
from neural_alignment.alignments import schedules
from neural_alignment.config import Config
from neural_alignment.training import probes
from neural_alignment.training.distribution import Distribution
from neural_alignment.training.divergence import diverged
from neural_alignment.training.metrics import MetricsRow
from neural_alignment.training.model import AlignedModel, connections
from neural_alignment.training.trainer import Trainer


class AlignmentProbe:
    """Measures the alignment of a model on one batch, the first validation examples.

    Args:
        model: the model.
        devices: the devices that compute the measures.
        examples: maximum number of examples in the batch. With 0, only the measures of the kernels are computed.
    """

    def __init__(self, model: AlignedModel, devices: Distribution, examples: int):
        self._model = model
        self._connections = connections(model)
        self._measure = devices.on_one_replica(functools.partial(probes.measure, model))
        if model.graphs is not None:
            self._measure = model.graphs.reusable("alignment", self._measure)
        self._examples = examples
        self._batch: tuple[tf.Tensor, tf.Tensor] | None = None

    def trace(self, facts: data.Facts) -> None:
        """Traces the graph while the data are still being read."""
        if self._connections and self._examples:
            examples = min(self._examples, facts.validation_examples)
            specs = [tf.TensorSpec((examples, *spec.shape), spec.dtype) for spec in facts.example_spec]
            self._measure.get_concrete_function(*specs)

    def row(self, dataset: data.Dataset) -> MetricsRow:
        """Returns `measure/layer` -> value; an empty dictionary if no layer has an alignment."""
        if not self._connections:
            return {}
        if self._examples == 0:
            measures = probes.measure_kernels(self._model)
        else:
            if self._batch is None:
                self._batch = next(iter(dataset.validation().unbatch().batch(self._examples)))
            measures = self._measure(*self._batch)
        return {
            f"{name}/{layer}": float(value)
            for name in probes.MEASURES
            for layer, value in measures.get(name, {}).items()
        }


class Evaluator:
    """Measures the model for a row of `metrics.csv`.

    Args:
        config: the configuration of the run.
        trainer: the trainer of the run.
        test: a data set whose validation split is evaluated as well, or None.
        alignment: measures the alignment of the model.
    """

    def __init__(self, config: Config, trainer: Trainer, test: data.Dataset | None, alignment: AlignmentProbe):
        self._trainer = trainer
        self._turns = (config.optimization.alternation or 0) + 1
        self._test = test
        self._metrics = config.loss.metrics
        self._test_columns = () if test is None else ("J", *self._metrics)
        self._alignment = alignment
        self._learns = any(rule.learns for rule in config.rules)
        self._weights = ScheduledWeights(config, trainer.dataset.steps_per_epoch)

    def row(self, training: MetricsRow, seconds: float, is_untrained: bool = False) -> MetricsRow:
        """Returns the row of the current step. Learning rates and weights are those of the next step.

        An untrained network is not evaluated, because its accuracy is at chance level and the first training step would
        be delayed: its row contains only the alignment.

        Args:
            training: the means since the last evaluation.
            seconds: seconds since the run began.
            is_untrained: whether the network still has its random initial weights.

        Raises:
            Diverged: if J is not finite on the validation split.
        """
        trainer, step = self._trainer, self._trainer.step
        validation: MetricsRow = {}
        if not is_untrained:
            validation = trainer.evaluate()
            if not math.isfinite(validation["J"]):
                raise diverged(trainer.model, step)
        test = trainer.evaluate(self._test) if self._test is not None and not is_untrained else {}
        return {
            "step": step,
            "epoch": step / (trainer.dataset.steps_per_epoch * self._turns),
            "seconds": seconds,
            "J": validation.get("J", math.nan),
            **{name: validation.get(name, math.nan) for name in self._metrics},
            **{f"test_{name}": test.get(name, math.nan) for name in self._test_columns},
            "train_J": training.get("J", math.nan),
            "R": training.get("R", math.nan) if self._learns else math.nan,
            **{f"train_{name}": training.get(name, math.nan) for name in self._metrics},
            **self._rates(step),
            **self._weights.row(step),
            "corrupt_records": trainer.dataset.corrupt_count(step),
            **self._alignment.row(trainer.dataset),
        }

    def _rates(self, step: int) -> MetricsRow:
        """Returns the learning rates and the loss rates of the next step; NaN for R if no rule learns."""
        learning_rates = [float(keras.ops.convert_to_numpy(rate)) for rate in self._optimizer.learning_rates]
        loss_rates = self._loss_rates(step)
        return {
            "learning_rate_J": learning_rates[0],
            "learning_rate_R": learning_rates[1] if self._learns else math.nan,
            "loss_rate_J": loss_rates[0],
            "loss_rate_R": loss_rates[1] if self._learns else math.nan,
        }

    @property
    def _optimizer(self) -> Any:
        return self._trainer.model.optimizer

    def _loss_rates(self, step: int) -> tuple[float, float]:
        """Returns the factors of J and R at the global step `step`, which is the next step.

        If J and R alternate, the next step always trains R. Each factor is then that of the next step that trains its
        loss.
        """
        rates = [0.0, 0.0]
        for ahead in range(self._turns):
            later = map(float, self._optimizer.rates(step + ahead))
            rates = [rate or new for rate, new in zip(rates, later, strict=True)]
            if all(rates):
                break
        return rates[0], rates[1]


class ScheduledWeights:
    """The values of the rule weights that are schedules, as columns `weight/PRIMITIVE`.

    If a run has several rules, the columns contain the position of the rule in the list, as in key paths of the
    configuration: `weight/0.amp`, `weight/1.amp`.

    Args:
        config: the configuration of the run.
        steps_per_epoch: the length of an epoch in steps.
    """

    def __init__(self, config: Config, steps_per_epoch: int):
        rules = [rule.bind(config.seed, steps_per_epoch) for rule in config.rules]
        self._rules = {f"{index}." if len(rules) > 1 else "": rule for index, rule in enumerate(rules)}

    def row(self, step: int) -> MetricsRow:
        """Returns column -> weight at a global step."""
        return {
            f"weight/{prefix}{name}": float(schedules.evaluate(weight, step, rule.steps_per_epoch))
            for prefix, rule in self._rules.items()
            for name, weight in rule
            if isinstance(weight, schedules.Constant)
        }
