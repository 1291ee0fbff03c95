"""Tables and figures of Kunin et al. 2020, "Two Routes to Scalable Credit Assignment without Weight Symmetry"."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence

from neural_alignment import config
from neural_alignment.errors import DataError, InputError
from neural_alignment.papers.registry import Item, Source
from neural_alignment.papers.tables import whole
from neural_alignment.papers.two_routes import (
    angles,
    claims,
    fewer_examples,
    figures,
    further_claims,
    importance,
    rates,
    runs,
    tables,
)
from neural_alignment.papers.two_routes.compute import fits, taxonomy, theory
from neural_alignment.reporting import Artifact, Row
from neural_alignment.training import setup


def _check_recordings(source: Source) -> None:
    """Reads the recordings and the images before hours of training, to find missing and unsuitable files early."""
    if source.recordings is None:
        raise InputError("figure two_routes/6 needs --recordings FILE; docs/neural_fit.md says how to obtain it")
    fits.read_recordings(source.recordings, source.images, input_shapes=_input_shapes(source))


def _input_shapes(source: Source) -> Iterator[tuple[int, ...]]:
    """Yields the shape of the inputs of each network, except where it is not known without data that are missing."""
    for cell in source.cells:
        with contextlib.suppress(DataError):
            yield setup.data_facts(config.load(f"{source.configs}/{cell.config}", cell.overrides)).input_shape


def _all_of(rows: Callable[[], Sequence[Row]]) -> Callable[[Source], Artifact]:
    """Returns a function that makes a table of computed rows."""
    return lambda _: whole(rows())


SEARCH = "--runs SEARCH_DIRECTORY (made by `search lab/information`), or --runs results/two_routes"
RATES = "--runs results/two_routes/searches (made by `make two-routes-rates`)"

_TABLE_3 = runs.plan(("resnet18", rule) for rule in (*runs.TABLE_3, "feedback", *runs.LAB_RULES))
_TABLE_4 = runs.plan(itertools.product(runs.TABLE_4, ("backprop", "symmetric", "activation")))
_WM = runs.first_seed("weight_mirror")
_SHOWN = runs.first_seed("symmetric", "activation", "weight_mirror", "information")
_FITTED = runs.first_seed(*runs.SEARCHED, "symmetric", "activation", "feedback", "backprop")
_TRANSFER, _KP = runs.transfer(*runs.TRANSFER), runs.transfer("kolen_pollack", "backprop")
_NOISE, _DEEPER_NOISE = runs.noise(runs.NOISY[:2], "resnet18"), runs.noise(runs.NOISY[:2], *runs.DEEPER)
_ALL_NOISE = runs.noise(runs.NOISY, "resnet18")
_COMPARED = (_TABLE_3, _TRANSFER, _KP, _ALL_NOISE, _DEEPER_NOISE)
_CLAIMED = {profile: [cell for plan in _COMPARED for cell in plan[profile]] for profile in ("paper", "lab")}

_ITEMS = [
    ("table", "1", "regularisation primitives and their gradients", _all_of(taxonomy.table_1)),
    ("table", "2", "primitives of each rule", _all_of(taxonomy.table_2)),
    ("table", "3", "local rules with ResNet-18", tables.table_3, _TABLE_3),
    ("table", "4", "symmetric and activation alignment", tables.table_4, _TABLE_4),
    ("table", "5", "metaparameters found by the searches", tables.table_5),
    ("table", "D1", "flow of scalar weights: eigenvalues and regimes", _all_of(theory.eigenvalue_rows)),
    ("table", "D2", "fixed points of the scalar network", _all_of(theory.fixed_points)),
    ("table", "oja", "amp and null beside a Hebbian update with normalisation", _all_of(theory.oja_rows)),
    ("table", "IA", "linear autoencoders that reach W = B", _all_of(theory.autoencoder_rows)),
    ("figure", "2", "weight mirror: flow in three regimes, W against B of three layers", figures.figure_2, _WM),
    ("figure", "3", "fixed metaparameters on other networks", figures.transfer, _TRANSFER),
    ("figure", "5", "noisy updates: SA and backpropagation, ResNet-18", figures.noise, _NOISE),
    ("figure", "5b", "noisy updates: SA and backpropagation, deeper networks", figures.noise, _DEEPER_NOISE),
    ("figure", "6", "neural fits to V4 and IT", figures.figure_6, _FITTED, "--recordings FILE", _check_recordings),
    ("figure", "S1", "noisy updates: all rules, ResNet-18", figures.noise, _ALL_NOISE),
    ("figure", "S2", "importance of discrete metaparameters", importance.make, {}, SEARCH, importance.check),
    ("figure", "S3", "learning symmetry over training", figures.symmetry, _SHOWN),
    ("figure", "S4", "angles and norm ratios by layer over training", figures.metrics, _SHOWN),
    ("figure", "S5", "Kolen-Pollack's fixed metaparameters on other networks", figures.transfer, _KP),
]
"""Kind, number, title, function and runs of the tables and figures of the paper; further fields of `Item`."""

_FROM_CONFIGS = ("5", "S2")
"""Numbers of those that read configurations without runs."""

PAGES = ("docs/two_routes.md",)
"""The page that contains the tables of claims, of angles, and of R from a part of each batch."""

ITEMS = [
    *(
        Item(kind, f"two_routes/{number}", *fields, reads_configs=number in _FROM_CONFIGS)
        for kind, number, *fields in _ITEMS
    ),
    Item("table", "two_routes/claims", "the paper's comparisons of rules, judged", claims.table, _CLAIMED, pages=PAGES),
    Item("table", "two_routes/angles", "angles of all rules", angles.make, angles.plan(), pages=PAGES),
    Item(
        "table",
        "two_routes/examples",
        "R from a part of each batch",
        fewer_examples.make,
        fewer_examples.plan(),
        pages=PAGES,
    ),
    Item(
        "table",
        "two_routes/rates",
        "rates of the lab's rules",
        rates.make,
        needs=RATES,
        check=rates.check,
        written_as="rates",
    ),
    Item("table", "two_routes/further_claims", "the paper's other claims, judged", further_claims.table, pages=PAGES),
]
"""All tables and figures. The lab trains their runs in this order.

The further claims come last because they are judged by the files of the others."""
