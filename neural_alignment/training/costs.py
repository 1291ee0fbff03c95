"""Counts the floating-point operations in the products of a training step."""

from __future__ import annotations

import contextlib
import inspect
import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from neural_alignment.alignments import Alignment, ForwardPass, LayerView
from neural_alignment.alignments.networkwise import TrainingBatch
from neural_alignment.config import Config
from neural_alignment.keras_internals import all_layers, calls, has_graph, sublayers
from neural_alignment.layers import AlignedLayer, Connection
from neural_alignment.layers.base import known_shape, output_shape
from neural_alignment.layers.connection import HALF
from neural_alignment.operations import DenseMap
from neural_alignment.training import setup
from neural_alignment.training.model import AlignedModel, connections

PRODUCTS = {
    *("MatMul", "BatchMatMulV2", "Einsum"),
    *(f"Conv2D{gradient}" for gradient in ("", "BackpropInput", "BackpropFilter")),
    *(f"DepthwiseConv2dNative{gradient}" for gradient in ("", "BackpropInput", "BackpropFilter")),
    *(f"Conv3D{gradient}" for gradient in ("", "BackpropInputV2", "BackpropFilterV2")),
}
"""Operations that cost one product of a kernel with a batch."""


class LayerCost(NamedTuple):
    """One connection: a kernel of a layer, with its bias; or a layer with products that have no connection.

    Attributes:
        name: the name of the connection or layer.
        rule: the name of its rule, or "backpropagation".
        forward: parameters of the forward path, including the bias.
        backward: parameters of the backward path, those that are not trained included.
        product: floating-point operations of one product of the kernel with one example, in all uses of the layer; for
            a layer with products without a connection, those of its forward pass.
        products: number of such products, with the whole batch, that R adds to a step of J + R on average. With
            `examples` and `every` of the rule it is a fraction of the number in `regulariser_products`.
        interval: R is computed once in this number of steps of J + R.
        carrying: floating-point operations in the products of backward weights by which the rule computes the kernel
            through which the error travels, for each part of a batch.
        tying: the same in the gradient of that kernel to the stored B.
    """

    name: str
    rule: str
    forward: int
    backward: int
    product: int
    products: float
    interval: int = 1
    carrying: int = 0
    tying: int = 0


def layer_costs(model: keras.Model, batch: int | None = None, parts: int = 1) -> list[LayerCost]:
    """Returns the cost of every connection of `model`, and of every other layer with products, such as one of Keras.

    A layer that contains aligned layers, such as an attention layer, has a row only for its other products, such as
    that of queries and keys. Products in a loop over time are counted only in aligned layers. A layer in a custom layer
    is counted as used once in each call of that layer.

    Args:
        model: the network.
        batch: number of examples of a step. Default: R is counted as if it used all examples in every step.
        parts: number of equal parts of a batch, for minibatches and replicas.
    """
    uses = _Uses(model)
    rows = []
    for layer in all_layers(model):
        if not isinstance(layer, AlignedLayer):
            rows += _other_products(layer, uses)
            continue
        rule, aligned, half = layer.alignment, layer.keeps_backward_kernel, tf.as_dtype(layer.compute_dtype) in HALF
        for connection, product in zip(layer.make_connections(), uses.products(layer), strict=True):
            carrying, tying = _backward_products(connection) if aligned else (0, 0)
            rows.append(
                LayerCost(
                    name=connection.name,
                    rule="backpropagation" if rule is None else rule.rule,
                    forward=entries(connection.kernel) + connection.bias_size,
                    backward=sum(map(entries, connection.backward_weights)) if aligned else 0,
                    product=product,
                    products=regulariser_products(rule, half) * _share(rule, batch, parts) if aligned else 0,
                    interval=rule.interval if aligned and batch else 1,
                    carrying=carrying,
                    tying=tying,
                )
            )
    return rows


class _Uses:
    """The uses of the layers of a network in a forward pass of one example.

    Args:
        model: the network.

    Attributes:
        count: id of a layer -> number of its uses; each time step of `TimeDistributed` counts.
        calls: id of a layer that is not in another layer -> arguments of each of its calls.
    """

    def __init__(self, model: keras.Model):
        self.count: Counter[int] = Counter()
        self.calls: dict[int, list[Any]] = defaultdict(list)
        self._visit(model, 1, in_layer=False)

    def products(self, layer: AlignedLayer) -> list[int]:
        """Returns the floating-point operations of the products with each kernel of a layer, in all its uses."""
        shapes = [args[0].shape for args, _ in self.calls[id(layer)] if args and hasattr(args[0], "shape")]
        count = self.count[id(layer)]
        if len(shapes) != count:  # In another layer, whose calls are counted only.
            return [count * product for product in _products(layer)]
        return [sum(uses) for uses in zip(*(_products(layer, shape) for shape in shapes), strict=True)]

    def _visit(self, layer: Any, count: int, in_layer: bool) -> None:
        self.count[id(layer)] += count
        if has_graph(layer):
            for call in calls(layer):
                if isinstance(call.operation, keras.layers.Layer):
                    if not in_layer:
                        self.calls[id(call.operation)].append(call.arguments)
                    self._visit(call.operation, count, in_layer)
            return
        for each in sublayers(layer):
            self._visit(each, count * _steps(layer), in_layer=True)


