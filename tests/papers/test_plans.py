"""Plans of runs: trained once, shared, gone on with, and read; with the real trainer on small networks."""

import csv
import json
import os
import re
import shutil
import signal
import threading
from pathlib import Path

import pytest
from helpers import exhaustive_unless, run_command
from lab import CONFIGS, write_run
from processes import Command

from neural_alignment.errors import RunError, Stopped
from neural_alignment.jobs import plans, pool
from neural_alignment.jobs.batch import Execution, Screen
from neural_alignment.jobs.engines.in_process import InProcess
from neural_alignment.jobs.engines.processes import Processes
from neural_alignment.jobs.estimates import Estimates
from neural_alignment.jobs.plans import Cell, carry_out, unique, waiting
from neural_alignment.papers import commands
from neural_alignment.papers.registry import Item
from neural_alignment.papers.two_routes import tables
from neural_alignment.reporting import Artifact, markdown

PLAIN = """
epochs: 2
batch_size: 256
data: {source: digits}
model: {name: fc, hidden: [5]}
evaluation: {probe_examples: 0}
optimization: {forward: {name: momentum, learning_rate: 0.05}}
logging: {tensorboard: false}
"""


@pytest.fixture
def configs(tmp_path):
    folder = tmp_path / "configs"
    folder.mkdir()
    (folder / "plain.yaml").write_text(PLAIN)
    (folder / "feedback.yaml").write_text("base: plain.yaml\nalignment: {rule: feedback}\n")
    return str(folder)


def cell(rule, *overrides, seeds=(0,), name=None):
    file = "feedback.yaml" if rule == "feedback" else "plain.yaml"
    return Cell(file, name or f"fc/{rule}", {"model": "fc", "rule": rule}, overrides, seeds)


class Recorded:
    """A screen that remembers its lines."""

    def __init__(self):
        self.lines, self.states = [], []
        self.screen = Screen(self.lines.append, self.states.append)


def train(cells, tmp_path, configs, count=1, recorded=None):
    engine = InProcess() if count == 1 else Processes(count)
    execution = Execution(engine, (recorded or Recorded()).screen, Estimates(str(tmp_path / "seconds.csv"), ""))
    carry_out(unique(cells), str(tmp_path / "runs"), configs, execution)
    return execution.estimates


def models(tmp_path):
    return {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("model.keras")}


@pytest.mark.parametrize("count", exhaustive_unless((1, 2), (1,)))
def test_a_plan_is_trained_once_and_reported(tmp_path, configs, count):
    """In this process, or in two others."""
    recorded = Recorded()
    wild = cell("wild", "optimization.forward.learning_rate=1e30")
    cells = [cell("backprop", seeds=(0, 1)), wild, cell("backprop")]
    estimates = train(cells, tmp_path, configs, count, recorded)
    assert recorded.lines[0] == f"3 of 3 runs to train, {count} at a time"
    ended = {line.split(": ")[1].split("  ")[0]: line for line in recorded.lines[1:]}
    assert set(ended) == {"fc/backprop/seed0", "fc/backprop/seed1", "fc/wild/seed0"}
    assert "diverged" in ended["fc/wild/seed0"]
    assert "top-1" in ended["fc/backprop/seed1"]
    assert [line.split()[1] for line in recorded.lines[1:]] == ["1", "2", "3"]
    assert set(estimates.seconds) == set(ended)
    assert set(Estimates(estimates.path, "").seconds) == set(ended)
    before = models(tmp_path)
    assert len(before) == 2
    again = Recorded()
    train(cells, tmp_path, configs, recorded=again)
    assert again.lines == ["0 of 3 runs to train, 1 at a time"]
    assert models(tmp_path) == before
    [first, second] = cells[0].read(str(tmp_path / "runs"), configs)
    assert [first.config.seed, second.config.seed] == [0, 1]
    assert first.rows[-1]["top1"] != second.rows[-1]["top1"]
    [diverged] = wild.read(str(tmp_path / "runs"), configs)
    assert diverged.measure("top1", 0.1) == 0.1


def test_a_run_of_another_configuration_is_refused(tmp_path, configs):
    train([cell("backprop", "epochs=1")], tmp_path, configs)
    with pytest.raises(RunError, match="another configuration: epochs was 1, is now 2"):
        waiting(unique([cell("backprop")]), str(tmp_path / "runs"), configs)


