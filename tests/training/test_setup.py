"""The optimizers of a run have the options of its configuration."""

from typing import ClassVar, Literal

import keras
import numpy as np
import pytest
import tensorflow as tf

from neural_alignment import config as configuration
from neural_alignment import layers, load_model
from neural_alignment.errors import ConfigError, RunError
from neural_alignment.losses import SMALLEST_LOSS, Criterion, LossOptions, SparseTopKAccuracy
from neural_alignment.models import ModelOptions
from neural_alignment.serialization import serializable
from neural_alignment.training import AlignedModel, aligned_layers, run, setup
from neural_alignment.training.trainer import Trainer
from optimizers import Adam, Momentum, Noisy, RMSprop, WarmupAndDrops

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
        (
            {"name": "rmsprop", "rho": 0.8, "centered": True, "initial_mean_square": 1.0},
            RMSprop,
            {"rho": 0.8, "centered": True, "initial_mean_square": 1.0},
        ),
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
    assert "; found " in str(raised.value)
    assert "Example" not in str(raised.value)
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


# Classes and functions of users.


@serializable
def registered_loss(labels, outputs):
    return keras.losses.sparse_categorical_crossentropy(labels, outputs)


def unregistered_loss(labels, outputs):
    return registered_loss(labels, outputs)


class UnregisteredMetric(keras.metrics.SparseCategoricalAccuracy):
    pass


@serializable
class WithoutConfig(keras.metrics.SparseCategoricalAccuracy):
    """Has an argument that `get_config` does not return."""

    def __init__(self, wanted, name="top1", dtype=None):
        super().__init__(name=name, dtype=dtype)


TOP1 = [keras.metrics.SparseCategoricalAccuracy(name="top1")]
TASKS = {
    "a loss function": (unregistered_loss, TOP1, "unregistered_loss"),
    "a lambda": (lambda labels, outputs: registered_loss(labels, outputs), TOP1, "<lambda>"),
    "a metric": (registered_loss, [UnregisteredMetric("top1")], "UnregisteredMetric"),
    "an argument": (registered_loss, [WithoutConfig(1)], "WithoutConfig"),
    "a function in a class of Keras": (
        registered_loss,
        [*TOP1, keras.metrics.MeanMetricWrapper(unregistered_loss)],
        "MeanMetricWrapper",
    ),
    "a registered function": (registered_loss, TOP1, None),
    "a function of Keras": (keras.losses.sparse_categorical_crossentropy, TOP1, None),
    "a name": ("sparse_categorical_crossentropy", TOP1, None),
}
"""A loss, metrics, and the name of the one that cannot be loaded, or None."""


@pytest.mark.filterwarnings("ignore:The object being serialized includes a `lambda`")
@pytest.mark.parametrize("task", TASKS)
def test_a_task_whose_model_could_not_be_loaded_is_refused_before_training(tmp_path, task):
    loss, metrics, name = TASKS[task]

    class Task(LossOptions):
        kind: Literal["mine"] = "mine"

        def make(self, classes, batch_size, seed):
            return loss, metrics

    config = configuration.parse(BASE).model_copy(update={"loss": Task(), "alignment": None})
    model = AlignedModel(inputs := keras.Input((3,)), keras.layers.Dense(10, activation="softmax")(inputs))
    if name is None:
        setup.compile_model(model, config, 10, 5)
    else:
        with pytest.raises(ConfigError, match=rf"^loss\.kind: .*serializable.*; {name} cannot be loaded .*'mine'$"):
            setup.compile_model(model, config, 10, 5)
        model.compile(Momentum(0.1), loss, weighted_metrics=metrics)
    model.fit(np.ones((4, 3)), np.arange(4), verbose=0)
    model.save(tmp_path / "model.keras")
    if name is None:
        assert load_model(tmp_path / "model.keras").evaluate(np.ones((4, 3)), np.arange(4), verbose=0)
    else:
        with pytest.raises(RunError):
            load_model(tmp_path / "model.keras")


class Unregistered(keras.layers.Layer):
    def call(self, inputs):
        return inputs

    def compute_output_shape(self, input_shape):
        return input_shape


def unregistered_activation(inputs):
    return inputs


def of_a_user(layers_of):
    """Returns the options of a model with the layers that a function makes for a rule."""

    class Mine(ModelOptions):
        builder = staticmethod(lambda classes, input_shape, alignment, weight_decay: layers_of(alignment, input_shape))

        name: Literal["mine"] = "mine"

    return Mine()


