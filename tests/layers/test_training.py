"""All aligned layers in one model: saving, replicas, XLA, mixed precision, and training with and without our model."""

from __future__ import annotations

import functools
import logging

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import (
    RULE_CONFIGS,
    assert_close,
    assert_differs,
    exhaustive_unless,
    finite_difference,
    reference_regulariser,
    two_replicas,
)
from layer_table import TABLE, build, call, connections, expected, fill, make, native_copy

from neural_alignment import config as configuration
from neural_alignment import layers
from neural_alignment.alignments import (
    AlignZero,
    DirectFeedback,
    Feedback,
    KolenPollack,
    Symmetric,
    forward_pass,
    from_config,
)
from neural_alignment.keras_internals import all_layers
from neural_alignment.training import AlignedModel
from neural_alignment.training.trainer import Trainer
from optimizers import Momentum, MultiOptimizer, Noisy, RateScheduler

SHAPES = {2: (4, 16), 3: (4, 4, 4), 4: (4, 4, 2, 2)}
"""Shape of an example by the rank of a layer's inputs; all have 64 numbers."""

FEW = ("Conv2D grouped", "MultiHeadAttention", "GRU")
"""Layers of every kind: with one kernel, with dense layers in it, and with two kernels and a loop over time."""

ALL = tuple(TABLE)

NETWORKS = [pytest.param(FEW, id="few"), pytest.param(ALL, id="all", marks=pytest.mark.exhaustive)]

INFORMATION = {**RULE_CONFIGS["information"], "input": {"noise": "normal", "stddev": 0.5, "batch_center": True}}

SYMMETRIC = from_config(RULE_CONFIGS["symmetric"])

BATCH = 4


def network(rows, rule, kind=AlignedModel, **options):
    """Returns a model in which the layers of some rows read the same inputs, except those that refuse the rule."""
    keras.utils.set_random_seed(1)
    inputs, branches = keras.Input((64,)), []
    for name in rows:
        if rule.rule in TABLE[name].refuses:
            continue
        x = keras.layers.Reshape(SHAPES[len(TABLE[name].inputs)])(inputs)
        layer = make(name, alignment=rule, name=name.lower().replace(" ", "_"), **options)
        branches.append(keras.layers.Flatten()(call(layer, x)))
    readout = keras.layers.Dense(2, name="readout", dtype="float32" if options else None)
    outputs = readout(keras.layers.Concatenate()(branches))
    return kind(inputs, outputs)


def every_connection(model):
    """Returns all connections of a model by name."""
    return {each.name: each for layer in all_layers(model) for each in getattr(layer, "connections", ())}


def examples(steps=1):
    """Returns inputs `(steps, batch, 64)` and targets."""
    rng = np.random.default_rng(3)
    shape = (steps, BATCH, 64)
    return rng.normal(size=shape).astype(np.float32), rng.normal(size=(steps, BATCH, 2)).astype(np.float32)


def trained(rows, rule, steps=2, strategy=None, optimizers=None, kind=AlignedModel, jit_compile=False):
    """Returns a model after some steps, and its variables before."""
    with (strategy or tf.distribute.get_strategy()).scope():
        model = network(rows, rule, kind)
        default = [Momentum(0.05), keras.optimizers.SGD(0.02)]
        model.compile(MultiOptimizer(optimizers or default), "mse", jit_compile=jit_compile)
    before = {variable.path: variable.numpy() for variable in model.variables}
    model.fit(tf.data.Dataset.from_tensor_slices(examples(steps)), epochs=1, shuffle=False, verbose=0)
    return model, before


def test_the_network_has_every_layer():
    model = network(ALL, Feedback())
    assert len(every_connection(model)) == sum(len(row.maps) for row in TABLE.values())


# Saving.


