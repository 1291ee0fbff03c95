"""Networks whose error travels back through weights of its own.

The public names are imported when they are first asked for: `import neural_alignment` does not import TensorFlow.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

if importlib.util.find_spec("tensorflow") is None:
    raise ImportError(
        "TensorFlow is not installed. Install one of the extras of neural_alignment: cpu, gpu or tpu, "
        "as in pip install 'neural_alignment[cpu]'."
    )

__version__ = "0.1.0"

_ROOMS = {
    *("alignments", "analysis", "config", "data", "errors", "feedback", "layers", "models", "operations", "training"),
}
_NAMES = {
    "convert": "models",
    "AlignedModel": "training",
    "Dense": "layers",
    "Conv2D": "layers",
    "load_model": "training",
}

__all__ = ["AlignedModel", "Conv2D", "Dense", "__version__", "convert", "load_model", *sorted(_ROOMS)]


def __getattr__(name: str) -> Any:
    """Imports a public name."""
    if name in _ROOMS:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _NAMES:
        return getattr(importlib.import_module(f"{__name__}.{_NAMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
