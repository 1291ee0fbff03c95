"""Peak memory of training with each rule, compared with backpropagation.

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

from benchmarks.common import (
    BASELINE,
    PLAIN,
    ROOT,
    Benchmark,
    Check,
    Report,
    Samples,
    UnavailableError,
    middle,
    progress,
    table,
)
from benchmarks.step_time import CONVNET, RESNET18, network

LAYERWISE = (
    *("feedback", "sign_symmetry", "frsf", "brsf", "kolen_pollack"),
    *("symmetric", "activation", "weight_mirror", "information"),
)
NETWORKWISE = ("align_zero", "align_ada", "align_prop", "dfa", "drtp", "last_layer")
WIDE_CNN = {"name": "wide_cnn", "design": "cifar", "width": 64}
FULL = {
    "CIFAR ResNet-18": {"model": RESNET18, "image": 32, "batch": 64, "rules": LAYERWISE, "rounds": 3},
    "8-layer CIFAR-10 network": {"model": WIDE_CNN, "image": 32, "batch": 150, "rules": NETWORKWISE, "rounds": 3},
}
SMALL = {"convnet": {"model": CONVNET, "image": 8, "batch": 2, "rules": ("symmetric", "align_ada"), "rounds": 1}}
STEPS = 3
ALLOWANCE = 0.05
MIB = 2**20


def rules() -> dict[str, Any]:
    """Returns all rules, by name. Those that are no contenders have a small number for each of their weights."""
    from benchmarks import contenders
    from neural_alignment.alignments import RULES

    own = {}
    for name, rule in RULES.items():
        weights = [key for key, option in rule.model_fields.items() if option.is_required()]
        own[name] = rule(**dict.fromkeys(weights, 1e-3))
    return own | {name: each.rule for name, each in contenders.RULES.items() if name in RULES}


def measured_rules(size: dict[str, Any]) -> tuple[str, ...]:
    """Returns the names of the rules of a case. The case of `NETWORKWISE` has those that are in no list as well."""
    others = rules().keys() - {*LAYERWISE, *NETWORKWISE} if size["rules"] == NETWORKWISE else ()
    return *size["rules"], *sorted(others)


def measure(samples: Samples, sizes: dict[str, Any]) -> None:
    """Runs each contender in separate processes.

    Raises:
        UnavailableError: if the system does not provide the peak memory.
    """
    if not Path("/proc/self/clear_refs").exists():
        raise UnavailableError("peak memory is read from /proc/self, which this system does not have; run it on Linux")
    for case, size in sizes.items():
        names = (PLAIN, BASELINE, *measured_rules(size))
        done = samples.rounds(case)
        with progress(case, len(names) * size["rounds"], len(names) * done) as bar:
            for _ in range(done, size["rounds"]):
                measured = {}
                for name in names:
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
        `bytes`, the peak; `variable bytes`, the size of all variables of the model and of its optimizers.
    """
    import tensorflow as tf

    from benchmarks import contenders

    batch = contenders.batch_of((size["batch"], size["image"], size["image"], 3))
    tf.function(lambda x: tf.linalg.matmul(x, x))(tf.ones([64, 64])).numpy()
    Path("/proc/self/clear_refs").write_text("5")  # Resets the peak to the current size.
    before = _status("VmRSS")
    build = functools.partial(network, size=size)
    make = {BASELINE: contenders.baseline, PLAIN: contenders.plain}.get(name)
    model = make(build) if make else contenders.aligned(build, rules()[name])
    step = contenders.stepper(model, batch)
    for _ in range(STEPS):
        step()
    return {"bytes": _status("VmHWM") - before, "variable bytes": _variable_bytes(model)}


def _variable_bytes(model: Any) -> int:
    """Returns the bytes of the weights and of the variables of the optimizers."""
    optimizers = getattr(model.optimizer, "inner_optimizers", [model.optimizer])
    variables = [*model.weights, *(variable for optimizer in optimizers for variable in optimizer.variables)]
    return sum(each.shape.num_elements() * each.value.dtype.size for each in variables)


def _status(key: str) -> int:
    """Returns a value of /proc/self/status in bytes."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[key].split()[0]) * 1024


def report(samples: Samples, sizes: dict[str, Any]) -> Report:
    """Returns a table of peaks for each case."""
    texts, checks = [], []
    for case, size in sizes.items():
        base, variables = (_mebibytes(samples, case, BASELINE, quantity) for quantity in ("bytes", "variable bytes"))
        plain = _mebibytes(samples, case, PLAIN, "bytes")
        rows = [[PLAIN, plain, plain / base, None, None], [BASELINE, base, 1.0, None, None]]
        for name in samples.measured(case, measured_rules(size)):
            peak_size = _mebibytes(samples, case, name, "bytes")
            own = _mebibytes(samples, case, name, "variable bytes") - variables
            limit = (base + own) * (1 + ALLOWANCE)
            rows.append([name, peak_size, peak_size / base, own, limit])
            checks.append(Check(f"peak memory (MiB), {case}, {name}", peak_size, limit))
        header = ["contender", "peak (MiB)", "over backpropagation", "own variables (MiB)", "limit (MiB)"]
        intro = f"**{case}**, batch {size['batch']}, medians of {samples.rounds(case)} processes each.\n\n"
        texts.append(intro + table(header, rows) + samples.note_of_missing([case], measured_rules(size)))
    intro = (
        "Peak resident size while building and training, minus the resident size just before. Own variables are those "
        "that backpropagation does not have: B and the state of its optimizer, W(0), fixed maps. The limit is "
        f"backpropagation's peak plus the own variables, plus {ALLOWANCE:.0%}."
    )
    return Report("\n\n".join([intro, *texts]), checks)


def _mebibytes(samples: Samples, case: str, name: str, quantity: str) -> float:
    return middle(samples.values(case, name, quantity))[0] / MIB


BENCHMARK = Benchmark("memory", "Peak memory", 18, FULL, SMALL, measure, report)

if __name__ == "__main__":
    print(json.dumps(peak(sys.argv[1], json.loads(sys.argv[2]))))
