"""The accuracies of Boopathy and Fiete 2022: sweeps over rates against ordinary runs, tables and figures by name."""

import csv
import dataclasses
import functools
import io
import math
import os
from unittest import mock

import numpy as np
import pytest
import tensorflow as tf
from lab import CONFIGS, ROOT, grey

from neural_alignment import config as configuration
from neural_alignment.errors import Diverged, InputError
from neural_alignment.jobs import plans
from neural_alignment.jobs.batch import Execution, Screen
from neural_alignment.jobs.engines.processes import Processes
from neural_alignment.jobs.pieces import Pieces
from neural_alignment.jobs.plans import unique
from neural_alignment.papers import commands
from neural_alignment.papers.registry import Source, find
from neural_alignment.papers.wide_networks import figures, printed, tables
from neural_alignment.papers.wide_networks import rows as tidy
from neural_alignment.papers.wide_networks import runs as experiments
from neural_alignment.papers.wide_networks.compute import sweeps
from neural_alignment.reporting import csv_text
from neural_alignment.training import run
from neural_alignment.training.metrics import MetricsFile

DIGITS = (
    "data={source: digits}",
    "batch_size=200",
    "evaluation.batch_size=180",
    "evaluation.test_split=null",
    "model.width=2",
    "epochs=3",
    "seed=7",
)
"""7 steps an epoch, 2 batches of validation."""


def loaded(rule, *overrides):
    return configuration.load(f"{CONFIGS}/wide_networks/kmnist/{rule}.yaml", (*DIGITS, *overrides))


def nothing(part):
    assert 0 <= part <= 1


# Sweeps.

ADAM = ("model.parameterization=standard", "optimization.forward={name: adam, learning_rate: 1}")


@pytest.mark.parametrize(
    ("rule", "more", "compared"),
    [pytest.param("normal", ADAM, (0, 1), marks=pytest.mark.exhaustive), ("align_ada", (), (1,))],
)
def test_each_rate_is_the_run_that_train_makes(tmp_path, rule, more, compared):
    rates = [0.05, 0.5]
    found = sweeps.swept(nothing, loaded(rule, *more), rates, None)
    assert found["train_loss"].shape == found["validation_accuracy"].shape == (2, 3)
    assert math.isnan(found["test_accuracy"])
    for number in compared:
        config = loaded(rule, *more, f"optimization.forward.learning_rate={rates[number]}")
        run.train(config, tmp_path / str(number))
        rows = [row for row in MetricsFile(str(tmp_path / str(number) / "metrics.csv")).rows() if row["step"]]
        np.testing.assert_allclose(found["train_loss"][number], [row["train_J"] for row in rows], rtol=1e-5)
        # One example of 360 may fall to the other side: the graphs of both are not one and the same.
        np.testing.assert_allclose(
            found["validation_accuracy"][number], [100 * row["top1"] for row in rows], atol=100 / 360 + 1e-3
        )
    assert np.abs(found["train_loss"][0] - found["train_loss"][1]).max() > 1e-3


def test_the_test_accuracy_is_of_the_best_epoch_and_rate_not_of_the_last(monkeypatch):
    config = loaded("normal", "epochs=5")
    validation = list(sweeps.setup.load_data(config).validation())
    monkeypatch.setattr(sweeps.setup, "load_test_data", lambda *_: mock.Mock(validation=lambda: validation))
    found = sweeps.swept(nothing, config, [0.5, 1e-6], "any")  # The last one learns nothing.
    known = found["validation_accuracy"]
    assert found["test_accuracy"] == np.nanmax(known)
    assert abs(known[-1, -1] - np.nanmax(known)) > 1


@pytest.mark.exhaustive
def test_a_rate_that_diverges_ends_and_the_others_go_on():
    config = loaded("normal", "loss={kind: squared_error}", "epochs=2")
    found = sweeps.swept(nothing, config, [1e30, 0.5], None)
    assert np.isnan(found["validation_accuracy"][0]).all()
    assert np.isfinite(found["validation_accuracy"][1]).all()
    alone = sweeps.swept(nothing, config, [1e30], "any")
    assert math.isnan(alone["test_accuracy"])
    with pytest.raises(Diverged):
        run.train(loaded("normal", "optimization.forward.learning_rate=1.0e+30"), "ram://diverged")


