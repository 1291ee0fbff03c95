"""Turning an existing model into an aligned one."""

import functools
import gc
import pathlib
import re
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import distance, needs_functions

from neural_alignment import layers
from neural_alignment.alignments import Activation, AlignAda, AlignProp, Feedback, Symmetric
from neural_alignment.errors import ConfigError
from neural_alignment.keras_internals import all_layers
from neural_alignment.layers import Conv2D, Dense
from neural_alignment.models import BatchAxisNormalization, convert, convnet, fc
from neural_alignment.models.application import APPLICATIONS
from neural_alignment.models.rnn import Recurrent
from neural_alignment.training import AlignedModel

RULE = Symmetric(self_=1e-3, decay=1e-3)


def sequential():
    return keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            keras.layers.Conv2D(4, 3, strides=2, padding="same", use_bias=False, name="conv"),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
            keras.layers.DepthwiseConv2D(3, name="depthwise"),
            keras.layers.Flatten(),
            keras.layers.Dense(7, activation="tanh", name="hidden"),
            keras.layers.Dense(3, name="last"),
        ]
    )


def functional():
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(4, 3, name="first")(inputs)
    inner = keras.Sequential([keras.Input((6, 6, 4)), keras.layers.Conv2D(4, 3, name="nested")], name="inner")
    x = keras.layers.Add()([inner(x), keras.layers.Cropping2D(1)(keras.layers.ReLU()(x))])
    return keras.Model(inputs, keras.layers.Dense(2, name="last")(keras.layers.Flatten()(x)))


@pytest.mark.parametrize("build", [sequential, functional])
def test_weights_and_outputs_are_kept_and_the_model_is_left_as_it_was(build):
    model = build()
    before = [weight.copy() for weight in model.get_weights()]
    x = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype("float32")
    result = convert(model, RULE)
    np.testing.assert_array_equal(result.model(x), model(x))
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    assert not any(isinstance(layer, (Dense, Conv2D)) for layer in model._flatten_layers())


def freeze(model, part):
    """Freezes the attention of a model, a layer in it, or a single weight."""
    attention = model.get_layer("attention")
    if part == "layer":
        attention.trainable = False
    elif part == "inner layer":
        attention.query_dense.trainable = False
    else:
        model.get_layer("last").bias.trainable = False


