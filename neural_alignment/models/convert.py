"""Converts the layers of an existing Keras model to aligned layers."""

from __future__ import annotations

import logging
import tempfile
from typing import Any, NamedTuple

import keras

from neural_alignment.alignments import Assignment
from neural_alignment.alignments.error_path import error_weights
from neural_alignment.errors import ArgumentError, Words
from neural_alignment.initialization import drawable
from neural_alignment.keras_internals import all_layers, arguments_of, copy_of, has_graph, replace_sublayer
from neural_alignment.layers import ALIGNED_FORMS, AlignedAttention, AlignedLayer, TimeDistributed
from neural_alignment.layers.base import LayerWithRule
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

    These are the layers of `layers.ALIGNED_FORMS`, also in `Bidirectional` and `TimeDistributed`. A layer that already
    has a rule keeps it, and its B. To give it another rule, remove all rules first:
    `convert(convert(model, None).model, alignment)`.

    The copy has the same weights and is not compiled. The copy of a functional model, or of an `AlignedModel`, is a
    plain `keras.Model`. To use a rule for a whole network, build an `AlignedModel` from the copy:
    `AlignedModel(copy.inputs, copy.outputs)`.

    A `kernel_initializer` that gives all entries of W the same value, such as "zeros", becomes a normal distribution
    with the mean and the variance of the layer's weights, so that a saved copy can be loaded.

    The `alignment_activation` of a layer is found by following its output through batch normalisation and dropout to
    the nonlinearity, as long as no other layer reads the output on the way.

    Args:
        model: a built model. It is not changed.
        alignment: one rule for all layers, or rules with patterns of layer names. None removes all rules: the aligned
            layers become layers of Keras again, except those in the NTK parameterization, which Keras does not have.
            Layers within custom layers, and within wrappers other than `Bidirectional` and `TimeDistributed`, keep
            their rules.
        strict: refuse to leave a layer to backpropagation.

    Returns:
        The new model, the converted layers, and the layers that were not converted.

    Raises:
        ValueError: if `model` is not functional or Sequential, not built, or has no layer that can be aligned; if a
            rule is assigned to a layer that cannot have one (channels first); if a layer is quantised, uses LoRA, is
            both in a custom layer and outside of it, or cannot be made from its configuration (an unregistered class or
            function that is not an argument of a layer of Keras); or, with `strict`, if a layer without a
            rule is left.
        ConfigError: if a rule matches no layer.
    """
    _check_model(model)
    if not isinstance(model, keras.Sequential):  # A subclass may have other weights, so the copy is a plain model.
        model = keras.Model(model.input, model.output, name=model.name)
    assignment = Assignment(alignment)
    copies = _Copies(assignment, Readers(model), removes_rules=not alignment)
    clone = keras.models.clone_model(model, clone_function=copies.copy)
    copies.check_sharing()
    if alignment and not {*copies.converted, *copies.left} & assignment.names:
        found = ", ".join(f"{name!r} ({reason})" for name, reason in copies.left.items())
        found = Words(f"{model.name!r}, whose layers with kernels are: {found or 'none'}")
        raise ArgumentError("model", "must have a layer that can be aligned", found, _EXAMPLE)
    assignment.check()
    if strict and (refused := {name: copies.left[name] for name in copies.left if name not in copies.kept}):
        found = ", ".join(f"{name!r} ({reason})" for name, reason in refused.items())
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
        removes_rules: whether layers lose their rules instead.

    Attributes:
        converted: as in `Conversion`.
        left: as in `Conversion`.
        kept: names of the layers in `left` that keep the rule that they already have.
    """

    def __init__(self, assignment: Assignment, readers: Readers, removes_rules: bool):
        self._assignment = assignment
        self._readers = readers
        self._removes_rules = removes_rules
        self._copies: dict[int, Any] = {}
        self._whole: dict[int, Any] = {}  # The layers that are copied together with the layers in them.
        self.converted: dict[str, str] = {}
        self.left: dict[str, str] = {}
        self.kept: set[str] = set()

    def copy(self, layer: Any, wrapper: Any = None) -> Any:
        """Returns the copy of a layer, without its weights; the same one each time, so that shared layers stay shared.

        Args:
            layer: the layer.
            wrapper: the outermost `TimeDistributed` around the layer, or None.
        """
        if id(layer) not in self._copies:
            self._copies[id(layer)] = self._new(layer, wrapper)
        if id(layer) in self._whole and self._kind(layer) is None:
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
            kind = keras.layers.TimeDistributed if self._removes_rules else TimeDistributed
            return kind(self.copy(layer.layer, wrapper or layer), **keras.layers.Layer.get_config(layer))
        if isinstance(layer, keras.Sequential) or has_graph(layer):
            return keras.models.clone_model(layer, clone_function=self.copy)
        if isinstance(layer, keras.layers.Layer):  # Not an operation such as `Add`.
            self._whole[id(layer)] = layer
        kind = self._kind(layer)
        if kind is not None:
            return self._converted(layer, kind)
        new = copy_of(layer)
        if hasattr(new, "take_converted"):  # The initializer need not be able to draw the B that is copied later.
            new.take_converted(layer)
        return new

    def _kind(self, layer: Any) -> type | None:
        """Returns the class of the copy of a layer that gets a rule, or loses it; None for other layers."""
        return _native_form(layer) if self._removes_rules else _aligned_form(layer)

    def _converted(self, layer: Any, kind: type) -> Any:
        """Returns a copy of a layer, of the class `kind`, with its new rule or without one."""
        rule = self._assignment(layer.name)
        if rule is None:
            self.left[layer.name] = "it has no rule"
        else:
            self.converted[layer.name] = rule.rule
        config = arguments_of(layer)
        if kind in ALIGNED_FORMS:
            return kind(**{key: value for key, value in config.items() if key not in AlignedLayer.alignment_arguments})
        if "alignment_activation" in getattr(kind, "alignment_arguments", ()):
            follows = getattr(layer, "alignment_activation", None) or self._readers.activation(layer)
            config["alignment_activation"] = follows
        is_aligned = rule is not None and issubclass(kind, AlignedLayer | AlignedAttention)
        if is_aligned:
            kernels = kind.initialized_kernels(layer)
            config |= {each: drawable(config[each], kernels[each]) for each in kernels.keys() & config.keys()}
        # Not `from_config`, which would wrap the error that the constructor raises for an unsupported layer.
        aligned = kind(**{**config, "alignment": rule})
        if is_aligned:
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
            self.kept.add(layer.name)
            self.left[layer.name] = f"it already has the rule {rule!r}"
        elif _share(layer.weights, error_weights(wrapper or layer)):  # Keras calls only the wrapper.
            self.left[layer.name] = f"{type(layer).__name__} has no aligned form"


