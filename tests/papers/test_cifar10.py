"""Learning rules on CIFAR-10 at full size: the plan, the table, and the pages that contain it."""

import csv
import statistics
from pathlib import Path

import lab_rates
import numpy as np
import pytest
from helpers import table_in
from lab import CONFIGS, ROOT, grey, write_run

from neural_alignment import config as configuration
from neural_alignment.papers import cifar10, commands, pages
from neural_alignment.papers.registry import find
from neural_alignment.reporting import csv_text

ITEM = find(commands.ITEMS, "figure", "cifar10/full")
RESULTS = ROOT / "results" / "cifar10"


def load(rule):
    return configuration.load(Path(CONFIGS) / "cifar10" / "full" / f"{rule}.yaml")


def test_every_rule_has_a_file_and_seed_0_and_two_have_three_seeds():
    assert {path.stem for path in lab_rates.FULL.glob("*.yaml")} == set(cifar10.SEEDS_BY_RULE)
    assert all(seeds[0] == 0 for seeds in cifar10.SEEDS_BY_RULE.values())
    assert {rule for rule, seeds in cifar10.SEEDS_BY_RULE.items() if len(seeds) == 3} == {"backprop", "symmetric"}


def test_the_first_runs_are_one_of_each_rule():
    runs = [run.name for cell in ITEM.cells["lab"] for run in cell.runs()]
    assert runs[: len(cifar10.SEEDS_BY_RULE)] == [f"{rule}/seed0" for rule in cifar10.SEEDS_BY_RULE]
    assert sorted(runs) == sorted(f"{rule}/seed{n}" for rule, seeds in cifar10.SEEDS_BY_RULE.items() for n in seeds)


@pytest.mark.parametrize("rule", cifar10.SEEDS_BY_RULE)
def test_rules_differ_only_in_what_the_lab_has_and_train_on_all_images(rule):
    own, plain = load(rule), load("backprop")
    for part in ("epochs", "batch_size", "data", "model", "evaluation"):
        assert getattr(own, part) == getattr(plain, part)
    assert own.optimization.forward.schedule == plain.optimization.forward.schedule
    assert (own.data.train_split, own.data.validation_split, own.model.width) == ("train", "test", 16)
    lab = configuration.load(lab_rates.LAB / f"{rule}.yaml")
    assert (own.optimization.alternation, own.optimization.delay_epochs) == (
        lab.optimization.alternation,
        lab.optimization.delay_epochs,
    )
    if rule == "kolen_pollack":
        assert own.alignment.decay == own.weight_decay
    else:
        assert own.alignment == lab.alignment
    steps = 50_000 // own.batch_size  # As in a run, which has no smaller last batch.
    assert own.epochs * steps == lab_rates.FULL_STEPS
    assert lab.epochs * 5_000 // lab.batch_size == lab_rates.LAB_STEPS


@pytest.mark.parametrize("rule", cifar10.SEEDS_BY_RULE)
def test_the_rates_are_those_of_the_lab(rule):
    if not lab_rates.chosen():
        pytest.skip("results/two_routes/rates.csv is not yet made")
    own, chosen = load(rule), lab_rates.chosen()[rule]
    assert own.optimization.forward.learning_rate == chosen["optimization.forward.learning_rate"]
    assert own.weight_decay == pytest.approx(
        chosen["weight_decay"] * lab_rates.LAB_STEPS / lab_rates.FULL_STEPS, rel=5e-3
    )
    if own.optimization.backward is not None:
        assert own.optimization.backward.learning_rate == chosen["optimization.backward.learning_rate"]


def made(folder):
    return ITEM.make(commands.Folders(str(folder), str(folder / "results"), CONFIGS).source(ITEM, "lab"))


def test_the_table_has_the_columns_that_were_agreed_on_and_means_over_seeds(tmp_path):
    cells = {cell.labels["rule"]: cell for cell in ITEM.cells["lab"]}
    for rule, values in {"backprop": (0.90, 0.92), "symmetric": (0.88, 0.90, 0.92), "feedback": (0.5,)}.items():
        for seed, top1 in enumerate(values):
            write_run(tmp_path, cells[rule], seed, top1, state="diverged" if rule == "feedback" else "finished")
    artifact = made(tmp_path)
    rows = list(csv.DictReader(csv_text(artifact.columns, artifact.rows).splitlines()))
    assert list(rows[0]) == [
        "rule",
        "seed",
        "epochs",
        "test_top1",
        "test_top5",
        "mean_angle",
        "largest_angle",
        "seconds",
        "pseudogradient_angle",
        "norm_ratio",
        "diverged",
    ]
    symmetric = [row for row in rows if row["rule"] == "symmetric"]
    assert [(row["seed"], row["epochs"], row["test_top1"]) for row in symmetric] == [
        ("0", "15", "0.88"), ("1", "15", "0.9"), ("2", "15", "0.92"),
    ]  # fmt: skip
    assert {(row["mean_angle"], row["largest_angle"], row["seconds"]) for row in symmetric} == {("50", "50", "12.5")}
    assert {(row["rule"], row["diverged"]) for row in rows} == {
        ("backprop", "0"), ("symmetric", "0"), ("feedback", "1"),
    }  # fmt: skip
    assert (
        "| symmetric (SA) | 3 | 15 | 90.00 ± 2.00 | 90.00 ± 0.00 | 50.0 ± 0.0 | 50.0 ± 0.0 | 50.00 ± 0.00 |  | 0 |"
        in artifact.text
    )
    assert "| backpropagation | 3 | 15 | 91.00 ± 1.41 (2 of 3 seeds) |" in artifact.text
    assert "| feedback (FA) | 1 | 15 | 10.00 (1 diverged, counted as chance) | 50.00 |" in artifact.text
    assert artifact.text.count("not yet run") == 5
    assert grey(artifact.figure)
    *full, empty = artifact.figure.axes  # These runs have no pseudogradient angles.
    assert all(axis.has_data() and axis.get_xlabel() and axis.get_ylabel() for axis in full)
    assert not empty.has_data()