@pytest.mark.parametrize("name", ["seed1", "seed0_copy", "."])
def test_a_seed_does_not_count_twice(name, tmp_path):
    """A copied directory, and a run that was trained without its seed."""
    own = Cell("quickstart.yaml", "x", {})
    path = write_run(tmp_path, own, 0, 0.5)
    other = Path(shutil.copytree(path, path.parent / name, dirs_exist_ok=True))
    with pytest.raises(RunError) as error:
        own.read(str(tmp_path), CONFIGS)
    assert set(re.findall(r"[^ :,]*/x[^ :,]*", str(error.value))) == {str(path), str(other)}
    assert str(error.value).endswith(", 0; keep one run of each seed")
    shutil.rmtree(path)
    [outcome] = own.read(str(tmp_path), CONFIGS)
    assert outcome.directory.path == str(other)


def test_a_run_of_a_cell_with_seeds_has_that_of_its_directory(tmp_path):
    own = Cell("quickstart.yaml", "x", {}, seeds=(0, 1))
    path = write_run(tmp_path, own, 1, 0.5)
    [outcome] = own.read(str(tmp_path), CONFIGS)
    assert outcome.config.seed == 1
    path.rename(path.with_name("seed0"))
    with pytest.raises(RunError, match=r"/x/seed0: is a run of seed1; expected here: seed0$"):
        own.read(str(tmp_path), CONFIGS)


def test_a_run_that_fails_ends_the_plan_with_its_reason(tmp_path, configs):
    broken = cell("broken", "batch_size=4000")
    with pytest.raises(RunError) as error:
        train([broken, cell("backprop")], tmp_path, configs)
    assert str(error.value).startswith("fc/broken/seed0: failed: ")
    assert "batch_size" in str(error.value)
    assert not (tmp_path / "runs" / "fc" / "backprop").exists()


def test_a_second_process_is_refused_and_names_lead_nowhere_else(tmp_path, configs):
    (tmp_path / "runs").mkdir()
    with plans.lock.held(str(tmp_path / "runs")), pytest.raises(RunError, match="is in use by process"):
        train([cell("backprop")], tmp_path, configs)
    with pytest.raises(RunError, match="must be the name of a run below"):
        train([cell("backprop", name="../elsewhere")], tmp_path, configs)


LONG = ["epochs=60", "evaluation.every_epochs=20"]

SCRIPT = """
import sys
from neural_alignment.jobs.batch import Execution, Screen
from neural_alignment.jobs.engines.processes import Processes
from neural_alignment.jobs.plans import Cell, carry_out, unique
runs = unique([Cell("plain.yaml", "fc/long", {{}}, {overrides}, (0, 1))])
carry_out(runs, {folder!r} + "/runs", {configs!r}, Execution(Processes(2), Screen(print, print)))
sys.exit()
"""
"""Code that a process runs instead of a command."""


def rows(tmp_path, seed):
    path = tmp_path / "runs" / "fc" / "long" / f"seed{seed}" / "metrics.csv"
    return path.exists() and list(csv.DictReader(path.read_text().splitlines()))


def killed(tmp_path, configs):
    """Starts a plan of two runs in another process, and kills it once a run has written a row."""
    script = SCRIPT.format(overrides=tuple(LONG), folder=str(tmp_path), configs=configs)
    process = Command([], {}, tmp_path / "errors.txt", script)
    while not process.ended and not any(rows(tmp_path, seed) for seed in (0, 1)):
        threading.Event().wait(0.02)
    process.kill()
    process.wait()
    assert any(rows(tmp_path, seed) for seed in (0, 1)), process.errors


