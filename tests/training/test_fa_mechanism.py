"""The network of Rahmansetayesh et al. as the library trains it, against an independent float64 NumPy loop.

The loop is equations 13 to 23 and SPEC section 3, written out; from the library it takes only the images, the codes and
the initial weights.
"""

import os
from pathlib import Path

import killed_runs
import numpy as np
import pytest
import tensorflow as tf
from helpers import distance, exhaustive_unless, two_replicas
from prepared_run import PreparedRun

from neural_alignment import config as configuration
from neural_alignment import data
from neural_alignment.analysis import alignment_terms, signals
from neural_alignment.data.labels import replaced
from neural_alignment.errors import ConfigError, DataError
from neural_alignment.losses import CodeAccuracy, HalfSquaredError, n_hot_codes
from neural_alignment.models import ColumnNorm
from neural_alignment.models.activations import tanh_relu
from neural_alignment.training import load_model, run, setup, stepping
from neural_alignment.training.describe import describe
from neural_alignment.training.metrics import MetricsFile

CONFIGS = Path(__file__).parent.parent.parent / "configs" / "fa_mechanism"
FLOAT64 = "runtime.precision=float64"
CONDITIONS = ("bp", "bp_w", "bp_trw", "bp_trw_w", "bp_trw_b", "bp_trw_wb")
LAYERS = ("dense1", "dense2", "dense3", "dense4", "dense")
MNIST = Path(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser() / "mnist"
SMALL = (
    "data={source: digits, shuffle: false}",
    "batch_size=100",
    "epochs=2",
    "optimization.forward.learning_rate=0.004",
)
"""1,437 standardised images of 8 x 8 pixels in 14 batches, at a rate that moves the weights as far as MNIST's does."""


def loaded(condition, *overrides):
    return configuration.load(CONFIGS / f"{condition}.yaml", overrides)


# The NumPy loop.


def f(z):
    return np.tanh(np.maximum(z, 0))


def f_prime(z, mistake=""):
    if mistake == "derivative of the output":
        z = f(z)
    gate = 1.0 if mistake == "no gate" else z > 0
    return gate / np.cosh(z) ** 2


def columns(matrix, gamma, mistake=""):
    axis = 1 if mistake == "rows" else 0
    return gamma * matrix / np.sqrt((matrix**2).sum(axis=axis, keepdims=True))


def train_numpy(config, batches, codes, weights, mistake=""):
    """Returns W, b and B after a step on each batch, as lists in the order of the layers; B of the first is none."""
    rate = config.optimization.forward.learning_rate * (2 if mistake == "rate twice" else 1)
    rate = rate / config.batch_size if mistake == "mean" else rate
    norm = config.model.weight_norm
    forward = norm is not None and norm.kernels in ("forward", "both")
    backward = norm is not None and norm.kernels in ("backward", "both")
    w, b, back = ([None if each is None else each.astype(np.float64) for each in part] for part in weights)
    if forward and mistake != "no norm at the start":
        w = [columns(each, norm.gamma, mistake) for each in w]
    if backward:
        back = [None if each is None else columns(each, norm.gamma, mistake) for each in back]
    for x, labels in batches:
        z, layers = [], [x.reshape(len(x), -1).astype(np.float64)]
        for kernel, bias in zip(w, b, strict=True):
            z.append(layers[-1] @ kernel + bias)
            layers.append(f(z[-1]))
        delta = (codes[labels] - layers[-1]) * f_prime(z[-1], mistake)
        new_w, new_b = list(w), list(b)
        for layer in reversed(range(len(w))):
            new_w[layer] = w[layer] + rate * layers[layer].T @ delta
            new_b[layer] = b[layer] + rate * delta.sum(axis=0)
            if layer:
                delta = delta @ (w[layer].T if back[layer] is None else back[layer]) * f_prime(z[layer - 1], mistake)
        w, b = new_w, new_b
        if forward and mistake != "norm only at the start":
            w = [columns(each, norm.gamma, mistake) for each in w]
    return w, b, back


def weights_of(model):
    """Returns copies of W, b and B of every layer; B is none where there is none."""
    layers = [model.get_layer(name) for name in LAYERS]
    backward = [None if layer.alignment is None else layer.backward_kernel.numpy() for layer in layers]
    return [layer.kernel.numpy() for layer in layers], [layer.bias.numpy() for layer in layers], backward


def built(config, dataset):
    model = setup.build_model(config, dataset.classes, dataset.input_shape, dataset.steps_per_epoch)
    setup.compile_model(model, config, dataset.classes, dataset.steps_per_epoch)
    return model


def one_epoch(condition, dataset, *overrides):
    """Trains an epoch in float64; returns the configuration, the stored initialisation and the trained weights."""
    overrides = (*overrides, FLOAT64)
    config = loaded(condition, *overrides)
    # Weights of the run without normalization, because the initial normalization is tested as well.
    stored = weights_of(built(loaded(condition, *overrides, "model.weight_norm=null"), dataset))
    model = built(config, dataset)
    model.fit(dataset.train().take(dataset.steps_per_epoch), verbose=0, shuffle=False)
    return config, stored, weights_of(model)


def batches_of(dataset):
    return [(x.numpy(), y.numpy()) for x, y in dataset.train().take(dataset.steps_per_epoch)]


def largest_error(actual, expected):
    pairs = zip((each for part in actual for each in part), (each for part in expected for each in part), strict=True)
    return max(np.abs(a - e).max() for a, e in pairs if e is not None)


@pytest.fixture(scope="module")
def digits():
    dataset = setup.load_data(loaded("bp", *SMALL))
    return dataset, batches_of(dataset)


def mistakes_of(condition):
    common = ["rate twice", "mean", "no gate", "derivative of the output"]
    norm = {"w": ["rows", "no norm at the start", "norm only at the start"], "b": ["rows"]}
    norm["wb"] = norm["w"]
    return common + norm.get(condition.rpartition("_")[2], [])


@pytest.mark.parametrize("condition", exhaustive_unless(CONDITIONS, ("bp", "bp_trw_wb")))
def test_an_epoch_is_that_of_the_numpy_loop_and_not_that_of_its_near_misses(condition, digits):
    dataset, batches = digits
    config, stored, trained = one_epoch(condition, dataset, *SMALL)
    codes = n_hot_codes(10, 50, 5, config.seed)
    assert largest_error(trained, train_numpy(config, batches, codes, stored)) < 1e-9
    for mistake in mistakes_of(condition):
        wrong = train_numpy(config, batches, codes, stored, mistake)
        assert largest_error(trained, wrong) > 1e-4, mistake
    for before, after in zip(stored[2], trained[2], strict=True):
        if after is None:
            continue
        # B is normalised once, or left as it was drawn: bit for bit, through all of training.
        expected = ColumnNorm(1.0)(before).numpy() if condition in ("bp_trw_b", "bp_trw_wb") else before
        np.testing.assert_array_equal(after, expected)


@pytest.mark.exhaustive
@pytest.mark.skipif(not MNIST.is_dir(), reason="no mnist in TFDS_DATA_DIR")
def test_12_steps_on_mnist_are_those_of_the_numpy_loop():
    """In batches of the published size; the test above has more steps and all conditions."""
    few = "data.train_split=train[:12000]"
    dataset = setup.load_data(loaded("bp", few))
    batches = batches_of(dataset)
    assert (len(batches), batches[0][0].shape) == (12, (1000, 15, 15, 1))
    for condition in ("bp", "bp_trw_wb"):
        config, stored, trained = one_epoch(condition, dataset, few)
        codes = n_hot_codes(10, 50, 5, config.seed)
        assert largest_error(trained, train_numpy(config, batches, codes, stored)) < 1e-9, condition


@pytest.mark.parametrize("layer", [1, 4])
def test_alignment_zero_degree_and_remainder_terms_are_what_the_library_added_to_w(layer, digits):
    dataset, batches = digits
    config = loaded("bp_trw", *SMALL, FLOAT64)
    rate, codes = config.optimization.forward.learning_rate, n_hot_codes(10, 50, 5, config.seed)
    model = built(config, dataset)
    history = alignment_terms.History(rate, signals.TANH_RELU, capacity=20)
    for x, y in batches[:8]:
        kernels, biases, backward = weights_of(model)
        passed = signals.forward(x.reshape(len(x), -1).astype(np.float64), kernels, biases, signals.TANH_RELU)
        error = signals.output_error(passed, codes[y], signals.TANH_RELU)
        errors = signals.sequential_errors(error, passed.states, backward, signals.TANH_RELU)
        seen = alignment_terms.LayerSignals.of_layer(layer, passed.outputs, errors, kernels, biases, backward)
        model.train_on_batch(x, y)
        added = weights_of(model)[0][layer] - kernels[layer]
        parts = alignment_terms.expand(history, seen)
        np.testing.assert_allclose(parts.alignment + parts.zero_degree + parts.remainder, added, rtol=0, atol=1e-12)
        history.append(seen)
    assert np.linalg.norm(parts.alignment) > 0.01 * np.linalg.norm(added)
    assert distance(parts.alignment + parts.zero_degree, added) > 1e-6  # The remainder is needed.
    with pytest.raises(ValueError, match=r"`layer` must be a hidden layer, from 1 to 4. Received 0"):
        alignment_terms.LayerSignals.of_layer(0, passed.outputs, errors, kernels, biases, backward)


def test_w_and_b_and_biases_are_drawn_with_a_standard_deviation_of_a_tenth(digits):
    w, b, back = weights_of(built(loaded("bp_trw", *SMALL), digits[0]))
    deviations = [each.std() for each in (w[0], w[1], back[1], np.concatenate(b))]
    assert deviations == pytest.approx([0.1] * 4, rel=0.12)  # As a variance it would be 0.32.
    assert back[0] is None
    assert all(abs(np.corrcoef(x.T.ravel(), y.ravel())[0, 1]) < 0.1 for x, y in zip(w[1:], back[1:], strict=True))
    plain = weights_of(built(loaded("bp", *SMALL), digits[0]))
    for mine, other in zip([*w, *b], [*plain[0], *plain[1]], strict=True):
        np.testing.assert_array_equal(mine, other)  # So that BP and BP-TRW start from one point.


# Parts.


def test_tanh_relu_and_its_derivative():
    z = tf.constant([-2.0, -1e-4, 0.0, 1e-4, 0.5, 3.0])
    with tf.GradientTape() as tape:
        tape.watch(z)
        value = tanh_relu(z)
    np.testing.assert_allclose(value, f(z.numpy()), rtol=1e-6)
    np.testing.assert_allclose(tape.gradient(value, z), f_prime(z.numpy()), rtol=1e-5)


@pytest.mark.parametrize("gamma", [0.6, 1.0])
def test_column_norm(gamma, rng):
    kernel = rng.normal(size=(5, 3)).astype(np.float32)
    kernel[:, 1] = 0
    scaled = ColumnNorm(gamma)(tf.constant(kernel)).numpy()
    np.testing.assert_allclose(np.linalg.norm(scaled, axis=0), [gamma, 0, gamma], rtol=1e-6)
    np.testing.assert_allclose(scaled[:, 0] / kernel[:, 0], gamma / np.linalg.norm(kernel[:, 0]), rtol=1e-6)
    with pytest.raises(ValueError, match=r"`gamma` must be positive. Received 0"):
        ColumnNorm(0)


def test_column_norm_of_a_convolution_is_that_of_a_whole_filter(rng):
    kernel = rng.normal(size=(3, 3, 2, 4)).astype(np.float32)
    scaled = ColumnNorm(0.6)(tf.constant(kernel)).numpy()
    np.testing.assert_allclose(np.linalg.norm(scaled.reshape(18, 4), axis=0), [0.6] * 4, rtol=1e-6)
    np.testing.assert_allclose(scaled[..., 1] / kernel[..., 1], 0.6 / np.linalg.norm(kernel[..., 1]), rtol=1e-5)
    first = 0.6 * kernel / np.linalg.norm(kernel, axis=0, keepdims=True)  # Only the first axis is correct for matrices.
    assert distance(scaled, first) > 0.3
    with pytest.raises(ValueError, match=r"two or more axes, the last of which is outputs. Received the shape \(4,\)"):
        ColumnNorm()(tf.ones(4))


def test_codes_are_disjoint_and_depend_on_the_seed():
    codes = n_hot_codes(10, 50, 5, seed=1)
    assert codes.shape == (10, 50)
    assert (codes.sum(axis=1) == 5).all()
    assert (codes.sum(axis=0) == 1).all()  # They partition the outputs.
    assert not np.array_equal(codes, np.kron(np.eye(10, dtype=int), np.ones(5, int)))
    assert np.array_equal(codes, n_hot_codes(10, 50, 5, seed=1))
    assert not np.array_equal(codes, n_hot_codes(10, 50, 5, seed=2))
    loose = n_hot_codes(3, 20, 5, seed=1)
    assert (loose.sum(axis=1).tolist(), loose.sum(axis=0).max()) == ([5, 5, 5], 1)
    with pytest.raises(ConfigError, match=r"loss.units: must be 50 or more for 10 classes with 5 ones each; found 49"):
        n_hot_codes(10, 49, 5, seed=1)


def test_the_loss_is_half_the_squared_error_summed_over_the_batch(rng):
    codes, labels = n_hot_codes(10, 50, 5, 0), rng.integers(0, 10, 8)
    outputs = rng.uniform(size=(8, 50)).astype(np.float32)
    expected = 0.5 * ((codes[labels] - outputs) ** 2).sum()
    assert float(HalfSquaredError(codes, examples=8)(labels, outputs)) == pytest.approx(expected, rel=1e-6)
    smooth = np.where(codes == 1, 0.95, 0.05)[labels]
    loss = HalfSquaredError(codes, examples=8, label_smoothing=0.05)
    assert float(loss(labels, outputs)) == pytest.approx(0.5 * ((smooth - outputs) ** 2).sum(), rel=1e-6)
    # Examples of weight 0 fill up a batch and do not count.
    weights = np.array([1, 1, 1, 1, 0, 0, 0, 0], np.float32)
    half = 0.5 * ((codes[labels] - outputs)[:4] ** 2).sum()
    assert float(HalfSquaredError(codes, examples=4)(labels, outputs, weights)) == pytest.approx(half, rel=1e-6)


def test_decoding_takes_the_largest_inner_product_and_the_first_of_equal_ones(rng):
    codes = n_hot_codes(10, 50, 5, 0)
    labels = rng.integers(0, 10, 200)
    outputs = (codes[labels] + rng.normal(0, 1.0, (200, 50))).astype(np.float32)
    metric = CodeAccuracy(codes)
    metric.update_state(labels, outputs)
    expected = np.mean((outputs @ codes.T).argmax(axis=1) == labels)
    assert 0.5 < expected < 1
    assert float(metric.result()) == pytest.approx(expected)
    # The unit of the largest output may be another class's.
    assert expected != np.mean(codes.argmax(axis=0)[outputs.argmax(axis=1)] == labels)
    silent = CodeAccuracy(codes)
    silent.update_state(np.arange(10), np.zeros((10, 50), np.float32))
    assert float(silent.result()) == pytest.approx(0.1)  # A tie is no hit for every class.


@pytest.mark.parametrize(("fraction", "correct"), [(0.0, 1.0), (0.5, 0.55), (1.0, 0.1)])
def test_replaced_labels_are_uniform_and_some_are_the_old_ones(fraction, correct):
    labels = np.repeat(np.arange(10), [50_000 if c == 0 else 5_000 for c in range(10)])
    new = replaced(labels, fraction, 10, seed=3)
    agree = np.mean(new == labels)
    assert agree == pytest.approx(correct, abs=0.01)
    if fraction == 1.0:
        assert np.bincount(new) / len(new) == pytest.approx(
            [0.1] * 10, abs=0.01
        )  # A permutation keeps half of class 0.
    assert np.array_equal(new, replaced(labels, fraction, 10, seed=3))
    assert fraction == 0 or not np.array_equal(new, replaced(labels, fraction, 10, seed=4))
    with pytest.raises(DataError, match=r"data\.replace_labels: must be 0 to 1; found 50"):
        replaced(labels, 50, 10, 0)


def test_labels_are_replaced_only_in_training(digits):
    plain = digits[0]
    config = loaded("bp", *SMALL, "data.replace_labels=0.5")
    dataset = setup.load_data(config)
    old, new = (np.concatenate([y for _, y in batches_of(each)]) for each in (plain, dataset))
    assert np.mean(old == new) == pytest.approx(0.55, abs=0.04)
    for (x, y), (other_x, other_y) in zip(plain.validation(), dataset.validation(), strict=True):
        np.testing.assert_array_equal(y, other_y)
        np.testing.assert_array_equal(x, other_x)
    again = np.concatenate([y.numpy() for _, y in dataset.train(14).take(14)])
    np.testing.assert_array_equal(again, new)  # In file order, an example keeps its wrong label.


def test_batches_come_in_the_order_of_the_files_or_shuffled():
    ordered, shuffled = (setup.load_data(loaded("bp", *SMALL, f"data.shuffle={word}")) for word in ("false", "true"))
    first, second = ([y.numpy() for _, y in ordered.train(start).take(14)] for start in (0, 14))
    np.testing.assert_array_equal(first, second)
    one, two = ([y.numpy() for _, y in shuffled.train(start).take(14)] for start in (0, 14))
    assert not np.array_equal(one, two)
    assert not np.array_equal(one, first)


@pytest.mark.skipif(not MNIST.is_dir(), reason="no mnist in TFDS_DATA_DIR")
def test_mnist_is_resized_between_half_pixel_centres_without_antialias_and_divided_by_255():
    options = {"batch_size": 4, "seed": 0, "shuffle": False, "train_split": "train[:4]", "validation_split": "test[:4]"}
    small, whole = (
        next(iter(data.load("tfds", dataset="mnist", standardize=False, **size, **options).train().take(1)))[0].numpy()
        for size in ({"image_size": 15}, {})
    )
    centres = (np.arange(15) + 0.5) * 28 / 15 - 0.5
    low = np.floor(centres).astype(int)
    weight = np.zeros((15, 28))
    weight[np.arange(15), low] += 1 - (centres - low)
    weight[np.arange(15), np.minimum(low + 1, 27)] += centres - low
    expected = np.einsum("ri,nijc,sj->nrsc", weight, whole, weight)
    np.testing.assert_allclose(small, expected, atol=1e-6)
    assert 0.9 < whole.max() <= 1
    assert distance(small, tf.image.resize(whole, (15, 15), antialias=True)) > 0.05


# The life of a run.


RUN = (*SMALL, "evaluation.probe_examples=16", "logging.tensorboard=false", "checkpoints.every_steps=5")


@pytest.fixture(scope="module")
def once():
    """Data and model of the run."""
    return PreparedRun(loaded("bp_trw_wb", *RUN))


@pytest.fixture(scope="module")
def finished(once, tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "finished"
    with once.in_use():
        return run.train(loaded("bp_trw_wb", *RUN), path), path


def test_a_run_is_trained_evaluated_and_loaded_in_safe_mode(finished):
    result, path = finished
    assert sorted(result.weight_angles) == sorted(LAYERS[1:])
    rows = MetricsFile(str(path / "metrics.csv")).rows()
    assert rows[-1]["train_J"] < rows[1]["train_J"]
    assert np.isnan(rows[-1]["top5"])
    again = run.evaluate(path)
    assert again["top1"] == pytest.approx(result.metrics["top1"], abs=1e-6)
    model = load_model(path / "model.keras")
    for layer in (model.get_layer(name) for name in LAYERS):
        np.testing.assert_allclose(np.linalg.norm(layer.kernel.numpy(), axis=0), 1, rtol=1e-5)
        assert layer.kernel.constraint.get_config() == {"gamma": 1.0}
        assert layer.activation is tanh_relu
    assert isinstance(model.loss, HalfSquaredError)
    codes = n_hot_codes(10, 50, 5, 0)
    np.testing.assert_array_equal(model.loss.codes, codes)
    # The accuracy and J of the run, counted by hand: J is that of as many examples as a training batch has.
    dataset = setup.load_data(loaded("bp_trw_wb", *RUN))
    x, y = (np.concatenate(part) for part in zip(*dataset.validation().as_numpy_iterator(), strict=True))
    outputs = model.predict(x, verbose=0)
    assert result.metrics["top1"] == pytest.approx(np.mean((outputs @ codes.T).argmax(axis=1) == y), abs=1e-6)
    mean = 0.5 * ((codes[y] - outputs) ** 2).sum() / len(y)
    assert result.metrics["J"] == pytest.approx(100 * mean, rel=1e-4)


def test_a_killed_run_resumes_bit_for_bit(once, finished, monkeypatch, tmp_path):
    class Killed(BaseException):
        pass

    original = stepping.Stepper.__call__

    def call(self, limit):
        results = original(self, limit)
        if int(self._model.optimizer.iterations) >= 21:
            raise Killed
        return results

    path, config = tmp_path / "run", loaded("bp_trw_wb", *RUN)
    with once.in_use():
        with monkeypatch.context() as patch:
            patch.setattr(stepping.Stepper, "__call__", call)
            with pytest.raises(Killed):
                run.train(config, path)
        run.train(config, path, resume=True)
    assert killed_runs.differences(finished[1], path) == []


def test_describe_counts_the_outputs_of_the_code():
    text = describe(loaded("bp_trw", *SMALL))
    last = next(line for line in text.splitlines() if line.startswith("dense "))
    assert last.split()[1:4] == ["feedback", "2,550", "2,500"]
    first = next(line for line in text.splitlines() if line.startswith("dense1"))
    assert first.split()[1] == "backpropagation"


@pytest.mark.parametrize("how", exhaustive_unless(["minibatches", "replicas"], ("minibatches",)))
def test_the_sum_over_the_batch_does_not_depend_on_how_it_is_cut(how, digits):
    dataset, _ = digits
    whole, parts = (
        loaded("bp_trw_w", *SMALL, *options)
        for options in ((), ("optimization.minibatches=4",) if how == "minibatches" else ())
    )
    models = [built(whole, dataset)]
    if how == "replicas":
        with two_replicas().scope():
            models.append(built(parts, dataset))
    else:
        models.append(built(parts, dataset))
    for model in models:
        model.fit(dataset.train().take(3), verbose=0, shuffle=False)
    for mine, other in zip(models[0].get_weights(), models[1].get_weights(), strict=True):
        np.testing.assert_allclose(mine, other, atol=1e-5)  # float32; a mean in place of the sum is 1e-2 away.


# condition, override, part of the message
WRONG = {
    ("bp", "model.weight_norm={gamma: 1}"): "model.weight_norm.kernels: must be forward without a rule",
    ("bp", "model.weight_norm={kernels: backward}"): "since there are no backward kernels; found 'backward'",
    ("bp_trw_w", "model.weight_norm.gamma=0"): "model.weight_norm.gamma: input should be greater than 0; found 0",
    ("bp_trw_w", "model.weight_norm.kernels=w"): "'forward', 'backward' or 'both'|forward, backward, both",
    (
        "bp_trw_wb",
        "alignment={rule: kolen_pollack, decay: 0}",
    ): "model.weight_norm: must be left out with kolen_pollack",
    ("bp_trw_w", "alignment={rule: kolen_pollack, decay: 0}"): "model.weight_norm: must be left out with kolen_pollack",
    ("bp_trw_b", "alignment={rule: kolen_pollack, decay: 0}"): "model.weight_norm: must be left out with kolen_pollack",
    (
        "bp_trw_wb",
        "alignment={rule: symmetric, self_: 1, decay: 1}",
    ): "forward with symmetric, .*; found 'both'",
    ("bp", "loss={kind: cross_entropy}"): "model.output_activation: must be null with loss cross_entropy.*tanh_relu",
    ("bp", "loss.kind=half_square_error"): "did you mean 'half_squared_error'",
    ("bp", "loss.ones=0"): "loss.ones: input should be greater than 0; found 0",
    ("bp", "loss.label_smoothing=0.5"): "loss.label_smoothing: input should be less than 0.5",
    ("bp", "model.initial_stddev=0"): "model.initial_stddev: input should be greater than 0; found 0",
    ("bp", "data.replace_labels=50"): "data.replace_labels: input should be less than or equal to 1; found 50",
    ("bp", "model.activation=tanhrelu"): "did you mean 'tanh_relu'",
    ("bp", "data={source: imagenet, train_files: a, validation_files: b, replace_labels: 0.5}"): "unknown key",
}


@pytest.mark.parametrize(("condition", "override"), WRONG, ids=lambda each: each.split("=")[0])
def test_a_wrong_value_is_one_line(condition, override):
    with pytest.raises(ConfigError, match=WRONG[condition, override]) as error:
        loaded(condition, override)
    assert "\n" not in str(error.value)


def test_too_few_outputs_for_the_codes_are_reported_before_training(tmp_path):
    with pytest.raises(ConfigError, match=r"loss.units: must be 50 or more for 10 classes with 5 ones each; found 40"):
        run.train(loaded("bp", *SMALL, "loss.units=40"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
