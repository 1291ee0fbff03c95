"""A damaged run directory ends in the correct result, or in one line that names the damaged file."""

import contextlib
import hashlib
import json
import math
import os
import random
import re
import shutil
import signal
from pathlib import Path

import killed_runs
import numpy as np
import pytest
import tensorflow as tf
from event_reader import points
from helpers import exhaustive_unless
from prepared_run import PreparedRun

from neural_alignment import config as configuration
from neural_alignment import files, paths
from neural_alignment.errors import Diverged, InputError, RunError, Stopped
from neural_alignment.jobs import pieces, plans
from neural_alignment.jobs.job import Training
from neural_alignment.training import (
    checkpoints,
    distribution,
    evaluation,
    load_model,
    lock,
    run,
    setup,
    stepping,
)
from neural_alignment.training.metrics import MetricsFile
from neural_alignment.training.saved_state import SavedState

PLAN = {
    "epochs": 2,
    "batch_size": 256,
    "data": {"source": "digits"},
    "model": {"name": "fc", "hidden": [6]},
    "alignment": {"rule": "symmetric", "self_": 2e-3, "decay": 2e-3},
    "optimization": {
        "forward": {"name": "momentum", "learning_rate": 0.02},
        "backward": {"name": "adam", "learning_rate": 1e-2},
    },
    "evaluation": {"probe_examples": 8},
    "logging": {"tensorboard": True, "kernels": ["*"]},
    "checkpoints": {"every_steps": 3, "keep": 2},
}
STEPS = 1437 // 256
STOP = STEPS + 3
CELL = plans.Cell("plan.yaml", "fc", {}, (), (0,))


def config(**changes):
    return configuration.parse(configuration.merge(PLAN, changes))


class Runs(PreparedRun):
    """One finished run and one that SIGTERM stopped in its second epoch."""

    def __init__(self, folder):
        super().__init__(config())
        self.folder = folder
        (folder / "plan.yaml").write_text(configuration.dump(config()))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(run, "prepare", self.prepare)
            run.train(config(), folder / "finished" / "fc" / "seed0")
            self.evaluated = run.evaluate(folder / "finished" / "fc" / "seed0")
            original = stepping.Stepper.__call__

            def signalled(stepper, limit):
                results = original(stepper, limit)
                if stepper._model.global_step >= STOP:
                    os.kill(os.getpid(), signal.SIGTERM)
                return results

            patch.setattr(stepping.Stepper, "__call__", signalled)
            with pytest.raises(Stopped):
                run.train(config(), folder / "stopped" / "fc" / "seed0")

    def state(self):
        """Returns a checksum of all that a step changes."""
        return hashlib.sha256(b"".join(variable.numpy().tobytes() for variable in self.variables())).hexdigest()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return Runs(tmp_path_factory.mktemp("damage"))


@pytest.fixture
def copied(runs, tmp_path, monkeypatch):
    """Returns a copy of the finished or the stopped run; data and model are prepared once for all."""
    monkeypatch.setattr(run, "prepare", runs.prepare)

    def copy(kind):
        shutil.copytree(runs.folder / kind, tmp_path / kind, dirs_exist_ok=True)
        return tmp_path / kind / "fc" / "seed0"

    return copy


# Every file, every damage.


def delete(path, draw):
    path.unlink()


def empty(path, draw):
    path.write_bytes(b"")


def halve(path, draw):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def garbage(path, draw):
    path.write_bytes(draw.randbytes(200))


def change_one_byte(path, draw):
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


DAMAGES = [(delete, 1), (empty, 1), (halve, 1), (garbage, 1), (change_one_byte, 2)]
"""A damage, and how often it is drawn."""


def restored(runs, patch):
    """Lets a resumed run end where its training would begin; the result is the restored state."""

    def stub(self, stop, progress):
        self.state.take_over()
        return self.step, runs.state(), self.state._means._kept, self.state.metrics.rows()

    patch.setattr(run.RunLoop, "run", stub)


def resume(path):
    result = run.train(config(), path, resume=True)
    return (result.metrics, result.layers) if isinstance(result, run.RunResult) else result


def evaluate(path):
    return run.evaluate(path)


def table(path):
    folder = path.parent.parent
    found = CELL.read(str(folder), str(folder.parent / "configs"))
    return [(outcome.rows, [(step, list(arrays)) for step, arrays in outcome.kernels().items()]) for outcome in found]


def outcome_of(command, path):
    try:
        return repr(command(path))
    except (InputError, Diverged) as error:
        return error


def files_of(path):
    return sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file())


def contents(path):
    return {name: (path / name).read_bytes() for name in files_of(path)}


def restore(path, before):
    """Gives a directory the contents that it had before."""
    for name, content in contents(path).items():
        if name not in before:
            (path / name).unlink()
        elif content != before[name]:
            (path / name).write_bytes(before[name])
    for name in before.keys() - set(files_of(path)):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(before[name])


