"""All uses of Keras' private API in this package. Those of `optimizers` are in `optimizers/keras_internals.py`.

Keras offers no public API for them. `tests/test_keras_internals.py` tests each of them with the oldest and the newest
supported Keras.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import keras
import tensorflow as tf
from keras.src.backend.common import global_state
from keras.src.backend.common.stateless_scope import get_stateless_scope
from keras.src.models.functional import Functional

from neural_alignment.errors import ArgumentError, Words, shortened


class Call(NamedTuple):
    """One call of an operation in the graph of a functional model.

    Attributes:
        operation: the layer or other operation.
        parents: the operations that created the inputs, one for each input.
        inputs: symbolic tensors.
        outputs: symbolic tensors.
        arguments: the positional and the keyword arguments of the call, which contain the inputs.
    """

    operation: Any
    parents: list[Any]
    inputs: list[Any]
    outputs: list[Any]
    arguments: tuple[tuple[Any, ...], dict[str, Any]]

    @property
    def first_argument(self) -> Any:
        """The first argument of the call, a structure of symbolic tensors; None if there is none."""
        args, kwargs = self.arguments
        return args[0] if args else kwargs.get("inputs")


def calls(model: keras.Model) -> Iterator[Call]:
    """Yields the calls in the graph of a functional or built Sequential model, in the order of the forward pass."""
    nodes_by_depth = functional(model)._nodes_by_depth
    for depth in sorted(nodes_by_depth, reverse=True):
        for node in nodes_by_depth[depth]:
            if not node.is_input:
                parents, inputs = [parent.operation for parent in node.parent_nodes], node.input_tensors
                yield Call(node.operation, parents, inputs, node.outputs, (node.arguments.args, node.arguments.kwargs))


def functional(model: keras.Model) -> keras.Model | None:
    """Returns the functional model that a Sequential model keeps, or the model itself; None if it is not built."""
    return model._functional if isinstance(model, keras.Sequential) else model


def creator(tensor: keras.KerasTensor) -> Any:
    """Returns the operation that created a symbolic tensor."""
    return tensor._keras_history.operation


def all_layers(model: keras.Model) -> list[Any]:
    """Returns the layers of a model and of the layers and models in it, without functional and Sequential models.

    The order is that of the forward pass.
    """
    found: dict[int, Any] = {}

    def visit(layer: Any) -> None:
        for sublayer in sublayers(layer):
            if id(sublayer) not in found:
                found[id(sublayer)] = sublayer
                visit(sublayer)

    visit(model)  # Keras' own traversal lists the layers within a layer from last to first.
    return [layer for layer in found.values() if not has_graph(layer)]


def sublayers(layer: Any) -> list[Any]:
    """Returns the layers that a layer or model has itself, each once, in the order in which they were set."""
    return list({id(each): each for each in layer._layers}.values())


def has_graph(layer: Any) -> bool:
    """Returns whether a layer is a functional or built Sequential model."""
    return isinstance(layer, keras.Model) and hasattr(functional(layer), "operations")


def only_runs_graph(layer: Any) -> bool:
    """Returns whether a layer is a functional or built Sequential model without a custom method `call`."""
    return has_graph(layer) and type(layer).call in (Functional.call, keras.Sequential.call)


def leave_scopes(layer: Any) -> None:
    """Removes the models in which a layer was built from the paths of its variables.

    Weights are named by their paths. After a network without these models is saved and loaded, its layers are built
    outside of them.
    """
    for variable in getattr(layer, "variables", ()):
        scopes = variable.path.split("/")
        if layer.name in scopes[1:-1]:
            variable._path = "/".join(scopes[scopes.index(layer.name) :])


def weights_to_train(layer: Any) -> list[Any]:
    """Returns the weights that a layer and the layers in it train unless they are frozen; none for other operations.

    Keras' `trainable_weights` leaves out the weights of layers with `trainable = False`, which may change later.
    """
    if not isinstance(layer, keras.layers.Layer):
        return []
    return [*layer._trainable_variables, *(weight for inner in layer._layers for weight in weights_to_train(inner))]


def call_arguments(layer: Any) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Returns the arguments of each call of a layer on symbolic tensors."""
    return [(node.arguments.args, node.arguments.kwargs) for node in layer._inbound_nodes]