@pytest.mark.exhaustive
@pytest.mark.skipif("TFDS_DATA_DIR" not in os.environ, reason="set TFDS_DATA_DIR to prepared data sets")
def test_small_cifar10_trains_on_other_images_than_it_validates_and_tests_on():
    config = configuration.load(f"{CONFIGS}/{experiments.SMALL_CIFAR10['lab'].config}", experiments.small(150))
    dataset = sweeps.setup.load_data(config)
    assert (dataset.train_examples, dataset.validation_examples, config.batch_size) == (150, 150, 50)
    validation = np.concatenate([images for images, _ in dataset.validation()])
    batches = list(sweeps.setup.load_test_data(config, "test[:120]", dataset).validation())
    assert [len(labels) for _, labels in batches] == [50, 50, 20]
    test = np.concatenate([images for images, _ in batches])
    train = np.concatenate([images for images, _ in dataset.train().take(3)])
    kept = {part.tobytes() for part in train}
    assert len(kept) == 150
    assert not kept & {part.tobytes() for part in (*validation, *test)}
    assert not {part.tobytes() for part in validation} & {part.tobytes() for part in test}


# The plan.


@pytest.mark.parametrize(("number", "batch"), [(45, 45), (150, 50), (450, 50), (1500, 100), (45000, 100)])
def test_batches_of_small_cifar10(number, batch):
    config = configuration.load(f"{CONFIGS}/{experiments.SMALL_CIFAR10['lab'].config}", experiments.small(number))
    assert (config.batch_size, config.evaluation.batch_size, config.epochs) == (batch, batch, 150)
    assert config.data.train_split == f"train[5000:{5000 + number}]"
    assert config.data.validation_split == f"train[:{min(number, 5000)}]"


def test_table_9_has_every_rule_width_number_and_rate():
    cells = experiments.table_9()["lab"]
    assert len(cells) == 63
    rules = {"normal", "align_ada", "align_zero", "align_prop", "dfa", "fa", "last_layer"}
    found = {(cell.labels["rule"], cell.labels["width"], cell.labels["train_images"]) for cell in cells}
    assert found == {(rule, width, number) for rule in rules for width in (8, 16, 32) for number in (45, 150, 450)}
    for piece in unique(cells):
        [config] = piece._load(CONFIGS)
        assert piece.arguments == {"rates": [1.0, 2.0, 5.0], "test_split": "test"}
        assert (config.seed, config.epochs, config.model.design) == (99, 150, "cifar")


@pytest.mark.parametrize("profile", ["paper", "lab"])
def test_every_configuration_of_every_plan_is_sound_and_of_its_labels(profile):
    names = {"fa": "feedback"}
    for item in commands.ITEMS:
        if item.paper != "wide_networks" or any("differs" not in cell.labels for cell in item.cells.get(profile, ())):
            continue
        for cell in item.cells.get(profile, ())[:: 7 if profile == "paper" or item.apart else 1]:
            start = cell.pieces[0].starts[0] if isinstance(cell, Pieces) else cell
            config = configuration.load(f"{CONFIGS}/{start.config}", start.overrides)
            rule = cell.labels["rule"]
            assert [each.rule for each in config.rules] == ([] if rule == "normal" else [names.get(rule, rule)])
            assert config.model.width == cell.labels["width"]
            assert (config.optimization.forward.name == "adam") == ("setting" in cell.labels)
            assert (config.model.parameterization == "standard") == ("setting" in cell.labels)
            if not isinstance(cell, Pieces):
                assert config.optimization.forward.learning_rate == cell.labels["rate"]


def test_the_lab_configurations_say_what_they_are_and_have_a_smoke_run():
    for path in sorted((ROOT / "configs" / "lab" / "wide_networks").glob("*.yaml")):
        header = path.read_text().split("\nbase:")[0]
        assert f"neural-alignment train configs/lab/wide_networks/{path.name}" in header
        smoke = configuration.load(str(path), smoke=True)
        assert smoke.max_steps == 2


