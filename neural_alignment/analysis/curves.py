"""Curves over training: smoothing and thinning."""

from __future__ import annotations

import numpy as np

Array = np.ndarray


def smoothed(values: Array, width: int) -> Array:
    """Returns the moving average of a curve, `(points,)`.

    Args:
        values: `(points,)`, at least `width` of them.
        width: number of values that are averaged; at the ends of the curve fewer.
    """
    window = np.ones(width)
    return np.convolve(values, window, mode="same") / np.convolve(np.ones(len(values)), window, mode="same")


def thinned(number: int, most: int) -> Array:
    """Returns the indices of at most `most` evenly spaced points out of `number`, including the first and the last."""
    return np.unique(np.linspace(0, number - 1, most).astype(int))
