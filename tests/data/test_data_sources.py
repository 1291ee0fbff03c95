"""The data sources, and one-line errors for invalid data."""

import json
import pathlib
import socket
from typing import Literal

import numpy as np
import pytest
import tensorflow as tf
from pydantic import PositiveInt
from sklearn.datasets import load_digits
from tensorflow_datasets.core.download import downloader

from neural_alignment import config as configuration
from neural_alignment import data
from neural_alignment.data import index, pipeline
from neural_alignment.data.sources import tfds
from neural_alignment.errors import DataError, InputError
from neural_alignment.training import setup


def everything(batches):
    images, labels = zip(*batches.as_numpy_iterator(), strict=True)
    return np.concatenate(images), np.concatenate(labels)


def first_epoch(dataset):
    return everything(dataset.train().take(dataset.steps_per_epoch))


def raised_by(function, *arguments, **options):
    """Returns the message of the `DataError` raised by a call. It must be one line."""
    with pytest.raises(DataError) as raised:
        function(*arguments, **options)
    assert isinstance(raised.value, InputError)
    message = str(raised.value)
    assert "\n" not in message
    return message


def explained(dataset, batches):
    """Returns the data set's explanation of the error during iteration."""
    with pytest.raises(tf.errors.OpError) as raised:
        for _ in batches:
            pass
    error = dataset.explain(raised.value)
    assert isinstance(error, DataError)
    assert "\n" not in str(error)
    return str(error)


# load


def test_unknown_source():
    message = raised_by(data.load, "digit", batch_size=1, seed=0)
    assert message.startswith("data.source: must be one of add_task, digits, image_folder, imagenet, npz, tfds")
    assert message.endswith("; found 'digit'; did you mean 'digits'?")


def test_unknown_option():
    message = raised_by(data.load, "digits", batch_size=1, seed=0, validation_fractoin=0.1)
    assert message.startswith("data.validation_fractoin: unknown key; allowed: augment, replace_labels, shuffle,")
    assert message.endswith("did you mean 'validation_fraction'?")


def test_missing_option():
    message = raised_by(data.load, "tfds", batch_size=1, seed=0, download=False)
    assert message == "data.dataset: this key is required and was not found"


CORNERS = pipeline.Examples(np.zeros((4, 2, 2, 1), np.uint8), np.arange(4))


class Corners(data.SourceOptions):
    """Four black images of different classes."""

    source: Literal["corners"]
    classes: PositiveInt = 4

    def load(self, batching):
        return data.InMemory(batching, CORNERS, CORNERS, classes=self.classes)


def test_a_new_source_is_one_class(monkeypatch):
    monkeypatch.setitem(data.SOURCES, "corners", Corners)
    assert data.load("corners", batch_size=2, seed=0).steps_per_epoch == 2
    assert data.facts("corners", batch_size=2, seed=0).classes == 4
    assert "0 to 1" in raised_by(data.load, "corners", batch_size=2, seed=0, classes=2)
    assert "classes: input should be greater than 0" in raised_by(data.load, "corners", batch_size=2, seed=0, classes=0)


# digits


def test_digits_are_complete_and_standardised():
    dataset = data.load("digits", batch_size=1437, seed=0)
    assert (dataset.input_shape, dataset.classes) == ((8, 8, 1), 10)
    assert (dataset.train_examples, dataset.validation_examples) == (1437, 360)
    assert dataset.class_names == tuple("0123456789")
    (train, train_labels), (held_out, held_out_labels) = first_epoch(dataset), everything(dataset.validation())
    assert abs(train.mean()) < 1e-5
    assert abs(train.std() - 1) < 1e-5
    bunch = load_digits()
    pixels = np.concatenate([train, held_out])
    low, high = pixels.min(), pixels.max()
    seen = sorted(
        (label, *np.rint((image - low) / (high - low) * 16).astype(int).ravel())
        for image, label in zip(pixels, np.concatenate([train_labels, held_out_labels]), strict=True)
    )
    expected = sorted((label, *image.astype(int)) for image, label in zip(bunch.data, bunch.target, strict=True))
    assert seen == expected
    share = np.bincount(held_out_labels) / np.bincount(bunch.target)
    assert np.all(np.abs(share - 0.2) < 0.01)  # stratified


