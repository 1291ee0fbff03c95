"""Which layer of a model gets which rule."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

from neural_alignment import errors
from neural_alignment.alignments.base import Alignment
from neural_alignment.errors import ArgumentError


class Assignment:
    """Assigns rules to layers by name.

    Args:
        alignment: one rule for all layers, a sequence of rules with `layers` patterns, or None (backpropagation in all
            layers). A layer gets the first rule whose pattern matches its name.

    Raises:
        ValueError: if `alignment` contains something other than rules.
    """

    def __init__(self, alignment: Alignment | Sequence[Alignment] | None):
        one = isinstance(alignment, Alignment | str)
        rules = [] if alignment is None else [alignment] if one else list(alignment)
        for rule in rules:
            if not isinstance(rule, Alignment):
                example = "alignment=Symmetric(self_=2e-3, decay=2e-3)"
                raise ArgumentError("alignment", "must be a rule, a list of rules, or None", rule, example)
        self._rules = rules
        self._matched: dict[int, list[str]] = {index: [] for index in range(len(rules))}
        self._names: list[str] = []

    def __call__(self, layer: str) -> Alignment | None:
        """Returns the rule of the layer with the name `layer`; None means backpropagation."""
        self._names.append(layer)
        for index, rule in enumerate(self._rules):
            if rule.layers is None or fnmatch.fnmatchcase(layer, rule.layers):
                self._matched[index].append(layer)
                return rule
        return None

    @property
    def names(self) -> set[str]:
        """The names of the layers for which a rule was looked up."""
        return set(self._names)

    def check(self) -> None:
        """Checks that every rule was assigned to at least one layer.

        Raises:
            ConfigError: if a rule has no layer. The message contains its pattern and the names of all layers.
        """
        for index, layers in self._matched.items():
            if not layers:
                names, pattern = ", ".join(self._names) or "none", self._rules[index].layers
                key = "alignment.layers" if len(self._rules) == 1 else f"alignment.{index}.layers"
                earlier = " that no earlier rule matches" if index else ""
                found = "none" if pattern is None else repr(pattern)
                raise errors.ConfigError(
                    f"{key}: must match at least one layer{earlier}; the layers are {names}; found {found}"
                )
