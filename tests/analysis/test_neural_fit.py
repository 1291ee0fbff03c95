"""Neural fits of synthetic responses with a known result."""

import numpy as np
import pytest
from helpers import assert_close, assert_differs
from sklearn.cross_decomposition import PLSRegression

from neural_alignment.analysis import neural_fit

IMAGES, UNITS, FEATURES, REPEATS = 400, 60, 12, 8


@pytest.fixture(scope="module")
def world():
    """Features of several layers, a signal from one layer and one from none of them, and noisy repeats."""
    rng = np.random.default_rng(3)
    layers = {name: rng.normal(size=(IMAGES, FEATURES)) for name in ("first", "second", "third")}
    # The layers have a common part, like the layers of a network.
    layers["third"] = 0.7 * layers["second"] + 0.7 * layers["third"]
    explained = layers["second"] @ rng.normal(size=(FEATURES, UNITS)) / np.sqrt(FEATURES)
    signal = explained + 0.5 * rng.normal(size=(IMAGES, UNITS))
    repeats = signal[..., np.newaxis] + 2.0 * rng.normal(size=(IMAGES, UNITS, REPEATS))
    categories = np.repeat(np.arange(20), IMAGES // 20)
    areas = np.array(["V4"] * 25 + ["IT"] * (UNITS - 25))
    split = neural_fit.split_by_category(categories)
    return layers, signal, repeats, categories, areas, split


# The split.


def test_the_split_is_75_to_25_inside_each_category():
    categories = np.array(["cat"] * 80 + ["car"] * 40 + ["face"] * 3)
    order = np.random.default_rng(0).permutation(len(categories))
    train, test = neural_fit.split_by_category(categories[order])
    assert sorted([*train, *test]) == list(range(123))
    for name, count in (("cat", 60), ("car", 30), ("face", 2)):
        assert (categories[order][train] == name).sum() == count
    # If the images were drawn without regard to categories, the parts would be uneven.
    assert not np.array_equal(train, neural_fit.split_by_category(categories[order], seed=1).train)
    assert np.array_equal(train, neural_fit.split_by_category(categories[order], seed=0).train)


def test_the_paper_s_numbers_of_images():
    train, test = neural_fit.split_by_category(np.repeat(np.arange(64), 80))
    assert (len(train), len(test)) == (3840, 1280)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -1.0, float("nan")])
def test_a_split_needs_both_parts(fraction):
    with pytest.raises(ValueError, match="between 0 and 1"):
        neural_fit.split_by_category(np.zeros(4), fraction)


def test_a_category_needs_two_images():
    with pytest.raises(ValueError, match="one image of 'b'"):
        neural_fit.split_by_category(np.array(["a", "a", "b"]))


# The regression.


@pytest.mark.parametrize("count", [30, 99, 2000])
@pytest.mark.parametrize("block_bytes", [None, 8 * 120 * 7])
def test_the_reduction_changes_no_prediction(rng, monkeypatch, count, block_bytes):
    if block_bytes:
        monkeypatch.setattr(neural_fit, "BLOCK_BYTES", block_bytes)
    features = (rng.normal(size=(120, count)) * np.linspace(0.2, 2, count) + 3).astype(np.float32)
    responses = features[:, :8] @ rng.normal(size=(8, 5)) + rng.normal(size=(120, 5))
    split = neural_fit.split_by_category(np.repeat([0, 1], 60))
    reduced = neural_fit.predictors(features, split)
    assert reduced.train.shape[1] <= min(count, 90)
    found = neural_fit.predict(reduced, responses[split.train], 10)
    # scikit-learn on the full features.
    whole = PLSRegression(10, scale=False).fit(features[split.train].astype(np.float64), responses[split.train])
    np.testing.assert_allclose(found, whole.predict(features[split.test].astype(np.float64)), atol=1e-4)
    fewer = PLSRegression(9, scale=False).fit(features[split.train].astype(np.float64), responses[split.train])
    assert_differs(found, fewer.predict(features[split.test].astype(np.float64)))


