"""Deterministic input pipelines: which example stands where in a run, and its pixels, depend only on the seed.

Two kinds. `InMemory` holds all images and picks each batch by random access, so a run resumes at any step for free.
`Streamed` reads TFRecord files, shuffled per epoch; to resume it passes over encoded records of one epoch, at most.
"""

from __future__ import annotations

import abc
import dataclasses
import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from neural_alignment.data.records import Records, explain, first_line, permuted
from neural_alignment.errors import DataError, nearest

logger = logging.getLogger(__name__)

PADDING = 4  # pixels on each side before a random crop (He et al. 2016, section 4.2)


@dataclasses.dataclass(frozen=True)
class Batching:
    """How examples become batches; the same for every source.

    Attributes:
        batch_size: training examples per step.
        seed: order and augmentation depend on this alone.
        shuffle: False keeps the order of the files.
        validation_batch_size: default: `batch_size`.
    """

    batch_size: int
    seed: int
    shuffle: bool = True
    validation_batch_size: int | None = None

    def __post_init__(self):
        check_integer("batch_size", self.batch_size, at_least=1)
        check_integer("seed", self.seed, at_least=0)
        if self.seed >= 2**63:
            raise DataError(f"`seed` must fit in 63 bits. Received {self.seed}. Allowed: 0 to 2**63 - 1.")
        check_boolean("shuffle", self.shuffle)
        if self.validation_batch_size is None:
            object.__setattr__(self, "validation_batch_size", self.batch_size)
        check_integer("validation_batch_size", self.validation_batch_size, at_least=1)


class Dataset(abc.ABC):
    """Training and validation batches of images `(batch, height, width, channels)` and labels `(batch,)`.

    Attributes:
        batching: batch sizes, seed, shuffling.
        input_shape: `(height, width, channels)`.
        classes: number of classes; labels are 0 to `classes - 1`.
        class_names: one name per class, or None where the source has none.
        train_examples: number of training examples.
        validation_examples: number of validation examples.
    """

    def __init__(
        self,
        batching: Batching,
        *,
        input_shape: tuple[int, int, int],
        classes: int,
        train_examples: int,
        validation_examples: int,
        class_names: Sequence[str] | None = None,
    ):
        if batching.batch_size > train_examples:
            raise DataError(
                f"`batch_size` must not be larger than the training data. Received {batching.batch_size}. "
                f"Allowed: 1 to {train_examples}."
            )
        if validation_examples < 1:
            raise DataError("The validation data is empty. Received 0 examples. Allowed: 1 or more.")
        self.batching = batching
        self.input_shape = tuple(input_shape)
        self.classes = classes
        self.class_names = None if class_names is None else tuple(class_names)
        self.train_examples = train_examples
        self.validation_examples = validation_examples

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in an epoch; the remainder waits for the next epoch's order."""
        return self.train_examples // self.batching.batch_size

    @abc.abstractmethod
    def train(self, start_step: int = 0) -> tf.data.Dataset:
        """Returns the endless training batches of a run, from `start_step` on.

        Args:
            start_step: what this yields first is what step `start_step` of a run from 0 gets.

        Returns:
            Pairs of images `(batch, height, width, channels)` float32 and labels `(batch,)` int32; the batch is static.
        """

    @abc.abstractmethod
    def validation(self) -> tf.data.Dataset:
        """Returns batches that hold every validation example exactly once; the last one may be smaller."""

    def explain(self, error: Exception) -> DataError | None:
        """Returns what is wrong with the data, in one line, if that is why `error` arose while iterating; else None."""
        del error
        return None


