"""One run on several replicas: the same weights as on one, whatever the rule, the schedule and the optimizer."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import RULE_CONFIGS, TABLE_5, assert_close, distance

from neural_alignment import layers
from neural_alignment.alignments import from_config
from neural_alignment.config import Runtime
from neural_alignment.training import AlignedModel, distribution
from optimizers import Momentum, MultiOptimizer, Noisy, RateScheduler

BATCH, STEPS, CLASSES = 8, 4, 3
COLUMNS = {
    **{
        name: {**RULE_CONFIGS["information" if name == "IA" else "weight_mirror"], **path}
        for name, path in TABLE_5.items()
    },
    "IA of centred reconstructions": {
        **RULE_CONFIGS["information"], "compare_reconstruction": True, "input": {"noise": "uniform", "stddev": 0.5},
        "forward_output": {"batch_center": True, "relu": True},
    },
}  # fmt: skip
RULES = {**RULE_CONFIGS, **COLUMNS, "backpropagation": None}


def strategy_of(replicas):
    """Returns the default strategy, or a mirrored one over parts of the CPU."""
    runtime = Runtime(strategy="mirrored", replicas=replicas) if replicas > 1 else Runtime(strategy="cpu")
    return distribution.create(runtime).strategy


def batches():
    """Returns the batches of every step."""
    rng = np.random.default_rng(5)
    x = rng.normal(size=(STEPS, BATCH, 6, 6, 2)) + rng.normal(size=(1, BATCH, 1, 1, 1))
    return tf.data.Dataset.from_tensor_slices((x, rng.integers(0, CLASSES, size=(STEPS, BATCH))))


def network(rule, synchronized=True):
    """Returns a small network with batch normalisation, or without where `synchronized` is none."""
    keras.utils.set_random_seed(1)
    l2 = keras.regularizers.L2(0.01)
    options = {"alignment": rule, "kernel_regularizer": l2}
    inputs = keras.Input((6, 6, 2))
    x = layers.Conv2D(4, 3, strides=2, alignment_activation="relu", use_bias=False, name="conv", **options)(inputs)
    if synchronized is not None:
        x = keras.layers.BatchNormalization(synchronized=synchronized, momentum=0.9)(x)
    x = keras.layers.Flatten()(keras.layers.ReLU()(x))
    x = layers.Dense(5, activation="tanh", name="hidden", **options)(x)
    return AlignedModel(inputs, layers.Dense(CLASSES, name="dense", **options)(x))


def train(replicas, config, scheduler=None, forward=None, skip_idle=True, synchronized=True, **options):
    """Trains and returns all weights, optimizer slots included, and what `fit` reports."""
    strategy = strategy_of(replicas)
    with strategy.scope():
        seeded = {"seed": 4} if config and "input" in config else {}
        model = network(config and from_config({**config, **seeded}), synchronized)
        optimizers = [(forward or (lambda: Momentum(0.1)))()]
        if config is None or config["rule"] != "kolen_pollack":
            optimizers.append(keras.optimizers.Adam(0.05, epsilon=1e-8))
        model.compile(
            MultiOptimizer(optimizers, scheduler, skip_idle),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            weighted_metrics=["accuracy"],
            jit_compile=False,
            **options,
        )
        model.optimizer.build(model.trainable_variables)
    history = model.fit(batches(), epochs=1, verbose=0, shuffle=False).history
    variables = [*model.variables, *model.optimizer.variables]
    return [np.array(v) for v in variables if v.dtype != "string"], history


def agree(config, replicas, **options):
    """Fails unless several replicas end where one does."""
    one, history = train(1, config, **options)
    several, reported = train(replicas, config, **options)
    for expected, actual in zip(one, several, strict=True):
        assert_close(actual, expected)
    assert history.keys() == reported.keys()
    for name, values in history.items():
        assert_close(np.array(reported[name]), np.array(values), "float32")


@pytest.mark.parametrize("rule", RULES)
def test_two_replicas_train_as_one_does(float64, rule):
    agree(RULES[rule], 2)


@pytest.mark.parametrize("rule", ["symmetric", "WM+AD+OPS", "IA of centred reconstructions"])
def test_four_replicas_train_as_one_does(float64, rule):
    agree(RULES[rule], 4)


SCHEDULES = {
    "alternation": {"scheduler": RateScheduler(2, alternation=1)},
    "alternation with delay": {"scheduler": RateScheduler(1, delay_epochs=1, alternation=2)},
    "alternation with momentum drift": {"scheduler": RateScheduler(2, alternation=1), "skip_idle": False},
    "several steps per execution": {"steps_per_execution": 3},
}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_schedule_trains_on_two_replicas_as_on_one(float64, schedule):
    agree(RULES["WM"], 2, **SCHEDULES[schedule])


@pytest.mark.parametrize("scheduler", [None, RateScheduler(2, alternation=1)], ids=["simultaneous", "alternating"])
def test_minibatches_train_on_two_replicas_as_on_one(float64, scheduler):
    """Without batch normalisation and centring, whose batch is that of a minibatch of all replicas."""
    rule = {**RULE_CONFIGS["information"], "input": {"noise": "normal"}, "forward_output": {"relu": True}}
    agree(rule, 2, minibatches=2, scheduler=scheduler, synchronized=None)


OPTIMIZERS = {
    "clipped by the norm of all gradients": lambda: Momentum(0.1, global_clipnorm=0.5),
    "clipped by norm": lambda: Momentum(0.1, clipnorm=0.1),
    "clipped by value": lambda: keras.optimizers.SGD(0.1, clipvalue=0.02),
    "with noise on the updates": lambda: Noisy(Momentum(0.1, global_clipnorm=0.5), 1e-3, seed=3),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_moves_two_replicas_as_one(float64, optimizer):
    agree(RULES["symmetric"], 2, forward=OPTIMIZERS[optimizer])
    free, _ = train(1, RULES["symmetric"])
    held, _ = train(1, RULES["symmetric"], forward=OPTIMIZERS[optimizer])
    assert max(distance(a, b) for a, b in zip(free, held, strict=False) if a.shape == b.shape) > 1e-2


def test_batch_normalisation_is_per_replica_unless_synchronised(float64):
    """As on the cores of the original's TPU: then two replicas end elsewhere than one."""
    one, _ = train(1, RULES["symmetric"], synchronized=False)
    two, _ = train(2, RULES["symmetric"], synchronized=False)
    assert max(distance(a, b) for a, b in zip(one, two, strict=True)) > 1e-2


