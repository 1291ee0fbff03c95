"""The command line in a separate process, forked from one that has imported TensorFlow."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from neural_alignment.jobs import children

HANGS = 300
"""Seconds after which a process that should have ended is taken to hang; none of them takes a tenth."""


class Command:
    """`neural-alignment ARGUMENTS` in a process.

    Args:
        arguments: of the command line.
        environment: variables that differ from those of this process.
        errors: the file that standard error goes to.
        before: code that the process runs first.
        output: the file that standard output goes to.
    """

    def __init__(
        self,
        arguments: list[str],
        environment: dict[str, str],
        errors: Path,
        before: str = "",
        output: str | Path = os.devnull,
    ):
        self._errors = errors
        self._process: Any = children.context().Process(
            target=_run, args=(arguments, environment, str(output), str(errors), before)
        )
        self._process.start()

    def wait(self) -> int:
        """Waits for the end and returns the exit code, negative for a signal; fails if the process hangs."""
        self._process.join(HANGS)
        assert self._process.exitcode is not None, f"it has not ended after {HANGS} seconds"
        return self._process.exitcode

    @property
    def pid(self) -> int:
        """The number of the process."""
        return self._process.pid

    @property
    def ended(self) -> bool:
        """Whether the process has ended."""
        return self._process.exitcode is not None

    @property
    def errors(self) -> str:
        """Standard error of the process so far."""
        return self._errors.read_text()

    def kill(self) -> None:
        """Ends the process if it is alive."""
        self._process.kill()


def _run(arguments: list[str], environment: dict[str, str], output: str, errors: str, before: str) -> None:
    os.environ.update(environment)
    # A fork server that was started for a job has blocked them.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT, signal.SIGHUP))
    for stream, path in ((1, output), (2, errors)):
        target = os.open(path, os.O_WRONLY | os.O_CREAT)
        os.dup2(target, stream)
    exec(before, {})
    from neural_alignment import cli

    sys.argv = ["neural-alignment", *arguments]
    cli.program()
