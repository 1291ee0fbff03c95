"""Which nonlinearity follows a layer in a model."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import keras

from neural_alignment.models.batch_norm import BatchAxisNormalization

logger = logging.getLogger(__name__)

_PASSED = (keras.layers.BatchNormalization, BatchAxisNormalization, keras.layers.Dropout)
"""Layers that may stand between a layer and its nonlinearity."""

_OUTPUT = object()
"""Stands for the model itself as a reader of its outputs."""


class Following:
    """The readers of every tensor in one model, including the models within it.

    Only calls that belong to the model count. Layers know other calls too: of models that share them, and of each stage
    of a Sequential model that was made with `add`.

    Args:
        model: a functional or built Sequential model.
    """

    def __init__(self, model: keras.Model):
        self._readers: dict[int, list[Any]] = {}
        self._calls: dict[int, list[Any]] = {}
        self._read(model)
        for tensor in _graph_of(model).outputs:
            self._readers.setdefault(id(tensor), []).append(_OUTPUT)

    def _read(self, model: keras.Model) -> None:
        """Notes the readers of every tensor of a model. A model within it passes its tensors on."""
        for node in _nodes(model):
            operation = node.operation
            if not _has_graph(operation):
                self._calls.setdefault(id(operation), []).append(node)
                for tensor in node.input_tensors:
                    self._readers.setdefault(id(tensor), []).append(node)
                continue
            if id(operation) not in self._calls:
                self._calls[id(operation)] = []
                self._read(operation)
            inner = _graph_of(operation)
            for outer, tensor in zip(node.input_tensors, inner.inputs, strict=True):
                self._readers.setdefault(id(outer), []).append(tensor)
            for tensor, outer in zip(inner.outputs, node.outputs, strict=True):
                self._readers.setdefault(id(tensor), []).append(outer)

    def activation(self, layer: Any) -> str | dict | None:
        """Returns the nonlinearity that follows a layer, as Keras serialises it; None if there is not exactly one.

        The output is followed through batch normalisation and dropout as long as nothing else reads it. A layer that is
        called several times must have the same nonlinearity after each call.

        Args:
            layer: a layer of the model.
        """
        if layer.activation is not keras.activations.linear:
            return None
        found = [self._after(node) for node in self._calls.get(id(layer), [])]
        return found[0] if found and all(each == found[0] for each in found) else None

    def _after(self, node: Any) -> str | dict | None:
        readers = list(self._final_readers(node.outputs[0]))
        if len(readers) != 1 or readers[0] is _OUTPUT:
            return None
        follower = readers[0].operation
        if isinstance(follower, _PASSED) or getattr(follower, "activation", None) is keras.activations.linear:
            is_activation = isinstance(follower, (*_PASSED, keras.layers.Activation))
            return self._after(readers[0]) if is_activation else None
        return _name_of(follower)

    def _final_readers(self, tensor: Any) -> Iterator[Any]:
        """Yields the calls that read a tensor, at the place where models pass it on to."""
        for reader in self._readers.get(id(tensor), []):
            if isinstance(reader, keras.KerasTensor):
                yield from self._final_readers(reader)
            else:
                yield reader


def _name_of(follower: Any) -> str | dict | None:
    """Returns a nonlinearity as Keras serialises it, or None if the operation is none or has no such name."""
    if isinstance(follower, keras.layers.Activation):
        return keras.activations.serialize(follower.activation)
    for kind, options, name in _NAMED:
        if isinstance(follower, kind) and all(getattr(follower, key) == value for key, value in options.items()):
            return name
    if isinstance(follower, tuple({kind for kind, *_ in _NAMED})):
        logger.warning(
            "%s %r has options that no named activation has: rules with `relu: true` use no nonlinearity before it",
            type(follower).__name__,
            follower.name,
        )
    return None


_NAMED = (
    (keras.layers.ReLU, {"max_value": None, "negative_slope": 0.0, "threshold": 0.0}, "relu"),
    (keras.layers.ReLU, {"max_value": 6.0, "negative_slope": 0.0, "threshold": 0.0}, "relu6"),
    (keras.layers.LeakyReLU, {"negative_slope": 0.2}, "leaky_relu"),
    (keras.layers.ELU, {"alpha": 1.0}, "elu"),
    (keras.layers.Softmax, {"axis": -1}, "softmax"),
)
"""Layer, its options, and the activation of the same values."""


def _has_graph(operation: Any) -> bool:
    """Whether an operation is a functional or Sequential model."""
    return isinstance(operation, keras.Model) and hasattr(_graph_of(operation), "_nodes_by_depth")


def _graph_of(model: keras.Model) -> keras.Model:
    """Returns the functional model that a Sequential model keeps, or the model itself."""
    return model._functional if isinstance(model, keras.Sequential) else model


def _nodes(model: keras.Model) -> Iterator[Any]:
    """Yields the calls of a model's operations, in the order of the forward pass."""
    graph = _graph_of(model)
    for depth in sorted(graph._nodes_by_depth, reverse=True):
        yield from (node for node in graph._nodes_by_depth[depth] if not node.is_input)