def names(line, file):
    """Whether a line names a file; a state of a checkpoint is named without the endings of its files."""
    if "\n" in line:
        return False
    return str(file) in line or (file.name.startswith("ckpt-") and str(file).partition(".")[0] in line)


@pytest.mark.parametrize("kind", ["stopped", pytest.param("finished", marks=pytest.mark.exhaustive)])
def test_each_damage_of_each_file_ends_in_the_correct_result_or_in_one_line_that_names_it(
    runs, copied, monkeypatch, tmp_path, kind
):
    (tmp_path / "configs").mkdir()
    shutil.copy(runs.folder / "plan.yaml", tmp_path / "configs")
    path = copied(kind)
    # Training and the evaluation of a sound model are tested elsewhere.
    if kind == "stopped":
        restored(runs, monkeypatch)
    monkeypatch.setattr(setup, "load_data", lambda plan: runs.prepared.trainer.dataset)
    models = {}

    def load_once(path):
        content = Path(path).read_bytes()
        if content not in models:
            models[content] = load_model(path)
        return models[content]

    monkeypatch.setattr(setup, "load_model", load_once)

    def weights(self, model, dataset):
        content = b"".join(weight.numpy().tobytes() for weight in model.weights)
        return {"loss": float(int(hashlib.sha256(content).hexdigest()[:8], 16))}

    monkeypatch.setattr(distribution.Distribution, "evaluate", weights)
    commands = (resume, evaluate, table)
    sound = {command: outcome_of(command, path) for command in commands}
    assert isinstance(sound[evaluate], RunError) == (kind == "stopped")
    assert not isinstance(sound[resume], Exception)
    assert not isinstance(sound[table], Exception)
    shutil.rmtree(path)
    copied(kind)
    before = contents(path)
    assert len(before) >= 11
    draw = random.Random(0)
    wrong, seen = [], {"correct": 0, "named": 0}
    for name in before:
        for damage, times in DAMAGES:
            for _ in range(times):
                for command in commands:
                    damage(path / name, random.Random(draw.random()))
                    outcome = outcome_of(command, path)
                    if str(outcome) == str(sound[command]):
                        seen["correct"] += 1
                    elif (
                        isinstance(outcome, InputError)
                        and "\n" not in str(outcome)
                        and names(str(outcome), path / name)
                    ):
                        seen["named"] += 1
                    else:
                        wrong.append((command.__name__, name, damage.__name__, outcome))
                    restore(path, before)
    assert not wrong, "\n".join(map(str, wrong))
    assert min(seen.values()) > 50


# End to end: missing and empty files are recreated.


def forget_checksums(path):
    """Leaves a run directory as versions without checksums in `status.json` wrote it."""
    status = json.loads((path / "status.json").read_text())
    for key in ("files", "checksum"):
        status.pop(key, None)
    (path / "status.json").write_text(json.dumps(status))


@pytest.fixture
def whole(runs):
    return runs.folder / "finished" / "fc" / "seed0"


def training_files(path):
    return [
        difference for difference in killed_runs.differences(*path) if not difference.startswith("the file events.out")
    ]


@pytest.mark.parametrize(
    ("name", "damage"),
    exhaustive_unless(
        [
            ("checkpoints/last/checkpoint", delete),
            ("checkpoints/best/checkpoint", empty),
            ("status.json", delete),
            ("config.yaml", empty),
        ],
        [("checkpoints/last/checkpoint", delete), ("config.yaml", empty)],
    ),
)
def test_a_stopped_run_goes_on_where_a_file_that_can_be_made_anew_is_gone(copied, whole, caplog, name, damage):
    path = copied("stopped")
    damage(path / name, None)
    run.train(config(), path, resume=True)
    assert training_files((whole, path)) == []
    [told] = [record.message for record in caplog.records if record.name.startswith("neural_alignment")]
    assert told.startswith(f"{path / name}: is missing or empty; ")


@pytest.mark.parametrize("damage", exhaustive_unless([delete, empty, halve, garbage], (delete, halve)))
def test_a_run_that_was_stopped_before_its_first_evaluation_does_not_start_again_in_silence(
    runs, copied, monkeypatch, tmp_path, damage
):
    copied("finished")
    path = tmp_path / "early"
    original = stepping.Stepper.__call__

    def signalled(stepper, limit):
        results = original(stepper, limit)
        os.kill(os.getpid(), signal.SIGTERM)
        return results

    with monkeypatch.context() as patch:
        patch.setattr(stepping.Stepper, "__call__", signalled)
        with pytest.raises(Stopped, match=r"SIGTERM at step [1-4],"):
            run.train(config(), path)
    assert [row["step"] for row in MetricsFile(str(path / "metrics.csv")).rows()] == [0]
    damage(path / "checkpoints" / "last" / "checkpoint", random.Random(0))
    restored(runs, monkeypatch)
    if damage in (delete, empty):
        assert resume(path)[0] > 0
    else:
        line = r"last/checkpoint: is damaged; remove it, and --resume uses ckpt-[1-4] beside it"
        with pytest.raises(RunError, match=line):
            resume(path)
        (path / "checkpoints" / "last" / "checkpoint").unlink()
        assert resume(path)[0] > 0


