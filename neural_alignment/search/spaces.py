"""Search spaces: the quantities that a search draws, their distributions, and quantities derived from them.

A space is a mapping in YAML from names of quantities to the kinds below. A name is a key path of the configuration, or
begins with `$` if the quantity is not a key itself, such as the ratio of two weights. The values of all quantities are
applied to the base configuration in the order of the file, as by `--set`.
"""

from __future__ import annotations

import bisect
import graphlib
import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar

import pydantic
from hyperopt import hp
from pydantic import Field

from neural_alignment import errors, mistakes
from neural_alignment.config import yaml_writer
from neural_alignment.config.yaml_reader import MAX_DEPTH
from neural_alignment.errors import ArgumentError, ConfigError, nearest
from neural_alignment.options import Options

Settings = dict[str, Any]
"""Name -> value, for all quantities of a space."""

_NAME = re.compile(r"\$\w+|[A-Za-z_]\w*(\.\w+)*")
MAX_VALUES = 50_000
"""Maximum number of values in all settings that a check of a space tries."""

_VALUES_OF_BASE = 10
"""Number of values that take as long as the check of a small configuration to which settings are applied."""

_SET_BY_SEARCH = ("epochs", "seed")
"""Keys of the configuration that the search sets itself."""


class Sampled(Options):
    """A kind of quantity that hyperopt draws."""

    def node(self, name: str) -> Any:
        """Returns the hyperopt expression for a quantity of this name."""
        raise NotImplementedError

    def value(self, draw: float) -> Any:
        """Returns the value that corresponds to a draw from `node`."""
        return float(draw)

    def draw(self, value: Any) -> float:
        """Returns the draw that corresponds to a value: the inverse of `value`."""
        return value

    def may_draw(self, value: Any) -> bool:
        """Whether `value` can return this value."""
        try:
            return _canonical(self.value(self.draw(value))) == _canonical(value)
        except (TypeError, ValueError, OverflowError):
            return False

    def probes(self) -> list[Any]:
        """Returns values to try in a check of the space: all options of a choice, or both ends of a range."""
        raise NotImplementedError


def _ascending(bounds: list[float]) -> list[float]:
    if not bounds[0] < bounds[1]:
        raise ArgumentError("", "must be [low, high] with low < high", bounds)
    if math.isinf(bounds[1] - bounds[0]):
        raise ArgumentError("", "must be [low, high] with a difference that is a number", bounds)
    return bounds


def _positive(bounds: list[float]) -> list[float]:
    if bounds[0] <= 0:
        raise ArgumentError("", "must be [low, high] with 0 < low", bounds)
    return bounds


Bounds = Annotated[list[float], Field(min_length=2, max_length=2), pydantic.AfterValidator(_ascending)]


class Uniform(Sampled):
    """Uniform between two numbers: [low, high]."""

    uniform: Bounds

    def node(self, name: str) -> Any:
        """See `Sampled`."""
        return hp.uniform(name, *self.uniform)

    def probes(self) -> list[Any]:
        """See `Sampled`."""
        return [float(end) for end in self.uniform]


class LogUniform(Sampled):
    """Uniform in the logarithm between two positive numbers: [low, high]."""

    log_uniform: Annotated[Bounds, pydantic.AfterValidator(_positive)]

    def node(self, name: str) -> Any:
        """See `Sampled`."""
        return hp.loguniform(name, *(math.log(end) for end in self.log_uniform))

    def probes(self) -> list[Any]:
        """See `Sampled`."""
        return [float(end) for end in self.log_uniform]


class _Grid(Sampled):
    """Equally spaced values with equal probabilities. TPE knows their order and treats neighbours as similar."""

    def _values(self) -> tuple[float, float, int]:
        """Returns the first value, the step, and the number of values."""
        raise NotImplementedError

    def node(self, name: str) -> Any:
        """See `Sampled`. The range is half a step longer at both ends, so that all values are equally probable."""
        return hp.quniform(name, -0.5, self._values()[2] - 0.5, 1)

    def value(self, draw: float) -> Any:
        """See `Sampled`."""
        low, step, count = self._values()
        # A draw at an end of the range may be rounded to a number outside of it.
        return low + step * min(max(round(draw), 0), count - 1)

    def draw(self, value: Any) -> float:
        """See `Sampled`."""
        low, step, _ = self._values()
        return float(round((value - low) / step))

    def probes(self) -> list[Any]:
        """See `Sampled`."""
        return [self.value(0), self.value(self._values()[2] - 1)]

    def values(self) -> Iterator[Any]:
        """Yields all values, in ascending order."""
        yield from map(self.value, range(self._values()[2]))


