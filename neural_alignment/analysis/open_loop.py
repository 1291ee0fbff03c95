"""A two-layer network with imposed inputs and output errors (Rahmansetayesh et al., Figure 1B and section 4.3).

The network does not learn a task. The experiment shows which statistics of the signals align W_1 with B_1^T.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from neural_alignment.analysis.signals import RELU, Nonlinearity
from neural_alignment.analysis.similarity import angle

Array = np.ndarray
Imposed = Iterator[tuple[Array, Array]]
"""Yields L_0 `(batch, inputs)` and delta_2 `(batch, outputs)` of every iteration."""

SIZES = {"inputs": 20, "hidden": 100, "outputs": 20, "batch": 100}
"""The sizes of Figure 1B."""

RATE = 0.002
"""The learning rate in the text; the published notebook has 0.0004."""


def constant(rng: np.random.Generator) -> Imposed:
    """Yields constant signals, drawn once: autocorrelated, not cross-correlated."""
    signals = _draw(rng, "inputs"), _draw(rng, "outputs")
    while True:
        yield signals


def cross_correlated(rng: np.random.Generator) -> Imposed:
    """Yields delta_2 = L_0, drawn again at every iteration: cross-correlated, not autocorrelated."""
    while True:
        signal = _draw(rng, "inputs")
        yield signal, signal


def neither(rng: np.random.Generator) -> Imposed:
    """Yields independent signals, both drawn again at every iteration."""
    while True:
        yield _draw(rng, "inputs"), _draw(rng, "outputs")


def _draw(rng: np.random.Generator, units: str) -> Array:
    return rng.normal(size=(SIZES["batch"], SIZES[units]))


CONDITIONS: dict[str, Callable[[np.random.Generator], Imposed]] = {
    "constant": constant,
    "cross_correlated": cross_correlated,
    "neither": neither,
}
"""The conditions of Figure 1B."""


def run(
    condition: str, rng: np.random.Generator, iterations: int, rate: float = RATE, activation: Nonlinearity = RELU
) -> Array:
    """Returns the angle between W_1 and B_1^T in degrees, before every iteration and after the last.

    W_0, W_1 and B_1 are drawn from N(0, 1). There are no biases. Each iteration adds eta L_1^T delta_2 to W_1 and
    eta L_0^T delta_1 to W_0, with delta_1 = delta_2 B_1 f'(Z_1).

    Args:
        condition: one of `CONDITIONS`.
        rng: generator of the weights and signals.
        iterations: number of iterations.
        rate: the learning rate eta.
        activation: the nonlinearity f of the hidden layer.

    Returns:
        `(iterations + 1,)`.

    Raises:
        ValueError: if the condition is unknown.
    """
    if condition not in CONDITIONS:
        raise ValueError(
            f"`condition` must be one of {', '.join(CONDITIONS)}. Received {condition!r}. Example: 'constant'."
        )
    first = rng.normal(size=(SIZES["inputs"], SIZES["hidden"]))
    second = rng.normal(size=(SIZES["hidden"], SIZES["outputs"]))
    backward = rng.normal(size=(SIZES["outputs"], SIZES["hidden"]))
    angles = [angle(second, backward.T)]
    for _, (inputs, errors) in zip(range(iterations), CONDITIONS[condition](rng), strict=False):
        states = inputs @ first
        second = second + rate * activation.value(states).T @ errors
        first = first + rate * inputs.T @ (errors @ backward * activation.derivative(states))
        angles.append(angle(second, backward.T))
    return np.array(angles)
