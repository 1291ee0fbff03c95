"""The six primitives of the alignment regulariser R (Kunin et al. 2020, Table 1 and Appendix D.3).

A primitive of signals is a mean over the batch and a sum over all other axes, including space. A primitive of kernels
is a sum over their entries. Sums are computed in at least float32. All functions return a scalar. x is the input of a
layer and x_out = W^T x its forward projection. In the formulas of amp, null, sparse and angle, B has the shape of W; in
that of self_ it has the shape of W^T.
"""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from neural_alignment.alignments import examples
from neural_alignment.operations import precision

Tensor = tf.Tensor


def decay(backward_kernel: Tensor, forward_kernel: Tensor | None = None) -> Tensor:
    """Energy of the backward kernel: 1/2 ||B||^2, or 1/2 (||B||^2 + ||W||^2) if W is given, because R trains it too."""
    energy = tf.nn.l2_loss(precision.widened(backward_kernel))
    return energy if forward_kernel is None else energy + tf.nn.l2_loss(precision.widened(forward_kernel))


def amp(backward_projection: Tensor, forward_projection: Tensor) -> Tensor:
    """Negative overlap of the backward with the forward projection: -tr(x^T B x_out).

    Because <B^T x, x_out> = <x, B x_out>, the arguments can also be the layer's inputs and their reconstruction.

    Args:
        backward_projection: B^T x, `(batch, ..., outputs)`.
        forward_projection: x_out, of the same shape.
    """
    overlap = _total(precision.widened(backward_projection) * precision.widened(forward_projection))
    return -overlap / examples.divisor(backward_projection, overlap.dtype)


def null(reconstruction: Tensor) -> Tensor:
    """Energy of the reconstruction B x_out, `(batch, ..., inputs)`: 1/2 ||B x_out||^2."""
    return _mean_energy(reconstruction)


def sparse(backward_projection: Tensor, forward_projection: Tensor | None = None) -> Tensor:
    """Energy of the backward projection: 1/2 ||B^T x||^2, plus 1/2 ||W^T x||^2 if it is given, because R trains W too.

    Args:
        backward_projection: B^T x, `(batch, ..., outputs)`.
        forward_projection: W^T x, of the same shape, or None.
    """
    energy = _mean_energy(backward_projection)
    return energy if forward_projection is None else energy + _mean_energy(forward_projection)


def self_(forward_kernel: Tensor, backward_kernel: Tensor) -> Tensor:
    """Negative overlap of the two kernels: -tr(B W).

    Both arguments must have the same layout, that of W or that of B.
    """
    forward, backward = (tf.reshape(precision.widened(kernel), [-1]) for kernel in (forward_kernel, backward_kernel))
    return -_dot(forward, backward)


def angle(inputs: Tensor, pseudogradient: Tensor) -> Tensor:
    """Overlap of the inputs x with their pseudogradient B d, where d is the upstream error: tr(x^T B d).

    The pseudogradient of the inputs is the error that the layer sends back through B in place of W^T. The gradient of
    this primitive to B is the transpose of the gradient of J to W. `operations` passes it to B with `tie_gradient`, at
    no cost; this function returns only the value. The pseudogradient already contains the factor 1 / batch size of the
    mean in J, so here the batch is summed.

    Args:
        inputs: x, `(batch, ..., inputs)`.
        pseudogradient: B d, of the same shape.
    """
    return _total(precision.widened(inputs) * precision.widened(pseudogradient))


@tf.custom_gradient
def _dot(first: Tensor, second: Tensor) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, Tensor]]]:
    """Returns the inner product of two vectors.

    An elementwise product would be as large as the kernels. The product of a row and a column takes a quarter of the
    time of `tf.einsum`, and the gradient below takes half of the time of a matrix product.
    """

    def gradient(upstream: Tensor) -> tuple[Tensor, Tensor]:
        return upstream * second, upstream * first

    return tf.reshape(tf.matmul(first[tf.newaxis], second[:, tf.newaxis]), []), gradient


def _total(tensor: Tensor) -> Tensor:
    return tf.reduce_sum(tensor)


def _mean_energy(signal: Tensor) -> Tensor:
    """Returns half the sum of squares of each example, averaged over the batch, in one pass over the signal."""
    energy = tf.nn.l2_loss(precision.widened(signal))
    return energy / examples.divisor(signal, energy.dtype)
