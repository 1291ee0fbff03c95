"""Records on disk: random access to the examples of a split, and the diagnosis of damaged ones.

`Records` is the interface that the pipelines use. `TFRecords` reads TFRecord files; `ImageFiles`, in `image_files.py`,
reads one file per image.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Hashable, Sequence

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError

from neural_alignment.data.damage import DamagedRecord, DamageList
from neural_alignment.data.imagenet import decode_rgb
from neural_alignment.data.index import FileIndex, first_line, index_files
from neural_alignment.data.order import without_autograph
from neural_alignment.errors import DataError

BLOCK_RECORDS = 32  # records per read: 3.5 MB of ImageNet
MAX_READ_BYTES = 1 << 24
PARALLEL_READS = 16


@dataclasses.dataclass(frozen=True)
class Schema:
    """The names and ranges of the features in a record.

    Attributes:
        image_key: name of the feature with the encoded image.
        label_key: name of the feature with the integer label.
        classes: number of classes.
        label_offset: label of the first class.
    """

    image_key: str
    label_key: str
    classes: int
    label_offset: int = 0

    @property
    def allowed_labels(self) -> str:
        """The range of valid labels as text."""
        return f"{self.label_offset} to {self.label_offset + self.classes - 1}"

    def parse(self, record: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Parses a serialised `tf.train.Example` into the encoded image and the label, an int32 in 0..classes-1."""
        features = tf.io.parse_single_example(
            record,
            {
                self.image_key: tf.io.FixedLenFeature((), tf.string),
                self.label_key: tf.io.FixedLenFeature((), tf.int64),
            },
        )
        label = features[self.label_key] - self.label_offset
        in_range = tf.logical_and(label >= 0, label < self.classes)
        with tf.control_dependencies([tf.debugging.Assert(in_range, ["label out of range", label])]):
            return features[self.image_key], tf.cast(label, tf.int32)

    def misfit(self, record: bytes) -> str | None:
        """Returns why an intact record does not fit, with "{where}" in place of its location, or None."""
        try:
            features = tf.train.Example.FromString(record).features.feature
        except DecodeError:
            return f"{{where}} must be a serialised tf.train.Example; found {len(record)} bytes"
        images, labels = features[self.image_key].bytes_list.value, features[self.label_key].int64_list.value
        for key, values, kind in ((self.image_key, images, "bytes"), (self.label_key, labels, "integer")):
            if len(values) != 1:
                found = ", ".join(sorted(name for name in features if features[name].WhichOneof("kind"))) or "none"
                return f"{{where}} must hold one {kind} feature `{key}`; found features: {found}"
        if not 0 <= labels[0] - self.label_offset < self.classes:
            return f"the label of {{where}} must be {self.allowed_labels}; found {labels[0]}"
        return None


@dataclasses.dataclass(frozen=True)
class Shard:
    """Part of a TFRecord file.

    Attributes:
        path: path of the file.
        skip: number of records to skip at the beginning.
        take: number of records to use after these; -1 for all.
        records: number of records that the file must hold; None if unknown.
    """

    path: str
    skip: int = 0
    take: int = -1
    records: int | None = None


