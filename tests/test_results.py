"""The numbers in the guide agree with the files in `results/`."""

from pathlib import Path

import mnist_table
import pytest
from mnist_table import cell, column, runs
from page_tables import table_in

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "configs" / "mnist"


@pytest.mark.parametrize("network", ["convnet", "lstm"])
def test_every_rule_has_three_seeds_and_none_diverged(network):
    by_rule = runs("rules", "random_feedback") if network == "convnet" else runs("lstm")
    assert set(by_rule) == {path.stem for path in (CONFIGS / network).glob("*.yaml")}
    for rows in by_rule.values():
        assert [row["seed"] for row in rows] == ["0", "1", "2"]
        assert {row["diverged"] for row in rows} == {"0"}
        assert {Path(row["config"]).parent.name for row in rows} == {network}


def test_symmetric_alignment_is_within_half_a_point_and_aligns_below_20_degrees():
    by_rule = runs("rules")
    for symmetric, backprop in zip(by_rule["symmetric"], by_rule["backprop"], strict=True):
        assert abs(float(symmetric["top1"]) - float(backprop["top1"])) < 0.005
        assert float(symmetric["last_angle_max"]) < 20


def test_feedback_starts_at_about_90_degrees_stays_there_and_learns():
    rows = runs("rules")["feedback"]
    assert all(85 < angle < 95 for name in ("first_angle", "last_angle") for angle in column(rows, name))
    assert min(column(rows, "top1")) > 0.95


def test_random_magnitudes_are_better_than_random_signs_and_drtp_is_behind_feedback():
    by_rule = runs("rules", "random_feedback")
    worst = {rule: min(column(rows, "top1")) for rule, rows in by_rule.items()}
    best = {rule: max(column(rows, "top1")) for rule, rows in by_rule.items()}
    assert min(worst["frsf"], worst["brsf"]) > best["feedback"]
    assert best["drtp"] < worst["backprop"] - 0.005
    assert worst["drtp"] > 0.97


@pytest.mark.parametrize(
    ("page", "table"),
    [(mnist_table.README, mnist_table.short_table), (mnist_table.PAGE, mnist_table.full_table)],
    ids=["README", "results"],
)
def test_the_tables_of_rules_have_the_numbers_of_the_files(page, table):
    """`python tests/mnist_table.py` makes them."""
    assert table_in(page) == table()


def test_the_page_on_optimizers_has_the_numbers_of_the_file():
    page = (ROOT / "docs" / "optimizers.md").read_text()
    table = runs("optimizers")
    assert set(table) == {path.stem for path in (CONFIGS / "optimizers").glob("*.yaml")}
    for name, rows in table.items():
        assert [row["seed"] for row in rows] == ["0", "1", "2"]
        assert {row["diverged"] for row in rows} == {"0"}
        means = [cell(column(rows, "top1", 100)), cell(column(rows, "last_angle"))]
        assert f"| {name} | {' | '.join(means)} | {max(column(rows, 'last_angle_max')):.2f} |" in page


def test_rectified_swats_leaves_b_of_a_layer_unaligned_unless_it_equals_radam():
    rows = {(name, row["seed"]): row for name, found in runs("optimizers").items() for row in found}
    for seed in "012":
        swrats, radam = rows["swrats", seed], rows["radam", seed]
        assert (swrats["top1"] == radam["top1"]) == (float(swrats["last_angle_max"]) < 2)
    assert sum(float(rows["swrats", seed]["last_angle_max"]) > 80 for seed in "012") == 2
