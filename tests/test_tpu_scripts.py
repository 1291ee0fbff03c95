"""The scripts of `tpu_scripts/` against a stand-in for `gcloud`: which calls, in which order, what if one fails."""

import ast
import fcntl
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import textwrap
from pathlib import Path

import pytest
from recorder import awaited

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted(path.name for path in (ROOT / "tpu_scripts").glob("*.sh") if path.name != "common.sh")
ZONE = "europe-west4-a"
RUN = "gs://bucket/runs/first"
CONFIG = "configs/one.yaml"
NASTY = [
    "a b",
    "$(touch pwned)",
    "`touch pwned`",
    "; touch pwned",
    'it\'s "so"',
    "two\nlines",
    "*",
    "back\\slash",
    "é&|<>",
]
"""Values that a shell would do something with."""

# Without json and subprocess it starts in half the time, and it is started some thousand times.
STAND_IN = """
import fcntl, os, sys
here = os.environ["STAND_IN"]
words = sys.argv[1:]
command = next((word.partition("=")[2] for word in words if word.startswith("--command=")), "")
marks = {"pip install": "setup", "setsid": "start", "tail -n": "follow", "probe:": "probe", "evaluate": "evaluate"}
if words[:2] == ["storage", "cat"]:
    kind, name = "status", words[2]
elif words[3] == "ssh":
    kind, name = next((kind for mark, kind in marks.items() if mark in command), "unknown"), words[4]
elif words[3] == "scp":
    kind, name = "scp", words[5].rstrip(":")
else:
    kind, name = {"queued-resources describe": "request", "tpu-vm describe": "node"}.get(
        " ".join(words[2:4]), words[3]), words[4]
with open(f"{here}/lock", "w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    with open(f"{here}/calls", "a") as calls:
        calls.write(repr([kind, words]) + "\\n")
    with open(f"{here}/answers") as file:
        answers = eval(file.read())
    key = f"{kind}@{name}" if f"{kind}@{name}" in answers else kind
    found = answers.get(key)
    if not found:
        sys.exit(f"no answer is left for {key}")
    # The last answer stays.
    answer = found.pop(0) if len(found) > 1 else found[0]
    with open(f"{here}/answers", "w") as file:
        file.write(repr(answers))
if kind == "scp":
    with open(words[4], "rb") as source, open(f"{here}/host/{words[4]}", "wb") as copy:
        copy.write(source.read())
if answer == "run":
    path = f"{here}/host_bin:{os.environ['PATH']}"
    environment = {**os.environ, "HOME": f"{here}/host", "PATH": path}
    os.chdir(f"{here}/host")
    os.execvpe("bash", ["bash", "-c", command], environment)
output, error, code = answer
sys.stdout.write(output)
sys.stderr.write(error)
sys.exit(code)
"""


def ok(output=""):
    return [f"{output}\n" if output else "", "", 0]


def failure(error="gcloud: it went wrong", code=1):
    return ["", f"{error}\n", code]


MISSING = failure("ERROR: (gcloud.compute.tpus.queued-resources.describe) NOT_FOUND: Resource was not found")
NO_FILE = failure("ERROR: (gcloud.storage.cat) The following URLs matched no objects or files:\ngs://bucket/x")


def status(state, reason=None):
    """Returns `status.json` as the library writes it."""
    facts = {"state": state, **({"reason": reason} if reason else {}), "versions": {"tensorflow": "2.20.0"}}
    return ok(json.dumps(facts, indent=2))


GOOD = {
    "status": [NO_FILE, status("finished")],
    "request": [MISSING, ok("ACTIVE")],
    "node": [ok("READY")],
    "create": [ok()],
    "delete": [ok()],
    "scp": [ok()],
    "setup": [ok()],
    "start": [ok()],
    "follow": [ok("the log")],
    "probe": [ok("probe: none"), ok("probe: ended 0")],
    "evaluate": [ok("top1 0.5")],
}
"""A run for which a TPU is created and that finishes."""


class Cloud:
    """A checkout with the scripts, and a stand-in for `gcloud`."""

    def __init__(self, folder, checkout):
        self.folder = folder
        self.host = folder / "host"
        self.checkout = folder / "checkout"
        (folder / "bin").mkdir()
        self.host.mkdir()
        executable(folder / "bin" / "gcloud", f"#!{sys.executable} -ISE\n{STAND_IN}")
        shutil.copytree(checkout, self.checkout)
        self.answer()

    def answer(self, **answers):
        """Sets answers of the simulated gcloud that differ from `GOOD`."""
        (self.folder / "answers").write_text(repr({**GOOD, **answers}))

    def run(self, script, *words, zone=ZONE, stdin=""):
        """Runs a script, its pauses of no length."""
        streams = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        with self.start(script, *words, zone=zone, **streams) as process:
            output, errors = process.communicate(stdin, timeout=60)
        return subprocess.CompletedProcess(process.args, process.returncode, output, errors)

    def start(self, script, *words, zone=ZONE, **streams):
        """Starts a script as `run` does."""
        place = [f"--zone={zone}"] if zone else []
        environment = {name: text for name, text in os.environ.items() if not name.startswith("TPU_")}
        environment |= {"PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}", "STAND_IN": str(self.folder)}
        command = [self.checkout / "tpu_scripts" / script, *place, "--poll=0", *words]
        return subprocess.Popen(command, cwd=self.checkout, env=environment, text=True, **streams)

    @property
    def records(self):
        path = self.folder / "calls"
        return [ast.literal_eval(line) for line in path.read_text().splitlines()] if path.exists() else []

    @property
    def kinds(self):
        return [kind for kind, _ in self.records]

    @property
    def calls(self):
        return [words for _, words in self.records]

    def commands(self, kind):
        """Returns the host commands of all calls of a kind."""
        found = [word for name, words in self.records if name == kind for word in words]
        return [word.removeprefix("--command=") for word in found if word.startswith("--command=")]


