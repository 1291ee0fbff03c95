"""Data: `load` a source by name; every source gives training and validation batches as a `Dataset`."""

from __future__ import annotations

from typing import Any

import pydantic

from neural_alignment import errors
from neural_alignment.data.damage import DamagedRecord
from neural_alignment.data.pipeline import AUGMENTATIONS, Batching, Dataset, Examples, Facts, InMemory
from neural_alignment.data.sources import SOURCES, SourceOptions
from neural_alignment.data.streamed import Streamed
from neural_alignment.errors import DataError

__all__ = [
    "AUGMENTATIONS",
    "SOURCES",
    "Batching",
    "DamagedRecord",
    "Dataset",
    "Examples",
    "Facts",
    "InMemory",
    "SourceOptions",
    "Streamed",
    "facts",
    "load",
]


def load(
    source: str, *, batch_size: int, seed: int, validation_batch_size: int | None = None, **options: Any
) -> Dataset:
    """Loads a data set.

    Args:
        source: "digits", "tfds", "imagenet" or the name of another registered source.
        batch_size: training examples per step.
        seed: order and augmentation depend only on this.
        validation_batch_size: default: `batch_size`.
        **options: the options of the source, as under `data` in a configuration; see the class of the source in
            `neural_alignment.data.sources`.

    Returns:
        The data set; nothing is iterated yet.

    Raises:
        DataError: if the data or an option is wrong; one line says what and where.
    """
    chosen = _parsed({"source": source, **options})
    return chosen.load(Batching(batch_size, seed, chosen.shuffle, validation_batch_size))


def facts(
    source: str, *, batch_size: int, seed: int, validation_batch_size: int | None = None, **options: Any
) -> Facts:
    """Returns shapes and counts of a data set. Arguments as of `load`.

    No record is read if the source or the options say enough; otherwise the set is loaded.

    Raises:
        DataError: if an option is wrong or the data are missing; one line says what and where.
    """
    chosen = _parsed({"source": source, **options})
    return chosen.facts(Batching(batch_size, seed, chosen.shuffle, validation_batch_size))


def _parsed(options: dict[str, Any]) -> SourceOptions:
    """Returns the options of a source, checked as those of a configuration."""
    try:
        return pydantic.TypeAdapter(SOURCES.any_registered).validate_python(options)
    except pydantic.ValidationError as error:
        raise DataError(errors.describe(error, SOURCES.any_registered, "data")) from None
