"""One run on several replicas: the same weights as on one, whatever the rule, the schedule and the optimizer."""

import collections
import contextlib
import csv
import json
import math
import os
import re
import shutil
import signal
from typing import ClassVar, Literal
from unittest import mock

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import LEARNING, RULE_CONFIGS, TABLE_5, TIED, assert_close, distance, exhaustive_unless
from helpers import RUN_ON_REPLICAS as CONFIG
from ports import free_ports
from processes import Command

from neural_alignment import config as configuration
from neural_alignment import data, layers
from neural_alignment.alignments import forward_pass, from_config, networkwise_rules
from neural_alignment.config import Runtime
from neural_alignment.errors import Diverged, InputError, Stopped
from neural_alignment.losses import SMALLEST_LOSS, Criterion, FunctionLoss, LossOptions
from neural_alignment.serialization import serializable
from neural_alignment.training import AlignedModel, checkpoints, distribution, load_model, run, setup
from neural_alignment.training.evaluation import Evaluator
from neural_alignment.training.step_loop import StepLoop
from neural_alignment.training.stopping import Stop
from neural_alignment.training.trainer import Trainer
from optimizers import SWATS, Momentum, MultiOptimizer, Noisy, RateScheduler, WarmupAndDrops

BATCH, STEPS, CLASSES = 8, 4, 3
COLUMNS = {
    **{
        name: {**RULE_CONFIGS["information" if name == "IA" else "weight_mirror"], **path}
        for name, path in TABLE_5.items()
    },
    "IA of centred reconstructions": {
        **RULE_CONFIGS["information"],
        "compare_reconstruction": True,
        "input": {"noise": "uniform", "stddev": 0.5},
        "forward_output": {"batch_center": True, "relu": True},
    },
    "WM of centred outputs that trains W": {
        **RULE_CONFIGS["weight_mirror"],
        "forward_output": {"batch_center": True},
        "update_forward": True,
    },
}
RULES = {**RULE_CONFIGS, **COLUMNS, "backpropagation": None, **{rule: {"rule": rule} for rule in networkwise_rules()}}
TURNS = [name for name, config in RULES.items() if config and config["rule"] in LEARNING and name not in TIED]
"""Rules whose J and R can take turns."""


def strategy_of(replicas):
    """Returns the default strategy, or a mirrored one over parts of the CPU."""
    runtime = Runtime(strategy="mirrored", replicas=replicas) if replicas > 1 else Runtime(strategy="cpu")
    return distribution.create(runtime).strategy


def batches():
    """Returns the batches of every step."""
    rng = np.random.default_rng(5)
    x = rng.normal(size=(STEPS, BATCH, 6, 6, 2)) + rng.normal(size=(1, BATCH, 1, 1, 1))
    return tf.data.Dataset.from_tensor_slices((x, rng.integers(0, CLASSES, size=(STEPS, BATCH))))


def network(rule, synchronized=True):
    """Returns a convolution, batch normalisation and a dense layer; only the dense layer if `synchronized` is None."""
    keras.utils.set_random_seed(1)
    decay = rule.decay if rule is not None and rule.tie_gradient else 0.02
    options = {"alignment": rule, "kernel_regularizer": keras.regularizers.L2(decay / 2)}
    x = inputs = keras.Input((6, 6, 2))
    if synchronized is not None:
        x = layers.Conv2D(4, 3, strides=2, alignment_activation="relu", use_bias=False, name="conv", **options)(x)
        x = keras.layers.BatchNormalization(synchronized=synchronized, momentum=0.9, name="norm")(x)
        x = keras.layers.ReLU()(x)
    return AlignedModel(inputs, layers.Dense(CLASSES, name="dense", **options)(keras.layers.Flatten()(x)))


def train(replicas, config, scheduler=None, forward=None, backward=None, skip_idle=True, synchronized=True, **options):
    """Trains and returns all weights, optimizer slots included, and the history of `fit`."""
    strategy = strategy_of(replicas)
    with strategy.scope():
        seeded = {"seed": 4} if config and "input" in config else {}
        model = network(config and from_config({**config, **seeded}), synchronized)
        optimizers = [(forward or (lambda: Momentum(0.1)))()]
        if config is None or config["rule"] not in TIED:
            optimizers.append((backward or (lambda: keras.optimizers.Adam(0.05, epsilon=1e-8)))())
        model.compile(
            MultiOptimizer(optimizers, scheduler, skip_idle),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            weighted_metrics=["accuracy"],
            jit_compile=False,
            **options,
        )
    history = model.fit(batches(), epochs=1, verbose=0, shuffle=False).history
    variables = [*model.variables, *model.optimizer.variables]
    return [v.numpy() for v in variables if v.dtype != "string"], history


def agree(config, replicas=2, **options):
    """Fails unless several replicas end with the weights of one; returns these weights."""
    one, history = train(1, config, **options)
    several, reported = train(replicas, config, **options)
    for expected, actual in zip(one, several, strict=True):
        assert_close(actual, expected)
    assert history.keys() == reported.keys()
    for name, values in history.items():
        assert_close(np.array(reported[name]), np.array(values), "float32")
    return one


ELSEWHERE = ("weight_mirror", "WM", "WM+AD", "WM+AD+OPS", "information")
"""Rules of other tests: WM trains with every schedule, WM+AD+OPS unsynchronised, information in minibatches."""


FIRST = ("pfa", "align_ada")
"""Rules with one optimizer and two backward weights, and with a frozen network.

Symmetric trains with clipped optimizers below.
"""


@pytest.mark.parametrize("rule", exhaustive_unless([rule for rule in RULES if rule not in ELSEWHERE], FIRST))
def test_two_replicas_train_as_one_does(float64, rule):
    """J and R in turn, where they can."""
    agree(RULES[rule], scheduler=RateScheduler(2, alternation=1) if rule in TURNS else None)


