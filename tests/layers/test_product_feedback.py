"""Product feedback alignment: each layer against the equations of the paper, and B against W in training."""

import math
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import assert_close, assert_differs, distance, exhaustive_unless, product_kernel
from layer_table import (
    TABLE,
    build,
    call,
    carried_kernels,
    connections,
    draw_fixed,
    expected,
    gradients,
    make,
    native_copy,
)

from neural_alignment import config as configuration
from neural_alignment import layers
from neural_alignment.alignments import KolenPollack, ProductFeedback, from_config
from neural_alignment.errors import ConfigError
from neural_alignment.models import convert
from neural_alignment.training import AlignedModel, probes
from neural_alignment.training.costs import layer_costs
from neural_alignment.training.describe import describe
from optimizers import MultiOptimizer

EXPANSION = 3
RULE = ProductFeedback(decay=0.0, expansion=EXPANSION)

SINGLE = [name for name, row in TABLE.items() if list(row.maps) == ["kernel"]]
OFTEN = ("Dense", "EinsumDense", "Conv2D grouped", "DepthwiseConv1D", "Conv1DTranspose")
SEVERAL = [name for name in TABLE if name not in SINGLE]


def filled(name, rng, rule=RULE):
    """Returns a built layer of a row with random weights: the layer, W, L in the layout of W, and F, by connection."""
    layer = build(name, alignment=rule, dtype="float64")
    forward, learned, fixed = {}, {}, draw_fixed(layer, rule, rng)
    for key, connection in connections(layer).items():
        shape = rule.stored_shape(connection.linear_map, connection.kernel.shape)
        forward[key], learned[key] = (rng.normal(size=each) for each in (connection.kernel.shape, shape))
        connection.kernel.assign(forward[key])
        connection.stored_backward_kernel.assign(connection.linear_map.transpose(tf.constant(learned[key])))
        connection.fixed_kernel.assign(fixed[key])
    return layer, forward, learned, fixed


# One layer.


@pytest.mark.parametrize("name", exhaustive_unless(SINGLE, OFTEN))
def test_every_layer_follows_the_equations_of_the_paper(float64, rng, name):
    """r = F d, dx = L r, dW = x d^T and dL = x r^T, in each group: hidden units have the map of the layer."""
    layer, forward, learned, fixed = filled(name, rng)
    linear, connection = TABLE[name].maps["kernel"], layer.connection()
    w, of_hidden, f = forward["kernel"], learned["kernel"], fixed["kernel"]
    groups, hidden, outputs = f.shape
    assert hidden == EXPANSION * outputs
    x = rng.normal(size=(2, *TABLE[name].inputs))
    d = rng.normal(size=linear.project(x, w).shape)
    variables = [connection.kernel, connection.stored_backward_kernel]
    _, dx, dw, dl = gradients(layer, variables, x, d, training=True)
    r = np.einsum("gho,pgo->pgh", f, d.reshape(-1, groups, outputs)).reshape(linear.project(x, of_hidden).shape)
    assert_close(dx, linear.reconstruct(r, of_hidden, x.shape))
    assert_close(dw, linear.correlate(x, d, w.shape))
    assert_close(connection.linear_map.transpose(dl), linear.correlate(x, r, of_hidden.shape))
    assert_differs(dx, linear.reconstruct(d, w, x.shape), by=0.1)


@pytest.mark.parametrize("name", exhaustive_unless(SEVERAL, ("SeparableConv1D", "GRU before", "MultiHeadAttention")))
def test_layers_with_several_kernels_send_the_error_through_a_product_for_each(float64, rng, name):
    layer, forward, learned, fixed = filled(name, rng)
    x = rng.normal(size=(2, *TABLE[name].inputs))
    d = rng.normal(size=call(layer, x).shape)
    found = connections(layer)
    variables = [each.kernel for each in found.values()] + [each.stored_backward_kernel for each in found.values()]
    outputs, dx, *of_kernels = gradients(layer, variables, x, d, training=True)
    native = native_copy(name, layer, dtype="float64")
    carried = carried_kernels(name, RULE, layer, forward, learned, fixed)
    results = expected(name, native, forward, carried, x, d)
    assert_close(outputs, results.outputs)
    assert_close(dx, results.dx)
    for (key, connection), dw, dl in zip(found.items(), of_kernels, of_kernels[len(found) :], strict=False):
        assert_close(dw, results.gradients[key])
        # dL is the adjoint of the product with F at dW, here along one direction.
        direction = {**learned, key: rng.normal(size=learned[key].shape)}
        product = carried_kernels(name, RULE, layer, forward, direction, fixed)[key]
        assert_close(np.vdot(connection.linear_map.transpose(dl), direction[key]), np.vdot(dw, product))


