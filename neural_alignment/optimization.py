"""Options of optimizers and learning-rate schedules, and how they are made from them.

The optimizers of this project and the most common ones of Keras have an options class here. Every other public
optimizer of the installed Keras gets one from its signature (see `_from_signature`), under its name in lower case.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple, Union

import keras
import pydantic
from pydantic import Discriminator, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Tag

import optimizers
from neural_alignment.options import Options

BASE_BATCH_SIZE = 256
"""Batch size for which a learning rate is meant with `scale_with_batch`, unless `base_batch_size` says otherwise."""

Fraction = Annotated[float, Field(ge=0, lt=1)]


class Clock(NamedTuple):
    """When J's epochs pass.

    Attributes:
        steps_per_epoch: global steps in an epoch, without alternation.
        epochs: of J in the run, after the delay.
        delay_epochs: epochs before J begins.
        alternation: steps of J to each step of R; none for both at every step.
    """

    steps_per_epoch: int
    epochs: float
    delay_epochs: float = 0.0
    alternation: int | None = None

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments that schedules have in common."""
        return {
            "steps_per_epoch": self.steps_per_epoch,
            "delay_epochs": self.delay_epochs,
            "alternation": self.alternation,
        }


# Learning-rate schedules.


class _Schedule(Options):
    """Base of all schedules. Epochs are those of J: alternation stretches them, and they begin after the delay."""

    warmup_epochs: NonNegativeFloat = 0.0
    """The rate rises linearly from 0 for so many epochs."""

    def make(self, rate: float, clock: Clock) -> keras.optimizers.schedules.LearningRateSchedule:
        """Returns the schedule of a rate in a run."""
        schedule = self._after_warmup(rate, clock)
        return optimizers.WarmupAndSchedule(schedule, warmup_epochs=self.warmup_epochs, **clock.arguments)

    def _after_warmup(self, rate: float, clock: Clock) -> Any:
        raise NotImplementedError

    def check(self, epochs: float) -> None:
        """Checks that the schedule fits a run.

        Args:
            epochs: of J in the run, after the delay.

        Raises:
            ValueError: if it does not; the message begins with the key.
        """


class Drops(_Schedule):
    """Linear warm-up and drops, in epochs of J."""

    # Left out where it is the default, so that a run of an earlier version is known by its configuration.
    kind: Annotated[Literal["drops"], Field(exclude_if=lambda kind: kind == "drops")] = "drops"
    drop_epochs: list[NonNegativeFloat] = Field(default_factory=list)
    drop_factor: PositiveFloat = 0.1

    @pydantic.model_validator(mode="after")
    def _ordered(self):
        drops = self.drop_epochs
        if drops != sorted(drops) or any(epoch < self.warmup_epochs for epoch in drops):
            raise ValueError(
                f"`drop_epochs` must be ascending and not before the end of the warm-up ({self.warmup_epochs}); "
                f"found {drops}"
            )
        return self

    def make(self, rate, clock):
        """Returns the schedule of a rate in a run."""
        return optimizers.WarmupAndDrops(
            rate,
            warmup_epochs=self.warmup_epochs,
            drop_epochs=self.drop_epochs,
            drop_factor=self.drop_factor,
            **clock.arguments,
        )


class Constant(_Schedule):
    """Linear warm-up, then a constant rate."""

    kind: Literal["constant"]

    def _after_warmup(self, rate, clock):
        return rate


class _Falling(_Schedule):
    """Base of the schedules that end at a floor."""

    floor: Annotated[float, Field(ge=0, le=1)] = 0.0
    """The last rate, as a fraction of the rate after the warm-up."""
    end_epoch: Annotated[float, Field(ge=1e-6)] | None = None
    """Epoch at which the floor is reached, counted from the start of J, warm-up included; the last one of the run where
    none."""

    @pydantic.model_validator(mode="after")
    def _ends_after_warmup(self):
        if self.end_epoch is not None and self.end_epoch <= self.warmup_epochs:
            raise ValueError(
                f"`end_epoch` must be after the end of the warm-up ({self.warmup_epochs}); found {self.end_epoch}"
            )
        return self

    def check(self, epochs):
        """Checks that the warm-up ends before the run does."""
        if self.end_epoch is None and self.warmup_epochs >= epochs:
            raise ValueError(
                f"warmup_epochs must be less than the epochs of J ({epochs:g}), where the rate reaches its floor; "
                f"found {self.warmup_epochs}"
            )

    def _steps(self, clock: Clock) -> float:
        end = clock.epochs if self.end_epoch is None else self.end_epoch
        return (end - self.warmup_epochs) * clock.steps_per_epoch


