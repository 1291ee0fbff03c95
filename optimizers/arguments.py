"""Checks of the arguments of the constructors in this package."""

from __future__ import annotations

import math
import numbers
import operator
from typing import Any

import keras
import numpy as np


def integer(name: str, value: Any, example: int, least: int | None = None, optional: bool = False) -> Any:
    """Returns an argument that must be an integer; integers of NumPy are converted.

    Args:
        name: name of the argument.
        value: its value.
        example: a correct value, for the message.
        least: the smallest allowed value, if there is one.
        optional: whether None is allowed.

    Raises:
        ValueError: if it is not an integer, which a boolean is not here, or is too small.
    """
    if optional and value is None:
        return None
    try:
        # `operator.index` would make a plain integer of a subclass, such as a seed that graphs read from a variable.
        found = value if isinstance(value, int) else operator.index(value)
    except TypeError:
        found = None
    is_boolean = isinstance(value, (bool, np.bool_))  # NumPy 1 makes an index of its booleans too.
    if found is None or is_boolean or (least is not None and found < least):
        allowed = "" if least is None else f" of at least {least}"
        raise ValueError(
            f"`{name}` must be an integer{allowed}{' or None' if optional else ''}. Received {value!r}. "
            f"Example: {name}={example!r}."
        )
    return found


def is_number(value: Any) -> bool:
    """Returns whether a value is a finite real number of Python or NumPy; a boolean is not a number here."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # A larger integer than the largest float.
        return False


def plain(value: Any) -> int | float:
    """Returns a number as a Python number, which can be saved as JSON."""
    return value if type(value) in (int, float) else float(value)


def number(
    name: str,
    value: Any,
    example: float,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
) -> int | float:
    """Returns an argument that must be a finite real number; numbers of NumPy are converted.

    Args:
        name: name of the argument.
        value: its value.
        example: a correct value, for the message.
        least: the smallest allowed value, if there is one.
        above: a limit that the value must exceed, if there is one.
        most: the largest allowed value, if there is one.
        below: a limit that the value must not reach, if there is one.

    Raises:
        ValueError: if it is not a number, which a boolean is not here, if it is not finite, or if it is out of range.
    """
    limits = [
        (words, holds, limit)
        for words, holds, limit in (
            ("at least", operator.ge, least),
            ("greater than", operator.gt, above),
            ("at most", operator.le, most),
            ("less than", operator.lt, below),
        )
        if limit is not None
    ]
    if not is_number(value) or not all(holds(value, limit) for _, holds, limit in limits):
        allowed = " and ".join(f"{words} {limit}" for words, _, limit in limits)
        raise ValueError(
            f"`{name}` must be a finite number{allowed and f', {allowed}'}. Received {value!r}. "
            f"Example: {name}={example!r}."
        )
    return plain(value)


def base_rate(value: Any) -> Any:
    """Returns the argument `learning_rate` of a schedule: a finite number, or a variable of Keras.

    Raises:
        ValueError: if it is neither.
    """
    return value if isinstance(value, keras.Variable) else number("learning_rate", value, 0.1)


def flag(name: str, value: Any) -> bool:
    """Returns an argument that must be a boolean; booleans of NumPy are converted.

    Raises:
        ValueError: if it is not a boolean. Texts such as "false" would be true.
    """
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"`{name}` must be True or False. Received {value!r}. Example: {name}=True.")
    return bool(value)


_NUMBERS = {
    "weight_decay": 1e-4,
    "clipnorm": 1.0,
    "clipvalue": 1.0,
    "global_clipnorm": 1.0,
    "loss_scale_factor": 1024.0,
}
"""Arguments of `keras.optimizers.Optimizer` that are numbers or None, each with a correct value."""

_INTEGERS = ("gradient_accumulation_steps", "ema_overwrite_frequency")
"""Arguments of `keras.optimizers.Optimizer` that are integers or None."""


def keras_arguments(learning_rate: Any, options: dict[str, Any]) -> dict[str, Any]:
    """Checks arguments that are passed to `keras.optimizers.Optimizer`, as far as Keras does not.

    Keras stores most of them without a check. A wrong one fails in the first step, or has no effect, as NaN in
    `clipnorm`. Values with which Keras works are allowed, for example a negative learning rate.

    Args:
        learning_rate: the argument `learning_rate`.
        options: the other arguments, by name.

    Returns:
        The arguments in `options`, with Python numbers in place of those of NumPy.

    Raises:
        ValueError: if an argument has a value with which no step works.
    """
    if isinstance(learning_rate, type):  # Keras would call it as a function without arguments.
        raise ValueError(
            "`learning_rate` must be a float, a learning-rate schedule or a function without arguments. "
            f"Received {learning_rate!r}. Example: learning_rate=0.1."
        )
    if isinstance(learning_rate, float):  # Keras refuses other numbers.
        number("learning_rate", learning_rate, 0.1)
    checked = dict(options)
    for name, value in options.items():
        is_tensor = hasattr(value, "dtype") and not isinstance(value, numbers.Real)
        if isinstance(value, bool) or is_tensor:
            continue  # Keras treats False as None and True as 1.
        if name == "ema_momentum" and options.get("use_ema"):
            checked[name] = number(name, value, 0.99)
        elif name in _NUMBERS and value is not None and not (name == "clipvalue" and value == math.inf):
            checked[name] = number(name, value, _NUMBERS[name])
        elif name in _INTEGERS:
            checked[name] = integer(name, value, 2, optional=True)
    return checked
