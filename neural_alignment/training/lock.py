"""Locks a run directory, so that only one process at a time uses it."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import stat
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

from neural_alignment.errors import RunError
from neural_alignment.files import is_local, write_whole

try:
    import fcntl
except ImportError:  # Not a POSIX system. A lease is used instead.
    fcntl = None

NAME = "lock.json"
"""Name of the lock file, which exists while a process holds the directory."""

SETTLE = 2.0
"""Seconds between two reads of the lease of another process."""

BEAT = 15.0
"""Seconds between two heartbeats of the holder of a lease."""

STALE = 90.0
"""Seconds without a heartbeat after which a lease may be taken over."""

_REMEDY = "wait until it has ended, or choose another directory"
"""End of messages; the option for the directory has another name in each command."""

_log = logging.getLogger(__name__)


class Lost(RunError):  # noqa: N818 - a fact about the run
    """Another process has taken over the directory."""


@contextlib.contextmanager
def held(directory: str) -> Iterator[Callable[[], None]]:
    """Holds an existing run directory within a context.

    On a local file system the operating system holds the lock, and releases it when the process ends for any reason. On
    other file systems, such as gs://, a lease is used: a file with the name of the holder and the time of its last
    heartbeat. A lease whose heartbeat is older than `STALE` is taken over, so a process that restarts soon after a kill
    waits. The clocks of the machines must differ by much less than that time.

    Args:
        directory: the run directory.

    Yields:
        A function that raises `Lost` if this process no longer holds the directory.

    Raises:
        RunError: if another process holds the directory; the message names its pid and host.
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
    """Returns the pid and the host of this process."""
    return {"pid": os.getpid(), "host": socket.gethostname()}


def _in_use(path: str, holder: dict[str, Any]) -> str:
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
            # Before the lock is released: a process that has opened the file meanwhile notices that it is removed, and
            # creates another one.
            os.remove(path)
        os.close(descriptor)


def _open_locked(path: str) -> int:
    """Returns the locked descriptor of the file at `path`."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(os.close, descriptor)
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise RunError(f"{path}: is not a regular file but a FIFO, a socket or a device; remove it")
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                in_use = _in_use(path, _parsed(os.read(descriptor, 4096)))
                raise RunError(f"{in_use}; {_REMEDY}") from None
            # If this is false, the last holder has removed the file between the two calls above.
            if os.path.exists(path) and os.path.samestat(os.fstat(descriptor), os.stat(path)):
                on_failure.pop_all()
                return descriptor


def _parsed(content: str | bytes) -> dict[str, Any]:
    """Returns the content of a lock file; an empty dictionary if the file is incomplete."""
    try:
        holder = json.loads(content)
    except ValueError:
        return {}
    return holder if isinstance(holder, dict) else {}


class Lease:
    """A file with the holder of a directory and the time of its last heartbeat.

    Args:
        path: the file.
        now: returns the current time in seconds since 1970.
        settle: waits `SETTLE` seconds, after which a simultaneous write of another process can be read.
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
        """Takes the lease. If another process holds it, first waits until the lease is stale.

        Raises:
            RunError: if the other process sends a heartbeat meanwhile.
        """
        self._await_stale()
        self._write()
        # There is no test-and-set: of two simultaneous writers, the last one is the holder.
        self._settle()
        self.beat()
        self.check()

    def _await_stale(self) -> None:
        holder = self._read()
        left = STALE - self._age(holder)
        if left > 0:
            _log.warning("%s; taken over after %.0f s without a heartbeat", _in_use(self._path, holder), left)
        while left > 0:
            self._settle()
            left -= SETTLE
            later = self._read()
            if not later:
                return
            if later != holder:
                raise RunError(f"{_in_use(self._path, later)}; {_REMEDY}")

    def _age(self, holder: dict[str, Any]) -> float:
        """Returns the seconds between the last heartbeat and now, also if the heartbeat is in the future."""
        heartbeat = holder.get("time")
        return abs(self._now() - heartbeat) if isinstance(heartbeat, (int, float)) else STALE

    def beat(self) -> None:
        """Writes a heartbeat, unless another process has taken the lease."""
        holder = self._read()
        if holder.get("token") == self._token or not holder:
            self._write()
        else:
            self._lost_to = holder

    def check(self) -> None:
        """Checks that the lease is held.

        Raises:
            Lost: if another process has taken the lease because this process sent no heartbeat for too long.
        """
        if self._lost_to is not None:
            raise Lost(f"{_in_use(self._path, self._lost_to)}, which took it over; this process writes nothing more")

    def release(self) -> None:
        """Releases the lease, if it is held."""
        with contextlib.suppress(tf.errors.OpError):
            if self._read().get("token") == self._token:
                tf.io.gfile.remove(self._path)

    @contextlib.contextmanager
    def beating(self) -> Iterator[None]:
        """Writes heartbeats from a thread within the context, and releases the lease at its end."""
        ended = threading.Event()

        def beat():
            while not ended.wait(BEAT):
                # A temporary failure of the file system need not end the run. If it lasts, the lease becomes stale.
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