def test_with_the_identity_as_f_it_is_kolen_pollack(float64, rng):
    x, d = rng.normal(size=(2, 6, 4)), rng.normal(size=(2, 3, 3))
    results = []
    for rule in (ProductFeedback(decay=0.1, expansion=1), KolenPollack(decay=0.1)):
        keras.utils.set_random_seed(1)
        layer = build("Conv1D strided", alignment=rule, dtype="float64")
        if isinstance(rule, ProductFeedback):
            layer.connection().fixed_kernel.assign(np.eye(3)[np.newaxis])
        variables = [layer.kernel, layer.connection().stored_backward_kernel]
        results.append([*gradients(layer, variables, x, d, training=True), layer.losses[0], layer.backward_kernel])
    for ours, other in zip(*results, strict=True):
        np.testing.assert_array_equal(ours, other)


def test_a_layer_without_an_axis_of_outputs_is_refused_at_construction():
    """A kernel that scales its inputs, or sums them up, has no outputs that could be expanded."""
    for equation, shape in (("abc,c->abc", (3, 4)), ("abc,bc->a", ())):
        with pytest.raises(ValueError, match=r"'pfa' needs a kernel with an axis .*Received .*in layer 'it'.*Example"):
            layers.EinsumDense(equation, shape, alignment=RULE, name="it")
        layers.EinsumDense(equation, shape, alignment=KolenPollack(decay=0.0))
    with pytest.raises(
        ValueError, match=r"`kernel_constraint` must be None with 'pfa', which gives B the updates of W"
    ):
        build("Dense", alignment=RULE, kernel_constraint=keras.constraints.MaxNorm(1.0))


def test_options_that_it_does_not_have_are_refused():
    for options, message in {
        "expansion": (0, "alignment.expansion"),
        "orthogonal": ("yes", "alignment.orthogonal"),
        "every": (2, "every: must be left out with pfa, whose B gets the update of W"),
        "examples": (0.5, "examples: must be left out with pfa, whose R depends only on the kernels"),
    }.items():
        value, line = message
        with pytest.raises(ConfigError, match=line):
            from_config({"rule": "pfa", "decay": 0.1, options: value})
    assert from_config({"rule": "pfa", "decay": 0.1}) == ProductFeedback(decay=0.1, expansion=10, orthogonal=False)


# How the backward weights are drawn.


def wide(rule, name="layer", **options):
    """Returns a dense layer of 40 inputs and 30 outputs, whose W has a fixed seed."""
    options = {"kernel_initializer": keras.initializers.GlorotUniform(seed=3), **options}
    layer = layers.Dense(30, alignment=rule, name=name, **options)
    layer.build((None, 40))
    return layer


def fixed_of(layer):
    return layer.connection().fixed_kernel.numpy()[0]


@pytest.mark.parametrize("expansion", [1, 4])
def test_an_orthogonal_f_has_orthogonal_columns_and_a_random_one_has_them_on_average(expansion):
    f = fixed_of(wide(ProductFeedback(decay=0.1, expansion=expansion, orthogonal=True)))
    assert f.shape == (30 * expansion, 30)
    assert_close(f.T @ f, np.eye(30), "float32")
    assert np.sum(f > 0) == pytest.approx(f.size / 2, rel=0.15)
    f = fixed_of(wide(ProductFeedback(decay=0.1, expansion=expansion)))
    limit = math.sqrt(3 / len(f))
    assert np.abs(f).max() == pytest.approx(limit, rel=0.02)
    assert f.std() == pytest.approx(1 / math.sqrt(len(f)), rel=0.05)
    draws = [fixed_of(wide(ProductFeedback(decay=0.1, expansion=expansion), name=str(number))) for number in range(40)]
    mean = np.mean([each.T @ each for each in draws], axis=0)
    assert np.abs(mean - np.eye(30)).max() < 4.5 / math.sqrt(40 * len(f))


def test_l_is_drawn_by_the_initializer_of_w_in_its_own_shape():
    layer = wide(ProductFeedback(decay=0.1, expansion=10))
    learned = layer.connection().stored_backward_kernel.numpy()
    assert learned.shape == (300, 40)
    assert np.abs(learned).max() == pytest.approx(math.sqrt(6 / (40 + 300)), rel=0.01)
    assert layer.kernel.shape == (40, 30)
    assert distance(learned[:30].T, layer.kernel) > 0.5


