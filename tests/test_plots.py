"""Pictures of runs. The tests read the values that the figures show."""

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from helpers import run_command

from neural_alignment import config as configuration
from neural_alignment import plots
from neural_alignment.errors import InputError, RunError
from neural_alignment.losses import ACCURACY, SMALLEST_LOSS
from neural_alignment.training.metrics import MetricsFile
from neural_alignment.training.run_directory import RunDirectory

LAYERS = ("conv1", "dense")


def row(epoch, seed=0, layers=LAYERS):
    """Returns the row of an evaluation; validation and training differ, and so do layers and seeds."""
    values = {"step": 10.0 * epoch, "epoch": epoch, "seconds": 1.0, "J": 2.0 / (1 + epoch), "top1": 0.1 * epoch}
    values |= {"train_J": 3.0 / (1 + epoch), "R": -1.0 * epoch, "train_top1": 0.05 * epoch}
    for place, layer in enumerate(layers):
        values[f"weight_angle/{layer}"] = 90.0 - 10 * epoch - 5 * place - seed
    for place, layer in enumerate(layers):
        values[f"norm_ratio/{layer}"] = 2.0**epoch / (1 + place)
    if not epoch:
        values |= dict.fromkeys(("J", "top1", "train_J", "train_top1", "R"), float("nan"))
    return values


def make_run(path, epochs=3, seed=0, layers=LAYERS, state="finished", config="quickstart"):
    """Writes the files of a run that `plots` reads."""
    directory = RunDirectory(path)
    directory.make()
    settings = configuration.load(config, [f"seed={seed}"])
    directory.write("config.yaml", configuration.dump(settings))
    metrics = MetricsFile(directory.file("metrics.csv"))
    for epoch in range(epochs):
        metrics.append(row(float(epoch), seed, layers))
    directory.write_status(state, checksums=directory.checksums(settings) if state == "finished" else None)
    return str(path)


def lines_of(axis):
    """Returns label -> (x, y) of the lines of a panel."""
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axis.lines}


def panels(figure):
    return {axis.get_title(): axis for axis in figure.axes if axis.get_title()}


def test_a_summary_shows_losses_metric_and_every_layer_over_time(tmp_path):
    figure = plots.summary(plots.Curve.read(make_run(tmp_path / "run")))
    found = panels(figure)
    assert list(found) == ["J", "accuracy", "R", "angle of W to B$^T$ (degrees)", "norm of B over norm of W"]
    epochs = [0, 1, 2]
    assert lines_of(found["J"])["validation"][0] == epochs
    np.testing.assert_allclose(lines_of(found["J"])["validation"][1][1:], [1.0, 2 / 3])
    np.testing.assert_allclose(lines_of(found["J"])["training"][1][1:], [1.5, 1.0])
    np.testing.assert_allclose(lines_of(found["accuracy"])["training"][1][1:], [0.05, 0.1])
    np.testing.assert_allclose(lines_of(found["R"])["training"][1][1:], [-1, -2])
    angles, ratios = (axis for axis in figure.axes if axis.images)
    np.testing.assert_allclose(angles.images[0].get_array(), [[90, 80, 70], [85, 75, 65]])
    assert angles.images[0].get_clim() == (0, 90)
    np.testing.assert_allclose(ratios.images[0].get_array(), [[1, 2, 4], [0.5, 1, 2]])
    low, high = ratios.images[0].get_clim()
    assert (low, high) == (0.25, 4)  # 1, which is equal norms, is in the middle.
    for axis in (angles, ratios):
        assert [label.get_text() for label in axis.get_yticklabels()] == [*LAYERS]
        assert [label.get_text() for label in axis.get_xticklabels()] == ["0", "1", "2"]


def test_a_summary_of_backpropagation_has_no_layers(tmp_path):
    figure = plots.summary(plots.Curve.read(make_run(tmp_path / "run", layers=())))
    assert list(panels(figure)) == ["J", "accuracy", "R"]
    assert not any(axis.images for axis in figure.axes)


