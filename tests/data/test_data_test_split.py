"""A run that evaluates another split of its data beside the validation split."""

import json
import types
from typing import ClassVar, Literal

import keras
import numpy as np
import pytest

from neural_alignment import config as configuration
from neural_alignment import data
from neural_alignment.data.sources import tfds
from neural_alignment.errors import ConfigError, DataError
from neural_alignment.training import load_model, run
from neural_alignment.training.metrics import MetricsFile
from neural_alignment.training.preparation import prepare

PLAN = {
    "epochs": 2,
    "batch_size": 8,
    "model": {"name": "fc", "hidden": [5]},
    "optimization": {"forward": {"name": "momentum", "learning_rate": 0.2}},
    "evaluation": {"batch_size": 5, "test_split": "test[:12]"},
    "logging": {"tensorboard": False},
}


@pytest.fixture
def toy(files, tools):
    """A configuration with 30 noise images, the same in both splits. The images encode the labels."""
    images = np.random.default_rng(0).integers(0, 120, (30, 6, 6, 1), np.uint8)
    labels = np.arange(30) % 3
    images[np.arange(30), labels, 0] = 255
    folder = files.tfds([tools.encode(image) for image in images], labels, dimensions=(6, 6, 1), classes=3)
    source = {"source": "tfds", "dataset": "toy", "data_dir": folder, "standardize": False}
    source |= {"train_split": "train[10:]", "validation_split": "train[:10]"}
    return {**PLAN, "data": source, "evaluation": dict(PLAN["evaluation"])}, images, labels


@pytest.mark.parametrize("standardize", [pytest.param(False, marks=pytest.mark.exhaustive), True])
def test_every_row_contains_the_metrics_of_the_model_on_the_test_split(toy, tmp_path, standardize):
    plan, images, labels = toy
    plan["data"]["standardize"] = standardize
    run.train(configuration.parse(plan), tmp_path / "run")
    rows = MetricsFile(str(tmp_path / "run" / "metrics.csv")).rows()
    assert [row["step"] for row in rows] == [0, 2, 4]
    assert np.isnan(rows[0]["test_top1"])
    model = load_model(tmp_path / "run" / "model.keras")
    x, training = (part.astype(np.float32) for part in (images[:12], images[10:]))
    x = (x - training.mean()) / training.std() if standardize else x / 255
    logits = model.predict(x, verbose=0)
    assert rows[-1]["test_top1"] == pytest.approx(np.mean(np.argmax(logits, 1) == labels[:12]), abs=1e-6)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)(labels[:12], logits)
    assert rows[-1]["test_J"] == pytest.approx(float(loss), rel=1e-5)
    assert rows[-1]["test_J"] != pytest.approx(rows[-1]["J"], rel=1e-3)
    if standardize:
        del plan["evaluation"]["test_split"]
        run.train(configuration.parse(plan), tmp_path / "without")
        without = MetricsFile(str(tmp_path / "without" / "metrics.csv")).rows()
        assert not any(name.startswith("test_") for name in without[0])
        assert [row["J"] for row in without[1:]] == [row["J"] for row in rows[1:]]  # It changes nothing.


def test_a_missing_split_is_rejected_in_one_line_without_leftovers(toy, tmp_path):
    plan, _, _ = toy
    with pytest.raises(ConfigError, match=r"evaluation.test_split: must be null with data.source digits.*found 'test"):
        configuration.parse({**plan, "data": {"source": "digits"}})
    plan["evaluation"] = {"test_split": "tset"}
    with pytest.raises(DataError, match="tset") as error:
        run.train(configuration.parse(plan), tmp_path / "run")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_split_with_another_standardisation_is_rejected(toy, tmp_path, monkeypatch):
    """One split is in memory, standardised by the training images; the other is streamed, scaled to [-1, 1]."""
    plan, _, _ = toy
    config = configuration.parse({**plan, "data": {**plan["data"], "standardize": True}})
    streamed = types.SimpleNamespace(center=np.float32(127.5), scale=np.float32(127.5))
    monkeypatch.setattr(run.setup, "load_test_data", lambda *_: streamed)
    with pytest.raises(ConfigError, match=r"test_split: must be held in memory.*; found 'test\[:12\]'"):
        run.train(config, tmp_path / "run")


@pytest.mark.parametrize("limit", [0, 30 * 36 - 1], ids=["streamed", "only the test split in memory"])
def test_options_for_training_do_not_concern_the_test_split(toy, monkeypatch, limit):
    """`shuffle_buffer` is for streamed sets. The test split and a batch of training images may fit into memory."""
    monkeypatch.setattr(tfds, "MAX_BYTES_IN_MEMORY", limit)
    plan, _, _ = toy
    plan["data"] |= {"shuffle_buffer": 4, "train_split": "train[10:]+train[:10]", "validation_split": "train[:10]"}
    options = configuration.parse(plan).data
    batching = data.Batching(8, validation_batch_size=5, seed=0)
    assert isinstance(options.load(batching), data.Streamed)
    test = options.for_test("test[:12]", 8)
    assert test.train_split == "train[:8]"
    assert isinstance(test.load(batching), data.Streamed if limit == 0 else data.InMemory)


