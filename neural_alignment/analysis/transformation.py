"""The transformation M that a linear alignment term applies to B^T (Rahmansetayesh et al., 2.1 and Note 5).

T = eta^2 B^T M with M of equation 5. M aligns as far as it leaves the direction of B^T: its skew part turns B^T by
exactly 90 degrees, so what it does lies in its symmetric part, and in that part's eigenvalues.
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
    """What M does to the direction of B^T (Figure S1).

    Attributes:
        angle: of B^T to B^T M, degrees.
        symmetric_angle: of B^T to B^T M_sym, degrees.
        skew_angle: of B^T to B^T M_skew: 90 degrees; NaN where M is symmetric.
        skew_ratio: ||B^T M_skew|| / ||B^T M_sym||.
        eigenvalues: of M_sym, ascending, `(units,)`.
    """

    angle: float
    symmetric_angle: float
    skew_angle: float
    skew_ratio: float
    eigenvalues: Array


def effect(backward_kernel: Array, matrix: Array) -> Effect:
    """Returns what M does to B^T.

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
