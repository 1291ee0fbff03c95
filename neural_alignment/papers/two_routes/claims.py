"""Claims of Kunin et al. 2020 that compare two rules, judged by the runs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from neural_alignment.jobs.plans import Cell
from neural_alignment.papers.registry import Source
from neural_alignment.papers.two_routes import runs as experiments
from neural_alignment.papers.two_routes.runs import MODELS, TABLE_3, TABLE_4
from neural_alignment.papers.two_routes.tables import run_rows
from neural_alignment.reporting import Artifact, Row, Spread, markdown

MARGIN = 2.0
"""Points of top-1 within which two rules count as equal.

40 of the lab's 2,000 validation images; at 45 % the binomial standard error of one run's accuracy is 1.1 points. It is
fixed, so that a wide spread over seeds makes nothing equal."""

FAR = 5.0
"""Points of top-1 beyond which a rule counts as far behind."""

COLUMNS = (
    *("claim", "model", "noise_variance", "rule", "other", "rule_top1", "other_top1", "rule_drop", "other_drop"),
    *("difference", "standard_error", "margin", "seeds", "paper_difference", "verdict"),
)


@dataclass(frozen=True)
class Claim:
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

CLAIMS = (
    Claim("SA matches backpropagation (Table 4)", "symmetric", "backprop", **_EQUAL),
    Claim("AA matches backpropagation (Table 4)", "activation", "backprop", **_EQUAL),
    Claim("IA is above WM, on other networks too (Table 3, Figure 3)", "information", "weight_mirror"),
    Claim("IA is above WM+AD, on other networks too (Table 3, Figure 3)", "information", "weight_mirror_adam"),
    Claim("backpropagation is far above feedback alignment", "backprop", "feedback", margin=FAR),
    Claim(
        "KP matches backpropagation on ResNet-18 and ResNet-50 (Figure S5)",
        rule="kolen_pollack",
        other="backprop",
        models=("resnet18", "resnet50"),
        **_EQUAL,
    ),
    Claim(
        "KP loses to backpropagation on v2 networks (Figure S5)",
        rule="backprop",
        other="kolen_pollack",
        models=("resnet50v2", "resnet101v2", "resnet152v2"),
    ),
    Claim("SA loses less to noisy updates than backpropagation (Figure 5)", "symmetric", "backprop", noisy=True),
    Claim("AA does (Figure S1)", "activation", "backprop", noisy=True),
    Claim("KP does (Figure S1)", "kolen_pollack", "backprop", noisy=True),
)


def cells(profile: str) -> list[Cell]:
    """Returns the runs that the claims compare."""
    rules = ("backprop", "symmetric", "activation", "kolen_pollack")
    plans = (
        experiments.table_3(),
        experiments.transfer(experiments.TRANSFER),
        experiments.transfer(("kolen_pollack", "backprop")),
        experiments.noise(rules, "resnet18"),
        experiments.noise(("backprop", "symmetric"), "resnet50"),
    )
    return [cell for plan in plans for cell in plan[profile]]


def table(source: Source) -> Artifact:
    """Every claim on every network, and at every variance of the noise, for which there are runs.

    The difference is the difference of the means over seeds, in points of top-1; its standard error follows from those
    of the means. Under noise the drops are compared: the mean without noise minus the mean with noise.
    """
    groups = _grouped(run_rows(source, source.read()))
    found = [row for claim in CLAIMS for row in _compared(claim, groups)]
    lines = [
        [
            row["claim"],
            MODELS[row["model"]] + (f", variance {row['noise_variance']:g}" if row["noise_variance"] else ""),
            _value(row, "rule"),
            _value(row, "other"),
            f"{row['difference']:+.2f} ± {row['standard_error']:.2f}",
            "-" if math.isnan(row["paper_difference"]) else f"{row['paper_difference']:+.2f}",
            row["verdict"],
        ]
        for row in found
    ]
    names = ["claim", "network", "rule (%)", "compared with (%)", "difference", "paper's difference", "at this size"]
    text = markdown(names, lines) if lines else "No claim has the runs it is about."
    return Artifact(COLUMNS, found, text)


def _value(row: Row, which: str) -> str:
    """Returns the mean of a rule as text, with its drop under noise."""
    lost = f" (lost {row[f'{which}_drop']:.2f})" if row["noise_variance"] else ""
    return f"{row[f'{which}_top1']}{lost}"


Groups = dict[tuple[str, float | None], dict[str, Spread]]
"""Network and variance of the noise (`None` in files without noise) -> rule -> its top-1 in percent."""


def _grouped(rows: Sequence[Row]) -> Groups:
    """Returns the runs by network and noise, each once although tables and figures share runs."""
    found: dict[tuple[str, float | None], dict[str, dict[int, float]]] = {}
    for row in rows:
        group = found.setdefault((row["model"], row.get("noise_variance")), {})
        group.setdefault(row["rule"], {})[row["seed"]] = 100 * row["top1"]
    return {key: {rule: Spread([*seeds.values()]) for rule, seeds in group.items()} for key, group in found.items()}


def _compared(claim: Claim, groups: Groups) -> Iterator[Row]:
    """Yields a row for every network and noise at which both rules have runs."""
    for (model, variance), group in groups.items():
        still = groups.get((model, 0.0), {}) if claim.noisy else {}
        due = bool(variance) if claim.noisy else variance is None
        there = all(rule in group and (not claim.noisy or rule in still) for rule in (claim.rule, claim.other))
        if due and there and (not claim.models or model in claim.models):
            yield _row(claim, model, variance or 0.0, group, still)


def _row(claim: Claim, model: str, variance: float, group: dict[str, Spread], still: dict[str, Spread]) -> Row:
    """Judges a claim on one network; `still` has the runs without noise if the claim is about noise."""
    rules = (claim.rule, claim.other)
    parts = [runs[rule] for runs in (group, still) if runs for rule in rules]
    drops = [still[rule].mean - group[rule].mean if still else math.nan for rule in rules]
    difference = drops[1] - drops[0] if still else group[claim.rule].mean - group[claim.other].mean
    error = math.hypot(*(part.error for part in parts))
    seeds = min(len(part.known) for part in parts)
    return {
        "claim": claim.text,
        "model": model,
        "noise_variance": variance,
        "rule": claim.rule,
        "other": claim.other,
        "rule_top1": str(group[claim.rule]),
        "other_top1": str(group[claim.other]),
        "rule_drop": drops[0],
        "other_drop": drops[1],
        "difference": difference,
        "standard_error": error,
        "margin": claim.margin,
        "seeds": seeds,
        "paper_difference": math.nan if variance else _printed(model, claim),
        "verdict": verdict(claim, difference, error, seeds),
    }


def _printed(model: str, claim: Claim) -> float:
    """Returns the difference of the numbers in the paper; NaN if it prints none."""
    printed = dict(TABLE_4[model])
    if model == "resnet18":
        printed |= {rule: top1 for rule, (top1, _) in TABLE_3.items()}
    both = claim.rule in printed and claim.other in printed
    return printed[claim.rule] - printed[claim.other] if both else math.nan


def verdict(claim: Claim, difference: float, error: float, seeds: int) -> str:
    """Returns whether a claim holds, from an interval of twice the standard error on either side of the difference.

    "Better" holds if the whole interval exceeds the margin, "equal" if the whole interval lies within the margin. If a
    difference is neither, and the interval contains 0, more seeds are needed.

    Args:
        claim: the claim.
        difference: difference in points of top-1.
        error: standard error of the difference.
        seeds: number of seeds of the rule that has fewer.
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
