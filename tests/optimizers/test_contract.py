"""The contract of all optimizers: build, apply, save and load the state, rebuild from the configuration."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import exhaustive_unless

from neural_alignment import layers
from neural_alignment.alignments import Symmetric
from optimizers import SWATS, Momentum, MultiOptimizer, Noisy, RAdam, RateScheduler, RMSprop, WarmupAndDrops


def schedule(rate=0.1):
    """Returns a schedule that changes at every one of the first steps."""
    return WarmupAndDrops(rate, steps_per_epoch=2, warmup_epochs=2, drop_epochs=(3,))


def multi(inner, **options):
    """Pairs an optimizer of R with momentum for J."""
    return MultiOptimizer([Momentum(schedule()), inner], **options)


ALTERNATING = {"rate_scheduler": RateScheduler(4, delay_epochs=0.5, alternation=1)}
LOSS_RATES = RateScheduler(2, loss_rates=(0.5, WarmupAndDrops(2.0, 2, 0, (1, 2, 3))))
OPTIMIZERS = {
    "momentum": lambda: Momentum(0.1),
    "momentum, scheduled": lambda: Momentum(schedule(), 0.8, nesterov=False, global_clipnorm=1.0),
    "noisy momentum": lambda: Noisy(Momentum(0.1), 0.01, "uniform", only="kernel", seed=3),
    "rmsprop": lambda: RMSprop(schedule(0.01), momentum=0.5, centered=True, initial_mean_square=1.0),
    "radam": lambda: RAdam(schedule(), beta_2=0.9),
    "swats": lambda: SWATS(0.1, beta_2=0.9, epsilon=0.5),
    "multi radam": lambda: multi(Noisy(RAdam(schedule(0.01), beta_2=0.8), 0.04), skip_idle=False, **ALTERNATING),
    "multi swats": lambda: multi(SWATS(schedule(0.01), beta_2=0.9, epsilon=0.5, rectified=True), **ALTERNATING),
    "multi with loss rates": lambda: multi(keras.optimizers.Adam(0.01), rate_scheduler=LOSS_RATES),
    "multi adam": lambda: multi(keras.optimizers.Adam(schedule(0.01)), **ALTERNATING),
    "multi rmsprop": lambda: multi(keras.optimizers.RMSprop(0.01), skip_idle=False, **ALTERNATING),
    "multi noisy": lambda: multi(Noisy(keras.optimizers.Adam(schedule(0.01)), 0.04), **ALTERNATING),
    "multi of one": lambda: MultiOptimizer([Noisy(Momentum(schedule()), 0.01, only="backward_kernel")]),
}


def variables():
    """Returns a forward and a backward kernel."""
    rng = np.random.default_rng(0)
    return [keras.Variable(rng.normal(size=(3, 2)), dtype="float32", name=n) for n in ("kernel", "backward_kernel")]


def gradient(step):
    """Returns the gradients of one step."""
    return [tf.constant(g, tf.float32) for g in np.random.default_rng(step).normal(size=(2, 3, 2))]


def steps(optimizer, own, first, last):
    """Applies some steps."""
    for step in range(first, last):
        optimizer.apply(gradient(step), own)


PARTS_APART = ("multi radam", "multi swats", "multi noisy", "multi rmsprop")
"""Optimizers of both losses whose parts are also tried by themselves, or inside another one."""

every_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)


@every_optimizer
def test_it_builds_moves_and_counts(name):
    optimizer, own = OPTIMIZERS[name](), variables()
    optimizer.build(own)
    before = [v.numpy() for v in own]
    steps(optimizer, own, 0, 6)
    assert all((v.numpy() != b).any() for v, b in zip(own, before, strict=True))
    assert int(optimizer.iterations) == 6
    assert float(optimizer.learning_rate) > 0


@every_optimizer
def test_a_restored_state_continues_like_the_uninterrupted_run(name):
    whole, own = OPTIMIZERS[name](), variables()
    whole.build(own)
    steps(whole, own, 0, 4)
    middle = [v.numpy() for v in own]
    store = {}
    whole.save_own_variables(store)
    steps(whole, own, 4, 8)

    resumed, others = OPTIMIZERS[name](), variables()
    resumed.build(others)
    for variable, value in zip(others, middle, strict=True):
        variable.assign(value)
    resumed.load_own_variables(store)
    steps(resumed, others, 4, 8)
    fresh, strangers = OPTIMIZERS[name](), variables()
    fresh.build(strangers)
    for variable, value in zip(strangers, middle, strict=True):
        variable.assign(value)
    steps(fresh, strangers, 4, 8)
    for undisturbed, again in zip(own, others, strict=True):
        np.testing.assert_array_equal(undisturbed.numpy(), again.numpy())
    assert any((u.numpy() != f.numpy()).any() for u, f in zip(own, strangers, strict=True))


@every_optimizer
def test_its_configuration_is_plain_data_and_rebuilds_it(name):
    optimizer, own = OPTIMIZERS[name](), variables()
    optimizer.build(own)
    steps(optimizer, own, 0, 1)
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(optimizer)))
    again, others = keras.saving.deserialize_keras_object(config), variables()
    again.build(others)
    steps(again, others, 0, 1)
    steps(optimizer, own, 1, 5)
    steps(again, others, 1, 5)
    for ours, theirs in zip(own, others, strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy())


@pytest.mark.parametrize("name", exhaustive_unless(OPTIMIZERS, lambda name: name not in PARTS_APART))
def test_a_saved_model_trains_on_as_if_it_had_not_been_saved(name, tmp_path):
    keras.utils.set_random_seed(4)
    inputs = keras.Input((4,))
    rule = Symmetric(self_=0.3, decay=0.2)
    model = keras.Model(inputs, layers.Dense(2, alignment=rule, name="last")(inputs))
    model.compile(OPTIMIZERS[name](), loss="mse", run_eagerly=True)
    x, y = np.random.default_rng(0).normal(size=(2, 8, 4))
    for _ in range(3):
        model.train_on_batch(x, y[:, :2])
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    loaded.run_eagerly = True
    for _ in range(3):
        model.train_on_batch(x, y[:, :2])
        loaded.train_on_batch(x, y[:, :2])
    for ours, theirs in zip(model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
