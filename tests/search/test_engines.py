"""Searches with real engines: in this process, and in processes of this machine."""

import os
import signal
import threading
from pathlib import Path

import pytest
from helpers import screen_of
from processes import Command
from recorder import awaited, beside

from neural_alignment.data.sources import DigitsData
from neural_alignment.errors import DataUnavailable, Stopped
from neural_alignment.jobs.engines.in_process import InProcess
from neural_alignment.jobs.engines.processes import Processes
from neural_alignment.search import plan as plans
from neural_alignment.search import run
from neural_alignment.training.run import RunDirectory

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def children(monkeypatch):
    """Lets children import the package as this process does."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def searched(plan, path, engine, overrides=()):
    said = []
    return run.search(plan, overrides, str(path), engine, screen_of(said.append)), said


MIXED = """
config: base.yaml
trials: 4
algorithm: random
seed: 5
epochs: 1
space:
  optimization.forward.learning_rate: {choice: [0.02, 1.0e+30]}
  max_steps: {choice: [7, 1000000]}
  evaluation.every_epochs: {fixed: 1}
"""


class TestProcesses:
    def test_trials_run_side_by_side_and_one_that_is_killed_has_failed(self, tmp_path, plan_file, children, lines):
        """Two at a time; one trial would never end, and is killed as by a machine without memory."""
        text = MIXED.replace("epochs: 1\n", "").replace("[0.02, 1.0e+30]", "[0.02, 0.03]")
        plan = plans.load(plan_file(text), trials=2)
        path = tmp_path / "found"
        base = ["epochs=1000000"]

        def kill(over):
            def victim():
                for status in path.glob("trials/*/status.json"):
                    number = int(status.parent.name)
                    drawn = lines(path / "proposals.jsonl")[number - 1]["drawn"]
                    if drawn["max_steps"] == 1000000:
                        return RunDirectory(status.parent).status()
                return None

            if awaited(victim, over):
                os.kill(victim()["pid"], signal.SIGKILL)

        said = []
        with beside(kill):
            trials = run.search(plan, base, str(path), Processes(2), screen_of(said.append))
        for each in trials:
            if each.settings["max_steps"] == 7:
                assert each.state == "finished"
                assert 0 < each.top1 <= 1
            else:
                assert (each.state, each.reason) == ("failed", "its process was killed by SIGKILL")
        assert [each.state for each in trials].count("failed") == 1
        assert said[0].startswith("2 trials of random, 2 at a time")

    @pytest.mark.exhaustive
    def test_a_killed_search_can_be_resumed_immediately_without_failed_trials(
        self, tmp_path, plan_file, children, lines
    ):
        """Its children are alive when it is killed, and may still be when the next search begins their trials."""
        path = tmp_path / "found"
        text = MIXED.replace("[7, 1000000]", "[60, 70]").replace("[0.02, 1.0e+30]", "[0.02, 0.03]")
        plan_path = plan_file(text.replace("epochs: 1\n", ""))
        words = [
            "search",
            plan_path,
            "--search-dir",
            str(path),
            "--engine",
            "processes:2",
            "--trials",
            "2",
            "--set",
            "epochs=60",
        ]
        metrics = [path / "trials" / name / "metrics.csv" for name in ("0001", "0002")]
        process = Command(words, {}, tmp_path / "errors.txt")
        awaited(lambda: all(each.exists() for each in metrics) or process.ended)
        process.kill()
        process.wait()
        again = Command(words, {}, tmp_path / "errors_again.txt")
        assert again.wait() == 0, again.errors
        trials = lines(path / "trials.jsonl")
        assert {(row["number"], row["state"]) for row in trials} == {(1, "finished"), (2, "finished")}
        drawn = [row["number"] for row in lines(path / "proposals.jsonl")]
        assert drawn == [1, 2]

    @pytest.mark.exhaustive
    def test_a_signal_stops_the_children_and_then_the_search(self, tmp_path, plan_file, children, lines):
        text = MIXED.replace("[7, 1000000]", "[900000, 1000000]").replace("[0.02, 1.0e+30]", "[0.02, 0.03]")
        plan = plans.load(plan_file(text.replace("epochs: 1\n", "")), trials=2)
        path = tmp_path / "found"

        def interrupt(over):
            metrics = [path / "trials" / name / "metrics.csv" for name in ("0001", "0002")]
            if awaited(lambda: all(each.exists() for each in metrics), over):
                os.kill(os.getpid(), signal.SIGTERM)

        with beside(interrupt), pytest.raises(Stopped, match="SIGTERM; the same command resumes"):
            run.search(plan, ["epochs=1000000"], str(path), Processes(2), screen_of(print))
        assert not (path / "trials.jsonl").exists()
        for name in ("0001", "0002"):
            assert RunDirectory(path / "trials" / name).status()["state"] == "stopped"


@pytest.mark.exhaustive
def test_lost_data_stop_the_search_without_failed_trials(tmp_path, plan_file, monkeypatch):
    plan, path = plans.load(plan_file(), trials=3), tmp_path / "found"
    real, gone = DigitsData.load, threading.Event()

    def mounted_once(*arguments):
        if gone.is_set():
            raise DataUnavailable("data.train_files: matches no file; found '/mnt/train-*'")
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(DigitsData, "load", mounted_once)
        with pytest.raises(Stopped, match=r"trial 2: data\.train_files: matches no file"):
            run.search(
                plan,
                ["epochs=1"],
                str(path),
                InProcess(),
                screen_of(lambda line: gone.set() if line.startswith("trial 1,") else None),
            )
    assert len((path / "trials.jsonl").read_text().splitlines()) == 1
    trials, _ = searched(plan, path, InProcess(), ["epochs=1"])
    assert [each.state for each in trials] == ["finished"] * 3
