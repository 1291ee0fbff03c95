"""The report of a search: best configuration, ten best trials, importance of metaparameters, scores by trial."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from neural_alignment import config as configuration
from neural_alignment.config import Config
from neural_alignment.files import write_whole
from neural_alignment.reporting import Artifact, Row, Spread, markdown, new_figure, whole_ticks
from neural_alignment.reporting import write as write_artifact
from neural_alignment.search import plan as plans
from neural_alignment.search.plan import Plan
from neural_alignment.search.records import Trial, best_of
from neural_alignment.search.spaces import Fixed, Space, grouped


class Group(NamedTuple):
    """Scores of the trials that share an option of a metaparameter, or a third or a value of its range.

    Attributes:
        name: name of the metaparameter.
        choice: the option or value, or the third as `low to high`.
        mean: mean of the scores, a fraction; NaN without trials.
        sem: standard error of that mean; NaN for fewer than two trials.
        count: number of trials.
    """

    name: str
    choice: str
    mean: float
    sem: float
    count: int


def write(plan: Plan, base: Config, trials: Sequence[Trial], search_dir: str) -> None:
    """Writes all parts of the report; `best.yaml` only if a trial has finished.

    Args:
        plan: the plan of the search.
        base: the configuration that all trials have in common; `best.yaml` gets its epochs.
        trials: all trials that have ended.
        search_dir: folder of the report.
    """

    def place(name: str) -> str:
        return tf.io.gfile.join(search_dir, name)

    best = best_of(list(trials))
    if best is not None:
        write_whole(place("best.yaml"), best_yaml(plan, base, best))
    space = plan.checked_space
    rows = top_ten(trials, space)
    write_artifact(Artifact(list(rows[0]) if rows else (), rows, _top_ten_table(rows)), place("top_ten"))
    importance_figure(space, trials, place("importance"))
    scores_figure(trials, place("scores"))


def best_yaml(plan: Plan, base: Config, best: Trial) -> str:
    """Returns the configuration of a trial for `train`, with the epochs of the base instead of the search's."""
    drawn = {name: best.settings[name] for name in plan.checked_space.sampled}
    config = plans.trial_config(plan.model_copy(update={"epochs": None}), base, drawn)
    epochs = plan.epochs or base.epochs
    return (
        f"# Trial {best.number}, the best of a search by {plan.algorithm} with seed {plan.seed}: validation top-1 "
        f"{100 * best.top1:.2f} % within {epochs} epochs.\n{configuration.dump(config)}"
    )


def top_ten(trials: Sequence[Trial], space: Space) -> list[dict[str, Any]]:
    """Returns a row for each of the ten trials with the highest scores, best first: its result and its settings."""
    known = sorted((each for each in trials if each.score is not None), key=lambda each: (-each.score, each.number))
    names = [name for name, kind in space.kinds.items() if not isinstance(kind, Fixed)]
    return [
        {
            "trial": each.number,
            "score": each.score,
            "state": each.state,
            **{name: _setting(each, name) for name in names},
        }
        for each in known[:10]
    ]


def _setting(trial: Trial, name: str) -> Any:
    """Returns a setting for a table: strings and floats unchanged, other values as JSON."""
    value = trial.settings[name]
    return value if isinstance(value, (str, float)) else json.dumps(value)


def _top_ten_table(rows: Sequence[Row]) -> str:
    """Returns a Markdown table with a column per trial, because a column per setting would make it too wide."""
    if not rows:
        return "No trial has given a score."
    header, *lines = ([key, *(_short(row[key]) for row in rows)] for key in rows[0])
    return markdown(header, lines)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def importance(space: Space, trials: Sequence[Trial]) -> list[Group]:
    """Returns the mean score of each option of each sampled metaparameter (Kunin et al., Figure S2).

    A range is divided into thirds, see `spaces.grouped`. The score of a diverged trial is chance. Failed trials
    are left out. Metaparameters are ordered by the difference between their best and worst option, largest first.
    """
    known = [trial for trial in trials if trial.score is not None]
    spreads: list[tuple[float, list[Group]]] = []
    for name, kind in space.sampled.items():
        labels, groups = grouped(kind, [trial.settings[name] for trial in known])
        scores = [[t.score for t, group in zip(known, groups, strict=True) if group == g] for g in range(len(labels))]
        rows = [_group(name, label, each) for label, each in zip(labels, scores, strict=True)]
        means = [row.mean for row in rows if row.count]
        spreads.append((max(means) - min(means) if means else 0.0, rows))
    return [row for _, rows in sorted(spreads, key=lambda each: -each[0]) for row in rows]


