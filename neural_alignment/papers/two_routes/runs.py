"""Runs that the tables and figures of Kunin et al. 2020 are made from, in the paper and in the lab."""

from __future__ import annotations

from neural_alignment.jobs.plans import Cell
from neural_alignment.papers import published
from neural_alignment.papers.figures import Style

MODELS = {
    "resnet18": "ResNet-18",
    "resnet50": "ResNet-50",
    "resnet50v2": "ResNet-50v2",
    "resnet101v2": "ResNet-101v2",
    "resnet152v2": "ResNet-152v2",
}
"""Network of the paper, as its folder below configs/two_routes is called -> its name."""

RULE_STYLES = {
    "backprop": Style("backpropagation", "o", "-", 0.0),
    "symmetric": Style("symmetric (SA)", "s", "--", 0.3),
    "activation": Style("activation (AA)", "^", "-.", 0.3),
    "kolen_pollack": Style("Kolen-Pollack (KP)", "P", ":", 0.0),
    "information": Style("information (IA), TPE", "D", "-", 0.5),
    "weight_mirror_adam_ops": Style("WM+AD+OPS, TPE", "v", "--", 0.65),
    "weight_mirror_adam": Style("WM+AD, TPE", "<", "-.", 0.65),
    "weight_mirror": Style("weight mirror (WM), TPE", "x", ":", 0.5),
    "weight_mirror_akrout": Style("WM", "+", ":", 0.7),
    "feedback": Style("feedback (FA)", "*", ":", 0.3),
}
"""Rule, as its file below configs/two_routes is called -> look of its lines."""

TABLE_3 = {row["rule"]: (row["top1"], row["top5"]) for row in published.read("two_routes/table_3")}
"""Published: rule -> top-1 and top-5 accuracy on the validation set of ImageNet, percent."""

TABLE_4 = {row.pop("model"): row for row in published.read("two_routes/table_4")}
"""Published: network -> rule -> top-1 accuracy, percent."""

SEARCHED = ("weight_mirror", "weight_mirror_adam", "weight_mirror_adam_ops", "information")
"""The columns of Table 5."""

TRANSFER = (*SEARCHED, "symmetric", "activation", "backprop")
"""The lines of Figure 3."""

CHANCE = {"paper": (1 / 1000, 5 / 1000), "lab": (1 / 10, 5 / 10)}
"""Profile -> top-1 and top-5 of chance, which a diverged run counts as (Figure 3: 0.001)."""

# The lab.

LAB_MODELS = {"resnet18": (18, 1), "resnet50": (50, 1), "resnet50v2": (50, 2)}
"""Networks of the lab profile: depth and version."""

SEEDS = (0, 1, 2)
FIRST = (0,)

LAB_SEEDS = {"weight_mirror_akrout": FIRST, "weight_mirror_adam_ops": FIRST}
"""Rules without claims, of which the lab trains one seed."""

LAB_RATES = {"backprop": 0.05, "symmetric": 5e-3, "activation": 5e-3, "kolen_pollack": 0.05}
"""Rule -> learning rate of the noisy updates of Figure 5 in configs/lab/two_routes."""

NOISE = (1e-2, 1e-1, 1.0)
"""Variances of the noise of Figures 5 and S1 above 0, on the common axis of `noisy`."""

DEEPER_NOISE = (1e-1,)
"""Variances of Figure 5 b in the lab."""

PAPER_RATES = {"backprop": 0.1, "symmetric": 1e-3, "activation": 1e-3, "kolen_pollack": 0.1}
"""Learning rates of Appendix B.3."""

PAPER_DROPS = (30, 60)
"""Epochs at which both rates drop under noise, and in the runs without noise beside them (Appendix B.3); the runs of
Table 4 have a third drop, at 80."""


def paper_cell(model: str, rule: str) -> Cell:
    """Returns the runs of one rule and network at the size of the paper."""
    return Cell(f"two_routes/{model}/{rule}.yaml", f"{model}/{rule}", {"model": model, "rule": rule})


def lab_cell(model: str, rule: str, seeds: tuple[int, ...] = SEEDS) -> Cell:
    """Returns the runs of one rule and network of the lab profile."""
    depth, version = LAB_MODELS[model]
    overrides = () if model == "resnet18" else (f"model.depth={depth}", f"model.version={version}")
    return Cell(f"lab/two_routes/{rule}.yaml", f"{model}/{rule}", {"model": model, "rule": rule}, overrides, seeds)


