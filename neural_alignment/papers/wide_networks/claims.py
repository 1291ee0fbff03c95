"""Claims of Boopathy and Fiete 2022, judged by the files of their tables and figures."""

from __future__ import annotations

import itertools
import operator
import statistics
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from neural_alignment.papers import claims
from neural_alignment.papers.claims import NotYetRunError, ResultFiles, Seeds, difference, paired, seeds_by
from neural_alignment.papers.claims import PaperClaim as Claim
from neural_alignment.papers.registry import Source
from neural_alignment.papers.tables import grouped
from neural_alignment.papers.wide_networks import rows as tidy
from neural_alignment.papers.wide_networks.compute.add_task import PUBLISHED_SEED
from neural_alignment.papers.wide_networks.printed import TABLE_2
from neural_alignment.papers.wide_networks.runs import ACTIVATIONS, RULE_NAMES, SHOWN_UPDATES, WITHOUT_PROP
from neural_alignment.reporting import Artifact, Spread

Find = Callable[[ResultFiles], dict[str, Spread]]
ByWidth = dict[int, Seeds]

ACCURACY, CHANCE = "validation_accuracy", 10.0
RERUN = 0.7
"""Points by which accuracies of one configuration differ if only the rounding does; see the page."""

LEAST = 3
"""Number of seeds or subsets without which a claim about a small difference is not judged."""

ABOVE, MORE = claims.above(), claims.above(RERUN)
POINTS, FIGURE = "difference, points", "figure"


def _by_width(files: ResultFiles, name: str, column: str = ACCURACY, seed: str = "seed", **labels: Any) -> ByWidth:
    """Returns width -> seed -> value of a column."""
    return seeds_by(files.rows(name, **labels), "width", column, seed)


def _cases(first: ByWidth, second: ByWidth, function: Callable[..., float] = operator.sub) -> dict[str, Spread]:
    """Returns the spread of a function of two values of the same seed, the difference by default, for each width."""
    both = [width for width in first if width in second]
    return {f"x{width}": paired(function, first[width], second[width]) for width in both}


def _known(found: dict[str, Spread], least: int) -> dict[str, Spread]:
    """Returns the cases that have enough seeds.

    Raises:
        NotYetRunError: if none has.
    """
    if known := {case: spread for case, spread in found.items() if len(spread.known) >= least}:
        return known
    raise NotYetRunError


def better(name: str, rule: str, other: str, function: Callable[..., float] = operator.sub, **labels: Any) -> Find:
    """Returns accuracies of a rule less those of another, or another function of both, by width."""
    return lambda files: _cases(*(_by_width(files, name, rule=each, **labels) for each in (rule, other)), function)


def best(name: str, width: int) -> Find:
    """Returns accuracies of Align-ada less those of each other rule except backpropagation, at one width."""
    others = [rule for rule in WITHOUT_PROP if rule not in ("normal", "align_ada")]
    return lambda files: {RULE_NAMES[rule]: better(name, "align_ada", rule)(files)[f"x{width}"] for rule in others}


def _doublings(values: ByWidth) -> dict[str, Spread]:
    """Returns the increase from each width to the next."""
    pairs = itertools.pairwise(sorted(values))
    return {f"x{low} to x{high}": difference(values[high], values[low]) for low, high in pairs}


def improves(name: str, rule: str) -> Find:
    """Returns the increase of a rule's accuracy from each width to the next."""
    return lambda files: _doublings(_by_width(files, name, rule=rule))


def shrinking_gap(dataset: str) -> Find:
    """Returns the gap between backpropagation and Align-ada at the smallest width less that at the largest."""

    def find(files: ResultFiles) -> dict[str, Spread]:
        rules = [_by_width(files, "table_seeds", dataset=dataset, rule=rule) for rule in ("normal", "align_ada")]
        ends = [(width, [rule[width] for rule in rules]) for width in (min(rules[0]), max(rules[0]))]
        (narrow, first), (wide, last) = ends
        found = paired(lambda a, b, c, d: (a - b) - (c - d), *first, *last)
        return _known({f"x{narrow} to x{wide}": found}, LEAST)

    return find


def beyond_the_best(files: ResultFiles) -> dict[str, Spread]:
    """Returns the accuracy of Align-prop less the best one of the other rules except backpropagation, by width."""
    others = [_by_width(files, "table_1", rule=rule) for rule in WITHOUT_PROP if rule != "normal"]
    largest = {
        width: {seed: max(rule[width][seed] for rule in others) for seed in others[0][width]} for width in others[0]
    }
    return _cases(_by_width(files, "table_1", rule="align_prop"), largest)


