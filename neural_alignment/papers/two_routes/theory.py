"""Section 4 and Appendices D.1 and D.2 of Kunin et al. 2020 as tables: closed forms against the library.

The closed forms come from `analysis.dynamics`. The library's flows are gradients that TensorFlow takes in float64
through `alignments.primitives` and `operations`, the code that trains networks.
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
from neural_alignment.reporting import Artifact, markdown

Array = np.ndarray

PRINTED_EIGENVALUES = {row.pop("rule"): row for row in published.read("two_routes/eigenvalues")}
"""Rule -> lambda_u and lambda_v as printed in Appendix D.1. lambda_v of symmetric and activation lacks a factor 2."""

STARTS = 100
"""Random starts of each row of `autoencoder_table`."""


def layer_objective(
    rule: dynamics.ScalarRule | dynamics.Autoencoder, inputs: tf.Tensor, forward: tf.Tensor, backward: tf.Tensor
) -> tf.Tensor:
    """Returns R of one linear layer, put together from `alignments.primitives`.

    Args:
        rule: the weights of the primitives; one that the rule does not have counts as 0.
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
    """Returns the symmetrised flow of (w, b) through the library, as `solve_ivp` takes it.

    b descends R; w descends the same R with the two weights exchanged, which is what symmetrised means in D.1.

    Args:
        rule: the weights of the primitives.
        inputs: `(batch,)`.
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
    """Returns dW/dt and dB/dt of R_IA plus the decay of W through the library; R is of `inputs` `(batch, inputs)`."""
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
    """Returns the flow of two scalar layers under J through `operations.matmul`, and of b by strategy.

    Args:
        strategy: one of `dynamics.STRATEGIES`.
        x: `(examples,)`.
        y: `(examples,)`.
    """
    inputs, targets = (tf.constant(np.reshape(each, (-1, 1)), tf.float64) for each in (x, y))

    def flow(state: Array) -> Array:
        w_1, w_2, b = (tf.constant([[value]], tf.float64) for value in (*state, state[1])[:3])
        with tf.GradientTape() as tape:
            tape.watch([w_1, w_2])
            # The error to the data is of no use: the first layer's backward kernel may be anything.
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


def flow_table() -> Artifact:
    """Returns the eigenvalues of D.1 beside the printed ones, and the closed form beside the library's flow."""
    rules = [("weight_mirror", name, dynamics.weight_mirror(decay)) for name, decay in dynamics.FIGURE_2_DECAYS.items()]
    rules += [("symmetric", "", dynamics.symmetric_alignment()), ("activation", "", dynamics.activation_alignment())]
    rows = []
    for name, panel, rule in rules:
        for x_squared in (1.0,) if panel else (1.0, 2.25):
            rate_u, rate_v = rule.eigenvalues(x_squared)
            printed = PRINTED_EIGENVALUES[name]
            rows.append(
                {
                    "rule": name,
                    "lambda_WM": rule.decay if panel else "",
                    "x_squared": x_squared,
                    "lambda_u": rate_u,
                    "lambda_v": rate_v,
                    "printed_lambda_u": printed["lambda_u"],
                    "printed_lambda_v": printed["lambda_v"],
                    "regime": rule.regime(x_squared),
                    "largest_error_of_closed_form": _closed_form_error(rule, x_squared),
                }
            )
    return _product(rows)


def _closed_form_error(rule: dynamics.ScalarRule, x_squared: float) -> float:
    """Returns the largest difference of the closed form to the library's flow from (0.7, -0.2) over 3 units of time."""
    times = np.linspace(0.0, 3.0, 7)
    flow = scalar_flow(rule, np.full(4, np.sqrt(x_squared)))
    found = solve_ivp(flow, (0.0, 3.0), [0.7, -0.2], t_eval=times, rtol=1e-9, atol=1e-12).y.T
    return float(np.abs(found - rule.solution(0.7, -0.2, times, x_squared)).max())


