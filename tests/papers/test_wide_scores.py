"""Tables 3 to 5, Figures 1 and 8: the scores of a small network against a loop of NumPy traces, and the files."""

import csv
import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import ConvReference, for_each, run_command
from lab import CONFIGS, computed_once, grey

from neural_alignment import config as configuration
from neural_alignment.errors import InputError
from neural_alignment.jobs.pieces import Pieces
from neural_alignment.papers.registry import Source
from neural_alignment.papers.wide_networks import figures, printed, rows, runs, tables
from neural_alignment.papers.wide_networks.compute import scoring
from neural_alignment.training import setup

DIGITS = (
    "data={source: digits}",
    "evaluation.test_split=null",
    "batch_size=80",
    "model.width=2",
    "model.design=kmnist",
    "optimization.forward.learning_rate=5.0",
)
"""17 steps in an epoch, 8 x 8 pixels, three convolutions."""


SEEDS = runs.SCORED["kmnist"].seeds


def nothing(part):
    assert 0 <= part <= 1


def loaded(*overrides):
    return configuration.load(f"{CONFIGS}/wide_networks/kmnist/normal.yaml", (*DIGITS, *overrides))


# The computation.


def trained_by_hand(config, epochs):
    """Returns kernels W(0), W(t) and W*(t) by layer, of the network and a copy that the network's errors move."""
    dataset = setup.load_data(config)

    def network():
        model = setup.build_model(config, dataset.classes, dataset.input_shape, dataset.steps_per_epoch)
        setup.compile_model(model, config, dataset.classes, dataset.steps_per_epoch)
        return model

    live, still = network(), network()
    names = [layer.name for layer in still.layers if isinstance(layer, keras.layers.Conv2D)]
    kernels = [still.get_layer(name).kernel.value for name in names]
    initial = [kernel.numpy() for kernel in kernels]
    references = [kernel.numpy() for kernel in kernels]
    rate = config.optimization.forward.learning_rate
    for images, labels in dataset.train().take(epochs * dataset.steps_per_epoch).as_numpy_iterator():
        targets = np.eye(dataset.classes)[labels] - config.loss.shift
        error = 2 * (live(images).numpy() - targets) / targets.size
        with tf.GradientTape() as tape:
            tape.watch(kernels)
            outputs = still(images)
        gradients = tape.gradient(outputs, kernels, output_gradients=tf.cast(error, outputs.dtype))
        references = [each - rate * gradient.numpy() for each, gradient in zip(references, gradients, strict=True)]
        live.train_on_batch(images, labels)
    return initial, [live.get_layer(name).kernel.numpy() for name in names], references


def exact(change, reference, strides, size):
    """Equation 10 with its traces, of the matrices of the whole convolutions."""
    linear = ConvReference(strides, "SAME")
    shape = (*size, change.shape[2])
    basis = np.eye(np.prod(shape)).reshape(-1, *shape)
    ours, theirs = (linear.project(basis, kernel).reshape(len(basis), -1) for kernel in (change, reference))
    ours, theirs = ours @ ours.T, theirs @ theirs.T
    return np.trace(ours @ theirs) / np.sqrt(np.trace(ours @ ours) * np.trace(theirs @ theirs))


def test_scores_are_those_of_the_network_beside_its_w_star():
    config = loaded()
    found = scoring.scored(nothing, config, (1, 2), 1000)
    assert set(found) == {"epoch", "train_loss", *scoring.NAMES}
    assert found["epoch"].tolist() == [1, 2]
    assert found["score"].shape == (2, 3)
    assert found["train_loss"][1] < found["train_loss"][0]
    initial, weights, references = trained_by_hand(config, 2)
    sizes, strides = ((8, 8), (8, 8), (4, 4)), ((1, 1), (2, 2), (2, 2))
    for layer in range(3):
        changes = weights[layer] - initial[layer], references[layer] - initial[layer]
        due = exact(*changes, strides[layer], sizes[layer])
        assert abs(found["score"][1, layer] - due) < 4 * found["score_sem"][1, layer] < 0.1
        # The baseline permutes the weights themselves, not their change.
        order = np.random.default_rng(99).permutation(weights[layer].size)
        permuted = weights[layer].ravel()[order].reshape(weights[layer].shape) - initial[layer]
        error = found["permuted_score_sem"][1, layer]
        baseline = exact(permuted, changes[1], strides[layer], sizes[layer])
        assert abs(found["permuted_score"][1, layer] - baseline) < 4 * error < 0.1
        assert baseline < due
        shuffled = changes[0].ravel()[order].reshape(changes[0].shape)
        assert abs(exact(shuffled, changes[1], strides[layer], sizes[layer]) - baseline) > 4 * error
    weights_alone = exact(weights[1], references[1], (2, 2), (8, 8))
    assert abs(found["score"][1, 1] - weights_alone) > 4 * found["score_sem"][1, 1]


