"""Learning-rate schedules and the alternation of losses, compared with explicit formulas in NumPy."""

import math
from decimal import Decimal
from fractions import Fraction

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import assert_close

from optimizers import ManualDrop, RateScheduler, WarmupAndDrops, WarmupAndSchedule

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
    """In float32 such steps have a resolution of 1/32 at best, and epochs are not exact."""
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


# Boundaries at fractional epochs, against exact fractions of the decimal numbers.


def fractional_epochs(count, seed=0):
    """Yields steps per epoch, alternation, and four decimal numbers of epochs."""
    rng = np.random.default_rng(seed)
    yield 50, None, *map(Decimal, ("1.1", "0.3", "2.2", "0.7"))
    for _ in range(count):
        digits = int(rng.integers(1, 4))
        epochs = (Decimal(int(rng.integers(1, 30 * 10**digits))).scaleb(-digits) for _ in range(4))
        yield int(rng.choice([7, 10, 50, 100, 468, 5004, 6255])), rng.choice([None, 1, 2]), *epochs


def first_step(epochs, spe):
    """The first step that is not before an exact number of epochs."""
    return math.ceil(sum(Fraction(each) * turns for each, turns in epochs) * spe)


def test_the_delay_ends_at_the_first_step_that_is_not_before_its_end():
    late = 0
    for spe, _, delay, *_ in fractional_epochs(300):
        end = first_step([(delay, 1)], spe)
        assert pattern_at(RateScheduler(spe, float(delay)), [end - 1, end]) == ["R", "JR"], (spe, delay)
        late += math.ceil(float(delay) * spe) != end
    assert late  # Without rounding.


def test_drops_fall_on_the_first_step_that_is_not_before_their_epoch():
    for spe, alternation, delay, warmup, drop, _ in fractional_epochs(150, 1):
        turns = (alternation or 0) + 1
        schedule = WarmupAndDrops(
            1.0, spe, 0, [float(warmup + drop)], delay_epochs=float(delay), alternation=alternation
        )
        at = first_step([(delay, 1), (warmup + drop, turns)], spe)
        assert_close(rates(schedule, [at - 1, at]), [1.0, 0.1], "float32")


@pytest.mark.parametrize("times", [1, 4, 1000])
def test_a_staircase_falls_on_the_first_step_that_is_not_before_its_epoch(times):
    for spe, alternation, delay, warmup, every, _ in fractional_epochs(100, 2):
        turns = (alternation or 0) + 1
        keras_schedule = KERAS.ExponentialDecay(1.0, float(every) * spe, 0.99, staircase=True)
        schedule = WarmupAndSchedule(keras_schedule, spe, float(warmup), float(delay), alternation)
        at = first_step([(delay, 1), (warmup, turns), (times * every, turns)], spe)
        np.testing.assert_allclose(rates(schedule, [at - 1, at]), [0.99 ** (times - 1), 0.99**times], rtol=1e-5)


def test_restarts_and_pieces_of_keras_fall_on_their_step():
    restarts = WarmupAndSchedule(KERAS.CosineDecayRestarts(1.0, 1.1 * 50, t_mul=1.0), 50)
    assert (np.abs(rates(restarts, [54, 55, 109, 110, 164, 165]) - [0, 1] * 3) < 1e-2).all()
    pieces = WarmupAndSchedule(KERAS.PiecewiseConstantDecay([55], [1.0, 0.1]), 50, 0.3, 0.1)
    assert_close(rates(pieces, [5 + 15 + 55, 5 + 15 + 56]), [1.0, 0.1], "float32")  # Keras: up to the boundary.


# Schedules of Keras by the clock of J.

WARMUP, END, FLOOR, RATE = 3, 20, 0.05, 0.4
KERAS = keras.optimizers.schedules
SPAN = (END - WARMUP) * SPE
AFTER_WARMUP = {
    "constant": (RATE, lambda e: 1.0),
    "cosine": (
        KERAS.CosineDecay(RATE, SPAN, alpha=FLOOR),
        lambda e: FLOOR + (1 - FLOOR) * (1 + np.cos(np.pi * min(e / (END - WARMUP), 1.0))) / 2,
    ),
    "polynomial": (
        KERAS.PolynomialDecay(RATE, SPAN, FLOOR * RATE, 2.0),
        lambda e: FLOOR + (1 - FLOOR) * (1 - min(e / (END - WARMUP), 1.0)) ** 2,
    ),
    "exponential": (KERAS.ExponentialDecay(RATE, 2.5 * SPE, 0.7), lambda e: 0.7 ** (e / 2.5)),
    "staircase": (KERAS.ExponentialDecay(RATE, 2 * SPE, 0.7, True), lambda e: 0.7 ** np.floor(e / 2)),
}
CLOCKS = {"plain": {}, "delay": {"delay_epochs": 1.5}, "both": {"delay_epochs": 2, "alternation": 2}}


