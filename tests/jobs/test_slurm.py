"""The SLURM engine: with a scheduler in memory, with a recorded `sbatch`, and with a real SLURM on this machine."""

import json
import os
import re
import signal
import stat
import subprocess
from pathlib import Path

import pytest
from processes import Command
from recorder import Recorder, awaited, beside

from neural_alignment.errors import ConfigError, Stopped
from neural_alignment.jobs.ending import Ending
from neural_alignment.jobs.engines import slurm, slurm_node, slurm_options, slurm_scheduler
from neural_alignment.jobs.engines.slurm import Slurm


class Memory:
    """A scheduler without SLURM. Its jobs do what `plan` says at each question for their states.

    Args:
        plan: name of a job -> its states, one after another; an `Ending` is written to the file for the ending.
    """

    def __init__(self, plan):
        self._plan = plan
        self.submitted, self.stopped, self._tasks = [], [], {}

    def submit(self, tasks):
        numbers = [f"{70 + len(self._tasks)}_{index}" for index in range(len(tasks))]
        self._tasks |= dict(zip(numbers, tasks, strict=True))
        self.submitted.append([json.loads(task.job)["name"] for task in tasks])
        return numbers

    def states(self, numbers):
        return {number: self._state(number) for number in numbers}

    def _state(self, number):
        if number in self.stopped or number not in self._tasks:
            return "CANCELLED"
        task = self._tasks[number]
        states = self._plan[json.loads(task.job)["name"]]
        state = states.pop(0) if len(states) > 1 else states[0]
        if isinstance(state, Ending):
            requeues = task.interruptions + state.requeues
            Path(task.ending).write_text(json.dumps({**vars(state), "requeues": requeues}))
            return "COMPLETED"
        return state

    def stop(self, numbers):
        self.stopped += numbers

    def clean(self, number):
        pass

    def task(self, name):
        """Returns the last task of a job."""
        return [task for task in self._tasks.values() if json.loads(task.job)["name"] == name][-1]


DONE = Ending("finished", 0.5)
SAVED = Ending("stopped", reason="SIGTERM at step 7, which is saved")


@pytest.fixture
def memory(monkeypatch):
    """Returns a function that makes a `Memory` the scheduler of the engines that are built afterwards."""
    monkeypatch.setattr(slurm, "_check_available", lambda cluster: None)
    for name in ("POLL", "QUERY", "DELAY"):
        monkeypatch.setattr(slurm, name, 0.001)

    def build(**plan):
        scheduler = Memory(plan)
        monkeypatch.setattr(slurm, "Cluster", lambda *_: scheduler)
        return scheduler

    return build


def test_independent_jobs_are_one_array_and_others_wait_for_a_free_slot(memory, tmp_path, training):
    names = ["a", "b", "c"]
    for independent, submitted in ((True, [names]), (False, [names[:2], names[2:]])):
        scheduler = memory(**{name: ["PENDING", "RUNNING", DONE] for name in names})
        queue = Recorder(tmp_path, [training(name) for name in names])
        queue.independent = independent
        Slurm(2).run(queue)
        assert scheduler.submitted == submitted
        assert queue.endings == dict.fromkeys(names, DONE)
        assert [event for event in queue.events if event[1] == "a"] == [("waits", "a"), ("begins", "a")]


def test_an_array_is_not_larger_than_the_option_allows(memory, tmp_path, training):
    scheduler = memory(**{name: [DONE] for name in "abcd"})
    Slurm(1, ["array=3"]).run(Recorder(tmp_path, [training(name) for name in "abcd"]))
    assert scheduler.submitted == [["a", "b", "c"], ["d"]]


def test_a_job_that_slurm_requeues_is_not_submitted_again(memory, tmp_path, training):
    scheduler = memory(a=["RUNNING", "COMPLETING", "PENDING", "RUNNING", Ending("finished", 0.5, requeues=1)])
    Slurm(1).run(queue := Recorder(tmp_path, [training("a")]))
    assert scheduler.submitted == [["a"]]
    assert queue.endings["a"].requeues == 1
    assert [event for event, _ in queue.events if event != "says"] == ["waits", "begins", "waits", "begins"]


