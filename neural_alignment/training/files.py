"""Writing files."""

from __future__ import annotations

import tensorflow as tf


def write_whole(path: str, text: str) -> None:
    """Writes a file as a whole or not at all: who reads it meanwhile sees the one before.

    Raises:
        tf.errors.OpError: if the file system refuses.
    """
    partial = f"{path}.partial"
    with tf.io.gfile.GFile(partial, "w") as file:
        file.write(text)
    tf.io.gfile.rename(partial, path, overwrite=True)
