"""Residual networks of version 1 (He et al. 2015) and 2 (He et al. 2016), as trained by Kunin et al. 2020."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import keras
from pydantic import PositiveInt

from neural_alignment.errors import ArgumentError
from neural_alignment.models.base import MODELS, BatchNormTrainable, ModelOptions
from neural_alignment.models.batch_norm import FusedBatchNormalization
from neural_alignment.models.parts import Parts, Rules

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
"""Number of blocks in each of the four groups, by depth."""

BATCH_NORM_MOMENTUM = {1: 0.9, 2: 0.997}
BATCH_NORM_EPSILON = 1e-5


def resnet(
    depth: int,
    version: int,
    classes: int,
    input_shape: tuple[int, int, int],
    alignment: Rules = None,
    stem: Literal["imagenet", "cifar"] = "imagenet",
    width: int = 64,
    weight_decay: float = 0.0,
    batch_norm_trainable: bool = True,
) -> keras.Model:
    """Builds a residual network that returns logits.

    Networks of depth 50 and more consist of bottleneck blocks. The first block of every group has a projection
    shortcut at any depth. In a bottleneck block the stride is that of the 3x3 convolution. Before a convolution with a
    stride above 1 the input is padded with kernel size - 1 zeros, and the convolution has VALID padding. In version 1
    the scale of the last batch normalisation of a block starts at 0. Layers are named `stem`, `group1_block1_conv1`,
    `group1_block1_shortcut` and so on, and `dense`.

    Args:
        depth: 18, 34, 50, 101 or 152.
        version: 1 for batch normalisation after each convolution, 2 for batch normalisation before it.
        classes: number of classes.
        input_shape: `(height, width, channels)`.
        alignment: None, one rule for all layers, or rules with patterns of layer names.
        stem: `"imagenet"` for a 7x7 convolution of stride 2 and max-pooling; `"cifar"` for a 3x3 convolution of
            stride 1 without pooling.
        width: number of filters of the first group. Each further group has twice as many.
        weight_decay: coefficient of J's L2 term.
        batch_norm_trainable: whether scale and shift of the batch normalisation are trained. If False, they keep their
            initial values; training still uses the statistics of the batch and updates the moving statistics.

    Returns:
        A functional model, `(batch, height, width, channels)` -> `(batch, classes)`.

    Raises:
        ValueError: if `depth`, `version`, `stem` or `width` has a wrong value.
    """
    if depth not in BLOCKS:
        raise ArgumentError("depth", f"must be one of {', '.join(map(str, BLOCKS))}", depth, "depth=18")
    if version not in (1, 2):
        raise ArgumentError("version", "must be 1 or 2", version, "version=1")
    if stem not in ("imagenet", "cifar"):
        raise ArgumentError("stem", 'must be "imagenet" or "cifar"', stem, 'stem="cifar"')
    if width < 1:
        raise ArgumentError("width", "must be at least 1", width, "width=64")
    net = _ResNet(Parts(alignment, weight_decay), version, depth >= 50, batch_norm_trainable)
    inputs = keras.Input(input_shape)
    x = net.stem(inputs, stem, width)
    for group, blocks in enumerate(BLOCKS[depth], start=1):
        for block in range(1, blocks + 1):
            strides = 2 if group > 1 and block == 1 else 1
            x = net.block(x, width * 2 ** (group - 1), strides, f"group{group}_block{block}", project=block == 1)
    if version == 2:
        x = net.norm_relu(x, "final")
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    initializer = keras.initializers.RandomNormal(stddev=0.01) if version == 1 else "glorot_uniform"
    outputs = net.parts.dense(classes, "dense", kernel_initializer=initializer)(x)
    return net.parts.finish(inputs, outputs, f"resnet{depth}_v{version}")


class _ResNet:
    """Builds the layers of one network."""

    def __init__(self, parts: Parts, version: int, bottleneck: bool, batch_norm_trainable: bool):
        self.parts = parts
        self.version = version
        self.bottleneck = bottleneck
        self.batch_norm = {
            "momentum": BATCH_NORM_MOMENTUM[version],
            "epsilon": BATCH_NORM_EPSILON,
            "train_scale_and_shift": batch_norm_trainable,
        }

    def stem(self, x: Any, kind: str, width: int) -> Any:
        """Adds the first convolution. In version 2 it is not followed by batch normalisation or a nonlinearity."""
        followed_by = "relu" if self.version == 1 else None
        if kind == "imagenet":
            x = self.conv(x, width, 7, 2, "stem", followed_by)
        else:
            x = self.conv(x, width, 3, 1, "stem", followed_by)
        if self.version == 1:
            x = self.norm_relu(x, "stem")
        if kind == "imagenet":
            x = keras.layers.MaxPooling2D(3, 2, padding="same", name="stem_pool")(x)
        return x

    def block(self, x: Any, filters: int, strides: int, name: str, project: bool) -> Any:
        """Adds a residual block."""
        return (self._block_v1 if self.version == 1 else self._block_v2)(x, filters, strides, name, project)

    def _block_v1(self, x, filters, strides, name, project):
        shortcut = x
        if project:
            shortcut = self.conv(x, self._outputs(filters), 1, strides, f"{name}_shortcut")
            shortcut = self.norm(shortcut, f"{name}_shortcut")
        convs = self._convs(filters, strides)
        for number, (outputs, size, stride) in enumerate(convs, start=1):
            last = number == len(convs)
            x = self.conv(x, outputs, size, stride, f"{name}_conv{number}", None if last else "relu")
            if last:
                x = self.norm(x, f"{name}_conv{number}", gamma_initializer="zeros")
            else:
                x = self.norm_relu(x, f"{name}_conv{number}")
        x = keras.layers.Add(name=f"{name}_add")([x, shortcut])
        return keras.layers.ReLU(name=f"{name}_relu")(x)

    def _block_v2(self, x, filters, strides, name, project):
        shortcut = x
        x = self.norm_relu(x, f"{name}_input")
        if project:
            shortcut = self.conv(x, self._outputs(filters), 1, strides, f"{name}_shortcut")
        convs = self._convs(filters, strides)
        for number, (outputs, size, stride) in enumerate(convs, start=1):
            last = number == len(convs)
            x = self.conv(x, outputs, size, stride, f"{name}_conv{number}", None if last else "relu")
            if not last:
                x = self.norm_relu(x, f"{name}_conv{number}")
        return keras.layers.Add(name=f"{name}_add")([x, shortcut])

    def _convs(self, filters: int, strides: int) -> list[tuple[int, int, int]]:
        """Returns the filters, kernel size and stride of each convolution in a block."""
        if self.bottleneck:
            return [(filters, 1, 1), (filters, 3, strides), (self._outputs(filters), 1, 1)]
        return [(filters, 3, strides), (filters, 3, 1)]

    def _outputs(self, filters: int) -> int:
        return 4 * filters if self.bottleneck else filters

    def conv(self, x: Any, filters: int, size: int, strides: int, name: str, followed_by: str | None = None) -> Any:
        """Adds a convolution. With a stride above 1 the padding depends only on the kernel size."""
        if strides == 1:
            return self.parts.conv(filters, size, name, followed_by)(x)
        if size > 1:
            before = (size - 1) // 2
            padding = (before, size - 1 - before)
            x = keras.layers.ZeroPadding2D((padding, padding), name=f"{name}_pad")(x)
        return self.parts.conv(filters, size, name, followed_by, strides=strides, padding="valid")(x)

    def norm(self, x: Any, name: str, **options: Any) -> Any:
        """Adds batch normalisation."""
        return FusedBatchNormalization(name=f"{name}_norm", **self.batch_norm, **options)(x)

    def norm_relu(self, x: Any, name: str) -> Any:
        """Adds batch normalisation and ReLU."""
        return keras.layers.ReLU(name=f"{name}_relu")(self.norm(x, name))


@MODELS.register
class ResNet(ModelOptions):
    """A residual network."""

    builder = staticmethod(resnet)

    name: Literal["resnet"]
    depth: Literal[18, 34, 50, 101, 152]
    """Number of layers with weights. Networks of depth 50 and more have bottleneck blocks."""
    version: Literal[1, 2] = 1
    """1: batch normalization after each convolution (He et al. 2015). 2: before it (He et al. 2016)."""
    stem: Literal["imagenet", "cifar"] = "imagenet"
    """imagenet: a 7x7 convolution of stride 2 and max-pooling. cifar: a 3x3 convolution of stride 1."""
    width: PositiveInt = 64
    """Filters of the first group; each further group has twice as many."""
    batch_norm_trainable: BatchNormTrainable = True

    def fewest_weights(self, outputs: int, input_shape: Sequence[int]) -> int:
        """Returns a lower bound: the weights of two convolutions of the last group and of the dense layer."""
        del input_shape
        return 2 * 9 * (8 * self.width) ** 2 + 8 * self.width * outputs
