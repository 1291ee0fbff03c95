"""Reads the YAML file of a configuration and its bases, merges them, and applies overrides."""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import tensorflow as tf

from neural_alignment import paths, shipped
from neural_alignment.config.yaml_reader import MAX_BYTES, MAX_DEPTH, parse
from neural_alignment.errors import ArgumentError, ConfigError, WrongValue, as_written, nearest, one_line, shortened
from neural_alignment.mistakes import Mistake

KIND_KEYS = ("rule", "name", "source", "kind")
"""Keys that select the class of a mapping, such as `rule: symmetric`."""

IMPLIED_KINDS = {"drop_epochs": {"kind": "drops"}}
"""Keys of learning-rate schedules, which may leave out their `kind`."""

_ALLOWED = "give the path of a YAML file, or a name that `neural-alignment configs` lists"

_OF_FILES = {"smoke": "--smoke applies it", "base": "give the configuration that you want to change as CONFIG"}
"""Keys that only a file can have -> how the command line does the same."""

MAX_FILES = 32
"""Maximum number of files in a chain of bases."""


def read(path: str, needed_by: str | None = None) -> dict[str, Any]:
    """Reads a YAML file that contains a mapping.

    Args:
        path: the file, local or remote (gs://).
        needed_by: the file that names it as its base, for messages.

    Raises:
        ConfigError: if the file cannot be read or is not valid; the message is one line that names the file.
    """
    text = _text(path, f" (base of {needed_by})" if needed_by else "")
    data = parse(text, path)
    if data is None:
        raise ConfigError(f"{path}: the file is empty; a configuration is a mapping such as 'epochs: 10'")
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: must hold a mapping; found {shortened(as_written(data), 60)}")
    return data


