"""The handwritten digits of scikit-learn."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from neural_alignment.data.labels import replaced
from neural_alignment.data.pipeline import Batching, Dataset, Examples, InMemory
from neural_alignment.data.sources.base import (
    SOURCES,
    VALIDATION_FRACTION,
    Augmentation,
    InMemoryOptions,
    ValidationFraction,
    needs,
    pixel_statistics,
    split_by_class,
)


@SOURCES.register
class DigitsData(InMemoryOptions):
    """scikit-learn's digits: 1,797 grey images of 8 x 8 pixels, no download."""

    source: Literal["digits"]
    validation_fraction: ValidationFraction = VALIDATION_FRACTION
    """Fraction of each class that is held out for validation; the split does not depend on the seed."""
    # The next two keys are not written at their defaults, so that the checksums of earlier configurations stay valid.
    augment: Annotated[Augmentation | None, Field(exclude_if=lambda augment: augment is None)] = None
    """Random crop after padding by 4 pixels, with or without a flip."""
    standardize: Annotated[bool, Field(exclude_if=lambda standardize: standardize)] = True
    """Whether the mean of the training pixels is subtracted and the result divided by their standard deviation;
    otherwise pixels are divided by 16."""

    def load(self, batching: Batching) -> Dataset:
        """Returns the digits, in memory. See `SourceOptions.load`."""
        with needs("scikit-learn"):
            from sklearn.datasets import load_digits
        bunch = load_digits()
        images = bunch.images.astype(np.uint8)[..., np.newaxis]
        labels = bunch.target.astype(np.int32)
        train, validation = split_by_class(labels, self.validation_fraction)
        examples = Examples(images[train], replaced(labels[train], self.replace_labels, 10, batching.seed))
        center, scale = pixel_statistics(examples.images) if self.standardize else (0.0, 16.0)
        return InMemory(
            batching,
            examples,
            Examples(images[validation], labels[validation]),
            classes=10,
            class_names=[str(name) for name in bunch.target_names],
            center=center,
            scale=scale,
            augment=self.augment,
        )
