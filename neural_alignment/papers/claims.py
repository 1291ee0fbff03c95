"""Claims of a paper, judged by its result files.

A claim states a quantity, a criterion, and how the quantity is computed from the CSV files in each case that the claim
is about, such as each layer. Quantities are contrasts: with and without a disturbance, or the end and the start of
training. They have a value for each seed, and most criteria apply to the interval of the mean by Student's t.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import operator
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from scipy import special

from neural_alignment.errors import InputError
from neural_alignment.papers.tables import Key, chosen, grouped, table, value_of
from neural_alignment.reporting import Artifact, Row, Spread, read_csv

CONFIDENCE = 0.95
"""Confidence level of the intervals of means."""

LEAST = 3
"""Smallest number of seeds from which an interval is judged; that of two seeds is 13 standard errors on either side."""

NOT_YET = "not yet run"
"""Verdict of a claim whose result files, or their rows, do not exist."""

TOO_FEW = "too few seeds"
"""Verdict of a claim none of whose cases has enough seeds."""

UNDECIDED = "undecided"
"""Verdict of a claim if no case meets the criterion and none contradicts it."""


class NotYetRunError(Exception):
    """A result file or its rows do not exist."""


def reach(error: float, freedom: float) -> float:
    """Returns the distance from a mean to either end of its interval by Student's t.

    Args:
        error: standard error of the mean.
        freedom: degrees of freedom; one less than the number of values.
    """
    return float(special.stdtrit(freedom, (1 + CONFIDENCE) / 2)) * error if freedom > 0 else math.inf


def _student(found: Spread) -> float:
    """Returns the distance from the mean to either end of its interval by Student's t."""
    return reach(found.error, found.freedom)


def welch(parts: Sequence[Spread]) -> tuple[float, float]:
    """Returns the standard error of a sum or difference of means, and its degrees of freedom (Welch, Satterthwaite).

    Args:
        parts: the values of each mean, two or more; the variances of the parts may differ.
    """
    squares = [part.error**2 for part in parts]
    below = sum(square**2 / part.freedom for square, part in zip(squares, parts, strict=True))
    # Without any spread the interval has no width, whatever the degrees of freedom.
    return math.sqrt(sum(squares)), sum(squares) ** 2 / below if below else 1.0


@dataclasses.dataclass(frozen=True)
class Unpaired(Spread):
    """A sum and difference of means of independent values: the seeds of one mean are not those of another.

    Attributes:
        values: those of the mean with the fewest.
        plus: the values of the means that are added.
        minus: the values of the means that are subtracted.
    """

    plus: Sequence[Spread] = ()
    minus: Sequence[Spread] = ()

    @classmethod
    def of(cls, plus: Sequence[Spread], minus: Sequence[Spread]) -> Unpaired:
        """Returns the sum of some means minus that of others."""
        fewest = min((*plus, *minus), key=lambda part: len(part.known))
        return cls(fewest.values, plus, minus)

    @property
    def mean(self) -> float:
        """The sum of the means, with their signs."""
        return sum(part.mean for part in self.plus) - sum(part.mean for part in self.minus)

    @property
    def error(self) -> float:
        """Its standard error; NaN if a mean has fewer than two values."""
        return welch((*self.plus, *self.minus))[0] if len(self.known) > 1 else math.nan

    @property
    def freedom(self) -> float:
        """The degrees of freedom of its standard error; 0 if a mean has fewer than two values."""
        return welch((*self.plus, *self.minus))[1] if len(self.known) > 1 else 0


class Threshold(NamedTuple):
    """A range in which the interval of a quantity must lie.

    Attributes:
        text: the condition in words, as a table shows it.
        low: lower end of the range.
        high: upper end of the range.
        distance: returns the distance from the mean of the values to either end of their interval.
        least: smallest number of values from which it is judged.
    """

    text: str
    low: float = -math.inf
    high: float = math.inf
    distance: Callable[[Spread], float] = _student
    least: int = LEAST

    def judge(self, found: Spread) -> bool | None:
        """Returns whether the condition is met; `None` if the values do not tell, or are too few.

        It is not met if the whole interval lies outside of the range, or if a value is missing, of a run that diverged.
        """
        if len(found.values) < self.least:
            return None
        if len(found.known) < len(found.values):
            return False
        distance = self.distance(found)
        begin, end = found.mean - distance, found.mean + distance
        if self.low < begin and end < self.high:
            return True
        return False if end <= self.low or begin >= self.high else None