class Cosine(_Falling):
    """Linear warm-up, then half a cosine down to the floor."""

    kind: Literal["cosine"]

    def _after_warmup(self, rate, clock):
        return keras.optimizers.schedules.CosineDecay(rate, self._steps(clock), alpha=self.floor)


class Polynomial(_Falling):
    """Linear warm-up, then floor + (1 - floor) (1 - time)^power of the rate, the time from 0 to 1."""

    kind: Literal["polynomial"]
    power: PositiveFloat = 1.0
    """1 for a straight line."""

    def _after_warmup(self, rate, clock):
        return keras.optimizers.schedules.PolynomialDecay(rate, self._steps(clock), rate * self.floor, self.power)


class Exponential(_Schedule):
    """Linear warm-up, then a factor for every so many epochs."""

    kind: Literal["exponential"]
    factor: Annotated[float, Field(gt=0, le=1)]
    """The rate is multiplied by it over `every_epochs`."""
    every_epochs: Annotated[float, Field(ge=1e-6)] = 1.0
    staircase: bool = False
    """Multiply at once, at the end of every so many epochs, rather than little by little."""

    def _after_warmup(self, rate, clock):
        steps = self.every_epochs * clock.steps_per_epoch
        return keras.optimizers.schedules.ExponentialDecay(rate, steps, self.factor, self.staircase)


class Manual(_Schedule):
    """Drops by hand, one at each restart, as in the published code: at drop 0 there is the warm-up only."""

    kind: Literal["manual"]
    drop: Annotated[int, Field(ge=0, le=20)] = 0
    """k, the number of the present drop; the rate is drop_factor^(k - 1) of the base before it and drop_factor^k after
    it, without a warm-up."""
    drop_step: NonNegativeInt | None = None
    """Global step of the drop."""
    drop_factor: Annotated[float, Field(gt=0, le=1)] = 0.1

    @pydantic.model_validator(mode="after")
    def _drop_has_a_step(self):
        if self.drop and self.drop_step is None:
            raise ValueError(f"`drop_step`, the global step of the drop, is required with drop {self.drop}")
        if not self.drop and self.drop_step is not None:
            raise ValueError(f"`drop_step` has no effect with drop 0; found {self.drop_step}")
        if not self.drop and self.drop_factor != 0.1:
            raise ValueError(f"`drop_factor` has no effect with drop 0; found {self.drop_factor}")
        if self.drop and self.warmup_epochs:
            raise ValueError(f"`warmup_epochs` has no effect with drop {self.drop}; found {self.warmup_epochs}")
        return self

    def make(self, rate, clock):
        """Returns the schedule of a rate in a run."""
        return optimizers.ManualDrop(rate, **self.model_dump(exclude={"kind"}), **clock.arguments)


def _with_kind(schedule: Any) -> Any:
    """Makes a mapping without `kind` one of the kind `drops`."""
    if isinstance(schedule, Mapping) and "kind" not in schedule:
        return {"kind": "drops", **schedule}
    return schedule


AnySchedule = Annotated[
    Annotated[Drops | Constant | Cosine | Polynomial | Exponential | Manual, Field(discriminator="kind")],
    pydantic.BeforeValidator(_with_kind),
]


# Factors on the losses.


def _is_representable(factor: float) -> float:
    """Checks that a factor is 0 or keeps its value in float32."""
    if factor and not 1e-30 <= factor <= 1e30:
        raise ValueError(f"must be 0, or between 1e-30 and 1e+30; found {factor:g}")
    return factor


Factor = Annotated[float, Field(ge=0), pydantic.AfterValidator(_is_representable)]


