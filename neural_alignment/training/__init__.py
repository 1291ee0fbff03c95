"""Training: the model and its training step, the trainer, and runs with their directories."""

import importlib
from typing import Any

from neural_alignment.training.loading import load_model
from neural_alignment.training.model import AlignedModel, aligned_layers

__all__ = ["AlignedModel", "aligned_layers", "load_model", "load_weights"]


def __getattr__(name: str) -> Any:
    # Imported on first use, because it imports the configuration and `import neural_alignment` must stay fast.
    if name == "load_weights":
        return importlib.import_module("neural_alignment.training.initial_state").load_weights
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
