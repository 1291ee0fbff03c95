"""Converts the layers of an existing Keras model to aligned layers."""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

import keras

from neural_alignment.alignments import Assignment
from neural_alignment.keras_internals import all_layers
from neural_alignment.layers import ALIGNED_FORMS, AlignedLayer
from neural_alignment.models.following import Readers
from neural_alignment.models.parts import Rules

logger = logging.getLogger(__name__)


class Conversion(NamedTuple):
    """The result of `convert`.

    Attributes:
        model: the new model.
        converted: the name of the rule, for each converted layer, by layer name.
        left: the reason, for each layer with a kernel that was not converted, by layer name.
    """

    model: keras.Model
    converted: dict[str, str]
    left: dict[str, str]


def convert(model: keras.Model, alignment: Rules) -> Conversion:
    """Copies a functional or Sequential model, with aligned layers in place of its Dense and Conv2D layers.

    The copy has the same weights and is not compiled. The copy of a functional model, or of an `AlignedModel`, is a
    plain `keras.Model`. To use a rule for a whole network, build an `AlignedModel` from the copy.

    The `alignment_activation` of a layer is found by following its output through batch normalisation and dropout to
    the nonlinearity, as long as no other layer reads the output on the way.

    Args:
        model: a built model. It is not changed.
        alignment: one rule for all layers, or rules with patterns of layer names.

    Returns:
        The new model, the converted layers, and the layers that were not converted.

    Raises:
        ValueError: if `model` is not functional or Sequential, not built, or has no layer that can be aligned; if a
            rule is assigned to a layer that cannot have one (groups, channels first); or if a layer is quantised or
            uses LoRA.
        ConfigError: if a rule matches no layer.
    """
    _check_model(model)
    if not isinstance(model, keras.Sequential):  # A subclass may have other weights, so the copy is a plain model.
        model = keras.Model(model.input, model.output, name=model.name)
    assignment = Assignment(alignment)
    copies = _Copies(assignment, Readers(model))
    clone = keras.models.clone_model(model, clone_function=copies.copy, recursive=True)
    if alignment and not {*copies.converted, *copies.left} & assignment.names:
        found = ", ".join(f"{name!r} ({reason})" for name, reason in copies.left.items())
        raise ValueError(
            f"`model` must have a layer that can be aligned. Received {model.name!r}, whose layers with kernels are: "
            f"{found or 'none'}. Example: keras.Sequential([keras.Input((784,)), keras.layers.Dense(10)])."
        )
    assignment.check()
    _copy_weights(model, clone)
    names = [", ".join(each) or "nothing" for each in (copies.converted, copies.left)]
    logger.info("converted: %s; left: %s", *names)
    return Conversion(clone, copies.converted, copies.left)


class _Copies:
    """Copies layers, and adds an alignment to those that have a rule.

    Args:
        assignment: assigns rules to layers.
        readers: finds the nonlinearity that follows a layer.

    Attributes:
        converted: as in `Conversion`.
        left: as in `Conversion`.
    """

    def __init__(self, assignment: Assignment, readers: Readers):
        self._assignment = assignment
        self._readers = readers
        self.converted: dict[str, str] = {}
        self.left: dict[str, str] = {}

    def copy(self, layer: Any) -> Any:
        """Returns a copy of a layer without its weights."""
        kind, config = ALIGNED_FORMS.get(type(layer)), layer.get_config()
        if isinstance(layer, AlignedLayer) and layer.alignment is None:
            kind = type(layer)
            config = {key: value for key, value in config.items() if not key.startswith("alignment")}
        if kind is None:
            self._leave(layer)
            return type(layer).from_config(config)
        rule = self._assignment(layer.name)
        if rule is None:
            self.left[layer.name] = "it has no rule"
        else:
            self.converted[layer.name] = rule.rule
        # Not `from_config`, which would wrap the error that the constructor raises for an unsupported layer.
        activation = getattr(layer, "alignment_activation", None) or self._readers.activation(layer)
        aligned = kind(**config, alignment=rule, alignment_activation=activation)
        aligned._converted_kernel = keras.ops.convert_to_numpy(layer.kernel)
        return aligned

    def _leave(self, layer: Any) -> None:
        """Records why a layer with a kernel is not converted."""
        weights = getattr(layer, "weights", [])  # Functions such as `keras.ops.relu` have none.
        if any("kernel" in weight.name for weight in weights) and not isinstance(layer, keras.Model):
            rule = getattr(getattr(layer, "alignment", None), "rule", None)
            unsupported = f"{type(layer).__name__} has no aligned form"
            self.left[layer.name] = f"it already has the rule {rule!r}" if rule else unsupported


def _check_model(model: keras.Model) -> None:
    """Checks that `convert` can copy a model.

    Raises:
        ValueError: if the model is not functional or Sequential, not built, or has a layer that is quantised or uses
            LoRA.
    """
    is_functional = isinstance(model, keras.Model) and hasattr(model, "operations")
    if not is_functional and not isinstance(model, keras.Sequential):
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


def _check_plain_weights(model: keras.Model) -> None:
    """Checks that all layers have the same weights as newly built layers.

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
    """Copies the weights of all layers. Backward kernels and step counters keep their initial values."""
    for old, new in zip(all_layers(source), all_layers(target), strict=True):
        fresh = {"backward_kernel", "alignment_step"}
        kept = [weight for weight in new.weights if not isinstance(new, AlignedLayer) or weight.name not in fresh]
        for weight, value in zip(kept, old.weights, strict=True):
            weight.assign(value)
