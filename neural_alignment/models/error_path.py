"""Finds the layers whose weights an error passes through on its way back."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

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


def carries_error(layer: Any) -> bool:
    """Returns whether the error passes through weights of a layer that connect units with each other.

    Weights of rank 1, which scale or shift each unit, do not count. For other weights the gradient to the inputs is
    traced: it depends on a kernel, but not on an embedding, whose inputs are integers, nor on an offset.

    Args:
        layer: a built layer of a functional model.
    """
    if isinstance(layer, _ELEMENTWISE):
        return False
    wide = [weight for weight in getattr(layer, "weights", []) if len(weight.shape) > 1]
    if not wide:
        return False
    inputs = [tensor for tensor in keras.tree.flatten(layer.input) if isinstance(tensor, keras.KerasTensor)]
    if not any(tf.as_dtype(tensor.dtype).is_floating for tensor in inputs):
        return False
    return _depends(layer, {id(weight) for weight in wide})


def _depends(layer: Any, weights: set[int]) -> bool:
    """Returns whether the error at the inputs of a layer depends on some of its weights."""
    structure = layer.input
    specs = [
        tf.TensorSpec([2 if size is None else size for size in tensor.shape], tensor.dtype)
        for tensor in keras.tree.flatten(structure)
    ]

    def error(*inputs: Tensor) -> list[Tensor]:
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            packed = keras.tree.pack_sequence_as(structure, inputs)
            outputs = [each for each in keras.tree.flatten(layer(packed)) if each.dtype.is_floating]
        return [each for each in tape.gradient(outputs, inputs) if each is not None]

    graph = tf.function(error, autograph=False).get_concrete_function(*specs).graph
    captured = {id(inner): outer for outer, inner in graph.captures}
    handles = {id(weight.value.handle) for weight in layer.weights if id(weight) in weights}
    return any(id(captured.get(id(tensor))) in handles for tensor in _sources(graph.outputs))


def _sources(tensors: list[Tensor]) -> list[Tensor]:
    """Returns the tensors without inputs that some tensors of a graph depend on."""
    waiting, reached, found = [*tensors], set(), []
    while waiting:
        tensor = waiting.pop()
        if id(tensor.op) in reached:
            continue
        reached.add(id(tensor.op))
        waiting.extend(tensor.op.inputs)
        if not tensor.op.inputs:
            found.extend(tensor.op.outputs)
    return found