def test_a_scheduled_optimizer_outside_of_an_aligned_model_says_what_it_needs(float64):
    strategy = strategy_of(2)
    with strategy.scope():
        variable = keras.Variable(np.ones(2), name="backward_kernel")
        optimizer = MultiOptimizer([Momentum(0.1), Momentum(0.1)], RateScheduler(1, alternation=1))
        optimizer.build([variable])
    with pytest.raises(ValueError, match="several replicas `apply` must be told whose turn it is"):
        strategy.run(lambda: optimizer.apply([tf.ones(2, tf.float64)], [variable]))


def test_aligned_layers_in_a_plain_keras_model_train_on_two_replicas_as_on_one(float64):
    """R comes by `add_loss` there, and the layers count their own steps."""
    ends = []
    for replicas in (1, 2):
        with strategy_of(replicas).scope():
            aligned = network(from_config({**RULES["WM"], "seed": 4}))
            model = keras.Model(aligned.inputs, aligned.outputs)
            optimizer = MultiOptimizer([Momentum(0.1), keras.optimizers.Adam(0.05)])
            model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True), jit_compile=False)
        model.fit(batches(), verbose=0, shuffle=False)
        ends.append([np.array(v) for v in model.variables if v.dtype != "string"])
    for one, two in zip(*ends, strict=True):
        assert_close(two, one)