@pytest.mark.parametrize("part", ["layer", "inner layer", "weight"])
def test_what_is_frozen_stays_frozen(part):
    inputs = keras.Input((5, 8))
    x = keras.layers.MultiHeadAttention(2, 3, name="attention")(inputs, inputs)
    model = keras.Model(inputs, keras.layers.Dense(3, name="last")(keras.layers.Flatten()(x)))
    every = {weight.path for weight in model.trainable_weights}
    freeze(model, part)
    trained = {weight.path for weight in model.trainable_weights}
    assert trained < every
    copy = convert(model, Feedback()).model
    assert {weight.path for weight in copy.trainable_weights if "backward" not in weight.path} == trained
    copy.compile(keras.optimizers.Adam(0.1), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    before = {weight.path: weight.numpy() for weight in copy.weights}
    copy.fit(np.random.default_rng(0).normal(size=(6, 5, 8)), np.arange(6) % 3, verbose=0)
    moved = {weight.path for weight in copy.weights if not np.array_equal(before[weight.path], weight.numpy())}
    rounding = {"attention/key/bias"}  # Its gradient is 0 up to rounding, because a softmax ignores an offset.
    assert (moved & every) - rounding == trained - rounding


VECTORIZATIONS = {
    "int": {"output_sequence_length": 4},
    "tf_idf": {"output_mode": "tf_idf"},
    "tf_idf, padded": {"output_mode": "tf_idf", "max_tokens": 12, "pad_to_max_tokens": True},
    "count": {"output_mode": "count", "ngrams": 2},
}


@pytest.mark.parametrize("case", VECTORIZATIONS)
def test_vocabularies_are_copied(case):
    """They are neither weights nor in the configuration."""
    words = keras.layers.TextVectorization(**VECTORIZATIONS[case])
    words.adapt(["a b c d", "e f a"])
    inputs = keras.Input((), dtype="string")
    x = words(inputs)
    x = keras.layers.Flatten()(keras.layers.Embedding(12, 4)(x)) if case == "int" else x
    model = keras.Model(inputs, keras.layers.Dense(3)(x))
    text = tf.constant(["a b", "f", "g"])
    converted = convert(model, RULE).model
    np.testing.assert_array_equal(converted(text), model(text))
    assert not np.array_equal(model(text)[0], model(text)[1])
    # A copy of the copy is one of the original.
    np.testing.assert_array_equal(convert(converted, None).model(text), model(text))


@pytest.mark.parametrize(("tokens", "adapted"), [(["a", "b\nc", "d e"], True), (["a", "b"], False)])
def test_words_that_are_looked_up_are_copied(tokens, adapted):
    """A word may contain the end of a line, and a vocabulary may be in the configuration."""
    words = keras.layers.StringLookup(vocabulary=None if adapted else tokens)
    if adapted:
        words.adapt(tokens)
    inputs = keras.Input((1,), dtype="string")
    x = keras.layers.Flatten()(keras.layers.Embedding(5, 4)(words(inputs)))
    model = keras.Model(inputs, keras.layers.Dense(3)(x))
    text = tf.constant([[token] for token in [*tokens, "unknown"]])
    np.testing.assert_array_equal(convert(model, RULE).model(text), model(text))


def test_numbers_that_are_looked_up_are_copied():
    numbers = keras.layers.IntegerLookup(output_mode="tf_idf", max_tokens=8, pad_to_max_tokens=True)
    numbers.adapt(np.array([[3, 4], [3, 5], [3, 6]]))
    inputs = keras.Input((2,), dtype="int64")
    model = keras.Model(inputs, keras.layers.Dense(3)(numbers(inputs)))
    data = tf.constant([[3, 4], [5, 9]])
    np.testing.assert_array_equal(convert(model, RULE).model(data), model(data))


@pytest.mark.parametrize("mode", ["int", "tf_idf"])
def test_a_layer_without_a_vocabulary_yet_is_converted(mode):
    """It can be adapted in the converted model."""
    inputs = keras.Input((), dtype="string")
    pads = mode != "int"
    words = keras.layers.TextVectorization(output_mode=mode, max_tokens=8, pad_to_max_tokens=pads, name="words")
    x = words(inputs)
    x = keras.layers.GlobalAveragePooling1D()(keras.layers.Embedding(8, 4)(x)) if mode == "int" else x
    model = convert(keras.Model(inputs, keras.layers.Dense(3)(x)), RULE).model
    copy = model.get_layer("words")
    assert copy.get_vocabulary(include_special_tokens=False) == []
    copy.adapt(["a b a"])
    assert copy.get_vocabulary(include_special_tokens=False) == ["a", "b"]


@keras.saving.register_keras_serializable("tests")
class FileOfItsOwn(keras.layers.Layer):
    """Keeps a number in a file beside its weights."""

    factor = 1.0

    def call(self, inputs):
        return self.factor * inputs

    def save_assets(self, dir_path):
        (pathlib.Path(dir_path) / "factor.txt").write_text(str(self.factor))

    def load_assets(self, dir_path):
        self.factor = float((pathlib.Path(dir_path) / "factor.txt").read_text())


def test_files_that_a_layer_keeps_are_copied():
    layer = FileOfItsOwn()
    layer.factor = 2.0
    model = keras.Sequential([keras.Input((2,)), layer, keras.layers.Dense(3)])
    data = np.ones((1, 2), "float32")
    np.testing.assert_array_equal(convert(model, RULE).model(data), model(data))


def test_converted_and_unconverted_layers_are_reported():
    result = convert(sequential(), RULE)
    assert result.converted == dict.fromkeys(["conv", "depthwise", "hidden", "last"], "symmetric")
    assert result.left == {}
    assert isinstance(result.model, keras.Sequential)
    result = convert(functional(), [Feedback(layers="nested"), Symmetric(self_=1e-3, decay=1e-3, layers="l*")])
    assert result.converted == {"nested": "feedback", "last": "symmetric"}
    assert result.left == {"first": "it has no rule"}


def test_the_nonlinearity_that_follows_is_found():
    model = convert(sequential(), RULE).model
    assert model.get_layer("conv").following_activation is keras.activations.relu
    assert model.get_layer("hidden").following_activation is keras.activations.tanh
    assert model.get_layer("last").following_activation is None
    # Two layers read the output of `first`: no one nonlinearity follows it.
    assert convert(functional(), RULE).model.get_layer("first").following_activation is None
    inputs = keras.Input((4, 4, 2))
    normal = BatchAxisNormalization()(keras.layers.Conv2D(3, 3, name="conv")(inputs))
    model = convert(keras.Model(inputs, keras.layers.ReLU()(normal)), RULE).model
    assert model.get_layer("conv").following_activation is keras.activations.relu


def test_the_copy_trains_and_its_backward_kernel_is_not_its_forward_kernel():
    model = convert(sequential(), RULE).model
    layer = model.get_layer("hidden")
    kernel, backward = layer.kernel.numpy(), layer.backward_kernel.numpy()
    assert abs(np.corrcoef(kernel.ravel(), backward.T.ravel())[0, 1]) < 0.3
    model.compile("sgd", "mse", jit_compile=False)
    generator = np.random.default_rng(0)
    model.fit(generator.normal(size=(8, 8, 8, 3)), generator.normal(size=(8, 3)), verbose=0)
    assert not np.array_equal(layer.backward_kernel.numpy(), backward)


def test_native_layers_of_this_package_are_converted_too():
    trained = fc([5], 3, (4,))
    result = convert(trained, RULE)
    assert result.converted == {"dense1": "symmetric", "dense": "symmetric"}
    x = np.random.default_rng(0).normal(size=(2, 4)).astype("float32")
    np.testing.assert_array_equal(result.model(x), trained(x))
    plain = convnet([4], 3, (8, 8, 1))
    assert convert(plain, RULE).model.get_layer("conv1").following_activation is keras.activations.relu


def test_an_aligned_model_is_converted_and_what_a_network_rule_keeps_begins_at_its_weights():
    trained = fc([5], 3, (4,))
    trained = AlignedModel(trained.input, trained.output)
    trained.compile("sgd", "mse")
    result = convert(trained, AlignAda())
    assert result.converted == {"dense1": "align_ada", "dense": "align_ada"}
    assert type(result.model) is type(keras.Model(trained.input, trained.output))
    assert not result.model.compiled
    model = AlignedModel(result.model.input, result.model.output)
    for kept, old in zip(model.bound_rule.kept_values, trained.trainable_variables, strict=True):
        np.testing.assert_array_equal(kept, old)
    with pytest.raises(ValueError, match=r"'dense1' \(it already has the rule 'align_ada'\)"):
        convert(model, RULE)


# Layers that already have a rule.


def partly_aligned():
    """Returns a model in which every kind of layer has a rule, also in wrappers, and its last layer has none."""
    rule, start = Symmetric(self_=0.1, decay=0.1), keras.Input((6, 4))
    x = keras.layers.Bidirectional(layers.LSTM(3, return_sequences=True, alignment=rule), name="both")(start)
    x = layers.MultiHeadAttention(2, 3, alignment=rule, name="heads")(x, x)
    x = layers.TimeDistributed(Dense(4, activation="tanh", alignment=rule, name="each"), name="steps")(x)
    x = layers.SeparableConv1D(3, 2, alignment=AlignProp(), name="conv")(x)
    return keras.Model(start, keras.layers.Dense(2, name="last")(keras.layers.Flatten()(x)))


def trained_once(model, seed):
    generator = np.random.default_rng(seed)
    model.compile(keras.optimizers.SGD(0.1), "mse", jit_compile=False)
    model.train_on_batch(generator.normal(size=(4, *model.input_shape[1:])), generator.normal(size=(4, 2)))
    return model


def values_of(model):
    """Returns the weights of a model by path, without the numbers that Keras gives to the layers of a process."""
    weights = {re.sub(r"_\d+(?=/)", "", weight.path): weight.numpy() for weight in model.weights}
    assert len(weights) == len(model.weights)
    return weights


def test_a_layer_with_a_rule_keeps_it_and_its_weights():
    model = trained_once(partly_aligned(), seed=0)
    result = convert(model, Feedback())
    assert result.converted == {"last": "feedback"}
    assert {*result.left.values()} == {f"it already has the rule {rule!r}" for rule in ("symmetric", "align_prop")}
    before, after = values_of(model), values_of(result.model)
    assert after.keys() - before.keys() == {"last/backward_kernel"}
    assert sum(path.rpartition("/")[2].startswith("backward_") for path in before) == 2 * 2 + 4 + 1 + 2
    for path, value in before.items():
        np.testing.assert_array_equal(after[path], value, err_msg=path)
    assert before["conv/alignment_step_depthwise_kernel"] == 1
    assert result.model.get_layer("both").forward_layer.alignment == model.get_layer("both").forward_layer.alignment


def test_layers_are_converted_one_after_the_other():
    """The first layer starts at zeros, from which no B can be drawn, and has been trained."""
    start, zeros = keras.Input((40,)), {"kernel_initializer": "zeros", "name": "hidden"}
    model = keras.Model(start, keras.layers.Dense(2, name="last")(keras.layers.Dense(30, **zeros)(start)))
    model.get_layer("hidden").kernel.assign(np.random.default_rng(0).normal(size=(40, 30)))
    first = convert(model, Feedback(layers="hidden")).model
    second, converted, left = convert(first, Symmetric(self_=0.1, decay=0.1, layers="last"))
    assert (converted, left) == ({"last": "symmetric"}, {"hidden": "it already has the rule 'feedback'"})
    assert convert(first, Symmetric(self_=0.1, decay=0.1, layers="last"), strict=True).left == left
    longer = keras.Model(first.inputs, keras.layers.Dense(2, name="end")(first.outputs[0]))
    with pytest.raises(ValueError, match=r"`strict`.*Received 'last' \(it has no rule\)\."):
        convert(longer, Feedback(layers="end"), strict=True)
    kept = [each.get_layer("hidden").backward_kernel.numpy() for each in (first, second)]
    np.testing.assert_array_equal(*kept)
    assert kept[0].std() > 0.5


def test_without_a_rule_the_layers_are_those_of_keras_again():
    aligned = trained_once(partly_aligned(), seed=0)
    result = convert(aligned, None)
    assert result.converted == {}
    assert {*result.left.values()} == {"it has no rule"}
    kinds = {type(layer).__module__.partition(".")[0] for layer in result.model._flatten_layers()}
    assert kinds == {"keras"}
    before, after = values_of(aligned), values_of(result.model)
    own = ("backward_", "alignment_step")
    assert after.keys() == {path for path in before if not path.rpartition("/")[2].startswith(own)}
    for path, value in after.items():
        np.testing.assert_array_equal(value, before[path], err_msg=path)
    x = np.random.default_rng(1).normal(size=(3, 6, 4)).astype("float32")
    np.testing.assert_allclose(result.model(x), aligned(x), rtol=1e-5, atol=1e-6)
    again = convert(result.model, Feedback()).model
    assert again.get_layer("both").forward_layer.alignment == Feedback()
    kernels = [each.get_layer("steps").layer.backward_kernel for each in (again, aligned)]
    assert not np.allclose(*kernels, atol=1e-2)


def test_without_a_rule_the_ntk_parameterization_stays():
    start = keras.Input((4,))
    options = {"parameterization": "ntk", "alignment": Feedback(), "activation": "relu", "name": "wide"}
    aligned = keras.Model(start, Dense(5, **options)(start))
    plain = convert(aligned, None).model
    assert (type(plain.get_layer("wide")), plain.get_layer("wide").alignment) == (Dense, None)
    x = np.random.default_rng(0).normal(size=(3, 4)).astype("float32")
    np.testing.assert_allclose(plain(x), aligned(x), rtol=1e-6)


def test_without_a_rule_the_recurrent_layers_of_this_library_lose_theirs():
    start = keras.Input((3, 2))
    aligned = keras.Model(
        start, Dense(2, alignment=AlignAda())(Recurrent(4, 5, alignment=AlignAda(), name="loop")(start))
    )
    plain = convert(aligned, None).model
    assert plain.get_layer("loop").alignment is None
    x = np.random.default_rng(0).normal(size=(5, 3, 2)).astype("float32")
    np.testing.assert_allclose(plain(x), aligned(x), rtol=1e-6)


def test_a_layer_that_cannot_be_aligned_is_an_error_not_backpropagation():
    gated = keras.Sequential([keras.Input((8, 4)), keras.layers.GRU(4, reset_after=False)])
    with pytest.raises(ValueError, match="`reset_after` must be True with 'activation'"):
        convert(gated, Activation(amp=1e-3, sparse=1e-3))
    with pytest.raises(
        ConfigError, match=r"alignment\.layers: must match .* are conv, depthwise, hidden, last; found 'cnov\*'"
    ):
        convert(sequential(), [Symmetric(self_=1e-3, decay=1e-3, layers="cnov*")])
    with pytest.raises(ValueError, match="`model` must be built"):
        convert(keras.Sequential([keras.layers.Dense(3)]), RULE)

    class Subclassed(keras.Model):
        pass

    with pytest.raises(ValueError, match="functional or Sequential"):
        convert(Subclassed(), RULE)


def test_fc_and_convnet_have_named_layers_with_their_nonlinearity():
    model = fc([5, 4], 3, (2, 2, 1), RULE, activation="tanh")
    assert [layer.name for layer in model.layers if isinstance(layer, Dense)] == ["dense1", "dense2", "dense"]
    assert model.get_layer("dense1").following_activation is keras.activations.tanh
    model = convnet([4, 6], 3, (8, 8, 1), RULE)
    assert model.get_layer("conv2").following_activation is keras.activations.relu
    assert model.get_layer("conv1").output.shape == (None, 8, 8, 4)
    assert model.get_layer("conv2").output.shape == (None, 4, 4, 6)
    assert not model.get_layer("conv1").use_bias
    plain = convnet([4], 3, (8, 8, 1), RULE, batch_norm=False)
    assert plain.get_layer("conv1").use_bias
    assert not any(isinstance(layer, keras.layers.BatchNormalization) for layer in plain.layers)


# The nonlinearity that follows, however the model was put together.


def stack(*layers_, how):
    """Returns a Sequential model of the list, of calls of `add`, or a functional model."""
    start = keras.Input((8, 8, 3))
    if how == "list":
        return keras.Sequential([start, *layers_])
    if how == "functional":
        outputs = start
        for layer in layers_:
            outputs = layer(outputs)
        return keras.Model(start, outputs)
    model = keras.Sequential()
    if how == "add":
        model.add(start)
    for layer in layers_:
        model.add(layer)
    if how == "add, built later":
        model.build((None, 8, 8, 3))
    if how == "add and pop":
        model.add(keras.layers.Activation("sigmoid"))
        model.pop()
        model.build((None, 8, 8, 3))
    return model


FOLLOWED = {
    "relu": lambda: [keras.layers.ReLU()],
    "tanh": lambda: [keras.layers.BatchNormalization(), keras.layers.Dropout(0.5), keras.layers.Activation("tanh")],
    "elu": lambda: [keras.layers.SpatialDropout2D(0.1), keras.layers.Activation("linear"), keras.layers.ELU()],
    "leaky_relu": lambda: [keras.layers.LeakyReLU(negative_slope=0.2)],
    "relu6": lambda: [keras.layers.ReLU(max_value=6.0)],
    "softmax": lambda: [keras.layers.Softmax()],
}


@pytest.mark.parametrize("name", FOLLOWED)
@pytest.mark.parametrize("how", ["list", "add", "add, built later", "add and pop", "functional"])
def test_the_nonlinearity_is_found_however_the_model_was_made(how, name):
    layers_ = [keras.layers.Conv2D(4, 3, name="conv"), *FOLLOWED[name](), keras.layers.Conv2D(2, 3, name="last")]
    model = convert(stack(*layers_, how=how), RULE).model
    assert model.get_layer("conv").following_activation is keras.activations.get(name)
    assert model.get_layer("last").following_activation is None


def test_calls_in_other_models_do_not_count():
    """If other models share a layer, the nonlinearity after it in the converted model counts."""
    inputs, dense = keras.Input((4,)), keras.layers.Dense(3, name="shared")
    features = dense(inputs)
    outputs = keras.layers.Dense(2)(keras.layers.ReLU()(features))
    model = keras.Model(inputs, outputs)
    extractor = keras.Model(inputs, keras.layers.Activation("tanh")(features))
    assert convert(model, RULE).model.get_layer("shared").following_activation is keras.activations.relu
    assert convert(extractor, RULE).model.get_layer("shared").following_activation is keras.activations.tanh
    both = keras.Model(inputs, [outputs, features])  # The output of the model is another reader.
    assert convert(both, RULE).model.get_layer("shared").following_activation is None


def called_twice(*names):
    inputs, dense = keras.Input((4,)), keras.layers.Dense(4, name="shared")
    outputs = inputs
    for name in names:
        outputs = keras.layers.Activation(name)(dense(outputs))
    return keras.Model(inputs, outputs)


def test_a_layer_that_is_called_twice_has_one_nonlinearity_or_none():
    same, differing = called_twice("tanh", "tanh"), called_twice("tanh", "relu")
    assert convert(same, RULE).model.get_layer("shared").following_activation is keras.activations.tanh
    assert convert(differing, RULE).model.get_layer("shared").following_activation is None


@pytest.mark.parametrize("how", ["list", "add"])
def test_the_nonlinearity_may_stand_outside_of_the_model_that_has_the_layer(how):
    inner = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3, name="conv")], name="inner")
    within = [keras.layers.ReLU(), keras.layers.Conv2D(2, 3, name="last")]
    model = convert(stack(inner, *within, how=how), RULE).model
    layers_ = {layer.name: layer for layer in model._flatten_layers()}
    assert layers_["conv"].following_activation is keras.activations.relu
    assert layers_["last"].following_activation is None


