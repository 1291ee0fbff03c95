"""What Boopathy and Fiete 2022 trained feed-forward networks on, and the sizes here: data and nothing else."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

from neural_alignment.papers.figures import Style
from neural_alignment.papers.pieces import Piece, Pieces
from neural_alignment.papers.plans import Cell, Run
from neural_alignment.papers.wide_networks.printed import TABLE_2, TABLE_9, TABLE_10, WIDTHS
from neural_alignment.papers.wide_networks.sweeps import swept


class Rule(NamedTuple):
    """A learning rule of the tables.

    Attributes:
        option: what stands under `alignment` in a configuration; none for backpropagation.
        style: of its lines.
    """

    option: str | None
    style: Style


RULES = {
    "normal": Rule(None, Style("Normal", "o", "-", 0.0)),
    "align_ada": Rule("align_ada", Style("Align-ada", "s", "-", 0.25)),
    "align_zero": Rule("align_zero", Style("Align-zero", "^", "--", 0.25)),
    "align_prop": Rule("align_prop", Style("Align-prop", "v", "-.", 0.25)),
    "dfa": Rule("dfa", Style("DFA", "D", "-", 0.6)),
    "fa": Rule("feedback", Style("FA", "P", "--", 0.6)),
    "last_layer": Rule("last_layer", Style("Last layer", "X", ":", 0.6)),
}
"""Name of a rule in tables -> what it is."""

SEED = 99
"""Of the published code."""

SEEDS = (99, 100, 101, 102, 103)
"""Those of Table 2; of the first are the other tables."""

RATES = (1.0, 2.0, 5.0)
"""The paper's grid of all tables but Table 10."""

LAB_RATES = (5.0,)
"""The largest of them, all that the lab tries where it stops long before the paper does."""

MORE_RATES = {"paper": (0.05, 0.1, 0.2, 0.5, 10.0, 20.0), "lab": (0.5, 10.0)}
"""Profile -> what Figure 3 has beside those of the tables."""

LAB_WIDTHS = (8, 16, 32, 64)

PROP_WIDTHS = (8, 16, 32)
"""Widths of Table 1 in the lab."""

NARROW, WIDE = 8, 16
"""The two networks of Figure 3 in the lab; the paper has 8 and 256."""

SEEDED_WIDTH = {"paper": 256, "lab": 8}
"""Profile -> width of Table 2."""

NUMBERS = (450, 150, 45)
"""Training images of Table 9 in the lab; what takes longest first."""

SMALL_WIDTHS = (8, 16, 32)
"""Widths of Table 9 in the lab."""

ADAM_RATES = {
    "paper": (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5),
    "lab": (0.0005, 0.002, 0.01),
}
"""Profile -> rates of Table 10."""

SETTINGS = {"150 epochs": (150, False), "1 epoch": (1, False), "1 epoch, small rate": (1, True)}
"""Setting of Table 10 -> epochs in the paper, and whether the smallest rate alone is tried."""

ADAM_RULES = tuple(TABLE_10["1 epoch"])

ADAM_WIDTHS = (8, 16)
"""Widths of Table 10 in the lab."""

IMAGENET_WIDTH = 512
"""Filters of Figure 5 in the paper."""

IMAGENET_RATES = (5.0,)
"""Of Figure 5, in the paper (Appendix F) and here."""

IMAGENET_RULES = ("normal", "align_ada", "align_zero", "dfa", "fa")

_OF_IMAGENET = {"dfa": ("alignment.share_space=true",)}
"""Rule -> overrides: with maps for every place of a layer the paper had not the memory."""

IMAGENET_SAMPLE = "IMAGENET_SAMPLE_DIR"
"""Environment variable that names the folder of the sample for Figure 5, TFRecords train-* and validation-*."""


class Protocol(NamedTuple):
    """How the lab trains on one data set.

    Attributes:
        config: path of the YAML file below the folder of configurations.
        test_split: for the real test accuracy.
        differs: for a reader, in what it is not the paper's, rates apart.
        rates: learning rates, of which the best is told.
        grid: those of the paper.
    """

    config: str
    test_split: str | None
    differs: str
    rates: tuple[float, ...] = RATES
    grid: tuple[float, ...] = RATES

    def told(self, rates: Sequence[float]) -> str:
        """Returns for a reader in what it is not the paper's, with these rates."""
        if tuple(rates) == self.grid:
            return self.differs
        ours, papers = (", ".join(f"{rate:g}" for rate in each) for each in (rates, self.grid))
        return f"{self.differs}; {'rate' if len(rates) == 1 else 'rates'} {ours} ({papers})"


_SMALLER = "images of 16 x 16 pixels (32 x 32), batches of 50 (100)"

