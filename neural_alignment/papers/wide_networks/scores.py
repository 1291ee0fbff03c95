"""Tables 3 to 5 and Figures 1 and 8 of Boopathy and Fiete 2022: alignment scores by layer and width."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from neural_alignment.papers.figures import Style
from neural_alignment.papers.pieces import Piece, Pieces
from neural_alignment.papers.plans import Run
from neural_alignment.papers.registry import Item, Source
from neural_alignment.papers.wide_networks import scoring
from neural_alignment.papers.wide_networks.published import TABLE_3, TABLE_4, TABLE_5, Scores
from neural_alignment.reporting import Artifact, Row, Spread, markdown, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = ("layer", "width", "seed", "score", "score_sem", "permuted_score", "paper_score")

WIDTHS = (8, 16, 32, 64)
"""Of the lab; the paper goes on to 512."""

PROBES = 100
"""Gaussian samples of a score (Appendix F)."""


@dataclass(frozen=True)
class Setting:
    """One kind of network whose layers are scored.

    Attributes:
        title: in figures.
        config: the configuration it starts from.
        overrides: `key.path=value`: the size of the lab.
        seeds: of the networks.
        moments: epochs after which it is scored.
        paper: the printed scores.
        differs: for a reader, what is not as in the paper.
    """

    title: str
    config: str
    overrides: tuple[str, ...]
    seeds: tuple[int, ...]
    moments: tuple[int, ...]
    paper: Scores
    differs: str


_CIFAR = ("data.train_split=train[5000:7000]", "data.validation_split=train[:100]", "data.image_size=16")
_KMNIST = ("data.train_split=train", "data.validation_split=test[:100]")
_SHORT = (1, 2, 4, 7, 10)


def _rate(rate: float) -> tuple[str, ...]:
    return (f"optimization.forward.learning_rate={rate}",)


SETTINGS = {
    "cifar10": Setting(
        "CIFAR-10, ReLU",
        "wide_networks/cifar10/normal.yaml",
        (*_CIFAR, *_rate(5.0)),
        (99,),
        _SHORT,
        TABLE_3,
        "2,000 images of 16 x 16 pixels for 10 epochs at rate 5, as in the published code; the paper: 45,000 of "
        "32 x 32 for 150, rate 1 as printed",
    ),
    "kmnist": Setting(
        "KMNIST, ReLU",
        "wide_networks/kmnist/normal.yaml",
        (*_KMNIST, *_rate(5.0)),
        (99,),
        (1, 2, 3, 4, 5),
        TABLE_4,
        "9,000 images for 5 epochs at rate 5, as in the published code; the paper: 55,000 for 100",
    ),
    "cifar10_tanh": Setting(
        "CIFAR-10, tanh",
        "wide_networks/cifar10/normal.yaml",
        (*_CIFAR, *_rate(2.0), "model.activation=tanh"),
        (99,),
        _SHORT,
        TABLE_5,
        "2,000 images of 16 x 16 pixels for 10 epochs at rate 2; the paper: 45,000 of 32 x 32 for 100, rate 2",
    ),
}
"""Name -> what is scored. The number of steps is what a few minutes on 2 cores allow."""


def pieces(name: str) -> list[Pieces]:
    """Returns a network for each width and seed of a setting."""
    return [_piece(name, width, seed) for width in WIDTHS for seed in SETTINGS[name].seeds]


def _piece(name: str, width: int, seed: int) -> Pieces:
    setting = SETTINGS[name]
    start = Run(setting.config, "", (*setting.overrides, f"model.width={width}", f"seed={seed}"))
    arguments = {"moments": setting.moments, "probes": PROBES}
    piece = Piece(f"scores/{name}/{width}/seed{seed}", scoring.scored, (start,), arguments)
    return Pieces({"setting": name, "width": width, "seed": seed}, (piece,))


def rows_of(source: Source, name: str) -> list[Row]:
    """Returns a row per layer, network and moment of a setting: `COLUMNS`, and `epoch`."""
    rows = []
    for cell, results in source.read():
        if cell.labels["setting"] == name:
            for result in results:
                rows += _rows(cell.labels["width"], cell.labels["seed"], result.arrays, SETTINGS[name].paper)
    return rows


def _rows(width: int, seed: int, arrays: dict, paper: Scores) -> Iterator[Row]:
    for moment, epoch in enumerate(arrays["epoch"]):
        for layer, score in enumerate(arrays["score"][moment], start=1):
            found = {key: float(arrays[key][moment, layer - 1]) for key in ("score_sem", "permuted_score")}
            row = {"layer": layer, "width": width, "seed": seed, "score": float(score), **found}
            yield {**row, "paper_score": paper[layer, width], "epoch": int(epoch)}


def _at_end(rows: Sequence[Row]) -> list[Row]:
    """Returns the rows of the last moment of each network, layer by layer."""
    last = {(row["width"], row["seed"]): row["epoch"] for row in rows}
    kept = [row for row in rows if row["epoch"] == last[row["width"], row["seed"]]]
    return sorted(kept, key=lambda row: (row["layer"], row["width"], row["seed"]))


def table(name: str) -> Callable[[Source], Artifact]:
    """Returns what makes the table of a setting: scores at the end of training, beside the printed ones."""

    def make(source: Source) -> Artifact:
        rows = _at_end(rows_of(source, name))
        layers, widths = (sorted({row[key] for row in rows}) for key in ("layer", "width"))
        lines = [[f"layer {layer}", *(_cell(rows, layer, width) for width in widths)] for layer in layers]
        text = markdown(["score (paper)", *(f"x{width}" for width in widths)], lines)
        text += f"\n\nOf several seeds mean and standard deviation. {SETTINGS[name].differs}. {_claim(rows)}"
        return Artifact(COLUMNS, [{key: row[key] for key in COLUMNS} for row in rows], text)

    return make


def _cell(rows: Sequence[Row], layer: int, width: int) -> str:
    own = [row for row in rows if (row["layer"], row["width"]) == (layer, width)]
    if not own:
        return "not yet run"
    return f"{_spread(own, 'score', 3)} ({own[0]['paper_score']:.3f})"


def _spread(rows: Sequence[Row], name: str, digits: int) -> str:
    spread = Spread([row[name] for row in rows])
    more = f" ± {spread.deviation:.{digits}f}" if len(spread.known) > 1 else ""
    return f"{spread.mean:.{digits}f}{more}"


def _claim(rows: Sequence[Row]) -> str:
    """Returns for a reader how the mean over layers goes with the width, and what permuted weights give."""
    widths = sorted({row["width"] for row in rows})
    if not widths:
        return "No network yet."
    parts = []
    for name in ("score", "permuted_score"):
        means = [_mean(rows, width, name) for width in widths]
        parts.append(", ".join(f"{mean:.3f} (x{width})" for width, mean in zip(widths, means, strict=True)))
    return f"Mean over layers and seeds: {parts[0]}; with permuted weights {parts[1]}."


def _mean(rows: Sequence[Row], width: int, name: str) -> float:
    return statistics.fmean(row[name] for row in rows if row["width"] == width)


# Figures 1 and 8.

FIGURE_COLUMNS = ("setting", "epoch", *COLUMNS)

SHOWN = ("cifar10", "kmnist")
"""Settings of both figures."""

STYLES = {
    width: Style(f"x{width}", marker, line, shade)
    for width, marker, line, shade in zip(WIDTHS, "osD^", ("-", "--", "-.", ":"), (0.6, 0.45, 0.25, 0.0), strict=True)
}
"""Width -> how its line looks."""


def figure_1(source: Source) -> Artifact:
    """Scores by layer and width at the end of training; bars are standard deviations over seeds."""
    return _figure(source, _at_end, _by_layer, "layer", "Small crosses: the paper's scores.")


def figure_8(source: Source) -> Artifact:
    """Scores over training, means over layers and seeds; open markers: permuted weights."""
    return _figure(source, list, _over_training, "epoch", "Means over layers and seeds; open: permuted weights.")


def _figure(
    source: Source,
    choose: Callable[[list[Row]], list[Row]],
    draw: Callable[[Axes, Sequence[Row], Style], None],
    over: str,
    note: str,
) -> Artifact:
    """Returns a figure with a panel per setting, in which `draw` draws the chosen rows of each width."""
    figure = new_figure(10, 4.2)
    axes = figure.subplots(1, len(SHOWN), sharey=True)
    rows: list[Row] = []
    for axis, name in zip(axes, SHOWN, strict=True):
        own = choose(rows_of(source, name))
        for width, style in STYLES.items():
            chosen = [row for row in own if row["width"] == width]
            if chosen:
                draw(axis, chosen, style)
        axis.set(title=SETTINGS[name].title, xlabel=over, ylim=(0, 1.02))
        axis.xaxis.get_major_locator().set_params(integer=True)
        rows += [{"setting": name, **row} for row in own]
    axes[0].set_ylabel("alignment score")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(WIDTHS))
    differs = " ".join(f"{SETTINGS[name].title}: {SETTINGS[name].differs}." for name in SHOWN)
    return Artifact(FIGURE_COLUMNS, rows, f"{note} {differs}", figure)


def _by_layer(axis: Axes, rows: Sequence[Row], style: Style) -> None:
    layers = sorted({row["layer"] for row in rows})
    spreads = [Spread([row["score"] for row in rows if row["layer"] == layer]) for layer in layers]
    deviations = [spread.deviation if len(spread.known) > 1 else 0.0 for spread in spreads]
    axis.errorbar(layers, [spread.mean for spread in spreads], yerr=deviations, markersize=5, **style.options())
    paper = {row["layer"]: row["paper_score"] for row in rows}
    axis.plot(layers, [paper[layer] for layer in layers], "x", color=str(style.shade), markersize=4)


def _over_training(axis: Axes, rows: Sequence[Row], style: Style) -> None:
    epochs = sorted({row["epoch"] for row in rows})
    for name, options in (("score", {}), ("permuted_score", {"mfc": "white", "label": None, "linewidth": 0.8})):
        means = [statistics.fmean(row[name] for row in rows if row["epoch"] == epoch) for epoch in epochs]
        axis.errorbar(epochs, means, markersize=5, **{**style.options(), **options})


def _cells(*names: str) -> dict[str, list[Pieces]]:
    return {"lab": [cell for name in names for cell in pieces(name)]}


ITEMS = [
    Item("table", "wide_networks/3", "alignment scores, CIFAR-10, ReLU", table("cifar10"), _cells("cifar10")),
    Item("table", "wide_networks/4", "alignment scores, KMNIST", table("kmnist"), _cells("kmnist")),
    Item("table", "wide_networks/5", "alignment scores, CIFAR-10, tanh", table("cifar10_tanh"), _cells("cifar10_tanh")),
    Item("figure", "wide_networks/1", "alignment scores by layer and width", figure_1, _cells(*SHOWN)),
    Item("figure", "wide_networks/8", "alignment scores over training", figure_8, _cells(*SHOWN)),
]
"""Tables 3 to 5, Figures 1 and 8, at the size of 2 cores alone: `lab` is their only profile."""