def test_a_nonlinearity_with_other_options_is_named_in_a_warning(caplog):
    model = stack(keras.layers.Conv2D(4, 3, name="conv"), keras.layers.LeakyReLU(0.3, name="leaky"), how="list")
    assert convert(model, RULE).model.get_layer("conv").following_activation is None
    assert "LeakyReLU 'leaky' has options that no named activation has" in caplog.text


# What cannot be converted.


def quantised():
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4, name="dense")])
    model.get_layer("dense").quantize("int8")
    return model


def adapted():
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4, name="dense")])
    model.layers[0].enable_lora(2)
    return model


def embedded():
    model = keras.Sequential([keras.Input((8,)), keras.layers.Embedding(9, 4, name="other"), keras.layers.Flatten(),
                              keras.layers.Dense(2)])  # fmt: skip
    model.layers[0].enable_lora(2)
    return model


@pytest.mark.parametrize(("build", "found"), [(quantised, "'dense', which is quantised to int8"),
                                              (adapted, "'dense', which is adapted by LoRA"),
                                              (embedded, "'other', which is adapted by LoRA")])  # fmt: skip
@pytest.mark.parametrize("rule", [RULE, pytest.param(None, marks=pytest.mark.exhaustive)], ids=["aligned", "left"])
def test_weights_that_are_not_those_of_the_layer_are_refused(build, found, rule):
    with pytest.raises(ValueError, match=f"must have the weights of native layers. Received layer {found}"):
        convert(build(), rule)


