"""The map of an einsum with a kernel: dense layers over several axes, and the projections of attention."""

from __future__ import annotations

import math
import string
from collections.abc import Sequence
from dataclasses import dataclass

import tensorflow as tf

from neural_alignment.operations.linear_map import LinearMap

Tensor = tf.Tensor


@dataclass(frozen=True)
class EinsumMap(LinearMap):
    """The map x -> einsum(equation, x, W). Both kernels have the same layout.

    Args:
        equation: labels of the axes of inputs, kernel and outputs, such as `"abc,cde->abde"`, as in
            `keras.layers.EinsumDense`. An ellipsis stands for any number of axes.
    """

    equation: str

    @property
    def group_axes(self) -> tuple[int, ...]:
        """The axes of the kernel that inputs and outputs have too."""
        return self._kernel_axes(of_inputs=True)

    @property
    def output_axes(self) -> tuple[int, ...]:
        """The axes of the kernel that the outputs have and the inputs do not have."""
        return self._kernel_axes(of_inputs=False)

    def project(self, inputs: Tensor, kernel: Tensor) -> Tensor:
        """Returns the einsum of `inputs` and `kernel`."""
        of_inputs, of_kernel, of_outputs = self._labels(inputs.shape.rank)
        return tf.einsum(f"{of_inputs},{of_kernel}->{of_outputs}", inputs, kernel)

    def reconstruct(self, outputs: Tensor, kernel: Tensor, like: Tensor) -> Tensor:
        """Returns the adjoint of `project` in its inputs, in the shape of `like`."""
        of_inputs, of_kernel, of_outputs = self._labels(like.shape.rank)
        return _contracted((of_outputs, outputs), (of_kernel, kernel), of_inputs, like)

    def correlate(self, inputs: Tensor, outputs: Tensor, like: Tensor) -> Tensor:
        """Returns the adjoint of `project` in its kernel, in the shape of `like`."""
        of_inputs, of_kernel, of_outputs = self._labels(inputs.shape.rank)
        return _contracted((of_inputs, inputs), (of_outputs, outputs), of_kernel, like)

    def fan_in(self, shape: Sequence[int]) -> int:
        """Returns the product of the kernel's axes that the outputs do not have."""
        _, of_kernel, of_outputs = self._parts()
        return math.prod(size for label, size in zip(of_kernel, shape, strict=True) if label not in of_outputs)

    def multiplications(self, inputs: Sequence[int], kernel: Sequence[int], outputs: Sequence[int]) -> int:
        """Returns the product of the sizes of all axes, except that of the batch."""
        of_inputs, of_kernel, of_outputs = self._labels(len(inputs) + 1)
        sizes = dict(zip(of_kernel, kernel, strict=True))
        for labels, shape in ((of_inputs[1:], inputs), (of_outputs[1:], outputs)):
            sizes |= dict(zip(labels, shape, strict=True))
        return math.prod(sizes.values())

    def _kernel_axes(self, of_inputs: bool) -> tuple[int, ...]:
        """Returns the axes of the kernel, counted from the end, that the outputs have and the inputs have or not."""
        inputs, kernel, outputs = self._parts()
        return tuple(
            axis - len(kernel)
            for axis, label in enumerate(kernel)
            if label in outputs and (label in inputs) == of_inputs
        )

    def _parts(self) -> list[str]:
        operands, of_outputs = self.equation.replace(" ", "").split("->")
        return [*operands.split(","), of_outputs]

    def _labels(self, rank: int) -> list[str]:
        """Returns the labels of inputs, kernel and outputs for inputs of a rank, without an ellipsis."""
        parts = self._parts()
        count = rank - len(parts[0].replace("...", ""))
        unused = [letter for letter in string.ascii_letters if letter not in self.equation]
        return [part.replace("...", "".join(unused[:count])) for part in parts]


def _contracted(one: tuple[str, Tensor], other: tuple[str, Tensor], labels: str, like: Tensor) -> Tensor:
    """Returns the einsum of two operands with the axes `labels`. Axes that neither of them has are repeated."""
    reached = "".join(label for label in labels if label in one[0] + other[0])
    found = tf.einsum(f"{one[0]},{other[0]}->{reached}", one[1], other[1])
    if reached == labels:
        return found
    return tf.einsum(f"{reached},{labels}->{labels}", found, tf.ones_like(like))
