"""The base of everything that a configuration can say."""

from __future__ import annotations

from typing import Annotated

import pydantic

from neural_alignment import paths

PathText = Annotated[str, pydantic.AfterValidator(paths.checked)]
"""A path, or a pattern of paths; `~` is expanded."""


class Options(pydantic.BaseModel):
    """Typed and immutable; an unknown key, a value of another type, an infinity or a NaN is an error."""

    model_config = pydantic.ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )
