"""Nonlinearities that are missing in Keras. They are registered, so that saved models with them can be loaded."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from neural_alignment.serialization import serializable

Tensor = tf.Tensor


@serializable
def tanh_relu(x: Tensor) -> Tensor:
    """Returns tanh(max(x, 0)), similar to the frequency-current curve of a neuron (Rahmansetayesh et al., 2.3.1).

    The derivative is 1 / cosh(x)^2 for x > 0 and 0 for x <= 0.

    Args:
        x: a tensor of any shape.
    """
    return tf.tanh(tf.nn.relu(x))


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"tanh_relu": tanh_relu}
"""The nonlinearities of this module, by their names in a configuration. All other names refer to Keras."""


def activation(name: str | None) -> str | Callable[[Tensor], Tensor] | None:
    """Returns the `activation` argument of a Keras layer for a name in a configuration; None for a linear layer."""
    return ACTIVATIONS.get(name, name)
