"""Recurrent layers: every option of the loop over time, against loops forward and backward in NumPy."""

from __future__ import annotations

import itertools
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import (
    LEARNING,
    READS_SIGNALS,
    RULE_CONFIGS,
    assert_close,
    assert_differs,
    exhaustive_unless,
    reference_regulariser,
)
from layer_table import TABLE, build, connections, fill, make, native_copy, recurrent_weights
from recurrent_layers import Run

from neural_alignment import layers
from neural_alignment.alignments import Feedback, forward_pass, from_config
from neural_alignment.training import AlignedModel

NAMES = [name for name, row in TABLE.items() if row.cell is not None]

BATCH, STEPS, INPUTS, UNITS = 3, 5, 2, 3

MASKS = {
    "leading": [[0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]],
    "trailing": [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]],
    "middle": [[1, 0, 0, 1, 1], [1, 1, 0, 1, 0], [0, 1, 0, 0, 1]],
}

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "backwards": {"go_backwards": True},
    "unrolled": {"unroll": True},
    "initial states": {"initial": True},
    **{f"mask {name}": {"mask": name} for name in MASKS},
    "mask leading, initial states": {"mask": "leading", "initial": True},
    "mask middle, unrolled": {"mask": "middle", "unroll": True},
    "mask middle, backwards": {"mask": "middle", "go_backwards": True, "initial": True},
    "mask middle, zeros": {"mask": "middle", "zero_output_for_mask": True},
    "mask trailing, zeros, backwards": {"mask": "trailing", "zero_output_for_mask": True, "go_backwards": True},
}

CONSTRUCTOR = ("go_backwards", "unroll", "zero_output_for_mask")


def prepared(name, rng, options, **more):
    """Returns an aligned layer with weights, and the run in NumPy that it must agree with."""
    constructor = {key: options[key] for key in CONSTRUCTOR if key in options}
    layer = build(name, **{"alignment": Feedback(), **constructor, **more})
    _, backward = fill(layer, rng)
    native = native_copy(name, layer)
    initial = None
    if options.get("initial"):
        initial = [rng.normal(size=(BATCH, UNITS)) for _ in range(TABLE[name].cell.states)]
    run = Run(
        TABLE[name].cell,
        recurrent_weights(native, backward),
        rng.normal(size=(BATCH, STEPS, INPUTS)),
        initial,
        np.array(MASKS[options["mask"]], bool) if "mask" in options else None,
        options.get("zero_output_for_mask", False),
        options.get("go_backwards", False),
    )
    return layer, run


def measured(layer, run, upstream, **call):
    """Returns outputs, and gradients to the inputs, both kernels, the bias and the initial states."""
    x, initial = tf.constant(run.x), [tf.constant(each) for each in run.initial or []]
    if run.mask is not None:
        call["mask"] = tf.constant(run.mask)
    if initial:
        call["initial_state"] = initial
    with tf.GradientTape() as tape:
        tape.watch([x, *initial])
        outputs = layer(x, training=True, **call)
        total = tf.reduce_sum(outputs * upstream)
    weights = [layer.cell.kernel.value, layer.cell.recurrent_kernel.value, layer.cell.bias.value]
    return outputs, tape.gradient(total, [x, *weights, *initial])


def assert_gradients(found, run, upstream):
    """Fails unless gradients as from `measured` are those of the run in NumPy."""
    dx, sums, initial = run.backward(upstream)
    wanted = [dx, sums.kernel, sums.recurrent_kernel, sums.bias, *(initial if run.initial else [])]
    for ours, expected in zip(found, wanted, strict=True):
        assert_close(ours, expected)


def cases(options, pairwise):
    """Returns layers and options: `make test` has all options of the LSTM, and some that cover them of all layers."""
    return exhaustive_unless(itertools.product(NAMES, options), lambda case: case[0] == "LSTM" or case[1] in pairwise)


