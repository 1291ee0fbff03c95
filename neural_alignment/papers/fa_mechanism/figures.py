"""Figures 1B and 2 to 7 of Rahmansetayesh et al."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from neural_alignment.papers.fa_mechanism.panels import (
    BY_SEED,
    LAYER_STYLES,
    chosen,
    computed,
    degrees,
    legend,
    line,
    moving_average,
    range_of,
    seed_rows,
    seeds_of,
    spread,
    stacked,
    thinned,
    trained,
)
from neural_alignment.papers.fa_mechanism.runs import CONDITIONS, EVERY, FRACTIONS, LAYERS, ORDERS, STEPS
from neural_alignment.papers.figures import Style
from neural_alignment.papers.pieces import Arrays
from neural_alignment.papers.plans import Outcome
from neural_alignment.papers.registry import Source
from neural_alignment.reporting import Artifact, Row, Spread, markdown, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HIDDEN = range(1, len(LAYERS))
"""Layers l that an error travels back into."""

# Figure 1B.

OPEN_LOOP_COLUMNS = ("condition", "rate", "run", "iteration", "angle_degrees")

OPEN_LOOP_STYLES = {
    "constant": Style("constant: autocorrelated", "o", "--", 0.3),
    "cross_correlated": Style("cross-correlated", "s", ":", 0.0),
    "neither": Style("neither", "^", "-", 0.55),
}

THINNED = 20
"""Iterations from one row of the CSV file to the next."""


def figure_1b(source: Source) -> Artifact:
    """The open loop: the angle of W_1 to B_1^T under imposed signals."""
    rows: list[Row] = []
    lines = []
    found = computed(source)
    rates = list(dict.fromkeys(labels["rate"] for labels, _ in found))
    figure = new_figure(4.2 * len(rates), 3.8)
    axes = dict(zip(rates, figure.subplots(1, len(rates), sharey=True, squeeze=False)[0], strict=True))
    for labels, results in found:
        for arrays in results:
            angles = arrays["angles"]
            xs = np.arange(angles.shape[1])
            line(axes[labels["rate"]], xs, angles, OPEN_LOOP_STYLES[labels["condition"]])
            kept = sorted({*xs[::THINNED], xs[-1]})
            rows += [
                {**labels, "run": run, "iteration": int(x), "angle_degrees": float(angles[run, x])}
                for run in range(len(angles))
                for x in kept
            ]
            ends = Spread([float(each) for each in angles[:, -1]])
            lines.append([OPEN_LOOP_STYLES[labels["condition"]].label, labels["rate"], len(angles), str(ends)])
    for rate, axis in axes.items():
        degrees(axis)
        axis.set(title=f"rate {rate:g}", xlabel="iteration")
    axes[rates[0]].set(ylabel="angle of W₁ to B₁ᵀ (degrees)")
    axes[rates[0]].legend(fontsize="small", loc="upper right", bbox_to_anchor=(1.0, 0.86))
    text = markdown(["signals", "rate", "runs", "angle at the end (degrees)"], lines)
    return Artifact(OPEN_LOOP_COLUMNS, rows, text, figure)


# Figure 2.

FROM = 60
"""Where axes of angles begin of which none is smaller, degrees."""

TERM_COLUMNS = ("shuffled", "layer", "moment", "order", *BY_SEED)


def term_panel(axis: Axes, results: Sequence[Arrays], layer: int, moments: Sequence[int], name: str) -> list[Row]:
    """Draws the angles of a layer's alignment terms by their order, at some iterations; returns its rows.

    Args:
        axis: where.
        results: observed training, a seed each.
        layer: l.
        moments: iterations.
        name: array of the angles.
    """
    rows: list[Row] = []
    there = list(results[0]["moment"])
    orders = np.arange(1, results[0][name].shape[-1] + 1)
    for number, moment in enumerate(moments):
        values = stacked(results, name)[:, there.index(moment), layer - 1]
        shade = 0.7 * number / max(len(moments) - 1, 1)
        style = Style(f"k = {moment}", "osD^vPX"[number], ("-", "--", "-.", ":")[number % 4], shade)
        line(axis, orders, values, style, markers=False)
        rows += seed_rows({"layer": layer, "moment": moment}, "order", orders, values, seeds_of(results))
    degrees(axis, low=FROM)
    return rows


def figure_2(source: Source) -> Artifact:
    """Alignment terms of every order without and with shuffled data; below, W and its updates in both cases."""
    figure = new_figure(11, 8)
    grid = figure.subplots(3, len(HIDDEN), sharey=True)
    rows: list[Row] = []
    lines = []
    results = {shuffle: chosen(source, shuffle=shuffle) for shuffle in (False, True)}
    moments = _shown(results[False][0]["moment"])
    for axes, (shuffle, seeds) in zip(grid, results.items(), strict=False):
        for layer, axis in zip(HIDDEN, axes, strict=True):
            own = term_panel(axis, seeds, layer, moments, "term_angle")
            rows += [{"shuffled": int(shuffle), **row} for row in own]
            axis.set(title=f"l = {layer}, {'shuffled' if shuffle else 'in file order'}", xlabel="order o")
            lines += [_term_line(shuffle, layer, moment, own) for moment in moments]
        axes[0].set(ylabel="angle of T to Bᵀ (degrees)")
        axes[-1].legend(fontsize="x-small")
    for layer, axis in zip(HIDDEN, grid[2], strict=True):
        weights_panel(axis, results, layer)
    grid[2][0].set(ylabel="angle to Bᵀ (degrees)")
    grid[2][-1].legend(fontsize="x-small")
    header = ["data", "l", "iteration k", "orders", "below 90°", "mean angle, order 60", "mean angle, all others"]
    first = f"{len(results[False])} seeds, shuffled {len(results[True])}; orders 1 to {ORDERS} at most."
    text = f"{first} {cost_text(results[False])}\n\n{markdown(header, lines)}"
    return Artifact(TERM_COLUMNS, rows, text, figure)


def cost_text(results: Sequence[Arrays]) -> str:
    """Returns what the alignment terms of a seed cost in all hidden layers."""
    memory, operations = (float(results[0][name].sum()) for name in ("memory", "operations"))
    return (
        f"The history of a seed takes {memory / 1e6:.3g} MB; its alignment terms, each by itself, take "
        f"{operations / 1e9:.3g} billion floating-point operations."
    )


def weights_panel(axis: Axes, results: dict[bool, list[Arrays]], layer: int) -> None:
    """Draws W and its updates against B^T over training, in file order and shuffled."""
    names = {"weight_angle": "W", "update_to_feedback": "update"}
    for shuffle, seeds in results.items():
        for number, (name, label) in enumerate(names.items()):
            values = moving_average(stacked(seeds, name)[..., layer - 1], 9)
            style = Style(f"{label}{', shuffled' if shuffle else ''}", "os"[number], "-:"[shuffle], 0.5 * number)
            line(axis, seeds[0]["iteration"] / STEPS, values, style)
    degrees(axis, low=FROM)
    axis.set(title=f"l = {layer}", xlabel="epoch")


def _shown(moments: np.ndarray) -> list[int]:
    """Returns the first moment, one in the middle and the last."""
    return [int(moments[0]), int(moments[len(moments) // 2]), int(moments[-1])]


def _term_line(shuffle: bool, layer: int, moment: int, rows: Sequence[Row]) -> list[Any]:
    values: dict[int, list[float]] = {}
    for row in rows:
        if row["moment"] == moment:
            values.setdefault(row["order"], []).append(row["value"])
    own = {order: float(np.mean(each)) for order, each in values.items()}
    others = [mean for order, mean in own.items() if order % STEPS]
    below = sum(mean < 90 for mean in own.values())
    again = f"{own[STEPS]:.1f}" if STEPS in own else "-"
    data = "shuffled" if shuffle else "in file order"
    return [data, layer, moment, len(own), below, again, f"{np.mean(others):.1f} ({range_of(others)})"]


# Figure 3.

EXPANSION_COLUMNS = ("layer", "part", "measure", "iteration", *BY_SEED)


def expansion_panel(axis: Axes, results: Sequence[Arrays], part: str, measure: str) -> list[Row]:
    """Draws of one part of the update its norm over the update's, or its angle to B^T, of all layers.

    Args:
        axis: where.
        results: expansions, a seed each.
        part: one of `compute.PARTS`.
        measure: `norm` or `angle`.
    """
    rows: list[Row] = []
    moments = results[0]["moment"]
    for layer in HIDDEN:
        values = stacked(results, f"{part}_{measure}")[..., layer - 1]
        if measure == "norm":
            values = values / stacked(results, "update_norm")[..., layer - 1]
        line(axis, moments, values, LAYER_STYLES[layer])
        labels = {"layer": layer, "part": part, "measure": "norm_ratio" if measure == "norm" else "angle_degrees"}
        rows += seed_rows(labels, "iteration", moments, values, seeds_of(results))
    if measure == "angle":
        degrees(axis)
        axis.set_ylim(0, 120)
    axis.set(xlabel="iteration k")
    return rows


def figure_3(source: Source) -> Artifact:
    """Remainder and zero-degree terms: their size beside the update, and their angle to B^T."""
    [(_, results)] = computed(source)
    figure = new_figure(11, 3.8)
    axes = figure.subplots(1, 3)
    rows = expansion_panel(axes[0], results, "remainder", "norm")
    axes[0].set(title="(A) size of the remainder", ylabel="‖R‖ / ‖ΔW‖", ylim=(0, None))
    rows += expansion_panel(axes[1], results, "remainder", "angle")
    axes[1].set(title="(B) remainder", ylabel="angle to Bᵀ (degrees)")
    rows += expansion_panel(axes[2], results, "zero_degree", "angle")
    axes[2].set(title="(C) zero-degree term", ylabel="angle to Bᵀ (degrees)")
    axes[0].legend(fontsize="small")
    return Artifact(EXPANSION_COLUMNS, rows, expansion_text(results), figure)


def expansion_text(results: Sequence[Arrays]) -> str:
    """Returns a table of all parts at the last iteration that is expanded."""
    lines = []
    for layer in HIDDEN:
        for part in ("alignment", "zero_degree", "remainder"):
            size, whole, angle = (
                stacked(results, name)[:, -1, layer - 1] for name in (f"{part}_norm", "update_norm", f"{part}_angle")
            )
            lines.append(
                [layer, part.replace("_", " "), *(str(Spread(list(map(float, v)))) for v in (size / whole, angle))]
            )
    last = int(results[0]["moment"][-1])
    first = f"{len(results)} seeds; expanded back to the initial weights, all orders, to iteration {last}."
    table = markdown(["l", "part", "norm over that of the update", "angle to Bᵀ (degrees)"], lines)
    return f"{first} {cost_text(results)} At iteration {last}:\n\n{table}"


# Figures 4 and 5.

DISTURBED_COLUMNS = ("disturbance", "layer", "kernel", "iteration", *BY_SEED)

DISTURBED = {
    "linear": ("(A) without nonlinearity", "moved by linear terms"),
    "feedback": ("(B) other backward weights", "moved by terms of B′, to B′ᵀ"),
    "errors": ("shuffled errors", "moved by terms of shuffled errors"),
}
"""Disturbance -> title, and what the disturbed kernel is called."""


def disturbed(source: Source) -> Artifact:
    """W, and kernels that disturbed alignment terms alone move, against the backward weights."""
    found = computed(source)
    figure = new_figure(11, 2.9 * len(found) + 0.4)
    grid = figure.subplots(len(found), len(HIDDEN), sharey=True, squeeze=False)
    rows: list[Row] = []
    lines = []
    for axes, (labels, results) in zip(grid, found, strict=True):
        how = labels["how"]
        title, name = DISTURBED[how]
        xs = np.arange(len(results[0]["weight_angle"]))
        kept = thinned(len(xs), 60)
        for layer, axis in zip(HIDDEN, axes, strict=True):
            ends = []
            for kernel, style in (
                ("weight", Style("W, to Bᵀ", "o", "-", 0.0)),
                ("disturbed", Style(name, "s", "--", 0.5)),
            ):
                values = stacked(results, f"{kernel}_angle")[..., layer - 1]
                line(axis, xs, values, style)
                own = {"disturbance": how, "layer": layer, "kernel": kernel}
                rows += seed_rows(own, "iteration", kept, values[:, kept], seeds_of(results))
                ends.append(str(Spread(list(map(float, values[:, -1])))))
            lines.append([title, layer, xs[-1], len(results), *ends])
            degrees(axis, low=FROM)
            axis.set(title=f"{title}, l = {layer}", xlabel="iteration")
        axes[0].set(ylabel="angle (degrees)")
        axes[-1].legend(fontsize="x-small")
    header = ["disturbance", "l", "iterations", "seeds", "W to Bᵀ at the end (degrees)", "disturbed kernel"]
    return Artifact(DISTURBED_COLUMNS, rows, markdown(header, lines), figure)


# Figure 6.

RELABELLED_COLUMNS = ("fraction", "seed", "epoch", "test_error_percent", *(f"angle_{layer}" for layer in HIDDEN))


def figure_6(source: Source) -> Artifact:
    """Alignment and test error with replaced labels; below, the alignment terms of those networks."""
    figure = new_figure(12, 6.4)
    grid = figure.subplots(2, 1 + len(HIDDEN))
    rows: list[Row] = []
    lines = []
    for cell, outcomes in trained(source):
        fraction = cell.labels["fraction"]
        style = FRACTIONS[fraction]
        own = [_epochs(fraction, outcome) for outcome in outcomes]
        rows += [row for run in own for row in run]
        epochs = [row["epoch"] for row in own[0]]
        for axis, name in zip(grid[0], RELABELLED_COLUMNS[3:], strict=True):
            line(axis, np.array(epochs), np.array([[row[name] for row in run] for run in own]), style)
        ends = [str(Spread([run[-1][name] for run in own])) for name in RELABELLED_COLUMNS[3:]]
        lines.append([style.label, len(own), *ends])
    grid[0][0].set(title="(B) error", ylabel="test error (%)", xlabel="epoch", ylim=(0, 100))
    for layer, axis in zip(HIDDEN, grid[0][1:], strict=True):
        degrees(axis, low=FROM)
        axis.set(title=f"(A) l = {layer}", xlabel="epoch")
    grid[0][1].set(ylabel="angle of W to Bᵀ (degrees)")
    grid[0][0].legend(fontsize="x-small")
    grid[1][0].set_axis_off()
    orders = []
    for labels, results in computed(source):
        style = FRACTIONS[labels["fraction"]]
        for layer, axis in zip(HIDDEN, grid[1][1:], strict=True):
            values = stacked(results, "term_angle")[:, -1, layer - 1]
            line(axis, np.arange(1, values.shape[1] + 1), values, style, markers=False)
            mean, _, _ = spread(values)
            others = [value for order, value in enumerate(mean, 1) if order % STEPS]
            orders.append([style.label, layer, f"{mean[STEPS - 1]:.1f}", f"{np.nanmean(others):.1f}"])
            degrees(axis, low=FROM)
            axis.set(title=f"terms, l = {layer}, k = {results[0]['moment'][-1]}", xlabel="order o")
    grid[1][1].set(ylabel="angle of T to Bᵀ (degrees)")
    header = ["labels", "seeds", "test error (%)", *(f"angle, l = {layer}" for layer in HIDDEN)]
    below = markdown(["labels", "l", "angle of order 60", "mean of all others (degrees)"], orders)
    return Artifact(RELABELLED_COLUMNS, rows, f"{markdown(header, lines)}\n\n{below}", figure)


def _epochs(fraction: float, outcome: Outcome) -> list[Row]:
    """Returns a row per evaluation of a run."""
    return [
        {
            "fraction": fraction,
            "seed": outcome.config.seed,
            "epoch": row["epoch"],
            "test_error_percent": 100 * (1 - row["top1"]),
            **{f"angle_{layer}": row[f"weight_angle/{LAYERS[layer]}"] for layer in HIDDEN},
        }
        for row in outcome.rows
    ]


# Figure 7.

ERROR_COLUMNS = ("rule", "normalised", "rate", "seed", "test_error_percent")


def figure_7_errors(source: Source) -> Artifact:
    """Test error after training, a line per run, ours beside that of the published code."""
    rows: list[Row] = []
    lines = []
    figure = new_figure(7, 3.8)
    axis = figure.subplots()
    for place, (cell, outcomes) in enumerate(trained(source)):
        condition = CONDITIONS[cell.labels["condition"]]
        errors = [100 * (1 - outcome.measure("top1", 0.1)) for outcome in outcomes]
        rows += [
            {
                "rule": condition.rule,
                "normalised": condition.normalised,
                "rate": outcome.config.optimization.forward.learning_rate,
                "seed": outcome.config.seed,
                "test_error_percent": error,
            }
            for outcome, error in zip(outcomes, errors, strict=True)
        ]
        axis.plot([place] * len(errors), errors, "o", color="0.6", markersize=3)
        ours = Spread(errors)
        axis.errorbar(
            [place + 0.15], [ours.mean], yerr=[ours.deviation], **{**condition.style.options(), "label": None}
        )
        published = "-"
        if condition.published:
            mean, deviation = condition.published
            published = f"{mean:.2f}" + ("" if np.isnan(deviation) else f" ± {deviation:.2f}")
            axis.plot([place - 0.15], [mean], "_", color="black", markersize=14)
        lines.append([condition.style.label, len(errors), str(ours), published, *_spikes(outcomes)])
    axis.set_xticks(range(len(CONDITIONS)), [each.style.label.replace(", ", ",\n") for each in CONDITIONS.values()])
    axis.tick_params(axis="x", labelsize="small")
    axis.set(ylabel="test error after training (%)", xlabel="rule (bar: published code; dots: runs)", ylim=(0, None))
    header = ["rule", "seeds", "test error (%)", "published code", "seeds with a spike above 30 %", "highest, median"]
    return Artifact(ERROR_COLUMNS, rows, markdown(header, lines), figure)


SETTLED = 30
"""Epochs after which an error above 30 % is called a spike."""


def _spikes(outcomes: Sequence[Outcome]) -> list[str]:
    """Returns how many seeds have a spike, and the median over seeds of the highest error after `SETTLED` epochs."""
    highest = [
        max((100 * (1 - row["top1"]) for row in outcome.rows if row["epoch"] > SETTLED), default=float("nan"))
        for outcome in outcomes
    ]
    return (
        [f"{sum(each > 30 for each in highest)} of {len(highest)}", f"{np.median(highest):.1f} %"]
        if highest
        else ["-", "-"]
    )


CURVE_COLUMNS = ("panel", "condition", "layer", "epoch", "x", "y", *BY_SEED)


def figure_7(source: Source) -> Artifact:
    """Angles of W and of its updates, norms, test errors, and the paths of training in a plane."""
    figure = new_figure(13, 8)
    grid = figure.subplots(2, 3)
    rows = [
        *_observed_panel(grid[0][0], source, "A", "weight_angle", HIDDEN),
        *_observed_panel(grid[0][1], source, "B", "update_angle", range(len(LAYERS))),
        *_plane_panel(grid[0][2], source, "C", ("bp", "bp_trw")),
        *_observed_panel(grid[1][0], source, "D", "norm", range(len(LAYERS))),
        *_errors_panel(grid[1][1], source),
        *_plane_panel(grid[1][2], source, "F", ("bp_trw", "bp_trw_wb")),
    ]
    grid[0][0].set(title="(A) W to Bᵀ", ylabel="angle (degrees)")
    grid[0][1].set(title="(B) update to that of BP", ylabel="angle (degrees)")
    grid[1][0].set(title="(D) norm of W", ylabel="‖W‖")
    for axis in grid[0][:2]:
        degrees(axis)
    legend(figure, grid[0][1])
    observed = {condition: chosen(source, condition=condition) for condition in ("bp_trw", "bp_trw_wb")}
    ends = [
        [
            CONDITIONS[condition].style.label,
            layer,
            *(str(_end(observed[condition], name, layer)) for name in ("weight_angle", "update_angle", "norm")),
        ]
        for condition in observed
        for layer in range(len(LAYERS))
    ]
    seeds = observed["bp_trw"]
    first = f"Panels A, B and D: {len(seeds)} seeds, to iteration {int(seeds[0]['iteration'][-1])}. At the end:"
    header = ["rule", "l", "W to Bᵀ (degrees)", "update to that of BP (degrees)", "norm of W"]
    return Artifact(CURVE_COLUMNS, rows, f"{first}\n\n{markdown(header, ends)}", figure)


def _end(results: Sequence[Arrays], name: str, layer: int) -> Spread:
    """Returns the last values of a measure, means over the last epoch that is observed."""
    column = layer - (name == "weight_angle")
    if column < 0:
        return Spread([])
    window = STEPS // EVERY + 1
    return Spread([float(each[name][-window:, column].mean()) for each in results])


def _observed_panel(axis: Axes, source: Source, panel: str, name: str, layers: range) -> list[Row]:
    """Draws a measure of all layers; normalised weights are the light dashed lines without markers."""
    rows: list[Row] = []
    for condition in ("bp_trw", "bp_trw_wb"):
        results = chosen(source, condition=condition)
        epochs = results[0]["iteration"] / STEPS
        kept = thinned(len(epochs), 30)
        normalised = CONDITIONS[condition].normalised != "none"
        for layer in layers:
            values = moving_average(stacked(results, name)[..., layer - layers[0]], 9)
            style = LAYER_STYLES[layer]
            if normalised:
                style = Style(f"{style.label}, normalised", "", (0, (1 + layer, 1)), 0.3 + 0.1 * layer)
            line(axis, epochs, values, style, markers=not normalised)
            labels = {"panel": panel, "condition": condition, "layer": layer}
            rows += seed_rows(labels, "epoch", epochs[kept].round(3), values[:, kept], seeds_of(results))
    axis.set(xlabel="epoch")
    return rows


def _errors_panel(axis: Axes, source: Source) -> list[Row]:
    """Draws test errors over training."""
    rows: list[Row] = []
    for cell, outcomes in trained(source):
        condition = cell.labels["condition"]
        curves = [_curve(outcome) for outcome in outcomes]
        length = min(len(errors) for _, errors in curves)
        line(
            axis,
            curves[0][0][:length],
            np.array([errors[:length] for _, errors in curves]),
            CONDITIONS[condition].style,
        )
        for outcome, (epochs, errors) in zip(outcomes, curves, strict=True):
            labels = {"panel": "E", "condition": condition}
            rows += seed_rows(labels, "epoch", epochs, errors[None], [outcome.config.seed])
    axis.set_yscale("log")
    axis.set(title="(E) test error", xlabel="epoch", ylabel="test error (%)")
    axis.legend(fontsize="x-small")
    return rows


def _curve(outcome: Outcome) -> tuple[np.ndarray, np.ndarray]:
    """Returns the epochs that a run was evaluated after, and its test errors there, percent."""
    rows = [row for row in outcome.rows if row["epoch"] > 0]
    return np.array([row["epoch"] for row in rows]), np.array([100 * (1 - row["top1"]) for row in rows])


def _plane_panel(axis: Axes, source: Source, panel: str, conditions: tuple[str, str]) -> list[Row]:
    """Draws two paths in the plane of their principal components, over the error in that plane."""
    [arrays] = chosen(source, paths=conditions)
    shades = axis.contourf(
        arrays["first_axis"], arrays["second_axis"], arrays["heights"], levels=12, cmap="Greys", alpha=0.6
    )
    axis.figure.colorbar(shades, ax=axis, label="‖E‖ / 2")
    rows: list[Row] = []
    for condition, path in zip(conditions, arrays["paths"], strict=True):
        style = CONDITIONS[condition].style
        axis.plot(*path.T, color="black", linestyle="-" if condition == conditions[0] else "--", label=style.label)
        axis.plot(*path[-1], marker="*", color="black", markersize=9)
        labels = {"panel": panel, "condition": condition, "seed": int(arrays["seed"])}
        rows += [{**labels, "x": float(x), "y": float(y)} for x, y in path]
    for name, shade in (("true", "0.0"), ("feedback_directions", "0.5")):
        units = arrays[name] / np.linalg.norm(arrays[name], axis=1, keepdims=True)
        axis.quiver(*arrays["places"].T, *units.T, color=shade, width=0.006, scale=14)
    axis.plot(*arrays["feedback"], marker="X", color="black", linestyle="none", label="B in place of W")
    first, second = 100 * arrays["explained"]
    axis.set(title=f"({panel}) paths", xlabel=f"PC 1 ({first:.0f} %)", ylabel=f"PC 2 ({second:.0f} %)")
    axis.legend(fontsize="x-small")
    return rows
