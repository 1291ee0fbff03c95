"""Attention: every option against the native layer, whose projections send the error back through B."""

from __future__ import annotations

import inspect
import itertools
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from explicit_maps import ExplicitMap, einsum
from helpers import (
    LEARNING,
    RULE_CONFIGS,
    assert_close,
    assert_differs,
    exhaustive_unless,
    needs_functions,
    reference_regulariser,
)
from layer_table import carry_back, connections, fill, own_weights

from neural_alignment import layers
from neural_alignment.alignments import Feedback, forward_pass, from_config
from neural_alignment.layers.attention import dense_sublayers
from neural_alignment.training import AlignedModel

BATCH, TARGETS, SOURCES, FEATURES = 2, 3, 4, 5

MULTI, GROUPED = {"num_heads": 2, "key_dim": 3}, {"head_dim": 3, "num_query_heads": 4, "num_key_value_heads": 2}

KINDS = {"MultiHeadAttention": MULTI, "GroupQueryAttention": GROUPED}

every_kind = pytest.mark.parametrize("kind", KINDS)

SOME = np.array([[[1, 1, 0, 1], [0, 1, 1, 1], [1, 0, 0, 1]], [[1, 1, 1, 1], [0, 0, 1, 0], [1, 1, 0, 0]]], bool)

OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "no bias": ({"use_bias": False}, {}),
    "gate": ({"use_gate": True}, {}),
    "mask": ({}, {"attention_mask": SOME}),
    "causal": ({}, {"use_causal_mask": True}),
    "scores": ({}, {"return_attention_scores": True}),
}

CASES = {
    **{f"multi {name}": ("MultiHeadAttention", {**MULTI, **own}, call) for name, (own, call) in OPTIONS.items()},
    **{f"grouped {name}": ("GroupQueryAttention", {**GROUPED, **own}, call) for name, (own, call) in OPTIONS.items()},
    "multi value_dim, output_shape": ("MultiHeadAttention", {**MULTI, "value_dim": 4, "output_shape": 7}, {}),
    "multi output_shape of two axes": ("MultiHeadAttention", {**MULTI, "output_shape": (2, 3)}, {}),
    "multi attention_axes": ("MultiHeadAttention", {**MULTI, "attention_axes": (2,)}, {}),
    "multi two attention_axes": ("MultiHeadAttention", {**MULTI, "attention_axes": (1, 2)}, {}),
}


def signals(rng, name="", dtype=np.float64):
    """Returns query, value and key of a case."""
    target, source = (BATCH, TARGETS, FEATURES), (BATCH, SOURCES, FEATURES)
    if "attention_axes" in name:
        target, source = (BATCH, 2, TARGETS, FEATURES), (BATCH, 2, SOURCES, FEATURES)
    return [rng.normal(size=shape).astype(dtype) for shape in (target, source, source)]


def pair(kind, options, arrays, rule=None, **more):
    """Returns an aligned layer, B by projection in the layout of W, and the native layer with the same weights."""
    if "use_gate" in options and "use_gate" not in inspect.signature(getattr(keras.layers, kind)).parameters:
        pytest.skip("attention of Keras has a gate since version 3.14")
    aligned = getattr(layers, kind)(**options, alignment=rule or Feedback(), name="layer", **more)
    native = getattr(keras.layers, kind)(**options, **more)
    for layer in (aligned, native):
        layer(*arrays)
    _, backward = fill(aligned, np.random.default_rng(4))
    for weight, other in zip(native.weights, own_weights(aligned), strict=True):
        weight.assign(other)
    return aligned, backward, native


def measured(layer, arrays, upstream, **call):
    """Returns outputs, and gradients to query, value, key and the kernels of the projections."""
    tensors = [tf.constant(each) for each in arrays]
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        outputs = layer(*tensors, training=True, **call)
        outputs = outputs[0] if isinstance(outputs, tuple) else outputs
        total = tf.reduce_sum(outputs * upstream)
    return outputs, tape.gradient(total, [*tensors, *(dense.kernel.value for dense in dense_sublayers(layer).values())])