@pytest.mark.parametrize(
    ("rule", "rows"),
    [
        *(pytest.param(rule, FEW, id=rule) for rule in ("information", "align_prop", "pfa")),
        pytest.param("sign_symmetry", FEW, id="sign_symmetry", marks=pytest.mark.exhaustive),
        pytest.param("information", ALL, id="all", marks=pytest.mark.exhaustive),
    ],
)
def test_saved_models_weights_and_checkpoints_restore_every_weight(rule, rows, tmp_path):
    config = INFORMATION if rule == "information" else RULE_CONFIGS[rule]
    model, (x, _) = network(rows, from_config(config)), examples()
    rng = np.random.default_rng(2)
    for connection in every_connection(model).values():
        connection.take_initial_kernel()
        for kernel in (connection.kernel, connection.stored_backward_kernel):
            kernel.assign(rng.normal(0, 0.3, kernel.shape))
    model.save(tmp_path / "model.keras")
    model.save_weights(tmp_path / "model.weights.h5")
    path = tf.train.Checkpoint(model=model).write(str(tmp_path / "checkpoint"))

    loaded = keras.saving.load_model(tmp_path / "model.keras")
    copies = [network(rows, from_config(config)) for _ in range(2)]
    for copy in copies:
        for variable in copy.variables:
            variable.assign(tf.zeros_like(variable))
    copies[0].load_weights(tmp_path / "model.weights.h5")
    tf.train.Checkpoint(model=copies[1]).read(path).assert_consumed()
    with forward_pass(step=2) as state:
        outputs = model(x[0], training=True)
    for copy in (loaded, *copies):
        for weight, other in zip(model.weights, copy.weights, strict=True):
            assert weight.path == other.path
            np.testing.assert_array_equal(weight, other)
        with forward_pass(step=2) as other_state:
            np.testing.assert_array_equal(copy(x[0], training=True), outputs)
        assert {k: float(v) for k, v in state.losses.items()} == {k: float(v) for k, v in other_state.losses.items()}
    assert all(np.any(connection.stored_backward_kernel) for connection in every_connection(loaded).values())
    if rule == "align_prop":
        assert all(int(connection.step) == 1 for connection in every_connection(loaded).values())


