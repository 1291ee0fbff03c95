"""The networks of the tables and figures of Boopathy and Fiete 2022: at the paper's size, and in the lab."""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from neural_alignment.jobs.pieces import Arrays, Piece, Pieces
from neural_alignment.jobs.plans import Cell, Run
from neural_alignment.papers.registry import Profiles
from neural_alignment.papers.wide_networks.compute.add_task import ADD_TASK_RULES, EPOCHS, PUBLISHED_SEED, trained
from neural_alignment.papers.wide_networks.compute.limits import measured
from neural_alignment.papers.wide_networks.compute.scoring import scored
from neural_alignment.papers.wide_networks.compute.sweeps import swept
from neural_alignment.papers.wide_networks.compute.updates import parted
from neural_alignment.papers.wide_networks.printed import TABLE_3, TABLE_4, TABLE_5, TABLE_9, TABLE_10, WIDTHS

RULE_NAMES = {
    "normal": "Normal",
    "align_ada": "Align-ada",
    "align_zero": "Align-zero",
    "align_prop": "Align-prop",
    "dfa": "DFA",
    "fa": "FA",
    "last_layer": "Last layer",
    "readout_only": "Readout only",
}
"""Learning rule -> its name in tables and figures."""

TABLE_RULES = tuple(rule for rule in RULE_NAMES if rule != "readout_only")
"""Learning rules of the convolutional networks."""

WITHOUT_PROP = tuple(rule for rule in TABLE_RULES if rule != "align_prop")

COMPARED = ("normal", "align_ada")
"""The rules of the paper's main claim."""

SEEDS = (99, 100, 101, 102, 103)
"""Seeds of Table 2. The other tables have the first one, which is that of the published code."""

RATES, LAB_RATES = (1.0, 2.0, 5.0), (5.0,)
"""Learning rates of all tables except Table 10. The lab has the largest, because it trains for far fewer epochs."""

MORE_RATES = {"paper": (0.05, 0.1, 0.2, 0.5, 10.0, 20.0), "lab": (0.5, 10.0)}
"""Profile -> further learning rates of Figure 3."""

ADAM_RATES = {"paper": (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5), "lab": (0.0005, 0.002, 0.01)}
"""Profile -> learning rates of Table 10."""

SETTINGS = {"150 epochs": (150, False), "1 epoch": (1, False), "1 epoch, small rate": (1, True)}
"""Setting of Table 10 -> epochs in the paper, and whether only the smallest rate is tried."""

BY_WIDTH, PROP_WIDTHS = {"paper": WIDTHS, "lab": (64, 32, 16, 8)}, {"paper": WIDTHS[4:], "lab": (32, 16, 8)}
"""Profile -> widths of Tables 6 and 7, and of Table 1."""

SMALL_WIDTHS, NUMBERS, ADAM_WIDTHS = (32, 16, 8), (450, 150, 45), (8, 16)
"""In the lab, widths and numbers of training images of Table 9, and widths of Table 10."""

NARROW, WIDE = 8, 16
"""Widths of Figure 3 in the lab; the paper has 8 and 256."""

SEEDED_WIDTHS = {"paper": (256,), "lab": (8,)}
"""Profile -> width of Table 2."""

IMAGENET_SAMPLE = "IMAGENET_SAMPLE_DIR"
"""Environment variable with the folder of the sample for Figure 5: TFRecords train-* and validation-*."""


@dataclass(frozen=True)
class _Networks:
    """Networks of one data set that differ in rule, width and seed; of their learning rates the best one is reported.

    In the path of the configuration, `{rule}` stands for the rule. `name` is the folder of the results; overrides and
    labels are further ones.
    """

    config: str
    name: str
    rates: tuple[float, ...] = RATES
    overrides: tuple[str, ...] = ()
    labels: Mapping[str, Any] = field(default_factory=dict)

    def each(self, rules: Sequence[str], widths: Sequence[int], seeds: Sequence[int] = SEEDS[:1]) -> list:
        """Returns every rule with every width and seed."""
        return [network for width in widths for rule in rules for network in self.of(rule, width, seeds)]


