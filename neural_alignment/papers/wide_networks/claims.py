"""Claims of Boopathy and Fiete 2022, judged by the files of their tables and figures."""

from __future__ import annotations

import contextlib
import itertools
import math
import operator
import statistics
from typing import Any

from neural_alignment.papers import claims
from neural_alignment.papers.claims import (
    ByCase,
    NotYetRunError,
    ResultFiles,
    Seeds,
    contrast,
    increases,
    spreads,
    values,
)
from neural_alignment.papers.claims import PaperClaim as Claim
from neural_alignment.papers.registry import Source
from neural_alignment.papers.tables import grouped
from neural_alignment.papers.wide_networks import rows as tidy
from neural_alignment.papers.wide_networks.compute.add_task import PUBLISHED_SEED
from neural_alignment.papers.wide_networks.printed import BY_WIDTH, CHANCE, TABLE_2, WIDTHS
from neural_alignment.papers.wide_networks.runs import ACTIVATIONS, RULE_NAMES, SCORED, SHOWN_UPDATES, WITHOUT_PROP
from neural_alignment.reporting import Artifact, Row, Spread

GUESSED = 10.0
"""Accuracy of chance, percent."""

ONE_SEED = 3.5
"""Points to either end of the interval of a difference of two accuracies with one seed.

Twice the standard deviation of the difference of two rules with the same seed: 1.7 points, the root mean square over
the pairs of rules of Table 2."""

ONE_SHARE = 0.25
"""The same over backpropagation's distance from chance, which is about 14 points."""

HALF_RATE = 0.25
"""Margin of an exponent: half the distance of the rates that the paper tells apart, 1, 1 / √m and 1 / m."""

ABOVE, MORE = claims.above(), claims.above(0, single=ONE_SEED)
POINTS, FIGURE, TABLE = "difference, points", "figure", "table"
ALIGN = ("align_ada", "align_zero")
WIDE = 128
"""Units from which a recurrent network is called wide: the widest of several seeds."""

OTHERS = tuple(rule for rule in WITHOUT_PROP if rule not in ("normal", "align_ada"))


def _accuracy(row: Row) -> float:
    """Returns an accuracy; that of chance where J became infinite in the first epoch."""
    return GUESSED if math.isnan(row["validation_accuracy"]) else row["validation_accuracy"]


def _loss(row: Row) -> float:
    """Returns a test loss on the Add task; that of chance where J became infinite in the first epoch."""
    return CHANCE.test if math.isnan(row["test_loss"]) else row["test_loss"]


def _share(distance: float, whole: float) -> float:
    """Returns a distance over that of another rule from chance; NaN if that rule is at chance."""
    return distance / whole if whole else math.nan


def _rule(row: Row) -> str:
    return RULE_NAMES[row["rule"]]


def _one(row: Row) -> int:
    """Stands for the seed where all seeds, or no seeds, make one value."""
    return 0


def _case(row: Row) -> str:
    return f"{row['dataset']} x{row['width']}"


def by_width(name: str, **labels: Any) -> ByCase:
    """Returns accuracies by width; of several rates the best one."""
    return values(name, _accuracy, "width", combine=max, **labels)


def better(name: str, rule: str, other: str, **labels: Any) -> ByCase:
    """Returns accuracies of a rule minus those of another, by width."""
    return contrast(by_width(name, rule=rule, **labels), by_width(name, rule=other, **labels))


def with_more_seeds(found: ByCase, more: ByCase) -> ByCase:
    """Returns the values of both functions by case and seed; the first must have values, and its cases count."""

    def find(files: ResultFiles) -> dict[Any, Seeds]:
        cases, others = found(files), {}
        with contextlib.suppress(NotYetRunError):
            others = more(files)
        return {case: {**others.get(case, {}), **seeds} for case, seeds in cases.items()}

    return find


def shares(name: str, rule: str, other: str, **labels: Any) -> ByCase:
    """Returns the distance from chance of a rule over that of another, by width."""
    accuracies = (by_width(name, rule=each, **labels) for each in (rule, other))
    return contrast(*accuracies, lambda ours, theirs: _share(ours - GUESSED, theirs - GUESSED))


def best(name: str) -> ByCase:
    """Returns accuracies of Align-ada at width 64 minus those of each other rule except backpropagation."""
    ours = by_width(name, width=64, rule="align_ada")

    def find(files: ResultFiles) -> dict[str, dict]:
        found = {}
        for rule in OTHERS:
            with contextlib.suppress(NotYetRunError):
                found[RULE_NAMES[rule]] = contrast(ours, by_width(name, rule=rule))(files).get(64, {})
        return {rule: seeds for rule, seeds in found.items() if seeds}

    return find


