"""Options that all optimizers have in common."""

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
"""Batch size for which a learning rate is meant with `scale_with_batch`, unless `base_batch_size` is given."""

Fraction = Annotated[float, Field(ge=0, lt=1)]


class UpdateNoise(Options):
    """Noise on the updates, scaled by the current learning rate."""

    variance: NonNegativeFloat
    distribution: Literal["normal", "uniform", "sign"] = "normal"
    only: str | None = None
    """Part of the path of the variables that get noise, such as backward_kernel. Default: all variables."""


class OptimizerOptions(Options):
    """Base of all optimizer options.

    Keras' other arguments of all optimizers are left out on purpose: `optimization.minibatches` accumulates gradients
    and takes alternation into account; runs evaluate the trained weights, not their moving averages (`use_ema`); no
    precision of a run needs loss scaling; and one way to clip by norm is enough.
    """

    optimizer: ClassVar[type[keras.optimizers.Optimizer]]
    """The class of the optimizer."""
    supports_float64: ClassVar[bool] = True
    """Whether the optimizer updates weights of float64."""

    learning_rate: NonNegativeFloat
    # Keys with `exclude_if` are left out at their defaults, because an earlier version did not have them.
    scale_with_batch: Annotated[bool, Field(exclude_if=lambda scales: not scales)] = False
    """Multiply the learning rate by batch_size / base_batch_size."""
    base_batch_size: Annotated[PositiveInt | None, Field(exclude_if=lambda size: size is None)] = None
    """Batch size for which the learning rate is meant. Default: 256. Only with `scale_with_batch`."""
    schedule: AnySchedule | None = None
    """Learning-rate schedule. Default: a constant rate."""
    weight_decay: Annotated[NonNegativeFloat | None, Field(exclude_if=lambda decay: decay is None)] = None
    """Subtract rate * weight_decay * w from every variable w that this optimizer updates (decoupled decay, as in
    AdamW). The `weight_decay` of a run is a different one: a part of J."""
    clip_global_norm: PositiveFloat | None = None
    clip_value: PositiveFloat | None = None
    noise: UpdateNoise | None = None

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
        optimizer = self.optimizer(
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
