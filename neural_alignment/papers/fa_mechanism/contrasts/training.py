"""Contrasts of Figures 7 and S8: training, and normalised weights."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from neural_alignment.papers.claims import ResultFiles, Seeds, difference, seeds_by
from neural_alignment.papers.fa_mechanism.contrasts import Cases, Find, by_layer, ends, own, turn
from neural_alignment.papers.fa_mechanism.runs import LAYERS, PUBLISHED
from neural_alignment.reporting import Row, Spread

# Figure 7.


def observed(files: ResultFiles, panel: str, condition: str, layer: int) -> Sequence[Row]:
    """Returns the rows of a layer in a panel."""
    return files.rows("figure_7", panel=panel, condition=condition, layer=layer)


def more_turn_with_normalisation(files: ResultFiles) -> Cases:
    """Returns how much more W turns with normalisation."""
    conditions = ("bp_trw_wb", "bp_trw")
    return by_layer(
        lambda layer: difference(*(turn(observed(files, "A", name, layer), "epoch") for name in conditions))
    )


def late_update_angle(files: ResultFiles, condition: str, layer: int) -> Seeds:
    """Returns the angle of the update to that of backpropagation at the end, by seed."""
    return ends(observed(files, "B", condition, layer), "epoch")[1]


def closer_updates_with_normalisation(files: ResultFiles) -> Cases:
    """Returns how much closer the updates are to those of backpropagation with normalisation, at the end."""
    conditions = ("bp_trw", "bp_trw_wb")
    return by_layer(lambda layer: difference(*(late_update_angle(files, name, layer) for name in conditions)), range(4))


def deviation_per_layer(files: ResultFiles) -> Cases:
    """Returns how much farther each layer's update is from that of backpropagation than the next layer's."""
    pairs = itertools.pairwise(range(len(LAYERS)))
    return {
        f"l = {low}, {high}": difference(*(late_update_angle(files, "bp_trw", layer) for layer in (low, high)))
        for low, high in pairs
    }


def norm_growth(files: ResultFiles) -> Cases:
    """Returns the growth of the norm of W without normalisation."""

    def growth(layer: int) -> Spread:
        return own({seed: -less for seed, less in turn(observed(files, "D", "bp_trw", layer), "epoch").items()})

    return by_layer(growth, range(len(LAYERS)))


def settling(files: ResultFiles, layer: int) -> Seeds:
    """Returns the first epoch at which 90 % of the growth of a norm is over, by seed."""
    by_epoch = seeds_by(observed(files, "D", "bp_trw", layer), "epoch")
    epochs = sorted(by_epoch)
    found = {}
    for seed, start in by_epoch[epochs[0]].items():
        goal = start + 0.9 * (by_epoch[epochs[-1]][seed] - start)
        found[seed] = next(epoch for epoch in epochs if by_epoch[epoch][seed] >= goal)
    return found


def later_settling(files: ResultFiles) -> Cases:
    """Returns how many epochs later the norm of the last layer settles than that of an earlier layer."""
    *earlier, last = range(len(LAYERS))
    return by_layer(lambda layer: difference(settling(files, last), settling(files, layer)), earlier)


def distance_of_ends(panel: str) -> Find:
    """Returns the distance of the ends of two paths, divided by the longer of the two ways from start to end."""

    def find(files: ResultFiles) -> Cases:
        paths: dict[str, list[tuple[float, float]]] = {}
        for row in files.rows("figure_7_paths", panel=panel, point="path"):
            paths.setdefault(row["condition"], []).append((row["x"], row["y"]))
        one, other = paths.values()
        longer = max(math.dist(path[0], path[-1]) for path in (one, other))
        return {"": Spread([math.dist(one[-1], other[-1]) / longer])}

    return find


def other_minimum(panel: str) -> Find:
    """Returns the distance of the local minima that are nearest to the ends of two paths, over that of the ends."""

    def find(files: ResultFiles) -> Cases:
        ends_: dict[str, tuple[float, float]] = {}
        for row in files.rows("figure_7_paths", panel=panel, point="path"):
            ends_[row["condition"]] = (row["x"], row["y"])
        minima = [(row["x"], row["y"]) for row in files.rows("figure_7_paths", panel=panel, point="minimum")]
        one, other = (min(minima, key=lambda each: math.dist(each, end)) for end in ends_.values())
        return {"": Spread([math.dist(one, other) / math.dist(*ends_.values())])}

    return find


def final_errors(files: ResultFiles, condition: str, column: str = "test_error_percent") -> Seeds:
    """Returns the test error after training, or the highest one after epoch 30, by seed."""
    return {row["seed"]: row[column] for row in files.rows("figure_7_errors", condition=condition)}


def published_difference(condition: str) -> Find:
    """Returns our test errors minus the mean of the published code."""
    mean, _ = PUBLISHED[condition]
    return lambda files: {"": Spread([error - mean for error in final_errors(files, condition).values()])}


def lower_errors(*pairs: tuple[str, str]) -> Find:
    """Returns the test error of the first condition of each pair minus that of the second."""
    return lambda files: {
        f"{first} to {second}" if len(pairs) > 1 else "": difference(
            final_errors(files, first), final_errors(files, second)
        )
        for first, second in pairs
    }


def spikes(condition: str) -> Find:
    """Returns how much farther than without normalisation the highest test error after epoch 30 is above the last."""

    def height(files: ResultFiles, name: str) -> Seeds:
        highest, last = (final_errors(files, name, column) for column in ("highest", "test_error_percent"))
        return {seed: highest[seed] - last[seed] for seed in highest}

    return lambda files: {"": difference(*(height(files, name) for name in (condition, "bp")))}


# Figure S8.


RATES, SMOOTHINGS, RULE_TITLES = (0.0005, 0.0003), (0, 0.05), {"bp": "BP", "bp_trw": "BP-TRW"}


def sensitivity(files: ResultFiles, rule: str, gamma: float | None, smoothing: float, rate: float) -> Seeds:
    """Returns the test error of Figure S8, by seed."""
    rows = files.rows("figure_S8", rule=rule, gamma=gamma, label_smoothing=smoothing, rate=rate)
    return {row["seed"]: row["test_error_percent"] for row in rows}


def setting(rule: str, smoothing: float, rate: float) -> str:
    """Returns the text of a setting of Figure S8."""
    return f"{RULE_TITLES[rule]}, rate {rate:g}{', LS' if smoothing else ''}"


def gamma_contrast(rules: Sequence[str], first: float | None, second: float | None) -> Find:
    """Returns the test error at one gamma minus that at another, at every rate, with and without label smoothing."""
    return lambda files: {
        setting(*each): difference(*(sensitivity(files, each[0], gamma, *each[1:]) for gamma in (first, second)))
        for each in itertools.product(rules, SMOOTHINGS, RATES)
    }


def range_reduction(files: ResultFiles) -> Cases:
    """Returns how much smaller the range of the errors over rates and gammas is with label smoothing."""

    def ranges(rule: str, smoothing: float) -> Seeds:
        settings = itertools.product((None, 0.6, 1), (smoothing,), RATES)
        errors = [sensitivity(files, rule, *each) for each in settings]
        found = {seed: [each[seed] for each in errors] for seed in errors[0] if all(seed in each for each in errors)}
        return {seed: max(each) - min(each) for seed, each in found.items()}

    return {
        text: difference(*(ranges(rule, smoothing) for smoothing in SMOOTHINGS)) for rule, text in RULE_TITLES.items()
    }


def smoothing_gain(files: ResultFiles) -> Cases:
    """Returns how much lower the test error is with label smoothing, in every setting."""
    return {
        f"{RULE_TITLES[rule]}, {'no WN' if gamma is None else f'γ {gamma:g}'}, rate {rate:g}": difference(
            *(sensitivity(files, rule, gamma, smoothing, rate) for smoothing in SMOOTHINGS)
        )
        for rule, gamma, rate in itertools.product(RULE_TITLES, (None, 0.6, 1), RATES)
    }