_Number = Annotated[int, Field(ge=-(2**63), lt=2**63)] | float


class Quantised(_Grid):
    """The values low, low + step, ... up to at most high: [low, high, step]. They are integers if these three are."""

    quantised: Annotated[list[_Number], Field(min_length=3, max_length=3)]

    @pydantic.field_validator("quantised")
    @classmethod
    def _has_steps(cls, values: list[int | float]) -> list[int | float]:
        low, high, step = values
        if not (low < high and 0 < step <= high - low):
            raise ArgumentError("", "must be [low, high, step] with low < high and 0 < step <= high - low", values)
        if not high - low < 2**53 * step:
            raise ArgumentError("", "must be [low, high, step] with fewer than 2**53 steps", values)
        return values if all(isinstance(each, int) for each in values) else [float(each) for each in values]

    def _values(self) -> tuple[float, float, int]:
        low, high, step = self.quantised
        return low, step, math.floor((high - low) / step + 1e-9) + 1


class Integer(_Grid):
    """The integers from low to high, both included: [low, high]."""

    integer: Annotated[list[int], Field(min_length=2, max_length=2), pydantic.AfterValidator(_ascending)]

    def _values(self) -> tuple[float, float, int]:
        low, high = self.integer
        return low, 1, high - low + 1


def _canonical(value: Any) -> str:
    """Returns a text by which values can be compared; unlike in Python, 1, 1.0 and true are different."""
    return json.dumps(value, sort_keys=True)


class Choice(Sampled):
    """One of several values, with equal probabilities."""

    choice: Annotated[list[Any], Field(min_length=2)]

    @pydantic.field_validator("choice")
    @classmethod
    def _different(cls, options: list[Any]) -> list[Any]:
        if len({_canonical(option) for option in options}) < len(options):
            raise ArgumentError("", "must contain each option once", options)
        return options

    def node(self, name: str) -> Any:
        """See `Sampled`."""
        return hp.choice(name, list(range(len(self.choice))))

    def value(self, draw: float) -> Any:
        """See `Sampled`."""
        return self.choice[int(draw)]

    def draw(self, value: Any) -> float:
        """See `Sampled`."""
        return [_canonical(option) for option in self.choice].index(_canonical(value))

    def probes(self) -> list[Any]:
        """See `Sampled`."""
        return list(self.choice)


class Fixed(Options):
    """The same value in every trial."""

    fixed: Any


class Product(Options):
    """The product of numbers and of quantities of the space."""

    product: Annotated[list[int | float | str], Field(min_length=1)]

    @property
    def sources(self) -> list[str]:
        """Names of the quantities that it is derived from."""
        return [factor for factor in self.product if isinstance(factor, str)]

    def derive(self, settings: Settings) -> Any:
        """Returns the value, given the values of `sources`.

        Raises:
            ValueError: if one of the factors is not a number.
        """
        factors = [settings[factor] if isinstance(factor, str) else factor for factor in self.product]
        for factor in factors:
            if isinstance(factor, bool) or not isinstance(factor, (int, float)):
                raise ValueError(f"product: its factors must be numbers; found {factor!r}")
        return math.prod(factors)


class Match(Options):
    """A value that depends on that of another quantity: `cases` has a pair [other value, this value] for each."""

    match: str
    cases: Annotated[list[Annotated[list[Any], Field(min_length=2, max_length=2)]], Field(min_length=1)]

    @property
    def sources(self) -> list[str]:
        """Name of the quantity that it is derived from, as a list."""
        return [self.match]

    def derive(self, settings: Settings) -> Any:
        """Returns the value, given the value of `match`.

        Raises:
            ValueError: if there is no case for the value of the other quantity.
        """
        found = settings[self.match]
        for case, value in self.cases:
            if _canonical(case) == _canonical(found):
                return value
        raise ValueError(f"match: no case for {self.match} = {found!r}; there are {[case for case, _ in self.cases]}")


KINDS: dict[str, type[Options]] = {
    "uniform": Uniform,
    "log_uniform": LogUniform,
    "quantised": Quantised,
    "integer": Integer,
    "choice": Choice,
    "fixed": Fixed,
    "product": Product,
    "match": Match,
}
"""Kinds of quantities by the key that selects them."""


