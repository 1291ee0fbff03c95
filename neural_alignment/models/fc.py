"""A fully connected network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from neural_alignment.models.activations import activation as named
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
        classes: number of classes, or number of output units that encode them.
        input_shape: shape of one example, which is flattened.
        alignment: None, one rule for all layers, or rules with patterns of layer names.
        activation: nonlinearity of the hidden layers.
        output_activation: nonlinearity of the last layer; None for logits.
        weight_decay: coefficient of J's L2 term.
        initial_stddev: standard deviation of the normal distribution of the initial W, B and biases. Default: Glorot
            uniform kernels and zero biases.
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