def check_integer(name: str, value: Any, *, at_least: int) -> None:
    """Raises `DataError` unless `value` is an integer of that size."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < at_least:
        raise DataError(f"`{name}` must be an integer. Received {value!r}. Allowed: {at_least} or more.")


def check_boolean(name: str, value: Any) -> None:
    """Raises `DataError` unless `value` is a bool."""
    if not isinstance(value, bool):
        raise DataError(f"`{name}` must be a boolean. Received {value!r}. Allowed: true, false.")


def check_choice(name: str, value: Any, allowed: Sequence[Any]) -> None:
    """Raises `DataError` unless `value` is one of `allowed`."""
    if value not in allowed:
        choices = ", ".join("null" if choice is None else str(choice) for choice in allowed)
        hint = nearest(str(value), [choice for choice in allowed if isinstance(choice, str)])
        raise DataError(f"`{name}` is unknown. Received {value!r}. Allowed: {choices}{hint}")


# Order and augmentation: pure functions of the seed and of the place in the run.


def crop(images: tf.Tensor, seed: tf.Tensor, mirror: bool = False) -> tf.Tensor:
    """Pads each image with zeros by 4 pixels and takes a random window of the original size.

    Args:
        images: `(batch, height, width, channels)` float32, standardised: the padding is then the mean pixel.
        seed: `(2,)` int64.
        mirror: also mirrors half of the images left to right.

    Returns:
        `(batch, height, width, channels)` float32.
    """
    batch, height, width = tf.unstack(tf.shape(images)[:3])
    uniform = tf.random.stateless_uniform((batch, 3), seed)
    offsets = tf.cast(uniform[:, :2] * (2 * PADDING + 1), tf.int32)
    rows = offsets[:, :1] + tf.range(height)
    columns = offsets[:, 1:] + tf.range(width)
    if mirror:
        columns = tf.where(uniform[:, 2:] < 0.5, columns[:, ::-1], columns)
    padded = tf.pad(images, [[0, 0], [PADDING, PADDING], [PADDING, PADDING], [0, 0]])
    windows = tf.gather(tf.gather(padded, rows, axis=1, batch_dims=1), columns, axis=2, batch_dims=1)
    return tf.ensure_shape(windows, images.shape)


def crop_flip(images: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """`crop`, then mirrors half of the images left to right (He et al. 2016, section 4.2)."""
    return crop(images, seed, mirror=True)


AUGMENTATIONS = {None: None, "crop": crop, "crop_flip": crop_flip}


def _deterministic(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Fixes the order, and prefetches."""
    options = tf.data.Options()
    options.deterministic = True
    # Several workers: each takes its share of every global batch, so that the order is that of one worker.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return dataset.prefetch(tf.data.AUTOTUNE).with_options(options)


# In memory.


class Arrays(NamedTuple):
    """Examples: images `(examples, height, width, channels)` uint8 or float32, and labels `(examples,)` integers."""

    images: np.ndarray
    labels: np.ndarray


