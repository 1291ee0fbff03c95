"""Figures S1 to S8 of Rahmansetayesh et al., and one of direct feedback alignment, which the paper does not have."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from neural_alignment.jobs.pieces import Result
from neural_alignment.papers import figures
from neural_alignment.papers.fa_mechanism import figures as main
from neural_alignment.papers.fa_mechanism import tidy
from neural_alignment.papers.fa_mechanism.compute import LAGS
from neural_alignment.papers.fa_mechanism.figures import LAYER_STYLES, RIGHT_ANGLE, curve_panel, drawn, panels_by
from neural_alignment.papers.fa_mechanism.runs import HIDDEN, LAYERS, STEPS
from neural_alignment.papers.figures import Panel, Style, level, lines, median_and_range, panel, points, ticks
from neural_alignment.papers.registry import Source
from neural_alignment.papers.tables import chosen, grouped, table
from neural_alignment.reporting import Artifact, Row

DRAWN = ("eigenvalue_ratio", "skew_ratio", "symmetric_angle", "angle")
"""Columns of a random transformation M in Figure S1."""

RATIO = "‖Bᵀ M_skew‖ / ‖Bᵀ M_sym‖"


def figure_s1(source: Source) -> Artifact:
    """The effect of the symmetric and the skew part of M on Bᵀ: of random M, and of M in the network."""
    [result], seeds = source.chosen(name="transformations"), source.chosen(shuffle=False)
    draws = result.arrays
    rows = [{"panel": "AB", **{name: float(draws[name][draw]) for name in DRAWN}} for draw in _thirds(draws)]
    spectra = _spectra(seeds)
    skews = [
        {key: value for key, value in row.items() if key != "measure"}
        for row in tidy.lagged(seeds, ["skew_ratio"], [60], panel=["D"])
    ]
    first, *_, last = seeds[0].arrays["moment"].tolist()
    styles = {
        (moment, lag): Style(f"k = {moment}, lag {lag}", markers[lag == 60], line, 0.3)
        for moment, markers, line in ((first, "os", "-"), (last, "D^", ":"))
        for lag in LAGS[1:]
    }
    axes = {"title": "(C) eigenvalues of M_sym in the network, l = 2", "xlabel": "number, the largest first"}
    axes["ylabel"] = "eigenvalue / largest magnitude"
    third = curve_panel(spectra, "number", lambda row: (row["moment"], row["lag"]), styles, **axes)
    axes = {"title": "(D) skew part in the network, lag 60", "xlabel": "epoch", "ylabel": RATIO}
    fourth = curve_panel(skews, _epoch, "layer", LAYER_STYLES, **axes)
    columns = ("panel", *DRAWN, "layer", "moment", "lag", "number", "seed", "value")
    all_rows, panels = [*rows, *spectra, *skews], [_draw_panels(draws), [third, fourth]]
    return drawn(all_rows, _draw_text(draws, len(seeds)), panels, (10.5, 7), columns, legends=[*np.ndindex(2, 2)])


def _thirds(draws: Mapping[str, np.ndarray]) -> range:
    """Returns the number of every third draw; the CSV file has only those."""
    return range(0, len(draws["angle"]), 3)


def _draw_panels(draws: Mapping[str, np.ndarray]) -> list[Panel]:
    """Returns panels A and B: angles of random transformations."""
    near, cosines = draws["symmetric_angle"] < 60, np.linspace(-1, 1, 101)

    def dots(x: str, y: str, which: Any, label: str, shade: float) -> figures.Mark:
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
        panel(*first, ylabel="angle of Bᵀ to Bᵀ M_sym (degrees)", **axes),
        panel(*second, title="(B) skew part", xlabel=RATIO, ylabel="angle of Bᵀ to Bᵀ M (degrees)"),
    ]


def _epoch(row: Row) -> float:
    return row["moment"] / STEPS


def _draw_text(draws: Mapping[str, np.ndarray], seeds: int) -> str:
    cosine = np.cos(np.deg2rad(draws["symmetric_angle"])) / np.sqrt(1 + draws["skew_ratio"] ** 2)
    error = np.abs(np.degrees(np.arccos(cosine)) - draws["angle"]).max()
    return (
        f"{len(draws['angle'])} random M of 50 x 50; B^T to B^T M_skew is 90 degrees to "
        f"{np.abs(draws['skew_angle'] - 90).max():.0e}; the whole: arccos(cos(symmetric) / sqrt(1 + ratio^2)) "
        f"within {error:.1f} degrees. Panels C and D: the network, {seeds} seeds."
    )


def _spectra(results: Sequence[Result]) -> list[Row]:
    """Returns the eigenvalues of M_sym of layer 2 at the first and the last moment."""
    moments = results[0].arrays["moment"].tolist()

    def values(arrays: Mapping[str, np.ndarray], own: Row) -> np.ndarray:
        place = moments.index(own["moment"]), own["layer"] - 1, LAGS.index(own["lag"])
        found = arrays["eigenvalues"][place][::-1]
        return found / np.abs(found).max()

    numbers = range(1, results[0].arrays["eigenvalues"].shape[-1] + 1)
    ends = (moments[0], moments[-1])
    return tidy.series(results, "number", numbers, values, panel=["C"], layer=[2], moment=ends, lag=LAGS[1:])


def figure_s2(source: Source) -> Artifact:
    """Alignment terms with shuffled data at many iterations; W and its updates with and without shuffling."""
    plain, shuffled = (source.chosen(shuffle=shuffle) for shuffle in (False, True))
    rows = tidy.terms(shuffled, shuffled[0].arrays["moment"].tolist(), shuffled=[1])
    ends = main.lines_of(
        {"l": layer, "angle to Bᵀ (degrees), last epoch": name}
        | {text: tidy.last_epoch((plain, shuffled)[number], name, layer) for number, text in main.DATA.items()}
        for layer in HIDDEN
        for name in ("weight_angle", "update_to_feedback")
    )
    panels = [main.term_panels(rows, "l = {layer}, shuffled"), main.weight_panels(plain, shuffled)]
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
    marks = (level(0), figures.scale("y", "symlog", linthresh=1e-3))
    return _lag_figure(source, measures, LAGS, "; sums of the terms over the number of all pairs", ".3g", *marks)


def _lag_figure(
    source: Source, measures: Mapping[str, tuple[str, str]], lags: Sequence[int], note: str, form: str, *marks
) -> Artifact:
    """Returns measures of lagged signals over training: a row of panels for each, a panel per layer.

    Args:
        source: of the figure.
        measures: name -> label of the y axis, and header in the table.
        lags: lags that are shown.
        note: addition to the number of seeds in the text.
        form: number format of the table.
        *marks: further marks of each panel.
    """
    seeds = source.chosen(shuffle=False)
    rows = tidy.lagged(seeds, measures, lags)
    axes = {"title": "l = {layer}", "xlabel": "epoch"}
    panels = [
        panels_by("layer", own, _epoch, "lag", LAG_STYLES, *marks, **axes) for own in grouped(rows, "measure").values()
    ]

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
    kinds = [(phase, signal) for phase in ("first", "last") for signal in SIGNALS]
    rows = [row for kind in kinds for layer in HIDDEN for row in _histogram_rows(arrays, *kind, layer)]
    panels = [
        [
            panel(*_histograms(own), title=f"({letter}) l = {layer}, {kind[0]}", xlabel="similarity", yticks=[])
            for (layer,), own in grouped(chosen(rows, phase=kind[0], signal=kind[1]), "layer").items()
        ]
        for letter, kind in zip("ABDE", kinds, strict=True)
    ]
    epochs = arrays["iteration"] / STEPS
    norms = [points(epochs, each, Style(None, "", "-", 0.3), linewidth=0.4) for each in arrays["error_norm"].T]
    panels.append([panel(*norms, title="(C) single data points", xlabel="epoch"), None, None, None])
    labels = [*(SIGNALS[signal] for _, signal in kinds), "‖δ_d‖"]
    examples = int(np.sqrt(sum(arrays[f"first/output/1/{group}"].sum() for group in ("within", "between")) / 0.99))
    text = (
        f"One seed, all pairs of about {examples} training examples (the paper: 60,000); last is iteration "
        f"{arrays['iteration'][-1]}. Triangles are means.\n\n"
    )
    columns = {"phase": "phase", "signal": "signal", "l": "layer", "pairs": "group"}
    columns["mean similarity"] = lambda own: f"{own[0]['mean']:.4g}"
    text += table(rows, ("phase", "signal", "layer", "group"), columns)
    return drawn(rows, text, panels, (12, 13), ylabels=labels, legends=[(number, 3) for number in range(4)])


def _histogram_rows(arrays: Mapping[str, np.ndarray], phase: str, signal: str, layer: int) -> list[Row]:
    """Returns a row per group of pairs and bin of the histogram."""
    stem = f"{phase}/{signal}/{layer}"
    edges = arrays[f"{stem}/edges"]
    return [
        {"phase": phase, "signal": signal, "layer": layer, "group": group, "low": float(low), "high": float(high)}
        | {"pairs": int(count), "mean": float(arrays[f"{stem}/{group}/mean"])}
        for group in GROUPS
        if f"{stem}/{group}" in arrays
        for low, high, count in zip(edges[:-1], edges[1:], arrays[f"{stem}/{group}"], strict=True)
    ]


def _histograms(rows: Sequence[Row]) -> list[figures.Mark]:
    """Returns the distribution of the similarities of each group of pairs, with a triangle at its mean."""
    marks = []
    for (group,), own in grouped(rows, "group").items():
        total, edges = max(sum(row["pairs"] for row in own), 1), [*(row["low"] for row in own), own[-1]["high"]]
        marks.append(figures.steps([row["pairs"] / total for row in own], edges, GROUPS[group]))
        triangle = Style(None, "^", "", GROUPS[group].shade)
        marks.append(points([own[0]["mean"]], [0], triangle, markersize=6, clip_on=False))
    return marks


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
        {**cell.labels, "gamma": "" if cell.labels["gamma"] is None else cell.labels["gamma"]}
        | {"seed": outcome.config.seed, "epochs": outcome.rows[-1]["epoch"]}
        | {"test_error_percent": 100 * (1 - outcome.measure("top1", 0.1))}
        | {
            column: outcome.rows[-1].get(f"pseudogradient_angle/{LAYERS[layer]}", math.nan)
            for layer, column in UPDATED.items()
        }
        for cell, outcomes in source.outcomes()
        for outcome in outcomes
    ]

    def errors(own: Sequence[Row]) -> str:
        middle, low, high = median_and_range([row["test_error_percent"] for row in own])
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
    return drawn(rows, text, _sensitivity_panels(rows), (11, 7), (*SENSITIVITY_COLUMNS, *UPDATED.values()), **layout)


def _sensitivity_panels(rows: Sequence[Row]) -> list[list[Panel]]:
    """Returns medians and ranges by normalisation and smoothing, angles above and errors below."""
    groups = [*grouped(rows, "gamma", "label_smoothing")]

    def bars(own: Sequence[Row], column: str, shift: float, style: Style) -> figures.Mark:
        def place(row: Row) -> float:
            return groups.index((row["gamma"], row["label_smoothing"])) + shift

        return lines(own, place, column, None, style, median_and_range)

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
    places = ticks(range(len(names)), names, log=False)
    axes = {"ylabel": "test error (%)", "xlabel": "weight normalisation (WN), label smoothing (LS)"}
    return [
        [panel(*angles, places, ylabel="update of BP-TRW to that of BP (degrees)")],
        [panel(*errors, places, **axes)],
    ]


def figure_direct(source: Source) -> Artifact:
    """Direct feedback alignment: products of W to Fᵀ, W to Qᵀ, and the direct alignment terms."""
    [(_, results)] = source.results()
    titles = {"product_angle": "W(l) ... W(d-1) to Fᵀ", "weight_angle": "W to Qᵀ"}
    over_epochs = [row for name in titles for row in tidy.curves(results, name, 60, measure=[name])]
    by_order = tidy.terms(results, results[0].arrays["moment"].tolist(), measure=["term_angle"])
    axes = {"xlabel": "epoch", **main.ANGLES}
    above = [
        curve_panel(own, "epoch", "layer", LAYER_STYLES, RIGHT_ANGLE, title=titles[name], **axes)
        for (name,), own in grouped(over_epochs, "measure").items()
    ]
    panels = [[*above, None, None], main.term_panels(by_order, "direct terms, l = {layer}")]
    headers = {f"{titles['product_angle']}, last epoch (degrees)": "product_angle", "W to Qᵀ": "weight_angle"}
    ends = main.lines_of(
        {"l": layer, **{header: tidy.last_epoch(results, name, layer) for header, name in headers.items()}}
        for layer in HIDDEN
    )
    text = f"{len(results)} seeds, to iteration {int(results[0].arrays['iteration'][-1])}.\n\n{ends}"
    columns = ("measure", "layer", "moment", "epoch", "order", "seed", "value")
    layout = {"ylabels": ["angle (degrees)", "angle of T to Qᵀ (degrees)"], "legends": [(0, 0), (1, -1)]}
    return drawn([*over_epochs, *by_order], text, panels, (12, 6.4), columns, **layout)
