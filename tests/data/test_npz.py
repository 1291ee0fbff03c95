"""Arrays in a .npz file: the same examples as in the file, and one-line errors."""

import os
import pathlib
import zipfile

import numpy as np
import pytest

from neural_alignment import config as configuration
from neural_alignment import data
from neural_alignment.errors import ConfigError, DataError
from neural_alignment.training import run, setup

EXAMPLES = 40
PLAN = {
    "epochs": 1,
    "batch_size": 8,
    "model": {"name": "fc", "hidden": [4]},
    "optimization": {"forward": {"name": "sgd", "learning_rate": 0.1}},
}


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


def validation(dataset):
    """Returns the validation images and labels in the order of the file."""
    dataset.validation_order = None
    return everything(dataset.validation())


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
    images, labels = validation(dataset)
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
    np.testing.assert_allclose(validation(dataset)[0][..., 0], grey["x_validation"] / 255, atol=1e-6)


@pytest.mark.parametrize("given", [("x_train", "y_train", "x_validation", "y_validation"), ("x_train", "y_train")])
def test_arrays_that_are_sorted_by_class_are_mixed_for_validation(arrays, write, given):
    arrays["y_train"] = np.repeat(np.arange(4), 10)
    arrays |= {"x_validation": arrays["x_train"], "y_validation": arrays["y_train"]}
    fraction = {} if "x_validation" in given else {"validation_fraction": 0.5}
    dataset = load(write(**{name: arrays[name] for name in given}), standardize=False, **fraction)
    batches = list(dataset.validation().as_numpy_iterator())
    assert min(len(set(labels)) for _, labels in batches[:2]) > 2
    images, labels = map(np.concatenate, zip(*batches, strict=True))
    of = {image.tobytes(): label for image, label in zip(arrays["x_train"], arrays["y_train"], strict=True)}
    assert len({image.tobytes() for image in images}) == dataset.validation_examples
    assert [of[image.tobytes()] for image in np.rint(images * 255).astype(np.uint8)] == list(labels)
    np.testing.assert_array_equal(validation(dataset)[1], np.sort(labels))


def test_test_arrays_are_the_validation_data_where_the_configuration_says_so(arrays, write):
    """The file of `keras.datasets.mnist` has these four arrays."""
    rest = {"x_train": arrays["x_train"], "y_train": arrays["y_train"]}
    path = write(**rest, x_test=arrays["x_validation"], y_test=arrays["y_validation"])
    dataset = load(path, validation_split="test", standardize=False)
    assert dataset.train_examples == EXAMPLES
    np.testing.assert_allclose(validation(dataset)[0], arrays["x_validation"] / 255, atol=1e-6)
    held_out = load(path, standardize=False)
    assert (held_out.train_examples, held_out.validation_examples) == (32, 8)
    np.testing.assert_array_equal(epoch(held_out)[0], epoch(load(write(**rest), standardize=False))[0])
    path = write(**arrays, x_test=arrays["x_train"], y_test=arrays["y_train"])
    assert load(path).validation_examples == load(path, validation_split="validation").validation_examples == 11


@pytest.mark.parametrize("given", [{}, {"validation_split": "test"}, {"validation_fraction": 0.5}])
def test_a_test_split_is_standardised_by_the_training_images_of_the_run(arrays, write, given):
    names = ("x_train", "y_train") if given else tuple(arrays)
    path = write(**{name: arrays[name] for name in names}, x_test=arrays["x_train"][::2], y_test=arrays["y_train"][::2])
    data_options = {"source": "npz", "file": path, **given}
    config = configuration.parse({**PLAN, "data": data_options, "evaluation": {"test_split": "test"}})
    dataset = setup.load_data(config)
    test = setup.load_test_data(config, "test", dataset)
    assert test.validation_examples == 20
    np.testing.assert_array_equal(test.scale, dataset.scale)
    images, labels = validation(test)
    np.testing.assert_allclose(images * test.scale + test.center, arrays["x_train"][::2], atol=1e-3)
    np.testing.assert_array_equal(labels, arrays["y_train"][::2])
    np.testing.assert_array_equal(epoch(test)[1], epoch(dataset)[1])