@pytest.mark.parametrize("clock", CLOCKS)
@pytest.mark.parametrize("kind", AFTER_WARMUP)
def test_a_schedule_of_keras_goes_by_the_clock_of_j_after_the_warm_up(kind, clock):
    schedule, factor = AFTER_WARMUP[kind]
    clock = CLOCKS[clock]
    begin, epoch = clock.get("delay_epochs", 0) * SPE, SPE * (clock.get("alternation", 0) + 1)
    marks = [begin + round(e * epoch) for e in (0, WARMUP, WARMUP + 2, WARMUP + 4, END, 3 * END)]
    steps = sorted({0, 1, *(int(m + d) for m in marks for d in (-1, 0, 1) if m + d >= 0), *range(7, 200_000, 17_001)})

    def formula(step):
        e = max(step - begin, 0) / epoch
        return RATE * min(e / WARMUP, 1.0) * factor(max(e - WARMUP, 0.0))

    ours = WarmupAndSchedule(schedule, SPE, WARMUP, **clock)
    assert_close(rates(ours, steps), [formula(step) for step in steps], "float32")
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(ours))
    np.testing.assert_array_equal(rates(again, steps), rates(ours, steps))


def test_a_staircase_of_a_long_run_falls_on_the_step():
    """float32 cannot tell the last of these steps from the ones beside it."""
    schedule = WarmupAndSchedule(KERAS.ExponentialDecay(1.0, 3 * SPE, 0.99, True), SPE, alternation=2)
    for times in (1, 7, 2000):
        at = times * 3 * SPE * 3
        found = rates(schedule, [at - 1, at, at + 1])
        np.testing.assert_allclose(found, [0.99 ** (times - 1), 0.99**times, 0.99**times], rtol=1e-5)
    assert np.float32(at - 1) == np.float32(at)


def test_with_a_delay_r_is_at_its_full_rate_and_falls_with_j():
    r = WarmupAndSchedule(KERAS.CosineDecay(0.2, 10 * SPE), SPE, 0, delay_epochs=1)
    assert_close(rates(r, [0, SPE, 6 * SPE, 11 * SPE]), [0.2, 0.2, 0.1, 0.0], "float32")


@pytest.mark.parametrize("drop", [0, 1, 2, 3])
def test_a_manual_drop(drop):
    at = 3 * SPE
    schedule = ManualDrop(0.5, SPE, drop, at if drop else None, warmup_epochs=2, delay_epochs=1, alternation=1)
    steps = [0, SPE, 2 * SPE, at - 1, at, at + 1, 7 * SPE]
    if drop:
        factors = [0.1 ** (drop - 1) if step <= at else 0.1**drop for step in steps]
    else:
        factors = [min(max(step - SPE, 0) / (2 * 2 * SPE), 1.0) for step in steps]
    assert_close(rates(schedule, steps), 0.5 * np.array(factors), "float32")
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(schedule))
    np.testing.assert_array_equal(rates(again, steps), rates(schedule, steps))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ManualDrop(0.1, 10, -1), "`drop`.*-1.*Example"),
        (lambda: ManualDrop(0.1, 10, 1), "`drop_step`.*None with drop=1.*Example"),
        (lambda: ManualDrop(0.1, 10, 0, 5), "`drop_step`.*5 with drop=0.*Example"),
        (lambda: WarmupAndSchedule("cosine", 10), "`schedule`.*'cosine'.*Example"),
        (lambda: WarmupAndSchedule(0.1, 10, -1), "`warmup_epochs`.*-1.*Example"),
    ],
)
def test_invalid_schedules_are_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# The alternation of J and R.


def pattern(scheduler, steps):
    """Returns the losses that run at each of the first steps: J, R or JR."""
    return pattern_at(scheduler, range(steps))


def pattern_at(scheduler, steps):
    """Returns the losses that run at some steps."""
    out = []
    for step in steps:
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


# Factors on the losses.


def factors(scheduler, steps):
    """Returns the rates of J and R at several steps, `(steps, 2)`."""
    return np.array([[float(rate) for rate in scheduler(tf.constant(step, tf.int64))] for step in steps])


