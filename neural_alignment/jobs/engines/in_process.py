"""Runs jobs one after another in this process."""

from __future__ import annotations

from collections.abc import Sequence

from neural_alignment.data.kept import examples_kept
from neural_alignment.errors import ConfigError
from neural_alignment.jobs.pool import Engine, Queue
from neural_alignment.training.graphs import graphs_kept


class InProcess(Engine):
    """Runs one job at a time in this process.

    This is the fastest way to run jobs one by one, but a job that crashes ends the whole command; the same command
    resumes that job.
    """

    name = "in-process"
    usage = "in-process"
    slots = 1

    @classmethod
    def parse(cls, text: str, option: str | Sequence[str] | None) -> InProcess:  # noqa: D102 (as in Engine)
        del option
        if text:
            raise ConfigError(f"--engine in-process: takes no number; found {f'in-process:{text}'!r}")
        return cls()

    def run(self, queue: Queue) -> None:  # noqa: D102 (as in Engine)
        with examples_kept(), graphs_kept():
            while job := queue.next():
                queue.ended(job, job.run())
