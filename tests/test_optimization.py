"""Options of optimizers, learning-rate schedules and loss rates reach the objects that a run uses."""

import inspect
import re
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import assert_close

from neural_alignment import config as configuration
from neural_alignment.config import ConfigError, yaml_reader, yaml_writer
from neural_alignment.optimization import OPTIMIZERS, WITHOUT_FLOAT64, Clock
from neural_alignment.search import plan as plans
from neural_alignment.training import distribution, setup
from neural_alignment.training.describe import describe
from optimizers import SWATS, MultiOptimizer, RAdam

BASE = {
    "epochs": 10,
    "batch_size": 64,
    "data": {"source": "digits"},
    "model": {"name": "fc", "hidden": [4]},
    "alignment": {"rule": "symmetric", "self_": 1e-3, "decay": 1e-3},
    "optimization": {"forward": {"name": "sgd", "learning_rate": 0.1}},
}
RULES = {
    "none": {"alignment": None},
    "kolen_pollack": {"alignment": {"rule": "kolen_pollack", "decay": 1e-3}, "weight_decay": 1e-3},
}


def parse(rule=None, **said):
    optimization = {key: said.pop(key) for key in list(said) if key in configuration.Optimization.model_fields}
    data = configuration.merge(BASE, {"optimization": optimization, **said})
    return configuration.parse(configuration.merge(data, RULES.get(rule, {})))


def refused(**said):
    with pytest.raises(ConfigError) as error:
        parse(**said)
    assert "\n" not in str(error.value)
    return str(error.value)


def forward(**options):
    return {"forward": {"learning_rate": 0.1, "name": "sgd", **options}}


# Optimizers by name.


def public():
    """Returns the classes of `keras.optimizers` that have a learning rate, by their lower-case names."""
    found = {}
    for name in dir(keras.optimizers):
        kind = getattr(keras.optimizers, name)
        if inspect.isclass(kind) and issubclass(kind, keras.optimizers.Optimizer):
            found[name.lower()] = kind
    return {name: kind for name, kind in found.items() if name not in ("optimizer", "lossscaleoptimizer")}


def test_every_public_optimizer_of_keras_has_a_name():
    several = {"multioptimizer"}  # For several losses, where the installed Keras has it.
    sometimes = {"muon"}  # That of Keras before 3.15 does not work.
    assert set(OPTIMIZERS) | sometimes == (set(public()) - several) | sometimes | {"momentum", "radam", "swats"}
    assert {"adamw", "nadam", "lion", "adamax", "adadelta", "adafactor", "ftrl", "lamb"} <= set(OPTIMIZERS)
    assert OPTIMIZERS["adam"] is not keras.optimizers.Adam


COMMON = set(inspect.signature(keras.optimizers.SGD).parameters) - {"momentum", "nesterov"}


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_arguments_and_defaults_are_those_of_the_class(name):
    config = parse(forward={"name": name, "learning_rate": 0.25, "weight_decay": 0.125}, alignment=None)
    built = setup.build_optimizer(config, 10).inner_optimizers[0]
    assert type(built) is OPTIMIZERS[name]
    assert float(built.learning_rate) == 0.25
    assert built.weight_decay == 0.125
    own = {key: p.default for key, p in inspect.signature(OPTIMIZERS[name]).parameters.items() if key not in COMMON}
    own.pop("kwargs", None)
    plain = config.optimization.forward
    assert set(plain.arguments) == set(own)
    if name not in ("adam", "momentum", "rmsprop", "adagrad", "sgd"):  # Typed before, with their defaults.
        assert plain.arguments == own
    for key, value in own.items():
        assert getattr(built, key) in (getattr(plain, key), value or [])
    assert configuration.parse(configuration.plain(config)) == config


def test_arguments_reach_their_optimizer():
    lamb = {"name": "lamb", "beta_1": 0.5, "epsilon": 1e-3, "clip_global_norm": 2.0}
    swats = {"name": "swats", "learning_rate": 0.2, "rectified": True, "epsilon": 1e-5, "noise": {"variance": 0.1}}
    j, r = setup.build_optimizer(parse(**forward(**lamb), backward=swats), 10).inner_optimizers
    assert (j.beta_1, j.epsilon, j.global_clipnorm, j.weight_decay) == (0.5, 1e-3, 2.0, None)
    assert isinstance(r.optimizer, SWATS)
    assert (r.optimizer.rectified, r.optimizer.epsilon) == (True, 1e-5)
    assert setup.build_optimizer(parse(**forward(name="adamw")), 10).inner_optimizers[0].weight_decay == 0.004


