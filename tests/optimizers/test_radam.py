"""RAdam, compared with a float64 loop: alone, alternating with another loss, and at the bound of rho_t."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import assert_close, assert_differs
from moments_reference import ReferenceRAdam, trajectory

from optimizers import Momentum, MultiOptimizer, Noisy, RAdam, RateScheduler, WarmupAndDrops
from optimizers.moments import averaged_steps, rectification

SHAPE, STEPS = (3, 2), 16
OPTIONS = {"beta_1": 0.8, "beta_2": 0.9, "epsilon": 1e-4}  # rho_t passes 5 at t = 7.


def recorded(steps=STEPS):
    """Returns gradients with very different sizes."""
    rng = np.random.default_rng(1)
    return rng.normal(size=(steps, *SHAPE)) * 10.0 ** rng.integers(-5, 2, size=(steps, *SHAPE))


def start():
    return np.random.default_rng(0).normal(size=SHAPE)


def run(optimizer, gradients, steps=STEPS, name="kernel", dtype="float64", compiled=False):
    """Returns the variable after every step; gradients are a list, or a function of the variable."""
    variable = keras.Variable(start(), dtype=dtype, name=name)
    optimizer.build([variable])
    apply = tf.function(lambda g: optimizer.apply([g], [variable])) if compiled else None
    out = []
    for step in range(steps):
        g = gradients(variable.numpy()) if callable(gradients) else gradients[step]
        g = tf.constant(g, dtype)
        apply(g) if compiled else optimizer.apply([g], [variable])
        out.append(np.asarray(variable.value, np.float64))
    return np.array(out)


def expected(gradients=None, steps=STEPS, rates=None, count=lambda step: step + 1, **options):
    reference = ReferenceRAdam(0.1, **{**OPTIONS, **options})
    return trajectory(reference, start(), recorded() if gradients is None else gradients, steps, rates, count)


def curvature(w):
    """Returns the gradient of a quadratic."""
    return np.array([[1.0, 5.0], [0.2, 2.0], [0.01, 30.0]]) * w


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "graph"])
def test_the_update_is_the_formula(float64, compiled):
    ours = run(RAdam(0.1, **OPTIONS), recorded(), compiled=compiled)
    assert_close(ours, expected())
    inside = expected(inside=True)
    assert np.abs(ours - inside).max() > 1e-3  # Where the gradients are small.
    assert_differs(ours, expected(usable=lambda length: length >= 6))
    assert_differs(ours, expected(usable=lambda length: False))


def test_a_quadratic_is_descended_as_by_the_formula(float64):
    ours = run(RAdam(0.1, **OPTIONS), curvature, 40)
    assert_close(ours, expected(curvature, 40))
    assert np.abs(ours[-1]).sum() < np.abs(start()).sum()


def test_the_defaults_are_those_of_the_published_code(float64):
    assert_close(run(RAdam(), recorded()), trajectory(ReferenceRAdam(), start(), recorded(), STEPS))


def test_the_bound_of_rho_is_included():
    """At rho_t = 5 exactly the step is rectified."""
    usable, not_usable = (rectification(tf.constant(5.0, tf.float64), 0.9, tf.constant(u)) for u in (True, False))
    assert_close(float(usable), np.sqrt(1 * 3 * 19 / (15 * 17 * 5)))
    assert float(not_usable) == 0.0


def test_a_step_at_the_bound_is_rectified(float64, monkeypatch):
    """Bisection finds a beta_2 for which rho_7 is exactly 5."""
    low, high = 0.5, 0.99
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if float(averaged_steps(tf.constant(7.0, tf.float64), middle)) < 5 else (low, middle)
    near = [high + k * np.spacing(high) for k in range(-200, 200)]
    beta_2 = next(b for b in near if float(averaged_steps(tf.constant(7.0, tf.float64), float(b))) == 5.0)
    options = {**OPTIONS, "beta_2": float(beta_2)}
    ours = run(RAdam(0.1, **options), recorded(), 7)
    # Rounding may put the reference on the wrong side of the bound at t = 7, so it gets the side as an argument.
    assert_close(ours, expected(steps=7, **options, usable=lambda length: length > 4.999999))
    assert_differs(ours[-1], expected(steps=7, **options, usable=lambda length: length > 5.000001)[-1])


@pytest.mark.parametrize("beta_2", [0.0, 0.5, 0.6, 0.65])
def test_where_rho_never_reaches_the_bound_every_step_is_that_of_the_momentum(float64, beta_2):
    ours = run(RAdam(0.1, **{**OPTIONS, "beta_2": beta_2}), recorded())
    assert np.isfinite(ours).all()
    assert_close(ours, expected(**{**OPTIONS, "beta_2": beta_2}, usable=lambda length: False))


SCHEDULERS = {
    "alternation": (RateScheduler(4, alternation=2), lambda s: s % 3 != 0, lambda s: s % 3 == 0),
    "delay": (RateScheduler(4, delay_epochs=1), lambda s: s >= 4, lambda s: True),
    "delay and alternation": (RateScheduler(4, 1, 1), lambda s: s >= 4 and s % 2, lambda s: s < 4 or s % 2 == 0),
}


@pytest.mark.parametrize(
    ("wrap", "skip_idle"), [(lambda o: o, True), (lambda o: Noisy(o, 0.0), False)], ids=["plain", "noisy"]
)
@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("loss", ["kernel", "backward_kernel"])
def test_idle_steps_are_counted(float64, loss, scheduler, skip_idle, wrap):
    """t is the global step + 1 of J and R. An idle loss gets no step, or a step with a zero gradient."""
    scheduler, *runs = SCHEDULERS[scheduler]
    runs = runs[loss == "backward_kernel"]
    pair = [wrap(RAdam(0.1, **OPTIONS)), Momentum(0.1)]
    ours = run(MultiOptimizer(pair if loss == "kernel" else pair[::-1], scheduler, skip_idle), recorded(), name=loss)
    idle = None if skip_idle else np.zeros(SHAPE)
    gradients = [g if runs(step) else idle for step, g in enumerate(recorded())]
    assert_close(ours, expected(gradients))
    if skip_idle and not all(map(runs, range(STEPS))):
        own = np.cumsum([bool(runs(step)) for step in range(STEPS)])
        assert_differs(ours, expected(gradients, count=lambda step: own[step]))


def test_a_schedule_sets_the_rate(float64):
    schedule = WarmupAndDrops(0.4, 4, 2, (3,))
    rates = [float(schedule(step)) for step in range(STEPS)]
    assert_close(run(RAdam(schedule, **OPTIONS), recorded()), expected(rates=rates), "float32")


def test_clipping_acts_on_the_gradient(float64):
    ours = run(RAdam(0.1, **OPTIONS, clipvalue=0.02), recorded())
    assert_close(ours, expected(np.clip(recorded(), -0.02, 0.02)), "float32")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_moments_are_of_single_precision_at_least(dtype):
    optimizer = RAdam(0.1, 0.8, 0.999, 1e-4)
    ours = run(optimizer, recorded(), dtype=dtype)
    assert_close(ours, expected(beta_2=0.999), dtype if dtype != "float16" else "bfloat16")
    assert {each.dtype for each in optimizer.variables if each.shape == SHAPE} == {"float32"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta_1": 1.0}, "`beta_1`.*1.0.*Example"),
        ({"beta_2": -0.1}, "`beta_2`.*-0.1"),
        ({"epsilon": 0.0}, "`epsilon`"),
    ],
)
def test_arguments_out_of_range_are_errors(options, message):
    with pytest.raises(ValueError, match=message):
        RAdam(**options)
