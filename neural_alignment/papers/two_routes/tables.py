"""Tables 1 to 5 of Kunin et al. 2020."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from neural_alignment import config as configuration
from neural_alignment.config import Config
from neural_alignment.papers.plans import Cell, Outcome
from neural_alignment.papers.registry import Source
from neural_alignment.papers.two_routes import taxonomy
from neural_alignment.papers.two_routes.runs import CHANCE, MODELS, RULES, SEARCHED, TABLE_3, TABLE_4
from neural_alignment.reporting import Artifact, Row, Spread, markdown

RUN_COLUMNS = ("profile", "model", "rule", "seed", "top1", "top5", "diverged", "seconds")
"""Of the CSV files of Tables 3 and 4, and of Figures 3 and S5."""


def table_1(source: Source) -> Artifact:
    """The primitives and their gradients; `angle` is of Appendix D.3, d its upstream error.

    Gradients are found out, formulas are what the primitives' docstrings say.
    """
    del source
    rows = [
        {"group": _group(each.local), "primitive": each.name.rstrip("_"), **each._asdict()}
        for each in taxonomy.table_1()
    ]
    columns = ("group", "primitive", "formula_as_documented", "gradient")
    rows = [{column: row[column.partition("_")[0]] for column in columns} for row in rows]
    header = [column.replace("_", " ") for column in columns]
    return Artifact(columns, rows, markdown(header, [list(row.values()) for row in rows]))


def table_2(source: Source) -> Artifact:
    """Which primitives each rule is made of; beside the paper's rows Kolen-Pollack (Appendix D.3) and sign symmetry."""
    del source
    names = list(taxonomy.PRIMITIVES)
    order = sorted(names, key=lambda name: [row.name for row in taxonomy.table_1()].index(name))
    rows = [
        {"group": _group(taxon.local), "rule": taxon.rule, **{name: int(name in taxon.primitives) for name in order}}
        for taxon in taxonomy.table_2()
    ]
    columns = ("group", "rule", *order)
    cells = [[row["group"], row["rule"], *("x" if row[name] else "" for name in order)] for row in rows]
    return Artifact(columns, rows, markdown(["group", "rule", *(name.rstrip("_") for name in order)], cells))


def _group(local: bool) -> str:
    return "local" if local else "non-local"


def run_rows(source: Source, read: Sequence[tuple[Cell, list[Outcome]]]) -> list[Row]:
    """Returns a row of `RUN_COLUMNS`, and of the cell's labels, per run that has ended."""
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
        for cell, outcomes in read
        for outcome in outcomes
    ]


def table_3(source: Source) -> Artifact:
    """Top-1 and top-5 accuracy of the local rules with ResNet-18; mean and standard deviation over seeds."""
    rows = run_rows(source, source.read())
    lines = []
    for cell in source.cells:
        rule = cell.labels["rule"]
        paper = TABLE_3.get(rule)
        ours = [percent(rows, cell, measure) for measure in ("top1", "top5")]
        lines.append([RULES[rule].label, *ours, *(f"{value:.2f}" for value in paper or ()), *["-"] * (not paper) * 2])
    header = ["rule", "top-1 (%)", "top-5 (%)", "paper, top-1 (%)", "paper, top-5 (%)"]
    return Artifact(RUN_COLUMNS, rows, markdown(header, lines) + _remark(source))


def table_4(source: Source) -> Artifact:
    """Top-1 accuracy of symmetric and activation alignment beside backpropagation's; mean and standard deviation."""
    rows = run_rows(source, source.read())
    rules = list(dict.fromkeys(cell.labels["rule"] for cell in source.cells))
    cells = {(cell.labels["model"], cell.labels["rule"]): cell for cell in source.cells}
    header = ["network", *(f"{RULES[rule].label} (%)" for rule in rules), *(f"paper, {rule} (%)" for rule in rules)]
    lines = [
        [
            MODELS[model],
            *(percent(rows, cells[model, rule], "top1") for rule in rules),
            *(f"{TABLE_4[model][rule]:.2f}" for rule in rules),
        ]
        for model in dict.fromkeys(model for model, _ in cells)
    ]
    return Artifact(RUN_COLUMNS, rows, markdown(header, lines) + _remark(source))


def percent(rows: Sequence[Row], cell: Cell, measure: str) -> str:
    """Returns mean and standard deviation over the seeds of one cell, in percent, and what there is to say of them."""
    own = [row for row in rows if cell.labels.items() <= row.items()]
    if not own:
        return "missing"
    diverged = sum(row["diverged"] for row in own)
    notes = [f"{diverged} of {len(own)} diverged"] if diverged else []
    if len(own) < len(cell.seeds):
        notes.append(f"{len(own)} of {len(cell.seeds)} seeds")
    elif len(cell.seeds) == 1:
        notes.append("1 seed")
    spread = Spread([100 * row[measure] for row in own])
    return f"{spread} ({', '.join(notes)})" if notes else str(spread)


