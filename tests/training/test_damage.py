"""A damaged run directory ends in the correct result, or in one line that names the damaged file."""

import hashlib
import os
import random
import shutil
import signal

import pytest

from neural_alignment import config as configuration
from neural_alignment.errors import Diverged, InputError, RunError, Stopped
from neural_alignment.papers import plans
from neural_alignment.training import distribution, run, setup, stepping

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
    "checkpoints": {"every_steps": 3},
}
STEPS = 1437 // 256
STOP = STEPS + 3
CELL = plans.Cell("plan.yaml", "fc", {}, (), (0,))


def config(**changes):
    return configuration.parse(configuration.merge(PLAN, changes))


class Runs:
    """One finished run and one that SIGTERM stopped in its second epoch."""

    def __init__(self, folder):
        self.folder = folder
        self.prepared = run._prepare(config())
        self._initial = [variable.numpy() for variable in self._variables()]
        (folder / "plan.yaml").write_text(configuration.dump(config()))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(run, "_prepare", self.prepare)
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

    def _variables(self):
        model = self.prepared[3]
        optimizers = [model.optimizer, *model.optimizer.optimizers]
        return [*model.weights, *(variable for optimizer in optimizers for variable in optimizer.variables)]

    def prepare(self, plan):
        """Stands in for `run._prepare`: the same data and model, with the initial values of the run."""
        if run.essence(plan) != run.essence(config()):
            raise AssertionError("another run is prepared")
        for variable, value in zip(self._variables(), getattr(self, "_initial", []), strict=True):
            variable.assign(value)
        return self.prepared

    def state(self):
        """Returns a checksum of all that a step changes."""
        return hashlib.sha256(b"".join(variable.numpy().tobytes() for variable in self._variables())).hexdigest()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return Runs(tmp_path_factory.mktemp("damage"))


@pytest.fixture
def copied(runs, tmp_path, monkeypatch):
    """Returns a copy of the finished or the stopped run; data and model are prepared once for all."""
    monkeypatch.setattr(run, "_prepare", runs.prepare)

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


DAMAGES = [(delete, 1), (empty, 1), (halve, 1), (garbage, 1), (change_one_byte, 60)]
"""A damage, and how often it is drawn."""


def restored(runs, patch):
    """Lets a resumed run end where its training would begin; its result is what it would go on from."""

    def stub(self, stop, progress):
        self.means.put_back()
        return self.step, runs.state(), self.means._kept, self.metrics.rows()

    patch.setattr(run._Training, "run", stub)


def resume(path):
    result = run.train(config(), path, resume=True)
    return (result.metrics, result.layers) if isinstance(result, run.Result) else result


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


def names(line, file):
    """Whether a line names a file; a state of a checkpoint is named without the endings of its files."""
    if "\n" in line:
        return False
    return str(file) in line or (file.name.startswith("ckpt-") and str(file).partition(".")[0] in line)


@pytest.mark.parametrize("kind", ["stopped", "finished"])
def test_each_damage_of_each_file_ends_in_the_correct_result_or_in_one_line_that_names_it(
    runs, copied, monkeypatch, tmp_path, kind
):
    (tmp_path / "configs").mkdir()
    shutil.copy(runs.folder / "plan.yaml", tmp_path / "configs")
    path = copied(kind)
    # Training and the evaluation of a sound model are tested elsewhere.
    if kind == "stopped":
        restored(runs, monkeypatch)
    monkeypatch.setattr(setup, "load_data", lambda plan: runs.prepared[1])

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
    before = files_of(path)
    assert len(before) >= 11
    draw = random.Random(0)
    wrong, seen = [], {"correct": 0, "named": 0}
    for name in before:
        for damage, times in DAMAGES:
            for _ in range(times):
                for command in commands:
                    damage(path / name, state := random.Random(draw.random()))
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
                    del state
                    shutil.rmtree(path)
                    copied(kind)
    assert not wrong, "\n".join(map(str, wrong))
    assert min(seen.values()) > 50
