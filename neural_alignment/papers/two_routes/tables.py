"""Tables 1 to 5 and D2 of Kunin et al. 2020."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any

import numpy as np

from neural_alignment import config as configuration
from neural_alignment.config import Config
from neural_alignment.jobs.plans import Cell
from neural_alignment.papers import published
from neural_alignment.papers.registry import Source
from neural_alignment.papers.tables import at, chosen, spread, table, whole
from neural_alignment.papers.two_routes.compute import taxonomy, theory
from neural_alignment.papers.two_routes.runs import CHANCE, MODELS, RULE_STYLES, SEARCHED, TABLE_3, TABLE_4
from neural_alignment.reporting import Artifact, Row

RUN_COLUMNS = ("profile", "model", "rule", "seed", "top1", "top5", "diverged", "seconds")
"""Columns of the CSV files of Tables 3 and 4, and of Figures 3 and S5."""


def table_1(source: Source) -> Artifact:
    """The primitives and their gradients; `angle` is from Appendix D.3, d is its upstream error.

    Gradients are measured, formulas are those of the docstrings of the primitives.
    """
    del source
    rows = [(_group(row.local), row.name.rstrip("_"), row.formula, row.gradient) for row in taxonomy.table_1()]
    names = ("group", "primitive", "formula_as_documented", "gradient")
    return whole([dict(zip(names, row, strict=True)) for row in rows])


def table_2(source: Source) -> Artifact:
    """The primitives of each rule; in addition to the paper's rows Kolen-Pollack (Appendix D.3) and sign symmetry."""
    del source
    order = [row.name for row in taxonomy.table_1()]
    rows = [
        {"group": _group(row.local), "rule": row.rule, **{name: int(name in row.primitives) for name in order}}
        for row in taxonomy.table_2()
    ]
    crosses = [row | {name.rstrip("_"): "x" if row[name] else "" for name in order} for row in rows]
    names = ("group", "rule", *(name.rstrip("_") for name in order))
    return Artifact(tuple(rows[0]), rows, table(crosses, ["rule"], {name: name for name in names}))


def _group(local: bool) -> str:
    return "local" if local else "non-local"


def table_d2(source: Source) -> Artifact:
    """Fixed points of the scalar network, and their eigenvalues by formula and from the library."""
    del source
    eigenvalues = ("eigenvalues", "eigenvalues_of_the_library")
    return whole(
        [
            row | {"point": _numbers(row["point"])} | {name: complex_numbers(row[name]) for name in eigenvalues}
            for row in theory.fixed_points()
        ]
    )


def _numbers(values: np.ndarray) -> str:
    return ", ".join(f"{value + 0.0:.4f}" for value in np.round(values, 6))


def complex_numbers(values: np.ndarray) -> str:
    """Returns the eigenvalues of a real matrix in ascending order, conjugate pairs as `a ± bi`."""
    ordered = np.sort_complex(np.round(np.asarray(values, complex), 6) + 0.0)
    return ", ".join(f"{v.real:.4f}" + (f" ± {v.imag:.4f}i" if v.imag else "") for v in ordered if v.imag >= 0)


# Tables 3 and 4.

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
        for cell, outcomes in source.read()
        for outcome in outcomes
    ]


def accuracies(source: Source, rows: Sequence[Row]) -> list[Row]:
    """Returns a row per cell: its labels, the names of its network and rule, and its accuracies as text."""
    return [
        {
            **cell.labels,
            "network": MODELS[cell.labels["model"]],
            "name": RULE_STYLES[cell.labels["rule"]].label,
            "top1": _percent(rows, cell, "top1"),
            "top5": _percent(rows, cell, "top5"),
        }
        for cell in source.cells
    ]


def _percent(rows: Sequence[Row], cell: Cell, measure: str) -> str:
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


def table_3(source: Source) -> Artifact:
    """Top-1 and top-5 accuracy of the local rules with ResNet-18; mean and standard deviation over seeds."""
    rows = run_rows(source)
    columns: dict[str, Any] = {"rule": "name", "top-1 (%)": "top1", "top-5 (%)": "top5"}
    for number, header in enumerate(("paper, top-1 (%)", "paper, top-5 (%)")):
        printed = {rule: f"{values[number]:.2f}" for rule, values in TABLE_3.items()}
        columns[header] = lambda own, printed=printed: printed.get(own[0]["rule"], "-")
    text = table(accuracies(source, rows), ["rule"], columns)
    return Artifact(RUN_COLUMNS, rows, f"{text}\n\n{REMARKS[source.profile]}")


