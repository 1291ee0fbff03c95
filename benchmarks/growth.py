"""Growth of the step time with width, depth and batch, for each rule: the exponent p of t = c size^p."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.common import BASELINE, PLAIN, Benchmark, Check, Report, Samples, interleave, middle, table

RULES = (
    *("feedback", "sign_symmetry", "frsf", "brsf", "kolen_pollack"),
    *("symmetric", "activation", "weight_mirror", "information"),
)
ALLOWANCE = 0.05
"""Allowed difference of a rule's exponent from backpropagation's."""

# At these sizes multiplications dominate, and the kernels exceed a core's cache. At smaller sizes the constant costs of
# a step (the optimizers' pass over the weights, the start of operations) would lower backpropagation's exponent most.
# Widths are multiples of 64, or of 32 for convolutions, because other widths slow oneDNN's products down by different
# amounts. The smallest batch of convolutions takes 70 ms per step, of which operations other than products take little.
FC = {"family": "fc", "width": 1024, "depth": 4, "batch": 512, "rounds": 9}
CONV = {"family": "convnet", "width": 64, "depth": 3, "batch": 128, "rounds": 9}
FULL = {
    "fc, width": {**FC, "axis": "width", "points": [1024, 1536, 2048, 3072]},
    "fc, depth": {**FC, "axis": "depth", "points": [2, 4, 8, 12]},
    "fc, batch": {**FC, "axis": "batch", "points": [1024, 2048, 4096, 8192]},
    "convnet, width": {**CONV, "batch": 32, "axis": "width", "points": [128, 192, 256, 384]},
    "convnet, batch": {**CONV, "axis": "batch", "points": [128, 256, 512, 1024]},
}
SMALL = {"fc, width": {**FC, "axis": "width", "depth": 1, "batch": 4, "rounds": 2, "points": [2, 4]}}
INPUTS = {"fc": (256,), "convnet": (32, 32, 3)}


def network(rule: Any, family: str, width: int, depth: int) -> Any:
    """Returns `depth` hidden layers of `width` units or filters, aligned by `rule`."""
    from neural_alignment.models import convnet, fc

    build = {"fc": fc, "convnet": convnet}[family]
    return build([width] * depth, 10, INPUTS[family], rule)


def cases(sizes: dict[str, Any]) -> dict[str, int]:
    """Returns the number of rounds of every point on every axis."""
    return {f"{case} {point}": size["rounds"] for case, size in sizes.items() for point in size["points"]}


def measure(samples: Samples, sizes: dict[str, Any]) -> None:
    """Times every rule at every point on every axis."""
    import keras

    for case, size in sizes.items():
        for point in size["points"]:
            name = f"{case} {point}"
            if samples.rounds(name) < size["rounds"]:
                interleave(samples, name, _steps({**size, size["axis"]: point}), size["rounds"], warm_up=3)
                keras.backend.clear_session()


def _steps(size: dict[str, Any]) -> dict[str, Any]:
    from benchmarks import contenders

    def build(rule: Any) -> Any:
        return network(rule, size["family"], size["width"], size["depth"])

    batch = contenders.batch_of((size["batch"], *INPUTS[size["family"]]))
    steps = {name: contenders.stepper(model, batch) for name, model in contenders.backpropagation(build).items()}
    for name in RULES:
        steps[name] = contenders.stepper(contenders.aligned(build, contenders.RULES[name].rule), batch)
    return steps


def exponent(sizes: list[float], values: list[float]) -> float:
    """Returns p of values = c sizes^p, by a least-squares fit of the logarithms."""
    import numpy as np

    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def error(samples: Samples, case: str, points: list[int], rule: str, draws: int = 500) -> float:
    """Returns the standard error of the difference of a rule's exponent from backpropagation's, by a bootstrap."""
    import numpy as np

    generator = np.random.default_rng(0)
    ratios = [np.array(samples.ratios(f"{case} {point}", rule, BASELINE)) for point in points]
    drawn = [generator.choice(each, (draws, len(each))) for each in ratios]
    medians = np.stack([np.median(each, axis=1) for each in drawn], axis=1)
    return float(np.std([exponent(points, row) for row in medians], ddof=1))


def times(samples: Samples, case: str, points: list[int]) -> dict[str, list[float]]:
    """Returns the seconds of a step for each contender at each point.

    For all but backpropagation, this is the median of backpropagation times the median of the ratios within a round,
    which do not drift.
    """
    base = [middle(samples.values(f"{case} {point}", BASELINE))[0] for point in points]
    found = {BASELINE: base}
    for name in compared(samples, case, points):
        ratios = [middle(samples.ratios(f"{case} {point}", name, BASELINE))[0] for point in points]
        found[name] = [seconds * ratio for seconds, ratio in zip(base, ratios, strict=True)]
    return found


def compared(samples: Samples, case: str, points: list[int]) -> list[str]:
    """Returns the contenders that are compared with backpropagation: plain Keras if it differs, and the rules."""
    return samples.measured(f"{case} {points[0]}", (PLAIN, *RULES))


def report(samples: Samples, sizes: dict[str, Any]) -> Report:
    """Returns the table of exponents, and saves the plot beside the samples."""
    columns: dict[str, dict[str, float]] = {}
    cells: dict[str, dict[str, str]] = {}
    checks = []
    for case, size in sizes.items():
        points = size["points"]
        found = {name: exponent(points, seconds) for name, seconds in times(samples, case, points).items()}
        columns[case] = found
        errors = {name: error(samples, case, points, name) for name in compared(samples, case, points)}
        cells[case] = {name: f"{found[name]:.2f} ± {errors[name]:.2f}" for name in errors}
        limit = found[BASELINE] + ALLOWANCE
        checks += [Check(f"exponent of {case}, {rule}", found[rule], limit) for rule in RULES if rule in found]
    picture = samples.path.with_suffix(".png")
    _plot(samples, sizes, picture)
    names = [name for name in (PLAIN, *RULES) if any(name in cells[case] for case in cells)]
    rows = [[BASELINE, *(columns[case][BASELINE] for case in columns)]]
    rows += [[name, *(cells[case].get(name) for case in columns)] for name in names]
    rows.append(["limit", *(columns[case][BASELINE] + ALLOWANCE for case in columns)])
    ranges = "; ".join(
        f"{case} {size['points'][0]} to {size['points'][-1]} ({_fixed(size)})" for case, size in sizes.items()
    )
    text = (
        f"Exponents p of t = c size^p. Ranges: {ranges}. The limit is backpropagation's exponent plus {ALLOWANCE}; ± "
        "is the standard error of the difference from backpropagation's. Depth is varied only in fc: each convolution "
        "of convnet halves the image, so further layers add hardly any time. fc has no batch normalisation, so there "
        "backpropagation is plain Keras. Rules of a whole network are compared at several widths under Wide "
        "networks.\n\n"
        f"{table(['rule', *columns], rows)}{samples.note_of_missing(cases(sizes), RULES)}\n\n"
        f"![Step time against size, both axes logarithmic]({picture.parent.name}/{picture.name})"
    )
    return Report(text, checks)


def _fixed(size: dict[str, Any]) -> str:
    """Returns the sizes that are constant along the axis."""
    return ", ".join(f"{name} {size[name]}" for name in ("width", "depth", "batch") if name != size["axis"])


LOOKS = dict(
    zip(
        (BASELINE, PLAIN, *RULES),
        zip("os*D^v<>PXd", ["-", ":", "--", "-."] * 2 + ["-", ":", "--"], strict=True),
        strict=True,
    )
)
"""Marker and dash of each contender."""


def _plot(samples: Samples, sizes: dict[str, Any], picture: Path) -> None:
    """Draws a panel per case. Contenders differ by marker and dash, so the plot does not need colours."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter, ScalarFormatter

    figure = Figure(figsize=(4.2 * len(sizes), 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    units = {"width": "width (units or filters)", "depth": "depth (hidden layers)", "batch": "batch (examples)"}
    lines: dict[str, Any] = {}
    for panel, (case, size) in zip(figure.subplots(1, len(sizes), squeeze=False)[0], sizes.items(), strict=True):
        for name, seconds in times(samples, case, size["points"]).items():
            (marker, dash), milliseconds = LOOKS[name], [1000 * each for each in seconds]
            (lines[name],) = panel.loglog(size["points"], milliseconds, marker=marker, linestyle=dash, label=name)
        panel.set(title=f"{size['family']}: {_fixed(size)}", xlabel=units[size["axis"]], ylabel="step (ms)")
        panel.set_xticks(size["points"])
        panel.xaxis.set_major_formatter(ScalarFormatter())
        panel.xaxis.set_minor_formatter(NullFormatter())
        panel.yaxis.set_major_formatter("{x:g}")
        panel.yaxis.set_minor_formatter("{x:g}")
        panel.grid(True, which="both", alpha=0.3)
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=6, frameon=False)
    figure.savefig(picture, dpi=110)


BENCHMARK = Benchmark("growth", "Growth of the step time", 13, FULL, SMALL, measure, report, cases)
