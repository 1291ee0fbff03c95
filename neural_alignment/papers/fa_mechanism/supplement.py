"""Figures S1 to S8 of Rahmansetayesh et al."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from neural_alignment.jobs.pieces import Arrays, Pieces, Result
from neural_alignment.papers import figures
from neural_alignment.papers.fa_mechanism import figures as main
from neural_alignment.papers.fa_mechanism import tidy
from neural_alignment.papers.fa_mechanism.compute import LAGS
from neural_alignment.papers.fa_mechanism.figures import LAYER_STYLES, RIGHT_ANGLE, shaded
from neural_alignment.papers.fa_mechanism.runs import LAYERS, STEPS
from neural_alignment.papers.figures import Mark, Panel, Style, drawn, lines, panel, points
from neural_alignment.papers.registry import Source
from neural_alignment.papers.tables import chosen, grouped, table
from neural_alignment.reporting import Artifact, Row, Spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DRAWN = ("eigenvalue_ratio", "skew_ratio", "symmetric_angle", "angle")
"""Columns of a random transformation M in Figure S1."""

RATIO = "‖Bᵀ M$_{skew}$‖ / ‖Bᵀ M$_{sym}$‖"


def figure_s1(source: Source) -> Artifact:
    """The effect of the symmetric and the skew part of M on Bᵀ: of random M, and of M in the network."""
    [result], seeds = source.chosen(name="transformations"), source.chosen(shuffle=False)
    draws = result.arrays
    drawn_values = zip(*(draws[name].tolist() for name in DRAWN), strict=True)
    rows = [{"panel": "AB", **dict(zip(DRAWN, values, strict=True))} for values in drawn_values]
    ends = [seeds[0].arrays["moment"].tolist()[place] for place in (0, -1)]
    spectra, skews = _spectra(seeds, ends), tidy.lagged(seeds, ["skew_ratio"], [60], panel=["D"])
    styles = {
        (moment, lag): Style(f"k = {moment}, lag {lag}", "os"[lag == 60], "-:"[lag == 60], shade, moment == ends[0])
        for moment, shade in zip(ends, (0.0, 0.5), strict=True)
        for lag in LAGS[1:]
    }
    ranges = lines(skews, _epoch, "value", None, Style(None), figures.median_and_range, band=True)
    axes = {"xlabel": "epoch", "ylim": (0, 1.05 * max(row["value"] for row in skews))}
    panels = [
        [*_draw_panels(draws), *_spectrum_panels(spectra, styles)],
        figures.panels_by("layer", ranges, title="(D) skew part, lag 60, l = {}".format, **axes),
    ]
    layout = {"ylabels": ["angle of Bᵀ to Bᵀ M$_{sym}$ (degrees)", RATIO], "legends": [(0, 0), (0, 1)]}
    number = main.counted(seeds)
    layout["note"] = (
        f"(A, B) {len(draws['angle']):,} random M. (C, D) M of the network. (C) l = 2, means over {number}, shading: "
        f"one standard deviation. (D) medians over {number}, shading: smallest to largest."
    )
    cosine = np.cos(np.deg2rad(draws["symmetric_angle"])) / np.sqrt(1 + draws["skew_ratio"] ** 2)
    error = np.abs(np.degrees(np.arccos(cosine)) - draws["angle"]).max()
    text = (
        f"{len(draws['angle'])} random M of 50 x 50; B^T to B^T M_skew is 90 degrees to "
        f"{np.abs(draws['skew_angle'] - 90).max():.0e}; the whole: arccos(cos(symmetric) / sqrt(1 + ratio^2)) "
        f"within {error:.1f} degrees. Panels C and D: the network, {len(seeds)} seeds."
    )
    all_rows = [{key: row[key] for key in row if key != "measure"} for row in (*rows, *spectra, *skews)]
    columns = ("panel", *DRAWN, "layer", "moment", "lag", "number", "seed", "value")
    return drawn(all_rows, text, panels, (16, 7.4), columns, beside=[(0, 3)], **layout)


def _draw_panels(draws: Arrays) -> list[Panel]:
    """Returns panels A and B: angles of random transformations."""
    near, angles = draws["symmetric_angle"] < 60, np.linspace(0, 180, 181)

    def dots(x: str, y: str, which: Any, label: str, shade: float) -> Mark:
        return points(draws[x][which], draws[y][which], Style(label, ".", "", shade), markersize=3)

    first = (
        dots("eigenvalue_ratio", "symmetric_angle", slice(None), "random M", 0.5),
        points(np.cos(np.deg2rad(angles)), angles, Style("arccos", "")),
    )
    second = (
        dots("skew_ratio", "angle", near, "angle of Bᵀ to Bᵀ M$_{sym}$ below 60°", 0.0),
        dots("skew_ratio", "angle", ~near, "the same angle 60° or more", 0.6),
        RIGHT_ANGLE,
    )
    axes = {"title": "(A) symmetric part", "xlabel": "mean / root mean square of its eigenvalues", "ylim": (0, 180)}
    return [
        panel(*first, **axes),
        panel(*second, title="(B) skew part", xlabel=RATIO, ylabel="angle of Bᵀ to Bᵀ M (degrees)", ylim=(0, 180)),
    ]


def _spectrum_panels(rows: Sequence[Row], styles: Mapping[tuple[int, int], Style]) -> list[Panel]:
    """Returns panels C: both ends of the spectra, because the eigenvalues between them are nearly 0."""
    last = max(row["number"] for row in rows)
    limits = [0.0, *(row["value"] for row in rows)]
    axes = {"xlabel": "number, the largest first", "ylim": (1.05 * min(limits), 1.05 * max(limits))}
    axes["ylabel"] = "eigenvalue / largest magnitude"

    def part(first: int, title: str) -> Panel:
        own = [row for row in rows if first <= row["number"] < first + 10]
        return panel(shaded(own, "number", lambda row: (row["moment"], row["lag"]), styles), title=title, **axes)

    return [part(1, "(C) largest eigenvalues of M$_{sym}$"), part(last - 9, "(C) smallest eigenvalues of M$_{sym}$")]


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
    """Alignment terms with shuffled data at four iterations."""
    shuffled = source.chosen(shuffle=True)
    moments = tidy.moments_of(shuffled)
    rows = tidy.terms(shuffled, moments, shuffled=[1])
    shown = moments[:: max(len(moments) // 3, 1)]
    style = Style(None, "", "-", 0.0)
    panels = [
        main.layer_panels(
            shaded(chosen(rows, moment=moment), "order", None, style),
            RIGHT_ANGLE,
            first=moment == shown[0],
            xlabel="order o",
            ylim=(74, 96),
        )
        for moment in shown
    ]
    columns = {
        "l": "layer",
        "iteration k": "moment",
        "order 60": main.epoch_order,
        "mean of all others (degrees)": main.other_orders,
    }
    text = f"{len(shuffled)} seeds.\n\n{table(rows, ('layer', 'moment'), columns)}"
    labels = [f"k = {moment}\n{main.TERM_ANGLE}" for moment in shown]
    layout = {"ylabels": labels, "share_y": True, "note": main.mean_note(main.counted(shuffled))}
    return drawn(rows, text, panels, (11, 2.5 * len(shown) + 0.5), **layout)


LAG_STYLES = {
    1: Style("lag 1", "o", ":", 0.55),
    30: Style("lag 30", "s", "--", 0.35),
    60: Style("lag 60", "^", "-", 0.0),
}


def figure_s3(source: Source) -> Artifact:
    """Angles of outputs and errors to those of earlier iterations."""
    measures = {
        "output_angle": ("angle of outputs L(l-1)\nat k and k - lag (degrees)", "outputs, first to last (degrees)"),
        "error_angle": ("angle of errors δ(l+1)\nat k and k - lag (degrees)", "errors, first to last (degrees)"),
    }
    seeds = source.chosen(shuffle=False)
    rows = tidy.lagged(seeds, measures, (30, 60))
    axes = {"xlabel": "epoch", "ylim": (-3, 95)}
    panels = [
        main.layer_panels(
            shaded(chosen(rows, measure=name), _epoch, "lag", LAG_STYLES), first=name == "output_angle", **axes
        )
        for name in measures
    ]
    text = f"{len(seeds)} seeds.\n\n{_lag_table(rows, measures, '.1f')}"
    layout = {"ylabels": [label for label, _ in measures.values()], "beside": [(0, 3), (1, 3)], "share_y": True}
    layout["note"] = f"Lines: means over {main.counted(seeds)}. Shading: one standard deviation."
    return drawn(rows, text, panels, (12, 5.6), **layout)


def figure_s4(source: Source) -> Artifact:
    """Sums of the similarity terms within and between categories over training, and the sum of both."""
    measures = {name: (name, f"{name}, first to last") for name in ("within", "between")}
    seeds = source.chosen(shuffle=False)
    rows = tidy.lagged(seeds, measures, LAGS)
    within, between = (chosen(rows, measure=name) for name in measures)
    opposite = [{**row, "value": -row["value"]} for row in between]
    sums = [{**row, "value": row["value"] + other["value"]} for row, other in zip(within, between, strict=True)]
    log, signed = figures.scale("y", "log"), figures.scale("y", "symlog", linthresh=1e-4)
    drawings = ((within, [log]), (opposite, [log]), (sums, [signed, figures.level(0)]))
    panels = [
        main.layer_panels(
            lines(own, _epoch, "value", "lag", LAG_STYLES, figures.median_and_range, band=True),
            *marks,
            first=own is within,
            xlabel="epoch",
        )
        for own, marks in drawings
    ]
    text = f"{len(seeds)} seeds; sums of the terms over the number of all pairs.\n\n{_lag_table(rows, measures, '.3g')}"
    names = ("within categories", "−1 × between categories", "within plus between categories")
    labels = [f"{name}\nsum of similarity terms / all pairs" for name in names]
    layout = {"ylabels": labels, "beside": [(row, 3) for row in range(3)]}
    note = (
        "Similarity term of two examples of iterations k and k - lag: dot product of their errors δ(l+1) times that of "
        f"their outputs L(l-1), without unit. {main.median_note(main.counted(seeds))}"
    )
    return drawn(rows, text, panels, (13, 9.4), note=note, **layout)


def _lag_table(rows: Sequence[Row], measures: Mapping[str, tuple[str, str]], form: str) -> str:
    """Returns a table of lagged measures, first and last; `measures` maps a name to its label and its header."""

    def ends(own: Sequence[Row], measure: str) -> str:
        means = list(tidy.mean_by(chosen(own, measure=measure), "moment").values())
        return f"{means[0]:{form}} to {means[-1]:{form}}"

    columns = {"l": "layer", "lag": "lag"}
    columns |= {header: lambda own, name=name: ends(own, name) for name, (_, header) in measures.items()}
    return table(rows, ("layer", "lag"), columns)


SIGNALS = {"error": "errors δ(l+1)", "output": "outputs L(l-1)"}

QUALITY = (
    "A pair is well classified if both examples are among the 60 % of {} with the smallest output errors; all others "
    "are poorly classified."
)
"""Sentence about pairs after training, where {} is a set of examples (`analysis.similarity.well_classified`)."""

TRIANGLES = (
    f"Triangles: means of all pairs; open for well classified ones. {main.BINS}\n"
    "(D) Both axes are logarithmic, the x axis linear near 0."
)
"""Note below Figure S5, to which `QUALITY` belongs."""


def figure_s5(source: Source) -> Artifact:
    """Similarities of the signals of all pairs of data points, before and after training."""
    [(pieces, [result])] = source.read(Pieces)
    phases = ("first", "last")
    rows = [row for phase in phases for row in tidy.similarities(result.arrays, phase, main.GROUPS, phase=phase)]
    text = (
        f"One seed, all pairs of {pieces.pieces[0].arguments['examples']:,} training examples (the paper: 60,000), "
        f"also of each with itself; last is iteration {result.arrays['iteration'][-1]}. "
    )
    quality = QUALITY.format("all examples")
    columns = {"phase": "phase", "signal": "signal", "l": "layer", "pairs": "group"}
    columns["mean similarity"] = lambda own: f"{own[0]['mean']:.4g}"
    text += f"{quality}\n\n{table(rows, ('phase', 'signal', 'layer', 'group'), columns)}"
    letters = dict(zip(product(phases, SIGNALS), "ABDE", strict=True))
    panels, labels = _similarity_panels(rows, "phase", letters)
    layout = {"ylabels": labels, "beside": [(row, 3) for row in range(4)], "note": f"{TRIANGLES} {quality}"}
    return drawn(rows, text, panels, (14, 10.4), **layout)


def _similarity_panels(
    rows: Sequence[Row], by: str, letters: Mapping[tuple[Any, str], str]
) -> tuple[list[list[Panel]], list[str]]:
    """Returns a row of panels of histograms for each value of a column and signal, and the label of each row.

    The similarities of errors after training have a narrow peak, so both axes have a logarithmic scale.
    """
    panels, labels = [], []
    for (value, signal), letter in letters.items():
        own = [row for row in rows if (row[by], row["signal"]) == (value, signal)]
        peaked = signal == "error" and any("/" in row["group"] for row in own)
        axes = {"yscale": "log"} if peaked else {}
        marks = [figures.RowMark(own, draw) for draw in (main.draw_histograms, *([_widen_peak] if peaked else []))]
        panels.append(main.layer_panels(*marks, first=not panels, xlabel="similarity", **axes))
        when = f"{by} {value}" if by != "phase" else {"first": "before training", "last": "after training"}[value]
        labels.append(f"({letter}) {SIGNALS[signal]}\n{when}\n{main.PAIRS}")
    return panels, labels


def _widen_peak(axis: Axes, rows: Sequence[Row]) -> None:
    """Gives the x axis a logarithmic scale on both sides of 0, linear below a thousandth of the largest similarity."""
    largest = 10.0 ** math.floor(math.log10(max(abs(row[end]) for row in rows for end in ("low", "high"))))
    axis.set_xscale("symlog", linthresh=largest / 1000)
    axis.set_xticks([sign * size for size in (largest, largest / 100) for sign in (-1, 1)] + [0])
    axis.tick_params(axis="x", labelsize="small")


def figure_s5_norms(source: Source) -> Artifact:
    """Norms of the output errors of single data points over training."""
    [result] = source.chosen()
    epochs, norms = result.arrays["iteration"] / STEPS, result.arrays["error_norm"]
    rows = [
        {"example": example, "epoch": float(epoch), "norm": float(norm)}
        for example, own in enumerate(norms.T)
        for epoch, norm in zip(epochs, own, strict=True)
    ]
    curves = [points(epochs, each, Style(None, "", "-", 0.3), linewidth=0.4) for each in norms.T]
    middle = points(epochs, np.median(norms, axis=1), Style("median", "", "-", 0.0), linewidth=2.5)
    axes = {"xlabel": "epoch", "ylabel": "‖δ$_d$‖ of a data point d"}
    part = float(np.mean(norms[-1] > 0.2 * np.median(norms[0])))
    text = (
        f"One seed, {norms.shape[1]} data points. The median falls from {np.median(norms[0]):.2f} to "
        f"{np.median(norms[-1]):.3f}; {100 * part:.0f} % of the points end above a fifth of the median at the start."
    )
    return drawn(
        rows, text, [[panel(*curves, middle, **axes)]], (7, 4), beside=[(0, 0)], note="Thin lines: data points."
    )


def figure_s5_lags(source: Source) -> Artifact:
    """Similarities of the signals of examples in different iterations, early and late."""
    results = source.chosen()
    moments = sorted({int(name.split("/")[0]) for name in results[0].arrays})
    kinds = [*product(moments, LAGS)]
    by_seed = {
        result.seed: [
            row
            for moment, lag in kinds
            for row in tidy.similarities(result.arrays, f"{moment}/{lag}", main.GROUPS, moment=moment, lag=lag)
        ]
        for result in results
    }
    rows = [
        {"seed": seed, **{key: row[key] for key in ("moment", "lag", "signal", "layer", "group", "mean")}}
        for seed, own in by_seed.items()
        for [row, *_] in grouped(own, "moment", "lag", "signal", "layer", "group").values()
    ]
    first = chosen(by_seed[results[0].seed], lag=30)
    letters = dict(zip(product(moments, SIGNALS), "ABDE", strict=True))
    panels, labels = _similarity_panels(first, "moment", letters)
    labels = [label.replace("moment", "lag 30, k =") for label in labels]
    columns = {"iteration k": "moment", "signal": "signal", "l": "layer", "pairs": "group"}
    for lag in LAGS:
        columns[f"mean, lag {lag}"] = lambda own, lag=lag: format(
            Spread([row["mean"] for row in chosen(own, lag=lag)]), ".3g"
        )
    text = (
        f"{len(results)} seeds, all pairs of an example of batch k and one of batch k - lag. The figure shows lag 30 "
    )
    quality = QUALITY.format("their batches")
    text += f"and one seed. {quality}\n\n{table(rows, ('moment', 'signal', 'layer', 'group'), columns)}"
    layout = {"ylabels": labels, "beside": [(row, 3) for row in range(4)], "note": f"{TRIANGLES} {quality}"}
    return drawn(rows, text, panels, (14, 10.4), **layout)


def figure_s6(source: Source) -> Artifact:
    """Size and angle to Bᵀ of the zero-degree term, and of the sum of all alignment terms."""
    parts = {"zero_degree": "zero-degree term", "alignment": "sum of the alignment terms"}
    panels = [[(part, measure, title) for measure in (tidy.NORM, tidy.ANGLE)] for part, title in parts.items()]
    return main.expansion_figure(source, panels, (11, 7))


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
        both = np.stack([arrays[f"{each}_{what}"] for each in CASES])
        shades = {"vmin": np.nanmin(both), "vmax": np.nanmax(both)}  # The same in both cases, which are compared.
        drawing = figures.image(arrays[f"{case}_{what}"].T, f"{what} of θ₃ ({units[what]})", **place, **shades)
        return panel(drawing, title=f"{CASES[case][1]}: {what}", xlabel="θ₁ (degrees)", ylabel="θ₂ (degrees)")

    shift, error = arrays["shift"]
    variances = [float(np.nanmean(arrays[f"{case}_variance"])) for case in CASES]
    text = (
        f"{int(arrays['counts'].sum())} draws. Shift of theta_3 by the gates, positive away from 90 degrees, mean and "
        f"standard error over all draws: {shift:+.3f} ± {error:.3f} degrees; mean variance within a bin: "
        f"{variances[0]:.1f} without, {variances[1]:.1f} with (square degrees)."
    )
    panels = [[heatmap(case, what) for what in units] for case in CASES]
    note = f"{main.ANGLES}\n{int(arrays['counts'].sum()):,} random draws in bins of {180 / bins:g} degrees."
    return drawn(rows, text, panels, (9, 7.7), note=note)


UPDATED = {layer: f"update_angle_{layer}" for layer in range(len(LAYERS) - 1)}
"""Layers whose updates Figure S8 compares with those of backpropagation -> column of the angle."""

SENSITIVITY_COLUMNS = (
    *("rule", "normalised", "gamma", "label_smoothing", "rate", "seed", "epochs", "test_error_percent", "diverged"),
)


def figure_s8(source: Source) -> Artifact:
    """Final alignment of updates and test error by rate, normalisation and label smoothing."""
    rows = [
        {**labels, "gamma": "" if labels["gamma"] is None else labels["gamma"], **run, "epochs": outcome.config.epochs}
        | {name: last.get(f"pseudogradient_angle/{LAYERS[layer]}", math.nan) for layer, name in UPDATED.items()}
        | {"diverged": outcome.diverged}
        for labels, outcome, run in tidy.final_errors(source)
        for last in [{} if outcome.diverged else outcome.rows[-1]]
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
    diverged = sum(row["diverged"] for row in rows)
    text = f"{len(rows)} runs of {epochs} epochs (the paper: 100), medians, smallest and largest."
    text += f" {diverged} diverged and count as chance.\n\n" if diverged else "\n\n"
    text += table(rows, ("rule", "gamma", "label_smoothing", "rate"), columns)
    layout = {"beside": [(0, 0), (1, 0)], "share_x": True, "note": "Markers: medians. Bars: smallest to largest."}
    layout["ylabels"] = ["update of BP-TRW to that of BP (degrees)", "test error (%)"]
    return drawn(rows, text, _sensitivity_panels(rows), (13, 7), (*SENSITIVITY_COLUMNS, *UPDATED.values()), **layout)


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
            style = Style(f"l = {layer}, rate {rate:g}", "osD^"[layer], "", LAYER_STYLES[layer].shade, not slow)
            angles.append(bars(own, column, aside + 0.16 * (layer - 1.5), style))
    names = [f"{'no WN' if gamma == '' else f'γ = {gamma:g}'}{', LS' if smooth else ''}" for gamma, smooth in groups]
    places = figures.ticks(range(len(names)), names, log=False)
    xlabel = "weight normalisation (WN), label smoothing (LS)"
    return [[panel(*angles, places)], [panel(*errors, places, xlabel=xlabel)]]
