"""Claims of Kunin et al. 2020 that compare two rules, judged by the runs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from neural_alignment.papers import tables
from neural_alignment.papers.registry import Source
from neural_alignment.papers.two_routes.runs import MODELS, PRINTED
from neural_alignment.papers.two_routes.tables import run_rows
from neural_alignment.reporting import Artifact, Row, Spread

MARGIN = 2.0
"""Points of top-1 within which two rules count as equal.

40 of the lab's 2,000 validation images; at 45 % the binomial standard error of one run's accuracy is 1.1 points. The
margin is fixed: a wide spread over seeds does not make rules equal."""

FAR = 5.0
"""Points of top-1 beyond which a rule counts as far behind."""

COLUMNS = (
    *("claim", "model", "noise_variance", "rule", "other", "rule_top1", "other_top1", "rule_drop", "other_drop"),
    *("difference", "standard_error", "margin", "seeds", "paper_difference", "verdict"),
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
    Claim("backpropagation is far above feedback alignment", "backprop", "feedback", margin=FAR),
    Claim("KP matches backpropagation on ResNet-18 and ResNet-50 (Figure S5)", *KP, models=RESNETS, **_EQUAL),
    Claim("KP loses to backpropagation on v2 networks (Figure S5)", *KP[::-1], models=V2_RESNETS),
    Claim("SA loses less to noisy updates than backpropagation (Figure 5)", "symmetric", "backprop", noisy=True),
    Claim("AA does (Figure S1)", "activation", "backprop", noisy=True),
    Claim("KP does (Figure S1)", "kolen_pollack", "backprop", noisy=True),
)


def table(source: Source) -> Artifact:
    """Every claim on every network, and at every variance of the noise, for which there are runs.

    The difference is the difference of the means over seeds, in points of top-1; its standard error follows from those
    of the means. Under noise the drops are compared: the mean without noise minus the mean with noise.
    """
    groups = tables.grouped(run_rows(source), "model", "noise_variance", "rule")
    # Tables and figures share runs, and each counts once.
    top1 = {key: {row["seed"]: 100 * row["top1"] for row in own} for key, own in groups.items()}
    spreads = {key: Spread([*seeds.values()]) for key, seeds in top1.items()}
    rows = [row for claim in CLAIMS for row in _compared(claim, spreads)]
    columns = {
        "claim": "claim",
        "network": lambda own: MODELS[own[0]["model"]] + _if_noisy(own[0], ", variance {noise_variance:g}"),
        "rule (%)": lambda own: own[0]["rule_top1"] + _if_noisy(own[0], " (lost {rule_drop:.2f})"),
        "compared with (%)": lambda own: own[0]["other_top1"] + _if_noisy(own[0], " (lost {other_drop:.2f})"),
        "difference": lambda own: "{difference:+.2f} ± {standard_error:.2f}".format_map(own[0]),
        "paper's difference": lambda own: f"{own[0]['paper_difference']:+.2f}".replace("+nan", "-"),
        "at this size": "verdict",
    }
    text = tables.table(rows, ("claim", "model", "noise_variance"), columns)
    return Artifact(COLUMNS, rows, text if rows else "No claim has the runs it is about.")


def _if_noisy(row: Row, text: str) -> str:
    return text.format_map(row) if row["noise_variance"] else ""


def _compared(claim: Claim, spreads: Mapping[tuple, Spread]) -> Iterator[Row]:
    """Yields a row for every network and noise at which both rules have runs.

    `spreads` maps network, variance of the noise (`None` in files without noise) and rule to its top-1 in percent.
    """
    for model, variance in dict.fromkeys(key[:2] for key in spreads):
        noises = (variance, 0.0) if claim.noisy else (variance,)
        keys = [(model, noise, rule) for noise in noises for rule in (claim.rule, claim.other)]
        due = bool(variance) if claim.noisy else variance is None
        if due and all(key in spreads for key in keys) and (not claim.models or model in claim.models):
            yield _row(claim, model, variance or 0.0, [spreads[key] for key in keys])


def _row(claim: Claim, model: str, variance: float, parts: Sequence[Spread]) -> Row:
    """Judges a claim on one network; `parts` are both rules, and if it is about noise both without noise."""
    means, drops = [part.mean for part in parts], [math.nan, math.nan]
    difference = means[0] - means[1]
    if claim.noisy:
        drops = [means[2] - means[0], means[3] - means[1]]
        difference = drops[1] - drops[0]
    error, seeds = math.hypot(*(part.error for part in parts)), min(len(part.known) for part in parts)
    rules = (claim.rule, claim.other)
    ours, others = (PRINTED.get((model, rule), {}).get("top1", math.nan) for rule in rules)
    values = (claim.text, model, variance, *rules, str(parts[0]), str(parts[1]), *drops, difference, error)
    judged = (math.nan if variance else ours - others, verdict(claim, difference, error, seeds))
    return dict(zip(COLUMNS, (*values, claim.margin, seeds, *judged), strict=True))


def verdict(claim: Claim, difference: float, error: float, seeds: int) -> str:
    """Returns whether a claim holds, from an interval of twice the standard error on either side of the difference.

    "Better" holds if the whole interval exceeds the margin, "equal" if the whole interval lies within the margin. If a
    difference is neither, and the interval contains 0, more seeds are needed; `seeds` is the smaller number of both.
    """
    if seeds < 3:
        return f"{seeds} of 3 seeds: not said"
    if claim.better:
        return "shows" if difference - 2 * error > claim.margin else "does not show"
    if abs(difference) + 2 * error <= claim.margin:
        return "matches"
    if abs(difference) <= 2 * error:
        return "not told apart"
    return "is ahead" if difference > 0 else "is behind"
