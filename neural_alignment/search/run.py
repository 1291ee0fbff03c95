"""The whole life of a search directory.

searches/<name>/
    search.yaml        the plan; `search` takes it again
    base.yaml          what the configurations of all trials have in common
    proposals.jsonl    a line per trial that has begun: what was drawn
    trials.jsonl       a line per trial that has ended: settings, result, reason
    settings/0001.yaml the configuration of a trial, as `train` takes it
    trials/0001/       its run directory
    logs/0001.log      what it printed, where it had a process of its own
    best.yaml, top_ten.md, top_ten.csv, importance.csv, importance.png, scores.csv, scores.png    what came of it
    lock.json          who is at work here, while somebody is
"""

from __future__ import annotations

import dataclasses
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from neural_alignment import config as configuration
from neural_alignment.config import Config
from neural_alignment.errors import ConfigError, RunError, Stopped
from neural_alignment.reporting import duration
from neural_alignment.search import plan as plans
from neural_alignment.search import report
from neural_alignment.search.engines import Engine
from neural_alignment.search.plan import Plan
from neural_alignment.search.propose import Proposer, State
from neural_alignment.search.records import Ending, Lines, Trial, as_trial, best_of, is_count
from neural_alignment.search.spaces import Settings
from neural_alignment.search.trial import Task
from neural_alignment.training import files, lock, setup
from neural_alignment.training.config_comparison import first_difference

Say = Callable[[str], None]

_BIRTH = {"settings", "trials", "logs", lock.NAME, lock.NAME + files.PARTIAL, "search.yaml" + files.PARTIAL}
"""What a process that was killed before it had written `search.yaml` may have left."""


def search(plan: Plan, overrides: Sequence[str], search_dir: str, engine: Engine, say: Say) -> list[Trial]:
    """Runs a search, or goes on with one, and writes its report.

    Args:
        plan: the search.
        overrides: `key.path=value`, laid on the base configuration.
        search_dir: the directory to make, or to go on in.
        engine: runs the trials.
        say: is told a line per trial.

    Returns:
        All trials that have ended, in their order.

    Raises:
        ConfigError: if the space does not fit the configuration.
        DataError: if the data have to be looked at for the number of classes, and cannot be.
        RunError: if the directory is another search's, in use, or damaged.
        Stopped: at a signal, or where the disk is full; the same call goes on.
    """
    base = plans.base_config(plan, overrides)
    plans.check(plan, base)
    chance = 1.0 / setup.data_facts(base).classes
    _check_same(search_dir, plan, base)
    with files.full_disk_reported(search_dir):
        _make(search_dir)
        with lock.held(search_dir) as check_held:
            _check_same(search_dir, plan, base)
            files.write_whole(tf.io.gfile.join(search_dir, "search.yaml"), _stored(plan).dump())
            files.write_whole(tf.io.gfile.join(search_dir, "base.yaml"), configuration.dump(base))
            tasks = Ledger(plan, base, search_dir, engine.slots, chance, say, check_held)
            tasks.announce()
            engine.run(tasks)
            trials = tasks.trials()
            report.write(plan, base, trials, search_dir)
            return trials


def _make(search_dir: str) -> None:
    try:
        for name in ("settings", "trials", "logs"):
            tf.io.gfile.makedirs(tf.io.gfile.join(search_dir, name))
    except tf.errors.OpError as error:
        raise RunError(f"{search_dir}: cannot be used as a search directory: {error.message[:200]}") from None


def _stored(plan: Plan) -> Plan:
    """Returns a plan as a search directory keeps it: with the configuration that lies beside it."""
    return plan.model_copy(update={"config": "base.yaml"})


def _check_same(search_dir: str, plan: Plan, base: Config) -> None:
    """Makes sure that a directory holds this search or none; more trials than before are the same search.

    Raises:
        RunError: if it holds another one, or something else.
    """
    if not tf.io.gfile.exists(search_dir):
        return
    path, base_path = (tf.io.gfile.join(search_dir, name) for name in ("search.yaml", "base.yaml"))
    if not tf.io.gfile.exists(path):
        others = {name.rstrip("/") for name in tf.io.gfile.listdir(search_dir)}
        others -= _BIRTH
        if others:
            raise RunError(f"{search_dir}: holds something else ({min(others)}); choose another --search-dir")
        return
    was, now = (_identity(each) for each in (plans.load(path), plan))
    keys = (key for key in was | now if was.get(key) != now.get(key))
    difference = next((f"{key} was {was.get(key)!r}, is now {now.get(key)!r}" for key in keys), None)
    if difference is None and tf.io.gfile.exists(base_path):
        difference = first_difference(configuration.load(base_path), base)
    if difference:
        raise RunError(f"{search_dir}: holds another search: {difference}; choose another --search-dir")


def _identity(plan: Plan) -> dict[str, Any]:
    """Returns what makes a search the one that it is."""
    own = plan.model_dump(exclude={"config", "space", "trials", "seconds"})
    return own | {f"space.{name}": entry for name, entry in plan.space.items()}


