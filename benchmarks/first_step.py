"""Time from the command `neural-alignment train` to the end of its first training step."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT, Benchmark, Check, Report, Samples, UnavailableError, middle, progress, table

RESNET18 = "configs/cifar10/resnet18"
FULL = {
    "as configured, width 16": {
        "configs": [f"{RESNET18}/symmetric.yaml", f"{RESNET18}/information.yaml"],
        "overrides": [],
        "rounds": 5,
    },
    "width 64": {"configs": [f"{RESNET18}/symmetric.yaml"], "overrides": ["model.width=64"], "rounds": 5},
}
SMALL = {"digits": {"configs": ["configs/quickstart.yaml"], "overrides": [], "rounds": 1}}
LIMIT = 20.0
"""Limit on the time to the first step, in seconds."""


def measure(samples: Samples, sizes: dict[str, Any]) -> None:
    """Starts a new process for every sample.

    Raises:
        UnavailableError: if CIFAR-10 is unavailable.
    """
    if sizes is FULL and not os.environ.get("TFDS_DATA_DIR"):
        raise UnavailableError("CIFAR-10 is missing: set TFDS_DATA_DIR to a folder with TensorFlow Datasets' cifar10")
    for case, size in sizes.items():
        done, configs = samples.rounds(case), size["configs"]
        with progress(case, len(configs) * size["rounds"], len(configs) * done) as bar:
            for _ in range(done, size["rounds"]):
                measured = {}
                for config in configs:
                    measured[config] = {"seconds": seconds_to_first_step(config, size["overrides"])}
                    bar.update()
                samples.add(case, measured)


def seconds_to_first_step(config: str, overrides: list[str]) -> float:
    """Returns the seconds from the start of `neural-alignment train` to the end of its first step.

    Args:
        config: path of a configuration file.
        overrides: values of the option `--set`.

    Raises:
        RuntimeError: if the command ends without a step.
    """
    with tempfile.TemporaryDirectory() as folder:
        finished = Path(folder) / "finished"
        options = [part for override in overrides for part in ("--set", override)]
        run = ["train", config, "--run-dir", str(Path(folder) / "run"), *options]
        command = [sys.executable, "-m", "benchmarks.first_step", str(finished), *run]
        start = time.time()
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if not finished.exists():
            raise RuntimeError(f"{' '.join(run)} made no step, exit code {ended.returncode}: {ended.stderr[-500:]}")
        return float(finished.read_text()) - start


def train(finished: Path, arguments: list[str]) -> None:
    """Runs the command in this process. After the first step it writes the time to a file and exits."""
    from neural_alignment import cli
    from neural_alignment.training import callbacks

    class FirstStep(callbacks.Progress):
        """Records the end of the first step."""

        def advance(self, steps: int) -> None:
            finished.write_text(repr(time.time()))
            os._exit(0)

    callbacks.Progress = FirstStep  # The command uses this class when it runs.
    sys.argv = ["neural-alignment", *arguments]
    cli.main()


def report(samples: Samples, sizes: dict[str, Any]) -> Report:
    """Returns the table of times."""
    rows, checks = [], []
    for case, size in sizes.items():
        for config in size["configs"]:
            seconds = middle(samples.values(case, config))[0]
            rows.append([config, case, seconds, LIMIT])
            checks.append(Check(f"seconds to the first step, {config}, {case}", seconds, LIMIT))
    text = (
        "From the start of `neural-alignment train` to the end of its first training step: imports, data, model, the "
        "evaluation at step 0, tracing. Medians of "
        f"{min(samples.rounds(case) for case in sizes)} or more starts.\n\n"
    )
    return Report(text + table(["configuration", "size", "seconds", "limit"], rows), checks)


BENCHMARK = Benchmark("first_step", "Time to the first step", 2, FULL, SMALL, measure, report)

if __name__ == "__main__":
    train(Path(sys.argv[1]), sys.argv[2:])
