"""Tidy rows of the figures of Rahmansetayesh et al.: a row per seed and point, made from the arrays of pieces."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from neural_alignment.analysis.curves import smoothed, thinned
from neural_alignment.jobs.pieces import Arrays, Result
from neural_alignment.jobs.plans import Outcome
from neural_alignment.papers.fa_mechanism.compute import LAGS
from neural_alignment.papers.fa_mechanism.runs import EVERY, HIDDEN, LAYERS, STEPS
from neural_alignment.papers.registry import Source
from neural_alignment.papers.tables import grouped
from neural_alignment.reporting import Row, Spread

PointValues = Callable[[Arrays, Row], np.ndarray]

NOISY, WIDTH = ("update_angle", "update_to_feedback"), 9
"""Measures that vary from batch to batch, and the number of measurements in their moving average."""

NORM, ANGLE = "norm_ratio", "angle_degrees"
"""Measures of a part of the update: its norm divided by that of the whole update, and its angle to Bᵀ."""


def evaluations(source: Source) -> Iterator[tuple[Mapping[str, Any], dict[str, Any], Mapping[str, float]]]:
    """Yields the labels of each run, its seed, epoch and test error (percent), and all measures of each evaluation."""
    for cell, outcomes in source.outcomes():
        for seed, row in ((each.config.seed, row) for each in outcomes for row in each.rows):
            error = {"epoch": row["epoch"], "test_error_percent": 100 * (1 - row["top1"])}
            yield cell.labels, {"seed": seed, **error}, row


def final_errors(source: Source) -> Iterator[tuple[Mapping[str, Any], Outcome, dict[str, Any]]]:
    """Yields the labels of each run, its outcome, and its seed and last test error (percent): 90 if it diverged."""
    for cell, outcomes in source.outcomes():
        for each in outcomes:
            error = 100 * (1 - each.measure("top1", 0.1))
            yield cell.labels, each, {"seed": each.config.seed, "test_error_percent": error}


def series(results: Sequence[Result], x: str, points: Iterable, values: PointValues, **labels: Iterable) -> list[Row]:
    """Returns a row per combination of labels, seed and point x; a NaN gives no row.

    `values` returns the values of all points, from the arrays of a piece and a combination of labels. There is one
    piece per seed, and a column for x and for each label.
    """
    points = [int(point) if float(point).is_integer() else float(point) for point in points]
    combinations = [dict(zip(labels, each, strict=True)) for each in itertools.product(*labels.values())]
    return [
        {**own, x: point, "seed": int(result.seed), "value": float(value)}
        for own in combinations
        for result in results
        for point, value in zip(points, values(result.arrays, own), strict=True)
        if not math.isnan(value)
    ]


def terms(
    results: Sequence[Result], moments: Iterable[int], array: str = "term_angle", **labels: Iterable
) -> list[Row]:
    """Returns the angles of the alignment terms of each hidden layer by their order, at some iterations."""
    measured = moments_of(results)

    def values(arrays: Arrays, own: Row) -> np.ndarray:
        return arrays[array][measured.index(own["moment"]), own["layer"] - 1]

    orders = range(1, results[0].arrays[array].shape[-1] + 1)
    return series(results, "order", orders, values, **labels, layer=HIDDEN, moment=moments)


def moments_of(results: Sequence[Result]) -> list[int]:
    """Returns the iterations at which alignment terms are measured."""
    return results[0].arrays["moment"].tolist()


def kinds_of_terms(rows: Iterable[Row]) -> list[Row]:
    """Returns the angle of the order of an epoch, and the mean of all other orders, over the epochs of training.

    `rows` are those of `terms`; the column `measure` is `epoch` or `others`.
    """
    found = []
    for (shuffled, layer, moment, seed), own in grouped(rows, "shuffled", "layer", "moment", "seed").items():
        facts = {"shuffled": shuffled, "layer": layer, "epoch": moment / STEPS, "seed": seed}
        for measure, multiples in (("epoch", True), ("others", False)):
            angles = [row["value"] for row in own if (row["order"] == STEPS if multiples else row["order"] % STEPS)]
            if angles:
                found.append({**facts, "measure": measure, "value": float(np.mean(angles))})
    return found


def similarities(arrays: Arrays, prefix: str, groups: Iterable[str], **labels: Any) -> list[Row]:
    """Returns a row per signal, hidden layer, group of pairs and bin of a histogram of similarities.

    `prefix` is the beginning of the names of the arrays (`network_measures.similarity_distributions`).
    """
    return [
        {**labels, "signal": signal, "layer": layer, "group": group, "low": float(low), "high": float(high)}
        | {"pairs": int(count), "mean": float(arrays[f"{stem}/{group}/mean"])}
        for signal, layer, group in itertools.product(("error", "output"), HIDDEN, groups)
        for stem in [f"{prefix}/{signal}/{layer}"]
        if f"{stem}/{group}" in arrays
        for (low, high), count in zip(
            itertools.pairwise(arrays[f"{stem}/edges"]), arrays[f"{stem}/{group}"], strict=True
        )
    ]


def curves(results: Sequence[Result], name: str, most: int, **labels: Iterable) -> list[Row]:
    """Returns a measure of each layer that has it over epochs, thinned to `most` points.

    Measures in `NOISY` are moving averages. All others are single values: the first one is that before training.
    """
    epochs, layers = results[0].arrays["iteration"] / STEPS, measured_layers(results, name)
    kept = thinned(len(epochs), most)

    def values(arrays: Arrays, own: Row) -> np.ndarray:
        found = arrays[name][:, own["layer"] - layers[0]]
        return (smoothed(found, WIDTH) if name in NOISY else found)[kept]

    return series(results, "epoch", epochs[kept].round(3), values, **labels, layer=layers)


def measured_layers(results: Sequence[Result], measure: str) -> range:
    """Returns the layers that have a measure: all, or those with a backward kernel."""
    return range(len(LAYERS) - results[0].arrays[measure].shape[1], len(LAYERS))


def disturbed(results: Sequence[Result], iterations: Sequence[int], **labels: Iterable) -> list[Row]:
    """Returns the angles of W and of the disturbed kernel, by the label `kernel`, at some iterations."""

    def values(arrays: Arrays, own: Row) -> np.ndarray:
        return arrays[f"{own['kernel']}_angle"][iterations, own["layer"] - 1]

    return series(results, "iteration", iterations, values, **labels)


def lagged(results: Sequence[Result], measures: Iterable[str], lags: Iterable[int], **labels: Iterable) -> list[Row]:
    """Returns measures of each hidden layer between iterations that are some lags apart, over training."""

    def values(arrays: Arrays, own: Row) -> np.ndarray:
        return arrays[own["measure"]][:, own["layer"] - 1, LAGS.index(own["lag"])]

    moments = results[0].arrays["moment"]
    return series(results, "moment", moments, values, **labels, measure=measures, layer=HIDDEN, lag=lags)


def expansion(results: Sequence[Result], part: str, measure: str) -> list[Row]:
    """Returns a measure, `NORM` or `ANGLE`, of one part of the update, such as `alignment`, of each layer."""

    def values(arrays: Arrays, own: Row) -> np.ndarray:
        found = arrays[f"{part}_angle"] if measure == ANGLE else arrays[f"{part}_norm"] / arrays["update_norm"]
        return found[:, own["layer"] - 1]

    moments = results[0].arrays["moment"]
    return series(results, "iteration", moments, values, layer=HIDDEN, part=[part], measure=[measure])


def last_epoch(results: Sequence[Result], measure: str, layer: int) -> Spread:
    """Returns the mean of a measure of a layer over the last epoch, of each seed; none if the layer has no such."""
    layers = measured_layers(results, measure)
    if layer not in layers:
        return Spread([])
    last = slice(-(STEPS // EVERY + 1), None)
    return Spread([float(each.arrays[measure][last, layer - layers[0]].mean()) for each in results])


def mean_by(rows: Iterable[Row], column: str) -> dict[Any, float]:
    """Returns value of a column -> mean over seeds."""
    return {key: float(np.mean([row["value"] for row in own])) for (key,), own in grouped(rows, column).items()}
