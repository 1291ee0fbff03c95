"""`Dense` and `Conv2D`: the native layers plus a backward kernel and R."""

import contextlib
import itertools
import re
from typing import Any, ClassVar, Literal

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import (
    CASES,
    DENSE,
    LEARNING,
    READS_SIGNALS,
    RULE_CONFIGS,
    SAME,
    TABLE_5,
    VALID,
    DenseReference,
    LayerCase,
    assert_close,
    assert_differs,
    distance,
    exhaustive_unless,
    finite_difference,
    reference_carried,
    reference_regulariser,
    relu,
)

from neural_alignment import layers
from neural_alignment.alignments import (
    AlignAda,
    AlignProp,
    Feedback,
    Information,
    InputPath,
    KolenPollack,
    SignalAlignment,
    SignSymmetry,
    Symmetric,
    TrainedAlignment,
    forward_pass,
    from_config,
)
from neural_alignment.alignments.pathways import draw_noise, noise_key
from neural_alignment.models.rnn import Recurrent
from neural_alignment.training import AlignedModel
from optimizers import Momentum, MultiOptimizer

SCHEDULE = {"kind": "linear", "value": 0.5, "rate": -0.01, "start": 1.0, "stop": 40.0, "cycle": 7.0}

CONFIGS = {
    **RULE_CONFIGS,
    "symmetric scheduled": {"rule": "symmetric", "self_": SCHEDULE, "decay": {**SCHEDULE, "kind": "exponential"}},
    "information scheduled": {
        **RULE_CONFIGS["information"], **TABLE_5["IA"], "amp": SCHEDULE, "sparse_decay": True,
        "reconstruct_backward": True, "compare_reconstruction": True, "steps_per_epoch": 3, "seed": 7, "layers": "l*",
    },
    "weight_mirror noise": {**RULE_CONFIGS["weight_mirror"], **TABLE_5["WM+AD+OPS"]},
    "pfa expanded": {**RULE_CONFIGS["pfa"], "expansion": 3, "orthogonal": True},
}  # fmt: skip


def fill(layer, arrays):
    """Sets W, bias and B of a built layer to the arrays of a case, B given in the layout of W, as in mid-training."""
    layer.take_initial_kernel()
    layer.kernel.assign(arrays["w"])
    layer.bias.assign(arrays["bias"])
    layer._backward_kernel.assign(arrays["b"].T if isinstance(layer, layers.Dense) else arrays["b"])


def name_of(value):
    """Returns the name of a parameter of a test."""
    return value.name if isinstance(value, LayerCase) else str(value)


# One contract for every rule of the test table and every kind of layer.


@pytest.mark.parametrize(
    ("rule", "case"),
    exhaustive_unless(
        itertools.product(RULE_CONFIGS, CASES),
        lambda pair: pair[1] is DENSE or pair[0] in ("kolen_pollack", "information"),
    ),
    ids=name_of,
)
class TestContract:
    """What a layer does whatever its rule."""

    def layer(self, case, rule, **options):
        """Builds a layer of one rule."""
        return case.build(alignment=from_config(RULE_CONFIGS[rule]), name="layer", **options)

    def test_the_output_is_that_of_the_native_layer(self, rng, rule, case):
        arrays = case.arrays(rng)
        layer = self.layer(case, rule, activation="relu")
        fill(layer, arrays)
        expected = relu(case.linear.project(arrays["x"], arrays["w"]) + arrays["bias"])
        for training in (False, True, None):
            assert_close(layer(arrays["x"].astype(np.float32), training=training), expected)

    def test_the_error_travels_through_b_and_w_gets_the_outer_product(self, rng, rule, case):
        arrays = case.arrays(rng)
        layer = self.layer(case, rule)
        fill(layer, arrays)
        upstream = rng.normal(size=case.linear.project(arrays["x"], arrays["w"]).shape)
        x = tf.constant(arrays["x"], tf.float32)
        with tf.GradientTape() as tape:
            tape.watch(x)
            total = tf.reduce_sum(layer(x, training=True) * upstream)
        dx, dw, dbias = tape.gradient(total, [x, layer.kernel.value, layer.bias.value])
        fixed = layer.connection().fixed_kernel
        carried = reference_carried(rule, arrays["w"], arrays["b"], "layer", fixed=fixed)
        assert_close(dx, case.linear.reconstruct(upstream, carried, arrays["x"].shape))
        assert_differs(dx, case.linear.reconstruct(upstream, arrays["w"], arrays["x"].shape), by=0.1)
        assert_close(dw, case.linear.correlate(arrays["x"], upstream, arrays["w"].shape))
        assert_close(dbias, upstream.sum(axis=tuple(range(upstream.ndim - 1))))

    def test_there_is_a_loss_in_training_and_none_otherwise(self, rng, rule, case):
        arrays = case.arrays(rng)
        layer = self.layer(case, rule)
        fill(layer, arrays)
        x = arrays["x"].astype(np.float32)
        for training in (False, None):
            layer(x, training=training)
            assert layer.losses == []
        layer(x, training=True)
        if rule in LEARNING:
            (loss,) = layer.losses
            assert_close(loss, reference_regulariser(RULE_CONFIGS[rule], case.linear, *(arrays[k] for k in "xwb")))
        else:
            assert layer.losses == []

    def test_a_model_s_forward_pass_takes_the_loss_in_place_of_add_loss(self, rng, rule, case):
        layer = self.layer(case, rule)
        x = case.arrays(rng)["x"].astype(np.float32)
        with forward_pass() as state:
            layer(x, training=True)
        assert layer.losses == []
        assert set(state.losses) == ({"layer"} if rule in LEARNING else set())
        with forward_pass(regularise=False) as state:
            layer(x, training=True)
        assert state.losses == {}

    def test_b_is_trainable_where_the_rule_learns_it(self, rule, case):
        layer = self.layer(case, rule)
        trainable = any(v is layer._backward_kernel for v in layer.trainable_variables)
        assert trainable == (rule in LEARNING)
        assert any(v is layer._backward_kernel for v in layer.variables)
        shape = case.kernel_shape[::-1] if case is DENSE else case.kernel_shape
        assert tuple(layer.backward_kernel.shape) == shape
        assert layer.forward_kernel is layer.kernel

    def test_its_configuration_rebuilds_it(self, rule, case):
        layer = self.layer(case, rule, activation="tanh", alignment_activation="relu")
        again = type(layer).from_config(layer.get_config())
        assert again.alignment == layer.alignment
        assert again.alignment_activation is keras.activations.relu
        assert again.get_config() == layer.get_config()


