"""Tables 3 to 5 and Figures 1 and 8 of Boopathy and Fiete 2022: alignment scores by layer and width."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from neural_alignment.jobs.pieces import Piece, Pieces
from neural_alignment.jobs.plans import Run
from neural_alignment.papers.figures import Style, first, grid, lines, panel, ticks
from neural_alignment.papers.registry import Item, Source
from neural_alignment.papers.tables import chosen, crossed, grouped, spread
from neural_alignment.papers.wide_networks import scoring
from neural_alignment.papers.wide_networks.printed import TABLE_3, TABLE_4, TABLE_5
from neural_alignment.reporting import Artifact, Row

COLUMNS = ("layer", "width", "seed", "score", "score_sem", "permuted_score", "paper_score")

WIDTHS = (8, 16, 32, 64)
"""Widths of the lab; those of the paper go up to 512."""

PROBES = 100
"""Gaussian samples of a score (Appendix F)."""


@dataclass(frozen=True)
class Setting:
    """One kind of network whose layers are scored.

    Attributes:
        title: title in figures.
        config: configuration it starts from.
        overrides: `key.path=value`, with the size of the lab.
        seeds: seeds of the networks.
        moments: epochs after which it is scored.
        paper: (layer, width) -> score that the paper prints.
        differs: differences from the paper, for a reader.
    """

    title: str
    config: str
    overrides: tuple[str, ...]
    seeds: tuple[int, ...]
    moments: tuple[int, ...]
    paper: Mapping[tuple[int, int], float]
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
"""Name -> setting. The number of steps takes a few minutes on 2 cores."""


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
    """Returns a row per network, moment and layer of a setting: `COLUMNS`, and `epoch`."""
    paper = SETTINGS[name].paper
    return [
        {"layer": layer, "width": labels["width"], "seed": labels["seed"]}
        | {key: float(arrays[key][moment, layer - 1]) for key in ("score", "score_sem", "permuted_score")}
        | {"paper_score": paper[layer, labels["width"]], "epoch": int(epoch)}
        for labels, results in source.results(setting=name)
        for arrays in (result.arrays for result in results)
        for moment, epoch in enumerate(arrays["epoch"])
        for layer in range(1, arrays["score"].shape[1] + 1)
    ]


def _at_end(rows: Sequence[Row]) -> list[Row]:
    """Returns the rows of the last moment of each network, sorted by layer."""
    networks = grouped(rows, "width", "seed").values()
    kept = [row for own in networks for row in own if row["epoch"] == own[-1]["epoch"]]
    return sorted(kept, key=lambda row: (row["layer"], row["width"], row["seed"]))


def table(name: str) -> Callable[[Source], Artifact]:
    """Returns the function that makes the table of a setting: scores at the end of training, and the printed ones."""

    def make(source: Source) -> Artifact:
        rows = _at_end(rows_of(source, name))
        layers, widths = (sorted({row[key] for row in rows}) for key in ("layer", "width"))
        down, across = {f"layer {layer}": layer for layer in layers}, {f"x{width}": width for width in widths}
        text = crossed("score (paper)", down, across, lambda layer, width: _score(rows, layer, width))
        text += f"\n\nOf several seeds mean and standard deviation. {SETTINGS[name].differs}. {_means(rows, widths)}"
        return Artifact(COLUMNS, [{key: row[key] for key in COLUMNS} for row in rows], text)

    return make


def _score(rows: Sequence[Row], layer: int, width: int) -> str:
    own = chosen(rows, layer=layer, width=width)
    return f"{spread(own, 'score'):.3f} ({own[0]['paper_score']:.3f})" if own else "not yet run"


def _means(rows: Sequence[Row], widths: Sequence[int]) -> str:
    """Returns a sentence about the mean over layers by width, and about permuted weights."""
    if not widths:
        return "No network yet."
    scores, permuted = (
        ", ".join(f"{spread(chosen(rows, width=width), name).mean:.3f} (x{width})" for width in widths)
        for name in ("score", "permuted_score")
    )
    return f"Mean over layers and seeds: {scores}; with permuted weights {permuted}."


# Figures 1 and 8.

FIGURE_COLUMNS = ("setting", "epoch", *COLUMNS)

SHOWN = ("cifar10", "kmnist")
"""Settings of both figures."""

STYLES = {
    width: Style(f"x{width}", marker, line, shade)
    for width, marker, line, shade in zip(WIDTHS, "osD^", ("-", "--", "-.", ":"), (0.6, 0.45, 0.25, 0.0), strict=True)
}
CROSSES = {width: Style(None, "x", "", style.shade) for width, style in STYLES.items()}
PERMUTED = {width: Style(None, style.marker, style.line, style.shade, filled=False) for width, style in STYLES.items()}
"""Width -> look of the scores, of the paper's scores, and of the scores of permuted weights."""


