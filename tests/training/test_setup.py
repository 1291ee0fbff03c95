"""The optimizers of a run have the options of its configuration."""

from typing import ClassVar, Literal

import keras
import numpy as np
import pytest
import tensorflow as tf

from neural_alignment import config as configuration
from neural_alignment.errors import ConfigError
from neural_alignment.losses import SMALLEST_LOSS, Criterion, LossOptions, SparseTopKAccuracy
from neural_alignment.training import AlignedModel, run, setup
from neural_alignment.training.trainer import Trainer
from optimizers import Adam, Momentum, Noisy, WarmupAndDrops

BASE = {
    "epochs": 10,
    "batch_size": 8,
    "data": {"source": "digits"},
    "model": {"name": "fc", "hidden": [4]},
    "alignment": {"rule": "symmetric", "self_": 1e-3, "decay": 1e-3},
    "optimization": {"forward": {"name": "momentum", "learning_rate": 0.1}},
}


def optimizer(steps_per_epoch=50, **optimization):
    config = configuration.parse(configuration.merge(BASE, {"optimization": optimization}))
    return setup.build_optimizer(config, steps_per_epoch)


@pytest.mark.parametrize(
    ("options", "kind", "attributes"),
    [
        ({"name": "sgd", "momentum": 0.5, "nesterov": True}, keras.optimizers.SGD, {"momentum": 0.5, "nesterov": True}),
        ({"name": "momentum", "momentum": 0.5}, Momentum, {"momentum": 0.5, "nesterov": True}),
        ({"name": "adam", "beta_1": 0.8}, Adam, {"beta_1": 0.8, "beta_2": 0.999, "epsilon": 1e-8}),
        ({"name": "rmsprop", "rho": 0.8, "centered": True}, keras.optimizers.RMSprop, {"rho": 0.8, "centered": True}),
        (
            {"name": "adagrad", "initial_accumulator_value": 0.3},
            keras.optimizers.Adagrad,
            {"initial_accumulator_value": 0.3},
        ),
        ({"name": "sgd", "clip_global_norm": 2.0}, keras.optimizers.SGD, {"global_clipnorm": 2.0, "clipvalue": None}),
        ({"name": "sgd", "clip_value": 2.0}, keras.optimizers.SGD, {"global_clipnorm": None, "clipvalue": 2.0}),
    ],
)
def test_every_option_reaches_its_optimizer(options, kind, attributes):
    backward = optimizer(backward={"learning_rate": 0.25, **options}).inner_optimizers[1]
    assert type(backward) is kind
    assert float(backward.learning_rate) == 0.25
    assert {name: getattr(backward, name) for name in attributes} == attributes


def test_schedules_know_the_epochs_the_delay_and_the_alternation():
    plan = {"warmup_epochs": 2, "drop_epochs": [4]}
    both = optimizer(
        forward={"schedule": plan},
        backward={"name": "adam", "learning_rate": 0.2, "schedule": {"drop_epochs": [4]}},
        alternation=1,
        delay_epochs=1,
    )
    expected = [
        WarmupAndDrops(0.1, 50, 2, [4], delay_epochs=1, alternation=1),
        WarmupAndDrops(0.2, 50, 0, [4], delay_epochs=1, alternation=1),
    ]
    for step in (0, 49, 50, 150, 250, 449, 450, 900):
        both.iterations.assign(step)
        assert [float(rate) for rate in both.learning_rates] == [float(schedule(step)) for schedule in expected]
    expected = {"steps_per_epoch": 50, "delay_epochs": 1, "alternation": 1, "loss_rates": [1.0, 1.0]}
    assert both.rate_scheduler.get_config() == expected


def test_noise_wraps_the_optimizer_and_has_the_seed_of_the_run():
    noisy = optimizer(forward={"noise": {"variance": 0.01, "only": "kernel"}}).inner_optimizers[0]
    assert isinstance(noisy, Noisy)
    assert (noisy.variance, noisy.only, noisy.seed) == (0.01, "kernel", 0)
    assert isinstance(noisy.optimizer, Momentum)


def test_one_optimizer_takes_both_losses_and_a_constant_plan_has_no_scheduler():
    single = optimizer()
    assert len(single.inner_optimizers) == 1
    assert single.rate_scheduler is None
    assert not optimizer(skip_idle=False).skip_idle


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
def test_top_5_counts_logits_in_every_precision(rng, dtype):
    logits = tf.cast(rng.permuted(np.tile(np.arange(10.0), (40, 1)), axis=1), dtype)
    labels = rng.integers(0, 10, size=40)
    metric = SparseTopKAccuracy(k=5, name="top5")
    metric.update_state(labels, logits)
    expected = np.mean(np.take_along_axis(logits.numpy().astype(float), labels[:, None], axis=1) >= 5)
    assert 0 < expected < 1
    assert float(metric.result()) == pytest.approx(expected)


