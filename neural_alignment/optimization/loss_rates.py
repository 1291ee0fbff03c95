"""Options of the loss rates: factors on the losses J and R."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import pydantic
from pydantic import Discriminator, Field, Tag

from neural_alignment.errors import ArgumentError
from neural_alignment.optimization.schedules import AnySchedule, Clock
from neural_alignment.options import Options


def _is_representable(factor: float) -> float:
    """Returns a factor if it is 0 or clearly within the range of float32; otherwise raises an `ArgumentError`."""
    if factor and not 1e-30 <= factor <= 1e30:
        raise ArgumentError("", "must be 0, or between 1e-30 and 1e+30", factor)
    return factor


LossFactor = Annotated[float, Field(ge=0), pydantic.AfterValidator(_is_representable)]


class ScheduledLossRate(Options):
    """A factor on a loss that changes during training.

    Its epochs are global steps / steps per epoch. Unlike the epochs of learning rates, they do not depend on
    alternation and delay.
    """

    value: Annotated[LossFactor, Field(gt=0)] = 1.0
    """The factor before the schedule is applied."""
    schedule: AnySchedule
    """The schedule by which the factor is multiplied, with the kinds of learning-rate schedules."""


LossRate = Annotated[
    Annotated[LossFactor, Tag("number")] | Annotated[ScheduledLossRate, Tag("schedule")],
    Discriminator(lambda value: "schedule" if isinstance(value, (Mapping, ScheduledLossRate)) else "number"),
]


class LossRates(Options):
    """Factors on J and R. They multiply the gradients before the optimizer uses them."""

    forward: LossRate = 1.0
    """Factor on J. With 0 only R is trained."""
    backward: LossRate = 1.0
    """Factor on R."""

    @pydantic.model_validator(mode="after")
    def _one_is_trained(self):
        if self.forward == 0 and self.backward == 0:
            raise ArgumentError("backward", "must not be 0 if `forward` is 0: nothing would be trained", self.backward)
        return self

    def make(self, clock: Clock) -> tuple[Any, Any]:
        """Returns the argument `loss_rates` of `RateScheduler`: a number or a schedule for each of J and R.

        Args:
            clock: steps and epochs of the run.
        """
        alternation = (clock.alternation or 0) + 1
        epochs = clock.epochs * alternation + clock.delay_epochs  # In global steps / steps per epoch.
        plain = Clock(clock.steps_per_epoch, epochs)
        j_rate, r_rate = (
            rate.schedule.make(rate.value, plain) if isinstance(rate, ScheduledLossRate) else rate
            for rate in (self.forward, self.backward)
        )
        return j_rate, r_rate
