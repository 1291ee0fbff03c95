"""SWATS, compared with a float64 loop: before, at and after the switch of a variable to the second phase."""

import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import assert_close, assert_differs
from moments_reference import ReferenceSWATS, trajectory

from optimizers import SWATS, Momentum, MultiOptimizer, Noisy, RateScheduler, WarmupAndDrops
from optimizers.moments import averaged_steps

SHAPE, STEPS = (3, 2), 24
OPTIONS = {"beta_1": 0.8, "beta_2": 0.9, "epsilon": 2e-3}
RATE = 0.05
RATES = weakref.WeakKeyDictionary()
"""The rates of gradient descent at the end of `run`, by optimizer."""
RECTIFIED = pytest.mark.parametrize("rectified", [False, True])


def starts():
    return np.random.default_rng(0).normal(size=(2, *SHAPE))


def recording(seed, steps=STEPS):
    """Returns slowly decreasing gradients of one kernel, so that gamma can converge."""
    rng = np.random.default_rng(seed)
    return (1.0 + 0.3 * rng.normal(size=(steps, *SHAPE))) * np.linspace(1.2, 0.8, steps)[:, None, None]


def recorded(steps=STEPS, rectified=False, idle=lambda g, step: g, window=(4, 18)):
    """Returns the first recording with which a reference changes its phase within a window of steps.

    Args:
        steps: how many.
        rectified: of the reference.
        idle: what becomes of the gradient of a step.
        window: first step, and the one after the last.
    """
    for seed in range(2000):
        gradients = [idle(g, step) for step, g in enumerate(recording(seed, steps))]
        if change(reference(rectified=rectified), gradients) in range(*window):
            return gradients
    raise AssertionError("no recording changes the phase")


def unsettled(rectified=False, steps=STEPS):
    """Returns gradients of random signs with which a reference does not change its phase."""
    for seed in range(2000):
        gradients = np.random.default_rng(seed).normal(size=(steps, *SHAPE))
        if change(reference(rectified=rectified), gradients) is None:
            return gradients
    raise AssertionError("every recording changes the phase")


def run(optimizer, gradients, names=("kernel",), dtype="float64", compiled=False):
    """Returns the variables after every step, `(steps, variables, ...)`; gradients are `(steps, variables, ...)`."""
    own = [keras.Variable(start, dtype=dtype, name=name) for start, name in zip(starts(), names, strict=False)]
    optimizer.build(own)
    apply = tf.function(lambda g: optimizer.apply(g, own)) if compiled else lambda g: optimizer.apply(g, own)
    out = []
    for g in gradients:
        apply([tf.constant(each, dtype) for each in g])
        out.append([np.asarray(variable.value, np.float64) for variable in own])
    if isinstance(optimizer, SWATS):
        RATES[optimizer] = [optimizer.descent_rate(variable) for variable in own]
    return np.array(out)


def alone(gradients):
    """Returns gradients of one variable as `run` takes them."""
    return [[g] for g in gradients]


def reference(**options):
    return ReferenceSWATS(RATE, **{**OPTIONS, **options})


def expected(gradients, start=0, rates=None, of=None, count=lambda step: step + 1, **options):
    of = of or reference(**options)
    return trajectory(of, starts()[start], gradients, len(gradients), rates, count)


def change(of, gradients):
    """Returns the step at which a reference changes its phase, from 0."""
    for step, g in enumerate(gradients):
        if g is not None:
            of.step(g, step + 1)
        if of.descent_rate is not None:
            return step
    return None


@RECTIFIED
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "graph"])
def test_each_variable_changes_when_its_own_rate_settles(float64, compiled, rectified):
    settling, wild = recorded(rectified=rectified), unsettled(rectified)
    at = change(reference(rectified=rectified), settling)
    optimizer = SWATS(RATE, **OPTIONS, rectified=rectified)
    ours = run(optimizer, np.stack([settling, wild], axis=1), ("kernel", "other"), compiled=compiled)
    first = reference(rectified=rectified)
    assert_close(ours[:, 0], expected(settling, of=first))
    assert_close(ours[:, 1], expected(wild, 1, rectified=rectified))
    assert_close(RATES[optimizer][0], first.descent_rate)
    assert RATES[optimizer][1] is None
    # The step of the switch is still a step of Adam; the next one is gradient descent.
    never = expected(settling, of=_never(rectified))
    assert_close(ours[: at + 1, 0], never[: at + 1])
    assert_differs(ours[at + 1 :, 0] - ours[at, 0], never[at + 1 :] - never[at])
    assert_differs(ours[:, 0], expected(settling, rectified=not rectified))