def test_batch_normalisation_is_per_replica_unless_synchronised(float64):
    """With noise, means over the batch of all replicas, and J and R in the same step.

    Without synchronisation two replicas differ from one, as the cores of the TPU did in the published runs.
    """
    one = agree(RULES["WM+AD+OPS"])
    two, _ = train(2, RULES["WM+AD+OPS"], synchronized=False)
    assert max(distance(a, b) for a, b in zip(one, two, strict=True)) > 1e-2


SCHEDULES = {
    "alternation with delay": {"scheduler": RateScheduler(1, delay_epochs=1, alternation=2)},
    "alternation with momentum drift": {"scheduler": RateScheduler(2, alternation=1), "skip_idle": False},
    "several steps per execution": {"steps_per_execution": 3},
    "loss rates, and a change of phase": {
        "scheduler": RateScheduler(1, loss_rates=(0.5, WarmupAndDrops(2.0, 1, 1, (2,)))),
        "forward": lambda: SWATS(0.02, epsilon=0.5, rectified=True),
    },
}


@pytest.mark.parametrize("schedule", exhaustive_unless(SCHEDULES, ("several steps per execution",)))
def test_every_schedule_trains_on_two_replicas_as_on_one(float64, schedule):
    agree(RULES["WM"], synchronized=None, **SCHEDULES[schedule])


@pytest.mark.parametrize(
    "scheduler",
    [
        pytest.param(None, id="simultaneous", marks=pytest.mark.exhaustive),
        pytest.param(RateScheduler(2, alternation=1), id="alternating", marks=pytest.mark.exhaustive),
    ],
)
def test_minibatches_train_on_two_replicas_as_on_one(float64, scheduler):
    """Without batch normalisation and centring, whose batch is that of a minibatch of all replicas."""
    rule = {**RULE_CONFIGS["information"], "input": {"noise": "normal"}, "forward_output": {"relu": True}}
    agree(rule, minibatches=2, scheduler=scheduler, synchronized=None)


OPTIMIZERS = {
    "clipped by norm and by value": {
        "forward": lambda: Momentum(0.1, clipnorm=0.1),
        "backward": lambda: keras.optimizers.SGD(0.1, clipvalue=0.02),
    },
    "clipped by the norm of all gradients, with noise on the updates": {
        "forward": lambda: Noisy(Momentum(0.1, global_clipnorm=0.5), 1e-3, seed=3),
        "backward": lambda: keras.optimizers.SGD(0.1, global_clipnorm=0.5),
    },
}
UNCLIPPED = {"forward": lambda: Momentum(0.1), "backward": lambda: keras.optimizers.SGD(0.1)}


@pytest.fixture(scope="module")
def unclipped():
    """Returns the kernels W and B of one replica with the optimizers of `OPTIMIZERS` without clipping and noise."""
    return kernels(train(1, RULES["symmetric"], synchronized=None, **UNCLIPPED)[0])


def kernels(arrays):
    """Returns W and B of the network that is one dense layer."""
    w, b = (next(a for a in arrays if a.shape == shape) for shape in ((72, CLASSES), (CLASSES, 72)))
    return w, b


@pytest.mark.parametrize(
    "optimizer",
    exhaustive_unless(OPTIMIZERS, ("clipped by the norm of all gradients, with noise on the updates",)),
)
def test_every_optimizer_moves_two_replicas_as_one(float64, optimizer, unclipped):
    clipped = agree(RULES["symmetric"], synchronized=None, **OPTIMIZERS[optimizer])
    for free, held in zip(unclipped, kernels(clipped), strict=True):
        assert distance(free, held) > 1e-2


def test_a_scheduled_optimizer_outside_of_an_aligned_model_says_what_it_needs(float64):
    strategy = strategy_of(2)
    with strategy.scope():
        variable = keras.Variable(np.ones(2), name="backward_kernel")
        optimizer = MultiOptimizer([Momentum(0.1), Momentum(0.1)], RateScheduler(1, alternation=1))
        optimizer.build([variable])
    with pytest.raises(ValueError, match="several replicas `apply` must be called inside a `mode` context"):
        strategy.run(lambda: optimizer.apply([tf.ones(2, tf.float64)], [variable]))


@pytest.mark.exhaustive
def test_four_replicas_train_as_one_does(float64):
    agree(RULES["WM"], replicas=4, synchronized=None)


def test_dropout_draws_the_same_numbers_on_every_replica_as_the_documentation_says():
    strategy = strategy_of(2)
    with strategy.scope():
        layer = keras.layers.Dropout(0.5, seed=1)
    drawn = strategy.run(lambda: layer(tf.ones((1, 64)), training=True))
    first, second = (np.array(each) for each in strategy.experimental_local_results(drawn))
    assert set(first.ravel()) == {0.0, 2.0}
    np.testing.assert_array_equal(first, second)


@pytest.mark.exhaustive
def test_aligned_layers_in_a_plain_keras_model_train_on_two_replicas_as_on_one(float64):
    """R comes by `add_loss` there, and the layers count their own steps."""
    ends = []
    for replicas in (1, 2):
        with strategy_of(replicas).scope():
            aligned = network(from_config({**RULES["WM"], "seed": 4}))
            model = keras.Model(aligned.input, aligned.output)
            optimizer = MultiOptimizer([Momentum(0.1), keras.optimizers.Adam(0.05)])
            model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True), jit_compile=False)
        model.fit(batches(), verbose=0, shuffle=False)
        ends.append([v.numpy() for v in model.variables if v.dtype != "string"])
    for one, two in zip(*ends, strict=True):
        assert_close(two, one)