def _remark(source: Source) -> str:
    if source.profile == "paper":
        return "\n\nThe paper's numbers are of ImageNet's 50,000 validation images."
    return "\n\nLab profile: CIFAR-10 at 16 x 16 pixels, narrow networks; the paper's numbers, beside, are of ImageNet."


# Table 5.

PUBLISHED_FACTOR = 2
"""Our weight of decay and null over the published code's, which has no 1/2 in these primitives."""

OPTIMIZERS = {"sgd": "Vanilla GD", "adam": "Adam"}


def _number(value: float) -> str:
    """Returns a number to four decimals as the table prints them, small ones with an exponent."""
    if value and abs(value) < 1e-3:
        digits, _, exponent = f"{value:.4e}".partition("e")
        return f"{digits} × 10^{int(exponent)}"
    return f"{value:.4f}"


def _beta(config: Config) -> float:
    return config.alignment.decay / PUBLISHED_FACTOR


def _gamma(config: Config) -> str:
    null = getattr(config.alignment, "null", None)
    return "N/A" if null is None else _number(null / PUBLISHED_FACTOR)


def _rate(value: float) -> str:
    """Returns a learning rate to four decimals, those that are exact without zeros at their end."""
    text = f"{value:.4f}".rstrip("0")
    return text + "0" if text.endswith(".") else text


def _flag(path: str, option: str) -> Callable[[Config], str]:
    return lambda config: str(getattr(getattr(config.alignment, path), option))


TABLE_5: dict[str, Callable[[Config], Any]] = {
    "Alternating Minimization": lambda config: str(config.optimization.alternation is not None),
    "Delay Epochs (de)": lambda config: f"{config.optimization.delay_epochs:g}",
    "Train Batch Size (|B|)": lambda config: str(config.batch_size),
    "SGDM Learning Rate": lambda config: _rate(config.optimization.forward.learning_rate),
    "Alignment Optimizer": lambda config: OPTIMIZERS[config.optimization.backward.name],
    "Alignment Learning Rate (η)": lambda config: _rate(config.optimization.backward.learning_rate),
    "σ": lambda config: _number(config.alignment.input.stddev),
    "α/β": lambda config: _number(config.alignment.amp / _beta(config)),
    "β": lambda config: _number(_beta(config)),
    "γ": _gamma,
    "Forward Path Output (FO) Bias": _flag("forward_output", "bias"),
    "FO ReLU": _flag("forward_output", "relu"),
    "FO BWMC": _flag("forward_output", "batch_center"),
    "FO FWMC": _flag("forward_output", "feature_center"),
    "FO FWL2N": _flag("forward_output", "feature_normalize"),
    "Backward Path Output (BO) Bias": _flag("backward_output", "bias"),
    "BO ReLU": _flag("backward_output", "relu"),
    "BO FWMC": _flag("backward_output", "feature_center"),
    "BO FWL2N": _flag("backward_output", "feature_normalize"),
    "Backward Path Input (BI) BWMC": _flag("input", "batch_center"),
    "BI FWMC": _flag("input", "feature_center"),
    "BI FWL2N": _flag("input", "feature_normalize"),
}
"""Row of Table 5 -> how it follows from a configuration.

The weights are those of the published code: alpha is the weight of amp, beta and gamma half of those
of decay and null in Table 1's primitives."""


PRINTED_OTHERWISE = {
    ("σ", "information"): ("0.8176", "0.8176668980121832"),
    ("α/β", "weight_mirror_adam"): ("13.9040", "13.9035614049"),
}
"""Cells that the paper did not round to its own digits: row and column -> what it prints, and the unrounded value."""


def table_5(source: Source) -> Artifact:
    """Metaparameters that the searches found, from configs/two_routes/resnet18, rounded to the paper's digits."""
    configs = {rule: configuration.load(f"{source.configs}/two_routes/resnet18/{rule}.yaml") for rule in SEARCHED}
    rows = [{"setting": name, **{rule: cell(configs[rule]) for rule in SEARCHED}} for name, cell in TABLE_5.items()]
    columns = ("setting", *SEARCHED)
    lines = [[row[column] for column in columns] for row in rows]
    table = markdown(["", *(RULES[rule].label for rule in SEARCHED)], lines)
    remarks = [
        f"{name} of {RULES[rule].label}: the paper prints {printed}; its earlier appendix has {unrounded}."
        for (name, rule), (printed, unrounded) in PRINTED_OTHERWISE.items()
    ]
    return Artifact(columns, rows, "\n".join([table, "", *remarks]))


__all__ = ["RUN_COLUMNS", "percent", "run_rows", "table_1", "table_2", "table_3", "table_4", "table_5"]