@pytest.mark.parametrize(
    ("layers_", "found"),
    [([keras.layers.SpectralNormalization(keras.layers.Dense(3), name="normal")],
      "'normal' (SpectralNormalization has no aligned form)"),
     ([keras.layers.ReLU()], "none")],
)  # fmt: skip
def test_a_model_without_a_layer_to_align_names_those_that_it_has(layers_, found):
    with pytest.raises(ValueError, match=re.escape(f"whose layers with kernels are: {found}. Example")):
        convert(stack(*layers_, how="list"), RULE)


def test_a_rule_without_a_pattern_that_gets_no_layer_is_named_by_its_number():
    rules = [Feedback(), Symmetric(self_=1e-3, decay=1e-3)]
    with pytest.raises(
        ConfigError, match=r"alignment\.1\.layers: must match .* are conv, depthwise, hidden, last; found none"
    ):
        convert(sequential(), rules)


# Operations that are no layers, and models within models.

FUNCTIONS = {
    "relu": keras.ops.relu,
    "tanh": keras.ops.tanh,
    "sigmoid": keras.ops.sigmoid,
    "relu of activations": keras.activations.relu,
    "gelu": keras.activations.gelu,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_model_with_functions_and_operators_is_converted(name):
    inputs = keras.Input((4,))
    hidden = FUNCTIONS[name](keras.layers.Dense(4, name="hidden")(inputs))
    model = keras.Model(inputs, keras.layers.Dense(2)(hidden + 2.0 * inputs))
    x = np.random.default_rng(0).normal(size=(3, 4)).astype("float32")
    converted = convert(model, RULE).model
    np.testing.assert_allclose(converted(x), model(x), rtol=1e-6)
    expected = keras.activations.get(name.partition(" ")[0])
    assert converted.get_layer("hidden").following_activation is expected


def test_a_function_with_other_options_is_no_named_nonlinearity():
    inputs = keras.Input((4,))
    hidden = keras.ops.leaky_relu(keras.layers.Dense(4, name="hidden")(inputs), negative_slope=0.7)
    model = keras.Model(inputs, keras.layers.Dense(2)(hidden))
    assert convert(model, RULE).model.get_layer("hidden").following_activation is None


def inner_model(**inputs):
    """Returns a model of several inputs by name that ends with a layer `conv`."""
    total = keras.layers.Add()([keras.layers.Dense(4, name=f"of_{name}")(x) for name, x in inputs.items()])
    return keras.Model(inputs, keras.layers.Dense(4, name="sum")(total), name="inner")


def leaves(model):
    return {layer.name: layer for layer in model._flatten_layers()}


def test_a_mapping_with_more_keys_than_inputs_is_matched():
    inputs = {name: keras.Input((4,), name=name) for name in ("a", "b", "extra")}
    inner = inner_model(a=keras.Input((4,), name="a"), b=keras.Input((4,), name="b"))
    model = keras.Model(inputs, keras.layers.ReLU()(inner(inputs)))
    converted = leaves(convert(model, RULE).model)
    assert converted["sum"].following_activation is keras.activations.relu
    assert converted["of_a"].following_activation is None


@pytest.mark.parametrize("names", [("relu", "relu"), ("relu", "tanh")])
def test_a_model_that_is_called_twice_has_one_nonlinearity_or_none(names):
    inner = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4, name="shared")], name="inner")
    inputs = keras.Input((4,))
    outputs = inputs
    for name in names:
        outputs = keras.layers.Activation(name)(inner(outputs))
    following = leaves(convert(keras.Model(inputs, outputs), RULE).model)["shared"].following_activation
    assert following is (keras.activations.relu if len({*names}) == 1 else None)


