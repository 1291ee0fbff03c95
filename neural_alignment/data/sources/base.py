"""The base class of all data sources, and their registry."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, NonNegativeInt

from neural_alignment.data.pipeline import Batching, Dataset, Facts
from neural_alignment.errors import ArgumentError, DataError, WrongValue
from neural_alignment.options import Options, PathText
from neural_alignment.registry import Registry, misfit

SOURCES = Registry("source")
"""Every data source by its name in a configuration."""

ImageSize = Annotated[int, Field(gt=0, le=2**16)]
"""Height and width in pixels of a square image."""

Augmentation = Literal["crop", "crop_flip"]
"""Random crop after padding by 4 pixels; `crop_flip` also mirrors half of the images."""

PreprocessingName = Literal["resnet", "inception", "resize"]
"""A key of `data.imagenet.PREPROCESSING`."""

ValidationFraction = Annotated[float, Field(gt=0, lt=1)]
"""Fraction of the examples of each class that is held out for validation."""

VALIDATION_FRACTION = 0.2
"""Default of `ValidationFraction`."""

SPLIT_SEED = 0
"""Seed of `split_by_class` and `mixed_order`. It is not the seed of the run, so that all runs are evaluated on the
same images, in the same batches."""

IndexFile = Annotated[
    PathText | None,
    Field(
        description="File (.npz) that stores the positions of all records. It is created if it is missing. Default: "
        "the positions are read from the files at each start, which reads nearly all of files on gs://."
    ),
]
TolerateCorrupt = Annotated[
    NonNegativeInt, Field(description="Maximum number of damaged records that may be skipped before the run stops.")
]


class SourceOptions(Options):
    """Base class of all data sources: the options of a source, and the methods that load its data.

    `data.load`, `data.facts` and the key `data` of a configuration take the same options, because all of them use the
    class that is registered in `SOURCES`. A subclass declares `source` as a `Literal` with its name.
    """

    targets: ClassVar[str] = "classes"
    """The kind of targets, as in `LossOptions.targets`."""

    has_splits: ClassVar[bool] = False
    """Whether the data have named splits, so that `evaluation.test_split` can name a third one."""

    free_keys: ClassVar[frozenset[str]] = frozenset({"data_dir", "download", "index_file", "tolerate_corrupt"})
    """Keys that do not affect the result of a run, above all those that say where the data are. A run may be resumed
    with other values of them. A source with other such keys adds them."""

    shuffle: bool = True
    """Whether each epoch has a different order; otherwise every epoch has the order of the files."""

    @classmethod
    def decisive(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the options that affect the result of a run.

        Args:
            options: options of this source, as plain data. Keys may be missing.
        """
        return {key: value for key, value in options.items() if key not in cls.free_keys}

    def load(self, batching: Batching) -> Dataset:
        """Loads the data.

        Args:
            batching: batch sizes, seed, shuffling.

        Returns:
            The data set. No batch has been computed yet.

        Raises:
            DataError: if the data are missing or wrong.
        """
        raise NotImplementedError

    def loaded(self, batching: Batching) -> Dataset:
        """Returns the result of `load`, which may be that of a user's source.

        Args:
            batching: batch sizes, seed, shuffling.

        Raises:
            DataError: as in `load`, or if its arguments or its result are wrong.
        """
        is_defined = type(self).load is not SourceOptions.load
        problem = misfit(self.load if is_defined else None, ["batching"])
        if not problem:
            dataset = self.load(batching)
            if isinstance(dataset, Dataset):
                return dataset
            problem = f"it returns {type(dataset).__name__}"
        requirement = f"must be a source whose `load(batching)` returns a `Dataset`, such as `InMemory` ({problem})"
        raise DataError(WrongValue("data.source", requirement, self.source))

    def facts(self, batching: Batching) -> Facts:
        """Returns shapes and counts of the data. Override this in a source that knows them without loading the data.

        Args:
            batching: batch sizes, seed, shuffling.

        Raises:
            DataError: if the data are missing or wrong.
        """
        return self.loaded(batching)

    def check_run(self, config: Any) -> None:
        """Checks that the source fits the other options of a run.

        Args:
            config: the configuration of the run.

        Raises:
            ArgumentError: if `evaluation.test_split` is set and the source has no named splits.
        """
        split = config.evaluation.test_split
        if split is not None and not self.has_splits:
            requirement = f"must be null with data.source {self.source}, which has no named splits"
            raise ArgumentError("evaluation.test_split", requirement, split)

    def for_test(self, split: str, examples: int) -> SourceOptions:
        """Returns options of the same data with another split for validation, for sources with `has_splits`.

        Args:
            split: the split, in the syntax of the source.
            examples: minimum number of training examples to load with it.
        """
        raise NotImplementedError


