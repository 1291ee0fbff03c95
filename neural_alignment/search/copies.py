"""Copies of the configurations and searches that come with the package, for users to edit."""

from __future__ import annotations

from importlib import metadata
from typing import Any

from neural_alignment import shipped
from neural_alignment.config import yaml_files, yaml_writer
from neural_alignment.errors import InputError
from neural_alignment.search import plan


def text(name: str) -> str:
    """Returns a configuration or search as YAML in which the bases are merged, so that it can be anywhere.

    Args:
        name: its name.
    """
    title, *_ = shipped.header(name) or [name]
    version = metadata.version("neural_alignment")
    return f"# {title}\n# A copy of {name} of neural_alignment {version}.\n{yaml_writer.write(_merged(name))}"


def write(name: str, path: str) -> None:
    """Writes a copy to a new file.

    Raises:
        InputError: if there is a file at the path already, or the file cannot be written.
    """
    content = text(name)
    try:
        with open(path, "x", encoding="utf-8") as file:
            file.write(content)
    except FileExistsError:
        raise InputError(f"--copy: must be a new file; found {path}, which exists") from None
    except OSError as error:
        raise InputError(f"--copy: {path} cannot be written: {error.strerror}") from None


def _merged(name: str) -> dict[str, Any]:
    path = shipped.path_of(name)
    if name.startswith("search/"):
        data = plan.load(path).model_dump(mode="json", exclude_defaults=True)
        return data | {"config": shipped.name_of(data["config"])}
    return yaml_files.merged(yaml_files.read_chain(path))