def _steps(layer: Any) -> int:
    """Returns the number of time steps at which a wrapper calls the layer in it; 1 for other layers."""
    if not isinstance(layer, keras.layers.TimeDistributed):
        return 1
    return known_shape(layer.get_build_config()["input_shape"])[1]


def _products(layer: AlignedLayer, inputs: Sequence[int | None] | None = None) -> list[int]:
    """Returns the floating-point operations of one product of each kernel of a layer with one example.

    Args:
        layer: the layer.
        inputs: shape of the inputs of the layer. Default: the shape with which it was built.
    """
    found = []
    for connection, shape in zip(layer.make_connections(), layer.input_shapes(inputs), strict=True):
        kernel = connection.kernel.shape
        outputs = output_shape(connection.linear_map, shape, kernel)
        shapes = known_shape(shape[1:]), kernel, known_shape(outputs[1:])
        found.append(2 * connection.linear_map.multiplications(*shapes))
    return found


def _backward_products(connection: Connection) -> tuple[int, int]:
    """Counts the floating-point operations in the products by which a rule computes the kernel that carries the error.

    As in `regulariser_products`, the rule is traced.

    Returns:
        The operations in the products, and those in their gradient to the stored B if the rule ties it.
    """
    if not connection.computes_backward_kernel:
        return 0, 0

    def step(forward, backward):
        with tf.GradientTape() as tape:
            tape.watch(backward)
            carried = connection.carried_kernel(forward, backward, ForwardPass())
        return carried, tape.gradient(carried, backward) if connection.alignment.tie_gradient else None

    specs = [tf.TensorSpec(each.shape, each.dtype) for each in (connection.kernel, connection.stored_backward_kernel)]
    carried, gradient = tf.function(step, autograph=False).get_concrete_function(*specs).structured_outputs
    own = _reached([carried])
    of_gradient = set() if gradient is None else _reached([gradient]) - own
    return tuple(sum(_operations(each) for each in found if each.type in PRODUCTS) for found in (own, of_gradient))


def _other_products(layer: keras.layers.Layer, uses: _Uses) -> list[LayerCost]:
    """Returns a row for the products of a layer that no connection has; none if none is found in its forward pass.

    Args:
        layer: a layer that is not aligned, but may contain aligned layers.
        uses: the uses of all layers.
    """
    if not any(len(weight.shape) > 1 for weight in layer.weights):
        return []  # Such as batch normalisation, of which a network may have hundreds.
    inner = [each for each in all_layers(layer) if isinstance(each, AlignedLayer)]
    found = sum(_forward_products(layer, *arguments) for arguments in uses.calls[id(layer)])
    product = found - sum(sum(uses.products(each)) for each in inner)
    elsewhere = {id(weight) for each in inner for weight in each.weights}
    size = sum(entries(weight) for weight in layer.trainable_weights if id(weight) not in elsewhere)
    return [LayerCost(layer.name, "backpropagation", size, 0, product, 0, 1)] if product > 0 else []


