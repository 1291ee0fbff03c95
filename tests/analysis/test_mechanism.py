"""Angles, similarities, transformations, trajectories, open loops and random products of feedback alignment."""

import numpy as np
import pytest
import scipy.stats
from helpers import assert_close

from neural_alignment.analysis import curves, open_loop, random_products, similarity, trajectories, transformation

# Angles.


def test_angles_of_known_matrices(rng):
    matrix = rng.normal(size=(4, 6))
    other = rng.normal(size=(4, 6))
    other -= np.vdot(other, matrix) / np.vdot(matrix, matrix) * matrix
    for degrees in (0.0, 1e-5, 30.0, 90.0, 135.0, 180.0):
        radians = np.deg2rad(degrees)
        turned = np.cos(radians) * matrix / np.linalg.norm(matrix) + np.sin(radians) * other / np.linalg.norm(other)
        assert similarity.angle(matrix, 1e-30 * turned) == pytest.approx(degrees, abs=1e-9)
        assert similarity.cosine_similarity(7 * matrix, turned) == pytest.approx(np.cos(radians), abs=1e-12)
    assert np.isnan(similarity.angle(matrix, 0 * matrix))
    with pytest.raises(ValueError, match=r"same shape. Received \(4, 6\) and \(6, 4\)"):
        similarity.angle(matrix, matrix.T)


# Similarity matrices.


def test_the_overlap_of_similarity_matrices_is_the_trace_of_m(rng):
    errors, outputs = rng.normal(size=(2, 8, 3)), rng.normal(size=(2, 8, 5))
    matrix = errors[0].T @ outputs[0] @ outputs[1].T @ errors[1]
    terms = [similarity.similarity_matrix(*each) for each in (errors, outputs)]
    assert terms[0][2, 5] == pytest.approx(errors[0, 2] @ errors[1, 5])
    assert similarity.overlap(*terms) == pytest.approx(np.trace(matrix))
    assert similarity.overlap(terms[0].T, terms[1]) != pytest.approx(np.trace(matrix), rel=1e-3)


def test_the_overlap_by_category_is_that_of_the_similarity_matrices(rng):
    errors = rng.normal(size=(8, 3)), rng.normal(size=(6, 3))
    outputs = rng.normal(size=(8, 5)), rng.normal(size=(6, 5))
    labels = np.array([0, 1, 1, 2, 0, 4, 4, 1]), np.array([1, 0, 0, 3, 2, 1])
    terms = (errors[0] @ errors[1].T) * (outputs[0] @ outputs[1].T)
    same = labels[0][:, None] == labels[1][None]
    found = similarity.overlap_by_category(errors, outputs, labels)
    assert found == pytest.approx((terms[same].sum(), terms[~same].sum()))
    assert found != pytest.approx((terms[~same].sum(), terms[same].sum()))


def test_alignment_is_expected_by_the_trace_of_m(rng):
    """Equation 12: the mean of <B^T M, B^T> over random B is units * variance * trace(M)."""
    matrix = rng.normal(size=(3, 3)) + np.eye(3)
    draws = rng.normal(0, 0.7, size=(200000, 3))
    mean = np.einsum("nq,qj,nj->n", draws, matrix, draws).mean()
    assert mean == pytest.approx(0.49 * np.trace(matrix), rel=0.03)


@pytest.mark.parametrize("block", [1, 4, 100])
def test_the_tally_is_that_of_the_whole_matrices(rng, block):
    earlier, later = rng.normal(size=(13, 4)), rng.normal(size=(11, 4))
    labels = rng.integers(0, 3, 13), rng.integers(0, 3, 11)
    well = rng.random(13) < 0.6, rng.random(11) < 0.6
    edges = np.linspace(-4, 4, 9)
    whole = similarity.similarity_matrix(earlier, later)
    same = labels[0][:, None] == labels[1][None]
    good = well[0][:, None] & well[1][None]
    tallies = similarity.tally(earlier, later, labels, edges, block=block)
    quality = similarity.tally(earlier, later, labels, edges, well, block)
    expected = {"within": same, "between": ~same}
    expected_quality = {
        "within/well": same & good, "within/poor": same & ~good,
        "between/well": ~same & good, "between/poor": ~same & ~good,
    }  # fmt: skip
    for found, masks in ((tallies, expected), (quality, expected_quality)):
        assert found.keys() == masks.keys()
        for name, mask in masks.items():
            assert found[name].pairs == mask.sum()
            assert found[name].mean == pytest.approx(whole[mask].mean())
            assert found[name].histogram.tolist() == np.histogram(whole[mask], edges)[0].tolist()
    assert sum(each.pairs for each in quality.values()) == 13 * 11


