"""The closed forms of section 4 and Appendix D against the gradients of the library."""

import numpy as np
import pytest
from helpers import assert_close, assert_differs
from scipy.integrate import solve_ivp
from scipy.optimize import linear_sum_assignment

from neural_alignment.alignments import primitives
from neural_alignment.analysis import dynamics
from neural_alignment.papers.tables import whole
from neural_alignment.papers.two_routes.compute import theory

RULES = {
    "weight_mirror": dynamics.weight_mirror(0.7),
    "symmetric": dynamics.symmetric_alignment(),
    "activation": dynamics.activation_alignment(),
    "information": dynamics.ScalarRule(amp=1.0, null=1.0, decay=0.3),
    "everything": dynamics.ScalarRule(decay=0.3, amp=0.8, null=0.5, sparse=0.2, self_=0.6),
}
BATCH = np.array([0.5, -2.0, 1.0, 0.3])
MEAN_SQUARE = np.mean(BATCH**2)
X, Y = np.array([0.5, -1.0, 2.0, 0.25]), np.array([1.0, -0.5, 1.5, 1.0])
NETWORK = dynamics.ScalarNetwork.of(X, Y)


def integrated(flow, start, duration, times=None):
    return solve_ivp(flow, (0.0, duration), start, "LSODA", times, rtol=1e-9, atol=1e-12).y.T


# D.1


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_the_scalar_flow_is_that_of_the_primitives(rule, rng):
    library = theory.scalar_flow(rule, BATCH)
    for w, b in rng.normal(size=(5, 2)):
        assert_close(np.array(rule.velocity(w, b, MEAN_SQUARE)), library(0.0, np.array([w, b])))
        if rule.amp:  # The square of the mean is not the mean of the squares.
            assert_differs(np.array(rule.velocity(w, b, np.mean(BATCH) ** 2)), library(0.0, np.array([w, b])))


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_the_flow_descends_the_potential(rule, rng):
    step = 1e-6
    for w, b in rng.normal(size=(5, 2)):
        slope = [
            (rule.potential(w + dw, b + db, 1.7) - rule.potential(w - dw, b - db, 1.7)) / (2 * step)
            for dw, db in ((step, 0.0), (0.0, step))
        ]
        assert_close(-np.array(rule.velocity(w, b, 1.7)), np.array(slope), "finite difference")


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_u_and_v_are_eigenvectors(rule):
    matrix, (rate_u, rate_v) = rule.matrix(1.7), rule.eigenvalues(1.7)
    assert_close(matrix @ [1, 1], rate_u * np.ones(2))
    assert_close(matrix @ [1, -1], rate_v * np.array([1.0, -1.0]))
    assert_close(np.linalg.eigvalsh(matrix), np.sort([rate_u, rate_v]))


def test_lambda_v_is_twice_what_the_appendix_prints_for_symmetric_and_activation():
    x_squared = 2.25
    assert RULES["symmetric"].eigenvalues(x_squared) == (0.0, 2.0)  # Printed: 0 and 1.
    assert RULES["activation"].eigenvalues(x_squared) == (0.0, 2 * x_squared)  # Printed: 0 and x^2.
    assert_close(np.array(RULES["weight_mirror"].eigenvalues(x_squared)), np.array([0.7 - x_squared, 0.7 + x_squared]))
    # The flow of the primitives shows that the skew component decays by exp(-2 t), not exp(-t).
    end = integrated(theory.scalar_flow(RULES["symmetric"], BATCH), [1.0, -1.0], 1.0)[-1]
    assert_close(end, np.exp(-2.0) * np.array([1.0, -1.0]), "finite difference")
    assert_differs(end, np.exp(-1.0) * np.array([1.0, -1.0]))


def test_weight_mirror_is_indefinite_only_without_enough_decay():
    assert np.linalg.eigvalsh(dynamics.weight_mirror(0.5).matrix()).min() < 0
    assert np.linalg.eigvalsh(dynamics.weight_mirror(1.5).matrix()).min() > 0


