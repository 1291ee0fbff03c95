"""Training by every rule, step for step, against a NumPy loop that shares no line with the library.

The loop has its own forward pass, backward pass, gradients of R (derived by hand), optimizers and schedules. It takes
only random numbers from the library: the noise, and the fixed backward weights of `pfa`.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field, replace

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import (
    FIXED,
    TIED,
    ConvReference,
    DenseReference,
    assert_close,
    center_batch,
    distance,
    exhaustive_unless,
    reference_carried,
    relu,
)

from neural_alignment import layers
from neural_alignment.alignments import InputPath, from_config
from neural_alignment.alignments.pathways import draw_noise, noise_key
from neural_alignment.training import AlignedModel
from optimizers import Momentum, MultiOptimizer, RateScheduler, WarmupAndDrops

pytestmark = pytest.mark.usefixtures("float64")

STEPS, BATCH, CLASSES, L2 = 20, 6, 3, 1e-4
FEW = 6
"""Number of steps without a schedule."""
SOME = 10
"""Number of steps with a schedule if R updates W too: as W grows, so do the rounding errors of Keras' Adam, whose betas
are float32."""

NETWORKS = {
    "dense": [("dense", DenseReference(), (5, 6)), ("dense", DenseReference(), (6, CLASSES))],
    "conv": [
        ("conv", ConvReference((1, 1), "SAME"), (3, 3, 2, 3)),
        ("conv", ConvReference((2, 2), "VALID"), (2, 2, 3, 2)),
        ("dense", DenseReference(), (8, CLASSES)),
    ],
}
INPUT_SHAPES = {"dense": (5,), "conv": (4, 4, 2)}

RULES = {
    "feedback": {"rule": "feedback"},
    "sign_symmetry": {"rule": "sign_symmetry"},
    "frsf": {"rule": "frsf"},
    "brsf": {"rule": "brsf"},
    "weight_mirror": {
        "rule": "weight_mirror", "amp": 0.4, "decay": 0.3,
        "input": {"noise": "normal", "stddev": 0.7, "batch_center": True},
        "forward_output": {"bias": True, "relu": True, "batch_center": True},
    },
    "information": {
        "rule": "information", "amp": 0.4, "decay": 0.2, "null": 0.1,
        "input": {"noise": "uniform", "stddev": 0.6},
        "forward_output": {"bias": True, "relu": True},
    },
    "symmetric": {"rule": "symmetric", "self_": 0.5, "decay": 0.5},
    "activation": {
        "rule": "activation", "amp": 0.3, "sparse": 0.3,
        "forward_output": {"bias": True}, "backward_output": {"bias": True},
    },
    "kolen_pollack": {"rule": "kolen_pollack", "decay": L2},
    "pfa": {"rule": "pfa", "decay": L2, "expansion": 3},
}  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """One training run, as both sides read it."""

    config: dict
    network: str = "dense"
    momentum: float = 0.9
    rate: float = 0.2
    r_rate: float = 0.05
    steps_per_epoch: int = 3
    warmup_epochs: float = 0.0
    drop_epochs: tuple = ()
    delay_epochs: int = 0
    alternation: int | None = None
    skip_idle: bool = True
    minibatches: int = 1
    one_optimizer: bool = False
    seed: int = 11
    steps: int = STEPS
    mistake: str = field(default="", compare=False)

    @property
    def decay(self):
        """The weight decay of W. A rule that ties the updates of B to those of W decays W by R if it may."""
        return 0.0 if self.config["rule"] in TIED and self.config.get("update_forward") else L2


def data(recipe):
    """Returns the batches of every step."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(STEPS, BATCH, *INPUT_SHAPES[recipe.network]))
    return x[: recipe.steps], rng.integers(0, CLASSES, size=(STEPS, BATCH))[: recipe.steps]


# The library.


