"""Claims of Kunin et al. 2020 that do not compare the accuracy of two rules, judged by the files of the figures."""

from __future__ import annotations

import math
from collections.abc import Callable

from neural_alignment.papers import claims
from neural_alignment.papers.claims import ByCase, NotYetRunError, ResultFiles, Unpaired, contrast, spreads, values
from neural_alignment.papers.claims import PaperClaim as Claim
from neural_alignment.papers.registry import Source
from neural_alignment.papers.tables import Key
from neural_alignment.papers.two_routes.angles import ALIGNED, EARLY, HALF
from neural_alignment.papers.two_routes.claims import FAR
from neural_alignment.papers.two_routes.runs import MODELS
from neural_alignment.reporting import Artifact, Row, Spread

COLLAPSED = round(math.log10(HALF), 1)
"""log10 of |B| / |W| below which B counts as collapsed."""

FIRST, LAST = "stem", "dense"
"""Layers of ResNet-18 at the input and at the output."""

FIGURE, STABILITY = "figure", "section 4"
ANGLE = "mean angle of W and B^T over layers, degrees"
NORM = "log10 of |B| / |W| at the end"
LOSS = "top-1 on ResNet-18 minus that on the network, points"
ABOVE = claims.above()


def _last(found: list[float]) -> float:
    return found[-1]


def _all(row: Row) -> str:
    """The only case of a claim."""
    return ""


def _early(row: Row) -> bool:
    return row["epoch"] == EARLY


def _measure(rule: str, column: Key, where: Callable[[Row], bool] = lambda row: True) -> ByCase:
    """Returns a function that finds the last value of a column of the table of angles, by seed."""
    return values("table_angles", column, _all, where=where, combine=_last, model="resnet18", rule=rule)


def _angle(rule: str, where: Callable[[Row], bool] = lambda row: True) -> ByCase:
    return _measure(rule, "weight_angle", where)


def _range_of_norms(rule: str) -> ByCase:
    """Returns a function that finds log10 of the largest ||B|| / ||W|| of a layer over the smallest, by seed."""
    return _measure(rule, lambda row: math.log10(row["norm_ratio_max"] / row["norm_ratio_min"]))


def _norm(layer: str) -> ByCase:
    """Returns a function that finds log10 of ||B|| / ||W|| of a layer at the end of the only run with weight mirror."""
    ratio = {"rule": "weight_mirror", "layer": layer}
    return values("figure_S4", lambda row: math.log10(row["norm_ratio"]), _all, lambda row: 0, combine=_last, **ratio)


def _losses(*rules: str) -> Callable[[ResultFiles], dict[str, Spread]]:
    """Returns a function that finds what fixed metaparameters lose on each other network.

    They lose top-1, in percent. A run that diverged has that of chance, as in the figure. The seeds of two networks are
    independent, so the interval of a loss is Welch's.

    Args:
        *rules: the rule; or two, for the loss of the first minus that of the second.
    """

    def find(files: ResultFiles) -> dict[str, Spread]:
        plus: dict[str, list[Spread]] = {}
        minus: dict[str, list[Spread]] = {}
        for rule, signs in zip(rules, ((plus, minus), (minus, plus)), strict=False):
            found = values("figure_3", lambda row: 100 * row["top1"], "model", rule=rule)(files)
            tops = {model: Spread([*seeds.values()]) for model, seeds in found.items()}
            own = tops.pop("resnet18", None)
            for model, top1 in tops.items() if own else ():
                signs[0].setdefault(model, []).append(own)
                signs[1].setdefault(model, []).append(top1)
        whole = [model for model in plus if len(plus[model]) == len(rules)]
        if not whole:
            raise NotYetRunError
        return {MODELS[model]: Unpaired.of(plus[model], minus[model]) for model in whole}

    return find


def _best(algorithm: str) -> ByCase:
    """Returns a function that finds the best top-1 of each search with an algorithm, in percent, by its seed."""
    return values("search_information", lambda row: 100 * row["best_so_far"], _all, combine=_last, algorithm=algorithm)


def _growth(panel: str) -> ByCase:
    """Returns a function that finds the rates at which equal weights w = b grow in a flow field, by the place w."""

    def on_diagonal(row: Row) -> bool:
        return row["forward"] == row["backward"] != 0

    return values("figure_2", lambda row: row["forward_flow"] / row["forward"], _all, "forward", on_diagonal,
                  panel=panel)  # fmt: skip


CLAIMS: tuple[Claim, ...] = (
    Claim("2a", "with λ < x² the weights of WM diverge", STABILITY, "rate of growth of w = b", claims.mean_above(0.01),
          spreads(_growth("a"))),
    Claim("2b", "with λ = x² they are stable", STABILITY, "rate of growth of w = b", claims.mean_between(-0.01, 0.01),
          spreads(_growth("b"))),
    Claim("2c", "with λ > x² they collapse", STABILITY, "rate of growth of w = b", claims.mean_below(-0.01),
          spreads(_growth("c"))),
    Claim("2, S4", "under WM the B of the first layer grows beyond W", FIGURE, NORM, claims.mean_above(0),
          spreads(_norm(FIRST))),
    Claim("2, S4", "under WM the B of the last layer collapses", FIGURE, NORM, claims.mean_below(COLLAPSED),
          spreads(_norm(LAST))),
    Claim("S4", "under IA the norms are more stable than under WM", "text",
          "log10 of the largest |B| / |W| over the smallest, decrease", ABOVE,
          spreads(contrast(_range_of_norms("weight_mirror"), _range_of_norms("information")))),
    Claim("S3, S4", f"SA aligns within {EARLY} epochs", FIGURE, ANGLE, claims.below(ALIGNED),
          spreads(_angle("symmetric", _early)), ".1f"),
    Claim("S3, S4", f"AA aligns less closely after {EARLY} epochs", FIGURE, f"{ANGLE}, minus that of SA", ABOVE,
          spreads(contrast(_angle("activation", _early), _angle("symmetric", _early))), ".1f"),
    Claim("S3, S4", "AA aligns less closely at the end", FIGURE, f"{ANGLE}, minus that of SA", ABOVE,
          spreads(contrast(_angle("activation"), _angle("symmetric"))), ".1f"),
    Claim("S4", "IA aligns all layers within 5 degrees", "text", "largest angle of a layer at the end, degrees",
          claims.below(5), spreads(_measure("information", "weight_angle_max")), ".1f"),
    Claim("3", "WM's metaparameters fail on other networks", "text", LOSS, claims.above(FAR),
          _losses("weight_mirror"), ".1f"),
    Claim("3", "an adaptive optimizer makes it more robust", "text", f"{LOSS}: that of WM minus that of WM+AD", ABOVE,
          _losses("weight_mirror", "weight_mirror_adam"), ".1f"),
    Claim("3", "the operations make it more robust", "text", f"{LOSS}: that of WM minus that of WM+AD+OPS", ABOVE,
          _losses("weight_mirror", "weight_mirror_adam_ops"), ".1f"),
    Claim("3", "IA's metaparameters transfer to other networks", FIGURE, LOSS, claims.below(FAR),
          _losses("information"), ".1f"),
    Claim("B.1", "TPE finds better settings than random search", "not claimed",
          "best top-1 minus that of random search, points", ABOVE,
          spreads(contrast(_best("tpe"), _best("random")))),
)  # fmt: skip
"""The claims, in the order of the figures."""


def table(source: Source) -> Artifact:
    """Every claim, judged by the files of the tables and figures in the folder of results.

    Raises:
        InputError: if there is no such file.
    """
    return claims.table_of(CLAIMS, "two_routes/further_claims", source.output, "two_routes/2")
