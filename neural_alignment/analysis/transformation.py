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
