"""Figure 7 of Rahmansetayesh et al.: weights and updates over training, and normalised weights."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import ndimage

from neural_alignment.analysis import trajectories
from neural_alignment.jobs.pieces import Arrays, Result
from neural_alignment.papers import figures
from neural_alignment.papers.fa_mechanism import tidy
from neural_alignment.papers.fa_mechanism.figures import (
    AVERAGED,
    RIGHT_ANGLE,
    counted,
    lines_of,
    mean_note,
    median_note,
    shaded,
)
from neural_alignment.papers.fa_mechanism.runs import CONDITIONS, LAYERS, PUBLISHED
from neural_alignment.papers.figures import (
    Mark,
    Panel,
    Style,
    Summary,
    drawn,
    lines,
    median_and_range,
    panel,
    points,
    ticks,
)
from neural_alignment.papers.registry import Source
from neural_alignment.papers.tables import chosen, runs_of, spread, table
from neural_alignment.reporting import Artifact, Row

PATHS = {"C": ("bp", "bp_trw"), "F": ("bp_trw", "bp_trw_wb")}
"""Panel of Figure 7 -> conditions whose paths it shows."""

AXES = ("first_axis", "second_axis")
"""Arrays of the coordinates of the plane."""

PATH_STYLES = {
    name: Style(CONDITIONS[name].style.label, *look)
    for name, look in {"bp": ("o", "-"), "bp_trw": ("s", "--"), "bp_trw_wb": ("D", ":")}.items()
}
"""Condition -> look of its path; the marker is at its end."""

OBSERVED = {
    "bp_trw": Style("BP-TRW"),
    "bp_trw_wb": Style("BP-TRW, W and B normalised", "s", "--", 0.5),
}
"""Conditions whose weights and updates are observed: without and with normalisation -> look of their lines."""

MEASURES = {
    "weight_angle": ("A", "angle of W to Bᵀ (degrees)", "W to Bᵀ (degrees)", (69, 95)),
    "update_angle": ("B", "angle of the update\nto that of BP (degrees)", "update to that of BP (degrees)", (-3, 95)),
    "norm": ("D", "‖W‖", "norm of W", (0, 18)),
}
"""Measure of a layer -> panel of Figure 7, label of the y axis, header in the table, and limits of the axis."""


def figure_7(source: Source) -> Artifact:
    """Angles of W (A) and of its updates (B), and norms of W (D), with and without normalisation."""
    observed = {condition: source.chosen(condition=condition) for condition in OBSERVED}
    rows: list[Row] = [
        row
        for measure, (letter, *_) in MEASURES.items()
        for condition, results in observed.items()
        for row in tidy.curves(results, measure, 30, panel=[letter], condition=[condition])
    ]
    panels = [_measure_panels(chosen(rows, panel=letter), *each) for letter, *each in MEASURES.values()]
    layout = {"legend": "outside upper center", "note": f"{mean_note(counted(*observed.values()))} {AVERAGED}"}
    return drawn(rows, _observed_text(observed), panels, (13, 7.6), **layout)


def _measure_panels(rows: Sequence[Row], label: str, _: str, limits: tuple[float, float]) -> list[Panel | None]:
    """Returns a panel per layer; the first layer has no backward weights, so that its angle to them is missing."""
    panels: list[Panel | None] = []
    for layer in range(len(LAYERS)):
        own = chosen(rows, layer=layer)
        curves = shaded(own, "epoch", "condition", OBSERVED)
        marks = (curves, RIGHT_ANGLE) if "angle" in label else (curves,)
        first = not any(panels)
        ylabel = f"({rows[0]['panel']}) {label}" if first else ""
        axes = {"title": f"l = {layer}", "xlabel": "epoch", "ylabel": ylabel, "ylim": limits}
        panels.append(panel(*marks, **axes) if own else None)
    return panels


def _observed_text(observed: Mapping[str, Sequence[Result]]) -> str:
    """Returns a table of the layers in the last epoch of the observed training."""
    ends = lines_of(
        {"rule": CONDITIONS[condition].style.label, "l": layer}
        | {header: tidy.last_epoch(results, measure, layer) for measure, (_, _, header, _) in MEASURES.items()}
        for condition, results in observed.items()
        for layer in range(len(LAYERS))
    )
    seeds = observed["bp_trw"]
    iteration = int(seeds[0].arrays["iteration"][-1])
    return f"{len(seeds)} seeds, to iteration {iteration}. Means over the last epoch:\n\n{ends}"


def figure_7e(source: Source) -> Artifact:
    """Test error over training."""
    rows = [
        {"condition": labels["condition"], "epoch": run["epoch"], "seed": run["seed"]}
        | {"test_error_percent": run["test_error_percent"]}
        for labels, run, _ in tidy.evaluations(source)
        if run["epoch"] > 0
    ]

    def curve(condition: str, style: Style, summary: Summary) -> Mark:
        own = chosen(rows, condition=condition)
        return lines(own, "epoch", "test_error_percent", None, style, summary, band=True)

    def ranges(rule: str) -> list[Panel]:
        percents = (3, 5, 10, 20, 50, 100)
        axes = {"xlabel": "epoch", "yscale": "log", "ylim": (2.5, 100), "yticks": percents}
        axes["yticklabels"] = [str(each) for each in percents]
        plain = curve(rule, Style("without normalisation, as in the first panel of the row", "", ":", 0.4), _median)
        return [
            panel(
                curve(name, Style("condition of the panel", ""), median_and_range),
                *([] if name == rule else [plain]),
                title=each.style.label.replace("normalised, ", "normalised,\n"),
                **axes,
            )
            for name, each in CONDITIONS.items()
            if each.rule == rule
        ]

    panels = [[*ranges("bp"), None], ranges("bp_trw")]
    seeds = {name: {row["seed"] for row in chosen(rows, condition=name)} for name in CONDITIONS}
    numbers = "; ".join(f"{CONDITIONS[name].style.label}: {len(own)}" for name, own in seeds.items())
    layout = {"ylabels": ["test error (%)"] * 2, "legend": "outside upper center"}
    note = median_note(counted(*filter(None, seeds.values())))
    return drawn(rows, f"Number of seeds: {numbers}.", panels, (13, 7), note=note, **layout)


def _median(values: Sequence[float]) -> tuple[float, float, float]:
    return (median_and_range(values)[0],) * 3


def figure_7_errors(source: Source) -> Artifact:
    """Test error after training, a point per run, ours beside that of the published code."""
    rows = [
        {"rule": condition.rule, "normalised": condition.normalised}
        | {"gamma": None if condition.normalised == "none" else condition.gamma}
        | {"rate": outcome.config.optimization.forward.learning_rate, "seed": run["seed"]}
        | {"test_error_percent": run["test_error_percent"], "condition": labels["condition"]}
        | {"diverged": outcome.diverged}
        | {"highest": max((100 * (1 - row["top1"]) for row in outcome.rows if row["epoch"] > 30), default=math.nan)}
        for labels, outcome, run in tidy.final_errors(source)
        for condition in [CONDITIONS[labels["condition"]]]
    ]
    columns = {
        "rule": lambda own: CONDITIONS[own[0]["condition"]].style.label,
        "seeds": runs_of,
        "test error (%)": lambda own: spread(own, "test_error_percent"),
        "published code": lambda own: _published_error(own[0]["condition"]),
        "seeds with a spike above 30 %": lambda own: f"{sum(row['highest'] > 30 for row in own)} of {len(own)}",
        "highest, median": lambda own: f"{np.median([row['highest'] for row in own]):.1f} %",
    }
    names = ("condition", "rule", "normalised", "gamma", "rate", "seed", "test_error_percent", "highest", "diverged")
    text = table(rows, ["condition"], columns)
    missing = [each.style.label for name, each in CONDITIONS.items() if not chosen(rows, condition=name)]
    text += f"\n\nNot yet run: {'; '.join(missing)}." if missing else ""
    return drawn(rows, text, [[_error_panel(rows)]], (10, 4), names, beside=[(0, 0)])


def _error_panel(runs: Sequence[Row]) -> Panel:
    """Returns a panel of the test errors of all runs, by condition."""
    places = {name: place for place, name in enumerate(CONDITIONS)}
    published = [(places[name] - 0.15, mean) for name, (mean, _) in PUBLISHED.items()]
    own = [(places[row["condition"]], row["test_error_percent"]) for row in runs]
    names = [each.style.label.replace(", ", ",\n") for each in CONDITIONS.values()]
    means = Style("mean and standard\ndeviation of our runs", "D", "")
    return panel(
        points(*zip(*published, strict=True), Style("published code", "_", ""), markersize=14),
        points(*zip(*own, strict=True), Style("run", "o", "", 0.6)),
        lines(runs, lambda row: places[row["condition"]] + 0.15, "test_error_percent", None, means),
        ticks(range(len(names)), names, log=False, fontsize="small"),
        xlabel="rule",
        ylabel="test error after training (%)",
        ylim=(0, None),
    )


def _published_error(condition: str) -> str:
    mean, deviation = PUBLISHED.get(condition, (math.nan, math.nan))
    return "-" if math.isnan(mean) else f"{mean:.2f}" + ("" if math.isnan(deviation) else f" ± {deviation:.2f}")


def figure_7_paths(source: Source) -> Artifact:
    """Paths of training in the plane of two principal components (C, F), and local minima of the error there."""
    planes = {letter: source.chosen(paths=pair)[0] for letter, pair in PATHS.items()}
    rows: list[Row] = [
        {"panel": letter, "point": "path", "condition": name, "x": float(x), "y": float(y)}
        for letter, pair in PATHS.items()
        for name, path in zip(pair, planes[letter].arrays["paths"], strict=True)
        for x, y in path
    ]
    minima = {letter: _minima(found.arrays) for letter, found in planes.items()}
    rows += [
        {"panel": letter, "point": "minimum", "condition": "", "x": x, "y": y, "height": height}
        for letter, found in minima.items()
        for x, y, height in found
    ]
    panels = [[_plane_panel(letter, planes[letter].arrays, minima[letter]) for letter in PATHS]]
    sentences = [_path_text(letter, planes[letter].arrays, minima[letter]) for letter in PATHS]
    text = "One seed. A local minimum is a point of the grid that is lower than its eight neighbours.\n\n"
    columns = ("panel", "point", "condition", "x", "y", "height")
    layout = {
        "legend": "outside upper center",
        "note": "Markers: ends of the paths. Arrows: directions of updates at points of the second path. "
        "Contours: interpolated from the points of a grid.",
    }
    return drawn(rows, text + "\n".join(sentences), panels, (13, 5.6), columns, **layout)


def _minima(arrays: Arrays) -> list[tuple[float, float, float]]:
    """Returns the coordinates and heights of the local minima of the error in the plane, the lowest first."""
    xs, ys, heights = (arrays[name] for name in (*AXES, "heights"))
    found = [(float(xs[column]), float(ys[row]), float(heights[row, column]))
             for row, column in trajectories.local_minima(heights)]  # fmt: skip
    return sorted(found, key=lambda each: each[2])


def _path_text(letter: str, arrays: Arrays, minima: Sequence[tuple[float, float, float]]) -> str:
    """Returns sentences about the local minima that are nearest to the ends of two paths."""
    if not minima:
        return f"- Panel {letter}: no local minimum."
    ends = []
    for condition, path in zip(PATHS[letter], arrays["paths"], strict=True):
        x, y, height = min(minima, key=lambda each: math.dist(each[:2], path[-1]))
        apart = math.dist((x, y), path[-1])
        ends.append(
            f"{CONDITIONS[condition].style.label} ends at ({path[-1][0]:.1f}, {path[-1][1]:.1f}), {apart:.1f} from the "
            f"local minimum at ({x:.1f}, {y:.1f}) with ‖E‖ / 2 = {height:.1f}"
        )
    return f"- Panel {letter}, {len(minima)} local minima: {'; '.join(ends)}."


def _plane_panel(letter: str, arrays: Arrays, minima: Sequence[tuple[float, float, float]]) -> Panel:
    """Returns a panel of two paths in the plane of their principal components, over contours of the error there."""
    heights = ndimage.zoom(arrays["heights"], 8, mode="nearest")
    axes = (np.linspace(*arrays[name][[0, -1]], number) for name, number in zip(AXES, heights.T.shape, strict=True))
    marks = [figures.contours(*axes, heights, "‖E‖ / 2", levels=12, alpha=0.6)]
    pair = [PATH_STYLES[condition] for condition in PATHS[letter]]
    for style, path in zip(pair, arrays["paths"], strict=True):
        halo = dataclasses.replace(style, label=None, shade=1.0)
        marks.append(points(*path[-1:].T, halo, markersize=10, zorder=4))
        marks.append(points(*path.T, style, markevery=[-1], markersize=7, zorder=4))
    if minima:
        xs, ys, _ = zip(*minima, strict=True)
        marks.append(
            points(xs, ys, Style("local minimum in the plane", "*", "", filled=False), markersize=12, zorder=5)
        )
    for name, shade in (("true", 0.0), ("feedback_directions", 0.5)):
        marks.append(figures.arrows(arrays["places"][::3], arrays[name][::3], shade, width=0.006, scale=14))
    marks.append(points([], [], Style("update of BP", ">", "-", 0.0)))
    marks.append(points([], [], Style("update of BP-TRW", ">", "-", 0.5)))
    marks.append(points(*arrays["feedback"][:, None], Style("Bᵀ in place of W", "X", "")))
    first, second = 100 * arrays["explained"]
    axes = {"xlabel": f"PC 1 ({first:.0f} %)", "ylabel": f"PC 2 ({second:.0f} %)"}
    return panel(*marks, title=f"({letter}) {' against '.join(style.label for style in pair)}", **axes)
