"""Figure 2 and Proposition 2: the networks against NumPy, the fit against exact powers, and the files."""

import collections
import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from helpers import distance
from lab import CONFIGS, computed_once, grey
from sklearn.datasets import load_digits

from neural_alignment.jobs.pieces import Pieces
from neural_alignment.papers.figures import grid
from neural_alignment.papers.registry import Source
from neural_alignment.papers.wide_networks import figures, runs
from neural_alignment.papers.wide_networks import rows as tidy
from neural_alignment.papers.wide_networks.compute import limits, updates
from neural_alignment.reporting import Spread

SIZES = {"hidden": 3, "activation": "tanh", "examples": 20, "rate": 1.0, "moments": (1, 6), "side": 2}
WIDTH = 5
LAYERS = ("dense1", "dense2", "dense3", "dense")


def nothing(part):
    assert 0 <= part <= 1


# The networks, against NumPy.


def forward(weights, biases, x):
    """Returns activities, x first, and potentials."""
    activities, potentials = [x], []
    for number, (weight, bias) in enumerate(zip(weights, biases, strict=True), start=1):
        potentials.append(activities[-1] @ weight / np.sqrt(len(weight)) + bias)
        activities.append(np.tanh(potentials[-1]) if number < len(weights) else potentials[-1])
    return activities, potentials


def trained_by_hand(rule, weights, x, targets, steps, miss=None):
    """Equations 14 to 16; the gate of the last hidden layer is live in Align-ada, as in the published code."""
    weights, biases = [w.copy() for w in weights], [np.zeros(w.shape[1]) for w in weights]
    start = [w.copy() for w in weights], [b.copy() for b in biases]
    for _ in range(steps):
        live, frozen = forward(weights, biases, x), forward(*start, x)
        error = 2 * (live[0][-1] - targets) / targets.size
        carried, passed = (weights, live) if rule == "normal" else (start[0], frozen)
        before = frozen[0] if rule == "align_zero" else live[0]
        errors = [error]
        for layer in (3, 2, 1):
            gate = 1 - np.tanh(passed[1][layer - 1]) ** 2
            back = errors[0] @ carried[layer].T / np.sqrt(len(carried[layer]))
            if layer == 3 and rule == "align_ada" and miss != "last gate frozen":
                own = back * (1 - np.tanh(live[1][2]) ** 2)
                below = back * gate
            else:
                own = below = back * gate
            errors.insert(0, below)
            if layer == 3:
                last = own
        told = [*errors[:2], last, error]
        for layer, each in enumerate(told):
            weights[layer] -= before[layer].T @ each / np.sqrt(len(weights[layer]))
            biases[layer] -= each.sum(axis=0)
    return weights, biases


def drawn():
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(99).permutation(len(images))
    return images[order[:20]] / 16, np.eye(10)[labels[order[:20]]] - 0.1, images[order[20:40]] / 16


@pytest.fixture(scope="module")
def parted():
    return updates.parted(nothing, width=WIDTH, seed=99, **SIZES)


@pytest.fixture(scope="module")
def initial():
    models = [updates.build(rule, updates.Experiment(width=WIDTH, seed=99, **SIZES)) for rule in updates.COMPARED_RULES]
    kernels = [[model.get_layer(name).kernel.numpy() for name in LAYERS] for model in models]
    for other in kernels[1:]:
        for mine, theirs in zip(kernels[0], other, strict=True):
            np.testing.assert_array_equal(mine, theirs)
    assert kernels[0][0].dtype == np.float64
    return kernels[0]


def norm(difference):
    return np.sqrt(np.mean([row @ row for row in difference]))


def test_distances_and_updates_are_those_of_numpy(parted, initial):
    x, targets, seen = drawn()
    found = {rule: trained_by_hand(rule, initial, x, targets, 6) for rule in updates.COMPARED_RULES}
    outputs = {rule: forward(*each, seen)[0][-1] for rule, each in found.items()}
    start = forward(initial, [np.zeros(w.shape[1]) for w in initial], seen)[0][-1]
    assert parted["movement"][1] == pytest.approx(norm(outputs["normal"] - start), rel=1e-9)
    for rule in updates.COMPARED_RULES:
        change = found[rule][0][1] - initial[1]
        np.testing.assert_allclose(parted[f"{rule}_update"], change[:2, :2], rtol=1e-9, atol=1e-12)
    for rule in updates.ALIGNED:
        assert parted[f"{rule}_distance"][1] == pytest.approx(norm(outputs[rule] - outputs["normal"]), rel=1e-9)
        for layer in range(4):
            ours, theirs = (found[name][0][layer] - initial[layer] for name in (rule, "normal"))
            cosine = np.sum(ours * theirs) / np.sqrt(np.sum(ours**2) * np.sum(theirs**2))
            assert parted[f"{rule}_cosine"][1, layer] == pytest.approx(cosine, abs=1e-10)
    frozen = trained_by_hand("align_ada", initial, x, targets, 6, "last gate frozen")
    wrong = norm(forward(*frozen, seen)[0][-1] - outputs["normal"])
    assert abs(wrong / parted["align_ada_distance"][1] - 1) > 1e-4


