"""Task losses J with their metrics and options, and binary codes of classes.

Sources: Rahmansetayesh et al., sections 2.3.1 and 4.4, Supplementary Note 6 (`n_hot_codes`, `HalfSquaredError`,
`CodeAccuracy`). Boopathy and Fiete 2022, Appendix F (`SquaredError`, `SummedSquaredError`).
"""

from __future__ import annotations

import copy
import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from pydantic import Field, PositiveInt

from neural_alignment.errors import ArgumentError, ConfigError, Words, WrongValue
from neural_alignment.keras_internals import LossOfFunction
from neural_alignment.options import Options
from neural_alignment.registry import Registry
from neural_alignment.serialization import serializable

CODE_STREAM = 5004
"""Combined with the seed, so that the codes use other random numbers than other draws with the same seed."""


def n_hot_codes(classes: int, units: int, ones: int, seed: int) -> np.ndarray:
    """Draws a binary code for each class. No two classes have a one at the same unit (section 4.4).

    For one class after the other, `ones` units are chosen at random from the units that are not yet used. With
    `units = classes * ones` the codes partition the units.

    Args:
        classes: number of classes.
        units: length of a code.
        ones: number of ones in a code.
        seed: seed of the random choice.

    Returns:
        An array of 0 and 1, `(classes, units)`.

    Raises:
        ConfigError: if there are fewer units than `classes * ones`.
    """
    check_units(classes, units, ones)
    order = np.random.default_rng((CODE_STREAM, seed)).permutation(units)
    codes = np.zeros((classes, units), np.int64)
    for number, code in enumerate(codes):
        code[order[number * ones : (number + 1) * ones]] = 1
    return codes


def check_units(classes: int, units: int, ones: int) -> None:
    """Checks that there are enough units for the codes of all classes.

    Args:
        classes: number of classes.
        units: length of a code.
        ones: number of ones in a code.

    Raises:
        ConfigError: if there are fewer units than `classes * ones`.
    """
    if classes * ones > units:
        requirement = f"must be {classes * ones} or more for {classes} classes with {ones} ones each"
        raise ConfigError(WrongValue("loss.units", requirement, units))


def _labels(y_true: Any, y_pred: Any, classes: int) -> Any:
    """Returns classes as integers `(batch,)`, also if they are given as `(batch, 1)`, as in Keras' sparse losses.

    Raises:
        ValueError: if there is not one class for each example.
        tf.errors.InvalidArgumentError: if a class is not one of 0 to `classes` - 1, except in programs of XLA.
    """
    labels = keras.ops.cast(y_true, "int32")
    if len(labels.shape) == len(y_pred.shape) and labels.shape[-1] == 1:
        labels = keras.ops.squeeze(labels, -1)
    _check_shape("one class for each example", labels.shape, y_pred.shape[:-1])
    message = f"`targets` must be classes from 0 to {classes - 1}, because there are {classes} classes."
    checks = [
        tf.debugging.assert_non_negative(labels, message),
        tf.debugging.assert_less(labels, classes, message),
    ]
    with tf.control_dependencies([check for check in checks if check is not None]):
        return tf.identity(labels)


def _check_shape(requirement: str, found: Sequence[int | None], expected: Sequence[int | None]) -> None:
    """Checks the shape of targets, as far as it is known. Targets of other shapes would be broadcast.

    Raises:
        ValueError: if it is not `expected`.
    """
    found, expected = tuple(found), tuple(expected)
    sizes = zip(found, expected, strict=False)
    if len(found) != len(expected) or any(None not in pair and len({*pair}) > 1 for pair in sizes):
        raise ArgumentError("targets", f"must be {requirement}", Words(f"the shape {found}"), f"{expected}")


def _check_units(units: int, y_pred: Any) -> None:
    """Checks that a network has one output for each unit of the codes. A single output would be broadcast.

    Raises:
        ValueError: if it has not.
    """
    if y_pred.shape[-1] not in (None, units):
        requirement = f"must have {units} units, as many as the codes of the classes"
        raise ArgumentError("outputs", requirement, y_pred.shape[-1], f"a last layer with {units} units")


