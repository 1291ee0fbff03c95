"""Every learning rule, and the parts that rules are made of."""

from neural_alignment.alignments.assignment import Assignment
from neural_alignment.alignments.base import (
    Alignment,
    KernelView,
    LayerView,
    SignalAlignment,
    Signals,
    TrainedAlignment,
)
from neural_alignment.alignments.forward_pass import (
    ForwardPass,
    changed_pass,
    current_pass,
    first_example,
    forward_pass,
    side_pass,
)
from neural_alignment.alignments.layerwise import (
    Activation,
    AlignProp,
    Feedback,
    FixedMagnitudes,
    Information,
    KolenPollack,
    RedrawnMagnitudes,
    SignSymmetry,
    Symmetric,
    WeightMirror,
)
from neural_alignment.alignments.networkwise import (
    AlignAda,
    AlignZero,
    DirectFeedback,
    DirectTargetProjection,
    LastLayer,
    NetworkRule,
)
from neural_alignment.alignments.pathways import BackwardOutput, ForwardOutput, InputPath
from neural_alignment.alignments.registry import (
    RULES,
    from_config,
    layerwise_rules,
    networkwise_rules,
    register,
)
from neural_alignment.alignments.schedules import Constant, Exponential, Linear

__all__ = [
    "RULES",
    "Activation",
    "AlignAda",
    "AlignProp",
    "AlignZero",
    "Alignment",
    "Assignment",
    "BackwardOutput",
    "Constant",
    "DirectFeedback",
    "DirectTargetProjection",
    "Exponential",
    "Feedback",
    "FixedMagnitudes",
    "ForwardOutput",
    "ForwardPass",
    "Information",
    "InputPath",
    "KernelView",
    "KolenPollack",
    "LastLayer",
    "LayerView",
    "Linear",
    "NetworkRule",
    "RedrawnMagnitudes",
    "SignSymmetry",
    "SignalAlignment",
    "Signals",
    "Symmetric",
    "TrainedAlignment",
    "WeightMirror",
    "changed_pass",
    "current_pass",
    "first_example",
    "forward_pass",
    "from_config",
    "layerwise_rules",
    "networkwise_rules",
    "register",
    "side_pass",
]
