"""Time of a training step of each rule, relative to backpropagation and to the theoretical minimum."""

from __future__ import annotations

import functools
from typing import Any

from benchmarks.common import BASELINE, PLAIN, Benchmark, Check, Report, Samples, interleave, middle, table

ALTERNATING = ("weight_mirror", "symmetric")
"""Rules that are also timed with alternating steps of J and R, in the first case."""
ALTERNATING_ALLOWANCE = 0.08
"""Limit relative to the branch alone: backpropagation for J, a hand-written step for R."""

RESNET18 = {"name": "resnet", "depth": 18, "version": 1, "stem": "cifar", "width": 64, "weight_decay": 1e-4}
RESNET50 = {"name": "resnet", "depth": 50, "version": 1, "stem": "imagenet", "width": 64, "weight_decay": 1e-4}
CONVNET = {"name": "convnet", "filters": [2, 2], "weight_decay": 1e-4}
FULL = {
    "CIFAR ResNet-18": {"model": RESNET18, "image": 32, "batch": 64, "rounds": 11},
    "ResNet-50 at 96 px": {"model": RESNET50, "image": 96, "batch": 32, "rounds": 9},
}
SMALL = {"convnet": {"model": CONVNET, "image": 8, "batch": 2, "rounds": 2}}


def network(rule: Any, size: dict[str, Any]) -> Any:
    """Returns the network of one case with `rule` in all layers."""
    from neural_alignment import models

    return models.build(**size["model"], classes=10, input_shape=(size["image"], size["image"], 3), alignment=rule)


def measure(samples: Samples, sizes: dict[str, Any]) -> None:
    """Times every contender of every case."""
    import keras

    for position, (case, size) in enumerate(sizes.items()):
        if samples.rounds(case) < size["rounds"]:
            interleave(samples, case, _steps(size, alternate=position == 0), size["rounds"])
            keras.backend.clear_session()


def _steps(size: dict[str, Any], alternate: bool) -> dict[str, Any]:
    """Returns a stepper for each contender."""
    from benchmarks import contenders

    batch = contenders.batch_of((size["batch"], size["image"], size["image"], 3))
    build = functools.partial(network, size=size)
    steps = {name: contenders.stepper(model, batch) for name, model in contenders.backpropagation(build).items()}
    for name, contender in contenders.RULES.items():
        steps[name] = contenders.stepper(contenders.aligned(build, contender.rule), batch)
    for name in ALTERNATING if alternate else ():
        rule = contenders.RULES[name].rule
        steps[f"{name}, alternating"] = contenders.alternating(contenders.aligned(build, rule, alternation=1), batch)
        steps[f"{name}, R alone"] = contenders.regulariser_alone(build, rule, batch)
    return steps


def report(samples: Samples, sizes: dict[str, Any]) -> Report:
    """Returns a table for each case."""
    from benchmarks import contenders

    intro = (
        f"The floor is the time expected from the number of products. The limit is the floor plus "
        f"{contenders.ALLOWANCE:.0%}; because the floor counts no random numbers, it is the floor plus "
        f"{contenders.NORMAL_NOISE:.0%} for rules with normal noise for each input, and plus "
        f"{contenders.REDRAWING:.0%} for brsf, which draws a magnitude for each weight. Sign noise takes one random "
        "bit per number."
    )
    texts, checks = [intro], []
    for position, (case, size) in enumerate(sizes.items()):
        text, found = _rules_table(samples, case, size)
        texts.append(text)
        checks += found
        if position == 0:
            text, found = _alternating_table(samples, case, size)
            texts.append(text)
            checks += found
    return Report("\n\n".join(texts), checks)


def _costs(size: dict[str, Any], rule: Any = None) -> Any:
    from neural_alignment.training.costs import layer_costs

    return layer_costs(network(rule, size))


def _rules_table(samples: Samples, case: str, size: dict[str, Any]) -> tuple[str, list[Check]]:
    from benchmarks import contenders

    rows, checks = [], []
    for name in samples.measured(case, [PLAIN]):
        rows.append([name, *_measured(samples, case, name), None, None, None])
    for name in samples.measured(case, contenders.RULES):
        contender = contenders.RULES[name]
        median, *measured = _measured(samples, case, name)
        floor = contenders.floor(_costs(size, contender.rule), contender.products, batch=size["batch"])
        limit = floor * (1 + contender.allowance)
        rows.append([name, median, *measured, floor, median / floor, limit])
        checks.append(Check(f"step time, {case}, {name}", median, limit))
    seconds = middle(samples.values(case, BASELINE))[0]
    intro = (
        f"**{case}**, batch {size['batch']}, {samples.rounds(case)} rounds; backpropagation "
        f"takes {seconds:.3f} s per step.\n\n"
    )
    header = ["rule", "step time over backpropagation", "quartiles", "in CPU time", "floor", "over the floor", "limit"]
    return intro + table(header, rows) + samples.note_of_missing([case], contenders.RULES), checks


def _measured(samples: Samples, case: str, name: str) -> list[Any]:
    """Returns the step time over backpropagation: median, quartiles, and the median in CPU time."""
    median, low, high = middle(samples.ratios(case, name, BASELINE))
    return [median, f"{low:.2f} to {high:.2f}", middle(samples.ratios(case, name, BASELINE, "CPU seconds"))[0]]


def _alternating_table(samples: Samples, case: str, size: dict[str, Any]) -> tuple[str, list[Check]]:
    """Compares the steps of an alternating run with steps of a single branch."""
    from benchmarks import contenders

    costs = _costs(size)
    rows, checks = [], []
    for name in ALTERNATING:
        base = samples.values(case, BASELINE)
        for kind, alone in (("J", base), ("R", samples.values(case, f"{name}, R alone"))):
            values = samples.values(case, f"{name}, alternating", f"{kind} seconds")
            over_base, over_alone = (
                middle([value / other for value, other in zip(values, others, strict=True)])[0]
                for others in (base, alone)
            )
            floor = contenders.floor(costs, contenders.RULES[name].products, kind)
            limit = 1 + ALTERNATING_ALLOWANCE
            rows.append([name, kind, over_base, floor, over_alone, limit])
            checks.append(Check(f"step time, {case}, {name} alternating, step of {kind} alone", over_alone, limit))
    intro = (
        "Alternating runs with one step of J per step of R. The single branch is backpropagation for J, and for R "
        "a hand-written step: forward pass, gradient of R, Adam on B.\n\n"
    )
    header = ["rule", "step of", "over backpropagation", "floor", "over the single branch", "limit"]
    return intro + table(header, rows), checks


BENCHMARK = Benchmark("step_time", "Step time", 17, FULL, SMALL, measure, report)
