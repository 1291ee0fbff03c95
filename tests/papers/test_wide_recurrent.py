"""Table 8 and Figure 9: the draws and a few epochs of the Add task against NumPy, and a printed loss."""

import dataclasses
import itertools

import numpy as np
import pytest
from helpers import distance, exhaustive_unless
from lab import CONFIGS, computed_once, grey
from recurrent_reference import forward, update

from neural_alignment.data import Batching
from neural_alignment.data.add_task import AddTask
from neural_alignment.jobs.pieces import Pieces
from neural_alignment.losses import SummedSquaredError
from neural_alignment.papers.registry import Source
from neural_alignment.papers.wide_networks import figures, printed, rows, runs, tables
from neural_alignment.papers.wide_networks.compute import add_task

WIDTH, EPOCHS = 4, 2


def nothing(part):
    assert 0 <= part <= 1


# Draws, with NumPy's global generator as the published code has it.


@pytest.fixture(scope="module")
def dataset():
    return AddTask(Batching(50, 99))


def drawn_sequences():
    np.random.seed(99)
    x = np.random.binomial(1, 0.5, (400, 100))
    y = np.full(x.shape, 0.5)
    for n, t in np.ndindex(*x.shape):
        y[n, t] += (0.5 * x[n, t - 2] if n >= 2 else 0) - (0.25 * x[n, t - 5] if n >= 5 else 0)
    return x, y


def test_sequences_are_the_published_draw(dataset):
    train, test = dataset.train_split, dataset.test_split
    x, y = drawn_sequences()
    assert train.inputs.shape == train.targets.shape == (300, 100, 1)
    np.testing.assert_array_equal(np.concatenate([train.inputs, test.inputs])[..., 0], x)
    np.testing.assert_array_equal(np.concatenate([train.targets, test.targets])[..., 0], y)
    for part, chance in zip((train, test), printed.CHANCE, strict=True):
        assert ((part.targets - 0.5) ** 2).sum(axis=(1, 2)).mean() == pytest.approx(chance, abs=5e-4)
    # Equation 59 itself, without what came before the beginning, has another chance level.
    y = 0.5 + 0.5 * np.pad(x, ((0, 0), (2, 0)))[:, :100] - 0.25 * np.pad(x, ((0, 0), (5, 0)))[:, :100]
    assert abs(((y[:300] - 0.5) ** 2).sum(axis=1).mean() - printed.CHANCE.train) > 0.01


def drawn_weights(width, seed=99):
    np.random.seed(seed)
    shapes = {"input_kernel": (1, width), "kernel": (width, width), "readout": (width, 1)}
    weights = {name: np.random.normal(size=shape) for name, shape in shapes.items()}
    return weights | {"bias": np.zeros(width), "offset": np.zeros(1), "initial_state": np.zeros((50, width))}


def test_the_network_starts_at_the_published_weights():
    model = add_task.build("align_ada", WIDTH, 99).model
    layer, readout, due = model.get_layer("recurrent"), model.get_layer("dense"), drawn_weights(WIDTH)
    found = {"input_kernel": layer.input_kernel, "kernel": layer.kernel, "readout": readout.kernel}
    for name, value in found.items():
        np.testing.assert_allclose(value, due[name], rtol=1e-6, err_msg=name)
    assert distance(layer.kernel, due["kernel"].T) > 0.1
    # The copies of the initial weights that the rule keeps have these values as well.
    kept = [value.numpy() for value in model.feedback_weights.weights]
    assert any(value.shape == (WIDTH, WIDTH) and np.allclose(value, due["kernel"]) for value in kept)
    assert float(model.optimizer.inner_optimizers[0].learning_rate) == pytest.approx(0.001)


def drawn_orders(epochs, seed=99):
    np.random.seed(seed)
    return [[np.random.permutation(n) for n in (300, 100, 300)] for _ in range(epochs)]


def test_each_epoch_draws_three_orders_in_turn(dataset):
    for found, due in zip(itertools.islice(dataset.orders(), 3), drawn_orders(3), strict=True):
        for mine, other in zip(found, due, strict=True):
            np.testing.assert_array_equal(mine, other)
    assert not np.array_equal(next(AddTask(Batching(50, 100)).orders()).updates, drawn_orders(1)[0][0])


# Training.


def numpy_loss(weights, x, y, order):
    batches = order.reshape(-1, 50)
    return np.mean([((forward(weights, x[b])[2] - y[b]) ** 2).sum(axis=1).mean() for b in batches])


def numpy_training(rule, miss=None):
    x, y = (values[..., None].astype(float) for values in drawn_sequences())
    start = drawn_weights(WIDTH)
    p, losses = dict(start), {"train_loss": [], "test_loss": []}
    for updates, test, train in drawn_orders(EPOCHS):
        for chosen in updates.reshape(-1, 50):
            gradient = update(rule, p, start, x[chosen], y[chosen], miss)
            p = {name: value - 0.001 * gradient[name] for name, value in p.items()}
        losses["test_loss"].append(numpy_loss(p, x, y, 300 + test))
        losses["train_loss"].append(numpy_loss(p, x, y, train))
    return losses


@pytest.mark.parametrize("rule", exhaustive_unless(add_task.ADD_TASK_RULES, ("align_ada",)))
def test_two_epochs_are_those_of_numpy(rule):
    found, due = add_task.trained(nothing, rule, WIDTH, 99, EPOCHS), numpy_training(rule)
    assert set(found) == set(due)
    for name, losses in due.items():
        np.testing.assert_allclose(found[name], losses, rtol=2e-6, err_msg=name)
    assert found["train_loss"][1] < found["train_loss"][0]