@pytest.mark.parametrize(
    ("name", "options"),
    cases(
        OPTIONS,
        ("mask leading, initial states", "mask middle, unrolled", "mask middle, backwards",
         "mask trailing, zeros, backwards"),
    ),
)  # fmt: skip
def test_outputs_and_gradients_are_those_of_loops_in_numpy(float64, rng, name, options):
    layer, run = prepared(name, rng, OPTIONS[options])
    upstream = rng.normal(size=run.outputs.shape)
    outputs, found = measured(layer, run, upstream)
    assert_close(outputs, run.outputs)
    assert_gradients(found, run, upstream)


@pytest.mark.parametrize("name", NAMES)
def test_the_loops_in_numpy_are_backpropagation_if_b_is_w(float64, rng, name):
    """And with another B they are not: neither through the inputs, nor through time."""
    layer, run = prepared(name, rng, {"mask": "middle", "initial": True})
    upstream, native = rng.normal(size=run.outputs.shape), native_copy(name, layer)
    weights = run.weights
    backward = {"kernel": weights.backward_kernel, "recurrent_kernel": weights.backward_recurrent_kernel}
    outputs, true = measured(native, run, upstream)
    for kernel in backward:
        half = {**backward, kernel: getattr(weights, kernel)}
        partly = Run(run.cell, recurrent_weights(native, half), run.x, run.initial, run.mask)
        assert_differs(partly.backward(upstream)[0], true[0], by=0.05)
    both = {"kernel": weights.kernel, "recurrent_kernel": weights.recurrent_kernel}
    same = Run(run.cell, recurrent_weights(native, both), run.x, run.initial, run.mask)
    assert_close(outputs, same.outputs)
    assert_gradients(true, same, upstream)


@pytest.mark.parametrize(
    ("name", "options"), cases(["plain", "mask trailing", "mask middle, zeros"], ["mask trailing"])
)
def test_the_last_output_is_the_only_one_without_return_sequences(float64, rng, name, options):
    layer, run = prepared(name, rng, OPTIONS[options], return_sequences=False, return_state=False)
    last = rng.normal(size=(BATCH, UNITS))
    outputs, found = measured(layer, run, last)
    assert_close(outputs, run.outputs[:, -1])
    upstream = np.zeros_like(run.outputs)
    upstream[:, -1] = last
    assert_gradients(found, run, upstream)


@pytest.mark.parametrize("name", NAMES)
def test_return_state_returns_the_states_of_the_run(float64, rng, name):
    layer, run = prepared(name, rng, {"mask": "trailing"}, return_state=True)
    outputs, *states = layer(tf.constant(run.x), mask=tf.constant(run.mask), training=True)
    assert_close(outputs, run.outputs)
    for state, expected in zip(states, run.states, strict=True):
        assert_close(state, expected)