@pytest.mark.parametrize(
    ("table", "key", "value"),
    [
        (printed.TABLE_1, ("align_prop", 512), 59.6),
        (printed.TABLE_1, ("normal", 128), 64.2),
        (printed.TABLE_6, ("fa", 512), 45.4),
        (printed.TABLE_6, ("last_layer", 8), 20.7),
        (printed.TABLE_7, ("align_ada", 64), 71.2),
        (printed.TABLE_7, ("normal", 512), 87.2),
        (printed.TABLE_9, (45, "normal", 16), 17.8),
        (printed.TABLE_9, (450, "align_zero", 512), 32.4),
        (printed.TABLE_9, (15000, "dfa", 64), 47.1),
        (printed.TABLE_9, (45000, "align_ada", 32), 42.8),
        (printed.TABLE_10, ("150 epochs", "align_ada", 512), 64.9),
        (printed.TABLE_10, ("1 epoch", "normal", 8), 37.3),
        (printed.TABLE_10, ("1 epoch, small rate", "align_zero", 8), 8.9),
    ],
)
def test_printed_cells(table, key, value):
    for part in key:
        table = table[part]
    assert table == value


# Tables and figures.


def faked(tell, config, rates, test_split):
    """Accuracies that tell from where they come: width + rate, the best in the second epoch of three."""
    tell(1.0)
    width = config.model.width
    curve = np.array([[width, width + (rate if rate < 5 else 2.0), 1.0] for rate in rates])
    loss = np.repeat(np.array(rates)[:, None], 3, axis=1)
    return {"train_loss": loss, "validation_accuracy": curve, "test_accuracy": np.array(width / 2)}


def small(cell):
    """Returns a cell whose pieces are computed at once."""
    return dataclasses.replace(cell, pieces=tuple(dataclasses.replace(p, compute=faked) for p in cell.pieces))


FILES = (
    *(f"table_{number}" for number in (1, 2, 6, 7, 9, 10, "seeds", "longer")),
    *(f"figure_{number}" for number in (3, 4, 5, 6, "longer")),
)
ITEMS = [item for item in commands.ITEMS if item.paper == "wide_networks" and item.file in FILES]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("wide")
    for piece in unique(small(cell) for item in ITEMS for cell in item.cells["lab"]):
        piece.compute_and_keep(str(place), CONFIGS)
    return place


@functools.cache
def made(kind, name, folder):
    item = find(commands.ITEMS, kind, f"wide_networks/{name}")
    return item.make(Source("lab", str(folder), CONFIGS, str(folder), [small(cell) for cell in item.cells["lab"]]))


def test_every_table_and_figure_of_this_part_is_there():
    assert {item.file for item in ITEMS} == set(FILES)


@pytest.mark.parametrize("item", ITEMS, ids=lambda item: item.file)
def test_rows_are_known_and_figures_grey(item, folder):
    product = made(item.kind, item.name.partition("/")[2], folder)
    assert set(product.columns) >= {key for row in product.rows for key in row}
    assert "nan" not in product.text
    rows = list(csv.DictReader(io.StringIO(csv_text(product.columns, product.rows))))
    if item.file != "figure_5":
        assert len(rows) >= len(item.cells["lab"])
    if item.kind == "figure":
        assert grey(product.figure)
        assert all(axis.get_xlabel() for axis in product.figure.axes)


@pytest.mark.parametrize("name", ["3", "4", "6"])
def test_rules_with_the_same_accuracies_are_drawn_beside_each_other(name, folder):
    """All rules have the same accuracies here."""
    for axis in made("figure", name, folder).figure.axes:
        curves = [container.lines[0] for container in axis.containers]
        assert len({tuple(np.round(line.get_xdata(), 6)) for line in curves}) == len(curves) > 3
    [legend] = made("figure", name, folder).figure.legends
    assert legend.get_title().get_text().endswith("one seed (99). Rules are moved apart a little.")