def test_digits_split_does_not_depend_on_the_seed():
    one, other = (data.load("digits", batch_size=9, seed=seed) for seed in (0, 1))
    np.testing.assert_array_equal(everything(one.validation())[0], everything(other.validation())[0])
    assert not np.array_equal(first_epoch(one)[0], first_epoch(other)[0])


def test_digits_unstandardised_are_sixteenths():
    images, _ = first_epoch(data.load("digits", batch_size=479, seed=0, standardize=False))
    np.testing.assert_array_equal(np.unique(images), np.arange(17) / 16)


def test_digits_may_be_augmented_and_left_unstandardised_from_a_file_as_from_python():
    quickstart = pathlib.Path(__file__).parents[2] / "configs" / "quickstart.yaml"
    overrides = ["batch_size=50", "data.augment=crop", "data.standardize=false"]
    config = configuration.load(quickstart, overrides)
    one = data.load("digits", batch_size=50, seed=config.seed, augment="crop", standardize=False)
    other, plain = (setup.load_data(configuration.load(quickstart, each)) for each in (overrides, overrides[:1]))
    images, expected, without = (next(iter(dataset.train()))[0].numpy() for dataset in (one, other, plain))
    np.testing.assert_array_equal(images, expected)
    assert not np.array_equal(images, without)
    assert configuration.plain(configuration.load(quickstart))["data"] == {
        "source": "digits",
        "shuffle": True,
        "validation_fraction": 0.2,
        "replace_labels": 0.0,
    }


@pytest.mark.parametrize("fraction", [0, 1, -0.1, True, "half", 0.0001])
def test_digits_fraction_out_of_range(fraction):
    message = raised_by(data.load, "digits", batch_size=1, seed=0, validation_fraction=fraction)
    assert message.startswith("data.validation_fraction: ")
    assert f"; found {'true' if fraction is True else repr(fraction)}" in message


# Facts known before the data are read


FACTS = ("input_shape", "classes", "train_examples", "validation_examples", "steps_per_epoch")


def facts_of(dataset):
    return [getattr(dataset, name) for name in FACTS]


@pytest.mark.parametrize("image_size", [pytest.param(None, marks=pytest.mark.exhaustive), 3])
def test_tfds_facts_are_those_of_the_data_and_read_no_record(files, tools, monkeypatch, image_size):
    directory, _, _ = toy(files, tools)
    options = {"dataset": "toy", "data_dir": directory, "train_split": "train[:20]", "image_size": image_size}
    expected = facts_of(data.load("tfds", batch_size=6, seed=0, **options))
    monkeypatch.setattr(tfds, "TFRecords", None)
    assert facts_of(data.facts("tfds", batch_size=6, seed=0, **options)) == expected
    assert "batch_size: must not be larger than" in raised_by(data.facts, "tfds", batch_size=21, seed=0, **options)


def test_the_shapes_of_batches_are_known_without_the_data(files, tools):
    directory, _, _ = toy(files, tools)
    imagenet = {"train_files": files.imagenet(), "validation_files": files.imagenet(), "classes": 10, "image_size": 8}
    sources = {"tfds": {"dataset": "toy", "data_dir": directory}, "digits": {}, "add_task": {}, "imagenet": imagenet}
    for source, options in sources.items():
        facts = data.facts(source, batch_size=6, seed=0, **options)
        assert data.load(source, batch_size=6, seed=0, **options).train().element_spec == facts.batch_spec, source


def test_imagenet_facts_need_both_counts(files):
    options = {"train_files": files.imagenet(), "validation_files": files.imagenet(), "classes": 10, "image_size": 8}
    expected = facts_of(data.load("imagenet", batch_size=4, seed=0, **options))
    counts = {"train_examples": 33, "validation_examples": 33}
    missing = {**options, "train_files": "absent", "validation_files": "absent"}
    assert facts_of(data.facts("imagenet", batch_size=4, seed=0, **missing, **counts)) == expected
    assert facts_of(data.facts("imagenet", batch_size=4, seed=0, **options, train_examples=33)) == expected
    assert facts_of(data.facts("digits", batch_size=4, seed=0)) == facts_of(data.load("digits", batch_size=4, seed=0))


# tfds


