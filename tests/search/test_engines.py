"""Engines: processes of this machine, a real local Spark, TPUs by stand-ins that record."""

import importlib.util
import json
import os
import shutil
import signal
import stat
import textwrap
import threading
from pathlib import Path

import pytest
from processes import Command

from neural_alignment import config as configuration
from neural_alignment.data.sources import DigitsData
from neural_alignment.errors import ConfigError, DataUnavailable, RunError, Stopped
from neural_alignment.search import engines, run, trial
from neural_alignment.search import plan as plans
from neural_alignment.search.records import Ending
from neural_alignment.training import lock
from neural_alignment.training.run import RunDirectory

ROOT = Path(__file__).parent.parent.parent


def awaited(what, process=None):
    """Waits for a fact that another process brings about; the test's own time limit is the only one."""
    while not what():
        threading.Event().wait(0.02)


@pytest.fixture
def children(monkeypatch):
    """Lets children import the package as this process does."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def searched(plan, path, engine, overrides=()):
    said = []
    return run.search(plan, overrides, str(path), engine, said.append), said


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
        endless = threading.Event()

        def kill():
            def victim():
                for status in path.glob("trials/*/status.json"):
                    number = int(status.parent.name)
                    drawn = lines(path / "proposals.jsonl")[number - 1]["drawn"]
                    if drawn["max_steps"] == 1000000:
                        return RunDirectory(status.parent).status()
                return None

            awaited(lambda: endless.is_set() or victim())
            if not endless.is_set():
                os.kill(victim()["pid"], signal.SIGKILL)

        thread = threading.Thread(target=kill)
        thread.start()
        said = []
        try:
            trials = run.search(plan, base, str(path), engines.Processes(2), said.append)
        finally:
            endless.set()
            thread.join()
        for each in trials:
            if each.settings["max_steps"] == 7:
                assert each.state == "finished"
                assert 0 < each.top1 <= 1
            else:
                assert (each.state, each.reason) == ("failed", "its process was killed by SIGKILL")
        assert [each.state for each in trials].count("failed") == 1
        assert said[0].startswith("2 trials of random, 2 at a time")

    def test_children_see_the_same_numbers_as_this_process(self, tmp_path, plan_file, children):
        plan = plans.load(plan_file(MIXED), trials=2)
        overrides = ["runtime.strategy=cpu"]
        ours = run.search(plan, overrides, str(tmp_path / "here"), engines.InProcess(), print)
        theirs = run.search(plan, overrides, str(tmp_path / "there"), engines.Processes(1), print)
        assert [(t.state, t.settings) for t in ours] == [(t.state, t.settings) for t in theirs]
        for here, there in zip(ours, theirs, strict=True):
            assert here.top1 == pytest.approx(there.top1, abs=0.01) if here.top1 else there.top1 is None

    @pytest.mark.exhaustive
    def test_a_killed_search_is_gone_on_with_at_once_and_no_trial_has_failed(
        self, tmp_path, plan_file, children, lines
    ):
        """Its children are alive when it is killed, and may still be when the next search begins their trials."""
        path = tmp_path / "found"
        plan_path = plan_file(MIXED.replace("[7, 1000000]", "[60, 70]").replace("[0.02, 1.0e+30]", "[0.02, 0.03]"))
        words = ["search", plan_path, "--search-dir", str(path), "--workers", "2", "--trials", "2", "--epochs", "60"]
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

    def test_a_trial_waits_for_the_orphan_of_an_earlier_life(self, tmp_path, plan_file, monkeypatch):
        """A lock that is held for a while is waited for; one that is held for good stops the search."""
        plan = plans.load(plan_file())
        path = tmp_path / "settings.yaml"
        path.write_text(configuration.dump(plans.base_config(plan, ["epochs=1"])))
        task = trial.Task(1, str(path), str(tmp_path / "run"), None)
        (tmp_path / "run").mkdir()
        real, asked = lock.held, []

        def held_at_first(directory):
            asked.append(directory)
            if len(asked) < 3:
                raise RunError(f"{directory}: is in use by process 1 on here")
            return real(directory)

        monkeypatch.setattr(trial, "POLL", 0.0)
        with monkeypatch.context() as patch:
            patch.setattr(trial.lock, "held", held_at_first)
            assert trial.train(task).state == "finished"
        assert len(asked) >= 3
        other = trial.Task(2, str(path), str(tmp_path / "other"), None)
        (tmp_path / "other").mkdir()
        with monkeypatch.context() as patch, lock.held(other.run_dir):
            patch.setattr(trial, "await_free", lambda run_dir: None)
            ending = trial.train(other)
        assert ending.state == "unavailable"
        assert "is in use by process" in ending.reason

    def test_an_error_of_a_child_is_told(self, tmp_path, children):
        task = trial.Task(1, str(tmp_path / "none.yaml"), str(tmp_path / "run"), None)
        ending = trial.Children().train(task)
        assert ending.state == "failed"
        assert "no such file" in ending.reason

    def test_a_signal_stops_the_children_in_order_and_the_search_after_them(self, tmp_path, plan_file, children, lines):
        text = MIXED.replace("[7, 1000000]", "[900000, 1000000]").replace("[0.02, 1.0e+30]", "[0.02, 0.03]")
        plan = plans.load(plan_file(text.replace("epochs: 1\n", "")), trials=2)
        path = tmp_path / "found"

        def interrupt():
            metrics = [path / "trials" / name / "metrics.csv" for name in ("0001", "0002")]
            awaited(lambda: all(each.exists() for each in metrics))
            os.kill(os.getpid(), signal.SIGTERM)

        thread = threading.Thread(target=interrupt)
        thread.start()
        with pytest.raises(Stopped, match="SIGTERM; the same command goes on"):
            run.search(plan, ["epochs=1000000"], str(path), engines.Processes(2), print)
        thread.join()
        assert not (path / "trials.jsonl").exists()
        for name in ("0001", "0002"):
            assert RunDirectory(path / "trials" / name).status()["state"] == "stopped"


class TestSurroundings:
    """What a trial cannot begin without is no fault of its settings."""

    def test_a_tpu_that_cannot_be_reached_is_told_from_settings_that_fail(self, tmp_path, plan_file):
        plan = plans.load(plan_file())
        path = tmp_path / "settings.yaml"
        path.write_text(configuration.dump(plans.base_config(plan)))
        task = trial.Task(1, str(path), str(tmp_path / "run"), None)
        ending = trial.train(task, ["runtime.strategy=tpu", "runtime.tpu=local"])
        assert ending.state == "unavailable"
        assert ending.reason.startswith("runtime.strategy: the TPU 'local' cannot be reached")
        assert trial.train(task, ["batch_size=4000"]).state == "failed"

    def test_data_that_go_away_stop_the_search_and_burn_no_trial(self, tmp_path, plan_file, monkeypatch):
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
                    engines.InProcess(),
                    lambda line: gone.set() if line.startswith("trial 1,") else None,
                )
        assert len((path / "trials.jsonl").read_text().splitlines()) == 1
        trials, _ = searched(plan, path, engines.InProcess(), ["epochs=1"])
        assert [each.state for each in trials] == ["finished"] * 3


LAUNCHER = """
#!/bin/sh
# Stands in for tpu_scripts/train.sh: writes down how it was called, and what the run would leave.
echo "$@" >> calls
case "$1" in gone) exit 4 ;; esac
mkdir -p "$4"
case "$2" in
  *0002.yaml) printf '{"state": "diverged", "reason": "R is not finite"}' > "$4/status.json"; exit 3 ;;
  *0003.yaml) exit 1 ;;
  *) printf '{"state": "finished", "best_top1": 0.5}' > "$4/status.json" ;;
