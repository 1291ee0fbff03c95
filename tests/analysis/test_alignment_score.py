"""The alignment score against traces of explicit matrices, and W* against gradient descent on a frozen network."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import ConvReference, assert_close, for_each
from layer_table import TABLE, call, make

from neural_alignment import layers, models
from neural_alignment.alignments import AlignAda
from neural_alignment.analysis.alignment_score import alignment_score, permuted_change
from neural_alignment.losses import SquaredError
from neural_alignment.operations import ConvMap, DenseMap
from neural_alignment.training import AlignedModel
from neural_alignment.training.lockstep import Lockstep
from optimizers import Momentum, MultiOptimizer, RateScheduler

SHAPE = (5, 4, 2)


def kernels(rng, shape=(3, 3, 2, 3)):
    first = rng.normal(size=shape)
    return first, first + 0.5 * rng.normal(size=shape)


def trace_formula(a, b):
    """Equation 10 with explicit traces, for matrices (inputs, outputs)."""
    ours, theirs = a @ a.T, b @ b.T
    return np.trace(ours @ theirs) / np.sqrt(np.trace(ours @ ours) * np.trace(theirs @ theirs))


@pytest.mark.parametrize("strides", [(1, 1), (2, 2)])
def test_probes_estimate_the_trace_formula_of_the_full_operator(rng, strides):
    first, second = kernels(rng)
    reference = ConvReference(strides, "SAME")
    basis = np.eye(np.prod(SHAPE)).reshape(-1, *SHAPE)
    matrices = [reference.project(basis, kernel).reshape(len(basis), -1) for kernel in (first, second)]
    linear_map = ConvMap(strides, "SAME")
    exact = trace_formula(*matrices)
    score = alignment_score(linear_map, first, second, SHAPE, probes=2000)
    assert abs(score.value - exact) < 4 * score.standard_error < 0.05
    # Ignoring space, or using equation 9 as printed, would give another result.
    flat = [kernel.reshape(-1, 3) for kernel in (first, second)]
    assert abs(trace_formula(*flat) - exact) > 4 * score.standard_error
    ours, theirs = (matrix @ matrix.T for matrix in matrices)
    assert abs(np.trace(ours @ theirs) / np.sqrt(np.trace(ours) * np.trace(theirs)) - exact) > 1


def test_the_standard_error_is_that_of_repeated_estimates(rng):
    first, second = kernels(rng, (6, 4))
    scores = [alignment_score(DenseMap(), first, second, (6,), probes=100, seed=seed) for seed in range(60)]
    spread = np.std([score.value for score in scores], ddof=1)
    assert 0.7 < np.mean([score.standard_error for score in scores]) / spread < 1.4
    exact = trace_formula(first, second)
    assert abs(np.mean([score.value for score in scores]) - exact) < 4 * spread / np.sqrt(60)


def test_the_score_is_a_cosine(rng):
    first, second = kernels(rng, (6, 4))
    assert alignment_score(DenseMap(), first, -3 * first, (6,)).value == pytest.approx(1.0, abs=1e-9)
    orthogonal = np.zeros_like(first), np.zeros_like(first)
    orthogonal[0][:3], orthogonal[1][3:] = first[:3], second[3:]
    assert alignment_score(DenseMap(), *orthogonal, (6,)).value == pytest.approx(0.0, abs=1e-12)
    assert np.isnan(alignment_score(DenseMap(), first, 0 * first, (6,)).value)


def test_the_permuted_baseline_keeps_the_weights_and_loses_their_places(rng):
    weights, initial = kernels(rng, (6, 4))
    change = permuted_change(weights, initial, seed=1)
    assert_close(np.sort((change + initial).ravel()), np.sort(weights.ravel()))
    assert not np.allclose(change, weights - initial, atol=0.1)


def test_wrong_input_is_one_line(rng):
    first, _ = kernels(rng, (6, 4))
    with pytest.raises(ValueError, match=r"same shape.*Example"):
        alignment_score(DenseMap(), first, first.T, (6,))
    with pytest.raises(ValueError, match="`probes` must be at least 2"):
        alignment_score(DenseMap(), first, first, (6,), probes=1)


@pytest.mark.usefixtures("float64")
def test_the_reference_network_is_updated_by_the_gradients_of_the_trained_one(rng):
    """Compares with a second model whose weights never change."""
    x, y = rng.random((4, 5, 4, 6, 2)), rng.integers(0, 3, (4, 5))

    def network():
        keras.utils.set_random_seed(3)
        model = models.wide_cnn("kmnist", 3, 3, (4, 6, 2))
        model = AlignedModel(model.input, model.output)
        model.compile(MultiOptimizer([keras.optimizers.SGD(0.5)]), loss=SquaredError(0.1))
        return model

    together, alone, still = network(), network(), network()
    lockstep = Lockstep(together)
    expected = [np.zeros(v.shape) for v in still.trainable_variables]
    for inputs, labels in zip(x, y, strict=True):
        error = 2 * (alone(inputs).numpy() - (np.eye(3)[labels] - 0.1)) / 15
        with tf.GradientTape() as tape:
            outputs = still(inputs)
        gradients = tape.gradient(outputs, [v.value for v in still.trainable_variables], output_gradients=error)
        expected = [total - 0.5 * gradient.numpy() for total, gradient in zip(expected, gradients, strict=True)]
        alone.train_on_batch(inputs, labels)
        lockstep.step(inputs, labels)
    places = {v.path: number for number, v in enumerate(still.trainable_variables)}
    for name, change in lockstep.reference_changes().items():
        assert_close(change, expected[places[f"{name}/kernel"]])
        assert_close(lockstep.changes()[name], alone.get_layer(name).kernel.numpy() - still.get_layer(name).kernel)
        assert not np.allclose(change, lockstep.changes()[name], rtol=1e-3)
    alone.compile(MultiOptimizer([Momentum(0.5)]), loss=SquaredError(0.1))
    with pytest.raises(ValueError, match=r"plain gradient descent\. Received 'Momentum"):
        Lockstep(alone)
    alone.compile(keras.optimizers.SGD(0.5, clipnorm=1.0), loss=SquaredError(0.1))
    with pytest.raises(ValueError, match=r"plain gradient descent\. Received 'SGD clipnorm"):
        Lockstep(alone)
    for options, told in (
        ({"optimizer": keras.optimizers.SGD(0.5, gradient_accumulation_steps=2)}, "SGD gradient_accumulation_steps"),
        (
            {"optimizer": MultiOptimizer([keras.optimizers.SGD(0.5)], RateScheduler(5, delay_epochs=1))},
            "SGD that skips some steps",
        ),
    ):
        alone.compile(**options, loss=SquaredError(0.1))
        with pytest.raises(ValueError, match=f"plain gradient descent. Received '{told}"):
            Lockstep(alone)
    divided = models.fc([3], 3, (4,))
    divided = AlignedModel(divided.input, divided.output)
    divided.compile(keras.optimizers.SGD(0.5), loss=SquaredError(0.1), minibatches=2)
    with pytest.raises(ValueError, match="Received 'SGD in 2 minibatches'"):
        Lockstep(divided)
    with pytest.raises(ValueError, match="Received 'a model that is not compiled"):
        Lockstep(AlignedModel(alone.input, alone.output))
    aligned = models.wide_cnn("kmnist", 3, 3, (4, 6, 2), AlignAda())
    aligned = AlignedModel(aligned.input, aligned.output)
    aligned.compile(keras.optimizers.SGD(0.5), loss=SquaredError(0.1))
    with pytest.raises(ValueError, match=r"trained by backpropagation\. Received 'align_ada at conv1'"):
        Lockstep(aligned)


WITHOUT_KERNEL = (
    *("SeparableConv1D", "SeparableConv2D", "MultiHeadAttention", "GroupQueryAttention"),
    *("SimpleRNN", "LSTM", "GRU", "GRU before", "TimeDistributed", "frozen"),
)
"""Layers with several kernels, with those of another layer, or with one that is not trained."""


WRAPPED_OR_FROZEN = ("TimeDistributed", "frozen")
OFTEN = ("Dense", "Conv2D grouped", "SeparableConv1D", "MultiHeadAttention", "GRU", *WRAPPED_OR_FROZEN)
"""A layer of each kind."""


@pytest.mark.exhaustive
@for_each("row", OFTEN)
def test_changes_have_the_layers_with_a_trained_kernel(row):
    assert_changes_of_trained_kernels(row)


@pytest.mark.exhaustive
@for_each("row", [row for row in TABLE if row not in OFTEN])
def test_changes_of_the_other_layers_have_those_with_a_trained_kernel(row):
    assert_changes_of_trained_kernels(row)


def assert_changes_of_trained_kernels(row):
    """A layer of the package stands before a dense layer, which always has a trained kernel."""
    if row == "TimeDistributed":
        layer, shape = layers.TimeDistributed(layers.Dense(3), name="layer"), (2, 4)
    elif row == "frozen":
        layer, shape = layers.Dense(3, name="layer", trainable=False), (4,)
    else:
        layer, shape = make(row), TABLE[row].inputs
    inputs = keras.Input(shape)
    hidden = keras.layers.Flatten()(call(layer, inputs))
    model = AlignedModel(inputs, layers.Dense(2, name="readout")(hidden))
    model.compile(keras.optimizers.SGD(0.1), "mse", run_eagerly=True)
    lockstep, before = Lockstep(model), model.get_layer("readout").kernel.numpy()
    rng = np.random.default_rng(3)
    lockstep.step(rng.normal(size=(3, *shape)).astype("float32"), np.ones((3, 2), "float32"))
    expected = {"readout"} if row in WITHOUT_KERNEL else {"layer", "readout"}
    assert {*lockstep.changes()} == {*lockstep.reference_changes()} == expected
    assert_close(lockstep.changes()["readout"], model.get_layer("readout").kernel.numpy() - before)
    for name, change in lockstep.changes().items():  # The first step of W* is that of the network.
        assert np.abs(change).max() > 0
        assert_close(change, lockstep.reference_changes()[name])


def test_a_step_in_lockstep_changes_the_network_as_a_training_step(rng):
    """Moving statistics as well, for batches of several sizes and with a loss of the activities."""

    def network():
        keras.utils.set_random_seed(3)
        inputs = keras.Input((4,))
        x = keras.layers.BatchNormalization()(keras.layers.Dense(5, activity_regularizer="l2")(inputs))
        model = AlignedModel(inputs, keras.layers.Dense(2)(x))
        model.compile(keras.optimizers.SGD(0.1), "mse")
        return model

    together, alone = network(), network()
    lockstep = Lockstep(together)
    for size in (6, 6, 3):
        x, y = rng.normal(size=(size, 4)).astype("float32"), rng.normal(size=(size, 2)).astype("float32")
        lockstep.step(x, y)
        alone.train_on_batch(x, y)
    assert any("moving" in weight.path for weight in alone.weights)
    for one, other in zip(together.weights, alone.weights, strict=True):
        np.testing.assert_allclose(one.numpy(), other.numpy(), rtol=1e-4, atol=1e-6, err_msg=one.path)