class _Coded:
    """Mixin for Keras losses and metrics that use the codes of the classes and save them with a model."""

    codes: np.ndarray

    def _set_codes(self, codes: Any) -> None:
        self.codes = np.asarray(codes, np.int64)
        if self.codes.ndim != 2 or not np.isin(self.codes, (0, 1)).all():
            raise ArgumentError("codes", "must be 0 and 1, of shape (classes, units)", codes, "[[1, 0], [0, 1]]")

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor."""
        return {**super().get_config(), "codes": self.codes.tolist()}


@serializable
class HalfSquaredError(_Coded, keras.losses.Loss):
    """Half the squared distance to the code of the class, summed over units and a batch (section 2.3.1).

    For targets Y* and outputs Y, example i and unit j, the loss is 1/2 sum_ij (Y*_ij - Y_ij)^2. It is computed in the
    form examples * mean_i 1/2 sum_j (Y*_ij - Y_ij)^2, where `examples` is the size of a training batch. In this form
    the gradient is the same if the batch is divided among replicas or into minibatches and its examples have no sample
    weights, and J of a data set of another size is comparable with J of a training batch.

    Args:
        codes: 0 and 1, `(classes, units)`.
        examples: size of a training batch.
        label_smoothing: a number s. Targets are s in place of 0, and 1 - s in place of 1 (Supplementary Note 6: 0.05).
        reduction: as in `keras.losses.Loss`.
        name: as in `keras.losses.Loss`.
        dtype: as in `keras.losses.Loss`.

    Raises:
        ValueError: if `codes` is not a matrix of 0 and 1, `examples` is not a positive integer, or `label_smoothing` is
            not at least 0 and below 0.5.
    """

    def __init__(
        self,
        codes: Any,
        examples: int = 1,
        label_smoothing: float = 0.0,
        reduction: str = "mean_with_sample_weight",
        name: str = "half_squared_error",
        dtype: Any = None,
    ):
        super().__init__(reduction=reduction, name=name, dtype=dtype)
        self._set_codes(codes)
        if isinstance(examples, bool) or not isinstance(examples, numbers.Integral) or examples < 1:
            raise ArgumentError("examples", "must be a positive integer", examples, "examples=100")
        if not isinstance(label_smoothing, numbers.Real) or not 0 <= label_smoothing < 0.5:
            requirement = "must be a number of at least 0 and below 0.5, where the codes of all classes would be equal"
            raise ArgumentError("label_smoothing", requirement, label_smoothing, "label_smoothing=0.05")
        self.examples = int(examples)
        self.label_smoothing = float(label_smoothing)

    @property
    def targets(self) -> np.ndarray:
        """The smoothed targets of the outputs for each class, `(classes, units)`."""
        return self.codes * (1.0 - 2.0 * self.label_smoothing) + self.label_smoothing

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Returns the error of each example, `(batch,)`.

        Args:
            y_true: classes `(batch,)` or `(batch, 1)`.
            y_pred: outputs `(batch, units)`.

        Raises:
            ValueError: if there is not one class for each example, or not one output for each unit of the codes.
        """
        classes, units = self.codes.shape
        _check_units(units, y_pred)
        targets = keras.ops.cast(self.targets, y_pred.dtype)
        targets = keras.ops.take(targets, _labels(y_true, y_pred, classes), axis=0)
        return 0.5 * self.examples * keras.ops.sum(keras.ops.square(targets - y_pred), axis=-1)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor."""
        return {**super().get_config(), "examples": self.examples, "label_smoothing": self.label_smoothing}


@serializable
class SquaredError(keras.losses.Loss):
    """Squared distance to the one-hot code of the class minus a shift, a mean over classes and batch.

    mean_ij (f_ij - (1[j = y_i] - shift))^2, where f_ij is output j for example i and y_i is the class (Boopathy and
    Fiete 2022, Appendix F). The paper uses the shift 0.1, so that the mean target of ten classes is 0, and on ImageNet
    the shift 0.

    Args:
        shift: subtracted from all targets.
        reduction: as in `keras.losses.Loss`.
        name: as in `keras.losses.Loss`.
        dtype: as in `keras.losses.Loss`.
    """

    def __init__(
        self,
        shift: float = 0.0,
        reduction: str = "mean_with_sample_weight",
        name: str = "squared_error",
        dtype: Any = None,
    ):
        super().__init__(reduction=reduction, name=name, dtype=dtype)
        self.shift = shift

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Returns the error of each example, `(batch,)`.

        Args:
            y_true: classes `(batch,)` or `(batch, 1)`.
            y_pred: outputs `(batch, classes)`.

        Raises:
            ValueError: if there is not one class for each example.
        """
        classes = y_pred.shape[-1]
        targets = keras.ops.one_hot(_labels(y_true, y_pred, classes), classes, dtype=y_pred.dtype)
        return keras.ops.mean(keras.ops.square(y_pred - (targets - self.shift)), axis=-1)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor."""
        return {**super().get_config(), "shift": self.shift}


@serializable
class CodeAccuracy(_Coded, keras.metrics.SparseCategoricalAccuracy):
    """Fraction of the examples for which the code of the correct class has the largest inner product with the outputs.

    If several products are equal, the first class is predicted. If all outputs are 0, this is class 0.

    Args:
        codes: 0 and 1, `(classes, units)`.
        name: as in `keras.metrics.Metric`.
        dtype: as in `keras.metrics.Metric`.

    Raises:
        ValueError: if `codes` is not a matrix of 0 and 1.
    """

    def __init__(self, codes: Any, name: str = "code_accuracy", dtype: Any = None):
        super().__init__(name=name, dtype=dtype)
        self._set_codes(codes)

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        """Adds a batch to the metric.

        Args:
            y_true: classes `(batch,)` or `(batch, 1)`.
            y_pred: outputs `(batch, units)`.
            sample_weight: `(batch,)`, or None.

        Raises:
            ValueError: if there is not one output for each unit of the codes.
        """
        y_pred = keras.ops.cast(y_pred, self.dtype)
        _check_units(self.codes.shape[1], y_pred)
        products = keras.ops.matmul(y_pred, keras.ops.cast(self.codes.T, y_pred.dtype))
        return super().update_state(y_true, products, sample_weight)


@serializable
class SparseTopKAccuracy(keras.metrics.SparseTopKCategoricalAccuracy):
    """Keras' `SparseTopKCategoricalAccuracy` for logits of any precision. TensorFlow's top-k supports only float32."""

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Adds a batch to the metric: classes `(batch,)` or `(batch, 1)`, and logits `(batch, classes)`."""
        super().update_state(y_true, keras.ops.cast(y_pred, "float32"), sample_weight)


