"""The products of linear maps in NumPy: convolutions as sums over taps, and adjoints by the matrix of the map."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Array = np.ndarray


@dataclass(frozen=True)
class ExplicitMap:
    """A linear map given by its forward product; both adjoints follow from the products of basis vectors.

    Attributes:
        product: (inputs `(batch, ...)`, kernel) -> outputs `(batch, ...)`.
        transposed: whether backward kernels have the transposed layout, as in a dense layer.
    """

    product: Callable[[Array, Array], Array]
    transposed: bool = False

    def project(self, x: Array, kernel: Array) -> Array:
        """Returns the outputs."""
        return self.product(x, kernel)

    def matrix(self, shape: tuple[int, ...], kernel: Array) -> Array:
        """Returns the matrix `(inputs, outputs)` of the map for one example of `shape`."""
        size = math.prod(shape)
        return self.product(np.eye(size).reshape(size, *shape), kernel).reshape(size, -1)

    def reconstruct(self, y: Array, kernel: Array, shape: tuple[int, ...]) -> Array:
        """Returns y times the transposed matrix, in the shape `(batch, ...)` of the inputs."""
        return (y.reshape(len(y), -1) @ self.matrix(shape[1:], kernel).T).reshape(shape)

    def correlate(self, x: Array, y: Array, shape: tuple[int, ...]) -> Array:
        """Returns <project(x, E), y> for each basis kernel E of `shape`."""
        basis = np.eye(math.prod(shape)).reshape(-1, *shape)
        return np.array([np.vdot(self.product(x, each), y) for each in basis]).reshape(shape)

    def layout(self, kernel: Array) -> Array:
        """Converts a kernel from the layout of W to that of B, or back."""
        return kernel.T if self.transposed else kernel


def dense(x: Array, kernel: Array) -> Array:
    """Returns x W over the last axis."""
    return np.einsum("...i,io->...o", x, kernel)


def einsum(equation: str) -> Callable[[Array, Array], Array]:
    """Returns the product of an einsum."""
    return lambda x, kernel: np.einsum(equation, x, kernel)


@dataclass(frozen=True)
class Taps:
    """Where the taps of a convolution read, in any number of dimensions.

    Attributes:
        strides: one for each dimension.
        padding: "VALID", "SAME" or "CAUSAL".
        dilations: one for each dimension.
    """

    strides: tuple[int, ...]
    padding: str
    dilations: tuple[int, ...]

    def ends(self, size: int, taps: int, axis: int) -> tuple[int, int, int]:
        """Returns the number of outputs along an axis, and the zeros before and after the inputs."""
        stride, reach = self.strides[axis], (taps - 1) * self.dilations[axis] + 1
        if self.padding == "SAME":
            count = -(-size // stride)
            zeros = max((count - 1) * stride + reach - size, 0)
            return count, zeros // 2, zeros - zeros // 2
        before = reach - 1 if self.padding == "CAUSAL" else 0
        return (size + before - reach) // stride + 1, before, 0

    def windows(self, space: tuple[int, ...], taps: tuple[int, ...]):
        """Returns the zeros around the inputs, and for each tap the slices of the padded inputs that it reads."""
        ends = [self.ends(size, taps[axis], axis) for axis, size in enumerate(space)]
        windows = {}
        for tap in np.ndindex(*taps):
            starts = [index * dilation for index, dilation in zip(tap, self.dilations, strict=True)]
            windows[tap] = tuple(
                slice(start, start + (count - 1) * stride + 1, stride)
                for start, (count, *_), stride in zip(starts, ends, self.strides, strict=True)
            )
        return [(0, 0), *((before, after) for _, before, after in ends), (0, 0)], windows


def convolution(strides, padding="VALID", dilations=None) -> Callable[[Array, Array], Array]:
    """Returns the product of a convolution; the groups follow from the shapes."""
    places = Taps(strides, padding, dilations or (1,) * len(strides))

    def product(x: Array, kernel: Array) -> Array:
        *taps, inputs, outputs = kernel.shape
        groups = x.shape[-1] // inputs
        zeros, windows = places.windows(x.shape[1:-1], tuple(taps))
        padded = np.pad(x, zeros)
        total = 0.0
        for tap, window in windows.items():
            seen = padded[(slice(None), *window)]
            seen = seen.reshape(*seen.shape[:-1], groups, inputs)
            parts = kernel[tap].reshape(inputs, groups, outputs // groups)
            total = total + np.einsum("...gi,igo->...go", seen, parts)
        return total.reshape(*total.shape[:-2], outputs)

    return product


def depthwise(strides, padding="VALID", dilations=None) -> Callable[[Array, Array], Array]:
    """Returns the product of a depthwise convolution: channel i has the outputs i * multiplier + m."""
    places = Taps(strides, padding, dilations or (1,) * len(strides))

    def product(x: Array, kernel: Array) -> Array:
        zeros, windows = places.windows(x.shape[1:-1], kernel.shape[:-2])
        padded = np.pad(x, zeros)
        total = sum(np.einsum("...i,im->...im", padded[(slice(None), *w)], kernel[tap]) for tap, w in windows.items())
        return total.reshape(*total.shape[:-2], -1)

    return product


def transposed_convolution(strides, padding, dilations, space) -> Callable[[Array, Array], Array]:
    """Returns the product of a transposed convolution: each input adds its multiple of the kernel to the outputs.

    Args:
        strides: one for each dimension.
        padding: "VALID" or "SAME".
        dilations: one for each dimension.
        space: the shape of the outputs without batch and channels.
    """
    places = Taps(strides, padding, dilations)

    def product(x: Array, kernel: Array) -> Array:
        zeros, windows = places.windows(space, kernel.shape[:-2])
        padded = np.zeros(
            [len(x), *(size + sum(zero) for size, zero in zip(space, zeros[1:-1], strict=True)), kernel.shape[-2]]
        )
        for tap, window in windows.items():
            padded[(slice(None), *window)] += x @ kernel[tap].T
        inner = [slice(before, before + size) for size, (before, _) in zip(space, zeros[1:-1], strict=True)]
        return padded[(slice(None), *inner)]

    return product
