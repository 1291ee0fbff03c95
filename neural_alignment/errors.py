"""The errors of the package, and the two forms of their messages.

`WrongValue` describes a wrong value once. Python callers get three sentences (`ArgumentError`), files and the command
line get one line (`InputError`):

    `strides` must be one or two positive integers. Received (2, 2, 2). Example: strides=(2, 2).
    model.strides: must be one or two positive integers; found (2, 2, 2)
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pydantic


@dataclasses.dataclass(frozen=True)
class WrongValue:
    """A value that is not allowed.

    Attributes:
        name: name of the argument, or key path of the option; empty if only the caller knows it.
        requirement: the rest of a sentence that begins with the name, such as "must be positive". It names the allowed
            values.
        found: the value.
        example: a correct argument, for Python callers.
    """

    name: str
    requirement: str
    found: Any
    example: str = ""

    @property
    def sentences(self) -> str:
        """The message for Python callers: requirement, value, example."""
        subject = f"`{self.name}`" if self.name else "The value"
        example = f" Example: {self.example}." if self.example else ""
        return f"{subject} {self.requirement}. Received {self._shown}.{example}"

    @property
    def reason(self) -> str:
        """The message for files and the command line, without the name."""
        written = {None: "null", True: "true", False: "false"}
        plain = self.found is None or isinstance(self.found, bool)
        return f"{self.requirement}; found {written[self.found] if plain else self._shown}"

    @property
    def line(self) -> str:
        """The message for files and the command line."""
        return f"{self.name}: {self.reason}" if self.name else self.reason

    @property
    def _shown(self) -> str:
        return shortened(repr(self.found))


class ArgumentError(ValueError):
    """An argument, or an option of a configuration, has a wrong value.

    Validators and checks of options raise it too. The code that reads a configuration file reports it in one line.

    Args:
        name: name of the argument, or key path of the option, relative to the options being checked.
        requirement: see `WrongValue`.
        found: the value.
        example: a correct argument, such as "strides=(2, 2)".
    """

    def __init__(self, name: str, requirement: str, found: Any, example: str = ""):
        self.value = WrongValue(name, requirement, found, example)
        super().__init__(self.value.sentences)

    def within(self, prefix: str) -> ArgumentError:
        """Returns the error of an option inside of other options.

        Args:
            prefix: key path of the inner options.
        """
        name = ".".join(part for part in (prefix, self.value.name) if part)
        return ArgumentError(name, self.value.requirement, self.value.found, self.value.example)


class InputError(ValueError):
    """The user's input is wrong. The command line prints the message in one line and exits with code 2.

    Args:
        message: the line, or a `WrongValue` from which the line is made.
    """

    def __init__(self, message: str | WrongValue):
        super().__init__(message.line if isinstance(message, WrongValue) else message)


class ConfigError(InputError):
    """A configuration file, or an override of it, is wrong."""


class PluginError(InputError):
    """A plugin, a module outside of the package, is missing or cannot be imported."""


class Unavailable(InputError):  # noqa: N818 - a fact about the environment
    """A required external resource, such as a TPU or the data, is unavailable. The configuration itself is correct."""


class DataError(InputError):
    """The data, or an option of their source, are wrong."""


class DataUnavailable(DataError, Unavailable):  # noqa: N818 - as above
    """The data are missing or cannot be read."""


class RunError(InputError):
    """A run directory is missing, incomplete, or does not fit the command."""


class Diverged(Exception):  # noqa: N818 - a fact about the run
    """J or R is not finite.

    Attributes:
        step: the first global step at which it was not finite.
        layers: the layers whose R_l or weights are not finite; empty if unknown.
    """

    def __init__(self, message: str, step: int, layers: list[str]):
        super().__init__(message)
        self.step = step
        self.layers = layers


class Stopped(Exception):  # noqa: N818 - a fact about the run
    """The run ended before its last step, because of a signal, a full disk, or the end of another worker.

    `--resume` continues the run.

    Attributes:
        state: the state that is written to `status.json`.
    """

    def __init__(self, message: str, state: str = "stopped"):
        super().__init__(message)
        self.state = state


MOST_LISTED = 25
"""The largest number of allowed names that a message lists. Of more names it lists those closest to the value."""


def shortened(text: str, length: int = 200) -> str:
    """Returns `text`, cut to `length` characters with "..." at the end if it is longer."""
    return text if len(text) <= length else f"{text[: length - 3]}..."


def nearest(word: str, allowed: Iterable[str]) -> str:
    """Returns `"; did you mean 'x'?"` with the closest of `allowed`, or an empty string if none is close.

    Upper and lower case are the same. If several are close, one that begins with the word is preferred. A name of which
    the word is an abbreviation of 3 or more letters is close.
    """
    word, names = word.lower(), {each.lower(): each for each in allowed}
    close = difflib.get_close_matches(word, names)
    longer = [each for each in close or (names if len(word) > 2 else ()) if each.startswith(word)]
    return f"; did you mean {names[(longer or close)[0]]!r}?" if longer or close else ""


@dataclasses.dataclass(frozen=True)
class Mistake:
    """The first mistake that pydantic found in plain data.

    Attributes:
        path: key path of the value, or of the key that is missing or unknown; empty for the data as a whole.
        reason: the problem, and the allowed values.
        lookup_path: key path by which to find the file or override at fault. It is `path`, except that a missing key
            is in no file: then it is the key path of the mapping that lacks the key.
        missing: whether a key is missing.
    """

    path: str
    reason: str
    lookup_path: str
    missing: bool = False

    def line(self, origin: str = "") -> str:
        """Returns the problem in one line.

        Args:
            origin: start of the line, which names the file or override that contains the value.
        """
        return " ".join(f"{origin}{self.path}{': ' if self.path else ''}{self.reason}".split())


def first_mistake(error: pydantic.ValidationError, schema: Any, prefix: str = "") -> Mistake:
    """Returns the first mistake that pydantic found. Its reason includes the number of further mistakes.

    Args:
        error: the error that pydantic raised.
        schema: the pydantic model, or type, against which the data were validated.
        prefix: key path of the data within a larger configuration.
    """
    errors = error.errors(include_url=False)
    # An unknown key is often a misspelt required key, which is then also missing. Report the misspelling.
    first = next((each for each in errors if each["type"] == "extra_forbidden"), errors[0])
    keys, _ = _located(schema, first["loc"])
    kind, missing = first["type"], first["type"] in ("missing", "union_tag_not_found")
    cause = first.get("ctx", {}).get("error")
    if kind in ("union_tag_not_found", "union_tag_invalid"):
        keys.append(first["ctx"]["discriminator"].strip("'"))
    elif isinstance(cause, ArgumentError) and cause.value.name:
        keys += cause.value.name.split(".")
    reason = _reason(first)
    if kind == "extra_forbidden":
        _, inside = _located(schema, first["loc"][:-1])
        allowed = sorted(inside["fields"])
        reason += f"; allowed: {', '.join(allowed)}{nearest(str(first['loc'][-1]), allowed)}"
    path = ".".join([*([prefix] if prefix else []), *(shortened(key, 60) for key in keys)])
    more = f" ({len(errors) - 1} more)" if len(errors) > 1 else ""
    return Mistake(path, f"{reason}{more}", path.rpartition(".")[0] if missing else path, missing)


def describe(error: pydantic.ValidationError, schema: Any, prefix: str = "") -> str:
    """Returns the first mistake in one line: key path, found value and allowed values.

    Args:
        error: the error that pydantic raised.
        schema: the pydantic model, or type, against which the data were validated.
        prefix: key path of the data within a larger configuration.
    """
    return first_mistake(error, schema, prefix).line()


def _located(schema: Any, loc: tuple[int | str, ...]) -> tuple[list[str], Any]:
    """Returns the key path of a pydantic location, and the pydantic core schema at that path.

    A location contains keys, indices and the tags of unions. A tag may equal a key (the optimizer `momentum` has a key
    `momentum`), so the schema is needed to distinguish them.
    """
    import pydantic  # Imported here, because the command line imports this module before it shows its help.

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
        else:  # A scalar, or a union without tags: the rest of the location are labels of its members.
            return path, node


def _reason(error: Any) -> str:
    """Returns the requirement and the found value."""
    kind, context = error["type"], error.get("ctx", {})
    if kind in ("missing", "union_tag_not_found"):
        return "this key is required and was not found"
    if kind == "extra_forbidden":
        return "unknown key"
    if kind == "union_tag_invalid":
        tag, allowed = context["tag"], context["expected_tags"].replace("'", "").split(", ")
        found = repr(shortened(tag, 60))
        return f"must be one of {', '.join(allowed)}; found {found}{nearest(tag, allowed)}"
    message = error["msg"].removeprefix("Value error, ")
    if kind == "value_error":
        cause = context.get("error")
        return cause.value.reason if isinstance(cause, ArgumentError) else message
    if kind == "literal_error":
        allowed = context["expected"].replace("'", "").replace(" or ", ", ").split(", ")
        word = str(error["input"])
        if len(allowed) > MOST_LISTED:
            similar = ", ".join(map(repr, difflib.get_close_matches(word, allowed, n=5, cutoff=0.0)))
            message = (
                f"input should be one of {len(allowed)} names, such as {similar}; `neural-alignment schema` lists all"
            )
        elif isinstance(error["input"], str):
            message += nearest(word, allowed)
    return f"{message[0].lower()}{message[1:]}; found {shortened(repr(error['input']), 60)}"
