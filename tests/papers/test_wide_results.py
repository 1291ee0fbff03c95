"""The committed results of the wide networks: their requirements, and the claims.

Every test of a file is skipped until the file is there.
"""

import collections
import csv
import functools
import math
import re

import numpy as np
import pytest
from helpers import table_in

from neural_alignment.jobs.plans import unique
from neural_alignment.papers import claims, wide_networks
from neural_alignment.papers.wide_networks import runs as experiments
from neural_alignment.papers.wide_networks.claims import CLAIMS
from neural_alignment.reporting import csv_text
from tests.lab import ROOT, ChangedFiles, surviving

RESULTS = ROOT / "results" / "wide_networks"
PAGE = ROOT / "docs" / "wide_networks.md"
NOT_YET = "not yet run"
WIDTHS = (8, 16, 32, 64)
TEXTS = {"rule", "dataset", "setting", "activation", "differs", "run", "kind", "quantity"}


def path_of(name):
    path = RESULTS / name
    if not path.exists():
        pytest.skip(f"results/wide_networks/{name} is {NOT_YET}")
    return path


def plain(key, text):
    if key in TEXTS:
        return text
    return math.nan if text == "" else int(text) if re.fullmatch(r"-?\d+", text) else float(text)


def rows_of(name, **labels):
    """Returns the rows of a file that have some labels."""
    with open(path_of(f"{name}.csv")) as file:
        rows = [{key: plain(key, value) for key, value in row.items()} for row in csv.DictReader(file)]
    return [row for row in rows if labels.items() <= row.items()]


# Requirements.


@pytest.mark.parametrize(
    ("name", "columns"),
    [
        ("table_8", "rule,width,seed,train_loss,test_loss,paper_train_loss,paper_test_loss"),
        ("table_9", "rule,width,train_images,seed,rate,validation_accuracy,test_accuracy,paper_accuracy"),
        *((f"table_{n}", "layer,width,seed,score,score_sem,permuted_score,paper_score") for n in (3, 4, 5)),
        *(
            (f"table_{n}", "rule,width,seed,rate,validation_accuracy,test_accuracy,paper_accuracy,differs")
            for n in (1, 2, 6, 7)
        ),
    ],
)
def test_the_files_have_the_columns_that_were_agreed_on(name, columns):
    assert path_of(f"{name}.csv").read_text().splitlines()[0] == columns


def test_rules_have_the_names_that_were_agreed_on():
    feed_forward = {"normal", "align_ada", "align_zero", "align_prop", "dfa", "fa", "last_layer"}
    assert {row["rule"] for row in rows_of("table_9")} == feed_forward
    assert {row["rule"] for row in rows_of("table_8")} == {"normal", "align_ada", "align_zero", "readout_only"}


def test_table_8_is_the_printed_one_to_width_512():
    rows = rows_of("table_8", seed=99)
    assert {row["width"] for row in rows} >= {8, 16, 32, 64, 128, 256, 512}
    for row in rows:
        for part in ("train", "test"):
            assert row[f"{part}_loss"] == pytest.approx(row[f"paper_{part}_loss"], abs=0.005), row


def test_table_8_has_five_more_seeds():
    for rule in ("normal", "align_ada", "align_zero", "readout_only"):
        for width in (8, 16, 32, 64, 128):
            assert [row["seed"] for row in rows_of("table_8", rule=rule, width=width)] == [99, *range(100, 105)]


def test_table_9_has_every_rule_width_and_number_and_one_of_the_rates():
    rows = rows_of("table_9")
    assert len({(row["rule"], row["width"], row["train_images"]) for row in rows}) == len(rows) == 7 * 3 * 3
    assert {row["width"] for row in rows} == {8, 16, 32}
    assert {row["train_images"] for row in rows} == {45, 150, 450}
    for row in rows:
        assert row["rate"] in (1, 2, 5)
        images = row["validation_accuracy"] * row["train_images"] / 100  # As many to validate on as to train on.
        assert images == pytest.approx(round(images), abs=1e-4)