def test_the_pseudogradient_angle_is_that_after_the_last_epoch_and_none_if_the_run_diverged(tmp_path):
    cells = {cell.labels["rule"]: cell for cell in ITEM.cells["lab"]}
    for rule, state in {"symmetric": "finished", "feedback": "diverged"}.items():
        path = write_run(tmp_path, cells[rule], 0, 0.9, state=state) / "metrics.csv"
        rows = list(csv.DictReader(path.read_text().splitlines()))
        columns = [*rows[0], "pseudogradient_angle/stem", "pseudogradient_angle/dense"]
        measures = {"pseudogradient_angle": (40, 44), "norm_ratio": (20.4, 20.8)}
        angles = [
            {f"{name}/{layer}": each - 20 * n for name, pair in measures.items()
             for layer, each in zip(("stem", "dense"), pair, strict=True)}
            for n in (0, 1)
        ]  # fmt: skip
        path.write_text(csv_text(columns, [row | own for row, own in zip(rows, angles, strict=False)]))
    artifact = made(tmp_path)
    found = {row["rule"]: row["pseudogradient_angle"] for row in artifact.rows}
    assert found["symmetric"] == pytest.approx(22)
    assert np.isnan(found["feedback"])
    assert "| 50.0 | 50.0 | 0.60 | 22.0 | 0 |" in artifact.text


def rows_of_results():
    with open(RESULTS / "full.csv") as file:
        return list(csv.DictReader(file))


def test_the_pages_have_the_table_of_the_results():
    """`make cifar10-table` writes the files and the pages."""
    text = (RESULTS / "full.md").read_text()
    for page in ITEM.pages:
        assert table_in(ROOT / page, "cifar10/full") == pages.part(text, ())


def test_the_table_of_the_results_follows_from_the_file():
    by_rule = {}
    for row in rows_of_results():
        by_rule.setdefault(row["rule"], []).append(100 * float(row["test_top1"]))
    lines = {line.split("|")[1].strip(): line for line in table_in(ROOT / "docs" / "results.md", "cifar10/full")}
    for rule in cifar10.SEEDS_BY_RULE:
        line = lines[cifar10.LOOKS[rule].label]
        values = by_rule.get(rule, ())
        if not values:
            assert "not yet run" in line
        elif len(values) == 1:
            assert f"| {values[0]:.2f} " in line
        else:
            assert f"| {np.mean(values):.2f} ± {statistics.stdev(values):.2f} " in line


def test_what_the_page_says_of_the_other_rules_is_in_the_file():
    rows = {row["rule"]: row for row in rows_of_results() if row["seed"] == "0"}
    page = " ".join((ROOT / "docs" / "results.md").read_text().split())
    accuracy = {rule: 100 * float(row["test_top1"]) for rule, row in rows.items()}
    assert "Kolen-Pollack end within half a point of backpropagation." in page
    for rule in ("symmetric", "activation", "kolen_pollack"):
        assert abs(accuracy[rule] - accuracy["backprop"]) < 0.5
    assert "Sign symmetry, which trains no B, is about four points behind." in page
    assert accuracy["backprop"] - accuracy["sign_symmetry"] == pytest.approx(4, abs=0.5)
    mirror, signs = rows["weight_mirror_adam"], rows["sign_symmetry"]
    assert "Weight mirror turns B no closer to W^T than the signs of W are" in page
    assert float(mirror["mean_angle"]) > float(signs["mean_angle"])
    assert "further from the gradient than those of sign symmetry" in page
    assert float(mirror["pseudogradient_angle"]) > float(signs["pseudogradient_angle"])
    assert "its accuracy is nearer to that of feedback alignment" in page
    assert abs(accuracy["weight_mirror_adam"] - accuracy["feedback"]) < abs(
        accuracy["weight_mirror_adam"] - accuracy["sign_symmetry"]
    )


def test_what_the_page_says_of_information_alignment_is_in_the_file():
    """Its B points along W^T, but is smaller, and the update of W is not that of backpropagation."""
    rows = {row["rule"]: row for row in rows_of_results() if row["seed"] == "0"}
    page = (ROOT / "docs" / "results.md").read_text()
    assert "In information alignment B points along W^T at the end, but is smaller" in page
    information, backpropagation = rows["information"], rows["backprop"]
    assert float(information["largest_angle"]) < 5
    assert float(information["norm_ratio"]) < 0.6
    assert float(information["pseudogradient_angle"]) > 20
    assert float(information["test_top1"]) < float(backpropagation["test_top1"]) - 0.05
