"""The errors of the package; `InputError` is the user's to mend: one line on the command line, exit code 2."""

from __future__ import annotations

import difflib
import typing
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pydantic


class InputError(ValueError):
    """The user's input is wrong; its message is one line."""


class ConfigError(InputError):
    """A configuration file, or an override of it, is wrong."""


class Unavailable(InputError):  # noqa: N818 - what happened to the surroundings, not a fault of the input alone
    """What a run needs of its surroundings is not to be had: its TPU, its data; no setting of the run is at fault."""


class DataError(InputError):
    """The data, or an option of how to read it, is wrong."""


class DataUnavailable(DataError, Unavailable):  # noqa: N818 - as above
    """The data are not there, or cannot be read."""


class RunError(InputError):
    """A run directory is missing, incomplete, or does not fit what is asked of it."""


class Diverged(Exception):  # noqa: N818 - what happened to the run, not a fault of the program
    """J or R is not finite.

    Attributes:
        step: the first global step at which it was not.
        layers: the layers whose R_l it was, or where the weights have gone; empty where it is not known.
    """

    def __init__(self, message: str, step: int, layers: list[str]):
        super().__init__(message)
        self.step = step
        self.layers = layers


class Stopped(Exception):  # noqa: N818 - what happened to the run, not a fault of the program
    """The run ended in order before its last step: a signal, a full disk, another worker's end; `--resume` goes on.

    Attributes:
        state: what `status.json` says of the run.
    """

    def __init__(self, message: str, state: str = "stopped"):
        super().__init__(message)
        self.state = state


def nearest(word: str, allowed: Iterable[str]) -> str:
    """Returns `"; did you mean 'x'?"` for the closest of `allowed`, or nothing where none is close.

    Of those that are close, one that begins with the word is closest.
    """
    close = difflib.get_close_matches(word, list(allowed))
    longer = [each for each in close if each.startswith(word)]
    return f"; did you mean {(longer or close)[0]!r}?" if close else ""


def describe(error: pydantic.ValidationError, data: Any, schema: Any, prefix: str = "") -> str:
    """Says in one line what is wrong with `data`: the key path, what was found, what is allowed.

    Args:
        error: what pydantic raised; the first of its errors is told, and how many more there are.
        data: the plain data that was validated.
        schema: the model, or type of models, that it was validated by.
        prefix: key path of `data` itself.
    """
    errors = error.errors(include_url=False)
    # An unknown key is most often a misspelt one that is then missing as well: tell the spelling.
    first = next((each for each in errors if each["type"] == "extra_forbidden"), errors[0])
    path = _key_path(first["loc"], data, first["type"])
    where = ".".join([prefix, *path] if prefix else path)
    line = f"{where}: {_reason(first)}" if where else _reason(first)
    if first["type"] == "extra_forbidden":
        allowed = sorted(_allowed_keys(schema, first["loc"][:-1]))
        line += f"; allowed: {', '.join(allowed)}{nearest(str(first['loc'][-1]), allowed)}"
    more = f" ({len(errors) - 1} more)" if len(errors) > 1 else ""
    return " ".join(f"{line}{more}".split())


def _models(annotation: Any) -> list[Any]:
    """Returns the pydantic models inside a type annotation: of unions, lists and annotated types."""
    if hasattr(annotation, "model_fields"):
        return [annotation]
    return [model for argument in typing.get_args(annotation) for model in _models(argument)]


def _tags(model: Any) -> set[Any]:
    """Returns the words that a model's literal fields may be, by which a union tells it from the others."""
    fields = model.model_fields.values()
    return {word for field in fields for word in typing.get_args(field.annotation) if isinstance(word, str)}


def _allowed_keys(schema: Any, loc: tuple[int | str, ...]) -> set[str]:
    """Returns the keys that may stand at `loc`, a location as pydantic gives it, union tags included."""
    models = _models(schema)
    for key in loc:
        if isinstance(key, int):
            continue
        inner = [
            model
            for parent in models
            if key in parent.model_fields
            for model in _models(parent.model_fields[key].annotation)
        ]
        tagged = [model for model in models if key in _tags(model)]
        models = inner or tagged or models
    return {name for model in models for name in model.model_fields}


def _key_path(loc: tuple[int | str, ...], data: Any, kind: str) -> list[str]:
    """Keeps of pydantic's location what stands in the data: the tags of unions do not."""
    path = []
    for position, key in enumerate(loc):
        inside = (isinstance(data, dict) and key in data) or (
            isinstance(data, list) and isinstance(key, int) and key < len(data)
        )
        if inside:
            data = data[key]
        if inside or (kind == "missing" and position == len(loc) - 1):
            path.append(str(key))
    return path


def _reason(error: Any) -> str:
    """Returns what was found and what is allowed."""
    kind, context = error["type"], error.get("ctx", {})
    if kind == "missing":
        return "this key is required and was not found"
    if kind == "extra_forbidden":
        return "unknown key"
    found = repr(error["input"])
    found = found if len(found) <= 60 else f"{found[:57]}..."
    if kind == "union_tag_not_found":
        return f"the key {context['discriminator']} is required and was not found"
    if kind == "union_tag_invalid":
        tag, allowed = context["tag"], context["expected_tags"].replace("'", "").split(", ")
        return f"{context['discriminator']} is {tag!r}; allowed: {', '.join(allowed)}{nearest(tag, allowed)}"
    message = error["msg"].removeprefix("Value error, ")
    if kind == "value_error":
        return message
    if kind == "literal_error" and isinstance(error["input"], str):
        allowed = context["expected"].replace("'", "").replace(" or ", ", ").split(", ")
        message += nearest(error["input"], allowed)
    return f"{message[0].lower()}{message[1:]}; found {found}"