def outermost_call(layer: Any) -> OutermostCall:
    """Returns the outermost call of a Keras layer or model that is active in this thread.

    If there is none, because a method `call` was called directly, it is a new one that begins at `layer`.
    """
    context = global_state.get_global_attribute("current_call_ctx")
    if context is None:
        return OutermostCall(layer)
    if not hasattr(context, "outermost_call"):  # Keras makes a new context for each outermost call.
        context.outermost_call = OutermostCall(context.entry_layer)
    return context.outermost_call


class OutermostCall:
    """A call of a Keras layer or model that is not within the call of another one.

    Args:
        layer: the layer or model that is called.
    """

    def __init__(self, layer: Any):
        self.layer = layer
        self._seen: set[tuple[Any, Any]] = set()

    def is_first(self, subject: Any) -> bool:
        """Returns whether this is the first question about a layer, or a part of one, in this call and this graph.

        The body of a loop and the branches of a condition are separate graphs.
        """
        key = subject, None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()
        first = key not in self._seen
        self._seen.add(key)
        return first


def recomputes(layer: Any) -> bool:
    """Returns whether a `keras.RematScope` may compute a layer again in the backward pass."""
    scope = layer._remat_mode
    if scope is None or scope.mode in (None, "activations"):
        return False
    return scope.mode != "list_of_layers" or layer.name in scope.layer_names


def added_losses(layer: Any) -> list[Any]:
    """Returns the losses that a layer has added itself in its last call, those of its `activity_regularizer` included.

    Those of the layers in it do not count.
    """
    return layer._losses


def mask_of(tensor: Any) -> Any:
    """Returns the mask that Keras keeps with a tensor, or None."""
    return getattr(tensor, "_keras_mask", None)


def keep_mask(tensor: Any, source: Any) -> Any:
    """Gives a tensor the mask that Keras keeps with another one; returns the tensor."""
    return set_mask(tensor, mask_of(source))


def set_mask(tensor: Any, mask: Any) -> Any:
    """Gives a tensor the mask that Keras keeps with it, unless the mask is None; returns the tensor."""
    if mask is not None:
        tensor._keras_mask = mask
    return tensor


def dropout_masks(cell: Any, inputs: Any, outputs: Any) -> tuple[Any, Any]:
    """Returns the masks by which a recurrent cell multiplies its inputs and its previous outputs in training.

    Each is a tensor, a list with one for each gate, or None without dropout.

    Args:
        cell: the cell.
        inputs: the inputs at one step.
        outputs: the previous outputs.
    """
    return cell.get_dropout_mask(inputs), cell.get_recurrent_dropout_mask(outputs)


_OBJECT = re.compile(r"_?((\w+_)?(initializer|regularizer|constraint|activation))")
"""Attributes with the objects that a layer was given. Those of some layers begin with an underscore."""


def arguments_of(layer: Any) -> dict[str, Any]:
    """Returns the configuration of a layer of Keras with its own initializers, regularizers, constraints, activations.

    From them a layer can be made that Keras cannot make from their serialised forms, because a function or class is not
    registered or has no configuration. An activation that is a layer is serialised, because it may have weights.
    """
    objects: dict[str, Any] = {}

    def serialisable(holder: Any) -> Any:
        """Returns a stand-in for a layer, only for `get_config`, and notes its objects."""
        found = {
            name: value
            for name, value in vars(holder).items()
            if _OBJECT.fullmatch(name) and value is not None and not isinstance(value, keras.layers.Layer)
        }
        objects.update({name.removeprefix("_"): value for name, value in found.items()})
        stand_in = object.__new__(type(holder))
        # Keras cannot serialise every object, but this function in its place.
        vars(stand_in).update({**vars(holder), **dict.fromkeys(found, keras.activations.linear)})
        return stand_in

    stand_in = serialisable(layer)
    if isinstance(layer, keras.layers.RNN):
        vars(stand_in)["cell"] = serialisable(layer.cell)
    config = stand_in.get_config()
    if "cell" in config:  # Of an `RNN`, whose cell is an argument.
        return layer.get_config()
    return config | {name: value for name, value in objects.items() if name in config}


def replace_sublayer(layer: Any, attribute: str, sublayer: Any) -> None:
    """Replaces the layer in an attribute of a layer; the new one takes the place of the old one among the sublayers."""
    old = getattr(layer, attribute)
    place = layer._layers.index(old)
    untrack(layer, old)
    setattr(layer, attribute, sublayer)
    layer._layers.remove(sublayer)
    layer._layers.insert(place, sublayer)


