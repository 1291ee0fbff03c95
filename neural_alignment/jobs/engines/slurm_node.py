"""The part of the SLURM engine that runs on a node."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path

from neural_alignment import files
from neural_alignment.jobs.children import redirect_output
from neural_alignment.jobs.ending import Ending
from neural_alignment.jobs.job import Job, decode, encode
from neural_alignment.training.stopping import SIGNALS

SECONDS = 120.0
"""Maximum number of seconds for a command of SLURM."""


@dataclasses.dataclass(frozen=True)
class Task:
    """A job as it is sent to a node: plain data.

    Attributes:
        job: the encoded job.
        ending: path of the file for the ending.
        stop_file: path of a file that exists if the job must neither start nor be requeued.
        requeues: how often the job may be started again.
        interruptions: how often earlier SLURM jobs with the same job were interrupted.
    """

    job: str
    ending: str
    stop_file: str
    requeues: int
    interruptions: int


def run_on_node(fields: Mapping[str, str | int]) -> None:
    """Runs a job on a node, and writes its ending as JSON.

    SLURM sends a signal before the time limit and at a preemption. The run then saves its state and ends, and the SLURM
    job is requeued.

    Args:
        fields: the fields of a `Task`.
    """
    task = Task(**fields)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # Until the run installs its own: KeyboardInterrupt.
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, lambda *_: signal.raise_signal(signal.SIGTERM))
    files.remove(task.ending)
    job = decode(task.job)
    if job.log is not None:
        redirect_output(job.log)
    ending = Ending("stopped", reason="a signal") if os.path.exists(task.stop_file) else job.run()
    interruptions = task.interruptions + int(os.environ.get("SLURM_RESTART_COUNT") or 0)
    ending = dataclasses.replace(ending, requeues=interruptions)
    again = is_interrupted(ending) and not os.path.exists(task.stop_file)
    if again and interruptions >= task.requeues:
        ending, again = too_often(ending), False
    files.write_whole(task.ending, json.dumps(dataclasses.asdict(ending)))
    if again:
        _requeue()


def is_interrupted(ending: Ending) -> bool:
    """Whether a signal has stopped a job. Another reason, such as a full disk, would stop it again."""
    names = ("a signal", *(number.name for number in SIGNALS))
    return ending.state == "stopped" and (ending.reason or "").startswith(names)


def too_often(ending: Ending) -> Ending:
    """Returns the ending of a job that was interrupted more often than it may be requeued."""
    reason = f"was interrupted {ending.requeues + 1} times; raise --slurm time, or --slurm requeues"
    return dataclasses.replace(ending, state="failed", reason=reason)


def read(path: Path) -> Ending | None:
    """Returns the ending in a file; None if there is none."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        return Ending(**json.loads(path.read_text()))
    return None


def task_of(job: Job, folder: Path, requeues: int | None, interruptions: int) -> Task:
    """Returns the task of a job.

    Args:
        job: the job.
        folder: folder of the engine's files.
        requeues: see `Task`; None for the default of the job.
        interruptions: see `Task`.
    """
    count = job.restarts if requeues is None else requeues
    return Task(encode(job), str(ending_file(folder, job.name)), str(folder / "stop"), count, interruptions)


def ending_file(folder: Path, name: str) -> Path:
    """Returns the path of the file for the ending of a job."""
    return folder / "endings" / f"{name.replace('/', '__')}.json"


def _requeue() -> None:
    """Requeues the SLURM job of this process unless SLURM is ending it: after `scancel`, or to requeue it itself."""
    variables = os.environ
    if "SLURM_JOB_ID" not in variables:
        return  # A process of submitit's local executor; the command starts the job again.
    number = variables["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in variables:  # The number of one job of an array may also be that of the array.
        number = f"{variables['SLURM_ARRAY_JOB_ID']}_{variables['SLURM_ARRAY_TASK_ID']}"
    state = ["squeue", "--noheader", "--format=%T", f"--jobs={number}"]
    found = subprocess.run(state, capture_output=True, text=True, timeout=SECONDS).stdout.split()
    if found == ["RUNNING"]:
        subprocess.run(["scontrol", "requeue", number], timeout=SECONDS)
