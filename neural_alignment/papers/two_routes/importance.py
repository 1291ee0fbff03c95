"""Figure S2 of Kunin et al. 2020: the importance of the discrete metaparameters of Information Alignment."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from neural_alignment.errors import RunError
from neural_alignment.papers.registry import Source
from neural_alignment.papers.tables import grouped
from neural_alignment.papers.two_routes.rates import search_in
from neural_alignment.papers.two_routes.runs import CHANCE
from neural_alignment.reporting import Artifact, Row, markdown, new_figure, read_csv
from neural_alignment.search import plan as plans
from neural_alignment.search import report
from neural_alignment.search.records import Trial
from neural_alignment.search.spaces import Choice

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LETTERS = {
    "alignment.backward_output.feature_normalize": "A",
    "alignment.input.noise": "B",
    "optimization.delay_epochs": "C",
    "alignment.backward_output.relu": "D",
    "alignment.forward_output.relu": "E",
    "alignment.forward_output.bias": "F",
    "alignment.input.feature_center": "G",
    "alignment.input.feature_normalize": "H",
    "alignment.forward_output.feature_normalize": "I",
}
"""Key path of a metaparameter -> its letter in Figure S2. Other discrete metaparameters follow without a letter."""

SEARCH, COMPARISON = "search/lab/information.yaml", "search_information.csv"
"""The lab's search below the configurations, and the file of all its trials in results/two_routes."""

COLUMNS = ("letter", "name", "choice", "mean", "sem", "count")


def make(source: Source) -> Artifact:
    """Mean and standard error of the score for each option of each discrete metaparameter.

    Raises:
        RunError: if the folder contains no search, or a damaged one.
    """
    found = search_in(source.folder) or _compared(source)
    if found is None:
        raise RunError(f"{source.folder}: is not a search directory (no trials.jsonl); give one that `search` created")
    plan, trials = found
    space = plan.checked_space()
    discrete = {name for name, kind in space.sampled.items() if isinstance(kind, Choice)}
    rows = sorted(_rows(group for group in report.importance(space, trials) if group.name in discrete), key=_place)
    missing = [f"{letter} ({name})" for name, letter in LETTERS.items() if name not in discrete]
    text = markdown(
        ["", "metaparameter", "option", "mean top-1 (%)", "standard error", "trials"],
        ([row["letter"], row["name"], row["choice"], *_percents(row), row["count"]] for row in rows),
    )
    if missing:
        text += f"\n\nIn the paper, but not drawn by this search: {', '.join(missing)}."
    return Artifact(COLUMNS, rows, text, _figure(rows))


def _compared(source: Source) -> tuple[plans.Plan, list[Trial]] | None:
    """Returns the lab's search and all its trials by TPE, if the folder has the comparison of search algorithms."""
    rows = read_csv(f"{source.folder}/{COMPARISON}")
    own = [row for row in rows if row["algorithm"] == "tpe"]
    return (plans.load(f"{source.configs}/{SEARCH}"), [_trial(row) for row in own]) if own else None


def _trial(row: Row) -> Trial:
    """Returns the trial of a row of a comparison; a diverged one counts as chance."""
    top1 = float(row["top1"]) if row["top1"] else None
    diverged = row["diverged"] == "1"
    state = "diverged" if diverged else "failed" if top1 is None else "finished"
    score = CHANCE["lab"][0] if diverged else top1
    return Trial(int(row["trial"]), state, top1, score, None, float(row["seconds"]), json.loads(row["settings"]))


def _rows(groups: Iterable[report.Group]) -> Iterator[Row]:
    for group in groups:
        yield {"letter": LETTERS.get(group.name, ""), **group._asdict()}


def _place(row: Row) -> tuple[bool, str]:
    """Returns the order of the rows: the letters of the paper first."""
    return not row["letter"], row["letter"]


def _percents(row: Row) -> tuple[str, str]:
    return tuple("" if math.isnan(row[name]) else f"{100 * row[name]:.2f}" for name in ("mean", "sem"))


def _figure(rows: Sequence[Row]) -> Figure:
    """Returns bars of the mean score, grouped by metaparameter, with the letter of the paper below each group."""
    groups = [own for _, own in grouped(rows, "name").items()]
    figure = new_figure(1.5 + 0.42 * (len(rows) + len(groups)), 4.6)
    axes, place, ticks = figure.add_subplot(), 0, []
    for own in groups:
        first = place
        for row in own:
            axes.bar(place, 100 * row["mean"], yerr=100 * row["sem"], color="0.8", edgecolor="black", capsize=3)
            ticks.append((place, row["choice"]))
            place += 1
        letter, name = own[0]["letter"], own[0]["name"].removeprefix("alignment.").removeprefix("optimization.")
        title = f"{letter}: {name}" if letter else name
        axes.text((first + place - 1) / 2, 1.01, title, transform=axes.get_xaxis_transform(), ha="left", rotation=40)
        place += 1
    axes.set_xticks([tick for tick, _ in ticks], [label for _, label in ticks], rotation=90)
    axes.set(xlabel="option of the metaparameter above", ylabel="best validation top-1 (%), mean and SEM over trials")
    return figure
