"""Closed-form dynamics from Kunin et al. 2020 (Two Routes), section 4 and Appendices D.1 and D.2.

- `ScalarRule`: one layer with scalar weights under the symmetrised flow of R (Appendix D.1, Figure 2 a-c).
- `ScalarNetwork`: a network of two scalar layers under J (Appendix D.2).
- `Autoencoder`: one linear layer with matrices under the symmetrised flow of Information Alignment, which is a
  regularised linear autoencoder (section 4).

All computations use NumPy in float64. Time is that of the gradient flow: learning rate times steps.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from scipy.integrate import solve_ivp

Array = np.ndarray


# One layer, scalar weights: Appendix D.1.


@dataclasses.dataclass(frozen=True)
class ScalarRule:
    """The symmetrised R of one layer with scalar weights w and b (Appendix D.1, Figure 2).

    R is a sum of the primitives of Table 1 with x_out = w x. In the symmetrised form every term that depends only on b
    also has a counterpart in w, and both weights follow the gradient:

        V(w, b) = (decay + sparse x^2) (w^2 + b^2) / 2 - (amp x^2 + self_) w b + null x^2 (w b)^2 / 2

    Without null the flow is linear, d(w, b)/dt = -A (w, b), A = [[d, -c], [-c, d]], d = decay + sparse x^2,
    c = amp x^2 + self_. Its eigenvectors are u = (1, 1), the symmetric component, and v = (1, -1), the skew one, with
    eigenvalues d - c and d + c.

    Differences from the printed paper:

    - lambda_v of Symmetric and Nonlinearity Alignment is 2 and 2 x^2, as the trace of the paper's matrices shows. The
      paper prints 1 and x^2.
    - "alpha = beta for all three losses" holds for these two rules. Weight mirror's A has amp = 1 and
      decay = lambda_WM. With equal weights lambda_WM would be 1 and there would be only one regime.
    - Weight mirror's A is indefinite only if lambda_WM < x^2; otherwise it is positive (semi)definite.

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
        """Returns V(w, b) in the shape of `w` and `b`.

        Args:
            w: forward weights, any shape.
            b: backward weights, the same shape.
            x_squared: mean of the squared input over the batch.
        """
        diagonal, coupling = self._entries(x_squared)
        return diagonal * (w**2 + b**2) / 2 - coupling * w * b + self.null * x_squared * (w * b) ** 2 / 2

    def velocity(self, w: Array, b: Array, x_squared: float = 1.0) -> tuple[Array, Array]:
        """Returns dw/dt and db/dt; arguments as for `potential`."""
        diagonal, coupling = self._entries(x_squared)
        null = self.null * x_squared * w * b
        return coupling * b - diagonal * w - null * b, coupling * w - diagonal * b - null * w

    def matrix(self, x_squared: float = 1.0) -> Array:
        """Returns A, `(2, 2)`. With null it is the linearisation of the flow at the origin."""
        diagonal, coupling = self._entries(x_squared)
        return np.array([[diagonal, -coupling], [-coupling, diagonal]])

    def eigenvalues(self, x_squared: float = 1.0) -> tuple[float, float]:
        """Returns the eigenvalues (lambda_u, lambda_v) of `matrix`; a component with a negative one grows."""
        diagonal, coupling = self._entries(x_squared)
        return diagonal - coupling, diagonal + coupling

    def regime(self, x_squared: float = 1.0) -> str:
        """Names the behaviour of the symmetric component near the origin (section 4, Figure 2).

        Returns:
            `"diverging"` if lambda_u < 0, `"stable"` if it is 0, `"collapsing"` if it is positive. With null a
            diverging flow ends at `fixed_point`.
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
            ValueError: if null is not 0: then the flow is not linear.
        """
        if self.null:
            raise ValueError(
                f"`null` must be 0 for a closed form. Received {self.null!r}. Example: weight_mirror(0.5)."
            )
        rate_u, rate_v = self.eigenvalues(x_squared)
        times = np.asarray(times, np.float64)
        symmetric, skew = (w + b) / 2 * np.exp(-rate_u * times), (w - b) / 2 * np.exp(-rate_v * times)
        return np.stack([symmetric + skew, symmetric - skew], axis=-1)

    def fixed_point(self, x_squared: float = 1.0) -> float:
        """Returns r such that the flow with null ends at w = b = r: r^2 = (c - d) / (null x^2), or 0.

        This is how null stabilises weight mirror: a flow that diverges without null stops at r. The eigenvalues at this
        point are 2 (c - d) for u and 2 d for v. They are not in the paper; its section 4 refers to Oja's rule instead.

        Raises:
            ValueError: if null is not positive or the input is 0.
        """
        if self.null <= 0 or x_squared <= 0:
            raise ValueError(
                "`null` and `x_squared` must be positive. "
                f"Received null={self.null!r}, x_squared={x_squared!r}. Example: null=1.0."
            )
        diagonal, coupling = self._entries(x_squared)
        return float(np.sqrt(max(coupling - diagonal, 0.0) / (self.null * x_squared)))

    def _entries(self, x_squared: float) -> tuple[float, float]:
        """Returns d and c as defined in the class docstring."""
        return self.decay + self.sparse * x_squared, self.amp * x_squared + self.self_


