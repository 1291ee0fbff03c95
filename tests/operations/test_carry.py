"""`matmul` and `conv2d`: W on the way forward, B on the way back."""

import numpy as np
import pytest
import tensorflow as tf
from helpers import ConvReference, DenseReference, assert_close, assert_differs, finite_difference

from neural_alignment.operations import ConvMap, DenseMap, carry, conv2d, matmul

DTYPES = ("float32", "float64")


def gradients(operation, inputs, forward_kernel, backward_kernel, upstream, **options):
    """Returns the output, and the gradients of <output, upstream> to the inputs, W and B, as NumPy arrays."""
    tensors = [tf.convert_to_tensor(a) for a in (inputs, forward_kernel, backward_kernel)]
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        outputs = operation(*tensors, **options)
        total = tf.reduce_sum(outputs * upstream)
    return [outputs.numpy(), *(g.numpy() for g in tape.gradient(total, tensors))]


def dense_case(rng, dtype="float64"):
    """Returns inputs (5, 4), W (4, 3), B (3, 4) and an upstream error."""
    shapes = (5, 4), (4, 3), (3, 4), (5, 3)
    return [rng.normal(size=shape).astype(dtype) for shape in shapes]


def conv_case(rng, reference, image=(7, 8), taps=(3, 2), channels=(2, 3), dtype="float64"):
    """Returns inputs, W, B and an upstream error of the convolution that `reference` describes."""
    x = rng.normal(size=(2, *image, channels[0]))
    w, b = rng.normal(size=(2, *taps, *channels))
    upstream = rng.normal(size=reference.project(x, w).shape)
    return [a.astype(dtype) for a in (x, w, b, upstream)]


def options_of(reference):
    """Returns the arguments of `conv2d` for a `ConvReference`."""
    return {"strides": reference.strides, "padding": reference.padding, "dilations": reference.dilations}


