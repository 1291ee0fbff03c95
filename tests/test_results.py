"""The numbers in the guide agree with the files in `results/`."""

import calendar
import csv
import re
import statistics
from pathlib import Path

import lab_rates
import pytest
import rules_tables
from helpers import table_in
from rules_tables import cell, column, runs

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "configs"
FILES = {
    "mnist/convnet": rules_tables.CONVNET,
    "mnist/lstm": ("mnist/lstm",),
    "cifar10/vision_transformer": ("cifar10/vision_transformer",),
}


@pytest.mark.parametrize("network", FILES)
def test_every_rule_has_three_seeds_and_none_diverged(network):
    by_rule = runs(*FILES[network])
    headers = {path.stem: path.read_text() for path in (CONFIGS / network).glob("*.yaml")}
    assert set(by_rule) == {name for name, text in headers.items() if "not yet run" not in text}
    for rows in by_rule.values():
        assert [row["seed"] for row in rows] == ["0", "1", "2"]
        assert {row["diverged"] for row in rows} == {"0"}
        assert {Path(row["config"]).parent.as_posix() for row in rows} == {f"configs/{network}"}


def test_symmetric_alignment_is_within_half_a_point_and_aligns_below_20_degrees():
    by_rule = runs("mnist/rules")
    for symmetric, backprop in zip(by_rule["symmetric"], by_rule["backprop"], strict=True):
        assert abs(float(symmetric["top1"]) - float(backprop["top1"])) < 0.005
        assert float(symmetric["last_angle_max"]) < 20


def test_feedback_starts_at_about_90_degrees_stays_there_and_learns():
    rows = runs("mnist/rules")["feedback"]
    assert all(85 < angle < 95 for name in ("first_angle", "last_angle") for angle in column(rows, name))
    assert min(column(rows, "top1")) > 0.95


def test_random_magnitudes_are_better_than_random_signs_and_drtp_is_behind_feedback():
    by_rule = runs("mnist/rules", "mnist/random_feedback")
    worst = {rule: min(column(rows, "top1")) for rule, rows in by_rule.items()}
    best = {rule: max(column(rows, "top1")) for rule, rows in by_rule.items()}
    assert min(worst["frsf"], worst["brsf"]) > best["feedback"]
    assert best["drtp"] < worst["backprop"] - 0.005
    assert worst["drtp"] > 0.97


def test_the_differences_that_the_page_states_in_words_are_those_of_the_means():
    by_rule = runs("mnist/rules", "mnist/random_feedback", "mnist/product_feedback")
    means = {rule: statistics.fmean(column(rows, "top1", 100)) for rule, rows in by_rule.items()}
    behind = {rule: means["backprop"] - mean for rule, mean in means.items()}
    page = (ROOT / "docs" / "results.md").read_text().replace("\n", " ")
    within = {0.1: ("symmetric", "pfa"), 0.2: ("kolen_pollack", "activation", "weight_mirror")}
    within[0.3] = ("sign_symmetry", "frsf", "brsf")
    for distance, rules in within.items():
        assert f"within {distance} points" in page
        assert all(abs(behind[rule]) <= distance for rule in rules)
    for rule, distance in {"information": 0.4, "feedback": 0.9, "drtp": 1.2}.items():
        assert f"{distance} points behind" in page
        assert behind[rule] == pytest.approx(distance, abs=0.05)
    lstm = {rule: column(rows, "top1", 100) for rule, rows in runs("mnist/lstm").items()}
    lost = {rule: statistics.fmean(lstm["backprop"]) - statistics.fmean(each) for rule, each in lstm.items()}
    assert lost["symmetric"] < statistics.stdev(lstm["symmetric"])
    assert "feedback alignment is 3.1 points behind" in page
    assert lost["feedback"] == pytest.approx(3.1, abs=0.05)


def test_in_the_vision_transformer_only_symmetric_alignment_comes_near_backpropagation():
    by_rule = runs("cifar10/vision_transformer")
    means = {rule: statistics.fmean(column(rows, "top1", 100)) for rule, rows in by_rule.items()}
    assert 0.5 < means["backprop"] - means["symmetric"] < 1.5
    assert means["backprop"] - means["feedback"] == pytest.approx(16, abs=0.5)
    assert means["backprop"] - means["dfa"] == pytest.approx(30, abs=0.5)
    assert max(column(by_rule["symmetric"], "last_angle_max")) < 1
    assert min(column(by_rule["feedback"], "last_angle")) > 86


def test_the_page_states_the_time_of_the_vision_transformer():
    minutes = sum(sum(column(rows, "seconds", 1 / 60)) for rows in runs("cifar10/vision_transformer").values())
    expected = f"{minutes:.0f} minutes in total, so {minutes / 2:.0f} minutes with two runs at a time"
    assert expected in rules_tables.PAGE.read_text()


