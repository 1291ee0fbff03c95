"""The structure of the package: imports point one way, and TensorFlow is imported only when it is needed."""

import ast
import collections
import json
import re
import subprocess
import sys
from pathlib import Path

import keras
import pytest
from helpers import for_each

from neural_alignment.alignments import RULES, Feedback
from neural_alignment.data import SOURCES
from neural_alignment.layers import Dense
from neural_alignment.losses import LOSSES
from neural_alignment.models import MODELS
from neural_alignment.models.activations import tanh_relu

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "neural_alignment"

ORDER = [
    *(
        "quiet",
        "processors",
        "errors",
        "mistakes",
        "terminal",
        "plugins",
        "paths",
        "files",
        "shipped",
        "options",
        "registry",
        "serialization",
        "keras_internals",
        "operations",
    ),
    *("initialization", "alignments", "layers", "models", "data", "losses", "optimization", "config", "training"),
    *("reporting", "plots", "jobs", "compare", "search", "papers", "command_options", "cli"),
]
"""A room may import rooms before it, and itself."""


def imported(path: Path) -> set[str]:
    """Returns the full names that a module imports, functions' own imports included."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def rooms_of(path: Path) -> set[str]:
    """Returns the rooms of the package that a module imports."""
    parts = [name.split(".") for name in imported(path) if name.startswith("neural_alignment.")]
    return {part[1] for part in parts}


def modules(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.py"))


@for_each("path", modules(PACKAGE))
def test_imports_point_one_way(path):
    room = path.relative_to(PACKAGE).with_suffix("").parts[0]
    if room in ("__init__", "analysis"):
        assert rooms_of(path) <= {room}
        return
    allowed = {*ORDER[: ORDER.index(room) + 1], "analysis"}
    assert rooms_of(path) <= allowed


def test_optimizers_import_nothing_of_the_package():
    for path in modules(ROOT / "optimizers"):
        assert not any(name.startswith("neural_alignment") for name in imported(path)), path


SHARED = {
    "Array",  # Short names of NumPy's and TensorFlow's arrays, in many modules.
    "Tensor",
    "Arrays",  # Arrays by name, in `jobs` and in `analysis`, which imports nothing of the package.
    "LinearMap",  # In `analysis` the protocol of the class in `operations`.
}
"""Public names that several modules define, with the same meaning."""


def test_no_public_name_of_a_class_has_two_meanings():
    modules_of = collections.defaultdict(list)
    for path in [*modules(PACKAGE), *modules(ROOT / "optimizers")]:
        for node in ast.parse(path.read_text()).body:
            name = getattr(node, "name", "") if isinstance(node, ast.ClassDef) else ""
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                name = node.targets[0].id  # An alias of a type is capitalised like a class; a constant is not.
            if name[:1].isupper() and not name.isupper():
                modules_of[name].append(str(path.relative_to(ROOT)))
    assert {name: paths for name, paths in modules_of.items() if len(paths) > 1 and name not in SHARED} == {}


def run_python(code: str, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *arguments, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
    )


def test_the_import_and_the_help_do_not_import_tensorflow():
    code = """
import sys, neural_alignment
from typer.testing import CliRunner
from neural_alignment.cli import app
assert CliRunner().invoke(app, ["--help"]).exit_code == 0
assert CliRunner().invoke(app, ["train", "--help"]).exit_code == 0
print(sorted({"tensorflow", "keras", "numpy"} & set(sys.modules)))
"""
    result = run_python(code)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]"


@pytest.fixture
def saved_model(tmp_path):
    """The path of a saved model with an aligned layer."""
    inputs = keras.Input((4,))
    outputs = keras.layers.Activation(tanh_relu)(Dense(3, alignment=Feedback())(inputs))
    keras.Model(inputs, outputs).save(tmp_path / "model.keras")
    return str(tmp_path / "model.keras")


@pytest.mark.exhaustive
@pytest.mark.parametrize("imports", ["neural_alignment, keras", "neural_alignment, optimizers, keras"])
def test_the_import_is_enough_to_load_a_model(imports, saved_model):
    """Also if Keras is first imported by one of our own modules, which is then not finished."""
    result = run_python(f"import {imports}; print(keras.models.load_model({saved_model!r}).layers[1].alignment)")
    assert "rule='feedback'" in result.stdout, result.stderr


def test_without_tensorflow_the_import_names_the_extras():
    hide = """
