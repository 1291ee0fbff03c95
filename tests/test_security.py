"""Malicious files, which contain code or refer to other files, are rejected."""

import ast
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest

import neural_alignment
from neural_alignment import cli
from neural_alignment import config as configuration
from neural_alignment.errors import ConfigError, RunError
from neural_alignment.training import run

ROOT = Path(__file__).parent.parent
SOURCES = [path for folder in ("neural_alignment", "optimizers") for path in sorted((ROOT / folder).rglob("*.py"))]

PLAN = {
    "epochs": 1,
    "batch_size": 256,
    "data": {"source": "digits"},
    "model": {"name": "fc", "hidden": [6]},
    "alignment": {"rule": "symmetric", "self_": 2e-3, "decay": 2e-3},
    "optimization": {
        "forward": {
            "name": "momentum",
            "learning_rate": 0.02,
            "schedule": {"drop_epochs": [1]},
            "noise": {"variance": 1e-6},
        },
        "backward": {"name": "adam", "learning_rate": 1e-2},
        "alternation": 1,
    },
    "logging": {"tensorboard": False},
}


class Exploit:
    """An object that runs a command when it is unpickled."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


@pytest.fixture
def trace(tmp_path):
    """A folder that an exploit would create."""
    path = tmp_path / "pwned"
    yield path
    assert not path.exists(), "the exploit was run"


def refused(error):
    assert "\n" not in str(error.value)


def test_the_exploits_work(tmp_path):
    pickle.loads(pickle.dumps(Exploit(tmp_path / "one")))
    array = io.BytesIO(npz(tmp_path / "two"))
    with np.load(array, allow_pickle=True) as file:
        file["offsets"]
    assert {entry.name for entry in tmp_path.iterdir()} == {"one", "two"}


def npz(trace):
    content = io.BytesIO()
    np.savez(content, offsets=np.array([Exploit(trace)], object))
    return content.getvalue()


# YAML.

YAML = [
    "!!python/object/apply:os.mkdir [{trace}]",
    "!!python/object/new:os.mkdir [{trace}]",
    "!!python/name:os.mkdir",
    "!!python/module:os",
    "!<tag:yaml.org,2002:python/object/apply:os.mkdir> [{trace}]",
]


@pytest.mark.parametrize("text", YAML)
def test_yaml_that_creates_objects_is_refused(tmp_path, trace, text):
    text = text.format(trace=trace)
    (tmp_path / "config.yaml").write_text(f"epochs: {text}\n")
    with pytest.raises(ConfigError, match="not valid YAML") as error:
        configuration.load(tmp_path / "config.yaml")
    refused(error)
    with pytest.raises(ConfigError, match="not valid YAML") as error:
        configuration.load(ROOT / "configs" / "quickstart.yaml", [f"epochs={text}"])
    refused(error)


# Models.


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "trained"
    run.train(configuration.parse(PLAN), path)
    return path


def rewritten(source, target, **entries):
    """Copies a .keras file with some of its entries replaced."""
    with zipfile.ZipFile(source) as archive, zipfile.ZipFile(target, "w") as copy:
        for name in archive.namelist():
            copy.writestr(name, entries.get(name.replace(".", "_"), archive.read(name)))


def with_lambda(source, target, trace):
    code = f"lambda x: (__import__('os').mkdir({str(trace)!r}), x)[1]"
    model = keras.Sequential([keras.Input((2,)), keras.layers.Lambda(eval(code), output_shape=(2,))])
    if trace.exists():
        trace.rmdir()  # Keras has called it while it built the model.
    model.save(target)
    keras.models.load_model(target, safe_mode=False)  # The file is sound, but for that.
    if trace.exists():
        trace.rmdir()


def with_class(module, name, registered):
    def make(source, target, trace):
        with zipfile.ZipFile(source) as archive:
            config = json.loads(archive.read("config.json"))
        layer = config["config"]["layers"][1]
        layer.update(module=module, class_name=name, registered_name=registered)
        layer["config"] = {"path": str(trace), "name": str(trace), "command": f"mkdir {trace}"}
        rewritten(source, target, config_json=json.dumps(config))

    return make


def with_pickled_weights(source, target, trace):
    rewritten(source, target, model_weights_h5=pickle.dumps(Exploit(trace)))


def with_npz_weights(source, target, trace):
    rewritten(source, target, model_weights_h5=npz(trace))


def as_pickle(source, target, trace):
    target.write_bytes(pickle.dumps(Exploit(trace)))


@pytest.mark.parametrize(
    "make",
    [
        with_lambda,
        with_class("os", "mkdir", "mkdir"),
        with_class("os", "mkdir", "os>mkdir"),
        with_class("builtins", "eval", "eval"),
        with_class("subprocess", "Popen", None),
        with_class("keras.utils", "get_file", None),
        with_pickled_weights,
        with_npz_weights,
        as_pickle,
    ],
)
def test_models_that_contain_code_are_refused(trained, tmp_path, trace, make):
    make(trained / "model.keras", tmp_path / "model.keras", trace)
    with pytest.raises(RunError, match=r"model\.keras: cannot be loaded") as error:
        neural_alignment.load_model(tmp_path / "model.keras")
    refused(error)


def test_other_formats_are_not_loaded(tmp_path):
    with pytest.raises(RunError, match=r"must be a \.keras file"):
        neural_alignment.load_model(tmp_path / "model.h5")


# A run directory.


@pytest.fixture
def stopped(trained, tmp_path):
    """A stopped run that can be resumed."""
    path = shutil.copytree(trained, tmp_path / "run")
    (path / "status.json").write_text('{"state": "stopped"}')
    return path


@pytest.mark.parametrize("name", ["metrics.csv", "status.json", "config.yaml", "checkpoints/last/checkpoint"])
@pytest.mark.parametrize("content", [lambda trace: pickle.dumps(Exploit(trace)), npz], ids=["pickle", "npz"])
def test_files_of_a_run_are_not_unpickled(stopped, trace, name, content):
    path, plan = stopped, configuration.parse(PLAN)
    (path / name).write_bytes(content(trace))
    with pytest.raises((RunError, ConfigError)) as error:
        run.train(plan, path, resume=True)
    refused(error)
    assert str(path) in str(error.value)


def test_a_checkpoint_file_cannot_cause_the_removal_of_other_files(stopped, tmp_path):
    precious = [tmp_path / "precious.index", tmp_path / "precious.data-00000-of-00001"]
    for file in precious:
        file.write_text("years of work")
    path, plan = stopped, configuration.parse(PLAN)
    state = path / "checkpoints" / "last" / "checkpoint"
    named = f'all_model_checkpoint_paths: "{tmp_path / "precious"}"\n'
    state.write_text(named + state.read_text())
    with pytest.raises(RunError, match=r"checkpoint: must name ckpt-STEP in its own folder; found '.*precious'"):
        run.train(plan, path, resume=True)
    assert all(file.read_text() == "years of work" for file in precious)


# Names.


@pytest.mark.parametrize(
    "config", ["../../configs/../../../escape.yaml", "configs/../../x.yaml", "/a/configs/b/../../../c.yaml"]
)
def test_a_default_run_directory_is_below_runs(config):
    from neural_alignment.files import confined

    path = confined("runs", cli.run_name(config))
    assert Path(os.path.abspath(path)).is_relative_to(Path("runs").absolute())


def test_a_default_run_directory_does_not_follow_links_out_of_runs(tmp_path, monkeypatch, capsys):
    (tmp_path / "runs").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "runs" / "quickstart").symlink_to(tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path)
    quickstart = str(ROOT / "configs" / "quickstart.yaml")
    for command in (["train", quickstart], ["compare", quickstart, "--seeds", "0", "--output", "table"]):
        monkeypatch.setattr(sys, "argv", ["neural-alignment", *command])
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert end.value.code == 2
        error = capsys.readouterr().err
        assert "leads out of runs by a symbolic link" in error
        assert len(error.splitlines()) == 1
    assert not list((tmp_path / "elsewhere").iterdir())


# A saved model in a fresh process.


@pytest.mark.exhaustive
def test_one_line_loads_a_saved_model_in_a_new_process(trained, tmp_path):
    generator = np.random.default_rng(0)
    images, labels = generator.normal(size=(32, 8, 8, 1)).astype(np.float32), generator.integers(0, 10, 32)
    np.savez(tmp_path / "batch.npz", images=images, labels=labels)
    code = f"""
