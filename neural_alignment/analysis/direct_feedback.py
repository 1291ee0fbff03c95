"""Alignment terms of direct feedback alignment (Rahmansetayesh et al., equations 6 to 8 and S14 to S17).

A direct alignment term (S15) is the `alignment_term` of signals whose `returned` is delta_d F_l and whose errors are
delta_(l+1) of equation 6. Each F_l can be written as a product of least-squares factors Q_l. The direct alignment terms
then have the form of the alignment terms of feedback alignment, with Q_l in place of B_l. The linear term (equation 8)
is `linear_term` with Q_l.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import scipy.linalg

from neural_alignment.analysis.alignment_terms import History, LayerSignals, alignment_term
from neural_alignment.analysis.similarity import angle

Array = np.ndarray


RANK_TOLERANCE = 1e-10
"""Singular values of a product below this part of the largest one are rounding errors and count as 0.

Where a layer is smaller than the output, F^_l has a lower rank than it has rows. Rounding errors would otherwise become
large entries of Q_(l-1)."""


class Factor(NamedTuple):
    """F_l as the product Q_(d-1) ... Q_l plus a residual: F_l = product + rest (equation 7).

    Attributes:
        factor: Q_l, `(units above, units)`.
        product: F^_l = F^_(l+1) Q_l, `(outputs, units)`.
        rest: the part of F_l that is perpendicular to the product, `(outputs, units)`.
    """

    factor: Array
    product: Array
    rest: Array


def factors(feedback: Sequence[Array]) -> list[Factor]:
    """Returns the least-squares factors of direct feedback matrices (equations 7 and S16).

    The factors are computed from l = d - 1, where Q = F, downwards. Each Q_l is the minimum-norm solution of
    min ||F^_(l+1) Q_l - F_l||.

    Args:
        feedback: F_l of consecutive layers up to F_(d-1), each `(outputs, units)`; F_0 may be included.

    Returns:
        One factor per matrix, in the same order.
    """
    found: list[Factor] = []
    for matrix in reversed(feedback):
        if not found:
            found.insert(0, Factor(matrix, matrix, np.zeros_like(matrix)))
            continue
        above = found[0].product
        factor = scipy.linalg.lstsq(above, matrix, cond=RANK_TOLERANCE)[0]
        found.insert(0, Factor(factor, above @ factor, matrix - above @ factor))
    return found


def returned_parts(output_error: Array, factor: Factor) -> dict[str, Array]:
    """Splits delta_d F_l into two parts: one from the product of factors, one from the rest.

    Args:
        output_error: delta_d, `(batch, outputs)`.
        factor: factor of layer l.

    Returns:
        `product` and `rest`, each `(batch, units)`.
    """
    return {"product": output_error @ factor.product, "rest": output_error @ factor.rest}


def error_parts(output_error: Array, factor: Factor, gate: Array) -> dict[str, Array]:
    """Splits delta_(l+1) into two parts: the `returned_parts` of layer l + 1, multiplied by its gate.

    Args:
        output_error: delta_d, `(batch, outputs)`.
        factor: factor of layer l + 1.
        gate: f'(Z_(l+1)), `(batch, units above)`.
    """
    return {name: part * gate for name, part in returned_parts(output_error, factor).items()}


def direct_term_parts(
    histories: Mapping[str, History], signals: LayerSignals, errors: Mapping[str, Array], order: int
) -> dict[tuple[str, str], Array]:
    """Splits the direct alignment term into four parts, which add up to it (S17).

    Args:
        histories: maps each part of `returned_parts` to a history of signals whose `returned` was that part.
        signals: signals of iteration k; `errors` is not read.
        errors: errors of iteration k, from `error_parts`.
        order: o.

    Returns:
        A mapping from (part of the past error, part of the current error) to an array `(units, units above)`.
    """
    return {
        (past, present): alignment_term(history, signals._replace(errors=error), order)
        for past, history in histories.items()
        for present, error in errors.items()
    }


def product_angles(kernels: Sequence[Array], feedback: Sequence[Array]) -> list[float]:
    """Returns the angles between W_l W_(l+1) ... W_(d-1) and F_l^T in degrees.

    Args:
        kernels: W_l of consecutive layers up to W_(d-1), each `(units, units above)`.
        feedback: F_l of the same layers, each `(outputs, units)`.

    Returns:
        One angle per layer, in the same order.
    """
    angles: list[float] = []
    product = None
    for kernel, matrix in zip(reversed(kernels), reversed(feedback), strict=True):
        product = kernel if product is None else kernel @ product
        angles.insert(0, angle(product, matrix.T))
    return angles