def assert_back_through_b(aligned, backward, native, arrays, upstream, **call):
    """Compares an aligned layer with the native one whose dense layers send the error back through B.

    Returns:
        The outputs, and the errors to query, value and key.
    """
    carry_back(native, backward)
    expected, wanted = measured(native, arrays, upstream, **call)
    found, ours = measured(aligned, arrays, upstream, **call)
    assert_close(found, expected)
    for gradient, other in zip(ours, wanted, strict=True):
        assert_close(gradient, other)
    return found, ours[:3]


class Cubes(keras.regularizers.Regularizer):
    def __call__(self, weight):
        return keras.ops.sum(weight**3)


class Clipped(keras.constraints.Constraint):
    def __call__(self, weight):
        return keras.ops.clip(weight, -0.1, 0.1)


OBJECTS = {
    "kernel_regularizer": lambda: lambda weight: keras.ops.sum(weight * weight),
    "bias_regularizer": Cubes,
    "activity_regularizer": lambda: lambda outputs: keras.ops.sum(outputs**4),
    "kernel_constraint": Clipped,
    "bias_constraint": Clipped,
}
"""Arguments that Keras cannot serialise, or not deserialise."""


@needs_functions
@every_kind
@pytest.mark.parametrize("rule", [None, Feedback()])
def test_projections_have_the_objects_of_the_layer(rng, kind, rule):
    objects = {name: make() for name, make in OBJECTS.items()}
    arrays = signals(rng, dtype=np.float32)
    aligned = getattr(layers, kind)(**KINDS[kind], **objects, alignment=rule)
    native = getattr(keras.layers, kind)(**KINDS[kind], **objects)
    for layer in (aligned, native):
        layer(*arrays)
    for weight, other in zip(native.weights, own_weights(aligned), strict=True):
        weight.assign(other)
    assert_close(aligned(*arrays), native(*arrays))
    assert len(aligned.losses) == len(native.losses) > 8
    np.testing.assert_allclose(sorted(aligned.losses), sorted(native.losses), rtol=1e-5)
    for ours, theirs in zip(dense_sublayers(aligned).values(), dense_sublayers(native).values(), strict=True):
        for name in objects:
            assert getattr(ours, name) is getattr(theirs, name), name
        assert ours.kernel.constraint is theirs.kernel.constraint


@pytest.mark.parametrize("case", CASES)
def test_every_projection_sends_the_error_through_its_b(float64, rng, case):
    kind, options, call = CASES[case]
    arrays = signals(rng, case)
    aligned, backward, native = pair(kind, options, arrays)
    outputs = native(*arrays, **call)
    shape = (outputs[0] if isinstance(outputs, tuple) else outputs).shape
    upstream = rng.normal(size=shape)
    _, true = measured(native, arrays, upstream, **call)
    _, ours = assert_back_through_b(aligned, backward, native, arrays, upstream, **call)
    for gradient, through_w in zip(ours, true, strict=False):
        assert_differs(gradient, through_w, by=0.05)


@pytest.mark.parametrize(
    ("kind", "name"),
    exhaustive_unless(
        itertools.product(KINDS, ["query", "key", "value", "attention_output", "gate"]),
        lambda case: case[0] == "GroupQueryAttention" or case[1] == "query",
    ),
)
def test_each_b_alone_changes_the_error(float64, rng, kind, name):
    arrays = signals(rng)
    aligned, *_ = pair(kind, {**KINDS[kind], "use_gate": True}, arrays)
    upstream = rng.normal(size=aligned(*arrays).shape)
    before = measured(aligned, arrays, upstream)
    connection = connections(aligned)[name]
    connection.stored_backward_kernel.assign(-connection.stored_backward_kernel)
    after = measured(aligned, arrays, upstream)
    np.testing.assert_array_equal(before[0], after[0])
    reached = {"query": [0], "value": [1], "key": [2], "gate": [0], "attention_output": [0, 1, 2]}[name]
    for index, (one, other) in enumerate(zip(before[1][:3], after[1][:3], strict=True)):
        if index in reached:
            assert_differs(one, other, by=0.05)
        else:
            np.testing.assert_array_equal(one, other)


