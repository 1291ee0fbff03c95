"""The rates of the lab's rules: each is chosen by a search, before the runs with the reported seeds are trained."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence

import tensorflow as tf

from neural_alignment.errors import RunError
from neural_alignment.papers import figures
from neural_alignment.papers.figures import Panel, drawn, panel, points
from neural_alignment.papers.registry import Source
from neural_alignment.papers.tables import chosen, table
from neural_alignment.papers.two_routes.runs import RULE_STYLES
from neural_alignment.reporting import Artifact, Row, write
from neural_alignment.search import plan as plans
from neural_alignment.search.records import Trial, best_of, read_trials

LAB_SEARCHED = tuple(rule for rule in RULE_STYLES if rule != "weight_mirror_akrout")
"""Rules that have a search in configs/search/lab/two_routes. WM (Akrout) has the published code's default for R."""

SETTINGS = {
    "optimization.forward.learning_rate": "J's rate",
    "weight_decay": "weight decay",
    "optimization.backward.learning_rate": "R's rate",
}
"""Key path of a setting that a search draws -> its name in the table."""

TICKS = {
    "optimization.forward.learning_rate": (0.02, 0.1, 0.5, 1.0),
    "weight_decay": (1e-4, 1e-3, 1e-2, 0.03),
    "optimization.backward.learning_rate": (1e-3, 1e-2, 0.1, 1.0),
}
"""Key path of a setting -> ticks of its axis."""

COLUMNS = ("rule", "setting", "value", "trials", "score", "seed", "seconds")

TRIAL_COLUMNS = ("rule", "trial", "state", "score", *SETTINGS, "seconds")

DIGITS = 3
"""Significant digits of a chosen value; configurations contain the rounded value."""

REMARK = (
    "Each rule has one search by TPE with the same number of trials of full length. The score is the best accuracy "
    "over the evaluations of a trial on 2,000 training images that no run trains on; the seed is not among those of "
    "the tables. A star marks a value at an end of its range, where a better one may be outside. "
    "`docs/two_routes.md` describes the procedure."
)


def make(source: Source) -> Artifact | None:
    """Table of the chosen rates and a figure of all trials; also writes `rates_trials.csv`, with a row per trial."""
    rows: list[Row] = []
    trials: list[Row] = []
    states: dict[str, str] = {}
    ranges: dict[tuple[str, str], tuple[float, float]] = {}
    at_an_end: set[tuple[str, str]] = set()
    for rule in LAB_SEARCHED:
        found = search_in(f"{source.folder}/{rule}")
        if found is None:
            states[rule] = "not yet run"
            continue
        plan, ended = found
        trials += _trial_rows(rule, ended)
        ranges |= {(rule, name): tuple(kind.log_uniform) for name, kind in plan.checked_space.sampled.items()}
        if len(ended) < plan.trials or best_of(ended) is None:
            states[rule] = f"{len(ended)} of {plan.trials} trials"
        else:
            own = list(_chosen_rows(rule, plan, ended))
            rows += own
            at_an_end |= {(rule, row["setting"]) for row in own if _is_at_an_end(plan, row)}
    write(Artifact(TRIAL_COLUMNS, trials, ""), f"{source.output}/rates_trials")
    text = "\n\n".join([_table(rows, states, at_an_end), REMARK])
    panels = [
        [_panel(rule, setting, trials, rows, ranges.get((rule, setting), ())) for setting in SETTINGS]
        for rule in LAB_SEARCHED
    ]
    labels = [f"{RULE_STYLES[rule].label}\nscore (%)" for rule in LAB_SEARCHED]
    size = (9, 1.7 * len(panels))
    return drawn(rows, text, panels, size, COLUMNS, ylabels=labels, legend="outside lower center")


def check(source: Source) -> None:
    """Checks that the search of one or more rules has begun.

    Raises:
        RunError: if none has, or a search directory is damaged.
    """
    if not any(search_in(f"{source.folder}/{rule}") for rule in LAB_SEARCHED):
        raise RunError(
            f"{source.folder}: has no search of a rule, such as {source.folder}/{LAB_SEARCHED[0]}; `neural-alignment "
            f"search lab/two_routes/{LAB_SEARCHED[0]} --search-dir {source.folder}/{LAB_SEARCHED[0]}` makes one"
        )