def deviations(files: ResultFiles) -> dict[str, Spread]:
    """Returns the standard deviation of each rule over the seeds of Table 2."""
    found = {rule: [row[ACCURACY] for row in files.rows("table_2", rule=rule)] for rule in TABLE_2}
    return {RULE_NAMES[rule]: Spread([statistics.stdev(values)]) for rule, values in found.items()}


# Figure 3: rates.


def _at_rate(files: ResultFiles, rule: str, rate: float) -> dict[int, float]:
    """Returns accuracies by width; that of chance where J became infinite in the first epoch."""
    rows = files.rows("figure_3", rule=rule, rate=rate)
    return {row["width"]: CHANCE if row[ACCURACY] is None else row[ACCURACY] for row in rows}


def range_at_small_rate(files: ResultFiles) -> dict[str, Spread]:
    """Returns the range of three rules over what backpropagation has learned."""
    normal, *others = (_at_rate(files, rule, 0.5) for rule in ("normal", "align_ada", "align_zero"))
    rules = {width: [normal[width], *(other[width] for other in others)] for width in sorted(normal)}
    return {f"x{width}": Spread([(max(all_) - min(all_)) / (all_[0] - CHANCE)]) for width, all_ in rules.items()}


def drop_at_ten(files: ResultFiles) -> dict[str, Spread]:
    """Returns the accuracy at rate 5 less that at 10, the smaller one of both widths."""
    rates = {rule: [_at_rate(files, rule, rate) for rate in (5, 10)] for rule in WITHOUT_PROP}
    return {RULE_NAMES[r]: Spread([min(five[w] - ten[w] for w in five)]) for r, (five, ten) in rates.items()}


# Tables 9 and 10.


def subsets(images: int, function: Callable[..., float] = operator.sub) -> Find:
    """Returns a function of the accuracies of Align-ada and backpropagation on each subset, by width."""
    labels, name = {"train_images": images, "seed": "subset"}, "table_9_subsets"

    def find(files: ResultFiles) -> dict[str, Spread]:
        rules = (_by_width(files, name, rule=rule, **labels) for rule in ("align_ada", "normal"))
        return _known(_cases(*rules, function), LEAST)

    return find


def learned_difference(ours: float, theirs: float) -> float:
    """Returns a difference of accuracies over the distance of the second one from chance."""
    return (ours - theirs) / (theirs - CHANCE)


def learned_part(ours: float, theirs: float) -> float:
    """Returns the distance of an accuracy from chance over that of another."""
    return (ours - CHANCE) / (theirs - CHANCE)


def narrower_gap(files: ResultFiles) -> dict[str, Spread]:
    """Returns the gap in all epochs of Table 10 less that in one, by width."""
    long, short = (better("table_10", "normal", "align_ada", setting=each)(files) for each in ("150 epochs", "1 epoch"))
    return {case: Spread(np.subtract(long[case].values, short[case].values).tolist()) for case in long}


# Scores.


def _means(files: ResultFiles, name: str, column: str = "score", **labels: Any) -> ByWidth:
    """Returns width -> seed -> mean over layers."""
    groups = grouped(files.rows(name, **labels), "width", "seed")
    found: ByWidth = {}
    for (width, seed), rows in groups.items():
        found.setdefault(width, {})[seed] = statistics.fmean(row[column] for row in rows)
    return found


def rising_scores(name: str) -> Find:
    """Returns the increase of the mean score over layers from each width to the next."""
    return lambda files: _doublings(_means(files, name))


def permuted_scores(name: str) -> Find:
    """Returns the largest ratio over layers of the score with permuted weights to the score, by width."""

    def find(files: ResultFiles) -> dict[str, Spread]:
        found: dict[str, Seeds] = {}
        for row in files.rows(name):
            own = found.setdefault(f"x{row['width']}", {})
            own[row["seed"]] = max(own.get(row["seed"], 0.0), row["permuted_score"] / row["score"])
        return {case: Spread([*seeds.values()]) for case, seeds in found.items()}

    return find


def lower_last_layer(name: str) -> Find:
    """Returns the score of the first layer less that of the last, by width."""

    def find(files: ResultFiles) -> dict[str, Spread]:
        last = max(row["layer"] for row in files.rows(name))
        return _cases(*(_by_width(files, name, "score", layer=layer) for layer in (1, last)))

    return find


