"""Similarity of matrices, and of signals of different examples (Rahmansetayesh et al., sections 4.2 and 2.3.6)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

Array = np.ndarray

_QUALITIES = ("well", "poor")


def cosine_similarity(first: Array, second: Array) -> float:
    """Returns <A, B>_F / (||A||_F ||B||_F) (equation 25); NaN if a matrix is zero.

    Args:
        first: any shape.
        second: the same shape.

    Raises:
        ValueError: if the shapes differ. B must be transposed before it is compared with W.
    """
    first, second = _units(first, second)
    return float(np.vdot(first, second))


def angle(first: Array, second: Array) -> float:
    """Returns the angle between two matrices in degrees (equation 24); NaN if a matrix is zero.

    It is computed as 2 atan2(||u - v||, ||u + v||) with the unit vectors u and v, because arccos loses digits near 0
    and 180 degrees.

    Args:
        first: any shape.
        second: the same shape.

    Raises:
        ValueError: if the shapes differ.
    """
    first, second = _units(first, second)
    return float(np.degrees(2 * np.arctan2(np.linalg.norm(first - second), np.linalg.norm(first + second))))


def _units(first: Array, second: Array) -> tuple[Array, Array]:
    """Returns both matrices as vectors of norm 1."""
    if np.shape(first) != np.shape(second):
        raise ValueError(
            f"`first` and `second` must have the same shape. Received {np.shape(first)} and {np.shape(second)}. "
            "Example: angle(W, B.T)."
        )
    vectors = [np.asarray(each, np.float64).ravel() for each in (first, second)]
    with np.errstate(invalid="ignore", divide="ignore"):
        # Dividing by the largest entry first keeps the squares in range.
        vectors = [vector / np.abs(vector).max(initial=0.0) for vector in vectors]
        return tuple(vector / np.linalg.norm(vector) for vector in vectors)


def similarity_matrix(earlier: Array, later: Array) -> Array:
    """Returns S_pm, the dot products of signal p of one batch and signal m of another (equation 12).

    Args:
        earlier: L or delta of iteration k - o, `(earlier examples, units)`.
        later: the same signal at iteration k, `(later examples, units)`.

    Returns:
        `(earlier examples, later examples)`.
    """
    return earlier @ later.T


def overlap(errors: Array, outputs: Array) -> float:
    """Returns the sum over p and m of the similarity terms S_delta S_L, which must be positive for alignment.

    It is the trace of the transformation M of the linear alignment term (equation 12).

    Args:
        errors: similarity matrix of the errors of layer l + 1, `(earlier, later)`.
        outputs: similarity matrix of the outputs of layer l - 1, the same shape.
    """
    return float(np.vdot(errors, outputs))


def overlap_by_category(
    errors: tuple[Array, Array], outputs: tuple[Array, Array], labels: tuple[Array, Array]
) -> tuple[float, float]:
    """Splits `overlap` into the similarity terms within categories and those between categories (Figure S4).

    It does not compute a similarity matrix: the terms of category c sum to
    <L[k-o]_c^T delta[k-o]_c, L[k]_c^T delta[k]_c>.

    Args:
        errors: delta_(l+1) of the earlier and of the later batch, each `(examples, units above)`.
        outputs: L_(l-1) of both batches, each `(examples, units below)`.
        labels: categories of both batches, each `(examples,)`.

    Returns:
        The sum within categories and the sum between categories.
    """
    within = 0.0
    for category in np.intersect1d(*labels):
        chosen = [each == category for each in labels]
        first, second = (o[c].T @ e[c] for o, e, c in zip(outputs, errors, chosen, strict=True))
        within += float(np.vdot(first, second))
    first, second = (o.T @ e for o, e in zip(outputs, errors, strict=True))
    return within, float(np.vdot(first, second)) - within


def within_categories(earlier: Array, later: Array) -> Array:
    """Returns whether both examples of each pair have the same category, `(earlier examples, later examples)` bool.

    Args:
        earlier: labels `(earlier examples,)`.
        later: labels `(later examples,)`.
    """
    return np.asarray(earlier)[:, np.newaxis] == np.asarray(later)[np.newaxis]


def well_classified(output_errors: Array, fraction: float = 0.6) -> Array:
    """Returns whether each example is among those with the smallest output errors, `(examples,)` bool (section 2.3.6).

    Args:
        output_errors: delta_d of all compared examples, `(examples, outputs)`.
        fraction: fraction of the examples that counts as well classified, 0.6 in the paper.

    Raises:
        ValueError: if `fraction` is not between 0 and 1.
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"`fraction` must be between 0 and 1. Received {fraction!r}. Example: 0.6.")
    norms = np.linalg.norm(output_errors, axis=1)
    well = np.zeros(len(norms), bool)
    well[np.argsort(norms, kind="stable")[: round(fraction * len(norms))]] = True
    return well


