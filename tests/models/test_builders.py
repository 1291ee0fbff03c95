"""The models `application`, `vision_transformer` and `lstm`."""

import functools

import keras
import numpy as np
import pytest
from helpers import assert_differs

from neural_alignment import config as configuration
from neural_alignment import models
from neural_alignment.alignments import Symmetric
from neural_alignment.errors import ConfigError

RULE = Symmetric(self_=1e-3, decay=1e-3)
RUN = {
    "epochs": 1,
    "batch_size": 4,
    "data": {"source": "digits"},
    "optimization": {"forward": {"name": "sgd", "learning_rate": 0.1}},
}


def backward_kernels(model):
    return [weight for weight in model.weights if weight.name.startswith("backward_")]


def decayed(model):
    """Returns the sum of squares of all weights with a regulariser."""
    weights = [weight for weight in model.trainable_variables if getattr(weight, "regularizer", None) is not None]
    return sum(float((weight.numpy() ** 2).sum()) for weight in weights)


SMALL = {
    "application": lambda **options: models.application(
        "MobileNetV2", 3, (32, 32, 3), arguments={"alpha": 0.35}, **options
    ),
    "vision_transformer": lambda **options: models.vision_transformer(4, 8, 2, 2, 3, (8, 8, 3), **options),
    "lstm": lambda **options: models.lstm([5, 4], 3, (8, 8, 1), **options),
}


@functools.cache
def plain_and_aligned(name):
    """Returns a network without and with a rule, built with the same global seed."""
    networks = []
    for rule in (None, RULE):
        keras.utils.set_random_seed(2)
        networks.append(SMALL[name](alignment=rule))
    return networks


KERNELS = {"application": 53, "vision_transformer": 2 + 2 * 6, "lstm": 5}


@pytest.mark.parametrize("name", SMALL)
def test_every_kernel_has_a_backward_kernel_and_the_outputs_are_logits(name):
    _, model = plain_and_aligned(name)
    assert len(backward_kernels(model)) == KERNELS[name]
    x = np.random.default_rng(0).normal(size=(2, *model.input_shape[1:]))
    logits = np.asarray(model(x))
    assert logits.shape == (2, 3)
    assert not np.allclose(logits.sum(axis=1), 1.0)


@pytest.mark.parametrize("name", SMALL)
def test_weight_decay_is_half_the_coefficient_times_the_squares_of_all_kernels(name):
    model = SMALL[name](weight_decay=0.2)
    kernels = [weight for weight in model.trainable_variables if weight.name.endswith("kernel")]
    assert all(weight.regularizer is not None for weight in kernels)
    assert sum(map(float, model.losses)) == pytest.approx(0.1 * decayed(model), rel=1e-4)
    assert plain_and_aligned(name)[0].losses == []


@pytest.mark.parametrize("name", ["application", "lstm", "rnn"])
def test_weight_decay_reaches_kernels_and_biases_of_dense_and_recurrent_layers(name):
    builders = {**SMALL, "rnn": lambda **options: models.rnn(3, 2, (4, 1), **options)}
    model = builders[name](weight_decay=0.2)
    found = [each for each in model.trainable_variables if each.name == "bias" or each.name.endswith("kernel")]
    assert any(each.name == "bias" for each in found)
    for weight in found:
        assert isinstance(weight.regularizer, keras.regularizers.L2), weight.path
        assert float(weight.regularizer.l2) == pytest.approx(0.1)


def test_a_recurrent_layer_keeps_its_regularisers():
    model = models.rnn(3, 2, (4, 1), weight_decay=0.2)
    again = keras.Model.from_config(model.get_config())
    assert len(again.losses) == len(model.losses) == 5


@pytest.mark.parametrize("name", SMALL)
def test_the_initial_forward_weights_do_not_depend_on_the_rule(name):
    plain, aligned = plain_and_aligned(name)
    added = backward_kernels(aligned)
    forward = [weight for weight in aligned.weights if not any(weight is each for each in added)]
    for one, other in zip(plain.weights, forward, strict=True):
        np.testing.assert_array_equal(one, other)