class ScheduledLossRate(Options):
    """A factor on a loss that changes over training.

    Its epochs are global steps / steps per epoch: those of the learning rates are stretched by alternation and begin
    after the delay, these do not.
    """

    value: Annotated[Factor, Field(gt=0)] = 1.0
    """The factor before the schedule is applied."""
    schedule: AnySchedule


LossRate = Annotated[
    Annotated[Factor, Tag("number")] | Annotated[ScheduledLossRate, Tag("schedule")],
    Discriminator(lambda value: "schedule" if isinstance(value, (Mapping, ScheduledLossRate)) else "number"),
]


class LossRates(Options):
    """Factors on J and R, applied to their gradients before the optimizer sees them."""

    forward: LossRate = 1.0
    """Of J; 0 trains the backward kernels only."""
    backward: LossRate = 1.0
    """Of R."""

    @pydantic.model_validator(mode="after")
    def _one_is_trained(self):
        if self.forward == 0 and self.backward == 0:
            raise ValueError("`forward` and `backward` must not both be 0: nothing would be trained")
        return self

    def make(self, clock: Clock) -> tuple[Any, Any]:
        """Returns what `RateScheduler` takes.

        Args:
            clock: of the run; its delay and alternation do not count here.
        """
        alternation = (clock.alternation or 0) + 1
        epochs = clock.epochs * alternation + clock.delay_epochs  # Of global steps.
        plain = Clock(clock.steps_per_epoch, epochs)
        j_rate, r_rate = (
            rate.schedule.make(rate.value, plain) if isinstance(rate, ScheduledLossRate) else rate
            for rate in (self.forward, self.backward)
        )
        return j_rate, r_rate


# Optimizers.


class UpdateNoise(Options):
    """Noise on the updates, scaled by the current learning rate."""

    variance: NonNegativeFloat
    distribution: Literal["normal", "uniform", "sign"] = "normal"
    only: str | None = None
    """Part of the path of the variables that get it, such as backward_kernel."""


class OptimizerOptions(Options):
    """Base of all optimizer options.

    Keras' other arguments for every optimizer are left out on purpose: `optimization.minibatches` accumulates
    gradients, with the turns of J and R in mind; runs evaluate the weights that are trained, not their moving averages
    (`use_ema`); no precision of a run needs the loss to be scaled; and there is one way to clip by norm.
    """

    learning_rate: NonNegativeFloat
    # The keys that say `exclude_if` are left out at their defaults: an earlier version did not have them.
    scale_with_batch: Annotated[bool, Field(exclude_if=lambda scales: not scales)] = False
    """Multiply the learning rate by batch_size / base_batch_size."""
    base_batch_size: Annotated[PositiveInt | None, Field(exclude_if=lambda size: size is None)] = None
    """Batch size for which the learning rate is meant; 256 where none. Only with `scale_with_batch`."""
    schedule: AnySchedule | None = None
    """Constant rate where none."""
    weight_decay: Annotated[NonNegativeFloat | None, Field(exclude_if=lambda decay: decay is None)] = None
    """Subtract rate * weight_decay * w from every variable w that this optimizer moves, beside its update (decoupled
    decay, as in AdamW). The `weight_decay` of a run is another one, a part of J."""
    clip_global_norm: PositiveFloat | None = None
    clip_value: PositiveFloat | None = None
    noise: UpdateNoise | None = None

    @pydantic.model_validator(mode="after")
    def _one_clip(self):
        if self.clip_global_norm is not None and self.clip_value is not None:
            raise ValueError("only one of `clip_global_norm` and `clip_value` may be set; found both")
        return self

    @pydantic.model_validator(mode="after")
    def _base_has_an_effect(self):
        if self.base_batch_size is not None and not self.scale_with_batch:
            raise ValueError(f"`base_batch_size` has no effect without scale_with_batch; found {self.base_batch_size}")
        return self

    def rate(self, batch_size: int) -> float:
        """Returns the learning rate for a batch size, before the schedule."""
        if not self.scale_with_batch:
            return self.learning_rate
        return self.learning_rate * batch_size / (self.base_batch_size or BASE_BATCH_SIZE)

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of the optimizer's class that only this kind of optimizer has."""
        return self.model_dump(exclude={*OptimizerOptions.model_fields, "name"})

    def make(self, batch_size: int, clock: Clock, seed: int) -> keras.optimizers.Optimizer:
        """Returns the optimizer of a run."""
        rate = self.rate(batch_size)
        optimizer = OPTIMIZERS[self.name](
            rate if self.schedule is None else self.schedule.make(rate, clock),
            **self.arguments,
            weight_decay=self.weight_decay,
            global_clipnorm=self.clip_global_norm,
            clipvalue=self.clip_value,
        )
        return optimizer if self.noise is None else optimizers.Noisy(optimizer, seed=seed, **dict(self.noise))

    def summary(self, batch_size: int) -> str:
        """Returns the optimizer, its learning rate and all its options in one line."""
        rate = f"{self.rate(batch_size):g}"
        if self.scale_with_batch:
            base = self.base_batch_size or BASE_BATCH_SIZE
            rate += f" ({self.learning_rate:g} for batch {base}, scaled to {batch_size})"
        said = {"learning_rate", "scale_with_batch", "base_batch_size", "name"}
        return ", ".join([f"{self.name}, learning_rate {rate}", *_listed(self, said)])


