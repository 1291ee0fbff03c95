"""Alignment terms against their index notation (S6), on a network trained by a few lines of NumPy."""

import itertools

import numpy as np
import pytest
from helpers import assert_close, assert_differs, finite_difference

from neural_alignment.analysis import alignment_terms, direct_feedback, disturbances, signals
from neural_alignment.analysis.alignment_terms import History, LayerSignals
from neural_alignment.analysis.similarity import angle

SIZES = (7, 6, 5, 4)
BATCH, STEPS, RATE, LAYER = 9, 8, 0.02, 1
LINEAR = signals.Nonlinearity(lambda z: z, np.ones_like)
TANH = signals.Nonlinearity(np.tanh, lambda z: 1 - np.tanh(z) ** 2)
ACTIVATIONS = {"tanh_relu": signals.TANH_RELU, "relu": signals.RELU, "linear": LINEAR, "tanh": TANH}


def drawn(rng):
    """Returns W_0 to W_2, b_1 to b_3, B_0 (none) to B_2."""
    shapes = list(itertools.pairwise(SIZES))
    kernels = [rng.normal(0, 0.5, shape) for shape in shapes]
    biases = [rng.normal(0, 0.2, units) for units in SIZES[1:]]
    return kernels, biases, [None, *(rng.normal(0, 0.5, shape[::-1]) for shape in shapes[1:])]


def trained(activation, rate=RATE, steps=STEPS, layer=LAYER, normalise=False):
    """Trains by BP-TRW. Returns the signals around one layer at every iteration, the updates of its W, and all B."""
    rng = np.random.default_rng(5)
    kernels, biases, backward = drawn(rng)
    batches = [(rng.normal(size=(BATCH, SIZES[0])), rng.uniform(size=(BATCH, SIZES[-1]))) for _ in range(3)]
    seen, moved = [], []
    for step in range(steps):
        x, y = batches[step % 3]
        passed = signals.forward(x, kernels, biases, activation)
        error = signals.output_error(passed, y, activation)
        errors = signals.sequential_errors(error, passed.states, backward, activation)
        seen.append(LayerSignals.of_layer(layer, passed.outputs, errors, kernels, biases, backward))
        d_kernels, d_biases = signals.updates(passed.outputs, errors, rate)
        moved.append(d_kernels[layer])
        kernels = [w + d for w, d in zip(kernels, d_kernels, strict=True)]
        if normalise:
            kernels = [w / np.linalg.norm(w, axis=0) for w in kernels]
        biases = [b + d for b, d in zip(biases, d_biases, strict=True)]
    return seen, moved, backward


def remembered(seen, activation, rate=RATE, capacity=100):
    """Returns the history of all iterations except the last, and the signals of the last."""
    history = History(rate, activation, capacity)
    for each in seen[:-1]:
        history.append(each)
    return history, seen[-1]


def by_index(seen, backward, activation, order, rate=RATE):
    """Equation S6, factor by factor."""
    now, past = seen[-1], seen[-1 - order]
    point = now.inputs @ past.kernel + now.bias
    state = past.inputs @ past.kernel + past.bias
    return rate**2 * np.einsum(
        "mi,pi,qi,pq,pc,mc,mj->ij",
        activation.derivative(point),
        activation.derivative(state),
        backward,
        past.errors,
        past.inputs,
        now.inputs,
        now.errors,
        optimize=True,
    )


def test_higher_derivatives_are_those_of_the_derivative():
    points = np.linspace(-2, 3, 41)
    lower = signals.TANH_RELU.derivatives(3)
    for derivative, higher in itertools.pairwise(lower):
        numeric = (derivative(points + 1e-6) - derivative(points - 1e-6)) / 2e-6
        smooth = np.abs(points) > 1e-3  # The derivatives jump at 0.
        np.testing.assert_allclose(higher(points)[smooth], numeric[smooth], atol=1e-6)
        assert np.all(higher(points[points < 0]) == 0)
    with pytest.raises(ValueError, match=r"between 1 and 3. Received 4"):
        signals.TANH_RELU.derivatives(4)


# The parts of a step.


