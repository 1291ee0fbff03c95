"""ImageNet, or any data set in its TFRecord layout."""

from __future__ import annotations

import collections
import logging
import os
import re
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import tensorflow as tf
from pydantic import BeforeValidator, Discriminator, Field, NonNegativeInt, PositiveInt, Tag

from neural_alignment.data.damage import DamageList
from neural_alignment.data.imagenet import PREPROCESSING, Preparation
from neural_alignment.data.pipeline import Batching, Dataset, Facts
from neural_alignment.data.records import Schema, Shard, TFRecords
from neural_alignment.data.sources.base import SOURCES, ImageSize, IndexFile, SourceOptions, TolerateCorrupt
from neural_alignment.data.streamed import Streamed
from neural_alignment.errors import DataError, DataUnavailable, WrongValue, one_line
from neural_alignment.options import PathText

logger = logging.getLogger(__name__)

_SHARD = re.compile(r"(.*-)(\d+)(-of-(\d+))")
"""The path of one file of several, such as train-00003-of-01024."""

_MOST_NAMED = 5
"""Maximum number of missing files that a warning names."""

FilePatterns = Annotated[
    Annotated[PathText, Tag("one")] | Annotated[list[PathText], Field(min_length=1), Tag("many")],
    Discriminator(lambda value: "many" if isinstance(value, list) else "one"),
    BeforeValidator(lambda value: list(value) if isinstance(value, tuple) else value),
]
"""A file pattern, or a list of them."""


@SOURCES.register
class ImageNetData(SourceOptions):
    """ImageNet, or any data set in its TFRecord layout, by file patterns."""

    free_keys: ClassVar[frozenset[str]] = SourceOptions.free_keys | {"train_files", "validation_files"}

    source: Literal["imagenet"]
    train_files: FilePatterns
    """Pattern such as gs://bucket/train-*, or a list of patterns."""
    validation_files: FilePatterns
    """Pattern such as gs://bucket/validation-*, or a list of patterns."""
    preprocessing: Literal["resnet", "inception"] = "resnet"
    """Cropping, flipping and scaling as in the published training of ResNet v1 (`resnet`) or v2 (`inception`)."""
    image_size: ImageSize | None = None
    """Height and width of the images. Default: 224 for resnet, 299 for inception."""
    classes: PositiveInt = 1000
    """Number of classes."""
    label_offset: NonNegativeInt = 1
    """The label of class 0 in the files."""
    train_examples: PositiveInt | None = None
    """Number of training examples in an epoch. Default: all records in the files. If it is smaller, an epoch uses this
    number of the shuffled records."""
    validation_examples: PositiveInt | None = None
    """Number of validation examples. It must be the number of records in the files. Default: the records are
    counted."""
    shuffle_buffer: PositiveInt = 10000
    """Number of encoded records in memory for shuffling: one half is in use while the other half is read. 10,000
    records of 110 kB take 1.1 GB."""
    index_file: IndexFile = None
    tolerate_corrupt: TolerateCorrupt = 0

    @property
    def _preparation(self) -> Preparation:
        return PREPROCESSING[self.preprocessing].at(self.image_size)

    def load(self, batching: Batching) -> Dataset:
        """Returns the images, streamed from their files. See `SourceOptions.load`."""
        damage = DamageList(self.tolerate_corrupt)
        train, validation = (self._records(split, damage) for split in ("train", "validation"))
        if train.examples > train.found:
            requirement = f"must be at most {train.found}, the number of records in train_files"
            raise DataError(WrongValue("data.train_examples", requirement, train.examples))
        if validation.examples != validation.found:
            requirement = f"must be {validation.found}, the number of records in validation_files"
            raise DataError(WrongValue("data.validation_examples", requirement, validation.examples))
        return Streamed(batching, train, validation, self._preparation, shuffle_buffer=self.shuffle_buffer)

    def _records(self, split: str, damage: DamageList) -> TFRecords:
        """Returns the records of a split."""
        key = f"{split}_files"
        paths = _matching(key, getattr(self, key))
        _warn_of_missing(key, paths)
        return TFRecords(
            f"`{key}`",
            [Shard(path) for path in paths],
            Schema("image/encoded", "image/class/label", classes=self.classes, label_offset=self.label_offset),
            damage,
            getattr(self, f"{split}_examples"),
            self.index_file,
        )

    def facts(self, batching: Batching) -> Facts:
        """Returns shapes and counts. Reads the files only if the options do not contain the numbers of examples."""
        if not self.train_examples or not self.validation_examples:
            return self.load(batching)
        return Facts(
            batching,
            input_shape=self._preparation.input_shape,
            classes=self.classes,
            train_examples=self.train_examples,
            validation_examples=self.validation_examples,
        )


def _matching(key: str, patterns: str | Sequence[str]) -> list[str]:
    """Returns the files that the patterns match, sorted."""
    found = []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        try:
            matching = tf.io.gfile.glob(pattern)
        except tf.errors.OpError as error:
            reason = one_line(error, 300)
            raise DataUnavailable(f"data.{key}: cannot be looked up; found {pattern!r}: {reason}") from error
        if not matching:
            directory = os.path.dirname(pattern) or "."
            state = "no file in it matches" if tf.io.gfile.isdir(directory) else "it does not exist"
            raise DataUnavailable(
                f"data.{key}: matches no file; found {pattern!r}; looked in {directory}: {state}; "
                "example: /data/train-*"
            )
        found += matching
    return sorted(set(found))


def _warn_of_missing(key: str, paths: Sequence[str]) -> None:
    """Logs which files of a set, such as train-00003-of-01024, are not on disk. Files left out by a pattern are."""
    sets = collections.defaultdict(set)
    for shard in filter(None, map(_SHARD.fullmatch, paths)):
        begin, number, end, count = shard.groups()
        sets[begin, len(number), end, int(count)].add(int(number))
    for (begin, digits, end, count), numbers in sets.items():
        if len(numbers) >= count:
            continue
        folder, _, name = begin.rpartition("/")
        present = set(tf.io.gfile.listdir(folder or "."))
        names = (f"{name}{number:0{digits}}{end}" for number in range(count) if number not in numbers)
        if missing := [each for each in names if each not in present]:
            more = f" and {len(missing) - _MOST_NAMED} more" if len(missing) > _MOST_NAMED else ""
            logger.warning(
                "data.%s: %d of %d files are missing in %s, so the run uses less data; found no %s%s",
                key,
                len(missing),
                count,
                folder or ".",
                ", ".join(missing[:_MOST_NAMED]),
                more,
            )
