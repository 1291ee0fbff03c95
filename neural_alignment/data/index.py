"""An index of the positions of all records in TFRecord files, optionally stored in a file.

The index is read from the length headers of the records. With it, any record can be reached by one seek, so a run can
resume in the middle of an epoch without reading the records before.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import io
import logging
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Sequence
from typing import BinaryIO

import numpy as np
import tensorflow as tf

from neural_alignment import files
from neural_alignment.errors import DataError, Words, WrongValue, one_line
from neural_alignment.paths import is_local, problem_of_file

logger = logging.getLogger(__name__)

PARALLEL_FILES = 16
HEADER_BYTES = 12  # a record is: length (8 bytes), checksum of the length (4), data, checksum of the data (4)
LOCAL_READ_BYTES = 4096
FORMAT = 1


@dataclasses.dataclass(frozen=True)
class FileIndex:
    """The positions of the records in one file.

    Attributes:
        offsets: `(records + 1,)` int64, the byte positions at which records begin, and the end of the last record.
        size: size of the file in bytes.
        fault: one line about the fault after these records, or None if the file is intact.
    """

    offsets: np.ndarray
    size: int
    fault: str | None = None

    @property
    def records(self) -> int:
        """Number of whole records."""
        return len(self.offsets) - 1


def index_files(paths: Sequence[str], index_file: str | None = None) -> dict[str, FileIndex]:
    """Finds the records of files. It reads only the headers and does not verify the checksums of the data.

    Args:
        paths: TFRecord files, local or remote.
        index_file: a .npz file that stores the index. Its entries are used for files whose size has not changed. The
            other files are indexed and the index file is rewritten. It is also rewritten if it is an index of another
            version, or its contents are inconsistent.

    Returns:
        The index of each path. The index of a missing or damaged file has a `fault` and the records before the fault.

    Raises:
        DataError: if there is a file at the path of the index file that is not an index, or that cannot be read, or if
            the index file cannot be written.
    """
    if not index_file and (remote := sum(not is_local(path) for path in paths)):
        logger.warning(
            "the positions of the records in %d remote files are not stored, so each start reads nearly all of these "
            "files; set data.index_file to the path of a file in which to store them",
            remote,
        )
    known = _load(index_file) if index_file else {}

    def find(path: str) -> FileIndex:
        kept = known.get(path)
        return kept if kept is not None and kept.size == _size(path) else walk(path)

    distinct = list(dict.fromkeys(paths))
    with concurrent.futures.ThreadPoolExecutor(PARALLEL_FILES) as threads:
        found = dict(zip(distinct, threads.map(find, distinct), strict=True))
    if index_file and any(known.get(path) is not index for path, index in found.items() if not index.fault):
        _save(index_file, known | found)
    return found


def walk(path: str) -> FileIndex:
    """Indexes a TFRecord file by reading header after header."""
    problem = problem_of_file(path)
    if problem not in (None, "no such file"):
        message = f"a TFRecord file cannot be read: {path}, which {problem}"
        return FileIndex(np.zeros(1, np.int64), 0, message)
    try:
        with _open(path) as file:
            size = _size(path)
            if not size:
                message = f"a TFRecord file must hold one record or more; found 0 bytes in {path}"
                return FileIndex(np.zeros(1, np.int64), 0, message)
            return _walk(path, file, size)
    except tf.errors.NotFoundError:
        return FileIndex(np.zeros(1, np.int64), 0, f"a file is missing: {path}")
    except (tf.errors.OpError, OSError) as error:
        message = f"a TFRecord file cannot be read: {path}: {first_line(error)}"
        return FileIndex(np.zeros(1, np.int64), 0, message)


def _walk(path: str, file: BinaryIO, size: int) -> FileIndex:
    """Indexes an open file of `size` bytes."""
    offsets, headers, position = [], [], 0
    while position < size:
        file.seek(position)
        header = file.read(HEADER_BYTES)
        offsets.append(position)
        headers.append(header.ljust(HEADER_BYTES, b"\0"))
        length = struct.unpack_from("<Q", header)[0] if len(header) == HEADER_BYTES else 0
        position += HEADER_BYTES + length + 4
    table = np.frombuffer(b"".join(headers), np.uint8).reshape(-1, HEADER_BYTES)
    stored = table[:, 8:].copy().view("<u4")[:, 0]
    wrong = np.flatnonzero(_masked_crc(table[:, :8]) != stored)
    cut = len(headers) - 1 if position > size else len(headers)
    # An incomplete header at the end of the file is a truncation, not a wrong checksum.
    if wrong.size and offsets[wrong[0]] + HEADER_BYTES <= size:
        record = int(wrong[0])
        return FileIndex(
            np.array(offsets[: record + 1], np.int64),
            size,
            f"{path} must be an intact, uncompressed TFRecord file; found a wrong checksum of the length at byte "
            f"{offsets[record]}, record {record}",
        )
    if cut < len(headers):
        return FileIndex(
            np.array(offsets, np.int64),
            size,
            f"a TFRecord file is truncated: {path} must have {position} bytes or more; found {size}, which end within "
            f"record {cut}",
        )
    return FileIndex(np.array([*offsets, position], np.int64), size)


def _open(path: str) -> BinaryIO:
    """Opens a file for reading headers that are far apart.

    TensorFlow's files read half a megabyte ahead, which is nearly all of a file of images. Remote files can only be
    opened with them. Local files are opened with a small buffer.
    """
    if not is_local(path):
        return tf.io.gfile.GFile(path, "rb")
    try:
        return open(path, "rb", buffering=LOCAL_READ_BYTES)
    except FileNotFoundError as error:
        raise tf.errors.NotFoundError(None, None, str(error)) from error


def _size(path: str) -> int | None:
    """Returns the size of a file in bytes, or None if it does not exist."""
    try:
        return tf.io.gfile.stat(path).length
    except tf.errors.OpError:
        return None


# The index file contains only arrays; nothing is unpickled.

_ARRAYS = ("format", "paths", "sizes", "records", "lengths")
"""The names of the arrays in an index. A file with other contents is not an index and must not be overwritten."""

_ZIP = b"PK\x03\x04"
"""The first bytes of a .npz file."""


def _save(index_file: str, found: dict[str, FileIndex]) -> None:
    """Writes the index of all intact files, atomically."""
    whole = {path: index for path, index in found.items() if not index.fault}
    content = io.BytesIO()
    np.savez_compressed(
        content,
        format=np.array(FORMAT),
        paths=np.array(list(whole), dtype=str),
        sizes=np.array([index.size for index in whole.values()], np.int64),
        records=np.array([index.records for index in whole.values()], np.int64),
        lengths=np.concatenate([np.zeros(0, np.int64), *(np.diff(index.offsets) for index in whole.values())]),
    )
    try:
        tf.io.gfile.makedirs(os.path.dirname(index_file) or ".")
        files.write_whole(index_file, content.getvalue(), shared=True)
    except tf.errors.OpError as error:
        found = Words(f"{index_file!r}: {first_line(error)}")
        raise DataError(WrongValue("data.index_file", "must be a path in a writable directory", found)) from error


def _load(index_file: str) -> dict[str, FileIndex]:
    """Reads an index file. The result is empty if it is missing, inconsistent or of another version.

    Raises:
        DataError: if the file cannot be read, or is not an index.
    """
    content = _content(index_file)
    if content is None:
        return {}
    try:
        arrays = np.load(io.BytesIO(content), allow_pickle=False)
    except zipfile.BadZipFile:
        raise _not_an_index(index_file) from None
    if set(arrays) != set(_ARRAYS):
        raise _not_an_index(index_file)
    try:
        if int(arrays["format"]) != FORMAT:
            raise ValueError("it has another format")
        return _checked(*(arrays[name] for name in _ARRAYS[1:]))
    except (ValueError, TypeError, EOFError, OSError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        logger.warning("The index file %s cannot be used and will be rewritten: %s", index_file, first_line(error))
        return {}


def _content(index_file: str) -> bytes | None:
    """Returns the content of an index file, or None if there is no such file.

    Raises:
        DataError: if it cannot be read, or does not begin as a .npz file, which is seen without reading a large file.
    """
    problem = problem_of_file(index_file)
    if problem == "no such file":
        return None
    try:
        if problem is None:
            with tf.io.gfile.GFile(index_file, "rb") as file:
                if file.read(len(_ZIP)) != _ZIP:
                    raise _not_an_index(index_file)
                file.seek(0)
                return file.read()
    except tf.errors.NotFoundError:
        return None
    except tf.errors.OpError as error:
        problem = first_line(error)
    requirement = "must be a regular file that can be read, or the path of a new file"
    raise DataError(WrongValue("data.index_file", requirement, Words(f"{index_file!r}: {problem}")))


def _not_an_index(index_file: str) -> DataError:
    requirement = "must be an index file or the path of a new file, because no other file is overwritten"
    return DataError(WrongValue("data.index_file", requirement, index_file))


def _checked(paths: np.ndarray, sizes: np.ndarray, records: np.ndarray, lengths: np.ndarray) -> dict[str, FileIndex]:
    """Builds the indices from the arrays of an index file.

    Raises:
        ValueError: if the arrays are inconsistent.
    """
    integers = all(array.dtype == np.int64 and array.ndim == 1 for array in (sizes, records, lengths))
    fit = paths.dtype.kind == "U" and paths.ndim == 1 and len(paths) == len(sizes) == len(records)
    if not integers or not fit or np.any(records < 0) or records.sum() != len(lengths) or np.any(lengths <= 0):
        raise ValueError("its arrays are inconsistent")
    known = {}
    parts = np.split(lengths, np.cumsum(records)[:-1]) if len(records) else []
    for path, size, part in zip(paths, sizes, parts, strict=True):
        offsets = np.concatenate([[0], np.cumsum(part)]).astype(np.int64)
        if offsets[-1] != size:
            raise ValueError(f"the records of {path} do not fill the file")
        known[str(path)] = FileIndex(offsets, int(size))
    return known


# CRC-32C (Castagnoli), reflected, for all headers of a file at once.


def _crc_table() -> np.ndarray:
    """Returns the lookup table of the checksum, indexed by byte."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, np.uint32(0x82F63B78), np.uint32(0)) ^ (table >> np.uint32(1))
    return table


_CRC_TABLE = _crc_table()


def _masked_crc(data: np.ndarray) -> np.ndarray:
    """Returns TFRecord's checksum of each row of bytes: CRC-32C, rotated and shifted by a constant."""
    crc = np.full(len(data), 0xFFFFFFFF, np.uint32)
    for column in data.T:
        crc = _CRC_TABLE[(crc ^ column) & np.uint32(0xFF)] ^ (crc >> np.uint32(8))
    crc = ~crc
    return ((crc >> np.uint32(15)) | (crc << np.uint32(17))) + np.uint32(0xA282EAD8)


def first_line(error: Exception) -> str:
    """Returns the message of an error as one line of bounded length, without TensorFlow's node names."""
    message = getattr(error, "message", None) or str(error)
    message = re.sub(r"\{\{.*?\}\}|\[Op:.*", "", message).strip() or type(error).__name__
    return one_line(message.splitlines()[0], 300)
