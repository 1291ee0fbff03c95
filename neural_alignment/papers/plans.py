"""Plans: the runs that a table or a figure is made from, how they are trained, and how they are read.

A run has a name below a folder of runs, `MODEL/RULE/seedN` or so, and is an ordinary run directory there: what is
finished is not trained again, what was interrupted goes on, and tables share the runs that they have in common. What
training alone does not tell is computed by pieces (`pieces.py`), which lie below the same folder and wait in the same
queue.
"""

from __future__ import annotations

import collections
import math
import os
import queue
import shlex
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import tensorflow as tf

from neural_alignment import config as configuration
from neural_alignment.errors import RunError, Stopped
from neural_alignment.reporting import check_writable, csv_text, duration, read_csv
from neural_alignment.search.records import Ending
from neural_alignment.search.trial import Children, Task
from neural_alignment.training import files, lock
from neural_alignment.training.config_comparison import decisive_values, plain_difference
from neural_alignment.training.existing_run import stored_state
from neural_alignment.training.metrics import MetricsFile
from neural_alignment.training.run_directory import RunDirectory
from neural_alignment.training.stopping import Interrupted, Stop

SECONDS = "seconds.csv"
"""Beside a paper's results: how long each run took, from the start of its process to its end."""

ENDED = ("finished", "diverged")
"""States of a run that has a result."""


class Work(Protocol):
    """One part of a plan, which a process of its own can do. Folders are those of `carry_out`.

    Attributes:
        name: tells it from all others, and says where below the folder of runs its result is.
        kind: what to call it: a noun in the plural, and a verb.
    """

    name: str
    kind: ClassVar[tuple[str, str]]

    def is_waiting(self, folder: str, configs: str) -> bool:
        """Whether it has no result yet.

        Raises:
            RunError: if the result of something else is in its place.
            ConfigError: if its configuration is wrong.
        """

    def make(self, folder: str, configs: str, children: Children, threads: int) -> Ending:
        """Does it in a process of `children`, from its start or from where it was, and returns how it has ended."""

    def progress(self, folder: str, configs: str) -> float:
        """Returns which part of it is behind it, 0 to 1."""

    def result(self, folder: str, ending: Ending) -> str:
        """Returns for a reader what it has come to."""


@dataclass(frozen=True)
class Run:
    """One run of a plan.

    Attributes:
        config: path of the YAML file below the folder of configurations.
        name: of its directory below the folder of runs.
        overrides: `key.path=value`, as for `config.load`.
    """

    config: str
    name: str
    overrides: tuple[str, ...] = ()
    kind: ClassVar[tuple[str, str]] = ("runs", "train")

    def load(self, configs: str) -> configuration.Config:
        """Returns the configuration.

        Raises:
            ConfigError: if it is missing or wrong.
        """
        return configuration.load(tf.io.gfile.join(configs, self.config), self.overrides)

    def is_waiting(self, folder: str, configs: str) -> bool:  # noqa: D102 (as in Work)
        return stored_state(self._directory(folder), self.load(configs)) not in ENDED

    def make(self, folder: str, configs: str, children: Children, threads: int) -> Ending:  # noqa: D102 (as in Work)
        path = self._directory(folder).path
        return children.train(Task(0, tf.io.gfile.join(configs, self.config), path, None), self.overrides, threads)

    def progress(self, folder: str, configs: str) -> float:  # noqa: D102 (as in Work)
        rows = MetricsFile(self._directory(folder).file("metrics.csv")).rows()
        return min(rows[-1]["epoch"] / self.load(configs).epochs, 1.0) if rows else 0.0

    def result(self, folder: str, ending: Ending) -> str:  # noqa: D102 (as in Work)
        if ending.state != "finished":
            return ending.state
        return f"top-1 {100 * MetricsFile(self._directory(folder).file('metrics.csv')).rows()[-1]['top1']:.2f} %"

    def _directory(self, folder: str) -> RunDirectory:
        return RunDirectory(files.confined(folder, self.name))