def test_a_final_model_that_is_missing_is_saved_again_from_the_last_checkpoint(copied, whole, runs):
    path = copied("finished")
    (path / "model.keras").unlink()
    with pytest.raises(RunError, match=r"model\.keras: is missing or empty; `train` .* --resume saves it again"):
        run.evaluate(path)
    run.train(config(), path, resume=True)
    assert training_files((whole, path)) == []
    assert run.evaluate(path) == pytest.approx(runs.evaluated)
    # A run whose checkpoints were removed, as those of committed results are, still has its result.
    (path / "model.keras").unlink()
    shutil.rmtree(path / "checkpoints")
    assert run.train(config(), path, resume=True).metrics["step"] == 2 * STEPS


def test_a_damaged_status_locks_nobody_out(copied, whole):
    path = copied("stopped")
    garbage(path / "status.json", random.Random(0))
    with pytest.raises(RunError, match=r"holds a run that is damaged .*--resume continues it, --force starts over"):
        run.train(config(), path)
    with pytest.raises(RunError, match=r"status\.json: is damaged; remove it, and --resume continues .*--force starts"):
        run.train(config(), path, resume=True)
    run.train(config(), path, force=True)
    assert training_files((whole, path)) == []


@pytest.mark.parametrize("status", [None, "", '{"state": "open"}'])
def test_a_folder_of_the_users_with_a_configuration_is_no_run_without_a_status(tmp_path, status):
    (tmp_path / "config.yaml").write_text(configuration.dump(config()))
    (tmp_path / "metrics.csv").write_text("a,b\n1,2\n")
    if status is not None:
        (tmp_path / "status.json").write_text(status)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for options in ({}, {"force": True}, {"resume": True}):
        with pytest.raises(RunError, match=r"contains other files, .* no run with a readable status\.json"):
            run.train(config(), tmp_path, **options)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


# Silent wrong results.


@pytest.mark.parametrize("checksums", [True, False])
def test_a_finished_run_that_lost_its_last_row_does_not_print_an_older_one(copied, checksums):
    path = copied("finished")
    if not checksums:
        forget_checksums(path)
    rows = (path / "metrics.csv").read_text().splitlines(keepends=True)
    (path / "metrics.csv").write_text("".join(rows[:-1]))
    for command in (resume, lambda path: plans.read(str(path))):
        with pytest.raises(
            RunError, match=r"metrics\.csv: is damaged: .*; restore it from a copy, or start over"
        ) as error:
            command(path)
        assert "\n" not in str(error.value)


@pytest.fixture
def rewritten(copied):
    """Returns a function that changes the final model of a run that has no checksums, and returns the run."""

    def rewrite(change):
        path = copied("finished")
        model = load_model(path / "model.keras")
        change(model)
        model.save(path / "model.keras")
        forget_checksums(path)
        return path

    return rewrite


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_model_whose_weights_are_not_finite_is_not_evaluated(rewritten, value):
    def spoil(model):
        kernel = model.get_layer("dense").kernel
        kernel.assign(np.full(kernel.shape, value))

    path = rewritten(spoil)
    with pytest.raises(
        RunError, match=r"model\.keras: the weights .*dense/kernel.* are not finite: .* diverged"
    ) as error:
        run.evaluate(path)
    assert "\n" not in str(error.value)


def test_a_model_whose_loss_is_not_finite_has_diverged(rewritten):
    def enlarge(model):
        for layer in model.layers:
            for weight in layer.trainable_weights:
                weight.assign(np.full(weight.shape, 1e38) * (1 - 2 * (np.arange(weight.shape[-1]) % 2)))

    with pytest.raises(Diverged, match=r"J .*is not finite at step 10"):
        run.evaluate(rewritten(enlarge))


def test_what_may_not_be_read_is_not_called_damaged(copied, monkeypatch):
    """Advice to remove such a file, or to start over, would destroy a sound run."""
    path = copied("finished")
    monkeypatch.setattr(paths, "problem_of_file", lambda name: "cannot be read: permission denied")
    with pytest.raises(RunError, match=r"config\.yaml: cannot be read: permission denied$"):
        run.evaluate(path)

    def refuse(*_):
        raise tf.errors.PermissionDeniedError(None, None, "metrics.csv; Permission denied")

    monkeypatch.setattr(tf.io.gfile.GFile, "read", refuse)
    with pytest.raises(RunError, match=r"metrics\.csv: cannot be read: permission denied$"):
        MetricsFile(str(path / "metrics.csv")).rows()