def executable(path, text):
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A git checkout with the scripts and a few configurations."""
    folder = tmp_path_factory.mktemp("source") / "checkout"
    shutil.copytree(ROOT / "tpu_scripts", folder / "tpu_scripts")
    (folder / "configs").mkdir()
    (folder / ".gitignore").write_text("runs/\n")
    for name in ("one", "two", "three"):
        (folder / "configs" / f"{name}.yaml").write_text("epochs: 1\n")
    author = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "--quiet"], ["add", "--all"], [*author, "commit", "--quiet", "--message=a"]):
        subprocess.run(["git", "-C", folder, *words], check=True, capture_output=True)
    shutil.rmtree(folder / ".git" / "hooks", ignore_errors=True)
    return folder


@pytest.fixture
def cloud(tmp_path, checkout):
    return Cloud(tmp_path, checkout)


def train(cloud, *words):
    return cloud.run("train.sh", "my-tpu", CONFIG, f"--run-dir={RUN}", *words)


def one_line(result, code):
    """Asserts that a script refused its input, and returns the line."""
    assert result.returncode == code, result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("error: tpu_scripts/")
    return result.stderr


NEEDED = {
    "create.sh": ["my-tpu"],
    "delete.sh": ["my-tpu", "--yes"],
    "setup.sh": ["my-tpu"],
    "evaluate.sh": ["my-tpu", RUN],
    "train.sh": ["my-tpu", CONFIG, f"--run-dir={RUN}"],
    "search.sh": ["--tpus=my-tpu", "--runs=gs://bucket/runs", CONFIG],
}
"""The required arguments of each script, without the zone."""


# --- what all scripts have in common


def test_every_script_is_in_the_table():
    assert set(SCRIPTS) == set(NEEDED)


@pytest.mark.parametrize("script", SCRIPTS)
def test_head(script):
    path = ROOT / "tpu_scripts" / script
    lines = path.read_text().splitlines()
    assert os.access(path, os.X_OK)
    assert lines[0] == "#!/usr/bin/env bash"
    assert re.fullmatch(r"# [A-Z].*\.", lines[1])


@pytest.mark.parametrize("script", SCRIPTS)
def test_help(cloud, script):
    result = cloud.run(script, "--help", zone=None)
    assert result.returncode == 0
    assert result.stdout.startswith(f"Usage: tpu_scripts/{script} ")
    assert "--dry-run" in result.stdout
    assert not result.stderr
    assert not cloud.calls


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_option_of_the_help_is_taken_and_no_other(cloud, script):
    listed = set(re.findall(r"--[a-z-]+", cloud.run(script, "--help").stdout))
    source = (ROOT / "tpu_scripts" / script).read_text() + (ROOT / "tpu_scripts" / "common.sh").read_text()
    taken = set(re.findall(r"--[a-z-]+", "\n".join(re.findall(r"^ +(-.*?)\)", source, re.MULTILINE)))) - {"--"}
    assert taken <= listed
    assert "nosuch" in one_line(cloud.run(script, *NEEDED[script], "--nosuch"), 2)


@pytest.mark.parametrize("script", SCRIPTS)
def test_input_is_refused(cloud, script):
    one_line(cloud.run(script, *NEEDED[script], zone=None), 2)
    one_line(cloud.run(script, *NEEDED[script], "--zone"), 2)
    one_line(cloud.run(script, *NEEDED[script], "--project", "--dry-run"), 2)
    one_line(cloud.run(script), 2)
    one_line(cloud.run(script, *NEEDED[script], "--tries=0"), 2)
    assert "'x'" in one_line(cloud.run(script, *NEEDED[script], "--poll=x"), 2)
    if script != "search.sh":
        assert "extra" in one_line(cloud.run(script, *NEEDED[script], "extra"), 2)
    assert not cloud.calls


@pytest.mark.parametrize("text", [*NASTY, "", "Upper", "x" * 60, "x-"])
def test_names_zones_and_projects_are_checked(cloud, text):
    for words in (["create.sh", text], ["create.sh", "x", "--zone", text], ["create.sh", "x", "--project", text]):
        if words[1:-1] == ["x", "--project"] and text in ("", "x" * 60, "x-"):
            continue
        line = one_line(cloud.run(*words), 2)
        assert text.replace("\n", " ") in line
        assert "allowed: " in line
    assert not cloud.calls
    assert not list(cloud.folder.rglob("pwned"))


@pytest.mark.parametrize(
    "text", ["runs/first", "gs://bucket", "gs://B/x", "gs://bucket/a*", "gs://bucket/a\nb", "s3://bucket/x"]
)
def test_run_directories_are_checked(cloud, text):
    for words in (["train.sh", "x", CONFIG, "--run-dir", text], ["evaluate.sh", "x", text]):
        assert "gs://BUCKET/PATH" in one_line(cloud.run(*words), 2) or "\n" in text
    assert not cloud.calls


@pytest.mark.parametrize("slashes", ["/", "///"])
def test_slashes_at_the_end_of_a_run_directory_are_removed(cloud, slashes):
    """An object `RUN//status.json` does not exist, so a finished run looked failed."""
    found = {f"status@{RUN}/status.json": [status("finished")], "status": [failure("ERROR: wrong path")]}
    cloud.answer(**found)
    result = cloud.run("train.sh", "my-tpu", CONFIG, f"--run-dir={RUN}{slashes}", "--tries=1")
    assert (result.returncode, cloud.kinds) == (0, ["status"]), result.stderr
    assert cloud.run("evaluate.sh", "my-tpu", RUN + slashes).returncode == 0
    assert f"evaluate {RUN} --strategy" in cloud.commands("evaluate")[0]
    cloud.answer(**statuses(), **tpu("a"), status=[failure("ERROR: wrong path")])
    result = cloud.run("search.sh", "--tpus=a", f"--runs={RUNS}{slashes}", *TRIALS, "--tries=1")
    assert result.returncode == 0, result.stderr
    assert f"--run-dir {RUNS}/one --resume" in cloud.commands("start")[0]
    assert "gs://BUCKET/PATH" in one_line(cloud.run("evaluate.sh", "my-tpu", "gs://bucket" + slashes), 2)


def test_without_gcloud(cloud):
    (cloud.folder / "bin" / "gcloud").unlink()
    path = cloud.folder / "tools"
    path.mkdir()
    for tool in ("bash", "dirname", "basename", "env"):
        (path / tool).symlink_to(shutil.which(tool))
    script = cloud.checkout / "tpu_scripts" / "create.sh"
    result = subprocess.run(
        [script, "x", f"--zone={ZONE}"], env={"PATH": str(path)}, capture_output=True, text=True, check=False
    )
    assert "gcloud was not found" in one_line(result, 2)


@pytest.mark.parametrize("script", SCRIPTS)
def test_dry_run_prints_the_calls_that_a_good_run_makes_and_makes_none(cloud, script):
    words = [*NEEDED[script], "--project=my-project"]
    dry = cloud.run(script, *words, "--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert not dry.stderr
    assert not cloud.calls
    if script == "search.sh":  # It asks first whether the TPU exists.
        cloud.answer(request=[MISSING, *GOOD["request"]])
    result = cloud.run(script, *words)
    assert result.returncode == 0, result.stderr
    printed = split_commands(dry.stdout)
    assert [words[1:] for words in printed if words[0] == "gcloud"] == cloud.calls
    assert cloud.calls


def split_commands(text):
    """Splits lines into commands and words as a shell does; a quoted word may run over several lines."""
    commands, rest = [], ""
    for line in text.splitlines(keepends=True):
        rest += line
        try:
            commands.append(shlex.split(rest))
        except ValueError:
            continue
        rest = ""
    assert not rest
    return commands


# --- create


def create(cloud, *words):
    return cloud.run("create.sh", "my-tpu", *words)


DESCRIBE = [
    "compute",
    "tpus",
    "queued-resources",
    "describe",
    "my-tpu",
    "--format=value(state.state)",
    f"--zone={ZONE}",
]
NODE = ["compute", "tpus", "tpu-vm", "describe", "my-tpu", "--format=value(state)", f"--zone={ZONE}"]


def create_call(*flags, kind="v3-8", image="tpu-ubuntu2204-base"):
    ids = ["--node-id=my-tpu", f"--accelerator-type={kind}", f"--runtime-version={image}"]
    return ["compute", "tpus", "queued-resources", "create", "my-tpu", *ids, *flags, f"--zone={ZONE}", "--quiet"]


def test_create(cloud):
    result = create(cloud)
    assert result.returncode == 0, result.stderr
    assert cloud.calls == [[*DESCRIBE, "--quiet"], create_call(), [*DESCRIBE, "--quiet"], [*NODE, "--quiet"]]


def test_create_passes_on_what_it_is_given(cloud):
    extra = ["--service-account=a@b.c", *NASTY]
    assert create(cloud, "--spot", "--project", "my-project", "--type=v2-8", "--", *extra).returncode == 0
    call = next(words for kind, words in cloud.records if kind == "create")
    assert call == [
        *create_call("--spot", *extra, kind="v2-8")[:-1],
        "--project=my-project",
        "--quiet",
    ]
    assert all("--project=my-project" in words for words in cloud.calls)


@pytest.mark.parametrize(
    ("kind", "image"),
    [
        ("v2-8", "tpu-ubuntu2204-base"),
        ("v4-8", "tpu-ubuntu2204-base"),
        ("v5litepod-8", "v2-alpha-tpuv5-lite"),
        ("v5p-8", "v2-alpha-tpuv5"),
        ("v6e-8", "v2-alpha-tpuv6e"),
    ],
)
def test_the_image_follows_from_the_type(cloud, kind, image):
    assert create(cloud, f"--type={kind}").returncode == 0
    assert create_call(kind=kind, image=image) in cloud.calls


def test_a_slice_of_several_hosts_needs_an_image_of_its_own(cloud):
    assert "--runtime-version is required for v3-32" in one_line(create(cloud, "--type=v3-32"), 2)
    assert create(cloud, "--type=v3-32", "--runtime-version=tpu-vm-tf-2.20.0-pod-pjrt").returncode == 0
    assert create_call(kind="v3-32", image="tpu-vm-tf-2.20.0-pod-pjrt") in cloud.calls


@pytest.mark.parametrize("kind", ["v9-8", "v3", "v3-8; touch pwned", "gpu"])
def test_unknown_types_are_refused(cloud, kind):
    assert "v2-8, v3-8" in one_line(create(cloud, "--type", kind), 2)


def test_create_waits(cloud):
    states = ["ACCEPTED", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]
    cloud.answer(request=[MISSING, *map(ok, states)], node=[ok("CREATING"), ok("READY")])
    result = create(cloud)
    assert result.returncode == 0, result.stderr
    assert cloud.kinds == ["request", "create", *["request"] * 4, "node", "request", "node"]
    for state in [*states[:3], "CREATING"]:
        assert f"my-tpu is {state} (check" in result.stderr


def test_create_gives_up_after_the_given_number_of_checks(cloud):
    cloud.answer(request=[MISSING, ok("WAITING_FOR_RESOURCES")])
    result = create(cloud, "--polls=3")
    assert result.returncode == 4
    assert cloud.kinds == ["request", "create", *["request"] * 3]
    assert "still WAITING_FOR_RESOURCES after 3 checks; create.sh continues to wait for it, delete.sh" in result.stderr


@pytest.mark.parametrize("state", ["FAILED", "SUSPENDED", "DELETING", "SOMETHING_NEW"])
def test_create_says_that_a_request_failed(cloud, state):
    cloud.answer(request=[MISSING, ok("PROVISIONING"), ok(state)])
    result = create(cloud)
    assert result.returncode == 4
    assert f"error: tpu_scripts/create.sh: my-tpu is {state} and will not become ready" in result.stderr
    assert cloud.kinds == ["request", "create", "request", "request"]


def test_what_is_requested_or_ready_is_not_requested_again(cloud):
    cloud.answer(request=[ok("WAITING_FOR_RESOURCES"), ok("ACTIVE")])
    assert create(cloud).returncode == 0
    assert "create" not in cloud.kinds


@pytest.mark.parametrize("node", ["PREEMPTED", "TERMINATED", None])
def test_a_lost_tpu_is_replaced_on_request_alone(cloud, node):
    gone = MISSING if node is None else ok(node)
    cloud.answer(request=[ok("ACTIVE")], node=[gone, gone, ok("READY")])
    result = create(cloud)
    assert result.returncode == 4
    assert f"my-tpu is {node or 'GONE'}; --replace" in result.stderr
    assert cloud.kinds == ["request", "node"]
    assert create(cloud, "--replace").returncode == 0
    assert cloud.kinds[2:] == ["request", "node", "delete", "create", "request", "node"]
    assert cloud.calls[4] == [
        *["compute", "tpus", "queued-resources", "delete", "my-tpu", "--force", f"--zone={ZONE}", "--quiet"]
    ]


def test_each_call_of_create_may_fail(cloud):
    cloud.answer(create=[failure("ERROR: quota")])
    result = create(cloud)
    assert result.returncode == 4
    assert cloud.kinds == ["request", "create"]
    assert "ERROR: quota\nerror: tpu_scripts/create.sh: my-tpu could not be requested" in result.stderr

    cloud.answer(request=[ok("FAILED")], delete=[failure("ERROR: busy")])
    result = create(cloud, "--replace")
    assert result.returncode == 4
    assert cloud.kinds[2:] == ["request", "delete"]
    assert "could not be deleted" in result.stderr

    cloud.answer(request=[failure("ERROR: no rights")])
    result = create(cloud, "--tries=3")
    assert result.returncode == 1
    assert cloud.kinds[4:] == ["request"] * 3
    assert "ERROR: no rights\nerror: " in result.stderr


def test_a_failed_status_check_is_tried_again(cloud):
    cloud.answer(request=[failure(), failure(), MISSING, failure(), ok("ACTIVE")], node=[failure(), ok("READY")])
    assert create(cloud, "--tries=3").returncode == 0
    assert cloud.kinds == [*["request"] * 3, "create", *["request"] * 2, *["node"] * 2]


# --- delete


def test_delete_asks(cloud):
    for answer, code in (("y\n", 0), ("yes\n", 0), ("n\n", 1), ("\n", 1), ("", 1)):
        before = len(cloud.calls)
        result = cloud.run("delete.sh", "my-tpu", stdin=answer)
        assert result.returncode == code
        assert len(cloud.calls) - before == (code == 0)
        assert "[y/N]" in result.stderr


def test_delete(cloud):
    assert cloud.run("delete.sh", "my-tpu", "--yes").returncode == 0
    flags = ["my-tpu", "--force", f"--zone={ZONE}", "--quiet"]
    assert cloud.calls == [["compute", "tpus", "queued-resources", "delete", *flags]]
    cloud.answer(delete=[failure()])
    assert cloud.run("delete.sh", "my-tpu", "--yes").returncode == 1


# --- setup


def sent(cloud):
    with tarfile.open(cloud.host / "neural_alignment.tar.gz") as archive:
        return {member.name for member in archive.getmembers() if member.isfile()}


def test_setup(cloud):
    result = cloud.run("setup.sh", "my-tpu")
    assert result.returncode == 0, result.stderr
    assert cloud.kinds == ["scp", "setup"]
    place = [f"--zone={ZONE}", "--quiet"]
    to = ["neural_alignment.tar.gz", "my-tpu:", "--worker=all"]
    assert cloud.calls[0] == ["compute", "tpus", "tpu-vm", "scp", *to, *place]
    words = cloud.calls[1]
    assert words[:6] == ["compute", "tpus", "tpu-vm", "ssh", "my-tpu", "--worker=all"]
    [installed] = [line for line in words[6].replace("\\\n", "").splitlines() if "[tpu]" in line]
    assert shlex.split(installed) == [
        *("neural_alignment_env/bin/pip", "install", "--quiet", "--constraint"),
        *("neural_alignment/constraints-tpu.txt", "--editable", "./neural_alignment[tpu]"),
    ]
    assert "TPU_NAME=local " in words[6]
    assert words[7:] == place


def test_setup_sends_the_commit_or_the_tree(cloud):
    (cloud.checkout / "new file.py").write_text("")
    (cloud.checkout / "runs").mkdir()
    (cloud.checkout / "runs" / "ignored").write_text("")
    (cloud.checkout / "configs" / "two.yaml").unlink()
    result = cloud.run("setup.sh", "my-tpu")
    assert "uncommitted changes are not copied" in result.stderr
    committed = sent(cloud)
    assert {"configs/two.yaml", "tpu_scripts/setup.sh"} <= committed
    assert "new file.py" not in committed
    assert cloud.run("setup.sh", "my-tpu", "--source=tree").returncode == 0
    assert sent(cloud) == committed - {"configs/two.yaml"} | {"new file.py"}


def test_setup_of_several_hosts(cloud):
    assert cloud.run("setup.sh", "my-tpu", "--type=v3-32").returncode == 0
    assert "TPU_NAME=my-tpu TPU_LOAD_LIBRARY=0" in cloud.commands("setup")[0]
    assert "TPU_NAME=local" not in cloud.commands("setup")[0]


@pytest.mark.parametrize(("kind", "after"), [("scp", ["scp"]), ("setup", ["scp", "setup"])])
def test_each_call_of_setup_may_fail(cloud, kind, after):
    cloud.answer(**{kind: [failure()]})
    result = cloud.run("setup.sh", "my-tpu")
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith("error: tpu_scripts/setup.sh: the ")
    assert cloud.kinds == after


def test_setup_needs_a_checkout(cloud):
    shutil.rmtree(cloud.checkout / ".git")
    assert "is not a git checkout" in one_line(cloud.run("setup.sh", "my-tpu"), 2)


# --- evaluate


def test_evaluate(cloud):
    run_dir = "gs://bucket/it's $(touch pwned)"
    result = cloud.run("evaluate.sh", "my-tpu", run_dir, "--import", "my_rules")
    assert result.returncode == 0
    assert result.stdout == "top1 0.5\n"
    assert cloud.calls[0][:6] == ["compute", "tpus", "tpu-vm", "ssh", "my-tpu", "--worker=0"]
    *_, folder, last = cloud.commands("evaluate")[0].splitlines()
    assert folder == "cd neural_alignment"  # Where the modules of the checkout are found.
    program = "../neural_alignment_env/bin/neural-alignment"
    assert shlex.split(last) == ["exec", program, "evaluate", run_dir, "--strategy", "tpu", "--import", "my_rules"]
    cloud.answer(evaluate=[failure("error: gs://bucket/x: no such run", code=2)])
    assert cloud.run("evaluate.sh", "my-tpu", RUN).returncode == 2


# --- train

BEGIN = ["probe", "scp", "setup", "start", "follow", "probe"]
LOST = ["probe"] * 2
"""The host does not answer, with --tries=2."""


def test_train(cloud):
    result = train(cloud)
    assert result.returncode == 0, result.stderr
    assert cloud.kinds == ["status", "request", "create", "request", "node", *BEGIN, "status"]
    assert result.stdout == "the log\n"
    assert cloud.calls[0] == ["storage", "cat", f"{RUN}/status.json", "--quiet"]
    assert "--resume" in cloud.commands("start")[0]
    for kind in ("start", "follow", "probe"):
        assert next(words for name, words in cloud.records if name == kind)[5] == "--worker=0"


def test_train_drives_several_hosts_from_the_first(cloud):
    image = "--runtime-version=tpu-vm-tf-2.20.0-pod-pjrt"
    assert train(cloud, "--type=v3-32", image).returncode == 0
    workers = {kind: words[5] for kind, words in cloud.records if words[3] == "ssh"}
    assert workers == {"probe": "--worker=0", "setup": "--worker=all", "start": "--worker=0", "follow": "--worker=0"}
    assert "--set runtime.tpu=my-tpu" in cloud.commands("start")[0]


@pytest.mark.parametrize(
    ("found", "code", "said"),
    [("finished", 0, "is already finished"), ("diverged", 3, "already diverged: J is not finite")],
)
def test_a_run_that_has_ended_takes_no_tpu(cloud, found, code, said):
    cloud.answer(status=[status(found, "J is not finite" if code else None)])
    result = train(cloud)
    assert result.returncode == code
    assert said in result.stderr
    assert cloud.kinds == ["status"]


def test_the_status_must_be_readable(cloud):
    cloud.answer(status=[failure("ERROR: 403")])
    result = train(cloud, "--tries=2")
    assert result.returncode == 1
    assert cloud.kinds == ["status", "status"]
    assert "ERROR: 403\nerror: " in result.stderr


@pytest.mark.parametrize(
    ("lost", "node"),
    [
        ("SUSPENDED", []),
        pytest.param("SUSPENDING", [], marks=pytest.mark.exhaustive),
        ("ACTIVE", [ok("PREEMPTED")]),
        pytest.param("FAILED", [], marks=pytest.mark.exhaustive),
    ],
)
def test_a_preempted_run_starts_again_and_resumes(cloud, lost, node):
    cloud.answer(
        status=[NO_FILE, status("finished")],
        request=[MISSING, ok("ACTIVE"), ok(lost), ok(lost), ok("ACTIVE")],
        node=[ok("READY"), *node, *node, ok("READY")],
        follow=[failure(code=255), ok()],
        probe=[ok("probe: none"), failure(code=255), failure(code=255), ok("probe: none"), ok("probe: ended 0")],
    )
    result = train(cloud, "--tries=2", "--spot")
    assert result.returncode == 0, result.stderr
    look = ["request", *(["node"] if node else [])]
    first = ["status", "request", "create", "request", "node", *BEGIN[:-1]]
    again = [*LOST, *look, *look, "delete", "create", "request", "node", *BEGIN, "status"]
    assert cloud.kinds == first + again
    assert "restart 1 of 50" in result.stderr
    starts = cloud.commands("start")
    assert starts[0] == starts[1]
    assert "--resume" in starts[1]
    assert all("--spot" in words for kind, words in cloud.records if kind == "create")


def test_a_tpu_that_is_lost_too_often(cloud):
    cloud.answer(
        request=[ok("SUSPENDED"), ok("ACTIVE"), ok("SUSPENDED"), ok("SUSPENDED"), ok("ACTIVE"), ok("SUSPENDED")],
        probe=[ok("probe: none"), failure(), ok("probe: none"), failure()],
    )
    result = train(cloud, "--tries=1", "--max-restarts=1")
    assert result.returncode == 4
    assert cloud.kinds.count("start") == 2
    assert "lost 2 times, more often than --max-restarts" in result.stderr


def test_a_lost_connection_is_not_a_lost_run(cloud):
    cloud.answer(
        follow=[failure(code=255), ok()],
        probe=[ok("probe: none"), ok(f"probe: running {RUN}"), ok("probe: ended 0")],
    )
    result = train(cloud)
    assert result.returncode == 0, result.stderr
    assert cloud.kinds == ["status", "request", "create", "request", "node", *BEGIN, "follow", "probe", "status"]
    assert "-n +1" in cloud.commands("follow")[0]
    assert "-n 20" in cloud.commands("follow")[1]


def test_a_run_that_is_going_on_is_found_again(cloud):
    cloud.answer(
        status=[status("running"), status("finished")],
        request=[ok("ACTIVE")],
        probe=[ok(f"probe: running {RUN}"), ok("probe: ended 0")],
    )
    assert train(cloud).returncode == 0
    assert cloud.kinds == ["status", *["request", "node"] * 2, "probe", "follow", "probe", "status"]


def test_a_tpu_that_is_busy_with_another_run_is_left_alone(cloud):
    cloud.answer(probe=[ok(f"probe: running {RUN}-other")])
    result = train(cloud, "--delete")
    assert result.returncode == 5
    assert f"my-tpu is busy with {RUN}-other" in result.stderr
    assert cloud.kinds[-1] == "probe"


def test_a_host_that_has_restarted(cloud):
    cloud.answer(
        probe=[ok("probe: none"), ok("probe: gone"), ok("probe: gone"), ok("probe: ended 0")],
    )
    result = train(cloud)
    assert result.returncode == 0, result.stderr
    again = ["request", "node", "request", "node", *BEGIN, "status"]
    assert cloud.kinds == ["status", "request", "create", "request", "node", *BEGIN, *again]


def test_a_run_that_was_stopped_by_a_signal_goes_on(cloud):
    cloud.answer(
        status=[NO_FILE, status("stopped", "stopped by a signal"), status("finished")],
        probe=[ok("probe: none"), ok("probe: ended 1"), ok("probe: ended 1"), ok("probe: ended 0")],
    )
    result = train(cloud)
    assert result.returncode == 0, result.stderr
    assert cloud.kinds.count("start") == 2


@pytest.mark.parametrize(
    ("code", "state", "expected", "said"),
    [
        (3, "diverged", 3, "diverged: J is not finite"),
        (2, None, 6, "rejected its input"),
        (4, None, 1, "cannot be reached"),
        (1, "failed", 6, "code 1, its status is failed: J is not finite"),
        pytest.param(137, "running", 6, "code 137, its status is running", marks=pytest.mark.exhaustive),
        (0, "running", 6, "code 0, its status is running"),
    ],
)
def test_how_a_run_may_end(cloud, code, state, expected, said):
    end = status(state, "J is not finite") if state else NO_FILE
    cloud.answer(status=[NO_FILE, end], probe=[ok("probe: none"), ok(f"probe: ended {code}")])
    result = train(cloud)
    assert result.returncode == expected
    assert said in result.stderr.splitlines()[-1]
    assert cloud.kinds.count("start") == 1


def test_a_failure_of_a_tpu_that_goes_away_is_not_one_of_the_run(cloud):
    cloud.answer(
        status=[NO_FILE, status("failed", "UnavailableError"), status("finished")],
        request=[MISSING, ok("ACTIVE"), ok("SUSPENDING"), ok("SUSPENDED"), ok("ACTIVE")],
        probe=[ok("probe: none"), ok("probe: ended 1"), ok("probe: none"), ok("probe: ended 0")],
    )
    result = train(cloud)
    assert result.returncode == 0, result.stderr
    assert cloud.kinds.count("start") == 2


@pytest.mark.parametrize("kind", [pytest.param("scp", marks=pytest.mark.exhaustive), "setup", "start"])
def test_what_fails_on_a_tpu_that_goes_away_is_tried_on_the_next(cloud, kind):
    cloud.answer(
        **{kind: [failure(), ok()]},
        request=[MISSING, ok("ACTIVE"), ok("SUSPENDED"), ok("SUSPENDED"), ok("ACTIVE")],
        probe=[ok("probe: none"), ok("probe: none"), ok("probe: ended 0")],
    )
    result = train(cloud)
    assert result.returncode == 0, result.stderr
    assert cloud.kinds.count(kind) == 2
    assert cloud.kinds.count("delete") == 1


@pytest.mark.parametrize(("kind", "last"), [("scp", "scp"), ("setup", "setup"), ("start", "start")])
def test_what_fails_on_a_tpu_that_is_there_ends_the_script(cloud, kind, last):
    cloud.answer(**{kind: [failure()]})
    result = train(cloud)
    assert result.returncode == 1
    assert cloud.kinds[-3:] == [last, "request", "node"]
    assert "though my-tpu is ready" in result.stderr


def test_a_host_that_does_not_answer_though_it_is_there(cloud):
    cloud.answer(probe=[failure()])
    result = train(cloud, "--tries=2")
    assert result.returncode == 1
    assert "my-tpu does not answer, though my-tpu is ready" in result.stderr


@pytest.mark.parametrize("script", ["create.sh", "train.sh"])
def test_without_the_state_of_the_tpu_it_is_not_known_how_a_run_ended(cloud, script):
    """The TPU is kept: before the run it may train another one, and after the run it may have been preempted."""
    before = [MISSING, ok("ACTIVE")] if script == "train.sh" else []
    cloud.answer(
        request=[*before, failure("ERROR: Reauthentication required")],
        status=[NO_FILE, status("failed", "UnavailableError")],
        probe=[ok("probe: none"), ok("probe: ended 1")],
    )
    result = train(cloud, "--tries=1", "--delete")
    assert result.returncode == 1
    assert "ERROR: Reauthentication required" in result.stderr
    assert f"error: tpu_scripts/{script}: " in result.stderr
    assert "delete" not in cloud.kinds


def test_no_tpu_to_be_had(cloud):
    cloud.answer(create=[failure("ERROR: quota")])
    result = train(cloud, "--delete")
    assert result.returncode == 4
    assert cloud.kinds == ["status", "request", "create", "delete"]


def test_the_tpu_is_deleted_when_the_run_has_ended(cloud):
    assert train(cloud, "--delete").returncode == 0
    assert cloud.kinds[-2:] == ["status", "delete"]
    cloud.answer(status=[NO_FILE, status("failed", "x")], delete=[failure()])
    result = train(cloud, "--delete")
    assert result.returncode == 6
    assert "my-tpu is not deleted and costs money" in result.stderr


def test_the_configuration_must_be_sent(cloud):
    (cloud.checkout / "runs").mkdir()
    for path in ("configs/new.yaml", "runs/new.yaml", "../outside.yaml"):
        (cloud.checkout / path).write_text("epochs: 1\n")
    where = [f"--run-dir={RUN}"]
    assert "no such file" in one_line(cloud.run("train.sh", "x", "configs/none.yaml", *where), 2)
    assert "not committed" in one_line(cloud.run("train.sh", "x", "configs/new.yaml", *where), 2)
    assert "git ignores" in one_line(cloud.run("train.sh", "x", "runs/new.yaml", "--source=tree", *where), 2)
    assert "a file below" in one_line(cloud.run("train.sh", "x", "../outside.yaml", *where), 2)
    assert not cloud.calls
    for words in (["configs/new.yaml", "--source=tree"], ["gs://bucket/new.yaml"]):
        assert cloud.run("train.sh", "x", *words, *where).returncode == 0
        assert words[0] in cloud.commands("start")[-1]
        cloud.answer()


def test_overrides_are_checked(cloud):
    assert "KEY.PATH=VALUE" in one_line(train(cloud, "--set", "epochs"), 2)
    assert "--import is './my_rules.py'" in one_line(train(cloud, "--import", "./my_rules.py"), 2)
    assert not cloud.calls


# --- on a host

HOST_PROGRAM = """
import json, os, sys
with open(os.path.expanduser("~/trained"), "w") as file:
    json.dump([sys.argv[1:], os.getcwd(), os.environ.get("TPU_NAME")], file)