import importlib.util
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "tensorflow" else real(name, *rest)
"""
    result = run_python(f"{hide}\nimport neural_alignment")
    assert result.returncode != 0
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: TensorFlow is not installed.")
    assert all(extra in last for extra in ("cpu", "gpu", "tpu"))


def test_another_backend_of_keras_is_refused_before_the_import_of_keras(tmp_path):
    (tmp_path / "keras.json").write_text('{"backend": "torch"}')
    home = f"import os; os.environ |= {{'KERAS_HOME': {str(tmp_path)!r}, 'KERAS_BACKEND': ''}}"
    jax = "import os; os.environ['KERAS_BACKEND'] = 'jax'"
    imported = "import sys, types; sys.modules['keras'] = types.ModuleType('keras')"
    for setting, statement, backend in (
        (jax, "import neural_alignment.layers", "jax"),
        (home, "import neural_alignment; neural_alignment.Dense", "torch"),
        (home, "import neural_alignment, keras", "torch"),
        (jax, f"{imported}; import neural_alignment", "jax"),
    ):
        result = run_python(f"{setting}; {statement}")
        assert result.returncode != 0
        last = result.stderr.strip().splitlines()[-1]
        assert last.startswith(
            f"ImportError: neural_alignment needs the TensorFlow backend of Keras. Received '{backend}'"
        )
    for text in ('{"backend": "tensorflow"}', "{", "[]"):  # Keras finds fault with the last one itself.
        (tmp_path / "keras.json").write_text(text)
        result = run_python(f"{home}; import importlib.util, neural_alignment; importlib.util.find_spec('keras')")
        assert result.returncode == 0, result.stderr


def test_the_command_line_uses_tensorflow_whatever_backend_of_keras_the_user_has_chosen(tmp_path):
    (tmp_path / "keras.json").write_text('{"backend": "jax"}')
    home = f"import os, sys; os.environ['KERAS_HOME'] = {str(tmp_path)!r}"
    command = "sys.argv[1:] = ['schema']; from neural_alignment import cli; cli.program()"
    for backend in ("torch", ""):
        result = run_python(f"{home}; os.environ['KERAS_BACKEND'] = {backend!r}; {command}")
        assert result.returncode == 0, result.stderr
        assert "properties" in json.loads(result.stdout)


def test_all_rules_public_names_and_layers_are_found_after_plain_keras(saved_model):
    """Keras on its own does not know the layers, and must not import modules named in a file."""
    code = f"""
import keras
try:
    keras.models.load_model({saved_model!r})
except Exception as error:
    print("Could not locate class 'Dense'" in str(error))
import sys
print([name for name in sys.modules if name.startswith("neural_alignment")])
from neural_alignment.alignments import from_config
print([from_config({{"rule": rule}}).rule for rule in ("align_zero", "align_ada", "dfa", "last_layer", "feedback")])
import neural_alignment as na
print([getattr(na, name) for name in na.__all__] and "all")
print(keras.models.load_model({saved_model!r}).layers[1].alignment)
"""
    result = run_python(code)
    refused, modules, rules, names, alignment = result.stdout.strip().splitlines()
    assert refused == "True", result.stderr
    assert modules == "[]"
    assert "'dfa'" in rules, result.stderr
    assert names == "all", result.stderr
    assert "rule='feedback'" in alignment, result.stderr


def test_nothing_is_pickled():
    for path in [*modules(PACKAGE), *modules(ROOT / "optimizers")]:
        assert not imported(path) & {"pickle", "dill", "cloudpickle", "joblib", "shelve"}, path


GENERAL = [*modules(PACKAGE / "config"), PACKAGE / "training" / "distribution.py"]
"""Modules that work with every rule, model, loss and data source alike."""


def named(path: Path) -> set[str]:
    """Returns the names that a module imports, and the words of its strings, docstrings excluded."""
    tree = ast.parse(path.read_text())
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    strings = [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose
    ]
    return {word for text in strings for word in re.findall(r"\w+", text)} | {
        name.split(".")[-1] for name in imported(path)
    }


@pytest.mark.parametrize("path", GENERAL, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_rule_model_loss_or_source_is_known_by_name(path):
    registries = (RULES, MODELS, LOSSES, SOURCES)
    known = {name for registry in registries for name in registry}
    known |= {options.__name__ for registry in registries for options in registry.values()}
    known |= {options.builder.__name__ for options in MODELS.values()}
    assert not named(path) & known


def test_the_check_for_names_finds_them():
    assert {"half_squared_error", "cross_entropy"} <= named(PACKAGE / "losses.py")
    assert "fc" in named(PACKAGE / "models" / "__init__.py")
