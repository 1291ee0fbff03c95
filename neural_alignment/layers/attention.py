"""Attention whose query, key, value and output kernels have backward kernels."""

from __future__ import annotations

from typing import Any

import keras

from neural_alignment.alignments import Alignment
from neural_alignment.keras_internals import arguments_of, replace_sublayer
from neural_alignment.layers.base import (
    LayerWithRule,
    check_computed_once,
    check_floats,
    check_unconstrained,
    checked_rule,
)
from neural_alignment.layers.dense import EinsumDense
from neural_alignment.serialization import serializable


class AlignedAttention(LayerWithRule):
    """Mixin for an attention layer of Keras, whose dense layers become `EinsumDense` layers with an alignment.

    Each of them has the weights `kernel`, `backward_kernel` and `bias`, and is known in measures as LAYER.query,
    LAYER.key, LAYER.value, LAYER.attention_output and, in gated attention, LAYER.gate. The products of activations, of
    queries with keys and of scores with values, are differentiated as they are.

    Args:
        *args: as in the native layer.
        alignment: the rule of the dense layers. None is plain backpropagation; the layer then has no B.
        **kwargs: as in the native layer.

    Raises:
        ValueError: if an argument has a wrong type or cannot be combined with an alignment.
    """

    alignment_arguments = ("alignment",)

    _converted_kernels: dict[str, Any] | None = None

    def __init__(self, *args: Any, alignment: Alignment | dict | None = None, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.alignment = checked_rule(alignment)
        if self.alignment is not None:
            check_floats(self)
            check_computed_once(self)
            check_unconstrained(self, {"kernel_constraint": kwargs.get("kernel_constraint")})

    def build(self, query_shape: Any, value_shape: Any, key_shape: Any = None) -> None:
        """Creates the weights of the native layer and, if the rule has them, the backward kernels."""
        super().build(query_shape, value_shape, key_shape)
        for attribute, dense in dense_sublayers(self).items():
            # With the initializers themselves: copies would draw other numbers.
            aligned = EinsumDense(**arguments_of(dense), alignment=self.alignment)
            aligned.alignment_name = f"{self.name}.{dense.name}"
            aligned._converted_kernels = (self._converted_kernels or {}).get(attribute)
            replace_sublayer(self, attribute, aligned)
            shape = tuple(dense.get_build_config()["input_shape"])
            if None in shape[1:] and len(shape) == len(query_shape) + 1:  # Keras knows the positions of the queries.
                shape = (*query_shape[:-1], *shape[-2:])
            aligned.build(shape)
        self._converted_kernels = None

    @property
    def inner_connections(self) -> list[str]:
        """The names of the projections that enter the output kernel. The rules for whole networks read this."""
        return [dense.alignment_name for dense in dense_sublayers(self).values() if dense.name != "attention_output"]

    def take_converted(self, layer: Any) -> None:
        """Notes the kernels of the layer that this one is converted from. See `AlignedLayer.take_converted`."""
        self._converted_kernels = {
            attribute: {"kernel": keras.ops.convert_to_numpy(dense.kernel)}
            for attribute, dense in dense_sublayers(layer).items()
        }

    @classmethod
    def initialized_kernels(cls, layer: Any) -> dict[str, list[Any]]:
        """Returns the kernels of the native layer, which have one initializer. See `AlignedLayer`."""
        return {"kernel_initializer": [dense.kernel for dense in dense_sublayers(layer).values()]}

    def get_config(self) -> dict[str, Any]:
        """Returns the configuration of the native layer with the alignment."""
        rule = self.alignment and keras.saving.serialize_keras_object(self.alignment)
        return {**super().get_config(), "alignment": rule}


def dense_sublayers(attention: Any) -> dict[str, Any]:
    """Returns the dense layers of an attention layer, by attribute."""
    return {name: value for name, value in vars(attention).items() if isinstance(value, keras.layers.EinsumDense)}


@serializable
class MultiHeadAttention(AlignedAttention, keras.layers.MultiHeadAttention):
    """`keras.layers.MultiHeadAttention` with a backward kernel for each of its kernels."""


@serializable
class GroupQueryAttention(AlignedAttention, keras.layers.GroupQueryAttention):
    """`keras.layers.GroupQueryAttention` with a backward kernel for each of its kernels."""