def both(earlier: Array, later: Array) -> Array:
    """Returns whether both examples of each pair are well classified, `(earlier examples, later examples)` bool.

    A similarity term counts as well classified if both of its examples are, and as poorly classified otherwise.

    Args:
        earlier: whether each earlier example is well classified, `(earlier examples,)` bool.
        later: whether each later example is well classified, `(later examples,)` bool.
    """
    return np.logical_and.outer(earlier, later)


class Tally(NamedTuple):
    """The distribution of similarities in one group of pairs (Figure S5).

    Attributes:
        pairs: number of pairs.
        total: sum of the similarities.
        histogram: counts between the edges, `(edges - 1,)`; values outside of all bins are not counted.
    """

    pairs: int
    total: float
    histogram: Array

    @property
    def mean(self) -> float:
        """Mean similarity, shown as triangles in Figure S5; NaN if there are no pairs."""
        return self.total / self.pairs if self.pairs else float("nan")


def tally(
    earlier: Array,
    later: Array,
    labels: tuple[Array, Array],
    edges: Array,
    well: tuple[Array, Array] | None = None,
    block: int = 1000,
) -> dict[str, Tally]:
    """Returns the distributions of the similarities of all pairs, grouped by category and quality.

    It takes `earlier examples * later examples * units` products. The memory holds `block` rows of the similarity
    matrix at a time, because the whole matrix would take 29 GB for MNIST.

    Args:
        earlier: signals `(earlier examples, units)`.
        later: signals `(later examples, units)`.
        labels: categories of the earlier and of the later examples.
        edges: edges of the histograms' bins, ascending.
        well: whether each earlier and each later example is well classified. Default: no distinction.
        block: number of earlier examples processed at a time.

    Returns:
        `within` and `between`; with `well`, `within/well`, `within/poor`, `between/well` and `between/poor`.
    """
    names = ["within", "between"] if well is None else [f"{c}/{q}" for c in ("within", "between") for q in _QUALITIES]
    pairs, totals = dict.fromkeys(names, 0), dict.fromkeys(names, 0.0)
    histograms = {name: np.zeros(len(edges) - 1, np.int64) for name in names}
    for begin in range(0, len(earlier), block):
        rows = slice(begin, begin + block)
        similarities = similarity_matrix(earlier[rows], later)
        within = within_categories(labels[0][rows], labels[1])
        groups = {"within": within, "between": ~within}
        if well is not None:
            quality = both(well[0][rows], well[1])
            masks = dict(zip(_QUALITIES, (quality, ~quality), strict=True))
            groups = {f"{c}/{q}": mask & masks[q] for c, mask in groups.items() for q in _QUALITIES}
        for name, mask in groups.items():
            values = similarities[mask]
            pairs[name] += values.size
            totals[name] += float(values.sum(dtype=np.float64))
            histograms[name] += np.histogram(values, edges)[0]
    return {name: Tally(pairs[name], totals[name], histograms[name]) for name in names}
