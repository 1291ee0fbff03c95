"""Fixed versions, the source distribution, the checks of Python in the Makefile, and the parts that CI tests."""

import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import setuptools
from packaging.requirements import Requirement
from setuptools.command.egg_info import FileList

ROOT = Path(__file__).parent.parent

TENSORFLOW = """
absl-py>=1.0.0
astunparse>=1.6.0
flatbuffers>=24.3.25
gast!=0.5.0,!=0.5.1,!=0.5.2,>=0.2.1
google_pasta>=0.1.1
grpcio<2.0,>=1.24.3
h5py>=3.11.0
keras>=3.10.0
libclang>=13.0.0
ml_dtypes<1.0.0,>=0.5.1
numpy>=1.26.0
opt_einsum>=2.3.2
packaging
protobuf>=5.28.0
requests<3,>=2.21.0
setuptools
six>=1.12.0
tensorboard~=2.20.0
termcolor>=1.1.0
typing_extensions>=3.6.6
wrapt>=1.11.0
"""
"""The packages that tensorflow-cpu 2.20.0 requires, from its metadata."""


def pinned(name, python):
    """Returns the versions of a file of constraints for a version of Python on Linux."""
    lines = [line for line in (ROOT / name).read_text().splitlines() if not line.startswith("#")]
    environment = {"python_version": python, "python_full_version": f"{python}.7", "sys_platform": "linux"}
    environment |= {"implementation_name": "cpython", "platform_machine": "x86_64", "platform_system": "Linux"}
    found = [each for each in map(Requirement, lines) if each.marker is None or each.marker.evaluate(environment)]
    versions = {each.name: str(each.specifier).removeprefix("==") for each in found}
    assert len(versions) == len(found)
    return versions


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13"])
def test_the_versions_for_tpus_are_allowed_by_the_package_and_by_tensorflow(monkeypatch, python):
    options = {}
    monkeypatch.setattr(setuptools, "setup", lambda **given: options.update(given))
    runpy.run_path(str(ROOT / "setup.py"))
    lines = [*options["install_requires"], *options["extras_require"]["tpu"], *TENSORFLOW.split("\n")]
    required = [Requirement(line) for line in lines if line]
    versions = pinned("constraints-tpu.txt", python)
    for each in required:
        if each.marker is None or each.marker.evaluate({"python_version": python}):
            assert versions[each.name.lower().replace("_", "-")] in each.specifier, str(each)


@pytest.mark.parametrize("python", ["3.10", "3.13"])
def test_the_versions_for_tpus_are_the_tested_ones(python):
    tested, versions = pinned("constraints.txt", python), pinned("constraints-tpu.txt", python)
    others = {name for name, version in versions.items() if tested.get(name) != version}
    assert others == {"tensorboard", "tensorflow-tpu", "libtpu"}


# The source distribution.

PLANTED = [
    *("runs/a/seed0/model.keras", "runs/a/seed0/checkpoints/last/a.index", "runs/a/tensorboard/x/events.out"),
    *("runs/a/b/seed0/.lock", "runs/a/seed0/lock.json", "runs/a/x.progress", "runs/logs/a.log"),
    *("runs/a/seed1/kernels/0.npz", "runs/resnet50v2/a/seed0/kernels/0.npz"),
    *("searches/s/trials/0001/status.json", "searches/s/logs/0001.log", "searches/s/lock.json"),
]
"""Files below results/PAPER that a run or a search writes and that are not committed."""
COMMITTED = ["table_3.csv", "runs/a/seed0/status.json", "runs/a/seed0/kernels/0.npz", "searches/s/trials.csv"]


def manifest(files, monkeypatch, folder):
    """Returns the files below results/ in a folder that MANIFEST.in leaves in the source distribution."""
    for name in files:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    monkeypatch.chdir(folder)
    found = FileList()
    for line in (ROOT / "MANIFEST.in").read_text().splitlines():
        if "results" in line or line.startswith("global-exclude"):
            found.process_template_line(line)
    return {*found.files}