def test_a_layer_of_zeros_that_has_been_trained_is_converted():
    """Its initializer has no independent draw; its weights have a mean and a variance."""
    head = keras.layers.Dense(30, kernel_initializer="zeros", name="head")
    model = keras.Sequential([keras.Input((40,)), head])
    with pytest.raises(ValueError, match="must draw random numbers"):
        convert(model, Feedback()).model.get_layer("head")
    head.kernel.assign(np.random.default_rng(0).normal(0.2, 0.5, (40, 30)))
    layer = convert(model, Feedback()).model.get_layer("head")
    w, b = layer.kernel.numpy(), layer.backward_kernel.numpy().T
    np.testing.assert_array_equal(w, head.kernel)
    assert abs(np.corrcoef(w.ravel(), b.ravel())[0, 1]) < 0.12
    assert (b.mean(), b.std()) == (pytest.approx(0.2, abs=0.05), pytest.approx(0.5, rel=0.1))


def constant(*arguments):
    """Arguments of a layer whose kernels begin with equal entries."""
    return {f"{argument}_initializer": keras.initializers.Constant(0.5) for argument in arguments}


CONSTANT_LAYERS = {
    "dense": lambda: keras.layers.Dense(5, **constant("kernel")),
    "ones": lambda: keras.layers.Dense(5, kernel_initializer="ones"),
    "convolution": lambda: keras.layers.Conv1D(5, 3, **constant("kernel")),
    "depthwise": lambda: keras.layers.DepthwiseConv1D(3, **constant("depthwise")),
    "separable": lambda: keras.layers.SeparableConv1D(5, 3, **constant("depthwise", "pointwise")),
    "recurrent": lambda: keras.layers.LSTM(5, **constant("kernel", "recurrent")),
    "bidirectional": lambda: keras.layers.Bidirectional(keras.layers.GRU(5, **constant("recurrent"))),
    "attention": lambda: keras.layers.MultiHeadAttention(2, 3, **constant("kernel")),
}


@pytest.mark.parametrize("name", CONSTANT_LAYERS)
def test_a_converted_model_can_be_loaded_if_initial_values_were_equal(name, tmp_path):
    """Keras builds the layers of a saved model before it reads their weights."""
    layer = CONSTANT_LAYERS[name]()
    inputs = keras.Input((6, 4))
    model = keras.Model(inputs, layer(inputs, inputs) if name == "attention" else layer(inputs))
    rng = np.random.default_rng(0)
    model.set_weights([rng.normal(size=weight.shape) for weight in model.weights])
    converted = convert(model, RULE).model
    converted.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for weight, same in zip(loaded.weights, converted.weights, strict=True):
        np.testing.assert_array_equal(weight, same)


# Layers that are left to backpropagation are named, whatever their weights are called.


@keras.saving.register_keras_serializable("test_convert")
class Mixing(keras.layers.Layer):
    """y = x + x M, with a matrix that is not called kernel."""

    def build(self, input_shape):
        self.matrix = self.add_weight(name="mixture", shape=(input_shape[-1], input_shape[-1]))

    def call(self, inputs):
        return inputs + inputs @ self.matrix

    def compute_output_shape(self, input_shape):
        return input_shape


@keras.saving.register_keras_serializable("test_convert")
class Shift(keras.layers.Layer):
    """y = scale * x + offset, with an offset for each position and unit."""

    def build(self, input_shape):
        self.scale = self.add_weight(name="scale", shape=input_shape[-1:])
        self.offset = self.add_weight(name="kernel_of_positions", shape=input_shape[1:])

    def call(self, inputs):
        return inputs * self.scale + self.offset


def custom(*more):
    model = keras.Sequential([keras.Input((5,), dtype="int32"), keras.layers.Embedding(9, 4), Shift(), *more])
    model.add(keras.layers.Flatten())
    model.add(keras.layers.Dense(2, name="last"))
    return model


def test_a_custom_layer_is_left_and_named_if_an_error_passes_through_its_weights():
    result = convert(custom(Mixing(name="mixing")), RULE)
    assert result.converted == {"last": "symmetric"}
    assert result.left == {"mixing": "Mixing has no aligned form"}
    with pytest.raises(ValueError, match=r"`strict` allows no layer .* 'mixing' \(Mixing has no aligned form\)"):
        convert(custom(Mixing(name="mixing")), RULE, strict=True)
    # Offsets, scales of single units and embeddings send no error through weights.
    assert convert(custom(), RULE, strict=True).left == {}
    with pytest.raises(ValueError, match=r"'conv' \(it has no rule\)"):
        convert(sequential(), Symmetric(self_=1e-3, decay=1e-3, layers="[dhl]*"), strict=True)


def lstm_classifier():
    inputs = keras.Input((6, 4))
    x = keras.layers.Bidirectional(keras.layers.LSTM(3, return_sequences=True), name="both")(inputs)
    x = keras.layers.TimeDistributed(keras.layers.Dense(4, activation="tanh", name="each"))(x)
    x = keras.layers.GRU(3, name="gru")(x)
    return keras.Model(inputs, keras.layers.Dense(2, name="last")(x))


def attention():
    inputs = keras.Input((6, 4))
    x = inputs + keras.layers.MultiHeadAttention(2, 3, name="heads")(inputs, inputs)
    x = keras.layers.LayerNormalization()(x)
    x = x + keras.layers.Dense(4, name="narrow")(keras.ops.gelu(keras.layers.Dense(5, name="wide")(x)))
    return keras.Model(inputs, keras.layers.Dense(2, name="last")(keras.ops.mean(x, axis=1)))


