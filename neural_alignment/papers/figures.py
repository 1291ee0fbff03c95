"""Draws the figures of the papers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Style:
    """The look of one line of a figure, distinguishable by marker and line style as well as by shade.

    Attributes:
        label: text in the legend.
        marker: marker of matplotlib.
        line: line style of matplotlib.
        shade: grey level, from 0 (black) to 1 (white).
    """

    label: str
    marker: str = "o"
    line: Any = "-"
    shade: float = 0.0

    def options(self) -> dict[str, Any]:
        """Returns the arguments of `Axes.errorbar`."""
        shade = str(self.shade)
        return {"label": self.label, "marker": self.marker, "linestyle": self.line, "color": shade, "capsize": 2.5}
