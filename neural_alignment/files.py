"""Writes files atomically, checks and removes them, and confines names to a folder."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import shutil
import unicodedata
import uuid
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from neural_alignment.errors import RunError, Stopped, one_line
from neural_alignment.paths import is_local, problem_of_file

PARTIAL = ".partial"
"""Suffix of a file that is not yet complete."""

CHECKSUM = "checksum"
"""Key of a JSON object that holds the checksum of its other keys."""

_FULL = {code: os.strerror(code) for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)}
"""Error number of a full disk or an exceeded quota -> message of the operating system."""


def write_whole(path: str, content: str | bytes, shared: bool = False) -> None:
    """Replaces a file atomically: a reader sees the old file or the new one, even after a power loss.

    On a local file system, the content is flushed to the disk before the file is replaced. The space of `reserve` is
    used, unless the file is shared.

    Args:
        path: the file.
        content: its new content.
        shared: whether several processes may write the file at the same time. Each of them then writes a separate
            partial file, and the file has the content of the process that finishes last.

    Raises:
        tf.errors.OpError: if the file system refuses; no partial file remains.
    """
    partial = f"{path}.{uuid.uuid4().hex[:8]}{PARTIAL}" if shared else path + PARTIAL
    content = content.encode() if isinstance(content, str) else content
    try:
        if is_local(path):
            _write_local(partial, content)
        else:
            with tf.io.gfile.GFile(partial, "wb") as file:
                file.write(content)
        move(partial, path)
    except tf.errors.OpError:
        with contextlib.suppress(tf.errors.OpError):
            tf.io.gfile.remove(partial)
        raise


def reserve(path: str) -> None:
    """Reserves disk space, so that the next `write_whole` of up to 4,096 bytes succeeds on a full disk.

    The partial file holds the space. A file system that copies on write, such as btrfs or ZFS, gives no guarantee.
    Does nothing on remote file systems.

    Raises:
        tf.errors.OpError: if the file system refuses.
    """
    if is_local(path):
        _write_local(path + PARTIAL, b" " * 4096)


def _write_local(path: str, content: bytes) -> None:
    """Writes a file and waits until it is on the disk.

    Existing blocks of the file are overwritten rather than released, because another process could take them.
    """
    try:
        if os.path.islink(path):
            os.remove(path)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
        try:
            left = memoryview(content)
            while left:
                left = left[os.write(descriptor, left) :]
            os.ftruncate(descriptor, len(content))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise _as_tensorflow_error(path, error) from None


def _as_tensorflow_error(path: str, error: OSError) -> tf.errors.OpError:
    kind = _ERRORS.get(error.errno, tf.errors.UnknownError)
    return kind(None, None, f"{path}; {error.strerror}")


_ERRORS = {
    errno.ENOENT: tf.errors.NotFoundError,
    errno.ENOTDIR: tf.errors.FailedPreconditionError,
    errno.EISDIR: tf.errors.FailedPreconditionError,
    errno.EACCES: tf.errors.PermissionDeniedError,
    errno.EPERM: tf.errors.PermissionDeniedError,
    errno.EROFS: tf.errors.PermissionDeniedError,
    **dict.fromkeys(_FULL, tf.errors.ResourceExhaustedError),
}
"""TensorFlow's classes for the errors of the operating system."""


def move(source: str, target: str) -> None:
    """Replaces `target` by `source` atomically; on a local file system also durably.

    Raises:
        tf.errors.OpError: if the file system refuses.
    """
    tf.io.gfile.rename(source, target, overwrite=True)
    sync(os.path.dirname(target) or ".")


def sync(path: str) -> None:
    """Flushes a local file, or the entries of a local folder, to the disk.

    Does nothing on remote file systems, which write a file when it is closed. Errors for a folder are ignored, because
    not every file system supports this.

    Raises:
        tf.errors.OpError: if a file cannot be written to the disk.
    """
    if not is_local(path):
        return
    is_folder = os.path.isdir(path)
    try:
        descriptor = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if not is_folder:
            raise _as_tensorflow_error(path, error) from None


# Checksums.


