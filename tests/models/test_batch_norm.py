"""The fused batch normalisation is Keras', number by number."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import assert_close, distance, exhaustive_unless

from neural_alignment.alignments import Feedback, Symmetric
from neural_alignment.config import Runtime
from neural_alignment.models import FusedBatchNormalization, convert, convnet, resnet
from neural_alignment.models.batch_norm import BatchAxisNormalization
from neural_alignment.training import AlignedModel, distribution, load_model
from optimizers import Momentum, MultiOptimizer

SHAPE = (6, 5, 4, 3)
MOMENTUM = 0.7
KERNEL = "FusedBatchNormV3"


def twins(shape=SHAPE, **options):
    """Returns the fused layer and Keras', of the same weights, none of them at its default."""
    options = {"momentum": MOMENTUM, "epsilon": 1e-5, **options}
    layers = [FusedBatchNormalization(**options), keras.layers.BatchNormalization(**options)]
    generator = np.random.default_rng(1)
    layers[0].build((None, *shape[1:]))
    layers[1].build((None, *shape[1:]))
    values = [generator.uniform(0.5, 1.5, weight.shape) for weight in layers[0].weights]
    for layer in layers:
        layer.set_weights(values)
    return layers


def images(shape=SHAPE, dtype=tf.float32, seed=2):
    return tf.cast(np.random.default_rng(seed).normal(1.0, 2.0, shape), dtype)


