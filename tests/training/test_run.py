"""The life of a run directory."""

import json
import math
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf
from prepared_run import PreparedRun

from neural_alignment import config as configuration
from neural_alignment.errors import ConfigError, DataError, Diverged, RunError, Unavailable
from neural_alignment.training import evaluation, run
from neural_alignment.training.checkpoints import kept_steps
from neural_alignment.training.metrics import MetricsFile
from neural_alignment.training.model import AlignedModel
from neural_alignment.training.run_directory import FILES
from neural_alignment.training.trainer import Trainer

BASE = {
    "epochs": 2,
    "batch_size": 128,
    "data": {"source": "digits"},
    "model": {"name": "fc", "hidden": [6]},
    "alignment": {"rule": "symmetric", "self_": 2e-3, "decay": 2e-3},
    "optimization": {
        "forward": {"name": "momentum", "learning_rate": 0.02},
        "backward": {"name": "adam", "learning_rate": 1e-2},
    },
    "evaluation": {"probe_examples": 32},
    "logging": {"tensorboard": False},
}
STEPS = 1437 // 128
CONVNET = {"name": "convnet", "filters": [4, 6]}
TENSORBOARD = {"tensorboard": True, "histograms": True}


UNPROBED = {"probe_examples": 0}
"""For tests that do not look at measures of signals, whose graph takes long to trace."""


def config(**changes):
    return configuration.parse(configuration.merge(BASE, changes))


def weights(path):
    return keras.models.load_model(f"{path}/model.keras").get_weights()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "finished"
    return run.train(config(logging={**TENSORBOARD, "scatter": True}, model=CONVNET), path), path


def test_the_directory_holds_what_a_reader_needs(finished):
    result, path = finished
    not_written = {"corrupt_records.json", "kernels", "set_aside", "summary.png"}
    [events] = path.glob("events.out.tfevents.*")
    assert {entry.name for entry in path.iterdir()} == {*FILES, events.name} - not_written
    assert configuration.load(path / "config.yaml") == config(logging=TENSORBOARD, model=CONVNET)
    status = json.loads((path / "status.json").read_text())
    assert status["state"] == "finished"
    assert status["step"] == 2 * STEPS
    assert status["top1"] == result.metrics["top1"]
    assert {entry.name for entry in (path / "checkpoints").iterdir()} == {"last", "best"}


def test_of_equal_networks_the_first_is_the_best_state(tmp_path):
    run.train(config(optimization={"forward": {"learning_rate": 1e-30}}, evaluation=UNPROBED), tmp_path)
    rows = MetricsFile(str(tmp_path / "metrics.csv")).rows()
    assert rows[1]["top1"] == rows[2]["top1"]
    assert kept_steps(str(tmp_path / "checkpoints" / "best")) == [STEPS]
    assert json.loads((tmp_path / "status.json").read_text())["best_step"] == STEPS


def test_a_row_per_evaluation_holds_every_measure(finished):
    _, path = finished
    rows = MetricsFile(str(path / "metrics.csv")).rows()
    assert [row["step"] for row in rows] == [0, STEPS, 2 * STEPS]
    assert [row["epoch"] for row in rows] == [0, 1, 2]
    last = rows[-1]
    for column in ("J", "R", "top1", "top5", "train_J", "train_top1", "train_top5", "seconds"):
        assert np.isfinite(last[column]), column
    assert (last["learning_rate_J"], last["learning_rate_R"]) == pytest.approx((0.02, 0.01))
    for measure in ("weight_angle", "norm_ratio", "projection_angle", "local_gradient_angle", "pseudogradient_angle"):
        for layer in ("conv1", "conv2", "dense"):
            assert np.isfinite(last[f"{measure}/{layer}"]), (measure, layer)
    # Nothing was trained before the first row: undefined values are empty, neither 0 nor 90.
    untrained = ("J", "top1", "top5", "train_J", "train_top1", "train_top5", "R")
    assert np.isnan([rows[0][column] for column in untrained]).all()
    assert 70 < rows[0]["weight_angle/dense"] < 110
    assert last["weight_angle/dense"] < 45 < rows[0]["weight_angle/dense"]
    # No aligned layer lies behind the last one: its error has not travelled.
    assert last["pseudogradient_angle/dense"] == pytest.approx(0, abs=0.1)
    assert rows[0]["pseudogradient_angle/conv1"] > 20


