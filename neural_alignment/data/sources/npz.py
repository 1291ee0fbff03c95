"""The user's own images and labels in a .npz file."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, get_args

import numpy as np
from pydantic import Field, PositiveInt, PrivateAttr

from neural_alignment.data import array_files
from neural_alignment.data.labels import replaced
from neural_alignment.data.pipeline import (
    Batching,
    Dataset,
    Examples,
    Facts,
    InMemory,
    check_alike,
    check_labels,
    checked,
)
from neural_alignment.data.sources.base import (
    SOURCES,
    VALIDATION_FRACTION,
    Augmentation,
    InMemoryOptions,
    ValidationFraction,
    mixed_order,
    pixel_statistics,
    split_by_class,
)
from neural_alignment.errors import ArgumentError, DataError, WrongValue, nearest, shortened
from neural_alignment.options import PathText

EvaluatedSplit = Literal["validation", "test"]
"""The splits that a file may have beside `train`."""

EVALUATED_SPLITS = get_args(EvaluatedSplit)


@SOURCES.register
class NPZData(InMemoryOptions):
    """Arrays in a .npz file: `x_train`, `y_train`, and optionally the same for `validation` and `test`.

    The images are `(examples, height, width, channels)` or `(examples, height, width)`, uint8 or float. The labels are
    integers from 0, `(examples,)`.
    """

    has_splits: ClassVar[bool] = True

    free_keys: ClassVar[frozenset[str]] = InMemoryOptions.free_keys | {"file"}

    source: Literal["npz"]
    file: PathText
    """The .npz file."""
    classes: PositiveInt | None = None
    """Number of classes. Default: the largest training label plus 1."""
    # Not written at its default, so that the checksums of earlier configurations stay valid.
    validation_split: Annotated[EvaluatedSplit | None, Field(exclude_if=lambda split: split is None)] = None
    """The arrays for validation: `validation` for `x_validation`, `test` for `x_test`. Default: `x_validation` if the
    file has it; otherwise part of the training examples is held out."""
    validation_fraction: ValidationFraction | None = None
    """Fraction of each class that is held out for validation if no arrays are used for it; the split does not depend
    on the seed. Default: 0.2."""
    augment: Augmentation | None = None
    """Random crop after padding by 4 pixels, with or without a flip."""
    standardize: bool = True
    """Whether the mean of the training pixels is subtracted and the result divided by their standard deviation, per
    channel. Otherwise bytes are divided by 255, and floats are not changed."""

    _evaluated: EvaluatedSplit | None = PrivateAttr(None)
    """The split that `for_test` puts in the place of the validation examples, after the training examples are known."""

    def check_run(self, config: Any) -> None:
        """Checks that `evaluation.test_split` can be a split of a file. See `SourceOptions.check_run`."""
        super().check_run(config)
        split = config.evaluation.test_split
        if split not in (None, *EVALUATED_SPLITS):
            requirement = f"must be one of {', '.join(EVALUATED_SPLITS)} with data.source {self.source}"
            raise ArgumentError("evaluation.test_split", requirement, split)

    def load(self, batching: Batching) -> Dataset:
        """Returns the arrays, in memory. See `SourceOptions.load`."""
        train, validation, classes = self._arrays()
        train = train._replace(labels=replaced(train.labels, self.replace_labels, classes, batching.seed))
        center, scale = 0.0, 255.0 if train.images.dtype == np.uint8 else 1.0
        if self.standardize:
            center, scale = pixel_statistics(train.images)
        return InMemory(
            batching,
            train,
            validation,
            classes=classes,
            center=center,
            scale=scale,
            augment=self.augment,
            validation_order=mixed_order(len(validation.labels)),
        )

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

    def for_test(self, split: str, examples: int) -> NPZData:
        """Returns the options with another split for validation. See `SourceOptions.for_test`.

        All training examples are loaded with it, because their statistics standardize the images.
        """
        del examples
        options = self.model_copy()
        options._evaluated = split
        return options

    def _arrays(self) -> tuple[Examples, Examples, int]:
        """Returns the training examples, the validation examples and the number of classes."""
        with array_files.opened(self.file, array_files.NPZ) as arrays:
            _check_names(self.file, arrays)
            train = _examples(self.file, arrays, "train")
            chosen = self.validation_split
            if chosen is None and ("x_validation" in arrays or "y_validation" in arrays):
                chosen = "validation"
            used = self._evaluated or chosen
            validation = None if used is None else _examples(self.file, arrays, used, like=train)
        classes = self.classes or int(train.labels.max()) + 1
        if classes == 1 and not train.labels.any():
            raise DataError(f"{self.file}: `y_train` must have labels of two or more classes; found only 0")
        check_labels("training", train.labels, classes)
        if validation is not None:
            check_labels(used, validation.labels, classes)
        if chosen is None:
            parts = split_by_class(train.labels, self.validation_fraction or VALIDATION_FRACTION)
            train, held_out = (Examples(train.images[part], train.labels[part]) for part in map(np.sort, parts))
            validation = validation or held_out
        elif self.validation_fraction is not None:
            requirement = f"must be null if `x_{chosen}` is used for validation"
            raise DataError(WrongValue("data.validation_fraction", requirement, self.validation_fraction))
        return train, validation, classes


def _check_names(path: str, arrays: Any) -> None:
    """Raises `DataError` if the file has an array that is not used, because its name may be misspelt."""
    known = [f"{name}_{split}" for split in ("train", *EVALUATED_SPLITS) for name in ("x", "y")]
    if unknown := [name for name in arrays if name not in known]:
        more = f" ({len(unknown) - 1} more)" if len(unknown) > 1 else ""
        line = WrongValue(path, f"must have only the arrays {', '.join(known)}", shortened(unknown[0], 60)).line
        raise DataError(f"{line}{more}{nearest(unknown[0], known)}")


def _examples(path: str, arrays: Any, split: str, like: Examples | None = None) -> Examples:
    """Returns the examples of a split, with images `(examples, height, width, channels)`, uint8 or float32.

    Args:
        path: the file, for messages.
        arrays: its arrays.
        split: name of the split.
        like: the training examples, whose shape and dtype the images of another split must have.
    """
    names = [f"{name}_{split}" for name in ("x", "y")]
    read = Examples(*(array_files.read(path, arrays, name) for name in names))
    examples = checked(read, path, *(f"`{name}`" for name in names))
    if like is not None:
        check_alike(path, {"`x_train`": like.images, f"`x_{split}`": examples.images})
    return examples
