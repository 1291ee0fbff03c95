"""Signals that end a run after its state is saved."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupted(BaseException):
    """A signal asked the run to end. A `BaseException`, because tracing catches `Exception`."""


class Stop:
    """Records SIGTERM and SIGINT within its context, and raises `Interrupted` inside `safe`.

    Inside `safe` no Python code is left half done: a step of TensorFlow has ended when a handler runs. A second signal
    ends the process immediately; this is harmless because files are written atomically. Outside the main thread it does
    nothing, because only the main thread can have signal handlers.

    Args:
        raises: False only records the signal: several workers must stop at the same step.
    """

    def __init__(self, raises: bool = True):
        self.signal: str | None = None
        self._raises = raises
        self._safe = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        """Installs the handlers."""
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(self, *_: Any) -> None:
        """Restores the earlier handlers."""
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    @contextlib.contextmanager
    def safe(self) -> Iterator[None]:
        """Raises `Interrupted` at a signal within the context, or at once if a signal came earlier.

        Raises:
            Interrupted: at a signal.
        """
        self._safe = True
        try:
            if self.signal and self._raises:
                raise Interrupted
            yield
        finally:
            self._safe = False

    def _handle(self, number: int, frame: Any) -> None:
        del frame
        self.signal = signal.Signals(number).name
        for each in SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        if self._safe and self._raises:
            # Also recorded above: Python swallows exceptions raised during garbage collection.
            raise Interrupted
