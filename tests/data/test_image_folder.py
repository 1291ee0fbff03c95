"""Folders of image files: classes and order, preprocessing, damage, and one-line errors."""

import itertools
import json
import os
import pathlib

import numpy as np
import pytest
import tensorflow as tf

from neural_alignment import config as configuration
from neural_alignment import data
from neural_alignment.data import imagenet
from neural_alignment.data.sources import image_folder
from neural_alignment.errors import DataError
from neural_alignment.training import run

CLASSES = ("ant", "bee", "cow")
EXAMPLES, BATCH = 30, 7
LABELS = np.repeat(np.arange(3), 10)


@pytest.fixture
def animals(files, tools):
    """Training and validation folders; image n encodes n and is the n-th of all images, sorted by class and name."""

    def write(name):
        paths = [f"{CLASSES[n // 10]}/{n % 10}.{'webp' if n % 2 else 'PNG'}" for n in range(EXAMPLES)]
        images = [
            tools.encode(tools.identity_image(n), **({"kind": "WEBP", "lossless": True} if n % 2 else {}))
            for n in range(EXAMPLES)
        ]
        return files.folder(dict(zip(paths, images, strict=True)), name)

    return {"train_folder": write("train"), "validation_folder": write("validation")}


def load(folders, batch_size=BATCH, seed=0, **options):
    return data.load("image_folder", batch_size=batch_size, seed=seed, **whole(folders), **options)


def whole(folders):
    return {**folders, "preprocessing": "resize", "image_size": 8}


def everything(batches):
    return tuple(np.concatenate(part) for part in zip(*batches.as_numpy_iterator(), strict=True))


def validation(dataset):
    """Returns the validation images and labels in the order of the files."""
    dataset.validation_order = None
    return everything(dataset.validation())


def train(dataset, steps, start=0, **share):
    return list(dataset.train(start, **share).take(steps).as_numpy_iterator())


def assert_same_batches(first, second):
    for one, other in zip(first, second, strict=True):
        for array, expected in zip(one, other, strict=True):
            np.testing.assert_array_equal(array, expected)


def refused(function, *arguments, **options):
    """Returns the message of the `DataError` raised by a call. It must be one line."""
    with pytest.raises(DataError) as raised:
        function(*arguments, **options)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def explained(dataset, batches):
    with pytest.raises(tf.errors.OpError) as raised:
        list(batches)
    error = dataset.explain(raised.value)
    assert isinstance(error, DataError)
    assert "\n" not in str(error)
    return str(error)


# Classes and order.


def test_classes_are_folders_and_other_files_are_ignored(animals, files, tools):
    image = tools.encode(tools.identity_image(99))
    files.folder({"a.png": image, "ant/notes.txt": b"x", "ant/._0.png": b"x", ".git/0.png": image}, "validation")
    files.folder({"cow/more/a.png": tools.encode(tools.identity_image(30))}, "validation")
    dataset = load(animals, validation_batch_size=20)
    assert (dataset.input_shape, dataset.classes, dataset.class_names) == ((8, 8, 3), 3, CLASSES)
    assert (dataset.train_examples, dataset.validation_examples, dataset.steps_per_epoch) == (30, 31, 4)
    images, labels = validation(dataset)
    np.testing.assert_array_equal(tools.numbers_of(images), np.arange(31))
    np.testing.assert_array_equal(labels, [*LABELS, 2])


def test_class_folders_may_be_links_that_lead_nowhere_else(animals, tmp_path, tools):
    links = tmp_path / "links"
    links.mkdir()
    for name in CLASSES:
        (links / name).symlink_to(pathlib.Path(animals["train_folder"], name))
    pathlib.Path(animals["train_folder"], "ant", "back").symlink_to(links)
    images, _ = validation(load(animals | {"validation_folder": str(links)}))
    np.testing.assert_array_equal(tools.numbers_of(images), np.arange(EXAMPLES))


