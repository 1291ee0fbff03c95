"""Runs the compiler of a TPU in a separate process, which may crash or exceed its limits."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from neural_alignment.errors import Unavailable

INTERPRETER = "TPU_COMPILER_PYTHON"
"""Environment variable with the path of a Python that has jax and libtpu."""

ENVIRONMENT = Path(__file__).parents[3] / ".venv-tpu"
"""The environment that `make tpu-environment` creates in a checkout."""

PACKAGES = "jax==0.10.2 libtpu==0.0.52"

_REASON = 240
"""Maximum length of a reason."""


class Compiled(NamedTuple):
    """The result of a compilation. After a failure only `reason` and `stopped` are known.

    Attributes:
        argument_bytes: weights, optimizer variables and the batch.
        temporary_bytes: memory that the step needs in addition.
        aliased_bytes: part of `argument_bytes` that the step updates in place.
        flops: floating-point operations of a step.
        bytes_accessed: traffic between the core and its memory in a step.
        seconds_to_compile: duration of the compilation.
        reason: one line that says why there is no result; empty if the program compiles.
        stopped: whether the compilation was stopped before it had a result.
    """

    argument_bytes: int | None = None
    temporary_bytes: int | None = None
    aliased_bytes: int | None = None
    flops: int | None = None
    bytes_accessed: int | None = None
    seconds_to_compile: int | None = None
    reason: str = ""
    stopped: bool = False

    @property
    def memory(self) -> int:
        """Bytes of the memory of a core that the step needs. All its outputs are updates in place."""
        return self.argument_bytes + self.temporary_bytes


class Limits(NamedTuple):
    """Limits of one compilation.

    Attributes:
        minutes: minutes of processor time.
        gib: memory in GiB.
    """

    minutes: float = 60.0
    gib: float = 12.0


def interpreter() -> str:
    """Returns the path of a Python that has jax and libtpu.

    Raises:
        Unavailable: if there is none; the message says how to install it.
    """
    if named := os.environ.get(INTERPRETER):
        return named
    if importlib.util.find_spec("jax") and importlib.util.find_spec("libtpu"):
        return sys.executable
    python = ENVIRONMENT / "bin" / "python"
    if python.exists():
        return str(python)
    raise Unavailable(
        f"--tpu: needs the compiler of TPUs, which is not installed; run `make tpu-environment` in a checkout, or set "
        f"{INTERPRETER} to a Python of an environment with `pip install {PACKAGES}`"
    )


def installed() -> dict[str, str]:
    """Returns the versions of jax and libtpu.

    Raises:
        Unavailable: if the compiler is not installed.
    """
    code = "from importlib.metadata import version; print(version('jax'), version('libtpu'))"
    done = _run([interpreter(), "-I", "-c", code])
    if done.returncode:
        raise Unavailable(f"{INTERPRETER}: must have jax and libtpu; found {interpreter()!r} without them")
    return dict(zip(("jax", "libtpu"), done.stdout.split(), strict=True))


def compile_program(program: bytes, topology: str, limits: Limits = Limits()) -> Compiled:  # noqa: B008 (immutable)
    """Compiles a program for a core of a TPU. A failure of the compiler is a result with a reason.

    Args:
        program: a serialized `HloModuleProto`.
        topology: name of a topology for the compiler.
        limits: processor time and memory of the compilation.

    Raises:
        Unavailable: if the compiler is not installed.
    """
    script = Path(__file__).with_name("compiler.py")
    with tempfile.NamedTemporaryFile(suffix=".hlo") as file:
        file.write(program)
        file.flush()
        command = [interpreter(), "-I", script, file.name, topology, *map(str, limits)]
        return result(_run(command), limits)


def _run(command: Sequence[str | Path]) -> subprocess.CompletedProcess:
    try:
        return subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    except OSError as error:
        raise Unavailable(f"{INTERPRETER}: cannot be run: {error.strerror}; found {command[0]!r}") from None


def result(done: subprocess.CompletedProcess, limits: Limits) -> Compiled:
    """Reads the result that the process of a compilation printed, or the reason why it printed none."""
    if done.returncode == 0:
        printed = json.loads(done.stdout.splitlines()[-1])
        return Compiled(**{**printed, "reason": shortened(printed.get("reason", ""))})
    if done.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        return Compiled(reason=f"stopped after {limits.minutes:g} minutes of processor time, or killed", stopped=True)
    if any(word in done.stderr for word in ("MemoryError", "bad_alloc", "out of memory", "Out of memory")):
        return Compiled(reason=f"the compiler needs more than {limits.gib:g} GiB of memory", stopped=True)
    last = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "")
    ended = f"signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
    return Compiled(reason=shortened(f"the compiler ended with {ended}: {last}"))


def shortened(text: str) -> str:
    """Returns a reason in one line of limited length."""
    line = " ".join(text.split())
    return line if len(line) <= _REASON else f"{line[: _REASON - 3]}..."
