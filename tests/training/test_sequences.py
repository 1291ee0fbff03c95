"""A task without classes by YAML: the Add task with every rule for a whole network, and how its runs are judged."""

import functools
import json
import re
from pathlib import Path

import numpy as np
import pytest
from helpers import RULE_TABLE, exhaustive_unless, for_each
from lab import CONFIGS
from recurrent_reference import forward, update

from neural_alignment import compare
from neural_alignment import config as configuration
from neural_alignment.alignments import RULES
from neural_alignment.data import Batching
from neural_alignment.data.add_task import AddTask
from neural_alignment.errors import ConfigError, InputError
from neural_alignment.jobs.batch import Execution, Screen
from neural_alignment.jobs.engines.in_process import InProcess
from neural_alignment.search import plan as plans
from neural_alignment.training import distribution, load_model, run, setup, stepping
from neural_alignment.training.costs import backpropagation_step, layer_costs
from neural_alignment.training.describe import describe
from neural_alignment.training.metrics import MetricsFile

UNITS, EPOCHS = 4, 2
SMALL = (
    f"model.units={UNITS}",
    "epochs=2",
    "batch_size=5",
    "model.slots=5",
    "evaluation={every_epochs: 1}",
    "data={source: add_task, train_sequences: 10, test_sequences: 7, steps: 8}",
    "optimization.forward.learning_rate=0.02",
)
REFERENCES = {"normal": None, "align_ada": "align_ada", "align_zero": "align_zero", "readout_only": "last_layer"}
"""Name in the reference -> the rule; none for gradient descent."""


def loaded(rule=None, *overrides):
    chosen = () if rule is None else (f"alignment={{rule: {rule}}}",)
    return configuration.load(f"{CONFIGS}/wide_networks/add_task.yaml", (*SMALL, *chosen, *overrides))


def numpy_training(rule):
    """Returns the weights after each epoch."""
    np.random.seed(99)
    shapes = {"input_kernel": (1, UNITS), "kernel": (UNITS, UNITS), "readout": (UNITS, 1)}
    start = {name: np.random.normal(size=shape) for name, shape in shapes.items()}
    start |= {"bias": np.zeros(UNITS), "offset": np.zeros(1), "initial_state": np.zeros((5, UNITS))}
    data, p = AddTask(Batching(5, 99), 10, 7, 8), start
    states = []
    np.random.seed(99)
    for _ in range(EPOCHS):
        order, *_ = (np.random.permutation(n) for n in (10, 7, 10))
        for chosen in order.reshape(-1, 5):
            x, y = (part[chosen].astype(float) for part in data.train_split)
            gradient = update(rule, p, start, x, y, None)
            p = {name: value - 0.02 * gradient[name] for name, value in p.items()}
        states.append(p)
    return states


