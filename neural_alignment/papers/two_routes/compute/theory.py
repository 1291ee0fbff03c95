"""Section 4 and Appendices D.1 and D.2 of Kunin et al. 2020: closed forms beside the flows of the library.

The closed forms are in `analysis.dynamics`. The flows are float64 gradients by TensorFlow through
`alignments.primitives` and `operations`, the code that trains networks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf
from scipy.integrate import solve_ivp

from neural_alignment import operations
from neural_alignment.alignments import primitives
from neural_alignment.analysis import dynamics
from neural_alignment.papers import published
from neural_alignment.reporting import Row

Array = np.ndarray

PRINTED_EIGENVALUES = {row.pop("rule"): row for row in published.read("two_routes/eigenvalues")}
"""Rule -> lambda_u and lambda_v as printed in Appendix D.1. lambda_v of symmetric and activation lacks a factor 2."""


def layer_objective(
    rule: dynamics.ScalarRule | dynamics.Autoencoder, inputs: tf.Tensor, forward: tf.Tensor, backward: tf.Tensor
) -> tf.Tensor:
    """Returns R of one linear layer as a sum of `alignments.primitives`.

    Args:
        rule: the weights of the primitives; a missing one counts as 0.
        inputs: `(batch, inputs)` float64.
        forward: W, `(inputs, outputs)`.
        backward: B, in the layout of W.
    """
    linear = operations.DenseMap()
    projection = linear.project(inputs, forward)
    terms = {
        "decay": lambda: primitives.decay(backward),
        "amp": lambda: primitives.amp(linear.project(inputs, backward), projection),
        "null": lambda: primitives.null(linear.reconstruct(projection, backward, like=inputs)),
        "sparse": lambda: primitives.sparse(linear.project(inputs, backward)),
        "self_": lambda: primitives.self_(forward, backward),
    }
    weights = {name: getattr(rule, name, 0.0) for name in terms}
    return tf.add_n([weight * terms[name]() for name, weight in weights.items() if weight])


def scalar_flow(rule: dynamics.ScalarRule, inputs: Array) -> Callable[[float, Array], Array]:
    """Returns the symmetrised flow of (w, b) for inputs `(batch,)`, as a function for `solve_ivp`.

    b descends R, and w descends R with the two weights exchanged (D.1).
    """
    x = tf.constant(np.reshape(inputs, (-1, 1)), tf.float64)

    @tf.function
    def descent(forward: tf.Tensor, backward: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            tape.watch(backward)
            objective = layer_objective(rule, x, forward, backward)
        return -tape.gradient(objective, backward)

    def flow(_: float, state: Array) -> Array:
        w, b = (tf.constant([[value]], tf.float64) for value in state)
        return np.array([descent(b, w).numpy().item(), descent(w, b).numpy().item()])

    return flow


def autoencoder_flow(system: dynamics.Autoencoder, inputs: Array) -> Callable[[Array, Array], tuple[Array, Array]]:
    """Returns the flow of W and B under R_IA plus decay of W, for inputs `(batch, inputs)`."""
    x = tf.constant(inputs, tf.float64)

    def flow(forward: Array, backward: Array) -> tuple[Array, Array]:
        weights = [tf.constant(each, tf.float64) for each in (forward, backward)]
        with tf.GradientTape() as tape:
            tape.watch(weights)
            objective = layer_objective(system, x, *weights) + system.decay * primitives.decay(weights[0])
        d_forward, d_backward = tape.gradient(objective, weights)
        return -d_forward.numpy(), -d_backward.numpy()

    return flow


def network_flow(strategy: str, x: Array, y: Array) -> Callable[[Array], Array]:
    """Returns the flow of two scalar layers under J and one of `dynamics.STRATEGIES` for b; x and y `(examples,)`."""
    inputs, targets = (tf.constant(np.reshape(each, (-1, 1)), tf.float64) for each in (x, y))

    def flow(state: Array) -> Array:
        w_1, w_2, b = (tf.constant([[value]], tf.float64) for value in (*state, state[1])[:3])
        with tf.GradientTape() as tape:
            tape.watch([w_1, w_2])
            # The backward kernel of the first layer has no effect: nothing uses the error at the data.
            outputs = operations.matmul(operations.matmul(inputs, w_1, w_1), w_2, b)
            loss = tf.reduce_mean(tf.square(targets - outputs)) / 2
        forward = [-gradient.numpy().item() for gradient in tape.gradient(loss, [w_1, w_2])]
        if strategy == "backpropagation":
            return np.array(forward)
        if strategy == "feedback":
            return np.array([*forward, 0.0])
        with tf.GradientTape() as tape:
            tape.watch(b)
            objective = layer_objective(dynamics.symmetric_alignment(), inputs, w_2, b)
        return np.array([*forward, -tape.gradient(objective, b).numpy().item()])

    return flow


def symmetrised_flow(forward: Array, backward: Array, decay: float, x: float = 1.0) -> Array:
    """Returns the symmetrised flow of weight mirror with scalar weights, dw/dt and db/dt, `(2, *shape)`.

    d(w, b)/dt = -grad (P_amp + decay (P_decay(b) + P_decay(w))) for alpha = 1 (equation 1, Appendix D.1). It equals
    -A (w, b) with A = [[decay, -x^2], [-x^2, decay]].

    Args:
        forward: w, any shape.
        backward: b, the same shape.
        decay: lambda_WM.
        x: scalar input of the layer.
    """
    weights = tf.stack([tf.constant(values, tf.float64) for values in (forward, backward)])
    with tf.GradientTape() as tape:
        tape.watch(weights)
        w, b = (tf.reshape(values, [-1, 1]) for values in tf.unstack(weights))
        # All weights are one batch. amp is a mean over the batch, decay a sum.
        amp = primitives.amp(b * x, w * x) * tf.cast(tf.size(w), tf.float64)
        regulariser = amp + decay * (primitives.decay(b) + primitives.decay(w))
    return -tape.gradient(regulariser, weights).numpy()


def eigenvalue_rows() -> list[Row]:
    """Returns the eigenvalues of D.1 beside the printed ones, and the error of the closed form (Table D1)."""
    cases = [
        ("weight_mirror", decay, dynamics.weight_mirror(decay), 1.0) for decay in dynamics.FIGURE_2_DECAYS.values()
    ]
    symmetric, activation = dynamics.symmetric_alignment(), dynamics.activation_alignment()
    cases += [("symmetric", "", symmetric, x_squared) for x_squared in (1.0, 2.25)]
    cases += [("activation", "", activation, x_squared) for x_squared in (1.0, 2.25)]
    return [
        {
            "rule": name,
            "lambda_WM": decay,
            "x_squared": x_squared,
            **dict(zip(("lambda_u", "lambda_v"), rule.eigenvalues(x_squared), strict=True)),
            **{f"printed_{key}": text for key, text in PRINTED_EIGENVALUES[name].items()},
            "regime": rule.regime(x_squared),
            "largest_error_of_closed_form": _closed_form_error(rule, x_squared),
        }
        for name, decay, rule, x_squared in cases
    ]


def _closed_form_error(rule: dynamics.ScalarRule, x_squared: float) -> float:
    """Returns the largest difference of the closed form to the library's flow from (0.7, -0.2) over 3 units of time."""
    times = np.linspace(0.0, 3.0, 7)
    flow = scalar_flow(rule, np.full(4, np.sqrt(x_squared)))
    found = solve_ivp(flow, (0.0, 3.0), [0.7, -0.2], t_eval=times, rtol=1e-9, atol=1e-12).y.T
    return float(np.abs(found - rule.solution(0.7, -0.2, times, x_squared)).max())


