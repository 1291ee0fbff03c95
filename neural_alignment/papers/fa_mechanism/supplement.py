"""Figures S1 to S8 of Rahmansetayesh et al., and one of direct feedback alignment, which the paper does not have."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from neural_alignment.jobs.pieces import Result
from neural_alignment.papers import figures
from neural_alignment.papers.fa_mechanism.compute import LAGS
from neural_alignment.papers.fa_mechanism.figures import (
    ANGLES,
    LAYER_STYLES,
    RIGHT_ANGLE,
    TERM_COLUMNS,
    TERM_LABELS,
    curve_panel,
    expansion_artifact,
    layer_panels,
    term_panels,
    weight_panels,
)
from neural_alignment.papers.fa_mechanism.rows import (
    ANGLE,
    BY_SEED,
    NORM,
    curves,
    lagged,
    last_epoch,
    mean_by,
    series,
    terms,
)
from neural_alignment.papers.fa_mechanism.runs import HIDDEN, LAYERS, STEPS
from neural_alignment.papers.figures import (
    Panel,
    Style,
    grid,
    level,
    lines,
    median_and_range,
    panel,
    points,
    ticks,
)
from neural_alignment.papers.registry import Source
from neural_alignment.papers.tables import chosen, grouped, table
from neural_alignment.reporting import Artifact, Row

# Figure S1.

DRAWN = ("eigenvalue_ratio", "skew_ratio", "symmetric_angle", "angle")
"""Columns of a random transformation M."""

RATIO = "‖Bᵀ M_skew‖ / ‖Bᵀ M_sym‖"


def figure_s1(source: Source) -> Artifact:
    """The effect of the symmetric and the skew part of M on Bᵀ: of random M, and of M in the network."""
    [result], seeds = source.chosen(name="transformations"), source.chosen(shuffle=False)
    draws = result.arrays
    rows = [
        {"panel": "AB", **{name: float(draws[name][draw]) for name in DRAWN}}
        for draw in range(0, len(draws["angle"]), 3)
    ]
    spectra = _spectra(seeds)
    skews = lagged(seeds, ["skew_ratio"], [60], panel=["D"])
    first, *_, last = seeds[0].arrays["moment"].tolist()
    spectrum_styles = {
        (moment, lag): Style(f"k = {moment}, lag {lag}", markers[lag == 60], line, 0.3)
        for moment, markers, line in ((first, "os", "-"), (last, "D^", ":"))
        for lag in LAGS[1:]
    }
    third = curve_panel(
        spectra,
        *("number", lambda row: (row["moment"], row["lag"]), spectrum_styles),
        title="(C) eigenvalues of M_sym in the network, l = 2",
        xlabel="number, the largest first",
        ylabel="eigenvalue / largest magnitude",
    )
    title = "(D) skew part in the network, lag 60"
    fourth = curve_panel(skews, _epoch, "layer", LAYER_STYLES, title=title, xlabel="epoch", ylabel=RATIO)
    figure = grid([_draw_panels(draws), [third, fourth]], (10.5, 7), legends=[(0, 0), (0, 1), (1, 0), (1, 1)])
    columns = ("panel", *DRAWN, "layer", "moment", "lag", "number", *BY_SEED)
    skews = [{key: value for key, value in row.items() if key != "measure"} for row in skews]
    return Artifact(columns, [*rows, *spectra, *skews], _draw_text(draws, len(seeds)), figure)


def _draw_panels(draws: Mapping[str, np.ndarray]) -> list[Panel]:
    """Returns panels A and B: angles of random transformations."""
    near, cosines = draws["symmetric_angle"] < 60, np.linspace(-1, 1, 101)

    def dots(x: str, y: str, which: Any, label: str, shade: float) -> figures.Mark:
        return points(draws[x][which], draws[y][which], Style(label, ".", "", shade), markersize=3)

    return [
        panel(
            dots("eigenvalue_ratio", "symmetric_angle", slice(None), "random M", 0.5),
            points(cosines, np.degrees(np.arccos(cosines)), Style("arccos", "")),
            title="(A) symmetric part",
            xlabel="mean / root mean square of its eigenvalues",
            ylabel="angle of Bᵀ to Bᵀ M_sym (degrees)",
            ylim=(0, 180),
        ),
        panel(
            dots("skew_ratio", "angle", near, "M_sym below 60°", 0.0),
            dots("skew_ratio", "angle", ~near, "M_sym above", 0.6),
            RIGHT_ANGLE,
            title="(B) skew part",
            xlabel=RATIO,
            ylabel="angle of Bᵀ to Bᵀ M (degrees)",
        ),
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

    def values(arrays: Mapping[str, np.ndarray], layer: int, moment: int, lag: int, **_: Any) -> np.ndarray:
        found = arrays["eigenvalues"][moments.index(moment), layer - 1, LAGS.index(lag)][::-1]
        return found / np.abs(found).max()

    numbers = range(1, results[0].arrays["eigenvalues"].shape[-1] + 1)
    ends = (moments[0], moments[-1])
    return series(results, "number", numbers, values, panel=["C"], layer=[2], moment=ends, lag=LAGS[1:])


# Figure S2.


def figure_s2(source: Source) -> Artifact:
    """Alignment terms with shuffled data at many iterations; W and its updates with and without shuffling."""
    plain, shuffled = (source.chosen(shuffle=shuffle) for shuffle in (False, True))
    rows = terms(shuffled, shuffled[0].arrays["moment"].tolist(), shuffled=[1])
    ends = [
        {"layer": layer, "name": name}
        | {which: last_epoch(some, name, layer - 1) for which, some in (("plain", plain), ("shuffled", shuffled))}
        for layer in HIDDEN
        for name in ("weight_angle", "update_to_feedback")
    ]
    columns = {"l": "layer", "angle to Bᵀ (degrees), last epoch": "name", "in file order": "plain"}
    text = f"{len(shuffled)} seeds.\n\n{table(ends, ('layer', 'name'), {**columns, 'shuffled': 'shuffled'})}"
    panels = [term_panels(rows, "l = {layer}, shuffled"), weight_panels(plain, shuffled)]
    figure = grid(panels, (12, 6), ylabels=TERM_LABELS[1:], legends=[(0, -1), (1, -1)], share_y=True)
    return Artifact(TERM_COLUMNS, rows, text, figure)


# Figures S3 and S4.

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
    return _lag_artifact(source, measures, (30, 60), "", ".1f")


def figure_s4(source: Source) -> Artifact:
    """Sums of the similarity terms within and between categories over training."""
    measures = {name: (f"{name} categories", f"{name}, first to last") for name in ("within", "between")}
    marks = (level(0), figures.scale("y", "symlog", linthresh=1e-3))
    return _lag_artifact(source, measures, LAGS, "; sums of the terms over the number of all pairs", ".3g", *marks)


def _lag_artifact(
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
    rows = lagged(seeds, measures, lags)
    panels = [
        layer_panels(chosen(rows, measure=name), _epoch, "lag", LAG_STYLES, "l = {layer}", *marks, xlabel="epoch")
        for name in measures
    ]

    def ends(own: Sequence[Row], measure: str) -> str:
        means = list(mean_by(chosen(own, measure=measure), "moment").values())
        return f"{means[0]:{form}} to {means[-1]:{form}}"

    columns = {"l": "layer", "lag": "lag"}
    columns |= {header: lambda own, name=name: ends(own, name) for name, (_, header) in measures.items()}
    text = f"{len(seeds)} seeds{note}.\n\n{table(rows, ('layer', 'lag'), columns)}"
    labels = [label for label, _ in measures.values()]
    figure = grid(panels, (11, 6), ylabels=labels, legends=[(0, -1), (1, -1)])
    return Artifact(("measure", "layer", "lag", "moment", *BY_SEED), rows, text, figure)


# Figure S5.

GROUPS = {
    "within": Style("within", "", "-", 0.0),
    "between": Style("between", "", "--", 0.5),
    "within/well": Style("within, well", "", "-", 0.0),
    "within/poor": Style("within, poor", "", ":", 0.0),
    "between/well": Style("between, well", "", "--", 0.55),
    "between/poor": Style("between, poor", "", "-.", 0.55),
}
"""Groups of pairs: of one category or two, well or poorly classified."""

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
    figure = grid(panels, (12, 13), ylabels=labels, legends=[(number, 3) for number in range(4)])
    examples = int(np.sqrt(sum(arrays[f"first/output/1/{group}"].sum() for group in ("within", "between")) / 0.99))
    text = (
        f"One seed, all pairs of about {examples} training examples (the paper: 60,000); last is iteration "
        f"{arrays['iteration'][-1]}. Triangles are means.\n\n"
    )
    columns = {"phase": "phase", "signal": "signal", "l": "layer", "pairs": "group"}
    columns["mean similarity"] = lambda own: f"{own[0]['mean']:.4g}"
    return Artifact(tuple(rows[0]), rows, text + table(rows, ("phase", "signal", "layer", "group"), columns), figure)


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
        style = GROUPS[group]
        total = max(sum(row["pairs"] for row in own), 1)
        edges = [*(row["low"] for row in own), own[-1]["high"]]
        marks.append(figures.steps([row["pairs"] / total for row in own], edges, style))
        marks.append(points([own[0]["mean"]], [0], Style(None, "^", "", style.shade), markersize=6, clip_on=False))
    return marks


# Figure S6.


def figure_s6(source: Source) -> Artifact:
    """Size and angle to Bᵀ of the zero-degree term, and of the sum of all alignment terms."""
    parts = {"zero_degree": "zero-degree term", "alignment": "sum of the alignment terms"}
    panels = [[(part, measure, title) for measure in (NORM, ANGLE)] for part, title in parts.items()]
    return expansion_artifact(source, panels, (10, 7))


# Figure S7.

CASES = {"product": ("linear", "linear"), "gated": ("gated", "with gates of a ReLU")}
"""Stem of the arrays -> name of the case in the CSV file, and its title."""


def figure_s7(source: Source) -> Artifact:
    """The angle of products of random matrices by those of their factors."""
    [result] = source.chosen()
    arrays = result.arrays
    bins = len(arrays["counts"])
    rows = [
        {"case": name, "theta_1": (i + 0.5) * 180 / bins, "theta_2": (j + 0.5) * 180 / bins}
        | {what: float(arrays[f"{case}_{what}"][i, j]) for what in ("mean", "variance")}
        | {"draws": int(arrays["counts"][i, j])}
        for case, (name, _) in CASES.items()
        for i, j in np.ndindex(bins, bins)
    ]
    axes = {"xlabel": "θ₁ (degrees)", "ylabel": "θ₂ (degrees)"}
    place = {"origin": "lower", "extent": (0, 180, 0, 180), "aspect": "equal"}
    panels = [
        [
            panel(
                figures.image(arrays[f"{case}_{what}"].T, f"{what} of θ₃ ({unit})", **place),
                title=f"{title}: {what}",
                **axes,
            )
            for what, unit in (("mean", "degrees"), ("variance", "degrees²"))
        ]
        for case, (_, title) in CASES.items()
    ]
    shift, error = arrays["shift"]
    variances = [float(np.nanmean(arrays[f"{case}_variance"])) for case in CASES]
    text = (
        f"{int(arrays['counts'].sum())} draws. Mean of theta_3 in a bin with gates less that without, positive away "
        f"from 90 degrees, over all draws: {shift:+.3f} ± {error:.3f} degrees; mean variance within a bin: "
        f"{variances[0]:.1f} without, {variances[1]:.1f} with (square degrees)."
    )
    return Artifact(tuple(rows[0]), rows, text, grid(panels, (9, 7.4)))


# Figure S8.

UPDATED = range(len(LAYERS) - 1)
"""Layers whose updates are compared with those of backpropagation."""

SENSITIVITY_COLUMNS = (
    *("rule", "normalised", "gamma", "label_smoothing", "rate", "seed", "epochs", "test_error_percent"),
    *(f"update_angle_{layer}" for layer in UPDATED),
)


def figure_s8(source: Source) -> Artifact:
    """Final alignment of updates and test error by rate, normalisation and label smoothing."""
    rows = [
        {
            **cell.labels,
            "gamma": "" if cell.labels["gamma"] is None else cell.labels["gamma"],
            "seed": outcome.config.seed,
            "epochs": outcome.rows[-1]["epoch"],
            "test_error_percent": 100 * (1 - outcome.measure("top1", 0.1)),
            **{
                f"update_angle_{layer}": outcome.rows[-1].get(f"pseudogradient_angle/{LAYERS[layer]}", math.nan)
                for layer in UPDATED
            },
        }
        for cell, outcomes in source.outcomes()
        for outcome in outcomes
    ]

    def errors(own: Sequence[Row]) -> str:
        middle, low, high = median_and_range([row["test_error_percent"] for row in own])
        return f"{middle:.2f} ({low:.2f} to {high:.2f})"

    columns = {"rule": "rule", "γ": lambda own: None if own[0]["gamma"] == "" else own[0]["gamma"]}
    columns |= {"smoothing": "label_smoothing", "rate": "rate", "test error (%): median (range)": errors}
    columns |= {f"angle, l = {layer}": lambda own, layer=layer: _median_angle(own, layer) for layer in UPDATED}
    epochs = f"{rows[0]['epochs']:g}" if rows else "-"
    text = f"{len(rows)} runs of {epochs} epochs (the paper: 100), medians, smallest and largest.\n\n"
    text += table(rows, ("rule", "gamma", "label_smoothing", "rate"), columns)
    return Artifact(SENSITIVITY_COLUMNS, rows, text, _sensitivity_figure(rows))


def _median_angle(rows: Sequence[Row], layer: int) -> str:
    """Returns the median as text; a dash in backpropagation, where there is no angle."""
    middle = float(np.median([row[f"update_angle_{layer}"] for row in rows]))
    return "-" if math.isnan(middle) else f"{middle:.1f}"


def _sensitivity_figure(rows: Sequence[Row]) -> Any:
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
        for layer in UPDATED if feedback else ():
            style = Style(f"l = {layer}, rate {rate:g}", marker, "", LAYER_STYLES[layer].shade)
            angles.append(bars(own, f"update_angle_{layer}", aside + 0.16 * (layer - 1.5), style))
    names = [f"{'no WN' if gamma == '' else f'γ = {gamma:g}'}{', LS' if smooth else ''}" for gamma, smooth in groups]
    places = ticks(range(len(names)), names, log=False)
    upper = panel(*angles, places, ylabel="update of BP-TRW to that of BP (degrees)")
    axes = {"ylabel": "test error (%)", "xlabel": "weight normalisation (WN), label smoothing (LS)"}
    return grid([[upper], [panel(*errors, places, **axes)]], (11, 7), legends=[(0, 0), (1, 0)], share_x=True)


# Direct feedback alignment.


def figure_direct(source: Source) -> Artifact:
    """Direct feedback alignment: products of W to Fᵀ, W to Qᵀ, and the direct alignment terms."""
    [(_, results)] = source.results()
    titles = {"product_angle": "W(l) ... W(d-1) to Fᵀ", "weight_angle": "W to Qᵀ"}
    over_epochs = [row for name in titles for row in curves(results, name, 60, measure=[name])]
    by_order = terms(results, results[0].arrays["moment"].tolist(), measure=["term_angle"])
    axes = {"xlabel": "epoch", **ANGLES}
    above = [
        curve_panel(own, "epoch", "layer", LAYER_STYLES, RIGHT_ANGLE, title=titles[name], **axes)
        for (name,), own in grouped(over_epochs, "measure").items()
    ]
    figure = grid(
        [[*above, None, None], term_panels(by_order, "direct terms, l = {layer}")],
        (12, 6.4),
        ylabels=["angle (degrees)", "angle of T to Qᵀ (degrees)"],
        legends=[(0, 0), (1, -1)],
    )
    ends = [{"layer": layer} | {name: last_epoch(results, name, layer - 1) for name in titles} for layer in HIDDEN]
    columns = {"l": "layer", f"{titles['product_angle']}, last epoch (degrees)": "product_angle"}
    columns[titles["weight_angle"]] = "weight_angle"
    text = f"{len(results)} seeds, to iteration {int(results[0].arrays['iteration'][-1])}.\n\n"
    names = ("measure", "layer", "moment", "epoch", "order", *BY_SEED)
    return Artifact(names, [*over_epochs, *by_order], text + table(ends, ["layer"], columns), figure)
