"""Options that all optimizers share."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import keras
import pydantic
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

import optimizers
from neural_alignment.errors import ArgumentError
from neural_alignment.optimization.schedules import AnySchedule, Clock
from neural_alignment.options import Options

BASE_BATCH_SIZE = 256
"""Default of `base_batch_size`: the batch size at which `scale_with_batch` leaves the learning rate unchanged."""

Fraction = Annotated[float, Field(ge=0, lt=1)]


class UpdateNoise(Options):
    """Noise on the updates, scaled by the current learning rate."""

    variance: NonNegativeFloat
    """Variance of the noise that is added to the update of each weight, before the learning rate."""
    distribution: Literal["normal", "uniform", "sign"] = "normal"
    """Distribution of the noise. Its mean is 0."""
    only: str | None = None
    """Noise is added only to variables whose path contains this text. backward_kernel also stands for the backward
    kernels with other names, such as backward_recurrent_kernel. Default: all variables."""
    rate: Annotated[PositiveFloat | None, Field(exclude_if=lambda rate: rate is None)] = None
    """Learning rate to which `variance` applies. An optimizer with another initial rate gets the variance that moves
    the weights equally far. Default: the optimizer's own rate."""

    def arguments(self, rate: float) -> dict[str, Any]:
        """Returns the arguments of `optimizers.Noisy` for an optimizer with a learning rate before its schedule."""
        scale = 1.0 if self.rate is None else (self.rate / rate) ** 2
        return {**self.model_dump(exclude={"rate"}), "variance": self.variance * scale}


class OptimizerOptions(Options):
    """Base of the options classes of all optimizers.

    The other arguments that all optimizers of Keras share are omitted on purpose. `optimization.minibatches`
    accumulates gradients and, unlike Keras, takes alternation into account. Runs evaluate the trained weights, not
    their moving averages (`use_ema`). No precision of a run needs loss scaling. One way of clipping by norm is enough.
    """

    optimizer: ClassVar[type[keras.optimizers.Optimizer]]
    """The class of the optimizer."""
    supports_float64: ClassVar[bool] = True
    """Whether the optimizer can update float64 weights."""

    learning_rate: NonNegativeFloat
    """The learning rate, before the schedule."""
    # Keys with `exclude_if` are not written at their defaults, because earlier versions did not have them.
    scale_with_batch: Annotated[bool, Field(exclude_if=lambda scales: not scales)] = False
    """Multiply the learning rate by batch_size / base_batch_size."""
    base_batch_size: Annotated[PositiveInt | None, Field(exclude_if=lambda size: size is None)] = None
    """Batch size to which `learning_rate` applies. Default: 256. Only with `scale_with_batch`."""
    schedule: AnySchedule | None = None
    """Learning-rate schedule. Default: a constant rate."""
    weight_decay: Annotated[NonNegativeFloat | None, Field(exclude_if=lambda decay: decay is None)] = None
    """Subtract learning rate * weight_decay * w from every variable w that this optimizer updates (decoupled decay, as
    in AdamW). The top-level key `weight_decay` is different: it is a part of J."""
    clip_global_norm: PositiveFloat | None = None
    """Scale all gradients so that their common norm is at most this. Default: they are not clipped."""
    clip_value: PositiveFloat | None = None
    """Limit each element of the gradients to plus or minus this. Default: they are not clipped."""
    noise: UpdateNoise | None = None
    """Noise on the updates. Default: none."""

    @pydantic.model_validator(mode="after")
    def _one_clip(self):
        if self.clip_global_norm is not None and self.clip_value is not None:
            raise ArgumentError("clip_global_norm", "must be null with `clip_value`", self.clip_global_norm)
        return self

    @pydantic.model_validator(mode="after")
    def _base_has_an_effect(self):
        if self.base_batch_size is not None and not self.scale_with_batch:
            raise ArgumentError("base_batch_size", "must be null without `scale_with_batch`", self.base_batch_size)
        return self

    @pydantic.model_validator(mode="after")
    def _noise_can_be_scaled(self):
        if self.noise is not None and self.noise.rate is not None and not self.learning_rate:
            raise ArgumentError("noise", "must have no `rate` with the learning rate 0", self.noise.rate)
        return self

    def rate(self, batch_size: int) -> float:
        """Returns the learning rate for a batch size, before the schedule."""
        if not self.scale_with_batch:
            return self.learning_rate
        return self.learning_rate * batch_size / (self.base_batch_size or BASE_BATCH_SIZE)

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of the optimizer's class that are specific to this optimizer."""
        return self.model_dump(exclude={*OptimizerOptions.model_fields, "name"})

    def make(self, batch_size: int, clock: Clock, seed: int) -> keras.optimizers.Optimizer:
        """Returns the optimizer of a run.

        Args:
            batch_size: number of examples in a step.
            clock: steps and epochs of the run, for the schedule.
            seed: seed of the noise.
        """
        rate = self.rate(batch_size)
        optimizer = self.optimizer(
            rate if self.schedule is None else self.schedule.make(rate, clock),
            **self.arguments,
            weight_decay=self.weight_decay,
            global_clipnorm=self.clip_global_norm,
            clipvalue=self.clip_value,
        )
        if self.noise is None:
            return optimizer
        return optimizers.Noisy(optimizer, seed=seed, **self.noise.arguments(rate))

    def summary(self, batch_size: int) -> str:
        """Returns the optimizer, its learning rate and all its options in one line."""
        rate = f"{self.rate(batch_size):g}"
        if self.scale_with_batch:
            base = self.base_batch_size or BASE_BATCH_SIZE
            rate += f" ({self.learning_rate:g} for batch {base}, scaled to {batch_size})"
        shown = {"learning_rate", "scale_with_batch", "base_batch_size", "name"}
        return ", ".join([f"{self.name}, learning_rate {rate}", *_listed(self, shown)])


def _listed(options: Options, skipped: set[str] = frozenset()) -> list[str]:
    """Returns `key value` for each option that is not null and not an empty list, except the skipped keys."""
    return [
        f"{key} {described(value)}"
        for key, value in options
        if key not in skipped and value is not None and value != []
    ]


def described(value: Any) -> str:
    """Returns the value of an option as text for a person."""
    if isinstance(value, Options):
        kind = getattr(value, "kind", "")
        return f"{kind}{' ' if kind else ''}({', '.join(_listed(value, {'kind'}))})"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)
