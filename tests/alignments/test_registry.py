"""The registry of rules, its rows in the test tables, and rules and primitives from outside of the package."""

import ast
import contextlib
import enum
import importlib.util
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Literal

import helpers
import keras
import numpy as np
import pytest
import tensorflow as tf
from processes import Command

from neural_alignment import alignments, layers, losses
from neural_alignment.alignments import (
    RULES,
    DirectFeedback,
    Symmetric,
    TrainedAlignment,
    layerwise_rules,
    networkwise_rules,
    primitives,
    register,
)
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


def test_a_rule_without_a_method_is_refused():
    """A method `call`, as in a layer of Keras, is a likely slip."""

    class Slipped(TrainedAlignment):
        rule: Literal["slipped"] = "slipped"

        def call(self, view):
            return tf.reduce_sum(view.backward_kernel)

    before, message = dict(RULES), r"^`__call__\(self, view\)` must be defined: it returns R_l\. Received Slipped"
    with pytest.raises(ValueError, match=message):
        register(Slipped)
    assert dict(RULES) == before
    with pytest.raises(NotImplementedError, match=message.removeprefix("^")):
        layers.Dense(2, alignment=Slipped())(np.ones((4, 3), np.float32), training=True)


def test_every_rule_can_be_imported_from_the_package():
    for rule in RULES.values():
        assert getattr(alignments, rule.__name__) is rule
        assert rule.__name__ in dir(alignments)
    with pytest.raises(AttributeError, match="has no attribute 'Symetric'"):
        alignments.Symetric  # noqa: B018


def redefined(bases, name, value=None):
    """Returns a class that a user defines under the name of a class of the package."""
    attributes = {} if value is None else {"__annotations__": {"rule": Literal[value]}, "rule": value}
    return type(bases)(name, (bases,), {"__module__": __name__, "__qualname__": name, "__doc__": "Mine.", **attributes})


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
        rule = register(redefined(Symmetric, "MyRule", "my_rule"))
        assert RULES["my_rule"] is rule
        assert keras.saving.get_registered_object("neural_alignment>MyRule") is rule
    monkeypatch.delitem(keras.saving.get_custom_objects(), "neural_alignment>MyRule")


class Side(enum.Enum):
    LEFT = "left"
    RIGHT = "right"


def test_a_rule_with_fields_that_json_writes_otherwise_can_be_loaded(monkeypatch, tmp_path):
    for registry, name in ((RULES, "ranged"), (keras.saving.get_custom_objects(), "neural_alignment>Ranged")):
        monkeypatch.setitem(registry, name, None)  # So that it is removed at the end.
        monkeypatch.delitem(registry, name)

    @register
    class Ranged(Symmetric):
        rule: Literal["ranged"] = "ranged"
        span: tuple[float, float] = (0.0, 1.0)
        names: frozenset[str] = frozenset()
        side: Side = Side.LEFT
        spans: dict[str, tuple[int, int]] | None = None

    weights = {"self_": 0.1, "decay": {"kind": "linear", "value": 0.1, "rate": 0.1}}
    rule = Ranged(**weights, span=(0.0, 2.0), names=frozenset("ab"), side=Side.RIGHT, spans={"a": (1, 2)})
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3, alignment=rule)])
    model.save(tmp_path / "model.keras")
    assert keras.models.load_model(tmp_path / "model.keras").layers[0].alignment == rule
    assert keras.models.clone_model(model).layers[0].alignment == rule
    with pytest.raises(ValueError, match=r"^Ranged: side: .*; found 'up'"):
        Ranged.from_config({**rule.get_config(), "side": "up"})


TABLES = (RULES, helpers.RULE_TABLE, layerwise_rules, networkwise_rules)


def module_of(path):
    """Returns the module of a test file, under the name that pytest gives it."""
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def reads(function, table, module):
    """Whether the syntax tree of a function contains a table, such as `RULES` or `alignments.RULES`."""
    nodes = [*ast.walk(function)]
    found = [getattr(module, node.id, None) for node in nodes if isinstance(node, ast.Name)]
    for node in nodes:
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            found.append(getattr(getattr(module, node.value.id, None), node.attr, None))
    return any(each is table for each in found)


