"""A run that is killed or stopped at any moment resumes and ends with the same files."""

import contextlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import keras
import killed_runs
import numpy as np
import pytest
import tensorflow as tf
from helpers import exhaustive_unless
from prepared_run import PreparedRun
from processes import Command

from neural_alignment import config as configuration
from neural_alignment import layers
from neural_alignment.alignments import AlignProp
from neural_alignment.data import InMemory
from neural_alignment.errors import RunError, Stopped
from neural_alignment.training import distribution, evaluation, run, run_loop, saved_state, setup, stepping
from neural_alignment.training.checkpoints import CheckpointStore, TrainingMeans
from neural_alignment.training.metrics import MetricsFile
from neural_alignment.training.model import AlignedModel
from neural_alignment.training.stopping import SIGNALS, Stop
from optimizers import MultiOptimizer

ROOT = Path(__file__).parent.parent.parent
STEPS = 1437 // 128
BASE = {
    "epochs": 2,
    "batch_size": 128,
    "data": {"source": "digits"},
    "model": {"name": "fc", "hidden": []},
    "alignment": {"rule": "symmetric", "self_": 2e-3, "decay": 2e-3},
    "optimization": {
        "forward": {"name": "momentum", "learning_rate": 0.02, "schedule": {"drop_epochs": [1]}},
        "backward": {"name": "adam", "learning_rate": 1e-2},
    },
    "evaluation": {"probe_examples": 8},
    "logging": {"tensorboard": False},
    "checkpoints": {"every_steps": 3},
}


def config(**changes):
    return configuration.parse(configuration.merge(BASE, changes))


@pytest.fixture(scope="module")
def once():
    """Data and model of `config()`."""
    return PreparedRun(config())


@pytest.fixture(scope="module")
def whole(once, tmp_path_factory):
    """A run without an interruption."""
    path = tmp_path_factory.mktemp("runs") / "whole"
    with once.in_use():
        run.train(config(), path)
    return path


@pytest.fixture
def resume(once):
    """Returns a function that resumes a run of `config()`, with data and model that are prepared once for all."""

    def call(path):
        with once.in_use():
            run.train(config(), path, resume=True)

    return call


