"""Training: the model and its training step, the trainer, and runs with their directories."""

import importlib
from typing import TYPE_CHECKING, Any

from neural_alignment.training.loading import load_model
from neural_alignment.training.model import AlignedModel, aligned_layers

if TYPE_CHECKING:
    from neural_alignment.training.initial_state import load_weights
    from neural_alignment.training.monitor import AlignmentMonitor

__all__ = ["AlignedModel", "AlignmentMonitor", "aligned_layers", "load_model", "load_weights"]

_LATER = {"load_weights": "initial_state", "AlignmentMonitor": "monitor"}
"""Names imported on first use, because `import neural_alignment` must stay fast. Name -> module."""


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(importlib.import_module(f"neural_alignment.training.{_LATER[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
