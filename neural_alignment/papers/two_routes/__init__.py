"""Tables and figures of Kunin et al. 2020, "Two Routes to Scalable Credit Assignment without Weight Symmetry"."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from neural_alignment.errors import InputError
from neural_alignment.papers.registry import Item, Source
from neural_alignment.papers.two_routes import claims, figures, runs, tables
from neural_alignment.reporting import Artifact


def _search_importance(source: Source) -> None:
    """Figure S2, of a search directory; the report of the search writes its files."""
    from neural_alignment.search import report

    report.importance_of(source.folder, f"{source.output}/figure_S2")


def _check_recordings(source: Source) -> None:
    """Reads the recordings before hours of training, to find a missing or damaged file early."""
    from neural_alignment.data.recordings import load_recordings

    if source.recordings is None:
        raise InputError("figure two_routes/6 needs --recordings FILE; docs/neural_fit.md says how to obtain it")
    load_recordings(source.recordings)


def _neural_fit(source: Source) -> Artifact:
    """Figure 6, of the first seed of each rule and of recorded responses."""
    from neural_alignment.papers.two_routes import figure_6

    networks = {
        runs.RULE_STYLES[cell.labels["rule"]].label: outcomes[0].directory.path
        for cell, outcomes in source.read()
        if outcomes and not outcomes[0].diverged
    }
    return figure_6.figure_6(networks, source.recordings, source.images, report=source.say)


def _theory(name: str) -> Callable[[Source], Artifact]:
    """Returns the function of theory.py that makes a table; it is imported late because SciPy takes some seconds."""

    def make(source: Source) -> Artifact:
        del source
        from neural_alignment.papers.two_routes import theory

        return getattr(theory, name)()

    return make


def _table(name: str, title: str, make: Callable[[Source], Any], cells: Any = None, **options: Any) -> Item:
    return Item("table", f"two_routes/{name}", title, make, cells or {}, **options)


def _figure(name: str, title: str, make: Callable[[Source], Any], cells: Any = None, **options: Any) -> Item:
    return Item("figure", f"two_routes/{name}", title, make, cells or {}, **options)


NOISY = ("backprop", "symmetric", "activation", "kolen_pollack")
SHOWN = ("symmetric", "activation", "weight_mirror", "information")
FITTED = (*runs.SEARCHED, "symmetric", "activation", "feedback", "backprop")
SEARCH = "--runs SEARCH_DIRECTORY (made by `search lab/information`)"

ITEMS = [
    _table("1", "regularisation primitives and their gradients", tables.table_1),
    _table("2", "primitives of each rule", tables.table_2),
    _table("3", "local rules with ResNet-18", tables.table_3, runs.table_3()),
    _table("4", "symmetric and activation alignment", tables.table_4, runs.table_4()),
    _table("5", "metaparameters found by the searches", tables.table_5),
    _table(
        "claims",
        "the paper's comparisons of rules, and whether they show",
        claims.table,
        {profile: claims.cells(profile) for profile in ("paper", "lab")},
    ),
    _table("D1", "flow of scalar weights: eigenvalues and regimes", _theory("flow_table")),
    _table("D2", "fixed points of the scalar network", _theory("fixed_point_table")),
    _table("IA", "linear autoencoders that reach W = B", _theory("autoencoder_table")),
    _figure(
        "2",
        "weight mirror: flow in three regimes, W against B of three layers",
        figures.figure_2,
        runs.first_seed(("weight_mirror",)),
    ),
    _figure("3", "fixed metaparameters on other networks", figures.transfer, runs.transfer(runs.TRANSFER)),
    _figure("5", "noisy updates: SA and backpropagation, ResNet-18", figures.noise, runs.noise(NOISY[:2], "resnet18")),
    _figure(
        "5b",
        "noisy updates: SA and backpropagation, a deeper network",
        figures.noise,
        runs.noise(NOISY[:2], "resnet50"),
    ),
    _figure(
        "6",
        "neural fits to V4 and IT",
        _neural_fit,
        runs.first_seed(FITTED),
        needs="--recordings FILE",
        check=_check_recordings,
    ),
    _figure("S1", "noisy updates: all rules, ResNet-18", figures.noise, runs.noise(NOISY, "resnet18")),
    _figure("S2", "importance of metaparameters", _search_importance, needs=SEARCH),
    _figure("S3", "learning symmetry over training", figures.symmetry, runs.first_seed(SHOWN)),
    _figure("S4", "angles and norm ratios by layer over training", figures.metrics, runs.first_seed(SHOWN)),
    _figure(
        "S5",
        "Kolen-Pollack's fixed metaparameters on other networks",
        figures.transfer,
        runs.transfer(("kolen_pollack", "backprop")),
    ),
]
"""All tables and figures of the paper."""
