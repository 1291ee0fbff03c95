"""Figures 3 to 6 of Boopathy and Fiete 2022: accuracies over rates, widths and numbers of images; training losses."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from neural_alignment.errors import InputError
from neural_alignment.papers.figures import Style
from neural_alignment.papers.plans import unique, waiting
from neural_alignment.papers.registry import Source
from neural_alignment.papers.wide_networks.accuracies import TABLE_6, TABLE_7, TABLE_9
from neural_alignment.papers.wide_networks.runs import IMAGENET_LOSS, IMAGENET_SAMPLE, PIPELINE_CHECK, RULES
from neural_alignment.papers.wide_networks.tables import (
    COLUMNS,
    COLUMNS_9,
    DIFFERS,
    Network,
    networks,
    row_of,
    rows_of_9,
)
from neural_alignment.reporting import Artifact, Row, markdown, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TITLES = {"cifar10": "CIFAR-10", "kmnist": "KMNIST"}

PRINTED = {"cifar10": TABLE_6, "kmnist": TABLE_7}


def draw(axis: Axes, points: Mapping[float, float], style: Style, dashed: bool = False) -> None:
    """Draws a line through what is known.

    Args:
        axis: where.
        points: x -> y; NaN is left out.
        style: of the line.
        dashed: for the narrow one of two networks.
    """
    known = sorted((x, y) for x, y in points.items() if not math.isnan(y))
    options = style.options() | {"markersize": 4, "linewidth": 1.2}
    if dashed:
        options |= {"linestyle": (0, (1, 1.5)), "label": None, "markerfacecolor": "white"}
    if known:
        axis.errorbar(*zip(*known, strict=True), **options)


def _logarithmic(axis: Axes, xs: Sequence[float], label: str) -> None:
    """Gives an axis these places and no others."""
    axis.set(xscale="log", xlabel=label)
    axis.set_xticks(xs, [f"{x:g}" for x in xs])
    axis.minorticks_off()


def _legend(figure: Any, axis: Axes) -> None:
    handles, labels = axis.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize="small")


def _told(source: Source) -> str:
    """Returns for a reader in what the networks differ from the paper's."""
    told = sorted({cell.labels[DIFFERS] for cell in source.cells} - {""})
    return "".join(f"\n\nDiffers from the paper (paper): {each}." for each in told)


def _counted(found: Sequence[Network], source: Source) -> str:
    expected = len(source.cells) if source.profile == "lab" else None
    return f"{len(found)} networks" + (f" of {expected}" if expected not in (None, len(found)) else "")


COLUMNS_3 = ("dataset", "rule", "width", "seed", "rate", "validation_accuracy", DIFFERS)


def figure_3(source: Source) -> Artifact:
    """Accuracy over the learning rate, a narrow and a wide network."""
    found = networks(source)
    rows = [
        {**_named(each, "dataset", "rule", "width"), "seed": each.seed, "rate": rate, "validation_accuracy": accuracy}
        | {DIFFERS: each.labels[DIFFERS]}
        for each in found
        for rate, accuracy in each.by_rate().items()
    ]
    narrow, wide = (pick(cell.labels["width"] for cell in source.cells) for pick in (min, max))
    datasets = [name for name in TITLES if any(cell.labels["dataset"] == name for cell in source.cells)]
    figure = new_figure(5 * len(datasets), 4.8)
    axes = figure.subplots(1, len(datasets), squeeze=False)[0]
    for axis, dataset in zip(axes, datasets, strict=True):
        for rule, (_, style) in RULES.items():
            for width in (wide, narrow):
                draw(axis, _points(rows, "rate", dataset=dataset, rule=rule, width=width), style, width == narrow)
        _logarithmic(axis, sorted({row["rate"] for row in rows}) or [1.0], "learning rate")
        axis.set(title=TITLES[dataset], ylabel="validation accuracy (%)")
    _legend(figure, axes[0])
    rows.sort(key=lambda row: (row["dataset"], row["width"], list(RULES).index(row["rule"]), row["rate"]))
    text = f"{_counted(found, source)}. Lines: width {wide}; dotted: width {narrow}; nothing where J became infinite."
    return Artifact(COLUMNS_3, rows, text + _told(source), figure)


def _named(network: Network, *names: str) -> Row:
    return {name: network.labels[name] for name in names}


def _points(rows: Sequence[Row], x: str, **key: Any) -> dict[float, float]:
    """Returns x -> validation accuracy of the rows with some labels, the first where there are several seeds."""
    chosen = [row for row in rows if key.items() <= row.items()]
    return {row[x]: row["validation_accuracy"] for row in reversed(chosen)}


