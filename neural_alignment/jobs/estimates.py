"""Estimates the durations of jobs from earlier jobs, and of running jobs from their progress."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from neural_alignment import files
from neural_alignment.errors import InputError, RunError
from neural_alignment.jobs.job import Job
from neural_alignment.reporting import csv_text, duration, read_csv


@dataclass
class Estimates:
    """Durations of jobs by name.

    Args:
        path: CSV file that is read, and to which the durations of further jobs are written. Empty: no file.
        committed: another CSV file, which is only read; entries of `path` take precedence. Empty: no file.

    Attributes:
        seconds: name of a job -> its duration in seconds.

    Raises:
        RunError: if a file cannot be read or has other columns.
    """

    path: str = ""
    committed: str = ""
    seconds: dict[str, float] = field(init=False)
    _own: dict[str, float] = field(init=False, repr=False)

    def __post_init__(self):
        self._own = _read(self.path)
        self.seconds = _read(self.committed) | self._own

    def of(self, name: str) -> float:
        """Returns the expected duration of a job in seconds: the known one, or the mean of similar jobs, or NaN.

        Jobs similar to `resnet18/symmetric/seed2` are its other seeds or, if there are none, all of `resnet18/`.
        """
        if name in self.seconds:
            return self.seconds[name]
        folders = name.split("/")[:-1]
        for depth in range(len(folders), 0, -1):
            prefix = "".join(f"{folder}/" for folder in folders[:depth])
            similar = [seconds for other, seconds in self.seconds.items() if other.startswith(prefix)]
            if similar:
                return sum(similar) / len(similar)
        return math.nan

    def describe(self, names: Sequence[str], slots: int) -> str:
        """Returns in words how long the named jobs will take if `slots` of them run at a time."""
        return total_time([self.of(name) for name in names], slots)

    def record(self, name: str, seconds: float) -> None:
        """Stores how long a job took, also in the file `path`."""
        self.seconds[name] = self._own[name] = seconds
        rows = [{"run": name, "seconds": round(self._own[name], 1)} for name in sorted(self._own)]
        if self.path:
            files.write_whole(self.path, csv_text(("run", "seconds"), rows))


@dataclass(frozen=True)
class Begun:
    """When a job began, and how much of it an earlier process had done before it was interrupted.

    Attributes:
        moment: the time, by `time.monotonic`.
        done: the fraction that had been done, 0 to 1.
    """

    moment: float
    done: float = 0.0

    @classmethod
    def now(cls, job: Job) -> Begun:
        """Returns the beginning of a job that begins now."""
        done = 0.0
        with contextlib.suppress(InputError):  # The job will report the problem.
            done = job.progress() if job.resumes else 0.0
        return cls(time.monotonic(), done)

    @property
    def seconds(self) -> float:
        """The seconds since the job began."""
        return time.monotonic() - self.moment

    @property
    def whole(self) -> float:
        """The duration of the whole job if it ends now; an estimate if a part was done before."""
        return self.seconds / (1 - self.done) if self.done < 1 else self.seconds

    def left(self, done: float, expected: float) -> float:
        """Returns the number of seconds left.

        Args:
            done: the fraction that is done now.
            expected: expected duration of the whole job in seconds, which is used before there is progress.
        """
        if done > self.done:
            return self.seconds * (1 - done) / (done - self.done)
        return max(expected * (1 - self.done) - self.seconds, 0.0)


@dataclass(frozen=True)
class Active:
    """A job that has been taken.

    Attributes:
        job: the job.
        begun: its beginning; None while it waits on a cluster.
        title: how a person would call it. Default: its name.
    """

    job: Job
    begun: Begun | None
    title: str = ""

    @property
    def seconds(self) -> float:
        """The seconds since the job began."""
        return 0.0 if self.begun is None else self.begun.seconds

    @property
    def whole(self) -> float:
        """As `Begun.whole`; 0 if the job has not begun."""
        return 0.0 if self.begun is None else self.begun.whole


def progress_of(
    active: Sequence[Active], waiting: Sequence[float], expected: Callable[[str], float], slots: int, all_of_them: str
) -> str:
    """Returns one line with the progress and the time left of each running job, and the time left of all jobs.

    Args:
        active: the jobs that have been taken.
        waiting: expected durations in seconds of the jobs that have not been taken; NaN if unknown.
        expected: returns the expected duration of a job from its name.
        slots: number of jobs at a time.
        all_of_them: name of all jobs, such as "all trials".
    """
    parts, remaining = [], list(waiting)
    for each in active:
        left = expected(each.job.name)
        if each.begun is not None:
            done = each.begun.done
            with contextlib.suppress(InputError):  # The job will report the problem.
                done = each.job.progress()
            left = each.begun.left(done, left)
            parts.append(f"{each.title or each.job.name} {100 * done:.0f} %, {duration(left)} left")
        remaining.append(left)
    total = f"{all_of_them}: {total_time(remaining, slots, ' left')}"
    return f"{'; '.join(parts)} | {total}" if parts else total


def _read(path: str) -> dict[str, float]:
    """Returns the durations in a file; none if there is no file."""
    try:
        return {row["run"]: float(row["seconds"]) for row in read_csv(path)} if path else {}
    except (KeyError, TypeError, ValueError):
        raise RunError(f"{path}: must have the columns run and seconds; correct or remove it") from None


def total_time(seconds: Sequence[float], slots: int, suffix: str = "") -> str:
    """Returns in words the total time of some jobs, and the number of jobs of unknown duration.

    The time is at least that of the longest job, however many slots there are.

    Args:
        seconds: duration of each job; NaN if unknown.
        slots: number of jobs at a time.
        suffix: text after the time.
    """
    known = [each for each in seconds if not math.isnan(each)]
    unknown = len(seconds) - len(known)
    if unknown and not known:
        return "time not known yet"
    text = f"{duration(max(sum(known) / slots, max(known, default=0.0)))}{suffix} (estimate)"
    return f"{text} and {unknown} not known yet" if unknown else text
