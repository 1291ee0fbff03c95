"""Accuracies that Boopathy and Fiete 2022 printed in Tables 1, 2, 6, 7, 9 and 10, percent: data and nothing else.

The paper calls them test accuracies; they are of the held-out first part of the training set, the best over epochs and
learning rates.
"""

from __future__ import annotations

from collections.abc import Sequence

WIDTHS = (8, 16, 32, 64, 128, 256, 512)
"""Filters of each convolution: the columns of all tables but Tables 1 and 2."""

Accuracies = dict[str, dict[int, float]]
"""Rule -> width -> accuracy, percent."""


def _accuracies(widths: Sequence[int] = WIDTHS, **rows: Sequence[float]) -> Accuracies:
    return {rule: dict(zip(widths, row, strict=True)) for rule, row in rows.items()}


TABLE_6 = _accuracies(
    align_ada=(33.7, 35.7, 42.8, 49.9, 54.2, 56.6, 58.0),
    align_zero=(20.9, 22.0, 30.1, 32.6, 40.0, 47.6, 51.4),
    dfa=(28.5, 34.8, 43.0, 49.9, 54.9, 54.5, 54.1),
    fa=(36.1, 40.3, 43.1, 46.5, 45.7, 45.6, 45.4),
    last_layer=(20.7, 22.5, 28.2, 31.1, 34.8, 40.2, 43.4),
    normal=(54.8, 61.0, 64.2, 65.3, 64.2, 63.2, 62.3),
)
"""CIFAR-10, 150 epochs."""

TABLE_1 = {
    **_accuracies(WIDTHS[4:], align_prop=(59.2, 59.2, 59.6)),
    **{rule: {width: row[width] for width in WIDTHS[4:]} for rule, row in TABLE_6.items()},
}
"""Table 6 for its three widest networks, and Align-prop."""

TABLE_2 = {
    "align_ada": (56.4, 0.4),
    "align_zero": (46.9, 0.5),
    "dfa": (55.3, 0.7),
    "fa": (46.1, 0.5),
    "normal": (63.1, 0.4),
}
"""CIFAR-10, width 256: mean and standard deviation over 5 seeds."""

TABLE_7 = _accuracies(
    align_ada=(47.5, 58.8, 70.7, 71.2, 76.1, 77.8, 78.4),
    align_zero=(24.5, 29.9, 31.2, 47.2, 50.3, 55.2, 61.2),
    dfa=(37.6, 49.4, 61.4, 70.7, 75.8, 77.3, 77.9),
    fa=(52.4, 66.3, 68.6, 69.6, 72.1, 72.8, 63.5),
    last_layer=(25.9, 35.6, 42.2, 51.8, 58.7, 65.6, 68.2),
    normal=(72.2, 83.4, 86.2, 87.2, 87.5, 87.4, 87.2),
)
"""KMNIST, 100 epochs."""

_TABLE_9 = {
    45: _accuracies(
        align_ada=(28.9, 31.1, 28.9, 31.1, 31.1, 31.1, 28.9),
        align_zero=(24.4, 17.8, 22.2, 24.4, 28.9, 24.4, 20.0),
        fa=(24.4, 24.4, 24.4, 26.7, 26.7, 26.7, 17.8),
        dfa=(17.8, 28.9, 28.9, 28.9, 28.9, 28.9, 20.0),
        normal=(24.4, 17.8, 22.2, 20.0, 22.2, 24.4, 26.7),
    ),
    150: _accuracies(
        align_ada=(20.7, 22.7, 24.0, 27.3, 30.0, 30.0, 27.3),
        align_zero=(21.3, 20.0, 24.7, 23.3, 29.3, 27.3, 28.0),
        fa=(20.0, 23.3, 23.3, 25.3, 25.3, 25.3, 22.0),
        dfa=(20.7, 20.7, 21.3, 21.3, 21.3, 21.3, 22.7),
        normal=(22.0, 24.0, 24.7, 24.7, 29.3, 28.7, 28.7),
    ),
    450: _accuracies(
        align_ada=(25.1, 25.3, 28.2, 30.4, 33.3, 33.3, 35.8),
        align_zero=(22.0, 22.0, 26.4, 26.0, 29.1, 32.0, 32.4),
        fa=(25.6, 25.6, 25.6, 25.6, 25.6, 25.6, 24.7),
        dfa=(26.7, 26.7, 26.7, 28.0, 28.0, 28.0, 25.1),
        normal=(28.7, 29.6, 32.0, 31.3, 32.7, 33.1, 34.2),
    ),
    1500: _accuracies(
        align_ada=(26.8, 29.9, 31.3, 35.5, 36.1, 40.2, 39.1),
        align_zero=(20.7, 23.1, 28.4, 31.2, 33.2, 37.0, 37.3),
        fa=(29.1, 29.1, 29.1, 29.1, 29.1, 29.1, 25.8),
        dfa=(24.9, 28.8, 30.1, 30.1, 30.1, 30.1, 28.6),
        normal=(32.9, 33.1, 36.5, 39.5, 39.3, 40.3, 41.0),
    ),
    4500: _accuracies(
        align_ada=(30.3, 33.1, 34.9, 40.0, 42.3, 45.2, 46.2),
        align_zero=(22.3, 23.1, 30.1, 31.8, 36.4, 41.9, 42.6),
        fa=(28.9, 31.6, 33.5, 35.0, 35.0, 35.0, 33.0),
        dfa=(26.4, 30.2, 34.4, 39.0, 40.4, 40.4, 36.0),
        normal=(39.3, 43.8, 45.5, 48.4, 47.9, 49.2, 49.2),
    ),
    15000: _accuracies(
        align_ada=(32.5, 35.2, 40.6, 46.1, 49.8, 51.8, 53.3),
        align_zero=(21.7, 23.1, 30.4, 31.8, 38.9, 46.2, 48.5),
        fa=(33.9, 38.9, 40.4, 44.2, 44.2, 44.2, 41.9),
        dfa=(26.8, 33.2, 40.7, 47.1, 51.0, 51.0, 50.0),
        normal=(50.1, 54.4, 58.9, 58.1, 57.3, 57.2, 57.4),
    ),
}

TABLE_9 = {**_TABLE_9, 45000: {rule: row for rule, row in TABLE_6.items() if rule != "last_layer"}}
"""Training images -> accuracies on CIFAR-10; those of 45,000 are Table 6."""

TABLE_10 = {
    "150 epochs": _accuracies(
        align_ada=(34.7, 41.1, 47.4, 54.4, 58.6, 61.7, 64.9),
        align_zero=(17.3, 16.2, 15.4, 13.8, 14.0, 14.3, 12.6),
        normal=(60.9, 73.3, 79.1, 82.8, 84.9, 86.5, 87.6),
    ),
    "1 epoch": _accuracies(
        align_ada=(26.1, 27.7, 35.4, 38.1, 40.7, 41.4, 38.0),
        align_zero=(14.3, 11.0, 14.1, 12.3, 12.1, 11.2, 12.0),
        normal=(37.3, 43.8, 53.4, 58.7, 59.2, 58.5, 46.2),
    ),
    "1 epoch, small rate": _accuracies(
        align_ada=(13.0, 24.0, 35.4, 37.7, 40.7, 41.4, 37.9),
        align_zero=(8.9, 11.0, 14.1, 10.9, 12.1, 11.2, 11.5),
        normal=(17.9, 32.1, 46.4, 55.2, 57.7, 58.5, 46.2),
    ),
}
"""Setting -> accuracies on CIFAR-10 under standard parameterization, by Adam."""
