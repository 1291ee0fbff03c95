"""One process at a time in a run directory."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

from neural_alignment.errors import RunError
from neural_alignment.training.files import is_local, write_whole

try:
    import fcntl
except ImportError:  # Not a POSIX system: a lease serves there too.
    fcntl = None

NAME = "lock.json"
"""The file that is there while a process holds the directory."""

SETTLE = 2.0
"""Seconds between two looks at a lease of another process."""

BEAT = 15.0
"""Seconds between two signs of life of who holds a lease."""

STALE = 90.0
"""Seconds without a sign of life after which a lease may be taken over."""

_log = logging.getLogger(__name__)


class Lost(RunError):  # noqa: N818 - what happened to the run, not a fault of the program
    """Another process has taken the directory over."""


@contextlib.contextmanager
def held(directory: str) -> Iterator[Callable[[], None]]:
    """Holds a run directory that exists; yields what checks that it is still held.

    On a local file system the kernel holds the lock, and lets go of it when the process ends, however it ends. On
    others, such as gs://, a lease does: a file with the holder's name and the time of its last sign of life, refused
    while that is renewed and taken over when it is older than `STALE`: who comes back soon after it was killed waits.
    The clocks of the machines must agree to well within that time.

    Raises:
        RunError: if another process holds it; the message names its pid and host.
    """
    path = tf.io.gfile.join(directory, NAME)
    if is_local(directory) and fcntl is not None:
        with _locked(path):
            yield lambda: None
        return
    lease = Lease(path)
    lease.acquire()
    with lease.beating():
        yield lease.check


def owner() -> dict[str, Any]:
    """Returns who this process is."""
    return {"pid": os.getpid(), "host": socket.gethostname()}


def _taken(path: str, holder: dict[str, Any]) -> str:
    who = f"process {holder['pid']} on {holder['host']}" if {"pid", "host"} <= holder.keys() else "another process"
    return f"{os.path.dirname(path)}: is in use by {who}"


@contextlib.contextmanager
def _locked(path: str) -> Iterator[None]:
    """Holds an exclusive lock on the file, and removes it afterwards."""
    try:
        descriptor = _open_locked(path)
    except OSError as error:
        raise RunError(f"{path}: cannot be locked: {error.strerror}") from None
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, json.dumps(owner()).encode())
        yield
    finally:
        with contextlib.suppress(OSError):
            os.remove(path)  # While it is locked: who opened it meanwhile sees that it is gone, and makes another.
        os.close(descriptor)


def _open_locked(path: str) -> int:
    """Returns the descriptor of the file, locked; it is the one that stands at `path`."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        with contextlib.ExitStack() as unless_held:
            unless_held.callback(os.close, descriptor)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                taken = _taken(path, _parsed(os.read(descriptor, 4096)))
                raise RunError(f"{taken}; wait until it has ended, or choose another --run-dir") from None
            # Else the last holder has removed it between the two calls above.
            if os.path.exists(path) and os.path.samestat(os.fstat(descriptor), os.stat(path)):
                unless_held.pop_all()
                return descriptor


def _parsed(content: str | bytes) -> dict[str, Any]:
    """Returns what a lock file says; nothing where it is not whole."""
    try:
        holder = json.loads(content)
    except ValueError:
        return {}
    return holder if isinstance(holder, dict) else {}


class Lease:
    """A file that says who holds a directory, and when it last gave a sign of life.

    Args:
        path: the file.
        now: the time, seconds since 1970.
        settle: waits `SETTLE` seconds, within which a write of another process at the same moment would be seen.
    """

    def __init__(
        self,
        path: str,
        now: Callable[[], float] = time.time,
        settle: Callable[[], None] = lambda: time.sleep(SETTLE),
    ):
        self._path = path
        self._now = now
        self._settle = settle
        self._token = uuid.uuid4().hex
        self._lost_to: dict[str, Any] | None = None

    def acquire(self) -> None:
        """Takes the lease; of a holder that may be gone it waits for a sign of life, until its lease is stale.

        Raises:
            RunError: if another process holds it and gives a sign of life.
        """
        self._await_stale()
        self._write()
        # There is no test-and-set: of two that write at the same moment the one that wrote last is the holder.
        self._settle()
        self.beat()
        self.check()

    def _await_stale(self) -> None:
        holder = self._read()
        left = STALE - self._age(holder)
        if left > 0:
            _log.warning("%s; taken over in %.0f s if that gives no sign of life", _taken(self._path, holder), left)
        while left > 0:
            self._settle()
            left -= SETTLE
            later = self._read()
            if not later:
                return
            if later != holder:
                raise RunError(f"{_taken(self._path, later)}; wait until it has ended, or choose another --run-dir")

    def _age(self, holder: dict[str, Any]) -> float:
        """Returns how old the last sign of life is; a time that lies as far ahead is none either."""
        sign = holder.get("time")
        return abs(self._now() - sign) if isinstance(sign, (int, float)) else STALE

    def beat(self) -> None:
        """Gives a sign of life, unless another process has taken the lease."""
        holder = self._read()
        if holder.get("token") == self._token or not holder:
            self._write()
        else:
            self._lost_to = holder

    def check(self) -> None:
        """Makes sure that the lease is held.

        Raises:
            Lost: if another process has taken it, after this one had given no sign of life for too long.
        """
        if self._lost_to is not None:
            raise Lost(f"{_taken(self._path, self._lost_to)}, which took it over; this process writes nothing more")

    def release(self) -> None:
        """Gives the lease back, if it is held."""
        with contextlib.suppress(tf.errors.OpError):
            if self._read().get("token") == self._token:
                tf.io.gfile.remove(self._path)

    @contextlib.contextmanager
    def beating(self) -> Iterator[None]:
        """Gives signs of life from a thread while entered, then releases the lease."""
        ended = threading.Event()

        def beat():
            while not ended.wait(BEAT):
                # A file system that fails for a while is no reason to end; the lease grows stale if it goes on.
                with contextlib.suppress(tf.errors.OpError):
                    self.beat()

        thread = threading.Thread(target=beat, name="lease", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            self.release()

    def _read(self) -> dict[str, Any]:
        try:
            with tf.io.gfile.GFile(self._path, "r") as file:
                return _parsed(file.read())
        except tf.errors.NotFoundError:
            return {}

    def _write(self) -> None:
        write_whole(self._path, json.dumps({**owner(), "time": self._now(), "token": self._token}))
