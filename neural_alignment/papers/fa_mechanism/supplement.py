"""Figures S1 to S8 of Rahmansetayesh et al., and one of direct feedback alignment, which the paper has no figure of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from neural_alignment.papers.fa_mechanism.compute import LAGS
from neural_alignment.papers.fa_mechanism.figures import (
    EXPANSION_COLUMNS,
    HIDDEN,
    TERM_COLUMNS,
    expansion_panel,
    expansion_text,
    term_panel,
    weights_panel,
)
from neural_alignment.papers.fa_mechanism.panels import (
    BY_SEED,
    LAYER_STYLES,
    chosen,
    computed,
    degrees,
    line,
    moving_average,
    seed_rows,
    seeds_of,
    spread,
    stacked,
    thinned,
)
from neural_alignment.papers.fa_mechanism.runs import EVERY, LAYERS, STEPS
from neural_alignment.papers.figures import Style
from neural_alignment.papers.pieces import Arrays
from neural_alignment.papers.plans import Outcome
from neural_alignment.papers.registry import Source
from neural_alignment.reporting import Artifact, Row, Spread, markdown, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = np.ndarray

LAG_STYLES = {
    1: Style("lag 1", "o", ":", 0.55),
    30: Style("lag 30", "s", "--", 0.35),
    60: Style("lag 60", "^", "-", 0.0),
}

# Figure S1.

TRANSFORMATION_COLUMNS = (
    *("panel", "eigenvalue_ratio", "skew_ratio", "symmetric_angle", "angle"),
    *("layer", "moment", "lag", "number", *BY_SEED),
)


def figure_s1(source: Source) -> Artifact:
    """What M's symmetric and skew parts do to B^T: of random M, and of M in the network."""
    [draws] = chosen(source, name="transformations")
    seeds = chosen(source, shuffle=False)
    figure = new_figure(10.5, 7)
    (first, second), (third, fourth) = figure.subplots(2, 2)
    grid = np.linspace(-1, 1, 101)
    first.plot(draws["eigenvalue_ratio"], draws["symmetric_angle"], ".", color="0.5", markersize=3, label="random M")
    first.plot(grid, np.degrees(np.arccos(grid)), color="black", linewidth=1, label="arccos")
    first.set(title="(A) symmetric part", xlabel="mean / root mean square of its eigenvalues")
    first.set(ylabel="angle of Bᵀ to Bᵀ M_sym (degrees)", ylim=(0, 180))
    first.legend(fontsize="small")
    near = draws["symmetric_angle"] < 60
    for chosen_, shade, label in ((near, "0.0", "M_sym below 60°"), (~near, "0.6", "M_sym above")):
        second.plot(
            *(draws[name][chosen_] for name in ("skew_ratio", "angle")), ".", color=shade, markersize=3, label=label
        )
    second.axhline(90, color="0.6", linewidth=0.7, linestyle=(0, (1, 3)))
    second.set(title="(B) skew part", xlabel="‖Bᵀ M_skew‖ / ‖Bᵀ M_sym‖", ylabel="angle of Bᵀ to Bᵀ M (degrees)")
    second.legend(fontsize="small")
    names = ("eigenvalue_ratio", "skew_ratio", "symmetric_angle", "angle")
    rows: list[Row] = [
        {"panel": "AB", **{name: float(draws[name][draw]) for name in names}} for draw in range(0, len(near), 3)
    ]
    rows += _spectra(third, seeds)
    rows += _skews(fourth, seeds)
    cosine = np.cos(np.deg2rad(draws["symmetric_angle"])) / np.sqrt(1 + draws["skew_ratio"] ** 2)
    error = np.abs(np.degrees(np.arccos(cosine)) - draws["angle"]).max()
    text = (
        f"{len(near)} random M of 50 x 50; B^T to B^T M_skew is 90 degrees to "
        f"{np.abs(draws['skew_angle'] - 90).max():.0e}; the whole: arccos(cos(symmetric) / sqrt(1 + ratio^2)) "
        f"within {error:.1f} degrees. Panels C and D: the network, {len(seeds)} seeds."
    )
    return Artifact(TRANSFORMATION_COLUMNS, rows, text, figure)


