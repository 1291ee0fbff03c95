"""Resuming in the middle of an epoch, the quality of the order, and the division of batches among workers."""

import numpy as np
import pytest
import tensorflow as tf

from neural_alignment import data
from neural_alignment.data import pipeline, records
from neural_alignment.data.order import Order
from neural_alignment.errors import DataError

# The order.


def blocks_of(sizes):
    sizes = np.array(sizes)
    return np.stack([np.cumsum(sizes) - sizes, sizes], axis=-1)


def epoch_order(order, epoch):
    """The records of an epoch, in order."""
    stream, places = order.stream(tf.constant(epoch, tf.int64)), np.arange(order.used)
    parts = []
    for window in range(order.windows):
        own = tf.constant(places[places // order.window == window])
        index = order.in_window(tf.constant(epoch, tf.int64), tf.constant(window, tf.int64), own)
        parts.append(stream.records(window * order.window + index).numpy())
    return np.concatenate(parts)


def test_an_epoch_is_a_permutation_that_separates_neighbours():
    """20,480 records in blocks of 32, windows of 2,048: neighbours are drawn independently within a window."""
    order = Order(blocks_of([32] * 640), 20480, 20480, window=2048, seed=3, shuffle=True)
    epochs = [epoch_order(order, epoch) for epoch in range(2)]
    blocks_alone = order.stream(tf.constant(0, tf.int64)).records(tf.range(20480, dtype=tf.int64)).numpy()

    def adjacent(seen):
        """Returns the fraction of neighbours in the run that are neighbours in the files."""
        return np.mean(np.abs(np.diff(seen)) == 1)

    for seen in epochs:
        np.testing.assert_array_equal(np.sort(seen), np.arange(20480))
        place = np.argsort(seen)
        apart = np.abs(np.diff(place))[np.arange(20479) % 32 != 31]  # neighbours of one block
        assert 0.95 < apart.mean() / (2048 / 3) < 1.05  # of two places drawn at random
        assert adjacent(seen) < 0.005
        batches = seen.reshape(-1, 256) // 32
        assert min(len(set(batch)) for batch in batches) > 55  # of the 64 blocks of a window
        assert abs(np.corrcoef(np.arange(20480), seen)[0, 1]) < 0.2
    assert adjacent(blocks_alone) > 0.9  # to permute the blocks alone does not do
    assert np.mean(epochs[0] == epochs[1]) < 0.01


def test_any_position_of_an_epoch_is_computed_directly():
    """Blocks and windows of uneven sizes, and an epoch that leaves some records out."""
    sizes = [5, 1, 5, 5, 3, 4, 5]
    order = Order(blocks_of(sizes), 27, 24, window=7, seed=1, shuffle=True)
    for epoch in range(3):
        expected = epoch_order(order, epoch)
        assert len(set(expected)) == 24
        found = [order.record(tf.constant(epoch * 24 + place, tf.int64)).numpy() for place in range(24)]
        np.testing.assert_array_equal(found, expected)


def test_runs_cover_a_part_of_the_stream_and_no_more():
    order = Order(blocks_of([5, 1, 5, 5, 3, 4, 5]), 28, 28, window=7, seed=1, shuffle=True)
    stream = order.stream(tf.constant(2, tf.int64))
    whole = stream.records(tf.range(28, dtype=tf.int64)).numpy()
    for begin, end in ((0, 28), (7, 21), (13, 14), (0, 5)):
        runs = [(int(first), int(count)) for first, count in stream.runs(tf.constant(begin, tf.int64), end)]
        covered = np.concatenate([np.arange(first, first + count) for first, count in runs])
        np.testing.assert_array_equal(covered, whole[begin:end])


# Resuming.

EXAMPLES, BATCH, WINDOW = 160, 16, 32
STEPS = EXAMPLES // BATCH


@pytest.fixture
def shards(files):
    return files.imagenet(shards=4, per_shard=EXAMPLES // 4)


def load(pattern, files, shuffle=True, batch_size=BATCH, **options):
    validation = files.imagenet("validation", shards=2, per_shard=27)
    return data.load(
        "imagenet",
        batch_size=batch_size,
        seed=0,
        shuffle=shuffle,
        train_files=pattern,
        validation_files=validation,
        preprocessing="inception",
        image_size=8,
        shuffle_buffer=2 * WINDOW,
        **options,
    )


@pytest.mark.exhaustive
@pytest.mark.parametrize("shuffle", [True, False])
def test_resuming_reads_at_most_one_window_again(shards, files, tools, monkeypatch, shuffle):
    """The earlier records are overwritten, and all reads are recorded."""
    monkeypatch.setattr(records, "BLOCK_RECORDS", 4)
    dataset = load(shards, files, shuffle)
    run = list(dataset.train().take(STEPS).as_numpy_iterator())
    numbers = np.concatenate([tools.numbers_of(images) for images, _ in run])
    start = 7
    window = WINDOW if shuffle else BATCH
    needed = numbers[start * BATCH // window * window :]
    assert len(needed) <= len(numbers) - start * BATCH + WINDOW
    per_shard = EXAMPLES // 4
    for shard in range(4):
        path = files.directory / f"train-{shard:05d}-of-00004"
        lengths = [len(record.numpy()) + 16 for record in tf.data.TFRecordDataset(str(path))]
        content, begins = bytearray(path.read_bytes()), np.cumsum([0, *lengths])
        for record in set(range(per_shard)) - set(needed - shard * per_shard):
            content[begins[record] : begins[record + 1]] = bytes(lengths[record])
        path.write_bytes(content)
    read = []
    run_or_pieces = records.TFRecords._run_or_pieces

    def recorded(self, first, count):
        with tf.control_dependencies([tf.numpy_function(lambda *run: read.append(run), [first, count], [])]):
            return run_or_pieces(self, tf.identity(first), count)

    monkeypatch.setattr(records.TFRecords, "_run_or_pieces", recorded)
    resumed = dataset.train(start).take(STEPS - start).as_numpy_iterator()
    first = next(resumed)
    # All other prefetched records belong to the next epoch and come after this one.
    of_epoch = [(record, count) for record, count in list(read)[: len(needed) // 4]]
    assert {record + place for record, count in of_epoch for place in range(count)} <= set(needed)
    assert len(of_epoch) >= window // 4
    assert_same_batches([first, *resumed], run[start:])
    with pytest.raises(tf.errors.OpError):  # a run from the start needs the overwritten records
        list(dataset.train().take(1))


def assert_same_batches(first, second):
    for one, other in zip(first, second, strict=True):
        for array, expected in zip(one, other, strict=True):
            np.testing.assert_array_equal(array, expected)


# Workers.


def in_memory(batch_size):
    generator = np.random.default_rng(0)
    arrays = pipeline.Examples(generator.integers(0, 256, (54, 9, 9, 3), np.uint8), np.arange(54))
    return pipeline.InMemory(
        pipeline.Batching(batch_size, 1, True, 8), arrays, arrays, classes=54, scale=255.0, augment="crop_flip"
    )


def streamed(batch_size, files, tools, monkeypatch):
    images = np.random.default_rng(0).integers(0, 256, (54, 9, 9, 3), np.uint8)
    directory = files.tfds([tools.encode(image) for image in images], np.arange(54), dimensions=(9, 9, 3), classes=54)
    monkeypatch.setattr(data.sources.tfds, "MAX_BYTES_IN_MEMORY", 0)
    return data.load(
        "tfds",
        batch_size=batch_size,
        validation_batch_size=8,
        seed=1,
        dataset="toy",
        data_dir=directory,
        download=False,
        augment="crop_flip",
        shuffle_buffer=20,
    )


@pytest.fixture(params=["in memory", "streamed"])
def shared(request, files, tools, monkeypatch):
    """A data set of 54 examples, augmented, with batches of 8."""
    return in_memory(8) if request.param == "in memory" else streamed(8, files, tools, monkeypatch)


def test_workers_together_get_the_batches_of_a_single_worker(shared):
    alone = list(shared.train(3).take(5).as_numpy_iterator())
    workers = [shared.train(3, worker, workers=2) for worker in range(2)]
    for dataset in workers:
        assert dataset.element_spec[0].shape == (4, 9, 9, 3)
        policy = dataset.options().experimental_distribute.auto_shard_policy
        assert policy == tf.data.experimental.AutoShardPolicy.OFF
    parts = zip(*(dataset.take(5).as_numpy_iterator() for dataset in workers), strict=True)
    assert_same_batches([tuple(map(np.concatenate, zip(*part, strict=True))) for part in parts], alone)


@pytest.mark.exhaustive
@pytest.mark.exhaustive
@pytest.mark.parametrize("workers", [1, 2])
def test_validation_over_workers_counts_every_example_once(shared, workers):
    alone = list(shared.validation().as_numpy_iterator())
    filled = [list(shared.validation(worker, workers, fill=True).as_numpy_iterator()) for worker in range(workers)]
    bare = [list(shared.validation(worker, workers).as_numpy_iterator()) for worker in range(workers)]
    assert {len(batches) for batches in filled} == {len(alone)} == {7}
    assert {batch[0].shape for batches in filled for batch in batches} == {(8 // workers, 9, 9, 3)}
    for step, (images, labels) in enumerate(alone):
        parts = [np.concatenate(arrays) for arrays in zip(*(batches[step] for batches in filled), strict=True)]
        np.testing.assert_array_equal(parts[2], np.arange(8) < len(labels))
        assert parts[2].dtype == np.float32
        np.testing.assert_array_equal(parts[0][: len(labels)], images)
        np.testing.assert_array_equal(parts[1][: len(labels)], labels)
        assert not parts[0][len(labels) :].any()
    assert sorted(label for batches in bare for _, labels in batches for label in labels) == list(range(54))


@pytest.mark.exhaustive
def test_a_worker_decodes_only_its_own_rows(shards, files, tools):
    """An undecodable record stops only the worker that processes its row."""
    records_of = [record.numpy() for record in tf.data.TFRecordDataset(str(files.directory / "train-00000-of-00004"))]
    records_of[10] = tools.example("image/encoded", b"no image", "image/class/label", 1)
    tools.write_records(files.directory / "train-00000-of-00004", records_of)
    dataset = load(shards, files, shuffle=False)
    assert len(list(dataset.train(worker=0, workers=2).take(3))) == 3
    with pytest.raises(tf.errors.OpError) as raised:
        list(dataset.train(worker=1, workers=2).take(1))
    assert "the image of record 10" in str(dataset.explain(raised.value))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((0, 3), "batch_size: must be a multiple of the number of workers (3); found 8"),
        ((2, 2), "worker: must be less than the number of workers (2); found 2"),
        ((0, 0), "workers: must be an integer, 1 or more; found 0"),
        ((-1, 2), "worker: must be an integer, 0 or more; found -1"),
    ],
)
def test_wrong_workers(options, message):
    for make, name in ((in_memory(8).train, "batch_size"), (in_memory(8).validation, "validation_batch_size")):
        with pytest.raises(DataError) as raised:
            make(**dict(zip(("worker", "workers"), options, strict=True)))
        assert str(raised.value) == message.replace("batch_size", name)
