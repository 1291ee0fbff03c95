"""The kinds of TPU: names, memory, arithmetic and bandwidth."""

from __future__ import annotations

import re
from typing import NamedTuple

from neural_alignment.errors import InputError, WrongValue


class Core(NamedTuple):
    """A core of one kind of TPU, as TensorFlow counts them: v4 and v5p join the two cores of a chip into one.

    Attributes:
        topology: name of a small topology of this kind for the compiler.
        named: number of cores that Google's names count for one of these cores.
        memory: bytes of memory.
        arithmetic: peak floating-point operations per second in bfloat16.
        bandwidth: bytes per second between the core and its memory.
    """

    topology: str
    named: int
    memory: int
    arithmetic: float
    bandwidth: float


GIB = 2**30

CORES = {
    "v2": Core("v2:2x2x1", 1, 8 * GIB, 45e12 / 2, 700e9 / 2),
    "v3": Core("v3:2x2x1", 1, 16 * GIB, 123e12 / 2, 900e9 / 2),
    "v4": Core("v4:2x2x1", 2, 32 * GIB, 275e12, 1228e9),
    "v5litepod": Core("v5e:2x2", 1, 16 * GIB, 197e12, 819e9),
    "v6e": Core("v6e:2x2", 1, 32 * GIB, 918e12, 1638e9),
}
"""Kind of TPU, as in the names of its types -> its core. A core of v2 and v3 has half of the values of a chip.

The figures are those of https://cloud.google.com/tpu/docs/v2, .../v3, .../v4, .../v5e and .../v6e.
"""

PASSES = {"float32": 6, "mixed_bfloat16": 1}
"""Precision -> passes through the matrix unit per product. A float32 factor is the sum of three bfloat16 numbers, and
six of the nine partial products are computed."""


class Slice(NamedTuple):
    """A TPU of some size, by the name of its type, such as v3-8.

    Attributes:
        name: the name of the type.
        core: the kind of its cores.
        replicas: number of cores, which share a batch.
    """

    name: str
    core: Core
    replicas: int

    @classmethod
    def named(cls, name: str) -> Slice:
        """Returns the TPU with this type.

        Raises:
            InputError: if there is no such type.
        """
        kind, _, count = name.partition("-")
        core = CORES.get(kind)
        if core is None or not re.fullmatch(r"[1-9]\d{0,4}", count) or int(count) % core.named:
            kinds = ", ".join(CORES)
            requirement = f"must be one of {kinds} with a number of cores (v4: an even number), such as v2-8 or v3-8"
            raise InputError(WrongValue("--tpu", requirement, name))
        return cls(name, core, int(count) // core.named)
