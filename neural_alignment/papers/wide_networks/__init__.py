"""Tables and figures of Boopathy and Fiete 2022, "How to Train Your Wide Neural Network Without Backprop"."""

from __future__ import annotations

from neural_alignment.papers.registry import Item
from neural_alignment.papers.wide_networks import figures, proposition, recurrent, runs, scores, tables, timing


def _item(kind, number, title, make, cells, **options) -> Item:
    return Item(kind, f"wide_networks/{number}", title, make, cells, **options)


ITEMS = [
    _item("table", 1, "Align-prop and all other rules on CIFAR-10", tables.table_1, runs.table_1()),
    _item("table", 2, "CIFAR-10 over five seeds", tables.table_2, runs.table_2()),
    _item("table", 6, "CIFAR-10, by width", tables.table_6, runs.table_6()),
    _item("table", 7, "KMNIST, by width", tables.table_7, runs.table_7()),
    *recurrent.ITEMS,
    *scores.ITEMS,
    *proposition.ITEMS,
    _item("table", 9, "Small CIFAR-10, by number of images and width", tables.table_9, runs.table_9()),
    _item("table", 10, "standard parameterization, Adam", tables.table_10, runs.table_10()),
    _item("figure", 3, "accuracy over the learning rate", figures.figure_3, runs.figure_3()),
    _item("figure", 4, "accuracy over the width", figures.figure_4, runs.figure_4()),
    _item("figure", 5, runs.IMAGENET_LOSS, figures.figure_5, runs.figure_5(), check=figures.check_sample),
    _item("figure", 6, "accuracy over the number of images", figures.figure_6, runs.table_9()),
    *timing.ITEMS,
]
"""Every table and figure of the paper."""