def _spectra(axis: Axes, results: Sequence[Arrays]) -> list[Row]:
    """Draws the eigenvalues of M_sym in the network at the first and the last moment."""
    rows: list[Row] = []
    layer, moments = 2, results[0]["moment"]
    for number, moment in enumerate((0, len(moments) - 1)):
        for lag in LAGS[1:]:
            values = stacked(results, "eigenvalues")[:, moment, layer - 1, LAGS.index(lag)][:, ::-1]
            values = values / np.abs(values).max(axis=1, keepdims=True)
            style = Style(
                f"k = {moments[moment]}, lag {lag}", "osD^"[2 * number + (lag == 60)], ("-", ":")[number], 0.3
            )
            ranks = np.arange(1, values.shape[1] + 1)
            line(axis, ranks, values, style)
            labels = {"panel": "C", "layer": layer, "moment": int(moments[moment]), "lag": lag}
            rows += seed_rows(labels, "number", ranks, values, seeds_of(results))
    axis.set(title=f"(C) eigenvalues of M_sym in the network, l = {layer}", xlabel="number, the largest first")
    axis.set(ylabel="eigenvalue / largest magnitude")
    axis.legend(fontsize="small")
    return rows


def _skews(axis: Axes, results: Sequence[Arrays]) -> list[Row]:
    """Draws how skew M is in the network, by layer."""
    rows: list[Row] = []
    moments = results[0]["moment"]
    for layer in HIDDEN:
        values = stacked(results, "skew_ratio")[:, :, layer - 1, LAGS.index(60)]
        line(axis, moments / STEPS, values, LAYER_STYLES[layer])
        rows += seed_rows({"panel": "D", "layer": layer, "lag": 60}, "moment", moments, values, seeds_of(results))
    axis.set(title="(D) skew part in the network, lag 60", xlabel="epoch", ylabel="‖Bᵀ M_skew‖ / ‖Bᵀ M_sym‖")
    axis.legend(fontsize="small")
    return rows


# Figure S2.


def figure_s2(source: Source) -> Artifact:
    """Alignment terms with shuffled data at many iterations; W and its updates with and without."""
    figure = new_figure(12, 6)
    grid = figure.subplots(2, len(HIDDEN), sharey=True)
    results = {shuffle: chosen(source, shuffle=shuffle) for shuffle in (False, True)}
    shuffled = results[True]
    moments = [int(each) for each in shuffled[0]["moment"]]
    rows: list[Row] = []
    for layer, upper, lower in zip(HIDDEN, *grid, strict=True):
        rows += [{"shuffled": 1, **row} for row in term_panel(upper, shuffled, layer, moments, "term_angle")]
        upper.set(title=f"l = {layer}, shuffled", xlabel="order o")
        weights_panel(lower, results, layer)
    grid[0][0].set(ylabel="angle of T to Bᵀ (degrees)")
    grid[1][0].set(ylabel="angle to Bᵀ (degrees)")
    for axis in grid[:, -1]:
        axis.legend(fontsize="xx-small")
    lines = [
        [layer, name, *(str(_late(seeds, name, layer)) for seeds in results.values())]
        for layer in HIDDEN
        for name in ("weight_angle", "update_to_feedback")
    ]
    header = ["l", "angle to Bᵀ (degrees), last epoch", "in file order", "shuffled"]
    return Artifact(TERM_COLUMNS, rows, f"{len(shuffled)} seeds.\n\n{markdown(header, lines)}", figure)


def _late(results: Sequence[Arrays], name: str, layer: int) -> Spread:
    window = STEPS // EVERY + 1
    return Spread([float(each[name][-window:, layer - 1].mean()) for each in results])


# Figures S3 and S4.

LAG_COLUMNS = ("measure", "layer", "lag", "moment", *BY_SEED)