def test_well_classified_are_the_smallest_errors_of_the_output(rng):
    errors = rng.normal(size=(50, 3)) * np.arange(1, 51)[:, None]
    well = similarity.well_classified(errors)
    norms = np.sqrt((errors**2).sum(axis=1))
    assert well.sum() == 30
    assert norms[well].max() < norms[~well].min()
    # A pair with one poorly classified example counts as poorly classified.
    assert similarity.both(np.array([True, False]), np.array([True, False])).tolist() == [[True, False], [False, False]]
    with pytest.raises(ValueError, match=r"between 0 and 1. Received 60"):
        similarity.well_classified(errors, 60)


# M and its parts.


@pytest.mark.parametrize("shape", [(50, 50), (10, 50), (50, 10)])
def test_the_skew_part_turns_b_by_exactly_90_degrees(rng, shape):
    backward, matrix = rng.normal(size=shape), rng.normal(size=(shape[0], shape[0]))
    effect = transformation.effect(backward, matrix)
    assert abs(effect.skew_angle - 90) < 1e-10
    assert abs(effect.symmetric_angle - 90) > 1e-3
    assert_close(transformation.symmetric(matrix) + transformation.skew(matrix), matrix)
    assert_close(transformation.skew(matrix), -transformation.skew(matrix).T)
    # M is multiplied from the right. From the left, or with B in place of B^T, the angle differs.
    assert effect.angle == pytest.approx(similarity.angle(backward.T, backward.T @ matrix))
    # The ratio of the parts and the angle of the symmetric part determine the angle.
    even = backward.T @ transformation.symmetric(matrix)
    cosine = np.vdot(backward.T, even) / np.linalg.norm(backward) / np.linalg.norm(backward.T @ matrix)
    assert np.cos(np.deg2rad(effect.angle)) == pytest.approx(cosine)


def test_a_positive_semidefinite_m_keeps_every_direction(rng):
    signal = rng.normal(size=(8, 6))
    matrix = signal.T @ signal
    for _ in range(20):
        effect = transformation.effect(rng.normal(size=(6, 4)), matrix)
        assert effect.angle < 90
        assert effect.skew_ratio == pytest.approx(0, abs=1e-14)
        assert effect.eigenvalues.min() > -1e-12


def test_a_random_transformation_has_the_eigenvalues_that_it_reports(rng):
    matrix, ratio = transformation.random_transformation(40, rng)
    eigenvalues = np.linalg.eigvalsh(transformation.symmetric(matrix))
    assert ratio == pytest.approx(eigenvalues.mean() / np.sqrt((eigenvalues**2).mean()))
    norms = [np.linalg.norm(part(matrix)) for part in (transformation.skew, transformation.symmetric)]
    assert 0 < norms[0] < 3 * norms[1]


# Curves.


def test_a_moving_average_has_fewer_values_at_its_ends_and_thinned_points_include_both_ends(rng):
    values = rng.normal(size=20)
    smooth = curves.smoothed(values, 5)
    assert smooth[0] == pytest.approx(values[:3].mean())
    assert smooth[10] == pytest.approx(values[8:13].mean())
    assert smooth[-1] == pytest.approx(values[-3:].mean())
    assert curves.thinned(101, 5).tolist() == [0, 25, 50, 75, 100]
    assert curves.thinned(3, 5).tolist() == [0, 1, 2]


# Trajectories.


def test_local_minima_are_lower_than_their_neighbours_and_not_on_the_border():
    rows, columns = np.mgrid[:9, :12]
    valleys = np.minimum((rows - 2) ** 2 + (columns - 3) ** 2, (rows - 6) ** 2 + (columns - 9) ** 2 + 1)
    assert trajectories.local_minima(valleys.astype(float)).tolist() == [[2, 3], [6, 9]]
    assert trajectories.local_minima((rows + columns).astype(float)).shape == (0, 2)


def test_the_axis_of_a_grid_reaches_beyond_the_values():
    assert_close(trajectories.grid_axis(np.array([10.0, 0.0, 4.0]), 3), np.array([-1.5, 5.0, 11.5]))


