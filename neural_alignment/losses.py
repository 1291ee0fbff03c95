"""Losses and metrics of classification, their options, and codes of classes over the outputs.

Rahmansetayesh et al.: sections 2.3.1 and 4.4, Supplementary Note 6. Boopathy and Fiete 2022: Appendix F.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import keras
import numpy as np
from pydantic import Field, PositiveInt

from neural_alignment.errors import ConfigError, WrongValue
from neural_alignment.options import Options
from neural_alignment.registry import Registry
from neural_alignment.serialization import serializable

CODE_STREAM = 5004
"""Makes the random numbers of the codes differ from other random numbers of the same seed."""


def n_hot_codes(classes: int, units: int, ones: int, seed: int) -> np.ndarray:
    """Draws a code for each class. No unit is a one in the codes of two classes (section 4.4).

    For one class after the other, `ones` units are chosen at random from the units without a class. With
    `units = classes * ones` the codes partition the units.

    Args:
        classes: number of classes.
        units: length of a code.
        ones: ones in a code.
        seed: the codes depend on it, and on the three sizes.

    Returns:
        `(classes, units)`, 0 and 1.

    Raises:
        ConfigError: if there are not enough units.
    """
    check_units(classes, units, ones)
    order = np.random.default_rng((CODE_STREAM, seed)).permutation(units)
    codes = np.zeros((classes, units), np.int64)
    for number, code in enumerate(codes):
        code[order[number * ones : (number + 1) * ones]] = 1
    return codes


def check_units(classes: int, units: int, ones: int) -> None:
    """Checks that codes of a length can have enough ones. Arguments as of `n_hot_codes`.

    Raises:
        ConfigError: if they cannot.
    """
    if classes * ones > units:
        requirement = f"must be {classes * ones} or more for {classes} classes with {ones} ones each"
        raise ConfigError(WrongValue("loss.units", requirement, units))


class _Coded:
    """Mix-in of Keras classes that need the codes of the classes, and save them with a model."""

    codes: np.ndarray

    def _set_codes(self, codes: Any) -> None:
        self.codes = np.asarray(codes, np.int64)
        if self.codes.ndim != 2 or not np.isin(self.codes, (0, 1)).all():
            raise ValueError(
                f"`codes` must be 0 and 1, of shape (classes, units). Received {codes!r}. Example: [[1, 0], [0, 1]]."
            )

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor."""
        return {**super().get_config(), "codes": self.codes.tolist()}


@serializable
class HalfSquaredError(_Coded, keras.losses.Loss):
    """Half the squared distance to the code of the class, summed over units and a batch (section 2.3.1).

    1/2 sum_ij (Y*_ij - Y_ij)^2 = examples * mean_i 1/2 sum_j (Y*_ij - Y_ij)^2 with `examples` the size of a training
    batch. By the second form the gradient is the sum over the batch however the batch is cut among replicas and
    accumulated parts, and J of a validation split is that of as many examples as a training batch has.

    Args:
        codes: `(classes, units)`, 0 and 1.
        examples: size of a training batch.
        label_smoothing: targets are this instead of 0, and 1 minus this instead of 1 (Supplementary Note 6: 0.05).
        reduction: as in `keras.losses.Loss`.
        name: as in `keras.losses.Loss`.
        dtype: as in `keras.losses.Loss`.

    Raises:
        ValueError: if `codes` is not a matrix of 0 and 1.
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
        self.examples = examples
        self.label_smoothing = label_smoothing

    @property
    def targets(self) -> np.ndarray:
        """The smoothed targets of the outputs for each class, `(classes, units)`."""
        return self.codes * (1.0 - 2.0 * self.label_smoothing) + self.label_smoothing

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Returns the error of each example, `(batch,)`.

        Args:
            y_true: classes `(batch,)`.
            y_pred: outputs `(batch, units)`.
        """
        targets = keras.ops.cast(self.targets, y_pred.dtype)
        targets = keras.ops.take(targets, keras.ops.cast(y_true, "int32"), axis=0)
        return 0.5 * self.examples * keras.ops.sum(keras.ops.square(targets - y_pred), axis=-1)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor."""
        return {**super().get_config(), "examples": self.examples, "label_smoothing": self.label_smoothing}


@serializable
class SquaredError(keras.losses.Loss):
    """Squared distance to the one-hot code of the class minus a shift, a mean over classes and batch.

    mean_ij (f_ij - (1[j = y_i] - shift))^2 (Boopathy and Fiete 2022, Appendix F: shift 0.1, so that the mean over ten
    classes is 0; on ImageNet 0).

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
            y_true: classes `(batch,)`.
            y_pred: outputs `(batch, classes)`.
        """
        targets = keras.ops.one_hot(keras.ops.cast(y_true, "int32"), y_pred.shape[-1], dtype=y_pred.dtype)
        return keras.ops.mean(keras.ops.square(y_pred - (targets - self.shift)), axis=-1)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor."""
        return {**super().get_config(), "shift": self.shift}