def toy(files, tools, count=30, shape=(6, 6, 3), **options):
    """A prepared TFDS set and its images and labels."""
    images = np.random.default_rng(1).integers(0, 256, (count, *shape), np.uint8)
    labels = np.arange(count) % 10
    return files.tfds([tools.encode(image) for image in images], labels, dimensions=shape, **options), images, labels


def load_toy(directory, batch_size=10, **options):
    options = {"dataset": "toy", "download": False, "data_dir": directory, **options}
    return data.load("tfds", batch_size=batch_size, seed=0, **options)


def test_tfds_in_memory_is_standardised_per_channel(files, tools):
    directory, images, labels = toy(files, tools)
    dataset = load_toy(directory, train_split="train[:20]")
    assert isinstance(dataset, data.InMemory)
    assert (dataset.input_shape, dataset.classes, dataset.train_examples) == ((6, 6, 3), 10, 20)
    train = images[:20] / 255
    expected = (images / 255 - train.mean(axis=(0, 1, 2))) / train.std(axis=(0, 1, 2))
    result, result_labels = everything(dataset.validation())
    np.testing.assert_allclose(result, expected, atol=1e-5)
    np.testing.assert_array_equal(result_labels, labels)


def test_tfds_part_of_a_split_across_files(files, tools):
    directory, images, labels = toy(files, tools)
    for limit in (tfds.MAX_BYTES_IN_MEMORY, 0):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tfds, "MAX_BYTES_IN_MEMORY", limit)
            dataset = load_toy(
                directory, 4, train_split="train[10:22]", validation_split="train[:10]", standardize=False
            )
        assert isinstance(dataset, data.InMemory if limit else data.Streamed)
        result, result_labels = everything(dataset.validation())
        np.testing.assert_allclose(result, images[:10] / 255, atol=1e-6)
        np.testing.assert_array_equal(result_labels, labels[:10])
        seen = first_epoch(dataset)[0]
        assert dataset.steps_per_epoch == 3
        places = [int(np.argmin(np.abs(images / 255 - image).sum(axis=(1, 2, 3)))) for image in seen]
        assert sorted(places) == list(range(10, 22))


@pytest.mark.exhaustive
def test_tfds_streamed_is_scaled_and_resumes(files, tools, monkeypatch):
    directory, images, _ = toy(files, tools)
    monkeypatch.setattr(tfds, "MAX_BYTES_IN_MEMORY", 0)
    dataset = load_toy(directory, 7, augment="crop_flip")
    assert isinstance(dataset, data.Streamed)
    np.testing.assert_allclose(everything(dataset.validation())[0], images / 127.5 - 1, atol=1e-6)
    run = list(dataset.train().take(7).as_numpy_iterator())
    resumed = list(dataset.train(5).take(2).as_numpy_iterator())
    for (one, labels), (other, other_labels) in zip(run[5:], resumed, strict=True):
        np.testing.assert_array_equal(one, other)
        np.testing.assert_array_equal(labels, other_labels)


@pytest.mark.parametrize(
    ("limit", "option", "message"),
    [
        (
            10**9,
            {"shuffle_buffer": 8},
            "data.shuffle_buffer: must be null with 'toy', which is held in memory; found 8",
        ),
        (0, {"replace_labels": 0.5}, "data.replace_labels: must be 0 with 'toy', which is streamed; found 0.5"),
    ],
)
def test_tfds_options_without_an_effect_are_refused(files, tools, monkeypatch, limit, option, message):
    directory, _, _ = toy(files, tools)
    monkeypatch.setattr(tfds, "MAX_BYTES_IN_MEMORY", limit)
    assert raised_by(load_toy, directory, **option).startswith(message)
    options = {"dataset": "toy", "download": False, "data_dir": directory, **option}
    assert raised_by(data.facts, "tfds", batch_size=10, seed=0, **options).startswith(message)
    monkeypatch.setattr(tfds, "MAX_BYTES_IN_MEMORY", 10**9 - limit)
    load_toy(directory, **option)


def test_tfds_image_size_in_memory_is_bilinear_and_unrounded(files, tools):
    ramp = np.broadcast_to(np.arange(0, 240, 30, np.uint8)[None, :, None], (8, 8, 3))
    directory = files.tfds([tools.encode(ramp)] * 4, [0] * 4, dimensions=(8, 8, 3))
    dataset = load_toy(directory, 2, image_size=5, standardize=False)
    assert dataset.input_shape == (5, 5, 3)
    centres = (np.arange(5) + 0.5) * 8 / 5 - 0.5
    np.testing.assert_allclose(everything(dataset.validation())[0][0, 0, :, 0], centres * 30 / 255, rtol=1e-5)


