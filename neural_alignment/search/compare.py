"""Compares search algorithms: which one finds better settings in the same space, over several seeds?"""

from __future__ import annotations

import itertools
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import tensorflow as tf

from neural_alignment.jobs.batch import Screen
from neural_alignment.jobs.pool import Engine
from neural_alignment.reporting import (
    Artifact,
    Spread,
    check_replaceable,
    duration,
    markdown,
    new_figure,
    whole_ticks,
    write,
)
from neural_alignment.search import report, run
from neural_alignment.search.plan import Plan
from neural_alignment.search.records import Trial, best_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = ("algorithm", "seed", "trial", "top1", "best_so_far", "diverged", "seconds", "settings")

Curves = dict[str, list[list[float]]]
"""Algorithm -> for each seed the best top-1 so far, by trial."""


def compare(
    plans: Mapping[tuple[str, int], Plan],
    overrides: Sequence[str],
    search_dir: str,
    engine: Engine,
    output: str,
    screen: Screen,
) -> str:
    """Runs the searches one after another, each in its own directory, and writes their comparison.

    Args:
        plans: algorithm and seed -> plan of the search.
        overrides: as for `run.search`.
        search_dir: folder of the search directories `<algorithm>_<seed>`.
        engine: runs the trials.
        output: path of the files without extension. `output`.csv gets a line per trial, `output`.md the comparison,
            `output`.png the figure; `output`_importance.csv and .png show the importance of each metaparameter in the
            trials of TPE (Figure S2).
        screen: shows a line per trial, and the progress of the running trials.

    Returns:
        The comparison, as in `output`.md.

    Raises:
        InputError: as for `run.search`.
        Stopped: as for `run.search`; the same call resumes.
    """
    check_replaceable(output, COLUMNS)
    total = sum(plan.trials for plan in plans.values())
    known = [plan for plan in plans.values() if plan.seconds]
    seconds = sum(plan.seconds * plan.trials / min(engine.slots, plan.trials) for plan in known)
    estimate = f", estimate: {duration(seconds)} from scratch" if known else ""
    screen.line(f"{len(plans)} searches, {total} trials{estimate}")
    rows = []
    results: dict[tuple[str, int], list[Trial]] = {}
    for number, ((algorithm, seed), plan) in enumerate(plans.items(), start=1):
        screen.line(f"search {number} of {len(plans)}: {algorithm}, seed {seed}")
        place = tf.io.gfile.join(search_dir, f"{algorithm}_{seed}")
        trials = results[algorithm, seed] = run.search(plan, overrides, place, engine, screen)
        rows += _rows(algorithm, seed, trials)
    text = verdict(results)
    if folder := output.rpartition("/")[0]:
        tf.io.gfile.makedirs(folder)
    write(Artifact(COLUMNS, rows, text, _figure(_curves(results))), output)
    _importance(plans, results, f"{output}_importance")
    return text


def _importance(
    plans: Mapping[tuple[str, int], Plan], results: Mapping[tuple[str, int], Sequence[Trial]], output: str
) -> None:
    """Writes the importance figure of the TPE trials of all seeds; writes nothing if TPE is not compared."""
    searched = [key for key in results if key[0] == "tpe"]
    if searched:
        trials = [trial for key in searched for trial in results[key]]
        report.importance_figure(plans[searched[0]].checked_space, trials, output)


def _rows(algorithm: str, seed: int, trials: Sequence[Trial]) -> list[dict[str, object]]:
    return [
        {
            "algorithm": algorithm,
            "seed": seed,
            "trial": trial.number,
            "top1": trial.top1,
            "best_so_far": best,
            "diverged": int(trial.state == "diverged"),
            "seconds": trial.seconds,
            "settings": json.dumps(trial.settings),
        }
        for trial, best in zip(trials, report.best_so_far(trials), strict=True)
    ]


