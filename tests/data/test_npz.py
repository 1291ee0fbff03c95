"""Arrays in a .npz file: the same examples as in the file, and one-line errors."""

import os
import pathlib
import zipfile

import numpy as np
import pytest

from neural_alignment import config as configuration
from neural_alignment import data
from neural_alignment.errors import DataError
from neural_alignment.training import run, setup

EXAMPLES = 40


@pytest.fixture
def arrays(rng):
    """Images of distinguishable pixels and their labels."""
    return {
        "x_train": rng.integers(0, 256, (EXAMPLES, 5, 6, 3), np.uint8),
        "y_train": np.arange(EXAMPLES) % 4,
        "x_validation": rng.integers(0, 256, (11, 5, 6, 3), np.uint8),
        "y_validation": np.arange(11, dtype=np.uint8) % 4,
    }


@pytest.fixture
def write(tmp_path):
    def write(**arrays):
        np.savez(tmp_path / "arrays.npz", **arrays)
        return str(tmp_path / "arrays.npz")

    return write


def load(path, batch_size=8, seed=0, **options):
    return data.load("npz", batch_size=batch_size, seed=seed, file=path, **options)


def everything(batches):
    return tuple(np.concatenate(part) for part in zip(*batches.as_numpy_iterator(), strict=True))


def epoch(dataset):
    return everything(dataset.train().take(dataset.steps_per_epoch))


def refused(*arguments, **options):
    """Returns the message of the `DataError` raised by `load`. It must be one line."""
    with pytest.raises(DataError) as raised:
        load(*arguments, **options)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_the_arrays_are_standardised_per_channel(arrays, write):
    dataset = load(write(**arrays), validation_batch_size=4)
    assert isinstance(dataset, data.InMemory)
    assert (dataset.input_shape, dataset.classes) == ((5, 6, 3), 4)
    assert (dataset.train_examples, dataset.validation_examples) == (EXAMPLES, 11)
    train = arrays["x_train"].astype(float)
    mean, deviation = train.mean(axis=(0, 1, 2)), train.std(axis=(0, 1, 2))
    images, labels = everything(dataset.validation())
    np.testing.assert_allclose(images, (arrays["x_validation"] - mean) / deviation, atol=1e-5)
    np.testing.assert_array_equal(labels, arrays["y_validation"])
    images, labels = epoch(dataset)
    pixels = np.rint(images * deviation + mean).astype(int)
    places = [int(np.flatnonzero((train == image).all(axis=(1, 2, 3)))[0]) for image in pixels]
    assert sorted(places) == list(range(EXAMPLES))
    assert places != sorted(places)
    np.testing.assert_array_equal(labels, arrays["y_train"][places])


def test_images_in_any_unit_are_standardised_and_constant_channels_are_only_centred(rng, arrays, write):
    images = rng.normal(size=(EXAMPLES, 5, 6, 5)).astype(np.float32) * 1e-9
    images[..., 1], images[..., 2], images[..., 3] = 0.0, 0.1e-9, 1e6
    labels = arrays["y_train"]
    dataset = load(write(x_train=images, y_train=labels, x_validation=images, y_validation=labels))
    deviation = np.array([images[..., 0].std(), 1, 1, 1, images[..., 4].std()])
    np.testing.assert_allclose(dataset.scale, deviation, rtol=1e-5)
    scaled, _ = everything(dataset.validation())
    np.testing.assert_allclose(scaled[..., [0, 4]].std(axis=(0, 1, 2)), 1.0, rtol=1e-4)
    assert not scaled[..., 1].any()


def test_bytes_are_scaled_and_floats_are_not_changed(arrays, write):
    plain = {"standardize": False, "shuffle": False}
    images, _ = epoch(load(write(**arrays), **plain))
    np.testing.assert_allclose(images, arrays["x_train"] / 255, atol=1e-6)
    floats = {name: each / 7 if name.startswith("x") else each for name, each in arrays.items()}
    images, _ = epoch(load(write(**floats), **plain))
    np.testing.assert_array_equal(images, np.float32(arrays["x_train"] / 7))


