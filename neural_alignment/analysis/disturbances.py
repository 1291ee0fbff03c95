"""Alignment terms that are disturbed, beside a network that learns undisturbed (Rahmansetayesh et al., 2.3.4, 2.3.6).

The network learns by its own signals. A second kernel, W'_l, starts as W_l and is moved by the disturbed alignment
terms alone, all orders: how far it aligns shows whether alignment needs what was disturbed. For new backward weights
and shuffled errors that is

    history.append(disturbed signals);  W' += expand(history, disturbed signals).alignment

with disturbed signals at every iteration; without nonlinearity the sum over all orders is `LinearTerms`.
"""

from __future__ import annotations

import numpy as np

from neural_alignment.analysis.alignment_terms import Signals

Array = np.ndarray


class LinearTerms:
    """The sum of all linear alignment terms: eta^2 B^T (sum_o C[k - o])^T C[k], C = L_(l-1)^T delta_(l+1).

    It is what the alignment terms are without their two gates (equation 5). As the terms are linear in the past, one
    matrix `(below, above)` keeps all of it, and the cost of an iteration does not grow.

    Args:
        rate: the learning rate eta.
        backward_kernel: B_l, `(above, units)`.
    """

    def __init__(self, rate: float, backward_kernel: Array):
        self._rate = rate
        self._backward_kernel = backward_kernel
        self._past: Array | float = 0.0

    def total(self, signals: Signals) -> Array:
        """Returns the sum at the iteration of `signals`, `(units, above)`, and counts it as past from then on."""
        present = signals.inputs.T @ signals.errors
        past = np.zeros_like(present) + self._past
        self._past = past + present
        return self._rate**2 * self._backward_kernel.T @ (past.T @ present)


def with_feedback(signals: Signals, backward_kernel: Array) -> Signals:
    """Returns the signals as they would be with other backward weights into the layer (Figure 4B).

    Args:
        signals: of one iteration.
        backward_kernel: B'_l, `(above, units)`, the same at every iteration; the disturbed kernel is compared with it.
    """
    return signals._replace(returned=signals.errors @ backward_kernel)


def with_shuffled_errors(signals: Signals, backward_kernel: Array, rng: np.random.Generator) -> Signals:
    """Returns the signals with the errors of other examples of the batch (Figure 5).

    The rows of delta_(l+1) are permuted against those of L_(l-1); each row stays whole, so that the errors keep their
    own statistics and lose what binds them to the outputs.

    Args:
        signals: of one iteration.
        backward_kernel: B_l, `(above, units)`.
        rng: of the permutation, another one at every iteration.
    """
    errors = signals.errors[rng.permutation(len(signals.errors))]
    return signals._replace(errors=errors, returned=errors @ backward_kernel)
