"""Batches of jobs: estimates of the time, progress, and failed jobs."""

import dataclasses
import math
import types
from pathlib import Path

import pytest

from neural_alignment.errors import RunError, Stopped
from neural_alignment.jobs import batch
from neural_alignment.jobs import estimates as jobs_estimates
from neural_alignment.jobs.batch import Batch, Execution, Screen
from neural_alignment.jobs.ending import Ending
from neural_alignment.jobs.engines.in_process import InProcess
from neural_alignment.jobs.engines.processes import Processes
from neural_alignment.jobs.estimates import Active, Begun, Estimates
from neural_alignment.jobs.job import log_file
from neural_alignment.jobs.pool import Engine


class Scripted(Engine):
    """An engine that runs nothing: the ending of every job is given.

    Args:
        endings: name of a job -> how it ends.
    """

    slots = 1

    def __init__(self, endings):
        self.endings, self.begun = endings, []

    @classmethod
    def parse(cls, text, option):
        raise NotImplementedError

    def run(self, queue):
        while job := queue.next():
            self.begun.append(job.name)
            queue.ended(job, self.endings[job.name])


def test_estimates_are_those_of_the_run_or_of_similar_runs(tmp_path):
    committed = tmp_path / "committed.csv"
    committed.write_text("run,seconds\na/x/seed0,10\na/x/seed1,20\na/y/seed0,60\n")
    estimates = Estimates(str(tmp_path / "own.csv"), str(committed))
    assert estimates.of("a/x/seed0") == 10
    assert estimates.of("a/x/seed2") == 15
    assert estimates.of("a/z/seed0") == 30
    # A kind that was never made is not known: that all runs took 30 s says nothing of it.
    assert math.isnan(estimates.of("b/x/seed0"))
    assert math.isnan(estimates.of("alone"))
    assert math.isnan(Estimates().of("b/x/seed0"))
    assert estimates.describe(["a/x/seed0", "a/y/seed0"], 1) == "70 s (estimate)"
    assert estimates.describe(["a/y/seed0", "a/y/seed0", "a/x/seed0"], 2) == "65 s (estimate)"
    # The longest job takes its time, however many others run beside it.
    assert estimates.describe(["a/x/seed0", "a/y/seed0"], 2) == "60 s (estimate)"
    assert estimates.describe(["a/x/seed0", "b/x/seed0", "a/y/seed0", "c"], 20) == "60 s (estimate) and 2 not known yet"
    assert estimates.describe(["b/x/seed0", "c"], 2) == "time not known yet"
    assert estimates.describe([], 2) == "0 s (estimate)"
    assert Estimates().describe(["a/x/seed0"], 2) == "time not known yet"
    estimates.record("a/x/seed0", 100)
    assert Estimates(str(tmp_path / "own.csv"), str(committed)).of("a/x/seed0") == 100
    assert "a/x/seed0,10\n" in committed.read_text()
    assert (tmp_path / "own.csv").read_text() == "run,seconds\na/x/seed0,100\n"  # Not those of another machine.


def test_a_damaged_file_of_durations_is_one_line(tmp_path):
    (tmp_path / "seconds.csv").write_text("run,seconds\na,soon\n")
    with pytest.raises(RunError, match="must have the columns run and seconds"):
        Estimates(str(tmp_path / "seconds.csv"), "")


@pytest.fixture
def clock(monkeypatch):
    """Replaces the clock of the estimates by a list with the time in seconds."""
    now = [1000.0]
    monkeypatch.setattr(jobs_estimates, "time", types.SimpleNamespace(monotonic=lambda: now[0]))
    return now


def test_the_status_names_the_running_jobs_and_the_time_left(tmp_path, training, clock):
    estimates = Estimates(str(tmp_path / "seconds.csv"), "")
    estimates.seconds = {"fc/a/seed0": 100.0, "fc/b/seed0": 110.0}
    first, second = training("fc/a/seed0"), training("fc/b/seed0")
    jobs = Batch([first, second], str(tmp_path), 2, Execution(InProcess(), Screen(print, print), estimates))
    assert jobs.next() == first
    jobs._active["fc/a/seed0"] = Active(first, Begun(clock[0] - 30))
    assert jobs.status() == "fc/a/seed0 0 %, 70 s left | all jobs: 3 min left (estimate)"
    path = tmp_path / "runs" / "fc" / "a" / "seed0"
    path.mkdir(parents=True)
    (path / "metrics.csv").write_text("step,epoch\n0,0\n5,1\n")
    assert jobs.status() == "fc/a/seed0 50 %, 30 s left | all jobs: 2 min left (estimate)"
    estimates.seconds = {}
    assert jobs.status() == "fc/a/seed0 50 %, 30 s left | all jobs: 30 s left (estimate) and 1 not known yet"
    (path / "metrics.csv").unlink()
    assert jobs.status() == "fc/a/seed0 0 %, an unknown time left | all jobs: time not known yet"


@pytest.fixture
def halved(tmp_path):
    """Writes the files of a run, and of a piece, that were interrupted after half of the work."""

    def write(name):
        path = tmp_path / "runs" / name
        path.mkdir(parents=True)
        (path / "metrics.csv").write_text("step,epoch\n0,0\n5,1\n")
        (tmp_path / f"{name}.progress").write_text("0.5")
        return path / "metrics.csv"

    return write


