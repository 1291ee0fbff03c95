"""Figure 2 and Proposition 2 of Boopathy and Fiete 2022: updates and outputs of the rules beside gradient descent's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from neural_alignment.jobs.pieces import Piece, Pieces
from neural_alignment.papers.figures import Panel, Style, grid, image, lines, panel, points, ticks
from neural_alignment.papers.registry import Item, Source
from neural_alignment.papers.tables import chosen, grouped, table
from neural_alignment.papers.wide_networks import updates
from neural_alignment.reporting import Artifact, Row, Spread

WIDTHS = (8, 16, 32, 64, 128, 256, 512, 1024)

FITTED = 32
"""Smallest width of the fit: narrower networks are far from the limit."""

SEEDS = {"tanh": (99, 100, 101), "relu": (99, 100, 101)}
"""Activation -> seeds. Only tanh has the bounded first and second derivatives that the proposition asks for."""

ACTIVATIONS = {"tanh": "tanh", "relu": "ReLU, outside of the proposition"}

STYLES = {
    "normal": Style("Normal", "o", "-", 0.0),
    "align_ada": Style("Align-ada", "s", "-", 0.2),
    "align_zero": Style("Align-zero", "^", "--", 0.5),
}

SIZES = {"hidden": 3, "examples": 64, "rate": 0.25, "moments": (1, 20, 60, 200), "side": 24}
"""Arguments of `updates.parted`. The rate is small because the proposition is about gradient flow: at a rate of 1 some
narrow networks oscillate."""


def pieces(widths: Sequence[int] = WIDTHS, activations: Sequence[str] = tuple(SEEDS)) -> list[Pieces]:
    """Returns the networks of each activation, width and seed."""
    return [_piece(name, width, seed) for name in activations for width in widths for seed in SEEDS[name]]


def _piece(activation: str, width: int, seed: int) -> Pieces:
    labels = {"activation": activation, "width": width, "seed": seed}
    piece = Piece(f"updates/{width}/{activation}/seed{seed}", updates.parted, arguments={**labels, **SIZES})
    return Pieces(labels, (piece,))


# Proposition 2.

COLUMNS = ("activation", "rule", "width", "seed", "step", "distance", "movement")


def proposition_2(source: Source) -> Artifact:
    """‖f - f_align‖ at the end of training by width, and the fitted exponents."""
    rows = [
        {"activation": labels["activation"], "rule": rule, "width": labels["width"], "seed": labels["seed"]}
        | {"step": int(step), "distance": float(distance), "movement": float(movement)}
        for labels, results in source.results()
        for arrays in (result.arrays for result in results)
        for rule in updates.ALIGNED
        for step, distance, movement in zip(arrays["step"], arrays[f"{rule}_distance"], arrays["movement"], strict=True)
    ]
    last = max((row["step"] for row in rows), default=0)
    ends = chosen(rows, step=last)
    columns = {
        "activation": "activation",
        "rule": lambda own: STYLES[own[0]["rule"]].label,
        "seeds": lambda own: len(grouped(own, "seed")),
        "exponent": lambda own: _exponent_text(own),
        **{f"x{width}": lambda own, width=width: _distance_text(own, width) for width in (WIDTHS[0], WIDTHS[-1])},
    }
    by_rule = [row for activation in ACTIVATIONS for row in chosen(ends, activation=activation)]
    text = table(by_rule, ("activation", "rule"), columns)
    text += (
        f"\n\nFitted from x{FITTED} on, a line for each seed: mean and standard error; the proposition: -0.5 or less."
    )
    panels = [_distance_panel(chosen(ends, activation=name), title) for name, title in ACTIVATIONS.items()]
    labels = [f"‖f − f_align‖ after {last} steps"]
    figure = grid([panels], (10, 4.4), ylabels=labels, legends=[(0, 0), (0, 1)], share_y=True)
    return Artifact(COLUMNS, rows, text, figure)


def _distance_panel(rows: Sequence[Row], title: str) -> Panel:
    """Returns a panel of the distances of each rule, with the fit of their decline."""
    marks = []
    for (rule,), own in grouped(rows, "rule").items():
        style = STYLES[rule]
        slopes, factor = exponent(own)
        means = Style(f"{style.label}: m^({_exponent_text(own)})", style.marker, "", style.shade)
        marks.append(lines(own, "width", "distance", None, means, _geometric_mean, markersize=6))
        marks.append(points([row["width"] for row in own], [row["distance"] for row in own], _DOTS, markersize=3))
        if slopes.known:
            xs = np.array(sorted({row["width"] for row in own if row["width"] >= FITTED}), float)
            marks.append(points(xs, factor * xs**slopes.mean, Style(None, "", style.line, style.shade)))
    limits = (WIDTHS[0] / 1.3, WIDTHS[-1] * 1.3)
    return panel(*marks, ticks(WIDTHS), title=title, xlabel="hidden units m", yscale="log", xlim=limits)


_DOTS = Style(None, ".", "", 0.7)


def _geometric_mean(values: Sequence[float]) -> tuple[float, float, float]:
    return (float(np.exp(np.mean(np.log(values)))),) * 3


def _exponent_text(rows: Sequence[Row]) -> str:
    slopes, _ = exponent(rows)
    return f"{slopes.mean:.2f} ± {slopes.error:.2f}" if slopes.known else "not yet run"


def _distance_text(rows: Sequence[Row], width: int) -> str:
    own = chosen(rows, width=width)
    return f"{_geometric_mean([row['distance'] for row in own])[0]:.4f}" if own else ""


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


# Figure 2.

SHOWN = (WIDTHS[0], WIDTHS[-1])
"""Widths whose updates are drawn."""

UPDATE_COLUMNS = ("width", "seed", "rule", "row", "column", "update")


def figure_2(source: Source) -> Artifact:
    """Changes of the second layer by gradient descent, Align-ada and Align-zero, narrow above and wide below."""
    seed = SEEDS["tanh"][0]
    found = {width: source.chosen(width=width, seed=seed) for width in SHOWN}
    arrays = {width: results[0].arrays for width, results in found.items() if results}
    rows = [
        {"width": width, "seed": seed, "rule": rule, "row": row, "column": column, "update": float(value)}
        for width, own in arrays.items()
        for rule in updates.RULES
        for (row, column), value in np.ndenumerate(own[f"{rule}_update"])
    ]
    panels = [[_update_panel(rule, width, arrays.get(width)) for rule in updates.RULES] for width in SHOWN]
    columns = {"width": lambda own: f"x{own[0]['width']}"} | {
        f"cosine of ΔW, {STYLES[rule].label} to Normal": lambda own, rule=rule: (
            f"{arrays[own[0]['width']][f'{rule}_cosine'][-1, 1]:.4f}"
        )
        for rule in updates.ALIGNED
    }
    text = table([{"width": width} for width in arrays], ["width"], columns)
    text += f"\n\nThe second layer of a tanh network, its first {SIZES['side']} units each way; "
    text += "the cosine is that of the whole layer. Shades are the same for all of a width."
    return Artifact(UPDATE_COLUMNS, rows, text, grid(panels, (8.4, 5.6), ylabels=["unit of layer 1"] * 2))


def _update_panel(rule: str, width: int, arrays: Mapping[str, np.ndarray] | None) -> Panel:
    """Returns a panel of the change of the second layer; shades are the same for all rules."""
    axes = {"xlabel": "unit of layer 2", "xticks": [], "yticks": []}
    title = f"{STYLES[rule].label}, x{width}"
    if arrays is None:
        return panel(title=f"{title}: not yet run", **axes)
    largest = max(abs(arrays[f"{each}_update"]).max() for each in updates.RULES)
    return panel(image(arrays[f"{rule}_update"], vmin=-largest, vmax=largest), title=title, **axes)


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