def test_the_tables_of_rules_have_the_numbers_of_the_files():
    """`python tests/rules_tables.py` makes them."""
    assert table_in(rules_tables.README) == rules_tables.short_table()
    number = len(rules_tables.short_table()) - len(["header", "line", "backpropagation"])
    assert f"\n\n{ {10: 'Ten', 11: 'Eleven'}[number] } rules on MNIST after 3 epochs" in rules_tables.README.read_text()
    assert table_in(rules_tables.PAGE, "MNIST") == rules_tables.full_table(rules_tables.mnist())
    assert table_in(rules_tables.PAGE, "CIFAR-10") == rules_tables.full_table(rules_tables.cifar10())


def test_the_page_on_optimizers_has_the_numbers_of_the_file():
    page = (ROOT / "docs" / "optimizers.md").read_text()
    table = runs("mnist/optimizers")
    assert set(table) == {path.stem for path in (CONFIGS / "mnist" / "optimizers").glob("*.yaml")}
    for name, rows in table.items():
        assert [row["seed"] for row in rows] == ["0", "1", "2"]
        assert {row["diverged"] for row in rows} == {"0"}
        means = [cell(column(rows, "top1", 100)), cell(column(rows, "last_angle"))]
        assert f"| {name} | {' | '.join(means)} | {max(column(rows, 'last_angle_max')):.2f} |" in page


def test_rectified_swats_leaves_b_of_a_layer_unaligned_unless_it_equals_radam():
    rows = {(name, row["seed"]): row for name, found in runs("mnist/optimizers").items() for row in found}
    for seed in "012":
        swrats, radam = rows["swrats", seed], rows["radam", seed]
        assert (swrats["top1"] == radam["top1"]) == (float(swrats["last_angle_max"]) < 2)
    assert sum(float(rows["swrats", seed]["last_angle_max"]) > 80 for seed in "012") == 2


def stored(name):
    """Returns the rows of a file in `results`."""
    with open(ROOT / "results" / f"{name}.csv") as file:
        return list(csv.DictReader(file))


def test_headers_of_the_networks_of_rahmansetayesh_have_the_numbers_of_the_file():
    rows = stored("fa_mechanism/figure_7_errors")
    for path in (CONFIGS / "fa_mechanism").glob("*.yaml"):
        own, text = [row for row in rows if row["condition"] == path.stem], path.read_text()
        seeds = sorted(int(row["seed"]) for row in own)
        result = f"{cell(column(own, 'test_error_percent'))} % test error, seeds {seeds[0]} to {seeds[-1]})"
        assert f"; {result}\n" in text, path
        if "peaks" in text:
            assert f"in {sum(error > 30 for error in column(own, 'highest'))} of {len(own)} seeds" in text, path


def test_headers_of_the_labs_have_the_numbers_of_the_files():
    """`python tests/lab_rates.py` writes those of the lab of Kunin et al. and of CIFAR-10 at full size."""
    for path, found in lab_rates.results().items():
        text = path.read_text()
        assert "not yet run" in text or lab_rates.with_result(text, found) == text, path
    for dataset, table in (("cifar10", "table_6"), ("kmnist", "table_7")):
        cell_of = {"rule": "normal", "width": "8", "seed": "99"}
        [row] = [each for each in stored(f"wide_networks/{table}") if cell_of.items() <= each.items()]
        header = (CONFIGS / "lab" / "wide_networks" / f"{dataset}.yaml").read_text()
        assert f"best validation {float(row['validation_accuracy']):.2f} %, seed 99)" in header


def test_headers_name_files_that_have_the_results_of_the_configuration():
    for path in CONFIGS.rglob("*.yaml"):
        for name in re.findall(r"results in results/([\w/]+)\.md", path.read_text()):
            rows = stored(name)
            if "config" in rows[0]:
                assert path.relative_to(ROOT).as_posix() in {row["config"] for row in rows}, path


PAGES = [
    *sorted(ROOT.glob("results/*/README.md")),
    *(ROOT / "docs" / f"{name}.md" for name in ("two_routes", "fa_mechanism", "wide_networks", "results")),
]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_page_with_results_says_when_where_by_which_command_and_in_what_time(page):
    text = " ".join(page.read_text().split())
    for pattern in (
        rf"\b({'|'.join(calendar.month_name[1:])}) 20\d\d",
        r"\b2 cores of (an AMD EPYC|x86_64)",
        r"\b(make|neural-alignment) [a-z]",
    ):
        assert re.search(pattern, text), pattern
    assert re.search(r"\b(minutes|seconds)\b", text)
