"""The command line: output and exit codes."""

import csv
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import keras
import pytest
import tensorflow as tf
import typer.main
from helpers import exhaustive_unless
from prepared_run import PreparedRuns

from neural_alignment import cli, command_options, compare, losses, plots
from neural_alignment.jobs import plans
from neural_alignment.jobs.engines.slurm_options import SlurmOptions
from neural_alignment.papers import commands as papers
from neural_alignment.training import hparams, lock, stepping

ROOT = Path(__file__).parent.parent
QUICKSTART = str(ROOT / "configs" / "quickstart.yaml")
FAST = ["--set", "epochs=1", "--set", "max_steps=2", "--set", "logging.tensorboard=false"]
SMALL = [*FAST, "--set", "model={name: fc, hidden: [5]}", "--set", "evaluation.probe_examples=0"]
"""For tests that do not look at the network: half of the time."""


@pytest.fixture(scope="module", autouse=True)
def prepared():
    """Prepares data and model once for runs of one configuration."""
    with PreparedRuns().in_use():
        yield


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    """Runs the command line in an empty directory. Returns exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plots, "png", lambda figure: b"")  # It takes as long as some of these runs.

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["neural-alignment", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        output = capsys.readouterr()
        return end.value.code or 0, output.out, output.err

    return call


def test_train_prints_accuracy_angles_and_the_run_directory(run, tmp_path):
    code, output, error = run("train", QUICKSTART, *FAST)
    assert code == 0, error
    lines = output.splitlines()
    assert sum(line.startswith("step ") for line in lines) == 2
    assert any(line.startswith("validation accuracy  ") and line.endswith(" %") for line in lines)
    assert [line.split()[0] for line in lines[-6:-3]] == ["conv1", "conv2", "dense"]
    assert lines[-2] == f"run directory  {os.path.join('runs', 'quickstart')}"
    assert lines[-1] == f"summary        {os.path.join('runs', 'quickstart', 'summary.png')}"
    assert (tmp_path / "runs" / "quickstart" / "summary.png").exists()
    assert (tmp_path / "runs" / "quickstart" / "model.keras").exists()


def test_evaluate_agrees_with_the_run(run, tmp_path):
    run("train", QUICKSTART, *SMALL, "--run-dir", "here")
    code, output, _ = run("evaluate", "here")
    assert code == 0
    results = dict(line.split() for line in output.splitlines())
    status = json.loads((tmp_path / "here" / "status.json").read_text())
    assert float(results["top1"]) == pytest.approx(status["top1"], abs=1e-5)


def test_describe_counts_parameters_and_the_products_of_each_rule(run):
    rules = {
        "{rule: feedback}": 0,
        "{rule: sign_symmetry}": 0,
        "{rule: symmetric, self_: 1, decay: 1}": 0,
        "{rule: activation, amp: 1, sparse: 1}": 2,
        "{rule: weight_mirror, amp: 1, decay: 1, input: {noise: normal}}": 2,
        "{rule: information, amp: 1, decay: 1, null: 1, input: {noise: normal}}": 3,
    }
    for rule, products in rules.items():
        plain = ["--set", "optimization.backward=null"] if products == 0 and "symmetric" not in rule else []
        code, output, error = run("describe", QUICKSTART, *plain, "--set", f"alignment={rule}")
        assert code == 0, error
        rows = [line.split() for line in output.splitlines()]
        convolution = next(row for row in rows if row and row[0] == "conv2")
        assert (convolution[2], convolution[3]) == ("4,608", "4,608"), rule
        assert int(convolution[-1]) == products, rule
        # conv2: 3 x 3 x 16 x 32 kernel at 4 x 4 places.
        assert float(convolution[4]) == pytest.approx(2 * 4608 * 16 / 1e6, abs=1e-3)
    assert "1,437 training and 360 validation examples, 44 steps per epoch" in output
    assert "not trained" not in output
    trained = int(re.search(r"parameters  forward ([0-9,]+)", output)[1].replace(",", ""))
    _, output, _ = run("describe", QUICKSTART, "--set", "model.batch_norm_trainable=false")
    assert int(re.search(r"parameters  forward ([0-9,]+)", output)[1].replace(",", "")) == trained - 2 * (16 + 32)
    assert "not trained 96 (scale and shift of batch normalisation)" in output


@pytest.mark.exhaustive
def test_describe_counts_the_products_of_layers_of_keras(run):
    """A network without a rule from `keras.applications` has no layer of this library."""
    files = {"train_files": "none", "validation_files": "none", "train_examples": 100, "validation_examples": 10}
    data = json.dumps({"source": "imagenet", "image_size": 32, **files})
    network = ["--set", f"data={data}", "--set", "model.arguments={alpha: 0.35}", "--set", "batch_size=10"]
    costs = {}
    for rule in ("null", "{rule: feedback}"):
        options = ["--set", f"alignment={rule}", "--set", "optimization.backward=null"]
        code, output, error = run("describe", "cifar10/mobilenet_v2", *network, *options)
        assert code == 0, error
        rows = [line.split() for line in output.splitlines()]
        [cost] = [row[1] for row in rows if row and row[0] == "backpropagation" and "GFLOP" in row]
        costs[rule] = (
            float(cost),
            {row[0]: row[4] for row in rows if len(row) == 6 and row[1] in ("feedback", "backpropagation")},
        )
    assert len(costs["null"][1]) > 50
    assert costs["null"] == costs["{rule: feedback}"]


def test_describe_counts_the_steps_of_rules_for_a_whole_network(run):
    """Uses images of 8 x 8 pixels; the outputs of the convolutions have sides of 8, 8, 8, 4, 4, 2 and 2."""
    config = ROOT / "configs" / "wide_networks" / "cifar10" / "normal.yaml"
    digits = ("--set", "data={source: digits}", "--set", "evaluation.test_split=null", "--set", "model.width=16")
    weights = 9 * 16 + 6 * 144 * 16 + 7 * 16 + 16 * 10 + 10
    maps = 16 * (3 * 8 * 8 + 2 * 4 * 4 + 2 * 2 * 2) * 10
    costs = {}
    for rule, kept in {"align_ada": weights, "align_zero": weights, "dfa": maps, "last_layer": 0}.items():
        code, output, error = run("describe", config, *digits, "--set", f"alignment={{rule: {rule}}}")
        assert code == 0, error
        assert f"kept        {kept:,} numbers by {rule}" in output
        assert "R step" not in output
        [step] = [line.split() for line in output.splitlines() if line.startswith("J step")]
        costs[rule] = float(step[-1])
    first, last = 9 * 16 * 64, 160
    once = first + 2304 * (2 * 64 + 2 * 16 + 2 * 4) + last  # A product of every kernel with one example.
    steps = {
        "align_zero": 4 * once - first,  # Forward, forward through the frozen network, error, kernels.
        "align_ada": 4 * once - first,
        "dfa": 2 * once + maps,
        "last_layer": once + last,
    }
    for rule, step in steps.items():
        assert costs[rule] == pytest.approx(step / (3 * once - first), abs=0.0051), rule


def test_schema_is_json(run):
    code, output, _ = run("schema")
    assert code == 0
    assert "optimization" in json.loads(output)["properties"]


def test_compare_writes_a_line_per_run_and_does_not_train_twice(run, tmp_path):
    feedback = tmp_path / "feedback.yaml"
    feedback.write_text(f"base: {QUICKSTART}\nalignment: {{rule: feedback}}\noptimization: {{backward: null}}\n")
    command = ("compare", QUICKSTART, feedback, "--seeds", "0,1", *SMALL, "--output", "tables/rules")
    command += ("--engine", "in-process")
    code, _, error = run(*command)
    assert code == 0, error
    table = (tmp_path / "tables" / "rules.csv").read_text().splitlines()
    assert table[0].startswith("config,seed,top1,")
    assert len(table) == 5
    markdown = (tmp_path / "tables" / "rules.md").read_text()
    assert markdown.count("±") == 6
    models = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("model.keras")}
    assert len(models) == 4
    assert run(*command)[0] == 0
    assert models == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("model.keras")}
    assert (tmp_path / "tables" / "rules.csv").read_text().splitlines() == table


def test_a_table_is_written_if_the_folder_of_the_runs_is_only_read(run, tmp_path, monkeypatch):
    command = ("compare", QUICKSTART, "--seeds", "0", *SMALL, "--set", "logging.tensorboard=true", "--output", "table")
    command += ("--engine", "in-process")
    assert run(*command)[0] == 0
    table = (tmp_path / "table.md").read_text()
    (tmp_path / "table.md").unlink()
    monkeypatch.setattr(
        hparams, "write_experiment", refused(tf.errors.PermissionDeniedError, "runs: Permission denied")
    )
    assert run(*command)[0] == 0
    assert (tmp_path / "table.md").read_text() == table


def refused(kind, message):
    """Returns a function that raises an error of TensorFlow."""

    def function(*arguments, **options):
        raise kind(None, None, message)

    return function


def test_a_summary_that_cannot_be_written_does_not_hide_the_result(run, monkeypatch):
    full = refused(tf.errors.ResourceExhaustedError, "runs/quickstart/summary.png.partial; No space left on device")
    monkeypatch.setattr(plots, "write", full)
    code, output, error = run("train", QUICKSTART, *SMALL)
    assert (code, error) == (0, "")
    assert "validation accuracy  " in output
    last = "summary        not drawn: runs/quickstart/summary.png.partial: No space left on device; free some space"
    assert output.splitlines()[-1].startswith(last)
    code, _, error = run("plot", "runs/quickstart")
    assert (code, error.count("\n")) == (2, 1)
    assert "No space left on device; free some space, then repeat the command" in error
    monkeypatch.setattr(plots, "write", refused(tf.errors.PermissionDeniedError, "runs/quickstart: Permission denied"))
    code, _, error = run("train", QUICKSTART, *SMALL, "--force", "--set", "optimization.backward.learning_rate=1e30")
    assert code == 3
    assert error.startswith("diverged: ")


@pytest.mark.parametrize(
    ("command", "line"),
    [
        (["train", QUICKSTART], "stopped; continue with --resume"),
        (["search", "lab/information"], "stopped; the same command continues"),
        (["describe", QUICKSTART], "stopped"),
    ],
)
def test_after_ctrl_c_the_last_line_says_how_to_continue_if_the_command_can(run, monkeypatch, command, line):
    def interrupted(imports):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_start", interrupted)
    assert run(*command) == (1, "", f"{line}\n")


@pytest.mark.parametrize("name", ["hidden=[5]", "what?", "all*", "a\\b"])
def test_a_run_directory_that_tensorflow_would_read_as_a_pattern_is_refused_before_training(run, tmp_path, name):
    code, _, error = run("train", QUICKSTART, *SMALL, "--run-dir", f"runs/{name}")
    assert (code, error.count("\n")) == (2, 1)
    assert f"runs/{name}: the path of a run must not contain {re.sub('[a-z0-9=]', '', name)[0]}, because" in error
    assert not (tmp_path / "runs").exists()


def test_a_folder_does_not_hide_a_configuration_of_the_same_name(run, tmp_path):
    (tmp_path / "quickstart").mkdir()
    (tmp_path / "lab" / "information").mkdir(parents=True)
    (tmp_path / "mine.yaml").write_text("base: quickstart\n")
    for name in ("quickstart", "mine.yaml"):
        code, output, error = run("describe", name)
        assert code == 0, error
        assert "conv1" in output
    assert cli._search_file("lab/information").endswith("search/lab/information.yaml")
    code, _, error = run("describe", "lab")
    assert code == 2
    assert "lab: is a directory; give the path of a YAML file" in error


def test_a_folder_of_runs_without_effect_is_refused(run, tmp_path):
    code, _, error = run("table", "two_routes/5", "--runs", "here")
    assert (code, error.count("\n")) == (2, 1)
    assert "--runs has no effect on table two_routes/5, which is made without runs; leave it out" in error
    assert run("table", "two_routes/5", "--runs", "here", "--output", "there")[0] == 2
    configs = str(Path(QUICKSTART).parent)
    assert run("table", "two_routes/5", "--configs", configs, "--output", "there")[0] == 0
    assert (tmp_path / "there" / "table_5.csv").exists()


def test_a_run_that_diverged_before_its_first_row_is_a_line_without_values(run, tmp_path, monkeypatch):
    wild = ("compare", QUICKSTART, "--seeds", "0", *SMALL, "--output", "table", "--engine", "in-process")
    assert run(*wild, "--set", "optimization.forward.learning_rate=1e30")[0] == 0
    read = plans.Cell.read
    monkeypatch.setattr(plans.Cell, "read", lambda *where: [replace(each, rows=[]) for each in read(*where)])
    code, output, error = run(*wild, "--set", "optimization.forward.learning_rate=1e30")
    assert code == 0, error
    assert "| 10.00, 1 diverged | none |  |" in output


def test_compare_counts_a_diverged_run_as_chance_and_leaves_out_a_diverged_loss(run, tmp_path, monkeypatch):
    """The runs of two seeds; the second one diverged after an evaluation, which its row shows."""
    command = ("compare", QUICKSTART, "--seeds", "0,1", *SMALL, "--output", "table", "--engine", "in-process")
    assert run(*command)[0] == 0
    first, second = csv.DictReader((tmp_path / "table.csv").read_text().splitlines())
    read = plans.Cell.read
    monkeypatch.setattr(
        plans.Cell, "read", lambda *where: [replace(each, diverged=each.config.seed == 1) for each in read(*where)]
    )
    code, output, error = run(*command)
    assert code == 0, error
    top1 = 100 * float(first["top1"])
    mean, deviation = (top1 + 10) / 2, abs(top1 - 10) / 2**0.5
    angles = f"{float(first['first_angle']):.2f} to {float(first['last_angle']):.2f}"
    seconds = f"{float(first['seconds']):.0f}"
    assert f"| 2 | {mean:.2f} ± {deviation:.2f}, 1 diverged | {angles} | {seconds} |" in output
    assert output.endswith("A run that diverged counts as chance; its angles and its time are left out.\n")
    again, diverged = csv.DictReader((tmp_path / "table.csv").read_text().splitlines())
    assert again == first
    assert diverged == {**second, "top1": "0.1", "diverged": "1"} | dict.fromkeys(
        ("first_angle", "last_angle", "last_angle_max"), ""
    )
    rows = [{"config": "a", "J": value, "diverged": value is math.nan, "seconds": 1.0} for value in (0.5, math.nan)]
    table = compare._table(rows, ["a"], losses.SMALLEST_LOSS)
    assert "| a | 2 | 0.50 (1 of 2), 1 diverged | none | 1 |" in table
    assert table.endswith("|\n\nRuns that diverged are left out.")


def test_compare_rejects_the_result_of_another_configuration(run):
    wild = ["--set", "optimization.forward.learning_rate=1e30"]
    command = ("compare", QUICKSTART, "--seeds", "0", *SMALL, "--output", "table", "--engine", "in-process")
    code, output, error = run(*command, *wild)
    assert code == 0, error
    assert "1 diverged" in output
    code, _, error = run(*command)
    assert code == 2
    assert "another configuration: optimization.forward.learning_rate was" in error


def test_noise_without_variables_is_one_line(run):
    noise = ["--set", "optimization.forward.noise={variance: 1, only: zzz}"]
    code, _, error = run("train", QUICKSTART, *SMALL, *noise)
    assert code == 2
    assert "`only` must be part of the path of a variable" in error


@pytest.mark.parametrize(
    "arguments", [["train"], ["train", QUICKSTART, "--bogus"], ["trian"], ["compare", QUICKSTART, "--seeds", "0"]]
)
def test_wrong_use_is_one_line(run, arguments):
    code, _, error = run(*arguments)
    assert code == 2
    assert len(error.strip().splitlines()) == 1
    assert error.strip().endswith("; see --help")
    assert ".;" not in error


def test_the_versions_are_those_of_the_packages_also_beside_a_damaged_package(run, tmp_path, monkeypatch):
    (tmp_path / "site" / "foo-1.0.dist-info").mkdir(parents=True)
    monkeypatch.syspath_prepend(tmp_path / "site")
    code, output, error = run("--version")
    assert code == 0, error
    found = dict(line.split() for line in output.splitlines())
    assert next(iter(found)) == "neural_alignment"
    assert found["keras"] == keras.__version__
    assert {version for name, version in found.items() if name.startswith("tensorflow")} == {tf.__version__}


def test_without_arguments_the_help_is_shown(run):
    code, output, _ = run()
    assert code == 0
    assert "describe" in output


def test_the_help_names_all_papers_all_options_of_slurm_and_the_default_engine():
    commands = typer.main.get_command(cli.app).commands
    helps = {each.opts[0]: each.help for each in commands["lab"].params}
    assert set(re.findall(r"\w+", helps["paper"])) - {"or"} == {item.paper for item in papers.ITEMS}
    assert all(re.search(rf"\b{name}\b", helps["--slurm"]) for name in SlurmOptions.model_fields)
    assert f"Default: {command_options.PROCESSES}" in helps["--engine"]
    assert "the lab profile" in helps["--runs"]
    assert "the lab profile" in helps["--output"]


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.exhaustive)])
def test_a_signal_prints_one_line_with_the_way_to_continue(run, monkeypatch, tmp_path, number):
    original = stepping.Stepper.__call__

    def interrupted(self, limit):
        results = original(self, limit)
        os.kill(os.getpid(), number)
        return results

    with monkeypatch.context() as patch:
        patch.setattr(stepping.Stepper, "__call__", interrupted)
        code, _, error = run("train", QUICKSTART, *SMALL)
    assert code == 1
    assert error.strip() == f"stopped: {number.name} at step 1, which is saved; continue with --resume"
    status = json.loads((tmp_path / "runs" / "quickstart" / "status.json").read_text())
    assert (status["state"], status["step"]) == ("stopped", 1)
    code, output, error = run("train", QUICKSTART, *SMALL, "--resume")
    assert code == 0, error
    assert "step 2 " in output


def test_a_working_directory_that_was_deleted_is_one_line(run, tmp_path, monkeypatch):
    (tmp_path / "deleted").mkdir()
    monkeypatch.chdir(tmp_path / "deleted")
    (tmp_path / "deleted").rmdir()
    for words in (["describe", "quickstart"], ["train", QUICKSTART]):
        code, output, error = run(*words)
        assert (code, output) == (2, "")
        assert error == "error: the working directory no longer exists; change to another one\n"


def test_a_run_in_use_by_another_process_is_rejected(run):
    assert run("train", QUICKSTART, *SMALL, "--run-dir", "here")[0] == 0
    with lock.held("here"):
        code, _, error = run("train", QUICKSTART, *SMALL, "--run-dir", "here", "--force")
    assert code == 2
    assert error.startswith(f"error: here: is in use by process {os.getpid()} on ")
    assert error.endswith("; wait until it has ended, or choose another directory\n")
    assert len(error.splitlines()) == 1


def tfrecord(path, count=6, label=1, corrupt=None):
    image = tf.io.encode_jpeg(tf.zeros([8, 8, 3], tf.uint8)).numpy()
    features = {
        "image/encoded": tf.train.Feature(bytes_list=tf.train.BytesList(value=[image])),
        "image/class/label": tf.train.Feature(int64_list=tf.train.Int64List(value=[label])),
    }
    example = tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()
    with tf.io.TFRecordWriter(str(path)) as writer:
        for _ in range(count):
            writer.write(example)
    if corrupt is not None:
        content = bytearray(path.read_bytes())
        content[corrupt] ^= 0xFF
        path.write_bytes(content)


def imagenet(tmp_path, **options):
    tfrecord(tmp_path / "train-0", **options)
    tfrecord(tmp_path / "validation-0")
    data = {"train_files": "train-*", "validation_files": "validation-*", "image_size": 8, "classes": 10}
    return ["--set", f"data={json.dumps({'source': 'imagenet', **data})}", "--set", "batch_size=2"]


def bad_input(tmp_path):
    """Returns, by kind of error, the arguments of `train` and part of the message."""
    missing = tmp_path / "nowhere"
    return {
        "unknown key": (["--set", "epoch=3"], "did you mean 'epochs'"),
        "wrong type": (["--set", "epochs=three"], "epochs: input should be a valid integer; found 'three'"),
        "a rule's weight missing": (["--set", "alignment={rule: activation, amp: 1}"], "alignment.sparse: this key"),
        "a batch larger than the data": (["--set", "batch_size=2000"], "batch_size"),
        "a missing data directory": (
            ["--set", f"data={{source: tfds, dataset: mnist, data_dir: '{missing}', download: false}}"],
            "nowhere",
        ),
        "both resume and force": (["--resume", "--force"], "exclude each other"),
        "both resume-from and force": (
            ["--resume-from", "3", "--force"],
            "--resume-from and --force exclude each other",
        ),
        "a step below 0": (["--resume-from", "-1"], "--resume-from"),
        "going back in no run": (["--resume-from", "3"], "contains no run that could go back to step 3"),
        "a pattern without layers": (
            ["--set", "alignment.layers=none*"],
            "alignment.layers: must match at least one layer; the layers are conv1, conv2, dense; found 'none*'",
        ),
        "smoke as an override": (["--set", "smoke.epochs=1"], "smoke is a key of files; --smoke applies it"),
        "base as an override": (["--set", "base=other"], "base is a key of files; give the configuration"),
        "an alternation too large for TensorFlow": (["--set", f"optimization.alternation={2**63 - 1}"], "2147483648"),
    }


@pytest.mark.parametrize("what", bad_input(Path("/tmp")))
def test_bad_input_is_one_line_and_an_exit_code(run, tmp_path, what):
    arguments, part = bad_input(tmp_path)[what]
    code, output, error = run("train", QUICKSTART, *arguments)
    assert code == (4 if what == "a missing data directory" else 2)
    assert len(error.strip().splitlines()) == 1, error
    assert error.startswith("error: ")
    assert part in error
    assert "Traceback" not in output + error
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("what", "options", "part"),
    [
        ("an empty TFRecord", {"count": 0}, "train-0"),
        ("a corrupt TFRecord", {"corrupt": 200}, "train-0"),
        ("labels out of range", {"label": 11}, "label"),
    ],
)
def test_bad_records_are_one_line_naming_the_file(run, tmp_path, what, options, part):
    arguments = imagenet(tmp_path, **options)
    code, output, error = run("train", QUICKSTART, *arguments, *SMALL)
    assert code == (2 if what == "labels out of range" else 4)
    assert len(error.strip().splitlines()) == 1, error
    assert part in error
    assert "train-0" in error
    assert "Traceback" not in output + error


@pytest.mark.exhaustive
def test_sound_records_of_that_kind_are_trained(run, tmp_path):
    code, _, error = run("train", QUICKSTART, *imagenet(tmp_path), *SMALL)
    assert code == 0, error


def test_an_existing_run_and_another_configuration_are_refused(run):
    assert run("train", QUICKSTART, *SMALL)[0] == 0
    code, _, error = run("train", QUICKSTART, *SMALL)
    assert code == 2
    assert "--force replaces it" in error
    code, _, error = run("train", QUICKSTART, *SMALL, "--set", "seed=5", "--resume")
    assert code == 2
    assert "seed was 0, is now 5" in error
    assert run("train", QUICKSTART, *SMALL, "--force")[0] == 0


def test_resume_says_so_if_there_is_no_run_to_resume(run):
    """With the stored configuration, the default directory is another one."""
    line = "runs/config: contains no run to resume; a new one starts"
    assert run("train", QUICKSTART, *SMALL, "--run-dir", "first")[0] == 0
    code, output, _ = run("train", "first/config.yaml", "--resume", "--run-dir", "first")
    assert (code, "no run to resume" in output) == (0, False)
    code, output, _ = run("train", "first/config.yaml", "--resume")
    assert (code, output.splitlines()[0]) == (0, line)
    code, output, _ = run("train", "first/config.yaml", "--force")
    assert (code, line in output) == (0, False)


def test_a_diverged_run_ends_with_3(run):
    code, _, error = run("train", QUICKSTART, "--set", "optimization.backward.learning_rate=1e30")
    assert code == 3
    assert len(error.strip().splitlines()) == 1
    assert error.startswith("diverged: R of layer ")


@pytest.mark.parametrize("command", [["evaluate", "none"], ["describe", "none.yaml"], ["train", "none.yaml"]])
def test_missing_files_are_reported(run, command):
    code, _, error = run(*command)
    assert code == 2
    assert "none" in error
    allowed = "give the path of a YAML file, or a name that `neural-alignment configs` lists"
    assert command[0] == "evaluate" or error == f"error: none.yaml: no such file; {allowed}\n"
    assert len(error.strip().splitlines()) == 1


SMOKE = [
    ("kolen_pollack", ("model={name: convnet, filters: [4]}", "logging.kernels=[conv1]")),
    ("kolen_pollack", ("model.width=4",)),
    ("weight_mirror_adam_ops", ("model.width=4",)),
]


@pytest.mark.parametrize(("name", "smaller"), exhaustive_unless(SMOKE, SMOKE[:1]))
def test_smoke_of_a_configuration_of_the_paper(run, name, smaller):
    config = ROOT / "configs" / "two_routes" / "resnet18" / f"{name}.yaml"
    code, output, error = run("train", config, "--smoke", *(word for value in smaller for word in ("--set", value)))
    assert code == 0, error
    assert "step 2 " in output
    assert f"run directory  {os.path.join('runs', 'smoke', 'two_routes', 'resnet18', name)}" in output


@pytest.mark.exhaustive
@pytest.mark.parametrize("rule", ["feedback", "sign_symmetry"])
def test_smoke_of_the_rules_that_the_paper_does_not_tabulate(run, rule):
    if not os.path.isdir(os.path.join(os.environ.get("TFDS_DATA_DIR", ""), "mnist")):
        pytest.skip("no mnist in TFDS_DATA_DIR")
    few = ("--set", "data.train_split=train[:640]", "--set", "data.validation_split=test[:500]")
    code, output, error = run("train", ROOT / "configs" / "mnist" / "convnet" / f"{rule}.yaml", "--smoke", *few)
    assert code == 0, error
    assert "step 2 " in output


def test_the_installed_command_runs():
    command = shutil.which("neural-alignment", path=os.path.dirname(sys.executable))
    arguments = [command] if command else [sys.executable, "-m", "neural_alignment.cli"]
    # A mistake that is found before TensorFlow is imported, which takes seconds.
    result = subprocess.run([*arguments, "train"], capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.returncode == 2
    assert result.stderr == "error: Missing argument 'CONFIG'; see --help\n"


def test_describe_needs_no_data_if_the_configuration_gives_their_shape(run):
    code, output, error = run("describe", ROOT / "configs" / "two_routes" / "resnet18" / "symmetric.yaml")
    assert code == 0, error
    # B has the size of W, which is everything except 2 x 4,864 batch-normalisation parameters and 1,000 biases.
    assert "forward 11,693,736 (batch normalisation included)  backward 11,683,008" in output
    assert "1,281,167 training and 50,000 validation examples, 5,004 steps per epoch at batch 256" in output


def test_compare_keeps_an_earlier_table_until_it_has_a_row_and_checks_early_that_it_can_write(run, tmp_path):
    earlier = "config,seed,top1,first_angle,last_angle,last_angle_max,diverged,seconds\n"
    (tmp_path / "table.csv").write_text(earlier)
    here = (*SMALL, "--engine", "in-process")
    assert run("compare", QUICKSTART, "--seeds", "0", *here, "--set", "batch_size=4000", "--output", "table")[0] == 2
    assert (tmp_path / "table.csv").read_text() == earlier
    (tmp_path / "file").write_text("")
    code, _, error = run("compare", QUICKSTART, "--seeds", "0", *SMALL, "--output", "file/table")
    assert code == 2
    assert "--output: must be a directory; found file, which is a file" in error
    assert not list((tmp_path / "runs").iterdir())


@pytest.mark.parametrize("name", ["notes.md", "notes.png", "notes.csv"])
def test_compare_replaces_no_file_that_is_not_its_table(run, tmp_path, name):
    """`metrics.csv` of a run would be one."""
    (tmp_path / name).write_text("step,epoch\n")
    code, _, error = run("compare", QUICKSTART, "--seeds", "0", *SMALL, "--output", "notes")
    assert (code, error) == (
        2,
        f"error: {name}: exists and is not such a table; name other files with --output, or move it away\n",
    )
    assert (tmp_path / name).read_text() == "step,epoch\n"
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(("seeds", "found"), [("-1", "-1"), ("0,2147483648", "2147483648")])
def test_compare_blames_the_option_for_a_seed_out_of_range(run, seeds, found):
    code, _, error = run("compare", QUICKSTART, "--seeds", seeds, *SMALL, "--output", "table")
    assert (code, error) == (2, f"error: --seeds must be integers from 0 to 2147483647; found {found}\n")


@pytest.mark.parametrize("name", ["search/lab/information", "base.yaml"])
def test_a_search_in_place_of_a_run_is_told_apart(run, tmp_path, name):
    (tmp_path / "base.yaml").write_text("base: search/lab/information\n")
    for command in ("train", "describe"):
        code, _, error = run(command, name)
        assert code == 2
        assert "information.yaml: is a search and not the configuration of a run" in error
        assert "`neural-alignment search lab/information` runs it" in error
        assert ("(base of base.yaml)" in error) == (name == "base.yaml")


def test_a_run_in_place_of_a_search_is_told_apart(run):
    code, _, error = run("search", "quickstart")
    assert code == 2
    assert (
        "quickstart.yaml: is the configuration of a run and not a search; `neural-alignment train quickstart`" in error
    )


def test_smoke_needs_its_key(run, tmp_path):
    (tmp_path / "plain.yaml").write_text((ROOT / "configs" / "quickstart.yaml").read_text().partition("smoke:")[0])
    code, _, error = run("train", "plain.yaml", "--smoke")
    assert (code, error) == (2, "error: --smoke needs the key smoke, which plain.yaml does not have\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["table", "--lab"], "--lab needs the name of a table, such as two_routes/1"),
        (["figure", "--recordings", "file"], "--recordings needs the name of a figure, such as two_routes/6"),
        (
            ["table", "two_routes/4", "--configs", "nowhere"],
            "--configs: must be a directory with configurations; found",
        ),
    ],
)
def test_options_without_an_effect_on_tables_and_figures_are_refused(run, tmp_path, words, message):
    (tmp_path / "file").write_text("")
    code, _, error = run(*words)
    assert code == 2
    assert error.startswith(f"error: {message}")


@pytest.mark.parametrize("name", ["quickstart.yaml", "configs/quickstart", "configs/quickstart.yaml"])
def test_configs_takes_the_paths_that_other_commands_take(run, name):
    assert run("configs", name)[:2] == run("configs", "quickstart")[:2]
