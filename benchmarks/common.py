"""Common parts of the benchmarks: stored samples, interleaved rounds, medians, tables.

The speed of a machine drifts, but the ratio of two consecutive steps hardly does. Each round therefore runs one step of
every contender in turn, and a result is the median over rounds of the ratios within a round.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import platform
import statistics
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from tqdm import tqdm

from neural_alignment import processors

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
PACKAGES = ("tensorflow-cpu", "tensorflow", "keras", "numpy")
LIBRARY = ("neural_alignment", "optimizers")
BASELINE = "backpropagation"
"""The contender that ratios refer to: a network of Keras' own layers with the batch normalisation of this library."""
PLAIN = "plain Keras"
"""Backpropagation without anything of this library: with Keras' own batch normalisation. It is a contender if the
network has batch normalisation; otherwise it equals `BASELINE`."""


class UnavailableError(Exception):
    """A benchmark cannot run on this machine. The message is one line with the missing item and how to get it."""


@dataclass(frozen=True)
class Check:
    """A measured value and its limit.

    Attributes:
        line: name of the measurement.
        value: the measured value.
        limit: the largest allowed value, or the smallest with `at_least`.
        at_least: whether the limit is the smallest allowed value.
    """

    line: str
    value: float
    limit: float
    at_least: bool = False

    @property
    def held(self) -> bool:
        """Whether the value is within its limit; NaN is not."""
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    def __str__(self) -> str:
        return f"{self.line}: {self.value:.3f}, {'at least' if self.at_least else 'at most'} {self.limit:.3f}"


@dataclass(frozen=True)
class Report:
    """The section of a benchmark in RESULTS.md.

    Attributes:
        text: Markdown without a heading.
        checks: the values that have a limit.
    """

    text: str
    checks: list[Check] = field(default_factory=list)


@dataclass(frozen=True)
class Benchmark:
    """The description of a benchmark for `run`.

    Attributes:
        name: name of the benchmark and of its files.
        title: heading in RESULTS.md.
        minutes: duration of the whole benchmark on two cores.
        full: sizes of `make bench`.
        small: tiny sizes that only test the benchmark itself.
        measure: `(samples, sizes)`: adds the missing samples.
        report: `(samples, sizes)`: makes the section from the samples.
        cases: a function of the sizes that returns the number of rounds of each case.
    """

    name: str
    title: str
    minutes: float
    full: dict[str, Any]
    small: dict[str, Any]
    measure: Callable[[Samples, dict[str, Any]], None]
    report: Callable[[Samples, dict[str, Any]], Report]
    cases: Callable[[dict[str, Any]], dict[str, int]] = lambda sizes: {c: s["rounds"] for c, s in sizes.items()}


class Samples:
    """The raw samples of a benchmark: a CSV file, and a JSON file with the conditions of the measurement.

    Incomplete rounds are discarded. Samples from another machine, other versions or sizes, or other source code are
    replaced as soon as there is a new one: a benchmark that is unavailable on this machine erases none.

    Args:
        folder: folder of the two files. It is created if it does not exist.
        name: name of the files.
        facts: conditions under which samples are comparable. Default: read the existing samples.
        occasion: further facts of the samples that will be added, such as the date.
    """

    COLUMNS = ("case", "round", "contender", "quantity", "value")

    def __init__(
        self, folder: Path, name: str, facts: Mapping[str, Any] | None = None, occasion: Mapping[str, Any] | None = None
    ):
        self._occasion = dict(occasion or {})
        self.path = folder / f"{name}.csv"
        self._facts_path = folder / f"{name}.json"
        self.facts = self._stored_facts()
        rows = self._stored_rows()
        facts = None if facts is None else json.loads(json.dumps(facts))  # As stored: tuples become lists.
        self._replaces = False
        """Whether the files contain samples of other conditions, which the first new sample will replace."""
        if facts is not None and any(self.facts.get(name) != value for name, value in facts.items()):
            self._replaces = bool(rows)
            rows, self.facts = [], facts
        self._rows = _whole_rounds(rows)
        if facts is not None and not self._replaces:
            folder.mkdir(parents=True, exist_ok=True)
            self._write()

    def _write(self) -> None:
        """Writes both files. The facts are last: without them, no sample is taken for one of these conditions."""
        with self.path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows([self.COLUMNS, *self._rows])
        self.note()

    def _stored_facts(self) -> dict[str, Any]:
        try:
            return json.loads(self._facts_path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}

    def _stored_rows(self) -> list[tuple[str, int, str, str, float]]:
        """Returns the rows of the file, without the heading and without an incomplete last line."""
        if not self.path.exists():
            return []
        whole = self.path.read_text(encoding="utf-8").rpartition("\n")[0]
        rows = list(csv.reader(whole.splitlines()))[1:]
        return [(case, int(number), who, quantity, float(value)) for case, number, who, quantity, value in rows]

    def note(self, **more: Any) -> None:
        """Adds facts that become known during the measurement."""
        self.facts.update(more)
        if self._replaces:
            return
        self._facts_path.write_text(json.dumps(self.facts, indent=2) + "\n", encoding="utf-8")

    def rounds(self, case: str) -> int:
        """Returns the number of rounds of `case`."""
        return len({row[1] for row in self._rows if row[0] == case})

    def add(self, case: str, measured: Mapping[str, Mapping[str, float]]) -> None:
        """Adds a round of `case`: the value of each quantity by contender."""
        stale = self._replaces or any(self.facts.get(name) != value for name, value in self._occasion.items())
        self.facts.update(self._occasion)
        if stale:
            self._replaces = False
            self._write()
        number = self.rounds(case)
        rows = [
            (case, number, contender, quantity, float(value))
            for contender, quantities in measured.items()
            for quantity, value in quantities.items()
        ]
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows(rows)
        self._rows += rows

    def values(self, case: str, contender: str, quantity: str = "seconds") -> list[float]:
        """Returns the values of a contender, one per round."""
        key = (case, contender, quantity)
        return [value for c, _, name, q, value in sorted(self._rows) if (c, name, q) == key]

    def contenders(self, case: str) -> list[str]:
        """Returns the names of the contenders of a case, in the order in which they were first measured."""
        return list(dict.fromkeys(row[2] for row in self._rows if row[0] == case))

    def measured(self, case: str, names: Iterable[str]) -> list[str]:
        """Returns the contenders among `names` that have values: earlier samples may lack contenders of today."""
        known = self.contenders(case)
        return [name for name in names if name in known]

    def note_of_missing(self, cases: Iterable[str], names: Collection[str]) -> str:
        """Returns a paragraph with the contenders among `names` that a case lacks; empty if every case has all."""
        lacking = [set(names).difference(self.contenders(case)) for case in cases]
        missing = [name for name in names if any(name in each for each in lacking)]
        return f"\n\nNot measured yet: {', '.join(missing)}." if missing else ""

    def ratios(self, case: str, contender: str, baseline: str, quantity: str = "seconds") -> list[float]:
        """Returns the ratios of the contender's values to the baseline's in the same round."""
        pairs = zip(self.values(case, contender, quantity), self.values(case, baseline, quantity), strict=True)
        return [value / base for value, base in pairs]