def _lag_figure(source: Source, names: dict[str, str], lags: Sequence[int]) -> tuple[Any, list[Row], list[Arrays]]:
    """Draws measures of lagged signals over training: a row of panels each, a panel per layer."""
    seeds = chosen(source, shuffle=False)
    figure = new_figure(11, 3 * len(names))
    grid = figure.subplots(len(names), len(HIDDEN), squeeze=False)
    rows: list[Row] = []
    moments = seeds[0]["moment"]
    for axes, (name, label) in zip(grid, names.items(), strict=True):
        for layer, axis in zip(HIDDEN, axes, strict=True):
            for lag in lags:
                values = stacked(seeds, name)[:, :, layer - 1, LAGS.index(lag)]
                line(axis, moments / STEPS, values, LAG_STYLES[lag])
                labels = {"measure": name, "layer": layer, "lag": lag}
                rows += seed_rows(labels, "moment", moments, values, seeds_of(seeds))
            axis.set(title=f"l = {layer}", xlabel="epoch")
        axes[0].set(ylabel=label)
        axes[-1].legend(fontsize="x-small")
    return figure, rows, seeds


def figure_s3(source: Source) -> Artifact:
    """Angles of outputs and errors to those of earlier iterations."""
    names = {
        "output_angle": "angle of L(l-1)[k] to [k-o] (degrees)",
        "error_angle": "angle of δ(l+1)[k] to [k-o] (degrees)",
    }
    figure, rows, seeds = _lag_figure(source, names, (30, 60))
    lines = [[layer, lag, *(_ends(seeds, name, layer, lag) for name in names)] for layer in HIDDEN for lag in (30, 60)]
    header = ["l", "lag", "outputs, first to last (degrees)", "errors, first to last (degrees)"]
    return Artifact(LAG_COLUMNS, rows, f"{len(seeds)} seeds.\n\n{markdown(header, lines)}", figure)


def figure_s4(source: Source) -> Artifact:
    """Sums of the similarity terms within and between categories over training."""
    names = {"within": "within categories", "between": "between categories"}
    figure, rows, seeds = _lag_figure(source, names, LAGS)
    for axis in figure.axes:
        axis.axhline(0, color="0.6", linewidth=0.7)
        axis.set_yscale("symlog", linthresh=1e-3)
    lines = [
        [layer, lag, *(_ends(seeds, name, layer, lag, "{:.3g}") for name in names)] for layer in HIDDEN for lag in LAGS
    ]
    header = ["l", "lag", "within, first to last", "between, first to last"]
    text = f"{len(seeds)} seeds; sums of the terms over the number of all pairs.\n\n{markdown(header, lines)}"
    return Artifact(LAG_COLUMNS, rows, text, figure)


def _ends(results: Sequence[Arrays], name: str, layer: int, lag: int, form: str = "{:.1f}") -> str:
    values, _, _ = spread(stacked(results, name)[:, :, layer - 1, LAGS.index(lag)])
    values = values[~np.isnan(values)]
    return f"{form.format(values[0])} to {form.format(values[-1])}"


# Figure S5.

SIMILARITY_COLUMNS = ("phase", "signal", "layer", "group", "low", "high", "pairs", "mean")

GROUPS = {
    "within": Style("within", "", "-", 0.0),
    "between": Style("between", "", "--", 0.5),
    "within/well": Style("within, well", "", "-", 0.0),
    "within/poor": Style("within, poor", "", ":", 0.0),
    "between/well": Style("between, well", "", "--", 0.55),
    "between/poor": Style("between, poor", "", "-.", 0.55),
}
"""Groups of pairs: of one category or two, well or poorly classified."""

SIGNAL_NAMES = {"error": "errors δ(l+1)", "output": "outputs L(l-1)"}


