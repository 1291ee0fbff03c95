"""Figures 1B and 2 to 7 of Rahmansetayesh et al.

Lines are means over seeds, and shading is one standard deviation. l is the number of a layer, k an iteration, o the
order of an alignment term.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from neural_alignment.analysis.curves import thinned
from neural_alignment.jobs.pieces import Result
from neural_alignment.papers import figures
from neural_alignment.papers.fa_mechanism import tidy
from neural_alignment.papers.fa_mechanism.runs import CONDITIONS, FRACTIONS, HIDDEN, LAYERS, ORDERS, PUBLISHED, STEPS
from neural_alignment.papers.figures import Mark, Panel, Style, drawn, level, lines, panel, panels_by, points, ticks
from neural_alignment.papers.registry import Source
from neural_alignment.papers.tables import Key, chosen, spread, table
from neural_alignment.reporting import Artifact, Row, markdown

LAYER_STYLES = {
    layer: Style(f"l = {layer}", "osD^v"[layer], ("-", "--", "-.", ":", "-")[layer], 0.17 * layer) for layer in range(5)
}

RIGHT_ANGLE = level(90)
ANGLES, ANGLES_FROM_60 = {"ylim": (0, 100)}, {"ylim": (60, 100)}
"""Limits of an axis of angles in degrees; the second where no angle is smaller."""


def shaded(rows: Sequence[Row], x: Key, by: Key, styles: Mapping[Any, Style], y: Key = "value") -> Mark:
    """Returns lines of means with shaded standard deviations; arguments as of `figures.lines`."""
    return lines(rows, x, y, by, styles, band=True)


def angle_panels(
    rows: Sequence[Row], x: str, by: Key, styles: Mapping[Any, Style], title: str, **axes: Any
) -> list[Panel]:
    """Returns a panel per layer of angles from 60 degrees on; in the title, {} stands for the layer."""
    marks, axes = (shaded(rows, x, by, styles), RIGHT_ANGLE), {"xlabel": x, **ANGLES_FROM_60, **axes}
    return panels_by("layer", *marks, title=title.format, **axes)


def term_panels(rows: Sequence[Row], title: str) -> list[Panel]:
    """Returns a panel per layer of the angles of alignment terms by order, black at the first iteration."""
    moments = sorted({row["moment"] for row in rows})
    styles = {
        moment: Style(f"k = {moment}", "", ("-", "--", "-.", ":")[number % 4], 0.7 * number / max(len(moments) - 1, 1))
        for number, moment in enumerate(moments)
    }
    return angle_panels(rows, "order", "moment", styles, title, xlabel="order o")


def weight_panels(*cases: Sequence[Result]) -> list[Panel]:
    """Returns a panel per layer of W and its updates against Bᵀ, in file order and shuffled."""
    styles = {
        ("weight_angle", 0): Style("W"),
        ("update_to_feedback", 0): Style("update", "s", "-", 0.5),
        ("weight_angle", 1): Style("W, shuffled", "o", ":"),
        ("update_to_feedback", 1): Style("update, shuffled", "s", ":", 0.5),
    }
    rows = [row for kind in styles for row in tidy.curves(cases[kind[1]], kind[0], 100, kind=[kind])]
    return angle_panels(rows, "epoch", "kind", styles, "l = {}")


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
    marks = shaded(rows, "iteration", "condition", OPEN_LOOP_STYLES, "angle_degrees"), RIGHT_ANGLE
    panels = [panels_by("rate", *marks, title="rate {:g}".format, xlabel="iteration", **ANGLES)]
    columns = {
        "signals": lambda own: OPEN_LOOP_STYLES[own[0]["condition"]].label,
        "rate": "rate",
        "runs": len,
        "angle at the end (degrees)": lambda own: spread(own, "angle_degrees"),
    }
    text = table(chosen(rows, iteration=rows[-1]["iteration"]), ("condition", "rate"), columns)
    layout = {"ylabels": ["angle of W₁ to B₁ᵀ (degrees)"], "legend": "outside lower center", "share_y": True}
    return drawn(rows, text, panels, (8.4, 4), **layout)


DATA = ("in file order", "shuffled")
"""Text for each value of the column `shuffled`."""

TERM_LABELS = ("angle of T to Bᵀ (degrees)", "angle of T to Bᵀ (degrees)", "angle to Bᵀ (degrees)")
"""Labels of the y axes of Figure 2; without the first, those of Figure S2."""


def figure_2(source: Source) -> Artifact:
    """Alignment terms of every order, in file order and shuffled; below, W and its updates in both cases."""
    both = [source.chosen(shuffle=shuffle) for shuffle in (False, True)]
    moments = both[0][0].arrays["moment"].tolist()
    moments = (moments[0], moments[len(moments) // 2], moments[-1])
    rows = [row for number, own in enumerate(both) for row in tidy.terms(own, moments, shuffled=[number])]
    panels = [term_panels(chosen(rows, shuffled=number), f"l = {{}}, {text}") for number, text in enumerate(DATA)]
    columns = {
        "data": lambda own: DATA[own[0]["shuffled"]],
        "l": "layer",
        "iteration k": "moment",
        "orders": lambda own: len(tidy.mean_by(own, "order")),
        "below 90°": lambda own: sum(mean < 90 for mean in tidy.mean_by(own, "order").values()),
        "mean angle, order 60": _epoch_order,
        "mean angle, all others": _other_orders,
    }
    text = f"{len(both[0])} seeds, shuffled {len(both[1])}; orders 1 to {ORDERS} at most. {_cost_text(both[0])}\n\n"
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


def _cost_text(results: Sequence[Result]) -> str:
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


def expansion_figure(source: Source, panels: list[list[tuple[str, ...]]], size: tuple[float, float]) -> Artifact:
    """Returns a figure of parts of the update, from the part, measure and title of each panel."""
    results = source.chosen()
    kinds = itertools.product(("alignment", "zero_degree", "remainder"), EXPANSION_AXES)
    rows = {kind: tidy.expansion(results, *kind) for kind in kinds}

    def drawn_part(part: str, measure: str, title: str) -> Panel:
        marks, axes = EXPANSION_AXES[measure]
        curves = shaded(rows[part, measure], "iteration", "layer", LAYER_STYLES)
        return panel(curves, *marks, title=title, xlabel="iteration k", **axes)

    last = int(results[0].arrays["moment"][-1])
    ends = [row for own in rows.values() for row in chosen(own, iteration=last)]
    columns = {
        "l": "layer",
        "part": lambda own: own[0]["part"].replace("_", " "),
        "norm over that of the update": lambda own: spread(chosen(own, measure=tidy.NORM), "value"),
        "angle to Bᵀ (degrees)": lambda own: spread(chosen(own, measure=tidy.ANGLE), "value"),
    }
    text = f"{len(results)} seeds; expanded back to the initial weights, all orders, to iteration {last}. "
    text += f"{_cost_text(results)} At iteration {last}:\n\n"
    text += table(sorted(ends, key=lambda row: row["layer"]), ("layer", "part"), columns)
    shown = [row for line in panels for part, measure, _ in line for row in rows[part, measure]]
    return drawn(shown, text, [[drawn_part(*each) for each in line] for line in panels], size, legends=[(0, 0)])


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
    rows, ends, panels = [], [], []
    for labels, results in source.results():
        title, name = DISTURBED[labels["how"]]
        styles = {"weight": Style("W, to Bᵀ"), "disturbed": Style(name, "s", "--", 0.5)}
        kept = thinned(len(results[0].arrays["weight_angle"]), 60)
        own = tidy.disturbed(results, kept, disturbance=[labels["how"]], layer=HIDDEN, kernel=styles)
        panels.append(angle_panels(own, "iteration", "kernel", styles, f"{title}\nl = {{}}"))
        rows += own
        ends += chosen(own, iteration=own[-1]["iteration"])
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
    by_order = [row for labels, own in found for row in tidy.terms(own, [moment], fraction=[labels["fraction"]])]

    def over_epochs(column: str, **axes: Any) -> Panel:
        return panel(shaded(rows, "epoch", "fraction", FRACTIONS, column), xlabel="epoch", **axes)

    above = [over_epochs("test_error_percent", title="(B) error", ylabel="test error (%)", ylim=(0, 100))]
    for layer in HIDDEN:
        label = "angle of W to Bᵀ (degrees)" if layer == HIDDEN[0] else ""
        above.append(over_epochs(f"angle_{layer}", title=f"(A) l = {layer}", ylabel=label, **ANGLES_FROM_60))
    plain = {fraction: dataclasses.replace(style, marker="") for fraction, style in FRACTIONS.items()}
    axes = {"xlabel": "order o", "ylabel": "angle of T to Bᵀ (degrees)"}
    below = angle_panels(by_order, "order", "fraction", plain, f"terms, l = {{}}, k = {moment}", **axes)
    labels = {"labels": lambda own: FRACTIONS[own[0]["fraction"]].label}
    headers = {"test error (%)": "test_error_percent"} | {f"angle, l = {layer}": f"angle_{layer}" for layer in HIDDEN}
    ends = {header: lambda own, column=column: spread(own, column) for header, column in headers.items()}
    of_terms = {
        "l": "layer",
        "angle of order 60": _epoch_order,
        "mean of all others (degrees)": lambda own: _other_orders(own).partition(" ")[0],
    }
    text = table(chosen(rows, epoch=rows[-1]["epoch"]), ["fraction"], {**labels, "seeds": len, **ends})
    text += f"\n\n{table(by_order, ('fraction', 'layer'), labels | of_terms)}"
    return drawn(rows, text, [above, [None, *below]], (12, 6.4), legends=[(0, 0)])


def figure_7_errors(source: Source) -> Artifact:
    """Test error after training, a point per run, ours beside that of the published code."""
    rows = [
        {"rule": condition.rule, "normalised": condition.normalised}
        | {"rate": outcome.config.optimization.forward.learning_rate, "seed": run["seed"]}
        | {"test_error_percent": run["test_error_percent"], "condition": labels["condition"]}
        | {"highest": max((100 * (1 - row["top1"]) for row in outcome.rows if row["epoch"] > 30), default=math.nan)}
        for labels, outcome, run in tidy.final_errors(source)
        for condition in [CONDITIONS[labels["condition"]]]
    ]
    columns = {
        "rule": lambda own: CONDITIONS[own[0]["condition"]].style.label,
        "seeds": len,
        "test error (%)": lambda own: spread(own, "test_error_percent"),
        "published code": lambda own: _published_error(own[0]["condition"]),
        "seeds with a spike above 30 %": lambda own: f"{sum(row['highest'] > 30 for row in own)} of {len(own)}",
        "highest, median": lambda own: f"{np.median([row['highest'] for row in own]):.1f} %",
    }
    kept = [{key: row[key] for key in ("rule", "normalised", "rate", "seed", "test_error_percent")} for row in rows]
    return drawn(kept, table(rows, ["condition"], columns), [[_error_panel(rows)]], (7, 3.8), legends=[(0, 0)])


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
"""Conditions whose weights and updates are observed: without and with normalisation."""

MEASURES = {
    "weight_angle": ("A", "W to Bᵀ", "W to Bᵀ (degrees)"),
    "update_angle": ("B", "update to that of BP", "update to that of BP (degrees)"),
    "norm": ("D", "norm of W", "norm of W"),
}
"""Measure of a layer -> panel of Figure 7, its title, and the header in the table."""


def figure_7(source: Source) -> Artifact:
    """Angles of W and of its updates, norms, test errors, and the paths of training in a plane."""
    observed = {condition: source.chosen(condition=condition) for condition in OBSERVED}
    planes = {letter: source.chosen(paths=pair)[0] for letter, pair in PATHS.items()}
    rows: list[Row] = [
        row
        for measure, (letter, *_) in MEASURES.items()
        for condition, results in observed.items()
        for row in tidy.curves(results, measure, 30, panel=[letter], condition=[condition])
    ]
    rows += [
        {"panel": "E", "condition": labels["condition"], "epoch": run["epoch"], "seed": run["seed"]}
        | {"value": run["test_error_percent"]}
        for labels, run, _ in tidy.evaluations(source)
        if run["epoch"] > 0
    ]
    rows += [
        {"panel": letter, "condition": name, "seed": planes[letter].seed, "x": float(x), "y": float(y)}
        for letter, pair in PATHS.items()
        for name, path in zip(pair, planes[letter].arrays["paths"], strict=True)
        for x, y in path
    ]
    rows.sort(key=lambda row: row["panel"])
    panels = _observed_panels(rows)
    for line, letter in enumerate(PATHS):
        panels[line].append(_plane_panel(letter, planes[letter].arrays))
    columns = ("panel", "condition", "layer", "epoch", "x", "y", "seed", "value")
    layout = {"legends": [(0, 2), (1, 1), (1, 2)], "legend": "outside lower center"}
    return drawn(rows, _observed_text(observed), panels, (13, 8), columns, **layout)


def _observed_panels(rows: Sequence[Row]) -> list[list[Panel]]:
    """Returns panels A and B, and D and E; lines of normalised weights have no markers."""
    plain, normalised = OBSERVED
    styles = {(plain, layer): style for layer, style in LAYER_STYLES.items()} | {
        (normalised, layer): Style(f"l = {layer}, normalised", "", (0, (1 + layer, 1)), 0.3 + 0.1 * layer)
        for layer in LAYER_STYLES
    }

    def layers(measure: str, ylabel: str, *marks: Mark, **axes: Any) -> Panel:
        letter, title, _ = MEASURES[measure]
        curves = shaded(chosen(rows, panel=letter), "epoch", lambda row: (row["condition"], row["layer"]), styles)
        return panel(curves, *marks, title=f"({letter}) {title}", xlabel="epoch", ylabel=ylabel, **axes)

    conditions = {name: each.style for name, each in CONDITIONS.items()}
    errors = shaded(chosen(rows, panel="E"), "epoch", "condition", conditions)
    axes = {"title": "(E) test error", "xlabel": "epoch", "ylabel": "test error (%)", "yscale": "log"}
    return [
        [layers(name, "angle (degrees)", RIGHT_ANGLE, **ANGLES) for name in ("weight_angle", "update_angle")],
        [layers("norm", "‖W‖"), panel(errors, **axes)],
    ]


def _observed_text(observed: Mapping[str, Sequence[Result]]) -> str:
    """Returns a table of the layers at the end of the observed training."""
    ends = lines_of(
        {"rule": CONDITIONS[condition].style.label, "l": layer}
        | {header: tidy.last_epoch(results, measure, layer) for measure, (_, _, header) in MEASURES.items()}
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
