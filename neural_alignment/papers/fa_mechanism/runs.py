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


def trained() -> list[Cell]:
    """Returns the runs of 100 epochs: Figure 7E and its errors."""
    return [
        _cell(name, f"trained/{name}", {"condition": name, "rule": each.rule, "normalised": each.normalised}, (), SEEDS)
        for name, each in CONDITIONS.items()
    ]


def _cell(
    config: str, name: str, labels: Mapping[str, Any], overrides: Sequence[str], seeds: tuple[int, ...] = FEW
) -> Cell:
    """Returns runs of a configuration of the paper."""
    return Cell(f"fa_mechanism/{config}.yaml", name, labels, (*overrides, *RUNTIME), seeds)


FRACTIONS = {
    0.0: Style("true labels", "o", "-", 0.0),
    0.5: Style("50 % replaced", "s", "--", 0.35),
    1.0: Style("100 % replaced", "^", ":", 0.6),
}
"""Fraction of the labels that is replaced in Figure 6 -> look of its lines."""

RELABELLED_RATE = ("optimization.forward.learning_rate=4.0e-4",)
"""Learning rate of Figure 6, from the published code: the text prints none, see docs/fa_mechanism.md."""


def relabelled() -> list[Cell]:
    """Returns the runs of Figure 6: 10 epochs."""
    return [
        _cell(
            "bp_trw",
            f"relabelled/{100 * fraction:.0f}",
            {"fraction": fraction},
            ("epochs=10", f"data.replace_labels={fraction}", *RELABELLED_RATE),
        )
        for fraction in FRACTIONS
    ]


GAMMAS = (None, 0.6, 1.0)
"""Norm of the columns of W in BP, and of W and B in BP-TRW, in Figure S8; `None` without normalisation."""

RATES, SMOOTHINGS = (5e-4, 3e-4), (0.0, 0.05)
"""Learning rates and label smoothings of Figure S8."""

SENSITIVITY_EPOCHS = 15
"""Epochs of Figure S8; the paper has 100."""


def sensitivity() -> list[Cell]:
    """Returns the runs of Figure S8; the first layer has a B, unused, so that the angle of its update is measured."""
    return [_sensitive(*each) for each in itertools.product(("bp", "bp_trw"), GAMMAS, SMOOTHINGS, RATES)]


def _sensitive(rule: str, gamma: float | None, smoothing: float, rate: float) -> Cell:
    normalised = "none" if gamma is None else {"bp": "w", "bp_trw": "wb"}[rule]
    config = {"none": rule, "w": "bp_w", "wb": "bp_trw_wb"}[normalised]
    overrides = [f"epochs={SENSITIVITY_EPOCHS}", f"evaluation.every_epochs={SENSITIVITY_EPOCHS // 3}"]
    overrides += [f"optimization.forward.learning_rate={rate}", f"loss.label_smoothing={smoothing}"]
    overrides += [] if gamma is None else [f"model.weight_norm.gamma={gamma}"]
    overrides += ["alignment={rule: feedback}"] if rule == "bp_trw" else []
    labels = {"rule": rule, "normalised": normalised, "gamma": gamma, "label_smoothing": smoothing, "rate": rate}
    return _cell(config, f"sensitivity/{rule}_{gamma or 'none'}_{smoothing:g}_{rate:g}", labels, overrides)


# Pieces.


def pieces(
    name: str,
    function: Callable[..., Arrays],
    configs: Sequence[str],
    seeds: Sequence[int],
    labels: Mapping[str, Any],
    overrides: Sequence[str] = (),
    **arguments: Any,
) -> Pieces:
    """Returns a piece per seed.

    Args:
        name: folder of their files.
        function: the computation, of `compute`.
        configs: names of the configurations that it starts from.
        seeds: seeds of the configurations.
        labels: labels of all pieces.
        overrides: overrides of the configurations.
        **arguments: arguments of the computation.
    """
    starts = {
        seed: tuple(Run(f"fa_mechanism/{config}.yaml", "", (*overrides, f"seed={seed}")) for config in configs)
        for seed in seeds
    }
    return Pieces(labels, tuple(Piece(f"{name}/seed{seed}", function, starts[seed], arguments) for seed in seeds))


def alone(name: str, function: Callable[..., Arrays], labels: Mapping[str, Any], **arguments: Any) -> Pieces:
    """Returns a computation that does not start from a configuration; arguments as of `pieces`."""
    return Pieces(labels, (Piece(name, function, arguments=arguments),))


