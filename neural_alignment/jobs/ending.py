"""How a job ended, as derived from an exception or from the files of a run."""

from __future__ import annotations

import dataclasses
import math
import traceback
from collections.abc import Callable
from typing import Any

from neural_alignment.errors import Diverged, InputError, RunError, Stopped, TPUUnavailable, Unavailable, one_line
from neural_alignment.losses import ACCURACY
from neural_alignment.training.graphs import clear_session
from neural_alignment.training.run_directory import RunDirectory
from neural_alignment.training.stepping import finish_tracing


@dataclasses.dataclass(frozen=True)
class Ending:
    """How a job ended.

    Attributes:
        state: `"finished"`, `"diverged"` or `"failed"`; or `"stopped"` if the job was asked to end, and `"unavailable"`
            if its data, its directory or its TPU could not be used. After these two the job can be started again.
        top1: best validation top-1 accuracy over the evaluations of a finished run, a fraction; None for a computation
            and for a task without accuracy.
        reason: why the job did not finish, in one line; None if it finished.
        requeues: how often the job was interrupted and started again by a cluster.
        tpu_lost: whether its TPU could not be reached, so that no other job can use it either.
    """

    state: str
    top1: float | None = None
    reason: str | None = None
    requeues: int = 0
    tpu_lost: bool = False

    @property
    def requeued(self) -> str:
        """The number of requeues as the end of a line; empty if there were none."""
        return f"; requeued {self.requeues} time{'s' * (self.requeues > 1)}" if self.requeues else ""


def ending_of(work: Callable[[], Ending]) -> Ending:
    """Runs a function, turns an exception into an ending, and clears the global state of Keras afterwards.

    A signal or a full disk gives the state `stopped`.
    """
    try:
        return work()
    except Diverged as error:
        return Ending("diverged", reason=str(error))
    except Stopped as error:
        return Ending("stopped", reason=one_line(error.reason, None))
    except KeyboardInterrupt:
        return Ending("stopped", reason="a signal")
    except Unavailable as error:
        return Ending("unavailable", reason=one_line(error, None), tpu_lost=isinstance(error, TPUUnavailable))
    except InputError as error:
        return Ending("failed", reason=one_line(error, None))
    except Exception as error:  # A bug in one job must not end the other jobs.
        traceback.print_exc()
        return Ending("failed", reason=one_line(f"{type(error).__name__}: {error}", 300))
    finally:
        finish_tracing()  # The next job must not be traced at the same time, nor the state of Keras change meanwhile.
        clear_session()


def past_ending(run_dir: str) -> Ending | None:
    """Returns how the run in a directory ended; None if it has not ended, or if there is no run.

    The state is `failed` for a finished run whose `status.json` does not contain its result.
    """
    directory = RunDirectory(run_dir)
    try:
        status = directory.status()
    except RunError:  # `run.train` will report the problem or resume.
        return None
    if status["state"] == "diverged":
        return Ending("diverged", reason=str(status.get("reason")))
    if status["state"] != "finished":
        return None
    name = next((key for key in status if key.startswith("best_") and key != "best_step"), f"best_{ACCURACY.column}")
    value = status.get(name)
    if is_number(value):
        return Ending("finished", float(value) if name == f"best_{ACCURACY.column}" else None)
    path = directory.file("status.json")
    return Ending("failed", reason=f"{path}: is damaged: {name} is {value!r}; a number is expected")


def is_number(value: Any) -> bool:
    """Whether a value is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