def test_tfds_images_of_differing_shapes_need_a_size(files, tools):
    shapes = [(6, 9, 3), (12, 5, 3), (7, 7, 3), (3, 3, 3)]
    images = [tools.encode(np.full(shape, 51 * (n + 1), np.uint8)) for n, shape in enumerate(shapes)]
    directory = files.tfds(images, [0, 1, 2, 3], dimensions=(-1, -1, 3))
    message = raised_by(load_toy, directory, 2)
    assert message.startswith(
        "data.image_size: must be 1 or more without preprocessing: the images of 'toy' differ in shape; found null"
    )
    dataset = load_toy(directory, 2, image_size=4)
    assert isinstance(dataset, data.Streamed)
    result, _ = everything(dataset.validation())
    np.testing.assert_allclose(result[:, 2, 2, 0], np.array([51, 102, 153, 204]) / 127.5 - 1, atol=1e-6)


def test_tfds_does_not_touch_the_network_if_prepared(files, tools, monkeypatch):
    directory, _, _ = toy(files, tools)
    calls = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda *arguments, **_: calls.append(arguments) or [])
    monkeypatch.setattr(socket.socket, "connect", lambda *arguments: calls.append(arguments))
    load_toy(directory, download=True)
    assert not calls


def test_tfds_reads_the_directory_of_the_environment(files, tools, monkeypatch):
    directory, _, _ = toy(files, tools)
    monkeypatch.setenv("TFDS_DATA_DIR", directory)
    assert load_toy(None).train_examples == 30


def test_tfds_unknown_name(tmp_path):
    message = raised_by(load_toy, str(tmp_path), dataset="fashion_mnits", download=True)
    assert "; found 'fashion_mnits'" in message
    assert message.endswith("did you mean 'fashion_mnist'?")


@pytest.mark.parametrize(("exists", "state"), [(True, "has no such data set"), (False, "does not exist")])
def test_tfds_not_prepared(tmp_path, exists, state):
    directory = str(tmp_path if exists else tmp_path / "absent")
    message = raised_by(load_toy, directory, dataset="mnist")
    assert message.startswith(f"data.dataset: must be prepared on disk; found 'mnist' in {directory}, which {state};")
    assert "TFDS_DATA_DIR" in message


def test_tfds_failed_download_is_one_line_after_few_retries(tmp_path, monkeypatch):
    """With its own number of retries TFDS would try for minutes."""
    usual, seen = downloader.MAX_RETRIES, []

    def no_network(*_, **__):
        seen.append(downloader.MAX_RETRIES)
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    message = raised_by(load_toy, str(tmp_path), dataset="mnist", download=True)
    assert seen[0] == tfds.DOWNLOAD_RETRIES < usual
    assert usual == downloader.MAX_RETRIES
    assert message.startswith(f"data.dataset: 'mnist' cannot be downloaded to {tmp_path}")


def test_tfds_not_image_classification(files, tools, tmp_path):
    directory, _, _ = toy(files, tools, feature="picture")
    message = raised_by(load_toy, directory)
    assert "; found 'toy' with features label, picture" in message
    message = raised_by(load_toy, str(tmp_path), dataset="imdb_reviews", download=True)
    assert "must be an image classification set" in message  # before anything is downloaded


@pytest.mark.parametrize("split", ["tset", "train[5:"])
def test_tfds_unknown_split(files, tools, split):
    directory, _, _ = toy(files, tools)
    message = raised_by(load_toy, directory, validation_split=split)
    assert message.startswith("data.validation_split: must be one of train, test, the splits of toy/1.0.0, or a part")
    assert f"; found {split!r}" in message
    assert raised_by(load_toy, directory, validation_split=3).startswith("data.validation_split: input should be a")


def test_tfds_empty_split(files, tools):
    directory, _, _ = toy(files, tools)
    message = raised_by(load_toy, directory, validation_split="test[:0]")
    assert message.startswith("data.validation_split: must hold examples; found 0 examples in 'test[:0]'")


