"""Rules with `update_forward`, by which R moves W too: optimizers, replicas, precision, saved models, refusals."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import RULE_CONFIGS, assert_close, assert_differs

from neural_alignment import config as configuration
from neural_alignment import layers
from neural_alignment.alignments import Symmetric, WeightMirror, forward_pass, from_config
from neural_alignment.errors import ConfigError
from neural_alignment.training import AlignedModel, setup
from neural_alignment.training.costs import regulariser_products
from neural_alignment.training.describe import describe
from neural_alignment.training.distribution import create
from optimizers import Adam, Momentum, MultiOptimizer, Noisy, RateScheduler

BOTH = {"self_": 0.4, "decay": 0.3, "update_forward": True}
MIRROR = {"amp": 0.4, "decay": 0.3, "update_forward": True}


def network(rule, cls=AlignedModel):
    """Returns a model of two dense layers, the same at every call."""
    keras.utils.set_random_seed(3)
    inputs = keras.Input((4,))
    hidden = layers.Dense(5, activation="tanh", alignment=rule, name="first")(inputs)
    return cls(inputs, layers.Dense(3, alignment=rule, name="second")(hidden))


def batch():
    """Returns eight examples."""
    rng = np.random.default_rng(4)
    return rng.normal(size=(8, 4)), rng.integers(0, 3, size=8)


def cross_entropy():
    """Returns J, in the precision that is set."""
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def separate_gradients(model):
    """Returns the gradients of J and of R to W of the layers, with R's own tape."""
    x, y = batch()
    kernels = [layer.kernel.value for layer in model.layers[1:]]
    with tf.GradientTape(persistent=True) as tape, forward_pass() as state:
        loss = cross_entropy()(y, model(x, training=True))
        regulariser = sum(state.losses.values())
    # Without a model's step nothing holds R back from the earlier layers' W.
    return tape.gradient(loss, kernels), tape.gradient(regulariser, kernels)


@pytest.mark.parametrize("rule", [Symmetric(**BOTH), WeightMirror(**MIRROR)], ids=["kernels", "signals"])
def test_each_optimizer_applies_the_gradient_of_its_loss(float64, rule):
    """J's rate on J's gradient plus R's rate on R's, not one of them on the sum."""
    model = network(rule)
    of_j, of_r = separate_gradients(model)
    before = [layer.kernel.numpy() for layer in model.layers[1:]]
    model.compile(
        MultiOptimizer([keras.optimizers.SGD(0.1), keras.optimizers.SGD(0.02)]), cross_entropy(), run_eagerly=True
    )
    model.train_on_batch(*batch())
    for layer, start, j, r in zip(model.layers[1:], before, of_j, of_r, strict=True):
        assert_close(layer.kernel, start - 0.1 * j - 0.02 * r)
        for wrong in (0.1 * (j + r), 0.02 * (j + r), 0.1 * j):
            assert_differs(layer.kernel - start, -wrong, by=0.02)


def test_the_clipping_of_an_optimizer_sees_the_gradients_of_its_loss(float64):
    model = network(Symmetric(**BOTH))
    of_j, of_r = separate_gradients(model)
    before = model.layers[-1].kernel.numpy()
    r_optimizer = keras.optimizers.SGD(1.0, global_clipnorm=1e-3)
    model.compile(MultiOptimizer([keras.optimizers.SGD(0.0), r_optimizer]), cross_entropy(), run_eagerly=True)
    start = [v.numpy() for v in model.trainable_variables]
    model.train_on_batch(*batch())
    moves = [v.numpy() - s for v, s in zip(model.trainable_variables, start, strict=True)]
    assert_close(np.sqrt(sum((move**2).sum() for move in moves)), 1e-3)
    move = model.layers[-1].kernel.numpy() - before
    assert_close(move / np.linalg.norm(move), -of_r[-1] / np.linalg.norm(of_r[-1]))
    assert np.linalg.norm(of_j[-1]) > 1e-3


def test_each_optimizer_has_slots_of_its_own_for_w():
    model = network(Symmetric(**BOTH))
    model.compile(MultiOptimizer([Momentum(0.1), Adam(0.01)]), cross_entropy())
    j_optimizer, r_optimizer = model.optimizer.inner_optimizers
    forward = {"first/kernel", "first/bias", "second/kernel", "second/bias"}
    assert {v.path for v in j_optimizer._trainable_variables} == forward
    backward = {"first/backward_kernel", "second/backward_kernel"}
    assert {v.path for v in r_optimizer._trainable_variables} == {"first/kernel", "second/kernel"} | backward