def falling_scores(setting: str) -> Find:
    """Returns the mean score over layers after the first epoch less that after the last, by width."""

    def find(files: ResultFiles) -> dict[str, Spread]:
        epochs = {row["epoch"] for row in files.rows("figure_8", setting=setting)}
        ends = (_means(files, "figure_8", setting=setting, epoch=end(epochs)) for end in (min, max))
        return _cases(*ends)

    return find


# The Add task.


def _losses(files: ResultFiles, rule: str, name: str = "table_8") -> ByWidth:
    return _by_width(files, name, "test_loss", rule=rule)


def printed_losses(name: str) -> Find:
    """Returns the largest difference to a printed loss, by rule."""

    def find(files: ResultFiles) -> dict[str, Spread]:
        found: dict[str, float] = {}
        for row, part in itertools.product(files.rows(name, seed=PUBLISHED_SEED), ("train_loss", "test_loss")):
            away = abs(row[part] - row[f"paper_{part}"])
            found[RULE_NAMES[row["rule"]]] = max(found.get(RULE_NAMES[row["rule"]], 0.0), away)
        return {case: Spread([value]) for case, value in found.items()}

    return find


def shrinking_excess(rule: str) -> Find:
    """Returns the decrease between widths of the excess of a rule's test loss over that of gradient descent."""

    def find(files: ResultFiles) -> dict[str, Spread]:
        ours, theirs = _losses(files, rule), _losses(files, "normal")
        pairs = itertools.pairwise(width for width in (8, 64, 512) if width in ours)
        return {
            f"x{low} to x{high}": paired(
                lambda a, b, c, d: (a - b) - (c - d), ours[low], theirs[low], ours[high], theirs[high]
            )
            for low, high in pairs
        }

    return find


def readout_ratio(rule: str) -> Find:
    """Returns the test loss of the readout alone over that of a rule, at the largest widths."""

    def find(files: ResultFiles) -> dict[str, Spread]:
        found = _cases(_losses(files, "readout_only"), _losses(files, rule), operator.truediv)
        return {case: found[case] for case in ("x256", "x512") if case in found}

    return find


def printed_among_seeds(width: int) -> Find:
    """Returns the distance of the printed test loss from the mean of other seeds, in standard deviations, by rule."""

    def find(files: ResultFiles) -> dict[str, Spread]:
        found = {}
        for (rule,), rows in grouped(files.rows("table_8", width=width), "rule").items():
            others = [row["test_loss"] for row in rows if row["seed"] != PUBLISHED_SEED and row["test_loss"]]
            away = abs(rows[0]["paper_test_loss"] - statistics.fmean(others)) / statistics.stdev(others)
            found[RULE_NAMES[rule]] = Spread([away])
        return found

    return find


# The limit of wide networks.


def exponents(name: str, **labels: Any) -> Find:
    """Returns the fitted exponents of the width, by rule."""

    def find(files: ResultFiles) -> dict[str, Spread]:
        rows = files.rows(name, **labels)
        last = max(row.get("step", 0) for row in rows)
        groups = grouped((row for row in rows if row.get("step", 0) == last), "rule").items()
        return {RULE_NAMES[rule]: tidy.exponent(own)[0] for (rule,), own in groups}

    return find


def closer_updates(files: ResultFiles) -> dict[str, Spread]:
    """Returns the cosine of a rule's updates to those of gradient descent, that of the widest less the narrowest."""
    rows = files.rows("figure_proposition_2", activation="tanh")
    last = max(row["step"] for row in rows)
    found = {}
    for rule in ("align_ada", "align_zero"):
        cosines = _by_width(files, "figure_proposition_2", "cosine", activation="tanh", rule=rule, step=last)
        found[RULE_NAMES[rule]] = difference(cosines[SHOWN_UPDATES[-1]], cosines[SHOWN_UPDATES[0]])
    return found


# Seconds.


def _ratios(files: ResultFiles, rule: str) -> dict[int, float]:
    return {row["width"]: row["ratio"] for row in files.rows("figure_7", rule=rule)}


def range_of_ratios(files: ResultFiles) -> dict[str, Spread]:
    """Returns the range over widths of the ratio of a step to one of gradient descent, by rule."""
    found = {rule: _ratios(files, rule).values() for rule in ("align_ada", "align_zero")}
    return {RULE_NAMES[rule]: Spread([max(ratios) - min(ratios)]) for rule, ratios in found.items()}


def slower_align_ada(files: ResultFiles) -> dict[str, Spread]:
    """Returns the ratio of Align-ada less that of Align-zero, by width."""
    ada, zero = (_ratios(files, rule) for rule in ("align_ada", "align_zero"))
    return {f"x{width}": Spread([ada[width] - zero[width]]) for width in sorted(ada)}