def _text(path: str, where: str) -> str:
    """Returns the text of a file, which must be a regular file, in UTF-8, and of at most `MAX_BYTES` bytes."""
    if problem := paths.problem_of_file(path):
        close = nearest(path, shipped.names()) if problem == "no such file" else ""
        raise ConfigError(f"{path}: {problem}{where}; {_ALLOWED}{close}")
    try:
        if paths.is_local(path):
            with open(path, "rb") as file:
                content = file.read(MAX_BYTES + 1)
        else:
            if not tf.io.gfile.exists(path):
                raise ConfigError(f"{path}: no such file{where}; {_ALLOWED}")
            with tf.io.gfile.GFile(path, "rb") as file:
                content = file.read(MAX_BYTES + 1)
    except (OSError, tf.errors.OpError) as error:
        raise ConfigError(f"{path}: cannot be read{where}: {one_line(error)}") from None
    if len(content) > MAX_BYTES:
        raise ConfigError(f"{path}: must be a YAML file of at most {MAX_BYTES:,} bytes; it is larger{where}")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path}: cannot be read as YAML{where}: must be text in UTF-8; byte {error.start + 1} is not"
        ) from None


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `base` with the values of `over`.

    Nested mappings are merged, unless they select different classes by one of `KIND_KEYS`. All other values of `over`
    replace those of `base`.

    Args:
        base: plain data.
        over: plain data that take precedence.
    """
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping) and not _other_kind(old, value):
            value = merge(old, value)
        merged[key] = copy.deepcopy(value)
    return merged


def merged(chain: Sequence[tuple[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """Returns the contents of a file and of its bases as one mapping.

    Args:
        chain: the result of `read_chain`.
    """
    data: dict[str, Any] = {}
    for _, layer in reversed(chain):
        data = merge(data, layer)
    return data


def _other_kind(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    for key, kind in IMPLIED_KINDS.items():
        old = {**kind, **old} if key in old else old
    return any(key in new and key in old and new[key] != old[key] for key in KIND_KEYS)


def read_chain(path: str) -> list[tuple[str, dict[str, Any]]]:
    """Returns the path and the content of a YAML file and of its bases, the file itself first, without the key `base`.

    Args:
        path: the file, or the name of a configuration that comes with the package; the same holds for each base.

    Raises:
        ConfigError: if a file cannot be read, a file is its own base, or there are too many bases; one line.
    """
    chain: list[tuple[str, dict[str, Any]]] = []
    seen: set[str] = set()
    path = shipped.find(path)
    while True:
        real = paths.real(path)
        if real in seen:
            names = " -> ".join([*(name for name, _ in chain), path])
            raise ConfigError(f"{path}: base: the files are bases of each other: {names}")
        if len(chain) == MAX_FILES:
            raise ConfigError(f"{path}: base: a file may have at most {MAX_FILES - 1} bases, one after the other")
        seen.add(real)
        data = read(path, chain[-1][0] if chain else None)
        base = data.pop("base", None)
        chain.append((path, data))
        if base is None:
            return chain
        if not isinstance(base, str):
            raise ConfigError(f"{path}: base: must be the path of a YAML file; found {shortened(repr(base))}")
        try:
            path = shipped.find_beside(path, base)
        except ArgumentError as error:
            raise ConfigError(error.within(f"{path}: base").value) from None


def apply_override(data: dict[str, Any], override: str) -> Any:
    """Applies one override to plain data in place.

    Args:
        data: the content of a configuration.
        override: an assignment of the form `key.path=value`, with the value in YAML.

    Returns:
        The override as nested mappings that contain only this value, for `origin`.

    Raises:
        ConfigError: if the override does not have this form, or names an entry that a list does not have.
    """
    key_path, equals, text = override.partition("=")
    keys, where = key_path.split("."), f"--set {shortened(override)}"
    if not equals or not all(keys):
        raise ConfigError(f"{where}: must have the form key.path=value, such as optimization.alternation=1")
    if keys[0] in _OF_FILES:
        raise ConfigError(f"{where}: {keys[0]} is a key of files; {_OF_FILES[keys[0]]}")
    if len(keys) >= MAX_DEPTH:
        raise ConfigError(f"{where}: a key path must have fewer than {MAX_DEPTH} parts; found {len(keys)}")
    value = parse(text, where)
    node: Any = data
    for depth, key in enumerate(keys[:-1], start=1):
        if isinstance(node, list):
            node = node[_entry(node, key, f"{where}: {'.'.join(keys[:depth])}")]
            if not isinstance(node, (dict, list)):
                raise ConfigError(
                    f"{where}: {'.'.join(keys[:depth])}: must be a mapping or a list; found {as_written(node)}"
                )
        else:
            if not isinstance(node.get(key), (dict, list)):
                node[key] = {}
            node = node[key]
    last = keys[-1]
    if isinstance(node, list):
        node[_entry(node, last, f"{where}: {key_path}")] = value
    else:
        node[last] = merge(node, {last: value})[last]
    mapping = copy.deepcopy(value)
    for key in reversed(keys):
        mapping = {key: mapping}
    return mapping


def _entry(entries: Sequence[Any], key: str, where: str) -> int:
    """Returns the index of the list entry that a part of a key path names."""
    if re.fullmatch(r"0|[1-9][0-9]{0,6}", key) and int(key) < len(entries):
        return int(key)
    allowed = f"0 to {len(entries) - 1}" if entries else "none, because the list is empty"
    requirement = f"must name an entry of the list by its number, {allowed}"
    raise ConfigError(WrongValue(where, requirement, key))


def line(origins: Sequence[tuple[str, Any]], mistake: Mistake, otherwise: str) -> str:
    """Returns the message about a mistake, which begins with the file or override that the mistake comes from.

    This is the first origin that has the key. If a required key is missing, it is the first origin that selects the
    class of the mapping, because this class requires the key. If a key is unknown because a later origin has selected
    another class, it is this origin.

    Args:
        origins: name and content of each file and override, the one that overrides all others first.
        mistake: the mistake.
        otherwise: the start if none of them has the key, or a mapping or list around it.
    """
    keys = mistake.lookup_path.split(".") if mistake.lookup_path else []
    around = list(_effective(origins, keys[:-1]))
    origins = list(_effective(origins, keys))
    if mistake.missing and (selecting := _selecting(origins, keys)):
        return mistake.line(selecting[0][0])
    if mistake.unknown:
        above = list(itertools.takewhile(lambda each: _at(each[1], keys) is _NOWHERE, around))
        selecting = _selecting(around, keys[:-1])
        if _selecting(above, keys[:-1]) and selecting[0][1] not in [kind for _, kind in selecting[1:2]]:
            return mistake.line(selecting[0][0]) + _advice(".".join(keys[:-1]), *selecting[0][1])
    for length in range(len(keys), 0, -1):
        for name, content in origins:
            if _at(content, keys[:length]) is not _NOWHERE:
                return mistake.line(name)
    return mistake.line(otherwise)


def _selecting(origins: Sequence[tuple[str, Any]], keys: Sequence[str]) -> list[tuple[str, tuple[str, Any]]]:
    """Returns the origins that select the class of the mapping at a key path, with the key and the value that do so."""
    found = []
    for name, content in origins:
        inside = _at(content, keys)
        kind = next((key for key in KIND_KEYS if isinstance(inside, Mapping) and key in inside), None)
        if kind is not None:
            found.append((name, (kind, inside[kind])))
    return found


def _advice(path: str, kind: str, value: Any) -> str:
    """Returns the end of a message about a key of the class that a mapping had before."""
    selected = f"{kind}: {value if isinstance(value, str) else as_written(value)}"
    return f"; it is not a key of {selected}; {path}={{{selected}}} replaces all keys of {path}"


def _effective(origins: Sequence[tuple[str, Any]], keys: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Yields the origins up to the first one that replaces the value at a key path, or a value around it, as a whole.

    This is one that sets it to something other than a mapping or a list, such as null.
    """
    for name, content in origins:
        yield name, content
        values = [_at(content, keys[:length]) for length in range(1, len(keys) + 1)]
        if any(value is not _NOWHERE and not isinstance(value, (Mapping, list)) for value in values):
            return


_NOWHERE = object()


def _at(content: Any, keys: Sequence[str]) -> Any:
    """Returns the value at a key path, or `_NOWHERE`."""
    for key in keys:
        if isinstance(content, Mapping) and key in content:
            content = content[key]
        elif isinstance(content, list) and key.isdecimal() and len(key) < 7 and int(key) < len(content):
            content = content[int(key)]
        else:
            return _NOWHERE
    return content