def build_model(recipe):
    """Builds and compiles the library's model of a recipe."""
    keras.utils.set_random_seed(recipe.seed)
    rule = from_config(recipe.config, seed=recipe.seed)
    inputs = x = keras.Input(INPUT_SHAPES[recipe.network])
    specs = NETWORKS[recipe.network]
    for index, (kind, linear, shape) in enumerate(specs):
        last = index == len(specs) - 1
        options = {
            "activation": None if last else "relu",
            "kernel_regularizer": keras.regularizers.L2(recipe.decay / 2) if recipe.decay else None,
            "bias_regularizer": keras.regularizers.L2(L2 / 2) if last else None,
            "bias_initializer": keras.initializers.RandomNormal(0.0, 0.3, seed=index),
            "kernel_initializer": keras.initializers.RandomNormal(0.0, 0.5, seed=10 + index),
            "alignment": rule,
            "name": f"layer{index}",
        }
        if kind == "dense":
            x = keras.layers.Flatten()(x) if len(x.shape) > 2 else x
            x = layers.Dense(shape[1], **options)(x)
        else:
            x = layers.Conv2D(shape[3], shape[:2], strides=linear.strides, padding=linear.padding.lower(), **options)(x)
    return AlignedModel(inputs, x)


def compile_model(model, recipe, **options):
    """Compiles the model with the optimizers of a recipe."""
    clock = {
        "steps_per_epoch": recipe.steps_per_epoch, "drop_epochs": recipe.drop_epochs,
        "delay_epochs": recipe.delay_epochs, "alternation": recipe.alternation,
    }  # fmt: skip
    scheduled = recipe.warmup_epochs or recipe.drop_epochs

    def rate(value, warmup):
        return WarmupAndDrops(value, warmup_epochs=warmup, **clock) if scheduled else value

    inner = [Momentum(rate(recipe.rate, recipe.warmup_epochs), recipe.momentum)]
    if not recipe.one_optimizer:
        r_warmup = 0 if recipe.delay_epochs else recipe.warmup_epochs
        inner.append(keras.optimizers.Adam(rate(recipe.r_rate, r_warmup), epsilon=1e-8))
    scheduler = RateScheduler(recipe.steps_per_epoch, recipe.delay_epochs, recipe.alternation)
    model.compile(
        optimizer=MultiOptimizer(inner, scheduler, skip_idle=recipe.skip_idle),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        minibatches=recipe.minibatches,
        **options,
    )


def weights_of(model):
    """Returns W, bias and B (in the layout of W) of every aligned layer."""
    out = []
    for layer in model.layers:
        if isinstance(layer, layers.AlignedLayer):
            b = layer._backward_kernel.numpy()
            out += [layer.kernel.numpy(), layer.bias.numpy(), b.T if b.ndim == 2 else b]
    return [w.copy() for w in out]


def fixed_weights(recipe):
    """Returns F `(hidden units, outputs)` of every layer of a model with `pfa`."""
    found = [layer for layer in build_model(recipe).layers if isinstance(layer, layers.AlignedLayer)]
    return [layer.connection().fixed_kernel.numpy()[0] for layer in found]


# The NumPy loop.


def regulariser_gradient(config, linear, x, w, b, bias, activation, mistake):
    """Returns dR_l/dB, by hand: B is linear in both of its projections here."""
    rule, n = config["rule"], len(x)
    path, out = config.get("input", {}), config.get("forward_output", {})
    if rule == "symmetric":
        return config["decay"] * b - config["self_"] * w
    if rule in TIED:
        return config["decay"] * b
    activity = linear.project(x, w) + (bias if out.get("bias") else 0.0)
    if out.get("relu") and activation:
        activity = relu(activity)
    x_out = center_batch(activity) if out.get("batch_center") else activity
    x_back = center_batch(x) if path.get("batch_center") else x
    gradient = -config["amp"] * linear.correlate(x_back, x_out, w.shape) / n
    gradient *= -1 if mistake == "sign of amp" else 1
    half = 2.0 if mistake == "no half" else 1.0
    if rule == "activation":
        projection = linear.project(x_back, b) + (bias if config.get("backward_output", {}).get("bias") else 0.0)
        gradient += half * config["sparse"] * linear.correlate(x_back, projection, w.shape) / n
    else:
        gradient += half * config["decay"] * b
    if rule == "information":
        reconstruction = linear.reconstruct(activity, b, x.shape)
        gradient += config["null"] * linear.correlate(reconstruction, activity, w.shape) / n
    return gradient


