"""Figures 2, 3, 5, S1, S3, S4 and S5 of Kunin et al. 2020."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from neural_alignment.alignments import primitives
from neural_alignment.papers.plans import Cell, Outcome
from neural_alignment.papers.registry import Source
from neural_alignment.papers.two_routes.runs import CHANCE, MODELS, RULES
from neural_alignment.papers.two_routes.tables import RUN_COLUMNS, percent, run_rows
from neural_alignment.reporting import Artifact, Row, Spread, markdown, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

POINTS = 1000
"""Weights per scatter plot, evenly spaced through the kernel."""

# Figure 2.

SCATTERED = {"stem": "first convolution", "group2_block1_conv1": "a middle convolution", "dense": "dense layer"}
"""Layers of Figure 2 d to f."""

FIGURE_2_COLUMNS = ("panel", "decay", "layer", "step", "forward", "backward", "forward_flow", "backward_flow")


def symmetrised_flow(forward: np.ndarray, backward: np.ndarray, decay: float, x: float = 1.0) -> np.ndarray:
    """Returns the symmetrised gradient flow of weight mirror with scalar weights, through the library's primitives.

    d(w, b)/dt = -grad (P_amp + decay (P_decay(b) + P_decay(w))): weight decay on both weights, alpha = 1 (equation 1,
    Appendix D.1). It is -A (w, b) with A = [[decay, -x^2], [-x^2, decay]].

    Args:
        forward: w, any shape.
        backward: b, the same shape.
        decay: lambda_WM.
        x: the layer's scalar input.

    Returns:
        `(2, *shape)`: dw/dt and db/dt.
    """
    points = tf.stack([tf.constant(values, tf.float64) for values in (forward, backward)])
    with tf.GradientTape() as tape:
        tape.watch(points)
        w, b = (tf.reshape(values, [-1, 1]) for values in tf.unstack(points))
        # The points are a batch, over which amp is a mean; decay is a sum over kernels.
        amp = primitives.amp(b * x, w * x) * tf.cast(tf.size(w), tf.float64)
        regulariser = amp + decay * (primitives.decay(b) + primitives.decay(w))
    return -tape.gradient(regulariser, points).numpy()


def figure_2(source: Source) -> Artifact:
    """The flow of weight mirror in its three regimes, and W against B of three layers of a run of weight mirror."""
    from neural_alignment.analysis.dynamics import FIGURE_2_DECAYS

    figure = new_figure(10, 6)
    axes = figure.subplots(2, 3)
    rows: list[Row] = []
    for panel, axis, (name, decay) in zip("abc", axes[0], FIGURE_2_DECAYS.items(), strict=True):
        rows += _flow_panel(axis, panel, decay, name)
    [(_, outcomes)] = source.read()
    kept = _kernels(outcomes)
    for panel, axis, (layer, name) in zip("def", axes[1], SCATTERED.items(), strict=True):
        if kept:
            step = max(kept)
            rows += [{"panel": panel, **row} for row in _scatter(axis, kept[step], layer, step)]
        axis.set(title=f"({panel}) {name}" if kept else f"({panel}) {name}: not yet run")
        axis.set(xlabel="forward weight", ylabel="backward weight")
    text = "Panels a to c: -gradient of the primitives. Panels d to f: "
    text += f"ResNet-18, weight mirror, step {max(kept)}." if kept else "no run with kernels kept."
    return Artifact(FIGURE_2_COLUMNS, rows, text, figure)


def _flow_panel(axis: Axes, panel: str, decay: float, name: str) -> list[Row]:
    """Draws one flow field; returns its points."""
    grid = np.linspace(-1, 1, 13)
    forward, backward = np.meshgrid(grid, grid)
    d_forward, d_backward = symmetrised_flow(forward, backward, decay)
    size = np.hypot(d_forward, d_backward)
    unit = [np.divide(part, size, out=np.zeros_like(part), where=size > 0) for part in (d_forward, d_backward)]
    shades = axis.contourf(forward, backward, size, levels=8, cmap="Greys", vmax=2 * size.max())
    axis.quiver(forward, backward, *unit, color="black", scale=20)
    axis.figure.colorbar(shades, ax=axis, label="speed", shrink=0.7)
    axis.axline((0, 0), slope=1, linestyle=":", color="0.4")
    relation = {-1: "<", 0: "=", 1: ">"}[int(np.sign(decay - 1))]
    axis.set(title=f"({panel}) λ {relation} x²: {name}", xlabel="forward weight w", ylabel="backward weight b")
    axis.set_aspect("equal")
    points = zip(*(part.ravel() for part in (forward, backward, d_forward, d_backward)), strict=True)
    names = ("forward", "backward", "forward_flow", "backward_flow")
    return [{"panel": panel, "decay": decay, **dict(zip(names, map(float, point), strict=True))} for point in points]


def _kernels(outcomes: Sequence[Outcome]) -> dict[int, dict[str, Any]]:
    """Returns the kernels that the first seed has kept: step -> array name -> values."""
    return outcomes[0].kernels() if outcomes else {}


def _scatter(axis: Axes, kernels: dict[str, Any], layer: str, step: int) -> list[Row]:
    """Draws B against W of one layer at one step; returns the points."""
    if f"{layer}/forward" not in kernels:
        axis.set(title=f"{layer}: not kept")
        return []
    forward, backward = (np.ravel(kernels[f"{layer}/{which}"]) for which in ("forward", "backward"))
    chosen = np.linspace(0, forward.size - 1, min(POINTS, forward.size)).astype(int)
    axis.plot(forward[chosen], backward[chosen], ".", markersize=2, color="0.2")
    axis.axline((0, 0), slope=1, linestyle=":", color="0.5")
    pairs = zip(forward[chosen], backward[chosen], strict=True)
    return [{"layer": layer, "step": step, "forward": float(w), "backward": float(b)} for w, b in pairs]


# Figures 3 and S5.


def transfer(source: Source) -> Artifact:
    """Top-1 accuracy of fixed metaparameters on several networks; a run that diverged counts as a guess."""
    rows = run_rows(source, source.read())
    models = list(dict.fromkeys(cell.labels["model"] for cell in source.cells))
    rules = list(dict.fromkeys(cell.labels["rule"] for cell in source.cells))
    cells = {(cell.labels["model"], cell.labels["rule"]): cell for cell in source.cells}
    figure = new_figure(7.5, 4.5)
    axis = figure.subplots()
    lines = []
    for number, rule in enumerate(rules):
        spreads = [_spread(rows, model=model, rule=rule) for model in models]
        places = np.arange(len(models)) + 0.06 * (number - (len(rules) - 1) / 2)
        _error_bars(axis, places, spreads, rule)
        lines.append([RULES[rule].label, *(percent(rows, cells[model, rule], "top1") for model in models)])
    chance = 100 * CHANCE[source.profile][0]
    axis.axhline(chance, linestyle=(0, (1, 4)), color="0.6", label="chance")
    axis.set(xlabel="network", ylabel="validation top-1 (%)")
    axis.set_ylim(0, 1.05 * axis.get_ylim()[1])
    axis.set_xticks(range(len(models)), [MODELS[model] for model in models])
    figure.legend(loc="outside right", fontsize="small")
    return Artifact(RUN_COLUMNS, rows, markdown(["rule", *(MODELS[model] for model in models)], lines), figure)


def _spread(rows: Sequence[Row], **labels: Any) -> Spread:
    """Returns the top-1 accuracies in percent of the rows of some labels."""
    return Spread([100 * row["top1"] for row in rows if labels.items() <= row.items()])


def _error_bars(axis: Axes, places: Sequence[float], spreads: Sequence[Spread], rule: str) -> None:
    """Draws means and their standard errors over seeds, of those places where there are runs."""
    known = [(place, spread) for place, spread in zip(places, spreads, strict=True) if spread.known]
    if known:
        xs, spreads = zip(*known, strict=True)
        means, errors = [each.mean for each in spreads], [each.error for each in spreads]
        axis.errorbar(xs, means, yerr=errors, **RULES[rule].options())


# Figures 5 and S1.

NOISE_COLUMNS = ("rule", "noise_variance", "seed", "top1")


def noise(source: Source) -> Artifact:
    """Top-1 accuracy of ResNet-18 against the variance of noise on the updates; mean and its standard error."""
    return _noise(source, ("resnet18",), NOISE_COLUMNS)


def noise_deeper(source: Source) -> Artifact:
    """The same of deeper networks (Figure 5 b)."""
    models = tuple(dict.fromkeys(cell.labels["model"] for cell in source.cells))
    return _noise(source, models, ("model", *NOISE_COLUMNS))


def _noise(source: Source, models: Sequence[str], columns: Sequence[str]) -> Artifact:
    rows = run_rows(source, source.read())
    figure = new_figure(4.2 * len(models) + 1.6, 4)
    lines = []
    variances = sorted({cell.labels["noise_variance"] for cell in source.cells})
    for model, axis in zip(models, figure.subplots(1, len(models), squeeze=False)[0], strict=True):
        smallest = next(variance for variance in variances if variance)
        for rule in dict.fromkeys(cell.labels["rule"] for cell in source.cells):
            spreads = [_spread(rows, model=model, rule=rule, noise_variance=variance) for variance in variances]
            _error_bars(axis, variances, spreads, rule)
            own = [each for each in source.cells if {"model": model, "rule": rule}.items() <= each.labels.items()]
            lines.append([MODELS[model], RULES[rule].label, *(percent(rows, cell, "top1") for cell in own)])
        axis.set_xscale("symlog", linthresh=smallest, linscale=0.5)
        axis.set(xlabel="variance of the noise on updates", title=MODELS[model])
        axis.axhline(100 * CHANCE[source.profile][0], linestyle=(0, (1, 4)), color="0.6", label="chance")
        axis.set_ylim(0, 1.05 * axis.get_ylim()[1])
    figure.axes[0].set(ylabel="validation top-1 (%)")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right", fontsize="small")
    header = ["network", "rule", *(f"variance {variance:g}" for variance in variances)]
    text = markdown(header, lines) + _commands(source, rows)
    return Artifact(columns, [{key: row[key] for key in columns} for row in rows], text, figure)


def _commands(source: Source, rows: Sequence[Row]) -> str:
    """Returns the lines that train what is missing at the paper's size, of which no file says the noise."""
    if source.profile != "paper":
        return ""  # There the plan trains it.
    missing = [cell for cell in source.cells if not any(cell.labels.items() <= row.items() for row in rows)]
    lines = [f"    {cell.command(source.folder, source.configs)}" for cell in missing]
    return "\n".join(["\n\nNot yet run, the first of 10 seeds each (B.3):\n", *lines]) if lines else ""