def _never(rectified):
    """Returns a reference that keeps to Adam."""
    of = reference(rectified=rectified)
    step = of.step

    def adam(g, t, rate=None):
        p = step(g, t, rate)
        of.descent_rate = None
        return p

    of.step = adam
    return of


@RECTIFIED
def test_moments_stay_when_the_variable_has_changed(float64, rectified):
    gradients = recorded(rectified=rectified)
    at = change(reference(rectified=rectified), gradients)
    whole, short = (SWATS(RATE, **OPTIONS, rectified=rectified) for _ in range(2))
    run(whole, alone(gradients))
    run(short, alone(gradients[: at + 1]))
    for of in ("_momentums", "_velocities", "_rates", "_phases"):
        np.testing.assert_array_equal(getattr(whole, of)[0].numpy(), getattr(short, of)[0].numpy())
    assert whole._accumulators[0].numpy().any()
    assert not short._accumulators[0].numpy().any()


@RECTIFIED
def test_a_quadratic_is_descended_as_by_the_formula(float64, rectified):
    curvature, options = (
        np.array([[1.0, 1.1], [0.9, 1.2], [1.0, 0.8]]),
        {**OPTIONS, "epsilon": 5e-3, "rectified": rectified},
    )
    optimizer, of = SWATS(RATE, **options), ReferenceSWATS(RATE, **options)
    variable = keras.Variable(starts()[0], dtype="float64", name="kernel")
    optimizer.build([variable])
    ours = []
    for _ in range(60):
        optimizer.apply([tf.constant(curvature * variable.numpy())], [variable])
        ours.append(variable.numpy().copy())
    assert_close(np.array(ours), trajectory(of, starts()[0], lambda w: curvature * w, 60))
    assert of.descent_rate is not None


def test_no_variable_changes_at_the_first_step(float64):
    """At the first step the average equals gamma."""
    optimizer = SWATS(RATE, **{**OPTIONS, "epsilon": 10.0})
    run(optimizer, alone(recording(0)[:1]))
    assert RATES[optimizer][0] is None
    run(again := SWATS(RATE, **{**OPTIONS, "epsilon": 10.0}), alone(recording(0)[:2]))
    assert RATES[again][0] is not None


def test_lambda_stays_where_the_step_does_not_project(float64):
    """At a zero gradient, and at a learning rate of 0, neither Lambda nor the phase changes."""
    gradients = [*recording(0, 3), np.zeros(SHAPE), np.zeros(SHAPE), *recording(1, 3)]
    optimizer, of = SWATS(RATE, **{**OPTIONS, "epsilon": 1e-9}), reference(epsilon=1e-9)
    assert_close(run(optimizer, alone(gradients))[:, 0], expected(gradients, of=of))
    assert len(of.gammas) == 6
    assert_close(optimizer._rates[0].numpy(), of.average)
    still = SWATS(0.0, **{**OPTIONS, "epsilon": 10.0})
    run(still, alone(recording(0)))
    assert still._rates[0].numpy() == 0
    assert RATES[still][0] is None


def test_rho_must_be_above_its_bound(float64):
    """rho_t must be above 5; in RAdam 5 is sufficient. A beta_2 for which rho_7 is exactly 5 shows the difference."""
    low, high = 0.5, 0.99
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if float(averaged_steps(tf.constant(7.0, tf.float64), middle)) < 5 else (low, middle)
    near = [float(high + k * np.spacing(high)) for k in range(-200, 200)]
    beta_2 = next(b for b in near if float(averaged_steps(tf.constant(7.0, tf.float64), b)) == 5.0)
    options = {"beta_1": 0.8, "beta_2": beta_2, "epsilon": 1e-9, "rectified": True}
    ours = run(SWATS(RATE, **options), alone(unsettled(steps=7)))[:, 0]
    assert_close(ours, expected(unsettled(steps=7), **options, usable=lambda length: length > 5.000001))
    assert_differs(ours[-1], expected(unsettled(steps=7), **options, usable=lambda length: length > 4.999999)[-1])


SCHEDULERS = {
    "alternation": (RateScheduler(4, alternation=1), lambda s: s % 2 == 1, lambda s: s % 2 == 0),
    "delay": (RateScheduler(4, delay_epochs=1), lambda s: s >= 4, lambda s: True),
}


