"""The notebooks of `examples/`: their code at a tiny size, and their stored outputs."""

import csv
import itertools
import json
import re
import shlex
import sys
import tempfile
import types
from pathlib import Path

import keras
import matplotlib
import nbformat
import numpy as np
import pytest
import tensorflow as tf
from helpers import assert_close, assert_differs, run_command
from PIL import Image

from neural_alignment import config, plugins
from neural_alignment.alignments import RULES
from neural_alignment.errors import InputError

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))

TINY = {
    "1_feedback_alignment": {"epochs": 5, "deep_epochs": 1, "hidden": 30, "depth": 2, "used": 300},
    "2_every_rule": {"epochs": 1, "filters": [4], "weights": {"symmetric": "self_: 0.1, decay: 0.1"}},
    "3_convert_a_model": {"epochs": 4, "width": 2, "used": 60, "compared": ["Symmetric"]},
    "4_your_own_rule": {"epochs": 1, "trials": 1, "hidden": [8]},
    "5_tables_of_the_paper": {
        "epochs": 1,
        "rules": ["backprop", "symmetric"],
        "model": "{name: convnet, filters: [2]}",
    },
    "6_neural_fits": {
        "epochs": 1,
        "shown": 120,
        "units": 3,
        "repeats": 2,
        "components": 3,
        "candidates": ["symmetric"],
    },
}
"""Notebook -> values for all names of its cell with the tag `parameters`."""

WITHOUT_PROBES = ("--set", "evaluation.probe_examples=0")
"""Leaves out the measures that need examples, whose graphs take longer than the training."""

PIXEL = b"\x89PNG\r\n\x1a\n"
"""The begin of a PNG file."""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A temporary folder for all files, the backend without windows, and no traces of plugins afterwards."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(plugins, "_imported", [])
    # Drawing a picture takes as long as training a network of this size, and is tested elsewhere.
    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", lambda self, file, **_: file.write(PIXEL))
    backend, known = matplotlib.get_backend(), set(RULES)
    matplotlib.use("Agg")
    yield
    matplotlib.pyplot.close("all")
    matplotlib.use(backend)
    for name in set(RULES) - known:
        sys.modules.pop(RULES.pop(name).__module__)


@pytest.fixture
def eager():
    """No graphs: tracing them takes longer than a few steps."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


GRAPHS_OF_DATA = pytest.mark.filterwarnings("ignore:Even though the `tf.config.experimental_run_functions_eagerly`")
"""TensorFlow warns that functions of `tf.data` stay graphs."""


def code_of(name):
    """Returns the number, the tags and the source of the code cells of a notebook."""
    cells = nbformat.read(EXAMPLES / f"{name}.ipynb", as_version=4).cells
    code = [(number, cell) for number, cell in enumerate(cells, 1) if cell.cell_type == "code"]
    return [(number, cell.metadata.get("tags", []), cell.source) for number, cell in code]


def run(name, monkeypatch, capsys, options=WITHOUT_PROBES):
    """Runs the cells of a notebook in this process, with tiny parameters and without IPython; returns their names."""
    names = {}
    for number, tags, source in code_of(name):
        magic, _, rest = source.partition("\n")
        if magic == "%%bash":
            for line in rest.replace("\\\n", "").splitlines():
                run_line(line, monkeypatch, capsys, options)
        elif magic.startswith("%%writefile "):
            Path(magic.split()[1]).write_text(rest)
        else:
            exec(compile(source, f"{name}, cell {number}", "exec"), names)
        if "parameters" in tags:
            assert set(TINY[name]) <= set(names), "the cell must define all names in TINY"
            names.update(TINY[name])
    return names


def run_line(line, monkeypatch, capsys, options):
    """Runs a command line `neural-alignment ... [> FILE]` in this process; `options` are added if it trains."""
    command, _, file = line.partition(">")
    program, *words = shlex.split(command)
    assert program == "neural-alignment", line
    words = [match for word in words for match in (sorted(map(str, Path().glob(word))) if "*" in word else [word])]
    trains = words[0] in ("train", "compare", "search")
    code, output, errors = run_command(monkeypatch, capsys, *words, *(options if trains else ()))
    assert code == 0, errors
    if file:
        Path(file.strip()).write_text(output)


@GRAPHS_OF_DATA
def test_1_feedback_alignment(here, eager, monkeypatch, capsys):
    """The angle falls, and stays where it is without a hidden layer that learns."""
    names = run("1_feedback_alignment", monkeypatch, capsys)
    assert names["angles"][-1] < names["angles"][0] - 5
    assert names["control_angles"][-1] > names["angles"][-1] + 5
    measures = names["logs"]["feedback alignment"]
    assert len(measures["weight_angle/output"]) == TINY["1_feedback_alignment"]["deep_epochs"]
    assert measures["pseudogradient_angle/output"][-1] < 0.1 < measures["pseudogradient_angle/hidden_1"][-1]


@pytest.mark.exhaustive
def test_2_every_rule(here, monkeypatch, capsys):
    """The angle falls, and the table has a line per rule."""
    names = run("2_every_rule", monkeypatch, capsys)
    angles = names["mean_angle"]("symmetric")
    assert angles[-1] < angles[0] - 20
    assert names["mean_angle"]("backprop") is None
    assert len(Path("table.csv").read_text().splitlines()) == 1 + len(names["metrics"]) == 3
    assert sorted(rule for members in names["families"].values() for rule in members) == sorted(RULES)


def test_2_every_rule_has_every_rule(tmp_path, monkeypatch):
    """The notebook writes a valid configuration of each rule."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    names = {}
    for source in itertools.takewhile(lambda each: "%%bash" not in each, (cell[2] for cell in code_of("2_every_rule"))):
        exec(source, names)
    assert sorted(names["weights"]) == sorted(RULES)
    assert [config.load(f"{rule}.yaml").rules[0].rule for rule in RULES] == [*RULES]