def test_many_features_are_read_from_a_file_in_parts(rng, tmp_path, monkeypatch):
    """Of a layer with 20,000 outputs, at most a block is in memory."""
    features = np.lib.format.open_memmap(tmp_path / "layer.npy", "w+", np.float32, (40, 20000))
    features[:] = rng.normal(size=features.shape)
    monkeypatch.setattr(neural_fit, "BLOCK_BYTES", 8 * 40 * 500)
    seen = []

    class Watched:
        shape = features.shape

        def __getitem__(self, key):
            seen.append(features[key].shape)
            return features[key]

    split = neural_fit.split_by_category(np.repeat([0, 1], 20))
    reduced = neural_fit.predictors(Watched(), split)
    assert set(seen) == {(40, 500)}
    centred = features - features[split.train].mean(axis=0)
    np.testing.assert_allclose(
        reduced.train @ reduced.train.T, centred[split.train] @ centred[split.train].T, rtol=1e-3
    )
    np.testing.assert_allclose(
        reduced.test @ reduced.train.T, centred[split.test] @ centred[split.train].T, rtol=1e-3, atol=0.1
    )


def test_a_constant_layer_predicts_the_mean(rng):
    split = neural_fit.split_by_category(np.repeat([0, 1], 20))
    reduced = neural_fit.predictors(np.ones((40, 100)), split)
    responses = rng.normal(size=(30, 3))
    predictions = neural_fit.predict(reduced, responses, 5)
    assert_close(predictions, np.tile(responses.mean(axis=0), (10, 1)))
    assert np.isnan(neural_fit.pearson(predictions, rng.normal(size=(10, 3)))).all()


def test_wrong_arguments_are_errors(rng):
    split = neural_fit.split_by_category(np.repeat([0, 1], 20))
    features, responses = rng.normal(size=(40, 6)), rng.normal(size=(40, 3))
    with pytest.raises(ValueError, match="less than the number of training images, 30"):
        neural_fit.fit(features, responses, np.array(["IT"] * 3), split, components=30)
    with pytest.raises(ValueError, match="must agree"):
        neural_fit.fit(features[1:], responses, np.array(["IT"] * 3), split)
    with pytest.raises(ValueError, match="must agree"):
        neural_fit.fit(features, responses, np.array(["IT"] * 4), split)
    features[3, 2] = np.nan
    with pytest.raises(ValueError, match="must be finite"):
        neural_fit.fit(features, responses, np.array(["IT"] * 3), split)


# Correlations, and their correction.


def test_pearson_is_that_of_numpy_and_undefined_without_variation(rng):
    first, second = rng.normal(size=(2, 30, 4))
    second[:, 2] = 1 / 3
    found = neural_fit.pearson(first, second)
    for unit in (0, 1, 3):
        assert_close(found[unit], np.corrcoef(first[:, unit], second[:, unit])[0, 1])
    assert np.isnan(found[2])


def reliability_of_mean(repeats, signal_variance=1.25, noise_variance=4.0):
    return signal_variance / (signal_variance + noise_variance / repeats)


