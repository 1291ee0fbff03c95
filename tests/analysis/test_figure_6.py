"""Features of the layers of a run, and Figure 6, which is made from them."""

import os
import pathlib
import re
import shutil

import keras
import numpy as np
import pytest
import sklearn.datasets

from neural_alignment import config as configuration
from neural_alignment import data
from neural_alignment.analysis import neural_fit
from neural_alignment.data import imagenet
from neural_alignment.errors import ArgumentError, DataError, InputError, RunError
from neural_alignment.papers.two_routes.compute.fits import FitSettings, fit_rows
from neural_alignment.papers.two_routes.figures import FIT_COLUMNS, neural_fits
from neural_alignment.training import features, run, setup

BASE = {
    "epochs": 3,
    "batch_size": 128,
    "data": {"source": "digits"},
    "model": {"name": "convnet", "filters": [4, 6]},
    "alignment": {"rule": "feedback"},
    "optimization": {"forward": {"name": "momentum", "learning_rate": 0.02}},
    "evaluation": {"probe_examples": 8},
    "logging": {"tensorboard": False},
    "seed": 5,
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "feedback"
    run.train(configuration.parse(BASE), path)
    return str(path)


@pytest.fixture(scope="module")
def network(finished):
    """The trained network, loaded once; not for tests that change it."""
    return features.trained(finished)


def outputs_of(network, layer, images=None):
    """Returns what `features.features` returns for the run of the network."""
    return features.extract(network, layer, features.ImageSet(network, images))


@pytest.fixture(scope="module")
def dataset():
    return setup.load_data(configuration.parse(BASE))


def held_out(dataset):
    batches = list(dataset.validation())
    return tuple(np.concatenate([each.numpy() for each in part]) for part in zip(*batches, strict=True))


def pixels(dataset):
    """The validation images in the scale of the source, 0 to 16."""
    images, labels = held_out(dataset)
    return np.rint(images * dataset.scale + dataset.center).astype(np.uint8), labels


# Features.


@pytest.mark.exhaustive
def test_a_keras_model_has_the_features_of_the_run_that_it_comes_from(finished, dataset):
    images, _ = held_out(dataset)
    raw, _ = pixels(dataset)
    model = keras.models.load_model(f"{finished}/model.keras")
    expected = features.features(finished, "conv2_relu")
    np.testing.assert_allclose(features.features(model, "conv2_relu", images), expected, rtol=1e-5, atol=1e-6)
    scaled = features.of_model(model, (dataset.center, dataset.scale))
    np.testing.assert_allclose(features.features(scaled, "conv2_relu", raw), expected, rtol=1e-4, atol=1e-5)
    drawn = features.features(model, "conv2_relu", images, random=True)
    assert drawn.shape == expected.shape
    assert np.abs(drawn - expected).max() > 0.1
    with pytest.raises(DataError, match="a model has no data; `images` must be given"):
        features.features(model, "conv2_relu")
    with pytest.raises(DataError, match=r"uint8 images need its `pixel_scale`.*of_model\(model, \(0.0, 255.0\)\)"):
        features.features(model, "conv2_relu", raw)
    with pytest.raises(DataError, match=r"the array: must be \(images, height, width, channels\)"):
        features.features(model, "conv2_relu", images[0])
    with pytest.raises(RunError, match=r"the model .*: no layer is called 'conv9_relu'; nearest"):
        features.features(model, "conv9_relu", images)


class Subclassed(keras.Model):
    def call(self, inputs):
        return inputs


def test_a_keras_model_must_be_a_graph_with_images_as_its_input():
    two = [keras.Input((4, 4, 1)), keras.Input((4, 4, 1))]
    vector = keras.Input((8,))
    wrong = {
        "Subclassed": Subclassed(),
        "Sequential": keras.Sequential([keras.layers.Flatten(name="flat")]),
        "None, 4, 4, 1), ": keras.Model(two, keras.layers.Add(name="flat")(two)),
        "None, 8": keras.Model(vector, keras.layers.Flatten(name="flat")(vector)),
    }
    for found, model in wrong.items():
        expected = f"`model` must be a functional or built Sequential model .* Received .*{re.escape(found)}"
        for source in (features.features, features.of_model):
            with pytest.raises(ArgumentError, match=expected):
                source(model, *["flat", np.zeros((2, 4, 4, 1))] if source is features.features else [])
    images = np.arange(32.0, dtype=np.float32).reshape(2, 4, 4, 1)
    named = {"images": keras.Input((4, 4, 1), name="images")}
    model = keras.Model(named, keras.layers.Flatten(name="flat")(named["images"]))
    np.testing.assert_array_equal(features.features(model, "flat", images), images.reshape(2, 16))


@pytest.mark.parametrize("wrong", [np.zeros((2, 4, 4, 1), int), np.zeros((2, 4, 4, 1), bool), np.zeros((0, 4, 4, 1))])
def test_images_that_are_neither_bytes_nor_floats_are_refused(wrong):
    """It would not be clear whether integers are in the scale of the pixels."""
    inputs = keras.Input((4, 4, 1))
    model = features.of_model(keras.Model(inputs, keras.layers.Flatten(name="flat")(inputs)), (0.0, 255.0))
    found = re.escape(f"uint8 or float; found {wrong.shape} of {wrong.dtype}")
    with pytest.raises(DataError, match=rf"the array: must be \(images, height, width, channels\), {found}$"):
        features.features(model, "flat", wrong)


def test_features_of_validation_images_are_in_the_order_of_their_file(tmp_path, rng):
    images, labels = rng.uniform(size=(20, 4, 4, 1)).astype(np.float32), np.repeat([0, 1], 10)
    arrays = {"x_train": images[::-1], "y_train": labels, "x_validation": images, "y_validation": labels}
    np.savez(tmp_path / "data.npz", **arrays)
    source = {"source": "npz", "file": str(tmp_path / "data.npz"), "standardize": False}
    config = configuration.parse({**BASE, "batch_size": 8, "data": source})
    assert not np.array_equal(held_out(setup.load_data(config))[1], labels)  # Batches have another order.
    model = keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Flatten(name="flat")])
    found = features.features(features.SourceNetwork("run", model, config), "flat")
    np.testing.assert_array_equal(found, images.reshape(20, 16))


