"""Functions that analyse the graph of a network, for the rules for a whole network."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import keras

from neural_alignment.alignments.error_path import error_weights
from neural_alignment.alignments.nonlinearities import is_nonlinearity
from neural_alignment.errors import ArgumentError, Words
from neural_alignment.keras_internals import (
    Call,
    calls,
    creator,
    functional,
    keep_mask,
    leave_scopes,
    mask_of,
    only_runs_graph,
    weights_to_train,
)


def flat_outputs(model: keras.Model, inputs: Sequence[Any], training: bool | None = None) -> list[Any]:
    """Calls the operations of a model again, and those of the nested models in it in place of these models.

    Models with a custom method `call` are called as they are. The paths of weights do not contain the names of nested
    models afterwards.

    Args:
        model: a functional or built Sequential model.
        inputs: symbolic tensors.
        training: the argument `training` with which the model is called.

    Returns:
        The outputs of the model for these inputs, symbolic tensors.

    Raises:
        ValueError: if a nested model is called with a mask, or with another structure or rank than that of its inputs.
    """
    values = dict(zip(map(id, functional(model).inputs), inputs, strict=True))
    for call in calls(model):
        operation, signature = call.operation, inspect.signature(call.operation.call)
        args, kwargs = keras.tree.map_structure(lambda each: values.get(id(each), each), call.arguments)
        if training is not None and "training" in signature.parameters:
            kwargs = {**kwargs, "training": training}  # As in a call of the model, also if the layer has another value.
        if only_runs_graph(operation):
            _check_masks(operation.name, signature.bind(*call.arguments[0], **call.arguments[1]).arguments)
            given = signature.bind(*args, **kwargs).arguments
            outputs = flat_outputs(operation, _inner_inputs(operation, given["inputs"]), given.get("training"))
        else:
            outputs = keras.tree.flatten(operation(*args, **kwargs))
            leave_scopes(operation)
        values.update(zip(map(id, call.outputs), outputs, strict=True))
    return [values[id(tensor)] for tensor in functional(model).outputs]


def _check_masks(name: str, given: dict[str, Any]) -> None:
    """Checks that a nested model is called without masks, except those that Keras keeps with its inputs."""
    for tensor, mask in zip(keras.tree.flatten(given["inputs"]), keras.tree.flatten(given.get("mask")), strict=False):
        if mask is not None and mask is not mask_of(tensor):
            raise _not_flat(name, "the argument `mask`")


def _inner_inputs(model: keras.Model, given: Any) -> list[Any]:
    """Returns the tensors that a nested model is called with, in the order and with the dtypes of its inputs."""
    tensors, inner = inputs_in_order(model, given), functional(model).inputs
    if tensors is None or [len(each.shape) for each in tensors] != [len(each.shape) for each in inner]:
        raise _not_flat(model.name, "another structure or rank")
    return [
        tensor if tensor.dtype == like.dtype else keep_mask(keras.ops.cast(tensor, like.dtype), tensor)
        for tensor, like in zip(tensors, inner, strict=True)
    ]


def _not_flat(name: str, found: str) -> ArgumentError:
    """Returns the error for a call of a nested model whose layers cannot be called in its place."""
    requirement = "nested in a network with a rule for the whole network must be called with its inputs only"
    return ArgumentError("model", requirement, Words(f"{found} for {name!r}"), "model(tensor)")


def inputs_in_order(model: keras.Model, given: Any) -> list[Any] | None:
    """Returns the tensors that a model is called with, in the order of its inputs; None if they cannot be matched.

    Args:
        model: a functional or built Sequential model.
        given: the first argument of the call.
    """
    model = functional(model)
    if isinstance(given, dict) and isinstance(model.input, dict):
        given = {key: given.get(key) for key in model.input}
    tensors = keras.tree.flatten(given)
    matches = len(tensors) == len(model.inputs) and all(isinstance(each, keras.KerasTensor) for each in tensors)
    return tensors if matches else None


def at_each_step(operation: Any) -> Any:
    """Returns the layer that a `TimeDistributed` wrapper applies at each time step, or the operation itself."""
    while isinstance(operation, keras.layers.TimeDistributed):
        operation = operation.layer
    return operation


def is_nonlinear(operation: Any) -> bool:
    """Returns whether an operation is a nonlinearity and nothing else."""
    return is_nonlinearity(at_each_step(operation))


def ends_nonlinear(operation: Any) -> bool:
    """Returns whether an operation is an aligned layer that applies its own nonlinearity."""
    return getattr(at_each_step(operation), "ends_nonlinear", False)


def has_kernel(operation: Any) -> bool:
    """Returns whether an operation is a layer with a kernel: with weights that the error passes through."""
    return names_kernel(operation) or bool(error_weights(operation))


def output_nonlinearity(model: keras.Model) -> Any:
    """Returns the operation that applies a nonlinearity to the outputs of the last layer with a kernel, or None.

    A sum or another combination of several tensors counts as linear outputs.
    """
    graph = {call.operation.name: call for call in calls(model)}
    operation = creator(model.outputs[0])
    while operation.name in graph:
        if is_nonlinear(operation) or ends_nonlinear(operation):
            return operation
        parents = graph[operation.name].parents
        if has_kernel(operation) or len(parents) != 1:
            return None
        (operation,) = parents
    return None


def has_weights(operation: Any) -> bool:
    """Returns whether an operation is a layer with weights that can be trained, frozen or not, or with a kernel."""
    return has_kernel(operation) or bool(weights_to_train(operation))


def names_kernel(operation: Any) -> bool:
    """Returns whether an operation is a layer with a weight called kernel, as all layers with an aligned form have."""
    return any("kernel" in weight.name for weight in getattr(operation, "weights", []))


def kernel_layers(model: keras.Model) -> list[Any]:
    """Returns the layers with a kernel, in the order of the forward pass."""
    return [call.operation for call in calls(model) if has_kernel(call.operation)]


def name_of(layer: Any) -> str:
    """Returns the name by which a layer or a connection is cut and measured.

    Within `TimeDistributed` it is that of the layer at each time step.
    """
    layer = at_each_step(layer)
    return getattr(layer, "alignment_name", None) or layer.name


def unwrapped(layer: Any) -> list[Any]:
    """Returns the layers in a wrapper such as `Bidirectional`, or the layer itself."""
    inner = [getattr(layer, name) for name in ("forward_layer", "backward_layer", "layer") if hasattr(layer, name)]
    return [each for one in inner for each in unwrapped(one)] or [layer]


def inner_cuts(operation: Any) -> set[str]:
    """Returns the names of the connections of a layer whose outputs enter another kernel of the same layer."""
    return set(getattr(at_each_step(operation), "inner_connections", ()))


def has_known_cuts(operation: Any) -> bool:
    """Returns whether an operation is a layer of this package, of which the points where it can be cut are known."""
    marks = ("ends_nonlinear", "inner_connections", "recurrent")
    return any(hasattr(at_each_step(operation), mark) for mark in marks)


def live_weights(model: keras.Model) -> list[Any]:
    """Returns the variables that are never frozen at W(0): the initial states of recurrent layers."""
    return [variable for layer in model.layers for variable in getattr(layer, "live_weights", [])]


def kernels_ahead(graph: Sequence[Call]) -> dict[str, int]:
    """Counts the layers with a kernel on the longest path from the outputs of each operation.

    Args:
        graph: the calls of a model, in the order of the forward pass.

    Returns:
        The number of layers by the name of the operation.
    """
    ahead = {call.operation.name: 0 for call in graph}
    for call in reversed(graph):
        passed = ahead[call.operation.name] + has_kernel(call.operation)
        for parent in call.parents:
            ahead[parent.name] = max(ahead.get(parent.name, 0), passed)
    return ahead


def after_weights(graph: Sequence[Call], blocks: Callable[[Any], bool] = lambda _: False) -> set[str]:
    """Returns the names of the operations whose inputs depend on weights that can be trained.

    An error that passes such an operation on its way back trains these weights.

    Args:
        graph: the calls of a model, in the order of the forward pass.
        blocks: returns whether an operation ends the dependence, so that its outputs count as independent of the
            operation and of the layers before it.
    """
    carrying: set[str] = set()
    found: set[str] = set()
    for call in graph:
        name = call.operation.name
        if any(parent.name in carrying for parent in call.parents):
            found.add(name)
        if (name in found or has_weights(call.operation)) and not blocks(call.operation):
            carrying.add(name)
    return found
