"""Where data comes from. A new data set is one function here, and its entry in `SOURCES`."""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from neural_alignment.data import imagenet as imagenet_preprocessing
from neural_alignment.data.damage import DamageList
from neural_alignment.data.labels import replaced
from neural_alignment.data.pipeline import (
    Arrays,
    Batching,
    Dataset,
    Facts,
    InMemory,
    check_boolean,
    check_choice,
    check_integer,
)
from neural_alignment.data.records import Records, Schema, Shard
from neural_alignment.data.streamed import Streamed, read_into_memory
from neural_alignment.errors import DataError, DataUnavailable, nearest

logger = logging.getLogger(__name__)

DIGITS_SPLIT_SEED = 0  # not the run's: all seeds are evaluated on the same images
DOWNLOAD_RETRIES = 3  # TFDS would wait more than three minutes for a host that is not there
MAX_BYTES_IN_MEMORY = 10**9


def digits(
    batching: Batching,
    *,
    validation_fraction: float = 0.2,
    standardize: bool = True,
    augment: str | None = None,
    replace_labels: float = 0.0,
) -> Dataset:
    """scikit-learn's 1,797 handwritten digits, 8x8 grey; pixels / 16.

    Args:
        batching: batch sizes, seed, shuffling.
        validation_fraction: part of each class that is held out; the split does not depend on the seed.
        standardize: subtract the mean and divide by the standard deviation of the training pixels.
        augment: "crop", "crop_flip" or None.
        replace_labels: part of the training examples that get a random label, by the seed.

    Returns:
        A data set in memory.
    """
    _check_fraction("validation_fraction", validation_fraction)
    check_boolean("standardize", standardize)
    with _needs("scikit-learn"):
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    bunch = load_digits()
    images = bunch.images.astype(np.uint8)[..., np.newaxis]
    labels = bunch.target.astype(np.int32)
    try:
        train_index, validation_index = train_test_split(
            np.arange(len(labels)), test_size=validation_fraction, stratify=labels, random_state=DIGITS_SPLIT_SEED
        )
    except ValueError as error:
        raise DataError(
            f"`validation_fraction` must leave every class in both parts. Received {validation_fraction}. "
            f"Allowed: 0.01 to 0.99 or so."
        ) from error
    train = Arrays(images[train_index], replaced(labels[train_index], replace_labels, 10, batching.seed))
    center, scale = _statistics(train.images) if standardize else (0.0, 16.0)
    return InMemory(
        batching,
        train,
        Arrays(images[validation_index], labels[validation_index]),
        classes=10,
        class_names=[str(name) for name in bunch.target_names],
        center=center,
        scale=scale,
        augment=augment,
    )


