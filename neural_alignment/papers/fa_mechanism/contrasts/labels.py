"""Contrasts of Figure 6: networks that learn replaced labels."""

from __future__ import annotations

import itertools
import statistics

from neural_alignment.papers import published
from neural_alignment.papers.claims import ResultFiles, Seeds, difference, seeds_by
from neural_alignment.papers.fa_mechanism.contrasts import Cases, Find, by_layer, ends, own, turn
from neural_alignment.papers.fa_mechanism.runs import HIDDEN, STEPS
from neural_alignment.reporting import Spread

# Figure 6.


PARTS = {0: "0 %", 0.5: "50 %", 1: "100 %"}
"""Part of the labels that is replaced, and its text."""


def label_turn(files: ResultFiles, name: str, fraction: float, layer: int, epoch: int | None = None) -> Seeds:
    """Returns the turn of W up to an epoch, the last by default, by seed."""
    rows = files.rows(name, fraction=fraction)
    return turn([row for row in rows if epoch is None or row["epoch"] <= epoch], "epoch", f"angle_{layer}")


def label_contrasts(name: str, epoch: int | None = None) -> Find:
    """Returns how much more W turns with fewer labels replaced, for neighbouring parts."""

    def find(files: ResultFiles) -> Cases:
        return {
            f"{PARTS[low]} to {PARTS[high]}, l = {layer}": difference(
                *(label_turn(files, name, fraction, layer, epoch) for fraction in (low, high))
            )
            for (low, high), layer in itertools.product(itertools.pairwise(PARTS), HIDDEN)
        }

    return find


def turn_without_labels(name: str) -> Find:
    """Returns the turn of W with all labels replaced."""
    return lambda files: by_layer(lambda layer: own(label_turn(files, name, 1, layer)))


PUBLISHED_RELABELLED = {row["fraction"]: row["test_error_percent"] for row in published.read("fa_mechanism/relabelled")}
"""Part of the labels -> test error of the published code, percent."""


def relabelled_errors(name: str) -> Find:
    """Returns our test errors at the end minus those of the published code."""

    def find(files: ResultFiles) -> Cases:
        found = {}
        for fraction, expected in PUBLISHED_RELABELLED.items():
            errors = ends(files.rows(name, fraction=fraction), "epoch", "test_error_percent")[1]
            found[PARTS[fraction]] = Spread([error - expected for error in errors.values()])
        return found

    return find


def replaced_terms(files: ResultFiles, layer: int) -> dict[str, Seeds]:
    """Returns how far terms point towards B^T with all labels replaced, of the order of an epoch and of all others."""
    by_order = seeds_by(files.rows("figure_6_terms", fraction=1, layer=layer), "order")
    others = [angles for order, angles in by_order.items() if order % STEPS]
    return {
        "epoch": {seed: 90 - angle for seed, angle in by_order[STEPS].items()},
        "others": {seed: 90 - statistics.fmean(angles[seed] for angles in others) for seed in others[0]},
    }


def chance_error(files: ResultFiles) -> Cases:
    """Returns the test error at the end with all labels replaced, minus 90 percent."""
    errors = ends(files.rows("figure_6", fraction=1), "epoch", "test_error_percent")[1]
    return {"": Spread([error - 90 for error in errors.values()])}


def similarity_left(fraction: float) -> Find:
    """Returns how much more alike inputs are within categories, divided by the same with the true labels."""

    def gap(files: ResultFiles, replaced: float) -> float:
        rows = files.rows("figure_6_similarity", fraction=replaced, signal="output", layer=1)
        means = {row["group"]: row["mean"] for row in rows}
        return means["within"] - means["between"]

    return lambda files: {"": Spread([gap(files, fraction) / gap(files, 0)])}
