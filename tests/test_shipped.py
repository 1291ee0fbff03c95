"""Configurations that come with the package: names, copies, and the content of the wheel."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from helpers import for_each, run_command

from neural_alignment import cli, command_options, shipped
from neural_alignment import config as configuration
from neural_alignment.errors import ConfigError, InputError
from neural_alignment.search import copies, plan

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "configs"
NAMES = shipped.names()
RUNS = [name for name in NAMES if not name.startswith("search/")]
SEARCHES = [name for name in NAMES if name.startswith("search/")]


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """An empty working directory outside of the checkout."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_file_has_a_name():
    files = {path.relative_to(CONFIGS).as_posix() for path in CONFIGS.rglob("*.yaml")}
    assert {f"{name}.yaml" for name in NAMES} == files
    assert sorted(NAMES) == NAMES
    assert len(RUNS) > 100
    assert SEARCHES


@pytest.mark.parametrize("given", ["quickstart", "quickstart.yaml", "configs/quickstart", "configs/quickstart.yaml"])
def test_a_name_is_found_from_any_directory(elsewhere, given):
    assert Path(shipped.find(given)).samefile(CONFIGS / "quickstart.yaml")
    assert configuration.load(given) == configuration.load(CONFIGS / "quickstart.yaml")


@pytest.mark.parametrize("given", ["quickstart", "configs/quickstart.yaml", "quickstart.yaml"])
def test_a_path_takes_precedence_over_a_name(elsewhere, given):
    path = elsewhere / given
    path.parent.mkdir(exist_ok=True)
    text = (CONFIGS / "quickstart.yaml").read_text()
    path.write_text(text.replace("epochs: 20", "epochs: 7"))
    assert configuration.load(given).epochs == 7


def test_a_folder_of_the_user_takes_precedence_over_the_package(elsewhere):
    (elsewhere / "configs" / "lab").mkdir(parents=True)
    (elsewhere / "configs" / "lab" / "mine.yaml").write_text("base: quickstart\nepochs: 3\n")
    (elsewhere / "configs" / "quickstart.yaml").write_text("base: mnist/fc/backprop\n")
    assert shipped.find("lab/mine") == os.path.join("configs", "lab", "mine.yaml")
    assert configuration.load("quickstart") == configuration.load("mnist/fc/backprop")
    assert configuration.load("lab/mine").data == configuration.load("mnist/fc/backprop").data


@pytest.mark.parametrize(
    "given", ["quickstar", "../configs/quickstart", "/quickstart", "gs://quickstart", "search/../quickstart", "lab", ""]
)
def test_what_is_not_a_name_stays_as_it_is(elsewhere, given):
    assert shipped.find(given) == given


def test_a_wrong_name_is_one_line_with_the_closest_name(elsewhere):
    allowed = "give the path of a YAML file, or a name that `neural-alignment configs` lists"
    with pytest.raises(ConfigError) as error:
        configuration.load("quickstrat")
    assert str(error.value) == f"quickstrat: no such file; {allowed}; did you mean 'quickstart'?"


def test_a_base_may_be_a_name_or_a_path_beside_the_file(elsewhere):
    (elsewhere / "mine.yaml").write_text("base: quickstart\nepochs: 3\n")
    expected = configuration.load("quickstart", ["epochs=3"])
    assert configuration.load("mine.yaml") == expected
    (elsewhere / "quickstart.yaml").write_text("base: mnist/fc/backprop\n")
    (elsewhere / "other.yaml").write_text("base: quickstart.yaml\nepochs: 3\n")
    assert configuration.load("other.yaml") == configuration.load("mnist/fc/backprop", ["epochs=3"])


@for_each("name", RUNS)
def test_a_copy_is_the_configuration_and_needs_no_other_file(elsewhere, name):
    (elsewhere / "mine.yaml").unlink(missing_ok=True)
    copies.write(name, "mine.yaml")
    for smoke in (False, True):
        assert configuration.load("mine.yaml", smoke=smoke) == configuration.load(name, smoke=smoke)


@pytest.mark.parametrize("name", SEARCHES)
def test_a_copy_of_a_search_is_the_search(elsewhere, name):
    copies.write(name, "mine.yaml")
    ours, theirs = plan.load("mine.yaml"), plan.load(name)
    assert configuration.load(ours.config) == configuration.load(theirs.config)
    assert ours.model_copy(update={"config": ""}) == theirs.model_copy(update={"config": ""})


@pytest.mark.parametrize("name", ["quickstart", "search/lab/information", "lab/two_routes/information"])
def test_a_copy_is_that_of_the_package_also_if_there_is_a_file_of_the_name(elsewhere, name):
    expected = copies.text(name)
    for own in (name, "quickstart", "lab/two_routes/backprop"):
        path = Path("configs", f"{own}.yaml")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("epochs: 1\n")
    assert copies.text(name) == expected


def test_a_copy_replaces_no_file(elsewhere):
    Path("mine.yaml").write_text("precious")
    with pytest.raises(InputError, match=r"^--copy: must be a new file; found mine\.yaml, which exists$"):
        copies.write("quickstart", "mine.yaml")
    assert Path("mine.yaml").read_text() == "precious"
    with pytest.raises(InputError, match=r"^--copy: nowhere/mine\.yaml cannot be written: No such file or directory$"):
        copies.write("quickstart", "nowhere/mine.yaml")


