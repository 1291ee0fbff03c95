"""Linear operations whose backward pass uses a separate kernel.

`matmul` and `conv2d` apply the forward kernel W in the forward pass and send the error back through the backward
kernel B (Kunin et al. 2020, Appendix A.1). `carry` does the same for any linear map.
"""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from neural_alignment.errors import ArgumentError, Words
from neural_alignment.operations.convolution import ConvMap
from neural_alignment.operations.linear_map import DenseMap, LinearMap

Tensor = tf.Tensor


def carry(
    linear_map: LinearMap,
    inputs: Tensor,
    forward_kernel: Tensor,
    backward_kernel: Tensor,
    tie_gradient: bool = False,
    weight_transport: Callable[[], bool] = lambda: False,
) -> Tensor:
    """Applies `linear_map` with the forward kernel and sends the error back through the backward kernel.

    Args:
        linear_map: the map of the layer.
        inputs: `(batch, ..., inputs)`, as `linear_map.project` takes them.
        forward_kernel: W.
        backward_kernel: B, in the layout of W.
        tie_gradient: if True, the gradient of B equals that of W (Kolen-Pollack); if False, it is zero.
        weight_transport: called in every backward pass, which in a loop is traced together with the loop. If it returns
            True, the error goes back through W, as in backpropagation, and the gradient of B is zero.

    Returns:
        The projection of `inputs` by `forward_kernel`, `(batch, ..., outputs)`.
    """

    @tf.custom_gradient
    def operation(inputs, forward_kernel, backward_kernel):
        def gradient(upstream):
            transports = weight_transport()
            d_inputs = linear_map.reconstruct(upstream, forward_kernel if transports else backward_kernel, like=inputs)
            d_forward = linear_map.correlate(inputs, upstream, like=forward_kernel)
            d_backward = d_forward if tie_gradient and not transports else tf.zeros_like(backward_kernel)
            return d_inputs, d_forward, d_backward

        return linear_map.project(inputs, forward_kernel), gradient

    return operation(inputs, forward_kernel, backward_kernel)


def matmul(inputs: Tensor, forward_kernel: Tensor, backward_kernel: Tensor, tie_gradient: bool = False) -> Tensor:
    """Multiplies `inputs` by the forward kernel. The gradient to `inputs` goes through the backward kernel.

    For inputs x and the upstream error d, the gradients are dx = d B and dW = x^T d. dB is zero, or dW^T with
    `tie_gradient` (Kunin et al. 2020, Appendices A.1 and D.3).

    Args:
        inputs: `(batch, inputs)`.
        forward_kernel: `(inputs, outputs)`.
        backward_kernel: `(outputs, inputs)`.
        tie_gradient: if True, the gradient of the backward kernel is the transposed gradient of the forward kernel; if
            False, it is zero.

    Returns:
        `(batch, outputs)`.

    Raises:
        ValueError: if a kernel is not a matrix, or the shape of one is not the transposed shape of the other.
    """
    inputs, forward_kernel, backward_kernel = _tensors(inputs, forward_kernel, backward_kernel)
    if forward_kernel.shape.rank != 2 or list(backward_kernel.shape) != list(reversed(forward_kernel.shape)):
        shapes = [tuple(kernel.shape) for kernel in (forward_kernel, backward_kernel)]
        requirement = "must have the shape (inputs, outputs), and `backward_kernel` (outputs, inputs)"
        found = Words(f"forward_kernel {shapes[0]} and backward_kernel {shapes[1]}")
        raise ArgumentError("forward_kernel", requirement, found, "(20, 5) and (5, 20)")
    linear_map = DenseMap()
    return carry(linear_map, inputs, forward_kernel, linear_map.transpose(backward_kernel), tie_gradient)


def conv2d(
    inputs: Tensor,
    forward_kernel: Tensor,
    backward_kernel: Tensor,
    strides: int | tuple[int, int] = (1, 1),
    padding: str = "VALID",
    tie_gradient: bool = False,
    dilations: int | tuple[int, int] = (1, 1),
) -> Tensor:
    """Convolves `inputs` with the forward kernel. The gradient to `inputs` goes through the backward kernel.

    The forward kernel gets the usual gradient. The gradient of the backward kernel is zero, or equals that of the
    forward kernel with `tie_gradient` (Kunin et al. 2020, Appendices A.1 and D.3).

    Args:
        inputs: `(batch, height, width, inputs)`.
        forward_kernel: `(rows, columns, inputs, outputs)`.
        backward_kernel: `(rows, columns, inputs, outputs)`.
        strides: one or two positive integers.
        padding: `"VALID"` or `"SAME"`.
        tie_gradient: if True, the gradient of the backward kernel equals that of the forward kernel; if False, it is
            zero.
        dilations: one or two positive integers.

    Returns:
        `(batch, new height, new width, outputs)`.

    Raises:
        ValueError: if an argument is out of range or the shapes of the kernels differ.
    """
    inputs, forward_kernel, backward_kernel = _tensors(inputs, forward_kernel, backward_kernel)
    if forward_kernel.shape.rank != 4 or forward_kernel.shape != backward_kernel.shape:
        requirement = "and `backward_kernel` must both have the shape (rows, columns, inputs, outputs)"
        found = Words(f"{tuple(forward_kernel.shape)} and {tuple(backward_kernel.shape)}")
        raise ArgumentError("forward_kernel", requirement, found, "(3, 3, 16, 32)")
    if not isinstance(padding, str) or padding.upper() not in ("VALID", "SAME"):
        raise ArgumentError("padding", 'must be "VALID" or "SAME"', padding, 'padding="SAME"')
    linear_map = ConvMap(_pair("strides", strides), padding.upper(), _pair("dilations", dilations))
    return carry(linear_map, inputs, forward_kernel, backward_kernel, tie_gradient)


def _tensors(inputs, *kernels) -> list[Tensor]:
    """Converts arrays and variables to tensors. Inputs without a dtype get the dtype of the first kernel."""
    kernels = [tf.convert_to_tensor(kernel) for kernel in kernels]
    return [tf.convert_to_tensor(inputs, dtype_hint=kernels[0].dtype), *kernels]


def _pair(name: str, value: int | tuple[int, int]) -> tuple[int, int]:
    """Returns `value` as two positive integers, or raises a `ValueError`."""
    pair = (value, value) if isinstance(value, int) else tuple(value) if isinstance(value, (list, tuple)) else ()
    if len(pair) != 2 or not all(isinstance(v, int) and not isinstance(v, bool) and v >= 1 for v in pair):
        raise ArgumentError(name, "must be one or two positive integers", value, f"{name}=(2, 2)")
    return pair
