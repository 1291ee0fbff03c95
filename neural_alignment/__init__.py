"""Neural networks with learning rules that do not need weight transport.

Public names are imported at their first use, so `import neural_alignment` does not import TensorFlow.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import sys
import warnings
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


def _keras_backend() -> str:
    """Returns the backend that Keras reads from its variable or its file `keras.json`, without importing Keras."""
    if name := os.environ.get("KERAS_BACKEND"):
        return name
    home = os.path.expanduser("~")
    folder = os.environ.get("KERAS_HOME", os.path.join(home if os.access(home, os.W_OK) else "/tmp", ".keras"))
    try:
        return json.loads(Path(folder, "keras.json").expanduser().read_text())["backend"]
    except (OSError, ValueError, LookupError, TypeError):  # Keras then uses its default as well.
        return "tensorflow"


def _check_backend() -> None:
    """Raises an ImportError if Keras has, or would have, another backend than TensorFlow."""
    if (backend := _keras_backend()) != "tensorflow":
        raise ImportError(
            "neural_alignment needs the TensorFlow backend of Keras. "
            f"Received {backend!r}. Example: KERAS_BACKEND=tensorflow."
        )


class _BackendFinder:
    """Checks the backend just before Keras is imported, and leaves the import to the other finders.

    An earlier check would come before the command line, which imports this package first, has chosen the backend. A
    later one would not be reached if the packages of another backend are missing: the import of Keras then fails with
    an error that does not name the cause.
    """

    @staticmethod
    def find_spec(name: str, *_: Any) -> None:
        """See `importlib.abc.MetaPathFinder`."""
        if name == "keras":
            _check_backend()


if "keras" in sys.modules:
    _check_backend()
else:
    sys.meta_path.insert(0, _BackendFinder)

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


def _modules() -> Iterator[str]:
    """Yields the names of all modules of the package but the package itself, and imports none."""
    root = Path(__file__).parent
    for path in root.rglob("*.py"):
        *folders, name = path.relative_to(root).with_suffix("").parts
        if parts := [*folders, *([] if name == "__init__" else [name])]:
            yield ".".join([__name__, *parts])


_MODULES = ("optimizers", *sorted(_modules()))


def _register(imported: ModuleType) -> None:
    """Makes our classes, and those of installed plugins, known to Keras and to configurations, once Keras is there.

    Called after the import of Keras and of each of our modules. In the middle of an import of ours it does nothing: the
    module that is finished last calls again. If a plugin cannot be imported, an import of ours fails, and the import of
    Keras warns: programs that do not use the plugin must still get Keras.

    Args:
        imported: the module that has just been imported.
    """
    if "keras" not in sys.modules or any(_is_unfinished(each) for each in _MODULES if each != imported.__name__):
        return
    try:
        importlib.import_module(f"{__name__}.training.loading")
        # Here all modules that a plugin may import are complete.
        importlib.import_module(f"{__name__}.plugins").import_installed()
    except Exception as error:
        errors = importlib.import_module(f"{__name__}.errors")  # Here, because its import calls this function.
        if imported.__name__ != "keras" or not isinstance(error, errors.PluginError):
            raise
        warnings.warn(str(error), RuntimeWarning, stacklevel=2)


def _is_unfinished(name: str) -> bool:
    """Whether a module is being imported."""
    spec = getattr(sys.modules.get(name), "__spec__", None)
    return getattr(spec, "_initializing", False)


for _name in (*_MODULES, "keras"):
    wrapt.register_post_import_hook(_register, _name)
