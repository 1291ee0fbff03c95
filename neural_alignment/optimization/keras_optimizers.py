"""Options of the less common optimizers of Keras, made from the signatures of their constructors."""

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
from optimizers.keras_internals import reads_paths

WITHOUT_FLOAT64 = {"muon"}
"""Optimizers that multiply float64 weights by a float32 number, which TensorFlow does not allow."""


def options_of_others(names: Collection[str]) -> dict[str, type[OptimizerOptions]]:
    """Returns an options class for each public optimizer of the installed Keras, by its name in lower case.

    Args:
        names: names of optimizers to omit.
    """
    return {name: _from_signature(name, kind) for name, kind in _KERAS_OPTIMIZERS.items() if name not in names}


def _pattern(text: str) -> str:
    """Returns `text` if it is a valid regular expression; otherwise raises an `ArgumentError`."""
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
"""Types by patterns of argument names: of arguments that Keras does not check, or whose default has another type."""


class _NotInitialized(keras.optimizers.Optimizer):
    """Replaces Keras' base class, so that an optimizer can check its arguments without creating variables.

    Creating a variable would initialise TensorFlow's devices before the run has configured them.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        vars(self).update(kwargs)

    def __setattr__(self, name: str, value: Any) -> None:
        vars(self)[name] = value  # Without Keras' tracking of variables.


def _is_named(kind: Any) -> bool:
    """Returns whether a public object of Keras is an optimizer that updates variables with a learning rate."""
    base = keras.optimizers.Optimizer
    if not (isinstance(kind, type) and issubclass(kind, base)) or kind.update_step is base.update_step:
        return False  # The abstract base class, or a wrapper that delegates the update.
    return not reads_paths(kind) and "learning_rate" in inspect.signature(kind).parameters


_KERAS_OPTIMIZERS = {name.lower(): kind for name, kind in sorted(vars(keras.optimizers).items()) if _is_named(kind)}
_SHARED_ARGUMENTS = set.intersection(*(set(inspect.signature(kind).parameters) for kind in _KERAS_OPTIMIZERS.values()))
"""Arguments that every optimizer of Keras has; see `OptimizerOptions`."""


class _OptionsFromSignature(OptimizerOptions, use_attribute_docstrings=False):
    """Base of the options classes that are made at run time.

    They have no source with docstrings. Pydantic would search for one in all loaded modules, which takes seconds.
    """


def _from_signature(name: str, kind: type[keras.optimizers.Optimizer]) -> type[OptimizerOptions]:
    """Returns an options class with the arguments of an optimizer of Keras, their types and defaults.

    Keras' constructor checks each argument separately, so that the error message can name the key.
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
        # A `weight_decay` with the default None is that of the base class. Other defaults None have an unknown type.
        if annotation is type(None) or (key == "weight_decay" and default is None):
            continue
        described = pydantic.Field(description=f"Argument of `keras.optimizers.{kind.__name__}`.")
        fields[key] = (Annotated[annotation, pydantic.AfterValidator(_checked_by(probe, key)), described], default)
    document = f"{kind.__name__} of Keras."
    options = pydantic.create_model(
        kind.__name__, __base__=_OptionsFromSignature, __module__=__name__, __doc__=document, **fields
    )
    options.optimizer = kind
    options.supports_float64 = name not in WITHOUT_FLOAT64
    return options


def _checked_by(probe: type[keras.optimizers.Optimizer], key: str) -> Any:
    """Returns a validator that passes one argument to the optimizer's constructor, which raises if it is wrong."""

    def check(value: Any) -> Any:
        probe(**{key: value})
        return value

    return check