@pytest.mark.parametrize("checksums", [True, False])
def test_a_changed_header_is_seen_before_any_step(copied, checksums, monkeypatch):
    path = copied("stopped")
    if not checksums:
        forget_checksums(path)
        monkeypatch.setattr(MetricsFile, "fits", lambda *_: True)
    monkeypatch.setattr(stepping.Stepper, "__call__", lambda *_: pytest.fail("a step was made"))
    text = (path / "metrics.csv").read_text()
    (path / "metrics.csv").write_text(text.replace("seconds", "secunds", 1))
    with pytest.raises(RunError, match=r"metrics\.csv: is damaged"):
        run.train(config(), path, resume=True)


def test_every_changed_byte_of_the_metrics_of_an_ended_run_is_seen(copied):
    file = copied("finished") / "metrics.csv"
    content, directory = file.read_bytes(), run.RunDirectory(str(file.parent))
    status = directory.status()
    assert status["files"]["metrics.csv"] == hashlib.sha256(content).hexdigest()
    for position in range(len(content)):
        changed = bytearray(content)
        changed[position] ^= 1
        file.write_bytes(changed)
        with pytest.raises(RunError, match=r"metrics\.csv: is damaged"):
            directory.rows(status)
    file.write_bytes(content)
    assert directory.rows(status)


def test_every_changed_byte_of_a_status_is_seen(whole):
    content = (whole / "status.json").read_bytes()
    draw, sound = random.Random(0), run.RunDirectory(whole).status()
    for position in range(len(content)):
        changed = bytearray(content)
        changed[position] ^= 1 << draw.randrange(8)
        try:
            found = files.unsealed(json.loads(bytes(changed)))
        except ValueError:
            continue
        if found is not None:  # White space, or the name of the checksum itself.
            assert {key: found[key] for key in sound} == sound, position


# The configuration of a run may be edited where that changes no result.


def test_comments_and_keys_that_do_not_decide_the_result_may_be_edited(copied, runs):
    path = copied("finished")
    text = (path / "config.yaml").read_text()
    assert "strategy: auto" in text
    (path / "config.yaml").write_text("# Mine.\n" + text.replace("strategy: auto", "strategy: cpu"))
    assert resume(path)[0]["step"] == 2 * STEPS
    assert run.evaluate(path) == pytest.approx(runs.evaluated)
    (path / "config.yaml").write_text(text.replace("seed: 0", "seed: 1"))
    for command in (run.evaluate, resume, lambda path: plans.read(str(path))):
        with pytest.raises(RunError, match=r"config\.yaml: is damaged or was edited: a value differs"):
            command(path)
    (path / "config.yaml").unlink()
    resume(path)
    assert (path / "config.yaml").read_text() == text


# Damaged records of the data.


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (None, None),
        (delete, None),
        (empty, None),
        (halve, "is damaged; remove it, and --resume takes the records from the checkpoint"),
        (lambda path, draw: path.write_text(path.read_text().replace("3", "4")), "is damaged; remove it"),
        pytest.param(lambda path, _: path.write_text("[]"), "is damaged; remove it", marks=pytest.mark.exhaustive),
        pytest.param(lambda path, _: path.write_text("5"), "is damaged; remove it", marks=pytest.mark.exhaustive),
        (lambda path, draw: path.write_text('[["a", "b", "c", "d"]]'), "is damaged; remove it"),
    ],
)
def test_damaged_records_of_the_data_are_known_from_the_checkpoint(copied, runs, monkeypatch, damage, told):
    path, dataset = copied("stopped"), runs.prepared.trainer.dataset
    records = [["train-0", 3, "wrong checksum", 2]]
    met = []
    monkeypatch.setattr(type(dataset), "corrupt_state", lambda self: records)
    monkeypatch.setattr(type(dataset), "corrupt_records", property(lambda self: records))
    monkeypatch.setattr(type(dataset), "load_corrupt", lambda self, state: met.extend(state))
    with monkeypatch.context() as patch:
        calls = []

        def stop(stepper, limit):
            calls.append(limit)
            os.kill(os.getpid(), signal.SIGTERM)
            return {"loss": 1.0}

        patch.setattr(stepping.Stepper, "__call__", stop)
        shutil.rmtree(path)
        # The state is saved at the step after the first, whatever the stubbed steps do.
        patch.setattr(checkpoints.CheckpointStore, "step", lambda self, name: -1)
        with pytest.raises(Stopped):
            run.train(config(), path)
    file = path / "corrupt_records.json"
    assert json.loads(file.read_text()) == records
    if damage is not None:
        damage(file, None)
    restored(runs, monkeypatch)
    if told is None:
        resume(path)
        assert met == records
    else:
        with pytest.raises(RunError, match=f"corrupt_records.json: {told}") as error:
            resume(path)
        assert "\n" not in str(error.value)


# Files of models, arrays and trials.


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (delete, "no such file"),
        (empty, "cannot be loaded: it is damaged"),
        (halve, "cannot be loaded: it is damaged"),
        (garbage, "cannot be loaded: it is damaged"),
    ],
)
def test_a_damaged_model_file_is_called_damaged(copied, damage, told):
    path = copied("finished") / "model.keras"
    damage(path, random.Random(0))
    with pytest.raises(RunError, match=rf"model\.keras: {told}") as error:
        load_model(path)
    assert "\n" not in str(error.value)


