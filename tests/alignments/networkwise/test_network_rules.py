"""Rules for whole networks in a run: YAML, saving, resuming, `describe`, and refused models."""

import copy
import zlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import distance, exhaustive_unless

from neural_alignment import config as configuration
from neural_alignment import convert, models
from neural_alignment.alignments import (
    AlignAda,
    AlignZero,
    DirectFeedback,
    Feedback,
    forward_pass,
    from_config,
    networkwise_rules,
)
from neural_alignment.alignments.networkwise import TrainingBatch
from neural_alignment.alignments.networkwise.graph import kernels_ahead
from neural_alignment.errors import ConfigError
from neural_alignment.keras_internals import calls
from neural_alignment.layers import Conv2D, Dense, MultiHeadAttention, TimeDistributed
from neural_alignment.training import AlignedModel, load_model, run, setup
from neural_alignment.training.describe import describe
from optimizers import Momentum, MultiOptimizer, Noisy

BASE = {
    "epochs": 1,
    "batch_size": 50,
    "max_steps": 6,
    "data": {"source": "digits"},
    "model": {"name": "wide_cnn", "design": "kmnist", "width": 2},
    "loss": {"kind": "squared_error", "shift": 0.1},
    "optimization": {"forward": {"name": "momentum", "learning_rate": 0.5}},
    "logging": {"tensorboard": False},
}


def config(rule, **changes):
    return configuration.parse(configuration.merge({**BASE, "alignment": {"rule": rule}}, changes))


def test_kernels_ahead_counts_the_layers_on_the_longest_path():
    """The branch with more operations has fewer kernels, so it comes first in the order of the forward pass."""
    inputs = keras.Input((4,))
    x = Dense(4, name="first")(inputs)
    x = keras.layers.Activation("relu", name="split")(x)
    long = keras.layers.Dropout(0.1, name="second_dropout")(keras.layers.Dropout(0.1, name="first_dropout")(x))
    short = Dense(4, name="second")(x)
    outputs = Dense(3, name="readout")(keras.layers.Add(name="sum")([short, long]))
    graph = list(calls(keras.Model(inputs, outputs)))
    ahead = {"readout": 0, "sum": 1, "second": 1, "second_dropout": 1, "first_dropout": 1, "split": 2, "first": 2}
    found = kernels_ahead(graph)
    assert {name: found[name] for name in ahead} == ahead


@pytest.mark.parametrize("rule", exhaustive_unless(networkwise_rules(), ("align_ada",)))
def test_a_run_is_written_and_loaded_and_what_a_rule_keeps_does_not_move(rule, tmp_path):
    run.train(config(rule), tmp_path / "whole")
    start = setup.build_model(config(rule), 10, (8, 8, 1), 28)
    keras.utils.set_random_seed(1)  # Values that loading draws differ from the kept ones.
    whole = load_model(tmp_path / "whole" / "model.keras")
    kept, kept_at_start = whole.bound_rule.kept_values, start.bound_rule.kept_values
    for first, second in zip(kept, kept_at_start, strict=True):
        assert np.array_equal(first, second)
    assert bool(kept) == (rule != "last_layer")
    if rule.startswith("align"):
        for first, second in zip(kept, start.trainable_variables, strict=True):
            assert np.array_equal(first, second)
    assert from_config({"rule": rule}).rule == rule
    assert rule in describe(config(rule))


class Adding(keras.layers.Layer):
    """Adds a loss of its activities."""

    def call(self, inputs):
        self.add_loss(tf.reduce_sum(inputs))
        return inputs


@pytest.mark.parametrize("rule", networkwise_rules())
def test_losses_of_activities_are_refused_because_they_would_have_no_gradient(rule):
    rule = from_config({"rule": rule})

    def model(extra=lambda x: x, **options):
        inputs = keras.Input((4,))
        hidden = Dense(3, alignment=rule, kernel_regularizer="l2", name="hidden", **options)(inputs)
        return AlignedModel(inputs, Dense(2, alignment=rule)(extra(hidden)))

    with pytest.raises(ValueError, match=r"loss of its activities\. Received Dense 'hidden' with an `activity_reg"):
        model(activity_regularizer="l2")
    with pytest.raises(ValueError, match=r"Received ActivityRegularization '.*' with an `activity_regularizer`"):
        model(keras.layers.ActivityRegularization(l2=0.1))
    x, y = tf.ones((2, 4)), tf.zeros((2, 2), tf.int32)
    adding = model(Adding(name="adding"))
    with pytest.raises(ValueError, match=r"Received Adding 'adding' with `add_loss`\. Example: `kernel_regularizer`"):
        adding.bound_rule.forward(TrainingBatch(x, y[:, 0]))
    assert model().bound_rule.forward(TrainingBatch(x, y[:, 0])) is not None


