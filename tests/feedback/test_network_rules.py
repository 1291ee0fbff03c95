"""Rules for whole networks in a run: YAML, saving, resuming, `describe`, and what they refuse."""

import keras
import numpy as np
import pytest

from neural_alignment import config as configuration
from neural_alignment import models
from neural_alignment.alignments import NETWORK_RULES, Feedback, from_config
from neural_alignment.errors import ConfigError
from neural_alignment.feedback import AlignAda, AlignZero, DirectFeedback
from neural_alignment.training import AlignedModel, load_model, run
from neural_alignment.training.describe import describe

BASE = {
    "epochs": 1,
    "batch_size": 50,
    "max_steps": 6,
    "data": {"source": "digits"},
    "model": {"name": "wide_cnn", "design": "kmnist", "width": 2},
    "loss": {"kind": "squared_error", "shift": 0.1},
    "optimization": {"forward": {"name": "momentum", "learning_rate": 0.5}},
    "logging": {"tensorboard": False},
}


def config(rule, **changes):
    return configuration.parse(configuration.merge({**BASE, "alignment": {"rule": rule}}, changes))


@pytest.mark.parametrize("rule", NETWORK_RULES)
def test_a_run_is_written_and_loaded_and_what_a_rule_keeps_does_not_move(rule, tmp_path):
    run.train(config(rule), tmp_path / "whole")
    whole = load_model(tmp_path / "whole" / "model.keras")
    run.train(config(rule, max_steps=3), tmp_path / "parts")
    partial = load_model(tmp_path / "parts" / "model.keras")
    kept = whole.feedback_weights.weights
    for first, second in zip(kept, partial.feedback_weights.weights, strict=True):
        assert np.array_equal(first, second)
    assert bool(kept) == (rule != "last_layer")
    assert from_config({"rule": rule}).rule == rule
    assert rule in describe(config(rule))


def test_what_has_no_meaning_is_refused_in_one_line():
    with pytest.raises(ConfigError, match="align_zero is a rule for the whole network"):
        config("align_zero", alignment={"layers": "conv*"})
    with pytest.raises(ConfigError, match="align_ada is a rule for the whole network"):
        configuration.parse({**BASE, "alignment": [{"rule": "feedback", "layers": "conv*"}, {"rule": "align_ada"}]})
    with pytest.raises(ConfigError, match="no rule of this run trains a backward kernel"):
        config("dfa", optimization={"alternation": 1})
    model = models.wide_cnn("kmnist", 2, 3, (4, 4, 1), AlignZero())
    with pytest.raises(ValueError, match="is a rule for a whole network"):
        model(np.zeros((2, 4, 4, 1), np.float32), training=True)
    mixed = models.wide_cnn("kmnist", 2, 3, (4, 4, 1), [AlignAda(layers="conv*"), Feedback()])
    with pytest.raises(ValueError, match="every layer with a kernel must have it"):
        AlignedModel(mixed.inputs, mixed.outputs)
    recurrent = models.rnn(3, 2, (4, 1), alignment=DirectFeedback())
    with pytest.raises(ValueError, match=r"'dfa' needs a network with outputs \(batch, classes\)"):
        AlignedModel(recurrent.inputs, recurrent.outputs)
    with pytest.raises(ValueError, match="`alignment` of a recurrent layer"):
        models.rnn(3, 2, (4, 1), alignment=Feedback())
    with pytest.raises(ValueError, match="`parameterization` must be one of"):
        models.wide_cnn("kmnist", 2, 3, (4, 4, 1), parameterization="mup")


@pytest.mark.parametrize("version", [1, 2])
def test_at_the_first_step_any_network_learns_as_by_backpropagation(version, float64):
    x, y = np.random.default_rng(0).random((4, 8, 8, 1)), np.array([0, 1, 2, 0])
    ends = []
    for each in (None, AlignAda()):
        keras.utils.set_random_seed(2)
        model = models.resnet(18, version, 3, (8, 8, 1), each, stem="cifar", width=1)
        model = AlignedModel(model.inputs, model.outputs)
        model.compile(keras.optimizers.SGD(0.1), loss="sparse_categorical_crossentropy", run_eagerly=True)
        model.train_on_batch(x, y)
        ends.append([v.numpy() for v in model.trainable_variables])
    for first, second in zip(*ends, strict=True):
        np.testing.assert_allclose(first, second, rtol=1e-7, atol=1e-9)