CONVOLUTIONS = [
    ConvReference(),
    ConvReference(padding="SAME"),
    ConvReference(strides=(2, 2)),
    ConvReference(strides=(2, 3), padding="SAME"),
    ConvReference(dilations=(2, 1), padding="SAME"),
    ConvReference(dilations=(2, 3)),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tie_gradient", [False, True])
def test_matmul_sends_the_error_through_b_and_updates_w_by_the_outer_product(rng, dtype, tie_gradient):
    x, w, b, upstream = dense_case(rng, dtype)
    y, dx, dw, db = gradients(matmul, x, w, b, upstream, tie_gradient=tie_gradient)
    assert_close(y, x.astype(float) @ w)
    assert_close(dx, upstream.astype(float) @ b)
    assert_close(dw, x.T.astype(float) @ upstream)
    assert_close(db, (x.T.astype(float) @ upstream).T if tie_gradient else np.zeros((3, 4)))
    assert_differs(dx, upstream @ w.T, by=0.3)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reference", CONVOLUTIONS, ids=str)
def test_conv2d_sends_the_error_through_b_and_updates_w_by_the_correlation(rng, reference, dtype):
    x, w, b, upstream = conv_case(rng, reference, dtype=dtype)
    y, dx, dw, db = gradients(conv2d, x, w, b, upstream, **options_of(reference))
    exact = [a.astype(float) for a in (x, w, b, upstream)]
    assert_close(y, reference.project(exact[0], exact[1]))
    assert_close(dx, reference.reconstruct(exact[3], exact[2], x.shape))
    assert_close(dw, reference.correlate(exact[0], exact[3], w.shape))
    assert not db.any()
    assert_differs(dx, reference.reconstruct(exact[3], exact[1], x.shape), by=0.3)


def test_conv2d_agrees_with_numpy_for_any_geometry(rng):
    for number in range(40):
        strides, dilations, taps, image = (
            tuple(map(int, rng.integers(low, high, size=2))) for low, high in ((1, 5), (1, 4), (1, (4, 5)), (10, 13))
        )
        reference = ConvReference(strides, ("VALID", "SAME")[number % 2], dilations)
        x, w, b, upstream = conv_case(rng, reference, image, taps)
        y, dx, dw, db = gradients(conv2d, x, w, b, upstream, tie_gradient=True, **options_of(reference))
        assert_close(y, reference.project(x, w))
        assert_close(dx, reference.reconstruct(upstream, b, x.shape))
        assert_close(dw, reference.correlate(x, upstream, w.shape))
        assert_close(db, reference.correlate(x, upstream, w.shape))


@pytest.mark.parametrize("reference", CONVOLUTIONS, ids=str)
def test_conv2d_gradients_are_finite_differences_of_the_two_convolutions(rng, reference):
    """dW is that of conv(x, W), and dx that of conv(x, B): the forward pass itself, differentiated numerically."""
    x, w, b, upstream = conv_case(rng, reference, image=(5, 6), channels=(1, 2))
    _, dx, dw, _ = gradients(conv2d, x, w, b, upstream, **options_of(reference))

    def overlap(inputs, kernel):
        return float(tf.reduce_sum(conv2d(inputs, kernel, np.zeros_like(w), **options_of(reference)) * upstream))

    assert_close(dw, finite_difference(lambda kernel: overlap(x, kernel), w), "finite difference")
    through_b = finite_difference(lambda inputs: overlap(inputs, b), x)
    assert_close(dx, through_b, "finite difference")
    through_w = finite_difference(lambda inputs: overlap(inputs, w), x)
    assert_differs(dx, through_w, by=0.3)


def test_matmul_gradients_are_finite_differences_of_the_two_products(rng):
    x, w, b, upstream = dense_case(rng)
    _, dx, dw, _ = gradients(matmul, x, w, b, upstream)

    def overlap(inputs, kernel):
        return float(tf.reduce_sum(matmul(inputs, kernel, np.zeros_like(b)) * upstream))

    assert_close(dw, finite_difference(lambda kernel: overlap(x, kernel), w), "finite difference")
    assert_close(dx, finite_difference(lambda inputs: overlap(inputs, b.T.copy()), x), "finite difference")


@pytest.mark.parametrize("kind", ["matmul", "conv2d"])
def test_another_b_changes_the_error_to_the_inputs_and_nothing_else(rng, kind):
    if kind == "matmul":
        operation, (x, w, b, upstream), options = matmul, dense_case(rng), {}
    else:
        reference = ConvReference(strides=(2, 1), padding="SAME")
        operation, (x, w, b, upstream), options = conv2d, conv_case(rng, reference), options_of(reference)
    first = gradients(operation, x, w, b, upstream, **options)
    second = gradients(operation, x, w, b + rng.normal(size=b.shape), upstream, **options)
    assert_differs(first[1], second[1], by=0.3)
    for before, after in zip(np.array(first, object)[[0, 2, 3]], np.array(second, object)[[0, 2, 3]], strict=True):
        np.testing.assert_array_equal(before, after)


def test_another_w_does_not_change_the_error_to_the_inputs(rng):
    reference = ConvReference(padding="SAME")
    x, w, b, upstream = conv_case(rng, reference)
    first = gradients(conv2d, x, w, b, upstream, **options_of(reference))
    second = gradients(conv2d, x, w + rng.normal(size=w.shape), b, upstream, **options_of(reference))
    np.testing.assert_array_equal(first[1], second[1])
    assert_differs(first[0], second[0], by=0.3)


def test_tie_gradient_gives_b_the_update_of_w(rng):
    x, w, b, upstream = dense_case(rng)
    _, _, dw, db = gradients(matmul, x, w, b, upstream, tie_gradient=True)
    np.testing.assert_array_equal(db, dw.T)
    reference = ConvReference(strides=(2, 2), padding="SAME", dilations=(1, 1))
    x, w, b, upstream = conv_case(rng, reference)
    _, _, dw, db = gradients(conv2d, x, w, b, upstream, tie_gradient=True, **options_of(reference))
    np.testing.assert_array_equal(db, dw)
    assert np.abs(db).max() > 0.1


@pytest.mark.parametrize("weight_transport", [False, True])
def test_weight_transport_sends_the_error_through_w_and_does_not_tie_b(rng, weight_transport):
    x, w, b, upstream = dense_case(rng)
    options = {"tie_gradient": True, "weight_transport": lambda: weight_transport}
    _, dx, dw, db = gradients(lambda *tensors: carry(DenseMap(), *tensors, **options), x, w, b.T.copy(), upstream)
    assert_close(dx, upstream @ (w.T if weight_transport else b))
    assert_close(dw, x.T @ upstream)
    assert_close(db, np.zeros_like(w) if weight_transport else dw)


def test_in_a_chain_every_b_but_the_first_carries_the_error(rng):
    """Two layers: dW1 goes through B2 alone; B1 only matters for the error to the inputs."""
    x, w1, b1, w2, b2 = (rng.normal(size=s) for s in [(5, 4), (4, 6), (6, 4), (6, 3), (3, 6)])
    upstream = rng.normal(size=(5, 3))

    def chain(x, w1, b1):
        return matmul(matmul(x, w1, b1), w2, b2)

    _, dx, dw1, _ = gradients(chain, x, w1, b1, upstream)
    assert_close(dw1, x.T @ (upstream @ b2))
    assert_close(dx, upstream @ b2 @ b1)
    assert_differs(dw1, x.T @ (upstream @ w2.T), by=0.3)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["matmul", "conv2d"])