print("a line of the log")
"""


ON_HOST = {kind: ["run"] for kind in ("setup", "start", "follow", "probe", "evaluate")}
"""Answers of a simulated gcloud that runs the host commands."""


@pytest.fixture
def host(cloud):
    """Makes the simulated gcloud run commands in a folder, in which `python3 -m venv` creates simulated programs."""
    missing = [tool for tool in ("flock", "setsid", "tail") if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"the commands of a Linux host are missing here: {', '.join(missing)}")
    tools = cloud.folder / "host_bin"
    tools.mkdir()
    executable(cloud.folder / "program", f"#!{sys.executable} -SE\n{HOST_PROGRAM}")
    executable(
        tools / "python3",
        textwrap.dedent(f"""\
            #!/bin/sh
            mkdir -p neural_alignment_env/bin
            cp {cloud.folder}/program neural_alignment_env/bin/neural-alignment
            printf '#!/bin/sh\\necho "$@" >> ~/pip\\n' > neural_alignment_env/bin/pip
            printf '#!/bin/sh\\necho /lib/libtpu.so\\n' > neural_alignment_env/bin/python
            chmod +x neural_alignment_env/bin/*
            """),
    )
    cloud.answer(**ON_HOST)
    return cloud


def test_what_is_given_reaches_the_program_as_it_is(host):
    """From the command line through two shells and back."""
    run_dir = "gs://bucket/it's $(touch pwned) `x` \\ é"
    overrides = [f"data.train_files={text}" for text in NASTY]
    words = [word for override in overrides for word in ("--set", override)]
    result = host.run("train.sh", "my-tpu", CONFIG, "--import", "my_rules", "--run-dir", run_dir, *words)
    assert result.returncode == 0, result.stderr
    arguments, folder, tpu = json.loads((host.host / "trained").read_text())
    ours = ["--set", "runtime.strategy=tpu", "--set", "runtime.tpu=local"]
    assert arguments == ["train", CONFIG, "--import", "my_rules", *ours, *words, "--run-dir", run_dir, "--resume"]
    assert (folder, tpu) == (str(host.host / "neural_alignment"), "local")
    assert (host.host / "neural_alignment" / CONFIG).exists()
    assert "./neural_alignment[tpu]" in (host.host / "pip").read_text()
    assert result.stdout == "a line of the log\n"
    assert not list(host.folder.rglob("pwned"))
    # Joined without quotes, the same words are run.
    subprocess.run(["sh", "-c", " ".join(["true", *words[:6]])], cwd=host.folder, capture_output=True, check=False)
    assert (host.folder / "pwned").exists()


def test_the_code_of_the_program_is_found(host):
    program = host.folder / "program"
    program.write_text(program.read_text() + "sys.exit(3)\n")
    host.answer(**ON_HOST, status=[NO_FILE, status("diverged", "J is not finite")])
    assert train(host).returncode == 3


def test_a_run_that_is_going_on_keeps_its_files(host):
    """It holds the lock: setup and start refuse, and the probe names it."""
    folder = host.host / "neural_alignment_run"
    folder.mkdir()
    (folder / "run_dir").write_text(f"{RUN}-other\n")
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        result = host.run("setup.sh", "my-tpu")
        assert result.returncode == 1
        assert "a run or an installation is in progress" in result.stderr
        assert (folder / "run_dir").read_text() == f"{RUN}-other\n"
        assert f"busy with {RUN}-other" in train(host).stderr
    assert not (host.host / "trained").exists()
    host.answer(**ON_HOST)
    assert train(host).returncode == 0
    assert (host.host / "trained").exists()


def test_an_installation_keeps_its_files_while_it_goes_on(host):
    """It holds the lock as a run does. Afterwards a run starts."""
    stopped = host.folder / "stopped"
    os.mkfifo(stopped)
    python = host.folder / "host_bin" / "python3"
    python.write_text(python.read_text() + f"read -r word < {stopped}\n")
    run = host.host / "neural_alignment_run"
    run.mkdir()
    (run / "exit").write_text("0\n")
    with host.start("setup.sh", "my-tpu", stderr=subprocess.PIPE) as first:
        awaited((host.host / "neural_alignment_env" / "bin" / "python").exists)
        source = host.host / "neural_alignment"
        (source / "kept").write_text("")
        second = host.run("setup.sh", "my-tpu")
        assert (second.returncode, (source / "kept").exists()) == (1, True)
        assert "a run or an installation is in progress" in second.stderr
        host.answer(**ON_HOST)
        busy = train(host, "--delete")
        assert busy.returncode == 5
        assert "my-tpu is busy with an installation" in busy.stderr
        assert "delete" not in host.kinds
        stopped.write_text("go on\n")
        first.communicate(timeout=60)
        assert first.returncode == 0
    python.write_text(python.read_text().replace("read -r", "# read -r"))
    host.answer(**ON_HOST)
    assert train(host).returncode == 0
    assert (host.host / "trained").exists()


def test_a_probe_does_not_disturb_an_installation(host):
    """It takes the lock for a moment."""
    folder = host.host / "neural_alignment_run"
    folder.mkdir()
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        process = host.start("setup.sh", "my-tpu", stderr=subprocess.PIPE)
        awaited(lambda: "setup" in host.kinds)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors


def test_evaluate_needs_a_setup(host):
    result = host.run("evaluate.sh", "my-tpu", RUN)
    assert result.returncode == 2
    assert "this TPU is not set up" in result.stderr
    assert host.run("setup.sh", "my-tpu").returncode == 0
    assert host.run("evaluate.sh", "my-tpu", RUN).returncode == 0
    assert json.loads((host.host / "trained").read_text())[0] == ["evaluate", RUN, "--strategy", "tpu"]


# --- search

RUNS = "gs://bucket/runs"
TRIALS = [f"configs/{name}.yaml" for name in ("one", "two", "three")]


def search(cloud, *words, tpus="a,b"):
    return cloud.run("search.sh", f"--tpus={tpus}", f"--runs={RUNS}", *TRIALS, "--tries=1", *words)


def statuses(**ends):
    """Answers for the trials: no status at first, then how each ends."""
    ends = {"one": "finished", "two": "finished", "three": "finished", **ends}
    return {f"status@{RUNS}/{name}/status.json": [NO_FILE, status(end, "x")] for name, end in ends.items()}


RUNS_OF_A_TPU = [ok("probe: none"), ok("probe: ended 0")] * 4


def tpu(name, **answers):
    """Answers for a separate TPU. A search of given trials first asks for its present run."""
    good = {"request": [ok("ACTIVE")], "node": [ok("READY")], "probe": [ok("probe: none"), *RUNS_OF_A_TPU]}
    return {f"{kind}@{name}": answer for kind, answer in {**good, **answers}.items()}


def results(result):
    return {line.rpartition("/")[2]: line.split()[0] for line in result.stdout.splitlines() if line[0] != "["}


def test_search(cloud):
    cloud.answer(**statuses(), **tpu("a"), **tpu("b"))
    result = search(cloud, "--set", "epochs=2", "--spot", "--import", "my_rules")
    assert result.returncode == 0, result.stdout + result.stderr
    assert results(result) == {"one": "finished", "two": "finished", "three": "finished"}
    starts = cloud.commands("start")
    assert len(starts) == 3
    for name, path in zip(("one", "two", "three"), TRIALS, strict=True):
        start = next(text for text in starts if path in text)
        assert f"--set epochs=2 --run-dir {RUNS}/{name} --resume" in start
        assert f"train {path} --import my_rules --set" in start
    assert {words[4] for kind, words in cloud.records if kind == "start"} <= {"a", "b"}


def test_a_trial_that_ends_badly_does_not_stop_the_others(cloud):
    codes = [ok(text) for code in (3, 1, 0) for text in ("probe: none", f"probe: ended {code}")]
    cloud.answer(**statuses(one="diverged", two="failed"), **tpu("a", probe=[ok("probe: none"), *codes]))
    result = search(cloud, "--delete", tpus="a")
    assert result.returncode == 1
    assert results(result) == {"one": "diverged", "two": "failed", "three": "finished"}
    assert len(cloud.commands("start")) == 3
    assert cloud.kinds[-1] == "delete"
    assert cloud.kinds.count("delete") == 1


def test_a_divergence_is_a_result(cloud):
    cloud.answer(**statuses(one="diverged"), **tpu("a"))
    assert search(cloud, tpus="a").returncode == 0


def test_what_has_ended_is_not_run_again(cloud):
    done = {
        f"status@{RUNS}/{name}/status.json": [status(end)] for name, end in (("one", "finished"), ("two", "diverged"))
    }
    cloud.answer(**{**statuses(), **done}, **tpu("a"))
    result = search(cloud, tpus="a")
    assert result.returncode == 0
    assert [TRIALS[2] in text for text in cloud.commands("start")] == [True]


def test_a_tpu_that_cannot_be_had_leaves_its_trial_to_the_others(cloud):
    cloud.answer(**statuses(), **tpu("a", request=[MISSING]), **{"create@a": [failure("ERROR: quota")]}, **tpu("b"))
    result = search(cloud)
    assert result.returncode == 0, result.stderr
    assert results(result) == {"one": "finished", "two": "finished", "three": "finished"}
    assert {words[4] for kind, words in cloud.records if kind == "start"} == {"b"}


def test_without_any_tpu_the_trials_are_not_run(cloud):
    cloud.answer(**statuses(), request=[MISSING], create=[failure("ERROR: quota")])
    result = search(cloud)
    assert result.returncode == 4
    assert set(results(result).values()) == {"not"}
    assert cloud.kinds.count("create") == 2
    assert not [line for line in result.stderr.splitlines() if "No such file" in line]


def test_a_tpu_that_is_busy_with_another_run_is_left_alone_by_a_search(cloud):
    cloud.answer(**statuses(), **tpu("a", probe=[ok(f"probe: running {RUN}")]), **tpu("b"))
    result = search(cloud, "--delete")
    assert result.returncode == 0, result.stderr
    assert set(results(result).values()) == {"finished"}
    assert {words[4] for kind, words in cloud.records if kind == "start"} == {"b"}
    assert {words[4] for kind, words in cloud.records if kind == "delete"} == {"b"}


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ({"probe": [ok(f"probe: running {RUN}")]}, f"a is busy with {RUN}"),
        ({"probe": [failure("ERROR: no answer")]}, "a does not answer"),
        ({"request": [failure("ERROR: no rights")]}, "the state of a could not be read"),
    ],
)
def test_a_tpu_that_gets_no_trial_is_only_deleted_if_it_is_known_to_train_nothing(cloud, proposer, answers, said):
    """Also if a search has finished on the other TPUs."""
    done = {f"status@{RUNS}/{name}/status.json": [status("finished")] for name in ("one", "two", "three")}
    done |= {f"status@{RUNS}/trials/{name}/status.json": [status("finished")] for name in ("0001", "0002")}
    cloud.answer(**done, **tpu("a", **answers), **tpu("b"))
    for call in (search, propose):
        result = call(cloud, "--delete")
        assert result.returncode == 0, result.stderr
        assert f"{said}: it is not deleted and costs money" in result.stderr
    assert [words[4] for kind, words in cloud.records if kind == "delete"] == ["b", "b"]


def test_a_search_whose_only_tpu_is_busy_runs_no_trial_and_deletes_nothing(cloud):
    cloud.answer(**statuses(), **tpu("a", probe=[ok(f"probe: running {RUN}")]))
    result = search(cloud, "--delete", tpus="a")
    assert result.returncode == 4
    assert set(results(result).values()) == {"not"}
    assert f"a is busy with {RUN}" in result.stdout
    assert "a is neither used nor deleted; another TPU gets its trial" in result.stderr
    assert not {"start", "delete"} & {*cloud.kinds}


def test_a_search_that_is_started_again_gives_each_tpu_the_trial_that_it_is_training(cloud):
    def training(name):
        return [ok(f"probe: running {RUNS}/{name}")] * 2 + [
            ok("probe: ended 0"),
            ok("probe: none"),
            ok("probe: ended 0"),
        ]

    going_on = {f"status@{RUNS}/{name}/status.json": [status("running"), status("finished")] for name in ("one", "two")}
    answers = {**tpu("a"), **tpu("b", probe=training("two")), **tpu("c", probe=training("one"))}
    cloud.answer(**{**statuses(), **going_on}, **answers)
    result = search(cloud, tpus="a,b,c")
    assert result.returncode == 0, result.stderr
    lines = {line.rpartition("/")[2]: line.split() for line in result.stdout.splitlines() if line[0] != "["}
    assert [lines[name][:2] for name in ("one", "two")] == [["finished", "c"], ["finished", "b"]]
    (start,) = cloud.commands("start")
    assert TRIALS[2] in start


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_a_search_ends_all_its_processes(host, number):
    """Its output ends with the last of them. The runs continue on the TPUs."""
    folder = host.host / "neural_alignment_run"
    folder.mkdir()
    (folder / "pid").write_text(str(os.getpid()))
    (folder / "log").write_text("")
    host.answer(**statuses(), **tpu("a"), **tpu("b"), follow=["run"])
    words = ["--tpus=a,b", f"--runs={RUNS}", *TRIALS, "--delete"]
    process = host.start("search.sh", *words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    awaited(lambda: host.kinds.count("follow") == 2)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert f"error: tpu_scripts/search.sh: {number.name}; runs on TPUs continue" in output
    assert "delete" not in host.kinds


@pytest.mark.parametrize("kind", ["setup", "status"])
def test_a_tpu_that_may_still_train_a_run_is_kept_and_gets_no_other_trial(cloud, kind):
    answers = {**statuses(), **tpu("a")}
    answers[f"status@{RUNS}/one/status.json" if kind == "status" else "setup@a"] = [failure("ERROR: 403")]
    cloud.answer(**answers)
    result = search(cloud, "--delete", tpus="a")
    assert result.returncode == 1
    assert results(result) == {"one": "unknown", "two": "not", "three": "not"}
    assert "a may still train one: it is neither used nor deleted" in result.stderr
    assert "delete" not in cloud.kinds


def test_a_search_is_checked_before_it_starts(cloud):
    runs = f"--runs={RUNS}"
    bad = [
        (["--tpus=a,a", runs, *TRIALS], "'a' twice"),
        (["--tpus=a,$(x)", runs, *TRIALS], "$(x)"),
        (["--tpus=a", runs, TRIALS[0], TRIALS[0]], "'one' twice"),
        (["--tpus=a", runs, "configs/none.yaml"], "no such file"),
        (["--tpus=a", runs, "gs://bucket/a b.yaml"], "allowed: a file name"),
        (["--tpus=a", runs], "TRIAL is missing"),
        ([runs, *TRIALS], "--tpus is missing"),
        (["--tpus=a", *TRIALS], "--runs is missing"),
        (["--tpus=a", "--runs=runs", *TRIALS], "gs://BUCKET/PATH"),
    ]
    for words, said in bad:
        assert said in one_line(cloud.run("search.sh", *words), 2)
    assert not cloud.calls


@pytest.fixture
def proposer(cloud):
    """A stand-in for `neural-alignment search` that writes down its words and launches two trials, as that would."""
    path = cloud.folder / "bin" / "neural-alignment"
    code = """
    import json, os, shlex, subprocess, sys
    here = os.environ["STAND_IN"]
    words = sys.argv[1:]
    with open(f"{here}/proposed", "w") as file:
        json.dump(words, file)
    place, launcher = (words[words.index(flag) + 1] for flag in ("--search-dir", "--launcher"))
    for number, tpu in ((1, "a"), (2, "b")):
        config, run_dir = f"{place}/settings/000{number}.yaml", f"{place}/trials/000{number}"
        filled = {"{tpu}": tpu, "{config}": config, "{run_dir}": run_dir}
        subprocess.run([filled.get(word, word) for word in shlex.split(launcher)])
    sys.exit(int(os.environ.get("PROPOSER_CODE", 0)))
    """
    path.write_text(f"#!{sys.executable}\n{textwrap.dedent(code)}")
    path.chmod(0o755)
    return lambda: json.loads((cloud.folder / "proposed").read_text())


def propose(cloud, *words):
    return cloud.run(
        "search.sh", "--tpus=a,b", f"--runs={RUNS}", "--search=two_routes/information", "--tries=1", *words
    )


def test_a_search_proposes_its_trials_and_train_trains_them(cloud, proposer):
    answers = {f"status@{RUNS}/trials/{name}/status.json": [NO_FILE, status("finished")] for name in ("0001", "0002")}
    cloud.answer(**answers, **tpu("a", probe=RUNS_OF_A_TPU), **tpu("b", probe=RUNS_OF_A_TPU))
    given = ["--set", "batch_size=it's", "--trials=9", "--import=my_rules", "--spot", "--delete"]
    result = propose(cloud, *given, "--", "--flag=a b")
    assert result.returncode == 0, result.stderr
    words = proposer()
    assert words[:6] == ["search", "two_routes/information", "--search-dir", RUNS, "--engine", "tpu:a,b"]
    assert words[8:] == ["--set", "batch_size=it's", "--import", "my_rules", "--trials", "9"]
    launcher = shlex.split(words[7])
    assert launcher[1:5] == ["{tpu}", "{config}", "--run-dir", "{run_dir}"]
    assert launcher[5:8] == ["--import", "my_rules", "--spot"]
    assert launcher[-2:] == ["--", "--flag=a b"]
    # The overrides are in the trials that the search writes; a second time they would not be those of its records.
    assert "batch_size" not in words[7]
    for name, start in zip(("0001", "0002"), cloud.commands("start"), strict=True):
        assert f"train {RUNS}/settings/{name}.yaml" in start
        assert f"--run-dir {RUNS}/trials/{name} --resume" in start
    assert cloud.kinds.count("delete") == 2


def test_the_code_of_the_search_is_that_of_the_script(cloud, proposer, monkeypatch):
    monkeypatch.setenv("PROPOSER_CODE", "2")
    cloud.answer(**{f"status@{RUNS}/trials/{n}/status.json": [status("finished")] for n in ("0001", "0002")})
    result = propose(cloud, "--delete")
    assert result.returncode == 2
    assert "the search ended with code 2; the TPUs are not deleted and cost money" in result.stderr
    assert "delete" not in cloud.kinds
    assert "cost money" not in propose(cloud).stderr


def test_a_search_that_proposes_is_checked_before_it_starts(cloud, proposer):
    assert "--search proposes the trials" in one_line(propose(cloud, CONFIG), 2)
    assert "--trials is '0'" in one_line(propose(cloud, "--trials=0"), 2)
    assert "--trials needs --search" in one_line(search(cloud, "--trials=3"), 2)
    (cloud.folder / "bin" / "neural-alignment").unlink()
    assert not cloud.calls


# --- the document


def test_the_commands_of_the_document_are_accepted(cloud):
    shutil.copytree(ROOT / "configs", cloud.checkout / "configs", dirs_exist_ok=True)
    blocks = re.findall(r"^```bash\n(.*?)^```$", (ROOT / "docs" / "tpu.md").read_text(), re.MULTILINE | re.DOTALL)
    commands = [line for text in blocks for line in text.replace("\\\n", "").splitlines() if line.startswith("tpu_")]
    assert {line.split()[0].removeprefix("tpu_scripts/") for line in commands} == {*SCRIPTS}
    for line in commands:
        flags = ["--dry-run", f"--zone={ZONE}", *(["--source=tree"] if "--run" in line else [])]
        result = subprocess.run(
            ["bash", "-c", f"{line} {' '.join(flags)}"], cwd=cloud.checkout, capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, result.stderr
        assert "gcloud" in result.stdout
    assert not cloud.calls
