"""A new run starts from the weights of another run, or says in one line what does not fit."""

import json
import os
import re
import shutil
from pathlib import Path

import keras
import killed_runs
import numpy as np
import pytest
import tensorflow as tf
from helpers import assert_differs, exhaustive_unless
from prepared_run import PreparedRun

from neural_alignment import config as configuration
from neural_alignment import files, layers
from neural_alignment.alignments import Feedback
from neural_alignment.config import InitialState, Runtime
from neural_alignment.errors import ConfigError, RunError
from neural_alignment.optimization import OPTIMIZERS
from neural_alignment.search.spaces import Space
from neural_alignment.training import (
    checkpoints,
    describe,
    distribution,
    evaluation,
    initial_state,
    load_weights,
    run,
    setup,
    stepping,
)
from neural_alignment.training import model as model_module
from neural_alignment.training.metrics import MetricsFile
from neural_alignment.training.model import AlignedModel
from optimizers import MultiOptimizer, Noisy
from optimizers.keras_internals import index_of

BASE = {
    "epochs": 2,
    "batch_size": 256,
    "data": {"source": "digits"},
    "model": {"name": "convnet", "filters": [3]},
    "alignment": {"rule": "symmetric", "self_": 2e-3, "decay": 2e-3},
    "optimization": {
        "forward": {"name": "momentum", "learning_rate": 0.02, "schedule": {"drop_epochs": [1]}},
        "backward": {"name": "adam", "learning_rate": 1e-2},
    },
    "evaluation": {"probe_examples": 0},
    "logging": {"tensorboard": False},
    "checkpoints": {"every_steps": 4, "keep": 3},
}
STEPS = 1437 // 256
END = 2 * STEPS
KEPT = [STEPS, 8, END]
OTHER_OPTIMIZERS = sorted(set(OPTIMIZERS) - {"adafactor"})


def config(**changes):
    return configuration.parse(configuration.merge(BASE, changes))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A finished run that keeps its last three states."""
    path = tmp_path_factory.mktemp("runs") / "source"
    run.train(config(), path)
    assert checkpoints.kept_steps(str(path / "checkpoints" / "last")) == KEPT
    return path


@pytest.fixture(scope="module")
def values(source):
    """Name -> value of the weights of the source's final model, by Keras alone."""
    return {each.path: each.numpy() for each in keras.models.load_model(source / "model.keras").weights}


def build(strategy=None, **changes):
    """Returns a compiled model as drawn from another seed."""
    plan = config(**{"seed": 5, **changes})
    with (strategy or tf.distribute.get_strategy()).scope():
        model = setup.build_model(plan, 10, (8, 8, 1), STEPS)
        setup.compile_model(model, plan, 10, STEPS)
    return model


def weights(model):
    return {each.path: each.numpy() for each in model.weights}


def assert_same(actual, expected, names=None):
    for name in expected if names is None else names:
        np.testing.assert_array_equal(actual[name], expected[name], err_msg=name)


BACKPROPAGATION = {"alignment": None, "optimization": {"backward": None}}
FEEDBACK = {"alignment": {"rule": "feedback"}, "optimization": {"backward": None}}


# Loading.


@pytest.mark.exhaustive
@pytest.mark.parametrize("state", exhaustive_unless([None, "last", "final", END, "file"], (None, "final")))
def test_the_weights_are_those_that_the_run_has_ended_with(source, values, state):
    path, state = (source / "model.keras", None) if state == "file" else (source, state)
    model = build()
    drawn = weights(model)
    loaded = load_weights(model, path, state)
    assert_same(weights(model), values)
    assert_differs(drawn["conv1/kernel"], values["conv1/kernel"])
    assert_differs(drawn["conv1_norm/moving_mean"], values["conv1_norm/moving_mean"])
    assert (model.global_step, loaded.first_step, loaded.left, loaded.unused) == (0, 0, (), ())
    assert loaded.digest == load_weights(build(), source).digest


def test_kept_states_and_the_best_one_are_told_apart(source):
    found = {state: load_weights(build(), source, state) for state in ("best", *KEPT)}
    assert [found[step].step for step in KEPT] == KEPT
    assert len({found[step].digest for step in KEPT}) == len(KEPT)
    best = json.loads((source / "status.json").read_text())["best_step"]
    assert (found["best"].step, found["best"].digest) == (best, found[best].digest)


