"""Where trials are run: here, in processes of this machine, on Spark, or on TPUs by name.

An engine takes trials from `Tasks` until there are none, runs each, and says how it has ended. What is tried, what is
kept and what is said is no concern of an engine.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import os
import shlex
import shutil
import sys
import threading
from collections.abc import Sequence
from typing import Any, Protocol

import hyperopt
import numpy as np
from hyperopt import base
from hyperopt.exceptions import AllTrialsFailed

from neural_alignment.errors import ConfigError, Stopped
from neural_alignment.search import trial
from neural_alignment.search.records import Ending
from neural_alignment.search.trial import Task
from neural_alignment.training.stopping import Stop

UNAVAILABLE = 4
"""What `tpu_scripts/train.sh` ends with where its TPU could not be had."""


class Tasks(Protocol):
    """The trials of a search, as an engine sees them. May be called from any thread."""

    search_dir: str

    def left(self) -> int:
        """Returns how many trials have not ended."""

    def next(self) -> Task | None:
        """Returns a trial that is to be run now; none where there is none left."""

    def put_back(self, task: Task) -> None:
        """Takes a trial back that has not been run."""

    def ended(self, task: Task, ending: Ending) -> None:
        """Records a trial.

        Raises:
            Stopped: if the trial was stopped from outside, or could not begin: the search stops too.
        """


class Engine(Protocol):
    """Runs trials."""

    slots: int
    """How many at a time."""

    def run(self, tasks: Tasks) -> None:
        """Runs trials until there are none left.

        Raises:
            Stopped: at a signal, or where what trials need is not to be had; trials that were running can be gone on
                with.
        """


class InProcess:
    """One trial at a time, in this process: the fastest for one at a time, but a trial that crashes takes the search
    with it. Started again, the search goes on with that trial.
    """

    slots = 1

    def run(self, tasks: Tasks) -> None:
        """See `Engine`."""
        while task := tasks.next():
            tasks.ended(task, trial.train(task))


class _Threads:
    """A thread per slot, each of which waits for one trial at a time."""

    POLL = 0.2
    """Seconds between two looks for a signal."""

    def __init__(self, slots: Sequence[str]):
        self.slots = len(slots)
        self._names = list(slots)
        self._lost = ""  # Why the last slot was.
        self._children = trial.Children()

    def run_one(self, name: str, task: Task) -> Ending | None:
        """Runs a trial in a slot; returns none where the slot is lost and the trial has not been run."""
        raise NotImplementedError

    def run(self, tasks: Tasks) -> None:
        """See `Engine`."""
        with Stop(raises=False) as stop:
            # A trial that a lost slot leaves behind may find the others at their end, so they are asked again.
            while self._names and tasks.left():
                self._round(tasks, stop)
        if tasks.left():
            raise Stopped(f"{tasks.left()} trials are left: {self._lost}; the same command goes on")

    def _round(self, tasks: Tasks, stop: Stop) -> None:
        """Lets every slot take trials until it finds none."""
        errors: list[BaseException] = []
        over = threading.Event()

        def work(name: str) -> None:
            try:
                while not over.is_set() and (task := tasks.next()):
                    ending = self.run_one(name, task)
                    if ending is None:
                        self._names.remove(name)
                        tasks.put_back(task)
                        return
                    tasks.ended(task, ending)
            except BaseException as error:  # Raised again below, in the main thread.
                errors.append(error)
                over.set()

        threads = [threading.Thread(target=work, args=(name,), name=name, daemon=True) for name in self._names]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            for thread in threads:
                thread.join(self.POLL)
            if stop.signal:
                over.set()
            if over.is_set():  # Again and again: a child may have begun meanwhile.
                self._children.terminate()
        # A signal reaches children too, which say that they were stopped: it is the cause.
        if stop.signal:
            raise Stopped(f"{stop.signal}; the same command goes on")
        if errors:
            raise errors[0]


class Processes(_Threads):
    """So many trials at a time, each in a process of its own on this machine, which share its processors.

    Args:
        count: trials at a time.
    """

    def __init__(self, count: int):
        super().__init__([f"process {number}" for number in range(1, count + 1)])
        self._threads = max(1, (os.cpu_count() or 1) // count)

    def run_one(self, name: str, task: Task) -> Ending | None:
        """See `_Threads`."""
        del name
        return self._children.train(task, threads=self._threads)


class TPUs(_Threads):
    """One trial at a time on each of several TPUs.

    Args:
        names: of the TPUs, as `runtime.tpu` takes them.
        launcher: command that trains a trial on a TPU: `tpu_scripts/train.sh {tpu} {config} --run-dir {run_dir}`; its
            exit code is 4 where the TPU could not be had, whose trial is then left to the others. Where none, the
            trial is trained by a process of this machine with `runtime.tpu` set to the name.

    Raises:
        ConfigError: if the launcher does not name `{tpu}`, `{config}` and `{run_dir}`.
    """

    def __init__(self, names: Sequence[str], launcher: str | None = None):
        super().__init__(names)
        self._launcher = None if launcher is None else _command(launcher)
        if len({*names}) < len(names) or not all(names):
            raise ConfigError(f"--tpus must be names, each once, separated by commas; found {','.join(names)!r}")

    def run_one(self, name: str, task: Task) -> Ending | None:
        """See `_Threads`."""
        if self._launcher is None:
            ending = self._children.train(task, ["runtime.strategy=tpu", f"runtime.tpu={name}"])
            self._lost = (ending.reason or "").partition(";")[0]
            return None if ending.state == "unavailable" else ending
        found = {"{tpu}": name, "{config}": task.config, "{run_dir}": task.run_dir}
        words = [functools.reduce(lambda text, each: text.replace(*each), found.items(), w) for w in self._launcher]
        code = self._children.run(words)
        if code == UNAVAILABLE:
            self._lost = f"no TPU could be had, {name} the last"
            return None
        ending = trial.past_ending(task.run_dir)
        if ending is None and trial.is_stop(code):
            return Ending("stopped", reason="a signal to its launcher")
        said = f"{words[0]} ended with code {code}" if code else f"{words[0]} ended, but not the run"
        return ending or Ending("failed", reason=said)


def _command(launcher: str) -> list[str]:
    """Returns the words of a launcher's command.

    Raises:
        ConfigError: if it cannot be run, or lacks a placeholder that a trial needs.
    """
    for word in ("{tpu}", "{config}", "{run_dir}"):
        if word not in launcher:
            raise ConfigError(f"--launcher must hold {{tpu}}, {{config}} and {{run_dir}}; {word} was not found")
    try:
        words = shlex.split(launcher)
    except ValueError as error:
        raise ConfigError(f"--launcher must be a command as a shell reads it: {error}; found {launcher!r}") from None
    if shutil.which(words[0]) is None:
        raise ConfigError(f"--launcher must begin with a program that can be run; found {words[0]!r}")
    return words


class _Recorded(hyperopt.SparkTrials):
    """hyperopt's trials on Spark, of which each is a trial of a search, and is recorded when it ends.

    For hyperopt a trial is its number: proposals are made where all engines' are.
    """

    def __init__(self, tasks: Tasks, count: int, session: Any, stop: Stop):
        self._tasks = tasks
        self._running: dict[int, Task] = {}
        self._stop = stop
        super().__init__(parallelism=count, spark_session=session)

    def propose(self, new_ids: list[int], domain: base.Domain, trials: base.Trials, seed: int) -> list[Any]:
        """Returns the next trial, as hyperopt's algorithms do."""
        del seed
        task = self._tasks.next()
        if task is None:
            return []
        (tid,) = new_ids
        self._running[tid] = task
        misc = {"tid": tid, "cmd": domain.cmd, "workdir": None}
        misc |= {"idxs": {"number": [tid]}, "vals": {"number": [task.number]}}
        return trials.new_trial_docs([tid], [None], [domain.new_result()], [misc])

    def refresh(self) -> None:
        """Records what has ended; `fmin` calls it every second.

        Raises:
            Stopped: at a signal, or where what trials need is not to be had.
        """
        try:
            self._record()
        except Stopped:
            self._spark.sparkContext.cancelAllJobs()  # hyperopt would wait for the others.
            raise

    def _record(self) -> None:
        for document in self._dynamic_trials:
            if document["tid"] in self._running and document["state"] in (base.JOB_STATE_DONE, base.JOB_STATE_ERROR):
                self._tasks.ended(self._running.pop(document["tid"]), _ending_of(document))
        super().refresh()
        if self._stop.signal:
            raise Stopped(f"{self._stop.signal}; the same command goes on")


