"""Rules for a whole network: its errors reach the weights by another way than backpropagation, layer by layer."""

from neural_alignment.alignments.networkwise.base import (
    BoundRule,
    KeptWeights,
    NetworkRule,
    TrainingBatch,
    batch_size,
    network_rule,
)
from neural_alignment.alignments.networkwise.direct import DirectFeedback, DirectTargetProjection, LastLayer
from neural_alignment.alignments.networkwise.frozen import AlignAda, AlignZero, Frozen

__all__ = [
    "AlignAda",
    "AlignZero",
    "BoundRule",
    "DirectFeedback",
    "DirectTargetProjection",
    "Frozen",
    "KeptWeights",
    "LastLayer",
    "NetworkRule",
    "TrainingBatch",
    "batch_size",
    "network_rule",
]