@dataclass(frozen=True)
class Cell:
    """Runs that differ in their seed alone: one cell of a table, one point of a figure.

    Attributes:
        config: path of the YAML file below the folder of configurations.
        name: of the directory below the folder of runs in which each seed has its own.
        labels: what it is called in tables, such as model and rule.
        overrides: `key.path=value`, as for `config.load`.
        seeds: of the runs; none where they are not trained by a plan.
    """

    config: str
    name: str
    labels: Mapping[str, Any]
    overrides: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()

    def runs(self) -> list[Run]:
        """Returns a run per seed."""
        return [Run(self.config, f"{self.name}/seed{n}", (*self.overrides, f"seed={n}")) for n in self.seeds]

    def command(self, folder: str, configs: str, seed: int = 0) -> str:
        """Returns the line that trains the run of one seed where `read` finds it; arguments as of `read`."""
        overrides = (word for each in (*self.overrides, f"seed={seed}") for word in ("--set", each))
        place = tf.io.gfile.join(folder, self.name, f"seed{seed}")
        config = tf.io.gfile.join(configs, self.config)
        return shlex.join(["neural-alignment", "train", config, *overrides, "--run-dir", place])

    def read(self, folder: str, configs: str) -> list[Outcome]:
        """Returns what the runs have come to that have ended, in the order of their seeds.

        Args:
            folder: of the runs; the cell's directory there is a run itself, or holds a folder `seedN` per run.
            configs: folder of the configurations.

        Raises:
            RunError: if a run is another than the cell's, apart from its seed and the place of its data, or damaged.
            ConfigError: if the cell's configuration is missing or wrong.
        """
        found = [read(tf.io.gfile.join(folder, name)) for name in self._names(folder)]
        outcomes = sorted((each for each in found if each is not None), key=lambda each: each.config.seed)
        if outcomes:
            due = configuration.load(tf.io.gfile.join(configs, self.config), self.overrides)
            for outcome in outcomes:
                _check_kind(outcome, due)
        return outcomes

    def _names(self, folder: str) -> list[str]:
        """Returns the names that the runs have: those of the plan's seeds, or of what is there."""
        if self.seeds:
            return [run.name for run in self.runs()]
        place = tf.io.gfile.join(folder, self.name)
        entries = tf.io.gfile.listdir(place) if tf.io.gfile.isdir(place) else []
        return [self.name, *(f"{self.name}/{e.rstrip('/')}" for e in sorted(entries) if e.startswith("seed"))]


def _check_kind(outcome: Outcome, due: configuration.Config) -> None:
    """Checks that a run is the one that is looked for: first its rules and its network, which are told apart."""
    for what, kind in (("rule", _rules), ("network", lambda config: config.model.model_dump(exclude_defaults=True))):
        found, expected = kind(outcome.config), kind(due)
        if found != expected:
            raise RunError(f"{outcome.directory.path}: is a run of the {what} {found}; expected here: {expected}")
    found, expected = ({**decisive(config), "seed": None} for config in (outcome.config, due))
    if difference := plain_difference(found, expected):
        raise RunError(f"{outcome.directory.path}: was trained otherwise than its configuration says: {difference}")


def decisive(config: configuration.Config) -> dict[str, Any]:
    """Returns what of a configuration decides a result, as plain data: not where its data are, nor a test besides."""
    plain = decisive_values(config)
    plain["data"] = {key: value for key, value in plain["data"].items() if not key.endswith("_files")}
    plain["evaluation"].pop("test_split", None)
    return plain


def _rules(config: configuration.Config) -> str:
    return ", ".join(rule.rule for rule in config.rules) or "backpropagation"


@dataclass(frozen=True)
class Outcome:
    """What a run came to.

    Attributes:
        directory: where it is.
        rows: of its `metrics.csv`.
        diverged: whether J or R became infinite.
        config: as the run has stored it.
    """

    directory: RunDirectory
    rows: list[dict[str, float]]
    diverged: bool
    config: configuration.Config

    @property
    def seconds(self) -> float:
        """How long it trained, without its start."""
        return self.rows[-1]["seconds"] if self.rows else math.nan

    def measure(self, name: str, chance: float) -> float:
        """Returns the last value of a column of `metrics.csv`; `chance` of a run that diverged."""
        return chance if self.diverged else self.rows[-1][name]

    def kernels(self) -> dict[int, dict[str, Any]]:
        """Returns step -> array name -> kernel, as kept by `logging.kernels`; in the order of steps.

        Raises:
            RunError: if a file is damaged, or the file of a step is missing while others are there.
        """
        folder = self.directory.file("kernels")
        if not tf.io.gfile.isdir(folder):
            return {}
        names = [name for name in tf.io.gfile.listdir(folder) if name.endswith(".npz") and name[:-4].isdigit()]
        steps = {int(name[:-4]) for name in names}
        missing = [int(row["step"]) for row in self.rows if int(row["step"]) not in steps]
        if steps and missing:
            path = tf.io.gfile.join(folder, f"{missing[0]}.npz")
            raise RunError(f"{path}: is missing; restore it from a copy, or train anew with --force")
        kept = {}
        for step in sorted(steps):
            path = tf.io.gfile.join(folder, f"{step}.npz")
            try:
                kept[step] = files.read_arrays(path)
            except ValueError as error:
                raise RunError(
                    f"{path}: is damaged: {error}; restore it from a copy, or train anew with --force"
                ) from None
        return kept


