"""Convolutions with a backward kernel: plain, grouped, depthwise, separable and transposed.

All of them need `data_format="channels_last"` when they have an alignment. The arguments are those of the native layer
and of `AlignedLayer`. Backward kernels have the shape of the kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from neural_alignment.alignments import ForwardPass
from neural_alignment.layers.base import FeedforwardLayer, SingleKernelLayer, output_shape
from neural_alignment.layers.connection import Connection
from neural_alignment.operations import ConvMap, DepthwiseMap, TransposedConvMap
from neural_alignment.serialization import serializable

Tensor = tf.Tensor


class _Convolution(SingleKernelLayer):
    """A convolution of any dimension with any number of groups."""

    def linear_map(self) -> ConvMap:
        """Returns the linear map: a convolution."""
        return ConvMap(tuple(self.strides), self.padding.upper(), tuple(self.dilation_rate), self.groups)


class _DepthwiseConvolution(SingleKernelLayer):
    """A depthwise convolution of one or two dimensions. The fan-in is the number of taps."""

    initializer_arguments = ("depthwise_initializer",)

    def linear_map(self) -> DepthwiseMap:
        """Returns the linear map of the convolution."""
        return DepthwiseMap(tuple(self.strides), self.padding.upper(), tuple(self.dilation_rate))

    def regularizer_argument(self, connection: Connection) -> str:
        """Returns the name in Keras, which calls the weight `kernel`. See `AlignedLayer.regularizer_argument`."""
        del connection
        return "depthwise_regularizer"


class _TransposedConvolution(SingleKernelLayer):
    """A transposed convolution of any dimension."""

    def linear_map(self) -> TransposedConvMap:
        """Returns the linear map of the transposed convolution."""
        added = self.output_padding
        if isinstance(added, int):
            added = (added,) * self.rank
        return TransposedConvMap(
            tuple(self.strides), self.padding.upper(), tuple(self.dilation_rate), added and tuple(added)
        )


class _SeparableConvolution(FeedforwardLayer):
    """A depthwise and a pointwise convolution in one layer, with a backward kernel for each."""

    initializer_arguments = ("depthwise_initializer", "pointwise_initializer")

    kernel_names = ("depthwise_kernel", "pointwise_kernel")

    @property
    def backward_depthwise_kernel(self) -> Any:
        """B of the depthwise convolution, in the shape of W. See `SingleKernelLayer.backward_kernel`."""
        return self.connection("depthwise_kernel").backward_kernel

    @property
    def backward_pointwise_kernel(self) -> Any:
        """B of the pointwise convolution, in the shape of W. See `SingleKernelLayer.backward_kernel`."""
        return self.connection("pointwise_kernel").backward_kernel

    def make_connections(self) -> Sequence[Connection]:
        """Returns the depthwise and the pointwise connection."""
        depthwise, pointwise = self._maps
        return (
            self.connect(depthwise, "depthwise_kernel"),
            self.connect(pointwise, "pointwise_kernel", bias=self.bias, following_activation=self.following_activation),
        )

    @property
    def inner_connections(self) -> list[str]:
        """The name of the depthwise connection, whose outputs enter the other one. See `AlignedAttention`."""
        return [self.make_connections()[0].name]

    def input_shapes(self, inputs: Sequence[int | None] | None = None) -> list[tuple[int | None, ...]]:
        """Returns the shapes of the inputs of both connections. See `AlignedLayer.input_shapes`."""
        (shape,) = super().input_shapes(inputs)
        return [shape, output_shape(self._maps[0], shape, self.depthwise_kernel.shape)]

    def last_projection(
        self, inputs: Tensor, bias: Tensor | None, state: ForwardPass, training: bool | None
    ) -> tuple[Tensor, Tensor]:
        """Returns the outputs of the depthwise connection and their projection by the pointwise one.

        See `FeedforwardLayer.last_projection`.
        """
        depthwise, pointwise = self._maps
        hidden = self.project(depthwise, inputs, state, training, kernel_name="depthwise_kernel")
        if state.probe is not None:
            hidden = state.probe(self.make_connections()[0], inputs, hidden)
        return hidden, self.project(pointwise, hidden, state, training, bias, "pointwise_kernel")

    @property
    def _maps(self) -> tuple[DepthwiseMap, ConvMap]:
        ones = (1,) * self.rank
        depthwise = DepthwiseMap(tuple(self.strides), self.padding.upper(), tuple(self.dilation_rate))
        return depthwise, ConvMap(ones, "VALID", ones)


@serializable
class Conv1D(_Convolution, keras.layers.Conv1D):
    """`keras.layers.Conv1D` whose error travels back through a backward kernel."""


@serializable
class Conv2D(_Convolution, keras.layers.Conv2D):
    """`keras.layers.Conv2D` whose error travels back through a backward kernel."""


@serializable
class Conv3D(_Convolution, keras.layers.Conv3D):
    """`keras.layers.Conv3D` whose error travels back through a backward kernel."""


@serializable
class DepthwiseConv1D(_DepthwiseConvolution, keras.layers.DepthwiseConv1D):
    """`keras.layers.DepthwiseConv1D` whose error travels back through a backward kernel."""


@serializable
class DepthwiseConv2D(_DepthwiseConvolution, keras.layers.DepthwiseConv2D):
    """`keras.layers.DepthwiseConv2D` whose error travels back through a backward kernel."""


@serializable
class SeparableConv1D(_SeparableConvolution, keras.layers.SeparableConv1D):
    """`keras.layers.SeparableConv1D` whose error travels back through two backward kernels."""


@serializable
class SeparableConv2D(_SeparableConvolution, keras.layers.SeparableConv2D):
    """`keras.layers.SeparableConv2D` whose error travels back through two backward kernels."""


@serializable
class Conv1DTranspose(_TransposedConvolution, keras.layers.Conv1DTranspose):
    """`keras.layers.Conv1DTranspose` whose error travels back through a backward kernel."""


@serializable
class Conv2DTranspose(_TransposedConvolution, keras.layers.Conv2DTranspose):
    """`keras.layers.Conv2DTranspose` whose error travels back through a backward kernel."""


@serializable
class Conv3DTranspose(_TransposedConvolution, keras.layers.Conv3DTranspose):
    """`keras.layers.Conv3DTranspose` whose error travels back through a backward kernel."""