def test_images_without_channels_are_grey(arrays, write):
    grey = {name: each[..., 0] if name.startswith("x") else each for name, each in arrays.items()}
    dataset = load(write(**grey), standardize=False)
    assert dataset.input_shape == (5, 6, 1)
    np.testing.assert_allclose(everything(dataset.validation())[0][..., 0], grey["x_validation"] / 255, atol=1e-6)


def test_part_of_each_class_is_held_out_if_the_file_has_no_validation(arrays, write):
    path = write(x_train=arrays["x_train"], y_train=arrays["y_train"])
    dataset = load(path, standardize=False)
    assert (dataset.train_examples, dataset.validation_examples) == (32, 8)
    held_out, labels = everything(dataset.validation())
    np.testing.assert_array_equal(np.bincount(labels), [2, 2, 2, 2])
    images, _ = epoch(dataset)
    together = np.rint(np.concatenate([images, held_out]) * 255).reshape(EXAMPLES, -1)
    assert sorted(map(tuple, together)) == sorted(map(tuple, arrays["x_train"].reshape(EXAMPLES, -1)))
    other = load(path, seed=3, standardize=False)
    np.testing.assert_array_equal(everything(other.validation())[0], held_out)
    assert load(path, validation_fraction=0.5).validation_examples == 20
    assert "must leave examples of every class" in refused(path, validation_fraction=0.01)


def test_a_run_augments_and_replaces_labels_and_resumes_like_other_sources(arrays, write):
    path = write(**arrays)
    options = {"file": path, "augment": "crop_flip", "replace_labels": 0.5}
    dataset = data.load("npz", batch_size=8, seed=2, **options)
    plain = {"model": {"name": "fc", "hidden": [4]}, "optimization": {"forward": {"name": "sgd", "learning_rate": 0.1}}}
    config = configuration.parse(
        {"epochs": 2, "batch_size": 8, "seed": 2, "data": {"source": "npz", **options}} | plain
    )
    batches = list(dataset.train().take(9).as_numpy_iterator())
    for (images, labels), (other, other_labels) in zip(
        batches[4:], setup.load_data(config).train(4).take(5).as_numpy_iterator(), strict=True
    ):
        np.testing.assert_array_equal(images, other)
        np.testing.assert_array_equal(labels, other_labels)
    counts = np.bincount(np.concatenate([labels for _, labels in batches[:5]]), minlength=4)
    assert not np.array_equal(counts, [10, 10, 10, 10])
    assert not np.array_equal(batches[0][0], next(load(path, seed=2).train().as_numpy_iterator())[0])
    facts = setup.data_facts(config)
    for name in ("input_shape", "classes", "train_examples", "validation_examples"):
        assert getattr(facts, name) == getattr(dataset, name)


