"""Disturbed alignment terms, computed beside an undisturbed network (Rahmansetayesh et al., 2.3.4 and 2.3.6).

The network itself is trained with its own signals. A second kernel, W'_l, starts as W_l and is updated only by the
disturbed alignment terms of all orders. If W'_l does not align, alignment depends on the disturbed quantity. Each
iteration adds the `total` of the disturbed terms: of `LinearTerms` without the nonlinearity, or of `DisturbedTerms`
with new backward weights or shuffled errors.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from neural_alignment.analysis.alignment_terms import History, LayerSignals, alignment_sum

Array = np.ndarray


class LinearTerms:
    """The sum of all linear alignment terms: eta^2 B^T (sum_o C[k - o])^T C[k], C = L_(l-1)^T delta_(l+1).

    These are the alignment terms without their two factors f' (equation 5). They are linear in the past signals, so
    one matrix `(below, above)` accumulates all past iterations and every iteration has the same cost.

    Args:
        rate: the learning rate eta.
        backward_kernel: B_l, `(above, units)`.
    """

    def __init__(self, rate: float, backward_kernel: Array):
        self._rate = rate
        self._backward_kernel = backward_kernel
        self._past: Array | float = 0.0

    def total(self, signals: LayerSignals) -> Array:
        """Returns the sum at the iteration of `signals`, `(units, above)`, and adds this iteration to the past."""
        present = signals.inputs.T @ signals.errors
        past = np.zeros_like(present) + self._past
        self._past = past + present
        return self._rate**2 * self._backward_kernel.T @ (past.T @ present)


class DisturbedTerms:
    """The sum of the alignment terms of all orders, computed from disturbed signals.

    Args:
        history: an empty history of the layer.
        disturb: returns the disturbed signals of an iteration.
    """

    def __init__(self, history: History, disturb: Callable[[LayerSignals], LayerSignals]):
        self._history, self._disturb = history, disturb

    def total(self, signals: LayerSignals) -> Array:
        """Returns the sum at the iteration of `signals`, `(units, above)`, and adds this iteration to the history."""
        disturbed = self._disturb(signals)
        total = alignment_sum(self._history, disturbed)
        self._history.append(disturbed)
        return total


def with_feedback(signals: LayerSignals, backward_kernel: Array) -> LayerSignals:
    """Returns the signals with another backward kernel into the layer (Figure 4B).

    Args:
        signals: signals of one iteration.
        backward_kernel: B'_l, `(above, units)`, the same at every iteration. The disturbed kernel is compared with it.
    """
    return signals._replace(returned=signals.errors @ backward_kernel)


def with_shuffled_errors(signals: LayerSignals, backward_kernel: Array, rng: np.random.Generator) -> LayerSignals:
    """Returns the signals with the errors shuffled among the examples of the batch (Figure 5).

    The rows of delta_(l+1) are permuted, those of L_(l-1) are not. Each row stays intact, so the errors keep their
    statistics but lose their correlation with the outputs.

    Args:
        signals: signals of one iteration.
        backward_kernel: B_l, `(above, units)`.
        rng: generator of the permutations; each call draws a new one.
    """
    errors = signals.errors[rng.permutation(len(signals.errors))]
    return signals._replace(errors=errors, returned=errors @ backward_kernel)
