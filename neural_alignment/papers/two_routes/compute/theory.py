"""Section 4 and Appendices D.1 and D.2 of Kunin et al. 2020: closed forms beside the flows of the library.

The closed forms are in `analysis.dynamics`. The flows are float64 gradients by TensorFlow through
`alignments.primitives` and `operations`, the code that trains networks.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

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


def descent(objective: Callable[..., tf.Tensor]) -> Callable[..., list[Array]]:
    """Returns a function of weights that gives minus the gradient of an objective with respect to each of them."""

    @tf.function
    def gradients(*weights: tf.Tensor) -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch(weights)
            value = objective(*weights)
        return tape.gradient(value, weights, unconnected_gradients="zero")

    def flow(*weights: Array) -> list[Array]:
        return [-each.numpy() for each in gradients(*(tf.constant(values, tf.float64) for values in weights))]

    return flow


def layer_objective(
    rule: dynamics.ScalarRule | dynamics.Autoencoder, inputs: Array, forward: tf.Tensor, backward: tf.Tensor
) -> tf.Tensor:
    """Returns R of one linear layer as a sum of `alignments.primitives`, with the weights that the rule has.

    Inputs are `(batch, inputs)`, W and B `(inputs, outputs)`.
    """
    linear, x = operations.DenseMap(), tf.constant(inputs, tf.float64)
    projection = linear.project(x, forward)
    terms = {
        "decay": lambda: primitives.decay(backward),
        "amp": lambda: primitives.amp(linear.project(x, backward), projection),
        "null": lambda: primitives.null(linear.reconstruct(projection, backward, like=x)),
        "sparse": lambda: primitives.sparse(linear.project(x, backward)),
        "self_": lambda: primitives.self_(forward, backward),
    }
    weights = {name: getattr(rule, name, 0.0) for name in terms}
    return tf.add_n([weight * terms[name]() for name, weight in weights.items() if weight])


def scalar_flow(rule: dynamics.ScalarRule, inputs: Array) -> Callable[[float, Array], Array]:
    """Returns the symmetrised flow of (w, b) for inputs `(batch,)`, as a function for `solve_ivp`.

    b descends R, and w descends R with the two weights exchanged (D.1).
    """
    layer = descent(functools.partial(layer_objective, rule, np.reshape(inputs, (-1, 1))))

    def flow(_: float, state: Array) -> Array:
        w, b = np.reshape(state, (2, 1, 1))
        return np.ravel([layer(b, w)[1], layer(w, b)[1]])

    return flow


def network_flow(strategy: str, x: Array, y: Array) -> Callable[[Array], Array]:
    """Returns the flow of two scalar layers under J and one of `dynamics.STRATEGIES` for b; x and y `(examples,)`."""
    inputs, targets = (np.reshape(each, (-1, 1)) for each in (x, y))

    def objective(w_1: tf.Tensor, w_2: tf.Tensor, b: tf.Tensor | None = None) -> tf.Tensor:
        # J does not reach backward kernels. That of the first layer has no effect: nothing uses the error at the data.
        outputs = operations.matmul(operations.matmul(inputs, w_1, w_1), w_2, w_2 if b is None else b)
        loss = tf.reduce_mean(tf.square(targets - outputs)) / 2
        if strategy != "symmetric":
            return loss
        return loss + layer_objective(dynamics.symmetric_alignment(), inputs, tf.stop_gradient(w_2), b)

    network = descent(objective)
    return lambda state: np.ravel(network(*np.reshape(state, (-1, 1, 1))))


def symmetrised_flow(forward: Array, backward: Array, decay: float, x: float = 1.0) -> Array:
    """Returns the symmetrised flow of weight mirror with scalar weights and an input x, dw/dt and db/dt, `(2, *shape)`.

    It equals -A (w, b) with A = [[decay, -x^2], [-x^2, decay]] (equation 1, Appendix D.1); `decay` is lambda_WM.
    """
    flow = scalar_flow(dynamics.weight_mirror(decay), np.array([x]))
    return np.apply_along_axis(functools.partial(flow, 0.0), 0, np.stack([forward, backward]))


def _without_noise(value: float) -> float:
    """Returns a number rounded to 7 decimals, so that tables do not depend on the rounding of a machine."""
    return round(float(value), 7) + 0.0


def eigenvalue_rows() -> list[Row]:
    """Returns the eigenvalues of D.1 beside the printed ones, and the error of the closed form (Table D1)."""
    decays = dynamics.FIGURE_2_DECAYS.values()
    cases = [("weight_mirror", decay, dynamics.weight_mirror(decay), 1.0) for decay in decays]
    for name, rule in (("symmetric", dynamics.symmetric_alignment()), ("activation", dynamics.activation_alignment())):
        cases += [(name, "", rule, x_squared) for x_squared in (1.0, 2.25)]
    return [
        {"rule": name, "lambda_WM": decay, "x_squared": x_squared}
        | dict(zip(("lambda_u", "lambda_v"), rule.eigenvalues(x_squared), strict=True))
        | {f"printed_{key}": text for key, text in PRINTED_EIGENVALUES[name].items()}
        | {"regime": rule.regime(x_squared), "largest_error_of_closed_form": _closed_form_error(rule, x_squared)}
        for name, decay, rule, x_squared in cases
    ]


def _closed_form_error(rule: dynamics.ScalarRule, x_squared: float) -> float:
    """Returns the largest difference of the closed form to the library's flow from (0.7, -0.2) over 3 units of time."""
    times = np.linspace(0.0, 3.0, 7)
    flow = scalar_flow(rule, np.full(4, np.sqrt(x_squared)))
    found = solve_ivp(flow, (0.0, 3.0), [0.7, -0.2], t_eval=times, rtol=1e-9, atol=1e-12).y.T
    return _without_noise(np.abs(found - rule.solution(0.7, -0.2, times, x_squared)).max())