@pytest.mark.parametrize("regime", dynamics.FIGURE_2_DECAYS)
def test_the_three_regimes_as_the_primitives_flow(regime):
    rule = dynamics.weight_mirror(dynamics.FIGURE_2_DECAYS[regime])
    times = np.linspace(0.0, 4.0, 9)
    found = integrated(theory.scalar_flow(rule, np.ones(3)), [0.7, -0.2], 4.0, times)
    assert_close(found, rule.solution(0.7, -0.2, times), "finite difference")
    assert_differs(found, rule.solution(0.7, -0.2, -times))
    assert rule.regime() == regime
    symmetric, skew = found @ [0.5, 0.5], found @ [0.5, -0.5]
    assert abs(skew[-1]) < 0.01 * abs(skew[0])
    growth = symmetric[-1] / symmetric[0]
    assert {"diverging": growth > 5, "stable": abs(growth - 1) < 1e-6, "collapsing": growth < 0.2}[regime]


def test_noise_of_the_variance_of_the_decay_is_the_stable_regime(rng):
    noise = rng.normal(0.0, 1.3, 400)
    noise *= 1.3 / np.sqrt(np.mean(noise**2))
    rule = dynamics.weight_mirror(1.3**2)
    assert rule.regime(np.mean(noise**2)) == "stable"
    end = integrated(theory.scalar_flow(rule, noise), [0.7, -0.2], 3.0)[-1]
    np.testing.assert_allclose(end, 0.25, atol=2e-5)  # Half of 0.7 - 0.2; the skew component is gone.


@pytest.mark.parametrize("decay", [0.2, 0.9, 1.0, 1.8])
def test_null_ends_at_a_symmetric_point_where_weight_mirror_diverges(decay):
    rule = dynamics.ScalarRule(amp=1.0, decay=decay, null=0.5)
    target = rule.fixed_point()
    flow = theory.scalar_flow(rule, np.ones(2))
    if decay != 1.0:  # There the approach is slower than any exponential.
        end = integrated(flow, [0.9, -0.3], 60.0)[-1]
        np.testing.assert_allclose(end, target, atol=1e-5)
    point = np.full(2, target)
    step = 1e-6
    jacobian = np.stack([(flow(0, point + h) - flow(0, point - h)) / (2 * step) for h in step * np.eye(2)], axis=1)
    rates = [2 * (1 - decay), 2 * decay] if decay < 1 else rule.eigenvalues()
    np.testing.assert_allclose(-jacobian @ [1, 1], rates[0] * np.ones(2), atol=1e-8)
    np.testing.assert_allclose(-jacobian @ [1, -1], rates[1] * np.array([1, -1]), atol=1e-8)
    assert (dynamics.weight_mirror(decay).regime() == "diverging") == (target > 0)


def test_solution_and_fixed_point_reject_rules_without_a_closed_form():
    with pytest.raises(ValueError, match="`null` must be 0"):
        RULES["information"].solution(1.0, 1.0, np.zeros(1))
    with pytest.raises(ValueError, match="`null` and `x_squared` must be positive"):
        RULES["weight_mirror"].fixed_point()


# D.2


def symbols():
    import sympy  # The import takes seconds.

    return sympy.symbols("w_1 w_2 b alpha beta", real=True)


def symbolic_flow(strategy):
    """Equations 2 to 4 as the paper prints them."""
    import sympy

    w_1, w_2, b, alpha, beta = symbols()
    error = alpha - w_2 * w_1 * beta
    if strategy == "backpropagation":
        return sympy.Matrix([w_2 * error, w_1 * error]), [w_1, w_2]
    return sympy.Matrix([b * error, w_1 * error, 0 if strategy == "feedback" else w_2 - b]), [w_1, w_2, b]


def symbolic_eigenvalues(strategy, values):
    flow, variables = symbolic_flow(strategy)
    _, _, _, alpha, beta = symbols()
    jacobian = flow.jacobian(variables).subs(values)
    eigenvalues = [each.subs({alpha: NETWORK.alpha, beta: NETWORK.beta}) for each in jacobian.eigenvals(multiple=True)]
    return np.array([complex(each.evalf()) for each in eigenvalues])


