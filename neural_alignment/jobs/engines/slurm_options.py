"""The options of SLURM jobs, from the command line and from YAML files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field

from neural_alignment.config import yaml_files
from neural_alignment.errors import ArgumentError, ConfigError
from neural_alignment.mistakes import first_mistake
from neural_alignment.options import Options

LARGEST = 1_000_000

RESERVED = ("array", "error", "input", "no-requeue", "open-mode", "output", "parsable", "requeue", "signal", "wrap")
"""Options of `sbatch` that the engine sets, or that would change the output of `sbatch`, which it reads."""

_DURATIONS = (
    re.compile(r"(?P<minutes>\d{1,6}):(?P<seconds>\d{1,2})"),
    re.compile(r"(?P<hours>\d{1,4}):(?P<minutes>\d{1,2}):(?P<seconds>\d{1,2})"),
    re.compile(r"(?P<days>\d{1,4})-(?P<hours>\d{1,4})(?::(?P<minutes>\d{1,2})(?::(?P<seconds>\d{1,2}))?)?"),
)
"""The forms of a time in `sbatch --time`, except plain minutes."""


def _integer(value: Any, least: int) -> int:
    """Returns an integer, given as an integer or as text."""
    number = int(value) if isinstance(value, str) and re.fullmatch(r"[0-9]{1,7}", value) else value
    if isinstance(number, bool) or not isinstance(number, int) or not least <= number <= LARGEST:
        raise ArgumentError("", f"must be an integer from {least} to {LARGEST}", value)
    return number


def _count(value: Any) -> int:
    return _integer(value, least=1)


def _count_or_none(value: Any) -> int | None:
    return None if value is None else _integer(value, least=0)


def _word(value: str) -> str:
    if not re.fullmatch(r"\S+", value):
        raise ArgumentError("", "must be a name without spaces", value)
    return value


def _minutes(value: Any) -> int:
    """Returns a time in minutes, given in minutes or as SLURM writes it; incomplete minutes count as one."""
    matches = (form.fullmatch(value) for form in _DURATIONS if isinstance(value, str))
    parts = next((match.groupdict() for match in matches if match), None)
    if parts is None:
        return _count(value)
    days, hours, minutes, seconds = (int(parts.get(name) or 0) for name in ("days", "hours", "minutes", "seconds"))
    return _count((days * 24 + hours) * 60 + minutes + (seconds > 0))


def _gpus(value: Any) -> str:
    """Returns a number of GPUs, or `TYPE:NUMBER`, as text."""
    if isinstance(value, str) and re.fullmatch(r"[\w.-]+:[1-9][0-9]{0,3}", value):
        return value
    return str(_count(value))


Count = Annotated[int, pydantic.BeforeValidator(_count)]
Word = Annotated[str, pydantic.AfterValidator(_word)]


class SlurmOptions(Options):
    """Options of the SLURM jobs of a command. Each job has one task on one node."""

    partition: Word | None = None
    """Partition, or several separated by commas."""
    account: Word | None = None
    """Account that is charged."""
    qos: Word | None = None
    """Quality of service."""
    constraint: Word | None = None
    """Features that the node must have."""
    time: Annotated[int, pydantic.BeforeValidator(_minutes)] = 60
    """Time limit in minutes, or as SLURM writes it: MINUTES:SECONDS, HOURS:MINUTES:SECONDS or
    DAYS-HOURS:MINUTES:SECONDS."""
    gpus: Annotated[str, pydantic.BeforeValidator(_gpus)] | None = None
    """Number of GPUs, or TYPE:NUMBER such as a100:2."""
    cpus: Count | None = None
    """Number of processors."""
    memory: Count | None = None
    """Memory in GB."""
    save: Count = 120
    """Seconds before the time limit at which a run saves its state and is requeued."""
    requeues: Annotated[int | None, pydantic.BeforeValidator(_count_or_none)] = None
    """How often a job that is interrupted is started again. Default: 50 for a run, 3 for a piece."""
    array: Count = 1000
    """Maximum number of jobs in one array."""
    setup: list[str] = Field(default=[])
    """Shell commands that a job executes first, such as `module load cuda`."""
    sbatch: dict[str, str | int | Literal[True]] = Field(default={})
    """Further options of `sbatch`, without the dashes: option -> value, or true for an option without a value."""
    on_exit: Literal["cancel", "leave"] = "cancel"
    """Whether the jobs are cancelled, after their runs have saved their state, or go on if the command ends early."""
    cluster: Literal["slurm", "local"] = "slurm"
    """`local`: jobs are processes of this machine, as a test without SLURM."""

    @pydantic.field_validator("sbatch")
    @classmethod
    def _check_sbatch(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name in value:
            if not re.fullmatch(r"[a-z][a-z0-9-]*", name):
                raise ArgumentError("", "must map long options of sbatch, without dashes, to values", name)
            if name in RESERVED:
                raise ArgumentError("", f"must not have {', '.join(RESERVED)}, which the engine sets", name)
        return value

    @pydantic.model_validator(mode="after")
    def _check_save(self):
        if self.save >= 60 * self.time:
            raise ArgumentError("save", f"must be less than the time limit, {60 * self.time} seconds", self.save)
        return self


def parse(options: Sequence[str]) -> SlurmOptions:
    """Returns the options that the command line gives.

    Args:
        options: `KEY=VALUE`, `sbatch.KEY=VALUE`, or the path of a YAML file with a mapping of options. A later one
            takes precedence, except that all values of `setup` are kept.

    Raises:
        ConfigError: if an option or file is wrong.
    """
    data: dict[str, Any] = {}
    origins: list[tuple[str, Any]] = []
    for option in options:
        content = _read(option)
        data = yaml_files.merge(data, {**content, "setup": [*data.get("setup", []), *content.get("setup", [])]})
        origins.insert(0, ("--slurm " if "=" in option else f"{option}: ", content))
    try:
        return SlurmOptions.model_validate(data)
    except pydantic.ValidationError as error:
        mistake = first_mistake(error, SlurmOptions)
        raise ConfigError(yaml_files.line(origins, mistake, "--slurm ")) from None


def _read(option: str) -> dict[str, Any]:
    """Returns one option, or the content of a file, as a mapping."""
    key, equals, text = option.partition("=")
    if not equals and option.endswith((".yaml", ".yml")):
        content = yaml_files.read(option)
        if not isinstance(content.get("setup", []), list):
            raise ConfigError(f"{option}: setup: must be a list of commands; found {content['setup']!r}")
        return content
    if not text:
        raise ConfigError(f"--slurm {key}=VALUE: the value is missing, or a file that ends in .yaml; found {option!r}")
    if key == "setup":
        return {key: [text]}
    part, dot, name = key.partition(".")
    return {part: {name: True if text == "true" else text}} if dot else {key: text}
