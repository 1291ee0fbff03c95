"""What a search keeps: a line of JSON per proposal and per trial that has ended."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

from neural_alignment.errors import RunError
from neural_alignment.search.spaces import Settings
from neural_alignment.training import files


@dataclasses.dataclass(frozen=True)
class Ending:
    """How a trial has ended.

    Attributes:
        state: finished, diverged, failed; or stopped, or unavailable where the data or the TPU could not be had: these
            two are no end, and are never recorded.
        top1: best validation top-1 over the evaluations of a finished run, a fraction.
        reason: why a trial has not finished; one line.
    """

    state: str
    top1: float | None = None
    reason: str | None = None


@dataclasses.dataclass(frozen=True)
class Trial:
    """A trial that has ended: a line of `trials.jsonl`.

    Attributes:
        number: of the trial, from 1 on.
        state: finished, diverged or failed.
        top1: best validation top-1 over the evaluations, a fraction; none where the trial has not finished.
        score: what the search goes by: `top1`; of a diverged trial chance, as in the paper's Figure 3; none where the
            trial has failed, which says nothing of how well its settings learn.
        reason: why it has not finished.
        seconds: how long it took, in its last life where it was interrupted.
        settings: every quantity of the space, drawn, derived and fixed.
    """

    number: int
    state: str
    top1: float | None
    score: float | None
    reason: str | None
    seconds: float
    settings: Settings

    @classmethod
    def ended(cls, number: int, ending: Ending, chance: float, seconds: float, settings: Settings) -> Trial:
        """Returns the record of a trial that has ended."""
        score = chance if ending.state == "diverged" else ending.top1
        return cls(number, ending.state, ending.top1, score, ending.reason, round(seconds, 2), settings)


def best_of(trials: list[Trial]) -> Trial | None:
    """Returns the finished trial with the highest top-1, the earliest of equals; none where none has finished."""
    finished = [trial for trial in trials if trial.top1 is not None]
    return max(finished, key=lambda trial: (trial.top1, -trial.number), default=None)


class Lines:
    """A file with one JSON object per line, each with its checksum. It is replaced in one move at each write.

    Args:
        path: the file, which need not exist yet; may be gs://.

    Raises:
        RunError: if the file cannot be read, or is cut off.
    """

    def __init__(self, path: str):
        self.path = path
        self._text = self._read()

    def _read(self) -> str:
        if not tf.io.gfile.exists(self.path):
            return ""
        try:
            with tf.io.gfile.GFile(self.path, "rb") as file:
                text = file.read().decode()
        except (tf.errors.OpError, UnicodeDecodeError) as error:
            reason = " ".join(str(error).split())[:150]
            raise RunError(f"{self.path}: is damaged: {reason}; restore it") from None
        if text and not text.endswith("\n"):
            raise RunError(f"{self.path}: its last line is cut off; restore it, or remove the line")
        return text

    def rows(self) -> list[dict[str, Any]]:
        """Returns all objects, oldest first.

        Raises:
            RunError: if the file is damaged.
        """
        rows = []
        for number, line in enumerate(self._text.splitlines(), start=1):
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            row = files.unsealed(row)
            if row is None:
                raise RunError(f"{self.path}: line {number} is damaged; restore it, or remove the line")
            rows.append(row)
        return rows

    def append(self, row: Mapping[str, Any]) -> None:
        """Adds one object."""
        text = f"{self._text}{json.dumps(files.sealed(row), allow_nan=False)}\n"
        files.write_whole(self.path, text)
        self._text = text


def read_trials(search_dir: str) -> list[Trial]:
    """Returns the trials of a search that have ended, in the order in which they ended.

    Raises:
        RunError: if the file is damaged or there is none.
    """
    path = tf.io.gfile.join(search_dir, "trials.jsonl")
    if not tf.io.gfile.exists(path):
        raise RunError(f"{search_dir}: is no search directory (no trials.jsonl); give one that `search` has made")
    return [as_trial(row, path) for row in Lines(path).rows()]


def as_trial(row: Mapping[str, Any], path: str) -> Trial:
    """Returns the trial of a line of `trials.jsonl`.

    Raises:
        RunError: if it is not one, or has a value of another type.
    """
    if row.keys() != _TRIAL.keys():
        raise _no_trial(path, row, "is no trial")
    for key, (fits, expected) in _TRIAL.items():
        if not fits(row[key]):
            raise _no_trial(path, row, f"has {key} {json.dumps(row[key])[:40]}; expected {expected}")
    return Trial(**row)


def is_number(value: Any) -> bool:
    """Whether a value is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def is_count(value: Any) -> bool:
    """Whether a value is a whole number from 1 on."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


_TRIAL: dict[str, tuple[Callable[[Any], bool], str]] = {
    "number": (is_count, "a whole number from 1 on"),
    "state": (lambda value: value in ("finished", "diverged", "failed"), "finished, diverged or failed"),
    "top1": (lambda value: value is None or is_number(value), "a number or null"),
    "score": (lambda value: value is None or is_number(value), "a number or null"),
    "reason": (lambda value: value is None or isinstance(value, str), "a text or null"),
    "seconds": (is_number, "a number"),
    "settings": (lambda value: isinstance(value, dict), "a mapping"),
}
"""Key of a trial -> a check of its value, and the allowed values in words."""


def _no_trial(path: str, row: Mapping[str, Any], problem: str) -> RunError:
    return RunError(f"{path}: is damaged: {json.dumps(row)[:80]} {problem}; restore it, or remove the line")
