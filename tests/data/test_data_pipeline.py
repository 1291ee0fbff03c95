"""Both pipelines: every example occurs once, order and pixels depend on the seed, runs resume at any step."""

import itertools

import numpy as np
import pytest
import tensorflow as tf

from neural_alignment import data
from neural_alignment.data import pipeline
from neural_alignment.data.order import permuted
from neural_alignment.errors import DataError

EXAMPLES = 53


def take(dataset, count):
    return [(images.numpy(), labels.numpy()) for images, labels in dataset.take(count)]


def assert_same_batches(first, second):
    for (images, labels), (other_images, other_labels) in zip(first, second, strict=True):
        np.testing.assert_array_equal(images, other_images)
        np.testing.assert_array_equal(labels, other_labels)


def in_memory(batch_size=8, seed=0, shuffle=True, validation_batch_size=None, **options):
    """Image n has the value n in every pixel and the label n % 10."""
    numbers = np.arange(EXAMPLES, dtype=np.uint8)
    arrays = pipeline.Examples(np.broadcast_to(numbers[:, None, None, None], (EXAMPLES, 6, 5, 2)).copy(), numbers % 10)
    batching = pipeline.Batching(batch_size, seed, shuffle, validation_batch_size)
    return pipeline.InMemory(batching, arrays, arrays, classes=10, **options)


@pytest.fixture(scope="module")
def streamed(tmp_path_factory, tools):
    """Builds a data set of 53 identity images in 4 files; image n has label n % 10."""
    files = tools.Files(tmp_path_factory.mktemp("streamed"))
    for name in ("train", "validation"):
        files.imagenet(name, shards=4, per_shard=13)
        shard = files.directory / f"{name}-00003-of-00004"
        records = [record.numpy() for record in tf.data.TFRecordDataset(str(shard))]
        files.imagenet("last", shards=1, per_shard=EXAMPLES)
        last = [record.numpy() for record in tf.data.TFRecordDataset(str(files.directory / "last-00000-of-00001"))]
        with tf.io.TFRecordWriter(str(shard)) as writer:
            for record in records + last[52:]:
                writer.write(record)

    def build(batch_size=8, seed=0, shuffle=True, shuffle_buffer=20, **options):
        return data.load(
            "imagenet",
            batch_size=batch_size,
            seed=seed,
            shuffle=shuffle,
            train_files=str(files.directory / "train-*"),
            validation_files=str(files.directory / "validation-*"),
            preprocessing="inception",
            image_size=8,
            shuffle_buffer=shuffle_buffer,
            **options,
        )

    return build


@pytest.fixture(params=["in memory", "streamed"], scope="module")
def build(request):
    return in_memory if request.param == "in memory" else request.getfixturevalue("streamed")


@pytest.fixture(scope="module")
def numbers_of(build, tools):
    """Returns the numbers of the examples in a batch of images."""
    return (lambda images: images[:, 0, 0, 0].astype(int)) if build is in_memory else tools.numbers_of


@pytest.fixture(scope="module")
def three_epochs(build):
    """The batches of the first three epochs, of 6 steps each."""
    return take(build().train(), 18)


