"""The Add task as a data set: batches against the published draws, resumed, shared and filled."""

import itertools

import numpy as np
import pytest

from neural_alignment.data import Batching, load
from neural_alignment.data.add_task import AddTask
from neural_alignment.errors import DataError

SEQUENCES = {"train_sequences": 20, "test_sequences": 7, "steps": 6}


def dataset(batch_size=6, **options):
    return AddTask(Batching(batch_size, 5, validation_batch_size=4, **options), **SEQUENCES)


def taken(batches, count):
    return [tuple(part.numpy() for part in batch) for batch in itertools.islice(batches, count)]


def test_training_batches_follow_the_order_of_each_epoch():
    """Three whole batches of 6 in an epoch; the remaining two sequences are left out."""
    data = dataset()
    np.random.seed(5)
    orders = [[np.random.permutation(n) for n in (20, 7, 20)] for _ in range(2)]
    for number, (inputs, targets) in enumerate(taken(data.train(), 6)):
        chosen = orders[number // 3][0][number % 3 * 6 :][:6]
        np.testing.assert_array_equal(inputs, data.train_split.inputs[chosen])
        np.testing.assert_array_equal(targets, data.train_split.targets[chosen])
    assert data.steps_per_epoch == 3


def test_without_shuffling_the_order_is_that_of_the_draw():
    data = dataset(shuffle=False)
    [(inputs, _)] = taken(data.train(start_step=4), 1)
    np.testing.assert_array_equal(inputs, data.train_split.inputs[6:12])


@pytest.mark.parametrize("start", [1, 3, 5])
def test_a_later_start_continues_the_batches(start):
    whole, rest = taken(dataset().train(), 8), taken(dataset().train(start), 8 - start)
    for expected, found in zip(whole[start:], rest, strict=True):
        np.testing.assert_array_equal(found[0], expected[0])
    assert not np.array_equal(rest[0][0], whole[start - 1][0])


def test_workers_share_each_batch():
    [(whole, _)] = taken(dataset().train(), 1)
    parts = [taken(dataset().train(worker=worker, workers=3), 1)[0][0] for worker in range(3)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    with pytest.raises(DataError, match="multiple of the number of workers"):
        dataset().train(workers=4)


def test_validation_yields_every_test_sequence_once():
    data = dataset()
    batches = taken(data.validation(), 9)
    assert [len(inputs) for inputs, _ in batches] == [4, 3]
    np.testing.assert_array_equal(np.concatenate([inputs for inputs, _ in batches]), data.test_split.inputs)
    np.testing.assert_array_equal(np.concatenate([targets for _, targets in batches]), data.test_split.targets)


def test_filled_validation_batches_have_weights():
    inputs, targets, weights = taken(dataset().validation(fill=True), 9)[-1]
    np.testing.assert_array_equal(weights, [1, 1, 1, 0])
    np.testing.assert_array_equal(inputs[:3], dataset().test_split.inputs[4:])
    assert not inputs[3].any()
    assert not targets[3].any()


def test_a_seed_that_the_generator_cannot_take_is_one_line():
    options = {"batch_size": 6, "seed": 5, **SEQUENCES}
    load("add_task", sequences_seed=2**32 - 1, **options)
    with pytest.raises(DataError, match=r"data\.sequences_seed: input should be less than 4294967296") as error:
        load("add_task", sequences_seed=2**32, **options)
    assert "\n" not in str(error.value)
