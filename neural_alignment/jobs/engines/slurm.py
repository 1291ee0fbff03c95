"""Runs jobs on a SLURM cluster, submitted with submitit.

Files in the subfolder `slurm` of the folder of a queue:

    running.json       the SLURM jobs that have not ended, by which a restarted command finds them
    endings/NAME.json  how a job ended, written by its node
    stop               exists if jobs must neither start nor be requeued
    NUMBER_0_log.out   output of a SLURM job
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from neural_alignment import files
from neural_alignment.errors import ConfigError, Stopped
from neural_alignment.jobs.ending import Ending
from neural_alignment.jobs.engines import slurm_node, slurm_options, slurm_scheduler
from neural_alignment.jobs.engines.slurm_options import SlurmOptions
from neural_alignment.jobs.engines.slurm_scheduler import Cluster, LocalProcesses, Scheduler
from neural_alignment.jobs.job import Job, encode
from neural_alignment.jobs.pool import REPORT, Engine, Queue
from neural_alignment.training.stopping import Stop

POLL = 0.5
"""Seconds between two checks for files with endings."""

QUERY = 5.0
"""Seconds between two questions to SLURM for the states of all jobs."""

DELAY = 5.0
"""Seconds to wait after the end of a job until a shared file system shows the file with its ending."""

INTERRUPTED = ("PREEMPTED", "TIMEOUT", "NODE_FAIL", "BOOT_FAIL", "REVOKED")
"""SLURM's states of jobs that were ended from outside, so that they can be started again."""

ENDED = (*INTERRUPTED, "COMPLETED", "CANCELLED", "FAILED", "DEADLINE", "OUT_OF_MEMORY", slurm_scheduler.GONE)
"""States of jobs that have ended. In all other states a job waits, runs or is about to be requeued."""


class Slurm(Engine):
    """Runs each job as a SLURM job of one task. All nodes must see the files of the jobs under the same paths.

    Jobs that do not depend on each other's results are submitted as one array. Before its time limit, and when it is
    preempted, a job saves its state and is requeued. A restarted command finds the jobs of the one before.

    Args:
        count: number of jobs that run at a time.
        options: see `slurm_options.parse`.

    Raises:
        ConfigError: if an option is wrong, or submitit or SLURM is not installed.
    """

    name = "slurm"
    usage = "slurm:N"
    option = "slurm"

    def __init__(self, count: int, options: Sequence[str] = ()):
        self.slots = count
        self._options = slurm_options.parse(options)
        _check_available(self._options.cluster)

    @classmethod
    def parse(cls, text: str, option: str | Sequence[str] | None) -> Slurm:  # noqa: D102 (as in Engine)
        return cls(cls.count(text), option or ())

    def run(self, queue: Queue) -> None:
        """See `Engine`.

        Raises:
            ConfigError: if the folder of the queue is not on a file system of the operating system, which nodes can
                mount, or SLURM refuses the jobs.
        """
        if not files.is_local(queue.folder):
            raise ConfigError(f"--engine slurm needs a folder that all nodes mount; found {queue.folder}")
        controller = _Controller(queue, self.slots, self._options)
        with Stop(raises=False) as stop:
            try:
                controller.run(stop)
            finally:
                controller.leave()
        if stop.signal:
            raise Stopped(stop.signal, "the same command resumes")


@dataclasses.dataclass
class _Submitted:
    """A job that has been submitted.

    Attributes:
        job: the job.
        number: number of its SLURM job.
        interruptions: how often earlier SLURM jobs with the same job were interrupted.
        begun: whether SLURM has reported that it runs.
        ended: when SLURM first reported that it has ended (`time.monotonic`).
    """

    job: Job
    number: str
    interruptions: int
    begun: bool = False
    ended: float | None = None