def digest(content: bytes) -> str:
    """Returns the SHA-256 checksum of some bytes, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def digest_of(path: str) -> str | None:
    """Returns the SHA-256 checksum of a file, in hexadecimal, or None if the file cannot be read."""
    total = hashlib.sha256()
    try:
        with tf.io.gfile.GFile(path, "rb") as file:
            while part := file.read(1 << 20):
                total.update(part)
    except tf.errors.OpError:
        return None
    return total.hexdigest()


def plain_digest(content: Any) -> str:
    """Returns the SHA-256 checksum of plain data, in hexadecimal. The order of keys has no effect."""
    return digest(json.dumps(content, sort_keys=True).encode())


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """Returns plain data with the key `checksum`, which contains the checksum of the other keys."""
    return {**content, CHECKSUM: plain_digest(content)[:16]}


def unsealed(content: Any) -> dict[str, Any] | None:
    """Returns the data without the checksum of `sealed`, or None if they do not match it or are not a mapping.

    Data without a checksum, as in committed runs of earlier versions, are returned unchanged.
    """
    if not isinstance(content, dict):
        return None
    plain = {key: value for key, value in content.items() if key != CHECKSUM}
    return plain if content.get(CHECKSUM) in (None, sealed(plain)[CHECKSUM]) else None


def read_arrays(path: str) -> dict[str, np.ndarray]:
    """Returns the arrays of an .npz file by name, each checked against its checksum in the file.

    Raises:
        ValueError: if the file is missing or damaged.
    """
    if problem := problem_of_file(path):
        raise ValueError(problem)
    try:
        with tf.io.gfile.GFile(path, "rb") as file:
            content = io.BytesIO(file.read())
        check_zip(content)
        content.seek(0)
        with np.load(content, allow_pickle=False) as arrays:
            return dict(arrays)
    except Exception as error:  # Damaged bytes cause errors of many classes in zipfile and NumPy.
        raise ValueError(one_line(error, 150)) from None


_ZIP_END = 22
"""Bytes of the record at the end of a zip file that has no comment; bytes 10 and 11 are the number of parts."""


def check_zip(file: Any) -> None:
    """Checks that a zip file is complete and that each part matches its checksum.

    Args:
        file: the file, opened for reading bytes.

    Raises:
        ValueError: if it is damaged.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()
            count = len(archive.infolist())
        file.seek(-_ZIP_END, os.SEEK_END)
        end = file.read(_ZIP_END)
    except Exception as error:  # Damaged bytes cause errors of many classes in zipfile.
        raise ValueError(one_line(error, 150)) from None
    if damaged:
        raise ValueError(f"wrong checksum of its part {damaged}")
    # If the length of the list of parts is damaged, `zipfile` misses some parts.
    if end.startswith(b"PK\5\6") and int.from_bytes(end[10:12], "little") != count:
        raise ValueError("some of its parts are not in its list of parts")


def copy(source: str, target: str) -> None:
    """Copies a file, or a folder with its content. Does nothing if `source` does not exist.

    Raises:
        tf.errors.OpError: if the file system refuses.
    """
    if tf.io.gfile.isdir(source):
        tf.io.gfile.makedirs(target)
        for entry in tf.io.gfile.listdir(source):
            entry = entry.rstrip("/")
            copy(tf.io.gfile.join(source, entry), tf.io.gfile.join(target, entry))
    elif tf.io.gfile.exists(source):
        tf.io.gfile.copy(source, target, overwrite=True)


def remove(path: str) -> None:
    """Removes a file, or a folder with its content, if it exists. The target of a symbolic link stays."""
    if is_local(path):
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)  # Unlike TensorFlow's function, it does not follow links.
        elif os.path.lexists(path):
            os.remove(path)
    elif tf.io.gfile.isdir(path):
        tf.io.gfile.rmtree(path)
    elif tf.io.gfile.exists(path):
        tf.io.gfile.remove(path)


def confined(root: str, name: str) -> str:
    """Returns the path of `name` below `root`, for a name that comes from a file.

    Args:
        root: the folder, local or remote (gs://).
        name: one or more parts, separated by slashes.

    Raises:
        RunError: if the name leads out of the folder, by `..`, an absolute path or a symbolic link, or contains
            characters that no file name should contain.
    """
    parts = name.split("/")
    plain = not any(unicodedata.category(letter) in ("Cc", "Cf", "Cs") for letter in name) and "\\" not in name
    if not plain or is_local(name) is False or any(part in ("", ".", "..") for part in parts):
        raise RunError(
            f"{name!r}: must be the name of a run below {root}: parts separated by single slashes, except '.' and "
            "'..', without backslashes and control characters"
        )
    path = tf.io.gfile.join(root, *parts)
    if is_local(path):
        folder = os.path.realpath(root)
        if os.path.commonpath([folder, os.path.realpath(path)]) != folder:
            raise RunError(f"{path}: leads out of {root} by a symbolic link; remove the link, or choose another name")
    return path


@contextlib.contextmanager
def full_disk_reported(fallback: str, remedy: str = "continue with --resume") -> Iterator[None]:
    """Turns the error of a full disk into one line.

    Args:
        fallback: the path to name if the error does not name a file.
        remedy: how to continue when there is space again.

    Raises:
        Stopped: if the disk, or a quota, is full.
    """
    try:
        yield
    except (OSError, tf.errors.OpError) as error:
        full = full_disk(error, fallback)
        if full is None:
            raise
        reason = f"{full}; everything saved before is complete: free some space"
        raise Stopped(reason, remedy, "failed") from None


def full_disk(error: OSError | tf.errors.OpError, fallback: str = "") -> str | None:
    """Returns the file and the message of the operating system if an error means a full disk, otherwise None.

    Args:
        error: the error.
        fallback: the path to name if the error does not name a file.
    """
    if isinstance(error, OSError):
        problem = _FULL.get(error.errno)
    else:
        problem = next((words for words in _FULL.values() if words in error.message), None)
    return None if problem is None else f"{_file_of(error, problem) or fallback}: {problem}"


def _file_of(error: OSError | tf.errors.OpError, problem: str) -> str | None:
    """Returns the file that an error names: TensorFlow writes `{{node}} file; problem`."""
    if isinstance(error, OSError):
        return error.filename
    return error.message.partition(f"; {problem}")[0].rpartition("}} ")[2].strip() or None