@pytest.mark.parametrize("name", NAMES)
def test_a_stateful_layer_goes_on_from_its_last_states(float64, rng, name):
    """The error of the second call does not reach the first."""
    layer, run = prepared(name, rng, {}, stateful=True)
    layer.reset_states()
    measured(layer, run, run.outputs)
    second = Run(run.cell, run.weights, rng.normal(size=run.x.shape), run.states)
    upstream = rng.normal(size=run.outputs.shape)
    x = tf.constant(second.x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        outputs = layer(x, training=True)
        total = tf.reduce_sum(outputs * upstream)
    assert_close(outputs, second.outputs)
    assert_close(tape.gradient(total, x), second.backward(upstream)[0])
    assert_differs(outputs, run.outputs, by=0.1)


@pytest.mark.parametrize("name", ["LSTM", "GRU"])
def test_a_graph_with_unknown_batch_and_length_agrees(float64, rng, name):
    layer, run = prepared(name, rng, {"mask": "middle"})
    upstream = rng.normal(size=run.outputs.shape)

    @tf.function(
        input_signature=[tf.TensorSpec([None, None, INPUTS], tf.float64), tf.TensorSpec([None, None], tf.bool),
                         tf.TensorSpec([None, None, UNITS], tf.float64)],
        autograph=False,
    )  # fmt: skip
    def graph(x, mask, upstream):
        with tf.GradientTape() as tape:
            tape.watch(x)
            outputs = layer(x, mask=mask, training=True)
            total = tf.reduce_sum(outputs * upstream)
        return outputs, tape.gradient(total, [x, layer.cell.recurrent_kernel.value])

    outputs, (dx, recurrent) = graph(run.x, run.mask, upstream)
    expected, sums, _ = run.backward(upstream)
    assert_close(outputs, run.outputs)
    assert_close(dx, expected)
    assert_close(recurrent, sums.recurrent_kernel)


AS_NUMBERS = {
    "float": lambda mask: mask.astype(np.float32),
    "int": lambda mask: mask.astype(np.int64),
    "counts": lambda mask: 3 * mask.astype(np.int32),
    "third axis": lambda mask: mask[..., None],
    "numbers with a third axis": lambda mask: mask[..., None].astype(np.float64),
    "list": lambda mask: [mask],
}
"""Other forms of a mask that the recurrent layers of Keras take."""


MASKED = ("mask middle", "mask trailing, zeros, backwards")
FORMS = [*itertools.product(("SimpleRNN", "LSTM"), MASKED, AS_NUMBERS)]


@pytest.mark.parametrize(("name", "options", "form"), exhaustive_unless(FORMS, FORMS[:6] + FORMS[-6:]))
def test_a_mask_may_be_numbers_and_have_a_third_axis(float64, rng, name, options, form):
    layer, run = prepared(name, rng, OPTIONS[options], alignment=from_config(RULE_CONFIGS["information"]))
    x, mask = tf.constant(run.x), keras.tree.map_structure(tf.constant, AS_NUMBERS[form](run.mask))
    upstream = rng.normal(size=run.outputs.shape)
    with forward_pass() as state, tf.GradientTape() as tape:
        tape.watch(x)
        outputs = layer(x, mask=mask, training=True)
        total = tf.reduce_sum(outputs * upstream)
    assert_close(outputs, run.outputs)
    assert_close(tape.gradient(total, x), run.backward(upstream)[0])
    with forward_pass() as expected:
        layer(x, mask=tf.constant(run.mask), training=True)
    assert state.losses.keys() == expected.losses.keys()
    for key, loss in expected.losses.items():
        assert_close(state.losses[key], loss)


# Dropout.


@pytest.mark.parametrize(("name", "recurrent"), cases([0.0, 0.3], [0.3]))
def test_dropout_is_that_of_the_native_layer_with_the_same_seed(rng, name, recurrent):
    """With recurrent dropout the gates have different masks (implementation 1 of Keras), otherwise one."""
    x = rng.normal(size=(BATCH, STEPS, INPUTS)).astype(np.float32)
    options = {"dropout": 0.4, "recurrent_dropout": recurrent, "seed": 8}
    layer = build(name, alignment=Feedback(), **options)
    fill(layer, rng)
    native = native_copy(name, layer, **options)
    found = []
    for training in (True, True, False, True):  # The seed generators of both advance alike.
        found.append(layer(x, training=training))
        assert_close(found[-1], native(x, training=training))
    assert_differs(found[0], found[1], by=0.01)
    assert_differs(found[0], found[2], by=0.01)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "GRU before"])
def test_dropout_of_the_inputs_also_applies_on_the_way_back(float64, rng, name):
    """Inputs that are dropped get no error; the gradient to W reads the inputs after dropout."""
    layer = build(name, alignment=Feedback(), dropout=0.5, seed=3)
    fill(layer, rng)
    x = tf.constant(rng.normal(size=(BATCH, STEPS, INPUTS)))
    with tf.GradientTape() as tape:
        tape.watch(x)
        total = tf.reduce_sum(tf.sin(layer(x, training=True)))
    dx, dw = tape.gradient(total, [x, layer.cell.kernel.value])
    dropped = (dx.numpy() == 0).all(axis=1)
    assert 0 < dropped.sum() < dropped.size
    everywhere = dropped.all(axis=0)
    assert ((dw.numpy() == 0).all(axis=1) == everywhere).all()


# R of both connections.


