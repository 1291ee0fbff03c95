"""W(0): the rules that need it take it before the first training step, whatever was assigned or loaded until then."""

import functools
import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import assert_close, assert_differs, distance, exhaustive_unless, two_replicas

from neural_alignment.alignments import AlignAda, AlignProp, AlignZero
from neural_alignment.layers import Conv2D, Dense
from neural_alignment.models import convert
from neural_alignment.training import AlignedModel
from optimizers import MultiOptimizer

RULES = {"align_prop": AlignProp, "align_zero": AlignZero, "align_ada": AlignAda}
EXAMPLES, RATE = 12, 0.3


def network(rule, kind=AlignedModel, seed=1):
    """Returns a small model with a convolution and two dense layers, not compiled."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((5, 5, 2))
    x = Conv2D(3, 3, activation="tanh", alignment=rule, name="first")(inputs)
    x = keras.layers.Flatten()(x)
    x = Dense(6, activation="tanh", alignment=rule, name="second")(x)
    return kind(inputs, Dense(4, alignment=rule, name="last")(x))


def compiled(model, jit_compile=False, **options):
    model.compile(MultiOptimizer([keras.optimizers.SGD(RATE)]), loss="mse", jit_compile=jit_compile, **options)
    return model


def data():
    rng = np.random.default_rng(0)
    return rng.normal(size=(EXAMPLES, 5, 5, 2)), rng.normal(size=(EXAMPLES, 4))


def assign(model, seed=2):
    """Assigns other weights to every trainable variable."""
    rng = np.random.default_rng(seed)
    for variable in model.trainable_variables:
        variable.assign(rng.normal(scale=0.4, size=variable.shape))


def forward(model):
    """Returns copies of the weights that J moves."""
    return [variable.numpy() for variable in model.trainable_variables]


@functools.cache
def backpropagation():
    """Returns a compiled model without backward kernels; its optimizer keeps nothing from one step to the next."""
    return compiled(network(None))


def first_step_of_backpropagation(weights):
    """Returns the weights after one step of plain gradient descent from `weights`."""
    model = backpropagation()
    for variable, value in zip(model.trainable_variables, weights, strict=True):
        variable.assign(value)
    model.train_on_batch(*data())
    return forward(model)


def check_first_step(model, train=lambda model: model.train_on_batch(*data())):
    """Fails unless the next step is that of backpropagation, and the one after it is not.

    At the first step W is W(0) for all these rules.
    """
    expected = first_step_of_backpropagation(forward(model))
    train(model)
    for found, right in zip(forward(model), expected, strict=True):
        assert_close(found, right)
    plain = first_step_of_backpropagation(forward(model))
    train(model)
    pairs = zip(forward(model), plain, strict=True)
    assert max(distance(found, other) for found, other in pairs) > 1e-6


pytestmark = pytest.mark.usefixtures("float64")
every_rule = pytest.mark.parametrize("name", RULES)
every_mechanism = pytest.mark.parametrize("name", ["align_prop", "align_zero"])  # Align-ada shares Align-zero's copy.


@pytest.mark.parametrize(
    ("moment", "name"),
    exhaustive_unless(
        itertools.product(["built", "made", "compiled", "evaluated", "traced"], ["align_prop", "align_zero"]),
        lambda case: (case[0] in ("made", "evaluated")) == (case[1] == "align_zero"),
    ),
)
def test_weights_assigned_before_the_first_step_count(name, moment):
    plain = network(RULES[name](), keras.Model)
    if moment == "built":
        assign(plain)
    model = AlignedModel(plain.input, plain.output)
    if moment == "made":
        assign(model)
    compiled(model)
    if moment == "evaluated":
        model.evaluate(*data(), verbose=0)
    if moment == "traced":
        model.make_train_function()
        model.train_function.trace(iter(tf.data.Dataset.from_tensors(data())))
    if moment not in ("built", "made"):
        assign(model)
    check_first_step(model)


@every_rule
def test_weights_assigned_after_the_first_step_do_not_count(name):
    model = compiled(network(RULES[name]()))
    model.train_on_batch(*data())
    assign(model)
    expected = first_step_of_backpropagation(forward(model))
    model.train_on_batch(*data())
    kernels = [(found, right) for found, right in zip(forward(model), expected, strict=True) if found.ndim > 1]
    assert max(distance(found, right) for found, right in kernels[:-1]) > 1e-3
    if name != "align_zero":  # The readout of the others sees live activities and no backward kernel.
        assert_close(*kernels[-1])


TRAINING = {
    "fit": lambda model: model.fit(*data(), batch_size=EXAMPLES, verbose=0),
    "eagerly": lambda model: (compiled(model, run_eagerly=True), model.train_on_batch(*data())),
    "two steps together": lambda model: (
        compiled(model, steps_per_execution=2), model.fit(*data(), batch_size=EXAMPLES, verbose=0),
    ),
    "train_step": lambda model: model.train_step(data()),
    "train_step in a function": lambda model: tf.function(model.train_step, autograph=False)(
        tuple(tf.constant(each) for each in data())
    ),
    "XLA": lambda model: (compiled(model, jit_compile=True), model.train_on_batch(*data())),
}  # fmt: skip


@pytest.mark.parametrize("training", exhaustive_unless(TRAINING, {*TRAINING} - {"XLA"}))
def test_every_way_of_training_takes_w_0(training):
    model = compiled(network(AlignProp()))
    assign(model)
    check_first_step(model, TRAINING[training])


def through_keras(model, path):
    model.save(path / "model.keras")
    return keras.models.load_model(path / "model.keras")


def through_weights(model, path):
    model.save_weights(path / "model.weights.h5")
    loaded = compiled(network(type(model.get_layer("first").alignment)(), seed=5))
    loaded.load_weights(path / "model.weights.h5")
    return loaded


def through_checkpoint(model, path):
    tf.train.Checkpoint(model=model).write(str(path / "checkpoint"))
    loaded = compiled(network(type(model.get_layer("first").alignment)(), seed=5))
    tf.train.Checkpoint(model=loaded).read(str(path / "checkpoint")).assert_existing_objects_matched()
    return loaded


def through_set_weights(model, path):
    del path
    loaded = compiled(network(type(model.get_layer("first").alignment)(), seed=5))
    loaded.set_weights(model.get_weights())
    return loaded


class Extended(AlignedModel):
    """Has a custom step."""

    def train_step(self, data):
        return super().train_step(data)


def in_a_function(model):
    """Returns the training step of a custom loop, which is traced once."""
    step = tf.function(model.train_step, autograph=False)
    return lambda: step(tuple(tf.constant(each) for each in data()))


AGAIN = {
    "fit": (AlignedModel, lambda model: lambda: model.fit(*data(), batch_size=EXAMPLES, verbose=0)),
    "a custom step": (Extended, lambda model: lambda: model.fit(*data(), batch_size=EXAMPLES, verbose=0)),
    "a custom loop": (AlignedModel, in_a_function),
}


@pytest.mark.parametrize(
    ("name", "how"),
    exhaustive_unless(
        [
            ("align_prop", "fit"),
            ("align_zero", "fit"),
            ("align_prop", "a custom loop"),
            ("align_zero", "a custom step"),
        ],
        [("align_prop", "a custom loop"), ("align_zero", "fit")],
    ),
)
def test_weights_of_before_the_first_step_open_w_0_again(name, how):
    """Loading them undoes the training, and weights that are assigned afterwards are W(0)."""
    kind, training = AGAIN[how]
    model = compiled(network(RULES[name](), kind))
    untrained = model.get_weights()
    train = training(model)
    train()
    model.set_weights(untrained)
    assign(model)
    check_first_step(model, lambda _: train())


def test_weights_assigned_by_a_callback_at_the_beginning_count():
    model = compiled(network(AlignZero()))
    begin = keras.callbacks.LambdaCallback(on_train_begin=lambda logs: assign(model))
    assign(backpropagation())
    expected = first_step_of_backpropagation(forward(backpropagation()))
    model.fit(*data(), batch_size=EXAMPLES, verbose=0, callbacks=[begin])
    for found, right in zip(forward(model), expected, strict=True):
        assert_close(found, right)


@pytest.mark.parametrize("minibatches", [1, 2])
def test_align_prop_stores_w_0_once(minibatches):
    model = compiled(network(AlignProp()), minibatches=minibatches)
    for _ in range(3):
        model.train_on_batch(*data())
    assert {int(layer._step) for layer in model.layers if hasattr(layer, "kernel")} == {1}


def test_w_0_may_be_taken_before_the_model_is_compiled():
    model = network(AlignProp())
    model.take_initial_weights()
    start = model.get_layer("second").kernel.numpy()
    assign(model)
    np.testing.assert_array_equal(model.get_layer("second").backward_kernel.numpy().T, start)


LOADING = [
    *(("align_prop", load, 2) for load in (through_keras, through_weights, through_checkpoint, through_set_weights)),
    ("align_zero", through_keras, 2),
    ("align_zero", through_checkpoint, 2),
    ("align_zero", through_keras, 0),
    ("align_prop", through_checkpoint, 0),
]


@pytest.mark.parametrize(
    ("name", "load", "steps"), exhaustive_unless(LOADING, [LOADING[1], LOADING[2], LOADING[4], LOADING[7]])
)
def test_a_loaded_model_trains_as_the_one_that_was_saved(name, load, steps, tmp_path):
    """A model that is saved before the first step has no W(0) yet; afterwards W(0) is saved with it."""
    model = compiled(network(RULES[name]()))
    assign(model)
    for _ in range(steps):
        model.train_on_batch(*data())
    loaded = load(model, tmp_path)
    if not steps:
        for each in (model, loaded):
            assign(each, seed=7)
    for each in (model, loaded):
        each.train_on_batch(*data())
        each.train_on_batch(*data())
    for found, right in zip(forward(loaded), forward(model), strict=True):
        assert_close(found, right)


@every_mechanism
def test_another_optimizer_or_compilation_does_not_take_w_0_again(name):
    model, undisturbed = (compiled(network(RULES[name]())) for _ in range(2))
    for each in (model, undisturbed):
        for _ in range(2):
            each.train_on_batch(*data())
    compiled(model)
    for each in (model, undisturbed):
        each.train_on_batch(*data())
    for found, right in zip(forward(model), forward(undisturbed), strict=True):
        assert_close(found, right)


@every_mechanism
def test_a_converted_model_begins_anew(name):
    model = compiled(network(RULES[name]()))
    for _ in range(2):
        model.train_on_batch(*data())
    plain = network(None, keras.Model)
    for variable, value in zip(plain.trainable_variables, forward(model), strict=True):
        variable.assign(value)
    converted = convert(plain, RULES[name]()).model
    assign(converted)
    check_first_step(compiled(AlignedModel(converted.input, converted.output)))


@every_mechanism
def test_replicas_take_one_w_0(name):
    strategy = two_replicas()
    with strategy.scope():
        model = compiled(network(RULES[name]()))
    assign(model)
    check_first_step(model)


def keras_model(subclassed):
    """Returns a plain Keras model with Align-prop: functional, or of a class whose layers are built when called."""
    if not subclassed:
        return network(AlignProp(), keras.Model)
    functional = network(AlignProp(), keras.Model)
    stack = [type(layer).from_config(layer.get_config()) for layer in functional.layers[1:]]

    class Stack(keras.Model):
        def __init__(self):
            super().__init__()
            self.stack = stack

        def call(self, inputs):
            for layer in self.stack:
                inputs = layer(inputs)
            return inputs

    class TrainingStack(Stack):
        def call(self, inputs, training=None):
            return super().call(inputs)

    model = TrainingStack() if subclassed == "with training" else Stack()
    model(np.zeros((1, 5, 5, 2)))
    return model


class TestOutsideOfAnAlignedModel:
    """Align-prop in a plain Keras model: each layer takes W(0) in its first backward pass."""

    @pytest.mark.parametrize(
        ("subclassed", "policy"),
        [(False, "mixed_bfloat16"), ("with training", "float64"), ("without training", "mixed_bfloat16")],
    )
    def test_b_is_w_at_the_first_training_step(self, subclassed, policy):
        """Keras passes no `training` to the layers of a class whose `call` has no such argument."""
        keras.config.set_dtype_policy(policy)
        model = compiled(keras_model(subclassed))
        assign(model)
        start = {layer.name: layer.kernel.numpy() for layer in model._flatten_layers() if hasattr(layer, "kernel")}
        model.predict(data()[0], verbose=0)
        for _ in range(3):
            model.train_on_batch(*data())
        for layer in model._flatten_layers():
            if hasattr(layer, "kernel"):
                kept = layer.backward_kernel.numpy()
                np.testing.assert_array_equal(kept.T if kept.ndim == 2 else kept, start[layer.name])
                assert_differs(layer.kernel, start[layer.name])

    def test_it_trains_as_the_aligned_model(self):
        plain, aligned = network(AlignProp(), keras.Model), network(AlignProp())
        for model in (plain, aligned):
            compiled(model)
            assign(model)
            for _ in range(4):
                model.train_on_batch(*data())
        for found, right in zip(forward(plain), forward(aligned), strict=True):
            assert_close(found, right)

    def test_replicas_take_one_w_0(self):
        strategy = two_replicas()
        with strategy.scope():
            model = compiled(network(AlignProp(), keras.Model))
        assign(model)
        start = model.get_layer("second").kernel.numpy()
        for _ in range(3):
            model.train_on_batch(*data())
        np.testing.assert_array_equal(model.get_layer("second").backward_kernel.numpy().T, start)

    def test_a_custom_loop_trains_as_the_aligned_model(self):
        plain, aligned = network(AlignProp(), keras.Model), compiled(network(AlignProp()))
        optimizer, (x, y) = keras.optimizers.SGD(RATE), map(tf.constant, data())
        for model in (plain, aligned):
            assign(model)
        for _ in range(4):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean((plain(x) - y) ** 2)
            optimizer.apply(tape.gradient(loss, plain.trainable_variables), plain.trainable_variables)
            aligned.train_on_batch(x, y)
        for found, right in zip(forward(plain), forward(aligned), strict=True):
            assert_close(found, right)

    def test_gradients_at_inference_do_not_take_it(self):
        model, (x, _) = network(AlignProp(), keras.Model), map(tf.constant, data())
        with tf.GradientTape() as tape:
            tape.watch(x)
            total = tf.reduce_sum(model(x, training=False))
        assert np.any(tape.gradient(total, x))
        assert int(model.get_layer("second")._step) == 0

    def test_until_then_b_follows_w(self):
        layer = Dense(3, alignment=AlignProp())
        layer.build((None, 4))
        for seed in (1, 2):
            layer.kernel.assign(np.random.default_rng(seed).normal(size=(4, 3)))
            np.testing.assert_array_equal(layer.backward_kernel.numpy().T, layer.kernel.numpy())
