"""Deterministic input pipelines: the order of the examples and their pixels depend only on the seed.

`InMemory` holds all images and gathers the images of each batch. `Streamed`, in `streamed.py`, reads records on
disk. Both can start at any step without reading the data of earlier steps, and return to each worker its rows of every
batch.
"""

from __future__ import annotations

import abc
import dataclasses
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from neural_alignment.data.damage import DamagedRecord, DamageList
from neural_alignment.data.order import permuted, without_autograph
from neural_alignment.errors import DataError, WrongValue, nearest

DAMAGED_BATCH = "damaged batch"
"""Marks the error of a batch in which all records are damaged, for `InMemory.explain`."""

BATCHES_AT_ONCE = 4  # batches computed in parallel, each on all cores
PADDING = 4  # pixels on each side before a random crop (He et al. 2016, section 4.2)


@dataclasses.dataclass(frozen=True)
class Batching:
    """How examples become batches; the same for every source.

    Attributes:
        batch_size: training examples per step.
        seed: seed of the order and the augmentation, which depend on nothing else.
        shuffle: whether each epoch has a different order; otherwise every epoch has the order of the files.
        validation_batch_size: validation examples per batch. Default: `batch_size`.

    Raises:
        DataError: if a value is not allowed.
    """

    batch_size: int
    seed: int
    shuffle: bool = True
    validation_batch_size: int | None = None

    def __post_init__(self):
        check_integer("batch_size", self.batch_size, at_least=1)
        check_integer("seed", self.seed, at_least=0)
        if self.seed >= 2**63:
            raise DataError(WrongValue("seed", "must be less than 2**63", self.seed))
        check_boolean("shuffle", self.shuffle)
        if self.validation_batch_size is None:
            object.__setattr__(self, "validation_batch_size", self.batch_size)
        check_integer("validation_batch_size", self.validation_batch_size, at_least=1)


class Share(NamedTuple):
    """The part of each global batch that belongs to one of several workers: consecutive rows.

    Attributes:
        size: number of rows in a global batch.
        worker: number of the worker, from 0.
        workers: number of workers, which divides `size`.
    """

    size: int
    worker: int = 0
    workers: int = 1

    @classmethod
    def of(cls, option: str, size: int, worker: int, workers: int) -> Share:
        """Returns the share of a worker.

        Args:
            option: name of the option that sets the batch size, for messages.
            size: number of rows in a global batch.
            worker: number of the worker, from 0.
            workers: number of workers.

        Raises:
            DataError: if there is no such worker, or the batch cannot be divided evenly.
        """
        check_integer("workers", workers, at_least=1)
        check_integer("worker", worker, at_least=0)
        if worker >= workers:
            raise DataError(WrongValue("worker", f"must be less than the number of workers ({workers})", worker))
        if size % workers:
            raise DataError(WrongValue(option, f"must be a multiple of the number of workers ({workers})", size))
        return cls(size, worker, workers)

    @property
    def rows(self) -> int:
        """Number of rows of each batch in this share."""
        return self.size // self.workers

    @property
    def begin(self) -> int:
        """First row of this share in each batch."""
        return self.worker * self.rows

    def range(self) -> tf.Tensor:
        """Returns the numbers of the rows in a batch, `(rows,)` int64."""
        return tf.range(self.begin, self.begin + self.rows, dtype=tf.int64)

    def has(self, positions: tf.Tensor) -> tf.Tensor:
        """Returns whether each position, counted over all batches, belongs to this share: `(n,)` bool."""
        row = positions % self.size
        return (row >= self.begin) & (row < self.begin + self.rows)

    def validation_rows(self, examples: int, fill: bool) -> np.ndarray:
        """Returns the numbers of the validation examples in this share.

        Args:
            examples: number of validation examples of all workers.
            fill: whether to fill up the last batch with -1.

        Returns:
            `(n,)` int64.
        """
        begins = np.arange(0, examples, self.size)
        end = self.begin + self.rows
        rows = np.arange(self.begin, end if fill else min(end, examples))  # A batch may be far larger than the data.
        numbers = (begins[:, np.newaxis] + rows).ravel()
        return np.where(numbers < examples, numbers, -1) if fill else numbers[numbers < examples]