@pytest.mark.parametrize(
    ("rule", "skip_idle"),
    [
        pytest.param(Symmetric(**BOTH), False, marks=pytest.mark.exhaustive),
        pytest.param(WeightMirror(**MIRROR, input={"noise": "normal"}), True, marks=pytest.mark.exhaustive),
    ],
)
def test_two_replicas_train_as_one_does(float64, rule, skip_idle):
    ends = []
    for replicas in (1, 2):
        runtime = {"strategy": "mirrored", "replicas": 2} if replicas == 2 else {"strategy": "cpu"}
        with create(configuration.Runtime(**runtime)).strategy.scope():
            model = network(rule)
            scheduler = RateScheduler(2, alternation=1)
            model.compile(
                MultiOptimizer([Momentum(0.1), Adam(0.01)], scheduler, skip_idle), cross_entropy(), jit_compile=False
            )
        x, y = batch()
        model.fit(tf.data.Dataset.from_tensors((x, y)).repeat(4), verbose=0, shuffle=False)
        ends.append([v.numpy() for v in [*model.variables, *model.optimizer.variables] if v.dtype != "string"])
    for one, two in zip(*ends, strict=True):
        assert_close(two, one)


def test_half_precision_with_loss_scaling_moves_w_by_both():
    """Under mixed_float16 Keras puts a loss scale around the optimizer."""
    moves = {}
    for policy in ("float32", "mixed_float16", "mixed_bfloat16"):
        keras.config.set_dtype_policy(policy)
        try:
            model = network(Symmetric(**BOTH))
            model.compile(
                MultiOptimizer([keras.optimizers.SGD(0.1), keras.optimizers.SGD(0.1)]),
                cross_entropy(),
                run_eagerly=True,
            )
        finally:
            keras.config.set_dtype_policy("float32")
        start = model.layers[-1].kernel.numpy()
        model.train_on_batch(*batch())
        moves[policy] = model.layers[-1].kernel.numpy() - start
    assert_close(moves["mixed_float16"], moves["float32"], "float16")
    assert_close(moves["mixed_bfloat16"], moves["float32"], "bfloat16")


def test_a_plain_optimizer_moves_w_by_the_sum(float64):
    model = network(Symmetric(**BOTH))
    of_j, of_r = separate_gradients(model)
    start = model.layers[-1].kernel.numpy()
    model.compile(keras.optimizers.SGD(0.1), cross_entropy(), run_eagerly=True)
    model.train_on_batch(*batch())
    assert_close(model.layers[-1].kernel, start - 0.1 * (of_j[-1] + of_r[-1]))


def test_a_plain_keras_model_moves_w_by_the_sum(float64):
    model = network(WeightMirror(**MIRROR), keras.Model)
    of_j, of_r = separate_gradients(model)
    start = model.layers[-1].kernel.numpy()
    model.compile(MultiOptimizer([keras.optimizers.SGD(0.1)]), cross_entropy(), run_eagerly=True)
    model.train_on_batch(*batch())
    assert_close(model.layers[-1].kernel, start - 0.1 * (of_j[-1] + of_r[-1]))


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda: MultiOptimizer([Momentum(0.1), Adam(0.01)]),
        lambda: MultiOptimizer([Momentum(0.1)], RateScheduler(2, alternation=1)),
    ],
    ids=["two optimizers", "in turn"],
)
def test_a_plain_keras_model_cannot_tell_the_two_gradients_apart(optimizer):
    model = network(Symmetric(**BOTH), keras.Model)
    model.compile(optimizer(), cross_entropy(), run_eagerly=True)
    with pytest.raises(ValueError, match="must be given twice, with J's and with R's gradient"):
        model.train_on_batch(*batch())


def test_averages_of_r_s_optimizer_are_refused():
    model = network(Symmetric(**BOTH))
    with pytest.raises(ValueError, match="`use_ema` of R's optimizer must be False if R trains W too"):
        model.compile(MultiOptimizer([Momentum(0.1), keras.optimizers.Adam(0.01, use_ema=True)]), cross_entropy())


def test_averages_of_j_s_optimizer_see_w_after_both_updates():
    model = network(Symmetric(**BOTH))
    j_optimizer = keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.0)
    model.compile(MultiOptimizer([j_optimizer, keras.optimizers.SGD(0.1)]), cross_entropy(), run_eagerly=True)
    model.fit(*batch(), epochs=1, verbose=0)
    assert np.isfinite(model.layers[-1].kernel.numpy()).all()


def test_a_frozen_layer_stays_where_it_is():
    model = network(WeightMirror(**MIRROR))
    model.layers[1].trainable = False
    model.compile(MultiOptimizer([Momentum(0.1), Adam(0.01)]), cross_entropy(), jit_compile=False)
    start = [w.numpy() for w in model.layers[1].weights]
    model.train_on_batch(*batch())
    for weight, before in zip(model.layers[1].weights, start, strict=True):
        np.testing.assert_array_equal(weight, before)