def table_4(source: Source) -> Artifact:
    """Top-1 accuracy of symmetric and activation alignment and of backpropagation; mean and standard deviation."""
    rows = run_rows(source)
    cells = [row | {"paper": f"{TABLE_4[row['model']][row['rule']]:.2f}"} for row in accuracies(source, rows)]
    rules = dict.fromkeys(row["rule"] for row in cells)
    ours = {f"{RULE_STYLES[rule].label} (%)": at("top1", rule=rule) for rule in rules}
    papers = {f"paper, {rule} (%)": at("paper", rule=rule) for rule in rules}
    text = table(cells, ["model"], {"network": "network", **ours, **papers})
    return Artifact(RUN_COLUMNS, rows, f"{text}\n\n{REMARKS[source.profile]}")


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
    """Returns a learning rate with at most four decimals, and at least one."""
    whole_part, _, decimals = f"{value:.4f}".partition(".")
    return f"{whole_part}.{decimals.rstrip('0') or '0'}"


TABLE_5: dict[str, Callable[[Config], Any]] = {
    "Alternating Minimization": lambda config: config.optimization.alternation is not None,
    "Delay Epochs (de)": lambda config: f"{config.optimization.delay_epochs:g}",
    "Train Batch Size (|B|)": attrgetter("batch_size"),
    "SGDM Learning Rate": lambda config: _rate(config.optimization.forward.learning_rate),
    "Alignment Optimizer": lambda config: OPTIMIZERS[config.optimization.backward.name],
    "Alignment Learning Rate (η)": lambda config: _rate(config.optimization.backward.learning_rate),
    "σ": lambda config: _number(config.alignment.input.stddev),
    "α/β": lambda config: _number(config.alignment.amp / _beta(config)),
    "β": lambda config: _number(_beta(config)),
    "γ": _gamma,
    "Forward Path Output (FO) Bias": attrgetter("alignment.forward_output.bias"),
    "FO ReLU": attrgetter("alignment.forward_output.relu"),
    "FO BWMC": attrgetter("alignment.forward_output.batch_center"),
    "FO FWMC": attrgetter("alignment.forward_output.feature_center"),
    "FO FWL2N": attrgetter("alignment.forward_output.feature_normalize"),
    "Backward Path Output (BO) Bias": attrgetter("alignment.backward_output.bias"),
    "BO ReLU": attrgetter("alignment.backward_output.relu"),
    "BO FWMC": attrgetter("alignment.backward_output.feature_center"),
    "BO FWL2N": attrgetter("alignment.backward_output.feature_normalize"),
    "Backward Path Input (BI) BWMC": attrgetter("alignment.input.batch_center"),
    "BI FWMC": attrgetter("alignment.input.feature_center"),
    "BI FWL2N": attrgetter("alignment.input.feature_normalize"),
}
"""Row of Table 5 -> function that reads it from a configuration.

The weights are those of the published code: alpha is the weight of amp, and beta and gamma are half of those of decay
and null in the primitives of Table 1.
"""


def table_5(source: Source) -> Artifact:
    """Metaparameters that the searches found, from configs/two_routes/resnet18, rounded to the paper's digits."""
    configs = {rule: configuration.load(f"{source.configs}/two_routes/resnet18/{rule}.yaml") for rule in SEARCHED}
    rows = [
        {"setting": name, **{rule: str(read(configs[rule])) for rule in SEARCHED}} for name, read in TABLE_5.items()
    ]
    remarks = [
        f"{row['setting']} of {RULE_STYLES[row['rule']].label}: the paper prints {row['printed']:.4f}; its earlier "
        f"appendix has {row['unrounded']}."
        for row in published.read("two_routes/table_5_unrounded")  # Cells that the paper did not round correctly.
    ]
    text = table(rows, ["setting"], {"": "setting", **{RULE_STYLES[rule].label: rule for rule in SEARCHED}})
    return Artifact(("setting", *SEARCHED), rows, "\n".join([text, "", *remarks]))