def application(name, size, **options):
    build = getattr(keras.applications, name)
    return build(weights=None, input_shape=(size, size, 3), classes=4, classifier_activation=None, **options)


def error_at_the_inputs(model, x):
    """Returns the outputs in inference mode, and the gradient of their weighted sum to the inputs."""
    x = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        outputs = model(x, training=False)
        total = tf.reduce_sum(outputs * np.linspace(1.0, 2.0, outputs.shape[-1], dtype=np.float32))
    return outputs.numpy(), tape.gradient(total, x).numpy()


def nested(network):
    """Returns the layers of a model that have backward kernels, with those in wrappers and attention."""
    return [layer for layer in network._flatten_layers() if getattr(layer, "keeps_backward_kernel", False)]


def set_backward_kernels(network, value):
    """Sets every B to W, or to another value of the same shape."""
    for layer in nested(network):
        for connection in layer.connections:
            forward = connection.linear_map.transpose(connection.kernel.value)
            connection.stored_backward_kernel.assign(value(forward))


def check_paths(native):
    """Converts a network and checks that its outputs depend on W only, and the error at its inputs on B only."""
    model = convert(native, Feedback(), strict=True).model
    shape = [size or 4 for size in native.input_shape[1:]]
    x = np.random.default_rng(0).normal(size=(2, *shape)).astype("float32")
    outputs, error = error_at_the_inputs(model, x)
    expected, backpropagated = error_at_the_inputs(native, x)
    np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-6)
    assert np.abs(error - backpropagated).max() > 1e-2 * np.abs(backpropagated).max()
    set_backward_kernels(model, lambda forward: forward)
    outputs, error = error_at_the_inputs(model, x)
    np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(error, backpropagated, rtol=1e-3, atol=1e-4 * np.abs(backpropagated).max())
    set_backward_kernels(model, tf.zeros_like)
    outputs, error = error_at_the_inputs(model, x)
    np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-6)
    assert not error.any()


@pytest.mark.parametrize("build", [sequential, lstm_classifier, attention])
def test_the_error_passes_through_backward_kernels_only(build):
    check_paths(build())


SMALLEST = {
    "ConvNeXtTiny": 32, "DenseNet121": 32, "EfficientNetB0": 32, "EfficientNetV2B0": 32, "InceptionResNetV2": 75,
    "InceptionV3": 75, "MobileNet": 32, "MobileNetV2": 32, "MobileNetV3Small": 32, "NASNetMobile": 32, "ResNet50": 32,
    "ResNet50V2": 32, "VGG16": 32, "Xception": 71,
}  # fmt: skip
"""The smallest network of each family of `keras.applications`, and the rows of its smallest images."""


def family(application):
    """Returns the name of a network without its depth or size, such as ResNetV2 for ResNet152V2."""
    return re.sub(r"(B\d|Tiny|Small|Base|X?Large|Mobile|[SML])$", "", re.sub(r"\d\d+", "", application))


def test_every_family_of_applications_is_in_the_table():
    assert {family(name) for name in APPLICATIONS} == {family(name) for name in SMALLEST}


def test_an_application_converts_with_nothing_left():
    check_paths(application("MobileNetV2", SMALLEST["MobileNetV2"], alpha=0.35))


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", SMALLEST)
def test_every_application_converts_with_nothing_left(name):
    check_paths(application(name, SMALLEST[name]))


def test_wrapped_layers_keep_names_weights_and_options():
    result = convert(lstm_classifier(), RULE)
    names = {name.rstrip("_0123456789") for name in result.converted}  # Keras numbers the layers of a process.
    assert names == {"forward_lstm", "backward_lstm", "each", "gru", "last"}
    wrapper = result.model.get_layer("both")
    assert wrapper.backward_layer.go_backwards
    assert not wrapper.forward_layer.go_backwards
    assert wrapper.forward_layer.alignment == wrapper.backward_layer.alignment == RULE


def test_a_model_in_a_wrapper_is_converted_and_statistics_of_the_data_are_kept():
    images = np.random.default_rng(0).normal(3.0, 2.0, size=(4, 5, 6, 6, 1)).astype("float32")
    normalize = keras.layers.Normalization()
    normalize.adapt(images.reshape(-1, 6, 6, 1))
    network = keras.Sequential([keras.Input((6, 6, 1)), normalize, keras.layers.Conv2D(2, 3, name="conv"),
                                keras.layers.Flatten()])  # fmt: skip
    inputs = keras.Input((5, 6, 6, 1))
    model = keras.Model(inputs, keras.layers.LSTM(3, name="lstm")(keras.layers.TimeDistributed(network)(inputs)))
    result = convert(model, RULE, strict=True)
    assert result.converted == {"conv": "symmetric", "lstm": "symmetric"}
    np.testing.assert_allclose(result.model(images), model(images), rtol=1e-5, atol=1e-6)


def test_a_wrapped_layer_through_which_no_error_passes_is_not_named():
    inputs = keras.Input((3, 2), dtype="int32")
    x = keras.layers.Flatten()(keras.layers.TimeDistributed(keras.layers.Embedding(5, 4))(inputs))
    result = convert(keras.Model(inputs, keras.layers.Dense(2, name="last")(x)), RULE, strict=True)
    assert result.converted == {"last": "symmetric"}


def test_the_nonlinearity_after_a_wrapped_layer_is_found():
    each = keras.layers.TimeDistributed
    inner = keras.Sequential([keras.Input((3, 3, 2)), keras.layers.Conv2D(2, 1, name="second"), keras.layers.ReLU(),
                              keras.layers.Conv2D(2, 1, name="third")])  # fmt: skip
    inputs = keras.Input((2, 4, 4, 2))
    x = each(keras.layers.BatchNormalization())(each(keras.layers.Conv2D(2, 2, name="first"))(inputs))
    x = keras.layers.Activation("tanh")(each(inner)(each(keras.layers.ReLU())(x)))
    x = each(keras.layers.Conv2D(2, 1, name="last"))(x)
    model = convert(keras.Model(inputs, x), RULE).model
    follows = {layer.name: layer.following_activation for layer in all_layers(model) if isinstance(layer, Conv2D)}
    relu, tanh = keras.activations.relu, keras.activations.tanh
    assert follows == {"first": relu, "second": relu, "third": tanh, "last": None}


# Layers and models that are used several times.


def wrapped_twice(dense):
    inputs = [keras.Input((3, 5)), keras.Input((3, 5))]
    return keras.Model(inputs, keras.ops.add(*[keras.layers.TimeDistributed(dense)(each) for each in inputs]))