class Facts:
    """Shapes and counts of the data, which are needed to build a model and plan a run.

    Attributes:
        batching: batch sizes, seed, shuffling.
        input_shape: shape of one input, such as `(height, width, channels)`.
        classes: number of classes; labels are 0 to `classes - 1`.
        train_examples: number of training examples.
        validation_examples: number of validation examples.

    Raises:
        DataError: if a batch is larger than the training data, or there are no validation data.
    """

    def __init__(
        self,
        batching: Batching,
        *,
        input_shape: tuple[int, int, int],
        classes: int,
        train_examples: int,
        validation_examples: int,
    ):
        if batching.batch_size > train_examples:
            requirement = f"must not be larger than the training data, 1 to {train_examples}"
            raise DataError(WrongValue("batch_size", requirement, batching.batch_size))
        if validation_examples < 1:
            raise DataError(WrongValue("data", "must have 1 validation example or more", validation_examples))
        self.batching = batching
        self.input_shape = tuple(input_shape)
        self.classes = classes
        self.train_examples = train_examples
        self.validation_examples = validation_examples

    @property
    def example_spec(self) -> tuple[tf.TensorSpec, tf.TensorSpec]:
        """The shapes and dtypes of the inputs and the target of one example."""
        return tf.TensorSpec(self.input_shape, tf.float32), tf.TensorSpec((), tf.int32)

    @property
    def batch_spec(self) -> tuple[tf.TensorSpec, ...]:
        """The shapes and dtypes of the inputs and the targets of a training batch."""
        return tuple(tf.TensorSpec((self.batching.batch_size, *s.shape), s.dtype) for s in self.example_spec)

    @property
    def steps_per_epoch(self) -> int:
        """Number of full batches in an epoch. The remaining examples are not used in this epoch."""
        return self.train_examples // self.batching.batch_size


