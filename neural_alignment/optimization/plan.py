"""Options for the updates of W and B, and the checks of these options against the rest of a run."""

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
    """The optimizer of J. Without `backward` it updates all variables by the gradient of J + R."""
    backward: AnyOptimizer | None = None
    """The optimizer of R, which updates the backward kernels."""
    alternation: Annotated[int, Field(gt=0, lt=2**31)] | None = None
    """Number of steps of J between two steps of R. An epoch of the run takes this number + 1 times the steps of one
    pass over the data. Default: both losses are trained at every step."""
    delay_epochs: NonNegativeFloat = 0.0
    """Epochs at the start in which only R is trained, counted in global steps. They are part of the `epochs` of the
    run, so J is trained for less time."""
    skip_idle: bool = True
    """Whether an optimizer is skipped in steps in which its loss is not trained. If false, its momentum continues to
    change the weights, as in the published code."""
    loss_rates: Annotated[LossRates, Field(exclude_if=lambda rates: rates == LossRates())] = LossRates()
    """Factors on J and R."""
    minibatches: PositiveInt = 1
    """Number of equal parts into which a batch is divided. Their gradients are accumulated, which saves memory. Batch
    normalization uses the statistics of each part."""

    @property
    def optimizers(self) -> dict[str, OptimizerOptions]:
        """The options of the optimizers, by their keys."""
        return {"forward": self.forward} | ({"backward": self.backward} if self.backward else {})

    @property
    def turns(self) -> int:
        """Number of global steps in one cycle of alternation: `alternation` steps of J and one of R. 1 without it."""
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
        reason = config.model.whole_batch_reason
        if reason and self.minibatches > 1:
            requirement = f"must be 1: {config.model.name} {reason}"
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
        """Raises an `ArgumentError` if options of R are given, although no rule trains a backward kernel."""
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

    def schedule_ends(self, config: Any) -> dict[str, float]:
        """Returns key path -> epoch of the end of each schedule that ends with the run because it gives no end.

        Args:
            config: the configuration of the run.
        """
        schedules = self._schedules(config).items()
        return {f"{key}.end_epoch": epochs for key, (schedule, epochs) in schedules if schedule.ends_with_run}

    def _schedules(self, config: Any) -> dict[str, tuple[Any, float]]:
        """Returns key path -> schedule, and the last epoch of the run as the schedule counts epochs."""
        schedules = {
            f"optimization.{key}.schedule": (options.schedule, config.epochs_of_j)
            for key, options in self.optimizers.items()
            if options.schedule is not None
        }
        for key, rate in self.loss_rates:
            if isinstance(rate, ScheduledLossRate):
                schedules[f"optimization.loss_rates.{key}.schedule"] = rate.schedule, config.epochs * self.turns
        return schedules

    def _check_schedules(self, config: Any) -> None:
        for key, (schedule, epochs) in self._schedules(config).items():
            try:
                schedule.check(epochs)
            except ArgumentError as error:
                raise error.within(key) from None
        key = "backward" if self.backward else "forward"
        schedule = self.optimizers[key].schedule
        if schedule and schedule.warmup_epochs and self.delay_epochs:
            requirement = f"must be 0 with delay_epochs {self.delay_epochs}, during which the rate of R would be 0"
            raise ArgumentError(f"optimization.{key}.schedule.warmup_epochs", requirement, schedule.warmup_epochs)