@pytest.mark.parametrize("name", exhaustive_unless(CONFIGS, lambda name: " " in name or name in ("brsf", "feedback")))
def test_saving_keeps_rule_options_and_both_kernels(name, tmp_path):
    rule = from_config(CONFIGS[name])
    inputs = keras.Input((6, 6, 2))
    x = layers.Conv2D(3, 3, alignment=rule, alignment_activation="relu", name="l1")(inputs)
    x = layers.Dense(4, alignment=rule, activation="relu", name="l2")(keras.layers.Flatten()(x))
    model = keras.Model(inputs, x)
    for weight in model.weights:
        weight.assign(np.random.default_rng(len(weight.shape)).integers(1, 9, size=weight.shape))
    model.save(tmp_path / "model.keras")
    model.save_weights(tmp_path / "model.weights.h5")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    other = keras.models.clone_model(model)
    for weight in other.weights:
        weight.assign(0 * weight)
    other.load_weights(tmp_path / "model.weights.h5")

    images = np.random.default_rng(0).normal(size=(5, 6, 6, 2)).astype(np.float32)
    for copy in (loaded, other):
        for layer in ("l1", "l2"):
            ours, theirs = model.get_layer(layer), copy.get_layer(layer)
            assert theirs.alignment == rule
            assert theirs.alignment_activation is ours.alignment_activation
            np.testing.assert_array_equal(theirs.kernel, ours.kernel)
            np.testing.assert_array_equal(theirs.backward_kernel, ours.backward_kernel)
            assert np.any(theirs.backward_kernel)
        with forward_pass(step=5) as ours:
            model(images, training=True)
        with forward_pass(step=5) as theirs:
            copy(images, training=True)
        assert {k: float(v) for k, v in ours.losses.items()} == {k: float(v) for k, v in theirs.losses.items()}


# R as the layer wires it: bias, nonlinearity, projection, noise.


ACTIVATIONS = [("relu", None), (None, "relu"), ("linear", None), ("tanh", "relu")]
"""The nonlinearity of a layer, and the one that follows it."""


@pytest.mark.parametrize(
    ("case", "column", "activations"),
    exhaustive_unless(
        itertools.product(CASES, TABLE_5, ACTIVATIONS),
        lambda each: each[2] == ACTIVATIONS[0] if each[0] is VALID else each[0] is DENSE and each[1] in ("WM", "IA"),
    ),
    ids=name_of,
)
def test_table_5_in_a_layer_agrees_with_numpy(float64, rng, case, column, activations):
    rule = "information" if column == "IA" else "weight_mirror"
    config = {**RULE_CONFIGS[rule], **TABLE_5[column]}
    arrays = case.arrays(rng)
    own, following = activations
    layer = case.build(
        alignment=from_config(config, seed=9), activation=own, alignment_activation=following, name="here"
    )
    fill(layer, arrays)
    with tf.GradientTape() as tape, forward_pass(step=3, first_example=2) as state:
        layer(arrays["x"], training=True)
    b = layer._backward_kernel.value
    gradient = tape.gradient(state.losses["here"], b)
    x = draw_noise(InputPath(**config["input"]), tf.constant(arrays["x"]), noise_key(9, "here", 3), 2).numpy()
    activation = None if activations == ("linear", None) else relu

    def regulariser(kernel):
        return reference_regulariser(config, case.linear, x, arrays["w"], kernel, arrays["bias"], activation)

    assert_close(state.losses["here"], regulariser(arrays["b"]))
    expected = finite_difference(regulariser, arrays["b"])
    assert_close(gradient, case.linear.layout(expected), "finite difference")


def test_the_noise_has_the_shape_of_the_padded_input(float64, rng):
    """A convolution after explicit padding sees noise on the padding too."""
    arrays = VALID.arrays(rng)
    rule = from_config({**RULE_CONFIGS["activation"], "input": {"noise": "normal"}})
    inputs = keras.Input((4, 4, 2))
    layer = layers.Conv2D(2, (3, 2), strides=2, alignment=rule, name="padded")
    model = keras.Model(inputs, layer(keras.layers.ZeroPadding2D(((0, 1), (1, 0)))(inputs)))
    fill(layer, arrays)
    with forward_pass(step=1) as state:
        model(rng.normal(size=(3, 4, 4, 2)), training=True)
    key = noise_key(0, "padded", 1)
    noise = draw_noise(rule.input, tf.zeros((3, 5, 5, 2), tf.float64), key).numpy()
    expected = reference_regulariser(RULE_CONFIGS["activation"], VALID.linear, noise, arrays["w"], arrays["b"])
    assert_close(state.losses["padded"], expected)
    assert noise[:, -1].all()


def test_on_its_own_a_layer_counts_the_steps_of_its_noise_and_schedules(float64, rng):
    arrays = DENSE.arrays(rng)
    config = {**RULE_CONFIGS["weight_mirror"], "input": {"noise": "uniform"}, "seed": 2}
    layer = DENSE.build(alignment=from_config(config), name="alone")
    fill(layer, arrays)
    for step in range(3):
        layer(arrays["x"], training=True)
        x = draw_noise(InputPath(noise="uniform"), tf.constant(arrays["x"]), noise_key(2, "alone", step)).numpy()
        (loss,) = layer.losses
        assert_close(loss, reference_regulariser(config, DENSE.linear, x, arrays["w"], arrays["b"]))
        layer(arrays["x"], training=False)  # Evaluation does not count.