def test_figure_4_shows_only_our_widths_beside_all_of_the_paper(folder):
    axes = made("figure", "4", folder).figure.axes
    ours, papers = ([text.get_text() for text in axis.get_xticklabels()] for axis in axes[:2])
    assert ours == ["8", "16", "32", "64"] == papers[:4]
    assert papers[-1] == "512"
    assert axes[0].get_ylim()[1] < 80 < axes[3].get_ylim()[1]


def test_table_9_has_the_columns_that_were_agreed_on_and_the_first_of_equal_rates(folder):
    product = made("table", "9", folder)
    assert list(product.columns) == [
        "rule", "width", "train_images", "seed", "rate", "validation_accuracy", "test_accuracy", "paper_accuracy",
    ]  # fmt: skip
    assert len(product.rows) == 63
    row = next(r for r in product.rows if (r["rule"], r["width"], r["train_images"]) == ("align_ada", 16, 450))
    assert (row["rate"], row["validation_accuracy"], row["test_accuracy"], row["paper_accuracy"]) == (2, 18, 8, 25.3)
    unprinted = next(row for row in product.rows if row["rule"] == "last_layer")
    assert math.isnan(unprinted["paper_accuracy"])
    assert (
        "| Align-ada | 10.00, test 4.00 (25.1) | 18.00, test 8.00 (25.3) | 34.00, test 16.00 (28.2) | "
        "nothing in the protocol; of the images see the docs |" in product.text
    )
    [unprinted] = [line for line in product.text.splitlines() if line.startswith("| Last layer |")][:1]
    assert unprinted.endswith("(-) | not in the paper's table |")


def test_rows_say_what_differs_from_the_paper(folder):
    for name in ("1", "2", "6", "7"):
        product = made("table", name, folder)
        assert all("epochs (1" in row["differs"] and "; rate 5 (1, 2, 5)" in row["differs"] for row in product.rows)
        assert "epochs (1" in product.text
    told = {row["setting"]: row["differs"] for row in made("table", "10", folder).rows}
    assert "4 epochs (150)" in told["150 epochs"]
    assert "; rates 0.0005, 0.002, 0.01 (0.0005, 0.001, " in told["1 epoch"]
    assert "epochs" not in told["1 epoch"]
    assert "rate" not in told["1 epoch, small rate"]
    told = "; widths 8, 16 (8, 256); rates 0.5, 5, 10 (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20)"
    assert all(row["differs"].endswith(told) for row in made("figure", "3", folder).rows)
    seeded = made("table", "2", folder)
    assert "width 8 (256); 20,000 training images (45,000)" in seeded.text
    assert all(row["differs"].startswith("width 8 (256); 20,000") for row in seeded.rows)
    assert {(row["rule"], row["paper_accuracy"]) for row in seeded.rows} == {
        *(("normal", 63.1), ("align_ada", 56.4), ("align_zero", 46.9), ("dfa", 55.3), ("fa", 46.1))
    }


def test_of_several_rates_in_pieces_of_their_own_the_best_is_shown(folder):
    product = made("table", "longer", folder)
    own = {row["rate"]: row["validation_accuracy"] for row in product.rows if (row["rule"], row["width"]) == ("fa", 16)}
    assert own == {1: 17, 2: 18, 5: 18}
    papers = printed.TABLE_7["fa"]
    assert f"| FA | 10.00, test 4.00 ({papers[8]}) | 18.00, test 8.00 ({papers[16]}) |" in product.text
    config = experiments.longer()[0].pieces[0].starts[0].load(CONFIGS)
    assert (config.epochs * 80, config.batch_size) == (55_040, 100)  # 8,000 images.


def test_gaps_are_over_the_seeds_that_both_rules_have(folder, tmp_path):
    text = made("table", "seeds", folder).text
    assert "| cifar10 | 8 | 10.00 ± 0.00 | 10.00 ± 0.00 | 0.00 ± 0.00 (5) |" in text
    assert tables.seeds(Source("lab", str(tmp_path), CONFIGS, "", experiments.seeded())).rows == []