@pytest.mark.parametrize("ending", ["TIMEOUT", "PREEMPTED", "NODE_FAIL", SAVED])
def test_an_interrupted_job_is_submitted_again_as_often_as_allowed(memory, tmp_path, training, ending):
    scheduler = memory(a=[ending, ending, DONE])
    Slurm(1).run(queue := Recorder(tmp_path, [training("a")]))
    assert scheduler.submitted[0] == scheduler.submitted[-1] == ["a"]
    assert 1 <= scheduler.task("a").interruptions <= 2
    memory(a=[ending])
    Slurm(1, ["requeues=2"]).run(queue := Recorder(tmp_path / "limited", [training("a")]))
    assert queue.endings["a"].state == "failed"
    assert queue.endings["a"].reason.startswith("was interrupted 3 times; raise --slurm time, or --slurm requeues; see")


def test_a_job_stopped_by_a_full_disk_is_not_submitted_again(memory, tmp_path, training):
    scheduler = memory(a=[Ending("stopped", reason="/runs/x: no space left on device")])
    with pytest.raises(Stopped, match="no space left"):
        Slurm(1).run(Recorder(tmp_path, [training("a")]))
    assert scheduler.submitted == [["a"]]


@pytest.mark.parametrize("state", ["FAILED", "OUT_OF_MEMORY", "GONE"])
def test_a_job_without_a_result_has_failed_and_its_log_is_named(memory, tmp_path, training, state):
    memory(a=["RUNNING", state], b=[DONE])
    Slurm(2).run(queue := Recorder(tmp_path, [training("a"), training("b", log=str(tmp_path / "b.log"))]))
    log = tmp_path / "slurm" / "70_0_0_log.out"
    assert queue.endings["a"].reason == f"its SLURM job 70_0 ended with the state {state}; see {log}"
    for log in (tmp_path / "slurm" / "70_0_0_log.out", tmp_path / "b.log"):  # The first, if the job wrote no other.
        memory(b=[Ending("failed", reason="ValueError: no")])
        Slurm(1).run(queue := Recorder(tmp_path, [training("b", log=str(tmp_path / "b.log"))]))
        assert queue.endings["b"].reason == f"ValueError: no; see {log}"
        (tmp_path / "b.log").write_text("Traceback")


def test_a_cancelled_job_stops_the_command_and_the_other_jobs(memory, tmp_path, training):
    scheduler = memory(a=["RUNNING", "CANCELLED"], b=["RUNNING"])
    with pytest.raises(Stopped, match="its SLURM job was cancelled"):
        Slurm(2).run(Recorder(tmp_path, [training("a"), training("b")]))
    assert scheduler.stopped == ["70_1"]
    assert (tmp_path / "slurm" / "stop").exists()


def test_a_wait_without_an_answer_of_slurm_ends_no_job(memory, tmp_path, training, monkeypatch):
    scheduler = memory(a=[DONE])
    answers = iter([None, None])
    known = scheduler.states
    monkeypatch.setattr(scheduler, "states", lambda numbers: next(answers, known(numbers)))
    Slurm(1).run(queue := Recorder(tmp_path, [training("a")]))
    assert queue.endings["a"] == DONE
    assert scheduler.submitted == [["a"]]


def interrupted(engine, queue):
    """Runs jobs until one runs, and sends SIGTERM to this process."""
    begins = queue.begins

    def begun(job):
        queue.begins = begins  # A second signal would end the process.
        begins(job)
        os.kill(os.getpid(), signal.SIGTERM)

    queue.begins = begun
    with pytest.raises(Stopped) as stopped:
        engine.run(queue)
    return str(stopped.value)


def test_after_a_signal_jobs_are_cancelled_or_continue_as_the_option_says(memory, tmp_path, training):
    scheduler = memory(a=["RUNNING"], b=["PENDING"])
    jobs = [training("a"), training("b")]
    assert interrupted(Slurm(1), Recorder(tmp_path / "cancel", jobs)) == "SIGTERM; the same command resumes"
    assert scheduler.stopped == ["70_0", "70_1"]
    assert json.loads((tmp_path / "cancel" / "slurm" / "running.json").read_text()) == {}
    scheduler = memory(a=["RUNNING"], b=["PENDING"])
    queue = Recorder(tmp_path / "leave", jobs)
    assert interrupted(Slurm(1, ["on_exit=leave"]), queue) == "SIGTERM; the same command resumes"
    assert queue.events[-1] == ("says", "SLURM jobs that continue: 2; the same command finds them")
    assert not scheduler.stopped
    assert not (tmp_path / "leave" / "slurm" / "stop").exists()


