"""The behaviour that every aligned layer has with every rule. `layer_table.TABLE` has a row for each layer."""

from __future__ import annotations

import functools
import inspect
import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import (
    FIXED,
    LEARNING,
    RULE_CONFIGS,
    assert_close,
    assert_differs,
    exhaustive_unless,
    reference_regulariser,
)
from layer_table import (
    BATCH,
    TABLE,
    build,
    call,
    carried_kernels,
    connections,
    draw_fixed,
    expected,
    fill,
    gradients,
    input_shape,
    make,
    native_copy,
    own_weights,
    product_kernel,
)

from neural_alignment import layers
from neural_alignment.alignments import Feedback, forward_pass, from_config

PAIRS = [(name, rule) for name, row in TABLE.items() for rule in RULE_CONFIGS if rule not in row.refuses]

KINDS = ("Conv2D grouped", "GRU")
"""Layers that `make test` tries with every rule: with one kernel, and with two kernels over time."""


def often(pairs):
    """Returns the pairs of a layer and a rule that `make test` tries.

    Each layer has information, whose R reads every product, and in turn a rule that draws B anew, one that gives B a
    gradient of J, or one with a second backward weight. Layers of `KINDS` have every rule.
    """
    turns = dict(zip(TABLE, itertools.cycle(("brsf", "kolen_pollack", "pfa"))))
    return {(name, rule) for name, rule in pairs if name in KINDS or rule in ("information", turns[name])}


def test_every_aligned_layer_has_a_row_in_the_table():
    missing = {form.__name__ for form in layers.ALIGNED_FORMS.values()} - {name.split()[0] for name in TABLE}
    assert missing == set()


@pytest.mark.parametrize("dtype", ["int8_from_float32", "float8_from_mixed_bfloat16"])
@pytest.mark.parametrize("name", TABLE)
def test_a_quantised_policy_is_refused_at_construction(name, dtype):
    with pytest.raises(ValueError, match=rf"`dtype` of an aligned layer must be a policy of floats.*{dtype}.*Example"):
        make(name, alignment=Feedback(), dtype=dtype)
    assert make(name, dtype="mixed_bfloat16", alignment=Feedback()).alignment == Feedback()


def rule_of(name):
    """Returns the rule of the test table with a name."""
    return from_config(RULE_CONFIGS[name])


@functools.cache
def wanted(name, rule="feedback"):
    """Returns W, B, the second backward weights, inputs, upstream and the expected results of a row with a rule.

    The rule determines only the kernel that carries the error.
    """
    rng = np.random.default_rng(sum(map(ord, name)))
    layer = build(name, alignment=Feedback())
    forward, backward = fill(layer, rng)
    x = rng.normal(size=(BATCH, *TABLE[name].inputs)) + 0.3
    upstream = rng.normal(size=call(layer, x.astype(np.float32)).shape)
    fixed = draw_fixed(layer, rule_of(rule), rng)
    carried = carried_kernels(name, rule_of(rule), layer, forward, backward, fixed)
    native = native_copy(name, layer)
    return layer, forward, backward, fixed, x, upstream, expected(name, native, forward, carried, x, upstream)


def alternately(pairs):
    """Returns for each layer the pair with one of its rules, with the first of them for every second layer."""
    rules = {name: [rule for each, rule in pairs if each == name] for name, _ in pairs}
    return {(name, found[-1 if index % 2 else 0]) for index, (name, found) in enumerate(rules.items())}


@functools.cache
def measured(name, rule):
    """Returns a layer of a row with one rule, its outputs, gradients and R in training, and the expected results."""
    same_as = rule if rule in (*FIXED, "pfa") else "feedback"
    source, forward, backward, fixed, x, upstream, results = wanted(name, same_as)
    layer = build(name, alignment=rule_of(rule))
    for connection in connections(layer).values():
        connection.take_initial_kernel()
    for key, connection in connections(layer).items():
        connection.stored_backward_kernel.assign(connection.linear_map.transpose(tf.constant(backward[key])))
        if key in fixed:
            connection.fixed_kernel.assign(fixed[key])
    for ours, other in zip(own_weights(layer), own_weights(source), strict=True):
        ours.assign(other)
    kernels = [connection.kernel for connection in connections(layer).values()]
    kernels += [connection.stored_backward_kernel for connection in connections(layer).values()]
    with forward_pass() as state:
        found = gradients(layer, kernels, x, upstream, training=True)
    return layer, found, state.losses, (forward, backward, fixed, x, results)


@functools.cache
def through_w(name):
    """Returns the error to the inputs of the native layer: backpropagation."""
    layer, *_, x, upstream, _ = wanted(name)
    return gradients(native_copy(name, layer), [], x, upstream)[1]