# Dense on more than two axes.


@pytest.mark.parametrize("rule", LEARNING)
def test_dense_on_rank_3_counts_the_middle_axis_as_space(float64, rng, rule):
    x, upstream = rng.normal(size=(4, 3, 5)), rng.normal(size=(4, 3, 2))
    arrays = {"w": rng.normal(size=(5, 2)), "b": rng.normal(size=(5, 2)), "bias": rng.normal(size=2)}
    options = {"forward_output": {"bias": True, "relu": True}} if rule in READS_SIGNALS else {}
    config = {**RULE_CONFIGS[rule], **options}
    layer = layers.Dense(2, activation="relu", alignment=from_config(config), name="wide")
    layer.build(x.shape)
    fill(layer, arrays)
    inputs = tf.constant(x)
    with tf.GradientTape(persistent=True) as tape, forward_pass() as state:
        tape.watch(inputs)
        outputs = layer(inputs, training=True)
        total = tf.reduce_sum(outputs * upstream)
    z = x @ arrays["w"] + arrays["bias"]
    error = upstream * (z > 0)
    assert_close(outputs, relu(z))
    fixed = layer.connection().fixed_kernel
    carried = reference_carried(rule, arrays["w"], arrays["b"], "wide", fixed=fixed)
    assert_close(tape.gradient(total, inputs), error @ carried.T)
    assert_close(tape.gradient(total, layer.kernel.value), np.einsum("nti,nto->io", x, error))

    def regulariser(kernel):
        return reference_regulariser(config, DenseReference(), x, arrays["w"], kernel, arrays["bias"], relu)

    assert_close(state.losses["wide"], regulariser(arrays["b"]))
    gradient = tape.gradient(state.losses["wide"], layer._backward_kernel.value)
    assert_close(gradient, finite_difference(regulariser, arrays["b"]).T, "finite difference")


# How B is drawn.

INITIALIZERS = {
    "unseeded": lambda: keras.initializers.VarianceScaling(1.0, "fan_in", "truncated_normal"),
    "int seed": lambda: keras.initializers.VarianceScaling(1.0, "fan_in", "truncated_normal", seed=5),
    "seed generator": lambda: keras.initializers.VarianceScaling(
        1.0, "fan_in", "truncated_normal", seed=keras.random.SeedGenerator(5)
    ),
}


def built(kind, initializer, name="layer"):
    """Returns a built layer of 20,000 weights or so."""
    if kind == "dense":
        layer = layers.Dense(50, kernel_initializer=initializer, alignment=Feedback(), name=name)
        layer.build((None, 400))
    else:
        layer = layers.Conv2D(20, (5, 4), kernel_initializer=initializer, alignment=Feedback(), name=name)
        layer.build((None, 9, 9, 50))
    return layer


def kernels(layer):
    """Returns W and B, both in the layout of W and flat."""
    b = layer.backward_kernel.numpy()
    return layer.kernel.numpy().ravel(), (b.T if b.ndim == 2 else b).ravel()


def correlation(first, second):
    """Returns the correlation of two kernels in standard errors."""
    return abs(np.corrcoef(first, second)[0, 1]) * np.sqrt(first.size)


@pytest.mark.parametrize("seed", INITIALIZERS)
@pytest.mark.parametrize("kind", ["dense", "conv"])
def test_w_and_b_are_independent_draws_of_one_initialiser(kind, seed):
    keras.utils.set_random_seed(1)
    w, b = kernels(built(kind, INITIALIZERS[seed]()))
    assert correlation(w, b) < 4
    assert b.std() == pytest.approx(w.std(), rel=0.03)
    # Variance 1 / fan-in of W: 400 for the dense layer, where the fan-in of B's own shape would be 50.
    assert w.var() == pytest.approx(1 / {"dense": 400, "conv": 5 * 4 * 50}[kind], rel=0.05)
    assert np.abs(np.sort(w) - np.sort(b)).max() > 0


@pytest.mark.parametrize("kind", ["dense", "conv"])
def test_two_layers_with_one_seed_differ_in_b(kind):
    (w1, b1), (w2, b2) = (kernels(built(kind, INITIALIZERS["int seed"](), name)) for name in ("one", "two"))
    np.testing.assert_array_equal(w1, w2)
    assert correlation(b1, b2) < 4


def test_one_initialiser_object_may_serve_many_layers():
    initializer = INITIALIZERS["int seed"]()
    draws = [kernels(built("dense", initializer, name))[1] for name in ("one", "two", "three")]
    assert max(correlation(draws[i], draws[j]) for i, j in [(0, 1), (0, 2), (1, 2)]) < 4


@pytest.mark.parametrize("seed", ["unseeded", "int seed"])
def test_the_same_seeds_give_the_same_b(seed):
    draws = []
    for _ in range(2):
        keras.utils.set_random_seed(6)
        draws.append(kernels(built("dense", INITIALIZERS[seed]()))[1])
    np.testing.assert_array_equal(*draws)


def test_the_global_seed_changes_b_where_the_initialiser_has_none():
    draws = []
    for global_seed in (1, 2):
        keras.utils.set_random_seed(global_seed)
        draws.append(kernels(built("dense", INITIALIZERS["unseeded"]()))[1])
    assert correlation(*draws) < 4


def same_numbers(shape, dtype=None):
    """Draws the same numbers at every call, as a seeded function does."""
    return tf.constant(np.random.default_rng(3).normal(0.1, 0.3, shape), dtype)


class Fixed(keras.initializers.Initializer):
    """Draws the same numbers at every call and has an empty configuration."""

    def __call__(self, shape, dtype=None):
        return same_numbers(shape, dtype)

    def get_config(self):
        return {}


class Unsaved(Fixed):
    def get_config(self):
        raise NotImplementedError


