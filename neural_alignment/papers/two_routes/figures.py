"""Figures of Kunin et al. 2020, except S2."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from neural_alignment.analysis.dynamics import FIGURE_2_DECAYS
from neural_alignment.jobs.plans import Outcome
from neural_alignment.papers.figures import (
    Mark,
    Panel,
    Style,
    arrows,
    bars,
    contours,
    diagonal,
    grid,
    level,
    lines,
    mean_and_error,
    panel,
    points,
    scale,
    ticks,
)
from neural_alignment.papers.registry import Source
from neural_alignment.papers.tables import Key, at, chosen, grouped, table
from neural_alignment.papers.two_routes.compute import fits, theory
from neural_alignment.papers.two_routes.runs import CHANCE, MODELS, RULE_STYLES
from neural_alignment.papers.two_routes.tables import RUN_COLUMNS, accuracies, run_rows
from neural_alignment.reporting import Artifact, Row

POINTS = 1000
"""Maximum number of weights in a scatter plot, evenly spaced through the kernel."""

# Figure 2.

SCATTERED = {"stem": "first convolution", "group2_block1_conv1": "a middle convolution", "dense": "dense layer"}
"""Layers of panels d to f -> their names."""


def figure_2(source: Source) -> Artifact:
    """The flow of weight mirror in its three regimes, and W against B of three layers of a run of weight mirror."""
    flows = [_flow(letter, *regime) for letter, regime in zip("abc", FIGURE_2_DECAYS.items(), strict=True)]
    [(_, outcomes)] = source.read()
    kept = _kernels(outcomes)
    last = max(kept, default=0)
    rows, scatters = [row for own, _ in flows for row in own], []
    for letter, (layer, name) in zip("def", SCATTERED.items(), strict=True):
        own = _weights(kept.get(last, {}), layer, last)
        state = "" if own else ": not kept" if kept else ": not yet run"
        scatters.append(_scatter(own, title=f"({letter}) {name}{state}", ylabel="backward weight"))
        rows += [{"panel": letter, **row} for row in own]
    columns = ("panel", "decay", "layer", "step", "forward", "backward", "forward_flow", "backward_flow")
    text = "Panels a to c: -gradient of the primitives. Panels d to f: "
    text += f"ResNet-18, weight mirror, step {last}." if kept else "no run with kernels kept."
    return Artifact(columns, rows, text, grid([[each for _, each in flows], scatters], (10, 6)))


def _flow(letter: str, regime: str, decay: float) -> tuple[list[Row], Panel]:
    """Returns the rows and the panel of one flow field."""
    places = np.linspace(-1, 1, 13)
    weights = np.stack(np.meshgrid(places, places))
    flow = theory.symmetrised_flow(*weights, decay)
    speed = np.hypot(*flow)
    relation = {-1: "<", 0: "=", 1: ">"}[int(np.sign(decay - 1))]
    pairs = [each.reshape(2, -1).T for each in (weights, flow)]
    field = panel(
        contours(*weights, speed, "speed", levels=8, vmax=2 * speed.max()),
        arrows(*pairs, scale=20),
        diagonal(),
        title=f"({letter}) λ {relation} x²: {regime}",
        xlabel="forward weight w",
        ylabel="backward weight b",
        aspect="equal",
    )
    names = ("forward", "backward", "forward_flow", "backward_flow")
    rows = [dict(zip(names, map(float, values), strict=True)) for values in np.hstack(pairs)]
    return [{"panel": letter, "decay": decay, **row} for row in rows], field


def _kernels(outcomes: Sequence[Outcome]) -> dict[int, dict[str, Any]]:
    """Returns the kernels kept by the first seed: step -> array name -> values."""
    return outcomes[0].kernels() if outcomes else {}


def _weights(kernels: Mapping[str, np.ndarray], layer: str, step: int) -> list[Row]:
    """Returns a row per weight of one layer at one step, evenly thinned; none if the layer was not kept."""
    if f"{layer}/forward" not in kernels:
        return []
    pairs = np.stack([np.ravel(kernels[f"{layer}/{which}"]) for which in ("forward", "backward")], axis=1)
    kept = pairs[np.linspace(0, len(pairs) - 1, min(POINTS, len(pairs))).astype(int)]
    return [{"layer": layer, "step": step, "forward": float(w), "backward": float(b)} for w, b in kept]


def _scatter(rows: Sequence[Row], **axes: Any) -> Panel:
    """Returns a panel of B against W."""
    xs, ys = ([row[which] for row in rows] for which in ("forward", "backward"))
    marks = [points(xs, ys, Style(None, ".", "", 0.2), markersize=2), diagonal()] if rows else []
    return panel(*marks, xlabel="forward weight", **axes)


# Figures 3, S5, 5 and S1: accuracy against the network, and against noise.


def _accuracy_panel(source: Source, rows: Sequence[Row], x: Key, *marks: Mark, **axes: Any) -> Panel:
    """Returns a panel of mean and standard error of top-1 by rule, with the accuracy of chance."""
    styles = {rule: RULE_STYLES[rule] for rule in dict.fromkeys(cell.labels["rule"] for cell in source.cells)}
    top1 = lines(rows, x, lambda row: 100 * row["top1"], "rule", styles, mean_and_error)
    chance = level(100 * CHANCE[source.profile][0], "chance")
    return panel(top1, chance, *marks, ylabel="validation top-1 (%)", ylim=(0, None), **axes)


def transfer(source: Source) -> Artifact:
    """Top-1 accuracy of fixed metaparameters on several networks; a diverged run counts as chance."""
    rows = run_rows(source)
    cells = accuracies(source, rows)
    models, rules = ([*dict.fromkeys(row[name] for row in cells)] for name in ("model", "rule"))

    def place(row: Row) -> float:
        """Returns x of a run: the number of its network, moved a little by rule."""
        return models.index(row["model"]) + 0.06 * (rules.index(row["rule"]) - (len(rules) - 1) / 2)

    names = ticks(range(len(models)), [MODELS[model] for model in models], log=False)
    figure = grid([[_accuracy_panel(source, rows, place, names, xlabel="network")]], (7.5, 4.5), legend="outside right")
    columns = {"rule": "name"} | {MODELS[model]: at("top1", model=model) for model in models}
    return Artifact(RUN_COLUMNS, rows, table(cells, ["rule"], columns), figure)


def noise(source: Source) -> Artifact:
    """Top-1 accuracy of one network against the variance of the noise on the updates; mean and standard error."""
    rows = run_rows(source)
    cells = accuracies(source, rows)
    [(model, network)] = {(row["model"], row["network"]) for row in cells}
    variances = sorted({row["noise_variance"] for row in cells})
    axis = scale("x", "symlog", linthresh=variances[1], linscale=0.5)
    limits = (-0.3 * variances[1], 1.3 * variances[-1])
    texts = {"xlabel": "variance of the noise on updates", "title": network}
    figure = grid(
        [[_accuracy_panel(source, rows, "noise_variance", axis, xlim=limits, **texts)]],
        (5.8, 4),
        legend="outside right",
    )
    columns = {"network": "network", "rule": "name"}
    columns |= {f"variance {variance:g}": at("top1", noise_variance=variance) for variance in variances}
    text = table(cells, ["rule"], columns) + _commands(source, rows)
    names = ("rule", "noise_variance", "seed", "top1")
    return Artifact(names if model == "resnet18" else ("model", *names), rows, text, figure)


def _commands(source: Source, rows: Sequence[Row]) -> str:
    """Returns the commands that train the missing runs at the size of the paper, which no configuration contains."""
    if source.profile != "paper":
        return ""  # The lab trains them itself.
    missing = [cell for cell in source.cells if not chosen(rows, **cell.labels)]
    commands = [f"    {cell.command(source.folder, source.configs)}" for cell in missing]
    return "\n".join(["\n\nNot yet run, the first of 10 seeds each (B.3):\n", *commands]) if commands else ""


# Figures S3 and S4.

SYMMETRY_LAYER = "group1_block1_conv2"
"""The third convolution of the main path."""

TIMES = 4
"""Columns of Figure S3: evaluations, evenly spaced from the first to the last."""


def symmetry(source: Source) -> Artifact:
    """W against B of the third convolution of ResNet-18 at several times, for several rules."""
    rows, panels, missing = [], [], []
    for cell, outcomes in source.read():
        rule, kept = cell.labels["rule"], _kernels(outcomes)
        if not kept:
            missing.append(rule)
            panels.append([_scatter([])] * TIMES)
            continue
        panels.append([])
        epochs = {int(row["step"]): row["epoch"] for row in outcomes[0].rows}
        for index in np.linspace(0, len(kept) - 1, TIMES).round().astype(int):
            step = sorted(kept)[index]
            labels = {"rule": rule, "epoch": epochs.get(step, math.nan)}
            own = [{**labels, **row} for row in _weights(kept[step], SYMMETRY_LAYER, step)]
            panels[-1].append(_scatter(own, title=f"epoch {labels['epoch']:g}"))
            rows += own
    text = f"Layer {SYMMETRY_LAYER}." + (f" Not yet run: {', '.join(missing)}." if missing else "")
    labels = [f"{RULE_STYLES[cell.labels['rule']].label}\nbackward weight" for cell in source.cells]
    figure = grid(panels, (2.3 * TIMES, 2.6 * len(panels)), ylabels=labels)
    return Artifact(("rule", "epoch", "step", "layer", "forward", "backward"), rows, text, figure)


METRICS = {"weight_angle": "angle of W to Bᵀ (degrees)", "norm_ratio": "‖B‖ / ‖W‖"}


def metrics(source: Source) -> Artifact:
    """Angle and norm ratio of W and B of every layer over training, for several rules."""
    rows, panels, ends = [], [], []
    for cell, outcomes in source.read():
        label, own = RULE_STYLES[cell.labels["rule"]].label, _metric_rows(cell.labels["rule"], outcomes)
        state = "" if own else ": diverged before its first evaluation" if outcomes else ": not yet run"
        styles = _layer_styles([layer for (layer,) in grouped(own, "layer")])
        panels.append(
            [
                panel(
                    lines(own, "epoch", measure, "layer", styles, linewidth=1),
                    title=f"{label}{state}",
                    ylabel=name,
                    xlabel="epoch",
                    yscale="log" if measure == "norm_ratio" else "linear",
                )
                for measure, name in METRICS.items()
            ]
        )
        last = [row["weight_angle"] for row in own if row["epoch"] == own[-1]["epoch"]]
        low, high = (f"{each(last):.1f}" if last else "missing" for each in (min, max))
        ends.append({"rule": label, "low": low, "high": high})
        rows += own
    columns = {"rule": "rule", "smallest angle of a layer at the end (degrees)": "low", "largest": "high"}
    legends = [(number, column) for number in range(len(panels)) for column in range(2)]
    figure = grid(panels, (9, 2.6 * len(panels)), legends=legends, share_x=True)
    return Artifact(("rule", "layer", "epoch", *METRICS), rows, table(ends, ["rule"], columns), figure)


def _metric_rows(rule: str, outcomes: Sequence[Outcome]) -> list[Row]:
    """Returns a row per evaluation and layer of the first seed."""
    if not outcomes or not outcomes[0].rows:
        return []
    layers = [key.partition("/")[2] for key in outcomes[0].rows[0] if key.startswith("weight_angle/")]
    return [
        {"rule": rule, "layer": layer, "epoch": row["epoch"]}
        | {measure: row[f"{measure}/{layer}"] for measure in METRICS}
        for row in outcomes[0].rows
        for layer in layers
    ]


def _layer_styles(layers: Sequence[str]) -> dict[str, Style]:
    """Returns a style per layer, from black at the input to light grey at the output; the legend has both ends."""
    last = max(len(layers) - 1, 1)
    ends = {0: "o", len(layers) - 1: "s"}
    dashes = ("-", "--", "-.", ":")
    return {
        layer: Style(layer if number in ends else None, ends.get(number, ""), dashes[number % 4], 0.8 * number / last)
        for number, layer in enumerate(layers)
    }


# Figure 6.

FIT_COLUMNS = ("network", "area", "layer", "units", "correlation", "sem", "corrected", "corrected_sem", "best")


def figure_6(source: Source) -> Artifact:
    """Neural fits of the first seed of each rule to recorded responses."""
    runs = {
        RULE_STYLES[cell.labels["rule"]].label: outcomes[0].directory.path
        for cell, outcomes in source.read()
        if outcomes and not outcomes[0].diverged
    }
    return neural_fits(fits.fit_rows(runs, source.recordings, source.images, report=source.say))


def neural_fits(rows: Sequence[Row]) -> Artifact:
    """Returns Figure 6 from the rows of `fit_rows`: the best layer of each network, an area below the other."""
    corrected = "corrected" in rows[0]
    height = ("corrected", "corrected_sem") if corrected else ("correlation", "sem")
    label = "median Pearson\ncorrelation over units" + ("\ncorrected for noise" if corrected else "")
    best = chosen(rows, best=1)
    panels = [
        [panel(bars(own, "network", *height), ylabel=f"{area}: {label}")]
        for (area,), own in grouped(best, "area").items()
    ]
    columns = {
        "network": "network",
        "area": "area",
        "best layer": "layer",
        "units": "units",
        "median correlation": lambda own: "{correlation:.3f} ± {sem:.3f}".format_map(own[0]),
        "corrected for noise": lambda own: (
            "{corrected:.3f} ± {corrected_sem:.3f}".format_map(own[0]) if corrected else "no repeats"
        ),
    }
    text = table(best, ("network", "area"), columns)
    width = 1.5 + 0.8 * len(grouped(rows, "network"))
    return Artifact(FIT_COLUMNS, rows, text, grid(panels, (width, 2.2 * len(panels) + 0.8), share_x=True))