@pytest.mark.parametrize(("name", "rule"), exhaustive_unless(PAIRS, often(PAIRS)))
class TestEveryRuleOnEveryLayer:
    """Each test compares with the native layer, or with NumPy."""

    def test_the_outputs_are_those_of_the_native_layer(self, name, rule):
        layer, (outputs, *_), _, (*_, x, results) = measured(name, rule)
        assert_close(outputs, results.outputs, "float32")
        assert_close(call(layer, x.astype(np.float32), training=False), results.outputs, "float32")

    def test_the_error_travels_back_through_b(self, name, rule):
        _, (_, dx, *_), _, (*_, results) = measured(name, rule)
        assert_close(dx, results.dx, "float32")
        assert_differs(dx, through_w(name), by=0.1)

    def test_the_forward_kernels_get_their_gradients(self, name, rule):
        layer, (_, _, *found), _, (*_, results) = measured(name, rule)
        for (key, _), gradient in zip(connections(layer).items(), found, strict=False):
            assert_close(gradient, results.gradients[key], "float32")

    def test_only_tied_backward_kernels_get_a_gradient_of_the_task(self, name, rule):
        layer, (_, _, *found), _, (_, backward, fixed, *_) = measured(name, rule)
        every = connections(layer)
        for (key, connection), of_w, of_b in zip(every.items(), found, found[len(every) :], strict=False):
            if rule == "kolen_pollack":
                assert_close(of_b, connection.linear_map.transpose(of_w))
            elif rule == "pfa":  # The gradient is the adjoint of the product with F, here at one kernel.
                product = product_kernel(
                    TABLE[name].maps[key], input_shape(connection), of_w.shape, backward[key], fixed[key]
                )
                overlap = np.vdot(connection.linear_map.transpose(of_b), backward[key])
                assert_close(overlap, np.vdot(of_w, product), "float32")
            else:
                assert of_b is None

    def test_each_connection_has_its_regulariser(self, name, rule):
        layer, _, losses, (forward, backward, *_, results) = measured(name, rule)
        names = {connection.name: key for key, connection in connections(layer).items()}
        assert set(losses) == (set(names) if rule in LEARNING else set())
        for connection, loss in losses.items():
            key = names[connection]
            assert loss.dtype == "float32"
            linear = TABLE[name].maps[key]
            reference = reference_regulariser(
                RULE_CONFIGS[rule], linear, np.asarray(results.inputs[key], float), forward[key], backward[key]
            )
            assert_close(loss, reference, "float32")

    def test_b_is_trainable_if_the_rule_learns_it(self, name, rule):
        layer, *_ = measured(name, rule)
        trainable = {id(weight) for weight in layer.trainable_variables}
        for connection in connections(layer).values():
            assert (id(connection.stored_backward_kernel) in trainable) == (rule in LEARNING)
            shape = connection.linear_map.transposed_shape(tuple(connection.kernel.shape))
            assert tuple(connection.backward_kernel.shape) == shape

    def test_the_configuration_rebuilds_the_layer(self, name, rule):
        layer, *_ = measured(name, rule)
        again = type(layer).from_config(layer.get_config())
        assert again.alignment == layer.alignment == rule_of(rule)
        assert again.get_config() == layer.get_config()
        assert [*again.get_config()][-1] in ("alignment", "parameterization")


# R from fewer examples.

NOISE = {"input": {"noise": "normal", "stddev": 0.5}}


TWO_RULES = [pair for pair in PAIRS if pair[1] in ("information", "weight_mirror")]


@pytest.mark.parametrize(("name", "rule"), exhaustive_unless(TWO_RULES, sorted(alternately(TWO_RULES))[::2]))
def test_r_of_fewer_examples_is_that_of_a_smaller_batch(name, rule):
    """The first 2 of 3 examples, or of 3 sequences with all time steps; J is that of the whole batch.

    One rule with noise, and one with the layer's projection, compiled by XLA.
    """
    options, jit_compile = NOISE if rule == "information" else {}, rule == "weight_mirror"
    source, forward, backward, _, x, _, results = wanted(name)
    maps = {connection.name: key for key, connection in connections(source).items()}

    def measure(count, **more):
        layer = build(name, alignment=from_config({**RULE_CONFIGS[rule], **options, **more}))
        for key, connection in connections(layer).items():
            connection.stored_backward_kernel.assign(connection.linear_map.transpose(tf.constant(backward[key])))
        for ours, other in zip(own_weights(layer), own_weights(source), strict=True):
            ours.assign(other)
        kernels = [connection.stored_backward_kernel for connection in connections(layer).values()]

        def step(x):
            with tf.GradientTape() as tape, forward_pass() as state:
                outputs = call(layer, x, training=True)
                total = sum(state.losses.values())
            return outputs, state.losses, tape.gradient(total, [kernel.value for kernel in kernels])

        whole = jit_compile and count == BATCH
        function = tf.function(step, jit_compile=True, autograph=False) if whole else step
        return function(tf.constant(x[:count], tf.float32))

    outputs, losses, gradients_of_b = measure(BATCH, examples=0.5)
    _, of_two, of_b = measure(2)
    assert_close(outputs, results.outputs, "float32")
    for connection, loss in losses.items():
        key = maps[connection]
        assert_close(loss, of_two[connection], "float32")
        if not options:
            assert_differs(loss, measured(name, rule)[2][connection], by=1e-3)
            seen = np.asarray(results.inputs[key], float)[:2]
            of_numpy = reference_regulariser(
                RULE_CONFIGS[rule], TABLE[name].maps[key], seen, forward[key], backward[key]
            )
            assert_close(loss, of_numpy, "float32")
    for found, other in zip(gradients_of_b, of_b, strict=True):
        assert_close(found, other, "float32")