@pytest.mark.parametrize("activation", [TANH, signals.TANH_RELU], ids=["tanh", "tanh_relu"])
def test_updates_with_the_transposes_of_w_descend_the_half_squared_error(activation, rng):
    kernels, biases, backward = drawn(rng)
    x, y = rng.normal(size=(BATCH, SIZES[0])), rng.uniform(size=(BATCH, SIZES[-1]))

    def step(back):
        passed = signals.forward(x, kernels, biases, activation)
        error = signals.output_error(passed, y, activation)
        errors = signals.sequential_errors(error, passed.states, back, activation)
        return signals.updates(passed.outputs, errors, RATE)

    def loss(which, at):
        weights = [each if number != which else at for number, each in enumerate(kernels)]
        return 0.5 * np.sum((y - signals.forward(x, weights, biases, activation).outputs[-1]) ** 2)

    d_kernels, d_biases = step([w.T for w in kernels])
    for which, kernel in enumerate(kernels):
        gradient = finite_difference(lambda at, which=which: loss(which, at), kernel)
        assert_close(d_kernels[which], -RATE * gradient, "finite difference")
        assert_differs(d_kernels[which], -RATE * gradient / BATCH)  # The sum over the batch, not the mean.
    moved = [b.copy() for b in biases]
    moved[0][2] += 1e-6
    outputs = [signals.forward(x, kernels, each, activation).outputs[-1] for each in (biases, moved)]
    slope = np.diff([0.5 * np.sum((y - each) ** 2) for each in outputs])[0] / 1e-6
    assert d_biases[0][2] == pytest.approx(-RATE * slope, rel=1e-4)
    assert_differs(step(backward)[0][0], d_kernels[0])


def test_the_derivative_of_tanh_relu_has_its_gate_and_no_overflow():
    z = np.array([-800.0, -1.0, 0.0, 1e-3, 1.0, 800.0])
    expected = [0, 0, 0, 1 / np.cosh(1e-3) ** 2, 1 / np.cosh(1.0) ** 2, 0]
    with np.errstate(over="raise"):
        assert_close(signals.TANH_RELU.derivative(z), np.array(expected))
    assert signals.TANH_RELU.value(z)[0] == 0
    assert signals.RELU.derivative(z).tolist() == [0, 0, 0, 1, 1, 1]


# The terms.


@pytest.mark.parametrize("activation", ACTIVATIONS.values(), ids=ACTIVATIONS)
@pytest.mark.parametrize("order", [1, 3, STEPS - 1])
def test_a_term_of_any_order_is_its_index_notation(activation, order):
    seen, _, backward = trained(activation)
    term = alignment_terms.alignment_term(*remembered(seen, activation), order)
    expected = by_index(seen, backward[LAYER], activation, order)
    assert_close(term, expected)
    assert_differs(term, expected / RATE)  # The rate stands twice in a term.
    assert_differs(term, by_index(seen, backward[LAYER], activation, order - 1 or 2))
    if activation is not LINEAR:
        gateless = signals.Nonlinearity(activation.value, np.ones_like)
        assert_differs(term, by_index(seen, backward[LAYER], gateless, order))


def test_the_gate_of_the_present_is_taken_at_zeta_not_at_z():
    activation = TANH
    seen, _, backward = trained(activation, rate=0.2)
    term = alignment_terms.alignment_term(*remembered(seen, activation, 0.2), 5)
    assert_close(term, by_index(seen, backward[LAYER], activation, 5, 0.2))
    wrong = (
        0.2
        * (
            activation.derivative(seen[-1].inputs @ seen[-1].kernel + seen[-1].bias)
            * (seen[-1].inputs @ remembered(seen, activation, 0.2)[0].step(5))
        ).T
        @ seen[-1].errors
    )
    assert_differs(term, wrong)
    # The bias is that of iteration k, not of k - o.
    aged = [*seen[:-1], seen[-1]._replace(bias=seen[-6].bias)]
    assert_differs(term, by_index(aged, backward[LAYER], activation, 5, 0.2))