def functions_of_all_rules():
    """Yields the tests that read a table of all rules and are not parametrised."""
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        if not re.search(r"\bRULES\b|\bRULE_TABLE\b|wise_rules\b", text := path.read_text()):
            continue
        for node in ast.parse(text).body:
            if not isinstance(node, ast.FunctionDef) or node.decorator_list or not node.name.startswith("test_"):
                continue
            runs = {each.arg for each in node.args.args} <= {"tmp_path", "monkeypatch"}
            if runs and any(reads(node, table, module_of(path)) for table in TABLES):
                yield getattr(module_of(path), node.name)


BESIDE_THE_CLASS = {"test_every_rule_has_a_section_with_its_picture", "test_the_matrix_contains_each_group"}
"""The tests of the documentation and of the steps on a TPU, which a new rule needs in addition to its class."""


@pytest.mark.parametrize(("kind", "weights"), [(Symmetric, {"self_": 0.9, "decay": 1.1}), (DirectFeedback, {})])
def test_a_rule_is_one_class_and_one_row_with_its_documentation_and_tpu_steps(kind, weights, tmp_path, monkeypatch):
    """Every test that looks at all rules is run with one rule more."""
    monkeypatch.setitem(helpers.RULE_TABLE, "added", helpers.RuleRow(weights))
    for registry, name in ((RULES, "added"), (keras.saving.get_custom_objects(), "neural_alignment>Added")):
        monkeypatch.setitem(registry, name, None)  # So that it is removed at the end.
        monkeypatch.delitem(registry, name)
    register(redefined(kind, "Added", "added"))
    ran = []
    for number, test in enumerate(functions_of_all_rules()):
        (tmp_path / str(number)).mkdir()
        lacks = pytest.raises(AssertionError) if test.__name__ in BESIDE_THE_CLASS else contextlib.nullcontext()
        with monkeypatch.context() as patch, lacks:
            known = {"tmp_path": tmp_path / str(number), "monkeypatch": patch}
            test(**{name: known[name] for name in inspect.signature(test).parameters})
        ran.append(test.__name__)
    assert {*ran} > BESIDE_THE_CLASS


ADDED = """
import sys
import types
from pathlib import Path
from typing import Literal

import tensorflow as tf

from neural_alignment.alignments import Feedback, NetworkRule, Symmetric, register


@register
class NovelTrained(Symmetric):
    'Mine.'
    rule: Literal["novel_trained"] = "novel_trained"


@register
class NovelFixed(Feedback):
    'Mine.'
    rule: Literal["novel_fixed"] = "novel_fixed"


@register
class NovelNetwork(NetworkRule):
    'Mine.'
    rule: Literal["novel_network"] = "novel_network"

    def forward(self, model, kept, batch):
        sources = [variable.value for variable in model.trainable_variables]
        with tf.GradientTape() as tape:
            tape.watch(sources)
            outputs = model(batch.inputs, training=True)
        return outputs, lambda upstream: tape.gradient(outputs, sources, output_gradients=upstream)


rows = "'novel_trained': RuleRow({'self_': 0.9, 'decay': 1.1}), 'novel_fixed': RuleRow(), 'novel_network': RuleRow(),"
before, table, after = Path("tests/helpers.py").read_text().partition("RULE_TABLE = {")
sys.modules["helpers"] = types.ModuleType("helpers")
exec(before + table + rows + after, vars(sys.modules["helpers"]))
"""


@pytest.mark.exhaustive
def test_the_rows_of_added_rules_pass_in_every_test(tmp_path):
    """One rule that trains B, one that does not, and one for a whole network."""
    (tmp_path / "novel.py").write_text(ADDED)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "novel", "-p", "no:cacheprovider", "-k", "novel", "tests"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    assert result.returncode == 0, result.stdout
    assert int(re.search(r"(\d+) passed", result.stdout)[1]) > 50


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