def reference(name, rule, run, connection, backward, native):
    """Returns R of one connection in NumPy: time counts as space, and masked steps are zeros."""
    kernel = np.asarray(getattr(native.cell, connection), float)
    signal = run.masked(run.previous) if connection == "recurrent_kernel" else run.masked(run.x, reverse=True)
    linear = TABLE[name].maps[connection]
    config = RULE_CONFIGS[rule]
    return reference_regulariser(config, linear, signal, kernel, backward[connection])


@pytest.mark.parametrize(
    ("name", "options"),
    cases(
        ["plain", "backwards", "initial states", "mask leading, initial states", "mask middle",
         "mask middle, backwards", "mask trailing, zeros, backwards"],
        ["mask leading, initial states", "mask trailing, zeros, backwards"],
    ),
)  # fmt: skip
def test_r_of_both_connections_agrees_with_numpy(float64, rng, name, options):
    rule = "symmetric" if name == "GRU before" else "information"
    layer, run = prepared(name, rng, OPTIONS[options], alignment=from_config(RULE_CONFIGS[rule]))
    backward = {
        key: each.linear_map.transpose(each.backward_kernel).numpy() for key, each in connections(layer).items()
    }
    with tf.GradientTape(persistent=True) as tape, forward_pass() as state:
        measured(layer, run, 0 * run.outputs)
    assert set(state.losses) == {"layer.kernel", "layer.recurrent_kernel"}
    for key, connection in connections(layer).items():
        expected = reference(name, rule, run, key, backward, layer)
        assert_close(state.losses[connection.name], expected)
        gradient = tape.gradient(state.losses[connection.name], connection.stored_backward_kernel.value)
        step = rng.normal(size=gradient.shape)

        def along(size, key=key, step=step, connection=connection):
            moved = {**backward, key: backward[key] + size * connection.linear_map.transpose(step).numpy()}
            return reference(name, rule, run, key, moved, layer)

        assert_close(np.vdot(gradient, step), (along(1e-5) - along(-1e-5)) / 2e-5, "finite difference")
        for other in (layer.cell.kernel, layer.cell.recurrent_kernel, layer.cell.bias):
            assert tape.gradient(state.losses[connection.name], other.value) is None


def test_r_reads_the_bias_and_the_activation_of_the_gates(float64, rng):
    """The GRU has one bias for the inputs and one for the previous outputs."""
    config = {**RULE_CONFIGS["weight_mirror"], "forward_output": {"bias": True, "relu": True}}
    layer, run = prepared("GRU", rng, {}, alignment=from_config(config))
    with forward_pass() as state:
        measured(layer, run, 0 * run.outputs)

    def gates(products):
        z, r, c = np.split(products, 3, axis=-1)
        return np.concatenate([1 / (1 + np.exp(-z)), 1 / (1 + np.exp(-r)), np.tanh(c)], axis=-1)

    for row, (key, signal) in enumerate((("kernel", run.x), ("recurrent_kernel", run.previous))):
        connection = connections(layer)[key]
        backward = connection.linear_map.transpose(connection.backward_kernel).numpy()
        arrays = signal, getattr(run.weights, key), backward, run.weights.bias[row]
        expected = reference_regulariser(config, TABLE["GRU"].maps[key], *arrays, gates)
        assert_close(state.losses[connection.name], expected)


# Wrappers.