def tfds_source(
    batching: Batching,
    *,
    dataset: str,
    data_dir: str | None = None,
    download: bool = True,
    train_split: str = "train",
    validation_split: str = "test",
    image_size: int | None = None,
    augment: str | None = None,
    standardize: bool = True,
    replace_labels: float = 0.0,
    shuffle_buffer: int = 10000,
    index_file: str | None = None,
    tolerate_corrupt: int = 0,
) -> Dataset:
    """An image classification set of TensorFlow Datasets.

    Sets of one image shape that take up to about 1 GB are held in memory; larger ones, and those of differing shapes,
    are streamed. Nothing is asked of the network if the set is prepared on disk.

    Args:
        batching: batch sizes, seed, shuffling.
        dataset: a name as `tfds.load` takes it: "mnist", "cifar10", "name/config:version".
        data_dir: where it is, or is to be; default: the environment variable TFDS_DATA_DIR, or TFDS's own default.
        download: whether to download and prepare it if it is not there.
        train_split: training examples, in TFDS's syntax: "train", "train[5000:]".
        validation_split: validation examples.
        image_size: if given, images are resized bilinearly, without antialiasing, to this height and width.
        augment: "crop", "crop_flip" or None.
        standardize: in memory: subtract the mean and divide by the standard deviation of the training pixels, per
            channel. Streamed: scale to [-1, 1]. False: scale to [0, 1].
        replace_labels: part of the training examples that get a random label, by the seed; in memory alone.
        shuffle_buffer: encoded records held in memory to shuffle, if streamed.
        index_file: where to keep the places of all records (.npz, may be remote); without it, their headers are read at
            each start.
        tolerate_corrupt: how many damaged records (file and number, over training and validation) may be skipped. In
            a training batch another example of it takes the place; a validation example is left out.

    Returns:
        A data set in memory or streamed.
    """
    for name, value in (("download", download), ("standardize", standardize)):
        check_boolean(name, value)
    builder, shape, label = _described(dataset, data_dir, download, image_size)
    schema = Schema("image", "label", classes=label.num_classes)
    damage = _damage(tolerate_corrupt, index_file)
    train, validation = (
        _tfds_records(builder, option, split, schema, damage, index_file)
        for option, split in (("train_split", train_split), ("validation_split", validation_split))
    )
    common = {"class_names": label.names, "augment": augment}
    pixels = (train.examples + validation.examples) * np.prod([size or 0 for size in _resized(shape, image_size)])
    if None not in shape and pixels * (1 if image_size is None else 4) <= MAX_BYTES_IN_MEMORY:
        arrays = [_resize_all(read_into_memory(records, shape), image_size) for records in (train, validation)]
        labels = replaced(arrays[0].labels, replace_labels, label.num_classes, batching.seed)
        arrays[0] = arrays[0]._replace(labels=labels)
        center, scale = _statistics(arrays[0].sound_images) if standardize else (0.0, 255.0)
        return InMemory(
            batching, *arrays, classes=label.num_classes, center=center, scale=scale, damage=damage, **common
        )
    if replace_labels:
        raise DataError(
            f"`replace_labels` is for sets that are held in memory. Received {replace_labels} with {dataset!r}, which "
            "is streamed. Allowed: 0."
        )
    input_shape = _resized((*shape[:2], shape[2] or 3), image_size)

    def decode(encoded: tf.Tensor, seed: tf.Tensor | None = None) -> tf.Tensor:
        del seed  # the augmentation of batches is the only one
        image = tf.io.decode_image(encoded, channels=input_shape[-1], expand_animations=False)
        image = tf.cast(image, tf.float32) if image_size is None else tf.image.resize(image, input_shape[:2])
        image = imagenet_preprocessing.scale_to_unit_range(image) if standardize else image / 255.0
        return tf.ensure_shape(image, input_shape)

    return Streamed(
        batching,
        train,
        validation,
        input_shape=input_shape,
        decode_train=decode,
        decode_validation=decode,
        center=127.5 if standardize else 0.0,
        scale=127.5 if standardize else 255.0,
        shuffle_buffer=shuffle_buffer,
        **common,
    )


def tfds_facts(
    batching: Batching,
    *,
    dataset: str,
    data_dir: str | None = None,
    download: bool = True,
    train_split: str = "train",
    validation_split: str = "test",
    image_size: int | None = None,
    **_: Any,
) -> Facts:
    """What the description of a TFDS set says of it, no record read. Arguments as of `tfds_source`."""
    builder, shape, label = _described(dataset, data_dir, download, image_size)
    train, validation = (
        _split(builder, option, split).num_examples
        for option, split in (("train_split", train_split), ("validation_split", validation_split))
    )
    return Facts(
        batching,
        input_shape=_resized((*shape[:2], shape[2] or 3), image_size),
        classes=label.num_classes,
        train_examples=train,
        validation_examples=validation,
    )