def _whole_rounds(rows: list[tuple[str, int, str, str, float]]) -> list[tuple[str, int, str, str, float]]:
    """Drops rounds with fewer values than the first round of their case, and numbers the others from 0."""
    cases: dict[str, dict[int, list[Any]]] = {}
    for row in rows:
        cases.setdefault(row[0], {}).setdefault(row[1], []).append(row)
    kept = []
    for rounds in cases.values():
        contents = {number: sorted(row[2:4] for row in group) for number, group in rounds.items()}
        fullest = max(contents.values(), key=len)
        whole = [number for number in sorted(rounds) if contents[number] == fullest]
        kept += [(row[0], new, *row[2:]) for new, number in enumerate(whole) for row in rounds[number]]
    return kept


def interleave(
    samples: Samples, case: str, steps: Mapping[str, Callable[[], Mapping[str, float]]], rounds: int, warm_up: int = 1
) -> None:
    """Adds the missing rounds of `case`.

    Each round begins with a different contender, so that no contender always follows the same one.

    Args:
        samples: the existing samples.
        case: the case to measure.
        steps: by contender, a function that runs a step and returns its measurements.
        rounds: required number of rounds.
        warm_up: number of steps of each contender before the measurement.
    """
    names = list(steps)
    done = samples.rounds(case)
    with progress(case, rounds * len(names), done * len(names)) as bar:
        for name in names if done < rounds else ():
            for _ in range(warm_up):
                steps[name]()
        for number in range(done, rounds):
            first = number % len(names)
            measured = {}
            for name in names[first:] + names[:first]:
                measured[name] = steps[name]()
                bar.update()
            samples.add(case, measured)


def progress(case: str, total: int, done: int = 0) -> tqdm:
    """Returns a progress bar with the remaining time; in a log file it prints a line every half minute."""
    return tqdm(desc=case, total=total, initial=done, mininterval=0.5 if sys.stderr.isatty() else 30, unit="step")


def middle(values: Sequence[float]) -> tuple[float, float, float]:
    """Returns median, lower and upper quartile."""
    if len(values) < 2:
        return (values[0],) * 3 if values else (float("nan"),) * 3
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return statistics.median(values), low, high


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Returns a Markdown table. Floats have two decimals, and None is an empty cell."""

    def cell(value: Any) -> str:
        return "" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)

    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(cell, line)) + " |" for line in lines)


def facts(sizes: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the conditions of a measurement: machine, versions, sizes, and a digest of the source code."""
    return {"machine": machine(), "versions": versions(), "sizes": dict(sizes), "source": source_digest()}


def occasion(load: float) -> dict[str, Any]:
    """Returns the date of a measurement (UTC) and the load of the machine before it."""
    return {"date": datetime.now(timezone.utc).date().isoformat(), "load": round(load, 2)}


def machine() -> dict[str, Any]:
    """Returns the processor, the number of cores available to this process, and the memory in GiB."""
    model = platform.processor() or platform.machine()
    if (cpuinfo := Path("/proc/cpuinfo")).exists():
        lines = [line.partition(":") for line in cpuinfo.read_text().splitlines()]
        model = next((value.strip() for key, _, value in lines if key.strip() == "model name"), model)
    memory = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30)
    return {"processor": model, "cores": processors.count(), "memory_gib": memory, "system": platform.system()}


def versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Returns the versions of Python and of the installed packages among `packages`."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def source_digest() -> str:
    """Returns a digest of the library's and the benchmarks' source code."""
    digest = hashlib.sha256()
    for folder in (*LIBRARY, "benchmarks"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]
