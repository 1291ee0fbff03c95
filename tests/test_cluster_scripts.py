"""The scripts for SLURM clusters, with a real SLURM of two nodes on this machine, and the page about clusters."""

import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import SMALL_RUN
from recorder import awaited

from neural_alignment.jobs.engines.slurm_options import SlurmOptions, parse

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted((ROOT / "cluster_scripts").glob("*.sbatch"))
PAGE = (ROOT / "docs" / "clusters.md").read_text()

PROGRAM = f"""#!{sys.executable}
from neural_alignment import cli
cli.program()
"""


def test_the_page_names_each_option_and_its_default_and_each_script():
    rows = dict(re.findall(r"^\| `(\w+)[.`=].*?\| *(.*?) *\|", PAGE, re.MULTILINE))
    assert rows.keys() == SlurmOptions.model_fields.keys()
    for name, field in SlurmOptions.model_fields.items():
        if field.default not in (None, [], {}):
            assert f"{field.default}" in rows[name], name
    for path in SCRIPTS:
        assert f"`cluster_scripts/{path.name}`" in PAGE


def test_the_file_of_options_on_the_page_is_valid(tmp_path):
    (text,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "cluster.yaml").write_text(text)
    assert parse([str(tmp_path / "cluster.yaml")]).partition == "gpu"


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_each_script_may_be_requeued_and_gets_a_signal_before_its_time_limit(path):
    lines = path.read_text().splitlines()
    assert os.access(path, os.X_OK)
    assert lines[1].startswith("# ")
    options = " ".join(line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH"))
    for option in ("--requeue", "--open-mode=append", "--signal=TERM@120", "--output=slurm-%j.log", "--time="):
        assert option in options


def test_the_scripts_are_requeued_in_the_same_way():
    """They cannot share a file, because SLURM copies a script to another folder before it runs it."""
    texts = {path.name: path.read_text() for path in SCRIPTS}
    ends = {text.partition("\ncode=")[2].replace(name, "NAME") for name, text in texts.items()}
    assert len(ends) == 1
    assert "scontrol requeue" in ends.pop()
    starts = {re.search(r"^set -uo pipefail$.*?^srun ", text, re.MULTILINE | re.DOTALL)[0] for text in texts.values()}
    assert len(starts) == 1


@pytest.fixture
def sbatch(tmp_path, local_slurm):
    """Submits a script and returns the number of the job, and a function that returns the text of its log."""
    program = tmp_path / "bin" / "neural-alignment"
    program.parent.mkdir()
    program.write_text(PROGRAM)
    program.chmod(program.stat().st_mode | stat.S_IEXEC)
    environment = {**local_slurm, "PATH": f"{program.parent}:{os.environ['PATH']}"}
    numbers = []

    def submit(script, *words, options=()):
        command = ["sbatch", "--parsable", *options, ROOT / "cluster_scripts" / script, *words]
        done = subprocess.run(command, env=environment, cwd=tmp_path, check=True, capture_output=True, text=True)
        numbers.append(done.stdout.strip())
        path = tmp_path / f"slurm-{numbers[-1]}.log"
        return numbers[-1], lambda: path.read_text() if path.exists() else ""

    yield submit
    subprocess.run(["scancel", *numbers], env=environment, check=True)


def state(number, environment):
    """Returns SLURM's state of a job."""
    words = ["squeue", "--noheader", "--states=all", "--format=%T", f"--jobs={number}"]
    return subprocess.run(words, env=environment, capture_output=True, text=True, check=True).stdout.strip()


def terminate(number, environment):
    """Sends the signal of the time limit to the steps of a job."""
    subprocess.run(["scancel", "--signal=TERM", number], env=environment, check=True)


@pytest.mark.exhaustive
@pytest.mark.parametrize("script", ["train.sbatch", "multi_node.sbatch"])
def test_a_run_is_requeued_and_resumes(tmp_path, local_slurm, sbatch, script):
    """With the workers of `multi_node.sbatch` on two nodes."""
    config, folder = tmp_path / "run.yaml", tmp_path / "run"
    config.write_text(SMALL_RUN)
    number, log = sbatch(script, config, "--run-dir", folder, "--set", "epochs=1000000")

    def status():
        path = folder / "status.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def stepped(beyond=0):
        file = folder / "metrics.csv"
        last = file.read_text().splitlines()[-1].partition(",")[0] if file.exists() else ""
        return status().get("state") == "running" and last.isdecimal() and int(last) > beyond

    awaited(stepped)
    terminate(number, local_slurm)
    awaited(lambda: "stopped: SIGTERM" in log())
    saved = int(re.search(r"at step (\d+), which is saved", log())[1])
    awaited(lambda: stepped(saved))
    assert state(number, local_slurm) == "RUNNING"
    assert "Traceback" not in log()


SEARCH = """
config: {config}
trials: 1
space: {{optimization.forward.learning_rate: {{uniform: [0.01, 0.02]}}}}
"""


@pytest.mark.exhaustive
def test_a_requeued_search_finds_its_trial(tmp_path, local_slurm, sbatch):
    """Both fit on the nodes. The trial would train for a minute or more; the search is requeued before."""
    (tmp_path / "run.yaml").write_text(SMALL_RUN.replace("epochs: 2", "epochs: 300"))
    (tmp_path / "search.yaml").write_text(SEARCH.format(config=tmp_path / "run.yaml"))
    words = ("search", tmp_path / "search.yaml", "--search-dir", tmp_path / "out", "--engine", "slurm:1")
    number, log = sbatch("search.sbatch", *words, "--slurm", "time=30")
    awaited(lambda: (tmp_path / "out" / "trials" / "0001" / "metrics.csv").exists() or "\nerror: " in log())
    terminate(number, local_slurm)
    awaited(lambda: state(number, local_slurm) == "COMPLETED" or "\nerror: " in log())
    assert "SLURM jobs that continue: 1; the same command finds them" in log()
    assert "SLURM jobs of an earlier command: found 1" in log()
    assert log().count("submitted SLURM job") == 1
    assert (tmp_path / "out" / "best.yaml").exists()
