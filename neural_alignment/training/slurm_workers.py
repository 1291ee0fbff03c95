"""The workers of a run that `srun` starts: `TF_CONFIG` from the variables of a SLURM step.

`tf.distribute.cluster_resolver.SlurmClusterResolver` is not used: it sorts the nodes by name, so that the tasks of
`n[9-10]` would get each other's addresses; it fails without GPUs; all steps on a node would use the same ports; and a
node list with two ranges, `rack[1-2]n[1-4]`, is an error.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from neural_alignment.errors import ConfigError

FIRST_PORT, PORTS = 12_000, 20_000
"""The ports of the workers are below those that Linux gives to outgoing connections (32768 to 60999)."""

PORTS_PER_STEP = 64
"""Steps with consecutive numbers do not share ports if they have at most this many tasks."""

_VARIABLES = (
    *("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_STEP_NODELIST", "SLURM_STEP_TASKS_PER_NODE"),
    *("SLURM_PROCID", "SLURM_NODEID"),
)
"""The variables that `srun` sets for each task."""


def tf_config(variables: Mapping[str, str]) -> dict[str, Any]:
    """Returns the content of `TF_CONFIG` for this task of a SLURM step: each task is a worker.

    The port of a task is a function of job, step and rank. Tasks on one machine therefore have different ports, also if
    it simulates several nodes.

    Args:
        variables: the environment of the process.

    Returns:
        The cluster and the task; empty if `srun` has not started this process.

    Raises:
        ConfigError: if a variable does not have SLURM's format, or tasks are not placed node by node.
    """
    if any(name not in variables for name in _VARIABLES):
        return {}
    job, step, rank, node = (
        _integer(variables, name) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_PROCID", "SLURM_NODEID")
    )
    hosts = expand_hosts(variables["SLURM_STEP_NODELIST"])
    counts = expand_counts(variables["SLURM_STEP_TASKS_PER_NODE"])
    nodes = [number for number, count in enumerate(counts) for _ in range(count)]
    if len(hosts) != len(counts) or rank >= len(nodes):
        raise ConfigError(
            "SLURM_STEP_TASKS_PER_NODE: must count the tasks of each node of SLURM_STEP_NODELIST; found "
            f"{variables['SLURM_STEP_TASKS_PER_NODE']!r} and {variables['SLURM_STEP_NODELIST']!r}"
        )
    if nodes[rank] != node:
        raise ConfigError(
            f"SLURM_NODEID: must be {nodes[rank]} for task {rank}, because workers are counted node by node; found "
            f"{node}; start the workers with srun --distribution=block"
        )
    port = FIRST_PORT + (job + step) * PORTS_PER_STEP % PORTS
    workers = [f"{hosts[each]}:{port + number}" for number, each in enumerate(nodes)]
    return {"cluster": {"worker": workers}, "task": {"type": "worker", "index": rank}}


def expand_hosts(text: str) -> list[str]:
    """Returns the names of the nodes in a list of SLURM, in the order of the list.

    Args:
        text: such as `login,n[08-10,12],rack[1-2]n[1-2]`; a number keeps its leading zeros.

    Raises:
        ConfigError: if the text does not have this format.
    """
    names = re.findall(r"(?:[^\[\],]|\[[^\[\]]*\])+", text)
    if ",".join(names) != text or not names:
        raise _wrong("SLURM_STEP_NODELIST", text, "n[1-3,5]")
    hosts = []
    for name in names:
        parts = [
            _numbers(part[1:-1], text) if part[0] == "[" else [part] for part in re.findall(r"\[.*?\]|[^\[]+", name)
        ]
        hosts += ["".join(words) for words in itertools.product(*parts)]
    return hosts


def _numbers(ranges: str, text: str) -> list[str]:
    """Returns the numbers in the brackets of a list of nodes."""
    numbers = []
    for part in ranges.split(","):
        match = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", part)
        if match is None:
            raise _wrong("SLURM_STEP_NODELIST", text, "n[1-3,5]")
        first, last = match[1], match[2] or match[1]
        numbers += [f"{number:0{len(first)}}" for number in range(int(first), int(last) + 1)]
    return numbers


def expand_counts(text: str) -> Sequence[int]:
    """Returns the number of tasks of each node.

    Args:
        text: such as `2(x3),1`, which means 2, 2, 2, 1.

    Raises:
        ConfigError: if the text does not have this format.
    """
    counts: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d{1,9})(?:\(x(\d{1,9})\))?", part)
        if match is None:
            raise _wrong("SLURM_STEP_TASKS_PER_NODE", text, "2(x3),1")
        counts += [int(match[1])] * int(match[2] or 1)
    return counts


def _integer(variables: Mapping[str, str], name: str) -> int:
    text = variables[name]
    if not re.fullmatch(r"\d{1,18}", text, re.ASCII):
        raise _wrong(name, text, "0")
    return int(text)


def _wrong(name: str, text: str, example: str) -> ConfigError:
    return ConfigError(f"{name}: must be as srun sets it; found {text[:200]!r}; example: {example}")