import sys
import neural_alignment
assert "keras" not in sys.modules and "neural_alignment.layers" not in sys.modules
model = neural_alignment.load_model({str(trained / "model.keras")!r})
import numpy as np
batch = np.load({str(tmp_path / "batch.npz")!r}, allow_pickle=False)
np.save({str(tmp_path / "predictions.npy")!r}, model.predict(batch["images"], verbose=0))
step = int(model.optimizer.iterations)
results = model.evaluate(batch["images"], batch["labels"], verbose=0, return_dict=True)
model.fit(batch["images"], batch["labels"], batch_size=16, epochs=2, verbose=0)
assert int(model.optimizer.iterations) == step + 4, "trained on from where it was"
model.compile("sgd", "sparse_categorical_crossentropy")
model.evaluate(batch["images"], batch["labels"], verbose=0)
print("top1" in results and np.isfinite(results["loss"]))
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "True"
    expected = neural_alignment.load_model(trained / "model.keras").predict(images, verbose=0)
    np.testing.assert_array_equal(np.load(tmp_path / "predictions.npy", allow_pickle=False), expected)


# The sources.

FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "ruamel"}
FORBIDDEN_CALLS = {
    *("eval", "exec", "compile", "__import__", "system", "popen"),
    *("unsafe_load", "full_load", "enable_unsafe_deserialization"),
}
"""Names that no module of the library may call; `compile` refers to the function, not the method of a model."""


