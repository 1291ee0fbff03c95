"""Layers outside of an `AlignedModel`: without the argument `training`, with several uses, and in a `RematScope`."""

import logging

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import RULE_CONFIGS
from layer_table import TABLE, build, call, connections

from neural_alignment import layers
from neural_alignment.alignments import (
    AlignProp,
    AlignZero,
    Feedback,
    InputPath,
    Symmetric,
    WeightMirror,
    forward_pass,
    from_config,
    networkwise_rules,
)
from neural_alignment.models.rnn import Recurrent

X = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)


class WithoutTraining(keras.Model):
    """A model whose method `call` has no argument `training`."""

    def __init__(self, rule):
        super().__init__(name="net")
        self.hidden = layers.Dense(3, activation="tanh", alignment=rule)
        self.readout = layers.Dense(2, alignment=rule)

    def call(self, inputs):
        """Returns the outputs."""
        return self.readout(self.hidden(inputs))


def gradients(model, x=X, **options):
    """Returns the gradients of the sum of the outputs to the inputs and the trainable variables."""
    x = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        total = tf.reduce_sum(call(model, x, **options))
    return tape.gradient(total, [x, *(variable.value for variable in model.trainable_variables)])


def warnings_of(caplog, function, *args, **options):
    """Returns the result of a function and the warnings that it logs."""
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        result = function(*args, **options)
    return result, [record.getMessage() for record in caplog.records if record.name.startswith("neural_alignment")]


@pytest.mark.parametrize("rule", networkwise_rules())
def test_a_gradient_without_training_is_refused_with_a_rule_for_a_whole_network(rule):
    """Otherwise it would be backpropagation."""
    model = WithoutTraining(from_config({"rule": rule}))
    assert model(X).shape == (4, 2)
    with pytest.raises(ValueError, match=rf"'{rule}' is a rule for a whole network.*AlignedModel\("):
        gradients(model)
    with forward_pass():
        assert gradients(model)[0] is not None


def test_fit_of_a_model_without_the_argument_is_refused_with_a_rule_for_a_whole_network():
    model = WithoutTraining(AlignZero())
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match="is a rule for a whole network"):
        model.fit(X, np.zeros((4, 2)), verbose=0)


@pytest.mark.parametrize("name", ["LSTM", "MultiHeadAttention", "SeparableConv1D", "Recurrent"])
def test_layers_of_every_kind_refuse_such_a_gradient(name):
    x = np.zeros((2, *(TABLE[name].inputs if name in TABLE else (4, 5))), np.float32)
    layer = build(name, alignment=AlignZero()) if name in TABLE else Recurrent(3, 2, AlignZero())
    assert call(layer, x) is not None
    with pytest.raises(ValueError, match="is a rule for a whole network"):
        gradients(layer, x)
    assert gradients(layer, x, training=False)[0] is not None


def test_with_backward_kernels_such_a_gradient_travels_through_b_and_a_warning_names_the_model_once(caplog):
    for rule in (Symmetric(self_=0.1, decay=0.1), from_config(RULE_CONFIGS["brsf"])):
        model = WithoutTraining(rule)
        _, (warning,) = warnings_of(caplog, gradients, model)
        assert "WithoutTraining 'net' computes gradients without training=True" in warning
        assert f"rule '{rule.rule}'" in warning
        assert warnings_of(caplog, gradients, model)[1] == []
    layer = layers.Dense(2, alignment=Symmetric(self_=0.1, decay=0.1))
    layer(X)
    np.testing.assert_allclose(gradients(layer)[0], np.tile(layer.backward_kernel.numpy().sum(axis=0), (4, 1)), 1e-6)
    for rule in (Feedback(), AlignProp()):  # Nothing is lost.
        assert warnings_of(caplog, gradients, WithoutTraining(rule))[1] == []


def test_inference_training_and_a_forward_pass_give_no_warning(caplog):
    rule = Symmetric(self_=0.1, decay=0.1)
    layer = layers.Dense(2, alignment=rule)
    layer(X)
    for training in (False, True):
        assert warnings_of(caplog, gradients, layer, training=training)[1] == []
    assert warnings_of(caplog, layer, X)[1] == []
    with forward_pass():
        assert warnings_of(caplog, gradients, layer)[1] == []


@pytest.mark.parametrize("name", ["SimpleRNN", "LSTM", "GRU"])
def test_recurrent_layers_and_those_after_them_record_w_at_the_first_step_without_training(name):
    recurrent = getattr(layers, name)(3, alignment=AlignProp())
    dense = layers.Dense(2, alignment=AlignProp())
    model = keras.Sequential([keras.Input((4, 2)), recurrent, dense])
    gradients(model, np.zeros((2, 4, 2), np.float32))
    for layer in (recurrent, dense):
        assert all(int(each.step) == 1 for each in connections(layer).values())


def test_a_native_recurrent_layer_has_no_dropout_without_training():
    layer = layers.LSTM(3, dropout=0.9, recurrent_dropout=0.9)
    x = np.ones((2, 4, 2), np.float32)
    np.testing.assert_array_equal(layer(x), layer(x, training=False))


# Steps.


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "graph"])
def test_a_step_of_a_shared_layer_is_counted_once_and_its_uses_have_the_same_noise(compiled):
    rule = WeightMirror(amp=1.0, decay=0.0, input=InputPath(noise="normal"))
    shared, inputs = layers.Dense(2, alignment=rule), keras.Input((3,))
    model = keras.Model(inputs, keras.layers.Add()([shared(inputs), shared(inputs)]))

    def step(x):
        model(x, training=True)
        return [tf.identity(loss) for loss in model.losses]

    step, seen = tf.function(step, autograph=False) if compiled else step, []
    for number in range(3):
        assert int(shared.connection().step) == number
        one, other = step(tf.constant(X))
        assert float(one) == float(other)
        seen.append(float(one))
    assert len(set(seen)) == 3
    # Two outermost calls are two steps.
    shared(X, training=True)
    assert int(shared.connection().step) == 4


# Recomputation.


def test_a_layer_that_would_be_computed_again_in_the_backward_pass_is_refused():
    rule = Feedback()
    message = r"`keras.RematScope` must not include.*Received layer 'one'"
    for scope in ({"mode": "full"}, {"mode": "larger_than"}, {"mode": "list_of_layers", "layer_names": ["one"]}):
        with keras.RematScope(**scope):
            for make in (
                lambda: layers.Dense(2, alignment=rule, name="one"),
                lambda: layers.LSTM(2, alignment=rule, name="one"),
                lambda: layers.MultiHeadAttention(2, 2, alignment=rule, name="one"),
            ):
                with pytest.raises(ValueError, match=message):
                    make()
            layers.Dense(2, name="one")
    with keras.RematScope(mode="activations"):
        layers.Dense(2, alignment=rule)
    with keras.RematScope(mode="list_of_layers", layer_names=["one"]):
        layers.Dense(2, alignment=rule, name="other")