def verdict(results: Mapping[tuple[str, int], Sequence[Trial]]) -> str:
    """Returns a table with the best trial of each search, and a sentence for each pair of algorithms."""
    header = ["algorithm", "seed", "trials", "diverged", "failed", "best top-1 (%)", "of trial"]
    lines = []
    bests: dict[str, dict[int, float]] = {}
    for (algorithm, seed), trials in results.items():
        best = best_of(list(trials))
        counts = [sum(trial.state == state for trial in trials) for state in ("diverged", "failed")]
        found = [f"{100 * best.top1:.2f}", best.number] if best else ["none", ""]
        bests.setdefault(algorithm, {})[seed] = best.top1 if best else math.nan
        lines.append([algorithm, seed, len(trials), *counts, *found])
    return "\n".join(
        [markdown(header, lines), "", *(_sentence(*pair) for pair in itertools.combinations(bests.items(), 2))]
    )


def _sentence(one: tuple[str, Mapping[int, float]], other: tuple[str, Mapping[int, float]]) -> str:
    """Returns a sentence on whether one algorithm found better settings than another with the same seeds.

    Args:
        one: an algorithm, and seed -> its best top-1, a fraction; NaN if no trial has finished.
        other: the other algorithm.
    """
    (name, values), (other_name, other_values) = one, other
    for algorithm, bests in (one, other):
        for seed, best in bests.items():
            if math.isnan(best):
                return f"{name} or {other_name}: undecided: no trial of {algorithm}, seed {seed}, has finished."
    differences = [best - other_values[seed] for seed, best in values.items()]
    spread = Spread([100 * difference for difference in differences])
    deviation = f" ± {spread.deviation:.2f}" if len(differences) > 1 else ""
    wins = sum(difference > 0 for difference in differences)
    if wins == len(differences):
        finding = f"{name} found a better setting than {other_name} with every seed"
    elif spread.mean > 0:
        finding = f"{name} found better settings than {other_name} on average, but not with every seed"
    else:
        finding = f"{name} did not find better settings than {other_name}"
    seeds = "seed" if len(differences) == 1 else "seeds"
    return (
        f"{finding}: best top-1 {spread.mean:+.2f}{deviation} points (mean and standard deviation of the difference "
        f"over {len(differences)} {seeds}), ahead with {wins} of {len(differences)}."
    )


def _curves(results: Mapping[tuple[str, int], Sequence[Trial]]) -> Curves:
    curves: Curves = {}
    for (algorithm, _), trials in results.items():
        curves.setdefault(algorithm, []).append(report.best_so_far(trials))
    return curves


def _figure(curves: Curves) -> Figure:
    """Returns a figure of the best top-1 so far against the number of trials: mean and range over seeds."""
    figure = new_figure(6, 4)
    axes = figure.add_subplot()
    styles = itertools.cycle([("black", "-", "o", None), ("0.45", "--", "s", "///")])
    for (algorithm, seeds), (color, line, marker, hatch) in zip(curves.items(), styles, strict=False):
        columns = [[100 * value for value in column] for column in zip(*seeds, strict=False)]
        numbers = range(1, len(columns) + 1)
        label = f"{algorithm}, mean and range of {len(seeds)} seeds"
        means = [statistics.fmean(column) for column in columns]
        every = max(1, len(columns) // 10)
        axes.plot(numbers, means, color=color, linestyle=line, marker=marker, markevery=every, label=label)
        low, high = zip(*((min(column), max(column)) for column in columns), strict=True)
        axes.fill_between(
            numbers,
            low,
            high,
            facecolor="none" if hatch else color,
            edgecolor=color,
            alpha=0.3 if hatch else 0.12,
            hatch=hatch,
        )
    axes.set_xlabel("trials")
    axes.set_ylabel("best validation top-1 so far (%)")
    whole_ticks(axes)
    figure.legend(loc="outside lower center", ncols=2, fontsize="small")
    return figure