def epochs_of(batches, numbers_of):
    """Returns the numbers of the examples of each epoch, in order."""
    return np.split(np.concatenate([numbers_of(images) for images, _ in batches]), len(batches) // 6)


def test_shapes_and_dtypes(build):
    dataset = build(validation_batch_size=20)
    assert dataset.train_examples == dataset.validation_examples == EXAMPLES
    assert dataset.steps_per_epoch == 6
    train, validation = dataset.train(), dataset.validation()
    images, labels = train.element_spec
    assert images.shape == (8, *dataset.input_shape)
    assert labels.shape == (8,)
    assert (images.dtype, labels.dtype) == (tf.float32, tf.int32)
    assert train.cardinality() == tf.data.INFINITE_CARDINALITY
    assert validation.cardinality() == 3
    assert validation.element_spec[0].shape[1:] == dataset.input_shape


@pytest.mark.exhaustive
def test_no_thread_tunes_the_data_set(build):
    """Such a thread can sleep for up to a minute when an iterator is deleted, at the end of a run."""
    dataset = build()
    for part in (dataset.train(), dataset.validation(), dataset.validation(fill=True)):
        assert part.options().autotune.enabled is False


@pytest.mark.parametrize("batch_size", [*[pytest.param(n, marks=pytest.mark.exhaustive) for n in (1, 1000)], 7])
def test_validation_counts_every_example_once_in_order(build, numbers_of, batch_size):
    batches = take(build(validation_batch_size=batch_size).validation(), -1)
    assert {len(labels) for _, labels in batches[:-1]} <= {batch_size}
    seen = np.concatenate([numbers_of(images) for images, _ in batches])
    np.testing.assert_array_equal(seen, np.arange(EXAMPLES))
    np.testing.assert_array_equal(np.concatenate([labels for _, labels in batches]), np.arange(EXAMPLES) % 10)


def test_an_epoch_has_no_example_twice_and_epochs_differ(three_epochs, numbers_of):
    epochs = epochs_of(three_epochs, numbers_of)
    for seen in epochs:
        assert len(seen) == len(set(seen)) == 48
        assert set(seen) <= set(range(EXAMPLES))
    for one, other in itertools.combinations(epochs, 2):
        assert np.mean(one == other) < 0.3
    left_out = [set(range(EXAMPLES)) - set(seen) for seen in epochs]
    assert not set.intersection(*left_out)  # the remainder changes


def test_labels_stay_with_their_images(three_epochs, numbers_of):
    for images, labels in three_epochs:
        np.testing.assert_array_equal(numbers_of(images) % 10, labels)


def test_without_shuffling_the_order_is_that_of_the_files(build, numbers_of):
    for seen in epochs_of(take(build(shuffle=False).train(), 12), numbers_of):
        np.testing.assert_array_equal(seen, np.arange(48))


def test_the_order_depends_only_on_the_seed(build, numbers_of, three_epochs):
    first = take(build(seed=3).train(), 8)
    tf.random.set_seed(77)
    assert_same_batches(first, take(build(seed=3).train(), 8))
    pairs = zip(first, three_epochs[:8], strict=True)
    assert not all(np.array_equal(numbers_of(a), numbers_of(b)) for (a, _), (b, _) in pairs)


@pytest.mark.parametrize("start_step", [pytest.param(1, marks=pytest.mark.exhaustive), 13])
def test_a_resumed_run_yields_the_same_batches_as_a_run_from_step_0(build, three_epochs, start_step):
    assert_same_batches(three_epochs[start_step:], take(build().train(start_step), 18 - start_step))


def test_neighbouring_seeds_and_epochs_give_unrelated_orders():
    """Positions and values over many permutations are uniform, unlike `index_shuffle` with the plain seed."""
    size, epochs = 20, 400
    for by_epoch in (True, False):
        counts = np.zeros((size, size))
        for number in range(epochs):
            seed = tf.constant([7, number] if by_epoch else [number, 7], tf.int64)
            order = permuted(tf.range(size, dtype=tf.int64), size, seed).numpy()
            assert sorted(order) == list(range(size))
            counts[np.arange(size), order] += 1
        expected = epochs / size
        reduced_chi_square = ((counts - expected) ** 2 / expected).sum() / (size - 1) ** 2
        assert 0.7 < reduced_chi_square < 1.4  # above 5 with the plain seed


def test_order_of_a_large_set_is_a_permutation_without_structure():
    size = 60000
    order = permuted(tf.range(size, dtype=tf.int64), size, tf.constant([0, 0], tf.int64)).numpy()
    np.testing.assert_array_equal(np.sort(order), np.arange(size))
    steps = np.bincount((np.diff(order) % size) * 30 // size, minlength=30)
    assert steps.min() > 1750  # 2000 expected, standard deviation 44
    assert steps.max() < 2250


# Augmentation.


def windows(image):
    """All 81 windows of the image padded with zeros by 4, plain and mirrored, by (row, column, mirrored)."""
    height, width, _ = image.shape
    padded = np.zeros((height + 8, width + 8, image.shape[2]), image.dtype)
    padded[4 : 4 + height, 4 : 4 + width] = image
    for row, column in itertools.product(range(9), range(9)):
        window = padded[row : row + height, column : column + width]
        yield (row, column, False), window
        yield (row, column, True), window[:, ::-1]


@pytest.mark.parametrize("name", ["crop", "crop_flip"])
def test_crops_are_windows_of_the_padded_image(rng, name):
    images = rng.normal(size=(300, 7, 6, 2)).astype(np.float32)
    result = pipeline.AUGMENTATIONS[name](tf.constant(images), tf.constant([1, 2], tf.int64)).numpy()
    found = [
        [place for place, window in windows(image) if np.array_equal(window, cropped)]
        for image, cropped in zip(images, result, strict=True)
    ]
    assert all(len(places) == 1 for places in found)
    rows, columns, mirrored = np.array([places[0] for places in found]).T
    assert set(rows) == set(columns) == set(range(9))
    assert (0.4 < mirrored.mean() < 0.6) if name == "crop_flip" else not mirrored.any()
    assert abs(np.corrcoef(rows, columns)[0, 1]) < 0.2
    assert abs(np.bincount(rows) - 300 / 9).max() < 20


def test_training_pixels_are_augmented_the_same_after_a_resume(rng):
    arrays = pipeline.Examples(rng.integers(0, 256, (EXAMPLES, 9, 9, 3), np.uint8), np.zeros(EXAMPLES, np.int32))

    def build(augment):
        return pipeline.InMemory(pipeline.Batching(8, 1), arrays, arrays, classes=1, scale=255.0, augment=augment)

    run = take(build("crop_flip").train(), 14)
    assert_same_batches(run[9:], take(build("crop_flip").train(9), 5))
    for (images, _), (plain, _) in zip(run, take(build(None).train(), 14), strict=True):
        for cropped, image in zip(images, plain, strict=True):
            assert any(np.array_equal(window, cropped) for _, window in windows(image))
    assert_same_batches(take(build("crop_flip").validation(), -1), take(build(None).validation(), -1))


def test_in_memory_pixels_are_shifted_and_scaled_per_channel(rng):
    images = rng.integers(0, 256, (EXAMPLES, 4, 3, 2), np.uint8)
    arrays = pipeline.Examples(images, np.zeros(EXAMPLES, np.int32))
    center, scale = np.array([10.0, 20.0]), np.array([3.0, 7.0])
    dataset = pipeline.InMemory(
        pipeline.Batching(EXAMPLES, 0, shuffle=False), arrays, arrays, classes=1, center=center, scale=scale
    )
    for batches in (dataset.train(), dataset.validation()):
        ((result, _),) = take(batches, 1)
        np.testing.assert_allclose(result, (images - center) / scale, rtol=1e-5, atol=1e-5)


# Errors.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size: must be an integer, 1 or more; found 0"),
        ({"batch_size": 2.0}, "batch_size: must be an integer, 1 or more; found 2.0"),
        ({"batch_size": True}, "batch_size: must be an integer, 1 or more; found true"),
        ({"batch_size": 54}, "batch_size: must not be larger than the training data, 1 to 53; found 54"),
        ({"seed": -1}, "seed: must be an integer, 0 or more; found -1"),
        ({"seed": 2**63}, "seed: must be less than 2**63; found 9223372036854775808"),
        ({"shuffle": "no"}, "shuffle: must be true or false; found 'no'"),
        (
            {"validation_batch_size": 0},
            "validation_batch_size: must be an integer, 1 or more; found 0",
        ),
        (
            {"augment": "crop_flop"},
            "augment: must be one of null, crop, crop_flip; found 'crop_flop'; did you mean 'crop_flip'?",
        ),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(DataError) as raised:
        in_memory(**options)
    assert str(raised.value) == message


@pytest.mark.parametrize("start_step", [-1, 0.5])
def test_wrong_start_step(build, start_step):
    with pytest.raises(DataError, match="start_step: must be an integer"):
        build().train(start_step)


@pytest.mark.parametrize("label", [-1, 10])
def test_labels_in_memory_out_of_range(label):
    images, labels = np.zeros((5, 2, 2, 1), np.uint8), np.array([0, 9, 3, label, 4])
    good = pipeline.Examples(images, np.zeros(5, int))
    with pytest.raises(DataError, match=rf"each training label must be from 0 to 9; found {label} at example 3"):
        pipeline.InMemory(pipeline.Batching(2, 0), pipeline.Examples(images, labels), good, classes=10)


FLOATS = np.linspace(0.0, 1.0, 5 * 2 * 3).reshape(5, 2, 3, 1)
NUMBERS = np.arange(5)


@pytest.mark.parametrize("split", ["training", "validation"])
@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (FLOATS, NUMBERS[:4], "labels must be integers, one for each of the {} images, (5,); found shape (4,)"),
        (FLOATS[:4], NUMBERS, "labels must be integers, one for each of the {} images, (4,); found shape (5,)"),
        (FLOATS, NUMBERS + 0.6, "labels must be integers, one for each of the {} images, (5,); found shape (5,) of"),
        (FLOATS, np.eye(5, dtype=int), "one for each of the {} images, (5,); found shape (5, 5)"),
        (FLOATS.reshape(5, 6), NUMBERS, "found shape (5, 6) of float64; feature vectors are (examples, 1, features)"),
        (FLOATS.astype(np.int32), NUMBERS, "uint8 or float; found shape (5, 2, 3, 1) of int32"),
        (FLOATS[..., None], NUMBERS, "found shape (5, 2, 3, 1, 1) of float64"),
        (np.where(FLOATS > 0.9, np.nan, FLOATS), NUMBERS, "images must be finite float32 numbers; found NaN or infin"),
        (FLOATS * 1e300, NUMBERS, "images must be finite float32 numbers; found NaN or infinity"),
    ],
)  # fmt: skip
def test_wrong_arrays_in_memory(split, images, labels, message):
    wrong, good = pipeline.Examples(images, labels), pipeline.Examples(FLOATS, NUMBERS)
    parts = (wrong, good) if split == "training" else (good, wrong)
    with pytest.raises(DataError, match=rf"^data: the {split} (images|labels) must be ") as raised:
        pipeline.InMemory(pipeline.Batching(2, 0), *parts, classes=5)
    assert message.format(split) in str(raised.value)


