"""The registry of all learning rules, by their names in a configuration.

The package `alignments` imports all modules that define rules. Rules of plugins are added when these are imported; see
`neural_alignment.plugins`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pydantic

from neural_alignment import errors, mistakes
from neural_alignment.alignments.base import Alignment
from neural_alignment.registry import Registry
from neural_alignment.serialization import check_name, serializable

RULES = Registry("rule")
"""Every rule, by its name in a configuration."""


def register(rule: type[Alignment]) -> type[Alignment]:
    """Class decorator: adds a rule to the registry, and to the classes that Keras can load from a `.keras` file.

    Raises:
        ValueError: if another rule has its name in a configuration, if another class has its class name, if it does not
            declare its name in a configuration, or if it trains B and has no `__call__`.
    """
    check_name(rule)  # First, so that a class that is refused is not in the registry.
    if rule.keeps_kernel and rule.learns and rule.__call__ is Alignment.__call__:
        example = "return self.weight('decay', view) * primitives.decay(view.backward_kernel)"
        found = errors.Words(f"{rule.__name__} without it")
        raise errors.ArgumentError("__call__(self, view)", "must be defined: it returns R_l", found, example)
    return serializable(RULES.register(rule))


def layerwise_rules() -> dict[str, type[Alignment]]:
    """Returns the rules that act layer by layer, by name."""
    return {name: rule for name, rule in RULES.items() if rule.keeps_kernel}


def networkwise_rules() -> dict[str, type[Alignment]]:
    """Returns the rules for a whole network, by name."""
    return {name: rule for name, rule in RULES.items() if not rule.keeps_kernel}


def from_config(mapping: Mapping[str, Any], seed: int | None = None, steps_per_epoch: int | None = None) -> Alignment:
    """Builds a rule from the mapping under `alignment:` in a YAML file.

    Args:
        mapping: `rule` (the name), the weights of the rule, and its options.
        seed: seed of the rule's noise, used if the mapping has none.
        steps_per_epoch: length of an epoch in steps for scheduled weights, used if the mapping has none.

    Returns:
        The rule.

    Raises:
        ConfigError: if a key is unknown or missing, or has a wrong value. The message is one line.
    """
    if not isinstance(mapping, Mapping):
        raise errors.ConfigError(
            f"alignment: must be a mapping with the key `rule`; found {errors.shortened(repr(mapping))}; "
            "example: {rule: symmetric, self_: 2.0e-3, decay: 2.0e-3}"
        )
    # YAML reads the key `null`, the name of a primitive, as None.
    mapping = {"null" if key is None else key: value for key, value in mapping.items()}
    try:
        rule = pydantic.TypeAdapter(RULES.any_registered).validate_python(mapping)
    except pydantic.ValidationError as error:
        raise errors.ConfigError(mistakes.describe(error, RULES.any_registered, "alignment")) from None
    return rule.bind(seed, steps_per_epoch)