@pytest.mark.parametrize(
    "record", ["null", "[]", '{"a": {}}', '{"a": {"job": "x", "number": 7, "interruptions": 0}}', "{"]
)
def test_a_damaged_record_is_that_of_no_job(memory, tmp_path, training, record):
    scheduler = memory(a=[DONE])
    (tmp_path / "slurm").mkdir()
    (tmp_path / "slurm" / "running.json").write_text(record)
    Slurm(1).run(queue := Recorder(tmp_path, [training("a")]))
    assert queue.endings["a"] == DONE
    assert scheduler.submitted == [["a"]]


@pytest.mark.parametrize(("later", "submitted"), [
    (["RUNNING", DONE], []),
    ([DONE], []),
    (["NODE_FAIL", DONE], [["a"]]),
])  # fmt: skip
def test_a_restarted_command_finds_its_jobs(memory, tmp_path, training, later, submitted):
    """They run, have ended meanwhile, or were lost."""
    scheduler = memory(a=["RUNNING"], b=["RUNNING"])
    jobs = [training("a"), training("b", "seed=1")]
    interrupted(Slurm(2, ["on_exit=leave"]), Recorder(tmp_path, jobs))
    scheduler.submitted.clear()
    scheduler._plan["a"], scheduler._plan["b"] = later, [DONE]
    if later == [DONE]:
        scheduler.states(["70_0"])  # Its ending is written while no command runs.
    Slurm(2).run(queue := Recorder(tmp_path, jobs))
    assert scheduler.submitted == submitted
    assert {name: ending.state for name, ending in queue.endings.items()} == {"a": "finished", "b": "finished"}
    assert not list((tmp_path / "slurm" / "endings").iterdir())


def test_a_job_with_other_settings_than_the_earlier_one_replaces_it(memory, tmp_path, training):
    scheduler = memory(a=["RUNNING"])
    interrupted(Slurm(1, ["on_exit=leave"]), Recorder(tmp_path, [training("a")]))
    scheduler._plan["a"] = [DONE]
    Slurm(1).run(queue := Recorder(tmp_path, [training("a", "seed=3")]))
    assert scheduler.stopped == ["70_0"]
    assert scheduler.submitted == [["a"], ["a"]]
    assert queue.endings["a"] == DONE


class Node(Memory):
    """Its jobs need a while to save their state after a signal, and are requeued then unless the stop file exists."""

    def __init__(self, plan):
        super().__init__(plan)
        self.signalled, self.saving, self.alive = [], [], []

    def stop(self, numbers):
        self.signalled += numbers

    def _state(self, number):
        if number in self.signalled:
            self.signalled.remove(number)
            self.saving.append(number)
            return "RUNNING"
        if number in self.saving:
            self.saving.remove(number)
            task = self._tasks[number]
            Path(task.ending).write_text(json.dumps(vars(SAVED)))
            if not Path(task.stop_file).exists():
                return "PENDING"
            self.stopped.append(number)
        return super()._state(number)

    def submit(self, tasks):
        self.alive = sorted(self._tasks.keys() - set(self.stopped))
        return super().submit(tasks)


def test_a_replaced_job_ends_without_a_requeue_before_its_successor_is_submitted(
    memory, tmp_path, training, monkeypatch
):
    memory()
    scheduler = Node({"a": ["RUNNING"]})
    monkeypatch.setattr(slurm, "Cluster", lambda *_: scheduler)
    interrupted(Slurm(1, ["on_exit=leave"]), Recorder(tmp_path, [training("a")]))
    scheduler._plan["a"] = ["RUNNING", DONE]
    Slurm(1).run(queue := Recorder(tmp_path, [training("a", "seed=3")]))
    assert scheduler.stopped == ["70_0"]
    assert scheduler.submitted == [["a"], ["a"]]
    assert scheduler.alive == []
    assert queue.endings == {"a": DONE}
    assert not (tmp_path / "slurm" / "stop").exists()


# The options.

SBATCH = """#!/bin/sh
cat "$1" >> {folder}/script
[ -e {folder}/refuse ] && {{ echo "sbatch: error: invalid partition specified: gpu" >&2; exit 1; }}
echo "Submitted batch job 12"
"""


