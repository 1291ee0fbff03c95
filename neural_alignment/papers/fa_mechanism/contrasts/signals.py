"""Contrasts of Figures S1 and S3 to S5: transformations, and the similarity of signals."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Mapping

from neural_alignment.papers.claims import ResultFiles, Seeds, difference, seeds_by
from neural_alignment.papers.fa_mechanism.compute import LAGS
from neural_alignment.papers.fa_mechanism.contrasts import Cases, Find, by_layer, ends, own
from neural_alignment.papers.fa_mechanism.runs import HIDDEN
from neural_alignment.reporting import Spread

# Figure S1.


def eigenvalue_correlation(files: ResultFiles) -> Cases:
    """Returns the correlation of the relative mean eigenvalue with the cosine of the angle."""
    rows = files.rows("figure_S1", panel="AB")
    cosines = [math.cos(math.radians(row["symmetric_angle"])) for row in rows]
    return {"": Spread([statistics.correlation([row["eigenvalue_ratio"] for row in rows], cosines)])}


def loss_by_skew_part(files: ResultFiles) -> Cases:
    """Returns how much farther than its symmetric part alone each aligned M turns B^T."""
    rows = [row for row in files.rows("figure_S1", panel="AB") if row["symmetric_angle"] < 60]
    return {
        text: Spread([row["angle"] - row["symmetric_angle"] for row in rows if (row["skew_ratio"] > 1) == large])
        for text, large in (("small skew part", False), ("large skew part", True))
    }


# Figures S3 to S5.


def lagged(files: ResultFiles, name: str, measure: str, lag: int, layer: int) -> tuple[Seeds, Seeds]:
    """Returns a measure between iterations that are some lag apart, at first and at last, by seed."""
    return ends(files.rows(name, measure=measure, lag=lag, layer=layer), "moment")


def epoch_against_half(files: ResultFiles) -> Cases:
    """Returns how much closer errors a whole epoch apart are than errors half an epoch apart, at last."""

    def closer(layer: int) -> Spread:
        return difference(*(lagged(files, "figure_S3", "error_angle", lag, layer)[1] for lag in (30, 60)))

    return by_layer(closer)


def errors_become_similar(files: ResultFiles) -> Cases:
    """Returns the decrease of the angle of errors a whole epoch apart."""
    return by_layer(lambda layer: difference(*lagged(files, "figure_S3", "error_angle", 60, layer)))


def similarity_signs(files: ResultFiles) -> Cases:
    """Returns the similarity terms at first, at lag 30: within categories, and minus those between them."""
    return {
        f"{sign_text}{measure}, l = {layer}": own(
            {seed: sign * value for seed, value in lagged(files, "figure_S4", measure, 30, layer)[0].items()}
        )
        for measure, sign, sign_text in (("within", 1, ""), ("between", -1, "minus "))
        for layer in HIDDEN
    }


def similarity_sums(files: ResultFiles, layer: int) -> tuple[Seeds, Seeds]:
    """Returns the sum of all similarity terms at lag 30, at first and at last, by seed."""
    within, between = (lagged(files, "figure_S4", measure, 30, layer) for measure in ("within", "between"))
    return tuple({seed: one[seed] + other[seed] for seed in one} for one, other in zip(within, between, strict=True))


def first_sums(files: ResultFiles) -> Cases:
    """Returns the sum of all similarity terms at first."""
    return by_layer(lambda layer: own(similarity_sums(files, layer)[0]))


def falling_sums(files: ResultFiles) -> Cases:
    """Returns the decrease of the sum of all similarity terms."""
    return by_layer(lambda layer: difference(*similarity_sums(files, layer)))


def similar(files: ResultFiles, phase: str, signal: str, layer: int) -> Mapping[str, float]:
    """Returns group of pairs -> mean similarity."""
    rows = files.rows("figure_S5", phase=phase, signal=signal, layer=layer)
    return {row["group"]: row["mean"] for row in rows}


def similarity_contrast(phase: str, signal: str, contrast: Callable[[Mapping[str, float]], float]) -> Find:
    """Returns a contrast of the mean similarities of groups of pairs, of one seed."""
    return lambda files: by_layer(lambda layer: Spread([contrast(similar(files, phase, signal, layer))]))


def poor_errors(files: ResultFiles) -> Cases:
    """Returns how many times larger the mean similarity of errors is in poorly classified pairs, by magnitude."""

    def ratio(where: str, layer: int) -> Spread:
        means = similar(files, "last", "error", layer)
        return Spread([abs(means[f"{where}/poor"] / means[f"{where}/well"])])

    return {f"{where}, l = {layer}": ratio(where, layer) for where in ("within", "between") for layer in HIDDEN}


def lag_contrast(moment: int, signal: str, contrast: Callable[[Mapping[str, float]], float]) -> Find:
    """Returns a contrast of the mean similarities of groups of pairs, at each lag."""

    def at(files: ResultFiles, lag: int, layer: int) -> Spread:
        by_group = seeds_by(
            files.rows("figure_S5_lags", moment=moment, lag=lag, signal=signal, layer=layer), "group", "mean"
        )
        seeds = next(iter(by_group.values()))
        return Spread([contrast({group: means[seed] for group, means in by_group.items()}) for seed in seeds])

    return lambda files: {
        f"lag {lag}, l = {layer}": at(files, lag, layer) for lag, layer in itertools.product(LAGS, HIDDEN)
    }
