"""Event files of runs, read with TensorBoard's own reader: tags, layout, and interrupted runs."""

import math
import shutil

import pytest
import tensorflow as tf
from event_reader import charts, layouts, points, run_names
from helpers import exhaustive_unless
from prepared_run import PreparedRun

from neural_alignment import config as configuration
from neural_alignment.training import event_files, run, tensorboard
from neural_alignment.training.metrics import MetricsFile

PLAN = {
    "epochs": 2,
    "batch_size": 500,
    "data": {"source": "digits"},
    "model": {"name": "fc", "hidden": [4]},
    "alignment": {"rule": "symmetric", "self_": 2e-3, "decay": 2e-3},
    "optimization": {"forward": {"name": "momentum", "learning_rate": 0.02}},
    "evaluation": {"probe_examples": 0},
    "logging": {"scatter": False},
    "checkpoints": {"keep": 3},
}
STEPS = [0, 2, 4]


class KilledError(Exception):
    """Stands for the end of the process."""


def config(**logging):
    return configuration.parse(configuration.merge(PLAN, {"logging": logging}))


@pytest.fixture(scope="module", autouse=True)
def prepared():
    with PreparedRun(config()).in_use():
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of a finished run with histograms and images."""
    folder = tmp_path_factory.mktemp("runs")
    run.train(config(scatter=True, histograms=True), folder / "digits" / "symmetric")
    return folder


@pytest.fixture(scope="module")
def finished(folder):
    return folder / "digits" / "symmetric"


def expected(path):
    """Returns the points that the rows of `metrics.csv` have, in the number format of event files."""
    rows = MetricsFile(str(path / "metrics.csv")).rows()
    return {
        tensorboard.tag_of(column): [
            (int(row["step"]), pytest.approx(row[column], rel=1e-6)) for row in rows if not math.isnan(row[column])
        ]
        for column in rows[0]
        if column != "step" and not all(math.isnan(row[column]) for row in rows)
    }


def test_the_run_is_shown_by_its_name(folder):
    assert run_names(folder) == {"digits/symmetric"}


def test_every_value_of_every_row_is_a_point(finished):
    found = points(finished)
    assert found == expected(finished)
    assert [step for step, _ in found["metric/top1"]] == STEPS[1:]


def test_angles_begin_at_90_degrees_at_step_0(finished):
    for layer in ("dense1", "dense"):
        (step, angle), *later = points(finished)[f"angle/{layer}"]
        assert step == 0
        assert 60 < angle < 120
        assert later[-1][1] != angle


def test_angles_are_the_first_groups_and_times_the_last(finished):
    groups = list(dict.fromkeys(tag.partition("/")[0] for tag in sorted(points(finished))))
    assert groups[0] == "angle"
    assert groups[-1] == "run"
    assert {"run/epoch", "run/seconds"} <= points(finished).keys()
    assert not [tag for tag in points(finished) if "/" not in tag]


def test_histograms_and_images_of_each_layer_and_row(finished):
    names = ("dense", "dense1")
    assert {tag: [step for step, _ in found] for tag, found in points(finished, "images").items()} == {
        f"weights/{name}": STEPS for name in names
    }
    histograms = points(finished, "histograms")
    assert set(histograms) == {f"{side}_kernel/{name}" for side in ("forward", "backward") for name in names}
    assert all([step for step, _ in found] == STEPS for found in histograms.values())


def test_the_layout_has_all_layers_in_one_chart_and_all_splits_in_one(finished):
    assert charts(finished) == {
        "angle of W to B^T (degrees), all layers": {"angle/dense1", "angle/dense"},
        "norm of B over norm of W, all layers": {"norm_ratio/dense1", "norm_ratio/dense"},
        "J": {"loss/J", "loss/train_J"},
        "top1": {"metric/top1", "metric/train_top1"},
        "top5": {"metric/top5", "metric/train_top5"},
        "J and R in training": {"loss/train_J", "loss/R"},
    }
    assert [category.title for category in layouts(finished)[0].category] == [
        "alignment of W and B",
        "training and validation",
        "J and R",
    ]


def test_the_layout_has_the_test_split_and_no_empty_category():
    columns = ("epoch", "J", "top1", "test_J", "test_top1", "train_J", "train_top1", "R")
    content = tensorboard.layout_summary(columns).value[0].tensor.string_val[0]
    layout = tensorboard.layout_pb2.Layout.FromString(content)
    assert [category.title for category in layout.category] == ["training and validation", "J and R"]
    assert "metric/test_top1$" in layout.category[0].chart[1].multiline.tag


def test_metrics_of_another_loss_and_schedules_have_groups():
    assert tensorboard.tag_of("test_J") == "loss/test_J"
    assert tensorboard.tag_of("train_mean_error") == "metric/train_mean_error"
    assert tensorboard.tag_of("weight/0.amp") == "rule_weight/0.amp"
    assert tensorboard.tag_of("pseudogradient_angle/a/b") == "angle_pseudogradient/a/b"


def killed_at(monkeypatch, step, when):
    """Makes a run end at the event of a step: before it, after it, or in the middle of it."""
    original = tensorboard.EventFile.write

    def write(self, at, values):
        if at == step and when == "before":
            raise KilledError
        original(self, at, values)
        if at == step:
            if when == "halfway":
                with open(self._path, "rb+") as file:
                    file.truncate(file.seek(0, 2) - 9)
            raise KilledError

    monkeypatch.setattr(tensorboard.EventFile, "write", write)


OFTEN = [(0, "before"), (2, "after"), (2, "halfway"), (4, "before")]
KILLS = [(step, when) for step in STEPS for when in ("before", "after", "halfway")]


@pytest.mark.parametrize(("step", "when"), exhaustive_unless(KILLS, OFTEN))
def test_a_killed_and_resumed_run_has_every_point_once(tmp_path, monkeypatch, step, when):
    with monkeypatch.context() as patch:
        killed_at(patch, step, when)
        with pytest.raises(KilledError):
            run.train(config(), tmp_path)
    run.train(config(), tmp_path, resume=True)
    assert points(tmp_path) == expected(tmp_path)
    assert len(layouts(tmp_path)) == 1


def test_event_files_that_are_turned_on_later_have_the_earlier_rows_and_the_layout(tmp_path, monkeypatch):
    def stops_at(step):
        def append(self, row):
            if row["step"] == step:
                raise KilledError
            original(self, row)

        return append

    original = MetricsFile.append
    for step, logged in ((2, False), (4, True)):
        with monkeypatch.context() as patch:
            patch.setattr(MetricsFile, "append", stops_at(step))
            with pytest.raises(KilledError):
                run.train(config(tensorboard=logged, scatter=True, histograms=True), tmp_path, resume=True)
        assert bool(event_files.names_in(str(tmp_path))) == logged
    run.train(config(scatter=True, histograms=True), tmp_path, resume=True)
    assert points(tmp_path) == expected(tmp_path)
    assert len(layouts(tmp_path)) == 1
    for plugin in ("images", "histograms"):  # W and B of step 0 are not known any more.
        assert {tuple(step for step, _ in found) for found in points(tmp_path, plugin).values()} == {(2, 4)}


def test_an_event_after_the_last_state_is_removed_and_a_foreign_file_stays(finished, tmp_path):
    path = shutil.copytree(finished, tmp_path / "run")
    [own] = path.glob("events*")
    before = own.read_bytes()
    other = path / "events.out.tfevents.1.hparams-session-0"
    shutil.copy(own, other)
    assert event_files.cut(str(path), 2, str(tmp_path)) == {0, 2}
    assert before.startswith(own.read_bytes())
    assert (tmp_path / own.name).read_bytes() == other.read_bytes() == before
    other.unlink()
    assert {step for found in points(path).values() for step, _ in found} == {0, 2}
    assert event_files.cut(str(path), 1) == {0}
    assert {step for found in points(path).values() for step, _ in found} == {0}


@pytest.mark.parametrize("step", [0, 2**40 + 5])
def test_events_are_found_by_their_step(tmp_path, step):
    file = event_files.EventFile(str(tmp_path))
    for at in (step, step + 1):
        file.write(at, [event_files.scalar("a/b", 1.0)])
    file.close()
    assert event_files.cut(str(tmp_path), step) == {step}
    assert points(tmp_path) == {"a/b": [(step, 1.0)]}


def test_resuming_a_finished_run_writes_nothing(finished):
    before = [path.name for path in finished.glob("events*")]
    run.train(config(scatter=True, histograms=True), finished, resume=True)
    assert [path.name for path in finished.glob("events*")] == before


def test_going_back_replaces_the_later_points(finished, tmp_path):
    path = shutil.copytree(finished, tmp_path / "run")
    before = points(path)
    run.train(config(), path, resume_from=2)
    after = points(path)
    assert after == expected(path)
    assert [step for step, _ in after["loss/J"]] == [step for step, _ in before["loss/J"]]
    assert len(layouts(path)) == 1


def test_force_removes_the_event_files_and_no_other_file(tmp_path):
    run.train(config(), tmp_path)
    (tmp_path / "events.txt").write_text("mine")
    first = {path.name for path in tmp_path.glob("events.out*")}
    run.train(config(), tmp_path, force=True)
    assert not first & {path.name for path in tmp_path.iterdir()}
    assert (tmp_path / "events.txt").read_text() == "mine"
    assert points(tmp_path) == expected(tmp_path)


def test_without_tensorboard_there_are_no_event_files(tmp_path):
    run.train(config(tensorboard=False), tmp_path)
    assert not list(tmp_path.glob("events*"))


def test_a_row_is_one_event(finished):
    """Writing a value as an operation of TensorFlow would take most of the time of an evaluation of a deep network."""
    [file] = finished.glob("events*")
    events = list(tf.compat.v1.train.summary_iterator(str(file)))
    assert [event.step for event in events if event.HasField("summary")] == STEPS
