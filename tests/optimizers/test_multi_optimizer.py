"""One optimizer per loss: the variables, steps and rates of each."""

import functools
import logging.handlers

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import assert_close, assert_differs, distance

from optimizers import Momentum, MultiOptimizer, Noisy, RateScheduler, WarmupAndDrops, WarmupAndSchedule

SHAPE, STEPS = (3, 2), 9


def variables():
    """Returns W, a bias and B."""
    rng = np.random.default_rng(0)
    return [
        keras.Variable(rng.normal(size=SHAPE), dtype="float32", name=name)
        for name in ("kernel", "bias", "backward_kernel")
    ]


def gradients(steps=STEPS):
    """Returns the gradients of every step to every variable."""
    return np.random.default_rng(1).normal(size=(steps, 3, *SHAPE)).astype(np.float32)


def run(optimizer, steps=STEPS, compiled=False):
    """Returns the variables after every step, `(steps + 1, 3, ...)`."""
    own = variables()
    optimizer.build(own)
    apply = tf.function(lambda g: optimizer.apply(tf.unstack(g), own)) if compiled else None
    out = [[v.numpy() for v in own]]
    for gradient in gradients(steps):
        if compiled:
            apply(gradient)
        else:
            optimizer.apply([tf.constant(g) for g in gradient], own)
        out.append([v.numpy() for v in own])
    return np.array(out)


def who_moved(states):
    """Returns which of W (J) and B (R) changed at each step. The bias changes with W."""
    moved = (states[1:] != states[:-1]).any(axis=(2, 3))
    assert (moved[:, 0] == moved[:, 1]).all()
    return ["J" * int(j) + "R" * int(r) for j, _, r in moved]


def adam(rate=0.01):
    """Returns R's usual optimizer."""
    return keras.optimizers.Adam(rate, epsilon=1e-8)


def momentum_reference(runs, rates, start, own_gradients):
    """TensorFlow 1's Nesterov momentum. `runs` is the factor on the gradient of each step, or None to skip it."""
    w, a, out = start.astype(float), np.zeros(SHAPE), []
    for factor, rate, g in zip(runs, rates, own_gradients, strict=True):
        if factor is not None:
            a = 0.9 * a + factor * g
            w = w - rate * (factor * g + 0.9 * a)
        out.append(w)
    return np.array(out)


def adam_reference(runs, rate, start, own_gradients):
    """Adam; `runs` as in `momentum_reference`."""
    w, m, v, t, out = start.astype(float), np.zeros(SHAPE), np.zeros(SHAPE), 0, []
    for factor, g in zip(runs, own_gradients, strict=True):
        if factor is not None:
            t, m, v = t + 1, 0.9 * m + 0.1 * factor * g, 0.999 * v + 0.001 * (factor * g) ** 2
            w = w - rate * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8 / np.sqrt(1 - 0.999**t))
        out.append(w)
    return np.array(out)


def test_j_moves_the_forward_variables_and_r_the_backward_kernels():
    states = run(MultiOptimizer([keras.optimizers.SGD(0.5), keras.optimizers.SGD(0.01)]))
    steps = gradients().cumsum(axis=0)
    for index, rate in [(0, 0.5), (1, 0.5), (2, 0.01)]:
        assert_close(states[1:, index], states[0, index] - rate * steps[:, index])


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "graph"])
@pytest.mark.parametrize("skip_idle", [True, False])
def test_idle_steps_under_alternation_against_numpy(skip_idle, compiled):
    """With `skip_idle` an idle optimizer does not run. Without it the zero gradient lets the momentum continue."""
    optimizer = MultiOptimizer([Momentum(0.1), adam()], RateScheduler(10, alternation=2), skip_idle)
    states = run(optimizer, compiled=compiled)
    idle = None if skip_idle else 0.0
    r_runs = [1.0 if step % 3 == 0 else idle for step in range(STEPS)]
    j_runs = [idle if step % 3 == 0 else 1.0 for step in range(STEPS)]
    g = gradients()
    for index in (0, 1):
        assert_close(states[1:, index], momentum_reference(j_runs, [0.1] * STEPS, states[0, index], g[:, index]))
    assert_close(states[1:, 2], adam_reference(r_runs, 0.01, states[0, 2], g[:, 2]))
    drifting = ["R"] + ["JR"] * (STEPS - 1)
    assert who_moved(states) == (["R", "J", "J"] * 3 if skip_idle else drifting)
    assert [int(o.iterations) for o in optimizer.inner_optimizers] == ([6, 3] if skip_idle else [STEPS, STEPS])
    assert int(optimizer.iterations) == STEPS


