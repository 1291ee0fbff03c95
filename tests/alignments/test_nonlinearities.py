"""The nonlinearities of Keras, found in a graph and named."""

import keras
import numpy as np
import pytest
from helpers import for_each

from neural_alignment.alignments.nonlinearities import _FUNCTIONS, argument_of, is_nonlinearity
from neural_alignment.keras_internals import creator

VALUES = np.linspace(-5.0, 5.0, 40, dtype=np.float32).reshape(10, 4)


def operation(function, **arguments):
    """Returns the operation that a function of `keras.ops` creates."""
    return creator(function(keras.KerasTensor((None, 4)), **arguments))


@for_each("name", [name for name in _FUNCTIONS if hasattr(keras.ops, name)])
def test_the_name_is_that_of_an_activation_with_the_same_values(name):
    function = getattr(keras.ops, name)
    arguments = {"threshold": 0.0, "default_value": 0.0} if name == "threshold" else {}
    found = operation(function, **arguments)
    assert is_nonlinearity(found)
    named = {"exp": "exponential"}.get(name, name)
    # The default of `keras.ops.gelu` is not that of the activation. Old versions of Keras have fewer activations.
    if name in ("glu", "threshold", "gelu") or not hasattr(keras.activations, named):
        assert argument_of(found) is None
    else:
        assert argument_of(found) == named
        expected = keras.activations.get(argument_of(found))(VALUES)
        np.testing.assert_allclose(function(VALUES), expected, rtol=1e-5, atol=1e-6)


def test_options_belong_to_a_name(caplog):
    assert argument_of(operation(keras.ops.gelu, approximate=False)) == "gelu"
    assert argument_of(operation(keras.activations.relu)) == "relu"
    assert argument_of(keras.layers.LeakyReLU(negative_slope=0.2)) == "leaky_relu"
    assert not caplog.text
    assert argument_of(keras.layers.LeakyReLU(negative_slope=0.3)) is None
    assert "has options that no named activation has" in caplog.text


def test_an_activation_is_given_by_name_or_as_it_is():
    own = lambda inputs: 2 * inputs  # noqa: E731 - a function that Keras cannot serialise
    assert argument_of(keras.layers.Activation("silu")) == argument_of(keras.layers.Activation("swish")) == "silu"
    assert argument_of(keras.layers.Activation("relu")) == argument_of(keras.layers.ReLU()) == "relu"
    assert argument_of(keras.layers.Activation(own)) is own
    layer = keras.layers.PReLU()
    assert type(keras.activations.get(argument_of(keras.layers.Activation(layer)))) is keras.layers.PReLU
    assert keras.activations.get(argument_of(keras.layers.Activation(layer))) is not layer


@pytest.mark.parametrize("function", [keras.ops.square, keras.ops.negative, keras.activations.linear])
def test_other_functions_are_no_nonlinearities(function):
    other = keras.layers.Activation("linear") if function is keras.activations.linear else operation(function)
    assert not is_nonlinearity(other)
