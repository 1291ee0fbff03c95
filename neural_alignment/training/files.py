"""Writing and removing files, and keeping names inside a folder."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import unicodedata
from collections.abc import Iterator

import tensorflow as tf

from neural_alignment.errors import RunError, Stopped

PARTIAL = ".partial"
"""How the name of a file ends that is not yet whole."""

_FULL = {code: os.strerror(code) for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)}


def is_local(path: str) -> bool:
    """Whether a path is on a file system of the operating system, not on one of TensorFlow's such as gs://."""
    return "://" not in path


def write_whole(path: str, content: str | bytes) -> None:
    """Writes a file as a whole or not at all: who reads it meanwhile sees the one before.

    Raises:
        tf.errors.OpError: if the file system refuses; nothing is left behind.
    """
    partial = path + PARTIAL
    try:
        with tf.io.gfile.GFile(partial, "w" if isinstance(content, str) else "wb") as file:
            file.write(content)
        tf.io.gfile.rename(partial, path, overwrite=True)
    except tf.errors.OpError:
        with contextlib.suppress(tf.errors.OpError):
            tf.io.gfile.remove(partial)
        raise


def copy(source: str, target: str) -> None:
    """Copies a file, or a folder with all in it; nothing where there is none.

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
    """Removes a file or a folder with all in it; of a symbolic link the link alone, wherever it stands."""
    if is_local(path):
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)  # Does not follow links; TensorFlow's rmtree does.
        elif os.path.lexists(path):
            os.remove(path)
    elif tf.io.gfile.isdir(path):
        tf.io.gfile.rmtree(path)
    elif tf.io.gfile.exists(path):
        tf.io.gfile.remove(path)


def confined(root: str, name: str) -> str:
    """Returns the path of `name` below `root`, for a name that comes from a file.

    Args:
        root: the folder; may be gs://.
        name: one or more parts, separated by slashes.

    Raises:
        RunError: if the name leads anywhere else, by `..`, an absolute path or a symbolic link, or holds characters
            that no file name should.
    """
    parts = name.split("/")
    plain = not any(unicodedata.category(letter) in ("Cc", "Cf", "Cs") for letter in name) and "\\" not in name
    if not plain or is_local(name) is False or any(part in ("", ".", "..") for part in parts):
        raise RunError(
            f"{name!r}: is no name of a run below {root}; allowed: parts separated by single slashes, none of them "
            "'.' or '..', no backslash and no control character"
        )
    path = tf.io.gfile.join(root, *parts)
    if is_local(path):
        folder = os.path.realpath(root)
        if os.path.commonpath([folder, os.path.realpath(path)]) != folder:
            raise RunError(f"{path}: leads out of {root} by a symbolic link; remove the link, or choose another name")
    return path


@contextlib.contextmanager
def full_disk_told(fallback: str) -> Iterator[None]:
    """Turns the error of a full disk, from wherever it comes, into one line.

    Args:
        fallback: path to name where the error does not say which file it was.

    Raises:
        Stopped: if the disk, or a quota, is full.
    """
    try:
        yield
    except (OSError, tf.errors.OpError) as error:
        problem = _full(error)
        if problem is None:
            raise
        raise Stopped(
            f"{_file_of(error, problem) or fallback}: {problem}; what was saved before is whole: free some space, "
            "then go on with --resume",
            "failed",
        ) from None


def _full(error: OSError | tf.errors.OpError) -> str | None:
    """Returns what the system says where an error means a full disk; TensorFlow's carry its words alone."""
    if isinstance(error, OSError):
        return _FULL.get(error.errno)
    return next((words for words in _FULL.values() if words in error.message), None)


def _file_of(error: OSError | tf.errors.OpError, problem: str) -> str | None:
    """Returns the file that an error names: TensorFlow writes `{{node}} file; problem`."""
    if isinstance(error, OSError):
        return error.filename
    return error.message.partition(f"; {problem}")[0].rpartition("}} ")[2].strip() or None