def test_an_image_is_cut_into_patches_of_neighbouring_pixels():
    model = models.vision_transformer(2, 4, 1, 1, 3, (4, 4, 1))
    patches = keras.Model(model.input, model.get_layer("patches").input)
    image = np.arange(16.0).reshape(1, 4, 4, 1)
    np.testing.assert_array_equal(patches(image)[0], [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]])


def test_the_rows_of_an_image_are_the_steps_of_a_sequence():
    model = models.lstm([5], 3, (4, 6, 2))
    rows = keras.Model(model.input, model.get_layer("lstm1").input)
    image = np.random.default_rng(0).normal(size=(1, 4, 6, 2)).astype("float32")
    np.testing.assert_array_equal(rows(image), image.reshape(1, 4, 12))


PREPROCESSING = (keras.layers.Rescaling, keras.layers.Normalization)


@pytest.mark.exhaustive
def test_identities_stand_in_for_the_preprocessing_of_a_network():
    """EfficientNetB0 divides pixels by 255 and standardises them; the data pipeline has done so already."""
    model = models.application("EfficientNetB0", 3, (32, 32, 3), alignment=RULE, weight_decay=0.1)
    native = keras.applications.EfficientNetB0(
        weights=None, classes=3, input_shape=(32, 32, 3), classifier_activation=None
    )
    replaced = [layer for layer in native.layers if isinstance(layer, PREPROCESSING)]
    identities = [layer.name for layer in model.layers if isinstance(layer, keras.layers.Identity)]
    kinds = [[name.rstrip("_0123456789") for name in names] for names in (identities, [each.name for each in replaced])]
    assert kinds == [["rescaling", "normalization"]] * 2
    assert not any(isinstance(layer, PREPROCESSING) for layer in model.layers)
    added = backward_kernels(model)
    ours = [weight for weight in model.weights if not any(weight is each for each in added)]
    scaled = {id(weight) for layer in replaced for weight in layer.weights}
    theirs = [weight for weight in native.weights if id(weight) not in scaled]
    for weight, other in zip(theirs, ours, strict=True):
        weight.assign(other)
    after = keras.Model(native.get_layer("stem_conv_pad").input, native.output)
    x = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype("float32")
    np.testing.assert_allclose(model(x), after(x), rtol=1e-4, atol=1e-5)
    assert_differs(native(x), after(x), by=0.05)


def small_network(weights, classes, input_shape, classifier_activation, include_top=True):
    """A network of Keras that contains a model with preprocessing, as ConvNeXt contains models."""
    inputs = keras.Input(input_shape)
    stem = keras.Sequential([keras.Input(input_shape), keras.layers.Rescaling(0.1),
                             keras.layers.Conv2D(2, 3, name="conv"), keras.layers.DepthwiseConv2D(3, name="deep")],
                            name="stem")  # fmt: skip
    x = keras.layers.SeparableConv2D(2, 3, name="separable")(stem(inputs))
    return keras.Model(inputs, keras.layers.Dense(classes, name="last")(keras.layers.Flatten()(x)))


def undecayed(model):
    """Returns the names of the kernels without a regulariser."""
    kernels = [each for each in model.trainable_weights if "kernel" in each.name and "backward" not in each.name]
    return [weight.path for weight in kernels if weight.regularizer is None]


def test_nested_models_of_a_network_have_weight_decay_and_no_preprocessing(monkeypatch):
    monkeypatch.setattr(keras.applications, "VGG16", small_network)
    for alignment in (None, RULE):
        model = models.application("VGG16", 3, (8, 8, 3), alignment=alignment, weight_decay=0.1)
        assert undecayed(model) == []
        assert {layer.name: type(layer).__name__ for layer in model.get_layer("stem").layers[1:]} == {
            "conv": "Conv2D",
            "deep": "DepthwiseConv2D",
        }
        assert isinstance(model.get_layer("stem").layers[0], keras.layers.Identity)
    assert len(undecayed(models.application("VGG16", 3, (8, 8, 3)))) == 5


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["ConvNeXtTiny", "MobileNetV2", "Xception"])
def test_all_kernels_of_a_network_have_weight_decay(name):
    assert undecayed(models.application(name, 3, (75, 75, 3), weight_decay=0.1)) == []