@pytest.fixture
def sbatch(tmp_path, monkeypatch):
    """Puts a program in the place of `sbatch` that records the script."""
    for name, text in (("sbatch", SBATCH.format(folder=tmp_path)), ("srun", "#!/bin/sh\n")):
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(path.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    return tmp_path / "script"


def submitted(folder, training, sbatch, options, count=1):
    """Submits jobs and returns their numbers and the script that SLURM gets."""
    tasks = [slurm_node.task_of(training(f"run{n}"), folder, None, 0) for n in range(count)]
    numbers = slurm_scheduler.Cluster(folder / "slurm", slurm_options.parse(options), 5).submit(tasks)
    return numbers, sbatch.read_text()


@pytest.mark.parametrize(("option", "line"), [
    ("partition=gpu,long", "#SBATCH --partition=gpu,long"),
    ("account=007", "#SBATCH --account=007"),
    ("qos=high", "#SBATCH --qos=high"),
    ("constraint=a100", "#SBATCH --constraint=a100"),
    ("time=90", "#SBATCH --time=90"),
    ("time=1-02:00:30", "#SBATCH --time=1561"),
    ("time=2:00:00", "#SBATCH --time=120"),
    ("time=30:00", "#SBATCH --time=30\n"),
    ("time=119:01", "#SBATCH --time=120\n"),
    ("time=1-02", "#SBATCH --time=1560"),
    ("gpus=2", "#SBATCH --gpus-per-node=2"),
    ("gpus=a100:2", "#SBATCH --gpus-per-node=a100:2"),
    ("cpus=8", "#SBATCH --cpus-per-task=8"),
    ("cpus=8", " --cpus-per-task=8 "),
    ("memory=16", "#SBATCH --mem=16GB"),
    ("save=300", "#SBATCH --signal=USR2@300"),
    ("setup=module load cuda", "\nmodule load cuda\n"),
    ("sbatch.reservation=lab", "#SBATCH --reservation=lab"),
    ("sbatch.exclusive=true", "#SBATCH --exclusive\n"),
])  # fmt: skip
def test_each_option_reaches_sbatch(tmp_path, training, sbatch, option, line):
    _, script = submitted(tmp_path, training, sbatch, [option])
    assert line in script
    _, default = submitted(tmp_path / "default", training, sbatch, [])
    assert line not in default.replace(script, "")


def test_the_script_has_one_task_that_slurm_may_requeue_and_one_log(tmp_path, training, sbatch):
    numbers, script = submitted(tmp_path, training, sbatch, [])
    assert numbers == ["12"]
    for line in ("requeue", "nodes=1", "ntasks-per-node=1", "open-mode=append", "job-name=neural_alignment"):
        assert f"#SBATCH --{line}\n" in script
    assert "#SBATCH --array" not in script
    assert "wckey" not in script
    assert f"#SBATCH --output={tmp_path}/slurm/%j_0_log.out" in script
    assert slurm_scheduler.log(tmp_path / "slurm", "12") == tmp_path / "slurm" / "12_0_log.out"


def test_several_jobs_are_an_array_of_which_as_many_run_as_the_engine_allows(tmp_path, training, sbatch):
    numbers, script = submitted(tmp_path, training, sbatch, [], count=7)
    assert numbers == [f"12_{index}" for index in range(7)]
    assert "#SBATCH --array=0-6%5" in script


def test_a_command_inside_of_a_job_hides_that_job_from_its_jobs(tmp_path, training, sbatch, monkeypatch):
    for name, value in {"SLURM_JOB_ID": "3", "SLURM_CPUS_PER_TASK": "9", "SLURM_CONF": "/etc/slurm.conf"}.items():
        monkeypatch.setenv(name, value)
    program = tmp_path / "bin" / "sbatch"
    program.write_text(program.read_text().replace('cat "$1"', "env"))
    _, environment = submitted(tmp_path, training, sbatch, [])
    assert "SLURM_CONF=/etc/slurm.conf" in environment
    assert not re.search("SLURM_JOB_ID|SLURM_CPUS_PER_TASK", environment)
    assert os.environ["SLURM_JOB_ID"] == "3"


def test_a_refusal_of_sbatch_is_one_line(tmp_path, training, sbatch):
    (tmp_path / "refuse").touch()
    with pytest.raises(ConfigError) as error:
        submitted(tmp_path, training, sbatch, [])
    assert str(error.value) == "--engine slurm: sbatch refused the jobs: invalid partition specified: gpu"


def test_options_come_from_files_and_later_ones_take_precedence(tmp_path):
    file = tmp_path / "cluster.yaml"
    file.write_text(
        "partition: gpu\ntime: 4:00:00\ngpus: 2\nsetup: [module load cuda]\nsbatch: {nice: 5, mail-type: END}\n"
    )
    options = slurm_options.parse([str(file), "time=30", "sbatch.nice=9", "setup=ulimit -c 0", "requeues=0"])
    assert (options.partition, options.time, options.gpus, options.requeues) == ("gpu", 30, "2", 0)
    assert options.setup == ["module load cuda", "ulimit -c 0"]
    assert options.sbatch == {"nice": "9", "mail-type": "END"}
    assert slurm_options.parse([]) == slurm_options.SlurmOptions()


@pytest.mark.parametrize(("options", "said"), [
    (["time=1", "save=60"], "--slurm save: must be less than the time limit, 60 seconds; found 60"),
    (["sbatch.array=0-3"], "sbatch: must not have array, error, .*, which the engine sets; found 'array'"),
    (["sbatch.Foo=1"], "sbatch: must map long options of sbatch, without dashes, to values; found 'Foo'"),
    (["gpus=many"], "--slurm gpus: must be an integer from 1 to 1000000; found 'many'"),
    (["requeues=-1"], "--slurm requeues: must be an integer from 0 to 1000000; found '-1'"),
    (["on_exit=stay"], "--slurm on_exit: input should be 'cancel' or 'leave'"),
    (["partition=a b"], "--slurm partition: must be a name without spaces; found 'a b'"),
    (["nowhere.yaml"], "nowhere.yaml: no such file"),
    (["partition"], "--slurm partition=VALUE: the value is missing, or a file that ends in .yaml; found 'partition'"),
])  # fmt: skip
def test_a_wrong_slurm_option_is_one_line(options, said):
    with pytest.raises(ConfigError) as error:
        slurm_options.parse(options)
    assert re.search(said, str(error.value)), str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("text", "said"), [
    ("time: soon", "time: must be an integer from 1 to 1000000; found 'soon'"),
    ("account: 7", "account: input should be a valid string or null; found 7"),
    ("partitions: gpu", "partitions: unknown key; allowed: .*; did you mean 'partition'"),
    ("setup: module load cuda", "setup: must be a list of commands; found 'module load cuda'"),
    ("[]", "must hold a mapping; found \\[\\]"),
])  # fmt: skip
def test_a_wrong_file_of_options_is_one_line_that_names_it(tmp_path, text, said):
    file = tmp_path / "cluster.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=f"^{re.escape(str(file))}: {said}"):
        slurm_options.parse([str(file)])


