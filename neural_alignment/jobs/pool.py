"""The pool: engines take jobs from a queue, run them, and report to the queue how each ended."""

from __future__ import annotations

import abc
import threading
import time
from collections.abc import Sequence
from typing import ClassVar, Protocol

from neural_alignment.errors import ConfigError, Stopped
from neural_alignment.jobs.ending import Ending
from neural_alignment.jobs.job import Job
from neural_alignment.training.stopping import Stop

POLL = 0.2
"""Seconds between two checks for a signal."""

REPORT = 2.0
"""Seconds between two reports of progress."""


class Queue(Protocol):
    """The jobs of one command. Engines call all methods except `show_progress` from any thread.

    Attributes:
        folder: directory that every worker can access under this path.
        independent: whether no job depends on the results of others, so that an engine may take all jobs at once.
    """

    folder: str
    independent: bool

    def left(self) -> int:
        """Returns the number of jobs that have not ended."""

    def next(self) -> Job | None:
        """Returns the next job to start, which may depend on the results so far; None if there are no more jobs."""

    def put_back(self, job: Job) -> None:
        """Takes back a job that could not be started."""

    def waits(self, job: Job) -> None:
        """Records that a job from `next` waits, in the queue of a cluster. Otherwise a job begins with `next`."""

    def begins(self, job: Job) -> None:
        """Records that a job has begun after it waited."""

    def say(self, line: str) -> None:
        """Shows a line about the engine, such as the number of a job on a cluster."""

    def ended(self, job: Job, ending: Ending) -> None:
        """Records how a job ended.

        Raises:
            Stopped: if this job was stopped or is unavailable, and no further job should start.
            RunError: if this job failed, and no further job should start.
        """

    def show_progress(self) -> None:
        """Shows the running jobs and the time left; called every `REPORT` seconds."""


class Engine(abc.ABC):
    """Where jobs run.

    Attributes:
        name: name of the engine: the value of `--engine` up to a colon.
        usage: the value of `--engine` with placeholders, for help and messages.
        option: name of the additional command-line option of this engine; None if it has none.
        slots: number of jobs at a time; smaller after a slot was lost.
    """

    name: ClassVar[str]
    usage: ClassVar[str]
    option: ClassVar[str | None] = None
    slots: int

    @classmethod
    @abc.abstractmethod
    def parse(cls, text: str, option: str | Sequence[str] | None) -> Engine:
        """Returns the engine that the command line describes.

        Args:
            text: the part of the value of `--engine` after the colon; empty without a colon.
            option: value of the additional option; None or empty if not given.

        Raises:
            ConfigError: if the text or the option is wrong, or the engine is not available on this machine.
        """

    @abc.abstractmethod
    def run(self, queue: Queue) -> None:
        """Runs jobs until the queue is empty.

        Raises:
            Stopped: after a signal, or if no slot is left; interrupted jobs can be resumed.
            Exception: the error that `queue.ended` raised, after the running jobs have saved their state and ended.
        """

    @classmethod
    def count(cls, text: str) -> int:
        """Returns the number of jobs at a time, given as text on the command line.

        Raises:
            ConfigError: if the text is not an integer from 1 to 9999.
        """
        if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 9999):
            found = f"{cls.name}:{text}" if text else cls.name
            raise ConfigError(f"--engine {cls.usage}: N must be an integer from 1 to 9999; found {found!r}")
        return int(text)


class SlotLost(Exception):  # noqa: N818 - an event outside of the program, not an error in it
    """A slot, such as a TPU, is no longer available; its job has not run."""


class SlotEngine(Engine):
    """Runs each job in one of several named slots; a thread per slot waits for the job.

    Args:
        names: names of the slots.
    """

    def __init__(self, names: Sequence[str]):
        self.slots = len(names)
        self.stopping = threading.Event()
        """Set when the pool ends early. No further job starts then."""
        self._names = list(names)
        self._loss = ""  # Why the last slot was lost.

    @abc.abstractmethod
    def run_job(self, slot: str, job: Job) -> Ending:
        """Runs a job in a slot and waits for it.

        Raises:
            SlotLost: if the slot is not available; another slot then gets the job.
        """

    @abc.abstractmethod
    def terminate(self) -> None:
        """Asks all running jobs to save their state and end. Called repeatedly, because a job may just have started."""

    def run(self, queue: Queue) -> None:  # noqa: D102 (as in Engine)
        with Stop(raises=False) as stop:
            # When a lost slot puts its job back, the other slots may already have ended: then start another round.
            while self._names and queue.left():
                self._round(queue, stop)
        if queue.left():
            reason = f"{queue.left()} jobs are left: {self._loss}"
            raise Stopped(reason, "once this is solved, the same command resumes them")

    def _round(self, queue: Queue, stop: Stop) -> None:
        """Runs a thread per slot until there are no more jobs."""
        errors: list[BaseException] = []
        self.stopping.clear()
        names = self._names[: queue.left()]
        threads = [
            threading.Thread(target=self._work, args=(name, queue, errors), name=name, daemon=True) for name in names
        ]
        for thread in threads:
            thread.start()
        try:
            self._follow(threads, queue, stop)
        finally:
            while alive := [thread for thread in threads if thread.is_alive()]:
                self.stopping.set()
                self.terminate()
                alive[0].join(POLL)
        # After a signal, jobs report that they were stopped. The signal is the cause, so it takes precedence.
        if stop.signal:
            raise Stopped(stop.signal, "the same command resumes")
        if errors:
            raise errors[0]

    def _follow(self, threads: Sequence[threading.Thread], queue: Queue, stop: Stop) -> None:
        """Shows progress until all threads have ended, or the pool has to stop."""
        due = time.monotonic() + REPORT
        while not (stop.signal or self.stopping.is_set()):
            alive = [thread for thread in threads if thread.is_alive()]
            if not alive:
                return
            alive[0].join(POLL)
            if time.monotonic() >= due:
                queue.show_progress()
                due = time.monotonic() + REPORT

    def _work(self, name: str, queue: Queue, errors: list[BaseException]) -> None:
        """Runs jobs one after another in a slot."""
        try:
            while not self.stopping.is_set() and (job := queue.next()):
                try:
                    ending = self.run_job(name, job)
                except SlotLost as loss:
                    self._names.remove(name)
                    self.slots = max(1, len(self._names))
                    self._loss = str(loss)
                    queue.put_back(job)
                    queue.say(f"{name} is not used: {loss}")
                    return
                queue.ended(job, ending)
        except BaseException as error:  # Raised again by the main thread.
            errors.append(error)
            self.stopping.set()
