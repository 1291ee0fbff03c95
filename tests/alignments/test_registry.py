"""The registry of rules, its rows in the test tables, and rules and primitives from outside of the package."""

import inspect
import json
import subprocess
import sys
from pathlib import Path

import helpers
import pytest

from neural_alignment import alignments
from neural_alignment.alignments import RULES, networkwise_rules, primitives

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


OUTSIDE = '''
"""A rule and a primitive as a user would write them."""

from typing import Literal

import tensorflow as tf

from neural_alignment.alignments import TrainedAlignment, primitives, register
from neural_alignment.alignments.schedules import Weight


def quartic(backward_kernel):
    """Fourth power of the backward kernel: sum B^4."""
    return tf.reduce_sum(backward_kernel**4)


quartic.__module__ = primitives.__name__
primitives.quartic = quartic


@register
class Shrinking(TrainedAlignment):
    """R = quartic P_quartic."""

    rule: Literal["shrinking"] = "shrinking"
    quartic: Weight

    def __call__(self, view):
        return self.weight("quartic", view) * primitives.quartic(view.backward_kernel)
'''

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
    "logging": {"tensorboard": False},
}

SEARCH = {"config": "run.yaml", "trials": 2, "space": {"alignment.quartic": {"log_uniform": [0.1, 1.0]}}}


@pytest.fixture
def outside(tmp_path):
    """Runs code in a new process, in a folder with the module `outside` and the configuration `run.yaml`."""
    (tmp_path / "outside.py").write_text(OUTSIDE)
    (tmp_path / "run.yaml").write_text(json.dumps(RUN))
    (tmp_path / "search.yaml").write_text(json.dumps(SEARCH))
    (tmp_path / "wrong.yaml").write_text(json.dumps(SEARCH).replace("quartic", "quarticc"))

    def run(code):
        path = f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]\n"
        result = subprocess.run(
            [sys.executable, "-c", path + code], capture_output=True, text=True, cwd=tmp_path, check=False
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    return run


LOADED_BEFORE = """
from neural_alignment import config
assert config.load("run.yaml", ["alignment={rule: symmetric, self_: 1.0, decay: 1.0}"]).rules
"""


@pytest.mark.parametrize("before", ["", LOADED_BEFORE], ids=["first", "after a configuration"])
def test_a_rule_and_a_primitive_from_outside_work_everywhere(outside, before):
    code = f"""
{before}
import outside
import json, jsonschema
from neural_alignment import alignments, config
from neural_alignment.papers.two_routes.compute import taxonomy
from neural_alignment.search import plan
from neural_alignment.training import run
from neural_alignment.training.describe import describe

rule = alignments.from_config({{"rule": "shrinking", "quartic": 0.5}})
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
assert {{row.name for row in taxonomy.table_1()}} == {{"decay", "amp", "null", "sparse", "self_", "angle"}}
assert "shrinking" not in {{row.rule for row in taxonomy.table_2()}}
run.train(loaded, "run")
"""
    text = outside(code)
    assert "shrinking: quartic 0.5" in text
    assert "quarticc" in text


def test_the_rules_of_an_installed_package_are_found(outside, tmp_path):
    metadata = tmp_path / "outside-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: outside\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[neural_alignment.plugins]\noutside = outside\n")
    code = """
from neural_alignment.cli import main
sys.argv[1:] = ["describe", "run.yaml"]
main()
"""
    assert "shrinking: quartic 0.5" in outside(code)


def test_a_rule_without_a_row_fails_by_name(outside):
    code = f"""
sys.path.insert(0, {str(ROOT / "tests")!r})
import outside, helpers
from neural_alignment.alignments import RULES
print(sorted(set(RULES) - set(helpers.RULE_TABLE)), "shrinking" in helpers.RULE_CONFIGS)
"""
    assert outside(code).strip() == "['shrinking'] False"