@pytest.mark.exhaustive
@GRAPHS_OF_DATA
def test_3_convert_a_model(here, eager, monkeypatch, capsys):
    """Symmetric alignment brings B closer to W; the custom layer is reported."""
    names = run("3_convert_a_model", monkeypatch, capsys)
    angles = names["table_of"]("Symmetric", "weight_angle").mean(axis=0)
    assert angles[-1] < angles[0] - 1
    assert names["difference"] < 1e-5
    assert names["same"]
    assert set(names["left"]) == {"mixing"}


@pytest.mark.exhaustive
def test_4_your_own_rule(here, monkeypatch, capsys):
    """The angle to W is that between W and its signs."""
    names = run("4_your_own_rule", monkeypatch, capsys)
    np.testing.assert_allclose(names["measured"], names["predicted"], atol=5)
    assert [trial["number"] for trial in names["found"]] == [1]
    assert Path("runs/search/best.yaml").exists()


@pytest.mark.exhaustive
def test_5_tables_of_the_paper(here, monkeypatch, capsys):
    """The tables have the accuracies of the runs in the rows of their rules, and say which are missing."""
    run("5_tables_of_the_paper", monkeypatch, capsys, options=())  # `table` compares configurations.
    tables = [Path(f"tables/table_{number}.md").read_text().splitlines() for number in (3, 4)]
    local, networks = ({line.split(" | ")[0].strip("| "): line for line in table} for table in tables)
    top1 = {}
    for rule in ("backprop", "symmetric"):
        with open(f"runs/two_routes/resnet18/{rule}/seed0/metrics.csv") as file:
            top1[rule] = f"{100 * float([*csv.DictReader(file)][-1]['top1']):.2f}"
    assert f"| {top1['backprop']} |" in local["backpropagation"]
    assert "missing" in local["weight mirror (WM), TPE"]
    assert f"| {top1['backprop']} | {top1['symmetric']} | missing |" in networks["ResNet-18"]
    assert Path("tables/figure_S4.png").exists()


@pytest.mark.exhaustive
def test_6_neural_fits_and_the_script_on_one_of_its_runs(brainscore, here, monkeypatch, capsys):
    """Every network and layer is fitted to both areas; the recordings are predicted better than by chance."""
    names = run("6_neural_fits", monkeypatch, capsys)
    assert {(row["network"], row["area"]) for row in names["rows"]} == {
        (network, area) for network in ("Random", "symmetric") for area in ("V4", "IT")
    }
    first = [row["correlation"] for row in names["rows"] if row["layer"] == "conv1_relu" and row["area"] == "V4"]
    assert min(first) > 0.2

    Path("images").mkdir()
    write_pictures(Path("images"), 2, (8, 8, 1))
    monkeypatch.setattr(
        sys, "argv", ["brainscore.py", "runs/teacher", "--images", "images", "--layers", "conv[13]_relu"]
    )
    brainscore.main()
    printed = capsys.readouterr().out
    assert "activations.npz: 2 presentations x 1728 neuroids" in printed
    assert "pip install brainscore_vision" in printed
    with np.load("activations.npz") as found:
        assert found["values"].shape == (2, 24 * 64 + 48 * 4)
        assert set(found["layer"]) == {"conv1_relu", "conv3_relu"}
    monkeypatch.setattr(sys, "argv", ["brainscore.py", "runs/teacher", "--images", "nothing"])
    with pytest.raises(SystemExit, match="found 0 and 3"):
        brainscore.main()


@pytest.mark.parametrize("name", TINY)
def test_every_notebook_has_a_cell_of_parameters(name):
    assert sum("parameters" in tags for _, tags, _ in code_of(name)) == 1