@pytest.mark.exhaustive
def test_a_run_killed_by_sigkill_goes_on_bit_for_bit():
    # `make resume-test` does this with 20 kills of each kind.
    kinds = ["alternating with delay", "noisy updates"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    command = [sys.executable, ROOT / "tests" / "killed_runs.py", "--kills", "1"]
    command += [word for kind in kinds for word in ("--kind", kind)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count(": killed;") == len(kinds)
    assert json.loads(result.stdout.splitlines()[-1])["wrong"] == []


class Killed(BaseException):
    """Represents the end of a process: only the state on disk remains."""


@pytest.fixture(scope="module")
def killed(once, tmp_path_factory):
    """Returns a function that creates a run at a path that was killed after a number of steps."""
    made = {}

    def put(step, path):
        if step not in made:
            made[step] = tmp_path_factory.mktemp("killed") / str(step)
            with once.in_use():
                leave_killed(made[step], step)
        shutil.copytree(made[step], path, dirs_exist_ok=True)

    return put


def leave_killed(path, step, **changes):
    original = stepping.Stepper.__call__

    def call(self, limit):
        results = original(self, limit)
        if int(self._model.optimizer.iterations) >= step:
            raise Killed
        return results

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stepping.Stepper, "__call__", call)
        with pytest.raises(Killed):
            run.train(config(**changes), path, resume=True)


def test_a_run_that_is_killed_in_the_middle_of_an_epoch_does_not_differ(killed, tmp_path, whole):
    """The resumed run has a model that has made no step."""
    killed(STEPS + 8, tmp_path / "run")
    assert Path(tf.train.latest_checkpoint(str(tmp_path / "run" / "checkpoints" / "last"))).name == f"ckpt-{STEPS + 7}"
    run.train(config(), tmp_path / "run", resume=True)
    assert killed_runs.differences(whole, tmp_path / "run") == []


@pytest.mark.exhaustive
@pytest.mark.parametrize("earlier", [False, True])
def test_the_time_of_a_resumed_run_includes_that_of_the_processes_before(once, resume, monkeypatch, tmp_path, earlier):
    """Every process has its own clock. A step takes a second, and nothing else takes any time."""
    clock, original = SimpleNamespace(now=0.0), stepping.Stepper.__call__

    def call(self, limit):
        before = self._model.global_step
        results = original(self, limit)
        clock.now += self._model.global_step - before
        return results

    monkeypatch.setattr(stepping.Stepper, "__call__", call)
    monkeypatch.setattr(saved_state, "time", SimpleNamespace(monotonic=lambda: clock.now))
    with once.in_use():
        leave_killed(tmp_path, STEPS + 8)  # The last state is that of step STEPS + 7.
    if earlier:  # Earlier versions did not save the time with a state.
        monkeypatch.setattr(TrainingMeans, "deserialize", without_seconds(TrainingMeans.deserialize))
    clock.now = -5.0
    resume(tmp_path)
    lost = 7 if earlier else 0
    seconds = [row["seconds"] for row in MetricsFile(str(tmp_path / "metrics.csv")).rows()]
    assert seconds == [0, STEPS, 2 * STEPS - lost]
    assert json.loads((tmp_path / "status.json").read_text())["seconds"] == 2 * STEPS - lost


def without_seconds(original):
    def deserialize(self, string_value):
        original(self, string_value)
        del self.record["seconds"]

    return deserialize


@pytest.mark.exhaustive
def test_optimizers_that_count_global_steps_and_loss_rates_are_resumed(tmp_path):
    """The run is killed after SWATS has changed its phase, and before RAdam has made all steps of its first kind."""
    optimization = {
        "forward": {"name": "radam", "learning_rate": 0.01, "beta_2": 0.99, "schedule": {"kind": "cosine"}},
        "backward": {"name": "swats", "learning_rate": 0.01, "epsilon": 0.5, "noise": {"variance": 1e-4}},
        "loss_rates": {"forward": 0.5, "backward": {"value": 2, "schedule": {"drop_epochs": [0.5]}}},
        "delay_epochs": 0.1,
    }
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    changes = {"epochs": 1, "optimization": optimization, "evaluation": {"probe_examples": 0}}
    with PreparedRun(config(**changes)).in_use():
        run.train(config(**changes), whole)
        leave_killed(cut, 5, **changes)
    run.train(config(**changes), cut, resume=True)
    assert killed_runs.differences(whole, cut) == []


TRAINING_W = {"rule": "weight_mirror", "amp": 1e-2, "decay": 1e-2, "input": {"noise": "normal"}, "update_forward": True}
TWO_WEIGHTS = {"rule": "pfa", "decay": 1e-3, "expansion": 2}


WITH_STATE = {
    "brsf": ({"rule": "brsf"}, None),
    "update_forward": (TRAINING_W, {"name": "radam", "learning_rate": 1e-2, "beta_2": 0.9}),
    "pfa": (TWO_WEIGHTS, None),
}


@pytest.mark.parametrize("name", exhaustive_unless(WITH_STATE, ("pfa",)))
def test_random_magnitudes_and_trained_w_are_those_of_the_whole_run(tmp_path, name):
    alignment, backward = WITH_STATE[name]
    changes = {"epochs": 1, "alignment": alignment, "optimization": {"backward": backward}}
    changes |= {"evaluation": {"probe_examples": 0}, "weight_decay": 1e-3 if alignment is TWO_WEIGHTS else 0.0}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    with PreparedRun(config(**changes)).in_use():
        run.train(config(**changes), whole)
        leave_killed(cut, 5, **changes)
    run.train(config(**changes), cut, resume=True)
    assert killed_runs.differences(whole, cut) == []


@pytest.mark.exhaustive
def test_the_masks_of_dropout_are_those_of_the_whole_run(tmp_path):
    changes = {
        "model": {"name": "vision_transformer", "patch": 4, "width": 4, "heads": 2, "depth": 1, "dropout": 0.5},
        "alignment": None,
        "optimization": {"backward": None},
        "max_steps": 6,
        "evaluation": {"probe_examples": 0},
        "checkpoints": {"keep": 5},
    }
    plan = configuration.parse(
        configuration.merge({key: value for key, value in BASE.items() if key != "model"}, changes)
    )
    path = tmp_path / "run"
    run.train(plan, path)
    whole = killed_runs.weights(path)
    run.train(plan, path, resume_from=3)
    resumed = killed_runs.weights(path)
    assert resumed.keys() == whole.keys()
    for name, value in whole.items():
        np.testing.assert_array_equal(resumed[name], value, err_msg=name)


def without_slots(patch):
    original = CheckpointStore.restore_last

    def restore(self):
        step = original(self)
        for optimizer in self._model.optimizer.inner_optimizers:
            for variable in optimizer.variables[2:]:
                variable.assign(np.zeros(variable.shape))
        return step

    patch.setattr(CheckpointStore, "restore_last", restore)


def without_data_position(patch):
    original = InMemory.train
    patch.setattr(InMemory, "train", lambda self, *_, **__: original(self, 0))


def without_step(patch):
    original = CheckpointStore.restore_last

    def restore(self):
        step = original(self)
        for optimizer in self._model.optimizer.inner_optimizers:
            optimizer.iterations.assign(0)
        return step

    patch.setattr(CheckpointStore, "restore_last", restore)


def without_means(patch):
    patch.setattr(TrainingMeans, "put_back", lambda self: self._model.reset_metrics())


@pytest.mark.parametrize(
    ("sabotage", "differs"),
    [
        (without_slots, "optimizer"),
        (without_data_position, "layers"),
        (without_step, "layers"),
        (without_means, "the rows of metrics.csv"),
    ],
)
def test_a_resume_that_forgets_something_is_seen(monkeypatch, killed, resume, tmp_path, whole, sabotage, differs):
    killed(STEPS + 8, tmp_path / "run")
    sabotage(monkeypatch)
    resume(tmp_path / "run")
    assert any(what.startswith(differs) for what in killed_runs.differences(whole, tmp_path / "run"))


def leave_data(last):
    (last / "ckpt-9.data-00000-of-00001").write_bytes(b"half")


def leave_index(last):
    leave_data(last)
    (last / "ckpt-9.index").write_bytes(b"half")


def leave_parts(last):
    (last / "ckpt-9_temp").mkdir()
    (last / "ckpt-9_temp" / "part-00000-of-00001.data-00000-of-00001.tempstate1").write_bytes(b"half")
    (last / "checkpoint.tmp0123").write_text("half")
    (last.parent.parent / "metrics.csv.partial").write_text("half")
    (last.parent.parent / "model.partial.keras").write_text("half")


@pytest.mark.parametrize(("leave", "first"), [(leave_data, True), (leave_index, False), (leave_parts, False)])
def test_leftovers_of_a_killed_save_are_ignored_and_removed(killed, resume, tmp_path, whole, leave, first):
    path = tmp_path / "run"
    killed(2 if first else 8, path)
    last = path / "checkpoints" / "last"
    last.mkdir(parents=True, exist_ok=True)
    leave(last)
    resume(path)
    assert killed_runs.differences(whole, path) == []


def test_a_run_killed_before_it_wrote_its_status_can_be_resumed(tmp_path):
    once = PreparedRun(config(max_steps=1))
    for leftovers in ({"lock.json": ""}, {"status.json.partial": "{"}, {"status.json": '{"state": "running"}'}):
        path = tmp_path / "-".join(leftovers)
        path.mkdir()
        for name, text in leftovers.items():
            (path / name).write_text(text)
        with once.in_use():
            assert run.train(config(max_steps=1), path, resume=True).metrics["step"] == 1


@pytest.mark.parametrize("lost", ["a row", "the checkpoints"])
def test_rows_and_checkpoint_that_do_not_match_are_refused(killed, tmp_path, lost):
    killed(STEPS + 8, tmp_path)
    if lost == "a row":
        text = (tmp_path / "metrics.csv").read_text().splitlines(keepends=True)
        (tmp_path / "metrics.csv").write_text(text[0] + text[-1])
    else:
        shutil.rmtree(tmp_path / "checkpoints")
    with pytest.raises(
        RunError,
        match="does not have the rows" if lost == "a row" else "checkpoints: is missing, but metrics.csv has rows",
    ):
        run.train(config(), tmp_path, resume=True)


@pytest.fixture
def saved(monkeypatch):
    """The steps at which something was written, as `(step, name)`."""
    steps = []
    original = tf.train.CheckpointManager.save

    def save(self, checkpoint_number, **options):
        steps.append((checkpoint_number, Path(self.directory).name))
        return original(self, checkpoint_number=checkpoint_number, **options)

    monkeypatch.setattr(tf.train.CheckpointManager, "save", save)
    return steps


def test_checkpoints_between_evaluations_go_by_steps(saved, tmp_path):
    run.train(config(epochs=1, checkpoints={"keep_best": False}), tmp_path)
    assert saved == [(3, "last"), (6, "last"), (9, "last"), (STEPS, "last")]


def test_checkpoints_between_evaluations_go_by_the_clock(saved, monkeypatch, tmp_path):
    times = iter(range(0, 10**6, 61))  # A minute goes by between two looks at the clock.
    monkeypatch.setattr(run_loop, "time", SimpleNamespace(monotonic=lambda: next(times)))
    run.train(config(epochs=1, checkpoints={"every_steps": None, "every_minutes": 3, "keep_best": False}), tmp_path)
    # One look when the run begins, one per step, one at each save.
    assert saved == [(3, "last"), (6, "last"), (9, "last"), (STEPS, "last")]


@pytest.fixture(scope="module")
def model():
    """A compiled model at step 4."""
    dataset = setup.load_data(config())
    model = setup.build_model(config(), dataset.classes, dataset.input_shape, dataset.steps_per_epoch)
    setup.compile_model(model, config(), dataset.classes, dataset.steps_per_epoch)
    model.optimizer.iterations.assign(4)
    return model


def test_no_step_is_saved_twice(model, tmp_path):
    checkpoints = CheckpointStore(model, TrainingMeans(model), str(tmp_path))
    before = model.get_weights()
    assert checkpoints.save("last")
    model.weights[0].assign(model.weights[0] + 1.0)
    assert checkpoints.save("last")
    assert checkpoints.restore_last() == 4
    for ours, expected in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(ours, expected)


class Nested(keras.layers.Layer):
    """Layers in a list, a dictionary and a tuple, where TensorFlow does not look for variables."""

    def __init__(self):
        super().__init__()
        frozen = keras.layers.Dense(3, trainable=False)
        self.in_list = [keras.layers.BatchNormalization(), frozen, keras.layers.Dropout(0.5)]
        self.in_dictionary = {"aligned": layers.Dense(3, alignment=AlignProp(), name="aligned")}
        self.in_tuple = (keras.layers.GaussianNoise(0.1),)

    def call(self, x):
        for layer in (*self.in_list, self.in_dictionary["aligned"], *self.in_tuple):
            x = layer(x)
        return x


class RandomSGD(keras.optimizers.SGD):
    """An optimizer with a random state."""

    def __init__(self):
        super().__init__(0.1, momentum=0.9)
        self.generator = keras.random.SeedGenerator(1)

    def update_step(self, gradient, variable, learning_rate):
        noise = keras.random.normal(variable.shape, seed=self.generator)
        super().update_step(gradient + noise, variable, learning_rate)


class RandomMetric(keras.metrics.MeanSquaredError):
    """A metric with a random state."""

    def __init__(self):
        super().__init__(name="random")
        self.generators = [keras.random.SeedGenerator(1)]

    def update_state(self, y_true, y_pred, sample_weight=None):
        noise = keras.random.normal(keras.ops.shape(y_pred), seed=self.generators[0])
        return super().update_state(y_true, y_pred + noise, sample_weight)


def nested():
    """Returns a compiled model whose names depend on the models that were built before."""
    inputs = keras.Input((4,))
    model = AlignedModel(inputs, Nested()(inputs))
    model.compile(MultiOptimizer([RandomSGD()]), "mse", metrics=[RandomMetric()])
    return model


def states(model):
    """All that a step reads and changes, without Keras' names."""
    (metric,) = (each for group in model.metrics for each in getattr(group, "metrics", []))
    random = [model.optimizer.inner_optimizers[0].generator.state, metric.generators[0].state]
    return [each.numpy() for each in (*model.variables, *model.optimizer.variables, *random)]


def store(model, path):
    return CheckpointStore(model, TrainingMeans(model, tf.TensorSpec((3,), tf.float32)), str(path))


def fitted(model):
    """Makes two steps, so that nothing has its initial value."""
    generator = np.random.default_rng(0)
    model.fit(generator.normal(size=(8, 4)), generator.normal(size=(8, 3)), 4, shuffle=False, verbose=0)
    return model


def test_a_state_has_the_variables_of_layers_in_lists_and_all_random_states(tmp_path):
    model = nested()
    saving = store(model, tmp_path)
    expected = states(fitted(model))
    assert saving.save("last")
    fresh = nested()
    assert fresh.weights[0].path != model.weights[0].path
    restoring, drawn = store(fresh, tmp_path), states(fresh)
    assert restoring.restore_last() == 2
    changed = 0
    for ours, before, value in zip(states(fresh), drawn, expected, strict=True):
        np.testing.assert_array_equal(ours, value)
        changed += not np.array_equal(before, value)
    assert changed > 15
    for ours, value in zip(states(fitted(fresh)), states(fitted(model)), strict=True):
        np.testing.assert_array_equal(ours, value)


def as_earlier(model, path):
    """Saves a state as earlier versions have."""
    means = TrainingMeans(model, tf.TensorSpec((3,), tf.float32))
    means.keep()
    checkpoint = tf.train.Checkpoint(model=model, optimizer=model.optimizer, means=means)
    tf.train.CheckpointManager(checkpoint, str(path / "last"), 1).save(model.global_step)


def test_a_state_of_an_earlier_version_is_restored_unless_weights_are_missing(model, tmp_path, caplog):
    as_earlier(model, tmp_path)
    expected = model.get_weights()
    for weight in model.weights:
        weight.assign(weight + 1)
    assert CheckpointStore(model, TrainingMeans(model), str(tmp_path)).restore_last() == 4
    for ours, value in zip(model.get_weights(), expected, strict=True):
        np.testing.assert_array_equal(ours, value)
    assert not caplog.messages
    inputs = keras.Input((4,))
    dropped = AlignedModel(inputs, keras.layers.Dense(3)(keras.layers.Dropout(0.5, name="drop")(inputs)))
    dropped.compile(MultiOptimizer([keras.optimizers.SGD(0.1)]), "mse")
    as_earlier(fitted(dropped), tmp_path / "dropped")
    assert store(dropped, tmp_path / "dropped").restore_last() == 2
    assert "did not save the random state of drop; random masks" in caplog.text
    other = fitted(nested())
    as_earlier(other, tmp_path / "nested")
    line = (
        r"ckpt-2: was written by an earlier version .* save \S*batch_normalization\S*/moving_mean \(\d more\); finish"
    )
    with pytest.raises(RunError, match=line):
        store(other, tmp_path / "nested").restore_last()


def test_a_state_of_another_model_is_one_line(tmp_path):
    inputs = keras.Input((4,))
    other = AlignedModel(inputs, keras.layers.Dense(3)(inputs))
    other.compile(MultiOptimizer([keras.optimizers.SGD(0.1)]), "mse")
    assert store(fitted(other), tmp_path).save("last")
    line = r"ckpt-2: has 2 weights and 0 random states, but the model has \d+ weights and 4 random states; restore"
    with pytest.raises(RunError, match=line) as error:
        store(nested(), tmp_path).restore_last()
    assert "\n" not in str(error.value)


def test_a_state_that_is_not_finite_is_not_saved(saved, model, tmp_path):
    checkpoints = CheckpointStore(model, TrainingMeans(model), str(tmp_path))
    model.weights[0].assign(np.full(model.weights[0].shape, np.nan))
    assert not checkpoints.save("last")
    assert saved == []


def test_no_more_steps_than_planned_are_made_if_several_run_in_one_graph(tmp_path):
    changes = {"max_steps": STEPS + 5, "runtime": {"steps_per_execution": 4}, "checkpoints": {"every_steps": 7}}
    run.train(config(**changes), tmp_path)
    rows = MetricsFile(str(tmp_path / "metrics.csv")).rows()
    assert [row["step"] for row in rows] == [0, STEPS, STEPS + 5]
    # Keras' own loop runs past the end of the epoch.
    plan = config(**changes)
    dataset = setup.load_data(plan)
    model = setup.build_model(plan, dataset.classes, dataset.input_shape, dataset.steps_per_epoch)
    setup.compile_model(model, plan, dataset.classes, dataset.steps_per_epoch)
    model.fit(dataset.train(), steps_per_epoch=STEPS, verbose=0, shuffle=False)
    assert int(model.optimizer.iterations) == STEPS + 1


# Signals.


def signal_once(patch, owner, name, number=signal.SIGTERM, at=1):
    """Sends this process a signal when a function is called for the `at`-th time; returns how often it was called."""
    original = getattr(owner, name)
    calls = []

    def call(*args, **kwargs):
        calls.append(name)
        if len(calls) == at:
            os.kill(os.getpid(), number)
        return original(*args, **kwargs)

    patch.setattr(owner, name, call)
    return calls


WHEN = {
    "measuring before the first step": ((evaluation.Evaluator, "row"), 0, {0}),
    "tracing the first step": (
        (MultiOptimizer, "apply"),
        0,
        {0, 1},
    ),  # Traced while the alignment is measured, or later.
    "evaluating": ((AlignedModel, "test_step"), STEPS, {STEPS}),
    "saving": ((tf.train.CheckpointManager, "save"), 3, {3}),
}
"""When the signal arrives: the function that is called, the step that is saved, possible numbers of started steps."""


@pytest.fixture
def hang_up():
    """Sets how this process handles SIGHUP during a test, because pytest may have been started with `nohup`."""

    def unhandled(*_):
        raise AssertionError("SIGHUP is not handled")

    before = signal.signal(signal.SIGHUP, unhandled)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("hang_up")
@pytest.mark.parametrize(
    ("when", "number"), [*zip(WHEN, [signal.SIGHUP, signal.SIGTERM, signal.SIGINT, signal.SIGTERM], strict=True)]
)
def test_a_signal_saves_and_ends_the_run_which_can_be_resumed(monkeypatch, once, resume, tmp_path, whole, when, number):
    (owner, name), step, begun = WHEN[when]
    traces = owner in (MultiOptimizer, AlignedModel)  # Python calls the function when the graph is traced.
    handlers = [signal.getsignal(each) for each in SIGNALS]
    with monkeypatch.context() as patch:
        signal_once(patch, owner, name, number)
        calls = signal_once(patch, stepping.Stepper, "__call__", at=0)
        stopped = pytest.raises(Stopped, match=rf"{number.name} at step {step}, which is saved; continue with --resume")
        with contextlib.nullcontext() if traces else once.in_use(), stopped:
            run.train(config(), tmp_path / "run")
    assert len(calls) in begun  # Not one after the signal.
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (status["state"], status["step"]) == ("stopped", step)
    assert number.name in status["reason"]
    latest = tf.train.latest_checkpoint(str(tmp_path / "run" / "checkpoints" / "last"))
    assert (int(latest.rpartition("-")[2]) if latest else 0) == step
    assert [signal.getsignal(each) for each in SIGNALS] == handlers
    resume(tmp_path / "run")
    assert killed_runs.differences(whole, tmp_path / "run") == []


@pytest.mark.usefixtures("hang_up")
@pytest.mark.parametrize("first", [signal.SIGHUP, signal.SIGTERM])
def test_after_a_signal_only_another_hang_up_does_not_end_the_process(first):
    """When a terminal is closed, its shell sends SIGHUP to all jobs, and the system to the foreground job."""
    with Stop(raises=False) as stop:
        os.kill(os.getpid(), first)
        assert stop.signal == first.name
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) is signal.getsignal(signal.SIGINT) is signal.SIG_DFL