class TestCommand:
    def test_it_lists_all_names_with_their_titles(self, elsewhere, monkeypatch, capsys):
        code, output, _ = run_command(monkeypatch, capsys, "configs")
        assert code == 0
        assert [line.split()[0] for line in output.splitlines()] == NAMES
        assert "  Symmetric alignment on scikit-learn's digits: the first run on a fresh machine." in output
        assert all(len(line.split()) > 1 for line in output.splitlines())

    def test_it_lists_a_folder(self, elsewhere, monkeypatch, capsys):
        for given in ("two_routes/resnet18", "two_routes/resnet18/"):
            code, output, _ = run_command(monkeypatch, capsys, "configs", given)
            assert code == 0
            found = [line.split()[0] for line in output.splitlines()]
            assert found == [name for name in NAMES if name.startswith("two_routes/resnet18/")]

    def test_it_prints_and_copies_a_configuration(self, elsewhere, monkeypatch, capsys):
        _, printed, _ = run_command(monkeypatch, capsys, "configs", "quickstart")
        code, output, _ = run_command(monkeypatch, capsys, "configs", "quickstart", "--copy", "mine.yaml")
        assert (code, output) == (0, "written: mine.yaml\n")
        assert Path("mine.yaml").read_text() == printed

    @pytest.mark.parametrize(
        ("arguments", "line"),
        [
            (["quickstar"], "quickstar: no such configuration; `neural-alignment configs` lists them; did you mean"),
            (["lab", "--copy", "x"], "--copy needs the name of one configuration, such as lab/"),
            (["--copy", "x"], "--copy needs the name of one configuration, such as "),
        ],
    )
    def test_wrong_arguments_are_one_line(self, elsewhere, monkeypatch, capsys, arguments, line):
        code, _, error = run_command(monkeypatch, capsys, "configs", *arguments)
        assert code == 2
        assert error.startswith(f"error: {line}")
        assert len(error.splitlines()) == 1
        assert not os.listdir(elsewhere)


def test_the_name_of_a_run_is_that_of_its_configuration(elsewhere):
    assert cli.run_name("two_routes/resnet18/symmetric") == "two_routes/resnet18/symmetric"
    assert cli.run_name(str(CONFIGS / "two_routes" / "resnet18" / "symmetric.yaml")) == "two_routes/resnet18/symmetric"
    assert cli.run_name("mine.yaml") == "mine"
    assert cli.run_name("/home/me/configs/own/mine.yaml") == "own/mine"


def test_names_and_files_complete_what_is_typed(elsewhere):
    Path("quick.yaml").touch()
    Path("quick.txt").touch()
    Path("quicker").mkdir()
    assert command_options.completed("quick") == ["quickstart", "quick.yaml", "quicker/"]
    assert command_options.completed("two_routes/resnet18/sym") == ["two_routes/resnet18/symmetric"]


def test_the_version_names_what_decides_the_results(monkeypatch, capsys):
    code, output, _ = run_command(monkeypatch, capsys, "--version")
    assert code == 0
    assert output.startswith("neural_alignment 0.")
    assert "\nkeras 3." in output
    assert "\ntensorflow" in output


def test_every_command_has_examples_whose_configurations_exist():
    commands = cli.app.registered_commands
    assert len(commands) >= 10
    for command in commands:
        title, *examples = command.epilog.split("\n\n")
        assert title == "Examples:"
        assert examples
        for example in examples:
            program, name, *words = example.split()
            assert (program, name) == ("neural-alignment", command.callback.__name__)
            if name in ("train", "describe", "compare"):
                given = [word for word in words if not word.startswith("-") and "/" in word][:1]
                assert all(word in NAMES or word.startswith("results/") for word in given)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The names of the files in a wheel that is built from a copy of the checkout."""
    place = tmp_path_factory.mktemp("wheel")
    ignored = shutil.ignore_patterns(".git", ".venv*", "results", "runs", "tests", "__pycache__", "*.egg-info", "build")
    shutil.copytree(ROOT, place / "source", ignore=ignored)
    for path in ROOT.glob("results/*/*.csv"):
        copy = place / "source" / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", place / "dist", place / "source"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    [path] = (place / "dist").iterdir()
    with zipfile.ZipFile(path) as archive:
        metadata = next(name for name in archive.namelist() if name.endswith("METADATA"))
        return set(archive.namelist()), archive.read(metadata).decode()


def test_the_wheel_contains_every_module_and_every_file_that_they_read(wheel):
    files, _ = wheel
    for package in ("neural_alignment", "optimizers"):
        wanted = {path.relative_to(ROOT).as_posix() for path in (ROOT / package).rglob("*") if path.is_file()}
        assert {name for name in wanted if "__pycache__" not in name} <= files
    assert {f"neural_alignment/configs/{name}.yaml" for name in NAMES} <= files
    times = {f"neural_alignment/{path.relative_to(ROOT).as_posix()}" for path in ROOT.glob("results/*/seconds.csv")}
    assert {name for name in files if name.startswith("neural_alignment/results/")} == times
    assert len(times) >= 3
    assert {name.split("/")[0].split("-")[0] for name in files} == {"neural_alignment", "optimizers"}


def test_the_wheel_describes_itself(wheel):
    _, metadata = wheel
    fields = {line.split(": ")[0] for line in metadata.split("\n\n")[0].splitlines()}
    assert fields >= {"Author", "Classifier", "Keywords", "License-Expression", "Project-URL", "Requires-Python"}
    assert "Classifier: Typing :: Typed" in metadata
