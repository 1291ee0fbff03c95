"""Tables 1, 2, 6, 7, 9 and 10 of Boopathy and Fiete 2022: accuracies of convolutional networks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from neural_alignment.papers.pieces import Pieces
from neural_alignment.papers.plans import Outcome
from neural_alignment.papers.registry import Source
from neural_alignment.papers.wide_networks.accuracies import TABLE_1, TABLE_2, TABLE_6, TABLE_7, TABLE_9, TABLE_10
from neural_alignment.papers.wide_networks.runs import RULES, SEEDED_WIDTH
from neural_alignment.reporting import Artifact, Row, Spread, markdown

COLUMNS = ("rule", "width", "seed", "rate", "validation_accuracy", "test_accuracy", "paper_accuracy")
"""Of the CSV files; accuracies are percent."""

DIFFERS = "differs"
"""Column that says of each row in what its protocol is not the paper's."""

COLUMNS_9 = ("rule", "width", "train_images", *COLUMNS[2:])

COLUMNS_10 = ("setting", *COLUMNS, DIFFERS)

KEYS = {"rate", "rates", DIFFERS}
"""Labels that do not tell one network from another."""

REMARK = (
    "Accuracies are percent, the best over epochs and rates. The paper's are of a held-out part of the training "
    "images, on which it chooses epoch and rate as well: here validation. Test is that network on the test images. In "
    "brackets: the paper's value."
)


class Network(NamedTuple):
    """A network that was trained at several rates.

    Attributes:
        labels: what it is called in tables.
        seed: of its weights.
        rates: learning rates.
        validation: `(rates, epochs)`, percent; NaN behind a divergence.
        loss: `(rates, epochs)`, mean training loss over each epoch.
        test: percent, at the best epoch of the best rate; NaN where it was not evaluated.
    """

    labels: Mapping[str, Any]
    seed: int
    rates: tuple[float, ...]
    validation: np.ndarray
    loss: np.ndarray
    test: float

    def by_rate(self) -> dict[float, float]:
        """Returns rate -> best accuracy over epochs, NaN where it diverged in the first."""
        return {rate: highest(row) for rate, row in zip(self.rates, self.validation, strict=True)}

    @property
    def best(self) -> tuple[float, float]:
        """The rate of the best accuracy, the first of equals, and that accuracy; NaN where all diverged."""
        found = {rate: accuracy for rate, accuracy in self.by_rate().items() if not math.isnan(accuracy)}
        return max(found.items(), key=lambda item: item[1]) if found else (math.nan, math.nan)


def highest(accuracies: np.ndarray) -> float:
    """Returns the highest accuracy, NaN left out; NaN where there is none."""
    known = accuracies[~np.isnan(accuracies)]
    return float(known.max()) if known.size else math.nan


def networks(source: Source) -> list[Network]:
    """Returns what was trained: by the pieces of the lab, or by ordinary runs, one per rate."""
    found: list[Network] = []
    runs: dict[tuple, list[tuple[float, Outcome]]] = {}
    labels: dict[tuple, Mapping[str, Any]] = {}
    for cell, results in source.read():
        if isinstance(cell, Pieces):
            found += [_of_piece(cell.labels, result.seed, result.arrays) for result in results]
            continue
        for outcome in results:
            key = (*(item for item in cell.labels.items() if item[0] not in KEYS), outcome.config.seed)
            runs.setdefault(key, []).append((cell.labels["rate"], outcome))
            labels[key] = cell.labels
    return found + [_of_runs(labels[key], own) for key, own in runs.items()]


def _of_piece(labels: Mapping[str, Any], seed: int, arrays: Mapping[str, np.ndarray]) -> Network:
    curves = arrays["validation_accuracy"], arrays["train_loss"]
    return Network(labels, seed, labels["rates"], *curves, float(arrays["test_accuracy"]))


def _of_runs(labels: Mapping[str, Any], runs: Sequence[tuple[float, Outcome]]) -> Network:
    """Returns a network from its runs at several rates; what is not evaluated at every epoch is as if it were."""
    seed = runs[0][1].config.seed
    curves = {name: [[row[name] for row in run.rows if row["step"]] for _, run in runs] for name in ("top1", "train_J")}
    epochs = max(map(len, curves["top1"]))
    rows = [[curve + [math.nan] * (epochs - len(curve)) for curve in curves[name]] for name in ("top1", "train_J")]
    validation, loss = (np.array(each, float).reshape(len(runs), epochs) for each in rows)
    best = max(
        (row for _, run in runs for row in run.rows if row["step"] and not math.isnan(row["top1"])),
        key=lambda row: row["top1"],
        default={},
    )
    test = 100 * best.get("test_top1", math.nan)
    return Network(labels, seed, tuple(rate for rate, _ in runs), 100 * validation, loss, test)


def row_of(network: Network, paper: Mapping[str, Mapping[int, float]], **more: Any) -> Row:
    """Returns a row of the CSV files.

    Args:
        network: what was trained.
        paper: rule -> width -> accuracy that is printed.
        **more: other columns.
    """
    rule, width = network.labels["rule"], network.labels["width"]
    rate, validation = network.best
    return {
        **more,
        "rule": rule,
        "width": width,
        "seed": network.seed,
        "rate": rate,
        "validation_accuracy": validation,
        "test_accuracy": network.test,
        "paper_accuracy": paper.get(rule, {}).get(width, math.nan),
        DIFFERS: network.labels[DIFFERS],
    }


