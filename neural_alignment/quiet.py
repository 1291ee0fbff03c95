"""Import of TensorFlow without the lines that it prints before its log level takes effect."""

from __future__ import annotations

import contextlib
import os
import sys


def import_tensorflow() -> None:
    """Imports TensorFlow without its output to standard error; exceptions are raised as usual.

    No setting of TensorFlow suppresses these lines, which come from absl and oneDNN, because they are printed before
    its logger starts. With `TF_CPP_MIN_LOG_LEVEL=0` they are shown.
    """
    if "tensorflow" in sys.modules or os.environ.get("TF_CPP_MIN_LOG_LEVEL") == "0":
        return
    with _standard_error_dropped():
        import tensorflow  # noqa: F401


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