class PaperRuns(_Networks):
    """Networks of the paper's size: a run per rate and seed, NAME/xWIDTH/RULE/rateR/seedN."""

    def of(self, rule: str, width: int, seeds: Sequence[int]) -> list[Cell]:
        """Returns the networks of a rule and a width."""
        return [
            Cell(
                self.config.format(rule=rule),
                f"{self.name}/x{width}/{rule}/rate{rate:g}",
                {**self.labels, "rule": rule, "width": width, "rate": rate, "differs": ""},
                (f"model.width={width}", f"optimization.forward.learning_rate={rate}", *self.overrides),
                tuple(seeds),
            )
            for rate in self.rates
        ]


@dataclass(frozen=True)
class LabSweeps(_Networks):
    """Networks of the lab, each trained at all rates by one piece: NAME/xWIDTH/RULE/seedN.

    `differs` are the differences from the paper, for a reader; `options` maps a rule to its alignment in YAML, where it
    is not `{rule: RULE}`; `unprinted` are rules that the paper's table does not have.
    """

    differs: str = ""
    test_split: str | None = "test"
    options: Mapping[str, str] = field(default_factory=lambda: {"fa": "{rule: feedback}"})
    unprinted: tuple[str, ...] = ()

    def of(self, rule: str, width: int, seeds: Sequence[int]) -> list[Pieces]:
        """Returns the networks of a rule and a width."""
        option = self.options.get(rule, f"{{rule: {rule}}}")
        overrides = (f"model.width={width}", *([] if rule == "normal" else [f"alignment={option}"]), *self.overrides)
        differs = "not in the paper's table" if rule in self.unprinted else self.differs
        labels = {"differs": differs, **self.labels, "rule": rule, "width": width, "rates": self.rates}
        arguments = {"rates": list(self.rates), "test_split": self.test_split}
        name = f"{self.name}/x{{width}}/{{rule}}/seed{{seed}}"
        starts = {seed: Run(self.config, "", (*overrides, f"seed={seed}")) for seed in seeds}
        return [_piece(name, {**labels, "seed": seed}, swept, arguments, start) for seed, start in starts.items()]


def _piece(
    name: str, labels: Mapping[str, Any], compute: Callable[..., Arrays], arguments: Mapping[str, Any], *starts: Run
) -> Pieces:
    """Returns one piece; its labels are put into its name."""
    return Pieces(labels, (Piece(name.format(**labels), compute, starts, arguments),))


def _rates(ours: Sequence[float], papers: Sequence[float]) -> str:
    """Returns the difference in the learning rates, for a reader; those of the paper are in brackets."""
    values = "{} ({})".format(*(", ".join(f"{rate:g}" for rate in each) for each in (ours, papers)))
    return "" if tuple(ours) == tuple(papers) else f"; {'rate' if len(ours) == 1 else 'rates'} {values}"


_SMALLER = "images of 16 x 16 pixels (32 x 32), batches of 50 (100)"
_SMALL_KMNIST = (
    "8,000 training images (55,000), taken from the 10,000 test images, 10 epochs (100), batches of 50 (100); "
    "validation 1,000 (5,000); test 1,000 (10,000)"
)

_DIFFERS = {
    "cifar10": f"20,000 training images (45,000), 5 epochs (150), {_SMALLER}{_rates(LAB_RATES, RATES)}",
    "kmnist": f"{_SMALL_KMNIST}{_rates(LAB_RATES, RATES)}",
}
DATA_SETS = {
    name: {
        "paper": PaperRuns(f"wide_networks/{name}/{{rule}}.yaml", name),
        "lab": LabSweeps(f"lab/wide_networks/{name}.yaml", name, LAB_RATES, differs=differs),
    }
    for name, differs in _DIFFERS.items()
}
"""Data set -> profile -> its networks."""

SMALL_CIFAR10 = {
    "paper": PaperRuns("wide_networks/small_cifar10/{rule}.yaml", ""),
    "lab": LabSweeps(
        "wide_networks/small_cifar10/normal.yaml",
        "",
        differs="nothing in the protocol; of the images see the docs",
        unprinted=tuple(rule for rule in TABLE_RULES if rule not in TABLE_9[NUMBERS[0]]),
    ),
}
IMAGENET = {
    "paper": PaperRuns("wide_networks/imagenet/{rule}.yaml", "imagenet", LAB_RATES),
    # The paper lacked the memory for feedback matrices from every place of a layer.
    "lab": LabSweeps(
        "lab/wide_networks/imagenet.yaml",
        "imagenet",
        LAB_RATES,
        differs="1,000 images of 64 x 64 pixels, width 16, 4 epochs",
        test_split=None,
        options={"fa": "{rule: feedback}", "dfa": "{rule: dfa, share_space: true}"},
    ),
}
"""Profile -> networks of a data set. On ImageNet the paper has one rate, which the lab has as well (Appendix F)."""


