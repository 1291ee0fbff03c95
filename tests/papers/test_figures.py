"""The drawing and the tables of papers: from tidy rows to lines, error bars, legends and Markdown."""

import math

import numpy as np
import pytest
from lab import grey

from neural_alignment.papers import published
from neural_alignment.papers.figures import (
    Style,
    apart,
    grid,
    image,
    level,
    lines,
    mean_and_deviation,
    mean_and_error,
    mean_and_range,
    median_and_range,
    panel,
    panels_by,
    plain_ticks,
    points,
    quartiles,
    row_bar,
    span,
    steps,
    ticks,
)
from neural_alignment.papers.tables import chosen, crossed, grouped, runs_of, spread, table, whole

ROWS = [
    {"rule": rule, "width": width, "seed": seed, "loss": base * width + seed}
    for rule, base in (("bp", 1.0), ("fa", 2.0))
    for width in (8, 4)
    for seed in (0, 1, 2)
]
STYLES = {"bp": Style("BP"), "fa": Style("FA", "s", "--", 0.5), "none": Style("never run")}


def drawn(*marks, **axes):
    return grid([[panel(*marks, **axes)]], (3, 3)).axes[0]


def test_lines_are_means_over_all_rows_with_the_same_x_in_ascending_order():
    axis = drawn(lines(ROWS, "width", "loss", "rule", STYLES))
    assert [each.get_label() for each in axis.containers] == ["BP", "FA"]  # No line without rows.
    line, _, [bars] = axis.containers[1].lines
    assert line.get_xdata().tolist() == [4, 8]
    assert line.get_ydata() == pytest.approx([9, 17])
    low, high = bars.get_segments()[0][:, 1]
    assert (low, high) == pytest.approx((8, 10))  # One standard deviation of 8, 9, 10.


def test_lines_leave_out_missing_values_and_shade_their_errors_as_a_band():
    rows = [*ROWS, {"rule": "bp", "width": 16, "loss": math.nan}, {"rule": "bp", "loss": 1.0}]
    axis = drawn(lines(chosen(rows, rule="bp"), lambda row: row.get("width"), "loss", None, Style("BP"), band=True))
    [line] = axis.lines
    assert line.get_xdata().tolist() == [4, 8]
    [band] = axis.collections
    assert band.get_paths()[0].vertices[:, 1].max() == pytest.approx(10)


@pytest.mark.parametrize(("summary", "expected"), [
    (mean_and_deviation, (3.0, 3 - np.std([1, 2, 6], ddof=1), 3 + np.std([1, 2, 6], ddof=1))),
    (mean_and_error, (3.0, 3 - np.std([1, 2, 6], ddof=1) / 3**0.5, 3 + np.std([1, 2, 6], ddof=1) / 3**0.5)),
    (median_and_range, (2.0, 1.0, 6.0)),
    (mean_and_range, (3.0, 1.0, 6.0)),
    (quartiles, (2.0, 1.5, 4.0)),
])  # fmt: skip
def test_summaries_are_those_of_numpy(summary, expected):
    assert summary([1.0, 6.0, 2.0]) == pytest.approx(expected)
    assert summary([4.0]) == pytest.approx((4, 4, 4))


def test_panels_by_a_column_show_only_the_lines_of_the_rows_with_its_value():
    marks = (lines(ROWS, "width", "loss", None, Style("loss")), level(1, "chance"))
    panels = panels_by("rule", *marks, title="rule {}".format, xlabel="width")
    axes = grid([panels], (6, 3)).axes
    assert [axis.get_title() for axis in axes] == ["rule bp", "rule fa"]
    assert [axis.containers[0].lines[0].get_ydata().tolist() for axis in axes] == [[5, 9], [9, 17]]
    assert [axis.lines[-1].get_label() for axis in axes] == ["chance", "chance"]
    [only] = panels_by("rule", *marks, values=["fa"])
    assert (only.axes["title"], len(only.marks)) == ("fa", 2)


def test_a_legend_of_all_panels_has_each_label_once_and_leaves_out_panels_with_their_own():
    each = panel(lines(ROWS, "width", "loss", "rule", STYLES), level(1, "chance"))
    own = panel(points([1], [1], Style("dots")))
    figure = grid([[each, each, own, None]], (8, 3), legends=[(0, 2)], legend="outside lower center")
    [legend] = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["chance", "BP", "FA"]
    assert [text.get_text() for text in figure.axes[2].get_legend().get_texts()] == ["dots"]
    assert len(figure.axes) == 3


@pytest.mark.parametrize("other", [
    points([1], [2], Style("BP", "s")),
    points([1], [2], Style("BP", line="--")),
    points([1], [2], Style("BP", shade=0.5)),
    points([1], [2], Style("BP", filled=False)),
    lines(ROWS, "width", "loss", None, Style("BP", "s")),
])  # fmt: skip
def test_a_label_with_two_looks_in_one_legend_is_refused(other):
    each = panel(points([1], [1], Style("BP")))
    assert grid([[each, each]], (4, 2), legend="outside lower center").legends
    with pytest.raises(ValueError, match="Received 'BP' with "):
        grid([[each, panel(other)]], (4, 2), legend="outside lower center")
    # With a legend each, they are not confused.
    assert len(grid([[each, panel(other)]], (4, 2), legends=[(0, 0), (0, 1)]).axes) == 2


def test_lines_with_the_same_points_are_moved_apart_in_the_order_of_their_values():
    place = apart("width", "rule", ["bp", "fa", "dfa"], lambda x, number: x * 2.0**number)
    rows = [{"rule": rule, "width": 8} for rule in ("bp", "fa", "dfa")]
    assert [place(row) for row in rows] == [4, 8, 16]