def noisy(cell: Cell, variance: float, rates: dict[str, float]) -> Cell:
    """Returns a cell with noise on its updates: all updates of backpropagation, those of B elsewhere (section 5).

    Noise is scaled by the learning rate of the update that it is added to. For the same perturbation of the weights in
    every rule, the variance at the rate r of R is `variance` (rate of backpropagation / r)^2: the shift of the curves
    of Appendix B.3, where the rates 0.1 and 0.001 make it 10^4.

    Args:
        cell: the runs without noise.
        variance: variance for backpropagation, the common axis.
        rates: rule -> initial learning rate of the noisy updates.
    """
    rule = cell.labels["rule"]
    own = variance * (rates["backprop"] / rates[rule]) ** 2
    where = "forward" if rule in ("backprop", "kolen_pollack") else "backward"
    only = ", only: backward_kernel" if rule == "kolen_pollack" else ""
    return Cell(
        cell.config,
        f"{cell.name}_noise_{variance:g}",
        {**cell.labels, "noise_variance": variance},
        (*cell.overrides, f"optimization.{where}.noise={{variance: {own!r}{only}}}"),
        cell.seeds,
    )


def noise_cells(cell: Cell, variances: tuple[float, ...], rates: dict[str, float], still: str = "") -> list[Cell]:
    """Returns a cell at variance 0 and those with noise.

    Args:
        cell: the runs without noise.
        variances: variances of the other cells, as in `noisy`.
        rates: learning rates, as in `noisy`.
        still: suffix of the name of the cell at variance 0; empty if its runs are those of the tables.
    """
    labels = {**cell.labels, "noise_variance": 0.0}
    without = Cell(cell.config, f"{cell.name}{still}", labels, cell.overrides, cell.seeds)
    return [without, *(noisy(cell, variance, rates) for variance in variances)]


def paper_noise_cells(model: str, rule: str) -> list[Cell]:
    """Returns the runs of one rule in Figures 5 and S1 at the size of the paper."""
    cell = paper_cell(model, rule)
    both = ("forward", "backward") if rule in ("symmetric", "activation") else ("forward",)
    drops = tuple(f"optimization.{which}.schedule.drop_epochs={list(PAPER_DROPS)}" for which in both)
    return noise_cells(Cell(cell.config, cell.name, cell.labels, drops), NOISE, PAPER_RATES, still="_noise_0")


def table_3() -> dict[str, list[Cell]]:
    """Returns the runs of Table 3; the lab adds feedback alignment, which the paper only mentions as far behind."""
    lab = [lab_cell("resnet18", rule, LAB_SEEDS.get(rule, SEEDS)) for rule in (*TABLE_3, "feedback")]
    return {"paper": [paper_cell("resnet18", rule) for rule in TABLE_3], "lab": lab}


def table_4() -> dict[str, list[Cell]]:
    """Returns the runs of Table 4."""
    rules = ("backprop", "symmetric", "activation")
    return {
        "paper": [paper_cell(model, rule) for model in TABLE_4 for rule in rules],
        "lab": [lab_cell(model, rule) for model in LAB_MODELS for rule in rules],
    }


def transfer(rules: tuple[str, ...]) -> dict[str, list[Cell]]:
    """Returns the runs of Figures 3 and S5: the metaparameters of ResNet-18 on other networks."""
    return {
        "paper": [paper_cell(model, rule) for rule in rules for model in MODELS],
        "lab": [lab_cell(model, rule, LAB_SEEDS.get(rule, SEEDS)) for rule in rules for model in LAB_MODELS],
    }


def noise(rules: tuple[str, ...], model: str) -> dict[str, list[Cell]]:
    """Returns the runs of Figures 5 and S1; for the deeper network the lab trains only one level of noise."""
    levels = NOISE if model == "resnet18" else DEEPER_NOISE
    return {
        "paper": [cell for rule in rules for cell in paper_noise_cells(model, rule)],
        "lab": [cell for rule in rules for cell in noise_cells(lab_cell(model, rule), levels, LAB_RATES)],
    }


def first_seed(rules: tuple[str, ...]) -> dict[str, list[Cell]]:
    """Returns one run of ResNet-18 per rule; at the paper's size there is no configuration of feedback alignment."""
    return {
        "paper": [paper_cell("resnet18", rule) for rule in rules if rule != "feedback"],
        "lab": [lab_cell("resnet18", rule, FIRST) for rule in rules],
    }