def test_after_one_step_all_rules_are_one(parted):
    for rule in updates.ALIGNED:
        assert parted[f"{rule}_distance"][0] < 1e-12 < 1e-3 < parted[f"{rule}_distance"][1]
        np.testing.assert_allclose(parted[f"{rule}_cosine"][0], 1.0, rtol=1e-12)
    assert parted["movement"][0] > 0.01
    assert distance(parted["align_ada_update"], parted["align_zero_update"]) > 1e-4


# The fit.


def rows(power, noise=0.0):
    draws = np.random.default_rng(0)
    return [
        {"width": width, "seed": seed, "distance": 3 * width**power * np.exp(noise * draws.normal())}
        for width in runs.UPDATE_WIDTHS
        for seed in range(40)
    ]


def test_the_exponent_of_an_exact_power_is_found():
    slopes, factor = tidy.exponent(rows(-0.5))
    assert (slopes.mean, factor) == (pytest.approx(-0.5), pytest.approx(3))
    assert slopes.error < 1e-12
    # Networks narrower than the fit do not count.
    bent = [{**row, "distance": 1.0} if row["width"] < tidy.FITTED else row for row in rows(-0.5)]
    assert tidy.exponent(bent)[0].mean == pytest.approx(-0.5)


def test_the_error_of_the_exponent_is_that_of_least_squares():
    slopes, _ = tidy.exponent(rows(-0.5, 0.3))
    xs = np.log([width for width in runs.UPDATE_WIDTHS if width >= tidy.FITTED])
    expected = 0.3 / np.sqrt(((xs - xs.mean()) ** 2).sum()) / np.sqrt(40)
    assert slopes.error == pytest.approx(expected, rel=0.3)
    assert abs(slopes.mean + 0.5) < 4 * expected


def test_the_picture_of_a_fit_does_not_depend_on_the_rounding_of_a_processor(monkeypatch):
    own = [{**row, "rule": "align_ada"} for row in rows(-0.5, 0.3) if row["seed"] < 3]
    fit = tidy.exponent

    def curve(error):
        slopes, factor = fit(own)
        rounded = Spread([slope * (1 + error) for slope in slopes.values])
        monkeypatch.setattr(tidy, "exponent", lambda _: (rounded, factor * (1 - error)))
        [axis] = grid([[figures._distance_panel(own, "", runs.UPDATE_WIDTHS)]], (3, 3)).axes
        return axis.lines[-1].get_ydata()

    assert (curve(0.0) == curve(1e-13)).all()
    assert (curve(0.0) != curve(1e-3)).all()


