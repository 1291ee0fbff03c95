"""Figures 1B and 2 to 7 of Rahmansetayesh et al.

Lines are means over seeds, and shading is one standard deviation. l is the number of a layer, k an iteration, o the
order of an alignment term.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from neural_alignment.jobs.pieces import Result
from neural_alignment.papers import figures
from neural_alignment.papers.fa_mechanism import tidy
from neural_alignment.papers.fa_mechanism.runs import CONDITIONS, FRACTIONS, HIDDEN, LAYERS, ORDERS, PUBLISHED, STEPS
from neural_alignment.papers.figures import Panel, Style, grid, level, lines, panel, points, ticks
from neural_alignment.papers.registry import Source
from neural_alignment.papers.tables import Key, chosen, grouped, spread, table
from neural_alignment.reporting import Artifact, Row, markdown

LAYER_STYLES = {
    layer: Style(f"l = {layer}", "osD^v"[layer], ("-", "--", "-.", ":", "-")[layer], 0.17 * layer) for layer in range(5)
}

RIGHT_ANGLE = level(90)
ANGLES, ANGLES_FROM_60 = {"ylim": (0, 100)}, {"ylim": (60, 100)}
"""Limits of an axis of angles in degrees; the second where no angle is smaller."""


def drawn(
    rows: Sequence[Row], text: str, panels: Sequence, size: tuple[float, float], columns: Sequence[str] = (), **layout
) -> Artifact:
    """Returns a figure; `columns` of the CSV file are those of the first row if empty, and `layout` is as of `grid`."""
    return Artifact(columns or tuple(rows[0]), rows, text, grid(panels, size, **layout))


def curve_panel(
    rows: Sequence[Row], x: Key, by: Key, styles: Mapping[Any, Style], *marks, y: Key = "value", **axes
) -> Panel:
    """Returns a panel of means with shaded standard deviations; arguments as of `figures.lines` and `panel`."""
    return panel(lines(rows, x, y, by, styles, band=True), *marks, **axes)


def panels_by(
    column: str, rows: Sequence[Row], x: Key, by: Key, styles: Any, *marks, title: str, **axes
) -> list[Panel]:
    """Returns a panel per value of a column, whose name in braces in the title stands for the value."""
    return [
        curve_panel(own, x, by, styles, *marks, title=title.format(**{column: value}), **axes)
        for (value,), own in grouped(rows, column).items()
    ]


def term_panels(rows: Sequence[Row], title: str) -> list[Panel]:
    """Returns a panel per layer of the angles of alignment terms by order, black at the first iteration."""
    moments = sorted({row["moment"] for row in rows})
    styles = {
        moment: Style(f"k = {moment}", "", ("-", "--", "-.", ":")[number % 4], 0.7 * number / max(len(moments) - 1, 1))
        for number, moment in enumerate(moments)
    }
    axes = {"title": title, "xlabel": "order o", **ANGLES_FROM_60}
    return panels_by("layer", rows, "order", "moment", styles, RIGHT_ANGLE, **axes)


def weight_panels(plain: Sequence[Result], shuffled: Sequence[Result]) -> list[Panel]:
    """Returns a panel per layer of W and its updates against Bᵀ, in file order and shuffled."""
    styles = {
        ("weight_angle", 0): Style("W"),
        ("update_to_feedback", 0): Style("update", "s", "-", 0.5),
        ("weight_angle", 1): Style("W, shuffled", "o", ":"),
        ("update_to_feedback", 1): Style("update, shuffled", "s", ":", 0.5),
    }
    rows = [row for kind in styles for row in tidy.curves((plain, shuffled)[kind[1]], kind[0], 100, kind=[kind])]
    axes = {"title": "l = {layer}", "xlabel": "epoch", **ANGLES_FROM_60}
    return panels_by("layer", rows, "epoch", "kind", styles, RIGHT_ANGLE, **axes)


def lines_of(rows: Iterable[Mapping[str, Any]]) -> str:
    """Returns a Markdown table of rows whose keys are the headers."""
    rows = list(rows)
    return markdown(list(rows[0]), [list(row.values()) for row in rows])


OPEN_LOOP_STYLES = {
    "constant": Style("constant: autocorrelated", "o", "--", 0.3),
    "cross_correlated": Style("cross-correlated", "s", ":", 0.0),
    "neither": Style("neither", "^", "-", 0.55),
}


def figure_1b(source: Source) -> Artifact:
    """The open loop: the angle of W₁ to B₁ᵀ under imposed signals."""
    rows = [
        {**labels, "run": run, "iteration": iteration, "angle_degrees": float(angles[iteration])}
        for labels, [result] in source.results()
        for run, angles in enumerate(result.arrays["angles"])
        for iteration in sorted({*range(0, len(angles), 20), len(angles) - 1})
    ]
    axes = {"y": "angle_degrees", "title": "rate {rate:g}", "xlabel": "iteration", **ANGLES}
    panels = [panels_by("rate", rows, "iteration", "condition", OPEN_LOOP_STYLES, RIGHT_ANGLE, **axes)]
    columns = {
        "signals": lambda own: OPEN_LOOP_STYLES[own[0]["condition"]].label,
        "rate": "rate",
        "runs": len,
        "angle at the end (degrees)": lambda own: spread(own, "angle_degrees"),
    }
    text = table(chosen(rows, iteration=rows[-1]["iteration"]), ("condition", "rate"), columns)
    layout = {"ylabels": ["angle of W₁ to B₁ᵀ (degrees)"], "legend": "outside lower center", "share_y": True}
    return drawn(rows, text, panels, (8.4, 4), **layout)


DATA = {0: "in file order", 1: "shuffled"}
"""Value of the column `shuffled` -> text."""

TERM_LABELS = ("angle of T to Bᵀ (degrees)", "angle of T to Bᵀ (degrees)", "angle to Bᵀ (degrees)")
"""Labels of the y axes of Figure 2; without the first, those of Figure S2."""


def figure_2(source: Source) -> Artifact:
    """Alignment terms of every order, in file order and shuffled; below, W and its updates in both cases."""
    both = [source.chosen(shuffle=shuffle) for shuffle in (False, True)]
    moments = both[0][0].arrays["moment"].tolist()
    moments = (moments[0], moments[len(moments) // 2], moments[-1])
    rows = [row for number in DATA for row in tidy.terms(both[number], moments, shuffled=[number])]
    panels = [term_panels(chosen(rows, shuffled=number), f"l = {{layer}}, {text}") for number, text in DATA.items()]
    columns = {
        "data": lambda own: DATA[own[0]["shuffled"]],
        "l": "layer",
        "iteration k": "moment",
        "orders": lambda own: len(tidy.mean_by(own, "order")),
        "below 90°": lambda own: sum(mean < 90 for mean in tidy.mean_by(own, "order").values()),
        "mean angle, order 60": _epoch_order,
        "mean angle, all others": _other_orders,
    }
    text = f"{len(both[0])} seeds, shuffled {len(both[1])}; orders 1 to {ORDERS} at most. {cost_text(both[0])}\n\n"
    text += table(rows, ("shuffled", "layer", "moment"), columns)
    layout = {"ylabels": TERM_LABELS, "legends": [(number, -1) for number in range(3)], "share_y": True}
    return drawn(rows, text, [*panels, weight_panels(*both)], (11, 8), **layout)


def _epoch_order(rows: Sequence[Row]) -> str:
    """Returns the mean angle of the order of one epoch; a dash if there is none."""
    angle = tidy.mean_by(rows, "order").get(STEPS)
    return "-" if angle is None else f"{angle:.1f}"


def _other_orders(rows: Sequence[Row]) -> str:
    """Returns mean and range of the angles of all orders that are no multiple of an epoch."""
    others = [mean for order, mean in tidy.mean_by(rows, "order").items() if order % STEPS]
    return f"{np.mean(others):.1f} ({min(others):.1f} to {max(others):.1f})"


def cost_text(results: Sequence[Result]) -> str:
    """Returns a sentence about the cost of the alignment terms of one seed."""
    memory, operations = (float(results[0].arrays[name].sum()) for name in ("memory", "operations"))
    return (
        f"The history of a seed takes {memory / 1e6:.3g} MB; its alignment terms, each by itself, take "
        f"{operations / 1e9:.3g} billion floating-point operations."
    )


EXPANSION_AXES = {
    tidy.NORM: ((), {"ylabel": "norm / ‖ΔW‖"}),
    tidy.ANGLE: ((RIGHT_ANGLE,), {"ylabel": "angle to Bᵀ (degrees)", "ylim": (0, 120)}),
}
"""Measure of a part of the update -> further marks and axes of its panels."""


def expansion_figure(
    source: Source, panels: Sequence[Sequence[tuple[str, str, str]]], size: tuple[float, float]
) -> Artifact:
    """Returns a figure of parts of the update, from the part, measure and title of each panel."""
    [(_, results)] = source.results()
    rows = {(part, measure): tidy.expansion(results, part, measure) for line in panels for part, measure, _ in line}

    def drawn_part(part: str, measure: str, title: str) -> Panel:
        marks, axes = EXPANSION_AXES[measure]
        own, axes = rows[part, measure], {"title": title, "xlabel": "iteration k", **axes}
        return curve_panel(own, "iteration", "layer", LAYER_STYLES, *marks, **axes)

    drawings = [[drawn_part(*each) for each in line] for line in panels]
    return drawn(
        [row for own in rows.values() for row in own], _expansion_text(results), drawings, size, legends=[(0, 0)]
    )


def _expansion_text(results: Sequence[Result]) -> str:
    """Returns a table of all parts at the last iteration that is expanded."""
    last = int(results[0].arrays["moment"][-1])
    kinds = [
        (part, measure) for part in ("alignment", "zero_degree", "remainder") for measure in (tidy.NORM, tidy.ANGLE)
    ]
    rows = [row for kind in kinds for row in chosen(tidy.expansion(results, *kind), iteration=last)]
    columns = {
        "l": "layer",
        "part": lambda own: own[0]["part"].replace("_", " "),
        "norm over that of the update": lambda own: spread(chosen(own, measure=tidy.NORM), "value"),
        "angle to Bᵀ (degrees)": lambda own: spread(chosen(own, measure=tidy.ANGLE), "value"),
    }
    rows.sort(key=lambda row: row["layer"])
    text = f"{len(results)} seeds; expanded back to the initial weights, all orders, to iteration {last}."
    return f"{text} {cost_text(results)} At iteration {last}:\n\n{table(rows, ('layer', 'part'), columns)}"


def figure_3(source: Source) -> Artifact:
    """Remainder and zero-degree terms: size of the remainder, and angles to Bᵀ."""
    remainder = [("remainder", tidy.NORM, "(A) size of the remainder"), ("remainder", tidy.ANGLE, "(B) remainder")]
    return expansion_figure(source, [[*remainder, ("zero_degree", tidy.ANGLE, "(C) zero-degree term")]], (11, 3.8))


DISTURBED = {
    "linear": ("(A) without nonlinearity", "moved by linear terms"),
    "feedback": ("(B) other backward weights", "moved by terms of B′, to B′ᵀ"),
    "errors": ("shuffled errors", "moved by terms of shuffled errors"),
}
"""Disturbance -> title, and the name of the disturbed kernel."""


def disturbed(source: Source) -> Artifact:
    """W, and kernels moved only by disturbed alignment terms, against the backward weights."""
    rows, panels = [], []
    for labels, results in source.results():
        title, name = DISTURBED[labels["how"]]
        styles = {"weight": Style("W, to Bᵀ"), "disturbed": Style(name, "s", "--", 0.5)}
        kept = tidy.thinned(len(results[0].arrays["weight_angle"]), 60)

        def values(arrays: Any, own: Row, kept=kept) -> np.ndarray:
            return arrays[f"{own['kernel']}_angle"][kept, own["layer"] - 1]

        own = tidy.series(results, "iteration", kept, values, disturbance=[labels["how"]], layer=HIDDEN, kernel=styles)
        axes = {"title": f"{title}\nl = {{layer}}", "xlabel": "iteration", **ANGLES_FROM_60}
        panels.append(panels_by("layer", own, "iteration", "kernel", styles, RIGHT_ANGLE, **axes))
        rows += own
    groups = grouped(rows, "disturbance").values()
    ends = [row for own in groups for row in chosen(own, iteration=own[-1]["iteration"])]
    columns = {
        "disturbance": lambda own: DISTURBED[own[0]["disturbance"]][0],
        "l": "layer",
        "iterations": "iteration",
        "seeds": lambda own: len(chosen(own, kernel="weight")),
        "W to Bᵀ at the end (degrees)": lambda own: spread(chosen(own, kernel="weight"), "value"),
        "disturbed kernel": lambda own: spread(chosen(own, kernel="disturbed"), "value"),
    }
    text, number = table(ends, ("disturbance", "layer"), columns), len(panels)
    layout = {"ylabels": ["angle (degrees)"] * number, "legends": [(each, -1) for each in range(number)]}
    return drawn(rows, text, panels, (11, 3 * number + 0.4), share_y=True, **layout)


def figure_6(source: Source) -> Artifact:
    """Alignment and test error with replaced labels; below, the alignment terms of those networks."""
    rows = [
        {**labels, **run, **{f"angle_{layer}": measures[f"weight_angle/{LAYERS[layer]}"] for layer in HIDDEN}}
        for labels, run, measures in tidy.evaluations(source)
    ]
    found = source.results()
    moment = int(found[0][1][0].arrays["moment"][-1])
    by_order = [
        row for labels, results in found for row in tidy.terms(results, [moment], fraction=[labels["fraction"]])
    ]

    def over_epochs(column: str, **axes: Any) -> Panel:
        return curve_panel(rows, "epoch", "fraction", FRACTIONS, y=column, xlabel="epoch", **axes)

    labels = ["angle of W to Bᵀ (degrees)", *[""] * (len(HIDDEN) - 1)]
    angles = [
        over_epochs(f"angle_{layer}", title=f"(A) l = {layer}", ylabel=label, **ANGLES_FROM_60)
        for layer, label in zip(HIDDEN, labels, strict=True)
    ]
    errors = over_epochs("test_error_percent", title="(B) error", ylabel="test error (%)", ylim=(0, 100))
    plain = {fraction: dataclasses.replace(style, marker="") for fraction, style in FRACTIONS.items()}
    axes = {"title": f"terms, l = {{layer}}, k = {moment}", "xlabel": "order o", **ANGLES_FROM_60}
    axes["ylabel"] = "angle of T to Bᵀ (degrees)"
    below = panels_by("layer", by_order, "order", "fraction", plain, RIGHT_ANGLE, **axes)
    text = _relabelled_text(rows, by_order)
    return drawn(rows, text, [[errors, *angles], [None, *below]], (12, 6.4), legends=[(0, 0)])


def _relabelled_text(rows: Sequence[Row], by_order: Sequence[Row]) -> str:
    """Returns a table of the last evaluations, and one of the alignment terms."""
    labels = {"labels": lambda own: FRACTIONS[own[0]["fraction"]].label}
    headers = {"test error (%)": "test_error_percent"} | {f"angle, l = {layer}": f"angle_{layer}" for layer in HIDDEN}
    ends = {header: lambda own, column=column: spread(own, column) for header, column in headers.items()}
    of_terms = {
        "l": "layer",
        "angle of order 60": _epoch_order,
        "mean of all others (degrees)": lambda own: _other_orders(own).partition(" ")[0],
    }
    above = table(chosen(rows, epoch=rows[-1]["epoch"]), ["fraction"], {**labels, "seeds": len, **ends})
    return f"{above}\n\n{table(by_order, ('fraction', 'layer'), labels | of_terms)}"


def figure_7_errors(source: Source) -> Artifact:
    """Test error after training, a point per run, ours beside that of the published code."""
    runs = [
        {
            "rule": CONDITIONS[cell.labels["condition"]].rule,
            "normalised": CONDITIONS[cell.labels["condition"]].normalised,
            "rate": outcome.config.optimization.forward.learning_rate,
            "seed": outcome.config.seed,
            "test_error_percent": 100 * (1 - outcome.measure("top1", 0.1)),
            "condition": cell.labels["condition"],
            "highest_late": max(
                (100 * (1 - row["top1"]) for row in outcome.rows if row["epoch"] > 30), default=math.nan
            ),
        }
        for cell, outcomes in source.outcomes()
        for outcome in outcomes
    ]
    columns = {
        "rule": lambda own: CONDITIONS[own[0]["condition"]].style.label,
        "seeds": len,
        "test error (%)": lambda own: spread(own, "test_error_percent"),
        "published code": lambda own: _published_error(own[0]["condition"]),
        "seeds with a spike above 30 %": lambda own: f"{sum(row['highest_late'] > 30 for row in own)} of {len(own)}",
        "highest, median": lambda own: f"{np.median([row['highest_late'] for row in own]):.1f} %",
    }
    rows = [{key: row[key] for key in ("rule", "normalised", "rate", "seed", "test_error_percent")} for row in runs]
    return drawn(rows, table(runs, ["condition"], columns), [[_error_panel(runs)]], (7, 3.8), legends=[(0, 0)])


def _error_panel(runs: Sequence[Row]) -> Panel:
    """Returns a panel of the test errors of all runs, by condition."""
    places = {name: place for place, name in enumerate(CONDITIONS)}
    published = [(places[name] - 0.15, mean) for name, (mean, _) in PUBLISHED.items()]
    own = [(places[row["condition"]], row["test_error_percent"]) for row in runs]
    names = [each.style.label.replace(", ", ",\n") for each in CONDITIONS.values()]
    means = Style("mean and standard deviation of our runs", "D", "")
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


PATHS = {"C": ("bp", "bp_trw"), "F": ("bp_trw", "bp_trw_wb")}
"""Panel of Figure 7 -> conditions whose paths it shows."""

OBSERVED = PATHS["F"]
"""Conditions whose weights and updates are observed."""

CURVES = {"A": "weight_angle", "B": "update_angle", "D": "norm"}
"""Panel of Figure 7 -> the measure that it shows."""


def figure_7(source: Source) -> Artifact:
    """Angles of W and of its updates, norms, test errors, and the paths of training in a plane."""
    observed = {condition: source.chosen(condition=condition) for condition in OBSERVED}
    planes = {letter: source.chosen(paths=pair)[0] for letter, pair in PATHS.items()}
    rows = {
        letter: [
            row
            for condition, results in observed.items()
            for row in tidy.curves(results, measure, 30, panel=[letter], condition=[condition])
        ]
        for letter, measure in CURVES.items()
    }
    rows["E"] = [
        {"panel": "E", "condition": labels["condition"], "epoch": run["epoch"], "seed": run["seed"]}
        | {"value": run["test_error_percent"]}
        for labels, run, _ in tidy.evaluations(source)
        if run["epoch"] > 0
    ]
    for letter, pair in PATHS.items():
        rows[letter] = [
            {"panel": letter, "condition": name, "seed": planes[letter].seed, "x": float(x), "y": float(y)}
            for name, path in zip(pair, planes[letter].arrays["paths"], strict=True)
            for x, y in path
        ]
    panels = _observed_panels(rows)
    for line, letter in enumerate(PATHS):
        panels[line].append(_plane_panel(letter, planes[letter].arrays))
    columns = ("panel", "condition", "layer", "epoch", "x", "y", "seed", "value")
    layout = {"legends": [(0, 2), (1, 1), (1, 2)], "legend": "outside lower center"}
    all_rows = [row for letter in "ABCDEF" for row in rows[letter]]
    return drawn(all_rows, _observed_text(observed), panels, (13, 8), columns, **layout)


def _observed_panels(rows: Mapping[str, Sequence[Row]]) -> list[list[Panel]]:
    """Returns panels A and B, and D and E; lines of normalised weights have no markers."""
    styles = {(layer, False): style for layer, style in LAYER_STYLES.items()} | {
        (layer, True): Style(f"{style.label}, normalised", "", (0, (1 + layer, 1)), 0.3 + 0.1 * layer)
        for layer, style in LAYER_STYLES.items()
    }

    def layers(letter: str, title: str, ylabel: str, *marks, **axes: Any) -> Panel:
        def by(row: Row) -> tuple[int, bool]:
            return row["layer"], CONDITIONS[row["condition"]].normalised != "none"

        axes |= {"title": f"({letter}) {title}", "xlabel": "epoch", "ylabel": ylabel}
        return curve_panel(rows[letter], "epoch", by, styles, *marks, **axes)

    conditions = {name: each.style for name, each in CONDITIONS.items()}
    error = {"title": "(E) test error", "xlabel": "epoch", "ylabel": "test error (%)", "yscale": "log"}
    above = [("A", "W to Bᵀ"), ("B", "update to that of BP")]
    return [
        [layers(*each, "angle (degrees)", RIGHT_ANGLE, **ANGLES) for each in above],
        [layers("D", "norm of W", "‖W‖"), curve_panel(rows["E"], "epoch", "condition", conditions, **error)],
    ]


def _observed_text(observed: Mapping[str, Sequence[Result]]) -> str:
    """Returns a table of the layers at the end of the observed training."""
    headers = {
        "W to Bᵀ (degrees)": "weight_angle",
        "update to that of BP (degrees)": "update_angle",
        "norm of W": "norm",
    }
    ends = lines_of(
        {"rule": CONDITIONS[condition].style.label, "l": layer}
        | {header: tidy.last_epoch(results, measure, layer) for header, measure in headers.items()}
        for condition, results in observed.items()
        for layer in range(len(LAYERS))
    )
    seeds = observed["bp_trw"]
    iteration = int(seeds[0].arrays["iteration"][-1])
    return f"Panels A, B and D: {len(seeds)} seeds, to iteration {iteration}. At the end:\n\n{ends}"


def _plane_panel(letter: str, arrays: Mapping[str, np.ndarray]) -> Panel:
    """Returns a panel of two paths in the plane of their principal components, over contours of the error there."""
    surface = (arrays[name] for name in ("first_axis", "second_axis", "heights"))
    marks = [figures.contours(*surface, "‖E‖ / 2", levels=12, alpha=0.6)]
    for condition, path, dash in zip(PATHS[letter], arrays["paths"], ("-", "--"), strict=True):
        marks.append(points(*path.T, Style(CONDITIONS[condition].style.label, "", dash)))
        marks.append(points(*path[-1:].T, Style(None, "*"), markersize=9))
    for name, shade in (("true", 0.0), ("feedback_directions", 0.5)):
        marks.append(figures.arrows(arrays["places"], arrays[name], shade, width=0.006, scale=14))
    marks.append(points(*arrays["feedback"][:, None], Style("B in place of W", "X", "")))
    first, second = 100 * arrays["explained"]
    axes = {"xlabel": f"PC 1 ({first:.0f} %)", "ylabel": f"PC 2 ({second:.0f} %)"}
    return panel(*marks, title=f"({letter}) paths", **axes)
