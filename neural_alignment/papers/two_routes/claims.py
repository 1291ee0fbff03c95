"""Claims of Kunin et al. 2020 that compare two rules, judged by the runs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from neural_alignment.papers import tables
from neural_alignment.papers.claims import LEAST, NOT_YET, TOO_FEW, UNDECIDED, Unpaired, reach
from neural_alignment.papers.registry import Source
from neural_alignment.papers.two_routes.runs import MODELS, PRINTED
from neural_alignment.papers.two_routes.tables import percent, run_rows
from neural_alignment.reporting import Artifact, Row, Spread

MARGIN = 2.0
"""Points of top-1 within which two rules count as equal.

40 of the lab's 2,000 validation images; at 45 % the binomial standard error of one run's accuracy is 1.1 points. The
margin is fixed: a wide spread over seeds does not make rules equal."""

FAR = 5.0
"""Points of top-1 beyond which a rule counts as far behind."""

COLUMNS = (
    *("claim", "model", "noise_variance", "rule", "other", "rule_top1", "other_top1", "rule_drop", "other_drop"),
    *("difference", "standard_error", "freedom", "margin", "seeds", "paper_difference", "verdict"),
)


class Claim(NamedTuple):
    """The claim that one rule is equal to another, or better.

    Attributes:
        text: the claim, and its place in the paper.
        rule: the rule it is about.
        other: the rule it is compared with.
        better: whether the claim is "better"; otherwise it is "equal".
        noisy: whether the claim is about the cost of noisy updates: the drop of top-1 from runs without noise.
        margin: points of top-1 by which the rule must be better, or within which it must be equal.
        models: networks the claim is about; empty for all.
    """

    text: str
    rule: str
    other: str
    better: bool = True
    noisy: bool = False
    margin: float = 0.0
    models: tuple[str, ...] = ()


_EQUAL = {"better": False, "margin": MARGIN}

KP = ("kolen_pollack", "backprop")
RESNETS, V2_RESNETS = ("resnet18", "resnet50"), ("resnet50v2", "resnet101v2", "resnet152v2")

CLAIMS = (
    Claim("SA matches backpropagation (Table 4)", "symmetric", "backprop", **_EQUAL),
    Claim("AA matches backpropagation (Table 4)", "activation", "backprop", **_EQUAL),
    Claim("IA is above WM, on other networks too (Table 3, Figure 3)", "information", "weight_mirror"),
    Claim("IA is above WM+AD, on other networks too (Table 3, Figure 3)", "information", "weight_mirror_adam"),
    Claim("IA is above WM+AD+OPS, on other networks too (Table 3, Figure 3)", "information", "weight_mirror_adam_ops"),
    Claim("backpropagation is far above feedback alignment", "backprop", "feedback", margin=FAR),
    Claim("KP matches backpropagation on ResNet-18 and ResNet-50 (Figure S5)", *KP, models=RESNETS, **_EQUAL),
    Claim("backpropagation is above KP on v2 networks (Figure S5)", *KP[::-1], models=V2_RESNETS),
    Claim("SA loses less to noisy updates than backpropagation (Figure 5)", "symmetric", "backprop", noisy=True),
    Claim("AA loses less to noisy updates than backpropagation (Figure S1)", "activation", "backprop", noisy=True),
    Claim("KP loses less to noisy updates than backpropagation (Figure S1)", "kolen_pollack", "backprop", noisy=True),
)


class Accuracies(NamedTuple):
    """The runs of a rule on a network at a variance of the noise: their top-1 in percent, as a spread and as text."""

    top1: Spread
    text: str


def table(source: Source) -> Artifact:
    """Every claim on every network, and at every variance of the noise, for which both rules are planned.

    The difference is the difference of the means over seeds, in points of top-1; its standard error and degrees of
    freedom follow from those of the means. Under noise the drops are compared: the mean without noise minus the mean
    with noise.
    """
    found = tables.grouped(run_rows(source), "model", "noise_variance", "rule")
    groups = {}
    for cell in source.cells:
        key = cell.labels["model"], cell.labels.get("noise_variance"), cell.labels["rule"]
        # Tables and figures share runs, and each counts once.
        own = [*{row["seed"]: row for row in found.get(key, ())}.values()]
        groups[key] = Accuracies(tables.spread(own, "top1", 100), percent(own, cell, "top1"))
    rows = [row for claim in CLAIMS for row in _compared(claim, groups)]
    columns = {
        "claim": "claim",
        "network": lambda own: _network(own[0]),
        "rule (%)": lambda own: own[0]["rule_top1"] + _number(own[0]["rule_drop"], " (lost {:.2f})"),
        "compared with (%)": lambda own: own[0]["other_top1"] + _number(own[0]["other_drop"], " (lost {:.2f})"),
        "difference": lambda own: _number(own[0]["difference"]) + _number(own[0]["standard_error"], " ± {:.2f}"),
        "paper's difference": lambda own: _number(own[0]["paper_difference"]) or "-",
        "at this size": "verdict",
    }
    return Artifact(COLUMNS, rows, tables.table(rows, ("claim", "model", "noise_variance"), columns))


def _network(row: Row) -> str:
    """Returns the name of the network of a row, and the variance of the noise if there is any."""
    return MODELS[row["model"]] + (f", variance {row['noise_variance']:g}" if row["noise_variance"] else "")


def _number(value: float, form: str = "{:+.2f}") -> str:
    """Returns a number as text; an empty text if it is missing."""
    return "" if math.isnan(value) else form.format(value)


def _compared(claim: Claim, groups: Mapping[tuple, Accuracies]) -> Iterator[Row]:
    """Yields a row for every network and noise at which both rules are planned.

    `groups` maps network, variance of the noise (`None` in files without noise) and rule to the runs.
    """
    for model, variance in dict.fromkeys(key[:2] for key in groups):
        noises = (variance, 0.0) if claim.noisy else (variance,)
        keys = [(model, noise, rule) for noise in noises for rule in (claim.rule, claim.other)]
        due = bool(variance) if claim.noisy else variance is None
        if due and all(key in groups for key in keys) and (not claim.models or model in claim.models):
            yield _row(claim, model, variance or 0.0, [groups[key] for key in keys])


def _row(claim: Claim, model: str, variance: float, groups: Sequence[Accuracies]) -> Row:
    """Judges a claim on one network; `groups` are both rules, and if it is about noise both without noise."""
    ours, others, *still = parts = [group.top1 for group in groups]
    drops = [before.mean - after.mean for before, after in zip(still, (ours, others), strict=False)]
    drops = drops or [math.nan, math.nan]
    found = Unpaired.of([ours, *still[1:]], [others, *still[:1]])
    seeds, difference = min(len(part.known) for part in parts), found.mean
    error, freedom = (found.error, found.freedom) if seeds > 1 else (math.nan, math.nan)
    rules = (claim.rule, claim.other)
    printed = [PRINTED.get((model, rule), {}).get("top1", math.nan) for rule in rules]
    values = (claim.text, model, variance, *rules, groups[0].text, groups[1].text, *drops, difference, error, freedom)
    paper = math.nan if variance else printed[0] - printed[1]
    said = verdict(claim, difference, reach(error, freedom)) if seeds >= LEAST else TOO_FEW if seeds else NOT_YET
    return dict(zip(COLUMNS, (*values, claim.margin, seeds, paper, said), strict=True))


def verdict(claim: Claim, difference: float, distance: float) -> str:
    """Returns whether a claim holds, from the interval of a difference.

    "Better" holds if the whole interval exceeds the margin, and is contradicted if the whole interval is below it.
    "Equal" holds if the whole interval lies within the margin. In the other cases more seeds are needed if the interval
    contains the margin or, for "equal", 0.

    Args:
        claim: the claim.
        difference: top-1 of the rule minus that of the other, or the difference of their drops.
        distance: distance from the difference to either end of its interval.
    """
    if claim.better:
        if difference - distance > claim.margin:
            return "shows"
        return "contradicted" if difference + distance < claim.margin else UNDECIDED
    if abs(difference) + distance <= claim.margin:
        return "matches"
    if abs(difference) <= distance:
        return "not told apart"
    return "is ahead" if difference > 0 else "is behind"
