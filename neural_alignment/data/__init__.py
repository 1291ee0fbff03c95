"""Data: `load` a source by name; every source gives training and validation batches as a `Dataset`."""

from __future__ import annotations

import inspect
from typing import Any

from neural_alignment.data.damage import DamagedRecord
from neural_alignment.data.pipeline import AUGMENTATIONS, Arrays, Batching, Dataset, Facts, InMemory
from neural_alignment.data.sources import FACTS, SOURCES
from neural_alignment.data.streamed import Streamed
from neural_alignment.errors import DataError, nearest

__all__ = [
    "AUGMENTATIONS",
    "SOURCES",
    "Arrays",
    "Batching",
    "DamagedRecord",
    "Dataset",
    "Facts",
    "InMemory",
    "Streamed",
    "facts",
    "load",
]


def load(
    source: str,
    *,
    batch_size: int,
    seed: int,
    shuffle: bool = True,
    validation_batch_size: int | None = None,
    **options: Any,
) -> Dataset:
    """Loads a data set.

    Args:
        source: "digits", "tfds" or "imagenet".
        batch_size: training examples per step.
        seed: order and augmentation depend on this alone.
        shuffle: False keeps the order of the files.
        validation_batch_size: default: `batch_size`.
        **options: what the source takes: the keyword arguments of the function of that name in `sources`.

    Returns:
        The data set; nothing is iterated yet.

    Raises:
        DataError: the data or an option is wrong; one line says what and where.
    """
    batching, options = _checked(source, batch_size, seed, shuffle, validation_batch_size, options)
    return SOURCES[source](batching, **options)


def facts(
    source: str,
    *,
    batch_size: int,
    seed: int,
    shuffle: bool = True,
    validation_batch_size: int | None = None,
    **options: Any,
) -> Facts:
    """Returns what must be known of a data set before it is loaded; arguments as of `load`.

    No record is read where the source or the options say enough, else the set is loaded.

    Raises:
        DataError: an option is wrong, or the data are not there; one line says what and where.
    """
    batching, options = _checked(source, batch_size, seed, shuffle, validation_batch_size, options)
    known = FACTS[source](batching, **options) if source in FACTS else None
    return SOURCES[source](batching, **options) if known is None else known


def _checked(
    source: str, batch_size: int, seed: int, shuffle: bool, validation_batch_size: int | None, options: dict[str, Any]
) -> tuple[Batching, dict[str, Any]]:
    """Returns how examples become batches, and the options of the source, which exist."""
    if source not in SOURCES:
        raise DataError(
            f"`source` is unknown. Received {source!r}. Allowed: {', '.join(SOURCES)}{nearest(str(source), SOURCES)}"
        )
    parameters = dict(list(inspect.signature(SOURCES[source]).parameters.items())[1:])
    for option in options:
        if option not in parameters:
            raise DataError(
                f"`{option}` is no option of the data source {source!r}. Received {options[option]!r}. "
                f"Allowed: {', '.join(parameters)}{nearest(option, parameters)}"
            )
    for name, parameter in parameters.items():
        if parameter.default is inspect.Parameter.empty and name not in options:
            raise DataError(f"The data source {source!r} needs the option `{name}`. Received: {', '.join(options)}.")
    return Batching(batch_size, seed, shuffle, validation_batch_size), options
