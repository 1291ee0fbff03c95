"""Table 8 and Figure 9 of Boopathy and Fiete 2022: recurrent networks on the Add task."""

from __future__ import annotations

import math
from collections.abc import Sequence

from neural_alignment.jobs.pieces import Piece, Pieces
from neural_alignment.papers.figures import Style, grid, level, lines, panel, ticks
from neural_alignment.papers.registry import Item, Source
from neural_alignment.papers.tables import chosen, spread, table
from neural_alignment.papers.wide_networks import add_task
from neural_alignment.papers.wide_networks.printed import CHANCE, TABLE_8, WIDTHS
from neural_alignment.reporting import Artifact, Row

COLUMNS = ("rule", "width", "seed", "train_loss", "test_loss", "paper_train_loss", "paper_test_loss")

SEEDS = (100, 101, 102, 103, 104)
"""Further seeds of the weights and shuffles, which show how much the table depends on the published one."""

SEEDED_WIDTHS = (8, 16, 32, 64, 128)
"""Widths trained with these seeds; 256 and 512 take minutes each."""

STYLES = {
    "normal": Style("Normal", "o", "-", 0.0),
    "align_ada": Style("Align-ada", "s", "-", 0.3),
    "align_zero": Style("Align-zero", "^", "-", 0.5),
    "readout_only": Style("Readout only", "D", "-", 0.65),
}
"""Rule -> look of its lines."""


def pieces(epochs: int = add_task.EPOCHS) -> list[Pieces]:
    """Returns a network for each rule, width and seed.

    Args:
        epochs: number of epochs.
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
    """Returns a row with `COLUMNS` per finished network; the paper's losses are those of the published seed."""
    return [
        {
            **labels,
            **{name: add_task.best(result.arrays[name]) for name in ("train_loss", "test_loss")},
            "paper_train_loss": TABLE_8[labels["rule"]][labels["width"]].train,
            "paper_test_loss": TABLE_8[labels["rule"]][labels["width"]].test,
        }
        for labels, results in source.results()
        for result in results
    ]


def _split(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """Returns the rows of the published seed, and those of the other seeds."""
    published = chosen(rows, seed=add_task.PUBLISHED_SEED)
    return published, [row for row in rows if row["seed"] != add_task.PUBLISHED_SEED]


def table_8(source: Source) -> Artifact:
    """The lowest training and test losses, each over the epochs by itself, and the printed ones."""
    rows = rows_of(source)
    columns = {
        "rule": lambda own: STYLES[own[0]["rule"]].label,
        "hidden units": "width",
        "train (paper)": lambda own: _loss(own, "train"),
        "test (paper)": lambda own: _loss(own, "test"),
        "other seeds": lambda own: _count(_split(own)[1]),
        "train, others": lambda own: spread(_split(own)[1], "train_loss"),
        "test, others": lambda own: spread(_split(own)[1], "test_loss"),
    }
    by_rule = sorted(rows, key=lambda row: (list(STYLES).index(row["rule"]), row["width"]))
    text = f"{table(by_rule, ('rule', 'width'), columns)}\n\nSums over {add_task.TIME} steps; the constant 0.5 has "
    return Artifact(COLUMNS, rows, f"{text}{CHANCE.train} and {CHANCE.test}. {_largest_difference(rows)}")


def _loss(rows: Sequence[Row], part: str) -> str:
    """Returns a loss of the published seed, and the printed one."""
    published, _ = _split(rows)
    return (
        "{:.3f} ({:.3f})".format(*(published[0][f"{each}{part}_loss"] for each in ("", "paper_")))
        if published
        else "not yet run"
    )


def _count(others: Sequence[Row]) -> str:
    """Returns the number of seeds, and of those that diverged in the first epoch."""
    diverged = sum(math.isnan(row["train_loss"]) for row in others)
    return f"{len(others)}, {diverged} diverged" if diverged else str(len(others))


def _largest_difference(rows: Sequence[Row]) -> str:
    """Returns a sentence about the largest difference between the published seed and the printed losses."""
    published, _ = _split(rows)
    differences = [
        abs(row[f"{part}_loss"] - row[f"paper_{part}_loss"]) for row in published for part in ("train", "test")
    ]
    if not differences:
        return f"No network of seed {add_task.PUBLISHED_SEED} yet."
    return f"Largest difference of seed {add_task.PUBLISHED_SEED} to the paper: {max(differences):.4f}."


def figure_9(source: Source) -> Artifact:
    """The losses over the width; crosses are the paper's, bars the other seeds' mean and standard deviation."""
    rows = rows_of(source)
    published, others = _split(rows)
    printed = [
        {"rule": rule, "width": width, "test_loss": losses.test, "train_loss": losses.train}
        for rule, by_width in TABLE_8.items()
        for width, losses in by_width.items()
        if width in WIDTHS
    ]
    crosses = {rule: Style(None, "x", "", style.shade) for rule, style in STYLES.items()}
    bars = {rule: Style(None, style.marker, "", style.shade, filled=False) for rule, style in STYLES.items()}
    panels = [
        panel(
            lines(published, "width", name, "rule", STYLES),
            lines(others, lambda row: 1.08 * row["width"], name, "rule", bars),
            lines(printed, "width", name, "rule", crosses, markersize=7),
            level(chance, "the constant 0.5"),
            ticks(WIDTHS),
            title=name.replace("_", " "),
            xlabel="hidden units m",
            yscale="log",
        )
        for name, chance in (("test_loss", CHANCE.test), ("train_loss", CHANCE.train))
    ]
    labels = ["lowest loss over the epochs"]
    figure = grid([panels], (10, 4.5), ylabels=labels, legend="outside lower center", share_y=True)
    text = "Lines: seed 99, test loss left, training loss right. Crosses: the paper. Bars: mean and standard deviation "
    text += f"of seeds {SEEDS[0]} to {SEEDS[-1]}. Dotted: the constant 0.5. {_largest_difference(rows)}"
    return Artifact(COLUMNS, rows, text, figure)


_PIECES = pieces()

ITEMS = [
    Item("table", "wide_networks/8", "recurrent networks on the Add task", table_8, {"lab": _PIECES}),
    Item("figure", "wide_networks/9", "recurrent networks on the Add task, by width", figure_9, {"lab": _PIECES}),
]
"""Table 8 and Figure 9. They have one size, the paper's, so `lab` is their only profile."""
