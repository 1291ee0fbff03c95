"""Import of TensorFlow without the lines that it prints before its log level takes effect."""

from __future__ import annotations

import contextlib
import gc
import os
import sys


def import_tensorflow() -> None:
    """Imports TensorFlow without its output to standard error; exceptions are raised as usual.

    The garbage collector pauses meanwhile and ignores the imported objects later, because they stay.

    No setting of TensorFlow suppresses these lines, which come from absl and oneDNN, because they are printed before
    its logger starts. With `TF_CPP_MIN_LOG_LEVEL=0` they are shown.
    """
    if "tensorflow" in sys.modules or os.environ.get("TF_CPP_MIN_LOG_LEVEL") == "0":
        return
    with _standard_error_dropped(), _garbage_collection_paused():
        import tensorflow  # noqa: F401


@contextlib.contextmanager
def _garbage_collection_paused():
    """Pauses the garbage collector, and exempts the objects that exist afterwards from later collections."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()


@contextlib.contextmanager
def _standard_error_dropped():
    """Discards the output of this process to standard error, including that of C++ code."""
    if sys.stderr is not None:
        sys.stderr.flush()
    try:
        kept = os.dup(2)
    except OSError:  # Standard error is closed.
        yield
        return
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
