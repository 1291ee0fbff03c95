"""The base of everything that a configuration can say."""

from __future__ import annotations

import pydantic


class Options(pydantic.BaseModel):
    """Typed and immutable; an unknown key, a value of another type, an infinity or a NaN is an error."""

    model_config = pydantic.ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )
