"""Time of a training step with R from a part of the batch (the option `examples` of a rule)."""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any

from benchmarks.common import BASELINE, PLAIN, Benchmark, Check, Report, Samples, middle, table
from benchmarks.step_time import CONVNET, RESNET18, network

if TYPE_CHECKING:
    from neural_alignment.alignments import Alignment

FRACTIONS = (1.0, 0.5, 0.25, 0.125)
LIMITED = 0.25
"""The fraction that has limits."""
LIMITS = {"weight_mirror": 1.25, "activation": 1.22, "information": 1.35}
"""Rule -> allowed time of a step, relative to backpropagation, with R from a quarter of the batch."""

FULL = {"CIFAR ResNet-18": {"model": RESNET18, "image": 32, "batch": 64, "rounds": 11}}
SMALL = {"convnet": {"model": CONVNET, "image": 8, "batch": 8, "rounds": 2}}


def rules() -> dict[str, Alignment]:
    """Returns the rules whose R is a mean over examples, and information alignment as in Table 5 of Kunin et al."""
    from benchmarks import contenders
    from neural_alignment.alignments import BackwardOutput, ForwardOutput, Information

    found = {name: contenders.RULES[name].rule for name in ("weight_mirror", "activation", "information")}
    found["information, Table 5"] = Information(
        amp=1e-3,
        decay=1e-3,
        null=1e-3,
        input=contenders.NORMAL,
        forward_output=ForwardOutput(bias=True, relu=True, batch_center=True, feature_center=True),
        backward_output=BackwardOutput(bias=True, feature_center=True, feature_normalize=True),
    )
    return found


def contender(name: str, fraction: float) -> str:
    """Returns the name in the samples of a rule with a fraction of the examples."""
    return f"{name}, {fraction:g}"


def measure(samples: Samples, sizes: dict[str, Any]) -> None:
    """Times every rule with every fraction."""
    from benchmarks import contenders

    contenders.measure_cases(samples, sizes, _steps)


def _steps(size: dict[str, Any]) -> dict[str, Any]:
    """Returns a stepper for each contender."""
    from benchmarks import contenders

    build = functools.partial(network, size=size)
    batch = contenders.batch_of((size["batch"], size["image"], size["image"], 3))
    steps = {name: contenders.stepper(model, batch) for name, model in contenders.backpropagation(build).items()}
    for name, rule in rules().items():
        for fraction in FRACTIONS:
            part = rule if fraction == 1 else rule.model_copy(update={"examples": fraction})
            steps[contender(name, fraction)] = contenders.stepper(contenders.aligned(build, part), batch)
    return steps


def report(samples: Samples, sizes: dict[str, Any]) -> Report:
    """Returns a table for each case."""
    from benchmarks import contenders
    from neural_alignment.training.costs import layer_costs, regulariser_products

    texts, checks = [], []
    for case, size in sizes.items():
        costs, rows = layer_costs(network(None, size)), []
        for name in samples.measured(case, [PLAIN]):
            median, low, high = middle(samples.ratios(case, name, BASELINE))
            rows.append([name, None, median, f"{low:.2f} to {high:.2f}", None, None, None])
        for name, rule in rules().items():
            for fraction in FRACTIONS:
                used = math.ceil(fraction * size["batch"])
                median, low, high = middle(samples.ratios(case, contender(name, fraction), BASELINE))
                floor = contenders.floor(costs, regulariser_products(rule) * used / size["batch"])
                limit = LIMITS.get(name) if fraction == LIMITED else None
                rows.append([name, used, median, f"{low:.2f} to {high:.2f}", floor, median / floor, limit])
                if limit is not None:
                    checks.append(Check(f"step time, {case}, {name}, R from {used} examples", median, limit))
        intro = (
            f"**{case}**, batch {size['batch']}, {samples.rounds(case)} rounds; backpropagation takes "
            f"{middle(samples.values(case, BASELINE))[0]:.3f} s per step. The noise of weight mirror and information "
            "is normal.\n\n"
        )
        header = ["rule", "examples of R", "step time over backpropagation", "quartiles", "floor", "over the floor"]
        texts.append(intro + table([*header, "limit"], rows) + samples.note_of_missing([case], [PLAIN]))
    return Report("\n\n".join(texts), checks)


BENCHMARK = Benchmark("examples", "Step time with R from fewer examples", 10, FULL, SMALL, measure, report)
