"""Decoded examples that stay in memory: the same data, decoded once, and never of other files."""

import os

import numpy as np
import pytest

from neural_alignment import data
from neural_alignment.data import kept
from neural_alignment.data.kept import examples_kept
from neural_alignment.data.sources import tfds


@pytest.fixture
def decodings(monkeypatch):
    """Counts the splits that are decoded."""
    counted = []

    def read(records, shape):
        counted.append(records.name)
        return original(records, shape)

    original = tfds.read_into_memory
    monkeypatch.setattr(tfds, "read_into_memory", read)
    return counted


@pytest.fixture
def toy(files, tools):
    """Returns the data directory of a set of 24 images, and a function that loads it."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (24, 6, 6, 3), np.uint8)
    directory = files.tfds([tools.encode(image) for image in images], np.arange(24) % 10, dimensions=(6, 6, 3))

    def load(**options):
        return data.load("tfds", batch_size=8, **{"seed": 0, "dataset": "toy", "data_dir": directory, **options})

    return files.directory / "tfds/toy/1.0.0", load


def batches_of(dataset):
    taken = [*dataset.train().take(4).as_numpy_iterator(), *dataset.validation().as_numpy_iterator()]
    return [array for batch in taken for array in batch]


def assert_same(first, second):
    for one, other in zip(batches_of(first), batches_of(second), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_second_run_gets_the_same_data_without_decoding(toy, decodings):
    _, load = toy
    with examples_kept():
        load(seed=1)
        again = load(seed=2, replace_labels=0.5, augment="crop_flip")
        assert len(decodings) == 2
    assert_same(again, load(seed=2, replace_labels=0.5, augment="crop_flip"))
    assert len(decodings) == 4  # Nothing is kept outside of the context.


def test_other_records_sizes_and_files_are_decoded(toy, decodings):
    folder, load = toy
    with examples_kept():
        load()
        load(train_split="train[:16]")
        assert len(decodings) == 3
        load(image_size=3)
        assert len(decodings) == 5
        [path, _] = sorted(folder.glob("toy-train*"))
        os.utime(path, ns=(1, 1))
        load()
        assert len(decodings) == 6


def test_damaged_examples_are_not_kept(toy, decodings):
    folder, load = toy
    [path, _] = sorted(folder.glob("toy-train*"))
    content = bytearray(path.read_bytes())
    content[40] ^= 0xFF  # In the first record.
    path.write_bytes(content)
    with examples_kept():
        counts = [load(tolerate_corrupt=3).corrupt_count(0) for _ in range(2)]
    assert counts == [1, 1]
    assert len(decodings) == 3


def test_the_oldest_images_are_dropped(toy, decodings, monkeypatch):
    _, load = toy
    monkeypatch.setattr(kept, "MAX_BYTES", 24 * 6 * 6 * 3)
    with examples_kept():
        load()
        load()
    assert len(decodings) == 4