def test_terms_of_all_orders_are_yielded_one_by_one():
    seen, _, _ = trained(TANH)
    history, now = remembered(seen, TANH)
    terms = dict(alignment_terms.alignment_terms(history, now))
    assert list(terms) == list(range(1, STEPS))
    assert_close(sum(terms.values()), alignment_terms.expand(history, now).alignment)
    assert_close(alignment_terms.alignment_sum(history, now), sum(terms.values()))
    assert not alignment_terms.alignment_sum(History(RATE, TANH, 2), now).any()  # The first iteration has none.


@pytest.mark.parametrize("order", [1, 4])
def test_a_linear_term_is_equation_5(order):
    seen, _, backward = trained(signals.TANH_RELU)
    history, now = remembered(seen, signals.TANH_RELU)
    past, kernel = seen[-1 - order], backward[LAYER]
    matrix = past.errors.T @ past.inputs @ now.inputs.T @ now.errors
    assert_close(alignment_terms.transformation(history, now, order), matrix)
    assert_close(alignment_terms.linear_term(history, now, kernel, order), RATE**2 * kernel.T @ matrix)
    assert_differs(alignment_terms.linear_term(history, now, kernel, order), RATE**2 * kernel.T @ matrix.T)
    # It equals the nonlinear term of a linear network.
    seen, _, backward = trained(LINEAR)
    history, now = remembered(seen, LINEAR)
    term = alignment_terms.alignment_term(history, now, order)
    assert_close(term, alignment_terms.linear_term(history, now, backward[LAYER], order))


# The expansion.


@pytest.mark.parametrize("normalise", [False, True], ids=["plain", "normalised"])
@pytest.mark.parametrize("activation", ACTIVATIONS.values(), ids=ACTIVATIONS)
def test_the_parts_add_up_to_the_update_to_rounding(activation, normalise):
    seen, moved, _ = trained(activation, normalise=normalise)
    history, now = remembered(seen, activation)
    parts = alignment_terms.expand(history, now)
    scale = np.abs(moved[-1]).max()
    np.testing.assert_allclose(parts.update, moved[-1], rtol=0, atol=1e-14 * scale)
    np.testing.assert_allclose(
        parts.alignment + parts.zero_degree + parts.remainder, moved[-1], rtol=0, atol=1e-13 * scale
    )
    # Equation 11, with every term computed separately.
    terms = sum(term for _, term in alignment_terms.alignment_terms(history, now))
    first = RATE * activation.value(now.inputs @ seen[0].kernel + now.bias).T @ now.errors
    np.testing.assert_allclose(parts.remainder, moved[-1] - terms - first, rtol=0, atol=1e-13 * scale)
    assert_close(parts.zero_degree, first)
    # The bias of the first iteration is not that of the zero-degree term.
    assert_differs(first, RATE * activation.value(now.inputs @ seen[0].kernel + seen[0].bias).T @ now.errors, by=1e-4)


def test_without_a_nonlinearity_nothing_remains_unless_weights_are_normalised():
    for normalise in (False, True):
        seen, moved, _ = trained(LINEAR, normalise=normalise)
        remainder = alignment_terms.expand(*remembered(seen, LINEAR)).remainder
        assert (np.abs(remainder).max() > 1e-3 * np.abs(moved[-1]).max()) is np.bool_(normalise)


def test_the_remainder_is_of_a_higher_order_in_the_rate_than_the_terms():
    parts = [alignment_terms.expand(*remembered(trained(TANH, rate)[0], TANH, rate)) for rate in (1e-3, 5e-4)]
    aligned, remainder = (
        np.log2(np.linalg.norm(getattr(parts[0], name)) / np.linalg.norm(getattr(parts[1], name)))
        for name in ("alignment", "remainder")
    )
    assert aligned == pytest.approx(2, abs=0.1)  # Half of a term's rates are in the errors' weights.
    assert remainder == pytest.approx(3, abs=0.1)


# The history.


