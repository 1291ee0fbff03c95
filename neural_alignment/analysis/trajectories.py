"""Trajectories of all parameters in the plane of two principal components (Rahmansetayesh et al., Figure 7C, F).

A row holds all parameters of one step, [W_0, b_1, ..., W_(d-1), b_d], flattened. A plane is computed from the rows of
two runs with the same initialisation. The published figure uses every third step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from sklearn.decomposition import PCA

Array = np.ndarray


def flatten(kernels: Sequence[Array], biases: Sequence[Array]) -> Array:
    """Returns [W_0, b_1, ..., W_(d-1), b_d] as one row, `(parameters,)`.

    Args:
        kernels: W_0 to W_(d-1), each `(units below, units)`.
        biases: b_1 to b_d, each `(units,)`.
    """
    pairs = zip(kernels, biases, strict=True)
    return np.concatenate([np.ravel(each) for pair in pairs for each in pair])


def unflatten(row: Array, shapes: Sequence[tuple[int, int]]) -> tuple[list[Array], list[Array]]:
    """Returns the kernels and biases of a row.

    Args:
        row: `(parameters,)`, from `flatten`.
        shapes: shapes of the kernels.

    Raises:
        ValueError: if the row has the wrong number of parameters.
    """
    sizes = [size for below, units in shapes for size in (below * units, units)]
    if np.shape(row) != (sum(sizes),):
        raise ValueError(
            f"`row` must hold the {sum(sizes)} parameters of kernels of shapes {list(shapes)}. Received the shape "
            f"{np.shape(row)}. Example: flatten(kernels, biases)."
        )
    parts = np.split(row, np.cumsum(sizes)[:-1])
    return [part.reshape(shape) for part, shape in zip(parts[::2], shapes, strict=True)], parts[1::2]


class Plane(NamedTuple):
    """A plane in the space of parameters.

    Attributes:
        centre: mean of the rows, `(parameters,)`.
        axes: first two principal components, orthonormal, `(2, parameters)`.
        explained: fraction of the variance along each axis, `(2,)`.
    """

    centre: Array
    axes: Array
    explained: Array

    def project(self, rows: Array) -> Array:
        """Returns the coordinates of points `(..., parameters)` in the plane, `(..., 2)`."""
        return (rows - self.centre) @ self.axes.T

    def project_direction(self, rows: Array) -> Array:
        """Returns the coordinates of directions, such as updates; the centre is not subtracted. Shapes as `project`."""
        return rows @ self.axes.T

    def point(self, coordinates: Array) -> Array:
        """Returns the parameters `(..., parameters)` at coordinates `(..., 2)` in the plane."""
        return coordinates @ self.axes + self.centre


def plane(rows: Array) -> Plane:
    """Returns the plane of the first two principal components of the rows, after subtracting their mean.

    Args:
        rows: `(points, parameters)`, from one or several runs.

    Raises:
        ValueError: if there are fewer than three points.
    """
    if np.ndim(rows) != 2 or len(rows) < 3:
        raise ValueError(
            "`rows` must hold three or more points, (points, parameters). "
            f"Received the shape {np.shape(rows)}. Example: (100, 5000)."
        )
    # ARPACK is as exact as the full decomposition but does not compute thousands of unused components.
    fitted = PCA(n_components=2, svd_solver="arpack", random_state=0).fit(rows)
    return Plane(fitted.mean_, fitted.components_, fitted.explained_variance_ratio_)


def loss_on_plane(plane: Plane, first: Array, second: Array, loss: Callable[[Array], float]) -> Array:
    """Returns the loss on a grid of points in the plane, for the contours of Figure 7C.

    Args:
        plane: the plane.
        first: coordinates along the first component, `(columns,)`.
        second: coordinates along the second component, `(rows,)`.
        loss: a function of the parameters `(parameters,)`. The published contours show `contour_height`.

    Returns:
        `(rows, columns)`.
    """
    grid = np.stack(np.meshgrid(first, second), axis=-1)
    heights = [loss(plane.point(point)) for point in grid.reshape(-1, 2)]
    return np.reshape(heights, grid.shape[:-1])


def grid_axis(values: Array, points: int) -> Array:
    """Returns evenly spaced coordinates, `(points,)`, over the range of `values` plus a margin of 15 % on each side."""
    low, high = values.min(), values.max()
    margin = 0.15 * (high - low)
    return np.linspace(low - margin, high + margin, points)


def local_minima(heights: Array) -> Array:
    """Returns the points of a grid that are lower than all of their neighbours, (row, column), `(minima, 2)`.

    A point inside of the grid has eight neighbours. Points on the border are left out, because the heights may decrease
    beyond it.

    Args:
        heights: `(rows, columns)`.
    """
    rows, columns = heights.shape
    inner = heights[1:-1, 1:-1]
    shifts = [(down, right) for down in range(3) for right in range(3) if (down, right) != (1, 1)]
    around = [heights[down : rows - 2 + down, right : columns - 2 + right] for down, right in shifts]
    return np.argwhere(inner < np.min(around, axis=0)) + 1


def contour_height(targets: Array, outputs: Array) -> float:
    """Returns ||E||_F / 2, which the published figure draws, with E = Y* - Y. The training loss is ||E||_F^2 / 2.

    Args:
        targets: Y*, `(examples, outputs)`.
        outputs: Y, the same shape.
    """
    return float(np.linalg.norm(targets - outputs) / 2)