# On a node.


ASKED = "squeue --noheader --format=%T --jobs="


class Commands:
    """Stands in for `subprocess.run` on a node, and records the commands of SLURM."""

    def __init__(self, state):
        self._state, self.called = state, []

    def __call__(self, words, **_):
        self.called.append(" ".join(words))
        return subprocess.CompletedProcess(words, 0, self._state)


@pytest.mark.parametrize(("state", "ending", "restarts", "expected", "called"), [
    ("RUNNING", SAVED, "1", "stopped", [f"{ASKED}5", "scontrol requeue 5"]),
    ("CANCELLED", SAVED, "1", "stopped", [f"{ASKED}5"]),
    ("RUNNING", SAVED, "2", "failed", []),
    ("RUNNING", Ending("stopped", reason="/runs: no space left on device"), "0", "stopped", []),
    ("RUNNING", DONE, "1", "finished", []),
])  # fmt: skip
def test_a_node_requeues_a_job_that_a_signal_has_stopped(
    tmp_path, training, monkeypatch, state, ending, restarts, expected, called
):
    monkeypatch.setenv("SLURM_JOB_ID", "5")
    monkeypatch.setenv("SLURM_RESTART_COUNT", restarts)
    monkeypatch.setattr(subprocess, "run", commands := Commands(state))
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr("neural_alignment.jobs.job.Job.run", lambda self: ending)
    task = slurm_node.task_of(training("a"), tmp_path, 3, 1)
    Path(task.ending).parent.mkdir()
    slurm_node.run_on_node(vars(task))
    written = slurm_node.read(Path(task.ending))
    assert (written.state, written.requeues) == (expected, 1 + int(restarts))
    assert commands.called == called
    Path(task.stop_file).touch()
    slurm_node.run_on_node(vars(task))
    assert commands.called == called


