"""What Boopathy and Fiete 2022 printed in Tables 3, 4, 5 and 8 (Appendix L): data and nothing else."""

from __future__ import annotations

from typing import NamedTuple

WIDTHS = (8, 16, 32, 64, 128, 256, 512)
"""Filters of each convolution, or hidden units: the columns of all of these tables."""

_MORE_WIDTHS = (*WIDTHS, 1024, 2048, 4096)


class Losses(NamedTuple):
    """The least losses over the epochs, each for itself."""

    train: float
    test: float


def _losses(train: tuple[float, ...], test: tuple[float, ...]) -> dict[int, Losses]:
    """Returns width -> losses."""
    return {width: Losses(*both) for width, *both in zip(_MORE_WIDTHS, train, test, strict=True)}


TABLE_8 = {
    "align_ada": _losses(
        (6.652, 1.944, 0.782, 0.772, 0.786, 0.535, 0.474, 0.455, 0.450, 0.466),
        (6.795, 1.890, 0.716, 0.707, 0.718, 0.461, 0.394, 0.374, 0.369, 0.388),
    ),
    "align_zero": _losses(
        (5.228, 2.235, 1.272, 0.621, 0.741, 0.807, 0.482, 0.448, 0.442, 0.447),
        (5.227, 2.211, 1.205, 0.556, 0.663, 0.742, 0.408, 0.367, 0.364, 0.372),
    ),
    "readout_only": _losses(
        (3.008, 2.798, 2.011, 1.872, 1.674, 2.655, 2.202, 1.881, 2.042, 1.647),
        (2.957, 2.794, 1.990, 1.855, 1.601, 2.623, 2.077, 1.811, 1.976, 1.608),
    ),
    "normal": _losses(
        (1.168, 0.553, 0.495, 0.527, 0.474, 0.440, 0.429, 0.408, 0.412, 0.429),
        (1.133, 0.488, 0.411, 0.461, 0.399, 0.366, 0.352, 0.333, 0.339, 0.357),
    ),
}
"""Rule -> hidden units -> losses on the Add task."""

CHANCE = Losses(9.359, 9.312)
"""Random chance, from the caption of Table 8: the loss of the constant 0.5."""

Scores = dict[tuple[int, int], float]
"""(Layer, width) -> alignment score."""


def _scores(*rows: tuple[float, ...]) -> Scores:
    return {
        (layer, width): score
        for layer, row in enumerate(rows, start=1)
        for width, score in zip(WIDTHS, row, strict=True)
    }


TABLE_3 = _scores(
    (0.430, 0.465, 0.527, 0.502, 0.651, 0.720, 0.749),
    (0.490, 0.433, 0.409, 0.409, 0.656, 0.658, 0.760),
    (0.501, 0.467, 0.446, 0.515, 0.586, 0.669, 0.766),
    (0.372, 0.297, 0.350, 0.371, 0.497, 0.703, 0.767),
    (0.499, 0.333, 0.438, 0.499, 0.546, 0.650, 0.711),
    (0.301, 0.363, 0.329, 0.321, 0.419, 0.500, 0.603),
    (0.476, 0.382, 0.432, 0.405, 0.333, 0.398, 0.450),
)
"""The 8-layer ReLU network on CIFAR-10: rate 1 as printed (5 in the published code), 150 epochs."""

TABLE_4 = _scores(
    (0.456, 0.585, 0.579, 0.646, 0.743, 0.721, 0.800),
    (0.137, 0.179, 0.210, 0.299, 0.381, 0.482, 0.656),
    (0.165, 0.207, 0.232, 0.253, 0.376, 0.471, 0.581),
)
"""The 4-layer network on KMNIST, 100 epochs."""

TABLE_5 = _scores(
    (0.459, 0.605, 0.681, 0.816, 0.829, 0.925, 0.935),
    (0.600, 0.513, 0.565, 0.825, 0.785, 0.912, 0.945),
    (0.660, 0.539, 0.480, 0.695, 0.811, 0.905, 0.932),
    (0.470, 0.324, 0.504, 0.741, 0.788, 0.887, 0.919),
    (0.621, 0.606, 0.608, 0.800, 0.779, 0.849, 0.910),
    (0.478, 0.547, 0.537, 0.684, 0.698, 0.819, 0.871),
    (0.439, 0.675, 0.530, 0.587, 0.595, 0.759, 0.827),
)
"""The 8-layer tanh network on CIFAR-10: rate 2, 100 epochs."""
