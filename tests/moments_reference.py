"""RAdam and SWATS as float64 loops over NumPy arrays, written from their formulas and not from the library."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

Array = np.ndarray


def rectifier(t: float, beta_2: float, usable: Callable[[float], bool]) -> float | None:
    """Returns r_t, or None if the variance cannot be used."""
    longest = 2 / (1 - beta_2) - 1
    length = longest - 2 * t * beta_2**t / (1 - beta_2**t)
    if not usable(length):
        return None
    return math.sqrt((length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length))


@dataclass
class Moments:
    """Adam's moments of one variable."""

    beta_1: float
    beta_2: float
    m: Array | float = 0.0
    v: Array | float = 0.0

    def update(self, g: Array) -> None:
        """Updates the moments with a gradient."""
        self.m = self.beta_1 * self.m + (1 - self.beta_1) * g
        self.v = self.beta_2 * self.v + (1 - self.beta_2) * g**2


@dataclass
class ReferenceRAdam:
    """RAdam of one variable.

    Attributes:
        usable: condition on rho_t.
        inside: whether epsilon is added under the root, which is a mistake.
    """

    rate: float = 1e-3
    beta_1: float = 0.9
    beta_2: float = 0.999
    epsilon: float = 1e-9
    usable: Callable[[float], bool] = lambda length: length >= 5
    inside: bool = False

    def __post_init__(self):
        self.moments = Moments(self.beta_1, self.beta_2)

    def step(self, g: Array, t: int, rate: float | None = None) -> Array:
        """Returns p, the change of the variable at step t, from 1."""
        rate = self.rate if rate is None else rate
        self.moments.update(g)
        m, v = self.moments.m, self.moments.v
        r = rectifier(t, self.beta_2, self.usable)
        plain = rate / (1 - self.beta_1**t)
        if r is None:
            return -plain * m
        root = np.sqrt(v + self.epsilon) if self.inside else np.sqrt(v) + self.epsilon
        return -plain * r * math.sqrt(1 - self.beta_2**t) * m / root


@dataclass
class ReferenceSWATS:
    """SWATS of one variable."""

    rate: float = 1e-3
    beta_1: float = 0.9
    beta_2: float = 0.999
    epsilon: float = 1e-9
    rectified: bool = False
    usable: Callable[[float], bool] = lambda length: length > 5
    average: float = 0.0
    descent_rate: float | None = None
    accumulator: Array | float = 0.0
    gammas: list[float] = field(default_factory=list)

    def __post_init__(self):
        self.moments = Moments(self.beta_1, self.beta_2)

    def step(self, g: Array, t: int, rate: float | None = None) -> Array:
        """Returns the change of the variable at step t, from 1."""
        if self.descent_rate is not None:
            self.accumulator = self.beta_1 * self.accumulator + g
            return -(1 - self.beta_1) * self.descent_rate * self.accumulator
        rate = self.rate if rate is None else rate
        self.moments.update(g)
        m, v = self.moments.m, self.moments.v
        r = rectifier(t, self.beta_2, self.usable) if self.rectified else 1.0
        plain = rate / (1 - self.beta_1**t)
        p = -plain * m
        if r is not None:
            p = -plain * r * math.sqrt(1 - self.beta_2**t) * m / (np.sqrt(v) + self.epsilon)
        pg = float((p * g).sum())
        if pg != 0:
            gamma = -float((p * p).sum()) / pg
            self.gammas.append(gamma)
            self.average = self.beta_2 * self.average + (1 - self.beta_2) * gamma
            corrected = self.average / (1 - self.beta_2**t)
            if t > 1 and abs(corrected - gamma) < self.epsilon:
                self.descent_rate = corrected
        return p


def trajectory(
    reference: ReferenceRAdam | ReferenceSWATS,
    start: Array,
    gradients: Sequence[Array | None] | Callable[[Array], Array],
    steps: int,
    rates: Sequence[float] | None = None,
    count: Callable[[int], int] = lambda step: step + 1,
) -> Array:
    """Returns the variable after every step.

    Args:
        reference: the optimizer.
        start: the variable before.
        gradients: the gradient of every step, or None for idle steps; or the gradient as a function of the variable.
        steps: number of steps.
        rates: the learning rate of every step, if it changes.
        count: a function from the global step to t.
    """
    w, out = start.astype(np.float64), []
    for step in range(steps):
        g = gradients(w) if callable(gradients) else gradients[step]
        if g is not None:
            w = w + reference.step(np.asarray(g, np.float64), count(step), None if rates is None else rates[step])
        out.append(w.copy())
    return np.array(out)
