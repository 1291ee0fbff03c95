"""Child processes, which run jobs or commands."""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import multiprocessing.connection
import multiprocessing.resource_tracker
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow as tf
import threadpoolctl
from tensorflow.python.framework import ops

from neural_alignment.data.kept import examples_kept
from neural_alignment.jobs.ending import Ending
from neural_alignment.jobs.job import Job, decode, encode
from neural_alignment.training.graphs import graphs_kept
from neural_alignment.training.stopping import SIGNALS

PRELOADED = ["neural_alignment.jobs.children"]
"""Modules that the fork server imports once for all children, because importing TensorFlow takes seconds."""


JOBS_PER_CHILD = 20
"""Maximum number of jobs of a child that stays, which bounds the memory that may leak."""


class Children:
    """The child processes of this process. All methods may be called from several threads."""

    def __init__(self) -> None:
        self._alive: dict[Any, bool] = {}  # Process -> whether it has been asked to end.
        self._lock = threading.Lock()

    def run(self, job: Job, threads: int | None = None, gpus: str | None = None) -> Ending:
        """Runs a job in a new child process and waits for it.

        Args:
            job: the job.
            threads: number of threads that an operation of TensorFlow or NumPy may use; None for one per processor.
            gpus: value of `CUDA_VISIBLE_DEVICES`; None for that of this process.

        Returns:
            How the job ended. The state is `failed` if the child crashed or was killed.
        """
        child = _Child(threads, gpus)
        with self._watched(child.process):
            ending = child.run(job)
            child.end()
        return ending or _ending_of_exit(child.process.exitcode)

    def command(self, words: Sequence[str]) -> int:
        """Runs a command, waits for it, and returns its exit code. `terminate` also ends the processes it started."""
        options = {"stdin": subprocess.DEVNULL, "start_new_session": True}
        with _Command(words, **options) as process, self._watched(process):
            return process.wait()

    def terminate(self) -> None:
        """Asks every child to save its state and end.

        Each child gets only one signal, because a second one would end it before its state is saved.
        """
        with self._lock:
            for process, asked in self._alive.items():
                if not asked:
                    process.terminate()
                self._alive[process] = True

    @contextlib.contextmanager
    def _watched(self, process: Any) -> Iterator[None]:
        with self._lock:
            self._alive[process] = False
        try:
            yield
        finally:
            with self._lock:
                del self._alive[process]


class _Command(subprocess.Popen):
    """A command that is the first process of a process group."""

    def terminate(self) -> None:
        """Sends SIGTERM to all processes of the group; otherwise those that the command started would go on."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGTERM)


class StayingChildren(Children):
    """Child processes that stay for further jobs, which then need not start TensorFlow, read the same data or trace the
    graphs of the same network again.

    A child only gets jobs that may share a process (`Job.shares_process`), and only while all its jobs had a result.
    Every other job gets a new child, which ends with it. Results do not depend on the process: `Job.run` sets or resets
    all global state. Call `end` after the last job.
    """

    def __init__(self) -> None:
        super().__init__()
        self._idle: dict[tuple[Any, ...], list[_Child]] = {}

    def run(self, job: Job, threads: int | None = None, gpus: str | None = None) -> Ending:  # noqa: D102 (as in Children)
        if not job.shares_process():
            return super().run(job, threads, gpus)
        kind = (threads, gpus, *job.imports)
        child = self._take(kind) or _Child(threads, gpus)
        with self._watched(child.process):
            ending = child.run(job)
            stays = ending is not None and ending.state in ("finished", "diverged") and child.jobs < JOBS_PER_CHILD
            if not stays:
                child.end()
        if stays:
            with self._lock:
                self._idle.setdefault(kind, []).append(child)
        return ending or _ending_of_exit(child.process.exitcode)

    def _take(self, kind: tuple[Any, ...]) -> _Child | None:
        """Returns a waiting child that is alive, or None."""
        with self._lock:
            waiting = self._idle.get(kind, [])
            while waiting:
                child = waiting.pop()
                if child.process.is_alive():
                    return child
                child.end()
        return None

    def end(self) -> None:
        """Ends the children that wait for a job."""
        with self._lock:
            idle, self._idle = self._idle, {}
        for child in (child for children in idle.values() for child in children):
            child.end()


class _Child:
    """A child process that runs jobs one after another.

    Args:
        threads: see `Children.run`.
        gpus: see `Children.run`.

    Attributes:
        process: the process.
        jobs: the number of its jobs so far.
    """

    def __init__(self, threads: int | None, gpus: str | None):
        processes = context()
        self._connection, other = processes.Pipe()
        self.process = processes.Process(target=_work, args=(other, threads, gpus))
        with _signals_of_terminal_blocked():
            self.process.start()  # The first child also starts the fork server.
        other.close()
        self.jobs = 0

    def run(self, job: Job) -> Ending | None:
        """Runs a job. Returns how it ended, or None if the process ended without an answer."""
        self.jobs += 1
        try:
            self._connection.send(encode(job))
            return Ending(**self._connection.recv())
        except (EOFError, ConnectionError):
            return None

    def end(self) -> None:
        """Ends the process after its present job, and waits for it."""
        self._connection.close()
        self.process.join()


def context() -> Any:
    """Returns the multiprocessing context.

    On Linux, children are forks of a server process that has imported TensorFlow but not used it.
    """
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(PRELOADED)
    return processes


_OF_TERMINAL = (signal.SIGINT, signal.SIGHUP)
"""Signals that a terminal sends to every process in the foreground: at Ctrl-C, and when it is closed."""


@contextlib.contextmanager
def _signals_of_terminal_blocked() -> Iterator[None]:
    """Blocks the signals of the terminal in the processes that this thread starts within the context.

    Ctrl-C would interrupt the fork server while it imports TensorFlow, and a fork server that ends cannot report how
    its children end. Other threads of this process still receive the signals.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _OF_TERMINAL)
    try:
        # The fork server needs the resource tracker, whose start unblocks SIGINT; hence it is started before.
        multiprocessing.resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, _OF_TERMINAL)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _accept_signals() -> None:
    """Ends the blocking of the signals of the terminal, and discards those that came before."""
    for each in _OF_TERMINAL:
        signal.signal(each, signal.signal(each, signal.SIG_IGN))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _OF_TERMINAL)


