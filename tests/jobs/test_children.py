"""Child processes that stay: the same results as new ones, no memory that grows, no process left behind."""

import dataclasses
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from helpers import exhaustive_unless
from recorder import Recorder, awaited, beside

from neural_alignment.errors import Stopped
from neural_alignment.jobs import children as child_processes
from neural_alignment.jobs.children import Children, StayingChildren
from neural_alignment.jobs.engines.processes import Processes


@pytest.fixture
def staying(children):
    """Children that stay, which are ended after the test."""
    found = StayingChildren()
    yield found
    found.end()


def processes():
    """Returns the ids of the child processes of this process."""
    return {process.pid for process in multiprocessing.active_children()}


def variables(job):
    """Returns the arrays in the last checkpoint of a run: weights, optimizers, means."""
    reader = tf.train.load_checkpoint(tf.train.latest_checkpoint(str(Path(job.run_dir, "checkpoints", "last"))))
    arrays = {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}
    return {name: array for name, array in arrays.items() if isinstance(array, np.ndarray) and array.dtype != object}


def rows(job):
    """Returns the lines of `metrics.csv` without the seconds."""
    lines = [line.split(",") for line in Path(job.run_dir, "metrics.csv").read_text().splitlines()]
    place = lines[0].index("seconds")
    return [line[:place] + line[place + 1 :] for line in lines]


def assert_same_run(actual, expected):
    assert rows(actual) == rows(expected)
    found, wanted = variables(actual), variables(expected)
    assert found.keys() == wanted.keys()
    assert len(wanted) > 4
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


@pytest.mark.parametrize("compared", exhaustive_unless((1, 3), (3,)))
def test_a_run_in_a_process_that_stays_is_bit_for_bit_that_of_a_new_process(training, staying, compared):
    runs = [
        training("first", "seed=2"),
        training("other", "model.hidden=[5,4]", "runtime.precision=mixed_bfloat16", "optimization.backward.name=adam"),
        training("diverged", "optimization.forward.learning_rate=1e30"),
        training("again", "seed=1"),
    ]
    states, used = [], set()
    for run in runs:
        states.append(staying.run(run, 1).state)
        used |= processes()
    assert states == ["finished", "finished", "diverged", "finished"]
    assert len(used) == 1
    alone = dataclasses.replace(runs[compared], name="alone", run_dir=f"{runs[compared].run_dir}_alone")
    assert Children().run(alone, 1).state == "finished"
    assert_same_run(runs[compared], alone)
    with pytest.raises(AssertionError):
        assert_same_run(runs[3], runs[0])


def test_no_other_job_shares_a_process(training, computation, staying):
    assert training("run").shares_process()
    for overrides in (("runtime.strategy=mirrored", "runtime.replicas=2"), ("runtime.strategy=tpu",), ("epochs=no",)):
        assert not training("run", *overrides).shares_process()
    assert not computation("piece").shares_process()
    assert staying.run(computation("piece"), 1).state == "finished"
    assert not processes()


def test_children_with_other_plugins_threads_or_gpus_are_not_used(training, staying, monkeypatch):
    made = []
    monkeypatch.setattr(child_processes, "_Child", lambda *kind: made.append(kind) or _Recorded())
    for job, threads, gpus in (
        (training("a"), 1, None),
        (training("b"), 2, None),
        (training("c", imports=["mine"]), 1, None),
        (training("d"), 1, None),
        (training("e"), 1, "0"),
        (training("f"), 1, "1"),
        (training("g"), 1, "0"),
    ):
        staying.run(job, threads, gpus)
    assert made == [(1, None), (2, None), (1, None), (1, "0"), (1, "1")]


@pytest.mark.parametrize("gpus", ["7", ""])
def test_a_child_sees_only_its_gpus(tmp_path, computation, children, gpus):
    path = tmp_path / "seen"
    code = f'printf "%s" "${{CUDA_VISIBLE_DEVICES-not set}}" > {path}'
    job = computation("piece", "subprocess:run", args=["sh", "-c", code])
    assert Children().run(job, 1, gpus).state == "finished"
    assert path.read_text() == gpus


class _Recorded:
    """Stands in for a child process that finishes every job."""

    process = multiprocessing.current_process()
    jobs = 1

    def run(self, job):
        return child_processes.Ending("finished")

    def end(self):
        """Does nothing."""


@pytest.mark.exhaustive
def test_a_child_ends_after_its_number_of_jobs_or_a_failed_job(training, staying, monkeypatch):
    monkeypatch.setattr(child_processes, "JOBS_PER_CHILD", 2)
    staying.run(training("a"), 1)
    [first] = processes()
    staying.run(training("b"), 1)
    assert not processes()
    staying.run(training("c"), 1)
    [second] = processes()
    assert second != first
    assert staying.run(training("d", "model.hidden=[1000000,1000000]"), 1).state == "failed"
    assert not processes()


