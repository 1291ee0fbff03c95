"""Runs that the tables and figures of Kunin et al. 2020 are made from, in the paper and in the lab."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Sequence

from neural_alignment.jobs.plans import Cell
from neural_alignment.papers import published
from neural_alignment.papers.figures import Style
from neural_alignment.papers.registry import Profiles

MODELS = {f"resnet{size}": f"ResNet-{size}" for size in ("18", "50", "50v2", "101v2", "152v2")}
"""Folder of a network below configs/two_routes -> its name."""

RULE_STYLES = {
    "backprop": Style("backpropagation", "o", "-", 0.0),
    "symmetric": Style("symmetric (SA)", "s", "--", 0.3),
    "activation": Style("activation (AA)", "^", "-.", 0.3),
    "kolen_pollack": Style("Kolen-Pollack (KP)", "P", ":", 0.4, filled=False),
    "information": Style("information (IA), TPE", "D", "-", 0.5),
    "weight_mirror_adam_ops": Style("WM+AD+OPS, TPE", "v", "--", 0.65),
    "weight_mirror_adam": Style("WM+AD, TPE", "<", "-.", 0.65),
    "weight_mirror": Style("weight mirror (WM), TPE", "x", ":", 0.5),
    "weight_mirror_akrout": Style("WM", "+", ":", 0.7),
    "feedback": Style("feedback (FA)", "*", ":", 0.3),
    "sign_symmetry": Style("sign symmetry", "p", "--", 0.5),
}
"""Name of the file of a rule below configs/two_routes -> look of its lines."""

TABLE_3 = {row.pop("rule"): row for row in published.read("two_routes/table_3")}
TABLE_4 = {row.pop("model"): row for row in published.read("two_routes/table_4")}
"""Published: rule -> accuracies of ResNet-18, and network -> rule -> top-1 accuracy."""

PRINTED = {(model, rule): {"top1": value} for model, row in TABLE_4.items() for rule, value in row.items()}
PRINTED |= {("resnet18", rule): row for rule, row in TABLE_3.items()}
"""Network and rule -> the published top-1 and top-5 accuracy on the validation set of ImageNet, percent."""

SEARCHED = ("weight_mirror", "weight_mirror_adam", "weight_mirror_adam_ops", "information")
"""The columns of Table 5."""

LAB_RULES = ("sign_symmetry",)
"""Rules of the lab profile for which the paper has no run."""

TRANSFER = (*SEARCHED, "symmetric", "activation", "backprop")
"""The lines of Figure 3."""

NOISY = ("backprop", "symmetric", "activation", "kolen_pollack")
"""The lines of Figure S1; the first two are those of Figure 5."""

CHANCE = {"paper": (1 / 1000, 5 / 1000), "lab": (1 / 10, 5 / 10)}
"""Profile -> top-1 and top-5 of chance, which a diverged run counts as (Figure 3: 0.001)."""

LAB_MODELS = {"resnet18": (18, 1), "resnet50": (50, 1), "resnet50v2": (50, 2)}
"""Networks of the lab profile: depth and version."""

SEEDS, FEW, FIRST = (0, 1, 2, 3, 4), (0, 1, 2), (0,)

COSTLY = ("information", "weight_mirror", "weight_mirror_adam", "weight_mirror_adam_ops")
"""Rules of which the lab trains three seeds on the deeper networks, where a run takes minutes."""

NOISE_RATES = {"paper": 0.1, "lab": 0.05}
"""Profile -> learning rate to which the variances of Figures 5 and S1 apply (Appendix B.3: that of backpropagation)."""

NOISE = (1e-2, 1e-1, 1.0)
DEEPER = tuple(model for model in TABLE_4 if model != "resnet18")
"""Networks of Figure 5 b."""

DEEPER_NOISE = (1e-1,)
"""Variances of the noise above 0, as in `noisy`: of Figures 5 and S1, and of Figure 5 b in the lab."""

PAPER_DROPS = [30, 60]
"""Epochs at which both rates drop in all runs of Figures 5 and S1 (Appendix B.3); Table 4 has a third drop, at 80."""


def paper_cell(model: str, rule: str) -> Cell:
    """Returns the runs of one rule and network at the size of the paper."""
    return Cell(f"two_routes/{model}/{rule}.yaml", f"{model}/{rule}", {"model": model, "rule": rule})


def lab_seeds(model: str, rule: str) -> tuple[int, ...]:
    """Returns the seeds that the lab trains: five, or fewer of costly runs and of a row without claims."""
    if rule == "weight_mirror_akrout":
        return FIRST
    return FEW if rule in COSTLY and model != "resnet18" else SEEDS


def lab_cell(model: str, rule: str, seeds: tuple[int, ...] | None = None) -> Cell:
    """Returns the runs of one rule and network of the lab profile; default of `seeds`: those of `lab_seeds`."""
    seeds = lab_seeds(model, rule) if seeds is None else seeds
    depth, version = LAB_MODELS[model]
    overrides = () if model == "resnet18" else (f"model.depth={depth}", f"model.version={version}")
    return Cell(f"lab/two_routes/{rule}.yaml", f"{model}/{rule}", {"model": model, "rule": rule}, overrides, seeds)


def plan(pairs: Iterable[tuple[str, str]], seeds: tuple[int, ...] | None = None) -> Profiles:
    """Returns the runs of pairs of a network and a rule; the lab has fewer networks, the paper fewer rules.

    `seeds` are those of the lab. Default: those of `lab_seeds`.
    """
    pairs = list(pairs)
    paper = [paper_cell(model, rule) for model, rule in pairs if rule not in LAB_RULES]
    return {"paper": paper, "lab": [lab_cell(*each, seeds) for each in pairs if each[0] in LAB_MODELS]}


def first_seed(*rules: str) -> Profiles:
    """Returns one run of ResNet-18 per rule."""
    return plan((("resnet18", rule) for rule in rules), FIRST)


def transfer(*rules: str) -> Profiles:
    """Returns the runs of Figures 3 and S5: the metaparameters of ResNet-18 on other networks."""
    return plan((model, rule) for rule in rules for model in MODELS)


def noise(rules: Sequence[str], *models: str) -> Profiles:
    """Returns the runs of Figures 5 and S1: without noise, which in the lab are those of the tables, and with noise."""
    found: Profiles = {"paper": [], "lab": []}
    for model, rule in itertools.product(models, rules):
        paths = ("forward", "backward") if rule in ("symmetric", "activation") else ("forward",)
        drops = tuple(f"optimization.{path}.schedule.drop_epochs={PAPER_DROPS}" for path in paths)
        paper = dataclasses.replace(paper_cell(model, rule), overrides=drops)
        found["paper"] += [noisy(paper, each, NOISE_RATES["paper"]) for each in (0.0, *NOISE)]
        if model not in LAB_MODELS:
            continue
        lab, lab_variances = lab_cell(model, rule), NOISE if model == "resnet18" else DEEPER_NOISE
        still = dataclasses.replace(lab, labels={**lab.labels, "noise_variance": 0.0})
        found["lab"] += [still, *(noisy(lab, each, NOISE_RATES["lab"]) for each in lab_variances)]
    return found


def noisy(cell: Cell, variance: float, rate: float) -> Cell:
    """Returns a cell with noise on all updates of backpropagation, or on those of B of another rule (section 5).

    Noise is scaled by the learning rate of the update that it is added to. For the same perturbation of the weights in
    every rule, `variance` applies to one learning rate, `rate`: the shift of the curves of Appendix B.3, where the
    rates 0.1 and 0.001 make it 10^4.
    """
    rule = cell.labels["rule"]
    where = "forward" if rule in ("backprop", "kolen_pollack") else "backward"
    only = ", only: backward_kernel" if rule == "kolen_pollack" else ""
    noise = (f"optimization.{where}.noise={{variance: {variance!r}, rate: {rate!r}{only}}}",) if variance else ()
    labels, overrides = {**cell.labels, "noise_variance": variance}, (*cell.overrides, *noise)
    return dataclasses.replace(cell, name=f"{cell.name}_noise_{variance:g}", labels=labels, overrides=overrides)
