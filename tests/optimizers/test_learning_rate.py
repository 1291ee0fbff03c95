"""Warm-up and drops, and who runs when, against SPEC section 1 written out in NumPy."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import assert_close

from optimizers import RateScheduler, WarmupAndDrops

SPE = 5004


def rates(schedule, steps):
    """Returns the schedule at several steps."""
    return np.array([float(schedule(tf.constant(step, tf.int64))) for step in steps])


def test_the_warm_up_is_linear_from_zero():
    schedule = WarmupAndDrops(0.1, steps_per_epoch=10, warmup_epochs=5)
    assert_close(rates(schedule, range(60)), [0.1 * min(s / 50, 1.0) for s in range(60)], "float32")


def test_the_rate_drops_by_ten_at_30_60_and_80_epochs_exactly():
    schedule = WarmupAndDrops(0.125, SPE, warmup_epochs=6)
    for epoch, before, after in [(30, 0.125, 0.0125), (60, 0.0125, 0.00125), (80, 0.00125, 0.000125)]:
        drop = epoch * SPE
        assert_close(rates(schedule, [drop - 1, drop, drop + 1]), [before, after, after], "float32")


@pytest.mark.parametrize("alternation", [1, 2, 3])
def test_alternation_scales_warm_up_and_drops_but_not_the_delay(alternation):
    delay = 2
    schedule = WarmupAndDrops(1.0, SPE, 6, (30, 60, 80), delay_epochs=delay, alternation=alternation)
    start, epoch = delay * SPE, (alternation + 1) * SPE
    assert_close(rates(schedule, [0, start - 1, start]), [0.0, 0.0, 0.0])
    assert_close(rates(schedule, [start + 3 * epoch]), [0.5], "float32")
    assert_close(
        rates(schedule, [start + 6 * epoch, start + 6 * epoch - SPE]), [1, 1 - 1 / (6 * (alternation + 1))], "float32"
    )
    for index, drop in enumerate((30, 60, 80)):
        at = start + drop * epoch
        assert_close(rates(schedule, [at - 1, at]), [0.1**index, 0.1 ** (index + 1)], "float32")


def test_drops_beyond_450_000_steps_fall_on_the_step():
    """float32 counts such steps in units of 1/32 at best, and epochs not exactly."""
    schedule = WarmupAndDrops(1.0, SPE, 6, (45, 90), alternation=1)
    for epoch, before, after in [(45, 1.0, 0.1), (90, 0.1, 0.01)]:
        at = epoch * SPE * 2
        assert at > 450_000
        assert_close(rates(schedule, [at - 1, at]), [before, after], "float32")


def test_with_a_delay_r_starts_at_the_full_rate_and_drops_with_j():
    j = WarmupAndDrops(0.125, SPE, 6, delay_epochs=1, alternation=1)
    r = WarmupAndDrops(0.01, SPE, 0, delay_epochs=1, alternation=1)
    steps = [0, SPE - 1, SPE, SPE + 6 * 2 * SPE, SPE + 30 * 2 * SPE - 1, SPE + 30 * 2 * SPE]
    assert_close(rates(r, steps), [0.01, 0.01, 0.01, 0.01, 0.01, 0.001], "float32")
    assert_close(rates(j, steps), [0.0, 0.0, 0.0, 0.125, 0.125, 0.0125], "float32")


def test_the_step_may_be_any_integer_or_a_variable():
    schedule = WarmupAndDrops(0.1, 10)
    variable = keras.Variable(25, dtype="int64")
    assert float(schedule(25)) == float(schedule(variable.value)) == float(schedule(tf.constant(25, tf.int32)))
    assert schedule(25).dtype == tf.float32


def test_its_configuration_rebuilds_it():
    schedule = WarmupAndDrops(0.3, 7, 2, (4, 9), 0.5, 1.5, 3)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(schedule))
    steps = range(0, 400, 10)
    np.testing.assert_array_equal(rates(again, steps), rates(schedule, steps))
    assert len(set(rates(schedule, steps))) > 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps_per_epoch": 0}, "`steps_per_epoch`.*0.*Example"),
        ({"warmup_epochs": -1}, "`warmup_epochs`.*-1.*Example"),
        ({"delay_epochs": -2}, "`delay_epochs`.*-2.*Example"),
        ({"drop_epochs": (60, 30)}, r"`drop_epochs`.*\(60, 30\).*Example"),
        ({"drop_epochs": (3, 30)}, r"`drop_epochs`.*\(3, 30\).*warmup_epochs=5"),
        ({"alternation": 0}, "`alternation`.*0.*Example"),
    ],
)
def test_arguments_out_of_range_are_errors(options, message):
    with pytest.raises(ValueError, match=message):
        WarmupAndDrops(**{"learning_rate": 0.1, "steps_per_epoch": 10, **options})


def pattern(scheduler, steps):
    """Returns who runs at each step: J, R or JR."""
    out = []
    for step in range(steps):
        j, r = scheduler(tf.constant(step, tf.int64))
        assert {float(j), float(r)} <= {0.0, 1.0}
        out.append("J" * int(j) + "R" * int(r))
    return out


def test_both_losses_run_at_every_step_by_default():
    assert RateScheduler(10).constant
    assert pattern(RateScheduler(10), 25) == ["JR"] * 25


@pytest.mark.parametrize("alternation", [1, 2, 4])
def test_alternation_gives_r_every_step_that_is_a_multiple_of_k_plus_1_and_j_the_others(alternation):
    expected = ["R" if step % (alternation + 1) == 0 else "J" for step in range(20)]
    assert pattern(RateScheduler(10, alternation=alternation), 20) == expected
    assert not RateScheduler(10, alternation=alternation).constant


def test_during_the_delay_r_runs_at_every_step_and_j_rests():
    assert pattern(RateScheduler(3, delay_epochs=2), 9) == ["R"] * 6 + ["JR"] * 3


def test_after_the_delay_the_global_step_says_whose_turn_it_is():
    expected = ["R"] * 5 + ["J" if step % 2 else "R" for step in range(5, 9)]
    assert pattern(RateScheduler(5, delay_epochs=1, alternation=1), 9) == expected


def test_part_of_an_epoch_may_be_the_delay():
    assert pattern(RateScheduler(10, delay_epochs=0.3), 5) == ["R", "R", "R", "JR", "JR"]


def test_the_scheduler_s_configuration_rebuilds_it():
    scheduler = RateScheduler(3, 1, 2)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(scheduler))
    assert pattern(again, 12) == pattern(scheduler, 12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps_per_epoch": 0}, "`steps_per_epoch`.*0.*Example"),
        ({"delay_epochs": -1}, "`delay_epochs`.*-1.*Example"),
        ({"alternation": 0}, "`alternation`.*0.*Example"),
    ],
)
def test_a_scheduler_out_of_range_is_an_error(options, message):
    with pytest.raises(ValueError, match=message):
        RateScheduler(**{"steps_per_epoch": 10, **options})


@pytest.mark.parametrize(("delay", "alternation"), [(0, None), (1, None), (0, 1), (0.5, 2)])
def test_the_modes_of_a_rate_scheduler_are_those_that_occur(delay, alternation):
    scheduler = RateScheduler(4, delay, alternation)
    seen = {tuple(bool(rate) for rate in scheduler(step)) for step in range(40)}
    assert seen == set(scheduler.modes)