def test_skip_idle_makes_a_large_difference():
    ends = [
        run(MultiOptimizer([Momentum(0.1), adam()], RateScheduler(10, alternation=2), skip))[-1]
        for skip in (True, False)
    ]
    assert_differs(ends[0][0], ends[1][0], by=0.05)
    assert_differs(ends[0][2], ends[1][2])


def test_during_the_delay_j_rests():
    states = run(MultiOptimizer([Momentum(0.1), adam()], RateScheduler(2, delay_epochs=2)))
    assert who_moved(states) == ["R"] * 4 + ["JR"] * (STEPS - 4)


@pytest.mark.parametrize("wrap", [lambda o: o, lambda o: Noisy(o, 0.0)], ids=["plain", "noisy"])
def test_schedules_go_by_the_global_step_and_not_by_the_updates_of_one_optimizer(wrap):
    schedule = WarmupAndDrops(0.4, steps_per_epoch=4, warmup_epochs=2, drop_epochs=())
    optimizer = MultiOptimizer([wrap(Momentum(schedule)), adam()], RateScheduler(10, alternation=1))
    states = run(optimizer)
    runs = [None if step % 2 == 0 else 1.0 for step in range(STEPS)]
    rates = [0.4 * min(step / 8, 1.0) for step in range(STEPS)]
    g = gradients()[:, 0]
    assert_close(states[1:, 0], momentum_reference(runs, rates, states[0, 0], g))
    own = [0.4 * min(step // 2 / 8, 1.0) for step in range(STEPS)]
    assert distance(states[1:, 0], momentum_reference(runs, own, states[0, 0], g)) > 1e-3
    assert float(optimizer.learning_rate) == pytest.approx(0.4)
    assert float(optimizer.learning_rates[1]) == pytest.approx(0.01)


@pytest.mark.parametrize(
    "scheduler",
    [
        lambda step: [tf.cast(step % 2, tf.float32), 1],
        lambda step: (np.float64(0.5), tf.where(step < tf.constant(4, step.dtype), 2.0, 0.0)),
    ],
)
def test_a_rate_scheduler_may_return_any_two_scalars(scheduler):
    run(MultiOptimizer([Momentum(0.1), adam()], scheduler), steps=2, compiled=True)


def test_a_rate_between_zero_and_one_scales_the_gradient():
    def scheduler(step):
        return 0.25, tf.where(step < 4, 2.0, 0.0)

    states = run(MultiOptimizer([keras.optimizers.SGD(1.0), keras.optimizers.SGD(1.0)], scheduler))
    steps = gradients().cumsum(axis=0)
    assert_close(states[1:, 0], states[0, 0] - 0.25 * steps[:, 0])
    assert_close(states[1:5, 2], states[0, 2] - 2.0 * steps[:4, 2])
    np.testing.assert_array_equal(states[4:, 2], [states[4, 2]] * 6)


DROPS = WarmupAndDrops(2.0, 2, 0, (1, 2, 3), 0.5)
VANISHING = WarmupAndSchedule(keras.optimizers.schedules.PolynomialDecay(1.0, 6, 0.0), 2)
LOSS_RATES = {
    "constants": (RateScheduler(2, loss_rates=(0.3, 4.0)), lambda s: (0.3, 4.0)),
    "J at rest": (RateScheduler(2, loss_rates=(0.0, 0.5)), lambda s: (None, 0.5)),
    "R at rest": (RateScheduler(2, loss_rates=(0.5, 0)), lambda s: (0.5, None)),
    "schedules": (
        RateScheduler(2, loss_rates=(VANISHING, DROPS)),
        lambda s: (1 - s / 6 if s < 6 else None, 2.0 * 0.5 ** min(s // 2, 3)),
    ),
    "with alternation": (
        RateScheduler(2, alternation=2, loss_rates=(0.3, DROPS)),
        lambda s: (0.3, None) if s % 3 else (None, 2.0 * 0.5 ** min(s // 2, 3)),
    ),
    "with a delay": (
        RateScheduler(2, delay_epochs=1.5, loss_rates=(VANISHING, 0.5)),
        lambda s: (1 - s / 6 if 3 <= s < 6 else None, 0.5),
    ),
}


@pytest.mark.parametrize("skip_idle", [True, False])
@pytest.mark.parametrize("case", LOSS_RATES)
def test_loss_rates_multiply_the_gradients(case, skip_idle):
    """Uses momentum for J and Adam for R. A rate of 0 has the same effect as the turn of the other loss."""
    scheduler, factor = LOSS_RATES[case]
    states = run(MultiOptimizer([Momentum(0.1), adam()], scheduler, skip_idle), compiled=skip_idle)
    idle = None if skip_idle else 0.0
    j, r = zip(*([idle if f is None else f for f in factor(step)] for step in range(STEPS)), strict=True)
    g = gradients()
    for index in (0, 1):
        assert_close(states[1:, index], momentum_reference(j, [0.1] * STEPS, states[0, index], g[:, index]))
    assert_close(states[1:, 2], adam_reference(r, 0.01, states[0, 2], g[:, 2]))
    if len({f for f in r if f}) > 1:  # A factor on Adam's learning rate is another thing.
        rates = [f or 0.0 for f in r]
        ones = [idle if f in (None, 0.0) else 1.0 for f in r]
        wrong = scaled_adam(ones, rates, states[0, 2], g[:, 2])
        assert_differs(states[-1, 2] - states[0, 2], wrong - states[0, 2], by=0.1)


def scaled_adam(runs, factors, start, own_gradients):
    """Adam with factors on its learning rate: a plausible mistake."""
    full = adam_reference(runs, 0.01, start, own_gradients)
    steps = np.diff(np.concatenate([[start], full]), axis=0)
    return start + (np.array(factors)[:, None, None] * steps).sum(axis=0)


@pytest.mark.parametrize("make", [keras.optimizers.SGD, lambda rate: Momentum(rate, 0.0)], ids=["sgd", "momentum"])
def test_loss_rates_act_with_one_optimizer_too(make):
    states = run(MultiOptimizer([make(0.1)], RateScheduler(2, loss_rates=(0.3, DROPS))))
    steps = gradients() * 0.1
    factors = np.array([2.0 * 0.5 ** min(s // 2, 3) for s in range(STEPS)])[:, None, None]
    for index in (0, 1):
        assert_close(states[1:, index], states[0, index] - 0.3 * steps[:, index].cumsum(axis=0))
    assert_close(states[1:, 2], states[0, 2] - (factors * steps[:, 2]).cumsum(axis=0))


def test_one_optimizer_takes_j_and_r_on_all_variables():
    optimizer = MultiOptimizer([Momentum(0.1)])
    states = run(optimizer)
    for index in range(3):
        assert_close(
            states[1:, index],
            momentum_reference([1.0] * STEPS, [0.1] * STEPS, states[0, index], gradients()[:, index]),
        )
    assert int(optimizer.inner_optimizers[0].iterations) == STEPS


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "graph"])
def test_one_optimizer_under_a_scheduler_moves_only_what_runs(compiled):
    optimizer = MultiOptimizer([Momentum(0.1)], RateScheduler(2, delay_epochs=1, alternation=2))
    states = run(optimizer, compiled=compiled)
    expected = ["R", "R"] + ["R" if step % 3 == 0 else "J" for step in range(2, STEPS)]
    assert who_moved(states) == expected
    for index, loss in [(0, "J"), (2, "R")]:
        runs = [1.0 if who == loss else None for who in expected]
        reference = momentum_reference(runs, [0.1] * STEPS, states[0, index], gradients()[:, index])
        assert_close(states[1:, index], reference)


def accumulating(wrap=lambda inner: inner):
    return wrap(keras.optimizers.SGD(0.1, gradient_accumulation_steps=2))


@pytest.mark.parametrize("wrap", [lambda inner: inner, lambda inner: Noisy(inner, variance=0.0)])
@pytest.mark.parametrize(
    "scheduler",
    [
        RateScheduler(2, alternation=1),
        RateScheduler(2, delay_epochs=1),
        RateScheduler(2, loss_rates=(1.0, WarmupAndDrops(1.0, 2, warmup_epochs=1, drop_epochs=()))),
        lambda step: (tf.ones([]), tf.zeros([])),  # Its modes are not known.
    ],
)
def test_one_optimizer_that_accumulates_does_not_move_w_and_b_in_different_steps(scheduler, wrap):
    """Keras would discard the gradients of B at each update of W."""
    optimizer = MultiOptimizer([accumulating(wrap)], scheduler)
    with pytest.raises(ValueError, match=r"`gradient_accumulation_steps` must be None if one .* Received 2 with"):
        optimizer.build(variables())
    MultiOptimizer([accumulating(wrap)], scheduler).build(variables()[:2])


@pytest.mark.parametrize(
    ("scheduler", "options", "count", "factors"),
    [
        (None, {}, 1, np.ones((4, 2))),
        (RateScheduler(2, loss_rates=(0.5, 0.25)), {}, 1, np.tile([0.5, 0.25], (4, 1))),
        (RateScheduler(2, alternation=1), {"skip_idle": False}, 1, np.array([[0, 1], [1, 0]] * 2)),
        (RateScheduler(2, alternation=1), {}, 2, np.array([[0, 1], [1, 0]] * 2)),
    ],
)
def test_no_accumulated_gradient_is_lost(scheduler, options, count, factors):
    optimizer = MultiOptimizer([accumulating() for _ in range(count)], scheduler, **options)
    states, g = run(optimizer, 4), gradients(4)
    for index, loss in ((0, 0), (2, 1)):
        total = (factors[:, loss, None, None] * g[:, index]).sum(axis=0)
        assert_close(states[-1, index], states[0, index] - 0.1 * total / 2)


def test_variables_without_a_gradient_stay():
    own = variables()
    optimizer = MultiOptimizer([Momentum(0.1), Momentum(0.1)])
    optimizer.build(own)
    before = [v.numpy() for v in own]
    optimizer.apply([None, np.ones(SHAPE, np.float32), None], own)
    assert [bool((v.numpy() != b).any()) for v, b in zip(own, before, strict=True)] == [False, True, False]
    assert int(optimizer.iterations) == 1


@pytest.mark.parametrize("clip", [{"global_clipnorm": 0.3}, {"clipvalue": 0.1}, {"clipnorm": 0.2}])
def test_clipping_acts_on_the_gradients_of_each_loss_alone(clip):
    states = run(MultiOptimizer([Momentum(1.0, 0.0, **clip), keras.optimizers.SGD(1.0)]))
    for step, g in enumerate(gradients()):
        if "clipvalue" in clip:
            clipped = np.clip(g, -0.1, 0.1)
        elif "clipnorm" in clip:
            clipped = [each * min(1.0, 0.2 / np.linalg.norm(each)) for each in g]
        else:
            clipped = g * min(1.0, 0.3 / np.linalg.norm(g[:2]))
        moved = states[step] - states[step + 1]
        np.testing.assert_allclose(moved[:2], clipped[:2], atol=1e-6)
        np.testing.assert_allclose(moved[2], g[2], atol=1e-6)


def test_the_learning_rate_can_be_set():
    optimizer = MultiOptimizer([Momentum(0.5, 0.0), adam()])
    optimizer.learning_rate = 0.25
    states = run(optimizer)
    assert float(optimizer.learning_rate) == 0.25
    assert_close(states[1, 0], states[0, 0] - 0.25 * gradients()[0, 0])


def drops(rate):
    """Returns a schedule that drops at steps 3 and 6."""
    return WarmupAndDrops(rate, 3, 0, (1, 2), 0.5)


def stepper(optimizer, own, compiled):
    """Returns a function that makes a step with the gradients of all variables."""

    def apply(gradient):
        optimizer.apply(tf.unstack(gradient), own)

    return tf.function(apply) if compiled else apply


def set_directly(optimizer):
    for inner, rate in zip(optimizer.inner_optimizers, (0.4, 0.2), strict=True):
        inner.learning_rate = drops(rate)


def set_together(optimizer):
    optimizer.learning_rates = [drops(0.4), drops(0.2)]


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "graph"])
@pytest.mark.parametrize("assign", [set_directly, set_together])
@pytest.mark.parametrize("wrap", [lambda o: o, lambda o: Noisy(o, 0.0)], ids=["plain", "noisy"])
def test_schedules_that_are_assigned_later_go_by_the_global_step(wrap, assign, compiled):
    """A schedule that counts R's own updates would drop at the steps 9 and 18."""
    for when in ("before build", "after build", "as first constructed with another"):
        first = drops(9.0) if when.startswith("as") else 9.0
        inner = [wrap(keras.optimizers.SGD(first)) for _ in range(2)]
        optimizer = MultiOptimizer(inner, RateScheduler(10, alternation=2))
        if when != "before build":
            optimizer.build(own := variables())
        assign(optimizer)
        own = variables() if when == "before build" else own
        apply = stepper(optimizer, own, compiled)
        for step, gradient in enumerate(gradients()):
            before = [each.numpy() for each in own]
            apply(tf.constant(gradient))
            rate = 0.5 ** min(step // 3, 2)
            runs = (0.0, 0.2) if step % 3 == 0 else (0.4, 0.0)
            for index, factor in ((0, runs[0]), (2, runs[1])):
                assert_close(own[index].numpy(), before[index] - factor * rate * gradient[index])
        assert [float(each) for each in optimizer.learning_rates] == pytest.approx([0.1, 0.05])
        again = MultiOptimizer.from_config(optimizer.get_config())
        assert [float(each) for each in again.learning_rates] == pytest.approx([0.4, 0.2])


def test_a_schedule_that_r_gets_later_goes_by_the_global_step_under_loss_scaling():
    inner = MultiOptimizer([keras.optimizers.SGD(0.1), keras.optimizers.SGD(0.1)], RateScheduler(10, alternation=2))
    scaled, own = keras.optimizers.LossScaleOptimizer(inner, initial_scale=4.0), variables()
    scaled.build(own)
    inner.inner_optimizers[1].learning_rate = drops(0.2)
    apply = tf.function(lambda g: scaled.apply(tf.unstack(4.0 * g), own))
    before = own[2].numpy()
    for gradient in gradients(7):
        apply(tf.constant(gradient))
    steps = gradients()[[0, 3, 6], 2] * np.array([0.2, 0.1, 0.05])[:, None, None]
    assert_close(own[2].numpy(), before - steps.sum(axis=0))


def test_both_learning_rates_can_be_set():
    optimizer = MultiOptimizer([Momentum(0.1), Noisy(adam(), 0.1)])
    own = [each.path for each in optimizer.variables]
    for given in ((0.3, 0.2), [np.float32(0.3), np.float64(0.2)], (keras.Variable(0.3), tf.constant(0.2))):
        optimizer.learning_rates = (0.5, 0.5)
        optimizer.learning_rates = given
        assert [float(rate) for rate in optimizer.learning_rates] == pytest.approx([0.3, 0.2])
    optimizer.learning_rates = optimizer.learning_rates[::-1]
    assert [float(rate) for rate in optimizer.learning_rates] == pytest.approx([0.2, 0.3])
    assert [each.path for each in optimizer.variables] == own  # Keras tracks variables in attributes.
    one = MultiOptimizer([Momentum(0.1)])
    one.learning_rates = [0.3]
    assert [float(rate) for rate in one.learning_rates] == pytest.approx([0.3, 0.3])


@pytest.mark.parametrize(
    "rates",
    [0.1, (0.1,), (0.1, 0.1, 0.1), (0.1, "a"), (0.1, float("nan")), (0.1, None), (0.1, WarmupAndDrops), (True, 1)],
)
def test_learning_rates_of_the_wrong_kind_are_errors(rates):
    optimizer = MultiOptimizer([Momentum(0.5), adam()])
    with pytest.raises(
        ValueError, match=r"`learning_rates` must be finite numbers or .*Received .*Example: .*\[0\.1, "
    ):
        optimizer.learning_rates = rates
    assert float(optimizer.learning_rate) == 0.5


def test_a_number_does_not_replace_a_schedule():
    optimizer = MultiOptimizer([Momentum(0.5), Noisy(Momentum(drops(0.1)), 0.1)])
    with pytest.raises(
        ValueError, match=r"must not replace a schedule.*Received 0\.2 for Momentum with a sch.*Example"
    ):
        optimizer.learning_rates = (0.3, 0.2)
    assert float(optimizer.learning_rate) == 0.5


def test_it_builds_itself_at_the_first_application():
    own = variables()
    optimizer = MultiOptimizer([Momentum(0.1, 0.0), adam()])
    before = own[0].numpy()
    g = gradients()[0]
    optimizer.apply_gradients(zip(map(tf.constant, g), own, strict=True))
    assert_close(own[0].numpy(), before - 0.1 * g[0])
    with pytest.raises(ValueError, match="not built"):
        MultiOptimizer([Momentum(0.1)]).apply([g[0]])


def test_a_custom_loop_in_a_graph_gives_no_warning():
    """AutoGraph warns of code that it cannot translate, here when the optimizer builds itself."""
    own, found = variables(), logging.handlers.BufferingHandler(100)
    optimizer = MultiOptimizer([Momentum(0.1, 0.0), adam()])
    before = own[0].numpy()
    g = [tf.constant(each) for each in gradients()[0]]
    tf.get_logger().addHandler(found)
    try:
        tf.function(lambda: optimizer.apply(g, own))()
    finally:
        tf.get_logger().removeHandler(found)
    assert [record.getMessage() for record in found.buffer] == []
    assert_close(own[0].numpy(), before - 0.1 * g[0].numpy())


ONE = Momentum(0.1)
RATES = "`rate_scheduler` must return the rates of J and R, two scalars.* Received .*"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([],), r"`optimizers`.*one or two.*Received \[\].*Example"),
        ((Momentum(0.1),), "`optimizers`.*Momentum"),
        ((["sgd", "adam"],), "`optimizers`.*'sgd'"),
        (([Momentum(0.1) for _ in range(3)],), "`optimizers`"),
        (([ONE, ONE],), "`optimizers`.*different"),
        (([ONE], "constant"), "`rate_scheduler`.*'constant'.*Example"),
        (
            ([ONE], RateScheduler),
            "`rate_scheduler` must be callable with a step, or None.*class.*RateScheduler.*Example",
        ),
        (([ONE], lambda step: 0.5), RATES + r".*returns 0\.5 at step 0\. Example"),
        (([ONE], lambda step: (1.0,)), RATES + r".*returns \(1\.0,\)"),
        (([ONE], lambda step: (1.0, 1.0, 1.0)), RATES),
        (([ONE], lambda step: ("a", 1.0)), RATES + ".*'a'"),
        (([ONE], lambda step: ([1.0], 1.0)), RATES + r".*\(\[1\.0\], 1\.0\)"),
        (([ONE], lambda step: None), RATES + ".*None"),
        (([ONE], lambda: (1.0, 1.0)), RATES + ".*fails at step 0 with TypeError.*Example"),
        (([ONE], functools.partial(RateScheduler, 4)), RATES + ".*fails at step 0 with ValueError"),
        (([ONE], keras.optimizers.schedules.CosineDecay(0.1, 10)), RATES + ".*CosineDecay.*returns <tf.Tensor"),
    ],
)
def test_arguments_of_the_wrong_kind_are_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        MultiOptimizer(*arguments)
