"""Nonlinearities that Keras does not have, known to it by name in saved models."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from neural_alignment.serialization import serializable

Tensor = tf.Tensor


@serializable
def tanh_relu(x: Tensor) -> Tensor:
    """Returns tanh(max(x, 0)), which is like the frequency-current curve of a neuron (Rahmansetayesh et al., 2.3.1).

    Its derivative is 1 / cosh(x)^2 where x > 0, and 0 elsewhere, at 0 too.

    Args:
        x: any shape.
    """
    return tf.tanh(tf.nn.relu(x))


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"tanh_relu": tanh_relu}
"""Ours by the name that they have in a configuration; any other name is Keras' own."""


def activation(name: str | None) -> str | Callable[[Tensor], Tensor] | None:
    """Returns what a Keras layer takes as its activation for a name of a configuration; none for a linear layer."""
    return ACTIVATIONS.get(name, name)
