"""Time of a training step of the rules of Boopathy and Fiete 2022, relative to backpropagation, by width (Figure 7)."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from benchmarks.common import BASELINE, PLAIN, Benchmark, Check, Report, Samples, interleave, middle, table

LIMITS = {"align_ada": 1.5, "align_zero": 1.45, "align_prop": 1.05, "fa": 1.05, "dfa": 0.85, "last_layer": None}
"""Limit on the step time relative to backpropagation at the largest width, by rule; None for no limit."""
FLOORS = {"align_ada": "1.33", "align_zero": "1.33"}
"""Floor of the step time: a forward pass through the network at initialisation, added to backpropagation's products."""
KEEPS = {"align_ada": 1.0, "align_zero": 1.0}
"""Limit on the memory of a rule relative to the weights, by rule: W(0), and nothing per example."""
QUANTITY = "bytes kept over weights"
"""Name in the samples of the memory of a rule relative to the weights."""

FULL = {
    f"width {width}": {"width": width, "image": 32, "batch": 100, "rounds": 15 if width < 64 else 9}
    for width in (8, 16, 32, 64)
}
SMALL = {"width 2": {"width": 2, "image": 8, "batch": 2, "rounds": 2}}


def network(rule: Any, size: dict[str, Any]) -> Any:
    """Returns the 8-layer CIFAR network with `rule` in all layers."""
    from neural_alignment import models

    return models.wide_cnn("cifar", size["width"], 10, (size["image"], size["image"], 3), rule)


def rules() -> dict[str, Any]:
    """Returns the rules by their names in the tables."""
    from neural_alignment.alignments import AlignAda, AlignProp, AlignZero, DirectFeedback, Feedback, LastLayer

    return {
        "align_ada": AlignAda(),
        "align_zero": AlignZero(),
        "align_prop": AlignProp(),
        "fa": Feedback(),
        "dfa": DirectFeedback(),
        "last_layer": LastLayer(),
    }


def measure(samples: Samples, sizes: dict[str, Any]) -> None:
    """Times every rule at every width."""
    import keras

    for case, size in sizes.items():
        if samples.rounds(case) < size["rounds"]:
            interleave(samples, case, _steps(size), size["rounds"])
            keras.backend.clear_session()


def _steps(size: dict[str, Any]) -> dict[str, Any]:
    from benchmarks import contenders

    batch = contenders.batch_of((size["batch"], size["image"], size["image"], 3))
    build = functools.partial(network, size=size)
    steps = {name: contenders.stepper(model, batch) for name, model in contenders.backpropagation(build).items()}
    for name, rule in rules().items():
        model = contenders.aligned(build, rule)
        steps[name] = _with_memory(contenders.stepper(model, batch), kept(model))
    return steps


def _with_memory(step: Any, ratio: float) -> Any:
    return lambda: {**step(), QUANTITY: ratio}


def kept(model: Any) -> float:
    """Returns the bytes that a rule stores in a model, relative to those of the weights trained by backpropagation."""
    own = [weight for weight in model.weights if weight.name == "backward_kernel"]
    network_wide = [] if model.bound_rule is None else model.bound_rule.kept_values
    trained = [weight for weight in model.trainable_weights if weight.name != "backward_kernel"]
    return _bytes([*own, *network_wide]) / _bytes(trained)


def _bytes(weights: list[Any]) -> int:
    return sum(weight.shape.num_elements() * weight.value.dtype.size for weight in weights)


def report(samples: Samples, sizes: dict[str, Any]) -> Report:
    """Returns a table by width, and saves a figure beside the samples."""
    largest = max(sizes, key=lambda case: sizes[case]["width"])
    rows, checks = [], []
    for name in samples.measured(largest, [PLAIN]):
        ratios = [middle(samples.ratios(case, name, BASELINE)) for case in sizes]
        rows.append([name, *(each[0] for each in ratios), *[None] * 5])
    for name, limit in LIMITS.items():
        ratios = {case: middle(samples.ratios(case, name, BASELINE)) for case in sizes}
        cpu = middle(samples.ratios(largest, name, BASELINE, "CPU seconds"))[0]
        median, low, high = ratios[largest]
        memory = samples.values(largest, name, QUANTITY)[0]
        medians = [each[0] for each in ratios.values()]
        rows.append([name, *medians, f"{low:.2f} to {high:.2f}", cpu, FLOORS.get(name), limit, memory])
        if limit is not None:
            checks.append(Check(f"step time of the wide networks, {largest}, {name}", median, limit))
        if name in KEEPS:
            checks.append(Check(f"kept by {name}, {largest}, over the weights", memory, KEEPS[name]))
    picture = samples.path.with_suffix(".png")
    _plot(samples, picture)
    header = ["rule", *sizes, f"quartiles, {largest}", "in CPU time", "floor", "limit", "bytes stored over the weights"]
    text = (
        f"The 8-layer CIFAR-10 network, batch {sizes[largest]['batch']}, {samples.rounds(largest)} rounds; "
        f"backpropagation takes {middle(samples.values(largest, BASELINE))[0]:.3f} s per step at {largest}. "
        "Rules store only weights and nothing per example. Plain Keras normalises each channel; the other contenders "
        "normalise each position of an image separately, for which Keras has no layer.\n\n"
        f"{table(header, rows)}\n\n![Time of a step by width]({picture.parent.name}/{picture.name})"
    )
    return Report(text, checks)


def _plot(samples: Samples, picture: Path) -> None:
    """Draws Figure 7 of the paper."""
    from neural_alignment.papers.wide_networks.figures import time_figure
    from neural_alignment.papers.wide_networks.rows import read_rounds
    from neural_alignment.reporting import png

    picture.write_bytes(png(time_figure(read_rounds(str(samples.path.parent))).figure))


BENCHMARK = Benchmark("wide", "Wide networks", 11, FULL, SMALL, measure, report)
