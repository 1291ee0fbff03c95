"""Figure 2 and Proposition 2 of Boopathy and Fiete 2022: updates and outputs of the rules beside gradient descent's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from neural_alignment.papers.figures import Style
from neural_alignment.papers.pieces import Arrays, Piece, Pieces
from neural_alignment.papers.registry import Item, Source
from neural_alignment.papers.wide_networks import updates
from neural_alignment.reporting import Artifact, Row, Spread, markdown, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTHS = (8, 16, 32, 64, 128, 256, 512, 1024)

FITTED = 32
"""Least width of the fit: what is narrower is far from the limit."""

SEEDS = {"tanh": (99, 100, 101), "relu": (99, 100, 101)}
"""Activation -> seeds. Only tanh has the bounded first and second derivatives that the proposition asks for."""

ACTIVATIONS = {"tanh": "tanh", "relu": "ReLU, outside of the proposition"}

STYLES = {
    "normal": Style("Normal", "o", "-", 0.0),
    "align_ada": Style("Align-ada", "s", "-", 0.2),
    "align_zero": Style("Align-zero", "^", "--", 0.5),
}

SIZES = {"hidden": 3, "examples": 64, "rate": 0.25, "moments": (1, 20, 60, 200), "side": 24}
"""Of the networks and their training: arguments of `updates.parted`. The proposition is one of gradient flow: at a rate
of 1 some narrow networks oscillate."""


def pieces(widths: Sequence[int] = WIDTHS, activations: Sequence[str] = tuple(SEEDS)) -> list[Pieces]:
    """Returns the networks of each activation, width and seed."""
    return [_piece(name, width, seed) for name in activations for width in widths for seed in SEEDS[name]]


def _piece(activation: str, width: int, seed: int) -> Pieces:
    labels = {"activation": activation, "width": width, "seed": seed}
    piece = Piece(f"updates/{width}/{activation}/seed{seed}", updates.parted, arguments={**labels, **SIZES})
    return Pieces(labels, (piece,))


def _networks(source: Source) -> list[tuple[dict, Arrays]]:
    """Returns labels and arrays of what there is."""
    return [(dict(cell.labels), result.arrays) for cell, results in source.read() for result in results]


# Proposition 2.

COLUMNS = ("activation", "rule", "width", "seed", "step", "distance", "movement")


def proposition_2(source: Source) -> Artifact:
    """||f - f_align|| at the end of training by width, and the fitted exponents."""
    rows = [
        {**labels, "rule": rule, "step": int(step), "distance": float(distance), "movement": float(movement)}
        for labels, arrays in _networks(source)
        for rule in updates.ALIGNED
        for step, distance, movement in zip(arrays["step"], arrays[f"{rule}_distance"], arrays["movement"], strict=True)
    ]
    last = max((row["step"] for row in rows), default=0)
    figure = new_figure(10, 4.4)
    axes = figure.subplots(1, len(ACTIVATIONS), sharey=True)
    lines = []
    for axis, (activation, title) in zip(axes, ACTIVATIONS.items(), strict=True):
        for rule in updates.ALIGNED:
            key = (activation, rule, last)
            own = [row for row in rows if (row["activation"], row["rule"], row["step"]) == key]
            lines += [_decline(axis, own, STYLES[rule])] if own else []
        axis.set(title=title, xlabel="hidden units m", xscale="log", yscale="log")
        axis.set_xlim(WIDTHS[0] / 1.3, WIDTHS[-1] * 1.3)
        axis.set_xticks(WIDTHS, [str(width) for width in WIDTHS])
        axis.minorticks_off()
        if axis.lines:
            axis.legend(fontsize="small")
    axes[0].set_ylabel(f"‖f − f_align‖ after {last} steps")
    text = markdown(["activation", "rule", "seeds", "exponent", f"x{WIDTHS[0]}", f"x{WIDTHS[-1]}"], lines)
    text += (
        f"\n\nFitted from x{FITTED} on, a line for each seed: mean and standard error; the proposition: -0.5 or less."
    )
    return Artifact(COLUMNS, [{name: row[name] for name in COLUMNS} for row in rows], text, figure)


def exponent(rows: Sequence[Row]) -> tuple[Spread, float]:
    """Fits distance = c m^a to each seed by least squares of the logarithms, from `FITTED` on.

    Args:
        rows: with `width`, `seed` and `distance`, of one rule.

    Returns:
        The exponents a, one per seed that has two widths or more, and the geometric mean of the c.
    """
    slopes, offsets = [], []
    for seed in sorted({row["seed"] for row in rows}):
        own = [row for row in rows if row["seed"] == seed and row["width"] >= FITTED]
        if len(own) > 1:
            xs, ys = (np.log([row[name] for row in own]) for name in ("width", "distance"))
            slope, offset = np.polyfit(xs, ys, 1)
            slopes.append(float(slope))
            offsets.append(float(offset))
    return Spread(slopes), float(np.exp(np.mean(offsets))) if offsets else float("nan")


def _decline(axis: Axes, rows: Sequence[Row], style: Style) -> list[object]:
    """Draws the distances of one rule and their fit; returns a line of the table."""
    widths = sorted({row["width"] for row in rows})
    means = [_geometric(row["distance"] for row in rows if row["width"] == width) for width in widths]
    slopes, factor = exponent(rows)
    told = f"{slopes.mean:.2f} ± {slopes.error:.2f}" if slopes.known else "not yet run"
    options = {**style.options(), "label": f"{style.label}: m^({told})", "linestyle": ""}
    axis.errorbar(widths, means, markersize=6, **options)
    axis.plot(*zip(*((row["width"], row["distance"]) for row in rows), strict=True), ".", color="0.7", markersize=3)
    if slopes.known:
        xs = np.array([width for width in widths if width >= FITTED], float)
        axis.plot(xs, factor * xs**slopes.mean, linestyle=style.line, color=str(style.shade), linewidth=1)
    ends = [f"{means[widths.index(width)]:.4f}" if width in widths else "" for width in (WIDTHS[0], WIDTHS[-1])]
    return [rows[0]["activation"], style.label, len({row["seed"] for row in rows}), told, *ends]


def _geometric(values) -> float:
    return float(np.exp(np.mean(np.log(list(values)))))


# Figure 2.

SHOWN = (WIDTHS[0], WIDTHS[-1])
"""Widths whose updates are drawn."""

UPDATE_COLUMNS = ("width", "seed", "rule", "row", "column", "update")


def figure_2(source: Source) -> Artifact:
    """Changes of the second layer by gradient descent, Align-ada and Align-zero, narrow above and wide below."""
    there = {(labels["width"], labels["seed"]): arrays for labels, arrays in _networks(source)}
    figure = new_figure(8.4, 5.6)
    grid = figure.subplots(len(SHOWN), len(updates.RULES))
    rows: list[Row] = []
    lines = []
    for axes, width in zip(grid, SHOWN, strict=True):
        seed = SEEDS["tanh"][0]
        arrays = there.get((width, seed))
        for axis, rule in zip(axes, updates.RULES, strict=True):
            axis.set(title=f"{STYLES[rule].label}, x{width}{'' if arrays else ': not yet run'}", xticks=[], yticks=[])
            if arrays:
                _draw(axis, arrays, rule)
                labels = {"width": width, "seed": seed, "rule": rule}
                rows += [
                    {**labels, "row": row, "column": column, "update": float(value)}
                    for (row, column), value in np.ndenumerate(arrays[f"{rule}_update"])
                ]
        if arrays:
            cosines = [f"{arrays[f'{rule}_cosine'][-1, 1]:.4f}" for rule in updates.ALIGNED]
            lines.append([f"x{width}", *cosines])
        axes[0].set_ylabel("unit of layer 1")
    for axis in grid[-1]:
        axis.set_xlabel("unit of layer 2")
    header = ["width", *(f"cosine of ΔW, {STYLES[rule].label} to Normal" for rule in updates.ALIGNED)]
    text = (
        f"{markdown(header, lines)}\n\nThe second layer of a tanh network, its first {SIZES['side']} units each way; "
    )
    text += "the cosine is that of the whole layer. Shades are the same for all of a width."
    return Artifact(UPDATE_COLUMNS, rows, text, figure)


def _draw(axis: Axes, arrays: Arrays, rule: str) -> None:
    largest = max(abs(arrays[f"{each}_update"]).max() for each in updates.RULES)
    axis.imshow(arrays[f"{rule}_update"], cmap="Greys", vmin=-largest, vmax=largest, interpolation="nearest")


ITEMS = [
    Item(
        "figure",
        "wide_networks/2",
        "updates by three rules, narrow and wide",
        figure_2,
        {"lab": pieces(SHOWN, ("tanh",))},
    ),
    Item(
        "figure",
        "wide_networks/proposition_2",
        "distance to gradient descent by width",
        proposition_2,
        {"lab": pieces()},
    ),
]
"""Figure 2, and one of Proposition 2; `lab` is their only profile."""