def fixed_point_table() -> Artifact:
    """Returns the fixed points of D.2 with their eigenvalues by formula, and by differences of the library's flow."""
    x, y = np.array([0.5, -1.0, 2.0, 0.25]), np.array([1.0, -0.5, 1.5, 1.0])
    network = dynamics.ScalarNetwork.of(x, y)
    rows = []
    for strategy, where, point, formula in _fixed_points(network):
        numerical = np.linalg.eigvals(_differences(network_flow(strategy, x, y), point))
        rows.append(
            {
                "strategy": strategy,
                "where": where,
                "point": _numbers(point),
                "eigenvalues": _complex_numbers(formula),
                "eigenvalues_of_the_library": _complex_numbers(numerical),
                "kind": dynamics.stability(formula),
            }
        )
    return _product(rows)


def _fixed_points(network: dynamics.ScalarNetwork) -> Iterator[tuple[str, str, Array, Array]]:
    """Yields strategy, name, state and eigenvalues by formula; the third minimum of feedback alignment is unstable."""
    for strategy in dynamics.STRATEGIES:
        for w_1, b in ((0.6, 0.8), (-1.1, -0.8), (0.6, -0.9))[: 3 if strategy == "feedback" else 2]:
            point = network.minimum(strategy, w_1, b)
            yield strategy, "minimum of J", point, network.minimum_eigenvalues(strategy, point)
        origin = np.zeros(2 if strategy == "backpropagation" else 3)
        yield strategy, "origin", origin, network.origin_eigenvalues(strategy)
    yield "feedback", "b = w_1 = 0", np.array([0.0, 0.7, 0.0]), np.zeros(3)


def _differences(flow: Callable[[Array], Array], point: Array, step: float = 1e-6) -> Array:
    """Returns the Jacobian of a flow by central differences."""
    return np.stack([(flow(point + h) - flow(point - h)) / (2 * step) for h in step * np.eye(len(point))], axis=1)


def autoencoder_table(starts: int = STARTS, seed: int = 0) -> Artifact:
    """Returns how many random starts of Information Alignment's symmetrised flow end with W = B, and the rest's ends.

    With a decay of 4, above the largest second moment, both weights vanish: symmetric, but for nothing. Without decay
    there is no symmetry.

    Args:
        starts: random starts of each row, entries of W and B normal with standard deviation 1/2.
        seed: of the data and the starts.
    """
    rng = np.random.default_rng(seed)
    inputs, outputs = 6, 3
    scales = np.sqrt([3.0, 2.0, 1.5, 1.0, 0.7, 0.4])
    rotation, _ = np.linalg.qr(rng.normal(size=(inputs, inputs)))
    covariance = (rotation * scales**2) @ rotation.T
    pairs = [tuple(rng.normal(0.0, 0.5, (2, inputs, outputs))) for _ in range(starts)]
    rows = []
    for amp, decay, null in ((1.0, 0.5, 1.0), (1.0, 0.1, 1.0), (2.0, 0.5, 0.7), (1.0, 4.0, 1.0), (1.0, 0.0, 1.0)):
        system = dynamics.Autoencoder(covariance, amp, decay, null)
        ends = dynamics.integrate(system, pairs, duration=30.0 / min(max(decay, 0.1), 1.0))
        still = np.array([_asymmetry(forward, system.decoder(forward)) for forward, _ in pairs]) if decay else np.nan
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
                "median_asymmetry_where_W_is_fixed": float(np.median(still)),
            }
        )
    return _product(rows)


def _asymmetry(forward: Array, backward: Array) -> float:
    return float(np.linalg.norm(forward - backward) / max(np.linalg.norm(forward), np.linalg.norm(backward)))


def _product(rows: list[dict[str, object]]) -> Artifact:
    columns = list(rows[0])
    lines = [[f"{row[key]:.4g}" if isinstance(row[key], float) else row[key] for key in columns] for row in rows]
    return Artifact(columns, rows, markdown([column.replace("_", " ") for column in columns], lines))


def _numbers(values: Array) -> str:
    return ", ".join(f"{value + 0.0:.4f}" for value in np.round(values, 6))


def _complex_numbers(values: Array) -> str:
    """Returns the eigenvalues of a real matrix in ascending order, conjugate pairs as `a ± bi`."""
    ordered = np.sort_complex(np.round(np.asarray(values, complex), 6) + 0.0)
    parts = [f"{v.real:.4f}" + (f" ± {v.imag:.4f}i" if v.imag else "") for v in ordered if v.imag >= 0]
    return ", ".join(parts)
