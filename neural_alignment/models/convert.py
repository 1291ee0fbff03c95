"""Converts the layers of an existing Keras model to aligned layers."""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

import keras

from neural_alignment.alignments import Assignment
from neural_alignment.alignments.error_path import error_weights
from neural_alignment.errors import ArgumentError, Words
from neural_alignment.keras_internals import all_layers, arguments_of, copy_of, has_graph, replace_sublayer
from neural_alignment.layers import ALIGNED_FORMS, AlignedAttention, AlignedLayer, TimeDistributed
from neural_alignment.models.following import Readers
from neural_alignment.models.parts import Rules

logger = logging.getLogger(__name__)

_EXAMPLE = "keras.Sequential([keras.Input((784,)), keras.layers.Dense(10)])"
"""A model that can be converted, for messages."""


class Conversion(NamedTuple):
    """The result of `convert`.

    Attributes:
        model: the new model.
        converted: the name of the rule, for each converted layer, by layer name.
        left: the reason, for each layer that was not converted although an error passes through its weights, by layer
            name. Layers whose weights only scale and shift each unit, such as normalisation, are not counted. Vectors
            in a loop, a condition or a `tf.function`, and a vector that turns one unit into several by an elementwise
            product, are not found.
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
            rule is assigned to a layer that cannot have one (channels first); if a layer is quantised, uses LoRA, is
            both in a custom layer and outside of it, or cannot be made from its configuration (an unregistered class or
            function that is not an argument of a layer of Keras); or, with `strict`, if a layer is left.
        ConfigError: if a rule matches no layer.
    """
    _check_model(model)
    if not isinstance(model, keras.Sequential):  # A subclass may have other weights, so the copy is a plain model.
        model = keras.Model(model.input, model.output, name=model.name)
    assignment = Assignment(alignment)
    copies = _Copies(assignment, Readers(model))
    clone = keras.models.clone_model(model, clone_function=copies.copy)
    copies.check_sharing()
    if alignment and not {*copies.converted, *copies.left} & assignment.names:
        found = ", ".join(f"{name!r} ({reason})" for name, reason in copies.left.items())
        found = Words(f"{model.name!r}, whose layers with kernels are: {found or 'none'}")
        raise ArgumentError("model", "must have a layer that can be aligned", found, _EXAMPLE)
    assignment.check()
    if strict and copies.left:
        found = ", ".join(f"{name!r} ({reason})" for name, reason in copies.left.items())
        requirement = "allows no layer that sends the error back through its own weights"
        raise ArgumentError("strict", requirement, Words(found), "strict=False, or a rule for every layer")
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
        self._copies: dict[int, Any] = {}
        self._whole: dict[int, Any] = {}  # The layers that are copied together with the layers in them.
        self.converted: dict[str, str] = {}
        self.left: dict[str, str] = {}

    def copy(self, layer: Any, wrapper: Any = None) -> Any:
        """Returns the copy of a layer, without its weights; the same one each time, so that shared layers stay shared.

        Args:
            layer: the layer.
            wrapper: the outermost `TimeDistributed` around the layer, or None.
        """
        if id(layer) not in self._copies:
            self._copies[id(layer)] = self._new(layer, wrapper)
        if id(layer) in self._whole and _aligned_form(layer) is None:
            self._leave(layer, wrapper)
        return self._copies[id(layer)]

    def check_sharing(self) -> None:
        """Checks that all layers that share a layer in the model share a copy of it.

        Raises:
            ValueError: if a layer with weights in a custom layer is also used outside of it.
        """
        holders: dict[int, Any] = {}
        for holder in self._whole.values():
            for part in (holder, *all_layers(holder)):
                other = holders.setdefault(id(part), holder)
                if other is not holder and part.weights:
                    requirement = "must not use a layer both in another layer and outside of it"
                    found = Words(f"{part.name!r} in {holder.name!r} and {other.name!r}")
                    raise ArgumentError("model", requirement, found, "a separate layer for each")

    def _new(self, layer: Any, wrapper: Any) -> Any:
        """Returns a new copy of a layer. Arguments as in `copy`."""
        if isinstance(layer, keras.layers.Bidirectional):
            return self._bidirectional(layer)
        if isinstance(layer, keras.layers.TimeDistributed):
            return TimeDistributed(self.copy(layer.layer, wrapper or layer), **keras.layers.Layer.get_config(layer))
        if isinstance(layer, keras.Sequential) or has_graph(layer):
            return keras.models.clone_model(layer, clone_function=self.copy)
        if isinstance(layer, keras.layers.Layer):  # Not an operation such as `Add`.
            self._whole[id(layer)] = layer
        kind = _aligned_form(layer)
        return copy_of(layer) if kind is None else self._aligned(layer, kind)

    def _aligned(self, layer: Any, kind: type) -> Any:
        """Returns the aligned form of a layer."""
        rule = self._assignment(layer.name)
        if rule is None:
            self.left[layer.name] = "it has no rule"
        else:
            self.converted[layer.name] = rule.rule
        config = {key: value for key, value in arguments_of(layer).items() if not key.startswith("alignment")}
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
        config = {key: value for key, value in layer.get_config().items() if key not in ("layer", "backward_layer")}
        new = type(layer)(copies[0], backward_layer=copies[1], **config)
        replace_sublayer(new, "forward_layer", copies[0])  # Keras copies this layer again.
        return new

    def _leave(self, layer: Any, wrapper: Any) -> None:
        """Records why a layer whose weights an error passes through is not converted. Arguments as in `copy`."""
        rule = getattr(getattr(layer, "alignment", None), "rule", None)
        if rule:
            self.left[layer.name] = f"it already has the rule {rule!r}"
        elif _share(layer.weights, error_weights(wrapper or layer)):  # Keras calls only the wrapper.
            self.left[layer.name] = f"{type(layer).__name__} has no aligned form"


