"""Jobs: running them in this process, and sending them to other processes."""

import dataclasses
import json
import threading

import keras
import pytest
from recorder import Recorder

from neural_alignment.errors import RunError, Stopped
from neural_alignment.jobs import job as jobs
from neural_alignment.jobs.children import Children
from neural_alignment.jobs.ending import Ending, ending_of, past_ending
from neural_alignment.jobs.engines.in_process import InProcess
from neural_alignment.jobs.estimates import Active, Begun, progress_of
from neural_alignment.jobs.job import decode, encode
from neural_alignment.training import lock, stepping


def test_a_job_is_the_same_after_it_was_sent(training, computation):
    for job in (training("run", "seed=3", log="here.log"), computation("piece")):
        again = decode(encode(job))
        assert type(again) is type(job)
        assert {**vars(again), "overrides": None} == {**vars(job), "overrides": None}
        assert list(getattr(again, "overrides", ())) == list(getattr(job, "overrides", ()))


def test_a_run_that_has_ended_is_not_trained_again(tmp_path, training):
    run = training("run")
    InProcess().run(first := Recorder(tmp_path, [run]))
    (tmp_path / "runs" / "run" / "model.keras").unlink()
    InProcess().run(second := Recorder(tmp_path, [run]))
    assert first.endings == second.endings
    assert first.endings["run"].state == "finished"
    assert not (tmp_path / "runs" / "run" / "model.keras").exists()


@pytest.mark.parametrize("state", ["finished", "diverged"])
def test_a_run_of_another_configuration_is_not_the_result_of_a_job(tmp_path, training, state):
    run = training("run")
    place = tmp_path / "runs" / "run"
    place.mkdir(parents=True)
    (place / "config.yaml").write_text((tmp_path / "config.yaml").read_text())
    (place / "status.json").write_text(json.dumps({"state": state, "best_top1": 0.5, "reason": "x"}))
    before = {path.name: path.read_bytes() for path in place.iterdir()}
    assert run.run() == Ending(state, 0.5 if state == "finished" else None, "x" if state == "diverged" else None)
    ending = training("run", "batch_size=100").run()
    assert ending.state == "unavailable"
    assert "another configuration: batch_size was 200, is now 100; " in ending.reason
    assert {path.name: path.read_bytes() for path in place.iterdir()} == before
    # Event files are not part of the result.
    assert training("run", "logging.tensorboard=true").run().state == state


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (Stopped("SIGTERM at step 3, which is saved", "continue with --resume"), "SIGTERM at step 3, which is saved"),
        (Stopped("a line; of two parts\n", "resume"), "a line; of two parts"),
        (Stopped("the same command resumes"), "the same command resumes"),
        (RunError(f"{'x' * 400}: is damaged; remove it"), f"{'x' * 400}: is damaged; remove it"),
    ],
)
def test_the_reason_of_an_ending_is_whole_and_names_no_option_of_another_command(error, reason):
    def work():
        raise error

    assert ending_of(work).reason == reason


def test_a_file_that_is_edited_while_its_run_is_followed_does_not_end_the_command(tmp_path, training):
    run = training("run", "max_steps=4")
    assert run.progress() == 0
    assert run.run().state == "finished"
    (tmp_path / "config.yaml").write_text("epochs: [")
    assert run.progress() == 1  # Of 4 steps, and not of all epochs.
    assert run.summary(past_ending(run.run_dir)).startswith("top-1 ")


def test_a_run_without_the_column_of_epochs_does_not_end_the_other_jobs(tmp_path, training):
    """A resumed run reports the problem itself."""
    run = training("run")
    place = tmp_path / "runs" / "run"
    place.mkdir(parents=True)
    (place / "metrics.csv").write_text("step,epocx,seconds,J\n0,0,0,\n")
    begun = Begun.now(run)
    assert begun.done == 0
    (place / "metrics.csv").write_text("step,epoch\n0")
    assert "run 0 %" in progress_of([Active(run, begun)], [], lambda name: 60.0, 1, "all jobs")


