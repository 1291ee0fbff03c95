"""Figures 1B and 2 to 7 of Rahmansetayesh et al.

Lines are means over seeds, and shading is one standard deviation. l is the number of a layer, k an iteration, o the
order of an alignment term.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from neural_alignment.jobs.pieces import Result
from neural_alignment.jobs.plans import Outcome
from neural_alignment.papers import figures
from neural_alignment.papers.fa_mechanism.rows import (
    ANGLE,
    BY_SEED,
    NORM,
    curves,
    expansion,
    last_epoch,
    mean_by,
    series,
    terms,
    thinned,
)
from neural_alignment.papers.fa_mechanism.runs import CONDITIONS, FRACTIONS, HIDDEN, LAYERS, ORDERS, PUBLISHED, STEPS
from neural_alignment.papers.figures import Panel, Style, grid, level, lines, panel, points, ticks
from neural_alignment.papers.registry import Source
from neural_alignment.papers.tables import Key, chosen, grouped, spread, table
from neural_alignment.reporting import Artifact, Row, Spread

LAYER_STYLES = {
    layer: Style(f"l = {layer}", "osD^v"[layer], ("-", "--", "-.", ":", "-")[layer], 0.17 * layer) for layer in range(5)
}

RIGHT_ANGLE = level(90)
ANGLES, ANGLES_FROM_60 = {"ylim": (0, 100)}, {"ylim": (60, 100)}
"""Limits of an axis of angles in degrees; the second where no angle is smaller."""


def curve_panel(rows: Sequence[Row], x: Key, by: Key, styles: Mapping[Any, Style], *marks, **axes) -> Panel:
    """Returns a panel of means with shaded standard deviations; arguments as of `figures.lines` and `panel`."""
    return panel(lines(rows, x, "value", by, styles, band=True), *marks, **axes)


def layer_panels(rows: Sequence[Row], x: Key, by: Key, styles: Any, title: str, *marks, **axes) -> list[Panel]:
    """Returns a panel per layer; `{layer}` in the title is its number, and other arguments are as of `curve_panel`."""
    return [
        curve_panel(own, x, by, styles, *marks, title=title.format(layer=layer), **axes)
        for (layer,), own in grouped(rows, "layer").items()
    ]


def term_panels(rows: Sequence[Row], title: str) -> list[Panel]:
    """Returns a panel per layer of the angles of alignment terms by order, black at the first iteration."""
    moments = sorted({row["moment"] for row in rows})
    styles = {
        moment: Style(f"k = {moment}", "", ("-", "--", "-.", ":")[number % 4], 0.7 * number / max(len(moments) - 1, 1))
        for number, moment in enumerate(moments)
    }
    return layer_panels(rows, "order", "moment", styles, title, RIGHT_ANGLE, xlabel="order o", **ANGLES_FROM_60)


def weight_panels(plain: Sequence[Result], shuffled: Sequence[Result]) -> list[Panel]:
    """Returns a panel per layer of W and its updates against Bᵀ, in file order and shuffled."""
    styles = {
        ("weight_angle", 0): Style("W"),
        ("update_to_feedback", 0): Style("update", "s", "-", 0.5),
        ("weight_angle", 1): Style("W, shuffled", "o", ":"),
        ("update_to_feedback", 1): Style("update, shuffled", "s", ":", 0.5),
    }
    rows = [
        row for name, number in styles for row in curves((plain, shuffled)[number], name, 100, kind=[(name, number)])
    ]
    return layer_panels(rows, "epoch", "kind", styles, "l = {layer}", RIGHT_ANGLE, xlabel="epoch", **ANGLES_FROM_60)


# Figure 1B.

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
    panels = [
        panel(
            lines(own, "iteration", "angle_degrees", "condition", OPEN_LOOP_STYLES, band=True),
            RIGHT_ANGLE,
            title=f"rate {rate:g}",
            xlabel="iteration",
            **ANGLES,
        )
        for (rate,), own in grouped(rows, "rate").items()
    ]
    columns = {
        "signals": lambda own: OPEN_LOOP_STYLES[own[0]["condition"]].label,
        "rate": "rate",
        "runs": len,
        "angle at the end (degrees)": lambda own: spread(own, "angle_degrees"),
    }
    text = table(chosen(rows, iteration=rows[-1]["iteration"]), ("condition", "rate"), columns)
    label = "angle of W₁ to B₁ᵀ (degrees)"
    return Artifact(
        tuple(rows[0]),
        rows,
        text,
        grid([panels], (8.4, 4), ylabels=[label], legend="outside lower center", share_y=True),
    )


# Figure 2.

TERM_COLUMNS = ("shuffled", "layer", "moment", "order", *BY_SEED)

DATA = {0: "in file order", 1: "shuffled"}
"""Value of the column `shuffled` -> text."""

TERM_LABELS = ("angle of T to Bᵀ (degrees)", "angle of T to Bᵀ (degrees)", "angle to Bᵀ (degrees)")
"""Labels of the y axes of Figure 2; without the first, those of Figure S2."""


def figure_2(source: Source) -> Artifact:
    """Alignment terms of every order, in file order and shuffled; below, W and its updates in both cases."""
    both = [source.chosen(shuffle=shuffle) for shuffle in (False, True)]
    moments = both[0][0].arrays["moment"].tolist()
    moments = (moments[0], moments[len(moments) // 2], moments[-1])
    rows = [row for number in DATA for row in terms(both[number], moments, shuffled=[number])]
    panels = [term_panels(chosen(rows, shuffled=number), f"l = {{layer}}, {text}") for number, text in DATA.items()]
    columns = {
        "data": lambda own: DATA[own[0]["shuffled"]],
        "l": "layer",
        "iteration k": "moment",
        "orders": lambda own: len(mean_by(own, "order")),
        "below 90°": lambda own: sum(mean < 90 for mean in mean_by(own, "order").values()),
        "mean angle, order 60": lambda own: _text(mean_by(own, "order").get(STEPS)),
        "mean angle, all others": _other_orders,
    }
    text = f"{len(both[0])} seeds, shuffled {len(both[1])}; orders 1 to {ORDERS} at most. {cost_text(both[0])}\n\n"
    text += table(rows, ("shuffled", "layer", "moment"), columns)
    panels = [*panels, weight_panels(*both)]
    legends = [(number, -1) for number in range(3)]
    figure = grid(panels, (11, 8), ylabels=TERM_LABELS, legends=legends, share_y=True)
    return Artifact(TERM_COLUMNS, rows, text, figure)


def _text(angle: float | None) -> str:
    return "-" if angle is None else f"{angle:.1f}"


def _other_orders(rows: Sequence[Row]) -> str:
    """Returns mean and range of the angles of all orders that are no multiple of an epoch."""
    others = [mean for order, mean in mean_by(rows, "order").items() if order % STEPS]
    return f"{np.mean(others):.1f} ({min(others):.1f} to {max(others):.1f})"


def cost_text(results: Sequence[Result]) -> str:
    """Returns a sentence about the cost of the alignment terms of one seed."""
    memory, operations = (float(results[0].arrays[name].sum()) for name in ("memory", "operations"))
    return (
        f"The history of a seed takes {memory / 1e6:.3g} MB; its alignment terms, each by itself, take "
        f"{operations / 1e9:.3g} billion floating-point operations."
    )


# Figures 3 and S6.


def expansion_artifact(
    source: Source, panels: Sequence[Sequence[tuple[str, str, str]]], size: tuple[float, float]
) -> Artifact:
    """Returns a figure of parts of the update.

    Args:
        source: of the figure.
        panels: part, measure and title of each panel.
        size: in inches.
    """
    [(_, results)] = source.results()
    rows = {(part, measure): expansion(results, part, measure) for line in panels for part, measure, _ in line}
    axes = {
        NORM: {"ylabel": "norm / ‖ΔW‖"},
        ANGLE: {"ylabel": "angle to Bᵀ (degrees)", "ylim": (0, 120)},
    }
    drawn = [
        [
            curve_panel(
                rows[part, measure],
                *("iteration", "layer", LAYER_STYLES, *([RIGHT_ANGLE] if measure == ANGLE else [])),
                title=title,
                xlabel="iteration k",
                **axes[measure],
            )
            for part, measure, title in line
        ]
        for line in panels
    ]
    columns = ("layer", "part", "measure", "iteration", *BY_SEED)
    all_rows = [row for own in rows.values() for row in own]
    return Artifact(columns, all_rows, _expansion_text(results), grid(drawn, size, legends=[(0, 0)]))


def _expansion_text(results: Sequence[Result]) -> str:
    """Returns a table of all parts at the last iteration that is expanded."""
    last = int(results[0].arrays["moment"][-1])
    kinds = [(part, measure) for part in ("alignment", "zero_degree", "remainder") for measure in (NORM, ANGLE)]
    rows = [row for kind in kinds for row in chosen(expansion(results, *kind), iteration=last)]
    columns = {
        "l": "layer",
        "part": lambda own: own[0]["part"].replace("_", " "),
        "norm over that of the update": lambda own: spread(chosen(own, measure=NORM), "value"),
        "angle to Bᵀ (degrees)": lambda own: spread(chosen(own, measure=ANGLE), "value"),
    }
    rows.sort(key=lambda row: row["layer"])
    text = f"{len(results)} seeds; expanded back to the initial weights, all orders, to iteration {last}."
    return f"{text} {cost_text(results)} At iteration {last}:\n\n{table(rows, ('layer', 'part'), columns)}"


def figure_3(source: Source) -> Artifact:
    """Remainder and zero-degree terms: size of the remainder, and angles to Bᵀ."""
    remainder = [("remainder", NORM, "(A) size of the remainder"), ("remainder", ANGLE, "(B) remainder")]
    return expansion_artifact(source, [[*remainder, ("zero_degree", ANGLE, "(C) zero-degree term")]], (11, 3.8))


# Figures 4 and 5.

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
        how = labels["how"]
        styles = {"weight": Style("W, to Bᵀ"), "disturbed": Style(DISTURBED[how][1], "s", "--", 0.5)}
        kept = thinned(len(results[0].arrays["weight_angle"]), 60)

        def values(arrays: Any, layer: int, kernel: str, kept=kept, **_: Any) -> np.ndarray:
            return arrays[f"{kernel}_angle"][kept, layer - 1]

        own = series(results, "iteration", kept, values, disturbance=[how], layer=HIDDEN, kernel=styles)
        title = f"{DISTURBED[how][0]}\nl = {{layer}}"
        axes = {"xlabel": "iteration", **ANGLES_FROM_60}
        panels.append(layer_panels(own, "iteration", "kernel", styles, title, RIGHT_ANGLE, **axes))
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
    places = [(number, -1) for number in range(len(panels))]
    labels = ["angle (degrees)"] * len(panels)
    figure = grid(panels, (11, 3 * len(panels) + 0.4), ylabels=labels, legends=places, share_y=True)
    return Artifact(tuple(rows[0]), rows, table(ends, ("disturbance", "layer"), columns), figure)


# Figure 6.


def figure_6(source: Source) -> Artifact:
    """Alignment and test error with replaced labels; below, the alignment terms of those networks."""
    rows = [
        {
            "fraction": cell.labels["fraction"],
            "seed": outcome.config.seed,
            "epoch": row["epoch"],
            "test_error_percent": 100 * (1 - row["top1"]),
            **{f"angle_{layer}": row[f"weight_angle/{LAYERS[layer]}"] for layer in HIDDEN},
        }
        for cell, outcomes in source.outcomes()
        for outcome in outcomes
        for row in outcome.rows
    ]
    found = source.results()
    moment = int(found[0][1][0].arrays["moment"][-1])
    by_order = [row for labels, results in found for row in terms(results, [moment], fraction=[labels["fraction"]])]

    def over_epochs(column: str, **axes: Any) -> Panel:
        return panel(lines(rows, "epoch", column, "fraction", FRACTIONS, band=True), xlabel="epoch", **axes)

    angles = [over_epochs(f"angle_{layer}", title=f"(A) l = {layer}", **ANGLES_FROM_60) for layer in HIDDEN]
    angles[0] = dataclasses.replace(angles[0], axes={**angles[0].axes, "ylabel": "angle of W to Bᵀ (degrees)"})
    errors = over_epochs("test_error_percent", title="(B) error", ylabel="test error (%)", ylim=(0, 100))
    plain = {fraction: dataclasses.replace(style, marker="") for fraction, style in FRACTIONS.items()}
    axes = {"xlabel": "order o", "ylabel": "angle of T to Bᵀ (degrees)", **ANGLES_FROM_60}
    title = f"terms, l = {{layer}}, k = {moment}"
    below = layer_panels(by_order, "order", "fraction", plain, title, RIGHT_ANGLE, **axes)
    figure = grid([[errors, *angles], [None, *below]], (12, 6.4), legends=[(0, 0)])
    return Artifact(tuple(rows[0]), rows, _relabelled_text(rows, by_order), figure)


def _relabelled_text(rows: Sequence[Row], by_order: Sequence[Row]) -> str:
    """Returns a table of the last evaluations, and one of the alignment terms."""
    labels = {"labels": lambda own: FRACTIONS[own[0]["fraction"]].label}
    headers = {"test error (%)": "test_error_percent"} | {f"angle, l = {layer}": f"angle_{layer}" for layer in HIDDEN}
    ends = {header: lambda own, column=column: spread(own, column) for header, column in headers.items()}
    of_terms = {
        "l": "layer",
        "angle of order 60": lambda own: _text(mean_by(own, "order").get(STEPS)),
        "mean of all others (degrees)": lambda own: _other_orders(own).partition(" ")[0],
    }
    last = chosen(rows, epoch=rows[-1]["epoch"])
    above = table(last, ["fraction"], {**labels, "seeds": len, **ends})
    return f"{above}\n\n{table(by_order, ('fraction', 'layer'), labels | of_terms)}"


# Figure 7.


def figure_7_errors(source: Source) -> Artifact:
    """Test error after training, a point per run, ours beside that of the published code."""
    conditions = [(cell.labels["condition"], outcome) for cell, outcomes in source.outcomes() for outcome in outcomes]
    rows = [
        {
            "rule": CONDITIONS[name].rule,
            "normalised": CONDITIONS[name].normalised,
            "rate": outcome.config.optimization.forward.learning_rate,
            "seed": outcome.config.seed,
            "test_error_percent": 100 * (1 - outcome.measure("top1", 0.1)),
        }
        for name, outcome in conditions
    ]
    runs = [
        {**row, "condition": name, "place": list(CONDITIONS).index(name), "highest": _highest_late_error(outcome)}
        for row, (name, outcome) in zip(rows, conditions, strict=True)
    ]
    columns = {
        "rule": lambda own: CONDITIONS[own[0]["condition"]].style.label,
        "seeds": len,
        "test error (%)": lambda own: spread(own, "test_error_percent"),
        "published code": lambda own: _published_error(own[0]["condition"]),
        "seeds with a spike above 30 %": lambda own: f"{sum(row['highest'] > 30 for row in own)} of {len(own)}",
        "highest, median": lambda own: f"{np.median([row['highest'] for row in own]):.1f} %",
    }
    text = table(runs, ["condition"], columns)
    return Artifact(tuple(rows[0]), rows, text, grid([[_error_panel(runs)]], (7, 3.8), legends=[(0, 0)]))


def _error_panel(runs: Sequence[Row]) -> Panel:
    """Returns a panel of the test errors of all runs, by condition."""
    published = [(list(CONDITIONS).index(name) - 0.15, mean) for name, (mean, _) in PUBLISHED.items()]
    names = [each.style.label.replace(", ", ",\n") for each in CONDITIONS.values()]
    ours = Style("mean and standard deviation of our runs", "D", "")
    return panel(
        points(*zip(*published, strict=True), Style("published code", "_", ""), markersize=14),
        points(
            *zip(*((row["place"], row["test_error_percent"]) for row in runs), strict=True), Style("run", "o", "", 0.6)
        ),
        lines(runs, lambda row: row["place"] + 0.15, "test_error_percent", None, ours),
        ticks(range(len(names)), names, log=False, fontsize="small"),
        xlabel="rule",
        ylabel="test error after training (%)",
        ylim=(0, None),
    )


def _published_error(condition: str) -> str:
    if condition not in PUBLISHED:
        return "-"
    mean, deviation = PUBLISHED[condition]
    return f"{mean:.2f}" if math.isnan(deviation) else f"{mean:.2f} ± {deviation:.2f}"


def _highest_late_error(outcome: Outcome) -> float:
    """Returns the highest test error after 30 epochs, percent; above 30 % it is called a spike."""
    return max((100 * (1 - row["top1"]) for row in outcome.rows if row["epoch"] > 30), default=math.nan)


OBSERVED = ("bp_trw", "bp_trw_wb")
"""Conditions whose weights and updates are observed."""

PATHS = {"C": ("bp", "bp_trw"), "F": OBSERVED}
"""Panel -> conditions whose paths it shows."""


def figure_7(source: Source) -> Artifact:
    """Angles of W and of its updates, norms, test errors, and the paths of training in a plane."""
    observed = {condition: source.chosen(condition=condition) for condition in OBSERVED}
    every = range(len(LAYERS))
    rows = {
        letter: [
            row
            for condition, results in observed.items()
            for row in curves(results, name, 30, layers, panel=[letter], condition=[condition])
        ]
        for letter, name, layers in (("A", "weight_angle", HIDDEN), ("B", "update_angle", every), ("D", "norm", every))
    }
    rows["E"] = [
        {"panel": "E", "condition": cell.labels["condition"], "epoch": row["epoch"], "seed": outcome.config.seed}
        | {"value": 100 * (1 - row["top1"])}
        for cell, outcomes in source.outcomes()
        for outcome in outcomes
        for row in outcome.rows
        if row["epoch"] > 0
    ]
    planes = {letter: source.chosen(paths=pair)[0] for letter, pair in PATHS.items()}
    for letter, pair in PATHS.items():
        rows[letter] = [
            {"panel": letter, "condition": name, "seed": planes[letter].seed, "x": float(x), "y": float(y)}
            for name, path in zip(pair, planes[letter].arrays["paths"], strict=True)
            for x, y in path
        ]
    panels = _observed_panels(rows)
    for line, letter in enumerate(PATHS):
        panels[line].append(_plane_panel(letter, planes[letter].arrays))
    figure = grid(panels, (13, 8), legends=[(0, 2), (1, 1), (1, 2)], legend="outside lower center")
    columns = ("panel", "condition", "layer", "epoch", "x", "y", *BY_SEED)
    return Artifact(columns, [row for letter in "ABCDEF" for row in rows[letter]], _observed_text(observed), figure)


def _observed_panels(rows: Mapping[str, Sequence[Row]]) -> list[list[Panel]]:
    """Returns panels A and B, and D and E; lines of normalised weights have no markers."""
    styles = {(layer, False): style for layer, style in LAYER_STYLES.items()} | {
        (layer, True): Style(f"{style.label}, normalised", "", (0, (1 + layer, 1)), 0.3 + 0.1 * layer)
        for layer, style in LAYER_STYLES.items()
    }

    def by(row: Row) -> tuple[int, bool]:
        return row["layer"], CONDITIONS[row["condition"]].normalised != "none"

    angle = {"xlabel": "epoch", "ylabel": "angle (degrees)", **ANGLES}
    conditions = {name: each.style for name, each in CONDITIONS.items()}
    error = {"title": "(E) test error", "xlabel": "epoch", "ylabel": "test error (%)", "yscale": "log"}
    return [
        [
            curve_panel(rows["A"], "epoch", by, styles, RIGHT_ANGLE, title="(A) W to Bᵀ", **angle),
            curve_panel(rows["B"], "epoch", by, styles, RIGHT_ANGLE, title="(B) update to that of BP", **angle),
        ],
        [
            curve_panel(rows["D"], "epoch", by, styles, title="(D) norm of W", xlabel="epoch", ylabel="‖W‖"),
            curve_panel(rows["E"], "epoch", "condition", conditions, **error),
        ],
    ]


def _observed_text(observed: Mapping[str, Sequence[Result]]) -> str:
    """Returns a table of the layers at the end of the observed training."""

    def end(name: str) -> Callable[[Sequence[Row]], Spread]:
        first = 1 if name == "weight_angle" else 0  # The first layer has no backward kernel.

        def cell(own: Sequence[Row]) -> Spread:
            layer = own[0]["layer"]
            return Spread([]) if layer < first else last_epoch(observed[own[0]["condition"]], name, layer - first)

        return cell

    columns = {
        "rule": lambda own: CONDITIONS[own[0]["condition"]].style.label,
        "l": "layer",
        "W to Bᵀ (degrees)": end("weight_angle"),
        "update to that of BP (degrees)": end("update_angle"),
        "norm of W": end("norm"),
    }
    ends = [{"condition": condition, "layer": layer} for condition in observed for layer in range(len(LAYERS))]
    seeds = observed["bp_trw"]
    text = f"Panels A, B and D: {len(seeds)} seeds, to iteration {int(seeds[0].arrays['iteration'][-1])}. At the end:"
    return f"{text}\n\n{table(ends, ('condition', 'layer'), columns)}"


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
