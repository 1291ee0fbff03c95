"""TFRecord files: what a record must hold, how they are read in order, and what is wrong with them."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import logging
import re
import struct
from collections.abc import Sequence

import tensorflow as tf
from google.protobuf.message import DecodeError

from neural_alignment.errors import DataError

logger = logging.getLogger(__name__)

SHUFFLE_ROUNDS = 8  # of the cipher behind the order; with TensorFlow's 4, neighbours stay correlated
PARALLEL_FILES = 16
READ_BUFFER_BYTES = 1 << 20
# What TensorFlow says when a record, not the model, is at fault.
DATA_FAULT = re.compile(
    r"record|jpeg|png|image file format|decode|label out of range|epoch ended early|"
    r"expected to contain|could not be found|Feature: |parse example|No such file|not found|data loss",
    re.IGNORECASE,
)


def permuted(index: tf.Tensor, size: int, seed: tf.Tensor) -> tf.Tensor:
    """The elements at `index` of a permutation of 0..size-1, without making the permutation.

    Args:
        index: `(n,)` int64, in 0..size-1.
        size: number of elements that are permuted.
        seed: `(2,)` int64. It is hashed: `tf.random.experimental.index_shuffle` takes it as the key of its cipher as it
            is, and the permutations of neighbouring seeds then resemble each other.

    Returns:
        `(n,)` int64.
    """
    key = tf.random.stateless_uniform([3], seed, minval=None, maxval=None, dtype=tf.uint32)
    last = tf.constant(size - 1, tf.int64)
    return tf.raw_ops.RandomIndexShuffle(index=index, seed=key, max_index=last, rounds=SHUFFLE_ROUNDS)


@dataclasses.dataclass(frozen=True)
class Schema:
    """Where a record holds the image and the label.

    Attributes:
        image_key: feature with the encoded image.
        label_key: feature with the integer label.
        classes: number of classes.
        label_offset: the label of the first class.
    """

    image_key: str
    label_key: str
    classes: int
    label_offset: int = 0

    @property
    def allowed_labels(self) -> str:
        """The labels a file may hold, in words."""
        return f"{self.label_offset} to {self.label_offset + self.classes - 1}"

    def parse(self, record: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """A serialised `tf.train.Example` to the encoded image and the label, 0..classes-1 as int32."""
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

    def fault(self, record: bytes, decode: bool) -> str | None:
        """What is wrong with a record, "{where}" standing for its place, or None."""
        try:
            features = tf.train.Example.FromString(record).features.feature
        except DecodeError:
            return f"{{where}} is not a tf.train.Example. Received {len(record)} bytes. Allowed: a serialised Example."
        images, labels = features[self.image_key].bytes_list.value, features[self.label_key].int64_list.value
        for key, values, kind in ((self.image_key, images, "bytes"), (self.label_key, labels, "integer")):
            if len(values) != 1:
                found = ", ".join(sorted(name for name in features if features[name].WhichOneof("kind"))) or "none"
                return f"{{where}} must hold one {kind} feature `{key}`. Received features: {found}."
        if not 0 <= labels[0] - self.label_offset < self.classes:
            return f"The label of {{where}} is out of range. Received {labels[0]}. Allowed: {self.allowed_labels}."
        if decode:
            try:
                tf.io.decode_image(images[0], channels=3, expand_animations=False)
            except tf.errors.OpError:
                return (
                    f"The image of {{where}} cannot be decoded. Received {len(images[0])} bytes that begin with "
                    f"0x{images[0][:4].hex()}. Allowed: a whole JPEG, PNG, GIF or BMP."
                )
        return None


@dataclasses.dataclass(frozen=True)
class Shard:
    """Part of a TFRecord file: `take` records (-1: all) after the first `skip`."""

    path: str
    skip: int = 0
    take: int = -1


class Records:
    """The examples of one split, in TFRecord files.

    Args:
        name: what the user calls it; errors begin with it.
        shards: the files, in order.
        schema: where a record holds what.
        examples: how many there are; None counts them, which reads every file through once.

    Raises:
        DataError: a file is missing, empty, truncated or no TFRecord, or its first record is not as it must be.
    """

    def __init__(self, name: str, shards: Sequence[Shard], schema: Schema, examples: int | None = None):
        self.name, self.shards, self.schema = name, tuple(shards), schema
        check = count_records if examples is None else check_first_header
        with concurrent.futures.ThreadPoolExecutor(PARALLEL_FILES) as threads:
            counts = list(threads.map(check, [shard.path for shard in self.shards]))
        self.examples = sum(counts) if examples is None else examples
        fault = self._fault_in(self.shards[0], decode=True, records=1)[0]
        if fault:
            raise DataError(fault)

    def read(self, order_seed: tf.Tensor | None = None, shuffle_buffer: int = 1) -> tf.data.Dataset:
        """Returns the serialised records, in file order, or shuffled as `order_seed` `(2,)` says."""
        columns = tuple(
            tf.constant([getattr(shard, field) for shard in self.shards], dtype)
            for field, dtype in (("path", tf.string), ("skip", tf.int64), ("take", tf.int64))
        )
        if order_seed is not None:
            count = len(self.shards)
            order = permuted(tf.range(count, dtype=tf.int64), count, order_seed)
            columns = tuple(tf.gather(column, order) for column in columns)
        records = tf.data.Dataset.from_tensor_slices(columns).interleave(
            lambda path, skip, take: tf.data.TFRecordDataset(path, buffer_size=READ_BUFFER_BYTES).skip(skip).take(take),
            cycle_length=1 if order_seed is None else PARALLEL_FILES,
            num_parallel_calls=tf.data.AUTOTUNE,
            deterministic=True,
        )
        if order_seed is None:
            return records
        # `shuffle` mixes the global seed in, which must not matter: here it is that of the function being traced.
        tf.random.set_seed(1)
        buffer_seed = tf.random.stateless_uniform([2], order_seed, minval=None, maxval=None, dtype=tf.int64)[1]
        return records.shuffle(shuffle_buffer, seed=buffer_seed, reshuffle_each_iteration=False)

    def fault(self, decode: bool) -> str | None:
        """Reads all files through and returns what is wrong first, or None; `decode` also tries every image."""
        logger.info("Looking for the fault in %d files of %s.", len(self.shards), self.name)
        total = 0
        for shard in self.shards:
            fault, count = self._fault_in(shard, decode)
            if fault:
                return fault
            total += count
        if total != self.examples:
            return f"The number of examples in {self.name} is wrong. Received {self.examples}. Allowed: {total}."
        return None

    def _fault_in(self, shard: Shard, decode: bool, records: int | None = None) -> tuple[str | None, int]:
        """The fault of a shard, or None, and how many records were read before it; `records` limits them."""
        if not tf.io.gfile.exists(shard.path):
            return f"A file of {self.name} is missing. Received {shard.path}. Allowed: an existing file.", 0
        wanted = shard.take if records is None else records
        count = 0
        try:
            for record in (
                tf.data.TFRecordDataset(shard.path, buffer_size=READ_BUFFER_BYTES).skip(shard.skip).take(wanted)
            ):
                where = f"record {shard.skip + count} of {shard.path}"
                fault = self.schema.fault(record.numpy(), decode)
                if fault:
                    return f"In {self.name}: {fault.replace('{where}', where)}", count
                count += 1
        except tf.errors.OpError as error:
            return (
                f"A TFRecord file of {self.name} is corrupt or truncated after record {shard.skip + count - 1}: "
                f"{shard.path}. Received: {first_line(error)}. Allowed: whole records with matching checksums.",
                count,
            )
        return None, count


def explain(error: Exception, *splits: Records) -> DataError | None:
    """Returns the first fault of the splits as an error, if `error` is one that faulty data raises; else None."""
    if not isinstance(error, tf.errors.OpError) or not DATA_FAULT.search(error.message):
        return None
    decode = re.search("jpeg|png|image|decode|compatible", error.message, re.IGNORECASE) is not None
    fault = next(filter(None, (records.fault(decode) for records in splits)), None)
    return DataError(fault) if fault else None


def check_first_header(path: str) -> int:
    """Raises `DataError` if a file is missing, empty, or does not begin as a TFRecord file does; returns 0."""
    return _walk(path, limit=1)


def count_records(path: str) -> int:
    """Number of records in a TFRecord file, from their length headers; the images' checksums are not computed.

    Raises:
        DataError: the file is missing, empty, truncated, or no TFRecord file.
    """
    return _walk(path)


def _walk(path: str, limit: int | None = None) -> int:
    """Counts records header by header: length (8 bytes), its checksum (4), the data, its checksum (4)."""
    count = position = 0
    try:
        with tf.io.gfile.GFile(path, "rb") as file:
            size = file.size()
            if size == 0:
                raise DataError(f"A TFRecord file is empty: {path}. Received 0 bytes. Allowed: one record or more.")
            while position < size and count != limit:
                file.seek(position)
                header = file.read(12)
                if len(header) == 12 and struct.unpack("<I", header[8:])[0] != _masked_crc(header[:8]):
                    raise DataError(
                        f"A file is no TFRecord file, or is corrupt: {path}. Received a wrong checksum of the length "
                        f"at byte {position}, record {count}. Allowed: uncompressed TFRecord."
                    )
                length = struct.unpack("<Q", header[:8])[0] if len(header) == 12 else 0
                position += 16 + length
                if position > size:
                    raise DataError(
                        f"A TFRecord file is truncated: {path}. Received {size} bytes, which end within record {count}."
                        f" Allowed: {position} bytes or more."
                    )
                count += 1
    except tf.errors.OpError as error:
        raise DataError(f"A TFRecord file cannot be read: {path}. Received: {first_line(error)}") from error
    return count


def _crc_table() -> list[int]:
    """Table of CRC-32C (Castagnoli), reflected."""
    table = []
    for value in range(256):
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


_CRC_TABLE = _crc_table()


def _masked_crc(data: bytes) -> int:
    """The checksum of TFRecord: CRC-32C, rotated and shifted by a constant."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _CRC_TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def first_line(error: Exception) -> str:
    """The message of an error without TensorFlow's node names, in one line of bounded length."""
    message = getattr(error, "message", None) or str(error)
    message = re.sub(r"\{\{.*?\}\}|\[Op:.*", "", message).strip() or type(error).__name__
    return " ".join(message.splitlines()[0].split())[:300]
