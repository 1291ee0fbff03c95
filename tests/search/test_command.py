"""The command `search`, and the page that describes it."""

import os
import re
import shlex
import sys
from pathlib import Path

import pytest

from neural_alignment import cli
from neural_alignment.jobs.ending import Ending
from neural_alignment.jobs.engines import registry
from neural_alignment.search import plan as plans

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "search.md").read_text()


@pytest.fixture
def call(capsys, monkeypatch, tmp_path, scripted):
    """Runs the command line in an empty directory with an engine that trains nothing; gives code, output, error."""
    monkeypatch.chdir(tmp_path)
    asked = []

    def build(choice, **options):
        asked.append((choice, options))
        engine, judge = scripted
        return engine(judge)

    def run(*arguments, real=False):
        with monkeypatch.context() as patch:
            if not real:
                patch.setattr(registry, "build", build)
            patch.setattr(sys, "argv", ["neural-alignment", *map(str, arguments)])
            with pytest.raises(SystemExit) as end:
                cli.main()
        output = capsys.readouterr()
        return end.value.code or 0, output.out, output.err

    run.asked = asked
    return run


def test_a_search_prints_its_best_trial_and_its_directory(call, plan_file, tmp_path):
    code, output, error = call(
        "search", plan_file(), "--trials", "3", "--search-dir", "here", "--engine", "processes:2"
    )
    assert code == 0, error
    assert call.asked == [("processes:2", {"launcher": None, "slurm": None})]
    lines = output.splitlines()
    assert lines[0] == "3 trials of tpe, 1 at a time"
    assert sum(line.startswith("trial ") for line in lines) == 3
    assert lines[-2:] == ["its configuration  here/best.yaml", "search directory  here"]
    best = max(re.findall(r"top-1 ([\d.]+) %;", output), key=float)
    assert f"validation top-1  {best} %" in lines
    assert (tmp_path / "here" / "best.yaml").exists()


def test_the_default_directory_of_a_search_and_another_base(call, plan_file, tmp_path):
    plan_file()
    folder = tmp_path / "configs" / "search" / "mine"
    folder.mkdir(parents=True)
    for name in ("base.yaml", "search.yaml"):
        (tmp_path / name).rename(folder / name)
    other = tmp_path / "other.yaml"
    other.write_text((folder / "base.yaml").read_text().replace("hidden: [8]", "hidden: [5]"))
    code, _, error = call("search", "mine/search", "--trials", "1", "--config", "other.yaml", "--set", "batch_size=90")
    assert code == 0, error
    base = plans.configuration.load(tmp_path / "runs" / "search" / "mine" / "search" / "base.yaml")
    assert (base.model.hidden, base.batch_size) == ([5], 90)


def test_a_comparison_takes_at_least_the_time_of_a_trial_of_each_search(call, plan_file, monkeypatch, scripted):
    """The searches run one after another: 20 trials at a time do not make four searches of two trials shorter."""
    monkeypatch.setattr(scripted[0], "slots", 20)
    words = ("--algorithms", "tpe,random", "--seeds", "0,1", "--trials", "2", "--search-dir", "here")
    code, output, error = call("search", plan_file(more="seconds: 30"), *words)
    assert code == 0, error
    assert output.splitlines()[0] == "4 searches, 8 trials, estimate: 2 min from scratch"


def test_a_comparison_prints_its_verdict(call, plan_file, tmp_path):
    words = ("--algorithms", "tpe,random", "--seeds", "0,1", "--trials", "2", "--search-dir", "here")
    code, output, error = call("search", plan_file(more="seconds: 30"), *words)
    assert code == 0, error
    lines = output.splitlines()
    assert lines[0] == "4 searches, 8 trials, estimate: 4 min from scratch"
    assert "tpe did not find better settings than random" in output  # The same two trials at random.
    assert lines[-1] == "comparison  here/comparison.md"
    assert len((tmp_path / "here" / "comparison.csv").read_text().splitlines()) == 9