class Unreadable(Fixed):
    def __init__(self, spread):
        self.spread = spread

    def get_config(self):
        return {"seed": 3, "other": self.spread}


class Seeded(Fixed):
    """Keeps a seed and does not use it, or only for the scale."""

    def __init__(self, seed=3, scales=False):
        self.seed, self.scales = seed, scales

    def __call__(self, shape, dtype=None):
        return same_numbers(shape, dtype) * (1 + self.seed % 7 if self.scales else 1)

    def get_config(self):
        return {"seed": self.seed, "scales": self.scales}


DETERMINISTIC = {
    "function": lambda: same_numbers,
    "function with a seed": lambda: lambda shape, dtype=None: keras.random.normal(shape, 0.1, 0.3, dtype, seed=4),
    "function of NumPy": lambda: lambda shape, dtype=None: np.random.default_rng(3).normal(0.1, 0.3, shape),
    "class without a seed": Fixed,
    "class without a configuration": Unsaved,
    "class that cannot be copied": lambda: Unreadable(0.3),
    "class that ignores its seed": Seeded,
    "class whose seed is a scale": lambda: Seeded(scales=True),
}


@pytest.mark.parametrize("initializer", DETERMINISTIC)
@pytest.mark.parametrize("kind", ["dense", "conv"])
def test_an_initializer_that_repeats_itself_gives_an_independent_b(kind, initializer):
    w, b = kernels(built(kind, DETERMINISTIC[initializer]()))
    assert correlation(w, b) < 4
    assert b.std() == pytest.approx(w.std(), rel=0.03)
    assert b.mean() == pytest.approx(w.mean(), abs=0.02)
    np.testing.assert_array_equal(b, kernels(built(kind, DETERMINISTIC[initializer]()))[1])
    assert correlation(b, kernels(built(kind, DETERMINISTIC[initializer](), name="other"))[1]) < 4


def test_a_matrix_that_is_no_draw_gives_a_b_of_its_mean_and_variance():
    layer = layers.Dense(60, kernel_initializer="identity", alignment=Feedback())
    layer.build((None, 60))
    w, b = kernels(layer)
    assert correlation(w, b) < 4
    assert b.std() == pytest.approx(w.std(), rel=0.05)
    assert b.mean() == pytest.approx(w.mean(), abs=0.01)


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (2, 1)])
def test_the_smallest_kernels_have_a_b_of_their_own(shape):
    layer = layers.Dense(shape[1], kernel_initializer=same_numbers, alignment=Feedback())
    layer.build((None, shape[0]))
    w, b = kernels(layer)
    assert np.isfinite(b).all()
    assert not np.isclose(w, b).any()


@pytest.mark.parametrize(
    "initializer", ["ones", "zeros", keras.initializers.Constant(0.1), keras.initializers.RandomNormal(stddev=0.0),
                    lambda shape, dtype=None: tf.fill(shape, 0.3)],
)  # fmt: skip
def test_a_constant_kernel_has_no_independent_draw(initializer):
    layer = layers.Dense(2, kernel_initializer=initializer, alignment=Feedback(), name="constant")
    with pytest.raises(ValueError, match=r"must draw random numbers.*Received .* for layer 'constant'.*Example"):
        layer.build((None, 3))
    starts_at_w = layers.Dense(2, kernel_initializer=initializer, alignment=AlignProp())
    starts_at_w.build((None, 3))
    np.testing.assert_array_equal(*kernels(starts_at_w))


def test_feedback_alignment_with_a_function_for_initializer_does_not_start_as_backpropagation():
    x, upstream = np.random.default_rng(0).normal(size=(4, 6)), np.random.default_rng(1).normal(size=(4, 8))
    layer = layers.Dense(8, kernel_initializer=same_numbers, alignment=Feedback())
    inputs = tf.constant(x, tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        total = tf.reduce_sum(layer(inputs) * upstream)
    assert_differs(tape.gradient(total, inputs), upstream @ layer.kernel.numpy().T, by=0.5)


# Without an alignment.


@pytest.mark.parametrize("kind", ["dense", "conv"])
def test_without_an_alignment_the_layer_is_the_native_one(kind):
    if kind == "dense":
        pair = [cls(4, activation="tanh", kernel_initializer=keras.initializers.GlorotUniform(3), name="x")
                for cls in (layers.Dense, keras.layers.Dense)]  # fmt: skip
        x = tf.random.stateless_normal((3, 5), (0, 0))
    else:
        pair = [cls(4, 3, strides=2, padding="same", groups=2, kernel_initializer=keras.initializers.HeNormal(3))
                for cls in (layers.Conv2D, keras.layers.Conv2D)]  # fmt: skip
        x = tf.random.stateless_normal((3, 7, 6, 2), (0, 0))
    results = []
    for layer in pair:
        layer.build(x.shape)
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=True)
            total = tf.reduce_sum(tf.sin(y))
        results.append([y, *tape.gradient(total, [x, *(v.value for v in layer.trainable_variables)])])
    for ours, native in zip(*results, strict=True):
        np.testing.assert_array_equal(ours, native)
    assert len(pair[0].variables) == 2
    assert pair[0].losses == []
    assert type(pair[0]).from_config(pair[0].get_config()).alignment is None
    with pytest.raises(AttributeError, match="no backward kernel"):
        _ = pair[0].backward_kernel


def test_an_unbuilt_layer_says_that_it_has_no_backward_kernel():
    with pytest.raises(AttributeError, match=r"'here' has no backward kernel"):
        _ = layers.Dense(2, alignment=Feedback(), name="here").backward_kernel


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda a: layers.Conv2D(4, 3, data_format="channels_first", alignment=a), "`data_format`.*'channels_first'"),
        (lambda a: layers.Conv2D(4, 3, lora_rank=2, alignment=a), "`lora_rank`.*Received 2.*Example"),
        (lambda a: layers.Dense(4, lora_rank=2, alignment=a), "`lora_rank`.*Received 2.*Example"),
        (lambda a: layers.Dense(4, alignment="symmetric"), "`alignment`.*'symmetric'.*Example"),
        (lambda a: layers.Dense(4, alignment=Symmetric), "`alignment`.*Symmetric.*Example"),
        (lambda a: layers.Conv2D(4, 3, alignment=3), "`alignment`.*3.*Example"),
    ],
)
def test_what_cannot_be_aligned_is_an_error_at_construction(build, message):
    with pytest.raises(ValueError, match=message):
        build(Feedback())


