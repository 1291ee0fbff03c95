"""Event files, which TensorBoard reads.

An event contains all values of a step, which costs a small part of an operation of `tf.summary` per value. Event files
are in the run directory itself, because TensorBoard shows the name of their folder as the name of the run.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import time
from collections.abc import Iterable, Iterator
from typing import Any

import tensorflow as tf
from tensorboard.plugins.scalar import metadata as scalar_metadata

from neural_alignment import files

Event, Summary = tf.compat.v1.Event, tf.compat.v1.Summary

PREFIX = "events.out.tfevents."
"""First part of the name of every event file."""

SUMMARY_OF_RUNS = ".hparams-"
"""Part of the names of files for the dashboard HPARAMS, which have no rows."""

_numbers = itertools.count()


class EventFile:
    """A new event file, created with its first event.

    Args:
        folder: its folder, which exists.
        suffix: end of its name.
    """

    def __init__(self, folder: str, suffix: str = ""):
        # TensorBoard reads the files of a folder in the order of their names.
        name = f"{PREFIX}{time.time():.6f}.{socket.gethostname()}.{os.getpid()}.{next(_numbers):06d}{suffix}"
        self._path = tf.io.gfile.join(folder, name)
        self._writer: tf.io.TFRecordWriter | None = None

    def write(self, step: int, values: Iterable[Any]) -> None:
        """Writes an event.

        Args:
            step: its global step.
            values: its values, `tf.compat.v1.Summary.Value`.

        Raises:
            tf.errors.OpError: if the file system refuses.
        """
        now = time.time()
        if self._writer is None:
            self._writer = tf.io.TFRecordWriter(self._path)
            self._writer.write(Event(wall_time=now, file_version="brain.Event:2").SerializeToString())
        self._writer.write(Event(wall_time=now, step=step, summary=Summary(value=values)).SerializeToString())
        self._writer.flush()

    def close(self) -> None:
        """Closes the file."""
        if self._writer is not None:
            self._writer.close()


def names_in(folder: str) -> list[str]:
    """Returns the names of the event files in a folder."""
    names = tf.io.gfile.listdir(folder) if tf.io.gfile.isdir(folder) else []
    return sorted(name for name in names if name.startswith(PREFIX))


def cut(folder: str, step: int, aside: str | None = None) -> set[int]:
    """Removes the events after a step, and those from the first incomplete or damaged one on, from the rows of a run.

    Otherwise TensorBoard would show some points of a resumed run twice. Its reader does not drop the earlier points,
    although the format has a mark for a restart.

    Args:
        folder: the folder of the event files.
        step: the last step to keep.
        aside: a folder that gets copies of the files that are changed.

    Returns:
        The steps of the events that are left.
    """
    found: set[int] = set()
    for name in names_in(folder):
        path = tf.io.gfile.join(folder, name)
        if SUMMARY_OF_RUNS in name or (files.is_local(path) and not os.path.isfile(os.path.realpath(path))):
            continue
        end = 0
        for event, at in _events(path):
            if event.step > step:
                break
            end = at
            if event.HasField("summary"):
                found.add(event.step)
        if end < tf.io.gfile.stat(path).length:
            _shorten(path, end, aside and tf.io.gfile.join(aside, name))
    return found


def _events(path: str) -> Iterator[tuple[Any, int]]:
    """Yields each event before the first incomplete or damaged one, and the end of its record in the file."""
    position = 0
    with contextlib.suppress(tf.errors.DataLossError):
        for record in tf.data.TFRecordDataset(path).as_numpy_iterator():
            position += len(record) + _FRAME
            yield Event.FromString(record), position


_FRAME = 16
"""Bytes that a TFRecord has in addition to its content: its length and two checksums."""


def _shorten(path: str, size: int, copy: str | None) -> None:
    """Removes the end of a file, or the file if nothing is left; `copy` is the path of a copy of the whole file."""
    if copy is not None and not tf.io.gfile.exists(copy):
        files.copy(path, copy)
    if not size:
        files.remove(path)
        return
    with tf.io.gfile.GFile(path, "rb") as file:
        content = file.read(size)
    files.write_whole(path, content)


def scalar(tag: str, value: float) -> Any:
    """Returns a scalar, `tf.compat.v1.Summary.Value`."""
    return Summary.Value(tag=tag, tensor=tf.make_tensor_proto(value, tf.float32), metadata=_SCALAR)


def converted(metadata: Any) -> Any:
    """Returns metadata of a summary in the class of TensorFlow instead of that of TensorBoard."""
    return tf.compat.v1.SummaryMetadata.FromString(metadata.SerializeToString())


_SCALAR = converted(scalar_metadata.create_summary_metadata("", ""))