def test_a_run_without_a_model_says_how_to_make_one(finished, tmp_path):
    copy = tmp_path / "run"
    copy.mkdir()
    for name in ("config.yaml", "metrics.csv", "status.json"):  # The files of committed results.
        (copy / name).write_bytes((pathlib.Path(finished) / name).read_bytes())
    with pytest.raises(RunError, match=r"to make one, train the run again: `train .*config\.yaml --run-dir DIRECTORY`"):
        features.features(str(copy), "conv2_relu")


def test_features_are_the_outputs_of_the_layer_in_inference_mode(finished, network, dataset):
    images, _ = held_out(dataset)
    model = keras.models.load_model(f"{finished}/model.keras")
    names = [layer.name for layer in model.layers]
    x, outputs = images, {}
    for layer in model.layers[1:]:
        x = layer(x, training=False) if "training" in layer._call_signature.parameters else layer(x)
        outputs[layer.name] = np.asarray(x).reshape(len(images), -1)
    found = {layer: outputs_of(network, layer) for layer in ("conv1", "conv1_norm", "conv2_relu", "dense")}
    for layer, each in found.items():
        assert layer in names
        assert each.dtype == np.float32
        np.testing.assert_allclose(each, outputs[layer], atol=2e-5)
    training = model.get_layer("conv1_norm")(model.get_layer("conv1")(images), training=True)
    assert np.abs(found["conv1_norm"] - np.asarray(training).reshape(len(images), -1)).max() > 1e-2


@pytest.fixture(scope="module")
def rates(finished):
    """The features of one layer."""
    return features.features(finished, "conv2_relu")


