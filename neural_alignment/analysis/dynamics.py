"""The dynamics of Kunin et al. 2020 (Two Routes), section 4 and Appendices D.1 and D.2, in closed form.

Three systems: one layer with scalar weights under the symmetrised flow of R (`ScalarRule`, Appendix D.1, Figure 2 a-c);
a network of two scalar layers under J (`ScalarNetwork`, Appendix D.2); one linear layer with matrices under the
symmetrised flow of Information Alignment, which is a regularised linear autoencoder (`Autoencoder`, section 4).
Everything is NumPy in float64; time is that of the gradient flow, learning rate times steps.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.integrate import solve_ivp

Array = np.ndarray


# One layer, scalar weights: Appendix D.1.


@dataclasses.dataclass(frozen=True)
class ScalarRule:
    """R of one layer with scalar w and b, made symmetric in both: Appendix D.1, Figure 2.

    R is a sum of the primitives of Table 1 with x_out = w x. Symmetrised means that every term that holds b alone has
    its twin in w, and that both weights descend:

        V(w, b) = (decay + sparse x^2) (w^2 + b^2) / 2 - (amp x^2 + self_) w b + null x^2 (w b)^2 / 2

    Without null the flow is linear, d(w, b)/dt = -A (w, b), A = [[d, -c], [-c, d]], d = decay + sparse x^2,
    c = amp x^2 + self_. Its eigenvectors are u = (1, 1), the symmetric component, and v = (1, -1), the skew one, with
    eigenvalues d - c and d + c.

    Where the paper's print is wrong or open:

    - lambda_v of Symmetric and Activation Alignment is 2 and 2 x^2: the trace of its own matrices. Printed: 1 and x^2.
    - "alpha = beta for all three losses" holds for these two. Weight mirror's A has amp = 1 and decay = lambda_WM: with
      equal weights lambda_WM would be 1 and there would be no regimes to tell apart.
    - Weight mirror's A is indefinite only where lambda_WM < x^2; else it is positive (semi)definite.

    Args:
        decay: weight of the decay primitive.
        amp: weight of amp.
        null: weight of null.
        sparse: weight of sparse.
        self_: weight of self.
    """

    decay: float = 0.0
    amp: float = 0.0
    null: float = 0.0
    sparse: float = 0.0
    self_: float = 0.0

    def potential(self, w: Array, b: Array, x_squared: float = 1.0) -> Array:
        """Returns V(w, b), of the shape of `w` and `b`.

        Args:
            w: forward weights, any shape.
            b: backward weights, the same shape.
            x_squared: mean of the squared input over the batch.
        """
        diagonal, coupling = self._entries(x_squared)
        return diagonal * (w**2 + b**2) / 2 - coupling * w * b + self.null * x_squared * (w * b) ** 2 / 2

    def velocity(self, w: Array, b: Array, x_squared: float = 1.0) -> tuple[Array, Array]:
        """Returns dw/dt and db/dt; arguments as of `potential`."""
        diagonal, coupling = self._entries(x_squared)
        null = self.null * x_squared * w * b
        return coupling * b - diagonal * w - null * b, coupling * w - diagonal * b - null * w

    def matrix(self, x_squared: float = 1.0) -> Array:
        """Returns A, `(2, 2)`: of the linear flow, or with null of the flow linearised at the origin."""
        diagonal, coupling = self._entries(x_squared)
        return np.array([[diagonal, -coupling], [-coupling, diagonal]])

    def eigenvalues(self, x_squared: float = 1.0) -> tuple[float, float]:
        """Returns (lambda_u, lambda_v) of `matrix`; a negative one means growth."""
        diagonal, coupling = self._entries(x_squared)
        return diagonal - coupling, diagonal + coupling

    def regime(self, x_squared: float = 1.0) -> str:
        """Returns what becomes of the symmetric component near the origin (section 4, Figure 2).

        Returns:
            `"diverging"` where lambda_u < 0, `"stable"` where it is 0, `"collapsing"` where it is positive. With null
            a diverging flow ends in `fixed_point`.
        """
        diagonal, coupling = self._entries(x_squared)
        if np.isclose(diagonal, coupling, rtol=1e-12, atol=0.0):
            return "stable"
        return "diverging" if diagonal < coupling else "collapsing"

    def solution(self, w: float, b: float, times: Array, x_squared: float = 1.0) -> Array:
        """Returns the weights at `times` in closed form: each component times exp(-lambda t).

        Args:
            w: forward weight at time 0.
            b: backward weight at time 0.
            times: `(times,)`.
            x_squared: mean of the squared input over the batch.

        Returns:
            `(times, 2)`: w and b.

        Raises:
            ValueError: with null, where the flow is not linear.
        """
        if self.null:
            raise ValueError(f"`null` must be 0 for a closed form. Received {self.null!r}. Use `velocity` instead.")
        rate_u, rate_v = self.eigenvalues(x_squared)
        times = np.asarray(times, np.float64)
        symmetric, skew = (w + b) / 2 * np.exp(-rate_u * times), (w - b) / 2 * np.exp(-rate_v * times)
        return np.stack([symmetric + skew, symmetric - skew], axis=-1)

    def fixed_point(self, x_squared: float = 1.0) -> float:
        """Returns r such that w = b = r is where the flow with null ends: r^2 = (c - d) / (null x^2), or 0.

        This is how null stabilises weight mirror: where the flow without it diverges, it stops at r. The eigenvalues
        there are 2 (c - d) for u and 2 d for v (not in the paper, whose section 4 argues by Oja's rule).

        Raises:
            ValueError: without null.
        """
        if self.null <= 0 or x_squared <= 0:
            raise ValueError(f"`null` must be positive, and the input not 0. Received {self.null!r}, {x_squared!r}.")
        diagonal, coupling = self._entries(x_squared)
        return float(np.sqrt(max(coupling - diagonal, 0.0) / (self.null * x_squared)))

    def _entries(self, x_squared: float) -> tuple[float, float]:
        """Returns d and c of the class docstring."""
        return self.decay + self.sparse * x_squared, self.amp * x_squared + self.self_


def weight_mirror(decay: float) -> ScalarRule:
    """Returns weight mirror as D.1 has it: amp = 1, decay = lambda_WM."""
    return ScalarRule(amp=1.0, decay=decay)


def symmetric_alignment() -> ScalarRule:
    """Returns Symmetric Alignment with equal weights, 1."""
    return ScalarRule(self_=1.0, decay=1.0)


def activation_alignment() -> ScalarRule:
    """Returns Activation Alignment with equal weights, 1."""
    return ScalarRule(amp=1.0, sparse=1.0)


def information_alignment(decay: float) -> ScalarRule:
    """Returns Information Alignment with amp = null = 1, decay = beta."""
    return ScalarRule(amp=1.0, null=1.0, decay=decay)


FIGURE_2_DECAYS = {"diverging": 0.5, "stable": 1.0, "collapsing": 1.5}
"""lambda_WM of the panels a, b, c at x = 1. The paper prints no values; any below, at and above 1 show the same."""


# Two layers, scalar weights: Appendix D.2.

STRATEGIES = ("backpropagation", "feedback", "symmetric")
"""What D.2 compares: b = w_2, b = b(0), and db/dt = w_2 - b."""


@dataclasses.dataclass(frozen=True)
class ScalarNetwork:
    """The linear network w_2 w_1 x under J = mean (y - w_2 w_1 x)^2 / 2 (Appendix D.2, equations 2 to 4).

    dw_1/dt = b e, dw_2/dt = w_1 e, with e = alpha - w_1 w_2 beta; db/dt by strategy. States are (w_1, w_2, b);
    backpropagation lives in two dimensions, (w_1, w_2), with b = w_2.

    Where the paper's print is wrong or open:

    - Sink and source stand exchanged: a fixed point attracts where the eigenvalues of the flow's Jacobian are negative,
      as in the paper's own table and conclusion.
    - The Jacobian is printed transposed, which leaves the eigenvalues as they are; x^2 in the table is beta.
    - Every minimum has the eigenvalue 0 as well, along the hyperbola: "sink" is to be read across it.
    - Feedback alignment's further fixed points, b = w_1 = 0, are a line, not a hyperplane, and all in the plane b = 0:
      for b(0) != 0 the minima are its only fixed points. All eigenvalues are 0 on that line, so that linearisation
      does not decide. At the origin backpropagation and Symmetric Alignment have a saddle.

    Args:
        alpha: mean of x y over the data.
        beta: mean of x^2 over the data, positive.
    """

    alpha: float
    beta: float

    def __post_init__(self):
        if not self.beta > 0:
            raise ValueError(f"`beta` must be positive. Received {self.beta!r}. Example: 1.0.")

    @classmethod
    def of(cls, x: Array, y: Array) -> ScalarNetwork:
        """Returns the network of data `(examples,)` x and y."""
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        return cls(float(np.mean(x * y)), float(np.mean(x * x)))

    def velocity(self, strategy: str, state: Array) -> Array:
        """Returns the flow at `state`.

        Args:
            strategy: one of `STRATEGIES`.
            state: `(3,)`, or `(2,)` for backpropagation.

        Raises:
            ValueError: if there is no such strategy.
        """
        w_1, w_2, b = self._unpack(strategy, state)
        error = self.alpha - w_1 * w_2 * self.beta
        third = {"backpropagation": [], "feedback": [0.0], "symmetric": [w_2 - b]}[strategy]
        return np.array([b * error, w_1 * error, *third])

    def jacobian(self, strategy: str, state: Array) -> Array:
        """Returns d velocity_i / d state_j, `(3, 3)`, or `(2, 2)` for backpropagation; arguments as of `velocity`."""
        w_1, w_2, b = self._unpack(strategy, state)
        error = self.alpha - w_1 * w_2 * self.beta
        full = np.array(
            [
                [-b * w_2 * self.beta, -b * w_1 * self.beta, error],
                [error - w_1 * w_2 * self.beta, -(w_1**2) * self.beta, 0.0],
                [0.0, 0.0, 0.0],
            ]
        )
        if strategy == "backpropagation":
            full[0, 1] += full[0, 2]  # b is w_2.
            return full[:2, :2]
        if strategy == "symmetric":
            full[2] = [0.0, 1.0, -1.0]
        return full

    def minimum(self, strategy: str, w_1: float, b: float = 0.0) -> Array:
        """Returns the fixed point on the hyperbola w_1 w_2 = alpha / beta with this w_1.

        Args:
            strategy: one of `STRATEGIES`.
            w_1: not 0.
            b: the backward weight of feedback alignment; the others have b = w_2 there.
        """
        w_2 = self.alpha / self.beta / w_1
        if strategy == "backpropagation":
            return np.array([w_1, w_2])
        return np.array([w_1, w_2, b if strategy == "feedback" else w_2])

    def minimum_eigenvalues(self, strategy: str, state: Array) -> Array:
        """Returns the eigenvalues of the Jacobian at a minimum: the table of Appendix D.2.

        -(w_1^2 + b w_2) beta across the hyperbola, 0 along it, and for the third direction 0 (feedback) or -1
        (symmetric); b = w_2 but for feedback alignment.
        """
        w_1, w_2, b = self._unpack(strategy, state)
        across = -(w_1**2 + b * w_2) * self.beta
        third = {"backpropagation": [], "feedback": [0.0], "symmetric": [-1.0]}[strategy]
        return np.array([across, 0.0, *third])

    def origin_eigenvalues(self, strategy: str) -> Array:
        """Returns the eigenvalues at the origin, which the paper calls rank-deficient without giving them.

        +-alpha for backpropagation; 0, 0, 0 for feedback alignment; for Symmetric Alignment the roots of
        z^3 + z^2 - alpha^2, one of which is positive wherever alpha is not 0.
        """
        if strategy == "backpropagation":
            return np.array([self.alpha, -self.alpha])
        return np.zeros(3) if strategy == "feedback" else np.roots([1.0, 1.0, 0.0, -(self.alpha**2)])

    def _unpack(self, strategy: str, state: Array) -> tuple[float, float, float]:
        """Returns w_1, w_2 and b."""
        if strategy not in STRATEGIES:
            raise ValueError(f"`strategy` must be one of {', '.join(STRATEGIES)}. Received {strategy!r}.")
        size = 2 if strategy == "backpropagation" else 3
        if np.shape(state) != (size,):
            raise ValueError(f"`state` must have the shape ({size},) for {strategy}. Received {np.shape(state)}.")
        w_1, w_2, *rest = state
        return w_1, w_2, rest[0] if rest else w_2


def stability(eigenvalues: Array, tolerance: float = 1e-9) -> str:
    """Names a fixed point by the eigenvalues of its Jacobian.

    Args:
        eigenvalues: `(n,)`, real or complex.
        tolerance: real parts of this size, relative to the largest eigenvalue, count as 0.

    Returns:
        `"sink"`, `"source"` or `"saddle"` by the real parts that are not 0; `"undecided"` where all are.
    """
    real = np.real(eigenvalues)
    real = real[np.abs(real) > tolerance * max(1.0, float(np.abs(eigenvalues).max()))]
    if not real.size:
        return "undecided"
    return "sink" if (real < 0).all() else "source" if (real > 0).all() else "saddle"


# One linear layer with matrices: section 4, Information Alignment.


@dataclasses.dataclass(frozen=True)
class Autoencoder:
    """Information Alignment of a linear layer with its symmetrised flow: a regularised linear autoencoder (section 4).

    With x_out = W^T x, W and B `(inputs, outputs)`, and C the second moment of x over the batch,

        V = -amp tr(B^T C W) + null / 2 tr(B W^T C W B^T) + decay / 2 (||W||^2 + ||B||^2)

    which for amp = null is, but for a constant, amp / 2 mean ||x - B W^T x||^2 + decay / 2 (||W||^2 + ||B||^2). V's
    gradient to B is that of R_IA. Wherever decay > 0, every critical point has W = B (Kunin et al. 2019, for
    amp = null; weights that are scaled by sqrt(null / amp) obey the equations of amp = null, so that it holds for all
    positive amp and null, which the paper does not say).

    Two limits that section 4 leaves unsaid: it takes the flow of both, while the rule moves B alone. With W held fixed
    B goes to `decoder`, which is W only where W is at a critical point itself. And without decay W = B does not follow.

    Args:
        covariance: C, `(inputs, inputs)`.
        amp: weight of the amp primitive.
        decay: weight of decay.
        null: weight of null.
    """

    covariance: Array
    amp: float = 1.0
    decay: float = 0.1
    null: float = 1.0

    def potential(self, forward: Array, backward: Array) -> float:
        """Returns V at W and B, `(inputs, outputs)` each."""
        projected = self.covariance @ forward
        reconstruction = np.sum((backward @ (forward.T @ projected)) * backward)
        energy = np.sum(forward**2) + np.sum(backward**2)
        return float(-self.amp * np.sum(backward * projected) + (self.null * reconstruction + self.decay * energy) / 2)

    def velocity(self, forward: Array, backward: Array) -> tuple[Array, Array]:
        """Returns dW/dt and dB/dt, `(inputs, outputs)` each."""
        projected = self.covariance @ forward
        d_forward = (
            self.amp * self.covariance @ backward
            - self.decay * forward
            - self.null * projected @ (backward.T @ backward)
        )
        d_backward = self.amp * projected - self.decay * backward - self.null * backward @ (forward.T @ projected)
        return d_forward, d_backward

    def decoder(self, forward: Array) -> Array:
        """Returns where the rule itself takes B while W does not move: amp C W (decay I + null W^T C W)^-1."""
        projected = self.covariance @ forward
        inner = self.decay * np.eye(forward.shape[1]) + self.null * forward.T @ projected
        return self.amp * np.linalg.solve(inner, projected.T).T

    def minimum_gain(self, outputs: int) -> Array:
        """Returns the eigenvalues of B W^T at the global minimum, `(outputs,)`, largest first.

        (amp - decay / s) / null for the largest eigenvalues s of C, where that is positive, else 0.
        """
        spectrum = np.linalg.eigvalsh(self.covariance)[::-1][:outputs]
        return np.maximum(self.amp - self.decay / spectrum, 0.0) / self.null


class Ends(NamedTuple):
    """Where the symmetrised flow of Information Alignment ended, a row per start.

    Attributes:
        forward: W, `(starts, inputs, outputs)`.
        backward: B, the same shape.
        asymmetry: ||W - B|| / max(||W||, ||B||), `(starts,)`; 0 where both are 0.
        speed: norm of the flow, `(starts,)`: how far the end is from a critical point.
        excess: V above its global minimum, `(starts,)`; what ended at a saddle shows here.
    """

    forward: Array
    backward: Array
    asymmetry: Array
    speed: Array
    excess: Array


def integrate(system: Autoencoder, starts: Sequence[tuple[Array, Array]], duration: float, rtol: float = 1e-9) -> Ends:
    """Follows the symmetrised flow of Information Alignment from each start (`scipy.integrate.solve_ivp`, LSODA).

    Args:
        system: the layer.
        starts: pairs of W and B, `(inputs, outputs)` each.
        duration: time to follow it; the skew part vanishes at a rate of about twice `decay`.
        rtol: relative tolerance of the integration.
    """
    shape = np.shape(starts[0][0])

    def flow(_: float, state: Array) -> Array:
        return np.concatenate([each.ravel() for each in system.velocity(*state.reshape(2, *shape))])

    states = [
        solve_ivp(flow, (0.0, duration), np.ravel(start), method="LSODA", rtol=rtol, atol=1e-12).y[:, -1]
        for start in starts
    ]
    pairs = np.reshape(states, (len(starts), 2, *shape))
    forward, backward = pairs[:, 0], pairs[:, 1]
    norms = np.linalg.norm(pairs, axis=(2, 3)).max(axis=1)
    difference = np.linalg.norm(forward - backward, axis=(1, 2))
    # Below this both weights are what is left of a decay to 0, and have no direction.
    asymmetry = np.divide(difference, norms, out=np.zeros_like(norms), where=norms > 1e-6)
    speed = np.array([np.linalg.norm(flow(0.0, state)) for state in states])
    lowest = _lowest(system, shape[1])
    return Ends(forward, backward, asymmetry, speed, np.array([system.potential(*pair) - lowest for pair in pairs]))


def _lowest(system: Autoencoder, outputs: int) -> float:
    """Returns V at its global minimum: W = B, the leading eigenvectors of C times the square roots of their gains."""
    leading = np.linalg.eigh(system.covariance)[1][:, ::-1][:, :outputs]
    weights = leading * np.sqrt(system.minimum_gain(outputs))
    return system.potential(weights, weights)
