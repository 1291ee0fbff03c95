"""The alignment of products of random matrices whose factors are aligned (Rahmansetayesh et al., Note 1, Figure S7).

theta_l is the angle between B_l and W_l^T. An error that passes through two backward kernels deviates from the true
error by theta_3, the angle between B_2 B_1 and W_2^T W_1^T.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import stats

from neural_alignment.analysis.signals import RELU, Nonlinearity
from neural_alignment.analysis.similarity import angle

Array = np.ndarray

SHAPES = ((30, 15), (15, 40))
"""The shapes of B_2 and B_1 in Figure S7."""


def pair(shape: tuple[int, int], rng: np.random.Generator) -> tuple[Array, Array]:
    """Draws two matrices of norm 1 whose angle is uniformly distributed between 0 and 180 degrees.

    B is uniform on the unit sphere. W^T is r_1 A + r_2 B scaled to norm 1, where A is uniform on the unit sphere
    perpendicular to B, and r_1 and r_2 are standard normal.

    Args:
        shape: shape of both matrices.
        rng: random generator.

    Returns:
        B and W^T.
    """
    backward = _unit(rng.normal(size=shape))
    other = rng.normal(size=shape)
    other = _unit(other - np.vdot(other, backward) * backward)
    along, across = rng.normal(size=2)
    return backward, _unit(across * other + along * backward)


def _unit(matrix: Array) -> Array:
    return matrix / np.linalg.norm(matrix)


class Sample(NamedTuple):
    """Angles in degrees, each `(draws,)`.

    Attributes:
        first: theta_1.
        second: theta_2.
        product: theta_3 of the linear case.
        gated: theta_3 of equation S1, with the gates f' of a nonlinearity.
    """

    first: Array
    second: Array
    product: Array
    gated: Array


def sample(draws: int, rng: np.random.Generator, activation: Nonlinearity = RELU) -> Sample:
    """Draws pairs of factors and returns their angles and those of their products (equation S1).

    Args:
        draws: number of draws.
        rng: random generator.
        activation: the nonlinearity f. The states Z_2 and Z_1 at which f' is taken are standard normal.
    """
    (rows, middle), (_, columns) = SHAPES
    angles = np.empty((4, draws))
    for draw in range(draws):
        backward_2, forward_2 = pair(SHAPES[0], rng)
        backward_1, forward_1 = pair(SHAPES[1], rng)
        gate_2 = activation.derivative(rng.normal(size=(rows, middle)))
        gate_1 = activation.derivative(rng.normal(size=(rows, columns)))
        angles[:, draw] = (
            angle(backward_1, forward_1),
            angle(backward_2, forward_2),
            angle(backward_2 @ backward_1, forward_2 @ forward_1),
            angle((backward_2 * gate_2) @ backward_1 * gate_1, (forward_2 * gate_2) @ forward_1 * gate_1),
        )
    return Sample(*angles)


def gated_shift(sample: Sample) -> Array:
    """Returns the shift of theta_3 by the gates in each draw, `(draws,)`: degrees, positive away from 90 degrees.

    Without gates theta_3 is on average below 90 degrees if theta_1 and theta_2 are on the same side of 90 degrees, and
    otherwise above. Without these signs a mean would be uninformative where both cases are as frequent: by symmetry it
    is 90 degrees with any gates.

    Args:
        sample: the draws.
    """
    same_side = np.sign(90.0 - sample.first) * np.sign(90.0 - sample.second)
    return same_side * (sample.product - sample.gated)


def gate_test(sample: Sample) -> tuple[float, float]:
    """Returns t and p of Student's t-test of the means of theta_3 with and without gates, over all draws (Note 1).

    Each draw has both values, so the test is one of related samples. Fewer than two draws give NaN.

    Args:
        sample: the draws.
    """
    if len(sample.product) < 2:
        return float("nan"), float("nan")
    found = stats.ttest_rel(sample.gated, sample.product)
    return float(found.statistic), float(found.pvalue)


CONDITIONS = {
    "all": ((0, 180), (0, 180)),
    "both_45": ((40, 50), (40, 50)),
    "one_0": ((0, 10), (40, 50)),
    "one_90": ((85, 95), (40, 50)),
}
"""Name of a condition -> ranges of theta_1 and of theta_2, degrees, in which a histogram of theta_3 is made."""


def chosen(sample: Sample, condition: str) -> Sample:
    """Returns the draws that meet one of `CONDITIONS`."""
    kept = np.full(len(sample.first), True)
    for angles, (low, high) in zip((sample.first, sample.second), CONDITIONS[condition], strict=True):
        kept &= (low <= angles) & (angles <= high)
    return Sample(*(angles[kept] for angles in sample))


class Heatmap(NamedTuple):
    """Mean and variance of an angle in bins of theta_1 (rows) and theta_2 (columns); NaN in empty bins.

    Attributes:
        mean: degrees, `(bins, bins)`.
        variance: square degrees, `(bins, bins)`.
        counts: number of draws in each bin, `(bins, bins)`.
    """

    mean: Array
    variance: Array
    counts: Array


def heatmap(first: Array, second: Array, values: Array, width: float = 5.0) -> Heatmap:
    """Returns the mean and variance of theta_3 in bins of the factors' angles (Figure S7).

    Args:
        first: theta_1 `(draws,)`, degrees.
        second: theta_2, the same shape.
        values: theta_3, the same shape.
        width: width of a bin in degrees, a divisor of 180.

    Raises:
        ValueError: if `width` does not divide 180.
    """
    bins = round(180.0 / width)
    if bins < 1 or not np.isclose(bins * width, 180.0):
        raise ValueError(f"`width` must divide 180. Received {width!r}. Example: 5.")
    edges = np.linspace(0.0, 180.0, bins + 1)
    counts, total, squares = (
        np.histogram2d(first, second, [edges, edges], weights=weights)[0] for weights in (None, values, values**2)
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = total / counts
        return Heatmap(mean, np.maximum(squares / counts - mean**2, 0.0), counts.astype(int))