def step(layer, x, training=True, jit=False):
    """Returns outputs, gradients by the inputs and the trained weights, and the moving statistics after a step."""
    mix = tf.cast(np.random.default_rng(3).normal(size=x.shape), x.dtype)

    @tf.function(jit_compile=jit)
    def function(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            outputs = layer(x, training=training)
            loss = tf.reduce_sum(tf.cast(mix, outputs.dtype) * tf.tanh(outputs))
        return outputs, tape.gradient(loss, [x, *(weight.value for weight in layer.trainable_variables)])

    outputs, gradients = function(x)
    return [each.numpy() for each in (outputs, *gradients)], [each.numpy() for each in layer.non_trainable_variables]


def kernels(layer, x, training=True):
    function = tf.function(lambda x: layer(x, training=training))
    return {operation.type for operation in function.get_concrete_function(x).graph.get_operations()}


def assert_equal(actual, expected, rtol=2e-5):
    for one, other in zip([*actual[0], *actual[1]], [*expected[0], *expected[1]], strict=True):
        # NumPy 1 cannot compare bfloat16.
        np.testing.assert_allclose(*(np.asarray(each, np.float64) for each in (one, other)), rtol=rtol, atol=rtol)


@pytest.mark.parametrize(
    ("options", "jit"),
    exhaustive_unless(
        itertools.product([{}, {"scale": False}, {"center": False}, {"axis": 3}], [False, True]),
        lambda case: not case[0] or not case[1],
    ),
)
def test_a_training_step_is_that_of_keras(options, jit):
    fused, reference = twins(**options)
    assert KERNEL in kernels(fused, images())
    assert KERNEL not in kernels(reference, images())
    fused, reference = twins(**options)
    assert_equal(step(fused, images(), jit=jit), step(reference, images()))


def test_the_moving_variance_is_the_batchs_own_and_not_the_estimate_that_the_kernel_returns():
    fused, _ = twins()
    before = fused.moving_variance.numpy()
    x = images()
    fused(x, training=True)
    moved = (fused.moving_variance.numpy() - MOMENTUM * before) / (1 - MOMENTUM)
    np.testing.assert_allclose(moved, np.var(x, axis=(0, 1, 2)), rtol=1e-5)
    assert not np.allclose(moved, np.var(x, axis=(0, 1, 2), ddof=1), rtol=1e-3)


@pytest.mark.parametrize(
    ("options", "shape", "dtype"),
    [
        ({"dtype": "float64"}, SHAPE, tf.float64),
        ({"dtype": "mixed_bfloat16"}, SHAPE, tf.bfloat16),
        ({}, (6, 3), tf.float32),
        ({}, (6, 4, 3), tf.float32),
        ({"axis": 1}, SHAPE, tf.float32),
        ({"synchronized": True}, SHAPE, tf.float32),
    ],
)
def test_unsupported_inputs_use_the_implementation_of_keras(options, shape, dtype):
    x = images(shape, dtype)
    fused, reference = twins(shape, **options)
    assert KERNEL not in kernels(fused, x)
    fused, reference = twins(shape, **options)
    assert_equal(step(fused, x), step(reference, x), rtol=0)


def test_in_inference_and_when_frozen_the_moving_statistics_are_used_and_stay():
    x = images()
    for training, trainable in ((False, True), (True, False)):
        fused, reference = twins()
        fused.trainable = reference.trainable = trainable
        before = fused.moving_mean.numpy()
        assert_equal(step(fused, x, training), step(reference, x, training), rtol=0)
        np.testing.assert_array_equal(fused.moving_mean, before)


def test_a_mask_is_respected():
    x, mask = images(), np.random.default_rng(4).integers(0, 2, SHAPE[:3]).astype(bool)
    fused, reference = twins()
    np.testing.assert_array_equal(fused(x, training=True, mask=mask), reference(x, training=True, mask=mask))


@pytest.mark.parametrize(
    "model",
    [
        lambda: resnet(18, 1, 10, (8, 8, 3), stem="cifar", width=4),
        lambda: convnet([4], 10, (8, 8, 3), batch_norm=True),
    ],
)
def test_the_models_use_it_and_are_loaded_with_it(model, tmp_path):
    model = model()
    norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    assert norms
    model.save(tmp_path / "model.keras")
    loaded = load_model(tmp_path / "model.keras")
    for layer in norms:
        assert type(layer) is type(loaded.get_layer(layer.name)) is FusedBatchNormalization
    x = images((2, 8, 8, 3))
    np.testing.assert_array_equal(loaded(x), model(x))


# Scale and shift that are not trained.


def fixed(**options):
    """Returns a layer whose scale and shift are not at their defaults and not trained, and one of Keras, trained."""
    layer, reference = FusedBatchNormalization(train_scale_and_shift=False, **options), twins(**options)[1]
    layer.build((None, *SHAPE[1:]))
    layer.set_weights([weight.numpy() for weight in reference.weights])
    return layer, reference


@pytest.mark.parametrize(("jit", "dtype"), [(True, "float32"), (False, "float64")])
def test_scale_and_shift_that_are_not_trained_leave_the_statistics_as_they_are(dtype, jit):
    layer, reference = fixed(momentum=MOMENTUM, epsilon=1e-5, dtype=dtype)
    assert [weight.name for weight in layer.trainable_variables] == []
    assert [weight.path.split("/")[-1] for weight in layer.weights] == [
        "gamma",
        "beta",
        "moving_mean",
        "moving_variance",
    ]
    x = images(dtype=dtype)
    ours, (*_, mean, variance) = step(layer, x, jit=jit)
    theirs, moved = step(reference, x, jit=jit)
    assert_equal((ours, [mean, variance]), (theirs[:2], moved))
    # What Keras offers for it normalises by the moving statistics and leaves them as they are.
    _, frozen = fixed(momentum=MOMENTUM, epsilon=1e-5, dtype=dtype)
    frozen.trainable = False
    wrong, stayed = step(frozen, x, jit=jit)
    assert distance(wrong[0], ours[0]) > 0.1
    assert distance(stayed[-2], mean) > 0.05


NETWORKS = {
    "resnet": lambda **options: resnet(18, 1, 10, (8, 8, 3), stem="cifar", width=2, **options),
    "resnet v2": lambda **options: resnet(18, 2, 10, (8, 8, 3), stem="cifar", width=2, **options),
    "convnet": lambda **options: convnet([4, 4], 10, (8, 8, 3), **options),
}


@pytest.mark.parametrize("network", exhaustive_unless(NETWORKS, ("resnet v2",)))
def test_networks_keep_scale_and_shift_through_saving_and_conversion(network, tmp_path):
    rule = Feedback()
    models = {"built": NETWORKS[network](batch_norm_trainable=False, alignment=rule)}
    models["built"].save(tmp_path / "model.keras")
    models["loaded"] = load_model(tmp_path / "model.keras")
    models["converted"] = convert(NETWORKS[network](batch_norm_trainable=False), rule).model
    models["cloned"] = keras.models.clone_model(models["built"])
    trained = [weight.path for weight in NETWORKS[network](alignment=rule).trainable_variables]
    expected = [path for path in trained if not path.endswith(("/gamma", "/beta"))]
    assert len(expected) < len(trained)
    for model in models.values():
        model.trainable = False
        model.trainable = True  # As for a network that is first frozen and then trained.
        assert [weight.path for weight in model.trainable_variables] == expected
        assert len(model.weights) == len(models["built"].weights)


@pytest.mark.parametrize("replicas", [pytest.param(1, marks=pytest.mark.exhaustive), 2])
def test_training_moves_the_statistics_and_neither_scale_nor_shift(replicas):
    strategy = tf.distribute.get_strategy()
    if replicas > 1:
        strategy = distribution.create(Runtime(strategy="mirrored", replicas=replicas)).strategy
    with strategy.scope():
        network = NETWORKS["convnet"](batch_norm_trainable=False, alignment=Symmetric(self_=1e-3, decay=1e-3))
        model = AlignedModel(network.input, network.output)
        optimizer = MultiOptimizer([Momentum(0.1), keras.optimizers.Adam(0.01)])
        model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True), jit_compile=False)
    before = {weight.path: weight.numpy() for weight in model.weights}
    model.fit(images((8, 8, 8, 3)), np.arange(8), batch_size=4, verbose=0)
    for weight in model.weights:
        moved = not np.array_equal(weight.numpy(), before[weight.path])
        assert moved != weight.path.endswith(("/gamma", "/beta")), weight.path
    assert not any("gamma" in each.path or "beta" in each.path.split("/")[-1] for each in optimizer.variables)


