"""Runs and pieces that the figures of Rahmansetayesh et al. are made from, and published numbers."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from neural_alignment.jobs.pieces import Arrays, Piece, Pieces
from neural_alignment.jobs.plans import Cell, Run
from neural_alignment.papers import published
from neural_alignment.papers.fa_mechanism import compute
from neural_alignment.papers.figures import Style

SEEDS = (0, 1, 2, 3, 4)
"""Seeds of the test errors, and of observed training."""

FEW = (0, 1, 2)
"""Seeds of experiments that cost more, or whose effect is large."""

STEPS = 60
"""Iterations per epoch: 60,000 images in batches of 1,000."""

LAYERS = ("dense1", "dense2", "dense3", "dense4", "dense")
"""Names of the layers l = 0 to 4 in a run."""

HIDDEN = range(1, len(LAYERS))
"""Layers l that receive an error through a backward kernel."""


class Condition(NamedTuple):
    """A rule, `bp` or `bp_trw`, its normalised weights, `none`, `w`, `b` or `wb`, and the look of its lines."""

    rule: str
    normalised: str
    style: Style


CONDITIONS = {
    "bp": Condition("bp", "none", Style("BP", "o", "-", 0.0)),
    "bp_w": Condition("bp", "w", Style("BP, W normalised", "s", "--", 0.0)),
    "bp_trw": Condition("bp_trw", "none", Style("BP-TRW", "^", "-", 0.55)),
    "bp_trw_w": Condition("bp_trw", "w", Style("BP-TRW, W normalised", "v", "-.", 0.55)),
    "bp_trw_b": Condition("bp_trw", "b", Style("BP-TRW, B normalised", "D", ":", 0.55)),
    "bp_trw_wb": Condition("bp_trw", "wb", Style("BP-TRW, W and B normalised", "P", "--", 0.35)),
}
"""Name of a configuration -> its condition."""

PUBLISHED = {row["condition"]: (row["mean"], row["deviation"]) for row in published.read("fa_mechanism/test_errors")}
"""Condition -> test error after 100 epochs of the published code, percent: mean and standard deviation over seeds."""

RUNTIME = ("runtime.steps_per_execution=60", "checkpoints.keep_best=false")
"""Overrides that make runs faster without changing their results."""


def _cells(config: str, name: str, labels: Mapping[str, Any], *overrides: str, seeds: tuple[int, ...] = FEW) -> Cell:
    """Returns runs of a configuration of the paper."""
    return Cell(f"fa_mechanism/{config}.yaml", name, labels, (*overrides, *RUNTIME), seeds)


def trained() -> list[Cell]:
    """Returns the runs of 100 epochs: Figure 7E and its errors."""
    labels = {name: {"rule": each.rule, "normalised": each.normalised} for name, each in CONDITIONS.items()}
    return [_cells(name, f"trained/{name}", {"condition": name, **own}, seeds=SEEDS) for name, own in labels.items()]


FRACTIONS = {
    0.0: Style("true labels", "o", "-", 0.0),
    0.5: Style("50 % replaced", "s", "--", 0.35),
    1.0: Style("100 % replaced", "^", ":", 0.6),
}
"""Fraction of the labels that is replaced in Figure 6 -> look of its lines."""

RELABELLED = {
    fraction: (f"data.replace_labels={fraction}", "optimization.forward.learning_rate=4.0e-4") for fraction in FRACTIONS
}
"""Fraction -> overrides. The rate is that of the published code: the text prints none, see docs/fa_mechanism.md."""


def relabelled() -> list[Cell]:
    """Returns the runs of Figure 6: 10 epochs."""
    return [
        _cells("bp_trw", f"relabelled/{100 * fraction:.0f}", {"fraction": fraction}, "epochs=10", *overrides)
        for fraction, overrides in RELABELLED.items()
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


_SHORT = {"iterations": 600, "moments": (66, 126, 246, 546)}
OBSERVED_RELABELLED = [
    _observed(f"relabelled_{100 * fraction:.0f}", {"fraction": fraction}, overrides=overrides, **_SHORT)
    for fraction, overrides in RELABELLED.items()
]
"""The alignment terms of networks that learn replaced labels."""

_SIZES = {"iterations": 1200, "moments": (66, 126, 606, 1146), "direct": True}
DIRECT = _observed("direct", {}, configs=("bp",), overrides=("optimization.forward.learning_rate=5.0e-4",), **_SIZES)
"""Observed training by direct feedback alignment, at the rate of BP-TRW."""

EXPANDED = (6, 30, 66, 126, 186, 246, 306, 426, 546)
"""Iterations that are expanded back to the initial weights."""

EXPANSIONS = _pieces("expanded", compute.expanded, {}, moments=EXPANDED)
"""Figures 3 and S6."""

DISTURBED = [
    _pieces(f"disturbed/{how}", compute.disturbed, {"how": how}, iterations=iterations, how=how)
    for how, iterations in (("linear", 1800), ("feedback", 120), ("errors", 120))
]
"""The disturbed terms of Figures 4 and 5; without nonlinearity the cost of an iteration does not grow."""

SIMILARITIES = _pieces(
    "similarities", compute.similarities, {}, seeds=(0,), iterations=3000, examples=5000, shown=60, bins=60
)
"""Figure S5."""


def plane(*pair: str) -> Pieces:
    """Returns the paths of two conditions in a plane: Figure 7C and F."""
    sizes = {"iterations": 3000, "every": 15, "side": 24, "examples": 5000, "arrows": 12}
    return _pieces(f"plane/{'_'.join(pair)}", compute.plane, {"paths": pair}, pair, (0,), **sizes)


OPEN_LOOPS = [
    _alone(f"open_loop/{condition}_{rate:g}", compute.open_loops, labels, **labels, runs=10, iterations=1000)
    for condition, rate in itertools.product(compute.open_loop.CONDITIONS, (2e-3, 4e-4))
    for labels in [{"condition": condition, "rate": rate}]
]
"""Figure 1B, at the learning rates of the text and of the published notebook."""

PRODUCTS = _alone("products", compute.products, draws=60000, parts=20, seed=0, width=5.0)
"""Figure S7."""

TRANSFORMATIONS = _alone("transformations", compute.transformations, draws=1500, units=50, seed=0)
"""Figure S1."""
