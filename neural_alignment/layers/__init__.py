"""Keras layers with the argument `alignment`."""

import keras

from neural_alignment.layers.attention import AlignedAttention, GroupQueryAttention, MultiHeadAttention
from neural_alignment.layers.base import AlignedLayer
from neural_alignment.layers.connection import Connection
from neural_alignment.layers.convolution import (
    Conv1D,
    Conv1DTranspose,
    Conv2D,
    Conv2DTranspose,
    Conv3D,
    Conv3DTranspose,
    DepthwiseConv1D,
    DepthwiseConv2D,
    SeparableConv1D,
    SeparableConv2D,
)
from neural_alignment.layers.dense import Dense, EinsumDense
from neural_alignment.layers.recurrent import GRU, LSTM, SimpleRNN
from neural_alignment.layers.time_distributed import TimeDistributed

__all__ = [
    "ALIGNED_FORMS",
    "GRU",
    "LSTM",
    "AlignedAttention",
    "AlignedLayer",
    "Connection",
    "Conv1D",
    "Conv1DTranspose",
    "Conv2D",
    "Conv2DTranspose",
    "Conv3D",
    "Conv3DTranspose",
    "Dense",
    "DepthwiseConv1D",
    "DepthwiseConv2D",
    "EinsumDense",
    "GroupQueryAttention",
    "MultiHeadAttention",
    "SeparableConv1D",
    "SeparableConv2D",
    "SimpleRNN",
    "TimeDistributed",
]  # fmt: skip

ALIGNED_FORMS = {
    getattr(keras.layers, form.__name__): form
    for form in (
        Dense, EinsumDense, Conv1D, Conv2D, Conv3D, DepthwiseConv1D, DepthwiseConv2D, SeparableConv1D, SeparableConv2D,
        Conv1DTranspose, Conv2DTranspose, Conv3DTranspose, MultiHeadAttention, GroupQueryAttention, SimpleRNN, LSTM,
        GRU,
    )
}  # fmt: skip
"""Native layer -> the same layer with an alignment; read by `models.convert`."""