def _listed(options: Options, leave: set[str] = frozenset()) -> list[str]:
    """Returns `key value` for the options that are set or have a default other than null."""
    return [
        f"{key} {described(value)}" for key, value in options if key not in leave and value is not None and value != []
    ]


def described(value: Any) -> str:
    """Returns the value of an option in words."""
    if isinstance(value, Options):
        kind = getattr(value, "kind", "")
        return f"{kind}{' ' if kind else ''}({', '.join(_listed(value, {'kind'}))})"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


class SGD(OptimizerOptions):
    """Gradient descent as Keras has it: with momentum, rate times gradient is accumulated."""

    name: Literal["sgd"]
    momentum: Fraction = 0.0
    nesterov: bool = False


class MomentumOptimizer(OptimizerOptions):
    """Momentum as TensorFlow 1 has it: the current rate times the accumulated gradient."""

    name: Literal["momentum"]
    momentum: Fraction = 0.9
    nesterov: bool = True


class Adam(OptimizerOptions):
    """Adam, with the epsilon of TensorFlow 1."""

    name: Literal["adam"]
    beta_1: Fraction = 0.9
    beta_2: Fraction = 0.999
    epsilon: PositiveFloat = 1e-8


class RMSprop(OptimizerOptions):
    """RMSprop."""

    name: Literal["rmsprop"]
    rho: Fraction = 0.9
    momentum: Fraction = 0.0
    epsilon: PositiveFloat = 1e-7
    centered: bool = False


class Adagrad(OptimizerOptions):
    """Adagrad."""

    name: Literal["adagrad"]
    initial_accumulator_value: NonNegativeFloat = 0.1
    epsilon: PositiveFloat = 1e-7


class RAdam(OptimizerOptions):
    """Rectified Adam, with the epsilon of the published code."""

    name: Literal["radam"]
    beta_1: Fraction = 0.9
    beta_2: Fraction = 0.999
    epsilon: PositiveFloat = 1e-9


class SWATS(OptimizerOptions):
    """Adam that changes to gradient descent, variable by variable; then learning rate and schedule have no effect."""

    name: Literal["swats"]
    beta_1: Fraction = 0.9
    beta_2: Fraction = 0.999
    epsilon: PositiveFloat = 1e-9
    """Of Adam's step, and the tolerance at which a variable changes."""
    rectified: bool = False
    """Whether the steps of Adam are rectified as in radam; swrats in the published code."""


_TYPED = {
    "sgd": (SGD, keras.optimizers.SGD),
    "momentum": (MomentumOptimizer, optimizers.Momentum),
    "adam": (Adam, optimizers.Adam),
    "rmsprop": (RMSprop, keras.optimizers.RMSprop),
    "adagrad": (Adagrad, keras.optimizers.Adagrad),
    "radam": (RAdam, optimizers.RAdam),
    "swats": (SWATS, optimizers.SWATS),
}


# Optimizers of Keras by their signatures.


