"""Tables and figures of Boopathy and Fiete 2022, "How to Train Your Wide Neural Network Without Backprop"."""

from __future__ import annotations

from neural_alignment.papers.registry import Item
from neural_alignment.papers.wide_networks import figures, tables
from neural_alignment.papers.wide_networks.rows import NEEDS, read_rounds
from neural_alignment.papers.wide_networks.runs import PLANS


def _item(kind, number, title, make, **options) -> Item:
    return Item(kind, f"wide_networks/{number}", title, make, PLANS.get(f"{kind}_{number}", {}), **options)


def _check_rounds(source) -> None:
    read_rounds(source.folder)


ITEMS = [
    _item("table", 1, "Align-prop and all other rules on CIFAR-10", tables.table_1),
    _item("table", 2, "CIFAR-10 over five seeds", tables.table_2),
    _item("table", 6, "CIFAR-10, by width", tables.table_6),
    _item("table", 7, "KMNIST, by width", tables.table_7),
    _item("table", 8, "recurrent networks on the Add task", tables.table_8),
    _item("figure", 9, "recurrent networks on the Add task, by width", figures.figure_9),
    _item("table", 3, "alignment scores, CIFAR-10, ReLU", tables.score_table("cifar10")),
    _item("table", 4, "alignment scores, KMNIST", tables.score_table("kmnist")),
    _item("table", 5, "alignment scores, CIFAR-10, tanh", tables.score_table("cifar10_tanh")),
    _item("figure", 1, "alignment scores by layer and width", figures.figure_1),
    _item("figure", 8, "alignment scores over training", figures.figure_8),
    _item("figure", 2, "updates by three rules, narrow and wide", figures.figure_2),
    _item("figure", "proposition_2", "distance to gradient descent by width", figures.proposition_2),
    _item("table", 9, "Small CIFAR-10, by number of images and width", tables.table_9),
    _item("table", 10, "standard parameterization, Adam", tables.table_10),
    _item("figure", 3, "accuracy over the learning rate", figures.figure_3),
    _item("figure", 4, "accuracy over the width", figures.figure_4),
    _item("figure", 5, figures.IMAGENET_LOSS, figures.figure_5, check=figures.check_sample),
    _item("figure", 6, "accuracy over the number of images", figures.figure_6),
    _item("figure", 7, "time of a step by width", figures.figure_7, needs=NEEDS, check=_check_rounds),
]
"""Every table and figure of the paper."""
