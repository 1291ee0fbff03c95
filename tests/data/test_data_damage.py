"""Damaged files: a run stops and names file and record, or skips tolerated records and counts each of them once."""

import csv
import json
import re

import numpy as np
import pytest
import tensorflow as tf
from helpers import exhaustive_unless

from neural_alignment import config as configuration
from neural_alignment import data
from neural_alignment.data.damage import DamagedRecord, DamageList
from neural_alignment.data.sources import tfds
from neural_alignment.errors import DataError, Unavailable
from neural_alignment.training import run, stepping

EXAMPLES, BATCH, STEPS = 33, 8, 4
PNG = tf.io.encode_png(np.zeros((4, 4, 3), np.uint8)).numpy()


def load(train, validation=None, tolerate_corrupt=0, batch_size=BATCH, shuffle=True, **options):
    return data.load(
        "imagenet",
        batch_size=batch_size,
        seed=0,
        shuffle=shuffle,
        train_files=train,
        validation_files=validation or train,
        preprocessing="inception",
        image_size=8,
        shuffle_buffer=100,
        tolerate_corrupt=tolerate_corrupt,
        **options,
    )


def batches_of(dataset, steps=STEPS, **share):
    return list(dataset.train(**share).take(steps).as_numpy_iterator())


def explained(dataset, batches):
    """Returns the data set's explanation of the error during iteration, and the number of batches before it."""
    seen = []
    with pytest.raises(tf.errors.OpError) as raised:
        seen.extend(batches)
    error = dataset.explain(raised.value)
    assert isinstance(error, DataError)
    assert "\n" not in str(error)
    return str(error), len(seen)


def refused(function, *arguments, **options):
    """Returns the message of the `DataError` raised by a call."""
    with pytest.raises(DataError) as raised:
        function(*arguments, **options)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def spoil(path, tools, *spoiled):
    """Replaces the images of records by invalid bytes and returns the path as a string."""
    records = [record.numpy() for record in tf.data.TFRecordDataset(str(path))]
    for number in spoiled:
        records[number] = tools.example("image/encoded", b"this is not an image", "image/class/label", 1)
    tools.write_records(path, records)
    return str(path)


def flip_a_bit(path, number):
    """Changes the data of a record, so that its checksum is wrong."""
    lengths = [len(record.numpy()) + 16 for record in tf.data.TFRecordDataset(str(path))]
    content = bytearray(path.read_bytes())
    content[sum(lengths[:number]) + 100] ^= 1
    path.write_bytes(content)


def write_photographs(directory, tools):
    """Writes small JPEGs that are distinguishable after cropping; returns the patterns of both splits."""
    generator = np.random.default_rng(0)
    for name in ("train", "validation"):
        for shard in range(3):
            records = [
                tools.example(
                    "image/encoded",
                    tools.encode(generator.integers(0, 255, (16, 16, 3)), "JPEG"),
                    "image/class/label",
                    shard * 11 + number + 1,
                )
                for number in range(11)
            ]
            tools.write_records(directory / f"{name}-{shard:05d}-of-00003", records)
    return str(directory / "train-*"), str(directory / "validation-*")


@pytest.fixture
def photographs(files, tools):
    """The patterns of the training and validation files of this test."""
    return write_photographs(files.directory, tools)


@pytest.fixture(scope="module")
def clean(tmp_path_factory, tools):
    """Eight batches of the training files before any damage."""
    return batches_of(load(*write_photographs(tmp_path_factory.mktemp("clean"), tools)), 2 * STEPS)


def with_substitutes(batches, damaged):
    """Replaces each row with a damaged label in clean batches by the next row, wrapping around at the end."""
    for images, labels in batches:
        rows = np.arange(len(labels))
        for row in rows:
            while labels[rows[row]] in damaged:
                rows[row] = (rows[row] + 1) % len(labels)
        yield images[rows], labels[rows]


def assert_same_batches(first, second):
    for one, other in zip(first, second, strict=True):
        for array, expected in zip(one, other, strict=True):
            np.testing.assert_array_equal(array, expected)