def _aligned_form(layer: Any) -> type | None:
    """Returns the class of the aligned form of a layer, which a layer of this package without an alignment is itself.

    Returns None if there is none.
    """
    is_native = isinstance(layer, AlignedLayer | AlignedAttention) and layer.alignment is None
    return type(layer) if is_native else ALIGNED_FORMS.get(type(layer))


def _share(weights: list[Any], others: list[Any]) -> bool:
    """Whether two lists have a weight in common."""
    return not {id(weight) for weight in weights}.isdisjoint(map(id, others))


def _check_model(model: keras.Model) -> None:
    """Checks that `convert` can copy a model.

    Raises:
        ValueError: if the model is not functional or Sequential, not built, or has a layer that is quantised or uses
            LoRA.
    """
    is_functional = isinstance(model, keras.Model) and hasattr(model, "operations")
    if not is_functional and not isinstance(model, keras.Sequential):
        requirement = "must be a functional or Sequential Keras model"
        raise ArgumentError("model", requirement, Words(type(model).__name__), _EXAMPLE)
    if not model.built:
        raise ArgumentError("model", "must be built", Words(f"{model.name!r}, whose input shape is unknown"), _EXAMPLE)
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
            found = Words(f"layer {layer.name!r}, which is {found}")
            raise ArgumentError("model", "must have the weights of native layers", found, "convert the model first")


def _copy_weights(source: keras.Model, target: keras.Model) -> None:
    """Copies the weights of all layers. Backward kernels and step counters of converted layers keep initial values."""
    layers = ([layer for layer in all_layers(model) if layer.weights] for model in (source, target))
    pairs = list(zip(*layers, strict=True))
    converted = [new for old, new in pairs if isinstance(new, AlignedLayer) and getattr(old, "alignment", None) is None]
    fresh = {id(weight) for layer in converted for weight in layer.alignment_weights}
    for old, new in pairs:
        kept = [weight for weight in new.weights if id(weight) not in fresh]
        for weight, value in zip(kept, old.weights, strict=True):
            weight.assign(value)
        if hasattr(new, "finalize_state"):  # Layers such as `Normalization` compute constants from their weights.
            new.finalize_state()
