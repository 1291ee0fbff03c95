"""Claims of a paper, judged by its result files.

A claim states a quantity, a criterion, and how the quantity is computed from the CSV files in each case that the claim
is about, such as each layer. Quantities are contrasts: with and without a disturbance, or the end and the start of
training. They have a value for each seed, and criteria take the standard error of the mean into account.
"""

from __future__ import annotations

import contextlib
import itertools
import operator
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from neural_alignment.papers.tables import Key, chosen, grouped, table, value_of
from neural_alignment.reporting import Artifact, Row, Spread, read_csv

ERRORS = 2.0
"""Number of standard errors by which a mean must clear a limit."""

NOT_YET = "not yet run"
"""Verdict of a claim whose result files, or their rows, do not exist."""

TOO_FEW = "too few seeds"
"""Verdict of a claim that is judged from several seeds or subsets, if its rows have fewer."""


class NotYetRunError(Exception):
    """A result file or its rows do not exist."""

    verdict = NOT_YET


class TooFewSeedsError(NotYetRunError):
    """There are rows, but of fewer seeds than the claim needs."""

    verdict = TOO_FEW


class Threshold(NamedTuple):
    """A condition that a quantity must meet.

    Attributes:
        text: the condition in words, as a table shows it.
        holds: whether the values of all seeds meet it.
    """

    text: str
    holds: Callable[[Spread], bool]


def above(limit: float = 0.0) -> Threshold:
    """Returns the criterion that the mean is above a limit by more than `ERRORS` standard errors."""
    return Threshold(f"above {limit:g}", lambda found: found.mean - ERRORS * found.error > limit)


def below(limit: float) -> Threshold:
    """Returns the criterion that the mean is below a limit by more than `ERRORS` standard errors."""
    return Threshold(f"below {limit:g}", lambda found: found.mean + ERRORS * found.error < limit)


def not_above(limit: float = 0.0) -> Threshold:
    """Returns the opposite of `above`."""
    return Threshold(f"not above {limit:g}", lambda found: not above(limit).holds(found))


def between(low: float, high: float) -> Threshold:
    """Returns the criterion that the mean is `above` a lower limit and `below` an upper limit."""
    return Threshold(f"{low:g} to {high:g}", lambda found: above(low).holds(found) and below(high).holds(found))


def mean_between(low: float, high: float) -> Threshold:
    """Returns the criterion that the mean is in a range, whatever its standard error."""
    return Threshold(f"mean {low:g} to {high:g}", lambda found: low < found.mean < high)


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
"""Seed -> value."""


def seeds_by(rows: Iterable[Row], key: str, value: str = "value") -> dict[Any, Seeds]:
    """Returns value of a column -> seed -> value of the column `value`; the last row counts if there are several."""
    found: dict[Any, Seeds] = {}
    for row in rows:
        if row[value] is not None:
            found.setdefault(row[key], {})[row["seed"]] = row[value]
    return found


def paired(function: Callable[..., float], *values: Seeds) -> Spread:
    """Returns the spread of a function of several values of the same seed; seeds that lack a value are left out.

    Raises:
        NotYetRunError: if no seed has all values.
    """
    common = [seed for seed in values[0] if all(seed in each for each in values)]
    if not common:
        raise NotYetRunError
    return Spread([function(*(each[seed] for each in values)) for seed in common])


def difference(first: Seeds, second: Seeds) -> Spread:
    """Returns the spread of the differences first - second of the same seed; errors as of `paired`."""
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
        column: the column, or a function of a row; rows without a value are left out.
        by: column of the case, or a function of a row.
        seed: column of the seed, or a function of a row.
        where: whether a row counts.
        combine: makes one value of the rows with the same case and seed, in their order.
        **labels: column -> value.
    """

    def find(files: ResultFiles) -> dict[Any, Seeds]:
        rows = [row for row in files.rows(name, **labels) if where(row) and value_of(row, column) is not None]
        if not rows:
            raise NotYetRunError
        found: dict[Any, Seeds] = {}
        for (case, each), own in grouped(rows, by, seed).items():
            found.setdefault(case, {})[each] = combine([value_of(row, column) for row in own])
        return found

    return find


def contrast(first: ByCase, second: ByCase, function: Callable[[float, float], float] = operator.sub) -> ByCase:
    """Returns a function of two values of the same case and seed: their difference, or another function."""

    def find(files: ResultFiles) -> dict[Any, Seeds]:
        ours, theirs = first(files), second(files)
        pairs = {case: (own, theirs[case]) for case, own in ours.items() if case in theirs}
        return {case: {s: function(a[s], b[s]) for s in a if s in b} for case, (a, b) in pairs.items()}

    return find


def increases(found: ByCase, form: str = "x{} to x{}") -> ByCase:
    """Returns the increase from each case, in ascending order, to the next; `form` names both."""

    def find(files: ResultFiles) -> dict[Any, Seeds]:
        known = found(files)
        pairs = [(low, known[low], high, known[high]) for low, high in itertools.pairwise(sorted(known))]
        return {form.format(low, high): {s: b[s] - a[s] for s in a if s in b} for low, a, high, b in pairs}

    return find


def spreads(found: ByCase, form: str = "{}", least: int = 1) -> Callable[[ResultFiles], dict[str, Spread]]:
    """Returns the spread over seeds of each case with enough seeds, in ascending order; `form` names the case."""

    def find(files: ResultFiles) -> dict[str, Spread]:
        cases = sorted(found(files).items(), key=lambda item: item[0] if isinstance(item[0], int) else 0)
        known = {case: [*seeds.values()] for case, seeds in cases if len(seeds) >= least}
        if not known:
            raise TooFewSeedsError if any(seeds for _, seeds in cases) else NotYetRunError
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
        """Returns a row per case; one row without numbers if the claim has no result files or too few seeds yet."""
        facts = {"figure": self.figure, "claim": self.text, "published": self.published, "quantity": self.quantity}
        facts["holds_if"] = self.criterion.text
        try:
            found = self.find(files)
        except NotYetRunError as error:
            return [{**facts, "case": "", "verdict": error.verdict}]
        held = [bool(self.criterion.holds(values)) for values in found.values()]
        numbers = [self._numbers(*each) for each in zip(found.items(), held, strict=True)]
        return [{**facts, **each, "verdict": verdict(held)} for each in numbers]

    def _numbers(self, case: tuple[str, Spread], holds: bool) -> Row:
        name, values = case
        error = values.error if len(values.known) > 1 else None
        shown = f"{values.mean:{self.form}}" + ("" if error is None else f" ± {error:{self.form}}")
        counts = {"mean": values.mean, "standard_error": error, "values": len(values.known), "holds": holds}
        return {"case": name, **counts, "shown": f"{name}: {shown}" if name else shown}


def verdict(held: Sequence[bool]) -> str:
    """Returns in one or two words whether a claim holds in its cases."""
    return "yes" if all(held) else "in part" if any(held) else "no"


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
        "values": lambda own: max(row.get("values", 0) for row in own) or "-",
        "holds if": "holds_if",
        "shows": "verdict",
    }
    return Artifact(COLUMNS, rows, table(rows, ("figure", "claim"), columns))
