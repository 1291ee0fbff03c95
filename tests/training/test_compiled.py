"""What a TPU will ask: steps that XLA compiles with static shapes, and mixed precision with R and angles in float32."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import (
    LEARNING,
    RULE_CONFIGS,
    TABLE_5,
    ConvReference,
    DenseReference,
    assert_close,
    assert_differs,
    distance,
    finite_difference,
    reference_regulariser,
    relu,
)

from neural_alignment import config as configuration
from neural_alignment import models
from neural_alignment.alignments import LayerView, Symmetric, forward_pass, from_config
from neural_alignment.alignments.pathways import InputPath, draw_noise, noise_key
from neural_alignment.training import AlignedModel, aligned_layers, probes, setup
from optimizers import Momentum, MultiOptimizer, Noisy, RateScheduler, WarmupAndDrops

BATCH, CLASSES, SHAPE, STEPS, SEED = 8, 3, (6, 6, 2), 5, 4
COLUMNS = {
    name: {**RULE_CONFIGS["information" if name == "IA" else "weight_mirror"], **path, "seed": SEED}
    for name, path in TABLE_5.items()
}
RULES = {**RULE_CONFIGS, **COLUMNS}


def data(steps=STEPS, shape=SHAPE):
    """Returns images and labels of some steps, `(steps, batch, ...)`, that a network can tell apart."""
    rng = np.random.default_rng(5)
    y = rng.integers(0, CLASSES, size=(steps, BATCH))
    x = 0.5 * rng.normal(size=(steps, BATCH, *shape)) + rng.normal(size=(CLASSES, *shape))[y]
    return x.astype(keras.config.floatx()), y


def network(config, name="convnet", shape=SHAPE, **options):
    """Returns a model, by default a convolution with batch normalisation and a dense layer, not compiled."""
    keras.utils.set_random_seed(1)
    options = options or {"filters": [4]}
    model = models.build(name, CLASSES, shape, from_config(config), weight_decay=1e-3, **options)
    return AlignedModel(model.inputs, model.outputs)


def compiled(model, config, scheduler=None, forward=None, backward=None, **options):
    """Compiles a model and builds its optimizers."""
    optimizers = [forward or Momentum(WarmupAndDrops(0.05, 2, warmup_epochs=1, drop_epochs=(2,)))]
    if config["rule"] != "kolen_pollack":
        optimizers.append(backward or Momentum(0.01))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(MultiOptimizer(optimizers, scheduler), loss, metrics=["accuracy"], **options)
    model.optimizer.build(model.trainable_variables)
    return model


def train(config, jit_compile, optimizers=lambda: {}, model=None, **options):
    """Trains and returns all variables, optimizer slots included, and what `fit` reports."""
    model = compiled(network(config, **(model or {})), config, jit_compile=jit_compile, **optimizers(), **options)
    history = model.fit(tf.data.Dataset.from_tensor_slices(data()), verbose=0, shuffle=False).history
    return [np.array(v) for v in [*model.variables, *model.optimizer.variables] if v.dtype != "string"], history


# XLA.


def agree(config, **options):
    """Fails unless XLA's run ends where that of TensorFlow's graph does; returns what both report."""
    graph, history = train(config, False, **options)
    xla, reported = train(config, True, **options)
    for expected, actual in zip(graph, xla, strict=True):
        assert_close(actual, expected)
    for name, values in history.items():
        assert_close(np.array(reported[name]), np.array(values), "float32")
    return history


def hlo(function, *arguments):
    """Returns what XLA makes of a function; it refuses what it cannot compile, and falls back to nothing."""
    compiled_function = tf.function(function, jit_compile=True, autograph=False)
    return compiled_function.experimental_get_compiler_ir(*arguments)(stage="hlo")


def step_hlo(model, shape=SHAPE):
    """Returns what XLA makes of one training step."""
    x, y = data(1, shape)
    return hlo(model.train_step, (tf.constant(x[0]), tf.constant(y[0])))


def dynamic(text):
    """Returns the sizes in `text` that are known as upper bounds only, written `f32[<=8]`."""
    return re.findall(r"<=\d+", text)


SCHEDULES = {
    "simultaneous": None,
    "alternating": RateScheduler(2, alternation=1),
    "delayed": RateScheduler(1, delay_epochs=2),
    "delayed and alternating": RateScheduler(1, delay_epochs=2, alternation=1),
}


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_ends_under_xla_where_it_does_in_a_graph(float64, rule):
    """With the turns of J and R where the rule allows them; the next test has both at every step."""
    tied = rule == "kolen_pollack"
    history = agree(RULES[rule], scheduler=SCHEDULES["simultaneous" if tied else "delayed and alternating"])
    assert history["regulariser"] != [0.0] or rule not in {*LEARNING, *COLUMNS}


@pytest.mark.parametrize("rule", ["feedback", "symmetric", "IA"])
def test_simultaneous_steps_end_under_xla_where_they_do_in_a_graph(float64, rule):
    agree(RULES[rule])


@pytest.mark.parametrize(
    ("rule", "schedule"), [(r, s) for r in RULES for s in SCHEDULES if r != "kolen_pollack" or s == "simultaneous"]
)
def test_the_step_of_every_rule_compiles_with_static_shapes(rule, schedule):
    """Kolen-Pollack moves W and B by one update, so J and R cannot take turns."""
    text = step_hlo(compiled(network(RULES[rule]), RULES[rule], SCHEDULES[schedule]))
    assert not dynamic(text)
    assert (" conditional(" in text) == (schedule != "simultaneous")


def test_a_shape_that_depends_on_the_data_would_be_seen():
    x = tf.constant([1.0, -1.0])
    assert dynamic(hlo(lambda x: tf.boolean_mask(x, x > 0), x))
    assert not dynamic(hlo(tf.nn.relu, x))


class HostRule(Symmetric):
    """Symmetric alignment that asks Python for something on the way."""

    def __call__(self, view):
        """Returns R_l."""
        return super().__call__(view) * tf.numpy_function(lambda: np.float32(1.0), [], tf.float32)


def test_a_step_that_xla_cannot_compile_is_refused():
    """So that a run with `jit_compile` is known to be compiled, whole."""
    x, y = data(1)
    for jit_compile in (False, True):
        keras.utils.set_random_seed(1)
        model = models.build("convnet", CLASSES, SHAPE, HostRule(self_=0.1, decay=0.1), filters=[4])
        model = compiled(AlignedModel(model.inputs, model.outputs), RULES["symmetric"], jit_compile=jit_compile)
        if jit_compile:
            with pytest.raises(tf.errors.InvalidArgumentError, match="uncompilable|not compilable"):
                model.fit(x[0], y[0], verbose=0)
        else:
            model.fit(x[0], y[0], verbose=0)


def pair(name, **options):
    """Returns a function that makes both losses an optimizer of this name."""
    return lambda: {loss: setup.OPTIMIZERS[name](0.02, **options) for loss in ("forward", "backward")}


VARIANTS = {
    "minibatches": {"minibatches": 2},
    "minibatches and alternation": {"minibatches": 2, "scheduler": SCHEDULES["alternating"]},
    "several steps per execution": {"steps_per_execution": 2, "scheduler": SCHEDULES["alternating"]},
    "clipped by the norm of all gradients": {"optimizers": pair("momentum", global_clipnorm=0.3)},
    "noisy updates": {"optimizers": lambda: {"forward": Noisy(Momentum(0.1), 1e-3, seed=3)}},
    **{name: {"optimizers": pair(name)} for name in setup.OPTIMIZERS},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_optimizer_and_way_of_stepping_ends_under_xla_where_it_does_in_a_graph(float64, variant):
    agree(RULES["activation"], model={"name": "fc", "hidden": [4], "activation": "relu"}, **VARIANTS[variant])


def test_the_step_of_a_resnet_compiles_with_static_shapes():
    shape, rule = (16, 16, 3), RULES["WM+AD+OPS"]
    model = compiled(network(rule, "resnet", shape, depth=18, version=1, stem="cifar", width=4), rule)
    assert not dynamic(step_hlo(model, shape))


def test_evaluation_and_the_measures_compile_with_static_shapes():
    model = compiled(network(RULES["IA"]), RULES["IA"])
    x, y = (tf.constant(array[0]) for array in data(1))
    assert not dynamic(hlo(lambda x, y: model.test_step((x, y)), x, y))
    assert not dynamic(hlo(lambda x, y: probes.measure(model, x, y), x, y))
    graph, xla = (tf.function(lambda: probes.measure(model, x, y), jit_compile=jit)() for jit in (False, True))
    for measure, row in graph.items():
        for layer, value in row.items():
            assert_close(xla[measure][layer], value, "float32")


# Mixed precision.


@pytest.fixture
def keep_tensor_float_32():
    """Puts the process back to what it was: the precision of a run is set for all of it."""
    before = tf.config.experimental.tensor_float_32_execution_enabled()
    yield
    tf.config.experimental.enable_tensor_float_32_execution(before)


def mixed(config, scheduler=None, **runtime):
    """Returns a model of `runtime.precision: mixed_bfloat16`, compiled, as a run makes it."""
    forward = {"name": "momentum", "learning_rate": 0.02}
    backward = {"name": "sgd", "learning_rate": 1.0 if scheduler is None else 0.01}
    plan = configuration.parse({
        "epochs": 1, "batch_size": BATCH, "data": {"source": "digits"}, "model": {"name": "convnet", "filters": [4]},
        "alignment": config, "runtime": {"precision": "mixed_bfloat16", **runtime},
        "optimization": {"forward": forward, **({} if config["rule"] == "kolen_pollack" else {"backward": backward})},
    })  # fmt: skip
    model = setup.build_model(plan, CLASSES, SHAPE, steps_per_epoch=10)
    setup.compile_model(model, plan, CLASSES, steps_per_epoch=10)
    return model
