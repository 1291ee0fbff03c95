"""Figures of Rahmansetayesh et al., "The underlying mechanism of feedback alignment"."""

from __future__ import annotations

from neural_alignment.papers.fa_mechanism import figures, runs, supplement
from neural_alignment.papers.registry import Item


def _figure(number, title, make, *cells) -> Item:
    """Returns a figure; all have the size of the paper, so `lab` is their only profile."""
    return Item("figure", f"fa_mechanism/{number}", title, make, {"lab": cells})


_PLAIN, _SHUFFLED = runs.observed("bp_trw"), runs.observed("bp_trw", True, runs.FEW)

ITEMS = [
    _figure("1b", "open loop: alignment under imposed signals", figures.figure_1b, *runs.open_loops()),
    _figure("2", "alignment terms by order, in file order and shuffled", figures.figure_2, _PLAIN, _SHUFFLED),
    _figure("3", "remainder and zero-degree terms", figures.figure_3, runs.expanded()),
    _figure(
        "4",
        "alignment terms without nonlinearity, and with other backward weights",
        figures.disturbed,
        runs.disturbed("linear"),
        runs.disturbed("feedback"),
    ),
    _figure("5", "alignment terms with shuffled errors", figures.disturbed, runs.disturbed("errors")),
    _figure(
        "6",
        "replaced labels: alignment and error",
        figures.figure_6,
        *runs.relabelled(),
        *runs.observed_relabelled(),
    ),
    _figure(
        "7",
        "weights, updates, norms, errors and paths, with and without normalisation",
        figures.figure_7,
        *runs.trained(),
        _PLAIN,
        runs.observed("bp_trw_wb"),
        runs.plane("bp", "bp_trw"),
        runs.plane("bp_trw", "bp_trw_wb"),
    ),
    _figure("7_errors", "test errors after 100 epochs", figures.figure_7_errors, *runs.trained()),
    _figure(
        "S1",
        "symmetric and skew parts of the transformation",
        supplement.figure_s1,
        runs.transformations(),
        _PLAIN,
    ),
    _figure("S2", "alignment terms of shuffled data", supplement.figure_s2, _PLAIN, _SHUFFLED),
    _figure("S3", "autocorrelation of outputs and errors", supplement.figure_s3, _PLAIN),
    _figure("S4", "similarity terms over training", supplement.figure_s4, _PLAIN),
    _figure("S5", "similarities within and between categories", supplement.figure_s5, runs.similarities()),
    _figure("S6", "zero-degree term", supplement.figure_s6, runs.expanded()),
    _figure("S7", "products of random matrices", supplement.figure_s7, runs.products()),
    _figure("S8", "sensitivity to rate, norm and label smoothing", supplement.figure_s8, *runs.sensitivity()),
    _figure("direct", "direct feedback alignment", supplement.figure_direct, runs.observed_direct()),
]
"""Every figure of the paper, and one of direct feedback alignment."""
