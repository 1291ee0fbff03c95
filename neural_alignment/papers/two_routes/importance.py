"""Figure S2 of Kunin et al. 2020: the importance of the discrete metaparameters of Information Alignment."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import tensorflow as tf

from neural_alignment.errors import RunError
from neural_alignment.papers import figures
from neural_alignment.papers.registry import Source
from neural_alignment.papers.tables import grouped
from neural_alignment.papers.two_routes.rates import search_in
from neural_alignment.papers.two_routes.runs import CHANCE
from neural_alignment.reporting import Artifact, Row, markdown, read_csv
from neural_alignment.search import plan as plans
from neural_alignment.search import report
from neural_alignment.search.records import Trial
from neural_alignment.search.spaces import Choice

if TYPE_CHECKING:
    from matplotlib.axes import Axes
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
    plan, trials = _found(source)
    space = plan.checked_space
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


def check(source: Source) -> None:
    """Checks that the folder contains a search with a discrete metaparameter.

    Raises:
        RunError: if not.
    """
    plan, _ = _found(source)
    if not any(isinstance(kind, Choice) for kind in plan.checked_space.sampled.values()):
        raise RunError(f"{source.folder}: is a search without a discrete metaparameter, of which the figure consists")


def _found(source: Source) -> tuple[plans.Plan, list[Trial]]:
    """Returns the plan and the trials of the search; errors as of `make`."""
    found = search_in(source.folder) or _compared(source)
    if found is None:
        raise RunError(
            f"{source.folder}: is not a search directory (no trials.jsonl); `neural-alignment search lab/information` "
            "makes one in runs/search/lab/information, which --runs takes"
        )
    return found


def _compared(source: Source) -> tuple[plans.Plan, list[Trial]] | None:
    """Returns the lab's search and all its trials by TPE, if the folder has the comparison of search algorithms."""
    rows = read_csv(f"{source.folder}/{COMPARISON}")
    own = [row for row in rows if row["algorithm"] == "tpe"]
    return (plans.load(tf.io.gfile.join(source.configs, SEARCH)), [_trial(row) for row in own]) if own else None


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


ACROSS = 5
"""Panels in a row."""


def _figure(rows: Sequence[Row]) -> Figure:
    """Returns a panel for each metaparameter with the mean score of its options, titled by the letter of the paper."""
    panels = [_panel(own) for own in grouped(rows, "name").values()]
    panels += [None] * (-len(panels) % ACROSS)
    lines = [panels[start : start + ACROSS] for start in range(0, len(panels), ACROSS)]
    labels = ["best top-1 (%), mean\nand SEM over trials"] * len(lines)
    return figures.grid(lines, (11, 2.3 * len(lines)), ylabels=labels, share_y=True)


def _panel(own: Sequence[Row]) -> figures.Panel:
    parts = own[0]["name"].removeprefix("alignment.").removeprefix("optimization.").split(".")
    title = ".\n".join(parts) if len(parts) > 1 else parts[0]
    title = f"{own[0]['letter']}: {title}" if own[0]["letter"] else title

    def draw(axis: Axes) -> None:
        means, errors = ([100 * row[name] for row in own] for name in ("mean", "sem"))
        axis.errorbar(range(len(own)), means, yerr=errors, fmt="o", color="black", capsize=3)
        axis.set_xticks(range(len(own)), [f"{row['choice']}\n({row['count']})" for row in own], fontsize="small")
        axis.set_xlim(-0.6, len(own) - 0.4)
        axis.set_title(title, fontsize="small")

    return figures.panel(draw, xlabel="option (trials)")