@pytest.mark.parametrize(
    ("rule", "miss"),
    [
        ("align_ada", "same step"),
        ("align_ada", "own gate frozen"),
        ("align_ada", "presynaptic frozen"),
        ("align_zero", "presynaptic live"),
    ],
)
def test_near_misses_have_other_losses(rule, miss):
    right, wrong = numpy_training(rule), numpy_training(rule, miss)
    assert max(distance(right[name], wrong[name]) for name in right) > 2e-5


def test_a_loss_begins_at_the_state_of_its_place_in_the_batch(rng):
    trainer = add_task.build("normal", WIDTH, 99)
    test, losses = trainer.dataset.test_split, trainer.inference(SummedSquaredError().call)
    state = rng.normal(size=(50, WIDTH))
    trainer.model.get_layer("recurrent").initial_state.assign(state)
    order, weights = drawn_orders(1)[0][1], drawn_weights(WIDTH)
    found, again = add_task.mean_losses(losses, (test, order), (test, order))
    assert found == pytest.approx(again, rel=1e-6)
    assert found == pytest.approx(numpy_loss({**weights, "initial_state": state}, *test, order), rel=2e-6)
    assert found != pytest.approx(numpy_loss(weights, *test, order), rel=1e-4)
    assert found != pytest.approx(numpy_loss({**weights, "initial_state": state}, *test, np.arange(100)), rel=1e-4)


@pytest.mark.exhaustive
def test_a_printed_loss_is_found_after_500_epochs_and_not_after_200():
    found = add_task.trained(nothing, "normal", 8, 99)
    losses = printed.TABLE_8["normal"][8]
    assert found["train_loss"].shape == (500,)
    for name, loss in (("train_loss", losses.train), ("test_loss", losses.test)):
        assert abs(add_task.best(found[name]) - loss) < 0.005
        assert abs(add_task.best(found[name][:200]) - loss) > 0.05


def test_an_unknown_rule_is_one_line():
    with pytest.raises(ValueError, match=r"`rule` must be one of normal, .* Received 'fa'\. Example"):
        add_task.build("fa", WIDTH, 99)


def test_each_loss_has_its_own_best_epoch():
    assert add_task.best(np.array([3.0, 1.0, 2.0])) == 1.0
    assert add_task.best(np.array([3.0, np.nan, 2.0, np.inf])) == 2.0
    assert np.isnan(add_task.best(np.array([np.nan, np.inf])))


# The table and the figure.


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Networks of two epochs: two rules, widths 8 and 256, of width 8 another seed and one that is missing.

    One is trained, the others have similar losses.
    """
    place = str(tmp_path_factory.mktemp("recurrent"))
    cells, trained = [], computed_once(add_task.trained)
    for cell in runs.recurrent(epochs=2):
        if (
            cell.labels["rule"] in ("normal", "readout_only")
            and cell.labels["width"] in (8, 256)
            and (cell.labels["seed"] in (99, 100, 104))
        ):
            [piece] = cell.pieces
            # Narrow networks under the names of wide ones: the table reads labels and losses.
            piece = dataclasses.replace(piece, compute=trained, arguments={**piece.arguments, "width": 2})
            cells.append(Pieces(cell.labels, (piece,)))
            if cell.labels["seed"] != 104:
                piece.compute_and_keep(place, CONFIGS)
    return Source("lab", place, CONFIGS, place, cells)


@pytest.mark.exhaustive
def test_the_table_has_a_row_for_each_network_beside_the_printed_losses(source):
    product = tables.table_8(source)
    assert ",".join(product.columns) == "rule,width,seed,train_loss,test_loss,paper_train_loss,paper_test_loss"
    assert all(tuple(row) == rows.LOSS_COLUMNS for row in product.rows)
    assert [(row["rule"], row["width"], row["seed"]) for row in product.rows] == [
        *(("normal", 8, seed) for seed in (99, 100)),
        *(("readout_only", 8, seed) for seed in (99, 100)),
        ("normal", 256, 99),
        ("readout_only", 256, 99),
    ]
    row = product.rows[-1]
    arrays = next(results[0].arrays for cell, results in source.read() if cell.labels == _labels(row))
    assert row["train_loss"] == min(arrays["train_loss"])
    assert row["test_loss"] == min(arrays["test_loss"])
    assert (row["paper_train_loss"], row["paper_test_loss"]) == (2.655, 2.623)
    assert "| Readout only | 256 | " in product.text
    assert "(2.655)" in product.text
    assert "nan" not in product.text


def _labels(row):
    return {name: row[name] for name in ("rule", "width", "seed")}


def test_the_figure_is_grey_and_its_axes_are_named(source):
    product = figures.figure_9(source)
    assert grey(product.figure)
    assert product.rows == tables.table_8(source).rows
    assert all(axis.get_xlabel() == "hidden units m" for axis in product.figure.axes)
    assert product.figure.axes[0].get_ylabel()


def test_nothing_is_made_of_nothing(source):
    empty = dataclasses.replace(source, folder=f"{source.folder}/none")
    assert tables.table_8(empty).rows == []
    assert "No network of seed 99 yet." in figures.figure_9(empty).text


def test_the_plan_holds_all_widths_rules_and_seeds():
    labels = [tuple(cell.labels.values()) for cell in runs.recurrent()]
    assert len(set(labels)) == len(labels) == 4 * (5 * 6 + 2)
    assert {width for _, width, seed in labels if seed == 99} == {8, 16, 32, 64, 128, 256, 512}
    assert {rule for rule, *_ in labels} == set(add_task.ADD_TASK_RULES) == set(printed.TABLE_8)
    assert {cell.pieces[0].arguments["epochs"] for cell in runs.recurrent()} == {500}