@pytest.mark.exhaustive
def test_a_plan_that_was_killed_goes_on_and_a_signal_stops_it_in_order(tmp_path, configs, monkeypatch):
    killed(tmp_path, configs)
    long = cell("long", *LONG, seeds=(0, 1), name="fc/long")
    with monkeypatch.context() as patch:
        patch.setattr(pool.SlotEngine, "_follow", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Stopped, match="SIGTERM; the same command resumes"):
            train([long], tmp_path, configs, count=2)
    for status in (tmp_path / "runs").rglob("status.json"):
        assert json.loads(status.read_text())["state"] in ("stopped", "running", "finished")
    train([long], tmp_path, configs, count=2)
    calm = cell("calm", *LONG, name="fc/calm")
    train([calm], tmp_path, configs)
    [calm_run], [disturbed, other] = (each.read(str(tmp_path / "runs"), configs) for each in (calm, long))
    assert [row["step"] for row in disturbed.rows] == [0, 100, 200, 300]
    assert [row["J"] for row in disturbed.rows[1:]] == [row["J"] for row in calm_run.rows[1:]]
    assert [row["J"] for row in other.rows[1:]] != [row["J"] for row in calm_run.rows[1:]]


# Commands.


@pytest.fixture
def paper(tmp_path, configs, monkeypatch):
    """A paper of two tables that share a run, and a figure that needs missing files."""
    monkeypatch.setitem(tables.CHANCE, "lab", (0.1, 0.5))

    def make(source):
        rows = tables.run_rows(source)
        return Artifact(tables.RUN_COLUMNS, rows, markdown(["rule", "top-1"], [[r["rule"], r["top1"]] for r in rows]))

    cells = [cell("backprop"), cell("feedback")]
    items = [
        Item("table", "small/1", "both", make, {"lab": cells}),
        Item("table", "small/2", "one of them", make, {"lab": cells[:1], "paper": cells[:1]}),
        Item("figure", "small/1", "of something else", make, needs="--runs ELSEWHERE"),
    ]
    monkeypatch.setattr(commands, "ITEMS", items)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_one_command_trains_what_a_paper_needs_and_makes_it_all(paper, capsys, monkeypatch):
    code, out, err = run_command(monkeypatch, capsys, "lab", "small")
    assert code == 0, err
    lines = out.splitlines()
    assert lines[:3] == [
        "table small/1: 2 of 2 runs to train, time not known yet",
        "table small/2: 1 of 1 runs to train, time not known yet",
        "all, shared runs counted once: 2 of 2 runs to train, time not known yet",
    ]
    assert "figure small/1: not made here, needs --runs ELSEWHERE" in lines
    results = paper / "results" / "small"
    assert {path.name for path in results.iterdir()} == {
        "seconds.csv", "table_1.csv", "table_1.md", "table_2.csv", "table_2.md",
    }  # fmt: skip
    table = list(csv.DictReader((results / "table_1.csv").read_text().splitlines()))
    assert [(row["profile"], row["rule"], row["diverged"]) for row in table] == [
        ("lab", "backprop", "0"), ("lab", "feedback", "0"),
    ]  # fmt: skip
    trained = models_below(paper / "runs" / "lab" / "small")
    assert len(trained) == 2
    code, out, _ = run_command(monkeypatch, capsys, "table", "small/2", "--lab")
    assert code == 0
    assert "table small/2: 0 of 1 runs to train, 0 s (estimate)" in out
    assert models_below(paper / "runs" / "lab" / "small") == trained
    code, out, _ = run_command(monkeypatch, capsys, "table")
    assert code == 0
    assert "| small/1 | both | 2 runs, " in out
    assert "| small/2 | one of them | --lab: 1 run, " in out
    assert "(estimate)" in out


def models_below(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("model.keras")}


@pytest.mark.parametrize(("arguments", "part"), [
    (["table", "small/9"], "there are: small/1, small/2"),
    (["figure", "small/2"], "there are: small/1"),
    (["lab", "smal"], "did you mean 'small'?"),
    (["table", "small/1", "--lab", "--configs", "nowhere"], "--configs: must be a directory with configurations"),
    (["figure", "small/1", "--lab"], "has no lab profile"),
    (["table", "small/1", "--output", "configs/plain.yaml/x"], "is not a directory"),
])  # fmt: skip
def test_wrong_input_is_one_line_and_nothing_is_made(paper, capsys, monkeypatch, arguments, part):
    code, out, err = run_command(monkeypatch, capsys, *arguments)
    assert code == 2
    assert len(err.strip().splitlines()) == 1
    assert err.startswith("error: ")
    assert part in err
    assert "Traceback" not in out + err
    assert not (paper / "runs").exists()
