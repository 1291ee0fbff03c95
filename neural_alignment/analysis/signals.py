"""Forward outputs and backward errors of a fully connected network (Rahmansetayesh et al., section 4.1).

Layers are numbered as in the paper: L_0 is the input, Z_l = L_(l-1) W_(l-1) + b_l and L_l = f(Z_l) for 0 < l <= d. A
network has d layers with weights. `kernels[l]` is W_l, `biases[l - 1]` is b_l, and `backward_kernels[l]` is B_l, which
takes the place of W_l^T; there is no B_0. Errors are negative gradients: delta_d = (Y* - Y) f'(Z_d), and updates are
added to the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

Array = np.ndarray


class Nonlinearity(NamedTuple):
    """An element-wise nonlinearity.

    Attributes:
        value: the function f, for arrays of any shape.
        derivative: its derivative f'.
        higher: its second, third and further derivatives, as far as they are needed.
    """

    value: Callable[[Array], Array]
    derivative: Callable[[Array], Array]
    higher: tuple[Callable[[Array], Array], ...] = ()

    def derivatives(self, degree: int) -> list[Callable[[Array], Array]]:
        """Returns the first derivatives, f' to f^(degree).

        Raises:
            ValueError: if the nonlinearity does not define so many.
        """
        found = [self.derivative, *self.higher]
        if not 1 <= degree <= len(found):
            raise ValueError(f"`degree` must be between 1 and {len(found)}. Received {degree!r}. Example: degree=1.")
        return found[:degree]


RELU = Nonlinearity(lambda z: np.maximum(z, 0), lambda z: (z > 0).astype(z.dtype))


def _tanh_relu(z: Array) -> Array:
    return np.tanh(np.maximum(z, 0))


def _tanh_relu_second(z: Array) -> Array:
    outputs = _tanh_relu(z)
    return -2 * outputs * (1 - outputs**2)


def _tanh_relu_third(z: Array) -> Array:
    squares = _tanh_relu(z) ** 2
    return np.where(z > 0, (1 - squares) * (6 * squares - 2), 0)


TANH_RELU = Nonlinearity(
    _tanh_relu, lambda z: np.where(z > 0, 1 - np.tanh(z) ** 2, 0), (_tanh_relu_second, _tanh_relu_third)
)
"""tanh(ReLU(z)) (section 2.3.1). The derivative, (z > 0) / cosh(z)^2, is written in a form that does not overflow."""


class NetworkOutputs(NamedTuple):
    """The outputs and states of a network of d layers for one batch.

    Attributes:
        outputs: L_0 to L_d, each `(batch, units)`.
        states: Z_1 to Z_d, each `(batch, units)`: `states[l - 1]` is Z_l.
    """

    outputs: list[Array]
    states: list[Array]


def forward(
    inputs: Array, kernels: Sequence[Array], biases: Sequence[Array], activation: Nonlinearity
) -> NetworkOutputs:
    """Returns the outputs and states of all layers.

    Args:
        inputs: L_0, `(batch, inputs)`.
        kernels: W_0 to W_(d-1), each `(units below, units)`.
        biases: b_1 to b_d, each `(units,)`.
        activation: the nonlinearity f of all layers.
    """
    outputs, states = [inputs], []
    for kernel, bias in zip(kernels, biases, strict=True):
        states.append(outputs[-1] @ kernel + bias)
        outputs.append(activation.value(states[-1]))
    return NetworkOutputs(outputs, states)


def output_error(signals: NetworkOutputs, targets: Array, activation: Nonlinearity) -> Array:
    """Returns delta_d = (Y* - Y) f'(Z_d), `(batch, outputs)`, for the half-squared error (equations 18 and 20).

    Args:
        signals: the forward pass of a batch.
        targets: Y*, `(batch, outputs)`.
        activation: f.
    """
    return (targets - signals.outputs[-1]) * activation.derivative(signals.states[-1])


def sequential_errors(
    error: Array, states: Sequence[Array], backward_kernels: Sequence[Array | None], activation: Nonlinearity
) -> list[Array]:
    """Returns delta_1 to delta_d (equations 2 and 21). With W_l^T as B_l this is backpropagation (equation 19).

    Args:
        error: delta_d, `(batch, outputs)`.
        states: Z_1 to Z_d.
        backward_kernels: B_0 to B_(d-1), each `(units above, units)`; B_0 is not read.
        activation: f.
    """
    errors = [error]
    for kernel, state in zip(reversed(backward_kernels[1:]), reversed(states[:-1]), strict=True):
        errors.insert(0, errors[0] @ kernel * activation.derivative(state))
    return errors


def direct_errors(
    error: Array, states: Sequence[Array], feedback: Sequence[Array | None], activation: Nonlinearity
) -> list[Array]:
    """Returns delta_1 to delta_d of direct feedback alignment (equation 6).

    Args:
        error: delta_d, `(batch, outputs)`.
        states: Z_1 to Z_d.
        feedback: F_0 to F_(d-1), each `(outputs, units)`; F_0 is not read.
        activation: f.
    """
    hidden = zip(feedback[1:], states[:-1], strict=True)
    return [*(error @ kernel * activation.derivative(state) for kernel, state in hidden), error]


def updates(outputs: Sequence[Array], errors: Sequence[Array], rate: float) -> tuple[list[Array], list[Array]]:
    """Returns the updates of the kernels and biases (equations 16, 17, 22 and 23).

    The updates are sums over the batch. The learning rate is applied only here, as in the paper's methods section. In
    its equation 2 the rate is also a factor of the errors.

    Args:
        outputs: L_0 to L_d.
        errors: delta_1 to delta_d.
        rate: the learning rate.

    Returns:
        The updates of W_0 to W_(d-1), and those of b_1 to b_d.
    """
    kernels = [rate * below.T @ error for below, error in zip(outputs[:-1], errors, strict=True)]
    return kernels, [rate * error.sum(axis=0) for error in errors]