def test_every_changed_byte_of_a_file_of_arrays_is_seen(tmp_path):
    path = tmp_path / "arrays.npz"
    arrays = {"one/forward": np.arange(6.0).reshape(2, 3), "origin": np.array("text")}
    for write in (np.savez, np.savez_compressed):
        write(path, **arrays)
        content, draw, seen = path.read_bytes(), random.Random(0), 0
        for position in range(len(content)):
            changed = bytearray(content)
            changed[position] ^= 1 << draw.randrange(8)
            path.write_bytes(changed)
            try:
                found = files.read_arrays(str(path))
            except ValueError:
                seen += 1
                continue
            assert found.keys() == arrays.keys()
            assert all(np.array_equal(found[name], arrays[name]) for name in arrays)
        assert seen > len(content) / 2


def test_a_damaged_piece_is_one_line(tmp_path):
    np.savez(tmp_path / "piece.npz", values=np.arange(100.0))
    content = bytearray((tmp_path / "piece.npz").read_bytes())
    content[200] ^= 1
    (tmp_path / "piece.npz").write_bytes(content)
    with pytest.raises(RunError, match=r"piece\.npz: is damaged: .*; remove it, and it is computed again"):
        pieces._read(str(tmp_path / "piece.npz"))


@pytest.mark.parametrize("value", exhaustive_unless(["high", None, [0.5], math.nan], ("high",)))
def test_the_status_of_a_trial_with_a_value_of_another_type_is_one_line(tmp_path, value):
    (tmp_path / "status.json").write_text(json.dumps({"state": "finished", "best_top1": value}))
    path = tmp_path / "config.yaml"
    path.write_text(configuration.dump(config()))
    ending = Training("0001", str(path), str(tmp_path)).run()
    assert ending.state == "failed"
    assert ending.reason.startswith(f"{tmp_path / 'status.json'}: is damaged: best_top1 is ")


# Power loss, and full disks.


@pytest.fixture
def order(monkeypatch):
    """Operations on files, in order: `("sync" | "move" | "name", file)`."""
    events = []

    def synced(descriptor):
        events.append(("sync", Path(os.readlink(f"/proc/self/fd/{descriptor}")).name))

    rename, record = tf.io.gfile.rename, tf.train.CheckpointManager._record_state

    def renamed(source, target, **options):
        events.append(("move", Path(target).name))
        rename(source, target, **options)

    def named(manager):
        events.append(("name", Path(manager.latest_checkpoint).name))
        record(manager)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(tf.io.gfile, "rename", renamed)
    monkeypatch.setattr(tf.train.CheckpointManager, "_record_state", named)
    return events


def test_files_are_on_the_disk_before_they_take_the_place_of_others(copied, order):
    path = copied("stopped")
    run.train(config(), path, resume=True)
    for name in ("status.json", "config.yaml", "metrics.csv", f"{2 * STEPS}.npz"):
        assert order[order.index(("move", name)) - 1] == ("sync", f"{name}.partial"), name
    at = order.index(("move", "model.keras"))
    assert ("sync", "model.partial.keras") in order[:at]
    assert order[at + 1] == ("sync", path.name)
    at, state = order.index(("name", f"ckpt-{2 * STEPS}")), f"ckpt-{2 * STEPS}"
    assert {("sync", f"{state}.index"), ("sync", f"{state}.data-00000-of-00001")} <= set(order[:at])
    assert ("sync", "checkpoint") in order[at:]


def test_a_write_that_is_cut_short_leaves_the_file_before(tmp_path, monkeypatch):
    path = tmp_path / "file"
    files.write_whole(str(path), "before")
    for name, kind in (("fsync", OSError(5, "Input/output error")), ("write", OSError(28, "No space left on device"))):

        def refuse(*_, kind=kind):
            raise kind

        with monkeypatch.context() as patch:
            patch.setattr(os, name, refuse)
            with pytest.raises(tf.errors.OpError, match=rf"file\.partial; {kind.strerror}"):
                files.write_whole(str(path), "after")
        assert path.read_text() == "before"
        assert os.listdir(tmp_path) == ["file"]
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "file.partial").symlink_to(tmp_path / "precious")
    files.write_whole(str(path), "after")
    assert (path.read_text(), (tmp_path / "precious").read_text()) == ("after", "precious")


@pytest.mark.parametrize("shared", [True, False])
def test_processes_that_write_a_shared_file_at_the_same_time_do_not_disturb_each_other(tmp_path, monkeypatch, shared):
    path, to_disk = str(tmp_path / "file"), os.fsync

    def write_beside(descriptor):
        to_disk(descriptor)
        monkeypatch.setattr(os, "fsync", to_disk)
        files.write_whole(path, "of another process", shared)

    monkeypatch.setattr(os, "fsync", write_beside)
    with contextlib.nullcontext() if shared else pytest.raises(tf.errors.NotFoundError):
        files.write_whole(path, "of this process", shared)
    assert Path(path).read_text() == ("of this process" if shared else "of another process")
    assert os.listdir(tmp_path) == ["file"]


