"""Wrong paths in every option that is a path: a one-line error, exit code 2, and no files are created."""

import json
import os
import signal
import subprocess
import sys
import types
import typing
from pathlib import Path

import pytest
from helpers import for_each

from neural_alignment import cli, data, files, paths, reporting, training
from neural_alignment import config as configuration
from neural_alignment.data import index, recordings
from neural_alignment.errors import ConfigError, DataError, InputError, RunError
from neural_alignment.jobs import children
from neural_alignment.search import plan as plans
from neural_alignment.search import records
from neural_alignment.training import initial_state, memory, setup

ROOT = Path(__file__).parent.parent
QUICKSTART = str(ROOT / "configs" / "quickstart.yaml")
SEARCH = str(ROOT / "configs" / "search" / "lab" / "information.yaml")


@pytest.fixture(autouse=True)
def place(monkeypatch, tmp_path):
    """A directory with a file, a directory, a FIFO and links. A test that hangs is ended."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    (tmp_path / "directory.csv").mkdir()
    (tmp_path / "directory.csv" / "something").write_text("")
    os.mkfifo(tmp_path / "fifo.csv")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "zero").symlink_to("/dev/zero")
    before = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it hangs"))
    signal.alarm(60)
    yield tmp_path
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def run(capsys, monkeypatch):
    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["neural-alignment", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        output = capsys.readouterr()
        return end.value.code or 0, output.out, output.err

    return call


def test_tables_arrays_and_records_in_a_fifo_do_not_block(place):
    problem = "is not a regular file but a FIFO, a socket or a device"
    with pytest.raises(RunError, match=f"^fifo.csv: {problem}; restore it$"):
        reporting.read_csv("fifo.csv")
    with pytest.raises(ValueError, match=f"^{problem}$"):
        files.read_arrays("fifo.csv")
    with pytest.raises(RunError, match=f"^fifo.csv: {problem}; restore it$"):
        records.Lines("fifo.csv")


FILES = {
    "train CONFIG": ["train", "{}"],
    "describe CONFIG": ["describe", "{}"],
    "compare CONFIG": ["compare", "{}", "--output", "table"],
    "search SEARCH": ["search", "{}"],
    "search --config": ["search", SEARCH, "--config", "{}"],
    "figure --recordings": ["figure", "two_routes/6", "--recordings", "{}"],
    "figure --images": ["figure", "two_routes/6", "--images", "{}"],
}
DIRECTORIES = {
    "train --run-dir": ["train", QUICKSTART, "--run-dir", "{}"],
    "evaluate RUN": ["evaluate", "{}"],
    "compare --runs": ["compare", QUICKSTART, "--output", "table", "--runs", "{}"],
    "search --search-dir": ["search", SEARCH, "--search-dir", "{}"],
    **{
        f"{words[0]} {option}": [*words, option, "{}"]
        for words in (["table", "two_routes/1"], ["figure", "two_routes/3"], ["lab", "two_routes"])
        for option in ("--runs", "--output", "--configs")
    },
}
PREFIXES = {
    "compare --output": ["compare", QUICKSTART, "--output", "{}"],
    "search --output": ["search", SEARCH, "--output", "{}"],
}
ANY = {
    "empty": "",
    "blank": " ",
    "NUL": "a\0b",
    "line break": "a\nb",
    "escape": "a\x1b[2Jb",
    "not UTF-8": "a\udcff",
    "long name": "x" * 300,
    "long name in a path": f"a/{'ä' * 140}/b",
    "long path": "a/" * 2500 + "b",
    "no such user": "~no-such-user/x",
}
WRONG = {
    **{
        f"{option}: {kind}": (words, ANY[kind])
        for option, words in (FILES | DIRECTORIES | PREFIXES).items()
        for kind in ANY
    },
    **{
        f"{option}: {path}": (words, path)
        for option, words in FILES.items()
        for path in ("/", "~", "missing.yaml", "file/x.yaml", "directory.csv", "fifo.csv", "zero", "/dev/zero", "loop")
    },
    **{
        f"{option}: {path}": (words, path)
        for option, words in DIRECTORIES.items()
        for path in ("file", "file/x", "fifo.csv", "fifo.csv/x/y", "zero", "/dev/null", "loop")
    },
    **{
        f"{option}: {path}": (words, path)
        for option, words in PREFIXES.items()
        for path in ("/", ".", "..", "~", "a/", "a/.", "file/x", "directory", "fifo", "/dev/zero/x", "x" * 250)
    },
    "evaluate RUN: /": (["evaluate", "{}"], "/"),
    "evaluate RUN: ~": (["evaluate", "{}"], "~"),
    "evaluate RUN: missing": (["evaluate", "{}"], "missing"),
    "train --run-dir: /": (["train", QUICKSTART, "--run-dir", "{}"], "/"),
    "train --run-dir: ~": (["train", QUICKSTART, "--run-dir", "{}"], "~"),
    "search --search-dir: /": (["search", SEARCH, "--set", "data={source: digits}", "--search-dir", "{}"], "/"),
    "compare --output: no permission": (["compare", QUICKSTART, "--output", "{}"], "/proc/none/table"),
    "compare --runs: no permission": (["compare", QUICKSTART, "--output", "table", "--runs", "{}"], "/proc/none"),
    "search --output: no permission": (["search", SEARCH, "--output", "{}"], "/proc/none/table"),
    "table --output: no permission": (["table", "two_routes/1", "--output", "{}"], "/proc/none"),
}


OFTEN = [what for what, (words, path) in WRONG.items() if path not in ANY.values() or path == ANY["NUL"]]
OFTEN += [f"{option}: {kind}" for option in ("train CONFIG", "train --run-dir", "compare --output") for kind in ANY]
"""Every kind of wrong path for an option of each kind, and for every option those that the operating system refuses."""


@for_each("what", dict.fromkeys(OFTEN))
def test_a_wrong_path_is_one_line(run, place, monkeypatch, what):
    refuse(run, place, monkeypatch, what)


@pytest.mark.exhaustive
@for_each("what", [what for what in WRONG if what not in OFTEN])
def test_every_wrong_path_of_every_option_is_one_line(run, place, monkeypatch, what):
    refuse(run, place, monkeypatch, what)


def refuse(run, place, monkeypatch, what):
    """Runs a command with a wrong path and checks its message."""
    signal.alarm(60)
    monkeypatch.setenv("HOME", str(place / "directory.csv"))
    words, path = WRONG[what]
    before = {entry.name for entry in place.iterdir()}
    code, output, error = run(*(path if word == "{}" else word for word in words))
    assert code == 2, output + error
    assert len(error.strip().splitlines()) == 1, error
    assert error.startswith("error: ")
    assert len(error) < 700
    option, _, kind = what.partition(": ")
    if kind in ANY:
        assert error.startswith(f"error: {option.split()[-1]}: must be a path"), error
    assert {entry.name for entry in place.iterdir()} - before <= {"runs"}


def texts(function):
    """Returns name, annotation and callback of every text parameter of a command."""
    for name, hint in typing.get_type_hints(function, include_extras=True).items():
        for annotation in (hint, *typing.get_args(hint)):  # Python 3.10 wraps optional types.
            if typing.get_origin(annotation) is typing.Annotated and "str" in str(typing.get_args(annotation)[0]):
                base, information = typing.get_args(annotation)
                yield name, base, information.callback


COMMANDS = [command.callback for command in cli.app.registered_commands]
NO_PATHS = {
    *("overrides", "strategy", "algorithms", "seeds", "engine", "launcher"),
    *("slurm", "name", "paper", "imports", "tpu", "epochs"),
}
"""Text parameters that are not paths."""


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.__name__)
def test_every_path_of_the_command_line_is_checked_and_expanded(command, monkeypatch, place):
    monkeypatch.setenv("HOME", str(place))
    for name, base, callback in texts(command):
        if name in NO_PATHS:
            continue
        option = types.SimpleNamespace(opts=["--option"])
        path = "~/file" if name in ("config", "configs", "plan", "recordings", "images") else "~/new"
        many = "list" in str(base)
        if name == "configs" and not many:
            path = "~/directory.csv"
        elif (command.__name__, name) == ("plot", "output"):
            path = "~/new.png"
        value = callback(option, [path] if many else path)
        wanted = str(place / path[2:])
        assert value == ([wanted] if many else wanted), name
        with pytest.raises(InputError, match=r"^--option: must be a path"):
            callback(option, [""] if many else "")


def test_paths_in_files_are_expanded_and_checked(monkeypatch, place):
    monkeypatch.setenv("HOME", str(place))
    tfds = {"source": "tfds", "dataset": "mnist", "data_dir": "~/data", "index_file": "~/index"}
    config = configuration.load(QUICKSTART, [f"data={json.dumps(tfds)}"])
    assert (config.data.data_dir, config.data.index_file) == (str(place / "data"), str(place / "index"))
    imagenet = {"source": "imagenet", "train_files": "~/train-*", "validation_files": "gs://b/~/v-*"}
    config = configuration.load(QUICKSTART, [f"data={json.dumps(imagenet)}"])
    assert (config.data.train_files, config.data.validation_files) == (str(place / "train-*"), "gs://b/~/v-*")
    for key in ("data_dir", "index_file"):
        for wrong in ("", "a\0b", "a\nb", "x" * 300, "~no-such-user/x"):
            with pytest.raises(ConfigError, match=rf"data\.{key}: must be a path"):
                configuration.load(QUICKSTART, [f"data={json.dumps({**tfds, key: wrong})}"])
    (place / "search.yaml").write_text("config: ~/base.yaml\ntrials: 1\nspace: {epochs: {uniform: [0, 1]}}\n")
    with pytest.raises(ConfigError, match="is set by the search itself"):
        plans.load("search.yaml")
    (place / "search.yaml").write_text("config: ~/base.yaml\ntrials: 1\nspace: {weight_decay: {uniform: [0, 1]}}\n")
    assert plans.load("search.yaml").config == str(place / "base.yaml")
    assert plans.load("search.yaml", config="other.yaml").config == "other.yaml"


@pytest.mark.parametrize("path", ["fifo.csv", "/dev/zero", "zero", "directory.csv"])
def test_only_regular_files_are_read(place, path):
    (place / "run.yaml").write_text(f"base: {path}\n")
    with pytest.raises(ConfigError, match=rf"{path}: is .*\(base of run\.yaml\)"):
        configuration.load("run.yaml")
    for ending in (".npz", ".h5"):
        (place / f"link{ending}").symlink_to(path)
        with pytest.raises(DataError, match=r"link\.\w+: is "):
            recordings.load_recordings(f"link{ending}")
    files = {"source": "imagenet", "train_files": path, "validation_files": path, "image_size": 8}
    with pytest.raises(DataError, match=r"is (a directory|not a regular file)"):
        data.load(**files, batch_size=1, seed=0)
    (place / "train").write_bytes(b"x")
    with pytest.raises(
        DataError, match=r"data\.index_file: must be a regular file that can be read, or the path of a new file; found"
    ):
        data.load(**files | {"train_files": "train", "index_file": path}, batch_size=1, seed=0)


READERS = {
    "recordings": lambda: recordings.load_recordings("nofs://a/b.npz"),
    "images": lambda: recordings.load_images("nofs://a/b.h5"),
    "arrays": lambda: data.facts("npz", batch_size=1, seed=0, file="nofs://a/b.npz"),
    "index": lambda: index.index_files([], "nofs://a/b.npz"),
    "run": lambda: training.run.evaluate("nofs://a/b"),
    "initial state": lambda: initial_state.find("nofs://a/b"),
    "initial model": lambda: initial_state.find("nofs://a/b.keras"),
    "table": lambda: reporting.read_csv("nofs://a/b.csv"),
    "configuration": lambda: configuration.load("nofs://a/b.yaml"),
}


@for_each("kind", READERS)
def test_an_unknown_file_system_is_one_line(kind):
    with pytest.raises(InputError, match="File system scheme 'nofs' not implemented") as raised:
        READERS[kind]()
    assert str(raised.value).count("nofs://a/b") == 2
    assert "\n" not in str(raised.value)


def test_the_commands_report_an_unknown_file_system_in_one_line(run):
    code, _, error = run("search", SEARCH, "--search-dir", "nofs://a/b")
    assert (code, error) == (2, "error: File system scheme 'nofs' not implemented (file: 'nofs://a/b')\n")


def test_a_relative_path_in_a_file_starts_at_the_folder_of_the_file():
    assert paths.beside("a/b.yaml", "../c.yaml") == "a/../c.yaml"
    assert paths.beside("b.yaml", "c.yaml") == "c.yaml"
    assert paths.beside("/b.yaml", "c.yaml") == "/c.yaml"
    assert paths.beside("gs://bucket/a/b.yaml", "c.yaml") == "gs://bucket/a/c.yaml"
    assert paths.beside("a/b.yaml", "gs://bucket/c.yaml") == "gs://bucket/c.yaml"
    assert paths.beside("a/b.yaml", "/c.yaml") == "/c.yaml"


# Options that have no effect or are repeated.


def other(place, name, folder="."):
    path = place / folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"base: {QUICKSTART}\n")
    return path


REFUSED = {
    "a seed twice": (["compare", QUICKSTART, "--seeds", "0,0"], "--seeds must be different; found 0 twice"),
    "a seed twice, spelled otherwise": (["compare", QUICKSTART, "--seeds", "0,1, 00"], "found 0 twice"),
    "no seed": (["compare", QUICKSTART, "--seeds", ""], "--seeds must be integers separated by commas"),
    "half a seed": (["compare", QUICKSTART, "--seeds", "0,"], "--seeds must be integers"),
    "a seed beside the others": (["compare", QUICKSTART, "--set", "seed=5"], "--set seed=5: each run has its own seed"),
    "a file twice": (["compare", QUICKSTART, QUICKSTART], "is the same file as"),
    "a file twice, spelled otherwise": (
        ["compare", "run.yaml", "./run.yaml"],
        "./run.yaml: is the same file as run.yaml",
    ),
    "a file and a link": (["compare", "run.yaml", "link.yaml"], "link.yaml: is the same file as run.yaml"),
    "files of one name": (
        ["compare", "run.yaml", "sub/run.yaml"],
        "sub/run.yaml: would be trained in the same directories",
    ),
    "files of one name and other endings": (["compare", "run.yaml", "run.yml"], "same directories as run.yaml, run;"),
    "seeds of a search": (["search", SEARCH, "--seeds", "0,0"], "--seeds must be different"),
    "no seeds of a search": (["search", SEARCH, "--seeds", ""], "--seeds must be integers"),
    "algorithms": (
        ["search", SEARCH, "--algorithms", "tpe,tpe"],
        "--algorithms must be different; found tpe twice",
    ),
    "no algorithm": (["search", SEARCH, "--algorithms", ""], "--algorithms must be separated by commas"),
    "TPUs": (["search", SEARCH, "--engine", "tpu:a,a"], "must be names, each once"),
    "no TPU": (["search", SEARCH, "--engine", "tpu"], "must be names"),
    "no launcher": (["search", SEARCH, "--engine", "tpu:a", "--launcher", ""], "--launcher must contain"),
    "an open quote": (
        ["search", SEARCH, "--engine", "tpu:a", "--launcher", "x '{tpu} {config} {run_dir}"],
        "as a shell reads it",
    ),
    "no program": (
        ["search", SEARCH, "--engine", "tpu:a", "--launcher", "zzz {tpu} {config} {run_dir}"],
        "found 'zzz'",
    ),
    "recordings": (
        ["figure", "two_routes/3", "--recordings", "file"],
        "--recordings has no effect on figure two_routes/3",
    ),
    "configs": (
        ["table", "two_routes/1", "--configs", "directory.csv", "--output", "t"],
        "--configs has no effect on table two_routes/1, which is made without configurations; leave it out",
    ),
    "runs": (
        ["table", "two_routes/1", "--runs", "directory.csv", "--output", "t"],
        "--runs has no effect on table two_routes/1, which is made without runs; leave it out",
    ),
    "an engine of nothing": (
        ["table", "two_routes/1", "--engine", "processes:7", "--output", "t"],
        "--engine has no effect on table two_routes/1, which trains no runs; leave it out",
    ),
    "an engine without --lab": (
        ["table", "two_routes/4", "--engine", "slurm:8"],
        "--engine has no effect on table two_routes/4, which trains no runs without --lab; leave it out",
    ),
    "settings of SLURM without --lab": (
        ["figure", "two_routes/3", "--slurm", "time=60"],
        "--slurm has no effect on figure two_routes/3, which trains no runs without --lab; leave it out",
    ),
    "an empty engine": (["figure", "fa_mechanism/1b", "--engine", ""], "--engine must be one of"),
    "images": (["figure", "two_routes/S1", "--images", "file"], "--images has no effect on figure two_routes/S1"),
    "recordings of all": (["figure", "--recordings", "file"], "--recordings needs the name of a figure"),
    "an output of all": (["table", "--output", "x"], "--output needs the name of a table"),
}


@for_each("what", REFUSED)
def test_repeated_options_and_options_without_effect_are_refused(run, place, what):
    for name, folder in (("run.yaml", "."), ("run.yaml", "sub"), ("run.yml", ".")):
        other(place, name, folder)
    if not (place / "link.yaml").exists():
        (place / "link.yaml").symlink_to("run.yaml")
    words, said = REFUSED[what]
    code, output, error = run(*words, *(["--output", "table"] if words[0] == "compare" else []))
    assert code == 2, output
    assert said in error
    assert len(error.strip().splitlines()) == 1
    assert not (place / "runs").exists()


# Models that are too large.


@pytest.mark.parametrize(
    "override",
    [
        "model={name: fc, hidden: [1000000000]}",
        "model={name: fc, hidden: [9000000000000000000, 9000000000000000000]}",
        "model={name: convnet, filters: [10000000, 10000000]}",
        "model={name: resnet, depth: 18, width: 1000000}",
        "model={name: wide_cnn, design: kmnist, width: 10000000}",
        "loss={kind: half_squared_error, ones: 10000000000}",
        "loss={kind: half_squared_error, units: 9000000000000000000}",
    ],
)
def test_a_model_too_large_for_memory_is_one_line(run, override):
    code, _, error = run("describe", QUICKSTART, "--set", override)
    assert code == 2
    assert "too large for the memory of this machine" in error
    assert len(error.splitlines()) == 1


def test_a_size_that_is_too_large_is_named(run):
    """Also if it is not the width of the model."""
    large = 10**18
    code, _, error = run("describe", QUICKSTART, "--set", f"model={{name: vision_transformer, patch: {large}}}")
    assert code == 2
    assert f"model.patch: must divide the height and width of the images (8 x 8); found {large}" in error
    code, _, error = run("describe", QUICKSTART, "--set", f"model={{name: vision_transformer, expansion: {large}}}")
    assert code == 2
    assert f"model.patch 4, model.width 64, model.depth 4, model.expansion {large}, 10 outputs" in error


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (f"model={{name: fc, hidden: {[1] * 129}}}", "model.hidden: list should have at most 128 items"),
        (f"model={{name: convnet, filters: {[1] * 129}}}", "model.filters: list should have at most 128 items"),
        (
            "data={source: tfds, dataset: mnist, image_size: 65537}",
            "data.image_size: input should be less than or equal",
        ),
        ("runtime={strategy: mirrored, replicas: 4097}", "runtime.replicas: input should be less than or equal"),
    ],
)
def test_a_size_that_only_fails_late_is_refused_early(override, said):
    with pytest.raises(ConfigError, match=said):
        configuration.load(QUICKSTART, [override])


@pytest.mark.parametrize("rule", ["{rule: symmetric, self_: 1, decay: 1}", "null"])
@pytest.mark.parametrize(
    "model",
    [
        "{name: fc, hidden: [3, 4]}",
        "{name: convnet, filters: [2, 3]}",
        "{name: resnet, depth: 18, width: 1, stem: cifar}",
        "{name: wide_cnn, design: kmnist, width: 2}",
    ],
)
def test_the_memory_that_a_model_takes_is_not_overestimated(monkeypatch, model, rule):
    overrides = [f"model={model}", f"alignment={rule}", *(["optimization.backward=null"] if rule == "null" else [])]
    config = configuration.load(QUICKSTART, overrides)
    built = setup.build_model(config, 10, (8, 8, 1), 44)
    taken = sum(4 * weight.shape.num_elements() for weight in built.weights if weight.name.endswith("kernel"))
    monkeypatch.setattr(memory, "available", lambda: taken)
    memory.check(config, 10, (8, 8, 1))
    monkeypatch.setattr(memory, "available", lambda: 10)
    with pytest.raises(ConfigError, match="too large"):
        memory.check(config, 10, (8, 8, 1))


def test_any_failed_allocation_is_one_line(run, monkeypatch):
    import tensorflow as tf

    def fails(*_):
        raise tf.errors.ResourceExhaustedError(None, None, "{{node x}} OOM when allocating tensor with shape[64,9]")

    monkeypatch.setattr(setup, "_draw_model", fails)
    code, _, error = run("describe", QUICKSTART)
    assert (code, len(error.splitlines())) == (2, 1)
    assert "model: cannot be created with model.filters [16, 32]: OOM when allocating tensor with shape[64,9]" in error
    monkeypatch.setattr(setup, "build_model", fails)
    code, _, error = run("describe", QUICKSTART)
    assert (code, error.count("\n")) == (2, 1)
    assert error.startswith("error: OOM when allocating tensor with shape[64,9]")


def test_control_characters_in_messages_are_escaped(run):
    for words in (["table", "a\x1b[2Jb"], ["lab", "a\0b"], ["describe", QUICKSTART, "--set", "a\udcff=1"]):
        code, _, error = run(*words)
        assert code == 2
        assert error.rstrip("\n").isprintable()


def test_an_evaluation_batch_far_larger_than_the_data_takes_no_memory():
    config = configuration.load(QUICKSTART, ["evaluation.batch_size=9000000000000000000"])
    [(images, _)] = list(setup.load_data(config).validation())
    assert images.shape[0] == 360


# Child processes.


def python(code, start_new_session=False, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        start_new_session=start_new_session,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3", **environment},
    )


def test_worker_processes_start_without_the_log_lines_of_tensorflow(place):
    """The server of forks imports this package first; it writes to the standard error of its parent."""
    assert children.PRELOADED[0].startswith("neural_alignment.jobs.")
    (place / "tensorflow.py").write_text("import os\nos.write(2, b'noise\\n')\n")
    code = "import neural_alignment.jobs, sys; print('tensorflow' in sys.modules, file=sys.stderr)"
    result = python(code, PYTHONPATH=f"{place}:{ROOT}")
    assert (result.returncode, result.stderr) == (0, "True\n")


FAILURES = {
    "an exception": ("raise ImportError('it is broken')", 1, "ImportError: it is broken"),
    "an abort": ("os.abort()", -signal.SIGABRT, "no such device"),
    "an exit in C": ("os._exit(3)", 3, "no such device"),
}
"""Failure of the import of TensorFlow -> the code, the exit code, and the last line."""


@pytest.mark.parametrize("failure", FAILURES)
def test_the_reason_why_the_import_of_tensorflow_fails_is_shown(place, failure):
    code, exit_code, last = FAILURES[failure]
    result = import_fake_tensorflow(place, code)
    assert result.returncode == exit_code
    lines = result.stderr.splitlines()
    assert (lines[0], lines[-1]) == ("no such device", last)


def test_the_log_lines_of_tensorflow_are_not_shown_after_ctrl_c(place):
    result = import_fake_tensorflow(place, "import signal; os.killpg(0, signal.SIGINT)", start_new_session=True)
    assert "KeyboardInterrupt" in result.stderr
    assert "no such device" not in result.stderr


def import_fake_tensorflow(place, code, **options):
    """Imports a module that writes a line and runs `code`, in a new process."""
    (place / "tensorflow.py").write_text(f"import os\nos.write(2, b'no such device\\n')\n{code}\n")
    program = "from neural_alignment import quiet; quiet.import_tensorflow()"
    return python(program, PYTHONPATH=f"{place}:{ROOT}", **options)