@serializable
class SummedSquaredError(keras.losses.Loss):
    """Squared error of sequences, summed over steps and outputs, a mean over the batch.

    Source: Boopathy and Fiete 2022, equation 62.

    Args:
        reduction: as in `keras.losses.Loss`.
        name: as in `keras.losses.Loss`.
        dtype: as in `keras.losses.Loss`.
    """

    def __init__(
        self,
        reduction: str = "mean_with_sample_weight",
        name: str = "summed_squared_error",
        dtype: Any = None,
    ):
        super().__init__(reduction=reduction, name=name, dtype=dtype)

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Returns the error of each sequence, `(batch,)`.

        Args:
            y_true: targets `(batch, steps, outputs)`. The last axis may be left out if there is one output.
            y_pred: outputs `(batch, steps, outputs)`.

        Raises:
            ValueError: if the shapes differ.
        """
        y_true, y_pred = map(keras.ops.convert_to_tensor, (y_true, y_pred))
        if y_pred.shape[-1] == 1 and len(y_true.shape) == len(y_pred.shape) - 1:
            y_true = keras.ops.expand_dims(y_true, -1)
        _check_shape("one sequence for each example, in the shape of the outputs", y_true.shape, y_pred.shape)
        return keras.ops.sum(keras.ops.square(y_pred - y_true), axis=(1, 2))


@serializable
class FunctionLoss(LossOfFunction):
    """A task loss that is given as a function of targets and outputs, in the form in which Keras calls functions.

    Args:
        fn: a function of targets and outputs that returns the loss of each example, `(batch,)`.
        reduction: as in `keras.losses.Loss`.
        name: as in `keras.losses.Loss`.
        dtype: as in `keras.losses.Loss`.
        **kwargs: further arguments of the function.
    """

    def __init__(
        self, fn: Any, reduction: str = "mean_with_sample_weight", name: str | None = None, dtype: Any = None, **kwargs
    ):
        super().__init__(fn, reduction=reduction, name=name, dtype=dtype, **kwargs)


def mean_over_examples(loss: Any) -> Any:
    """Returns a task loss whose mean leaves out examples of weight 0, such as those that fill up a validation batch.

    With Keras' default, the mean of a batch counts these examples. Without weights, as in training, both are equal.

    Args:
        loss: a loss with any reduction, or a function.
    """
    if not isinstance(loss, keras.losses.Loss):
        return FunctionLoss(loss, name=getattr(loss, "__name__", None)) if callable(loss) else loss
    if loss.reduction in ("sum_over_batch_size", "mean"):
        loss = copy.copy(loss)
        loss.reduction = "mean_with_sample_weight"
    return loss


class Criterion(NamedTuple):
    """The metric by which the networks of a task are compared.

    Attributes:
        column: column of the metric in `metrics.csv`.
        name: name of the metric.
        label: a short name for messages.
        larger_is_better: whether larger values are better.
        is_fraction: whether messages show the value as a percentage.
    """

    column: str
    name: str
    label: str
    larger_is_better: bool
    is_fraction: bool

    def best(self, rows: Sequence[Mapping[str, float]]) -> Mapping[str, float] | None:
        """Returns the best of the given rows of `metrics.csv`, the first if several are equal; None if all are NaN."""
        known = [row for row in rows if not math.isnan(row[self.column])]
        choose = max if self.larger_is_better else min
        return choose(known, key=lambda row: row[self.column], default=None)

    def text(self, value: float) -> str:
        """Returns a value as text for a message, such as `97.22 %` or `1.2345`."""
        return f"{100 * value:.2f} %" if self.is_fraction else f"{value:.4f}"


ACCURACY = Criterion("top1", "accuracy", "top-1", larger_is_better=True, is_fraction=True)

SMALLEST_LOSS = Criterion("J", "J", "J", larger_is_better=False, is_fraction=False)

LOSSES = Registry("kind")
"""The options class of each loss, by the name of the loss in a configuration."""


class LossOptions(Options):
    """Base of the options classes of all task losses J, from which the loss and its metrics are made.

    A subclass declares `kind` as a `Literal` with the name of the loss and is registered in `LOSSES`.
    """

    takes_logits: ClassVar[bool] = False
    """Whether the loss expects logits, so that the last layer of the network must be linear."""

    targets: ClassVar[str] = "classes"
    """The kind of targets, such as "classes" or "sequences". It must equal that of the data and of the model."""

    metrics: ClassVar[tuple[str, ...]] = ("top1", "top5")
    """Columns of `metrics.csv` for metrics other than J. The cells of a metric that `make` omits are empty."""

    criterion: ClassVar[Criterion] = ACCURACY
    """Determines the best state of a run and the best run of a search. Its column is J or one of `metrics`."""

    def outputs(self, classes: int) -> int:
        """Returns the number of outputs that the network must have.

        Args:
            classes: number of classes.
        """
        return classes

    def code_shape(self, classes: int) -> tuple[int, int] | None:
        """Returns the shape `(classes, units)` of the codes of the classes, or None if each output is a class.

        Args:
            classes: number of classes.
        """
        del classes
        return None

    def check_classes(self, classes: int) -> None:
        """Checks that the network has enough outputs for the number of classes.

        Args:
            classes: number of classes.

        Raises:
            ConfigError: if it has not.
        """

    def check_run(self, config: Any) -> None:
        """Checks that the loss fits the other options of a run.

        Args:
            config: the configuration of the run.

        Raises:
            ArgumentError: if it does not.
        """

    def make(self, classes: int, batch_size: int, seed: int) -> tuple[keras.losses.Loss, list[keras.metrics.Metric]]:
        """Returns J without weight decay, and the metrics, among them that of `criterion`.

        Args:
            classes: number of classes.
            batch_size: number of examples in a training step.
            seed: seed of the run.
        """
        raise NotImplementedError


def _accuracies(classes: int) -> list[keras.metrics.Metric]:
    """Returns the metrics of a network with one output for each class."""
    top1 = keras.metrics.SparseCategoricalAccuracy(name="top1")
    return [top1, SparseTopKAccuracy(k=5, name="top5")] if classes > 5 else [top1]


@LOSSES.register
class CrossEntropyOptions(LossOptions):
    """Softmax cross entropy of logits, a mean over the batch."""

    takes_logits: ClassVar[bool] = True

    kind: Literal["cross_entropy"]

    def make(self, classes, batch_size, seed):
        """Returns the loss and its metrics. See `LossOptions.make`."""
        del batch_size, seed
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="mean_with_sample_weight")
        return loss, _accuracies(classes)


DEFAULT_LOSS = CrossEntropyOptions(kind="cross_entropy")
"""The loss of a configuration without the key `loss`."""


@LOSSES.register
class HalfSquaredErrorOptions(LossOptions):
    """Half the squared distance of the outputs to the code of the class, a sum over units and batch."""

    kind: Literal["half_squared_error"]
    ones: PositiveInt = 1
    """Number of ones in the code of a class. No two classes have a one at the same unit. The seed of the run determines
    the codes."""
    units: PositiveInt | None = None
    """Number of outputs of the network. Default: number of classes times `ones`."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """A number s. Targets are s in place of 0, and 1 - s in place of 1."""

    def outputs(self, classes):
        """Returns the length of a code. See `LossOptions.outputs`."""
        return self.units or classes * self.ones

    def code_shape(self, classes):
        """Returns `(classes, units)`. See `LossOptions.code_shape`."""
        return classes, self.outputs(classes)

    def check_classes(self, classes):
        """Checks that there are enough units. See `LossOptions.check_classes`."""
        check_units(classes, self.outputs(classes), self.ones)

    def make(self, classes, batch_size, seed):
        """Returns the loss and its metric. See `LossOptions.make`."""
        codes = n_hot_codes(classes, self.outputs(classes), self.ones, seed)
        # No top-5 accuracy: many outputs are equal (saturated or 0), and Keras' top-k counts all ties as correct.
        return HalfSquaredError(codes, batch_size, self.label_smoothing), [CodeAccuracy(codes, "top1")]


@LOSSES.register
class SquaredErrorOptions(LossOptions):
    """Squared distance of the outputs to the one-hot code of the class minus a shift, a mean over classes and batch."""

    kind: Literal["squared_error"]
    shift: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Subtracted from all targets; 1 / classes makes their mean 0."""

    def make(self, classes, batch_size, seed):
        """Returns the loss and its metrics. See `LossOptions.make`."""
        del batch_size, seed
        return SquaredError(self.shift), _accuracies(classes)


@LOSSES.register
class SummedSquaredErrorOptions(LossOptions):
    """Squared error of sequences, summed over steps and outputs, a mean over the batch."""

    targets: ClassVar[str] = "sequences"
    metrics: ClassVar[tuple[str, ...]] = ()
    criterion: ClassVar[Criterion] = SMALLEST_LOSS

    kind: Literal["summed_squared_error"]

    def make(self, classes, batch_size, seed):
        """Returns the loss, and no metrics. See `LossOptions.make`."""
        del classes, batch_size, seed
        return SummedSquaredError(), []