@pytest.mark.parametrize("kind", [AlignedModel, keras.Model], ids=["aligned", "keras"])
def test_every_example_has_its_own_noise_where_replicas_differ_in_size(float64, kind):
    """3 examples on 2 replicas are 2 and 1: the last one is example 2, not 1 times 1."""
    rule = from_config({"rule": "weight_mirror", "amp": 1.0, "decay": 0.0, "input": {"noise": "normal"}, "seed": 4})
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(7, 5)), np.zeros((7, 2))

    def made():
        keras.utils.set_random_seed(2)
        inputs = keras.Input((5,))
        return kind(inputs, layers.Dense(2, alignment=rule, name="layer")(inputs))

    with strategy_of(2).scope():
        model = made()
        model.compile(MultiOptimizer([keras.optimizers.SGD(0.0), keras.optimizers.SGD(1.0)]), "mse", jit_compile=False)
    start = model.get_layer("layer").backward_kernel.numpy()
    data = tf.data.Dataset.from_tensor_slices((x, y))
    # Keras needs the first batch to be even.
    model.fit(data.take(4).batch(4).concatenate(data.skip(4).batch(3)), verbose=0, shuffle=False)
    step = start - model.get_layer("layer").backward_kernel.numpy()

    def gradient(last):
        layer, total = made().get_layer("layer"), 0.0
        firsts = [(0, 0), (0, 2), (1, 0), (1, last)]
        for part, (number, first) in zip(np.split(x, [2, 4, 6]), firsts, strict=True):
            with tf.GradientTape() as tape, forward_pass(step=number, first_example=first) as state:
                layer(part, training=True)
            total = total + tape.gradient(state.losses["layer"], layer.backward_kernel.value) / 2
        return total

    assert_close(step, gradient(last=2))
    assert distance(step, gradient(last=1)) > 0.05


@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", [AlignedModel, keras.Model], ids=["aligned", "keras"])
def test_a_replica_without_examples_leaves_all_weights_finite(kind):
    """The last batch has one example for two replicas."""
    rule = from_config({**RULE_CONFIGS["information"], **TABLE_5["WM+AD+OPS"]})
    rule = rule.model_copy(update={"input": rule.input.model_copy(update={"noise": "sign"})})
    with strategy_of(2).scope():
        inputs = keras.Input((5,))
        model = kind(inputs, layers.Dense(2, alignment=rule, alignment_activation="relu")(inputs))
        model.compile(MultiOptimizer([Momentum(0.1), Momentum(0.1)]), "mse", jit_compile=False)
    x = np.random.default_rng(3).normal(size=(5, 5))
    data = tf.data.Dataset.from_tensor_slices((x, np.zeros((5, 2))))
    model.fit(data.take(4).batch(4).concatenate(data.skip(4).batch(1)), verbose=0, shuffle=False)
    assert all(np.isfinite(variable).all() for variable in model.variables)


# From the configuration to the devices.


def run_of(folder, *overrides, resume=False):
    """Trains in `folder` and returns the rows of metrics.csv without their seconds, and the weights."""
    file = folder / "run.yaml"
    file.write_text(CONFIG)
    result = run.train(configuration.load(str(file), overrides), str(folder / "run"), resume=resume)
    return result_of(folder / "run"), result


def result_of(directory):
    """Returns the rows of a run without their seconds, and its weights."""
    with (directory / "metrics.csv").open() as file:
        rows = [{key: cell for key, cell in row.items() if key != "seconds"} for row in csv.DictReader(file)]
    return rows, load_model(directory / "model.keras").get_weights()


def assert_same_run(actual, expected):
    """Fails unless rows and weights are the same to float32's rounding over a run of 12 steps."""
    for row, other in zip(actual[0], expected[0], strict=True):
        assert row.keys() == other.keys()
        for key, cell in row.items():
            if "angle" in key and cell:
                assert float(cell) == pytest.approx(float(other[key]), abs=0.01), key
            else:
                assert float(cell or "nan") == pytest.approx(float(other[key] or "nan"), rel=1e-4, nan_ok=True), key
    for weight, other in zip(actual[1], expected[1], strict=True):
        np.testing.assert_allclose(weight, other, atol=1e-5)


TWO = ("runtime.strategy=mirrored", "runtime.replicas=2")


@contextlib.contextmanager
def counted_traces():
    """Yields a counter of the traces of steps of J, of steps of R, and of the evaluation."""
    traces = collections.Counter()
    step, evaluation = AlignedModel._replica_step, AlignedModel.test_step

    def counted_step(self, data, at, mode):
        traces["J" * mode.j_runs + "R" * mode.r_runs] += 1
        return step(self, data, at, mode)

    def counted_evaluation(self, data):
        traces["evaluation"] += 1
        return evaluation(self, data)

    with (
        mock.patch.object(AlignedModel, "_replica_step", counted_step),
        mock.patch.object(AlignedModel, "test_step", counted_evaluation),
    ):
        yield traces


@pytest.fixture(scope="module")
def one_device(tmp_path_factory):
    """Returns the result of the run on one device, and its traces."""
    with counted_traces() as traces:
        result, _ = run_of(tmp_path_factory.mktemp("one"), "runtime.strategy=cpu")
    return result, traces


@pytest.fixture(scope="module")
def two_devices(tmp_path_factory):
    """Returns the result of the run on two replicas, its traces and its folder.

    The folder `middle` has a copy of the run directory at a checkpoint in the middle of the first epoch.
    """
    folder, save = tmp_path_factory.mktemp("two"), checkpoints.CheckpointStore.save

    def save_and_copy(self, name):
        saved = save(self, name)
        if self._model.global_step == 5:
            shutil.copytree(folder / "run", folder / "middle" / "run", ignore=shutil.ignore_patterns("lock.json"))
        return saved

    with counted_traces() as traces, mock.patch.object(checkpoints.CheckpointStore, "save", save_and_copy):
        result, _ = run_of(folder, *TWO)
    return result, traces, folder


def test_a_run_from_yaml_on_two_replicas_is_that_on_one(one_device, two_devices):
    """The last validation batch, of 24 examples, is filled up; each example counts once."""
    (rows, _), *_ = one_device
    several, _, folder = two_devices
    assert_same_run(several, one_device[0])
    evaluated = run.evaluate(str(folder / "run"))
    assert evaluated["top1"] == pytest.approx(float(rows[-1]["top1"]), rel=1e-6)
    assert evaluated["J"] == pytest.approx(float(rows[-1]["J"]), rel=1e-4)


