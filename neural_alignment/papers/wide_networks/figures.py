"""Figures 3 to 6 of Boopathy and Fiete 2022: accuracies over rates, widths and numbers of images; training losses."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

from neural_alignment.errors import InputError
from neural_alignment.jobs.plans import unique, waiting
from neural_alignment.papers.figures import Mark, Style, first, grid, lines, panel, ticks
from neural_alignment.papers.registry import Source
from neural_alignment.papers.tables import chosen, table
from neural_alignment.papers.wide_networks.networks import COLUMNS, DIFFERS, TrainedNetwork, networks, row_of
from neural_alignment.papers.wide_networks.printed import TABLE_6, TABLE_7, TABLE_9, WIDTHS
from neural_alignment.papers.wide_networks.runs import IMAGENET_LOSS, IMAGENET_SAMPLE, PIPELINE_CHECK, RULE_STYLES
from neural_alignment.papers.wide_networks.tables import COLUMNS_9, label, rows_of_9
from neural_alignment.reporting import Artifact, Row

TITLES = {"cifar10": "CIFAR-10", "kmnist": "KMNIST"}

PRINTED = {"cifar10": TABLE_6, "kmnist": TABLE_7}

CROSSES = {rule: Style(None, "x", "", style.shade) for rule, style in RULE_STYLES.items()}
"""Published accuracies."""

NARROW_STYLES = {
    rule: dataclasses.replace(style, label=None, line=(0, (1, 1.5)), filled=False)
    for rule, style in RULE_STYLES.items()
}
"""The narrower of two networks."""

ACCURACY = "validation_accuracy"


def over(rows: Sequence[Row], x: str, styles: Mapping[str, Style] = RULE_STYLES, y: str = ACCURACY) -> Mark:
    """Returns a line per rule; of several seeds the first is drawn."""
    return lines(rows, x, y, "rule", styles, first)


def _published(numbers: Mapping[Any, Mapping[str, Mapping[int, float]]], key: str, **labels: Any) -> list[Row]:
    """Returns a row per published accuracy: value of a key column -> rule -> width -> accuracy."""
    return [
        {**labels, key: value, "rule": rule, "width": width, ACCURACY: accuracy}
        for value, rules in numbers.items()
        for rule, by_width in rules.items()
        for width, accuracy in by_width.items()
    ]


def _differences(source: Source) -> str:
    """Returns the differences between the networks of a figure and those of the paper."""
    differences = sorted({cell.labels[DIFFERS] for cell in source.cells} - {""})
    return "".join(f"\n\nDiffers from the paper (paper): {each}." for each in differences)


def _counted(found: Sequence[TrainedNetwork], source: Source) -> str:
    expected = len(source.cells) if source.profile == "lab" else len(found)
    return f"{len(found)} networks" + (f" of {expected}" if expected != len(found) else "")


def figure_3(source: Source) -> Artifact:
    """Accuracy over the learning rate, a narrow and a wide network."""
    found = networks(source)
    columns = ("dataset", "rule", "width", "seed", "rate", ACCURACY, DIFFERS)
    rows = [
        {**each.labels, "seed": each.seed, "rate": rate, ACCURACY: accuracy}
        for each in found
        for rate, accuracy in each.by_rate().items()
    ]
    narrow, wide = (pick(cell.labels["width"] for cell in source.cells) for pick in (min, max))
    panels = [
        panel(
            over(chosen(rows, dataset=dataset, width=wide), "rate"),
            over(chosen(rows, dataset=dataset, width=narrow), "rate", NARROW_STYLES),
            ticks(sorted({row["rate"] for row in rows}) or [1.0]),
            title=TITLES[dataset],
            xlabel="learning rate",
            ylabel="validation accuracy (%)",
        )
        for dataset in TITLES
        if any(cell.labels["dataset"] == dataset for cell in source.cells)
    ]
    order = list(RULE_STYLES)
    rows.sort(key=lambda row: (row["dataset"], row["width"], order.index(row["rule"]), row["rate"]))
    rows = [{name: row[name] for name in columns} for row in rows]
    text = f"{_counted(found, source)}. Lines: width {wide}; dotted: width {narrow}; nothing where J became infinite."
    figure = grid([panels], (5 * len(panels), 4.8), legend="outside lower center")
    return Artifact(columns, rows, text + _differences(source), figure)


def figure_4(source: Source) -> Artifact:
    """Accuracy over the width, with the accuracies that the paper prints."""
    found = networks(source)
    rows = [row_of(each, PRINTED[each.labels["dataset"]], "dataset") for each in found]
    published = _published(PRINTED, "dataset")
    panels = [
        panel(
            over(chosen(rows, dataset=dataset), "width"),
            over(chosen(published, dataset=dataset), "width", CROSSES),
            ticks(WIDTHS),
            title=title,
            xlabel="filters of each convolution",
            ylabel="validation accuracy (%)",
        )
        for dataset, title in TITLES.items()
    ]
    text = f"{_counted(found, source)}. Lines: here; crosses: Tables 6 and 7 of the paper, with its protocol."
    figure = grid([panels], (10, 4.8), legend="outside lower center")
    return Artifact(("dataset", *COLUMNS), rows, text + _differences(source), figure)


def figure_5(source: Source) -> Artifact:
    """Training losses on ImageNet; the lab only checks on a sample that data, rules and networks fit together."""
    found = networks(source)
    columns = ("rule", "width", "seed", "rate", "epoch", "train_loss", DIFFERS)
    rows = [
        {**{name: each.labels[name] for name in ("rule", "width", DIFFERS)}, "seed": each.seed, "rate": each.rates[0]}
        | {"epoch": epoch, "train_loss": float(loss)}
        for each in found
        for epoch, loss in enumerate(each.loss[0], start=1)
    ]
    title = PIPELINE_CHECK if source.profile == "lab" else IMAGENET_LOSS
    axes = {"xlabel": "epoch", "ylabel": "mean training loss of the epoch"}
    losses = panel(
        over(rows, "epoch", y="train_loss"),
        lambda axis: axis.set_title(title, fontsize="small"),
        ticks(sorted({row["epoch"] for row in rows}), log=False),
        **axes,
    )
    columns_of_text = {
        "rule": label,
        "loss, first epoch": lambda own: f"{own[0]['train_loss']:.5f}",
        "last": lambda own: f"{own[-1]['train_loss']:.5f}",
    }
    text = f"{title}. {_counted(found, source)}.\n\n{table(rows, ['rule'], columns_of_text)}{_differences(source)}"
    return Artifact(columns, rows, text, grid([[losses]], (6.5, 4.6), legends=[(0, 0)]))


def check_sample(source: Source) -> None:
    """Checks that the sample of ImageNet is named if the lab has to train on it.

    Raises:
        InputError: if it is not.
    """
    missing = source.profile == "lab" and waiting(unique(source.cells), source.folder, source.configs)
    if missing and not os.environ.get(IMAGENET_SAMPLE):
        raise InputError(
            f"{IMAGENET_SAMPLE}: must name the folder of the sample of ImageNet, TFRecords train-* and validation-*; "
            "it is not set"
        )


def figure_6(source: Source) -> Artifact:
    """Accuracy over the number of training images, with the accuracies that the paper prints."""
    rows = rows_of_9(source)
    widths, numbers = (sorted({cell.labels[name] for cell in source.cells}) for name in ("width", "train_images"))
    published = _published({number: TABLE_9[number] for number in numbers}, "train_images")
    panels = [
        panel(
            over(chosen(rows, width=width), "train_images"),
            over(chosen(published, width=width), "train_images", CROSSES),
            ticks(numbers),
            title=f"width {width}",
            xlabel="training images",
        )
        for width in widths
    ]
    labels = ["validation accuracy (%)"]
    figure = grid([panels], (3.7 * len(widths), 4.6), ylabels=labels, legend="outside lower center", share_y=True)
    text = f"{len(rows)} networks of {len(source.cells)}. Lines: here; crosses: Table 9 of the paper."
    return Artifact(COLUMNS_9, rows, text + _differences(source), figure)
