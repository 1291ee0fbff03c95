"""Engines: simulated TPUs that record their calls, SLURM without nodes, options of the command line."""

import json
import os
import shutil
import stat
import sys
import textwrap
import threading

import pytest
import tensorflow as tf
from recorder import Recorder, awaited

from neural_alignment import config as configuration
from neural_alignment.errors import ConfigError, Stopped
from neural_alignment.jobs import children as child_processes
from neural_alignment.jobs.children import Children, StayingChildren
from neural_alignment.jobs.ending import Ending
from neural_alignment.jobs.engines import registry
from neural_alignment.jobs.engines.processes import Processes
from neural_alignment.jobs.engines.slurm_node import Task, run_on_node
from neural_alignment.jobs.engines.spark import ending_of_lost_task
from neural_alignment.jobs.engines.tpu import TPU
from neural_alignment.jobs.job import encode


@pytest.fixture
def four(tmp_path, training):
    """Returns a queue of four runs that have no overrides."""
    job, names = training(), [f"{number:04d}" for number in (1, 2, 3, 4)]
    (tmp_path / "settings").mkdir()
    for name in names:
        shutil.copy(job.config, tmp_path / "settings" / f"{name}.yaml")
    configs = {name: str(tmp_path / "settings" / f"{name}.yaml") for name in names}
    return lambda: Recorder(tmp_path, [training(name, config=config) for name, config in configs.items()])


