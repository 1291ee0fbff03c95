"""metrics.csv."""

import pytest

from neural_alignment.training.metrics import MetricsFile

STEPS = [0, 3, 6]


@pytest.mark.parametrize(("step", "left"), [(-1, []), (0, [0]), (2, [0]), (3, [0, 3]), (6, STEPS), (9, STEPS)])
def test_cut_keeps_the_rows_up_to_and_including_the_step(tmp_path, step, left):
    metrics = MetricsFile(str(tmp_path / "metrics.csv"))
    for each in STEPS:
        metrics.append({"step": each, "J": each / 4})
    metrics.cut(step)
    assert metrics.rows() == [{"step": each, "J": each / 4} for each in left]
    assert (tmp_path / "metrics.csv").exists() == bool(left)
