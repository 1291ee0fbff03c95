"""Labels that are not the true ones, on purpose."""

from __future__ import annotations

import numpy as np

from neural_alignment.errors import DataError

LABEL_STREAM = 6004
"""Sets the draw of new labels apart from others of the same seed."""


def replaced(labels: np.ndarray, fraction: float, classes: int, seed: int) -> np.ndarray:
    """Gives a part of the examples a label drawn uniformly at random (Rahmansetayesh et al., 2.3.6 and Figure 6).

    The new label may be the old one: of ten equally frequent classes 55 % are correct at `fraction` 0.5. A permutation
    of the labels would be another thing: it keeps how many examples each class has.

    Args:
        labels: `(examples,)`.
        fraction: part of the examples, rounded to whole ones.
        classes: number of classes.
        seed: which examples, and what they get.

    Returns:
        `(examples,)`; a copy.

    Raises:
        DataError: if `fraction` is not between 0 and 1.
    """
    if isinstance(fraction, bool) or not isinstance(fraction, (int, float)) or not 0 <= fraction <= 1:
        raise DataError(f"`replace_labels` must be a fraction. Received {fraction!r}. Allowed: 0 to 1.")
    rng = np.random.default_rng((LABEL_STREAM, seed))
    chosen = rng.permutation(len(labels))[: round(fraction * len(labels))]
    new = np.array(labels)
    new[chosen] = rng.integers(0, classes, len(chosen))
    return new