def wrapped_and_bare(dense):
    sequence, vector = keras.Input((3, 5)), keras.Input((3, 5))
    outputs = dense(vector)
    return keras.Model([sequence, vector], keras.layers.TimeDistributed(dense)(sequence) + outputs)


def model_wrapped_and_bare(dense):
    encoder = keras.Sequential([keras.Input((5,)), dense, keras.layers.ReLU()])
    documents, query = keras.Input((3, 5)), keras.Input((5,))
    scores = keras.layers.Dot(axes=(2, 1))([keras.layers.TimeDistributed(encoder)(documents), encoder(query)])
    return keras.Model([documents, query], scores)


def layer_in_two_models(dense):
    """The second model contains the first."""
    first = keras.Sequential([keras.Input((5,)), dense])
    second = keras.Sequential([keras.Input((5,)), keras.layers.Dense(5, name="other"), first])
    inputs = keras.Input((3, 5)), keras.Input((5,))
    wrapped = keras.layers.TimeDistributed(second)(inputs[0])
    return keras.Model(inputs, keras.layers.Dot(axes=(2, 1))([wrapped, first(inputs[1])]))


def bidirectional_and_bare(direction):
    """One of the two recurrent layers in `Bidirectional` is also used without it, before and after."""

    def build(dense):
        del dense
        inputs = keras.Input((3, 5))
        backward = keras.layers.LSTM(2, return_sequences=True, go_backwards=True)
        both = keras.layers.Bidirectional(keras.layers.LSTM(2, return_sequences=True), backward_layer=backward)
        alone = getattr(both, direction)
        x = both(keras.layers.Dense(5)(alone(inputs)))
        return keras.Model(inputs, alone(keras.layers.Dense(5)(x)))

    return build


SHARED = {
    "wrapped twice": wrapped_twice,
    "wrapped and bare": wrapped_and_bare,
    "model wrapped and bare": model_wrapped_and_bare,
    "layer in two models": layer_in_two_models,
    "forward and bare": bidirectional_and_bare("forward_layer"),
    "backward and bare": bidirectional_and_bare("backward_layer"),
}


@pytest.mark.parametrize("name", SHARED)
def test_layers_that_are_shared_stay_shared(name):
    model = SHARED[name](keras.layers.Dense(5, name="shared"))
    generator = np.random.default_rng(0)
    for weight in model.weights:
        weight.assign(generator.normal(size=weight.shape))
    result = convert(model, RULE, strict=True)
    copied = [weight for weight in result.model.trainable_weights if not weight.name.startswith("backward_")]
    assert [weight.shape for weight in copied] == [weight.shape for weight in model.trainable_weights]
    x = [generator.normal(size=(2, *each.shape[1:])).astype("float32") for each in model.inputs]
    x = x if len(x) > 1 else x[0]
    np.testing.assert_allclose(result.model(x), model(x), rtol=1e-5, atol=1e-5)


def test_a_layer_in_a_custom_layer_and_outside_of_it_is_refused():
    inputs, dense = keras.Input((4,)), keras.layers.Dense(4, name="shared")
    outputs = dense(keras.layers.SpectralNormalization(dense, name="normal")(inputs))
    with pytest.raises(ValueError, match=r"both in another layer and outside of it\. Received 'shared' in "):
        convert(keras.Model(inputs, outputs), RULE)


@pytest.mark.skipif(not hasattr(keras.layers, "ReversibleEmbedding"), reason="Keras before 3.13")
def test_every_use_of_a_wrapped_layer_counts():
    """The error passes through the layer itself; in the wrapper it gets integers."""
    each, inputs = keras.layers.ReversibleEmbedding(5, 4, name="both"), keras.Input((3, 2), dtype="int32")
    embedded = keras.layers.TimeDistributed(each)(inputs)
    hidden = keras.layers.Dense(4, name="hidden")(embedded)
    assert convert(keras.Model(inputs, hidden), RULE, strict=True).left == {}
    result = convert(keras.Model(inputs, each(hidden, reverse=True)), RULE)
    assert result.left == {"both": "ReversibleEmbedding has no aligned form"}


def scaled(inputs, factor):
    return inputs * factor


def test_functions_of_lambda_layers_are_kept():
    """Keras refuses to copy a lambda, and functions that are not registered."""
    inputs, factor = keras.Input((4,)), np.float32(2)
    x = keras.layers.Lambda(lambda each: factor * each, output_shape=(4,), name="double")(inputs)
    x = keras.layers.Lambda(scaled, arguments={"factor": 3.0})(keras.layers.Dense(4, name="dense")(x))
    model = keras.Model(inputs, x)
    result = convert(model, RULE, strict=True)
    assert isinstance(result.model.get_layer("double"), keras.layers.Lambda)
    values = np.random.default_rng(0).normal(size=(2, 4)).astype("float32")
    np.testing.assert_allclose(result.model(values), model(values), rtol=1e-6)


class Squares(keras.regularizers.Regularizer):
    def __call__(self, weight):
        return keras.ops.sum(weight * weight)


class Halved(keras.constraints.Constraint):
    def __call__(self, weight):
        return 0.5 * weight


def twice(inputs):
    return 2 * inputs


def drawn(shape, dtype=None):
    return keras.random.normal(shape, dtype=dtype, seed=3)


OBJECTS = {
    "initializer, a function": {"kernel_initializer": lambda shape, dtype=None: drawn(shape, dtype)},
    "initializer, an array": {"kernel_initializer": np.random.default_rng(0).normal(size=(4, 3)).astype("float32")},
    "initializer, partial": {"kernel_initializer": functools.partial(drawn)},
    "regularizer": {"kernel_regularizer": Squares(), "activity_regularizer": lambda each: keras.ops.sum(each**4)},
    "constraint": {"kernel_constraint": Halved(), "bias_constraint": lambda bias: 0 * bias},
    "activation": {"activation": twice},
    "activation, a lambda": {"activation": lambda inputs: twice(inputs)},
}
"""Arguments that Keras cannot serialise, or not deserialise."""