def test_loss_rates_are_factors_on_top_of_delay_and_alternation():
    drops = WarmupAndDrops(2.0, SPE, 0, (30, 60, 80))
    scheduler = RateScheduler(SPE, 1, 2, (0.25, drops))
    steps = [0, 1, SPE, SPE + 1, 30 * SPE - 3, 30 * SPE, 60 * SPE, 80 * SPE, 80 * SPE + 1]
    assert all(step % 3 == 0 for step in (SPE, 30 * SPE - 3))

    def formula(step):
        delayed, turn_of_r = step < SPE, step % 3 == 0
        # By the global step: an alternation does not stretch these epochs and a delay does not shift them.
        drop = 2.0 * 0.1 ** sum(step >= e * SPE for e in (30, 60, 80))
        return 0.25 * (not delayed and not turn_of_r), drop * (delayed or turn_of_r)

    assert_close(factors(scheduler, steps), [formula(step) for step in steps], "float32")
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(scheduler))
    np.testing.assert_array_equal(factors(again, steps), factors(scheduler, steps))
    assert again.modes == scheduler.modes


VANISHING = WarmupAndSchedule(keras.optimizers.schedules.PolynomialDecay(1.0, 20, 0.0), 4)
RISING = WarmupAndDrops(1.0, 4, 2, ())
FLOORED = WarmupAndSchedule(keras.optimizers.schedules.CosineDecay(1.0, 20, alpha=0.1), 4)


@pytest.mark.parametrize(
    "rates",
    [(0.0, 1.0), (2.0, 0.0), (VANISHING, 1.0), (1.0, RISING), (RISING, RISING), (FLOORED, 1.0), (RISING, VANISHING)],
)
@pytest.mark.parametrize(("delay", "alternation"), [(0, None), (1, None), (0, 1), (0.5, 2)])
def test_the_modes_under_loss_rates_are_those_that_occur(delay, alternation, rates):
    scheduler = RateScheduler(4, delay, alternation, rates)
    assert not scheduler.constant
    seen = {tuple(rate != 0 for rate in pair) for pair in factors(scheduler, range(60))}
    assert seen <= set(scheduler.modes)
    if not any(rate is RISING for rate in rates) or not (delay or alternation):  # There it is idle at the start only.
        assert len(scheduler.modes) <= len(seen) + 1


def test_w_and_b_stay_together_where_the_loss_rates_are_equal():
    assert RateScheduler(4, loss_rates=(0.5, 0.5)).together
    assert RateScheduler(4, loss_rates=(WarmupAndDrops(1.0, 4), WarmupAndDrops(1.0, 4))).together
    for options in ({"loss_rates": (0.5, 1.0)}, {"alternation": 1}, {"delay_epochs": 1}):
        assert not RateScheduler(4, **options).together
    assert RateScheduler(4).together


@pytest.mark.parametrize(
    "rates", [(0.0, 0.0), (-1.0, 1.0), (1.0,), 1.0, ("a", 1.0), (float("inf"), 1.0), (float("nan"), 1.0), (True, 1.0)]
)
def test_loss_rates_out_of_range_are_errors(rates):
    with pytest.raises(ValueError, match=r"`loss_rates` must .*Received .*Example"):
        RateScheduler(4, loss_rates=rates)


@pytest.mark.parametrize(("delay", "alternation"), [(0, None), (1, None), (0, 1), (0.5, 2)])
def test_the_modes_of_a_rate_scheduler_are_those_that_occur(delay, alternation):
    scheduler = RateScheduler(4, delay, alternation)
    seen = {tuple(bool(rate) for rate in scheduler(step)) for step in range(40)}
    assert seen == set(scheduler.modes)


@pytest.mark.parametrize(
    "schedule",
    [
        WarmupAndSchedule(keras.optimizers.schedules.PolynomialDecay(0.0, 10, 1.0), 5),
        WarmupAndDrops(1e-40, 5, 0, (1,), 1e10),
        WarmupAndDrops(1.0, 5, 0, (1,), 1e-40),
        ManualDrop(1e-30, 5, drop=1, drop_step=2, drop_factor=1e-20),
        ManualDrop(0.0, 5),
        WarmupAndSchedule(1e-40, 5),
    ],
    ids=["polynomial from 0", "drops from 0", "drops to 0", "manual drop to 0", "manual 0", "constant 0"],
)
def test_a_loss_rests_where_its_factor_vanishes_in_float32(schedule):
    """At the start or at the end of its schedule."""
    scheduler = RateScheduler(5, loss_rates=(schedule, 1.0))
    seen = {tuple(bool(rate) for rate in scheduler(step)) for step in (0, 4, 5, 30)}
    assert seen <= set(scheduler.modes)
    assert (False, True) in scheduler.modes
