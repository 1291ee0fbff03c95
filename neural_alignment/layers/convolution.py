"""The convolution with a backward kernel."""

from __future__ import annotations

from typing import Any, Literal

import keras

from neural_alignment.alignments import Alignment
from neural_alignment.layers.base import AlignedLayer, with_initializer
from neural_alignment.operations import ConvMap
from neural_alignment.serialization import serializable


@serializable
class Conv2D(AlignedLayer, keras.layers.Conv2D):
    """`keras.layers.Conv2D` whose error travels back through a backward kernel of the same shape as the forward kernel.

    It maps `(batch, height, width, inputs)` to `(batch, new height, new width, filters)`. With an alignment only
    channels-last data and one group are supported.

    Args:
        filters: number of output channels.
        kernel_size: rows and columns of the kernel.
        *args: as in `keras.layers.Conv2D`.
        alignment: the rule of the layer. None means plain backpropagation; the layer then has no B.
        alignment_activation: the nonlinearity that follows the layer, if it is not the layer's `activation`, for
            example after batch normalisation.
        parameterization: as in `Dense`; the fan-in is rows times columns times inputs.
        **kwargs: as in `keras.layers.Conv2D`.

    Raises:
        ValueError: if an argument has a wrong type, or a value that an aligned convolution does not support: `groups`
            other than 1, `data_format="channels_first"`.
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int | tuple[int, int],
        *args: Any,
        alignment: Alignment | None = None,
        alignment_activation: Any = None,
        parameterization: Literal["standard", "ntk"] = "standard",
        **kwargs: Any,
    ):
        options = with_initializer(kwargs, parameterization, given=len(args) > 7)
        super().__init__(filters, kernel_size, *args, **options)
        self._set_alignment(alignment, alignment_activation, parameterization)
        if self._is_native:
            return
        if self.groups != 1:
            raise ValueError(
                f"`groups` must be 1 in an aligned convolution. Received groups={self.groups}. "
                "Example: groups=1, or alignment=None for backpropagation."
            )
        if self.data_format != "channels_last":
            raise ValueError(
                '`data_format` must be "channels_last" in an aligned convolution. '
                f'Received data_format={self.data_format!r}. Example: data_format="channels_last".'
            )

    def linear_map(self) -> ConvMap:
        """Returns the linear map: a convolution."""
        return ConvMap(tuple(self.strides), self.padding.upper(), tuple(self.dilation_rate))