# Experiments of hours, which the command `lab` leaves out.

LONGER = {
    "kmnist": dataclasses.replace(
        DATA_SETS["kmnist"]["lab"],
        config="wide_networks/kmnist/normal.yaml",
        overrides=("epochs=688", "data.train_split=train[1000:]", "data.validation_split=train[:1000]"),
        differs="8,000 training images (55,000), taken from the 10,000 test images, 688 epochs (100), which are 55,040 "
        "updates (55,000); validation 1,000 (5,000); test 1,000 (10,000)",
    ),
    "cifar10": dataclasses.replace(
        DATA_SETS["cifar10"]["lab"],
        config="wide_networks/cifar10/normal.yaml",
        overrides=("data.image_size=16",),
        differs="images of 16 x 16 pixels (32 x 32)",
    ),
}
"""Data set -> networks trained for the paper's number of updates, in batches of 100."""

LONGER_NETWORKS = (("kmnist", 8), ("cifar10", 8), ("kmnist", 16))
"""Data set and width of these networks, in the order in which they are trained."""


def longer() -> list[Pieces]:
    """Returns these networks by every rule of Tables 6 and 7, a piece per learning rate."""
    return [
        pieces
        for (name, width), rate in itertools.product(LONGER_NETWORKS, sorted(RATES, reverse=True))
        for networks in [dataclasses.replace(LONGER[name], name=f"longer/{name}/rate{rate:g}", rates=(rate,))]
        for pieces in dataclasses.replace(networks, labels={"dataset": name}).each(WITHOUT_PROP, [width])
    ]


SEEDED = (8, 64)
"""Widths at which both data sets are trained with several seeds."""


def seeded() -> list[Pieces]:
    """Returns backpropagation and Align-ada with every seed."""
    return [
        pieces
        for name in reversed(DATA_SETS)
        for pieces in dataclasses.replace(DATA_SETS[name]["lab"], labels={"dataset": name}).each(
            COMPARED, SEEDED, SEEDS
        )
    ]


def plan(
    networks: Mapping[str, _Networks],
    rules: Sequence[str],
    widths: Mapping[str, Sequence[int]],
    seeds: Sequence[int] = SEEDS[:1],
    **labels: Any,
) -> Profiles:
    """Returns every rule with every width and seed; `widths` and `networks` are by profile."""
    labelled = {profile: dataclasses.replace(each, labels=labels) for profile, each in networks.items()}
    return {profile: each.each(rules, widths[profile], seeds) for profile, each in labelled.items()}


def small(number: int, subset: int = 0) -> tuple[str, ...]:
    """Returns the overrides of Small CIFAR-10 with `number` training images, and as many validation images.

    Each subset has other images.
    """
    batch, first = number if number < 100 else math.gcd(100, number), subset * NUMBERS[0]
    return (
        f"data.train_split=train[{5000 + first}:{5000 + first + number}]",
        f"data.validation_split=train[{first or ''}:{min(first + number, 5000)}]",
        f"batch_size={batch}",
        f"evaluation.batch_size={batch}",
    )


def table_9() -> Profiles:
    """Returns the networks of Table 9; the lab has all rules, the paper leaves out two."""
    return {
        "paper": [
            cell for number in TABLE_9 for cell in _small_networks("paper", number).each(TABLE_9[number], WIDTHS)
        ],
        "lab": [cell for number in NUMBERS for cell in _small_networks("lab", number).each(TABLE_RULES, SMALL_WIDTHS)],
    }


def _small_networks(profile: str, number: int, subset: int = 0) -> _Networks:
    name = f"small_cifar10/{number}" + (f"/subset{subset}" if subset else "")
    labels = {"train_images": number, "subset": subset}
    return dataclasses.replace(SMALL_CIFAR10[profile], overrides=small(number, subset), name=name, labels=labels)


SUBSETS = range(5)
"""Subsets of Small CIFAR-10; Table 9 has the first one."""


def subsets() -> list[Pieces]:
    """Returns the networks of Table 9 on all subsets; the rules that its claims compare are trained first."""
    return [
        pieces
        for rules in (COMPARED, [rule for rule in TABLE_RULES if rule not in COMPARED])
        for number, subset in itertools.product(NUMBERS[::-1], SUBSETS)
        for pieces in _small_networks("lab", number, subset).each(rules, SMALL_WIDTHS)
    ]


