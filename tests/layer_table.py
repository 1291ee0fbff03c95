"""One table of all aligned layers, with small shapes, and the gradients that are expected of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import explicit_maps
import keras
import numpy as np
import recurrent_layers
import tensorflow as tf
from explicit_maps import ExplicitMap
from helpers import READS_SIGNALS, reference_carried

from neural_alignment import layers
from neural_alignment.layers import AlignedAttention
from neural_alignment.layers.attention import dense_sublayers

Array = np.ndarray

BATCH = 3


@dataclass
class Expected:
    """The outputs and gradients of a layer with W forward and B backward.

    Attributes:
        outputs: of the layer.
        dx: the error to the inputs.
        gradients: the gradients to the forward kernels, by connection.
        inputs: the inputs of each connection.
    """

    outputs: Array
    dx: Array
    gradients: dict[str, Array]
    inputs: dict[str, Array] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """A layer in the table.

    Attributes:
        inputs: shape of one example.
        options: arguments of the constructor, the same for the aligned and for the native layer.
        maps: the maps of the connections in NumPy, by connection.
        cell: the recurrent cell in NumPy.
        refuses: the rules that the layer refuses.
    """

    inputs: tuple[int, ...]
    options: dict[str, Any]
    maps: dict[str, ExplicitMap] = field(default_factory=dict)
    cell: Any = None
    refuses: tuple[str, ...] = ()


def single(inputs: tuple[int, ...], product: Callable, transposed: bool = False, **options: Any) -> Row:
    """Returns the row of a layer with one kernel."""
    return Row(inputs, options, {"kernel": ExplicitMap(product, transposed)})


def separable(rank: int, inputs: tuple[int, ...], **options: Any) -> Row:
    """Returns the row of a separable convolution, with unequal depthwise and pointwise parts."""
    strides = (options.get("strides", 1),) * rank
    depthwise = explicit_maps.depthwise(strides, options.get("padding", "valid").upper())
    maps = {"depthwise_kernel": ExplicitMap(depthwise), "pointwise_kernel": ExplicitMap(_pointwise)}
    return Row(inputs, {"filters": 4, "kernel_size": 2, "depth_multiplier": 2, **options}, maps)


def _pointwise(x: Array, kernel: Array) -> Array:
    return explicit_maps.dense(x, kernel.reshape(kernel.shape[-2:]))


def recurrent(cell: str, refuses: tuple[str, ...] = (), **options: Any) -> Row:
    """Returns the row of a recurrent layer."""
    maps = {name: ExplicitMap(explicit_maps.dense, transposed=True) for name in ("kernel", "recurrent_kernel")}
    options = {"units": 3, "return_sequences": True, "bias_initializer": "glorot_uniform", **options}
    return Row((4, 2), options, maps, recurrent_layers.CELLS[cell], refuses)


def attention(**options: Any) -> Row:
    """Returns the row of an attention layer that attends to its own inputs."""
    heads = {"query": "abc,cde->abde", "key": "abc,cde->abde", "value": "abc,cde->abde", "gate": "abc,cde->abde"}
    maps = {**heads, "attention_output": "abcd,cde->abe"}
    maps = {name: ExplicitMap(explicit_maps.einsum(equation)) for name, equation in maps.items()}
    if not options.get("use_gate"):
        del maps["gate"]
    return Row((4, 5), options, maps)


def _convolution(strides, padding="VALID", dilations=None):
    return explicit_maps.convolution(strides, padding, dilations)


TABLE: dict[str, Row] = {
    "Dense": single((3, 4), explicit_maps.dense, True, units=3),
    "EinsumDense": single((4, 3), explicit_maps.einsum("abc,cde->abde"), equation="abc,cde->abde",
                          output_shape=(4, 2, 3), bias_axes="de"),
    "Conv1D causal": single(
        (6, 4), _convolution((1,), "CAUSAL", (2,)), filters=3, kernel_size=2, dilation_rate=2, padding="causal"
    ),
    "Conv1D strided": single((6, 4), _convolution((2,), "SAME"), filters=3, kernel_size=3, strides=2, padding="same"),
    "Conv2D grouped": single((4, 5, 4), _convolution((2, 2), "SAME"), filters=4, kernel_size=(3, 2), strides=2,
                             padding="same", groups=2),
    "Conv3D": single((4, 3, 3, 2), _convolution((1, 1, 1)), filters=2, kernel_size=(2, 1, 2)),
    "DepthwiseConv1D": single((5, 3), explicit_maps.depthwise((1,), "SAME", (2,)), kernel_size=2, depth_multiplier=2,
                              padding="same", dilation_rate=2),
    "DepthwiseConv2D": single((4, 4, 2), explicit_maps.depthwise((2, 2), "SAME"), kernel_size=(3, 2),
                              depth_multiplier=2, strides=2, padding="same"),
    "SeparableConv1D": separable(1, (5, 3), padding="same"),
    "SeparableConv2D": separable(2, (4, 5, 2), strides=2),
    "Conv1DTranspose": single((4, 3), explicit_maps.transposed_convolution((2,), "VALID", (1,), (9,)), filters=4,
                              kernel_size=3, strides=2),
    "Conv2DTranspose": single((3, 2, 2), explicit_maps.transposed_convolution((2, 2), "SAME", (1, 1), (6, 4)),
                              filters=3, kernel_size=3, strides=2, padding="same"),
    "Conv3DTranspose": single((2, 2, 3, 2), explicit_maps.transposed_convolution((1, 1, 1), "VALID", (1, 1, 1),
                              (3, 3, 4)), filters=2, kernel_size=2),
    "MultiHeadAttention": attention(num_heads=2, key_dim=3, value_dim=2),
    "GroupQueryAttention": attention(head_dim=3, num_query_heads=4, num_key_value_heads=2),
    "SimpleRNN": recurrent("SimpleRNN"),
    "LSTM": recurrent("LSTM"),
    "GRU": recurrent("GRU"),
    "GRU before": recurrent("GRU before", READS_SIGNALS, reset_after=False),
}  # fmt: skip
"""Every aligned layer, by the name of its class; a second word distinguishes rows of one class."""


def class_of(name: str, module: Any = layers) -> type:
    """Returns the class of a row in `layers` or in `keras.layers`."""
    return getattr(module, name.split()[0])


def make(row: str, module: Any = layers, **options: Any) -> Any:
    """Returns the unbuilt layer of a row, called "layer" unless `options` have a name."""
    return class_of(row, module)(**{**TABLE[row].options, "name": "layer", **options})


def call(layer: Any, x: Any, **options: Any) -> Any:
    """Calls a layer; attention attends to the inputs themselves."""
    return layer(x, x, **options) if isinstance(layer, _ATTENTION) else layer(x, **options)


_ATTENTION = (keras.layers.MultiHeadAttention, keras.layers.GroupQueryAttention)


def build(row: str, module: Any = layers, **options: Any) -> Any:
    """Returns the built layer of a row."""
    layer = make(row, module, **options)
    call(layer, np.zeros((BATCH, *TABLE[row].inputs), np.float32))
    return layer


def connections(layer: Any) -> dict[str, Any]:
    """Returns the connections of an aligned layer by the last word of their name; a single one is `kernel`."""
    if isinstance(layer, AlignedAttention):
        return {dense.name: dense.connection() for dense in dense_sublayers(layer).values()}
    return {connection.kernel_name: connection for connection in layer.connections}


def own_weights(layer: Any) -> list[Any]:
    """Returns the weights that the native layer has too."""
    return [weight for weight in layer.weights if not weight.name.startswith(("backward_", "fixed_", "alignment_step"))]


def native_copy(name: str, layer: Any, **options: Any) -> Any:
    """Returns the native layer of a row with the weights of an aligned layer."""
    native = build(name, keras.layers, **options)
    for ours, other in zip(own_weights(layer), native.weights, strict=True):
        other.assign(ours)
    return native


def fill(layer: Any, rng: Any) -> tuple[dict[str, Array], dict[str, Array]]:
    """Draws W, B and the biases of a built layer, as in mid-training; returns W and B in the layout of W."""
    forward, backward = {}, {}
    for name, connection in connections(layer).items():
        connection.take_initial_kernel()
        shape = connection.kernel.shape
        forward[name], backward[name] = rng.normal(0, 0.7, shape), rng.normal(0, 0.7, shape)
        connection.kernel.assign(forward[name])
        connection.stored_backward_kernel.assign(connection.linear_map.transpose(tf.constant(backward[name])))
    for weight in layer.weights:
        if weight.name == "bias":
            weight.assign(rng.normal(0, 0.5, weight.shape))
    return forward, backward


def draw_fixed(layer: Any, rule: Any, rng: Any) -> dict[str, Array]:
    """Draws the second backward weight of each connection of a built layer for a rule that has one."""
    shapes = {
        name: rule.fixed_shape(connection.linear_map, connection.kernel.shape)
        for name, connection in connections(layer).items()
    }
    return {name: rng.normal(0, 0.7, shape) for name, shape in shapes.items() if shape is not None}


def product_kernel(linear: ExplicitMap, inputs: tuple[int, ...], shape: tuple[int, ...], learned: Array, fixed: Array):
    """Returns the kernel of a layer that does the same as a kernel of hidden units and the mixing of their outputs.

    The kernel is found from its outputs for random inputs, so the layout of the kernels need not be known.

    Args:
        linear: the map.
        inputs: shape of one example.
        shape: shape of the result.
        learned: the kernel of the hidden units.
        fixed: `(groups, hidden units, outputs)`, both within a group.
    """
    x = np.random.default_rng(0).normal(size=(20, *inputs))
    groups, hidden, _ = fixed.shape
    outputs = np.einsum("pgh,gho->pgo", linear.project(x, learned).reshape(-1, groups, hidden), fixed)
    basis = np.eye(int(np.prod(shape))).reshape(-1, *shape)
    columns = np.stack([linear.project(x, each).ravel() for each in basis], axis=1)
    found, _, rank, _ = np.linalg.lstsq(columns, outputs.ravel(), rcond=None)
    assert rank == len(basis)
    return found.reshape(shape)


def carried_kernels(name: str, rule: Any, layer: Any, forward: dict, backward: dict, fixed: dict) -> dict[str, Array]:
    """Returns the kernel through which a rule sends the error, in the layout of W, by connection.

    Args:
        name: of the row.
        rule: the rule.
        layer: a built layer of the row.
        forward: W by connection.
        backward: the stored B by connection, in the layout of W.
        fixed: the second backward weight by connection, for rules that have one.
    """
    found = {}
    for key, connection in connections(layer).items():
        if key in fixed:
            inputs = input_shape(connection)
            found[key] = product_kernel(TABLE[name].maps[key], inputs, forward[key].shape, backward[key], fixed[key])
        else:
            found[key] = reference_carried(rule.rule, forward[key], backward[key], connection.name)
    return found


def input_shape(connection: Any) -> tuple[int, ...]:
    """Returns the shape of one example of the inputs of a connection, with 2 for an unknown size."""
    names = [each.kernel_name for each in connection.layer.connections]
    shape = connection.layer.input_shapes()[names.index(connection.kernel_name)]
    return tuple(size or 2 for size in shape[1:])


def gradients(layer: Any, variables: list[Any], x: Array, upstream: Array, **options: Any) -> list[Any]:
    """Returns the outputs, and the gradients of <outputs, upstream> to the inputs and the variables."""
    x = tf.convert_to_tensor(x, layer.compute_dtype)
    with tf.GradientTape() as tape:
        tape.watch(x)
        outputs = call(layer, x, **options)
        total = tf.reduce_sum(outputs * tf.cast(upstream, outputs.dtype))
    return [outputs, *tape.gradient(total, [x, *(variable.value for variable in variables)])]


def expected(name: str, native: Any, forward: dict, carried: dict, x: Array, upstream: Array) -> Expected:
    """Returns the outputs and gradients of the native layer with B in place of W on the way back.

    Args:
        name: of the row.
        native: the native layer with W and biases.
        forward: W by connection.
        carried: B by connection, in the layout of W.
        x: inputs.
        upstream: errors to the outputs.
    """
    if TABLE[name].cell is not None:
        return _recurrent(name, native, forward, carried, x, upstream)
    if isinstance(native, _ATTENTION):
        return _attention(native, carried, x, upstream)
    if len(forward) == 2:
        return _separable(name, native, forward, carried, x, upstream)
    outputs, _, gradient = gradients(native, [native.kernel], x, upstream)
    native.kernel.assign(carried["kernel"])
    _, dx = gradients(native, [], x, upstream)
    native.kernel.assign(forward["kernel"])
    return Expected(outputs, dx, {"kernel": gradient}, {"kernel": x})


def _separable(name, native, forward, carried, x, upstream) -> Expected:
    """The gradient to the pointwise W needs no B; that to the depthwise W travels through the pointwise B."""
    outputs, _, pointwise = gradients(native, [native.pointwise_kernel], x, upstream)
    native.pointwise_kernel.assign(carried["pointwise_kernel"])
    _, _, depthwise = gradients(native, [native.depthwise_kernel], x, upstream)
    native.depthwise_kernel.assign(carried["depthwise_kernel"])
    _, dx = gradients(native, [], x, upstream)
    native.pointwise_kernel.assign(forward["pointwise_kernel"])
    native.depthwise_kernel.assign(forward["depthwise_kernel"])
    hidden = TABLE[name].maps["depthwise_kernel"].project(x, forward["depthwise_kernel"])
    kernels = {"depthwise_kernel": depthwise, "pointwise_kernel": pointwise}
    return Expected(outputs, dx, kernels, {"depthwise_kernel": x, "pointwise_kernel": hidden})


def carry_back(attention_layer: Any, carried: dict[str, Array]) -> dict[str, Any]:
    """Lets the dense layers of a native attention layer send the error back through B.

    Each computes einsum(stop(x), W) + einsum(x, B) - stop(einsum(x, B)).

    Returns:
        The inputs of each dense layer; the calls of the attention layer fill it.
    """
    inputs: dict[str, Any] = {}

    def replace(dense: Any) -> None:
        def surrogate(x: Any, training: bool | None = None) -> Any:
            del training
            inputs[dense.name] = x
            backward = tf.constant(carried[dense.name], dense.compute_dtype)
            back = tf.einsum(dense.equation, x, backward)
            outputs = tf.einsum(dense.equation, tf.stop_gradient(x), dense.kernel.value) + back - tf.stop_gradient(back)
            outputs = outputs if dense.bias is None else outputs + dense.bias.value
            return outputs if dense.activation is None else dense.activation(outputs)

        object.__setattr__(dense, "call", surrogate)

    for dense in dense_sublayers(attention_layer).values():
        replace(dense)
    return inputs


def _attention(native, carried, x, upstream) -> Expected:
    inputs = carry_back(native, carried)
    denses = {dense.name: dense for dense in dense_sublayers(native).values()}
    outputs, dx, *kernels = gradients(native, [dense.kernel for dense in denses.values()], x, upstream)
    return Expected(
        outputs, dx, dict(zip(denses, kernels, strict=True)), {k: np.asarray(v, np.float64) for k, v in inputs.items()}
    )


def recurrent_weights(native: Any, carried: dict[str, Array]) -> recurrent_layers.Weights:
    """Returns the weights of a native recurrent layer and B, for the loop in NumPy."""
    cell = native.cell
    ours = [np.asarray(weight, np.float64) for weight in (cell.kernel, cell.recurrent_kernel, cell.bias)]
    return recurrent_layers.Weights(*ours, carried["kernel"], carried["recurrent_kernel"])


def _recurrent(name, native, forward, carried, x, upstream) -> Expected:
    del forward
    run = recurrent_layers.Run(TABLE[name].cell, recurrent_weights(native, carried), x)
    dx, sums, _ = run.backward(upstream)
    kernels = {"kernel": sums.kernel, "recurrent_kernel": sums.recurrent_kernel}
    return Expected(run.outputs, dx, kernels, {"kernel": x, "recurrent_kernel": run.previous})
