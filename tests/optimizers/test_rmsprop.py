"""RMSprop with a start of the mean square, compared with a NumPy loop and with TensorFlow 1."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import assert_close, distance

from optimizers import RMSprop

RATE, RHO, EPSILON = 0.05, 0.9, 1e-10


@pytest.fixture
def problem(rng):
    """Small gradients of six steps, with which the start of the mean square matters, and a start."""
    return 1e-2 * rng.normal(size=(6, 3, 2)), rng.normal(size=(3, 2))


def trajectory(optimizer, gradients, start):
    """Returns the variable after every step."""
    variable, out = keras.Variable(start, dtype="float64", name="kernel"), []
    optimizer.build([variable])
    for gradient in gradients:
        optimizer.apply([gradient], [variable])
        out.append(variable.numpy())
    return np.array(out)


def numpy_trajectory(gradients, start, momentum, centered, initial):
    """s <- rho s + (1 - rho) g^2; a <- m a + rate g / sqrt(s + epsilon); w <- w - a."""
    w, a, out = start.copy(), np.zeros_like(start), []
    square, mean = np.full_like(start, initial), np.zeros_like(start)
    for g in gradients:
        square = RHO * square + (1 - RHO) * g**2
        mean = RHO * mean + (1 - RHO) * g
        a = momentum * a + RATE * g / np.sqrt(square - (mean**2 if centered else 0) + EPSILON)
        w = w - a
        out.append(w)
    return np.array(out)


@pytest.mark.parametrize("centered", [True, False])
@pytest.mark.parametrize("momentum", [0.0, 0.5])
@pytest.mark.parametrize("initial", [0.0, 1.0])
def test_the_mean_square_starts_where_it_is_told_to(float64, problem, initial, momentum, centered):
    ours = trajectory(RMSprop(RATE, RHO, momentum, EPSILON, centered, initial), *problem)
    assert_close(ours, numpy_trajectory(*problem, momentum, centered, initial))
    assert distance(ours, numpy_trajectory(*problem, momentum, centered, 1 - initial)) > 1e-2


def test_by_default_it_is_that_of_keras(problem):
    np.testing.assert_array_equal(
        trajectory(RMSprop(RATE), *problem), trajectory(keras.optimizers.RMSprop(RATE), *problem)
    )


def test_from_one_it_is_that_of_tensorflow_1(float64, problem):
    gradients, start = problem
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        variable = tf.compat.v1.Variable(start)
        gradient = tf.compat.v1.placeholder(tf.float64, start.shape)
        step = tf.compat.v1.train.RMSPropOptimizer(RATE).apply_gradients([(gradient, variable)])
        session.run(tf.compat.v1.global_variables_initializer())
        theirs = [session.run([step, variable], {gradient: each}) and session.run(variable) for each in gradients]
    assert_close(trajectory(RMSprop(RATE, epsilon=EPSILON, initial_mean_square=1.0), *problem), np.array(theirs))


def test_a_negative_start_is_an_error():
    with pytest.raises(ValueError, match=r"`initial_mean_square`.*-1.*Example"):
        RMSprop(initial_mean_square=-1.0)