def _group(name: str, choice: str, scores: Sequence[float]) -> Group:
    spread = Spread(scores)
    return Group(name, choice, spread.mean, spread.error if len(scores) > 1 else math.nan, len(scores))


_PREFIXES = {
    "optimization.forward.": "task loss J: ",
    "optimization.backward.": "regulariser R: ",
    "optimization.": "",
    "alignment.": "",
    "$": "",
}
"""Beginning of the name of a metaparameter -> words in figures."""


def _readable(name: str) -> str:
    """Returns the name of a metaparameter in words, such as `regulariser R: learning rate`."""
    for prefix, words in _PREFIXES.items():
        if name.startswith(prefix):
            name = words + name.removeprefix(prefix)
            break
    return name.replace("_", " ").replace(".", ", ")


def importance_figure(space: Space, trials: Sequence[Trial], output: str) -> None:
    """Writes `output`.png, bars of the mean score with its standard error as in Figure S2, and `output`.csv."""
    rows = importance(space, trials)
    blocks = [list(group) for _, group in itertools.groupby(rows, key=lambda row: row.name)]
    figure = new_figure(8, 1.2 + 0.22 * (len(rows) + len(blocks)))
    axes = figure.add_subplot()
    ticks: list[tuple[float, str]] = []
    place = 0.0
    for block in blocks:
        for index, row in enumerate(block):
            axes.barh(place, 100 * row.mean, xerr=100 * row.sem, color="0.75", edgecolor="black", height=0.8, capsize=2)
            name = f"{_readable(row.name)}  =  " if index == 0 else ""
            ticks.append((place, f"{name}{row.choice} ({row.count})"))
            place += 1
        place += 1
    axes.set_yticks([tick for tick, _ in ticks], [label for _, label in ticks], fontsize=7)
    axes.set_ylim(place - 1, -1)
    axes.set_xlabel("best validation top-1 (%)\nbars: standard error; in brackets: trials")
    write_artifact(Artifact(Group._fields, [row._asdict() for row in rows], "", figure), output)


def best_so_far(trials: Iterable[Trial]) -> list[float]:
    """Returns for each trial the best top-1 up to that trial, a fraction; NaN until one has finished."""
    best = math.nan
    values = []
    for trial in trials:
        if trial.top1 is not None and not trial.top1 <= best:
            best = trial.top1
        values.append(best)
    return values


def scores_figure(trials: Sequence[Trial], output: str) -> None:
    """Writes `output`.png, with the score of each trial and the best so far against its number, and `output`.csv."""
    best = best_so_far(trials)
    columns = ("number", "state", "top1", "score", "seconds")
    rows = [
        {**{name: getattr(trial, name) for name in columns}, "best_so_far": value}
        for trial, value in zip(trials, best, strict=True)
    ]
    figure = new_figure(6, 4)
    axes = figure.add_subplot()
    for state, marker, fill in (("finished", "o", "0.4"), ("diverged", "x", "black")):
        points = [trial for trial in trials if trial.state == state]
        if not points:
            continue
        style = {"color": fill, "marker": marker, "linestyle": "none", "markersize": 5}
        label = state if state == "finished" else f"{state} (counts as chance)"
        axes.plot([each.number for each in points], [100 * each.score for each in points], label=label, **style)
    axes.step(
        [each.number for each in trials], [100 * value for value in best], "k-", where="post", label="best so far"
    )
    axes.set_xlabel("trial (number)")
    axes.set_ylabel("best validation top-1 (%)")
    whole_ticks(axes)
    figure.legend(loc="outside lower center", ncols=3, fontsize="small")
    write_artifact(Artifact((*columns, "best_so_far"), rows, "", figure), output)
