"""The records of a search: one line of JSON per proposal, and one per trial that has ended."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

from neural_alignment import files
from neural_alignment.errors import RunError, one_line
from neural_alignment.jobs.ending import Ending, is_number
from neural_alignment.paths import problem_of_file
from neural_alignment.search.spaces import Settings


@dataclasses.dataclass(frozen=True)
class Trial:
    """A trial that has ended: a line of `trials.jsonl`.

    Attributes:
        number: number of the trial, starting at 1.
        state: `"finished"`, `"diverged"` or `"failed"`.
        top1: best validation top-1 accuracy over the evaluations, a fraction; None if the trial did not finish.
        score: the value that the search maximizes: `top1` of a finished trial; chance for a diverged trial, as in
            Figure 3 of Kunin et al.; None for a failed trial, because its settings were not tested.
        reason: why the trial did not finish; None if it did.
        seconds: duration of the trial in seconds; after an interruption, estimated from the part since it was resumed.
        settings: value of every quantity of the space, whether drawn, derived or fixed.
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
        """Returns the record of a trial.

        Args:
            number: number of the trial.
            ending: how it ended.
            chance: score of a diverged trial, a fraction.
            seconds: duration of the trial in seconds.
            settings: its settings.
        """
        score = chance if ending.state == "diverged" else ending.top1
        return cls(number, ending.state, ending.top1, score, ending.reason, round(seconds, 2), settings)


def best_of(trials: list[Trial]) -> Trial | None:
    """Returns the finished trial with the highest top-1, the earliest of equal ones; None if none has finished."""
    finished = [trial for trial in trials if trial.top1 is not None]
    return max(finished, key=lambda trial: (trial.top1, -trial.number), default=None)


class Lines:
    """A file with one JSON object per line, each with a checksum. Every write replaces the whole file atomically.

    Args:
        path: path of the file, which need not exist yet; may be gs://.

    Raises:
        RunError: if the file cannot be read, or its last line is incomplete.
    """

    def __init__(self, path: str):
        self.path = path
        self._text = self._read()

    def _read(self) -> str:
        if not tf.io.gfile.exists(self.path):
            return ""
        if problem := problem_of_file(self.path):
            raise RunError(f"{self.path}: {problem}; restore it")
        try:
            with tf.io.gfile.GFile(self.path, "rb") as file:
                text = file.read().decode()
        except (tf.errors.OpError, UnicodeDecodeError) as error:
            reason = one_line(error, 150)
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
    """Returns the trials of a search in the order in which they ended.

    Raises:
        RunError: if the file is damaged or missing.
    """
    path = tf.io.gfile.join(search_dir, "trials.jsonl")
    if not tf.io.gfile.exists(path):
        raise RunError(f"{search_dir}: is not a search directory (no trials.jsonl); give one that `search` created")
    return [as_trial(row, path) for row in Lines(path).rows()]


def as_trial(row: Mapping[str, Any], path: str) -> Trial:
    """Returns the trial that a line of `trials.jsonl` describes.

    Raises:
        RunError: if a key is missing or unknown, a value has a wrong type, or the results are not those of the state.
    """
    if row.keys() != _TRIAL.keys():
        raise damaged(path, row, "is not a trial")
    for key, (fits, expected) in _TRIAL.items():
        if not fits(row[key]):
            raise damaged(path, row, f"has {key} {json.dumps(row[key])[:40]}; expected {expected}")
    for key in ("top1", "score"):
        if (row[key] is not None) != (key in _RESULTS[row["state"]]):
            expected = "a number" if row[key] is None else "null"
            raise damaged(path, row, f"is {row['state']} and has {key} {json.dumps(row[key])}; expected {expected}")
    return Trial(**row)


def is_count(value: Any) -> bool:
    """Whether a value is a positive integer."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


_RESULTS = {"finished": ("top1", "score"), "diverged": ("score",), "failed": ()}
"""State of a trial -> its results that are known; the others are null. See `Trial`."""

_TRIAL: dict[str, tuple[Callable[[Any], bool], str]] = {
    "number": (is_count, "a positive integer"),
    "state": (lambda value: isinstance(value, str) and value in _RESULTS, "finished, diverged or failed"),
    "top1": (lambda value: value is None or is_number(value), "a number or null"),
    "score": (lambda value: value is None or is_number(value), "a number or null"),
    "reason": (lambda value: value is None or isinstance(value, str), "a string or null"),
    "seconds": (is_number, "a number"),
    "settings": (lambda value: isinstance(value, dict), "a mapping"),
}
"""Key of a trial -> check of its value, and the allowed values in words."""


def damaged(path: str, row: Mapping[str, Any], problem: str) -> RunError:
    """Returns the error of a wrong line.

    The line may be removed: the ledger takes the settings of a trial that has ended from either file, draws the trial
    again if it is in neither, and reads the result from the run directory.
    """
    return RunError(f"{path}: is damaged: {json.dumps(row)[:80]} {problem}; restore it, or remove the line")
