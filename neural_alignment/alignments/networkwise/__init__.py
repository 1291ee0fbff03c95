"""Rules for a whole network: its errors reach the weights by another way than backpropagation, layer by layer."""

from neural_alignment.alignments.networkwise import direct  # noqa: F401 - registers its rules
from neural_alignment.alignments.networkwise.base import (
    BoundRule,
    KeptWeights,
    NetworkRule,
    TrainingBatch,
    batch_size,
    flat_network,
    network_rule,
)
from neural_alignment.alignments.networkwise.frozen import Frozen

__all__ = [
    "BoundRule",
    "Frozen",
    "KeptWeights",
    "NetworkRule",
    "TrainingBatch",
    "batch_size",
    "flat_network",
    "network_rule",
]
