"""Options classes of all optimizers, by their names in a configuration.

The optimizers of this project and the most common ones of Keras have an options class here. For every other public
optimizer of the installed Keras, `keras_optimizers` makes an options class from the signature. Its name in a
configuration is the class name in lower case.
"""

from __future__ import annotations

from typing import Annotated, Literal, Union

import keras
from pydantic import Field, NonNegativeFloat, PositiveFloat

import optimizers
from neural_alignment.optimization import keras_optimizers
from neural_alignment.optimization.base import Fraction, OptimizerOptions


class SGDOptions(OptimizerOptions):
    """Gradient descent of Keras. With momentum it accumulates learning rate * gradient."""

    optimizer = keras.optimizers.SGD

    name: Literal["sgd"]
    momentum: Fraction = 0.0
    """Fraction of the accumulated step that is kept at each step."""
    nesterov: bool = False
    """Whether Nesterov's form of momentum is used."""


class MomentumOptions(OptimizerOptions):
    """Momentum of TensorFlow 1: the step is the current learning rate * the accumulated gradient."""

    optimizer = optimizers.Momentum

    name: Literal["momentum"]
    momentum: Fraction = 0.9
    """Fraction of the accumulated gradient that is kept at each step."""
    nesterov: bool = True
    """Whether Nesterov's form of momentum is used."""


class AdamOptions(OptimizerOptions):
    """Adam, with the epsilon of TensorFlow 1."""

    optimizer = optimizers.Adam

    name: Literal["adam"]
    beta_1: Fraction = 0.9
    """Decay of the moving average of the gradients."""
    beta_2: Fraction = 0.999
    """Decay of the moving average of the squared gradients."""
    epsilon: PositiveFloat = 1e-8
    """Added to the denominator of the step."""


class RMSpropOptions(OptimizerOptions):
    """RMSprop of Keras, or with another start that of TensorFlow 1."""

    optimizer = optimizers.RMSprop

    name: Literal["rmsprop"]
    rho: Fraction = 0.9
    """Decay of the moving average of the squared gradients."""
    momentum: Fraction = 0.0
    """Fraction of the accumulated step that is kept at each step."""
    epsilon: PositiveFloat = 1e-7
    """Added to the denominator of the step."""
    centered: bool = False
    """Whether gradients are divided by their estimated standard deviation, in place of the root of their mean
    square."""
    initial_mean_square: NonNegativeFloat = 0.0
    """Start of the moving average of the squared gradients. It is 1 in TensorFlow 1, whose epsilon is 1e-10."""


class AdagradOptions(OptimizerOptions):
    """Adagrad of Keras."""

    optimizer = keras.optimizers.Adagrad

    name: Literal["adagrad"]
    initial_accumulator_value: NonNegativeFloat = 0.1
    """Start of the sum of the squared gradients."""
    epsilon: PositiveFloat = 1e-7
    """Added to the denominator of the step."""


class RAdamOptions(OptimizerOptions):
    """Rectified Adam, with the epsilon of the published code."""

    optimizer = optimizers.RAdam

    name: Literal["radam"]
    beta_1: Fraction = 0.9
    """Decay of the moving average of the gradients."""
    beta_2: Fraction = 0.999
    """Decay of the moving average of the squared gradients."""
    epsilon: PositiveFloat = 1e-9
    """Added to the denominator of the step."""


class SWATSOptions(OptimizerOptions):
    """Adam that switches to gradient descent, for each variable separately.

    After the switch the learning rate scales only noise and `weight_decay`.
    """

    optimizer = optimizers.SWATS

    name: Literal["swats"]
    beta_1: Fraction = 0.9
    """Decay of the moving average of the gradients."""
    beta_2: Fraction = 0.999
    """Decay of the moving average of the squared gradients, and of the estimated rates of gradient descent."""
    epsilon: PositiveFloat = 1e-9
    """Epsilon of Adam's step, and the tolerance for the switch to gradient descent."""
    rectified: bool = False
    """Whether the steps of Adam are rectified, as in radam. The published code calls this swrats."""


OPTIONS: dict[str, type[OptimizerOptions]] = {
    options.model_fields["name"].annotation.__args__[0]: options
    for options in (
        *(SGDOptions, MomentumOptions, AdamOptions, RMSpropOptions, AdagradOptions, RAdamOptions, SWATSOptions),
    )
}
"""The options class of each optimizer, by its name in a configuration."""

OPTIONS |= keras_optimizers.options_of_others(OPTIONS)

OPTIMIZERS: dict[str, type[keras.optimizers.Optimizer]] = {name: options.optimizer for name, options in OPTIONS.items()}
"""The class of each optimizer, by its name in a configuration."""

AnyOptimizer = Annotated[Union[tuple(OPTIONS.values())], Field(discriminator="name")]  # noqa: UP007 - the members depend on the installed Keras
"""The options of an optimizer in a configuration; their `name` determines which."""
