"""Time to the end of the first training step: the command `train` and a second run in a process, beside plain Keras."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT, Benchmark, Check, Report, Samples, UnavailableError, interleave, middle, table
from benchmarks.first_step_stages import FILE, RUNS, STAGES, START

RESNET18 = "configs/cifar10/resnet18"
BRIEF = ["data.validation_split=test[:500]"]
"""Overrides that shorten the evaluation between the first steps of two runs in one process."""

FULL = {
    "as configured, width 16": {
        "configs": [f"{RESNET18}/symmetric.yaml", f"{RESNET18}/information.yaml"],
        "overrides": [],
        "brief": BRIEF,
        "plain": ["cifar10", "16"],
        "rounds": 5,
    },
    "width 64": {
        "configs": [f"{RESNET18}/symmetric.yaml"],
        "overrides": ["model.width=64"],
        "brief": BRIEF,
        "plain": ["cifar10", "64"],
        "rounds": 5,
    },
}
SMALL = {
    "digits": {
        "configs": ["configs/quickstart.yaml"],
        "overrides": [],
        "brief": [],
        "plain": ["digits", "8"],
        "rounds": 1,
    }
}

LIMIT = 1.3
"""Limit on the ratio of `train` to plain Keras."""

SECOND_LIMIT = LIMIT / 3
"""Limit on the ratio of a second run in a process that stays to plain Keras."""

PLAIN = "plain Keras"
SECOND = ", second run"
QUANTITIES = ("seconds", "cpu", *STAGES)

Measurement = dict[str, float]
"""Quantity of `QUANTITIES` -> seconds."""


def measure(samples: Samples, sizes: dict[str, Any]) -> None:
    """Starts a new process for every sample.

    Raises:
        UnavailableError: if CIFAR-10 is unavailable.
    """
    if sizes is FULL and not os.environ.get("TFDS_DATA_DIR"):
        raise UnavailableError("CIFAR-10 is missing: set TFDS_DATA_DIR to a folder with TensorFlow Datasets' cifar10")
    for case, size in sizes.items():
        interleave(samples, case, contenders(size), size["rounds"], warm_up=0)


def contenders(size: dict[str, Any]) -> dict[str, Callable[[], Measurement]]:
    """Returns contender -> function that measures it once."""
    found: dict[str, Callable[[], Measurement]] = {
        PLAIN: lambda: measured(["-m", "benchmarks.first_step_keras", *size["plain"]])
    }
    for config in size["configs"]:
        found[config] = lambda config=config: first_run(config, size["overrides"])
        found[config + SECOND] = lambda config=config: second_run(config, [*size["overrides"], *size["brief"]])
    return found


def first_run(config: str, overrides: Sequence[str]) -> Measurement:
    """Measures the command `train`, which ends after its first step.

    Args:
        config: path of a configuration file.
        overrides: values of the option `--set`.
    """
    with tempfile.TemporaryDirectory() as folder:
        options = [part for override in overrides for part in ("--set", override)]
        command = ["-m", "neural_alignment.cli", "train", config, "--run-dir", f"{folder}/run", *options]
        return measured([*command, "--import", "benchmarks.first_step_stages"])


def second_run(config: str, overrides: Sequence[str]) -> Measurement:
    """Measures the second of two runs of a network with different seeds in a process that stays.

    The arguments are those of `first_run`.
    """
    with tempfile.TemporaryDirectory() as folder:
        return measured(["-m", "benchmarks.first_step", config, folder, "max_steps=1", *overrides], runs=2)


def measured(arguments: Sequence[str], runs: int = 1) -> Measurement:
    """Runs Python until the first step of the last of its runs. Returns the times of that run.

    Args:
        arguments: the arguments of Python.
        runs: the number of runs.

    Raises:
        RuntimeError: if it ends without a step.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "times"
        environment = {**os.environ, FILE: str(path), START: repr(time.time()), RUNS: str(runs)}
        process = subprocess.run(
            [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
        )
        if not path.exists() or len(path.read_text(encoding="utf-8").splitlines()) < runs:
            text = f"{' '.join(arguments)} made no step, exit code {process.returncode}: {process.stderr[-500:]}"
            raise RuntimeError(text)
        return json.loads(path.read_text(encoding="utf-8").splitlines()[-1])


def train_twice(config: str, folder: str, overrides: Sequence[str]) -> None:
    """Trains two runs with different seeds in a process that stays, as a search or a lab does."""
    from neural_alignment.jobs.children import StayingChildren
    from neural_alignment.jobs.job import Training

    children = StayingChildren()
    for seed in (0, 1):
        run_dir, settings = f"{folder}/{seed}", [*overrides, f"seed={seed}"]
        children.run(Training(str(seed), config, run_dir, settings, imports=["benchmarks.first_step_stages"]))
    children.end()


def report(samples: Samples, sizes: dict[str, Any]) -> Report:
    """Returns the table of ratios and that of the stages."""
    ratios, stages, checks = [], [], []
    for case, size in sizes.items():
        for name in contenders(size):
            stages.append([name, case, *(middle(samples.values(case, name, each))[0] for each in QUANTITIES)])
            if name == PLAIN:
                continue
            limit = SECOND_LIMIT if name.endswith(SECOND) else LIMIT
            row = [middle(samples.ratios(case, name, PLAIN, each))[0] for each in ("seconds", "cpu")]
            ratios.append([name, case, *row, limit])
            pairs = zip(("time", "CPU time"), row, strict=True)
            checks += [
                Check(f"{each} to the first step over {PLAIN}, {name}, {case}", value, limit) for each, value in pairs
            ]
    text = (
        "From the start of the process to the end of the first training step. A second run is measured from its own "
        "start, in the process of a search or a lab that has trained another seed of the same network. Plain Keras "
        "trains the same network by backpropagation in `fit`; it neither measures the alignment at step 0 nor writes "
        "files. Medians of "
        f"{min(samples.rounds(case) for case in sizes)} or more starts; ratios are those within a round.\n\n"
        f"{table(['run', 'size', f'time / {PLAIN}', f'CPU time / {PLAIN}', 'limit'], ratios)}\n\n"
        "Seconds of each stage. Stages overlap, because data are read and graphs are traced in threads. `optimizer` "
        "creates the variables of the optimizers and the metrics; `evaluation` is the row of step 0 with its files; in "
        "plain Keras, `step` includes reading the data and tracing.\n\n"
        f"{table(['run', 'size', 'time', 'CPU time', *STAGES], stages)}"
    )
    return Report(text, checks)


BENCHMARK = Benchmark("first_step", "Time to the first step", 6, FULL, SMALL, measure, report)

if __name__ == "__main__":
    train_twice(sys.argv[1], sys.argv[2], sys.argv[3:])