def fixed_points() -> list[Row]:
    """Returns the fixed points of D.2 with their eigenvalues by formula and from the library's flow (Table D2)."""
    x, y = np.array([0.5, -1.0, 2.0, 0.25]), np.array([1.0, -0.5, 1.5, 1.0])
    return [
        {
            "strategy": strategy,
            "where": where,
            "point": point,
            "eigenvalues": formula,
            "eigenvalues_of_the_library": np.linalg.eigvals(
                dynamics.numerical_jacobian(network_flow(strategy, x, y), point)
            ),
            "kind": dynamics.stability(formula),
        }
        for strategy, where, point, formula in _fixed_points(dynamics.ScalarNetwork.of(x, y))
    ]


def _fixed_points(network: dynamics.ScalarNetwork) -> Iterator[tuple[str, str, Array, Array]]:
    """Yields strategy, name, state and eigenvalues by formula; the third minimum of feedback alignment is unstable."""
    for strategy in dynamics.STRATEGIES:
        for w_1, b in ((0.6, 0.8), (-1.1, -0.8), (0.6, -0.9))[: 3 if strategy == "feedback" else 2]:
            point = network.minimum(strategy, w_1, b)
            yield strategy, "minimum of J", point, network.minimum_eigenvalues(strategy, point)
        origin = np.zeros(2 if strategy == "backpropagation" else 3)
        yield strategy, "origin", origin, network.origin_eigenvalues(strategy)
    yield "feedback", "b = w_1 = 0", np.array([0.0, 0.7, 0.0]), np.zeros(3)


def autoencoder_rows(starts: int = 100, seed: int = 0) -> list[Row]:
    """Returns how many random starts of the symmetrised flow of Information Alignment reach W = B (Table IA).

    With a decay of 4, above the largest second moment, both weights vanish. Without decay W and B differ.

    Args:
        starts: random starts of each row; entries of W and B are normal with standard deviation 1/2.
        seed: seed of the data and the starts.
    """
    rng = np.random.default_rng(seed)
    inputs, outputs = 6, 3
    scales = np.sqrt([3.0, 2.0, 1.5, 1.0, 0.7, 0.4])
    rotation, _ = np.linalg.qr(rng.normal(size=(inputs, inputs)))
    covariance = (rotation * scales**2) @ rotation.T
    pairs = [tuple(rng.normal(0.0, 0.5, (2, inputs, outputs))) for _ in range(starts)]
    forward = np.stack([forward for forward, _ in pairs])
    rows = []
    for amp, decay, null in ((1.0, 0.5, 1.0), (1.0, 0.1, 1.0), (2.0, 0.5, 0.7), (1.0, 4.0, 1.0), (1.0, 0.0, 1.0)):
        system = dynamics.Autoencoder(covariance, amp, decay, null)
        ends = dynamics.integrate(system, pairs, duration=30.0 / min(max(decay, 0.1), 1.0))
        fixed = dynamics.asymmetry(forward, np.stack([*map(system.decoder, forward)])) if decay else np.nan
        rows.append(
            {
                "amp": amp,
                "decay": decay,
                "null": null,
                "starts": starts,
                "symmetric": int((ends.asymmetry < 1e-4).sum()),
                "at_the_minimum": int((ends.excess < 1e-6).sum()),
                "median_asymmetry": float(np.median(ends.asymmetry)),
                "largest_asymmetry": float(ends.asymmetry.max()),
                "largest_speed": float(ends.speed.max()),
                "largest_norm": float(np.linalg.norm(ends.forward, axis=(1, 2)).max()),
                "median_asymmetry_where_W_is_fixed": float(np.median(fixed)),
            }
        )
    return rows