class InMemory(Dataset):
    """All images held as they come; batches are gathered, then shifted and scaled per channel.

    Args:
        batching: batch sizes, seed, shuffling.
        train: training examples.
        validation: validation examples.
        classes: number of classes.
        class_names: one name per class.
        center: what is subtracted from the pixels, per channel or for all.
        scale: what they are then divided by.
        augment: name of the augmentation of training batches: "crop", "crop_flip" or None.

    Raises:
        DataError: a label is out of range, a batch is larger than the data, an option is not allowed.
    """

    def __init__(
        self,
        batching: Batching,
        train: Arrays,
        validation: Arrays,
        *,
        classes: int,
        class_names: Sequence[str] | None = None,
        center: np.ndarray | float = 0.0,
        scale: np.ndarray | float = 1.0,
        augment: str | None = None,
    ):
        check_choice("augment", augment, tuple(AUGMENTATIONS))
        for split, arrays in (("training", train), ("validation", validation)):
            _check_labels(split, arrays.labels, classes)
        super().__init__(
            batching,
            input_shape=train.images.shape[1:],
            classes=classes,
            train_examples=len(train.labels),
            validation_examples=len(validation.labels),
            class_names=class_names,
        )
        self._augment = AUGMENTATIONS[augment]
        _, width, channels = self.input_shape
        # One factor and one offset per entry of a row: broadcasting over a short last axis is several times slower.
        self._factor = np.tile(np.broadcast_to(1.0 / np.asarray(scale), channels), width).astype(np.float32)
        self._offset = np.tile(np.broadcast_to(-np.asarray(center) / scale, channels), width).astype(np.float32)
        with tf.device("CPU:0"):
            self._train, self._validation = (_rows(train), _rows(validation))

    def train(self, start_step: int = 0) -> tf.data.Dataset:  # noqa: D102 (inherited)
        check_integer("start_step", start_step, at_least=0)
        size = self.batching.batch_size
        seed = tf.constant(self.batching.seed, tf.int64)
        images, labels = self._train

        def batch(step: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            epoch, step_of_epoch = step // self.steps_per_epoch, step % self.steps_per_epoch
            index = step_of_epoch * size + tf.range(size, dtype=tf.int64)
            if self.batching.shuffle:
                index = permuted(index, self.train_examples, tf.stack([seed, epoch]))
            pixels = self._standardize(tf.gather(images, index))
            if self._augment is not None:
                pixels = self._augment(pixels, tf.stack([seed, step]))
            return pixels, tf.gather(labels, index)

        steps = tf.data.Dataset.counter(start_step)
        return _deterministic(steps.map(batch, num_parallel_calls=tf.data.AUTOTUNE))

    def validation(self) -> tf.data.Dataset:  # noqa: D102 (inherited)
        size = self.batching.validation_batch_size
        images, labels = self._validation

        def batch(begin: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            return self._standardize(images[begin : begin + size]), labels[begin : begin + size]

        begins = tf.data.Dataset.range(0, self.validation_examples, size)
        return _deterministic(begins.map(batch, num_parallel_calls=tf.data.AUTOTUNE))

    def _standardize(self, rows: tf.Tensor) -> tf.Tensor:
        """`(batch, height, width * channels)` pixels to `(batch, height, width, channels)` float32."""
        pixels = tf.cast(rows, tf.float32) * self._factor + self._offset
        batch = -1 if rows.shape[0] is None else rows.shape[0]
        return tf.reshape(pixels, (batch, *self.input_shape))


def _rows(arrays: Arrays) -> tuple[tf.Tensor, tf.Tensor]:
    """Images as `(examples, height, width * channels)`, labels as int32."""
    examples, height, width, channels = arrays.images.shape
    return (
        tf.convert_to_tensor(arrays.images.reshape(examples, height, width * channels)),
        tf.convert_to_tensor(np.asarray(arrays.labels, np.int32)),
    )


def _check_labels(split: str, labels: np.ndarray, classes: int) -> None:
    """Raises `DataError` for the first label outside 0..classes-1."""
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if wrong.size:
        raise DataError(
            f"A {split} label is out of range at example {wrong[0]}. Received {labels[wrong[0]]}. "
            f"Allowed: 0 to {classes - 1}."
        )


class Streamed(Dataset):
    """Examples read from TFRecord files, decoded on the way.

    Args:
        batching: batch sizes, seed, shuffling.
        train: training records.
        validation: validation records.
        input_shape: `(height, width, channels)` of what the decoders return.
        decode_train: `(encoded, seed) -> image`; `seed` `(2,)` differs for every example of the run.
        decode_validation: `encoded -> image`.
        class_names: one name per class.
        augment: name of the augmentation of training batches: "crop", "crop_flip" or None.
        shuffle_buffer: encoded records held to shuffle; their sizes add up in memory.

    Raises:
        DataError: a batch is larger than the data, an option is not allowed.
    """

    def __init__(
        self,
        batching: Batching,
        train: Records,
        validation: Records,
        *,
        input_shape: tuple[int, int, int],
        decode_train: Callable[[tf.Tensor, tf.Tensor], tf.Tensor],
        decode_validation: Callable[[tf.Tensor], tf.Tensor],
        class_names: Sequence[str] | None = None,
        augment: str | None = None,
        shuffle_buffer: int = 10000,
    ):
        check_choice("augment", augment, tuple(AUGMENTATIONS))
        check_integer("shuffle_buffer", shuffle_buffer, at_least=1)
        super().__init__(
            batching,
            input_shape=input_shape,
            classes=train.schema.classes,
            train_examples=train.examples,
            validation_examples=validation.examples,
            class_names=class_names,
        )
        self._train, self._validation = train, validation
        self._decode_train, self._decode_validation = decode_train, decode_validation
        self._augment = AUGMENTATIONS[augment]
        self._shuffle_buffer = shuffle_buffer

    def train(self, start_step: int = 0) -> tf.data.Dataset:  # noqa: D102 (inherited)
        check_integer("start_step", start_step, at_least=0)
        size = self.batching.batch_size
        seed = tf.constant(self.batching.seed, tf.int64)
        examples = tf.data.Dataset.zip(tf.data.Dataset.counter(start_step * size), self._epochs(start_step, seed))

        def example(position: tf.Tensor, record: tuple[tf.Tensor, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
            place, serialized = record
            in_step = tf.equal(position % (self.steps_per_epoch * size), place)
            with tf.control_dependencies([tf.debugging.Assert(in_step, ["epoch ended early", place])]):
                encoded, label = self._train.schema.parse(serialized)
            return self._decode_train(encoded, tf.stack([seed, position])), label

        batches = examples.map(example, num_parallel_calls=tf.data.AUTOTUNE).batch(size, drop_remainder=True)
        augment = self._augment
        if augment is not None:
            batches = tf.data.Dataset.zip(tf.data.Dataset.counter(start_step), batches).map(
                lambda step, batch: (augment(batch[0], tf.stack([seed, step])), batch[1]),
                num_parallel_calls=tf.data.AUTOTUNE,
            )
        return _deterministic(batches.apply(tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY)))

    def _epochs(self, start_step: int, seed: tf.Tensor) -> tf.data.Dataset:
        """Pairs (place in the epoch, serialised record) of all epochs, from `start_step` on."""
        examples = self.steps_per_epoch * self.batching.batch_size
        first_epoch, first_step = divmod(start_step, self.steps_per_epoch)
        begin = tf.constant(first_step * self.batching.batch_size, tf.int64)

        def epoch_records(epoch: tf.Tensor) -> tf.data.Dataset:
            order = tf.stack([seed, epoch]) if self.batching.shuffle else None
            records = self._train.read(order, self._shuffle_buffer).take(examples).enumerate()
            return records.skip(tf.where(tf.equal(epoch, first_epoch), begin, tf.zeros_like(begin)))

        return tf.data.Dataset.counter(first_epoch).flat_map(epoch_records)

    def validation(self) -> tf.data.Dataset:  # noqa: D102 (inherited)
        def example(record: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            encoded, label = self._validation.schema.parse(record)
            return self._decode_validation(encoded), label

        records = self._validation.read()
        records = records.apply(tf.data.experimental.assert_cardinality(self.validation_examples))
        images = records.map(example, num_parallel_calls=tf.data.AUTOTUNE)
        return _deterministic(images.batch(self.batching.validation_batch_size))

    def explain(self, error: Exception) -> DataError | None:
        """Looks through the files for what made iterating fail; reads all of them if need be.

        Args:
            error: what was raised; anything but a `tf.errors.OpError` that speaks of data gives None at once.

        Returns:
            A one-line error that names the file, or None where the data is not to blame.
        """
        return explain(error, self._train, self._validation)


def read_into_memory(records: Records, shape: tuple[int, int, int]) -> Arrays:
    """Decodes all images, which must be of one shape.

    Args:
        records: what to read.
        shape: `(height, width, channels)` of every image.

    Returns:
        The examples, in file order.

    Raises:
        DataError: the files do not hold what they should.
    """
    images = np.empty((records.examples, *shape), np.uint8)
    labels = np.empty(records.examples, np.int32)

    def example(record: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        encoded, label = records.schema.parse(record)
        image = tf.io.decode_image(encoded, channels=shape[-1], expand_animations=False)
        return tf.ensure_shape(image, shape), label

    decoded = records.read().map(example, num_parallel_calls=tf.data.AUTOTUNE).batch(1024)
    filled = 0
    try:
        for batch_images, batch_labels in _deterministic(decoded).as_numpy_iterator():
            begin, filled = filled, filled + len(batch_labels)
            if filled <= records.examples:
                images[begin:filled], labels[begin:filled] = batch_images, batch_labels
    except tf.errors.OpError as error:
        raise explain(error, records) or DataError(f"{records.name} cannot be read: {first_line(error)}") from error
    if filled != records.examples:
        raise DataError(
            f"{records.name} holds a wrong number of examples. Received {filled}. Allowed: {records.examples}."
        )
    return Arrays(images, labels)
