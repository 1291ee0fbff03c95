"""Momentum as in TensorFlow 1, compared with a NumPy loop."""

import keras
import numpy as np
import pytest
from helpers import assert_close, distance

from optimizers import Momentum

RATES = [0.1, 0.1, 0.4, 0.02, 0.3, 0.0, 0.2, 0.2]


def trajectory(optimizer, gradients, start, rates=RATES):
    """Returns the variable after every step of `optimizer`, whose rate is set before each."""
    variable = keras.Variable(start, dtype="float32", name="kernel")
    optimizer.build([variable])
    out = []
    for gradient, rate in zip(gradients, rates, strict=True):
        optimizer.learning_rate = rate
        optimizer.apply([gradient.astype(np.float32)], [variable])
        out.append(variable.numpy())
    return np.array(out)


def numpy_trajectory(gradients, start, momentum, nesterov, rates=RATES):
    """a <- m a + g; w <- w - rate (g + m a), or rate a without Nesterov."""
    w, a, out = start.copy(), np.zeros_like(start), []
    for g, rate in zip(gradients, rates, strict=True):
        a = momentum * a + g
        w = w - rate * (g + momentum * a if nesterov else a)
        out.append(w)
    return np.array(out)


@pytest.fixture
def problem(rng):
    """Gradients of eight steps, and a start."""
    return rng.normal(size=(len(RATES), 3, 2)), rng.normal(size=(3, 2))


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_momentum_is_the_present_rate_times_the_accumulated_gradient(problem, momentum, nesterov):
    ours = trajectory(Momentum(0.5, momentum, nesterov), *problem)
    assert_close(ours, numpy_trajectory(*problem, momentum, nesterov))
    if momentum:
        assert distance(ours, numpy_trajectory(*problem, momentum, not nesterov)) > 1e-2


@pytest.mark.parametrize("nesterov", [True, False])
def test_it_is_keras_sgd_until_the_rate_changes(problem, nesterov):
    ours = trajectory(Momentum(0.5, 0.9, nesterov), *problem)
    sgd = trajectory(keras.optimizers.SGD(0.5, 0.9, nesterov), *problem)
    assert_close(ours[:2], sgd[:2])
    assert distance(ours[2] - ours[1], sgd[2] - sgd[1]) > 1e-2


def test_rate_zero_leaves_the_variable_in_place(problem):
    """Keras' SGD continues to move at rate 0; in the published code the variable does not change."""
    ours = trajectory(Momentum(0.5), *problem)
    np.testing.assert_array_equal(ours[5], ours[4])


def test_float64_variables_are_moved_in_float64(problem, float64):
    variable = keras.Variable(problem[1], dtype="float64", name="kernel")
    optimizer = Momentum(0.1, 0.9)
    optimizer.build([variable])
    for gradient in problem[0]:
        optimizer.apply([gradient], [variable])
    assert_close(variable.numpy(), numpy_trajectory(*problem, 0.9, True, [0.1] * len(RATES))[-1])


@pytest.mark.parametrize("momentum", [-0.1, 1.0, 2.0])
def test_momentum_out_of_range_is_an_error(momentum):
    with pytest.raises(ValueError, match=rf"`momentum` .* at least 0 and less than 1\. Received {momentum}\. Example"):
        Momentum(0.1, momentum)