def figure_s5(source: Source) -> Artifact:
    """Similarities of the signals of all pairs of data points, at first and at last; norms of single errors."""
    [arrays] = [each for _, results in computed(source) for each in results]
    figure = new_figure(12, 13)
    grid = figure.subplots(5, len(HIDDEN))
    rows: list[Row] = []
    lines = []
    panels = [(phase, signal) for phase in ("first", "last") for signal in SIGNAL_NAMES]
    for axes, (phase, signal), letter in zip(grid, panels, "ABDE", strict=False):
        for layer, axis in zip(HIDDEN, axes, strict=True):
            own = _histograms(axis, arrays, phase, signal, layer)
            rows += own
            means = {row["group"]: row["mean"] for row in own}
            lines += [[phase, signal, layer, group, f"{mean:.4g}"] for group, mean in means.items()]
            axis.set(title=f"({letter}) l = {layer}, {phase}", xlabel="similarity")
            axis.set_yticks([])
        axes[0].set(ylabel=SIGNAL_NAMES[signal])
        axes[-1].legend(fontsize="xx-small")
    for axis in grid[4][1:]:
        axis.remove()
    norms = grid[4][0]
    norms.plot(arrays["iteration"] / STEPS, arrays["error_norm"], color="0.3", linewidth=0.4)
    norms.set(title="(C) single data points", xlabel="epoch", ylabel="‖δ_d‖")
    examples = int(np.sqrt(sum(arrays[f"first/output/1/{group}"].sum() for group in ("within", "between")) / 0.99))
    text = (
        f"One seed, all pairs of about {examples} training examples (the paper: 60,000); last is iteration "
        f"{arrays['iteration'][-1]}. Triangles are means.\n\n"
        + markdown(["phase", "signal", "l", "pairs", "mean similarity"], lines)
    )
    return Artifact(SIMILARITY_COLUMNS, rows, text, figure)


def _histograms(axis: Axes, arrays: Arrays, phase: str, signal: str, layer: int) -> list[Row]:
    rows: list[Row] = []
    stem = f"{phase}/{signal}/{layer}"
    edges = arrays[f"{stem}/edges"]
    for group, style in GROUPS.items():
        if f"{stem}/{group}" not in arrays:
            continue
        counts, mean = arrays[f"{stem}/{group}"], float(arrays[f"{stem}/{group}/mean"])
        axis.stairs(
            counts / max(counts.sum(), 1), edges, color=str(style.shade), linestyle=style.line, label=style.label
        )
        axis.plot([mean], [0], marker="^", color=str(style.shade), markersize=6, clip_on=False)
        labels = {"phase": phase, "signal": signal, "layer": layer, "group": group}
        rows += [
            {**labels, "low": float(low), "high": float(high), "pairs": int(count), "mean": mean}
            for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True)
        ]
    return rows


# Figure S6.


def figure_s6(source: Source) -> Artifact:
    """The zero-degree term beside the update: its size, and its angle to B^T; and those of all alignment terms."""
    [(_, results)] = computed(source)
    figure = new_figure(10, 7)
    grid = figure.subplots(2, 2)
    rows: list[Row] = []
    for axes, part in zip(grid, ("zero_degree", "alignment"), strict=True):
        name = {"zero_degree": "zero-degree term", "alignment": "sum of the alignment terms"}[part]
        for axis, measure in zip(axes, ("norm", "angle"), strict=True):
            rows += expansion_panel(axis, results, part, measure)
            axis.set(title=name, ylabel="norm / ‖ΔW‖" if measure == "norm" else "angle to Bᵀ (degrees)")
    grid[0][0].legend(fontsize="small")
    return Artifact(EXPANSION_COLUMNS, rows, expansion_text(results), figure)


# Figure S7.

PRODUCT_COLUMNS = ("case", "theta_1", "theta_2", "mean", "variance", "draws")