EVERY = 7
"""Iterations between measurements: 7 does not divide the 60 batches of an epoch, so every batch is measured in turn."""

MOMENTS = (66, 126, 246, 606, 1206, 2406, 2946)
"""Iterations whose alignment terms are measured."""

ORDERS = 122
"""Orders that are measured: two epochs plus two."""


def _observed(
    name: str, condition: str, seeds: Sequence[int], labels: Mapping[str, Any], overrides: Sequence[str], **sizes: Any
) -> Pieces:
    """Returns observed training, of 50 epochs unless `sizes` has other arguments; the others are as of `pieces`."""
    sizes = {"iterations": 3000, "every": EVERY, "moments": MOMENTS, "orders": ORDERS, **sizes}
    return pieces(f"observed/{name}", compute.observed, (condition,), seeds, labels, overrides, **sizes)


def observed(condition: str, shuffle: bool = False, seeds: Sequence[int] = SEEDS) -> Pieces:
    """Returns the observed training of a condition."""
    name, overrides = (f"{condition}_shuffled", ("data.shuffle=true",)) if shuffle else (condition, ())
    return _observed(name, condition, seeds, {"condition": condition, "shuffle": shuffle}, overrides)


def observed_relabelled() -> list[Pieces]:
    """Returns the alignment terms of networks that learn replaced labels."""
    sizes = {"iterations": 600, "moments": (66, 126, 246, 546)}
    overrides = {fraction: (f"data.replace_labels={fraction}", *RELABELLED_RATE) for fraction in FRACTIONS}
    return [
        _observed(f"relabelled_{100 * each:.0f}", "bp_trw", FEW, {"fraction": each}, overrides[each], **sizes)
        for each in FRACTIONS
    ]


def observed_direct() -> Pieces:
    """Returns the observed training by direct feedback alignment, at the rate of BP-TRW."""
    rate = ("optimization.forward.learning_rate=5.0e-4",)
    return _observed("direct", "bp", FEW, {}, rate, iterations=1200, moments=(66, 126, 606, 1146), direct=True)


EXPANDED = (6, 30, 66, 126, 186, 246, 306, 426, 546)
"""Iterations that are expanded back to the initial weights."""


def expanded() -> Pieces:
    """Returns the expansions of Figures 3 and S6."""
    return pieces("expanded", compute.expanded, ("bp_trw",), FEW, {}, moments=EXPANDED)


DISTURBED = {"linear": 1800, "feedback": 120, "errors": 120}
"""Disturbance -> iterations; without nonlinearity their cost does not grow."""


def disturbed(how: str) -> Pieces:
    """Returns the disturbed terms of Figures 4 and 5."""
    sizes = {"iterations": DISTURBED[how], "how": how}
    return pieces(f"disturbed/{how}", compute.disturbed, ("bp_trw",), FEW, {"how": how}, **sizes)


def similarities() -> Pieces:
    """Returns the similarities of Figure S5."""
    sizes = {"iterations": 3000, "examples": 5000, "shown": 60, "bins": 60}
    return pieces("similarities", compute.similarities, ("bp_trw",), (0,), {}, **sizes)


def plane(first: str, second: str) -> Pieces:
    """Returns two paths in a plane: Figure 7C and F."""
    sizes = {"iterations": 3000, "every": 15, "side": 24, "examples": 5000, "arrows": 12}
    return pieces(f"plane/{first}_{second}", compute.plane, (first, second), (0,), {"paths": (first, second)}, **sizes)


OPEN_LOOP_RATES = (2e-3, 4e-4)
"""Learning rates of the text, and of the published notebook."""


def open_loops() -> list[Pieces]:
    """Returns the runs of Figure 1B."""
    settings = itertools.product(compute.open_loop.CONDITIONS, OPEN_LOOP_RATES)
    return [
        alone(
            f"open_loop/{condition}_{rate:g}",
            compute.open_loops,
            {"condition": condition, "rate": rate},
            condition=condition,
            rate=rate,
            runs=10,
            iterations=1000,
        )
        for condition, rate in settings
    ]


def products() -> Pieces:
    """Returns the draws of Figure S7."""
    return alone("products", compute.products, {"name": "products"}, draws=60000, parts=20, seed=0, width=5.0)


def transformations() -> Pieces:
    """Returns the draws of Figure S1."""
    labels = {"name": "transformations"}
    return alone("transformations", compute.transformations, labels, draws=1500, units=50, seed=0)