def read(path: str) -> Outcome | None:
    """Returns what the run at `path` came to, or none where there is no run that has ended.

    Raises:
        RunError: if it is damaged.
    """
    directory = RunDirectory(path)
    if not directory.exists() or not (directory.has_begun() or tf.io.gfile.exists(directory.file("status.json"))):
        return None
    status = directory.status()
    if status["state"] not in ENDED:
        return None
    rows = directory.rows(status)
    if status["state"] == "finished" and not rows:
        raise RunError(f"{directory.file('metrics.csv')}: is missing or empty; restore it, or train anew with --force")
    return Outcome(directory, rows, status["state"] == "diverged", directory.checked_config(status))


# How long it will take.


@dataclass
class Estimates:
    """How long runs take, from how long they took.

    Args:
        path: the file that is told of runs; what it says of others stays. None for no file.
        committed: another file, which is read before it.
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
                raise RunError(f"{path}: must have the columns run and seconds; mend or remove it") from None

    def of(self, name: str) -> float:
        """Returns the seconds of one process; of a run that was never made, those of the like of it; NaN of none.

        The like of `resnet18/symmetric/seed2` are the other seeds, else all of `resnet18/`.
        """
        if name in self.seconds:
            return self.seconds[name]
        folders = name.split("/")[:-1]
        for depth in range(len(folders), 0, -1):
            stem = "".join(f"{folder}/" for folder in folders[:depth])
            like = [seconds for other, seconds in self.seconds.items() if other.startswith(stem)]
            if like:
                return sum(like) / len(like)
        return math.nan

    def describe(self, names: Sequence[str], jobs: int) -> str:
        """Returns for a reader how long some runs take, so many at once, and for how many of them it is not known."""
        return in_all([self.of(name) for name in names], jobs)

    def note(self, name: str, seconds: float) -> None:
        """Remembers how long a run took."""
        self.seconds[name] = seconds
        rows = [{"run": name, "seconds": round(self.seconds[name], 1)} for name in sorted(self.seconds)]
        if self.path:
            files.write_whole(self.path, csv_text(("run", "seconds"), rows))


def in_all(seconds: Sequence[float], jobs: int, word: str = "") -> str:
    """Returns for a reader the sum of the times that are known, and how many are not.

    Args:
        seconds: of one process each; NaN where it is not known.
        jobs: processes at once.
        word: follows the sum.
    """
    known = [each for each in seconds if not math.isnan(each)]
    unknown = len(seconds) - len(known)
    if unknown and not known:
        return "time not known yet"
    text = f"{duration(sum(known) / jobs)}{word} (estimate)"
    return f"{text} and {unknown} not known yet" if unknown else text


# Training.


@dataclass
class Screen:
    """Where a plan says how far it is.

    Attributes:
        line: prints a line that stays.
        status: shows one that the next replaces.
    """

    line: Callable[[str], None]
    status: Callable[[str], None]


@dataclass
class _Active:
    """What a process is at work on."""

    run: Work
    began: float

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began


def waiting(runs: Sequence[Work], folder: str, configs: str) -> list[Work]:
    """Returns the runs, and whatever else there is, that have no result yet.

    Raises:
        RunError: if a directory holds a run of another configuration.
        ConfigError: if a configuration is wrong.
    """
    return [run for run in runs if run.is_waiting(folder, configs)]


def unique(cells: Iterable[Any]) -> list[Work]:
    """Returns the runs of some cells, each once.

    Args:
        cells: of runs, or of pieces.
    """
    return list({run.name: run for cell in cells for run in cell.runs()}.values())


def counted(left: Sequence[Work], runs: Sequence[Work]) -> str:
    """Returns for a reader how much of a plan is left, such as `2 of 3 runs to train, 1 of 5 pieces to compute`."""
    there, waits = (collections.Counter(run.kind for run in each) for each in (runs, left))
    return ", ".join(f"{waits[kind]} of {number} {kind[0]} to {kind[1]}" for kind, number in there.items())


def totals(runs: Sequence[Work]) -> str:
    """Returns for a reader how much a plan holds, such as `3 runs, 5 pieces`."""
    return ", ".join(f"{number} {noun}" for (noun, _), number in collections.Counter(r.kind for r in runs).items())


def carry_out(runs: Sequence[Work], folder: str, configs: str, jobs: int, estimates: Estimates, screen: Screen) -> None:
    """Trains what has no result yet, `jobs` processes at once; killed at any moment, it goes on when called again.

    Args:
        runs: the plan, of runs and whatever else there is.
        folder: where the run directories are, on a local file system.
        configs: folder of the configurations.
        jobs: processes at once; the cores are shared out among them.
        estimates: of the time; told how long each run takes.
        screen: told how far it is.

    Raises:
        RunError: if a run fails for another reason than that it diverges, or another process is at work here.
        Stopped: at SIGTERM or SIGINT, once every run has saved its state.
    """
    left = waiting(runs, folder, configs)
    screen.line(f"{counted(left, runs)}, {jobs} at once")
    if not left:
        return
    check_writable(folder)
    with lock.held(folder), Stop() as stop:
        training = _Training(left, len(runs), folder, configs, jobs, estimates, screen)
        try:
            with training, stop.safe():
                training.follow()
        except Interrupted:
            raise Stopped(f"{stop.signal}; every run is saved, and the same command goes on") from None


class _Training:
    """The runs of a plan while they are trained: a thread for each process; the main one tells how far they are."""

    def __init__(self, left, total, folder, configs, jobs, estimates, screen):
        self._queue: collections.deque[Work] = collections.deque(left)
        self._left = len(left)
        self._total, self._folder, self._configs, self._jobs = total, folder, configs, jobs
        self._estimates, self._screen = estimates, screen
        self._active: dict[str, _Active] = {}
        self._ended: queue.SimpleQueue[tuple[_Active, Ending]] = queue.SimpleQueue()
        self._children = Children()
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(min(jobs, len(left)))]

    def __enter__(self) -> _Training:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        """Begins no further run, and lets those that are at work save their state and end."""
        self._queue.clear()
        while any(thread.is_alive() for thread in self._threads):
            self._children.terminate()  # Again: a child may have been about to start.
            for thread in self._threads:
                thread.join(0.2)

    def _work(self) -> None:
        """Trains one run after the other."""
        threads = max(1, (os.cpu_count() or 1) // self._jobs)
        while True:
            try:
                run = self._queue.popleft()
            except IndexError:
                return
            active = _Active(run, time.monotonic())
            self._active[run.name] = active
            try:
                ending = run.make(self._folder, self._configs, self._children, threads)
            except Exception as error:  # Else the main thread would wait for it for ever.
                ending = Ending("failed", reason=f"{type(error).__name__}: {error}")
            if ending.state not in ENDED:
                self._queue.clear()  # Here, not where it is told: by then another run would have begun.
            del self._active[run.name]
            self._ended.put((active, ending))

    def follow(self) -> None:
        """Waits until every run has ended, and says how far they are.

        Raises:
            RunError: if a run fails.
        """
        for number in range(self._total - self._left + 1, self._total + 1):
            active, ending = self._next()
            if ending.state not in ENDED:
                raise RunError(f"{active.run.name}: {ending.state}: {ending.reason}")
            self._estimates.note(active.run.name, active.seconds)
            result = active.run.result(self._folder, ending)
            self._screen.line(f"run {number} of {self._total}: {active.run.name}  {result}  {active.seconds:.0f} s")

    def _next(self) -> tuple[_Active, Ending]:
        """Returns the next run that ends; meanwhile tells what goes on."""
        while True:
            try:
                return self._ended.get(timeout=2.0)
            except queue.Empty:
                self._screen.status(self._status())

    def _status(self) -> str:
        """Returns a line of the present runs and of the time that is left, of each and of all."""
        parts, remaining = [], [self._estimates.of(run.name) for run in list(self._queue)]
        for active in list(self._active.values()):
            done = active.run.progress(self._folder, self._configs)
            expected = max(self._estimates.of(active.run.name) - active.seconds, 0.0)
            left = active.seconds * (1 / done - 1) if done else expected
            remaining.append(left)
            parts.append(f"{active.run.name} {100 * done:.0f} %, {duration(left)} left")
        return f"{'; '.join(parts)} | in all {in_all(remaining, self._jobs, ' left')}"
