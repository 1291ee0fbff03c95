"""The registry of rules, its rows in the test tables, and rules and primitives from outside of the package."""

import inspect
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Literal

import helpers
import keras
import pytest
from processes import Command

from neural_alignment import alignments, layers, losses
from neural_alignment.alignments import RULES, Symmetric, TrainedAlignment, networkwise_rules, primitives, register
from neural_alignment.serialization import serializable

ROOT = Path(__file__).parent.parent.parent


def test_every_rule_has_a_row_in_the_test_table():
    missing = set(RULES) - set(helpers.RULE_TABLE)
    assert not missing, f"add a row to RULE_TABLE in tests/helpers.py for {', '.join(sorted(missing))}"
    assert set(helpers.RULE_TABLE) <= set(RULES)


def test_every_primitive_has_a_row_in_the_test_table():
    found = {name for name, each in inspect.getmembers(primitives, inspect.isfunction) if not name.startswith("_")}
    missing = found - set(helpers.PRIMITIVES) - {"angle"}
    assert not missing, f"add a row to PRIMITIVES in tests/helpers.py for {', '.join(sorted(missing))}"
    assert set(helpers.PRIMITIVES) <= found


def test_every_rule_can_be_imported_from_the_package():
    for rule in RULES.values():
        assert getattr(alignments, rule.__name__) is rule
    assert set(networkwise_rules()) == {"align_zero", "align_ada", "dfa", "drtp", "last_layer"}


def redefined(bases, name, value=None):
    """Returns a class that a user defines under the name of a class of the package."""
    attributes = {} if value is None else {"__annotations__": {"rule": Literal[value]}, "rule": value}
    return type(bases)(name, (bases,), {"__module__": __name__, "__qualname__": name, **attributes})


@pytest.mark.parametrize(
    ("decorator", "kind", "taken"),
    [
        (register, redefined(TrainedAlignment, "Symmetric", "my_symmetric"), Symmetric),
        (serializable, redefined(keras.layers.Layer, "Dense"), layers.Dense),
        (serializable, redefined(keras.losses.Loss, "SquaredError"), losses.SquaredError),
    ],
)
def test_a_class_does_not_replace_another_of_the_same_name(decorator, kind, taken):
    """Keras would make a layer with the new rule of a layer with the old one when it copies a model."""
    before, name = dict(RULES), kind.__name__
    place = f"{taken.__module__}.{name}"
    with pytest.raises(ValueError, match=rf"Received {__name__}.{name}, and {place} is registered. Example: My{name}"):
        decorator(kind)
    assert dict(RULES) == before
    assert keras.saving.get_registered_object(f"neural_alignment>{name}") is taken


def test_a_class_that_is_defined_again_replaces_the_previous_one(monkeypatch):
    monkeypatch.setitem(RULES, "my_rule", None)
    monkeypatch.delitem(RULES, "my_rule")
    for _ in range(2):
        rule = register(redefined(TrainedAlignment, "MyRule", "my_rule"))
        assert RULES["my_rule"] is rule
        assert keras.saving.get_registered_object("neural_alignment>MyRule") is rule
    monkeypatch.delitem(keras.saving.get_custom_objects(), "neural_alignment>MyRule")


RUN = {
    "epochs": 1,
    "batch_size": 32,
    "max_steps": 3,
    "data": {"source": "digits"},
    "model": {"name": "fc", "hidden": [8]},
    "alignment": {"rule": "shrinking", "quartic": 0.5},
    "optimization": {
        "forward": {"name": "momentum", "learning_rate": 0.1},
        "backward": {"name": "momentum", "learning_rate": 0.1},
    },
    "evaluation": {"probe_examples": 0},
    "logging": {"tensorboard": False},
}

SEARCH = {"config": "run.yaml", "trials": 2, "space": {"alignment.quartic": {"log_uniform": [0.1, 1.0]}}}


WORKS_EVERYWHERE = """
import outside
import json, jsonschema
from neural_alignment import alignments, config
from neural_alignment.papers.two_routes.compute import taxonomy
from neural_alignment.search import plan
from neural_alignment.training.describe import describe

rule = alignments.from_config({"rule": "shrinking", "quartic": 0.5})
assert rule == outside.Shrinking(quartic=0.5)
loaded = config.load("run.yaml")
assert loaded.rules == [rule]
jsonschema.validate(json.load(open("run.yaml")), config.json_schema())
print(describe(loaded))
search = plan.load("search.yaml")
plan.check(search, loaded)
try:
    plan.check(plan.load("wrong.yaml"), loaded)
except config.ConfigError as error:
    print(error)
assert {row["primitive"] for row in taxonomy.table_1()} == {"decay", "amp", "null", "sparse", "self", "angle"}
assert "shrinking" not in {row["rule"] for row in taxonomy.table_2()}
"""

TRAINS = """
from neural_alignment.training import run
run.train(loaded, "run")
"""

INSTALLED = """
from neural_alignment.alignments import RULES
assert "outside" in sys.modules and "shrinking" in RULES
"""

WITHOUT_A_ROW = """
import helpers
print(sorted(set(RULES) - set(helpers.RULE_TABLE)), "shrinking" in helpers.RULE_CONFIGS)
"""

LOADED_BEFORE = """
from neural_alignment import config
assert config.load("run.yaml", ["alignment={rule: symmetric, self_: 1.0, decay: 1.0}"]).rules
"""


@pytest.fixture
def outside(tmp_path):
    """A folder with the module `outside` and the configurations `run.yaml`, `search.yaml` and `wrong.yaml`."""
    shutil.copy(ROOT / "tests" / "shrinking_rule.py", tmp_path / "outside.py")
    (tmp_path / "run.yaml").write_text(json.dumps(RUN))
    (tmp_path / "search.yaml").write_text(json.dumps(SEARCH))
    (tmp_path / "wrong.yaml").write_text(json.dumps(SEARCH).replace("quartic", "quarticc"))
    return tmp_path


def assert_described(text):
    """Fails unless the output of `WORKS_EVERYWHERE` has the rule and the misspelled key of `wrong.yaml`."""
    assert "shrinking: quartic 0.5" in text
    assert "quarticc" in text


@pytest.mark.exhaustive
def test_a_rule_and_a_primitive_of_an_installed_package_work_everywhere(outside):
    """The package is found by its entry point; its rule lacks a row in the test table."""
    helpers.install_plugin(outside, "outside")
    paths = [str(outside), str(ROOT), str(ROOT / "tests")]
    code = f"import sys; sys.path[:0] = {paths!r}\n{INSTALLED}{WITHOUT_A_ROW}{WORKS_EVERYWHERE}{TRAINS}"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=outside, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[0] == "['shrinking'] False"
    assert_described(result.stdout)


@pytest.mark.exhaustive
def test_a_rule_and_a_primitive_that_are_registered_after_a_configuration_work_everywhere(outside):
    before = f"import os, sys; os.chdir({str(outside)!r}); sys.path.insert(0, {str(outside)!r})\n"
    files = {"errors": outside / "errors.txt", "output": outside / "output.txt"}
    arguments = ["train", "run.yaml", "--run-dir", "run"]
    process = Command(arguments, {}, before=before + LOADED_BEFORE + WORKS_EVERYWHERE, **files)
    assert process.wait() == 0, process.errors
    assert_described(files["output"].read_text())
