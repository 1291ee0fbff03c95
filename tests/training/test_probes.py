"""The measures of alignment against NumPy."""

from __future__ import annotations

import functools
import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import exhaustive_unless
from recurrent_layers import CELLS, Run, Weights

from neural_alignment import layers
from neural_alignment.alignments import Feedback
from neural_alignment.losses import HalfSquaredError
from neural_alignment.training import AlignedModel, probes

BATCH, STEPS, INPUTS, HIDDEN, UNITS = 4, 5, 3, 6, 7


def degrees(one, other):
    """Returns the angle between two tensors in float64."""
    one, other = (np.asarray(value, np.float64).ravel() for value in (one, other))
    return np.degrees(np.arccos(one @ other / np.linalg.norm(one) / np.linalg.norm(other)))


def measured(model, *batch):
    """Returns the measures of a batch in a graph, as runs and the monitor compute them."""
    function = probes.measure if len(batch) == 2 else probes.measure_projections
    return tf.function(functools.partial(function, model), autograph=False)(*map(tf.constant, batch))


RECURRENT = {
    "SimpleRNN": ("SimpleRNN", {}),
    "LSTM": ("LSTM", {"go_backwards": True}),
    "GRU": ("GRU", {}),
    "GRU before": ("GRU", {"reset_after": False}),
}


@pytest.mark.parametrize("name", exhaustive_unless(RECURRENT, ("LSTM", "GRU")))
def test_pseudogradients_through_time_have_the_angles_of_numpy(name):
    """Those of both kernels of a recurrent layer and of a dense layer below it."""
    keras.utils.set_random_seed(1)
    kind, options = RECURRENT[name]
    inputs = keras.Input((STEPS, INPUTS))
    hidden = layers.Dense(HIDDEN, alignment=Feedback(), name="below")(inputs)
    outputs = getattr(layers, kind)(UNITS, return_sequences=True, alignment=Feedback(), name="above", **options)(hidden)
    model = AlignedModel(inputs, outputs)
    model.compile("sgd", "mse")
    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=(BATCH, STEPS, size)).astype("float32") for size in (INPUTS, UNITS))

    below, above = model.get_layer("below"), model.get_layer("above")
    kernels = [kernel.numpy() for kernel in (above.cell.kernel, above.cell.recurrent_kernel)]
    carried = [np.asarray(kernel).T for kernel in (above.backward_kernel, above.backward_recurrent_kernel)]
    gradients = []
    for sent in (carried, kernels):
        weights = Weights(*kernels, above.cell.bias.numpy(), *sent)
        run = Run(CELLS[name], weights, x @ below.kernel.numpy(), go_backwards=options.get("go_backwards", False))
        to_hidden, of_loop, _ = run.backward(2 * (run.outputs - y) / y.size)
        of_below = np.einsum("bti,bth->ih", x, to_hidden)
        gradients.append({
            "below": of_below, "above.kernel": of_loop.kernel, "above.recurrent_kernel": of_loop.recurrent_kernel
        })  # fmt: skip
    found = measured(model, x, y)["pseudogradient_angle"]
    assert found.keys() == gradients[0].keys()
    for connection, angle in found.items():
        expected = degrees(*(each[connection] for each in gradients))
        assert expected > 2
        assert float(angle) == pytest.approx(expected, abs=0.02)


def test_errors_too_small_for_float16_are_measured_as_they_are_trained():
    """The targets are so near to the outputs that the error in float16 is zero without the factor of J."""
    keras.utils.set_random_seed(1)
    inputs = keras.Input((INPUTS,))
    dense = functools.partial(layers.Dense, alignment=Feedback(), use_bias=False, dtype="mixed_float16")
    outputs = dense(UNITS, name="last")(dense(HIDDEN, name="first")(inputs))
    model = AlignedModel(inputs, keras.layers.Activation("linear", dtype="float32")(outputs))
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD())
    model.compile(optimizer, lambda y, outputs: 1e-7 * tf.reduce_mean(y * outputs, axis=-1))
    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=(BATCH, size)).astype("float32") for size in (INPUTS, UNITS))
    found, last = measured(model, x, y), model.get_layer("last")
    w, b = last.kernel.numpy(), np.asarray(last.backward_kernel).T
    assert float(found["local_gradient_angle"]["last"]) == pytest.approx(degrees(y @ w.T, y @ b.T), abs=0.1)
    expected = degrees(x.T @ y @ w.T, x.T @ y @ b.T)
    assert float(found["pseudogradient_angle"]["first"]) == pytest.approx(expected, abs=0.1)


