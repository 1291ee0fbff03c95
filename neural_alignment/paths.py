"""Paths given by the user, on the command line or in a file: checked and expanded before anything uses them."""

from __future__ import annotations

import os
import stat
import unicodedata
from collections.abc import Sequence

from neural_alignment.errors import ArgumentError, Words, one_line

LONGEST_NAME = 255
"""Maximum number of bytes in the name of a file or directory on common file systems."""

LONGEST_PATH = 3800
"""Maximum number of bytes in a path. Linux allows 4,095; the rest is for the names of files inside a directory."""


def is_local(path: str) -> bool:
    """Whether a path is on a file system of the operating system, not on a remote one such as gs://."""
    return "://" not in path


def checked(path: str) -> str:
    """Returns a path with `~` expanded to the home directory.

    Raises:
        ValueError: if it cannot be the path of a file or directory; the message does not name the option or key.
    """
    if not path.strip():
        raise ArgumentError("", "must be a path", Words(f"{path!r}, which is empty"))
    if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in path):
        raise ArgumentError("", "must be a path without control characters or line breaks", Words(_short(path)))
    if not is_local(path):
        return path
    expanded = os.path.expanduser(path)
    if path.startswith("~") and expanded == path:
        user = path[1:].partition("/")[0]
        found = Words(f"{_short(path)}, but there is no user {user!r}: write ./{_short(path)}")
        raise ArgumentError("", "must be a path", found)
    if len(os.fsencode(expanded)) > LONGEST_PATH or any(
        len(os.fsencode(name)) > LONGEST_NAME for name in expanded.split("/")
    ):
        requirement = f"must be a path of at most {LONGEST_PATH} bytes, each name in it of at most {LONGEST_NAME}"
        raise ArgumentError("", requirement, Words(f"{_short(path)} of {len(os.fsencode(expanded))} bytes"))
    return expanded


def problem_of_file(path: str) -> str | None:
    """Returns why a local path cannot be read as a file, or None if it can.

    A FIFO or a device is refused because reading it may block or never end. A path that is not local is not checked.
    """
    if not is_local(path):
        return None
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return "no such file"
    except (OSError, ValueError) as error:
        return f"cannot be read: {getattr(error, 'strerror', None) or error}"
    if stat.S_ISDIR(mode):
        return "is a directory"
    if not stat.S_ISREG(mode):
        return "is not a regular file but a FIFO, a socket or a device"
    return None if os.access(path, os.R_OK) else "cannot be read: permission denied"


def problem_of_any_file(path: str) -> str | None:
    """Returns why a path cannot be read as a file, or None, like `problem_of_file`. Remote paths are looked up too."""
    if is_local(path):
        return problem_of_file(path)
    import tensorflow as tf  # Imported here, because the command line imports this module before it shows its help.

    try:
        return None if tf.io.gfile.exists(path) else "no such file"
    except tf.errors.OpError as error:
        return f"cannot be read: {one_line(error)}"


def checked_file(path: str) -> str:
    """Returns the path of a file to read, as `checked` does.

    Raises:
        ValueError: as for `checked`; also if there is no such file, or it is not a regular one.
    """
    path = checked(path)
    if problem := problem_of_file(path):
        raise ArgumentError("", "must be a file that can be read", Words(f"{path}: {problem}"))
    return path


def checked_directory(path: str) -> str:
    """Returns the path of a directory, which need not exist, as `checked` does.

    Raises:
        ValueError: as for `checked`; also if the path or one of its parents exists and is not a directory.
    """
    path = checked(path)
    if problem := problem_of_directory(path):
        found = f"{path}, which is a file" if os.path.isfile(path) else f"{path}: {problem}"
        raise ArgumentError("", "must be a directory", Words(found))
    return path


def checked_prefix(path: str, endings: Sequence[str], adds_ending: bool = False) -> str:
    """Returns the common prefix of the paths of several files to write, as `checked` does.

    Args:
        path: the path of the files without their endings; only a name for files in the current directory.
        endings: the endings of the files, such as ".csv".
        adds_ending: whether the path may itself end with one of them.

    Raises:
        ValueError: as for `checked`; also if the path does not end with a name without an ending, or one of the files
            cannot be written because something else has its name.
    """
    path = checked(path)
    folder, _, name = path.rpartition("/")
    if name in ("", ".", "..") or (name.endswith(tuple(endings)) and not adds_ending):
        raise ArgumentError("", "must end with the name of the files, without their ending", Words(_short(path)))
    if folder:
        checked_directory(folder)
    if is_local(path) and os.path.isdir(path):
        requirement = "must end with the name of the files, without their ending"
        raise ArgumentError("", requirement, Words(f"{path}, which is a directory"))
    for ending in endings:
        checked(f"{path}{ending}.01234567.partial")  # As long as the name of the file while it is being written.
        if is_local(path) and os.path.lexists(f"{path}{ending}") and not os.path.isfile(f"{path}{ending}"):
            found = Words(f"{path}{ending}, which exists and is not a file")
            raise ArgumentError("", "must be the name of files to write", found)
    return path


def checked_picture(path: str) -> str:
    """Returns the path of a picture to write, as `checked` does.

    Raises:
        ValueError: as for `checked`; also if it does not end with .png, or cannot be written.
    """
    if not checked(path).endswith(".png"):
        raise ArgumentError("", "must be the name of a picture, which ends with .png", Words(_short(path)))
    if path.rpartition("/")[2] == ".png":
        raise ArgumentError("", "must be the name of a picture, with a name before .png", Words(_short(path)))
    return f"{checked_prefix(path.removesuffix('.png'), ('.png',), adds_ending=True)}.png"


def problem_of_directory(path: str) -> str | None:
    """Returns why a local path cannot be a directory, or None if it is one or could be created."""
    if not is_local(path):
        return None
    while not os.path.lexists(path):
        parent = os.path.dirname(path.rstrip("/"))
        if parent in ("", path):
            return None
        path = parent
    return None if os.path.isdir(path) else f"{path} is not a directory"


def real(path: str) -> str:
    """Returns the canonical form of a path, so that two paths can be compared."""
    return os.path.realpath(path) if is_local(path) else path


def beside(path: str, other: str) -> str:
    """Returns the path `other`, which is written in the file `path` and relative to the directory of that file.

    Raises:
        ValueError: as for `checked`.
    """
    other = checked(other)
    if not is_local(other) or os.path.isabs(other):
        return other
    folder = path.rpartition("/")[0]
    return f"{folder}/{other}" if folder or path.startswith("/") else other


def _short(path: str) -> str:
    text = repr(path)
    return text if len(text) <= 60 else f"{text[:56]}...'"