@pytest.fixture
def filled(small_disk):
    """A disk on which nothing more can be written once it is called."""

    def fill():
        with open(small_disk / "filler", "ab", buffering=0) as file:
            for size in (4096, 1):
                while True:
                    try:
                        file.write(bytes(size))
                    except OSError:
                        break

    return fill


def test_the_final_state_is_written_even_where_the_disk_is_full_to_the_last_byte(
    copied, monkeypatch, small_disk, filled
):
    copied("stopped")
    original = checkpoints.CheckpointStore.save

    def save(self, name):
        if self._model.global_step < 3:
            return original(self, name)
        filled()
        try:
            return original(self, name)
        finally:
            filled()  # Space that the failed write has released.

    path = small_disk / "run"
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.CheckpointStore, "save", save)
        with pytest.raises(Stopped, match="No space left on device"):
            run.train(config(logging={"tensorboard": False, "kernels": []}), path)
    status = run.RunDirectory(path).status()
    assert status["state"] == "failed"
    assert "No space left on device" in status["reason"]
    assert not list(path.glob("*.partial"))


def test_while_a_run_lasts_space_is_set_aside_and_given_back_in_the_end(copied, monkeypatch, tmp_path):
    path, sizes = copied("stopped"), []
    original = stepping.Stepper.__call__

    def look(stepper, limit):
        sizes.append((path / "status.json.partial").stat().st_size)
        assert (path / lock.NAME).exists()
        return original(stepper, limit)

    monkeypatch.setattr(stepping.Stepper, "__call__", look)
    run.train(config(), path, resume=True)
    assert set(sizes) == {4096}
    assert not list(path.glob("*.partial"))
    assert run.RunDirectory(path).status()["state"] == "finished"


def test_committed_runs_are_read_as_before():
    found = [path.parent for path in Path(__file__).parents[2].glob("results/*/runs/**/status.json")]
    assert len(found) > 100
    for path in found[::8]:
        outcome = plans.read(str(path))
        assert outcome.rows
        assert outcome.diverged == (json.loads((path / "status.json").read_text())["state"] == "diverged")
        outcome.kernels()


class Killed(BaseException):
    """Stands for SIGKILL."""


def killed_at(owner, name, path, monkeypatch):
    """Resumes a run, and ends it at the call of a method as a kill would."""

    def killed(*_):
        raise Killed

    original = run.RunDirectory.write_status

    def running(self, state, *facts, **more):
        if state == "running":
            original(self, state, *facts, **more)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, killed)
        patch.setattr(run.RunDirectory, "write_status", running)
        with pytest.raises(Killed):
            run.train(config(), path, resume=True)


def test_a_changed_last_row_of_a_killed_run_is_seen(copied, whole, monkeypatch):
    """Also if its step is that of the checkpoint, as it is after most kills."""
    path = copied("stopped")
    killed_at(SavedState, "keep_best", path, monkeypatch)
    text = (path / "metrics.csv").read_text()
    *rows, last = text.splitlines()
    for column in ("top1", "J", "seconds"):
        cells = last.split(",")
        cells[rows[0].split(",").index(column)] = "0.9999999"
        (path / "metrics.csv").write_text("\n".join([*rows, ",".join(cells), ""]))
        with pytest.raises(RunError, match=r"metrics\.csv: is damaged: it was changed after the state of step"):
            run.train(config(), path, resume=True)
    (path / "metrics.csv").write_text(text)
    run.train(config(), path, resume=True)
    assert training_files((whole, path)) == []


def test_a_row_that_was_lost_with_a_kill_is_the_one_that_was_measured(copied, monkeypatch):
    path = copied("stopped")
    killed_at(MetricsFile, "append", path, monkeypatch)
    evaluations = []
    original = evaluation.Evaluator.row

    def counted(*arguments):
        evaluations.append(1)
        return original(*arguments)

    monkeypatch.setattr(evaluation.Evaluator, "row", counted)
    run.train(config(), path, resume=True)
    assert [row["step"] for row in MetricsFile(str(path / "metrics.csv")).rows()] == [0, STEPS, 2 * STEPS]
    assert evaluations == []


@pytest.mark.parametrize("name", ["status.json", "metrics.csv", "model.keras", "checkpoints/last/checkpoint"])
def test_a_fifo_among_the_files_is_refused_and_not_read(copied, name):
    path = copied("finished")
    (path / name).unlink()
    os.mkfifo(path / name)
    for use in (run.evaluate, lambda path: run.train(config(), path, resume=True)):
        with pytest.raises(RunError, match=rf"{name}: is not a regular file but a FIFO"):
            use(path)


