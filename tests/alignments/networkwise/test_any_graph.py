"""The rules for whole networks on any functional graph: operations, several inputs, attention, images of any size."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import exhaustive_unless

from neural_alignment import AlignedModel, convert, layers, models
from neural_alignment.alignments import AlignAda, AlignZero, DirectFeedback, LastLayer, from_config, networkwise_rules
from neural_alignment.alignments.networkwise import TrainingBatch
from neural_alignment.training.costs import network_step
from optimizers import MultiOptimizer

Dense, TimeDistributed = keras.layers.Dense, keras.layers.TimeDistributed


def operations():
    inputs = keras.Input((6,))
    hidden = keras.ops.relu(Dense(8, name="hidden")(inputs))
    gate = keras.ops.tanh(Dense(8, name="gate")(inputs))
    return keras.Model(inputs, Dense(3, name="last")(hidden + gate * hidden))


def two_inputs():
    one, other = keras.Input((6,), name="one"), keras.Input((4,), name="other")
    hidden = [Dense(5, activation="relu", name=f"of_{each.name}")(each) for each in (one, other)]
    return keras.Model([one, other], Dense(3, name="last")(keras.layers.Concatenate()(hidden)))


def any_size(shape=(None, None, 3)):
    inputs = keras.Input(shape)
    x = keras.layers.ReLU()(keras.layers.Conv2D(4, 3, name="first")(inputs))
    x = keras.layers.SeparableConv2D(5, 3, activation="relu", name="second")(x)
    return keras.Model(inputs, Dense(3, name="last")(keras.layers.GlobalAveragePooling2D()(x)))


def transformer():
    return models.vision_transformer(4, 8, 2, 2, 3, (8, 8, 3))


def inverted_residual():
    inputs = keras.Input((6, 6, 4))
    x = keras.layers.ReLU(6.0)(keras.layers.BatchNormalization()(keras.layers.Conv2D(8, 1, name="expand")(inputs)))
    x = keras.layers.ReLU(6.0)(keras.layers.DepthwiseConv2D(3, padding="same", name="depthwise")(x))
    x = keras.layers.Add()([inputs, keras.layers.Conv2D(4, 1, name="project")(x)])
    return keras.Model(inputs, Dense(3, name="last")(keras.layers.GlobalAveragePooling2D()(x)))


@keras.saving.register_keras_serializable("test_any_graph")
class Mixing(keras.layers.Layer):
    """x M, with a weight that is not called kernel."""

    def build(self, input_shape):
        self.matrix = self.add_weight(name="matrix", shape=(input_shape[-1], input_shape[-1]))

    def call(self, inputs):
        return inputs @ self.matrix


@keras.saving.register_keras_serializable("test_any_graph")
class Twice(Mixing):
    """tanh(x M) N."""

    def build(self, input_shape):
        super().build(input_shape)
        self.other = self.add_weight(name="other", shape=(input_shape[-1], input_shape[-1]))

    def call(self, inputs):
        return keras.ops.tanh(super().call(inputs)) @ self.other


def custom():
    """A custom layer whose weight is not called kernel comes after a linear layer, and another one is the readout."""
    inputs = keras.Input((6,))
    x = Mixing(name="mixing")(Dense(3, name="first")(inputs))
    return keras.Model(inputs, Mixing(name="last")(Dense(3, name="second")(x)))


def lstm():
    return models.lstm([5, 4], 3, (6, 4))


GRAPHS = [operations, two_inputs, any_size, transformer, inverted_residual, custom]


def batch(model):
    rng = np.random.default_rng(0)
    x = [rng.normal(size=(4, *(size or 7 for size in each.shape[1:]))).astype("float32") for each in model.inputs]
    return (x if len(x) > 1 else x[0]), rng.normal(size=(4, 3)).astype("float32")


def aligned(native, rule):
    converted = convert(native, rule).model
    model = AlignedModel(converted.inputs if len(converted.inputs) > 1 else converted.input, converted.output)
    model.compile(MultiOptimizer([keras.optimizers.SGD(1.0)]), "mse", run_eagerly=True)
    return model


def pseudogradients(model):
    """Makes a step at the rate 1; returns the change of each trained weight, by its path within the model."""
    before = [weight.numpy() for weight in model.trainable_variables]
    model.train_on_batch(*batch(model))
    return [old - weight.numpy() for old, weight in zip(before, model.trainable_variables, strict=True)]


def gradients(native):
    """Returns the gradients of backpropagation."""
    x, y = batch(native)
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(tf.square(native(x, training=True) - y))
    return [gradient.numpy() for gradient in tape.gradient(loss, [v.value for v in native.trainable_variables])]


CASES = [(graph, rule) for graph in GRAPHS for rule in (AlignZero(), AlignAda())]
CASES.append((lstm, AlignZero()))


@pytest.mark.parametrize(("graph", "rule"), CASES, ids=lambda each: getattr(each, "__name__", None) or each.rule)
def test_the_first_step_of_a_frozen_rule_is_that_of_backpropagation(graph, rule):
    native = graph()
    model = aligned(native, rule)
    expected = gradients(native)
    for found, gradient, weight in zip(pseudogradients(model), expected, native.trainable_variables, strict=True):
        scale = max(np.abs(gradient).max(), 1e-3)
        np.testing.assert_allclose(found, gradient, rtol=1e-3, atol=1e-3 * scale, err_msg=weight.path)


@pytest.mark.parametrize("graph", GRAPHS)
def test_without_maps_direct_feedback_sends_no_error_below_the_readout(graph):
    """No path goes around the cuts: with maps of zero only the readout has a gradient."""
    share = graph is any_size
    model = aligned(graph(), DirectFeedback(share_space=share))
    assert any(np.abs(each).max() > 1e-6 for each in pseudogradients(model)[:-2])
    for weight in model.feedback_weights.weights:
        weight.assign(0.0 * weight)
    changes, size = pseudogradients(model), len(model.layers[-1].trainable_variables)
    assert all(not each.any() for each in changes[:-size])
    assert all(np.abs(each).max() > 1e-6 for each in changes[-size:])


@pytest.mark.parametrize("rule", [DirectFeedback(), AlignAda()], ids=lambda rule: rule.rule)
def test_a_custom_layer_is_cut_at_its_inputs_and_refused_if_it_has_several_kernels(rule):
    model = aligned(custom(), rule)
    assert "mixing" in rule.cuts(model).inputs
    inputs = keras.Input((6,))
    twice = keras.Model(inputs, Dense(3)(Twice(name="twice")(Dense(4)(inputs))))
    message = r"at most one weight of a custom layer\. Received Twice 'twice' with 'matrix', 'other'\. Example"
    with pytest.raises(ValueError, match=message):
        aligned(twice, rule)
    assert aligned(twice, AlignZero()).bound_rule is not None


def test_the_readout_may_be_a_custom_layer():
    changes = pseudogradients(aligned(custom(), LastLayer()))
    assert all(not each.any() for each in changes[:-1])
    assert changes[-1].any()


def test_the_projections_of_attention_get_the_error_of_their_own_maps():
    """The error at the output of `query` is M dJ/df, so the gradient of its bias is the sum of it."""
    model = aligned(transformer(), DirectFeedback())
    x, y = batch(model)
    outputs = model(x).numpy()
    upstream = 2.0 * (outputs - y) / y.size
    names = [name for name, _ in model.bound_rule._rule._sizes(model)]
    number = names.index("attention_1.query")
    matrix = model.feedback_weights.weights[number].numpy()  # (positions, heads, size, classes)
    paths = [weight.path for weight in model.trainable_variables]
    bias = next(place for place, path in enumerate(paths) if path.endswith("attention_1/query/bias"))
    expected = np.einsum("phdc,bc->hd", matrix, upstream)
    np.testing.assert_allclose(pseudogradients(model)[bias], expected, rtol=1e-4, atol=1e-6)


def test_shared_maps_do_not_depend_on_whether_the_size_is_known():
    known, unknown = (
        aligned(any_size(shape), DirectFeedback(share_space=True)) for shape in ((7, 7, 3), (None, None, 3))
    )
    for one, other in zip(known.trainable_variables, unknown.trainable_variables, strict=True):
        other.assign(one)
    for one, other in zip(pseudogradients(known), pseudogradients(unknown), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match=r"'re_lu\w*' of shape \(None, None, None, 4\).*Example: share_space=True"):
        aligned(any_size(), DirectFeedback())


MASK = np.array([[1, 1, 0, 1, 0], [1, 1, 1, 1, 1], [0, 0, 1, 1, 1], [1, 0, 0, 0, 0]], bool)


def masked_sequences():
    """Masked steps are left out by the attention and by the mean over steps."""
    inputs = keras.Input((5, 3))
    x = Dense(4, activation="tanh", name="hidden")(Dense(4, name="linear")(keras.layers.Masking()(inputs)))
    x = keras.layers.Activation("relu")(Dense(4, name="another")(x))
    x = keras.layers.MultiHeadAttention(2, 2, name="attention")(x, x)
    return keras.Model(inputs, Dense(3, name="last")(keras.layers.GlobalAveragePooling1D()(x)))


def masked_pass(native, rule):
    """Returns the pseudogradients of a batch with masked steps by the path of the weight, the batch and dJ/df."""
    model = aligned(native, rule)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(4, 5, 3)).astype("float32"), rng.normal(size=(4, 3)).astype("float32")
    x[~MASK] = 0.0
    outputs, backward = rule.forward(model, model.bound_rule._kept, TrainingBatch(x, y))
    np.testing.assert_allclose(outputs, native(x), rtol=1e-5, atol=1e-6)
    upstream = 2.0 * (outputs.numpy() - y) / y.size
    paths = [weight.path for weight in model.trainable_variables]
    return model, dict(zip(paths, backward(tf.constant(upstream)), strict=True)), (x, y), upstream


@pytest.mark.parametrize("share", [False, True], ids=["map", "shared map"])
def test_masks_pass_the_cuts_of_direct_feedback_and_masked_steps_get_no_error(share):
    rule = DirectFeedback(share_space=share)
    model, changes, _, upstream = masked_pass(masked_sequences(), rule)
    names = [name for name, _ in rule._sizes(model)]
    # The first cut of `hidden` is at its inputs, the outputs of `linear`.
    matrix = model.feedback_weights.weights[names.index("hidden")].numpy()
    matrix = np.broadcast_to(matrix, (5, *matrix.shape[-2:]))
    expected = np.einsum("puc,bc,bp->u", matrix, upstream, MASK.astype(float))
    np.testing.assert_allclose(changes["linear/bias"], expected, rtol=1e-4, atol=1e-6)
    assert np.abs(expected - np.einsum("puc,bc->u", matrix, upstream)).max() > 1e-3


def test_masks_pass_the_cuts_of_align_ada_whose_first_step_is_that_of_backpropagation():
    native = masked_sequences()
    _, changes, (x, y), _ = masked_pass(native, AlignAda())
    variables = native.trainable_variables
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(tf.square(native(x, training=True) - y))
    expected = tape.gradient(loss, [variable.value for variable in variables])
    for variable, gradient in zip(variables, expected, strict=True):
        np.testing.assert_allclose(changes[variable.path], gradient, rtol=1e-3, atol=1e-5, err_msg=variable.path)


MASKED = [(rule, minibatches) for rule in (None, LastLayer(), AlignZero(), AlignAda()) for minibatches in (1, 2)]


@pytest.mark.parametrize(
    ("rule", "minibatches"),
    exhaustive_unless(MASKED, (MASKED[1], MASKED[2], MASKED[7])),
    ids=lambda value: getattr(value, "rule", None),
)
def test_masked_steps_of_the_outputs_count_neither_in_j_nor_in_the_metrics(rule, minibatches):
    rng = np.random.default_rng(1)
    mask = np.array([[1, 1, 0, 1, 0], [1, 1, 1, 0, 0], [0, 0, 1, 1, 1], [1, 0, 1, 0, 1]], bool)
    x, y = rng.normal(size=(4, 5, 3)).astype("float32"), rng.normal(size=(4, 5, 2)).astype("float32")
    x[~mask], y[~mask] = 0.0, 100.0
    inputs = keras.Input((5, 3))
    hidden = layers.Dense(4, activation="tanh", alignment=rule)(keras.layers.Masking()(inputs))
    model = AlignedModel(inputs, layers.Dense(2, alignment=rule)(hidden))
    model.compile(keras.optimizers.SGD(0.0), "mse", metrics=["mae"], jit_compile=False, minibatches=minibatches)
    error = (model.predict(x, verbose=0) - y)[mask]
    logs = model.train_on_batch(x, y, return_dict=True)
    np.testing.assert_allclose([logs["loss"], logs["mae"]], [np.square(error).mean(), np.abs(error).mean()], rtol=1e-5)


@pytest.mark.parametrize("rule", exhaustive_unless(networkwise_rules(), ("align_ada", "dfa")))
def test_a_single_output_may_be_in_a_dictionary_or_a_list(rule):
    ends = []
    for pack in (lambda each: each, lambda each: {"out": each}, lambda each: [each]):
        keras.utils.set_random_seed(1)
        chosen = from_config({"rule": rule})
        inputs = keras.Input((3,))
        hidden = layers.Dense(4, activation="tanh", alignment=chosen, name="hidden")(inputs)
        model = AlignedModel(inputs, pack(layers.Dense(2, alignment=chosen, name="out")(hidden)))
        model.compile(keras.optimizers.SGD(0.1), pack("mse"), jit_compile=False)
        x, y = np.linspace(-1, 1, 12, dtype="float32").reshape(4, 3), np.eye(2, dtype="float32")[[0, 1, 1, 0]]
        start = model.get_weights()
        for _ in range(2):
            model.train_on_batch(x, pack(y), sample_weight=pack(np.array([1.0, 2.0, 0.5, 1.0], "float32")))
        assert any((a != b).any() for a, b in zip(start, model.get_weights(), strict=True))
        ends.append(model.get_weights())
    for end in ends[1:]:
        for a, b in zip(end, ends[0], strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("rule", [DirectFeedback(), AlignAda()], ids=lambda rule: rule.rule)
def test_rules_that_cut_refuse_recurrent_layers_of_keras(rule):
    with pytest.raises(
        ValueError, match=r"needs a network without recurrent layers of Keras.*LSTM 'lstm1'.*align_zero"
    ):
        aligned(lstm(), rule)


def test_the_readout_of_an_lstm_is_trained_alone_with_last_layer():
    changes = pseudogradients(aligned(lstm(), LastLayer()))
    assert all(not each.any() for each in changes[:-2])
    assert changes[-2].any()


def test_dropout_of_a_recurrent_layer_is_refused_by_frozen_rules_and_none_is_accepted():
    inputs = keras.Input((5, 3))
    for rate in (0.0, 0.2):
        native = keras.Model(inputs, Dense(3)(keras.layers.Bidirectional(keras.layers.GRU(4, dropout=rate))(inputs)))
        if rate:
            with pytest.raises(ValueError, match="no layer that draws random numbers"):
                aligned(native, AlignZero())
        else:
            assert aligned(native, AlignZero()).bound_rule is not None


def same(layer):
    """Returns a layer itself, in place of a wrapper."""
    return layer


def per_step(apply):
    """Dense layers and nonlinearities of every kind at each of two time steps."""
    inputs = keras.Input((2, 6))
    x = apply(Dense(5, activation="tanh", name="ends_nonlinear"))(inputs)
    x = apply(keras.layers.Activation("tanh"))(apply(Dense(5, name="linear"))(x))
    return keras.Model(inputs, Dense(3, name="last")(keras.layers.Flatten()(apply(Dense(4, name="bare"))(x))))


def separable_once(apply):
    """A separable convolution at a single time step."""
    inputs = keras.Input((1, 5, 4))
    x = inputs if apply is TimeDistributed else keras.layers.Reshape((5, 4))(inputs)
    x = apply(keras.layers.SeparableConv1D(3, 2, activation="tanh", name="separable"))(x)
    x = apply(keras.layers.SeparableConv1D(3, 2, activation="tanh", name="another"))(x)
    return keras.Model(inputs, Dense(3, name="last")(keras.layers.Flatten()(x)))


WRAPPED = [(per_step, DirectFeedback()), (per_step, AlignAda()), (separable_once, AlignAda())]


@pytest.mark.parametrize(("graph", "rule"), WRAPPED, ids=["per_step-dfa", "per_step-ada", "separable-ada"])
def test_a_layer_in_time_distributed_is_cut_where_it_is_cut_without_it(graph, rule):
    plain, wrapped = aligned(graph(same), rule), aligned(graph(TimeDistributed), rule)
    for one, other in zip(plain.trainable_variables, wrapped.trainable_variables, strict=True):
        other.assign(one)
    for model in (plain, wrapped):
        model.optimizer.learning_rate = 0.3
    for _ in range(3):  # At the first step a frozen network is the current one.
        changes = [pseudogradients(model) for model in (plain, wrapped)]
    for one, other in zip(*changes, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-6)


def test_direct_feedback_refuses_a_layer_that_is_cut_inside_in_time_distributed():
    with pytest.raises(ValueError, match=r"'dfa' needs an error for each projection.*SeparableConv1D 'separable'"):
        aligned(separable_once(TimeDistributed), DirectFeedback())


@pytest.mark.parametrize("rule", [DirectFeedback(), AlignAda()], ids=lambda rule: rule.rule)
def test_a_block_of_several_aligned_layers_is_refused_although_it_has_the_rule(rule):
    class Block(keras.layers.Layer):
        def __init__(self):
            super().__init__(name="block")
            self.alignment = rule
            self.first, self.second = (layers.Dense(4, activation="relu", alignment=rule) for _ in range(2))

        def call(self, inputs):
            return self.second(self.first(inputs))

    inputs = keras.Input((6,))
    outputs = layers.Dense(3, alignment=rule)(Block()(layers.Dense(4, alignment=rule)(inputs)))
    with pytest.raises(ValueError, match=r"at most one weight of a custom layer\. Received Block 'block'"):
        AlignedModel(inputs, outputs)


def test_the_cost_of_a_step_is_counted_with_attention_and_several_inputs():
    for graph in (transformer, two_inputs):
        last, zero = (network_step(aligned(graph(), rule)) for rule in (LastLayer(), AlignZero()))
        assert 0 < last < zero
