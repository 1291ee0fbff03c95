"""Options of the other optimizers of Keras, made from their signatures."""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection
from typing import Annotated, Any, Literal

import keras
import pydantic
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

from neural_alignment.errors import ArgumentError
from neural_alignment.optimization.base import Fraction, OptimizerOptions

WITHOUT_FLOAT64 = {"muon"}
"""Optimizers that multiply weights of float64 by a number of float32, which TensorFlow refuses."""


def options_of_others(names: Collection[str]) -> dict[str, type[OptimizerOptions]]:
    """Returns the options of every public optimizer of the installed Keras, by its name in lower case.

    Args:
        names: names that are left out.
    """
    return {name: _from_signature(name, kind) for name, kind in _KERAS_OPTIMIZERS.items() if name not in names}


def _pattern(text: str) -> str:
    """Checks a regular expression."""
    try:
        re.compile(text)
    except re.error as error:
        raise ArgumentError("", f"must be a regular expression ({error})", text) from None
    return text


_ARGUMENT_TYPES = {
    r"(adam_)?beta_\d": Fraction,
    r"momentum|rho": Fraction,
    r"epsilon(_\d)?": PositiveFloat,
    r"(\w+_)?weight_decay": NonNegativeFloat,
    r"adam_lr_ratio": NonNegativeFloat,  # Its default is an integer.
    r"clip_threshold": PositiveFloat,
    r"ns_steps": PositiveInt,
    r"exclude_layers": list[Annotated[str, pydantic.AfterValidator(_pattern)]] | None,
}
"""Types of arguments that Keras does not check, or whose default does not tell the type."""


class _NotInitialized(keras.optimizers.Optimizer):
    """Takes the place of Keras' base class, so that an optimizer can check its arguments without creating variables.

    To create one would initialise TensorFlow's devices, which a run still has to set up.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        vars(self).update(kwargs)

    def __setattr__(self, name: str, value: Any) -> None:
        vars(self)[name] = value  # Keras would track it, as variables.


def _is_named(kind: Any) -> bool:
    """Whether a public name of Keras is an optimizer for one loss: one that updates variables by a learning rate."""
    base = keras.optimizers.Optimizer
    if not (isinstance(kind, type) and issubclass(kind, base)) or kind.update_step is base.update_step:
        return False  # The abstract one, or one that passes the update on.
    if "_should_use_adamw" in kind.update_step.__code__.co_names:
        return False  # Muon of Keras 3.10 asks TensorFlow's variable for its path there, and fails.
    return "learning_rate" in inspect.signature(kind).parameters


_KERAS_OPTIMIZERS = {name.lower(): kind for name, kind in sorted(vars(keras.optimizers).items()) if _is_named(kind)}
_SHARED_ARGUMENTS = set.intersection(*(set(inspect.signature(kind).parameters) for kind in _KERAS_OPTIMIZERS.values()))
"""Arguments that every optimizer of Keras has; see `OptimizerOptions`."""


def _from_signature(name: str, kind: type[keras.optimizers.Optimizer]) -> type[OptimizerOptions]:
    """Returns an options class with the arguments of an optimizer of Keras, their types and defaults.

    The checks of Keras' constructor are made here for one argument at a time, so that the message names its key.
    """
    probe = type(kind.__name__, (kind, _NotInitialized), {})
    fields: dict[str, Any] = {"name": (Literal[name], ...)}
    for parameter in inspect.signature(kind).parameters.values():
        default, key = parameter.default, parameter.name
        if parameter.kind is not parameter.POSITIONAL_OR_KEYWORD or key in _SHARED_ARGUMENTS - {"weight_decay"}:
            continue
        annotation = next(
            (each for pattern, each in _ARGUMENT_TYPES.items() if re.fullmatch(pattern, key)), type(default)
        )
        # A `weight_decay` of None by default is that of the base class; no type is known of another None.
        if annotation is type(None) or (key == "weight_decay" and default is None):
            continue
        fields[key] = (Annotated[annotation, pydantic.AfterValidator(_checked_by(probe, key))], default)
    document = f"{kind.__name__} of Keras."
    options = pydantic.create_model(
        kind.__name__, __base__=OptimizerOptions, __module__=__name__, __doc__=document, **fields
    )
    options.optimizer = kind
    options.supports_float64 = name not in WITHOUT_FLOAT64
    return options


def _checked_by(probe: type[keras.optimizers.Optimizer], key: str) -> Any:
    """Returns a validator of one argument that raises the error of the optimizer's constructor."""

    def check(value: Any) -> Any:
        probe(**{key: value})
        return value

    return check