esac
"""


class TestTPUs:
    @pytest.fixture
    def launcher(self, tmp_path, monkeypatch):
        """Returns a launcher that records, and what reads its records."""
        monkeypatch.chdir(tmp_path)
        path = tmp_path / "launch"
        path.write_text(textwrap.dedent(LAUNCHER).strip() + "\n")
        path.chmod(path.stat().st_mode | stat.S_IEXEC)
        calls = tmp_path / "calls"
        return f"{path} {{tpu}} {{config}} --run-dir {{run_dir}} --spot", lambda: [
            line.split() for line in calls.read_text().splitlines()
        ]

    def test_each_trial_is_launched_on_a_tpu_and_judged_by_its_run_directory(self, tmp_path, plan_file, launcher):
        command, calls = launcher
        trials, _ = searched(plans.load(plan_file()), tmp_path / "found", engines.TPUs(["a", "b"], command))
        assert [each.state for each in trials] == ["finished", "diverged", "failed", "finished"]
        assert [each.reason for each in trials][1] == "R is not finite"
        assert trials[2].reason.endswith("launch ended with code 1")
        assert {words[0] for words in calls()} <= {"a", "b"}
        for number in (1, 2, 3, 4):
            (words,) = [words for words in calls() if words[1].endswith(f"settings/{number:04d}.yaml")]
            assert words[2:] == ["--run-dir", str(tmp_path / "found" / "trials" / f"{number:04d}"), "--spot"]

    def test_a_tpu_that_cannot_be_had_leaves_its_trials_to_the_others(self, tmp_path, plan_file, launcher):
        command, calls = launcher
        trials, _ = searched(plans.load(plan_file()), tmp_path / "found", engines.TPUs(["gone", "a"], command))
        assert len(trials) == 4
        assert [words[0] for words in calls()].count("gone") <= 1
        assert [words[0] for words in calls()].count("a") == 4

    def test_without_any_tpu_the_search_waits_for_another_day(self, tmp_path, plan_file, launcher):
        command, calls = launcher
        plan = plans.load(plan_file())
        with pytest.raises(Stopped, match="4 trials are left: no TPU could be had, gone the last; the same command"):
            searched(plan, tmp_path / "found", engines.TPUs(["gone"], command))
        trials, _ = searched(plan, tmp_path / "found", engines.TPUs(["a"], command))
        assert len(trials) == 4
        assert len(calls()) == 5

    def test_without_a_launcher_a_process_of_this_machine_drives_the_tpu(self, tmp_path, plan_file, monkeypatch):
        asked = []

        def train(self, task, overrides=(), threads=None):
            asked.append((task.number, list(overrides), threads))
            return Ending("finished", 0.5)

        monkeypatch.setattr(trial.Children, "train", train)
        searched(plans.load(plan_file()), tmp_path / "found", engines.TPUs(["pod-7"]))
        assert asked == [(n, ["runtime.strategy=tpu", "runtime.tpu=pod-7"], None) for n in (1, 2, 3, 4)]

    def test_without_a_launcher_a_tpu_out_of_reach_burns_no_trial(self, tmp_path, plan_file, monkeypatch):
        def train(self, task, overrides=(), threads=None):
            if "runtime.tpu=gone" in overrides:
                return Ending("unavailable", reason="no TPU 'gone' is to be reached from here (x); run on a TPU VM")
            return Ending("finished", 0.5)

        monkeypatch.setattr(trial.Children, "train", train)
        plan, path = plans.load(plan_file()), tmp_path / "found"
        with pytest.raises(Stopped) as stopped:
            searched(plan, path, engines.TPUs(["gone"]))
        said = "4 trials are left: no TPU 'gone' is to be reached from here (x); the same command goes on"
        assert str(stopped.value) == said
        assert not (path / "trials.jsonl").exists()
        trials, _ = searched(plan, path, engines.TPUs(["gone", "a"]))
        assert [each.state for each in trials] == ["finished"] * 4

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            ({"tpus": "a,a"}, "--tpus must be names, each once"),
            ({"tpus": "a,"}, "--tpus must be names, each once"),
            (
                {"tpus": "a", "launcher": "train.sh {tpu} {config}"},
                "--launcher must hold {tpu}, {config} and {run_dir}",
            ),
            ({"launcher": "train.sh"}, "--launcher is for trials on TPUs"),
            ({"workers": 2, "tpus": "a"}, "--workers and --tpus exclude each other"),
        ],
    )
    def test_wrong_use_is_one_line(self, arguments, said):
        with pytest.raises(ConfigError) as error:
            engines.build(**arguments)
        assert said in str(error.value)


def spark_is_missing():
    if importlib.util.find_spec("pyspark") is None:
        return "pyspark is not installed (extra spark)"
    if not (os.environ.get("JAVA_HOME") or shutil.which("java")):
        return "there is no Java: neither JAVA_HOME nor java on the path"
    return None


@pytest.mark.skipif(bool(spark_is_missing()), reason=str(spark_is_missing()))
class TestSpark:
    @pytest.fixture(scope="class")
    def spark(self):
        """Returns an engine of two trials at a time on a local Spark of two executors' threads, shared by all tests."""
        options = "--master local[2] --driver-memory 512m --conf spark.ui.enabled=false --conf spark.port.maxRetries=99"
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PYTHONPATH", str(ROOT))
            patch.setenv("PYSPARK_SUBMIT_ARGS", f"{options} pyspark-shell")
            patch.setenv("SPARK_LOCAL_IP", "127.0.0.1")
            engine = engines.build(spark=2)
            yield engine
            engine._session.stop()

    def test_trials_run_on_executors_and_are_recorded(self, tmp_path, plan_file, spark, lines):
        plan = plans.load(plan_file(MIXED), trials=2)
        trials, said = searched(plan, tmp_path / "found", spark)
        expected = {0.02: "finished", 1e30: "diverged"}
        assert [t.state for t in trials] == [expected[t.settings["optimization.forward.learning_rate"]] for t in trials]
        assert {t.state for t in trials} == {"finished", "diverged"}
        assert [t.number for t in trials] == [1, 2]
        assert said[0] == "2 trials of random, 2 at a time"
        for each in trials:
            status = RunDirectory(tmp_path / "found" / "trials" / f"{each.number:04d}").status()
            assert (status["state"], status.get("best_top1")) == (each.state, each.top1)
        # More trials: the others are not run again.
        (tmp_path / "found" / "trials" / "0001" / "model.keras").unlink(missing_ok=True)
        more, _ = searched(plan.model_copy(update={"trials": 3}), tmp_path / "found", spark)
        assert more[:2] == trials
        assert len(more) == 3
        assert not (tmp_path / "found" / "trials" / "0001" / "model.keras").exists()

    @pytest.mark.exhaustive
    def test_a_signal_stops_the_search_which_goes_on_and_bears_a_crash(self, tmp_path, plan_file, spark, lines):
        """One trial that would never end: stopped with its search, begun again by the next one, and killed there."""
        text = MIXED.replace("epochs: 1\n", "").replace("[7, 1000000]", "[900000, 1000000]")
        plan = plans.load(plan_file(text.replace("[0.02, 1.0e+30]", "[0.02, 0.03]")), trials=1)
        path = tmp_path / "found"
        status = path / "trials" / "0001" / "status.json"

        def once_it_runs(act, before=None):
            """Acts on the process of the trial as soon as it is another than before; returns the thread and its pid."""
            seen = []

            def follow():
                awaited(lambda: status.exists() and json.loads(status.read_text()).get("pid") not in (None, before))
                seen.append(json.loads(status.read_text())["pid"])
                act(seen[0])

            thread = threading.Thread(target=follow)
            thread.start()
            return thread, seen

        thread, first = once_it_runs(lambda pid: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Stopped, match="SIGTERM; the same command goes on"):
            searched(plan, path, spark, ["epochs=1000000"])
        thread.join()
        assert not (path / "trials.jsonl").exists()
        thread, _ = once_it_runs(lambda pid: os.kill(pid, signal.SIGKILL), before=first[0])
        trials, _ = searched(plan, path, spark, ["epochs=1000000"])
        thread.join()
        assert [(each.state, each.reason) for each in trials] == [("failed", "its process was killed by SIGKILL")]
        assert len(lines(path / "proposals.jsonl")) == 1


