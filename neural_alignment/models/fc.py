"""A fully connected network."""

from __future__ import annotations

from collections.abc import Sequence

import keras

from neural_alignment.models.parts import Parts, Rules


def fc(
    hidden: Sequence[int],
    classes: int,
    input_shape: tuple[int, ...],
    alignment: Rules = None,
    activation: str = "relu",
    weight_decay: float = 0.0,
) -> keras.Model:
    """Builds a fully connected network that returns logits.

    Layers are named `dense1`, `dense2` and so on, and `dense`, the last.

    Args:
        hidden: units of each hidden layer.
        classes: number of classes.
        input_shape: shape of one example, flattened first.
        alignment: none, one rule for all layers, or rules with patterns of layer names.
        activation: nonlinearity of the hidden layers.
        weight_decay: coefficient of J's L2 term.

    Returns:
        A functional model, `(batch, *input_shape)` -> `(batch, classes)`.
    """
    parts = Parts(alignment, weight_decay)
    inputs = keras.Input(input_shape)
    x = keras.layers.Flatten(name="flatten")(inputs)
    for number, units in enumerate(hidden, start=1):
        x = parts.dense(units, f"dense{number}", activation=activation)(x)
    return parts.finish(inputs, parts.dense(classes, "dense")(x), "fc")