def test_tfds_batch_larger_than_the_data(files, tools):
    directory, _, _ = toy(files, tools)
    assert raised_by(load_toy, directory, 31).endswith("1 to 30; found 31")


def test_tfds_label_out_of_range(files, tools):
    images = [tools.encode(np.zeros((4, 4, 3)))] * 6
    directory = files.tfds(images, [0, 1, 2, 3, -1, 5], dimensions=(4, 4, 3))
    message = raised_by(load_toy, directory, 2)
    assert "'train' of toy/1.0.0: the label of record 1 of" in message
    assert "toy-train.tfrecord-00001-of-00002" in message
    assert " must be 0 to 9; found -1" in message


def test_tfds_truncated_file(files, tools):
    directory, _, _ = toy(files, tools)
    path = files.directory / "tfds/toy/1.0.0/toy-train.tfrecord-00001-of-00002"
    path.write_bytes(path.read_bytes()[:-5])
    message = raised_by(load_toy, directory)
    assert "is truncated" in message
    assert f"; found {path.stat().st_size}, which end within record 14" in message


def test_tfds_other_file_format(files, tools):
    directory, _, _ = toy(files, tools)
    path = files.directory / "tfds/toy/1.0.0/dataset_info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"fileFormat": "array_record"}))
    assert "; found array_record in" in raised_by(load_toy, directory)
    options = {"dataset": "toy", "download": False, "data_dir": directory}
    assert "; found array_record in" in raised_by(data.facts, "tfds", batch_size=10, seed=0, **options)


def test_tfds_file_missing(files, tools):
    directory, _, _ = toy(files, tools)
    path = files.directory / "tfds/toy/1.0.0/toy-test.tfrecord-00001-of-00002"
    path.unlink()
    assert str(path) in raised_by(load_toy, directory)


@pytest.mark.parametrize(
    ("name", "shape", "train", "test"),
    [
        ("mnist", (28, 28, 1), 60000, 10000),
        pytest.param("kmnist", (28, 28, 1), 9000, 1000, marks=pytest.mark.exhaustive),
    ],
)
def test_real_sets(prepared, name, shape, train, test):
    options = {"batch_size": 500, "seed": 0, "dataset": prepared(name), "download": False}
    facts = data.facts("tfds", **options)
    assert (facts.train_examples, facts.validation_examples) == (train, test)
    dataset = data.load("tfds", **options, augment=None, train_split="train[:3000]", validation_split="test[:200]")
    assert (dataset.input_shape, dataset.classes) == (shape, 10)
    images, labels = first_epoch(dataset)
    assert abs(images.mean()) < 1e-3
    assert abs(images.std() - 1) < 1e-3
    assert set(labels) == set(range(10))
    assert len(everything(dataset.validation())[1]) == 200


@pytest.mark.exhaustive
def test_real_cifar10(prepared):
    dataset = data.load(
        "tfds",
        batch_size=64,
        seed=0,
        dataset=prepared("cifar10"),
        download=False,
        train_split="train[:2000]",
        validation_split="test[:100]",
        augment="crop_flip",
    )
    assert dataset.class_names[:2] == ("airplane", "automobile")
    assert next(iter(dataset.train()))[0].shape == (64, 32, 32, 3)


# imagenet


def load_imagenet(train, validation=None, batch_size=4, **options):
    options = {"image_size": 8, "preprocessing": "inception", "shuffle_buffer": 8, **options}
    return data.load(
        "imagenet", batch_size=batch_size, seed=0, train_files=train, validation_files=validation or train, **options
    )


def test_imagenet_labels_begin_at_0(files):
    dataset = load_imagenet(files.imagenet(), classes=10)
    assert (dataset.classes, dataset.class_names) == (10, None)
    np.testing.assert_array_equal(everything(dataset.validation())[1], np.arange(33) % 10)


@pytest.mark.parametrize(("preprocessing", "size"), [("resnet", 224), ("inception", 299)])
def test_imagenet_default_sizes(files, preprocessing, size):
    dataset = load_imagenet(files.imagenet(), preprocessing=preprocessing, image_size=None)
    assert dataset.input_shape == (size, size, 3)


def test_imagenet_several_patterns(files):
    files.imagenet()
    patterns = [str(files.directory / f"train-0000{n}-*") for n in (0, 2)]
    assert load_imagenet(patterns).train_examples == 22


