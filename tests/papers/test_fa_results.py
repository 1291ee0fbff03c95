"""The committed results of the feedback-alignment figures are what the paper's claims ask for."""

import csv
import statistics
from pathlib import Path

import pytest

RESULTS = Path(__file__).parent.parent.parent / "results" / "fa_mechanism"


def rows_of(name):
    path = RESULTS / name
    if not path.exists():
        pytest.skip(f"results/fa_mechanism/{name} is not yet run")
    with open(path) as file:
        return list(csv.DictReader(file))


def test_the_open_loop_aligns_with_correlated_signals_alone():
    rows = [row for row in rows_of("figure_1b.csv") if float(row["rate"]) == 0.002]
    last = max(int(row["iteration"]) for row in rows)
    limits = {"constant": (50, 55), "cross_correlated": (0, 4), "neither": (89, 91)}
    for condition, (low, high) in limits.items():
        ends = [
            float(row["angle_degrees"])
            for row in rows
            if row["condition"] == condition and int(row["iteration"]) == last
        ]
        assert len(ends) == 10
        assert low < statistics.fmean(ends) < high, condition


def test_test_errors_are_those_of_the_published_code():
    errors = {}
    for row in rows_of("figure_7_errors.csv"):
        errors.setdefault((row["rule"], row["normalised"]), []).append(float(row["test_error_percent"]))
    means = {kind: statistics.fmean(values) for kind, values in errors.items()}
    assert min(map(len, errors.values())) >= 5
    assert 7.3 <= means["bp_trw", "none"] <= 8.5
    assert 4.3 <= means["bp_trw", "wb"] <= 5.4
    assert means["bp_trw", "wb"] < means["bp_trw", "w"] < means["bp_trw", "none"]
    assert 2.9 <= means["bp", "none"] <= 3.6


def test_replaced_labels_slow_learning_and_alignment():
    rows = [row for row in rows_of("figure_6.csv") if float(row["epoch"]) == 10]
    found = {}
    for row in rows:
        angle = statistics.fmean(float(row[f"angle_{layer}"]) for layer in range(1, 5))
        found.setdefault(float(row["fraction"]), []).append((float(row["test_error_percent"]), angle))
    assert {len(values) for values in found.values()} == {3}
    errors, angles = (
        [statistics.fmean(each[which] for each in found[fraction]) for fraction in (0.0, 0.5, 1.0)] for which in (0, 1)
    )
    assert errors == pytest.approx([22, 35, 90], abs=6)
    assert angles[0] < angles[1] < angles[2] < 90
