"""Free ports for servers of tests. They are below those that the system gives to connections."""

import contextlib
import os
import socket

WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])
"""Number of the process that runs tests. Each process has its own range of ports."""


def is_free(port):
    """Whether no process listens at a port."""
    with contextlib.closing(socket.socket()) as listener:
        return listener.connect_ex(("127.0.0.1", port)) != 0


def free_ports(count):
    """Returns free ports of the range of this process."""
    begin = 10_000 + 100 * WORKER
    return [port for port in range(begin, begin + 100) if is_free(port)][:count]
