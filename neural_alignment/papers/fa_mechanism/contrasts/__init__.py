"""The quantities by which claims of Rahmansetayesh et al. are judged, computed from the files of its figures.

The turn of a kernel is the number of degrees by which its angle to the backward weights has decreased since the start
of training. A control is the same seed without the disturbance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from neural_alignment.papers.claims import ResultFiles, Seeds, seeds_by
from neural_alignment.papers.fa_mechanism.runs import HIDDEN, MOMENTS
from neural_alignment.reporting import Row, Spread

Cases = dict[str, Spread]
Find = Callable[[ResultFiles], Cases]


def by_layer(spread: Callable[[int], Spread], layers: Iterable[int] = HIDDEN) -> Cases:
    """Returns case -> spread for each layer."""
    return {f"l = {layer}": spread(layer) for layer in layers}


def ends(rows: Sequence[Row], x: str, value: str = "value") -> tuple[Seeds, Seeds]:
    """Returns the values at the smallest and at the largest x, by seed; NaN for a run that ended before."""
    found = seeds_by(rows, x, value)
    seeds = dict.fromkeys(seed for each in found.values() for seed in each)
    start, end = ({seed: found[at].get(seed, math.nan) for seed in seeds} for at in (min(found), max(found)))
    return start, end


def turn(rows: Sequence[Row], x: str, value: str = "value") -> Seeds:
    """Returns the number of degrees by which an angle has decreased from the smallest to the largest x, by seed."""
    start, end = ends(rows, x, value)
    return {seed: start[seed] - end[seed] for seed in start}


def own(values: Seeds) -> Spread:
    """Returns the spread over seeds."""
    return Spread([*values.values()])


def aligned(angles: Seeds) -> Spread:
    """Returns 90 degrees minus an angle: how far something points towards the backward weights."""
    return Spread([90 - angle for angle in angles.values()])


FIRST, LAST = MOMENTS[0], MOMENTS[-1]
"""First and last iteration whose alignment terms are measured."""
