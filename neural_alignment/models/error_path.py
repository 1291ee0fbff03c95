"""Finds the layers whose weights an error passes through on its way back."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from neural_alignment.keras_internals import first_call
from neural_alignment.models.batch_norm import BatchAxisNormalization

Tensor = tf.Tensor

_ELEMENTWISE = (
    BatchAxisNormalization,
    *(
        getattr(keras.layers, name)
        for name in (
            "BatchNormalization", "GroupNormalization", "LayerNormalization", "Normalization", "PReLU",
            "RMSNormalization",
        )
        if hasattr(keras.layers, name)
    ),
)  # fmt: skip
"""Layers in which each weight scales or shifts a single unit, so that no weight must equal another one."""


_SHAPES = ("Shape", "ShapeN", "Size", "Rank")
"""Operations that read the shape of a tensor and not its values."""


def carries_error(layer: Any) -> bool:
    """Returns whether the error passes through weights of a layer that connect units with each other.

    Weights of rank 1, which scale or shift each unit, do not count. For other weights the gradient to the inputs is
    traced: it depends on a kernel, but not on an embedding, whose inputs are integers, nor on an offset. A layer that
    cannot be traced counts as one that carries the error.

    Args:
        layer: a built layer of a functional model.
    """
    if isinstance(layer, _ELEMENTWISE):
        return False
    wide = [weight for weight in getattr(layer, "weights", []) if len(weight.shape) > 1]
    if not wide or isinstance(layer, keras.layers.Embedding):
        return False
    arguments = first_call(layer)
    if arguments is None:
        return True
    try:
        return _depends(layer, arguments, wide)
    except (AttributeError, TypeError, ValueError, tf.errors.OpError):
        return True


def _depends(layer: Any, arguments: tuple[tuple[Any, ...], dict[str, Any]], weights: list[Any]) -> bool:
    """Returns whether the error at the inputs of a layer depends on some of its weights."""
    leaves = keras.tree.flatten(arguments)
    symbolic = [isinstance(leaf, keras.KerasTensor) for leaf in leaves]
    specs = [tf.TensorSpec(leaf.shape, leaf.dtype) for leaf, is_input in zip(leaves, symbolic, strict=True) if is_input]
    if not any(spec.dtype.is_floating for spec in specs):
        return False

    def error(*inputs: Tensor) -> list[Tensor]:
        values = iter(inputs)
        filled = [next(values) if is_input else leaf for leaf, is_input in zip(leaves, symbolic, strict=True)]
        args, kwargs = keras.tree.pack_sequence_as(arguments, filled)
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            outputs = [each for each in keras.tree.flatten(layer(*args, **kwargs)) if each.dtype.is_floating]
        floats = [each for each in inputs if each.dtype.is_floating]
        return [each for each in tape.gradient(outputs, floats) if each is not None]

    graph = tf.function(error, autograph=False).get_concrete_function(*specs).graph
    captured = {id(inner): outer for outer, inner in graph.captures}
    values = [each for weight in weights for each in getattr(weight.value, "values", [weight.value])]
    handles = {id(value.handle) for value in values}
    return any(id(captured.get(id(tensor))) in handles for tensor in _sources(graph.outputs))


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
