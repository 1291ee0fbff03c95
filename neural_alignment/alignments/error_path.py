"""Finds the weights that an error passes through on its way back."""

from __future__ import annotations

import weakref
from typing import Any

import keras
import tensorflow as tf

from neural_alignment.alignments.forward_pass import side_pass
from neural_alignment.keras_internals import call_arguments

Tensor = tf.Tensor

ELEMENTWISE = tuple(
    getattr(keras.layers, name)
    for name in (
        "BatchNormalization", "GroupNormalization", "LayerNormalization", "Normalization", "PReLU", "RMSNormalization",
    )
    if hasattr(keras.layers, name)
)  # fmt: skip
"""Layers without weights that connect units. They are not traced: it takes time, and networks have many of them."""

_SHAPES = ("Shape", "ShapeN", "Size", "Rank")
"""Operations that read the shape of a tensor and not its values."""

_PRODUCTS = ("Mul", "MulNoNan", "RealDiv", "DivNoNan", "Select", "SelectV2", "FusedBatchNormGradV3")
"""Operations that multiply an error by a factor, element by element."""

_DERIVATIVES = (
    "EluGrad", "LeakyReluGrad", "ReciprocalGrad", "Relu6Grad", "ReluGrad", "RsqrtGrad", "SeluGrad", "SigmoidGrad",
    "SoftplusGrad", "SoftsignGrad", "SqrtGrad", "TanhGrad",
)  # fmt: skip
"""Operations that multiply an error by the derivative of a function of each element."""

_FUNCTIONS = (
    "Case", "If", "PartitionedCall", "StatefulPartitionedCall", "StatelessCase", "StatelessIf", "StatelessWhile",
    "While", "XlaCallModule",
)  # fmt: skip
"""Operations that run another graph, which is not analysed."""

_SIZE = 16
"""Size that replaces unknown sizes, so that all shapes in the graph are known. The graph is never executed."""

_INPUT = object()
"""Stands for the inputs of a layer among the sources of a tensor."""

_found: weakref.WeakKeyDictionary[Any, tuple[int, list[Any]]] = weakref.WeakKeyDictionary()
"""Layer -> the number of its calls and the weights found, because tracing takes time."""


def error_weights(layer: Any) -> list[Any]:
    """Returns the weights of a layer that connect units with each other and that the error passes through.

    They are found in the graph of the gradient to the inputs of each call. Weights that only scale or shift each unit,
    and embeddings, whose inputs are integers, do not connect units. If a layer cannot be traced, all weights with two
    or more axes count. In a loop, a condition or a `tf.function`, only weights with two or more axes are found.

    A vector that turns one unit into several by an elementwise product is not found: its gradient is like that of a
    scale before a mean over units, as in layer normalisation.

    Args:
        layer: a built layer or another operation of a functional model.
    """
    weights = getattr(layer, "weights", [])
    if not weights or isinstance(layer, ELEMENTWISE):
        return []
    calls = call_arguments(layer)
    if layer not in _found or _found[layer][0] != len(calls):
        _found[layer] = (len(calls), _traced(layer, calls, weights))
    return _found[layer][1]


def _traced(layer: Any, calls: list[tuple[tuple[Any, ...], dict[str, Any]]], weights: list[Any]) -> list[Any]:
    """Returns the weights that connect units, and that the error passes through, in at least one call."""
    possible = [weight for weight in weights if len(weight.shape) > 1]
    if not calls:
        return possible
    try:
        passed = {id(weight) for arguments in calls for weight in _passed(layer, arguments, weights)}
    except Exception:  # The code of a layer from outside may raise anything.
        return possible
    return [weight for weight in weights if id(weight) in passed]


def _passed(layer: Any, arguments: tuple[tuple[Any, ...], dict[str, Any]], weights: list[Any]) -> list[Any]:
    """Returns the weights that connect units, and that the error passes through, in a call."""
    leaves = keras.tree.flatten(arguments)
    symbolic = [isinstance(leaf, keras.KerasTensor) for leaf in leaves]
    specs = [
        tf.TensorSpec([size or _SIZE for size in leaf.shape], leaf.dtype)
        for leaf, is_input in zip(leaves, symbolic, strict=True)
        if is_input
    ]
    if not any(spec.dtype.is_floating for spec in specs):
        return []
    upstream: list[Tensor] = []

    def error(*inputs: Tensor) -> list[Tensor]:
        values = iter(inputs)
        filled = [next(values) if is_input else leaf for leaf, is_input in zip(leaves, symbolic, strict=True)]
        args, kwargs = keras.tree.pack_sequence_as(arguments, filled)
        # Within a forward pass, as in a step of an `AlignedModel`.
        with side_pass(), tf.GradientTape() as tape:
            tape.watch(inputs)
            outputs = [each for each in keras.tree.flatten(layer(*args, **kwargs)) if each.dtype.is_floating]
        upstream.extend(tf.identity(tf.ones_like(each)) for each in outputs)
        floats = [each for each in inputs if each.dtype.is_floating]
        return [each for each in tape.gradient(outputs, floats, output_gradients=upstream) if each is not None]

    graph = tf.function(error, autograph=False).get_concrete_function(*specs).graph
    owners = {id(variable.handle): weight for weight in weights for variable in _variables(weight)}
    captured = {id(inner): owners.get(id(outer)) for outer, inner in graph.captures}
    return _ErrorPath(graph.outputs, upstream, captured).weights()