class Space:
    """A checked search space.

    Args:
        entries: the value of `space:` in YAML.
        where: file and key of the space, for messages.
        places: name of each quantity -> its file and key, for messages. Default: its key below `where`.

    Raises:
        ConfigError: if a quantity is wrong, cannot be derived or is replaced by a later one, if nothing is drawn, or if
            the space is too large to check.

    Attributes:
        kinds: name -> kind of every quantity.
        sampled: name -> kind of the quantities that are drawn.
    """

    AT_LEAST: ClassVar[str] = "must have at least one quantity that is drawn, such as {uniform: [0, 1]}"

    def __init__(self, entries: Mapping[str, Any], where: str = "space", places: Mapping[str, str] | None = None):
        self._places = places or {name: f"{where}.{name}" for name in entries}
        self.kinds = {name: _kind(name, entry, self._places[name]) for name, entry in entries.items()}
        self.sampled = {name: kind for name, kind in self.kinds.items() if isinstance(kind, Sampled)}
        if not self.sampled:
            raise ConfigError(f"{where}: {self.AT_LEAST}; found {sorted(entries)}")
        self._where = where
        self._check_places()
        self._check_size()
        self._derived = self._in_order()
        self._check_matches()

    def _check_places(self) -> None:
        """Checks that each quantity comes after those that contain its key, whose values would replace it."""
        seen: set[str] = set()
        for name in self.kinds:
            seen.add(name)
            parts = name.split(".", MAX_DEPTH)  # A longer key path is refused when the quantity is applied.
            for other in (".".join(parts[:count]) for count in range(1, len(parts))):
                if other in self.kinds and other not in seen:
                    raise ConfigError(
                        f"{self._places[name]}: must come after {other}, whose value would replace it; found before it"
                    )

    def _check_matches(self) -> None:
        """Checks that there is a case for each value of a range. `probes` only has its ends."""
        for name, kind in self.kinds.items():
            source = self.sampled.get(kind.match) if isinstance(kind, Match) else None
            if isinstance(source, (Uniform, LogUniform)):
                requirement = "must be a quantity with a finite number of values, such as a choice"
                raise ConfigError(f"{self._places[name]}: match: {requirement}; found {kind.match}")
            for value in source.values() if isinstance(source, _Grid) else ():
                try:
                    kind.derive({kind.match: value})
                except ValueError as error:
                    raise ConfigError(f"{self._places[name]}: {error}") from None

    def _check_size(self) -> None:
        """Checks that all settings of `probes` can be tried in about a second."""
        values = self._rounds * (_VALUES_OF_BASE + sum(_count(self._largest(name)) for name in self.kinds))
        if values > MAX_VALUES:
            raise ConfigError(
                f"{self._where}: is too large: trying each option of a choice and both ends of each range sets "
                f"{values:,} values; at most {MAX_VALUES:,} are allowed"
            )

    def _largest(self, name: str) -> Any:
        """Returns the part of a quantity that a trial reads: one option of a choice, or the whole quantity."""
        kind = self.kinds[name]
        return max(kind.choice, key=_count) if isinstance(kind, Choice) else kind.model_dump()

    @property
    def _rounds(self) -> int:
        """The number of `probes`."""
        return max(len(kind.probes()) for kind in self.sampled.values())

    def _in_order(self) -> list[str]:
        """Returns the names of the derived quantities, each after its sources."""
        derived = {name: kind.sources for name, kind in self.kinds.items() if not isinstance(kind, (Sampled, Fixed))}
        for name, sources in derived.items():
            for source in sources:
                if source not in self.kinds:
                    raise ConfigError(
                        f"{self._places[name]}: {source!r} is not a quantity of this space{nearest(source, self.kinds)}"
                    )
        try:
            order = list(graphlib.TopologicalSorter(derived).static_order())
        except graphlib.CycleError as error:
            cycle = dict.fromkeys(error.args[1])
            raise ConfigError(f"{self._where}: {' and '.join(cycle)} depend on each other") from None
        return [name for name in order if name in derived]

    def nodes(self) -> dict[str, Any]:
        """Returns the space in the form that hyperopt expects."""
        return {name: kind.node(name) for name, kind in self.sampled.items()}

    def may_draw(self, values: Any) -> bool:
        """Whether the space can draw these values (name -> value); used to check records on disk."""
        if not isinstance(values, Mapping) or values.keys() != self.sampled.keys():
            return False
        return all(kind.may_draw(values[name]) for name, kind in self.sampled.items())

    def settings(self, values: Mapping[str, Any]) -> Settings:
        """Returns the value of every quantity in a trial, in the order of the space.

        Args:
            values: name -> value of each sampled quantity.

        Raises:
            ConfigError: if a quantity cannot be derived.
        """
        settings, problems = self._derive(values)
        if problems:
            raise ConfigError(problems[0])
        return settings

    def derivable(self, values: Mapping[str, Any]) -> Settings:
        """As `settings`, but a quantity that cannot be derived is None."""
        return self._derive(values)[0]

    def _derive(self, values: Mapping[str, Any]) -> tuple[Settings, list[str]]:
        """Returns the value of every quantity, and why some of them cannot be derived."""
        known = {name: kind.fixed for name, kind in self.kinds.items() if isinstance(kind, Fixed)} | dict(values)
        problems = []
        for name in self._derived:
            try:
                known[name] = self.kinds[name].derive(known)
            except ValueError as error:
                known[name] = None
                problems.append(f"{self._places[name]}: {error}")
        return {name: known[name] for name in self.kinds}, problems

    def overrides(self, values: Mapping[str, Any]) -> list[str]:
        """Returns `key.path=value` for `config.load`, in the order of the space; arguments as for `settings`."""
        settings = self.settings(values)
        return [
            f"{name}={yaml_writer.write_inline(value)}" for name, value in settings.items() if not name.startswith("$")
        ]

    def probes(self) -> list[Settings]:
        """Returns values of trials in which every option of every choice and both ends of every range occur."""
        columns = {name: kind.probes() for name, kind in self.sampled.items()}
        return [{name: column[turn % len(column)] for name, column in columns.items()} for turn in range(self._rounds)]