def test_combinations_without_a_meaning_are_refused_in_one_line():
    with pytest.raises(ConfigError, match="with align_zero, which is a rule for the whole network"):
        config("align_zero", alignment={"layers": "conv*"})
    with pytest.raises(ConfigError, match="with align_ada, which is a rule for the whole network"):
        configuration.parse({**BASE, "alignment": [{"rule": "feedback", "layers": "conv*"}, {"rule": "align_ada"}]})
    with pytest.raises(ConfigError, match="no rule of this run trains a backward kernel"):
        config("dfa", optimization={"alternation": 1})
    for shape in [(None, None, 3), (8, None, 3)]:
        inputs = keras.Input(shape)
        x = Conv2D(4, 3, activation="relu", alignment=DirectFeedback(), name="hidden")(inputs)
        open_ended = Dense(3, alignment=DirectFeedback())(keras.layers.GlobalAveragePooling2D()(x))
        with pytest.raises(ValueError, match=r"hidden sizes are known.*'hidden' of shape \(None, \w+, None, 4\)"):
            AlignedModel(inputs, open_ended)
    model = models.wide_cnn("kmnist", 2, 3, (4, 4, 1), AlignZero())
    with pytest.raises(ValueError, match="is a rule for a whole network"):
        model(np.zeros((2, 4, 4, 1), np.float32), training=True)
    mixed = models.wide_cnn("kmnist", 2, 3, (4, 4, 1), [AlignAda(layers="conv*"), Feedback()])
    with pytest.raises(
        ValueError, match=r"must be one rule without `layers` with '.*Received layers='conv\*'\. Example: "
    ):
        AlignedModel(mixed.input, mixed.output)
    inputs = keras.Input((4,))
    hidden = Dense(3, alignment=AlignAda(), name="ours")(inputs)
    with pytest.raises(
        ValueError, match=r"every layer with a kernel must have it\. Received 'none' for layer 'theirs'"
    ):
        AlignedModel(inputs, keras.layers.Dense(2, name="theirs")(hidden))
    with pytest.raises(ValueError, match=r"'align_ada' needs a network with one output\. Received 2"):
        AlignedModel(inputs, [Dense(2, alignment=AlignAda())(hidden), Dense(3, alignment=AlignAda())(hidden)])
    recurrent = models.rnn(3, 2, (4, 1), alignment=DirectFeedback())
    with pytest.raises(ValueError, match=r"'dfa' needs a network with outputs \(batch, classes\)"):
        AlignedModel(recurrent.input, recurrent.output)
    with pytest.raises(ValueError, match="`alignment` of a recurrent layer"):
        models.rnn(3, 2, (4, 1), alignment=Feedback())
    with pytest.raises(ValueError, match=r"`alignment` must be a rule of .* Received \[AlignAda"):
        models.rnn(3, 2, (4, 1), alignment=[AlignAda()])
    with pytest.raises(
        ValueError, match=r"`alignment` must be a rule, a list of rules, or None\. Received 'align_ada'"
    ):
        models.fc([3], 2, (4,), alignment="align_ada")
    with pytest.raises(ValueError, match=r"`name` must be one of application, convnet, .*, wide_cnn\. Received 'cnn'"):
        models.build("cnn", 2, (4, 1))
    with pytest.raises(ValueError, match="`parameterization` must be one of"):
        models.wide_cnn("kmnist", 2, 3, (4, 4, 1), parameterization="mup")
    for rule in (AlignAda(), AlignZero()):
        dropped = keras.layers.Dropout(0.5, name="dropped")(Dense(3, alignment=rule)(inputs))
        with pytest.raises(ValueError, match=r"no layer that draws random numbers\. Received Dropout 'dropped'"):
            AlignedModel(inputs, Dense(2, alignment=rule)(dropped))


def residual_blocks(version, last, rule):
    """Returns a ResNet-18 as far as a layer in its second group, and a dense layer.

    It has shortcuts that are the identity, a convolution, and a convolution with stride 2.
    """
    whole = models.resnet(18, version, 3, (8, 8, 1), rule, stem="cifar", width=2)
    x = keras.layers.GlobalAveragePooling2D()(whole.get_layer(last).output)
    return keras.Model(whole.input, Dense(3, alignment=rule, name="readout")(x))


def network(kind, rule):
    """Returns a compiled model of the library, the same weights for all rules."""
    keras.utils.set_random_seed(2)
    model = {
        "residual blocks": lambda: residual_blocks(1, "group2_block1_relu", rule),
        "residual blocks v2": lambda: residual_blocks(2, "group2_block2_input_relu", rule),
        "convnet": lambda: models.convnet([3, 4], 3, (8, 8, 1), rule),
        "fc": lambda: models.fc([6, 5], 3, (8, 8, 1), rule, activation="tanh"),
    }[kind]()
    for layer in model.layers:  # A gamma of 1 and a beta of 0 would hide errors in their treatment.
        if isinstance(layer, keras.layers.BatchNormalization):
            for weight in layer.trainable_variables:
                weight.assign(np.random.default_rng(len(layer.name)).uniform(0.5, 1.5, weight.shape))
    model = AlignedModel(model.input, model.output)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1), loss=loss, run_eagerly=True)
    return model


IMAGES, LABELS = np.random.default_rng(0).random((4, 8, 8, 1)), np.array([0, 1, 2, 0])
KINDS = ("residual blocks", "residual blocks v2", "convnet", "fc")


