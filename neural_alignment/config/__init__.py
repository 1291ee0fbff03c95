"""The typed configuration of a run, and how YAML is read, merged and written.

A file may name a `base: other.yaml` and then contain only the differences (see `yaml_files.merge`). The key `smoke`
contains overrides for a test run of two steps.
"""

from neural_alignment.config.config import Config
from neural_alignment.config.files import dump, json_schema, load, override, parse, plain
from neural_alignment.config.initial_state import InitialState
from neural_alignment.config.records import Checkpoints, Evaluation, Logging
from neural_alignment.config.runtime import Runtime
from neural_alignment.config.yaml_files import merge, read_chain
from neural_alignment.errors import ConfigError
from neural_alignment.optimization import Optimization

__all__ = [
    "Checkpoints",
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
