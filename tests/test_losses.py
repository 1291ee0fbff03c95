"""Losses against NumPy, and the criterion that compares networks."""

import math

import numpy as np
import pytest

from neural_alignment.losses import ACCURACY, SMALLEST_LOSS, SquaredError


@pytest.mark.parametrize("shift", [0.0, 0.1])
def test_squared_error_is_the_mean_square_of_the_distance_to_the_shifted_code(rng, shift):
    labels, outputs = rng.integers(0, 4, size=6), rng.normal(size=(6, 4)).astype(np.float32)
    targets = np.eye(4)[labels] - shift
    expected = np.mean(np.square(outputs - targets))
    assert float(SquaredError(shift)(labels, outputs)) == pytest.approx(expected, rel=1e-6)
    np.testing.assert_allclose(
        SquaredError(shift).call(labels, outputs), np.square(outputs - targets).mean(axis=1), rtol=1e-5
    )


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