def test_a_damaged_record_is_replaced_by_another_row_of_the_batch(photographs, files, tools, clean):
    """The labels identify the records: shard 1 contains 11 to 21."""
    path = spoil(files.directory / "train-00001-of-00003", tools, 3)
    flip_a_bit(files.directory / "train-00001-of-00003", 4)
    dataset = load(*photographs, tolerate_corrupt=2)
    result = batches_of(dataset, 2 * STEPS)
    assert_same_batches(result, with_substitutes(clean, {14, 15}))
    with pytest.raises(AssertionError):
        assert_same_batches(result, clean)
    assert [(damaged.path, damaged.record) for damaged in dataset.corrupt_records] == [(path, 3), (path, 4)]
    undecodable, changed = (damaged.reason for damaged in dataset.corrupt_records)
    assert f"the image of record 3 of {path} must be a whole JPEG" in undecodable
    assert f"record 4 of {path} must be a whole record with matching checksums; found corrupted record at" in changed


@pytest.mark.exhaustive
def test_a_damaged_record_is_replaced_by_the_same_row_for_several_workers_of_a_resumed_run(
    photographs, files, tools, clean
):
    spoil(files.directory / "train-00001-of-00003", tools, 3, 4)
    dataset, expected = load(*photographs, tolerate_corrupt=2), [*with_substitutes(clean, {14, 15})][STEPS:]
    parts = [batches_of(dataset, STEPS, start_step=STEPS, worker=worker, workers=2) for worker in (0, 1)]
    joined = [tuple(map(np.concatenate, zip(*pair, strict=True))) for pair in zip(*parts, strict=True)]
    assert_same_batches(joined, expected)


def test_a_damaged_record_counts_from_its_step_on(photographs, files, tools):
    """The count does not depend on the number of prefetched batches. The order is that of the files."""
    spoil(files.directory / "train-00002-of-00003", tools, 7)
    step = (2 * 11 + 7) // BATCH
    dataset = load(*photographs, tolerate_corrupt=5, shuffle=False)
    batches_of(dataset, 3 * STEPS)
    assert [dataset.corrupt_count(each) for each in (0, step, step + 1, 100)] == [0, 0, 1, 1]
    assert dataset.corrupt_records[0].step == step == 3


def test_the_run_stops_at_one_more_than_tolerated(photographs, files, tools):
    path = spoil(files.directory / "train-00001-of-00003", tools, 2, 5, 7)
    dataset = load(*photographs, tolerate_corrupt=2, shuffle=False)
    message, _ = explained(dataset, dataset.train().take(9))
    assert path in message
    assert message.endswith("; data.tolerate_corrupt allows 2 damaged records; found 3")
    dataset = load(*photographs, shuffle=False)
    message, before = explained(dataset, dataset.train().take(9))
    assert f"the image of record 2 of {path} must be a whole JPEG" in message
    assert before == 1  # all whole batches before it
    assert dataset.corrupt_records == []


def test_the_error_is_sufficient_to_find_the_record(photographs, files, tools):
    """No other file is read: they are deleted."""
    path = spoil(files.directory / "train-00001-of-00003", tools, 6)
    dataset = load(*photographs)
    with pytest.raises(tf.errors.OpError) as raised:
        list(dataset.train().take(9))
    for other in set(files.directory.iterdir()) - {files.directory / "train-00001-of-00003"}:
        other.unlink()
    assert f"the image of record 6 of {path} must be a whole JPEG" in str(dataset.explain(raised.value))


@pytest.mark.parametrize("fill", [pytest.param(False, marks=pytest.mark.exhaustive), True])
def test_validation_leaves_damaged_records_out(photographs, files, tools, fill):
    spoil(files.directory / "validation-00000-of-00003", tools, 1, 2)
    dataset = load(*photographs, tolerate_corrupt=2)
    for _ in range(2):
        batches = list(dataset.validation(fill=fill).as_numpy_iterator())
        labels = np.concatenate([batch[1][batch[2] == 1] if fill else batch[1] for batch in batches])
        np.testing.assert_array_equal(labels, np.delete(np.arange(EXAMPLES), [1, 2]))
        assert len(dataset.corrupt_records) == dataset.corrupt_count(0) == 2
    if fill:
        assert {batch[0].shape for batch in batches} == {(BATCH, 8, 8, 3)}
        np.testing.assert_array_equal(batches[0][2], [1, 0, 0, 1, 1, 1, 1, 1])
    message, _ = explained(load(*photographs), load(*photographs).validation(fill=fill))
    assert "data.validation_files: the image of record 1" in message