# Figures S3 and S4.

SYMMETRY_LAYER = "group1_block1_conv2"
"""The third convolution of the main path."""

TIMES = 4
"""Columns of Figure S3: evaluations, evenly spaced from the first to the last."""


def symmetry(source: Source) -> Artifact:
    """W against B of the third convolution of ResNet-18 at several times, for several rules."""
    read = source.read()
    figure = new_figure(2.3 * TIMES, 2.3 * len(read))
    grid = figure.subplots(len(read), TIMES, squeeze=False)
    rows: list[Row] = []
    missing = []
    for axes, (cell, outcomes) in zip(grid, read, strict=True):
        rule, kept = cell.labels["rule"], _kernels(outcomes)
        axes[0].set(ylabel=f"{RULES[rule].label}\nbackward weight")
        if not kept:
            missing.append(rule)
            continue
        epochs = {int(row["step"]): row["epoch"] for row in outcomes[0].rows}
        steps = sorted(kept)
        for axis, index in zip(axes, np.linspace(0, len(steps) - 1, TIMES).round().astype(int), strict=True):
            step = steps[index]
            axis.set(title=f"epoch {epochs.get(step, float('nan')):g}")
            rows += [
                {"rule": rule, "epoch": epochs.get(step, float("nan")), **row}
                for row in _scatter(axis, kept[step], SYMMETRY_LAYER, step)
            ]
    for axis in grid[-1]:
        axis.set(xlabel="forward weight")
    text = f"Layer {SYMMETRY_LAYER}." + (f" Not yet run: {', '.join(missing)}." if missing else "")
    return Artifact(("rule", "epoch", "step", "layer", "forward", "backward"), rows, text, figure)


