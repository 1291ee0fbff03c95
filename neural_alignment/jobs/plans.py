"""Plans: the runs that a table or figure is made from, and how their results are read.

Each run has a name, such as `MODEL/RULE/seedN`, which is the path of its run directory below a folder of runs. A
finished run is not trained again, and an interrupted one resumes. Tables share the runs that they have in common.
Results that training does not produce are computed by pieces (`pieces.py`) and stored below the same folder.
"""

from __future__ import annotations

import collections
import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import tensorflow as tf

from neural_alignment import config as configuration
from neural_alignment import files
from neural_alignment.errors import RunError
from neural_alignment.jobs.batch import SUCCESSFUL, Batch, Execution
from neural_alignment.jobs.job import Job, Training, log_file
from neural_alignment.reporting import check_writable
from neural_alignment.training import lock
from neural_alignment.training.config_comparison import decisive_values, plain_difference
from neural_alignment.training.existing_run import stored_state
from neural_alignment.training.run_directory import RunDirectory, check_different_seeds

SECONDS = "seconds.csv"
"""Name of the file with the duration of each job in seconds, beside a paper's results."""


class Work(Protocol):
    """One part of a plan: a run to train or a piece to compute.

    Attributes:
        name: identifies it in the plan, and is the path of its result below the folder of runs.
        kind: plural noun and verb for messages, such as `("runs", "train")`.
    """

    name: str
    kind: ClassVar[tuple[str, str]]

    def is_waiting(self, folder: str, configs: str) -> bool:
        """Whether it has no result yet.

        Args:
            folder: folder of the run directories.
            configs: folder of the configurations.

        Raises:
            RunError: if its path holds the result of another configuration or computation, or a damaged one.
            ConfigError: if its configuration is wrong.
        """

    def job(self, folder: str, configs: str) -> Job:
        """Returns the job that produces the result; arguments as for `is_waiting`."""


@dataclass(frozen=True)
class Run:
    """One run of a plan.

    Attributes:
        config: path of the YAML file below the folder of configurations.
        name: path of its directory below the folder of runs.
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
        return stored_state(self._directory(folder), self.load(configs)) not in SUCCESSFUL

    def job(self, folder: str, configs: str) -> Training:  # noqa: D102 (as in Work)
        path, log = self._directory(folder).path, log_file(folder, self.name)
        return Training(self.name, tf.io.gfile.join(configs, self.config), str(path), self.overrides, log)

    def _directory(self, folder: str) -> RunDirectory:
        return RunDirectory(files.confined(folder, self.name))


@dataclass(frozen=True)
class Cell:
    """Runs that differ only in their seed: one cell of a table, one point of a figure.

    Attributes:
        config: path of the YAML file below the folder of configurations.
        name: path, below the folder of runs, of the directory that contains the run directories `seedN`.
        labels: label columns of this cell in tables, such as model and rule.
        overrides: `key.path=value`, as for `config.load`.
        seeds: seeds of the runs; empty if a plan does not train them.
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
        """Returns the command that trains the run of one seed in the directory that `read` expects.

        Arguments: see `read`.
        """
        overrides = (word for each in (*self.overrides, f"seed={seed}") for word in ("--set", each))
        place = tf.io.gfile.join(folder, self.name, f"seed{seed}")
        config = tf.io.gfile.join(configs, self.config)
        return shlex.join(["neural-alignment", "train", config, *overrides, "--run-dir", place])

    def read(self, folder: str, configs: str) -> list[Outcome]:
        """Returns the outcomes of the runs that have ended, ordered by seed.

        Args:
            folder: folder of the runs; the directory of the cell in it is a run, or contains a folder `seedN` per run.
            configs: folder of the configurations.

        Raises:
            RunError: if a run is damaged, differs from the cell in more than its seed and the paths of its data, or has
                the seed of another one, or another seed than its directory if the cell has seeds.
            ConfigError: if the cell's configuration is missing or wrong.
        """
        found = [read(tf.io.gfile.join(folder, name)) for name in self._names(folder)]
        outcomes = sorted((each for each in found if each is not None), key=lambda each: each.config.seed)
        if outcomes:
            due = configuration.load(tf.io.gfile.join(configs, self.config), self.overrides)
            for outcome in outcomes:
                _check_kind(outcome, due)
            self._check_seeds(outcomes)
        return outcomes

    def _check_seeds(self, outcomes: Sequence[Outcome]) -> None:
        """Checks that no run counts twice, and that each has the seed of its directory if the cell has seeds."""
        check_different_seeds((outcome.directory.path, outcome.config.seed) for outcome in outcomes)
        for outcome in outcomes if self.seeds else ():
            found, expected = f"seed{outcome.config.seed}", outcome.directory.path.rpartition("/")[2]
            if found != expected:
                raise RunError(f"{outcome.directory.path}: is a run of {found}; expected here: {expected}")

    def _names(self, folder: str) -> list[str]:
        """Returns the names of the runs: those of the seeds; without seeds, those of the existing directories."""
        if self.seeds:
            return [run.name for run in self.runs()]
        place = tf.io.gfile.join(folder, self.name)
        entries = tf.io.gfile.listdir(place) if tf.io.gfile.isdir(place) else []
        return [self.name, *(f"{self.name}/{e.rstrip('/')}" for e in sorted(entries) if e.startswith("seed"))]


