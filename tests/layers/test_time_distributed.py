"""`layers.TimeDistributed`: an aligned layer sees all time steps as examples of one batch."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import LEARNING, RULE_CONFIGS, assert_close, assert_differs, reference_regulariser
from layer_table import TABLE, connections, fill, make, native_copy, recurrent_weights
from recurrent_layers import Run

from neural_alignment import convert, layers
from neural_alignment.alignments import Feedback, WeightMirror, forward_pass, from_config
from neural_alignment.training import AlignedModel, aligned_layers

BATCH, STEPS = 3, 4


def wrapped(name, rng, **options):
    """Returns a wrapper around the layer of a row, inputs `(batch, steps, ...)`, and B in the layout of W."""
    wrapper = layers.TimeDistributed(make(name, **options))
    x = rng.normal(size=(BATCH, STEPS, *TABLE[name].inputs)) + 0.3
    wrapper(x)
    return wrapper, x, fill(wrapper.layer, rng)[1]


def regularisers(wrapper, x, **options):
    with forward_pass(**options) as state:
        wrapper(x, training=True)
    return state.losses


@pytest.mark.parametrize("rule", LEARNING)
@pytest.mark.parametrize("name", ["Dense", "Conv2D grouped", "Conv1DTranspose"])
def test_r_is_a_mean_over_examples_and_time_steps(float64, rng, name, rule):
    wrapper, x, backward = wrapped(name, rng, alignment=from_config(RULE_CONFIGS[rule]))
    (found,) = regularisers(wrapper, x).values()

    def reference(inputs):
        kernels = wrapper.layer.kernel.numpy(), backward["kernel"]
        return reference_regulariser(RULE_CONFIGS[rule], TABLE[name].maps["kernel"], inputs, *kernels)

    assert_close(found, reference(x.reshape(-1, *x.shape[2:])))
    assert_differs(found, sum(reference(x[:, step]) for step in range(STEPS)), by=0.1)


def test_r_of_a_recurrent_layer_is_a_mean_over_examples_and_outer_steps(float64, rng):
    """The steps of the recurrent layer itself count as positions in space; its mask has an axis for both steps."""
    wrapper, x, backward = wrapped("LSTM", rng, alignment=from_config(RULE_CONFIGS["information"]))
    mask = rng.random((BATCH, STEPS, x.shape[2])) < 0.7
    with forward_pass() as state:
        outputs = wrapper(tf.constant(x), training=True, mask=tf.constant(mask))
    flat = x.reshape(-1, *x.shape[2:])
    weights = recurrent_weights(native_copy("LSTM", wrapper.layer), backward)
    run = Run(TABLE["LSTM"].cell, weights, flat, mask=mask.reshape(flat.shape[:2]))
    assert_close(outputs, run.outputs.reshape(outputs.shape))
    for name, connection in connections(wrapper.layer).items():
        signal = run.masked(flat if name == "kernel" else run.previous)
        arrays = signal, connection.kernel.numpy(), backward[name]
        expected = reference_regulariser(RULE_CONFIGS["information"], TABLE["LSTM"].maps[name], *arrays)
        assert_close(state.losses[connection.name], expected)


def test_the_noise_of_an_example_does_not_depend_on_the_part_of_the_batch_it_is_in(float64, rng):
    wrapper, x, _ = wrapped("Dense", rng, alignment=WeightMirror(amp=1.0, decay=1e-3, input={"noise": "normal"}))
    (whole,), (first,), (rest,), (wrong,) = (
        regularisers(wrapper, part, first_example=number).values()
        for part, number in ((x, 0), (x[:1], 0), (x[1:], 1), (x[1:], 0))
    )
    assert_close(whole, (first + 2 * rest) / 3)
    assert_differs(whole, (first + 2 * wrong) / 3, by=1e-5)


class Block(keras.layers.Layer):
    """A layer of a user that calls an aligned layer."""

    def __init__(self, dense):
        super().__init__()
        self.dense = dense

    def build(self, input_shape):
        self.dense.build(input_shape)

    def compute_output_shape(self, input_shape):
        return self.dense.compute_output_shape(input_shape)

    def call(self, inputs):
        return self.dense(inputs)


def functional(dense):
    inputs = keras.Input((4,))
    return keras.Model(inputs, dense(inputs))


@pytest.mark.parametrize(
    "around",
    [lambda dense: keras.Sequential([dense]), functional, Block, layers.TimeDistributed],
    ids=["sequential", "functional", "layer", "wrapper"],
)
@pytest.mark.parametrize("steps", [STEPS, None])
def test_r_of_a_layer_within_another_is_a_mean_over_time_steps(float64, rng, around, steps):
    """Without a known number of steps, the native wrapper would use `tf.vectorized_map`."""
    dense = layers.Dense(3, name="inner", alignment=from_config(RULE_CONFIGS["information"]))
    wrapper = layers.TimeDistributed(around(dense))
    nested = around is layers.TimeDistributed
    inputs = keras.Input((steps, 2, 4) if nested else (steps, 4))
    model = AlignedModel(inputs, wrapper(inputs))
    x = rng.normal(size=(BATCH, STEPS, 2, 4) if nested else (BATCH, STEPS, 4)) + 0.3
    backward = fill(dense, rng)[1]
    with tf.GradientTape() as tape, forward_pass() as state:
        tape.watch(variable := tf.constant(x))
        outputs = model(variable, training=True)
    assert_close(outputs, x @ dense.kernel.numpy() + dense.bias.numpy())
    assert_close(tape.gradient(outputs, variable), np.ones(outputs.shape) @ dense.backward_kernel.numpy())
    arrays = x.reshape(-1, 4), dense.kernel.numpy(), backward["kernel"]
    expected = reference_regulariser(RULE_CONFIGS["information"], TABLE["Dense"].maps["kernel"], *arrays)
    assert_close(state.losses["inner"], expected)
    assert_differs(state.losses["inner"], STEPS * expected, by=0.1)


def test_a_converted_model_in_a_wrapper_computes_r_as_a_mean_over_time_steps(float64, rng):
    inputs = keras.Input((STEPS, 4))
    block = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="inner")])
    native = keras.Model(inputs, keras.layers.TimeDistributed(block)(inputs))
    model = convert(native, from_config(RULE_CONFIGS["information"])).model
    (dense,) = aligned_layers(model)
    backward = fill(dense, rng)[1]
    x = rng.normal(size=(BATCH, STEPS, 4)) + 0.3
    with forward_pass() as state:
        model(x, training=True)
    arrays = x.reshape(-1, 4), dense.kernel.numpy(), backward["kernel"]
    expected = reference_regulariser(RULE_CONFIGS["information"], TABLE["Dense"].maps["kernel"], *arrays)
    assert_close(state.losses["inner"], expected)


def test_a_model_with_several_outputs_is_called_once(rng):
    inputs = keras.Input((4,))
    first = layers.Dense(3, alignment=Feedback())(inputs)
    inner = keras.Model(inputs, {"first": first, "second": layers.Dense(2, alignment=Feedback())(first)})
    wrapper = layers.TimeDistributed(inner)
    x = rng.normal(size=(BATCH, STEPS, 4)).astype(np.float32)
    found, expected = wrapper(x), inner(x.reshape(-1, 4))
    for name, size in (("first", 3), ("second", 2)):
        assert_close(found[name], expected[name].numpy().reshape(BATCH, STEPS, size), "float32")


@pytest.mark.parametrize("native", [keras.layers.LSTM, layers.LSTM])
def test_a_stateful_layer_beside_an_aligned_one_is_refused(native):
    inner = keras.Sequential([native(3, stateful=True, name="memory"), layers.Dense(2, alignment=Feedback())])
    with pytest.raises(ValueError, match=r"must not be stateful if it has an alignment.* 'memory' with stateful=True"):
        layers.TimeDistributed(inner)


@pytest.mark.parametrize("wrap", [lambda layer: layer, keras.layers.Bidirectional], ids=["plain", "bidirectional"])
def test_a_stateful_aligned_layer_is_refused_at_construction(wrap):
    message = r"`layer` must not be stateful if it has an alignment.* with stateful=True\. Example: stateful=False"
    with pytest.raises(ValueError, match=message):
        layers.TimeDistributed(wrap(layers.LSTM(3, stateful=True, name="inner", alignment=Feedback())))
    layer = wrap(keras.layers.LSTM(3, stateful=True, name="inner"))
    assert layers.TimeDistributed(layer).layer is layer
    inputs = keras.Input(batch_shape=(2, 3, 4, 5))
    native = keras.Model(inputs, keras.layers.TimeDistributed(layer)(inputs))
    with pytest.raises(ValueError, match=message):
        convert(native, Feedback())


@pytest.mark.parametrize(("inner", "outer"), [("float32", "mixed_bfloat16"), ("mixed_bfloat16", "float32")])
@pytest.mark.parametrize("rule", ["feedback", "align_prop", "information"])
def test_a_layer_in_a_wrapper_of_another_precision_trains_outside_of_an_aligned_model(rng, rule, inner, outer):
    """As in the native wrapper, the layer computes in the precision of the wrapper."""
    layer = layers.Dense(3, alignment=from_config(RULE_CONFIGS[rule]), dtype=inner)
    wrapper = layers.TimeDistributed(layer, dtype=outer)
    x = tf.constant(rng.normal(size=(BATCH, STEPS, 4)), tf.float32)
    wrapper(x)
    w = layer.kernel.numpy()
    with tf.GradientTape() as tape:
        tape.watch(x)
        outputs = wrapper(x, training=True)
        upstream = tf.ones_like(outputs)
    assert outputs.dtype == wrapper.compute_dtype
    kind = outputs.dtype.name
    assert_close(tf.cast(outputs, tf.float32), x.numpy() @ w, kind)
    found = tape.gradient(outputs, x, output_gradients=upstream)
    backward = layer._backward_kernel.numpy()
    assert_close(found, np.ones((BATCH, STEPS, 3)) @ backward, kind)
    if rule == "align_prop":
        assert_close(backward, w.T)