def copy_of(layer: Any) -> Any:
    """Returns a new layer with the arguments of a layer, without its weights. Layers of Keras get the same objects.

    A `Lambda` gets the same functions. By `from_config` they would be deserialised, which Keras refuses or which
    changes their global names.

    Raises:
        ValueError: if Keras cannot make the layer from its configuration.
    """
    kind = type(layer)
    if kind is keras.layers.Lambda:
        config = keras.layers.Layer.get_config(layer)
        return keras.layers.Lambda(layer.function, layer._output_shape, layer.mask, layer.arguments, **config)
    try:
        return kind.from_config(arguments_of(layer) if kind.__module__.startswith("keras.") else layer.get_config())
    except Exception as error:  # `get_config` and `from_config` of custom classes may raise anything.
        said = str(error).rpartition("Exception encountered: ")[2]
        reason = shortened(" ".join(said.partition(": {")[0].split()), 150)  # Without configurations of many lines.
        requirement = "must have layers that Keras can make from their configurations"
        found = Words(f"{kind.__name__} {layer.name!r} ({reason})")
        example = "a registered class with a `get_config` that returns all its arguments"
        raise ArgumentError("model", requirement, found, example) from error


def untrack(layer: Any, tracked: Any) -> None:
    """Removes a layer or a metric from those that Keras lists for a layer, before its attribute is replaced."""
    layer._tracker.untrack(tracked)


def stored_value(variable: Any) -> Any:
    """Returns the value of a Keras variable in the dtype in which it is stored, ignoring any autocast dtype.

    In a `keras.StatelessScope`, as in `stateless_call` of a model, it is the value that the scope has for the variable.
    Returns None before the variable is initialised.
    """
    scope = get_stateless_scope()
    value = None if scope is None else scope.get_current_value(variable)
    return variable._value if value is None else value


def build_metrics(model: keras.Model, labels: Any, predictions: Any) -> None:
    """Creates the variables of the compiled metrics, unless they exist.

    Otherwise Keras would create them while it traces the first step, and would have to trace that step again.

    Args:
        model: a compiled model.
        labels: the targets, a structure of `keras.KerasTensor`.
        predictions: the outputs of the model, a structure of `keras.KerasTensor`.
    """
    metrics = model._compile_metrics
    if metrics is not None and not metrics.built:
        metrics.build(labels, predictions)


def loss_tracker(model: keras.Model) -> keras.metrics.Mean:
    """Returns the metric by which a compiled model reports `loss`."""
    return model._loss_tracker


def compute_loss(model: keras.Model, x: Any, y: Any, y_pred: Any, sample_weight: Any, training: bool) -> Any:
    """Returns J by the method `compute_loss` of a model, in which a subclass may leave out the argument `training`."""
    return model._compute_loss(x, y, y_pred, sample_weight, training=training)


LossOfFunction: Any = keras.losses.MeanSquaredError.__base__
"""The class of the losses that Keras makes of functions, which gives targets and outputs the same rank."""


def loss_weight(model: keras.Model) -> float:
    """Returns the factor of the loss in a compiled model with one output, the argument `loss_weights` of `compile`."""
    weights = None if model._compile_loss is None else model._compile_loss._user_loss_weights
    (weight,) = keras.tree.flatten(weights) or [None]
    return 1.0 if weight is None else float(weight)


@contextlib.contextmanager
def fresh_names() -> Iterator[None]:
    """Within the context, layers without a name get the names that they would get in a new process.

    Keras numbers them by counters of the whole process, which continue after the context where they were before.
    """
    counters = global_state.get_global_attribute("object_name_uids")
    global_state.set_global_attribute("object_name_uids", None)
    try:
        yield
    finally:
        global_state.set_global_attribute("object_name_uids", counters)


class InterceptedModel(keras.Model):
    """A functional model that lets a subclass wrap the call of each of its operations."""

    def intercept(self, operation: Any, call: Callable[..., Any]) -> Callable[..., Any]:
        """Returns the function to call in place of `call`. By default it is `call`.

        Args:
            operation: the layer or other operation that is about to be called.
            call: the function that calls it.
        """
        del operation
        return call

    def _run_through_graph(
        self, inputs: Any, operation_fn: Any = lambda operation: operation, call_fn: Any = None
    ) -> Any:
        def intercepted(operation: Any) -> Callable[..., Any]:
            return self.intercept(operation, operation_fn(operation))

        # With `call_fn` Keras calls no operation: it only checks that the outputs depend on the inputs.
        intercepted = intercepted if call_fn is None else operation_fn
        return super()._run_through_graph(inputs, operation_fn=intercepted, call_fn=call_fn)