class Records(abc.ABC):
    """The examples of one split on disk: encoded images with labels, numbered from 0.

    Args:
        name: name of the split in error messages.
        classes: number of classes.
        damage: the list to which damaged records are added, with the limit on their number.

    Attributes:
        examples: number of examples to use.
        found: number of examples on disk.
        blocks: `(blocks, 2)` int64, the first record and the number of records of each block. The records of a block
            are read at once.
    """

    examples: int
    found: int
    blocks: np.ndarray

    def __init__(self, name: str, classes: int, damage: DamageList):
        self.name, self.classes, self.damage = name, classes, damage

    @abc.abstractmethod
    def read(self, runs: tf.data.Dataset) -> tf.data.Dataset:
        """Returns the records one by one as scalar strings for `parse`, with "" for each that cannot be read.

        Args:
            runs: pairs (first record, count) of neighbouring records in one block, which are read at once.
        """

    @abc.abstractmethod
    def read_one(self, record: tf.Tensor) -> tf.Tensor:
        """Returns a record as `read` does, or raises an error if it cannot be read."""

    @abc.abstractmethod
    def parse(self, record: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the encoded image and the label, an int32 in 0..classes-1, of a result of `read`."""

    @abc.abstractmethod
    def fault(self, record: int, decode: Callable[[tf.Tensor], tf.Tensor] | None = None) -> DamagedRecord | None:
        """Reads one record and returns its fault, or None.

        Args:
            record: number of the record.
            decode: a decoder that the image must also pass.
        """

    @abc.abstractmethod
    def path(self, record: int) -> str:
        """Returns the path of the file that contains a record."""

    def _check_first(self) -> None:
        """Raises an error if all of the first records are faulty. Often the options do not fit the files then."""
        if not self.found:
            raise DataError(f"{self.name}: must hold records; found none")
        faults = []
        for record in range(min(self.damage.allowed + 1, self.found)):
            faults.append(self.fault(record))
            if faults[-1] is None:
                return
        raise faults[0].error(faults[0].reason)


class TFRecords(Records):
    """The examples of one split, stored in TFRecord files, in file order.

    `found` includes the examples lost at the end of truncated files.

    Args:
        name: name of the split in error messages.
        shards: the files, in order.
        schema: the features of a record.
        damage: the list to which damaged records are added, with the limit on their number.
        examples: number of examples to use, which the caller compares with `found`. Default: all examples in the files.
        index_file: a file that stores the positions of the records; see `index_files`.

    Raises:
        DataError: if more records are missing or damaged than allowed, or if the first records do not fit the schema.
    """

    def __init__(
        self,
        name: str,
        shards: Sequence[Shard],
        schema: Schema,
        damage: DamageList,
        examples: int | None = None,
        index_file: str | None = None,
    ):
        super().__init__(name, schema.classes, damage)
        self._schema = schema
        self._shards = tuple(shards)
        self._paths = [shard.path for shard in shards]
        damage.add_files(name, self._paths)
        indices = index_files(self._paths, index_file)
        shards = self._with_lengths([(shard, indices[shard.path]) for shard in shards], examples)
        bounds, numbers, blocks = [], [], []
        for shard in shards:
            index = indices[shard.path]
            end = shard.records if shard.take < 0 else min(shard.skip + shard.take, shard.records)
            number = np.arange(shard.skip, end)
            offsets = np.concatenate([index.offsets, np.full(shard.records - index.records, index.size)])
            first = sum(map(len, numbers))
            blocks += [
                (begin, min(BLOCK_RECORDS, len(number) - begin + first))
                for begin in range(first, first + len(number), BLOCK_RECORDS)
            ]
            bounds.append(np.stack([offsets[number], offsets[number + 1]], axis=-1))
            numbers.append(number)
            self._report_lost(shard, index, number)
        self._starts, self._numbers = np.cumsum([0, *map(len, numbers)])[:-1], np.concatenate(numbers)
        with tf.device("CPU:0"):  # created eagerly, so that graphs reference them instead of copying them
            self._tensors = (
                tf.constant(self._paths),
                tf.constant(self._starts, tf.int64),
                tf.constant(
                    np.concatenate(bounds), tf.int64
                ),  # (found, 2): byte offsets of begin and end of each record
            )
        self.blocks = np.array(blocks, np.int64)  # (blocks, 2): first record and size of each block
        self.found = len(self._numbers)
        self.examples = self.found if examples is None else examples
        self._check_first()

    def _with_lengths(self, shards: list[tuple[Shard, FileIndex]], examples: int | None) -> list[Shard]:
        """Fills in the number of records per file. Records missing from the total count as lost in damaged files."""
        lengths = [
            shard.records if shard.records is not None else index.records + bool(index.fault) for shard, index in shards
        ]
        for (shard, index), length in zip(shards, lengths, strict=True):
            if index.records > length:
                raise DataError(
                    f"{shard.path}: must hold {length} records, as {self.name} declares; found {index.records}"
                )
        unknown = [place for place, (shard, index) in enumerate(shards) if shard.records is None and index.fault]
        if unknown and examples is not None:
            lengths[unknown[-1]] += max(examples - sum(lengths), 0)
        return [dataclasses.replace(shard, records=length) for (shard, _), length in zip(shards, lengths, strict=True)]

    def _report_lost(self, shard: Shard, index: FileIndex, numbers: np.ndarray) -> None:
        """Adds the records that are missing from a file to the damage list."""
        fault = index.fault or (
            f"a TFRecord file is truncated: {shard.path} must hold {shard.records} records; found {index.records}"
        )
        for number in numbers[numbers >= index.records]:
            self.damage.add(DamagedRecord(shard.path, int(number), f"{self.name}: {fault}"))
            if self.damage.exceeds_limit:
                raise self.damage.error()

    def state(self) -> Hashable | None:
        """Returns a value that changes with the files, the records in use, and how they are parsed; None if unknown."""
        try:
            found = [tf.io.gfile.stat(path) for path in self._paths]
        except tf.errors.OpError:  # A missing file may be tolerated.
            return None
        files = tuple((each.length, each.mtime_nsec) for each in found)
        return self._shards, files, self._schema, self.examples

    # Reading inside a graph.

    def read(self, runs: tf.data.Dataset) -> tf.data.Dataset:  # noqa: D102 (inherited)
        read = runs.map(without_autograph(self._run_or_pieces), num_parallel_calls=PARALLEL_READS, deterministic=True)
        return read.unbatch()

    def read_one(self, record: tf.Tensor) -> tf.Tensor:  # noqa: D102 (inherited)
        return self._run(record, tf.ones_like(record))[0]

    def parse(self, record: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:  # noqa: D102 (inherited)
        return self._schema.parse(record)

    def _run(self, first: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
        """Returns `(count,)` serialised records, by one sequential read."""
        paths, starts, bounds = self._tensors
        shard = tf.searchsorted(starts, [first], side="right")[0] - 1
        begin, end = bounds[first, 0], bounds[first + count - 1, 1]
        # The public TFRecordDataset cannot begin at an offset, but the operation under it can.
        records = tf.raw_ops.TFRecordDatasetV2(
            filenames=[paths[shard]],
            compression_type="",
            buffer_size=tf.clip_by_value(end - begin, 1, MAX_READ_BYTES),
            byte_offsets=[begin],
        )
        dataset = tf.data.experimental.from_variant(records, tf.TensorSpec((), tf.string))
        return dataset.take(count).batch(count, drop_remainder=True).get_single_element()

    def _run_or_pieces(self, first: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
        """Like `_run`, but if this fails, reads the records one by one, with "" for those that cannot be read."""

        def pieces(first: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
            each = tf.data.Dataset.range(first, first + count).map(
                lambda record: attempt(self.read_one, lambda _: tf.constant(""), record)
            )
            return each.batch(count).get_single_element()

        return attempt(self._run, pieces, first, count)

    # Diagnosis.

    def fault(self, record: int, decode: Callable[[tf.Tensor], tf.Tensor] | None = None) -> DamagedRecord | None:  # noqa: D102
        number, path = int(self._numbers[record]), self.path(record)
        where = f"record {number} of {path}"
        try:
            serialized = self.read_one(tf.constant(record, tf.int64)).numpy()
        except tf.errors.NotFoundError:
            reason = f"{self.name}: a file is missing: {path}"
            return DamagedRecord(path, number, reason)
        except tf.errors.OpError as error:
            found = "the end of the file" if "empty" in error.message else first_line(error)
            reason = f"{self.name}: {where} must be a whole record with matching checksums; found {found}"
            return DamagedRecord(path, number, reason)
        misfit = fault = self._schema.misfit(serialized)
        if misfit is None:
            fault = fault_of_image(self._schema.parse(serialized)[0], decode)
        if fault is None:
            return None
        reason = f"{self.name}: {fault.replace('{where}', where)}"
        return DamagedRecord(path, number, reason, misfit=misfit is not None)

    def path(self, record: int) -> str:  # noqa: D102 (inherited)
        return self._paths[np.searchsorted(self._starts, record, side="right") - 1]


def attempt(function: Callable, otherwise: Callable, *arguments: tf.Tensor) -> tf.Tensor:
    """Returns the result of `function`, or of `otherwise` if it fails, inside a graph."""
    element = tf.data.Dataset.from_tensors(arguments)
    first = element.map(function).ignore_errors(log_warning=False)
    return first.concatenate(element.map(otherwise)).take(1).get_single_element()


def fault_of_image(encoded: tf.Tensor, decode: Callable[[tf.Tensor], tf.Tensor] | None) -> str | None:
    """Returns why an image cannot be used, with "{where}" in place of its location, or None.

    Args:
        encoded: the encoded image, a scalar string.
        decode: a decoder that the image must also pass, or None.
    """
    try:
        decode_rgb(encoded)
    except tf.errors.OpError:
        content = encoded.numpy()
        return (
            "the image of {where} must be a whole JPEG, PNG, WebP (not animated), GIF or BMP; "
            f"found {len(content)} bytes that begin with 0x{content[:4].hex()}"
        )
    if decode is None:
        return None
    try:
        decode(encoded)
    except (tf.errors.OpError, ValueError) as error:
        return f"the image of {{where}} cannot be prepared: {first_line(error)}"
    return None
