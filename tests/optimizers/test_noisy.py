"""Noise on updates: its size, the variables that get it, and its dependence on seed, path and step."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import assert_close

from optimizers import Momentum, Noisy, WarmupAndDrops

VARIANCE = 0.25


def variable(name="kernel", shape=(40, 50)):
    """Returns a variable of zeros."""
    return keras.Variable(np.zeros(shape), dtype="float32", name=name)


def noise_of_steps(optimizer, steps=1, name="kernel", gradient=0.0):
    """Returns the change per step of a variable with a constant gradient."""
    target = variable(name)
    optimizer.build([target])
    out = []
    for _ in range(steps):
        before = target.numpy()
        optimizer.apply([np.full(target.shape, gradient, np.float32)], [target])
        out.append(target.numpy() - before)
    return out


@pytest.mark.parametrize("distribution", ["normal", "uniform"])
def test_the_noise_has_the_variance_asked_for_times_the_squared_rate(distribution):
    rate = 0.2
    (noise,) = noise_of_steps(Noisy(Momentum(rate), VARIANCE, distribution))
    count, kurtosis = noise.size, {"normal": 3.0, "uniform": 1.8}[distribution]
    # Four standard errors.
    assert abs(noise.mean()) < 4 * rate * np.sqrt(VARIANCE / count)
    assert abs((noise**2).mean() / (rate**2 * VARIANCE) - 1) < 4 * np.sqrt((kurtosis - 1) / count)
    bound = rate * np.sqrt(3 * VARIANCE)
    assert (np.abs(noise).max() <= bound * (1 + 1e-6)) == (distribution == "uniform")


def test_the_noise_is_exactly_proportional_to_the_rate_and_to_the_standard_deviation():
    (one,) = noise_of_steps(Noisy(Momentum(0.1), 1.0))
    (faster,) = noise_of_steps(Noisy(Momentum(0.4), 1.0))
    (louder,) = noise_of_steps(Noisy(Momentum(0.1), 9.0))
    assert_close(faster, 4 * one)
    assert_close(louder, 3 * one)


def test_the_noise_is_added_after_the_update_at_the_rate_of_the_same_step():
    """w <- update(w) + rate e, and never into the momentum."""
    gradient, steps = 0.7, 4
    schedule = WarmupAndDrops(0.5, steps_per_epoch=1, warmup_epochs=3, drop_epochs=())
    noisy = noise_of_steps(Noisy(Momentum(schedule), VARIANCE), steps, gradient=gradient)
    quiet = noise_of_steps(Momentum(schedule), steps, gradient=gradient)
    unit = noise_of_steps(Noisy(Momentum(1.0), VARIANCE), steps)
    for step in range(steps):
        rate = 0.5 * min(step / 3, 1.0)
        np.testing.assert_allclose(noisy[step], quiet[step] + rate * unit[step], atol=2e-6)
    assert not noisy[0].any()
    assert np.abs(noisy[3] - quiet[3]).max() > 0.1


@pytest.mark.parametrize("variance", [0.0])
def test_zero_variance_adds_no_noise(variance):
    noisy = noise_of_steps(Noisy(Momentum(0.1), variance), 3, gradient=1.0)
    quiet = noise_of_steps(Momentum(0.1), 3, gradient=1.0)
    np.testing.assert_array_equal(noisy, quiet)


def test_the_same_seed_path_and_step_give_the_same_noise_and_any_other_does_not():
    first = noise_of_steps(Noisy(Momentum(0.1), 1.0, seed=3), steps=2)
    again = noise_of_steps(Noisy(Momentum(0.1), 1.0, seed=3), steps=2)
    np.testing.assert_array_equal(first, again)
    others = [
        *first,
        *noise_of_steps(Noisy(Momentum(0.1), 1.0, seed=4)),
        *noise_of_steps(Noisy(Momentum(0.1), 1.0, seed=3), name="other"),
    ]
    for a, b in itertools.combinations(others, 2):
        # Four standard errors.
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 4 / np.sqrt(a.size)


def test_compiled_updates_see_the_noise_of_eager_ones():
    (eager,) = noise_of_steps(Noisy(Momentum(0.1), 1.0))
    target, optimizer = variable(), Noisy(Momentum(0.1), 1.0)
    optimizer.build([target])
    tf.function(lambda g: optimizer.apply([g], [target]), jit_compile=True)(tf.zeros(target.shape))
    assert_close(target.numpy(), eager)


def test_only_names_the_variables_that_get_noise():
    kernel, backward = variable("kernel"), variable("backward_kernel")
    optimizer = Noisy(Momentum(0.1), VARIANCE, only="backward_kernel")
    optimizer.build([kernel, backward])
    zeros = np.zeros(kernel.shape, np.float32)
    optimizer.apply([zeros, zeros], [kernel, backward])
    assert not kernel.numpy().any()
    assert backward.numpy().all()


def test_a_variable_without_a_gradient_gets_no_noise():
    first, second = variable("first"), variable("second")
    optimizer = Noisy(Momentum(0.1), VARIANCE)
    optimizer.build([first, second])
    with pytest.warns(UserWarning, match="Gradients do not exist for variables"):
        optimizer.apply([np.zeros(first.shape, np.float32), None], [first, second])
    assert first.numpy().any()
    assert not second.numpy().any()


def test_a_value_of_only_that_matches_no_variable_is_an_error():
    with pytest.raises(ValueError, match=r"`only`.*'backwards'.*kernel"):
        Noisy(Momentum(0.1), 1.0, only="backwards").build([variable()])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("sgd", 1.0), "`optimizer`.*'sgd'.*Example"),
        ((None, 1.0), "`optimizer`.*None"),
        ((Momentum, 1.0), "`optimizer`"),
        ((keras.optimizers.SGD(), -1.0), "`variance`.*-1.0.*Example"),
        ((keras.optimizers.SGD(), float("nan")), "`variance`.*nan"),
        ((keras.optimizers.SGD(), 1.0, "gaussian"), "`distribution`.*'gaussian'.*Example"),
    ],
)
def test_arguments_out_of_range_are_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        Noisy(*arguments)