@pytest.mark.parametrize(("devices", "replicas"), [("one_device", 1), ("two_devices", 2)])
def test_a_run_traces_its_steps_and_its_evaluation_once_on_each_replica(request, devices, replicas):
    """With five steps of J and of R in the first epoch, two in the second, and an evaluation after each."""
    (rows, _), traces, *_ = request.getfixturevalue(devices)
    assert [row["step"] for row in rows] == ["0", "10", "12"]
    assert traces == {"J": replicas, "R": replicas, "evaluation": replicas}


@pytest.mark.exhaustive
def test_a_run_continues_on_another_number_of_replicas(tmp_path, one_device, two_devices):
    shutil.copytree(two_devices[-1] / "middle", tmp_path, dirs_exist_ok=True)
    latest = tf.train.latest_checkpoint(str(tmp_path / "run" / "checkpoints" / "last"))
    assert latest.endswith("ckpt-5")
    resumed, _ = run_of(tmp_path, "runtime.strategy=cpu", resume=True)
    assert_same_run(resumed, one_device[0])


@pytest.mark.exhaustive
def test_force_traces_the_step_of_replicas_once_and_before_it_removes_the_earlier_run(tmp_path, two_devices):
    path = shutil.copytree(two_devices[-1] / "middle", tmp_path, dirs_exist_ok=True) / "run"
    (tmp_path / "run.yaml").write_text(CONFIG)
    plan = configuration.load(str(tmp_path / "run.yaml"), [*TWO, "max_steps=2"])
    before = sorted(path.rglob("*"))
    failing = mock.patch.object(AlignedModel, "_replica_step", side_effect=TypeError("a mistake of the user"))
    with failing, pytest.raises(TypeError, match="a mistake of the user"):
        run.train(plan, path, force=True)
    assert sorted(path.rglob("*")) == before
    with counted_traces() as traces:
        assert run.train(plan, path, force=True).metrics["step"] == 2
    assert traces == {"J": 2, "R": 2, "evaluation": 2}


@pytest.mark.parametrize(("replicas", "together"), [(1, 4), (2, 1)])
def test_an_evaluation_is_one_call_or_as_many_as_signals_need(tmp_path, monkeypatch, replicas, together):
    """Over 360 examples in batches of 56, of which the last has 24; on two replicas it is filled up."""
    (tmp_path / "run.yaml").write_text(CONFIG)
    devices = TWO if replicas > 1 else ["runtime.strategy=cpu"]
    plan = configuration.load(str(tmp_path / "run.yaml"), [*devices, f"runtime.steps_per_execution={together}"])
    devices, dataset = distribution.create(plan.runtime), setup.load_data(plan)
    with devices.scope():
        net = setup.build_model(plan, dataset.classes, dataset.input_shape, dataset.steps_per_epoch)
        setup.compile_model(net, plan, dataset.classes, dataset.steps_per_epoch)
    images, labels = (np.concatenate(each) for each in zip(*dataset.validation().as_numpy_iterator(), strict=True))
    logits = np.array(net(images, training=False))
    expected = {
        "loss": keras.losses.SparseCategoricalCrossentropy(from_logits=True)(labels, logits),
        "top1": np.mean(np.argmax(logits, axis=1) == labels),
    }
    made, steps = [], StepLoop.steps

    def counted(*args):
        result = steps(*args)
        made.append(result[0])
        return result

    monkeypatch.setattr(StepLoop, "steps", counted)
    for seconds, calls in [(math.inf, [7]), (0.0, [1] * 7)]:
        monkeypatch.setattr(distribution, "SECONDS_PER_CALL", seconds)
        made.clear()
        results = devices.evaluate(net, dataset)
        assert made == calls
        for name, value in expected.items():
            assert_close(results[name], value, "float32")


@serializable
class Difference(keras.losses.Loss):
    """A loss with Keras' default reduction."""

    def call(self, y_true, y_pred):
        return difference(y_true, y_pred)


@serializable
def difference(y_true, y_pred):
    return keras.ops.mean(keras.ops.abs(y_pred - keras.ops.one_hot(y_true, y_pred.shape[-1])), axis=-1)


class DifferenceOptions(LossOptions):
    kind: Literal["difference"] = "difference"
    criterion: ClassVar[Criterion] = SMALLEST_LOSS

    def make(self, classes, batch_size, seed):
        return difference if seed else Difference(), []


@pytest.mark.parametrize("seed", exhaustive_unless([0, 1], [0]), ids=["loss", "function"])
def test_the_examples_that_fill_up_a_batch_do_not_change_j_with_the_loss_of_a_user(tmp_path, seed):
    """The last of seven batches of 56 has 24 examples. They are on the first replica, with 4 that fill it up."""
    (tmp_path / "run.yaml").write_text(CONFIG)
    overrides = ["alignment=null", "optimization.backward=null", "optimization.alternation=null"]
    overrides += ["model={name: fc, hidden: [3]}", "weight_decay=0.01", f"seed={seed}"]
    found, trained = [], []
    for replicas in (["runtime.strategy=cpu"], TWO):
        plan = configuration.load(str(tmp_path / "run.yaml"), [*overrides, *replicas])
        plan = plan.model_copy(update={"loss": DifferenceOptions()})
        devices, dataset = distribution.create(plan.runtime), setup.load_data(plan)
        net = setup.compiled_model(plan, dataset, devices.scope())
        found.append(devices.evaluate(net, dataset)["loss"])
        trained.append(net)
    net = trained[0]
    images, labels = (np.concatenate(each) for each in zip(*dataset.validation().as_numpy_iterator(), strict=True))
    outputs = np.array(net(images, training=False))
    expected = np.abs(outputs - np.eye(10)[labels]).mean() + float(sum(net.losses))
    assert found == pytest.approx([expected] * 2, rel=1e-5)
    # The loss of a step, without weights, is the one that Keras makes.
    images, labels = images[:9], labels[:9]
    value = net.compute_loss(y=labels, y_pred=net(images))
    net.compile(loss=difference)
    assert float(value) == float(net.compute_loss(y=labels, y_pred=net(images)))
    trained[1].save(tmp_path / "model.keras")
    loaded = load_model(tmp_path / "model.keras").loss
    assert isinstance(loaded, FunctionLoss if seed else Difference)
    assert loaded.reduction == "mean_with_sample_weight"


