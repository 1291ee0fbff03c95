"""Random labels in place of the true ones."""

from __future__ import annotations

import numpy as np

from neural_alignment.errors import DataError, WrongValue

LABEL_STREAM = 6004
"""Makes the draw of new labels independent of other draws with the same seed."""


def replaced(labels: np.ndarray, fraction: float, classes: int, seed: int) -> np.ndarray:
    """Replaces the labels of a fraction of the examples at random (Rahmansetayesh et al., 2.3.6 and Figure 6).

    New labels are drawn uniformly from all classes and may equal the old ones: with ten equally frequent classes and
    `fraction` 0.5, 55 % of the labels are correct. Unlike a permutation of the labels, this does not preserve the
    number of examples per class.

    Args:
        labels: `(examples,)`.
        fraction: fraction of the examples, rounded to whole examples.
        classes: number of classes.
        seed: seed of the choice of examples and of their labels.

    Returns:
        A copy with the new labels, `(examples,)`.

    Raises:
        DataError: if `fraction` is not between 0 and 1.
    """
    if isinstance(fraction, bool) or not isinstance(fraction, (int, float)) or not 0 <= fraction <= 1:
        raise DataError(WrongValue("data.replace_labels", "must be 0 to 1", fraction))
    rng = np.random.default_rng((LABEL_STREAM, seed))
    chosen = rng.permutation(len(labels))[: round(fraction * len(labels))]
    new = np.array(labels)
    new[chosen] = rng.integers(0, classes, len(chosen))
    return new
