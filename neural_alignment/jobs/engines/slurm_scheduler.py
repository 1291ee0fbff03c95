"""The commands of SLURM, and submitit's local executor in its place.

submitit pickles a function and its arguments, and the node unpickles and calls it. Here the function is `run_on_node`,
and its argument is plain data. submitit also pickles the result of the function; that file is not read, because
`run_on_node` writes the ending of the job as JSON. The states of jobs come from `squeue`, because submitit only uses
`sacct`, which needs a database that not every cluster has.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from neural_alignment.errors import ConfigError, shortened
from neural_alignment.jobs.engines.slurm_node import SECONDS, Task, run_on_node
from neural_alignment.jobs.engines.slurm_options import SlurmOptions

NAME = "neural_alignment"
"""Name of the SLURM jobs."""

GONE = "GONE"
"""State of a job that SLURM does not know any more."""


class Scheduler(Protocol):
    """Where tasks are submitted."""

    def submit(self, tasks: Sequence[Task]) -> list[str]:
        """Submits tasks together, and returns their numbers.

        Raises:
            ConfigError: if they are refused.
        """

    def states(self, numbers: Sequence[str]) -> dict[str, str] | None:
        """Returns number -> SLURM's state, or `GONE`; None if SLURM does not answer."""

    def stop(self, numbers: Sequence[str]) -> None:
        """Asks jobs to save their state and end. Jobs that have not started are cancelled."""

    def clean(self, number: str) -> None:
        """Removes the pickled function and result of a job that has ended."""


class Cluster:
    """SLURM.

    Args:
        folder: folder for the logs and for the files of submitit.
        options: the options of the jobs.
        count: number of jobs of an array that run at a time.
    """

    def __init__(self, folder: Path, options: SlurmOptions, count: int):
        self._folder = folder
        self._parameters = _parameters(options, count)

    def submit(self, tasks: Sequence[Task]) -> list[str]:  # noqa: D102 (as in Scheduler)
        import submitit

        with _outside_of_a_job():
            executor = submitit.SlurmExecutor(self._folder)
            executor.update_parameters(**self._parameters)
            try:
                with executor.batch():
                    jobs = [executor.submit(run_on_node, dataclasses.asdict(task)) for task in tasks]
            except submitit.core.utils.FailedJobError as error:
                lines = [line for line in str(error).splitlines() if line.startswith("sbatch: ")] or [str(error)]
                reason = shortened(" ".join(" ".join(lines).replace("sbatch: error: ", "").split()), 300)
                raise ConfigError(f"--engine slurm: sbatch refused the jobs: {reason}") from None
        return [job.job_id for job in jobs]

    def states(self, numbers: Sequence[str]) -> dict[str, str] | None:  # noqa: D102 (as in Scheduler)
        known = _table("squeue", "--me", "--array", "--noheader", "--states=all", "--format=%i|%T")
        if known is None:
            return None
        states = {number: known[number] for number in numbers if number in known}
        if missing := [number for number in numbers if number not in states]:
            words = (
                "--noheader",
                "--parsable2",
                "--allocations",
                "--format=JobID,State",
                f"--jobs={','.join(missing)}",
            )
            past = _table("sacct", *words) or {}
            states |= {number: past.get(number, GONE).partition(" ")[0] for number in missing}
        return states

    def stop(self, numbers: Sequence[str]) -> None:  # noqa: D102 (as in Scheduler)
        # Without a signal, scancel kills running jobs after `KillWait` (30 seconds), whether or not they are saved.
        _run("scancel", "--quiet", "--state=PENDING", *numbers)
        _run("scancel", "--quiet", "--signal=TERM", *numbers)

    def clean(self, number: str) -> None:  # noqa: D102 (as in Scheduler)
        _remove(self._folder, number)


