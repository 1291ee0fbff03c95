"""The base class of all options in a configuration."""

from __future__ import annotations

import os
from typing import Annotated, Any

import pydantic

from neural_alignment import paths


def _as_text(path: Any) -> Any:
    return os.fspath(path) if isinstance(path, os.PathLike) else path


PathText = Annotated[str, pydantic.BeforeValidator(_as_text), pydantic.AfterValidator(paths.checked)]
"""A path, or a pattern that matches paths; `~` is expanded."""

NumpySeed = Annotated[int, pydantic.Field(ge=0, lt=2**32)]
"""A seed of NumPy's legacy generator, `numpy.random.RandomState`, which takes no other numbers."""


class Options(pydantic.BaseModel):
    """Typed, immutable options. Unknown keys, values of another type, infinities and NaNs are errors."""

    model_config = pydantic.ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )
