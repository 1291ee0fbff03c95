"""Claims that are judged by result files, and their tables in pages."""

import ast
import csv
import dataclasses
import itertools
import math
from pathlib import Path

import pytest
import scipy.stats
from helpers import screen_of, table_in
from lab import ROOT

from neural_alignment.errors import InputError
from neural_alignment.jobs.batch import Execution
from neural_alignment.jobs.engines.processes import Processes
from neural_alignment.papers import claims, commands, pages
from neural_alignment.papers.claims import (
    PaperClaim,
    ResultFiles,
    Unpaired,
    above,
    below,
    between,
    difference,
    mean_above,
    mean_below,
    mean_between,
    not_above,
)
from neural_alignment.papers.registry import Item, Source
from neural_alignment.reporting import Artifact, Spread

CLEAR, UNCLEAR = Spread([2.0, 2.1, 1.9]), Spread([5.0, 0.5, 0.5])
"""Means of 2; the 95 % intervals of three values are 4.303 standard errors on either side: 0.25 and 6.5."""


@pytest.mark.parametrize(("criterion", "clear", "unclear"), [
    (above(), True, None),
    (above(1.76), None, None),
    (above(1.74), True, None),
    (above(2.24), None, None),
    (above(2.26), False, None),
    (below(2.24), None, None),
    (below(2.26), True, None),
    (below(1.74), False, None),
    (not_above(1.9, 0.36), True, None),
    (not_above(1.9, 0.34), None, None),
    (not_above(1.5, 0.24), False, None),
    (between(1.74, 2.26), True, None),
    (between(1.76, 3), None, None),
    (between(2.26, 3), False, None),
    (mean_above(1.9), True, True),
    (mean_above(2.1), False, False),
    (mean_below(2.1), True, True),
    (mean_below(1.9), False, False),
    (mean_between(1.5, 2.5), True, True),
    (mean_between(2.5, 3), False, False),
])  # fmt: skip
def test_criteria_apply_to_the_interval_by_students_t_or_to_the_mean(criterion, clear, unclear):
    assert (criterion.judge(CLEAR), criterion.judge(UNCLEAR)) == (clear, unclear)


def test_a_wide_spread_shows_neither_an_effect_nor_its_absence():
    unclear = Spread([3.0, -3.0, 0.5])
    assert not above().judge(unclear)
    assert not not_above(0, 2).judge(unclear)
    assert not_above(0, 2).judge(Spread([0.3, -0.3, 0.5]))


def test_the_reach_of_an_interval_is_a_quantile_of_students_t():
    # From a printed table of the two-sided 95 % quantiles.
    assert [round(claims.reach(1.0, freedom), 3) for freedom in (1, 2, 4, 9)] == [12.706, 4.303, 2.776, 2.262]
    assert claims.reach(0.5, 3.7) == pytest.approx(0.5 * scipy.stats.t.ppf(0.975, 3.7))
    assert claims.reach(0.0, 0) == math.inf


@pytest.mark.parametrize("criterion", [above(-9), below(9), between(-9, 9), not_above(0, 9)])
def test_one_or_two_values_are_too_few_for_an_interval(criterion):
    for values in ([], [1.5], [1.5, 1.5]):
        assert criterion.judge(Spread(values)) is None
    assert criterion.judge(Spread([1.5, 1.5, 1.5]))


def test_a_case_with_one_seed_can_be_given_the_interval_of_others():
    criterion = above(1, single=2)
    assert criterion.text == "above 1; one seed: ± 2"
    assert [criterion.judge(Spread([value])) for value in (3.1, 2.9, -0.9, -1.1)] == [True, None, None, False]
    # Two and more seeds have their own interval, however wide.
    assert criterion.judge(Spread([3.0, 3.4])) is None
    assert criterion.judge(Spread([1.1, 1.3, 1.5])) is None
    assert criterion.judge(Spread([1.3, 1.3, 1.4])) is True
    assert below(1, single=2).judge(Spread([-1.1])) is True


def test_the_interval_of_unpaired_values_is_welchs():
    first, second = [42.0, 43.1, 41.7, 42.4], [38.0, 39.5, 41.0]
    found = Unpaired.of([Spread(first)], [Spread(second)])
    interval = scipy.stats.ttest_ind(first, second, equal_var=False).confidence_interval(0.95)
    reach = claims.reach(found.error, found.freedom)
    assert (found.mean - reach, found.mean + reach) == pytest.approx((interval.low, interval.high))
    assert len(found.values) == 3
    assert above(interval.low - 0.01).judge(found) is True
    assert above(interval.low + 0.01).judge(found) is None
    # By pairs of the first three seeds the interval would be another.
    pairs = Spread([one - other for one, other in zip(first, second, strict=False)])
    assert abs(claims.reach(pairs.error, 2) - reach) > 0.1
    assert above(-99).judge(Unpaired.of([Spread(first)], [Spread([40.0])])) is None
    double = Unpaired.of([Spread(first), Spread(second)], [Spread(second), Spread(first)])
    assert double.mean == pytest.approx(0)
    assert double.error == pytest.approx(2**0.5 * found.error)


def test_one_value_can_be_judged_without_an_interval():
    assert mean_above(1).judge(Spread([1.5]))
    assert not mean_above(2).judge(Spread([1.5]))
    assert mean_above(1).judge(Spread([])) is None


@pytest.mark.parametrize("criterion", [above(-9), not_above(0, 9), mean_below(9), mean_between(-9, 9)])
def test_no_criterion_is_met_if_a_run_diverged(criterion):
    assert criterion.judge(Spread([1.0, 1.0, 1.0]))
    assert criterion.judge(Spread([1.0, 1.0, 1.0, math.nan])) is False


def test_differences_are_of_the_same_seed():
    found = difference({0: 5.0, 1: 7.0, 2: 1.0}, {1: 4.0, 0: 1.0})
    assert found.values == [4.0, 3.0]
    with pytest.raises(claims.NotYetRunError):
        difference({0: 1.0}, {1: 1.0})


def claim(name="a claim", file="angles", **changes):
    def find(files):
        by_layer = claims.seeds_by(files.rows(file, kind="w"), "layer")
        return {f"l = {layer}": Spread([*seeds.values()]) for layer, seeds in by_layer.items()}

    return PaperClaim("1", name, "figure", "turn", above(), find)._replace(**changes)


@pytest.fixture
def folder(tmp_path):
    rows = ["kind,layer,seed,value", "w,1,0,3", "w,1,1,4.5", "w,1,2,3", "w,2,0,2", "w,2,1,-2", "w,2,2,0", "b,1,0,9"]
    (tmp_path / "angles.csv").write_text("\n".join(rows) + "\n")
    return str(tmp_path)


def test_a_claim_is_judged_in_each_case(folder):
    product = claims.judge([claim(), claim("b", criterion=above(-9)), claim("c", criterion=above(9))], folder)
    assert [(row["claim"], row["case"], row["holds"], row["verdict"]) for row in product.rows] == [
        ("a claim", "l = 1", True, "in part"), ("a claim", "l = 2", None, "in part"),
        ("b", "l = 1", True, "yes"), ("b", "l = 2", True, "yes"),
        ("c", "l = 1", False, "no"), ("c", "l = 2", False, "no"),
    ]  # fmt: skip
    numbers = [product.rows[0][name] for name in ("mean", "standard_error", "values")]
    assert numbers == pytest.approx([3.5, 0.5, 3])
    assert set(product.columns) <= set(product.rows[0])
    line = "| 1 | a claim | figure | l = 1: 3.50 ± 0.50; l = 2: 0.00 ± 1.15 | turn | 3 | above 0 | in part |"
    assert product.text.splitlines()[2] == line


@pytest.mark.parametrize(("values", "line"), [
    # One case has enough seeds, the other does not.
    ({"a": [3, 4, 4], "b": [5]}, "a: 3.67 ± 0.33; b: 5.00 | turn | 1 to 3 | above 0 | in part"),
    ({"a": [3, 9, -4], "b": [5]}, "a: 2.67 ± 3.76; b: 5.00 | turn | 1 to 3 | above 0 | undecided"),
    ({"a": [3, 9, -4], "b": [-3, -4, -3]}, "a: 2.67 ± 3.76; b: -3.33 ± 0.33 | turn | 3 | above 0 | no"),
    ({"a": [3, 4], "b": [5]}, "a: 3.50 ± 0.50; b: 5.00 | turn | 1 to 2 | above 0 | too few seeds"),
    ({"": [3, 4, 4, math.nan]}, "3.67 ± 0.33 (1 of 4 diverged) | turn | 3 | above 0 | no"),
    ({"a": [math.nan] * 3}, "a: (3 of 3 diverged) | turn | 0 | above 0 | no"),
])  # fmt: skip
def test_the_table_shows_how_many_seeds_there_are_and_which_diverged(folder, values, line):
    spreads = {case: Spread(each) for case, each in values.items()}
    product = claims.judge([claim(find=lambda files: spreads)], folder)
    assert product.text.splitlines()[2] == f"| 1 | a claim | figure | {line} |"


def test_a_claim_without_its_files_or_rows_is_not_yet_run(folder):
    missing = [claim(file="nothing"), claim("b", find=lambda files: {"": files.rows("angles", kind="x")})]
    product = claims.judge(missing, folder)
    assert [row["verdict"] for row in product.rows] == [claims.NOT_YET] * 2
    assert product.text.endswith("| 1 | b | figure | - | turn | - | above 0 | not yet run |")


@pytest.mark.parametrize("paper", ["fa_mechanism", "two_routes"])
def test_every_claim_is_judged_where_all_figures_are_made(paper):
    rows = csv.DictReader((ROOT / "results" / paper / "table_claims.csv").read_text().splitlines())
    assert [row["claim"] for row in rows if row["verdict"] == claims.NOT_YET] == []


def test_a_claim_with_too_few_seeds_is_not_called_not_yet_run(folder):
    """A case without any seed in common is not yet run."""
    weights, none = (claims.values("angles", "value", "layer", kind=kind) for kind in ("w", "x"))
    two = claims.values("angles", "value", "layer", where=lambda row: row["seed"] < 2, kind="w")
    one = claims.contrast(weights, claims.values("angles", "value", "layer", kind="b"))
    every = [claim(str(index), find=claims.spreads(each)) for index, each in enumerate((weights, two, one, none))]
    verdicts = {row["claim"]: row["verdict"] for row in claims.judge(every, folder).rows}
    assert verdicts == {"0": "in part", "1": claims.TOO_FEW, "2": claims.TOO_FEW, "3": claims.NOT_YET}


def test_files_have_numbers_where_there_are_numbers(folder):
    with open(f"{folder}/angles.csv", "a") as file:
        file.write("w,3,0,\n")
    row = ResultFiles(folder).rows("angles", layer=3)[0]
    assert (row["kind"], row["seed"], row["value"]) == ("w", 0, None)


def test_a_row_without_a_value_is_a_run_that_diverged(folder):
    with open(f"{folder}/angles.csv", "a") as file:
        file.write("w,3,0,\nw,3,1,4\n")
    files = ResultFiles(folder)
    found = claims.values("angles", lambda row: 2 * row["value"], "layer", kind="w", layer=3)(files)
    assert found == {3: {0: pytest.approx(math.nan, nan_ok=True), 1: 8}}
    # Also if several rows make one value, in any order.
    best = claims.values("angles", "value", "layer", lambda row: 0, combine=max, kind="w", layer=3)
    assert math.isnan(best(files)[3][0])
    by_layer = claims.seeds_by(files.rows("angles", kind="w"), "layer")
    assert math.isnan(by_layer[3][0])
    assert len(difference(by_layer[3], by_layer[1]).values) == 2


def test_contrasts_and_increases_are_of_the_same_seed(folder):
    files = ResultFiles(folder)
    weights = claims.values("angles", "value", "layer", kind="w")
    assert weights(files) == {1: {0: 3, 1: 4.5, 2: 3}, 2: {0: 2, 1: -2, 2: 0}}
    found = claims.spreads(claims.increases(weights, "{} - {}"))(files)
    assert {case: spread.values for case, spread in found.items()} == {"1 - 2": [-1, -6.5, -3]}
    biases = claims.values("angles", lambda row: 2 * row["value"], "layer", where=lambda row: row["kind"] == "b")
    assert claims.contrast(weights, biases)(files) == {1: {0: 3 - 18}}
    assert claims.contrast(weights, biases, lambda a, b: b / a)(files) == {1: {0: 6}}
    largest = claims.values("angles", "value", "kind", seed=lambda row: 0, combine=max)
    assert largest(files) == {"w": {0: 4.5}, "b": {0: 9}}
    with pytest.raises(claims.NotYetRunError):
        claims.values("angles", "value", "layer", kind="w", layer=3)(files)
    three = {4: {0: 1.0}, 1: {0: 2.0}, 2: {0: 4.0}}
    every = claims.increases(lambda files: three, pairs=lambda cases: itertools.combinations(cases, 2))
    assert every(files) == {"x1 to x2": {0: 2}, "x1 to x4": {0: -1}, "x2 to x4": {0: -3}}