def test_raw_images_of_a_file_are_put_on_the_run_s_scale(finished, network, dataset, tmp_path, rates):
    raw, _ = pixels(dataset)
    np.savez(tmp_path / "images.npz", images=raw)
    for batch_size in (7, 360):
        found = features.features(finished, "conv2_relu", tmp_path / "images.npz", batch_size=batch_size)
        np.testing.assert_allclose(found, rates, atol=2e-4)
    np.savez(tmp_path / "prepared.npz", images=held_out(dataset)[0])
    prepared = outputs_of(network, "conv2_relu", tmp_path / "prepared.npz")
    np.testing.assert_allclose(prepared, rates, atol=2e-5)
    np.savez(tmp_path / "unscaled.npz", images=raw.astype(np.float32))
    unscaled = outputs_of(network, "conv2_relu", tmp_path / "unscaled.npz")
    assert np.abs(unscaled - found).max() > 0.1


def test_the_scale_of_a_run_is_stored_with_it(finished, dataset, tmp_path, rates, monkeypatch):
    """The training data need not be here."""
    raw, _ = pixels(dataset)
    expected = held_out(dataset)[0][:9]
    np.savez(tmp_path / "images.npz", images=raw[:9])
    network = features.trained(finished)
    image_set = features.ImageSet(network, tmp_path / "images.npz")
    np.testing.assert_allclose(features.extract(network, "conv2_relu", image_set), rates[:9], atol=2e-4)
    monkeypatch.delitem(vars(sklearn.datasets), "load_digits")
    for each in (network, features.initial(finished)):
        batch = next(features.ImageSet(each, tmp_path / "images.npz").batches())
        np.testing.assert_allclose(batch, expected, atol=1e-5)
    with pytest.raises(DataError, match="uint8 images need its `pixel_scale`, which a run stores when it is finished"):
        features.ImageSet(network._replace(pixel_scale=None), tmp_path / "images.npz")


def test_raw_images_of_another_size_are_resized_as_a_whole(network, dataset, tmp_path, rates):
    raw, _ = pixels(dataset)
    np.savez(tmp_path / "images.npz", images=raw[:20].repeat(3, axis=1).repeat(3, axis=2))
    found = outputs_of(network, "conv2_relu", tmp_path / "images.npz")
    # Each pixel is repeated three times, so the centre of a new pixel is in the middle one.
    np.testing.assert_allclose(found, rates[:20], atol=2e-4)


@pytest.mark.parametrize("kind", ["resnet", "inception"])
def test_the_scale_of_imagenet_is_that_of_its_preprocessing(kind):
    import tensorflow as tf

    preprocessing = imagenet.PREPROCESSING[kind]
    colour = np.array([10, 130, 250], np.uint8)
    encoded = tf.io.encode_png(np.broadcast_to(colour, (40, 40, 3)))
    prepared = preprocessing.evaluation(encoded, 32).numpy()
    expected = (colour - np.array(preprocessing.center)) / np.array(preprocessing.scale)
    np.testing.assert_allclose(prepared, np.broadcast_to(expected, (32, 32, 3)), atol=1e-5)


@pytest.mark.parametrize("standardize", [True, False])
def test_a_data_set_tells_its_scale(standardize):
    source = data.load("digits", batch_size=64, seed=0, standardize=standardize)
    images, _ = held_out(source)
    raw = images * source.scale + source.center
    np.testing.assert_allclose(raw, np.rint(raw), atol=1e-4)
    assert (raw.min(), raw.max()) == pytest.approx((0.0, 16.0), abs=1e-4)


def test_features_may_be_kept_in_a_file(finished, tmp_path, rates):
    found = features.features(finished, "conv2_relu", folder=tmp_path)
    assert isinstance(found, np.memmap)
    assert np.array_equal(found, rates)
    assert [entry.name for entry in tmp_path.iterdir()] == ["conv2_relu.float32"]


def test_a_full_disk_is_one_line(network):
    images = features.ImageSet(network)
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full on this system")
    with pytest.raises(RunError, match="No space left on device; set TMPDIR"):
        features._on_disk(iter([np.zeros((4, 4000), np.float32)]), "/dev/full")
    with pytest.raises(RunError, match="No such file or directory"):
        features.extract(network, "dense", images, "/nowhere")


def test_a_network_that_diverged_is_an_error(finished):
    network = features.trained(finished)
    kernel = network.model.get_layer("conv2").kernel
    kernel.assign(kernel * np.inf)
    with pytest.raises(RunError, match="layer 'conv2_relu' gives values that are not finite"):
        features.extract(network, "conv2_relu", features.ImageSet(network))


