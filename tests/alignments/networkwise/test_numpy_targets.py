"""Direct random target projection in a dense network, against float64 NumPy."""

import keras
import numpy as np
import pytest
from helpers import assert_close, assert_differs

from neural_alignment.alignments import DirectTargetProjection
from neural_alignment.layers import Dense
from neural_alignment.training import AlignedModel
from optimizers import Momentum, MultiOptimizer

pytestmark = pytest.mark.usefixtures("float64")

CLASSES, BATCH, STEPS, RATE = 3, 8, 6, 0.5


def library(minibatches=1, loss=None, **options):
    keras.utils.set_random_seed(4)
    inputs = keras.Input((5,))
    hidden = Dense(6, activation="tanh", alignment=DirectTargetProjection(), name="first")(inputs)
    hidden = keras.layers.Activation("tanh")(Dense(4, alignment=DirectTargetProjection(), name="second")(hidden))
    model = AlignedModel(inputs, Dense(CLASSES, alignment=DirectTargetProjection(), name="readout")(hidden))
    loss = loss or keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="mean_with_sample_weight")
    model.compile(MultiOptimizer([Momentum(RATE, 0.0)]), loss, minibatches=minibatches, **options)
    return model


def batches():
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(STEPS, BATCH, 5)), rng.integers(0, CLASSES, (STEPS, BATCH))
    return x, labels, rng.choice([0.0, 1.0, 3.0], (STEPS, BATCH))


def weights(model):
    return [variable.numpy() for variable in model.trainable_variables]


def numpy_steps(start, maps, x, labels, shares, sign=-1.0):
    """Returns the weights after training with the shares of examples in J `(steps, batch)`."""
    w1, b1, w2, b2, w3, b3 = (each.copy() for each in start)
    for x_t, labels_t, share in zip(x, labels, shares, strict=True):
        target = np.eye(CLASSES)[labels_t]
        h1 = np.tanh(x_t @ w1 + b1)
        h2 = np.tanh(h1 @ w2 + b2)
        exponentials = np.exp(h2 @ w3 + b3)
        e3 = (exponentials / exponentials.sum(axis=1, keepdims=True) - target) * share[:, None]
        e1, e2 = (
            sign * share[:, None] * (target @ weight.T) * (1 - h**2) for h, weight in zip((h1, h2), maps, strict=True)
        )
        for w, b, before, error in ((w1, b1, x_t, e1), (w2, b2, h1, e2), (w3, b3, h2, e3)):
            w -= RATE * before.T @ error
            b -= RATE * error.sum(axis=0)
    return [w1, b1, w2, b2, w3, b3]


def compare(model, expected, start):
    for actual, right, before in zip(weights(model), expected, start, strict=True):
        assert_close(actual, right)
        assert_differs(actual, before)


def maps_of(model):
    return [weight.numpy() for weight in model.feedback_weights.weights]


@pytest.mark.parametrize("minibatches", [1, 4])
@pytest.mark.parametrize("coded", [False, True], ids=["classes", "one-hot"])
def test_dense_layers_get_the_projected_target(minibatches, coded):
    loss = keras.losses.CategoricalCrossentropy(from_logits=True) if coded else None
    model = library(minibatches, loss, jit_compile=False)
    start, (x, labels, _) = weights(model), batches()
    for x_t, labels_t in zip(x, labels, strict=True):
        model.train_on_batch(x_t, np.eye(CLASSES)[labels_t] if coded else labels_t)
    shares = np.full((STEPS, BATCH), 1 / BATCH)
    compare(model, numpy_steps(start, maps_of(model), x, labels, shares), start)
    assert_differs(weights(model)[0], numpy_steps(start, maps_of(model), x, labels, shares, sign=1.0)[0], by=0.05)


def test_an_example_counts_as_its_weight_in_j_says():
    model = library(run_eagerly=True)
    start, (x, labels, sample_weight) = weights(model), batches()
    for each in zip(x, labels, sample_weight, strict=True):
        model.train_on_batch(*each)
    shares = sample_weight / sample_weight.sum(axis=1, keepdims=True)
    compare(model, numpy_steps(start, maps_of(model), x, labels, shares), start)


def test_the_error_of_hidden_layers_is_scaled_with_j_in_half_precision():
    """A loss scale that reached only the readout would change the hidden layers by a factor of 32,768."""
    changes = []
    for policy in ("float32", "mixed_float16"):
        keras.config.set_dtype_policy(policy)  # The fixture sets it back.
        model = library(run_eagerly=True)
        start, (x, labels, _) = weights(model), batches()
        model.train_on_batch(x[0], labels[0])
        changes.append([after - before for after, before in zip(weights(model), start, strict=True)])
    for exact, half in zip(*changes, strict=True):
        np.testing.assert_allclose(half, exact, rtol=0, atol=0.02 * np.abs(exact).max())
