"""Runs a search and writes its directory.

Files of the search directory:

    search.yaml        the plan of the search
    base.yaml          the configuration that all trials have in common
    proposals.jsonl    a line per trial that has started: the settings that were drawn
    trials.jsonl       a line per trial that has ended: settings, result, reason
    settings/0001.yaml the configuration of a trial, a file for `train`
    trials/0001/       its run directory
    logs/0001.log      its output, if another process trained it
    best.yaml, top_ten.md, top_ten.csv, importance.csv, importance.png, scores.csv, scores.png    the report
    events.out.tfevents.*    the columns of TensorBoard's dashboard HPARAMS; each run directory of a trial has its row
    lock.json          the process that is running the search; only while it runs
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import math
import statistics
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import tensorflow as tf

from neural_alignment import config as configuration
from neural_alignment import files
from neural_alignment.config import Config
from neural_alignment.errors import ConfigError, RunError, Stopped
from neural_alignment.jobs.batch import Screen
from neural_alignment.jobs.ending import Ending
from neural_alignment.jobs.estimates import Active, Begun, progress_of
from neural_alignment.jobs.job import LOGS, Job, Training, log_file
from neural_alignment.jobs.pool import Engine
from neural_alignment.losses import ACCURACY
from neural_alignment.reporting import duration
from neural_alignment.search import plan as plans
from neural_alignment.search import report
from neural_alignment.search.plan import Plan
from neural_alignment.search.propose import ProposalState, Proposer
from neural_alignment.search.records import Lines, Trial, as_trial, best_of, damaged, is_count
from neural_alignment.search.spaces import Fixed, Settings
from neural_alignment.training import hparams, lock, setup
from neural_alignment.training.config_comparison import first_difference

BEST = f"best_{ACCURACY.column}"
"""Name of the result of a trial in TensorBoard."""

_FOLDERS = ("settings", "trials", LOGS)

_START_UP_FILES = {lock.NAME, lock.NAME + files.PARTIAL, "search.yaml" + files.PARTIAL}
"""Files left by a process that was killed before it wrote `search.yaml`, besides empty folders."""


@dataclasses.dataclass(frozen=True)
class Search:
    """One search and its directory.

    Attributes:
        plan: the plan of the search.
        base: the configuration that all trials have in common.
        folder: the search directory.
    """

    plan: Plan
    base: Config
    folder: str

    def file(self, *names: str) -> str:
        """Returns the path of a file in the search directory."""
        return tf.io.gfile.join(self.folder, *names)

    def job(self, number: int) -> Training:
        """Returns the job that trains a trial; its name is the number."""
        name = f"{number:04d}"
        log = log_file(self.folder, name)
        return Training(name, self.file("settings", f"{name}.yaml"), self.file("trials", name), log=log)


def search(plan: Plan, overrides: Sequence[str], search_dir: str, engine: Engine, screen: Screen) -> list[Trial]:
    """Runs or resumes a search and writes its report, also if it is stopped after a trial has finished.

    Args:
        plan: the plan of the search.
        overrides: `key.path=value`, applied to the base configuration.
        search_dir: the search directory to create or resume.
        engine: runs the trials.
        screen: shows a line per trial, and the progress of the running trials.

    Returns:
        All trials that have ended, ordered by number.

    Raises:
        ConfigError: if the space does not fit the configuration.
        DataError: if the number of classes has to be read from the data, and the data cannot be read.
        RunError: if the directory belongs to another search, is in use, or is damaged.
        Stopped: at a signal, or if the disk is full; the same call resumes the search.
    """
    searched = Search(plan, plans.base_config(plan, overrides), search_dir)
    plans.check(plan, searched.base)
    chance = 1.0 / setup.data_facts(searched.base).classes
    _check_same(searched)
    with files.full_disk_reported(search_dir, "repeat the command"):
        _make(search_dir)
        with lock.held(search_dir) as check_held:
            _check_same(searched)
            # The stored plan refers to the copy of the configuration in the same directory.
            stored = plan.model_copy(update={"config": "base.yaml"})
            files.write_whole(searched.file("search.yaml"), stored.dump())
            files.write_whole(searched.file("base.yaml"), configuration.dump(searched.base))
            trials = Ledger(searched, engine, chance, screen, check_held)
            trials.announce()
            trials.show_in_tensorboard()
            try:
                engine.run(trials)
            except Stopped:
                with contextlib.suppress(tf.errors.OpError):  # Such as of a full disk, which may be what stopped it.
                    if best_of(trials.trials()) is not None:
                        report.write(plan, searched.base, trials.trials(), search_dir)
                raise
            report.write(plan, searched.base, trials.trials(), search_dir)
            return trials.trials()


def _make(search_dir: str) -> None:
    try:
        for name in _FOLDERS:
            tf.io.gfile.makedirs(tf.io.gfile.join(search_dir, name))
    except tf.errors.OpError as error:
        raise RunError(f"{search_dir}: cannot be used as a search directory: {error.message[:200]}") from None


def _check_same(searched: Search) -> None:
    """Checks that the directory is new or holds this search; the number of trials may differ.

    Raises:
        RunError: if it contains another search, a damaged one, or other files.
    """
    folder = searched.folder
    if not tf.io.gfile.exists(folder):
        return
    if not tf.io.gfile.isdir(folder):
        raise RunError(f"{folder}: must be a directory; found a file; choose another --search-dir")
    path, base_path = searched.file("search.yaml"), searched.file("base.yaml")
    if not tf.io.gfile.exists(path):
        if others := _content(folder):
            raise RunError(
                f"{folder}: is not a search directory: contains {min(others)}, but no search.yaml; restore it, or "
                "choose another --search-dir"
            )
        return
    with _damage_reported("choose another --search-dir"):
        stored = plans.load(path)
    was, now = (_identity(each) for each in (stored, searched.plan))
    keys = (key for key in was | now if was.get(key) != now.get(key))
    difference = next((f"{key} was {was.get(key)!r}, is now {now.get(key)!r}" for key in keys), None)
    if difference is None and tf.io.gfile.exists(base_path):
        with _damage_reported("remove it: it is written again"):
            bases = configuration.load(base_path), searched.base
        difference = first_difference(*(plans.common_config(searched.plan, base) for base in bases))
    if difference:
        raise RunError(f"{folder}: holds another search: {difference}; choose another --search-dir")


@contextlib.contextmanager
def _damage_reported(remedy: str) -> Iterator[None]:
    """Adds a remedy to the error of a damaged file of the search.

    Args:
        remedy: the remedy if there is no copy of the file.

    Raises:
        RunError: if a file cannot be read within the context.
    """
    try:
        yield
    except ConfigError as error:
        raise RunError(f"{error}; restore it, or {remedy}") from None


def _content(folder: str) -> set[str]:
    """Returns the names of the files in a folder, and in the folders of a search in it, without start-up files."""
    names = {name.rstrip("/") for name in tf.io.gfile.listdir(folder)} - _START_UP_FILES
    for inner in names.intersection(_FOLDERS):
        names.remove(inner)
        names.update(f"{inner}/{name.rstrip('/')}" for name in tf.io.gfile.listdir(tf.io.gfile.join(folder, inner)))
    return names


def _identity(plan: Plan) -> dict[str, Any]:
    """Returns the keys and values of a plan that distinguish one search from another."""
    keys = plan.model_dump(exclude={"config", "space", "trials", "seconds"})
    return keys | {f"space.{name}": entry for name, entry in plan.space.items()}


class Ledger:
    """The trials of a search as a queue of jobs (`jobs.pool.Queue`), with their settings and results.

    The settings of a trial are written to a file before it starts, so that a resumed trial has the same settings.

    Args:
        searched: the search.
        engine: runs the trials; its number of slots is needed for the time left.
        chance: score of a diverged trial, a fraction.
        screen: shows a line per trial, and the progress of the running trials.
        check_held: raises an error if another process has taken over the directory.

    Raises:
        RunError: if a file of the search is damaged.
    """

    def __init__(self, searched: Search, engine: Engine, chance: float, screen: Screen, check_held: Callable[[], None]):
        self.folder = searched.folder
        self.independent = searched.plan.algorithm == "random"
        self._search = searched
        self._plan = searched.plan
        self._space = searched.plan.checked_space
        self._engine = engine
        self._screen = screen
        self._check_held = check_held
        self._proposer = Proposer(searched.plan)
        self._chance = chance
        self._lock = threading.RLock()
        self._proposals = Lines(searched.file("proposals.jsonl"))
        self._endings = Lines(searched.file("trials.jsonl"))
        self._drawn = self._read_proposals()
        self._trials = self._read_trials()
        self._drawn = {number: self._drawn_in(trial) for number, trial in self._trials.items()} | self._drawn
        # Trials that an earlier process started but did not complete come first.
        self._waiting = sorted(self._drawn.keys() - self._trials.keys())
        self._active: dict[int, Active] = {}

    def _read_proposals(self) -> dict[int, Settings]:
        """Returns trial number -> drawn settings."""
        path, drawn = self._proposals.path, {}
        for row in self._proposals.rows():
            is_proposal = row.keys() == {"number", "drawn"} and is_count(row["number"])
            if not is_proposal or not self._space.may_draw(row["drawn"]):
                raise damaged(path, row, "is not a proposal")
            if row["number"] in drawn:
                raise damaged(path, row, f"is the second line of trial {row['number']}")
            drawn[row["number"]] = row["drawn"]
        return drawn

    def _read_trials(self) -> dict[int, Trial]:
        """Returns trial number -> trial, for the trials that have ended."""
        path, trials = self._endings.path, {}
        for row in self._endings.rows():
            trial = as_trial(row, path)
            if trial.settings.keys() != self._space.kinds.keys() or not self._space.may_draw(self._drawn_in(trial)):
                raise damaged(path, row, "has settings that are not of the space of the search")
            if trial.number in trials:
                raise damaged(path, row, f"is the second line of trial {trial.number}")
            trials[trial.number] = trial
        return trials

    def _drawn_in(self, trial: Trial) -> Settings:
        """Returns the drawn settings of a trial that has ended, also if its line in `proposals.jsonl` was removed."""
        return {name: trial.settings[name] for name in self._space.sampled}

    def show_in_tensorboard(self) -> None:
        """Writes the columns of TensorBoard's dashboard HPARAMS, and the rows of the trials that have ended."""
        if not self._search.base.logging.tensorboard:
            return
        hparams.write_experiment(self.folder, self._columns, {BEST: f"best validation {ACCURACY.label}"})
        for trial in self.trials():
            self._write_session(trial)

    @functools.cached_property
    def _columns(self) -> hparams.Columns:
        """The columns of the dashboard HPARAMS."""
        varied = [name for name, kind in self._space.kinds.items() if not isinstance(kind, Fixed)]
        tried = [self._space.settings(drawn) for drawn in self._space.probes()]
        return {name: [settings[name] for settings in tried] for name in varied}

    def _write_session(self, trial: Trial) -> None:
        """Writes the row of a trial in the dashboard HPARAMS into its run directory."""
        if self._search.base.logging.tensorboard:
            columns = self._columns
            varied = {
                name: value
                for name, value in trial.settings.items()
                if name in columns and (value is not None or None in columns[name])
            }
            results = {BEST: math.nan if trial.top1 is None else trial.top1}
            place = self._search.job(trial.number).run_dir
            hparams.write_session(place, self._columns, varied, results, trial.state, trial.seconds)

    def trials(self) -> list[Trial]:
        """Returns all trials that have ended, ordered by number."""
        return [self._trials[number] for number in sorted(self._trials)]

    def left(self) -> int:
        """See `jobs.pool.Queue`."""
        with self._lock:
            return max(self._plan.trials, len(self._drawn)) - len(self._trials)

    def announce(self) -> None:
        """Reports the number of trials and the estimated time."""
        line = f"{self._plan.trials} trials of {self._plan.algorithm}, {self._engine.slots} at a time"
        if self._trials:
            line += f"; {len(self._trials)} have ended already"
        self.say(line + self._time_left(", estimate: about {} to go"))

    def next(self) -> Job | None:
        """See `jobs.pool.Queue`."""
        while True:
            with self._lock:
                self._check_held()
                if self._waiting:
                    number = self._waiting.pop(0)
                elif len(self._drawn) < self._plan.trials:
                    number = next(each for each in itertools.count(1) if each not in self._drawn)
                    self._draw(number)
                else:
                    return None
                job = self._search.job(number)
                self.begins(job)
                try:
                    config = plans.trial_config(self._plan, self._search.base, self._drawn[number])
                except ConfigError as error:  # A combination of settings that `plan.check` did not try.
                    self.ended(job, Ending("failed", reason=str(error)))
                    continue
                files.write_whole(job.config, configuration.dump(config))
                return job

    def _draw(self, number: int) -> None:
        """Draws the settings of a trial and writes them to the file of proposals."""
        before = {each: (drawn, self._state(each)) for each, drawn in self._drawn.items()}
        drawn = self._proposer.propose(number, before)
        self._proposals.append({"number": number, "drawn": drawn})
        self._drawn[number] = drawn

    def _state(self, number: int) -> ProposalState:
        """Returns the state and the score of a trial for the proposer."""
        if number not in self._trials:
            return "new", None
        score = self._trials[number].score
        return ("fail", None) if score is None else ("ok", score)

    def put_back(self, job: Job) -> None:
        """See `jobs.pool.Queue`."""
        with self._lock:
            del self._active[int(job.name)]
            self._waiting.insert(0, int(job.name))

    def waits(self, job: Job) -> None:
        """See `jobs.pool.Queue`."""
        with self._lock:
            self._active[int(job.name)] = Active(job, None)

    def begins(self, job: Job) -> None:
        """See `jobs.pool.Queue`."""
        with self._lock:
            number = int(job.name)
            self._active[number] = Active(job, Begun.now(job), f"trial {number}")

    def say(self, line: str) -> None:
        """See `jobs.pool.Queue`."""
        self._screen.line(line)

    def ended(self, job: Job, ending: Ending) -> None:
        """See `jobs.pool.Queue`."""
        number = int(job.name)
        if ending.state in ("stopped", "unavailable"):
            once = "once this is solved, " if ending.state == "unavailable" else ""
            raise Stopped(f"trial {number}: {ending.reason}", f"{once}the same command resumes")
        with self._lock:
            self._check_held()
            settings = self._space.derivable(self._drawn[number])
            trial = Trial.ended(number, ending, self._chance, self._active.pop(number).whole, settings)
            self._endings.append(dataclasses.asdict(trial))
            self._trials[number] = trial
            self._write_session(trial)
            self.say(self._line(trial) + ending.requeued)

    def show_progress(self) -> None:
        """See `jobs.pool.Queue`."""
        with self._lock:
            seconds, active = self._expected(), list(self._active.values())
            waiting = [seconds] * (self.left() - len(active))
        self._screen.status(progress_of(active, waiting, lambda name: seconds, self._engine.slots, "all trials"))

    def _line(self, trial: Trial) -> str:
        """Returns the line that reports a trial that has ended."""
        result = f"top-1 {100 * trial.top1:.2f} %" if trial.top1 is not None else f"{trial.state}: {trial.reason}"
        best = best_of(list(self._trials.values()))
        so_far = f"; best {100 * best.top1:.2f} % (trial {best.number})" if best else ""
        count = f"trial {trial.number}, {len(self._trials)} of {self._plan.trials}"
        return f"{count}: {result}{so_far}{self._time_left('; about {} left')}"

    def _time_left(self, text: str) -> str:
        """Returns `text` with the estimated time left; empty if no trial is left or no duration is known."""
        each, rest = self._expected(), self.left()
        if math.isnan(each) or not rest:
            return ""
        return text.format(duration(each * rest / min(self._engine.slots, rest)))

    def _expected(self) -> float:
        """Returns the expected duration of a trial in seconds; NaN if it is not known."""
        seconds = [trial.seconds for trial in self._trials.values()]
        if seconds:
            return statistics.fmean(seconds)
        return math.nan if self._plan.seconds is None else self._plan.seconds