def above(limit: float = 0.0, single: float | None = None) -> Threshold:
    """Returns the criterion that the interval of the mean is above a limit.

    Args:
        limit: the limit.
        single: distance to either end of the interval of a case with one value. By default such a case is not judged.
    """
    return _with_single(Threshold(f"above {limit:g}", low=limit), single)


def below(limit: float, single: float | None = None) -> Threshold:
    """Returns the criterion that the interval of the mean is below a limit; for `single` see `above`."""
    return _with_single(Threshold(f"below {limit:g}", high=limit), single)


def _with_single(criterion: Threshold, single: float | None) -> Threshold:
    if single is None:
        return criterion

    def distance(found: Spread) -> float:
        return single if len(found.known) == 1 else _student(found)

    return criterion._replace(text=f"{criterion.text}; one seed: ± {single:g}", distance=distance, least=1)


def not_above(limit: float, margin: float) -> Threshold:
    """Returns the criterion that the interval of the mean exceeds a limit by less than a margin.

    It is not the opposite of `above`: a wide interval meets neither. The margin is the smallest excess that would
    contradict the claim; it follows from the claim and not from the results.
    """
    return Threshold(f"not above {limit:g}, margin {margin:g}", high=limit + margin)


def between(low: float, high: float) -> Threshold:
    """Returns the criterion that the interval of the mean is between two limits."""
    return Threshold(f"{low:g} to {high:g}", low, high)


def _mean(text: str, low: float = -math.inf, high: float = math.inf) -> Threshold:
    return Threshold(text, low, high, distance=lambda found: 0.0, least=1)


def mean_above(limit: float) -> Threshold:
    """Returns the criterion that the mean, or the only value, is above a limit; it does not use an interval."""
    return _mean(f"mean above {limit:g}", low=limit)


def mean_below(limit: float) -> Threshold:
    """Returns the criterion that the mean, or the only value, is below a limit; it does not use an interval."""
    return _mean(f"mean below {limit:g}", high=limit)


def mean_between(low: float, high: float) -> Threshold:
    """Returns the criterion that the mean, or the only value, is in a range; it does not use an interval."""
    return _mean(f"mean {low:g} to {high:g}", low, high)


class ResultFiles:
    """The CSV files in a folder of results; each is read once.

    Args:
        folder: the folder.
    """

    def __init__(self, folder: str):
        self._folder = folder
        self._rows: dict[str, list[Row]] = {}

    def rows(self, name: str, **labels: Any) -> list[Row]:
        """Returns the rows of a file that have some labels; numbers are `int` or `float`, empty cells `None`.

        Args:
            name: name of the file without extension.
            **labels: column -> value.

        Raises:
            NotYetRunError: if there are none.
        """
        if name not in self._rows:
            found = read_csv(f"{self._folder}/{name}.csv")
            self._rows[name] = [{key: _value(text) for key, text in row.items()} for row in found]
        if rows := chosen(self._rows[name], **labels):
            return rows
        raise NotYetRunError


def _value(text: str) -> Any:
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text or None


Seeds = dict[Any, float]
"""Seed -> value; NaN if the run diverged, so that it has none."""


def seeds_by(rows: Iterable[Row], key: str, value: str = "value") -> dict[Any, Seeds]:
    """Returns entry of the column `key` -> seed -> entry of the column `value`; of several rows the last one counts."""
    found: dict[Any, Seeds] = {}
    for row in rows:
        found.setdefault(row[key], {})[row["seed"]] = math.nan if row[value] is None else row[value]
    return found