def test_imagenet_no_file_matches(tmp_path):
    message = raised_by(load_imagenet, f"{tmp_path}/train-*")
    expected = f"data.train_files: matches no file; found '{tmp_path}/train-*'; looked in {tmp_path}: no"
    assert message.startswith(expected)
    assert "it does not exist" in raised_by(load_imagenet, f"{tmp_path}/absent/train-*")
    assert "data.train_files: input should be a valid string; found 3" in raised_by(load_imagenet, 3)
    assert "data.train_files: list should have at least 1 item" in raised_by(load_imagenet, [])


def test_imagenet_unknown_preprocessing(files):
    message = raised_by(load_imagenet, files.imagenet(), preprocessing="resent")
    assert message == (
        "data.preprocessing: input should be 'resnet' or 'inception'; found 'resent'; did you mean 'resnet'?"
    )


@pytest.mark.parametrize("examples", [None, 33])
def test_imagenet_empty_file(files, examples):
    pattern = files.imagenet()
    (files.directory / "train-00001-of-00003").write_bytes(b"")
    message = raised_by(load_imagenet, pattern, train_examples=examples)
    assert "must hold one record or more; found 0 bytes in " in message


@pytest.mark.parametrize("examples", [None, 33])
def test_imagenet_file_of_another_kind(files, examples):
    pattern = files.imagenet()
    path = files.directory / "train-00001-of-00003"
    path.write_text("this is no TFRecord file, but it is long enough to hold a header")
    message = raised_by(load_imagenet, pattern, train_examples=examples)
    assert message.startswith(f"data.train_files: {path} must be an intact, uncompressed TFRecord file; found a wrong")


@pytest.mark.parametrize("missing", [1, 5, 200])
def test_imagenet_truncated_file_is_seen_while_counting(files, missing):
    pattern = files.imagenet()
    path = files.directory / "train-00001-of-00003"
    path.write_bytes(path.read_bytes()[:-missing])
    message = raised_by(load_imagenet, pattern)
    assert message.startswith(f"data.train_files: a TFRecord file is truncated: {path} must have")
    assert "end within record 10" in message or missing == 200


def test_imagenet_corrupt_data_is_explained(files):
    pattern = files.imagenet()
    path = files.directory / "train-00002-of-00003"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    dataset = load_imagenet(pattern, train_examples=33, validation_examples=33)
    assert f"{path}" in explained(dataset, dataset.train().take(20))


def test_imagenet_label_out_of_range_is_explained(files):
    patterns = [
        files.imagenet(name, label=lambda number, label=label: label if number == 17 else 1)
        for name, label in (("train", 0), ("validation", 11))
    ]
    dataset = load_imagenet(*patterns, classes=10)
    place = f"record 6 of {files.directory}"
    message = "data.{0}_files: the label of {1}/{0}-00001-of-00003 must be 1 to 10; found {2}"
    assert explained(dataset, dataset.train().take(20)) == message.format("train", place, 0)
    assert explained(dataset, dataset.validation()) == message.format("validation", place, 11)


def test_imagenet_first_record_is_checked_at_once(files):
    pattern = files.imagenet(label=lambda _: 0)
    assert "must be 1 to 1000; found 0" in raised_by(load_imagenet, pattern)