def test_subsets_have_other_images():
    configs = [configuration.load(f"{CONFIGS}/{experiments.SMALL_CIFAR10['lab'].config}", experiments.small(150, k))
               for k in experiments.SUBSETS]  # fmt: skip
    assert [config.data.train_split for config in configs][1:3] == ["train[5450:5600]", "train[5900:6050]"]
    assert [config.data.validation_split for config in configs][:2] == ["train[:150]", "train[450:600]"]
    assert configs[-1].data.validation_split == "train[1800:1950]"


def test_the_command_lab_leaves_out_what_takes_hours():
    item = find(commands.ITEMS, "table", "wide_networks/longer")
    assert commands._problem(item, None) == "takes hours: neural-alignment table wide_networks/longer"


def test_what_is_lacking_is_said(tmp_path):
    assert "not yet run" in made("table", "6", tmp_path).text
    assert "| Normal | 0 | none | none | 63.1 ± 0.4 |" in made("table", "2", tmp_path).text
    assert made("figure", "4", tmp_path).rows == []


def plan(table):
    return find(commands.ITEMS, "table", f"wide_networks/{table}").cells


def test_seeds_of_the_papers_size_are_those_of_the_table():
    assert {cell.seeds for cell in plan("2")["paper"]} == {(99, 100, 101, 102, 103)}
    for table in ("1", "6", "7", "9"):
        assert {cell.seeds for cell in plan(table)["paper"]} == {(99,)}


def test_table_2_is_over_the_seeds(folder):
    rows = made("table", "2", folder).rows
    assert sorted(row["seed"] for row in rows if row["rule"] == "dfa") == [99, 100, 101, 102, 103]


def test_figure_3_has_all_rates_and_shares_the_networks_of_the_tables(folder):
    rows = made("figure", "3", folder).rows
    assert {row["rate"] for row in rows} == {0.5, 5, 10}
    names = [{piece.name for piece in unique(cells["lab"])} for cells in (experiments.figure_3(), plan("7"))]
    assert len(names[0] & names[1]) == 12


def test_figure_5_says_that_it_is_a_check_of_the_pipeline(folder, monkeypatch):
    monkeypatch.setenv(experiments.IMAGENET_SAMPLE, "/sample")
    cells = [small(cell) for cell in experiments.figure_5()["lab"]]
    assert cells[0].pieces[0].starts[0].load(CONFIGS).data.train_files == "/sample/train-*"
    shared = {cell.labels["rule"]: cell.pieces[0].starts[0].load(CONFIGS) for cell in cells}
    assert shared["dfa"].rules[0].share_space
    for cell in cells:
        cell.pieces[0].compute_and_keep(str(folder / "five"), CONFIGS)
    product = figures.figure_5(Source("lab", str(folder / "five"), CONFIGS, "", cells))
    assert "check of the pipeline" in product.figure.axes[0].get_title()
    assert product.text.startswith("ImageNet, training loss: a check of the pipeline")
    assert len(product.rows) == 15


def test_figure_5_is_made_without_the_sample_from_what_was_trained_on_it(folder, monkeypatch):
    monkeypatch.setenv(experiments.IMAGENET_SAMPLE, "/sample")
    [cell, *_] = [small(cell) for cell in experiments.figure_5()["lab"]]
    cell.pieces[0].compute_and_keep(str(folder / "moved"), CONFIGS)
    monkeypatch.delenv(experiments.IMAGENET_SAMPLE)
    cells = [small(cell) for cell in experiments.figure_5()["lab"]]
    there = Source("lab", str(folder / "moved"), CONFIGS, "", cells[:1])
    figures.check_sample(there)
    assert len(figures.figure_5(there).rows) == 3
    with pytest.raises(InputError, match=r"IMAGENET_SAMPLE_DIR: must name .* it is not set"):
        figures.check_sample(Source("lab", str(folder / "moved"), CONFIGS, "", cells))


def test_figure_5_at_the_papers_size_is_no_check_of_the_pipeline(tmp_path):
    cells = experiments.figure_5()["paper"]
    assert {cell.name for cell in cells} == {
        f"imagenet/x512/{rule}/rate5" for rule in ("normal", "align_ada", "align_zero", "dfa", "fa")
    }
    source = Source("paper", str(tmp_path), CONFIGS, "", cells)
    figures.check_sample(source)
    assert figures.figure_5(source).text.startswith("ImageNet, training loss. 0 networks.")