# B does not change how W is drawn.


@pytest.mark.parametrize("name", TABLE)
def test_w_is_that_of_the_native_layer_with_the_same_global_seed(name):
    def begin():
        keras.utils.clear_session()  # Before Keras 3.13 the seed that follows does not reset `keras.random`.
        keras.utils.set_random_seed(5)

    begin()
    ours, after = build(name, alignment=Feedback()), keras.random.uniform((1,))
    begin()
    native, after_native = build(name, keras.layers), keras.random.uniform((1,))
    for weight, other in zip(own_weights(ours), native.weights, strict=True):
        np.testing.assert_array_equal(weight, other)
    np.testing.assert_array_equal(after, after_native)
    for connection in connections(ours).values():
        w, b = connection.kernel.numpy(), connection.linear_map.transpose(connection.backward_kernel).numpy()
        assert_differs(w, b, by=0.2)
        assert b.std() == pytest.approx(w.std(), rel=0.6)


@pytest.mark.parametrize("name", TABLE)
def test_without_an_alignment_the_layer_is_the_native_one(name):
    layer = build(name)
    rng = np.random.default_rng(1)
    x, native = rng.normal(size=(BATCH, *TABLE[name].inputs)), native_copy(name, layer)
    upstream = rng.normal(size=call(layer, x).shape)
    ours = gradients(layer, layer.trainable_variables, x, upstream, training=True)
    theirs = gradients(native, native.trainable_variables, x, upstream, training=True)
    for each, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(each, other)
    assert layer.losses == []
    assert len(layer.weights) == len(native.weights)
    assert type(layer).from_config(layer.get_config()).alignment is None


# Refusals, at construction.


@pytest.mark.parametrize("name", TABLE)
def test_a_rule_that_is_none_is_refused(name):
    for value in ("symmetric", Feedback, 3):
        with pytest.raises(ValueError, match=r"`alignment` must be a rule.*Received.*Example: alignment="):
            make(name, alignment=value)


@pytest.mark.parametrize("name", [name for name in TABLE if "Conv" in name])
def test_channels_first_is_refused(name):
    with pytest.raises(ValueError, match=r"`data_format` must be \"channels_last\".*'channels_first'.*Example"):
        make(name, alignment=Feedback(), data_format="channels_first")


@pytest.mark.parametrize("name", ["Dense", "EinsumDense", "Conv1D causal", "Conv2D grouped", "Conv3D"])
def test_low_rank_updates_are_refused(name):
    options = {"groups": 1} if "Conv" in name else {}
    with pytest.raises(ValueError, match=r"`lora_rank` must be None with `alignment`.*Received 2.*Example"):
        make(name, alignment=Feedback(), lora_rank=2, **options)


@pytest.mark.parametrize("name", ["LSTM", "GRU"])
def test_cudnn_is_refused(name):
    with pytest.raises(ValueError, match=r"`use_cudnn` of an aligned layer must be.*Received True.*Example"):
        make(name, alignment=Feedback(), use_cudnn=True)
    assert make(name, use_cudnn=True).alignment is None


@pytest.mark.parametrize("name", [name for name, row in TABLE.items() if row.refuses])
def test_a_layer_refuses_the_rules_that_it_cannot_follow(name):
    for rule in RULE_CONFIGS:
        if rule in TABLE[name].refuses:
            with pytest.raises(ValueError, match=rf"`reset_after` must be True with '{rule}'.*Received.*Example"):
                make(name, alignment=rule_of(rule))
        else:
            assert make(name, alignment=rule_of(rule)).alignment == rule_of(rule)


class Scaled(layers.Dense):
    """A user's layer with its own constructor."""

    def __init__(self, units, gain=2.0, **kwargs):
        super().__init__(units, **kwargs)
        self.gain = gain


class Mixin:
    pass


class Mixed(Mixin, layers.Dense):
    pass


class ScaledAgain(Scaled):
    pass


def test_the_signature_of_a_subclass_is_that_of_its_constructor():
    """`help` and editors show it."""
    for kind in (Scaled, ScaledAgain):
        assert str(inspect.signature(kind)) == "(units, gain=2.0, **kwargs)"
    assert inspect.signature(Mixed) == inspect.signature(layers.Dense)
    assert "units" in inspect.signature(Mixed).parameters