def _check_kind(outcome: Outcome, due: configuration.Config) -> None:
    """Checks that a run belongs to a cell. Rules and network are compared first, which gives a clearer message."""
    for part, value in (("rule", _rules), ("network", lambda config: config.model.model_dump(exclude_defaults=True))):
        found, expected = value(outcome.config), value(due)
        if found != expected:
            raise RunError(f"{outcome.directory.path}: is a run of the {part} {found}; expected here: {expected}")
    found, expected = ({**decisive(config), "seed": None} for config in (outcome.config, due))
    if difference := plain_difference(found, expected):
        raise RunError(f"{outcome.directory.path}: was trained with another configuration: {difference}")


def decisive(config: configuration.Config) -> dict[str, Any]:
    """Returns the part of a configuration that affects a result, as plain data, without the test split.

    A table accepts runs of any precision, such as those from TPUs.
    """
    plain = decisive_values(config)
    plain.pop("runtime", None)
    plain["evaluation"].pop("test_split", None)
    return plain


def _rules(config: configuration.Config) -> str:
    return ", ".join(rule.rule for rule in config.rules) or "backpropagation"


@dataclass(frozen=True)
class Outcome:
    """The outcome of a run that has ended.

    Attributes:
        directory: the run directory.
        rows: rows of `metrics.csv`.
        diverged: whether the run diverged.
        config: the configuration in the run directory.
    """

    directory: RunDirectory
    rows: list[dict[str, float]]
    diverged: bool
    config: configuration.Config

    @property
    def seconds(self) -> float:
        """Duration of the training in seconds, without start-up; NaN if there are no rows."""
        return self.rows[-1]["seconds"] if self.rows else math.nan

    def measure(self, name: str, chance: float) -> float:
        """Returns the last value of a column of `metrics.csv`; `chance` for a run that diverged."""
        return chance if self.diverged else self.rows[-1][name]

    def kernels(self) -> dict[int, dict[str, Any]]:
        """Returns step -> array name -> kernel, as stored by `logging.kernels`, ordered by step; empty without kernels.

        Raises:
            RunError: if a file is damaged, or only the files of some steps are missing.
        """
        folder = self.directory.file("kernels")
        if not tf.io.gfile.isdir(folder):
            return {}
        names = [name for name in tf.io.gfile.listdir(folder) if name.endswith(".npz") and name[:-4].isdigit()]
        steps = {int(name[:-4]) for name in names}
        missing = [int(row["step"]) for row in self.rows if int(row["step"]) not in steps]
        if steps and missing:
            path = tf.io.gfile.join(folder, f"{missing[0]}.npz")
            raise RunError(f"{path}: is missing; restore it from a copy, or start over with --force")
        kept = {}
        for step in sorted(steps):
            path = tf.io.gfile.join(folder, f"{step}.npz")
            try:
                kept[step] = files.read_arrays(path)
            except ValueError as error:
                raise RunError(
                    f"{path}: is damaged: {error}; restore it from a copy, or start over with --force"
                ) from None
        return kept


def read(path: str) -> Outcome | None:
    """Returns the outcome of the run at `path`; None if there is no run, or it has not ended.

    Raises:
        RunError: if it is damaged.
    """
    directory = RunDirectory(path)
    if not directory.exists() or not (directory.has_begun() or tf.io.gfile.exists(directory.file("status.json"))):
        return None
    status = directory.status()
    if status["state"] not in SUCCESSFUL:
        return None
    rows = directory.rows(status)
    if status["state"] == "finished" and not rows:
        raise RunError(f"{directory.file('metrics.csv')}: is missing or empty; restore it, or start over with --force")
    return Outcome(directory, rows, status["state"] == "diverged", directory.checked_config(status))


def waiting(runs: Sequence[Work], folder: str, configs: str) -> list[Work]:
    """Returns the runs and pieces that have no result yet.

    Raises:
        RunError: if a directory holds a run of another configuration.
        ConfigError: if a configuration is wrong.
    """
    return [run for run in runs if run.is_waiting(folder, configs)]


def unique(cells: Iterable[Any]) -> list[Work]:
    """Returns the runs or pieces of some cells, each once."""
    return list({run.name: run for cell in cells for run in cell.runs()}.values())


def count_left(left: Sequence[Work], runs: Sequence[Work]) -> str:
    """Returns in words how much of a plan is left, such as `2 of 3 runs to train, 1 of 5 pieces to compute`."""
    there, waits = (collections.Counter(run.kind for run in each) for each in (runs, left))
    return ", ".join(f"{waits[kind]} of {number} {kind[0]} to {kind[1]}" for kind, number in there.items())


def count_all(runs: Sequence[Work]) -> str:
    """Returns in words the size of a plan, such as `3 runs, 1 piece`."""
    counts = collections.Counter(noun for noun, _ in (run.kind for run in runs))
    return ", ".join(f"{count} {noun.removesuffix('s') if count == 1 else noun}" for noun, count in counts.items())


def carry_out(works: Sequence[Work], folder: str, configs: str, execution: Execution) -> None:
    """Trains the runs and computes the pieces that have no result yet. After an interruption, call it again to resume.

    Args:
        works: the runs and pieces.
        folder: folder of the run directories.
        configs: folder of the configurations.
        execution: where the jobs run.

    Raises:
        RunError: if a run or piece fails, or another process works in the folder. A diverged run has not failed.
        Stopped: after SIGTERM, SIGINT or SIGHUP, once every run has saved its state.
    """
    left = waiting(works, folder, configs)
    execution.screen.line(f"{count_left(left, works)}, {execution.engine.slots} at a time")
    if not left:
        return
    check_writable(folder)
    with lock.held(folder):
        jobs = [work.job(folder, configs) for work in left]
        Batch(jobs, folder, len(works), execution).run()