@pytest.mark.usefixtures("hang_up")
def test_a_run_under_nohup_ignores_that_its_terminal_is_closed():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with Stop() as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        with stop.safe():
            assert stop.signal is None
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_a_step_during_which_a_signal_comes_is_finished_and_saved(monkeypatch, resume, tmp_path, whole):
    original = MultiOptimizer.apply

    def during(step):
        if step == 4:
            os.kill(os.getpid(), signal.SIGTERM)  # From a thread of TensorFlow, inside the step.

    def apply(self, *arguments):
        tf.py_function(during, [self.iterations.value], [])
        original(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(MultiOptimizer, "apply", apply)
        with pytest.raises(Stopped, match="SIGTERM at step 5, which is saved"):
            run.train(config(), tmp_path / "run")
    resume(tmp_path / "run")
    assert killed_runs.differences(whole, tmp_path / "run") == []


TOGETHER = {"runtime": {"steps_per_execution": 1000}, "checkpoints": {"every_steps": STEPS}}


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """Data and model of runs with as many steps in one graph as possible, and such a run without an interruption."""
    once, path = PreparedRun(config(**TOGETHER)), tmp_path_factory.mktemp("runs") / "together"
    with once.in_use():
        run.train(config(**TOGETHER), path)
    return once, path


@pytest.mark.parametrize(("seconds", "stops_at"), [(0.0, 1), (math.inf, STEPS)])
def test_a_signal_during_steps_in_one_graph_takes_effect_when_the_call_of_the_graph_ends(
    monkeypatch, tmp_path, together, seconds, stops_at
):
    (once, whole), original = together, stepping.Stepper.__call__

    def signalled(self, limit):
        results = original(self, limit)
        os.kill(os.getpid(), signal.SIGTERM)
        return results

    with monkeypatch.context() as patch:
        patch.setattr(stepping.Stepper, "__call__", signalled)
        patch.setattr(distribution, "SECONDS_PER_CALL", seconds)
        with once.in_use(), pytest.raises(Stopped, match=f"SIGTERM at step {stops_at}, which is saved"):
            run.train(config(**TOGETHER), tmp_path / "run")
    with once.in_use():
        run.train(config(**TOGETHER), tmp_path / "run", resume=True)
    assert killed_runs.differences(whole, tmp_path / "run") == []


@pytest.mark.parametrize("signalled", exhaustive_unless([True, False], (True,)))
def test_a_signal_whose_exception_is_suppressed_during_tracing_still_ends_the_run(
    monkeypatch, resume, tmp_path, whole, signalled
):
    """Some callbacks of TensorFlow return nothing if they raise, and their caller then fails."""

    def test_step(self, data):
        with contextlib.suppress(BaseException):
            if signalled:
                os.kill(os.getpid(), signal.SIGTERM)
        raise ValueError("None values not supported.")

    with monkeypatch.context() as patch:
        patch.setattr(AlignedModel, "test_step", test_step)
        kind, message = (Stopped, f"SIGTERM at step {STEPS}") if signalled else (ValueError, "None values")
        with pytest.raises(kind, match=message):
            run.train(config(), tmp_path / "run")
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert status["state"] == ("stopped" if signalled else "failed")
    resume(tmp_path / "run")
    assert killed_runs.differences(whole, tmp_path / "run") == []


def command(folder, before):
    """Returns `train` of the quick start in another process, which runs some code first."""
    arguments = ["train", str(ROOT / "configs" / "quickstart.yaml"), "--run-dir", str(folder / "run")]
    return Command(arguments, {}, folder / "errors.txt", before)


def test_a_stopped_run_does_not_wait_for_the_graph_of_a_step(tmp_path):
    before = """
import os, signal, threading
from neural_alignment.training import run, step_loop

def signalled(self, stop):
    os.kill(os.getpid(), signal.SIGTERM)
    with stop.safe():
        pass

step_loop.StepLoop.trace = lambda *_: threading.Event().wait()  # Never done.
run.RunLoop._measure = signalled
"""
    process = command(tmp_path, before)
    try:
        assert process.wait() == 1
    finally:
        process.kill()
    assert process.errors.splitlines()[-1].startswith("stopped: SIGTERM at step 0")
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "stopped"


def test_a_run_that_cannot_read_its_data_does_not_wait_for_the_graph_of_a_step(tmp_path):
    before = """
import threading
from neural_alignment.errors import DataError
from neural_alignment.training import setup, step_loop

traced = threading.Event()

def unreadable(*arguments):
    traced.wait()
    raise DataError("data: cannot be read")

def trace(*arguments):
    traced.set()
    threading.Event().wait()  # Never done.

step_loop.StepLoop.trace, setup.load_data = trace, unreadable
"""
    process = command(tmp_path, before)
    try:
        assert process.wait() == 2
    finally:
        process.kill()
    assert process.errors.splitlines()[-1] == "error: data: cannot be read"


def test_a_second_signal_ends_the_process_at_once(tmp_path):
    before = """
import os, signal, sys
from neural_alignment.training import run, stepping
step, save = stepping.Stepper.__call__, run.RunLoop.save

def during(*arguments):
    results = step(*arguments)
    os.kill(os.getpid(), signal.SIGINT)
    return results

def saving(self, *arguments):
    if self.step == 1:
        print("saving", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGTERM)
        print("still there", file=sys.stderr, flush=True)
    save(self, *arguments)

stepping.Stepper.__call__, run.RunLoop.save = during, saving
"""
    process = command(tmp_path, before)
    assert process.wait() == -signal.SIGTERM
    assert process.errors.splitlines()[-1] == "saving"
