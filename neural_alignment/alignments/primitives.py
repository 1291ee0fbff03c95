"""The six primitives of regularisation (Kunin et al. 2020, Table 1 and Appendix D.3).

A primitive of signals is a mean over the batch and a sum over all other axes, including space. A primitive of kernels
is a sum over their entries. Sums are computed in at least float32.
"""

from __future__ import annotations

import tensorflow as tf

Tensor = tf.Tensor


def decay(backward_kernel: Tensor, forward_kernel: Tensor | None = None) -> Tensor:
    """Energy of the backward kernel: 1/2 ||B||^2; with W, as where R moves W too, 1/2 (||B||^2 + ||W||^2)."""
    energy = tf.nn.l2_loss(_widened(backward_kernel))
    return energy if forward_kernel is None else energy + tf.nn.l2_loss(_widened(forward_kernel))


def amp(backward_projection: Tensor, forward_projection: Tensor) -> Tensor:
    """Overlap of the backward with the forward projection: -tr(x^T B x_out).

    Because <B^T x, x_out> = <x, B x_out>, the arguments can also be the layer's inputs and their reconstruction.
    """
    return -_batch_mean(_widened(backward_projection) * _widened(forward_projection))


def null(reconstruction: Tensor) -> Tensor:
    """Energy of the reconstruction: 1/2 ||B x_out||^2."""
    return 0.5 * _batch_mean(tf.square(_widened(reconstruction)))


def sparse(backward_projection: Tensor, forward_projection: Tensor | None = None) -> Tensor:
    """Energy of the backward projection: 1/2 ||B^T x||^2; with W^T x, as where R moves W too, that of both."""
    energy = 0.5 * _batch_mean(tf.square(_widened(backward_projection)))
    return energy if forward_projection is None else energy + 0.5 * _batch_mean(tf.square(_widened(forward_projection)))


def self_(forward_kernel: Tensor, backward_kernel: Tensor) -> Tensor:
    """Overlap of the two kernels: -tr(B W).

    Both arguments have the same layout, that of W or that of B.
    """
    # One operation with a scalar result. The elementwise product would be as large as the kernels.
    forward, backward = (tf.reshape(_widened(kernel), [-1]) for kernel in (forward_kernel, backward_kernel))
    return -tf.einsum("i,i->", forward, backward)


def angle(inputs: Tensor, pseudogradient: Tensor) -> Tensor:
    """Overlap of the inputs with the pseudogradient of J to them: tr(x^T B d), d the upstream error.

    Its gradient to B is the transpose of the gradient of J to W. `operations` passes it to B with `tie_gradient`, at no
    cost. This function returns only the value. The pseudogradient contains the factor 1/n of the mean in J, so the
    batch is summed here.
    """
    return _total(_widened(inputs) * _widened(pseudogradient))


def _widened(tensor: Tensor) -> Tensor:
    """Casts half precision to float32; returns other dtypes unchanged."""
    tensor = tf.convert_to_tensor(tensor)
    return tf.cast(tensor, tf.float32) if tensor.dtype in (tf.bfloat16, tf.float16) else tensor


def _total(tensor: Tensor) -> Tensor:
    return tf.reduce_sum(tensor)


def _batch_mean(tensor: Tensor) -> Tensor:
    return tf.reduce_sum(tensor) / tf.cast(tf.shape(tensor)[0], tensor.dtype)
