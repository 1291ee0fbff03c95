"""Summarises a value of each layer by stages, so that the angles of a deep network fit a terminal."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

MOST = 8
"""Maximum number of stages. A network with at most this number of layers has a stage per layer."""


class Stage(NamedTuple):
    """The layers of a stage of a network, such as a group of residual blocks.

    Attributes:
        name: the name of the layer, the beginning that the names of the layers share, or the first and the last layer.
        layers: names of the layers.
    """

    name: str
    layers: Sequence[str]


def stages_of(layers: Sequence[str]) -> list[Stage]:
    """Divides layers, in the order of the network, by the part of their names before the first underscore.

    If that gives more than `MOST` stages, the layers are divided into `MOST` parts of about equal size.
    """
    if len(layers) <= MOST:
        return [Stage(name, [name]) for name in layers]
    found = [
        Stage(name, list(own)) for name, own in itertools.groupby(layers, key=lambda layer: layer.partition("_")[0])
    ]
    if len(found) <= MOST:
        return [Stage(own[0] if len(own) == 1 else name, own) for name, own in found]
    ends = [len(layers) * part // MOST for part in range(MOST + 1)]
    parts = [layers[begin:end] for begin, end in itertools.pairwise(ends)]
    return [Stage(part[0] if len(part) == 1 else f"{part[0]} to {part[-1]}", part) for part in parts]


def spans(values: Mapping[str, float]) -> list[tuple[Stage, float, float, float]]:
    """Returns each stage with the smallest value, the median and the largest value of its layers; NaN if all are."""
    found = []
    for stage in stages_of(list(values)):
        own = [values[layer] for layer in stage.layers if not math.isnan(values[layer])] or [math.nan]
        found.append((stage, min(own), statistics.median(own), max(own)))
    return found
