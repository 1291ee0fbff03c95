"""What the tests of papers' figures share."""

from pathlib import Path

import numpy as np
import tensorflow as tf

from neural_alignment.papers import output

ROOT = Path(__file__).parent.parent
CONFIGS = str(ROOT / "configs")


def grey(figure):
    """Whether a figure is drawn without colour."""
    pixels = tf.io.decode_png(output.png(figure), channels=3).numpy().astype(int)
    return np.ptp(pixels, axis=-1).max() <= 3 and np.ptp(pixels) > 200
