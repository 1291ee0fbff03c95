"""Figures of Rahmansetayesh et al., "The underlying mechanism of feedback alignment"."""

from __future__ import annotations

from neural_alignment.papers.fa_mechanism import claims, figures, runs, supplement
from neural_alignment.papers.registry import Item

_PLAIN, _SHUFFLED = runs.observed("bp_trw"), runs.observed("bp_trw", True, runs.FEW)
_PLANES = runs.plane("bp", "bp_trw"), runs.plane("bp_trw", "bp_trw_wb")
_PATHS = *runs.trained(), _PLAIN, runs.observed("bp_trw_wb"), *_PLANES
*_TERMS, _ERRORS = runs.DISTURBED

_FIGURES = [
    ("1b", "open loop: alignment under imposed signals", figures.figure_1b, *runs.OPEN_LOOPS),
    ("2", "alignment terms by order, in file order and shuffled", figures.figure_2, _PLAIN, _SHUFFLED),
    ("3", "remainder and zero-degree terms", figures.figure_3, runs.EXPANSIONS),
    ("4", "alignment terms without nonlinearity, and with other backward weights", figures.disturbed, *_TERMS),
    ("5", "alignment terms with shuffled errors", figures.disturbed, _ERRORS),
    ("6", "replaced labels: alignment and error", figures.figure_6, *runs.relabelled(), *runs.OBSERVED_RELABELLED),
    ("7", "weights, updates, norms, errors and paths, with and without normalisation", figures.figure_7, *_PATHS),
    ("7_errors", "test errors after 100 epochs", figures.figure_7_errors, *runs.trained()),
    ("S1", "symmetric and skew parts of the transformation", supplement.figure_s1, runs.TRANSFORMATIONS, _PLAIN),
    ("S2", "alignment terms of shuffled data", supplement.figure_s2, _PLAIN, _SHUFFLED),
    ("S3", "autocorrelation of outputs and errors", supplement.figure_s3, _PLAIN),
    ("S4", "similarity terms over training", supplement.figure_s4, _PLAIN),
    ("S5", "similarities within and between categories", supplement.figure_s5, runs.SIMILARITIES),
    ("S6", "zero-degree term", supplement.figure_s6, runs.EXPANSIONS),
    ("S7", "products of random matrices", supplement.figure_s7, runs.PRODUCTS),
    ("S8", "sensitivity to rate, norm and label smoothing", supplement.figure_s8, *runs.sensitivity()),
    ("direct", "direct feedback alignment", supplement.figure_direct, runs.DIRECT),
]
"""Number, title, function, and the runs and pieces of each figure of the paper, and of one of DFA."""

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
    pages=("docs/fa_mechanism.md", GUIDE),
)

ITEMS = [*FIGURES, CLAIMS]
"""Every table and figure; the claims come last because they are judged by the files of the figures."""
