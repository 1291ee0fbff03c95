"""Image classification sets of TensorFlow Datasets."""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
import pydantic
import tensorflow as tf
from pydantic import Field, PositiveInt

from neural_alignment.data.damage import DamageList
from neural_alignment.data.imagenet import PREPROCESSING, Preparation, decode_image, scale_to_unit_range
from neural_alignment.data.kept import decoded
from neural_alignment.data.labels import replaced
from neural_alignment.data.pipeline import Batching, Dataset, Examples, Facts, InMemory
from neural_alignment.data.records import Records, Schema, Shard, TFRecords
from neural_alignment.data.sources.base import (
    SOURCES,
    Augmentation,
    ImageSize,
    IndexFile,
    InMemoryOptions,
    PreprocessingName,
    TolerateCorrupt,
    check_augmentation,
    needs,
    pixel_statistics,
)
from neural_alignment.data.streamed import Streamed, read_into_memory
from neural_alignment.errors import ArgumentError, DataError, DataUnavailable, nearest, one_line
from neural_alignment.options import PathText

logger = logging.getLogger(__name__)

DOWNLOAD_RETRIES = 3
"""Number of retries for each file. By default TFDS waits more than three minutes for a host that does not answer."""

MAX_BYTES_IN_MEMORY = 10**9
"""Maximum size in bytes of a data set that is held in memory. Larger ones are streamed."""

SHUFFLE_BUFFER = 10000
"""Default number of records in memory for shuffling a streamed data set."""