# The figures.


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Networks of width 4 to 16 in place of the widths of the figure; of ReLU none.

    One of each width is computed, the others have similar updates.
    """
    place = str(tmp_path_factory.mktemp("proposition"))
    cells, computations = [], collections.defaultdict(lambda: computed_once(updates.parted))
    for cell in runs.updates():
        [piece] = cell.pieces
        sizes = {"examples": 20, "moments": (1, 6), "side": 3, "rate": 1.0, "width": cell.labels["width"] // 64 + 4}
        compute = computations[cell.labels["width"]]
        piece = dataclasses.replace(piece, compute=compute, arguments={**piece.arguments, **sizes})
        cells.append(Pieces(cell.labels, (piece,)))
        if cell.labels["activation"] == "tanh" and cell.labels["width"] in (8, 256, 1024) and cell.labels["seed"] < 101:
            piece.compute_and_keep(place, CONFIGS)
    return Source("lab", place, CONFIGS, place, cells)


@pytest.mark.exhaustive
def test_proposition_2_has_a_row_for_each_network_rule_and_moment(source):
    product = figures.proposition_2(source)
    assert all(tuple(row) == tidy.DISTANCE_COLUMNS == product.columns for row in product.rows)
    assert len(product.rows) == 3 * 2 * 2 * 2
    assert {row["distance"] > 1e-6 for row in product.rows if row["step"] == 6} == {True}
    assert grey(product.figure)
    assert all(axis.get_xlabel() for axis in product.figure.axes if axis.has_data())
    assert any(axis.has_data() for axis in product.figure.axes)
    assert "| tanh | Align-zero | 2 | " in product.text
    assert "nan" not in product.text
    # Only widths with data have a tick.
    labels = [text.get_text() for text in product.figure.axes[0].get_xticklabels()]
    assert labels == ["8", "256", "1024"]
    assert "fits from 32 units on" in product.figure.get_supxlabel()


def test_figure_2_shows_the_updates_of_both_widths(source):
    shown = [cell for cell in source.cells if cell.labels["activation"] == "tanh" and cell.labels["width"] in (8, 1024)]
    product = figures.figure_2(dataclasses.replace(source, cells=shown))
    assert all(tuple(row) == figures.UPDATE_COLUMNS for row in product.rows)
    assert len(product.rows) == 2 * 3 * 9
    assert {row["seed"] for row in product.rows} == {99}
    assert grey(product.figure)
    assert "| x1024 | 0." in product.text


def test_nothing_is_made_of_nothing(source):
    empty = dataclasses.replace(source, folder=f"{source.folder}/none")
    assert figures.proposition_2(empty).rows == figures.figure_2(empty).rows == []


# Proposition 1, Lemma 1 and equation 57.


def network(seed):
    """Returns a model with weights of a seed, as `limits.TanhNetwork` and as a Keras model."""
    model = updates.build("normal", updates.Experiment(width=WIDTH, seed=99, **SIZES))
    generator = np.random.default_rng(seed)
    model.set_weights([generator.normal(size=weights.shape) for weights in model.get_weights()])
    return limits.TanhNetwork.of(model), model


def gradients(model, x):
    """Returns the gradients of the outputs by all weights `(examples, classes, weights)`."""
    with tf.GradientTape() as tape:
        outputs = model(x)
    found = tape.jacobian(outputs, model.trainable_variables)
    return np.concatenate([np.reshape(each, (*outputs.shape, -1)) for each in found], axis=-1)


def test_the_quantities_of_the_lemma_are_those_of_autodiff():
    x = drawn()[2][:6]
    (start, first), (end, last) = network(1), network(2)
    before, after = (gradients(model, x) for model in (first, last))
    expected = max(np.linalg.norm(each, 2) for each in after - before)
    found = limits.jacobian_change((start, start.potentials(x)), (end, end.potentials(x)), x)
    assert found == pytest.approx(expected, rel=1e-9)
    moved = np.concatenate(
        [(b - a).numpy().ravel() for a, b in zip(first.trainable_variables, last.trainable_variables, strict=True)]
    )
    linear = first(x).numpy() + before @ moved
    quantities = limits.changes(start, end, x)
    assert quantities["linearised"] == pytest.approx(norm(last(x).numpy() - linear), rel=1e-9)
    hidden = [a - b for a, b in zip(start.potentials(x)[:-1], end.potentials(x)[:-1], strict=True)]
    assert quantities["activations"] == pytest.approx(max(map(norm, hidden)) / np.sqrt(WIDTH))
    kernels = [(a - b) / np.sqrt(len(a)) for a, b in zip(start.weights, end.weights, strict=True)]
    norms = [np.linalg.norm(each, 2) for each in kernels]
    assert (quantities["first_weights"], quantities["weights"]) == pytest.approx((norms[0], max(norms[1:])))


def test_sigma_is_compared_with_delta():
    change, reference = np.random.default_rng(0).normal(size=(2, 4, 3))
    sigma = sum(np.outer(column, column) for column in reference.T)
    delta = sum(np.outer(column, column) for column in change.T)
    assert limits.discrepancy(change, reference) == pytest.approx(np.linalg.norm(sigma - delta, 2) / 2)


@pytest.mark.parametrize("steps", [1, pytest.param(6, marks=pytest.mark.exhaustive)])
def test_sigma_is_delta_after_one_step_and_not_after_more(steps):
    found = limits.measured(nothing, width=WIDTH, seed=99, **SIZES | {"moments": (steps,)})
    assert (found["normal_proposition_1"] < 1e-12) == (steps == 1)
    names = ("activations", "weights", "first_weights", "jacobian")
    quantities = {f"{rule}_{name}" for rule in updates.COMPARED_RULES for name in names}
    assert set(found) == {*quantities, "normal_proposition_1", "align_zero_linearised"}
    assert min(found[name] for name in quantities) > 1e-5
