"""Training: the model's step, the life of a run, and what it reports."""

from neural_alignment.training.initial_state import load_weights
from neural_alignment.training.loading import load_model
from neural_alignment.training.model import AlignedModel, aligned_layers

__all__ = ["AlignedModel", "aligned_layers", "load_model", "load_weights"]
