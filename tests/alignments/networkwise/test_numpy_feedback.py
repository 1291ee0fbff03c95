"""Every rule of Boopathy and Fiete 2022, step for step, against float64 NumPy that shares no line with the library."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import keras
import numpy as np
import pytest
from helpers import ConvReference, assert_close, distance, exhaustive_unless, relu

from neural_alignment import models
from neural_alignment.alignments import (
    AlignAda,
    AlignProp,
    AlignZero,
    DirectFeedback,
    DirectTargetProjection,
    Feedback,
    LastLayer,
)
from neural_alignment.losses import SquaredError
from neural_alignment.training import AlignedModel
from optimizers import MultiOptimizer

pytestmark = pytest.mark.usefixtures("float64")

STEPS, BATCH, WIDTH, CLASSES, RATE = 15, 6, 3, 4, 1.0
STRIDES = (1, 1, 1, 2, 1, 2, 1)
SHAPE = (8, 8, 2)
RULES = {
    "normal": None,
    "align_zero": AlignZero(),
    "align_ada": AlignAda(),
    "align_prop": AlignProp(),
    "fa": Feedback(),
    "dfa": DirectFeedback(),
    "dfa shared": DirectFeedback(share_space=True),
    "drtp": DirectTargetProjection(),
    "drtp shared": DirectTargetProjection(share_space=True),
    "last_layer": LastLayer(),
}


def batches():
    rng = np.random.default_rng(3)
    return rng.random((STEPS, BATCH, *SHAPE)), rng.integers(0, CLASSES, (STEPS, BATCH))


# The library.


def library(rule):
    """Returns the model, its kernels and biases, its backward kernels or maps, all at the start."""
    keras.utils.set_random_seed(7)
    model = models.wide_cnn("cifar", WIDTH, CLASSES, SHAPE, rule)
    model = AlignedModel(model.input, model.output)
    model.compile(MultiOptimizer([keras.optimizers.SGD(RATE)]), loss=SquaredError(0.1), jit_compile=False)
    layers = [model.get_layer(name) for name in [*(f"conv{number}" for number in range(1, 8)), "dense"]]
    backward = [layer._backward_kernel.numpy() for layer in layers if layer.keeps_backward_kernel]
    if backward:
        backward[-1] = backward[-1].T
    if isinstance(rule, DirectFeedback):
        backward = [weight.numpy() for weight in model.feedback_weights.weights]
    return model, layers, backward


def weights(layers):
    return [layer.kernel.numpy() for layer in layers], [layer.bias.numpy() for layer in layers]


# NumPy.


@dataclass
class Signals:
    """One pass of a network: the inputs of every layer, the outputs of batch normalisation, and its scale."""

    inputs: list
    normal: list
    scale: list
    outputs: np.ndarray


def conv(number):
    return ConvReference((STRIDES[number],) * 2, "SAME")


def factor(kernel):
    return 1 / np.sqrt(np.prod(kernel.shape[:-1]))


def forward(kernels, biases, x):
    inputs, normal, scales = [x], [], []
    for number in range(7):
        z = conv(number).project(inputs[-1], kernels[number]) * factor(kernels[number]) + biases[number]
        scales.append(1 / np.sqrt(z.var(axis=0) + 1e-6))
        normal.append((z - z.mean(axis=0)) * scales[-1])
        inputs.append(relu(normal[-1]))
    features = inputs.pop().mean(axis=(1, 2))
    inputs.append(features)
    return Signals(inputs, normal, scales, features @ kernels[7] * factor(kernels[7]) + biases[7])


def through_norm(error, signals, number):
    """The error before batch normalisation, from that after it."""
    y, scale = signals.normal[number], signals.scale[number]
    return scale * (error - error.mean(axis=0) - y * (error * y).mean(axis=0))


def chain(kernels, signals, e):
    """The error at the output of every nonlinearity, sent back through `kernels` by the gates of `signals`."""
    places = signals.normal[6].shape[1] * signals.normal[6].shape[2]
    pooled = e @ kernels[7].T * factor(kernels[7]) / places
    errors = [np.broadcast_to(pooled[:, None, None], signals.normal[6].shape)]
    for number in range(6, 0, -1):
        dz = through_norm(errors[0] * (signals.normal[number] > 0), signals, number)
        shape = signals.inputs[number].shape
        errors.insert(0, conv(number).reconstruct(dz, kernels[number], shape) * factor(kernels[number]))
    return errors


@dataclass(frozen=True)
class Recipe:
    """Which parts of an update are live, which are of the network at initialisation."""

    error: str
    presynaptic: str = "live"
    norm: str = "live"
    gate: str = "live"
    last_gate: str = "live"


RECIPES = {
    "normal": Recipe("live"),
    "align_zero": Recipe("frozen", "frozen", "frozen", "frozen", "frozen"),
    "align_ada": Recipe("frozen", gate="frozen"),
    "align_prop": Recipe("initial kernels"),
    "fa": Recipe("random kernels"),
    "dfa": Recipe("maps"),
    "dfa shared": Recipe("maps"),
    "drtp": Recipe("projected targets"),
    "drtp shared": Recipe("projected targets"),
    "last_layer": Recipe("none"),
}


def numpy_training(recipe, kernels, biases, backward, steps=STEPS):
    """Returns kernels and biases after some steps."""
    initial = kernels, biases
    for x, labels in zip(*(part[:steps] for part in batches()), strict=True):
        nets = {"live": forward(kernels, biases, x), "frozen": forward(*initial, x)}
        e = 2 * (nets["live"].outputs - (np.eye(CLASSES)[labels] - 0.1)) / (BATCH * CLASSES)
        if recipe.error in ("maps", "projected targets", "projected targets, summed"):
            sent = e if recipe.error == "maps" else -np.eye(CLASSES)[labels] / BATCH
            sent = sent * BATCH if recipe.error.endswith("summed") else sent
            errors = [
                np.einsum("nk,...ck->n...c", sent, weight) + np.zeros_like(nets["live"].normal[number])
                if weight.ndim == 4
                else (sent @ weight.T)[:, None, None] + np.zeros_like(nets["live"].normal[number])
                for number, weight in enumerate(backward)
            ]
        elif recipe.error == "none":
            errors = [np.zeros_like(y) for y in nets["live"].normal]
        else:
            carried, net = {
                "live": (kernels, "live"),
                "frozen": (initial[0], "frozen"),
                "initial kernels": (initial[0], "live"),
                "random kernels": (backward, "live"),
            }[recipe.error]
            errors = chain(carried, nets[net], e)
        before = nets[recipe.presynaptic]
        new = [], []
        for number in range(7):
            gate = nets[recipe.last_gate if number == 6 else recipe.gate].normal[number] > 0
            dz = through_norm(errors[number] * gate, nets[recipe.norm], number)
            dw = conv(number).correlate(before.inputs[number], dz, kernels[number].shape) * factor(kernels[number])
            new[0].append(kernels[number] - RATE * dw)
            new[1].append(biases[number] - RATE * dz.sum(axis=(0, 1, 2)))
        new[0].append(kernels[7] - RATE * before.inputs[7].T @ e * factor(kernels[7]))
        new[1].append(biases[7] - RATE * e.sum(axis=0))
        kernels, biases = new
    return kernels, biases


OFTEN = ("align_ada", "align_prop", "dfa shared", "drtp")


@pytest.mark.parametrize("name", exhaustive_unless(RULES, OFTEN))
def test_fifteen_steps_are_those_of_numpy(name):
    model, layers, backward = library(RULES[name])
    start = weights(layers)
    for x, labels in zip(*batches(), strict=True):
        model.train_on_batch(x, labels)
    expected = numpy_training(RECIPES[name], *start, backward)
    for kind in (0, 1):
        for number, (actual, right) in enumerate(zip(weights(layers)[kind], expected[kind], strict=True)):
            change = right - start[kind][number]
            if name == "last_layer" and number < 7:
                assert np.array_equal(actual, start[kind][number])
            elif kind == 1 and number < 7:  # Batch normalisation takes every constant away: there is nothing to learn.
                np.testing.assert_allclose(actual, 0.0, atol=1e-12)
            else:
                np.testing.assert_allclose(actual - start[kind][number], change, rtol=0, atol=1e-6 * abs(change).max())


@pytest.mark.parametrize("name", exhaustive_unless(RULES, ("dfa",)))
def test_five_steps_of_single_precision_are_those_of_numpy(name):
    """With the fused batch normalisation, which exists only for float32. Later, rounding makes gates differ."""
    keras.config.set_floatx("float32")  # The fixture sets both back.
    keras.config.set_dtype_policy("float32")
    model, layers, backward = library(RULES[name])
    start, backward = [[w.astype(float) for w in each] for each in weights(layers)], [w.astype(float) for w in backward]
    for x, labels in zip(*(part[:5] for part in batches()), strict=True):
        model.train_on_batch(x.astype(np.float32), labels)
    expected, _ = numpy_training(RECIPES[name], *start, backward, steps=5)
    for number, (actual, right) in enumerate(zip(weights(layers)[0], expected, strict=True)):
        assert actual.dtype == np.float32
        change = right - start[0][number]
        np.testing.assert_allclose(actual - start[0][number], change, rtol=0, atol=1e-4 * max(abs(change).max(), 1e-9))


NEAR_MISSES = {
    "ada, its own gates live": ("align_ada", {"gate": "live"}),
    "ada, the last gate frozen": ("align_ada", {"last_gate": "frozen"}),
    "ada, its own batch normalisation frozen": ("align_ada", {"norm": "frozen"}),
    "ada, presynaptic activity frozen": ("align_ada", {"presynaptic": "frozen"}),
    "ada, the gates beyond live": ("align_ada", {"error": "initial kernels"}),
    "zero, presynaptic activity live": ("align_zero", {"presynaptic": "live"}),
    "zero, batch normalisation live": ("align_zero", {"norm": "live"}),
    "zero, gates live": ("align_zero", {"gate": "live", "last_gate": "live"}),
    "prop, gates frozen": ("align_prop", {"error": "frozen"}),
    "prop, kernels live": ("align_prop", {"error": "live"}),
    "dfa, gates frozen": ("dfa", {"gate": "frozen", "last_gate": "frozen"}),
    "dfa, batch normalisation frozen": ("dfa", {"norm": "frozen"}),
    "drtp, the output error": ("drtp", {"error": "maps"}),
    "drtp, a sum over the batch": ("drtp", {"error": "projected targets, summed"}),
}


@functools.cache
def begun(name):
    """Returns kernels, biases and backward kernels or maps of a rule at the start."""
    _, layers, backward = library(RULES[name])
    return *weights(layers), backward


@functools.cache
def right_kernels(name, steps):
    """Returns the kernels of a rule after some steps of NumPy."""
    return numpy_training(RECIPES[name], *begun(name), steps)[0]


@pytest.mark.parametrize("miss", NEAR_MISSES)
def test_near_misses_are_percents_away(miss):
    """NumPy with one part live in place of frozen, or frozen in place of live, after the second step and at the end."""
    name, change = NEAR_MISSES[miss]
    *start, backward = begun(name)
    for steps in (2, STEPS):
        right = right_kernels(name, steps)
        wrong = numpy_training(replace(RECIPES[name], **change), *start, backward, steps)[0]
        apart = [distance(a - s, b - s) for a, b, s in zip(right, wrong, start[0], strict=True)]
        assert max(apart[:7]) > 0.02, steps


@functools.cache
def first_steps(name):
    """Returns how the first step changes every kernel, and the first kernel after the second step."""
    model, layers, _ = library(RULES[name])
    start = weights(layers)[0]
    x, labels = batches()
    model.train_on_batch(x[0], labels[0])
    changes = [after - before for after, before in zip(weights(layers)[0], start, strict=True)]
    model.train_on_batch(x[1], labels[1])
    return [*changes, weights(layers)[0][0]]


@pytest.mark.parametrize(
    "rule", exhaustive_unless(["align_zero", "align_ada", "align_prop"], ("align_zero", "align_prop"))
)
def test_the_first_step_is_that_of_backpropagation(rule):
    changes = [first_steps("normal"), first_steps(rule)]
    for actual, expected in zip(changes[1][:-1], changes[0][:-1], strict=True):
        assert_close(actual, expected)
    assert distance(changes[1][-1], changes[0][-1]) > 1e-4  # From the second step on they part.
