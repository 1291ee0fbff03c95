"""A run directory is one process's at a time, survives a full disk, and loses nothing to `force`."""

import json
import os
import resource
import signal
from pathlib import Path

import killed_runs
import pytest
import tensorflow as tf
from prepared_run import PreparedRuns

from neural_alignment import config as configuration
from neural_alignment import files
from neural_alignment.errors import RunError, Stopped
from neural_alignment.training import lock, run, stepping
from neural_alignment.training.checkpoints import CheckpointStore
from neural_alignment.training.metrics import MetricsFile

BASE = {
    "epochs": 1,
    "batch_size": 256,
    "data": {"source": "digits"},
    "model": {"name": "fc", "hidden": []},
    "optimization": {"forward": {"name": "momentum", "learning_rate": 0.02}},
    "logging": {"tensorboard": False},
    "checkpoints": {"every_steps": 2},
}
STEPS = 1437 // 256


def config(**changes):
    return configuration.parse(configuration.merge(BASE, changes))


@pytest.fixture(scope="module", autouse=True)
def prepared():
    """Prepares data and model once for runs of one configuration."""
    with PreparedRuns().in_use():
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run without an interruption."""
    path = tmp_path_factory.mktemp("runs") / "whole"
    run.train(config(), path)
    return path


# A full disk.


def limited(patch, owner, name, at=1, size=100):
    """Lets the kernel refuse files of more than `size` bytes while a function runs for the `at`-th time."""
    original = getattr(owner, name)
    calls = []

    def call(*args, **kwargs):
        calls.append(name)
        if len(calls) != at:
            return original(*args, **kwargs)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            return original(*args, **kwargs)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    patch.setattr(owner, name, call)


@pytest.mark.parametrize(
    ("owner", "name", "at", "file", "step"),
    [
        (CheckpointStore, "save", 3, "ckpt-4", 2),  # The first call is that of step 0, which has nothing to save.
        (MetricsFile, "append", 2, "metrics.csv.partial", STEPS),
        (run.RunDirectory, "save_model", 1, "", STEPS),
    ],
    ids=["checkpoint", "metrics", "model"],
)
def test_a_full_disk_is_one_line_and_leaves_what_was_saved(monkeypatch, tmp_path, whole, owner, name, at, file, step):
    path = tmp_path / "run"
    with monkeypatch.context() as patch:
        limited(patch, owner, name, at)
        with pytest.raises(Stopped) as error:
            run.train(config(), path)
    line = str(error.value)
    assert "File too large" in line
    assert "saved before is complete: free some space; continue with --resume" in line
    assert line.startswith(str(path))
    assert file in line
    assert "\n" not in line
    assert json.loads((path / "status.json").read_text())["state"] == "failed"
    assert tf.train.latest_checkpoint(str(path / "checkpoints" / "last")).endswith(f"ckpt-{step}")
    left = [entry.name for entry in path.rglob("*")]
    assert not [entry for entry in left if "partial" in entry or "temp" in entry or "lock" in entry], left
    assert {entry.partition(".")[0] for entry in left if entry.startswith("ckpt")} == {f"ckpt-{step}"} | (
        set() if file == "ckpt-4" or file.startswith("metrics") else {f"ckpt-{STEPS}"}
    )
    run.train(config(), path, resume=True)
    assert killed_runs.differences(whole, path) == []


def test_a_disk_that_fills_up_is_told_and_the_run_goes_on_once_there_is_space(small_disk, monkeypatch, whole):
    path = small_disk / "run"
    original = CheckpointStore.save

    def fill(self, name):
        if int(self._model.optimizer.iterations) == 4:
            with open(small_disk / "filler", "wb", buffering=0) as file:
                while True:
                    try:
                        file.write(bytes(4096))
                    except OSError:
                        break
        return original(self, name)

    with monkeypatch.context() as patch:
        patch.setattr(CheckpointStore, "save", fill)
        with pytest.raises(Stopped, match="No space left on device; everything saved before is complete"):
            run.train(config(), path)
    assert tf.train.latest_checkpoint(str(path / "checkpoints" / "last")).endswith("ckpt-2")
    (small_disk / "filler").unlink()
    run.train(config(), path, resume=True)
    assert killed_runs.differences(whole, path) == []


def test_other_errors_of_the_file_system_are_not_taken_for_a_full_disk(tmp_path):
    with pytest.raises(FileNotFoundError), files.full_disk_reported("x"):
        (tmp_path / "none").read_text()
    # TensorFlow has one class of error for a full disk and for a full memory.
    with pytest.raises(tf.errors.ResourceExhaustedError), files.full_disk_reported("x"):
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")


# One process at a time.


@pytest.fixture
def holder():
    """Holds a directory from another process; call it with the directory to get the process id."""
    children = []

    def start(path):
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            with lock.held(str(path)):
                os.write(writing, b"held")
                signal.pause()
            os._exit(0)
        children.append(child)
        assert os.read(reading, 4) == b"held"
        return child

    yield start
    for child in children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_second_process_is_refused_and_a_killed_one_leaves_no_lock(tmp_path, holder, monkeypatch):
    path = tmp_path / "run"

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(stepping.Stepper, "__call__", stop)
        with pytest.raises(KeyboardInterrupt):
            run.train(config(), path)
    pid = holder(path)
    before = {entry: entry.read_bytes() for entry in path.rglob("*") if entry.is_file()}
    for options in ({}, {"resume": True}, {"force": True}):
        with pytest.raises(RunError, match=rf"run: is in use by process {pid} on {os.uname().nodename}; wait until"):
            run.train(config(), path, **options)
    assert {entry: entry.read_bytes() for entry in path.rglob("*") if entry.is_file()} == before
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert (path / lock.NAME).exists()
    run.train(config(), path, resume=True)
    assert not (path / lock.NAME).exists()


def test_a_lock_file_that_its_holder_removes_meanwhile_is_made_anew(tmp_path, monkeypatch):
    original, calls = lock.fcntl.flock, []

    def flock(descriptor, operation):
        original(descriptor, operation)
        calls.append(descriptor)
        if len(calls) == 1:
            (tmp_path / lock.NAME).unlink()

    monkeypatch.setattr(lock.fcntl, "flock", flock)
    with lock.held(str(tmp_path)):
        assert len(calls) == 2
        # Not the file that is gone, which locks no process out.
        with pytest.raises(RunError, match="is in use by process"), lock.held(str(tmp_path)):
            pass


def test_a_lock_file_that_is_a_link_is_not_written_through(tmp_path):
    (tmp_path / "precious").write_text("precious")
    (tmp_path / lock.NAME).symlink_to(tmp_path / "precious")
    with pytest.raises(RunError, match="cannot be locked"), lock.held(str(tmp_path)):
        pass
    assert (tmp_path / "precious").read_text() == "precious"


def test_a_lock_file_that_is_a_fifo_is_named(tmp_path):
    os.mkfifo(tmp_path / lock.NAME)
    message = f"^{tmp_path / lock.NAME}: is not a regular file but a FIFO, a socket or a device; remove it$"
    with pytest.raises(RunError, match=message), lock.held(str(tmp_path)):
        pass
    assert (tmp_path / lock.NAME).is_fifo()


class Clock:
    """A clock that advances on request or while a process waits; living processes give heartbeats meanwhile."""

    def __init__(self):
        self.time = 1e9

        self.alive = []

    def __call__(self):
        return self.time

    def wait(self):
        self.time += lock.SETTLE
        for each in self.alive:
            each.beat()


@pytest.fixture
def lease(tmp_path):
    """Makes leases on one directory that share a clock."""
    clock = Clock()

    def make(settle=clock.wait):
        return lock.Lease(str(tmp_path / lock.NAME), clock, settle)

    make.clock = clock
    make.path = tmp_path / lock.NAME
    return make


def test_a_lease_whose_holder_lives_is_refused_and_one_of_a_dead_holder_is_waited_for(lease, caplog):
    first, second = lease(), lease()
    first.acquire()
    lease.clock.alive = [first]
    lease.clock.time += lock.STALE - 1
    remedy = "wait until it has ended, or choose another directory"
    with pytest.raises(RunError, match=rf"is in use by process {os.getpid()} on .*; {remedy}$"):
        second.acquire()
    assert f"{lock.STALE - 1:.0f} s" not in caplog.text
    assert "taken over after 1 s without a heartbeat" in caplog.text
    lease.clock.alive = []
    began = lease.clock.time
    second.acquire()
    assert lock.STALE <= lease.clock.time - began <= lock.STALE + 2 * lock.SETTLE


def test_who_lost_its_lease_does_not_take_it_back(lease):
    first, second = lease(), lease()
    first.acquire()
    lease.clock.time += lock.STALE
    second.acquire()
    first.beat()  # It was asleep, and must not take back the lease of another process.
    with pytest.raises(lock.Lost, match="took it over"):
        first.check()
    first.release()
    assert lease.path.exists()
    second.check()
    second.release()
    assert not lease.path.exists()


def test_of_two_that_take_a_lease_at_the_same_moment_one_gets_it(lease):
    second = lease()

    def both():
        lease.path.unlink(missing_ok=True)  # The other saw no lease either, and writes after this one.
        second.acquire()

    first = lease(settle=both)
    with pytest.raises(lock.Lost):
        first.acquire()
    second.check()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"time": "soon"}', '{"time": 1e300}', "null"])
def test_a_lease_that_says_nothing_sensible_is_stale(lease, content):
    lease.path.write_text(content)
    lease().acquire()


def test_a_run_on_a_remote_file_system_is_trained_and_resumed(monkeypatch, whole, tmp_path):
    clock = Clock()
    monkeypatch.setattr(lock.Lease.__init__, "__defaults__", (clock, clock.wait))
    acquire = lock.Lease.acquire

    def note(self):
        acquire(self)
        clock.alive.append(self)

    monkeypatch.setattr(lock.Lease, "acquire", note)
    path = f"ram://{tmp_path.name}/run"
    original = stepping.Stepper.__call__

    def stop(self, limit):
        if int(self._model.optimizer.iterations) == 4:
            # Another process would be refused now.
            with pytest.raises(RunError, match="is in use by process"):
                run.train(config(), path, resume=True)
            raise KeyboardInterrupt
        return original(self, limit)

    with monkeypatch.context() as patch:
        patch.setattr(stepping.Stepper, "__call__", stop)
        with pytest.raises(KeyboardInterrupt):
            run.train(config(), path)
    clock.alive.clear()
    assert not tf.io.gfile.exists(f"{path}/{lock.NAME}")
    run.train(config(), path, resume=True)
    local = tmp_path / "run"
    for folder, _, names in tf.io.gfile.walk(path):
        (local / folder[len(path) :].strip("/")).mkdir(parents=True, exist_ok=True)
        for name in names:
            tf.io.gfile.copy(f"{folder.rstrip('/')}/{name}", str(local / folder[len(path) :].strip("/") / name))
    assert killed_runs.differences(whole, local) == []
    run.train(config(epochs=2), path, force=True)


def test_a_process_that_lost_its_lease_writes_nothing_more(monkeypatch, tmp_path):
    monkeypatch.setattr(lock.Lease.__init__, "__defaults__", (lambda: 1e9, lambda: None))
    path = f"ram://{tmp_path.name}/run"
    original = stepping.Stepper.__call__

    def robbed(self, limit):
        files.write_whole(f"{path}/{lock.NAME}", json.dumps({"token": "x", "time": 1e9, "pid": 7, "host": "other"}))
        taken.beat()
        return original(self, limit)

    taken = None
    acquire = lock.Lease.acquire

    def note(self):
        nonlocal taken
        acquire(self)
        taken = self

    monkeypatch.setattr(lock.Lease, "acquire", note)
    monkeypatch.setattr(stepping.Stepper, "__call__", robbed)
    with pytest.raises(lock.Lost, match="process 7 on other, which took it over"):
        run.train(config(), path)
    with tf.io.gfile.GFile(f"{path}/status.json") as file:
        assert json.loads(file.read())["state"] == "running"
    assert not tf.io.gfile.glob(f"{path}/checkpoints/last/ckpt*")


# `force`.


def test_force_does_not_follow_links_out_of_the_directory(tmp_path, whole):
    path, precious = tmp_path / "run", tmp_path / "precious"
    (precious / "inner").mkdir(parents=True)
    (precious / "inner" / "thesis.tex").write_text("years of work")
    run.train(config(max_steps=1), path)
    (path / "kernels").symlink_to(precious)
    (path / "checkpoints" / "old").symlink_to(precious / "inner")
    (path / "model.keras").unlink()
    (path / "model.keras").symlink_to(precious / "inner" / "thesis.tex")
    run.train(config(), path, force=True)
    assert (precious / "inner" / "thesis.tex").read_text() == "years of work"
    assert killed_runs.differences(whole, path) == []


def test_tensorflows_own_removal_would_have_followed_the_link(tmp_path):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.tex").write_text("years of work")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "link").symlink_to(tmp_path / "precious")
    with pytest.raises(tf.errors.OpError):
        tf.io.gfile.rmtree(str(tmp_path / "run"))
    assert not (tmp_path / "precious" / "thesis.tex").exists()


@pytest.mark.parametrize("status", ['{"state": "open"}', '{"status": "running"}', "[]", "running"])
def test_force_leaves_alone_what_only_looks_like_a_run(tmp_path, status):
    (tmp_path / "status.json").write_text(status)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(RunError, match=r"contains other files, .* no run with a readable status\.json"):
        run.train(config(), tmp_path, force=True)
    assert {entry.name for entry in tmp_path.iterdir()} == {"status.json", "checkpoints"}


# Names.

WRONG_NAMES = ["", ".", "..", "../x", "a/../../x", "/etc", "a//b", "a/", "gs://x/y", "a\0b", "a\nb", "a\u202eb", "a\\b"]


@pytest.mark.parametrize("name", WRONG_NAMES)
@pytest.mark.parametrize("root", ["runs", "gs://bucket/runs"])
def test_names_cannot_leave_their_folder(name, root):
    with pytest.raises(RunError) as error:
        files.confined(root, name)
    assert "\n" not in str(error.value)


def test_a_link_cannot_lead_out_of_the_folder(tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "runs" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "runs" / "inside").symlink_to(tmp_path / "runs")
    with pytest.raises(RunError, match="by a symbolic link"):
        files.confined(str(tmp_path / "runs"), "link/x")
    assert files.confined(str(tmp_path / "runs"), "inside/x") == str(tmp_path / "runs" / "inside" / "x")


@pytest.mark.parametrize("name", ["resnet18", "two_routes/resnet18/symmetric", "größe", "a b", "..a", "x..y"])
def test_ordinary_names_are_below_their_folder(name, tmp_path):
    assert files.confined(str(tmp_path), name) == str(Path(tmp_path) / name)
    assert files.confined("gs://bucket/runs", name) == f"gs://bucket/runs/{name}"