def test_a_best_state_that_cannot_be_read_is_named(copied, whole):
    path = copied("stopped")
    (data,) = (path / "checkpoints" / "best").glob("*.data-*")
    garbage(data, random.Random(0))
    with pytest.raises(RunError, match=r"best/ckpt-\d+: cannot be read .*or remove .*best to continue"):
        run.train(config(), path, resume=True)
    shutil.rmtree(path / "checkpoints" / "best")
    assert run.train(config(), path, resume=True).metrics["step"] == 2 * STEPS


def test_a_final_model_that_cannot_be_saved_again_is_said_to_be_lost(copied, caplog):
    path = copied("finished")
    garbage(path / "model.keras", random.Random(0))
    shutil.rmtree(path / "checkpoints")
    remedy = r"model\.keras: is damaged; restore it from a copy, or start over with --force"
    with pytest.raises(RunError, match=remedy):
        run.evaluate(path)
    run.train(config(), path, resume=True)
    assert re.search(remedy, caplog.text)


def test_the_row_of_the_step_of_a_state_may_be_there_or_not(tmp_path):
    metrics = MetricsFile(str(tmp_path / "metrics.csv"))
    before = metrics.digest()
    assert metrics.fits(before, 0)
    metrics.append({"step": 0, "J": 1.5})
    assert metrics.fits(before, 0)
    digest = metrics.digest()
    assert metrics.fits(digest, 5)
    metrics.append({"step": 5, "J": 0.5})
    assert metrics.fits(digest, 5)
    text = (tmp_path / "metrics.csv").read_text()
    assert not metrics.fits(digest, 6)
    (tmp_path / "metrics.csv").write_text(text.replace("1.5", "1.6"))
    assert not metrics.fits(digest, 5)
    (tmp_path / "metrics.csv").write_text(f"{text}6,0.1\n")
    assert not metrics.fits(digest, 5)
    (tmp_path / "metrics.csv").write_text("step,J\n")
    assert not metrics.fits(digest, 5)


def test_a_run_that_is_killed_twice_at_one_step_goes_on(copied, whole, monkeypatch):
    """The second process writes the row that the first one has measured."""
    path = copied("stopped")
    for owner, name in ((MetricsFile, "append"), (SavedState, "keep_best")):
        killed_at(owner, name, path, monkeypatch)
    run.train(config(), path, resume=True)
    assert training_files((whole, path)) == []


# Going back to a kept state.


def kept(path, name="last"):
    return checkpoints.kept_steps(str(path / "checkpoints" / name))


def aside(path):
    """Names of the files in `set_aside`, without the folder of the step."""
    return sorted(name.partition("/")[2].partition("/")[2] for name in files_of(path) if name.startswith("set_aside/"))


def without_aside(path, whole):
    shutil.rmtree(path / "set_aside")
    return training_files((whole, path))


BACK = [("finished", 9), ("stopped", 6), ("stopped", STEPS)]


@pytest.mark.parametrize(("kind", "step"), exhaustive_unless(BACK, (BACK[0], BACK[2])))
def test_a_run_that_goes_back_ends_as_if_it_had_not(copied, whole, caplog, kind, step):
    path = copied(kind)
    assert kept(path) == ([9, 10] if kind == "finished" else [6, 8])
    if step == STEPS:  # The state of the best row is kept as well, and older than the last ones.
        assert kept(path, "best") == [STEPS]
    before = {name: (path / name).read_bytes() for name in files_of(path)}
    run.train(config(), path, resume_from=step)
    assert (
        f"{path}: goes back to step {step}; files of later steps are moved to {path}/set_aside/after-{step}"
        in caplog.text
    )
    moved = {name: (path / "set_aside" / f"after-{step}" / name).read_bytes() for name in aside(path)}
    assert moved["metrics.csv"] == before["metrics.csv"]
    if kind == "finished":
        assert moved["model.keras"] == before["model.keras"]
        assert moved["kernels/10.npz"] == before["kernels/10.npz"]
        assert moved["last/ckpt-10.index"] == before["checkpoints/last/ckpt-10.index"]
    assert without_aside(path, whole) == []
    assert points(path).keys() == points(whole).keys()
    assert [at for at, _ in points(path)["loss/J"]] == [STEPS, 2 * STEPS]
    changed = [name for name in moved if name.startswith("events.out.tfevents.")]
    assert all(moved[name] == before[name] for name in changed)
    steps = [int(line.split(b",")[0]) for line in moved["metrics.csv"].splitlines()[1:]]
    assert bool(changed) == (max(steps) > step)


def test_going_back_twice_overwrites_nothing(copied, whole):
    path = copied("finished")
    for _ in range(2):
        run.train(config(), path, resume_from=9)
    assert sorted(each.name for each in (path / "set_aside").iterdir()) == ["after-9", "after-9-2"]
    assert without_aside(path, whole) == []


def test_going_back_to_the_last_state_is_a_resume(copied, whole):
    path = copied("finished")
    assert run.train(config(), path, resume_from=2 * STEPS).metrics["step"] == 2 * STEPS
    assert not (path / "set_aside").exists()
    path = copied("stopped")
    run.train(config(), path, resume_from=STOP)
    assert training_files((whole, path)) == []