@pytest.mark.parametrize("rate", [0.02, 0.005])
def test_taylor_polynomials_add_up_to_the_update_and_their_remainders_shrink(rate):
    smooth = signals.Nonlinearity(
        np.tanh,
        lambda z: 1 - np.tanh(z) ** 2,
        (lambda z: -2 * np.tanh(z) * (1 - np.tanh(z) ** 2),
         lambda z: (1 - np.tanh(z) ** 2) * (6 * np.tanh(z) ** 2 - 2)),
    )  # fmt: skip
    seen, moved, _ = trained(smooth, rate)
    history, now = remembered(seen, smooth, rate)
    parts, sums = alignment_terms.expand(history, now), alignment_terms.taylor_sums(history, now, 3)
    assert_close(sums.terms[0], parts.alignment)
    assert_close(sums.remainders[0], parts.remainder)
    for degree in range(3):
        assert_close(sums.terms[: degree + 1].sum(axis=0) + sums.remainders[degree] + parts.zero_degree, moved[-1])
    norms = np.linalg.norm(sums.remainders, axis=(1, 2))
    assert norms[2] < norms[1] < norms[0]
    # The term of degree 2, written out for one order.
    lag = 3
    point, change = now.inputs @ history.kernel(lag) + now.bias, now.inputs @ history.step(lag)
    single = History(rate, smooth, 1)
    single.append(seen[-1 - lag])
    only = alignment_terms.taylor_sums(single, now, 2).terms[1]
    second = -2 * np.tanh(point) * (1 - np.tanh(point) ** 2) * change**2 / 2
    assert_close(only, rate * second.T @ now.errors)
    with pytest.raises(ValueError, match="between 1 and 1"):
        alignment_terms.taylor_sums(remembered(seen, TANH, rate)[0], now, 2)


def test_a_bounded_history_is_the_expansion_from_the_oldest_iteration_that_is_kept():
    seen, moved, _ = trained(signals.TANH_RELU)
    bounded, now = remembered(seen, signals.TANH_RELU, capacity=3)
    late, _ = remembered(seen[-4:], signals.TANH_RELU)
    assert (len(bounded), len(late), bounded.iterations) == (3, 3, STEPS - 1)
    for mine, other in zip(alignment_terms.expand(bounded, now), alignment_terms.expand(late, now), strict=True):
        np.testing.assert_array_equal(mine, other)
    parts = alignment_terms.expand(bounded, now)
    assert_close(parts.alignment + parts.zero_degree + parts.remainder, moved[-1])
    with pytest.raises(ValueError, match=r"between 1 and the number of iterations in the history, 3. Received 4"):
        alignment_terms.alignment_term(bounded, now, 4)
    with pytest.raises(ValueError, match="Received 0"):
        alignment_terms.transformation(bounded, now, 0)
    with pytest.raises(ValueError, match=r"`capacity` must be positive. Received 0"):
        History(RATE, TANH, 0)


def test_the_first_update_is_all_zero_degree():
    seen, moved, _ = trained(TANH, steps=1)
    parts = alignment_terms.expand(History(RATE, TANH, 4), seen[0])
    np.testing.assert_array_equal(parts.zero_degree, moved[0])
    assert not parts.alignment.any()
    assert not parts.remainder.any()


def test_the_cost_is_what_is_allocated_and_what_is_computed():
    seen, _, _ = trained(TANH)
    history, _ = remembered(seen, TANH, capacity=3)
    below, units, above = SIZES[LAYER - 1 : LAYER + 2]
    sizes, terms = (below, units, above), sum(min(k, 3) for k in range(STEPS))
    stated = alignment_terms.cost(BATCH, sizes, terms, STEPS, capacity=3)
    assert stated.memory == sum(each.nbytes for each in history._kept)
    per_term = BATCH * (2 * below * units + 2 * below * units + 2 * units * above)
    per_iteration = BATCH * (2 * below * units + 2 * below * units + 2 * below * above)
    assert stated.operations == terms * per_term + STEPS * per_iteration
    # A history of signals would grow with the batch.
    assert alignment_terms.cost(10 * BATCH, sizes, terms, STEPS, 3).memory == stated.memory


# Disturbances.


