"""Sign-concordant feedback with random magnitudes, on layers with one and with several kernels."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import DENSE, assert_close, assert_differs, exhaustive_unless, reference_carried

from neural_alignment import layers
from neural_alignment.alignments import Feedback, FixedMagnitudes, RedrawnMagnitudes, forward_pass

STEP, SEED = 5, 3

LAYERS = {
    "dense": (lambda rule: layers.Dense(4, alignment=rule, name="layer"), (2, 5)),
    "separable": (lambda rule: layers.SeparableConv2D(3, 2, alignment=rule, name="layer"), (2, 4, 4, 2)),
    "lstm": (lambda rule: layers.LSTM(3, alignment=rule, name="layer"), (2, 4, 5)),
    "gru": (lambda rule: layers.GRU(3, reset_after=False, alignment=rule, name="layer"), (2, 4, 5)),
    "einsum": (lambda rule: layers.EinsumDense("abc,cde->abde", (None, 2, 3), alignment=rule, name="layer"), (2, 4, 5)),
}


def built(name, rule):
    make, shape = LAYERS[name]
    keras.utils.set_random_seed(1)
    layer = make(rule)
    layer.build(shape)
    return layer


def error_at_inputs(layer, x):
    """Returns the gradient of the outputs to the inputs at a step of a model that calls the layer twice."""
    x = tf.constant(x)
    with tf.GradientTape() as tape, forward_pass(step=STEP, regularise=False):
        tape.watch(x)
        total = tf.reduce_sum(tf.square(layer(x, training=True))) + tf.reduce_sum(layer(2.0 * x, training=True))
    return tape.gradient(total, x)


RULES = FixedMagnitudes(), RedrawnMagnitudes(seed=SEED)


@pytest.mark.parametrize(
    ("rule", "name"),
    exhaustive_unless(
        itertools.product(RULES, LAYERS), lambda case: case[1] == "dense" or (case[0], case[1]) == (RULES[1], "gru")
    ),
    ids=lambda value: getattr(value, "rule", value),
)
def test_the_error_of_every_use_in_a_step_travels_through_the_same_signs_and_magnitudes(rng, name, rule):
    layer, fixed = built(name, rule), built(name, Feedback())
    for ours, other in zip(layer.connections, fixed.connections, strict=True):
        w, b = ours.kernel.numpy(), ours.linear_map.transpose(ours.stored_backward_kernel.value).numpy()
        np.testing.assert_array_equal(w, other.kernel.numpy())
        carried = reference_carried(rule.rule, w, b, ours.name, STEP, SEED)
        other.stored_backward_kernel.assign(ours.linear_map.transpose(tf.constant(carried)))
        with forward_pass(step=STEP):
            assert_close(ours.backward_kernel, other.stored_backward_kernel)
    x = rng.normal(size=LAYERS[name][1]).astype(np.float32)
    error = error_at_inputs(layer, x)
    assert_close(error, error_at_inputs(fixed, x))
    unsigned = built(name, Feedback())
    assert_differs(error, error_at_inputs(unsigned, x), by=0.05)


def test_without_a_model_the_layer_counts_its_steps_and_draws_anew_at_each(rng):
    layer = DENSE.build(alignment=RedrawnMagnitudes(seed=SEED), name="layer")
    w, b = layer.kernel.numpy(), layer._backward_kernel.numpy().T
    x = tf.constant(rng.normal(size=DENSE.input_shape), tf.float32)
    upstream = tf.constant(rng.normal(size=(4, 3)), tf.float32)
    for step in range(3):
        layer(x, training=False)  # Does not count.
        assert int(layer._step) == step
        carried = reference_carried("brsf", w, b, "layer", step, SEED)
        assert_close(layer.backward_kernel, carried.T)
        with tf.GradientTape() as tape:
            tape.watch(x)
            outputs = layer(x, training=True)
        assert_close(tape.gradient(outputs, x, output_gradients=upstream), upstream.numpy() @ carried.T)
    assert_differs(carried, reference_carried("brsf", w, b, "layer", 0, SEED), by=0.05)
    np.testing.assert_array_equal(layer._backward_kernel.numpy().T, b)


def test_magnitudes_are_those_of_the_initializer_and_do_not_follow_w():
    layer = layers.Dense(30, alignment=RedrawnMagnitudes(), kernel_initializer="he_normal")
    layer.build((None, 400))
    layer.kernel.assign(50.0 * layer.kernel)
    sizes = np.abs(layer.backward_kernel)
    assert np.sqrt(np.mean(sizes**2)) == pytest.approx(np.sqrt(2 / 400), rel=0.05)
    assert len(np.unique(sizes)) > 1000
    np.testing.assert_array_equal(np.sign(layer.backward_kernel), np.sign(layer.kernel).T)
