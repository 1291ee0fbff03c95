"""Claims that are judged by result files, and their tables in pages."""

import pytest

from neural_alignment.papers import claims, commands, pages
from neural_alignment.papers.claims import (
    PaperClaim,
    ResultFiles,
    above,
    below,
    between,
    difference,
    mean_between,
    not_above,
)
from neural_alignment.papers.registry import Item, Source
from neural_alignment.reporting import Artifact, Spread

CLEAR, UNCLEAR = Spread([2.0, 2.1, 1.9]), Spread([5.0, 0.5, 0.5])
"""Means of 2; the standard errors are 0.06 and 1.5."""


@pytest.mark.parametrize(("criterion", "clear", "unclear"), [
    (above(), True, False),
    (above(1.95), False, False),
    (below(3), True, False),
    (below(2.05), False, False),
    (not_above(), False, True),
    (between(1.5, 2.5), True, False),
    (between(2.5, 3), False, False),
    (mean_between(1.5, 2.5), True, True),
    (mean_between(2.5, 3), False, False),
])  # fmt: skip
def test_criteria_take_two_standard_errors_into_account(criterion, clear, unclear):
    assert (criterion.holds(CLEAR), criterion.holds(UNCLEAR)) == (clear, unclear)


def test_one_value_has_no_standard_error():
    assert above(1).holds(Spread([1.5]))
    assert not above(2).holds(Spread([1.5]))


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
    rows = ["kind,layer,seed,value", "w,1,0,3", "w,1,1,4.5", "w,2,0,2", "w,2,1,-2", "b,1,0,9", "w,3,0,"]
    (tmp_path / "angles.csv").write_text("\n".join(rows) + "\n")
    return str(tmp_path)


def test_a_claim_is_judged_in_each_case(folder):
    product = claims.judge([claim(), claim("b", criterion=above(-9)), claim("c", criterion=above(9))], folder)
    assert [(row["claim"], row["case"], row["holds"], row["verdict"]) for row in product.rows] == [
        ("a claim", "l = 1", True, "in part"), ("a claim", "l = 2", False, "in part"),
        ("b", "l = 1", True, "yes"), ("b", "l = 2", True, "yes"),
        ("c", "l = 1", False, "no"), ("c", "l = 2", False, "no"),
    ]  # fmt: skip
    numbers = [product.rows[0][name] for name in ("mean", "standard_error", "values")]
    assert numbers == pytest.approx([3.75, 0.75, 2])
    assert set(product.columns) <= set(product.rows[0])
    line = "| 1 | a claim | figure | l = 1: 3.75 ± 0.75; l = 2: 0.00 ± 2.00 | turn | 2 | above 0 | in part |"
    assert product.text.splitlines()[2] == line


def test_a_claim_without_its_files_or_rows_is_not_yet_run(folder):
    missing = [claim(file="nothing"), claim("b", find=lambda files: {"": files.rows("angles", kind="x")})]
    product = claims.judge(missing, folder)
    assert [row["verdict"] for row in product.rows] == [claims.NOT_YET] * 2
    assert product.text.endswith("| 1 | b | figure | - | turn | - | above 0 | not yet run |")


def test_a_claim_with_too_few_seeds_is_not_called_not_yet_run(folder):
    """Layers 1 and 2 have two seeds. Rows without a seed in common are not yet run."""
    weights, none = (claims.values("angles", "value", "layer", kind=kind) for kind in ("w", "x"))
    found = [weights, claims.contrast(weights, claims.values("angles", "value", "layer", kind="b")), none]
    several = [claim(str(index), find=claims.spreads(each, least=3)) for index, each in enumerate(found)]
    verdicts = [row["verdict"] for row in claims.judge(several, folder).rows]
    assert verdicts == [claims.TOO_FEW, claims.TOO_FEW, claims.NOT_YET]
    assert claims.judge(several[:1], folder).text.endswith("| - | turn | - | above 0 | too few seeds |")


def test_files_have_numbers_where_there_are_numbers(folder):
    row = ResultFiles(folder).rows("angles", layer=3)[0]
    assert (row["kind"], row["seed"], row["value"]) == ("w", 0, None)


def test_contrasts_and_increases_are_of_the_same_seed(folder):
    files = ResultFiles(folder)
    weights = claims.values("angles", "value", "layer", kind="w")
    assert weights(files) == {1: {0: 3, 1: 4.5}, 2: {0: 2, 1: -2}}
    found = claims.spreads(claims.increases(weights, "{} - {}"))(files)
    assert {case: spread.values for case, spread in found.items()} == {"1 - 2": [-1, -6.5]}
    biases = claims.values("angles", lambda row: 2 * row["value"], "layer", where=lambda row: row["kind"] == "b")
    assert claims.contrast(weights, biases)(files) == {1: {0: 3 - 18}}
    assert claims.contrast(weights, biases, lambda a, b: b / a)(files) == {1: {0: 6}}
    largest = claims.values("angles", "value", "kind", seed=lambda row: 0, combine=max)
    assert largest(files) == {"w": {0: 4.5}, "b": {0: 9}}
    with pytest.raises(claims.TooFewSeedsError):
        claims.spreads(weights, least=3)(files)
    with pytest.raises(claims.NotYetRunError):
        claims.values("angles", "value", "layer", kind="w", layer=3)(files)


TABLE = "A sentence.\n\n| figure | here |\n| --- | --- |\n| 1 | a |\n| 2, S2 | b |\n\n| other |\n| --- |"


def test_a_page_gets_a_table_and_parts_of_it(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "x\n<!-- p/claims -->\nold\n<!-- end -->\ny\n<!-- p/claims: 2, S2 -->\n<!-- end -->\n<!-- p/c -->\n"
    )
    pages.fill(page, "p/claims", TABLE)
    header = ["| figure | here |", "| --- | --- |"]
    assert pages.places(page, "p/claims") == {"p/claims": [], "p/claims: 2, S2": ["2, S2"]}
    assert pages.table_in(page, "p/claims") == [*header, "| 1 | a |", "| 2, S2 | b |"]
    assert pages.table_in(page, "p/claims: 2, S2") == [*header, "| 2, S2 | b |"]
    assert page.read_text().startswith("x\n<!--")
    assert page.read_text().endswith("<!-- p/c -->\n")
    before = page.read_text()
    pages.fill(page, "p/claims", TABLE)
    assert page.read_text() == before


def test_a_command_writes_its_table_to_the_pages_of_the_guide_and_nowhere_else(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = tmp_path / "docs" / "page.md"
    page.parent.mkdir()
    page.write_text("<!-- p/claims -->\n<!-- end -->\n")
    item = Item("table", "p/claims", "claims", lambda source: Artifact(("a",), [{"a": 1}], TABLE), pages=(
        "docs/page.md", "docs/missing.md",
    ))  # fmt: skip
    text = commands.make(item, Source("paper", "runs", "configs", "elsewhere"), None)
    assert pages.table_in(page, "p/claims") == []
    assert "docs/" not in text
    text = commands.make(item, Source("paper", "runs", "configs", "results/p"), None)
    assert pages.table_in(page, "p/claims")[-1] == "| 2, S2 | b |"
    assert text.endswith("written: results/p/table_claims.csv, results/p/table_claims.md, docs/page.md\n")