def test_the_random_network_is_the_run_s_own_first(finished, network):
    first, last = features.initial(finished).model, network.model
    for layer in ("conv2", "dense"):
        # Feedback alignment does not change B, so the run contains its initial values.
        drawn, kept = (np.asarray(model.get_layer(layer).backward_kernel) for model in (first, last))
        assert np.array_equal(drawn, kept)
        moved, unmoved = (np.asarray(model.get_layer(layer).kernel) for model in (last, first))
        assert not np.array_equal(moved, unmoved)
    other = configuration.parse(configuration.merge(BASE, {"seed": 6}))
    drawn = setup.build_model(other, 10, (8, 8, 1), 1).get_layer("dense").backward_kernel
    assert not np.array_equal(drawn, first.get_layer("dense").backward_kernel)
    assert np.array_equal(np.asarray(first.get_layer("conv1_norm").moving_mean), np.zeros(4))


@pytest.mark.parametrize("loss", [pytest.param({"ones": 2}, marks=pytest.mark.exhaustive), {"ones": 2, "units": 30}])
def test_the_random_network_of_a_loss_with_codes_has_the_outputs_of_the_run(loss, tmp_path):
    changes = {"loss": {"kind": "half_squared_error", **loss}, "max_steps": 1, "model": {"filters": [2]}}
    run.train(configuration.parse(configuration.merge(BASE, changes)), tmp_path / "run")
    first, last = features.initial(tmp_path / "run").model, features.trained(tmp_path / "run").model
    assert first.output_shape == last.output_shape == (None, loss.get("units", 20))
    drawn, kept = (np.asarray(model.get_layer("dense").backward_kernel) for model in (first, last))
    np.testing.assert_array_equal(drawn, kept)  # Feedback alignment does not change B.


def test_layers_with_rates_are_those_that_a_nonlinearity_ends(network):
    assert features.rate_layers(network.model) == ["conv1_relu", "conv2_relu"]
    plan = configuration.merge(BASE, {"model": {"name": "fc", "hidden": [5, 4]}})
    model = setup.build_model(configuration.parse(plan), 10, (8, 8, 1), 1)
    assert features.rate_layers(model) == ["dense1", "dense2"]
    assert features.matching_layers(network, ["conv?_norm", "dense"]) == ["conv1_norm", "conv2_norm", "dense"]


def test_every_nonlinearity_and_global_pooling_is_a_layer_with_rates():
    kinds = keras.layers
    x = inputs = keras.Input((8, 8, 2))
    wanted = []
    for made, has_rates in (
        *((kinds.LeakyReLU(), True), (kinds.PReLU(), True), (kinds.ELU(), True), (kinds.Conv2D(2, 3), False)),
        *((kinds.Activation("tanh"), True), (kinds.Activation("linear"), False), (kinds.MaxPooling2D(), False)),
        *((kinds.GlobalMaxPooling2D(), True), (kinds.Dense(3, activation="elu"), True), (kinds.Softmax(), True)),
    ):
        x = made(x)
        wanted += [made.name] * has_rates
    model = keras.Model(inputs, x)
    assert features.matching_layers(features.of_model(model)) == wanted
    linear = features.of_model(keras.Model(inputs, kinds.Conv2D(2, 3)(inputs), name="linear"))
    with pytest.raises(RunError, match=r"the model 'linear': no layer ends with a nonlinearity .*; give patterns in"):
        features.matching_layers(linear)


def test_the_features_of_a_layer_are_those_of_its_use_in_the_model(rng):
    shared, (first, second) = keras.layers.ReLU(name="shared"), (keras.Input((4, 4, 1)) for _ in range(2))
    shared(first)  # In another model.
    model = keras.Model(second, keras.layers.ReLU(name="last")(shared(-1.0 * second)))
    images = rng.normal(size=(3, 4, 4, 1)).astype("float32")
    found = features.features(model, "shared", images)
    np.testing.assert_array_equal(found, np.maximum(-images, 0).reshape(3, -1))
    twice = keras.Model(second, shared(shared(second)), name="twice")
    with pytest.raises(RunError, match=r"the model 'twice': layer 'shared' is used 2 times"):
        features.features(twice, "shared", images)


