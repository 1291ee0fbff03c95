"""The contract of engines, for each of them: SLURM by submitit's local executor, TPUs by a launcher on the CPU."""

import contextlib
import json
import os
import signal
from pathlib import Path

import pytest
from recorder import Recorder, awaited, beside

from neural_alignment.errors import Stopped
from neural_alignment.jobs.ending import Ending
from neural_alignment.jobs.engines.registry import ENGINES

ENDLESS = "epochs=1000000"


def status(job):
    """Returns the content of the status file of a run; empty if there is none."""
    path = Path(job.run_dir, "status.json")
    return json.loads(path.read_text()) if path.exists() else {}


@contextlib.contextmanager
def once_it_runs(job, act, before=None):
    """Acts on the process of a run, once that has written a row and is another than `before`; gives a list of it."""
    seen = []

    def follow(over):
        metrics = Path(job.run_dir, "metrics.csv")
        if awaited(lambda: metrics.exists() and status(job).get("pid") not in (None, before), over):
            seen.append(status(job)["pid"])
            act(seen[0])

    with beside(follow):
        yield seen


def each(names, exhaustive=()):
    """Returns parameters of the fixture `engine`."""
    marks = {name: [pytest.mark.exhaustive] for name in exhaustive}
    return pytest.mark.parametrize(
        "engine", [pytest.param(name, marks=marks.get(name, ())) for name in names], indirect=True
    )


@each(ENGINES, exhaustive=("spark", "tpu", "slurm"))
def test_runs_are_trained_with_the_same_numbers_as_in_this_process(engine, tmp_path, training, trained_here):
    run = training("seeds/run", "seed=0")
    engine.run(queue := Recorder(tmp_path, [run]))
    ending = queue.endings["seeds/run"]
    assert ending.state == "finished"
    assert 0 < ending.top1 <= 1
    # Not to the last digit: the number of threads may change the order of sums.
    assert ending.top1 == pytest.approx(trained_here.top1, abs=0.01)
    assert run.progress() == 1
    assert run.summary(ending).startswith("top-1 ")
    assert status(run)["best_top1"] == ending.top1


@each(ENGINES, exhaustive=("spark", "slurm"))
def test_pieces_are_computed(engine, tmp_path, computation):
    engine.run(queue := Recorder(tmp_path, [computation("piece")]))
    assert queue.endings["piece"] == Ending("finished")
    assert (tmp_path / "piece.txt").read_text() == "computed"


@each(sorted(ENGINES.keys() - {"in-process"}), exhaustive=("spark", "slurm", "tpu"))
def test_a_signal_stops_the_jobs_which_save_their_state_and_a_killed_job_has_failed(engine, tmp_path, training):
    """A run that would never end is stopped together with the pool, resumed by the next pool, and killed there."""
    run = training("endless", ENDLESS)
    queue = Recorder(tmp_path, [run])
    with (
        once_it_runs(run, lambda pid: os.kill(os.getpid(), signal.SIGTERM)) as first,
        pytest.raises(Stopped, match="SIGTERM; the same command resumes"),
    ):
        engine.run(queue)
    assert not queue.endings
    assert status(run)["state"] == "stopped"
    with once_it_runs(run, lambda pid: os.kill(pid, signal.SIGKILL), before=first[0]):
        engine.run(queue := Recorder(tmp_path, [run]))
    assert queue.endings["endless"].state == "failed"
    assert queue.endings["endless"].reason


@each(sorted(ENGINES.keys() - {"tpu", "spark", "slurm"}))
def test_an_error_of_a_job_becomes_its_ending_and_the_other_jobs_continue(engine, tmp_path, training, computation):
    wild = training("wild", "optimization.forward.learning_rate=1e30")
    missing = training("missing", config=str(tmp_path / "none.yaml"))
    broken = computation("broken", "shutil:copyfile", src="nowhere", dst="nowhere else")
    engine.run(queue := Recorder(tmp_path, [wild, missing, broken, computation("piece")]))
    endings = queue.endings
    assert [endings[name].state for name in ("wild", "missing", "broken", "piece")] == [
        *("diverged", "failed", "failed", "finished")
    ]
    assert "not finite" in endings["wild"].reason
    assert "no such file" in endings["missing"].reason
    assert endings["broken"].reason.startswith("FileNotFoundError: ")