def _aligned_form(layer: Any) -> type | None:
    """Returns the class of a layer's copy that can have a rule; None if there is none, or if the layer has a rule."""
    if isinstance(layer, AlignedLayer | AlignedAttention):
        return type(layer) if layer.alignment is None else None
    return ALIGNED_FORMS.get(type(layer))


def _native_form(layer: Any) -> type | None:
    """Returns the class of a layer's copy without a rule, of Keras if possible; None for layers that have no rules."""
    kind = type(layer)
    if isinstance(layer, LayerWithRule):
        is_standard = getattr(layer, "parameterization", "standard") == "standard"
        return _NATIVE_FORMS.get(kind, kind) if is_standard else kind
    return kind if kind in ALIGNED_FORMS else None


_NATIVE_FORMS = {form: native for native, form in ALIGNED_FORMS.items()}


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


def _copy_vocabulary(source: keras.Layer, target: keras.Layer) -> None:
    """Copies what a layer stores in addition to its weights, such as the vocabulary of a `TextVectorization`."""
    weights: dict[str, Any] = {}
    if not hasattr(source, "set_vocabulary"):
        with tempfile.TemporaryDirectory() as folder:
            source.save_assets(folder)
            source.save_own_variables(weights)  # Keras loads the variables before the files.
            target.load_own_variables(weights)
            target.load_assets(folder)
    elif source.get_vocabulary(include_special_tokens=False):
        # Not through a file, which would split words at line ends, and which Keras before 3.15 cannot read if the words
        # have weights.
        words = source.get_vocabulary()
        source.save_own_variables(weights)
        if "idf_weights" in weights:
            # Keras pads them if `pad_to_max_tokens`.
            target.set_vocabulary(words, idf_weights=weights["idf_weights"][: len(words)])
        else:
            target.set_vocabulary(words)


def _copy_weights(source: keras.Model, target: keras.Model) -> None:
    """Copies the weights of all layers, which of them are frozen, and vocabularies.

    Backward kernels and step counters are copied if the layer has them in both models; otherwise the new ones keep
    their initial values.
    """
    every = list(zip(all_layers(source), all_layers(target), strict=True))
    for old, new in every:
        if hasattr(old, "save_assets"):  # Vocabularies of layers such as `StringLookup` are not weights.
            _copy_vocabulary(old, new)
    pairs = [pair for pair in every if pair[0].weights]
    own = [[each.alignment_weights if isinstance(each, AlignedLayer) else [] for each in pair] for pair in pairs]
    skipped = {id(weight) for old, new in own if not (old and new) for weight in [*old, *new]}
    for pair in pairs:
        old, new = ([weight for weight in layer.weights if id(weight) not in skipped] for layer in pair)
        for value, weight in zip(old, new, strict=True):
            weight.assign(value)
        # A configuration does not say which layers in a layer, or which weights, are frozen. Layers are in the order
        # from outer to inner ones.
        if pair[1].trainable != pair[0].trainable:
            pair[1].trainable = pair[0].trainable
        for value, weight in zip(old, new, strict=True):
            if weight.trainable != value.trainable:
                weight.trainable = value.trainable
        if hasattr(pair[1], "finalize_state"):  # Layers such as `Normalization` compute constants from their weights.
            pair[1].finalize_state()