def test_the_time_left_of_a_resumed_run_follows_from_its_progress_since_then(tmp_path, training, halved, clock):
    estimates = Estimates()
    estimates.seconds = {"run": 100.0}
    metrics = halved("run")
    run = training("run", "epochs=8")
    metrics.write_text("step,epoch\n0,0\n5,4\n")
    jobs = Batch([run], str(tmp_path), 1, Execution(InProcess(), Screen(print, print), estimates))
    jobs.next()

    def after(seconds):
        begun = jobs._active["run"].begun
        jobs._active["run"] = Active(run, Begun(clock[0] - seconds, begun.done))
        return jobs.status().partition(" |")[0]

    assert after(10) == "run 50 %, 40 s left"  # Half of 100 seconds, of which 10 have passed.
    metrics.write_text("step,epoch\n0,0\n5,6\n")
    assert after(60) == "run 75 %, 60 s left"  # A quarter took a minute. As a run from the start: 20 s.
    jobs.waits(run)
    jobs.begins(run)  # On a cluster it is interrupted again.
    assert jobs._active["run"].begun.done == 0.75


def test_only_durations_of_whole_jobs_are_stored(tmp_path, training, computation, halved):
    names = ("resumed", "whole", "piece")
    for name in ("resumed", "piece"):
        halved(name)
    halved("whole").write_text("")
    jobs = [training("resumed"), training("whole"), computation("piece")]
    path = str(tmp_path / "seconds.csv")
    engine = Scripted(dict.fromkeys(names, Ending("diverged")))
    Batch(jobs, str(tmp_path), 3, Execution(engine, Screen(print, print), Estimates(path))).run()
    # A piece starts from scratch. The problem of a damaged file is that of the run.
    assert Estimates(path).seconds.keys() == {"whole", "piece"}


class Printing(Scripted):
    """An engine whose jobs print a traceback into their log."""

    def run(self, queue):
        while job := queue.next():
            Path(job.log).parent.mkdir(parents=True, exist_ok=True)
            Path(job.log).write_text(f"Traceback of {job.name}\n")
            queue.ended(job, self.endings[job.name])


@pytest.mark.parametrize("state", ["finished", "diverged", "failed", "stopped", "unavailable"])
def test_only_a_job_that_failed_keeps_its_log_which_the_message_names(tmp_path, computation, state):
    names = ("fc/a/seed0", "fc/b/seed0")
    endings = {"fc/a/seed0": Ending("finished", 0.5), "fc/b/seed0": Ending(state, reason="ValueError: no")}
    jobs = [dataclasses.replace(computation(name), log=log_file(str(tmp_path / "out"), name)) for name in names]
    made = Batch(jobs, str(tmp_path / "out"), 2, Execution(Printing(endings), Screen(print, print)))
    if state in batch.SUCCESSFUL:
        made.run()
    else:
        with pytest.raises(Stopped if state == "stopped" else RunError) as error:
            made.run()
        see = f"; see {tmp_path}/out/logs/fc/b/seed0.log" if state == "failed" else ""
        assert f"fc/b/seed0: {state}: ValueError: no{see}" in str(error.value)
        assert ("; see " in str(error.value)) == (state == "failed")
    found = [str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*")]
    kept = ["logs", "logs/fc", "logs/fc/b", "logs/fc/b/seed0.log"]
    assert sorted(found) == (kept if state == "failed" else [])


@pytest.mark.exhaustive
def test_the_traceback_of_a_piece_whose_code_is_wrong_can_be_read(tmp_path, computation, children):
    """Its log is removed when the piece is computed later."""
    folder = str(tmp_path)
    job = computation("fc/piece", "math:sqrt", x=1)
    job = dataclasses.replace(job, log=log_file(folder, job.name))
    with pytest.raises(RunError) as error:
        Batch([job], folder, 1, Execution(Processes(1), Screen(print, print))).run()
    log = tmp_path / "logs" / "fc" / "piece.log"
    line = "fc/piece: failed: TypeError: math.sqrt() takes no keyword arguments"
    assert str(error.value) == f"{line}; see {log}"
    assert "Traceback (most recent call last)" in log.read_text()
    again = dataclasses.replace(job, function="time:time", arguments={})
    Batch([again], folder, 1, Execution(Processes(1), Screen(print, print))).run()
    assert not (tmp_path / "logs").exists()


def test_the_duration_of_a_resumed_job_is_estimated_from_its_part(clock):
    assert Begun(clock[0] - 30, 0.75).whole == 120
    assert Begun(clock[0] - 30).whole == 30
    assert Begun(clock[0] - 30, 1.0).whole == 30


@pytest.mark.parametrize(("state", "error"), [("failed", RunError), ("unavailable", RunError), ("stopped", Stopped)])
def test_a_job_without_a_result_ends_the_batch_and_no_other_starts(tmp_path, computation, state, error):
    jobs = [computation(name) for name in ("first", "second", "third")]
    engine = Scripted({"first": Ending("finished"), "second": Ending(state, reason="x")})
    lines = []
    execution = Execution(engine, Screen(lines.append, lines.append), Estimates(str(tmp_path / "seconds.csv")))
    advice = "; the same command resumes" if state == "stopped" else ""
    with pytest.raises(error, match=f"second: {state}: x{advice}$"):
        Batch(jobs, str(tmp_path), 5, execution).run()
    assert engine.begun == ["first", "second"]
    assert lines == ["run 3 of 5: first  finished  0 s"]
    assert set(Estimates(str(tmp_path / "seconds.csv")).seconds) == {"first"}


def test_a_job_that_is_put_back_is_the_next_one(tmp_path, computation):
    jobs = Batch(
        [computation("first"), computation("second")], str(tmp_path), 2, Execution(InProcess(), Screen(print, print))
    )
    taken = jobs.next()
    jobs.put_back(taken)
    assert (jobs.next(), jobs.next().name, jobs.next(), jobs.left()) == (taken, "second", None, 2)
