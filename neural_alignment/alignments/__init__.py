"""Every learning rule, and the parts that rules are made of.

Rules are found in the registry, so a new rule needs no entry here.
"""

from typing import TYPE_CHECKING

from neural_alignment.alignments import layerwise, networkwise  # noqa: F401 - registers the rules
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
from neural_alignment.alignments.networkwise import NetworkRule
from neural_alignment.alignments.pathways import BackwardOutput, ForwardOutput, InputPath
from neural_alignment.alignments.registry import (
    RULES,
    from_config,
    layerwise_rules,
    networkwise_rules,
    register,
)
from neural_alignment.alignments.schedules import Constant, Exponential, Linear

if TYPE_CHECKING:  # Editors and type checkers do not see what `__getattr__` finds.
    from neural_alignment.alignments.layerwise import *  # noqa: F403
    from neural_alignment.alignments.networkwise.direct import *  # noqa: F403
    from neural_alignment.alignments.networkwise.frozen import *  # noqa: F403

__all__ = [
    "RULES",
    "Alignment",
    "Assignment",
    "BackwardOutput",
    "Constant",
    "Exponential",
    "ForwardOutput",
    "ForwardPass",
    "InputPath",
    "KernelView",
    "LayerView",
    "Linear",
    "NetworkRule",
    "SignalAlignment",
    "Signals",
    "TrainedAlignment",
    "changed_pass",
    "current_pass",
    "first_example",
    "forward_pass",
    "from_config",
    "layerwise_rules",
    "networkwise_rules",
    "register",
    "side_pass",
    *(rule.__name__ for rule in RULES.values()),
]


def __getattr__(name: str) -> type[Alignment]:
    """Returns a rule by the name of its class."""
    for rule in RULES.values():
        if rule.__name__ == name:
            return rule
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Returns all names, those of rules included, for completion in IPython."""
    return sorted({*globals(), *(rule.__name__ for rule in RULES.values())})