def forward_regulariser_gradient(config, linear, x, w, b, bias, activation):
    """Returns dR_l/dW by hand, for a rule with `update_forward`: W appears only in the forward projection."""
    rule, n = config["rule"], len(x)
    path, out = config.get("input", {}), config.get("forward_output", {})
    if rule == "symmetric":
        return config["decay"] * w - config["self_"] * b
    if rule in TIED:
        return config["decay"] * w
    projection = linear.project(x, w) + (bias if out.get("bias") else 0.0)
    gate = (projection > 0).astype(float) if out.get("relu") and activation else np.ones_like(projection)
    activity = projection * gate
    x_back = center_batch(x) if path.get("batch_center") else x
    backward = linear.project(x_back, b) + (bias if config.get("backward_output", {}).get("bias") else 0.0)
    to_output = -config["amp"] * backward / n
    if rule == "activation":
        to_output += config["sparse"] * (center_batch(activity) if out.get("batch_center") else activity) / n
    to_activity = center_batch(to_output) if out.get("batch_center") else to_output
    if rule == "information":
        to_activity += config["null"] * linear.project(linear.reconstruct(activity, b, x.shape), b) / n
    gradient = linear.correlate(x, to_activity * gate, w.shape)
    return gradient if rule == "activation" else gradient + config["decay"] * w


class NumpyNetwork:
    """The network of a recipe: its weights, and the gradients of J and R by every layer."""

    def __init__(self, recipe, weights):
        self.recipe = recipe
        self.specs = NETWORKS[recipe.network]
        self.w, self.bias, self.b = ([w.copy() for w in weights[start::3]] for start in range(3))
        self.fixed = fixed_weights(recipe) if recipe.config["rule"] == "pfa" else None

    def carried(self, index, step):
        """Returns the kernel that the error of a layer travels through."""
        if self.recipe.mistake == "weight transport":
            return self.w[index]
        if self.recipe.config["rule"] == "pfa":
            return self.b[index]  # It carries the error of the hidden units.
        rule, step = self.recipe.config["rule"], 0 if self.recipe.mistake == "magnitudes drawn once" else step
        return reference_carried(rule, self.w[index], self.b[index], f"layer{index}", step, self.recipe.seed)

    def gradients(self, x, y, step, first_example):
        """Returns the gradients of J to (W, bias) and of R to (B, W); J's to B too where the rule ties them."""
        recipe, rule = self.recipe, self.recipe.config["rule"]
        inputs, gates = [], []
        for index, (kind, linear, _) in enumerate(self.specs):
            if kind == "dense":
                x = x.reshape(len(x), -1)
            inputs.append(x)
            z = linear.project(x, self.w[index]) + self.bias[index]
            last = index == len(self.specs) - 1
            gates.append(np.ones_like(z) if last else (z > 0).astype(float))
            x = z * gates[-1]
        probabilities = np.exp(x - x.max(axis=1, keepdims=True))
        probabilities /= probabilities.sum(axis=1, keepdims=True)
        error = (probabilities - np.eye(CLASSES)[y]) / len(y)
        d_w, d_bias, d_b, d_forward = [], [], [], []
        for index in reversed(range(len(self.specs))):
            _, linear, shape = self.specs[index]
            error = error.reshape(gates[index].shape) * gates[index]
            task = linear.correlate(inputs[index], error, shape)
            last = index == len(self.specs) - 1
            d_w.insert(0, task + recipe.decay * self.w[index])
            d_bias.insert(0, error.sum(axis=tuple(range(error.ndim - 1))) + (L2 * self.bias[index] if last else 0.0))
            backward, forward = self._regulariser(index, inputs[index], step, first_example)
            d_forward.insert(0, forward)
            hidden = error
            if rule == "pfa":
                hidden = error @ self.fixed[index].T
                task = linear.correlate(inputs[index], hidden, self.b[index].shape)
            tied = rule in TIED and recipe.mistake != "J does not reach B"
            d_b.insert(0, backward + (task if tied or recipe.mistake == "J reaches B" else 0.0))
            sent = error if recipe.mistake == "weight transport" else hidden
            error = linear.reconstruct(sent, self.carried(index, step), inputs[index].shape)
        return d_w, d_bias, d_b, d_forward

    def _regulariser(self, index, x, step, first_example):
        """Returns the gradients of R_l to B and to W."""
        config, nothing = self.recipe.config, np.zeros_like(self.w[index])
        if config["rule"] in FIXED:
            return nothing, nothing
        if "noise" in config.get("input", {}):
            options = InputPath(**config["input"])
            key = noise_key(self.recipe.seed, f"layer{index}", step)
            x = draw_noise(options, tf.constant(x), key, first_example).numpy()
        activation = index < len(self.specs) - 1
        _, linear, _ = self.specs[index]
        layer = (config, linear, x, self.w[index], self.b[index], self.bias[index], activation)
        forward = forward_regulariser_gradient(*layer) if config.get("update_forward") else nothing
        return regulariser_gradient(*layer, self.recipe.mistake), forward