def test_a_state_that_is_not_kept_is_one_line_that_names_those_that_are(copied, tmp_path):
    path = copied("stopped")
    before = {name: (path / name).read_bytes() for name in files_of(path)}
    for step in (3, 7, 9, 1000):
        with pytest.raises(RunError, match=rf"the state of step {step} is not saved; steps of saved states: 5, 6, 8;"):
            run.train(config(), path, resume_from=step)
    assert {name: (path / name).read_bytes() for name in files_of(path)} == before
    with pytest.raises(RunError, match="contains no run that could go back to step 3"):
        run.train(config(), tmp_path / "none", resume_from=3)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("damage", exhaustive_unless([delete, empty, halve, garbage], (delete, halve)))
def test_a_damaged_last_state_is_done_without_by_going_back(copied, whole, damage):
    path = copied("stopped")
    [data] = (path / "checkpoints" / "last").glob("ckpt-8.data-*")
    damage(data, random.Random(0))
    with pytest.raises(RunError, match=r"last/ckpt-8.*go back to a saved state with --resume-from 6, or start over"):
        run.train(config(), path, resume=True)
    [data] = (path / "checkpoints" / "last").glob("ckpt-6.data-*")
    content = data.read_bytes()
    halve(data, None)
    with pytest.raises(RunError, match=r"last/ckpt-6: cannot be read \(.*\); restore"):
        run.train(config(), path, resume_from=6)
    data.write_bytes(content)
    run.train(config(), path, resume_from=6)
    assert without_aside(path, whole) == []


def killed_after(operations, path, monkeypatch):
    """Goes back, and is killed after so many operations on files; returns whether it was."""
    left = [operations]

    def count(original):
        def counted(*arguments, **options):
            original(*arguments, **options)
            left[0] -= 1
            if not left[0]:
                raise Killed

        return counted

    with monkeypatch.context() as patch:
        for owner, name in ((files, "move"), (files, "write_whole"), (files, "copy"), (tf.io.gfile, "makedirs")):
            patch.setattr(owner, name, count(getattr(owner, name)))
        patch.setattr(run, "_finish", lambda *_: None)
        try:
            run.train(config(), path, resume_from=9)
        except Killed:
            return True
    return False


@pytest.mark.exhaustive
def test_a_kill_at_any_moment_of_going_back_is_made_good_by_resume(runs, copied, whole, monkeypatch):
    def finished():
        """Puts the finished run there, as if its last state were the best."""
        path = copied("finished")
        best = path / "checkpoints" / "best"
        shutil.rmtree(best)
        best.mkdir()
        for file in (path / "checkpoints" / "last").glob("ckpt-10.*"):
            shutil.copy(file, best)
        checkpoints.write_named(str(best / "checkpoint"), [10])
        return path

    path, operations, halfway = finished(), 1, 0
    assert not killed_after(10**6, path, monkeypatch)
    expected = aside(path)
    assert {"metrics.csv", "model.keras", "kernels/10.npz", "last/ckpt-10.index", "best/ckpt-10.index"} <= {*expected}
    shutil.rmtree(path)
    while killed_after(operations, finished(), monkeypatch):
        if "going_back" in run.RunDirectory(path).status():
            halfway += 1
            if halfway % 8:
                with monkeypatch.context() as patch:
                    restored(runs, patch)
                    step, _, _, rows = run.train(config(), path, resume=True)
                assert (step, [row["step"] for row in rows], kept(path)) == (9, [0, STEPS], [9])
            else:
                run.train(config(), path, resume=True)
            assert aside(path) == expected
            assert [each.name for each in (path / "set_aside").iterdir()] == ["after-9"]
            if not halfway % 8:
                assert all(
                    difference.startswith("the file checkpoints/best") for difference in without_aside(path, whole)
                )
        shutil.rmtree(path)
        operations += 1
    assert halfway > 12


@pytest.mark.parametrize("keep", [1, 4])
def test_another_number_of_states_may_be_kept_from_now_on(copied, whole, keep):
    path = copied("stopped")
    run.train(config(checkpoints={"keep": keep}), path, resume=True)
    assert kept(path) == {1: [10], 4: [6, 8, 9, 10]}[keep]
    assert killed_runs.weights(path).keys() == killed_runs.weights(whole).keys()
    assert killed_runs.rows(path) == killed_runs.rows(whole)


def test_a_kill_between_the_removal_of_a_state_and_the_file_that_names_it_is_made_good(copied, whole):
    path = copied("stopped")
    last = path / "checkpoints" / "last"
    checkpoints.write_named(str(last / "checkpoint"), [3, 6, 8])
    (last / "ckpt-3.data-00000-of-00001").write_bytes(b"half")
    run.train(config(), path, resume=True)
    assert training_files((whole, path)) == []
    assert kept(path) == [9, 10]
    (last / "checkpoint").unlink()
    assert kept(path) == [9, 10]