@pytest.mark.parametrize(("error", "said"), [
    (("<class 'Py4JJavaError'>", "Traceback\n  ...\nExecutorLostFailure: code 137\n"), "ExecutorLostFailure: code"),
    (("<class 'SystemExit'>", None), "<class 'SystemExit'>"),
])  # fmt: skip
def test_a_lost_task_of_spark_is_a_failed_trial_with_its_last_line(error, said):
    document = {"state": engines.base.JOB_STATE_ERROR, "misc": {"error": error}, "result": {"status": "new"}}
    ending = engines._ending_of(document)
    assert ending.state == "failed"
    assert ending.reason.startswith(f"its Spark task was lost: {said}")
    done = {"state": engines.base.JOB_STATE_DONE, "misc": {}, "result": {"ending": {"state": "finished", "top1": 0.5}}}
    assert engines._ending_of(done) == Ending("finished", 0.5)


def test_without_pyspark_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyspark.sql", None)
    with pytest.raises(ConfigError, match=r"pip install 'neural_alignment\[spark\]'"):
        engines.build(spark=2)


def test_a_damaged_directory_of_a_trial_is_no_result_of_its_setting(tmp_path):
    """The search stops and records nothing, so that the trial counts once the directory is repaired."""
    directory = tmp_path / "trial"
    directory.mkdir()
    (directory / "config.yaml").write_text(f"base: {ROOT / 'configs' / 'quickstart.yaml'}\n")
    (directory / "metrics.csv").write_text("step,epoch,seconds,J\n")
    (directory / "status.json").write_text("garbage")
    task = trial.Task(0, str(ROOT / "configs" / "quickstart.yaml"), str(directory), None)
    ending = trial.train(task)
    assert ending.state == "unavailable"
    assert "status.json: is damaged" in ending.reason
