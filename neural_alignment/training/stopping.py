"""Handles the signals after which a run saves its state and ends."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Interrupted(BaseException):
    """A signal has requested the end of the run. A `BaseException`, because tracing catches `Exception`."""


class Stop:
    """Records SIGTERM, SIGINT and SIGHUP within its context, and raises `Interrupted` inside `safe`.

    `safe` contains only code that may be interrupted, such as TensorFlow steps, which end before a handler runs. A
    second signal ends the process immediately, which is harmless because files are written atomically. Only SIGHUP is
    ignored after the first signal, because a run may get two when its terminal is closed. A process that ignores SIGHUP
    from the start, such as one under `nohup`, continues to ignore it. Outside the main thread `Stop` does nothing,
    because only the main thread can have signal handlers.

    Args:
        raises: whether `safe` raises `Interrupted`. False with several workers, which must stop at the same step; a
            signal is then only recorded.

    Attributes:
        signal: name of the received signal, such as "SIGTERM", or None.
    """

    def __init__(self, raises: bool = True):
        self.signal: str | None = None
        self._raises = raises
        self._safe = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        """Installs the handlers."""
        if threading.current_thread() is threading.main_thread():
            ignored = {signal.SIGHUP} if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else set()
            self._before = {each: signal.signal(each, self._handle) for each in SIGNALS if each not in ignored}
        return self

    def __exit__(self, *_: Any) -> None:
        """Restores the earlier handlers."""
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    @contextlib.contextmanager
    def safe(self) -> Iterator[None]:
        """Raises `Interrupted` at a signal within the context, or at its beginning if a signal came earlier.

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
            # When a terminal is closed, its shell sends SIGHUP to all jobs, and the system to the foreground job.
            signal.signal(each, signal.SIG_IGN if each == signal.SIGHUP else signal.SIG_DFL)
        if self._safe and self._raises:
            # Also recorded above: Python swallows exceptions raised during garbage collection.
            raise Interrupted
