"""Finds the nonlinearity that follows a layer in a model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import keras

from neural_alignment.alignments.networkwise.graph import at_each_step, inputs_in_order
from neural_alignment.alignments.nonlinearities import ActivationArgument, argument_of
from neural_alignment.keras_internals import Call, calls, functional, has_graph
from neural_alignment.models.batch_norm import BatchAxisNormalization

_TRANSPARENT = (keras.layers.BatchNormalization, BatchAxisNormalization, keras.layers.Dropout)
"""Layers that may stand between a layer and its nonlinearity."""

_OUTPUT = object()
"""Marks an output of the model: the reader is outside of the model."""


class Readers:
    """Records which operations of a model read each tensor, and finds the nonlinearity that follows a layer.

    Nested models are included. The calls are read from the graph of the model, not from the layers: layers also record
    their calls in other models that share them, and in each stage of a Sequential model built with `add`.

    Args:
        model: a functional or built Sequential model.
    """

    def __init__(self, model: keras.Model):
        self._readers: dict[int, list[Any]] = {}
        self._calls: dict[int, list[Call]] = {}
        self._read(model)
        for tensor in functional(model).outputs:
            self._readers.setdefault(id(tensor), []).append(_OUTPUT)

    def _read(self, model: keras.Model) -> None:
        """Records the readers of every tensor of a model. Tensors are followed into and out of nested models."""
        for call in calls(model):
            inner = _inputs_of(call) if has_graph(call.operation) else None
            if inner is None:
                self._calls.setdefault(id(call.operation), []).append(call)
                self._read_wrapped(call)
                for tensor in call.inputs:
                    self._readers.setdefault(id(tensor), []).append(call)
                continue
            self._read_nested(call.operation, call)
            for outer, tensor in inner:
                self._readers.setdefault(id(outer), []).append(tensor)

    def _read_wrapped(self, call: Call) -> None:
        """Records a call of `TimeDistributed` as a call of the layer in it, of which Keras has no record."""
        layer = at_each_step(call.operation)
        if layer is call.operation:
            return
        if has_graph(layer):
            self._read_nested(layer, call)
        else:
            self._calls.setdefault(id(layer), []).append(call)

    def _read_nested(self, model: keras.Model, call: Call) -> None:
        """Records the readers of the tensors in a nested model, and that its outputs are those of a call."""
        if id(model) not in self._calls:
            self._calls[id(model)] = []
            self._read(model)
        for tensor, outer in zip(functional(model).outputs, call.outputs, strict=True):
            self._readers.setdefault(id(tensor), []).append(outer)

    def activation(self, layer: Any) -> ActivationArgument:
        """Returns the nonlinearity that follows a layer, or None if there is not exactly one.

        The output is followed through batch normalisation and dropout, as long as no other operation reads it. If the
        layer, or the model that contains it, is called several times, each call must have the same nonlinearity.

        Args:
            layer: a layer of the model.
        """
        if layer.activation is not keras.activations.linear:
            return None
        return _common(self._after(call.outputs[0]) for call in self._calls.get(id(layer), []))

    def _after(self, tensor: Any) -> ActivationArgument:
        """Returns the nonlinearity that is applied to a tensor."""
        readers = self._readers.get(id(tensor), [])
        if all(isinstance(reader, keras.KerasTensor) for reader in readers):
            # The tensor is passed into a nested model, or is the output of one, which may be called several times.
            return _common(map(self._after, readers))
        if len(readers) != 1 or readers[0] is _OUTPUT:
            return None
        follower = at_each_step(readers[0].operation)
        linear = getattr(follower, "activation", None) is keras.activations.linear
        if isinstance(follower, _TRANSPARENT) or (isinstance(follower, keras.layers.Activation) and linear):
            return self._after(readers[0].outputs[0])
        return argument_of(follower)


def _common(found: Iterable[ActivationArgument]) -> ActivationArgument:
    """Returns the common nonlinearity if all are equal, or None."""
    first, *others = [*found] or [None]
    return first if all(each == first for each in others) else None


def _inputs_of(call: Call) -> list[tuple[Any, Any]] | None:
    """Returns pairs of a tensor that is passed to a nested model and the corresponding input of that model.

    Returns None if they cannot be matched, for example if the model is called with masks.
    """
    outer = inputs_in_order(call.operation, call.first_argument)
    return None if outer is None else list(zip(outer, functional(call.operation).inputs, strict=True))
