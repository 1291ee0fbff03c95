"""Data sets: `load` returns the training and validation batches of a source as a `Dataset`."""

from __future__ import annotations

from typing import Any

import pydantic

from neural_alignment import mistakes
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
        source: "digits", "tfds", "image_folder", "npz", "imagenet" or the name of another registered source.
        batch_size: training examples per step.
        seed: seed of the order and the augmentation, which depend on nothing else.
        validation_batch_size: validation examples per batch. Default: `batch_size`.
        **options: the options of the source, as under `data` in a configuration; see the class of the source in
            `neural_alignment.data.sources`.

    Returns:
        The data set. No batch has been computed yet.

    Raises:
        DataError: if the data or an option are wrong; the message is one line that names the file or the option.
    """
    chosen = _parsed({"source": source, **options})
    return chosen.loaded(Batching(batch_size, seed, chosen.shuffle, validation_batch_size))


def facts(
    source: str, *, batch_size: int, seed: int, validation_batch_size: int | None = None, **options: Any
) -> Facts:
    """Returns shapes and counts of a data set. The arguments are those of `load`.

    The data are loaded only if the source and the options do not determine these facts.

    Raises:
        DataError: if an option is wrong or the data are missing; the message is one line.
    """
    chosen = _parsed({"source": source, **options})
    return chosen.facts(Batching(batch_size, seed, chosen.shuffle, validation_batch_size))


def _parsed(options: dict[str, Any]) -> SourceOptions:
    """Returns the options of a source, checked like those in a configuration."""
    try:
        return pydantic.TypeAdapter(SOURCES.any_registered).validate_python(options)
    except pydantic.ValidationError as error:
        raise DataError(mistakes.describe(error, SOURCES.any_registered, "data")) from None
