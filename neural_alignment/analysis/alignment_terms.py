"""Alignment terms: what of an update of W_l comes from B_l through earlier updates of W_(l-1).

Rahmansetayesh et al., equations 3 to 5 and 11. The update of layer l at iteration k is eta f(Z_l)^T delta_(l+1). With
zeta^o = L_(l-1)[k] W_(l-1)[k - o] + b_l[k], so that zeta^0 = Z_l[k], it is without any approximation

    eta f(zeta^0)^T delta = sum_o eta (f(zeta^(o-1)) - f(zeta^o))^T delta + eta f(zeta^K)^T delta,   o = 1 .. K

and each difference is its first-order Taylor term, the alignment term of order o, and a Taylor error. The Taylor errors
add up to the remainder, the last summand is the zero-degree term. Equation 11 has K = k, back to the initial weights;
here K may be smaller: the history that is kept is bounded, and the expansion then ends at the oldest iteration in it.

An alignment term needs of iteration k - o what it added to W_(l-1), and W_(l-1) itself: matrices of the size of the
kernel, whatever the batch. So a history of K iterations takes K (2 below * units + below * above) numbers, and a term
4 batch * below * units + 2 batch * units * above operations; the expansion of all iterations up to k costs O(k^2). See
`cost`.

Where something else than the update moves W_(l-1), such as weight normalisation, its share is in the remainder.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from neural_alignment.analysis.signals import Activation

Array = np.ndarray


class Signals(NamedTuple):
    """Signals about one hidden layer l, 0 < l < d, at one iteration.

    Attributes:
        inputs: L_(l-1), `(batch, below)`.
        kernel: W_(l-1), `(below, units)`.
        bias: b_l, `(units,)`.
        errors: delta_(l+1), `(batch, above)`.
        returned: the error that comes back to the layer, before its gate f'(Z_l), `(batch, units)`: delta_(l+1) B_l,
            or delta_d F_l in direct feedback alignment.
    """

    inputs: Array
    kernel: Array
    bias: Array
    errors: Array
    returned: Array

    @classmethod
    def of_layer(
        cls,
        layer: int,
        outputs: Sequence[Array],
        errors: Sequence[Array],
        kernels: Sequence[Array],
        biases: Sequence[Array],
        backward_kernels: Sequence[Array | None],
    ) -> Signals:
        """Returns the signals about a layer of a network of d layers that learns by BP-TRW.

        Args:
            layer: l, from 1 to d - 1.
            outputs: L_0 to L_d.
            errors: delta_1 to delta_d.
            kernels: W_0 to W_(d-1).
            biases: b_1 to b_d.
            backward_kernels: B_0 to B_(d-1), of which B_0 is not read.

        Raises:
            ValueError: if the layer is not a hidden one: no other has a backward kernel.
        """
        if not 1 <= layer < len(kernels):
            raise ValueError(f"`layer` must be hidden, from 1 to {len(kernels) - 1}. Received {layer!r}.")
        error = errors[layer]
        return cls(outputs[layer - 1], kernels[layer - 1], biases[layer - 1], error, error @ backward_kernels[layer])


class History:
    """What the expansion needs of past iterations, of the last `capacity` of them.

    Args:
        rate: the learning rate eta.
        activation: f of the layer.
        capacity: how many iterations are kept.

    Raises:
        ValueError: if `capacity` is not positive.
    """

    def __init__(self, rate: float, activation: Activation, capacity: int):
        if capacity < 1:
            raise ValueError(f"`capacity` must be positive. Received {capacity!r}. Example: capacity=600.")
        self.rate = rate
        self.activation = activation
        self.capacity = capacity
        self.iterations = 0
        self._kept: tuple[Array, Array, Array] | None = None

    def __len__(self) -> int:
        """How many iterations are kept: the largest order there is."""
        return min(self.iterations, self.capacity)

    def append(self, signals: Signals) -> None:
        """Adds an iteration that is over, forgetting the oldest where there is no more room.

        Args:
            signals: with the weights as they were before the update of that iteration.
        """
        gate = self.activation.derivative(signals.inputs @ signals.kernel + signals.bias)
        step = self.rate * signals.inputs.T @ (signals.returned * gate)
        entry = (signals.kernel, step, signals.inputs.T @ signals.errors)
        if self._kept is None:
            self._kept = tuple(np.empty((self.capacity, *each.shape), each.dtype) for each in entry)
        for kept, each in zip(self._kept, entry, strict=True):
            kept[self.iterations % self.capacity] = each
        self.iterations += 1

    def kernel(self, lag: int) -> Array:
        """Returns W_(l-1)[k - lag], `(below, units)`; `lag` 1 is the iteration that was added last."""
        return self._entry(0, lag)

    def step(self, lag: int) -> Array:
        """Returns eta L_(l-1)[k - lag]^T delta_l[k - lag], `(below, units)`: what was added to W_(l-1)."""
        return self._entry(1, lag)

    def correlation(self, lag: int) -> Array:
        """Returns L_(l-1)[k - lag]^T delta_(l+1)[k - lag], `(below, above)`."""
        return self._entry(2, lag)

    def _entry(self, which: int, lag: int) -> Array:
        if not 1 <= lag <= len(self):
            raise ValueError(
                f"The order must be between 1 and the number of iterations that are kept, {len(self)}. Received "
                f"{lag!r}. Example: a history of a greater capacity."
            )
        return self._kept[which][(self.iterations - lag) % self.capacity]


def update(history: History, signals: Signals) -> Array:
    """Returns what iteration k adds to W_l, eta L_l^T delta_(l+1), `(units, above)`: equation 22.

    Args:
        history: of the iterations before k; its rate and nonlinearity.
        signals: of iteration k.
    """
    return _weighted(history, signals, history.activation.value(_point(history, signals, 0)))


def alignment_term(history: History, signals: Signals, order: int) -> Array:
    """Returns the alignment term of one order, `(units, above)`: equation 4; of direct feedback alignment S15.

    Args:
        history: of the iterations before k.
        signals: of iteration k.
        order: o, from 1 to `len(history)`.

    Raises:
        ValueError: if iteration k - o is not in the history.
    """
    point = _point(history, signals, order)
    return _weighted(history, signals, _tangent(history, signals, point, order))


def alignment_terms(history: History, signals: Signals) -> Iterator[tuple[int, Array]]:
    """Yields every order that is kept and its alignment term, one at a time; arguments as of `alignment_term`."""
    for order in range(1, len(history) + 1):
        yield order, alignment_term(history, signals, order)


def alignment_sum(history: History, signals: Signals) -> Array:
    """Returns the sum of the alignment terms of all orders that are kept, `(units, above)`: that of `expand` alone.

    It takes about half as long as `expand`, which needs the outputs at every order besides. Arguments as of `update`.
    """
    aligned = np.zeros_like(signals.returned)
    for order in range(1, len(history) + 1):
        aligned += _tangent(history, signals, _point(history, signals, order), order)
    return _weighted(history, signals, aligned)


def zero_degree_term(history: History, signals: Signals) -> Array:
    """Returns eta f(zeta^K)^T delta_(l+1), `(units, above)`, with W_(l-1) of the oldest iteration that is kept.

    That of section 2.3.3 (Figure S6) where the history goes back to the initial weights. Arguments as of `update`.
    """
    return _weighted(history, signals, history.activation.value(_point(history, signals, len(history))))


class Expansion(NamedTuple):
    """An update and what it is the sum of; each `(units, above)`.

    Attributes:
        update: eta L_l^T delta_(l+1).
        alignment: sum of the alignment terms of all orders.
        zero_degree: the zero-degree term.
        remainder: the Taylor errors, each computed for itself; equation 11 to rounding.
    """

    update: Array
    alignment: Array
    zero_degree: Array
    remainder: Array


def expand(history: History, signals: Signals) -> Expansion:
    """Returns the expansion of the update of iteration k, over all orders that are kept.

    The remainder is not what the others leave: it is summed from the Taylor errors of the orders.

    Args:
        history: of the iterations before k.
        signals: of iteration k.
    """
    value = history.activation.value
    point = _point(history, signals, 0)
    outputs = before = value(point)
    aligned, errors = np.zeros_like(outputs), np.zeros_like(outputs)
    for order in range(1, len(history) + 1):
        point = _point(history, signals, order)
        after, tangent = value(point), _tangent(history, signals, point, order)
        aligned += tangent
        errors += before - after - tangent
        before = after
    return Expansion(*(_weighted(history, signals, each) for each in (outputs, aligned, before, errors)))


def transformation(history: History, signals: Signals, order: int) -> Array:
    """Returns M of one order, `(above, above)`: equation 5; arguments as of `alignment_term`."""
    return history.correlation(order).T @ (signals.inputs.T @ signals.errors)


def linear_term(history: History, signals: Signals, backward_kernel: Array, order: int) -> Array:
    """Returns eta^2 B^T M, `(units, above)`: equation 5, and with Q_l for B equation 8.

    The alignment term of a linear network; of another one it is what is left when both gates are ignored.

    Args:
        history: of the iterations before k.
        signals: of iteration k.
        backward_kernel: B_l, `(above, units)`.
        order: o, from 1 to `len(history)`.

    Raises:
        ValueError: if iteration k - o is not in the history.
    """
    return history.rate**2 * backward_kernel.T @ transformation(history, signals, order)


def _point(history: History, signals: Signals, order: int) -> Array:
    """Returns zeta^o, `(batch, units)`; of order 0 it is Z_l."""
    kernel = history.kernel(order) if order else signals.kernel
    return signals.inputs @ kernel + signals.bias


def _tangent(history: History, signals: Signals, point: Array, order: int) -> Array:
    """Returns f'(zeta^o) times the change of zeta by the update of iteration k - o, `(batch, units)`."""
    return history.activation.derivative(point) * (signals.inputs @ history.step(order))


def _weighted(history: History, signals: Signals, outputs: Array) -> Array:
    """Returns eta outputs^T delta_(l+1), `(units, above)`."""
    return history.rate * outputs.T @ signals.errors


class Cost(NamedTuple):
    """What the alignment terms of one layer take.

    Attributes:
        memory: bytes of the history.
        operations: floating-point operations.
    """

    memory: int
    operations: int


def cost(batch: int, sizes: tuple[int, int, int], terms: int, appended: int, capacity: int, itemsize: int = 8) -> Cost:
    """Returns what it takes to compute alignment terms, each by itself, and to keep the history that they need.

    Args:
        batch: examples of a batch.
        sizes: units of the layers l - 1, l and l + 1.
        terms: how many terms; an iteration k whose history is whole has k of them.
        appended: iterations that the history is told of.
        capacity: how many it keeps.
        itemsize: bytes of a number.
    """
    below, units, above = sizes
    per_term = 4 * batch * below * units + 2 * batch * units * above
    per_iteration = 4 * batch * below * units + 2 * batch * below * above  # What `append` computes.
    memory = capacity * (2 * below * units + below * above) * itemsize
    return Cost(memory, terms * per_term + appended * per_iteration)
