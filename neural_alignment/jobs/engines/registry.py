"""The engines by name, and the choice of one on the command line."""

from __future__ import annotations

from collections.abc import Sequence

from neural_alignment.errors import ConfigError, nearest
from neural_alignment.jobs.engines.in_process import InProcess
from neural_alignment.jobs.engines.processes import Processes
from neural_alignment.jobs.engines.slurm import Slurm
from neural_alignment.jobs.engines.spark import Spark
from neural_alignment.jobs.engines.tpu import TPU
from neural_alignment.jobs.pool import Engine

ENGINES: dict[str, type[Engine]] = {engine.name: engine for engine in (InProcess, Processes, Spark, TPU, Slurm)}
"""Name -> class."""


def build(choice: str, **options: str | Sequence[str] | None) -> Engine:
    """Returns the engine that the command line describes.

    Args:
        choice: value of `--engine`, such as `processes:4`.
        **options: additional options of engines, by name; None or empty if not given.

    Raises:
        ConfigError: if there is no such engine, an option is wrong or is for another engine, or the engine is not
            available.
    """
    name, _, text = choice.partition(":")
    if name not in ENGINES:
        usages = ", ".join(engine.usage for engine in ENGINES.values())
        raise ConfigError(f"--engine must be one of {usages}; found {choice!r}{nearest(name, ENGINES)}")
    engine = ENGINES[name]
    for option, value in options.items():
        if value is not None and value != [] and option != engine.option:
            owner = next(each for each in ENGINES.values() if each.option == option)
            raise ConfigError(f"--{option} has no effect with --engine {choice}; it is for --engine {owner.usage}")
    return engine.parse(text, options.get(engine.option or ""))
