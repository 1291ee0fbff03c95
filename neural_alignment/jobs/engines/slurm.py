"""Runs jobs on a SLURM cluster, submitted with submitit.

submitit pickles a function and its arguments, and the node unpickles and calls it. Here the function is `run_on_node`,
and its arguments are strings: an encoded job and paths. submitit also pickles the result of the function; that file is
not read, because `run_on_node` writes the ending of the job as JSON.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from neural_alignment.errors import ConfigError, nearest
from neural_alignment.jobs.children import redirect_output
from neural_alignment.jobs.ending import Ending
from neural_alignment.jobs.job import Job, decode, encode
from neural_alignment.jobs.pool import Queue, SlotEngine
from neural_alignment.training import files

POLL = 0.5
"""Seconds between two checks whether a job has ended."""

DELAY = 5.0
"""Seconds to wait after the end of a job until a shared file system shows the file with its ending."""

INTERRUPTED = ("PREEMPTED", "TIMEOUT", "NODE_FAIL", "BOOT_FAIL", "REVOKED")
"""SLURM's states of jobs that were ended from outside, so that they can be started again."""

OPTIONS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "partition": ("slurm_partition", str),
    "time": ("timeout_min", int),
    "gpus": ("gpus_per_node", int),
    "cpus": ("cpus_per_task", int),
    "memory": ("mem_gb", int),
    "account": ("slurm_account", str),
    "qos": ("slurm_qos", str),
    "constraint": ("slurm_constraint", str),
    "cluster": ("cluster", str),
}
"""Key of `--slurm` -> parameter of submitit and its type. Time is in minutes, memory in GB."""

DEFAULTS = {"timeout_min": 60, "cluster": "slurm"}

CLUSTERS = ("slurm", "local")


class Slurm(SlotEngine):
    """Runs each job as a SLURM job of one task. All nodes must see the files of the jobs under the same paths.

    Before its time limit, and when it is preempted, a job saves its state and ends. It is then submitted again and
    resumes.

    Args:
        count: number of SLURM jobs at a time, including those that wait for a node.
        options: `key=value`, with the keys of `OPTIONS`. `cluster=local` runs the jobs as processes of this machine.

    Raises:
        ConfigError: if an option is wrong, or submitit or SLURM is not installed.
    """

    name = "slurm"
    usage = "slurm:N"
    option = "slurm"

    def __init__(self, count: int, options: Sequence[str] = ()):
        super().__init__([f"job {number}" for number in range(1, count + 1)])
        self._parameters = {**DEFAULTS, **dict(map(_parameter, options))}
        self._cluster = self._parameters.pop("cluster")
        self._lock = threading.Lock()  # submitit is not thread-safe.
        self._running: dict[Any, bool] = {}  # Job of submitit -> whether it has been cancelled.
        self._folder = Path()
        _check_available(self._cluster)

    @classmethod
    def parse(cls, text: str, option: str | Sequence[str] | None) -> Slurm:  # noqa: D102 (as in Engine)
        return cls(cls.count(text), option or ())

    def run(self, queue: Queue) -> None:
        """See `Engine`.

        Raises:
            ConfigError: if the folder of the queue is not on a file system of the operating system, which nodes can
                mount.
        """
        if not files.is_local(queue.folder):
            raise ConfigError(f"--engine slurm needs a folder that all nodes mount; found {queue.folder}")
        self._folder = Path(queue.folder).absolute() / "slurm"
        self._stop_file.unlink(missing_ok=True)
        super().run(queue)

    def run_job(self, slot: str, job: Job) -> Ending:  # noqa: D102 (as in SlotEngine)
        del slot
        for _ in range(job.restarts + 1):
            ending = self._submit(job)
            if ending.state != "stopped" or self.stopping.is_set() or ending.reason == _CANCELLED:
                return ending
        return Ending("failed", reason=f"was interrupted {job.restarts + 1} times; raise --slurm time=MINUTES")

    def terminate(self) -> None:  # noqa: D102 (as in SlotEngine)
        with self._lock:
            for job, cancelled in self._running.items():
                if not cancelled:
                    self._stop_file.touch()
                    _cancel(job, self._cluster)
                self._running[job] = True

    @property
    def _stop_file(self) -> Path:
        """Path of a file that stops jobs that have not installed their signal handler yet."""
        return self._folder / "stop"

    def _submit(self, job: Job) -> Ending:
        """Submits a job and waits for it. An interruption gives the state `stopped`."""
        result = self._folder / "endings" / f"{job.name.replace('/', '__')}.json"
        result.parent.mkdir(parents=True, exist_ok=True)
        result.unlink(missing_ok=True)
        with self._lock:
            submitted = self._executor().submit(run_on_node, encode(job), str(result), str(self._stop_file))
            self._running[submitted] = False
        while not self._is_over(submitted):
            time.sleep(POLL)
        ending = _read(result) or self._without_result(submitted, result)
        with self._lock:
            del self._running[submitted]
            for path in (submitted.paths.submitted_pickle, submitted.paths.result_pickle):
                path.unlink(missing_ok=True)
        return ending

    def _executor(self) -> Any:
        import submitit

        executor = submitit.AutoExecutor(folder=self._folder, cluster=self._cluster)
        # Only the pool restarts a job. If SLURM did so too, two jobs would train the same run.
        extra = {"slurm_additional_parameters": {"no-requeue": True}} if self._cluster == "slurm" else {}
        executor.update_parameters(name="neural_alignment", **self._parameters, **extra)
        return executor

    def _is_over(self, submitted: Any) -> bool:
        with self._lock:
            return submitted.done() or submitted.state == "PREEMPTED"

    def _without_result(self, submitted: Any, result: Path) -> Ending:
        """Returns the ending of a job that did not write one."""
        until = time.monotonic() + DELAY
        while self._cluster == "slurm" and time.monotonic() < until:
            time.sleep(POLL)
            if ending := _read(result):
                return ending
        if self.stopping.is_set():
            return Ending("stopped", reason=_CANCELLED)
        with self._lock:
            state = submitted.state
        if state in INTERRUPTED:
            return Ending("stopped", reason=f"its SLURM job {submitted.job_id} ended with the state {state}")
        if state.startswith("CANCELLED"):
            return Ending("stopped", reason=_CANCELLED)
        log = submitted.paths.stderr
        return Ending("failed", reason=f"its SLURM job {submitted.job_id} ended with the state {state}; see {log}")