FAULTS = {
    "a label out of range": (lambda tools: tools.example("image/encoded", PNG, "image/class/label", 2000), False),
    "a missing feature": (lambda tools: tools.example("picture", PNG, "image/class/label", 1), False),
    "other content": (lambda tools: b"\xff" * 9, False),
    "an image that cannot be decoded": (
        lambda tools: tools.example("image/encoded", b"x", "image/class/label", 1),
        True,
    ),
    "a wrong checksum": (None, True),
}


PLACES = [(fault, record) for fault in FAULTS for record in (0, 5)]


@pytest.mark.parametrize(("fault", "record"), exhaustive_unless(PLACES, PLACES[::3]))
def test_only_records_that_cannot_be_read_are_unavailable_at_any_place(photographs, files, tools, fault, record):
    """Other records are wrong, so the same command cannot succeed later."""
    make, unavailable = FAULTS[fault]
    path = files.directory / "train-00000-of-00003"
    if make is None:
        flip_a_bit(path, record)
    else:
        records = [each.numpy() for each in tf.data.TFRecordDataset(str(path))]
        tools.write_records(path, [*records[:record], make(tools), *records[record + 1 :]])
    try:
        dataset = load(str(path), shuffle=False)
        with pytest.raises(tf.errors.OpError) as raised:
            batches_of(dataset, 1)
        error = dataset.explain(raised.value)
    except DataError as at_once:
        error = at_once
    assert f"record {record} of {path}" in str(error)
    assert isinstance(error, DataError)
    assert isinstance(error, Unavailable) == unavailable


def test_a_batch_with_only_damaged_records_is_an_error(photographs, files, tools):
    spoil(files.directory / "train-00000-of-00003", tools, *range(4, 8))
    dataset = load(*photographs, tolerate_corrupt=20, batch_size=4, shuffle=False)
    message, before = explained(dataset, dataset.train().take(9))
    assert "each batch must hold an intact record; found none at step 1" in message
    assert before == 1


# Truncated and vanished files.