def test_validation_images_in_memory_are_like_the_training_images():
    good = pipeline.Examples(FLOATS, NUMBERS)
    for images, found in ((FLOATS[:, :1], "(1, 3, 1) of float32"), (FLOATS.astype(np.uint8), "(2, 3, 1) of uint8")):
        line = f"data: the validation images must be like the training images, (2, 3, 1) of float32; found {found}"
        with pytest.raises(DataError) as raised:
            pipeline.InMemory(pipeline.Batching(2, 0), good, pipeline.Examples(images, NUMBERS), classes=5)
        assert str(raised.value) == line


def test_grey_images_and_a_column_of_labels_in_memory_are_as_usual():
    parts = pipeline.Examples(FLOATS[..., 0], NUMBERS[:, np.newaxis].astype(np.uint8))
    dataset = pipeline.InMemory(
        pipeline.Batching(5, 0, shuffle=False, validation_batch_size=4), parts, parts, classes=5
    )
    ((images, labels),) = take(dataset.train(), 1)
    np.testing.assert_array_equal(images, FLOATS.astype(np.float32))
    np.testing.assert_array_equal(labels, NUMBERS)
    *_, (_, labels, real) = dataset.validation(fill=True).as_numpy_iterator()
    np.testing.assert_array_equal([labels, real], [[4, 0, 0, 0], [1, 0, 0, 0]])


def test_errors_of_the_model_are_not_blamed_on_the_data(build):
    dataset = build()
    assert dataset.explain(ValueError("no data")) is None
    assert dataset.explain(tf.errors.ResourceExhaustedError(None, None, "OOM when allocating")) is None
    assert dataset.explain(tf.errors.InvalidArgumentError(None, None, "Incompatible shapes: [2] vs. [3]")) is None
