"""What the benchmarks share: raw samples that outlive an interruption, interleaved rounds, medians, tables.

Machine speed drifts; the ratio of two steps that were made right after one another does not. So a round makes one step
of every contender in turn, and a figure is the median over the rounds of a ratio within one round.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import platform
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from tqdm import tqdm

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
PACKAGES = ("tensorflow-cpu", "tensorflow", "keras", "numpy")
LIBRARY = ("neural_alignment", "optimizers")


class UnavailableError(Exception):
    """A benchmark cannot be run here; its message is one line that says what is missing and how to get it."""


@dataclass(frozen=True)
class Check:
    """A measured value beside the limit that the project holds to.

    Attributes:
        line: what was measured.
        value: the figure.
        limit: the figure must not be above it; with `at_least`, not below.
        at_least: whether the limit is the smallest allowed.
    """

    line: str
    value: float
    limit: float
    at_least: bool = False

    @property
    def held(self) -> bool:
        """Whether the value keeps its limit; one that is not a number does not."""
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    def __str__(self) -> str:
        return f"{self.line}: {self.value:.3f}, {'at least' if self.at_least else 'at most'} {self.limit:.3f}"


@dataclass(frozen=True)
class Report:
    """One benchmark's section of RESULTS.md.

    Attributes:
        text: Markdown, without a heading.
        checks: the figures that have a limit.
    """

    text: str
    checks: list[Check] = field(default_factory=list)


@dataclass(frozen=True)
class Benchmark:
    """One benchmark, as `run` sees it.

    Attributes:
        name: of the benchmark and of its files.
        title: heading in RESULTS.md.
        minutes: how long it took on two cores, whole.
        full: the sizes of `make bench`.
        small: tiny sizes, to see that all works; their figures mean nothing.
        measure: `(samples, sizes)`: adds what is missing to the raw samples.
        report: `(samples, sizes)`: makes the section from the raw samples.
        cases: sizes -> case -> the rounds that it needs.
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
    """The raw samples of one benchmark: a CSV file, and a JSON file with the facts under which it was made.

    A round is kept whole or not at all. Samples of another machine, of other versions or sizes, or of other source
    code are not added to but replaced.

    Args:
        folder: where the two files lie; it is made where there is none.
        name: of the files.
        facts: what must be the same for samples to be comparable; none to read whatever is there.
    """

    COLUMNS = ("case", "round", "contender", "quantity", "value")

    def __init__(self, folder: Path, name: str, facts: Mapping[str, Any] | None = None):
        self.path = folder / f"{name}.csv"
        self._facts_path = folder / f"{name}.json"
        self.facts = self._stored_facts()
        rows = self._stored_rows()
        facts = None if facts is None else json.loads(json.dumps(facts))  # As they are stored: tuples are lists.
        if facts is not None and any(self.facts.get(name) != value for name, value in facts.items()):
            rows, self.facts = [], facts
        self._rows = _whole_rounds(rows)
        if facts is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self.note()
            with self.path.open("w", newline="", encoding="utf-8") as file:
                csv.writer(file, lineterminator="\n").writerows([self.COLUMNS, *self._rows])

    def _stored_facts(self) -> dict[str, Any]:
        try:
            return json.loads(self._facts_path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}

    def _stored_rows(self) -> list[tuple[str, int, str, str, float]]:
        """Returns the rows of the file but for the heading, and for a last line that an interruption has cut off."""
        if not self.path.exists():
            return []
        whole = self.path.read_text(encoding="utf-8").rpartition("\n")[0]
        rows = list(csv.reader(whole.splitlines()))[1:]
        return [(case, int(number), who, quantity, float(value)) for case, number, who, quantity, value in rows]

    def note(self, **more: Any) -> None:
        """Adds facts that are known only once the samples are being made."""
        self.facts.update(more)
        self._facts_path.write_text(json.dumps(self.facts, indent=2) + "\n", encoding="utf-8")

    def rounds(self, case: str) -> int:
        """Returns how many rounds of `case` there are."""
        return len({row[1] for row in self._rows if row[0] == case})

    def add(self, case: str, measured: Mapping[str, Mapping[str, float]]) -> None:
        """Adds one round of `case`: contender -> quantity -> value."""
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
        """Returns the values of a contender, round by round."""
        key = (case, contender, quantity)
        return [value for c, _, name, q, value in sorted(self._rows) if (c, name, q) == key]

    def ratios(self, case: str, contender: str, baseline: str, quantity: str = "seconds") -> list[float]:
        """Returns the contender's values over the baseline's of the same round."""
        pairs = zip(self.values(case, contender, quantity), self.values(case, baseline, quantity), strict=True)
        return [value / base for value, base in pairs]


def _whole_rounds(rows: list[tuple[str, int, str, str, float]]) -> list[tuple[str, int, str, str, float]]:
    """Leaves out rounds that lack what the first round of their case has, and numbers the others from 0."""
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
    """Adds the rounds of `case` that are missing.

    Each round begins with another contender, so that none always follows the same one.

    Args:
        samples: what is there already.
        case: the case that is measured.
        steps: contender -> a function that makes one step and returns what it measured.
        rounds: how many there are to be.
        warm_up: steps of each contender beforehand, not counted.
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
    """Returns a bar with the time left, for a log file a line every half minute."""
    return tqdm(desc=case, total=total, initial=done, mininterval=0.5 if sys.stderr.isatty() else 30, unit="step")


def middle(values: Sequence[float]) -> tuple[float, float, float]:
    """Returns median, lower and upper quartile."""
    if len(values) < 2:
        return (values[0],) * 3 if values else (float("nan"),) * 3
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return statistics.median(values), low, high


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Returns a Markdown table; floats get two decimals, and none an empty cell."""

    def cell(value: Any) -> str:
        return "" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)

    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(cell, line)) + " |" for line in lines)


def facts(sizes: Mapping[str, Any]) -> dict[str, Any]:
    """Returns under what samples are made: machine, versions, sizes, and a digest of the source code."""
    return {"machine": machine(), "versions": versions(), "sizes": dict(sizes), "source": source_digest()}


def machine() -> dict[str, Any]:
    """Returns the processor, how many cores of it this process may use, and the memory in GiB."""
    model = platform.processor() or platform.machine()
    if (cpuinfo := Path("/proc/cpuinfo")).exists():
        lines = [line.partition(":") for line in cpuinfo.read_text().splitlines()]
        model = next((value.strip() for key, _, value in lines if key.strip() == "model name"), model)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30)
    return {"processor": model, "cores": cores, "memory_gib": memory, "system": platform.system()}


def versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Returns the versions of Python and of those of `packages` that are installed."""
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