def _forward_products(layer: keras.layers.Layer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """Counts the floating-point operations in the products of one call of a layer, for one example.

    Args:
        layer: the layer.
        args: positional arguments of the call, with symbolic tensors.
        kwargs: keyword arguments.
    """
    inference = {"training": False} if "training" in inspect.signature(layer.call).parameters else {}
    leaves = keras.tree.flatten((args, kwargs))
    symbolic = [isinstance(leaf, keras.KerasTensor) for leaf in leaves]

    def call(tensors: list[tf.Tensor]) -> Any:
        given = iter(tensors)
        filled = [next(given) if is_symbolic else leaf for leaf, is_symbolic in zip(leaves, symbolic, strict=True)]
        positional, named = keras.tree.pack_sequence_as((args, kwargs), filled)
        return layer(*positional, **{**named, **inference})

    return _counted(call, list(itertools.compress(leaves, symbolic)))


def _share(rule: Alignment, batch: int | None, parts: int) -> float:
    """Returns the part of the examples of a step that R uses, averaged over steps of J + R."""
    if batch is None:
        return 1
    examples = batch // parts
    return rule.examples_used(examples, parts) / examples / rule.interval


def part_of_r(config: Config, replicas: int, losses: str) -> float:
    """Returns the part of the floating-point operations in the products of a step that are those of R.

    Args:
        config: the configuration of the run.
        replicas: number of replicas that share a batch.
        losses: the losses that the step trains, a name of `StepModes.name`.

    Raises:
        DataError: if the configuration does not determine shapes and counts, and the data cannot be read.
    """
    if not any(rule.learns and rule.reads_signals for rule in config.rules):
        return 0.0  # Without building the model: R of kernels has no product with a batch.
    model = setup.compiled_model(config, setup.data_facts(config), contextlib.nullcontext())
    mode = model.step_modes.named(losses)
    if not mode.r_runs:
        return 0.0
    rows = layer_costs(model, config.batch_size, replicas * config.optimization.minibatches)
    due = [row for row in rows if mode.intervals is None or row.interval in mode.intervals]
    of_r = sum(row.products * row.interval * row.product for row in due)
    of_j = backpropagation_step(rows, model) if mode.j_runs else sum(row.product for row in rows)
    return of_r / (of_r + of_j)


def products_of_weights(rows: Sequence[LayerCost]) -> int:
    """Counts the floating-point operations in the products of backward weights with each other in a step of J.

    Every part of a batch takes them once, whatever its number of examples.

    Args:
        rows: the `layer_costs` of the network.
    """
    # The first layer sends no error to its inputs.
    return sum(row.tying for row in rows) + sum(row.carrying for row in rows[1:])


def backpropagation_step(rows: list[LayerCost], model: keras.Model) -> int:
    """Counts the floating-point operations in the products of a step of backpropagation, for one example.

    Args:
        rows: the `layer_costs` of the network.
        model: the network.
    """
    # A graph does not show the products in a loop.
    is_recurrent = any(isinstance(layer, keras.layers.RNN) for layer in all_layers(model))
    if is_recurrent or _only_the_first_sends_no_error(rows, model):
        return 3 * sum(row.product for row in rows) - rows[0].product

    def step(example):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.square(model(example, training=False)))
        return tape.gradient(loss, model.trainable_variables)

    return _counted(step, model.input)


def _only_the_first_sends_no_error(rows: list[LayerCost], model: keras.Model) -> bool:
    """Whether backpropagation takes three products in each layer, and two in the first, which sends no error back."""
    own, layers = connections(model), all_layers(model)
    first = next((place for place, layer in enumerate(layers) if isinstance(layer, AlignedLayer)), 0)
    return (
        {row.name for row in rows} <= {each.name for each in own}
        and len(model.inputs) == 1
        and all(each.kernel.trainable for each in own)
        and not any(layer.trainable_weights for layer in layers[:first])
    )


def network_step(model: AlignedModel) -> int:
    """Counts the floating-point operations of the products of a step with a rule for the whole network, per example.

    As in `regulariser_products`, the step is traced, and the products that its gradients depend on are counted.
    """
    rule = model.bound_rule
    trained = [variable for variable in model.trainable_variables if rule.trains(variable)]

    def step(x):
        forward = rule.forward(TrainingBatch(x, targets=tf.zeros([1])))
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.square(forward()))  # Its gradient depends on the outputs, as that of J does.
        return tape.gradient(loss, trained)

    return _counted(step, model.input)


def _counted(step: Callable[[Any], Any], inputs: Any) -> int:
    """Counts the floating-point operations in the products on which the results of a step depend, for one example.

    Args:
        step: a function of one example.
        inputs: the symbolic inputs whose shapes the example has.
    """
    example = keras.tree.map_structure(
        lambda tensor: tf.TensorSpec([size or 1 for size in tensor.shape], tensor.dtype), inputs
    )
    graph = tf.function(step, autograph=False).get_concrete_function(example).graph
    return sum(_operations(each) for each in _reached(graph.outputs) if each.type in PRODUCTS)


def _operations(product: Any) -> int:
    """Returns the floating-point operations of one of `PRODUCTS`: one multiplication and one addition per term."""
    if product.type in ("MatMul", "BatchMatMulV2"):
        transposes = product.get_attr("transpose_a" if product.type == "MatMul" else "adj_x")
        return 2 * product.inputs[0].shape[-2 if transposes else -1] * product.outputs[0].shape.num_elements()
    if product.type == "Einsum":
        return 2 * _terms(product.get_attr("equation").decode(), [tensor.shape for tensor in product.inputs])
    is_forward = "Backprop" not in product.type
    places = (product.outputs[0] if is_forward else product.inputs[-1]).shape
    kernel = (product.outputs[0] if "Filter" in product.type else product.inputs[1]).shape
    return 2 * places.num_elements() // places[-1] * kernel.num_elements()


