"""Table 8 and Figure 9 of Boopathy and Fiete 2022: recurrent networks on the Add task."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from neural_alignment.papers.figures import Style
from neural_alignment.papers.pieces import Piece, Pieces
from neural_alignment.papers.registry import Item, Source
from neural_alignment.papers.wide_networks import add_task
from neural_alignment.papers.wide_networks.published import CHANCE, TABLE_8, WIDTHS
from neural_alignment.reporting import Artifact, Row, Spread, markdown, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = ("rule", "width", "seed", "train_loss", "test_loss", "paper_train_loss", "paper_test_loss")

SEEDS = (100, 101, 102, 103, 104)
"""Of the weights and shuffles, beside the published one: how much of the table is its seed."""

SEEDED_WIDTHS = (8, 16, 32, 64, 128)
"""Widths that have these seeds; 256 and 512 take minutes each."""

STYLES = {
    "normal": Style("Normal", "o", "-", 0.0),
    "align_ada": Style("Align-ada", "s", "-", 0.3),
    "align_zero": Style("Align-zero", "^", "-", 0.5),
    "readout_only": Style("Readout only", "D", "-", 0.65),
}
"""Rule -> how its lines look."""


def pieces(epochs: int = add_task.EPOCHS) -> list[Pieces]:
    """Returns a network for each rule, width and seed.

    Args:
        epochs: of the training.
    """
    published = add_task.PUBLISHED_SEED
    return [
        _piece(rule, width, seed, epochs)
        for width in WIDTHS
        for rule in STYLES
        for seed in (published, *(SEEDS if width in SEEDED_WIDTHS else ()))
    ]


def _piece(rule: str, width: int, seed: int, epochs: int) -> Pieces:
    labels = {"rule": rule, "width": width, "seed": seed}
    name = f"recurrent/{width}/{rule}/seed{seed}"
    return Pieces(labels, (Piece(name, add_task.trained, arguments={**labels, "epochs": epochs}),))


def rows_of(source: Source) -> list[Row]:
    """Returns a row of `COLUMNS` per network that there is; the paper's losses are those of the published seed."""
    rows = []
    for cell, results in source.read():
        paper = TABLE_8[cell.labels["rule"]][cell.labels["width"]]
        for result in results:
            found = {name: add_task.best(result.arrays[name]) for name in ("train_loss", "test_loss")}
            rows.append(
                {**cell.labels, **found, "paper_train_loss": paper.train, "paper_test_loss": paper.test},
            )
    return rows


def table_8(source: Source) -> Artifact:
    """The least training and test losses, each over the epochs for itself, beside the printed ones."""
    rows = rows_of(source)
    header = ["rule", "hidden units", "train (paper)", "test (paper)", "other seeds", "train, others", "test, others"]
    lines = []
    for rule, style in STYLES.items():
        for width in WIDTHS:
            own, others = _chosen(rows, rule, width)
            spreads = [str(Spread([row[name] for row in others])) for name in ("train_loss", "test_loss")]
            if own or others:
                lines.append([style.label, width, *_beside(own), _counted(others), *spreads])
    text = f"{markdown(header, lines)}\n\n"
    text += f"Sums over {add_task.TIME} steps; the constant 0.5 has {CHANCE.train} and {CHANCE.test}. {_largest(rows)}"
    return Artifact(COLUMNS, rows, text)


def _chosen(rows: Sequence[Row], rule: str, width: int) -> tuple[list[Row], list[Row]]:
    """Returns the rows of the published seed, and of the others."""
    those = [row for row in rows if (row["rule"], row["width"]) == (rule, width)]
    published = add_task.PUBLISHED_SEED
    return [row for row in those if row["seed"] == published], [row for row in those if row["seed"] != published]


def _beside(own: Sequence[Row]) -> list[str]:
    """Returns both losses of the published seed beside the printed ones."""
    if not own:
        return ["not yet run", "not yet run"]
    return [f"{own[0][f'{part}_loss']:.3f} ({own[0][f'paper_{part}_loss']:.3f})" for part in ("train", "test")]


def _counted(others: Sequence[Row]) -> str:
    """Returns for a reader how many seeds there are, and how many of them diverged in the first epoch."""
    diverged = sum(math.isnan(row["train_loss"]) for row in others)
    return f"{len(others)}, {diverged} diverged" if diverged else str(len(others))


def _largest(rows: Sequence[Row]) -> str:
    """Returns for a reader how far the published seed is from the print."""
    differences = [
        abs(row[f"{part}_loss"] - row[f"paper_{part}_loss"])
        for row in rows
        if row["seed"] == add_task.PUBLISHED_SEED
        for part in ("train", "test")
    ]
    if not differences:
        return f"No network of seed {add_task.PUBLISHED_SEED} yet."
    return f"Largest difference of seed {add_task.PUBLISHED_SEED} to the paper: {max(differences):.4f}."


def figure_9(source: Source) -> Artifact:
    """The losses over the width; crosses are the paper's, bars the other seeds' mean and standard deviation."""
    rows = rows_of(source)
    figure = new_figure(10, 4.5)
    axes = figure.subplots(1, 2, sharey=True)
    for axis, part, level in zip(axes, ("test", "train"), (CHANCE.test, CHANCE.train), strict=True):
        for rule, style in STYLES.items():
            _draw(axis, rows, rule, style, part)
        axis.axhline(level, color="0.6", linewidth=0.7, linestyle=(0, (1, 3)))
        axis.set(title=f"{part} loss", xlabel="hidden units m", xscale="log", yscale="log")
        axis.set_xticks(WIDTHS, [str(width) for width in WIDTHS], minor=False)
        axis.minorticks_off()
    axes[0].set_ylabel("least loss over the epochs")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize="small")
    text = "Lines: seed 99, test loss left, training loss right. Crosses: the paper. Bars: mean and standard deviation "
    text += f"of seeds {SEEDS[0]} to {SEEDS[-1]}. Dotted: the constant 0.5. {_largest(rows)}"
    return Artifact(COLUMNS, rows, text, figure)


def _draw(axis: Axes, rows: Sequence[Row], rule: str, style: Style, part: str) -> None:
    """Draws one rule's line, the paper's crosses and the other seeds' bars."""
    shade = str(style.shade)
    line, bars = [], []
    for width in WIDTHS:
        own, others = _chosen(rows, rule, width)
        line += [(width, own[0][f"{part}_loss"])] if own else []
        if others:
            spread = Spread([row[f"{part}_loss"] for row in others])
            bars.append((width * 1.08, spread.mean, spread.deviation))
    options = {**style.options(), "linestyle": "-" if part == "test" else "--", "markersize": 4}
    if line:
        axis.errorbar(*zip(*line, strict=True), **options)
    if bars:
        xs, means, deviations = zip(*bars, strict=True)
        axis.errorbar(xs, means, yerr=deviations, fmt=style.marker, color=shade, capsize=2.5, markersize=3, mfc="white")
    printed = TABLE_8[rule]
    axis.plot(WIDTHS, [getattr(printed[width], part) for width in WIDTHS], "x", color=shade, markersize=7)


_PIECES = pieces()

ITEMS = [
    Item("table", "wide_networks/8", "recurrent networks on the Add task", table_8, {"lab": _PIECES}),
    Item("figure", "wide_networks/9", "recurrent networks on the Add task, by width", figure_9, {"lab": _PIECES}),
]
"""Table 8 and Figure 9. They have one size, the paper's, so `lab` is their only profile."""
