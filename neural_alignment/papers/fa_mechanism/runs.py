"""Runs and pieces that the figures of Rahmansetayesh et al. are made from, and published numbers."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from neural_alignment.jobs.pieces import Arrays, Piece, Pieces
from neural_alignment.jobs.plans import Cell, Run
from neural_alignment.papers import published
from neural_alignment.papers.fa_mechanism import compute
from neural_alignment.papers.figures import Style

TEN = tuple(range(10))
"""Seeds of the test errors."""

SEEDS = (0, 1, 2, 3, 4)
"""Seeds of observed training."""

FEW = (0, 1, 2)
"""Seeds of experiments that cost more, or whose effect is large."""

STEPS = 60
"""Iterations per epoch: 60,000 images in batches of 1,000."""

LAYERS = ("dense1", "dense2", "dense3", "dense4", "dense")
"""Names of the layers l = 0 to 4 in a run."""

HIDDEN = range(1, len(LAYERS))
"""Layers l that receive an error through a backward kernel."""


class Condition(NamedTuple):
    """A condition of Figure 7E.

    Attributes:
        rule: `bp` or `bp_trw`.
        normalised: its normalised weights: `none`, `w`, `b` or `wb`.
        style: the look of its lines.
        config: name of its configuration, if another one than the condition's.
        gamma: norm of normalised columns, if another one than the configuration's.
        rate: learning rate, if another one than the configuration's.
    """

    rule: str
    normalised: str
    style: Style
    config: str = ""
    gamma: float = 1.0
    rate: float | None = None

    @property
    def overrides(self) -> tuple[str, ...]:
        """Overrides of the configuration."""
        rate = () if self.rate is None else (f"optimization.forward.learning_rate={self.rate}",)
        return (*rate, *(() if self.gamma == 1.0 else (f"model.weight_norm.gamma={self.gamma}",)))


CONDITIONS = {
    "bp": Condition("bp", "none", Style("BP", "o", "-", 0.0)),
    "bp_w": Condition("bp", "w", Style("BP, W normalised", "s", "--", 0.0)),
    "bp_w_slow": Condition("bp", "w", Style("BP, W normalised, γ 0.6, rate 0.0003", "X", ":", 0.0), "bp_w", 0.6, 3e-4),
    "bp_trw": Condition("bp_trw", "none", Style("BP-TRW", "^", "-", 0.55)),
    "bp_trw_w": Condition("bp_trw", "w", Style("BP-TRW, W normalised", "v", "-.", 0.55)),
    "bp_trw_b": Condition("bp_trw", "b", Style("BP-TRW, B normalised", "D", ":", 0.55)),
    "bp_trw_wb": Condition("bp_trw", "wb", Style("BP-TRW, W and B normalised", "P", "--", 0.35)),
}
"""Name of a condition, and of its configuration -> the condition. `bp_w_slow` is the one that Figure 7E shows."""

PUBLISHED = {row["condition"]: (row["mean"], row["deviation"]) for row in published.read("fa_mechanism/test_errors")}
"""Condition -> test error after 100 epochs of the published code, percent: mean and standard deviation over seeds."""

RUNTIME = ("runtime.steps_per_execution=60", "checkpoints.keep_best=false")
"""Overrides that make runs faster without changing their results."""


def _cells(config: str, name: str, labels: Mapping[str, Any], *overrides: str, seeds: tuple[int, ...] = FEW) -> Cell:
    """Returns runs of a configuration of the paper."""
    return Cell(f"fa_mechanism/{config}.yaml", name, labels, (*overrides, *RUNTIME), seeds)


def trained() -> list[Cell]:
    """Returns the runs of 100 epochs: Figure 7E and its errors."""
    return [_trained(name, {"condition": name, "rule": each.rule}, TEN) for name, each in CONDITIONS.items()]


def _trained(name: str, labels: Mapping[str, Any], seeds: tuple[int, ...]) -> Cell:
    condition = CONDITIONS[name]
    return _cells(condition.config or name, f"trained/{name}", labels, *condition.overrides, seeds=seeds)


FRACTIONS = {
    0.0: Style("true labels", "o", "-", 0.0),
    0.5: Style("50 % replaced", "s", "--", 0.35),
    1.0: Style("100 % replaced", "^", ":", 0.6),
}
"""Fraction of the labels that is replaced in Figure 6 -> look of its lines."""


def _relabelled(fraction: float) -> str:
    return f"data.replace_labels={fraction}"


def relabelled() -> list[Cell]:
    """Returns the runs of Figure 6 at the rate of the text, 0.0005: 100 epochs; true labels are those of BP-TRW."""
    replaced = [
        _cells("bp_trw", f"relabelled_{5e-4}/{100 * fraction:.0f}", {"fraction": fraction}, _relabelled(fraction))
        for fraction in FRACTIONS
        if fraction
    ]
    return [_trained("bp_trw", {"fraction": 0.0}, FEW), *replaced]


def relabelled_slowly() -> list[Cell]:
    """Returns the runs of Figure 6 at the rate of the published code, 0.0004: 10 epochs."""
    overrides = ("epochs=10", "optimization.forward.learning_rate=4.0e-4")
    return [
        _cells("bp_trw", f"relabelled/{100 * fraction:.0f}", {"fraction": fraction}, *overrides, _relabelled(fraction))
        for fraction in FRACTIONS
    ]


def sensitivity() -> list[Cell]:
    """Returns the runs of Figure S8: 15 epochs, where the paper has 100.

    They differ in the norm gamma of the columns of W, and of B in BP-TRW (`None`: no normalisation), label smoothing
    and rate. The first layer has a B, unused, so that the angle of its update is measured.
    """
    settings = itertools.product(("bp", "bp_trw"), (None, 0.6, 1.0), (0.0, 0.05), (5e-4, 3e-4))
    return [_sensitive(*each) for each in settings]


def _sensitive(rule: str, gamma: float | None, smoothing: float, rate: float) -> Cell:
    normalised = "none" if gamma is None else {"bp": "w", "bp_trw": "wb"}[rule]
    config = {"none": rule, "w": "bp_w", "wb": "bp_trw_wb"}[normalised]
    overrides = ["epochs=15", "evaluation.every_epochs=5"]
    overrides += [f"optimization.forward.learning_rate={rate}", f"loss.label_smoothing={smoothing}"]
    overrides += [] if gamma is None else [f"model.weight_norm.gamma={gamma}"]
    overrides += ["alignment={rule: feedback}"] if rule == "bp_trw" else []
    labels = {"rule": rule, "normalised": normalised, "gamma": gamma, "label_smoothing": smoothing, "rate": rate}
    return _cells(config, f"sensitivity/{rule}_{gamma or 'none'}_{smoothing:g}_{rate:g}", labels, *overrides)


# Pieces.


def _pieces(
    name: str,
    function: Callable[..., Arrays],
    labels: Mapping[str, Any],
    configs: Sequence[str] = ("bp_trw",),
    seeds: Sequence[int] = FEW,
    overrides: Sequence[str] = (),
    **arguments: Any,
) -> Pieces:
    """Returns a piece per seed in a folder `name`: `function`, of `compute`, with the configurations and arguments."""
    starts = {
        seed: tuple(Run(f"fa_mechanism/{config}.yaml", "", (*overrides, f"seed={seed}")) for config in configs)
        for seed in seeds
    }
    return Pieces(labels, tuple(Piece(f"{name}/seed{seed}", function, starts[seed], arguments) for seed in seeds))


def _alone(name: str, function: Callable[..., Arrays], labels: Mapping | None = None, **arguments: Any) -> Pieces:
    """Returns a computation that does not start from a configuration; its only label is its name by default."""
    return Pieces(labels or {"name": name}, (Piece(name, function, arguments=arguments),))


EVERY = 7
"""Iterations between measurements: 7 does not divide the 60 batches of an epoch, so every batch is measured in turn."""

MOMENTS = (66, 126, 246, 606, 1206, 2406, 2946)
"""Iterations whose alignment terms are measured."""

ORDERS = 122
"""Orders that are measured: two epochs plus two."""


def _observed(name: str, labels: Mapping[str, Any], **options: Any) -> Pieces:
    """Returns observed training, of 50 epochs unless the options have another size; options as of `_pieces`."""
    sizes = {"iterations": 3000, "every": EVERY, "moments": MOMENTS, "orders": ORDERS}
    return _pieces(f"observed/{name}", compute.observed, labels, **{**sizes, **options})


def observed(condition: str, shuffle: bool = False, seeds: Sequence[int] = SEEDS) -> Pieces:
    """Returns the observed training of a condition."""
    name, overrides = (f"{condition}_shuffled", ("data.shuffle=true",)) if shuffle else (condition, ())
    labels = {"condition": condition, "shuffle": shuffle}
    return _observed(name, labels, configs=(condition,), seeds=seeds, overrides=overrides)


_SHORT = {"iterations": 610, "moments": (66, 126, 246, 606)}
OBSERVED_RELABELLED = [
    dataclasses.replace(observed("bp_trw", seeds=FEW), labels={"fraction": 0.0}),
    *(
        _observed(
            f"relabelled_{5e-4}_{100 * fraction:.0f}",
            {"fraction": fraction},
            overrides=(_relabelled(fraction),),
            **_SHORT,
        )
        for fraction in FRACTIONS
        if fraction
    ),
]
"""The alignment terms of networks that learn replaced labels, at the rate of the text."""

_SIZES = {"iterations": 1200, "moments": (66, 126, 606, 1146), "direct": True}
_DIRECT_RATE = "optimization.forward.learning_rate=5.0e-4"
DIRECT = _observed("direct", {"hidden": "square"}, configs=("bp",), overrides=(_DIRECT_RATE,), **_SIZES)
"""Observed training by direct feedback alignment, at the rate of BP-TRW."""

_NARROW = (_DIRECT_RATE, "model.hidden=[50, 50, 50, 20]")
DIRECT_NARROW = _observed("direct_narrow", {"hidden": "narrow"}, configs=("bp",), overrides=_NARROW, **_SIZES)
"""The same with a last hidden layer of 20 units, which is smaller than the output: F_1 to F_3 are no products then."""

DIRECT_PARTS = _pieces(
    "direct_parts",
    compute.direct_parts,
    {"parts": "S17"},
    configs=("bp",),
    overrides=_NARROW,
    moments=(66, 126, 246),
)
"""The four parts of the direct alignment terms of that network (equation S17)."""

EXPANDED = (6, 30, 66, 126, 186, 246, 306, 426, 546)
"""Iterations that are expanded back to the initial weights."""

EXPANSIONS = _pieces("expanded", compute.expanded, {}, moments=EXPANDED)
"""Figures 3 and S6."""

TAYLOR = _pieces("taylor", compute.taylor, {}, moments=EXPANDED, degree=3)
"""Note 2."""

DISTURBED = {
    how: _pieces(f"disturbed/{how}", compute.disturbed, {"how": how}, iterations=iterations, how=how)
    for how, iterations in (("linear", 1800), ("feedback", 120), ("errors", 120), ("none", 120))
}
"""Kernels moved by disturbed terms (Figures 4 and 5); without nonlinearity the cost of an iteration does not grow."""

DISTURBED_TERMS = {
    how: _pieces(
        f"disturbed_terms/{how}", compute.disturbed_terms, {"terms": how}, moments=(66, 606), orders=ORDERS, how=how
    )
    for how in ("feedback", "errors")
}
"""Angles of single disturbed terms; those without nonlinearity are part of observed training."""


def _similarities(name: str, fraction: float, iterations: int) -> Pieces:
    sizes = {"iterations": iterations, "examples": 5000, "shown": 60, "bins": 60}
    overrides = (_relabelled(fraction),) if fraction else ()
    return _pieces(name, compute.similarities, {"similar": fraction}, seeds=(0,), overrides=overrides, **sizes)


SIMILARITIES = _similarities("similarities", 0.0, 3000)
"""Figure S5."""

SIMILARITIES_RELABELLED = [
    SIMILARITIES,
    *(_similarities(f"similarities_{100 * fraction:.0f}", fraction, 600) for fraction in FRACTIONS if fraction),
]
"""Similarities with replaced labels (Figure 6)."""

LAGGED_SIMILARITIES = _pieces("lagged_similarities", compute.lagged_similarities, {}, moments=(66, 2946), bins=60)
"""Similarities of the examples of different iterations (Figure S5)."""


def plane(*pair: str) -> Pieces:
    """Returns the paths of two conditions in a plane: Figure 7C and F."""
    sizes = {"iterations": 3000, "every": 15, "side": 24, "examples": 5000, "arrows": 12}
    return _pieces(f"plane/{'_'.join(pair)}", compute.plane, {"paths": pair}, pair, (0,), **sizes)


OPEN_LOOPS = [
    _alone(f"open_loop/{condition}_{rate:g}", compute.open_loops, labels, **labels, runs=10, iterations=1500)
    for condition, rate in itertools.product(compute.open_loop.CONDITIONS, (2e-3, 4e-4))
    for labels in [{"condition": condition, "rate": rate}]
]
"""Figure 1B, at the learning rates of the text and of the published notebook."""

PRODUCTS = _alone("products", compute.products, draws=60000, parts=20, seed=0, width=5.0)
"""Figure S7."""

HISTOGRAMS = _alone("product_histograms", compute.product_histograms, draws=60000, parts=20, seed=0, bins=90)
"""Note 1."""

TRANSFORMATIONS = _alone("transformations", compute.transformations, draws=1500, units=50, seed=0)
"""Figure S1."""