class OnlyNumpy(keras.initializers.Initializer):
    """Draws normal numbers, and has no seed."""

    def __call__(self, shape, dtype=None):
        return np.random.default_rng(5).normal(0, 0.5, shape).astype(dtype or "float32")


@pytest.mark.parametrize("initializer", [None, OnlyNumpy(), "he_normal"])
def test_draws_depend_on_the_seed_and_the_layer_and_on_nothing_else(initializer):
    """Keras' global seed determines that of W. W does not depend on the rule."""
    rule = ProductFeedback(decay=0.1, expansion=2)

    def drawn(seed=1, name="layer", rule=rule):
        keras.utils.set_random_seed(seed)
        options = {"kernel_initializer": initializer} if initializer is not None else {}
        layer = wide(rule, name, **options)
        return layer.kernel.numpy(), layer.connection().stored_backward_kernel.numpy(), layer.connection().fixed_kernel

    w, learned, fixed = drawn()
    for ours, again in zip((w, learned, fixed), drawn(), strict=True):
        np.testing.assert_array_equal(ours, again)
    np.testing.assert_array_equal(w, drawn(rule=KolenPollack(decay=0.1))[0])
    _, others, fixed_others = drawn(name="other")
    assert distance(learned, others) > 0.5
    assert distance(fixed, fixed_others) > 0.5
    if initializer == "he_normal":
        assert distance(fixed, drawn(seed=2)[2]) > 0.5
    # Of the initializers of Keras, that of the shape of L; of others, the deviation of W.
    due = {None: math.sqrt(2 / (40 + 60)), "he_normal": math.sqrt(2 / 40)}.get(initializer, w.std())
    assert learned.std() == pytest.approx(due, rel=0.05)


def test_a_converted_model_draws_as_many_hidden_units_and_keeps_its_outputs(rng):
    native = keras.Sequential([keras.Input((5,)), keras.layers.Dense(4, "relu"), keras.layers.Dense(3)])
    result = convert(native, ProductFeedback(decay=0.1, expansion=2), strict=True)
    x = rng.normal(size=(6, 5)).astype(np.float32)
    assert result.left == {}
    np.testing.assert_array_equal(result.model(x), native(x))
    shapes = [tuple(weight.shape) for weight in result.model.weights if "fixed" in weight.name]
    assert shapes == [(1, 8, 4), (1, 6, 3)]


# Training.

DECAY, RATE, STEPS = 0.5, 0.125, 3


def small_network(rule, kind=AlignedModel, parameterization="standard", optimizer=None):
    """Returns a compiled model with a convolution of two groups and a dense layer, each called twice in a step."""
    keras.utils.set_random_seed(2)
    options = {"alignment": rule, "kernel_regularizer": keras.regularizers.L2(0.5 * DECAY)}
    options["parameterization"] = parameterization
    conv = layers.Conv1D(4, 3, padding="same", groups=2, activation="tanh", name="conv", **options)
    dense = layers.Dense(4, activation="tanh", name="dense", **options)
    inputs = keras.Input((5, 4))
    outputs = keras.layers.Dense(2, name="readout")(keras.layers.Flatten()(dense(dense(conv(conv(inputs))))))
    model = kind(inputs, outputs)
    model.compile(MultiOptimizer([optimizer or keras.optimizers.SGD(RATE)]), "mse", jit_compile=False)
    return model


def trained(model, rng, steps=STEPS):
    """Trains a model on random numbers."""
    x, y = rng.normal(size=(steps * 4, 5, 4)), rng.normal(size=(steps * 4, 2))
    model.fit(x, y, batch_size=4, epochs=1, verbose=0)


def gaps(model):
    """Returns B - W F^T F of each layer, in the layout of W."""
    found = {}
    for name in ("conv", "dense"):
        connection = model.get_layer(name).connection()
        w, fixed = connection.kernel.numpy(), connection.fixed_kernel.numpy()
        target = product_kernel(w, np.swapaxes(fixed, 1, 2) @ fixed)
        found[name] = connection.linear_map.transpose(connection.backward_kernel).numpy() - target
    return found


SQUARED = [(AlignedModel, "standard", False), (AlignedModel, "ntk", True), (keras.Model, "ntk", False)]


