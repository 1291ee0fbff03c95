"""Evaluation of a model for a row of `metrics.csv`: J, accuracies, learning rates, and measures of alignment."""

from __future__ import annotations

import functools
import math

import keras
import numpy as np
import tensorflow as tf

from neural_alignment import data
from neural_alignment.alignments import schedules
from neural_alignment.config import Config
from neural_alignment.errors import Diverged
from neural_alignment.training import probes
from neural_alignment.training.distribution import Distribution
from neural_alignment.training.model import AlignedModel, aligned_layers, all_layers

Row = dict[str, float]
"""Column of `metrics.csv` -> value."""


def named(results: dict[str, float]) -> Row:
    """Returns evaluation results under the names they have in `metrics.csv`."""
    names = {"loss": "J", "regulariser": "R"}
    return {names.get(key, key): float(value) for key, value in results.items()}


def diverged(model: AlignedModel, step: int) -> Diverged:
    """Returns the error that says at which step, in which layer, and what to try.

    Args:
        model: whose J or R is not finite.
        step: the step to name where the model has not seen it in training.
    """
    step, sources = model.first_non_finite() or (step, ["J"])
    layers = [source for source in sources if source != "J"]
    if layers:
        what = f"R of layer {layers[0]}" + (f" and {len(layers) - 1} more" if layers[1:] else "")
        advice = "lower the backward learning rate, or raise the weight of decay, sparse or null against amp"
    else:
        layers = _damaged_layers(model)
        where = f" (first weights that are not finite: layer {layers[0]})" if layers else ""
        what = f"J{where}"
        advice = "lower the forward learning rate, clip the gradients, or delay J until B has aligned"
    return Diverged(f"{what} is not finite at step {step}; try this: {advice}", step, layers)


def _damaged_layers(model: AlignedModel) -> list[str]:
    """Returns the names of the layers that have a weight that is not finite."""
    return [
        layer.name
        for layer in all_layers(model)
        if not all(np.isfinite(keras.ops.convert_to_numpy(weight)).all() for weight in layer.weights)
    ]


class AlignmentProbe:
    """Measures the alignment of a model on a batch that is the same for all of a run: the first validation examples.

    Args:
        model: the model.
        devices: where it computes.
        examples: how many examples the batch has; less where there are not as many. 0 for what the kernels tell.
    """

    def __init__(self, model: AlignedModel, devices: Distribution, examples: int):
        self._model = model
        self._layers = aligned_layers(model)
        self._measure = devices.on_one_replica(functools.partial(probes.measure, model))
        self._examples = examples
        self._batch: tuple[tf.Tensor, tf.Tensor] | None = None

    def trace(self, facts: data.Facts) -> None:
        """Makes the graph before there are data, to use the time in which they are read."""
        if self._layers and self._examples:
            examples = min(self._examples, facts.validation_examples)
            images = tf.TensorSpec((examples, *facts.input_shape), tf.float32)
            self._measure.get_concrete_function(images, tf.TensorSpec((examples,), tf.int32))

    def row(self, dataset: data.Dataset) -> Row:
        """Returns `measure/layer` -> value; nothing where no layer has an alignment."""
        if not self._layers:
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


class Evaluation:
    """Measures the model for a row of `metrics.csv`.

    Args:
        config: the run's configuration.
        dataset: the run's data.
        test: data whose validation part is evaluated as well, or none.
        epoch_steps: global steps in an epoch of J.
        model: the model.
        devices: where it computes.
        alignment: measures its alignment.
    """

    def __init__(
        self,
        config: Config,
        dataset: data.Dataset,
        test: data.Dataset | None,
        epoch_steps: int,
        model: AlignedModel,
        devices: Distribution,
        alignment: AlignmentProbe,
    ):
        self._model = model
        self._devices = devices
        self._epoch_steps = epoch_steps
        self._dataset = dataset
        self._test = test
        self._tested = () if test is None else ("J", "top1", "top5")
        self._alignment = alignment
        self._learns = any(rule.learns for rule in config.rules)
        self._weights = ScheduledWeights(config, dataset.steps_per_epoch)
        self._turns = (config.optimization.alternation or 0) + 1

    def row(self, training: dict[str, float], seconds: float, is_untrained: bool = False) -> Row:
        """Returns the row of the present step.

        The row of an untrained network has its alignment only: to evaluate it on all of the validation split would keep
        the user waiting for chance level. Rates and weights are those of the next step.

        Args:
            training: the means since the last evaluation.
            seconds: since the run began.
            is_untrained: whether the network is as it was drawn.

        Raises:
            Diverged: if J is not finite on the validation split.
        """
        model = self._model
        step = model.global_step
        validation: Row = {}
        if not is_untrained:
            validation = named(self._devices.evaluate(model, self._dataset))
            if not math.isfinite(validation["J"]):
                raise diverged(model, step)
        test = named(self._devices.evaluate(model, self._test)) if self._test is not None and not is_untrained else {}
        training = named(training)
        rates = [float(keras.ops.convert_to_numpy(rate)) for rate in model.optimizer.learning_rates]
        loss_rates = self._loss_rates(step)
        return {
            "step": step,
            "epoch": step / self._epoch_steps,
            "seconds": seconds,
            "J": validation.get("J", math.nan),
            "top1": validation.get("top1", math.nan),
            "top5": validation.get("top5", math.nan),
            **{f"test_{name}": test.get(name, math.nan) for name in self._tested},
            "train_J": training.get("J", math.nan),
            "R": training.get("R", math.nan) if self._learns else math.nan,
            "train_top1": training.get("top1", math.nan),
            "train_top5": training.get("top5", math.nan),
            "learning_rate_J": rates[0],
            "learning_rate_R": rates[1] if self._learns else math.nan,
            "loss_rate_J": loss_rates[0],
            "loss_rate_R": loss_rates[1] if self._learns else math.nan,
            **self._weights.row(step),
            "corrupt_records": self._dataset.corrupt_count(step),
            **self._alignment.row(self._dataset),
        }

    def _loss_rates(self, step: int) -> tuple[float, float]:
        """Returns the rates by which J and R are multiplied at the global step `step`, the one to be made next.

        Where J and R take turns, it is the rate at the next turn of each: at the step of a row it is always R's turn.
        """
        rates = [0.0, 0.0]
        for ahead in range(self._turns):
            present = map(float, self._model.optimizer.rates(step + ahead))
            rates = [rate or new for rate, new in zip(rates, present, strict=True)]
            if all(rates):
                break
        return rates[0], rates[1]


class ScheduledWeights:
    """The values of those weights of rules that are schedules, as columns `weight/PRIMITIVE`.

    Where a run has several rules, their places in the list tell them apart, as in key paths of the configuration:
    `weight/0.amp`, `weight/1.amp`.

    Args:
        config: the run's configuration.
        steps_per_epoch: the length of an epoch of global steps.
    """

    def __init__(self, config: Config, steps_per_epoch: int):
        rules = [rule.bind(config.seed, steps_per_epoch) for rule in config.rules]
        self._rules = {f"{place}." if len(rules) > 1 else "": rule for place, rule in enumerate(rules)}

    def row(self, step: int) -> Row:
        """Returns column -> the weight at a global step."""
        return {
            f"weight/{place}{name}": float(schedules.evaluate(weight, step, rule.steps_per_epoch))
            for place, rule in self._rules.items()
            for name, weight in rule
            if isinstance(weight, schedules.Constant)
        }
