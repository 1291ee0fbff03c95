"""The noise that replaces the input: its distribution, its dependence on seed and step, and the mean of R over it."""

import itertools

import numpy as np
import pytest
import tensorflow as tf
from helpers import DENSE, SAME, VALID, assert_close, assert_differs

from neural_alignment.alignments import InputPath, LayerView, WeightMirror, forward_pass
from neural_alignment.alignments.pathways import draw_noise, noise_key
from neural_alignment.operations import ConvMap, DenseMap
from optimizers import noise

STDDEV = 0.7


def draw(shape=(200, 50), kind="normal", seed=1, layer="layer", step=4, first=0, dtype=tf.float32, stddev=STDDEV):
    """Draws the noise of one layer at one step."""
    options = InputPath(noise=kind, stddev=stddev)
    return draw_noise(options, tf.zeros(shape, dtype), noise_key(seed, layer, step), first).numpy()


def tf_draw(shape, kind, first):
    """Draws, in a graph, the noise that `draw` draws by default."""
    return draw_noise(InputPath(noise=kind, stddev=STDDEV), tf.zeros(shape), noise_key(1, "layer", 4), first)


@pytest.mark.parametrize("kind", noise.DISTRIBUTIONS)
def test_the_noise_has_mean_zero_and_the_standard_deviation_asked_for(kind):
    drawn = draw((1000, 100), kind).ravel().astype(np.float64)
    count, kurtosis = drawn.size, {"normal": 3.0, "uniform": 1.8, "sign": 1.0}[kind]
    # Four standard errors of the mean, of the variance and of the fourth moment.
    assert abs(drawn.mean()) < 4 * STDDEV / np.sqrt(count)
    variance_error = STDDEV**2 * np.sqrt((kurtosis - 1) / count)
    assert abs((drawn**2).mean() - STDDEV**2) < 4 * variance_error + 1e-6
    assert (drawn**4).mean() / (drawn**2).mean() ** 2 == pytest.approx(kurtosis, rel=0.02)


def test_uniform_noise_is_bounded_by_root_three_standard_deviations_and_fills_the_interval():
    drawn = draw((1000, 100), "uniform")
    assert np.abs(drawn).max() <= STDDEV * np.sqrt(3) * (1 + 1e-6)
    assert np.abs(drawn).max() > 0.999 * STDDEV * np.sqrt(3)
    assert np.abs(draw((1000, 100), "normal")).max() > 3 * STDDEV


@pytest.mark.parametrize("kind", noise.DISTRIBUTIONS)
def test_the_same_key_gives_the_same_noise(kind):
    np.testing.assert_array_equal(draw(kind=kind), draw(kind=kind))


@pytest.mark.parametrize("kind", noise.DISTRIBUTIONS)
def test_another_seed_layer_step_or_place_in_the_batch_gives_uncorrelated_noise(kind):
    draws = [
        draw(kind=kind, **change)
        for change in ({}, {"seed": 2}, {"layer": "layes"}, {"step": 5}, {"first": 200},
                       {"step": 4 + 2**31}, {"seed": 4, "step": 1}, {"layer": "reyal"})
    ]  # fmt: skip
    for first, second in itertools.combinations(draws, 2):
        # Four standard errors of a correlation of 10,000 pairs.
        assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.04


def test_positions_and_examples_are_independent():
    drawn = draw((400, 50)).astype(np.float64)
    by_position = np.corrcoef(drawn.T) - np.eye(50)
    by_example = np.corrcoef(drawn[:50]) - np.eye(50)
    # Five standard errors: there are about a thousand pairs.
    assert np.abs(by_position).max() < 5 / np.sqrt(400)
    assert np.abs(by_example).max() < 5 / np.sqrt(50)


@pytest.mark.parametrize("dtype", [tf.float64, tf.float32, tf.bfloat16, tf.float16])
def test_the_noise_has_shape_and_dtype_of_the_input(dtype):
    like = tf.zeros([2, 7, 3, 4], dtype)
    drawn = draw_noise(InputPath(noise="normal"), like, noise_key(0, "a", 0))
    assert (drawn.shape, drawn.dtype) == (like.shape, dtype)


def test_there_is_no_scaling_by_the_fan_in():
    assert draw((50, 1000)).std() == pytest.approx(draw((1000, 50)).std(), rel=0.02)


