"""Figures of Kunin et al. 2020, except S2."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from neural_alignment.analysis.curves import thinned
from neural_alignment.analysis.dynamics import FIGURE_2_DECAYS
from neural_alignment.jobs.plans import Outcome
from neural_alignment.papers import figures
from neural_alignment.papers.figures import Panel, Style, drawn, lines, panel, points
from neural_alignment.papers.registry import Source
from neural_alignment.papers.tables import Key, at, chosen, grouped, table
from neural_alignment.papers.two_routes.compute import fits, theory
from neural_alignment.papers.two_routes.runs import CHANCE, MODELS, RULE_STYLES
from neural_alignment.papers.two_routes.tables import RUN_COLUMNS, accuracies, run_rows
from neural_alignment.reporting import Artifact, Row, markdown
from neural_alignment.training.metrics import by_layer

POINTS = 1000
"""Maximum number of weights in a scatter plot, evenly spaced through the kernel."""

FLOW = ("forward", "backward", "forward_flow", "backward_flow")
"""Columns of the flow fields of panels a to c."""

SCATTERED = {"stem": "first convolution", "group2_block1_conv1": "a middle convolution", "dense": "dense layer"}
"""Layers of panels d to f -> their names."""


def figure_2(source: Source) -> Artifact:
    """Figure 2: the flow of weight mirror in its three regimes, and W against B of three layers of a run of it."""
    flows = [_flow(letter, *regime) for letter, regime in zip("abc", FIGURE_2_DECAYS.items(), strict=True)]
    [(cell, outcomes)] = source.outcomes()
    kept = _kernels(outcomes)
    epochs = {step: epoch for step, epoch in _epochs(outcomes).items() if step in kept}
    shown = min((step for step, epoch in epochs.items() if epoch >= EPOCHS_OF_D), default=max(kept, default=0))
    rows, scatters = [row for own, _ in flows for row in own], []
    weights = kept.get(shown, {})
    for letter, (layer, name) in zip("def", SCATTERED.items(), strict=True):
        own = _weights(weights, panel=letter, layer=layer, step=shown)
        state = "" if own else ": not kept" if kept else ": not yet run"
        title = f"({letter}) {name}{state}{_ratio(weights, layer)}"
        scatters.append(_scatter(own, title=title, ylabel="backward weight"))
        rows += own
    columns = ("panel", "decay", "layer", "step", *FLOW)
    text = "Panels a to c: -gradient of the primitives. Panels d to f: "
    text += f"ResNet-18, weight mirror, {_time(epochs.get(shown), shown)}." if kept else "no run with kernels kept."
    note = "a to c: arrows show the direction of the flow; dotted: backward weight = forward weight"
    if kept:
        epoch = f", epoch {epochs[shown]:g}" if shown in epochs else ""
        note += f"\nd to f: {RULE_STYLES[cell.labels['rule']].label}, {_network_and_seed(source)}{epoch}"
    return drawn(rows, text, [[each for _, each in flows], scatters], (10, 6.8), columns, note=note)


EPOCHS_OF_D = 5
"""Epochs after which the paper shows the weights in panels d to f."""


def _epochs(outcomes: Sequence[Outcome]) -> dict[int, float]:
    """Returns the epoch of each evaluated step of the first seed."""
    return {int(row["step"]): row["epoch"] for row in outcomes[0].rows} if outcomes else {}


def _time(epoch: float | None, step: int) -> str:
    """Returns in words when the weights of panels d to f were stored."""
    if epoch is None:
        return f"step {step}"
    same = "" if epoch == EPOCHS_OF_D else f", the first evaluation after {EPOCHS_OF_D} epochs, which the paper shows"
    return f"after {epoch:g} epochs (step {step}){same}"


SPEEDS = np.linspace(0, 3.6, 10)
"""Limits of the shades of panels a to c. The largest speed is √2 (1 + λ), in the corners of panel c."""


def _flow(letter: str, regime: str, decay: float) -> tuple[list[Row], Panel]:
    """Returns the rows and the panel of one flow field."""
    places = np.linspace(-1, 1, 13)
    weights = np.stack(np.meshgrid(places, places))
    flow = theory.symmetrised_flow(*weights, decay)
    speed, pairs = np.hypot(*flow), [each.reshape(2, -1).T for each in (weights, flow)]
    shades = [figures.contours(*weights, speed, levels=SPEEDS, vmax=2 * SPEEDS[-1])]
    if letter == "c":
        shades.append(figures.row_bar("speed", shrink=0.8))
    title = f"({letter}) λ {'<=>'[int(np.sign(decay - 1)) + 1]} x²: {regime}"
    axes = {"xlabel": "forward weight w", "ylabel": "backward weight b", "aspect": "equal"}
    rows = [dict(zip(FLOW, map(float, values), strict=True)) for values in np.hstack(pairs)]
    field = panel(*shades, figures.arrows(*pairs, scale=20), figures.diagonal(), title=title, **axes)
    return [{"panel": letter, "decay": decay, **row} for row in rows], field


def _network_and_seed(source: Source) -> str:
    """Returns the networks and seeds of the first runs in words, such as `ResNet-18, seed 0`."""
    networks = dict.fromkeys(MODELS[cell.labels["model"]] for cell in source.cells)
    seeds = dict.fromkeys(f"seed {outcomes[0].config.seed}" for _, outcomes in source.outcomes() if outcomes)
    return ", ".join([*networks, *seeds])


def _kernels(outcomes: Sequence[Outcome]) -> dict[int, dict[str, Any]]:
    """Returns the kernels kept by the first seed: step -> array name -> values."""
    return outcomes[0].kernels() if outcomes else {}


def _weights(kernels: Mapping[str, np.ndarray], layer: str, **labels: Any) -> list[Row]:
    """Returns a row per weight of a layer, evenly thinned; none if the layer was not kept."""
    if f"{layer}/forward" not in kernels:
        return []
    forward, backward = (np.ravel(kernels[f"{layer}/{which}"]) for which in ("forward", "backward"))
    places = thinned(len(forward), POINTS)
    return [{**labels, "layer": layer, "forward": float(forward[i]), "backward": float(backward[i])} for i in places]


def _ratio(kernels: Mapping[str, np.ndarray], layer: str) -> str:
    """Returns a line of a title with the ratio of the norms of B and W of a layer; empty if it was not kept."""
    if f"{layer}/forward" not in kernels:
        return ""
    forward, backward = (np.linalg.norm(kernels[f"{layer}/{which}"]) for which in ("forward", "backward"))
    return f"\n‖B‖ / ‖W‖ = {backward / forward:.2f}"


def _scatter(rows: Sequence[Row], **axes: Any) -> Panel:
    """Returns a panel of B against W."""
    xs, ys = ([row[which] for row in rows] for which in ("forward", "backward"))
    marks = [points(xs, ys, Style(None, ".", "", 0.2), markersize=2), figures.diagonal()] if rows else []
    return panel(*marks, xlabel="forward weight", **axes)


BARS = "mean and standard error over seeds; without a bar: one seed or equal ones"
"""The meaning of points and bars in figures of accuracy."""


def _accuracy_panel(
    source: Source, rows: Sequence[Row], x: Key, *marks: figures.Mark, looks: Mapping[str, Any], **axes: Any
) -> Panel:
    """Returns a panel of mean and standard error of top-1 by rule, with the accuracy of chance.

    `looks` are further arguments of `Axes.plot`.
    """
    styles = {cell.labels["rule"]: RULE_STYLES[cell.labels["rule"]] for cell in source.cells}
    top1 = lines(rows, x, lambda row: 100 * row["top1"], "rule", styles, figures.mean_and_error, **looks)
    chance = figures.level(100 * CHANCE[source.profile][0], "chance")
    return panel(top1, chance, *marks, ylabel="validation top-1 (%)", ylim=(0, None), **axes)


def transfer(source: Source) -> Artifact:
    """Figures 3 and S5: top-1 accuracy of fixed metaparameters on several networks; a diverged run counts as chance."""
    rows = run_rows(source)
    cells = accuracies(source, rows)
    models, rules = ([*dict.fromkeys(row[name] for row in cells)] for name in ("model", "rule"))

    def place(row: Row) -> float:
        """Returns x of a run: the number of its network, moved a little by rule."""
        return models.index(row["model"]) + 0.06 * (rules.index(row["rule"]) - (len(rules) - 1) / 2)

    names = figures.ticks(range(len(models)), [MODELS[model] for model in models], log=False)
    diverged = [
        figures.words(place(own[0]), 100 * np.mean([row["top1"] for row in own]), f"{count} of {len(own)} diverged")
        for own in grouped(rows, "model", "rule").values()
        if (count := sum(row["diverged"] for row in own))
    ]
    looks = {"linestyle": "", "markersize": 5}
    panels = [[_accuracy_panel(source, rows, place, names, *diverged, looks=looks, xlabel="network")]]
    columns = {"rule": "name"} | {MODELS[model]: at("top1", model=model) for model in models}
    text = table(cells, ["rule"], columns)
    note = f"{BARS}; a diverged run counts as chance" if diverged else BARS
    return drawn(rows, text, panels, (7.5, 4.5), RUN_COLUMNS, legend="outside right", note=note)


def noise(source: Source) -> Artifact:
    """Figures 5, 5b and S1: top-1 accuracy against the variance of the noise on the updates, a panel per network."""
    rows = run_rows(source)
    cells = accuracies(source, rows)
    variances = sorted({row["noise_variance"] for row in cells})
    axis = figures.scale("x", "symlog", linthresh=variances[1], linscale=0.5)
    axes = {"xlabel": "variance of the noise on updates", "xlim": (-0.3 * variances[1], 1.3 * variances[-1])}
    columns = {"network": "network", "rule": "name"}
    columns |= {f"variance {variance:g}": at("top1", noise_variance=variance) for variance in variances}
    text = table(cells, ["model", "rule"], columns)
    networks = {row["model"]: row["network"] for row in cells}
    layout = {"legend": "outside right", "share_y": True}
    names = ("rule", "noise_variance", "seed", "top1") if [*networks] == ["resnet18"] else NOISE_COLUMNS
    panels = [
        _accuracy_panel(source, chosen(rows, model=model), "noise_variance", axis, looks={}, title=network, **axes)
        for model, network in networks.items()
    ]
    return drawn(rows, text, [panels], (2.4 + 3.4 * len(panels), 4), names, note=BARS, **layout)


NOISE_COLUMNS = ("model", "rule", "noise_variance", "seed", "top1")
"""Columns of Figure 5b, which has several networks."""


SYMMETRY_LAYER = "group1_block1_conv2"
"""The third convolution of the main path."""

TIMES = 4
"""Columns of Figure S3: evaluations, evenly spaced from the first to the last."""


def symmetry(source: Source) -> Artifact:
    """Figure S3: W against B of the third convolution of ResNet-18 at several times, for several rules."""
    rows, panels, missing = [], [], {"Diverged": [], "Not yet run": []}
    for cell, outcomes in source.outcomes():
        rule, kept = cell.labels["rule"], _kernels(outcomes)
        if not kept:
            missing["Diverged" if outcomes and outcomes[0].diverged else "Not yet run"].append(rule)
            panels.append([_scatter([])] * TIMES)
            continue
        panels.append([])
        epochs, steps = _epochs(outcomes), sorted(kept)
        for place in np.linspace(0, len(steps) - 1, TIMES).round().astype(int):
            step = steps[place]
            epoch = epochs.get(step, math.nan)
            own = _weights(kept[step], SYMMETRY_LAYER, rule=rule, epoch=epoch, step=step)
            title = f"epoch {epoch:g}{_ratio(kept[step], SYMMETRY_LAYER)}"
            panels[-1].append(_scatter(own, title=title))
            rows += own
    text = f"Layer {SYMMETRY_LAYER}." + "".join(f" {why}: {', '.join(own)}." for why, own in missing.items() if own)
    labels = [f"{RULE_STYLES[cell.labels['rule']].label}\nbackward weight" for cell in source.cells]
    columns = ("rule", "epoch", "step", "layer", "forward", "backward")
    note = f"layer {SYMMETRY_LAYER} of {_network_and_seed(source)}; dotted: backward weight = forward weight"
    size = (2.3 * TIMES, 2.75 * len(panels))
    return drawn(rows, text, panels, size, columns, ylabels=labels, note=note)


METRICS = {
    "weight_angle": ("angle of W to Bᵀ (degrees)", ()),
    "norm_ratio": ("‖B‖ / ‖W‖", (figures.plain_ticks(),)),
}
"""Measure -> label of its axis, and further marks of its panel."""


def metrics(source: Source) -> Artifact:
    """Figure S4: angle and norm ratio of W and B of every layer over training, for several rules."""
    rows, panels, ends = [], [], []
    for cell, outcomes in source.outcomes():
        label, own = RULE_STYLES[cell.labels["rule"]].label, _metric_rows(cell.labels["rule"], outcomes[:1])
        state = "" if own else ": diverged before its first evaluation" if outcomes else ": not yet run"
        styles = _layer_styles([layer for (layer,) in grouped(own, "layer")])
        axes = {"title": f"{label}{state}", "xlabel": "epoch"}
        panels.append(
            [
                panel(
                    figures.span(own, "epoch", measure, "range of all layers"),
                    lines(own, "epoch", measure, "layer", styles),
                    *marks,
                    ylabel=ylabel,
                    **axes,
                )
                for measure, (ylabel, marks) in METRICS.items()
            ]
        )
        last = [row["weight_angle"] for row in own if row["epoch"] == own[-1]["epoch"]]
        ends.append([label, *(f"{each(last):.1f}" if last else "missing" for each in (min, max))])
        rows += own
    text = markdown(["rule", "smallest angle of a layer at the end (degrees)", "largest"], ends)
    note = f"{_network_and_seed(source)}; layers from the input to the output"
    layout = {"legend": "outside lower center", "note": note}
    return drawn(rows, text, panels, (10.4, 2.6 * len(panels)), ("rule", "layer", "epoch", *METRICS), **layout)


def _metric_rows(rule: str, outcomes: Sequence[Outcome]) -> list[Row]:
    """Returns a row per evaluation and layer of some runs."""
    return [
        {"rule": rule, "layer": layer, "epoch": row["epoch"]} | {name: row[f"{name}/{layer}"] for name in METRICS}
        for outcome in outcomes
        for row in outcome.rows
        for layer in by_layer(row)
    ]


LAYER_LOOKS = (("o", "-", 0.0), ("s", "--", 0.2), ("^", "-.", 0.35), ("D", ":", 0.45), ("v", "-", 0.6))
"""Marker, line and shade of the layers of Figure S4 that have a line."""


def _layer_styles(layers: Sequence[str]) -> dict[str, Style]:
    """Returns the style of the first, the last and some layers evenly between them."""
    places = np.linspace(0, len(layers) - 1, len(LAYER_LOOKS)).round().astype(int) if layers else ()
    shown = dict.fromkeys(layers[place] for place in places)
    return {layer: Style(layer.replace("_", " "), *look) for layer, look in zip(shown, LAYER_LOOKS, strict=False)}


FIT_COLUMNS = ("network", "area", "layer", "units", "correlation", "sem", "corrected", "corrected_sem", "best")


def figure_6(source: Source) -> Artifact:
    """Figure 6: neural fits of the first seed of each rule to recorded responses."""
    first = {RULE_STYLES[cell.labels["rule"]].label: outcomes[0] for cell, outcomes in source.outcomes() if outcomes}
    runs = {name: outcome.directory.path for name, outcome in first.items() if not outcome.diverged}
    product = neural_fits(fits.fit_rows(runs, source.recordings, source.images, report=source.say))
    diverged = ", ".join(name for name in first if name not in runs)
    return replace(product, text=f"{product.text}\n\nDiverged: {diverged}.") if diverged else product


def neural_fits(rows: Sequence[Row]) -> Artifact:
    """Returns Figure 6 from the rows of `fit_rows`: the best layer of each network, an area below the other.

    The left panels show the median correlation as in the paper; the right ones, if there are repeats, are corrected for
    the noise of the recordings.
    """
    corrected, best = "corrected" in rows[0], chosen(rows, best=1)
    heights = {"": ("correlation", "sem"), "\ncorrected for noise": ("corrected", "corrected_sem")}
    panels = [
        [
            panel(figures.bars(own, "network", *height), ylabel=f"{area}: median Pearson\ncorrelation over units{note}")
            for note, height in list(heights.items())[: 1 + corrected]
        ]
        for (area,), own in grouped(best, "area").items()
    ]
    noise_free = "{corrected:.3f} ± {corrected_sem:.3f}" if corrected else "no repeats"
    columns = {"network": "network", "area": "area", "best layer": "layer", "units": "units"}
    columns["median correlation"] = lambda own: "{correlation:.3f} ± {sem:.3f}".format_map(own[0])
    columns["corrected for noise"] = lambda own: noise_free.format_map(own[0])
    text = table(best, ("network", "area"), columns)
    size = ((1 + corrected) * (1.5 + 0.8 * len(grouped(rows, "network"))), 2.2 * len(panels) + 0.8)
    return drawn(rows, text, panels, size, FIT_COLUMNS, share_x=True)
