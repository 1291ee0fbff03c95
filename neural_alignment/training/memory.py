"""Checks that the weights of a model fit into memory before they are created."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import tensorflow as tf

from neural_alignment.config import Config
from neural_alignment.errors import ConfigError, shortened

LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""Files with the memory limit of a container, in bytes."""


def check(config: Config, outputs: int, input_shape: Sequence[int]) -> None:
    """Checks that the weights of a model fit into memory, by a lower bound of their size.

    Without this check, the operating system would kill the process.

    Args:
        config: the configuration of the run.
        outputs: number of outputs of the network.
        input_shape: shape of one input.

    Raises:
        ConfigError: if the weights do not fit.
    """
    copies = 2 if any(rule.keeps_kernel for rule in config.rules) else 1  # W, and B.
    needed = 4 * copies * config.model.fewest_weights(outputs, input_shape)
    memory = available()
    if needed > memory:
        raise ConfigError(
            f"model: is too large for the memory of this machine: with {_size(config)}, {outputs:,} outputs and images "
            f"of {tuple(input_shape)} its weights take {_gib(needed)} or more; there are {_gib(memory)}"
        )


def check_codes(classes: int, units: int) -> None:
    """Checks that the target codes of the classes fit into memory.

    Args:
        classes: number of classes.
        units: number of units in a code.

    Raises:
        ConfigError: if the codes do not fit.
    """
    needed = 8 * classes * units
    if needed > available():
        raise ConfigError(
            f"loss: is too large for the memory of this machine: codes of {classes} classes in {units:,} units take "
            f"{_gib(needed)}; there are {_gib(available())}: choose smaller loss.units or loss.ones"
        )


def available() -> int:
    """Returns the bytes of memory that this process may use."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for path in LIMITS:
        with contextlib.suppress(OSError, ValueError):
            memory = min(memory, int(Path(path).read_text()))
    return memory


@contextlib.contextmanager
def exhaustion_reported(config: Config) -> Iterator[None]:
    """Turns a failure to allocate the weights, or to create tensors of their shapes, into one line.

    Raises:
        ConfigError: if memory is exhausted within the context.
    """
    try:
        yield
    except (MemoryError, OverflowError, tf.errors.ResourceExhaustedError, tf.errors.InvalidArgumentError) as error:
        reason = " ".join((getattr(error, "message", None) or str(error) or "out of memory").split())
        raise ConfigError(
            f"model: cannot be created with {_size(config)}: {shortened(reason.rpartition('}} ')[2], 150)}"
        ) from None


def _size(config: Config) -> str:
    """Returns the options that determine the size of the model, with their values."""
    return ", ".join(shortened(f"model.{key} {getattr(config.model, key)}", 100) for key in config.model.size_keys)


def _gib(count: int) -> str:
    return f"{count / 2**30:,.1f} GiB"