@pytest.mark.parametrize(("strides", "dilation"), [((2, 3), 1), (1, (2, 3))])
def test_padding_strides_and_dilation_are_those_of_the_native_layer(rng, strides, dilation):
    layer = layers.Conv2D(2, 2, strides, "same", dilation_rate=dilation, alignment=Feedback(), use_bias=False)
    x = rng.normal(size=(2, 7, 8, 3)).astype(np.float32)
    y = layer(x, training=True)
    native = keras.layers.Conv2D(2, 2, strides, "same", dilation_rate=dilation, use_bias=False)
    native.build(x.shape)
    native.set_weights([layer.kernel])
    assert_close(y, native(x))


# Sign symmetry.


@pytest.mark.parametrize("case", [DENSE, SAME], ids=lambda case: case.name)
def test_sign_symmetry_follows_the_signs_of_w_and_keeps_the_norm_of_b(rng, case):
    layer = case.build(alignment=SignSymmetry(), name="signs")
    drawn = np.linalg.norm(layer._backward_kernel)
    for scale in (1.0, 30.0, 0.01):
        w = scale * rng.normal(size=case.kernel_shape)
        w.flat[0] = 0.0
        layer.kernel.assign(w)
        expected = np.sign(w) * drawn / np.linalg.norm(np.sign(w))
        assert_close(layer.backward_kernel, case.linear.layout(expected))
        assert_close(np.linalg.norm(layer.backward_kernel), drawn, "float32")
    layer.kernel.assign(np.zeros(case.kernel_shape))
    assert not np.any(layer.backward_kernel)


# In a plain Keras model.


def plain_model(rule):
    """Returns a `keras.Model` with aligned layers, and data."""
    keras.utils.set_random_seed(2)
    inputs = keras.Input((6, 6, 1))
    x = layers.Conv2D(4, 3, activation="relu", alignment=rule, name="first")(inputs)
    x = layers.Dense(3, alignment=rule, name="second")(keras.layers.Flatten()(x))
    rng = np.random.default_rng(0)
    return keras.Model(inputs, x), rng.normal(size=(32, 6, 6, 1)).astype(np.float32), rng.integers(0, 3, 32)


def keras_multi_optimizer():
    """Keras' own optimizer with one optimizer for B and one for the rest."""
    if not hasattr(keras.optimizers, "MultiOptimizer"):
        pytest.skip(f"Keras {keras.__version__} has no MultiOptimizer of its own")
    r, j = keras.optimizers.Adam(0.01), keras.optimizers.SGD(0.05, momentum=0.9)
    return keras.optimizers.MultiOptimizer(keras.optimizers.OptimizerMap(j, {".*backward_kernel": r}))


@pytest.mark.parametrize(
    "optimizer",
    [
        pytest.param(keras_multi_optimizer, marks=pytest.mark.exhaustive),
        lambda: MultiOptimizer([Momentum(0.05), keras.optimizers.Adam(0.01)]),
    ],
    ids=["keras", "ours"],
)  # fmt: skip
def test_a_plain_keras_model_trains(optimizer):
    rule = Information(amp=0.5, decay=0.4, null=0.1, input=InputPath(noise="normal"))
    model, x, y = plain_model(rule)
    model.compile(optimizer(), keras.losses.SparseCategoricalCrossentropy(from_logits=True), jit_compile=False)
    untrained = model.evaluate(x, y, verbose=0)
    before = {v.path: v.numpy() for v in model.variables}
    model.fit(x, y, batch_size=8, epochs=15, verbose=0)
    assert all((v.numpy() != before[v.path]).any() for v in model.variables)
    assert model.evaluate(x, y, verbose=0) < 0.7 * untrained
    for name in ("first", "second"):
        layer = model.get_layer(name)
        assert int(layer._step) == 15 * 4
        w, b = kernels(layer)
        assert np.corrcoef(w, b)[0, 1] > 0.5


def test_a_layer_called_twice_adds_the_loss_of_both_calls(rng):
    """R sums over the uses of a shared layer, with `add_loss` as in a model's forward pass."""
    arrays = DENSE.arrays(rng)
    layer = DENSE.build(alignment=from_config(RULE_CONFIGS["activation"]), name="shared")
    fill(layer, arrays)
    calls = [arrays["x"].astype(np.float32), 2 * arrays["x"].astype(np.float32)]
    expected = sum(
        reference_regulariser(RULE_CONFIGS["activation"], DENSE.linear, x, arrays["w"], arrays["b"]) for x in calls
    )

    inputs = keras.Input((5,))
    model = keras.Model(inputs, keras.layers.Add()([layer(inputs), layer(2 * inputs)]))
    model(calls[0], training=True)
    assert_close(sum(model.losses), expected)
    with forward_pass() as state:
        model(calls[0], training=True)
    assert_close(sum(state.losses.values()), expected)


class ReadingKernels(TrainedAlignment):
    """A rule that does not declare that it reads inputs."""

    rule: Literal["reading_kernels"] = "reading_kernels"

    def __call__(self, view):
        return tf.reduce_mean(view.inputs) * tf.reduce_sum(view.backward_kernel)


class ReadingSignals(SignalAlignment):
    """The same rule, which declares it."""

    rule: Literal["reading_signals"] = "reading_signals"
    __call__ = ReadingKernels.__call__