def test_one_job_of_an_array_is_requeued_and_not_the_array(tmp_path, monkeypatch):
    """SLURM gives one job of an array the number of the array, 5."""
    for name, value in {"JOB_ID": "5", "ARRAY_JOB_ID": "5", "ARRAY_TASK_ID": "2"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setattr(subprocess, "run", commands := Commands("RUNNING"))
    slurm_node._requeue()
    assert commands.called == [f"{ASKED}5_2", "scontrol requeue 5_2"]


# A real SLURM.


@pytest.fixture
def real(local_slurm, monkeypatch):
    """Makes the private SLURM that of this process."""
    for name, value in local_slurm.items():
        monkeypatch.setenv(name, value)


def status(job):
    """Returns the content of the status file of a run; empty if there is none."""
    path = Path(job.run_dir, "status.json")
    return json.loads(path.read_text()) if path.exists() else {}


def jobs_of_slurm(*options):
    """Returns the numbers of the jobs that SLURM knows."""
    words = ["squeue", "--noheader", "--array", "--format=%i", "--states=all", *options]
    return set(subprocess.run(words, capture_output=True, text=True, check=True).stdout.split())


@pytest.mark.exhaustive
def test_slurm_runs_an_array_and_names_the_log_of_a_failed_job(tmp_path, real, training, computation):
    before = jobs_of_slurm()
    jobs = [computation("piece"), computation("broken", "shutil:copyfile", src="nowhere", dst="no"), training("run")]
    Slurm(3, ["time=5", "gpus=1", "memory=1"]).run(queue := Recorder(tmp_path, jobs))
    assert {name: ending.state for name, ending in queue.endings.items()} == {
        "piece": "finished",
        "broken": "failed",
        "run": "finished",
    }
    log = Path(queue.endings["broken"].reason.rpartition("; see ")[2])
    assert "FileNotFoundError" in log.read_text()
    assert {number.partition("_")[2] for number in jobs_of_slurm() - before} == {"0", "1", "2"}


@pytest.mark.exhaustive
def test_a_run_is_requeued_before_its_time_limit_and_resumes_as_often_as_allowed(tmp_path, real, training):
    """The signal of the time limit is sent by `scancel`."""
    run = training("endless", "epochs=1000000")
    seen = []

    def follow(over):
        metrics = Path(run.run_dir, "metrics.csv")
        for _ in range(2):
            if not awaited(lambda: metrics.exists() and status(run).get("pid") not in (None, *seen), over):
                return
            seen.append(status(run)["pid"])
            record = json.loads((tmp_path / "slurm" / "running.json").read_text())
            subprocess.run(["scancel", "--signal=USR2", record["endless"]["number"]], check=True)

    with beside(follow):
        Slurm(1, ["time=60", "requeues=1", "partition=low"]).run(queue := Recorder(tmp_path, [run]))
    assert len(seen) == 2
    assert queue.endings["endless"].reason.startswith("was interrupted 2 times; raise --slurm time")
    events = [event for event, _ in queue.events if event != "says"]
    # SLURM may have started or ended the requeued job before it is asked again.
    assert events == (["waits", "begins"] * 2)[: max(2, len(events))]
    assert status(run)["state"] == "stopped"


@pytest.fixture
def endless_comparison(tmp_path, training):
    """Returns a function that compares a run that would never end, until a signal comes; returns exit code and errors.

    It takes the signal, and a text that the command prints before the signal is sent.
    """
    run = training("endless")
    words = ["compare", run.config, "--set", "epochs=1000000", "--seeds", "0", "--output", str(tmp_path / "out")]
    words += ["--runs", str(tmp_path / "runs"), "--engine", "slurm:1", "--slurm", "time=60"]

    def compare(number, said):
        output = tmp_path / f"output{number}"
        # The server from which processes are forked may have started before this SLURM.
        environment = {"SLURM_CONF": os.environ["SLURM_CONF"]}
        command = Command(words, environment, tmp_path / f"errors{number}", output=output)
        awaited(lambda: command.ended or (output.exists() and said in output.read_text()))
        awaited(lambda: command.ended or list(tmp_path.glob("runs/**/metrics.csv")))
        assert not command.ended, command.errors
        os.kill(command.pid, number)
        return command.wait(), command.errors

    return compare


@pytest.mark.exhaustive
def test_a_killed_command_finds_its_job_and_ctrl_c_cancels_it(tmp_path, real, endless_comparison):
    before = jobs_of_slurm()
    endless_comparison(signal.SIGKILL, "submitted SLURM job")
    code, errors = endless_comparison(signal.SIGINT, "SLURM jobs of an earlier command: found 1")
    assert code == 1
    assert "stopped: SIGINT; the same command resumes" in errors
    (path,) = tmp_path.glob("runs/**/status.json")
    assert json.loads(path.read_text())["state"] == "stopped"
    assert len(jobs_of_slurm() - before) == 1
    assert not jobs_of_slurm("--states=RUNNING,PENDING") - before