@pytest.mark.parametrize(
    "what", [pytest.param(what, marks=needs_functions if what == "constraint" else ()) for what in OBJECTS]
)
@pytest.mark.parametrize("rule", [RULE, None])
def test_a_copy_has_the_objects_of_the_layers(what, rule):
    inputs = keras.Input((2, 4))
    objects = OBJECTS[what]
    layer = keras.layers.Dense(3, name="dense", **objects)
    hidden = keras.layers.TimeDistributed(layer)(inputs)
    hidden = keras.layers.BatchNormalization(gamma_initializer=lambda shape, dtype=None: drawn(shape, dtype))(hidden)
    hidden = keras.layers.Activation(lambda each: keras.ops.tanh(3 * each), name="own")(hidden)
    model = keras.Model(inputs, keras.layers.SimpleRNN(2, activation=twice, name="rnn")(hidden))
    result = convert(model, rule)
    assert set(result.converted) == ({"dense", "rnn"} if rule else set())
    new = next(each for each in all_layers(result.model) if each.name == "dense")
    for name in objects:
        assert getattr(new, name) is getattr(layer, name), name
    assert result.model.get_layer("own").activation is model.get_layer("own").activation
    values = np.random.default_rng(0).normal(size=(5, 2, 4)).astype("float32")
    np.testing.assert_allclose(result.model(values), model(values), rtol=1e-5)
    assert len(result.model.losses) == len(model.losses)
    np.testing.assert_allclose(sum(result.model.losses), sum(model.losses), rtol=1e-5)
    if rule:
        backward, forward = new.backward_kernel.numpy().T, layer.kernel.numpy()
        assert distance(backward, forward) > 0.1  # Drawn independently of W.


def test_the_function_that_follows_is_found():
    inputs, layer = keras.Input((4,)), keras.layers.Dense(3, name="dense")
    model = keras.Model(inputs, keras.layers.Activation(twice)(layer(inputs)))
    assert convert(model, RULE).model.get_layer("dense").following_activation is twice


def test_an_activation_with_weights_is_not_shared():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, activation=keras.layers.PReLU(), name="dense")])
    model(np.ones((1, 4), "float32"))  # Keras creates the weights of the activation in the first call.
    model.layers[0].activation.alpha.assign([0.1, 0.2, 0.3])
    new = convert(model, RULE).model.get_layer("dense").activation
    assert new is not model.layers[0].activation
    np.testing.assert_array_equal(new.alpha, model.layers[0].activation.alpha)


class Hidden(keras.layers.Layer):
    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units

    def call(self, inputs):
        return inputs

    def get_config(self):
        return super().get_config()


def test_a_layer_that_keras_cannot_make_again_is_named():
    model = keras.Sequential([keras.Input((4,)), Hidden(3, name="mine"), keras.layers.Dense(2)])
    message = r"^`model` must have layers that Keras can make .* Received Hidden 'mine' \(.*units.*\)\. Example: "
    with pytest.raises(ValueError, match=message) as error:
        convert(model, RULE)
    assert "\n" not in str(error.value)
    cell = keras.layers.SimpleRNNCell(2, activation=twice)
    model = keras.Sequential([keras.Input((3, 4)), keras.layers.RNN(cell, name="loop"), keras.layers.Dense(2)])
    with pytest.raises(ValueError, match=r"Received RNN 'loop' \([^{}]*twice[^{}]*\)\. Example"):
        convert(model, RULE)


def test_a_layer_that_has_a_rule_is_left_with_its_weights():
    model = keras.Sequential(
        [keras.Input((4,)), Dense(4, alignment=RULE, name="aligned"), keras.layers.Dense(2, name="last")]
    )
    result = convert(model, Feedback())
    assert result.converted == {"last": "feedback"}
    assert result.left == {"aligned": "it already has the rule 'symmetric'"}
    for old, new in zip(model.get_layer("aligned").weights, result.model.get_layer("aligned").weights, strict=True):
        np.testing.assert_array_equal(old, new)


@keras.saving.register_keras_serializable("test_convert")
class Two(keras.layers.Layer):
    """y = x M + z, with two inputs."""

    def build(self, one_shape, other_shape):
        self.matrix = self.add_weight(name="matrix", shape=(one_shape[-1], one_shape[-1]))

    def call(self, one, other):
        return one @ self.matrix + other


@keras.saving.register_keras_serializable("test_convert")
class Own(keras.Model):
    """A subclassed model with a layer and a weight."""

    def build(self, input_shape):
        self.inner = keras.layers.Dense(input_shape[-1])
        self.inner.build(input_shape)
        self.shift = self.add_weight(name="shift", shape=(input_shape[-1],))

    def call(self, inputs):
        return self.inner(inputs) + self.shift


def test_custom_layers_with_several_inputs_in_wrappers_and_subclassed_models_are_named():
    inputs = keras.Input((None, 4))
    x = keras.layers.TimeDistributed(Mixing(name="mixing"))(inputs)
    x = Two(name="two")(x, inputs)
    x = Own(name="own")(x)
    model = keras.Model(inputs, keras.layers.Dense(2, name="last")(x))
    result = convert(model, RULE)
    assert result.left == {
        "mixing": "Mixing has no aligned form",
        "two": "Two has no aligned form",
        "own": "Own has no aligned form",
    }
    values = np.random.default_rng(0).normal(size=(2, 3, 4)).astype("float32")
    np.testing.assert_allclose(result.model(values), model(values), rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(not hasattr(keras.layers, "ReversibleEmbedding"), reason="Keras before 3.13")
def test_every_call_of_a_layer_counts():
    """The first call of the layer looks up integers, through which no error passes; the second is the readout."""
    inputs = keras.Input((3,), dtype="int32")
    embedding = keras.layers.ReversibleEmbedding(5, 4, name="both")
    hidden = keras.layers.Dense(4, name="hidden")(embedding(inputs))
    assert convert(keras.Model(inputs, hidden), RULE, strict=True).left == {}
    model = keras.Model(inputs, embedding(hidden, reverse=True))
    with pytest.raises(ValueError, match=r"`strict` allows no layer .* 'both' \(ReversibleEmbedding has no aligned"):
        convert(model, RULE, strict=True)


@pytest.mark.parametrize("rule", [RULE, AlignAda()], ids=lambda rule: rule.rule)
def test_a_converted_model_keeps_no_copies_of_the_kernels(monkeypatch, rule):
    copies = []

    def noting(convert_to_numpy):
        def noted(value):
            array = np.array(convert_to_numpy(value))
            copies.append(weakref.ref(array))
            return array

        return noted

    inputs = keras.Input((6, 4))
    x = keras.layers.MultiHeadAttention(2, 3)(inputs, inputs)
    x = keras.layers.Flatten()(keras.layers.SeparableConv1D(3, 2)(x))
    native = keras.Model(inputs, keras.layers.Dense(2)(x))
    monkeypatch.setattr(keras.ops, "convert_to_numpy", noting(keras.ops.convert_to_numpy))
    converted = convert(native, rule).model
    gc.collect()
    assert len(copies) >= 7
    assert converted.layers
    assert not any(copy() is not None for copy in copies)
