"""Accuracy and angles of the lab's ResNet-18 if R is computed from a part of each batch; not part of the paper."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from neural_alignment.jobs.plans import Cell, Outcome
from neural_alignment.papers.claims import LEAST, TOO_FEW, above, reach, verdict
from neural_alignment.papers.registry import Profiles, Source
from neural_alignment.papers.tables import chosen, grouped, over_layers, spread, table
from neural_alignment.papers.two_routes.runs import CHANCE, FEW, RULE_STYLES, lab_cell
from neural_alignment.reporting import Artifact, Row, Spread

AVERAGED_RULES = ("activation", "weight_mirror", "weight_mirror_adam", "information")
"""Rules whose R is a mean over examples."""

FRACTIONS = (1.0, 0.5, 0.25, 0.125)

COLUMNS = ("rule", "examples", "seed", "top1", "weight_angle", "diverged", "seconds")

REMARK = (
    "Lab profile: ResNet-18 of width 8 on CIFAR-10 at 16 x 16 pixels, batches of 50, the same number of steps for all "
    "rows. Examples: the part of each batch from which R is computed (option `examples`); weights and rates are the "
    "same in all rows of a rule. Angle: between W and B^T at the end, mean over layers. Cost: top-1 with the whole "
    "batch minus top-1, mean over pairs of runs with the same seed ± standard error; it shows if its 95 % interval by "
    "Student's t is above 0, and is undecided if the interval contains 0. A run that diverges counts as chance and has "
    "no angle."
)


def plan() -> Profiles:
    """Returns the runs of each rule with each fraction; with the whole batch they are those of Tables 3 and 4."""
    return {"lab": [_cell(rule, fraction) for rule in AVERAGED_RULES for fraction in FRACTIONS]}


def _cell(rule: str, fraction: float) -> Cell:
    cell = lab_cell("resnet18", rule, FEW)
    labels = {**cell.labels, "examples": fraction}
    if fraction == 1:
        return dataclasses.replace(cell, labels=labels)
    overrides = (*cell.overrides, f"alignment.examples={fraction}")
    return dataclasses.replace(cell, name=f"{cell.name}_examples_{fraction:g}", labels=labels, overrides=overrides)


def make(source: Source) -> Artifact:
    """Top-1 accuracy and angles with R from a part of the batch, and the cost relative to the whole batch."""
    rows = [_row(cell, outcome) for cell, outcomes in source.outcomes() for outcome in outcomes]
    lines = []
    for cell in source.cells:
        rule, fraction = cell.labels["rule"], cell.labels["examples"]
        own = chosen(rows, rule=rule, examples=fraction)
        line = {"rule": rule, "name": RULE_STYLES[rule].label, "examples": f"{fraction:g}"}
        line |= {"top1": "missing", "angle": "missing", "cost": "", "shows": ""}
        if own:
            missing = len(cell.seeds) - len(own)
            line["top1"] = f"{spread(own, 'top1', 100)}" + (f" ({len(own)} of {len(cell.seeds)} seeds)" * bool(missing))
            line["angle"] = f"{spread(own, 'weight_angle'):.1f}"
        lines.append(line | _cost(chosen(rows, rule=rule, examples=1.0), own if fraction < 1 else []))
    columns = {"rule": "name", "examples": "examples", "top-1 (%)": "top1", "angle (degrees)": "angle"}
    columns |= {"cost (points)": "cost", "shows": "shows"}
    text = table(lines, ["rule", "examples"], columns)
    return Artifact(COLUMNS, rows, "\n\n".join([text, *_conclusions(lines), REMARK]))


def _row(cell: Cell, outcome: Outcome) -> Row:
    top1, _ = CHANCE["lab"]
    last = {} if outcome.diverged else outcome.rows[-1]
    return {
        "rule": cell.labels["rule"],
        "examples": cell.labels["examples"],
        "seed": outcome.config.seed,
        "top1": outcome.measure("top1", top1),
        "weight_angle": over_layers(last, "weight_angle").mean,
        "diverged": outcome.diverged,
        "seconds": round(outcome.seconds, 1),
    }


def _cost(whole: Sequence[Row], part: Sequence[Row]) -> Row:
    """Returns the loss of accuracy against the whole batch, whether it shows, and the upper end of its interval.

    It is empty with less than two pairs.
    """
    reference = {row["seed"]: row["top1"] for row in whole}
    cost = Spread([100 * (reference[row["seed"]] - row["top1"]) for row in part if row["seed"] in reference])
    if len(cost.known) < 2:
        return {}
    text, shows = f"{cost.mean:+.2f} ± {cost.error:.2f}", verdict([above().judge(cost)], len(cost.known) >= LEAST)
    return {"cost": text, "shows": shows, "most": cost.mean + reach(cost.error, len(cost.known) - 1)}


def _conclusions(lines: Sequence[Row]) -> list[str]:
    """Returns a sentence for each rule that names the first fraction with a cost that shows.

    If there is none, it names the largest cost within the intervals.
    """
    found = []
    for (name,), own in grouped(lines, "name").items():
        tested = [line for line in own if line["shows"] not in ("", TOO_FEW)]
        first = next((line["examples"] for line in tested if line["shows"] == "yes"), None)
        if first is not None:
            found.append(f"{name}: costs accuracy from {first} of the batch on.")
        elif tested:
            most = max(line["most"] for line in tested)
            found.append(
                f"{name}: no cost shows down to {tested[-1]['examples']} of the batch; "
                f"costs of up to {most:.1f} points are within the intervals."
            )
    return ["\n".join(f"- {line}" for line in found)] if found else []