def test_evaluate_agrees_with_the_last_row(finished):
    result, path = finished
    again = run.evaluate(path)
    assert again["top1"] == pytest.approx(result.metrics["top1"], abs=1e-6)
    assert again["top5"] == pytest.approx(result.metrics["top5"], abs=1e-6)
    assert again["J"] == pytest.approx(result.metrics["J"], rel=1e-5)


def test_the_accuracy_is_that_of_an_independent_count(finished):
    result, path = finished
    from neural_alignment import data

    dataset = data.load("digits", batch_size=7, seed=99)
    model = keras.models.load_model(path / "model.keras")
    images, labels = (np.concatenate(part) for part in zip(*dataset.validation().as_numpy_iterator(), strict=True))
    correct = (model.predict(images, verbose=0).argmax(axis=1) == labels).sum()
    assert len(labels) == dataset.validation_examples
    assert result.metrics["top1"] == pytest.approx(correct / len(labels), abs=1e-6)


def test_tensorboard_has_scalars_histograms_and_images(finished):
    _, path = finished
    tags = {}
    for file in path.glob("events.out.tfevents.*"):
        for event in tf.compat.v1.train.summary_iterator(str(file)):
            for value in event.summary.value:
                tags.setdefault(value.metadata.plugin_data.plugin_name, set()).add((value.tag, event.step))
    assert {("loss/J", STEPS), ("metric/top1", 2 * STEPS), ("angle/conv2", STEPS)} <= tags["scalars"]
    assert {("forward_kernel/dense", 0), ("backward_kernel/dense", STEPS)} <= tags["histograms"]
    assert {(f"weights/{layer}", 2 * STEPS) for layer in ("conv1", "conv2", "dense")} <= tags["images"]


def test_a_finished_run_is_not_overwritten_without_force(finished):
    _, path = finished
    before = {entry.name: entry.stat().st_mtime_ns for entry in path.iterdir()}
    with pytest.raises(RunError, match="holds a run that is finished; --force replaces it"):
        run.train(config(), path)
    assert {entry.name: entry.stat().st_mtime_ns for entry in path.iterdir()} == before


def test_resuming_a_finished_run_returns_its_result(finished):
    result, path = finished
    again = run.train(config(logging=TENSORBOARD, model=CONVNET), path, resume=True)
    assert again.metrics["top1"] == result.metrics["top1"]
    assert list(again.weight_angles) == list(result.weight_angles)


def test_force_replaces_the_run_and_leaves_other_files(tmp_path):
    path = tmp_path / "run"
    run.train(config(max_steps=1, evaluation=UNPROBED), path)
    (path / "notes.txt").write_text("mine")
    run.train(config(max_steps=2, evaluation=UNPROBED), path, force=True)
    assert [row["step"] for row in MetricsFile(str(path / "metrics.csv")).rows()] == [0, 2]
    assert (path / "notes.txt").read_text() == "mine"


class Killed(BaseException):
    """Represents the end of a process."""


class KillAt:
    """A progress bar that ends the run in the middle of an epoch."""

    def __init__(self, steps):
        self.left = steps

    def plan(self, start, total):
        pass

    def close(self):
        pass

    def __call__(self, row):
        pass

    def advance(self, steps):
        self.left -= steps
        if not self.left:
            raise Killed


NOISY = {
    "model": {"name": "convnet", "filters": [4], "batch_norm_trainable": False},
    "alignment": {"rule": "weight_mirror", "amp": 1e-2, "decay": 1e-2, "input": {"noise": "normal"}},
    "optimization": {
        "alternation": 1,
        "forward": {"noise": {"variance": 1e-4}, "schedule": {"warmup_epochs": 1.0}},
    },
}