TABLE = "A sentence.\n\n| figure | here |\n| --- | --- |\n| 1 | a |\n| 2, S2 | b |\n\n| other |\n| --- |"


def test_a_page_gets_a_table_and_parts_of_it(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "x\n<!-- p/claims -->\nold\n<!-- end -->\ny\n<!-- p/claims: 2, S2 -->\n<!-- end -->\n<!-- p/c -->\n"
    )
    pages.fill(page, "p/claims", TABLE)
    header = ["| figure | here |", "| --- | --- |"]
    assert pages.places(page, "p/claims") == {"p/claims": [], "p/claims: 2, S2": ["2, S2"]}
    assert table_in(page, "p/claims") == [*header, "| 1 | a |", "| 2, S2 | b |"]
    assert table_in(page, "p/claims: 2, S2") == [*header, "| 2, S2 | b |"]
    assert page.read_text().startswith("x\n<!--")
    assert page.read_text().endswith("<!-- p/c -->\n")
    before = page.read_text()
    pages.fill(page, "p/claims", TABLE)
    assert page.read_text() == before


@pytest.mark.parametrize("text", ["x\n", "<!-- b -->\n", "<!-- b -->\n<!-- c -->\n<!-- end -->\n", "<!-- end -->\n"])
def test_a_page_without_the_place_of_a_table_is_not_changed(tmp_path, text):
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(InputError, match=r"page\.md: has no lines `<!-- b -->` and `<!-- end -->`"):
        pages.replace_table(page, ["new"], "b")
    assert page.read_text() == text


@pytest.fixture
def guide(tmp_path, monkeypatch):
    """A working directory with a page for a table."""
    monkeypatch.chdir(tmp_path)
    page = tmp_path / "docs" / "page.md"
    page.parent.mkdir()
    page.write_text("<!-- p/claims -->\n<!-- end -->\n")
    return page


def item(**fields):
    """Returns a table of a page, and of one that does not exist."""
    made = Artifact(("a",), [{"a": 1}], TABLE)
    return Item("table", "p/claims", "claims", lambda source: made, pages=("docs/page.md", "docs/missing.md"), **fields)


def test_a_command_writes_its_table_to_the_pages_of_the_guide_and_nowhere_else(guide):
    text = commands.make(item(), Source("paper", "runs", "configs", "elsewhere"), None)
    assert table_in(guide, "p/claims") == []
    assert "docs/" not in text
    text = commands.make(item(), Source("paper", "runs", "configs", "results/p"), None)
    assert table_in(guide, "p/claims")[-1] == "| 2, S2 | b |"
    assert text.endswith("written: results/p/table_claims.csv, results/p/table_claims.md, docs/page.md\n")


@pytest.mark.parametrize(
    ("runs", "output", "filled"),
    [
        ("results/p/runs", "results/p", True),
        ("./results/p/runs/", "results/p/", True),
        ("runs/lab/p", "results/p", False),
        ("results/p/runs", "elsewhere", False),
    ],
)
def test_only_the_committed_runs_change_pages_of_the_guide(guide, monkeypatch, runs, output, filled):
    """The pages are about them, and not about runs of the reader."""
    monkeypatch.setattr(commands, "_train", lambda items, source, execution: None)
    commands.make(item(cells={"lab": []}), Source("lab", runs, "configs", output), None)
    assert bool(table_in(guide, "p/claims")) == filled
    assert Path(output, "table_claims.csv").exists()


@pytest.mark.parametrize(("runs", "filled"), [("results/p/runs", True), (None, False)])
def test_claims_on_the_files_of_other_runs_change_no_pages(guide, monkeypatch, runs, filled):
    """The command `lab` makes the files, by which claims are then judged, from its runs."""
    monkeypatch.setattr(commands, "_train", lambda items, source, execution: None)
    trained = dataclasses.replace(item(cells={"lab": []}), name="p/1", pages=())
    monkeypatch.setattr(commands, "ITEMS", [trained, item()])
    lines = []
    commands.make_all("p", commands.Folders(runs=runs), Execution(Processes(1), screen_of(lines.append)))
    assert bool(table_in(guide, "p/claims")) == filled
    assert "results/p/table_claims.csv" in lines[-1]


def test_published_tables_are_csv_files():
    typed = [
        f"{path.name}: {ast.unparse(node)}"
        for path in Path(commands.__file__).parent.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]).startswith("PUBLISHED")
        if isinstance(node.value, ast.Dict | ast.Tuple | ast.List)
    ]
    assert typed == []