BAD = {
    "no such file": (["none.yaml"], "none.yaml: no such file"),
    "seeds that are no numbers": (["search.yaml", "--seeds", "a"], "--seeds must be integers separated by commas"),
    "an unknown algorithm": (["search.yaml", "--algorithms", "tpe,grid"], "algorithm: "),
    "a seed that the search sets": (
        ["search.yaml", "--set", "seed=5"],
        "--set seed=5: the search sets seed in its trials; give --seeds",
    ),
    "epochs that the search sets": (
        ["search.yaml", "--epochs", "1", "--set", "epochs=3"],
        "--set epochs=3: the search sets epochs in its trials; give --epochs",
    ),
    "trials that are longer than the run": (
        ["search.yaml", "--epochs", "3"],
        "epochs: must be at most the 2 of base.yaml, because a trial is the beginning of its run; found 3; give --ep",
    ),
    "a key that is drawn": (
        ["search.yaml", "--set", "alignment.decay=0.1"],
        "--set alignment.decay=0.1: the search sets alignment.decay in its trials; change it in the space",
    ),
    "a key in one that is drawn": (
        ["search.yaml", "--set", "optimization.forward.nesterov.x=1"],
        "the search sets optimization.forward.nesterov in its trials",
    ),
    "a key that contains one that is drawn": (
        ["search.yaml", "--set", "alignment={rule: feedback}"],
        "the search sets alignment.decay in its trials",
    ),
    "no trials": (["search.yaml", "--trials", "0"], "trials: "),
    "an unknown engine": (["search.yaml", "--engine", "proceses:2"], "did you mean 'processes'?"),
    "no processes": (["search.yaml", "--engine", "processes:0"], "N must be an integer from 1"),
    "an override of nothing": (["search.yaml", "--set", "epoch=3"], "did you mean 'epochs'"),
    "a configuration": (["base.yaml"], "base.yaml: is the configuration of a run and not a search"),
    "a base without its data": (
        ["search.yaml", "--set", "data={source: tfds, dataset: mnist, data_dir: nowhere, download: false}"],
        "nowhere",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_one_line_and_creates_no_files(call, plan_file, tmp_path, what):
    plan_file()
    arguments, said = BAD[what]
    code, output, error = call("search", *arguments, real=True)
    assert code == (4 if what == "a base without its data" else 2), output
    assert len(error.strip().splitlines()) == 1, error
    assert said in error
    assert "Traceback" not in output + error
    assert not (tmp_path / "runs").exists()


def test_a_search_without_a_finished_trial_prints_that(call, plan_file, scripted, monkeypatch):
    engine, _ = scripted
    monkeypatch.setattr(registry, "build", lambda *_, **__: engine(lambda *_: Ending("failed", reason="x")))
    code, output, _ = call("search", plan_file(), real=True)
    assert code == 0
    assert "no trial has finished: there is no best setting" in output


def blocks(kind):
    return re.findall(rf"^```{kind}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def test_the_space_of_the_page_fits_a_configuration(tmp_path):
    (text,) = blocks("yaml")
    path = tmp_path / "search.yaml"
    path.write_text(text)
    plan = plans.load(str(path), config=str(ROOT / "configs" / "mnist" / "convnet" / "weight_mirror.yaml"), epochs=3)
    plans.check(plan, plans.base_config(plan))
    assert plan.algorithm == "tpe"


@pytest.mark.exhaustive
@pytest.mark.skipif(
    not os.path.isdir(os.path.join(os.environ.get("TFDS_DATA_DIR", ""), "cifar10")),
    reason="no cifar10 in TFDS_DATA_DIR",
)
def test_the_commands_of_the_page_are_accepted(call, tmp_path):
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    commands = [shlex.split(line) for text in blocks("bash") for line in text.splitlines()]
    assert len(commands) == 2
    for words in commands:
        assert words[:2] == ["neural-alignment", "search"]
        code, _, error = call(*words[1:], "--trials", "1")
        assert code == 0, error
    assert (tmp_path / "results" / "two_routes" / "search_information.csv").exists()


def test_a_name_that_is_also_that_of_a_run_is_the_search(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in ("lab/two_routes/symmetric", "search/lab/two_routes/symmetric"):
        assert plans.load(cli._search_file(name)).seed == 100
    assert cli._search_file("nowhere") == "nowhere"
    (tmp_path / "nowhere").write_text("")
    assert cli._search_file("nowhere") == "nowhere"