@pytest.mark.parametrize("inside", [False, True], ids=["add_loss", "forward pass"])
def test_a_rule_that_reads_inputs_must_declare_it(inside):
    """Otherwise R would be that of the first use of a layer only."""

    def shared(rule):
        layer, inputs = layers.Dense(2, alignment=rule, name="shared"), keras.Input((3,))
        return layer, keras.Model(inputs, keras.layers.Add()([layer(inputs), layer(2 * inputs)]))

    x = np.arange(12.0, dtype=np.float32).reshape(4, 3)
    with forward_pass() if inside else contextlib.nullcontext() as state:
        layer, model = shared(ReadingSignals())
        model(x, training=True)
        found = state.losses.values() if inside else model.losses
        assert_close(sum(found), 3 * x.mean() * layer.backward_kernel.numpy().sum(), "float32")
        _, model = shared(ReadingKernels())
        with pytest.raises(AttributeError, match=r"`inputs` can be read only by .* Received layer 'shared' .*Signal"):
            model(x, training=True)


class Returning(TrainedAlignment):
    """A rule whose R_l is a function of the backward kernel."""

    rule: Literal["returning"] = "returning"
    function: Any

    def __call__(self, view):
        return self.function(view.backward_kernel)


WRONG_R = {
    "(2,)": lambda b: tf.reduce_sum(b, axis=1),
    "(1,)": lambda b: tf.reduce_sum(b)[None],
    "(2, 3)": tf.square,
}


@pytest.mark.parametrize("inside", [False, True], ids=["add_loss", "forward pass"])
@pytest.mark.parametrize("shape", [*WRONG_R, None])
def test_an_r_that_is_not_a_scalar_is_refused(shape, inside):
    layer = layers.Dense(2, alignment=Returning(function=WRONG_R.get(shape, lambda b: None)), name="dense")
    message = r"`R_l` must be a scalar\. Received %s from rule 'returning' for layer 'dense'\. Example"
    x, found = np.ones((4, 3), np.float32), re.escape("None" if shape is None else f"shape {shape}")
    with pytest.raises(ValueError, match=message % found), forward_pass() if inside else contextlib.nullcontext():
        layer(x, training=True)


@pytest.mark.parametrize("function", [tf.reduce_sum, lambda b: 0.5], ids=["tensor", "number"])
def test_an_r_may_be_a_tensor_or_a_number(function):
    layer = layers.Dense(2, alignment=Returning(function=function), name="dense")
    with forward_pass() as state:
        layer(np.ones((4, 3), np.float32), training=True)
    assert_close(state.losses["dense"], float(function(layer.backward_kernel)), "float32")


class ReadingWrongly(SignalAlignment):
    """A rule that reads signals, whose R_l is a function of the forward kernel or of a B without a gradient."""

    rule: Literal["reading_wrongly"] = "reading_wrongly"
    function: Any

    def __call__(self, view):
        return tf.reduce_mean(view.inputs) * self.function(view)


INDEPENDENT = {
    "a number": lambda view: 0.5,
    "of W": lambda view: tf.reduce_sum(view.forward_kernel),
    "behind a stop": lambda view: tf.reduce_sum(tf.stop_gradient(view.backward_kernel)),
}


class FromKernels(ReadingWrongly):
    """The same without signals."""

    reads_signals: ClassVar[bool] = False
    rule: Literal["from_kernels"] = "from_kernels"

    def __call__(self, view):
        return self.function(view)


def model_of_two(kind, rule):
    """Returns a compiled model in which only the second layer has the rule."""
    inputs = keras.Input((3,))
    first = layers.Dense(3, alignment=Symmetric(self_=0.1, decay=0.1), name="right")(inputs)
    model = kind(inputs, layers.Dense(2, alignment=rule, name="wrong")(first))
    model.compile(MultiOptimizer([Momentum(0.1)]), "mse", jit_compile=False)
    return model


WRONG = [*itertools.product(INDEPENDENT, (ReadingWrongly, FromKernels), (False, True))]


@pytest.mark.parametrize(("form", "kind", "update_forward"), exhaustive_unless(WRONG, WRONG[::3]))
def test_an_r_that_does_not_depend_on_b_is_refused(form, kind, update_forward):
    """B would keep its initial value without a message."""
    x, y = np.ones((4, 3)), np.ones((4, 2))
    model = model_of_two(AlignedModel, kind(function=INDEPENDENT[form], update_forward=update_forward))
    name = kind.model_fields["rule"].default
    with pytest.raises(ValueError, match=rf"^`R_l` of rule '{name}' must depend on .* of layer 'wrong'"):
        model.train_on_batch(x, y)
    model.get_layer("wrong").trainable = False  # Then R_l trains nothing.
    model.train_on_batch(x, y)


def freeze_layer(layer):
    layer.trainable = False


def freeze_b(layer):
    layer._backward_kernel.trainable = False


def freeze_w(layer):
    (layer.cell if hasattr(layer, "cell") else layer).kernel.trainable = False


@pytest.mark.parametrize(("freeze", "which"), [(freeze_w, "W"), (freeze_b, "B"), (freeze_layer, None)])
@pytest.mark.parametrize("kind", [layers.Dense, layers.GRU])
def test_tied_kernels_are_frozen_together(kind, freeze, which):
    """The other one would move alone, away from it."""
    inputs = keras.Input((4, 5))
    layer = kind(3, alignment=KolenPollack(decay=0.0), name="tied")
    model = AlignedModel(inputs, layer(inputs))
    freeze(layer)
    if which is None:
        model.compile("sgd", "mse")
        return
    message = rf"`trainable` of W and B must be equal with the rule 'kolen_pollack'.* a frozen {which} in layer 'tied"
    with pytest.raises(ValueError, match=message):
        model.compile("sgd", "mse")