def test_parameters_are_laid_out_layer_by_layer(rng):
    kernels, biases = [rng.normal(size=shape) for shape in ((3, 2), (2, 4))], [rng.normal(size=n) for n in (2, 4)]
    row = trajectories.flatten(kernels, biases)
    assert_close(row, np.concatenate([kernels[0].ravel(), biases[0], kernels[1].ravel(), biases[1]]))
    back = trajectories.unflatten(row, [(3, 2), (2, 4)])
    for mine, theirs in zip([*back[0], *back[1]], [*kernels, *biases], strict=True):
        np.testing.assert_array_equal(mine, theirs)
    with pytest.raises(ValueError, match=r"must hold the 20 parameters .* Received the shape \(19,\)"):
        trajectories.unflatten(row[:-1], [(3, 2), (2, 4)])


def test_the_plane_is_that_of_the_singular_vectors(rng):
    rows = rng.normal(size=(12, 40)) * np.linspace(3, 0.1, 40) + 5.0
    plane = trajectories.plane(rows)
    centred = rows - rows.mean(axis=0)
    _, values, vectors = np.linalg.svd(centred, full_matrices=False)
    assert_close(np.abs(plane.axes @ vectors[:2].T), np.eye(2))
    assert_close(plane.explained, values[:2] ** 2 / (values**2).sum())
    assert_close(plane.project(rows), centred @ plane.axes.T)
    # The centre is not subtracted from directions.
    assert_close(plane.project_direction(rows[1] - rows[0]), plane.project(rows[1]) - plane.project(rows[0]))
    assert_close(plane.project(plane.point(np.array([[1.0, -2.0]]))), np.array([[1.0, -2.0]]))
    with pytest.raises(ValueError, match="three or more points"):
        trajectories.plane(rows[:2])


def test_the_loss_on_the_plane_has_a_row_per_value_of_the_second_component(rng):
    plane = trajectories.plane(rng.normal(size=(9, 5)))
    first, second = np.array([-1.0, 0.0, 1.0]), np.array([2.0, 3.0])
    heights = trajectories.loss_on_plane(plane, first, second, lambda row: float(row @ np.arange(5.0)))
    assert heights.shape == (2, 3)
    expected = (plane.centre + 1.0 * plane.axes[0] + 2.0 * plane.axes[1]) @ np.arange(5.0)
    assert heights[0, 2] == pytest.approx(expected)
    targets, outputs = rng.normal(size=(2, 4, 3))
    assert trajectories.contour_height(targets, outputs) == pytest.approx(np.sqrt(((targets - outputs) ** 2).sum()) / 2)


# The open loop.


def test_the_open_loop_is_its_definition(rng):
    """Computes two iterations explicitly. The rate is applied once, and W_0 changes before the second."""
    angles = open_loop.run("cross_correlated", np.random.default_rng(4), 2)
    draw = np.random.default_rng(4)
    w0, w1, b1 = draw.normal(size=(20, 100)), draw.normal(size=(100, 20)), draw.normal(size=(20, 100))
    expected, rate_twice = [similarity.angle(w1, b1.T)], None
    for _ in range(2):
        signal = draw.normal(size=(100, 20))
        z = signal @ w0
        w1 = w1 + 0.002 * np.maximum(z, 0).T @ signal
        w0 = w0 + 0.002 * signal.T @ ((signal @ b1) * (z > 0))
        expected.append(similarity.angle(w1, b1.T))
        rate_twice = similarity.angle(w1 - (1 - 0.002) * 0.002 * np.maximum(z, 0).T @ signal, b1.T)
    assert angles == pytest.approx(expected)
    assert abs(angles[-1] - rate_twice) > 0.5
    with pytest.raises(ValueError, match=r"must be one of constant, cross_correlated, neither. Received 'both'"):
        open_loop.run("both", rng, 1)


@pytest.mark.parametrize(
    ("condition", "runs", "low", "high"),
    [("constant", 4, 50, 55), ("cross_correlated", 4, 0, 4), ("neither", 10, 89, 91)],
)
def test_signals_that_are_auto_or_cross_correlated_align_and_others_do_not(condition, runs, low, high):
    """The published code ends at 52.6, 2.1 and 90.1 degrees (means over 10 runs)."""
    ends = [open_loop.run(condition, np.random.default_rng(seed), ITERATIONS)[-1] for seed in range(runs)]
    assert low < np.mean(ends) < high


ITERATIONS = 1000

# Random products.