def test_the_linear_terms_of_all_orders_need_one_matrix():
    seen, _, backward = trained(signals.TANH_RELU)
    running = disturbances.LinearTerms(RATE, backward[LAYER])
    totals = [running.total(each) for each in seen]
    history, now = remembered(seen, signals.TANH_RELU)
    expected = sum(alignment_terms.linear_term(history, now, backward[LAYER], order) for order in range(1, STEPS))
    assert_close(totals[-1], expected)
    assert not totals[0].any()  # The first iteration has no past, itself least of all.


def test_new_backward_weights_change_what_comes_back_and_nothing_else(rng):
    other = rng.normal(size=(SIZES[LAYER + 1], SIZES[LAYER]))
    seen, _, backward = trained(signals.TANH_RELU)
    disturbed = [disturbances.with_feedback(each, other) for each in seen]
    term = alignment_terms.alignment_term(*remembered(disturbed, signals.TANH_RELU), 2)
    assert_close(term, by_index(seen, other, signals.TANH_RELU, 2))
    assert_differs(term, by_index(seen, backward[LAYER], signals.TANH_RELU, 2))


def test_shuffled_errors_lose_their_outputs_and_keep_their_rows(rng):
    seen, _, backward = trained(signals.TANH_RELU)
    now = disturbances.with_shuffled_errors(seen[-1], backward[LAYER], rng)
    assert sorted(map(tuple, now.errors)) == sorted(map(tuple, seen[-1].errors))
    assert_close(now.returned, now.errors @ backward[LAYER])
    assert now.inputs is seen[-1].inputs
    history, _ = remembered(seen, signals.TANH_RELU)
    term = alignment_terms.alignment_term(history, seen[-1], 2)
    assert_differs(alignment_terms.alignment_term(history, now, 2), term)
    # The order of whole examples in a batch has no effect (Note 3).
    order = rng.permutation(BATCH)
    both = seen[-1]._replace(**{name: getattr(seen[-1], name)[order] for name in ("inputs", "errors", "returned")})
    assert_close(alignment_terms.alignment_term(history, both, 2), term)


# Direct feedback alignment.


def direct(activation, rng, sizes):
    """Trains by DFA. Returns the pass, errors, delta_d and weights of each iteration, and F_0 (None) to F_(d-1)."""
    shapes = list(itertools.pairwise(sizes))
    kernels = [rng.normal(0, 0.5, shape) for shape in shapes]
    biases = [rng.normal(0, 0.2, units) for units in sizes[1:]]
    feedback = [None, *(rng.normal(0, 0.5, (sizes[-1], units)) for units in sizes[1:-1])]
    x, y = rng.normal(size=(BATCH, sizes[0])), rng.uniform(size=(BATCH, sizes[-1]))
    rows = []
    for _ in range(5):
        passed = signals.forward(x, kernels, biases, activation)
        error = signals.output_error(passed, y, activation)
        errors = signals.direct_errors(error, passed.states, feedback, activation)
        rows.append((passed, errors, error, kernels, biases))
        d_kernels, d_biases = signals.updates(passed.outputs, errors, RATE)
        kernels = [w + d for w, d in zip(kernels, d_kernels, strict=True)]
        biases = [b + d for b, d in zip(biases, d_biases, strict=True)]
    return rows, feedback


def test_factors_are_least_squares_and_what_is_left_is_perpendicular(rng):
    feedback = [rng.normal(size=(6, units)) for units in (9, 4, 5)]
    found = direct_feedback.factors(feedback)
    assert_close(found[-1].factor, feedback[-1])
    for below, above, matrix in zip(found[:-1], found[1:], feedback[:-1], strict=True):
        assert_close(below.factor, np.linalg.pinv(above.product) @ matrix)
        assert_close(below.product, above.product @ below.factor)
        assert_close(below.product + below.rest, matrix)
        assert angle(below.rest, below.product) == pytest.approx(90, abs=1e-9)
        assert np.linalg.norm(below.rest) > 0.1
    product = found[2].factor @ found[1].factor @ found[0].factor
    assert_close(found[0].product, product)
    # If the layers above are wide enough, the rest is zero.
    assert np.linalg.norm(direct_feedback.factors([rng.normal(size=(3, 8))] * 2)[0].rest) < 1e-12


