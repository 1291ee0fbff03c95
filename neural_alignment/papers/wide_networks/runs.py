"""Networks that the accuracies of Boopathy and Fiete 2022 are made from: at the paper's size, and in the lab."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from neural_alignment.jobs.pieces import Piece, Pieces
from neural_alignment.jobs.plans import Cell, Run
from neural_alignment.papers.figures import Style
from neural_alignment.papers.wide_networks.printed import TABLE_2, TABLE_9, TABLE_10, WIDTHS
from neural_alignment.papers.wide_networks.sweeps import swept

Plan = dict[str, list]
"""Profile, `"paper"` or `"lab"` -> runs or pieces."""

RULE_STYLES = {
    "normal": Style("Normal", "o", "-", 0.0),
    "align_ada": Style("Align-ada", "s", "-", 0.25),
    "align_zero": Style("Align-zero", "^", "--", 0.25),
    "align_prop": Style("Align-prop", "v", "-.", 0.25),
    "dfa": Style("DFA", "D", "-", 0.6),
    "fa": Style("FA", "P", "--", 0.6),
    "last_layer": Style("Last layer", "X", ":", 0.6),
}
"""Learning rule, by its name in the tables -> look of its lines."""

WITHOUT_PROP = tuple(rule for rule in RULE_STYLES if rule != "align_prop")

SEEDS = (99, 100, 101, 102, 103)
"""Seeds of Table 2. The other tables have the first one, which is that of the published code."""

RATES = (1.0, 2.0, 5.0)
"""Learning rates of the paper in all tables except Table 10."""

LAB_RATES = (5.0,)
"""Learning rates of the lab: the largest, because the lab trains for far fewer epochs."""

MORE_RATES = {"paper": (0.05, 0.1, 0.2, 0.5, 10.0, 20.0), "lab": (0.5, 10.0)}
"""Profile -> further learning rates of Figure 3."""

ADAM_RATES = {
    "paper": (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5),
    "lab": (0.0005, 0.002, 0.01),
}
"""Profile -> learning rates of Table 10."""

SETTINGS = {"150 epochs": (150, False), "1 epoch": (1, False), "1 epoch, small rate": (1, True)}
"""Setting of Table 10 -> epochs in the paper, and whether only the smallest rate is tried."""

# Widths in the lab: of Tables 6 and 7, of Table 1, of Table 9, of Table 10; and training images of Table 9.
LAB_WIDTHS, PROP_WIDTHS, SMALL_WIDTHS, ADAM_WIDTHS = (8, 16, 32, 64), (8, 16, 32), (8, 16, 32), (8, 16)
NUMBERS = (450, 150, 45)

NARROW, WIDE = 8, 16
"""Widths of Figure 3 in the lab; the paper has 8 and 256."""

SEEDED_WIDTH = {"paper": 256, "lab": 8}
"""Profile -> width of Table 2."""

IMAGENET_WIDTH, IMAGENET_RATES = 512, (5.0,)
"""Filters of Figure 5 in the paper; its rate there (Appendix F) and in the lab."""

IMAGENET_RULES = ("normal", "align_ada", "align_zero", "dfa", "fa")

IMAGENET_SAMPLE = "IMAGENET_SAMPLE_DIR"
"""Environment variable with the folder of the sample for Figure 5: TFRecords train-* and validation-*."""

IMAGENET_LOSS = "ImageNet, training loss"

PIPELINE_CHECK = f"{IMAGENET_LOSS}: a check of the pipeline on a sample of 1,000 images"
"""Title of Figure 5 in the lab."""


class LabProtocol(NamedTuple):
    """How the lab trains on one data set.

    Attributes:
        config: path of the YAML file below the folder of configurations.
        test_split: split for the test accuracy; `None` for none.
        differs: differences from the paper except the learning rates, for a reader.
        rates: learning rates; the best one is reported.
        paper_rates: learning rates of the paper.
    """

    config: str
    test_split: str | None
    differs: str
    rates: tuple[float, ...] = RATES
    paper_rates: tuple[float, ...] = RATES

    def differences(self, rates: Sequence[float]) -> str:
        """Returns the differences from the paper of training at some learning rates."""
        if tuple(rates) == self.paper_rates:
            return self.differs
        return f"{self.differs}; {'rate' if len(rates) == 1 else 'rates'} {_against(rates, self.paper_rates)}"


def _against(ours: Sequence[float], papers: Sequence[float]) -> str:
    """Returns our values, and those of the paper in brackets."""
    return "{} ({})".format(*(", ".join(f"{value:g}" for value in values) for values in (ours, papers)))


_SMALLER = "images of 16 x 16 pixels (32 x 32), batches of 50 (100)"

CIFAR10 = LabProtocol(
    "lab/wide_networks/cifar10.yaml",
    "test",
    f"20,000 training images (45,000), 5 epochs (150), {_SMALLER}",
    LAB_RATES,
)
KMNIST = LabProtocol(
    "lab/wide_networks/kmnist.yaml",
    "test",
    "8,000 training images (55,000), taken from the 10,000 test images, 10 epochs (100), batches of 50 (100); "
    "validation 1,000 (5,000); test 1,000 (10,000)",
    LAB_RATES,
)
SMALL_CIFAR10 = LabProtocol(
    "wide_networks/small_cifar10/normal.yaml", "test", "nothing in the protocol; of the images see the docs"
)
IMAGENET = LabProtocol(
    "lab/wide_networks/imagenet.yaml",
    None,
    "1,000 images of 64 x 64 pixels, width 16, 4 epochs",
    IMAGENET_RATES,
    IMAGENET_RATES,
)


def sweep(
    protocol: LabProtocol,
    name: str,
    labels: Mapping[str, Any],
    overrides: Sequence[str] = (),
    rates: Sequence[float] = (),
    seed: int = SEEDS[0],
) -> Pieces:
    """Returns a network of the lab, trained at several rates in one process.

    Args:
        protocol: protocol of the data set.
        name: folder of its file.
        labels: labels in tables; `rule` and `width` are required, `differs` replaces that of the protocol.
        overrides: further overrides of the configuration.
        rates: learning rates; those of the protocol if empty.
        seed: seed of weights and order.
    """
    rule, width, rates = labels["rule"], labels["width"], tuple(rates or protocol.rates)
    option = {"fa": "feedback"}.get(rule, rule)
    alignment = () if rule == "normal" else (f"alignment={{rule: {option}}}",)
    start = Run(protocol.config, "", (f"model.width={width}", *alignment, *overrides, f"seed={seed}"))
    arguments = {"rates": list(rates), "test_split": protocol.test_split}
    piece = Piece(f"{name}/x{width}/{rule}/seed{seed}", swept, (start,), arguments)
    return Pieces({"differs": protocol.differences(rates), **labels, "seed": seed, "rates": rates}, (piece,))


def paper_cells(
    dataset: str,
    rule: str,
    width: int,
    name: str,
    labels: Mapping[str, Any],
    overrides: Sequence[str] = (),
    rates: Sequence[float] = RATES,
    seeds: Sequence[int] = SEEDS[:1],
) -> list[Cell]:
    """Returns the runs of one network at the paper's size, one per rate: NAME/xWIDTH/RULE/rateR/seedN.

    Args:
        dataset: folder of the configuration.
        rule: one of `RULE_STYLES`.
        width: width of the network.
        name: folder of the runs.
        labels: further labels in tables.
        overrides: further overrides of the configuration.
        rates: learning rates.
        seeds: seeds of the runs.
    """
    return [
        Cell(
            f"wide_networks/{dataset}/{rule}.yaml",
            f"{name}/x{width}/{rule}/rate{rate:g}",
            {**labels, "rule": rule, "width": width, "rate": rate, "differs": ""},
            (f"model.width={width}", f"optimization.forward.learning_rate={rate}", *overrides),
            tuple(seeds),
        )
        for rate in rates
    ]


def _by_width(
    protocol: LabProtocol,
    dataset: str,
    rules: Sequence[str],
    paper_widths: Sequence[int] = WIDTHS,
    lab_widths: Sequence[int] = LAB_WIDTHS,
) -> Plan:
    """Returns every rule with every width; the lab begins with the widest."""
    return {
        "paper": [
            cell for width in paper_widths for rule in rules for cell in paper_cells(dataset, rule, width, dataset, {})
        ],
        "lab": [
            sweep(protocol, dataset, {"rule": rule, "width": width}) for width in lab_widths[::-1] for rule in rules
        ],
    }


def table_1() -> Plan:
    """Returns the networks of Table 1."""
    return _by_width(CIFAR10, "cifar10", tuple(RULE_STYLES), WIDTHS[4:], PROP_WIDTHS)


def table_6() -> Plan:
    """Returns the networks of Table 6."""
    return _by_width(CIFAR10, "cifar10", WITHOUT_PROP)


def table_7() -> Plan:
    """Returns the networks of Table 7."""
    return _by_width(KMNIST, "kmnist", WITHOUT_PROP)


def table_2() -> Plan:
    """Returns the networks of Table 2: one width, several seeds."""
    paper, lab = SEEDED_WIDTH["paper"], SEEDED_WIDTH["lab"]
    return {
        "paper": [cell for rule in TABLE_2 for cell in paper_cells("cifar10", rule, paper, "cifar10", {}, seeds=SEEDS)],
        "lab": [
            sweep(CIFAR10, "cifar10", {"rule": rule, "width": lab}, seed=seed) for rule in TABLE_2 for seed in SEEDS
        ],
    }


def small(number: int) -> tuple[str, ...]:
    """Returns the overrides of Small CIFAR-10 with `number` training images, and as many validation images."""
    batch = number if number < 100 else math.gcd(100, number)
    return (
        f"data.train_split=train[5000:{5000 + number}]",
        f"data.validation_split=train[:{min(number, 5000)}]",
        f"batch_size={batch}",
        f"evaluation.batch_size={batch}",
    )


def table_9() -> Plan:
    """Returns the networks of Table 9; the lab has all rules, the paper leaves out two."""

    def labels(number: int, rule: str, width: int) -> dict[str, Any]:
        differs = {} if rule in TABLE_9[number] else {"differs": "not in the paper's table"}
        return {"rule": rule, "width": width, "train_images": number, **differs}

    return {
        "paper": [
            cell
            for number, rules in TABLE_9.items()
            for width in WIDTHS
            for rule in rules
            for cell in paper_cells(
                "small_cifar10", rule, width, f"small_cifar10/{number}", {"train_images": number}, small(number)
            )
        ],
        "lab": [
            sweep(SMALL_CIFAR10, f"small_cifar10/{number}", labels(number, rule, width), small(number))
            for number in NUMBERS
            for width in SMALL_WIDTHS[::-1]
            for rule in RULE_STYLES
        ],
    }


def table_10() -> Plan:
    """Returns the networks of Table 10: standard parameterization, Adam."""
    cells: Plan = {"paper": [], "lab": []}
    for setting, (epochs, small_rate) in SETTINGS.items():
        rates = {profile: every[: 1 if small_rate else None] for profile, every in ADAM_RATES.items()}
        name = f"adam/{setting.replace(', ', '_').replace(' ', '_')}"
        duration, shorter = ("1 epoch", ("epochs=1",)) if epochs == 1 else (f"4 epochs ({epochs})", ())
        differs = f"5,000 training images (45,000), {duration}, {_SMALLER}"
        protocol = LabProtocol("lab/wide_networks/adam.yaml", "test", differs, ADAM_RATES["lab"], rates["paper"])
        for rule in TABLE_10[setting]:
            labels = {"setting": setting, "rule": rule}
            for width in WIDTHS:
                cells["paper"] += paper_cells("adam", rule, width, name, labels, (f"epochs={epochs}",), rates["paper"])
            cells["lab"] += [
                sweep(protocol, name, {**labels, "width": width}, shorter, rates["lab"]) for width in ADAM_WIDTHS
            ]
    return cells


def figure_3() -> Plan:
    """Returns the networks of Figure 3: two widths, all rates, some of them in the tables; the lab has only KMNIST."""
    ours, papers = (sorted((*own, *MORE_RATES[key])) for own, key in ((LAB_RATES, "lab"), (RATES, "paper")))
    differs = f"{KMNIST.differs}; widths {NARROW}, {WIDE} (8, 256); rates {_against(ours, papers)}"
    labels = {"dataset": "kmnist", "differs": differs}
    return {
        "paper": [
            cell
            for dataset in ("cifar10", "kmnist")
            for width in (8, 256)
            for rule in WITHOUT_PROP
            for cell in paper_cells(dataset, rule, width, dataset, {"dataset": dataset}, rates=papers)
        ],
        "lab": [
            sweep(KMNIST, name, {**labels, "rule": rule, "width": width}, rates=rates)
            for width in (WIDE, NARROW)
            for rule in WITHOUT_PROP
            for name, rates in (("kmnist", KMNIST.rates), ("kmnist/more_rates", MORE_RATES["lab"]))
        ],
    }


def figure_4() -> Plan:
    """Returns the networks of Tables 6 and 7."""
    tables = {"cifar10": table_6(), "kmnist": table_7()}
    return {
        profile: [
            dataclasses.replace(cell, labels={**cell.labels, "dataset": dataset})
            for dataset, cells in tables.items()
            for cell in cells[profile]
        ]
        for profile in ("paper", "lab")
    }


def figure_5() -> Plan:
    """Returns the networks of Figure 5; the lab trains on the sample named by the environment."""
    folder = os.environ.get(IMAGENET_SAMPLE)
    files = [f"data.{part}_files={folder}/{part}-*" for part in ("train", "validation")] if folder else []
    # The paper lacked the memory for feedback matrices from every place of a layer.
    shared = {"dfa": ["alignment.share_space=true"]}
    return {
        "paper": [
            cell
            for rule in IMAGENET_RULES
            for cell in paper_cells("imagenet", rule, IMAGENET_WIDTH, "imagenet", {}, rates=IMAGENET_RATES)
        ],
        "lab": [
            sweep(IMAGENET, "imagenet", {"rule": rule, "width": 16}, [*files, *shared.get(rule, ())])
            for rule in IMAGENET_RULES
        ],
    }
