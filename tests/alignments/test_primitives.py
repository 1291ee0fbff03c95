"""The primitives of Table 1: value and gradient to B."""

import numpy as np
import pytest
import tensorflow as tf
from helpers import CASES, DENSE, assert_close, assert_differs, batch_mean

from neural_alignment.alignments import primitives
from neural_alignment.operations import ConvMap, DenseMap


def linear_map(case):
    """Returns the library's map of a layer case."""
    return DenseMap() if case is DENSE else ConvMap(case.linear.strides, case.linear.padding)


def primitive(name, case, arrays):
    """Returns the primitive `name` of a linear layer and its gradient to B."""
    x, w, b = (tf.constant(arrays[key]) for key in "xwb")
    kernel_map = linear_map(case)
    with tf.GradientTape() as tape:
        tape.watch(b)
        if name == "decay":
            value = primitives.decay(b)
        elif name == "self_":
            value = primitives.self_(w, b)
        elif name == "null":
            value = primitives.null(kernel_map.reconstruct(kernel_map.project(x, w), b, like=x))
        elif name == "sparse":
            value = primitives.sparse(kernel_map.project(x, b))
        else:
            value = primitives.amp(kernel_map.project(x, b), kernel_map.project(x, w))
    return value, tape.gradient(value, b)


def table_1(name, case, arrays):
    """Returns value and gradient of Table 1, with the mean over the batch and the sum over space."""
    x, w, b, linear = arrays["x"], arrays["w"], arrays["b"], case.linear
    forward, backward, n = linear.project(x, w), linear.project(x, b), len(x)
    reconstruction = linear.reconstruct(forward, b, x.shape)
    return {
        "decay": (0.5 * (b**2).sum(), b),
        "self_": (-(b * w).sum(), -w),
        "amp": (-batch_mean(x * reconstruction), -linear.correlate(x, forward, w.shape) / n),
        "null": (0.5 * batch_mean(reconstruction**2), linear.correlate(reconstruction, forward, w.shape) / n),
        "sparse": (0.5 * batch_mean(backward**2), linear.correlate(x, backward, w.shape) / n),
    }[name]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("name", ["decay", "self_", "amp", "null", "sparse"])
def test_value_and_gradient_are_those_of_table_1(rng, name, case):
    arrays = case.arrays(rng)
    value, gradient = primitive(name, case, arrays)
    expected_value, expected_gradient = table_1(name, case, arrays)
    assert_close(value, expected_value)
    assert_close(gradient, expected_gradient)
    # The tempting mistakes: no 1/2, the sum over the batch, the other sign.
    for factor in (2.0, len(arrays["x"]), -1.0):
        assert_differs(gradient, factor * expected_gradient, by=0.1)
        assert_differs(value, factor * expected_value, by=0.1)


def test_space_is_summed_and_not_averaged(rng):
    case = CASES[1]
    arrays = case.arrays(rng)
    projection = case.linear.project(arrays["x"], arrays["b"])
    value, _ = primitive("sparse", case, arrays)
    assert_differs(value, 0.5 * (projection**2).mean(axis=(0, 1, 2)).sum(), by=0.5)


def test_the_two_forms_of_amp_in_table_1_are_one():
    """-tr(x^T B x_out) read as <B^T x, x_out> and as <x, B x_out>."""
    rng = np.random.default_rng(0)
    x, out, b = rng.normal(size=(6, 4)), rng.normal(size=(6, 3)), rng.normal(size=(4, 3))
    trace = -np.mean([x[i] @ b @ out[i] for i in range(6)])
    assert_close(primitives.amp(x @ b, out), trace)
    assert_close(primitives.amp(x, out @ b.T), trace)


def test_angle_is_the_overlap_of_the_inputs_with_the_pseudogradient_and_its_gradient_is_w_s_transposed(rng):
    """Appendix D.3: P_angle = tr(x^T B d), and its gradient to B is x d^T, the transpose of W's update d x^T."""
    x, upstream, b = rng.normal(size=(6, 4)), rng.normal(size=(6, 3)) / 6, rng.normal(size=(3, 4))
    kernel = tf.constant(b)
    with tf.GradientTape() as tape:
        tape.watch(kernel)
        value = primitives.angle(tf.constant(x), tf.matmul(tf.constant(upstream), kernel))
    assert_close(value, sum(x[i] @ b.T @ upstream[i] for i in range(6)))
    assert_close(tape.gradient(value, kernel), (x.T @ upstream).T)


@pytest.mark.parametrize("dtype", [tf.bfloat16, tf.float16])
def test_half_precision_is_summed_in_float32(dtype):
    """4096 ones: in half precision a running sum would stop at 256 or 2048."""
    ones = tf.ones([1, 4096], dtype)
    for value in (primitives.sparse(ones), primitives.null(ones), primitives.decay(ones)):
        assert value.dtype == tf.float32
        assert float(value) == 2048.0
    assert float(primitives.amp(ones, ones)) == -4096.0
    assert float(primitives.self_(ones, ones)) == -4096.0