class NumpyMomentum:
    """TensorFlow 1's Nesterov momentum: a <- m a + g; w <- w - rate (g + m a)."""

    def __init__(self, weights, momentum):
        self.accumulators, self.momentum = [np.zeros_like(w) for w in weights], momentum

    def update(self, weights, gradients, rate):
        for w, g, a in zip(weights, gradients, self.accumulators, strict=True):
            if g is not None:
                a[:] = self.momentum * a + g
                w -= rate * (g + self.momentum * a)


class NumpyAdam:
    """Adam as TensorFlow has it: epsilon outside the bias correction.

    Keras rounds the two betas to float32 where it raises them to the power of t, and only there.
    """

    BETAS = tuple(float(np.float32(beta)) for beta in (0.9, 0.999))

    def __init__(self, weights):
        self.m, self.v = ([np.zeros_like(w) for w in weights] for _ in range(2))
        self.t = 0

    def update(self, weights, gradients, rate):
        self.t += 1
        scale = rate * np.sqrt(1 - self.BETAS[1] ** self.t) / (1 - self.BETAS[0] ** self.t)
        for w, g, m, v in zip(weights, gradients, self.m, self.v, strict=True):
            m[:] = 0.9 * m + 0.1 * g
            v[:] = 0.999 * v + 0.001 * g**2
            w -= scale * m / (np.sqrt(v) + 1e-8)


def numpy_rate(recipe, value, step, warmup):
    """Returns the learning rate at a global step, rounded as the schedule rounds it."""
    if not (recipe.warmup_epochs or recipe.drop_epochs):
        return value
    since = max(step - recipe.delay_epochs * recipe.steps_per_epoch, 0)
    epoch = since / recipe.steps_per_epoch / (1 if recipe.alternation is None else recipe.alternation + 1)
    if warmup and epoch < warmup:
        value *= epoch / warmup
    return float(np.float32(value * 0.1 ** sum(epoch >= drop for drop in recipe.drop_epochs)))