@pytest.mark.parametrize("repeats", [8, 7, 2])
def test_split_halves_recover_the_reliability(rng, repeats):
    signal = np.sqrt(1.25) * rng.normal(size=(600, 50, 1))
    noisy = signal + 2.0 * rng.normal(size=(600, 50, repeats))
    found = neural_fit.reliability(noisy)
    error = found.std(ddof=1) / np.sqrt(len(found))
    assert abs(found.mean() - reliability_of_mean(repeats)) < 3 * error
    # Uncorrected halves, or the formula for an even number, would give another result.
    assert abs(reliability_of_mean(repeats // 2) - found.mean()) > 10 * error
    if repeats == 7:
        assert abs(reliability_of_mean(6) - found.mean()) > 3 * error


def test_missing_repeats_are_left_out(rng):
    signal = np.sqrt(1.25) * rng.normal(size=(800, 40, 1))
    noisy = signal + 2.0 * rng.normal(size=(800, 40, 8))
    full = neural_fit.reliability(noisy)
    padded = np.concatenate([noisy, np.full((800, 40, 3), np.nan)], axis=2)
    np.testing.assert_allclose(neural_fit.reliability(padded), full, atol=0.02)
    padded[5, 7, 1:] = np.nan
    with pytest.raises(ValueError, match="1 of image 5, unit 7"):
        neural_fit.reliability(padded)


def test_noise_without_a_signal_has_no_reliability(rng):
    found = neural_fit.reliability(rng.normal(size=(500, 60, 6)))
    assert abs(found.mean()) < 4 * found.std(ddof=1) / np.sqrt(60)
    corrected = neural_fit.correct_for_noise(np.full(60, 0.1), found)
    assert np.array_equal(np.isnan(corrected), found <= 0)


def test_the_correction_recovers_the_correlation_with_the_noiseless_response(world):
    layers, signal, repeats, _, areas, split = world
    fits = neural_fit.fit(layers["second"], repeats, areas, split)
    # The reference, only available in a test: the same predictions against the noiseless signal.
    reduced = neural_fit.predictors(layers["second"], split)
    for area, fit in fits.items():
        units = areas == area
        predictions = neural_fit.predict(reduced, repeats.mean(axis=2)[split.train][:, units])
        truth = neural_fit.pearson(predictions, signal[split.test][:, units])
        assert abs(fit.corrected.mean() - truth.mean()) < 2 * neural_fit.standard_error(fit.corrected - truth)
        assert abs(neural_fit.median(fit.corrected) - np.median(truth)) < neural_fit.standard_error(fit.corrected) * 2
        assert fit.median < np.median(truth) - 5 * fit.sem  # Uncorrected it is too low,
        reliabilities = (fit.correlations / fit.corrected) ** 2
        assert (fit.correlations / reliabilities).mean() > truth.mean() + 5 * fit.sem  # divided by the square too high.


# Fits.


def test_the_fit_is_near_its_ceiling_and_finds_the_layer(world):
    layers, _, repeats, _, areas, split = world
    fits = {name: neural_fit.fit(features, repeats, areas, split) for name, features in layers.items()}
    assert neural_fit.best_layers(fits) == {"V4": "second", "IT": "second"}
    # Explained variance 1, unexplained 0.25, noise 4 / 8: the correlation with the true weights.
    ceiling = np.sqrt(1.0 / 1.75)
    for area, fit in fits["second"].items():
        assert fit.units == (areas == area).sum()
        assert ceiling - 0.08 < fit.median < ceiling + 3 * fit.sem
        assert abs(fits["first"][area].median) < 0.15
        assert 0.3 < fits["third"][area].median < fit.median - 5 * fit.sem
    assert_close(fit.median, np.median(fit.correlations))
    assert_close(fit.sem, np.std(fit.correlations, ddof=1) / np.sqrt(len(fit.correlations)))


def test_means_are_fitted_like_means_over_repeats(world):
    layers, _, repeats, _, areas, split = world
    alone = neural_fit.fit(layers["second"], repeats.mean(axis=2), areas, split)
    repeated = neural_fit.fit(layers["second"], repeats, areas, split)
    for area in ("V4", "IT"):
        assert_close(alone[area].correlations, repeated[area].correlations)
        assert alone[area].corrected is None


def test_areas_are_fitted_separately(world):
    layers, _, repeats, _, areas, split = world
    both = neural_fit.fit(layers["second"], repeats, areas, split)
    alone = neural_fit.fit(layers["second"], repeats[:, areas == "IT"], areas[areas == "IT"], split)
    assert_close(alone["IT"].correlations, both["IT"].correlations)


def test_shuffled_responses_are_about_zero(world):
    layers, _, repeats, _, _, split = world
    rng = np.random.default_rng(8)
    shuffled = rng.permuted(repeats.mean(axis=2), axis=0)  # Each unit by itself, so that units are independent.
    areas = np.array(["IT"] * UNITS)
    fit = neural_fit.fit(layers["second"], shuffled, areas, split)["IT"]
    # Under chance a correlation over n images has the variance 1 / (n - 1), a median over units pi / 2 times a mean's.
    deviation = np.sqrt(np.pi / 2 / UNITS / (len(split.test) - 1))
    assert abs(fit.median) < 4 * deviation
    # On its training images the same regression would seem to predict them.
    leaking = neural_fit.Split(np.arange(IMAGES), split.test)
    assert neural_fit.fit(layers["second"], shuffled, areas, leaking)["IT"].median > 8 * deviation


def test_units_that_do_not_vary_are_left_out(world):
    layers, _, repeats, _, areas, split = world
    means = repeats.mean(axis=2)
    means[:, 0] = 2.0
    fit = neural_fit.fit(layers["second"], means, areas, split)["V4"]
    assert fit.units == 24
    assert np.isfinite([fit.median, fit.sem]).all()
    silent = neural_fit.fit(layers["second"], np.zeros_like(means), areas, split)
    assert silent["IT"].units == 0
    assert np.isnan(silent["IT"].median)
    assert neural_fit.best_layers({"silent": silent, "second": {"V4": fit, "IT": fit}})["IT"] == "second"