def test_a_run_is_evaluated_and_resumed_after_its_file_was_moved(arrays, write, tmp_path, caplog):
    plan = {"model": {"name": "fc", "hidden": [4]}, "optimization": {"forward": {"name": "sgd", "learning_rate": 0.1}}}
    plan |= {"epochs": 1, "batch_size": 8, "data": {"source": "npz", "file": write(**arrays)}, "max_steps": 1}
    plan |= {"logging": {"tensorboard": False}, "evaluation": {"probe_examples": 0}}
    result = run.train(configuration.parse(plan), tmp_path / "run")
    moved = plan["data"] | {"file": str(tmp_path / "moved.npz")}
    os.rename(plan["data"]["file"], moved["file"])
    for source in (plan["data"], moved):
        assert not caplog.records
        again = run.train(configuration.parse(plan | {"data": source}), tmp_path / "run", resume=True)
        assert again.path == result.path
    assert f"must be the same data: data.file was '{plan['data']['file']}', is now '" in caplog.text
    with pytest.raises(DataError, match="no such file"):
        run.evaluate(tmp_path / "run")
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace(plan["data"]["file"], moved["file"]))
    assert run.evaluate(tmp_path / "run")["J"] == pytest.approx(result.metrics["J"], rel=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y_train": None}, "has no array `y_train`; found x_train, x_validation, y_validation"),
        ({"x_validation": None}, "has no array `x_validation`"),
        ({"x_train": np.zeros((40, 5), np.uint8)}, "`x_train` must be (examples, height, width, channels) or "),
        ({"x_train": np.zeros((40, 5, 6, 3), int)}, "uint8 or float; found shape (40, 5, 6, 3) of int64"),
        ({"x_train": np.zeros((0, 5, 6, 3), np.uint8)}, "found shape (0, 5, 6, 3) of uint8"),
        ({"x_train": np.full((40, 5, 6, 3), 1e300)}, "`x_train` must be finite float32 numbers; found NaN or infinity"),
        (
            {"y_train": np.zeros(39, int)},
            "`y_train` must be integers, one per image of `x_train`, (40,); found shape",
        ),
        ({"y_train": np.zeros(40, int)}, "`y_train` must have labels of two or more classes; found only 0"),
        ({"y_train": np.zeros(40)}, "found shape (40,) of float64"),
        ({"y_train": np.zeros((40, 4), int)}, "found shape (40, 4) of int64"),
        ({"x_validation": np.zeros((11, 4, 6, 3), np.uint8)}, "like `x_train`, (5, 6, 3) of uint8; found (4, 6, 3) of"),
        ({"x_validation": np.zeros((11, 5, 6, 3))}, "found (5, 6, 3) of float32"),
        ({"y_train": np.array(["a"] * 40, object)}, "`y_train` holds Python objects; allowed: numbers and strings"),
    ],
)
def test_wrong_arrays_are_one_line(arrays, write, change, message):
    path = write(**{name: each for name, each in (arrays | change).items() if each is not None})
    found = refused(path)
    assert found.startswith(f"{path}: ")
    assert message in found


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"y_validation": np.full(11, 4)}, {}, "data: each validation label must be from 0 to 3; found 4 at example 0"),
        (
            {"y_train": np.arange(40) % 4 - 1},
            {},
            "data: each training label must be from 0 to 2; found -1 at",
        ),
        ({}, {"classes": 3}, "data: each training label must be from 0 to 2; found 3 at example 3"),
        (
            {},
            {"validation_fraction": 0.3},
            "data.validation_fraction: must be null if the file has `x_validation`; found 0.3",
        ),
        ({}, {"batch_size": 41}, "batch_size: must not be larger than the training data, 1 to 40; found 41"),
        ({}, {"augment": "flip"}, "data.augment: input should be 'crop' or 'crop_flip'"),
    ],
)
def test_wrong_labels_and_options_are_one_line(arrays, write, change, options, message):
    assert refused(write(**(arrays | change)), **options).startswith(message)


def test_wrong_files_are_one_line(arrays, write, tmp_path):
    path = write(**arrays)
    content = pathlib.Path(path).read_bytes()
    assert refused(str(tmp_path / "no.npz")) == f"{tmp_path}/no.npz: no such file"
    np.save(tmp_path / "single.npy", arrays["x_train"])
    assert refused(str(tmp_path / "single.npy")) == f"{tmp_path}/single.npy: must be a .npz file"
    (tmp_path / "single.npy").rename(tmp_path / "single.npz")
    assert refused(str(tmp_path / "single.npz")).endswith("is not a .npz file of named arrays")
    os.mkfifo(tmp_path / "pipe.npz")
    assert "is not a regular file but a FIFO" in refused(str(tmp_path / "pipe.npz"))
    for damaged in (content[: len(content) // 2], content[:200] + bytes([content[200] ^ 1]) + content[201:], b"text"):
        pathlib.Path(path).write_bytes(damaged)
        assert refused(path).startswith(f"{path}: is damaged, or not a .npz file")


def test_an_array_that_does_not_fit_into_memory_is_one_line(arrays, write):
    path = write(y_train=arrays["y_train"])
    with zipfile.ZipFile(path, "a") as archive, archive.open("x_train.npy", "w") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": (2**45, 5, 6, 3)}
        np.lib.format.write_array_header_1_0(file, header)
    assert refused(path) == f"{path}: `x_train` does not fit into memory"
