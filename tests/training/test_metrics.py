"""metrics.csv."""

import math

import pytest

from neural_alignment.training.metrics import MetricsFile, by_layer

STEPS = [0, 3, 6]


@pytest.mark.parametrize(("step", "left"), [(-1, []), (0, [0]), (2, [0]), (3, [0, 3]), (6, STEPS), (9, STEPS)])
def test_cut_keeps_the_rows_up_to_and_including_the_step(tmp_path, step, left):
    metrics = MetricsFile(str(tmp_path / "metrics.csv"))
    for each in STEPS:
        metrics.append({"step": each, "J": each / 4})
    metrics.cut(step)
    assert metrics.rows() == [{"step": each, "J": each / 4} for each in left]
    assert (tmp_path / "metrics.csv").exists() == bool(left)


def test_a_measure_by_layer_keeps_the_order_and_undefined_values():
    row = {
        "J": 1.0,
        "weight_angle/b/0": 30.0,
        "norm_ratio/b/0": 2.0,
        "weight_angle/a": math.nan,
        "weight_angles/a": 9.0,
    }
    angles = by_layer(row)
    assert list(angles) == ["b/0", "a"]
    assert angles["b/0"] == 30
    assert math.isnan(angles["a"])
    assert by_layer(row, "norm_ratio") == {"b/0": 2}
    assert by_layer(row, "cosine") == {}