def beside(rows: Sequence[Row], key: Mapping[str, Any]) -> str:
    """Returns for a reader the accuracies of the rows with some labels, and the paper's in brackets."""
    own = [row for row in rows if key.items() <= row.items()]
    if not own:
        return "not yet run"
    validation, test = (Spread([row[f"{part}_accuracy"] for row in own]) for part in ("validation", "test"))
    paper = own[0]["paper_accuracy"]
    return f"{validation}, test {test} ({'-' if math.isnan(paper) else f'{paper:.1f}'})"


def _grid(rows: Sequence[Row], source: Source, **key: Any) -> str:
    """Returns a table of rules by widths; the last column says in what a row differs from the paper's protocol."""
    cells = [cell.labels for cell in source.cells if key.items() <= cell.labels.items()]
    widths = sorted({labels["width"] for labels in cells})
    differs = {labels["rule"]: labels[DIFFERS] for labels in cells}
    lines = [
        [
            RULES[rule].style.label,
            *(beside(rows, {**key, "rule": rule, "width": width}) for width in widths),
            how or "-",
        ]
        for rule in RULES
        if (how := differs.get(rule)) is not None
    ]
    return markdown(["rule", *(f"x{width}" for width in widths), "differs from the paper (paper)"], lines)


def _table(source: Source, paper: Mapping[str, Mapping[int, float]]) -> Artifact:
    rows = [row_of(network, paper) for network in networks(source)]
    return Artifact((*COLUMNS, DIFFERS), rows, f"{_grid(rows, source)}\n\n{REMARK}")


def table_1(source: Source) -> Artifact:
    """Align-prop beside all other rules; the paper has it at widths 128, 256 and 512 alone."""
    product = _table(source, {**TABLE_6, "align_prop": TABLE_1["align_prop"]})
    widths = list(TABLE_1["align_prop"])
    lines = [[RULES[rule].style.label, *row.values()] for rule, row in TABLE_1.items()]
    printed = markdown(["the paper", *(f"x{width}" for width in widths)], lines)
    return Artifact(product.columns, product.rows, f"{product.text}\n\n{printed}")


def table_2(source: Source) -> Artifact:
    """Mean and standard deviation over five seeds, at one width; of the paper the means, at its own width."""
    width = SEEDED_WIDTH[source.profile]
    printed = {rule: {width: mean} for rule, (mean, _) in TABLE_2.items()}
    other = "" if width == SEEDED_WIDTH["paper"] else f"width {width} ({SEEDED_WIDTH['paper']}); "
    rows = [row_of(network, printed) for network in networks(source)]
    rows = [{**row, DIFFERS: other + row[DIFFERS]} for row in rows]
    lines = []
    for rule, (mean, deviation) in TABLE_2.items():
        own = [row for row in rows if row["rule"] == rule]
        spreads = [Spread([row[f"{part}_accuracy"] for row in own]) for part in ("validation", "test")]
        differs = other + next(cell.labels[DIFFERS] for cell in source.cells if cell.labels["rule"] == rule)
        lines.append([RULES[rule].style.label, len(own), *spreads, f"{mean} ± {deviation}", differs or "-"])
    header = [
        "rule",
        "seeds",
        "validation",
        "test",
        f"paper, x{SEEDED_WIDTH['paper']}",
        "differs from the paper (paper)",
    ]
    return Artifact((*COLUMNS, DIFFERS), rows, f"{markdown(header, lines)}\n\n{REMARK}")


def table_6(source: Source) -> Artifact:
    """CIFAR-10, by width."""
    return _table(source, TABLE_6)


def table_7(source: Source) -> Artifact:
    """KMNIST, by width."""
    return _table(source, TABLE_7)


def table_9(source: Source) -> Artifact:
    """Small CIFAR-10, by number of training images and width."""
    rows = rows_of_9(source)
    numbers = sorted({cell.labels["train_images"] for cell in source.cells})
    parts = [f"{number} training images:\n\n{_grid(rows, source, train_images=number)}" for number in numbers]
    return Artifact(COLUMNS_9, [_without_differs(row) for row in rows], "\n\n".join([*parts, REMARK]))


def rows_of_9(source: Source) -> list[Row]:
    """Returns the rows of Table 9, with what differs."""
    found = networks(source)
    return [
        row_of(each, TABLE_9[each.labels["train_images"]], train_images=each.labels["train_images"]) for each in found
    ]


def _without_differs(row: Row) -> Row:
    return {name: value for name, value in row.items() if name != DIFFERS}


def table_10(source: Source) -> Artifact:
    """Standard parameterization, Adam: all epochs, one, and one at a small rate."""
    found = networks(source)
    rows = [row_of(each, TABLE_10[each.labels["setting"]], setting=each.labels["setting"]) for each in found]
    parts = [f"The paper's {setting}:\n\n{_grid(rows, source, setting=setting)}" for setting in TABLE_10]
    return Artifact(COLUMNS_10, rows, "\n\n".join([*parts, REMARK]))
