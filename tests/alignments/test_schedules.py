"""Weights that change over training, against closed forms in NumPy."""

import numpy as np
import pytest
import tensorflow as tf
from helpers import DENSE, assert_close, assert_differs, reference_regulariser

from neural_alignment.alignments import Constant, Exponential, LayerView, Linear, Symmetric, from_config
from neural_alignment.alignments.schedules import evaluate
from neural_alignment.operations import DenseMap

EPOCHS = np.array([0.0, 0.5, 1.0, 1.999, 2.0, 2.5, 3.25, 4.0, 5.5, 7.0, 7.999, 8.0, 8.001, 20.0])


def triangle(elapsed, cycle):
    """Up from 0 to cycle / 2 and down again."""
    return cycle / 2 - np.abs(elapsed % cycle - cycle / 2)


CASES = {
    "constant": (Constant(kind="constant", value=0.3), lambda e: 0.3),
    "constant, window": (Constant(kind="constant", value=0.3, start=2, stop=8), lambda e: 0.3),
    "linear": (Linear(kind="linear", value=0.3, rate=0.2), lambda e: 0.3 + 0.2 * e),
    "linear, window": (
        Linear(kind="linear", value=0.9, rate=-0.1, start=2, stop=8), lambda e: 0.9 - 0.1 * (e - 2)
    ),
    "linear, cycle": (
        Linear(kind="linear", value=0.3, rate=0.2, start=1, cycle=4), lambda e: 0.3 + 0.2 * triangle(e - 1, 4)
    ),
    "exponential": (Exponential(kind="exponential", value=2.0, rate=-0.7), lambda e: 2 * np.exp(-0.7 * e)),
    "exponential, window": (
        Exponential(kind="exponential", value=2.0, rate=0.1, start=2, stop=8), lambda e: 2 * np.exp(0.1 * (e - 2))
    ),
    "exponential, cycle": (
        Exponential(kind="exponential", value=2.0, rate=0.4, stop=8, cycle=3),
        lambda e: 2 * np.exp(0.4 * triangle(e, 3)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_schedule_is_its_closed_form_inside_its_window_and_zero_outside(name):
    schedule, closed_form = CASES[name]
    ours = np.array([schedule(tf.constant(epoch, tf.float32)).numpy() for epoch in EPOCHS])
    stop = np.inf if schedule.stop is None else schedule.stop
    inside = (schedule.start <= EPOCHS) & (stop >= EPOCHS)
    assert_close(ours, np.where(inside, [closed_form(epoch) for epoch in EPOCHS], 0.0))
    assert inside.sum() >= 8


def test_the_cycle_is_a_triangle_and_not_a_saw():
    schedule, _ = CASES["linear, cycle"]
    values = [float(schedule(tf.constant(1.0 + t))) for t in (0, 1, 2, 3, 4, 5)]
    assert_close(values, [0.3, 0.5, 0.7, 0.5, 0.3, 0.5], "float32")
    assert_differs(values, [0.3, 0.5, 0.7, 0.9, 0.3, 0.5])


def test_epochs_are_counted_in_global_steps():
    schedule = Linear(kind="linear", value=1.0, rate=0.5)
    values = [float(evaluate(schedule, tf.constant(step, tf.int64), 5004)) for step in (0, 2502, 5004, 50040)]
    assert_close(values, [1.0, 1.25, 1.5, 6.0], "float32")


def test_a_weight_has_the_precision_of_its_dtype():
    assert float(evaluate(Constant(kind="constant", value=0.1), tf.constant(3), 10, tf.float64)) == 0.1
    schedule = Linear(kind="linear", value=0.1, rate=0.7, start=0.1, cycle=0.3)
    for step in (7, 700, 70_001):
        found = float(evaluate(schedule, tf.constant(step), 7, tf.float64))
        assert found == pytest.approx(0.1 + 0.7 * triangle(step / 7 - 0.1, 0.3), abs=1e-10)


def test_a_number_is_the_weight_at_every_step():
    assert evaluate(0.25, tf.constant(10**6), 7) == 0.25


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_a_scheduled_weight_acts_in_r_at_the_step_of_the_view(rng, dtype):
    arrays = DENSE.arrays(rng)
    config = {
        "rule": "symmetric", "decay": 1.0, "steps_per_epoch": 4,
        "self_": {"kind": "linear", "value": 0.5, "rate": 1.0, "start": 1, "stop": 3},
    }  # fmt: skip
    rule = from_config(config)
    for step, weight in [(3, 0.0), (4, 0.5), (10, 2.0), (12, 2.5), (13, 0.0)]:
        tensors = (tf.cast(array, dtype) for array in (arrays["x"], arrays["w"], arrays["b"].T))
        value = rule(LayerView(DenseMap(), *tensors, step=tf.constant(step, tf.int64)))
        plain = {"rule": "symmetric", "decay": 1.0, "self_": weight}
        expected = reference_regulariser(plain, DENSE.linear, arrays["x"], arrays["w"], arrays["b"])
        np.testing.assert_allclose(float(value), expected, rtol={"bfloat16": 1e-2}.get(dtype, 1e-5))


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"kind": "constant", "value": 1.0, "start": 5, "stop": 5}, "`self_.stop` must be after `start`"),
        ({"kind": "constant", "value": -1.0}, "greater than or equal to 0"),
        ({"kind": "linear", "value": 1.0}, "rate"),
        ({"kind": "linear", "value": 1.0, "rate": 1.0, "cycle": 0.0}, "greater than 0"),
        ({"kind": "constant", "value": 1.0, "rate": 1.0}, "rate"),
        ({"kind": "cosine", "value": 1.0}, "cosine"),
    ],
)
def test_an_impossible_schedule_is_an_error(entries, message):
    with pytest.raises(ValueError, match=message):
        Symmetric(self_=entries, decay=1.0)