def test_replaced_labels_do_not_concern_the_test_split(toy, monkeypatch):
    plan, _, _ = toy
    monkeypatch.setattr(tfds, "MAX_BYTES_IN_MEMORY", 30 * 36)
    plan["data"] |= {"replace_labels": 0.5, "train_split": "train[:20]", "validation_split": "train[20:]"}
    options = configuration.parse({**plan, "data": {**plan["data"], "standardize": True}}).data
    batching = data.Batching(8, validation_batch_size=5, seed=0)
    assert isinstance(options.load(batching), data.InMemory)
    assert isinstance(options.for_test("test[:12]", 8).load(batching), data.Streamed)


class Split(data.SourceOptions):
    """Noise images with three splits. It has no option `standardize`."""

    has_splits: ClassVar[bool] = True

    source: Literal["split"]
    split: str = "validation"

    def load(self, batching):
        images = np.random.default_rng(len(self.split)).integers(0, 255, (16, 4, 4, 1), np.uint8)
        examples = data.Examples(images, np.arange(16) % 4)
        return data.InMemory(batching, examples, examples, classes=4, scale=255.0 if self.split != "other" else 1.0)

    def for_test(self, split, examples):
        return self.model_copy(update={"split": split})


@pytest.fixture
def own_source():
    """The configuration of a run on a registered source."""
    data.SOURCES.register(Split)
    yield {**PLAN, "data": {"source": "split"}, "evaluation": {"test_split": "test", "probe_examples": 0}}
    del data.SOURCES["split"]


def test_a_source_of_the_user_may_have_a_test_split(own_source):
    prepared = prepare(configuration.parse(own_source))
    assert isinstance(prepared.test, data.InMemory)
    own_source["evaluation"]["test_split"] = "other"
    with pytest.raises(ConfigError, match=r"standardised like these: .*; found 'other'"):
        prepare(configuration.parse(own_source))


@pytest.fixture
def spoil(toy, files, tools):
    """Damages a record among the first 15 of a split of `toy`. Returns the path of its file."""
    _, images, labels = toy

    def spoil(split, record):
        path = files.directory / f"tfds/toy/1.0.0/toy-{split}.tfrecord-00000-of-00002"
        encoded = [tools.encode(image) for image in images[:15]]
        encoded[record] = b"no image"
        records = [tools.example("image", i, "label", y) for i, y in zip(encoded, labels, strict=False)]
        tools.write_records(path, records)
        return path

    return spoil


@pytest.mark.exhaustive
@pytest.mark.exhaustive
@pytest.mark.parametrize("limit", [10**9, 0], ids=["in memory", "streamed"])
def test_damaged_records_of_both_splits_count_together(toy, spoil, tmp_path, monkeypatch, caplog, limit):
    monkeypatch.setattr(tfds, "MAX_BYTES_IN_MEMORY", limit)
    plan, images, labels = toy
    plan["data"]["tolerate_corrupt"] = 1
    path = str(spoil("test", 5))
    run.train(configuration.parse(plan), tmp_path / "run")
    assert len([line for line in caplog.messages if line.startswith(f"Skipped record 5 of {path}")]) == 1
    last = MetricsFile(str(tmp_path / "run" / "metrics.csv")).rows()[-1]
    assert last["corrupt_records"] == 1
    assert [entry[:2] for entry in json.loads((tmp_path / "run" / "corrupt_records.json").read_text())] == [[path, 5]]
    intact = np.delete(np.arange(12), 5)
    logits = load_model(tmp_path / "run" / "model.keras").predict(images[intact] / np.float32(255), verbose=0)
    assert last["test_top1"] == pytest.approx(np.mean(np.argmax(logits, 1) == labels[intact]), abs=1e-6)
    spoil("train", 12)
    with pytest.raises(DataError, match=r"data\.tolerate_corrupt allows 1 damaged records; found 2"):
        run.train(configuration.parse(plan), tmp_path / "second")


@pytest.mark.exhaustive
@pytest.mark.parametrize("record", [5, 11])
def test_a_damaged_record_of_the_test_split_is_named(toy, spoil, tmp_path, monkeypatch, record):
    """The validation split has ten records; record 5 of them is intact."""
    monkeypatch.setattr(tfds, "MAX_BYTES_IN_MEMORY", 0)
    plan, _, _ = toy
    path = spoil("test", record)
    with pytest.raises(DataError, match=f"the image of record {record} of {path} must be a whole JPEG") as error:
        run.train(configuration.parse(plan), tmp_path / "run")
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (status["state"], status["reason"]) == ("failed", str(error.value))