def _count(value: Any) -> int:
    """Returns the number of scalars, sequences and mappings in a value."""
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return 1 + sum(map(_count, inner))


def _kind(name: str, entry: Any, where: str) -> Any:
    """Returns the checked kind of a quantity."""
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{where}: must be a key path such as alignment.amp, or a name such as $ratio")
    if name in _SET_BY_SEARCH:
        raise ConfigError(f"{where}: is set by the search itself; give it beside `space`, not in it")
    word = next((key for key in KINDS if isinstance(entry, Mapping) and key in entry), None)
    if word is None:
        known = next(iter(entry), "") if isinstance(entry, Mapping) else ""
        found = errors.shortened(repr(entry))
        raise ConfigError(
            f"{where}: must be a mapping with one of {', '.join(KINDS)}; found {found}{nearest(str(known), KINDS)}"
        )
    model = KINDS[word]
    try:
        return model.model_validate(dict(entry))
    except pydantic.ValidationError as error:
        raise ConfigError(mistakes.describe(error, model, where)) from None


def grouped(kind: Any, values: Sequence[Any]) -> tuple[list[str], list[int]]:
    """Sorts the values of one quantity into groups: the options of a choice, or thirds of the values in a range.

    Thirds contain equal numbers of values, because a search visits a range unevenly. Equal values are in one group: the
    borders between thirds are the nearest changes of value, and up to three different values are a group each.

    Args:
        kind: the kind of the quantity.
        values: one value per trial.

    Returns:
        The labels of the groups, and for each value the index of its group.
    """
    if isinstance(kind, Choice):
        labels = [_canonical(option).strip('"') for option in kind.choice]
        return labels, [int(kind.draw(value)) for value in values]
    ranked = sorted(values)
    if not ranked:
        return ["none"], []
    borders = _borders(ranked)
    parts = [ranked[start:end] for start, end in itertools.pairwise([0, *borders, len(ranked)])]
    firsts = [ranked[border] for border in borders]
    return [_label(part[0], part[-1]) for part in parts], [bisect.bisect_right(firsts, value) for value in values]


def _borders(ranked: Sequence[float]) -> list[int]:
    """Returns the places in sorted values where a group begins, except the first group."""
    changes = [place for place in range(1, len(ranked)) if ranked[place] != ranked[place - 1]]
    if len(changes) < 3:
        return changes
    thirds = [math.ceil(part * len(ranked) / 3) for part in (1, 2)]
    first = min(changes[:-1], key=lambda place: abs(place - thirds[0]))
    later = (place for place in changes if place > first)
    return [first, min(later, key=lambda place: abs(place - thirds[1]))]


def _label(low: float, high: float) -> str:
    return f"{low:g}" if low == high else f"{low:.3g} to {high:.3g}"
