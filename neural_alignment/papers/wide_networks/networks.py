"""The accuracies of trained networks as tidy rows, whether the lab or ordinary runs trained them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from neural_alignment.jobs.pieces import Pieces
from neural_alignment.jobs.plans import Outcome
from neural_alignment.papers.registry import Source
from neural_alignment.reporting import Row

DIFFERS = "differs"
"""Column with the differences between the protocol of a row and that of the paper."""

COLUMNS = ("rule", "width", "seed", "rate", "validation_accuracy", "test_accuracy", "paper_accuracy", DIFFERS)
"""Columns of the CSV files; accuracies are percent."""

KEYS = {"rate", "rates", DIFFERS}
"""Labels that do not distinguish networks."""


class TrainedNetwork(NamedTuple):
    """The results of one network trained at several learning rates.

    Attributes:
        labels: its labels in tables.
        seed: seed of its weights.
        rates: learning rates.
        validation: validation accuracy in percent, `(rates, epochs)`; NaN after a divergence.
        loss: mean training loss of each epoch, `(rates, epochs)`.
        test: test accuracy in percent at the best epoch of the best rate; NaN if it was not evaluated.
    """

    labels: Mapping[str, Any]
    seed: int
    rates: tuple[float, ...]
    validation: np.ndarray
    loss: np.ndarray
    test: float

    def by_rate(self) -> dict[float, float]:
        """Returns rate -> best accuracy over epochs; NaN if training diverged in the first epoch."""
        return {rate: highest(row) for rate, row in zip(self.rates, self.validation, strict=True)}

    @property
    def best(self) -> tuple[float, float]:
        """The rate of the best accuracy (the first of equals), and that accuracy; NaN if all rates diverged."""
        found = {rate: accuracy for rate, accuracy in self.by_rate().items() if not math.isnan(accuracy)}
        return max(found.items(), key=lambda item: item[1]) if found else (math.nan, math.nan)


def highest(accuracies: np.ndarray) -> float:
    """Returns the highest accuracy that is not NaN; NaN if there is none."""
    known = accuracies[~np.isnan(accuracies)]
    return float(known.max()) if known.size else math.nan


def networks(source: Source) -> list[TrainedNetwork]:
    """Returns the networks of a table: of the lab from its pieces, of the paper's size from ordinary runs per rate."""
    found: list[TrainedNetwork] = []
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


def _of_piece(labels: Mapping[str, Any], seed: int, arrays: Mapping[str, np.ndarray]) -> TrainedNetwork:
    curves = arrays["validation_accuracy"], arrays["train_loss"]
    return TrainedNetwork(labels, seed, labels["rates"], *curves, float(arrays["test_accuracy"]))


def _of_runs(labels: Mapping[str, Any], runs: Sequence[tuple[float, Outcome]]) -> TrainedNetwork:
    """Returns a network from its runs at several rates; evaluations count as epochs."""
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
    return TrainedNetwork(labels, seed, tuple(rate for rate, _ in runs), 100 * validation, loss, test)


def row_of(network: TrainedNetwork, paper: Mapping[str, Mapping[int, float]], *names: str) -> Row:
    """Returns the row of a network in a CSV file.

    Args:
        network: the network.
        paper: rule -> width -> accuracy that the paper prints.
        *names: labels that are columns as well.
    """
    rule, width = network.labels["rule"], network.labels["width"]
    rate, validation = network.best
    return {name: network.labels[name] for name in names} | {
        "rule": rule,
        "width": width,
        "seed": network.seed,
        "rate": rate,
        "validation_accuracy": validation,
        "test_accuracy": network.test,
        "paper_accuracy": paper.get(rule, {}).get(width, math.nan),
        DIFFERS: network.labels[DIFFERS],
    }