def test_noise_of_another_rate_moves_the_weights_equally_far():
    noise = {"variance": 0.1, "rate": 0.05, "distribution": "sign", "only": "backward"}
    config = parse(**forward(name="sgd", learning_rate=0.2, noise=noise))
    noisy = setup.build_optimizer(config, 10).inner_optimizers[0]
    assert 0.2**2 * noisy.variance == pytest.approx(0.05**2 * 0.1)
    assert (noisy.distribution, noisy.only) == ("sign", "backward")
    assert configuration.parse(configuration.plain(config)) == config
    without = parse(**forward(name="sgd", learning_rate=0.2, noise={"variance": 0.1}))
    assert setup.build_optimizer(without, 10).inner_optimizers[0].variance == 0.1
    assert "rate" not in configuration.plain(without)["optimization"]["forward"]["noise"]


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"name": "adamv"}, "optimization.forward.name: must be one of sgd, momentum, adam, .*did you mean"),
        (
            {"name": "lion", "beta_3": 0.1},
            r"optimization.forward.beta_3: unknown key; allowed: .*did you mean 'beta_\d'",
        ),
        ({"name": "lion", "beta_1": 0.0}, "optimization.forward.beta_1: .*Received: beta_1=0.0"),
        ({"name": "ftrl", "learning_rate_power": 1.0}, "optimization.forward.learning_rate_power: .*negative or zero"),
        ({"name": "ftrl", "l1_regularization_strength": -1}, "optimization.forward.l1_regularization_strength: "),
        ({"name": "adamw", "beta_2": 1.0}, "optimization.forward.beta_2: input should be less than 1; found 1.0"),
        ({"name": "nadam", "epsilon": -1e-7}, "optimization.forward.epsilon: input should be greater than 0"),
        ({"name": "adadelta", "rho": 1.5}, "optimization.forward.rho: input should be less than 1"),
        ({"name": "adafactor", "epsilon_1": 0.0}, "optimization.forward.epsilon_1: input should be greater than 0"),
        ({"name": "adamw", "weight_decay": -0.1}, "optimization.forward.weight_decay: input should be greater"),
        ({"name": "sgd", "weight_decay": -0.1}, "optimization.forward.weight_decay: input should be greater"),
        ({"name": "adamw", "amsgrad": 1}, "optimization.forward.amsgrad: input should be true or false"),
        ({"name": "radam", "beta_1": 1.0}, "optimization.forward.beta_1: input should be less than 1"),
        ({"name": "swats", "rectified": "yes"}, "optimization.forward.rectified: input should be true or false"),
        (
            {"name": "sgd", "learning_rate": 0, "noise": {"variance": 1, "rate": 0.1}},
            "optimization.forward.noise: must have no `rate`",
        ),
        ({"name": "adamw", "use_ema": True}, "optimization.forward.use_ema: unknown key"),
        ({"name": "adafactor", "clip_threshold": 0.0}, "optimization.forward.clip_threshold: input should be greater"),
        pytest.param(
            {"name": "muon", "exclude_layers": ["("]},
            r"optimization.forward.exclude_layers.0: must be a regular expression \(.*\); found '\('",
            marks=pytest.mark.skipif("muon" not in OPTIMIZERS, reason="this Keras has no usable Muon"),
        ),
        ({"base_batch_size": 512}, "optimization.forward.base_batch_size: must be null without `scale_with_batch`"),
    ],
)
def test_wrong_arguments_are_one_line_that_names_the_key(options, line):
    assert re.match(line, refused(**forward(**options)))


def test_reading_a_configuration_creates_no_optimizer(monkeypatch):
    """It would initialise TensorFlow's devices, before a run divides them."""

    def fail(*args, **kwargs):
        raise AssertionError("created")

    monkeypatch.setattr(keras.optimizers.Optimizer, "__init__", fail)
    parse(**forward(name="adamw", beta_1=0.5, amsgrad=True), backward={"name": "lion", "learning_rate": 0.1})