def test_xla_gives_the_same_values_and_gradients(rng, kind, dtype):
    if kind == "matmul":
        operation, arrays, options = matmul, dense_case(rng, dtype), {}
    else:
        reference = ConvReference(strides=(2, 2), padding="SAME")
        operation, arrays, options = conv2d, conv_case(rng, reference, dtype=dtype), options_of(reference)

    @tf.function(jit_compile=True)
    def compiled(x, w, b, upstream):
        with tf.GradientTape() as tape:
            tape.watch([x, w, b])
            y = operation(x, w, b, tie_gradient=True, **options)
            total = tf.reduce_sum(y * upstream)
        return [y, *tape.gradient(total, [x, w, b])]

    eager = gradients(operation, *arrays, tie_gradient=True, **options)
    for ours, expected in zip(compiled(*map(tf.convert_to_tensor, arrays)), eager, strict=True):
        assert_close(ours, expected)


@pytest.mark.parametrize("reference", [DenseReference(), *CONVOLUTIONS], ids=str)
def test_reconstruct_is_the_adjoint_of_project(rng, reference):
    """<project(x, K), y> = <x, reconstruct(y, K)> = <K, correlate(x, y)>."""
    if isinstance(reference, DenseReference):
        linear_map, (x, kernel, _, y) = DenseMap(), dense_case(rng)
    else:
        linear_map = ConvMap(reference.strides, reference.padding, reference.dilations)
        x, kernel, _, y = conv_case(rng, reference)
    overlap = np.vdot(linear_map.project(tf.constant(x), tf.constant(kernel)), y)
    assert_close(np.vdot(x, linear_map.reconstruct(tf.constant(y), tf.constant(kernel), like=tf.constant(x))), overlap)
    assert_close(
        np.vdot(kernel, linear_map.correlate(tf.constant(x), tf.constant(y), like=tf.constant(kernel))), overlap
    )


@pytest.mark.parametrize(
    ("backward_shape", "found"), [((4, 3), r"\(4, 3\)"), ((3, 5), r"\(3, 5\)"), ((3, 4, 1), r"\(3, 4, 1\)")]
)
def test_matmul_rejects_kernels_whose_shapes_are_not_transposed(backward_shape, found):
    with pytest.raises(ValueError, match=rf"`backward_kernel`.*\(4, 3\).*{found}.*Example"):
        matmul(np.zeros((2, 4)), np.zeros((4, 3)), np.zeros(backward_shape))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strides": 0}, r"`strides`.*Received 0.*Example: strides="),
        ({"strides": (1, 2, 1)}, r"`strides`.*\(1, 2, 1\)"),
        ({"strides": (1, -1)}, r"`strides`.*\(1, -1\)"),
        ({"strides": (1.0, 2.0)}, r"`strides`.*1\.0"),
        ({"strides": True}, r"`strides`.*True"),
        ({"strides": None}, r"`strides`.*None"),
        ({"dilations": (0, 1)}, r"`dilations`.*\(0, 1\).*Example: dilations="),
        ({"padding": "FULL"}, r"`padding`.*'FULL'.*Example"),
        ({"padding": None}, r"`padding`.*None"),
        ({"backward_kernel": np.zeros((3, 3, 4, 2))}, r"`backward_kernel`.*\(3, 3, 2, 4\).*\(3, 3, 4, 2\).*Example"),
        ({"forward_kernel": np.zeros((3, 3))}, r"`forward_kernel`.*\(3, 3\)"),
    ],
)
def test_conv2d_names_the_wrong_argument(change, message):
    arguments = {
        "inputs": np.zeros((1, 5, 5, 2)),
        "forward_kernel": np.zeros((3, 3, 2, 4)),
        "backward_kernel": np.zeros((3, 3, 2, 4)),
    }
    with pytest.raises(ValueError, match=message):
        conv2d(**{**arguments, **change})


def test_numpy_arrays_of_python_floats_take_the_dtype_of_the_kernels():
    y = matmul([[1.0, 2.0]], tf.ones([2, 1], tf.float64), tf.ones([1, 2], tf.float64))
    assert y.dtype == tf.float64
    assert_close(y, [[3.0]])


def test_lower_case_padding_and_a_single_stride_are_understood(rng):
    x, w, b, _ = conv_case(rng, ConvReference())
    y = conv2d(x, w, b, strides=2, padding="same")
    assert_close(y, ConvReference((2, 2), "SAME").project(x, w))
