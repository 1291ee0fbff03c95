"""The rules of Boopathy and Fiete 2022 through time (Appendix E) against a float64 NumPy loop."""

import keras
import numpy as np
import pytest
from helpers import distance
from recurrent_reference import update

from neural_alignment import models
from neural_alignment.alignments import AlignAda, AlignZero, LastLayer
from neural_alignment.training import AlignedModel
from optimizers import MultiOptimizer

pytestmark = pytest.mark.usefixtures("float64")

UPDATES, SLOTS, TIME, UNITS, RATE = 15, 4, 7, 12, 0.02
FAST = 0.1  # Apart after two updates; too fast for many.
RULES = {"normal": None, "align_zero": AlignZero(), "align_ada": AlignAda(), "readout_only": LastLayer()}
NAMES = ("input_kernel", "kernel", "bias", "initial_state", "readout", "offset")


def batches():
    rng = np.random.default_rng(4)
    return rng.binomial(1, 0.5, (UPDATES, SLOTS, TIME, 1)).astype(float), rng.random((UPDATES, SLOTS, TIME, 1))


class SumOverTime(keras.losses.Loss):
    """The mean over the batch of the squared error summed over time."""

    def call(self, y_true, y_pred):
        return keras.ops.sum(keras.ops.square(y_pred - y_true), axis=(1, 2))


def library(rule, rate=RATE):
    keras.utils.set_random_seed(9)
    model = models.rnn(UNITS, SLOTS, (TIME, 1), alignment=rule)
    model = AlignedModel(model.input, model.output)
    model.compile(MultiOptimizer([keras.optimizers.SGD(rate)]), loss=SumOverTime(), jit_compile=False)
    return model


def weights(model):
    recurrent, readout = model.get_layer("recurrent"), model.get_layer("dense")
    variables = recurrent.input_kernel, recurrent.kernel, recurrent.bias, recurrent.initial_state
    return {name: v.numpy() for name, v in zip(NAMES, (*variables, readout.kernel, readout.bias), strict=True)}


def numpy_training(rule, start, miss=None, rate=RATE, updates=UPDATES):
    p = dict(start)
    for x, y in zip(*(part[:updates] for part in batches()), strict=True):
        gradient = update(rule, p, start, x, y, miss)
        p = {name: value - rate * gradient[name] for name, value in p.items()}
    return p


@pytest.mark.parametrize("name", RULES)
def test_fifteen_updates_are_those_of_numpy(name):
    model = library(RULES[name])
    start = weights(model)
    for x, y in zip(*batches(), strict=True):
        model.train_on_batch(x, y)
    expected = numpy_training(name, start)
    for part, value in weights(model).items():
        change = expected[part] - start[part]
        np.testing.assert_allclose(value - start[part], change, rtol=0, atol=1e-9 * abs(change).max(), err_msg=part)
    assert not np.allclose(expected["initial_state"], 0)


@pytest.mark.parametrize(
    ("name", "miss", "part"),
    [
        ("align_ada", "same step", "kernel"),
        ("align_ada", "own gate frozen", "kernel"),
        ("align_ada", "presynaptic frozen", "kernel"),
        ("align_zero", "presynaptic live", "kernel"),
        ("align_zero", "initial state frozen", "initial_state"),
        ("align_ada", "initial state frozen", "initial_state"),
    ],
)
def test_near_misses_are_percents_away_from_the_second_update_on(name, miss, part):
    model = library(RULES[name], FAST)
    start = weights(model)
    for x, y in zip(*(each[:2] for each in batches()), strict=True):
        model.train_on_batch(x, y)
    right, wrong = (numpy_training(name, start, each, FAST, 2)[part] - start[part] for each in (None, miss))
    assert distance(weights(model)[part] - start[part], right) < 1e-9
    assert distance(right, wrong) > 0.03


def test_align_zero_begins_as_backpropagation_and_align_ada_without_the_same_step():
    changes = {}
    for name in ("normal", "align_zero", "align_ada"):
        model = library(RULES[name])
        start = weights(model)
        model.train_on_batch(*(part[0] for part in batches()))
        changes[name] = {part: value - start[part] for part, value in weights(model).items()}
    for part in NAMES:
        np.testing.assert_allclose(changes["align_zero"][part], changes["normal"][part], rtol=1e-9, atol=1e-15)
        alike = distance(changes["align_ada"][part], changes["normal"][part]) < 1e-9
        assert alike == (part in ("initial_state", "readout", "offset"))
