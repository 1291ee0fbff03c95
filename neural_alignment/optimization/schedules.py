"""Options of learning-rate schedules, with methods that create the schedules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

import keras
import pydantic
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat

import optimizers
from neural_alignment.errors import ArgumentError
from neural_alignment.options import Options


class Clock(NamedTuple):
    """Steps and epochs of a run, for schedules.

    Attributes:
        steps_per_epoch: global steps per epoch, without alternation.
        epochs: number of epochs of J in the run, after the delay.
        delay_epochs: epochs before the first step of J.
        alternation: number of steps of J between two steps of R; None if both are trained at every step.
    """

    steps_per_epoch: int
    epochs: float
    delay_epochs: float = 0.0
    alternation: int | None = None

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments that all schedules share."""
        return {
            "steps_per_epoch": self.steps_per_epoch,
            "delay_epochs": self.delay_epochs,
            "alternation": self.alternation,
        }


class _Schedule(Options):
    """Base of all schedules.

    Epochs are those of J: alternation k makes them k + 1 times as long, and they are counted from the end of the delay.
    """

    warmup_epochs: NonNegativeFloat = 0.0
    """Epochs over which the rate rises linearly from 0."""

    def make(self, rate: float, clock: Clock) -> keras.optimizers.schedules.LearningRateSchedule:
        """Returns the schedule of a run.

        Args:
            rate: the value after the warm-up.
            clock: steps and epochs of the run.
        """
        schedule = self._after_warmup(rate, clock)
        return optimizers.WarmupAndSchedule(schedule, warmup_epochs=self.warmup_epochs, **clock.arguments)

    def _after_warmup(self, rate: float, clock: Clock) -> Any:
        raise NotImplementedError

    @property
    def ends_with_run(self) -> bool:
        """Whether the schedule depends on the last epoch of the run."""
        return False

    def check(self, epochs: float) -> None:
        """Checks that the schedule fits a run.

        Args:
            epochs: epochs of J in the run, after the delay.

        Raises:
            ArgumentError: if it does not fit. The name is relative to the schedule.
        """


class DropSchedule(_Schedule):
    """Linear warm-up, then a drop of the rate at each of the given epochs of J."""

    # Not written at its default, so that the checksums of earlier configurations stay the same.
    kind: Annotated[Literal["drops"], Field(exclude_if=lambda kind: kind == "drops")] = "drops"
    drop_epochs: list[NonNegativeFloat] = Field(default_factory=list)
    """Epochs at which the rate is multiplied by `drop_factor`."""
    drop_factor: PositiveFloat = 0.1
    """Factor of each drop."""

    @pydantic.model_validator(mode="after")
    def _ordered(self):
        drops = self.drop_epochs
        if drops != sorted(drops) or any(epoch < self.warmup_epochs for epoch in drops):
            requirement = f"must be ascending and not before the end of the warm-up ({self.warmup_epochs})"
            raise ArgumentError("drop_epochs", requirement, drops, "drop_epochs=[30, 60, 80]")
        return self

    def make(self, rate, clock):
        """Returns the schedule of a run. See `_Schedule.make`."""
        return optimizers.WarmupAndDrops(
            rate,
            warmup_epochs=self.warmup_epochs,
            drop_epochs=self.drop_epochs,
            drop_factor=self.drop_factor,
            **clock.arguments,
        )


class ConstantSchedule(_Schedule):
    """Linear warm-up, then a constant rate."""

    kind: Literal["constant"]

    def _after_warmup(self, rate, clock):
        return rate


