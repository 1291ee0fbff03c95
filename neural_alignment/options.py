"""The base of everything that a configuration can say."""

from __future__ import annotations

import os
from typing import Annotated, Any

import pydantic

from neural_alignment import paths


def _as_text(path: Any) -> Any:
    return os.fspath(path) if isinstance(path, os.PathLike) else path


PathText = Annotated[str, pydantic.BeforeValidator(_as_text), pydantic.AfterValidator(paths.checked)]
"""A path, or a pattern of paths; `~` is expanded."""


class Options(pydantic.BaseModel):
    """Typed and immutable; an unknown key, a value of another type, an infinity or a NaN is an error."""

    model_config = pydantic.ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )
