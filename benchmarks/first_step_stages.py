"""A plugin that times the stages of each run in its process up to the end of the first training step.

The environment variables name the file that gets a line of JSON per run, the time at which the command started, and the
number of runs, after which the process ends at once.
"""

from __future__ import annotations

import functools
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

FILE, START, RUNS = "FIRST_STEP_FILE", "FIRST_STEP_START", "FIRST_STEP_RUNS"
"""Environment variables: path of the file, start of the command in seconds since the epoch, and number of runs."""

STAGES = ("imports", "data", "model", "optimizer", "tracing", "evaluation", "step")
"""The stages of a run. They overlap: data are read, and the graph of a step is traced, in threads."""


def cpu() -> float:
    """Returns the CPU seconds of this process, in the program and in the system."""
    times = os.times()
    return times.user + times.system


class Stopwatch:
    """Collects the seconds of each stage of the present run."""

    def __init__(self) -> None:
        self._begun: tuple[float, float] | None = (float(os.environ[START]), 0.0)
        self._left = int(os.environ[RUNS])
        self._stages: dict[str, float] = {}
        self.add("imports", self._begun[0])

    def begin(self) -> None:
        """Begins another run."""
        self._begun, self._stages = (time.time(), cpu()), {}

    def add(self, stage: str, since: float) -> None:
        """Adds the time since a time to a stage."""
        self._stages[stage] = self._stages.get(stage, 0.0) + time.time() - since

    def end(self) -> None:
        """Writes the times of the run after its first step; later calls do nothing."""
        if self._begun is None:
            return
        begun, used = self._begun
        stages = dict.fromkeys(STAGES, 0.0) | self._stages
        with Path(os.environ[FILE]).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"seconds": time.time() - begun, "cpu": cpu() - used, **stages}) + "\n")
        self._begun, self._left = None, self._left - 1
        if not self._left:
            os._exit(0)

    def time(self, stage: str, owner: Any, name: str) -> None:
        """Adds the duration of each call of a function or method to a stage."""
        function = getattr(owner, name)

        @functools.wraps(function)
        def timed(*arguments: Any, **options: Any) -> Any:
            since = time.time()
            try:
                return function(*arguments, **options)
            finally:
                self.add(stage, since)

        setattr(owner, name, timed)


def before(owner: Any, name: str, act: Callable[[], None]) -> None:
    """Lets a method call a function first."""
    method = getattr(owner, name)
    setattr(owner, name, functools.wraps(method)(lambda *arguments: (act(), method(*arguments))[1]))


def after(owner: Any, name: str, act: Callable[[], None]) -> None:
    """Lets a method call a function at its end."""
    method = getattr(owner, name)
    setattr(owner, name, functools.wraps(method)(lambda *arguments: (method(*arguments), act())[0]))


def install() -> None:
    """Times the stages of all runs in this process from now on."""
    from neural_alignment.jobs.job import Training
    from neural_alignment.training import evaluation, run_loop, setup, step_loop, trainer

    watch = Stopwatch()
    for stage, owner, name in (
        ("data", setup, "load_data"),
        ("model", setup, "build_model"),
        ("optimizer", setup, "compile_model"),
        ("tracing", evaluation.AlignmentProbe, "trace"),
        ("tracing", step_loop.StepLoop, "trace"),
        ("evaluation", run_loop.RunLoop, "_measure"),
        ("step", trainer.Trainer, "advance"),
    ):
        watch.time(stage, owner, name)
    before(Training, "work", watch.begin)
    after(trainer.Trainer, "advance", watch.end)


if FILE in os.environ:
    install()