@every_kind
def test_masks_of_the_inputs_reach_the_aligned_layer(float64, rng, kind):
    arrays = signals(rng)
    masks = {
        "query_mask": np.array([[1, 1, 0], [1, 0, 0]], bool),
        "value_mask": np.array([[1, 1, 0, 0], [1, 1, 1, 0]], bool),
    }
    aligned, backward, native = pair(kind, KINDS[kind], arrays)
    upstream = rng.normal(size=aligned(*arrays).shape)
    found, _ = assert_back_through_b(aligned, backward, native, arrays, upstream, **masks)
    assert_differs(found, aligned(*arrays), by=0.01)


@every_kind
def test_dropout_of_the_scores_is_that_of_the_native_layer_with_the_same_seed(rng, kind):
    arrays = signals(rng, dtype=np.float32)
    aligned, _, native = pair(kind, {**KINDS[kind], "dropout": 0.5, "seed": 3}, arrays)
    dropped = aligned(*arrays, training=True)
    assert_close(dropped, native(*arrays, training=True))
    assert_close(aligned(*arrays, training=False), native(*arrays, training=False))
    assert_differs(dropped, aligned(*arrays, training=False), by=0.05)


@pytest.mark.parametrize("rule", LEARNING)
def test_projections_are_known_as_parts_of_the_layer(float64, rng, rule):
    """R of each reads its own inputs: of the output projection, the scores times the values, after the gate."""
    arrays = signals(rng)
    options = {**MULTI, "use_gate": True}
    aligned, backward, native = pair("MultiHeadAttention", options, arrays, from_config(RULE_CONFIGS[rule]))
    inputs = carry_back(native, backward)
    native(*arrays)
    with forward_pass() as state:
        aligned(*arrays, training=True)
    assert set(state.losses) == {f"layer.{name}" for name in ("query", "key", "value", "attention_output", "gate")}
    for name, connection in connections(aligned).items():
        assert connection.name == f"layer.{name}"
        linear = ExplicitMap(einsum(connection.linear_map.equation))
        expected = reference_regulariser(
            RULE_CONFIGS[rule], linear, inputs[name].numpy(), connection.kernel.numpy(), backward[name]
        )
        assert_close(state.losses[connection.name], expected)


def test_two_attention_layers_in_a_model_have_different_names(rng):
    rule = from_config(RULE_CONFIGS["information"])
    inputs = keras.Input((TARGETS, FEATURES))
    x = layers.MultiHeadAttention(**MULTI, alignment=rule, name="first")(inputs, inputs)
    x = layers.GroupQueryAttention(**GROUPED, alignment=rule, name="second")(x, x)
    model = AlignedModel(inputs, keras.layers.Dense(1)(x))
    with forward_pass() as state:
        model(rng.normal(size=(BATCH, TARGETS, FEATURES)).astype(np.float32), training=True)
    parts = ("query", "key", "value", "attention_output")
    assert set(state.losses) == {f"{layer}.{part}" for layer in ("first", "second") for part in parts}


def test_backward_kernels_are_independent_of_each_other_and_of_w():
    layer = layers.MultiHeadAttention(
        4, 8, alignment=Feedback(), kernel_initializer=keras.initializers.GlorotUniform(1)
    )
    layer.build((None, 3, 32), (None, 3, 32))
    drawn = {name: (each.kernel, each.backward_kernel) for name, each in connections(layer).items()}
    flat = [np.ravel(kernel) for name in ("query", "key", "value") for kernel in drawn[name]]
    flat = [flat[0], *flat[1::2]]  # W is the same in all three: the initializer has a seed.
    correlations = np.corrcoef(flat) - np.eye(4)
    assert np.abs(correlations).max() < 4 / np.sqrt(flat[0].size)


def test_rules_of_whole_networks_are_not_refused_at_construction_but_in_training(rng):
    layer = layers.MultiHeadAttention(**MULTI, alignment=from_config({"rule": "align_zero"}), name="layer")
    arrays = signals(rng, dtype=np.float32)
    layer(*arrays)
    with pytest.raises(ValueError, match=r"'align_zero' is a rule for a whole network.*Example"):
        layer(*arrays, training=True)
