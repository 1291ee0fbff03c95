"""The plan of a search in YAML: base configuration, space, algorithm, number and length of trials."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field, PositiveFloat, PositiveInt

from neural_alignment import config as configuration
from neural_alignment import errors, mistakes, shipped
from neural_alignment.config import Config, yaml_files, yaml_writer
from neural_alignment.errors import ArgumentError, ConfigError, WrongValue
from neural_alignment.losses import ACCURACY
from neural_alignment.options import Options
from neural_alignment.search.spaces import Space


class Plan(Options):
    """The plan of one search."""

    config: str
    """Path of the base configuration, to which the settings of each trial are applied; relative to the plan's file."""
    space: dict[str, Any]
    """Key path or `$name` -> distribution, fixed value or derivation; see `spaces`."""
    algorithm: Literal["tpe", "random"] = "tpe"
    trials: PositiveInt
    epochs: PositiveInt | None = None
    """Epochs of J of a trial, at most those of the base configuration. Default: those of the base configuration.
    Schedules do not change, also if they end with the run, so that a trial is the beginning of the run that `best.yaml`
    describes."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seed of the proposals, and of the weights, the data order and the noise of each trial."""
    startup_trials: PositiveInt = 20
    """Number of trials that TPE draws at random before it learns from them; the default is that of hyperopt."""
    seconds: PositiveFloat | None = None
    """Measured duration of a trial in seconds, for an estimate before the first trial has ended."""

    @functools.cached_property
    def checked_space(self) -> Space:
        """The space, made once.

        Raises:
            ConfigError: if the space is wrong.
        """
        return Space(self.space)

    def dump(self) -> str:
        """Returns the plan as YAML, from which `load` reads the same plan."""
        return yaml_writer.write(self.model_dump(mode="json", exclude_none=True))


def load(path: str, **replaced: Any) -> Plan:
    """Reads the plan of a search from YAML. With a key `base`, a file contains only the differences from that file.

    A quantity of the space replaces the quantity of the same name in the base: distributions are not merged.

    Args:
        path: the file.
        **replaced: values that replace keys of the file, or None; `config` is then relative to the current directory.

    Raises:
        ConfigError: if a file cannot be read, or the plan or its space is wrong.
    """
    chain = configuration.read_chain(path)
    path, _ = chain[0]
    data: dict[str, Any] = {}
    for name, layer in reversed(chain):
        if isinstance(layer.get("config"), str):
            layer["config"] = _beside(name, layer["config"])
        spaces = (data.get("space", {}), layer.get("space", {}))
        data |= layer
        if all(isinstance(each, Mapping) for each in spaces):
            data["space"] = spaces[0] | spaces[1]
    keys = {key for _, layer in chain for key in layer}
    if not {"space", "config"} & keys and {"model", "data", "alignment", "optimization"} & keys:
        command = f"neural-alignment train {shipped.name_of(path) or path}"
        raise ConfigError(f"{path}: is the configuration of a run and not a search; `{command}` trains it")
    given = {key: value for key, value in replaced.items() if value is not None}
    data |= given
    origins = [(f"{_OPTIONS.get(key, key)} {value}: ", {key: value}) for key, value in given.items()]
    origins += [(f"{name}: ", layer) for name, layer in chain]
    try:
        plan = Plan.model_validate(data)
    except pydantic.ValidationError as error:
        mistake = mistakes.first_mistake(error, Plan)
        raise ConfigError(yaml_files.line(origins, mistake, f"{path}: ")) from None
    Space(plan.space, f"{path}: space", {name: f"{_file_of(chain, name)}: space.{name}" for name in plan.space})
    return plan


_OPTIONS = {"config": "--config", "trials": "--trials", "epochs": "--epochs"}
_OPTIONS |= {"algorithm": "--algorithms", "seed": "--seeds"}
"""Key of `Plan` -> the option of the command line that replaces it."""


def _file_of(chain: Sequence[tuple[str, Mapping[str, Any]]], quantity: str) -> str:
    """Returns the file that defines a quantity of the space."""
    spaces = ((name, layer.get("space")) for name, layer in chain)
    return next(name for name, space in spaces if isinstance(space, Mapping) and quantity in space)


def _beside(path: str, other: str) -> str:
    """Returns a path that is relative to the folder of a file."""
    try:
        return shipped.find_beside(path, other)
    except ArgumentError as error:
        raise ConfigError(error.within(f"{path}: config").value) from None


def base_config(plan: Plan, overrides: Sequence[str] = ()) -> Config:
    """Returns the configuration that all trials have in common: the base, the overrides and the seed of the search.

    Raises:
        ConfigError: if the configuration is wrong, or an override sets a key that the search sets in its trials.
    """
    own = {"seed": "give --seeds, or `seed` in its file"}
    if plan.epochs is not None:
        own["epochs"] = "give --epochs, or `epochs` in its file"
    own |= dict.fromkeys(plan.space, "change it in the space, and give other keys beside it one by one")
    for override in overrides:
        key = override.partition("=")[0].strip()
        for name, advice in own.items():
            if f"{key}.".startswith(f"{name}.") or name.startswith(f"{key}."):
                message = f"the search sets {name} in its trials; {advice}"
                raise ConfigError(f"--set {errors.shortened(override)}: {message}")
    return configuration.load(plan.config, [*overrides, f"seed={plan.seed}"])


def trial_config(plan: Plan, base: Config, values: Mapping[str, Any]) -> Config:
    """Returns the configuration of a trial.

    Args:
        plan: the plan of the search.
        base: the configuration that all trials have in common.
        values: name -> value of each sampled quantity.

    Raises:
        ConfigError: if the settings do not fit the configuration or each other.
    """
    full = configuration.override(base, plan.checked_space.overrides(values))
    if plan.epochs is None:
        return full
    ends = [f"{key}={epoch!r}" for key, epoch in full.optimization.schedule_ends(full).items()]
    return configuration.override(full, [*ends, f"epochs={plan.epochs}"])


def common_config(plan: Plan, base: Config) -> Config:
    """Returns a base with possible values of all quantities of the space, instead of those in the file.

    Two bases that give the same result have the same trials.
    """
    return trial_config(plan.model_copy(update={"epochs": None}), base, plan.checked_space.probes()[0])


def check(plan: Plan, base: Config) -> None:
    """Checks that the space fits the configuration, by trying every option of a choice and both ends of every range.

    Raises:
        ConfigError: if the space does not fit, the trials are longer than the run, or the loss has no accuracy to
            maximize.
    """
    if base.loss.criterion != ACCURACY:
        raise ConfigError(
            f"{plan.config}: loss.kind: must have an accuracy, which a search maximizes; found {base.loss.kind}"
        )
    if plan.epochs is not None and plan.epochs > base.epochs:
        requirement = f"must be at most the {base.epochs} of {plan.config}, because a trial is the beginning of its run"
        raise ConfigError(f"{WrongValue('epochs', requirement, plan.epochs).line}; give --epochs")
    for values in plan.checked_space.probes():
        try:
            trial_config(plan, base, values)
        except ConfigError as error:
            raise ConfigError(f"the space does not fit {plan.config}: {error}") from None
