"""Tables and figures of Kunin et al. 2020, "Two Routes to Scalable Credit Assignment without Weight Symmetry"."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from neural_alignment.data.recordings import load_recordings
from neural_alignment.errors import InputError
from neural_alignment.papers.registry import Item, Source
from neural_alignment.papers.tables import whole
from neural_alignment.papers.two_routes import claims, figures, runs, tables
from neural_alignment.papers.two_routes.compute import theory
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


MIRROR = runs.first_seed(("weight_mirror",))
NOISE, DEEPER = runs.noise(runs.NOISY[:2], "resnet18"), runs.noise(runs.NOISY[:2], "resnet50")
KOLEN_POLLACK = runs.transfer(("kolen_pollack", "backprop"))
SHOWN = runs.first_seed(("symmetric", "activation", "weight_mirror", "information"))
FITTED = runs.first_seed((*runs.SEARCHED, "symmetric", "activation", "feedback", "backprop"))
SEARCH = "--runs SEARCH_DIRECTORY (made by `search lab/information`)"


ITEMS = [
    Item("table", "two_routes/1", "regularisation primitives and their gradients", tables.table_1),
    Item("table", "two_routes/2", "primitives of each rule", tables.table_2),
    Item("table", "two_routes/3", "local rules with ResNet-18", tables.table_3, runs.table_3()),
    Item("table", "two_routes/4", "symmetric and activation alignment", tables.table_4, runs.table_4()),
    Item("table", "two_routes/5", "metaparameters found by the searches", tables.table_5),
    Item(
        "table",
        "two_routes/claims",
        "the paper's comparisons of rules, and whether they show",
        claims.table,
        claims.plan(),
    ),
    Item("table", "two_routes/D1", "flow of scalar weights: eigenvalues and regimes", _all_of(theory.eigenvalue_rows)),
    Item("table", "two_routes/D2", "fixed points of the scalar network", tables.table_d2),
    Item("table", "two_routes/IA", "linear autoencoders that reach W = B", _all_of(theory.autoencoder_rows)),
    Item(
        "figure",
        "two_routes/2",
        "weight mirror: flow in three regimes, W against B of three layers",
        figures.figure_2,
        MIRROR,
    ),
    Item(
        "figure",
        "two_routes/3",
        "fixed metaparameters on other networks",
        figures.transfer,
        runs.transfer(runs.TRANSFER),
    ),
    Item("figure", "two_routes/5", "noisy updates: SA and backpropagation, ResNet-18", figures.noise, NOISE),
    Item("figure", "two_routes/5b", "noisy updates: SA and backpropagation, a deeper network", figures.noise, DEEPER),
    Item(
        "figure",
        "two_routes/6",
        "neural fits to V4 and IT",
        figures.figure_6,
        FITTED,
        "--recordings FILE",
        _check_recordings,
    ),
    Item(
        "figure",
        "two_routes/S1",
        "noisy updates: all rules, ResNet-18",
        figures.noise,
        runs.noise(runs.NOISY, "resnet18"),
    ),
    Item("figure", "two_routes/S2", "importance of metaparameters", _search_importance, {}, SEARCH),
    Item("figure", "two_routes/S3", "learning symmetry over training", figures.symmetry, SHOWN),
    Item("figure", "two_routes/S4", "angles and norm ratios by layer over training", figures.metrics, SHOWN),
    Item(
        "figure",
        "two_routes/S5",
        "Kolen-Pollack's fixed metaparameters on other networks",
        figures.transfer,
        KOLEN_POLLACK,
    ),
]
"""All tables and figures of the paper."""