@pytest.mark.parametrize("update_forward", [False, True])
@pytest.mark.parametrize(
    ("freeze", "computes"),
    [
        ((), "always"),
        ((freeze_layer,), "never"),
        ((freeze_w,), "always"),
        ((freeze_b,), "with update_forward"),
        ((freeze_w, freeze_b), "never"),
    ],
)
@pytest.mark.parametrize("rule", ["information", "symmetric"])
@pytest.mark.parametrize("kind", [layers.Dense, layers.GRU])
def test_r_is_computed_only_if_it_trains_a_kernel(rng, kind, rule, freeze, computes, update_forward):
    alignment = from_config({**RULE_CONFIGS[rule], "update_forward": update_forward})
    layer = kind(3, alignment=alignment, name="layer")
    x = rng.normal(size=(2, 4, 5)).astype(np.float32)
    layer(x)
    for change in freeze:
        change(layer)
    with forward_pass() as state:
        layer(x, training=True)
    layer(x, training=True)  # Outside of a forward pass of ours, with `add_loss`.
    own = {"always": True, "never": False, "with update_forward": update_forward}[computes]
    expected = {"layer" if kind is layers.Dense else "layer.kernel"} if own else set()
    if kind is layers.GRU and freeze_layer not in freeze:
        expected.add("layer.recurrent_kernel")
    assert set(state.losses) == expected
    assert len(layer.losses) == len(expected)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("rule", ["information", "activation", "kolen_pollack", "pfa"])
def test_mixed_precision_computes_in_half_and_keeps_r_and_the_weights_in_float32(rng, policy, rule):
    arrays = SAME.arrays(rng)
    layer = SAME.build(alignment=from_config(RULE_CONFIGS[rule]), dtype=policy, name="mixed")
    fill(layer, arrays)
    with tf.GradientTape() as tape, forward_pass() as state:
        y = layer(arrays["x"], training=True)
    assert y.dtype == policy.removeprefix("mixed_")
    gradient = tape.gradient(state.losses["mixed"], layer._backward_kernel.value)
    assert state.losses["mixed"].dtype == gradient.dtype == layer.kernel.dtype == "float32"
    config = RULE_CONFIGS[rule]
    exact = finite_difference(
        lambda b: reference_regulariser(config, SAME.linear, arrays["x"], arrays["w"], b), arrays["b"]
    )
    assert np.linalg.norm(gradient - exact) / np.linalg.norm(exact) < 2e-2


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16", "bfloat16", "mixed_float16"])
@pytest.mark.parametrize("rule", ["information", "symmetric"])
def test_a_stateless_call_computes_r_from_the_weights_that_are_passed(rng, policy, rule):
    arrays = SAME.arrays(rng)
    inputs = keras.Input(SAME.input_shape[1:], dtype="float32")
    layer = SAME.build(alignment=from_config(RULE_CONFIGS[rule]), dtype=policy, name="layer")
    model = keras.Model(inputs, layer(inputs))
    values = {"kernel": arrays["w"], "backward_kernel": SAME.linear.layout(arrays["b"]), "bias": arrays["bias"]}
    passed = [tf.cast(values[variable.name], variable.dtype) for variable in model.trainable_variables]
    fixed = [variable.value for variable in model.non_trainable_variables]
    x = tf.constant(arrays["x"], tf.float32)
    _, _, losses = model.stateless_call(passed, fixed, x, training=True, return_losses=True)
    expected = reference_regulariser(RULE_CONFIGS[rule], SAME.linear, arrays["x"], arrays["w"], arrays["b"])
    # With the weights of the layer, R would differ by more.
    assert float(sum(losses)) == pytest.approx(expected, rel=1e-4 if policy == "float32" else 3e-2)


@pytest.mark.parametrize("policy", ["float16", "mixed_float16", "bfloat16"])
@pytest.mark.parametrize("rule", ["sign_symmetry", "frsf", "brsf"])
def test_the_error_of_a_large_layer_of_half_precision_is_finite_and_travels_through_the_signs(rng, rule, policy):
    """Half the number of signs, and the sum of squares of B, are beyond 65,504, the largest number of float16."""
    layer = layers.Dense(400, alignment=from_config({"rule": rule}), dtype=policy, name="large")
    layer.build((None, 400))
    w, b = (rng.normal(size=(400, 400)) for _ in range(2))
    layer.kernel.assign(w)
    layer._backward_kernel.assign(b.T)
    x = tf.constant(rng.normal(size=(2, 400)), layer.compute_dtype)
    upstream = rng.normal(size=(2, 400)) / 16
    with tf.GradientTape() as tape:
        tape.watch(x)
        total = tf.reduce_sum(tf.cast(layer(x, training=True), tf.float32) * upstream.astype(np.float32))
    dx = np.asarray(tape.gradient(total, x), np.float32)
    assert w.size > 131_000
    assert np.isfinite(dx).all()
    expected = upstream @ reference_carried(rule, w, b, "large").T
    assert distance(dx, expected) < (2e-2 if policy == "bfloat16" else 5e-3)


@pytest.mark.parametrize("method", ["enable_lora", "quantize"])
def test_what_would_replace_the_kernel_is_refused_later_too(method):
    layer = layers.Dense(3, alignment=Feedback(), name="late")
    layer.build((None, 4))
    with pytest.raises(ValueError, match=f"`{method}` must not be called on an aligned layer.*'late'.*Example"):
        getattr(layer, method)("int8" if method == "quantize" else 4)


HOLDERS = {
    "dense": lambda rule: layers.Dense(3, alignment=rule, name="late"),
    "attention": lambda rule: layers.MultiHeadAttention(2, 3, alignment=rule, name="late"),
    "recurrent": lambda rule: Recurrent(3, 2, alignment=rule, name="late"),
}


@pytest.mark.parametrize("kind", HOLDERS)
@pytest.mark.parametrize("built", [False, True])
def test_the_rule_of_a_layer_is_that_of_its_constructor(kind, built):
    """A built layer has no B for another rule, and the constructor checks its arguments with the rule."""
    for first, later in ((None, AlignAda()), (AlignAda(), None)):
        layer = HOLDERS[kind](first)
        if built:
            layer.build((None, 4, 5), *([(None, 4, 5)] if kind == "attention" else []))
        with pytest.raises(ValueError, match=r"^`alignment` must not be changed .* for layer 'late' with .*Example"):
            layer.alignment = later
        assert layer.alignment == first


