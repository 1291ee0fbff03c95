"""Jobs, and engines to run them, for the tests of `jobs`."""

import dataclasses
import importlib.util
import os
import shlex
import shutil
import sys
from pathlib import Path

import pytest
from helpers import SMALL_RUN

from neural_alignment.jobs.engines import registry
from neural_alignment.jobs.engines.in_process import InProcess
from neural_alignment.jobs.engines.processes import Processes
from neural_alignment.jobs.engines.slurm import Slurm
from neural_alignment.jobs.engines.tpu import TPU
from neural_alignment.jobs.job import Computation, Training

ROOT = Path(__file__).parent.parent.parent

CONFIG = f"{SMALL_RUN}runtime: {{strategy: cpu}}\n"


@pytest.fixture
def children(monkeypatch):
    """Lets other processes import the package as this process does."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


@pytest.fixture
def training(tmp_path):
    """Returns a job that trains a small network; overrides and fields of the job can be given."""
    (tmp_path / "config.yaml").write_text(CONFIG)

    def build(name="run", *overrides, **changes):
        job = Training(name, str(tmp_path / "config.yaml"), str(tmp_path / "runs" / name), overrides)
        return dataclasses.replace(job, **changes)

    return build


@pytest.fixture(scope="session")
def trained_here(tmp_path_factory):
    """How the run of `training` ends in this process."""
    folder = tmp_path_factory.mktemp("here")
    (folder / "config.yaml").write_text(CONFIG)
    return Training("run", str(folder / "config.yaml"), str(folder / "run")).run()


@pytest.fixture
def computation(tmp_path):
    """Returns a job that writes a text to a file, with a function of Python's own library."""

    def build(name="piece", function="shutil:copyfile", **arguments):
        source = tmp_path / "source.txt"
        source.write_text("computed")
        arguments = arguments or {"src": str(source), "dst": str(tmp_path / f"{name}.txt")}
        return Computation(name, function, arguments, str(tmp_path / f"{name}.progress"))

    return build


def spark_is_missing():
    if importlib.util.find_spec("pyspark") is None:
        return "pyspark is not installed (extra spark)"
    if not (os.environ.get("JAVA_HOME") or shutil.which("java")):
        return "there is no Java: neither JAVA_HOME nor java on the path"
    return None


@pytest.fixture(scope="session")
def spark():
    """An engine of two jobs at a time on a local Spark, shared by all tests.

    Spark has one thread, so that its tasks share a Python process: each new one imports TensorFlow.
    """
    if reason := spark_is_missing():
        pytest.skip(reason)
    options = "--master local[1] --driver-memory 512m --conf spark.ui.enabled=false --conf spark.port.maxRetries=99"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("PYSPARK_SUBMIT_ARGS", f"{options} pyspark-shell")
        patch.setenv("SPARK_LOCAL_IP", "127.0.0.1")
        # The optimizing compiler and the parallel collector of Java take longer than the tasks.
        patch.setenv("JDK_JAVA_OPTIONS", "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC")
        engine = registry.build("spark:2")
        yield engine
        engine.session.stop()


LAUNCH = """
import os, signal, sys
signal.signal(signal.SIGTERM, lambda *_: None)  # The run gets the signal too, and saves its state.
run = os.fork()
if not run:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    from neural_alignment import cli
    sys.argv = ["neural-alignment", "train", sys.argv[2], "--run-dir", sys.argv[3], "--resume"]
    cli.program()
code = os.waitstatus_to_exitcode(os.waitpid(run, 0)[1])
sys.exit({0: 0, 3: 3, 4: 1}.get(code, 6))
"""
"""Stands in for `tpu_scripts/train.sh`: trains on the CPU of this machine, and has the same exit codes."""


@pytest.fixture
def engine(request, children):
    """The engine that a test is parametrised with, by its name."""
    launcher = f"{sys.executable} -c {shlex.quote(LAUNCH)} {{tpu}} {{config}} {{run_dir}}"
    builders = {
        "in-process": InProcess,
        "processes": lambda: Processes(2),
        "spark": lambda: request.getfixturevalue("spark"),
        "tpu": lambda: TPU(["a", "b"], launcher),
        "slurm": lambda: Slurm(2, ["cluster=local", "time=30"]),
    }
    assert builders.keys() == registry.ENGINES.keys()
    return builders[request.param]()
