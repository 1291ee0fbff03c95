"""Finds the weights that an error passes through on its way back."""

from __future__ import annotations

import weakref
from typing import Any

import keras
import tensorflow as tf

from neural_alignment.alignments.forward_pass import side_pass
from neural_alignment.keras_internals import call_arguments

Tensor = tf.Tensor

_ELEMENTWISE = tuple(
    getattr(keras.layers, name)
    for name in (
        "BatchNormalization", "GroupNormalization", "LayerNormalization", "Normalization", "PReLU", "RMSNormalization",
    )
    if hasattr(keras.layers, name)
)  # fmt: skip
"""Layers in which each weight scales or shifts a single unit, so that no weight must equal another one."""

_SHAPES = ("Shape", "ShapeN", "Size", "Rank")
"""Operations that read the shape of a tensor and not its values."""

_found: weakref.WeakKeyDictionary[Any, tuple[int, list[Any]]] = weakref.WeakKeyDictionary()
"""Layer -> the number of its calls and the weights found, because tracing takes time."""


def error_weights(layer: Any) -> list[Any]:
    """Returns the weights of a layer that connect units with each other and that the error passes through.

    Weights of rank 1, which scale or shift each unit, do not count. For other weights the gradient to the inputs of
    each call is traced: it depends on a kernel, but not on an embedding, whose inputs are integers, nor on an offset.
    If a layer cannot be traced, all of these weights count.

    Args:
        layer: a built layer or another operation of a functional model.
    """
    wide = [weight for weight in getattr(layer, "weights", []) if len(weight.shape) > 1]
    if not wide or isinstance(layer, _ELEMENTWISE):
        return []
    calls = call_arguments(layer)
    if layer not in _found or _found[layer][0] != len(calls):
        _found[layer] = (len(calls), _traced(layer, calls, wide))
    return _found[layer][1]


def _traced(layer: Any, calls: list[tuple[tuple[Any, ...], dict[str, Any]]], weights: list[Any]) -> list[Any]:
    """Returns the weights on which the error at the inputs depends in at least one call."""
    if not calls:
        return weights
    try:
        passed = {id(weight) for arguments in calls for weight in _passed(layer, arguments, weights)}
    except Exception:  # The code of a layer from outside may raise anything.
        return weights
    return [weight for weight in weights if id(weight) in passed]


def _passed(layer: Any, arguments: tuple[tuple[Any, ...], dict[str, Any]], weights: list[Any]) -> list[Any]:
    """Returns the weights on which the error at the inputs of a layer depends in a call."""
    leaves = keras.tree.flatten(arguments)
    symbolic = [isinstance(leaf, keras.KerasTensor) for leaf in leaves]
    specs = [tf.TensorSpec(leaf.shape, leaf.dtype) for leaf, is_input in zip(leaves, symbolic, strict=True) if is_input]
    if not any(spec.dtype.is_floating for spec in specs):
        return []

    def error(*inputs: Tensor) -> list[Tensor]:
        values = iter(inputs)
        filled = [next(values) if is_input else leaf for leaf, is_input in zip(leaves, symbolic, strict=True)]
        args, kwargs = keras.tree.pack_sequence_as(arguments, filled)
        # Within a forward pass, as in a step of an `AlignedModel`.
        with side_pass(), tf.GradientTape() as tape:
            tape.watch(inputs)
            outputs = [each for each in keras.tree.flatten(layer(*args, **kwargs)) if each.dtype.is_floating]
        floats = [each for each in inputs if each.dtype.is_floating]
        return [each for each in tape.gradient(outputs, floats) if each is not None]

    graph = tf.function(error, autograph=False).get_concrete_function(*specs).graph
    captured = {id(inner): outer for outer, inner in graph.captures}
    reached = {id(captured.get(id(tensor))) for tensor in _sources(graph.outputs)}
    return [weight for weight in weights if reached & {id(each.handle) for each in _variables(weight)}]


def _variables(weight: Any) -> list[tf.Variable]:
    """Returns the TensorFlow variables of a weight: one for each replica."""
    return list(getattr(weight.value, "values", [weight.value]))


def _sources(tensors: list[Tensor]) -> list[Tensor]:
    """Returns the tensors without inputs whose values some tensors of a graph depend on."""
    waiting, reached, found = [*tensors], set(), []
    while waiting:
        tensor = waiting.pop()
        if id(tensor.op) in reached:
            continue
        reached.add(id(tensor.op))
        if tensor.op.type in _SHAPES:
            continue
        waiting.extend(tensor.op.inputs)
        if not tensor.op.inputs:
            found.extend(tensor.op.outputs)
    return found
