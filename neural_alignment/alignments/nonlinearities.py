"""The nonlinearities of Keras: layers, and the operations that functions of `keras.ops` create in a graph."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

import keras

from neural_alignment.keras_internals import creator

_log = logging.getLogger(__name__)

ActivationArgument = str | dict | Callable[[Any], Any] | None
"""A nonlinearity as an argument of a layer: a name of Keras, a layer in serialised form, or a function."""

_LAYERS = {
    "relu": lambda: keras.layers.ReLU(),
    "relu6": lambda: keras.layers.ReLU(max_value=6.0),
    "leaky_relu": lambda: keras.layers.LeakyReLU(negative_slope=0.2),
    "elu": lambda: keras.layers.ELU(),
    "softmax": lambda: keras.layers.Softmax(),
}
"""Name of an activation -> the layer that computes it."""

_FUNCTIONS = (
    "celu", "elu", "exp", "gelu", "glu", "hard_shrink", "hard_sigmoid", "hard_silu", "hard_tanh",
    "leaky_relu", "log_sigmoid", "log_softmax", "relu", "relu6", "selu", "sigmoid", "silu", "soft_shrink",
    "softmax", "softplus", "softsign", "sparse_plus", "sparse_sigmoid", "sparsemax", "squareplus", "tanh",
    "tanh_shrink", "threshold",
)  # fmt: skip
"""Names of nonlinearities in `keras.ops`. Some are missing in some versions of Keras."""

_ARGUMENTS = {"gelu": {"approximate": False}, "threshold": {"threshold": 0.0, "default_value": 0.0}}
"""Arguments of a function that it needs, or with which it computes the activation of its name."""

_NAMES = {"exp": "exponential", "glu": None, "threshold": None}
"""Names of activations that differ from that of the function. None: it halves the units, or has no default."""


def is_nonlinearity(operation: Any) -> bool:
    """Returns whether an operation is a nonlinearity and nothing else."""
    kinds = keras.layers.Activation, keras.layers.PReLU, *(type(each) for each, _ in _operations())
    linear = getattr(operation, "activation", None) is keras.activations.linear
    return isinstance(operation, kinds) and not linear


def argument_of(operation: Any) -> ActivationArgument:
    """Returns a nonlinearity as an argument of a layer: its name if it has one.

    Returns None for other operations, and if the options of an operation match no named one.
    """
    if isinstance(operation, keras.layers.Activation):
        function = operation.activation
        if isinstance(function, keras.layers.Layer):  # It may have weights, which must not be shared.
            return keras.activations.serialize(function)
        name = getattr(function, "__name__", None)
        return name if name and getattr(keras.activations, name, None) is function else function
    named = [(each, name) for each, name in _operations() if name is not None and type(each) is type(operation)]
    for each, name in named:
        if _options(each) == _options(operation):
            return name
    if named:
        _log.warning(
            "%s %r has options that no named activation has: rules with `relu: true` ignore this nonlinearity",
            type(operation).__name__,
            operation.name,
        )
    return None


@functools.cache
def _operations() -> list[tuple[Any, str | None]]:
    """Returns an operation of each kind, and the name of the activation that it computes, if it has one."""
    symbolic = keras.KerasTensor((None, 2))
    functions = [
        (creator(getattr(keras.ops, name)(symbolic, **_ARGUMENTS.get(name, {}))), _NAMES.get(name, name))
        for name in _FUNCTIONS
        if hasattr(keras.ops, name)
    ]
    return [
        *((make(), name) for name, make in _LAYERS.items()),
        *((operation, name if hasattr(keras.activations, str(name)) else None) for operation, name in functions),
        (creator(keras.activations.relu(symbolic)), "relu"),  # Its class differs from that of `keras.ops.relu`.
    ]


def _options(operation: Any) -> dict[str, Any]:
    """Returns the configuration of an operation without name, dtype and `trainable`."""
    config = operation.get_config() if hasattr(operation, "get_config") else {}
    return {key: value for key, value in config.items() if key not in ("name", "dtype", "trainable")}
