"""Linear operations whose backward pass uses a separate kernel.

`matmul` and `conv2d` apply the forward kernel W in the forward pass and send the error back through the backward
kernel B (Kunin et al. 2020, Appendix A.1). They are built on the linear maps `DenseMap` and `ConvMap`. The learning
rules use the same two classes, so no other module needs to distinguish dense from convolutional layers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import tensorflow as tf

Tensor = tf.Tensor


@dataclass(frozen=True)
class DenseMap:
    """The map x -> x W of a dense layer. Axes between the first and the last are treated as spatial axes.

    Kernels have the shape `(inputs, outputs)`.
    """

    def project(self, inputs: Tensor, kernel: Tensor) -> Tensor:
        """Returns `inputs` `(batch, ..., inputs)` times `kernel`, of shape `(batch, ..., outputs)`."""
        if inputs.shape.rank == 2:
            return tf.matmul(inputs, kernel)
        return tf.tensordot(inputs, kernel, axes=1)

    def reconstruct(self, outputs: Tensor, kernel: Tensor, like: Tensor) -> Tensor:
        """Returns the adjoint of `project` applied to `outputs`, in the shape of `like`."""
        del like  # The kernel determines the shape of the inputs; for a convolution it does not.
        if outputs.shape.rank == 2:
            return tf.matmul(outputs, kernel, transpose_b=True)
        return tf.tensordot(outputs, kernel, axes=[[-1], [1]])

    def correlate(self, inputs: Tensor, outputs: Tensor, like: Tensor) -> Tensor:
        """Returns the outer product of `inputs` and `outputs`, summed over the batch, in the shape of `like`."""
        flat_inputs = tf.reshape(inputs, [-1, like.shape[0]])
        flat_outputs = tf.reshape(outputs, [-1, like.shape[1]])
        return tf.matmul(flat_inputs, flat_outputs, transpose_a=True)

    def transpose(self, kernel: Tensor) -> Tensor:
        """Converts a backward kernel `(outputs, inputs)` to the layout of the forward kernel, or the reverse."""
        return tf.transpose(kernel)

    def transposed_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the shape that a kernel of the shape `shape` has after `transpose`."""
        return tuple(reversed(shape))


@dataclass(frozen=True)
class ConvMap:
    """The map x -> conv(x, W) of a two-dimensional convolution of inputs `(batch, height, width, channels)`.

    Kernels have the shape `(rows, columns, inputs, outputs)`. A dilated kernel is expanded with zeros between its taps,
    because TensorFlow's CPU kernels do not support gradients of dilated convolutions in every dtype.

    Args:
        strides: rows and columns between neighbouring output positions.
        padding: `"VALID"` or `"SAME"`.
        dilations: rows and columns between neighbouring taps of the kernel.
    """

    strides: tuple[int, int] = (1, 1)
    padding: str = "VALID"
    dilations: tuple[int, int] = (1, 1)

    def project(self, inputs: Tensor, kernel: Tensor) -> Tensor:
        """Returns the convolution of `inputs` `(batch, height, width, inputs)` with `kernel`."""
        return tf.nn.conv2d(inputs, self._spread(kernel), self.strides, self.padding)

    def reconstruct(self, outputs: Tensor, kernel: Tensor, like: Tensor) -> Tensor:
        """Returns the adjoint of `project` (a transposed convolution) applied to `outputs`, in the shape of `like`."""
        return tf.raw_ops.Conv2DBackpropInput(
            input_sizes=tf.shape(like),
            filter=self._spread(kernel),
            out_backprop=outputs,
            strides=[1, *self.strides, 1],
            padding=self.padding,
        )

    def correlate(self, inputs: Tensor, outputs: Tensor, like: Tensor) -> Tensor:
        """Returns `inputs` correlated with `outputs`, summed over batch and space, in the shape of `like`."""
        height, width, *channels = like.shape
        rows, columns = self.dilations
        spread = tf.raw_ops.Conv2DBackpropFilter(
            input=inputs,
            filter_sizes=[(height - 1) * rows + 1, (width - 1) * columns + 1, *channels],
            out_backprop=outputs,
            strides=[1, *self.strides, 1],
            padding=self.padding,
        )
        return spread[::rows, ::columns] if self.dilations != (1, 1) else spread

    def transpose(self, kernel: Tensor) -> Tensor:
        """Returns `kernel` unchanged: both kernels of a convolution have the same layout."""
        return kernel

    def transposed_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Returns `shape` unchanged, because `transpose` does not change a kernel."""
        return tuple(shape)

    def _spread(self, kernel: Tensor) -> Tensor:
        """Expands a dilated kernel with zeros between the taps."""
        if self.dilations == (1, 1):
            return kernel
        height, width, inputs, outputs = kernel.shape
        rows, columns = self.dilations
        blocks = tf.pad(kernel[:, None, :, None], [[0, 0], [0, rows - 1], [0, 0], [0, columns - 1], [0, 0], [0, 0]])
        spread = tf.reshape(blocks, [height * rows, width * columns, inputs, outputs])
        return spread[: (height - 1) * rows + 1, : (width - 1) * columns + 1]


LinearMap = DenseMap | ConvMap


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
        weight_transport: called in every backward pass. If it returns True, the error goes back through W, as in
            backpropagation, and the gradient of B is zero. One forward pass can be followed by backward passes of
            both kinds.

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
        raise ValueError(
            "`forward_kernel` must have the shape (inputs, outputs) and `backward_kernel` (outputs, inputs). "
            f"Received forward_kernel {tuple(forward_kernel.shape)} and backward_kernel "
            f"{tuple(backward_kernel.shape)}. Example: (20, 5) and (5, 20)."
        )
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
        raise ValueError(
            "`forward_kernel` and `backward_kernel` must both have the shape (rows, columns, inputs, outputs). "
            f"Received {tuple(forward_kernel.shape)} and {tuple(backward_kernel.shape)}. Example: (3, 3, 16, 32)."
        )
    if not isinstance(padding, str) or padding.upper() not in ("VALID", "SAME"):
        raise ValueError(f'`padding` must be "VALID" or "SAME". Received {padding!r}. Example: padding="SAME".')
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
        raise ValueError(f"`{name}` must be one or two positive integers. Received {value!r}. Example: {name}=(2, 2).")
    return pair
