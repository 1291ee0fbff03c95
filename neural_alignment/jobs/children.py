"""Child processes, each of which runs one job or one command."""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import multiprocessing.connection
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow as tf
import threadpoolctl

from neural_alignment.jobs.ending import Ending
from neural_alignment.jobs.job import Job, decode, encode
from neural_alignment.training.stopping import SIGNALS

PRELOADED = ["neural_alignment.jobs.children"]
"""Modules that the fork server imports once for all children, because importing TensorFlow takes seconds."""


class Children:
    """The child processes of this process. All methods may be called from several threads."""

    def __init__(self) -> None:
        self._alive: dict[Any, bool] = {}  # Process -> whether it has been asked to end.
        self._lock = threading.Lock()

    def run(self, job: Job, threads: int | None = None) -> Ending:
        """Runs a job in a child process and waits for it.

        Args:
            job: the job.
            threads: number of threads that an operation of TensorFlow or NumPy may use; None for one per processor.

        Returns:
            How the job ended. The state is `failed` if the child crashed or was killed.
        """
        processes = context()
        receiver, sender = processes.Pipe(duplex=False)
        process = processes.Process(target=_child, args=(sender, encode(job), threads))
        process.start()
        sender.close()
        with receiver, self._watched(process):
            ending = _received(receiver)
            process.join()
        return ending or _ending_of_exit(process.exitcode)

    def command(self, words: Sequence[str]) -> int:
        """Runs a command, waits for it, and returns its exit code."""
        options = {"stdin": subprocess.DEVNULL, "start_new_session": True}
        with subprocess.Popen(words, **options) as process, self._watched(process):
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


def context() -> Any:
    """Returns the multiprocessing context.

    On Linux, children are forks of a server process that has imported TensorFlow but not used it.
    """
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(PRELOADED)
    return processes


def redirect_output(log: str | None) -> None:
    """Appends everything that this process prints to a file; None discards it."""
    with open(log or os.devnull, "a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


def is_stop(code: int) -> bool:
    """Whether an exit code means that a process ended because of a stop signal."""
    return -code in SIGNALS or code - 128 in SIGNALS


def _received(receiver: multiprocessing.connection.Connection) -> Ending | None:
    try:
        return Ending(**receiver.recv())
    except (EOFError, ConnectionResetError):
        return None


def _ending_of_exit(code: int) -> Ending:
    """Returns the ending of a process that did not send one."""
    if is_stop(code):
        return Ending("stopped", reason="a signal before its training began")
    if code >= 0:
        return Ending("failed", reason=f"its process ended with code {code}")
    with contextlib.suppress(ValueError):
        return Ending("failed", reason=f"its process was killed by {signal.Signals(-code).name}")
    return Ending("failed", reason=f"its process was killed by signal {-code}")


def _child(sender: multiprocessing.connection.Connection, text: str, threads: int | None) -> None:
    """Runs an encoded job in this child process and sends its ending to the parent."""
    os.setpgrp()  # Ctrl-C reaches only the parent. It sends one signal; a second one would lose the state.
    threading.Thread(target=_end_with_parent, daemon=True).start()
    job = decode(text)
    redirect_output(job.log)
    if threads is not None:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        threadpoolctl.threadpool_limits(threads)
    sender.send(dataclasses.asdict(job.run()))
    sender.close()


def _end_with_parent() -> None:
    """Ends this process when its parent has ended; otherwise it would keep its run directory locked."""
    multiprocessing.parent_process().join()
    os._exit(1)
