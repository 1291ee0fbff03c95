"""The dashboard HPARAMS of searches and comparisons, read with TensorBoard's own reader."""

import json
import re
from pathlib import Path

import pytest
from event_reader import experiment, points, run_names, session
from helpers import SMALL_RUN, screen_of
from tensorboard.plugins.hparams import api_pb2, list_session_groups

from neural_alignment import compare
from neural_alignment import config as configuration
from neural_alignment.jobs.batch import Execution, Screen
from neural_alignment.jobs.ending import Ending
from neural_alignment.jobs.engines import registry
from neural_alignment.search import plan, run
from neural_alignment.training import hparams

SHOWN = ("logging.tensorboard=true", "logging.scatter=false", "epochs=1", "evaluation.every_epochs=1")
SPACE = """
config: base.yaml
trials: 4
space:
  optimization.forward.learning_rate: {log_uniform: [1.0e-3, 0.1]}
  optimization.forward.nesterov: {choice: [false, true]}
  model.hidden: {choice: [[5], [6]]}
  batch_size: {integer: [100, 200]}
  weight_decay: {fixed: 0.001}
  $ratio: {choice: [1, 2]}
  alignment.decay: {product: [0.001, $ratio]}
"""


class Trained:
    """An engine that makes empty run directories."""

    slots = 1

    def __init__(self, endings):
        self.endings = endings

    def run(self, queue):
        while job := queue.next():
            state = self.endings[int(job.name) - 1]
            if state != "failed":
                Path(job.run_dir).mkdir(parents=True, exist_ok=True)
            queue.ended(job, Ending(state, 0.75 if state == "finished" else None))


@pytest.fixture
def search(tmp_path, plan_file):
    def call(endings, *overrides, trials=4):
        path = plan_file(SPACE.replace("trials: 4", f"trials: {trials}"))
        quiet = screen_of(lambda line: None)
        return run.search(plan.load(path), overrides, str(tmp_path / "search"), Trained(endings), quiet)

    return call


ENDINGS = ["finished", "diverged", "failed", "finished", "finished"]


def test_a_search_has_a_column_per_varied_quantity_and_a_row_per_trial(search, tmp_path):
    trials = search(ENDINGS, "logging.tensorboard=true")
    columns = {info.name: info for info in experiment(tmp_path / "search").hparam_infos}
    assert set(columns) == set(trials[0].settings) - {"weight_decay"}
    rate = columns["optimization.forward.learning_rate"]
    assert rate.type == api_pb2.DATA_TYPE_FLOAT64
    assert (rate.domain_interval.min_value, rate.domain_interval.max_value) == (1e-3, 0.1)
    assert [v.bool_value for v in columns["optimization.forward.nesterov"].domain_discrete.values] == [False, True]
    assert [v.string_value for v in columns["model.hidden"].domain_discrete.values] == ["[5]", "[6]"]
    assert columns["alignment.decay"].type == api_pb2.DATA_TYPE_FLOAT64
    assert {name: info.display_name for name, info in columns.items() if "." in name} == {
        "optimization.forward.learning_rate": "forward.learning_rate",
        "optimization.forward.nesterov": "forward.nesterov",
        "model.hidden": "hidden",
        "alignment.decay": "decay",
    }
    [metric] = experiment(tmp_path / "search").metric_infos
    assert metric.name.tag == "result/best_top1"
    assert run_names(tmp_path / "search") == {".", "trials/0001", "trials/0002", "trials/0004"}
    for trial in trials:
        if trial.state == "failed":
            continue
        place = tmp_path / "search" / "trials" / f"{trial.number:04d}"
        settings, status = session(place)
        expected = {name: value for name, value in trial.settings.items() if name != "weight_decay"}
        assert settings == {**expected, "model.hidden": str(expected["model.hidden"])}
        finished = trial.state == "finished"
        assert status == (api_pb2.STATUS_SUCCESS if finished else api_pb2.STATUS_FAILURE)
        assert points(place) == ({"result/best_top1": [(0, 0.75)]} if finished else {})