@pytest.mark.parametrize("kind", [pytest.param("text", marks=pytest.mark.exhaustive), "half"])
def test_imagenet_undecodable_image_is_explained(files, tools, kind):
    pattern = files.imagenet()
    path = files.directory / "train-00001-of-00003"
    jpeg = tools.encode(np.random.default_rng(0).integers(0, 255, (64, 64, 3)), "JPEG")
    broken = b"this is not an image" if kind == "text" else jpeg[: len(jpeg) // 3]
    good, bad = (tools.example("image/encoded", image, "image/class/label", 5) for image in (jpeg, broken))
    tools.write_records(path, [good, good, bad, good])
    dataset = load_imagenet(pattern)
    message = explained(dataset, dataset.train().take(20))
    assert f"data.train_files: the image of record 2 of {path} must be a whole JPEG" in message
    assert f"; found {len(broken)} bytes that begin with 0x" in message


@pytest.mark.parametrize(
    ("image_key", "label_key", "wanted"),
    [
        ("image", "image/class/label", "image/encoded"),
        pytest.param("image/encoded", "label", "image/class/label", marks=pytest.mark.exhaustive),
    ],
)
def test_imagenet_missing_feature_is_explained(files, tools, image_key, label_key, wanted):
    pattern = files.imagenet()
    path = files.directory / "train-00002-of-00003"
    png = tools.encode(tools.identity_image(1))
    good = tools.example("image/encoded", png, "image/class/label", 1)
    tools.write_records(path, [good, tools.example(image_key, png, label_key, 1)])
    dataset = load_imagenet(pattern)
    message = explained(dataset, dataset.train().take(20))
    assert f"record 1 of {path} must hold one" in message
    assert f"feature `{wanted}`; found features: {', '.join(sorted([image_key, label_key]))}" in message


def test_imagenet_file_removed_after_loading_is_explained(files):
    dataset = load_imagenet(files.imagenet())
    path = files.directory / "train-00001-of-00003"
    path.unlink()
    expected = f"data.train_files: a file is missing: {path}"
    assert explained(dataset, dataset.train().take(20)) == expected


def test_imagenet_wrong_number_of_examples(files):
    pattern = files.imagenet()
    message = raised_by(load_imagenet, pattern, train_examples=100, validation_examples=33)
    assert message == "data.train_examples: must be at most 33, the number of records in train_files; found 100"
    for wrong in (32, 34):
        message = raised_by(load_imagenet, pattern, train_examples=33, validation_examples=wrong)
        expected = f"data.validation_examples: must be 33, the number of records in validation_files; found {wrong}"
        assert message == expected


def test_imagenet_missing_files_are_named(files, caplog):
    train, validation = files.imagenet(shards=12, per_shard=2), files.imagenet("validation")
    assert load_imagenet(f"{files.directory}/train-0000[0-3]*", validation).train_examples == 8
    assert not caplog.records  # The others are there, and the pattern leaves them out.
    for number in (1, *range(4, 10)):
        (files.directory / f"train-{number:05d}-of-00012").unlink()
    assert load_imagenet(train, validation).train_examples == 10
    names = ", ".join(f"train-{number:05d}-of-00012" for number in (1, 4, 5, 6, 7))
    assert [record.getMessage() for record in caplog.records] == [
        f"data.train_files: 7 of 12 files are missing in {files.directory}, so the run uses less data; found no "
        f"{names} and 2 more"
    ]


def test_imagenet_batch_larger_than_the_data(files):
    assert raised_by(load_imagenet, files.imagenet(), None, 34).endswith("1 to 33; found 34")


@pytest.mark.parametrize("option", ["image_size", "classes", "train_examples", "shuffle_buffer"])
def test_imagenet_options_must_be_positive(files, option):
    message = raised_by(load_imagenet, files.imagenet(), **{option: 0})
    assert message == f"data.{option}: input should be greater than 0; found 0"


def test_counting_agrees_with_tensorflow(files):
    files.imagenet(shards=1, per_shard=9)
    path = str(files.directory / "train-00000-of-00001")
    found = index.walk(path)
    assert found.records == sum(1 for _ in tf.data.TFRecordDataset(path)) == 9
    assert found.fault is None
    serialized = [record.numpy() for record in tf.data.TFRecordDataset(path)]
    np.testing.assert_array_equal(np.diff(found.offsets), [len(record) + 16 for record in serialized])


@pytest.mark.exhaustive
def test_imagenet_sample(imagenet_sample):
    dataset = data.load(
        "imagenet",
        batch_size=50,
        seed=0,
        train_files=f"{imagenet_sample}/train-*",
        validation_files=f"{imagenet_sample}/validation-*",
        shuffle_buffer=300,
        validation_batch_size=64,
        image_size=32,
    )
    assert (dataset.train_examples, dataset.validation_examples, dataset.steps_per_epoch) == (1000, 200, 20)
    images, labels = first_epoch(dataset)
    assert images.shape == (1000, 32, 32, 3)
    np.testing.assert_array_equal(np.sort(labels), np.arange(1000))  # one per class
    assert abs(images.mean()) < 0.3
    assert 0.7 < images.std() < 1.4
    assert [len(part) for _, part in dataset.validation()] == [64, 64, 64, 8]
    resumed = next(iter(dataset.train(13)))[0]
    np.testing.assert_array_equal(resumed, images[650:700])
