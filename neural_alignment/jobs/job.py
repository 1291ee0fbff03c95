"""Jobs: a run to train, or a function to call. They are plain data, so that engines can send them to other machines."""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import functools
import importlib
import json
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import tensorflow as tf

from neural_alignment import config as configuration
from neural_alignment import files, plugins
from neural_alignment.errors import InputError, RunError, one_line
from neural_alignment.jobs.ending import Ending, ending_of, past_ending
from neural_alignment.training import distribution, lock, run
from neural_alignment.training.existing_run import stored_state
from neural_alignment.training.metrics import MetricsFile
from neural_alignment.training.run_directory import RunDirectory

POLL = 0.2
"""Seconds between two attempts to lock a run directory."""


LOGS = "logs"
"""Name of the folder with the output of jobs, in the folder of their results."""


def log_file(folder: str, name: str) -> str | None:
    """Returns the path of the file for the output of a job; None if the folder is not local.

    Args:
        folder: the folder of the results.
        name: the name of the job.

    Raises:
        RunError: if the name leads out of the folder.
    """
    return files.confined(folder, f"{LOGS}/{name}.log") if files.is_local(folder) else None


class Job(abc.ABC):
    """One unit of work. Subclasses are dataclasses whose fields can be written as JSON.

    Attributes:
        name: identifies the job among the jobs of one queue.
        imports: the plugins that the job needs. Default: those that the process which makes the job has imported.
        log: local path of the file for the output of the job if another process runs it; None discards the output.
        restarts: how often an engine starts the job again after a time limit or the loss of its machine.
        resumes: whether the job continues after an interruption; otherwise it starts from scratch.
    """

    name: str
    log: str | None
    imports: Sequence[str]
    restarts: ClassVar[int]
    resumes: ClassVar[bool]

    def run(self) -> Ending:
        """Does the work in this process, from the start or from where it was interrupted. Never raises an error."""

        def work() -> Ending:
            plugins.import_modules(self.imports)
            return self.work()

        return ending_of(work)

    @abc.abstractmethod
    def work(self) -> Ending:
        """Does the work; may raise an error."""

    def shares_process(self) -> bool:
        """Whether the job may run in a process in which other jobs ran before, and leaves it fit for further jobs."""
        return False

    def gpus(self) -> str:
        """Returns which of the GPUs that its process sees the job uses: `none`, those it has `chosen`, or `all`."""
        return "all"

    @abc.abstractmethod
    def progress(self) -> float:
        """Returns the fraction of the work that is done, 0 to 1."""

    @abc.abstractmethod
    def summary(self, ending: Ending) -> str:
        """Returns the result in a few words."""


@dataclasses.dataclass(frozen=True)
class Training(Job):
    """Trains a run in its directory, or resumes it.

    Attributes:
        name: see `Job`.
        config: path of the configuration.
        run_dir: the run directory; may hold a run to resume.
        overrides: `key.path=value`, as for `config.load`.
        log: see `Job`.
        imports: see `Job`.
    """

    name: str
    config: str
    run_dir: str
    overrides: Sequence[str] = ()
    log: str | None = None
    imports: Sequence[str] = dataclasses.field(default_factory=plugins.imported)
    restarts: ClassVar[int] = 50
    resumes: ClassVar[bool] = True

    def work(self) -> Ending:  # noqa: D102 (as in Job)
        if past := self.ending():
            return past
        await_free(self.run_dir)
        try:
            run.train(self._config, self.run_dir, resume=True)
        except RunError as error:
            return _unusable(error)
        return self.ending() or Ending("failed", reason="its status.json is missing")

    def ending(self) -> Ending | None:
        """Returns how the run in the directory ended; None if it has not ended.

        The state is `unavailable` if the run is of another configuration, so that its result is not that of this job.
        """
        past = past_ending(self.run_dir)
        if past is not None:
            try:
                stored_state(RunDirectory(self.run_dir), self._config)
            except RunError as error:
                return _unusable(error)
        return past

    def shares_process(self) -> bool:  # noqa: D102 (as in Job)
        with contextlib.suppress(InputError):
            return distribution.shares_process(self._config.runtime)
        return False

    def gpus(self) -> str:  # noqa: D102 (as in Job)
        with contextlib.suppress(InputError):
            return distribution.gpus_used(self._config.runtime)
        return "none"

    def progress(self) -> float:  # noqa: D102 (as in Job)
        rows = self._rows()
        if not rows:
            return 0.0
        config, last = self._config, rows[-1]
        epoch = last.get("epoch", 0.0)  # If the column is missing, the run reports it when it resumes.
        return min(max(epoch / config.epochs, last["step"] / (config.max_steps or math.inf)), 1.0)

    def summary(self, ending: Ending) -> str:  # noqa: D102 (as in Job)
        criterion = self._config.loss.criterion
        if ending.state != "finished":
            return ending.state
        return f"{criterion.label} {criterion.text(self._rows()[-1][criterion.column])}"

    @functools.cached_property
    def _config(self) -> configuration.Config:
        """The configuration, read once: the user may edit the file while the job runs."""
        return configuration.load(self.config, self.overrides)

    def _rows(self) -> list[dict[str, float]]:
        return MetricsFile(tf.io.gfile.join(self.run_dir, "metrics.csv")).rows()


@dataclasses.dataclass(frozen=True)
class Computation(Job):
    """Calls a function that writes its result to a file.

    Attributes:
        name: see `Job`.
        function: `package.module:function`; called with `arguments` by keyword.
        arguments: JSON data.
        progress_file: path of a file to which the function writes the fraction that is done, 0 to 1.
        log: see `Job`.
        imports: see `Job`.
    """

    name: str
    function: str
    arguments: Mapping[str, Any]
    progress_file: str
    log: str | None = None
    imports: Sequence[str] = dataclasses.field(default_factory=plugins.imported)
    restarts: ClassVar[int] = 3  # With too short a time limit, none would finish.
    resumes: ClassVar[bool] = False

    def work(self) -> Ending:  # noqa: D102 (as in Job)
        module, _, name = self.function.partition(":")
        getattr(importlib.import_module(module), name)(**self.arguments)
        return Ending("finished")

    def progress(self) -> float:  # noqa: D102 (as in Job)
        with contextlib.suppress(tf.errors.OpError, ValueError), tf.io.gfile.GFile(self.progress_file, "r") as file:
            return float(file.read())
        return 0.0

    def summary(self, ending: Ending) -> str:  # noqa: D102 (as in Job)
        return ending.state


def _unusable(error: RunError) -> Ending:
    """Returns the ending of a run that can be repeated, because the problem is in its directory."""
    return Ending("unavailable", reason=one_line(error, None))


KINDS = {kind.__name__: kind for kind in (Training, Computation)}
"""Name in JSON -> class."""


def encode(job: Job) -> str:
    """Returns a job as JSON, which `decode` reads."""
    return json.dumps({"kind": type(job).__name__, **dataclasses.asdict(job)})


def decode(text: str) -> Job:
    """Returns the job that `encode` wrote."""
    fields = json.loads(text)
    return KINDS[fields.pop("kind")](**fields)


def await_free(run_dir: str) -> None:
    """Waits for an orphaned run to release its directory.

    A run whose parent process was killed ends soon. The lock of a lost machine expires after `lock.STALE` seconds.
    """
    until = time.monotonic() + lock.STALE + 10.0
    while tf.io.gfile.isdir(run_dir) and time.monotonic() < until:
        with contextlib.suppress(RunError), lock.held(run_dir):
            return
        time.sleep(POLL)
