"""How far products of random matrices align whose factors do (Rahmansetayesh et al., Note 1 and Figure S7).

An error that travels through two backward kernels deviates from the true one by theta_3 = B_2 B_1 to W_2^T W_1^T, where
theta_l = B_l to W_l^T.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from neural_alignment.analysis.signals import RELU, Activation
from neural_alignment.analysis.similarity import angle

Array = np.ndarray

SHAPES = ((30, 15), (15, 40))
"""Of B_2 and B_1 in Figure S7."""


def pair(shape: tuple[int, int], rng: np.random.Generator) -> tuple[Array, Array]:
    """Draws two matrices of norm 1 whose angle is uniform between 0 and 180 degrees.

    B is uniform on the unit sphere; W^T = r_1 A + r_2 B scaled to norm 1, A uniform on the unit sphere perpendicular to
    B, r_1 and r_2 standard normal.

    Args:
        shape: of both.
        rng: the generator.

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
        gated: theta_3 of S1, with the gates of a nonlinearity.
    """

    first: Array
    second: Array
    product: Array
    gated: Array


def sample(draws: int, rng: np.random.Generator, activation: Activation = RELU) -> Sample:
    """Draws pairs of factors and returns their angles and those of their products (S1).

    Args:
        draws: how many.
        rng: the generator.
        activation: f; the states Z_2 and Z_1 behind its gates are standard normal.
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


class Shift(NamedTuple):
    """How much farther from 90 degrees the gates move theta_3, degrees; negative where they move it towards 90.

    Attributes:
        mean: over all draws.
        error: standard error of the mean; with and without gates are one draw, so it is that of their difference.
    """

    mean: float
    error: float


def gated_shift(sample: Sample, width: float = 5.0) -> Shift:
    """Returns what the gates do to the mean of theta_3 at the same theta_1 and theta_2.

    In each bin, the mean with gates less that without, counted positive away from 90 degrees; averaged over bins by
    their draws. The mean over all draws tells nothing: it is 90 degrees by the symmetry of theta_1 and theta_2,
    whatever the gates do.

    Args:
        sample: the draws.
        width: of a bin, degrees; it divides 180.

    Raises:
        ValueError: if `width` does not divide 180.
    """
    mean = heatmap(sample.first, sample.second, sample.product, width).mean
    bins = [np.clip((angles // width).astype(int), 0, len(mean) - 1) for angles in (sample.first, sample.second)]
    moved = np.sign(mean[bins[0], bins[1]] - 90.0) * (sample.gated - sample.product)
    return Shift(float(moved.mean()), float(moved.std(ddof=1) / np.sqrt(moved.size)))


class Heatmap(NamedTuple):
    """Mean and variance of an angle in bins of theta_1 (rows) and theta_2 (columns); NaN in empty bins.

    Attributes:
        mean: degrees, `(bins, bins)`.
        variance: square degrees, `(bins, bins)`.
        counts: draws in each bin, `(bins, bins)`.
    """

    mean: Array
    variance: Array
    counts: Array


def heatmap(first: Array, second: Array, values: Array, width: float = 5.0) -> Heatmap:
    """Returns the mean and the variance of angles by the angles of the factors: Figure S7.

    Args:
        first: theta_1 `(draws,)`, degrees.
        second: theta_2, the same shape.
        values: theta_3, the same shape.
        width: of a bin, degrees; it divides 180.

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