class InMemoryOptions(SourceOptions):
    """Base class of the sources that can hold their examples in memory."""

    replace_labels: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Fraction of the training examples whose label is replaced by a random one, drawn with the seed of the run."""


def check_augmentation(options: Any) -> None:
    """Checks that images are not cropped twice.

    Args:
        options: options with `preprocessing` other than "resize", and with `augment`.

    Raises:
        ArgumentError: if `augment` is set.
    """
    if options.augment is not None:
        requirement = f"must be null with preprocessing {options.preprocessing}, which crops and flips"
        raise ArgumentError("augment", requirement, options.augment)


def split_by_class(labels: np.ndarray, fraction: float) -> tuple[np.ndarray, np.ndarray]:
    """Splits examples at random into training and validation examples, the same fraction of each class.

    Args:
        labels: `(examples,)` integers.
        fraction: fraction of the validation examples.

    Returns:
        The numbers of the training and of the validation examples, in random order.

    Raises:
        DataError: if a class has only one example, or if a part is smaller than the number of classes.
    """
    with needs("scikit-learn"):
        from sklearn.model_selection import train_test_split
    try:
        return train_test_split(np.arange(len(labels)), test_size=fraction, stratify=labels, random_state=SPLIT_SEED)
    except ValueError as error:
        classes, counts = np.unique(labels, return_counts=True)
        raise DataError(
            f"data.validation_fraction: must leave examples of every class in both parts; found {fraction} with "
            f"{len(labels)} examples of {len(classes)} classes; the smallest class has {counts.min()}"
        ) from error


def mixed_order(examples: int) -> np.ndarray:
    """Returns a fixed random order of the validation examples, for sources whose files may be sorted by class.

    In the order of such files a batch would contain few classes, which falsifies the statistics that batch
    normalization takes from it, and the alignment would be measured on the first classes only.

    Args:
        examples: number of validation examples.

    Returns:
        `(examples,)` int64, for `Dataset.validation_order`.
    """
    return np.random.RandomState(SPLIT_SEED).permutation(examples)


@contextlib.contextmanager
def needs(package: str) -> Iterator[None]:
    """Turns the error of a missing package into an error of one line.

    Args:
        package: the name of the package on PyPI.

    Raises:
        DataError: if the package is not installed.
    """
    try:
        yield
    except ImportError as error:
        raise DataError(
            f"the package {package} is needed for this data source; found: {error}; try: pip install {package}"
        ) from error


def pixel_statistics(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean and standard deviation of the pixels of each channel.

    Args:
        images: `(examples, height, width, channels)`.

    Returns:
        Two arrays `(channels,)`, float64. The deviation of a constant channel is given as 1.
    """
    channels = images.shape[-1]
    rows = images.reshape(-1, images.shape[-2] * channels)
    total = squares = np.zeros(rows.shape[1])
    for begin in range(0, len(rows), 16384):  # In parts: all at once would take eight times the images' memory.
        part = rows[begin : begin + 16384].astype(np.float64)
        # Rows with all columns: sums over a short last axis are several times slower.
        total, squares = total + part.sum(axis=0), squares + np.einsum("ij,ij->j", part, part)
    total, squares = (sums.reshape(-1, channels).sum(axis=0) for sums in (total, squares))
    count = images.size // channels
    mean = total / count
    deviation = np.sqrt(np.maximum(squares / count - mean**2, 0.0))
    # Rounding gives a constant channel a deviation above 0: in a sum over 16384 rows, the relative error of the squares
    # is up to 2e-12. The threshold is relative, because pixels can have any unit.
    return mean, np.where(deviation > 2e-6 * np.sqrt(squares / count), deviation, 1.0)
