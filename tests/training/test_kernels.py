"""The kernel files of a run, and the measures of kernels without a pass through the network."""

import keras
import numpy as np
import pytest
from prepared_run import PreparedRun

from neural_alignment import config as configuration
from neural_alignment.errors import ConfigError
from neural_alignment.training import run, stepping
from neural_alignment.training.metrics import MetricsFile
from neural_alignment.training.stopping import Interrupted

BASE = {
    "epochs": 2,
    "batch_size": 256,
    "data": {"source": "digits"},
    "model": {"name": "fc", "hidden": [6, 5]},
    "alignment": {"rule": "symmetric", "self_": 2e-3, "decay": 2e-3},
    "optimization": {
        "forward": {"name": "momentum", "learning_rate": 0.02},
        "backward": {"name": "adam", "learning_rate": 1e-2},
    },
    "evaluation": {"probe_examples": 0},
    "logging": {"tensorboard": False, "kernels": ["dense1", "den*2"]},
}
STEPS = 1437 // 256


def config(**changes):
    return configuration.parse(configuration.merge(BASE, changes))


@pytest.fixture(scope="module")
def once():
    """The data and the model of the run."""
    return PreparedRun(config())


@pytest.fixture(scope="module")
def finished(once, tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "prepare", once.prepare)
        run.train(config(), path)
    return path


def kept(path):
    """Returns step -> array name -> array."""
    files = {int(file.stem): np.load(file, allow_pickle=False) for file in (path / "kernels").iterdir()}
    return {step: dict(file) for step, file in sorted(files.items())}


def names(path):
    model = keras.models.load_model(path / "model.keras")
    return {layer.name: layer for layer in model.layers if layer.weights}


def test_kernels_are_kept_at_every_evaluation_in_the_layout_of_w(finished):
    arrays = kept(finished)
    assert list(arrays) == [0, STEPS, 2 * STEPS]
    layers = names(finished)
    wanted = [name for name in layers if name in ("dense1", "dense2")]
    assert set(arrays[0]) == {f"{name}/{which}" for name in wanted for which in ("forward", "backward")}
    last = arrays[2 * STEPS]
    for name in wanted:
        forward, backward = (np.asarray(w) for w in (layers[name].kernel, layers[name].backward_kernel))
        np.testing.assert_array_equal(last[f"{name}/forward"], forward)
        np.testing.assert_array_equal(last[f"{name}/backward"], backward.T)
        assert last[f"{name}/backward"].shape == forward.shape != backward.shape
        assert not np.array_equal(arrays[0][f"{name}/forward"], forward)


def test_the_angles_of_the_rows_are_those_of_the_kernels(finished):
    rows = MetricsFile(str(finished / "metrics.csv")).rows()
    for row in rows:
        arrays = kept(finished)[int(row["step"])]
        w, b = (arrays[f"dense1/{which}"].ravel().astype(float) for which in ("forward", "backward"))
        angle = np.degrees(np.arccos(w @ b / np.linalg.norm(w) / np.linalg.norm(b)))
        assert row["weight_angle/dense1"] == pytest.approx(angle, abs=1e-3)
        assert row["norm_ratio/dense1"] == pytest.approx(np.linalg.norm(b) / np.linalg.norm(w), rel=1e-5)


def test_without_probe_examples_only_the_kernels_are_measured(finished, tmp_path):
    run.train(config(evaluation={"probe_examples": 16}), tmp_path / "probed")
    probed, plain = (MetricsFile(f"{path}/metrics.csv").rows() for path in (tmp_path / "probed", finished))
    measures = {key.partition("/")[0] for key in plain[0] if "/" in key}
    assert measures == {"weight_angle", "norm_ratio"}
    assert {key.partition("/")[0] for key in probed[0] if "/" in key} > measures
    for row, other in zip(plain, probed, strict=True):
        shared = {key: value for key, value in row.items() if "/" in key}
        assert shared == pytest.approx({key: other[key] for key in shared}, rel=1e-5)
        assert row["top1"] == other["top1"] or np.isnan(row["top1"])


def test_a_run_that_was_stopped_keeps_the_same_kernels(once, finished, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "prepare", once.prepare)
    original = stepping.Stepper.__call__
    made = []

    def interrupted(self, limit):
        made.append(original(self, limit))
        if len(made) == STEPS + 2:
            raise Interrupted
        return made[-1]

    with monkeypatch.context() as patch:
        patch.setattr(stepping.Stepper, "__call__", interrupted)
        with pytest.raises(run.Stopped):
            run.train(config(), tmp_path / "run")
    assert list(kept(tmp_path / "run")) == [0, STEPS]
    run.train(config(), tmp_path / "run", resume=True)
    whole, resumed = kept(finished), kept(tmp_path / "run")
    assert list(resumed) == list(whole)
    for step, arrays in whole.items():
        for name, array in arrays.items():
            np.testing.assert_array_equal(resumed[step][name], array)


def test_a_pattern_for_no_layer_is_one_line_before_anything_is_made(tmp_path):
    with pytest.raises(ConfigError) as error:
        run.train(config(logging={"kernels": ["conv*"]}), tmp_path / "run")
    line = str(error.value)
    assert "logging.kernels: 'conv*' matches no aligned layer; the layers are: dense1" in line
    assert "\n" not in line
    assert not (tmp_path / "run" / "status.json").exists()


def test_backpropagation_has_no_kernels_to_keep(tmp_path):
    plain = {**BASE, "alignment": None, "optimization": {"forward": BASE["optimization"]["forward"]}, "epochs": 1}
    run.train(configuration.parse(plain), tmp_path / "run")
    assert not (tmp_path / "run" / "kernels").exists()