def _pattern(text: str) -> str:
    """Checks a regular expression."""
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"must be a regular expression ({error}); found {text!r}") from None
    return text


_KNOWN = {
    r"(adam_)?beta_\d": Fraction,
    r"momentum|rho": Fraction,
    r"epsilon(_\d)?": PositiveFloat,
    r"(\w+_)?weight_decay": NonNegativeFloat,
    r"adam_lr_ratio": NonNegativeFloat,  # Its default is an integer.
    r"clip_threshold": PositiveFloat,
    r"ns_steps": PositiveInt,
    r"exclude_layers": list[Annotated[str, pydantic.AfterValidator(_pattern)]] | None,
}
"""Types of arguments that Keras does not check, or whose default does not tell the type."""


class _NotInitialized(keras.optimizers.Optimizer):
    """Takes the place of Keras' base class, so that an optimizer can check its arguments without creating variables.

    To create one would initialise TensorFlow's devices, which a run still has to set up.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        vars(self).update(kwargs)

    def __setattr__(self, name: str, value: Any) -> None:
        vars(self)[name] = value  # Keras would track it, as variables.


def _is_named(kind: Any) -> bool:
    """Whether a public name of Keras is an optimizer for one loss: one that updates variables by a learning rate."""
    base = keras.optimizers.Optimizer
    if not (isinstance(kind, type) and issubclass(kind, base)) or kind.update_step is base.update_step:
        return False  # The abstract one, or one that passes the update on.
    if "_should_use_adamw" in kind.update_step.__code__.co_names:
        return False  # Muon of Keras 3.10 asks TensorFlow's variable for its path there, and fails.
    return "learning_rate" in inspect.signature(kind).parameters


_KERAS = {name.lower(): kind for name, kind in sorted(vars(keras.optimizers).items()) if _is_named(kind)}
_SHARED = set.intersection(*(set(inspect.signature(kind).parameters) for kind in _KERAS.values()))
"""Arguments that every optimizer of Keras has; see `OptimizerOptions`."""


def _from_signature(name: str, kind: type[keras.optimizers.Optimizer]) -> type[OptimizerOptions]:
    """Returns an options class with the arguments of an optimizer of Keras, their types and defaults.

    What Keras checks in the constructor is checked here, one argument at a time so that the message names its key.
    """
    probe = type(kind.__name__, (kind, _NotInitialized), {})
    fields: dict[str, Any] = {"name": (Literal[name], ...)}
    for parameter in inspect.signature(kind).parameters.values():
        default, key = parameter.default, parameter.name
        if parameter.kind is not parameter.POSITIONAL_OR_KEYWORD or key in _SHARED - {"weight_decay"}:
            continue
        annotation = next((known for pattern, known in _KNOWN.items() if re.fullmatch(pattern, key)), type(default))
        # A `weight_decay` of None by default is that of the base class; no type is known of another None.
        if annotation is type(None) or (key == "weight_decay" and default is None):
            continue
        fields[key] = (Annotated[annotation, pydantic.AfterValidator(_checked_by(probe, key))], default)
    document = f"{kind.__name__} of Keras."
    return pydantic.create_model(
        kind.__name__, __base__=OptimizerOptions, __module__=__name__, __doc__=document, **fields
    )


def _checked_by(probe: type[keras.optimizers.Optimizer], key: str) -> Any:
    """Returns a validator of one argument that raises the error of the optimizer's constructor."""

    def check(value: Any) -> Any:
        probe(**{key: value})
        return value

    return check


_GENERATED = {name: _from_signature(name, kind) for name, kind in _KERAS.items() if name not in _TYPED}

OPTIMIZERS: dict[str, type[keras.optimizers.Optimizer]] = {
    **{name: kind for name, (_, kind) in _TYPED.items()},
    **{name: _KERAS[name] for name in _GENERATED},
}
"""Every optimizer by the name it has in a configuration."""

WITHOUT_FLOAT64 = {"muon"}
"""Optimizers of Keras that multiply weights of float64 by a number of float32, which TensorFlow refuses."""

AnyOptimizer = Annotated[
    Union[(*(options for options, _ in _TYPED.values()), *_GENERATED.values())],
    Field(discriminator="name"),
]