def imagenet(
    batching: Batching,
    *,
    train_files: str | list[str],
    validation_files: str | list[str],
    preprocessing: str = "resnet",
    image_size: int | None = None,
    classes: int = 1000,
    label_offset: int = 1,
    train_examples: int | None = None,
    validation_examples: int | None = None,
    shuffle_buffer: int = 10000,
    index_file: str | None = None,
    tolerate_corrupt: int = 0,
) -> Dataset:
    """ImageNet in its standard TFRecords: features `image/encoded` and `image/class/label`.

    Args:
        batching: batch sizes, seed, shuffling.
        train_files: file pattern, or several.
        validation_files: file pattern, or several.
        preprocessing: "resnet" or "inception".
        image_size: height and width; default: 224 for "resnet", 299 for "inception".
        classes: number of classes.
        label_offset: the label of the first class in the files.
        train_examples: how many training examples the files hold (all of ImageNet: 1281167); default: what is found. If
            it is less than there are, an epoch is that many of the shuffled ones.
        validation_examples: how many validation examples the files hold (all of ImageNet: 50000).
        shuffle_buffer: encoded records held in memory to shuffle; at 110 kB each, 10,000 take 1.1 GB.
        index_file: where to keep the places of all records (.npz, may be remote); without it, their headers are read at
            each start.
        tolerate_corrupt: how many damaged records (file and number, over training and validation) may be skipped. In
            a training batch another example of it takes the place; a validation example is left out.

    Returns:
        A streamed data set.
    """
    check_choice("preprocessing", preprocessing, tuple(imagenet_preprocessing.PREPROCESSING))
    prepare = imagenet_preprocessing.PREPROCESSING[preprocessing]
    size = prepare.image_size if image_size is None else image_size
    check_integer("image_size", size, at_least=1)
    check_integer("classes", classes, at_least=1)
    check_integer("label_offset", label_offset, at_least=0)
    for name, count in (("train_examples", train_examples), ("validation_examples", validation_examples)):
        if count is not None:
            check_integer(name, count, at_least=1)
    schema = Schema("image/encoded", "image/class/label", classes=classes, label_offset=label_offset)
    damage = _damage(tolerate_corrupt, index_file)
    train, validation = (
        Records(
            f"`{option}`", [Shard(path) for path in _matching(option, pattern)], schema, damage, examples, index_file
        )
        for option, pattern, examples in (
            ("train_files", train_files, train_examples),
            ("validation_files", validation_files, validation_examples),
        )
    )
    validation.must_be_whole()
    return Streamed(
        batching,
        train,
        validation,
        input_shape=(size, size, 3),
        decode_train=lambda encoded, seed: prepare.train(encoded, seed, size),
        decode_validation=lambda encoded: prepare.evaluation(encoded, size),
        center=prepare.center,
        scale=prepare.scale,
        shuffle_buffer=shuffle_buffer,
    )


def imagenet_facts(
    batching: Batching,
    *,
    preprocessing: str = "resnet",
    image_size: int | None = None,
    classes: int = 1000,
    train_examples: int | None = None,
    validation_examples: int | None = None,
    **_: Any,
) -> Facts | None:
    """What the options of `imagenet` say of the data; None where they do not say how many examples there are."""
    if not train_examples or not validation_examples:
        return None
    check_choice("preprocessing", preprocessing, tuple(imagenet_preprocessing.PREPROCESSING))
    size = image_size or imagenet_preprocessing.PREPROCESSING[preprocessing].image_size
    return Facts(
        batching,
        input_shape=(size, size, 3),
        classes=classes,
        train_examples=train_examples,
        validation_examples=validation_examples,
    )


SOURCES: dict[str, Callable[..., Dataset]] = {"digits": digits, "tfds": tfds_source, "imagenet": imagenet}

FACTS: dict[str, Callable[..., Facts | None]] = {"tfds": tfds_facts, "imagenet": imagenet_facts}
"""The sources of which something is known before the data are read; a function returns None where it is too little."""


def _damage(tolerate_corrupt: int, index_file: str | None) -> DamageList:
    """Checks the options that all sources of files have; returns an empty list of damaged records."""
    check_integer("tolerate_corrupt", tolerate_corrupt, at_least=0)
    if index_file is not None and (not isinstance(index_file, str) or not index_file):
        raise DataError(f"`index_file` must be a path. Received {index_file!r}. Example: /data/imagenet_index.npz.")
    return DamageList(tolerate_corrupt)


@contextlib.contextmanager
def _needs(package: str) -> Iterator[None]:
    """Turns a missing package into one line."""
    try:
        yield
    except ImportError as error:
        raise DataError(
            f"This data source needs the package {package}. Received: {error}. Try: pip install {package}"
        ) from error


