"""Claims of Rahmansetayesh et al., judged by the files of their figures.

The turn of a kernel is the number of degrees by which its angle to the backward weights has decreased since the start
of training. A control is the same seed without the disturbance.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence

from neural_alignment.papers import claims
from neural_alignment.papers.claims import PaperClaim as Claim
from neural_alignment.papers.claims import ResultFiles, Seeds, difference, paired, seeds_by
from neural_alignment.papers.fa_mechanism.runs import HIDDEN, LAYERS, MOMENTS, PUBLISHED, STEPS
from neural_alignment.papers.registry import Source
from neural_alignment.reporting import Artifact, Row, Spread

Cases = dict[str, Spread]
Find = Callable[[ResultFiles], Cases]


def by_layer(spread: Callable[[int], Spread], layers: Iterable[int] = HIDDEN) -> Cases:
    """Returns case -> spread for each layer."""
    return {f"l = {layer}": spread(layer) for layer in layers}


def ends(rows: Sequence[Row], x: str, value: str = "value") -> tuple[Seeds, Seeds]:
    """Returns the values at the smallest and at the largest x, by seed."""
    found = seeds_by(rows, x, value)
    return found[min(found)], found[max(found)]


def turn(rows: Sequence[Row], x: str, value: str = "value") -> Seeds:
    """Returns the number of degrees by which an angle has decreased from the smallest to the largest x, by seed."""
    start, end = ends(rows, x, value)
    return {seed: start[seed] - end[seed] for seed in start if seed in end}


def own(values: Seeds) -> Spread:
    """Returns the spread over seeds."""
    return Spread([*values.values()])


def aligned(angles: Seeds) -> Spread:
    """Returns 90 degrees minus an angle: how far something points towards the backward weights."""
    return Spread([90 - angle for angle in angles.values()])


# Figure 1B.


def open_loop(files: ResultFiles, condition: str) -> tuple[Seeds, Seeds]:
    """Returns the turn of W_1 under some signals at the rate of the text, and its final angle, by run."""
    rows = [{**row, "seed": row["run"]} for row in files.rows("figure_1b", condition=condition, rate=0.002)]
    return turn(rows, "iteration", "angle_degrees"), ends(rows, "iteration", "angle_degrees")[1]


def beyond_unrelated_signals(condition: str) -> Find:
    """Returns how much more W_1 turns than with signals that are neither autocorrelated nor cross-correlated."""
    return lambda files: {"": difference(open_loop(files, condition)[0], open_loop(files, "neither")[0])}


PUBLISHED_LOOP = {"constant": 52.6, "cross_correlated": 2.1, "neither": 90.1}
"""Signals -> final angle of the published code at the rate of the text, degrees."""


def open_loop_differences(files: ResultFiles) -> Cases:
    """Returns our final angles minus those of the published code."""
    return {
        condition.replace("_", "-"): Spread([angle - published for angle in open_loop(files, condition)[1].values()])
        for condition, published in PUBLISHED_LOOP.items()
    }


# Figures 2 and S2.


FIRST, LAST = MOMENTS[0], MOMENTS[-1]


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


# Figures 3 and S6.


def part(files: ResultFiles, layer: int, name: str, measure: str = "angle_degrees") -> Sequence[Row]:
    """Returns the rows of a part of the update of a layer."""
    file = "figure_3" if name == "remainder" else "figure_S6"
    return files.rows(file, layer=layer, part=name, measure=measure)


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


def kernel_turn(files: ResultFiles, how: str, kernel: str, layer: int) -> Seeds:
    """Returns the turn of a kernel, by seed."""
    return turn(files.rows(DISTURBED[how], disturbance=how, kernel=kernel, layer=layer), "iteration")


def disturbed_turn(how: str) -> Find:
    """Returns the turn of the kernel that is moved only by disturbed terms."""
    return lambda files: by_layer(lambda layer: own(kernel_turn(files, how, "disturbed", layer)))


def turn_difference(how: str, first: str, second: str) -> Find:
    """Returns how much more the first kernel turns than the second."""
    return lambda files: by_layer(
        lambda layer: difference(*(kernel_turn(files, how, kernel, layer) for kernel in (first, second)))
    )


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


PUBLISHED_RELABELLED = {0: 22, 0.5: 35, 1: 90}
"""Part of the labels -> test error of the published code, percent."""


def relabelled_errors(name: str) -> Find:
    """Returns our test errors at the end minus those of the published code."""

    def find(files: ResultFiles) -> Cases:
        found = {}
        for fraction, published in PUBLISHED_RELABELLED.items():
            errors = ends(files.rows(name, fraction=fraction), "epoch", "test_error_percent")[1]
            found[PARTS[fraction]] = Spread([error - published for error in errors.values()])
        return found

    return find


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
        for row in files.rows("figure_7", panel=panel):
            paths.setdefault(row["condition"], []).append((row["x"], row["y"]))
        one, other = paths.values()
        longer = max(math.dist(path[0], path[-1]) for path in (one, other))
        return {"": Spread([math.dist(one[-1], other[-1]) / longer])}

    return find


def test_errors(files: ResultFiles, condition: str) -> Seeds:
    """Returns the test error after training, by seed; a condition is RULE or RULE_NORMALISED."""
    rule, _, normalised = condition.rpartition("_") if condition not in ("bp", "bp_trw") else (condition, "", "none")
    rows = files.rows("figure_7_errors", rule=rule, normalised=normalised)
    return {row["seed"]: row["test_error_percent"] for row in rows}


def published_difference(condition: str) -> Find:
    """Returns our test errors minus the mean of the published code."""
    mean, _ = PUBLISHED[condition]
    return lambda files: {"": Spread([error - mean for error in test_errors(files, condition).values()])}


def lower_errors(*pairs: tuple[str, str]) -> Find:
    """Returns the test error of the first condition of each pair minus that of the second."""
    return lambda files: {
        f"{first} to {second}" if len(pairs) > 1 else "": difference(
            test_errors(files, first), test_errors(files, second)
        )
        for first, second in pairs
    }


def spikes(files: ResultFiles) -> Cases:
    """Returns how much higher the highest test error after epoch 30 is with normalisation, of backpropagation."""

    def highest(condition: str) -> Seeds:
        rows = [row for row in files.rows("figure_7", panel="E", condition=condition) if row["epoch"] > 30]
        found: Seeds = {}
        for row in rows:
            found[row["seed"]] = max(row["value"], found.get(row["seed"], 0.0))
        return found

    return {"": difference(highest("bp_w"), highest("bp"))}


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


# Figures S7 and S8.


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


RATES, SMOOTHINGS, RULES = (0.0005, 0.0003), (0, 0.05), {"bp": "BP", "bp_trw": "BP-TRW"}


def sensitivity(files: ResultFiles, rule: str, gamma: float | None, smoothing: float, rate: float) -> Seeds:
    """Returns the test error of Figure S8, by seed."""
    rows = files.rows("figure_S8", rule=rule, gamma=gamma, label_smoothing=smoothing, rate=rate)
    return {row["seed"]: row["test_error_percent"] for row in rows}


def setting(rule: str, smoothing: float, rate: float) -> str:
    """Returns the text of a setting of Figure S8."""
    return f"{RULES[rule]}, rate {rate:g}{', LS' if smoothing else ''}"


def gamma_contrast(rules: Sequence[str], first: float | None, second: float | None) -> Find:
    """Returns the test error at one gamma minus that at another, at every rate, with and without label smoothing."""
    return lambda files: {
        setting(*each): difference(*(sensitivity(files, each[0], gamma, *each[1:]) for gamma in (first, second)))
        for each in itertools.product(rules, SMOOTHINGS, RATES)
    }


def range_reduction(files: ResultFiles) -> Cases:
    """Returns how much smaller the range of median errors over rates and gammas is with label smoothing."""

    def width(rule: str, smoothing: float) -> float:
        settings = itertools.product((None, 0.6, 1), (smoothing,), RATES)
        medians = [statistics.median(sensitivity(files, rule, *each).values()) for each in settings]
        return max(medians) - min(medians)

    return {text: Spread([width(rule, 0) - width(rule, 0.05)]) for rule, text in RULES.items()}


def smoothing_gain(files: ResultFiles) -> Cases:
    """Returns how much lower the test error is with label smoothing, in every setting."""
    return {
        f"{RULES[rule]}, {'no WN' if gamma is None else f'γ {gamma:g}'}, rate {rate:g}": difference(
            *(sensitivity(files, rule, gamma, smoothing, rate) for smoothing in SMOOTHINGS)
        )
        for rule, gamma, rate in itertools.product(RULES, (None, 0.6, 1), RATES)
    }


# Direct feedback alignment.


def direct_turn(measure: str, layers: Iterable[int] = HIDDEN) -> Find:
    """Returns the turn of the products of W towards F^T, or of W towards Q^T."""
    return lambda files: by_layer(
        lambda layer: own(turn(files.rows("figure_direct", measure=measure, layer=layer), "epoch")), layers
    )


ABOVE, NOT_ABOVE = claims.above(), claims.not_above()
NONE = claims.Threshold("0 in every seed", lambda found: max(found.known) == 0)
DEGREES, TURN, FIGURE = "degrees", "turn, degrees", "figure"
TOWARDS = "90 degrees less the angle to B^T"
MORE_TURN = "turn less that of the control, degrees"


def _published(condition: str) -> str:
    mean, deviation = PUBLISHED[condition]
    return f"{mean:.2f}{'' if math.isnan(deviation) else f' ± {deviation:.2f}'} %"


CLAIMS: tuple[Claim, ...] = (
    Claim("1B", "autocorrelated signals align", "52.6 degrees", "turn less that of unrelated signals, degrees", ABOVE,
          beyond_unrelated_signals("constant")),
    Claim("1B", "cross-correlated signals align", "2.1 degrees", "turn less that of unrelated signals, degrees", ABOVE,
          beyond_unrelated_signals("cross_correlated")),
    Claim("1B", "signals that are neither do not align", "90.1 degrees", TURN, NOT_ABOVE,
          lambda files: {"": own(open_loop(files, "neither")[0])}),
    Claim("1B", "the final angles are those of the published code", "52.6, 2.1, 90.1 degrees",
          "ours less the published one, degrees", claims.mean_between(-2, 2), open_loop_differences),
    Claim("2", "at k = 66 all orders align", "all; the published code: not all", "orders at 90 degrees or more", NONE,
          orders_above_90, ".1f"),
    Claim("2", "at k = 2946 the order 60 aligns more than at k = 66", FIGURE, "decrease of its angle, degrees", ABOVE,
          term_changes(0, "epoch", -1)),
    Claim("2", "at k = 2946 the other orders align less than at k = 66", FIGURE,
          "increase of their mean angle, degrees", ABOVE, term_changes(0, "others", 1)),
    Claim("2, S2", "shuffled, the order 60 aligns less at k = 2946 than at k = 66", FIGURE,
          "increase of its angle, degrees", ABOVE, term_changes(1, "epoch", 1)),
    Claim("3", "the remainder is small", FIGURE, "its norm over that of all alignment terms", claims.below(0.2),
          remainder_size, ".3f"),
    Claim("3", "the remainder opposes alignment at first", FIGURE, "angle to B^T less 90 degrees, mean to k = 66",
          ABOVE, lambda files: by_layer(lambda layer: own(early_opposition(files, layer)))),
    Claim("3", "its opposition decreases", FIGURE, "decrease to the last iteration, degrees", ABOVE,
          falling_opposition),
    Claim("3", "the remainder does not align at last", FIGURE, TOWARDS, NOT_ABOVE, part_alignment("remainder")),
    Claim("3", "all alignment terms together align", FIGURE, TOWARDS, ABOVE, part_alignment("alignment")),
    Claim("3C, S6", "the zero-degree term does not align", FIGURE, TOWARDS, NOT_ABOVE, part_alignment("zero_degree")),
    Claim("3C, S6", "the alignment terms align more than the zero-degree term", FIGURE, "difference of their angles",
          ABOVE, alignment_beyond_zero_degree),
    Claim("4A", "alignment survives without nonlinearity", FIGURE, TURN, ABOVE, disturbed_turn("linear")),
    Claim("4A", "nonlinearity reduces alignment", FIGURE, MORE_TURN, ABOVE,
          turn_difference("linear", "disturbed", "weight")),
    Claim("4B", "alignment survives with other backward weights", FIGURE, TURN, ABOVE, disturbed_turn("feedback")),
    Claim("5", "shuffled errors disrupt alignment", FIGURE, "turn of the control less that of the kernel, degrees",
          ABOVE, turn_difference("errors", "weight", "disturbed")),
    Claim("5", "no alignment is left with shuffled errors", FIGURE, TURN, NOT_ABOVE, disturbed_turn("errors")),
    Claim("6", "alignment is slower with more labels replaced", FIGURE, "difference of the turns after 2 epochs", ABOVE,
          label_contrasts("figure_6", 2)),
    Claim("6", "alignment is weaker with more labels replaced", FIGURE, "difference of the turns at the end", ABOVE,
          label_contrasts("figure_6")),
    Claim("6", "with all labels replaced W still aligns slightly", "text", TURN, ABOVE,
          turn_without_labels("figure_6")),
    Claim("6", "test error with 0, 50, 100 % of the labels replaced", "about 22, 35, 90 %",
          "ours less the published one, points", claims.mean_between(-3, 3), relabelled_errors("figure_6")),
    Claim("7A", "normalisation improves the alignment of W", FIGURE, MORE_TURN, ABOVE, more_turn_with_normalisation),
    Claim("7B", "normalisation improves the alignment of updates", FIGURE,
          "decrease of the angle to backpropagation, degrees", ABOVE, closer_updates_with_normalisation),
    Claim("7B", "updates deviate more towards the first layer", FIGURE, "difference of neighbouring layers, degrees",
          ABOVE, deviation_per_layer),
    Claim("7C", "BP-TRW ends elsewhere than backpropagation", FIGURE, "distance of the ends over the longer way",
          claims.above(0.5), distance_of_ends("C")),
    Claim("7D", "norms of W grow without normalisation", FIGURE, "increase of the norm", ABOVE, norm_growth),
    Claim("7D", "they saturate sooner in earlier layers than in the last", FIGURE,
          "epochs earlier than in layer 4 that 90 % of the growth is over", ABOVE, later_settling, ".1f"),
    Claim("7F", "with normalisation BP-TRW ends elsewhere", FIGURE, "distance of the ends over the longer way",
          claims.above(0.5), distance_of_ends("F")),
    Claim("7E", "BP-TRW learns as the published code does", _published("bp_trw"), "ours less the published one, points",
          claims.mean_between(-0.6, 0.6), published_difference("bp_trw")),
    Claim("7E", "normalising W and B improves it", _published("bp_trw_wb"), "decrease of the test error, points", ABOVE,
          lower_errors(("bp_trw", "bp_trw_wb"))),
    Claim("7E", "W alone (`bp_trw_w`) is between the two", _published("bp_trw_w"),
          "decrease of the test error, points", ABOVE,
          lower_errors(("bp_trw", "bp_trw_w"), ("bp_trw_w", "bp_trw_wb"))),
    Claim("7E", "B alone (`bp_trw_b`), which is not in the paper, is between the two", "-",
          "decrease of the test error, points", ABOVE,
          lower_errors(("bp_trw", "bp_trw_b"), ("bp_trw_b", "bp_trw_wb"))),
    Claim("7E", "backpropagation learns as the published code does, rate 0.0004", _published("bp"),
          "ours less the published one, points", claims.mean_between(-0.6, 0.6), published_difference("bp")),
    Claim("7E", "normalisation makes the test error of backpropagation less robust", "spikes over 30 % in every seed",
          "highest after epoch 30, increase in points", ABOVE, spikes, ".1f"),
    Claim("S1", "the eigenvalues of the symmetric part decide its angle", FIGURE, "correlation", claims.above(0.95),
          eigenvalue_correlation, ".3f"),
    Claim("S1", "a skew part turns B^T M away from B^T", FIGURE, "angle less that of the symmetric part, degrees",
          ABOVE, loss_by_skew_part, ".1f"),
    Claim("S3", "errors a whole epoch apart resemble each other more than half an epoch apart", FIGURE,
          "difference of their angles at last, degrees", ABOVE, epoch_against_half, ".1f"),
    Claim("S3", "errors a whole epoch apart come to resemble each other more", FIGURE,
          "decrease of their angle, degrees", ABOVE, errors_become_similar, ".1f"),
    Claim("S4", "at first similarity terms within categories are positive, between them negative", "text",
          "mean over all pairs, lag 30", ABOVE, similarity_signs, ".3g"),
    Claim("S4", "at lag 30 their sum is positive at first", "text", "mean over all pairs", ABOVE, first_sums, ".2g"),
    Claim("S4", "at lag 30 their sum falls", "text", "decrease of the mean over all pairs", ABOVE, falling_sums, ".2g"),
    Claim("S5", "at first errors within categories are alike", FIGURE, "mean similarity", ABOVE,
          similarity_contrast("first", "error", lambda means: means["within"]), ".3g"),
    Claim("S5", "at first errors between categories are opposed", FIGURE, "minus the mean similarity", ABOVE,
          similarity_contrast("first", "error", lambda means: -means["between"]), ".3g"),
    Claim("S5", "at first outputs are more alike within categories than between them", FIGURE,
          "difference of the mean similarities", ABOVE,
          similarity_contrast("first", "output", lambda means: means["within"] - means["between"]), ".3g"),
    Claim("S5", "at last errors of poorly classified pairs are larger", FIGURE,
          "ratio of the mean similarities to well classified pairs", claims.above(1), poor_errors, ".0f"),
    Claim("S5", "at last outputs of poorly classified pairs of one category are less alike", FIGURE,
          "difference of the mean similarities", ABOVE,
          similarity_contrast("last", "output", lambda means: means["within/well"] - means["within/poor"]), ".3g"),
    Claim("S7", "gates do not change the mean of the angle of products", "no difference",
          "degrees farther from 90 with gates", claims.between(-0.1, 0.1), gate_shift, ".3f"),
    Claim("S7", "gates change its variance", FIGURE, "ratio of the variances", claims.above(1.5), gate_variance),
    Claim("S8", "normalisation lowers the error of BP-TRW", FIGURE, "error without less that at γ 1, points", ABOVE,
          gamma_contrast(("bp_trw",), None, 1.0)),
    Claim("S8", "with a small γ the performance drops", "text", "error at γ 0.6 less that at γ 1, points", ABOVE,
          gamma_contrast(("bp", "bp_trw"), 0.6, 1.0)),
    Claim("S8", "label smoothing makes the error depend less on rate and γ", "text",
          "range of the median errors without less that with it, points", ABOVE, range_reduction),
    Claim("S8", "label smoothing lowers the error", "not claimed", "decrease of the error, points", ABOVE,
          smoothing_gain),
    Claim("direct", "products of W come to align with F^T", "text, no figure", TURN, ABOVE,
          direct_turn("product_angle")),
    Claim("direct", "W comes to align with Q^T where Q is not F", "text, no figure", TURN, ABOVE,
          direct_turn("weight_angle", HIDDEN[:-1])),
    Claim("direct", "W comes to align with Q^T where Q is F", "text, no figure", TURN, ABOVE,
          direct_turn("weight_angle", HIDDEN[-1:])),
)  # fmt: skip
"""Every claim of the paper that is examined, in the order of its figures."""


def table(source: Source) -> Artifact:
    """Every claim, judged by the files of the figures in the folder of results."""
    return claims.judge(CLAIMS, source.output)
