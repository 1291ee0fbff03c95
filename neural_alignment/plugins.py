"""Plugins: modules outside of the package that add rules, primitives, models, losses, data sources or layers.

A plugin is imported because the user names it (`--import`), or because an installed package names it in the entry-point
group `neural_alignment.plugins`. No file is a reason to import a module: neither a configuration nor a run directory.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path

from neural_alignment.errors import PluginError, nearest, one_line

GROUP = "neural_alignment.plugins"
"""Entry-point group in which an installed package lists its plugins."""

_imported: list[str] = []
_installed: dict[str, str] = {}
_are_installed_imported = False


def import_modules(names: Iterable[str]) -> None:
    """Imports plugins that the user names. They may be in the working directory or in an installed package.

    Args:
        names: names of modules, such as `my_rules` or `my_project.rules`.

    Raises:
        PluginError: if a name is not that of a module, there is no such module, or its code raises an error.
    """
    for name in names:
        if name in _imported:
            continue
        option = f"--import {name}"
        if name.endswith(".py") or not all(part.isidentifier() for part in name.split(".")):
            module = Path(name).stem
            hint = f"; did you mean {module}?" if module.isidentifier() else ""
            raise PluginError(f"--import must be the name of a module, such as my_rules; found {name!r}{hint}")
        if os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())  # Last: a file in the working directory must not replace an installed module.
        _import(name, option)
        _imported.append(name)


def imported() -> list[str]:
    """Returns the names of the plugins that `import_modules` has imported, in this order."""
    return list(_imported)


def installed() -> dict[str, str]:
    """Returns the plugins that `import_installed` has imported: the name of the module -> that of its package."""
    return dict(_installed)


def absent(names: Iterable[str]) -> list[str]:
    """Returns those of `names` that are not names of imported modules."""
    return [name for name in names if name not in sys.modules]


def import_installed() -> None:
    """Imports the plugins of installed packages. Later calls do nothing.

    Raises:
        PluginError: if a plugin is missing or its code raises an error.
    """
    global _are_installed_imported
    if _are_installed_imported:
        return
    _are_installed_imported = True  # First: plugins import modules of this package, which call this function.
    try:
        for entry in importlib.metadata.entry_points(group=GROUP):
            package = f" of the installed package {entry.dist.name}" if entry.dist is not None else ""
            _import(entry.module, f"plugin {entry.name}{package}")
            _installed[entry.module] = entry.name if entry.dist is None else entry.dist.name
    except PluginError:
        _are_installed_imported = False
        raise


def _import(name: str, origin: str) -> None:
    """Imports a module.

    Args:
        name: its name.
        origin: start of the error message.

    Raises:
        PluginError: if there is no such module, or its code raises an error.
    """
    try:
        importlib.import_module(name)
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and error.name and f"{name}.".startswith(f"{error.name}."):
            near = nearest(name, (path.stem for path in Path().glob("*.py")))
            reason = f"there is no module {error.name} in the working directory or among the installed packages{near}"
        else:
            reason = f"cannot be imported: {type(error).__name__}: {one_line(error, None)}{_place(error)}"
        raise PluginError(f"{origin}: {reason}") from None


def _place(error: BaseException) -> str:
    """Returns the place of an error in a file of the working directory, for messages; empty if there is none."""
    if isinstance(error, SyntaxError):  # Its message contains the place.
        return ""
    here = os.path.join(os.getcwd(), "")
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(here)]
    return f" ({os.path.relpath(frames[-1].filename)}, line {frames[-1].lineno})" if frames else ""