def suspicious(tree: ast.AST) -> list[str]:
    """Returns the calls in a module that could run code from a file."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            found += [name for name in names if name.partition(".")[0] in FORBIDDEN_MODULES]
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "id", getattr(node.func, "attr", ""))
        arguments = {keyword.arg: getattr(keyword.value, "value", None) for keyword in node.keywords}
        if name in FORBIDDEN_CALLS and not (name == "compile" and isinstance(node.func, ast.Attribute)):
            found.append(name)
        if (
            name == "load_model"
            and ast.unparse(node.func).startswith("keras")
            and arguments.get("safe_mode") is not True
        ):
            found.append("load_model without safe mode")
        if ast.unparse(node.func) in ("np.load", "numpy.load") and arguments.get("allow_pickle") is not False:
            found.append("np.load with pickle")
        if arguments.get("allow_pickle") or arguments.get("shell"):
            found.append("allow_pickle or shell")
        if ast.unparse(node.func) in ("yaml.load", "yaml.load_all"):
            found.append("YAML that is constructed, not composed of events")
        found += [word for word in ("UnsafeLoader", "FullLoader") if word in ast.unparse(node)]
    return found


def test_nothing_in_the_library_runs_code_from_a_file():
    for path in SOURCES:
        assert suspicious(ast.parse(path.read_text())) == [], path


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from joblib import load",
        "eval(text)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "np.savez(path, allow_pickle=True)",
        "keras.models.load_model(path)",
        "keras.saving.load_model(path, safe_mode=False)",
        "yaml.load(text)",
        "yaml.load(text, Loader=yaml.CSafeLoader)",
        "yaml.unsafe_load(text)",
        "yaml.parse(text, Loader=yaml.UnsafeLoader)",
        "yaml.parse(text, yaml.FullLoader)",
        "subprocess.run(line, shell=True)",
    ],
)
def test_the_check_finds_suspicious_calls(code):
    assert suspicious(ast.parse(code))