def _variables(weight: Any) -> list[tf.Variable]:
    """Returns the TensorFlow variables of a weight: one for each replica."""
    return list(getattr(weight.value, "values", [weight.value]))


class _ErrorPath:
    """The operations that an error passes on its way from the outputs of a layer to its inputs.

    Their other operands are called factors. A factor that is computed only from weights, such as a kernel, connects
    units unless each element of the error is multiplied by a separate element of it. Other factors, such as
    derivatives or the keys of an attention layer, also depend on the inputs. Of the weights in them only those with two
    or more long axes count, such as a kernel that is modulated by the inputs; vectors in them are mostly offsets.

    Args:
        inputs: the error at the inputs.
        outputs: the error at the outputs.
        captured: placeholder in the graph, by identity -> the weight that it stands for; None if it is another value.
    """

    def __init__(self, inputs: list[Tensor], outputs: list[Tensor], captured: dict[int, Any]):
        self._errors = {id(tensor) for tensor in outputs}
        self._sources: dict[int, dict[int, Any]] = {}  # Tensor -> the weights, and `_INPUT`, that it depends on.
        self._path: list[Any] = []
        for op in _in_order(inputs):
            sources: dict[int, Any] = {}
            if op.type == "Placeholder":
                source = captured.get(id(op.outputs[0]), _INPUT)
                sources = {} if source is None else {id(source): source}
            elif op.type not in _SHAPES:
                for tensor in op.inputs:
                    sources |= self._sources[id(tensor)]
                if any(id(tensor) in self._errors for tensor in op.inputs):
                    self._errors.update(map(id, op.outputs))
                    self._path.append(op)
            self._sources.update((id(tensor), sources) for tensor in op.outputs)

    def weights(self) -> list[Any]:
        """Returns the weights that connect units."""
        return [weight for op in self._path for factor in self._factors(op) for weight in self._connecting(op, factor)]

    def _factors(self, op: Any) -> list[Tensor]:
        return [tensor for tensor in op.inputs if id(tensor) not in self._errors]

    def _error(self, op: Any) -> Tensor | None:
        """Returns the first error that an operation reads; None if it is not on the path."""
        return next((tensor for tensor in op.inputs if id(tensor) in self._errors), None)

    def _connecting(self, op: Any, factor: Tensor) -> list[Any]:
        """Returns the weights by which an operation with a factor connects units."""
        sources = self._sources[id(factor)]
        weights = [source for source in sources.values() if source is not _INPUT]
        depends_on_inputs = len(weights) < len(sources)
        if op.type in _DERIVATIVES or (op.type in _PRODUCTS and self._is_diagonal(op, factor)):
            # A weight with more elements than the factor is used in parts, such as the taps of a filter.
            parts = [] if depends_on_inputs else weights
            return [each for each in parts if _size(each) > (factor.shape.num_elements() or 0)]
        if depends_on_inputs or op.type in _FUNCTIONS:
            return [each for each in weights if sum(size > 1 for size in each.shape) > 1]
        return weights

    def _is_diagonal(self, op: Any, factor: Tensor) -> bool:
        """Whether a product multiplies each element of the error at the units by an element of the factor."""
        error = self._error(op)
        if factor.shape.rank is None or error.dtype.is_complex:  # In Fourier space a product is a convolution.
            return False
        return _axes(factor) <= _axes(error) - self._summed(error)

    def _summed(self, error: Tensor) -> set[int]:
        """Returns the axes along which an error is constant because the layer sums over them."""
        op, before = error.op, self._error(error.op)
        if before is None:
            return set()
        if op.type in ("BroadcastTo", "Tile"):
            return _axes(error) - _axes(before)
        if op.type in ("Cast", "Identity", "Neg", *_PRODUCTS):
            return self._summed(before).difference(*map(_axes, self._factors(op)))
        return set()


def _axes(tensor: Tensor) -> set[int]:
    """Returns the axes along which a tensor is longer than 1, counted from the last, -1; none if unknown."""
    if tensor.shape.rank is None:
        return set()
    return {axis for axis, size in zip(range(-tensor.shape.rank, 0), tensor.shape, strict=True) if size != 1}


def _size(weight: Any) -> int:
    """Returns the number of elements of a weight."""
    return tf.TensorShape(weight.shape).num_elements()


def _in_order(tensors: list[Tensor]) -> list[Any]:
    """Returns the operations on which some tensors of a graph depend, each after those on which it depends."""
    ordered: dict[int, Any] = {}
    waiting = [tensor.op for tensor in tensors]
    while waiting:
        op = waiting[-1]
        if missing := [tensor.op for tensor in op.inputs if id(tensor.op) not in ordered]:
            waiting.extend(missing)
        else:
            ordered[id(waiting.pop())] = op
    return list(ordered.values())
