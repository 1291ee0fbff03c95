"""The processors of this machine."""

from __future__ import annotations

import os


def count() -> int:
    """Returns the number of processors that this process may use, such as those of its SLURM job."""
    if hasattr(os, "sched_getaffinity"):  # On Linux.
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
