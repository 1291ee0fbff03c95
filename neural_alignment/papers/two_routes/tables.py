"""Tables 3 to 5 of Kunin et al. 2020."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from neural_alignment import config as configuration
from neural_alignment.config import Config
from neural_alignment.jobs.plans import Cell
from neural_alignment.papers import published
from neural_alignment.papers.registry import Source
from neural_alignment.papers.tables import at, chosen, spread, table
from neural_alignment.papers.two_routes.runs import CHANCE, MODELS, PRINTED, RULE_STYLES, SEARCHED
from neural_alignment.reporting import Artifact, Row

RUN_COLUMNS = ("profile", "model", "rule", "seed", "top1", "top5", "diverged", "seconds")
"""Columns of the CSV files of Tables 3 and 4, and of Figures 3 and S5."""


REMARKS = {
    "paper": "The paper's numbers are of ImageNet's 50,000 validation images.",
    "lab": "Lab profile: CIFAR-10 at 16 x 16 pixels, narrow networks; the paper's numbers, beside, are of ImageNet.",
}
"""Profile -> last sentence of Tables 3 and 4."""


def run_rows(source: Source) -> list[Row]:
    """Returns a row per finished run, with `RUN_COLUMNS` and the labels of its cell."""
    top1, top5 = CHANCE[source.profile]
    return [
        {
            "profile": source.profile,
            **cell.labels,
            "seed": outcome.config.seed,
            "top1": outcome.measure("top1", top1),
            "top5": outcome.measure("top5", top5),
            "diverged": outcome.diverged,
            "seconds": round(outcome.seconds, 1),
        }
        for cell, outcomes in source.outcomes()
        for outcome in outcomes
    ]


def accuracies(source: Source, rows: Sequence[Row]) -> list[Row]:
    """Returns a row per cell: its labels, names of its network and rule, and as text its accuracies and the paper's."""
    cells = []
    for cell in source.cells:
        model, rule = cell.labels["model"], cell.labels["rule"]
        row = {**cell.labels, "network": MODELS[model], "name": RULE_STYLES[rule].label}
        printed = {name: f"{value:.2f}" for name, value in PRINTED.get((model, rule), {}).items()}
        own = chosen(rows, **cell.labels)
        for name in ("top1", "top5"):
            row |= {name: percent(own, cell, name), f"paper_{name}": printed.get(name, "-")}
        cells.append(row)
    return cells


def percent(own: Sequence[Row], cell: Cell, measure: str) -> str:
    """Returns mean and standard deviation over the runs of a cell in percent, with notes on missing ones."""
    if not own:
        return "missing"
    diverged = sum(row["diverged"] for row in own)
    notes = [f"{diverged} of {len(own)} diverged"] if diverged else []
    if len(own) < len(cell.seeds):
        notes.append(f"{len(own)} of {len(cell.seeds)} seeds")
    elif len(cell.seeds) == 1:
        notes.append("1 seed")
    found = spread(own, measure, 100)
    return f"{found} ({', '.join(notes)})" if notes else str(found)


def table_3(source: Source) -> Artifact:
    """Top-1 and top-5 accuracy of the local rules with ResNet-18; mean and standard deviation over seeds."""
    rows = run_rows(source)
    columns = {"rule": "name", "top-1 (%)": "top1", "top-5 (%)": "top5"}
    columns |= {"paper, top-1 (%)": "paper_top1", "paper, top-5 (%)": "paper_top5"}
    text = table(accuracies(source, rows), ["rule"], columns)
    return Artifact(RUN_COLUMNS, rows, f"{text}\n\n{REMARKS[source.profile]}")


def table_4(source: Source) -> Artifact:
    """Top-1 accuracy of symmetric and activation alignment and of backpropagation; mean and standard deviation."""
    rows = run_rows(source)
    cells = accuracies(source, rows)
    rules = dict.fromkeys(row["rule"] for row in cells)
    ours = {f"{RULE_STYLES[rule].label} (%)": at("top1", rule=rule) for rule in rules}
    papers = {f"paper, {rule} (%)": at("paper_top1", rule=rule) for rule in rules}
    text = table(cells, ["model"], {"network": "network", **ours, **papers})
    return Artifact(RUN_COLUMNS, rows, f"{text}\n\n{REMARKS[source.profile]}")


