"""The base class of all options in a configuration."""

from __future__ import annotations

import os
from typing import Annotated, Any

import numpy as np
import pydantic

from neural_alignment import errors, mistakes, paths


def _as_text(path: Any) -> Any:
    return os.fspath(path) if isinstance(path, os.PathLike) else path


PathText = Annotated[str, pydantic.BeforeValidator(_as_text), pydantic.AfterValidator(paths.checked)]
"""A path, or a pattern that matches paths; `~` is expanded."""

NumpySeed = Annotated[int, pydantic.Field(ge=0, lt=2**32)]
"""A seed of NumPy's legacy generator, `numpy.random.RandomState`, which takes no other numbers."""


class _Constructed(type(pydantic.BaseModel)):
    """Reports wrong arguments of constructors in the form of this package. pydantic does not call it for plain data."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        if args:
            found = errors.Words(f"{len(args)} without a name")
            wrong = errors.WrongValue(cls.__name__, "takes its options by name", found, mistakes.constructor(cls))
            raise TypeError(wrong.sentences)
        # Numbers of NumPy are not those of Python for pydantic, but callers compute with them.
        kwargs = {name: value.item() if isinstance(value, np.generic) else value for name, value in kwargs.items()}
        try:
            return super().__call__(**kwargs)
        except pydantic.ValidationError as error:
            raise mistakes.of_constructor(error, cls) from None


class Options(pydantic.BaseModel, metaclass=_Constructed):
    """Typed, immutable options. Unknown keys, values of another type, infinities and NaNs are errors.

    Raises:
        ValueError: if a constructor gets a wrong argument. The message is one line.
    """

    model_config = pydantic.ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )
