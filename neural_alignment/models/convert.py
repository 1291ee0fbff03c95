"""Converts the layers of an existing Keras model to aligned layers."""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

import keras

from neural_alignment.alignments import Assignment
from neural_alignment.alignments.networkwise import all_layers
from neural_alignment.layers import AlignedLayer, Conv2D, Dense
from neural_alignment.models.following import Readers
from neural_alignment.models.parts import Rules

logger = logging.getLogger(__name__)

CONVERTIBLE = {keras.layers.Dense: Dense, keras.layers.Conv2D: Conv2D}


class Conversion(NamedTuple):
    """The result of `convert`.

    Attributes:
        model: the new model.
        converted: the name of the rule of each converted layer, by layer name.
        left: the reason why a layer was not converted, by layer name. Layers without a kernel are not listed.
    """

    model: keras.Model
    converted: dict[str, str]
    left: dict[str, str]


def convert(model: keras.Model, alignment: Rules) -> Conversion:
    """Copies a functional or Sequential model with aligned Dense and Conv2D layers and the same weights.

    The `alignment_activation` of a layer is found by following its output through batch normalisation and dropout to
    the nonlinearity, as long as no other layer reads the output on the way. The copy of a functional model, or of an
    `AlignedModel`, is a plain `keras.Model` that is not compiled. To use a rule for a whole network, build an
    `AlignedModel` from the copy.

    Args:
        model: a built model. It is not changed.
        alignment: one rule for all layers, or rules with patterns of layer names.

    Returns:
        The new model, the converted layers, and the layers that were not converted.

    Raises:
        ValueError: if `model` is not functional or Sequential, not built, or has no layer that can be aligned; if a
            rule selects a layer that does not support one (groups, channels first); or if a layer is quantised or uses
            LoRA.
        ConfigError: if the pattern of a rule matches no layer.
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
            f"`model` must be built. Received {model.name!r}, whose input shape is unknown. "
            "Example: keras.Sequential([keras.Input((784,)), keras.layers.Dense(10)])."
        )
    _check_plain_weights(model)
    if not isinstance(model, keras.Sequential):  # A subclass may have other weights, so the copy is a plain model.
        model = keras.Model(model.input, model.output, name=model.name)
    assignment = Assignment(alignment)
    readers = Readers(model)
    converted: dict[str, str] = {}
    left: dict[str, str] = {}

    def copy(layer: Any) -> Any:
        config = layer.get_config()
        kind = CONVERTIBLE.get(type(layer))
        if isinstance(layer, AlignedLayer) and layer.alignment is None:
            kind = type(layer)
            config = {key: value for key, value in config.items() if not key.startswith("alignment")}
        if kind is None:
            weights = getattr(layer, "weights", [])  # Functions such as `keras.ops.relu` have none.
            if any("kernel" in weight.name for weight in weights) and not isinstance(layer, keras.Model):
                rule = getattr(getattr(layer, "alignment", None), "rule", None)
                has_none = f"{type(layer).__name__} has no aligned form"
                left[layer.name] = f"it has the rule {rule!r} already" if rule else has_none
            return type(layer).from_config(config)
        rule = assignment(layer.name)
        if rule is None:
            left[layer.name] = "no rule is given to it"
        else:
            converted[layer.name] = rule.rule
        # `from_config` would wrap the error that the constructor raises for an unsupported layer.
        follows = getattr(layer, "alignment_activation", None) or readers.activation(layer)
        aligned = kind(**config, alignment=rule, alignment_activation=follows)
        aligned._converted_kernel = keras.ops.convert_to_numpy(layer.kernel)
        return aligned

    clone = keras.models.clone_model(model, clone_function=copy, recursive=True)
    if alignment and not {*converted, *left} & assignment.names:
        found = ", ".join(f"{name!r} ({reason})" for name, reason in left.items())
        raise ValueError(
            f"`model` must have a layer that can be aligned. Received {model.name!r}, whose layers with kernels are: "
            f"{found or 'none'}. Example: keras.Sequential([keras.Input((784,)), keras.layers.Dense(10)])."
        )
    assignment.check()
    _copy_weights(model, clone)
    logger.info("converted: %s; left: %s", ", ".join(converted) or "nothing", ", ".join(left) or "nothing")
    return Conversion(clone, converted, left)


def _check_plain_weights(model: keras.Model) -> None:
    """Raises if the weights of a layer differ from those of a newly built layer.

    Raises:
        ValueError: if a layer is quantised or has LoRA weights.
    """
    for layer in all_layers(model):
        mode = getattr(layer, "quantization_mode", None)
        found = f"quantised to {mode}" if mode else "adapted by LoRA" if getattr(layer, "lora_enabled", False) else None
        if found:
            raise ValueError(
                "`model` must have the weights of native layers. "
                f"Received layer {layer.name!r}, which is {found}. Example: convert the model first."
            )


def _copy_weights(source: keras.Model, target: keras.Model) -> None:
    """Copies the weights of every layer that is not a container. Backward kernels keep their initial values."""
    for old, new in zip(all_layers(source), all_layers(target), strict=True):
        fresh = {"backward_kernel", "alignment_step"}
        kept = [weight for weight in new.weights if not isinstance(new, AlignedLayer) or weight.name not in fresh]
        for weight, value in zip(kept, old.weights, strict=True):
            weight.assign(value)
