"""Tables 1 to 5 of Kunin et al. 2020."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from neural_alignment import config as configuration
from neural_alignment.config import Config
from neural_alignment.jobs.plans import Cell, Outcome
from neural_alignment.papers import published
from neural_alignment.papers.registry import Source
from neural_alignment.papers.tables import chosen, spread, table
from neural_alignment.papers.two_routes import taxonomy
from neural_alignment.papers.two_routes.runs import CHANCE, MODELS, RULE_STYLES, SEARCHED, TABLE_3, TABLE_4
from neural_alignment.reporting import Artifact, Row

RUN_COLUMNS = ("profile", "model", "rule", "seed", "top1", "top5", "diverged", "seconds")
"""Columns of the CSV files of Tables 3 and 4, and of Figures 3 and S5."""


def table_1(source: Source) -> Artifact:
    """The primitives and their gradients; `angle` is from Appendix D.3, d is its upstream error.

    Gradients are measured, formulas are quoted from the docstrings of the primitives.
    """
    del source
    rows = [
        {
            "group": _group(each.local),
            "primitive": each.name.rstrip("_"),
            "formula_as_documented": each.formula,
            "gradient": each.gradient,
        }
        for each in taxonomy.table_1()
    ]
    text = table(rows, ["primitive"], {name.replace("_", " "): name for name in rows[0]})
    return Artifact(tuple(rows[0]), rows, text)


def table_2(source: Source) -> Artifact:
    """The primitives of each rule; besides the paper's rows Kolen-Pollack (Appendix D.3) and sign symmetry."""
    del source
    order = [row.name for row in taxonomy.table_1()]
    rows = [
        {"group": _group(taxon.local), "rule": taxon.rule, **{name: int(name in taxon.primitives) for name in order}}
        for taxon in taxonomy.table_2()
    ]
    crosses = {name.rstrip("_"): lambda own, name=name: "x" if own[0][name] else "" for name in order}
    return Artifact(tuple(rows[0]), rows, table(rows, ["rule"], {"group": "group", "rule": "rule", **crosses}))


def _group(local: bool) -> str:
    return "local" if local else "non-local"


def run_rows(source: Source, read: Sequence[tuple[Cell, list[Outcome]]]) -> list[Row]:
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
        for cell, outcomes in read
        for outcome in outcomes
    ]


def table_3(source: Source) -> Artifact:
    """Top-1 and top-5 accuracy of the local rules with ResNet-18; mean and standard deviation over seeds."""
    rows = run_rows(source, source.read())
    cells = {cell.labels["rule"]: cell for cell in source.cells}
    columns: dict[str, Any] = {"rule": lambda own: RULE_STYLES[own[0]["rule"]].label}
    for number, name in enumerate(("top1", "top5")):
        header = f"top-{name[-1]} (%)"
        columns[header] = lambda own, name=name: percent(rows, cells[own[0]["rule"]], name)
        columns[f"paper, {header}"] = lambda own, number=number: _published(own[0]["rule"], number)
    columns = {header: columns[header] for header in sorted(columns, key=lambda header: header.startswith("paper"))}
    text = table([{"rule": rule} for rule in cells], ["rule"], columns)
    return Artifact(RUN_COLUMNS, rows, text + _remark(source))


def _published(rule: str, number: int) -> str:
    return f"{TABLE_3[rule][number]:.2f}" if rule in TABLE_3 else "-"


def table_4(source: Source) -> Artifact:
    """Top-1 accuracy of symmetric and activation alignment and of backpropagation; mean and standard deviation."""
    rows = run_rows(source, source.read())
    cells = {(cell.labels["model"], cell.labels["rule"]): cell for cell in source.cells}
    rules = [*dict.fromkeys(rule for _, rule in cells)]
    ours = {
        f"{RULE_STYLES[rule].label} (%)": lambda own, rule=rule: percent(rows, cells[own[0]["model"], rule], "top1")
        for rule in rules
    }
    papers = {f"paper, {rule} (%)": lambda own, rule=rule: f"{TABLE_4[own[0]['model']][rule]:.2f}" for rule in rules}
    models = [{"model": model} for model in dict.fromkeys(model for model, _ in cells)]
    text = table(models, ["model"], {"network": lambda own: MODELS[own[0]["model"]], **ours, **papers})
    return Artifact(RUN_COLUMNS, rows, text + _remark(source))


def percent(rows: Sequence[Row], cell: Cell, measure: str) -> str:
    """Returns mean and standard deviation over the seeds of a cell in percent, with notes on missing runs."""
    own = chosen(rows, **cell.labels)
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


def _remark(source: Source) -> str:
    if source.profile == "paper":
        return "\n\nThe paper's numbers are of ImageNet's 50,000 validation images."
    return "\n\nLab profile: CIFAR-10 at 16 x 16 pixels, narrow networks; the paper's numbers, beside, are of ImageNet."


# Table 5.

PUBLISHED_FACTOR = 2
"""Our weight of decay and null divided by that of the published code, which has no 1/2 in these primitives."""

OPTIMIZERS = {"sgd": "Vanilla GD", "adam": "Adam"}


def _number(value: float) -> str:
    """Returns a number with four decimals as the table prints it, a small one with an exponent."""
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
    """Returns a learning rate with four decimals, without zeros at its end."""
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
"""Row of Table 5 -> function that reads it from a configuration.

The weights are those of the published code: alpha is the weight of amp, and beta and gamma are half of those of decay
and null in the primitives of Table 1.
"""


def table_5(source: Source) -> Artifact:
    """Metaparameters that the searches found, from configs/two_routes/resnet18, rounded to the paper's digits."""
    configs = {rule: configuration.load(f"{source.configs}/two_routes/resnet18/{rule}.yaml") for rule in SEARCHED}
    rows = [{"setting": name, **{rule: cell(configs[rule]) for rule in SEARCHED}} for name, cell in TABLE_5.items()]
    remarks = [
        f"{row['setting']} of {RULE_STYLES[row['rule']].label}: the paper prints {row['printed']:.4f}; its earlier "
        f"appendix has {row['unrounded']}."
        for row in published.read("two_routes/table_5_unrounded")  # Cells that the paper did not round correctly.
    ]
    text = table(rows, ["setting"], {"": "setting", **{RULE_STYLES[rule].label: rule for rule in SEARCHED}})
    return Artifact(("setting", *SEARCHED), rows, "\n".join([text, "", *remarks]))
