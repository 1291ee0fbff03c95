"""Tables and figures of Boopathy and Fiete 2022, "How to Train Your Wide Neural Network Without Backprop"."""

from __future__ import annotations

from neural_alignment.papers.registry import Item
from neural_alignment.papers.wide_networks import claims, figures, runs, tables
from neural_alignment.papers.wide_networks.printed import TABLE_2
from neural_alignment.papers.wide_networks.rows import NEEDS, read_rounds
from neural_alignment.papers.wide_networks.runs import WITHOUT_PROP, plan

_CIFAR10, _KMNIST = (plan(each, WITHOUT_PROP, runs.BY_WIDTH, dataset=name) for name, each in runs.DATA_SETS.items())
_WITH_PROP = plan(runs.DATA_SETS["cifar10"], runs.TABLE_RULES, runs.PROP_WIDTHS)
_SEEDS = plan(runs.DATA_SETS["cifar10"], list(TABLE_2), runs.SEEDED_WIDTHS, seeds=runs.SEEDS)
_BY_WIDTH = {profile: _CIFAR10[profile] + _KMNIST[profile] for profile in _CIFAR10}
_BY_IMAGES = runs.table_9()
_SCORES = {name: {"lab": runs.scores(name)} for name in runs.SCORED}
_SHOWN_SCORES, _ADD, _DISTANCES = (
    {"lab": own} for own in (runs.scores(*runs.SHOWN_SCORES), runs.recurrent(), runs.updates())
)
_UPDATES = {"lab": runs.updates(runs.SHOWN_UPDATES, ["tanh"])}

_ITEMS = [
    ("table", 1, "Align-prop and all other rules on CIFAR-10", tables.table_1, _WITH_PROP),
    ("table", 2, "CIFAR-10 over five seeds", tables.table_2, _SEEDS),
    ("table", 6, "CIFAR-10, by width", tables.table_6, _CIFAR10),
    ("table", 7, "KMNIST, by width", tables.table_7, _KMNIST),
    ("table", 8, "recurrent networks on the Add task", tables.table_8, _ADD),
    ("figure", 9, "recurrent networks on the Add task, by width", figures.figure_9, _ADD),
    ("table", 3, "alignment scores, CIFAR-10, ReLU", tables.score_table("cifar10"), _SCORES["cifar10"]),
    ("table", 4, "alignment scores, KMNIST", tables.score_table("kmnist"), _SCORES["kmnist"]),
    ("table", 5, "alignment scores, CIFAR-10, tanh", tables.score_table("cifar10_tanh"), _SCORES["cifar10_tanh"]),
    ("figure", 1, "alignment scores by layer and width", figures.figure_1, _SHOWN_SCORES),
    ("figure", 8, "alignment scores over training", figures.figure_8, _SHOWN_SCORES),
    ("figure", 2, "updates by three rules, narrow and wide", figures.figure_2, _UPDATES),
    ("figure", "proposition_2", "distance to gradient descent by width", figures.proposition_2, _DISTANCES),
    ("figure", "limits", "Proposition 1, Lemma 1, equation 57", figures.limits, {"lab": runs.limits()}),
    ("table", 9, "Small CIFAR-10, by number of images and width", tables.table_9, _BY_IMAGES),
    ("table", 10, "standard parameterization, Adam", tables.table_10, runs.table_10()),
    ("figure", 3, "accuracy over the learning rate", figures.figure_3, runs.figure_3()),
    ("figure", 4, "accuracy over the width", figures.figure_4, _BY_WIDTH),
    ("figure", 5, figures.IMAGENET_LOSS, figures.figure_5, runs.figure_5(), "", figures.check_sample),
    ("figure", 6, "accuracy over the number of images", figures.figure_6, _BY_IMAGES),
    ("figure", 7, "time of a step by width", figures.figure_7, {}, NEEDS, lambda source: read_rounds(source.folder)),
]
"""Kind, number, title, function and plan of every table and figure of the paper; further fields of `Item`."""

_APART = [
    ("table", "seeds", "Align-ada behind backpropagation, over seeds", tables.seeds, {"lab": runs.seeded()}),
    ("table", "longer", "the paper's number of updates, widths 8 and 16", tables.longer, {"lab": runs.longer()}),
    ("figure", "longer", "the same, beside the paper", figures.figure_4, {"lab": runs.longer()}),
    ("table", "9_subsets", "Small CIFAR-10 on five subsets", tables.subsets, {"lab": runs.subsets()}),
    (
        "table",
        "8_wider",
        "the Add task, 1,024 and 2,048 units",
        tables.table_8,
        {"lab": runs.recurrent(widths=runs.WIDER)},
    ),
]
"""Those that take hours, which the command `lab` leaves out; fields as above."""

ITEMS = [
    Item(kind, f"wide_networks/{number}", *fields, apart=apart)
    for items, apart in ((_ITEMS, False), (_APART, True))
    for kind, number, *fields in items
]
ITEMS.append(
    Item("table", "wide_networks/claims", "the paper's claims", claims.table, pages=("docs/wide_networks.md",))
)