def figure_4(source: Source) -> Artifact:
    """Accuracy over the width; the paper's printed accuracies beside."""
    found = networks(source)
    rows = [row_of(each, PRINTED[each.labels["dataset"]], dataset=each.labels["dataset"]) for each in found]
    figure = new_figure(10, 4.8)
    axes = figure.subplots(1, 2)
    for axis, (dataset, title) in zip(axes, TITLES.items(), strict=True):
        for rule, (_, style) in RULES.items():
            draw(axis, _points(rows, "width", dataset=dataset, rule=rule), style)
            _draw_printed(axis, PRINTED[dataset].get(rule, {}), style)
        _logarithmic(axis, list(PRINTED[dataset]["normal"]), "filters of each convolution")
        axis.set(title=title, ylabel="validation accuracy (%)")
    _legend(figure, axes[0])
    text = f"{_counted(found, source)}. Lines: here; crosses: Tables 6 and 7 of the paper, of its own protocol."
    return Artifact(("dataset", *COLUMNS, DIFFERS), rows, text + _told(source), figure)


def _draw_printed(axis: Axes, printed: Mapping[int, float], style: Style) -> None:
    axis.plot(list(printed), list(printed.values()), "x", color=str(style.shade), markersize=4)


COLUMNS_5 = ("rule", "width", "seed", "rate", "epoch", "train_loss", DIFFERS)


def figure_5(source: Source) -> Artifact:
    """Training losses on ImageNet; in the lab on a sample: whether data, rules and networks fit together, no more."""
    found = networks(source)
    title = PIPELINE_CHECK if source.profile == "lab" else IMAGENET_LOSS
    figure = new_figure(6.5, 4.6)
    axis = figure.subplots()
    rows: list[Row] = []
    lines = []
    for network in found:
        epochs = np.arange(1, network.loss.shape[1] + 1)
        axis.plot(epochs, network.loss[0], **_plain(RULES[network.labels["rule"]].style))
        rows += [
            {**_named(network, "rule", "width", DIFFERS), "seed": network.seed, "rate": network.rates[0]}
            | {"epoch": int(epoch), "train_loss": float(loss)}
            for epoch, loss in zip(epochs, network.loss[0], strict=True)
        ]
        first, last = network.loss[0][0], network.loss[0][-1]
        lines.append([RULES[network.labels["rule"]].style.label, f"{first:.5f}", f"{last:.5f}"])
    axis.set(title=title, xlabel="epoch", ylabel="mean training loss of the epoch")
    axis.title.set_fontsize("small")
    if rows:
        axis.legend(fontsize="small")
    table = markdown(["rule", "loss, first epoch", "last"], lines)
    return Artifact(COLUMNS_5, rows, f"{title}. {_counted(found, source)}.\n\n{table}{_told(source)}", figure)


def check_sample(source: Source) -> None:
    """Checks that the sample of ImageNet is named where a network of the lab is still to be trained on it.

    Raises:
        InputError: if it is not.
    """
    lacking = source.profile == "lab" and waiting(unique(source.cells), source.folder, source.configs)
    if lacking and not os.environ.get(IMAGENET_SAMPLE):
        raise InputError(
            f"{IMAGENET_SAMPLE}: must name the folder of the sample of ImageNet, TFRecords train-* and validation-*; "
            "it is not set"
        )


def _plain(style: Style) -> dict[str, Any]:
    return {name: value for name, value in style.options().items() if name != "capsize"} | {"markersize": 4}


def figure_6(source: Source) -> Artifact:
    """Accuracy over the number of training images; the paper's printed accuracies beside."""
    rows = rows_of_9(source)
    widths = sorted({cell.labels["width"] for cell in source.cells})
    numbers = sorted({cell.labels["train_images"] for cell in source.cells})
    figure = new_figure(3.7 * len(widths), 4.6)
    axes = figure.subplots(1, len(widths), sharey=True, squeeze=False)[0]
    for axis, width in zip(axes, widths, strict=True):
        for rule, (_, style) in RULES.items():
            draw(axis, _points(rows, "train_images", rule=rule, width=width), style)
            printed = {number: TABLE_9[number][rule][width] for number in numbers if rule in TABLE_9[number]}
            _draw_printed(axis, printed, style)
        _logarithmic(axis, numbers, "training images")
        axis.set(title=f"width {width}")
    axes[0].set_ylabel("validation accuracy (%)")
    _legend(figure, axes[0])
    text = f"{len(rows)} networks of {len(source.cells)}. Lines: here; crosses: Table 9 of the paper."
    return Artifact((*COLUMNS_9, DIFFERS), rows, text + _told(source), figure)