def test_the_lab_without_the_sample_leaves_figure_5_as_it_is(tmp_path, monkeypatch):
    monkeypatch.delenv(experiments.IMAGENET_SAMPLE, raising=False)
    there = find(commands.ITEMS, "figure", "wide_networks/5"), find(commands.ITEMS, "table", "wide_networks/6")
    items = [dataclasses.replace(item, cells={"lab": [small(c) for c in item.cells["lab"][:1]]}) for item in there]
    monkeypatch.setattr(commands, "ITEMS", items)
    for cell in items[1].cells["lab"]:
        cell.pieces[0].compute_and_keep(str(tmp_path), CONFIGS)
    (tmp_path / "figure_5.csv").write_text("old file")
    said = []
    places = commands.Folders(str(tmp_path), str(tmp_path), CONFIGS)
    commands.make_all("wide_networks", places, Execution(Processes(1), Screen(said.append, said.append)))
    assert any("figure wide_networks/5: not made here, IMAGENET_SAMPLE_DIR: must name" in line for line in said)
    assert (tmp_path / "figure_5.csv").read_text() == "old file"
    assert (tmp_path / "table_6.csv").exists()


@pytest.mark.exhaustive
def test_runs_of_the_papers_size_are_read_from_their_directories(tmp_path):
    cells = experiments.PaperRuns("wide_networks/kmnist/{rule}.yaml", "kmnist", (0.2, 0.5), DIGITS).of(
        "align_zero", 2, (3,)
    )
    cells = [dataclasses.replace(cell, overrides=tuple(o for o in cell.overrides if o != "seed=7")) for cell in cells]
    tops = []
    for cell in cells:
        run.train(
            configuration.load(f"{CONFIGS}/{cell.config}", (*cell.overrides, "seed=3")), tmp_path / cell.name / "seed3"
        )
        rows = MetricsFile(str(tmp_path / cell.name / "seed3" / "metrics.csv")).rows()
        tops.append(max(row["top1"] for row in rows if row["step"]))
    [network] = tidy.networks(Source("paper", str(tmp_path), CONFIGS, "", cells))
    assert (network.seed, network.rates, network.validation.shape) == (3, (0.2, 0.5), (2, 3))
    rate, accuracy = network.best
    assert accuracy == pytest.approx(100 * max(tops))
    assert rate == (0.2, 0.5)[int(np.argmax(tops))]
    product = tables.table_7(Source("paper", str(tmp_path), CONFIGS, "", cells))
    assert product.rows[0]["seed"] == 3
    assert math.isnan(product.rows[0]["test_accuracy"])  # Digits have no test split.


def test_the_test_accuracy_of_runs_is_that_of_the_best_epoch_and_rate():
    def outcome(*rows):
        told = [{"step": n, "top1": top1, "test_top1": test, "train_J": 1.0} for n, top1, test in rows]
        return plans.Outcome(None, told, False, loaded("normal"))

    first = outcome((0, math.nan, math.nan), (1, 0.5, 0.4), (2, 0.3, 0.9))
    second = outcome((0, math.nan, math.nan), (1, 0.6, 0.55), (2, 0.2, 0.8))
    network = tidy._of_runs({}, [(1.0, first), (2.0, second)])
    assert network.best == (2.0, pytest.approx(60.0))
    assert network.test == pytest.approx(55.0)


@pytest.mark.exhaustive
def test_the_sample_of_imagenet_is_read_and_learned_from():
    folder = os.environ.get(experiments.IMAGENET_SAMPLE)
    if not folder or not tf.io.gfile.glob(f"{folder}/train-*"):
        pytest.skip("set IMAGENET_SAMPLE_DIR to TFRecords")
    [config] = experiments.figure_5()["lab"][0].pieces[0]._load(CONFIGS)
    config = configuration.override(config, ["model.width=2", "data.image_size=16", "epochs=2"])
    found = sweeps.swept(nothing, config, [5.0], None)
    assert 0 < found["train_loss"][0, 1] < found["train_loss"][0, 0]
