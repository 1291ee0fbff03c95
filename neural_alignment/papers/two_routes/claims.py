"""The claims of Kunin et al. 2020 that compare two rules, each with what the runs say of it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from neural_alignment.papers.output import Product, Row, Spread, markdown
from neural_alignment.papers.plans import Cell
from neural_alignment.papers.registry import Source
from neural_alignment.papers.two_routes import experiments
from neural_alignment.papers.two_routes.experiments import MODELS, TABLE_3, TABLE_4
from neural_alignment.papers.two_routes.tables import run_rows

CLOSE = 1.0
"""Points of top-1 within which two rules are called equal whatever the spread over seeds."""

COLUMNS = (
    *("claim", "model", "noise_variance", "rule", "other", "rule_top1", "other_top1"),
    *("difference", "standard_error", "seeds", "paper_difference", "verdict"),
)


@dataclass(frozen=True)
class Claim:
    """One rule is as good as another, or better.

    Attributes:
        text: what the paper says, and where.
        rule: the rule it is about.
        other: the rule it is compared with.
        better: whether it is said to be better; else equal.
        noisy: whether it is said of noisy updates.
    """

    text: str
    rule: str
    other: str
    better: bool = True
    noisy: bool = False


CLAIMS = (
    Claim("SA matches backpropagation (Table 4)", "symmetric", "backprop", better=False),
    Claim("AA matches backpropagation (Table 4)", "activation", "backprop", better=False),
    Claim("IA is above WM, on other networks too (Table 3, Figure 3)", "information", "weight_mirror"),
    Claim("backpropagation is above feedback alignment", "backprop", "feedback"),
    Claim("SA bears noisy updates better than backpropagation (Figure 5)", "symmetric", "backprop", noisy=True),
    Claim("AA does (Figure S1)", "activation", "backprop", noisy=True),
    Claim("KP does (Figure S1)", "kolen_pollack", "backprop", noisy=True),
)


def cells(profile: str) -> list[Cell]:
    """Returns the runs that the claims are about."""
    rules = ("backprop", "symmetric", "activation", "kolen_pollack")
    plans = (
        experiments.table_3(),
        experiments.transfer(experiments.TRANSFER),
        experiments.noise(rules, "resnet18"),
        experiments.noise(("backprop", "symmetric"), "resnet50"),
    )
    return [cell for plan in plans for cell in plan[profile]]


def table(source: Source) -> Product:
    """Every claim on every network and at every noise for which there are runs.

    The difference is that of the means over seeds, in points of top-1; its standard error follows from those of the two
    means. "Shows" is said of a difference above twice that, "matches" of one below it or below one point.
    """
    rows = _unique(run_rows(source, source.read()))
    found = [row for claim in CLAIMS for row in _compared(claim, rows)]
    lines = [
        [
            row["claim"],
            MODELS[row["model"]] + (f", variance {row['noise_variance']:g}" if row["noise_variance"] else ""),
            row["rule_top1"],
            row["other_top1"],
            f"{row['difference']:+.2f} ± {row['standard_error']:.2f}",
            "-" if math.isnan(row["paper_difference"]) else f"{row['paper_difference']:+.2f}",
            row["verdict"],
        ]
        for row in found
    ]
    names = ["claim", "network", "rule (%)", "compared with (%)", "difference", "paper's difference", "at this size"]
    text = markdown(names, lines) if lines else "No claim has the runs it is about."
    return Product(COLUMNS, found, text)


def _unique(rows: Sequence[Row]) -> list[Row]:
    """Returns each run once: tables and figures share them."""
    return list({(r["model"], r["rule"], r.get("noise_variance", 0.0), r["seed"]): r for r in rows}.values())


def _compared(claim: Claim, rows: Sequence[Row]) -> Iterator[Row]:
    """Returns a row for every network, and noise, at which both rules have runs."""
    groups: dict[tuple[str, float], dict[str, list[float]]] = {}
    for row in rows:
        variance = row.get("noise_variance", 0.0)
        if bool(variance) == claim.noisy:
            group = groups.setdefault((row["model"], variance), {})
            group.setdefault(row["rule"], []).append(100 * row["top1"])
    for (model, variance), group in groups.items():
        if claim.rule in group and claim.other in group:
            ours, others = Spread(group[claim.rule]), Spread(group[claim.other])
            difference, error = ours.mean - others.mean, math.hypot(ours.error, others.error)
            seeds = min(len(ours.known), len(others.known))
            yield {
                "claim": claim.text,
                "model": model,
                "noise_variance": variance,
                "rule": claim.rule,
                "other": claim.other,
                "rule_top1": str(ours),
                "other_top1": str(others),
                "difference": difference,
                "standard_error": error,
                "seeds": seeds,
                "paper_difference": _printed(model, claim) if not variance else math.nan,
                "verdict": _verdict(claim, difference, error, seeds),
            }


def _printed(model: str, claim: Claim) -> float:
    """Returns the difference of the paper's own numbers; NaN where it prints none."""
    printed = dict(TABLE_4[model])
    if model == "resnet18":
        printed |= {rule: top1 for rule, (top1, _) in TABLE_3.items()}
    both = claim.rule in printed and claim.other in printed
    return printed[claim.rule] - printed[claim.other] if both else math.nan


def _verdict(claim: Claim, difference: float, error: float, seeds: int) -> str:
    """Says whether a claim shows: better by more than twice the standard error, or equal within it."""
    if seeds < 3:
        return f"{seeds} of 3 seeds: not said"
    if claim.better:
        return "shows" if difference > 2 * error else "does not show"
    if abs(difference) <= max(2 * error, CLOSE):
        return "matches"
    return "is above" if difference > 0 else "is behind"
