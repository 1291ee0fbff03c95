"""Figures of Rahmansetayesh et al., "The underlying mechanism of feedback alignment"."""

from __future__ import annotations

from neural_alignment.papers.fa_mechanism import claims, figure_6, figures, normalisation, notes, runs, supplement
from neural_alignment.papers.registry import Item

_PLAIN, _SHUFFLED = runs.observed("bp_trw"), runs.observed("bp_trw", True, runs.FEW)
_PLANES = runs.plane("bp", "bp_trw"), runs.plane("bp_trw", "bp_trw_wb")
_DISTURBED = runs.DISTURBED

_FIGURES = [
    ("1b", "open loop: alignment under imposed signals", figures.figure_1b, *runs.OPEN_LOOPS),
    ("2", "alignment terms by order, in file order and shuffled", figures.figure_2, _PLAIN, _SHUFFLED),
    ("2_training", "alignment terms, weights and updates over training", figures.figure_2_training, _PLAIN, _SHUFFLED),
    ("3", "remainder and zero-degree terms", figures.figure_3, runs.EXPANSIONS),
    (
        "4",
        "kernels moved by terms without nonlinearity, and with other backward weights",
        figures.disturbed,
        *(_DISTURBED[how] for how in ("linear", "feedback", "none")),
    ),
    ("4_terms", "single disturbed terms", figures.disturbed_terms, _PLAIN, *runs.DISTURBED_TERMS.values()),
    ("5", "kernels moved by terms with shuffled errors", figures.disturbed, _DISTURBED["errors"], _DISTURBED["none"]),
    ("6", "replaced labels: alignment and error", figure_6.figure_6, *runs.relabelled()),
    ("6_rate", "replaced labels at the rate of the published code", figure_6.figure_6, *runs.relabelled_slowly()),
    ("6_terms", "replaced labels: alignment terms", figure_6.figure_6_terms, *runs.OBSERVED_RELABELLED),
    ("6_similarity", "replaced labels: similarities", figure_6.figure_6_similarity, *runs.SIMILARITIES_RELABELLED),
    (
        "7",
        "weights, updates and norms, with and without normalisation",
        normalisation.figure_7,
        _PLAIN,
        runs.observed("bp_trw_wb"),
    ),
    ("7E", "test errors over training", normalisation.figure_7e, *runs.trained()),
    ("7_errors", "test errors after 100 epochs", normalisation.figure_7_errors, *runs.trained()),
    ("7_paths", "paths of training in a plane, and local minima", normalisation.figure_7_paths, *_PLANES),
    ("S1", "symmetric and skew parts of the transformation", supplement.figure_s1, runs.TRANSFORMATIONS, _PLAIN),
    ("S2", "alignment terms of shuffled data", supplement.figure_s2, _SHUFFLED),
    ("S3", "autocorrelation of outputs and errors", supplement.figure_s3, _PLAIN),
    ("S4", "similarity terms over training", supplement.figure_s4, _PLAIN),
    ("S5", "similarities within and between categories", supplement.figure_s5, runs.SIMILARITIES),
    ("S5_norms", "output errors of single data points", supplement.figure_s5_norms, runs.SIMILARITIES),
    ("S5_lags", "similarities at lags of 1 and more", supplement.figure_s5_lags, runs.LAGGED_SIMILARITIES),
    ("S6", "zero-degree term", supplement.figure_s6, runs.EXPANSIONS),
    ("S7", "products of random matrices", supplement.figure_s7, runs.PRODUCTS),
    ("S8", "sensitivity to rate, norm and label smoothing", supplement.figure_s8, *runs.sensitivity()),
    ("note_1", "histograms of products of random matrices", notes.note_1, runs.HISTOGRAMS),
    ("note_2", "Taylor polynomials of higher degree", notes.note_2, runs.TAYLOR),
    ("direct", "direct feedback alignment", notes.figure_direct, runs.DIRECT, runs.DIRECT_NARROW),
    ("S17", "parts of direct alignment terms", notes.figure_s17, runs.DIRECT_PARTS),
]
"""Number, title, function, and the runs and pieces of each figure of the paper, and of statements without a figure."""

GUIDE = "docs/feedback_alignment.md"

FIGURES = [
    Item("figure", f"fa_mechanism/{number}", title, make, {"lab": cells}, pages=(GUIDE,))
    for number, title, make, *cells in _FIGURES
]
"""All figures; they have the size of the paper, so `lab` is their only profile."""

CLAIMS = Item(
    "table",
    "fa_mechanism/claims",
    "the paper's claims, and whether they show in the files of the figures",
    claims.table,
    pages=("docs/fa_mechanism.md",),
)

ITEMS = [*FIGURES, CLAIMS]
"""Every table and figure; the claims come last because they are judged by the files of the figures."""
