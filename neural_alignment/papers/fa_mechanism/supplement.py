"""Figures S1 to S8 of Rahmansetayesh et al., and one of direct feedback alignment, which the paper does not have."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise, product
from typing import TYPE_CHECKING, Any

import numpy as np

from neural_alignment.jobs.pieces import Arrays, Result
from neural_alignment.papers import figures
from neural_alignment.papers.fa_mechanism import figures as main
from neural_alignment.papers.fa_mechanism import tidy
from neural_alignment.papers.fa_mechanism.compute import LAGS
from neural_alignment.papers.fa_mechanism.figures import LAYER_STYLES, RIGHT_ANGLE, lines_of, shaded, term_panels
from neural_alignment.papers.fa_mechanism.runs import HIDDEN, LAYERS, STEPS
from neural_alignment.papers.figures import Mark, Panel, Style, drawn, lines, panel, panels_by, points
from neural_alignment.papers.registry import Source
from neural_alignment.papers.tables import chosen, grouped, table
from neural_alignment.reporting import Artifact, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DRAWN = ("eigenvalue_ratio", "skew_ratio", "symmetric_angle", "angle")
"""Columns of a random transformation M in Figure S1."""

RATIO = "‖Bᵀ M_skew‖ / ‖Bᵀ M_sym‖"


def figure_s1(source: Source) -> Artifact:
    """The effect of the symmetric and the skew part of M on Bᵀ: of random M, and of M in the network."""
    [result], seeds = source.chosen(name="transformations"), source.chosen(shuffle=False)
    draws = result.arrays
    kept = range(0, len(draws["angle"]), 3)  # The CSV file has every third draw.
    rows = [{"panel": "AB", **{name: float(draws[name][draw]) for name in DRAWN}} for draw in kept]
    ends = [seeds[0].arrays["moment"].tolist()[place] for place in (0, -1)]
    spectra, skews = _spectra(seeds, ends), tidy.lagged(seeds, ["skew_ratio"], [60], panel=["D"])
    styles = {
        (moment, lag): Style(f"k = {moment}, lag {lag}", markers[lag == 60], line, 0.3)
        for moment, markers, line in zip(ends, ("os", "D^"), ("-", ":"), strict=True)
        for lag in LAGS[1:]
    }
    axes = {"title": "(C) eigenvalues of M_sym in the network, l = 2", "xlabel": "number, the largest first"}
    third = panel(shaded(spectra, "number", lambda row: (row["moment"], row["lag"]), styles), **axes)
    axes = {"title": "(D) skew part in the network, lag 60", "xlabel": "epoch", "ylabel": RATIO}
    panels = [_draw_panels(draws), [third, panel(shaded(skews, _epoch, "layer", LAYER_STYLES), **axes)]]
    layout = {"ylabels": ["angle of Bᵀ to Bᵀ M_sym (degrees)", "eigenvalue / largest magnitude"]}
    cosine = np.cos(np.deg2rad(draws["symmetric_angle"])) / np.sqrt(1 + draws["skew_ratio"] ** 2)
    error = np.abs(np.degrees(np.arccos(cosine)) - draws["angle"]).max()
    text = (
        f"{len(draws['angle'])} random M of 50 x 50; B^T to B^T M_skew is 90 degrees to "
        f"{np.abs(draws['skew_angle'] - 90).max():.0e}; the whole: arccos(cos(symmetric) / sqrt(1 + ratio^2)) "
        f"within {error:.1f} degrees. Panels C and D: the network, {len(seeds)} seeds."
    )
    all_rows = [{key: row[key] for key in row if key != "measure"} for row in (*rows, *spectra, *skews)]
    columns = ("panel", *DRAWN, "layer", "moment", "lag", "number", "seed", "value")
    return drawn(all_rows, text, panels, (10.5, 7), columns, legends=[*np.ndindex(2, 2)], **layout)


def _draw_panels(draws: Arrays) -> list[Panel]:
    """Returns panels A and B: angles of random transformations."""
    near, cosines = draws["symmetric_angle"] < 60, np.linspace(-1, 1, 101)

    def dots(x: str, y: str, which: Any, label: str, shade: float) -> Mark:
        return points(draws[x][which], draws[y][which], Style(label, ".", "", shade), markersize=3)

    first = (
        dots("eigenvalue_ratio", "symmetric_angle", slice(None), "random M", 0.5),
        points(cosines, np.degrees(np.arccos(cosines)), Style("arccos", "")),
    )
    second = (
        dots("skew_ratio", "angle", near, "M_sym below 60°", 0.0),
        dots("skew_ratio", "angle", ~near, "M_sym above", 0.6),
        RIGHT_ANGLE,
    )
    axes = {"title": "(A) symmetric part", "xlabel": "mean / root mean square of its eigenvalues", "ylim": (0, 180)}
    return [
        panel(*first, **axes),
        panel(*second, title="(B) skew part", xlabel=RATIO, ylabel="angle of Bᵀ to Bᵀ M (degrees)"),
    ]


def _epoch(row: Row) -> float:
    return row["moment"] / STEPS


def _spectra(results: Sequence[Result], moments: Sequence[int]) -> list[Row]:
    """Returns the eigenvalues of M_sym of layer 2 at some moments."""

    def values(arrays: Arrays, own: Row) -> np.ndarray:
        moment = arrays["moment"].tolist().index(own["moment"])
        found = arrays["eigenvalues"][moment, own["layer"] - 1, LAGS.index(own["lag"]), ::-1]
        return found / np.abs(found).max()

    numbers, labels = range(1, results[0].arrays["eigenvalues"].shape[-1] + 1), {"panel": ["C"], "layer": [2]}
    return tidy.series(results, "number", numbers, values, **labels, moment=moments, lag=LAGS[1:])


def figure_s2(source: Source) -> Artifact:
    """Alignment terms with shuffled data at many iterations; W and its updates with and without shuffling."""
    plain, shuffled = (source.chosen(shuffle=shuffle) for shuffle in (False, True))
    rows = tidy.terms(shuffled, shuffled[0].arrays["moment"].tolist(), shuffled=[1])
    ends = lines_of(
        {"l": layer, "angle to Bᵀ (degrees), last epoch": name}
        | {text: tidy.last_epoch(own, name, layer) for text, own in zip(main.DATA, (plain, shuffled), strict=True)}
        for layer in HIDDEN
        for name in ("weight_angle", "update_to_feedback")
    )
    panels = [term_panels(rows, "l = {}, shuffled"), main.weight_panels(plain, shuffled)]
    layout = {"ylabels": main.TERM_LABELS[1:], "legends": [(0, -1), (1, -1)], "share_y": True}
    return drawn(rows, f"{len(shuffled)} seeds.\n\n{ends}", panels, (12, 6), **layout)


LAG_STYLES = {
    1: Style("lag 1", "o", ":", 0.55),
    30: Style("lag 30", "s", "--", 0.35),
    60: Style("lag 60", "^", "-", 0.0),
}


def figure_s3(source: Source) -> Artifact:
    """Angles of outputs and errors to those of earlier iterations."""
    measures = {
        "output_angle": ("angle of L(l-1)[k] to [k-o] (degrees)", "outputs, first to last (degrees)"),
        "error_angle": ("angle of δ(l+1)[k] to [k-o] (degrees)", "errors, first to last (degrees)"),
    }
    return _lag_figure(source, measures, (30, 60), "", ".1f")


def figure_s4(source: Source) -> Artifact:
    """Sums of the similarity terms within and between categories over training."""
    measures = {name: (f"{name} categories", f"{name}, first to last") for name in ("within", "between")}
    marks = (figures.level(0), figures.scale("y", "symlog", linthresh=1e-3))
    return _lag_figure(source, measures, LAGS, "; sums of the terms over the number of all pairs", ".3g", *marks)


def _lag_figure(
    source: Source, measures: Mapping[str, tuple[str, str]], lags: Sequence[int], note: str, form: str, *marks: Mark
) -> Artifact:
    """Returns measures of lagged signals over training: a row of panels for each, a panel per layer.

    `measures` maps a name to the label of the y axis and the header in the table. The text has the number of seeds and
    `note`; `form` is the number format of the table. Each panel has some further `marks`.
    """
    seeds = source.chosen(shuffle=False)
    rows = tidy.lagged(seeds, measures, lags)
    curves = [shaded(chosen(rows, measure=measure), _epoch, "lag", LAG_STYLES) for measure in measures]
    panels = [panels_by("layer", each, *marks, title="l = {}".format, xlabel="epoch") for each in curves]

    def ends(own: Sequence[Row], measure: str) -> str:
        means = list(tidy.mean_by(chosen(own, measure=measure), "moment").values())
        return f"{means[0]:{form}} to {means[-1]:{form}}"

    columns = {"l": "layer", "lag": "lag"}
    columns |= {header: lambda own, name=name: ends(own, name) for name, (_, header) in measures.items()}
    text = f"{len(seeds)} seeds{note}.\n\n{table(rows, ('layer', 'lag'), columns)}"
    labels = [label for label, _ in measures.values()]
    return drawn(rows, text, panels, (11, 6), ylabels=labels, legends=[(0, -1), (1, -1)])


GROUPS = {
    "within": Style("within", "", "-", 0.0),
    "between": Style("between", "", "--", 0.5),
    "within/well": Style("within, well", "", "-", 0.0),
    "within/poor": Style("within, poor", "", ":", 0.0),
    "between/well": Style("between, well", "", "--", 0.55),
    "between/poor": Style("between, poor", "", "-.", 0.55),
}
"""Groups of pairs in Figure S5: of one category or two, well or poorly classified."""

SIGNALS = {"error": "errors δ(l+1)", "output": "outputs L(l-1)"}


def figure_s5(source: Source) -> Artifact:
    """Similarities of the signals of all pairs of data points, before and after training; norms of single errors."""
    [result] = source.chosen()
    arrays = result.arrays
    rows = [
        {"phase": phase, "signal": signal, "layer": layer, "group": group, "low": float(low), "high": float(high)}
        | {"pairs": int(count), "mean": float(arrays[f"{stem}/{group}/mean"])}
        for phase, signal, layer, group in product(("first", "last"), SIGNALS, HIDDEN, GROUPS)
        for stem in [f"{phase}/{signal}/{layer}"]
        if f"{stem}/{group}" in arrays
        for (low, high), count in zip(pairwise(arrays[f"{stem}/edges"]), arrays[f"{stem}/{group}"], strict=True)
    ]
    axes = {"xlabel": "similarity", "yticks": []}
    panels = [
        panels_by("layer", figures.RowMark(own, _draw_histograms), title=f"({letter}) l = {{}}, {phase}".format, **axes)
        for letter, ((phase, _), own) in zip("ABDE", grouped(rows, "phase", "signal").items(), strict=True)
    ]
    epochs = arrays["iteration"] / STEPS
    norms = [points(epochs, each, Style(None, "", "-", 0.3), linewidth=0.4) for each in arrays["error_norm"].T]
    panels.append([panel(*norms, title="(C) single data points", xlabel="epoch"), None, None, None])
    labels = [*SIGNALS.values(), *SIGNALS.values(), "‖δ_d‖"]
    examples = int(np.sqrt(sum(arrays[f"first/output/1/{group}"].sum() for group in ("within", "between")) / 0.99))
    text = (
        f"One seed, all pairs of about {examples} training examples (the paper: 60,000); last is iteration "
        f"{arrays['iteration'][-1]}. Triangles are means.\n\n"
    )
    columns = {"phase": "phase", "signal": "signal", "l": "layer", "pairs": "group"}
    columns["mean similarity"] = lambda own: f"{own[0]['mean']:.4g}"
    text += table(rows, ("phase", "signal", "layer", "group"), columns)
    return drawn(rows, text, panels, (12, 13), ylabels=labels, legends=[(number, 3) for number in range(4)])


def _draw_histograms(axis: Axes, rows: Sequence[Row]) -> None:
    """Draws the distribution of the similarities of each group of pairs, with a triangle at its mean."""
    for (group,), own in grouped(rows, "group").items():
        total, edges = max(sum(row["pairs"] for row in own), 1), [*(row["low"] for row in own), own[-1]["high"]]
        figures.steps([row["pairs"] / total for row in own], edges, GROUPS[group])(axis)
        triangle = Style(None, "^", "", GROUPS[group].shade)
        points([own[0]["mean"]], [0], triangle, markersize=6, clip_on=False)(axis)


def figure_s6(source: Source) -> Artifact:
    """Size and angle to Bᵀ of the zero-degree term, and of the sum of all alignment terms."""
    parts = {"zero_degree": "zero-degree term", "alignment": "sum of the alignment terms"}
    panels = [[(part, measure, title) for measure in (tidy.NORM, tidy.ANGLE)] for part, title in parts.items()]
    return main.expansion_figure(source, panels, (10, 7))


CASES = {"product": ("linear", "linear"), "gated": ("gated", "with gates of a ReLU")}
"""Stem of the arrays of Figure S7 -> name of the case in the CSV file, and its title."""


def figure_s7(source: Source) -> Artifact:
    """The angle of products of random matrices by those of their factors."""
    [result] = source.chosen()
    arrays = result.arrays
    bins, units = len(arrays["counts"]), {"mean": "degrees", "variance": "degrees²"}
    rows = [
        {"case": name, "theta_1": (i + 0.5) * 180 / bins, "theta_2": (j + 0.5) * 180 / bins}
        | {what: float(arrays[f"{case}_{what}"][i, j]) for what in units}
        | {"draws": int(arrays["counts"][i, j])}
        for case, (name, _) in CASES.items()
        for i, j in np.ndindex(bins, bins)
    ]
    place = {"origin": "lower", "extent": (0, 180, 0, 180), "aspect": "equal"}

    def heatmap(case: str, what: str) -> Panel:
        drawing = figures.image(arrays[f"{case}_{what}"].T, f"{what} of θ₃ ({units[what]})", **place)
        return panel(drawing, title=f"{CASES[case][1]}: {what}", xlabel="θ₁ (degrees)", ylabel="θ₂ (degrees)")

    shift, error = arrays["shift"]
    variances = [float(np.nanmean(arrays[f"{case}_variance"])) for case in CASES]
    text = (
        f"{int(arrays['counts'].sum())} draws. Mean of theta_3 in a bin with gates less that without, positive away "
        f"from 90 degrees, over all draws: {shift:+.3f} ± {error:.3f} degrees; mean variance within a bin: "
        f"{variances[0]:.1f} without, {variances[1]:.1f} with (square degrees)."
    )
    return drawn(rows, text, [[heatmap(case, what) for what in units] for case in CASES], (9, 7.4))


UPDATED = {layer: f"update_angle_{layer}" for layer in range(len(LAYERS) - 1)}
"""Layers whose updates Figure S8 compares with those of backpropagation -> column of the angle."""

SENSITIVITY_COLUMNS = ("rule", "normalised", "gamma", "label_smoothing", "rate", "seed", "epochs", "test_error_percent")


def figure_s8(source: Source) -> Artifact:
    """Final alignment of updates and test error by rate, normalisation and label smoothing."""
    rows = [
        {**labels, "gamma": "" if labels["gamma"] is None else labels["gamma"], **run, "epochs": last["epoch"]}
        | {name: last.get(f"pseudogradient_angle/{LAYERS[layer]}", math.nan) for layer, name in UPDATED.items()}
        for labels, outcome, run in tidy.final_errors(source)
        for last in outcome.rows[-1:]
    ]

    def errors(own: Sequence[Row]) -> str:
        middle, low, high = figures.median_and_range([row["test_error_percent"] for row in own])
        return f"{middle:.2f} ({low:.2f} to {high:.2f})"

    def angle(own: Sequence[Row], column: str) -> str:
        middle = float(np.median([row[column] for row in own]))
        return "-" if math.isnan(middle) else f"{middle:.1f}"  # Backpropagation has no angle.

    columns = {"rule": "rule", "γ": lambda own: None if own[0]["gamma"] == "" else own[0]["gamma"]}
    columns |= {"smoothing": "label_smoothing", "rate": "rate", "test error (%): median (range)": errors}
    columns |= {f"angle, l = {layer}": lambda own, name=name: angle(own, name) for layer, name in UPDATED.items()}
    epochs = f"{rows[0]['epochs']:g}" if rows else "-"
    text = f"{len(rows)} runs of {epochs} epochs (the paper: 100), medians, smallest and largest.\n\n"
    text += table(rows, ("rule", "gamma", "label_smoothing", "rate"), columns)
    layout = {"legends": [(0, 0), (1, 0)], "share_x": True}
    layout["ylabels"] = ["update of BP-TRW to that of BP (degrees)", "test error (%)"]
    return drawn(rows, text, _sensitivity_panels(rows), (11, 7), (*SENSITIVITY_COLUMNS, *UPDATED.values()), **layout)


def _sensitivity_panels(rows: Sequence[Row]) -> list[list[Panel]]:
    """Returns medians and ranges by normalisation and smoothing, angles above and errors below."""
    groups = [*grouped(rows, "gamma", "label_smoothing")]

    def bars(own: Sequence[Row], column: str, shift: float, style: Style) -> Mark:
        places = [{**row, "place": groups.index((row["gamma"], row["label_smoothing"])) + shift} for row in own]
        return lines(places, "place", column, None, style, figures.median_and_range)

    angles, errors = [], []
    for (rule, rate), own in grouped(rows, "rule", "rate").items():
        slow = rate < 4e-4
        marker, aside, feedback = "^" if slow else "o", 0.05 * (2 * slow - 1), rule == "bp_trw"
        style = Style(f"{rule.upper().replace('_', '-')}, rate {rate:g}", marker, "", 0.0 if feedback else 0.5)
        errors.append(bars(own, "test_error_percent", aside + (0.12 if feedback else -0.12), style))
        for layer, column in UPDATED.items() if feedback else ():
            style = Style(f"l = {layer}, rate {rate:g}", marker, "", LAYER_STYLES[layer].shade)
            angles.append(bars(own, column, aside + 0.16 * (layer - 1.5), style))
    names = [f"{'no WN' if gamma == '' else f'γ = {gamma:g}'}{', LS' if smooth else ''}" for gamma, smooth in groups]
    places = figures.ticks(range(len(names)), names, log=False)
    xlabel = "weight normalisation (WN), label smoothing (LS)"
    return [[panel(*angles, places)], [panel(*errors, places, xlabel=xlabel)]]


def figure_direct(source: Source) -> Artifact:
    """Direct feedback alignment: products of W to Fᵀ, W to Qᵀ, and the direct alignment terms."""
    results = source.chosen()
    titles = {"product_angle": "W(l) ... W(d-1) to Fᵀ", "weight_angle": "W to Qᵀ"}
    over_epochs = [row for name in titles for row in tidy.curves(results, name, 60, measure=[name])]
    by_order = tidy.terms(results, results[0].arrays["moment"].tolist(), measure=["term_angle"])
    marks = shaded(over_epochs, "epoch", "layer", LAYER_STYLES), RIGHT_ANGLE
    above = panels_by("measure", *marks, title=titles.get, xlabel="epoch", **main.ANGLES)
    panels = [[*above, None, None], term_panels(by_order, "direct terms, l = {}")]
    headers = {f"{titles['product_angle']}, last epoch (degrees)": "product_angle", "W to Qᵀ": "weight_angle"}
    ends = lines_of(
        {"l": layer, **{header: tidy.last_epoch(results, name, layer) for header, name in headers.items()}}
        for layer in HIDDEN
    )
    text = f"{len(results)} seeds, to iteration {int(results[0].arrays['iteration'][-1])}.\n\n{ends}"
    columns = ("measure", "layer", "moment", "epoch", "order", "seed", "value")
    layout = {"ylabels": ["angle (degrees)", "angle of T to Qᵀ (degrees)"], "legends": [(0, 0), (1, -1)]}
    return drawn([*over_epochs, *by_order], text, panels, (12, 6.4), columns, **layout)
