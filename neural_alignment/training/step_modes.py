"""Which losses a training step computes, and the mean of R over the steps that compute it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from neural_alignment.errors import ArgumentError, Words
from optimizers import MultiOptimizer
from optimizers.optimizers import accumulations

Tensor = tf.Tensor


MOST_MODES = 16
"""The largest number of modes of a step."""

_COUNTED_AT_ONCE = 2**20
"""Number of steps whose modes are computed together."""


class StepMode(NamedTuple):
    """The losses of one step.

    Attributes:
        j_runs: whether J is trained.
        r_runs: whether R, or a part of it, is trained.
        intervals: the values of `Alignment.interval` whose rules compute R_l. None means all.
    """

    j_runs: bool = True
    r_runs: bool = True
    intervals: frozenset[int] | None = None


class StepModes:
    """The possible modes of a step, and the choice of the mode at a global step.

    A graph contains a branch for each mode, because a step must not compute R_l only to discard it, and because
    replicas cannot synchronize inside a branch.

    Args:
        optimizer: the optimizer, without a wrapper for loss scaling.
        intervals: the values of `Alignment.interval` of all rules that train B.

    Raises:
        ValueError: if a rule has an interval, but no step trains both J and R; if the optimizer of B accumulates
            gradients and also updates variables in steps without some of the R_l, because the gradients of these R_l
            would be lost; or if there are too many modes.
    """

    def __init__(self, optimizer: Any, intervals: Collection[int]):
        self._optimizer = optimizer if isinstance(optimizer, MultiOptimizer) else None
        self._intervals = sorted(set(intervals))
        self._pairs = [(True, True)] if self._optimizer is None else self._optimizer.modes
        if self.has_intervals and (True, True) not in self._pairs:
            raise ArgumentError(
                "every",
                "of a rule must be 1 if no step trains both J and R: the steps of R are set by the rate scheduler",
                Words(f"every={self._intervals[-1]} with {self._optimizer.rate_scheduler!r}"),
                f"RateScheduler(steps_per_epoch=100, alternation={self._intervals[-1]})",
            )
        accumulated = accumulations(optimizer)
        updated = {mode.intervals for mode in self._of(True, True) if mode.r_runs}
        if self.has_intervals and accumulated[-1] and (len(accumulated) == 1 or len(updated) > 1):
            requirement = (
                "must be None if a rule has `every` and the optimizer of B updates other variables in the steps between"
            )
            example = "compile(..., minibatches=4)"
            raise ArgumentError("gradient_accumulation_steps", requirement, accumulated[-1], example)
        self._places = [(pair, mode) for pair in self._pairs for mode in self._of(*pair)]
        if len(self._places) > MOST_MODES:
            requirement = (
                f"of the rules must give at most {MOST_MODES} kinds of steps, because each needs a separate graph"
            )
            found = Words(f"{self._intervals}, which give {len(self._places)}")
            raise ArgumentError("every", requirement, found, "multiples, as in 2, 4, 8")

    @property
    def has_intervals(self) -> bool:
        """Whether a rule does not compute R_l in every step that trains J and R."""
        return any(interval > 1 for interval in self._intervals)

    @property
    def modes(self) -> list[StepMode]:
        """All possible modes."""
        return [mode for _, mode in self._places]

    def _of(self, j_runs: bool, r_runs: bool) -> list[StepMode]:
        """Returns the modes of the steps in which the rates allow these losses. Steps of R alone ignore intervals."""
        if not (self.has_intervals and j_runs and r_runs):
            return [StepMode(j_runs, r_runs)]
        return [StepMode(True, bool(due), due) for due in combinations(self._intervals)]

    def name(self, mode: StepMode) -> str:
        """Returns the losses of a mode as text: J, R, J + R or none.

        If only the rules with some values of `every` compute R_l, the name has these values: J + R (every 4).
        """
        r_runs = mode.r_runs and bool(self._intervals)
        name = " + ".join(loss for loss, runs in (("J", mode.j_runs), ("R", r_runs)) if runs)
        if not r_runs or mode.intervals is None or len(mode.intervals) == len(self._intervals):
            return name or "none"
        return f"{name} (every {', '.join(map(str, sorted(mode.intervals)))})"

    def named(self, name: str) -> StepMode:
        """Returns the mode with this name.

        Raises:
            ValueError: if there is none.
        """
        known = {self.name(mode): mode for mode in reversed(self.modes)}
        if name not in known:
            allowed = ", ".join(map(repr, known))
            raise ArgumentError("name", f"must be that of a kind of step: {allowed}", name, f"{allowed}")
        return known[name]

    def count(self, steps: int) -> dict[str, int]:
        """Returns the number of steps in each mode, by its name, among the global steps from 0 to `steps` - 1."""
        counts = [0] * len(self.modes)
        for first in range(0, steps, _COUNTED_AT_ONCE):
            chunk = tf.range(first, min(first + _COUNTED_AT_ONCE, steps), dtype=tf.int64)
            found = np.bincount(tf.vectorized_map(self.present, chunk), minlength=len(counts))
            counts = [total + int(new) for total, new in zip(counts, found, strict=True)]
        named: dict[str, int] = {}
        for mode, count in zip(self.modes, counts, strict=True):
            if count:
                named[self.name(mode)] = named.get(self.name(mode), 0) + count
        return named

    def present(self, step: Tensor) -> Tensor:
        """Returns the index in `modes` of the mode at a global step, an int32 scalar."""
        pair = 0 if self._optimizer is None or len(self._pairs) == 1 else self._optimizer.present_mode(step)
        divides = {interval: tf.equal(step % interval, 0) for interval in self._intervals}
        matches = []
        for allowed, mode in self._places:
            conditions = [tf.equal(self._pairs.index(allowed), pair)]
            if mode.intervals is not None:
                conditions += [tf.equal(found, each in mode.intervals) for each, found in divides.items()]
            matches.append(tf.reduce_all(tf.stack(conditions)))
        return tf.argmax(tf.cast(tf.stack(matches), tf.int32), output_type=tf.int32)


def combinations(intervals: Collection[int]) -> list[frozenset[int]]:
    """Returns the sets of all intervals that divide a step, over all possible steps; the largest set comes first."""
    subsets = itertools.chain.from_iterable(
        itertools.combinations(intervals, size) for size in reversed(range(len(intervals) + 1))
    )
    # A step that is divisible by these intervals is also divisible by the divisors of their least common multiple.
    found = (frozenset(each for each in intervals if math.lcm(*subset) % each == 0) for subset in subsets)
    return list(dict.fromkeys(found))


class RegulariserMean(keras.metrics.Metric):
    """The sum over layers of R_l, each averaged over the steps in which it was computed.

    Args:
        intervals: the value of `Alignment.interval` of each layer.
    """

    def __init__(self, intervals: Sequence[int]):
        super().__init__(name="regulariser")
        self._groups = sorted(set(intervals)) or [1]
        self._members = [[i for i, each in enumerate(intervals) if each == group] for group in self._groups]
        # Scalars if all layers have the same interval, as checkpoints contain them.
        shape = () if len(self._groups) == 1 else (len(self._groups),)
        self.total, self.count = (
            self.add_variable(shape=shape, initializer="zeros", dtype=self.dtype, name=name)
            for name in ("total", "count")
        )

    def update_state(self, regularisers: Tensor, mode: StepMode, sample_weight: float = 1.0) -> None:
        """Adds the values of one step.

        Args:
            regularisers: R_l, `(layers,)`.
            mode: the mode of the step. R_l that are not computed in it do not count.
            sample_weight: weight of the step.
        """
        computed = [mode.r_runs and (mode.intervals is None or group in mode.intervals) for group in self._groups]
        if len(self._groups) == 1:
            sums = tf.reduce_sum(regularisers)
        else:
            sums = tf.stack([tf.reduce_sum(tf.gather(regularisers, layers)) for layers in self._members])
        weights = tf.reshape(sample_weight * tf.cast(computed, self.dtype), tf.shape(sums))
        # A value that does not count must not matter even if it is not finite.
        self.total.assign_add(tf.math.multiply_no_nan(tf.cast(sums, self.dtype), weights))
        self.count.assign_add(weights)

    @property
    def is_defined(self) -> bool:
        """Whether R_l of every layer was computed at least once."""
        return bool(tf.reduce_all(tf.convert_to_tensor(self.count) > 0))

    def result(self) -> Tensor:
        """Returns the sum of the means; 0 if there are none."""
        return tf.reduce_sum(tf.math.divide_no_nan(tf.convert_to_tensor(self.total), tf.convert_to_tensor(self.count)))
