"""Runs a fixed list of jobs, each once, and reports progress and the time left."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

from neural_alignment.errors import RunError, Stopped
from neural_alignment.jobs.ending import Ending
from neural_alignment.jobs.estimates import Active, Begun, Estimates, progress_of
from neural_alignment.jobs.job import LOGS, Job
from neural_alignment.jobs.pool import Engine
from neural_alignment.reporting import duration

SUCCESSFUL = ("finished", "diverged")
"""States of jobs that have a result."""


@dataclasses.dataclass(frozen=True)
class Screen:
    """Where progress is reported.

    Attributes:
        line: prints a line that stays.
        status: shows a line that the next one replaces.
    """

    line: Callable[[str], None]
    status: Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Execution:
    """Where jobs run, where their progress is shown, and how long they are expected to take.

    Attributes:
        engine: runs the jobs.
        screen: shows progress.
        estimates: expected durations, updated whenever a job ends that began from the start.
    """

    engine: Engine
    screen: Screen
    estimates: Estimates = dataclasses.field(default_factory=Estimates)


class Batch:
    """A queue (`pool.Queue`) with a fixed list of jobs. The first job that fails ends the batch.

    Args:
        jobs: the jobs that have no result yet.
        folder: see `Queue`. It keeps the output of a job that failed.
        total: number of jobs, including those that already have a result; shown as `run NUMBER of TOTAL`.
        execution: where the jobs run.
    """

    independent = True

    def __init__(self, jobs: Sequence[Job], folder: str, total: int, execution: Execution):
        self.folder = folder
        self._waiting = collections.deque(jobs)
        self._active: dict[str, Active] = {}
        self._names = [job.name for job in jobs]
        self._left = len(jobs)
        self._total = total
        self._execution = execution
        self._lock = threading.Lock()

    def run(self) -> None:
        """Runs all jobs.

        Raises:
            RunError: if a job fails, or if its data, its directory or its TPU is unavailable.
            Stopped: after a signal; a later call resumes the interrupted jobs.
        """
        try:
            self._execution.engine.run(self)
        finally:
            self._remove_empty_folders()

    def _remove_empty_folders(self) -> None:
        """Removes the folders of logs that contain none. At the end, because other jobs may write to them before."""
        for name in self._names:
            for folder in PurePosixPath(LOGS, name).parents[:-1]:
                with contextlib.suppress(OSError):
                    Path(self.folder, folder).rmdir()

    def left(self) -> int:
        """See `Queue`."""
        return self._left

    def next(self) -> Job | None:
        """See `Queue`."""
        with self._lock:
            if not self._waiting:
                return None
            job = self._waiting.popleft()
            self._active[job.name] = Active(job, Begun.now(job))
            return job

    def put_back(self, job: Job) -> None:
        """See `Queue`."""
        with self._lock:
            del self._active[job.name]
            self._waiting.appendleft(job)

    def waits(self, job: Job) -> None:
        """See `Queue`."""
        with self._lock:
            self._active[job.name] = Active(job, None)

    def begins(self, job: Job) -> None:
        """See `Queue`."""
        with self._lock:
            self._active[job.name] = Active(job, Begun.now(job))

    def say(self, line: str) -> None:
        """See `Queue`."""
        self._execution.screen.line(line)

    def ended(self, job: Job, ending: Ending) -> None:
        """See `Queue`."""
        with self._lock:
            active = self._active.pop(job.name)
            log = _kept_log(job, ending)
            if ending.state not in SUCCESSFUL:
                self._waiting.clear()
                line = f"{job.name}: {ending.state}: {ending.reason}"
                line += f"; see {log}" if log is not None and log not in line else ""
                raise Stopped(line, "the same command resumes") if ending.state == "stopped" else RunError(line)
            self._left -= 1
            if active.begun is not None and not active.begun.done:
                self._execution.estimates.record(job.name, active.seconds)
            number = self._total - self._left
            line = f"run {number} of {self._total}: {job.name}  {job.summary(ending)}  {duration(active.seconds)}"
            self._execution.screen.line(line + ending.requeued)

    def show_progress(self) -> None:
        """See `Queue`."""
        self._execution.screen.status(self.status())

    def status(self) -> str:
        """Returns one line with the progress and the time left of each running job, and the time left of all jobs."""
        expected = self._execution.estimates.of
        with self._lock:
            active, waiting = list(self._active.values()), [expected(job.name) for job in self._waiting]
        return progress_of(active, waiting, expected, self._execution.engine.slots, "all jobs")


def _kept_log(job: Job, ending: Ending) -> str | None:
    """Removes the log of a job unless it failed and has printed something. Returns the path of a log that is kept."""
    if job.log is None or not os.path.exists(job.log):
        return None
    if ending.state == "failed" and os.path.getsize(job.log):
        return job.log
    with contextlib.suppress(OSError):  # A log that stays is no reason to stop.
        os.remove(job.log)
    return None