@pytest.mark.exhaustive
def test_max_steps_ends_the_training_and_its_step_takes_the_place_of_later_moments():
    """17 steps are an epoch. An epoch of one step in which the run ends has the scores of this step."""
    parts = []
    found = scoring.scored(parts.append, loaded("max_steps=18"), (1, 2, 3), 4)
    np.testing.assert_allclose(found["epoch"], [1, 18 / 17])
    assert parts == pytest.approx([step / 18 for step in range(1, 19)])
    whole = scoring.scored(nothing, loaded(), (1,), 4)
    for name in ("score", "train_loss"):
        np.testing.assert_array_equal(found[name][0], whole[name][0])
        assert not np.allclose(found[name][1], whole[name][0], rtol=1e-4)
    exact = scoring.scored(nothing, loaded("max_steps=17"), (1, 2), 4)
    np.testing.assert_array_equal(exact["score"], whole["score"])


@pytest.mark.exhaustive
def test_scores_fall_over_training_and_do_not_depend_on_how_often_they_are_taken():
    both, last = (scoring.scored(nothing, loaded(), moments, 20) for moments in ((1, 3), (3,)))
    np.testing.assert_array_equal(both["score"][-1:], last["score"])
    assert both["score"][0].mean() > both["score"][1].mean()


# The tables and figures.


