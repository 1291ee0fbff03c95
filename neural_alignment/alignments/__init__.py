"""Learning rules: what they are made of, and which layer gets which."""

from __future__ import annotations

import fnmatch
import importlib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Union

import pydantic

from neural_alignment import errors
from neural_alignment.alignments.base import (
    Alignment,
    ForwardPass,
    LayerView,
    SignalAlignment,
    Signals,
    TrainedAlignment,
    current_pass,
    first_example,
    forward_pass,
    side_pass,
)
from neural_alignment.alignments.pathways import BackwardOutput, ForwardOutput, InputPath
from neural_alignment.alignments.rules import (
    NETWORK_RULES,
    RULES,
    Activation,
    AlignProp,
    Feedback,
    Information,
    KolenPollack,
    SignSymmetry,
    Symmetric,
    WeightMirror,
)
from neural_alignment.alignments.schedules import Constant, Exponential, Linear

__all__ = [
    "NETWORK_RULES",
    "RULES",
    "Activation",
    "AlignProp",
    "Alignment",
    "Assignment",
    "BackwardOutput",
    "Constant",
    "Exponential",
    "Feedback",
    "ForwardOutput",
    "ForwardPass",
    "Information",
    "InputPath",
    "KolenPollack",
    "LayerView",
    "Linear",
    "SignSymmetry",
    "SignalAlignment",
    "Signals",
    "Symmetric",
    "TrainedAlignment",
    "WeightMirror",
    "current_pass",
    "first_example",
    "forward_pass",
    "from_config",
    "rule_type",
    "side_pass",
]


def rule_type() -> Any:
    """Returns the type of one rule in a configuration: any registered rule."""
    # The rules for whole networks register themselves in a later room, which may not have been imported yet.
    importlib.import_module("neural_alignment.feedback")
    rules = (*RULES.values(), *NETWORK_RULES.values())
    return Annotated[Union[rules], pydantic.Field(discriminator="rule")]  # noqa: UP007 - of registries


def from_config(mapping: Mapping[str, Any], seed: int | None = None, steps_per_epoch: int | None = None) -> Alignment:
    """Builds a rule from what stands under `alignment:` in a YAML file.

    Args:
        mapping: `rule`, the rule's weights, and what else it knows.
        seed: seed of the rule's noise, where the mapping does not say.
        steps_per_epoch: length of an epoch for scheduled weights, where the mapping does not say.

    Returns:
        The rule.

    Raises:
        ConfigError: in one line, if a key is unknown or missing or its value is of the wrong kind.
    """
    if not isinstance(mapping, Mapping):
        raise errors.ConfigError(
            f"alignment: must be a mapping with the key `rule`. Received {mapping!r}. "
            "Example: {rule: symmetric, self_: 2.0e-3, decay: 2.0e-3}."
        )
    # YAML reads the name of the null primitive as None.
    mapping = {"null" if key is None else key: value for key, value in mapping.items()}
    try:
        rule = pydantic.TypeAdapter(rule_type()).validate_python(mapping)
    except pydantic.ValidationError as error:
        raise errors.ConfigError(errors.describe(error, rule_type(), "alignment")) from None
    return rule.bind(seed, steps_per_epoch)


class Assignment:
    """Which layer gets which rule.

    Args:
        alignment: none (backpropagation everywhere), one rule, or a sequence of rules of which each names the layers
            that it is for; the first whose pattern fits a layer's name takes it.
    """

    def __init__(self, alignment: Alignment | Sequence[Alignment] | None):
        one = isinstance(alignment, Alignment | str)
        rules = [] if alignment is None else [alignment] if one else list(alignment)
        for rule in rules:
            if not isinstance(rule, Alignment):
                raise ValueError(
                    "`alignment` must be a rule, a list of rules, or None. "
                    f"Received {rule!r}. Example: alignment=Symmetric(self_=2e-3, decay=2e-3)."
                )
        self._rules = rules
        self._taken: dict[int, list[str]] = {index: [] for index in range(len(rules))}
        self._names: list[str] = []

    def __call__(self, layer: str) -> Alignment | None:
        """Returns the rule of the layer called `layer`, or none for backpropagation."""
        self._names.append(layer)
        for index, rule in enumerate(self._rules):
            if rule.layers is None or fnmatch.fnmatchcase(layer, rule.layers):
                self._taken[index].append(layer)
                return rule
        return None

    @property
    def names(self) -> set[str]:
        """The names of the layers that have been asked for."""
        return set(self._names)

    def check(self) -> None:
        """Raises an error if a rule has got no layer.

        Raises:
            ConfigError: naming the pattern and the layers there are.
        """
        for index, layers in self._taken.items():
            if not layers:
                names, pattern = ", ".join(self._names), self._rules[index].layers
                which = f"the pattern {pattern!r} of rule {index + 1}" if pattern else f"rule {index + 1}"
                raise errors.ConfigError(
                    f"alignment: {which} takes no layer (an earlier rule may have taken them). "
                    f"The layers are: {names or 'none'}."
                )