def test_scale_and_shift_that_are_not_there_cannot_be_left_untrained():
    with pytest.raises(ValueError, match="`batch_norm_trainable` must be True without batch normalisation"):
        convnet([4], 10, (8, 8, 3), batch_norm=False, batch_norm_trainable=False)


# Over only the batch axis.


@pytest.mark.parametrize("shape", [(6, 5, 4, 3), (7, 8)])
def test_the_kernel_over_the_batch_axis_is_the_formula_in_numpy(shape):
    layer = BatchAxisNormalization()
    x = images(shape).numpy()
    x[..., 0] = 0.25 + 1e-3 * x[..., 0]  # Where epsilon is seen beside the variance.
    mix = np.random.default_rng(3).normal(size=shape)
    single, double = (axis_step(layer, x, mix, dtype) for dtype in (tf.float32, tf.float64))
    assert single[2]
    assert not double[2]
    centred = x.astype(np.float64) - x.astype(np.float64).mean(0)
    r = 1 / np.sqrt(np.square(centred).mean(0) + 1e-6)
    y = r * centred
    expected = y, r * (mix - mix.mean(0) - y * (mix * y).mean(0))
    for ours, right in zip(double[:2], expected, strict=True):
        assert_close(ours, right)
    for ours, right in zip(single[:2], expected, strict=True):
        np.testing.assert_allclose(ours, right, atol=2e-4 * np.abs(right).max())
    unbiased = np.square(centred).sum(0) / (len(x) - 1) + 1e-6
    assert distance(single[0], centred / np.sqrt(unbiased)) > 0.05
    assert distance(single[0], centred / np.sqrt(np.square(centred).mean(0) + 1e-3)) > 1e-3


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_statistics_over_the_batch_axis_are_taken_in_float32(dtype):
    """Of numbers far from zero: in half precision their mean is off by more than their spread."""
    x = tf.cast(100 + np.random.default_rng(2).normal(size=(64, 6)), dtype)
    layer = BatchAxisNormalization(dtype=f"mixed_{dtype}")
    outputs = layer(x)
    wide = x.numpy().astype(np.float64)
    expected = (wide - wide.mean(0)) / np.sqrt(wide.var(0) + 1e-6)
    assert outputs.dtype == dtype
    np.testing.assert_allclose(outputs.numpy().astype(np.float64), expected, atol=0.02)
    mean = tf.reduce_mean(x, 0)
    narrow = (x - mean) / tf.sqrt(tf.reduce_mean(tf.square(x - mean), 0))
    assert np.abs(narrow.numpy().astype(np.float64) - expected).max() > 0.02


def axis_step(layer, x, mix, dtype):
    """Returns outputs, gradient, and whether the kernel of TensorFlow was taken."""

    @tf.function
    def function(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            outputs = layer.call(x)
        return outputs, tape.gradient(outputs, x, output_gradients=tf.cast(mix, dtype))

    x = tf.cast(x, dtype)
    operations = {each.type for each in function.get_concrete_function(x).graph.get_operations()}
    return *(value.numpy() for value in function(x)), KERNEL in operations