METRICS = {"weight_angle": "angle of W to B^T (degrees)", "norm_ratio": "||B|| / ||W||"}


def metrics(source: Source) -> Artifact:
    """Angle and norm ratio of W and B of every layer over training, for several rules."""
    read = source.read()
    figure = new_figure(9, 2.6 * len(read))
    grid = figure.subplots(len(read), 2, squeeze=False, sharex=True)
    rows: list[Row] = []
    lines = []
    for axes, (cell, outcomes) in zip(grid, read, strict=True):
        label = RULES[cell.labels["rule"]].label
        own = _metric_rows(cell, outcomes)
        rows += own
        for axis, (measure, name) in zip(axes, METRICS.items(), strict=True):
            _layer_lines(axis, own, measure)
            axis.set(title=f"{label}{_state(own, outcomes)}", ylabel=name)
        axes[1].set_yscale("log")
        last = [row["weight_angle"] for row in own if row["epoch"] == own[-1]["epoch"]]
        lines.append([label, f"{min(last):.1f}", f"{max(last):.1f}"] if last else [label, "missing", "missing"])
    for axis in grid[-1]:
        axis.set(xlabel="epoch")
    header = ["rule", "smallest angle of a layer at the end (degrees)", "largest"]
    return Artifact(("rule", "layer", "epoch", *METRICS), rows, markdown(header, lines), figure)