PUBLISHED_FACTOR = 2
"""Our weight of decay and null divided by that of the published code, which has no 1/2 in these primitives."""

OPTIMIZERS = {"sgd": "Vanilla GD", "adam": "Adam"}
"""Name of an optimizer of R -> its name in the table; others have their own."""

NOT_APPLICABLE = "N/A"


def _number(value: float) -> str:
    """Returns a number with four decimals as the table prints it, a small one with an exponent."""
    if value and abs(value) < 1e-3:
        digits, _, exponent = f"{value:.4e}".partition("e")
        return f"{digits} × 10^{int(exponent)}"
    return NOT_APPLICABLE if math.isnan(value) else f"{value:.4f}"


def _published(weight: float) -> float:
    """Returns a weight of decay or null in the published code."""
    return weight / PUBLISHED_FACTOR


def _rounded(value: float) -> float:
    return round(value, 4)


TABLE_5: dict[str, tuple[Any, ...]] = {
    "Alternating Minimization": (lambda plan: plan.alternation is not None, "optimization"),
    "Delay Epochs (de)": ("{:g}".format, "optimization.delay_epochs"),
    "Train Batch Size (|B|)": (str, "batch_size"),
    "SGDM Learning Rate": (_rounded, "optimization.forward.learning_rate"),
    "Alignment Optimizer": (lambda name: OPTIMIZERS.get(name, name), "optimization.backward.name"),
    "Alignment Learning Rate (η)": (_rounded, "optimization.backward.learning_rate"),
    "σ": (_number, "alignment.input.stddev"),
    "α/β": (lambda amp, decay: _number(amp / (_published(decay) or math.nan)), "alignment.amp", "alignment.decay"),
    "β": (lambda decay: _number(_published(decay)), "alignment.decay"),
    "γ": (lambda null: _number(_published(null)), "alignment.null"),
    "Forward Path Output (FO) Bias": (str, "alignment.forward_output.bias"),
    "FO ReLU": (str, "alignment.forward_output.relu"),
    "FO BWMC": (str, "alignment.forward_output.batch_center"),
    "FO FWMC": (str, "alignment.forward_output.feature_center"),
    "FO FWL2N": (str, "alignment.forward_output.feature_normalize"),
    "Backward Path Output (BO) Bias": (str, "alignment.backward_output.bias"),
    "BO ReLU": (str, "alignment.backward_output.relu"),
    "BO FWMC": (str, "alignment.backward_output.feature_center"),
    "BO FWL2N": (str, "alignment.backward_output.feature_normalize"),
    "Backward Path Input (BI) BWMC": (str, "alignment.input.batch_center"),
    "BI FWMC": (str, "alignment.input.feature_center"),
    "BI FWL2N": (str, "alignment.input.feature_normalize"),
}
"""Row of Table 5 -> the form of a value, and the key paths that it is computed from.

Alpha, beta and gamma are the weights of amp, decay and null in the published code, see `PUBLISHED_FACTOR`."""


def _setting(config: Config, form: Callable[..., Any], *paths: str) -> str:
    """Returns a setting as text; N/A if the configuration lacks a key, such as a rule without amp."""
    values = [functools.reduce(lambda part, key: getattr(part, key, None), path.split("."), config) for path in paths]
    return NOT_APPLICABLE if None in values else str(form(*values))


def table_5(source: Source) -> Artifact:
    """Metaparameters that the searches found, from configs/two_routes/resnet18, rounded to the paper's digits."""
    folder = tf.io.gfile.join(source.configs, "two_routes/resnet18")
    configs = {rule: configuration.load(f"{folder}/{rule}.yaml") for rule in SEARCHED}
    rows = [
        {"setting": name, **{rule: _setting(configs[rule], *source_of) for rule in SEARCHED}}
        for name, source_of in TABLE_5.items()
    ]
    remark = "{setting} of {label}: the paper prints {printed:.4f}; its earlier appendix has {unrounded}."
    remarks = [
        remark.format(label=RULE_STYLES[row["rule"]].label, **row)
        for row in published.read("two_routes/table_5_unrounded")  # Cells that the paper did not round correctly.
    ]
    text = table(rows, ["setting"], {"": "setting", **{RULE_STYLES[rule].label: rule for rule in SEARCHED}})
    return Artifact(("setting", *SEARCHED), rows, "\n".join([text, "", *remarks]))