@SOURCES.register
class TFDSData(InMemoryOptions):
    """An image classification set of TensorFlow Datasets.

    Sets with images of one shape that take up to about 1 GB are held in memory. Larger sets, and sets of images of
    different shapes, are streamed from their files. A set that is prepared on disk needs no network.
    """

    has_splits: ClassVar[bool] = True

    source: Literal["tfds"]
    dataset: Annotated[str, Field(min_length=1)]
    """Name in the catalogue, such as mnist or cifar10; also name/config:version."""
    data_dir: PathText | None = None
    """Directory of the prepared set. Default: the environment variable TFDS_DATA_DIR, or ~/tensorflow_datasets."""
    download: bool = True
    """Whether the set is downloaded and prepared if it is not on disk."""
    train_split: str = "train"
    """Training examples, in the syntax of TFDS, such as train[5000:]."""
    validation_split: str = "test"
    """Validation examples, in the syntax of TFDS."""
    # Not written at its default, so that the checksums of earlier configurations stay valid.
    preprocessing: Annotated[PreprocessingName, Field(exclude_if=lambda name: name == "resize")] = "resize"
    """`resnet` or `inception`: for photographs, crops, flips and scaling as in the published training of ResNet v1 or
    v2 on ImageNet; the set is streamed. `resize`: the whole image, resized to `image_size` if that is given."""
    image_size: ImageSize | None = None
    """Height and width to which images are resized (bilinear, without antialiasing). Default: 224 for resnet, 299 for
    inception; for `resize` the size of the images. Required for `resize` if the images differ in size."""
    augment: Augmentation | None = None
    """Random crop after padding by 4 pixels, with or without a flip."""
    standardize: bool = True
    """In memory: subtract the mean and divide by the standard deviation of the training pixels, per channel. Streamed:
    scale to [-1, 1]. False: scale to [0, 1]."""
    index_file: IndexFile = None
    tolerate_corrupt: TolerateCorrupt = 0
    # Not written at its default, so that the checksums of earlier configurations stay valid.
    shuffle_buffer: Annotated[PositiveInt | None, Field(exclude_if=lambda size: size is None)] = None
    """Number of encoded records in memory for shuffling a streamed set: one half is in use while the other half is
    read. Default: 10,000. Not for sets that are held in memory, which are shuffled as a whole."""

    @pydantic.model_validator(mode="after")
    def _check_preprocessing(self) -> TFDSData:
        if self.preprocessing != "resize":
            check_augmentation(self)
            if not self.standardize:
                requirement = f"must be true with preprocessing {self.preprocessing}, which scales the pixels"
                raise ArgumentError("standardize", requirement, self.standardize)
        return self

    def load(self, batching: Batching) -> Dataset:
        """Returns the set, in memory or streamed. See `SourceOptions.load`."""
        found = self._find()
        schema = Schema("image", "label", classes=found.label.num_classes)
        damage = DamageList(self.tolerate_corrupt)
        train, validation = (
            _records(found.builder, key, getattr(self, key), schema, damage, self.index_file)
            for key in ("train_split", "validation_split")
        )
        if self._is_held_in_memory(found, train.examples + validation.examples):
            return self._in_memory(batching, found, train, validation)
        return self._streamed(batching, found, train, validation)

    def facts(self, batching: Batching) -> Facts:
        """Returns shapes and counts from the description of the set; no record is read."""
        found = self._find()
        train, validation = (
            _split(found.builder, key, getattr(self, key)).num_examples for key in ("train_split", "validation_split")
        )
        self._is_held_in_memory(found, train + validation)  # Checks the options.
        return Facts(
            batching,
            input_shape=self._input_shape(found),
            classes=found.label.num_classes,
            train_examples=train,
            validation_examples=validation,
        )

    def for_test(self, split: str, examples: int) -> TFDSData:
        """Returns the options with another split for validation. See `SourceOptions.for_test`.

        The test images are standardized with the statistics of the training images, which are therefore loaded too.
        Without standardization, only `examples` of them are loaded. Options that concern only training are left out,
        because this set may be held in memory where the run's own is streamed, or the reverse.
        """
        changes = {"validation_split": split, "shuffle_buffer": None, "replace_labels": 0.0}
        if not self.standardize:
            first = re.split(r"[\[+]", self.train_split)[0]  # Of a sum such as "train[:90%]+validation".
            changes["train_split"] = f"{first}[:{examples}]"
        return self.model_copy(update=changes)

    @property
    def _preparation(self) -> Preparation | None:
        """The decoders of `preprocessing`, or None for `resize`."""
        return None if self.preprocessing == "resize" else PREPROCESSING[self.preprocessing].at(self.image_size)

    def _find(self) -> _Found:
        """Returns the builder of the set, and its description of images and labels."""
        builder = _builder(self.dataset, _data_dir(self.data_dir), self.download)
        _check_features(builder.info, self.dataset)
        _check_format(builder)
        shape = builder.info.features["image"].shape
        if self._preparation is None and self.image_size is None and None in shape[:2]:
            raise DataError(
                f"data.image_size: is required for {self.dataset!r}, whose images differ in shape; found null; "
                "allowed: 1 or more, or preprocessing resnet or inception"
            )
        return _Found(builder, shape, builder.info.features["label"])

    def _resized(self, shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """Returns the shape of an image after resizing."""
        return tuple(shape) if self.image_size is None else (self.image_size, self.image_size, shape[-1])

    def _input_shape(self, found: _Found) -> tuple[int, int, int]:
        """Returns the shape of one input."""
        if self._preparation is not None:
            return self._preparation.input_shape
        return self._resized((*found.shape[:2], found.shape[2] or 3))

    def _is_held_in_memory(self, found: _Found, examples: int) -> bool:
        """Returns whether the set is held in memory; otherwise it is streamed.

        Raises:
            DataError: if an option has no effect then.
        """
        pixels = examples * np.prod([size or 0 for size in self._resized(found.shape)])
        is_small = None not in found.shape and pixels * (1 if self.image_size is None else 4) <= MAX_BYTES_IN_MEMORY
        in_memory = bool(is_small) and self._preparation is None
        kinds = ("streamed", "held in memory")
        key, allowed = ("shuffle_buffer", "null") if in_memory else ("replace_labels", "0")
        if value := getattr(self, key):
            raise DataError(
                f"data.{key}: is for sets that are {kinds[not in_memory]}; found {value} with {self.dataset!r}, which "
                f"is {kinds[in_memory]}; allowed: {allowed}"
            )
        return in_memory

    def _in_memory(self, batching: Batching, found: _Found, train: TFRecords, validation: TFRecords) -> Dataset:
        classes = found.label.num_classes
        arrays = [self._decoded(each, found.shape) for each in (train, validation)]
        labels = replaced(arrays[0].labels, self.replace_labels, classes, batching.seed)
        arrays[0] = arrays[0]._replace(labels=labels)
        center, scale = pixel_statistics(arrays[0].sound_images) if self.standardize else (0.0, 255.0)
        return InMemory(
            batching,
            *arrays,
            classes=classes,
            class_names=found.label.names,
            center=center,
            scale=scale,
            augment=self.augment,
            damage=train.damage,
        )

    def _decoded(self, records: TFRecords, shape: tuple[int, int, int]) -> Examples:
        state = records.state()
        key = None if state is None else (state, shape, self.image_size)
        return decoded(key, lambda: _resize_all(read_into_memory(records, shape), self.image_size))

    def _streamed(self, batching: Batching, found: _Found, train: Records, validation: Records) -> Dataset:
        return Streamed(
            batching,
            train,
            validation,
            self._preparation or self._whole_images(found),
            class_names=found.label.names,
            augment=self.augment,
            shuffle_buffer=self.shuffle_buffer or SHUFFLE_BUFFER,
        )

    def _whole_images(self, found: _Found) -> Preparation:
        """Returns the decoders of `resize`."""
        input_shape = self._input_shape(found)

        def decode(encoded: tf.Tensor, seed: tf.Tensor | None = None) -> tf.Tensor:
            del seed  # Images are augmented in batches only.
            image = decode_image(encoded, input_shape[-1])
            image = tf.cast(image, tf.float32) if self.image_size is None else tf.image.resize(image, input_shape[:2])
            image = scale_to_unit_range(image) if self.standardize else image / 255.0
            return tf.ensure_shape(image, input_shape)

        center, scale = (127.5, 127.5) if self.standardize else (0.0, 255.0)
        return Preparation(input_shape, decode, decode, center, scale)


class _Found(NamedTuple):
    """A data set on disk.

    Attributes:
        builder: the builder of TFDS.
        shape: shape of the images; None in the dimensions in which they differ.
        label: the TFDS feature of the labels.
    """

    builder: Any
    shape: tuple[int | None, ...]
    label: Any


def _data_dir(data_dir: str | None) -> str:
    """Returns the directory that holds prepared data sets."""
    default = os.environ.get("TFDS_DATA_DIR") or os.path.join("~", "tensorflow_datasets")
    return os.path.expanduser(data_dir or default)


def _builder(dataset: str, data_dir: str, download: bool) -> Any:
    """Returns the TFDS builder of a set that is prepared on disk, after downloading it if necessary."""
    with needs("tensorflow-datasets"):
        import tensorflow_datasets as tfds
        from tensorflow_datasets.core import read_only_builder
    try:  # Finds any version that is on disk, without a network request.
        return read_only_builder.builder_from_files(dataset, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError as error:
        logger.debug("%s is not in %s: %s", dataset, data_dir, error)
    except Exception as error:  # TFDS passes on the errors of its parsers.
        raise DataUnavailable(
            f"data.dataset: {dataset!r} in {data_dir} cannot be read; found: {_line(error)}"
        ) from error
    known = tfds.list_builders(with_community_datasets=False)
    name = re.split(r"[/:]", dataset)[0]
    if name not in known:
        hint = nearest(name, known) or "; see tensorflow.org/datasets/catalog"
        raise DataError(f"data.dataset: must be the name of a TensorFlow data set; found {dataset!r}{hint}")
    if not download:
        state = "has no such data set" if tf.io.gfile.isdir(data_dir) else "does not exist"
        raise DataUnavailable(
            f"data.dataset: must be prepared on disk; found {dataset!r} in {data_dir}, which {state}; set "
            "TFDS_DATA_DIR or data.data_dir to the directory that holds it, or data.download to true"
        )
    return _download(dataset, data_dir)


def _download(dataset: str, data_dir: str) -> Any:
    """Downloads and prepares a data set. Fails soon if there is no network."""
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(dataset, data_dir=data_dir)
        _check_features(builder.info, dataset)
        with _few_retries():
            builder.download_and_prepare(
                download_config=tfds.download.DownloadConfig(try_download_gcs=False), file_format="tfrecord"
            )
    except DataError:
        raise
    except Exception as error:  # The scripts of hundreds of data sets raise errors of all kinds.
        raise DataUnavailable(
            f"data.dataset: {dataset!r} cannot be downloaded to {data_dir}; found: {_line(error)}; use a machine with "
            "network, or set TFDS_DATA_DIR to a directory that holds it"
        ) from error
    return builder


@contextlib.contextmanager
def _few_retries() -> Iterator[None]:
    """Limits TFDS's retries.

    Their warnings stay off after this context, because parallel downloads continue after the first failure.
    """
    from tensorflow_datasets.core.download import downloader

    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    retries, downloader.MAX_RETRIES = downloader.MAX_RETRIES, DOWNLOAD_RETRIES
    try:
        yield
    finally:
        downloader.MAX_RETRIES = retries


def _check_features(info: Any, dataset: str) -> None:
    """Raises `DataError` unless an example is one image of bytes and one class."""
    import tensorflow_datasets as tfds

    features = info.features or {}
    image, label = (dict(features.items()).get(key) for key in ("image", "label"))
    if not isinstance(image, tfds.features.Image) or not isinstance(label, tfds.features.ClassLabel):
        raise DataError(
            f"data.dataset: must be an image classification set; found {dataset!r} with features "
            f"{', '.join(sorted(features))}; allowed: sets with an image feature `image` and a class feature `label`"
        )
    if image.np_dtype != np.uint8 or len(image.shape) != 3:
        raise DataError(
            f"data.dataset: must have images of bytes; found {dataset!r} with {image.np_dtype.__name__}; allowed: uint8"
        )


def _check_format(builder: Any) -> None:
    """Raises `DataError` unless a set is stored as TFRecord."""
    if builder.info.file_format.value != "tfrecord":
        raise DataError(
            f"data.dataset: must be stored as TFRecord; found {builder.info.file_format.value} in {builder.data_dir}; "
            "allowed: tfrecord"
        )


def _split(builder: Any, key: str, split: str) -> Any:
    """Returns the description of a split; raises `DataError` if there is none or it is empty."""
    try:
        info = builder.info.splits[split]
        examples = info.num_examples
    except Exception as error:  # ValueError, KeyError or AssertionError, depending on the mistake.
        splits = ", ".join(builder.info.splits)
        raise DataError(
            f"data.{key}: must be a split of {builder.info.full_name}; found {split!r}; allowed: {splits}, or part of "
            f"one, such as 'train[5000:]'{nearest(str(split), list(builder.info.splits))}"
        ) from error
    if not examples:
        raise DataError(
            f"data.{key}: must hold examples; found 0 examples in {split!r} of {builder.info.full_name}; "
            "allowed: 1 or more"
        )
    return info


def _records(
    builder: Any, key: str, split: str, schema: Schema, damage: DamageList, index_file: str | None
) -> TFRecords:
    """Returns the records of one split, with the part of every file that belongs to it."""
    info = _split(builder, key, split)
    shards = [Shard(part.filename, part.skip, part.take, part.examples_in_shard) for part in info.file_instructions]
    name = f"`{key}` {split!r} of {builder.info.full_name}"
    return TFRecords(name, shards, schema, damage, info.num_examples, index_file)


def _resize_all(arrays: Examples, image_size: int | None) -> Examples:
    """Resizes images to float32, bilinearly with half-pixel centres, without antialiasing and without rounding."""
    if image_size is None:
        return arrays
    images = np.empty((len(arrays.images), image_size, image_size, arrays.images.shape[-1]), np.float32)
    for begin in range(0, len(images), 1024):
        part = slice(begin, begin + 1024)
        images[part] = tf.image.resize(arrays.images[part], (image_size, image_size), method="bilinear").numpy()
    return arrays._replace(images=images)


def _line(error: Exception) -> str:
    """Returns kind and message of an error in one line of limited length."""
    return one_line(f"{type(error).__name__}: {error}", 300)