def subsets(images: int, relative: bool) -> ByCase:
    """Returns accuracies of Align-ada minus those of backpropagation on each subset.

    Args:
        images: number of training images.
        relative: whether to divide by the accuracy of backpropagation above chance.
    """
    rules = (by_width("table_9_subsets", seed="subset", rule=r, train_images=images) for r in ("align_ada", "normal"))
    return contrast(*rules, (lambda a, b: _share(a - b, b - GUESSED)) if relative else operator.sub)


def longer(rule: str, other: str) -> ByCase:
    """Returns the accuracy of a rule minus that of another, `"paper"` for the paper's accuracy of the rule."""
    ours, theirs = (values("table_longer", _accuracy, _case, combine=max, rule=each) for each in (rule, other))
    return contrast(ours, values("table_longer", "paper_accuracy", _case, rule=rule) if other == "paper" else theirs)


def add_losses(rule: str, narrowest: int = 0) -> ByCase:
    """Returns test losses of the Add task at all widths, or from one on."""
    return values("table_8", _loss, "width", where=lambda row: row["width"] >= narrowest, rule=rule)


def printed_losses(name: str) -> ByCase:
    """Returns the largest difference to a printed loss, by rule."""

    def away(row: Row) -> float:
        return max(abs(row[f"{part}_loss"] - row[f"paper_{part}_loss"]) for part in ("train", "test"))

    return values(name, away, _rule, combine=max, where=lambda row: row["seed"] == PUBLISHED_SEED, seed=_one)


def several_rules(rows: ByCase) -> ByCase:
    """Returns the range of the accuracies of several rules over that of backpropagation above chance.

    Args:
        rows: accuracies by case and, in place of the seed, by rule.
    """

    def find(files: ResultFiles) -> dict[Any, dict]:
        return {
            case: {0: _share(max(rules.values()) - min(rules.values()), rules["normal"] - GUESSED)}
            for case, rules in rows(files).items()
            if {"normal", *ALIGN} <= {*rules}
        }

    return find


def deviations(rows: ByCase) -> ByCase:
    """Returns the standard deviation over the seeds of each case that has several."""

    def find(files: ResultFiles) -> dict[Any, dict]:
        return {case: {0: statistics.stdev(seeds.values())} for case, seeds in rows(files).items() if len(seeds) > 1}

    return find


def deviations_away(losses: list[float]) -> float:
    """Returns the distance of the first loss from the mean of the others, in their standard deviations."""
    return abs(losses[0] - statistics.fmean(losses[1:])) / statistics.stdev(losses[1:])


def _seconds(rule: str, other: str) -> ByCase:
    """Returns the seconds of a step of a rule over those of another in the same round, by width."""
    return contrast(*(values("figure_7", "seconds", "width", "round", rule=each) for each in (rule, other)),
                    operator.truediv)  # fmt: skip


def exponents(name: str, **labels: Any) -> Any:
    """Returns the fitted exponents of the width at the end of training, by rule."""

    def find(files: ResultFiles) -> dict[str, Spread]:
        rows = files.rows(name, **labels)
        last = max(row.get("step", 0) for row in rows)
        groups = grouped((row for row in rows if row.get("step", 0) == last), _rule).items()
        return {rule: tidy.exponent(own)[0] for (rule,), own in groups}

    return find


def _of_scores(name: str, title: str, number: int) -> tuple[Claim, ...]:
    """Returns the claims about Table 3, 4 or 5."""
    table, file = f"Table {number}", f"table_{number}"
    layers = (1, max(layer for layer, _ in SCORED[name].paper))
    ends = (values(file, "score", "width", layer=layer) for layer in layers)
    permuted = values(file, lambda row: row["permuted_score"] / row["score"], "width", combine=max)
    return (
        Claim(table, f"scores rise with width, {title}", "text; not in each column", "increase of the mean over layers",
              ABOVE, spreads(increases(values(file, "score", "width"))), ".3f"),
        Claim(f"{table}, Figure 8", f"permuted weights score low, {title}", FIGURE,
              "ratio to the score, largest of the layers", claims.below(0.5), spreads(permuted, "x{}")),
        Claim(table, f"the last layer scores lower than the first, {title}", "text", "difference", ABOVE,
              spreads(contrast(*ends), "x{}"), ".3f"),
    )  # fmt: skip


def _of_training(name: str, title: str) -> Claim:
    """Returns the claim about the scores over training."""
    ends = (values("figure_8", "score", "width", setting=name, epoch=SCORED[name].moments[end]) for end in (0, -1))
    return Claim("Figure 8", f"scores fall over training, {title}", FIGURE, "decrease of the mean over layers", ABOVE,
                 spreads(contrast(*ends), "x{}"), ".3f")  # fmt: skip