def fixed_points() -> list[Row]:
    """Returns the fixed points of D.2 with their eigenvalues by formula and from the library's flow (Table D2)."""
    x, y = np.array([0.5, -1.0, 2.0, 0.25]), np.array([1.0, -0.5, 1.5, 1.0])
    rows = []
    for strategy, where, point, formula in dynamics.ScalarNetwork.of(x, y).fixed_points():
        jacobian = dynamics.numerical_jacobian(network_flow(strategy, x, y), point)
        row = {"strategy": strategy, "where": where, "point": ", ".join(f"{each + 0.0:.4f}" for each in point.round(6))}
        eigenvalues = {"eigenvalues": formula, "eigenvalues_of_the_library": np.linalg.eigvals(jacobian)}
        row |= {name: complex_numbers(values) for name, values in eigenvalues.items()}
        rows.append(row | {"kind": dynamics.stability(formula)})
    return rows


def complex_numbers(values: Array) -> str:
    """Returns the eigenvalues of a real matrix in ascending order, conjugate pairs as `a ± bi`."""
    ordered = np.sort_complex(np.round(np.asarray(values, complex), 6) + 0.0)
    return ", ".join(f"{v.real:.4f}" + (f" ± {v.imag:.4f}i" if v.imag else "") for v in ordered if v.imag >= 0)


def autoencoder_rows(starts: int = 100, seed: int = 0) -> list[Row]:
    """Returns how many random starts of the symmetrised flow of Information Alignment reach W = B (Table IA).

    With a decay of 4, above the largest second moment, both weights vanish. Without decay W and B differ. The entries
    of W and B are normal with standard deviation 1/2.
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
        counts = {"symmetric": ends.asymmetry < 1e-4, "at_the_minimum": ends.excess < 1e-6}
        measures = {
            "median_asymmetry": np.median(ends.asymmetry),
            "largest_asymmetry": ends.asymmetry.max(),
            "largest_speed": ends.speed.max(),
            "largest_norm": np.linalg.norm(ends.forward, axis=(1, 2)).max(),
            "median_asymmetry_where_W_is_fixed": np.median(fixed),
        }
        row = {"amp": amp, "decay": decay, "null": null, "starts": starts}
        row |= {name: int(reached.sum()) for name, reached in counts.items()}
        rows.append(row | {name: _without_noise(value) for name, value in measures.items()})
    return rows


def oja_rows(steps: int = 3000) -> list[Row]:
    """Returns how well amp and null approximate a Hebbian update with normalisation: Oja's rule (section 4).

    B is a column vector with x_{l+1} = x_l^T B, as the text assumes. A step with the gradients of both primitives is
    compared with (B + rate x_l x_{l+1}^T) / ||B + rate x_l x_{l+1}^T||; they differ by the square of the rate. After
    many steps, B of both is the first principal component of the inputs, with norm 1.
    """
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(200, 5)) * np.sqrt([2.0, 1.0, 0.7, 0.5, 0.3])
    covariance = inputs.T @ inputs / len(inputs)
    component = np.linalg.eigh(covariance)[1][:, -1:]
    flow = descent(functools.partial(layer_objective, dynamics.ScalarRule(amp=1.0, null=1.0), inputs))
    start = rng.normal(size=(5, 1))
    start /= np.linalg.norm(start)
    rows = []
    for rate in (0.3, 0.1, 0.03, 0.01):
        step = rate * flow(start, start)[1]
        normalised = start + rate * covariance @ start
        normalised /= np.linalg.norm(normalised)
        difference = float(np.linalg.norm(start + step - normalised))
        row = {"rate": rate, "difference": difference, "difference_over_rate_squared": difference / rate**2}
        end = start
        for _ in range(steps):
            end = end + rate * flow(end, end)[1]
        norm = np.linalg.norm(end)
        cosine = _without_noise(np.abs(component.T @ end).item() / norm)
        rows.append(row | {"norm_at_the_end": _without_noise(norm), "cosine_to_first_component": cosine})
    return rows