def small(cell, compute):
    """Returns a cell on the digits, with few samples; the width remains part of the name of the piece."""
    [piece] = cell.pieces
    starts = tuple(dataclasses.replace(run, overrides=(*run.overrides, *DIGITS)) for run in piece.starts)
    arguments = {"moments": (1, 2), "probes": 4}
    return Pieces(cell.labels, (dataclasses.replace(piece, compute=compute, starts=starts, arguments=arguments),))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Two widths of KMNIST with all seeds, one of CIFAR-10 with one of them; all others are missing.

    One is computed, the others have similar scores.
    """
    place, scored = str(tmp_path_factory.mktemp("scores")), computed_once(scoring.scored)
    cells = [small(cell, scored) for name in runs.SHOWN_SCORES for cell in runs.scores(name)]
    for cell in cells:
        name, width, seed = cell.labels.values()
        if width in (8, 64) and (name == "kmnist" or (width, seed) == (8, 99)):
            cell.pieces[0].compute_and_keep(place, CONFIGS)
    return Source("lab", place, CONFIGS, place, cells)


def test_a_table_has_a_row_for_each_layer_width_and_seed_beside_the_printed_score(source):
    product = tables.score_table("kmnist")(source)
    assert ",".join(product.columns) == "layer,width,seed,score,score_sem,permuted_score,paper_score"
    assert all(tuple(row) == rows.SCORE_COLUMNS for row in product.rows)
    assert [(row["layer"], row["width"], row["seed"]) for row in product.rows] == [
        (layer, width, seed) for layer in (1, 2, 3) for width in (8, 64) for seed in SEEDS
    ]
    for row in product.rows:
        assert row["paper_score"] == printed.TABLE_4[row["layer"], row["width"]]
    [arrays] = next(
        [result.arrays for result in results]
        for cell, results in source.read()
        if cell.labels == {"setting": "kmnist", "width": 64, "seed": 100}
    )
    row = next(row for row in product.rows if (row["layer"], row["width"], row["seed"]) == (2, 64, 100))
    assert row["score"] == arrays["score"][-1, 1] != arrays["score"][0, 1]
    assert (row["score_sem"], row["permuted_score"]) == (arrays["score_sem"][-1, 1], arrays["permuted_score"][-1, 1])
    assert "| layer 2 | " in product.text
    assert "(0.299)" in product.text
    assert "nan" not in product.text


def test_the_figures_are_grey_and_hold_all_moments(source):
    first, last = figures.figure_1(source), figures.figure_8(source)
    for product, over in ((first, "layer"), (last, "epoch")):
        assert grey(product.figure)
        assert set(product.columns) == {key for row in product.rows for key in row}
        assert {axis.get_xlabel() for axis in product.figure.axes} == {over}
        assert product.figure.axes[0].get_ylabel() == "alignment score"
    assert {row["epoch"] for row in first.rows} == {2}
    assert {row["epoch"] for row in last.rows} == {1, 2}
    assert len(last.rows) == 2 * len(first.rows) == 2 * 3 * (2 * len(SEEDS) + 1)


def test_each_seed_of_figure_1_is_a_dot_beside_the_others_and_within_the_axis(source):
    product = figures.figure_1(source)
    axis = product.figure.axes[1]  # KMNIST, here.
    own = [row for row in product.rows if row["setting"] == "kmnist"]
    dots = [line for line in axis.lines if line.get_marker() == "."]
    drawn = sorted(value for line in dots for value in line.get_ydata())
    assert drawn == pytest.approx(sorted(row["score"] for row in own))
    assert axis.get_ylim()[1] > max(drawn)
    assert len({round(x, 6) for line in dots for x in line.get_xdata()}) == 3 * 2  # Layers and widths.
    assert not axis.collections  # No bars, which would be deviations of two values.


def test_the_command_scores_a_network_of_any_size():
    """The command `score` writes these rows; those of an epoch are the same with more epochs before or after."""
    found = scoring.report(loaded("alignment=null"), [1], 4, nothing)
    assert [(row["epoch"], row["layer"], row["width"], row["seed"]) for row in found.rows] == [
        (1, layer, 2, 99) for layer in (1, 2, 3)
    ]
    assert found.columns == tuple(found.rows[0])
    assert found.text.splitlines()[-1].startswith("| 1 | 0.")
    with pytest.raises(InputError, match="must be trained by plain gradient descent"):
        scoring.report(loaded("optimization.forward={name: adam, learning_rate: 0.1}"), [1], 4, nothing)
    with pytest.raises(InputError, match="must be a network with a width, such as wide_cnn; found fc"):
        scoring.report(loaded("model={name: fc, hidden: [5]}"), [1], 4, nothing)


def test_nothing_is_made_of_nothing(source):
    empty = dataclasses.replace(source, folder=f"{source.folder}/none")
    assert tables.score_table("cifar10")(empty).rows == []
    assert "No network yet." in tables.score_table("cifar10")(empty).text
    assert figures.figure_1(empty).rows == []


@pytest.mark.parametrize("name", runs.SCORED)
def test_the_settings_are_those_of_the_paper_but_for_their_size(name):
    [configs] = {tuple(cell.pieces[0].starts) for cell in runs.scores(name) if cell.labels["seed"] == 99
                 and cell.labels["width"] == 16}  # fmt: skip
    config = configs[0].load(CONFIGS)
    assert config.model.width == 16
    assert config.model.design == ("kmnist" if name == "kmnist" else "cifar")
    assert config.model.activation == ("tanh" if name == "cifar10_tanh" else "relu")
    assert config.optimization.forward.learning_rate == (2.0 if name == "cifar10_tanh" else 5.0)
    assert (config.seed, config.batch_size, config.loss.shift) == (99, 100, 0.1)
    layers = 3 if name == "kmnist" else 7
    assert set(runs.SCORED[name].paper) == {(n, m) for n in range(1, layers + 1) for m in printed.WIDTHS}


# The command.


CONFIG = f"{CONFIGS}/wide_networks/kmnist/normal.yaml"


def command(*arguments, network=DIGITS):
    overrides = [word for each in network for word in ("--set", each)]
    return ("score", CONFIG, *overrides, "--probes", "10", *arguments)


def test_the_command_writes_the_scores_of_each_convolution_at_the_epochs_that_are_named(tmp_path, monkeypatch, capsys):
    code, output, error = run_command(
        monkeypatch, capsys, *command("--epochs", "2,1", "--output", str(tmp_path / "new" / "scores"))
    )
    assert code == 0, error
    assert f"written: {tmp_path}/new/scores.csv, {tmp_path}/new/scores.md" in output
    found = list(csv.DictReader((tmp_path / "new" / "scores.csv").read_text().splitlines()))
    assert [(row["epoch"], row["layer"]) for row in found] == [(epoch, layer) for epoch in "12" for layer in "123"]
    arrays = scoring.scored(nothing, loaded(), (1, 2), 10)
    np.testing.assert_allclose([float(row["score"]) for row in found], arrays["score"].ravel(), rtol=1e-6)
    means = [f"| {epoch} | {row.mean():.3f} |" for epoch, row in zip((1, 2), arrays["score"], strict=True)]
    assert all(line in output for line in means)


@pytest.mark.exhaustive
def test_a_quick_test_ends_at_its_max_steps_and_never_replaces_scores(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    small = command("--set", "max_steps=2")
    found = {place: tmp_path / "runs" / "scores" / place for place in ("wide_networks", "smoke/wide_networks")}
    for place, option in (("wide_networks", ()), ("smoke/wide_networks", ("--smoke",))):
        code, _, error = run_command(monkeypatch, capsys, *small, *option)
        assert code == 0, error
        before = (found[place] / "kmnist" / "normal.csv").read_text()
        assert {row["epoch"] for row in csv.DictReader(before.splitlines())} == {f"{2 / 17:.7g}"}
        with monkeypatch.context() as patch:
            patch.setattr(scoring, "report", None)  # The check comes before the training.
            code, _, error = run_command(monkeypatch, capsys, *small, *option, "--set", "model.width=3")
        assert (code, len(error.splitlines())) == (2, 1)
        assert error.startswith(f"error: runs/scores/{place}/kmnist/normal.csv: exists; name other files with --output")
        assert (found[place] / "kmnist" / "normal.csv").read_text() == before


TRANSFORMER = "{name: vision_transformer, patch: 4, width: 8, depth: 1, heads: 2"

MISTAKES = {
    "no epoch": (command("--epochs", "0"), "--epochs must be at least 1; found 0"),
    "no number": (command("--epochs", "first"), "--epochs"),
    "no width": (command("--set", "model={name: fc, hidden: [5]}", network=DIGITS[:3]), "model.name"),
    "no convolution": (
        command("--set", f"model={TRANSFORMER}}}", network=DIGITS[:3]),
        "model.name: must be a network with convolutions, such as wide_cnn; found 'vision_transformer'",
    ),
    "dropout": (
        command("--set", f"model={TRANSFORMER}, dropout: 0.1}}", network=DIGITS[:3]),
        "model: is frozen at initialisation and must have no layer that draws random numbers; found Dropout 'dropout'",
    ),
    "a rule": (
        command("--set", "alignment={rule: align_zero}"),
        "alignment: must be null, because W* is the",
    ),
    "weights of a run": (
        command("--set", "init_from=runs/x"),
        "init_from: has no effect on scores, which",
    ),
    "no gradient descent": (command("--set", "optimization.forward={name: adam, learning_rate: 0.01}"), "found 'Adam'"),
    "no folder": (command("--output", "/proc/none/scores"), "/proc/none"),
}


@pytest.mark.parametrize(
    ("rate", "code", "message"),
    [
        ("0", 2, "error: layer conv1: its weights have not changed, so it has no score; train it with a higher rate"),
        ("1.0e+10", 3, "diverged: the weights are too large for scores at step 2; try this: lower the learning rate"),
        ("1.0e+30", 3, "diverged: J"),
    ],
)
def test_a_network_without_scores_writes_no_table(tmp_path, monkeypatch, capsys, rate, code, message):
    small = ("--set", "max_steps=2", "--set", f"optimization.forward.learning_rate={rate}")
    found, _, error = run_command(monkeypatch, capsys, *command(*small, "--output", str(tmp_path / "scores")))
    assert found == code
    assert error.strip().splitlines()[-1].startswith(message)
    assert not list(tmp_path.iterdir())


@for_each("what", MISTAKES)
def test_a_mistake_in_the_command_is_one_line_before_training(monkeypatch, capsys, what):
    arguments, expected = MISTAKES[what]
    monkeypatch.setattr(scoring.Trainer, "train", None)
    code, _, error = run_command(monkeypatch, capsys, *arguments)
    assert (code, len(error.strip().splitlines())) == (2, 1), error
    assert expected in error