@pytest.mark.parametrize("kind", noise.DISTRIBUTIONS)
@pytest.mark.parametrize("jit_compile", [False, True], ids=["graph", "xla"])
def test_compiled_noise_is_the_noise_of_eager_execution(kind, jit_compile):
    """DESIGN: the same step gives the same noise on any device."""

    @tf.function(jit_compile=jit_compile)
    def compiled(step):
        return draw_noise(InputPath(noise=kind, stddev=STDDEV), tf.zeros([200, 50]), noise_key(1, "layer", step))

    assert_close(compiled(tf.constant(4, tf.int64)), draw(kind=kind))


@pytest.mark.parametrize("kind", noise.DISTRIBUTIONS)
def test_the_noise_of_an_example_does_not_depend_on_how_many_there_are(kind):
    """Up to the last digit of a logarithm, which depends on the place in a vector register."""
    assert_close(draw((7, 3, 5), kind), draw((20, 3, 5), kind)[:7])


@pytest.mark.parametrize(
    ("kind", "shape", "jit_compile"),
    [
        ("normal", (8, 3, 5), True),
        ("uniform", (8, 33), True),
        ("sign", (8, 4, 4, 2), True),
        ("normal", (8, 33), False),
        ("uniform", (8, 4, 4, 2), False),
        ("sign", (8, 3, 5), False),
    ],
)
def test_a_part_of_the_batch_gets_its_part_of_the_noise(kind, shape, jit_compile):
    """Replicas and minibatches see together what one batch sees; drawn anew, each would see the same."""
    whole = draw(shape, kind)
    part = tf.function(lambda first: tf_draw((4, *shape[1:]), kind, first), jit_compile=jit_compile)
    assert_close(np.concatenate([part(tf.constant(0)), part(tf.constant(4))]), whole)
    assert_differs(part(tf.constant(0)), whole[4:])


def test_sign_noise_is_plus_or_minus_the_standard_deviation():
    values, counts = np.unique(draw((500, 101), "sign"), return_counts=True)
    assert_close(values, np.array([-STDDEV, STDDEV], np.float32))
    assert abs(counts[0] / counts.sum() - 0.5) < 4 * 0.5 / np.sqrt(counts.sum())


def mean_gradient(case, draws, **options):
    """Returns the mean over many draws of Weight Mirror's gradient to B, its standard errors, and the arrays."""
    rng = np.random.default_rng(12)
    arrays = case.arrays(rng)
    rule = WeightMirror(amp=1.5, decay=0.2, input=InputPath(noise="normal", stddev=STDDEV), **options)
    linear_map = DenseMap() if case is DENSE else ConvMap(case.linear.strides, case.linear.padding)
    b = linear_map.transpose(tf.constant(arrays["b"]))

    @tf.function
    def gradient(step):
        view = LayerView(
            linear_map, tf.constant(arrays["x"]), tf.constant(arrays["w"]), b, tf.constant(arrays["bias"]), step=step
        )
        with tf.GradientTape() as tape:
            tape.watch(b)
            value = rule(view)
        return linear_map.transpose(tape.gradient(value, b))

    samples = np.stack([gradient(tf.constant(step)) for step in range(draws)])
    return samples.mean(axis=0), samples.std(axis=0) / np.sqrt(draws), arrays


def test_the_expected_update_of_weight_mirror_is_decay_b_minus_amp_variance_w():
    """Akrout et al. 2019: E[x x_out^T] = sigma^2 W, so B grows along W^T, whatever the data."""
    mean, error, arrays = mean_gradient(DENSE, draws=2000)
    expected = 0.2 * arrays["b"] - 1.5 * STDDEV**2 * arrays["w"]
    # Five standard errors, for 15 entries.
    assert (np.abs(mean - expected) < 5 * error).all()
    for wrong in (0.2 * arrays["b"] - 1.5 * STDDEV * arrays["w"], 0.2 * arrays["b"] - 0.75 * STDDEV**2 * arrays["w"]):
        assert (np.abs(mean - wrong) > 5 * error).any()


@pytest.mark.parametrize("case", [SAME, VALID], ids=lambda case: case.name)
def test_a_convolution_counts_every_position_that_a_tap_sees(case):
    """The sum over space weights a tap by the number of positions at which it does not fall on padding."""
    mean, error, arrays = mean_gradient(case, draws=800)
    image = case.input_shape[1:3]
    ones = np.ones((1, *image, 1))
    out = np.ones_like(case.linear.project(ones, np.ones((*case.kernel_shape[:2], 1, 1))))
    seen = case.linear.correlate(ones, out, (*case.kernel_shape[:2], 1, 1))
    expected = 0.2 * arrays["b"] - 1.5 * STDDEV**2 * seen * arrays["w"]
    # Five standard errors.
    assert (np.abs(mean - expected) < 5 * error).all()
    assert (np.abs(mean - (0.2 * arrays["b"] - 1.5 * STDDEV**2 * arrays["w"])) > 5 * error).any()