@pytest.mark.parametrize("kind", exhaustive_unless(KINDS, ("residual blocks v2", "fc")))
def test_at_the_first_step_any_network_learns_as_by_backpropagation(kind, float64):
    ends = []
    for rule in (None, AlignAda(), AlignZero()):
        model = network(kind, rule)
        start = [v.numpy() for v in model.trainable_variables]
        model.train_on_batch(IMAGES, LABELS)
        ends.append([v.numpy() for v in model.trainable_variables])
    moved = [np.abs(end - begin).max() for begin, end in zip(start, ends[0], strict=True)]
    assert np.mean(np.array(moved) > 1e-6) > 0.7  # All but biases before batch normalisation.
    for first, *others in zip(*ends, strict=True):
        for other in others:
            np.testing.assert_allclose(first, other, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("kind", exhaustive_unless(KINDS, ("convnet",)))
def test_align_zero_moves_any_network_by_the_gradients_of_a_frozen_copy(kind, float64):
    model, reference, frozen = network(kind, AlignZero()), network(kind, None), network(kind, None)

    def gradients(error):
        with tf.GradientTape() as tape:
            outputs = frozen(IMAGES, training=True)
        return tape.gradient(outputs, [v.value for v in frozen.trainable_variables], output_gradients=error)

    for _ in range(3):
        model.train_on_batch(IMAGES, LABELS)
        with tf.GradientTape() as tape:
            outputs = reference(IMAGES, training=True)
            loss = reference.compute_loss(x=IMAGES, y=LABELS, y_pred=outputs)
        error = tape.gradient(loss, outputs)
        before = [v.numpy() for v in reference.trainable_variables]
        for variable, gradient in zip(reference.trainable_variables, gradients(error), strict=True):
            variable.assign_sub(0.1 * gradient)
    for ours, theirs in zip(model.trainable_variables, reference.trainable_variables, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12, err_msg=ours.path)
    # A plausible mistake: scales and shifts of batch normalisation that are live in the frozen pass.
    live = [number for number, v in enumerate(frozen.trainable_variables) if v.path.endswith(("gamma", "beta"))]
    right = np.concatenate([gradient.numpy().ravel() for gradient in gradients(error)])
    for number in live:
        frozen.trainable_variables[number].assign(before[number])
    wrong = np.concatenate([gradient.numpy().ravel() for gradient in gradients(error)])
    assert distance(right, wrong) > 1e-3 if live else kind == "fc"


def trained(outputs_of, rule, steps=10):
    """Returns the trained weights of the layers of a small network after some steps, by name.

    Args:
        outputs_of: makes outputs from `keras.Input((5,))` and a function that makes dense layers.
        rule: its rule.
        steps: how many.
    """

    def dense(units, name, activation=None):
        start = keras.initializers.RandomNormal(seed=zlib.crc32(name.rstrip("ab").encode()))
        return Dense(units, activation=activation, use_bias=False, name=name, alignment=rule, kernel_initializer=start)

    inputs = keras.Input((5,))
    model = AlignedModel(inputs, outputs_of(inputs, dense))
    model.compile(keras.optimizers.SGD(0.5), loss="mse", jit_compile=False)
    x, y = np.random.default_rng(0).normal(size=(8, 5)), np.random.default_rng(1).random((8, 3))
    for _ in range(steps):
        model.train_on_batch(x, y)
    return {layer.name: layer.kernel.numpy() for layer in model.layers if hasattr(layer, "kernel")}


def twins(inputs, dense):
    """Two branches of one start meet in the readout, whose kernel has each row twice."""
    hidden = dense(6, "first", "tanh")(inputs)
    branches = [dense(4, f"branch{side}", "tanh")(hidden) for side in "ab"]
    readout = dense(3, "readout")
    merged = keras.layers.Concatenate()(branches)
    outputs = readout(merged)
    half = keras.initializers.RandomNormal(seed=3)((4, 3))
    readout.kernel.assign(keras.ops.concatenate([half, half]))
    return outputs


@pytest.mark.parametrize("rule", [None, AlignAda(), AlignZero()], ids=lambda rule: rule and rule.rule)
def test_equal_branches_learn_equally(rule, float64):
    kernels = trained(twins, rule)
    np.testing.assert_allclose(kernels["brancha"], kernels["branchb"], rtol=1e-12)


def test_the_nonlinearity_of_the_outputs_is_not_the_one_before_the_readout():
    for ending in (None, "sigmoid"):
        model = models.fc([6, 5], 3, (5,), AlignAda(), output_activation=ending)
        assert AlignAda().cuts(model).activations == {"dense1"}
    softmax = keras.layers.Softmax(name="softmax")(model.layers[-1].output)
    assert AlignAda().cuts(keras.Model(model.inputs, softmax)).activations == {"dense1"}


OPTIMIZERS = {
    "weight decay": lambda **options: MultiOptimizer([keras.optimizers.AdamW(0.1, weight_decay=0.5)], **options),
    "noise": lambda **options: MultiOptimizer([Noisy(Momentum(0.1), variance=1.0)], **options),
    "of Keras": lambda **options: keras.optimizers.SGD(0.1, weight_decay=0.5),
}


IDLE = [
    (optimizer, options, minibatches)
    for minibatches in (1, 2)
    for optimizer, options in (
        *(("weight decay", {}), ("weight decay", {"skip_idle": False})),
        *(("noise", {"skip_idle": False}), ("of Keras", {})),
    )
]


@pytest.mark.parametrize(("optimizer", "options", "minibatches"), exhaustive_unless(IDLE, (IDLE[2], IDLE[3], IDLE[5])))
def test_weights_that_a_rule_does_not_train_stay_as_they_are(optimizer, options, minibatches):
    rule = from_config({"rule": "last_layer"})
    inputs = keras.Input((4,))
    x = keras.layers.Dense(3, name="hidden", kernel_regularizer="l2")(inputs)
    native = keras.Model(inputs, keras.layers.Dense(2, name="last")(keras.layers.LayerNormalization()(x)))
    model = convert(native, rule).model
    model = AlignedModel(model.input, model.output)
    before = [weight.numpy() for weight in model.trainable_variables]
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(OPTIMIZERS[optimizer](**options), loss, minibatches=minibatches, jit_compile=False)
    rng = np.random.default_rng(0)
    model.fit(rng.normal(size=(12, 4)), rng.integers(0, 2, size=12), batch_size=4, verbose=0)
    moved = [not np.array_equal(old, new) for old, new in zip(before, model.trainable_variables, strict=True)]
    assert moved == [False] * 4 + [True] * 2


ENDINGS = {
    "activation": (lambda x, rule: Dense(3, activation="softmax", alignment=rule, name="end")(x), "'softmax' in 'end'"),
    "layer": (lambda x, rule: keras.layers.Softmax(name="end")(Dense(3, alignment=rule)(x)), "'Softmax' in 'end'"),
    "activation layer": (
        lambda x, rule: keras.layers.Activation("sigmoid", name="end")(Dense(3, alignment=rule)(x)),
        "'sigmoid' in 'end'",
    ),
    "operation": (lambda x, rule: keras.ops.softmax(Dense(3, alignment=rule)(x)), "'Softmax' in 'softmax"),
    "before other layers": (
        lambda x, rule: keras.layers.Reshape((3,))(Dense(3, activation="tanh", alignment=rule, name="end")(x)),
        "'tanh' in 'end'",
    ),
    "linear": (lambda x, rule: Dense(3, activation="linear", alignment=rule)(x), None),
    "linear layer": (lambda x, rule: keras.layers.Activation("linear")(Dense(3, alignment=rule)(x)), None),
    "sum": (lambda x, rule: keras.layers.Add()([Dense(3, alignment=rule)(x), keras.ops.tanh(x)]), None),
}


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("name", networkwise_rules())
def test_rules_whose_error_is_that_before_a_nonlinearity_refuse_one_at_the_outputs(name, ending):
    """The error is meant at the logits; DRTP sends targets, and the readout gets the true gradient in any case."""
    rule, (end, found) = from_config({"rule": name}), ENDINGS[ending]
    inputs = keras.Input((3,))
    outputs = end(Dense(3, activation="relu", alignment=rule)(inputs), rule)
    needs = networkwise_rules()[name].needs_linear_outputs
    assert needs or name not in ("align_zero", "align_ada", "dfa")
    if found is None or not needs:
        assert AlignedModel(inputs, outputs).bound_rule is not None
    else:
        with pytest.raises(
            ValueError, match=rf"{name!r} needs a network with linear outputs.*Received {found}.*from_log"
        ):
            AlignedModel(inputs, outputs)


def test_a_run_with_a_rule_that_is_not_defined_for_its_model_is_refused_in_one_line():
    wrong = config("dfa", model={"name": "fc", "hidden": [4], "output_activation": "sigmoid"})
    with pytest.raises(
        ConfigError, match=r"^alignment: 'dfa' needs a network with linear outputs.*'sigmoid' in 'dense'"
    ):
        setup.build_model(wrong, 10, (8, 8, 1), 28)


FUNCTIONS = {
    "tanh": keras.ops.tanh,
    "relu": keras.activations.relu,
    "exponential": keras.activations.exponential,
    "threshold": lambda x: keras.activations.threshold(x, 0.1, 0.0),
}


APPLIED = [(rule, function) for rule in ("align_ada", "dfa") for function in FUNCTIONS]
TURNS = [("align_ada", "relu"), ("align_ada", "threshold"), ("dfa", "tanh"), ("dfa", "exponential")]


@pytest.mark.parametrize(("rule", "function"), exhaustive_unless(APPLIED, TURNS))
def test_a_function_is_the_nonlinearity_that_its_layer_is(rule, function, float64):
    rule, function = {"align_ada": AlignAda(), "dfa": DirectFeedback()}[rule], FUNCTIONS[function]

    def layers(nonlinearity):
        def outputs_of(inputs, dense):
            hidden = nonlinearity(dense(6, "first")(inputs))
            hidden = nonlinearity(dense(6, "second")(hidden))
            return dense(3, "readout")(nonlinearity(dense(6, "third")(hidden)))

        return outputs_of

    def layer(x):
        return keras.layers.Activation(function)(x)

    expected, found = trained(layers(layer), rule), trained(layers(function), rule)
    for name, kernel in found.items():
        np.testing.assert_allclose(kernel, expected[name], rtol=1e-12, err_msg=name)


def resnet_like(inputs, dense):
    """A block with a shortcut: its first nonlinearity and its sum enter kernels, the last sum into the readout."""
    stem = dense(6, "stem", "tanh")(inputs)
    for block in ("one", "two"):
        inner = dense(6, f"{block}_in", "tanh")(stem)
        stem = keras.layers.Activation("tanh", name=f"{block}_sum")(stem + dense(6, f"{block}_out")(inner))
    return dense(3, "readout")(stem)


def test_align_ada_of_a_network_with_shortcuts_is_that_of_numpy(float64):
    steps, rate = 10, 0.5
    start, found = trained(resnet_like, AlignAda(), 0), trained(resnet_like, AlignAda(), steps)
    x, y = np.random.default_rng(0).normal(size=(8, 5)), np.random.default_rng(1).random((8, 3))

    def forward(w):
        at = {"x": x}
        at["stem"] = np.tanh(x @ w["stem"])
        state = at["stem"]
        for block in ("one", "two"):
            at[f"{block}_from"] = state
            at[f"{block}_in"] = np.tanh(state @ w[f"{block}_in"])
            state = at[f"{block}_sum"] = np.tanh(state + at[f"{block}_in"] @ w[f"{block}_out"])
        return at, state @ w["readout"]

    def update(w):
        """Returns the changes: errors of the frozen network, presynaptic activities and the last nonlinearity live."""
        live, outputs = forward(w)
        frozen, _ = forward(initial)
        error = 2 * (outputs - y) / y.size
        gate = {name: 1 - value**2 for name, value in frozen.items()}
        change = {"readout": live["two_sum"].T @ error}
        at_sum = error @ initial["readout"].T
        change["two_out"] = live["two_in"].T @ (at_sum * (1 - live["two_sum"] ** 2))
        at_sum = at_sum * gate["two_sum"]
        for block, before, source in (("two", "one_sum", "one_out"), ("one", "stem", "stem")):
            at_inner = at_sum @ initial[f"{block}_out"].T * gate[f"{block}_in"]
            change[f"{block}_in"] = live[f"{block}_from"].T @ at_inner
            at_sum = (at_sum + at_inner @ initial[f"{block}_in"].T) * gate[before]
            change[source] = live["one_in" if block == "two" else "x"].T @ at_sum
        return change

    initial = weights = start
    for _ in range(steps):
        change = update(weights)
        weights = {name: weights[name] - rate * change[name] for name in weights}
    for name, kernel in found.items():
        np.testing.assert_allclose(kernel, weights[name], rtol=1e-9, atol=1e-12, err_msg=name)


def normalised(w, name, hidden):
    """Returns the input of the nonlinearity that follows a dense layer and its batch normalisation."""
    z = hidden @ w[name]
    mean, variance = tf.nn.moments(z, 0)
    return (z - mean) / tf.sqrt(variance + 1e-3) * w[f"{name}_gamma"] + w[f"{name}_beta"]


def test_align_ada_with_scales_and_shifts_that_are_trained_is_the_equation_written_out(float64):
    """Two hidden layers, batch normalisation with gamma and beta before each tanh; the second tanh is live."""
    names = ["first", "first_gamma", "first_beta", "second", "second_gamma", "second_beta", "readout"]
    rng, rate = np.random.default_rng(4), 0.1
    x, y = rng.normal(size=(8, 5)), rng.random((8, 3))
    inputs = hidden = keras.Input((5,))
    for name in ("first", "second"):
        hidden = Dense(6, use_bias=False, alignment=AlignAda(), name=name)(hidden)
        hidden = keras.layers.Activation("tanh")(keras.layers.BatchNormalization(epsilon=1e-3)(hidden))
    plain = keras.Model(inputs, Dense(3, use_bias=False, alignment=AlignAda(), name="readout")(hidden))
    for variable in plain.trainable_variables:
        variable.assign(rng.uniform(0.5, 1.5, variable.shape) * rng.choice([-1, 1], variable.shape))
    model = AlignedModel(plain.input, plain.output)
    model.compile(keras.optimizers.SGD(rate), loss="mse", run_eagerly=True)

    def updates(live, frozen):
        hidden = tf.tanh(normalised(live, "first", x))
        error = 2 * (tf.tanh(normalised(live, "second", hidden)) @ live["readout"] - y) / y.size
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(frozen)
            at_first = normalised(frozen, "first", x)
            at_readout = tf.tanh(normalised(frozen, "second", tf.tanh(at_first)))
            outputs = at_readout @ frozen["readout"]
        errors = [tape.gradient(outputs, place, output_gradients=error) for place in (at_first, at_readout)]
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(live)
            ends = normalised(live, "first", x), tf.tanh(normalised(live, "second", hidden))
        changes = [
            change
            for end, error_there, part in zip(ends, errors, (names[:3], names[3:6]), strict=True)
            for change in tape.gradient(end, [live[name] for name in part], output_gradients=error_there)
        ]
        return dict(zip(names, [*changes, tf.transpose(ends[1]) @ error], strict=True))

    initial = weights = dict(zip(names, (tf.constant(v.numpy()) for v in model.trainable_variables), strict=True))
    for _ in range(6):
        model.train_on_batch(x, y)
        last, changes = weights, updates(weights, initial)
        weights = {name: weights[name] - rate * changes[name] for name in names}
    for name, variable in zip(names, model.trainable_variables, strict=True):
        np.testing.assert_allclose(variable, weights[name], rtol=1e-9, atol=1e-12, err_msg=name)
    # A plausible mistake: scales and shifts that are live in the frozen pass.
    wrong = updates(last, {name: (last if "_" in name else initial)[name] for name in names})
    assert max(distance(changes[name], wrong[name]) for name in names) > 1e-3


@pytest.mark.parametrize("shared", [False, True])
def test_maps_of_dfa_have_the_deviation_of_the_published_code(shared):
    model = models.wide_cnn("kmnist", 32, 10, (28, 28, 1), DirectFeedback(share_space=shared))
    model = AlignedModel(model.input, model.output)
    sizes = [(28, 28, 32), (14, 14, 32), (7, 7, 32)]
    for weight, size in zip(model.feedback_weights.weights, sizes, strict=True):
        assert tuple(weight.shape) == ((32, 10) if shared else (*size, 10))
        assert np.std(weight) == pytest.approx(1 / np.sqrt(np.prod(size)), rel=0.15 if shared else 0.03)


@pytest.mark.parametrize("rule", [None, Feedback()])
@pytest.mark.parametrize("parameterization", ["ntk", "standard"])
def test_kernels_have_the_variance_of_their_parameterization(parameterization, rule):
    keras.utils.set_random_seed(0)
    model = models.wide_cnn("cifar", 64, 100, (8, 8, 3), rule, parameterization=parameterization)
    kernels = [layer for layer in model.layers if hasattr(layer, "kernel")]
    for layer in kernels:
        fan_in = np.prod(layer.kernel.shape[:-1])
        expected = 1.0 if parameterization == "ntk" else fan_in**-0.5
        for weight in (layer.kernel, *([layer._backward_kernel] if rule and parameterization == "ntk" else [])):
            assert np.std(weight) == pytest.approx(expected, rel=0.05)
            assert np.mean(weight) == pytest.approx(0, abs=0.1 * expected)
        assert not np.any(layer.bias)


def test_the_designs_have_the_papers_strides():
    sides = {"cifar": (32, [32, 32, 32, 16, 16, 8, 8]), "imagenet": (224, [56, 28, 28, 14, 14, 7, 7])}
    sides["kmnist"] = (28, [28, 14, 7])
    for design, (side, expected) in sides.items():
        model = models.wide_cnn(design, 2, 3, (side, side, 3))
        assert [layer.output.shape[1] for layer in model.layers if isinstance(layer, Conv2D)] == expected


def two_layers(rule, trainable=True):
    """Returns a compiled model of two layers whose first layer may be frozen, and its data."""
    inputs = keras.Input((4,))
    first = Dense(3, activation="tanh", alignment=rule, name="first", trainable=trainable)
    model = AlignedModel(inputs, Dense(2, alignment=rule, name="last")(first(inputs)))
    model.compile(keras.optimizers.SGD(0.1), loss="mse")
    generator = np.random.default_rng(0)
    return model, generator.normal(size=(8, 4)).astype("float32"), generator.normal(size=(8, 2)).astype("float32")


FROZEN_RULES = pytest.mark.parametrize("rule", [AlignZero(), AlignAda()], ids=lambda rule: rule.rule)


@FROZEN_RULES
def test_a_layer_that_is_frozen_later_rests(rule):
    model, x, y = two_layers(rule)
    first, last = model.layers[1:]
    first.trainable = False
    model.compile(keras.optimizers.SGD(0.1), loss="mse")
    before, readout = first.kernel.numpy(), last.kernel.numpy()
    model.train_on_batch(x, y)
    assert np.array_equal(first.kernel, before)
    assert not np.array_equal(last.kernel, readout)


@FROZEN_RULES
def test_a_layer_that_is_thawed_later_is_trained_through_the_network_at_initialisation(rule):
    """Also if the last layer has been trained before."""
    model, x, y = two_layers(rule, trainable=False)
    first, last = model.layers[1:]
    model.train_on_batch(x, y)
    initial, kernel = last.kernel.numpy(), first.kernel.numpy()
    model.train_on_batch(x, y)
    assert not np.array_equal(last.kernel, initial)
    first.trainable = True
    model.compile(keras.optimizers.SGD(0.1), loss="mse")
    initial = next(weight for weight in model.bound_rule.kept_values if weight.path.endswith("last_kernel"))
    output_error = 2 * (model(x) - y) / y.size
    expected = -0.1 * x.T @ (output_error @ tf.transpose(initial) * (1 - tf.tanh(x @ kernel) ** 2))
    model.train_on_batch(x, y)
    np.testing.assert_allclose(first.kernel.numpy() - kernel, expected, rtol=1e-4, atol=1e-6)


@FROZEN_RULES
@pytest.mark.parametrize("when", ["from the start", "before training", "after training"])
@pytest.mark.parametrize("what", ["layer", "model", "bias"])
def test_a_frozen_model_can_be_saved_and_copied(rule, when, what, tmp_path):
    model, x, y = two_layers(rule, trainable=not (when == "from the start" and what == "layer"))
    if when == "after training":
        model.train_on_batch(x, y)
    first = model.layers[1]
    {"layer": first, "model": model, "bias": first.bias}[what].trainable = False
    model.compile(keras.optimizers.SGD(0.1), loss="mse")
    model.train_on_batch(x, y)
    model.save(tmp_path / "model.keras")
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    for other in (keras.models.load_model(tmp_path / "model.keras"), copy.deepcopy(model), clone):
        assert len(other.weights) == len(model.weights)
        for one, expected in zip(other.weights, model.weights, strict=True):
            np.testing.assert_array_equal(one, expected)


def test_a_variable_that_is_created_after_the_model_is_refused():
    class Late(keras.layers.Layer):
        def call(self, inputs):
            return inputs

    inputs = keras.Input((4,))
    late = Late()
    model = AlignedModel(inputs, Dense(2, alignment=AlignZero())(late(inputs)))
    model.compile(keras.optimizers.SGD(0.1), loss="mse", run_eagerly=True)
    late._tracker.unlock()
    late.scale = late.add_weight(name="scale", shape=())
    with pytest.raises(ValueError, match=r"must have all its variables before .* Received 'late\w*/scale'"):
        model.train_on_batch(np.ones((2, 4), np.float32), np.zeros((2, 2), np.float32))


@pytest.mark.parametrize("rule", [AlignAda(), DirectFeedback()], ids=lambda rule: rule.rule)
def test_outputs_of_nonlinearities_are_computed_again_in_the_backward_pass(rule):
    """Kept from the forward passes, they would be a third of the memory of Align-ada."""
    network = models.wide_cnn("kmnist", 2, 3, (8, 8, 1), rule)
    model = AlignedModel(network.input, network.output)
    model.take_initial_weights()

    @tf.function(autograph=False)
    def step(x):
        forward = model.bound_rule.forward(TrainingBatch(x, targets=tf.zeros([4])))
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.square(forward()))
        return tape.gradient(loss, model.trainable_variables)

    operations = step.get_concrete_function(tf.TensorSpec((4, 8, 8, 1))).graph.get_operations()
    read = [each.inputs[0].op for each in operations if each.type == "Conv2DBackpropFilter"]
    read = [each for each in read if each.type == "Relu"]
    assert len(read) == 2  # The first of three convolutions reads the images.
    read += [each.inputs[1].op for each in operations if each.type == "ReluGrad"]
    assert len(read) > 3
    assert all(each.control_inputs for each in read)  # They wait for the error.


