"""Registration of the classes of the package, and of classes of users, with Keras."""

from __future__ import annotations

from typing import Any, TypeVar

import keras

from neural_alignment.errors import ArgumentError, Words

PACKAGE = "neural_alignment"
"""Prefix of the registered names in `.keras` files, as in `neural_alignment>Dense`."""

T = TypeVar("T")


def serializable(registered: T) -> T:
    """Decorator: lets Keras load a class or function from a `.keras` file.

    Args:
        registered: the class or function.

    Raises:
        ValueError: if another class or function has its name.
    """
    check_name(registered)
    return keras.saving.register_keras_serializable(package=PACKAGE)(registered)


def check_name(registered: Any) -> None:
    """Checks that no other class or function is registered under the name of this one.

    Keras would load the newer one in its place, also when it copies a model. A class that is defined again, as in a
    notebook, replaces the previous one.

    Args:
        registered: the class or function.

    Raises:
        ValueError: if there is another one.
    """
    name = registered.__name__
    taken = keras.saving.get_custom_objects().get(f"{PACKAGE}>{name}", registered)
    if _origin(taken) != _origin(registered):
        requirement = (
            "of a registered class or function must be one that no other has, because Keras finds it by this name"
        )
        found = Words(f"{'.'.join(_origin(registered))}, and {'.'.join(_origin(taken))} is registered")
        raise ArgumentError("__name__", requirement, found, f"My{name[:1].upper()}{name[1:]}")


def _origin(registered: Any) -> tuple[str, str]:
    return registered.__module__, registered.__qualname__
