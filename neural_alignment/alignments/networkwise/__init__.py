"""Rules that replace the sequential backward pass of a whole network (Boopathy and Fiete 2022, Nøkland 2016)."""

from neural_alignment.alignments.networkwise.base import BoundRule, KeptWeights, NetworkRule, network_rule
from neural_alignment.alignments.networkwise.direct import DirectFeedback, LastLayer
from neural_alignment.alignments.networkwise.frozen import AlignAda, AlignZero, Frozen

__all__ = [
    "AlignAda",
    "AlignZero",
    "BoundRule",
    "DirectFeedback",
    "Frozen",
    "KeptWeights",
    "LastLayer",
    "NetworkRule",
    "network_rule",
]
