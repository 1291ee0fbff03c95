"""The trainer: the same steps as a loop by hand, from the same start at every learning rate."""

import types

import keras
import numpy as np
import pytest
import tensorflow as tf

from neural_alignment import models
from neural_alignment.alignments import Feedback
from neural_alignment.data.single_batch import SingleBatch
from neural_alignment.errors import DataError
from neural_alignment.losses import SquaredError
from neural_alignment.training import AlignedModel
from neural_alignment.training.trainer import Trainer
from optimizers import Momentum, MultiOptimizer

CLASSES, EXAMPLES = 3, 12


@pytest.fixture
def batch(rng):
    return rng.normal(size=(EXAMPLES, 5)).astype(np.float32), rng.integers(0, CLASSES, EXAMPLES).astype(np.int32)


def built(learning_rate=0.1, **options):
    keras.utils.set_random_seed(3)
    network = models.fc([4], CLASSES, (5,), alignment=Feedback())
    model = AlignedModel(network.input, network.output)
    optimizer = MultiOptimizer([Momentum(learning_rate)])
    model.compile(optimizer, loss=SquaredError(), jit_compile=False, **options)
    return model


def by_hand(batch, steps, learning_rate=0.1):
    """Returns the weights after some calls of Keras."""
    model = built(learning_rate, run_eagerly=True)
    for _ in range(steps):
        model.train_on_batch(*batch)
    return model.get_weights()


def assert_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("together", [1, 4])
def test_it_makes_exactly_the_steps_asked_for(batch, together):
    trainer, fractions = Trainer(built(steps_per_execution=together), SingleBatch(*batch, CLASSES)), []
    trainer.start()
    trainer.train(6, fractions.append)
    assert trainer.step == 6
    assert fractions == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1] if together == 1 else [4 / 6, 1])
    assert_same(trainer.model.get_weights(), by_hand(batch, 6))


def test_every_learning_rate_starts_from_the_same_state_with_fresh_momentum(batch):
    trainer = Trainer(built(), SingleBatch(*batch, CLASSES))
    trainer.keep_initial_state()
    for rate in (0.5, 0.02, 0.5):
        trainer.reset(rate)
        assert trainer.step == 0
        trainer.train(3)
        assert_same(trainer.model.get_weights(), by_hand(batch, 3, rate))
    assert not np.allclose(by_hand(batch, 3, 0.5)[0], by_hand(batch, 3, 0.02)[0], atol=1e-3)


def test_a_reset_forgets_that_the_training_before_diverged(batch):
    trainer = Trainer(built(), SingleBatch(*batch, CLASSES))
    trainer.keep_initial_state()
    trainer.reset()
    for variable in trainer.model.trainable_variables:
        variable.assign(np.full(variable.shape, np.nan))
    trainer.train(1)
    assert trainer.model.first_non_finite() == (0, ["J"])
    trainer.reset()
    trainer.train(1)
    assert trainer.model.first_non_finite() is None


def test_an_epoch_returns_the_mean_of_its_steps_only(batch):
    trainer = Trainer(built(), SingleBatch(*batch, CLASSES))
    trainer.start()
    losses = [trainer.train_epoch()["loss"] for _ in range(3)]
    model = built()
    # One step is an epoch here; its mean is the loss before the update.
    expected = []
    for _ in range(3):
        expected.append(float(model.evaluate(*batch, batch_size=EXAMPLES, verbose=0)))
        model.train_on_batch(*batch)
    assert losses == pytest.approx(expected, rel=1e-5)
    assert losses[2] < losses[0]


def test_inference_and_evaluation_read_the_present_weights(batch):
    trainer = Trainer(built(), SingleBatch(*batch, CLASSES))
    errors = trainer.inference(SquaredError().call)
    trainer.start()
    trainer.train(2)
    found = errors(*batch).numpy()
    outputs = trainer.model(batch[0]).numpy()
    expected = ((outputs - np.eye(CLASSES)[batch[1]]) ** 2).mean(axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert trainer.evaluate()["J"] == pytest.approx(expected.mean(), rel=1e-5)
    assert errors(batch[0][:5], batch[1][:5]).shape == (5,)


def test_another_way_to_make_a_step_is_called_once_per_step(batch):
    trainer = Trainer(built(), SingleBatch(*batch, CLASSES))
    seen = []

    def train_on(inputs, targets):
        seen.append((inputs.shape, targets.shape))
        trainer.model.train_step((inputs, targets))

    trainer.start(train_on=train_on)
    trainer.train(3)
    assert seen == [((EXAMPLES, 5), (EXAMPLES,))] * 3
    assert_same(trainer.model.get_weights(), by_hand(batch, 3))


def test_a_damaged_record_is_explained_by_the_data_that_were_read():
    def explaining(name):
        return types.SimpleNamespace(explain=lambda error: DataError(name) if "damaged" in error.message else None)

    class Reading:
        """Devices that cannot read."""

        def evaluate(self, model, dataset):
            raise error

    trainer = Trainer(None, explaining("its own"), Reading())
    error = tf.errors.InvalidArgumentError(None, None, "damaged record")
    with pytest.raises(DataError, match="its own"):
        trainer.evaluate()
    with pytest.raises(DataError, match="another"):
        trainer.evaluate(explaining("another"))
    error = tf.errors.InvalidArgumentError(None, None, "something else")
    with pytest.raises(tf.errors.InvalidArgumentError, match="something else"):
        trainer.evaluate()