class LocalProcesses:
    """Processes of this machine, started by submitit.

    Args:
        folder: folder for the logs and for the files of submitit.
        options: the options of the jobs, of which only `time` has an effect.
    """

    def __init__(self, folder: Path, options: SlurmOptions):
        import submitit

        self._folder = folder
        self._executor = submitit.LocalExecutor(folder)
        self._executor.update_parameters(timeout_min=options.time, stderr_to_stdout=True)
        self._jobs: dict[str, Any] = {}

    def submit(self, tasks: Sequence[Task]) -> list[str]:  # noqa: D102 (as in Scheduler)
        jobs = [self._executor.submit(run_on_node, dataclasses.asdict(task)) for task in tasks]
        self._jobs |= {job.job_id: job for job in jobs}
        return [job.job_id for job in jobs]

    def states(self, numbers: Sequence[str]) -> dict[str, str] | None:  # noqa: D102 (as in Scheduler)
        known = {number: self._jobs[number] for number in numbers if number in self._jobs}
        states = {number: "FAILED" if job.done() else "RUNNING" for number, job in known.items()}
        return {number: states.get(number, GONE) for number in numbers}

    def stop(self, numbers: Sequence[str]) -> None:  # noqa: D102 (as in Scheduler)
        for number in self._jobs.keys() & set(numbers):
            with contextlib.suppress(OSError):
                os.kill(int(number), signal.SIGTERM)  # `job.cancel` would kill it after a second.

    def clean(self, number: str) -> None:  # noqa: D102 (as in Scheduler)
        job = self._jobs.pop(number, None)
        while job is not None and not job.done():  # The process ends soon after it has written the ending.
            time.sleep(0.05)
        _remove(self._folder, number)


def log(folder: Path, number: str) -> Path:
    """Returns the path of the file with the output of a job."""
    return folder / f"{number}_0_log.out"


def _remove(folder: Path, number: str) -> None:
    """Removes the pickled function and result of a job."""
    for name in ("submitted.pkl", "0_result.pkl"):
        (folder / f"{number}_{name}").unlink(missing_ok=True)


def _parameters(options: SlurmOptions, count: int) -> dict[str, Any]:
    """Returns the parameters of submitit."""
    extra = {"requeue": True}
    if options.gpus is not None:
        extra["gpus-per-node"] = options.gpus
    parameters = {
        **{name: getattr(options, name) for name in ("partition", "account", "qos", "constraint", "time")},
        "job_name": NAME,
        "nodes": 1,
        "ntasks_per_node": 1,
        "cpus_per_task": options.cpus,
        # Since SLURM 22.05, srun does not take the number of processors from sbatch.
        "srun_args": options.cpus and [f"--cpus-per-task={options.cpus}"],
        "mem": options.memory and f"{options.memory}GB",
        "signal_delay_s": options.save,
        "setup": options.setup or None,
        "array_parallelism": count,
        "stderr_to_stdout": True,
        "additional_parameters": {**extra, **options.sbatch},
    }
    return {**{name: value for name, value in parameters.items() if value is not None}, "wckey": None}


@contextlib.contextmanager
def _outside_of_a_job() -> Iterator[None]:
    """Hides the variables of the SLURM job that this process is part of; otherwise new jobs would get its options."""
    inside = "SLURM_JOB_ID" in os.environ
    prefixes = ("SLURM_", "SLURMD_", "SRUN_", "SUBMITIT_")
    hidden = [name for name in os.environ if inside and name.startswith(prefixes) and name != "SLURM_CONF"]
    kept = {name: os.environ.pop(name) for name in hidden}
    try:
        yield
    finally:
        os.environ.update(kept)


def _table(*words: str) -> dict[str, str] | None:
    """Returns the output of a command, `KEY|VALUE` on each line; None if the command fails."""
    output = _run(*words)
    return None if output is None else dict(line.split("|", 1) for line in output.splitlines() if "|" in line)


def _run(*words: str) -> str | None:
    """Runs a command of SLURM and returns its output; None if it fails."""
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run(words, capture_output=True, text=True, timeout=SECONDS)
        return None if done.returncode else done.stdout
    return None
