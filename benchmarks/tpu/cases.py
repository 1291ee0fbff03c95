"""The training steps that `make tpu-check` compiles, the most important first."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from neural_alignment.config import Config

BF16, F32 = "mixed_bfloat16", "float32"


class Case(NamedTuple):
    """One step of one configuration on one TPU.

    Attributes:
        chip: type of the TPU.
        model: name of the network, as in the tables.
        rule: name of the rule, as in the names of configurations.
        loss: the losses that the step trains: "J", "R" or "J + R".
        precision: `runtime.precision`.
        path: the configuration, below configs/.
        overrides: overrides of the configuration.
    """

    chip: str
    model: str
    rule: str
    loss: str
    precision: str
    path: str
    overrides: tuple[str, ...] = ()

    @property
    def key(self) -> tuple[str, ...]:
        """The columns that identify the case in the table."""
        return self[:5]

    def config(self) -> Config:
        """Returns the configuration."""
        from benchmarks.common import ROOT
        from neural_alignment import config

        return config.load(ROOT / "configs" / self.path, (*self.overrides, f"runtime.precision={self.precision}"))


FIRST = ("symmetric", "information", "activation", "weight_mirror", "backprop")
NOT_STORED = {rule: f"alignment.rule={rule}" for rule in ("feedback", "sign_symmetry", "frsf", "brsf")}
NOT_STORED["pfa"] = "alignment={rule: pfa, decay: 1.0e-4}"
"""Rule without a configuration of ResNet-18 -> override of that of backpropagation."""

OTHERS = ("kolen_pollack", "weight_mirror_adam", "weight_mirror_adam_ops", *NOT_STORED)

TABLE_4 = ("symmetric", "activation", "backprop")
NETWORKS = {"resnet50": "ResNet-50", "resnet50v2": "ResNet-50v2", "resnet101v2": "ResNet-101v2"}
NETWORKS |= {"resnet152v2": "ResNet-152v2"}

WHOLE_NETWORK = {
    "align_zero": "",
    "align_ada": "",
    "align_prop": "alignment.rule=align_prop",
    "dfa": "",
    "drtp": "alignment={rule: drtp, share_space: true}",
    "last_layer": "alignment.rule=last_layer",
}
"""Rule for a whole network, or of the paper on wide networks -> override of the configuration of backpropagation; empty
if the rule has its own."""

SIGN = ", sign noise"
"""End of the name of a rule with this noise."""

WIDE = ("data.train_examples=1281167", "data.validation_examples=50000")
"""The data of the 8-layer network."""

SHARED = ("evaluation.batch_size=512",)
"""A batch of the evaluation that 8 cores can share, near the 500 of the configurations of small images."""

ONE_CORE = ("v3-1", "v6e-1")
"""TPUs for networks that use the statistics of the whole batch, which cores do not share."""


@functools.cache
def losses(path: str, overrides: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Returns the losses of the steps that a configuration makes, J first; for the arguments see `Case`."""
    from neural_alignment.training import setup, tpu

    config = Case("", "", "", "", F32, path, overrides).config()
    return tuple(tpu.turns(config, setup.data_facts(config)))


def resnet18(chip: str, precision: str, rules: Sequence[str]) -> list[Case]:
    """Returns the steps of some rules on the ResNet-18 of Tables 3 and 4, those with J first."""
    cases = []
    for rule in rules:
        path = f"two_routes/resnet18/{'backprop' if rule in NOT_STORED else rule}.yaml"
        overrides = (NOT_STORED[rule],) if rule in NOT_STORED else ()
        cases += [Case(chip, "ResNet-18", rule, loss, precision, path, overrides) for loss in losses(path, overrides)]
    return sorted(cases, key=lambda case: case.loss == "R")


def sign_noise(chip: str) -> Iterator[Case]:
    """Returns the steps of R with noise of one random bit per number, which has the same variance."""
    for rule in ("information", "weight_mirror"):
        path, overrides = f"two_routes/resnet18/{rule}.yaml", ("alignment.input.noise=sign",)
        yield Case(chip, "ResNet-18", f"{rule}{SIGN}", "R", BF16, path, overrides)


def network(chip: str, precision: str, folder: str, rules: Sequence[str]) -> Iterator[Case]:
    """Returns the steps of some rules on another network of Table 4."""
    for rule in rules:
        path = f"two_routes/{folder}/{rule}.yaml"
        yield Case(chip, NETWORKS[folder], rule, losses(path)[0], precision, path)


def matrix() -> list[Case]:
    """Returns all cases, the most important first."""
    return list(all_cases())


def all_cases() -> Iterator[Case]:
    """Returns all cases, the most important first."""
    chips = ("v3-8", "v2-8")
    for chip in chips:
        for precision in (BF16, F32):
            yield from resnet18(chip, precision, FIRST)
        yield from sign_noise(chip)
    for folder in NETWORKS:
        for chip in chips:
            yield from network(chip, BF16, folder, TABLE_4)
    for chip in ("v4-8", "v5litepod-4", "v6e-4"):
        yield from resnet18(chip, BF16, ("symmetric", "information"))
    yield from other_networks("v3-8")
    for chip in chips:
        yield from resnet18(chip, BF16, OTHERS)
        yield from resnet18(chip, F32, OTHERS)
    for folder in NETWORKS:
        for chip in chips:
            yield from network(chip, F32, folder, ("symmetric",))


def other_networks(chip: str) -> Iterator[Case]:
    """Returns the rules for whole networks on the 8-layer network, and symmetric alignment on other kinds of layers."""
    for one_core in ONE_CORE:
        for rule, option in WHOLE_NETWORK.items():
            path = f"wide_networks/imagenet/{'normal' if option else rule}.yaml"
            yield Case(one_core, "8-layer CNN", rule, "J", BF16, path, (*WIDE, option) if option else WIDE)
    for model, path in (
        ("MobileNetV2", "cifar10/mobilenet_v2.yaml"),
        ("vision transformer", "cifar10/vision_transformer/symmetric.yaml"),
        ("LSTM", "mnist/lstm/symmetric.yaml"),
    ):
        yield Case(chip, model, "symmetric", "J + R", BF16, path, SHARED)
