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
from typing import Any


class Words(str):
    """Describes a found value in words. Messages show it without quotes."""

    def __repr__(self) -> str:
        return str(self)


@dataclasses.dataclass(frozen=True)
class WrongValue:
    """A value that is not allowed.

    Attributes:
        name: name of the argument, or key path of the option; empty if only the caller knows it.
        requirement: the rest of a sentence that begins with the name, such as "must be positive". It names the allowed
            values.
        found: the value, or `Words` about it.
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
        return f"{subject} {self.requirement}. Received {shortened(repr(self.found))}.{example}"

    @property
    def reason(self) -> str:
        """The message for files and the command line, without the name."""
        return f"{self.requirement}; found {shortened(as_written(self.found))}"

    @property
    def line(self) -> str:
        """The message for files and the command line."""
        return f"{self.name}: {self.reason}" if self.name else self.reason


class ArgumentError(ValueError):
    """An argument, or an option of a configuration, has a wrong value.

    Validators and checks of options raise it too. The code that reads a configuration file reports it in one line.

    Args:
        name: name of the argument, or key path of the option, relative to the options being checked.
        requirement: see `WrongValue`.
        found: the value.
        example: a correct argument, such as "strides=(2, 2)".

    Attributes:
        value: the parts of the message; None if Keras made the error. To an error in the call of a layer it adds the
            arguments of the call, by another error of the same class with only a message.
    """

    def __init__(self, name: str, requirement: str | None = None, found: Any = None, example: str = ""):
        self.value = None if requirement is None else WrongValue(name, requirement, found, example)
        super().__init__(name if self.value is None else self.value.sentences)

    def within(self, prefix: str) -> ArgumentError:
        """Returns the error of an option inside of other options.

        Args:
            prefix: key path of the inner options.
        """
        name = ".".join(part for part in (prefix, self.value.name) if part)
        return ArgumentError(name, self.value.requirement, self.value.found, self.value.example)


class InputError(ValueError):
    """The user's input is wrong. The command line prints the message in one line and exits with code 2, or with 4 if
    something is `Unavailable`.

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
    """A required external resource, such as a TPU or the data, is unavailable. The configuration itself is correct.

    The command line exits with code 4, because the same command can succeed later.
    """


class TPUUnavailable(Unavailable):
    """A TPU cannot be reached."""


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

    The message has two parts, because a command that started the run as one of several continues in another way.

    Attributes:
        reason: the reason why the run ended, and the step that was saved, if one was.
        remedy: how the command that raises the error continues; None if the reason says it.
        state: the state that is written to `status.json`.
    """

    def __init__(self, reason: str, remedy: str | None = None, state: str = "stopped"):
        super().__init__(reason if remedy is None else f"{reason}; {remedy}")
        self.reason = reason
        self.remedy = remedy
        self.state = state


def shortened(text: str, length: int = 200) -> str:
    """Returns `text`, cut to `length` characters with "..." at the end if it is longer."""
    return text if len(text) <= length else f"{text[: length - 3]}..."


def one_line(error: BaseException | str, length: int | None = 200) -> str:
    """Returns the message of an error as one line, without TensorFlow's stack; its class if it has no message.

    Args:
        error: the error, or a message.
        length: the largest number of characters; `None`: the line is not cut.
    """
    line = " ".join(str(getattr(error, "message", None) or error).split()) or type(error).__name__
    return line if length is None else shortened(line, length)


def as_written(value: Any) -> str:
    """Returns a value as in a file or on the command line: null, true and false, and mappings such as {a: 1}."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return f"[{', '.join(map(as_written, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {as_written(each)}' for key, each in value.items())}}}"
    return repr(value)


def nearest(word: str, allowed: Iterable[str]) -> str:
    """Returns `"; did you mean 'x'?"` with the closest of `allowed`, or an empty string if none is close.

    Upper and lower case are the same. If several are close, one that begins with the word is preferred, or one that
    contains it. A name that begins with, or contains, a word of 3 or more letters is close.
    """
    word, names = word.lower(), {each.lower(): each for each in allowed}
    close = difflib.get_close_matches(word, names)
    longer = [each for each in close or (names if len(word) > 2 else ()) if each.startswith(word)]
    if not longer and len(word) > 2:
        longer = difflib.get_close_matches(word, [each for each in names if word in each], n=1, cutoff=0.0)
    return f"; did you mean {names[(longer or close)[0]]!r}?" if longer or close else ""