def figure_1(source: Source) -> Artifact:
    """Scores by layer and width at the end of training; bars are standard deviations over seeds."""

    def marks(rows: Sequence[Row]) -> list:
        return [
            lines(rows, "layer", "score", "width", STYLES),
            lines(rows, "layer", "paper_score", "width", CROSSES, first),
        ]

    return _figure(
        {name: _at_end(rows_of(source, name)) for name in SHOWN}, "layer", marks, "Small crosses: the paper's scores."
    )


def figure_8(source: Source) -> Artifact:
    """Scores over training, means over layers and seeds; open markers are permuted weights."""

    def marks(rows: Sequence[Row]) -> list:
        return [
            lines(rows, "epoch", "score", "width", STYLES, _mean),
            lines(rows, "epoch", "permuted_score", "width", PERMUTED, _mean),
        ]

    note = "Means over layers and seeds; open: permuted weights."
    return _figure({name: rows_of(source, name) for name in SHOWN}, "epoch", marks, note)


def _mean(values: Sequence[float]) -> tuple[float, float, float]:
    return (sum(values) / len(values),) * 3


def _figure(rows: Mapping[str, list[Row]], over: str, marks: Callable[[Sequence[Row]], list], note: str) -> Artifact:
    """Returns a figure with a panel per setting.

    Args:
        rows: setting -> its rows.
        over: column of the x axis.
        marks: rows of a setting -> marks of its panel.
        note: first sentences of the text.
    """
    panels = [
        panel(
            *marks(own),
            ticks(sorted({row[over] for row in own}), log=False),
            title=SETTINGS[name].title,
            xlabel=over,
            ylim=(0, 1.02),
        )
        for name, own in rows.items()
    ]
    figure = grid([panels], (10, 4.2), ylabels=["alignment score"], legend="outside lower center", share_y=True)
    differs = " ".join(f"{SETTINGS[name].title}: {SETTINGS[name].differs}." for name in SHOWN)
    labelled = [{"setting": name, **row} for name, own in rows.items() for row in own]
    return Artifact(FIGURE_COLUMNS, labelled, f"{note} {differs}", figure)


def _cells(*names: str) -> dict[str, list[Pieces]]:
    return {"lab": [cell for name in names for cell in pieces(name)]}


ITEMS = [
    Item("table", "wide_networks/3", "alignment scores, CIFAR-10, ReLU", table("cifar10"), _cells("cifar10")),
    Item("table", "wide_networks/4", "alignment scores, KMNIST", table("kmnist"), _cells("kmnist")),
    Item("table", "wide_networks/5", "alignment scores, CIFAR-10, tanh", table("cifar10_tanh"), _cells("cifar10_tanh")),
    Item("figure", "wide_networks/1", "alignment scores by layer and width", figure_1, _cells(*SHOWN)),
    Item("figure", "wide_networks/8", "alignment scores over training", figure_8, _cells(*SHOWN)),
]
"""Tables 3 to 5, Figures 1 and 8. They have one size, that of 2 cores, so `lab` is their only profile."""
