"""Converts the layers of an existing Keras model to aligned layers."""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

import keras

from neural_alignment.alignments import Assignment
from neural_alignment.alignments.error_path import error_weights
from neural_alignment.keras_internals import all_layers, has_graph
from neural_alignment.layers import ALIGNED_FORMS, AlignedAttention, AlignedLayer, TimeDistributed
from neural_alignment.models.following import Readers
from neural_alignment.models.parts import Rules

logger = logging.getLogger(__name__)


class Conversion(NamedTuple):
    """The result of `convert`.

    Attributes:
        model: the new model.
        converted: the name of the rule, for each converted layer, by layer name.
        left: the reason, for each layer that was not converted although an error passes through its weights, by layer
            name. Layers whose weights only scale and shift each unit, such as normalisation, are not counted.
    """

    model: keras.Model
    converted: dict[str, str]
    left: dict[str, str]


def convert(model: keras.Model, alignment: Rules, strict: bool = False) -> Conversion:
    """Copies a functional or Sequential model, with aligned layers in place of the layers that have an aligned form.

    These are the layers of `layers.ALIGNED_FORMS`, also in `Bidirectional` and `TimeDistributed`.

    The copy has the same weights and is not compiled. The copy of a functional model, or of an `AlignedModel`, is a
    plain `keras.Model`. To use a rule for a whole network, build an `AlignedModel` from the copy:
    `AlignedModel(copy.inputs, copy.outputs)`.

    The `alignment_activation` of a layer is found by following its output through batch normalisation and dropout to
    the nonlinearity, as long as no other layer reads the output on the way.

    Args:
        model: a built model. It is not changed.
        alignment: one rule for all layers, or rules with patterns of layer names.
        strict: refuse to leave a layer to backpropagation.

    Returns:
        The new model, the converted layers, and the layers that were not converted.

    Raises:
        ValueError: if `model` is not functional or Sequential, not built, or has no layer that can be aligned; if a
            rule is assigned to a layer that cannot have one (channels first); or if a layer is quantised or
            uses LoRA; or, with `strict`, if a layer is left.
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
    if strict and copies.left:
        found = ", ".join(f"{name!r} ({reason})" for name, reason in copies.left.items())
        raise ValueError(
            "`strict` allows no layer that sends the error back through its own weights. "
            f"Received {found}. Example: strict=False, or a rule for every layer."
        )
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

    def copy(self, layer: Any, wrapper: Any = None) -> Any:
        """Returns a copy of a layer without its weights.

        Args:
            layer: the layer.
            wrapper: the outermost `TimeDistributed` around the layer, or None.
        """
        kind = type(layer) if _is_native_form(layer) else ALIGNED_FORMS.get(type(layer))
        if kind is not None:
            return self._aligned(layer, kind)
        if isinstance(layer, keras.layers.Bidirectional):
            return self._bidirectional(layer)
        if isinstance(layer, keras.layers.TimeDistributed):
            return TimeDistributed(self.copy(layer.layer, wrapper or layer), **_arguments(layer))
        if has_graph(layer):  # A model in a wrapper; Keras goes through other models itself.
            return keras.models.clone_model(layer, clone_function=self.copy, recursive=True)
        self._leave(layer, wrapper)
        return type(layer).from_config(layer.get_config())

    def _aligned(self, layer: Any, kind: type) -> Any:
        """Returns the aligned form of a layer."""
        rule = self._assignment(layer.name)
        if rule is None:
            self.left[layer.name] = "it has no rule"
        else:
            self.converted[layer.name] = rule.rule
        config = {key: value for key, value in layer.get_config().items() if not key.startswith("alignment")}
        if "alignment_activation" in kind.alignment_arguments:
            follows = getattr(layer, "alignment_activation", None) or self._readers.activation(layer)
            config["alignment_activation"] = follows
        # Not `from_config`, which would wrap the error that the constructor raises for an unsupported layer.
        aligned = kind(**config, alignment=rule)
        aligned.take_converted(layer)
        return aligned

    def _bidirectional(self, layer: Any) -> Any:
        """Returns a copy of a bidirectional layer with copies of its two recurrent layers."""
        both = [layer.forward_layer, layer.backward_layer]
        copies = [self.copy(each) for each in both]
        new = type(layer)(copies[0], backward_layer=copies[1], **_arguments(layer))
        for old, copy in zip(both, [new.forward_layer, new.backward_layer], strict=True):
            if hasattr(copy, "take_converted"):  # Keras copies the layers again.
                copy.take_converted(old)
        return new

    def _leave(self, layer: Any, wrapper: Any) -> None:
        """Records why a layer whose weights an error passes through is not converted. Arguments as in `copy`."""
        rule = getattr(getattr(layer, "alignment", None), "rule", None)
        if rule:
            self.left[layer.name] = f"it already has the rule {rule!r}"
        elif error_weights(layer) and (wrapper is None or error_weights(wrapper)):  # Keras calls only the wrapper.
            self.left[layer.name] = f"{type(layer).__name__} has no aligned form"


def _is_native_form(layer: Any) -> bool:
    """Whether a layer is one of this package without an alignment."""
    return isinstance(layer, AlignedLayer | AlignedAttention) and layer.alignment is None


def _arguments(wrapper: Any) -> dict[str, Any]:
    """Returns the arguments of a layer that wraps others, without those layers."""
    return {key: value for key, value in wrapper.get_config().items() if key not in ("layer", "backward_layer")}


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
    layers = all_layers(target)
    fresh = {id(weight) for layer in layers if isinstance(layer, AlignedLayer) for weight in layer.alignment_weights}
    for old, new in zip(all_layers(source), layers, strict=True):
        kept = [weight for weight in new.weights if id(weight) not in fresh]
        for weight, value in zip(kept, old.weights, strict=True):
            weight.assign(value)
        if hasattr(new, "finalize_state"):  # Layers such as `Normalization` compute constants from their weights.
            new.finalize_state()