def truncate(path, records):
    """Truncates a file in the middle of a record, so that `left` records remain."""
    lengths = [len(record.numpy()) + 16 for record in tf.data.TFRecordDataset(str(path))]
    path.write_bytes(path.read_bytes()[: sum(lengths[:records]) + lengths[records] // 2])


@pytest.mark.exhaustive
def test_records_lost_in_a_truncated_file_are_damaged(photographs, files, clean):
    path = files.directory / "train-00001-of-00003"
    truncate(path, 8)
    for examples, lost in ((None, 1), (EXAMPLES, 3)):
        message = refused(load, *photographs, train_examples=examples)
        assert f"a TFRecord file is truncated: {path} must have" in message
        dataset = load(*photographs, train_examples=examples, tolerate_corrupt=3)
        assert [damaged.record for damaged in dataset.corrupt_records] == list(range(8, 8 + lost))
        assert dataset.corrupt_count(0) == lost
    with pytest.raises(DataError, match=r"data\.tolerate_corrupt allows 2 damaged records; found 3"):
        load(*photographs, train_examples=EXAMPLES, tolerate_corrupt=2)
    assert dataset.train_examples == EXAMPLES  # steps per epoch, rates and order are those of the whole files
    assert_same_batches(batches_of(dataset), with_substitutes(clean[:STEPS], {19, 20, 21}))
    assert len(dataset.corrupt_records) == 3


@pytest.mark.exhaustive
@pytest.mark.parametrize("change", ["removed", "truncated"])
def test_a_file_that_is_damaged_while_it_is_used(photographs, files, clean, change):
    dataset, strict = load(*photographs, tolerate_corrupt=11), load(*photographs, tolerate_corrupt=4)
    path = files.directory / "train-00001-of-00003"
    if change == "removed":
        path.unlink()
        damaged = set(range(11, 22))
    else:
        truncate(path, 5)
        damaged = set(range(16, 22))
    assert_same_batches(batches_of(dataset, 2 * STEPS), with_substitutes(clean, damaged))
    met = damaged & set(np.concatenate([labels for _, labels in clean]))  # an epoch leaves one record out
    assert {11 + each.record for each in dataset.corrupt_records} == met
    message, _ = explained(strict, strict.train().take(20))
    assert str(path) in message
    assert "tolerate_corrupt allows 4 damaged records" in message


# The list of damaged records.


@pytest.mark.exhaustive
def test_the_list_of_damaged_records_survives_json(photographs, files, tools):
    spoil(files.directory / "train-00001-of-00003", tools, 3)
    dataset, resumed = (load(*photographs, tolerate_corrupt=1) for _ in range(2))
    batches_of(dataset, 2 * STEPS)
    resumed.load_corrupt(json.loads(json.dumps(dataset.corrupt_state())))
    assert resumed.corrupt_records == dataset.corrupt_records != []
    batches_of(resumed, STEPS, start_step=STEPS)
    assert resumed.corrupt_records == dataset.corrupt_records  # met again, counted once
    with pytest.raises(DataError, match=r"data\.tolerate_corrupt allows 1 damaged"):
        resumed.load_corrupt([["another", 0, "damaged", 5]])


@pytest.mark.exhaustive
def test_a_damaged_record_counts_once_if_the_files_are_moved(photographs, files, tools):
    """The list of the run names the earlier path, also in the form of earlier versions, which is the same."""
    path = spoil(files.directory / "train-00001-of-00003", tools, 3)
    dataset = load(*photographs, tolerate_corrupt=1)
    batches_of(dataset, 2 * STEPS)
    moved = files.directory / "moved"
    moved.mkdir()
    for file in files.directory.glob("*-of-*"):
        file.rename(moved / file.name)
    resumed = load(*(pattern.replace(str(files.directory), str(moved)) for pattern in photographs), tolerate_corrupt=1)
    resumed.load_corrupt(json.loads(json.dumps(dataset.corrupt_state())))
    batches_of(resumed, STEPS, start_step=STEPS)
    assert resumed.corrupt_records == dataset.corrupt_records
    assert resumed.corrupt_records[0].path == path


MOVED = {
    "the class folder": ("/old/train/cat/1.jpg", "In `train_folder`: damaged", "/new/train/cat/1.jpg"),
    "the split": ("/old/val/cat/1.jpg", "In `validation_folder`: damaged", "/new/val/cat/1.jpg"),
    "another class": ("/old/train/cow/1.jpg", "In `train_folder`: damaged", None),
    "an unchanged path": ("/new/val/dog/1.jpg", "damaged", "/new/val/dog/1.jpg"),
    "a part of a name": ("/old/train/bobcat/1.jpg", "In `train_folder`: damaged", None),
}


@pytest.mark.parametrize("name", MOVED)
def test_a_moved_image_file_is_found_by_its_class_and_its_split(name):
    before, reason, now = MOVED[name]
    damage = DamageList(9)
    for split, key in (("train", "`train_folder`"), ("val", "`validation_folder`")):
        damage.add_files(key, [f"/new/{split}/{animal}/1.jpg" for animal in ("cat", "dog")], f"/new/{split}")
    damage.load([[before, 0, reason, 3]])
    assert damage.records == [DamagedRecord(before, 0, reason, 3)]
    places = [f"/new/{split}/{animal}/1.jpg" for split in ("train", "val") for animal in ("cat", "dog")]
    known = [place for place in places if not damage.add(DamagedRecord(place, 0, "found again", 1))]
    assert known == ([now] if now else [])


def test_a_moved_file_of_records_is_found_by_its_name():
    damage = DamageList(9)
    damage.add_files("`train_files`", ["/new/a/0", "/new/b/0", "/new/b/1"])
    damage.load([["/old/b/0", 3, "In `train_files`: damaged", 2], ["/old/c/1", 3, "damaged", 2]])
    assert not damage.add(DamagedRecord("/new/b/0", 3, "found again", 1))
    assert not damage.add(DamagedRecord("/new/b/1", 3, "found again", 1))
    assert damage.add(DamagedRecord("/new/a/0", 3, "new", 1))
    assert damage.add(DamagedRecord("/new/b/1", 4, "new", 1))


@pytest.mark.parametrize("state", [3, "abc", [["path", "1", "reason", 0]], [["path", 1]], [{"path": 1}], [None]])
def test_a_wrong_list_is_refused(state):
    with pytest.raises(DataError, match="corrupt_records: must be lists of path, record, reason and step; found"):
        DamageList(9).load(state)


def test_a_damaged_record_is_listed_once_with_its_first_step():
    damage = DamageList(1)
    for step in (7, 3, 5):
        damage.add(DamagedRecord("file", 1, f"met at {step}", step))
    assert damage.records == [DamagedRecord("file", 1, "met at 7", 3)]
    assert not damage.exceeds_limit


@pytest.mark.parametrize("value", [-1, 1.0, True, "many"])
def test_wrong_tolerance(photographs, value):
    with pytest.raises(DataError, match=r"data\.tolerate_corrupt: input should be "):
        load(*photographs, tolerate_corrupt=value)


# In memory.


def toy(files, tools, spoiled, content=b"no image"):
    """A prepared set of 30 images in two files. Both splits are equal, except for one damaged training record."""
    images = np.random.default_rng(1).integers(0, 256, (30, 6, 6, 3), np.uint8)
    directory = files.tfds([tools.encode(image) for image in images], np.arange(30), dimensions=(6, 6, 3), classes=30)
    path = files.directory / "tfds/toy/1.0.0/toy-train.tfrecord-00001-of-00002"
    if spoiled:
        records = [record.numpy() for record in tf.data.TFRecordDataset(str(path))]
        records[spoiled - 15] = tools.example("image", content, "label", 0)
        tools.write_records(path, records)
    return directory, path, images


def load_toy(directory, **options):
    options = {"dataset": "toy", "download": False, "data_dir": directory, "standardize": False, **options}
    return data.load("tfds", batch_size=10, seed=0, **options)


@pytest.mark.exhaustive
def test_in_memory_a_damaged_record_is_replaced_as_in_a_stream(files, tools):
    directory, path, _ = toy(files, tools, spoiled=22)
    message = refused(load_toy, directory)
    assert f"the image of record 7 of {path} must be a whole JPEG" in message
    dataset = load_toy(directory, tolerate_corrupt=1)
    assert isinstance(dataset, data.InMemory)
    assert dataset.train_examples == 30
    assert [damaged.record for damaged in dataset.corrupt_records] == [7]
    assert dataset.corrupt_count(0) == 1
    seen = np.concatenate([labels for _, labels in batches_of(dataset, 3)])
    expected = np.concatenate([labels for _, labels in with_substitutes(batches_of(whole(directory, tools)), {22})])[
        :30
    ]
    np.testing.assert_array_equal(seen, expected)
    halves = [batches_of(dataset, 3, worker=worker, workers=2) for worker in (0, 1)]
    np.testing.assert_array_equal(
        np.concatenate([np.concatenate([a[1], b[1]]) for a, b in zip(*halves, strict=True)]), seen
    )


def whole(directory, tools):
    """Compares with the same data set without damage: only the damaged record differs."""
    path = tf.io.gfile.join(directory, "toy/1.0.0/toy-train.tfrecord-00001-of-00002")
    records = [record.numpy() for record in tf.data.TFRecordDataset(path)]
    records[7] = tools.example("image", tools.encode(np.zeros((6, 6, 3))), "label", 22)
    tools.write_records(path, records)
    return load_toy(directory)


@pytest.mark.parametrize("fill", [False, pytest.param(True, marks=pytest.mark.exhaustive)])
def test_in_memory_validation_leaves_damaged_records_out(files, tools, fill):
    directory, _, images = toy(files, tools, spoiled=22)
    dataset = load_toy(directory, train_split="test", validation_split="train", tolerate_corrupt=1)
    batches = list(dataset.validation(fill=fill).as_numpy_iterator())
    kept = [batch[2] == 1 if fill else np.ones(len(batch[1]), bool) for batch in batches]
    labels = np.concatenate([batch[1][rows] for batch, rows in zip(batches, kept, strict=True)])
    np.testing.assert_array_equal(labels, np.delete(np.arange(30), 22))
    pixels = np.concatenate([batch[0][rows] for batch, rows in zip(batches, kept, strict=True)])
    np.testing.assert_allclose(pixels * 255, np.delete(images, 22, axis=0), atol=1e-4)


@pytest.mark.exhaustive
def test_an_animated_webp_of_a_prepared_set_is_damaged(files, tools, monkeypatch):
    directory, _, _ = toy(files, tools, spoiled=22, content=tools.animated_webp("RGB"))
    for limit in (tfds.MAX_BYTES_IN_MEMORY, 0):
        monkeypatch.setattr(tfds, "MAX_BYTES_IN_MEMORY", limit)
        dataset = load_toy(directory, tolerate_corrupt=1)
        batches_of(dataset, 3)
        (damaged,) = dataset.corrupt_records
        assert damaged.record == 7
        assert "must be a whole JPEG, PNG, WebP (not animated), GIF or BMP; found" in damaged.reason


@pytest.mark.exhaustive
def test_a_missing_file_of_a_prepared_set(files, tools, monkeypatch):
    """The metadata contain the number of records."""
    directory, path, _ = toy(files, tools, spoiled=None)
    path.unlink()
    message = refused(load_toy, directory)
    assert f": a file is missing: {path}" in message
    for limit in (tfds.MAX_BYTES_IN_MEMORY, 0):
        monkeypatch.setattr(tfds, "MAX_BYTES_IN_MEMORY", limit)
        dataset = load_toy(directory, tolerate_corrupt=15)
        assert [each.record for each in dataset.corrupt_records] == list(range(15))
        assert set(np.concatenate([labels for _, labels in batches_of(dataset, 3)])) <= set(range(15))
    with pytest.raises(DataError, match="tolerate_corrupt allows 14 damaged records; found 15"):
        load_toy(directory, tolerate_corrupt=14)


# In a run.


def plan(photographs, tolerate_corrupt):
    train, validation = photographs
    return configuration.parse(
        {
            "epochs": 2,
            "batch_size": BATCH,
            "data": {
                "source": "imagenet",
                "train_files": train,
                "validation_files": validation,
                "preprocessing": "inception",
                "image_size": 8,
                "shuffle_buffer": 100,
                "tolerate_corrupt": tolerate_corrupt,
            },
            "model": {"name": "fc", "hidden": [4]},
            "optimization": {"forward": {"name": "momentum", "learning_rate": 0.02}},
            "evaluation": {"every_epochs": 1, "probe_examples": 0},
            "logging": {"tensorboard": False},
            "checkpoints": {"every_steps": 1},
        }
    )


def counted(directory):
    """The number of damaged records in each row of metrics.csv."""
    with (directory / "metrics.csv").open() as file:
        return [int(float(row["corrupt_records"])) for row in csv.DictReader(file)]


def stop_at(patch, step):
    original = stepping.Stepper.__call__

    def stopping(self, limit):
        if int(self._model.optimizer.iterations) == step:
            raise KeyboardInterrupt
        return original(self, limit)

    patch.setattr(stepping.Stepper, "__call__", stopping)


@pytest.mark.exhaustive
@pytest.mark.exhaustive
@pytest.mark.parametrize("fails_first", [False, True])
def test_a_run_counts_damaged_records_in_its_metrics_and_once_when_it_is_resumed(
    photographs, files, tools, clean, monkeypatch, tmp_path, fails_first
):
    """A run stops at one record more than it tolerates; with more tolerance it is resumed, stopped and resumed."""
    path = spoil(files.directory / "train-00001-of-00003", tools, 3, 6)
    steps = [next(step for step, (_, labels) in enumerate(clean) if 11 + record in labels) for record in (3, 6)]
    if fails_first:
        with pytest.raises(DataError, match=f"{re.escape(path)}.*allows 1 damaged records; found 2"):
            run.train(plan(photographs, 1), tmp_path / "run")
        assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "failed"
    with monkeypatch.context() as patch:
        stop_at(patch, STEPS + 2)
        with pytest.raises(KeyboardInterrupt):
            run.train(plan(photographs, 2), tmp_path / "run", resume=True)
    run.train(plan(photographs, 2), tmp_path / "run", resume=True)
    assert counted(tmp_path / "run") == [sum(step < end for step in steps) for end in (0, STEPS, 2 * STEPS)]
    kept = json.loads((tmp_path / "run" / "corrupt_records.json").read_text())
    assert sorted((name, record, step) for name, record, _, step in kept) == [(path, 3, steps[0]), (path, 6, steps[1])]
