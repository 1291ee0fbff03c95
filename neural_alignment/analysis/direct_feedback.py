"""Direct feedback alignment as feedback alignment: its alignment terms, and F_l as a product of backward kernels.

Rahmansetayesh et al., equations 6 to 8 and S14 to S17. A direct alignment term (S15) is the `alignment_term` of
`alignment_terms` of signals whose `returned` is delta_d F_l, and whose errors are delta_(l+1) of equation 6. With F_l
written as products of least-squares factors Q_l it has the form of feedback alignment's terms, with Q_l for B_l; the
linear one (equation 8) is `linear_term` with Q_l.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import scipy.linalg

from neural_alignment.analysis.alignment_terms import History, Signals, alignment_term
from neural_alignment.analysis.similarity import angle

Array = np.ndarray


class Factor(NamedTuple):
    """F_l as Q_(d-1) ... Q_l and what is left: F_l = product + rest (equation 7).

    Attributes:
        factor: Q_l, `(units above, units)`.
        product: F^_l = F^_(l+1) Q_l, `(outputs, units)`.
        rest: F_l's part that is perpendicular to it, `(outputs, units)`.
    """

    factor: Array
    product: Array
    rest: Array


def factors(feedback: Sequence[Array]) -> list[Factor]:
    """Returns the least-squares factors of direct feedback matrices: equations 7 and S16.

    Each Q_l is the solution of least norm of min ||F^_(l+1) Q_l - F_l||, from l = d - 1, where Q = F, downwards.

    Args:
        feedback: F_l of consecutive layers up to F_(d-1), each `(outputs, units)`; F_0 may be among them.

    Returns:
        One per matrix, in their order.
    """
    found: list[Factor] = []
    for matrix in reversed(feedback):
        if not found:
            found.insert(0, Factor(matrix, matrix, np.zeros_like(matrix)))
            continue
        above = found[0].product
        factor = scipy.linalg.lstsq(above, matrix)[0]
        found.insert(0, Factor(factor, above @ factor, matrix - above @ factor))
    return found


def returned_parts(output_error: Array, factor: Factor) -> dict[str, Array]:
    """Returns delta_d F_l in its two parts: by the product of factors, and by the rest.

    Args:
        output_error: delta_d, `(batch, outputs)`.
        factor: of layer l.

    Returns:
        `product` and `rest`, each `(batch, units)`.
    """
    return {"product": output_error @ factor.product, "rest": output_error @ factor.rest}


def error_parts(output_error: Array, factor: Factor, gate: Array) -> dict[str, Array]:
    """Returns delta_(l+1) in its two parts: `returned_parts` of layer l + 1 behind its gate.

    Args:
        output_error: delta_d, `(batch, outputs)`.
        factor: of layer l + 1.
        gate: f'(Z_(l+1)), `(batch, units above)`.
    """
    return {name: part * gate for name, part in returned_parts(output_error, factor).items()}


def direct_term_parts(
    histories: Mapping[str, History], signals: Signals, errors: Mapping[str, Array], order: int
) -> dict[tuple[str, str], Array]:
    """Returns the direct alignment term in its four parts, which add up to it: S17.

    Args:
        histories: part of `returned_parts` -> history of signals whose `returned` was that part.
        signals: of iteration k; its `errors` are not read.
        errors: of iteration k, from `error_parts`.
        order: o.

    Returns:
        (part of the past error, part of the present error) -> `(units, units above)`.
    """
    return {
        (past, present): alignment_term(history, signals._replace(errors=error), order)
        for past, history in histories.items()
        for present, error in errors.items()
    }


def product_angles(kernels: Sequence[Array], feedback: Sequence[Array]) -> list[float]:
    """Returns the angles of W_l W_(l+1) ... W_(d-1) to F_l^T, degrees.

    Args:
        kernels: W_l of consecutive layers up to W_(d-1), each `(units, units above)`.
        feedback: F_l of the same layers, each `(outputs, units)`.

    Returns:
        One per layer, in their order.
    """
    angles: list[float] = []
    product = None
    for kernel, matrix in zip(reversed(kernels), reversed(feedback), strict=True):
        product = kernel if product is None else kernel @ product
        angles.insert(0, angle(product, matrix.T))
    return angles