def test_j_has_one_panel_where_it_judges_the_run(tmp_path):
    figure = plots.summary(plots.Curve.read(make_run(tmp_path / "run", config="wide_networks/add_task")))
    found = panels(figure)
    assert list(found) == ["J", "R", "angle of W to B$^T$ (degrees)", "norm of B over norm of W"]
    np.testing.assert_allclose(lines_of(found["J"])["training"][1][1:], [1.5, 1.0])
    found = panels(plots.compare([str(tmp_path / "run")]))
    assert [*found][:2] == ["J, validation", "J, training"]
    np.testing.assert_allclose(lines_of(found["J, training"])["run"][1], [1.5, 1.0])


def test_every_run_is_in_the_legend_under_its_own_name(tmp_path, monkeypatch):
    """matplotlib leaves out labels that begin with an underscore, and reads `$...$` as a formula."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("rule/seed0", "rule/seed1", "_old", "$x_$")):
        make_run(name, seed=seed)
    figure = plots.compare(["_old", "$x_$"])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["./_old", "$x_$"]
    assert plots.png(figure)
    assert plots.png(plots.summary(plots.Curve.read("$x_$")))
    monkeypatch.chdir(tmp_path / "rule")
    [text] = plots.compare(["seed0", "seed1"]).legends[0].get_texts()
    assert text.get_text() == "rule, 2 seeds"


def test_of_many_layers_some_are_named(tmp_path):
    names = [f"layer{number}" for number in range(100)]
    figure = plots.summary(plots.Curve.read(make_run(tmp_path / "run", layers=names)))
    angles, _ = (axis for axis in figure.axes if axis.images)
    labels = [label.get_text() for label in angles.get_yticklabels()]
    assert angles.images[0].get_array().shape == (100, 3)
    assert 20 <= len(labels) <= 30
    assert [names[int(place)] for place in angles.get_yticks()] == labels


def test_seeds_are_one_line_with_a_band_from_the_smallest_to_the_largest(tmp_path):
    for seed in (0, 1, 5):
        make_run(tmp_path / "rules" / "ours" / f"seed{seed}", seed=seed)
    make_run(tmp_path / "rules" / "other", seed=9)
    paths = plots._runs_at(str(tmp_path / "rules" / "ours"))
    assert paths == [str(tmp_path / "rules" / "ours" / f"seed{seed}") for seed in (0, 1, 5)]
    figure = plots.compare([*paths, str(tmp_path / "rules" / "other")])
    axis = panels(figure)["mean angle of W to B$^T$ (degrees)"]
    found = lines_of(axis)
    assert [*found] == ["ours, 3 seeds", "other"]
    np.testing.assert_allclose(found["ours, 3 seeds"][1], [85.5, 75.5, 65.5])
    np.testing.assert_allclose(found["other"][1], [78.5, 68.5, 58.5])
    [band] = axis.collections
    edges = band.get_paths()[0].vertices
    np.testing.assert_allclose([edges[:, 1].min(), edges[:, 1].max()], [62.5, 87.5])
    assert len({line.get_color() for line in axis.lines}) == len({line.get_linestyle() for line in axis.lines}) == 2


def test_a_seed_is_not_drawn_twice_in_one_line(tmp_path):
    first, copy = (make_run(tmp_path / "rule" / name, seed=7) for name in ("seed7", "seed8"))
    with pytest.raises(RunError, match=rf"^{copy}: has the same seed as {first}, 7; keep one run of each seed$"):
        plots.compare([first, copy])
    other = make_run(tmp_path / "other" / "seed7", seed=7)
    assert [text.get_text() for text in plots.compare([first, other]).legends[0].get_texts()] == ["rule", "other"]


def test_ten_runs_differ_in_colour_and_line_style(tmp_path):
    paths = [make_run(tmp_path / f"run{number}") for number in range(10)]
    axis = panels(plots.compare(paths))["R, which each rule scales differently"]
    assert len({(line.get_color(), str(line._dash_pattern)) for line in axis.lines}) == 10


def test_only_a_large_regulariser_has_a_logarithmic_axis(tmp_path, monkeypatch):
    paths = [make_run(tmp_path / f"run{number}") for number in range(2)]
    title = "R, which each rule scales differently"
    assert panels(plots.compare(paths))[title].get_yscale() == "linear"
    monkeypatch.setattr(plots, "_LARGE_R", 0.1)
    assert panels(plots.compare(paths))[title].get_yscale() == "symlog"


def test_a_run_that_is_training_is_drawn_up_to_its_last_evaluation(tmp_path):
    path = make_run(tmp_path / "run", state="running", epochs=2)
    assert len(plots.Curve.read(path).rows) == 2
    MetricsFile(f"{path}/metrics.csv").append(row(2.0))
    assert len(plots.Curve.read(path).rows) == 3


def test_names_have_no_common_folder():
    assert plots._short(["runs/a/x", "runs/a/y"]) == ["x", "y"]
    assert plots._short(["runs/a/x", "runs/b/x"]) == ["a/x", "b/x"]
    assert plots._short(["runs/a/x", "runs/a"]) == ["a/x", "a"]
    assert plots._short(["runs/a/"]) == ["a"]


@pytest.mark.parametrize("spread", range(1, 30))
def test_equal_norms_have_a_tick_whatever_the_largest_ratio(spread):
    figure = plots.summary(plots.Curve("run", [row(0.0) | {"norm_ratio/dense": 2.0**spread}], ACCURACY, seed=0))
    [bar] = [axis for axis in figure.axes if "1" in [label.get_text() for label in axis.get_yticklabels()]]
    ticks = bar.get_yticks()
    assert 1.0 in ticks
    assert 3 <= len(ticks) <= 9
    assert 2.0**-spread <= min(ticks) < 1.0 < max(ticks) <= 2.0**spread


def test_ratios_that_are_not_finite_leave_the_others_visible():
    rows = [row(0.0) | {"norm_ratio/dense": np.inf}, row(1.0) | {"norm_ratio/dense": np.nan}]
    figure = plots.summary(plots.Curve("run", rows, ACCURACY, seed=0))
    _, ratios = (axis for axis in figure.axes if axis.images)
    assert ratios.images[0].get_clim() == (0.5, 2)
    assert plots.png(figure)


def test_mistakes_are_one_line(tmp_path):
    run = make_run(tmp_path / "run")
    empty = make_run(tmp_path / "empty", state="running", epochs=0)
    with pytest.raises(RunError, match=r"empty: has no evaluation yet, so there is nothing to draw; try again later"):
        plots.write([empty])
    with pytest.raises(RunError, match=r"nowhere: is not a run directory"):
        plots.write([str(tmp_path / "nowhere")])
    with pytest.raises(InputError, match=r"^RUN must be different; (.*run) is the same run as \1$"):
        plots.write([run, run], "x.png")
    with pytest.raises(InputError, match=r"^RUN must be different; .*empty/\.\./run is the same run as .*run$"):
        plots.write([run, f"{empty}/../run"], "x.png")
    other = make_run(tmp_path / "other")
    with pytest.raises(InputError, match=r"^2 runs need a name for their picture; give --output FILE\.png$"):
        plots.write([run, other])
    assert not list(tmp_path.rglob("*.png"))


def test_runs_with_different_metrics_are_not_compared(monkeypatch):
    judged = {"a": ACCURACY, "b": SMALLEST_LOSS}
    monkeypatch.setattr(plots.Curve, "read", lambda path: plots.Curve(path, [row(1.0)], judged[path], seed=0))
    with pytest.raises(RunError, match=r"^b: is judged by J, that of a by accuracy; draw runs with one metric$"):
        plots.compare(["a", "b"])


def test_the_command_writes_a_picture(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for seed in (0, 1):
        make_run(Path("runs", "rule", f"seed{seed}"), seed=seed)
    assert run_command(monkeypatch, capsys, "plot", "runs/rule/seed0")[:2] == (
        0,
        "written: runs/rule/seed0/summary.png\n",
    )
    assert run_command(monkeypatch, capsys, "plot", "runs/rule", "-o", "new/rules.png")[:2] == (
        0,
        "written: new/rules.png\n",
    )
    for path in ("runs/rule/seed0/summary.png", "new/rules.png"):
        assert tf.io.decode_png(tf.io.read_file(path)).shape[-1] == 4
    code, _, error = run_command(monkeypatch, capsys, "plot", "runs/rule", "-o", "rules.jpg")
    assert code == 2
    assert error == "error: --output: must be the name of a picture, which ends with .png; found 'rules.jpg'\n"