@pytest.mark.parametrize("precision", ["mixed_bfloat16", pytest.param("float64", marks=pytest.mark.exhaustive)])
def test_a_run_in_every_precision_reports_top_5(tmp_path, precision):
    changes = {
        "epochs": 1,
        "max_steps": 2,
        "runtime": {"precision": precision},
        "logging": {"tensorboard": False},
    }
    result = run.train(configuration.parse(configuration.merge(BASE, changes)), tmp_path / "run")
    assert result.metrics["top1"] <= result.metrics["top5"] <= 1
    assert run.evaluate(tmp_path / "run")["top5"] == pytest.approx(result.metrics["top5"], rel=1e-6)


@pytest.mark.parametrize("seed", [0, 7, 2**31 - 1])
def test_where_both_losses_move_w_each_update_has_its_own_noise(seed):
    options = {"name": "sgd", "learning_rate": 0.1, "noise": {"variance": 0.25}}
    changes = {"seed": seed, "alignment": {"update_forward": True}}
    changes["optimization"] = {"forward": options, "backward": options}
    config = configuration.parse(configuration.merge(BASE, changes))
    drawn = []
    for each in setup.build_optimizer(config, 50).inner_optimizers:
        variable = keras.Variable(np.zeros(1000), name="kernel")
        each.build([variable])
        each.apply([tf.zeros(1000)], [variable])
        drawn.append(variable.numpy())
    assert [np.std(each) for each in drawn] == pytest.approx([0.05, 0.05], rel=0.2)
    assert abs(np.corrcoef(*drawn)[0, 1]) < 0.15


@pytest.mark.parametrize(
    ("model", "alignment", "message"),
    [
        ({"name": "vision_transformer", "patch": 3}, None, "model.patch: must divide the height and width of the imag"),
        ({"name": "application", "application": "VGG16"}, None, "model.application: must take images of 8x8x1; Keras"),
        ({"name": "lstm", "units": [4]}, "dfa", "alignment: 'dfa' needs a network without recurrent layers of Keras, "),
        ({"name": "lstm", "units": [4]}, "drtp", "alignment: 'drtp' needs a network without recurrent layers"),
        ({"name": "lstm", "units": [4]}, "align_ada", "alignment: 'align_ada' needs a network without recurrent layer"),
    ],
)
def test_a_model_that_does_not_fit_the_data_or_the_rule_is_one_line(model, alignment, message):
    rule = {"alignment": {"rule": alignment}} if alignment else {"alignment": None}
    config = configuration.parse({**BASE, "model": model, **rule})
    with pytest.raises(ConfigError) as raised:
        setup.build_model(config, 10, (8, 8, 1), 1)
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)


def test_an_error_of_keras_while_a_model_is_built_is_one_line():
    config = configuration.parse({**BASE, "model": {"name": "convnet", "filters": [4]}})
    with pytest.raises(ConfigError, match=r"^model: Input 0 .*layer 'conv1' is incompatible.*found ndim=3[^\n]*$"):
        setup.build_model(config, 10, (8, 1), 1)


class Unjudged(LossOptions):
    """A loss whose criterion is an accuracy."""

    kind: Literal["unjudged"] = "unjudged"

    def make(self, classes, batch_size, seed):
        return "mse", [keras.metrics.SparseCategoricalAccuracy(name="accuracy")]


class Unlisted(Unjudged):
    """A loss that does not list the metric of its criterion."""

    metrics: ClassVar[tuple[str, ...]] = ("top5",)

    def make(self, classes, batch_size, seed):
        return "mse", [keras.metrics.SparseCategoricalAccuracy(name="top1")]


class JudgedByJ(Unjudged):
    """A loss whose criterion is J."""

    criterion: ClassVar[Criterion] = SMALLEST_LOSS


@pytest.mark.parametrize("kind", [Unjudged, Unlisted])
def test_a_loss_without_the_metric_of_its_criterion_is_rejected_before_training(kind):
    config = configuration.parse(BASE).model_copy(update={"loss": kind()})
    model = AlignedModel(inputs := keras.Input((3,)), keras.layers.Dense(10)(inputs))
    with pytest.raises(ConfigError, match=r"loss\.kind: .* metric named top1.* set `criterion`.*; found 'unjudged'"):
        setup.compile_model(model, config, 10, 5)
    setup.compile_model(model, config.model_copy(update={"loss": JudgedByJ(), "alignment": None}), 10, 5)


def test_a_delay_that_max_steps_does_not_end_is_one_line():
    """At 14 steps per epoch."""

    def prepared(max_steps):
        backward = {"name": "sgd", "learning_rate": 0.1}
        changes = {"optimization": {"backward": backward, "delay_epochs": 1.5}, "max_steps": max_steps}
        return Trainer.from_config(configuration.parse(configuration.merge({**BASE, "batch_size": 100}, changes)))

    line = r"^optimization\.delay_epochs: must be shorter than max_steps \(21\), in epochs of 14 steps; found 1\.5$"
    with pytest.raises(ConfigError, match=line):
        prepared(21)
    assert prepared(22).model.step_modes.count(22) == {"R": 21, "J + R": 1}
