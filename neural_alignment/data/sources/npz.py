"""The user's own images and labels in a .npz file."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import PositiveInt

from neural_alignment.data import array_files
from neural_alignment.data.labels import replaced
from neural_alignment.data.pipeline import Batching, Dataset, Examples, Facts, InMemory
from neural_alignment.data.sources.base import (
    SOURCES,
    VALIDATION_FRACTION,
    Augmentation,
    InMemoryOptions,
    ValidationFraction,
    pixel_statistics,
    split_by_class,
)
from neural_alignment.errors import DataError, WrongValue
from neural_alignment.options import PathText


@SOURCES.register
class NPZData(InMemoryOptions):
    """Arrays in a .npz file: `x_train`, `y_train`, and optionally `x_validation` and `y_validation`.

    The images are `(examples, height, width, channels)` or `(examples, height, width)`, uint8 or float. The labels are
    integers from 0, `(examples,)`.
    """

    free_keys: ClassVar[frozenset[str]] = InMemoryOptions.free_keys | {"file"}

    source: Literal["npz"]
    file: PathText
    """The .npz file."""
    classes: PositiveInt | None = None
    """Number of classes. Default: the largest training label plus 1."""
    validation_fraction: ValidationFraction | None = None
    """Fraction of each class that is held out for validation if the file has no `x_validation`; the split does not
    depend on the seed. Default: 0.2."""
    augment: Augmentation | None = None
    """Random crop after padding by 4 pixels, with or without a flip."""
    standardize: bool = True
    """Whether the mean of the training pixels is subtracted and the result divided by their standard deviation, per
    channel. Otherwise bytes are divided by 255, and floats are not changed."""

    def load(self, batching: Batching) -> Dataset:
        """Returns the arrays, in memory. See `SourceOptions.load`."""
        train, validation, classes = self._arrays()
        train = train._replace(labels=replaced(train.labels, self.replace_labels, classes, batching.seed))
        center, scale = 0.0, 255.0 if train.images.dtype == np.uint8 else 1.0
        if self.standardize:
            center, scale = pixel_statistics(train.images)
        return InMemory(batching, train, validation, classes=classes, center=center, scale=scale, augment=self.augment)

    def facts(self, batching: Batching) -> Facts:
        """Returns shapes and counts. The arrays are read, but not kept."""
        train, validation, classes = self._arrays()
        return Facts(
            batching,
            input_shape=train.images.shape[1:],
            classes=classes,
            train_examples=len(train.labels),
            validation_examples=len(validation.labels),
        )

    def _arrays(self) -> tuple[Examples, Examples, int]:
        """Returns the training examples, the validation examples and the number of classes."""
        with array_files.opened(self.file, array_files.NPZ) as arrays:
            train = _examples(self.file, arrays, "train")
            has_validation = "x_validation" in arrays or "y_validation" in arrays
            validation = _examples(self.file, arrays, "validation") if has_validation else None
        classes = self.classes or int(train.labels.max()) + 1
        if classes == 1 and not train.labels.any():
            raise DataError(f"{self.file}: `y_train` must have labels of two or more classes; found only 0")
        if validation is None:
            parts = split_by_class(train.labels, self.validation_fraction or VALIDATION_FRACTION)
            train, validation = (Examples(train.images[part], train.labels[part]) for part in map(np.sort, parts))
        elif self.validation_fraction is not None:
            requirement = "must be null if the file has `x_validation`"
            raise DataError(WrongValue("data.validation_fraction", requirement, self.validation_fraction))
        kinds = [(each.images.shape[1:], each.images.dtype) for each in (train, validation)]
        if kinds[0] != kinds[1]:
            raise DataError(
                f"{self.file}: `x_validation` must have images like `x_train`, {kinds[0][0]} of {kinds[0][1]}; found "
                f"{kinds[1][0]} of {kinds[1][1]}"
            )
        return train, validation, classes


def _examples(path: str, arrays: Any, split: str) -> Examples:
    """Returns the examples of a split, with images `(examples, height, width, channels)`, uint8 or float32."""
    images, labels = (array_files.read(path, arrays, f"{name}_{split}") for name in ("x", "y"))
    if images.ndim not in (3, 4) or 0 in images.shape or not (images.dtype == np.uint8 or images.dtype.kind == "f"):
        raise DataError(
            f"{path}: `x_{split}` must be (examples, height, width, channels) or (examples, height, width), uint8 or "
            f"float; found shape {images.shape} of {images.dtype}"
        )
    if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
        raise DataError(
            f"{path}: `y_{split}` must be integers, one per image of `x_{split}`, ({len(images)},); found shape "
            f"{labels.shape} of {labels.dtype}"
        )
    if images.dtype.kind == "f":
        with np.errstate(over="ignore"):
            images = images.astype(np.float32, copy=False)
        if not np.isfinite(images).all():
            raise DataError(f"{path}: `x_{split}` must be finite float32 numbers; found NaN or infinity")
    if images.ndim == 3:
        images = images[..., np.newaxis]
    return Examples(images, labels.astype(np.int64))