def test_a_loaded_model_trains_like_the_original(tmp_path):
    model = network(WeightMirror(**MIRROR))
    model.compile(MultiOptimizer([Momentum(0.1), Adam(0.01)]), cross_entropy(), jit_compile=False)
    model.train_on_batch(*batch())
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert again.layers[1].alignment.update_forward
    for each in (model, again):
        each.train_on_batch(*batch())
    for ours, theirs in zip(model.weights, again.weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_layer_that_stands_at_two_places_has_the_sum_of_both(float64):
    rule = WeightMirror(**MIRROR)
    keras.utils.set_random_seed(5)
    shared = layers.Dense(4, alignment=rule, name="shared")
    inputs = keras.Input((4,))
    model = AlignedModel(inputs, shared(keras.layers.Activation("tanh")(shared(inputs))))
    x, y = batch()
    kernel = shared.kernel.value
    with tf.GradientTape() as tape, forward_pass() as state:
        model(tf.stop_gradient(tf.constant(x)), training=True)
        total = sum(state.losses.values())
    expected = tape.gradient(total, kernel)
    model.compile(
        MultiOptimizer([keras.optimizers.SGD(0.0), keras.optimizers.SGD(0.1)]), cross_entropy(), run_eagerly=True
    )
    start = shared.kernel.numpy()
    model.train_on_batch(x, y)
    assert_close(shared.kernel, start - 0.1 * expected)


# In configurations.

RUN = {
    "epochs": 1,
    "batch_size": 8,
    "data": {"source": "digits"},
    "model": {"name": "fc", "hidden": [6]},
    "alignment": {"rule": "symmetric", "self_": 0.1, "decay": 0.1, "update_forward": True},
    "optimization": {
        "forward": {"name": "momentum", "learning_rate": 0.1},
        "backward": {"name": "adam", "learning_rate": 0.01},
    },
}


def test_describe_names_the_kernels_that_r_moves_and_the_optimizer():
    text = describe(configuration.parse(RUN))
    assert "R moves     B and W of 2 layers (update_forward: " in text
    assert "by optimization.backward (adam); J moves W by optimization.forward (momentum)" in text
    single = {**RUN, "optimization": {"forward": RUN["optimization"]["forward"]}}
    assert "by optimization.forward (momentum), by the sum of the gradients of J and R" in describe(
        configuration.parse(single)
    )
    assert "rule        symmetric: update_forward true, self_ 0.1, decay 0.1" in text
    plain = {**RUN, "alignment": {**RUN["alignment"], "update_forward": False}}
    assert "R moves" not in describe(configuration.parse(plain))


def test_describe_lists_all_options_of_a_rule():
    output = {"relu": True}
    rule = {"rule": "activation", "amp": 0.1, "sparse": {"kind": "constant", "value": 0.2, "stop": 3.0}}
    text = describe(configuration.parse({**RUN, "alignment": {**rule, "activation": "tanh", "forward_output": output}}))
    (line,) = [line for line in text.splitlines() if line.startswith("rule  ")]
    for each in ("amp 0.1", "sparse.value 0.2", "sparse.stop 3", "activation tanh", "forward_output.relu true"):
        assert each in line


def test_describe_counts_the_products_for_the_gradient_of_w():
    """Weight mirror: W's half needs B^T x and one correlation besides B's one correlation."""
    plain = from_config(RULE_CONFIGS["weight_mirror"])
    both = from_config({**RULE_CONFIGS["weight_mirror"], "update_forward": True})
    assert regulariser_products(plain) == 1
    assert regulariser_products(both) == 3


def kolen_pollack(**changes):
    """Returns a run of Kolen-Pollack with `update_forward`."""
    rule = {"rule": "kolen_pollack", "decay": 0.01, "update_forward": True}
    return {**RUN, "alignment": rule, "optimization": {"forward": RUN["optimization"]["forward"]}, **changes}


def test_kolen_pollack_brings_b_to_w_by_the_decay_of_both(float64):
    model = network(from_config({"rule": "kolen_pollack", "decay": 0.1, "update_forward": True}))
    model.compile(MultiOptimizer([keras.optimizers.SGD(0.5)]), cross_entropy(), run_eagerly=True)
    first = model.layers[1]
    gap = first.kernel.numpy() - first.backward_kernel.numpy().T
    model.train_on_batch(*batch())
    assert_close(first.kernel.numpy() - first.backward_kernel.numpy().T, (1 - 0.5 * 0.1) * gap)


def test_weight_decay_beside_kolen_pollack_with_update_forward_is_refused():
    configuration.parse(kolen_pollack())
    with pytest.raises(ConfigError, match="weight_decay: must be 0 with kolen_pollack and update_forward"):
        configuration.parse(kolen_pollack(weight_decay=0.01))


def test_the_noise_of_the_two_optimizers_of_w_is_not_the_same():
    noise = {"variance": 1e-4}
    plan = {name: {**options, "noise": noise} for name, options in RUN["optimization"].items()}
    optimizer = setup.build_optimizer(configuration.parse({**RUN, "optimization": plan}), 10)
    j_noise, r_noise = optimizer.inner_optimizers
    assert isinstance(j_noise, Noisy)
    assert j_noise.seed != r_noise.seed