def search_in(folder: str) -> tuple[plans.Plan, list[Trial]] | None:
    """Returns the plan and the trials of a search; None if it has not begun.

    Raises:
        RunError: if the search directory is damaged.
    """
    if not tf.io.gfile.exists(f"{folder}/trials.jsonl"):
        return None
    trials = sorted(read_trials(folder), key=lambda trial: trial.number)
    return plans.load(f"{folder}/search.yaml"), trials


def _trial_rows(rule: str, trials: Sequence[Trial]) -> Iterator[Row]:
    for trial in trials:
        settings = {name: trial.settings[name] for name in SETTINGS if name in trial.settings}
        row = {"rule": rule, "trial": trial.number, "state": trial.state, "score": trial.score}
        yield {**row, **settings, "seconds": trial.seconds}


def _chosen_rows(rule: str, plan: plans.Plan, trials: Sequence[Trial]) -> Iterator[Row]:
    best, seconds = best_of(list(trials)), round(sum(trial.seconds for trial in trials), 1)
    for name in plan.checked_space.sampled:
        row = {"rule": rule, "setting": name, "value": float(f"{best.settings[name]:.{DIGITS}g}")}
        yield {**row, "trials": len(trials), "score": best.score, "seed": plan.seed, "seconds": seconds}


def _is_at_an_end(plan: plans.Plan, row: Row) -> bool:
    """Whether a chosen value is in the first or last twentieth of its range, so that a better one may be outside."""
    low, high = map(math.log, plan.checked_space.kinds[row["setting"]].log_uniform)
    return not 0.05 < (math.log(row["value"]) - low) / (high - low) < 0.95


def _table(rows: Sequence[Row], states: Mapping[str, str], at_an_end: Collection[tuple[str, str]]) -> str:
    """Returns a line per rule.

    Args:
        rows: the chosen values.
        states: rule -> state of its search in words, if it has not ended.
        at_an_end: rule and setting of the values that are marked, because they are at an end of their range.
    """
    lines = []
    for rule in LAB_SEARCHED:
        own = chosen(rows, rule=rule)
        values = {row["setting"]: f"{row['value']:g}" + " *" * ((rule, row["setting"]) in at_an_end) for row in own}
        line = {"rule": RULE_STYLES[rule].label, **{setting: values.get(setting, "-") for setting in SETTINGS}}
        score = f"{100 * own[0]['score']:.2f}" if own else states[rule]
        minutes = f"{own[0]['seconds'] / 60:.0f}" if own else ""
        lines.append({**line, "score": score, "trials": own[0]["trials"] if own else "", "minutes": minutes})
    columns = {"rule": "rule", **{name: setting for setting, name in SETTINGS.items()}}
    columns |= {"score of the best trial (%)": "score", "trials": "trials", "minutes of one core": "minutes"}
    return table(lines, ["rule"], columns)


def _panel(rule: str, setting: str, trials: Sequence[Row], rows: Sequence[Row], ends: Sequence[float]) -> Panel | None:
    """Returns a panel of the scores of all trials against one setting, with its range and the best trial filled."""
    own = [row for row in chosen(trials, rule=rule) if setting in row and row["score"] is not None]
    if not own:
        return None
    best = max(own, key=lambda row: row["score"])
    style = figures.Style("trial", "o", "", 0.0, filled=False)
    marks = [
        points([row[setting] for row in each], [100 * row["score"] for row in each], look)
        for each, look in ((own, style), ([best], figures.Style("best trial of the rule", "o", "", 0.0)))
    ]
    name = SETTINGS[setting] + ("" if chosen(rows, rule=rule) else ", search not finished")
    marks += [figures.upright(end, "end of the range of the search") for end in ends]
    first, *_, last = TICKS[setting]
    return panel(*marks, figures.ticks(TICKS[setting]), xlabel=name, xlim=(first / 1.5, 1.5 * last))
