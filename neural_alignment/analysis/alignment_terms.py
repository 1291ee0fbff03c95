"""Alignment terms: the part of an update of W_l that comes from B_l through earlier updates of W_(l-1).

Rahmansetayesh et al., equations 3 to 5 and 11. The update of layer l at iteration k is eta f(Z_l)^T delta_(l+1). Let
zeta^o = L_(l-1)[k] W_(l-1)[k - o] + b_l[k], so that zeta^0 = Z_l[k]. The update is then exactly

    eta f(zeta^0)^T delta = sum_o eta (f(zeta^(o-1)) - f(zeta^o))^T delta + eta f(zeta^K)^T delta,   o = 1 .. K

Each difference is the sum of its first-order Taylor term, called the alignment term of order o, and a Taylor error.
The Taylor errors add up to the remainder. The last summand is the zero-degree term. In equation 11, K = k: the
expansion goes back to the initial weights. Here K may be smaller, because the history has a limited capacity; the
expansion then ends at the oldest iteration in the history.

From iteration k - o an alignment term needs W_(l-1) and its update. Both have the size of the kernel, independent of
the batch size. A history of K iterations holds K (2 below * units + below * above) numbers, and a term takes
4 batch * below * units + 2 batch * units * above operations. Expanding all iterations up to k therefore costs O(k^2).
See `cost`.

Changes of W_(l-1) that are not updates, such as weight normalisation, are part of the remainder.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from neural_alignment.analysis.signals import Nonlinearity

Array = np.ndarray


class LayerSignals(NamedTuple):
    """Signals around one hidden layer l, 0 < l < d, at one iteration.

    Attributes:
        inputs: L_(l-1), `(batch, below)`.
        kernel: W_(l-1), `(below, units)`.
        bias: b_l, `(units,)`.
        errors: delta_(l+1), `(batch, above)`.
        returned: the error that arrives at the layer, before it is multiplied by f'(Z_l), `(batch, units)`:
            delta_(l+1) B_l, or delta_d F_l in direct feedback alignment.
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
    ) -> LayerSignals:
        """Returns the signals around one layer of a network of d layers that is trained by feedback alignment.

        Args:
            layer: l, from 1 to d - 1.
            outputs: L_0 to L_d.
            errors: delta_1 to delta_d.
            kernels: W_0 to W_(d-1).
            biases: b_1 to b_d.
            backward_kernels: B_0 to B_(d-1); B_0 is not read.

        Raises:
            ValueError: if the layer is not hidden: other layers have no backward kernel.
        """
        if not 1 <= layer < len(kernels):
            raise ValueError(
                f"`layer` must be a hidden layer, from 1 to {len(kernels) - 1}. Received {layer!r}. Example: layer=1."
            )
        error = errors[layer]
        return cls(outputs[layer - 1], kernels[layer - 1], biases[layer - 1], error, error @ backward_kernels[layer])


class History:
    """The data of past iterations that the expansion needs. It keeps the last `capacity` iterations.

    Args:
        rate: the learning rate eta.
        activation: the layer's nonlinearity f.
        capacity: maximum number of iterations to keep.

    Raises:
        ValueError: if `capacity` is not positive.
    """

    def __init__(self, rate: float, activation: Nonlinearity, capacity: int):
        if capacity < 1:
            raise ValueError(f"`capacity` must be positive. Received {capacity!r}. Example: capacity=600.")
        self.rate = rate
        self.activation = activation
        self.capacity = capacity
        self.iterations = 0
        self._kept: tuple[Array, Array, Array] | None = None

    def __len__(self) -> int:
        """The number of iterations in the history, which is also the largest possible order."""
        return min(self.iterations, self.capacity)

    def append(self, signals: LayerSignals) -> None:
        """Adds a finished iteration. A full history drops its oldest iteration.

        Args:
            signals: signals of the iteration, with the weights before its update.
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
        """Returns W_(l-1)[k - lag], `(below, units)`; `lag` 1 is the most recently added iteration."""
        return self._entry(0, lag)

    def step(self, lag: int) -> Array:
        """Returns the update of W_(l-1), eta L_(l-1)[k - lag]^T delta_l[k - lag], `(below, units)`."""
        return self._entry(1, lag)

    def correlation(self, lag: int) -> Array:
        """Returns L_(l-1)[k - lag]^T delta_(l+1)[k - lag], `(below, above)`."""
        return self._entry(2, lag)

    def _entry(self, which: int, lag: int) -> Array:
        if not 1 <= lag <= len(self):
            raise ValueError(
                f"The order must be between 1 and the number of iterations in the history, {len(self)}. Received "
                f"{lag!r}. Example: a history with a larger capacity."
            )
        return self._kept[which][(self.iterations - lag) % self.capacity]


def update(history: History, signals: LayerSignals) -> Array:
    """Returns the update of W_l at iteration k, eta L_l^T delta_(l+1), `(units, above)` (equation 22).

    Args:
        history: history of the iterations before k, which holds the learning rate and the nonlinearity.
        signals: signals of iteration k.
    """
    return _weighted(history, signals, history.activation.value(_point(history, signals, 0)))


def alignment_term(history: History, signals: LayerSignals, order: int) -> Array:
    """Returns the alignment term of one order, `(units, above)`: equation 4, or S15 for direct feedback alignment.

    Args:
        history: history of the iterations before k.
        signals: signals of iteration k.
        order: o, from 1 to `len(history)`.

    Raises:
        ValueError: if iteration k - o is not in the history.
    """
    point = _point(history, signals, order)
    return _weighted(history, signals, _tangent(history, signals, point, order))


def alignment_terms(history: History, signals: LayerSignals) -> Iterator[tuple[int, Array]]:
    """Yields each order in the history with its alignment term; arguments as for `alignment_term`."""
    for order in range(1, len(history) + 1):
        yield order, alignment_term(history, signals, order)


def alignment_sum(history: History, signals: LayerSignals) -> Array:
    """Returns the sum of the alignment terms of all orders in the history, `(units, above)`.

    It takes about half as long as `expand`, which also computes the outputs at every order. Arguments as for `update`.
    """
    aligned = np.zeros_like(signals.returned)
    for order in range(1, len(history) + 1):
        aligned += _tangent(history, signals, _point(history, signals, order), order)
    return _weighted(history, signals, aligned)


class Expansion(NamedTuple):
    """An update and its summands, each `(units, above)`.

    Attributes:
        update: eta L_l^T delta_(l+1).
        alignment: the sum of the alignment terms of all orders.
        zero_degree: the zero-degree term.
        remainder: the sum of the Taylor errors. Each is computed separately, so equation 11 holds up to rounding.
    """

    update: Array
    alignment: Array
    zero_degree: Array
    remainder: Array


def expand(history: History, signals: LayerSignals) -> Expansion:
    """Returns the expansion of the update at iteration k over all orders in the history.

    The remainder is the sum of the Taylor errors of all orders, not the difference of the other parts.

    Args:
        history: history of the iterations before k.
        signals: signals of iteration k.
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


