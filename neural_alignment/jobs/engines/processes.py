"""Runs jobs in child processes on this machine."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence

import tensorflow as tf

from neural_alignment import processors
from neural_alignment.jobs.children import StayingChildren
from neural_alignment.jobs.ending import Ending
from neural_alignment.jobs.job import Job
from neural_alignment.jobs.pool import Queue, SlotEngine, SlotLost


class Processes(SlotEngine):
    """Runs jobs in child processes on this machine, which share the processors.

    A child runs trainings one after another. Each computation gets a new child. If a child crashes, only its present
    job fails.

    The children divide the GPUs among them, unless the configuration of a run names its GPUs. A process without a GPU
    does not run jobs that use GPUs. This process itself takes no memory on GPUs and computes on the CPU.

    Args:
        count: number of jobs at a time.
    """

    name = "processes"
    usage = "processes:N"

    def __init__(self, count: int):
        super().__init__([f"process {number}" for number in range(1, count + 1)])
        self._threads = max(1, processors.count() // count)
        self._gpus = _shares(self._names)
        if self._gpus:
            with contextlib.suppress(RuntimeError):  # TensorFlow has begun to compute.
                tf.config.set_visible_devices([], "GPU")
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
        gpus = self._gpus.get(slot)
        if gpus is not None:
            used = job.gpus()
            if used == "all" and not gpus:
                raise SlotLost("there are more processes than GPUs")
            gpus = {"none": "", "chosen": None, "all": gpus}[used]
        return self._children.run(job, self._threads, gpus)

    def terminate(self) -> None:  # noqa: D102 (as in SlotEngine)
        self._children.terminate()


def _shares(slots: Sequence[str]) -> dict[str, str]:
    """Returns slot -> its GPUs, as a value of `CUDA_VISIBLE_DEVICES`; an empty dictionary on a machine without GPUs.

    The shares are equal. If there are fewer GPUs than slots, the first slots get one each, and the others none.
    """
    count = len(tf.config.list_physical_devices("GPU"))
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = [str(number) for number in range(count)] if given is None else given.split(",")[:count]
    size = max(1, count // len(slots))
    return {slot: ",".join(gpus[size * n : size * (n + 1)]) for n, slot in enumerate(slots)} if gpus else {}