def _check_fraction(name: str, value: Any) -> None:
    """Raises `DataError` unless 0 < value < 1."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1:
        raise DataError(f"`{name}` must be a fraction. Received {value!r}. Allowed: above 0, below 1.")


def _statistics(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of the pixels, each `(channels,)` float64; 1 for the deviation of a constant."""
    channels = images.shape[-1]
    rows = images.reshape(-1, images.shape[-2] * channels)
    total = squares = np.zeros(rows.shape[1])
    for begin in range(0, len(rows), 16384):  # in parts: the whole would take eight times the images' memory
        part = rows[begin : begin + 16384].astype(np.float64)
        # Rows with all columns: sums over a short last axis are several times slower.
        total, squares = total + part.sum(axis=0), squares + np.einsum("ij,ij->j", part, part)
    total, squares = (sums.reshape(-1, channels).sum(axis=0) for sums in (total, squares))
    count = images.size // channels
    mean = total / count
    deviation = np.sqrt(np.maximum(squares / count - mean**2, 0.0))
    return mean, np.where(deviation > 1e-6, deviation, 1.0)


# TensorFlow Datasets.


def _data_dir(data_dir: str | None) -> str:
    """The directory that holds prepared data sets."""
    default = os.environ.get("TFDS_DATA_DIR") or os.path.join("~", "tensorflow_datasets")
    return os.path.expanduser(data_dir or default)


def _builder(dataset: str, data_dir: str, download: bool) -> Any:
    """The TFDS builder of a set that is prepared on disk, if need be after downloading it."""
    with _needs("tensorflow-datasets"):
        import tensorflow_datasets as tfds
        from tensorflow_datasets.core import read_only_builder
    if not isinstance(dataset, str) or not dataset:
        raise DataError(f"`dataset` must be the name of a TensorFlow data set. Received {dataset!r}. Example: mnist.")
    try:  # by its files alone: any version that is on disk, and no look-up in the cloud
        return read_only_builder.builder_from_files(dataset, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError as error:
        logger.debug("%s is not in %s: %s", dataset, data_dir, error)
    except Exception as error:  # TFDS raises what its parsers raise
        raise DataUnavailable(
            f"The data set {dataset!r} in {data_dir} cannot be read. Received: {_line(error)}"
        ) from error
    known = tfds.list_builders(with_community_datasets=False)
    name = re.split(r"[/:]", dataset)[0]
    if name not in known:
        hint = nearest(name, known) or "; see tensorflow.org/datasets/catalog"
        raise DataError(f"`dataset` is unknown. Received {dataset!r}. Allowed: a TensorFlow data set{hint}")
    if not download:
        state = "has no such data set" if tf.io.gfile.isdir(data_dir) else "does not exist"
        raise DataUnavailable(
            f"The data set is not prepared. Received {dataset!r} in {data_dir}, which {state}. Allowed: set "
            "TFDS_DATA_DIR or `data_dir` to the directory that holds it, or `download` to true."
        )
    return _download(dataset, data_dir)


def _download(dataset: str, data_dir: str) -> Any:
    """Downloads and prepares a data set; gives up soon if the network is not there."""
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
    except Exception as error:  # whatever the scripts of hundreds of data sets raise
        raise DataUnavailable(
            f"The data set {dataset!r} cannot be downloaded to {data_dir}. Received: {_line(error)}. Allowed: a "
            "machine with network, or TFDS_DATA_DIR set to a directory that holds it."
        ) from error
    return builder


@contextlib.contextmanager
def _few_retries() -> Iterator[None]:
    """Limits TFDS's retries; their warnings stay off, as parallel downloads go on after the first has failed."""
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
            f"`dataset` must be an image classification set. Received {dataset!r}, with features "
            f"{', '.join(sorted(features))}. Allowed: sets with an image feature `image` and a class feature `label`."
        )
    if image.np_dtype != np.uint8 or len(image.shape) != 3:
        raise DataError(
            f"The images of `dataset` must hold bytes. Received {dataset!r}: {image.np_dtype.__name__}. Allowed: uint8."
        )