class Dataset(Facts, abc.ABC):
    """Training and validation batches of images `(batch, height, width, channels)` and labels `(batch,)`.

    Attributes:
        class_names: one name per class, or None if the source has none.
        center: value that is subtracted from the pixels of the source, per channel or for all channels.
        scale: value by which the result is divided, per channel or for all channels.
        validation_order: `(validation examples,)`, the numbers of the validation examples in the order in which the
            batches contain them; None for the order of the files.
        damage: the damaged records found so far, with the limit on their number.
    """

    def __init__(
        self,
        batching: Batching,
        *,
        class_names: Sequence[str] | None = None,
        center: np.ndarray | float = 0.0,
        scale: np.ndarray | float = 1.0,
        validation_order: np.ndarray | None = None,
        damage: DamageList | None = None,
        **facts: Any,
    ):
        super().__init__(batching, **facts)
        self.validation_order = validation_order
        self.center, self.scale = (np.asarray(each, np.float32) for each in (center, scale))
        self.class_names = None if class_names is None else tuple(class_names)
        self.damage = DamageList() if damage is None else damage

    @abc.abstractmethod
    def train(self, start_step: int = 0, worker: int = 0, workers: int = 1) -> tf.data.Dataset:
        """Returns the endless training batches of a run, from `start_step` on.

        If damaged records are tolerated, the next intact row of the global batch replaces a damaged one.

        Args:
            start_step: step of the first batch, counted from the beginning of the run.
            worker: number of the worker that reads the batches, from 0.
            workers: number of workers. A worker decodes only its rows of each global batch: from
                `worker * batch / workers` up to, but not including, `(worker + 1) * batch / workers`.

        Returns:
            Pairs of images `(batch / workers, height, width, channels)` float32 and labels `(batch / workers,)` int32,
            with static shapes. `tf.distribute` does not shard them further: create one such data set in each worker.

        Raises:
            DataError: if the batch cannot be divided evenly, or there is no such worker.
        """

    @abc.abstractmethod
    def validation(self, worker: int = 0, workers: int = 1, fill: bool = False) -> tf.data.Dataset:
        """Returns batches of all validation examples, each exactly once over all workers.

        Damaged examples are left out.

        Args:
            worker: number of the worker that reads the batches, from 0.
            workers: number of workers; each gets its rows of every global batch, as in `train`.
            fill: whether to fill up the last batch with rows of zeros, so that all batches have the same size and all
                workers have the same number of batches.

        Returns:
            Pairs of images and labels as in `train`; the last batch may be smaller. With `fill`, triples of static
            shape, with weights `(batch / workers,)` float32: 1 for an example and 0 for a row without an example.

        Raises:
            DataError: if the batch cannot be divided evenly, or there is no such worker.
        """

    def _validation_rows(self, share: Share, fill: bool) -> np.ndarray:
        """Returns the numbers of the validation examples in a share of the batches. See `Share.validation_rows`."""
        rows = share.validation_rows(self.validation_examples, fill)
        return rows if self.validation_order is None else np.where(rows < 0, rows, self.validation_order[rows])

    def explain(self, error: Exception) -> DataError | None:
        """Returns an error that describes the fault of the data in one line, or None if the data are not the cause.

        Only the record that `error` names is read again.

        Args:
            error: an error that was raised while reading batches.
        """
        del error
        return None

    @property
    def corrupt_records(self) -> list[DamagedRecord]:
        """The damaged records found so far, sorted by file and index; empty unless damaged records are tolerated.

        Batches are prefetched, so the list may contain records of later steps. `corrupt_count` does not count those.
        """
        return self.damage.records

    def corrupt_count(self, step: int) -> int:
        """Returns the number of damaged records found in the first `step` steps, while loading, and in validation.

        It does not depend on how many batches have been prefetched.
        """
        return self.damage.before(step)

    def corrupt_state(self) -> list[list[Any]]:
        """Returns `corrupt_records` as plain lists (path, record, reason, step), for a JSON file."""
        return self.damage.state()

    def load_corrupt(self, state: Iterable[Any]) -> None:
        """Adds the records in a result of `corrupt_state`. Known records stay unchanged.

        Args:
            state: the result of `corrupt_state`, of this data set or of another one with the same files.

        Raises:
            DataError: if `state` has the wrong form, or there are now more damaged records than are tolerated.
        """
        self.damage.load(state)
        if self.damage.exceeds_limit:
            raise self.damage.error()


