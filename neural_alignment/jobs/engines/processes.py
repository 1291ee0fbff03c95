"""Runs jobs in child processes on this machine."""

from __future__ import annotations

import os
from collections.abc import Sequence

from neural_alignment.jobs.children import StayingChildren
from neural_alignment.jobs.ending import Ending
from neural_alignment.jobs.job import Job
from neural_alignment.jobs.pool import Queue, SlotEngine


class Processes(SlotEngine):
    """Runs jobs in child processes on this machine, which share the processors.

    A child runs trainings one after another. Each computation gets a new child. If a child crashes, only its present
    job fails.

    Args:
        count: number of jobs at a time.
    """

    name = "processes"
    usage = "processes:N"

    def __init__(self, count: int):
        super().__init__([f"process {number}" for number in range(1, count + 1)])
        self._threads = max(1, (os.cpu_count() or 1) // count)
        self._children = StayingChildren()

    @classmethod
    def parse(cls, text: str, option: str | Sequence[str] | None) -> Processes:  # noqa: D102 (as in Engine)
        del option
        return cls(cls.count(text))

    def run(self, queue: Queue) -> None:  # noqa: D102 (as in Engine)
        try:
            super().run(queue)
        finally:
            self._children.end()

    def run_job(self, slot: str, job: Job) -> Ending:  # noqa: D102 (as in SlotEngine)
        del slot
        return self._children.run(job, self._threads)

    def terminate(self) -> None:  # noqa: D102 (as in SlotEngine)
        self._children.terminate()