class TaylorSums(NamedTuple):
    """The terms of each degree in the Taylor series of an update (equation S5).

    Attributes:
        terms: the sum over all orders of the terms of each degree 1, 2, ..., `(degrees, units, above)`. Degree 1 is the
            sum of the alignment terms.
        remainders: the sum of the Taylor errors after each degree, the same shape. The first one is that of `expand`.
    """

    terms: Array
    remainders: Array


def taylor_sums(history: History, signals: LayerSignals, degree: int) -> TaylorSums:
    """Returns the terms of higher degree of the update at iteration k, over all orders in the history.

    Args:
        history: history of the iterations before k.
        signals: signals of iteration k.
        degree: the largest degree.

    Raises:
        ValueError: if the nonlinearity does not define as many derivatives.
    """
    derivatives = history.activation.derivatives(degree)
    before = history.activation.value(_point(history, signals, 0))
    terms, remainders = np.zeros((2, degree, *before.shape), before.dtype)
    for order in range(1, len(history) + 1):
        point, change = _point(history, signals, order), signals.inputs @ history.step(order)
        after = history.activation.value(point)
        left = before - after
        for place, derivative in enumerate(derivatives):
            term = derivative(point) * change ** (place + 1) / math.factorial(place + 1)
            left = left - term
            terms[place] += term
            remainders[place] += left
        before = after
    return TaylorSums(*(np.stack([_weighted(history, signals, each) for each in sums]) for sums in (terms, remainders)))


def transformation(history: History, signals: LayerSignals, order: int) -> Array:
    """Returns M of one order, `(above, above)` (equation 5); arguments as for `alignment_term`."""
    return history.correlation(order).T @ (signals.inputs.T @ signals.errors)


def linear_term(history: History, signals: LayerSignals, backward_kernel: Array, order: int) -> Array:
    """Returns eta^2 B^T M, `(units, above)`: equation 5, or equation 8 with Q_l in place of B.

    This is the alignment term of a linear network. For a nonlinear network it is the alignment term without its two
    factors f'.

    Args:
        history: history of the iterations before k.
        signals: signals of iteration k.
        backward_kernel: B_l, `(above, units)`.
        order: o, from 1 to `len(history)`.

    Raises:
        ValueError: if iteration k - o is not in the history.
    """
    return history.rate**2 * backward_kernel.T @ transformation(history, signals, order)


def _point(history: History, signals: LayerSignals, order: int) -> Array:
    """Returns zeta^o, `(batch, units)`; for order 0 it is Z_l."""
    kernel = history.kernel(order) if order else signals.kernel
    return signals.inputs @ kernel + signals.bias


def _tangent(history: History, signals: LayerSignals, point: Array, order: int) -> Array:
    """Returns f'(zeta^o) times the change of zeta by the update of iteration k - o, `(batch, units)`."""
    return history.activation.derivative(point) * (signals.inputs @ history.step(order))


def _weighted(history: History, signals: LayerSignals, outputs: Array) -> Array:
    """Returns eta outputs^T delta_(l+1), `(units, above)`."""
    return history.rate * outputs.T @ signals.errors


class Cost(NamedTuple):
    """The cost of the alignment terms of one layer.

    Attributes:
        memory: size of the history in bytes.
        operations: number of floating-point operations.
    """

    memory: int
    operations: int


def cost(batch: int, sizes: tuple[int, int, int], terms: int, appended: int, capacity: int) -> Cost:
    """Returns the cost of computing alignment terms one by one and of keeping their history.

    Args:
        batch: examples per batch.
        sizes: number of units of the layers l - 1, l and l + 1.
        terms: number of terms; iteration k has k of them if the history is complete.
        appended: number of iterations added to the history.
        capacity: capacity of the history, whose numbers have 8 bytes.
    """
    below, units, above = sizes
    per_term = 4 * batch * below * units + 2 * batch * units * above
    per_iteration = 4 * batch * below * units + 2 * batch * below * above  # Operations of `append`.
    memory = capacity * (2 * below * units + below * above) * 8
    return Cost(memory, terms * per_term + appended * per_iteration)