def flat(*made):
    """Returns a builder of a model with layers, of which some may be functions of the rule."""

    def layers_of(alignment, input_shape):
        x = inputs = keras.Input(input_shape)
        x = keras.layers.Flatten()(x)
        for each in made:
            x = (each if isinstance(each, keras.layers.Layer) else each(alignment))(x)
        return keras.Model(inputs, x)

    return layers_of


def aligned(alignment):
    return layers.Dense(10, alignment=alignment)


def built(layers_of, alignment):
    config = configuration.parse({**BASE, "alignment": alignment})
    return setup.build_model(config.model_copy(update={"model": of_a_user(layers_of)}), 10, (8, 8, 1), 1)


@pytest.mark.parametrize(
    ("layer", "name"),
    [
        (lambda _: Unregistered(), "Unregistered"),
        (lambda _: keras.layers.TimeDistributed(Unregistered()), "Unregistered"),
        (lambda _: keras.layers.Dense(4, activation=unregistered_activation), "unregistered_activation"),
    ],
)
def test_a_model_that_could_not_be_loaded_is_refused_before_training(layer, name):
    reshape = keras.layers.Reshape((4, 16))
    with pytest.raises(ConfigError, match=rf"^model\.name: .*serializable.*; {name} cannot be loaded; found 'mine'$"):
        built(flat(reshape, layer, aligned), BASE["alignment"])


class TakesAnObject(Unregistered):
    """Has an argument that Keras cannot serialise, and no method `get_config`."""

    def __init__(self, given, **options):
        super().__init__(**options)
        self.given = given


def test_a_layer_without_a_configuration_is_refused_before_training():
    line = r"^model\.name: must be .* have a `get_config`; Keras says: .*; found 'mine'$"
    with pytest.raises(ConfigError, match=line):
        built(flat(TakesAnObject(object()), aligned), BASE["alignment"])


def test_a_rule_that_the_model_passes_to_no_layer_is_refused():
    rule = BASE["alignment"]
    native = flat(keras.layers.Dense(10, name="readout"))
    line = r"^alignment: no layer of the model 'mine' has the rule 'symmetric'.*The layers are: .*readout\.$"
    with pytest.raises(ConfigError, match=line):
        built(native, rule)
    with pytest.raises(ConfigError, match=r"^alignment: .* has the rule 'symmetric' with the pattern 'nosuch\*';"):
        built(native, {**rule, "layers": "nosuch*"})
    two = [{"rule": "feedback", "layers": "a*"}, {"rule": "sign_symmetry", "layers": "b*"}]
    with pytest.raises(ConfigError, match=r"^alignment\.1: .* has the rule 'sign_symmetry' with the pattern 'b\*';"):
        built(flat(lambda rules: layers.Dense(10, alignment=rules[0])), two)
    assert built(native, None).count_params() == 650
    bidirectional = lambda rule: keras.layers.Bidirectional(layers.LSTM(3, alignment=rule))  # noqa: E731
    built(flat(keras.layers.Reshape((4, 16)), bidirectional), {**rule, "layers": "forward*"})


class WithoutGraph(keras.Model):
    def call(self, inputs):
        return inputs


@pytest.mark.parametrize("model", [WithoutGraph(), keras.Sequential([keras.layers.Dense(10)])])
def test_a_model_without_a_graph_is_refused(model):
    line = rf"^model\.name: must be a .* functional or built Sequential model .*{type(model).__name__}; found 'mine'$"
    with pytest.raises(ConfigError, match=line):
        built(lambda *_: model, None)


def test_a_model_may_be_sequential():
    def sequential(alignment, input_shape):
        return keras.Sequential([keras.Input(input_shape), keras.layers.Flatten(), aligned(alignment)], name="mine")

    model = built(sequential, BASE["alignment"])
    assert (model.name, model.output_shape) == ("mine", (None, 10))
    assert [layer.alignment.rule for layer in aligned_layers(model)] == ["symmetric"]


def test_a_second_model_of_a_process_has_the_names_and_draws_of_the_first():
    """Keras numbers layers without a name by counters of the process, and B is drawn by the name of its layer."""
    builder = flat(lambda rule: layers.Dense(10, alignment=rule), aligned)
    outside = keras.layers.Dense(3).name
    first, second = (built(builder, {"rule": "feedback"}) for _ in range(2))
    assert [layer.name for layer in first.layers] == ["input_layer", "flatten", "dense", "dense_1"]
    assert [layer.name for layer in second.layers] == [layer.name for layer in first.layers]
    for one, other in zip(first.get_weights(), second.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert keras.layers.Dense(3).name not in (outside, "dense")


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