def test_direct_alignment_terms_add_up_to_the_update_and_so_do_their_four_parts(rng):
    activation, layer, order = signals.TANH_RELU, 2, 3
    # If the layers are narrower than the output, each decomposition has a rest.
    rows, feedback = direct(activation, rng, sizes=(7, 6, 5, 4, 3, 6))
    found = [None, *direct_feedback.factors(feedback[1:])]
    whole = History(RATE, activation, 10)
    parts = {name: History(RATE, activation, 10) for name in ("product", "rest")}
    for passed, errors, error, kernels, biases in rows[:-1]:
        seen = LayerSignals(
            passed.outputs[layer - 1], kernels[layer - 1], biases[layer - 1], errors[layer], error @ feedback[layer]
        )
        whole.append(seen)
        for name, returned in direct_feedback.returned_parts(error, found[layer]).items():
            parts[name].append(seen._replace(returned=returned))
    passed, errors, error, kernels, biases = rows[-1]
    now = LayerSignals(
        passed.outputs[layer - 1], kernels[layer - 1], biases[layer - 1], errors[layer], error @ feedback[layer]
    )
    expansion = alignment_terms.expand(whole, now)
    assert_close(
        expansion.alignment + expansion.zero_degree + expansion.remainder,
        RATE * passed.outputs[layer].T @ errors[layer],
    )

    # S15, written out.
    past, past_errors, past_error, past_kernels, _ = rows[-1 - order]
    point = now.inputs @ past_kernels[layer - 1] + now.bias
    gated = activation.derivative(point).T * (RATE * past_errors[layer - 1].T @ past.outputs[layer - 1] @ now.inputs.T)
    term = alignment_terms.alignment_term(whole, now, order)
    assert_close(term, RATE * gated @ errors[layer])
    assert_close(past_errors[layer - 1], past_error @ feedback[layer] * activation.derivative(past.states[layer - 1]))

    present = direct_feedback.error_parts(error, found[layer + 1], activation.derivative(passed.states[layer]))
    four = direct_feedback.direct_term_parts(parts, now, present, order)
    assert len(four) == 4
    assert_close(sum(four.values()), term)
    assert_differs(four["product", "product"], term)


def test_equation_8_is_the_linear_term_with_q_where_nothing_is_left(rng):
    rows, feedback = direct(LINEAR, rng, sizes=(7, 6, 5, 8, 3))
    layer, order = 2, 2
    found = [None, *direct_feedback.factors(feedback[1:])]
    assert np.linalg.norm(found[layer].rest) < 1e-12
    history = History(RATE, LINEAR, 10)
    views = []
    for passed, errors, error, kernels, biases in rows:
        below = passed.outputs[layer - 1]
        views.append(LayerSignals(below, kernels[layer - 1], biases[layer - 1], errors[layer], error @ feedback[layer]))
    for each in views[:-1]:
        history.append(each)
    past, now = rows[-1 - order], rows[-1]
    expected = (
        RATE**2 * found[layer].factor.T @ feedback[layer + 1].T @ past[2].T
        @ past[0].outputs[layer - 1] @ now[0].outputs[layer - 1].T @ now[2] @ feedback[layer + 1]
    )  # fmt: skip
    assert_close(alignment_terms.linear_term(history, views[-1], found[layer].factor, order), expected)
    assert_close(alignment_terms.alignment_term(history, views[-1], order), expected)


def test_product_angles_compare_products_of_w_with_the_transposes_of_f(rng):
    kernels = [rng.normal(size=shape) for shape in ((6, 5), (5, 4), (4, 3))]
    feedback = [rng.normal(size=(3, units)) for units in (6, 5, 4)]
    expected = [
        angle(kernels[0] @ kernels[1] @ kernels[2], feedback[0].T),
        angle(kernels[1] @ kernels[2], feedback[1].T),
        angle(kernels[2], feedback[2].T),
    ]
    assert direct_feedback.product_angles(kernels, feedback) == pytest.approx(expected)
    assert (
        direct_feedback.product_angles(kernels, [3 * (kernels[0] @ kernels[1] @ kernels[2]).T, *feedback[1:]])[0] < 1e-6
    )
