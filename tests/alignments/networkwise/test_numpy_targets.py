"""Direct random target projection in a dense network, against float64 NumPy."""

import keras
import numpy as np
import pytest
from helpers import assert_close, assert_differs, exhaustive_unless

from neural_alignment.alignments import DirectTargetProjection
from neural_alignment.layers import Dense
from neural_alignment.losses import HalfSquaredError
from neural_alignment.training import AlignedModel
from optimizers import Momentum, MultiOptimizer

pytestmark = pytest.mark.usefixtures("float64")

CLASSES, BATCH, STEPS, RATE = 3, 8, 6, 0.5


def library(minibatches=1, loss=None, classes=CLASSES, **options):
    keras.utils.set_random_seed(4)
    inputs = keras.Input((5,))
    hidden = Dense(6, activation="tanh", alignment=DirectTargetProjection(), name="first")(inputs)
    hidden = keras.layers.Activation("tanh")(Dense(4, alignment=DirectTargetProjection(), name="second")(hidden))
    model = AlignedModel(inputs, Dense(classes, alignment=DirectTargetProjection(), name="readout")(hidden))
    loss = loss or keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="mean_with_sample_weight")
    model.compile(MultiOptimizer([Momentum(RATE, 0.0)]), loss, minibatches=minibatches, **options)
    return model


def batches():
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(STEPS, BATCH, 5)), rng.integers(0, CLASSES, (STEPS, BATCH))
    return x, labels, rng.choice([0.0, 1.0, 3.0], (STEPS, BATCH))


def weights(model):
    return [variable.numpy() for variable in model.trainable_variables]


def softmax(logits):
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


def sigmoid(logits):
    return 1 / (1 + np.exp(-logits))


def numpy_steps(start, maps, x, targets, shares, sign=-1.0, probabilities=softmax):
    """Returns the weights after training with the shares of examples in J `(steps, batch)`."""
    w1, b1, w2, b2, w3, b3 = (each.copy() for each in start)
    for x_t, target, share in zip(x, targets, shares, strict=True):
        h1 = np.tanh(x_t @ w1 + b1)
        h2 = np.tanh(h1 @ w2 + b2)
        e3 = (probabilities(h2 @ w3 + b3) - target) * share[:, None]
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
    targets, shares = np.eye(CLASSES)[labels], np.full((STEPS, BATCH), 1 / BATCH)
    compare(model, numpy_steps(start, maps_of(model), x, targets, shares), start)
    assert_differs(weights(model)[0], numpy_steps(start, maps_of(model), x, targets, shares, sign=1.0)[0], by=0.05)


CODES = np.array([[0, 1, 1, 0, 0, 0], [1, 0, 0, 0, 0, 1], [0, 0, 0, 1, 1, 0]])


@pytest.mark.parametrize("minibatches", [1, 4])
@pytest.mark.parametrize("factor", ["of the loss", "of the reduction"])
def test_a_sum_of_squares_has_the_codes_of_the_classes_as_targets(minibatches, factor):
    """The loss is a mean times the number of examples, or a sum."""
    examples, reduction = (BATCH, "mean_with_sample_weight") if factor == "of the loss" else (1, "sum")
    loss = HalfSquaredError(CODES, examples, label_smoothing=0.1, reduction=reduction)
    model = library(minibatches, loss, classes=6, jit_compile=False)
    start, (x, labels, _) = weights(model), batches()
    for x_t, labels_t in zip(x[:2], labels, strict=False):
        model.train_on_batch(x_t, labels_t)
    options = {"shares": np.ones((2, BATCH)), "probabilities": lambda outputs: outputs}
    targets = 0.8 * CODES[labels[:2]] + 0.1
    compare(model, numpy_steps(start, maps_of(model), x[:2], targets, **options), start)
    one_hot = np.eye(6)[labels[:2]]
    assert_differs(weights(model)[0], numpy_steps(start, maps_of(model), x[:2], one_hot, **options)[0], by=0.02)


class OwnLoss(keras.losses.Loss):
    """Has attributes with the names of those of `HalfSquaredError`, of another meaning."""

    examples, targets = ["some"], "classes"

    def call(self, y_true, y_pred):
        return keras.losses.sparse_categorical_crossentropy(y_true, y_pred, from_logits=True)