def moved(names, replicas=1, jit_compile=None):
    """Returns W and B before and after some steps of optimizers, each replica with its part of the gradient."""
    runtime = {"strategy": "mirrored", "replicas": replicas} if replicas > 1 else {"strategy": "cpu"}
    strategy, rng, out = distribution.create(configuration.Runtime(**runtime)).strategy, np.random.default_rng(0), {}
    start, gradients = rng.normal(size=(2, 3, 4)), rng.normal(size=(3, 2, 3, 4)).astype(np.float32)
    with strategy.scope():
        for name in names:
            kind = OPTIMIZERS[name]
            own = [keras.Variable(w, dtype="float32", name=n) for w, n in zip(start, NAMES, strict=True)]
            optimizer = MultiOptimizer([kind(0.05), kind(0.02)])
            optimizer.build(own)
            out[name] = optimizer, own

    def step(g):
        for optimizer, own in out.values():
            optimizer.apply([g[0] / replicas, g[1] / replicas], own)

    traced = step if jit_compile is None else tf.function(step, autograph=False, jit_compile=jit_compile)
    for g in gradients:
        strategy.run(traced, args=(tf.constant(g),)) if replicas > 1 else traced(tf.constant(g))
    return {name: np.array([start, [v.numpy() for v in own]]) for name, (_, own) in out.items()}


NAMES = ("kernel", "backward_kernel")


@pytest.fixture(scope="module")
def eager():
    """Where every optimizer moves W and B."""
    return moved(OPTIMIZERS)


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(("momentum", "radam", "swats", "adam"), id="own and adam"),
        pytest.param(tuple(OPTIMIZERS), id="all", marks=pytest.mark.exhaustive),
    ],
)
@pytest.mark.parametrize("how", [{"replicas": 2, "jit_compile": False}, {"jit_compile": True}], ids=["replicas", "xla"])
def test_every_optimizer_trains_w_and_b_on_replicas_and_under_xla(eager, how, names):
    for name, (before, after) in moved(names, **how).items():
        assert_close(after, eager[name][1], "float32")
        assert (np.abs(after - before).max(axis=(1, 2)) > 1e-5).all(), name


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_every_optimizer_moves_float64_weights_or_is_refused_for_them(name):
    """In a run the dtype of new layers is float32 again when the step is traced."""
    own = [keras.Variable(np.eye(3, 4), dtype="float64", name=n) for n in ("kernel", "backward_kernel")]
    optimizer = MultiOptimizer([OPTIMIZERS[name](0.05), OPTIMIZERS[name](0.02)])
    works = True
    try:
        optimizer.apply([tf.ones((3, 4), tf.float64)] * 2, own)
    except (TypeError, tf.errors.InvalidArgumentError):
        works = False
    said = {**forward(name=name), "runtime": {"precision": "float64"}}
    if works:
        assert name in WITHOUT_FLOAT64 or parse(**said)
    else:
        line = rf"optimization.forward.name: must be .* that supports runtime.precision float64 .*; found '{name}'"
        assert re.match(line, refused(**said))


# Learning-rate schedules.

WARMUP = 2
KINDS = {
    "drops": ({"drop_epochs": [4, 6]}, lambda e, end: 0.1 ** ((e >= 4) + (e >= 6))),
    "constant": ({"kind": "constant"}, lambda e, end: 1.0),
    "cosine": (
        {"kind": "cosine", "floor": 0.1},
        lambda e, end: 0.1 + 0.9 * (1 + np.cos(np.pi * min((e - WARMUP) / (end - WARMUP), 1))) / 2,
    ),
    "cosine to an epoch": (
        {"kind": "cosine", "end_epoch": 5},
        lambda e, end: (1 + np.cos(np.pi * min((e - WARMUP) / (5 - WARMUP), 1))) / 2,
    ),
    "polynomial": (
        {"kind": "polynomial", "power": 2, "floor": 0.2},
        lambda e, end: 0.2 + 0.8 * (1 - min((e - WARMUP) / (end - WARMUP), 1)) ** 2,
    ),
    "exponential": (
        {"kind": "exponential", "factor": 0.5, "every_epochs": 3},
        lambda e, end: 0.5 ** ((e - WARMUP) / 3),
    ),
    "staircase": (
        {"kind": "exponential", "factor": 0.5, "every_epochs": 3, "staircase": True},
        lambda e, end: 0.5 ** np.floor((e - WARMUP) / 3),
    ),
    "by hand": ({"kind": "manual"}, lambda e, end: 1.0),
}


