"""Reads, checks, overrides and writes configurations, and makes the JSON Schema for editors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pydantic

from neural_alignment import errors, mistakes, shipped
from neural_alignment.config import yaml_files, yaml_writer
from neural_alignment.config.config import Config
from neural_alignment.errors import ConfigError


def load(path: str | Path, overrides: Sequence[str] = (), smoke: bool = False) -> Config:
    """Reads a configuration file.

    Args:
        path: the YAML file, or the name of a configuration that comes with the package, such as "quickstart".
        overrides: assignments of the form `key.path=value`, with the value in YAML.
        smoke: whether to apply the overrides under the key `smoke`.

    Returns:
        The configuration, with defaults filled in.

    Raises:
        ConfigError: with one line that names file, key path, the value found and the allowed values.
    """
    chain = yaml_files.read_chain(str(path))
    path, _ = chain[0]
    data = yaml_files.merged(chain)
    origins = [(f"{name}: ", layer) for name, layer in chain]
    if search := next((name for name, layer in chain if "space" in layer and "config" in layer), None):
        base = "" if search == path else f" (base of {path})"
        command = f"neural-alignment search {(shipped.name_of(search) or search).removeprefix('search/')}"
        raise ConfigError(f"{search}: is a search and not the configuration of a run{base}; `{command}` runs it")
    has_smoke, smoke_overrides = "smoke" in data, data.pop("smoke", None)
    if smoke:
        if not has_smoke:
            raise ConfigError(f"--smoke needs the key smoke, which {path} does not have")
        if not isinstance(smoke_overrides, Mapping):
            found = errors.shortened(errors.as_written(smoke_overrides), 60)
            raise ConfigError(f"{path}: smoke: must be a mapping of overrides; found {found}")
        data = yaml_files.merge(data, smoke_overrides)
        origins = [(f"{name}: smoke.", layer.get("smoke")) for name, layer in chain] + origins
    for override in overrides:
        mapping = yaml_files.apply_override(data, override)
        origins.insert(0, (f"{path} --set {errors.shortened(override)}: ", mapping))
    return parse(data, f"{path}: ", origins)


def parse(data: Mapping[str, Any], source: str = "", origins: Sequence[tuple[str, Any]] = ()) -> Config:
    """Returns the configuration that plain data describe.

    Args:
        data: the content of a file, without the key `base`.
        source: begins the error message if none of the `origins` contains the wrong key.
        origins: the files and overrides that `data` was merged from; see `yaml_files.line`.

    Raises:
        ConfigError: if a key or value is wrong; the message is one line.
    """
    try:
        return Config.model_validate(data)
    except pydantic.ValidationError as error:
        mistake = mistakes.first_mistake(error, Config)
        raise ConfigError(yaml_files.line(origins, mistake, source)) from None
    except RecursionError:
        raise ConfigError(f"{source}the configuration is nested too deeply") from None


def override(config: Config, overrides: Sequence[str]) -> Config:
    """Returns a configuration with some keys replaced.

    Args:
        config: the configuration.
        overrides: assignments of the form `key.path=value`, with the value in YAML.

    Raises:
        ConfigError: if a key or value is wrong; the message is one line.
    """
    data = plain(config)
    for each in overrides:
        yaml_files.apply_override(data, each)
    return parse(data)


def dump(config: Config) -> str:
    """Returns the configuration as YAML with all defaults. `load` restores an equal configuration from it."""
    return yaml_writer.write(plain(config))


def plain(config: Config) -> dict[str, Any]:
    """Returns the configuration as plain data with all defaults: the content of the file that `dump` writes."""
    data = config.model_dump(mode="json", exclude_none=True)
    written = data.get("alignment", [])
    for rule, mapping in zip(config.rules, written if isinstance(written, list) else [written], strict=True):
        # Seed and epoch length of a rule are left out unless the user set them. `bind` then uses those of the run.
        for key in {"seed", "steps_per_epoch"} - rule.model_fields_set:
            mapping.pop(key, None)
    return data


def json_schema() -> dict[str, Any]:
    """Returns a JSON Schema for editors: keys, types and allowed values.

    No key is required, because a file with a `base` contains only differences. `load` checks for missing keys.
    """
    schema = _loosen(Config.model_json_schema())
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "neural_alignment run"
    base = "File, or name of a configuration, whose keys this file changes."
    schema["properties"]["base"] = {"type": "string", "description": base}
    smoke = "Overrides for a quick test, which `--smoke` applies."
    schema["properties"]["smoke"] = {"type": "object", "description": smoke}
    return schema


def _loosen(node: Any) -> Any:
    """Removes the constraints that a partial mapping does not satisfy."""
    if isinstance(node, list):
        return [_loosen(item) for item in node]
    if not isinstance(node, dict):
        return node
    loose = {key: _loosen(value) for key, value in node.items() if key not in ("required", "discriminator")}
    if "oneOf" in loose:
        loose["anyOf"] = loose.pop("oneOf")
    return loose