# Nested models.


def nested_network(rule, nested):
    """Returns a network with four nested models, of which one is called twice; or the same layers without them."""
    sizes = {"shared": 48, "narrow": 7, "last": 3}
    dense = {name: Dense(units, alignment=rule, name=name) for name, units in sizes.items()}
    others = [Conv2D(3, 3, alignment=rule, name="conv"), keras.layers.BatchNormalization(name="norm"),
              keras.layers.ReLU(name="gate"), keras.layers.Flatten(name="flat")]  # fmt: skip
    tanh, add = keras.layers.Activation("tanh", name="tanh"), keras.layers.Add(name="add")

    def part(shape, function):
        if not nested:
            return function
        inputs = keras.Input(shape)
        return keras.Model(inputs, function(inputs))

    def first(x):
        for layer in others:
            x = layer(x)
        return x

    stem = keras.Sequential([keras.Input((6, 6, 2)), *others]) if nested else first
    block = part((48,), lambda x: add([x, tanh(dense["shared"](x))]))
    inner = part((48,), lambda x: keras.ops.relu(dense["narrow"](x)))
    outer = part((48,), lambda x: inner(block(x)))
    images = keras.Input((6, 6, 2), name="images")
    return AlignedModel(images, dense["last"](outer(block(stem(images)))))