@pytest.mark.parametrize(("kind", "parameterization", "orthogonal"), exhaustive_unless(SQUARED, SQUARED[1:2]))
def test_b_approaches_w_times_the_square_of_f_at_the_rate_of_the_decay(
    float64, rng, kind, parameterization, orthogonal
):
    """Plain gradient descent at the rate r multiplies B - W F^T F by 1 - r decay, in layers that are used twice."""
    rule = ProductFeedback(decay=DECAY, expansion=2, orthogonal=orthogonal)
    model = small_network(rule, kind, parameterization)
    before, kernel = gaps(model), model.get_layer("dense").kernel.numpy()
    fixed = {name: model.get_layer(name).connection().fixed_kernel.numpy() for name in before}
    trained(model, rng)
    shrunk = (1 - RATE * DECAY) ** STEPS
    assert_differs(model.get_layer("dense").kernel, kernel * shrunk)
    for name, gap in gaps(model).items():
        assert_close(gap, before[name] * shrunk)
        np.testing.assert_array_equal(model.get_layer(name).connection().fixed_kernel, fixed[name])


def test_the_measured_angle_is_that_of_w_to_b_and_ends_at_zero_with_an_orthogonal_f(float64, rng):
    rule = ProductFeedback(decay=DECAY, expansion=1, orthogonal=True)
    model = small_network(rule, optimizer=keras.optimizers.SGD(0.5))

    def measured():
        angles = probes.measure_kernels(model)["weight_angle"]
        for name in ("conv", "dense"):
            connection = model.get_layer(name).connection()
            learned = connection.linear_map.transpose(connection.stored_backward_kernel)
            w, b = connection.kernel.numpy(), product_kernel(learned.numpy(), connection.fixed_kernel.numpy())
            cosine = np.vdot(w, b) / np.linalg.norm(w) / np.linalg.norm(b)
            assert float(angles[name]) == pytest.approx(np.degrees(np.arccos(np.clip(cosine, -1, 1))), abs=1e-3)
        return [float(angle) for angle in angles.values()]

    assert min(measured()) > 60
    trained(model, rng, steps=60)
    assert max(measured()) < 1


# Costs.


def test_the_products_of_kernels_are_counted_and_do_not_depend_on_the_batch():
    """L F takes a product for each hidden unit, and so does its gradient."""
    rule = ProductFeedback(decay=0.1, expansion=5)
    inputs = keras.Input((6, 6, 4))
    x = layers.Conv2D(8, 3, groups=2, alignment=rule, name="conv")(inputs)
    model = AlignedModel(inputs, layers.Dense(3, alignment=rule, name="dense")(keras.layers.Flatten()(x)))
    rows = {row.name: row for row in layer_costs(model)}
    taps, flat = 3 * 3 * 2, 4 * 4 * 8
    products = {"conv": 2 * taps * (5 * 8) * 4, "dense": 2 * flat * (5 * 3) * 3}
    weights = {"conv": taps * 5 * 8 + 2 * (5 * 4) * 4, "dense": flat * 5 * 3 + 5 * 3 * 3}
    for name, row in rows.items():
        assert (row.carrying, row.tying, row.products) == (products[name], products[name], 0)
        assert row.backward == weights[name]
    plain = AlignedModel(inputs, layers.Conv2D(8, 3, alignment=KolenPollack(decay=0.1))(inputs))
    assert {(row.carrying, row.tying) for row in layer_costs(plain)} == {(0, 0)}


def test_describe_divides_them_among_the_examples_of_each_part_of_a_batch():
    plan = configuration.parse(
        {
            "epochs": 1,
            "batch_size": 50,
            "data": {"source": "digits"},
            "model": {"name": "fc", "hidden": [4]},
            "weight_decay": 0.1,
            "alignment": {"rule": "pfa", "decay": 0.1, "expansion": 5},
            "optimization": {"forward": {"name": "sgd", "learning_rate": 0.1}, "minibatches": 5},
        }
    )
    ratios = dict(re.findall(r"^(J step|J \+ R step) .* ([\d.]+)$", describe(plan), re.MULTILINE))
    first, second = 64 * 4, 4 * 10
    backpropagation = 3 * (first + second) - first
    products = 64 * 20 * 4 + 2 * (4 * 50 * 10)  # The B of the first layer is trained, but carries no error.
    ratio = f"{(backpropagation + products / 10) / backpropagation:.2f}"
    assert ratios == {"J step": ratio, "J + R step": ratio}


def test_layers_of_the_table_can_be_made_with_it():
    for name in TABLE:
        assert make(name, alignment=RULE).alignment == RULE
