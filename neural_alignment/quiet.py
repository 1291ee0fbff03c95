"""Importing TensorFlow without the lines that it prints before its log level takes effect."""

from __future__ import annotations

import contextlib
import os
import sys


def import_tensorflow() -> None:
    """Imports TensorFlow without its output to the standard error; exceptions are raised as usual.

    The lines of its start (absl, oneDNN) precede its logger, so that no setting stops them. With
    `TF_CPP_MIN_LOG_LEVEL=0` they are shown.
    """
    if "tensorflow" in sys.modules or os.environ.get("TF_CPP_MIN_LOG_LEVEL") == "0":
        return
    with _standard_error_dropped():
        import tensorflow  # noqa: F401


@contextlib.contextmanager
def _standard_error_dropped():
    """Sends to nowhere what this process writes to its standard error, C++ included."""
    if sys.stderr is not None:
        sys.stderr.flush()
    try:
        kept = os.dup(2)
    except OSError:  # It is closed.
        yield
        return
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