@pytest.mark.exhaustive
def test_a_killed_run_resumes_and_ends_like_an_uninterrupted_one(tmp_path):
    """With alternating losses; tests/training/test_resume.py has runs with both losses in each step."""
    plan, epoch = config(**NOISY), 2 * STEPS
    with PreparedRun(plan).in_use():
        run.train(plan, tmp_path / "whole")
        with pytest.raises(Killed):
            run.train(plan, tmp_path / "broken", progress=KillAt(epoch + 3))
        assert json.loads((tmp_path / "broken" / "status.json").read_text())["state"] == "failed"
        run.train(plan, tmp_path / "broken", resume=True)
    for whole, broken in zip(weights(tmp_path / "whole"), weights(tmp_path / "broken"), strict=True):
        np.testing.assert_array_equal(whole, broken)
    rows = [MetricsFile(str(tmp_path / name / "metrics.csv")).rows() for name in ("whole", "broken")]
    for whole, broken in zip(*rows, strict=True):
        assert whole.pop("seconds") > 0
        assert broken.pop("seconds") > 0
        assert {k: v for k, v in whole.items() if not np.isnan(v)} == {
            k: v for k, v in broken.items() if not np.isnan(v)
        }


@pytest.fixture(scope="module")
def cut(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "cut"
    with pytest.raises(Killed):
        run.train(config(), path, progress=KillAt(STEPS + 1))
    return path


@pytest.fixture
def broken(cut, tmp_path):
    """A run of two epochs that was killed in the second."""
    return shutil.copytree(cut, tmp_path / "run")


@pytest.fixture
def whole(finished, tmp_path):
    """A finished run that may be damaged."""
    return shutil.copytree(finished[1], tmp_path / "whole")


def test_resume_without_a_run_starts_one(tmp_path):
    assert run.train(config(max_steps=1, evaluation=UNPROBED), tmp_path / "run", resume=True).metrics["step"] == 1


def test_a_checkpoint_of_another_configuration_is_refused(broken):
    own = rf"`train` with {broken}/config\.yaml, --run-dir {broken} and --resume continues it"
    other = "its checkpoint is of another configuration: batch_size was 128, is now 64"
    with pytest.raises(RunError, match=f"{other}; {own}; otherwise move the directory away, or choose another one$"):
        run.train(config(batch_size=64), broken, resume=True)
    with pytest.raises(RunError, match="holds a run that is failed; --resume continues it, --force starts over"):
        run.train(config(), broken)


def test_a_finished_run_of_another_length_is_continued_by_a_new_run(finished, tmp_path):
    _, path = finished
    longer = config(epochs=3, logging=TENSORBOARD, model=CONVNET)
    advice = (
        rf"epochs was 2, is now 3; the run is finished, and a new run .* init_from=\{{path: {path}, optimizer: true\}}"
    )
    with pytest.raises(RunError, match=advice):
        run.train(longer, path, resume=True)
    state = {"path": str(path), "optimizer": True}
    rest = config(epochs=3, model=CONVNET, init_from=state, evaluation=UNPROBED)
    run.train(rest, tmp_path / "longer")
    rows = MetricsFile(str(tmp_path / "longer" / "metrics.csv")).rows()
    assert [row["step"] for row in rows] == [2 * STEPS, 3 * STEPS]


def test_a_directory_that_is_no_run_stays_unchanged(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    for options in ({}, {"force": True}, {"resume": True}):
        with pytest.raises(RunError, match=r"contains other files, such as thesis\.tex, .* choose another directory$"):
            run.train(config(), tmp_path, **options)
    with pytest.raises(RunError, match="is a file, not a directory"):
        run.train(config(), tmp_path / "thesis.tex")
    with pytest.raises(RunError, match=r"is not a run directory .* give one that `train` has created"):
        run.evaluate(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]


def test_nothing_is_made_or_removed_when_the_configuration_or_the_data_are_wrong(tmp_path, whole):
    wrong = config(alignment={"layers": "cnv*"}, model=CONVNET)
    with pytest.raises(ConfigError, match=r"alignment\.layers: must match .* conv1, conv2, dense; found 'cnv\*'"):
        run.train(wrong, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    with pytest.raises(DataError, match="batch_size"):
        run.train(config(batch_size=4000), whole, force=True)
    assert run.evaluate(whole)


def contents(path):
    """Returns the content of every file below a directory."""
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def raise_in_step(*_):
    """Replaces a training step by one with a mistake, as a user's rule may have one."""
    raise TypeError("R_l is not a scalar")


SHORT = {"max_steps": 4, "checkpoints": {"every_steps": 2, "keep": 2}, "evaluation": UNPROBED}


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """Returns a finished run of four steps that can go back to step 2."""
    path = tmp_path_factory.mktemp("runs") / "short"
    run.train(config(**SHORT), path)
    return path


@pytest.mark.parametrize("options", [{"force": True}, {"resume_from": 2}], ids=["force", "resume_from"])
@pytest.mark.parametrize("mistake", ["pattern", "step"])
def test_a_run_that_fails_before_its_first_step_changes_no_file_of_the_earlier_run(
    short, tmp_path, monkeypatch, mistake, options
):
    path = shutil.copytree(short, tmp_path / "run")
    before = contents(path)
    with monkeypatch.context() as patch:
        if mistake == "pattern":
            plan, error = config(**SHORT, logging={"kernels": ["nosuch*"]}), ConfigError
        else:
            patch.setattr(AlignedModel, "_replica_step", raise_in_step)
            plan, error = config(**SHORT), TypeError
        with pytest.raises(error):
            run.train(plan, path, **options)
    assert contents(path) == before


@pytest.mark.parametrize(
    ("which", "what"),
    [
        pytest.param("forward", "lower the forward learning rate", marks=pytest.mark.exhaustive),
        ("backward", "lower the backward learning rate"),
    ],
)
def test_divergence_stops_the_run_names_step_and_layer_and_keeps_the_files(tmp_path, which, what):
    # A schedule that grows by 1e30 at epoch 1: the first epoch is sound, its row and checkpoint must stay.
    schedule = {"drop_epochs": [1], "drop_factor": 1e30}
    plan = config(epochs=3, optimization={which: {"schedule": schedule}}, evaluation=UNPROBED)
    with pytest.raises(Diverged, match=f"is not finite at step 1[1-9]; try this: .*{what}") as error:
        run.train(plan, tmp_path)
    status = json.loads((tmp_path / "status.json").read_text())
    assert status["state"] == "diverged"
    assert status["step"] == error.value.step
    assert set(status["layers"]) <= {"dense1", "dense"}
    assert status["layers"]
    assert [row["step"] for row in MetricsFile(str(tmp_path / "metrics.csv")).rows()] == [0, STEPS]
    assert tf.train.latest_checkpoint(str(tmp_path / "checkpoints" / "last")).endswith(f"ckpt-{STEPS}")
    with pytest.raises(RunError, match=r"has no model\.keras because the run is diverged"):
        run.evaluate(tmp_path)


def test_a_metric_that_is_undefined_is_not_a_divergence(tmp_path, monkeypatch):
    advance = Trainer.advance
    monkeypatch.setattr(Trainer, "advance", lambda self, limit: {**advance(self, limit), "undefined": math.nan})
    run.train(config(max_steps=1, evaluation=UNPROBED), tmp_path)
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "finished"


def test_a_j_that_is_not_finite_at_an_evaluation_is_a_divergence_too(tmp_path):
    plan = config(max_steps=1, optimization={"forward": {"learning_rate": 1e30}})
    with pytest.raises(Diverged, match=r"J .*is not finite"):
        run.train(plan, tmp_path)
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "diverged"
    assert not (tmp_path / "checkpoints").exists() or not list((tmp_path / "checkpoints").rglob("ckpt*"))


@pytest.mark.parametrize("damage", ["no checkpoints", "no metrics", "torn metrics", "torn checkpoint"])
def test_damaged_runs_are_not_resumed_and_lose_nothing_more(broken, damage):
    if damage == "no checkpoints":
        shutil.rmtree(broken / "checkpoints")
    elif damage == "no metrics":
        (broken / "metrics.csv").unlink()
    elif damage == "torn metrics":
        (broken / "metrics.csv").write_text("step,J\n0,1,2,x\n")
    else:
        for file in (broken / "checkpoints" / "last").glob("ckpt*data*"):
            file.write_bytes(file.read_bytes()[:50])
    before = sorted(path.name for path in broken.rglob("*"))
    with pytest.raises(RunError) as error:
        run.train(config(), broken, resume=True)
    assert "\n" not in str(error.value)
    assert sorted(path.name for path in broken.rglob("*")) == before


def test_a_directory_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be used as a run directory"):
        run.train(config(max_steps=1), tmp_path / "file" / "run")


def forget_checksums(path):
    """Leaves `status.json` as versions without checksums wrote it."""
    status = json.loads((path / "status.json").read_text())
    del status["files"], status["checksum"]
    (path / "status.json").write_text(json.dumps(status))


def test_evaluate_refuses_data_of_another_shape(whole):
    forget_checksums(whole)
    text = (whole / "config.yaml").read_text()
    model = keras.Sequential([keras.Input((9, 9, 1)), keras.layers.Flatten(), keras.layers.Dense(10)])
    model.save(whole / "model.keras")
    with pytest.raises(RunError, match=r"images of shape \(9, 9, 1\) and 10 outputs; the data are of .*8, 8, 1"):
        run.evaluate(whole)
    assert (whole / "config.yaml").read_text() == text


def of_strategy(path, strategy):
    """Edits the strategy in the configuration of a run, which is allowed. Returns the path."""
    file = path / "config.yaml"
    file.write_text(file.read_text().replace("strategy: auto", f"strategy: {strategy}"))
    return path


def test_one_process_evaluates_a_run_of_several_workers(short, tmp_path):
    expected = run.evaluate(short)
    path = of_strategy(shutil.copytree(short, tmp_path / "run"), "multi_worker")
    assert configuration.load(path / "config.yaml").runtime.strategy == "multi_worker"
    assert run.evaluate(path) == expected
    with pytest.raises(ConfigError, match="TF_CONFIG: must name the workers"):
        run.evaluate(path, "multi_worker")


@pytest.mark.parametrize(("strategy", "kind"), [("gpu", RunError), ("tpu", Unavailable)])
def test_evaluate_without_the_device_of_the_run_names_another(short, tmp_path, monkeypatch, strategy, kind):
    path = of_strategy(shutil.copytree(short, tmp_path / "run"), strategy)

    def unreachable(**_):
        raise ValueError("no such TPU")

    monkeypatch.setattr(tf.distribute.cluster_resolver, "TPUClusterResolver", unreachable)
    with pytest.raises(kind, match=f"runtime.strategy.*{strategy}.*; --strategy cpu evaluates on the CPU$"):
        run.evaluate(path)
    assert run.evaluate(path, "cpu")


def test_evaluate_refuses_a_directory_without_a_run(tmp_path, whole):
    with pytest.raises(RunError, match="no such run directory"):
        run.evaluate(tmp_path / "none")
    forget_checksums(whole)
    (whole / "model.keras").write_bytes(b"PK\x03\x04 not a model")
    with pytest.raises(RunError, match=r"model\.keras: cannot be loaded") as error:
        run.evaluate(whole)
    assert "\n" not in str(error.value)


def test_the_last_segment_may_be_short_and_evaluation_less_frequent(tmp_path):
    run.train(config(epochs=5, max_steps=3 * STEPS + 2, evaluation={"every_epochs": 2, **UNPROBED}), tmp_path / "run")
    steps = [row["step"] for row in MetricsFile(str(tmp_path / "run" / "metrics.csv")).rows()]
    assert steps == [0, 2 * STEPS, 3 * STEPS + 2]


def test_alternation_takes_as_many_more_steps(tmp_path):
    run.train(config(optimization={"alternation": 2}, epochs=1, evaluation=UNPROBED), tmp_path / "alternating")
    backprop = configuration.merge(BASE, {"alignment": None, "epochs": 1, "evaluation": UNPROBED})
    backprop["optimization"] = {"forward": BASE["optimization"]["forward"]}
    run.train(configuration.parse(backprop), tmp_path / "backprop")
    rows = {name: MetricsFile(str(tmp_path / name / "metrics.csv")).rows() for name in ("alternating", "backprop")}
    assert rows["alternating"][-1]["step"] == 3 * STEPS
    assert rows["backprop"][-1]["step"] == STEPS
    assert not any(key.startswith("weight_angle") for key in rows["backprop"][0])


# Rates and weights of rules.


SCHEDULED = {
    "alignment": {
        "rule": "weight_mirror",
        "amp": {"kind": "linear", "value": 0.25, "rate": 0.5},
        "decay": {"kind": "constant", "value": 0.125, "start": 1},
        "layers": None,
    },
    "model": {"name": "fc", "hidden": [4]},
    "batch_size": 256,
    "evaluation": {"probe_examples": 0},
}
EPOCH = 1437 // 256


def rows_of(path):
    return MetricsFile(str(path / "metrics.csv")).rows()


def test_weights_of_rules_that_are_schedules_and_the_rates_of_both_losses_are_in_the_rows(tmp_path):
    """Those of the next step: under alternation, that of the next turn of each loss; J is at rest during the delay."""
    plan = config(**SCHEDULED, logging={"tensorboard": True}, optimization={"alternation": 1, "delay_epochs": 1.5})
    run.train(plan, tmp_path / "run")
    rows = rows_of(tmp_path / "run")
    steps = [row["step"] for row in rows]
    assert steps == [0, 2 * EPOCH, 4 * EPOCH]
    assert [row["weight/amp"] for row in rows] == [0.25 + 0.5 * step / EPOCH for step in steps]
    assert [row["weight/decay"] for row in rows] == [0, 0.125, 0.125]
    assert [(row["loss_rate_J"], row["loss_rate_R"]) for row in rows] == [(0, 1), (1, 1), (1, 1)]
    tags = {
        (value.tag, event.step)
        for file in (tmp_path / "run").glob("events.out.tfevents.*")
        for event in tf.compat.v1.train.summary_iterator(str(file))
        for value in event.summary.value
    }
    assert {("rule_weight/amp", 2 * EPOCH), ("rate/loss_rate_J", 0), ("rate/loss_rate_R", 4 * EPOCH)} <= tags


def test_columns_of_several_rules_are_numbered_and_constants_have_none():
    schedule = {"kind": "linear", "value": 1.0, "rate": 1.0}
    rules = [
        {"rule": "weight_mirror", "layers": "hidden1", "amp": schedule, "decay": 1.0},
        {"rule": "symmetric", "layers": "dense", "self_": 1.0, "decay": schedule},
    ]
    columns = evaluation.ScheduledWeights(config(alignment=rules), 10)
    assert columns.row(5) == {"weight/0.amp": 1.5, "weight/1.decay": 1.5}
    assert evaluation.ScheduledWeights(config(alignment=rules[:1]), 10).row(5) == {"weight/amp": 1.5}
    assert evaluation.ScheduledWeights(config(), 10).row(5) == {}


def test_a_row_with_other_columns_is_refused(tmp_path):
    metrics = MetricsFile(str(tmp_path / "metrics.csv"))
    metrics.append({"step": 0, "J": 1.0})
    for row in ({"step": 5, "J": 1.0, "weight_angle/other": 1.0}, {"step": 5}):
        with pytest.raises(RunError, match=r"its columns are not those of this run \((weight_angle/other|J)\)"):
            metrics.append(row)
