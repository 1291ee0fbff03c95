"""Every linear map: its product against NumPy and Keras, and both adjoints against the matrix of the map."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import explicit_maps
import keras
import numpy as np
import pytest
import tensorflow as tf
from explicit_maps import ExplicitMap
from helpers import assert_close, assert_differs, exhaustive_unless

from neural_alignment.operations import (
    ConvMap,
    DenseMap,
    DepthwiseMap,
    EinsumMap,
    LinearMap,
    TransposedConvMap,
    convolution,
)
from neural_alignment.operations import __all__ as public


@dataclass(frozen=True)
class Case:
    """A linear map with small shapes.

    Attributes:
        linear_map: the map.
        inputs: shape of the inputs, with the batch.
        kernel: shape of the kernel.
        product: the product in NumPy.
        native: the product in Keras, or None if `keras.ops` does not have it.
    """

    linear_map: LinearMap
    inputs: tuple[int, ...]
    kernel: tuple[int, ...]
    product: Callable[[Any, Any], Any]
    native: Callable[[Any, Any], Any] | None = None

    @property
    def explicit(self) -> ExplicitMap:
        return ExplicitMap(self.product)

    def arrays(self, rng):
        """Draws inputs, a kernel, outputs, and a second kernel."""
        x, kernel, other = rng.normal(size=self.inputs), rng.normal(size=self.kernel), rng.normal(size=self.kernel)
        return x, kernel, rng.normal(size=self.product(x, kernel).shape), other


SPACE, TAPS = {1: (6,), 2: (6, 5), 3: (5, 3, 4)}, (3, 2, 2)
# With kernels larger than the inputs, TensorFlow's gradient of a bfloat16 convolution in three dimensions is wrong.


def convolutions():
    """Yields names and cases: ranks, paddings, strides, dilations and groups."""
    steps = [((1, 1, 1), (1, 1, 1)), ((2, 2, 2), (1, 1, 1)), ((3, 2, 1), (1, 1, 1)), ((1, 1, 1), (2, 2, 2)),
             ((1, 1, 1), (2, 1, 3)), ((2, 1, 2), (2, 1, 1))]  # fmt: skip
    for rank, padding, (strides, dilations), groups in itertools.product(
        (1, 2, 3), ("VALID", "SAME", "CAUSAL"), steps, (1, 2)
    ):
        strides, dilations = strides[:rank], dilations[:rank]
        if padding == "CAUSAL" and rank > 1:
            continue
        native = None
        # TensorFlow does not combine strides with dilations, and its CPU kernels have no dilation in three dimensions.
        # Keras compiles grouped convolutions, which takes time; two are enough.
        known = max(dilations) == 1 or (max(strides) == 1 and rank < 3)
        if padding != "CAUSAL" and known and (groups == 1 or strides == (2, 2)):
            native = lambda x, k, s=strides, p=padding, d=dilations: keras.ops.conv(x, k, s, p.lower(), None, d)  # noqa: E731
        yield (
            f"conv {rank} {padding} {strides} {dilations} in {groups}",
            Case(
                ConvMap(strides, padding, dilations, groups),
                (2, *SPACE[rank], 4 if rank < 3 else 2),
                (*TAPS[:rank], (4 if rank < 3 else 2) // groups, 6 if rank < 3 else 2),
                explicit_maps.convolution(strides, padding, dilations),
                native,
            ),
        )
        if rank == 3 or groups == 2:
            continue
        native = None
        if padding != "CAUSAL" and len({*strides}) == len({*dilations}) == 1 and max(strides + dilations) < 3:
            native = lambda x, k, s=strides, p=padding, d=dilations: keras.ops.depthwise_conv(  # noqa: E731
                x, k, s, p.lower(), None, d
            )
        yield (
            f"depthwise {rank} {padding} {strides} {dilations}",
            Case(
                DepthwiseMap(strides, padding, dilations),
                (2, *SPACE[rank], 3),
                (*TAPS[:rank], 3, 2),
                explicit_maps.depthwise(strides, padding, dilations),
                native,
            ),
        )


def transposed_convolutions():
    """Yields names and cases: ranks, paddings, strides, dilations and output paddings."""
    steps = [((1, 1, 1), (1, 1, 1)), ((2, 2, 2), (1, 1, 1)), ((3, 2, 1), (1, 1, 1)), ((1, 1, 1), (2, 1, 2))]
    layer = {1: keras.layers.Conv1DTranspose, 2: keras.layers.Conv2DTranspose, 3: keras.layers.Conv3DTranspose}
    for rank, padding, (strides, dilations), extra in itertools.product(
        (1, 2, 3), ("VALID", "SAME"), steps, (None, 0, 1)
    ):
        strides, dilations = strides[:rank], dilations[:rank]
        if extra is not None and extra >= min(strides):
            continue
        added, inputs = None if extra is None else (extra,) * rank, (2, *(5, 4, 3)[:rank], 2)
        # TensorFlow refuses the sizes of Keras with even kernels, "same" and no output padding.
        taps = ((3, 3, 3) if extra == 0 else TAPS)[:rank]
        shapes = layer[rank](3, taps, strides, padding.lower(), output_padding=added, dilation_rate=dilations)
        native = None
        if max(dilations) == 1:
            native = lambda x, k, s=strides, p=padding, a=added: keras.ops.conv_transpose(x, k, s, p.lower(), a)  # noqa: E731
        yield (
            f"transposed {rank} {padding} {strides} {dilations} {extra}",
            Case(
                TransposedConvMap(strides, padding, dilations, added),
                inputs,
                (*taps, 3, 2),
                explicit_maps.transposed_convolution(
                    strides, padding, dilations, shapes.compute_output_shape(inputs)[1:-1]
                ),
                native,
            ),
        )


def einsums():
    """Yields names and cases: contractions of one and two axes, ellipses, shared, summed and reordered axes."""
    for equation, inputs, kernel in (
        ("ab,bc->ac", (3, 4), (4, 5)),
        ("abc,cd->abd", (2, 3, 4), (4, 5)),
        ("abc,cde->abde", (2, 3, 4), (4, 2, 3)),
        ("abde,dec->abc", (2, 3, 2, 4), (2, 4, 5)),
        ("...x,xy->...y", (2, 3, 2, 4), (4, 5)),
        ("...x,xyz->...yz", (3, 4), (4, 5, 2)),
        ("abc,bd->acd", (2, 3, 4), (3, 5)),
        ("abc,bcd->abd", (2, 3, 4), (3, 4, 2)),
        ("abc,c->abc", (2, 3, 4), (4,)),
        ("abc,cd->adb", (2, 3, 4), (4, 5)),
        # Axes of the inputs or of the kernel that no other operand has: the adjoint repeats along them.
        ("abc,cd->ad", (2, 3, 4), (4, 5)),
        ("ab,bc->a", (2, 3), (3, 4)),
        ("abc,b->a", (2, 3, 4), (3,)),
    ):
        yield (
            equation,
            Case(
                EinsumMap(equation),
                inputs,
                kernel,
                explicit_maps.einsum(equation),
                lambda x, k, equation=equation: keras.ops.einsum(equation, x, k),
            ),
        )


CASES = {
    "dense": Case(DenseMap(), (3, 4), (4, 5), explicit_maps.dense, keras.ops.matmul),
    "dense over time": Case(DenseMap(), (2, 3, 4), (4, 5), explicit_maps.dense, keras.ops.matmul),
    **dict(convolutions()),
    **dict(transposed_convolutions()),
    **dict(einsums()),
}

SOME = (
    "dense over time",
    "conv 1 CAUSAL (1,) (2,) in 2",
    "conv 2 SAME (3, 2) (1, 1) in 2",
    "conv 2 VALID (1, 1) (2, 1) in 1",
    "conv 3 SAME (2, 2, 2) (1, 1, 1) in 1",
    "conv 3 VALID (1, 1, 1) (2, 2, 2) in 2",
    "depthwise 1 CAUSAL (2,) (2,)",
    "depthwise 2 SAME (2, 2) (1, 1)",
    "depthwise 2 VALID (3, 2) (1, 1)",
    "transposed 1 SAME (2,) (1,) 1",
    "transposed 2 VALID (3, 2) (1, 1) None",
    "transposed 3 SAME (2, 2, 2) (1, 1, 1) None",
    "abc,cde->abde",
    "...x,xy->...y",
    "abc,cd->ad",
)
"""Cases of every kind of map."""


def test_every_map_has_a_case():
    maps = {name for name in public if name.endswith("Map") and name != "LinearMap"}
    assert maps == {type(case.linear_map).__name__ for case in CASES.values()}
    assert maps == {type(CASES[name].linear_map).__name__ for name in SOME}


def products(linear_map, x, kernel, y, other):
    """Returns the three products of a map: of x and W, of y and B, and of x and y."""
    return [
        linear_map.project(x, kernel),
        linear_map.reconstruct(y, other, like=x),
        linear_map.correlate(x, y, like=kernel),
    ]


@pytest.mark.parametrize("name", CASES)
def test_the_three_products_are_those_of_the_matrix_of_the_map(rng, name):
    case = CASES[name]
    x, kernel, y, other = case.arrays(rng)
    projection, reconstruction, correlation = products(case.linear_map, *map(tf.constant, (x, kernel, y, other)))
    assert_close(projection, case.product(x, kernel))
    if case.native is not None:
        assert_close(projection, case.native(tf.constant(x), tf.constant(kernel)))
    assert_close(reconstruction, case.explicit.reconstruct(y, other, x.shape))
    assert_differs(reconstruction, case.explicit.reconstruct(y, kernel, x.shape), by=0.1)
    assert_close(correlation, case.explicit.correlate(x, y, kernel.shape))


@pytest.mark.parametrize(
    "names", [pytest.param(SOME, id="some"), pytest.param(tuple(CASES), id="all", marks=pytest.mark.exhaustive)]
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_map_has_every_dtype_of_the_native_layers(rng, dtype, names):
    for name in names:
        case = CASES[name]
        rounded = [tf.cast(each, dtype) for each in case.arrays(rng)]
        found = products(case.linear_map, *rounded)
        exact = products(case.linear_map, *(tf.cast(each, "float64") for each in rounded))
        for ours, expected in zip(found, exact, strict=True):
            assert ours.dtype == dtype, name
            assert_close(tf.cast(ours, "float64"), expected, dtype)


@pytest.mark.parametrize("name", SOME)
def test_sizes_that_are_unknown_in_a_graph_change_nothing(rng, name):
    """Batch and space are unknown; the channels are known, as in a layer."""
    case = CASES[name]
    arrays = [tf.constant(each) for each in case.arrays(rng)]
    x, kernel, y, _ = arrays
    channels = 1 if isinstance(case.linear_map, EinsumMap) else -1
    signature = [
        tf.TensorSpec([None] * (x.shape.rank - 1) + [x.shape[channels]], x.dtype),
        tf.TensorSpec(kernel.shape, x.dtype),
        tf.TensorSpec([None] * (y.shape.rank - 1) + [y.shape[-1]], x.dtype),
        tf.TensorSpec(kernel.shape, x.dtype),
    ]
    if isinstance(case.linear_map, EinsumMap):
        signature[0] = tf.TensorSpec([None] * x.shape.rank, x.dtype)
    graph = tf.function(lambda *tensors: products(case.linear_map, *tensors), signature, autograph=False)
    for ours, eager in zip(graph(*arrays), products(case.linear_map, *arrays), strict=True):
        assert_close(ours, eager)


@pytest.mark.parametrize("name", SOME)
def test_known_sizes_stay_known_in_a_graph(rng, name):
    """Layers that follow need the static shapes."""
    case = CASES[name]
    arrays = [tf.constant(each) for each in case.arrays(rng)]
    signature = [tf.TensorSpec(each.shape, each.dtype) for each in arrays]
    graph = tf.function(lambda *tensors: products(case.linear_map, *tensors), signature, autograph=False)
    outputs = graph.get_concrete_function().structured_outputs
    for shape, eager in zip([each.shape for each in outputs], products(case.linear_map, *arrays), strict=True):
        assert shape == eager.shape


# Output units that are weighted sums of others, as in a kernel that is a product of two.

COMBINED = [
    *SOME,
    *("dense", "conv 2 VALID (2, 2) (1, 1) in 1", "depthwise 2 VALID (1, 1) (1, 1)", "abde,dec->abc"),
    *("...x,xyz->...yz", "abc,bd->acd", "abc,bcd->abd", "abc,cd->adb", "ab,bc->a"),
]


def mixed(outputs, weights, linear_map, rank):
    """Returns the outputs `(batch, ...)` of hidden units, each group of which is multiplied by its weights."""
    if isinstance(linear_map, EinsumMap):  # Its axes of outputs may be anywhere.
        of_inputs, kernel, of_outputs = linear_map._labels(rank)
        last = [label for label in kernel if label in of_outputs]
        last.sort(key=lambda label: label not in of_inputs)
        order = "".join([label for label in of_outputs if label not in last] + last)
        outputs = np.einsum(f"{of_outputs}->{order}", outputs)
    groups, hidden, _ = weights.shape
    return np.einsum("pgh,gho->pgo", outputs.reshape(-1, groups, hidden), weights).ravel()


@pytest.mark.parametrize("name", COMBINED)
def test_a_kernel_of_combined_outputs_has_the_combined_outputs(rng, name):
    """Also in an axis of outputs that is not the last of the kernel, and in each group by itself."""
    case = CASES[name]
    linear_map, x = case.linear_map, rng.normal(size=case.inputs)
    if not linear_map.output_axes:
        assert name == "ab,bc->a"
        return
    groups, outputs = linear_map.units(case.kernel)
    shape = list(case.kernel)
    shape[linear_map.output_axes[-1]] *= 3
    kernel, weights = rng.normal(size=shape), rng.normal(size=(groups, 3 * outputs, outputs))
    combined = linear_map.combine_outputs(tf.constant(kernel), tf.constant(weights)).numpy()
    assert combined.shape == case.kernel
    identity = np.tile(np.eye(outputs), (groups, 1, 1))
    found = mixed(case.product(x, combined), identity, linear_map, x.ndim)
    assert_close(found, mixed(case.product(x, kernel), weights, linear_map, x.ndim))


def gradients(linear_map, x, kernel, y, other):
    """Returns gradients to x and W that TensorFlow differentiates through all three products, as those of R."""
    with tf.GradientTape() as tape:
        tape.watch([x, kernel])
        total = tf.reduce_sum(linear_map.project(x, kernel) * y)
        total += tf.reduce_sum(linear_map.reconstruct(y, kernel, like=x) * x)
        total += tf.reduce_sum(linear_map.correlate(x, y, like=kernel) * other)
    return tape.gradient(total, [x, kernel])


def counts(function, *arguments):
    """Returns how often the three operations of a convolution occur in the graph of a function."""
    graph = tf.function(function, autograph=False).get_concrete_function(*arguments).graph
    found = [operation.type for operation in graph.get_operations()]
    return [found.count(name) for name in ("Conv2D", "Conv2DBackpropInput", "Conv2DBackpropFilter")]


GROUPED = "conv 2 SAME (3, 2) (1, 1) in 2"


@pytest.mark.parametrize("has_gradients", [True, False])
@pytest.mark.parametrize(
    ("name", "groups"), [(GROUPED, 2), ("conv 1 CAUSAL (1,) (2,) in 2", 2), ("depthwise 2 VALID (3, 2) (1, 1)", 3)]
)
def test_groups_are_computed_one_by_one_where_the_cpu_cannot_do_all_at_once(
    rng, monkeypatch, name, groups, has_gradients
):
    case = CASES[name]
    arrays = [tf.constant(each, tf.float32) for each in case.arrays(rng)]
    exact = [tf.cast(each, tf.float64) for each in arrays]
    expected = [*products(case.linear_map, *exact), *gradients(case.linear_map, *exact)]
    monkeypatch.setattr(convolution, "_cpu_has_grouped_gradients", lambda dtype: has_gradients)
    assert counts(lambda *tensors: products(case.linear_map, *tensors), *arrays) == [1 if has_gradients else groups] * 3
    if not has_gradients:  # Otherwise the operations may not exist here.
        found = [*products(case.linear_map, *arrays), *gradients(case.linear_map, *arrays)]
        for ours, other in zip(found, expected, strict=True):
            assert_close(ours, other)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_whether_the_cpu_has_the_gradients_of_groups_is_found_by_trying(rng, dtype):
    case = CASES[GROUPED]
    rounded = [tf.cast(each, dtype) for each in case.arrays(rng)]
    x, kernel, y, _ = rounded
    try:
        tf.raw_ops.Conv2DBackpropInput(
            input_sizes=x.shape, filter=kernel, out_backprop=y, strides=[1, 3, 2, 1], padding="SAME"
        )
        has_gradients = True
    except tf.errors.InvalidArgumentError:
        has_gradients = False
    assert convolution._cpu_has_grouped_gradients(kernel.dtype) == has_gradients
    exact = [tf.cast(each, "float64") for each in rounded]
    for ours, expected in zip(gradients(case.linear_map, *rounded), gradients(case.linear_map, *exact), strict=True):
        assert_close(tf.cast(ours, "float64"), expected, dtype)


@pytest.mark.parametrize("dtype", exhaustive_unless(["float32", "float64"], ("float64",)))
def test_xla_gives_the_same_products(rng, dtype):
    """Grouped convolutions in float32 are one operation, in float64 one for each group; XLA compiles both."""
    names = [name for name in SOME if dtype == "float32" or "in 2" in name]
    arrays = {name: [tf.constant(each, dtype) for each in CASES[name].arrays(rng)] for name in names}

    def all_products(arrays):
        return {name: products(CASES[name].linear_map, *each) for name, each in arrays.items()}

    compiled = tf.function(all_products, jit_compile=True, autograph=False)(arrays)
    for name, eager in all_products(arrays).items():
        for ours, expected in zip(compiled[name], eager, strict=True):
            assert_close(ours, expected)


@pytest.mark.parametrize(
    "name",
    [
        *("dense", "dense over time", "conv 1 VALID (1,) (1,) in 1", "conv 2 VALID (2, 2) (1, 1) in 1"),
        *("conv 2 VALID (1, 1) (2, 1) in 2", "conv 3 VALID (1, 1, 1) (1, 1, 1) in 2"),
        *("depthwise 1 VALID (1,) (1,)", "depthwise 2 VALID (2, 2) (1, 1)", "transposed 1 VALID (1,) (1,) None"),
        *("transposed 2 VALID (2, 2) (1, 1) None", "abc,cde->abde", "abde,dec->abc", "...x,xy->...y"),
        *("abc,bd->acd", "abc,bcd->abd", "ab,bc->a"),
    ],
)
def test_multiplications_and_fan_in_are_those_that_a_count_finds(name):
    """With ones for all numbers, an output is the number of its products."""
    case = CASES[name]
    counts = case.product(np.ones((1, *case.inputs[1:])), np.ones(case.kernel))[0]
    linear_map = case.linear_map
    assert linear_map.multiplications(case.inputs[1:], case.kernel, counts.shape) == counts.sum()
    # Positions at the edges of a transposed convolution have fewer inputs; with strides all have fewer.
    if not name.startswith("transposed 2"):
        assert linear_map.fan_in(case.kernel) == counts.max()


def test_maps_compare_by_value():
    assert ConvMap((2,), "SAME", (1,)) == ConvMap((2,), "SAME", (1,)) != ConvMap((1,), "SAME", (1,))
    assert EinsumMap("ab,bc->ac") == EinsumMap("ab,bc->ac") != EinsumMap("ab,cb->ac")
    assert len({TransposedConvMap(), TransposedConvMap(), DepthwiseMap(), ConvMap()}) == 3
