"""A search as its YAML file says it: the base configuration, the space, the algorithm, how many trials, how long."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field, PositiveFloat, PositiveInt

from neural_alignment import config as configuration
from neural_alignment import errors, paths
from neural_alignment.config import Config, yaml_files, yaml_writer
from neural_alignment.errors import ConfigError
from neural_alignment.options import Options
from neural_alignment.search.spaces import Space

ALGORITHMS = ("tpe", "random")


class Plan(Options):
    """One search."""

    config: str
    """The configuration that the settings are laid on, as a path from the file that says it."""
    space: dict[str, Any]
    """Key path, or `$name` -> distribution; see `spaces`."""
    algorithm: Literal["tpe", "random"] = "tpe"
    trials: PositiveInt
    epochs: PositiveInt | None = None
    """Epochs of J of a trial; those of the base configuration where none. Schedules keep their marks, so that a trial
    is the beginning of the run that `best.yaml` makes in full."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Of the proposals, and of each trial's weights, data order and noise."""
    startup_trials: PositiveInt = 20
    """Trials that TPE draws at random before it learns from them; 20 is hyperopt's own."""
    seconds: PositiveFloat | None = None
    """What one trial took when it was last measured, for an estimate before the first has ended."""

    def checked_space(self, where: str = "space", places: Mapping[str, str] | None = None) -> Space:
        """Returns the space.

        Args:
            where: the file and key of the space, for messages.
            places: quantity -> its file and key, where they are not all of `where`.

        Raises:
            ConfigError: in one line, if it is wrong.
        """
        return Space(self.space, where, places)

    def dump(self) -> str:
        """Returns the plan as YAML, which `load` reads back to the same."""
        return yaml_writer.write(self.model_dump(mode="json", exclude_none=True))


def load(path: str, **replaced: Any) -> Plan:
    """Reads a search from YAML; a file may name its `base` and say only what differs.

    A quantity of the space takes the whole place of one of that name in the base: distributions are not merged.

    Args:
        path: the file.
        **replaced: keys of `Plan` that something else says; a `config` of these is a path from the present folder.

    Raises:
        ConfigError: in one line.
    """
    chain = configuration.read_chain(path)
    data: dict[str, Any] = {}
    for name, layer in reversed(chain):
        if isinstance(layer.get("config"), str):
            layer["config"] = _beside(name, layer["config"])
        spaces = (data.get("space", {}), layer.get("space", {}))
        data |= layer
        if all(isinstance(each, Mapping) for each in spaces):
            data["space"] = spaces[0] | spaces[1]
    given = {key: value for key, value in replaced.items() if value is not None}
    data |= given
    origins = [(f"{_OPTIONS.get(key, key)} {value}: ", {key: value}) for key, value in given.items()]
    origins += [(f"{name}: ", layer) for name, layer in chain]
    try:
        plan = Plan.model_validate(data)
    except pydantic.ValidationError as error:
        mistake = errors.first_mistake(error, Plan)
        raise ConfigError(mistake.line(yaml_files.origin(origins, mistake, f"{path}: "))) from None
    plan.checked_space(f"{path}: space", {name: f"{_file_of(chain, name)}: space.{name}" for name in plan.space})
    return plan


_OPTIONS = {"config": "--config", "trials": "--trials", "epochs": "--epochs"}
_OPTIONS |= {"algorithm": "--algorithms", "seed": "--seeds"}
"""Key of `Plan` -> the option of the command line that replaces it."""


def _file_of(chain: Sequence[tuple[str, Mapping[str, Any]]], quantity: str) -> str:
    """Returns the file that a quantity of the space comes from."""
    spaces = ((name, layer.get("space")) for name, layer in chain)
    return next(name for name, space in spaces if isinstance(space, Mapping) and quantity in space)


def _beside(path: str, other: str) -> str:
    """Returns a path that is given from a file's folder."""
    try:
        return paths.beside(path, other)
    except ValueError as error:
        raise ConfigError(f"{path}: config: {error}") from None


def base_config(plan: Plan, overrides: Sequence[str] = ()) -> Config:
    """Returns what all trials have in common: the base configuration with the overrides and the search's seed.

    Raises:
        ConfigError: in one line; also where an override sets the seed, which is the search's.
    """
    if own := next((each for each in overrides if each.partition("=")[0].strip() == "seed"), None):
        raise ConfigError(f"--set {own}: the search sets the seed of its trials; give --seeds, or `seed` in its file")
    return configuration.load(plan.config, [*overrides, f"seed={plan.seed}"])


def trial_config(plan: Plan, base: Config, values: Mapping[str, Any]) -> Config:
    """Returns the configuration of a trial.

    Args:
        plan: the search.
        base: what all trials have in common.
        values: name -> value of each quantity that is drawn.

    Raises:
        ConfigError: in one line, if the settings do not fit the configuration or each other.
    """
    short = [f"epochs={plan.epochs}"] if plan.epochs else []
    return configuration.override(base, [*plan.checked_space().overrides(values), *short])


def check(plan: Plan, base: Config) -> None:
    """Makes sure that the space fits the configuration, with every option and the ends of every range.

    Raises:
        ConfigError: in one line.
    """
    for values in plan.checked_space().probes():
        try:
            trial_config(plan, base, values)
        except ConfigError as error:
            raise ConfigError(f"the space does not fit {plan.config}: {error}") from None
