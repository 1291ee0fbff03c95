"""Options for starting a run from existing weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import pydantic
from pydantic import NonNegativeInt

from neural_alignment.errors import ArgumentError
from neural_alignment.options import Options, PathText


def _known_state(value: Any) -> Any:
    """Checks the state of `InitialState`. The error has one message instead of one per member of the union."""
    is_step = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    if value in (None, "last", "best", "final") or is_step:
        return value
    raise ArgumentError("", "must be 'last', 'best', 'final' or the step of a saved state", value)


class InitialState(Options):
    """Weights of another run or of a saved model, from which a new run starts."""

    path: PathText
    """A run directory, or a .keras file."""
    state: Annotated[
        Literal["last", "best", "final"] | NonNegativeInt | None, pydantic.BeforeValidator(_known_state)
    ] = None
    """State of a run directory: `last` (the default), `best`, `final` for its model.keras, or the step of a saved
    state."""
    optimizer: bool = False
    """Whether the variables of the optimizer and the global step are loaded too, so that the run continues from that
    step; otherwise it starts at step 0."""
    strict: bool = True
    """Whether all weights must match by name and shape. Otherwise weights that do not match keep their initial values
    and are listed."""

    @pydantic.model_validator(mode="after")
    def _check_state(self):
        if self.state is not None and self.path.endswith(".keras"):
            raise ArgumentError("state", "must be null with a .keras file", self.state)
        return self


def _as_initial_state(value: Any) -> Any:
    """Replaces a path by a mapping with the key `path`."""
    if isinstance(value, (Mapping, InitialState)):
        return value
    if isinstance(value, str):
        return {"path": value}
    raise ArgumentError("", "must be a path, or a mapping with the key `path`", value)


AnyInitialState = Annotated[
    InitialState, pydantic.BeforeValidator(_as_initial_state, json_schema_input_type=str | InitialState)
]
"""An initial state, or the path of one."""
