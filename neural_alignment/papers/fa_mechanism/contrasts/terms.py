"""Contrasts of Figures 1B to 5 and S7, of the notes 1 and 2, and of direct feedback alignment."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable, Sequence

from neural_alignment.papers import published
from neural_alignment.papers.claims import ResultFiles, Seeds, difference, paired, seeds_by
from neural_alignment.papers.fa_mechanism.contrasts import FIRST, LAST, Cases, Find, aligned, by_layer, ends, own, turn
from neural_alignment.papers.fa_mechanism.runs import HIDDEN, STEPS
from neural_alignment.reporting import Row, Spread

# Figure 1B.


def open_loop(files: ResultFiles, condition: str) -> tuple[Seeds, Seeds]:
    """Returns the turn of W_1 under some signals at the rate of the text, and its final angle, by run."""
    rows = [{**row, "seed": row["run"]} for row in files.rows("figure_1b", condition=condition, rate=0.002)]
    return turn(rows, "iteration", "angle_degrees"), ends(rows, "iteration", "angle_degrees")[1]


def beyond_unrelated_signals(condition: str) -> Find:
    """Returns how much more W_1 turns than with signals that are neither autocorrelated nor cross-correlated."""
    return lambda files: {"": difference(open_loop(files, condition)[0], open_loop(files, "neither")[0])}


PUBLISHED_LOOP = {row["condition"]: row["angle_degrees"] for row in published.read("fa_mechanism/open_loop")}
"""Signals -> final angle of the published code at the rate of the text, degrees."""


def open_loop_differences(files: ResultFiles) -> Cases:
    """Returns our final angles minus those of the published code."""
    return {
        condition.replace("_", "-"): Spread([angle - expected for angle in open_loop(files, condition)[1].values()])
        for condition, expected in PUBLISHED_LOOP.items()
    }


# Figures 2 and S2.


def term_angles(files: ResultFiles, shuffled: int, layer: int, moment: int) -> dict[str, Seeds]:
    """Returns the angles of the alignment terms, by seed: of the order of an epoch, and the mean of all others."""
    by_order = seeds_by(files.rows("figure_2", shuffled=shuffled, layer=layer, moment=moment), "order")
    others = [angles for order, angles in by_order.items() if order % STEPS]
    return {
        "epoch": by_order[STEPS],
        "others": {seed: statistics.fmean(angles[seed] for angles in others) for seed in others[0]},
    }


def term_changes(shuffled: int, which: str, sign: int) -> Find:
    """Returns the change of the angle of some terms from the first to the last iteration, times a sign."""

    def change(files: ResultFiles, layer: int) -> Spread:
        early, late = (term_angles(files, shuffled, layer, moment)[which] for moment in (FIRST, LAST))
        return paired(lambda one, other: sign * (other - one), early, late)

    return lambda files: by_layer(lambda layer: change(files, layer))


def orders_above_90(files: ResultFiles) -> Cases:
    """Returns the number of orders in file order whose term is not aligned at the first iteration, by layer."""

    def counted(layer: int) -> Spread:
        by_order = seeds_by(files.rows("figure_2", shuffled=0, layer=layer, moment=FIRST), "order")
        return Spread([sum(angles[seed] >= 90 for angles in by_order.values()) for seed in by_order[1]])

    return by_layer(counted)


def shuffled_to_ordered(files: ResultFiles) -> Cases:
    """Returns the alignment with shuffled data divided by that in file order: of W its turn, of updates their mean."""

    def effect(measure: str, shuffled: int, layer: int) -> Seeds:
        rows = files.rows("figure_2_training", measure=measure, shuffled=shuffled, layer=layer)
        if measure == "weight_angle":
            return turn(rows, "epoch")
        by_seed: dict[int, list[float]] = {}
        for row in rows:
            by_seed.setdefault(row["seed"], []).append(90 - row["value"])
        return {seed: statistics.fmean(angles) for seed, angles in by_seed.items()}

    return {
        f"{name}, l = {layer}": paired(
            lambda ordered, shuffled: shuffled / ordered, *(effect(measure, shuffled, layer) for shuffled in (0, 1))
        )
        for measure, name in (("weight_angle", "W"), ("update_to_feedback", "updates"))
        for layer in HIDDEN
    }


# Figures 3 and S6.


def part(files: ResultFiles, layer: int, name: str, measure: str = "angle_degrees") -> Sequence[Row]:
    """Returns the rows of a part of the update of a layer."""
    return files.rows("figure_3", layer=layer, part=name, measure=measure)


def part_at_last(files: ResultFiles, layer: int, name: str, measure: str = "angle_degrees") -> Seeds:
    """Returns a measure of a part of the update at the last iteration that is expanded, by seed."""
    return ends(part(files, layer, name, measure), "iteration")[1]


def remainder_size(files: ResultFiles) -> Cases:
    """Returns the norm of the remainder divided by that of the sum of the alignment terms."""
    norms = ("remainder", "alignment")
    return by_layer(
        lambda layer: paired(
            lambda one, other: one / other, *(part_at_last(files, layer, name, "norm_ratio") for name in norms)
        )
    )


def early_opposition(files: ResultFiles, layer: int) -> Seeds:
    """Returns how far the remainder points away from the backward weights, the mean up to iteration 66, by seed."""
    found = seeds_by(part(files, layer, "remainder"), "iteration")
    early = [angles for iteration, angles in found.items() if iteration <= FIRST]
    return {seed: statistics.fmean(angles[seed] for angles in early) - 90 for seed in early[0]}


def falling_opposition(files: ResultFiles) -> Cases:
    """Returns how much less the remainder opposes alignment at the last iteration."""
    return by_layer(
        lambda layer: paired(
            lambda early, late: early - (late - 90),
            early_opposition(files, layer),
            part_at_last(files, layer, "remainder"),
        )
    )


def part_alignment(name: str) -> Find:
    """Returns how far a part of the update points towards the backward weights."""
    return lambda files: by_layer(lambda layer: aligned(part_at_last(files, layer, name)))


def alignment_beyond_zero_degree(files: ResultFiles) -> Cases:
    """Returns how much closer to the backward weights the sum of the alignment terms is than the zero-degree term."""
    names = ("zero_degree", "alignment")
    return by_layer(lambda layer: difference(*(part_at_last(files, layer, name) for name in names)))


# Figures 4 and 5.


DISTURBED = {"linear": "figure_4", "feedback": "figure_4", "errors": "figure_5"}
"""Disturbance -> file."""


def kernel_rows(files: ResultFiles, how: str, kernel: str, layer: int) -> Sequence[Row]:
    """Returns the angles of a kernel over the iterations."""
    return files.rows(DISTURBED[how], disturbance=how, kernel=kernel, layer=layer)


def kernel_turn(files: ResultFiles, how: str, kernel: str, layer: int, last: float = math.inf) -> Seeds:
    """Returns the turn of a kernel up to an iteration, by seed."""
    return turn([row for row in kernel_rows(files, how, kernel, layer) if row["iteration"] <= last], "iteration")


def disturbed_turn(how: str) -> Find:
    """Returns the turn of the kernel that is moved only by disturbed terms."""
    return lambda files: by_layer(lambda layer: own(kernel_turn(files, how, "disturbed", layer)))


def turn_difference(how: str, first: str, second: str) -> Find:
    """Returns how much more the first kernel turns than the second, up to the last iteration of the control."""

    def find(files: ResultFiles, layer: int) -> Spread:
        last = max(row["iteration"] for row in kernel_rows(files, how, "control", layer))
        return difference(*(kernel_turn(files, how, kernel, layer, last) for kernel in (first, second)))

    return lambda files: by_layer(lambda layer: find(files, layer))


def single_terms(files: ResultFiles, how: str, kind: str, layer: int) -> Seeds:
    """Returns how far single alignment terms point towards the backward weights at k = 66, by seed: the mean of all."""
    rows = files.rows("figure_4_terms", disturbance=how, terms=kind, layer=layer, moment=FIRST)
    by_order = [*seeds_by(rows, "order").values()]
    return {seed: 90 - statistics.fmean(angles[seed] for angles in by_order) for seed in by_order[0]}


def aligned_terms(how: str) -> Find:
    """Returns how far single disturbed terms point towards the backward weights."""
    return lambda files: by_layer(lambda layer: own(single_terms(files, how, "disturbed", layer)))


def term_difference(how: str, first: str, second: str) -> Find:
    """Returns how much more single terms of the first kind align than those of the second."""
    return lambda files: by_layer(
        lambda layer: difference(*(single_terms(files, how, kind, layer) for kind in (first, second)))
    )


def kernel_ratio(how: str) -> Find:
    """Returns the turn of the kernel of disturbed terms divided by that of its control."""
    return lambda files: by_layer(
        lambda layer: paired(
            lambda one, other: one / other,
            *(kernel_turn(files, how, kernel, layer) for kernel in ("disturbed", "control")),
        )
    )


# Figure S7, notes 1 and 2.


def shift_by_gates(files: ResultFiles) -> Cases:
    """Returns how much farther from 90 degrees theta_3 is with gates: the mean of each part of the draws."""
    by_condition = seeds_by((row | {"seed": row["part"]} for row in files.rows("figure_note_1", case=None)),
                            "condition", "shift")  # fmt: skip
    return {condition.replace("_", " "): own(shifts) for condition, shifts in by_condition.items()}


def smaller_remainders(files: ResultFiles) -> Cases:
    """Returns the remainder after degree 1 divided by that after degree 2 or 3, at the last iteration."""

    def left(degree: int, layer: int) -> Seeds:
        return ends(files.rows("figure_note_2", measure="remainders", degree=degree, layer=layer), "iteration")[1]

    return {
        f"degree {degree}, l = {layer}": paired(lambda one, other: one / other, left(1, layer), left(degree, layer))
        for degree, layer in itertools.product((2, 3), HIDDEN)
    }


def higher_terms(files: ResultFiles) -> Cases:
    """Returns the norm of the terms of degree 2 and 3 over that of the alignment terms, at the last iteration."""

    def size(degree: int, layer: int) -> Seeds:
        return ends(files.rows("figure_note_2", measure="terms", degree=degree, layer=layer), "iteration")[1]

    return {
        f"degree {degree}, l = {layer}": paired(lambda one, other: one / other, size(degree, layer), size(1, layer))
        for degree, layer in itertools.product((2, 3), HIDDEN)
    }


def products(files: ResultFiles, case: str) -> list[Row]:
    """Returns the bins of Figure S7 that have draws."""
    return [row for row in files.rows("figure_S7", case=case) if row["draws"]]


def gate_shift(files: ResultFiles) -> Cases:
    """Returns how much farther from 90 degrees the mean angle of products is with gates."""
    pairs = list(zip(products(files, "linear"), products(files, "gated"), strict=True))
    moved = [
        linear["draws"] * math.copysign(1, linear["mean"] - 90) * (gated["mean"] - linear["mean"])
        for linear, gated in pairs
    ]
    return {"": Spread([sum(moved) / sum(linear["draws"] for linear, _ in pairs)])}


def gate_variance(files: ResultFiles) -> Cases:
    """Returns the mean variance within a bin with gates, divided by that without."""
    linear, gated = (statistics.fmean(row["variance"] for row in products(files, case)) for case in ("linear", "gated"))
    return {"": Spread([gated / linear])}


# Direct feedback alignment.


def direct_turn(measure: str, layers: Iterable[int] = HIDDEN) -> Find:
    """Returns the turn of the products of W towards F^T, or of W towards Q^T, in both networks."""

    def find(files: ResultFiles) -> Cases:
        return {
            f"{network}, l = {layer}": own(
                turn(files.rows("figure_direct", network=network, measure=measure, layer=layer), "epoch")
            )
            for network, layer in itertools.product(("square", "narrow"), layers)
        }

    return find


def direct_part(part_: str) -> Find:
    """Returns how far a part of the direct alignment terms points towards Q^T, at the last iteration.

    A layer in which the part is 0, so that it has no angle, is left out.
    """

    def find(files: ResultFiles) -> Cases:
        rows = files.rows("figure_S17", measure="angle", part=part_)
        by_own_layer = {layer: [row for row in rows if row["layer"] == layer] for layer in HIDDEN[:-1]}
        present = [layer for layer, own_rows in by_own_layer.items() if own_rows]
        return by_layer(lambda layer: aligned(ends(by_own_layer[layer], "iteration")[1]), present)

    return find