def paired(function: Callable[..., float], *values: Seeds) -> Spread:
    """Returns the spread of a function of several values of the same seed; seeds without a row are left out.

    Raises:
        NotYetRunError: if no seed has all values.
    """
    common = [seed for seed in values[0] if all(seed in each for each in values)]
    if not common:
        raise NotYetRunError
    return Spread([function(*(each[seed] for each in values)) for seed in common])


def difference(first: Seeds, second: Seeds) -> Spread:
    """Returns the spread of the differences first - second of the same seed. Raises the errors of `paired`."""
    return paired(lambda one, other: one - other, first, second)


ByCase = Callable[[ResultFiles], dict[Any, Seeds]]
"""Returns case -> seed -> value, from the result files."""


def values(
    name: str,
    column: Key,
    by: Key,
    seed: Key = "seed",
    where: Callable[[Row], bool] = lambda row: True,
    combine: Callable[[list[float]], float] = statistics.fmean,
    **labels: Any,
) -> ByCase:
    """Returns the values of a column of a file; `where` and **labels choose rows.

    Args:
        name: name of the file without extension.
        column: the column, or a function of a row, in which empty cells are NaN.
        by: column of the case, or a function of a row.
        seed: column of the seed, or a function of a row.
        where: whether a row counts.
        combine: makes one value of the rows with the same case and seed, in their order; it is NaN if one of them is.
        **labels: column -> value.
    """

    def find(files: ResultFiles) -> dict[Any, Seeds]:
        rows = [row for row in files.rows(name, **labels) if where(row)]
        if not rows:
            raise NotYetRunError
        found: dict[Any, Seeds] = {}
        for (case, each), own in grouped(rows, by, seed).items():
            known = [value_of({k: math.nan if v is None else v for k, v in row.items()}, column) for row in own]
            found.setdefault(case, {})[each] = math.nan if any(map(math.isnan, known)) else combine(known)
        return found

    return find


def contrast(first: ByCase, second: ByCase, function: Callable[[float, float], float] = operator.sub) -> ByCase:
    """Returns a function of two values of the same case and seed: their difference, or another function."""

    def find(files: ResultFiles) -> dict[Any, Seeds]:
        ours, theirs = first(files), second(files)
        pairs = {case: (own, theirs[case]) for case, own in ours.items() if case in theirs}
        return {case: {s: function(a[s], b[s]) for s in a if s in b} for case, (a, b) in pairs.items()}

    return find


def increases(
    found: ByCase,
    form: str = "x{} to x{}",
    pairs: Callable[[Sequence[Any]], Iterable[tuple[Any, Any]]] = itertools.pairwise,
) -> ByCase:
    """Returns the increase from each case to the next, or in other pairs of the ascending cases; `form` names both."""

    def find(files: ResultFiles) -> dict[Any, Seeds]:
        known = found(files)
        ends = [(low, known[low], high, known[high]) for low, high in pairs(sorted(known))]
        return {form.format(low, high): {s: b[s] - a[s] for s in a if s in b} for low, a, high, b in ends}

    return find


def spreads(found: ByCase, form: str = "{}") -> Callable[[ResultFiles], dict[str, Spread]]:
    """Returns the spread over seeds of each case that has any, in ascending order; `form` names the case."""

    def find(files: ResultFiles) -> dict[str, Spread]:
        cases = sorted(found(files).items(), key=lambda item: item[0] if isinstance(item[0], int) else 0)
        known = {case: [*seeds.values()] for case, seeds in cases if seeds}
        if not known:
            raise NotYetRunError
        return {form.format(case): Spread(each) for case, each in known.items()}

    return find


