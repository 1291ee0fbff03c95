"""Linear maps of convolutions: of one to three dimensions, grouped, depthwise and transposed.

The last axis of inputs and outputs contains the channels.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import tensorflow as tf

from neural_alignment.operations.linear_map import LinearMap

Tensor = tf.Tensor


@dataclass(frozen=True)
class ConvMap(LinearMap):
    """The map x -> conv(x, W) of a convolution in one, two or three dimensions, with any number of groups.

    Kernels have the shape `(*taps, inputs of a group, outputs)`. A dilated kernel is expanded with zeros between its
    taps, because TensorFlow's CPU kernels do not support gradients of dilated convolutions in every dtype.

    Args:
        strides: steps between two output positions, one for each dimension.
        padding: `"VALID"`, `"SAME"` or, in one dimension, `"CAUSAL"`.
        dilations: steps between two taps of the kernel, one for each dimension.
        groups: number of groups.
    """

    strides: tuple[int, ...] = (1, 1)
    padding: str = "VALID"
    dilations: tuple[int, ...] = (1, 1)
    groups: int = 1

    def project(self, inputs: Tensor, kernel: Tensor) -> Tensor:
        """Returns the convolution of `inputs` `(batch, *space, inputs)` with `kernel`."""
        return self._by_group(_convolve, self._padded(inputs, kernel), _spread(kernel, self.dilations))

    def reconstruct(self, outputs: Tensor, kernel: Tensor, like: Tensor) -> Tensor:
        """Returns the transposed convolution of `outputs` with `kernel`, in the shape of `like`."""
        spread = _spread(kernel, self.dilations)
        found = self._by_group(_input_gradient, self._padded(like, kernel), spread, outputs)
        return found[:, spread.shape[0] - 1 :] if self.padding == "CAUSAL" else found

    def correlate(self, inputs: Tensor, outputs: Tensor, like: Tensor) -> Tensor:
        """Returns the correlation of `inputs` with `outputs`, summed over batch and space, in the shape of `like`."""
        padded, spread = self._padded(inputs, like), _spread(like, self.dilations)
        return _unspread(self._by_group(_kernel_gradient, padded, spread, outputs), self.dilations)

    def units(self, shape: Sequence[int]) -> tuple[int, int]:
        """Returns the number of groups and the number of output units in each, for a kernel of `shape`."""
        return self.groups, shape[-1] // self.groups

    def _by_group(self, operation: Callable[..., Tensor], inputs: Tensor, kernel: Tensor, *outputs: Tensor) -> Tensor:
        """Calls an operation for all groups at once, or for each group if TensorFlow cannot do it at once."""
        if self.groups == 1 or _has_grouped_operations(kernel):
            return self._lifted(operation, inputs, kernel, *outputs)
        parts = (tf.split(each, self.groups, axis=-1) for each in (inputs, kernel, *outputs))
        return tf.concat([self._lifted(operation, *each) for each in zip(*parts, strict=True)], axis=-1)

    def _padded(self, inputs: Tensor, kernel: Tensor) -> Tensor:
        """Returns the inputs, with zeros before them if the padding is causal."""
        if self.padding != "CAUSAL":
            return inputs
        reach = (kernel.shape[0] - 1) * self.dilations[0]
        return tf.pad(inputs, [[0, 0], [reach, 0], [0, 0]])

    def _lifted(self, operation: Callable[..., Tensor], inputs: Tensor, kernel: Tensor, *outputs: Tensor) -> Tensor:
        """Calls an operation of two or three dimensions; signals and kernels of one dimension get a second one."""
        padding = "VALID" if self.padding == "CAUSAL" else self.padding
        if len(self.strides) > 1:
            return operation(inputs, kernel, *outputs, strides=self.strides, padding=padding)
        lifted = (inputs[:, None], kernel[None], *(each[:, None] for each in outputs))
        found = operation(*lifted, strides=(1, *self.strides), padding=padding)
        return tf.squeeze(found, 0 if operation is _kernel_gradient else 1)


@dataclass(frozen=True)
class DepthwiseMap(LinearMap):
    """The map of a depthwise convolution in one or two dimensions: each channel is convolved by itself.

    Kernels have the shape `(*taps, inputs, outputs of a channel)`.

    Args:
        strides: as in `ConvMap`.
        padding: as in `ConvMap`.
        dilations: as in `ConvMap`.
    """

    group_axes = (-2,)

    strides: tuple[int, ...] = (1, 1)
    padding: str = "VALID"
    dilations: tuple[int, ...] = (1, 1)

    def project(self, inputs: Tensor, kernel: Tensor) -> Tensor:
        """Returns the convolution of each channel of `inputs` with its part of `kernel`."""
        if not self._has_operations:
            return self._grouped(kernel).project(inputs, _as_groups(kernel))
        inputs, kernel = self._lifted(self._padded(inputs, kernel), _spread(kernel, self.dilations))
        found = tf.nn.depthwise_conv2d(inputs, kernel, **self._options)
        return found if len(self.strides) > 1 else tf.squeeze(found, 1)

    def reconstruct(self, outputs: Tensor, kernel: Tensor, like: Tensor) -> Tensor:
        """Returns the adjoint of `project` in its inputs, in the shape of `like`."""
        if not self._has_operations:
            return self._grouped(kernel).reconstruct(outputs, _as_groups(kernel), like)
        spread = _spread(kernel, self.dilations)
        padded, lifted, outputs = self._lifted(self._padded(like, kernel), spread, outputs)
        found = tf.raw_ops.DepthwiseConv2dNativeBackpropInput(
            input_sizes=tf.shape(padded), filter=lifted, out_backprop=outputs, **self._options
        )
        found = found if len(self.strides) > 1 else tf.squeeze(found, 1)
        return found[:, spread.shape[0] - 1 :] if self.padding == "CAUSAL" else found

    def correlate(self, inputs: Tensor, outputs: Tensor, like: Tensor) -> Tensor:
        """Returns the adjoint of `project` in its kernel, in the shape of `like`."""
        if not self._has_operations:
            return tf.reshape(self._grouped(like).correlate(inputs, outputs, _as_groups(like)), like.shape)
        inputs, spread, outputs = self._lifted(self._padded(inputs, like), _spread(like, self.dilations), outputs)
        found = tf.raw_ops.DepthwiseConv2dNativeBackpropFilter(
            input=inputs, filter_sizes=spread.shape, out_backprop=outputs, **self._options
        )
        return _unspread(found if len(self.strides) > 1 else found[0], self.dilations)

    def fan_in(self, shape: Sequence[int]) -> int:
        """Returns the number of taps."""
        return math.prod(shape[:-2])

    @property
    def _has_operations(self) -> bool:
        """Whether TensorFlow has the operation: not in every dtype with strides that differ."""
        return len({*self.strides}) == 1

    def _grouped(self, kernel: Tensor) -> ConvMap:
        """Returns the map as a convolution with one group for each channel."""
        return ConvMap(self.strides, self.padding, self.dilations, kernel.shape[-2])

    @property
    def _options(self) -> dict:
        stride = self.strides[0]
        return {
            "strides": [1, stride, stride, 1],
            "padding": "VALID" if self.padding == "CAUSAL" else self.padding,
        }

    def _padded(self, inputs: Tensor, kernel: Tensor) -> Tensor:
        return self._grouped(kernel)._padded(inputs, kernel)

    def _lifted(self, inputs: Tensor, kernel: Tensor, *outputs: Tensor) -> tuple[Tensor, ...]:
        if len(self.strides) > 1:
            return inputs, kernel, *outputs
        return inputs[:, None], kernel[None], *(each[:, None] for each in outputs)


@dataclass(frozen=True)
class TransposedConvMap(LinearMap):
    """The map of a transposed convolution in one, two or three dimensions: the adjoint of a convolution.

    Kernels have the shape `(*taps, outputs, inputs)`.

    Args:
        strides: as in `ConvMap`, of the convolution whose adjoint this is.
        padding: `"VALID"` or `"SAME"`.
        dilations: as in `ConvMap`.
        output_padding: additional positions at the end of each dimension; None for the smallest outputs with `"VALID"`
            and for `strides` times the inputs with `"SAME"`.
    """

    output_axes = (-2,)

    strides: tuple[int, ...] = (1, 1)
    padding: str = "VALID"
    dilations: tuple[int, ...] = (1, 1)
    output_padding: tuple[int, ...] | None = None

    def project(self, inputs: Tensor, kernel: Tensor) -> Tensor:
        """Returns the transposed convolution of `inputs` `(batch, *space, inputs)` with `kernel`."""
        return self._convolution.reconstruct(inputs, kernel, like=self._like_outputs(inputs, kernel))

    def reconstruct(self, outputs: Tensor, kernel: Tensor, like: Tensor) -> Tensor:
        """Returns the convolution of `outputs` with `kernel`."""
        del like
        return self._convolution.project(outputs, kernel)

    def correlate(self, inputs: Tensor, outputs: Tensor, like: Tensor) -> Tensor:
        """Returns the correlation of `outputs` with `inputs`, in the shape of `like`."""
        return self._convolution.correlate(outputs, inputs, like)

    def fan_in(self, shape: Sequence[int]) -> int:
        """Returns the number of taps times the number of inputs; with strides an output has fewer."""
        return math.prod(shape[:-2]) * shape[-1]

    def multiplications(self, inputs: Sequence[int], kernel: Sequence[int], outputs: Sequence[int]) -> int:
        """Returns the number of entries of the kernel times the number of positions of the inputs."""
        del outputs
        return math.prod(kernel) * math.prod(inputs[:-1])

    @property
    def _convolution(self) -> ConvMap:
        return ConvMap(self.strides, self.padding, self.dilations)

    def _like_outputs(self, inputs: Tensor, kernel: Tensor) -> Tensor:
        """Returns a tensor in the shape of the outputs, whose values are not used."""
        shape = tf.shape(inputs)
        sizes = [self._size(axis, shape[axis + 1], kernel.shape[axis]) for axis in range(len(self.strides))]
        static = [self._size(axis, inputs.shape[axis + 1], kernel.shape[axis]) for axis in range(len(self.strides))]
        zeros = tf.zeros([shape[0], *sizes, kernel.shape[-2]], inputs.dtype)
        zeros.set_shape([inputs.shape[0], *static, kernel.shape[-2]])
        return zeros

    def _size(self, axis: int, size: Tensor | int | None, taps: int) -> Tensor | int | None:
        """Returns the number of output positions along one axis."""
        if size is None:
            return None
        stride, reach = self.strides[axis], (taps - 1) * self.dilations[axis] + 1
        if self.output_padding is None:
            return size * stride + (max(reach - stride, 0) if self.padding == "VALID" else 0)
        padding = 2 * (reach // 2) if self.padding == "SAME" else 0
        return (size - 1) * stride + reach - padding + self.output_padding[axis]


def _convolve(inputs: Tensor, kernel: Tensor, strides: tuple[int, ...], padding: str) -> Tensor:
    """Returns the convolution in two or three dimensions."""
    convolve = tf.nn.conv2d if len(strides) == 2 else tf.nn.conv3d
    return convolve(inputs, kernel, [1, *strides, 1], padding)


def _input_gradient(inputs: Tensor, kernel: Tensor, outputs: Tensor, strides: tuple[int, ...], padding: str) -> Tensor:
    """Returns the adjoint of `_convolve` in its inputs; only the shape of `inputs` is used."""
    options = {"filter": kernel, "out_backprop": outputs, "strides": [1, *strides, 1], "padding": padding}
    operation = tf.raw_ops.Conv2DBackpropInput if len(strides) == 2 else tf.raw_ops.Conv3DBackpropInputV2
    return operation(input_sizes=tf.shape(inputs), **options)


def _kernel_gradient(inputs: Tensor, kernel: Tensor, outputs: Tensor, strides: tuple[int, ...], padding: str) -> Tensor:
    """Returns the adjoint of `_convolve` in its kernel; only the shape of `kernel` is used."""
    options = {"filter_sizes": kernel.shape, "out_backprop": outputs, "strides": [1, *strides, 1], "padding": padding}
    operation = tf.raw_ops.Conv2DBackpropFilter if len(strides) == 2 else tf.raw_ops.Conv3DBackpropFilterV2
    return operation(input=inputs, **options)


def _has_grouped_operations(kernel: Tensor) -> bool:
    """Whether a convolution with groups and its gradients are one operation each: not in three dimensions."""
    if kernel.shape.rank > 4 or kernel.dtype not in (tf.float32, tf.bfloat16):
        return False
    has_accelerator = any(tf.config.list_logical_devices(kind) for kind in ("GPU", "TPU"))
    return has_accelerator or _cpu_has_grouped_gradients(kernel.dtype)


@functools.cache
def _cpu_has_grouped_gradients(dtype: tf.DType) -> bool:
    """Whether the CPU computes the gradients of a convolution with groups in a dtype, which is found by trying.

    Only oneDNN does, if it is enabled, and in bfloat16 only with some instruction sets.
    """
    with tf.init_scope(), tf.device("CPU:0"):
        signals, kernel = tf.ones([1, 1, 1, 2], dtype), tf.ones([1, 1, 1, 2], dtype)
        try:
            for gradient in (_input_gradient, _kernel_gradient):
                gradient(signals, kernel, signals, (1, 1), "VALID")
        except (tf.errors.InvalidArgumentError, tf.errors.UnimplementedError):
            return False
    return True


def _as_groups(kernel: Tensor) -> Tensor:
    """Returns the kernel of a depthwise convolution as that of a convolution with one group for each channel."""
    *taps, inputs, outputs = kernel.shape
    return tf.reshape(kernel, [*taps, 1, inputs * outputs])


def _spread(kernel: Tensor, dilations: tuple[int, ...]) -> Tensor:
    """Expands a dilated kernel with zeros between the taps."""
    for axis, dilation in enumerate(dilations):
        if dilation == 1:
            continue
        before, (taps, *after) = kernel.shape[:axis], kernel.shape[axis:]
        blocks = tf.reshape(kernel, [math.prod(before), taps, 1, math.prod(after)])
        blocks = tf.pad(blocks, [[0, 0], [0, 0], [0, dilation - 1], [0, 0]])
        rows = tf.reshape(blocks, [math.prod(before), taps * dilation, math.prod(after)])
        kernel = tf.reshape(rows[:, : (taps - 1) * dilation + 1], [*before, (taps - 1) * dilation + 1, *after])
    return kernel


def _unspread(kernel: Tensor, dilations: tuple[int, ...]) -> Tensor:
    """Returns the taps of an expanded kernel: the adjoint of `_spread`."""
    return kernel[tuple(slice(None, None, each) for each in dilations)] if {*dilations} != {1} else kernel