def test_an_unknown_layer_is_one_line_with_the_nearest(finished, network):
    with pytest.raises(RunError, match=r"no layer is called 'conv3_relu'; nearest .*conv.*_relu") as error:
        features.features(finished, "conv3_relu")
    assert "\n" not in str(error.value)
    with pytest.raises(RunError, match=r"no layer is called 'conv\*'"):
        features.features(finished, "conv*")  # A name, not a pattern.
    with pytest.raises(RunError, match=r"no layer is called 'group\*'; nearest of its 9: "):
        features.matching_layers(network, ["dense", "group*"])


def test_unfinished_runs_and_wrong_images_are_errors(finished, tmp_path):
    with pytest.raises(RunError, match=r"is not a run directory"):
        features.features(tmp_path, "dense")
    (tmp_path / "status.json").write_text('{"state": "stopped"}')
    with pytest.raises(RunError, match=r"has no model.keras because the run is stopped"):
        features.features(tmp_path, "dense")
    np.savez(tmp_path / "images.npz", images=np.zeros((4, 8, 8, 3), np.uint8))
    with pytest.raises(DataError, match=r"any size and 1 channels .* 8 x 8 pixels and 3 channels"):
        features.features(finished, "dense", tmp_path / "images.npz")
    np.savez(tmp_path / "images.npz", images=np.zeros((4, 9, 8, 1), np.float32))
    with pytest.raises(DataError, match=r"8 x 8 pixels and 1 channels"):
        features.features(finished, "dense", tmp_path / "images.npz")


# The figure.


@pytest.fixture(scope="module")
def recordings(network, dataset, tmp_path_factory):
    """Units of two areas whose responses are those of two layers of the trained network plus noise."""
    rng = np.random.default_rng(1)
    raw, labels = pixels(dataset)
    signals = []
    for layer, units in (("conv1_relu", 12), ("conv2_relu", 18)):
        outputs = outputs_of(network, layer)
        signal = outputs @ rng.normal(size=(outputs.shape[1], units))
        signals.append((signal - signal.mean(axis=0)) / signal.std(axis=0))
    signal = np.concatenate(signals, axis=1)
    path = tmp_path_factory.mktemp("recordings") / "synthetic.npz"
    responses = signal[..., np.newaxis] + rng.normal(size=(*signal.shape, 4))
    np.savez(path, responses=responses, categories=labels, areas=["V4"] * 12 + ["IT"] * 18, images=raw)
    return str(path)


def test_the_figure_finds_the_layers_from_which_the_recordings_were_made(finished, recordings):
    told = []
    product = neural_fits(fit_rows({"Feedback": finished}, recordings, report=told.append))
    assert list(product.columns) == list(FIT_COLUMNS)
    rows = {(row["network"], row["area"], row["layer"]): row for row in product.rows}
    assert len(rows) == 2 * 2 * 2
    assert len(told) == 4
    assert rows["Feedback", "V4", "conv1_relu"]["best"] == 1
    assert rows["Feedback", "IT", "conv2_relu"]["best"] == 1
    best = {key[:2]: row for key, row in rows.items() if row["best"]}
    assert set(best) == {(network, area) for network in ("Random", "Feedback") for area in ("V4", "IT")}
    for (network, area), row in best.items():
        assert row["units"] == {"V4": 12, "IT": 18}[area]
        # Signal 1, noise 1 / 4: the correlation of the signal itself with the mean response.
        assert 0 < row["correlation"] < np.sqrt(1 / 1.25) + 3 * row["sem"]
        assert row["correlation"] < row["corrected"] < 1 + 3 * row["corrected_sem"]
        assert network in product.text
    assert best["Feedback", "IT"]["correlation"] > best["Random", "IT"]["correlation"]
    # On the left the correlations as in the paper, on the right those corrected for noise.
    assert [len(axis.patches) for axis in product.figure.axes] == [2, 2, 2, 2]
    labels = [" ".join(axis.get_ylabel().split()) for axis in product.figure.axes]
    plain = [f"{area}: median Pearson correlation over units" for area in ("V4", "IT")]
    assert labels == [label + note for label in plain for note in ("", " corrected for noise")]
    heights = [patch.get_height() for patch in product.figure.axes[0].patches]
    assert heights == [best[network, "V4"]["correlation"] for network in ("Random", "Feedback")]


