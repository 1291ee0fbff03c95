"""Losses against NumPy, and the criterion that compares networks."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from neural_alignment.losses import (
    ACCURACY,
    SMALLEST_LOSS,
    CodeAccuracy,
    HalfSquaredError,
    SparseTopKAccuracy,
    SquaredError,
    SummedSquaredError,
)


@pytest.mark.parametrize("shift", [0.0, 0.1])
def test_squared_error_is_the_mean_square_of_the_distance_to_the_shifted_code(rng, shift):
    labels, outputs = rng.integers(0, 4, size=6), rng.normal(size=(6, 4)).astype(np.float32)
    targets = np.eye(4)[labels] - shift
    expected = np.mean(np.square(outputs - targets))
    assert float(SquaredError(shift)(labels, outputs)) == pytest.approx(expected, rel=1e-6)
    np.testing.assert_allclose(
        SquaredError(shift).call(labels, outputs), np.square(outputs - targets).mean(axis=1), rtol=1e-5
    )


CODES = np.eye(6, dtype=int)[[4, 0, 5, 2]]

OF_CLASSES = {
    "squared error": (SquaredError(0.1), 4),
    "half squared error": (HalfSquaredError(CODES, examples=5), 6),
    "code accuracy": (CodeAccuracy(CODES), 6),
    "top k": (SparseTopKAccuracy(k=2), 4),
}


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", OF_CLASSES)
def test_labels_in_a_column_mean_the_same_as_labels_in_a_row(rng, name, weighted):
    measure, outputs = OF_CLASSES[name]
    labels, predictions = rng.integers(0, 4, size=5), rng.normal(size=(5, outputs)).astype(np.float32)
    weights = rng.uniform(size=5).astype(np.float32) if weighted else None
    found = []
    for given in (labels, labels[:, None]):
        if isinstance(measure, keras.metrics.Metric):
            measure.reset_state()
        found.append(float(measure(given, predictions, sample_weight=weights)))
    assert found[0] == found[1]
    if isinstance(measure, keras.losses.Loss):
        assert measure.call(labels[:, None], predictions).shape == (5,)
        traced = tf.function(measure.call, autograph=False)
        specs = tf.TensorSpec((None, 1), tf.int64), tf.TensorSpec((None, outputs), tf.float32)
        np.testing.assert_allclose(
            traced.get_concrete_function(*specs)(labels[:, None], predictions), measure.call(labels, predictions)
        )


@pytest.mark.parametrize("name", ["squared error", "half squared error"])
@pytest.mark.parametrize("shape", [(4, 4), (4, 6), (3,), (1,), (1, 1), ()])
def test_targets_that_are_not_one_class_for_each_example_are_refused(name, shape):
    loss, outputs = OF_CLASSES[name]
    with pytest.raises(ValueError, match=r"must be one class for each example\. Received the shape .* Example: \(4,\)"):
        loss(np.zeros(shape), np.zeros((4, outputs), np.float32))


def test_summed_squared_error_takes_sequences_of_numbers_and_refuses_other_shapes(rng):
    targets, outputs = rng.normal(size=(2, 3, 3, 1)).astype(np.float32)  # As many steps as sequences.
    expected = np.square(targets - outputs).sum(axis=(1, 2))
    for given in (targets, targets[..., 0]):
        np.testing.assert_allclose(SummedSquaredError().call(given, outputs), expected, rtol=1e-6)
        assert float(SummedSquaredError()(given, outputs)) == pytest.approx(expected.mean(), rel=1e-6)
    wide = np.zeros((3, 3, 3), np.float32)
    for wrong in (targets, targets[..., 0], targets[0], wide[:1]):
        with pytest.raises(ValueError, match=r"must be one sequence .* Received the shape .* Example: \(3, 3, 3\)"):
            SummedSquaredError()(wrong, wide)


@pytest.mark.parametrize(
    ("criterion", "values", "best"),
    [
        (ACCURACY, [0.2, 0.5, 0.5, 0.4], 1),
        (ACCURACY, [math.nan, 0.5, 0.6], 2),
        (SMALLEST_LOSS, [0.4, 0.2, 0.2, 0.3], 1),
        (SMALLEST_LOSS, [math.nan, 0.1, 0.2], 1),
        (SMALLEST_LOSS, [math.nan], None),
        (ACCURACY, [], None),
    ],
)
def test_the_best_row_is_the_first_of_equals(criterion, values, best):
    rows = [{criterion.column: value} for value in values]
    assert criterion.best(rows) is (None if best is None else rows[best])


@pytest.mark.parametrize("traced", [False, True], ids=["eager", "graph"])
@pytest.mark.parametrize("name", ["squared error", "half squared error"])
@pytest.mark.parametrize("label", [-1, 4, 7])
def test_a_class_that_does_not_exist_is_refused(name, label, traced):
    """-1 would be the last class. A class that is too large, as in classes from 1 to n, would have the target 0."""
    loss, outputs = OF_CLASSES[name]
    call = tf.function(loss, autograph=False) if traced else loss
    assert call(tf.constant([0, 3]), tf.zeros([2, outputs])) > 0
    with pytest.raises(
        tf.errors.InvalidArgumentError, match="`targets` must be classes from 0 to 3, because there are 4"
    ):
        call(tf.constant([0, label]), tf.zeros([2, outputs]))


@pytest.mark.parametrize("units", [1, 4, 7])
@pytest.mark.parametrize("name", ["half squared error", "code accuracy"])
def test_a_network_without_a_unit_for_each_place_of_the_codes_is_refused(name, units):
    """One output would be broadcast to all places."""
    with pytest.raises(ValueError, match=rf"`outputs` must have 6 units, .* Received {units}\."):
        OF_CLASSES[name][0](np.array([0, 1]), np.zeros((2, units), np.float32))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"examples": 0}, "`examples` must be a positive integer. Received 0"),
        ({"examples": 2.5}, "`examples` must be a positive integer. Received 2.5"),
        ({"examples": True}, "`examples` must be a positive integer. Received True"),
        ({"label_smoothing": 0.5}, "`label_smoothing` must be a number of at least 0 and below 0.5"),
        ({"label_smoothing": -0.1}, "`label_smoothing` must be a number of at least 0 and below 0.5"),
        ({"label_smoothing": math.nan}, "`label_smoothing` must be a number of at least 0 and below 0.5"),
        ({"label_smoothing": "a"}, "`label_smoothing` must be a number of at least 0 and below 0.5"),
    ],
)
def test_options_of_the_half_squared_error_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        HalfSquaredError(CODES, **options)


def test_options_may_be_numbers_of_numpy():
    loss = HalfSquaredError(CODES, np.int64(4), np.float32(0.25))
    again = HalfSquaredError.from_config(loss.get_config())
    assert (again.examples, again.label_smoothing) == (4, 0.25)
