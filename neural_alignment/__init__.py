"""Neural networks with learning rules that do not need weight transport.

Public names are imported at their first use, so `import neural_alignment` does not import TensorFlow.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import wrapt

if importlib.util.find_spec("tensorflow") is None:
    raise ImportError(
        "TensorFlow is not installed. Install one of the extras of neural_alignment: cpu, gpu or tpu, "
        "as in pip install 'neural_alignment[cpu]'."
    )

__version__ = "0.1.0"

_ROOMS = {
    *("alignments", "analysis", "config", "data", "errors", "layers", "models", "operations", "training"),
}
_NAMES = {
    "convert": "models",
    "AlignedModel": "training",
    "AlignmentMonitor": "training",
    "Dense": "layers",
    "Conv2D": "layers",
    "load_model": "training",
}

__all__ = [
    "AlignedModel",
    "AlignmentMonitor",
    "Conv2D",
    "Dense",
    "__version__",
    "convert",
    "load_model",
    *sorted(_ROOMS),
]


def __getattr__(name: str) -> Any:
    """Imports a public name."""
    if name in _ROOMS:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _NAMES:
        return getattr(importlib.import_module(f"{__name__}.{_NAMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _register(imported: ModuleType) -> None:
    """Makes our classes, and those of installed plugins, known to Keras and to configurations, once Keras is there.

    Called after the import of Keras and of each of our modules. In the middle of an import of ours it does nothing: the
    module that is finished last calls again.

    Args:
        imported: the module that has just been imported.
    """
    unfinished = [
        name
        for name, module in list(sys.modules.items())
        if name.partition(".")[0] in (__name__, "optimizers")
        and name != imported.__name__
        and getattr(getattr(module, "__spec__", None), "_initializing", False)
    ]
    if "keras" in sys.modules and not {*unfinished} - {__name__}:
        importlib.import_module(f"{__name__}.training.loading")
        # Here all modules that a plugin may import are complete.
        importlib.import_module(f"{__name__}.plugins").import_installed()


def _modules() -> Iterator[str]:
    """Yields the names of all modules of the package, and imports none."""
    root = Path(__file__).parent
    for path in root.rglob("*.py"):
        *folders, name = path.relative_to(root).with_suffix("").parts
        yield ".".join([__name__, *folders, *([] if name == "__init__" else [name])])


for _name in ("keras", "optimizers", *sorted({*_modules()} - {__name__})):
    wrapt.register_post_import_hook(_register, _name)