def check_integer(name: str, value: Any, *, at_least: int) -> None:
    """Raises `DataError` unless `value` is an integer of at least `at_least`."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < at_least:
        raise DataError(WrongValue(name, f"must be an integer, {at_least} or more", value))


def check_boolean(name: str, value: Any) -> None:
    """Raises `DataError` unless `value` is a bool."""
    if not isinstance(value, bool):
        raise DataError(WrongValue(name, "must be true or false", value))


def check_choice(name: str, value: Any, allowed: Sequence[Any]) -> None:
    """Raises `DataError` unless `value` is one of `allowed`."""
    if value not in allowed:
        choices = ", ".join("null" if choice is None else str(choice) for choice in allowed)
        hint = nearest(str(value), [choice for choice in allowed if isinstance(choice, str)])
        raise DataError(WrongValue(name, f"must be one of {choices}", value).line + hint)


# Order and augmentation: pure functions of the seed and the position in the run.


def crop(images: tf.Tensor, seed: tf.Tensor, share: Share | None = None, mirror: bool = False) -> tf.Tensor:
    """Pads each image with zeros by 4 pixels and takes a random window of the original size.

    Args:
        images: `(batch, height, width, channels)` float32, standardised, so that zero is the mean pixel.
        seed: `(2,)` int64.
        share: the part of the global batch that contains the images. Default: all of it. The crop of an image does not
            depend on the number of workers.
        mirror: whether to mirror half of the images left to right.

    Returns:
        `(batch, height, width, channels)` float32.
    """
    batch, height, width = tf.unstack(tf.shape(images)[:3])
    first, total = (0, batch) if share is None else (share.begin, share.size)
    uniform = tf.random.stateless_uniform((total, 3), seed)[first : first + batch]
    offsets = tf.cast(uniform[:, :2] * (2 * PADDING + 1), tf.int32)
    rows = offsets[:, :1] + tf.range(height)
    columns = offsets[:, 1:] + tf.range(width)
    if mirror:
        columns = tf.where(uniform[:, 2:] < 0.5, columns[:, ::-1], columns)
    padded = tf.pad(images, [[0, 0], [PADDING, PADDING], [PADDING, PADDING], [0, 0]])
    windows = tf.gather(tf.gather(padded, rows, axis=1, batch_dims=1), columns, axis=2, batch_dims=1)
    return tf.ensure_shape(windows, images.shape)


def crop_flip(images: tf.Tensor, seed: tf.Tensor, share: Share | None = None) -> tf.Tensor:
    """Crops like `crop`, and mirrors half of the images left to right (He et al. 2016, section 4.2).

    Arguments and result are those of `crop`.
    """
    return crop(images, seed, share, mirror=True)


AUGMENTATIONS = {None: None, "crop": crop, "crop_flip": crop_flip}
"""The augmentations of training batches by their names in a configuration."""


def finished(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Returns the data set with a deterministic order of its elements and with prefetching.

    Parallel calls need a fixed number, because autotuning is off: when an iterator is deleted, TensorFlow's autotuning
    thread can miss the signal to end and sleep for up to a minute. On busy cores this delays the end of many runs.
    """
    options = tf.data.Options()
    options.deterministic = True
    options.autotune.enabled = False
    options.experimental_optimization.apply_default_optimizations = False  # They delay the start without a gain.
    # Each worker creates a data set of only its rows, so there is nothing to shard.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return dataset.prefetch(2).with_options(options)


# In memory.


class Examples(NamedTuple):
    """Examples in memory.

    Attributes:
        images: `(examples, height, width, channels)` uint8 or float32.
        labels: `(examples,)` integers.
        sound: `(examples,)` bool, False for an example whose record is damaged; None if all records are intact.
    """

    images: np.ndarray
    labels: np.ndarray
    sound: np.ndarray | None = None

    @property
    def sound_images(self) -> np.ndarray:
        """The images of the intact records."""
        return self.images if self.sound is None else self.images[self.sound]