# Inputs that are not dense floats.

INPUTS = {
    "int32": lambda x: np.round(4 * x).astype(np.int32),
    "uint8": lambda x: np.abs(np.round(4 * x)).astype(np.uint8),
    "bool": lambda x: x > 0,
    "float16": lambda x: x.astype(np.float16),
    "float64": lambda x: x,
}


@pytest.mark.parametrize(
    ("rule", "dtype"),
    exhaustive_unless(
        itertools.product(["feedback", "align_prop", "symmetric", "information", "kolen_pollack"], INPUTS),
        lambda pair: pair[0] == "information" or pair[1] == "int32",
    ),
)
def test_inputs_of_any_dtype_count_as_the_same_numbers(rng, rule, dtype):
    """As in the native dense layer; the native convolution refuses integers."""
    for case in (DENSE, SAME):
        arrays = case.arrays(rng)
        layer = case.build(alignment=from_config(RULE_CONFIGS[rule]), name="layer")
        fill(layer, arrays)
        x = INPUTS[dtype](arrays["x"])
        outputs = layer(x, training=True)
        assert outputs.dtype == "float32"
        assert_close(outputs, layer(x.astype(np.float32), training=True))
        if case is DENSE:
            native = keras.layers.Dense(3)
            native.build((None, 5))
            native.set_weights([arrays["w"], arrays["bias"]])
            assert_close(outputs, native(x))


@pytest.mark.parametrize(
    ("rule", "integers"),
    exhaustive_unless(
        itertools.product(["feedback", "symmetric", "information", "kolen_pollack"], [False, True]),
        lambda pair: pair[0] == "information" or not pair[1],
    ),
)
def test_a_sparse_input_counts_as_the_dense_one(rule, integers):
    """As in the native dense layer, in a functional model, with the entries in any order."""
    values = np.array([3, 1, 2], np.int32 if integers else np.float32)
    sparse = tf.SparseTensor([[2, 3], [0, 1], [1, 0]], values, (3, 5))
    dense = tf.sparse.to_dense(tf.sparse.reorder(sparse)).numpy().astype(np.float32)

    def trained(is_sparse):
        keras.utils.set_random_seed(3)
        inputs = keras.Input((5,), sparse=is_sparse, dtype=values.dtype.name if is_sparse else "float32")
        model = keras.Model(inputs, layers.Dense(2, alignment=from_config(RULE_CONFIGS[rule]), name="layer")(inputs))
        model.compile("sgd", "mse", run_eagerly=True)
        model.train_on_batch(sparse if is_sparse else dense, np.ones((3, 2)))
        return model.get_weights()

    for found, expected in zip(trained(True), trained(False), strict=True):
        assert_close(found, expected)


# Layers that Keras builds inside of a graph.


class Stack(keras.Model):
    """A model whose layers are built when it is first called."""

    def __init__(self, *stack):
        super().__init__()
        self.stack = stack

    def call(self, inputs, training=None):
        for layer in self.stack:
            inputs = layer(inputs)
        return inputs


def sequential(*stack):
    """Returns a sequential model of layers."""
    return keras.Sequential(stack)


STACKS = [
    ("feedback", "glorot_uniform", sequential),
    ("feedback", "seed generator", Stack),
    ("symmetric", "function", sequential),
    ("align_prop", "glorot_uniform", sequential),
    ("pfa", "seed generator", Stack),
    ("align_prop", "glorot_uniform", Stack),
]


@pytest.mark.parametrize(("rule", "initializer", "make"), exhaustive_unless(STACKS, STACKS[1:5]))
def test_a_model_that_is_built_by_its_first_step_trains(rule, initializer, make):
    initializers = {"seed generator": INITIALIZERS["seed generator"](), "function": same_numbers}
    options = {"kernel_initializer": initializers.get(initializer, initializer)}
    stack = [layers.Dense(30, alignment=from_config(RULE_CONFIGS[rule]), name=name, **options) for name in "ab"]
    model = make(*stack)
    model.compile(keras.optimizers.SGD(0.0), "mse", jit_compile=False)
    x = np.random.default_rng(0).normal(size=(8, 40)).astype(np.float32)
    model.train_on_batch(x, np.ones((8, 30), np.float32))
    for layer in stack:
        w, b = kernels(layer)
        assert np.array_equal(w, b) == (rule == "align_prop")
        assert rule == "align_prop" or correlation(w, b) < 4
        assert b.std() == pytest.approx(w.std(), rel=0.1)


def test_a_layer_that_is_built_in_a_function_works():
    layer = layers.Dense(30, alignment=Feedback(), kernel_initializer="glorot_normal")
    x = np.ones((2, 40), np.float32)
    outputs = tf.function(layer, autograph=False)(x)
    assert_close(outputs, x @ layer.kernel.numpy())
    assert correlation(*kernels(layer)) < 4


@pytest.mark.parametrize("shape", [(4, 3), (3, 2)])
def test_a_small_multiple_of_w_is_no_independent_draw(shape):
    layer = layers.Dense(shape[1], kernel_initializer=Seeded(scales=True), alignment=Feedback())
    layer.build((None, shape[0]))
    w, b = kernels(layer)
    assert abs(w @ b) < 0.999 * np.linalg.norm(w) * np.linalg.norm(b)


def test_kernels_without_entries_and_with_entries_that_are_not_finite():
    empty = layers.Dense(3, alignment=Feedback())
    empty.build((None, 0))
    assert tuple(empty.backward_kernel.shape) == (3, 0)
    broken = layers.Dense(3, kernel_initializer=lambda shape, dtype=None: tf.fill(shape, np.nan), alignment=Feedback())
    with pytest.raises(ValueError, match="values that are not finite"):
        broken.build((None, 2))