def test_the_source_distribution_has_no_ignored_files_of_runs(tmp_path, monkeypatch):
    planted, committed = ([f"results/x/{name}" for name in names] for names in (PLANTED, COMMITTED))
    assert manifest([*planted, *committed], monkeypatch, tmp_path) == {*committed}


def tracked(*words):
    """Returns the lines that git prints about this checkout."""
    if not (ROOT / ".git").exists():
        pytest.skip("git's list of files is read from a clone")
    return subprocess.run(["git", "-C", ROOT, *words], check=False, capture_output=True, text=True).stdout.splitlines()


def test_the_source_distribution_has_all_committed_results(tmp_path, monkeypatch):
    files = tracked("ls-files", "results")
    assert len(files) > 100
    assert manifest(files, monkeypatch, tmp_path) == {*files}


def test_git_ignores_data_and_environments_but_no_committed_file():
    assert tracked("ls-files", "--cached", "--ignored", "--exclude-standard") == []
    names = ["venv/bin/python", "data/train-00000", "results/x/runs/a/model.keras"]
    assert tracked("check-ignore", "--no-index", *names) == names
    names = ["neural_alignment/data/new.py", "results/x/runs/a/data/new.csv", "configs/data/new.yaml"]
    assert tracked("check-ignore", "--no-index", *names) == []


# The Makefile and CI.


@pytest.mark.parametrize(
    ("target", "minor", "refused"),
    [
        ("test-lowest", 10, "needs Python 3.11,"),
        ("test-lowest", 12, "needs Python 3.11,"),
        ("test-lowest", 11, None),
        ("tpu-environment", 10, "needs Python 3.11 or newer,"),
        ("tpu-environment", 13, None),
    ],
)
def test_targets_that_need_a_version_of_python_say_so(tmp_path, target, minor, refused):
    python = tmp_path / "python"
    code = f"import sys; sys.version_info = (3, {minor}, 0); exec('1 / 0' if sys.argv[2] == 'venv' else sys.argv[2])"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -SEc "{code}" "$@"\n')
    python.chmod(0o755)
    folders = [f"LOWEST={tmp_path}/lowest", f"TPU={tmp_path}/tpu"]
    words = ["make", "--directory", ROOT, target, f"PYTHON={python}", *folders]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode
    if refused:
        assert f"error: {refused} such as with PYTHON=python3.11" in done.stderr
    assert ("ZeroDivisionError" in done.stderr) == (refused is None)
    assert not list(tmp_path.glob("*/*"))


def test_ci_runs_another_part_of_the_exhaustive_tests_after_each_commit(tmp_path):
    checkout, log = tmp_path / "checkout", tmp_path / "log"
    (checkout / ".ci").mkdir(parents=True)
    shutil.copy2(ROOT / ".ci" / "run", checkout / ".ci" / "run")
    make = tmp_path / "bin" / "make"
    make.parent.mkdir()
    make.write_text(f'#!/bin/sh\necho "$@" >> {log}\n')
    make.chmod(0o755)
    git = ["git", "-C", checkout, "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "--quiet"], check=True)
    environment = {**os.environ, "PATH": f"{make.parent}:{os.environ['PATH']}"}
    # Equal times of commits, by which the part must not be chosen.
    dated = environment | dict.fromkeys(("GIT_AUTHOR_DATE", "GIT_COMMITTER_DATE"), "2026-11-30T12:00:00")
    for _ in range(4):
        subprocess.run([*git, "commit", "--quiet", "--allow-empty", "--message=a"], check=True, env=dated)
        subprocess.run([checkout / ".ci" / "run"], check=True, env=environment)
    shutil.rmtree(checkout / ".git")
    subprocess.run([checkout / ".ci" / "run"], check=True, env=environment)
    parts = [line.rpartition("=")[2] for line in log.read_text().splitlines() if "PART" in line]
    assert parts[:4] == ["1/4", "2/4", "3/4", "0/4"]
    assert parts[4] in parts[:4]