CIFAR10 = Protocol(
    "lab/wide_networks/cifar10.yaml",
    "test",
    f"20,000 training images (45,000), 5 epochs (150), {_SMALLER}",
    LAB_RATES,
)
KMNIST = Protocol(
    "lab/wide_networks/kmnist.yaml",
    "test",
    "8,000 training images (55,000), taken from the 10,000 test images, 10 epochs (100), batches of 50 (100); "
    "validation 1,000 (5,000); test 1,000 (10,000)",
    LAB_RATES,
)
SMALL_CIFAR10 = Protocol(
    "wide_networks/small_cifar10/normal.yaml", "test", "nothing in the protocol; of the images see the docs"
)
IMAGENET = Protocol(
    "lab/wide_networks/imagenet.yaml",
    None,
    "1,000 images of 64 x 64 pixels, width 16, 4 epochs",
    IMAGENET_RATES,
    IMAGENET_RATES,
)

IMAGENET_LOSS = "ImageNet, training loss"

PIPELINE_CHECK = f"{IMAGENET_LOSS}: a check of the pipeline on a sample of 1,000 images"
"""What Figure 5 is in the lab."""


def _of_rule(rule: str) -> tuple[str, ...]:
    """Returns the overrides that make a lab configuration one of a rule."""
    option = RULES[rule].option
    return () if option is None else (f"alignment={{rule: {option}}}",)


def sweep(
    protocol: Protocol,
    name: str,
    labels: dict[str, Any],
    overrides: Sequence[str] = (),
    rates: Sequence[float] = (),
    seed: int = SEED,
) -> Pieces:
    """Returns a network trained at several rates, in one process.

    Args:
        protocol: of the data set.
        name: of the folder of its file.
        labels: what it is called in tables; `rule` and `width` say what is trained, `differs` what the protocol does
            not.
        overrides: of the configuration, besides.
        rates: learning rates; none for those of the protocol.
        seed: of weights and order.
    """
    rule, width, rates = labels["rule"], labels["width"], tuple(rates or protocol.rates)
    start = Run(protocol.config, "", (f"model.width={width}", *_of_rule(rule), *overrides, f"seed={seed}"))
    arguments = {"rates": list(rates), "test_split": protocol.test_split}
    piece = Piece(f"{name}/x{width}/{rule}/seed{seed}", swept, (start,), arguments)
    return Pieces({"differs": protocol.told(rates), **labels, "seed": seed, "rates": rates}, (piece,))


