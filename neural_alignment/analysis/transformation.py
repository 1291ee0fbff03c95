"""The transformation M that a linear alignment term applies to B^T (Rahmansetayesh et al., 2.1 and Note 5).

A linear alignment term is T = eta^2 B^T M (equation 5). It aligns W with B^T to the extent that M preserves the
direction of B^T. The skew part of M turns B^T by exactly 90 degrees, so the alignment depends on the symmetric part and
its eigenvalues.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from neural_alignment.analysis.similarity import angle

Array = np.ndarray


def symmetric(matrix: Array) -> Array:
    """Returns (M + M^T) / 2.

    Args:
        matrix: M, `(units, units)`.
    """
    return (matrix + matrix.T) / 2


def skew(matrix: Array) -> Array:
    """Returns (M - M^T) / 2.

    Args:
        matrix: M, `(units, units)`.
    """
    return (matrix - matrix.T) / 2


class Effect(NamedTuple):
    """The effect of M on the direction of B^T (Figure S1).

    Attributes:
        angle: angle between B^T and B^T M, degrees.
        symmetric_angle: angle between B^T and B^T M_sym, degrees.
        skew_angle: angle between B^T and B^T M_skew, always 90 degrees; NaN if M is symmetric.
        skew_ratio: ||B^T M_skew|| / ||B^T M_sym||.
        eigenvalues: eigenvalues of M_sym, ascending, `(units,)`.
    """

    angle: float
    symmetric_angle: float
    skew_angle: float
    skew_ratio: float
    eigenvalues: Array


def effect(backward_kernel: Array, matrix: Array) -> Effect:
    """Returns the effect of M on the direction of B^T.

    Args:
        backward_kernel: B, `(units above, units)`.
        matrix: M, `(units above, units above)`.
    """
    transposed = backward_kernel.T
    even, odd = symmetric(matrix), skew(matrix)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.linalg.norm(transposed @ odd) / np.linalg.norm(transposed @ even)
    return Effect(
        angle(transposed, transposed @ matrix),
        angle(transposed, transposed @ even),
        angle(transposed, transposed @ odd),
        float(ratio),
        np.linalg.eigvalsh(even),
    )


def random_transformation(units: int, rng: np.random.Generator) -> tuple[Array, float]:
    """Draws a transformation M (Figure S1).

    M_sym has eigenvalues N(m, 1), m uniform between -1 and 3, and random eigenvectors. M_skew is random, with 0 to 3
    times the norm of M_sym.

    Args:
        units: number of rows and columns.
        rng: random generator.

    Returns:
        M, and the mean of the eigenvalues of M_sym divided by their root mean square.
    """
    eigenvalues = rng.normal(rng.uniform(-1.0, 3.0), 1.0, units)
    vectors, _ = np.linalg.qr(rng.normal(size=(units, units)))
    even = (vectors * eigenvalues) @ vectors.T
    odd = skew(rng.normal(size=(units, units)))
    odd *= rng.uniform(0.0, 3.0) * np.linalg.norm(even) / np.linalg.norm(odd)
    return even + odd, float(eigenvalues.mean() / np.sqrt((eigenvalues**2).mean()))
