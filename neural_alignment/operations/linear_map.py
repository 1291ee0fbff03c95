"""The base class of all linear maps, and the map of a dense layer."""

from __future__ import annotations

import abc
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import tensorflow as tf

Tensor = tf.Tensor


class LinearMap(abc.ABC):
    """A map that is linear in its inputs and in its kernel.

    Layers and learning rules are written in terms of the three products below, so they need not distinguish dense from
    convolutional layers. With < , > the sum of all products of entries, the products satisfy

        <project(x, W), y> = <x, reconstruct(y, W)> = <W, correlate(x, y)>.

    A map with groups consists of parallel maps with separate inputs and outputs, such as the groups of a convolution.

    Maps are immutable and compare by value.
    """

    group_axes: ClassVar[tuple[int, ...]] = ()
    """The axes of a kernel that number groups, counted from the end."""
    output_axes: ClassVar[tuple[int, ...]] = (-1,)
    """The axes of a kernel that number output units, counted from the end."""

    @abc.abstractmethod
    def project(self, inputs: Tensor, kernel: Tensor) -> Tensor:
        """Returns the outputs `(batch, ..., outputs)` for `inputs` `(batch, ..., inputs)` and a kernel."""

    @abc.abstractmethod
    def reconstruct(self, outputs: Tensor, kernel: Tensor, like: Tensor) -> Tensor:
        """Returns the adjoint of `project` in its inputs, applied to `outputs`, in the shape of `like`."""

    @abc.abstractmethod
    def correlate(self, inputs: Tensor, outputs: Tensor, like: Tensor) -> Tensor:
        """Returns the adjoint of `project` in its kernel, summed over the batch, in the shape of the kernel `like`."""

    def transpose(self, kernel: Tensor) -> Tensor:
        """Turns a backward kernel into the layout of the forward kernel, or back; here both layouts are the same."""
        return kernel

    def transposed_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Returns the shape of `transpose` of a kernel of `shape`."""
        return tuple(shape)

    def units(self, shape: Sequence[int]) -> tuple[int, int]:
        """Returns the number of groups and the number of output units in each, for a kernel of `shape`."""
        return math.prod(shape[axis] for axis in self.group_axes), math.prod(shape[axis] for axis in self.output_axes)

    def combine_outputs(self, kernel: Tensor, weights: Tensor) -> Tensor:
        """Returns the kernel whose output units are weighted sums of the output units of `kernel`, in each group.

        Only the size of the last of `output_axes` may change.

        Args:
            kernel: a kernel with any size of the last of `output_axes`.
            weights: `(groups, output units of kernel, output units of the result)`, both within a group.
        """
        rank, (groups, units, results) = kernel.shape.rank, weights.shape
        last = [axis % rank for axis in (*self.group_axes, *self.output_axes)]
        order = [*(axis for axis in range(rank) if axis not in last), *last]
        ordered = _permuted(kernel, order)
        if groups == 1:
            combined = tf.matmul(tf.reshape(ordered, [-1, units]), tf.reshape(weights, [units, results]))
        else:
            combined = tf.einsum("igu,gur->igr", tf.reshape(ordered, [-1, groups, units]), weights)
        combined = tf.reshape(combined, [*ordered.shape[:-1], -1])
        return _permuted(combined, sorted(range(rank), key=order.__getitem__))

    def fan_in(self, shape: Sequence[int]) -> int:
        """Returns the number of inputs of one output unit, for a kernel of `shape`."""
        return math.prod(shape[:-1])

    def multiplications(self, inputs: Sequence[int], kernel: Sequence[int], outputs: Sequence[int]) -> int:
        """Returns the number of multiplications in each of the three products, for one example.

        Args:
            inputs: shape of one example's inputs.
            kernel: shape of the kernel.
            outputs: shape of one example's outputs.
        """
        del inputs
        return math.prod(kernel) * math.prod(outputs[:-1])


@dataclass(frozen=True)
class DenseMap(LinearMap):
    """The map x -> x W of a dense layer. Axes between the first and the last are treated like spatial axes.

    Forward kernels have the shape `(inputs, outputs)`, backward kernels `(outputs, inputs)`. The products take both in
    the layout of the forward kernel.
    """

    def project(self, inputs: Tensor, kernel: Tensor) -> Tensor:
        """Returns `inputs` `(batch, ..., inputs)` times `kernel`, of shape `(batch, ..., outputs)`."""
        if inputs.shape.rank == 2:
            return tf.matmul(inputs, kernel)
        return tf.tensordot(inputs, kernel, axes=1)

    def reconstruct(self, outputs: Tensor, kernel: Tensor, like: Tensor) -> Tensor:
        """Returns `outputs` times the transpose of `kernel`."""
        del like  # The kernel determines the shape of the inputs; for a convolution it does not.
        if outputs.shape.rank == 2:
            return tf.matmul(outputs, kernel, transpose_b=True)
        return tf.tensordot(outputs, kernel, axes=[[-1], [1]])

    def correlate(self, inputs: Tensor, outputs: Tensor, like: Tensor) -> Tensor:
        """Returns the sum over the batch of the outer products of `inputs` and `outputs`."""
        flat_inputs = tf.reshape(inputs, [-1, like.shape[0]])
        flat_outputs = tf.reshape(outputs, [-1, like.shape[1]])
        return tf.matmul(flat_inputs, flat_outputs, transpose_a=True)

    def transpose(self, kernel: Tensor) -> Tensor:
        """Turns a backward kernel `(outputs, inputs)` into the layout of the forward kernel, or back."""
        return tf.transpose(kernel)

    def transposed_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Returns the shape of `transpose` of a kernel of `shape`."""
        return tuple(reversed(shape))


def _permuted(kernel: Tensor, order: Sequence[int]) -> Tensor:
    """Returns a kernel with its axes in another order; the kernel itself if the order is the same."""
    return kernel if [*order] == [*range(len(order))] else tf.transpose(kernel, order)