def moved(model, steps):
    """Returns the weights of each layer after some steps."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(8, 6, 6, 2)).astype(np.float32), rng.integers(0, 3, 8)
    for _ in range(steps):
        model.train_on_batch(x, y)
    return {layer.name: layer.get_weights() for layer in model.layers}


def assert_same_weights(first, second):
    assert list(first) == list(second)
    for name, weights in first.items():
        for one, other in zip(weights, second[name], strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("rule", exhaustive_unless(networkwise_rules(), ("align_ada",)))
def test_a_network_with_nested_models_learns_as_without_them_and_is_loaded(rule, tmp_path):
    rule = from_config({"rule": rule})
    flat, nested = nested_network(rule, nested=False), nested_network(rule, nested=True)
    assert not any(isinstance(layer, keras.Model) for layer in nested.layers)
    start = {layer.name: layer.get_weights() for layer in flat.layers}
    for model in (flat, nested):
        for layer in model.layers:
            layer.set_weights(start[layer.name])
        model.compile(keras.optimizers.SGD(0.1), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    after = moved(nested, 2)
    assert_same_weights(after, moved(flat, 2))
    trained = [name for name, weights in after.items() if any(map(distance, weights, start[name]))]
    assert "last" in trained
    assert ("shared" in trained) == (rule.rule != "last_layer")
    nested.save(tmp_path / "model.keras")
    assert_same_weights(moved(load_model(tmp_path / "model.keras"), 1), moved(nested, 1))


def test_the_paths_of_weights_are_those_after_loading(tmp_path):
    """Weights and slots of optimizers are named by them. The layers of a nested model were built in its scope."""
    inner, inputs = keras.Input((3, 4)), keras.Input((3, 4))
    x = MultiHeadAttention(1, 4, alignment=AlignAda(), name="attention")(inner, inner)
    x = keras.Sequential([Dense(5, alignment=AlignAda(), name="first"), keras.layers.Flatten()], name="block")(x)
    x = keras.Model(inner, x, name="nested")(inputs)
    model = AlignedModel(inputs, Dense(2, alignment=AlignAda(), name="readout")(x))
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "mse")
    model.train_on_batch(np.ones((4, 3, 4)), np.ones((4, 2)))
    paths = [weight.path for weight in model.weights]
    assert {path.split("/")[0] for path in paths} == {"attention", "first", "readout", "kept"}
    assert paths[0] == "attention/query/kernel"
    model.save(tmp_path / "model.keras")
    assert [weight.path for weight in load_model(tmp_path / "model.keras").weights] == paths


def nested_in(shape, layers, call=lambda model, x: model(x)):
    """Returns the layers of a network that calls a nested model, its nested model and its outputs."""
    inputs, model = keras.Input(shape), keras.Sequential([keras.Input(shape), *layers], name="inner")
    return inputs, model, Dense(2, alignment=DirectFeedback(), name="last")(call(model, inputs))


@pytest.mark.filterwarnings("ignore:Layer 'inner' .* was passed an input with a mask")
def test_a_nested_model_reads_masks_and_is_called_in_its_mode():
    def masked(model, x):
        return model(keras.layers.Masking(name="mask")(x))

    x = np.random.default_rng(0).normal(size=(4, 5, 4)).astype(np.float32)
    x[:, 3:] = 0
    inputs, inner, outputs = nested_in((5, 4), [keras.layers.GlobalAveragePooling1D(name="mean")], masked)
    model = AlignedModel(inputs, outputs)
    np.testing.assert_allclose(model(x), keras.Model(inputs, outputs)(x), rtol=1e-5)
    assert distance(model(x).numpy(), model.get_layer("last")(inner(x)).numpy()) > 0.01  # Without the mask.

    dropout = [keras.layers.Dropout(0.5), keras.layers.Flatten()]
    for training, differ in ((True, True), (None, False)):
        inputs, _, outputs = nested_in((5, 4), dropout, lambda model, x, mode=training: model(x, training=mode))
        model = AlignedModel(inputs, outputs)
        with forward_pass():
            assert (distance(model(x).numpy(), model(x).numpy()) > 0.01) == differ


def test_inputs_in_a_dictionary_and_of_another_dtype_reach_the_layers_of_a_nested_model():
    one, two = keras.Input((4,), name="one"), keras.Input((3,), name="two")
    hidden = Dense(4, alignment=DirectFeedback(), name="hidden")(two)
    inner = keras.Model({"two": two, "one": one}, keras.layers.Concatenate(name="both")([one, hidden]))
    inputs = keras.Input((4,)), keras.Input((3,), dtype="int32")
    outputs = Dense(2, alignment=DirectFeedback())(inner({"one": inputs[0], "two": inputs[1]}))
    model = AlignedModel(inputs, outputs)
    assert "hidden" in [layer.name for layer in model.layers]
    x = [np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32), np.arange(6).reshape(2, 3)]
    np.testing.assert_allclose(model(x), keras.Model(inputs, outputs)(x), rtol=1e-6)


class Doubling(keras.Sequential):
    def call(self, inputs, training=None, mask=None):
        return 2 * super().call(inputs, training, mask)


@pytest.mark.filterwarnings("ignore:Layer 'inner' .* was passed an input with a mask")
def test_nested_models_that_are_not_supported_are_refused_in_one_line():
    hidden = Dense(4, alignment=DirectFeedback(), name="hidden")

    def custom(model, x):
        return Doubling(model.layers, name="custom")(x)

    def at_each_step(model, x):
        return TimeDistributed(model, name="steps")(keras.ops.stack([x, x], axis=1))

    def twins(model, x):
        return model(x) + keras.models.clone_model(model)(x)

    for layers, call, message in (
        ([hidden], custom, r"custom `call` .* Received 'custom'"),
        ([hidden], at_each_step, r"`TimeDistributed`\. Received 'steps'"),
        ([keras.layers.Flatten()], lambda model, x: model(x[..., 0]), "another structure or rank for 'inner'"),
        ([hidden], lambda model, x: model(x, mask=x[..., 0] > 0), "Received the argument `mask` for 'inner'"),
        ([hidden], twins, "The name .* is used 2 times in the model"),
    ):
        inputs, _, outputs = nested_in((3, 1), layers, call)
        with pytest.raises(ValueError, match=message) as raised:
            AlignedModel(inputs, outputs)
        assert "\n" not in str(raised.value)


@pytest.mark.exhaustive
@pytest.mark.parametrize("rule", networkwise_rules())
def test_a_network_of_keras_with_nested_models_can_be_trained(rule):
    model = models.application("ConvNeXtTiny", 3, (32, 32, 3), alignment=from_config({"rule": rule}))
    aligned = AlignedModel(model.inputs, model.outputs)
    assert not any(isinstance(layer, keras.Model) for layer in aligned.layers)
    x = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
    np.testing.assert_allclose(aligned(x), model(x), rtol=1e-5, atol=1e-6)
    aligned.compile(keras.optimizers.SGD(0.1), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    assert np.isfinite(aligned.train_on_batch(x, np.zeros(2))).all()