_CANCELLED = "its SLURM job was cancelled"


def run_on_node(text: str, result: str, stop_file: str) -> None:
    """Runs an encoded job on a node, and writes its ending as JSON.

    When SLURM sends a signal, before the time limit or at preemption, a run saves its state and ends.

    Args:
        text: the encoded job.
        result: path of the file for the ending.
        stop_file: path of a file that exists if the job must not start.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # Until the run installs its own: KeyboardInterrupt.
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, lambda *_: signal.raise_signal(signal.SIGTERM))
    job = decode(text)
    if job.log is not None:
        redirect_output(job.log)
    ending = Ending("stopped", reason="a signal") if os.path.exists(stop_file) else job.run()
    files.write_whole(result, json.dumps(dataclasses.asdict(ending)))


def _read(result: Path) -> Ending | None:
    with contextlib.suppress(OSError, ValueError, TypeError):
        return Ending(**json.loads(result.read_text()))
    return None


def _cancel(job: Any, cluster: str) -> None:
    """Sends SIGTERM to a job of submitit, so that its run saves its state and ends."""
    with contextlib.suppress(OSError):
        if cluster == "local":
            os.kill(int(job.job_id), signal.SIGTERM)  # `job.cancel` would kill it after a second.
        else:
            job.cancel(check=False)


def _check_available(cluster: str) -> None:
    if importlib.util.find_spec("submitit") is None:
        raise ConfigError("--engine slurm needs submitit: pip install 'neural_alignment[slurm]'")
    if cluster == "slurm" and shutil.which("srun") is None:
        raise ConfigError("--engine slurm: SLURM is not installed on this machine (srun was not found)")


def _parameter(option: str) -> tuple[str, Any]:
    """Returns the name and value of the submitit parameter that an option `key=value` sets."""
    key, equals, text = option.partition("=")
    if key not in OPTIONS:
        allowed = ", ".join(OPTIONS)
        raise ConfigError(f"--slurm {option}: the key must be one of {allowed}; found {key!r}{nearest(key, OPTIONS)}")
    parameter, kind = OPTIONS[key]
    if not (equals and text):
        raise ConfigError(f"--slurm {key}=VALUE: the value is missing; found {option!r}")
    if kind is int and not (text.isascii() and text.isdigit() and 1 <= int(text) <= 10**6):
        raise ConfigError(f"--slurm {key}: must be an integer from 1 to 1000000; found {text!r}")
    if key == "cluster" and text not in CLUSTERS:
        raise ConfigError(f"--slurm cluster: must be slurm or local; found {text!r}{nearest(text, CLUSTERS)}")
    return parameter, kind(text)
