"""Estimates from compiled programs: memory, a lower bound of the time of a step, and hours of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from neural_alignment.config import Config
from neural_alignment.errors import ConfigError, WrongValue
from neural_alignment.training import setup
from neural_alignment.training.costs import part_of_r
from neural_alignment.training.tpu.chips import GIB, PASSES, Slice
from neural_alignment.training.tpu.compilation import Compiled, compile_program, interpreter
from neural_alignment.training.tpu.program import batch_per_core, lower, turns


class Estimate(NamedTuple):
    """A lower bound of the time of a step: the larger of two times. The sum over the cores is not included.

    Attributes:
        arithmetic: seconds for the arithmetic at the peak rate of a core.
        traffic: seconds for the traffic at the full bandwidth of its memory.
    """

    arithmetic: float
    traffic: float

    @classmethod
    def of(cls, compiled: Compiled, tpu: Slice, precision: str, of_r: float) -> Estimate:
        """Returns the bound of a compiled step.

        Args:
            compiled: the result of the compilation, which succeeded.
            tpu: the TPU.
            precision: `runtime.precision` of the run.
            of_r: part of the arithmetic that is R's, which is in float32 with any precision (`costs.part_of_r`).
        """
        passes = (1 - of_r) * PASSES[precision] + of_r * PASSES["float32"]
        arithmetic = compiled.flops * passes / tpu.core.arithmetic
        return cls(arithmetic, compiled.bytes_accessed / tpu.core.bandwidth)

    @property
    def seconds(self) -> float:
        """The bound."""
        return max(self)

    @property
    def limit(self) -> str:
        """Which of the two times is the bound."""
        return "arithmetic" if self.arithmetic > self.traffic else "traffic"


def hours(bounds: Mapping[str, Estimate], steps: Mapping[str, int]) -> float:
    """Returns the hours of a run, by the losses of its steps.

    Args:
        bounds: the bound of a step that trains these losses.
        steps: number of steps that train these losses.
    """
    return sum(bounds[losses].seconds * count for losses, count in steps.items()) / 3600


def describe(config: Config, tpu: Slice) -> str:
    """Compiles the steps of a run for a TPU. Returns lines about memory, arithmetic, traffic and time.

    Args:
        config: the configuration of the run.
        tpu: the TPU.

    Raises:
        Unavailable: if the compiler is not installed.
        ConfigError: if the cores cannot share the batch evenly, or the TPU does not support the precision.
        DataError: if the configuration does not determine shapes and counts, and the data cannot be read.
    """
    if config.runtime.precision not in PASSES:
        allowed = f"must be {' or '.join(PASSES)} on a TPU"
        raise ConfigError(WrongValue("runtime.precision", allowed, config.runtime.precision))
    interpreter()  # First, because the rest takes minutes.
    examples, steps = batch_per_core(config, tpu.replicas), turns(config, setup.data_facts(config))
    compiled = {losses: compile_program(lower(config, tpu.replicas, losses), tpu.core.topology) for losses in steps}
    bounds = {
        losses: Estimate.of(each, tpu, config.runtime.precision, part_of_r(config, tpu.replicas, losses))
        for losses, each in compiled.items()
        if not each.reason
    }
    lines = [f"TPU {tpu.name}: {examples} examples per core, {config.runtime.precision}"]
    width = max(12, *(len(f"{losses} step  ") for losses in steps))
    lines += [f"{losses} step".ljust(width) + _line(each, tpu, bounds.get(losses)) for losses, each in compiled.items()]
    if bounds.keys() == compiled.keys():
        time = digits(hours(bounds, steps))
        lines.append(
            f"{'run'.ljust(width)}at least {time} h for {sum(steps.values()):,} steps, without the sum over the cores, "
            "reading of data, evaluation and compilation"
        )
    return "\n".join(lines)


def _line(compiled: Compiled, tpu: Slice, bound: Estimate | None) -> str:
    """Returns the facts about one compiled step; `bound` is None if it does not compile."""
    if bound is None:
        return f"does not compile: {compiled.reason}"
    return (
        f"compiles; {digits(compiled.memory / GIB)} of {tpu.core.memory / GIB:.0f} GiB per core, "
        f"{digits(compiled.flops / 1e9)} GFLOP, {digits(compiled.bytes_accessed / 1e9)} GB of traffic, "
        f"at least {digits(1000 * bound.seconds)} ms ({bound.limit})"
    )


def digits(value: float) -> str:
    """Returns a number with three significant digits, or without decimals from 100 on."""
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}".rstrip(".")
