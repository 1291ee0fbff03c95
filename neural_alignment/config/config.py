"""The configuration of one run, and the checks of options against each other."""

from __future__ import annotations

from typing import Annotated, Any

import pydantic
from pydantic import Discriminator, Field, NonNegativeFloat, PositiveInt, Tag

from neural_alignment.alignments import RULES
from neural_alignment.config.initial_state import AnyInitialState
from neural_alignment.config.records import Checkpoints, Evaluation, Logging
from neural_alignment.config.runtime import Runtime
from neural_alignment.data import SOURCES
from neural_alignment.errors import ArgumentError
from neural_alignment.losses import DEFAULT_LOSS, LOSSES
from neural_alignment.models import MODELS
from neural_alignment.optimization import Optimization
from neural_alignment.options import Options

Rule = RULES.any_registered
Alignments = Annotated[
    Annotated[Rule, Tag("one")] | Annotated[list[Rule], Tag("many")],
    Discriminator(lambda value: "many" if isinstance(value, (list, tuple)) else "one"),
]
"""One rule, or a list of rules with patterns of layer names."""


class Config(Options):
    """The configuration of one run."""

    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seed of initial weights, data order, augmentation and noise."""
    epochs: PositiveInt
    """Length of the run. With `optimization.alternation: k` an epoch takes k + 1 times the steps of one pass over the
    data; J is trained at k of every k + 1 steps. Without it an epoch is one pass. The steps of
    `optimization.delay_epochs` are included."""
    max_steps: PositiveInt | None = None
    """Maximum number of global steps. Default: no limit besides `epochs`."""
    batch_size: PositiveInt
    """Training examples per step, over all replicas."""
    data: SOURCES.any_registered
    """The data set; `source` names where it comes from."""
    model: MODELS.any_registered
    """The network."""
    loss: LOSSES.any_registered = DEFAULT_LOSS
    """The loss on the targets. J is this loss plus the weight decay."""
    init_from: Annotated[AnyInitialState | None, Field(exclude_if=lambda state: state is None)] = None
    """Weights to start from: a run directory, a .keras file, or a mapping with more options. Default: random."""
    alignment: Alignments | None = None
    """One rule for all layers, or a list of rules with `layers:` patterns. Default: backpropagation."""
    weight_decay: NonNegativeFloat = 0.0
    """L2 coefficient in J, for the forward kernels and the biases of dense and recurrent layers."""
    optimization: Optimization
    """How W and B are updated."""
    evaluation: Evaluation = Evaluation()
    """Which measurements are made, and how often."""
    logging: Logging = Logging()
    """Files that are written in addition to `metrics.csv`."""
    checkpoints: Checkpoints = Checkpoints()
    """When states are saved, and how many are kept."""
    runtime: Runtime = Runtime()
    """Where and how a step is executed."""

    @property
    def rules(self) -> list[Any]:
        """All rules in a list."""
        if self.alignment is None:
            return []
        return list(self.alignment) if isinstance(self.alignment, (list, tuple)) else [self.alignment]

    def key_path(self, rule: Any) -> str:
        """Returns the key path of a rule."""
        if not isinstance(self.alignment, (list, tuple)):
            return "alignment"
        return f"alignment.{next(index for index, each in enumerate(self.alignment) if each is rule)}"

    @property
    def learns(self) -> bool:
        """Whether a rule trains backward kernels."""
        return any(rule.learns for rule in self.rules)

    @property
    def epochs_of_j(self) -> float:
        """Epochs in which J is trained: the length of the run without the delay."""
        return self.epochs - self.optimization.delay_epochs / self.optimization.turns

    @pydantic.model_validator(mode="after")
    def _check_combination(self):
        self._check_targets()
        self.optimization.check_run(self)
        for rule in self.rules:
            rule.check_run(self)
        self._check_patterns()
        for part in (self.model, self.loss, self.data, self.evaluation):
            part.check_run(self)
        return self

    def _check_targets(self):
        kinds = {f"data.source {self.data.source}": self.data.targets, f"loss.kind {self.loss.kind}": self.loss.targets}
        for name, targets in kinds.items():
            if targets != self.model.targets:
                requirement = f"must be a model for {targets}, the targets of {name}, not for {self.model.targets}"
                raise ArgumentError("model.name", requirement, self.model.name)

    def _check_patterns(self):
        if not isinstance(self.alignment, (list, tuple)):
            return
        for index, rule in enumerate(self.rules[:-1]):
            if rule.layers is None:
                requirement = "is required for every rule except the last; without it this rule applies to all layers"
                raise ArgumentError(f"alignment.{index}.layers", requirement, None)


for _registry in (RULES, SOURCES, MODELS, LOSSES):
    _registry.add_user(Config)
