"""Time of a training step with RAdam and SWATS, relative to Adam."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from benchmarks.common import PLAIN, Benchmark, Check, Report, Samples, interleave, middle, table
from benchmarks.step_time import CONVNET, RESNET18, network

BASELINE = "adam"
LIMIT = 1.10
"""Limit on the step time relative to Adam's."""

FULL = {"CIFAR ResNet-18": {"model": RESNET18, "image": 32, "batch": 64, "rounds": 15}}
SMALL = {"convnet": {"model": CONVNET, "image": 8, "batch": 2, "rounds": 2}}


def optimizers() -> dict[str, Callable[[], Any]]:
    """Returns a function per contender that creates its optimizer.

    With a tolerance of 1, SWATS enters its second phase at its second step. This happens in the first steps, which are
    not timed. They also contain the steps of RAdam without the second moment.
    """
    from optimizers import SWATS, Adam, RAdam

    return {
        BASELINE: lambda: Adam(1e-3),
        "radam": lambda: RAdam(1e-3),
        "swats, adam phase": lambda: SWATS(1e-3),
        "swats, rectified, adam phase": lambda: SWATS(1e-3, rectified=True),
        "swats, descent phase": lambda: SWATS(1e-6, epsilon=1.0),
    }


def measure(samples: Samples, sizes: dict[str, Any]) -> None:
    """Times every contender of every case."""
    import keras

    for case, size in sizes.items():
        if samples.rounds(case) < size["rounds"]:
            interleave(samples, case, _steps(size), size["rounds"], warm_up=7)
            keras.backend.clear_session()


def _steps(size: dict[str, Any]) -> dict[str, Any]:
    """Returns a stepper for each contender: symmetric alignment with the same kind of optimizer for W and B.

    Plain Keras is backpropagation with Keras' Adam.
    """
    import keras

    from benchmarks import contenders

    batch = contenders.batch_of((size["batch"], size["image"], size["image"], 3))
    build, rule = functools.partial(network, size=size), contenders.RULES["symmetric"].rule
    models = {name: contenders.aligned(build, rule, optimizers=[make(), make()]) for name, make in optimizers().items()}
    models[PLAIN] = contenders.plain(build, keras.optimizers.Adam(1e-3))
    return {name: contenders.stepper(model, batch) for name, model in models.items() if model is not None}


def report(samples: Samples, sizes: dict[str, Any]) -> Report:
    """Returns a table for each case."""
    texts, checks = [], []
    for case, size in sizes.items():
        rows = []
        for name in (*samples.measured(case, [PLAIN]), *optimizers()):
            median, low, high = middle(samples.ratios(case, name, BASELINE))
            cpu = middle(samples.ratios(case, name, BASELINE, "CPU seconds"))[0]
            limit = None if name in (BASELINE, PLAIN) else LIMIT
            rows.append([name, median, f"{low:.2f} to {high:.2f}", cpu, limit])
            if limit is not None:
                checks.append(Check(f"step time, {case}, {name}", median, limit))
        seconds = middle(samples.values(case, BASELINE))[0]
        intro = (
            f"**{case}**, batch {size['batch']}, {samples.rounds(case)} rounds; symmetric alignment with the same "
            f"kind of optimizer for W and B. With Adam a step takes {seconds:.3f} s. Plain Keras is backpropagation "
            "with Keras' Adam.\n\n"
        )
        header = ["optimizer", "step time over Adam's", "quartiles", "in CPU time", "limit"]
        texts.append(intro + table(header, rows) + samples.note_of_missing([case], [PLAIN]))
    return Report("\n\n".join(texts), checks)


BENCHMARK = Benchmark("moments", "Step time of RAdam and SWATS", 6, FULL, SMALL, measure, report)