def redirect_output(log: str | None) -> None:
    """Appends everything that this process prints to a file, whose folder need not exist; None discards it."""
    if log is not None:
        os.makedirs(os.path.dirname(log) or ".", exist_ok=True)
    sys.stdout.flush()  # Text of an earlier job belongs to its log.
    sys.stderr.flush()
    with open(log or os.devnull, "a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


def is_stop(code: int) -> bool:
    """Whether an exit code means that a process ended because of a stop signal."""
    return -code in SIGNALS or code - 128 in SIGNALS


def _ending_of_exit(code: int) -> Ending:
    """Returns the ending of a process that did not send one."""
    if is_stop(code):
        return Ending("stopped", reason="a signal before its training began")
    if code >= 0:
        return Ending("failed", reason=f"its process ended with code {code}")
    with contextlib.suppress(ValueError):
        return Ending("failed", reason=f"its process was killed by {signal.Signals(-code).name}")
    return Ending("failed", reason=f"its process was killed by signal {-code}")


def _work(connection: multiprocessing.connection.Connection, threads: int | None, gpus: str | None) -> None:
    """Runs encoded jobs in this child process, and sends their endings to the parent, until the parent hangs up."""
    os.setpgrp()  # Ctrl-C reaches only the parent. It sends one signal; a second one would lose the state.
    _accept_signals()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if gpus is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus  # CUDA reads it when TensorFlow first asks for the GPUs.
    if threads is not None:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        threadpoolctl.threadpool_limits(threads)
    with contextlib.suppress(EOFError, ConnectionError), examples_kept(), graphs_kept():
        while True:
            job = decode(connection.recv())
            redirect_output(job.log)
            ending = job.run()
            _forget_gradients()
            connection.send(dataclasses.asdict(ending))


def _forget_gradients() -> None:
    """Removes the gradients of all graphs of this process, so that the memory of the graphs is freed.

    TensorFlow registers the gradient of every `tf.custom_gradient` in a graph under a new name and never removes it.
    The gradient refers to the graph. If the private registry changes, memory grows by the graphs of each job.
    """
    registry = getattr(ops.gradient_registry, "_registry", {})
    for name in [name for name in registry if name.startswith("CustomGradient-")]:
        del registry[name]


def _end_with_parent() -> None:
    """Ends this process when its parent has ended; otherwise it would keep its run directory locked."""
    multiprocessing.parent_process().join()
    os._exit(1)
