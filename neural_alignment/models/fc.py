"""A fully connected network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import keras
from pydantic import PositiveFloat

from neural_alignment.errors import ArgumentError
from neural_alignment.models.activations import activation as named
from neural_alignment.models.base import MODELS, LayerSizes, ModelOptions, sum_of_products
from neural_alignment.models.parts import Parts, Rules
from neural_alignment.models.weight_norm import WeightNorm


def fc(
    hidden: Sequence[int],
    classes: int,
    input_shape: tuple[int, ...],
    alignment: Rules = None,
    activation: str = "relu",
    output_activation: str | None = None,
    weight_decay: float = 0.0,
    initial_stddev: float | None = None,
    weight_norm: WeightNorm | None = None,
) -> keras.Model:
    """Builds a fully connected network.

    The hidden layers are named `dense1`, `dense2` and so on; the last layer is named `dense`.

    Args:
        hidden: number of units of each hidden layer.
        classes: number of outputs: one for each class, or as many as encode the classes.
        input_shape: shape of one example, without the batch. Examples are flattened.
        alignment: None, one rule for all layers, or rules with patterns of layer names.
        activation: nonlinearity of the hidden layers.
        output_activation: nonlinearity of the last layer; None for logits.
        weight_decay: coefficient of J's L2 term.
        initial_stddev: standard deviation of the normal distribution from which W, B and biases are drawn. Default:
            Glorot uniform kernels and zero biases.
        weight_norm: norm of the columns of the kernels. Default: the norm is not constrained.

    Returns:
        A functional model, `(batch, *input_shape)` -> `(batch, classes)`.
    """
    parts = Parts(alignment, weight_decay)
    inputs = keras.Input(input_shape)
    x = keras.layers.Flatten(name="flatten")(inputs)
    names = [*(f"dense{number}" for number in range(1, len(hidden) + 1)), "dense"]
    nonlinearities = [activation] * len(hidden) + [output_activation]
    for units, name, nonlinearity in zip([*hidden, classes], names, nonlinearities, strict=True):
        options = _initial(initial_stddev)
        if weight_norm is not None:
            options["kernel_constraint"] = weight_norm.constraint()
        layer = parts.dense(units, name, activation=named(nonlinearity), **options)
        x = layer(x)
        if weight_norm is not None:
            weight_norm.start(layer)
    return parts.finish(inputs, x, "fc")


def _initial(stddev: float | None) -> dict[str, Any]:
    """Returns the initializers of a layer, each with a new seed; empty for Keras' defaults."""
    if stddev is None:
        return {}
    return {key: keras.initializers.RandomNormal(stddev=stddev) for key in ("kernel_initializer", "bias_initializer")}


@MODELS.register
class FC(ModelOptions):
    """A fully connected network."""

    builder = staticmethod(fc)
    size_keys: ClassVar[tuple[str, ...]] = ("hidden",)

    name: Literal["fc"]
    hidden: LayerSizes
    """Units of each hidden layer."""
    activation: Literal["relu", "tanh", "sigmoid", "tanh_relu"] = "relu"
    """Nonlinearity of the hidden layers."""
    output_activation: Literal["relu", "tanh", "sigmoid", "tanh_relu"] | None = None
    """Nonlinearity of the last layer. Default: none, the outputs are logits."""
    initial_stddev: PositiveFloat | None = None
    """Standard deviation of the normal distribution from which W, B and biases are drawn. Default: Glorot uniform
    kernels and biases of 0."""
    weight_norm: WeightNorm | None = None
    """Norm of the weights that reach one neuron. Default: not constrained."""

    def fewest_weights(self, outputs: int, input_shape: Sequence[int]) -> int:
        """Returns the number of weights in the forward kernels."""
        return sum_of_products([math.prod(input_shape), *self.hidden, outputs])

    def check_run(self, config: Any) -> None:
        """Checks the last layer against the loss, and the norm of the weights against the rules."""
        if self.output_activation is not None and config.loss.takes_logits:
            requirement = f"must be null with loss {config.loss.kind}, which expects logits"
            raise ArgumentError("model.output_activation", requirement, self.output_activation)
        if self.weight_norm is not None:
            self.weight_norm.check_rules(config.rules)
