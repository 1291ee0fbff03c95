"""No rule for a whole network trains a weight by an error that has passed through the current W.

A change of W that leaves all outputs of its layer unchanged changes the gradients of backpropagation to all weights
before the layer, and no update of these rules.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import assert_close, for_each

from neural_alignment import AlignedModel, convert
from neural_alignment.alignments import forward_pass, from_config, networkwise_rules
from neural_alignment.alignments.networkwise import TrainingBatch
from neural_alignment.layers import Dense as AlignedDense
from neural_alignment.models.rnn import Recurrent

Dense, Activation, Flatten = keras.layers.Dense, keras.layers.Activation, keras.layers.Flatten

BATCH, CLASSES = 2, 3


@keras.saving.register_keras_serializable("test_weight_transport")
class Token(keras.layers.Layer):
    """Adds a learned row to each sequence."""

    def build(self, input_shape):
        self.row = self.add_weight(name="row", shape=(1, 1, input_shape[-1]), initializer="random_normal")

    def call(self, inputs):
        return keras.ops.concatenate([keras.ops.repeat(self.row, keras.ops.shape(inputs)[0], 0), inputs], axis=1)


@keras.saving.register_keras_serializable("test_weight_transport")
class Scale(keras.layers.Layer):
    """Multiplies each unit by a learned gain."""

    def build(self, input_shape):
        self.gain = self.add_weight(name="gain", shape=(input_shape[-1],), initializer="ones")

    def call(self, inputs):
        return inputs * self.gain


def embedding():
    inputs = keras.Input((3,), dtype="int32")
    return inputs, Dense(5, "tanh")(Flatten()(keras.layers.Embedding(7, 4)(inputs)))


def wrapped_embedding():
    inputs = keras.Input((2, 2), dtype="int32")
    x = keras.layers.TimeDistributed(keras.layers.Embedding(7, 4))(inputs)
    return inputs, Dense(5, "tanh")(Flatten()(x))


def frozen_embedding():
    """Its weights can be trained later."""
    inputs = keras.Input((3,), dtype="int32")
    layer = keras.layers.Embedding(7, 4, trainable=False)
    return inputs, Dense(5, "tanh")(Flatten()(layer(inputs)))


def embedding_before_nonlinearity():
    inputs = keras.Input((3,), dtype="int32")
    return inputs, Flatten()(Activation("tanh")(keras.layers.Embedding(7, 4)(inputs)))


def input_normalization():
    inputs = keras.Input((6,))
    return inputs, Dense(5)(keras.layers.BatchNormalization()(inputs))


def prelu():
    inputs = keras.Input((6,))
    x = keras.layers.PReLU(alpha_initializer="random_normal")(inputs)
    return inputs, keras.layers.PReLU(alpha_initializer="random_normal")(Dense(5)(x))


def token():
    inputs = keras.Input((2, 6))
    return inputs, Flatten()(Dense(5, "relu")(Token()(inputs)))


def scale():
    inputs = keras.Input((6,))
    return inputs, Scale()(Dense(6, "tanh")(Scale()(inputs)))


def normalization_after_nonlinearity():
    inputs = keras.Input((6,))
    x = keras.layers.BatchNormalization()(Dense(6, "relu")(inputs))
    x = keras.layers.LayerNormalization()(Activation("tanh")(Dense(6)(x)))
    return inputs, Dense(6, "tanh")(keras.layers.Dropout(0.0)(x))


def residual():
    inputs = keras.Input((6,))
    x = keras.layers.BatchNormalization()(Activation("tanh")(Dense(6)(inputs)))
    return inputs, keras.layers.Add()([x, Activation("tanh")(Dense(6)(x))])


def shared():
    inputs = keras.Input((6,))
    layer, nonlinearity = Dense(6), Activation("tanh")
    return inputs, nonlinearity(layer(keras.layers.BatchNormalization()(nonlinearity(layer(inputs)))))


def linear():
    inputs = keras.Input((6,))
    return inputs, Dense(6)(Dense(6)(inputs))


def convolutions():
    inputs = keras.Input((2, 2, 12))
    x = keras.layers.BatchNormalization()(keras.layers.Conv2D(12, 1, activation="tanh")(inputs))
    x = keras.layers.SeparableConv2D(12, 1, activation="tanh")(x)
    return inputs, Flatten()(keras.layers.BatchNormalization()(x))


def attention():
    inputs = keras.Input((2, 6))
    x = keras.layers.LayerNormalization()(keras.layers.MultiHeadAttention(1, 8)(*[Token()(inputs)] * 2))
    return inputs, keras.layers.GlobalAveragePooling1D()(x)


HIDDEN = [
    embedding, wrapped_embedding, frozen_embedding, embedding_before_nonlinearity, input_normalization, prelu, token,
    scale, normalization_after_nonlinearity, residual, shared, linear, convolutions, attention,
]  # fmt: skip
"""The layers before a dense readout."""


def separable_readout():
    inputs = keras.Input((2, 6))
    x = keras.layers.SeparableConv1D(CLASSES, 1)(keras.layers.BatchNormalization()(inputs))
    return inputs, keras.layers.GlobalAveragePooling1D()(x)


def attention_readout():
    inputs = keras.Input((2, 6))
    x = keras.layers.MultiHeadAttention(1, 8, output_shape=CLASSES)(*[Token()(inputs)] * 2)
    return inputs, keras.layers.GlobalAveragePooling1D()(x)


WHOLE = [separable_readout, attention_readout]


def network(graph, rule):
    """Returns an aligned model whose weights are random, its inputs and targets."""
    keras.utils.set_random_seed(3)
    inputs, outputs = graph()
    native = keras.Model(inputs, outputs if graph in WHOLE else Dense(CLASSES)(outputs))
    model = convert(native, rule).model
    model = AlignedModel(model.input, model.output)
    rng = np.random.default_rng(1)
    for weight in model.trainable_variables:
        weight.assign(weight + 0.3 * rng.normal(size=weight.shape))
    if "int" in inputs.dtype:
        x = rng.integers(0, 7, size=(BATCH, *inputs.shape[1:]))
    else:
        x = rng.normal(size=(BATCH, *inputs.shape[1:]))
    return model, tf.constant(x), tf.constant(rng.integers(0, CLASSES, size=BATCH))


def kernels_with_inputs(model, x):
    """Returns the linear maps and all inputs of each kernel, by its variable."""
    found = {}

    def probe(layer, inputs, outputs):
        connection = layer.make_connections()[-1] if hasattr(layer, "make_connections") else layer
        found.setdefault(id(connection.kernel), (connection.kernel, connection.linear_map, []))[2].append(inputs)
        return outputs

    with forward_pass(probe=probe):
        model(x, training=True)
    return list(found.values())


def silent_change(kernel, linear_map, signals, rng):
    """Returns a random change of a kernel that changes none of its outputs."""
    shape = tuple(kernel.shape)
    entries = np.eye(np.prod(shape)).reshape(-1, *shape)
    columns = [
        np.concatenate([np.ravel(linear_map.project(signal, tf.constant(entry))) for signal in signals])
        for entry in entries
    ]
    _, sizes, directions = np.linalg.svd(np.stack(columns, axis=1))
    silent = directions[np.sum(sizes > 1e-9) :]
    return (rng.normal(size=len(silent)) @ silent).reshape(shape)


def updates(model, rule, x, y, upstream):
    """Returns the pseudogradients of all trained variables."""
    with forward_pass():
        outputs, backward = rule.forward(model, model.bound_rule._kept, TrainingBatch(x, y))
        return outputs, [tf.convert_to_tensor(each) for each in backward(upstream)]


def backpropagated(model, x, upstream):
    """Returns the gradients of backpropagation."""
    with forward_pass(), tf.GradientTape() as tape:
        outputs = model(x, training=True)
    sources = [variable.value for variable in model.trainable_variables]
    found = tape.gradient(outputs, sources, output_gradients=upstream, unconnected_gradients="zero")
    return [tf.convert_to_tensor(each) for each in found]


CASES = [
    (graph, name)
    for graph in [*HIDDEN, *WHOLE]
    for name in networkwise_rules()
    if not (graph in WHOLE and name == "last_layer")  # It trains all kernels of the last layer by their true gradients.
]


OFTEN = [
    (graph, name)
    for graph, name in CASES
    if graph in (residual, attention) or (name == "dfa" and graph in (wrapped_embedding, shared, attention_readout))
]
"""The cases of `make test`: two networks with every rule, and some with the rule that makes its cuts itself."""


@for_each("graph, name", OFTEN)
def test_no_update_depends_on_the_part_of_w_that_the_outputs_do_not_show(float64, graph, name):
    assert_no_transport(graph, name)


@pytest.mark.exhaustive
@for_each("graph, name", [case for case in CASES if case not in OFTEN])
def test_nor_in_the_other_networks(float64, graph, name):
    assert_no_transport(graph, name)


def assert_no_transport(graph, name):
    """Fails if a change of W that its outputs do not show changes an update, or none of backpropagation."""
    rule = from_config({"rule": name})
    model, x, y = network(graph, rule)
    model.bound_rule.start()
    rng = np.random.default_rng(2)
    upstream = tf.constant(rng.normal(size=(BATCH, CLASSES)))
    outputs, before = updates(model, rule, x, y, upstream)
    true = backpropagated(model, x, upstream)
    assert any(np.abs(each).max() > 1e-3 for each in before)
    moved = 0
    for kernel, linear_map, signals in kernels_with_inputs(model, x):
        change, value = silent_change(kernel, linear_map, signals, rng), kernel.numpy()
        if not change.any():  # A depthwise kernel.
            continue
        kernel.assign(value + change)
        same, after = updates(model, rule, x, y, upstream)
        assert_close(same, outputs)
        for one, other in zip(before, after, strict=True):
            assert_close(other, one)
        now = backpropagated(model, x, upstream)
        moved += any(np.abs(one - other).max() > 1e-3 for one, other in zip(true, now, strict=True))
        kernel.assign(value)
    assert moved  # With backpropagation the test fails.


@pytest.mark.parametrize("name", ["dfa", "align_ada"])
def test_weights_that_are_frozen_now_may_be_trained_later(float64, name):
    rule = from_config({"rule": name})
    model, x, y = network(frozen_embedding, rule)
    (layer,) = (each for each in model.layers if isinstance(each, keras.layers.Embedding))
    frozen, upstream = rule.cuts(model), tf.ones((BATCH, CLASSES), tf.float64)
    assert len(updates(model, rule, x, y, upstream)[1]) == 4
    layer.trainable = True
    assert rule.cuts(model) == frozen
    if name == "dfa":  # Align-ada has no W(0) of it.
        assert len(updates(model, rule, x, y, upstream)[1]) == 5


@pytest.mark.parametrize("name", ["dfa", "drtp"])
def test_direct_feedback_refuses_a_layer_whose_error_travels_back_through_time(name):
    rule = from_config({"rule": name})
    inputs = keras.Input((4, 1))
    states = Recurrent(5, BATCH, alignment=rule, name="recurrent")(inputs)
    with pytest.raises(ValueError, match=r"needs a network without recurrent layers.*Received Recurrent 'recurrent'"):
        AlignedModel(inputs, AlignedDense(CLASSES, alignment=rule)(states[:, -1]))
