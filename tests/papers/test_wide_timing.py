"""Figure 7 of Boopathy and Fiete 2022, made from the rounds of the benchmark."""

import pytest

from neural_alignment.errors import InputError, RunError
from neural_alignment.papers import commands
from neural_alignment.papers.registry import Source, find
from neural_alignment.papers.wide_networks import figures, rows
from tests.lab import CONFIGS, grey

HEADER = "case,round,contender,quantity,value\n"


def source(folder):
    return Source("paper", str(folder), CONFIGS, str(folder))


def written(folder, text):
    (folder / rows.ROUNDS_FILE).write_text(HEADER + text)
    return source(folder)


def rounds(contender, *values, width=8):
    lines = [f"width {width},{number},{contender},seconds,{value}" for number, value in enumerate(values)]
    return "\n".join([*lines, f"width {width},0,{contender},CPU seconds,99", ""])


def test_ratios_are_those_within_a_round_and_cpu_seconds_are_not_read(tmp_path):
    # The machine is slower by 10 in the second round and by 2 in the third: the ratio of the medians would be 1.25.
    text = rounds("backpropagation", 1.0, 10.0, 2.0) + rounds("align_ada", 1.5, 14.0, 2.5)
    product = figures.figure_7(written(tmp_path, text))
    assert [row for row in product.rows if row["rule"] == "align_ada"] == [
        {"rule": "align_ada", "width": 8, "round": 0, "seconds": 1.5, "ratio": 1.5},
        {"rule": "align_ada", "width": 8, "round": 1, "seconds": 14.0, "ratio": 1.4},
        {"rule": "align_ada", "width": 8, "round": 2, "seconds": 2.5, "ratio": 1.25},
    ]
    assert list(dict.fromkeys(row["rule"] for row in product.rows)) == ["normal", "align_ada"]
    assert "| Align-ada | 2.500 s (1.40) |" in product.text
    assert grey(product.figure)


def test_what_is_lacking_or_damaged_is_said_in_one_line(tmp_path):
    item = find(commands.ITEMS, "figure", "wide_networks/7")
    with pytest.raises(InputError, match=r"needs --runs benchmarks/results .* no rounds in .*wide\.csv"):
        item.check(source(tmp_path))
    whole = rounds("backpropagation", 1.0)
    for text, reason in {
        "width 8,0,backpropagation,seconds,fast\n": "fast",
        "8 filters,0,backpropagation,seconds,1\n": "8 filters",
        whole + rounds("align_ada", 1.0, 2.0): "not every rule",
        whole + rounds("align_none", 1.0): "not every rule",
        rounds("align_ada", 1.0): "not every rule",
    }.items():
        with pytest.raises(RunError, match=rf"wide\.csv: is no file of the benchmark: .*{reason}"):
            item.check(written(tmp_path, text))
