"""One trial: in this process, or in a child that may crash; and other work that children do."""

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
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf
import threadpoolctl

from neural_alignment import config as configuration
from neural_alignment.errors import Diverged, InputError, RunError, Stopped, Unavailable
from neural_alignment.search import records
from neural_alignment.search.records import Ending
from neural_alignment.training import files, lock, run
from neural_alignment.training.stopping import SIGNALS

PRELOADED = ["neural_alignment.search.trial"]
"""Imported once by the process that the children are forked from: TensorFlow takes seconds."""

POLL = 0.2
"""Seconds between two looks whether a run directory is free."""


@dataclasses.dataclass(frozen=True)
class Task:
    """A trial to be run.

    Attributes:
        number: of the trial.
        config: path of its configuration, as `train` takes it.
        run_dir: its run directory, new or left behind by an earlier life.
        log: where a child writes what it would print; none for nowhere.
    """

    number: int
    config: str
    run_dir: str
    log: str | None

    @classmethod
    def at(cls, search_dir: str, number: int) -> Task:
        """Returns a trial of a search, by where its files are."""
        name = f"{number:04d}"
        paths = [tf.io.gfile.join(search_dir, *parts) for parts in (("settings", f"{name}.yaml"), ("trials", name))]
        log = tf.io.gfile.join(search_dir, "logs", f"{name}.log") if files.is_local(search_dir) else None
        return cls(number, *paths, log)


def past_ending(run_dir: str) -> Ending | None:
    """Returns how the run that is there has ended; none where it has not, or where there is none.

    A finished run whose `status.json` does not hold its result has failed; the reason says so.
    """
    directory = run.RunDirectory(run_dir)
    try:
        status = directory.status()
    except RunError:  # `train` reports the problem, or resumes.
        return None
    if status["state"] == "finished":
        top1 = status.get("best_top1")
        if records.is_number(top1):
            return Ending("finished", float(top1))
        path = directory.file("status.json")
        return Ending("failed", reason=f"{path}: is damaged: best_top1 is {top1!r}; a number is expected")
    return Ending("diverged", reason=str(status.get("reason"))) if status["state"] == "diverged" else None


def train(task: Task, overrides: Sequence[str] = ()) -> Ending:
    """Trains a trial in this process, from its start or from where it was; one that has ended is only read.

    Args:
        task: the trial.
        overrides: `key.path=value`, of where and how a step is executed.

    Returns:
        How it has ended. A failure of any kind is an ending; a signal, or a full disk, is the ending `stopped`, data or
        a TPU that cannot be had `unavailable`.
    """
    ending = past_ending(task.run_dir)
    if ending is not None:
        return ending

    def live() -> Ending:
        await_free(task.run_dir)
        try:
            run.train(configuration.load(task.config, overrides), task.run_dir, resume=True)
        except RunError as error:  # No fault of the setting, which a repair of the directory may still show.
            return Ending("unavailable", reason=_line(str(error)))
        return past_ending(task.run_dir) or Ending("failed", reason="its status.json is gone")

    return ended(live)


def await_free(run_dir: str, patience: float = lock.STALE + 10.0) -> None:
    """Waits until a run whose starter was killed has noticed it and has let go of its directory, or `patience` seconds.

    An orphan ends within moments, the lease of a machine that is gone is stale after `lock.STALE` seconds.
    """
    until = time.monotonic() + patience
    while tf.io.gfile.isdir(run_dir) and time.monotonic() < until:
        with contextlib.suppress(RunError), lock.held(run_dir):
            return
        time.sleep(POLL)


