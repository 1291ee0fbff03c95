"""Common parts of the tests of the papers' figures."""

import functools
import io
from pathlib import Path

import numpy as np
import tensorflow as tf

ROOT = Path(__file__).parent.parent
CONFIGS = str(ROOT / "configs")


def computed_once(compute):
    """Returns a stand-in for the computation of a piece; both are stored under the same name.

    The first call computes. Each later one returns these arrays, with all real numbers changed by up to 1 %: a table or
    figure of many pieces needs different values of the correct shapes.
    """
    first, generator = {}, np.random.default_rng(0)

    @functools.wraps(compute)
    def stand_in(tell, *configs, **arguments):
        if not first:
            first.update(compute(tell, *configs, **arguments))
            return dict(first)
        return {
            name: array * generator.uniform(0.99, 1.01, array.shape) if array.dtype.kind == "f" else array
            for name, array in first.items()
        }

    return stand_in


def grey(figure):
    """Whether a figure is drawn without colour."""
    content = io.BytesIO()
    figure.set_layout_engine("none")  # Colours do not depend on the layout or the resolution, but the time does.
    figure.savefig(content, format="png", dpi=50)
    pixels = tf.io.decode_png(content.getvalue(), channels=3).numpy()
    return np.ptp(pixels, axis=-1).max() <= 3 and np.ptp(pixels) > 200


def documented(page):
    """Reads the table under the heading "Claims": by claim, our result as stated on the page and its verdict."""
    table = page.split("## Claims")[1]
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line[:1] == "|"]
    return {claim: (here, shows) for _, claim, _, here, shows in lines[2:]}


def verdict(cases):
    """Returns in the words of a page whether a claim holds in the given cases."""
    return "yes" if all(cases) else "in part" if any(cases) else "no"
