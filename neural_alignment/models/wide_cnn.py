"""The convolutional networks of Boopathy and Fiete 2022 (Appendix F), of any width."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import keras
from pydantic import PositiveInt

from neural_alignment.errors import ArgumentError
from neural_alignment.models.base import MODELS, ModelOptions
from neural_alignment.models.batch_norm import BatchAxisNormalization
from neural_alignment.models.parts import Parts, Rules

STRIDES = {"cifar": (1, 1, 1, 2, 1, 2, 1), "imagenet": (4, 2, 1, 2, 1, 2, 1), "kmnist": (1, 2, 2)}
"""The strides of the convolutions, by the name of the design."""


def wide_cnn(
    design: Literal["cifar", "imagenet", "kmnist"],
    width: int,
    classes: int,
    input_shape: tuple[int, int, int],
    alignment: Rules = None,
    activation: str = "relu",
    parameterization: Literal["ntk", "standard"] = "ntk",
    weight_decay: float = 0.0,
) -> keras.Model:
    """Builds the 8-layer CIFAR or ImageNet network or the 4-layer KMNIST network.

    The network consists of 3x3 convolutions with bias and SAME padding, each followed by `BatchAxisNormalization` and
    the nonlinearity; then global average pooling and a dense layer. Layers are named `conv1`, `conv2` and so on, and
    `dense`.

    Args:
        design: `"cifar"` has seven convolutions, the fourth and sixth of stride 2. `"imagenet"` has seven, the first of
            stride 4, then alternately of stride 2 and 1. `"kmnist"` has three, the second and third of stride 2.
        width: number of filters of every convolution.
        classes: number of classes.
        input_shape: `(height, width, channels)`.
        alignment: None, one rule for all layers, or rules with patterns of layer names.
        activation: nonlinearity after every batch normalisation.
        parameterization: with `"ntk"` W is drawn from N(0, 1), and the layer multiplies it by 1 / sqrt(fan-in)
            (equation 1). With `"standard"` W is drawn from N(0, 1 / fan-in) and used unchanged (Appendix H).
        weight_decay: coefficient of J's L2 term.

    Returns:
        A functional model, `(batch, height, width, channels)` -> `(batch, classes)`.

    Raises:
        ValueError: if `design` is unknown or `width` is not positive.
    """
    if design not in STRIDES:
        raise ArgumentError("design", f"must be one of {', '.join(STRIDES)}", design, 'design="cifar"')
    if width < 1:
        raise ArgumentError("width", "must be at least 1", width, "width=64")
    parts = Parts(alignment, weight_decay)

    def options() -> dict[str, Any]:  # Each layer needs a new initializer: one draws the same numbers at every call.
        return {"parameterization": parameterization, "kernel_initializer": _initializer(parameterization)}

    inputs = x = keras.Input(input_shape)
    for number, strides in enumerate(STRIDES[design], start=1):
        name = f"conv{number}"
        x = parts.conv(width, 3, name, activation, strides=strides, use_bias=True, **options())(x)
        x = BatchAxisNormalization(name=f"{name}_norm")(x)
        x = keras.layers.Activation(activation, name=f"{name}_{activation}")(x)
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    return parts.finish(inputs, parts.dense(classes, "dense", **options())(x), f"wide_cnn_{design}")


def _initializer(parameterization: str) -> Any:
    """Returns the initializer of W. The distribution of initial networks is the same with both parameterizations."""
    if parameterization == "ntk":
        return keras.initializers.RandomNormal(stddev=1.0)
    return keras.initializers.VarianceScaling(1.0, "fan_in", "untruncated_normal")


@MODELS.register
class WideCNN(ModelOptions):
    """A convolutional network of Boopathy and Fiete 2022, of any width."""

    builder = staticmethod(wide_cnn)
    uses_batch_statistics: ClassVar[bool] = True
    whole_batch_reason: ClassVar[str] = BatchAxisNormalization.whole_batch_reason

    name: Literal["wide_cnn"]
    design: Literal["cifar", "imagenet", "kmnist"]
    """Seven convolutions for CIFAR-10 or ImageNet, or three for KMNIST; then average pooling and a dense layer."""
    width: PositiveInt
    """Filters of every convolution."""
    activation: Literal["relu", "tanh"] = "relu"
    """Nonlinearity after every batch normalization."""
    parameterization: Literal["ntk", "standard"] = "ntk"
    """ntk: W is drawn from N(0, 1), and the layer multiplies it by 1 / sqrt(fan-in). standard: W is drawn from
    N(0, 1 / fan-in)."""

    def fewest_weights(self, outputs: int, input_shape: Sequence[int]) -> int:
        """Returns a lower bound: the weights of one convolution and of the dense layer."""
        del input_shape
        return 9 * self.width**2 + self.width * outputs