def test_attributes_of_another_loss_are_not_taken_for_codes_and_factors():
    model = library(loss=OwnLoss(), run_eagerly=True)
    start, (x, labels, _) = weights(model), batches()
    model.train_on_batch(x[0], labels[0])
    expected = numpy_steps(start, maps_of(model), x[:1], np.eye(CLASSES)[labels[:1]], np.full((1, BATCH), 1 / BATCH))
    compare(model, expected, start)


def by_sum(weight):
    return weight


def by_size(weight):
    return weight / BATCH


def by_weight(weight):
    return weight / weight.sum(axis=1, keepdims=True)


SHARES = {
    "sum": by_sum,
    None: by_sum,
    "none": by_sum,
    "sum_over_batch_size": by_size,
    "mean": by_size,
    "mean_with_sample_weight": by_weight,
}
"""Reduction of a loss -> the derivative of J to the losses of the examples, from their sample weights."""


REDUCTIONS = [(reduction, weighted) for reduction in SHARES for weighted in ("weighted", "unweighted")]


@pytest.mark.parametrize(
    ("reduction", "weighted"),
    exhaustive_unless(REDUCTIONS, lambda case: case[1] == "weighted" or case[0] in ("sum", "sum_over_batch_size")),
)
def test_an_example_has_the_share_in_j_that_the_reduction_of_the_loss_gives_it(reduction, weighted):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction=reduction)
    model = library(loss=loss, run_eagerly=True)
    start, (x, labels, sample_weight) = weights(model), batches()
    for x_t, labels_t, weight in zip(x, labels, sample_weight, strict=True):
        model.train_on_batch(x_t, labels_t, *([weight] if weighted == "weighted" else []))
    targets, maps = np.eye(CLASSES)[labels], maps_of(model)
    used = sample_weight if weighted == "weighted" else np.ones_like(sample_weight)
    compare(model, numpy_steps(start, maps, x, targets, SHARES[reduction](used)), start)
    right = SHARES[reduction](used)
    for other in (by_sum(used), by_size(used), by_weight(used)):
        if not np.allclose(other, right):
            assert_differs(weights(model)[0], numpy_steps(start, maps, x, targets, other)[0], by=0.02)


@pytest.mark.parametrize("loss", ["sparse_categorical_crossentropy", keras.losses.sparse_categorical_crossentropy])
def test_a_loss_given_by_name_or_function_is_a_mean_over_the_batch(loss):
    """The sum of its weights is not that of the batch, and `loss_weights` multiplies J."""
    for factor in (1.0, 3.0):
        model = library(loss=loss, run_eagerly=True, loss_weights=factor)
        start, (x, labels, sample_weight) = weights(model), batches()
        model.train_on_batch(x[0], labels[0], sample_weight[0])
        targets, shares = np.eye(CLASSES)[labels[:1]], factor * sample_weight[:1] / BATCH
        expected = numpy_steps(start, maps_of(model), x[:1], targets, shares)
        for actual, right in zip(weights(model)[:4], expected[:4], strict=True):
            assert_close(actual, right)


@pytest.mark.parametrize("shape", [(BATCH,), (BATCH, 1)], ids=["classes", "column"])
def test_a_single_logit_has_the_class_as_its_target(shape):
    model = library(loss=keras.losses.BinaryCrossentropy(from_logits=True), classes=1, run_eagerly=True)
    start, (x, labels, _) = weights(model), batches()
    labels = labels % 2
    for x_t, labels_t in zip(x, labels, strict=True):
        model.train_on_batch(x_t, labels_t.reshape(shape))
    shares, targets = np.full((STEPS, BATCH), 1 / BATCH), labels[..., None]
    maps = maps_of(model)
    assert [each.shape[-1] for each in maps] == [1, 1]
    compare(model, numpy_steps(start, maps, x, targets, shares, probabilities=sigmoid), start)
    centred = numpy_steps(start, maps, x, 2 * targets - 1, shares, probabilities=sigmoid)
    assert_differs(weights(model)[0], centred[0], by=0.02)


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
