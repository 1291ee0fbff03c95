"""Fixtures of all tests."""

import gc
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # As the command line has it.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # NumPy's would spin beside those of the other test processes.

import numpy as np
import pytest
import tensorflow as tf

# Graphs are many objects that live long: at Python's own thresholds the collector takes 6 % of the time.
gc.set_threshold(100_000, 50, 50)

# Four devices to share a batch among; what asks for none computes on the first, as always.
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 4
)


@pytest.fixture
def rng():
    """A generator of the same numbers in every test."""
    return np.random.default_rng(20200213)


@pytest.fixture
def float64():
    """Makes float64 the dtype of new layers and optimizers."""
    import keras

    floatx, policy = keras.config.floatx(), keras.config.dtype_policy()
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_floatx(floatx)
    keras.config.set_dtype_policy(policy)
