"""A small vision transformer for images of 28 to 64 pixels (Dosovitskiy et al. 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

import keras
import pydantic
from pydantic import Field, PositiveInt

from neural_alignment.errors import ArgumentError
from neural_alignment.models.base import MAX_DEPTH, MODELS, ModelOptions
from neural_alignment.models.parts import Parts, Rules
from neural_alignment.serialization import serializable


@serializable
class PositionEmbedding(keras.layers.Layer):
    """Adds a trained vector to each position of a sequence `(batch, positions, features)`.

    The vectors are drawn from a truncated normal distribution of standard deviation 0.02.
    """

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Creates the vectors `(positions, features)`."""
        self.vectors = self.add_weight(
            name="vectors", shape=input_shape[1:], initializer=keras.initializers.TruncatedNormal(stddev=0.02)
        )

    def call(self, inputs: Any) -> Any:
        """Returns the inputs plus the vectors."""
        return inputs + self.vectors


def vision_transformer(
    patch: int,
    width: int,
    depth: int,
    heads: int,
    classes: int,
    input_shape: tuple[int, int, int],
    alignment: Rules = None,
    expansion: int = 2,
    dropout: float = 0.0,
    weight_decay: float = 0.0,
) -> keras.Model:
    """Builds a transformer over patches of an image that returns logits.

    An image is cut into patches, which a dense layer `patches` turns into vectors; position embeddings are added. Each
    block normalises, attends, normalises again and applies two dense layers with a GELU in between, with a residual
    connection around each half. The last vectors are normalised and averaged. The layers of block n are called
    `attention_n`, `expand_n` and `reduce_n`, and the last one `dense`.

    Args:
        patch: rows and columns of a patch; divides height and width of the images.
        width: size of the vectors.
        depth: number of blocks.
        heads: number of heads of the attention; divides `width`.
        classes: number of classes.
        input_shape: `(height, width, channels)`.
        alignment: None, one rule for all layers, or rules with patterns of layer names.
        expansion: units between the two dense layers of a block, divided by `width`.
        dropout: fraction of the attention scores and of each half's outputs that are dropped in training.
        weight_decay: coefficient of J's L2 term.

    Returns:
        A functional model, `(batch, height, width, channels)` -> `(batch, classes)`.

    Raises:
        ValueError: if a size does not divide another as described.
        ConfigError: if a rule matches no layer.
    """
    rows, columns, channels = input_shape
    _check_patch(patch, input_shape)
    if width % heads:
        raise ArgumentError("heads", f"must divide the width ({width})", heads)
    parts = Parts(alignment, weight_decay)
    inputs = keras.Input(input_shape)
    x = keras.layers.Reshape((rows // patch, patch, columns // patch, patch, channels))(inputs)
    x = keras.layers.Permute((1, 3, 2, 4, 5))(x)
    x = keras.layers.Reshape((rows * columns // patch**2, patch**2 * channels))(x)
    x = PositionEmbedding(name="positions")(parts.dense(width, "patches")(x))
    for block in range(1, depth + 1):
        normal = keras.layers.LayerNormalization(epsilon=1e-6, name=f"attention_norm_{block}")(x)
        attended = parts.attention(heads, width // heads, f"attention_{block}", dropout=dropout)(normal, normal)
        x = keras.layers.Add(name=f"attention_sum_{block}")([x, keras.layers.Dropout(dropout)(attended)])
        normal = keras.layers.LayerNormalization(epsilon=1e-6, name=f"dense_norm_{block}")(x)
        hidden = parts.dense(expansion * width, f"expand_{block}", activation="gelu")(normal)
        reduced = keras.layers.Dropout(dropout)(parts.dense(width, f"reduce_{block}")(hidden))
        x = keras.layers.Add(name=f"dense_sum_{block}")([x, reduced])
    x = keras.layers.LayerNormalization(epsilon=1e-6, name="norm")(x)
    x = keras.layers.GlobalAveragePooling1D(name="mean")(x)
    return parts.finish(inputs, parts.dense(classes, "dense")(x), "vision_transformer")


def _check_patch(patch: int, input_shape: Sequence[int]) -> None:
    rows, columns, _ = input_shape
    if rows % patch or columns % patch:
        raise ArgumentError("patch", f"must divide the height and width of the images ({rows} x {columns})", patch)


@MODELS.register
class VisionTransformer(ModelOptions):
    """A small vision transformer."""

    builder = staticmethod(vision_transformer)
    size_keys: ClassVar[tuple[str, ...]] = ("patch", "width", "depth", "expansion")

    name: Literal["vision_transformer"]
    patch: PositiveInt = 4
    """Rows and columns of a patch."""
    width: PositiveInt = 64
    """Size of the vectors."""
    depth: Annotated[PositiveInt, Field(le=MAX_DEPTH)] = 4
    """Number of blocks."""
    heads: PositiveInt = 4
    """Heads of the attention."""
    expansion: PositiveInt = 2
    """Units between the two dense layers of a block, divided by the width."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Fraction of attention scores and outputs dropped in training."""

    @pydantic.model_validator(mode="after")
    def _has_equal_heads(self):
        if self.width % self.heads:
            raise ArgumentError("heads", f"must divide the width ({self.width})", self.heads)
        return self

    def check_inputs(self, input_shape: Sequence[int]) -> None:
        """Checks that images consist of whole patches. See `ModelOptions.check_inputs`."""
        _check_patch(self.patch, input_shape)

    def fewest_weights(self, outputs: int, input_shape: Sequence[int]) -> int:
        """Returns the number of weights in the forward kernels."""
        block = (4 + 2 * self.expansion) * self.width**2
        return self.patch**2 * input_shape[-1] * self.width + self.depth * block + self.width * outputs