def paper_cells(
    dataset: str,
    rule: str,
    width: int,
    name: str,
    labels: dict[str, Any],
    overrides: Sequence[str] = (),
    rates: Sequence[float] = RATES,
    seeds: Sequence[int] = (SEED,),
) -> list[Cell]:
    """Returns the runs of the paper's size, one per rate, wherever they were trained: NAME/xWIDTH/RULE/rateR/seedN.

    Args:
        dataset: folder of the configuration.
        rule: one of `RULES`.
        width: of the network.
        name: of the folder of the runs.
        labels: what they are called in tables, besides.
        overrides: of the configuration, besides.
        rates: learning rates.
        seeds: of the runs.
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


def _grid(
    protocol: Protocol,
    dataset: str,
    rules: Sequence[str],
    paper_widths: Sequence[int],
    lab_widths: Sequence[int] = LAB_WIDTHS,
) -> dict[str, list]:
    """Returns every rule with every width, of both profiles."""
    return {
        "paper": [
            cell for width in paper_widths for rule in rules for cell in paper_cells(dataset, rule, width, dataset, {})
        ],
        "lab": [
            sweep(protocol, dataset, {"rule": rule, "width": width}) for width in lab_widths[::-1] for rule in rules
        ],
    }


WITHOUT_PROP = tuple(rule for rule in RULES if rule != "align_prop")


def table_1() -> dict[str, list]:
    """Returns the networks of Table 1."""
    return _grid(CIFAR10, "cifar10", tuple(RULES), WIDTHS[4:], PROP_WIDTHS)


def table_6() -> dict[str, list]:
    """Returns the networks of Table 6."""
    return _grid(CIFAR10, "cifar10", WITHOUT_PROP, WIDTHS)


def table_7() -> dict[str, list]:
    """Returns the networks of Table 7."""
    return _grid(KMNIST, "kmnist", WITHOUT_PROP, WIDTHS)


def table_2() -> dict[str, list]:
    """Returns the networks of Table 2: one width, several seeds."""
    paper, lab = SEEDED_WIDTH["paper"], SEEDED_WIDTH["lab"]
    return {
        "paper": [cell for rule in TABLE_2 for cell in paper_cells("cifar10", rule, paper, "cifar10", {}, seeds=SEEDS)],
        "lab": [
            sweep(CIFAR10, "cifar10", {"rule": rule, "width": lab}, seed=seed) for rule in TABLE_2 for seed in SEEDS
        ],
    }


def small(number: int) -> tuple[str, ...]:
    """Returns the overrides of Small CIFAR-10 with so many images: batches, and a validation set of the same size."""
    batch = number if number < 100 else math.gcd(100, number)
    return (
        f"data.train_split=train[5000:{5000 + number}]",
        f"data.validation_split=train[:{min(number, 5000)}]",
        f"batch_size={batch}",
        f"evaluation.batch_size={batch}",
    )


def table_9() -> dict[str, list]:
    """Returns the networks of Table 9; the lab has all rules, of which the paper leaves out two."""
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
            sweep(
                SMALL_CIFAR10,
                f"small_cifar10/{number}",
                {"rule": rule, "width": width, "train_images": number}
                | ({} if rule in TABLE_9[number] else {"differs": "not in the paper's table"}),
                small(number),
            )
            for number in NUMBERS
            for width in SMALL_WIDTHS[::-1]
            for rule in RULES
        ],
    }


def table_10() -> dict[str, list]:
    """Returns the networks of Table 10: standard parameterization, Adam."""
    cells: dict[str, list] = {"paper": [], "lab": []}
    for setting, (epochs, small_rate) in SETTINGS.items():
        rates = {profile: every[: 1 if small_rate else None] for profile, every in ADAM_RATES.items()}
        name = f"adam/{setting.replace(', ', '_').replace(' ', '_')}"
        shorter = (f"epochs={epochs}",) if epochs == 1 else ()
        for rule in ADAM_RULES:
            labels = {"setting": setting, "rule": rule}
            for width in WIDTHS:
                cells["paper"] += paper_cells("adam", rule, width, name, labels, (f"epochs={epochs}",), rates["paper"])
            ours = _adam(epochs, rates["paper"])
            cells["lab"] += [sweep(ours, name, {**labels, "width": w}, shorter, rates["lab"]) for w in ADAM_WIDTHS]
    return cells


def _adam(epochs: int, grid: Sequence[float]) -> Protocol:
    """Returns the protocol of a setting of Table 10, of the paper's epochs and rates."""
    told = "1 epoch" if epochs == 1 else f"4 epochs ({epochs})"
    differs = f"5,000 training images (45,000), {told}, {_SMALLER}"
    return Protocol("lab/wide_networks/adam.yaml", "test", differs, ADAM_RATES["lab"], tuple(grid))


def figure_3() -> dict[str, list]:
    """Returns the networks of Figure 3: two widths, all rates; those of the tables are theirs. The lab has KMNIST."""
    ours, papers = (sorted((*own, *MORE_RATES[key])) for own, key in ((LAB_RATES, "lab"), (RATES, "paper")))
    told = "{} ({})".format(*(", ".join(f"{rate:g}" for rate in each) for each in (ours, papers)))
    return {
        "paper": [
            cell
            for dataset in ("cifar10", "kmnist")
            for width in (8, 256)
            for rule in WITHOUT_PROP
            for cell in paper_cells(dataset, rule, width, dataset, {"dataset": dataset}, rates=papers)
        ],
        "lab": [
            sweep(
                KMNIST,
                name,
                {
                    "dataset": "kmnist",
                    "rule": rule,
                    "width": width,
                    "differs": f"{KMNIST.differs}; widths {NARROW}, {WIDE} (8, 256); rates {told}",
                },
                rates=rates,
            )
            for width in (WIDE, NARROW)
            for rule in WITHOUT_PROP
            for name, rates in (("kmnist", KMNIST.rates), ("kmnist/more_rates", MORE_RATES["lab"]))
        ],
    }


def figure_4() -> dict[str, list]:
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


def figure_5() -> dict[str, list]:
    """Returns the networks of Figure 5; the lab's are trained on the sample that the environment names."""
    folder = os.environ.get(IMAGENET_SAMPLE)
    files = [f"data.{part}_files={folder}/{part}-*" for part in ("train", "validation")] if folder else []
    return {
        "paper": [
            cell
            for rule in IMAGENET_RULES
            for cell in paper_cells("imagenet", rule, IMAGENET_WIDTH, "imagenet", {}, rates=IMAGENET_RATES)
        ],
        "lab": [
            sweep(IMAGENET, "imagenet", {"rule": rule, "width": 16}, [*files, *_OF_IMAGENET.get(rule, ())])
            for rule in IMAGENET_RULES
        ],
    }
