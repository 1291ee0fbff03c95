"""Signals that end a run in order."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupted(BaseException):
    """A signal asked the run to end; passes through what catches `Exception`, as tracing does."""


class Stop:
    """Notes SIGTERM and SIGINT while it is entered, and raises `Interrupted` where that is safe.

    That is inside `safe`, where nothing is half done in Python: a step of TensorFlow is over when a handler runs. A
    second signal ends the process at once, whatever it is doing: files are written as a whole or not at all.
    Outside the main thread, which alone may have handlers, it does nothing.

    Args:
        raises: False only notes the signal: several workers have to stop at the same step.
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
        """Puts the earlier handlers back."""
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    @contextlib.contextmanager
    def safe(self) -> Iterator[None]:
        """Raises `Interrupted` at a signal that comes within, or that came before.

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
            # Noted above too: Python swallows what is raised while it collects garbage.
            raise Interrupted
