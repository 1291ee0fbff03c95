"""Runs jobs on the executors of a Spark cluster."""

from __future__ import annotations

import dataclasses
import os
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from neural_alignment import files
from neural_alignment.errors import ConfigError, one_line, shortened
from neural_alignment.jobs.children import Children
from neural_alignment.jobs.ending import Ending
from neural_alignment.jobs.job import Job, decode, encode
from neural_alignment.jobs.pool import Queue, SlotEngine

GRACE = 60.0
"""Seconds that jobs have to save their state before Spark cancels them."""

POLL = 1.0
"""Seconds between two checks for the file that asks jobs to stop."""


class Spark(SlotEngine):
    """Runs each job as a Spark job of one task.

    The session is that of `spark-submit`, or a local one. Executors need this package, and must see the files of the
    jobs under the same paths. To stop the jobs, the engine creates a file that executors check for, because Spark would
    kill a cancelled task at once. Jobs that have not ended after `GRACE` seconds are cancelled.

    Args:
        count: number of jobs at a time.

    Raises:
        ConfigError: if pyspark is not installed or Spark cannot be started.
    """

    name = "spark"
    usage = "spark:N"

    def __init__(self, count: int):
        super().__init__([f"task {number}" for number in range(1, count + 1)])
        self.session = _session()
        self._stop_file = ""
        self._asked: float | None = None  # When the jobs were asked to stop.

    @classmethod
    def parse(cls, text: str, option: str | Sequence[str] | None) -> Spark:  # noqa: D102 (as in Engine)
        del option
        return cls(cls.count(text))

    def run(self, queue: Queue) -> None:  # noqa: D102 (as in Engine)
        self._stop_file, self._asked = tf.io.gfile.join(queue.folder, "spark_stop"), None
        files.remove(self._stop_file)
        try:
            super().run(queue)
        finally:
            files.remove(self._stop_file)

    def run_job(self, slot: str, job: Job) -> Ending:  # noqa: D102 (as in SlotEngine)
        del slot
        try:
            tasks = self.session.sparkContext.parallelize([(encode(job), self._stop_file)], 1)
            (ending,) = tasks.map(run_on_executor).collect()
        except Exception as error:
            if self.stopping.is_set():
                return Ending("stopped", reason="its Spark task was cancelled")
            return ending_of_lost_task(error)
        return Ending(**ending)

    def terminate(self) -> None:  # noqa: D102 (as in SlotEngine)
        if self._asked is None:
            self._asked = time.monotonic()
            files.write_whole(self._stop_file, "")
        elif time.monotonic() > self._asked + GRACE:
            self.session.sparkContext.cancelAllJobs()


def run_on_executor(task: tuple[str, str]) -> dict[str, Any]:
    """Runs a job in a child process of the executor, so that the executor survives a crash of the job.

    Args:
        task: the encoded job, and the path of a file that exists if the job has to stop.

    Returns:
        The fields of the job's `Ending`.
    """
    text, stop_file = task
    children, ended = Children(), threading.Event()

    def watch() -> None:
        while not ended.wait(POLL):
            if tf.io.gfile.exists(stop_file):
                children.terminate()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        return dataclasses.asdict(children.run(decode(text)))
    finally:
        ended.set()


def ending_of_lost_task(error: Exception) -> Ending:
    """Returns the ending of a job whose Spark task gave no result, with the last line of Spark's message as reason."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    causes = [line for line in lines if not line.startswith(("at ", "..."))] or [type(error).__name__]
    from py4j.protocol import Py4JJavaError

    if isinstance(error, Py4JJavaError):
        return Ending("failed", reason=f"its Spark task was lost: {shortened(causes[-1], 300)}")
    return Ending("unavailable", reason=f"Spark has stopped: {shortened(causes[-1], 300)}")


def _session() -> Any:
    """Returns the Spark session; errors as for `Spark`."""
    try:
        from pyspark.sql import SparkSession
    except ImportError:
        raise ConfigError("--engine spark needs pyspark: pip install 'neural_alignment[spark]'") from None
    if "PYSPARK_GATEWAY_PORT" not in os.environ:
        # Without spark-submit, the executors are on this machine and would use the first `python3` in PATH.
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    try:
        return SparkSession.builder.appName("neural_alignment").getOrCreate()
    except Exception as error:
        reason = one_line(error)
        raise ConfigError(f"Spark could not be started; it needs Java 17 or newer (JAVA_HOME): {reason}") from None