@pytest.mark.parametrize("name", ["table_6", "table_7"])
def test_tables_6_and_7_have_every_rule_at_every_width_and_say_what_differs(name):
    rows = rows_of(name)
    assert {(row["rule"], row["width"]) for row in rows} == {
        (rule, width) for rule in experiments.WITHOUT_PROP for width in WIDTHS
    }
    for row in rows:
        assert "training images (" in row["differs"]
        assert 0 < row["test_accuracy"] < 100


def test_table_2_has_five_seeds():
    for rule in ("normal", "align_ada", "align_zero", "dfa", "fa"):
        assert sorted(row["seed"] for row in rows_of("table_2", rule=rule)) == [99, 100, 101, 102, 103]


def test_the_imagenet_figure_says_that_it_is_a_check_of_the_pipeline():
    text = path_of("figure_5.md").read_text()
    assert "a check of the pipeline on a sample of 1,000 images" in text
    assert {row["rule"] for row in rows_of("figure_5")} == {"normal", "align_ada", "align_zero", "dfa", "fa"}


def planned():
    items = [item for item in wide_networks.ITEMS if not item.apart]
    return {work.name for item in items for work in unique(item.cells.get("lab", ()))}


def test_the_whole_set_is_computed_within_170_minutes():
    seconds = {row["run"]: row["seconds"] for row in rows_of("seconds")}
    missing = planned() - set(seconds)
    assert bool(missing) == ("Not yet run:" in (RESULTS / "README.md").read_text()), missing
    minutes = sum(seconds[name] for name in planned() - missing) / 2 / 60  # Two at once, on 2 cores.
    assert minutes <= 170
    for page in (RESULTS / "README.md", PAGE):
        assert f"{minutes:.0f} minutes" in page.read_text(), page


def test_what_is_committed_is_small_and_whole():
    for item in wide_networks.ITEMS:
        path = RESULTS / f"{item.file}.csv"
        if item.kind == "figure" and item.apart and not path.exists():
            continue  # No network has been trained yet.
        assert path.stat().st_size < 300_000, path.name
        assert path.with_suffix(".md").exists(), path.name
        assert path.with_suffix(".png").exists() == (item.kind == "figure"), path.name
        assert item.apart or item.file == "table_claims" or NOT_YET not in path.with_suffix(".md").read_text(), path


# The claims.


def test_the_claims_follow_from_the_files_and_the_page_has_them():
    product = claims.judge(CLAIMS, str(RESULTS))
    assert path_of("table_claims.csv").read_text() == csv_text(product.columns, product.rows)
    assert path_of("table_claims.md").read_text() == product.text + "\n"
    assert table_in(PAGE, "wide_networks/claims") == product.text.splitlines()
    assert len({row["claim"] for row in product.rows}) == len(CLAIMS)


def files_with(tmp_path, change):
    """Writes a copy of the CSV files whose rows are changed, and returns its folder."""
    for path in [*RESULTS.glob("table_*.csv"), *RESULTS.glob("figure_*.csv")]:
        rows = (
            [] if path.stem in ("table_claims", "figure_2") else [change(path.stem, row) for row in rows_of(path.stem)]
        )
        if rows:
            (tmp_path / path.name).write_text(csv_text(list(rows[0]), rows))
    return str(tmp_path)


@functools.cache
def holding(folder):
    """Returns claim -> its verdict, and the number of cases that meet its criterion."""
    rows = claims.judge(CLAIMS, folder).rows
    counts = collections.Counter(row["claim"] for row in rows if row.get("holds"))
    return {row["claim"]: (row["verdict"], counts[row["claim"]]) for row in rows}


def exchanged(column, first, second, *files):
    """Returns a change of rows that exchanges two values of a column in some files."""
    names = {first: second, second: first}

    def change(file, row):
        return row | {column: names.get(row[column], row[column])} if file in files else row

    return change


def swapped(first, second, *files):
    """Returns a change of rows that exchanges the values of two columns in some files."""
    return lambda file, row: row | {first: row[second], second: row[first]} if file in files else row


