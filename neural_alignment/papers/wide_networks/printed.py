"""The numbers that Boopathy and Fiete 2022 printed, from the CSV files in `published/`.

Accuracies are percent. The paper calls them test accuracies; they are of the held-out first part of the training set,
the best over epochs and learning rates.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from neural_alignment.papers import published

WIDTHS = (8, 16, 32, 64, 128, 256, 512)
"""Filters of each convolution, or hidden units: the columns of most tables."""


class Losses(NamedTuple):
    """The lowest training loss and the lowest test loss over the epochs."""

    train: float
    test: float


def _read(table: int, *keys: str) -> dict[Any, Any]:
    """Returns value of the first key column -> value of the next one -> ... -> width -> number."""
    found: dict[Any, Any] = {}
    for row in published.read(f"wide_networks/table_{table}"):
        *outer, last = (row.pop(key) for key in keys)
        own = found
        for value in outer:
            own = own.setdefault(value, {})
        own[last] = {int(width): number for width, number in row.items()}
    return found


TABLE_6 = _read(6, "rule")
"""CIFAR-10, 150 epochs: rule -> width -> accuracy."""

TABLE_1 = _read(1, "rule") | {rule: {width: row[width] for width in WIDTHS[4:]} for rule, row in TABLE_6.items()}
"""Table 6 for its three widest networks, and Align-prop."""

TABLE_2 = {row["rule"]: (row["mean"], row["deviation"]) for row in published.read("wide_networks/table_2")}
"""CIFAR-10, width 256: rule -> mean and standard deviation over 5 seeds."""

TABLE_7 = _read(7, "rule")
"""KMNIST, 100 epochs: rule -> width -> accuracy."""

BY_WIDTH = {"cifar10": TABLE_6, "kmnist": TABLE_7}
"""Data set -> rule -> width -> accuracy."""

TABLE_9 = _read(9, "train_images", "rule")
TABLE_9[45000] = {rule: row for rule, row in TABLE_6.items() if rule != "last_layer"}
"""Training images -> rule -> width -> accuracy on CIFAR-10; those of 45,000 are Table 6."""

TABLE_10 = _read(10, "setting", "rule")
"""Setting -> rule -> width -> accuracy on CIFAR-10 under standard parameterization, by Adam."""

TABLE_3, TABLE_4, TABLE_5 = (
    {(layer, width): score for layer, row in _read(table, "layer").items() for width, score in row.items()}
    for table in (3, 4, 5)
)
"""(Layer, width) -> alignment score: the 8-layer ReLU network on CIFAR-10, rate 1 as printed (5 in the published code),
150 epochs; the 4-layer network on KMNIST, 100 epochs; the 8-layer tanh network on CIFAR-10, rate 2, 100 epochs."""

TABLE_8 = {
    rule: {width: Losses(parts["train"][width], test) for width, test in parts["test"].items()}
    for rule, parts in _read(8, "rule", "part").items()
}
"""Rule -> hidden units -> losses on the Add task."""

CHANCE = Losses(*(row["loss"] for row in published.read("wide_networks/chance")))
"""Random chance, from the caption of Table 8: the losses of the constant 0.5."""