def test_a_run_without_checkpoints_has_its_final_model(source, values, tmp_path):
    """As those have whose results are committed."""
    shutil.copytree(source, tmp_path / "run", ignore=lambda folder, names: {"checkpoints"} & {*names})
    for state in (None, "last", END):
        model = build()
        assert load_weights(model, tmp_path / "run", state).path.endswith("model.keras")
        assert_same(weights(model), values)


def test_weights_are_matched_by_name_and_not_by_order(source, values, tmp_path):
    inputs = keras.Input((8, 8, 1))
    # Created in the other order.
    dense, conv = keras.layers.Dense(10, name="dense"), keras.layers.Conv2D(3, 3, name="conv1", use_bias=False)
    flat = keras.layers.Flatten()(inputs)
    model = keras.Model(inputs, [dense(keras.ops.concatenate([flat] * 3, axis=-1)), conv(inputs)])
    load_weights(model, source, strict=False)
    assert_same(weights(model), values, ["dense/kernel", "dense/bias", "conv1/kernel"])
    assert model.weights[0].path == "dense/kernel"
    assert values["dense/kernel"].shape != next(iter(values.values())).shape
    # A saved Sequential model, whose paths begin with its name.
    native = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Conv2D(3, 3, use_bias=False, name="conv1")])
    native.save(tmp_path / "native.keras")
    model = build()
    loaded = load_weights(model, tmp_path / "native.keras", strict=False)
    np.testing.assert_array_equal(weights(model)["conv1/kernel"], native.weights[0].numpy())
    assert "dense/kernel" in loaded.left


def test_replicas_get_the_same_weights(source, values):
    strategy = distribution.create(Runtime(strategy="mirrored", replicas=2)).strategy
    model = build(strategy, batch_size=256)
    load_weights(model, source, optimizer=True)
    assert_same(weights(model), values)
    for variable in model.weights:
        copies = strategy.experimental_local_results(variable.value)
        np.testing.assert_array_equal(*(copy.numpy() for copy in copies))


def test_a_remote_file_system_is_read(source, values):
    files.copy(str(source), "ram://initial/run")
    model = build()
    loaded = load_weights(model, "ram://initial/run")
    assert loaded.path == f"ram://initial/run/checkpoints/last/ckpt-{END}"
    assert_same(weights(model), values)


# Another rule, another network.


def test_b_is_taken_over_from_a_run_with_another_rule(source, values):
    model = build(**FEEDBACK)
    load_weights(model, source)
    assert_same(weights(model), values, ["conv1/backward_kernel", "dense/backward_kernel"])


def save(model, path):
    model.save(path)
    return path


def test_a_second_backward_weight_is_taken_over_too(tmp_path):
    """With another seed the model has drawn another one."""
    changes = {"alignment": {"rule": "pfa", "decay": 0.1, "expansion": 2}, "weight_decay": 0.1}
    changes["optimization"] = {"backward": None}
    source, model = build(seed=1, **changes), build(**changes)
    names = ["conv1/fixed_kernel", "conv1/backward_kernel", "dense/fixed_kernel", "dense/backward_kernel"]
    before, expected = weights(model), weights(source)
    assert not any(np.array_equal(before[name], expected[name]) for name in names)
    load_weights(model, save(source, tmp_path / "model.keras"))
    assert_same(weights(model), expected)


B = r"conv1/backward_kernel of shape \(3, 3, 1, 3\)"
MISFITS = {
    "B is missing": (BACKPROPAGATION, {}, rf"{B} is not in the source \(1 more\)"),
    "B is too many": ({}, BACKPROPAGATION, rf"{B} is in the source and not in this model"),
    "another shape": (
        {},
        {"model": {"filters": [4]}},
        r"conv1/kernel has shape \(3, 3, 1, 3\) in the source and \(3, 3, 1, 4\) in this model",
    ),
    "a layer less": (
        {},
        {"model": {"filters": [3, 3]}},
        r"dense/kernel has shape .* in the source and .* in this model",
    ),
}


