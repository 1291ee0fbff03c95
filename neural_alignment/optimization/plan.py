"""Options of how W and B are updated, and the checks of these options against the rest of a run."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, NonNegativeFloat, PositiveInt

from neural_alignment.errors import ArgumentError
from neural_alignment.optimization.base import OptimizerOptions
from neural_alignment.optimization.loss_rates import LossRates, ScheduledLossRate
from neural_alignment.optimization.optimizers import AnyOptimizer
from neural_alignment.options import Options


class Optimization(Options):
    """How and when W and B are updated."""

    forward: AnyOptimizer
    """J's optimizer. Without `backward` it updates all variables by J + R."""
    backward: AnyOptimizer | None = None
    """R's optimizer."""
    alternation: PositiveInt | None = None
    """Steps of J to each step of R. Default: both at every step."""
    delay_epochs: NonNegativeFloat = 0.0
    """Epochs at the start with steps of R only."""
    skip_idle: bool = True
    """Whether an optimizer makes no update in a step in which its loss is not trained. With false its momentum still
    moves the weights, as in the published code."""
    loss_rates: Annotated[LossRates, Field(exclude_if=lambda rates: rates == LossRates())] = LossRates()
    """Factors on J and R."""
    minibatches: PositiveInt = 1
    """Equal parts of a batch whose gradients are accumulated."""

    @property
    def optimizers(self) -> dict[str, OptimizerOptions]:
        """The optimizers by their keys."""
        return {"forward": self.forward} | ({"backward": self.backward} if self.backward else {})

    @property
    def turns(self) -> int:
        """Global steps to one step of J."""
        return (self.alternation or 0) + 1

    def check_run(self, config: Any) -> None:
        """Checks the options against the rest of a run.

        Args:
            config: the configuration of the run.

        Raises:
            ArgumentError: if they do not fit.
        """
        if config.batch_size % self.minibatches:
            requirement = f"must divide batch_size ({config.batch_size})"
            raise ArgumentError("optimization.minibatches", requirement, self.minibatches)
        if not config.learns:
            self._check_without_learning()
        if self.delay_epochs >= config.epochs * self.turns:
            requirement = f"must be less than the length of the run ({config.epochs} epochs)"
            raise ArgumentError("optimization.delay_epochs", requirement, self.delay_epochs)
        for key, options in self.optimizers.items():
            if not options.supports_float64 and config.runtime.precision == "float64":
                requirement = "must be an optimizer that supports runtime.precision float64 in Keras"
                raise ArgumentError(f"optimization.{key}.name", requirement, options.name)
        self._check_schedules(config)

    def _check_without_learning(self) -> None:
        """Refuses options of R if no rule trains a backward kernel."""
        reason = "no rule of this run trains a backward kernel"
        idle = {"backward": self.backward, "alternation": self.alternation, "delay_epochs": self.delay_epochs}
        for key, value in idle.items():
            if value:
                shown = value.name if isinstance(value, OptimizerOptions) else value
                raise ArgumentError(f"optimization.{key}", f"must be left out: {reason}", shown)
        if self.loss_rates.backward != 1:
            raise ArgumentError("optimization.loss_rates.backward", f"must be 1: {reason}", self.loss_rates.backward)
        if self.loss_rates.forward == 0:
            raise ArgumentError("optimization.loss_rates.forward", f"must not be 0: {reason}", self.loss_rates.forward)

    def _check_schedules(self, config: Any) -> None:
        schedules = {key: (options.schedule, config.epochs_of_j) for key, options in self.optimizers.items()}
        for key, rate in self.loss_rates:
            if isinstance(rate, ScheduledLossRate):
                schedules[f"loss_rates.{key}"] = rate.schedule, config.epochs * self.turns
        for key, (schedule, epochs) in schedules.items():
            if schedule is not None:
                try:
                    schedule.check(epochs)
                except ArgumentError as error:
                    raise error.within(f"optimization.{key}.schedule") from None
        key = "backward" if self.backward else "forward"
        schedule = self.optimizers[key].schedule
        if schedule and schedule.warmup_epochs and self.delay_epochs:
            requirement = f"must be 0 with delay_epochs {self.delay_epochs}, during which the rate of R would be 0"
            raise ArgumentError(f"optimization.{key}.schedule.warmup_epochs", requirement, schedule.warmup_epochs)