def same_numbers(first, second, tolerance=1e-9):
    first, second = (list(np.asarray(each, complex)) for each in (first, second))
    for value in first:
        nearest = min(second, key=lambda other: abs(other - value))
        assert abs(nearest - value) < tolerance, (first, second)
        second.remove(nearest)
    assert not second


def test_the_paper_s_table_follows_symbolically():
    import sympy

    w_1, w_2, b, alpha, beta = symbols()
    printed = {
        "backpropagation": [-(w_1**2 + w_2**2) * beta, 0],
        "feedback": [-(w_1**2 + b * w_2) * beta, 0, 0],
        "symmetric": [-(w_1**2 + w_2**2) * beta, 0, -1],
    }
    z = sympy.Symbol("z")
    for strategy, eigenvalues in printed.items():
        flow, variables = symbolic_flow(strategy)
        on_hyperbola = {alpha: w_1 * w_2 * beta} | ({b: w_2} if strategy == "symmetric" else {})
        polynomial = flow.jacobian(variables).subs(on_hyperbola).charpoly(z).as_expr()
        wanted = sympy.prod([z - each for each in eigenvalues])
        assert sympy.simplify(polynomial - wanted) == 0
        assert sympy.simplify(polynomial.subs(z, -z) - wanted) != 0


@pytest.mark.parametrize("strategy", dynamics.STRATEGIES)
def test_the_flow_and_its_jacobian_are_those_of_the_library(strategy, rng):
    library = theory.network_flow(strategy, X, Y)
    for _ in range(3):
        state = rng.normal(size=2 if strategy == "backpropagation" else 3)
        assert_close(NETWORK.velocity(strategy, state), library(state))
        differences = dynamics.numerical_jacobian(library, state)
        np.testing.assert_allclose(NETWORK.jacobian(strategy, state), differences, atol=1e-7)
        if strategy != "backpropagation":  # The print's transpose is another matrix, of the same eigenvalues.
            assert_differs(NETWORK.jacobian(strategy, state).T, differences)
            same_numbers(np.linalg.eigvals(differences.T), np.linalg.eigvals(differences), 1e-5)


@pytest.mark.parametrize("strategy", dynamics.STRATEGIES)
@pytest.mark.parametrize(("w_1", "back"), [(0.6, 0.8), (-1.1, -0.8), (0.6, -0.9)])
def test_eigenvalues_at_the_minima(strategy, w_1, back):
    point = NETWORK.minimum(strategy, w_1, back)
    np.testing.assert_allclose(NETWORK.velocity(strategy, point), 0.0, atol=1e-12)
    formula = NETWORK.minimum_eigenvalues(strategy, point)
    values = dict(zip(symbols(), [*point, point[1]][:3], strict=False))
    same_numbers(formula, symbolic_eigenvalues(strategy, values))
    # A rounding error changes a double eigenvalue of a defective matrix by its square root.
    same_numbers(
        formula, np.linalg.eigvals(dynamics.numerical_jacobian(theory.network_flow(strategy, X, Y), point)), 1e-3
    )
    unstable = strategy == "feedback" and w_1**2 + back * point[1] < 0
    assert dynamics.stability(formula) == ("source" if unstable else "sink")
    assert unstable == (strategy == "feedback" and back == -0.9)


@pytest.mark.parametrize("strategy", dynamics.STRATEGIES)
def test_eigenvalues_at_the_origin(strategy):
    w_1, w_2, b, *_ = symbols()
    formula = NETWORK.origin_eigenvalues(strategy)
    same_numbers(formula, symbolic_eigenvalues(strategy, {w_1: 0, w_2: 0, b: 0}), 1e-5)
    assert dynamics.stability(formula) == ("undecided" if strategy == "feedback" else "saddle")


