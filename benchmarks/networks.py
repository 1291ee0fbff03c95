"""Time of a training step of MobileNetV2 and of a vision transformer with a rule, relative to backpropagation."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from benchmarks.common import BASELINE, PLAIN, Benchmark, Check, Report, Samples, middle, table
from benchmarks.step_time import CONVNET, network

if TYPE_CHECKING:
    from neural_alignment.alignments import Alignment

LIMITS = {"feedback": 1.10, "symmetric": 1.15}
"""Rule -> allowed time of a step, relative to backpropagation. The other rules have no limit here."""

MOBILENET = {"name": "application", "application": "MobileNetV2"}
TRANSFORMER = {"name": "vision_transformer", "patch": 4, "width": 128, "depth": 4, "heads": 4}
FULL = {
    "MobileNetV2 at 96 px": {"model": MOBILENET, "image": 96, "batch": 16, "rounds": 15},
    "vision transformer at 32 px": {"model": TRANSFORMER, "image": 32, "batch": 64, "rounds": 15},
}
SMALL = {"convnet": {"model": CONVNET, "image": 8, "batch": 2, "rounds": 2}}


def rules() -> dict[str, Alignment]:
    """Returns the rules of the other benchmarks, and two for whole networks."""
    from benchmarks import contenders
    from neural_alignment import alignments

    found = {name: contender.rule for name, contender in contenders.RULES.items() if "sign noise" not in name}
    return found | {
        "dfa": alignments.DirectFeedback(),
        "drtp": alignments.DirectTargetProjection(),
    }


def measure(samples: Samples, sizes: dict[str, Any]) -> None:
    """Times every contender of every case."""
    from benchmarks import contenders

    contenders.measure_cases(samples, sizes, _steps)


def _steps(size: dict[str, Any]) -> dict[str, Any]:
    """Returns a stepper for each contender."""
    from benchmarks import contenders

    build = functools.partial(network, size=size)
    batch = contenders.batch_of((size["batch"], size["image"], size["image"], 3))
    steps = {name: contenders.stepper(model, batch) for name, model in contenders.backpropagation(build).items()}
    for name, rule in rules().items():
        steps[name] = contenders.stepper(contenders.aligned(build, rule), batch)
    return steps


def report(samples: Samples, sizes: dict[str, Any]) -> Report:
    """Returns a table with all cases."""
    rows, checks = [], []
    for case, size in sizes.items():
        seconds = middle(samples.values(case, BASELINE))[0]
        for name in samples.measured(case, (PLAIN, *rules())):
            median, low, high = middle(samples.ratios(case, name, BASELINE))
            quartiles, limit = f"{low:.2f} to {high:.2f}", LIMITS.get(name)
            rows.append([f"{case}, batch {size['batch']}", seconds, name, median, quartiles, limit])
            if limit is not None:
                checks.append(Check(f"step time, {case}, {name}", median, limit))
    header = ["network", "seconds of backpropagation", "rule", "step time over backpropagation", "quartiles", "limit"]
    intro = (
        "Here backpropagation is plain Keras: MobileNetV2 has Keras' own batch normalisation with every rule, and the "
        "transformer has none.\n\n"
    )
    return Report(intro + table(header, rows) + samples.note_of_missing(sizes, rules()), checks)


BENCHMARK = Benchmark("networks", "Step time of networks from Keras", 6, FULL, SMALL, measure, report)
