"""How well each rule is aligned over training, which shows why a rule is behind; not part of the paper."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

from neural_alignment.jobs.plans import Cell, Outcome
from neural_alignment.papers.registry import Profiles, Source
from neural_alignment.papers.tables import chosen, one_decimal, over_layers, spread, table
from neural_alignment.papers.two_routes.runs import (
    CHANCE,
    LAB_MODELS,
    LAB_RULES,
    MODELS,
    RULE_STYLES,
    SEARCHED,
    TABLE_3,
    lab_cell,
)
from neural_alignment.reporting import Artifact, Row, Spread

MEASURES = ("pseudogradient_angle", "weight_angle")

COLUMNS = ("model", "rule", "seed", "epoch", "top1", *MEASURES, "weight_angle_max", "norm_ratio_min", "norm_ratio_max")

EARLY = 2
"""Epochs after which the lab's runs are evaluated for the first time."""

ALIGNED = 10.0
"""Angle of W and B^T in degrees below which they count as aligned. Beyond it more than 17 % of B^T is not along W."""

HALF = 0.5
"""||B|| / ||W|| below which B counts as small, and beyond the inverse of which it counts as large."""

REMARK = (
    "Lab profile. Angles in degrees, mean over layers, then mean and standard deviation over seeds. "
    "Pseudogradient: between the update of W through B and the gradient of J, on 64 validation images; 0 is "
    "backpropagation, 90 is unrelated. Weights: between W and B^T; largest: of any layer. Norms: ||B|| / ||W||, the "
    "smallest and the largest of any layer and seed: a small B slows down the layers below. B at the end: misaligned "
    f"if its mean angle is {ALIGNED:g} degrees or more; small, large, or both in different layers, if a norm is below "
    f"{HALF:g} or above {1 / HALF:g}. Diverged runs are left out."
)


def plan() -> Profiles:
    """Returns the runs of all rules with ResNet-18, and those of Figures 3 and S5 with the deeper networks."""
    trained = ("symmetric", "activation", "kolen_pollack")
    small = dict.fromkeys((*TABLE_3, "feedback", *LAB_RULES, *trained))
    deeper = [model for model in LAB_MODELS if model != "resnet18"]
    pairs = [*(("resnet18", rule) for rule in small), *itertools.product(deeper, (*SEARCHED, *trained))]
    return {"lab": [lab_cell(*pair) for pair in pairs]}


def make(source: Source) -> Artifact:
    """Angles of pseudogradients and weights, and norms of B, early in training and at its end."""
    outcomes = source.outcomes()
    rows = [row for cell, found in outcomes for each in found for row in _rows(cell, each)]
    lines = [_line(cell, chosen(rows, **cell.labels), found) for cell, found in outcomes]
    columns = {name: name for name in lines[0]}
    return Artifact(COLUMNS, rows, f"{table(lines, ['network', 'rule'], columns)}\n\n{REMARK}")


def _rows(cell: Cell, outcome: Outcome) -> Iterator[Row]:
    """Yields a row per evaluation of a run."""
    for row in () if outcome.diverged else outcome.rows:
        layers = {name: over_layers(row, name) for name in (*MEASURES, "norm_ratio")}
        angles, ratios = layers["weight_angle"].known, layers["norm_ratio"].known
        yield {
            **cell.labels,
            "seed": outcome.config.seed,
            "epoch": row["epoch"],
            "top1": row["top1"] if row["epoch"] else CHANCE["lab"][0],
            **{name: layers[name].mean for name in MEASURES},
            "weight_angle_max": max(angles, default=math.nan),
            "norm_ratio_min": min(ratios, default=math.nan),
            "norm_ratio_max": max(ratios, default=math.nan),
        }


def _line(cell: Cell, rows: Sequence[Row], outcomes: Sequence[Outcome]) -> Row:
    """Returns a line of the table: the angles after `EARLY` epochs and at the end, and the norms at the end."""
    diverged = sum(each.diverged for each in outcomes)
    early = chosen(rows, epoch=EARLY)
    end = chosen(rows, epoch=max((row["epoch"] for row in rows), default=EARLY))
    top1 = [str(spread(end, "top1", 100))] if end else [] if diverged else ["missing"]
    top1 += [f"({diverged} of {len(outcomes)} diverged)"] if diverged else []
    line = {"network": MODELS[cell.labels["model"]], "rule": RULE_STYLES[cell.labels["rule"]].label}
    line["top-1 (%)"] = " ".join(top1)
    for measure in MEASURES:
        name = measure.partition("_")[0]
        line[f"{name}, {EARLY} epochs"], line[f"{name}, end"] = (
            one_decimal(spread(own, measure)) for own in (early, end)
        )
    line["weight, largest"] = one_decimal(Spread([max((row["weight_angle_max"] for row in end), default=math.nan)]))
    norms = [pick((row[f"norm_ratio_{name}"] for row in end), default=math.nan) for pick, name in _ENDS]
    line["norms"] = "" if math.isnan(norms[0]) else " to ".join(f"{norm:.2g}" for norm in norms)
    return line | {"B at the end": _state(spread(end, "weight_angle").mean, *norms)}


def _state(angle: float, smallest: float, largest: float) -> str:
    """Returns in words how B differs from W^T; an empty text without a B.

    Args:
        angle: mean angle over layers, degrees.
        smallest: smallest ||B|| / ||W|| of a layer.
        largest: the largest one.
    """
    if math.isnan(angle):
        return ""
    sizes = ["small"] * (smallest < HALF) + ["large"] * (largest > 1 / HALF)
    parts = ["aligned" if angle < ALIGNED else "misaligned", *([" and ".join(sizes)] if sizes else [])]
    return ", ".join(parts)


_ENDS = ((min, "min"), (max, "max"))