def weight_mirror(decay: float) -> ScalarRule:
    """Returns weight mirror as in Appendix D.1: amp = 1, decay = lambda_WM."""
    return ScalarRule(amp=1.0, decay=decay)


def symmetric_alignment() -> ScalarRule:
    """Returns Symmetric Alignment with both weights 1."""
    return ScalarRule(self_=1.0, decay=1.0)


def activation_alignment() -> ScalarRule:
    """Returns Nonlinearity Alignment with both weights 1."""
    return ScalarRule(amp=1.0, sparse=1.0)


FIGURE_2_DECAYS = {"diverging": 0.5, "stable": 1.0, "collapsing": 1.5}
"""lambda_WM of the panels a, b, c at x = 1, below, at and above 1. The paper does not print the values it used."""


# Two layers, scalar weights: Appendix D.2.

STRATEGIES = ("backpropagation", "feedback", "symmetric")
"""The strategies compared in Appendix D.2: b = w_2, b = b(0), and db/dt = w_2 - b."""


@dataclasses.dataclass(frozen=True)
class ScalarNetwork:
    """The linear network w_2 w_1 x under J = mean (y - w_2 w_1 x)^2 / 2 (Appendix D.2, equations 2 to 4).

    dw_1/dt = b e and dw_2/dt = w_1 e, with e = alpha - w_1 w_2 beta; db/dt depends on the strategy. States are
    (w_1, w_2, b). The state of backpropagation is (w_1, w_2), with b = w_2.

    Differences from the printed paper:

    - The text exchanges sink and source. A fixed point attracts if the eigenvalues of the flow's Jacobian are negative,
      as in the paper's table and conclusion.
    - The Jacobian is printed transposed, which does not change the eigenvalues. x^2 in the table is beta.
    - Every minimum also has the eigenvalue 0, along the hyperbola of minima. "Sink" refers to the directions across it.
    - The other fixed points of feedback alignment, b = w_1 = 0, form a line, not a hyperplane. All of them have b = 0,
      so for b(0) != 0 the minima are the only fixed points. All eigenvalues are 0 on that line, so linearisation is
      inconclusive. At the origin backpropagation and Symmetric Alignment have a saddle.

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
        """Returns the network for the data x and y, `(examples,)` each."""
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        return cls(float(np.mean(x * y)), float(np.mean(x * x)))

    def velocity(self, strategy: str, state: Array) -> Array:
        """Returns the flow at `state`.

        Args:
            strategy: one of `STRATEGIES`.
            state: `(3,)`, or `(2,)` for backpropagation.

        Raises:
            ValueError: if the strategy is unknown or the state has the wrong shape.
        """
        w_1, w_2, b = self._unpack(strategy, state)
        error = self.alpha - w_1 * w_2 * self.beta
        third = {"backpropagation": [], "feedback": [0.0], "symmetric": [w_2 - b]}[strategy]
        return np.array([b * error, w_1 * error, *third])

    def jacobian(self, strategy: str, state: Array) -> Array:
        """Returns d velocity_i / d state_j, `(3, 3)`, or `(2, 2)` for backpropagation; arguments as for `velocity`."""
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
            b: the backward weight of feedback alignment; the other strategies have b = w_2 there.
        """
        w_2 = self.alpha / self.beta / w_1
        if strategy == "backpropagation":
            return np.array([w_1, w_2])
        return np.array([w_1, w_2, b if strategy == "feedback" else w_2])

    def minimum_eigenvalues(self, strategy: str, state: Array) -> Array:
        """Returns the eigenvalues of the Jacobian at a minimum (the table of Appendix D.2).

        They are -(w_1^2 + b w_2) beta across the hyperbola, 0 along it, and in the third direction 0 (feedback
        alignment) or -1 (Symmetric Alignment). b = w_2 except for feedback alignment.
        """
        w_1, w_2, b = self._unpack(strategy, state)
        across = -(w_1**2 + b * w_2) * self.beta
        third = {"backpropagation": [], "feedback": [0.0], "symmetric": [-1.0]}[strategy]
        return np.array([across, 0.0, *third])

    def origin_eigenvalues(self, strategy: str) -> Array:
        """Returns the eigenvalues at the origin. The paper calls it rank-deficient without stating the eigenvalues.

        They are +-alpha for backpropagation; 0, 0, 0 for feedback alignment; and for Symmetric Alignment the roots of
        z^3 + z^2 - alpha^2, one of which is positive if alpha is not 0.
        """
        if strategy == "backpropagation":
            return np.array([self.alpha, -self.alpha])
        return np.zeros(3) if strategy == "feedback" else np.roots([1.0, 1.0, 0.0, -(self.alpha**2)])

    def fixed_points(self) -> Iterator[tuple[str, str, Array, Array]]:
        """Yields strategy, name, state and eigenvalues of fixed points of each strategy.

        They are two minima, the origin, and for feedback alignment an unstable minimum and one with b = w_1 = 0.
        """
        for strategy in STRATEGIES:
            for w_1, b in ((0.6, 0.8), (-1.1, -0.8), (0.6, -0.9))[: 3 if strategy == "feedback" else 2]:
                point = self.minimum(strategy, w_1, b)
                yield strategy, "minimum of J", point, self.minimum_eigenvalues(strategy, point)
            origin = np.zeros(2 if strategy == "backpropagation" else 3)
            yield strategy, "origin", origin, self.origin_eigenvalues(strategy)
        yield "feedback", "b = w_1 = 0", np.array([0.0, 0.7, 0.0]), np.zeros(3)

    def _unpack(self, strategy: str, state: Array) -> tuple[float, float, float]:
        """Returns w_1, w_2 and b."""
        if strategy not in STRATEGIES:
            raise ValueError(
                f"`strategy` must be one of {', '.join(STRATEGIES)}. Received {strategy!r}. Example: {STRATEGIES[0]!r}."
            )
        size = 2 if strategy == "backpropagation" else 3
        if np.shape(state) != (size,):
            raise ValueError(
                f"`state` must have the shape ({size},) for {strategy}. Received {np.shape(state)}. "
                f"Example: {np.ones(size).tolist()}."
            )
        w_1, w_2, *rest = state
        return w_1, w_2, rest[0] if rest else w_2