# More updates.


def _longer(files: ResultFiles, rule: str, column: str = ACCURACY) -> dict[str, float]:
    """Returns data set and width -> the best accuracy over rates, or the paper's."""
    found: dict[str, float] = {}
    for row in files.rows("table_longer", rule=rule):
        case = f"{row['dataset']} x{row['width']}"
        found[case] = max(found.get(case, 0.0), row[column] or 0.0)
    return found


def longer(rule: str, other: str) -> Find:
    """Returns the accuracy of a rule less that of another, `"paper"` for the paper's accuracy of the rule."""

    def find(files: ResultFiles) -> dict[str, Spread]:
        ours = _longer(files, rule)
        theirs = _longer(files, rule, "paper_accuracy") if other == "paper" else _longer(files, other)
        return _known({case: Spread([ours[case] - theirs[case]]) for case in ours if case in theirs}, 1)

    return find


def _of_data(name: str, title: str) -> Iterable[Claim]:
    """Yields the claims about Table 6 or 7."""
    dataset = {"table_6": "cifar10", "table_7": "kmnist"}[name]
    table = name.replace("table_", "Table ")
    for other, text in (("align_zero", "Align-zero"), ("last_layer", "the last layer alone")):
        yield Claim(
            table,
            f"Align-ada is better than {text}, {title}",
            "table",
            POINTS,
            MORE,
            better(name, "align_ada", other),
            ".1f",
        )
    yield Claim(
        table,
        f"Align-zero improves with width, {title}",
        "table",
        "increase, points",
        MORE,
        improves(name, "align_zero"),
        ".1f",
    )
    yield Claim(
        table,
        f"at width 64 Align-ada is better than each other rule, {title}",
        "at 512; at 64 as good as DFA",
        POINTS,
        MORE,
        best(name, 64),
        ".1f",
    )
    yield Claim(
        f"{table}, Figure 4",
        f"Align-ada nears backpropagation with width, {title}",
        "at 512: 4.3 points" if dataset == "cifar10" else "at 512: 8.8 points",
        "decrease of the gap, points",
        ABOVE,
        shrinking_gap(dataset),
        ".2f",
    )


def _of_scores(number: int, title: str) -> Iterable[Claim]:
    """Yields the claims about Table 3, 4 or 5."""
    name, table = f"table_{number}", f"Table {number}"
    yield Claim(
        table,
        f"scores rise with width, {title}",
        "text; not in each column",
        "increase",
        ABOVE,
        rising_scores(name),
        ".3f",
    )
    yield Claim(
        f"{table}, Figure 8",
        f"permuted weights score low, {title}",
        FIGURE,
        "largest ratio of a layer to its score",
        claims.below(0.5),
        permuted_scores(name),
    )
    yield Claim(
        table,
        f"the last layer scores lower than the first, {title}",
        "text",
        "difference",
        ABOVE,
        lower_last_layer(name),
        ".3f",
    )


_LIMITS = (
    ("proposition_1", "Proposition 1", "Σ / m nears Δ, the difference over √m is O(1 / m)", -1),
    ("activations", "Lemma 1", "activations change by O(1 / √m), equation 19", -0.5),
    ("weights", "Lemma 1", "weights change by O(1 / √m), equation 20", -0.5),
    ("jacobian", "Lemma 1", "the Jacobian changes by O(1 / √m), equation 21", -0.5),
    ("linearised", "equation 57", "Align-zero nears its linearised network, like O(1 / √m)", -0.5),
)  # fmt: skip