def _terms(equation: str, shapes: Sequence[Sequence[int]]) -> int:
    """Returns the number of terms that an einsum adds up: the product of the sizes of all its axes."""
    sizes: dict[str | int, int] = {}
    for labels, shape in zip(equation.partition("->")[0].split(","), shapes, strict=True):
        before, dots, after = labels.partition("...")
        # The axes of an ellipsis have numbers, counted from its end.
        hidden = range(len(before) + len(after) - len(shape), 0) if dots else ()
        for label, size in zip([*before, *hidden, *after], shape, strict=True):
            sizes[label] = max(size, sizes.get(label, 1))  # An axis of an ellipsis may be broadcast.
    return math.prod(sizes.values())


@cache
def regulariser_products(rule: Alignment, half: bool = False) -> int:
    """Counts the products with a kernel that R_l and its gradients add to a step.

    The rule is traced on a small layer, and the products that R_l and its gradients depend on are counted. A new rule
    therefore need not declare its cost. A product with a single example in place of the batch does not count.

    Args:
        rule: the rule of one layer.
        half: whether the network computes in half precision, so that R does not use the W^T x of J.
    """
    linear_map, inputs_shape, kernel_shape = _CountedMap(), (2, 4), (4, 3)

    def step(inputs, forward_kernel, backward_kernel, bias, projection):
        trained = [backward_kernel, forward_kernel] if rule.trains_forward else [backward_kernel]
        with tf.GradientTape() as tape:
            tape.watch(trained)
            view = LayerView(
                linear_map,
                inputs,
                forward_kernel,
                backward_kernel,
                bias,
                tf.nn.relu,
                None if half else projection,
                update_forward=rule.trains_forward,
            )
            regulariser = rule(view)
        return regulariser, tape.gradient(regulariser, trained)

    shapes = (inputs_shape, kernel_shape, kernel_shape[::-1], kernel_shape[-1:], (2, 3))
    graph = tf.function(step).get_concrete_function(*(tf.TensorSpec(shape, tf.float32) for shape in shapes)).graph
    return sum(_CountedMap.MARK in operation.name for operation in _reached(graph.outputs))


class _CountedMap(DenseMap):
    """A linear map whose products, and those in their gradients, can be found in a graph."""

    MARK = "counted_product"

    def project(self, inputs: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        """Returns the outputs."""

        @tf.custom_gradient
        def operation(inputs, kernel):
            def gradient(upstream):
                return self.reconstruct(upstream, kernel, inputs), self.correlate(inputs, upstream, kernel)

            return self._marked(super(_CountedMap, self).project(inputs, kernel), inputs), gradient

        return operation(inputs, kernel)

    def reconstruct(self, outputs: tf.Tensor, kernel: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
        """Returns the adjoint of `project` in its inputs."""

        @tf.custom_gradient
        def operation(outputs, kernel):
            def gradient(upstream):
                return self.project(upstream, kernel), self.correlate(upstream, outputs, kernel)

            return self._marked(super(_CountedMap, self).reconstruct(outputs, kernel, like), outputs), gradient

        return operation(outputs, kernel)

    def correlate(self, inputs: tf.Tensor, outputs: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
        """Returns the adjoint of `project` in its kernel."""

        @tf.custom_gradient
        def operation(inputs, outputs):
            def gradient(upstream):
                return self.reconstruct(outputs, upstream, inputs), self.project(inputs, upstream)

            return self._marked(super(_CountedMap, self).correlate(inputs, outputs, like), inputs), gradient

        return operation(inputs, outputs)

    def _marked(self, result: tf.Tensor, examples: tf.Tensor) -> tf.Tensor:
        return result if examples.shape[0] == 1 else tf.identity(result, name=self.MARK)


def _reached(tensors: Iterable[Any]) -> set[Any]:
    """Returns all operations of a graph that some tensors depend on."""
    waiting = [tensor.op for tensor in tensors]
    reached = set()
    while waiting:
        operation = waiting.pop()
        if operation not in reached:
            reached.add(operation)
            waiting.extend(tensor.op for tensor in operation.inputs)
    return reached


def entries(weight: Any) -> int:
    """Returns the number of entries of a weight."""
    return int(np.prod(weight.shape))
