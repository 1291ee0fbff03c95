"""Tables and figures on disk: CSV, Markdown and PNG files, durations and spreads."""

import math

import numpy as np
import pytest

from neural_alignment.errors import RunError
from neural_alignment.reporting import (
    Artifact,
    Spread,
    check_replaceable,
    csv_text,
    duration,
    markdown,
    new_figure,
    png,
    write,
)


def test_spreads_are_those_of_numpy():
    values = [0.4, 0.9, 0.7]
    spread = Spread([*values, math.nan])
    assert spread.mean == pytest.approx(np.mean(values))
    assert spread.deviation == pytest.approx(np.std(values, ddof=1))
    assert spread.error == pytest.approx(np.std(values, ddof=1) / np.sqrt(3))
    assert str(Spread([1.0])) == "1.00"
    assert str(Spread([])) == "none"
    assert str(Spread(values)) == f"{np.mean(values):.2f} ± {np.std(values, ddof=1):.2f}"
    assert str(spread) == f"{Spread(values)} (3 of 4)"
    assert f"{spread:.4f}" == f"{np.mean(values):.4f} ± {np.std(values, ddof=1):.4f} (3 of 4)"


def test_the_texts_of_figures_and_tables_are_written(tmp_path):
    table = Artifact(["a"], [{"a": 1}], "| a |")
    assert write(table, str(tmp_path / "table_1")) == [f"{tmp_path}/table_1.{ending}" for ending in ("csv", "md")]
    figure = new_figure(2, 2)
    names = write(Artifact(["a"], [{"a": 1}], "one seed", figure), str(tmp_path / "new" / "figure_1"))
    assert names == [f"{tmp_path}/new/figure_1.{ending}" for ending in ("csv", "md", "png")]
    assert (tmp_path / "new" / "figure_1.md").read_text() == "one seed\n"
    assert (tmp_path / "new" / "figure_1.png").read_bytes().startswith(b"\x89PNG")


def test_markdown_keeps_its_columns():
    assert markdown(["a", "b"], [["|B|", 1]]).splitlines() == ["| a | b |", "| --- | --- |", "| \\|B\\| | 1 |"]


def test_csv_files_round_floats_and_leave_missing_values_empty():
    rows = [{"a": 1 / 3, "b": True, "other": 1}, {"a": math.nan, "b": None}, {"b": "x,y"}]
    assert csv_text(["a", "b"], rows) == 'a,b\n0.3333333,1\n,\n,"x,y"\n'


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(7, "7 s"), (99, "99 s"), (600, "10 min"), (7200, "2.0 h"), (math.nan, "an unknown time")],
)
def test_durations_are_in_words(seconds, words):
    assert duration(seconds) == words


def test_equal_figures_give_equal_bytes():
    assert len({write_line() for _ in range(2)}) == 1


def write_line():
    figure = new_figure(2, 2)
    figure.subplots().plot([0, 1], [1, 0])
    return png(figure)


def test_names_in_scripts_that_the_font_does_not_have_are_drawn_without_warnings():
    """Warnings are errors in tests."""
    figure = new_figure(2, 1)
    figure.subplots().set_title("名前")
    assert png(figure).startswith(b"\x89PNG")


def test_tables_replace_only_tables_with_the_same_columns(tmp_path):
    path = str(tmp_path / "table")
    check_replaceable(path, ("a", "b"))
    write(Artifact(("a", "b"), [{"a": 1}], "text"), path)
    check_replaceable(path, ("a", "b"))
    with pytest.raises(RunError, match=r"table\.csv: exists and is not such a table; name other files with --output"):
        check_replaceable(path, ("a", "c"))
    (tmp_path / "table.csv").unlink()
    with pytest.raises(RunError, match=r"table\.md: exists and is not such a table"):
        check_replaceable(path, ("a", "b"))