def ended(work: Callable[[], Ending]) -> Ending:
    """Returns how some work has ended, whatever it raises; what it has built with Keras is forgotten."""
    try:
        return work()
    except Diverged as error:
        return Ending("diverged", reason=str(error))
    except Stopped as error:
        return Ending("stopped", reason=str(error))
    except KeyboardInterrupt:
        return Ending("stopped", reason="SIGINT before its training began")
    except Unavailable as error:
        return Ending("unavailable", reason=_line(str(error)))
    except InputError as error:
        return Ending("failed", reason=_line(str(error)))
    except Exception as error:  # Whatever a setting leads to, the other trials go on.
        traceback.print_exc()
        return Ending("failed", reason=_line(f"{type(error).__name__}: {error}"))
    finally:
        keras.backend.clear_session()


def _line(text: str) -> str:
    return " ".join(text.split())[:300]


class Children:
    """The processes of this one that train trials, or do other work. May be used from several threads."""

    def __init__(self) -> None:
        self._alive: dict[Any, bool] = {}
        self._lock = threading.Lock()

    def train(self, task: Task, overrides: Sequence[str] = (), threads: int | None = None) -> Ending:
        """Trains a trial in a process of its own, and waits for it.

        Args:
            task: the trial.
            overrides: as of `train`.
            threads: how many threads an operation may use; as many as there are processors where none.

        Returns:
            How it has ended; a child that was killed, or that crashed, has failed.
        """
        return self.call(train, (task, list(overrides)), threads, task.log)

    def call(
        self, work: Callable[..., Ending], arguments: Sequence[Any], threads: int | None = None, log: str | None = None
    ) -> Ending:
        """Calls a function in a process of its own, and waits for it.

        Args:
            work: a function of a module, which returns how it has ended.
            arguments: plain data, as `work` takes it.
            threads: how many threads an operation of TensorFlow or NumPy may use; as many as there are processors
                where none.
            log: where the child writes what it would print; none for nowhere.

        Returns:
            How it has ended; a child that was killed, or that crashed, has failed.
        """
        context = _context()
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_child, args=(sender, work, tuple(arguments), threads, log))
        process.start()
        sender.close()
        with receiver, self._watched(process):
            ending = _received(receiver)
            process.join()
        return ending or _end_of(process.exitcode)

    def run(self, words: Sequence[str]) -> int:
        """Runs a command, waits for it, and returns its exit code."""
        options = {"stdin": subprocess.DEVNULL, "start_new_session": True}
        with subprocess.Popen(words, **options) as process, self._watched(process):
            return process.wait()

    def terminate(self) -> None:
        """Asks all of them to save their state and end; each once, for a second signal would end it at once."""
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


def _received(receiver: multiprocessing.connection.Connection) -> Ending | None:
    try:
        return Ending(**receiver.recv())
    except (EOFError, ConnectionResetError):
        return None


def _context() -> Any:
    """Returns how children are made: forked from a process that has imported TensorFlow and done nothing with it."""
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def is_stop(code: int) -> bool:
    """Whether an exit code says that a process was asked to end, which is no fault of what it did."""
    return -code in SIGNALS or code - 128 in SIGNALS


def _end_of(code: int) -> Ending:
    """Returns how a process ended that could not say so itself."""
    if is_stop(code):
        return Ending("stopped", reason="a signal before its training began")
    if code >= 0:
        return Ending("failed", reason=f"its process ended with code {code}")
    with contextlib.suppress(ValueError):
        return Ending("failed", reason=f"its process was killed by {signal.Signals(-code).name}")
    return Ending("failed", reason=f"its process was killed by signal {-code}")


def _child(
    sender: multiprocessing.connection.Connection,
    work: Callable[..., Ending],
    arguments: tuple[Any, ...],
    threads: int | None,
    log: str | None,
) -> None:
    """What a child does."""
    os.setpgrp()  # Ctrl-C is the parent's, who then asks for an end; both at once would not let the state be saved.
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with open(log or os.devnull, "a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    if threads is not None:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        threadpoolctl.threadpool_limits(threads)
    sender.send(dataclasses.asdict(work(*arguments)))
    sender.close()


def _end_with_parent() -> None:
    """Ends this process when the one that asked for it has gone: else it would hold the run against its successor."""
    multiprocessing.parent_process().join()
    os._exit(1)