class PaperClaim(NamedTuple):
    """A claim of a paper.

    Attributes:
        figure: number of the figure.
        text: the claim.
        published: the result of the paper or of its published code, or where the paper states the claim.
        quantity: the quantity that is judged, with its unit.
        criterion: the criterion that it must meet.
        find: returns case -> spread of the quantity, from the result files. The only case of a claim may be "".
        form: number format of the quantity.
    """

    figure: str
    text: str
    published: str
    quantity: str
    criterion: Threshold
    find: Callable[[ResultFiles], Mapping[str, Spread]]
    form: str = ".2f"

    def judged(self, files: ResultFiles) -> list[Row]:
        """Returns a row per case; one row without numbers if the claim has no result files yet."""
        facts = {"figure": self.figure, "claim": self.text, "published": self.published, "quantity": self.quantity}
        facts["holds_if"] = self.criterion.text
        try:
            found = self.find(files)
        except NotYetRunError:
            return [{**facts, "case": "", "verdict": NOT_YET}]
        held = [self.criterion.judge(values) for values in found.values()]
        numbers = [self._numbers(*each) for each in zip(found.items(), held, strict=True)]
        enough = any(len(values.values) >= self.criterion.least for values in found.values())
        return [{**facts, **each, "verdict": verdict(held, enough)} for each in numbers]

    def _numbers(self, case: tuple[str, Spread], holds: bool | None) -> Row:
        name, values = case
        error = values.error if len(values.known) > 1 else None
        missing = len(values.values) - len(values.known)
        parts = [f"{values.mean:{self.form}}"] if values.known else []
        parts += [] if error is None else [f"± {error:{self.form}}"]
        parts += [f"({missing} of {len(values.values)} diverged)"] if missing else []
        counts = {"mean": values.mean, "standard_error": error, "values": len(values.known), "holds": holds}
        return {"case": name, **counts, "shown": ": ".join([name] * bool(name) + [" ".join(parts)])}


def verdict(held: Sequence[bool | None], enough: bool = True) -> str:
    """Returns in one or three words whether a claim holds in its cases.

    Args:
        held: whether each case meets the criterion; `None` if its values do not tell.
        enough: whether any case has enough values to be judged.
    """
    if not enough:
        return TOO_FEW
    if any(held):
        return "yes" if all(held) else "in part"
    return "no" if any(each is False for each in held) else UNDECIDED


COLUMNS = (
    *("figure", "claim", "published", "quantity", "holds_if", "case"),
    *("mean", "standard_error", "values", "holds", "verdict"),
)
"""Columns of the CSV file of a table of claims: a row per case."""


def judge(claims: Iterable[PaperClaim], folder: str) -> Artifact:
    """Returns a table of claims, judged by the CSV files in a folder: a line per claim, and a CSV row per case."""
    files = ResultFiles(folder)
    rows = [row for claim in claims for row in claim.judged(files)]
    columns = {
        "figure": "figure",
        "claim": "claim",
        "paper, or its published code": "published",
        "here": lambda own: "; ".join(row["shown"] for row in own if "shown" in row) or "-",
        "quantity": "quantity",
        "values": _counts,
        "holds if": "holds_if",
        "shows": "verdict",
    }
    return Artifact(COLUMNS, rows, table(rows, ("figure", "claim"), columns))


def table_of(every: Iterable[PaperClaim], name: str, folder: str, figure: str) -> Artifact:
    """Returns a table of claims, judged by the files in a folder of results.

    Args:
        every: the claims.
        name: name of the table, such as "fa_mechanism/claims".
        folder: the folder.
        figure: name of a figure whose file is used, for the message.

    Raises:
        InputError: if there is no such file.
    """
    judged = judge(every, folder)
    if all(row["verdict"] == NOT_YET for row in judged.rows):
        paper = name.partition("/")[0]
        raise InputError(
            f"table {name}: none of the files of the figures is in {folder}; `neural-alignment lab {paper}` makes them "
            f"all, `neural-alignment figure {figure}` one of them"
        )
    return judged


def _counts(rows: Sequence[Row]) -> str:
    """Returns the number of values of the cases of a claim: the smallest, and the largest if they differ."""
    counts = sorted({row["values"] for row in rows if "values" in row})
    return " to ".join(map(str, dict.fromkeys((counts[0], counts[-1])))) if counts else "-"
