"""Peak memory of training with symmetric alignment, compared with backpropagation in plain Keras.

Each sample is a separate process. The result is the peak resident set size while the process builds the model and
trains for a few steps, minus the resident size just before, after TensorFlow has been imported and has run an
operation. The difference consists of weights, optimizer slots, activations and the graph. Linux provides both numbers
(`VmHWM`, reset through `clear_refs`).
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT, Benchmark, Check, Report, Samples, UnavailableError, middle, progress, table
from benchmarks.step_time import CONVNET, RESNET18, network

FULL = {"CIFAR ResNet-18": {"model": RESNET18, "image": 32, "batch": 64, "rounds": 3}}
SMALL = {"convnet": {"model": CONVNET, "image": 8, "batch": 2, "rounds": 1}}
BASELINE, RULE = "backpropagation", "symmetric"
STEPS = 3
ALLOWANCE = 0.05
MIB = 2**20


def measure(samples: Samples, sizes: dict[str, Any]) -> None:
    """Runs each contender in separate processes.

    Raises:
        UnavailableError: if the system does not provide the peak memory.
    """
    if not Path("/proc/self/clear_refs").exists():
        raise UnavailableError("peak memory is read from /proc/self, which this system does not have; run it on Linux")
    for case, size in sizes.items():
        done = samples.rounds(case)
        with progress(case, 2 * size["rounds"], 2 * done) as bar:
            for _ in range(done, size["rounds"]):
                measured = {}
                for name in (BASELINE, RULE):
                    measured[name] = _in_a_process(name, size)
                    bar.update()
                samples.add(case, measured)


def _in_a_process(name: str, size: dict[str, Any]) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.memory", name, json.dumps(size)]
    stderr = None if os.environ.get("TF_CPP_MIN_LOG_LEVEL") != "3" else subprocess.DEVNULL
    output = subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.PIPE, stderr=stderr, text=True).stdout
    return json.loads(output.splitlines()[-1])


def peak(name: str, size: dict[str, Any]) -> dict[str, float]:
    """Trains for a few steps in this process.

    Args:
        name: name of the contender.
        size: sizes of the case.

    Returns:
        `bytes`, the peak; `own bytes`, the size of the backward kernels and of their optimizer's variables.
    """
    import tensorflow as tf

    from benchmarks import contenders

    batch = contenders.batch_of((size["batch"], size["image"], size["image"], 3))
    tf.function(lambda x: tf.linalg.matmul(x, x))(tf.ones([64, 64])).numpy()
    Path("/proc/self/clear_refs").write_text("5")  # Resets the peak to the current size.
    before = _status("VmRSS")
    build = functools.partial(network, size=size)
    model = contenders.baseline(build) if name == BASELINE else contenders.aligned(build, contenders.RULES[name].rule)
    step = contenders.stepper(model, batch)
    for _ in range(STEPS):
        step()
    return {"bytes": _status("VmHWM") - before, "own bytes": _own_bytes(model, name)}


def _own_bytes(model: Any, name: str) -> int:
    """Returns the bytes of the backward kernels and of their optimizer's variables."""
    if name == BASELINE:
        return 0
    kernels = [weight for weight in model.weights if weight.name == "backward_kernel"]
    slots = model.optimizer.inner_optimizers[1].variables
    return sum(weight.shape.num_elements() * weight.value.dtype.size for weight in [*kernels, *slots])


def _status(key: str) -> int:
    """Returns a value of /proc/self/status in bytes."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[key].split()[0]) * 1024


def report(samples: Samples, sizes: dict[str, Any]) -> Report:
    """Returns the table of peaks."""
    texts, checks = [], []
    for case, size in sizes.items():
        base, symmetric = (middle(samples.values(case, name, "bytes"))[0] / MIB for name in (BASELINE, RULE))
        own = middle(samples.values(case, RULE, "own bytes"))[0] / MIB
        limit = (base + own) * (1 + ALLOWANCE)
        rows = [[BASELINE, base, None, None], [RULE, symmetric, own, limit]]
        header = ["contender", "peak (MiB)", "of it B and its slots (MiB)", "limit (MiB)"]
        texts.append(
            f"**{case}**, batch {size['batch']}, medians of {samples.rounds(case)} processes "
            "each. Peak resident size while building and training, minus the resident size just before. The limit is "
            f"backpropagation's peak plus B and its Adam slots, plus {ALLOWANCE:.0%}.\n\n{table(header, rows)}"
        )
        checks.append(Check(f"peak memory (MiB), {case}, {RULE}", symmetric, limit))
    return Report("\n\n".join(texts), checks)


BENCHMARK = Benchmark("memory", "Peak memory", 2, FULL, SMALL, measure, report)

if __name__ == "__main__":
    print(json.dumps(peak(sys.argv[1], json.loads(sys.argv[2]))))