@serializable
class CodeAccuracy(_Coded, keras.metrics.SparseCategoricalAccuracy):
    """Fraction of the examples whose output has its largest inner product with the code of the class.

    Of equal products the first is taken: the prediction is class 0 if all outputs are 0.

    Args:
        codes: `(classes, units)`, 0 and 1.
        name: as in `keras.metrics.Metric`.
        dtype: as in `keras.metrics.Metric`.

    Raises:
        ValueError: if `codes` is not a matrix of 0 and 1.
    """

    def __init__(self, codes: Any, name: str = "code_accuracy", dtype: Any = None):
        super().__init__(name=name, dtype=dtype)
        self._set_codes(codes)

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        """Counts a batch.

        Args:
            y_true: classes `(batch,)`.
            y_pred: outputs `(batch, units)`.
            sample_weight: `(batch,)`, or none.
        """
        y_pred = keras.ops.cast(y_pred, self.dtype)
        products = keras.ops.matmul(y_pred, keras.ops.cast(self.codes.T, y_pred.dtype))
        return super().update_state(y_true, products, sample_weight)


@serializable
class SparseTopKAccuracy(keras.metrics.SparseTopKCategoricalAccuracy):
    """Keras' `SparseTopKCategoricalAccuracy` for logits in any precision: TensorFlow's top-k takes float32 only."""

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Counts a batch: labels `(batch,)` and logits `(batch, classes)`."""
        super().update_state(y_true, keras.ops.cast(y_pred, "float32"), sample_weight)


@serializable
class SummedSquaredError(keras.losses.Loss):
    """Squared error of sequences, summed over steps and outputs, a mean over the batch.

    Boopathy and Fiete 2022, equation 62.
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
            y_true: targets `(batch, steps, outputs)`.
            y_pred: outputs, of the same shape.
        """
        return keras.ops.sum(keras.ops.square(y_pred - y_true), axis=(1, 2))


class Criterion(NamedTuple):
    """The metric by which the networks of a task are compared.

    Attributes:
        column: its column in `metrics.csv`.
        name: its name.
        label: a short name for messages.
        larger_is_better: False if smaller values are better.
        is_fraction: whether messages show it as a percentage.
    """

    column: str
    name: str
    label: str
    larger_is_better: bool
    is_fraction: bool

    def best(self, rows: Sequence[Mapping[str, float]]) -> Mapping[str, float] | None:
        """Returns the best of some rows of `metrics.csv`, the first of equals, or none if no row has a value."""
        known = [row for row in rows if not math.isnan(row[self.column])]
        choose = max if self.larger_is_better else min
        return choose(known, key=lambda row: row[self.column], default=None)

    def text(self, value: float) -> str:
        """Returns a value for a message, such as `97.22 %` or `1.2345`."""
        return f"{100 * value:.2f} %" if self.is_fraction else f"{value:.4f}"


ACCURACY = Criterion("top1", "accuracy", "top-1", larger_is_better=True, is_fraction=True)

SMALLEST_LOSS = Criterion("J", "J", "J", larger_is_better=False, is_fraction=False)

LOSSES = Registry("kind")
"""The options of every loss by its name in a configuration."""


class LossOptions(Options):
    """Base of all losses: the options of J, and the loss and metrics that are made from them.

    A subclass declares `kind` as a `Literal` with its name and is registered in `LOSSES`.
    """

    takes_logits: ClassVar[bool] = False
    """Whether the outputs of the network must not have a nonlinearity."""

    targets: ClassVar[str] = "classes"
    """The kind of targets: those of the data and the outputs of the model must be of the same kind."""

    metrics: ClassVar[tuple[str, ...]] = ("top1", "top5")
    """Columns of `metrics.csv` besides J; a metric that `make` leaves out has empty cells."""

    criterion: ClassVar[Criterion] = ACCURACY
    """Decides which state of a run, and which run of a search, is the best."""

    def outputs(self, classes: int) -> int:
        """Returns the number of outputs that the network must have.

        Args:
            classes: number of classes.
        """
        return classes

    def code_shape(self, classes: int) -> tuple[int, int] | None:
        """Returns the shape `(classes, units)` of the codes of the classes, or none if each output is a class.

        Args:
            classes: number of classes.
        """
        del classes
        return None

    def check_classes(self, classes: int) -> None:
        """Checks that the loss can tell the classes apart.

        Args:
            classes: number of classes.

        Raises:
            ConfigError: if it cannot.
        """

    def check_run(self, config: Any) -> None:
        """Checks that the loss fits the other options of a run.

        Args:
            config: the configuration of the run.

        Raises:
            ArgumentError: if it does not.
        """

    def make(self, classes: int, batch_size: int, seed: int) -> tuple[keras.losses.Loss, list[keras.metrics.Metric]]:
        """Returns J without weight decay, and the metrics.

        Args:
            classes: number of classes.
            batch_size: examples of a training step.
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
"""The loss of a configuration that names none."""


@LOSSES.register
class HalfSquaredErrorOptions(LossOptions):
    """Half the squared distance of the outputs to the code of the class, a sum over units and batch."""

    kind: Literal["half_squared_error"]
    ones: PositiveInt = 1
    """Ones in the code of a class. Each unit is a one in the code of at most one class; the seed of the run decides in
    which."""
    units: PositiveInt | None = None
    """Outputs of the network. Default: as many as the codes have ones."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Targets are this instead of 0, and 1 minus this instead of 1."""

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
        # No top-5: saturated and silent outputs tie, and Keras' top-k counts every tie as a hit.
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