def weights(model):
    recurrent, readout = model.get_layer("recurrent"), model.get_layer("dense")
    return {
        **{name: getattr(recurrent, name).numpy() for name in ("input_kernel", "kernel", "bias", "initial_state")},
        "readout": readout.kernel.numpy(),
        "offset": readout.bias.numpy(),
    }


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Returns a function that trains with a rule, by its name in the reference, once."""
    place = tmp_path_factory.mktemp("sequences")
    return functools.cache(lambda name: run.train(loaded(REFERENCES[name]), place / name))


@pytest.mark.parametrize("name", exhaustive_unless(REFERENCES, ("normal", "align_ada")))
def test_a_run_is_the_training_of_numpy(trained, name):
    found, [_, expected] = weights(load_model(f"{trained(name).path}/model.keras")), numpy_training(name)
    for part, value in found.items():
        np.testing.assert_allclose(value, expected[part], rtol=1e-4, atol=1e-6, err_msg=part)
    assert np.abs(expected["kernel"] - numpy_training("normal")[1]["kernel"]).max() > 1e-5 or name == "normal"


def test_every_rule_that_takes_sequences_has_a_reference():
    assert {name for name, rule in RULES.items() if rule.takes_sequences} == {*REFERENCES.values()} - {None}


@for_each("rule", [rule for rule in RULE_TABLE if not RULES[rule].takes_sequences])
def test_another_rule_is_refused_in_one_line(rule):
    row = RULE_TABLE[rule]
    run = [f"{key}={json.dumps(value)}" for key, value in row.run.items()]
    message = f"alignment.rule: must be .*align_ada.* with model.name rnn; found '{rule}'"
    with pytest.raises(ConfigError, match=message):
        loaded(None, f"alignment={json.dumps({'rule': rule, **row.weights})}", *run)


PARTS = "trains a row of its initial state for each example of the whole batch"


def test_a_batch_that_is_divided_would_leave_rows_of_the_initial_state_untrained():
    """Row i belongs to example i of a batch. With one row there is nothing to divide."""
    with pytest.raises(ConfigError, match=f"optimization.minibatches: must be 1: rnn {PARTS}; found 5"):
        loaded(None, "optimization.minibatches=5")
    with pytest.raises(
        ConfigError, match=rf"runtime\.strategy: must have 1 replica .*: it {PARTS}, .* do not share; found 5 replicas"
    ):
        distribution.check_replicas(loaded(), 5)
    with pytest.raises(ConfigError, match=r"model\.slots: must be at most batch_size \(5\), so that.*; found 6"):
        loaded(None, "model.slots=6")
    distribution.check_replicas(loaded(None, "model.slots=1", "optimization.minibatches=5", "batch_size=25"), 5)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["loss=null"], "loss"),
        (["model.weights_seed=4294967296"], "model.weights_seed: input should be less than 4294967296; found"),
        (["loss={kind: cross_entropy}"], "model.name: must be .* for classes, the targets of loss.kind cross_entropy"),
        (["data={source: digits}"], "model.name: must be .* for classes, the targets of data.source digits.*'rnn'"),
        (["model={name: fc, hidden: [3]}"], "model.name: must be .* for sequences, the targets of data.source"),
    ],
)
def test_what_does_not_fit_sequences_is_refused_in_one_line(overrides, message):
    with pytest.raises(ConfigError, match=message):
        loaded(None, *overrides)


def test_rows_and_status_have_j_and_no_accuracy(trained):
    path = trained("normal").path
    rows, states = MetricsFile(f"{path}/metrics.csv").rows(), numpy_training("normal")
    assert [row["step"] for row in rows] == [0, 2, 4]
    assert not [name for row in rows for name in row if "top" in name]
    data = AddTask(Batching(5, 99), 10, 7, 8)
    for row, state in zip(rows[1:], states, strict=True):
        # Batches of 5 and 2, each from the first rows of the initial state.
        places = {**state, "initial_state": state["initial_state"][[0, 1, 2, 3, 4, 0, 1]]}
        errors = ((forward(places, data.test_split.inputs)[2] - data.test_split.targets) ** 2).sum(axis=(1, 2))
        assert row["J"] == pytest.approx(errors.mean(), rel=1e-4)
    with open(f"{path}/status.json") as file:
        status = json.load(file)
    assert status["J"] == pytest.approx(rows[-1]["J"], rel=1e-6)
    assert status["best_J"] == pytest.approx(min(row["J"] for row in rows[1:]), rel=1e-6)
    assert "top1" not in status


def test_the_best_state_is_that_of_the_smallest_loss(tmp_path):
    """At this rate the loss rises in the second epoch."""
    result = run.train(loaded("last_layer", "optimization.forward.learning_rate=0.6"), tmp_path / "run")
    rows = MetricsFile(f"{result.path}/metrics.csv").rows()
    assert rows[2]["J"] > rows[1]["J"]
    with open(f"{result.path}/status.json") as file:
        assert json.load(file)["best_step"] == 2
    assert [path.name for path in (tmp_path / "run" / "checkpoints" / "best").glob("*.index")] == ["ckpt-2.index"]


def test_evaluate_and_describe_know_the_task(trained):
    path = trained("align_ada").path
    found = run.evaluate(path)
    assert set(found) == {"J"}
    assert found["J"] == pytest.approx(trained("align_ada").metrics["J"], rel=1e-6)
    text = describe(loaded("align_ada"))
    assert "by align_ada, for the whole network" in text
    steps, inputs, states, outputs = 8, UNITS, UNITS * UNITS, UNITS
    model = setup.build_model(loaded("align_ada"), 1, (steps, 1), 2)
    assert [row.product for row in layer_costs(model)] == [2 * steps * (inputs + states), 2 * steps * outputs]
    # The error passes the states of all steps but the first, and the initial state, and not the inputs.
    backpropagation = 2 * steps * (2 * inputs + 3 * states + 3 * outputs)
    assert backpropagation_step(layer_costs(model), model) == backpropagation
    assert re.search(rf"(?m)^backpropagation +{backpropagation / 1e9:.4g} GFLOP per example +1\.00$", text)


class Killed(BaseException):
    """Stands for the end of a process."""


@pytest.mark.exhaustive
def test_a_resumed_run_ends_where_a_whole_one_does(trained, tmp_path, monkeypatch):
    """Killed in the second epoch, whose order is drawn after that of the first."""
    original = stepping.Stepper.__call__

    def killed(self, limit):
        if self._model.global_step == 3:
            raise Killed
        return original(self, limit)

    overrides = ("runtime.steps_per_execution=1", "checkpoints.every_steps=1")
    with monkeypatch.context() as patch:
        patch.setattr(stepping.Stepper, "__call__", killed)
        with pytest.raises(Killed):
            run.train(loaded("align_ada", *overrides), tmp_path / "run")
    assert "step" not in json.loads((tmp_path / "run" / "status.json").read_text())
    resumed = run.train(loaded("align_ada", *overrides), tmp_path / "run", resume=True)
    assert resumed.metrics["J"] == pytest.approx(trained("align_ada").metrics["J"], rel=1e-6)


@pytest.fixture
def files(tmp_path):
    """Paths of the configurations of the Add task, small, and of a classification."""
    paths = {name: tmp_path / f"{name}.yaml" for name in ("add_task", "digits")}
    paths["add_task"].write_text(configuration.dump(loaded()))
    paths["digits"].write_text((Path(CONFIGS) / "quickstart.yaml").read_text())
    return {name: str(path) for name, path in paths.items()}


def compared(configs, folder):
    return compare.Comparison(configs, [3, 4], (), str(folder), lambda path: Path(path).stem)


def test_compare_shows_the_loss(files, tmp_path):
    execution = Execution(InProcess(), Screen(print, print))
    table = compare.compare(compared([files["add_task"]], tmp_path / "runs"), str(tmp_path / "table"), execution)
    assert "| validation J |" in table
    assert (tmp_path / "table.csv").read_text().startswith("config,seed,J,")
    rows = [MetricsFile(str(tmp_path / "runs" / "add_task" / f"seed{seed}" / "metrics.csv")).rows() for seed in (3, 4)]
    mean = sum(each[-1]["J"] for each in rows) / 2
    assert f"{mean:.2f}" in table


def test_what_needs_an_accuracy_refuses_the_task_in_one_line(files, tmp_path):
    with pytest.raises(InputError, match=r"digits.yaml: its runs are judged by accuracy, those of .* by J"):
        compared([files["add_task"], files["digits"]], tmp_path).criterion()
    space = {"optimization.forward.learning_rate": {"uniform": [0.1, 0.2]}}
    plan = plans.Plan(config=files["add_task"], space=space, algorithm="random", trials=1)
    with pytest.raises(ConfigError, match=r"loss.kind: must have an accuracy, .*; found summed_squared_error"):
        plans.check(plan, loaded())