class Ledger:
    """The trials of a search: which there are, which is next, what has come of them. See `engines.Tasks`.

    A proposal is written down before its trial begins, so that the trial is the same one when it is begun again.

    Args:
        plan: the search.
        base: what all trials have in common.
        search_dir: where the records are.
        slots: trials at a time, for the time that is left.
        chance: score of a diverged trial, a fraction.
        say: is told a line per trial.
        check_held: raises where another process has taken the directory over.
    """

    def __init__(
        self,
        plan: Plan,
        base: Config,
        search_dir: str,
        slots: int,
        chance: float,
        say: Say,
        check_held: Callable[[], None],
    ):
        self.search_dir = search_dir
        self._plan = plan
        self._base = base
        self._space = plan.checked_space()
        self._slots = slots
        self._say = say
        self._check_held = check_held
        self._proposer = Proposer(plan)
        self._chance = chance
        self._lock = threading.RLock()
        self._proposals = Lines(tf.io.gfile.join(search_dir, "proposals.jsonl"))
        self._endings = Lines(tf.io.gfile.join(search_dir, "trials.jsonl"))
        self._drawn = self._read_proposals()
        self._trials = {row.number: row for row in (as_trial(r, self._endings.path) for r in self._endings.rows())}
        if unknown := self._trials.keys() - self._drawn.keys():
            raise RunError(f"{self._proposals.path}: trial {min(unknown)} is not in it; restore it")
        for number, trial in self._trials.items():
            if trial.settings.keys() != self._space.kinds.keys():
                raise RunError(
                    f"{self._endings.path}: is damaged: trial {number} has other settings than the space of the search "
                    "names; restore it, or remove the line"
                )
        # Trials of an earlier life that have not ended come first.
        self._waiting = sorted(self._drawn.keys() - self._trials.keys())
        self._begun: dict[int, float] = {}

    def _read_proposals(self) -> dict[int, Settings]:
        """Returns number -> what was drawn."""
        drawn: dict[int, Settings] = {}
        for row in self._proposals.rows():
            is_proposal = row.keys() == {"number", "drawn"} and is_count(row["number"]) and row["number"] not in drawn
            if not is_proposal or not self._space.may_draw(row["drawn"]):
                raise RunError(f"{self._proposals.path}: is damaged: {str(row)[:80]} is no proposal; restore it")
            drawn[row["number"]] = row["drawn"]
        return drawn

    def trials(self) -> list[Trial]:
        """Returns all trials that have ended, in their order."""
        return [self._trials[number] for number in sorted(self._trials)]

    def left(self) -> int:
        """See `engines.Tasks`."""
        with self._lock:
            return max(self._plan.trials, len(self._drawn)) - len(self._trials)

    def announce(self) -> None:
        """Says how much there is to do."""
        line = f"{self._plan.trials} trials of {self._plan.algorithm}, {self._slots} at a time"
        if self._trials:
            line += f"; {len(self._trials)} have ended already"
        self._say(line + self._time_left(", estimate: about {} to go"))

    def next(self) -> Task | None:
        """See `engines.Tasks`."""
        while True:
            with self._lock:
                self._check_held()
                if self._waiting:
                    number = self._waiting.pop(0)
                elif len(self._drawn) < self._plan.trials:
                    number = len(self._drawn) + 1
                    self._draw(number)
                else:
                    return None
                self._begun[number] = time.monotonic()
                task = Task.at(self.search_dir, number)
                try:
                    config = plans.trial_config(self._plan, self._base, self._drawn[number])
                except ConfigError as error:  # Of settings that go together badly, which `plan.check` has not met.
                    self.ended(task, Ending("failed", reason=str(error)))
                    continue
                files.write_whole(task.config, configuration.dump(config))
                return task

    def _draw(self, number: int) -> None:
        """Makes a proposal and writes it down."""
        before = {each: (drawn, self._state(each)) for each, drawn in self._drawn.items()}
        drawn = self._proposer.propose(number, before)
        self._proposals.append({"number": number, "drawn": drawn})
        self._drawn[number] = drawn

    def _state(self, number: int) -> State:
        """Returns what the proposer may know of a trial."""
        if number not in self._trials:
            return "new", None
        score = self._trials[number].score
        return ("fail", None) if score is None else ("ok", score)

    def put_back(self, task: Task) -> None:
        """See `engines.Tasks`."""
        with self._lock:
            self._waiting.insert(0, task.number)

    def ended(self, task: Task, ending: Ending) -> None:
        """See `engines.Tasks`."""
        if ending.state in ("stopped", "unavailable"):
            raise Stopped(f"trial {task.number}: {_first(ending.reason)}; the same command goes on")
        with self._lock:
            self._check_held()
            settings = self._space.settings(self._drawn[task.number])
            seconds = time.monotonic() - self._begun[task.number]
            trial = Trial.ended(task.number, ending, self._chance, seconds, settings)
            self._endings.append(dataclasses.asdict(trial))
            self._trials[task.number] = trial
            self._say(self._line(trial))

    def _line(self, trial: Trial) -> str:
        """Returns what is said of a trial that has ended."""
        what = f"top-1 {100 * trial.top1:.2f} %" if trial.top1 is not None else f"{trial.state}: {trial.reason}"
        best = best_of(list(self._trials.values()))
        so_far = f"; best {100 * best.top1:.2f} % (trial {best.number})" if best else ""
        count = f"trial {trial.number}, {len(self._trials)} of {self._plan.trials}"
        return f"{count}: {what}{so_far}{self._time_left('; about {} left')}"

    def _time_left(self, text: str) -> str:
        """Returns how long the rest takes, put into a text; nothing where nothing is known, or nothing is left."""
        seconds = [trial.seconds for trial in self._trials.values()]
        each = statistics.fmean(seconds) if seconds else self._plan.seconds
        rest = self.left()
        return "" if each is None or not rest else text.format(duration(each * rest / min(self._slots, rest)))


def _first(reason: str | None) -> str:
    return (reason or "").partition(";")[0]