def tf_config(index, ports):
    """Returns the environment of a worker, as `TF_CONFIG`."""
    hosts = [f"127.0.0.1:{port}" for port in ports]
    return {"TF_CONFIG": json.dumps({"cluster": {"worker": hosts}, "task": {"type": "worker", "index": index}})}


def slurm_task(index, ports):
    """Returns the environment of a worker, as SLURM sets it for a step of two tasks; the job's number is the port's."""
    names = {"JOB_ID": ports[0], "STEP_ID": 0, "STEP_NODELIST": "127.0.0.1", "STEP_TASKS_PER_NODE": "2"}
    return {f"SLURM_{name}": str(value) for name, value in {**names, "PROCID": index, "NODEID": 0}.items()}


def two_workers(folder, programs=("", ""), *options, environments=tf_config):
    """Trains in `folder` with two processes by the command line; returns their exit codes and the lines they end with.

    Args:
        folder: where run.yaml and the run directory are.
        programs: code that each process runs first.
        *options: of the command line.
        environments: makes the environment of a worker from its number and the free ports.
    """
    (folder / "run.yaml").write_text(CONFIG)
    arguments = ["train", str(folder / "run.yaml"), "--run-dir", str(folder / "run")]
    arguments += ["--set", "runtime.strategy=multi_worker", *options]
    ports, processes = free_ports(2), []
    for index, program in enumerate(programs):
        environment = {**environments(index, ports), "TF_CPP_MIN_LOG_LEVEL": "3"}
        processes.append(Command(arguments, environment, folder / f"errors{index}.txt", program))
    try:
        codes = [process.wait() for process in processes]
    finally:
        for process in processes:
            process.kill()
    errors = [process.errors for process in processes]
    assert not any("Traceback" in error for error in errors), errors
    ends = [re.findall(r"^(?:error|stopped|diverged): .*", error, re.MULTILINE) for error in errors]
    return list(zip(codes, ends, strict=True))


def test_a_rejected_chief_tells_the_other_worker(tmp_path):
    """Otherwise the other worker would wait for it."""
    run.RunDirectory(tmp_path / "run").make()
    run.RunDirectory(tmp_path / "run").write_status("stopped")
    (chief, [chief_line]), (other, [other_line]) = two_workers(tmp_path)
    assert (chief, other) == (2, 1)
    reason = f"{tmp_path / 'run'}: holds a run that is stopped; --resume continues it, --force starts over"
    assert chief_line == f"error: {reason}"
    assert other_line == f"stopped: worker 0 has ended: {reason}"


SIGNALLED = """
import os, signal
import tensorflow as tf
from neural_alignment.training import stepping
original = stepping.Stepper.__call__

def step(self, limit):
    results = original(self, limit)
    if int(tf.convert_to_tensor(self._model.optimizer.iterations.value)) == 7:
        os.kill(os.getpid(), signal.SIGTERM)
    return results

stepping.Stepper.__call__ = step
"""


@pytest.mark.parametrize("workers", exhaustive_unless((1, 2), (1,)))
def test_two_worker_processes_train_as_one_after_a_signal_to_one_has_stopped_both(tmp_path, one_device, workers):
    """At a step that has neither an evaluation nor a save. One process continues here, or two do, by `TF_CONFIG`."""
    (chief, [line]), (other, [other_line]) = two_workers(tmp_path, ("", SIGNALLED), environments=slurm_task)
    assert (chief, other) == (1, 1)
    for each in (line, other_line):
        assert re.fullmatch(r"stopped: .* at step 7, which is saved; continue with --resume", each)
    status = run.RunDirectory(tmp_path / "run").status()
    assert (status["state"], status["step"]) == ("stopped", 7)
    if workers == 1:
        run_of(tmp_path, "runtime.strategy=cpu", resume=True)
    else:
        assert [code for code, _ in two_workers(tmp_path, ("", ""), "--resume")] == [0, 0]
    assert_same_run(result_of(tmp_path / "run"), one_device[0])


def test_a_signal_during_an_evaluation_of_several_workers_is_obeyed_before_the_next_steps(tmp_path, monkeypatch):
    """One process that handles signals as each of several workers does."""
    monkeypatch.setattr(run, "Stop", lambda raises: Stop(raises=False))
    original = Evaluator.row

    def signalled(self, *args):
        row = original(self, *args)
        os.kill(os.getpid(), signal.SIGTERM)
        return row

    monkeypatch.setattr(Evaluator, "row", signalled)
    with pytest.raises(Stopped, match="SIGTERM at step 0, which is saved"):
        run_of(tmp_path, "runtime.strategy=cpu")
    assert run.RunDirectory(tmp_path / "run").status()["state"] == "stopped"


MISTAKEN = """
from neural_alignment.errors import ConfigError
from neural_alignment.training import AlignedModel

def step(*_):
    raise ConfigError("a mistake in the step")

AlignedModel._replica_step = step
"""


@pytest.mark.exhaustive
def test_force_with_two_workers_replaces_the_earlier_run_after_the_step_is_traced(tmp_path, one_device):
    directory = run.RunDirectory(tmp_path / "run")
    directory.make()
    directory.write_status("stopped")
    before = (tmp_path / "run" / "status.json").read_bytes()
    ends = two_workers(tmp_path, (MISTAKEN, MISTAKEN), "--force")
    assert all(code in (1, 2) and "a mistake in the step" in line for code, [line] in ends)
    assert {file.name: file.read_bytes() for file in (tmp_path / "run").iterdir()} == {"status.json": before}
    assert [code for code, _ in two_workers(tmp_path, ("", ""), "--force")] == [0, 0]
    assert_same_run(result_of(tmp_path / "run"), one_device[0])