def figure_s7(source: Source) -> Artifact:
    """The angle of products of random matrices by those of their factors."""
    [arrays] = [each for _, results in computed(source) for each in results]
    figure = new_figure(9, 7.4)
    grid = figure.subplots(2, 2)
    bins = len(arrays["counts"])
    width = 180 / bins
    rows: list[Row] = []
    for axes, case in zip(grid, ("product", "gated"), strict=True):
        name = {"product": "linear", "gated": "with gates of a ReLU"}[case]
        for axis, what, unit in zip(axes, ("mean", "variance"), ("degrees", "degrees²"), strict=True):
            image = axis.imshow(
                arrays[f"{case}_{what}"].T, origin="lower", extent=(0, 180, 0, 180), cmap="Greys", aspect="equal"
            )
            figure.colorbar(image, ax=axis, label=f"{what} of θ₃ ({unit})", shrink=0.8)
            axis.set(title=f"{name}: {what}", xlabel="θ₁ (degrees)", ylabel="θ₂ (degrees)")
        rows += [
            {
                "case": {"product": "linear", "gated": "gated"}[case],
                "theta_1": (i + 0.5) * width,
                "theta_2": (j + 0.5) * width,
                "mean": float(arrays[f"{case}_mean"][i, j]),
                "variance": float(arrays[f"{case}_variance"][i, j]),
                "draws": int(arrays["counts"][i, j]),
            }
            for i in range(bins)
            for j in range(bins)
        ]
    draws = int(arrays["counts"].sum())
    shift, error = arrays["shift"]
    variances = [float(np.nanmean(arrays[f"{case}_variance"])) for case in ("product", "gated")]
    text = (
        f"{draws} draws. Mean of theta_3 in a bin with gates less that without, positive away from 90 degrees, over "
        f"all draws: {shift:+.3f} ± {error:.3f} degrees; mean variance within a bin: {variances[0]:.1f} without, "
        f"{variances[1]:.1f} with (square degrees)."
    )
    return Artifact(PRODUCT_COLUMNS, rows, text, figure)


# Figure S8.

SENSITIVITY_COLUMNS = (
    *("rule", "normalised", "gamma", "label_smoothing", "rate", "seed", "epochs", "test_error_percent"),
    *(f"update_angle_{layer}" for layer in range(len(LAYERS) - 1)),
)


def figure_s8(source: Source) -> Artifact:
    """Final alignment of updates and test error by rate, normalisation and label smoothing: a line per run."""
    rows: list[Row] = []
    lines = []
    groups: dict[tuple[Any, ...], list[list[Row]]] = {}
    for cell, outcomes in source.read():
        own = [_sensitive(cell.labels, outcome) for outcome in outcomes]
        rows += own
        if own:
            groups.setdefault(tuple(cell.labels[name] for name in ("gamma", "label_smoothing")), []).append(own)
            errors = [row["test_error_percent"] for row in own]
            angles = [_degrees([row[f"update_angle_{layer}"] for row in own]) for layer in range(4)]
            labels = [cell.labels[name] for name in ("rule", "gamma", "label_smoothing", "rate")]
            lines.append([*labels, f"{np.median(errors):.2f} ({min(errors):.2f} to {max(errors):.2f})", *angles])
    figure = new_figure(11, 7)
    upper, lower = figure.subplots(2, 1, sharex=True)
    for place, runs in enumerate(groups.values()):
        for own in runs:
            _sensitivity_marks(upper, lower, place, own)
    names = [
        f"{'no WN' if gamma is None else f'γ = {gamma:g}'}{', LS' if smoothing else ''}" for gamma, smoothing in groups
    ]
    lower.set_xticks(range(len(groups)), names)
    lower.set(ylabel="test error (%)", xlabel="weight normalisation (WN), label smoothing (LS)")
    upper.set(xlabel="", ylabel="update of BP-TRW to that of BP (degrees)")
    upper.legend(*_once(upper), fontsize="x-small", ncols=4)
    lower.legend(*_once(lower), fontsize="x-small", ncols=4)
    header = [
        "rule",
        "γ",
        "smoothing",
        "rate",
        "test error (%): median (range)",
        *(f"angle, l = {n}" for n in range(4)),
    ]
    epochs = f"{rows[0]['epochs']:g}" if rows else "-"
    text = f"{len(rows)} runs of {epochs} epochs (the paper: 100), medians, smallest and largest."
    return Artifact(SENSITIVITY_COLUMNS, rows, f"{text}\n\n{markdown(header, lines)}", figure)


def _degrees(angles: Sequence[float]) -> str:
    """Returns the median for a reader; a dash where there is none, as in backpropagation."""
    middle = float(np.median(angles))
    return "-" if math.isnan(middle) else f"{middle:.1f}"


