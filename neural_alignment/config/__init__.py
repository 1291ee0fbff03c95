"""The typed configuration of a run, and how YAML is read, merged and written."""

from neural_alignment.config.config import (
    Config,
    Evaluation,
    InitialState,
    Logging,
    Optimization,
    Runtime,
    dump,
    json_schema,
    load,
    override,
    parse,
    plain,
)
from neural_alignment.config.yaml_files import merge, read_chain
from neural_alignment.errors import ConfigError

__all__ = [
    "Config",
    "ConfigError",
    "Evaluation",
    "InitialState",
    "Logging",
    "Optimization",
    "Runtime",
    "dump",
    "json_schema",
    "load",
    "merge",
    "override",
    "parse",
    "plain",
    "read_chain",
]
