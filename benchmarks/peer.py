"""Time of a step of J compared with biotorch on torch: the same network and number of threads, stepped in turn.

Each framework runs in a separate process and waits for its turn on a pipe.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.common import (
    BASELINE,
    PLAIN,
    ROOT,
    Benchmark,
    Check,
    Report,
    Samples,
    UnavailableError,
    interleave,
    middle,
    table,
)

FULL = {
    "CIFAR ResNet-18, one thread": {"width": 64, "image": 32, "batch": 64, "threads": 1, "rounds": 9},
    "CIFAR ResNet-18, two threads": {"width": 64, "image": 32, "batch": 64, "threads": 2, "rounds": 9},
}
SMALL = {
    case: {"width": 4, "image": 8, "batch": 2, "threads": size["threads"], "rounds": 2} for case, size in FULL.items()
}
COMPARED = ("feedback", "sign_symmetry", "frsf", "brsf")
LIMIT = 0.90
"""Largest step time of a rule over biotorch's."""
ENVIRONMENT = ROOT / ".venv-peer"
INTERPRETER = "PEER_PYTHON"
"""Environment variable with the path of a Python that has torch and biotorch, if this one does not have them."""


def interpreter() -> str:
    """Returns the path of a Python that has torch and biotorch.

    Raises:
        UnavailableError: if there is none.
    """
    if named := os.environ.get(INTERPRETER):
        return named
    if importlib.util.find_spec("biotorch") and importlib.util.find_spec("torch"):
        return sys.executable
    python = ENVIRONMENT / "bin" / "python"
    if python.exists():
        return str(python)
    raise UnavailableError(
        f"torch and biotorch are not installed: {INTERPRETER} names no Python, this one has neither, and there is no "
        f"{ENVIRONMENT.name}; make peer installs them"
    )


class Worker:
    """A process that runs steps on request.

    Args:
        command: the words that start the process.
        size: width, image size and batch size of the network, and the number of threads.

    Attributes:
        facts: report of the worker at its start: versions, number of parameters, contenders.
    """

    def __init__(self, command: list[str], size: dict[str, Any]):
        options = [f"--{name}={size[name]}" for name in ("width", "image", "batch", "threads")]
        environment = {**os.environ, "OMP_NUM_THREADS": str(size["threads"]), "CUDA_VISIBLE_DEVICES": ""}
        self._process = subprocess.Popen(
            [*command, *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if sys.stderr.isatty() else None,
            text=True,
            cwd=ROOT,
            env=environment,
        )
        self.facts = self._answer()

    def _answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        if not line:
            self.close()
            raise RuntimeError(f"{' '.join(map(str, self._process.args))} ended with code {self._process.returncode}")
        return json.loads(line)

    def step(self, contender: str) -> dict[str, float]:
        """Runs one step of `contender` and returns its wall-clock and CPU seconds."""
        self._process.stdin.write(f"{contender}\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """Ends the process and closes its streams."""
        self._process.communicate()


@contextlib.contextmanager
def workers(size: dict[str, Any]) -> Iterator[tuple[Worker, Worker]]:
    """Starts the workers of this library and of biotorch."""
    with contextlib.ExitStack() as stack:
        started = []
        for command in (
            [sys.executable, "-m", "benchmarks.peer_keras"],
            [interpreter(), str(Path(__file__).with_name("peer_torch.py"))],
        ):
            worker = Worker(command, size)
            stack.callback(worker.close)
            started.append(worker)
        yield tuple(started)


def measure(samples: Samples, sizes: dict[str, Any]) -> None:
    """Steps both frameworks in turn.

    Raises:
        UnavailableError: if torch or biotorch is not installed.
        RuntimeError: if the two networks have different sizes.
    """
    for case, size in sizes.items():
        if samples.rounds(case) >= size["rounds"]:
            continue
        with workers(size) as (ours, theirs):
            if ours.facts["parameters"] != theirs.facts["parameters"]:
                raise RuntimeError(f"the networks differ: {ours.facts} and {theirs.facts}")
            samples.note(peer={**theirs.facts["versions"], "parameters": theirs.facts["parameters"]})
            steps = {}
            for name in (*COMPARED, BASELINE, PLAIN):
                steps[name] = functools.partial(ours.step, name)
                if name != PLAIN:
                    steps[f"{name}, torch"] = functools.partial(theirs.step, name)
            interleave(samples, case, steps, size["rounds"])


def report(samples: Samples, sizes: dict[str, Any]) -> Report:
    """Returns a table of ratios for each case."""
    peer = samples.facts.get("peer", {})
    texts, checks = [], []
    for case, size in sizes.items():
        rows = []
        for name in (*COMPARED, BASELINE, PLAIN):
            other = f"{BASELINE if name == PLAIN else name}, torch"
            median, low, high = middle(samples.ratios(case, name, other))
            cpu = middle(samples.ratios(case, name, other, "CPU seconds"))[0]
            ours, theirs = (middle(samples.values(case, each))[0] for each in (name, other))
            limit = LIMIT if name in COMPARED else None
            rows.append([name, ours, theirs, median, f"{low:.2f} to {high:.2f}", cpu, limit])
            if limit is not None:
                checks.append(Check(f"step of J over biotorch's, {case}, {name}", median, limit))
        header = ["rule", "ours (s per step)", "torch (s per step)", "ours over torch", "quartiles", "in CPU time"]
        intro = f"**{case}**, width {size['width']}, batch {size['batch']}, {samples.rounds(case)} rounds.\n\n"
        texts.append(intro + table([*header, "limit"], rows))
    intro = (
        f"Peer: biotorch {peer.get('biotorch')} on torch {peer.get('torch')}, a ResNet-18 of the same layers "
        f"({peer.get('parameters', 0):,} parameters) converted by `BioModule`, modes `fa`, `usf` (B = sign(W) times a "
        "constant), `frsf` and `brsf`. Backpropagation and plain Keras, which has Keras' own batch normalisation, are "
        "compared with plain torch. All: float32, Nesterov momentum, no weight decay, the same batch in every step."
    )
    return Report("\n\n".join([intro, *texts]), checks)


BENCHMARK = Benchmark("peer", "Step of J against biotorch", 8, FULL, SMALL, measure, report)