def _sensitive(labels: dict[str, Any], outcome: Outcome) -> Row:
    last = outcome.rows[-1]
    angles = {n: last.get(f"pseudogradient_angle/{LAYERS[n]}", float("nan")) for n in range(len(LAYERS) - 1)}
    return {
        **labels,
        "gamma": "" if labels["gamma"] is None else labels["gamma"],
        "seed": outcome.config.seed,
        "epochs": last["epoch"],
        "test_error_percent": 100 * (1 - outcome.measure("top1", 0.1)),
        **{f"update_angle_{n}": angle for n, angle in angles.items()},
    }


def _sensitivity_marks(upper: Axes, lower: Axes, place: int, own: Sequence[Row]) -> None:
    """Draws medians and ranges of one condition."""
    rule, rate = own[0]["rule"], own[0]["rate"]
    slow = rate < 4e-4
    shift = 0.12 * (2 * (rule == "bp_trw") - 1) + 0.05 * (2 * slow - 1)

    def mark(axis: Axes, where: float, name: str, **options: Any) -> None:
        values = [row[name] for row in own]
        middle = float(np.median(values))
        bars = [[middle - min(values)], [max(values) - middle]]
        axis.errorbar([where], [middle], yerr=bars, linestyle="none", capsize=2.5, markersize=5, **options)

    label = f"{rule.upper().replace('_', '-')}, rate {rate:g}"
    marker = "^" if slow else "o"
    mark(lower, place + shift, "test_error_percent", marker=marker, color="0.5" if rule == "bp" else "0.0", label=label)
    if rule == "bp_trw":
        for layer in range(len(LAYERS) - 1):
            style = LAYER_STYLES[layer]
            where = place + 0.16 * (layer - 1.5) + 0.05 * slow
            mark(upper, where, f"update_angle_{layer}", marker=marker, color=str(style.shade), label=style.label)


def _once(axis: Axes) -> tuple[list[Any], list[str]]:
    """Returns handles and labels of a legend, each label once."""
    found = dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
    return list(found.values()), list(found)


# Direct feedback alignment.

DIRECT_COLUMNS = ("measure", "layer", "moment", "epoch", "order", *BY_SEED)


def figure_direct(source: Source) -> Artifact:
    """Direct feedback alignment: products of W to F^T, W to Q^T, and the direct alignment terms."""
    [(_, results)] = computed(source)
    figure = new_figure(12, 6.4)
    grid = figure.subplots(2, 4)
    rows: list[Row] = []
    epochs = results[0]["iteration"] / STEPS
    kept = thinned(len(epochs), 60)
    for axis, (name, title) in zip(
        grid[0], {"product_angle": "W(l) ... W(d-1) to Fᵀ", "weight_angle": "W to Qᵀ"}.items(), strict=False
    ):
        for layer in HIDDEN:
            values = moving_average(stacked(results, name)[..., layer - 1], 9)
            line(axis, epochs, values, LAYER_STYLES[layer])
            labels = {"measure": name, "layer": layer}
            rows += seed_rows(labels, "epoch", epochs[kept].round(3), values[:, kept], seeds_of(results))
        degrees(axis)
        axis.set(title=title, xlabel="epoch")
    grid[0][0].set(ylabel="angle (degrees)")
    grid[0][0].legend(fontsize="x-small")
    for axis in grid[0][2:]:
        axis.remove()
    moments = [int(each) for each in results[0]["moment"]]
    for layer, axis in zip(HIDDEN, grid[1], strict=True):
        own = term_panel(axis, results, layer, moments, "term_angle")
        rows += [{"measure": "term_angle", **row} for row in own]
        axis.set(title=f"direct terms, l = {layer}", xlabel="order o")
    grid[1][0].set(ylabel="angle of T to Qᵀ (degrees)")
    grid[1][-1].legend(fontsize="x-small")
    lines = [
        [layer, *(str(_late(results, name, layer)) for name in ("product_angle", "weight_angle"))] for layer in HIDDEN
    ]
    header = ["l", "W(l) ... W(d-1) to Fᵀ, last epoch (degrees)", "W to Qᵀ"]
    text = f"{len(results)} seeds, to iteration {int(results[0]['iteration'][-1])}.\n\n{markdown(header, lines)}"
    return Artifact(DIRECT_COLUMNS, rows, text, figure)