def passes(info, value):
    """Returns for each option of a column whether TensorBoard shows a run with a value if only it is ticked."""
    group = api_pb2.SessionGroup()
    kind = {bool: "bool_value", float: "number_value", str: "string_value"}[type(value)]
    setattr(group.hparams[info.name], kind, value)
    found = {}
    for option in info.domain_discrete.values:
        column = api_pb2.ColParams(hparam=info.name)
        column.filter_discrete.values.add().CopyFrom(option)
        filters = list_session_groups._create_filters([column], list_session_groups._create_extractors([column]))
        found[option.string_value] = all(each(group) for each in filters)
    return found


def test_a_row_passes_the_filters_of_its_options(plan_file, tmp_path):
    """A row with the number 0.5 would pass none of the options of a column of strings."""
    options = [None, 0.5, True, "adam", [1, 2]]
    space = f"config: base.yaml\ntrials: 12\nspace:\n  $any: {{choice: {json.dumps(options)}}}\n"
    space += "  alignment.decay: {match: $any, cases: [[null, 0], [0.5, 1], [true, 0], [adam, 1], [[1, 2], 0.5]]}\n"
    path, engine = plan_file(space), Trained(["finished"] * 12)
    overrides = ["logging.tensorboard=true"]
    trials = run.search(plan.load(path), overrides, str(tmp_path / "search"), engine, screen_of(print))
    column = next(info for info in experiment(tmp_path / "search").hparam_infos if info.name == "$any")
    names = ["null", "0.5", "true", "adam", "[1, 2]"]
    assert [value.string_value for value in column.domain_discrete.values] == names
    drawn = [options.index(trial.settings["$any"]) for trial in trials]
    assert len({*drawn}) > 3
    for trial, index in zip(trials, drawn, strict=True):
        settings, _ = session(tmp_path / "search" / "trials" / f"{trial.number:04d}")
        assert passes(column, settings["$any"]) == {name: name == names[index] for name in names}


def test_equal_names_are_shown_with_more_of_their_path(tmp_path):
    names = ["a.x.rate", "a.y.rate", "b.x.rate", "rate", "decay"]
    hparams.write_experiment(str(tmp_path), {name: [0.0, 1.0] for name in names}, {})
    shown = {info.name: info.display_name for info in experiment(tmp_path).hparam_infos}
    assert shown == {
        "a.x.rate": "a.x.rate",
        "a.y.rate": "y.rate",
        "b.x.rate": "b.x.rate",
        "rate": "rate",
        "decay": "decay",
    }


def test_a_resumed_search_writes_nothing_twice_and_nothing_is_lost(search, tmp_path):
    search(ENDINGS, "logging.tensorboard=true")
    before = sorted(tmp_path.rglob("events*"))
    [lost] = (tmp_path / "search" / "trials" / "0001").glob("events*")
    lost.unlink()
    search(ENDINGS, "logging.tensorboard=true", trials=5)
    after = sorted(tmp_path.rglob("events*"))
    assert set(before) - set(after) == {lost}
    assert [path.parent.name for path in after] == ["search", "0001", "0002", "0004", "0005"]


CONFIGS = {
    "fc/symmetric": SMALL_RUN,
    "fc/feedback": re.sub("alignment: .*", "alignment: {rule: feedback}", re.sub("  backward: .*\n", "", SMALL_RUN)),
}


