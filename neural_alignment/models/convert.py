"""Turns the layers of an existing Keras model into aligned ones."""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

import keras

from neural_alignment.alignments import Assignment
from neural_alignment.layers import AlignedLayer, Conv2D, Dense
from neural_alignment.models.batch_norm import BatchAxisNormalization
from neural_alignment.models.parts import Rules

logger = logging.getLogger(__name__)

CONVERTIBLE = {keras.layers.Dense: Dense, keras.layers.Conv2D: Conv2D}


class Conversion(NamedTuple):
    """What `convert` has done.

    Attributes:
        model: the new model.
        converted: layer name -> name of its rule.
        left: layer name -> why the layer is as it was; layers without a kernel are not told.
    """

    model: keras.Model
    converted: dict[str, str]
    left: dict[str, str]


def convert(model: keras.Model, alignment: Rules) -> Conversion:
    """Copies a functional or Sequential model with its Dense and Conv2D layers aligned, weights kept.

    A layer's `alignment_activation` is found by following its output through batch normalisation and dropout to the
    nonlinearity, where nothing else reads the output on the way. The copy of a functional model, of an `AlignedModel`
    too, is a plain `keras.Model` that is not compiled. A rule for a whole network works in an `AlignedModel` of it.

    Args:
        model: a built model; it is left as it is.
        alignment: one rule for all layers, or rules with patterns of layer names.

    Returns:
        The new model, what was converted and what was left.

    Raises:
        ValueError: if `model` is neither functional nor Sequential, or not built, or has a layer that an alignment is
            given to and cannot have one (groups, channels first).
        ConfigError: if the pattern of a rule fits no layer.
    """
    if not isinstance(model, (keras.Sequential, keras.Model)) or (
        not hasattr(model, "_operations_by_depth") and not (isinstance(model, keras.Sequential))
    ):
        raise ValueError(
            f"`model` must be a functional or Sequential Keras model. Received {type(model).__name__}. "
            "Example: keras.Sequential([keras.Input((784,)), keras.layers.Dense(10)])."
        )
    if not model.built:
        raise ValueError(
            f"`model` must be built. Received {model.name!r}, whose input shape is not known. "
            "Example: put keras.Input((28, 28, 1)) first."
        )
    if not isinstance(model, keras.Sequential):  # Not of a class of its own, which may keep weights beside the layers'.
        model = keras.Model(model.input, model.output, name=model.name)
    assignment = Assignment(alignment)
    converted: dict[str, str] = {}
    left: dict[str, str] = {}

    def copy(layer: Any) -> Any:
        config = layer.get_config()
        kind = CONVERTIBLE.get(type(layer))
        if isinstance(layer, AlignedLayer) and layer.alignment is None:
            kind = type(layer)
            config = {key: value for key, value in config.items() if not key.startswith("alignment")}
        if kind is None:
            if any("kernel" in weight.name for weight in layer.weights) and not isinstance(layer, keras.Model):
                left[layer.name] = f"{type(layer).__name__} has no aligned form"
            return type(layer).from_config(config)
        rule = assignment(layer.name)
        if rule is None:
            left[layer.name] = "no rule is given to it"
        else:
            converted[layer.name] = rule.rule
        # Not by `from_config`, which wraps what the constructor says of an unfit layer.
        following = getattr(layer, "alignment_activation", None) or _following_activation(layer)
        return kind(**config, alignment=rule, alignment_activation=following)

    clone = keras.models.clone_model(model, clone_function=copy, recursive=True)
    assignment.check()
    _copy_weights(model, clone)
    logger.info("converted: %s; left: %s", ", ".join(converted) or "nothing", ", ".join(left) or "nothing")
    return Conversion(clone, converted, left)


def _copy_weights(source: keras.Model, target: keras.Model) -> None:
    """Copies the weights of every layer that is not a container; backward kernels stay, but those that begin as W."""
    for old, new in zip(_leaves(source), _leaves(target), strict=True):
        fresh = {"backward_kernel", "alignment_step"}
        kept = [weight for weight in new.weights if not isinstance(new, AlignedLayer) or weight.name not in fresh]
        for weight, value in zip(kept, old.weights, strict=True):
            weight.assign(value)


def _leaves(model: keras.Model) -> list[Any]:
    layers = model._flatten_layers(include_self=False, recursive=True)
    return [layer for layer in layers if not isinstance(layer, keras.Model)]


_PASSED = (keras.layers.BatchNormalization, BatchAxisNormalization, keras.layers.Dropout)
"""What may lie between a layer and its nonlinearity."""


def _following_activation(layer: Any) -> str | dict | None:
    """Returns the nonlinearity after `layer`, through batch normalisation and dropout, or none."""
    if layer.activation is not keras.activations.linear:
        return None
    nodes = layer._outbound_nodes
    while len(nodes) == 1:
        follower = nodes[0].operation
        if isinstance(follower, keras.layers.ReLU):
            plain = follower.max_value is None and not follower.negative_slope and not follower.threshold
            return "relu" if plain else None
        if isinstance(follower, keras.layers.Activation):
            return keras.activations.serialize(follower.activation)
        if not isinstance(follower, _PASSED):
            return None
        nodes = follower._outbound_nodes
    return None
