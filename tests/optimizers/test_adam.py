"""Adam with the fused update, compared with Keras' Adam and with the formula."""

import keras
import numpy as np
import pytest
from helpers import assert_close, assert_differs

from optimizers import Adam

STEPS = 5


def run(optimizer, rng_seed=0, dtype="float64"):
    """Moves one variable by the same gradients."""
    rng = np.random.default_rng(rng_seed)
    variable = keras.Variable(rng.normal(size=(4, 3)), dtype=dtype)
    optimizer.build([variable])
    for _ in range(STEPS):
        gradient = rng.normal(size=(4, 3)) * 10.0 ** rng.integers(-6, 2, size=(4, 3))
        optimizer.apply([keras.ops.cast(gradient, dtype)], [variable])
    return np.asarray(variable.value, np.float64)


def formula(rate, beta_1, beta_2, epsilon, rng_seed=0):
    """The same by NumPy (Kingma and Ba 2015)."""
    rng = np.random.default_rng(rng_seed)
    w = rng.normal(size=(4, 3))
    m, v = np.zeros_like(w), np.zeros_like(w)
    for t in range(1, STEPS + 1):
        g = rng.normal(size=(4, 3)) * 10.0 ** rng.integers(-6, 2, size=(4, 3))
        m, v = beta_1 * m + (1 - beta_1) * g, beta_2 * v + (1 - beta_2) * g**2
        w -= rate * np.sqrt(1 - beta_2**t) / (1 - beta_1**t) * m / (np.sqrt(v) + epsilon)
    return w


def test_the_update_is_the_formula_and_keras_own(float64):
    options = {"beta_1": 0.8, "beta_2": 0.95, "epsilon": 1e-5}
    ours = run(Adam(0.1, **options))
    assert_close(ours, formula(0.1, **options))
    # Keras rounds its constants to float32.
    assert_close(ours, run(keras.optimizers.Adam(0.1, **options)), "float32")
    assert_differs(ours, formula(0.1, **{**options, "epsilon": 1e-8}))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_moments_are_of_single_precision_at_least(dtype):
    """The decay 0.999 rounds to 1 in bfloat16."""
    optimizer = Adam(0.1)
    ours = run(optimizer, dtype=dtype)
    assert_close(ours, formula(0.1, 0.9, 0.999, 1e-8), dtype if dtype != "float16" else "bfloat16")
    slots = [each for each in optimizer.variables if each.shape == (4, 3)]
    assert [each.dtype for each in slots] == ["float32", "float32"]
    assert [each.name.rpartition("_")[2] for each in slots] == ["momentum", "velocity"]


def test_a_gradient_of_zero_does_not_move_a_half_precision_variable():
    """The epsilon 1e-8 rounds to 0 in float16."""
    variable = keras.Variable(np.ones(2), dtype="float16")
    optimizer = Adam(0.1)
    optimizer.build([variable])
    optimizer.apply([keras.ops.convert_to_tensor([0.0, 1.0], "float16")], [variable])
    np.testing.assert_allclose(variable.numpy(), [1.0, 0.9], rtol=1e-3)


def test_the_epsilon_is_that_of_tensorflow_1():
    assert Adam().epsilon == 1e-8


def test_amsgrad_is_refused():
    with pytest.raises(ValueError, match="`amsgrad` must be False"):
        Adam(amsgrad=True)


def test_it_is_saved_and_loaded_with_its_slots(float64):
    optimizer = Adam(0.1, clipvalue=0.5)
    run(optimizer)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(optimizer))
    assert isinstance(again, Adam)
    assert again.get_config() == optimizer.get_config()
