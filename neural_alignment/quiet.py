"""Import of TensorFlow without the lines that it prints before its log level takes effect."""

from __future__ import annotations

import contextlib
import gc
import os
import subprocess
import sys


def import_tensorflow() -> None:
    """Imports TensorFlow without its output to standard error, which is shown if the import fails.

    The garbage collector pauses meanwhile and ignores the imported objects later, because they stay.

    No setting of TensorFlow suppresses these lines, which come from absl and oneDNN, because they are printed before
    its logger starts. With `TF_CPP_MIN_LOG_LEVEL=0` they are shown.
    """
    if "tensorflow" in sys.modules or os.environ.get("TF_CPP_MIN_LOG_LEVEL") == "0":
        return
    with _standard_error_held_back(), _garbage_collection_paused():
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


_HOLDER = "import sys; lines = sys.stdin.buffer.read(); sys.stderr.buffer.write(lines)"


@contextlib.contextmanager
def _standard_error_held_back():
    """Discards the output of this process to standard error, including that of C++ code, unless the import fails.

    A second process reads it meanwhile, and prints it unless it is killed. This also works if C++ code aborts this
    process: then the reason is only in this output.
    """
    if sys.stderr is not None:
        sys.stderr.flush()
    try:
        kept = os.dup(2)
    except OSError:  # Standard error is closed.
        yield
        return
    # Ctrl-C must not reach the second process, hence the new session.
    holder = subprocess.Popen([sys.executable, "-ISc", _HOLDER], stdin=subprocess.PIPE, start_new_session=True)
    try:
        os.dup2(holder.stdin.fileno(), 2)
        yield
        holder.kill()
    except KeyboardInterrupt:
        holder.kill()
        raise
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        holder.stdin.close()
        holder.wait()