SLOW = [pytest.param(name, marks=pytest.mark.exhaustive) for name in ("EfficientNetV2B0", "ConvNeXtTiny")]


@pytest.mark.parametrize("name", ["MobileNetV3Small", *SLOW])
def test_networks_whose_preprocessing_is_an_option_have_none(name):
    model = models.application(name, 3, (32, 32, 3))
    assert not any(isinstance(layer, PREPROCESSING) for layer in model.layers)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: models.application("MobileNet9", 3, (32, 32, 3)), r"`application` must be one of .*MobileNetV2"),
        (lambda: models.application("VGG16", 3, (8, 8, 3)), r"`application` must take images of 8x8x3; Keras says"),
        (lambda: models.application("VGG16", 3, (32, 32, 3), arguments={"weights": "a"}), "`arguments` must be among"),
        (
            lambda: models.application("MobileNetV3Small", 3, (32, 32, 3), arguments={"include_preprocessing": True}),
            "`arguments` must be among",
        ),
        (
            lambda: models.application("MobileNetV2", 3, (32, 32, 3), arguments={"alpha": "wide"}),
            r"`arguments.alpha` must be a number, such as its default 1\.0\. Received 'wide'",
        ),
        (
            lambda: models.application("MobileNet", 3, (32, 32, 3), arguments={"dropout": 0.1, "alpha": -1.0}),
            r"`arguments.alpha` must be a value that MobileNet takes, .* default 1\.0; Keras says: .* Received -1\.0",
        ),
        (
            lambda: models.application("MobileNet", 3, (32, 32, 3), arguments={"dropout": 1.5}),
            r"`arguments.dropout` must be a value that MobileNet takes, .* default 0\.001; Keras says: .*1\.5",
        ),
        (
            lambda: models.application("MobileNet", 3, (8, 8, 3), arguments={"dropout": 1.5}),
            "`application` must take images of 8x8x3",
        ),
        (lambda: models.vision_transformer(3, 8, 1, 2, 3, (8, 8, 3)), r"`patch` must divide .* \(8 x 8\). Received 3"),
        (lambda: models.vision_transformer(4, 8, 1, 3, 3, (8, 8, 3)), r"`heads` must divide the width \(8\)"),
        (lambda: models.lstm([5], 3, (8,)), "`input_shape` must have at least two axes"),
    ],
)
def test_wrong_arguments_are_errors_in_three_parts(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"name": "application", "application": "MobileNetV9"}, "such as .MobileNetV2., .*`neural-alignment schema`"),
        ({"name": "application", "application": "VGG16", "arguments": {"alpha": 1.0}}, "model.arguments"),
        (
            {"name": "application", "application": "MobileNetV3Small", "arguments": {"minimalistic": 1}},
            "model.arguments.minimalistic: must be true or false, such as its default False; found 1",
        ),
        ({"name": "vision_transformer", "heads": 5}, r"model.heads: must divide the width \(64\)"),
        ({"name": "vision_transformer", "dropout": 1.0}, "model.dropout"),
        ({"name": "lstm", "units": []}, "model.units"),
    ],
)
def test_wrong_options_of_a_configuration_are_one_line(model, message):
    with pytest.raises(ConfigError, match=message) as raised:
        configuration.parse({**RUN, "model": model})
    assert "\n" not in str(raised.value)


def test_fewest_weights_are_those_of_the_forward_kernels():
    for options, build in (
        (models.MODELS["vision_transformer"](name="vision_transformer", patch=4, width=8, depth=2, heads=2),
         SMALL["vision_transformer"]),
        (models.MODELS["lstm"](name="lstm", units=[5, 4]), SMALL["lstm"]),
    ):  # fmt: skip
        model = build()
        kernels = [weight for weight in model.trainable_variables if weight.name.endswith("kernel")]
        assert options.fewest_weights(3, model.input_shape[1:]) == sum(int(np.prod(each.shape)) for each in kernels)