def _state(rows: Sequence[Row], outcomes: Sequence[Outcome]) -> str:
    """Returns why there is nothing to be drawn, if so."""
    if rows:
        return ""
    return ": diverged before its first evaluation" if outcomes else ": not yet run"


def _metric_rows(cell: Cell, outcomes: Sequence[Outcome]) -> list[Row]:
    """Returns a row per layer and evaluation of the first seed."""
    if not outcomes or not outcomes[0].rows:
        return []
    layers = [key.partition("/")[2] for key in outcomes[0].rows[0] if key.startswith("weight_angle/")]
    return [
        {
            "rule": cell.labels["rule"],
            "layer": layer,
            "epoch": row["epoch"],
            **{measure: row[f"{measure}/{layer}"] for measure in METRICS},
        }
        for row in outcomes[0].rows
        for layer in layers
    ]


def _layer_lines(axis: Axes, rows: Sequence[Row], measure: str) -> None:
    """Draws one line per layer, from black at the input to light grey at the output; the ends are named."""
    layers = list(dict.fromkeys(row["layer"] for row in rows))
    for number, layer in enumerate(layers):
        points = [(row["epoch"], row[measure]) for row in rows if row["layer"] == layer]
        first_or_last = number in (0, len(layers) - 1)
        axis.plot(
            *zip(*points, strict=True),
            color=str(0.8 * number / max(len(layers) - 1, 1)),
            linestyle=("-", "--", "-.", ":")[number % 4],
            marker={0: "o", len(layers) - 1: "s"}.get(number),
            markersize=4,
            linewidth=1,
            label=layer if first_or_last else None,
        )
    if layers:
        axis.legend(fontsize="x-small")