@pytest.mark.exhaustive
@pytest.mark.parametrize("rule", ["information", "align_prop"])
def test_an_exported_model_has_the_outputs_of_the_model(rule, tmp_path):
    """With every layer, in the format that `tf.saved_model.load` and TensorFlow Serving read."""
    model = network(ALL, from_config(INFORMATION if rule == "information" else RULE_CONFIGS[rule]))
    [x], _ = examples()
    model.export(tmp_path / "exported", verbose=False)
    exported = tf.saved_model.load(str(tmp_path / "exported"))
    np.testing.assert_allclose(exported.serve(x), model(x, training=False), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rule", [DirectFeedback(), AlignZero(), SYMMETRIC], ids=lambda rule: rule.rule)
def test_an_aligned_model_with_every_kind_of_rule_is_exported(rule, tmp_path, caplog):
    """The format traces the gradients of layers, which rules for a whole network refuse outside of a step."""
    inputs = keras.Input((4,))
    hidden = layers.Dense(3, activation="relu", alignment=rule)(inputs)
    model = AlignedModel(inputs, layers.Dense(2, alignment=rule)(hidden))
    with caplog.at_level(logging.WARNING, "neural_alignment"):
        model.export(tmp_path / "exported", verbose=False)
    assert not [each for each in caplog.records if each.name.startswith("neural_alignment")]
    x = np.random.default_rng(3).normal(size=(5, 4)).astype(np.float32)
    exported = tf.saved_model.load(str(tmp_path / "exported"))
    np.testing.assert_allclose(exported.serve(x), model(x, training=False), rtol=1e-5, atol=1e-6)


# One step, on several replicas, and compiled by XLA.


@functools.cache
def information(rows):
    """Returns a network trained in float64, and its variables before."""
    return trained(rows, from_config(INFORMATION))


def assert_same(model, other, tolerance):
    """Fails unless the variables of two models are equal."""
    for variable, expected_variable in zip(model.variables, other.variables, strict=True):
        wanted = expected_variable.numpy()
        # The bias of the keys does not change the outputs of attention; its gradient is rounding.
        scale = max(np.abs(wanted).max(initial=0.0), 1e-3)
        np.testing.assert_allclose(variable.numpy(), wanted, rtol=0, atol=tolerance * scale, err_msg=variable.path)


@pytest.mark.parametrize("rows", NETWORKS)
def test_every_connection_is_trained(float64, rows):
    model, before = information(rows)
    for connection in every_connection(model).values():
        for variable in (connection.kernel, connection.stored_backward_kernel):
            assert_differs(variable, before[variable.path], by=1e-4)


@pytest.mark.parametrize("rows", NETWORKS)
def test_two_replicas_train_as_one_does(float64, rows):
    """With noise, and with means over the batch of both replicas."""
    rule = from_config(INFORMATION)
    assert_same(trained(rows, rule, strategy=two_replicas())[0], information(rows)[0], 1e-9)


@pytest.mark.exhaustive
@pytest.mark.parametrize("rows", [FEW, ALL], ids=["few", "all"])
def test_xla_trains_as_the_graph_does(float64, rows):
    compiled, _ = trained(rows, from_config(INFORMATION), jit_compile=True)
    assert_same(compiled, information(rows)[0], 1e-9)


# Mixed precision.


@pytest.mark.parametrize("rows", NETWORKS)
def test_mixed_precision_is_close_and_keeps_r_and_the_weights_in_float32(rows):
    rule = from_config(RULE_CONFIGS["information"])
    plain, mixed, (x, y) = network(rows, rule), network(rows, rule, dtype="mixed_bfloat16"), examples()
    for variable, other in zip(mixed.variables, plain.variables, strict=True):
        variable.assign(other)
    results = []
    for model in (plain, mixed):
        kernels = [connection.kernel.value for connection in every_connection(model).values()]
        with tf.GradientTape() as tape, forward_pass() as state:
            outputs = model(x[0], training=True)
            total = tf.reduce_mean(tf.square(outputs - y[0]))
        results.append((outputs, tape.gradient(total, kernels), state.losses))
    (outputs, gradients, losses), (half_outputs, half_gradients, half_losses) = results
    assert_close(tf.cast(half_outputs, tf.float64), outputs, "bfloat16")
    for connection, gradient, half in zip(every_connection(mixed).values(), gradients, half_gradients, strict=True):
        assert half.dtype == connection.kernel.dtype == "float32", connection.name
        error = np.linalg.norm(half - gradient) / np.linalg.norm(gradient)
        assert error < 0.05, (connection.name, error)
    for name, loss in losses.items():
        assert half_losses[name].dtype == "float32"
        assert float(half_losses[name]) == pytest.approx(float(loss), rel=0.03, abs=0.05), name
    assert {connection.layer.compute_dtype for connection in every_connection(mixed).values()} == {"bfloat16"}


# Rules with more than R.


@pytest.mark.parametrize("rows", NETWORKS)
@pytest.mark.parametrize("kind", exhaustive_unless([AlignedModel, keras.Model], (AlignedModel,)))
def test_align_prop_keeps_w_at_the_first_step(kind, rows):
    optimizers = [keras.optimizers.SGD(0.1)]
    model, before = trained(rows, from_config(RULE_CONFIGS["align_prop"]), 3, optimizers=optimizers, kind=kind)
    for name, connection in every_connection(model).items():
        backward = connection.linear_map.transpose(connection.stored_backward_kernel)
        np.testing.assert_array_equal(backward, before[connection.kernel.path], err_msg=name)
        assert_differs(connection.kernel, backward, by=1e-4)
        assert int(connection.step) > 0


@pytest.mark.parametrize("rows", NETWORKS)
def test_kolen_pollack_moves_b_as_it_moves_w(rows):
    model, before = trained(rows, KolenPollack(decay=0.0), optimizers=[Momentum(0.05)])
    for name, connection in every_connection(model).items():
        stored = connection.stored_backward_kernel
        of_w = connection.kernel - before[connection.kernel.path]
        of_b = connection.linear_map.transpose(stored - before[stored.path])
        assert np.abs(of_w).max() > 1e-5, name
        np.testing.assert_allclose(of_b, of_w, atol=3e-7, err_msg=name)


class Repeated(keras.layers.Wrapper):
    """Calls a layer three times, each time with the outputs of the last call."""

    def call(self, inputs, training=None):
        for _ in range(3):
            inputs = self.layer(inputs, training=training)
        return inputs


def _dense(**options):
    return layers.Dense(4, kernel_regularizer=keras.regularizers.L2(0.5 * DECAY), **options)


def _convolution(**options):
    regularizer = keras.regularizers.L2(0.5 * DECAY)
    return layers.Conv1D(4, 3, padding="same", groups=2, kernel_regularizer=regularizer, **options)


def _in_siamese(x, layer):
    inputs = keras.Input(x.shape[1:])
    branch = keras.Model(inputs, layer(inputs))
    return keras.layers.Add()([branch(x), branch(0.5 * x)])


USES = {
    "once": lambda x, layer: layer(x),
    "shared": lambda x, layer: layer(layer(x)),
    "siamese": _in_siamese,
    "wrapper": lambda x, layer: Repeated(layer)(x),
}
"""Ways in which a model uses a layer."""

DECAY = 0.5


@pytest.mark.parametrize(
    ("use", "make_layer", "parameterization", "kind"),
    [
        ("once", _dense, "ntk", AlignedModel),
        ("once", _convolution, "ntk", AlignedModel),
        ("once", _dense, "ntk", keras.Model),
        ("shared", _dense, "standard", AlignedModel),
        ("shared", _convolution, "ntk", keras.Model),
        ("siamese", _dense, "standard", AlignedModel),
        ("wrapper", _dense, "ntk", AlignedModel),
        ("wrapper", _dense, "standard", keras.Model),
    ],
)
def test_kolen_pollack_shrinks_w_minus_b_by_the_decay_of_each_step(
    float64, rng, use, make_layer, parameterization, kind
):
    """Plain gradient descent at the rate r multiplies W - B^T by 1 - r decay, however often a step uses the layer."""
    rate, steps = 0.125, 3
    layer = make_layer(alignment=KolenPollack(decay=DECAY), parameterization=parameterization, activation="tanh")
    inputs = keras.Input((5, 4))
    model = kind(inputs, keras.layers.Dense(2)(keras.layers.Flatten()(USES[use](inputs, layer))))
    model.compile(MultiOptimizer([keras.optimizers.SGD(rate)]), "mse", jit_compile=False)
    (connection,) = layer.connections

    def difference():
        return connection.kernel - connection.linear_map.transpose(connection.stored_backward_kernel)

    before, first = difference(), connection.kernel.numpy()
    x, y = rng.normal(size=(steps * 4, 5, 4)), rng.normal(size=(steps * 4, 2))
    model.fit(x, y, batch_size=4, epochs=1, verbose=0)
    assert_differs(connection.kernel, first * (1 - rate * DECAY) ** steps)
    assert_close(difference(), before * (1 - rate * DECAY) ** steps)


def test_kolen_pollack_of_a_wide_network_shrinks_w_minus_b_by_the_decay_of_each_step():
    """The same for a YAML configuration, whose layers have the NTK parameterization."""
    rate, steps = 0.125, 3
    config = configuration.parse(
        {
            "epochs": 1,
            "batch_size": 8,
            "data": {"source": "digits"},
            "model": {"name": "wide_cnn", "design": "kmnist", "width": 4},
            "weight_decay": DECAY,
            "alignment": {"rule": "kolen_pollack", "decay": DECAY},
            "optimization": {"forward": {"name": "sgd", "learning_rate": rate}},
            "runtime": {"precision": "float64"},
        }
    )
    trainer = Trainer.from_config(config)
    found = every_connection(trainer.model)

    def differences():
        return {
            name: each.kernel - each.linear_map.transpose(each.stored_backward_kernel) for name, each in found.items()
        }

    before = differences()
    trainer.start()
    trainer.train(steps)
    assert len(found) == 4
    for name, difference in differences().items():
        assert_close(difference, before[name] * (1 - rate * DECAY) ** steps)


@pytest.mark.parametrize("rule", ["symmetric", "weight_mirror"])
def test_a_shared_layer_has_one_r_of_its_kernels_and_an_r_of_the_signals_of_each_call(float64, rng, rule):
    layer = layers.Dense(4, alignment=from_config(RULE_CONFIGS[rule]), name="shared")
    inputs = keras.Input((4,))
    once, both = layer(inputs), keras.layers.Add()([layer(inputs), layer(inputs)])
    x = rng.normal(size=(3, 4))
    found = []
    for outputs in (once, both):
        model = AlignedModel(inputs, outputs)
        with forward_pass() as state:
            model(x, training=True)
        model(x, training=True)  # Outside of a forward pass of ours, with `add_loss`.
        (value,) = state.losses.values()
        assert_close(sum(model.losses), value)
        found.append(float(value))
    assert found[1] == pytest.approx(found[0] * (2 if rule == "weight_mirror" else 1), rel=1e-12)


@pytest.mark.parametrize(
    ("name", "rule"),
    exhaustive_unless(
        [(name, rule) for name in TABLE for rule in ("symmetric", "information") if rule not in TABLE[name].refuses],
        lambda case: case[1] == "information" or case[0] in ("Dense", "GRU before"),
    ),
)
def test_with_update_forward_r_moves_w_as_in_numpy(float64, rng, name, rule):
    """Along one direction; the inputs of a connection count as constants."""
    config = {**RULE_CONFIGS[rule], "update_forward": True}
    layer = build(name, alignment=from_config(config))
    forward, backward = fill(layer, rng)
    x = rng.normal(size=(3, *TABLE[name].inputs))
    shape = call(layer, x).shape
    with tf.GradientTape() as tape, forward_pass() as state:
        call(layer, tf.constant(x), training=True)
        total = sum(state.losses.values())
    kernels = {key: connection.kernel.value for key, connection in connections(layer).items()}
    gradients = tape.gradient(total, kernels)
    inputs = expected(name, native_copy(name, layer), forward, backward, x, np.zeros(shape)).inputs
    for key, gradient in gradients.items():
        direction = rng.normal(size=gradient.shape)

        def along(size, key=key, direction=direction):
            moved = forward[key] + size * direction
            return reference_regulariser(config, TABLE[name].maps[key], np.asarray(inputs[key]), moved, backward[key])

        slope = finite_difference(lambda size, along=along: along(float(size[0])), np.zeros(1))
        assert_close([np.vdot(gradient, direction)], slope, "finite difference")


# The optimizer of each loss.


def all_layers_built(rule):
    """Returns a built layer of every row that takes the rule."""
    return [build(name, alignment=rule) for name, row in TABLE.items() if rule.rule not in row.refuses]


def moved(optimizer, layers, steps=1, gradient=1.0):
    """Returns, for each step with a constant gradient, the variables of some layers that it moves, by identity."""
    variables = [variable for layer in layers for variable in layer.trainable_variables]
    optimizer.build(variables)
    found = []
    for _ in range(steps):
        before = [variable.numpy() for variable in variables]
        optimizer.apply([tf.fill(variable.shape, gradient) for variable in variables], variables)
        found.append({id(v) for v, old in zip(variables, before, strict=True) if not np.array_equal(v, old)})
    return found


def test_every_b_is_trained_by_the_optimizer_of_r_and_nothing_else_is():
    """Also those of layers with several kernels, whose names are not `backward_kernel`."""
    layers = all_layers_built(from_config(RULE_CONFIGS["symmetric"]))
    backward = {id(each.stored_backward_kernel) for layer in layers for each in connections(layer).values()}
    others = {id(variable) for layer in layers for variable in layer.trainable_variables} - backward
    sgd = keras.optimizers.SGD
    assert moved(MultiOptimizer([sgd(0.0), sgd(0.1)]), layers) == [backward]
    assert moved(MultiOptimizer([sgd(0.1), sgd(0.0)]), layers) == [others]
    alternating = MultiOptimizer([sgd(0.1), sgd(0.1)], RateScheduler(10, alternation=1))
    assert moved(alternating, layers, 3) == [backward, others, backward]


def test_noise_only_on_backward_kernels_reaches_those_of_layers_with_several_kernels():
    layers = [build(name, alignment=KolenPollack(decay=0.0)) for name in ("SimpleRNN", "SeparableConv1D")]
    backward = {id(each.stored_backward_kernel) for layer in layers for each in connections(layer).values()}
    noisy = Noisy(keras.optimizers.SGD(0.1), 1.0, only="backward_kernel")
    assert moved(noisy, layers, gradient=0.0) == [backward]


# Without our model.


@pytest.mark.exhaustive
@pytest.mark.parametrize("rows", [FEW, ALL], ids=["few", "all"])
def test_a_plain_keras_model_trains_every_layer(rows):
    model, before = trained(rows, from_config(INFORMATION), kind=keras.Model)
    for connection in every_connection(model).values():
        for variable in (connection.kernel, connection.stored_backward_kernel):
            assert_differs(variable, before[variable.path], by=1e-4)
        assert int(connection.step) == 2
    model(examples()[0][0], training=True)
    assert len(model.losses) == len(every_connection(model))


@pytest.mark.parametrize(
    ("name", "constraint"),
    [
        ("Dense", "kernel_constraint"),
        ("SimpleRNN", "kernel_constraint"),
        ("SimpleRNN", "recurrent_constraint"),
        ("SeparableConv1D", "pointwise_constraint"),
        ("MultiHeadAttention", "kernel_constraint"),
    ],
)
def test_a_rule_that_ties_updates_refuses_a_constraint_of_w(name, constraint):
    """The constraint changes W after each update, but not B. The constructor refuses it."""
    message = (
        f"^`{constraint}` must be None with 'kolen_pollack', which gives B the updates of W.* Received MaxNorm in "
    )
    with pytest.raises(ValueError, match=message):
        make(name, alignment=KolenPollack(decay=0.0), **{constraint: keras.constraints.MaxNorm(1.0)})
    build(name, alignment=Feedback(), **{constraint: keras.constraints.MaxNorm(1.0)})
    build(name, alignment=KolenPollack(decay=0.0), bias_constraint=keras.constraints.MaxNorm(1.0))


@pytest.mark.parametrize(
    ("name", "argument"),
    [
        ("Dense", "kernel_regularizer"),
        ("LSTM", "recurrent_regularizer"),
        ("SeparableConv1D", "pointwise_regularizer"),
        ("DepthwiseConv2D", "depthwise_regularizer"),
        ("MultiHeadAttention", "kernel_regularizer"),
    ],
)
def test_kolen_pollack_refuses_another_decay_of_w(name, argument):
    """L2(c) has the gradient 2 c W, and R the gradient decay B."""
    twice, equal = keras.regularizers.L2(0.1), keras.regularizers.L1L2(l2=0.05)
    with pytest.raises(
        ValueError,
        match=rf"^`{argument}` must decay W by 0.1, as 'kolen_pollack' requires.* Received L2\(0.1\), which decays W "
        rf"by 0.2, in layer '.* Example: {argument}=keras.regularizers.L2\(0.05\).$",
    ):
        build(name, alignment=KolenPollack(decay=0.1), **{argument: twice})
    build(name, alignment=KolenPollack(decay=0.1), **{argument: equal})
    build(name, alignment=Symmetric(self_=0.1, decay=0.1), **{argument: twice})
    for rule in (KolenPollack(decay=0.0), KolenPollack(decay=0.1, update_forward=True)):
        with pytest.raises(ValueError, match=rf"must decay W by 0, .* Example: {argument}=None.$"):
            build(name, alignment=rule, **{argument: equal})


SCHEDULED = {"kind": "constant", "value": 0.0123, "start": 1.0}


@pytest.mark.parametrize(
    ("rule", "regularizer", "found"),
    [
        ({"decay": 0.0123}, None, "Received decay=0.0123 and kernel_regularizer=None in layer 'first'."),
        ({"decay": 0.0123}, keras.regularizers.L1(0.1), "Received decay=0.0123 and kernel_regularizer=L1 in layer"),
        ({"decay": SCHEDULED}, None, "and kernel_regularizer=None in layer 'first'"),
        ({"decay": SCHEDULED}, keras.regularizers.L2(0.0123), "and kernel_regularizer=L2(0.0123) in layer 'first'"),
    ],
)
def test_kolen_pollack_warns_once_of_a_decay_that_it_does_not_know(caplog, rule, regularizer, found):
    for name in ("first", "second"):
        options = {"kernel_regularizer": regularizer, "alignment": KolenPollack(**rule), "name": name}
        layers.Dense(2, **options).build((None, 3))
    (message,) = [record.getMessage() for record in caplog.records]
    assert found in message


def test_kolen_pollack_without_a_decay_of_its_own_is_no_mistake(caplog):
    """The optimizer may decay both kernels."""
    layers.Dense(2, alignment=KolenPollack(decay=0.0)).build((None, 3))
    layers.Dense(2, alignment=KolenPollack(decay=0.0456, update_forward=True)).build((None, 3))
    assert not caplog.records
