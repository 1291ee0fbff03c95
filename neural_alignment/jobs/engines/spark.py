"""Jobs on the executors of a Spark cluster."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Sequence
from typing import Any

from neural_alignment.errors import ConfigError
from neural_alignment.jobs.children import Children
from neural_alignment.jobs.ending import Ending
from neural_alignment.jobs.job import Job, decode, encode
from neural_alignment.jobs.pool import SlotEngine


class Spark(SlotEngine):
    """Runs each job as a Spark job of one task.

    The session is that of `spark-submit`, or a local one. Executors need this package, and must reach the files of the
    jobs under the same paths.

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

    @classmethod
    def parse(cls, text: str, option: str | Sequence[str] | None) -> Spark:  # noqa: D102 (as in Engine)
        del option
        return cls(cls.count(text))

    def run_job(self, slot: str, job: Job) -> Ending:  # noqa: D102 (as in SlotEngine)
        del slot
        try:
            tasks = self.session.sparkContext.parallelize([encode(job)], 1)
            (ending,) = tasks.map(run_on_executor).collect()
        except Exception as error:
            if self.stopping.is_set():
                return Ending("stopped", reason="its Spark task was cancelled")
            return ending_of_lost_task(error)
        return Ending(**ending)

    def terminate(self) -> None:  # noqa: D102 (as in SlotEngine)
        self.session.sparkContext.cancelAllJobs()


def run_on_executor(text: str) -> dict[str, Any]:
    """Runs an encoded job in a child process of the executor, which survives if the job crashes."""
    return dataclasses.asdict(Children().run(decode(text)))


def ending_of_lost_task(error: Exception) -> Ending:
    """Returns the ending of a job whose Spark task failed without a result: the last line of Spark's message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    causes = [line for line in lines if not line.startswith(("at ", "..."))] or [type(error).__name__]
    from py4j.protocol import Py4JJavaError

    if isinstance(error, Py4JJavaError):
        return Ending("failed", reason=f"its Spark task was lost: {causes[-1][:300]}")
    return Ending("unavailable", reason=f"Spark has stopped: {causes[-1][:300]}")


def _session() -> Any:
    """Returns the Spark session; errors as of `Spark`."""
    try:
        from pyspark.sql import SparkSession
    except ImportError:
        raise ConfigError("--engine spark needs pyspark: pip install 'neural_alignment[spark]'") from None
    if "PYSPARK_GATEWAY_PORT" not in os.environ:
        # Not under spark-submit: the executors are on this machine, and would use the first python3 of the path.
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    try:
        return SparkSession.builder.appName("neural_alignment").getOrCreate()
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"Spark could not be started; it needs Java 17 or newer (JAVA_HOME): {reason}") from None