@pytest.mark.exhaustive
def test_every_validation_batch_has_images_of_all_classes_and_is_the_same_in_all_runs(animals, tools):
    for folders, count in ((animals, 30), ({"train_folder": animals["train_folder"], "validation_fraction": 0.5}, 15)):
        batches = list(load(folders, validation_batch_size=8).validation().as_numpy_iterator())
        assert [len(set(labels)) for _, labels in batches[: count // 8]] == [3] * (count // 8)
        numbers = np.concatenate([tools.numbers_of(images) for images, _ in batches])
        np.testing.assert_array_equal(LABELS[numbers], np.concatenate([labels for _, labels in batches]))
        assert len(set(numbers)) == count
        other = load(folders, seed=3, shuffle=False, validation_batch_size=8)
        assert_same_batches(other.validation().as_numpy_iterator(), batches)
        shares = [list(other.validation(worker, 2, fill=True).as_numpy_iterator()) for worker in (0, 1)]
        for batch, one, two in zip(batches, *shares, strict=True):
            images, labels, weights = map(np.concatenate, zip(one, two, strict=True))
            assert_same_batches([(images[weights > 0], labels[weights > 0])], [batch])


@pytest.mark.exhaustive
def test_epochs_are_permutations_that_depend_on_the_seed_and_resume_anywhere(animals, tools):
    dataset = load(animals)
    steps = dataset.steps_per_epoch
    batches = train(dataset, 3 * steps)
    numbers = np.concatenate([tools.numbers_of(images) for images, _ in batches])
    np.testing.assert_array_equal(np.concatenate([labels for _, labels in batches]), LABELS[numbers])
    epochs = numbers.reshape(3, -1)
    for epoch in epochs:
        assert len(set(epoch)) == steps * BATCH
        assert len(set(LABELS[epoch[:BATCH]])) > 1  # The order is not that of the classes.
    for one, other in itertools.combinations(epochs, 2):
        assert np.mean(one == other) < 0.3
    assert_same_batches(train(load(animals), 3 * steps - 6, start=6), batches[6:])
    assert not np.array_equal(train(load(animals, seed=1), 1)[0][0], batches[0][0])


@pytest.mark.exhaustive
def test_workers_read_only_their_own_files(animals):
    dataset = load(animals, batch_size=6, augment="crop_flip", validation_batch_size=8)
    expected = train(dataset, 6)
    parts = zip(*(train(dataset, 6, worker=worker, workers=2) for worker in (0, 1)), strict=True)
    assert_same_batches([tuple(map(np.concatenate, zip(*part, strict=True))) for part in parts], expected)
    filled = [list(dataset.validation(worker, 2, fill=True).as_numpy_iterator()) for worker in (0, 1)]
    assert sum(batch[2].sum() for batches in filled for batch in batches) == EXAMPLES
    ordered = load(animals, batch_size=6, shuffle=False)
    for number in range(3):
        pathlib.Path(animals["train_folder"], "ant", f"{number}.{'webp' if number % 2 else 'PNG'}").unlink()
    assert len(train(ordered, 1, worker=1, workers=2)) == 1
    with pytest.raises(tf.errors.OpError):
        train(ordered, 1, worker=0, workers=2)


def test_part_of_each_class_is_held_out_without_a_validation_folder(animals, tools):
    folders = {"train_folder": animals["train_folder"]}
    dataset = load(folders, batch_size=24)
    assert (dataset.train_examples, dataset.validation_examples) == (24, 6)
    images, labels = everything(dataset.validation())
    held_out = tools.numbers_of(images)
    np.testing.assert_array_equal(np.bincount(labels), [2, 2, 2])
    np.testing.assert_array_equal(labels, LABELS[held_out])
    ((images, _),) = train(dataset, 1)
    assert sorted([*held_out, *tools.numbers_of(images)]) == list(range(EXAMPLES))
    other = load(folders, batch_size=3, seed=5, validation_fraction=0.2)
    np.testing.assert_array_equal(tools.numbers_of(everything(other.validation())[0]), held_out)
    assert load(folders, batch_size=3, validation_fraction=0.5).validation_examples == 15
    assert "found 0.01 with 30 examples of 3 classes" in refused(load, folders, validation_fraction=0.01)


def test_facts_are_those_of_the_data_and_read_no_image(animals, monkeypatch):
    dataset = load(animals)
    monkeypatch.setattr(image_folder, "ImageFiles", None)
    facts = data.facts("image_folder", batch_size=BATCH, seed=0, **whole(animals))
    for name in ("input_shape", "classes", "train_examples", "validation_examples", "steps_per_epoch"):
        assert getattr(facts, name) == getattr(dataset, name)


# Preprocessing.


@pytest.fixture
def photographs(files, tools):
    """The encoded images of two folders: JPEG files whose colours change slowly, of different sizes."""
    y, x = np.mgrid[0:60, 0:90]
    encoded = []
    for number in range(6):
        image = np.stack([x * 2 + number, y * 3, 128 + 100 * np.sin(x / 9 + number)], axis=-1)
        encoded.append(tools.encode(image[: 40 + 3 * number, : 90 - 5 * number], "JPEG"))
    paths = [f"{'ab'[number // 3]}/{number}.JPEG" for number in range(6)]
    folder = files.folder(dict(zip(paths, encoded, strict=True)))
    return {"train_folder": folder, "validation_folder": folder}, encoded


@pytest.mark.parametrize("name", [pytest.param("resnet", marks=pytest.mark.exhaustive), "inception"])
def test_photographs_are_cropped_in_the_decoder_by_seed_and_position(photographs, name):
    folders, encoded = photographs
    dataset = data.load(
        "image_folder", batch_size=3, seed=4, shuffle=False, preprocessing=name, image_size=24, **folders
    )
    functions = {
        "resnet": (imagenet.resnet_train, imagenet.resnet_evaluation),
        "inception": (imagenet.inception_train, imagenet.inception_evaluation),
    }
    crop, evaluate = functions[name]
    images, _ = validation(dataset)
    np.testing.assert_array_equal(images, [evaluate(each, 24) for each in encoded])
    images = np.concatenate([images for images, _ in train(dataset, 4)])
    expected = [crop(encoded[n % 6], tf.constant([4, n], tf.int64), 24) for n in range(12)]
    np.testing.assert_array_equal(images, expected)
    assert not np.allclose(images[:6], images[6:], atol=0.1)
    preparation = imagenet.PREPROCESSING[name]
    np.testing.assert_array_equal(dataset.center, np.float32(preparation.center))
    np.testing.assert_array_equal(dataset.scale, np.float32(preparation.scale))
    assert preparation.at(None).input_shape == {"resnet": (224, 224, 3), "inception": (299, 299, 3)}[name]


def test_resize_keeps_the_whole_image(files, tools):
    ramp = np.broadcast_to(np.arange(0, 240, 30, np.uint8)[None, :, None], (4, 8, 3))
    folder = files.folder({"a/0.png": tools.encode(ramp), "b/0.webp": tools.encode(ramp, "WEBP", lossless=True)})
    dataset = data.load(
        "image_folder",
        batch_size=2,
        seed=0,
        train_folder=folder,
        validation_folder=folder,
        preprocessing="resize",
        image_size=5,
    )
    centres = (np.arange(5) + 0.5) * 8 / 5 - 0.5
    expected = np.broadcast_to(centres * 30 / 127.5 - 1, (2, 5, 5))
    images, _ = everything(dataset.validation())
    np.testing.assert_allclose(images[..., 1], expected, atol=1e-5)
    raw = images * dataset.scale + dataset.center
    np.testing.assert_allclose(raw[0, 0, :, 0], centres * 30, atol=1e-3)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_webp_is_decoded_like_png(tools, rng, mode):
    shape = {"RGB": (9, 7, 3), "RGBA": (9, 7, 4), "L": (9, 7)}[mode]
    image = rng.integers(0, 256, shape, np.uint8)
    webp = tools.encode(image, "WEBP", lossless=True, exact=True)
    for decode in (imagenet.decode_rgb, lambda each: imagenet.resnet_evaluation(each, 8)):
        np.testing.assert_array_equal(decode(webp), decode(tools.encode(image)))
    pixels = image[..., :3] if mode != "L" else np.stack([image] * 3, axis=-1)
    np.testing.assert_array_equal(imagenet.decode_rgb(webp), pixels)


# Damage.


def damage(folders, number, content=b"this is not an image", key="train_folder"):
    path = pathlib.Path(folders[key], CLASSES[number // 10], f"{number % 10}.{'webp' if number % 2 else 'PNG'}")
    path.write_bytes(content) if content is not None else path.unlink()
    return str(path)


@pytest.mark.exhaustive
def test_a_damaged_file_stops_the_run_or_is_replaced_by_another_row(animals, tools):
    clean = train(load(animals), 8)
    path = damage(animals, 14)
    strict = load(animals)
    expected = (
        f"data.train_folder: the image of {path} must be a whole JPEG, PNG, WebP (not animated), GIF or BMP; found 20 "
    )
    assert explained(strict, strict.train().take(8)).startswith(expected)
    dataset = load(animals, tolerate_corrupt=1)
    batches = train(dataset, 8)
    for (images, _), (before, _) in zip(batches, clean, strict=True):
        numbers, old = tools.numbers_of(images), tools.numbers_of(before)
        rows = np.arange(BATCH)
        rows[old == 14] = (rows[old == 14] + 1) % BATCH
        np.testing.assert_array_equal(numbers, old[rows])
    assert [(each.path, each.record) for each in dataset.corrupt_records] == [(path, 0)]
    resumed = load(animals, tolerate_corrupt=1)
    resumed.load_corrupt(json.loads(json.dumps(dataset.corrupt_state())))
    assert_same_batches(train(resumed, 3, start=5), batches[5:])
    assert resumed.corrupt_records == dataset.corrupt_records


@pytest.mark.parametrize("content", [b"", None, "RGB", "RGBA"])
def test_validation_leaves_damaged_files_out(animals, tools, content):
    if isinstance(content, str):
        content = tools.animated_webp(content)
    path = damage(animals, 29, content, "validation_folder")
    if content is None:
        os.symlink("/nowhere/9.webp", path)
    dataset, strict = load(animals, tolerate_corrupt=1), load(animals)
    assert dataset.validation_examples == EXAMPLES
    images, _ = everything(dataset.validation())
    np.testing.assert_array_equal(np.sort(tools.numbers_of(images)), np.arange(29))
    (fault,) = dataset.corrupt_records
    state = "cannot be read: no such file"
    if content is not None:
        state = f"must be a whole JPEG, PNG, WebP (not animated), GIF or BMP; found {len(content)} bytes"
    assert (fault.path, fault.step, state in fault.reason) == (path, -1, True)
    assert explained(strict, strict.validation()) == fault.reason


PLAN = {
    "epochs": 1,
    "batch_size": BATCH,
    "model": {"name": "fc", "hidden": [4]},
    "optimization": {"forward": {"name": "momentum", "learning_rate": 0.02}},
    "evaluation": {"probe_examples": 0},
    "logging": {"tensorboard": False},
}


@pytest.mark.exhaustive
def test_a_run_counts_its_damaged_files(animals, tmp_path):
    path = damage(animals, 14)
    config = configuration.parse({**PLAN, "data": {"source": "image_folder", "tolerate_corrupt": 1, **whole(animals)}})
    result = run.train(config, tmp_path / "run")
    assert result.metrics["corrupt_records"] == 1
    ((kept, *_),) = json.loads((tmp_path / "run" / "corrupt_records.json").read_text())
    assert kept == path


# Errors.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"train_folder": "/nowhere"},
            "data.train_folder: must be a folder with one folder per class; found '/nowhere'",
        ),
        ({"train_folder": "nofs://a/b"}, "data.train_folder: cannot be read; found 'nofs://a/b': "),
        ({"preprocessing": "resent"}, "data.preprocessing: input should be 'resnet', 'inception' or 'resize'"),
        ({"image_size": None}, "data.image_size: must be a number of pixels with preprocessing resize; found null"),
        ({"image_size": 0}, "data.image_size: input should be greater than 0; found 0"),
        (
            {"preprocessing": "resnet", "augment": "crop"},
            "data.augment: must be null with preprocessing resnet, which crops and flips; found 'crop'",
        ),
        ({"validation_fraction": 0.5}, "data.validation_fraction: must be null with validation_folder; found 0.5"),
        ({"train_files": "x"}, "data.train_files: unknown key; allowed: augment, image_size"),
    ],
)
def test_wrong_options_are_one_line(animals, change, message):
    options = whole(animals) | change
    assert refused(data.load, "image_folder", batch_size=1, seed=0, **options).startswith(message)


def test_wrong_folders_are_one_line(animals, files, tools, tmp_path):
    image = tools.encode(tools.identity_image(0))
    folder = pathlib.Path(animals["train_folder"])
    assert "which is not a folder" in refused(load, animals | {"train_folder": str(folder / "ant" / "0.PNG")})
    flat = files.folder({"0.png": image, "1.jpg": image}, "flat")
    message = f"data.validation_folder: must have one folder per class; found {flat!r} with 2 images and no folder"
    assert refused(load, animals | {"validation_folder": flat}) == message
    empty = files.folder({"cat/0.txt": image, "dog/0.png": image}, "empty")
    expected = "data.train_folder: each class folder must have images (.jpg, .jpeg, .png, .webp); found none in "
    assert refused(load, animals | {"train_folder": empty}) == f"{expected}'{empty}/cat'"
    single = files.folder({"cat/0.png": image, "cat/1.png": image}, "single")
    for folders in ({"train_folder": single}, {"train_folder": single, "validation_folder": single}):
        message = "data.train_folder: must have folders of two or more classes; found only 'cat'"
        assert refused(load, folders) == message
    broken = files.folder({"a/0.png": b"no image", "b/1.png": image}, "broken")
    folders = {"train_folder": broken, "validation_folder": broken}
    assert f"the image of {broken}/a/0.png must be a whole JPEG" in refused(load, folders)
    os.mkfifo(folder / "bee" / "pipe.png")
    assert "bee/pipe.png is not a regular file but a FIFO" in refused(load, animals)


def test_splits_have_the_same_classes(animals, files, tools):
    files.folder({"dog/0.png": tools.encode(tools.identity_image(0))}, "validation")
    message = "data.validation_folder: must have a folder for each of the 3 classes of the training data and no other; "
    assert refused(load, animals) == f"{message}found also a folder 'dog'"
    for name in ("ant", "cow"):
        pathlib.Path(animals["validation_folder"], name).rename(files.directory / name)
    assert refused(load, animals) == f"{message}found no folder 'ant' (1 more)"


@pytest.mark.skipif(os.geteuid() == 0, reason="root can read every folder")
def test_a_folder_without_permission_is_one_line(animals):
    os.chmod(animals["train_folder"], 0)
    assert "cannot be read" in refused(load, animals)


def test_webp_needs_a_decoder(animals, monkeypatch):
    monkeypatch.delattr(tf.io, "decode_webp")
    assert refused(load, animals).startswith("data.train_folder: WebP files need TensorFlow 2.21 or later; found ")


# Photographs.


@pytest.fixture
def sample(imagenet_sample, files, tools):
    """Writes photographs of the ImageNet sample, at most one of each class, in three layouts."""

    def write(count):
        """Returns the options of each source, and the labels of the photographs from 1, in the order of the records."""
        paths = sorted(map(str, imagenet_sample.glob("train-*")))
        records = list(tf.data.TFRecordDataset(paths).take(count).as_numpy_iterator())
        path = tools.write_records(files.directory / "sample-00000-of-00001", records)
        features = [tf.train.Example.FromString(record).features.feature for record in records]
        encoded = [each["image/encoded"].bytes_list.value[0] for each in features]
        labels = [each["image/class/label"].int64_list.value[0] for each in features]
        images = {f"{y:04d}/{n}.JPEG": each for n, (each, y) in enumerate(zip(encoded, labels, strict=True))}
        folder = files.folder(images)
        prepared = files.tfds(encoded, np.array(labels) - 1, dimensions=(-1, -1, 3), classes=1000)
        return {
            "imagenet": {"train_files": path, "validation_files": path},
            "image_folder": {"train_folder": folder, "validation_folder": folder},
            "tfds": {"dataset": "toy", "data_dir": prepared, "download": False},
        }, labels

    return write


@pytest.mark.exhaustive
def test_photographs_are_the_same_from_records_from_a_folder_and_from_tfds(sample):
    options, labels = sample(8)
    shared = {"batch_size": 4, "seed": 3, "shuffle": False, "preprocessing": "resnet", "image_size": 48}
    sets = {source: data.load(source, **shared, **each) for source, each in options.items()}
    images = {source: validation(each) for source, each in sets.items()}
    expected, classes = images["imagenet"]
    assert 0.5 < expected.std() < 1.5
    np.testing.assert_array_equal(images["tfds"][0], expected)
    np.testing.assert_array_equal(images["tfds"][1], classes)
    np.testing.assert_array_equal(images["image_folder"][0], expected[np.argsort(classes)])
    assert sets["image_folder"].class_names == tuple(f"{label:04d}" for label in sorted(labels))
    for source, dataset in sets.items():
        facts = data.facts(source, **shared, **options[source])
        assert (facts.input_shape, facts.train_examples, facts.validation_examples) == ((48, 48, 3), 8, 8)
        np.testing.assert_array_equal(dataset.scale, np.float32(imagenet.PREPROCESSING["resnet"].scale))
    batches = train(sets["imagenet"], 4)
    assert_same_batches(train(sets["tfds"], 2, start=2), batches[2:])
    assert not np.allclose(batches[0][0], batches[2][0], atol=0.1)  # The second epoch has other crops.


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", imagenet.PREPROCESSING)
def test_a_thousand_photographs_are_the_same_in_every_layout(sample, name):
    options, labels = sample(1000)
    options = {source: each for source, each in options.items() if (source, name) != ("imagenet", "resize")}
    shared = {"batch_size": 50, "seed": 3, "preprocessing": name, "image_size": 32}
    sets = {source: data.load(source, **shared, **each) for source, each in options.items()}
    assert {(each.train_examples, each.validation_examples) for each in sets.values()} == {(1000, 1000)}
    by_label = np.argsort(labels)
    np.testing.assert_array_equal(np.array(labels)[by_label], np.arange(1, 1001))  # One of each class.
    expected, classes = everything(sets["tfds"].validation())
    np.testing.assert_array_equal(classes, np.array(labels) - 1)
    assert expected.shape == (1000, 32, 32, 3)
    assert 0.3 < expected.std() < 1.5
    for source, dataset in sets.items():
        images, classes = validation(dataset)
        order = by_label if source == "image_folder" else slice(None)
        np.testing.assert_array_equal(images, expected[order])
        np.testing.assert_array_equal(classes, np.array(labels)[order] - 1)
    epochs = {source: everything(dataset.train().take(20)) for source, dataset in sets.items()}
    for images, classes in epochs.values():
        np.testing.assert_array_equal(np.sort(classes), np.arange(1000))
        if name == "resize":
            np.testing.assert_array_equal(images, expected[by_label][classes])
        else:
            assert not np.allclose(images, expected[by_label][classes], atol=0.1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"augment": "crop_flip"}, "data.augment: must be null with preprocessing resnet, which crops and flips"),
        ({"standardize": False}, "data.standardize: must be true with preprocessing resnet, which scales the pixels"),
        ({"replace_labels": 0.5}, "data.replace_labels: must be 0 with 'toy', which is streamed; found 0.5"),
    ],
)
def test_tfds_options_that_do_not_fit_photographs_are_one_line(files, tools, change, message):
    directory = files.tfds([tools.encode(tools.identity_image(n)) for n in range(4)], [0] * 4, dimensions=(8, 8, 3))
    options = {"dataset": "toy", "data_dir": directory, "download": False, "preprocessing": "resnet"}
    assert refused(data.load, "tfds", batch_size=2, seed=0, **options, **change).startswith(message)


def test_tfds_preprocessing_is_written_only_where_it_is_not_the_default():
    for name, written in ((None, False), ("resize", False), ("resnet", True)):
        options = {"source": "tfds", "dataset": "mnist"} | ({"preprocessing": name} if name else {})
        config = configuration.parse({**PLAN, "data": options})
        assert ("preprocessing" in configuration.plain(config)["data"]) == written