@pytest.mark.parametrize(("label", "whole"), [("epoch", True), ("similarity", False)])
def test_ticks_of_epochs_are_whole_numbers(label, whole):
    axis = drawn(points([1, 10], [1, 2], Style("x")), xlabel=label, xlim=(0, 1.5))
    places = [tick for tick in axis.get_xticks() if 0 <= tick <= 1.5]
    assert len(places) > 1
    assert all(float(place).is_integer() for place in places) == whole


def test_axes_have_the_texts_limits_and_ticks_that_a_panel_names():
    axis = drawn(points([4, 8], [1, 2], Style("x")), ticks([4, 8]), title="A", xlabel="width", ylim=(0, 3))
    assert (axis.get_title(), axis.get_xlabel(), axis.get_ylim(), axis.get_xscale()) == ("A", "width", (0, 3), "log")
    assert [text.get_text() for text in axis.get_xticklabels()] == ["4", "8"]


def test_thin_histograms_are_drawn_above_thick_ones():
    axis = drawn(steps([1, 2], [0, 1, 2], Style("thin")), steps([1, 2], [0, 1, 2], Style("thick", width=3)))
    thin, thick = axis.patches
    assert (thin.get_linewidth(), thick.get_linewidth()) == (1.2, 3)
    assert thin.get_zorder() > thick.get_zorder()


def test_images_are_grey_and_have_a_colour_bar():
    figure = grid([[panel(image(np.eye(3), "size"))]], (3, 3))
    assert grey(figure)
    assert figure.axes[1].get_ylabel() == "size"


def test_a_row_of_images_has_one_colour_bar():
    own, last = panel(image(np.eye(3))), panel(image(np.eye(3)), row_bar("size"))
    figure = grid([[own, last], [own, last]], (5, 5))
    assert [axis.get_ylabel() for axis in figure.axes] == ["", "", "", "", "size", "size"]


def test_a_span_covers_all_values_at_an_x_and_is_in_the_legend():
    figure = grid([[panel(span(ROWS, "width", "loss", "all"))] * 2], (5, 3), legend="outside lower center")
    [area] = figure.axes[0].collections
    assert area.get_paths()[0].get_extents().extents == pytest.approx([4, 4, 8, 18])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["all"]


@pytest.mark.parametrize(("values", "expected"), [
    ((0.88, 1.12), ["0.9", "0.95", "1", "1.05", "1.1"]),
    ((0.3, 8), ["0.5", "1", "2", "5"]),
    ((0.06, 25), ["0.1", "1", "10"]),
])  # fmt: skip
def test_plain_ticks_of_a_logarithmic_axis_are_several_numbers(values, expected):
    axis = drawn(points([1, 2], values, Style("x")), plain_ticks())
    low, high = axis.get_ylim()
    axis.figure.canvas.draw()
    ticks = zip(axis.get_yticks(), axis.get_yticklabels(), strict=True)
    assert [text.get_text() for place, text in ticks if low <= place <= high] == expected
    assert not any(text.get_text() for text in axis.get_yticklabels(minor=True))


def test_tables_have_a_line_per_group_in_the_order_of_the_rows():
    text = table(ROWS, ["rule", "width"], {"rule": "rule", "m": "width", "loss": lambda own: spread(own, "loss")})
    assert text.splitlines()[2:4] == ["| bp | 8 | 9.00 ± 1.00 |", "| bp | 4 | 5.00 ± 1.00 |"]
    assert [*grouped(ROWS, "rule")] == [("bp",), ("fa",)]
    assert str(spread(chosen(ROWS, rule="bp", width=4), "loss", 100)) == "500.00 ± 100.00"


def test_a_table_of_two_variables_has_a_cell_per_pair():
    text = crossed("rule", {"BP": "bp"}, {"x8": 8, "x4": 4}, lambda rule, width: f"{rule} {width}")
    assert text.splitlines() == ["| rule | x8 | x4 |", "| --- | --- | --- |", "| BP | bp 8 | bp 4 |"]


def test_a_table_of_all_columns_marks_what_is_true_and_rounds_floats():
    product = whole([{"rule_name": "bp", "self_": True, "angle": False, "loss": 1 / 3, "seeds": 5}])
    header, _, line = product.text.splitlines()
    assert (header, line) == ("| rule name | self | angle | loss | seeds |", "| bp | x |  | 0.3333 | 5 |")
    assert product.columns == ("rule_name", "self_", "angle", "loss", "seeds")
    assert product.rows[0]["loss"] == 1 / 3


def test_published_numbers_are_numbers_and_empty_cells_are_missing():
    rows = {row["condition"]: row for row in published.read("fa_mechanism/test_errors")}
    assert rows["bp"] == {"condition": "bp", "mean": 3.19, "deviation": 0.16}
    assert math.isnan(rows["bp_trw_w"]["deviation"])
    assert published.read("wide_networks/table_9")[0]["train_images"] == 45


def test_a_panel_without_data_shows_only_its_title():
    full = panel(points([4, 8], [1, 2], Style("x")))
    figure = grid([[full, panel(title="empty: not yet run", xlabel="x")]], (4, 2))
    full, empty = figure.axes
    assert all(spine.get_visible() for spine in full.spines.values())
    assert not any(spine.get_visible() for spine in empty.spines.values())
    assert (empty.get_title(), empty.get_xlabel()) == ("empty: not yet run", "")


def test_runs_that_diverged_are_counted():
    rows = [{"diverged": diverged} for diverged in (False, True, False)]
    assert runs_of(rows) == "3, 1 diverged"
    assert runs_of(rows[::2]) == "2"