def _ending_of(document: dict[str, Any]) -> Ending:
    """Returns how a trial on Spark has ended."""
    if document["state"] == base.JOB_STATE_ERROR:
        kind, problem = document["misc"].get("error", ("", None))
        return Ending("failed", reason=f"its Spark task was lost: {(problem or kind).strip().splitlines()[-1]}")
    return Ending(**document["result"]["ending"])


def _on_executor(search_dir: str, point: dict[str, int]) -> dict[str, Any]:
    """Trains a trial where Spark has put it, in a child, for a crash would cost the executor."""
    ending = trial.Children().train(Task.at(search_dir, point["number"]))
    judged = {"status": hyperopt.STATUS_FAIL}
    if ending.state == "finished":
        judged = {"status": hyperopt.STATUS_OK, "loss": -ending.top1}
    return {**judged, "ending": dataclasses.asdict(ending)}


class Spark:
    """So many trials at a time on the executors of a Spark cluster, by `hyperopt.SparkTrials`.

    The session is that of `spark-submit`, or of this machine. Executors need the package, and must see the search
    directory under the same path.

    Args:
        count: trials at a time.

    Raises:
        ConfigError: if pyspark is not installed or Spark cannot be started.
    """

    def __init__(self, count: int):
        self.slots = count
        try:
            from pyspark.sql import SparkSession
        except ImportError:
            raise ConfigError("--spark needs pyspark: pip install 'neural_alignment[spark]'") from None
        if "PYSPARK_GATEWAY_PORT" not in os.environ:
            # Not under spark-submit: executors are this machine's, and would take whichever python3 is on the path.
            os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
        try:
            self._session = SparkSession.builder.appName("neural_alignment search").getOrCreate()
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise ConfigError(f"Spark could not be started; it needs Java 17 or newer (JAVA_HOME): {reason}") from None
        logging.getLogger("hyperopt-spark").setLevel(logging.CRITICAL)  # What goes wrong is in the records.

    def run(self, tasks: Tasks) -> None:
        """See `Engine`."""
        with Stop(raises=False) as stop:
            trials = _Recorded(tasks, self.slots, self._session, stop)
            # hyperopt says at its end which trial was best, and has none where all have failed: that is in the records.
            with contextlib.suppress(AllTrialsFailed):
                hyperopt.fmin(
                    functools.partial(_on_executor, tasks.search_dir),
                    {"number": hyperopt.hp.randint("number", 2**31 - 1)},
                    algo=trials.propose,
                    max_evals=tasks.left(),
                    trials=trials,
                    rstate=np.random.default_rng(0),
                    return_argmin=False,
                    show_progressbar=False,
                    verbose=False,
                )


def build(
    workers: int | None = None, spark: int | None = None, tpus: str | None = None, launcher: str | None = None
) -> Engine:
    """Returns the engine that the command line asks for: the trials run in this process where it asks for none.

    Raises:
        ConfigError: if it asks for two, or for one that cannot be had.
    """
    options = {"--workers": workers, "--spark": spark, "--tpus": tpus}
    asked = [name for name, value in options.items() if value is not None]
    if len(asked) > 1:
        raise ConfigError(f"{' and '.join(asked)} exclude each other; give one of them")
    if launcher is not None and tpus is None:
        raise ConfigError("--launcher is for trials on TPUs; give their names with --tpus")
    if workers:
        return Processes(workers)
    if spark:
        return Spark(spark)
    return InProcess() if tpus is None else TPUs(tpus.split(","), launcher)
