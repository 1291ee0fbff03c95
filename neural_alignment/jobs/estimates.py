"""How long jobs take, estimated from how long they took before."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from neural_alignment.errors import RunError
from neural_alignment.reporting import csv_text, duration, read_csv
from neural_alignment.training import files


@dataclass
class Estimates:
    """Durations of jobs by name.

    Args:
        path: CSV file that gets the durations of the jobs that end; it keeps those of other jobs. Empty for no file.
        committed: another CSV file, which is read before it.
    """

    path: str = ""
    committed: str = ""
    seconds: dict[str, float] = field(init=False)

    def __post_init__(self):
        self.seconds = {}
        for path in filter(None, (self.committed, self.path)):
            try:
                self.seconds |= {row["run"]: float(row["seconds"]) for row in read_csv(path)}
            except (KeyError, TypeError, ValueError):
                raise RunError(f"{path}: must have the columns run and seconds; correct or remove it") from None

    def of(self, name: str) -> float:
        """Returns the seconds of a job; NaN if neither it nor a similar one is known.

        Jobs similar to `resnet18/symmetric/seed2` are the other seeds, or if there are none, all of `resnet18/`.
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
        """Returns the time that jobs take, `slots` at a time, in words."""
        return total_time([self.of(name) for name in names], slots)

    def record(self, name: str, seconds: float) -> None:
        """Remembers how long a job took."""
        self.seconds[name] = seconds
        rows = [{"run": name, "seconds": round(self.seconds[name], 1)} for name in sorted(self.seconds)]
        if self.path:
            files.write_whole(self.path, csv_text(("run", "seconds"), rows))


def total_time(seconds: Sequence[float], slots: int, suffix: str = "") -> str:
    """Returns the sum of the known times in words, and the number of unknown ones.

    Args:
        seconds: of one job each; NaN if unknown.
        slots: jobs at a time.
        suffix: follows the sum.
    """
    known = [each for each in seconds if not math.isnan(each)]
    unknown = len(seconds) - len(known)
    if unknown and not known:
        return "time not known yet"
    text = f"{duration(sum(known) / slots)}{suffix} (estimate)"
    return f"{text} and {unknown} not known yet" if unknown else text