@pytest.mark.parametrize("case", MISFITS)
def test_what_does_not_fit_is_one_line_or_keeps_its_initial_value_and_is_listed(case, tmp_path, caplog):
    there, here, line = MISFITS[case]
    other = build(seed=6, **there)
    path = save(other, tmp_path / "model.keras")
    model = build(**here)
    for variable in model.weights:
        if "float" in variable.dtype:
            variable.assign(variable + 1)
    before = weights(model)
    with pytest.raises(RunError, match=line) as error:
        load_weights(model, path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)
    assert_same(weights(model), before)
    loaded = load_weights(model, path, strict=False)
    given, after = weights(other), weights(model)
    assert set(loaded.left) == {name for name in after if name not in given or given[name].shape != after[name].shape}
    assert set(loaded.unused) == set(given) - set(after)
    assert_same(after, before, loaded.left)
    assert_same(after, given, set(after) - set(loaded.left))
    for name in (*loaded.left, *loaded.unused):
        assert name in caplog.text


def test_a_model_that_shares_nothing_is_refused_even_where_not_all_must_fit(tmp_path):
    other = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="elsewhere")])
    with pytest.raises(
        RunError,
        match=r"model\.keras: has no weight that fits this model; the model has weights such as conv1/kernel, .*, "
        r"the source elsewhere/kernel, elsewhere/bias$",
    ):
        load_weights(build(), save(other, tmp_path / "model.keras"), strict=False)


def unnamed(*units):
    """Returns a model of one layer with a name and layers without, which Keras numbers anew in each process."""
    outputs = inputs = keras.Input((3,))
    outputs = keras.layers.Dense(3, name="named")(outputs) if units else inputs
    return keras.Model(inputs, keras.layers.BatchNormalization()(keras.layers.Dense(2)(outputs)))


NUMBERED = "layers without a `name` are numbered anew in each process: give them names"


@pytest.mark.parametrize("strict", [True, False])
def test_names_that_differ_in_numbers_only_are_explained(strict, tmp_path, caplog):
    path = save(unnamed(), tmp_path / "model.keras")
    with pytest.raises(RunError, match=rf"has no weight that fits this model; .*; {NUMBERED}$"):
        load_weights(unnamed(), path, strict=strict)
    path, model = save(unnamed(3), tmp_path / "named.keras"), unnamed(3)
    if strict:
        with pytest.raises(RunError, match=rf"{NUMBERED}; with strict=False, variables"):
            load_weights(model, path)
        with pytest.raises(RunError, match=rf"{NUMBERED}; with init_from\.strict: false, variables"):
            initial_state.load(InitialState(path=path), model)
    else:
        assert len(load_weights(model, path, strict=False).left) == 2 + 4
        assert caplog.text.count(NUMBERED) == 2


class Several(keras.layers.Layer):
    """Layers in a list."""

    def __init__(self, *names, **options):
        super().__init__(**options)
        self.parts = [keras.layers.Dense(2, trainable=False, name=name) for name in names]

    def call(self, x):
        return sum(part(x) for part in self.parts)


def of_parts(*names):
    inputs = keras.Input((3,))
    model = AlignedModel(inputs, keras.layers.BatchNormalization(name="norm")(Several(*names, name="several")(inputs)))
    model.compile(MultiOptimizer([keras.optimizers.SGD(0.1)]), "mse")
    return model


def test_layers_within_a_layer_are_told_apart_by_their_names(tmp_path):
    there, here = of_parts("one", "two"), of_parts("two", "one")
    there.fit(np.ones((4, 3)), np.ones((4, 2)), verbose=0)
    means = checkpoints.TrainingMeans(there, tf.TensorSpec((2,), tf.float32))
    assert checkpoints.CheckpointStore(there, means, str(tmp_path / "checkpoints")).save("last")
    run.RunDirectory(str(tmp_path)).write_status("stopped", {})
    loaded = load_weights(here, tmp_path)
    assert (loaded.left, loaded.unused) == ((), ())
    assert weights(here).keys() == {*weights(there)} >= {"several/one/kernel", "several/two/kernel"}
    assert_same(weights(here), weights(there))


def test_two_weights_of_one_name_are_one_line():
    with pytest.raises(RunError, match="two weights are named several/one/kernel; weights are loaded by name"):
        load_weights(of_parts("one", "one"), "nowhere.keras")


# W(0).


