"""Learning rules on CIFAR-10 at full size: accuracy, angles over training and time; not part of a paper."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from neural_alignment.jobs.plans import Cell, Outcome
from neural_alignment.papers import figures
from neural_alignment.papers.figures import Panel, drawn, lines, panel
from neural_alignment.papers.registry import Item, Source
from neural_alignment.papers.tables import chosen, one_decimal, over_layers, spread, table
from neural_alignment.papers.two_routes.runs import RULE_STYLES
from neural_alignment.reporting import Artifact, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SEEDS_BY_RULE = {
    "backprop": (0, 1, 2),
    "symmetric": (0, 1, 2),
    "information": (0,),
    "weight_mirror_adam": (0,),
    "activation": (0,),
    "kolen_pollack": (0,),
    "sign_symmetry": (0,),
    "feedback": (0,),
}
"""Name of a file in configs/cifar10/full -> its seeds, in the order of the table."""

LOOKS = {
    rule: replace(RULE_STYLES[rule], label=RULE_STYLES[rule].label.removesuffix(", TPE")) for rule in SEEDS_BY_RULE
}
LOOKS["weight_mirror_adam"] = replace(LOOKS["weight_mirror_adam"], label="weight mirror (WM+AD)")
"""Rule -> its name and the look of its lines."""

COLUMNS = (
    *("rule", "seed", "epochs", "test_top1", "test_top5", "mean_angle", "largest_angle", "seconds"),
    *("pseudogradient_angle", "norm_ratio", "diverged"),
)

CHANCE = (0.1, 0.5)
"""Top-1 and top-5 of a run that diverged."""

SMALLEST_RANGE = 5.0
"""Points of accuracy that the axis of the accuracies has at least."""

REMARK = (
    "ResNet-18 of width 16, 50,000 images of 32 x 32 pixels with flips and crops, batches of 128. Test accuracy after "
    "the last epoch; no epoch was chosen. Mean and standard deviation over seeds. Angles between W and B^T at the end, "
    "in degrees: mean over layers, and the largest of any layer; norm: mean over layers of the ratio; pseudogradient: "
    "between the update of W through B and the gradient of J on 64 test images. Minutes: of one thread, two runs at a "
    "time; other work shared the two cores, so they are only a rough guide."
)


def cells() -> list[Cell]:
    """Returns the runs in the order of training: first one seed of each rule, so that all rules are soon compared."""
    first = [(rule, seeds[:1]) for rule, seeds in SEEDS_BY_RULE.items()]
    others = [(rule, seeds[1:]) for rule, seeds in SEEDS_BY_RULE.items() if seeds[1:]]
    return [Cell(f"cifar10/full/{rule}.yaml", rule, {"rule": rule}, seeds=seeds) for rule, seeds in [*first, *others]]


def make(source: Source) -> Artifact:
    """Table of the results, and a figure of the accuracy and of the angles over training."""
    runs = [(cell.labels["rule"], outcome) for cell, found in source.outcomes() for outcome in found]
    runs.sort(key=lambda run: list(SEEDS_BY_RULE).index(run[0]))
    rows = [_row(*run) for run in runs]
    course = [row for run in runs for row in _course(*run)]
    parts = [_line(rule, chosen(rows, rule=rule)) for rule in SEEDS_BY_RULE]
    text = table(parts, ["rule"], {name: name for name in parts[0]})
    panels = [[_accuracy(rows), *(_over_training(course, *each) for each in _CURVES)]]
    return drawn(rows, f"{text}\n\n{REMARK}", panels, (13, 4), COLUMNS, legend="outside lower center")


def _row(rule: str, outcome: Outcome) -> Row:
    """Returns the row of a run in the CSV file."""
    last = outcome.rows[-1] if outcome.rows else {}
    angles, pseudogradients, norms = (
        over_layers({} if outcome.diverged else last, name)
        for name in ("weight_angle", "pseudogradient_angle", "norm_ratio")
    )
    return {
        "rule": rule,
        "seed": outcome.config.seed,
        "epochs": outcome.config.epochs,
        "test_top1": outcome.measure("top1", CHANCE[0]),
        "test_top5": outcome.measure("top5", CHANCE[1]),
        "diverged": outcome.diverged,
        "mean_angle": angles.mean,
        "largest_angle": max(angles.known, default=math.nan),
        "pseudogradient_angle": pseudogradients.mean,
        "norm_ratio": norms.mean,
        "seconds": round(outcome.seconds, 1),
    }


def _course(rule: str, outcome: Outcome) -> Iterator[Row]:
    """Yields a row per evaluation of a run, for the curves."""
    for row in outcome.rows:
        measures = {name: over_layers(row, name).mean for name in ("weight_angle", "pseudogradient_angle")}
        top1 = row["top1"] if row["epoch"] else math.nan
        yield {"rule": rule, "epoch": row["epoch"], "top1": 100 * top1, **measures}


def _line(rule: str, rows: Sequence[Row]) -> Row:
    """Returns a line of the table."""
    seeds, norms = len(SEEDS_BY_RULE[rule]), spread(rows, "norm_ratio")
    notes = [f"{len(rows)} of {seeds} seeds"] if 0 < len(rows) < seeds else []
    notes += [f"{diverged} diverged, counted as chance"] if (diverged := sum(row["diverged"] for row in rows)) else []
    few = f" ({', '.join(notes)})" if notes else ""
    return {
        "rule": LOOKS[rule].label,
        "seeds": seeds,
        "epochs": rows[0]["epochs"] if rows else "",
        "test top-1 (%)": f"{spread(rows, 'test_top1', 100)}{few}" if rows else "not yet run",
        "test top-5 (%)": f"{spread(rows, 'test_top5', 100)}" if rows else "",
        "mean angle": one_decimal(spread(rows, "mean_angle")),
        "largest angle": one_decimal(spread(rows, "largest_angle")),
        "norm of B / W": f"{norms:.2f}" if norms.known else "",
        "pseudogradient angle": one_decimal(spread(rows, "pseudogradient_angle")),
        "minutes": f"{spread(rows, 'seconds').mean / 60:.0f}" if rows else "",
    }


_CURVES = (
    ("top1", "test top-1 (%)", "accuracy over training", (0, None)),
    ("weight_angle", "angle of W to Bᵀ (degrees)", "weights (mean of layers)", (0, 95)),
    ("pseudogradient_angle", "angle of update to gradient (degrees)", "updates (mean of layers)", (0, 95)),
)
"""Column, label of its axis, title and limits of each panel over training."""


def _over_training(course: Sequence[Row], column: str, label: str, title: str, limits: tuple) -> Panel:
    curves = lines(course, "epoch", column, "rule", LOOKS, figures.mean_and_deviation, band=True)
    return panel(curves, xlabel="epoch", ylabel=label, title=title, ylim=limits)


def _accuracy(rows: Sequence[Row]) -> Panel:
    """Returns a panel of the test accuracy of each run, a line per rule from top to bottom."""
    names = list(SEEDS_BY_RULE)

    def draw(axis: Axes) -> None:
        for row in rows:
            style = {**LOOKS[row["rule"]].options(), "linestyle": "", "label": None, "markersize": 6}
            axis.plot(100 * row["test_top1"], names.index(row["rule"]), **style)
        axis.set_yticks(range(len(names)), [LOOKS[rule].label for rule in names])
        axis.set_ylim(len(names) - 0.5, -0.5)
        low, high = axis.get_xlim()
        margin = max(0.0, SMALLEST_RANGE - (high - low)) / 2  # Equal accuracies must not look far apart.
        axis.set_xlim(low - margin, high + margin)
        axis.grid(axis="x", color="0.85")

    return panel(draw, xlabel="test top-1 (%)", ylabel="rule", title="accuracy of each run")


PAGES = ("README.md", "docs/results.md")
"""Pages that contain the table."""

ITEMS = [
    Item("figure", "cifar10/full", "all rules at full size", make, {"lab": cells()}, pages=PAGES, written_as="full")
]
"""One table with its figure. Its size is the only one, the profile `lab`."""