@pytest.mark.parametrize(
    ("loss", "scheduler", "skip_idle", "rectified"),
    [
        pytest.param("kernel", "alternation", True, False, marks=pytest.mark.exhaustive),
        ("kernel", "delay", True, True),
        pytest.param("kernel", "delay", False, False, marks=pytest.mark.exhaustive),
        ("backward_kernel", "alternation", True, True),
        ("backward_kernel", "alternation", False, False),
    ],
)
def test_idle_steps_are_counted(float64, loss, scheduler, skip_idle, rectified):
    """t is the global step + 1. An idle loss gets no step, or a zero gradient, which does not change Lambda."""
    steps = 36
    scheduler, *runs = SCHEDULERS[scheduler]
    runs = runs[loss == "backward_kernel"]
    pair = [Noisy(SWATS(RATE, **OPTIONS, rectified=rectified), 0.0), Momentum(0.1)]
    optimizer = MultiOptimizer(pair if loss == "kernel" else pair[::-1], scheduler, skip_idle)
    idle = None if skip_idle else np.zeros(SHAPE)
    gradients = recorded(steps, rectified, lambda g, step: g if runs(step) else idle, (3, 32))
    given = [np.ones(SHAPE) if g is None or not runs(step) else g for step, g in enumerate(gradients)]
    ours = run(optimizer, alone(given), (loss,))[:, 0]
    assert_close(ours, expected(gradients, rectified=rectified))
    if skip_idle and not all(map(runs, range(steps))):
        own = np.cumsum([bool(runs(step)) for step in range(steps)])
        assert_differs(ours, expected(gradients, count=lambda step: own[step], rectified=rectified))


def test_a_schedule_acts_until_the_change_and_not_after_it(float64):
    gradients = recorded()
    at = change(reference(), gradients)
    drop = (at + 3) / 4
    constant = run(SWATS(RATE, **OPTIONS), alone(gradients))
    late = run(SWATS(WarmupAndDrops(RATE, 4, 0, (drop,)), **OPTIONS), alone(gradients))
    assert_close(late, constant, "float32")
    warm = WarmupAndDrops(RATE, 4, 1, (2,))
    rates = [float(warm(step)) for step in range(STEPS)]
    early = run(SWATS(warm, **OPTIONS), alone(gradients))[:, 0]
    assert_close(early, expected(gradients, rates=rates), "float32")
    assert_differs(early, constant[:, 0])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_every_precision_is_moved(dtype):
    gradients = recording(0)
    for epsilon in (1e-9, 0.5):  # The second one changes the phase at once.
        optimizer = SWATS(RATE, **{**OPTIONS, "epsilon": epsilon})
        ours = run(optimizer, alone(gradients), dtype=dtype)[:, 0]
        assert_close(ours, expected(gradients, epsilon=epsilon), "float32" if dtype == "float32" else "bfloat16")
        assert (RATES[optimizer][0] is not None) == (epsilon == 0.5)
    assert {each.dtype for each in optimizer.variables if each.shape == SHAPE} == {"float32"}


def test_there_are_two_scalars_for_each_variable_beside_three_slots():
    optimizer = SWATS()
    optimizer.build([keras.Variable(start, name=name) for start, name in zip(starts(), "ab", strict=True)])
    shapes = [tuple(each.shape) for each in optimizer.variables][2:]  # After the count and the learning rate.
    assert sorted(shapes) == sorted([SHAPE] * 6 + [()] * 4)
    assert (optimizer.beta_1, optimizer.beta_2, optimizer.epsilon, optimizer.rectified) == (0.9, 0.999, 1e-9, False)


def test_after_the_change_the_rate_still_scales_noise_and_weight_decay(float64):
    gradients = recorded()
    at = change(reference(), gradients)
    schedule = WarmupAndDrops(RATE, 4, 0, ((at + 3) / 4,))
    rates = [float(schedule(step)) for step in range(STEPS)]
    assert rates[at] > 5 * rates[-1]

    def made(**options):
        return SWATS(WarmupAndDrops(RATE, 4, 0, ((at + 3) / 4,)), **OPTIONS, **options)

    def moves(optimizer, given=gradients):
        return np.diff([starts()[0], *run(optimizer, alone(given))[:, 0]], axis=0)

    plain = moves(made())

    def decayed(by):
        w, out = starts()[0], []
        for move, rate in zip(plain, by, strict=True):
            w = w * (1 - 0.5 * rate) + move
            out.append(w)
        return np.array(out)

    ours = run(made(weight_decay=0.5), alone(gradients))[:, 0]
    assert_close(ours, decayed(rates), "float32")
    assert_differs(ours[-1], decayed([RATE] * STEPS)[-1])
    assert_differs(ours[-1], decayed([rate if step <= at else 0.0 for step, rate in enumerate(rates)])[-1])
    unit = moves(Noisy(Momentum(1.0), 0.25), np.zeros((STEPS, *SHAPE)))
    found = moves(Noisy(made(), 0.25)) - plain
    assert_close(found, np.array(rates)[:, None, None] * unit, "float32")
    assert_differs(found[-1], RATE * unit[-1])