def layout(kernel):
    """Returns a forward kernel in the layout of B."""
    return kernel.T if kernel.ndim == 2 else kernel


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model of Align-prop and one of Align-zero after two steps, saved: W is no longer W(0)."""
    paths = {}
    for rule in ("align_prop", "align_zero"):
        model = build(alignment={"rule": rule}, optimization={"backward": None})
        model.fit(np.random.default_rng(0).normal(size=(16, 8, 8, 1)), np.arange(16) % 10, 8, verbose=0)
        paths[rule] = save(model, tmp_path_factory.mktemp("trained") / f"{rule}.keras")
    return paths


@pytest.mark.parametrize(
    ("optimizer", "rule"),
    exhaustive_unless(
        [(optimizer, rule) for optimizer in (False, True) for rule in ("align_prop", "align_zero")],
        [(False, "align_prop"), (True, "align_zero")],
    ),
)
def test_w_0_is_the_loaded_w_unless_training_goes_on(trained, rule, optimizer):
    there = {each.path: each.numpy() for each in keras.models.load_model(trained[rule]).weights}
    model = build(alignment={"rule": rule}, optimization={"backward": None})
    load_weights(model, trained[rule], optimizer=optimizer)
    model.take_initial_weights()
    name = "conv1/backward_kernel" if rule == "align_prop" else "kept/initial_0_conv1_kernel"
    initial, here = there[name], weights(model)
    now = layout(there["conv1/kernel"])
    assert_differs(now, initial)
    np.testing.assert_array_equal(here["conv1/kernel"], there["conv1/kernel"])
    np.testing.assert_array_equal(here[name], initial if optimizer else now)
    assert_differs(here[name], now if optimizer else initial)


def test_align_prop_starts_from_a_run_of_any_rule(source, values):
    model = build(alignment={"rule": "align_prop"}, optimization={"backward": None})
    load_weights(model, source)
    model.take_initial_weights()
    np.testing.assert_array_equal(weights(model)["dense/backward_kernel"], values["dense/kernel"].T)


# The optimizer.


def slots(model):
    multi = model.optimizer
    return {each.path.partition("/")[2]: each.numpy() for one in multi.inner_optimizers for each in one.variables}


def test_the_optimizer_is_taken_over_with_the_global_step_and_without_its_learning_rate(source):
    rate = {"optimization": {"backward": {"learning_rate": 0.5}}}
    model = build(**rate)
    loaded = load_weights(model, source, 8, optimizer=True)
    assert (loaded.first_step, model.global_step) == (8, 8)
    reader = tf.train.load_checkpoint(str(source / "checkpoints" / "last" / "ckpt-8"))
    keys = [key for key in reader.get_variable_to_shape_map() if re.search(r"inner_optimizers/1/_(var|iter)", key)]
    expected = sorted(float(np.abs(reader.get_tensor(key)).sum()) for key in keys)
    adam = [each for each in model.optimizer.inner_optimizers[1].variables if each.name != "learning_rate"]
    assert expected[-1] > 0
    assert sorted(float(np.abs(each.numpy()).sum()) for each in adam) == pytest.approx(expected)
    assert float(model.optimizer.learning_rates[1]) == 0.5
    untouched = build(**rate)
    load_weights(untouched, source, 8)
    assert untouched.global_step == 0
    zeros = [value for name, value in slots(untouched).items() if name.endswith("accumulator")]
    assert zeros
    assert not any(value.any() for value in zeros)


def test_an_optimizer_of_another_kind_is_one_line(source):
    model = build(optimization={"backward": {"name": "momentum", "learning_rate": 0.01}})
    before = weights(model)
    line = r"optimizer backward: momentum/iteration of shape \(\) is not in the source \(7 more\)"
    with pytest.raises(RunError, match=line) as error:
        load_weights(model, source, optimizer=True)
    assert "\n" not in str(error.value)
    assert_same(weights(model), before)
    loaded = load_weights(model, source, optimizer=True, strict=False)
    assert loaded.first_step == END
    assert all(name.startswith("optimizer backward: momentum/") for name in loaded.left)
    fitted = build()
    load_weights(fitted, source, optimizer=True)
    momentum = slots(model)["conv1_kernel_accumulator"]
    assert momentum.any()
    np.testing.assert_array_equal(momentum, slots(fitted)["conv1_kernel_accumulator"])


def test_a_model_that_was_saved_without_an_optimizer_has_no_state_of_one(tmp_path):
    model = build()
    path = save(keras.Model(model.input, model.output), tmp_path / "model.keras")
    load_weights(build(), path)
    with pytest.raises(RunError, match=r"model\.keras: contains no optimizer state"):
        load_weights(build(), path, optimizer=True)


def test_steps_that_layers_count_by_themselves_need_not_fit(source):
    schedule = {"kind": "linear", "value": 1e-3, "rate": 1e-3}
    model = build(alignment={"decay": schedule})
    assert "conv1/alignment_step" in weights(model)
    assert load_weights(model, source, optimizer=True).left == ()


# A missing or damaged source.


def test_a_state_that_is_missing_names_those_that_are_there(source, tmp_path):
    model = build()
    there = rf"available: last \(step {STEPS}, 8, {END}\), best \(step [0-9]+\), final \(step {END}\)"
    for step in (7, 0):  # 0 is a step, and not the absence of one.
        with pytest.raises(RunError, match=rf"has no state of step {step}; {there}"):
            load_weights(model, source, step)
    shutil.copytree(source / "checkpoints" / "last", tmp_path / "run" / "checkpoints" / "last")
    shutil.copy(source / "config.yaml", tmp_path / "run")
    shutil.copy(source / "metrics.csv", tmp_path / "run")
    for state in ("best", "final"):
        with pytest.raises(RunError, match=rf"has no state {state}; available: last \(step {STEPS}, 8, 1"):
            load_weights(model, tmp_path / "run", state)
    with pytest.raises(RunError, match=r"no such run directory; give one that `train` has created, or a \.keras file"):
        load_weights(model, tmp_path / "none")
    (tmp_path / "folder").mkdir()
    with pytest.raises(RunError, match="is not a run directory"):
        load_weights(model, tmp_path / "folder")
    (tmp_path / "model.weights.h5").touch()
    with pytest.raises(RunError, match=r"h5: is not a run directory but a file; give .* or a \.keras file$"):
        load_weights(model, tmp_path / "model.weights.h5")
    with pytest.raises(RunError, match=r"none\.keras: no such file"):
        load_weights(model, tmp_path / "none.keras")
    os.mkfifo(tmp_path / "fifo.keras")
    with pytest.raises(RunError, match=r"fifo\.keras: is not a regular file but a FIFO"):
        load_weights(model, tmp_path / "fifo.keras")


@pytest.mark.parametrize("damage", exhaustive_unless(["delete", "empty", "halve", "change"], ("delete", "change")))
def test_a_damaged_state_is_named(source, tmp_path, damage):
    path = shutil.copytree(source, tmp_path / "run")
    model = build()
    last, before = path / "checkpoints" / "last", weights(model)
    for file in (*(last / f"ckpt-{END}{end}" for end in (".index", ".data-00000-of-00001")), path / "model.keras"):
        state = "final" if file.suffix == ".keras" else "last"
        content = file.read_bytes()
        changed = bytearray(content)
        changed[len(content) // 2] ^= 16
        if damage == "delete":
            file.unlink()
        else:
            file.write_bytes({"empty": b"", "halve": content[: len(content) // 2], "change": bytes(changed)}[damage])
        with pytest.raises(RunError) as error:
            load_weights(model, path, state)
        assert "\n" not in str(error.value)
        assert "--resume" not in str(error.value) or state == "final"  # That would be of the run that is started.
        assert str(file).partition(".index")[0].partition(".data")[0] in str(error.value)
        file.write_bytes(content)
    assert_same(weights(model), before)
    (last / "checkpoint").write_text("")  # Missing or empty, it is done without, and left as it is.
    assert load_weights(model, path).step == END
    assert (last / "checkpoint").read_text() == ""


def test_a_saved_model_that_is_not_finite_is_refused(tmp_path):
    model = build()
    model.get_layer("dense").kernel.assign(np.full((192, 10), np.nan))
    with pytest.raises(RunError, match=r"dense/kernel is not finite"):
        load_weights(build(), save(model, tmp_path / "model.keras"))


def test_a_run_that_goes_on_meanwhile_is_read_and_not_touched(source, tmp_path, monkeypatch):
    path = shutil.copytree(source, tmp_path / "run")
    last = path / "checkpoints" / "last"
    (path / "lock.json").write_text("{}")
    checkpoints.write_named(str(last / "checkpoint"), [8])
    original = initial_state.read_state
    calls = []

    def replaced(prefix, *rest):
        calls.append(Path(prefix).name)
        if len(calls) == 1:  # The process that trains it saves a newer state and removes this one.
            checkpoints.write_named(str(last / "checkpoint"), [END])
            for file in last.glob("ckpt-8.*"):
                file.unlink()
        return original(prefix, *rest)

    monkeypatch.setattr(initial_state, "read_state", replaced)
    assert load_weights(build(), path).step == END
    assert calls == ["ckpt-8", f"ckpt-{END}"]
    before = {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in path.rglob("*") if file.is_file()}
    load_weights(build(), path)
    after = {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in path.rglob("*") if file.is_file()}
    assert after == before


# Runs.


def test_a_run_that_takes_the_optimizer_over_ends_where_its_source_does(source, tmp_path):
    goes_on = config(init_from={"path": str(source), "state": 8, "optimizer": True})
    assert f"starts from {source}/checkpoints/last/ckpt-8 (step 8): weights, optimizer" in describe.describe(goes_on)
    run.train(goes_on, tmp_path / "run")
    ours, theirs = killed_runs.weights(tmp_path / "run"), killed_runs.weights(source)
    assert ours.keys() == theirs.keys()
    assert all(ours[name].tobytes() == theirs[name].tobytes() for name in ours)
    rows = MetricsFile(str(tmp_path / "run" / "metrics.csv")).rows()
    assert [row["step"] for row in rows] == [8, END]
    assert rows[1]["J"] == MetricsFile(str(source / "metrics.csv")).rows()[-1]["J"]
    assert np.isfinite(rows[0]["top1"])
    assert np.isnan(rows[0]["train_J"])
    origin = json.loads((tmp_path / "run" / "status.json").read_text())["init_from"]
    assert (origin["path"], origin["step"]) == (f"{source}/checkpoints/last/ckpt-8", 8)
    assert origin["digest"] == load_weights(build(), source, 8, optimizer=True).digest
    with pytest.raises(
        RunError, match=rf"init_from: the run would continue at step {END} of .*, but it ends at step 9"
    ):
        run.train(config(max_steps=9, init_from={"path": str(source), "optimizer": True}), tmp_path / "late")
    assert not (tmp_path / "late").exists()


@pytest.mark.parametrize(
    "name", ["adafactor", *(pytest.param(each, marks=pytest.mark.exhaustive) for each in OTHER_OPTIMIZERS)]
)
def test_the_state_of_every_optimizer_is_taken_over(tmp_path, name):
    small = {
        "max_steps": 4,
        "model": {"name": "fc", "hidden": [4]},
        "alignment": {"rule": "feedback"},
        "optimization": {"forward": {"name": name, "learning_rate": 0.02}},
        "checkpoints": {"every_steps": 2, "keep": 2},
    }
    run.train(configuration.parse({**BASE, **small}), tmp_path / "source")
    init_from = {"path": f"{tmp_path}/source", "state": 2, "optimizer": True}
    run.train(configuration.parse({**BASE, **small, "init_from": init_from}), tmp_path / "run")
    ours, theirs = killed_runs.weights(tmp_path / "run"), killed_runs.weights(tmp_path / "source")
    assert ours.keys() == theirs.keys()
    assert all(ours[each].tobytes() == theirs[each].tobytes() for each in ours)
    assert json.loads((tmp_path / "run" / "status.json").read_text())["init_from"]["left"] == []


class Killed(BaseException):
    """Stands for a process that is gone."""


def killed_before(owner, name, patch, at=1):
    original, calls = getattr(owner, name), []

    def killed(*arguments, **options):
        calls.append(name)
        if len(calls) == at:
            raise Killed
        return original(*arguments, **options)

    patch.setattr(owner, name, killed)


@pytest.fixture(scope="module")
def started(source, tmp_path_factory):
    """The plan of a run that starts from a copy of the source, the copy, that run, and its data and model."""
    folder = tmp_path_factory.mktemp("started")
    copy = shutil.copytree(source, folder / "source")
    plan = config(seed=3, max_steps=6, init_from=str(copy), optimization={"forward": {"learning_rate": 0.01}})
    once = PreparedRun(plan)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "prepare", once.prepare)
        run.train(plan, folder / "whole")
    return plan, copy, folder / "whole", once


def test_the_first_row_is_that_of_the_loaded_weights(source, started):
    rows = MetricsFile(str(started[2] / "metrics.csv")).rows()
    final = MetricsFile(str(source / "metrics.csv")).rows()[-1]
    assert [row["step"] for row in rows] == [0, STEPS, 6]
    assert (rows[0]["J"], rows[0]["top1"]) == pytest.approx((final["J"], final["top1"]))
    best = max(rows, key=lambda row: row["top1"])  # The first row counts as the others do.
    status = run.RunDirectory(started[2]).status()
    assert (status["best_step"], status["best_top1"]) == (best["step"], best["top1"])
    assert np.isnan(rows[0]["train_J"])


@pytest.mark.parametrize(
    ("owner", "name", "at"),
    exhaustive_unless(
        [(MetricsFile, "append", 1), (stepping.Stepper, "__call__", 3), (evaluation.Evaluator, "row", 1)],
        [(stepping.Stepper, "__call__", 3)],
    ),
)
def test_a_resumed_run_does_not_need_its_source(source, started, tmp_path, monkeypatch, owner, name, at):
    plan, copy, whole, once = started
    monkeypatch.setattr(run, "prepare", once.prepare)
    if not copy.exists():
        shutil.copytree(source, copy)
    path = tmp_path / "killed"
    with monkeypatch.context() as patch:
        killed_before(owner, name, patch, at)
        with pytest.raises(Killed):
            run.train(plan, path)
    shutil.rmtree(copy)
    with pytest.raises(RunError, match=r"is of another configuration: init_from was \{.*\}, is now not set"):
        run.train(configuration.parse({**configuration.plain(plan), "init_from": None}), path, resume=True)
    run.train(plan, path, resume=True)
    assert killed_runs.differences(whole, path) == []
    origins = [json.loads((each / "status.json").read_text())["init_from"] for each in (path, whole)]
    assert origins[0] == origins[1]


def test_a_begun_run_that_lost_its_states_does_not_start_again_from_its_source(source, tmp_path, monkeypatch):
    plan = config(max_steps=6, init_from=str(source))
    with monkeypatch.context() as patch:
        killed_before(stepping.Stepper, "__call__", patch, 3)
        with pytest.raises(Killed):
            run.train(plan, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    (tmp_path / "run" / "metrics.csv").write_text("step,epoch,seconds,J\n")
    with pytest.raises(RunError, match="checkpoints: has no complete state, but the run has begun"):
        run.train(plan, tmp_path / "run", resume=True)


def test_nothing_is_made_where_the_source_is_wrong_and_no_run_replaces_its_own(source, tmp_path):
    with pytest.raises(RunError, match="no such run directory"):
        run.train(config(init_from=str(tmp_path / "none")), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    path = shutil.copytree(source, tmp_path / "own")
    for place in (path, path / "model.keras", path / ".." / "own"):
        with pytest.raises(RunError, match="init_from: must not be in the run directory"):
            run.train(config(init_from=str(place)), path, force=True)
    assert killed_runs.differences(source, path) == []


# The configuration.


def test_the_short_form_is_the_long_one_and_a_home_directory_is_expanded(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    plan = config(init_from="~/runs/first")
    assert plan == config(init_from={"path": str(tmp_path / "runs" / "first")})
    assert configuration.parse(configuration.plain(plan)) == plan
    assert "init_from" not in configuration.plain(config())
    form = configuration.json_schema()["properties"]["init_from"]
    assert {"type": "string"} in form["anyOf"]


@pytest.mark.parametrize(
    ("value", "line"),
    [
        (3, "init_from: must be a path, or a mapping with the key `path`; found 3"),
        ({"state": "last"}, "init_from.path: this key is required and was not found"),
        ({"path": "a", "state": "first"}, "init_from.state: must be 'last', 'best', 'final' or the step of"),
        ({"path": "a", "state": -1}, "init_from.state: must be 'last', 'best', 'final' or the step of"),
        ({"path": "a", "state": True}, "init_from.state: must be 'last', 'best', 'final' or the step of"),
        ({"path": "a.keras", "state": "last"}, "init_from.state: must be null with a .keras file; found 'last'"),
        ({"path": "a", "optimiser": True}, "init_from.optimiser: unknown key; allowed: .*did you mean"),
    ],
)
def test_a_wrong_source_is_one_line(value, line):
    with pytest.raises(ConfigError, match=line):
        config(init_from=value)


def test_a_search_may_choose_among_sources():
    space = Space({"init_from.path": {"choice": ["runs/a", "runs/b"]}})
    base = config(init_from={"path": "runs/c", "state": "best"})
    for path in ("runs/a", "runs/b"):
        plan = configuration.override(base, space.overrides({"init_from.path": path}))
        assert plan.init_from == base.init_from.model_copy(update={"path": path})


class Anchored(keras.optimizers.SGD):
    """Gradient descent towards the weights with which it was built."""

    copies_weights = True

    def build(self, variables):
        super().build(variables)
        self.anchors = self.add_optimizer_variables(variables, "anchor")
        for anchor, variable in zip(self.anchors, variables, strict=True):
            anchor.assign(variable)

    def update_step(self, gradient, variable, learning_rate):
        anchor = self.anchors[index_of(self, variable)]
        variable.assign_sub(learning_rate * (gradient + variable - anchor))


COPYING = {
    "custom": lambda: MultiOptimizer([Anchored(0.1), keras.optimizers.SGD(0.1)]),
    "wrapped": lambda: MultiOptimizer([Noisy(Anchored(0.1), variance=1e-6), keras.optimizers.Adam(0.1)]),
    "scaled": lambda: keras.optimizers.LossScaleOptimizer(MultiOptimizer([Anchored(0.1)])),
    **(
        {"Keras": lambda: MultiOptimizer([keras.optimizers.ScheduleFreeAdamW(0.01), keras.optimizers.SGD(0.1)])}
        if hasattr(keras.optimizers, "ScheduleFreeAdamW")
        else {}
    ),
}
"""Optimizers that copy the weights when they are built."""


@pytest.mark.parametrize("kind", exhaustive_unless(COPYING, ("custom", "Keras")))
def test_an_optimizer_that_copies_weights_starts_from_those_that_were_loaded(kind, monkeypatch):
    """However they were loaded. Only before the first step, not when a training function is built again."""
    first, second = (small_network(seed).get_weights() for seed in (1, 2))
    expected = after_training(kind, first, first)
    for value, wanted in zip(after_training(kind, second, first), expected, strict=True):
        np.testing.assert_array_equal(value, wanted)
    monkeypatch.setattr(model_module, "copy_weights_again", lambda optimizer: None)
    assert_differs(after_training(kind, second, first)[0], expected[0])


def small_network(seed):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((3,))
    hidden = layers.Dense(4, alignment=Feedback(), name="hidden")(inputs)
    return AlignedModel(inputs, layers.Dense(2, alignment=Feedback(), name="outputs")(hidden))


def after_training(kind, built_with, loaded):
    """Returns the weights of a model that is compiled with some weights, gets others, and makes three steps."""
    model = small_network(0)
    model.set_weights(built_with)
    model.compile(COPYING[kind](), "mse")
    model.set_weights(loaded)
    for _ in range(3):
        model.make_train_function(force=True)
        model.train_on_batch(np.ones((8, 3), np.float32), np.ones((8, 2), np.float32))
    return model.get_weights()


def test_other_optimizers_are_left_as_they_are(source):
    model = build()
    before = model.optimizer.variables
    load_weights(model, source)
    model._prepare()
    assert [id(variable) for variable in model.optimizer.variables] == [id(variable) for variable in before]
    assert not any(slot.numpy().any() for slot in model.optimizer.inner_optimizers[1].variables if len(slot.shape))


def test_describe_works_where_the_source_is_gone(tmp_path):
    told = describe.describe(config(init_from=str(tmp_path / "gone"), checkpoints={"keep": 4}))
    line = next(line for line in told.splitlines() if line.startswith("starts from"))
    assert f"starts from {tmp_path / 'gone'}: weights; all must fit; not found now" in line
    assert "checkpoints every_steps 4, keep 4" in told