BY_WIDTH = ["figure_proposition_2", "figure_limits"]
SLOWER = {"align_ada": {8: 1, 16: 1.5, 32: 2, 64: 2.5}, "align_zero": {8: 1, 16: 1.5, 32: 2, 64: 2.5}}
ENDS = {"cifar10": {1: 10, 10: 1}, "kmnist": {1: 5, 5: 1}}

CONTRASTS = {
    "Align-ada and Normal": (
        exchanged("rule", "align_ada", "normal", "table_10", "table_longer", "table_9_subsets"),
        ("with Adam Align-ada is behind",
         "with the paper's number of updates backpropagation is better than Align-ada"),
    ),
    "Align-ada and Align-zero": (
        exchanged("rule", "align_ada", "align_zero", "table_6", "table_7", "figure_7", "table_longer"),
        ("Align-ada is better than Align-zero, CIFAR-10", "Align-ada is better than Align-zero, KMNIST",
         "with the paper's number of updates Align-ada is better than Align-zero",
         "a step of Align-zero is faster than one of Align-ada"),
    ),
    "Align-ada and the last layer": (
        exchanged("rule", "align_ada", "last_layer", "table_6", "table_7", "table_longer"),
        ("Align-ada is better than the last layer alone, CIFAR-10",
         "Align-ada is better than the last layer alone, KMNIST",
         "at width 64 Align-ada is better than each rule except backpropagation, CIFAR-10",
         "at width 64 Align-ada is better than each rule except backpropagation, KMNIST",
         "with the paper's number of updates Align-ada is better than the last layer alone"),
    ),
    "Align-prop and DFA": (
        exchanged("rule", "align_prop", "dfa", "table_1"),
        ("Align-prop is better than every rule except backpropagation",),
    ),
    "readout": (
        exchanged("rule", "align_ada", "readout_only", "table_8"),
        ("Align-ada is far better than the readout alone in wide networks, Add task",),
    ),
    "narrow and wide": (
        exchanged("width", 8, 64, "table_3", "table_4", "table_5", "table_6", "table_7", "table_seeds"),
        ("scores rise with width, CIFAR-10", "scores rise with width, KMNIST",
         "Align-zero improves with width, CIFAR-10", "Align-zero improves with width, KMNIST",
         "Align-ada nears backpropagation with width, CIFAR-10", "Align-ada nears backpropagation with width, KMNIST"),
    ),
    "units": (
        lambda file, row: row | {"width": {8: 128, 16: 64, 64: 16, 128: 8}.get(row["width"], row["width"])}
        if file == "table_8" else row,
        ("Align-ada nears backpropagation with width, Add task",
         "Align-zero nears backpropagation with width, Add task"),
    ),
    "first and last layer": (
        lambda file, row: row | {"layer": 4 - row["layer"]} if file == "table_4" else row,
        ("the last layer scores lower than the first, KMNIST",),
    ),
    "permuted": (
        swapped("score", "permuted_score", "table_3", "table_4", "table_5"),
        ("permuted weights score low, CIFAR-10", "permuted weights score low, KMNIST"),
    ),
    "first and last epoch": (
        lambda file, row: row | {"epoch": ENDS[row["setting"]].get(row["epoch"], 0)} if file == "figure_8" else row,
        ("scores fall over training, CIFAR-10", "scores fall over training, KMNIST"),
    ),
    "rates": (exchanged("rate", 5, 10, "figure_3"), ("all rules drop sharply at rate 10",)),
    "epochs of Table 10": (
        exchanged("setting", "150 epochs", "1 epoch", "table_10"),
        ("with Adam Align-ada is nearer to backpropagation after one epoch",),
    ),
    "widths of the limit": (
        lambda file, row: row | {"width": 8192 // row["width"]} if file in BY_WIDTH else row,
        ("outputs differ by O(1 / √m), tanh", "updates of Align-ada are more like backpropagation's in a wide network",
         "Σ / m nears Δ, the difference over √m is O(1 / m)"),
    ),
    "small and large rate": (
        exchanged("rate", 0.5, 5, "figure_3"),
        ("Align-ada, Align-zero and backpropagation are closer at rate 0.5 than at rate 5",),
    ),
    "Align-zero and Align-ada with Adam": (
        exchanged("rule", "align_zero", "align_ada", "table_10"),
        ("with Adam Align-zero is unstable: closer to chance than to Align-ada",),
    ),
    "steps": (
        lambda file, row: row | {"seconds": row["seconds"] * SLOWER.get(row["rule"], {}).get(row["width"], 1)}
        if file == "figure_7" else row,
        ("a step of Align-ada costs a fixed factor", "a step of Align-zero costs a fixed factor"),
    ),
    "losses of the published seed": (
        lambda file, row: row | {"test_loss": row["test_loss"] + 20 * (row["seed"] == 99)}
        if file == "table_8" else row,
        ("the printed losses of the Add task", "the test losses of the published seed are typical, 8 units",
         "the test losses of the published seed are typical, 128 units"),
    ),
}  # fmt: skip
"""Exchange of both sides of a contrast -> claims that must fail then."""


@pytest.mark.parametrize("name", CONTRASTS)
def test_a_claim_fails_if_both_sides_of_its_contrast_are_exchanged(name, tmp_path):
    change, failing = CONTRASTS[name]
    before, after = holding(str(RESULTS)), holding(files_with(tmp_path, change))
    for claim in failing:
        assert after[claim][0] != "yes", claim
        assert after[claim][1] < before[claim][1] or before[claim][1] == 0, claim


def test_all_other_claims_fail_if_there_is_no_effect_or_the_opposite_one():
    """Each seed counts as three, so that claims with too few seeds are judged as well."""
    path_of("table_6.csv")
    tested = {claim for _, failing in CONTRASTS.values() for claim in failing}
    with np.errstate(invalid="ignore"):  # Logarithms of negative distances.
        left = {text for _, text in surviving(CLAIMS, RESULTS, copies=3)} - tested
    assert left == {f"with {images} images Align-ada is comparable to backpropagation" for images in (150, 450)}


@pytest.mark.parametrize(("difference", "comparable"), [(0, True), (3, True), (30, False), (-30, False)])
def test_accuracies_that_are_far_apart_are_not_comparable(difference, comparable):
    def change(file, row):
        if file != "table_9_subsets":
            return row
        return row | {"validation_accuracy": 50 + row["subset"] + difference * (row["rule"] == "align_ada")}

    every = [claim for claim in CLAIMS if claim.text.endswith("images Align-ada is comparable to backpropagation")]
    for claim in every:
        rows = claim.judged(ChangedFiles(RESULTS, change, copies=3))
        assert {row["holds"] for row in rows} == {comparable}
    assert len(every) == 2


PRINTED = {"normal": {8: 90.0, 16: 93.0}, "align_ada": {8: 70.0, 16: 80.0}}
FOUND = {"normal": 1, "align_ada": -1, "align_zero": -12, "last_layer": -20}
"""Rules -> points above the paper's accuracy of the rule, or of Align-ada."""


@pytest.mark.parametrize(("found", "holds"), [
    (FOUND, True), ({"normal": -20, "align_ada": 10, "align_zero": 15, "last_layer": 14}, False),
])  # fmt: skip
def test_claims_on_networks_that_are_not_yet_run_hold_with_the_papers_accuracies_and_fail_with_others(
    tmp_path, found, holds
):
    rows = [
        {"dataset": "kmnist", "rule": rule, "width": width, "seed": 99, "rate": rate, "paper_accuracy": paper}
        | {"validation_accuracy": paper + more - rate}
        for rule, more in found.items()
        for width, paper in PRINTED.get(rule, PRINTED["align_ada"]).items()
        for rate in (1, 2)
    ]
    (tmp_path / "table_longer.csv").write_text(csv_text(list(rows[0]), rows))
    losses = [
        {"rule": rule, "width": 1024, "seed": 99}
        | {f"{part}_loss": 0.5 + (not holds) / 100 for part in ("train", "test")}
        | {f"paper_{part}_loss": 0.501 for part in ("train", "test")}
        for rule in ("normal", "align_ada")
    ]
    (tmp_path / "table_8_wider.csv").write_text(csv_text(list(losses[0]), losses))
    every = [claim for claim in CLAIMS if "number of updates" in claim.text or "2,048 units" in claim.text]
    verdicts = {row["claim"]: row["verdict"] for row in claims.judge(every, str(tmp_path)).rows}
    assert len(verdicts) == 6
    assert set(verdicts.values()) == {"yes" if holds else "no"}


def test_a_network_that_diverged_counts_as_chance(tmp_path):
    diverged = [row for row in rows_of("table_8") if math.isnan(row["test_loss"])]
    assert [(row["rule"], row["width"], row["seed"]) for row in diverged] == [("align_zero", 8, 101)]
    assert "Align-zero with 8 units and seed 101 diverged" in " ".join(PAGE.read_text().split())
    [claim] = [each for each in CLAIMS if each.text == "Align-zero nears backpropagation with width, Add task"]
    first, *_ = claim.find(claims.ResultFiles(str(RESULTS))).values()
    loss = {(row["rule"], row["width"]): row["test_loss"] for row in rows_of("table_8", seed=101)}
    narrow = 9.312 - loss["normal", 8]
    wide = loss["align_zero", 16] - loss["normal", 16]
    assert len(first.values) == 6
    assert any(value == pytest.approx(narrow - wide, abs=1e-3) for value in first.values)


def test_a_claim_about_a_rule_that_diverged_fails(tmp_path):
    def change(file, row):
        own = (file, row.get("rule"), row.get("width")) == ("table_7", "align_ada", 64)
        return row | {"validation_accuracy": math.nan} if own else row

    folder = files_with(tmp_path, change)
    assert holding(folder)["at width 64 Align-ada is better than each rule except backpropagation, KMNIST"][0] == "no"


def test_claims_on_some_runs_do_not_hide_the_others(tmp_path):
    """One seed has no standard deviation; a rule that was not trained at width 64 has no case."""

    def change(file, row):
        narrow = file == "table_6" and row["rule"] != "align_ada" and row["width"] == 64
        return row | {"width": 8} if narrow else row

    folder = files_with(tmp_path, change)
    path = tmp_path / "table_2.csv"
    rows = [row for row in rows_of("table_2") if row["seed"] == rows_of("table_2")[0]["seed"]]
    path.write_text(csv_text(list(rows[0]), rows))
    found = holding(folder)
    assert found["standard deviations over five seeds are below 1 point"][0] == "not yet run"
    assert found["at width 64 Align-ada is better than each rule except backpropagation, CIFAR-10"][0] == "not yet run"
    others = holding(str(RESULTS))
    assert (
        found["at width 64 Align-ada is better than each rule except backpropagation, KMNIST"]
        == (others["at width 64 Align-ada is better than each rule except backpropagation, KMNIST"])
    )


def test_the_claims_of_figure_3_do_not_mix_data_sets(tmp_path):
    """A second data set with the same range of accuracies, 20 points higher."""
    folder = files_with(tmp_path, lambda file, row: row)
    rows = rows_of("figure_3")
    higher = [
        row | {"dataset": "cifar10", "validation_accuracy": (row["validation_accuracy"] or 10.0) + 20} for row in rows
    ]
    (tmp_path / "figure_3.csv").write_text(csv_text(list(rows[0]), [*rows, *higher]))
    [claim] = [each for each in CLAIMS if each.text.startswith("Align-ada, Align-zero and backpropagation")]
    before = {row["case"]: row["mean"] for row in claim.judged(claims.ResultFiles(str(RESULTS)))}
    after = {row["case"]: row["mean"] for row in claim.judged(claims.ResultFiles(folder))}
    assert {case: after[case] for case in before} == before
    assert {*after} == {*before, *(case.replace("kmnist", "cifar10") for case in before)}