@pytest.mark.parametrize("name", NAMES)
def test_bidirectional_runs_an_aligned_layer_in_both_directions(float64, rng, name):
    inner = make(name, alignment=Feedback(), name="inner")
    wrapper = keras.layers.Bidirectional(inner)
    x, mask = rng.normal(size=(BATCH, STEPS, INPUTS)), np.array(MASKS["trailing"], bool)
    wrapper(x)
    runs = []
    for layer, backwards in ((wrapper.forward_layer, False), (wrapper.backward_layer, True)):
        assert isinstance(layer, type(inner))
        assert layer.alignment == Feedback()
        _, backward = fill(layer, rng)
        weights = recurrent_weights(native_copy(name, layer), backward)
        runs.append(Run(TABLE[name].cell, weights, x, None, mask, layer.zero_output_for_mask, backwards))
    upstream = rng.normal(size=(BATCH, STEPS, 2 * UNITS))
    tensor = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(tensor)
        outputs = wrapper(tensor, mask=tf.constant(mask), training=True)
        total = tf.reduce_sum(outputs * upstream)
    assert_close(outputs, np.concatenate([runs[0].outputs, runs[1].outputs[:, ::-1]], axis=-1))
    expected = runs[0].backward(upstream[..., :UNITS])[0] + runs[1].backward(upstream[:, ::-1, UNITS:])[0]
    assert_close(tape.gradient(total, tensor), expected)


def test_bidirectional_layers_have_a_regulariser_for_each_connection(rng):
    rule = from_config(RULE_CONFIGS["information"])
    wrapper = keras.layers.Bidirectional(make("LSTM", alignment=rule, name="inner"))
    inputs = keras.Input((STEPS, INPUTS))
    model = AlignedModel(inputs, keras.layers.Dense(1)(wrapper(inputs)))
    model.compile(keras.optimizers.SGD(0.01), "mse", jit_compile=False)
    x = rng.normal(size=(BATCH, STEPS, INPUTS)).astype(np.float32)
    with forward_pass() as state:
        model(x, training=True)
    names = {f"{way}_inner.{kernel}" for way in ("forward", "backward") for kernel in ("kernel", "recurrent_kernel")}
    assert set(state.losses) == names


@pytest.mark.parametrize("rule", ["feedback", "information", "symmetric", "kolen_pollack"])
def test_native_time_distributed_sums_r_over_the_steps_if_the_rule_reads_signals(rng, rule):
    layer = layers.Dense(3, alignment=from_config(RULE_CONFIGS[rule]), name="inner")
    inputs = keras.Input((STEPS, 4))
    model = keras.Model(inputs, keras.layers.TimeDistributed(layer)(inputs))
    _, backward = fill(layer, rng)
    x = rng.normal(size=(BATCH, STEPS, 4)).astype(np.float32)
    upstream = rng.normal(size=(BATCH, STEPS, 3)).astype(np.float32)

    @tf.function(autograph=False)
    def trained(x, upstream):
        with tf.GradientTape() as tape:
            tape.watch(x)
            outputs = model(x, training=True)
            total = tf.reduce_sum(outputs * upstream)
        return outputs, tape.gradient(total, x), [tf.identity(loss) for loss in model.losses]

    outputs, dx, losses = trained(tf.constant(x), tf.constant(upstream))
    assert_close(outputs, x @ layer.kernel.numpy() + layer.bias.numpy())
    assert_close(dx, upstream @ layer.backward_kernel.numpy())
    expected = sum(
        reference_regulariser(
            RULE_CONFIGS[rule], TABLE["Dense"].maps["kernel"], x[:, step], layer.kernel.numpy(), backward["kernel"]
        )
        for step in range(STEPS if rule in READS_SIGNALS else 1)
    )
    assert_close(sum(map(float, losses)), expected if rule in LEARNING else 0.0, "float32")


def test_time_distributed_with_an_unknown_number_of_steps_is_refused_in_training(rng):
    """Keras then uses `tf.vectorized_map`, which drops custom gradients: the error would travel back through W."""
    layer = layers.Dense(3, alignment=Feedback(), name="inner")
    wrapper = keras.layers.TimeDistributed(layer)
    x = rng.normal(size=(4, 4, 2)).astype(np.float32)  # Keras needs as many examples as steps here.
    expected = wrapper(x, training=True)
    signature = [tf.TensorSpec([None, None, 2])]
    with pytest.raises(ValueError, match=r"`tf.vectorized_map` must not train.*'inner'.*layers.TimeDistributed"):
        tf.function(lambda x: wrapper(x, training=True), signature, autograph=False)(x)
    infer = tf.function(lambda x: wrapper(x, training=False), signature, autograph=False)
    assert_close(infer(x), expected)