def test_a_row_is_the_fit_of_that_layer(finished, network, recordings):
    rows = fit_rows({"Feedback": finished}, recordings, settings=FitSettings(["conv2_norm"], random=False))
    with np.load(recordings) as file:
        split = neural_fit.split_by_category(file["categories"])
        outputs = outputs_of(network, "conv2_norm")
        fit = neural_fit.fit(outputs, file["responses"], file["areas"], split)["IT"]
    (row,) = [row for row in rows if row["area"] == "IT"]
    scale = features.trained(finished).pixel_scale
    model = features.of_model(keras.models.load_model(f"{finished}/model.keras"), scale)
    assert rows == fit_rows({"Feedback": model}, recordings, settings=FitSettings(["conv2_norm"], random=False))
    assert row["correlation"] == pytest.approx(fit.median, abs=1e-3)
    assert row["sem"] == pytest.approx(fit.sem, abs=1e-3)


def test_shuffled_recordings_are_about_zero(finished, recordings, tmp_path):
    with np.load(recordings) as file:
        arrays = dict(file)
    order = np.random.default_rng(2)
    arrays["responses"] = order.permuted(arrays["responses"].mean(axis=2), axis=0)
    np.savez(tmp_path / "shuffled.npz", **arrays)
    settings = FitSettings(["conv2_relu"], random=False)
    rows = fit_rows({"Feedback": finished}, str(tmp_path / "shuffled.npz"), settings=settings)
    for row in rows:
        assert abs(row["correlation"]) < 4 * np.sqrt(np.pi / 2 / row["units"] / 80)
        assert "corrected" not in row


def test_inconsistent_inputs_are_one_line_errors(finished, recordings, dataset, tmp_path):
    raw, _ = pixels(dataset)
    np.savez(tmp_path / "few.npz", images=raw[:-1])
    with pytest.raises(DataError, match=r"one image for each of the 360 rows .* found 359"):
        fit_rows({"Feedback": finished}, recordings, str(tmp_path / "few.npz"))
    with pytest.raises(InputError, match=r"needs one or more finished runs"):
        fit_rows({}, recordings)
    with pytest.raises(DataError, match=r"more training images than the 300 components"):
        fit_rows({"Feedback": finished}, recordings, settings=FitSettings(components=300))


@pytest.mark.exhaustive
def test_the_examples_of_the_page_run(rng, tmp_path, monkeypatch):
    """With runs of two steps and random recordings; the last example needs Brain-Score and its data."""
    root = pathlib.Path(__file__).parents[2]
    monkeypatch.chdir(tmp_path)
    for name in ("two_routes/resnet18/backprop", "two_routes/resnet18/symmetric"):
        plan = configuration.load(root / "configs" / f"{name}.yaml", ["model.width=2"], smoke=True)
        run.train(plan, f"runs/{name}")
    shutil.copy("runs/two_routes/resnet18/symmetric/model.keras", "model.keras")
    images = rng.integers(0, 256, (80, 8, 8, 1), np.uint8)
    labels = {"categories": np.arange(80) % 4, "areas": np.array(["V4", "IT"] * 3)}
    np.savez("images.npz", images=images)
    np.savez("recordings.npz", responses=rng.normal(size=(80, 6)), images=images, **labels)
    text = (root / "docs" / "neural_fit.md").read_text()
    *examples, last = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert "brainscore" in last
    names = {}
    for example in examples:
        exec(compile(example, "docs/neural_fit.md", "exec"), names)
    assert {row["network"] for row in names["figure"].rows} >= {"Backprop.", "Symmetric"}
    assert pathlib.Path("results", "two_routes", "figure_6.png").exists()
    assert names["pooled"].shape == (80, 16)
    assert names["validation"].shape[1] == 16  # of digits, the last group has one pixel
