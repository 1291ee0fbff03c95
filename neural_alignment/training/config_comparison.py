"""The values of a configuration that affect the result of a run: their checksum, and the first difference."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from neural_alignment import config as configuration
from neural_alignment import files
from neural_alignment.config import Config, Runtime
from neural_alignment.data import SOURCES, SourceOptions

_FREE = ("checkpoints", "logging")
"""Parts of a configuration that may change on resume because they do not affect the result."""


def decisive_values(config: Config) -> dict[str, Any]:
    """Returns the keys of a configuration that affect the result, as plain data."""
    return _decisive(config.model_dump(mode="json"))


def _decisive(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the keys of a configuration, given as plain data, that affect the result."""
    decisive = {key: value for key, value in plain.items() if key not in (*_FREE, "runtime")}
    data, runtime = plain.get("data"), plain.get("runtime")
    if isinstance(data, Mapping):
        name = data.get("source")
        source = SOURCES.get(name, SourceOptions) if isinstance(name, str) else SourceOptions
        decisive["data"] = source.decisive(data)
    # Left out at its defaults, as in the checksums of the committed runs.
    if isinstance(runtime, Mapping) and (options := Runtime.decisive(runtime)):
        decisive["runtime"] = options
    return decisive


def flat_values(config: Config) -> dict[str, Any]:
    """Returns key path -> value of the keys of a configuration that affect the result, as plain data."""
    return dict(_flat(decisive_values(config)))


def _flat(values: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def digest(config: Config) -> str:
    """Returns the checksum of the values that affect the result."""
    return _digest_of(_decisive(configuration.plain(config)))


def file_fits(known: Any, path: str) -> bool:
    """Whether a checksum is that of a configuration file.

    Only values in the file count: a later version of the program may have more keys, with defaults.

    Raises:
        ConfigError: if the file is missing or damaged.
    """
    return known == _digest_of(_decisive(configuration.read_chain(path)[0][1]))


def _digest_of(decisive: Mapping[str, Any]) -> str:
    return files.plain_digest(_canonical(decisive))


def _canonical(value: Any) -> Any:
    """Returns plain data in which equal numbers have one form: 1, 1.0 and "1e0"."""
    if isinstance(value, Mapping):
        return {str(key): _canonical(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_canonical(each) for each in value]
    if isinstance(value, (int, float, str)) and not isinstance(value, bool):
        with contextlib.suppress(ValueError, OverflowError):
            return repr(float(value))
    return value


def first_difference(was: Config, now: Config) -> str | None:
    """Returns a description of the first key that affects the result and differs, or None if there is none."""
    return plain_difference(decisive_values(was), decisive_values(now))


def moved_data(was: Config, now: Config) -> str | None:
    """Returns a description of the first path of the data that differs, or None if there is none.

    The keys that all sources have in common, such as `data_dir`, do not count.
    """
    keys = set(type(now.data).free_keys - SourceOptions.free_keys)
    return plain_difference(*({"data": each.data.model_dump(mode="json", include=keys)} for each in (was, now)))


def plain_difference(was: Any, now: Any) -> str | None:
    """Returns a description of the first key at which plain data differ, or None if there is none."""
    return next((f"{key} was {old!r}, is now {new!r}" for key, old, new in _differences(was, now)), None)


class _Unset:
    """Represents a key that is left out because it has its default."""

    def __repr__(self) -> str:
        return "not set"


_UNSET = _Unset()


def _differences(was: Any, now: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Returns the keys at which plain data differ, with both values."""
    # Mappings without a common key are of different kinds, such as two distributions of a search.
    if isinstance(was, dict) and isinstance(now, dict) and was.keys() & now.keys():
        for key in {**was, **now}:
            place = f"{path}.{key}" if path else key
            yield from _differences(was.get(key, _UNSET), now.get(key, _UNSET), place)
    elif was != now:
        yield path, was, now