def test_feedback_s_further_fixed_points_are_a_line_in_the_plane_of_no_feedback(rng):
    for w_2 in rng.normal(size=3):
        point = np.array([0.0, w_2, 0.0])
        np.testing.assert_allclose(NETWORK.velocity("feedback", point), 0.0, atol=1e-12)
        assert dynamics.stability(np.linalg.eigvals(NETWORK.jacobian("feedback", point))) == "undecided"
        # With a nonzero feedback weight all fixed points are on the hyperbola, where w_1 is not 0.
        assert np.abs(NETWORK.velocity("feedback", np.array([0.0, w_2, 0.3]))).max() > 0.1


@pytest.mark.parametrize(
    ("strategy", "back", "returns"),
    [("backpropagation", None, True), ("symmetric", None, True), ("feedback", 0.8, True), ("feedback", -0.9, False)],
)
def test_the_library_s_own_flow_returns_to_a_minimum_or_leaves_it(strategy, back, returns):
    """Negative eigenvalues are a sink, unlike in the paper's text."""
    point = NETWORK.minimum(strategy, 0.6, back or 0.0)
    library = theory.network_flow(strategy, X, Y)
    nudge = np.array([1e-3, 1e-3, 0.0])[: len(point)]
    found = solve_ivp(lambda _, state: library(state), (0.0, 4.0), point + nudge, rtol=1e-6, atol=1e-9).y[:, -1]
    error_before, error_after = (abs(NETWORK.alpha - w[0] * w[1] * NETWORK.beta) for w in (point + nudge, found))
    assert (error_after < 0.1 * error_before) == returns
    assert (error_after > 10 * error_before) != returns


def test_wrong_strategies_and_states_are_errors():
    with pytest.raises(ValueError, match=r"must be one of .* Received 'sa'"):
        NETWORK.velocity("sa", np.zeros(3))
    with pytest.raises(ValueError, match=r"shape \(2,\)"):
        NETWORK.velocity("backpropagation", np.zeros(3))
    with pytest.raises(ValueError, match="`beta` must be positive"):
        dynamics.ScalarNetwork(1.0, 0.0)


# Information Alignment.


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(5)
    return rng.normal(size=(40, 5)) * [1.6, 1.3, 1.0, 0.8, 0.5] @ np.linalg.qr(rng.normal(size=(5, 5)))[0]


def covariance(data):
    return data.T @ data / len(data)


def autoencoder_flow(system, data):
    """Returns the flow of W and B under R_IA plus decay of W, by the primitives."""
    return theory.descent(lambda w, b: theory.layer_objective(system, data, w, b) + system.decay * primitives.decay(w))


def test_the_autoencoder_s_flow_is_that_of_the_primitives(data, rng):
    system = dynamics.Autoencoder(covariance(data), amp=1.2, decay=0.3, null=0.7)
    forward, backward = rng.normal(size=(2, 5, 2))
    expected = autoencoder_flow(system, data)(forward, backward)
    for found, wanted in zip(system.velocity(forward, backward), expected, strict=True):
        assert_close(found, wanted)
    exchanged = system.velocity(backward, forward)[::-1]  # Right for white inputs alone.
    assert_differs(exchanged[0], expected[0], 1e-2)


def test_the_potential_is_that_of_a_regularised_autoencoder(data, rng):
    system = dynamics.Autoencoder(covariance(data), amp=1.2, decay=0.3, null=1.2)
    constants = []
    for forward, backward in rng.normal(size=(3, 2, 5, 2)):
        lost = data - data @ forward @ backward.T
        energy = np.sum(forward**2) + np.sum(backward**2)
        loss = 1.2 / 2 * np.mean(np.sum(lost**2, axis=1)) + 0.3 / 2 * energy
        constants.append(loss - system.potential(forward, backward))
    assert_close(np.array(constants), np.full(3, constants[0]))


