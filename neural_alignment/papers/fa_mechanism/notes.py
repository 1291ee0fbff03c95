"""Figures of the supplementary notes 1, 2 and 4 of Rahmansetayesh et al., which the paper states without a figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from neural_alignment.analysis.network_measures import PARTS
from neural_alignment.analysis.random_products import CONDITIONS
from neural_alignment.jobs.pieces import Arrays, Result
from neural_alignment.papers import figures
from neural_alignment.papers.fa_mechanism import tidy
from neural_alignment.papers.fa_mechanism.figures import (
    ANGLES,
    RIGHT_ANGLE,
    counted,
    layer_panels,
    lines_of,
    mean_note,
    median_note,
    shaded,
    term_panels,
)
from neural_alignment.papers.fa_mechanism.runs import HIDDEN
from neural_alignment.papers.figures import RowMark, Style, drawn, lines, mean_and_deviation, panels_by
from neural_alignment.papers.registry import Source
from neural_alignment.papers.tables import chosen, grouped, spread, table
from neural_alignment.reporting import Artifact, Row, Spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CONDITION_TEXTS = {
    "all": "all θ₁ and θ₂",
    "both_45": "θ₁ and θ₂ 40° to 50°",
    "one_0": "θ₁ 0° to 10°, θ₂ 40° to 50°",
    "one_90": "θ₁ 85° to 95°, θ₂ 40° to 50°",
}
"""Condition -> text."""

CASES = {"product": Style("linear", "", "-", 0.0), "gated": Style("with gates of a ReLU", "", "--", 0.45)}
"""Product of two matrices -> look of its histogram."""


def note_1(source: Source) -> Artifact:
    """Histograms of the angle of products of random matrices, its shift by gates, and a t-test of its mean."""
    [result] = source.chosen()
    arrays, edges = result.arrays, result.arrays["edges"]
    rows = [
        {"condition": condition, "case": case, "low": float(low), "high": float(high), "draws": int(count)}
        | {"t": float(arrays[f"{condition}/test"][0]), "p": float(arrays[f"{condition}/test"][1])}
        for condition in CONDITIONS
        for case in CASES
        for low, high, count in zip(edges[:-1], edges[1:], arrays[f"{condition}/{case}"], strict=True)
    ]
    shifts = [
        {"condition": condition, "part": part, "shift": float(shift)}
        for condition in CONDITIONS
        for part, shift in enumerate(arrays[f"{condition}/shift"])
    ]

    def title(condition: str) -> str:
        return f"{CONDITION_TEXTS[condition]}\n{int(arrays[f'{condition}/product'].sum()):,} draws"

    panels = panels_by("condition", RowMark(rows, _draw_cases), title=title, xlabel="θ₃ (degrees)")

    def mean(own: Sequence[Row], case: str) -> str:
        counts = {(row["low"] + row["high"]) / 2: row["draws"] for row in chosen(own, case=case)}
        return f"{np.average(list(counts), weights=list(counts.values())):.2f}" if any(counts.values()) else "-"

    def shift(own: Sequence[Row]) -> str:
        found = spread(chosen(shifts, condition=own[0]["condition"]), "shift")
        return f"{found.mean:.2f} ± {found.error:.2f}" if found.known else "-"

    columns = {
        "condition": lambda own: CONDITION_TEXTS[own[0]["condition"]],
        "draws": lambda own: sum(row["draws"] for row in chosen(own, case="product")),
        "mean of θ₃, linear": lambda own: mean(own, "product"),
        "with gates": lambda own: mean(own, "gated"),
        "shift": shift,
        "t": lambda own: f"{own[0]['t']:.2f}".replace("nan", "-"),
        "p": lambda own: f"{own[0]['p']:.2g}".replace("nan", "-"),
    }
    parts = len(arrays["all/shift"])
    text = f"Shift by the gates: degrees farther from 90, mean and standard error over {parts} parts of the draws. "
    text += "Student's t-test of related samples: each draw with and without gates (the paper: p > 0.1). By "
    text += "symmetry the means of the first and the last condition are 90 degrees with any gates.\n\n"
    text += table(rows, ["condition"], columns)
    note = f"{ANGLES} Bins of {edges[1] - edges[0]:g} degrees."
    layout = {"ylabels": ["part of the draws in a bin"], "beside": [(0, 3)], "note": note}
    names = ("condition", "case", "low", "high", "draws", "t", "p", "part", "shift")
    return drawn([*rows, *shifts], text, [panels], (14, 3.7), names, **layout)


def _draw_cases(axis: Axes, rows: Sequence[Row]) -> None:
    for (case,), own in grouped(rows, "case").items():
        total = max(sum(row["draws"] for row in own), 1)
        edges = [*(row["low"] for row in own), own[-1]["high"]]
        figures.steps([row["draws"] / total for row in own], edges, CASES[case])(axis)
    seen = [row for row in rows if row["draws"]]
    if seen:
        axis.set_xlim(min(row["low"] for row in seen) - 2, max(row["high"] for row in seen) + 2)


DEGREES = {
    1: Style("degree 1", "o", "-", 0.0),
    2: Style("degree 2", "s", "--", 0.3),
    3: Style("degree 3", "^", ":", 0.55),
}
"""Degree of a Taylor polynomial -> look of its line."""

TAYLOR = {
    "terms": "norm of the terms\nof this degree / ‖ΔW‖",
    "remainders": "norm of the remainder\nafter this degree / ‖ΔW‖",
}
"""Measure of the terms of one degree -> label."""


def note_2(source: Source) -> Artifact:
    """Taylor polynomials of degrees 1 to 3, summed over all orders (equations S2 to S5), and what remains."""
    results = source.chosen()

    def values(arrays: Arrays, own: Row) -> np.ndarray:
        return (
            arrays[f"{own['measure']}_norm"][:, own["layer"] - 1, own["degree"] - 1]
            / (arrays["update_norm"][:, own["layer"] - 1])
        )

    moments = tidy.moments_of(results)
    rows = tidy.series(results, "iteration", moments, values, measure=TAYLOR, layer=HIDDEN, degree=DEGREES)
    panels = [
        layer_panels(
            lines(
                chosen(rows, measure=measure), "iteration", "value", "degree", DEGREES, figures.median_and_range, True
            ),
            first=measure == "terms",
            xlabel="iteration k",
            yscale="log",
        )
        for measure in TAYLOR
    ]
    columns = {"l": "layer", "degree": "degree"}
    for measure, header in (("terms", "terms / update"), ("remainders", "remainder after it / update")):
        columns[header] = lambda own, measure=measure: format(spread(chosen(own, measure=measure), "value"), ".3g")
    text = f"{len(results)} seeds; all orders, back to the initial weights. At iteration {moments[-1]}:\n\n"
    text += table(chosen(rows, iteration=moments[-1]), ("layer", "degree"), columns)
    layout = {"ylabels": list(TAYLOR.values()), "beside": [(0, 3), (1, 3)], "note": median_note(counted(results))}
    return drawn(rows, text, panels, (13, 5.6), **layout)


NETWORKS = {
    "square": Style("last hidden layer 50 units", "o", "-", 0.0),
    "narrow": Style("last hidden layer 20 units", "s", "--", 0.5),
}
"""Network that is trained by direct feedback alignment -> look of its line."""

DIRECT = {
    "product_angle": "angle of W(l) ... W(d-1)\nto Fᵀ (degrees)",
    "weight_angle": "angle of W to Qᵀ\n(degrees)",
}
"""Measure of direct feedback alignment -> label."""


def figure_direct(source: Source) -> Artifact:
    """Direct feedback alignment of two networks: products of W to Fᵀ, W to Qᵀ, and the direct alignment terms."""
    found = {labels["hidden"]: results for labels, results in source.results() if results}
    over_epochs = [
        row
        for network, results in found.items()
        for name in DIRECT
        for row in tidy.curves(results, name, 30, network=[network], measure=[name])
    ]
    panels = []
    for name in DIRECT:
        curves = shaded(chosen(over_epochs, measure=name), "epoch", "network", NETWORKS)
        panels.append(layer_panels(curves, RIGHT_ANGLE, first=not panels, xlabel="epoch", ylim=(66, 96)))
    by_order = []
    for network, results in found.items():
        moments = tidy.moments_of(results)
        by_order += tidy.terms(results, [moments[0], moments[-1]], network=[network], measure=["term_angle"])
    panels += [term_panels(chosen(by_order, network=network), first=False) for network in found]
    ends = lines_of(
        {"network": NETWORKS[network].label, "l": layer}
        | {header: tidy.last_epoch(results, name, layer) for name, header in _DIRECT_HEADERS.items()}
        for network, results in found.items()
        for layer in HIDDEN
    )
    seeds = found["square"]
    text = f"{len(seeds)} seeds, to iteration {int(seeds[0].arrays['iteration'][-1])}. "
    text += f"Means over the last epoch:\n\n{ends}"
    columns = ("measure", "network", "layer", "moment", "epoch", "order", "seed", "value")
    labels = [
        *DIRECT.values(),
        *(f"{NETWORKS[name].label}\nangle of the direct alignment\nterm to Qᵀ (degrees)" for name in found),
    ]
    layout = {"ylabels": labels, "beside": [(row, 3) for row in range(len(panels))], "share_y": "row"}
    layout["note"] = mean_note(counted(*found.values()))
    return drawn([*over_epochs, *by_order], text, panels, (13, 2.7 * len(panels) + 0.4), columns, **layout)


_DIRECT_HEADERS = {"product_angle": "W(l) ... W(d-1) to Fᵀ (degrees)", "weight_angle": "W to Qᵀ"}

FOUR_PARTS = {f"{past}_{present}": (past, present) for past in PARTS for present in PARTS}
"""Name of a part of equation S17 -> its part of the past error, and of the current error."""


def figure_s17(source: Source) -> Artifact:
    """The four parts of the direct alignment terms where F is not a product of Q (equation S17)."""
    results = source.chosen()

    def values(arrays: Arrays, own: Row) -> np.ndarray:
        return arrays[f"part_{own['measure']}"][:, own["layer"] - 1, list(FOUR_PARTS).index(own["part"])]

    moments = tidy.moments_of(results)
    rows = tidy.series(results, "iteration", moments, values, measure=("norm", "angle"), layer=HIDDEN, part=FOUR_PARTS)
    places = figures.ticks(range(4), [f"{past},\n{present}" for past, present in FOUR_PARTS.values()], log=False)
    styles = {
        moment: Style(f"k = {moment}", marker, "", shade)
        for moment, marker, shade in zip(moments, "os^", (0.0, 0.35, 0.6), strict=False)
    }
    part = lambda row: list(FOUR_PARTS).index(row["part"]) + 0.12 * (moments.index(row["iteration"]) - 1)  # noqa: E731
    axes = {"xlabel": "past error, current error", "xlim": (-0.5, 3.5)}

    def row_of_panels(measure: str, *marks: Any, **limits: Any) -> list:
        bars = lines(chosen(rows, measure=measure), part, "value", "iteration", styles, mean_and_deviation)
        return layer_panels(bars, places, *marks, first=measure == "norm", **axes, **limits)

    absent = RowMark(chosen(rows, measure="norm", value=0.0, iteration=moments[-1]), _draw_absent)
    panels = [row_of_panels("norm"), row_of_panels("angle", RIGHT_ANGLE, absent)]
    text = f"{len(results)} seeds; sums over all orders, the last hidden layer has 20 units.\n\n"
    text += _s17_table(results, chosen(rows, iteration=moments[-1]))
    labels = ["norm of the part /\nnorm of the whole", "angle of the part\nto Qᵀ (degrees)"]
    note = (
        f"Markers: means over {counted(results)}. Bars: one standard deviation. Product: of the factors Q. Rest: of F."
    )
    layout = {"ylabels": labels, "beside": [(0, 3), (1, 3)], "share_y": "row", "note": note}
    return drawn(rows, text, panels, (14, 6), **layout)


def _draw_absent(axis: Axes, rows: Sequence[Row]) -> None:
    """Explains why parts of norm 0 have no angle."""
    for (part,) in grouped(rows, "part"):
        look = {"rotation": 90, "ha": "center", "va": "center", "fontsize": "small"}
        place = {"transform": axis.get_xaxis_transform()}
        axis.text(list(FOUR_PARTS).index(part), 0.35, "part is 0: no angle", **look, **place)


def _s17_table(results: Sequence[Result], rows: Sequence[Row]) -> str:
    """Returns a table of the parts at the last iteration, and how much of F is no product."""
    columns = {
        "l": "layer",
        "rest of F / F": lambda own: format(
            Spread([each.arrays["rest_norm"][-1, own[0]["layer"] - 1] for each in results]), ".3f"
        ),
        "past error": lambda own: FOUR_PARTS[own[0]["part"]][0],
        "current error": lambda own: FOUR_PARTS[own[0]["part"]][1],
        "norm of the part / whole": lambda own: spread(chosen(own, measure="norm"), "value"),
        "angle to Qᵀ (degrees)": lambda own: spread(chosen(own, measure="angle"), "value"),
    }
    return table(rows, ("layer", "part"), columns)