LAUNCHER = """
#!/bin/sh
# Stands in for tpu_scripts/train.sh: records its arguments, and writes the status that the run would leave.
echo "$@" >> calls
case "$1" in gone) exit 4 ;; busy) exit 5 ;; esac
mkdir -p "$4"
case "$2" in
  *0002.yaml) printf '{"state": "diverged", "reason": "R is not finite"}' > "$4/status.json"; exit 3 ;;
  *0003.yaml) exit 6 ;;
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

    def test_each_run_is_launched_on_a_tpu_and_judged_by_its_run_directory(self, tmp_path, four, launcher):
        command, calls = launcher
        TPU(["a", "b"], command).run(queue := four())
        endings = [queue.endings[job.name] for job in queue.jobs]
        assert [each.state for each in endings] == ["finished", "diverged", "failed", "finished"]
        assert endings[1].reason == "R is not finite"
        assert endings[2].reason.endswith("launch ended with code 6")
        assert {words[0] for words in calls()} <= {"a", "b"}
        for number in (1, 2, 3, 4):
            (words,) = [words for words in calls() if words[1].endswith(f"settings/{number:04d}.yaml")]
            assert words[2:] == ["--run-dir", str(tmp_path / "runs" / f"{number:04d}"), "--spot"]

    @pytest.mark.parametrize(("name", "said"), [
        ("gone", "gone is not used: no TPU is available; the last one was gone"),
        ("busy", "busy is not used: busy is busy with another run"),
    ])  # fmt: skip
    def test_the_other_tpus_train_the_runs_of_an_unavailable_one(self, tmp_path, four, launcher, name, said):
        command, calls = launcher
        # The first run on "a" waits until the other TPU has been tried.
        os.mkfifo(tmp_path / "tried")
        script, turn = (
            tmp_path / "launch",
            'if [ "$1" != a ]; then echo > tried; elif mkdir met; then read _ < tried; fi',
        )
        first, *rest = script.read_text().splitlines()
        script.write_text("\n".join([first, f"(cd {tmp_path} && {turn}) 2> /dev/null", *rest]))
        TPU([name, "a"], command).run(queue := four())
        assert len(queue.endings) == 4
        assert [words[0] for words in calls()].count("a") == 4
        assert ("says", said) in queue.events

    @pytest.mark.parametrize("code", [0, 1, 2, 127])
    def test_a_launcher_that_does_not_say_that_the_run_failed_fails_no_run(self, tmp_path, four, launcher, code):
        """It could not reach the TPU or read the status, for example, while the run may continue."""
        command, _ = launcher
        script = tmp_path / "launch"
        text = script.read_text()
        script.write_text(text.replace("mkdir", f"case $2 in *0003.yaml) exit {code} ;; esac\nmkdir", 1))
        queue = four()
        reason = f"0003: .*launch ended{f' with code {code}' if code else ', but the run did not'}$"
        with pytest.raises(Stopped, match=reason):
            TPU(["a"], command).run(queue)
        assert [job.name for job in queue.jobs if job.name in queue.endings] == ["0001", "0002"]
        script.write_text(text)
        queue.waiting = queue.jobs[2:]
        TPU(["a"], command).run(queue)
        assert [queue.endings[job.name].state for job in queue.jobs] == ["finished", "diverged", "failed", "finished"]

    def test_without_any_tpu_the_runs_wait_for_the_next_command(self, four, launcher):
        command, calls = launcher
        queue = four()
        with pytest.raises(Stopped, match="4 jobs are left: no TPU is available; the last one was gone; once"):
            TPU(["gone"], command).run(queue)
        TPU(["a"], command).run(queue)
        assert len(queue.endings) == 4
        assert len(calls()) == 5

    def test_a_launcher_gets_a_file_with_the_overrides(self, tmp_path, training, launcher):
        command, calls = launcher
        job = training("cell/seed3", "seed=3", "optimization.forward.learning_rate=0.07")
        TPU(["a"], command).run(queue := Recorder(tmp_path, [job]))
        assert queue.endings["cell/seed3"].state == "finished"
        [words] = calls()
        config = configuration.load(words[1])
        assert (config.seed, config.optimization.forward.learning_rate) == (3, 0.07)
        assert words[3] == job.run_dir

    def test_a_run_of_another_configuration_is_not_the_result_of_a_launched_run(self, tmp_path, training, launcher):
        """The command `train` refuses the directory, and leaves the files of an earlier run."""
        command, _ = launcher
        job = training("0001", "batch_size=100")
        (tmp_path / "runs" / "0001").mkdir(parents=True)
        shutil.copy(job.config, tmp_path / "runs" / "0001" / "config.yaml")
        queue = Recorder(tmp_path, [job])
        with pytest.raises(Stopped, match=r"0001: .*another configuration: batch_size was 200, is now 100"):
            TPU(["a"], command).run(queue)
        assert not queue.endings

    def test_computations_run_on_this_machine(self, tmp_path, computation, launcher, children):
        command, _ = launcher
        TPU(["a"], command).run(queue := Recorder(tmp_path, [computation("piece")]))
        assert queue.endings["piece"] == Ending("finished")
        assert (tmp_path / "piece.txt").read_text() == "computed"
        assert not (tmp_path / "calls").exists()

    def test_without_a_launcher_a_process_of_this_machine_drives_the_tpu(self, four, monkeypatch):
        asked = []

        def train(self, job, threads=None):
            asked.append((job.name, list(job.overrides), threads))
            return Ending("finished", 0.5)

        monkeypatch.setattr(Children, "run", train)
        TPU(["pod-7"]).run(four())
        assert asked == [(f"000{n}", ["runtime.strategy=tpu", "runtime.tpu=pod-7"], None) for n in (1, 2, 3, 4)]

    def test_without_a_launcher_an_unreachable_tpu_fails_no_run(self, four, monkeypatch):
        def train(self, job, threads=None):
            if "runtime.tpu=gone" in job.overrides:
                reason = "no TPU 'gone' is to be reached from here (x); run on a TPU VM"
                return Ending("unavailable", reason=reason, tpu_lost=True)
            return Ending("finished", 0.5)

        monkeypatch.setattr(Children, "run", train)
        queue = four()
        with pytest.raises(Stopped) as stopped:
            TPU(["gone"]).run(queue)
        said = "4 jobs are left: no TPU 'gone' is to be reached from here (x); run on a TPU VM"
        assert str(stopped.value) == f"{said}; once this is solved, the same command resumes them"
        assert not queue.endings
        TPU(["gone", "a"]).run(queue)
        assert [each.state for each in queue.endings.values()] == ["finished"] * 4

    def test_without_a_launcher_a_run_that_cannot_begin_loses_no_tpu(self, four, monkeypatch):
        """Its data or its directory cannot be used, so it would fail on the other TPUs as well."""

        def train(self, job, threads=None):
            return Ending("unavailable", reason="no data") if job.name == "0002" else Ending("finished", 0.5)

        monkeypatch.setattr(Children, "run", train)
        with pytest.raises(Stopped, match=r"^0002: no data$"):
            TPU(["a", "b"]).run(four())


@pytest.mark.parametrize(("given", "count", "threads"), [(4, 2, 2), (4, 3, 1), (2, 4, 1), (None, 2, 32)])
def test_processes_divide_the_processors_that_this_process_may_use(
    tmp_path, training, monkeypatch, given, count, threads
):
    """A job of SLURM may have 4 of the 64 processors of its machine."""
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    if given is None:
        monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    else:
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8, 8 + given)), raising=False)
    used = []

    def run(self, job, threads=None, gpus=None):
        used.append(threads)
        return Ending("finished", 0.5)

    monkeypatch.setattr(StayingChildren, "run", run)
    Processes(count).run(Recorder(tmp_path, [training("run")]))
    assert used == [threads]


class TestGPUs:
    """Processes on a machine with GPUs that are not there; CUDA is never started."""

    @pytest.fixture
    def given(self, tmp_path, training, monkeypatch):
        """Returns a function that runs as many jobs as processes, and returns the `CUDA_VISIBLE_DEVICES` of each used
        process, the engine, and its lines of output."""
        monkeypatch.delenv("TF_CONFIG", raising=False)
        monkeypatch.delenv("TPU_NAME", raising=False)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        hidden = []

        def call(count, gpus, *overrides, visible=None):
            if visible is not None:
                monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
            found = [f"/physical_device:GPU:{number}" for number in range(gpus)]
            monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: found if kind == "GPU" else ["cpu"])
            monkeypatch.setattr(tf.config, "set_visible_devices", lambda *arguments: hidden.append(arguments))
            seen, engine = {}, Processes(count)
            queue = Recorder(
                tmp_path, [training(str(number), "runtime.strategy=auto", *overrides) for number in range(count)]
            )

            def run(self, job, threads=None, gpus=None):
                seen[int(threading.current_thread().name.removeprefix("process "))] = gpus
                awaited(lambda: len(seen) + len(queue.events) == count)  # Each process has got a job.
                return Ending("finished", 0.5)

            monkeypatch.setattr(Children, "run", run)
            monkeypatch.setattr(StayingChildren, "run", run)
            engine.run(queue)
            assert len(queue.endings) == count
            assert hidden == ([([], "GPU")] if gpus else [])
            return seen, engine, sorted(line for _, line in queue.events)

        return call

    @pytest.mark.parametrize(
        ("gpus", "visible", "shares"),
        [
            (0, None, [None, None]),
            (0, "", [None, None]),
            (2, None, ["0", "1"]),
            (3, None, ["0", "1"]),
            (4, None, ["0,1", "2,3"]),
            (2, "5,7", ["5", "7"]),
            (2, "GPU-a,GPU-b,-1,3", ["GPU-a", "GPU-b"]),
        ],
    )
    def test_processes_divide_the_gpus(self, given, gpus, visible, shares):
        seen, engine, said = given(2, gpus, visible=visible)
        assert ([seen[1], seen[2]], engine.slots, said) == (shares, 2, [])

    def test_one_process_has_all_gpus(self, given):
        assert given(1, 3)[0] == {1: "0,1,2"}

    @pytest.mark.parametrize("strategy", ["auto", "gpu", "mirrored"])
    def test_processes_without_a_gpu_leave_their_jobs_to_the_others(self, given, strategy):
        seen, engine, said = given(4, 2, f"runtime.strategy={strategy}")
        assert (seen, engine.slots) == ({1: "0", 2: "1"}, 2)
        assert said == [f"process {number} is not used: there are more processes than GPUs" for number in (3, 4)]

    def test_runs_on_the_cpu_get_no_gpu_and_use_all_processes(self, given):
        seen, engine, said = given(3, 1, "runtime.strategy=cpu")
        assert (seen, engine.slots, said) == ({1: "", 2: "", 3: ""}, 3, [])

    def test_runs_that_name_their_gpus_see_all(self, given):
        seen, engine, said = given(3, 2, "runtime.devices=[1]")
        assert (seen, engine.slots, said) == (dict.fromkeys((1, 2, 3)), 3, [])

    def test_computations_get_gpus(self, computation):
        assert computation("piece").gpus() == "all"


@pytest.mark.parametrize(("choice", "options", "said"), [
    ("tpu:a,a", {}, "must be names, each once, separated by commas; found 'tpu:a,a'"),
    ("tpu:a,", {}, "must be names, each once"),
    ("tpu", {}, "must be names, each once"),
    ("tpu:a", {"launcher": "train.sh {tpu} {config}"}, "--launcher must contain {tpu}, {config} and {run_dir}"),
    ("in-process", {"launcher": "x"}, "--launcher has no effect with --engine in-process; it is for --engine tpu:"),
    ("processes:2", {"slurm": ["time=5"]}, "--slurm has no effect with --engine processes:2; it is for --engine sl"),
    ("in-process:2", {}, "--engine in-process: takes no number; found 'in-process:2'"),
    ("processes", {}, "--engine processes:N: N must be an integer from 1 to 9999; found 'processes'"),
    ("processes:0", {}, "N must be an integer from 1 to 9999; found 'processes:0'"),
    ("spark:many", {}, "--engine spark:N: N must be an integer"),
    ("slurm:-1", {}, "--engine slurm:N: N must be an integer"),
    ("slrum:2", {}, "did you mean 'slurm'?"),
    ("", {}, "--engine must be one of in-process, processes:N, spark:N, tpu:NAME,NAME,..., slurm:N; found ''"),
    ("slurm:2", {"slurm": ["partion=gpu"]}, "--slurm partion: unknown key; allowed: "),
    ("slurm:2", {"slurm": ["partion=gpu"]}, "did you mean 'partition'?"),
    ("slurm:2", {"slurm": ["time=soon"]}, "--slurm time: must be an integer from 1 to 1000000; found 'soon'"),
    ("slurm:2", {"slurm": ["gpus"]}, "--slurm gpus=VALUE: the value is missing"),
    ("slurm:2", {"slurm": ["cluster=locl"]}, "--slurm cluster: input should be 'slurm' or 'local'; found 'locl'; did"),
])  # fmt: skip
def test_a_wrong_option_is_one_line(choice, options, said):
    with pytest.raises(ConfigError) as error:
        registry.build(choice, **{"launcher": None, "slurm": None, **options})
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("module", "choice", "said"), [
    ("pyspark.sql", "spark:2", r"pip install 'neural_alignment\[spark\]'"),
    ("submitit", "slurm:2", r"pip install 'neural_alignment\[slurm\]'"),
])  # fmt: skip
def test_a_missing_package_is_named_with_its_extra(monkeypatch, module, choice, said):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=said):
        registry.build(choice)


def test_without_slurm_on_the_machine_its_engine_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="SLURM is not installed on this machine"):
        registry.build("slurm:2")


def test_a_slurm_node_writes_the_ending_of_a_job_unless_it_was_asked_to_stop(tmp_path, computation, children):
    """In another process, because the function sets handlers of signals."""
    result, stop = tmp_path / "ending.json", tmp_path / "stop"
    task = Task(encode(computation("piece")), str(result), str(stop), requeues=3, interruptions=0)
    for state in ("stopped", "finished"):
        (stop.touch if state == "stopped" else stop.unlink)()
        node = child_processes.context().Process(target=run_on_node, args=(vars(task),))
        node.start()
        node.join()
        assert node.exitcode == 0
        assert json.loads(result.read_text())["state"] == state
        assert (tmp_path / "piece.txt").exists() is (state == "finished")
    assert (tmp_path / "piece.txt").read_text() == "computed"


# Spark.

protocol = pytest.importorskip("py4j.protocol")


class JavaError(protocol.Py4JJavaError):
    """An error of Spark with a given text, without a Java process."""

    def __init__(self, text):
        self.text = text

    def __str__(self):
        return self.text


@pytest.mark.parametrize(("text", "said"), [
    ("An error occurred.\n: ExecutorLostFailure: code 137\n\tat org.apache.Spark\n\t... 1 more", ": ExecutorLost"),
    ("", "JavaError"),
])  # fmt: skip
def test_a_lost_spark_task_is_a_failed_job_with_the_last_line(text, said):
    ending = ending_of_lost_task(JavaError(text))
    assert ending.state == "failed"
    assert ending.reason.startswith(f"its Spark task was lost: {said}")


def test_a_lost_spark_driver_fails_no_job():
    ending = ending_of_lost_task(ConnectionRefusedError("connection refused"))
    assert (ending.state, ending.reason) == ("unavailable", "Spark has stopped: connection refused")
