"""Plugins: modules that the user names with `--import` or that an installed package names; files cannot name any."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import jsonschema
import keras
import pytest
from helpers import install_plugin

from neural_alignment import alignments, cli, data, load_model, losses, models, plots, plugins
from neural_alignment.alignments import primitives
from neural_alignment.errors import PluginError, RunError
from neural_alignment.jobs.engines.tpu import TPU
from neural_alignment.jobs.job import Training, decode, encode
from neural_alignment.papers.two_routes.compute import taxonomy

ROOT = Path(__file__).parent.parent

PAGE = (ROOT / "docs" / "plugins.md").read_text()
RULE, *PARTS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.M | re.S)
"""The examples of the page: a rule, and a model with a layer, a loss and a data source."""

PLUGIN = "\n\n".join([(ROOT / "tests" / "shrinking_rule.py").read_text(), *PARTS])

RUN = {
    "epochs": 1,
    "batch_size": 4,
    "data": {"source": "stripes"},
    "model": {"name": "halved", "units": 3},
    "weight_decay": 0.1,
    "loss": {"kind": "absolute_error"},
    "alignment": {"rule": "shrinking", "quartic": 0.5},
    "optimization": {
        "forward": {"name": "momentum", "learning_rate": 0.1},
        "backward": {"name": "momentum", "learning_rate": 0.1},
    },
    "evaluation": {"batch_size": 8, "probe_examples": 4},
    "logging": {"tensorboard": False},
}
PLAIN = {
    **{key: value for key, value in RUN.items() if key != "loss"},
    "data": {"source": "digits"},
    "model": {"name": "fc", "hidden": [4]},
    "alignment": {"rule": "feedback"},
    "optimization": {"forward": {"name": "momentum", "learning_rate": 0.1}},
    "max_steps": 2,
}
SEARCH = {"config": "run.yaml", "trials": 1, "space": {"alignment.quartic": {"log_uniform": [0.1, 1.0]}}}
NAMED = {
    "rule": (alignments.RULES, "shrinking"),
    "model": (models.MODELS, "halved"),
    "loss": (losses.LOSSES, "absolute_error"),
    "source": (data.SOURCES, "stripes"),
}
CLASSES = ("Shrinking", "Halving", "AbsoluteDifference")
IMPORT = ("--import", "my_plugin")


def forget():
    """Undoes the import of the plugin, as in a new process."""
    for name in ("my_plugin", "my_rules"):
        sys.modules.pop(name, None)
    plugins._imported.clear()
    plugins._installed.clear()
    for registry, name in NAMED.values():
        registry.pop(name, None)
    for name in CLASSES:
        keras.saving.get_custom_objects().pop(f"neural_alignment>{name}", None)
    vars(primitives).pop("quartic", None)


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    """Runs the command line in a new folder with the plugin and its configurations, each time as in a new process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(plots, "png", lambda figure: b"")  # It takes as long as some of these runs.
    (tmp_path / "my_plugin.py").write_text(PLUGIN)
    (tmp_path / "run.yaml").write_text(json.dumps(RUN))
    (tmp_path / "search.yaml").write_text(json.dumps(SEARCH))

    def call(*arguments):
        forget()
        monkeypatch.setattr(sys, "argv", ["neural-alignment", *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
        output = capsys.readouterr()
        return end.value.code or 0, output.out, output.err

    yield call
    forget()


def succeeds(result):
    code, output, error = result
    assert code == 0, error
    return output


def fails(result, message):
    """Checks that a command failed with one line that contains a message, and did not import the plugin."""
    code, _, error = result
    assert (code, error.count("\n")) == (2, 1), error
    assert message in error
    assert "my_plugin" not in sys.modules


def test_commands_read_configurations_with_names_of_an_imported_module(run, tmp_path):
    assert "shrinking: quartic 0.5" in succeeds(run("describe", "run.yaml", *IMPORT))
    schema = json.loads(succeeds(run("schema", *IMPORT)))
    jsonschema.Draft202012Validator(schema).validate(RUN)
    schema = json.loads(succeeds(run("schema")))
    assert not jsonschema.Draft202012Validator(schema).is_valid(RUN)
    assert "search directory" in succeeds(run("search", "search.yaml", *IMPORT))
    status = json.loads((tmp_path / "runs" / "search" / "trials" / "0001" / "status.json").read_text())
    assert (status["state"], status["imports"]) == ("finished", ["my_plugin"])
    # The commands of the papers read configurations too.
    assert "two_routes/1" in succeeds(run("table", *IMPORT))
    # A new primitive and a new rule have no row in the tables of the paper.
    assert {row["primitive"] for row in taxonomy.table_1()} == {"decay", "amp", "null", "sparse", "self", "angle"}
    assert "shrinking" not in {row["rule"] for row in taxonomy.table_2()}
    fails(run("describe", "run.yaml"), "must be one of")


def test_a_run_names_its_plugins_and_needs_them_to_be_read_again(run, tmp_path):
    succeeds(run("train", "run.yaml", "--run-dir", "here", *IMPORT))
    path = tmp_path / "here"
    assert json.loads((path / "status.json").read_text())["imports"] == ["my_plugin"]
    needed = "here: the run needs modules that are not imported; give --import my_plugin"
    fails(run("evaluate", "here"), needed)
    fails(run("train", "run.yaml", "--run-dir", "here", "--resume"), needed)
    fails(run("plot", "here"), needed)
    assert "top1" in succeeds(run("evaluate", "here", *IMPORT))
    assert "summary.png" in succeeds(run("plot", "here", *IMPORT))
    (path / "model.keras").rename(tmp_path / "model.keras")
    succeeds(run("train", "run.yaml", "--run-dir", "here", "--resume", *IMPORT))  # From its checkpoint.
    loaded, again = (load_model(file) for file in (tmp_path / "model.keras", path / "model.keras"))
    for first, second in zip(loaded.weights, again.weights, strict=True):
        assert (first.numpy() == second.numpy()).all()
    assert type(loaded.get_layer("halving")).__module__ == "my_plugin"
    forget()
    with pytest.raises(RunError, match="classes of modules that are not imported; import them, or give --import my"):
        load_model(tmp_path / "model.keras")
    assert "my_plugin" not in sys.modules
    # A file that names another module is no reason to import it.
    (tmp_path / "evil.py").write_text("import os; os.mkdir('pwned')")
    for text in ('{"imports": ["evil"]}', '{"imports": "evil"}', '{"imports": [["evil"]]}'):
        (path / "status.json").write_text(text)
        for command in (["evaluate", "here"], ["train", "run.yaml", "--run-dir", "here", "--resume"]):
            assert run(*command, *IMPORT)[0] == 2
    for line in ('imports: ["evil"]', 'import: "evil"', 'model: {name: "evil:Model"}'):
        (tmp_path / "evil.yaml").write_text(f"base: run.yaml\n{line}\n")
        assert run("describe", "evil.yaml", *IMPORT)[0] == 2
    assert "evil" not in sys.modules
    assert not (tmp_path / "pwned").exists()


def test_the_example_of_the_guide_runs(run, tmp_path):
    [commands] = re.findall(r"^```bash\n(.*?)^```$", PAGE, re.M | re.S)
    (tmp_path / "my_rules.py").write_text(RULE)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    for line in commands.splitlines():
        words = shlex.split(line)[1:]
        few = ("--set", "max_steps=2", "--set", "logging.tensorboard=false") if words[0] == "train" else ()
        succeeds(run(*words, *few))
    assert json.loads((tmp_path / "runs" / "shrinking" / "status.json").read_text())["imports"] == ["my_rules"]


@pytest.mark.exhaustive
def test_children_import_the_plugins_of_their_parent(run):
    """`compare` trains in a child process of a fork server, which has not imported the plugin."""
    table = succeeds(
        run("compare", "run.yaml", "--seeds", "0", "--output", "table", "--engine", "processes:1", *IMPORT)
    )
    assert "run.yaml" in table
    assert "failed" not in table


def test_a_job_carries_the_names_of_the_plugins(run, tmp_path):
    """Engines send jobs as JSON."""
    forget()
    plugins.import_modules(["my_plugin"])
    text = encode(Training("run", "run.yaml", str(tmp_path / "run")))
    forget()
    assert decode(text).run().state == "finished"
    assert plugins.imported() == ["my_plugin"]
    (tmp_path / "my_plugin.py").unlink()
    forget()
    ending = decode(text).run()
    assert ending.state == "failed"
    assert ending.reason.startswith("--import my_plugin: there is no module my_plugin")


def test_a_launcher_must_import_the_plugins(run, tmp_path):
    forget()
    plugins.import_modules(["my_plugin"])
    words = "true {tpu} {config} --run-dir {run_dir}"
    TPU(["one"], f"{words} --import my_plugin")
    with pytest.raises(ValueError, match=r"--launcher must import the plugins .* --import my_plugin was"):
        TPU(["one"], words)


MISTAKES = {
    "./my_plugin.py": (None, "must be the name of a module, such as my_rules; found './my_plugin.py'; did you mean"),
    "my_plugim": (None, "--import my_plugim: there is no module my_plugim in the working directory or among"),
    "my_plugi": (None, "among the installed packages; did you mean 'my_plugin'?"),
    "my_plugin.rules": (None, "--import my_plugin.rules: there is no module my_plugin.rules"),
    "broken": ("import math\n\nmath.tau.x", "AttributeError: 'float' object has no attribute 'x' (broken.py, line 3)"),
    "needy": ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module' (needy.py, line 1)"),
    "unfinished": ("def f(:", "unfinished: cannot be imported: SyntaxError: invalid syntax (unfinished.py, line 1)"),
    "leaving": ("raise SystemExit(0)", "--import leaving: cannot be imported: SystemExit: 0 (leaving.py, line 1)"),
    "taken": (
        PLUGIN.replace("shrinking", "symmetric"),
        "`rule` must be a name that no other class has.",
    ),
    "namesake": (
        PLUGIN.replace("class Shrinking", "class Symmetric"),
        "Received namesake.Symmetric, and neural_alignment.alignments.layerwise.Symmetric is registered.",
    ),
}
"""Name of a module -> its code, and the error."""


@pytest.mark.parametrize("name", MISTAKES)
def test_a_module_that_cannot_be_imported_is_one_line(run, tmp_path, name):
    code, message = MISTAKES[name]
    if code is not None:
        (tmp_path / f"{name}.py").write_text(code)
    exit_code, _, error = run("schema", "--import", name)
    assert (exit_code, error.count("\n")) == (2, 1), error
    assert message in error
    assert alignments.RULES["symmetric"] is alignments.Symmetric


def test_a_file_in_the_working_directory_does_not_replace_an_installed_module(run, tmp_path):
    (tmp_path / "colorsys.py").write_text("raise RuntimeError('the wrong file')")
    plugins.import_modules(["colorsys"])
    assert hasattr(sys.modules["colorsys"], "rgb_to_hsv")


def test_an_installed_plugin_that_cannot_be_imported_is_named_with_its_package(run, tmp_path, monkeypatch):
    install_plugin(tmp_path, "broken_plugin")
    (tmp_path / "broken_plugin.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(plugins, "_are_installed_imported", False)
    message = "plugin ours of the installed package outside: cannot be imported: ZeroDivisionError: division by zero"
    for _ in range(2):  # The second use does not go on without it.
        with pytest.raises(PluginError, match=message):
            plugins.import_installed()


@pytest.mark.exhaustive
def test_a_run_names_an_installed_plugin_that_it_needs(run, tmp_path, monkeypatch):
    def forget_and_import(forget=forget):
        forget()
        monkeypatch.setattr(plugins, "_are_installed_imported", False)
        plugins.import_installed()

    monkeypatch.setitem(globals(), "forget", forget_and_import)
    install_plugin(tmp_path, "my_plugin")
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "plain.yaml").write_text(json.dumps(PLAIN))
    succeeds(run("train", "run.yaml", "--run-dir", "here"))
    succeeds(run("train", "plain.yaml", "--run-dir", "plain"))
    status = json.loads((tmp_path / "here" / "status.json").read_text())
    assert (status["installed_plugins"], "imports" in status) == ({"my_plugin": "outside"}, False)
    assert "top1" in succeeds(run("evaluate", "here"))
    # Without the package. A run that does not use the plugin can be read.
    shutil.rmtree(tmp_path / "outside-1.0.dist-info")
    assert "top1" in succeeds(run("evaluate", "plain"))
    needed = "here: the run was trained with plugins that are not installed: my_plugin of the package outside; without"
    resume = ("train", "here/config.yaml", "--run-dir", "here", "--resume")
    for again in (("evaluate", "here"), resume):
        fails(run(*again), needed)
    for damaged in ('{"installed_plugins": ["my_plugin"]}', '{"installed_plugins": 3}'):
        (tmp_path / "here" / "status.json").write_text(damaged)
        fails(run(*resume), "must be one of")


@pytest.mark.exhaustive
@pytest.mark.exhaustive
@pytest.mark.parametrize("imports", ["neural_alignment, keras", "keras, neural_alignment"])
def test_keras_can_be_imported_if_an_installed_plugin_cannot(tmp_path, imports):
    install_plugin(tmp_path, "broken_plugin")
    (tmp_path / "broken_plugin.py").write_text("1 / 0")
    code = f"import {imports}; print('imported'); import neural_alignment.jobs"
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    message = "plugin ours of the installed package outside: cannot be imported: ZeroDivisionError: division by zero"
    assert result.stdout == "imported\n", result.stderr
    assert f"RuntimeWarning: {message}" in result.stderr
    assert result.stderr.splitlines()[-1].startswith(f"neural_alignment.errors.PluginError: {message}")
