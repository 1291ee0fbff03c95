"""Tables and figures of Kunin et al. 2020, "Two Routes to Scalable Credit Assignment without Weight Symmetry"."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from neural_alignment.data.recordings import load_recordings
from neural_alignment.errors import InputError
from neural_alignment.papers.registry import Item, Source
from neural_alignment.papers.tables import whole
from neural_alignment.papers.two_routes import claims, figures, tables
from neural_alignment.papers.two_routes.compute import taxonomy, theory
from neural_alignment.papers.two_routes.runs import PLANS
from neural_alignment.reporting import Artifact, Row


def _search_importance(source: Source) -> None:
    """Figure S2, of a search directory; the report of the search writes its files."""
    from neural_alignment.search import report

    report.importance_of(source.folder, f"{source.output}/figure_S2")


def _check_recordings(source: Source) -> None:
    """Reads the recordings before hours of training, to find a missing or damaged file early."""
    if source.recordings is None:
        raise InputError("figure two_routes/6 needs --recordings FILE; docs/neural_fit.md says how to obtain it")
    load_recordings(source.recordings)


def _all_of(rows: Callable[[], Sequence[Row]]) -> Callable[[Source], Artifact]:
    """Returns a function that makes a table of computed rows."""
    return lambda _: whole(rows())


def _item(kind: str, number: str, title: str, make: Callable, *rest: Any) -> Item:
    return Item(kind, f"two_routes/{number}", title, make, PLANS.get(f"{kind}_{number}", {}), *rest)


SEARCH = "--runs SEARCH_DIRECTORY (made by `search lab/information`)"

ITEMS = [
    _item("table", "1", "regularisation primitives and their gradients", _all_of(taxonomy.table_1)),
    _item("table", "2", "primitives of each rule", _all_of(taxonomy.table_2)),
    _item("table", "3", "local rules with ResNet-18", tables.table_3),
    _item("table", "4", "symmetric and activation alignment", tables.table_4),
    _item("table", "5", "metaparameters found by the searches", tables.table_5),
    _item("table", "claims", "the paper's comparisons of rules, and whether they show", claims.table),
    _item("table", "D1", "flow of scalar weights: eigenvalues and regimes", _all_of(theory.eigenvalue_rows)),
    _item("table", "D2", "fixed points of the scalar network", _all_of(theory.fixed_points)),
    _item("table", "IA", "linear autoencoders that reach W = B", _all_of(theory.autoencoder_rows)),
    _item("figure", "2", "weight mirror: flow in three regimes, W against B of three layers", figures.figure_2),
    _item("figure", "3", "fixed metaparameters on other networks", figures.transfer),
    _item("figure", "5", "noisy updates: SA and backpropagation, ResNet-18", figures.noise),
    _item("figure", "5b", "noisy updates: SA and backpropagation, a deeper network", figures.noise),
    _item("figure", "6", "neural fits to V4 and IT", figures.figure_6, "--recordings FILE", _check_recordings),
    _item("figure", "S1", "noisy updates: all rules, ResNet-18", figures.noise),
    _item("figure", "S2", "importance of metaparameters", _search_importance, SEARCH),
    _item("figure", "S3", "learning symmetry over training", figures.symmetry),
    _item("figure", "S4", "angles and norm ratios by layer over training", figures.metrics),
    _item("figure", "S5", "Kolen-Pollack's fixed metaparameters on other networks", figures.transfer),
]
"""All tables and figures of the paper."""
