"""How well each rule is aligned over training, which shows why a rule is behind; not part of the paper."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from neural_alignment.jobs.plans import Cell, Outcome
from neural_alignment.papers.registry import Profiles, Source
from neural_alignment.papers.tables import chosen, one_decimal, over_layers, spread, table
from neural_alignment.papers.two_routes.runs import CHANCE, LAB_RULES, RULE_STYLES, TABLE_3, lab_cell
from neural_alignment.reporting import Artifact, Row, Spread

MEASURES = ("pseudogradient_angle", "weight_angle")

COLUMNS = ("rule", "seed", "epoch", "top1", *MEASURES, "weight_angle_max", "norm_ratio_min", "norm_ratio_max")

EARLY = 2
"""Epochs after which the lab's runs are evaluated for the first time."""

REMARK = (
    "Lab profile: ResNet-18. Angles in degrees, mean over layers, then mean and standard deviation over seeds. "
    "Pseudogradient: between the update of W through B and the gradient of J, on 64 validation images; 0 is "
    "backpropagation, 90 is unrelated. Weights: between W and B^T; largest: of any layer. Norms: ||B|| / ||W||, the "
    "smallest and the largest of any layer and seed: a small B slows down the layers below. Diverged runs are left out."
)


def plan() -> Profiles:
    """Returns the runs of all rules with ResNet-18; they are those of Tables 3 and 4 and of Figure S5."""
    rules = dict.fromkeys((*TABLE_3, "feedback", *LAB_RULES, "symmetric", "activation", "kolen_pollack"))
    return {"lab": [lab_cell("resnet18", rule) for rule in rules]}


def make(source: Source) -> Artifact:
    """Angles of pseudogradients and weights, and norms of B, early in training and at its end."""
    outcomes = source.outcomes()
    rows = [row for cell, found in outcomes for each in found for row in _rows(cell, each)]
    lines = [_line(cell.labels["rule"], chosen(rows, rule=cell.labels["rule"]), found) for cell, found in outcomes]
    columns = {name: name for name in lines[0]}
    return Artifact(COLUMNS, rows, f"{table(lines, ['rule'], columns)}\n\n{REMARK}")


def _rows(cell: Cell, outcome: Outcome) -> Iterator[Row]:
    """Yields a row per evaluation of a run."""
    for row in () if outcome.diverged else outcome.rows:
        layers = {name: over_layers(row, name) for name in (*MEASURES, "norm_ratio")}
        angles, ratios = layers["weight_angle"].known, layers["norm_ratio"].known
        yield {
            "rule": cell.labels["rule"],
            "seed": outcome.config.seed,
            "epoch": row["epoch"],
            "top1": row["top1"] if row["epoch"] else CHANCE["lab"][0],
            **{name: layers[name].mean for name in MEASURES},
            "weight_angle_max": max(angles, default=math.nan),
            "norm_ratio_min": min(ratios, default=math.nan),
            "norm_ratio_max": max(ratios, default=math.nan),
        }


def _line(rule: str, rows: Sequence[Row], outcomes: Sequence[Outcome]) -> Row:
    """Returns a line of the table: the angles after `EARLY` epochs and at the end, and the norms at the end."""
    diverged = sum(each.diverged for each in outcomes)
    early = chosen(rows, epoch=EARLY)
    end = chosen(rows, epoch=max((row["epoch"] for row in rows), default=EARLY))
    top1 = [str(spread(end, "top1", 100))] if end else [] if diverged else ["missing"]
    top1 += [f"({diverged} of {len(outcomes)} diverged)"] if diverged else []
    line = {"rule": RULE_STYLES[rule].label, "top-1 (%)": " ".join(top1)}
    for measure in MEASURES:
        name = measure.partition("_")[0]
        line[f"{name}, {EARLY} epochs"], line[f"{name}, end"] = (
            one_decimal(spread(own, measure)) for own in (early, end)
        )
    line["weight, largest"] = one_decimal(Spread([max((row["weight_angle_max"] for row in end), default=math.nan)]))
    norms = [pick((row[f"norm_ratio_{name}"] for row in end), default=math.nan) for pick, name in _ENDS]
    return line | {"norms": "" if math.isnan(norms[0]) else " to ".join(f"{norm:.2g}" for norm in norms)}


_ENDS = ((min, "min"), (max, "max"))