class Written:
    """An engine that writes the files of finished runs, and of one diverged run, without training."""

    slots = 1

    def run(self, queue):
        while job := queue.next():
            config = configuration.load(job.config, job.overrides)
            folder = Path(job.run_dir)
            folder.mkdir(parents=True)
            (folder / "config.yaml").write_text(configuration.dump(config))
            is_diverged = job.name == "fc/feedback/seed1"
            (folder / "status.json").write_text(json.dumps({"state": "diverged" if is_diverged else "finished"}))
            rows = ["0,0,1,,,90,88", "7,1,9,0.5,0.75,80,78"][: 2 - is_diverged]
            header = "step,epoch,seconds,J,top1,weight_angle/dense1,weight_angle/dense"
            (folder / "metrics.csv").write_text("\n".join([header, *rows, ""]))
            queue.ended(job, Ending("diverged") if is_diverged else Ending("finished", 0.75))


@pytest.fixture
def compared(tmp_path):
    """Compares two rules over two seeds; returns the folder of the run directories."""

    def call(engine):
        paths = []
        for name, text in CONFIGS.items():
            paths.append(str(tmp_path / f"{name.replace('/', '_')}.yaml"))
            Path(paths[-1]).write_text(text)
        names = dict(zip(paths, CONFIGS, strict=True))
        folder = tmp_path / "runs"
        comparison = compare.Comparison(paths, (0, 1), SHOWN, str(folder), names.get)
        execution = Execution(engine, Screen(lambda line: None, lambda line: None))
        compare.compare(comparison, str(tmp_path / "table"), execution)
        return folder

    return call


NAMES = {f"{name}/seed{seed}" for name in ("symmetric", "feedback") for seed in (0, 1)}


def test_a_comparison_has_a_row_per_run_with_the_keys_that_vary(compared):
    folder = compared(Written())
    columns = {info.name: info for info in experiment(folder / "fc").hparam_infos}
    assert {"configuration", "seed", "alignment.rule", "alignment.self_"} <= set(columns)
    assert not {"epochs", "batch_size", "optimization.forward.learning_rate"} & set(columns)
    # Only one of the rules has this key; TensorBoard shows the runs without it whatever the interval.
    assert columns["alignment.self_"].type == api_pb2.DATA_TYPE_FLOAT64
    metrics = {info.name.tag: info.display_name for info in experiment(folder / "fc").metric_infos}
    assert metrics == {"result/top1": "validation top-1", "result/mean_angle": "mean angle of W to B^T (degrees)"}
    assert run_names(folder / "fc") == {".", *NAMES}
    for name in NAMES:
        settings, status = session(folder / "fc" / name)
        rule, _, seed = name.partition("/seed")
        assert (settings["configuration"], settings["alignment.rule"]) == (f"fc/{rule}", rule)
        assert settings["seed"] == int(seed)
        assert settings.get("alignment.self_") == (0.002 if rule == "symmetric" else None)
        is_diverged = name == "feedback/seed1"
        assert status == (api_pb2.STATUS_FAILURE if is_diverged else api_pb2.STATUS_SUCCESS)
        chance = {"result/top1": [(0, pytest.approx(0.1))]}  # The value of a diverged run, which has no angle.
        expected = chance if is_diverged else {"result/top1": [(0, 0.75)], "result/mean_angle": [(0, 79.0)]}
        assert points(folder / "fc" / name) == expected
    before = sorted(folder.rglob("events*"))
    compared(Written())
    assert sorted(folder.rglob("events*")) == before


@pytest.mark.exhaustive
@pytest.mark.parametrize("engine", ["in-process", "processes:2", "spark:1"])
def test_runs_of_every_engine_have_their_points_and_their_row(compared, engine):
    folder = compared(registry.build(engine))
    assert run_names(folder) == {"fc", *(f"fc/{name}" for name in NAMES)}
    for name in NAMES:
        found = points(folder / "fc" / name)
        assert found["result/top1"] == [(0, pytest.approx(found["metric/top1"][-1][1]))]
        angles = [own[-1][1] for tag, own in found.items() if tag.startswith("angle/")]
        assert found["result/mean_angle"] == [(0, pytest.approx(sum(angles) / len(angles)))]
        assert session(folder / "fc" / name)[1] == api_pb2.STATUS_SUCCESS
