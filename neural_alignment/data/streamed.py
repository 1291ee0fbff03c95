"""Datasets read from records on disk: decoded during training, or read into memory at once."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from neural_alignment import processors
from neural_alignment.data.damage import NO_STEP, DamagedRecord
from neural_alignment.data.imagenet import Preparation, decode_image
from neural_alignment.data.order import Order, without_autograph
from neural_alignment.data.pipeline import (
    AUGMENTATIONS,
    BATCHES_AT_ONCE,
    Batching,
    Dataset,
    Examples,
    Share,
    check_choice,
    check_integer,
    finished,
)
from neural_alignment.data.records import Records
from neural_alignment.errors import DataError, DataUnavailable

DAMAGED = "damaged record"  # marks the errors that `Streamed.explain` recognises
DAMAGED_RECORD = re.compile(rf"\[{DAMAGED}\] \[(\d+)\] \[(\d+)\] \[(-?\d+)\]")

Decode = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


class Streamed(Dataset):
    """Examples that are read from records on disk and decoded during training.

    In each epoch, the blocks of the records (32 neighbours in a TFRecord file, or one image file) are put in random
    order. The sequence is cut into windows of `shuffle_buffer` / 2 records, and each window is permuted. Each block is
    one read, and a resumed run reads at most one window again.

    Args:
        batching: batch sizes, seed and shuffling.
        train: training records.
        validation: validation records, which must be complete.
        preparation: the decoders of the images; the seed differs for every example of the run.
        class_names: one name per class.
        augment: name of the augmentation of training batches: "crop", "crop_flip" or None.
        validation_order: see `Dataset`.
        shuffle_buffer: number of encoded records in memory. One half is the window from which batches are taken; the
            other half is the next window, which is read meanwhile.

    Raises:
        DataError: if a batch is larger than the data, or an option has an invalid value.
    """

    def __init__(
        self,
        batching: Batching,
        train: Records,
        validation: Records,
        preparation: Preparation,
        *,
        class_names: Sequence[str] | None = None,
        augment: str | None = None,
        validation_order: np.ndarray | None = None,
        shuffle_buffer: int = 10000,
    ):
        check_choice("augment", augment, tuple(AUGMENTATIONS))
        check_integer("shuffle_buffer", shuffle_buffer, at_least=1)
        super().__init__(
            batching,
            input_shape=preparation.input_shape,
            classes=train.classes,
            train_examples=train.examples,
            validation_examples=validation.examples,
            class_names=class_names,
            center=preparation.center,
            scale=preparation.scale,
            validation_order=validation_order,
            damage=train.damage,
        )
        self._splits = (
            _Split(train, preparation.train, batching.seed),
            _Split(validation, lambda encoded, _: preparation.evaluation(encoded), batching.seed),
        )
        self._augment = AUGMENTATIONS[augment]
        self._order = Order(
            train.blocks,
            train.examples,
            used=self.steps_per_epoch * batching.batch_size,
            window=max(shuffle_buffer // 2, 1) if batching.shuffle else batching.batch_size,
            seed=batching.seed,
            shuffle=batching.shuffle,
        )

    # Training.

    def train(self, start_step: int = 0, worker: int = 0, workers: int = 1) -> tf.data.Dataset:  # noqa: D102 (inherited)
        check_integer("start_step", start_step, at_least=0)
        size = self.batching.batch_size
        share = Share.of("batch_size", size, worker, workers)
        steps = tf.data.Dataset.counter(start_step).map(without_autograph(lambda step: step * size + share.range()))
        serialized = self._train_records(start_step * size, share).batch(share.rows, drop_remainder=True)
        batches = _decoded(tf.data.Dataset.zip(steps, serialized), self._splits[0].example, self.input_shape)
        complete = without_autograph(lambda *decoded: self._train_batch(share, *decoded))
        batches = batches.map(complete, num_parallel_calls=BATCHES_AT_ONCE)
        return finished(batches.apply(tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY)))

    def _train_records(self, start: int, share: Share) -> tf.data.Dataset:
        """Returns the serialised records for the positions of a worker, beginning at position `start` of the run."""
        order, records = self._order, self._splits[0].records
        first_epoch, first_position = divmod(start, order.used)
        first_window = first_position // order.window

        @without_autograph
        def epoch_windows(epoch: tf.Tensor) -> tf.data.Dataset:
            window = tf.where(tf.equal(epoch, first_epoch), tf.constant(first_window, tf.int64), 0)
            end = min(order.windows * order.window, order.examples)
            stream = records.read(order.stream(epoch).runs(window * order.window, end)).batch(order.window)
            return tf.data.Dataset.zip(tf.data.Dataset.counter(window), stream).map(
                lambda window, serialized: (epoch, window, serialized)
            )

        @without_autograph
        def shuffled(epoch: tf.Tensor, window: tf.Tensor, serialized: tf.Tensor) -> tf.data.Dataset:
            begin = window * order.window
            positions = tf.range(begin, tf.minimum(begin + order.window, order.used))
            wanted = share.has(positions) & (epoch * order.used + positions >= start)
            picks = tf.boolean_mask(order.in_window(epoch, window, positions), wanted)
            return tf.data.Dataset.from_tensor_slices(picks).map(lambda pick: serialized[pick])

        return tf.data.Dataset.counter(first_epoch).flat_map(epoch_windows).prefetch(1).flat_map(shuffled)

    def _train_batch(
        self, share: Share, positions: tf.Tensor, present: tf.Tensor, images: tf.Tensor, labels: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns a batch of this worker in which damaged rows are replaced by others."""
        images, labels = tf.cond(
            tf.size(present) < share.rows,
            lambda: self._completed(positions, present, images, labels),
            lambda: (images, labels),
        )
        images, labels = tf.ensure_shape(images, (share.rows, *self.input_shape)), tf.ensure_shape(labels, share.rows)
        if self._augment is not None:
            step = positions[0] // share.size
            images = self._augment(images, self._splits[0].seed(step), share)
        return images, labels

    def _completed(
        self, positions: tf.Tensor, present: tf.Tensor, images: tf.Tensor, labels: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Replaces each damaged row by the next intact row of the global batch, if damage is tolerated."""
        missing = _missing(present, tf.size(positions))
        damaged = tf.gather(positions, missing)
        records = tf.map_fn(self._order.record, damaged)
        recorded = self._record_damage(0, records, damaged)
        if not self.damage.allowed:
            with tf.control_dependencies([recorded]):
                return tf.identity(images), labels
        with tf.control_dependencies([recorded]):
            substitutes = tf.data.Dataset.from_tensor_slices(damaged).map(self._substitute)
        more_images, more_labels = substitutes.batch(positions.shape[0]).get_single_element()
        rows = tf.argsort(tf.concat([present, missing], axis=0))
        return (
            tf.gather(tf.concat([images, more_images], axis=0), rows),
            tf.gather(tf.concat([labels, more_labels], axis=0), rows),
        )

    def _substitute(self, position: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns image and label of the next intact row after `position`, wrapping around at the end of the batch."""
        train, size = self._splits[0], self.batching.batch_size
        begin = position // size * size

        def row(shift: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            other = begin + (position - begin + shift) % size
            return train.example(train.records.read_one(self._order.record(other)), other)

        def fail(position: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            record = self._order.record(position)
            with tf.control_dependencies([tf.debugging.Assert(False, [DAMAGED, 0, record, position])]):
                return tf.zeros(self.input_shape), tf.zeros((), tf.int32)

        intact = tf.data.Dataset.range(1, size).map(row).ignore_errors(log_warning=False)
        otherwise = tf.data.Dataset.from_tensors(position).map(fail)
        return intact.concatenate(otherwise).take(1).get_single_element()

    # Validation.

    def validation(self, worker: int = 0, workers: int = 1, fill: bool = False) -> tf.data.Dataset:  # noqa: D102 (inherited)
        size = self.batching.validation_batch_size
        share = Share.of("validation_batch_size", size, worker, workers)
        numbers = self._validation_rows(share, fill)
        records = self._splits[1].records
        serialized = records.read(tf.data.Dataset.from_tensor_slices(_runs(numbers[numbers >= 0], records)))
        padding = int(np.sum(numbers < 0))
        serialized = serialized.concatenate(tf.data.Dataset.from_tensors("").repeat(padding))
        batches = tf.data.Dataset.zip(tf.data.Dataset.from_tensor_slices(numbers), serialized).batch(
            share.rows, drop_remainder=fill
        )
        decoded = _decoded(batches, self._splits[1].example, self.input_shape)
        make = self._filled_batch if fill else self._bare_batch
        result = decoded.map(without_autograph(make), num_parallel_calls=BATCHES_AT_ONCE)
        if not fill and self.damage.allowed:  # all rows of a batch may be damaged
            return finished(result.filter(without_autograph(lambda _, labels: tf.size(labels) > 0)))
        return finished(result.apply(tf.data.experimental.assert_cardinality(-(-len(numbers) // share.rows))))

    def _bare_batch(
        self, numbers: tf.Tensor, present: tf.Tensor, images: tf.Tensor, labels: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the intact rows of a validation batch."""
        with tf.control_dependencies([self._check_validation(numbers, present)]):
            return tf.identity(images), labels

    def _filled_batch(
        self, numbers: tf.Tensor, present: tf.Tensor, images: tf.Tensor, labels: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Returns a validation batch of full size with weights. Damaged and absent rows are zero and have weight 0."""
        rows = numbers.shape[0]
        whole = tf.equal(tf.size(present), rows)
        index, shape = present[:, tf.newaxis], (rows, *self.input_shape)
        with tf.control_dependencies([self._check_validation(numbers, present)]):
            images = tf.cond(whole, lambda: images, lambda: tf.scatter_nd(index, images, shape))
        return (
            tf.ensure_shape(images, shape),
            tf.ensure_shape(tf.scatter_nd(index, labels, [rows]), [rows]),
            tf.ensure_shape(tf.scatter_nd(index, tf.ones_like(present, tf.float32), [rows]), [rows]),
        )

    def _check_validation(self, numbers: tf.Tensor, present: tf.Tensor) -> tf.Operation:
        """Adds the damaged rows of a validation batch to the damage list: those neither present nor padding."""
        damaged = tf.gather(numbers, _missing(present, tf.size(numbers)))
        damaged = tf.boolean_mask(damaged, damaged >= 0)
        no_position = tf.fill([tf.size(damaged)], tf.constant(NO_STEP, tf.int64))
        return tf.cond(
            tf.size(damaged) > 0,
            lambda: tf.group(self._record_damage(1, damaged, no_position)),
            tf.no_op,
        )

    # Damage.

    def _record_damage(self, split: int, records: tf.Tensor, positions: tf.Tensor) -> tf.Operation:
        """Adds records to the damage list. Fails with an error that `explain` recognises if the list is too long then.

        If no damage is tolerated, this calls no Python code, so the graph can run on another machine.
        """
        if not self.damage.allowed:
            return tf.debugging.Assert(False, [DAMAGED, split, records[0], positions[0]])
        refused = tf.numpy_function(lambda *arrays: self._add_damaged(split, *arrays), [records, positions], tf.int64)
        refused.set_shape(())
        index = tf.maximum(refused, 0)
        return tf.debugging.Assert(refused < 0, [DAMAGED, split, records[index], positions[index]])

    def _add_damaged(self, split: int, records: np.ndarray, positions: np.ndarray) -> np.int64:
        """Adds damaged records to the list. Returns the index of the first record above the limit, or -1."""
        for index, (record, position) in enumerate(zip(records, positions, strict=True)):
            fault = self._splits[split].fault(int(record), int(position))
            if fault is None:  # the record is intact, so something else failed
                return np.int64(index)
            step = NO_STEP if position < 0 else int(position) // self.batching.batch_size
            self.damage.add(fault._replace(step=step))
            if self.damage.exceeds_limit:
                return np.int64(index)
        return np.int64(-1)

    def explain(self, error: Exception) -> DataError | None:  # noqa: D102 (inherited)
        match = DAMAGED_RECORD.search(error.message) if isinstance(error, tf.errors.OpError) else None
        if match is None:
            return None
        split, record, position = map(int, match.groups())
        fault = self._splits[split].fault(record, position)
        if fault is None:
            return _intermittent_failure(self._splits[split].records, record)
        if self.damage.allowed and not self.damage.exceeds_limit:
            return DataError(
                f"{fault.reason}; each batch must hold an intact record; found none at step "
                f"{position // self.batching.batch_size}"
            )
        return self.damage.error(fault)


class _Split:
    """The records of a split and their decoder `(encoded, seed) -> image`."""

    def __init__(self, records: Records, decode: Decode, seed: int):
        self.records, self._decode, self._seed = records, decode, seed

    def example(self, serialized: tf.Tensor, number: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns image and label of a record. The augmentation depends on `number` and the seed of the run."""
        encoded, label = self.records.parse(serialized)
        return self._decode(encoded, self.seed(number)), label

    def seed(self, number: tf.Tensor) -> tf.Tensor:
        """Returns a seed `(2,)` that is different for each number."""
        return tf.stack([tf.constant(self._seed, tf.int64), tf.cast(number, tf.int64)])

    def fault(self, record: int, number: int) -> DamagedRecord | None:
        """Returns the fault that makes `example` fail, or None."""
        return self.records.fault(record, lambda encoded: self._decode(encoded, self.seed(number)))


def _decoded(
    batches: tf.data.Dataset,
    decode: Callable[[tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]],
    shape: tuple[int, int, int],
    dtype: tf.DType = tf.float32,
) -> tf.data.Dataset:
    """Decodes batches and drops records that cannot be decoded.

    Args:
        batches: pairs of numbers `(batch,)` int64 and serialised records `(batch,)`. Rows of padding at the end have
            negative numbers.
        decode: `(serialized, number) -> (image, label)`.
        shape: `(height, width, channels)` of the images.
        dtype: dtype of the images.

    Returns:
        The numbers `(batch,)`; the indices `(present,)` int32 of the rows that could be decoded; their images
        `(present, height, width, channels)` and labels `(present,)` int32.
    """
    nothing = tf.data.Dataset.from_tensors(
        (tf.zeros([0], tf.int32), tf.zeros([0, *shape], dtype), tf.zeros([0], tf.int32))
    )

    @without_autograph
    def decode_batch(numbers: tf.Tensor, serialized: tf.Tensor) -> tf.data.Dataset:
        filled = tf.reduce_sum(tf.cast(numbers >= 0, tf.int32))

        def example(row: tf.Tensor, number: tf.Tensor, record: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            return row, *decode(record, number)

        rows = tf.data.Dataset.from_tensor_slices((tf.range(filled), numbers[:filled], serialized[:filled]))
        # Errors are caught once per batch: catching them for each image would add a tenth to the decoding time.
        images = rows.map(example, num_parallel_calls=processors.count())
        images = images.ignore_errors(log_warning=False).batch(tf.size(numbers, tf.int64))
        return images.concatenate(nothing).take(1).map(lambda *decoded: (numbers, *decoded))

    return batches.interleave(
        decode_batch, cycle_length=BATCHES_AT_ONCE, num_parallel_calls=BATCHES_AT_ONCE, deterministic=True
    )


def _missing(present: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
    """Returns the rows of 0..count-1 that are not in `present`, int32."""
    absent = tf.tensor_scatter_nd_update(
        tf.fill([count], True), present[:, tf.newaxis], tf.zeros_like(present, tf.bool)
    )
    return tf.boolean_mask(tf.range(count), absent)


def _runs(numbers: np.ndarray, records: Records) -> tuple[np.ndarray, np.ndarray]:
    """Splits a sequence of record numbers into runs that can be read at once: first records and counts."""
    if not len(numbers):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    block = np.searchsorted(records.blocks[:, 0], numbers, side="right")
    begins = np.flatnonzero(np.diff(block, prepend=-1) | (np.diff(numbers, prepend=-2) != 1))
    return numbers[begins], np.diff(begins, append=len(numbers))


def read_into_memory(records: Records, shape: tuple[int, int, int]) -> Examples:
    """Decodes all images. They must have the same shape.

    Tolerated damaged records keep their positions, so the order of the other records does not depend on them.
    `Examples.sound` marks the intact records.

    Args:
        records: the records to read.
        shape: `(height, width, channels)` of every image.

    Returns:
        The examples, in file order.

    Raises:
        DataError: if more records are damaged than allowed.
    """

    def decode(encoded: tf.Tensor, seed: tf.Tensor | None = None) -> tf.Tensor:
        del seed
        return tf.ensure_shape(decode_image(encoded, shape[-1]), shape)

    split = _Split(records, decode, seed=0)
    images, labels = np.zeros((records.examples, *shape), np.uint8), np.zeros(records.examples, np.int32)
    intact = np.zeros(records.examples, bool)
    numbers = np.arange(records.examples)
    serialized = records.read(tf.data.Dataset.from_tensor_slices(_runs(numbers, records)))
    batches = tf.data.Dataset.zip(tf.data.Dataset.from_tensor_slices(numbers), serialized).batch(1024)
    for part, present, part_images, part_labels in finished(
        _decoded(batches, split.example, shape, tf.uint8)
    ).as_numpy_iterator():
        # The numbers of a batch are consecutive. If all are intact, a slice is several times faster than indexing.
        found = slice(part[0], part[-1] + 1) if len(present) == len(part) else part[present]
        images[found], labels[found], intact[found] = part_images, part_labels, True
        for number in np.delete(part, present):
            fault = split.fault(int(number), NO_STEP)
            if fault is None:
                raise _intermittent_failure(records, int(number))
            records.damage.add(fault)
            if records.damage.exceeds_limit:
                raise records.damage.error(fault)
    return Examples(images, labels, None if intact.all() else intact)


def _intermittent_failure(records: Records, record: int) -> DataError:
    """Returns the error for a record that failed at first and was readable later."""
    return DataUnavailable(
        f"{records.path(record)}: must not change while it is read; found record {record} of {records.name}, which "
        "could not be read or decoded at first, and now can; try again"
    )