def _of_accuracies(dataset: str, title: str, number: int) -> tuple[Claim, ...]:
    """Returns the claims about Table 6 or 7."""
    table, file = f"Table {number}", f"table_{number}"
    (narrow, wide), printed = (WIDTHS[0], WIDTHS[-1]), BY_WIDTH[dataset]
    gaps = [printed["normal"][width] - printed["align_ada"][width] for width in (narrow, wide)]
    names = {"align_zero": "Align-zero", "last_layer": "the last layer alone"}

    def of_seeds(rule: str) -> ByCase:
        own = by_width(file, rule=rule)
        return with_more_seeds(own, by_width("table_2", rule=rule)) if dataset == "cifar10" else own

    return (
        *(Claim(table, f"Align-ada is better than {name}, {title}", TABLE, POINTS, MORE,
                spreads(contrast(of_seeds("align_ada"), of_seeds(rule)), "x{}"), ".1f")
          for rule, name in names.items()),
        Claim(table, f"Align-zero improves with width, {title}", TABLE, "increase, points", MORE,
              spreads(increases(by_width(file, rule="align_zero"))), ".1f"),
        Claim(table, f"at width 64 Align-ada is better than each rule except backpropagation, {title}",
              "at 512; at 64 as good as DFA", POINTS, MORE, spreads(best(file)), ".1f"),
        Claim(f"{table}, Figure 4", f"Align-ada nears backpropagation with width, {title}",
              f"from {gaps[0]:.1f} points to {gaps[1]:.1f} at {wide}", "decrease of the gap, points", ABOVE,
              spreads(increases(better("table_seeds", "align_ada", "normal", dataset=dataset)))),
    )  # fmt: skip


_LONGER = (
    ("backpropagation learns as in the paper", "normal", "paper", "ours minus the paper's, points"),
    ("Align-ada learns as in the paper", "align_ada", "paper", "ours minus the paper's, points"),
    ("backpropagation is better than Align-ada", "normal", "align_ada", POINTS),
    ("Align-ada is better than Align-zero", "align_ada", "align_zero", POINTS),
    ("Align-ada is better than the last layer alone", "align_ada", "last_layer", POINTS),
)
_LIMITS = (
    ("proposition_1", "Proposition 1", "Σ / m nears Δ, the difference over √m is O(1 / m)", -1),
    ("activations", "Lemma 1", "activations change by O(1 / √m), equation 19", -0.5),
    ("weights", "Lemma 1", "weights of layers 2 to 4 change by O(1 / √m), equation 20", -0.5),
    ("first_weights", "Lemma 1", "those of layer 1, whose 64 inputs are fixed, do as well", -0.5),
    ("jacobian", "Lemma 1", "the Jacobian changes by O(1 / √m), equation 21", -0.5),
    ("linearised", "Equation 57", "Align-zero nears its linearised network, as O(1 / √m)", -0.5),
)
_ADAM = {"setting": "150 epochs"}