class InMemory(Dataset):
    """A data set that holds all images in memory. Each batch is gathered, then shifted and scaled per channel.

    Args:
        batching: batch sizes, seed, shuffling.
        train: training examples; see `checked` for the arrays that are allowed.
        validation: validation examples, with images of the same shape and dtype.
        classes: number of classes.
        class_names: one name per class.
        center: value that is subtracted from the pixels, per channel or for all channels.
        scale: value by which the result is divided, per channel or for all channels.
        augment: name of the augmentation of training batches: "crop", "crop_flip" or None.
        validation_order: see `Dataset`.
        damage: the damaged records found while loading.

    Raises:
        DataError: if the arrays are not allowed, a label is out of range, a batch is larger than the data, or an option
            has an invalid value.
    """

    def __init__(
        self,
        batching: Batching,
        train: Examples,
        validation: Examples,
        *,
        classes: int,
        class_names: Sequence[str] | None = None,
        center: np.ndarray | float = 0.0,
        scale: np.ndarray | float = 1.0,
        augment: str | None = None,
        validation_order: np.ndarray | None = None,
        damage: DamageList | None = None,
    ):
        check_choice("augment", augment, tuple(AUGMENTATIONS))
        names = {split: (f"the {split} images", f"the {split} labels") for split in ("training", "validation")}
        train = checked(train, "data", *names["training"])
        validation = checked(validation, "data", *names["validation"])
        check_alike("data", {names["training"][0]: train.images, names["validation"][0]: validation.images})
        for split, arrays in (("training", train), ("validation", validation)):
            check_labels(split, arrays.labels, classes)
        super().__init__(
            batching,
            input_shape=train.images.shape[1:],
            classes=classes,
            train_examples=len(train.labels),
            validation_examples=len(validation.labels),
            class_names=class_names,
            center=center,
            scale=scale,
            validation_order=validation_order,
            damage=damage,
        )
        self._augment = AUGMENTATIONS[augment]
        _, width, channels = self.input_shape
        # One factor and one offset per entry of a row: broadcasting over a short last axis is several times slower.
        self._factor = np.tile(np.broadcast_to(1.0 / np.asarray(scale), channels), width).astype(np.float32)
        self._offset = np.tile(np.broadcast_to(-np.asarray(center) / scale, channels), width).astype(np.float32)
        with tf.device("CPU:0"):
            self._train, self._validation = (_rows(train), _rows(validation))
            self._sound = None if train.sound is None else tf.constant(train.sound)
        self._validation_sound = validation.sound

    def train(self, start_step: int = 0, worker: int = 0, workers: int = 1) -> tf.data.Dataset:  # noqa: D102 (inherited)
        check_integer("start_step", start_step, at_least=0)
        share = Share.of("batch_size", self.batching.batch_size, worker, workers)
        seed = tf.constant(self.batching.seed, tf.int64)
        images, labels = self._train

        def batch(step: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            index = self._index(step, share, seed)
            pixels = self._standardize(tf.gather(images, index))
            if self._augment is not None:
                pixels = self._augment(pixels, tf.stack([seed, step]), share)
            return pixels, tf.gather(labels, index)

        steps = tf.data.Dataset.counter(start_step)
        return finished(steps.map(without_autograph(batch), num_parallel_calls=BATCHES_AT_ONCE))

    def _index(self, step: tf.Tensor, share: Share, seed: tf.Tensor) -> tf.Tensor:
        """Returns the numbers of the examples in this share of a step's batch, `(rows,)` int64."""

        def examples(rows: tf.Tensor) -> tf.Tensor:
            epoch, step_of_epoch = step // self.steps_per_epoch, step % self.steps_per_epoch
            index = step_of_epoch * share.size + rows
            if not self.batching.shuffle:
                return index
            return permuted(index, self.train_examples, tf.stack([seed, epoch]))

        if self._sound is None:
            return examples(share.range())
        index = examples(tf.range(share.size, dtype=tf.int64))
        intact = tf.where(tf.tile(tf.gather(self._sound, index), [2]))[:, 0]
        with tf.control_dependencies([tf.debugging.Assert(tf.size(intact) > 0, [DAMAGED_BATCH, step])]):
            rows = tf.gather(intact, tf.searchsorted(intact, share.range()))
        return tf.gather(index, rows % share.size)

    def validation(self, worker: int = 0, workers: int = 1, fill: bool = False) -> tf.data.Dataset:  # noqa: D102 (inherited)
        share = Share.of("validation_batch_size", self.batching.validation_batch_size, worker, workers)
        numbers = self._validation_rows(share, fill)
        if self._validation_sound is not None:
            lost = (numbers >= 0) & ~self._validation_sound[numbers]
            numbers = np.where(lost, -1, numbers) if fill else numbers[~lost]
        images, labels = self._validation

        def batch(numbers: tf.Tensor) -> tuple[tf.Tensor, ...]:
            index = tf.maximum(numbers, 0)
            pixels, truth = self._standardize(tf.gather(images, index)), tf.gather(labels, index)
            if not fill:
                return pixels, truth
            real = numbers >= 0
            pixels = tf.where(real[:, tf.newaxis, tf.newaxis, tf.newaxis], pixels, 0.0)
            return pixels, tf.where(real, truth, 0), tf.cast(real, tf.float32)

        batches = tf.data.Dataset.from_tensor_slices(numbers).batch(share.rows, drop_remainder=fill)
        return finished(batches.map(without_autograph(batch), num_parallel_calls=BATCHES_AT_ONCE))

    def explain(self, error: Exception) -> DataError | None:  # noqa: D102 (inherited)
        step = re.search(rf"\[{DAMAGED_BATCH}\] \[(\d+)\]", getattr(error, "message", None) or "")
        if step is None or not isinstance(error, tf.errors.OpError):
            return None
        return DataError(
            f"data: must have at least one intact record in each training batch; found none at step {step[1]}"
        )

    def _standardize(self, rows: tf.Tensor) -> tf.Tensor:
        """Converts pixels `(batch, height, width * channels)` to inputs `(batch, height, width, channels)` float32."""
        pixels = tf.cast(rows, tf.float32) * self._factor + self._offset
        batch = -1 if rows.shape[0] is None else rows.shape[0]
        return tf.reshape(pixels, (batch, *self.input_shape))


def _rows(arrays: Examples) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the images as `(examples, height, width * channels)` and the labels as int32."""
    examples, height, width, channels = arrays.images.shape
    return (
        tf.convert_to_tensor(arrays.images.reshape(examples, height, width * channels)),
        tf.convert_to_tensor(np.asarray(arrays.labels, np.int32)),
    )


def checked(examples: Examples, place: str, images_name: str, labels_name: str) -> Examples:
    """Returns examples with images `(examples, height, width, channels)`, uint8 or float32, and labels `(examples,)`.

    Args:
        examples: images of this shape or `(examples, height, width)`, uint8 or float, and integer labels, `(examples,)`
            or `(examples, 1)`.
        place: the start of messages.
        images_name: the name of the images in messages.
        labels_name: the name of the labels in messages.

    Raises:
        DataError: if an array has another shape or dtype, or is not finite.
    """
    images, labels = np.asarray(examples.images), np.asarray(examples.labels)
    if images.ndim not in (3, 4) or 0 in images.shape or not (images.dtype == np.uint8 or images.dtype.kind == "f"):
        hint = "; feature vectors are (examples, 1, features)" if images.ndim == 2 else ""
        raise DataError(
            f"{place}: {images_name} must be (examples, height, width, channels) or (examples, height, width), uint8 "
            f"or float; found shape {images.shape} of {images.dtype}{hint}"
        )
    if labels.shape == (len(images), 1):
        labels = labels[:, 0]
    if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
        raise DataError(
            f"{place}: {labels_name} must be integers, one for each of {images_name}, ({len(images)},); found shape "
            f"{labels.shape} of {labels.dtype}"
        )
    if images.dtype.kind == "f":
        with np.errstate(over="ignore"):
            images = images.astype(np.float32, copy=False)
        if not np.isfinite(images).all():
            raise DataError(f"{place}: {images_name} must be finite float32 numbers; found NaN or infinity")
    if images.ndim == 3:
        images = images[..., np.newaxis]
    return examples._replace(images=images, labels=labels.astype(np.int64))


def check_alike(place: str, images: dict[str, np.ndarray]) -> None:
    """Checks that images have the shape and the dtype of the first ones.

    Args:
        place: the start of messages.
        images: the images by their name in messages.

    Raises:
        DataError: if they differ.
    """
    (first, expected), *others = ((name, (each.shape[1:], each.dtype)) for name, each in images.items())
    for name, found in others:
        if found != expected:
            raise DataError(
                f"{place}: {name} must be like {first}, {expected[0]} of {expected[1]}; found {found[0]} of {found[1]}"
            )


def check_labels(split: str, labels: np.ndarray, classes: int) -> None:
    """Raises `DataError` for the first label outside 0..classes-1."""
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if wrong.size:
        raise DataError(
            f"data: each {split} label must be from 0 to {classes - 1}; found {labels[wrong[0]]} at example {wrong[0]}"
        )