class _Controller:
    """Submits the jobs of a queue and watches them.

    Args:
        queue: the queue.
        slots: number of jobs that run at a time.
        options: the options of the jobs.
    """

    def __init__(self, queue: Queue, slots: int, options: SlurmOptions):
        self._queue, self._slots, self._options = queue, slots, options
        self._folder = Path(queue.folder).absolute() / "slurm"
        (self._folder / "endings").mkdir(parents=True, exist_ok=True)
        self._scheduler: Scheduler = (
            Cluster(self._folder, options, slots)
            if options.cluster == "slurm"
            else LocalProcesses(self._folder, options)
        )
        self._delay = DELAY if options.cluster == "slurm" else 0.0
        self._running: dict[str, _Submitted] = {}
        self._earlier = self._read_record()
        self._asked = 0.0  # When SLURM was last asked for states.
        self._stop_file.unlink(missing_ok=True)

    def run(self, stop: Stop) -> None:
        """Runs jobs until the queue is empty or a signal arrives. Errors as for `Engine.run`."""
        due = time.monotonic() + REPORT
        while self._queue.left() and not stop.signal:
            self._start()
            self._report_endings()
            if time.monotonic() >= self._asked + (QUERY if self._delay else POLL):
                self._report_states()
            if time.monotonic() >= due:
                self._queue.show_progress()
                due = time.monotonic() + REPORT
            time.sleep(POLL)

    def leave(self) -> None:
        """Cancels the jobs that have not ended and waits for them, or leaves them running, as the options say."""
        if not self._running:
            return
        if self._options.on_exit == "leave":
            self._queue.say(f"SLURM jobs that continue: {len(self._running)}; the same command finds them")
            return
        self._stop([each.number for each in self._running.values()])
        for name in list(self._running):
            if not self._result(name):
                self._forget(name)
        self._write_record()

    def _stop(self, numbers: Sequence[str]) -> None:
        """Stops SLURM jobs and waits for their end. While the stop file exists, no job requeues itself."""
        self._stop_file.touch()
        self._scheduler.stop(numbers)
        waiting = list(numbers)
        while waiting:
            time.sleep(2 * POLL)
            states = self._scheduler.states(waiting) or {}
            waiting = [number for number in waiting if not _has_ended(states.get(number, ""))]
            # A job may have been requeued at the same moment. Running ones get no second signal, which would kill them.
            if pending := [number for number in waiting if states.get(number) == "PENDING"]:
                self._scheduler.stop(pending)

    @property
    def _stop_file(self) -> Path:
        return self._folder / "stop"

    @property
    def _record(self) -> Path:
        return self._folder / "running.json"

    def _read_record(self) -> dict[str, dict[str, str | int]]:
        """Returns job name -> encoded job, number and interruptions, for the jobs that an earlier command submitted."""
        with contextlib.suppress(OSError, ValueError):
            record = json.loads(self._record.read_text())
            if isinstance(record, dict) and all(_is_submission(row) for row in record.values()):
                return record
        return {}

    def _write_record(self) -> None:
        rows = {
            name: {"job": encode(each.job), "number": each.number, "interruptions": each.interruptions}
            for name, each in self._running.items()
        }
        files.write_whole(str(self._record), json.dumps({**self._earlier, **rows}))

    def _start(self) -> None:
        """Takes jobs from the queue, and submits those that an earlier command has not submitted."""
        jobs, new, found, replaced = self._take(), {}, 0, []
        earlier = {job.name: self._earlier.pop(job.name) for job in jobs if job.name in self._earlier}
        states = self._scheduler.states([row["number"] for row in earlier.values()]) if earlier else {}
        for job in jobs:
            row = earlier.get(job.name)
            if row is None:
                new[job.name] = (job, 0)
            elif row["job"] != encode(job):
                replaced.append(row["number"])
                new[job.name] = (job, 0)
            elif states is None or not _has_ended(states[row["number"]]) or self._result(job.name):
                self._running[job.name] = _Submitted(job, row["number"], row["interruptions"])
                found += 1
            else:
                new[job.name] = (job, row["interruptions"] + 1)
        if found:
            self._queue.say(f"SLURM jobs of an earlier command: found {found}")
        if replaced:  # They use the run directories and the files of endings of the new jobs.
            self._queue.say(f"SLURM jobs of an earlier command with other settings: stopping {len(replaced)}")
            self._stop(replaced)
            self._stop_file.unlink()
        self._submit(new)

    def _take(self) -> list[Job]:
        """Returns the jobs to start now: all of them if they are independent, otherwise one per free slot."""
        count = self._slots - len(self._running)
        if self._queue.independent and not self._running and self._options.cluster == "slurm":
            count = self._options.array
        jobs: list[Job] = []
        while len(jobs) < count and (job := self._queue.next()):
            self._queue.waits(job)
            jobs.append(job)
        return jobs

    def _submit(self, jobs: dict[str, tuple[Job, int]]) -> None:
        """Submits jobs: job name -> job and the number of its interruptions."""
        if not jobs:
            return
        for name in jobs:
            slurm_node.ending_file(self._folder, name).unlink(missing_ok=True)
        tasks = [slurm_node.task_of(job, self._folder, self._options.requeues, count) for job, count in jobs.values()]
        numbers = self._scheduler.submit(tasks)
        for number, (job, count) in zip(numbers, jobs.values(), strict=True):
            self._running[job.name] = _Submitted(job, number, count)
        self._write_record()
        first, last = numbers[0], numbers[-1].rpartition("_")[-1]
        shown = f"jobs {first} to {last}" if len(numbers) > 1 else f"job {first}"
        self._queue.say(f"submitted SLURM {shown}; logs in {self._folder}")

    def _ending(self, name: str) -> Ending | None:
        return slurm_node.read(slurm_node.ending_file(self._folder, name))

    def _result(self, name: str) -> Ending | None:
        """Returns the ending of a job unless it was stopped, after which it may be requeued."""
        ending = self._ending(name)
        return None if ending is None or ending.state == "stopped" else ending

    def _report_endings(self) -> None:
        """Reports the jobs whose nodes have written a result."""
        for name in list(self._running):
            if ending := self._result(name):
                self._end(name, ending)

    def _report_states(self) -> None:
        """Reports the jobs that have begun, were requeued, or have ended without a result."""
        self._asked = time.monotonic()
        if not self._running:
            return
        states = self._scheduler.states([each.number for each in self._running.values()])
        for name, each in list(self._running.items()):
            state = (states or {}).get(each.number, "")
            if _has_ended(state):
                each.ended = each.ended or self._asked
                if self._asked >= each.ended + self._delay:
                    self._end_without_result(name, state)
                continue
            each.ended = None  # A preempted job may have ended before it waits again.
            if each.begun != (state == "RUNNING") and state in ("RUNNING", "PENDING"):
                each.begun = state == "RUNNING"
                (self._queue.begins if each.begun else self._queue.waits)(each.job)

    def _end_without_result(self, name: str, state: str) -> None:
        """Reports or submits again a job that has ended with this state of SLURM, and has written no result."""
        each, ending = self._running[name], self._ending(name)
        if result := self._result(name):
            self._end(name, result)
        elif state == "CANCELLED":
            self._end(name, Ending("stopped", reason="its SLURM job was cancelled"))
        elif ending is not None and not slurm_node.is_interrupted(ending):
            self._end(name, ending)
        elif ending is None and state not in INTERRUPTED:
            reason = f"its SLURM job {each.number} ended with the state {state}"
            self._end(name, Ending("failed", reason=reason, requeues=each.interruptions))
        else:
            self._submit_again(each, ending or Ending("stopped", reason="a signal", requeues=each.interruptions))

    def _submit_again(self, each: _Submitted, ending: Ending) -> None:
        """Submits an interrupted job again, because SLURM has not requeued it."""
        if ending.requeues >= slurm_node.task_of(each.job, self._folder, self._options.requeues, 0).requeues:
            self._end(each.job.name, slurm_node.too_often(ending))
            return
        self._forget(each.job.name)
        self._queue.waits(each.job)
        self._submit({each.job.name: (each.job, ending.requeues + 1)})

    def _end(self, name: str, ending: Ending) -> None:
        """Reports the end of a job to the queue."""
        each = self._running[name]
        if ending.state == "failed":
            is_written = each.job.log is not None and Path(each.job.log).exists()
            log = each.job.log if is_written else slurm_scheduler.log(self._folder, each.number)
            ending = dataclasses.replace(ending, reason=f"{ending.reason}; see {log}")
        self._forget(name)
        self._write_record()
        self._queue.ended(each.job, ending)

    def _forget(self, name: str) -> None:
        """Removes a job from those that run, and its files."""
        each = self._running.pop(name)
        self._scheduler.clean(each.number)
        slurm_node.ending_file(self._folder, name).unlink(missing_ok=True)


def _has_ended(state: str) -> bool:
    return state in ENDED


def _is_submission(row: Any) -> bool:
    """Whether a value in the record is that of a submitted job."""
    kinds = {"job": str, "number": str, "interruptions": int}
    return isinstance(row, dict) and all(isinstance(row.get(name), kind) for name, kind in kinds.items())


def _check_available(cluster: str) -> None:
    if importlib.util.find_spec("submitit") is None:
        raise ConfigError("--engine slurm needs submitit: pip install 'neural_alignment[slurm]'")
    if cluster == "slurm" and shutil.which("srun") is None:
        raise ConfigError("--engine slurm: SLURM is not installed on this machine (srun was not found)")
