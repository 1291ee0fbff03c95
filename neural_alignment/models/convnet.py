"""A small convolutional network for images of 8 to 32 pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import keras
import pydantic
from pydantic import Field

from neural_alignment.errors import ArgumentError
from neural_alignment.models.base import MODELS, BatchNormTrainable, LayerSizes, ModelOptions, sum_of_products
from neural_alignment.models.batch_norm import FusedBatchNormalization
from neural_alignment.models.parts import Parts, Rules


def convnet(
    filters: Sequence[int],
    classes: int,
    input_shape: tuple[int, int, int],
    alignment: Rules = None,
    activation: str = "relu",
    batch_norm: bool = True,
    weight_decay: float = 0.0,
    batch_norm_trainable: bool = True,
) -> keras.Model:
    """Builds a network of 3x3 convolutions that returns logits.

    The first convolution has stride 1, all others have stride 2. Layers are named `conv1`, `conv2` and so on, and
    `dense`.

    Args:
        filters: number of filters of each convolution.
        classes: number of classes.
        input_shape: `(height, width, channels)`.
        alignment: None, one rule for all layers, or rules with patterns of layer names.
        activation: nonlinearity after each convolution.
        batch_norm: whether to insert batch normalisation between a convolution and its nonlinearity. Without it, the
            convolutions have a bias, and aligned networks need lower learning rates.
        weight_decay: coefficient of J's L2 term.
        batch_norm_trainable: whether scale and shift of the batch normalisation are trained. If False, they keep their
            initial values; training still uses the statistics of the batch and updates the moving statistics.

    Returns:
        A functional model, `(batch, height, width, channels)` -> `(batch, classes)`.

    Raises:
        ValueError: if `batch_norm_trainable` is False without batch normalisation.
    """
    if not (batch_norm or batch_norm_trainable):
        raise ValueError(
            "`batch_norm_trainable` must be True without batch normalisation. Received False with batch_norm=False. "
            "Example: batch_norm=True, batch_norm_trainable=False."
        )
    parts = Parts(alignment, weight_decay)
    inputs = x = keras.Input(input_shape)
    for number, outputs in enumerate(filters, start=1):
        strides = 1 if number == 1 else 2
        conv = parts.conv(outputs, 3, f"conv{number}", activation, strides=strides, use_bias=not batch_norm)
        x = conv(x)
        if batch_norm:
            norm = {"momentum": 0.9, "epsilon": 1e-5, "train_scale_and_shift": batch_norm_trainable}
            x = FusedBatchNormalization(name=f"conv{number}_norm", **norm)(x)
        x = keras.layers.Activation(activation, name=f"conv{number}_{activation}")(x)
    x = keras.layers.Flatten(name="flatten")(x)
    return parts.finish(inputs, parts.dense(classes, "dense")(x), "convnet")


@MODELS.register
class ConvNet(ModelOptions):
    """A small convolutional network."""

    builder = staticmethod(convnet)
    size_keys: ClassVar[tuple[str, ...]] = ("filters",)

    name: Literal["convnet"]
    filters: Annotated[LayerSizes, Field(min_length=1)]
    """Filters of each 3x3 convolution; all but the first have stride 2."""
    activation: Literal["relu", "tanh", "sigmoid"] = "relu"
    """Nonlinearity of the convolutions."""
    batch_norm: bool = True
    """Whether batch normalization follows each convolution."""
    batch_norm_trainable: BatchNormTrainable = True

    @pydantic.model_validator(mode="after")
    def _has_batch_norm(self):
        if not (self.batch_norm or self.batch_norm_trainable):
            raise ArgumentError("batch_norm_trainable", "must be left out without `batch_norm`", False)
        return self

    def fewest_weights(self, outputs: int, input_shape: Sequence[int]) -> int:
        """Returns a lower bound on the number of weights in the forward kernels."""
        return 9 * sum_of_products([input_shape[-1], *self.filters]) + self.filters[-1] * outputs