def test_errors_that_are_large_do_not_overflow_in_float16():
    """A sum over the batch; the factor of training, 2^15 at its start, would be too large."""
    angles = []
    for policy in ("float32", "mixed_float16"):
        keras.utils.set_random_seed(1)
        inputs = keras.Input((INPUTS,))
        dense = functools.partial(layers.Dense, alignment=Feedback(), dtype=policy)
        model = AlignedModel(inputs, dense(UNITS, name="last")(dense(HIDDEN, name="first")(inputs)))
        model.compile(keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD()), HalfSquaredError(np.eye(UNITS), 100))
        rng = np.random.default_rng(0)
        x, y = rng.normal(size=(BATCH, INPUTS)).astype("float32"), rng.integers(0, UNITS, BATCH)
        found = measured(model, x, y)
        angles.append([float(found["pseudogradient_angle"]["first"]), float(found["local_gradient_angle"]["last"])])
    np.testing.assert_allclose(angles[1], angles[0], atol=0.2)
    assert angles[0][0] > 10


def test_the_method_compute_loss_of_a_subclass_need_not_have_the_argument_training():
    inputs = keras.Input((INPUTS,))
    model = ShortLoss(inputs, layers.Dense(UNITS, alignment=Feedback(), name="last")(inputs))
    model.compile(keras.optimizers.SGD())
    found = measured(model, np.ones((2, INPUTS), "float32"), np.ones((2, UNITS), "float32"))
    assert np.isfinite(float(found["local_gradient_angle"]["last"]))


class ShortLoss(AlignedModel):
    """Has a method `compute_loss` without the argument `training`."""

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None):
        return tf.reduce_mean(tf.square(y - y_pred))


class Sometimes(keras.layers.Layer):
    """Uses its inner layer a number of times."""

    def __init__(self, uses, **options):
        super().__init__(**options)
        self.uses, self.inner = uses, layers.Dense(INPUTS, use_bias=False, alignment=Feedback(), name="inner")

    def build(self, shape):
        self.inner.build(shape)

    def call(self, inputs, training=None):
        for _ in range(self.uses):
            inputs = self.inner(inputs, training=training)
        return inputs


def sometimes(uses):
    keras.utils.set_random_seed(1)
    inputs = keras.Input((INPUTS,))
    model = AlignedModel(inputs, Sometimes(uses)(layers.Dense(INPUTS, alignment=Feedback(), name="first")(inputs)))
    model.compile("sgd", "mse")
    rng = np.random.default_rng(0)
    return model, *(rng.normal(size=(BATCH, INPUTS)).astype("float32") for _ in range(2))


def test_angles_of_a_layer_that_is_not_called_are_nan():
    model, x, y = sometimes(uses=0)
    for found in (measured(model, x), measured(model, x, y)):
        for measure, row in found.items():
            assert set(row) == {"first", "inner"}
            assert math.isnan(row["inner"]) == (measure not in probes.KERNEL_MEASURES)
            assert np.isfinite(row["first"])


def test_angles_of_a_layer_that_is_called_twice_are_those_of_both_calls():
    model, x, y = sometimes(uses=2)
    inner, first = model.layers[-1].inner, model.get_layer("first")
    w, b = inner.kernel.numpy(), np.asarray(inner.backward_kernel).T
    seen = x @ first.kernel.numpy()
    both = np.concatenate([seen, seen @ w])
    for found in (measured(model, x), measured(model, x, y)):
        assert float(found["projection_angle"]["inner"]) == pytest.approx(degrees(both @ w, both @ b), abs=0.02)
    last = 2 * (seen @ w @ w - y) / y.size
    errors = np.concatenate([last @ b.T, last])
    assert float(found["local_gradient_angle"]["inner"]) == pytest.approx(degrees(errors @ w.T, errors @ b.T), abs=0.02)


@pytest.mark.parametrize(("w", "b"), [(0.0, 1.0), (0.0, 0.0), (np.inf, 1.0), (1.0, np.nan)])
def test_measures_of_kernels_are_nan_where_they_are_not_defined(w, b):
    model, *_ = sometimes(uses=1)
    layer = model.get_layer("first")
    layer.kernel.assign(np.full_like(layer.kernel, w))
    layer.backward_kernel.assign(np.full_like(layer.kernel, b))
    for row in probes.measure_kernels(model).values():
        assert math.isnan(row["first"])
        assert np.isfinite(row["inner"])
