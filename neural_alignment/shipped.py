"""The files that come with the package, found from any directory: configurations by name, and the times of the labs.

The name of a configuration is its path below the folder `configs`, without extension: `two_routes/resnet18/symmetric`.
"""

from __future__ import annotations

import os
from pathlib import Path

from neural_alignment import paths
from neural_alignment.errors import ConfigError, nearest

_EXTENSION = ".yaml"


def folder() -> Path:
    """Returns the folder of the configurations."""
    return _root() / "configs"


def results() -> Path:
    """Returns the folder of the results; an installed package contains only `seconds.csv` of each paper."""
    return _root() / "results"


def _root() -> Path:
    """Returns the folder of the files: an installed package, or the checkout that contains the package."""
    package = Path(__file__).parent
    return package if (package / "configs").is_dir() else package.parent


def names() -> list[str]:
    """Returns the names of all configurations in alphabetical order, searches included."""
    found = folder().rglob(f"*{_EXTENSION}")
    return sorted(path.relative_to(folder()).with_suffix("").as_posix() for path in found)


def header(name: str) -> list[str]:
    """Returns the comment lines at the beginning of a configuration, without the `#`."""
    lines = []
    for line in _file(name).read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line[1:].strip())
    return lines


def path_of(name: str) -> str:
    """Returns the path of the configuration that comes with the package, also if the user has a file of this name."""
    return str(_file(name))


def find(given: str) -> str:
    """Returns the path of a configuration that the user gave as a path or as a name.

    A file at the path takes precedence over a name, and a folder `configs` in the working directory over the package. A
    path that does not exist and is not a name is returned unchanged.

    Args:
        given: a path, local or remote, or a name, with or without the folder `configs` and the extension.
    """
    if not paths.is_local(given) or os.path.isabs(given) or exists(given):
        return given
    name = given.removeprefix("configs/").removesuffix(_EXTENSION)
    own = os.path.join("configs", f"{name}{_EXTENSION}")
    if os.path.isfile(own):
        return own
    return shown(_file(name)) if _is_name(name) else given


def exists(path: str) -> bool:
    """Whether there is something at a path that can be read: a folder of the same name does not hide a name."""
    return os.path.exists(path) and not os.path.isdir(path)


def find_beside(path: str, other: str) -> str:
    """Returns the path of a configuration that another one names as a path, relative to its own folder, or by name.

    Args:
        path: the configuration that names the other one.
        other: path or name of the other one.

    Raises:
        ValueError: if it cannot be a path; the message does not name the key.
    """
    beside = paths.beside(path, other)
    if paths.is_local(beside) and not exists(beside):
        return find(other) if _is_name(other) else beside
    return beside


def name_of(path: str) -> str | None:
    """Returns the name of the configuration at a path, or None if it does not come with the package."""
    if not paths.is_local(path):
        return None
    inside, root = paths.real(path), os.path.join(paths.real(str(folder())), "")
    return inside.removeprefix(root).removesuffix(_EXTENSION) if inside.startswith(root) else None


def shown(path: Path) -> str:
    """Returns a path, relative to the working directory if it is below that."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith(os.pardir) else relative


def check_name(name: str) -> None:
    """Checks that there is a configuration of this name.

    Raises:
        ConfigError: if there is none.
    """
    if not _is_name(name):
        close = nearest(name, names())
        raise ConfigError(f"{name}: no such configuration; `neural-alignment configs` lists them{close}")


def _is_name(text: str) -> bool:
    """Whether a text is in `names`, without a search of the folder, because every configuration that is read asks."""
    parts = text.split("/")
    return all(part not in ("", os.curdir, os.pardir) for part in parts) and _file(text).is_file()


def _file(name: str) -> Path:
    return folder() / f"{name}{_EXTENSION}"