CLAIMS: tuple[Claim, ...] = (
    *(claim for number, title in ((3, "CIFAR-10"), (4, "KMNIST"), (5, "tanh")) for claim in _of_scores(number, title)),
    Claim("Figure 8", "scores fall over training, CIFAR-10", FIGURE, "decrease", ABOVE, falling_scores("cifar10"),
          ".3f"),
    Claim("Figure 8", "scores fall over training, KMNIST", FIGURE, "decrease", ABOVE, falling_scores("kmnist"), ".3f"),
    *_of_data("table_6", "CIFAR-10"),
    *_of_data("table_7", "KMNIST"),
    Claim("Tables 6, 7", "with the paper's number of updates backpropagation learns as in the paper", "table",
          "ours less the paper's, points", claims.mean_between(-5, 5), longer("normal", "paper"), ".1f"),
    Claim("Tables 6, 7", "with that number Align-ada learns as in the paper", "table", "ours less the paper's, points",
          claims.mean_between(-5, 5), longer("align_ada", "paper"), ".1f"),
    Claim("Tables 6, 7", "with that number backpropagation is better than Align-ada", "table", POINTS, MORE,
          longer("normal", "align_ada"), ".1f"),
    Claim("Tables 6, 7", "with that number Align-ada is better than Align-zero", "table", POINTS, MORE,
          longer("align_ada", "align_zero"), ".1f"),
    Claim("Tables 6, 7", "with that number Align-ada is better than the last layer alone", "table", POINTS, MORE,
          longer("align_ada", "last_layer"), ".1f"),
    Claim("Table 1", "Align-prop is better than every other rule", "table", "its accuracy less the best other, points",
          MORE, beyond_the_best, ".1f"),
    Claim("Table 2", "standard deviations over seeds are below 1 point", "0.4 to 0.7, width 256", "points",
          claims.below(1), deviations),
    Claim("Figure 3", "at rate 0.5 Align-ada, Align-zero and backpropagation are close", FIGURE,
          "range over backpropagation's distance from chance", claims.below(1 / 3), range_at_small_rate),
    Claim("Figure 3", "all rules drop sharply at rate 10", FIGURE, "decrease from rate 5, points, smaller of 2 widths",
          claims.above(3), drop_at_ten, ".1f"),
    Claim("Table 9, Figure 6", "with 45 images Align-ada is better than backpropagation", "table", POINTS, ABOVE,
          subsets(45), ".1f"),
    *(Claim("Table 9, Figure 6", f"with {images} images Align-ada is comparable to backpropagation", "table",
            "difference over backpropagation's distance from chance", claims.between(-1 / 3, 1 / 3),
            subsets(images, learned_difference)) for images in (150, 450)),
    Claim("Table 10", "with Adam Align-ada is behind", "table", POINTS, MORE,
          better("table_10", "normal", "align_ada", setting="150 epochs"), ".1f"),
    Claim("Table 10", "with Adam Align-zero is unstable", "15 to 17 %",
          "distance from chance over that of backpropagation", claims.below(0.5),
          better("table_10", "align_zero", "normal", learned_part, setting="150 epochs")),
    Claim("Table 10", "with Adam the gap is narrower after one epoch", "table", "decrease of the gap, points", MORE,
          narrower_gap, ".1f"),
    Claim("Table 8", "the printed losses of the Add task", "table", "largest difference of the published seed",
          claims.below(0.005), printed_losses("table_8"), ".4f"),
    Claim("Table 8", "those of 1,024 and 2,048 units", "table", "largest difference of the published seed",
          claims.below(0.005), printed_losses("table_8_wider"), ".4f"),
    *(Claim("Table 8, Figure 9", f"{RULE_NAMES[rule]} nears backpropagation with width, Add task", FIGURE,
            "decrease of the excess test loss", ABOVE, shrinking_excess(rule), ".3f")
      for rule in ("align_ada", "align_zero")),
    *(Claim("Table 8, Figure 9", f"{RULE_NAMES[rule]} is far better than the readout alone, Add task", FIGURE,
            "ratio of the test losses", claims.above(2), readout_ratio(rule)) for rule in ("align_ada", "align_zero")),
    *(Claim("Table 8", f"the printed test losses are those of typical seeds, {width} units", "one seed",
            "distance from the mean of 5 other seeds, deviations", claims.below(2), printed_among_seeds(width), ".1f")
      for width in (8, 128)),
    *(Claim("Proposition 2", f"outputs differ by O(1 / √m), {title}", "proof" if name == "tanh" else "not covered",
            "exponent of m", claims.not_above(-0.5), exponents("figure_proposition_2", activation=name))
      for name, title in ACTIVATIONS.items()),
    *(Claim(place, text, "proof" if limit else "text", "exponent of m", claims.not_above(limit),
            exponents("figure_limits", quantity=name)) for name, place, text, limit in _LIMITS),
    Claim("Figure 2", "updates are more like backpropagation's in a wide network", FIGURE,
          "cosine at width 1,024 less that at 8", ABOVE, closer_updates, ".4f"),
    Claim("Figure 7", "a step costs a fixed factor", FIGURE, "range of the ratio to backpropagation over widths",
          claims.below(0.2), range_of_ratios),
    Claim("Figure 7", "a step of Align-zero is faster than one of Align-ada", FIGURE, "difference of the ratios",
          ABOVE, slower_align_ada),
)  # fmt: skip
"""Every claim of the paper that is examined."""


def table(source: Source) -> Artifact:
    """Every claim, judged by the files in the folder of results."""
    return claims.judge(CLAIMS, source.output)
