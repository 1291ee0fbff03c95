"""The errors of the package; `InputError` is the user's to mend: one line on the command line, exit code 2."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pydantic


class InputError(ValueError):
    """The user's input is wrong; its message is one line."""


class ConfigError(InputError):
    """A configuration file, or an override of it, is wrong."""


class Unavailable(InputError):  # noqa: N818 - what happened to the surroundings, not a fault of the input alone
    """A required external resource, such as a TPU or the data, is unavailable; no setting of the run is at fault."""


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


@dataclasses.dataclass(frozen=True)
class Mistake:
    """The first thing that is wrong with plain data, as pydantic found it.

    Attributes:
        path: key path of the value, or of the key that is missing or unknown; empty for the data as a whole.
        reason: the problem, and the allowed values.
        blamed: key path to look for in the files and overrides that the data come from.
        missing: whether a key is missing from the mapping at `blamed`.
    """

    path: str
    reason: str
    blamed: str
    missing: bool = False

    def line(self, origin: str = "") -> str:
        """Returns the problem in one line.

        Args:
            origin: begins the line: the file or override that the value comes from.
        """
        return " ".join(f"{origin}{self.path}{': ' if self.path else ''}{self.reason}".split())


def first_mistake(error: pydantic.ValidationError, schema: Any, prefix: str = "") -> Mistake:
    """Returns the first thing that pydantic found wrong; the reason says how many more there are.

    Args:
        error: what pydantic raised.
        schema: the model, or type of models, that the data were validated by.
        prefix: key path of the data.
    """
    errors = error.errors(include_url=False)
    # An unknown key is most often a misspelt one that is then missing as well: tell the spelling.
    first = next((each for each in errors if each["type"] == "extra_forbidden"), errors[0])
    keys, _ = _located(schema, first["loc"])
    kind, missing = first["type"], first["type"] in ("missing", "union_tag_not_found")
    if kind in ("union_tag_not_found", "union_tag_invalid"):
        keys.append(first["ctx"]["discriminator"].strip("'"))
    reason = _reason(first)
    if kind == "extra_forbidden":
        _, inside = _located(schema, first["loc"][:-1])
        allowed = sorted(inside["fields"])
        reason += f"; allowed: {', '.join(allowed)}{nearest(str(first['loc'][-1]), allowed)}"
    keys = [key if len(key) <= 60 else f"{key[:57]}..." for key in keys]
    path = ".".join([prefix, *keys] if prefix else keys)
    blamed = path.rpartition(".")[0] if missing else path
    if not path:  # Several keys do not fit each other; the message begins with the one to change.
        blamed = reason.split(maxsplit=1)[0].rstrip(":")
    more = f" ({len(errors) - 1} more)" if len(errors) > 1 else ""
    return Mistake(path, f"{reason}{more}", blamed, missing)


def describe(error: pydantic.ValidationError, schema: Any, prefix: str = "") -> str:
    """Returns key path, value found and allowed values in one line. Arguments: see `first_mistake`."""
    return first_mistake(error, schema, prefix).line()


def _located(schema: Any, loc: tuple[int | str, ...]) -> tuple[list[str], Any]:
    """Returns the key path of a pydantic location, and the pydantic core schema at that path.

    A location holds the tags of unions beside keys and indices, and a tag may be spelled as a key is (the optimizer
    `momentum` has a key `momentum`). The schema tells which is which.
    """
    import pydantic  # Not with the module, which the command line imports before it shows its help.

    node, path, rest, definitions = pydantic.TypeAdapter(schema).core_schema, [], list(loc), {}
    while True:
        kind = node["type"]
        if kind == "definitions":
            definitions |= {each["ref"]: each for each in node["definitions"]}
            node = node["schema"]
        elif kind == "definition-ref":
            node = definitions[node["schema_ref"]]
        elif kind in ("model-fields", "list", "dict") and rest:
            key = rest.pop(0)
            path.append(str(key))
            field = node["fields"].get(key) if kind == "model-fields" else None
            inner = field["schema"] if field else node.get("items_schema") or node.get("values_schema")
            if inner is None:
                return path, node
            node = inner
        elif kind == "tagged-union" and rest:
            node = node["choices"][rest.pop(0)]
        elif kind != "tagged-union" and "schema" in node:
            node = node["schema"]
        else:  # A scalar, or a union without tags, whose choices the location tells by labels.
            return path, node


def _reason(error: Any) -> str:
    """Returns what was found and what is allowed."""
    kind, context = error["type"], error.get("ctx", {})
    if kind in ("missing", "union_tag_not_found"):
        return "this key is required and was not found"
    if kind == "extra_forbidden":
        return "unknown key"
    found = repr(error["input"])
    found = found if len(found) <= 60 else f"{found[:57]}..."
    if kind == "union_tag_invalid":
        tag, allowed = context["tag"], context["expected_tags"].replace("'", "").split(", ")
        found = repr(tag if len(tag) <= 60 else f"{tag[:57]}...")
        return f"must be one of {', '.join(allowed)}; found {found}{nearest(tag, allowed)}"
    message = error["msg"].removeprefix("Value error, ")
    if kind == "value_error":
        return message
    if kind == "literal_error" and isinstance(error["input"], str):
        allowed = context["expected"].replace("'", "").replace(" or ", ", ").split(", ")
        message += nearest(error["input"], allowed)
    return f"{message[0].lower()}{message[1:]}; found {found}"