def _described(
    dataset: str, data_dir: str | None, download: bool, image_size: int | None
) -> tuple[Any, tuple[int | None, ...], Any]:
    """The builder of a set, the shape of its images and the feature of its labels."""
    if image_size is not None:
        check_integer("image_size", image_size, at_least=1)
    builder = _builder(dataset, _data_dir(data_dir), download)
    _check_features(builder.info, dataset)
    shape = builder.info.features["image"].shape
    if image_size is None and None in shape[:2]:
        raise DataError(
            f"`image_size` is needed for `{dataset}`, whose images have differing shapes. Received {image_size}. "
            "Allowed: 1 or more."
        )
    return builder, shape, builder.info.features["label"]


def _split(builder: Any, option: str, split: str) -> Any:
    """What is known of a split, which is not empty."""
    try:
        info = builder.info.splits[split]
        examples = info.num_examples
    except Exception as error:  # ValueError, KeyError or AssertionError, as the split is misspelt
        splits = ", ".join(builder.info.splits)
        raise DataError(
            f"`{option}` is wrong. Received {split!r}. Allowed: {splits}, or part of one, as in 'train[5000:]'"
            f"{nearest(str(split), list(builder.info.splits))}"
        ) from error
    if not examples:
        name = f"`{option}` {split!r} of {builder.info.full_name}"
        raise DataError(f"{name} is empty. Received 0 examples. Allowed: 1 or more.")
    return info


def _tfds_records(
    builder: Any, option: str, split: str, schema: Schema, damage: DamageList, index_file: str | None
) -> Records:
    """The records of one split, with the sub-range of every file that belongs to it."""
    name = f"`{option}` {split!r} of {builder.info.full_name}"
    if builder.info.file_format.value != "tfrecord":
        raise DataError(
            f"The data set in {builder.data_dir} must be stored as TFRecord. Received "
            f"{builder.info.file_format.value}. Allowed: tfrecord."
        )
    info = _split(builder, option, split)
    shards = [Shard(part.filename, part.skip, part.take, part.examples_in_shard) for part in info.file_instructions]
    return Records(name, shards, schema, damage, info.num_examples, index_file)


def _resized(shape: tuple[int | None, ...], image_size: int | None) -> tuple[int | None, ...]:
    """The shape of an image after resizing."""
    return tuple(shape) if image_size is None else (image_size, image_size, shape[-1])


def _resize_all(arrays: Arrays, image_size: int | None) -> Arrays:
    """Resizes images bilinearly: half-pixel centres, no antialiasing; float32, nothing is rounded."""
    if image_size is None:
        return arrays
    images = np.empty((len(arrays.images), image_size, image_size, arrays.images.shape[-1]), np.float32)
    for begin in range(0, len(images), 1024):
        part = slice(begin, begin + 1024)
        images[part] = tf.image.resize(arrays.images[part], (image_size, image_size), method="bilinear").numpy()
    return arrays._replace(images=images)


def _line(error: Exception) -> str:
    """What an error says, in one line of bounded length."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}"


# Files.


def _matching(option: str, patterns: str | list[str]) -> list[str]:
    """The files that the patterns match, sorted."""
    patterns = [patterns] if isinstance(patterns, str) else patterns
    if not isinstance(patterns, (list, tuple)) or not patterns or not all(isinstance(each, str) for each in patterns):
        raise DataError(
            f"`{option}` must be a file pattern, or several. Received {patterns!r}. Example: /data/train-*."
        )
    found = []
    for pattern in patterns:
        try:
            paths = tf.io.gfile.glob(os.path.expanduser(pattern))
        except tf.errors.OpError as error:
            raise DataUnavailable(f"`{option}` cannot be looked up. Received {pattern!r}: {_line(error)}") from error
        if not paths:
            directory = os.path.dirname(os.path.expanduser(pattern)) or "."
            state = "no file of it matches" if tf.io.gfile.isdir(directory) else "it does not exist"
            raise DataUnavailable(
                f"`{option}` matches no file. Received {pattern!r}. Looked in {directory}: {state}. "
                "Example: /data/train-*."
            )
        found += paths
    return sorted(set(found))