CLAIMS: tuple[Claim, ...] = (
    *_of_scores("cifar10", "CIFAR-10", 3),
    *_of_scores("kmnist", "KMNIST", 4),
    *_of_scores("cifar10_tanh", "tanh", 5),
    _of_training("cifar10", "CIFAR-10"),
    _of_training("kmnist", "KMNIST"),
    *_of_accuracies("cifar10", "CIFAR-10", 6),
    *_of_accuracies("kmnist", "KMNIST", 7),
    *(Claim("Tables 6, 7", f"with the paper's number of updates {text}", TABLE, quantity,
            claims.mean_between(-5, 5) if other == "paper" else MORE, spreads(longer(rule, other)), ".1f")
      for text, rule, other, quantity in _LONGER),
    Claim("Table 1", "Align-prop is better than every rule except backpropagation", TABLE,
          "its accuracy minus the best other, points", MORE,
          spreads(contrast(by_width("table_1", rule="align_prop"),
                           by_width("table_1", where=lambda row: row["rule"] in ("align_ada", *OTHERS))), "x{}"),
          ".1f"),
    Claim("Table 2", "standard deviations over five seeds are below 1 point", "0.4 to 0.7, width 256", "points",
          claims.mean_below(1), spreads(deviations(values("table_2", _accuracy, _rule,
                                                     where=lambda row: row["rule"] in TABLE_2)))),
    Claim("Figure 3", "Align-ada, Align-zero and backpropagation are closer at rate 0.5 than at rate 5", FIGURE,
          "increase of their range over backpropagation's distance from chance", claims.above(0, single=ONE_SHARE),
          spreads(contrast(*(several_rules(values("figure_3", _accuracy, _case, "rule", rate=rate,
                                                  where=lambda row: row["rule"] in ("normal", *ALIGN)))
                             for rate in (5, 0.5))))),
    Claim("Figure 3", "all rules drop sharply at rate 10", FIGURE, "decrease from rate 5, points",
          claims.above(3, single=ONE_SEED),
          spreads(contrast(*(values("figure_3", _accuracy, lambda row: f"{_rule(row)} {_case(row)}", rate=rate)
                             for rate in (5, 10)))), ".1f"),
    Claim("Table 9, Figure 6", "with 45 images Align-ada is better than backpropagation", TABLE, POINTS, ABOVE,
          spreads(subsets(45, relative=False), "x{}"), ".1f"),
    *(Claim("Table 9, Figure 6", f"with {images} images Align-ada is comparable to backpropagation", TABLE,
            "difference over backpropagation's distance from chance", claims.between(-0.33, 0.33),
            spreads(subsets(images, relative=True), "x{}")) for images in (150, 450)),
    Claim("Table 10", "with Adam Align-ada is behind", TABLE, POINTS, MORE,
          spreads(better("table_10", "normal", "align_ada", **_ADAM), "x{}"), ".1f"),
    Claim("Table 10", "with Adam Align-zero is unstable: closer to chance than to Align-ada", TABLE,
          "distance from chance over that of Align-ada", claims.below(0.5, single=ONE_SHARE),
          spreads(shares("table_10", "align_zero", "align_ada", **_ADAM), "x{}")),
    Claim("Table 10", "with Adam Align-ada is nearer to backpropagation after one epoch", TABLE,
          "increase of its distance from chance over that of backpropagation", claims.above(0, single=ONE_SHARE),
          spreads(contrast(*(shares("table_10", "align_ada", "normal", setting=setting)
                             for setting in ("1 epoch", "150 epochs"))), "x{}")),
    *(Claim("Table 8", text, TABLE, "largest difference of the published seed", claims.mean_below(0.005),
            spreads(printed_losses(name)), ".4f") for name, text in (
        ("table_8", "the printed losses of the Add task"), ("table_8_wider", "those of 1,024 and 2,048 units"))),
    *(Claim("Table 8, Figure 9", f"{RULE_NAMES[rule]} nears backpropagation with width, Add task", FIGURE,
            "decrease of the excess test loss", ABOVE,
            spreads(increases(contrast(add_losses("normal"), add_losses(rule)))), ".3f")
      for rule in ALIGN),
    *(Claim("Table 8, Figure 9", f"{RULE_NAMES[rule]} is far better than the readout alone in wide networks, Add task",
            FIGURE, "ratio of the test losses", claims.above(2),
            spreads(contrast(add_losses("readout_only", WIDE), add_losses(rule, WIDE), operator.truediv), "x{}"))
      for rule in ALIGN),
    *(Claim("Table 8", f"the test losses of the published seed are typical, {width} units", "one seed",
            "distance from the mean of 5 other seeds, deviations", claims.mean_below(2),
            spreads(values("table_8", _loss, _rule, _one, width=width, combine=deviations_away)), ".1f")
      for width in (8, 128)),
    *(Claim("Proposition 2", f"outputs differ by O(1 / √m), {title}", "proof" if name == "tanh" else "not covered",
            "exponent of m", claims.not_above(-0.5, HALF_RATE), exponents("figure_proposition_2", activation=name))
      for name, title in ACTIVATIONS.items()),
    *(Claim(place, text, "text" if name == "linearised" else "proof", "exponent of m",
            claims.not_above(limit, HALF_RATE), exponents("figure_limits", quantity=name))
      for name, place, text, limit in _LIMITS),
    *(Claim("Figure 2", f"updates of {RULE_NAMES[rule]} are more like backpropagation's in a wide network", FIGURE,
            "increase of the cosine", ABOVE,
            spreads(increases(values("figure_proposition_2", "cosine", "width", activation="tanh", rule=rule, step=200,
                                     where=lambda row: row["width"] in SHOWN_UPDATES))), ".4f") for rule in ALIGN),
    *(Claim("Figure 7", f"a step of {RULE_NAMES[rule]} costs a fixed factor", FIGURE,
            "difference of the ratios to backpropagation at two widths", claims.between(-0.2, 0.2),
            spreads(increases(_seconds(rule, "normal"), pairs=lambda widths: itertools.combinations(widths, 2))))
      for rule in ALIGN),
    Claim("Figure 7", "a step of Align-zero is faster than one of Align-ada", FIGURE,
          "ratio of the seconds in a round", claims.below(1), spreads(_seconds(*ALIGN[::-1]), "x{}"), ".3f"),
)  # fmt: skip
"""Every claim of the paper that is examined."""


def table(source: Source) -> Artifact:
    """Every claim, judged by the files in the folder of results.

    Raises:
        InputError: if there is no such file.
    """
    return claims.table_of(CLAIMS, "wide_networks/claims", source.output, "wide_networks/limits")