@pytest.mark.parametrize("clock", [{}, {"alternation": 2}, {"delay_epochs": 3, "alternation": 1}], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_a_schedule_counts_epochs_of_j(kind, clock):
    """The floor is reached at the last step of the run, of which the delay is a part."""
    said, factor = KINDS[kind]
    warmup = 0 if "delay_epochs" in clock else WARMUP
    schedule = {**said, "warmup_epochs": WARMUP}
    plan = {**forward(schedule=schedule), "backward": {"name": "adam", "learning_rate": 0.3, "schedule": said}, **clock}
    config, spe = parse(**plan), 50
    optimizer = setup.build_optimizer(config, spe)
    turns, delay = clock.get("alternation", 0) + 1, clock.get("delay_epochs", 0)
    end = 10 - delay / turns
    steps = sorted({0, 1, delay * spe, 10 * turns * spe, 12 * turns * spe, *range(13, 10 * turns * spe, 61)})
    rates = []
    for step in steps:
        optimizer.iterations.assign(step)
        rates.append([float(rate) for rate in optimizer.learning_rates])
    epochs = [max(step - delay * spe, 0) / (turns * spe) for step in steps]
    expected = [0.1 * min(e / WARMUP, 1) * factor(max(e, WARMUP), end) for e in epochs]
    assert_close(np.array(rates)[:, 0], expected, "float32")
    if kind in ("drops", "constant", "by hand"):
        assert_close(np.array(rates)[:, 1], [0.3 * factor(e, end) for e in epochs], "float32")
    assert rates[0][1] == pytest.approx(0.3)
    assert warmup or rates[0][0] == 0


def test_manual_drops_are_after_a_global_step():
    schedule = {"kind": "manual", "drop": 2, "drop_step": 120}
    optimizer = setup.build_optimizer(parse(**forward(schedule=schedule), alternation=1), 50)
    for step, rate in [(0, 0.01), (120, 0.01), (121, 0.001)]:
        optimizer.iterations.assign(step)
        assert float(optimizer.learning_rate) == pytest.approx(rate)


@pytest.mark.parametrize(
    ("schedule", "line"),
    [
        (
            {"kind": "cosin"},
            "optimization.forward.schedule.kind: must be one of drops, .*; found 'cosin'; did you mean",
        ),
        ({"floor": 0.1}, "optimization.forward.schedule.floor: unknown key; allowed: drop_epochs, drop_factor, kind"),
        (
            {"kind": "cosine", "floor": 2},
            "optimization.forward.schedule.floor: input should be less than or equal to 1",
        ),
        (
            {"kind": "cosine", "warmup_epochs": 10},
            "optimization.forward.schedule.warmup_epochs: must be less .*10",
        ),
        ({"kind": "polynomial", "end_epoch": 1, "warmup_epochs": 1}, "optimization.forward.schedule.end_epoch: must"),
        ({"kind": "exponential"}, "optimization.forward.schedule.factor: this key is required"),
        ({"kind": "exponential", "factor": 0.0}, "optimization.forward.schedule.factor: input should be greater"),
        (
            {"kind": "manual", "drop": 1},
            "optimization.forward.schedule.drop_step: must be the global step",
        ),
        (
            {"kind": "manual", "drop_step": 9},
            "optimization.forward.schedule.drop_step: must be null with drop 0",
        ),
        (
            {"kind": "manual", "drop_factor": 0.5},
            "optimization.forward.schedule.drop_factor: must be left out with drop 0",
        ),
        (
            {"kind": "manual", "drop": 1, "drop_step": 9, "warmup_epochs": 1},
            "optimization.forward.schedule.warmup_epochs: must be 0 with drop 1",
        ),
        (
            {"kind": "manual", "drop": 10**11, "drop_step": 9},
            "optimization.forward.schedule.drop: input should be less",
        ),
        (
            {"kind": "manual", "drop": 2, "drop_step": 9, "drop_factor": 10.0},
            "optimization.forward.schedule.drop_factor: input should be less",
        ),
        ({"kind": "cosine", "end_epoch": 1e-300}, "optimization.forward.schedule.end_epoch: input should be greater"),
        (
            {"kind": "exponential", "factor": 0.5, "every_epochs": 1e-320},
            "optimization.forward.schedule.every_epochs: input should be greater",
        ),
    ],
)
def test_invalid_schedules_are_one_line(schedule, line):
    assert re.match(line, refused(**forward(schedule=schedule)))


def test_a_delay_excludes_a_warm_up_of_r_for_every_kind_of_schedule():
    adam = {"name": "adam", "learning_rate": 0.1, "schedule": {"kind": "constant", "warmup_epochs": 1}}
    assert "optimization.backward.schedule.warmup_epochs: must be 0 with delay_epochs" in refused(
        backward=adam, delay_epochs=1
    )


def test_another_kind_of_schedule_replaces_drops_without_an_explicit_kind():
    drops, cosine = {"schedule": {"warmup_epochs": 1, "drop_epochs": [4]}}, {"schedule": {"kind": "cosine"}}
    assert configuration.merge(drops, cosine) == cosine
    more = {"schedule": {"kind": "drops", "drop_factor": 0.5}}
    assert configuration.merge(drops, more)["schedule"] == {**drops["schedule"], **more["schedule"]}
    warm = {"schedule": {"warmup_epochs": 1}}
    assert configuration.merge(warm, cosine)["schedule"] == {"warmup_epochs": 1, "kind": "cosine"}


# The rate and the batch.


@pytest.mark.parametrize("schedule", [None, {"kind": "cosine", "floor": 0.5}, {"kind": "polynomial", "floor": 0.5}])
def test_the_rate_scales_with_the_batch_and_the_floor_with_it(schedule):
    options = {"scale_with_batch": True, "schedule": schedule}
    both = {**forward(**options), "backward": {"name": "adam", "learning_rate": 0.1, **options, "base_batch_size": 32}}
    optimizer = setup.build_optimizer(parse(**both), 50)
    assert [float(rate) for rate in optimizer.learning_rates] == pytest.approx([0.1 * 64 / 256, 0.1 * 64 / 32])
    optimizer.iterations.assign(500)
    last = 1.0 if schedule is None else 0.5
    assert [float(rate) for rate in optimizer.learning_rates] == pytest.approx([0.025 * last, 0.2 * last])


# Factors on the losses.


def test_loss_rates_reach_the_scheduler_by_epochs_of_global_steps():
    drops = {"value": 2.0, "schedule": {"drop_epochs": [3]}}
    cosine = {"schedule": {"kind": "cosine"}}
    config = parse(loss_rates={"forward": cosine, "backward": drops}, alternation=1, delay_epochs=1)
    scheduler = setup.build_optimizer(config, 50).rate_scheduler
    for step in (1, 51, 149, 150, 151, 501, 999):
        turn = step < 50 or step % 2 == 0
        j = 0.0 if turn else (1 + np.cos(np.pi * step / 1000)) / 2  # The run has 10 epochs of J, so 20 of its steps.
        r = (2.0 if step < 150 else 0.2) if turn else 0.0
        assert_close(np.array([float(rate) for rate in scheduler(step)]), [j, r], "float32")
    assert setup.build_optimizer(parse(), 50).rate_scheduler is None


@pytest.mark.parametrize(
    ("said", "line"),
    [
        ({"loss_rates": {"forward": 0, "backward": 0.0}}, "optimization.loss_rates.backward: must not be 0 if"),
        (
            {"loss_rates": {"forward": -1}},
            "optimization.loss_rates.forward: input should be greater than or equal to 0",
        ),
        *(
            ({"loss_rates": {"forward": factor}}, "optimization.loss_rates.forward: must be 0, or between 1e-30 and")
            for factor in (1e300, 1e-300)
        ),
        (
            {"loss_rates": {"backward": {"value": 1.0}}},
            "optimization.loss_rates.backward.schedule: this key is required",
        ),
        (
            {"loss_rates": {"backwards": 1.0}},
            "optimization.loss_rates.backwards: unknown key; .*did you mean 'backward'",
        ),
        (
            {"loss_rates": {"forward": {"schedule": {"kind": "cosine", "warmup_epochs": 10}}}},
            "optimization.loss_rates.forward.schedule.warmup_epochs: must be less than",
        ),
        ({"loss_rates": {"backward": 0.5}, "rule": "none"}, "optimization.loss_rates.backward: must be 1: no rule"),
        ({"loss_rates": {"forward": 0.0}, "rule": "none"}, "optimization.loss_rates.forward: must not be 0"),
        (
            {"loss_rates": {"backward": 0.5}, "rule": "kolen_pollack"},
            "optimization.loss_rates: must be equal for J and R with kolen_pollack, .*found .*1.0.*0.5",
        ),
    ],
)
def test_invalid_loss_rates_are_one_line(said, line):
    assert re.match(line, refused(**said))


def test_loss_rates_of_a_run_without_r_scale_j():
    scheduler = setup.build_optimizer(parse("none", loss_rates={"forward": 0.5}), 50).rate_scheduler
    assert [float(rate) for rate in scheduler(7)] == [0.5, 1.0]


# Files, descriptions, searches.


def test_a_configuration_of_an_earlier_version_is_written_as_it_was():
    """The checksum of a run's configuration would change if new keys were written at their defaults."""
    plain = configuration.plain(parse(**forward(schedule={"drop_epochs": [4]})))["optimization"]
    assert set(plain) == {"forward", "delay_epochs", "skip_idle", "minibatches"}
    assert set(plain["forward"]) == {"name", "learning_rate", "momentum", "nesterov", "schedule"}
    assert set(plain["forward"]["schedule"]) == {"warmup_epochs", "drop_epochs", "drop_factor"}


def test_describe_names_the_optimizers_with_every_option():
    cosine = {"kind": "cosine", "warmup_epochs": 1, "floor": 0.25}
    text = describe(
        parse(
            **forward(name="adamw", scale_with_batch=True, base_batch_size=32, schedule=cosine, clip_value=3.5),
            backward={"name": "swats", "learning_rate": 0.01, "rectified": True, "noise": {"variance": 0.125}},
            loss_rates={"forward": 0.5, "backward": {"value": 4, "schedule": {"drop_epochs": [7]}}},
            alternation=3,
            delay_epochs=2,
        )
    )
    j = next(line for line in text.splitlines() if line.startswith("optimizer   J: adamw, learning_rate 0.2 "))
    for said in (
        "(0.1 for batch 32, scaled to 64)",
        "schedule cosine (warmup_epochs 1, floor 0.25)",
        "weight_decay 0.004",
        "clip_value 3.5",
        "beta_2 0.999",
    ):
        assert said in j
    r = next(line for line in text.splitlines() if line.startswith("optimizer   R: swats, learning_rate 0.01"))
    assert "rectified true" in r
    assert "noise (variance 0.125, distribution normal)" in r
    assert (
        "loss rates  J 0.5, R (value 4, schedule drops (warmup_epochs 0, drop_epochs [7.0], drop_factor 0.1))" in text
    )
    assert "R only for 2 epochs, then one step of R to 3 of J" in text
    assert "optimizer   J + R: sgd, learning_rate 0.1" in describe(parse())
    assert "optimizer   J: sgd, learning_rate 0.1" in describe(parse("none"))


def test_a_search_proposes_the_new_keys(tmp_path):
    path = tmp_path / "search.yaml"
    space = {
        "optimization.forward.name": {"choice": ["adamw", "radam"]},
        "optimization.forward.weight_decay": {"log_uniform": [1e-5, 1e-2]},
        "optimization.forward.schedule.floor": {"uniform": [0, 0.5]},
        "optimization.loss_rates.backward": {"choice": [0.5, 2.0]},
    }
    run = {**BASE, "optimization": {**forward(name="adam", schedule={"kind": "cosine"})}}
    (tmp_path / "run.yaml").write_text(yaml_writer.write(run))
    path.write_text(yaml_writer.write({"config": "run.yaml", "trials": 2, "space": space}))
    assert set(plans.load(str(path)).space) == set(space)


def test_the_clock_of_a_run_has_its_epochs_without_the_delay():
    assert parse(delay_epochs=3, alternation=1).epochs_of_j == 8.5
    assert parse().epochs_of_j == 10
    assert Clock(5, 8.5, 3, 1).arguments == {"steps_per_epoch": 5, "delay_epochs": 3, "alternation": 1}


def test_radam_and_swats_are_known_to_keras_by_their_names():
    for kind in (RAdam, SWATS):
        again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(kind(0.5, 0.8)))
        assert again.get_config() == kind(0.5, 0.8, name=again.name).get_config()


DOCUMENT = (Path(__file__).parent.parent / "docs" / "optimizers.md").read_text()


def test_the_page_on_optimizers_agrees_with_the_options():
    [said] = re.findall(r"```yaml\n(.*?)```", DOCUMENT, re.DOTALL)
    parse(**yaml_reader.parse(said, "page")["optimization"], epochs=100)
    [code] = re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL)
    exec(code, {})
    named = re.findall(r"^\| (`\w+`.*?) \|", DOCUMENT, re.MULTILINE)
    assert {name for cell in named for name in re.findall(r"`(\w+)`", cell)} >= set(OPTIMIZERS)
