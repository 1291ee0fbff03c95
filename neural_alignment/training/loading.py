"""Loading of saved models."""

from __future__ import annotations

from pathlib import Path

import keras

# What a saved model is made of is known to Keras once it is imported.
import optimizers  # noqa: F401
from neural_alignment import models  # noqa: F401
from neural_alignment.errors import RunError
from neural_alignment.training import targets  # noqa: F401
from neural_alignment.training.model import AlignedModel


def load_model(path: str | Path) -> AlignedModel:
    """Loads a model that a run, or `model.save`, has written, in Keras' safe mode: no code in the file is run.

    Args:
        path: a .keras file.

    Returns:
        The model, compiled as it was.

    Raises:
        RunError: if it is no such file, is damaged, or holds what safe mode refuses.
    """
    if Path(path).suffix != ".keras":
        raise RunError(f"{path}: must be a .keras file, such as the model.keras of a run")
    try:
        return keras.models.load_model(str(path), safe_mode=True)
    except Exception as error:  # Keras lets out whatever a wrong file leads it to.
        raise RunError(f"{path}: cannot be loaded: {' '.join(str(error).split())[:200]}") from None
