"""Options of factors on the losses J and R."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import pydantic
from pydantic import Discriminator, Field, Tag

from neural_alignment.errors import ArgumentError
from neural_alignment.optimization.schedules import AnySchedule, Clock
from neural_alignment.options import Options


def _is_representable(factor: float) -> float:
    """Checks that a factor is 0 or keeps its value in float32."""
    if factor and not 1e-30 <= factor <= 1e30:
        raise ArgumentError("", "must be 0, or between 1e-30 and 1e+30", factor)
    return factor


LossFactor = Annotated[float, Field(ge=0), pydantic.AfterValidator(_is_representable)]


class ScheduledLossRate(Options):
    """A factor on a loss that changes over training.

    Its epochs are global steps / steps per epoch: unlike those of learning rates, they do not depend on alternation and
    delay.
    """

    value: Annotated[LossFactor, Field(gt=0)] = 1.0
    """The factor before the schedule is applied."""
    schedule: AnySchedule


LossRate = Annotated[
    Annotated[LossFactor, Tag("number")] | Annotated[ScheduledLossRate, Tag("schedule")],
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
            raise ArgumentError("backward", "must not be 0 if `forward` is 0: nothing would be trained", self.backward)
        return self

    def make(self, clock: Clock) -> tuple[Any, Any]:
        """Returns the rates of J and R for `RateScheduler`: numbers or schedules.

        Args:
            clock: the clock of the run; its delay and alternation do not count here.
        """
        alternation = (clock.alternation or 0) + 1
        epochs = clock.epochs * alternation + clock.delay_epochs  # Of global steps.
        plain = Clock(clock.steps_per_epoch, epochs)
        j_rate, r_rate = (
            rate.schedule.make(rate.value, plain) if isinstance(rate, ScheduledLossRate) else rate
            for rate in (self.forward, self.backward)
        )
        return j_rate, r_rate
