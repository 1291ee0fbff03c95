"""Options of optimizers, and the optimizers that are made from them.

The optimizers of this project and the most common ones of Keras have an options class here. Every other public
optimizer of the installed Keras gets one from its signature (see `keras_optimizers`), under its name in lower case.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Union

import keras
from pydantic import Field, NonNegativeFloat, PositiveFloat

import optimizers
from neural_alignment.optimization import keras_optimizers
from neural_alignment.optimization.base import Fraction, OptimizerOptions


class SGDOptions(OptimizerOptions):
    """Gradient descent as Keras has it: with momentum, rate times gradient is accumulated."""

    optimizer: ClassVar = keras.optimizers.SGD

    name: Literal["sgd"]
    momentum: Fraction = 0.0
    nesterov: bool = False


class MomentumOptions(OptimizerOptions):
    """Momentum as TensorFlow 1 has it: the current rate times the accumulated gradient."""

    optimizer: ClassVar = optimizers.Momentum

    name: Literal["momentum"]
    momentum: Fraction = 0.9
    nesterov: bool = True


class AdamOptions(OptimizerOptions):
    """Adam, with the epsilon of TensorFlow 1."""

    optimizer: ClassVar = optimizers.Adam

    name: Literal["adam"]
    beta_1: Fraction = 0.9
    beta_2: Fraction = 0.999
    epsilon: PositiveFloat = 1e-8


class RMSpropOptions(OptimizerOptions):
    """RMSprop."""

    optimizer: ClassVar = keras.optimizers.RMSprop

    name: Literal["rmsprop"]
    rho: Fraction = 0.9
    momentum: Fraction = 0.0
    epsilon: PositiveFloat = 1e-7
    centered: bool = False


class AdagradOptions(OptimizerOptions):
    """Adagrad."""

    optimizer: ClassVar = keras.optimizers.Adagrad

    name: Literal["adagrad"]
    initial_accumulator_value: NonNegativeFloat = 0.1
    epsilon: PositiveFloat = 1e-7


class RAdamOptions(OptimizerOptions):
    """Rectified Adam, with the epsilon of the published code."""

    optimizer: ClassVar = optimizers.RAdam

    name: Literal["radam"]
    beta_1: Fraction = 0.9
    beta_2: Fraction = 0.999
    epsilon: PositiveFloat = 1e-9


class SWATSOptions(OptimizerOptions):
    """Adam that changes to gradient descent, variable by variable; then learning rate and schedule have no effect."""

    optimizer: ClassVar = optimizers.SWATS

    name: Literal["swats"]
    beta_1: Fraction = 0.9
    beta_2: Fraction = 0.999
    epsilon: PositiveFloat = 1e-9
    """Of Adam's step, and the tolerance at which a variable changes."""
    rectified: bool = False
    """Whether the steps of Adam are rectified as in radam; swrats in the published code."""


OPTIONS: dict[str, type[OptimizerOptions]] = {
    options.model_fields["name"].annotation.__args__[0]: options
    for options in (
        *(SGDOptions, MomentumOptions, AdamOptions, RMSpropOptions, AdagradOptions, RAdamOptions, SWATSOptions),
    )
}
"""The options classes above by their names."""

OPTIONS |= keras_optimizers.options_of_others(OPTIONS)

OPTIMIZERS: dict[str, type[keras.optimizers.Optimizer]] = {name: options.optimizer for name, options in OPTIONS.items()}
"""Every optimizer by the name it has in a configuration."""

AnyOptimizer = Annotated[Union[tuple(OPTIONS.values())], Field(discriminator="name")]  # noqa: UP007 - of a mapping