def test_every_notebook_is_run_at_a_tiny_size_and_listed():
    assert [path.stem for path in NOTEBOOKS] == [*TINY]
    rows = re.findall(
        r"^\| \[(\d_\w+\.ipynb)\]\(\1\) \| .+ \| ([1-9]\d*) \|$", (EXAMPLES / "README.md").read_text(), re.M
    )
    assert [name for name, _ in rows] == [path.name for path in NOTEBOOKS]
    assert all(int(seconds) < 180 for _, seconds in rows)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_stored_outputs(path):
    """Every cell was executed once, in order, without errors, warnings, times and paths of the machine."""
    text = path.read_text()
    notebook = nbformat.reads(text, as_version=4)
    nbformat.validate(notebook)
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert list(notebook.metadata.language_info) == ["name"]
    assert notebook.cells[0].cell_type == "markdown"
    assert "**What this notebook shows.**" in notebook.cells[0].source
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == [*range(1, len(code) + 1)]
    for cell in notebook.cells:
        assert set(cell.metadata) <= {"tags"}
    for cell in code:
        kinds = [output.output_type for output in cell.outputs]
        assert "error" not in kinds
        assert all(output.name == "stdout" for output in cell.outputs if output.output_type == "stream")
        draws = re.search(r"^figure|^print\(|^ +print\(|^Image\(|^Markdown\(", cell.source, re.MULTILINE)
        assert bool(draws) <= bool(kinds), f"no output of {cell.source}"
    outputs = json.dumps([cell.outputs for cell in code])
    assert not re.search(
        r"/tmp/|/home/|/root/|/work/|site-packages|0x[0-9a-f]{6,}|[Ww]arning", re.sub(PNG, "", outputs)
    )


PNG = r'"image/png": "[^"]*"'


@pytest.fixture
def brainscore(monkeypatch):
    """The example `brainscore.py` as a module, without Brain-Score."""
    monkeypatch.setitem(sys.modules, "brainscore_vision", None)
    names = {"__name__": "brainscore"}
    exec(compile((EXAMPLES / "brainscore.py").read_text(), "brainscore.py", "exec"), names)
    return types.SimpleNamespace(**names)


def write_pictures(folder, count, shape):
    """Writes random pictures and returns their pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (count, *shape), np.uint8)
    for number, picture in enumerate(pixels):
        Image.fromarray(picture.squeeze()).save(folder / f"{number}.png")
    return pixels


def test_brainscore_activations_are_those_of_the_part_of_the_model(brainscore, tmp_path):
    """Three pictures in batches of two: the values, their order and their labels."""
    inputs = keras.Input((6, 5, 3))
    conv = keras.layers.Conv2D(4, 3, activation="relu", name="conv")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(2, name="dense")(keras.layers.Flatten()(conv)))
    pixels = write_pictures(tmp_path, 3, (6, 5, 3))
    paths = sorted(tmp_path.glob("*.png"))
    network = brainscore.features.of_model(model, pixel_scale=(100.0, 50.0))
    found = brainscore.ActivationsModel(network, "mine", batch_size=2)(paths, ["dense", "conv"])
    part = keras.Model(inputs, [model.get_layer("dense").output, conv])
    dense, maps = part.predict((pixels - 100.0) / 50.0, verbose=0)
    expected = np.concatenate([dense, np.moveaxis(maps, -1, 1).reshape(3, -1)], axis=1)
    assert found.values.dtype == np.float32
    assert_close(found.values, expected)
    assert_differs(found.values, np.concatenate([dense, maps.reshape(3, -1)], axis=1))
    assert found.stimulus_path.tolist() == [str(path) for path in paths]
    assert found.layer.tolist() == ["dense"] * 2 + ["conv"] * maps[0].size
    assert found.neuroid_id[[0, 1, 2]].tolist() == ["mine.dense.0", "mine.dense.1", "mine.conv.0"]


def test_brainscore_prepares_pictures_of_any_size(brainscore, tmp_path):
    model = keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Flatten(name="flat"), keras.layers.Dense(2)])
    Image.new("RGB", (9, 7), (200, 200, 200)).save(tmp_path / "grey.png")
    network = brainscore.ActivationsModel(brainscore.features.of_model(model, pixel_scale=(0.0, 255.0)))
    prepared = network.prepare([tmp_path / "grey.png"])
    assert prepared.shape == (1, 1, 4, 4)
    assert_close(prepared, np.full((1, 1, 4, 4), 200 / 255, np.float32))
    for layers, message in (["flut"], "nearest of its 2: flat"), (["fla*"], "not a pattern"), ([], "found 1 and 0"):
        with pytest.raises(InputError, match=re.escape(message)):
            network([tmp_path / "grey.png"], layers)


def test_brainscore_passes_two_functions_to_the_helper(brainscore, monkeypatch):
    """A stand-in for Brain-Score's helper receives what its signature asks for."""
    core = types.ModuleType("brainscore_vision.model_helpers.activations.core")
    core.ActivationsExtractorHelper = lambda get_activations, preprocessing, identifier, batch_size: (
        get_activations,
        preprocessing,
    )
    parts = core.__name__.split(".")
    for end in range(1, len(parts)):
        monkeypatch.setitem(sys.modules, ".".join(parts[:end]), types.ModuleType(".".join(parts[:end])))
    monkeypatch.setitem(sys.modules, core.__name__, core)
    model = brainscore.ActivationsModel(keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Flatten()]))
    assert brainscore.for_brainscore(model) == (model.activations, model.prepare)