def train_numpy(recipe, weights):
    """Returns the weights after all steps, in the order of `weights_of`."""
    network = NumpyNetwork(recipe, weights)
    forward = [*network.w, *network.bias]
    j_optimizer = NumpyMomentum([*forward, *network.b] if recipe.one_optimizer else forward, recipe.momentum)
    moves_forward = recipe.config.get("update_forward", False)
    r_optimizer = NumpyAdam([*network.b, *network.w] if moves_forward else network.b)
    moves_b = recipe.config["rule"] not in FIXED
    for step, (x, y) in enumerate(zip(*data(recipe), strict=True)):
        delayed = step < recipe.delay_epochs * recipe.steps_per_epoch
        j_runs, r_runs = not delayed, True
        if recipe.alternation is not None and not delayed:
            r_runs = step % (recipe.alternation + 1) == 0
            j_runs = not r_runs
        parts = [
            network.gradients(*part, step, index * (len(x) // recipe.minibatches))
            for index, part in enumerate(
                zip(np.split(x, recipe.minibatches), np.split(y, recipe.minibatches), strict=True)
            )
        ]
        d_w, d_bias, d_b, d_forward = (
            [sum(g) / len(parts) for g in zip(*kind, strict=True)] for kind in zip(*parts, strict=True)
        )
        j_rate = numpy_rate(recipe, recipe.rate, step, recipe.warmup_epochs)
        r_rate = numpy_rate(recipe, recipe.r_rate, step, 0 if recipe.delay_epochs else recipe.warmup_epochs)
        if recipe.mistake == "J's optimizer moves W by R":
            d_w, d_forward = [a + r_runs * b for a, b in zip(d_w, d_forward, strict=True)], [0.0 * g for g in d_forward]
        if recipe.one_optimizer:
            d_w = [j_runs * a + r_runs * b for a, b in zip(d_w, d_forward, strict=True)]
            d_bias = [g * j_runs if j_runs or not recipe.skip_idle else None for g in d_bias]
            d_b = [g * r_runs if r_runs or not recipe.skip_idle else None for g in d_b]
            j_optimizer.update([*forward, *network.b], [*d_w, *d_bias, *d_b], j_rate)
            continue
        if j_runs or not recipe.skip_idle:
            j_optimizer.update(forward, [g * j_runs for g in (*d_w, *d_bias)], j_rate)
        if moves_b and (r_runs or not recipe.skip_idle):
            r_weights, r_gradients = (
                ([*network.b, *network.w], [*d_b, *d_forward]) if moves_forward else (network.b, d_b)
            )
            r_optimizer.update(r_weights, [g * r_runs for g in r_gradients], r_rate)
    return [a for triple in zip(network.w, network.bias, network.b, strict=True) for a in triple]


def train_library(recipe, weights=None, **options):
    """Returns the library's weights before and after all steps, one `train_on_batch` each."""
    model = build_model(recipe)
    before = weights_of(model)
    compile_model(model, recipe, **(options or {"run_eagerly": True}))
    for x, y in zip(*data(recipe), strict=True):
        model.train_on_batch(x, y)
    return before, weights_of(model)


def agree(recipe, **options):
    """Fails unless library and NumPy end at the same weights; returns them with those of the start."""
    before, after = train_library(recipe, **options)
    expected = train_numpy(recipe, before)
    for actual, reference in zip(after, expected, strict=True):
        assert_close(actual, reference)
    return before, after


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_trains_as_the_numpy_loop_does(rule):
    """On the network that has convolutions and a dense layer."""
    before, after = agree(Recipe(RULES[rule], "conv", one_optimizer=rule in TIED, steps=FEW))
    moved = [distance(a, b) > 1e-3 for a, b in zip(after, before, strict=True)]
    still = rule in FIXED
    assert moved == [True, True, not still] * len(NETWORKS["conv"])


VARIANTS = {
    "alternation 1": {"alternation": 1},
    "alternation 2 with momentum drift": {"alternation": 2, "skip_idle": False},
    "delay": {"delay_epochs": 2},
    "delay with momentum drift": {"delay_epochs": 2, "skip_idle": False},
    "warm-up and drops": {"warmup_epochs": 2, "drop_epochs": (3, 5)},
    "warm-up, delay and alternation": {
        "warmup_epochs": 1, "drop_epochs": (2,), "delay_epochs": 1, "alternation": 1, "steps_per_epoch": 4,
    },
    "no momentum": {"momentum": 0.0},
    "minibatches": {"minibatches": 2},
    "minibatches and alternation": {"minibatches": 3, "alternation": 2},
}  # fmt: skip


# `update_forward`: R moves W too, by R's optimizer, or by the one optimizer.

MOVES_FORWARD = {rule: {**config, "update_forward": True} for rule, config in RULES.items() if rule not in FIXED}


@pytest.mark.parametrize("rule", exhaustive_unless(MOVES_FORWARD, ("information", "symmetric", "pfa")))
def test_every_rule_with_update_forward_trains_as_the_numpy_loop_does(rule):
    """On the network that has convolutions and a dense layer."""
    agree(Recipe(MOVES_FORWARD[rule], "conv", one_optimizer=rule in TIED, steps=FEW))


@pytest.mark.parametrize(
    "variant",
    exhaustive_unless(
        ["alternation 2 with momentum drift", "warm-up, delay and alternation", "minibatches and alternation"],
        ("minibatches and alternation",),
    ),
)
def test_every_schedule_with_update_forward_trains_as_the_numpy_loop_does(variant):
    agree(Recipe(MOVES_FORWARD["information"], steps=SOME, **VARIANTS[variant]))


@pytest.mark.parametrize(("rule", "alternation"), [("symmetric", None), ("activation", 2)])
def test_one_optimizer_moves_w_by_the_sum_of_both_gradients(rule, alternation):
    agree(Recipe(MOVES_FORWARD[rule], one_optimizer=True, alternation=alternation, steps=FEW))


@pytest.mark.exhaustive
def test_steps_of_xla_with_update_forward_train_as_the_numpy_loop_does():
    agree(Recipe(MOVES_FORWARD["weight_mirror"], minibatches=2, steps=FEW), jit_compile=True)


@pytest.mark.parametrize("rule", ["symmetric", "activation"])
def test_with_update_forward_the_optimizer_of_r_moves_w_by_r(rule):
    recipe = Recipe(MOVES_FORWARD[rule])
    start = weights_of(build_model(recipe))
    right = train_numpy(recipe, start)
    for wrong in (replace(recipe, mistake="J's optimizer moves W by R"), replace(recipe, config=RULES[rule])):
        assert max(distance(a, b) for a, b in zip(right, train_numpy(wrong, start), strict=True)) > 1e-3


SCHEDULES = [
    ("activation", "alternation 1"),
    ("activation", "delay with momentum drift"),
    ("activation", "warm-up and drops"),
    # The noise depends on the global step and the place in the batch.
    ("information", "alternation 2 with momentum drift"),
    ("information", "delay"),
    ("information", "minibatches and alternation"),
    # With means over the batch.
    ("weight_mirror", "warm-up, delay and alternation"),
    # With one optimizer.
    ("kolen_pollack", "no momentum"),
    ("kolen_pollack", "warm-up and drops"),
    ("pfa", "minibatches"),
]


@pytest.mark.parametrize(
    ("rule", "variant"), exhaustive_unless(SCHEDULES, [SCHEDULES[place] for place in (2, 3, 5, 6)])
)
def test_every_schedule_trains_as_the_numpy_loop_does(rule, variant):
    agree(Recipe(RULES[rule], one_optimizer=rule in TIED, **VARIANTS[variant]))


def test_every_schedule_has_a_rule():
    assert {variant for _, variant in SCHEDULES} == set(VARIANTS)


def test_kolen_pollack_brings_b_to_w_at_the_rate_of_the_decay():
    """Without momentum W - B^T shrinks by exactly 1 - rate * decay at every step."""
    config = {"rule": "kolen_pollack", "decay": L2}
    before, after = train_library(Recipe(config, momentum=0.0, one_optimizer=True))
    for start in (0, 3):
        gap_before, gap_after = before[start] - before[start + 2], after[start] - after[start + 2]
        assert_close(gap_after, gap_before * (1 - 0.2 * L2) ** STEPS)
        assert not np.allclose(gap_after, gap_before, rtol=1e-6)


def test_steps_of_a_graph_train_as_the_numpy_loop_does():
    recipe = Recipe(RULES["information"], alternation=2, delay_epochs=1, minibatches=2, warmup_epochs=1)
    agree(recipe, jit_compile=False)


@functools.cache
def weights_at_start(rule):
    """Returns the weights of the library's model with a rule, before training."""
    return weights_of(build_model(Recipe(RULES[rule])))


@pytest.mark.parametrize(
    ("rule", "mistake"),
    [
        *((rule, "weight transport") for rule in RULES),
        ("weight_mirror", "sign of amp"), ("information", "sign of amp"), ("activation", "sign of amp"),
        ("weight_mirror", "no half"), ("information", "no half"), ("activation", "no half"),
        ("symmetric", "J reaches B"), ("weight_mirror", "J reaches B"), ("brsf", "magnitudes drawn once"),
        ("kolen_pollack", "J does not reach B"), ("pfa", "J does not reach B"),
    ],
)  # fmt: skip
def test_a_plausible_mistake_is_far_outside_the_tolerance(rule, mistake):
    """The NumPy loop itself with one mistake, against the NumPy loop without."""
    recipe, start = Recipe(RULES[rule], one_optimizer=rule in TIED, steps=FEW), weights_at_start(rule)
    right = train_numpy(recipe, start)
    wrong = train_numpy(replace(recipe, mistake=mistake), start)
    assert max(distance(a, b) for a, b in zip(right, wrong, strict=True)) > 1e-3


def test_momentum_of_tensorflow_1_differs_from_keras_by_using_the_rate_of_the_present_step():
    """With a warm-up, `keras.optimizers.SGD` ends elsewhere; at a constant rate it does not."""

    def ends(recipe):
        model = build_model(recipe)
        before = weights_of(model)
        compile_model(model, recipe, run_eagerly=True)
        ours = model.optimizer.inner_optimizers[0]
        rate = WarmupAndDrops(0.2, 3, warmup_epochs=3, drop_epochs=()) if recipe.warmup_epochs else 0.2
        sgd = keras.optimizers.SGD(rate, momentum=ours.momentum, nesterov=True)
        model.compile(
            MultiOptimizer([sgd, keras.optimizers.Adam(0.05, epsilon=1e-8)]), loss=model.loss, run_eagerly=True
        )
        for x, y in zip(*data(recipe), strict=True):
            model.train_on_batch(x, y)
        return weights_of(model)[0], train_numpy(recipe, before)[0]

    # Keras rounds its momentum to float32.
    assert_close(*ends(Recipe(RULES["feedback"])), "float32")
    keras_end, our_end = ends(Recipe(RULES["feedback"], warmup_epochs=3))
    assert distance(keras_end, our_end) > 1e-3