def stability(eigenvalues: Array) -> str:
    """Classifies a fixed point by the eigenvalues of its Jacobian.

    Args:
        eigenvalues: `(n,)`, real or complex. Real parts below 1e-9 of the largest eigenvalue count as 0.

    Returns:
        `"sink"`, `"source"` or `"saddle"` by the nonzero real parts, or `"undecided"` if all of them are 0.
    """
    real = np.real(eigenvalues)
    real = real[np.abs(real) > 1e-9 * max(1.0, float(np.abs(eigenvalues).max()))]
    if not real.size:
        return "undecided"
    return "sink" if (real < 0).all() else "source" if (real > 0).all() else "saddle"


def numerical_jacobian(flow: Callable[[Array], Array], point: Array) -> Array:
    """Returns the Jacobian of a flow at a point `(n,)` by central differences, `(n, n)`."""
    step = 1e-6
    return np.stack([(flow(point + h) - flow(point - h)) / (2 * step) for h in step * np.eye(len(point))], axis=1)


# One linear layer with matrices: section 4, Information Alignment.


@dataclasses.dataclass(frozen=True)
class Autoencoder:
    """The symmetrised flow of Information Alignment in a linear layer: a regularised linear autoencoder (section 4).

    With x_out = W^T x, W and B `(inputs, outputs)`, and the second moment C of x over the batch,

        V = -amp tr(B^T C W) + null / 2 tr(B W^T C W B^T) + decay / 2 (||W||^2 + ||B||^2)

    For amp = null this equals amp / 2 mean ||x - B W^T x||^2 + decay / 2 (||W||^2 + ||B||^2), up to a constant. The
    gradient of V to B is that of R_IA. If decay > 0, every critical point has W = B. Kunin et al. 2019 show it for
    amp = null. It holds for all positive amp and null, because weights scaled by sqrt(null / amp) obey the equations
    of amp = null; the paper does not mention this.

    Section 4 does not mention two limits. First, it lets both W and B follow the flow, while the rule changes only B.
    If W is fixed, B converges to `decoder`, which equals W only if W is at a critical point. Second, without decay a
    critical point need not have W = B.

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
        """Returns the limit of B under the rule if W is fixed: amp C W (decay I + null W^T C W)^-1."""
        projected = self.covariance @ forward
        inner = self.decay * np.eye(forward.shape[1]) + self.null * forward.T @ projected
        return self.amp * np.linalg.solve(inner, projected.T).T

    def minimum_gain(self, outputs: int) -> Array:
        """Returns the eigenvalues of B W^T at the global minimum, `(outputs,)`, largest first.

        They are (amp - decay / s) / null for the largest eigenvalues s of C, or 0 if this is negative.
        """
        spectrum = np.linalg.eigvalsh(self.covariance)[::-1][:outputs]
        return np.maximum(self.amp - self.decay / spectrum, 0.0) / self.null


class Ends(NamedTuple):
    """End points of the symmetrised flow of Information Alignment, one row per start.

    Attributes:
        forward: W, `(starts, inputs, outputs)`.
        backward: B, the same shape.
        asymmetry: ||W - B|| / max(||W||, ||B||), `(starts,)`; 0 if both are 0.
        speed: norm of the flow at the end, `(starts,)`; 0 at a critical point.
        excess: V minus its global minimum, `(starts,)`; positive if the flow ended at a saddle.
    """

    forward: Array
    backward: Array
    asymmetry: Array
    speed: Array
    excess: Array


def integrate(system: Autoencoder, starts: Sequence[tuple[Array, Array]], duration: float) -> Ends:
    """Integrates the symmetrised flow of Information Alignment from each start (`scipy.integrate.solve_ivp`, LSODA).

    Args:
        system: the layer.
        starts: pairs of W and B, `(inputs, outputs)` each.
        duration: integration time; the skew part vanishes at a rate of about twice `decay`.
    """
    shape = np.shape(starts[0][0])

    def flow(_: float, state: Array) -> Array:
        return np.concatenate([each.ravel() for each in system.velocity(*state.reshape(2, *shape))])

    states = [
        solve_ivp(flow, (0.0, duration), np.ravel(start), method="LSODA", rtol=1e-9, atol=1e-12).y[:, -1]
        for start in starts
    ]
    pairs = np.reshape(states, (len(starts), 2, *shape))
    forward, backward = pairs[:, 0], pairs[:, 1]
    speed = np.array([np.linalg.norm(flow(0.0, state)) for state in states])
    excess = np.array([system.potential(*pair) for pair in pairs]) - _lowest(system, shape[1])
    return Ends(forward, backward, asymmetry(forward, backward), speed, excess)


def asymmetry(forward: Array, backward: Array) -> Array:
    """Returns ||W - B|| / max(||W||, ||B||) of pairs of matrices, `(pairs,)`; 0 where both matrices are close to 0."""
    largest = np.maximum(*(np.linalg.norm(each, axis=(1, 2)) for each in (forward, backward)))
    difference = np.linalg.norm(forward - backward, axis=(1, 2))
    # Smaller weights have decayed to 0, and their direction is meaningless.
    return np.divide(difference, largest, out=np.zeros_like(largest), where=largest > 1e-6)


def _lowest(system: Autoencoder, outputs: int) -> float:
    """Returns V at its global minimum, where W = B = leading eigenvectors of C times the square roots of the gains."""
    leading = np.linalg.eigh(system.covariance)[1][:, ::-1][:, :outputs]
    weights = leading * np.sqrt(system.minimum_gain(outputs))
    return system.potential(weights, weights)