KILLED = """
import os, signal
from neural_alignment.training import checkpoints
checkpoints.CheckpointStore.save = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.exhaustive
def test_a_killed_worker_leaves_no_other_waiting(tmp_path):
    """At the save of step 0: the chief has saved a state by then, and waits in the sum over the gradients."""
    (chief, [line]), (other, _) = two_workers(tmp_path, ("", KILLED))
    assert other == -signal.SIGKILL
    assert chief == 1
    assert re.fullmatch(
        r"stopped: another worker is gone \(.*\): see its messages for the reason; continue with --resume", line
    )
    status = run.RunDirectory(tmp_path / "run").status()
    assert status["state"] == "failed"
    assert f"stopped: {status['reason']}" == line


ABORTED = "{{node CollectiveReduceV2}} Collective ops is aborted by: "
ERRORS = {
    "reported": (
        tf.errors.FailedPreconditionError,
        f"{ABORTED}By task:1: worker 1 has ended: no disk\nMore",
        "no disk$",
    ),
    "gone": (tf.errors.UnavailableError, f"{ABORTED}Socket closed\nMore", r"is gone \(Socket closed\): .* --resume$"),
    "another error": (tf.errors.InvalidArgumentError, "worker 1 has ended: no disk", None),
}


@pytest.mark.parametrize("case", ERRORS)
def test_an_error_of_tensorflow_about_another_worker_is_one_line(case):
    kind, message, expected = ERRORS[case]
    explained = distribution.explain(kind(None, None, message))
    assert (explained is None) == (expected is None)
    assert expected is None or re.search(expected, str(explained))
    assert distribution.explain(ValueError(message)) is None


BAD = {
    "three replicas cannot share 32 examples": (
        ["runtime.strategy=mirrored", "runtime.replicas=3", "batch_size=32"],
        r"batch_size: .* multiple of 3; found 32, nearest 30",
    ),
    "four replicas of nine minibatches": (
        ["runtime.strategy=mirrored", "runtime.replicas=4", "optimization.minibatches=16", "batch_size=32"],
        "multiple of 64; found 32",
    ),
    "the evaluation's batch": (
        ["runtime.strategy=mirrored", "runtime.replicas=4", "evaluation.batch_size=50"],
        r"evaluation\.batch_size: .* multiple of 4; found 50, nearest 48",
    ),
    "XLA on parts of a CPU": (
        ["runtime.strategy=mirrored", "runtime.replicas=2", "runtime.jit_compile=true"],
        "jit_compile: is for one .* not for 2",
    ),
    "replicas without mirrored": (["runtime.replicas=2"], "replicas: needs strategy 'mirrored', not 'auto'; found 2"),
    "zone without tpu": (["runtime.tpu_zone=z"], r"runtime\.tpu_zone: needs strategy 'tpu', not 'auto'; found 'z'"),
    "project without tpu": (
        ["runtime.strategy=cpu", "runtime.tpu_project=p"],
        r"runtime\.tpu_project: needs strategy 'tpu', not",
    ),
    "zone of this machine's TPU": (
        ["runtime.strategy=tpu", "runtime.tpu=local", "runtime.tpu_zone=z"],
        "tpu_zone: needs the name of a TPU, not tpu",
    ),
    "project of this machine's TPU, by default": (
        ["runtime.strategy=tpu", "runtime.tpu_project=p"],
        r"runtime\.tpu_project: needs the name of a TPU",
    ),
    "GPUs for the CPU": (
        ["runtime.strategy=cpu", "runtime.devices=[0]"],
        r"needs strategy 'auto', .* not 'cpu'; found \[0\]",
    ),
    "GPUs for a TPU": (
        ["runtime.strategy=tpu", "runtime.devices=[0]"],
        r"needs strategy 'auto', .* not 'tpu'; found \[0\]",
    ),
    "GPUs for workers": (
        ["runtime.strategy=multi_worker", "runtime.devices=[0]"],
        "needs strategy 'auto', .* not 'multi_w",
    ),
    "a GPU twice": (["runtime.devices=[1, 0, 1]"], r"runtime\.devices: must name each GPU once; found \[1, 0, 1\]"),
    "a negative GPU": (["runtime.devices=[0, -1]"], r"runtime\.devices\.1: input should be greater than or equal to 0"),
    "no number": (["runtime.devices=[]"], r"runtime\.devices: list should have at least 1 item"),
    "two GPUs on one": (["runtime.strategy=gpu", "runtime.devices=[0, 1]"], r"devices: must be one GPU with strategy"),
    "GPUs and replicas": (
        ["runtime.strategy=mirrored", "runtime.devices=[0, 1]", "runtime.replicas=2"],
        "replicas: must be null with",
    ),
    "GPUs where there are none": (
        ["runtime.strategy=mirrored", "runtime.devices=[0, 1]"],
        r"TensorFlow finds none.*; found \[0, 1\]",
    ),
    "one GPU where there are none": (["runtime.devices=[2]"], r"must be .* TensorFlow finds none.*; found \[2\]"),
    "tpu without tpu": (["runtime.tpu=local"], r"runtime\.tpu: needs strategy 'tpu', not"),
    "too many replicas": (
        ["runtime.strategy=mirrored", "runtime.replicas=32"],
        "must be at most 4, the number of CPU devices",
    ),
    "statistics of the whole batch": (
        ["runtime.strategy=mirrored", "runtime.replicas=2", "model={name: wide_cnn, design: kmnist, width: 2}"],
        "must have 1 replica with wide_cnn: it uses the statistics of the whole batch, .*; found 2 replicas",
    ),
    "no GPU": (["runtime.strategy=gpu"], "TensorFlow sees no GPU"),
    "no TPU": (["runtime.strategy=tpu"], "the TPU 'local' cannot be reached from here"),
    "no cluster": (["runtime.strategy=multi_worker"], "TF_CONFIG: must name the workers of the cluster"),
}


@pytest.mark.parametrize("case", BAD)
def test_an_impossible_configuration_is_one_line_and_creates_nothing(tmp_path, case):
    overrides, message = BAD[case]
    with pytest.raises(InputError, match=message) as error:
        run_of(tmp_path, *overrides)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("workers", "hosts"), [(2, None), (1, 2)], ids=["two workers", "a TPU slice of two hosts"])
def test_damaged_records_are_tolerated_where_one_machine_reads_them_all(tmp_path, workers, hosts):
    (tmp_path / "run.yaml").write_text(CONFIG.replace("digits", "tfds, dataset: mnist, tolerate_corrupt: 3"))
    plan = configuration.load(str(tmp_path / "run.yaml"))
    extended = mock.Mock(spec=[]) if hosts is None else mock.Mock(num_hosts=hosts)
    strategy = mock.Mock(num_replicas_in_sync=4, extended=extended)
    with pytest.raises(InputError, match=r"tolerate_corrupt: must be 0 with several workers or hosts .*; found 3"):
        distribution.Distribution(strategy, workers=workers).check(plan)
    distribution.Distribution(mock.Mock(num_replicas_in_sync=4, extended=mock.Mock(spec=[]))).check(plan)


@pytest.mark.parametrize(("examples", "passes"), [(450, True), (360, True), (10_000, False)])
def test_no_last_batch_is_filled_up_for_a_model_with_statistics_of_the_batch(monkeypatch, examples, passes):
    """A TPU fills it up also if it has one core."""
    plan = configuration.load("wide_networks/small_cifar10/align_ada")
    batching = data.Batching(45, seed=0)
    facts = data.Facts(batching, input_shape=(32, 32, 3), classes=10, train_examples=450, validation_examples=examples)
    one_core = distribution.Distribution(mock.Mock(num_replicas_in_sync=1, extended=mock.Mock(spec=[])))
    one_core.check_evaluation(plan, facts)
    monkeypatch.setattr(distribution, "compiles_by_itself", lambda strategy: True)
    if passes:
        one_core.check_evaluation(plan, facts)
        return
    with pytest.raises(
        InputError, match=r"evaluation\.batch_size: must divide the 10000 examples, because wide_cnn .*; found 45"
    ):
        one_core.check_evaluation(plan, facts)


@pytest.fixture(scope="module")
def trained_wide_cnn(tmp_path_factory):
    """The configuration of a run whose last validation batch has 60 of 100 examples, and its directory."""
    folder = tmp_path_factory.mktemp("wide_cnn")
    (folder / "run.yaml").write_text(CONFIG)
    model = "model={name: wide_cnn, design: kmnist, width: 2}"
    overrides = [model, "alignment={rule: align_ada}", "optimization.backward=null", "optimization.alternation=null"]
    overrides += ["max_steps=1", "evaluation={batch_size: 100, probe_examples: 0}", "runtime={}"]
    plan = configuration.load(str(folder / "run.yaml"), overrides)
    return plan, run.train(plan, str(folder / "run")).path


@pytest.mark.parametrize("start", [lambda plan, path: run.evaluate(path), lambda plan, path: Trainer.from_config(plan)])
def test_no_trainer_evaluates_a_batch_that_is_filled_up_for_such_a_model(trained_wide_cnn, monkeypatch, start):
    """Zeros in the last batch would change J and the accuracy."""
    start(*trained_wide_cnn)
    monkeypatch.setattr(distribution, "compiles_by_itself", lambda strategy: True)
    with pytest.raises(
        InputError, match=r"evaluation\.batch_size: must divide the 360 examples, because wide_cnn .*; found 100"
    ):
        start(*trained_wide_cnn)


CLUSTER = {"worker": ["127.0.0.1:1", "127.0.0.1:2"]}
BAD_CLUSTERS = {
    "no JSON": ("{worker", "must be a JSON object"),
    "a list": ("[]", "must be a JSON object"),
    "hosts in no list": (json.dumps({"cluster": {"worker": "127.0.0.1:1"}}), "cluster must map job names to lists"),
    "hosts that are numbers": (json.dumps({"cluster": {"worker": [1, 2]}}), "cluster must map job names to lists"),
    "a host without a port": (json.dumps({"cluster": {"worker": ["localhost"]}}), "lists of host:port"),
    "a task that is a list": (json.dumps({"cluster": CLUSTER, "task": [1]}), "the task of this process"),
    "no task": (json.dumps({"cluster": CLUSTER}), "the task of this process"),
    "an index beyond": (
        json.dumps({"cluster": CLUSTER, "task": {"type": "worker", "index": 2}}),
        "one of the 2 tasks .*; found 2",
    ),
    "a parameter server": (
        json.dumps({"cluster": {**CLUSTER, "ps": ["127.0.0.1:3"]}, "task": {"type": "worker", "index": 0}}),
        "found ps",
    ),
}


@pytest.mark.parametrize("case", BAD_CLUSTERS)
def test_a_wrong_tf_config_is_one_line(monkeypatch, case):
    text, message = BAD_CLUSTERS[case]
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(InputError, match=message) as error:
        distribution.create(Runtime(strategy="multi_worker"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("config", "chief"),
    [
        (json.dumps({"cluster": CLUSTER, "task": {"type": "worker", "index": 0}}), True),
        (json.dumps({"cluster": CLUSTER, "task": {"type": "worker", "index": 1}}), False),
        (json.dumps({"cluster": {**CLUSTER, "chief": ["a:1"]}, "task": {"type": "worker", "index": 0}}), False),
        (json.dumps({"cluster": {**CLUSTER, "chief": ["a:1"]}, "task": {"type": "chief", "index": 0}}), True),
    ],
)
def test_the_chief_is_the_first_of_the_cluster(monkeypatch, config, chief):
    monkeypatch.setenv("TF_CONFIG", config)
    assert distribution.is_chief(Runtime(strategy="multi_worker")) is chief
    assert distribution.is_chief(Runtime(strategy="cpu"))


def test_automatic_is_the_cpu_where_there_is_nothing_else(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    monkeypatch.delenv("TPU_NAME", raising=False)
    assert distribution.create(Runtime()).replicas == 1
    monkeypatch.setenv("TPU_NAME", "somewhere")
    with pytest.raises(InputError, match="the TPU 'somewhere' cannot be reached"):
        distribution.create(Runtime())


class GPUs:
    """Stands in for a machine with GPUs, and records the strategies that are made on them."""

    def __init__(self, patch, count, begun=None):
        self.all = [f"/physical_device:GPU:{number}" for number in range(count)]
        self.visible = self.all if begun is None else [self.all[number] for number in begun]
        self._begun, self.made = begun is not None, []
        config = tf.config
        patch.setattr(config, "list_physical_devices", lambda kind: self.all if kind == "GPU" else ["/CPU:0"])
        patch.setattr(config, "get_visible_devices", lambda kind: self.visible)
        patch.setattr(config, "set_visible_devices", self._set_visible)
        for name in ("OneDeviceStrategy", "MirroredStrategy"):
            patch.setattr(tf.distribute, name, lambda devices, name=name, **_: self.made.append((name, devices)))

    def _set_visible(self, devices, kind):
        assert kind == "GPU"
        if self._begun:
            raise RuntimeError("Visible devices cannot be modified after being initialized")
        self.visible = list(devices)


@pytest.mark.parametrize(
    ("runtime", "made"),
    [
        ({"strategy": "gpu", "devices": [2]}, ("OneDeviceStrategy", "/gpu:2")),
        ({"strategy": "mirrored", "devices": [3, 1]}, ("MirroredStrategy", ["GPU:3", "GPU:1"])),
        ({"strategy": "mirrored", "devices": [3]}, ("MirroredStrategy", ["GPU:3"])),
        ({"devices": [3]}, ("OneDeviceStrategy", "/gpu:3")),
        ({"devices": [0, 2]}, ("MirroredStrategy", ["GPU:0", "GPU:2"])),
        ({}, ("MirroredStrategy", ["GPU:0", "GPU:1", "GPU:2", "GPU:3"])),
    ],
)
@pytest.mark.parametrize("begun", [False, True])
def test_gpus_are_chosen_by_number(monkeypatch, runtime, made, begun):
    """TensorFlow renumbers the visible ones, and can hide the others only before it begins to compute."""
    monkeypatch.delenv("TF_CONFIG", raising=False)
    monkeypatch.delenv("TPU_NAME", raising=False)
    gpus = GPUs(monkeypatch, 4, begun=[0, 1, 2, 3] if begun else None)
    distribution.create(Runtime(**runtime))
    name, devices = gpus.made[0]
    chosen = [int(device.rpartition(":")[2]) for device in ([devices] if isinstance(devices, str) else devices)]
    expected = [made[1]] if isinstance(made[1], str) else made[1]
    assert name == made[0]
    assert [gpus.visible[number] for number in chosen] == [f"/physical_device:{each[-5:].upper()}" for each in expected]
    if "devices" in runtime and not begun:
        assert len(gpus.visible) == len(runtime["devices"])


def test_missing_gpus_are_named_with_the_present_ones(monkeypatch):
    GPUs(monkeypatch, 2)
    with pytest.raises(InputError, match=r"devices: must be among the GPUs of this machine, 0, 1; found \[1, 2\]"):
        distribution.create(Runtime(strategy="mirrored", devices=[1, 2]))
    GPUs(monkeypatch, 3, begun=[0, 2])
    with pytest.raises(InputError, match=r"this process has begun to compute with, 0, 2; found \[1\]"):
        distribution.create(Runtime(strategy="gpu", devices=[1]))


@pytest.mark.parametrize("variable", ["TF_CONFIG", "TPU_NAME"])
def test_numbers_of_gpus_are_refused_if_the_environment_selects_another_strategy(monkeypatch, variable):
    for name in ("TF_CONFIG", "TPU_NAME"):
        monkeypatch.delenv(name, raising=False)
    text = {"TPU_NAME": "mine", "TF_CONFIG": json.dumps({"cluster": CLUSTER, "task": {"type": "worker", "index": 0}})}
    monkeypatch.setenv(variable, text[variable])
    with pytest.raises(InputError, match=r"runtime\.devices: needs a strategy .* 'auto' is .* here"):
        distribution.create(Runtime(devices=[0]))


def test_zone_and_project_of_a_tpu_reach_its_resolver(monkeypatch):
    asked = []

    def resolver(**options):
        asked.append(options)
        raise ValueError("no such TPU")

    monkeypatch.setattr(tf.distribute.cluster_resolver, "TPUClusterResolver", resolver)
    monkeypatch.setenv("TPU_NAME", "theirs")
    for options in ({"tpu": "mine", "tpu_zone": "z"}, {"tpu_zone": "z", "tpu_project": "p"}, {}):
        with pytest.raises(InputError, match=r"the TPU '(mine|theirs)' cannot be reached"):
            distribution.create(Runtime(strategy="tpu", **options))
    assert asked == [{"tpu": "mine", "zone": "z"}, {"tpu": "theirs", "zone": "z", "project": "p"}, {"tpu": "theirs"}]


def test_another_strategy_drops_the_options_of_the_strategy_of_the_run(monkeypatch):
    runtime = Runtime(strategy="tpu", tpu="mine", tpu_zone="z", tpu_project="p", precision="float64")
    for own in (runtime, Runtime(devices=[0, 1], precision="float64"), Runtime(strategy="mirrored", replicas=3)):
        other = distribution.with_strategy(own, "cpu")
        assert other == Runtime(strategy="cpu", precision=own.precision)


@pytest.mark.exhaustive
def test_a_run_that_diverges_on_replicas_names_its_step_and_layer(tmp_path):
    """An infinite decay of B: R of the first step is not finite, on whichever replica."""
    overrides = ["alignment.decay=1.0e+38", "optimization.backward.learning_rate=1.0e+30"]
    overrides.append("evaluation.probe_examples=0")
    with pytest.raises(Diverged, match=r"R of layer .* is not finite at step [0-9]+") as error:
        run_of(tmp_path, *TWO, *overrides)
    assert error.value.layers