def table_10() -> Profiles:
    """Returns the networks of Table 10: standard parameterization, Adam."""
    plan: Profiles = {"paper": [], "lab": []}
    for setting, (epochs, small_rate) in SETTINGS.items():
        papers, ours = (ADAM_RATES[profile][: 1 if small_rate else None] for profile in ("paper", "lab"))
        name, labels = f"adam/{setting.replace(', ', '_').replace(' ', '_')}", {"setting": setting}
        duration, shorter = ("1 epoch", ("epochs=1",)) if epochs == 1 else (f"4 epochs ({epochs})", ())
        differs = f"5,000 training images (45,000), {duration}, {_SMALLER}{_rates(ours, papers)}"
        paper = PaperRuns("wide_networks/adam/{rule}.yaml", name, papers, (f"epochs={epochs}",), labels)
        lab = LabSweeps("lab/wide_networks/adam.yaml", name, ours, shorter, labels, differs)
        for rule in TABLE_10[setting]:
            plan["paper"] += paper.each([rule], WIDTHS)
            plan["lab"] += lab.each([rule], ADAM_WIDTHS)
    return plan


def figure_3() -> Profiles:
    """Returns the networks of Figure 3: two widths, all rates, some of them in the tables; the lab has only KMNIST."""
    ours, papers = (tuple(sorted((*own, *MORE_RATES[key]))) for own, key in ((LAB_RATES, "lab"), (RATES, "paper")))
    paper = [
        dataclasses.replace(networks["paper"], rates=papers, labels={"dataset": name})
        for name, networks in DATA_SETS.items()
    ]
    differs = f"{_SMALL_KMNIST}; widths {NARROW}, {WIDE} (8, 256){_rates(ours, papers)}"
    lab = dataclasses.replace(DATA_SETS["kmnist"]["lab"], differs=differs, labels={"dataset": "kmnist"})
    more = dataclasses.replace(lab, name="kmnist/more_rates", rates=MORE_RATES["lab"])
    return {
        "paper": [cell for each in paper for cell in each.each(WITHOUT_PROP, (8, 256))],
        "lab": [cell for each in (lab, more) for cell in each.each(WITHOUT_PROP, (WIDE, NARROW))],
    }


def figure_5() -> Profiles:
    """Returns the networks of Figure 5; the lab trains on the sample named by the environment."""
    folder = os.environ.get(IMAGENET_SAMPLE)
    files = tuple(f"data.{part}_files={folder}/{part}-*" for part in ("train", "validation")) if folder else ()
    networks = {**IMAGENET, "lab": dataclasses.replace(IMAGENET["lab"], overrides=files)}
    rules = ("normal", "align_ada", "align_zero", "dfa", "fa")
    return plan(networks, rules, {"paper": (512,), "lab": (16,)})


# Alignment scores: Tables 3 to 5, Figures 1 and 8.


@dataclass(frozen=True)
class Scored:
    """Networks whose layers are scored after the epochs `moments`; these take a few minutes on 2 cores.

    `overrides` set the size of the lab, `paper` maps (layer, width) to the score that the paper prints, and `differs`
    are the differences from the paper, for a reader.
    """

    title: str
    config: str
    overrides: tuple[str, ...]
    moments: tuple[int, ...]
    paper: Mapping[tuple[int, int], float]
    differs: str
    seeds: tuple[int, ...] = SEEDS[:3]


_SCORED_CIFAR10 = ("data.train_split=train[5000:7000]", "data.validation_split=train[:100]", "data.image_size=16")