def test_a_killed_child_takes_only_its_run_with_it_and_a_pool_leaves_no_process(tmp_path, training, children):
    endless = training("endless", "epochs=1000000")
    runs = [training("before"), endless, training("after")]

    def kill(over):
        status, metrics = Path(endless.run_dir, "status.json"), Path(endless.run_dir, "metrics.csv")
        if awaited(lambda: metrics.exists() and len(metrics.read_text().splitlines()) > 2, over):
            os.kill(json.loads(status.read_text())["pid"], signal.SIGKILL)

    with beside(kill):
        Processes(1).run(queue := Recorder(tmp_path, runs))
    assert [queue.endings[run.name].state for run in runs] == ["finished", "failed", "finished"]
    assert queue.endings["endless"].reason == "its process was killed by SIGKILL"
    assert not processes()


@pytest.mark.exhaustive
def test_a_waiting_child_that_was_killed_is_replaced(training, staying):
    staying.run(training("a"), 1)
    [process] = multiprocessing.active_children()
    process.kill()
    process.join()
    assert staying.run(training("b"), 1).state == "finished"


@pytest.mark.exhaustive
def test_a_stopped_pool_leaves_no_process(tmp_path, training, children):
    runs = [training("before"), training("endless", "epochs=1000000")]

    def stop(over):
        metrics = Path(runs[1].run_dir, "metrics.csv")
        if awaited(lambda: metrics.exists() and len(metrics.read_text().splitlines()) > 2, over):
            os.kill(os.getpid(), signal.SIGTERM)

    with beside(stop), pytest.raises(Stopped, match="SIGTERM"):
        Processes(1).run(Recorder(tmp_path, runs))
    assert not processes()


def test_a_command_is_terminated_together_with_the_processes_that_it_started(tmp_path):
    """One that was left alone would go on to create TPUs, for example."""
    os.mkfifo(tmp_path / "alive")
    words = ["bash", "-c", f"bash -c 'exec 9> {tmp_path}/alive; tail -f /dev/null; true'; true"]
    children, codes = Children(), []
    thread = threading.Thread(target=lambda: codes.append(children.command(words)))
    thread.start()
    with open(tmp_path / "alive") as alive:  # Waits for the inner process.
        children.terminate()
        thread.join()
        assert codes == [-signal.SIGTERM]
        assert child_processes.is_stop(codes[0])
        assert alive.read() == ""  # Returns when all processes that hold the file have ended.


SIGNALLED = """
import os, signal, sys
from neural_alignment.jobs import children
from neural_alignment.jobs.job import Computation

received = []
for number in (signal.SIGINT, signal.SIGHUP):
    signal.signal(number, lambda number, frame: received.append(signal.Signals(number).name))
children.PRELOADED.insert(0, "signals_to_all")
job = Computation("piece", "subprocess:run", {"args": ["cp", "/proc/self/status", sys.argv[1]]}, sys.argv[2])
print(children.Children().run(job, 1).state, *sorted(received))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="there is no fork server")
def test_the_fork_server_outlives_the_signals_of_the_terminal_and_its_children_accept_them(tmp_path, children):
    """The signals come while the fork server imports its modules."""
    (tmp_path / "signals_to_all.py").write_text("import os\nfor number in (2, 1):\n    os.killpg(0, number)\n")
    done = subprocess.run(
        [sys.executable, "-c", SIGNALLED, str(tmp_path / "status"), str(tmp_path / "progress")],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{os.environ['PYTHONPATH']}"},
        start_new_session=True,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("finished SIGHUP SIGINT\n", "")
    masks = dict(line.split(":\t") for line in (tmp_path / "status").read_text().splitlines())
    for name in ("SigBlk", "SigIgn"):
        assert int(masks[name], 16) & 0b11 == 0, name  # The bits of SIGHUP and SIGINT.


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_process_that_a_signal_ended_was_stopped(number):
    assert child_processes.is_stop(-number)
    assert child_processes.is_stop(128 + number)  # As a shell reports it.
    assert not child_processes.is_stop(number)


@pytest.mark.exhaustive
def test_memory_does_not_grow_with_the_number_of_runs(training, staying, monkeypatch):
    monkeypatch.setattr(child_processes, "JOBS_PER_CHILD", 21)
    sizes = []
    for number in range(20):
        staying.run(training(f"run{number}", f"seed={number}"), 1)
        [process] = processes()
        pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
        sizes.append(pages * os.sysconf("SC_PAGE_SIZE") / 2**20)
    assert sizes[-1] < sizes[4] + 40, sizes