@pytest.mark.parametrize(("amp", "null"), [(1.0, 1.0), (2.0, 0.7)])
def test_information_alignment_reaches_symmetric_weights(data, rng, amp, null):
    system = dynamics.Autoencoder(covariance(data), amp, 0.3, null)
    ends = dynamics.integrate(system, list(rng.normal(0.0, 0.5, (8, 2, 5, 2))), 100.0)
    assert ends.speed.max() < 1e-6
    assert ends.asymmetry.max() < 1e-6
    np.testing.assert_allclose(ends.excess, 0.0, atol=1e-9)
    gains = np.linalg.eigvals(ends.backward[0] @ ends.forward[0].T).real
    np.testing.assert_allclose(np.sort(gains)[:-3:-1], system.minimum_gain(2), atol=1e-6)


def test_a_saddle_is_symmetric_too(rng):
    system = dynamics.Autoencoder(np.diag([3.0, 2.0, 1.0, 0.5]), decay=0.3)
    start = rng.normal(size=(2, 4, 2))
    start[:, 0] = 0.0  # What starts without the first direction never finds it.
    ends = dynamics.integrate(system, [tuple(start), tuple(rng.normal(size=(2, 4, 2)))], 80.0)
    assert ends.speed.max() < 1e-6
    assert ends.asymmetry.max() < 1e-6
    assert ends.excess[0] > 0.1
    assert abs(ends.excess[1]) < 1e-9


def test_without_decay_or_with_fixed_forward_weights_there_is_no_symmetry(data, rng):
    starts = list(rng.normal(0.0, 0.5, (10, 2, 5, 2)))
    free = dynamics.integrate(dynamics.Autoencoder(covariance(data), decay=0.0), starts, 200.0)
    assert free.asymmetry.min() > 0.1
    assert free.speed.max() < 1e-6  # At critical points all the same.
    system = dynamics.Autoencoder(covariance(data), decay=0.3)
    forward, backward = starts[0]
    library = autoencoder_flow(system, data)

    def rule(_, state):
        return library(forward, state.reshape(5, 2))[1].ravel()

    end = solve_ivp(rule, (0.0, 30.0), backward.ravel(), "LSODA", rtol=1e-6).y[:, -1].reshape(5, 2)
    np.testing.assert_allclose(end, system.decoder(forward), atol=1e-3)
    assert_differs(end, forward, 0.1)


def complex_values(text):
    """Parses the numbers in a cell such as `-1.0000, 0.5000 ± 2.0000i`."""
    values = []
    for part in text.split(", "):
        real, _, imaginary = part.partition(" ± ")
        pair = float(imaginary.rstrip("i")) if imaginary else 0.0
        values += [complex(float(real), pair), complex(float(real), -pair)] if imaginary else [complex(float(real))]
    return np.array(values)


def test_complex_eigenvalues_keep_their_imaginary_parts():
    text = theory.complex_numbers(np.linalg.eigvals([[1.0, -2.0, 0.0], [2.0, 1.0, 0.0], [0.0, 0.0, -3.0]]))
    assert text == "-3.0000, 1.0000 ± 2.0000i"
    np.testing.assert_allclose(complex_values(text), [-3, 1 + 2j, 1 - 2j])


@pytest.mark.exhaustive
def test_the_tables_agree_with_themselves():
    flows = whole(theory.eigenvalue_rows())
    assert max(row["largest_error_of_closed_form"] for row in flows.rows) < 1e-6
    assert {row["regime"] for row in flows.rows} == {"diverging", "stable", "collapsing"}
    points = whole(theory.fixed_points())
    assert any("i" in row["eigenvalues"] for row in points.rows)
    assert [row["kind"] for row in points.rows].count("source") == 1
    for row in points.rows:
        formula, library = (complex_values(row[key]) for key in ("eigenvalues", "eigenvalues_of_the_library"))
        distances = np.abs(formula[:, np.newaxis] - library)
        pairs = linear_sum_assignment(distances)  # An order by real parts is not steady where these are equal.
        assert distances[pairs].max() < 2e-3
    ends = whole(theory.autoencoder_rows(starts=2))
    assert [row["symmetric"] for row in ends.rows] == [2, 2, 2, 2, 0]
    assert all(set(product.rows[0]) == set(product.columns) for product in (flows, points, ends))
