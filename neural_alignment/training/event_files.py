"""Event files, which TensorBoard reads.

An event contains all values of a step, which costs a small part of an operation of `tf.summary` per value. Event files
are in the run directory itself, because TensorBoard shows the name of their folder as the name of the run.
"""

from __future__ import annotations

import itertools
import os
import socket
import time
from collections.abc import Iterable
from typing import Any

import tensorflow as tf
from tensorboard.plugins.scalar import metadata as scalar_metadata

Event, Summary, SessionLog = tf.compat.v1.Event, tf.compat.v1.Summary, tf.compat.v1.SessionLog

PREFIX = "events.out.tfevents."
"""First part of the name of every event file."""

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

    def write(self, step: int, values: Iterable[Any] = (), **content: Any) -> None:
        """Writes an event.

        Args:
            step: its global step.
            values: its values, `tf.compat.v1.Summary.Value`.
            **content: other fields of the event.

        Raises:
            tf.errors.OpError: if the file system refuses.
        """
        now = time.time()
        if self._writer is None:
            self._writer = tf.io.TFRecordWriter(self._path)
            self._writer.write(Event(wall_time=now, file_version="brain.Event:2").SerializeToString())
        summary = {} if content else {"summary": Summary(value=values)}
        self._writer.write(Event(wall_time=now, step=step, **summary, **content).SerializeToString())
        self._writer.flush()

    def drop_from(self, step: int) -> None:
        """Writes an event with which TensorBoard drops all points at a step and later, as for a restarted run."""
        self.write(step, session_log=SessionLog(status=SessionLog.START))

    def close(self) -> None:
        """Closes the file."""
        if self._writer is not None:
            self._writer.close()


def names_in(folder: str) -> list[str]:
    """Returns the names of the event files in a folder."""
    names = tf.io.gfile.listdir(folder) if tf.io.gfile.isdir(folder) else []
    return sorted(name for name in names if name.startswith(PREFIX))


def drop_from(folder: str, step: int) -> None:
    """Makes TensorBoard drop the points of a run at a step and later, if the run has event files."""
    if names_in(folder):
        file = EventFile(folder, f".back-to-{step - 1}")
        file.drop_from(step)
        file.close()


def scalar(tag: str, value: float) -> Any:
    """Returns a scalar, `tf.compat.v1.Summary.Value`."""
    return Summary.Value(tag=tag, tensor=tf.make_tensor_proto(value, tf.float32), metadata=_SCALAR)


def converted(metadata: Any) -> Any:
    """Returns metadata of a summary in the class of TensorFlow instead of that of TensorBoard."""
    return tf.compat.v1.SummaryMetadata.FromString(metadata.SerializeToString())


_SCALAR = converted(scalar_metadata.create_summary_metadata("", ""))