def test_the_layers_of_a_network_see_independent_noise():
    """Two layers of one rule, seed and step: their R differ though their kernels and inputs are the same."""
    rule = WeightMirror(amp=1.0, decay=0.1, input=InputPath(noise="normal"), seed=5)
    arrays = DENSE.arrays(np.random.default_rng(0))
    values = {}
    for name, seed, step in [("a", 5, 0), ("b", 5, 0), ("a", 6, 0), ("a", 5, 1), ("a", 5, 0)]:
        layer = DENSE.build(alignment=rule.model_copy(update={"seed": seed}), name=name)
        layer.set_weights([arrays["w"], arrays["bias"], arrays["b"].T, np.array(0)][: len(layer.weights)])
        with forward_pass(step=step) as state:
            layer(arrays["x"].astype(np.float32), training=True)
        value = float(state.losses[name])
        assert values.setdefault((name, seed, step), value) == value
    for first, second in itertools.combinations(values.values(), 2):
        assert_differs(first, second)


def test_the_noise_replaces_the_input():
    """R with noise does not depend on the data."""
    rule = WeightMirror(amp=1.0, decay=0.1, input=InputPath(noise="uniform"))
    arrays = DENSE.arrays(np.random.default_rng(0))
    w, b = tf.constant(arrays["w"]), tf.constant(arrays["b"].T)
    first = rule(LayerView(DenseMap(), tf.constant(arrays["x"]), w, b))
    second = rule(LayerView(DenseMap(), tf.constant(10 * arrays["x"]), w, b))
    assert float(first) == float(second)


# Magnitudes that are redrawn at every step (brsf).


def resampled(values, step=4, layer="layer"):
    return noise.resample(tf.constant(values), noise.key(1, layer, step)).numpy()


def test_a_resample_draws_every_entry_equally_often_and_with_replacement():
    values = np.arange(40.0).reshape(5, 8)
    function = tf.function(lambda step: noise.resample(tf.constant(values), noise.key(1, "layer", step)))
    draws = np.stack([function(tf.constant(step)) for step in range(500)])
    counts = np.unique(draws, return_counts=True)[1]
    # Five standard errors of 40 counts; at one place, of a mean of 500 draws.
    assert np.abs(counts - 500).max() < 5 * np.sqrt(500)
    assert np.abs(draws.mean(axis=0) - values.mean()).max() < 5 * values.std() / np.sqrt(500)
    assert all(len(np.unique(each)) < 40 for each in draws)
    # Neighbours, and the same place at the next step, are not correlated.
    for first, second in ((draws[:, 0, 0], draws[:, 0, 1]), (draws[:-1].ravel(), draws[1:].ravel())):
        assert abs(np.corrcoef(first, second)[0, 1]) < 5 / np.sqrt(len(first))
    assert_differs(resampled(values), resampled(values, layer="layes"))


@pytest.mark.parametrize("shape", [(3, 3, 128, 128), (1000, 512)])
def test_a_resample_of_many_values_draws_from_some_of_them_in_every_part(shape):
    """Values that differ between the positions of a filter, its inputs and its outputs keep their distribution."""
    places = resampled(np.arange(np.prod(shape)).reshape(shape))
    table = len(np.unique(places))
    assert noise.TABLE / 2 < table < 2 * noise.TABLE
    for axis, index in enumerate(np.unravel_index(places.ravel(), shape)):
        counts = np.bincount(index, minlength=shape[axis])
        expected = places.size / shape[axis]
        # A part has one entry of the table more or less than another.
        assert np.abs(counts - expected).max() < 6 * np.sqrt(expected) + expected * shape[axis] / table, axis


def test_a_resample_of_fewer_values_draws_from_all_of_them():
    values = np.arange(2 * noise.TABLE - 1)
    seen = np.unique(np.concatenate([resampled(values, step) for step in range(20)]))
    assert len(seen) == len(values)


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_a_compiled_resample_is_that_of_eager_execution_to_the_last_bit(dtype):
    values = tf.cast(np.random.default_rng(0).normal(size=(3, 3, 7, 9)), dtype)
    compiled = tf.function(lambda step: noise.resample(values, noise.key(1, "layer", step)), jit_compile=True)
    for step in (4, 5):
        np.testing.assert_array_equal(compiled(tf.constant(step)), noise.resample(values, noise.key(1, "layer", step)))