SCORED = {
    "cifar10": Scored(
        "CIFAR-10, ReLU",
        "wide_networks/cifar10/normal.yaml",
        (*_SCORED_CIFAR10, "optimization.forward.learning_rate=5.0"),
        (1, 2, 4, 7, 10),
        TABLE_3,
        "2,000 images of 16 x 16 pixels for 10 epochs at rate 5, as in the published code; the paper: 45,000 of "
        "32 x 32 for 150, rate 1 as printed",
    ),
    "kmnist": Scored(
        "KMNIST, ReLU",
        "wide_networks/kmnist/normal.yaml",
        ("data.train_split=train", "data.validation_split=test[:100]", "optimization.forward.learning_rate=5.0"),
        (1, 2, 3, 4, 5),
        TABLE_4,
        "9,000 images for 5 epochs at rate 5, as in the published code; the paper: 55,000 for 100",
    ),
    "cifar10_tanh": Scored(
        "CIFAR-10, tanh",
        "wide_networks/cifar10/normal.yaml",
        (*_SCORED_CIFAR10, "optimization.forward.learning_rate=2.0", "model.activation=tanh"),
        (1, 2, 4, 7, 10),
        TABLE_5,
        "2,000 images of 16 x 16 pixels for 10 epochs at rate 2; the paper: 45,000 of 32 x 32 for 100, rate 2",
    ),
}
"""Name -> networks of Tables 3 to 5."""

SCORED_WIDTHS = (8, 16, 32, 64)
"""Widths of these networks; those of the paper go up to 512."""

SHOWN_SCORES = ("cifar10", "kmnist")
"""Networks of Figures 1 and 8."""


def scores(*names: str) -> list[Pieces]:
    """Returns a network for each width and seed of some entries of `SCORED`; Appendix F has the 100 probes."""
    return [
        _piece(
            "scores/{setting}/{width}/seed{seed}",
            {"setting": name, "width": width, "seed": seed},
            scored,
            {"moments": SCORED[name].moments, "probes": 100},
            Run(SCORED[name].config, "", (*SCORED[name].overrides, f"model.width={width}", f"seed={seed}")),
        )
        for name in names
        for width, seed in itertools.product(SCORED_WIDTHS, SCORED[name].seeds)
    ]


# The Add task: Table 8 and Figure 9.

ADD_SEEDS, ADD_SEEDED_WIDTHS = (100, 101, 102, 103, 104), (8, 16, 32, 64, 128)
"""Further seeds of the weights and shuffles, which show how much the table depends on the published one, and the widths
trained with them; 256 and 512 take minutes each."""

WIDER = (1024, 2048)
"""Further widths of the published seed, which take an hour or more each."""


def recurrent(epochs: int = EPOCHS, widths: Sequence[int] = WIDTHS) -> list[Pieces]:
    """Returns a recurrent network for each rule, width and seed."""
    return [
        _piece("recurrent/{width}/{rule}/seed{seed}", labels, trained, {**labels, "epochs": epochs})
        for width, rule in itertools.product(widths, ADD_TASK_RULES)
        for seed in (PUBLISHED_SEED, *(ADD_SEEDS if width in ADD_SEEDED_WIDTHS else ()))
        for labels in [{"rule": rule, "width": width, "seed": seed}]
    ]


# Outputs and updates beside those of gradient descent: Figure 2 and Proposition 2.

ACTIVATIONS = {"tanh": "tanh", "relu": "ReLU, outside of the proposition"}
"""Activation -> its title. Only tanh has the bounded first and second derivatives that the proposition requires."""

UPDATE_WIDTHS, UPDATE_SEEDS = (8, 16, 32, 64, 128, 256, 512, 1024), SEEDS

SHOWN_UPDATES = (UPDATE_WIDTHS[0], UPDATE_WIDTHS[-1])
"""Widths of Figure 2."""

SIZES = {"hidden": 3, "examples": 64, "rate": 0.25, "moments": (1, 20, 60, 200), "side": 24}
"""Fields of `updates.Experiment`. The rate is small because the proposition is about gradient flow: at a rate of 1 some
narrow networks oscillate."""


def updates(widths: Sequence[int] = UPDATE_WIDTHS, activations: Sequence[str] = tuple(ACTIVATIONS)) -> list[Pieces]:
    """Returns the networks of each activation, width and seed."""
    return [
        _piece("updates/{width}/{activation}/seed{seed}", labels, parted, {**labels, **SIZES})
        for each in itertools.product(activations, widths, UPDATE_SEEDS)
        for labels in [dict(zip(("activation", "width", "seed"), each, strict=True))]
    ]


def limits() -> list[Pieces]:
    """Returns the tanh networks of Proposition 1, Lemma 1 and equation 57, of each width and seed."""
    return [
        _piece("limits/{width}/seed{seed}", labels, measured, {"activation": "tanh", **labels, **SIZES})
        for width, seed in itertools.product(UPDATE_WIDTHS[:-1], UPDATE_SEEDS)
        for labels in [{"width": width, "seed": seed}]
    ]
