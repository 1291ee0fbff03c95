"""Kunin et al. 2020, "Two Routes to Scalable Credit Assignment without Weight Symmetry": its tables and figures."""

from __future__ import annotations

from collections.abc import Callable

from neural_alignment.errors import InputError
from neural_alignment.papers.registry import Item, Source
from neural_alignment.papers.two_routes import claims, figures, runs, tables
from neural_alignment.reporting import Artifact


def _searched(source: Source) -> None:
    """Figure S2, of a search directory; the search writes its files."""
    from neural_alignment.search import report

    report.importance_of(source.folder, f"{source.output}/figure_S2")


def _check_recordings(source: Source) -> None:
    """Reads the recordings: hours of training and fits are not to end with a file that is not there, or is damaged."""
    from neural_alignment.data.recordings import load_recordings

    if source.recordings is None:
        raise InputError("figure two_routes/6 needs --recordings FILE; docs/neural_fit.md says how to obtain it")
    load_recordings(source.recordings)


def _fits(source: Source) -> Artifact:
    """Figure 6, of the first seed of each rule and of recorded responses."""
    from neural_alignment.papers.two_routes import figure_6

    networks = {
        runs.RULES[cell.labels["rule"]].label: outcomes[0].directory.path
        for cell, outcomes in source.read()
        if outcomes and not outcomes[0].diverged
    }
    return figure_6.figure_6(networks, source.recordings, source.images, report=source.say)


def _theory(name: str) -> Callable[[Source], Artifact]:
    """Returns what makes a table of theory.py, which needs SciPy and some seconds."""

    def make(source: Source) -> Artifact:
        del source
        from neural_alignment.papers.two_routes import theory

        return getattr(theory, name)()

    return make


NOISY = ("backprop", "symmetric", "activation", "kolen_pollack")
SHOWN = ("symmetric", "activation", "weight_mirror", "information")

ITEMS = [
    Item("table", "two_routes/1", "regularisation primitives and their gradients", tables.table_1),
    Item("table", "two_routes/2", "which primitives each rule is made of", tables.table_2),
    Item("table", "two_routes/3", "local rules with ResNet-18", tables.table_3, runs.table_3()),
    Item("table", "two_routes/4", "symmetric and activation alignment", tables.table_4, runs.table_4()),
    Item("table", "two_routes/5", "metaparameters found by the searches", tables.table_5),
    Item(
        "table",
        "two_routes/claims",
        "the paper's comparisons of rules, and whether they show",
        claims.table,
        {profile: claims.cells(profile) for profile in ("paper", "lab")},
    ),
    Item("table", "two_routes/D1", "flow of scalar weights: eigenvalues and regimes", _theory("flow_table")),
    Item("table", "two_routes/D2", "fixed points of the scalar network", _theory("fixed_point_table")),
    Item("table", "two_routes/IA", "linear autoencoders that reach W = B", _theory("autoencoder_table")),
    Item(
        "figure",
        "two_routes/2",
        "weight mirror: flow in three regimes, W against B of three layers",
        figures.figure_2,
        runs.first_seed(("weight_mirror",)),
    ),
    Item(
        "figure",
        "two_routes/3",
        "fixed metaparameters on other networks",
        figures.transfer,
        runs.transfer(runs.TRANSFER),
    ),
    Item(
        "figure",
        "two_routes/5",
        "noisy updates: SA and backpropagation, ResNet-18",
        figures.noise,
        runs.noise(("backprop", "symmetric"), "resnet18"),
    ),
    Item(
        "figure",
        "two_routes/5b",
        "noisy updates: SA and backpropagation, a deeper network",
        figures.noise_deeper,
        runs.noise(("backprop", "symmetric"), "resnet50"),
    ),
    Item(
        "figure",
        "two_routes/6",
        "neural fits to V4 and IT",
        _fits,
        runs.first_seed((*runs.SEARCHED, "symmetric", "activation", "feedback", "backprop")),
        needs="--recordings FILE",
        check=_check_recordings,
    ),
    Item(
        "figure",
        "two_routes/S1",
        "noisy updates: all rules, ResNet-18",
        figures.noise,
        runs.noise(NOISY, "resnet18"),
    ),
    Item(
        "figure",
        "two_routes/S2",
        "importance of metaparameters",
        _searched,
        needs="--runs SEARCH_DIRECTORY (made by `search lab/information`)",
    ),
    Item(
        "figure",
        "two_routes/S3",
        "learning symmetry over training",
        figures.symmetry,
        runs.first_seed(SHOWN),
    ),
    Item(
        "figure",
        "two_routes/S4",
        "angles and norm ratios by layer over training",
        figures.metrics,
        runs.first_seed(SHOWN),
    ),
    Item(
        "figure",
        "two_routes/S5",
        "Kolen-Pollack's fixed metaparameters on other networks",
        figures.transfer,
        runs.transfer(("kolen_pollack", "backprop")),
    ),
]
"""Every table and figure of the paper that this library makes."""
