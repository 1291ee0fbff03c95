"""The numbers in the guide agree with the files in `results/`."""

import csv
import statistics
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
RULES = ["feedback", "sign_symmetry", "weight_mirror", "information", "symmetric", "activation", "kolen_pollack"]


@pytest.fixture(scope="module")
def runs():
    """The runs on MNIST, by rule."""
    table = {}
    with open(ROOT / "results" / "mnist" / "rules.csv") as file:
        for row in csv.DictReader(file):
            table.setdefault(Path(row["config"]).stem, []).append(row)
    return table


def column(rows, name):
    return [float(row[name]) for row in rows]


def test_every_rule_has_three_seeds_and_none_diverged(runs):
    assert set(runs) == {"backprop", *RULES}
    for rows in runs.values():
        assert [row["seed"] for row in rows] == ["0", "1", "2"]
        assert {row["diverged"] for row in rows} == {"0"}


def test_symmetric_alignment_is_within_half_a_point_and_aligns_below_20_degrees(runs):
    for symmetric, backprop in zip(runs["symmetric"], runs["backprop"], strict=True):
        assert abs(float(symmetric["top1"]) - float(backprop["top1"])) < 0.005
        assert float(symmetric["last_angle_max"]) < 20


def test_feedback_starts_at_about_90_degrees_stays_there_and_learns(runs):
    assert all(85 < angle < 95 for name in ("first_angle", "last_angle") for angle in column(runs["feedback"], name))
    assert min(column(runs["feedback"], "top1")) > 0.95


def test_the_page_on_results_has_the_numbers_of_the_file(runs):
    page = (ROOT / "docs" / "results.md").read_text()
    for rule in RULES:
        cells = [
            f"{statistics.fmean(values):.2f} ± {statistics.stdev(values):.2f}"
            for values in (
                [100 * top1 for top1 in column(runs[rule], "top1")],
                *(column(runs[rule], name) for name in ("first_angle", "last_angle", "last_angle_max")),
            )
        ]
        assert f"| {rule} | {' | '.join(cells)} |" in page


def test_the_page_on_optimizers_has_the_numbers_of_the_file():
    page = (ROOT / "docs" / "optimizers.md").read_text()
    table = {}
    with open(ROOT / "results" / "mnist" / "optimizers.csv") as file:
        for row in csv.DictReader(file):
            table.setdefault(Path(row["config"]).stem, []).append(row)
    assert set(table) == {path.stem for path in (ROOT / "configs" / "mnist" / "optimizers").glob("*.yaml")}
    for name, rows in table.items():
        assert [row["seed"] for row in rows] == ["0", "1", "2"]
        assert {row["diverged"] for row in rows} == {"0"}
        means = [
            f"{statistics.fmean(values):.2f} ± {statistics.stdev(values):.2f}"
            for values in ([100 * top1 for top1 in column(rows, "top1")], column(rows, "last_angle"))
        ]
        assert f"| {name} | {' | '.join(means)} | {max(column(rows, 'last_angle_max')):.2f} |" in page


def test_rectified_swats_leaves_b_of_a_layer_unaligned_unless_it_equals_radam():
    with open(ROOT / "results" / "mnist" / "optimizers.csv") as file:
        rows = {(Path(row["config"]).stem, row["seed"]): row for row in csv.DictReader(file)}
    for seed in "012":
        swrats, radam = rows["swrats", seed], rows["radam", seed]
        assert (swrats["top1"] == radam["top1"]) == (float(swrats["last_angle_max"]) < 2)
    assert sum(float(rows["swrats", seed]["last_angle_max"]) > 80 for seed in "012") == 2