def test_pairs_have_a_uniform_angle_and_norm_1(rng):
    pairs = [random_products.pair((5, 4), rng) for _ in range(2000)]
    angles = [similarity.angle(*each) for each in pairs]
    assert scipy.stats.kstest(angles, scipy.stats.uniform(0, 180).cdf).pvalue > 0.01
    assert np.allclose([np.linalg.norm(each) for each in pairs[0]], 1)
    # Independent draws would all be near 90 degrees.
    independent = [similarity.angle(*rng.normal(size=(2, 5, 4))) for _ in range(2000)]
    assert scipy.stats.kstest(independent, scipy.stats.uniform(0, 180).cdf).pvalue < 1e-6


def away(product, gated):
    """Returns the shift of the angles by the gates, away from 90 degrees or towards them."""
    return abs((np.sign(product - 90) * (gated - product)).mean())


def test_a_product_is_aligned_as_far_as_both_its_factors_are(rng):
    sample = random_products.sample(4000, rng)
    aligned = sample.first < 10
    # If one factor is aligned, the angle is that of the other. If one is at 90 degrees, so is the product.
    assert np.corrcoef(sample.second[aligned], sample.product[aligned])[0, 1] > 0.95
    across = np.abs(sample.first - 90) < 5
    assert np.abs(sample.product[across] - 90).mean() < 10
    # The nonlinearity changes the variance of theta_3, not its mean.
    assert away(sample.product, sample.gated) < 0.3
    halved = 90 + (sample.gated - 90) / 2
    assert away(sample.product, halved) > 3
    assert abs((halved - sample.product).mean()) < 1  # By symmetry: a mean over all draws does not tell.
    residual = [np.var(each[across]) for each in (sample.product, sample.gated)]
    assert residual[1] > residual[0]


def test_the_shift_by_gates_is_away_from_90_degrees_in_every_bin_and_condition(rng):
    sample = random_products.sample(3000, rng)
    shifts = random_products.gated_shift(sample)
    total = 0.0
    for i in range(4):
        for j in range(4):
            own = (sample.first // 45 == i) & (sample.second // 45 == j)
            linear, gated = sample.product[own].mean(), sample.gated[own].mean()
            total += own.sum() * np.sign(linear - 90) * (gated - linear)
    assert shifts.mean() == pytest.approx(total / 3000)
    # The draws are paired. With independent draws the error would be several times as large.
    assert shifts.std() < 0.5 * np.hypot(sample.product.std(), sample.gated.std())
    assert abs(shifts.mean()) < 4 * shifts.std() / np.sqrt(3000)
    # Gates that halve every alignment are found in each condition, also in those whose mean is 90 degrees.
    halved = sample._replace(gated=90 + (sample.product - 90) / 2)
    assert random_products.gate_test(halved)[1] > 0.01
    for condition in random_products.CONDITIONS:
        found = random_products.gated_shift(random_products.chosen(halved, condition))
        assert found.mean() < -0.5, condition


def test_conditions_choose_draws_and_the_test_compares_related_samples(rng):
    found = random_products.sample(300, rng)
    near = random_products.chosen(found, "both_45")
    kept = (abs(found.first - 45) <= 5) & (abs(found.second - 45) <= 5)
    np.testing.assert_array_equal(near.product, found.product[kept])
    assert len(random_products.chosen(found, "all").first) == 300
    differences = found.gated - found.product
    t = differences.mean() / (differences.std(ddof=1) / np.sqrt(300))
    assert random_products.gate_test(found)[0] == pytest.approx(t)
    moved = found._replace(gated=found.product + 1 + differences)
    assert random_products.gate_test(moved)[1] < 1e-6 < random_products.gate_test(found)[1]


def test_the_heatmap_is_the_mean_and_variance_of_each_bin(rng):
    first, second, values = rng.uniform(0, 180, size=(3, 500))
    heatmap = random_products.heatmap(first, second, values, width=60)
    chosen = values[(first >= 60) & (first < 120) & (second >= 120)]
    assert heatmap.mean[1, 2] == pytest.approx(chosen.mean())
    assert heatmap.variance[1, 2] == pytest.approx(chosen.var())
    assert heatmap.counts.sum() == 500
    assert random_products.heatmap(first, second, values).mean.shape == (36, 36)
    with pytest.raises(ValueError, match=r"must divide 180. Received 7"):
        random_products.heatmap(first, second, values, width=7)