def test_a_run_waits_for_its_orphan_to_release_the_directory(tmp_path, training, monkeypatch):
    """A lock that is held for a while is waited for; one that is not released makes the run unavailable."""
    run, other = training("run", "epochs=1"), training("other", "epochs=1")
    for job in (run, other):
        (tmp_path / "runs" / job.name).mkdir(parents=True)
    real, asked = lock.held, []

    def held_at_first(directory):
        asked.append(directory)
        if len(asked) < 3:
            raise RunError(f"{directory}: is in use by process 1 on here")
        return real(directory)

    monkeypatch.setattr(jobs, "POLL", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(jobs.lock, "held", held_at_first)
        assert run.run().state == "finished"
    assert len(asked) >= 3
    with monkeypatch.context() as patch, lock.held(other.run_dir):
        patch.setattr(jobs, "await_free", lambda run_dir: None)
        ending = other.run()
    assert ending.state == "unavailable"
    assert "is in use by process" in ending.reason


def test_the_state_of_keras_is_cleared_after_the_last_graph_has_been_traced(monkeypatch):
    """A run that fails early leaves a thread in which the graph of a step is traced."""
    tracing, begun, waited_for = [], threading.Event(), threading.Event()

    class Tracing(threading.Thread):
        """A thread that ends when something waits for its end."""

        def run(self):
            begun.set()
            waited_for.wait()

        def join(self, timeout=None):
            waited_for.set()
            super().join(timeout)

    def work():
        Tracing(name=f"{stepping.TRACING}_0").start()
        begun.wait()
        assert stepping.is_tracing()
        raise RunError("init_from: the state is missing")

    monkeypatch.setattr(keras.backend, "clear_session", lambda: tracing.append(stepping.is_tracing()))
    try:
        assert ending_of(work).state == "failed"
    finally:
        waited_for.set()
    assert tracing == [False]


def test_an_error_of_a_child_is_its_ending(tmp_path, training, children):
    ending = Children().run(training("run", config=str(tmp_path / "none.yaml")))
    assert ending.state == "failed"
    assert "no such file" in ending.reason


def test_the_output_of_a_child_goes_to_its_log(tmp_path, computation, children):
    job = dataclasses.replace(computation("piece", "logging:warning", msg="hello"), log=str(tmp_path / "log"))
    assert Children().run(job) == Ending("finished")
    assert "hello" in (tmp_path / "log").read_text()


def test_an_unreachable_tpu_is_distinguished_from_wrong_settings(training):
    ending = training("run", "runtime.strategy=tpu", "runtime.tpu=local").run()
    assert ending.state == "unavailable"
    assert ending.reason.startswith("runtime.strategy: the TPU 'local' cannot be reached")
    assert training("run", "batch_size=4000").run().state == "failed"


def test_a_damaged_directory_does_not_count_as_a_failed_run(tmp_path, training):
    """The pool stops and records nothing, so that the run counts once the directory is repaired."""
    run = training("run")
    directory = tmp_path / "runs" / "run"
    directory.mkdir(parents=True)
    (directory / "config.yaml").write_text((tmp_path / "config.yaml").read_text())
    (directory / "metrics.csv").write_text("step,epoch,seconds,J\n")
    (directory / "status.json").write_text("garbage")
    ending = run.run()
    assert ending.state == "unavailable"
    assert "status.json: is damaged" in ending.reason


@pytest.mark.parametrize(("written", "progress"), [("0.25", 0.25), ("", 0.0), ("0.2x", 0.0)])
def test_the_progress_of_a_computation_is_read_from_its_file(computation, written, progress):
    job = computation("piece")
    assert job.progress() == 0
    with open(job.progress_file, "w") as file:
        file.write(written)
    assert job.progress() == progress