def test_a_missing_test_split_is_one_line(arrays, write):
    plan = {**PLAN, "data": {"source": "npz", "file": write(**arrays)}}
    with pytest.raises(ConfigError, match=r"evaluation.test_split: must be one of validation, test .*; found 'tset'"):
        configuration.parse({**plan, "evaluation": {"test_split": "tset"}})
    config = configuration.parse({**plan, "evaluation": {"test_split": "test"}})
    with pytest.raises(DataError, match=r"arrays.npz: has no array `x_test`; found x_train, x_validation, y_train,"):
        setup.load_test_data(config, "test", setup.load_data(config))


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
    config = configuration.parse({**PLAN, "epochs": 2, "seed": 2, "data": {"source": "npz", **options}})
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
    plan = PLAN | {"data": {"source": "npz", "file": write(**arrays)}, "max_steps": 1}
    plan |= {"logging": {"tensorboard": False}, "evaluation": {"probe_examples": 0}}
    result = run.train(configuration.parse(plan), tmp_path / "run")
    moved = plan["data"] | {"file": str(tmp_path / "moved.npz")}
    os.rename(plan["data"]["file"], moved["file"])
    for source in (plan["data"], moved):
        assert not [each for each in caplog.records if each.name.startswith("neural_alignment")]
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
        (
            {"x_val": np.zeros(3)},
            "must have only the arrays x_train, y_train, x_validation, y_validation, x_test, y_test; found 'x_val'",
        ),
        ({"x_val": np.zeros(3)}, "; did you mean 'x_validation'?"),
        ({"X_train": np.zeros(3)}, "; did you mean 'x_train'?"),
        ({"y_tset": np.zeros(3), "x_tset": np.zeros(3)}, "; found 'y_tset' (1 more); did you mean 'y_test'?"),
        ({"x_train": np.zeros((40, 5), np.uint8)}, "`x_train` must be (examples, height, width, channels) or "),
        ({"x_train": np.zeros((40, 5, 6, 3), int)}, "uint8 or float; found shape (40, 5, 6, 3) of int64"),
        ({"x_train": np.zeros((0, 5, 6, 3), np.uint8)}, "found shape (0, 5, 6, 3) of uint8"),
        ({"x_train": np.full((40, 5, 6, 3), 1e300)}, "`x_train` must be finite float32 numbers; found NaN or infinity"),
        (
            {"y_train": np.zeros(39, int)},
            "`y_train` must be integers, one for each of `x_train`, (40,); found shape",
        ),
        ({"y_train": np.zeros(40, int)}, "`y_train` must have labels of two or more classes; found only 0"),
        ({"y_train": np.zeros(40)}, "found shape (40,) of float64"),
        ({"y_train": np.zeros((40, 4), int)}, "found shape (40, 4) of int64"),
        ({"x_validation": np.zeros((11, 4, 6, 3), np.uint8)}, "like `x_train`, (5, 6, 3) of uint8; found (4, 6, 3) of"),
        ({"x_validation": np.zeros((11, 5, 6, 3))}, "found (5, 6, 3) of float32"),
        ({"y_train": np.array(["a"] * 40, object)}, "`y_train` must hold numbers or strings; found Python objects"),
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
        ({"x_test": np.zeros((1, 5, 6, 3), np.uint8), "y_test": [9]}, {"validation_split": "test"}, "data: each test"),
        ({}, {"classes": 3}, "data: each training label must be from 0 to 2; found 3 at example 3"),
        (
            {},
            {"validation_fraction": 0.3},
            "data.validation_fraction: must be null if `x_validation` is used for validation; found 0.3",
        ),
        ({}, {"batch_size": 41}, "batch_size: must not be larger than the training data, 1 to 40; found 41"),
        ({}, {"augment": "flip"}, "data.augment: input should be 'crop', 'crop_flip' or null; found 'flip'"),
    ],
)
def test_wrong_labels_and_options_are_one_line(arrays, write, change, options, message):
    path = write(**(arrays | change))
    assert refused(path, **options).startswith(message)
    with pytest.raises(DataError) as raised:  # `describe` needs only the facts.
        data.facts("npz", **({"batch_size": 8, "seed": 0, "file": path} | options))
    assert str(raised.value).startswith(message)


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