class _DecaySchedule(_Schedule):
    """Base of the schedules that decay to a floor, a smallest rate."""

    floor: Annotated[float, Field(ge=0, le=1)] = 0.0
    """The final rate, as a fraction of the rate after the warm-up."""
    end_epoch: Annotated[float, Field(ge=1e-6)] | None = None
    """Epoch of J at which the floor is reached, including the warm-up. Default: the last of `epochs`, also if
    `max_steps` ends the run earlier."""

    @pydantic.model_validator(mode="after")
    def _ends_after_warmup(self):
        if self.end_epoch is not None and self.end_epoch <= self.warmup_epochs:
            raise ArgumentError(
                "end_epoch", f"must be after the end of the warm-up ({self.warmup_epochs})", self.end_epoch
            )
        return self

    @property
    def ends_with_run(self):
        """Whether `end_epoch` has its default. See `_Schedule.ends_with_run`."""
        return self.end_epoch is None

    def check(self, epochs):
        """Checks that the warm-up ends before the run. See `_Schedule.check`."""
        if self.ends_with_run and self.warmup_epochs >= epochs:
            requirement = f"must be less than the epochs of J ({epochs:g}), after which the rate reaches its floor"
            raise ArgumentError("warmup_epochs", requirement, self.warmup_epochs)

    def _steps(self, clock: Clock) -> float:
        end = clock.epochs if self.ends_with_run else self.end_epoch
        return (end - self.warmup_epochs) * clock.steps_per_epoch


class CosineSchedule(_DecaySchedule):
    """Linear warm-up, then a half-period of a cosine down to the floor."""

    kind: Literal["cosine"]

    def _after_warmup(self, rate, clock):
        return keras.optimizers.schedules.CosineDecay(rate, self._steps(clock), alpha=self.floor)


class PolynomialSchedule(_DecaySchedule):
    """Linear warm-up, then rate * (floor + (1 - floor) (1 - t)^power), where t rises from 0 to 1."""

    kind: Literal["polynomial"]
    power: PositiveFloat = 1.0
    """The exponent. With 1 the rate decays linearly."""

    def _after_warmup(self, rate, clock):
        return keras.optimizers.schedules.PolynomialDecay(rate, self._steps(clock), rate * self.floor, self.power)


class ExponentialSchedule(_Schedule):
    """Linear warm-up, then an exponential decay."""

    kind: Literal["exponential"]
    factor: Annotated[float, Field(gt=0, le=1)]
    """The rate is multiplied by this factor over `every_epochs`."""
    every_epochs: Annotated[float, Field(ge=1e-6)] = 1.0
    """Epochs of J over which the rate changes by `factor`."""
    staircase: bool = False
    """Whether the rate is constant during each period of `every_epochs`, instead of changing at every step."""

    def _after_warmup(self, rate, clock):
        steps = self.every_epochs * clock.steps_per_epoch
        return keras.optimizers.schedules.ExponentialDecay(rate, steps, self.factor, self.staircase)


class ManualSchedule(_Schedule):
    """Manual drops of the rate, one at each restart, as in the published code. Drop 0 has only the warm-up."""

    kind: Literal["manual"]
    drop: Annotated[int, Field(ge=0, le=20)] = 0
    """k, the number of the current drop. Before the drop the rate is learning_rate * drop_factor^(k - 1), and after it
    learning_rate * drop_factor^k, without a warm-up."""
    drop_step: NonNegativeInt | None = None
    """Global step of the drop."""
    drop_factor: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Factor of each drop."""

    @pydantic.model_validator(mode="after")
    def _drop_has_a_step(self):
        if self.drop and self.drop_step is None:
            raise ArgumentError("drop_step", f"must be the global step of the drop with drop {self.drop}", None)
        if self.drop and self.warmup_epochs:
            raise ArgumentError("warmup_epochs", f"must be 0 with drop {self.drop}", self.warmup_epochs)
        if not self.drop and self.drop_step is not None:
            raise ArgumentError("drop_step", "must be null with drop 0", self.drop_step)
        if not self.drop and self.drop_factor != 0.1:
            raise ArgumentError("drop_factor", "must be left out with drop 0", self.drop_factor)
        return self

    def make(self, rate, clock):
        """Returns the schedule of a run. See `_Schedule.make`."""
        return optimizers.ManualDrop(rate, **self.model_dump(exclude={"kind"}), **clock.arguments)


def _with_kind(schedule: Any) -> Any:
    """Adds `kind: drops` to a mapping without `kind`."""
    if isinstance(schedule, Mapping) and "kind" not in schedule:
        return {"kind": "drops", **schedule}
    return schedule


AnySchedule = Annotated[
    Annotated[
        DropSchedule | ConstantSchedule | CosineSchedule | PolynomialSchedule | ExponentialSchedule | ManualSchedule,
        Field(discriminator="kind"),
    ],
    pydantic.BeforeValidator(_with_kind),
]
