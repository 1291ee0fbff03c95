"""The commands on pages and in notebooks run. Those that need a cluster or the like are marked."""

import collections
import functools
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main
from lab import write_run

from neural_alignment import cli
from neural_alignment.errors import Stopped
from neural_alignment.jobs.engines.in_process import InProcess
from neural_alignment.jobs.pool import SlotEngine
from neural_alignment.papers import commands as papers
from neural_alignment.papers import registry

ROOT = Path(__file__).parent.parent

PAGES = ["README.md", "CONTRIBUTING.md", "docs/first_run.md", "docs/training.md", "docs/search.md"]
"""The pages with commands that use files of earlier commands, in their order; the other pages follow."""
PAGES += sorted({str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md")} - {*PAGES})

NEEDS = re.compile(r"# Needs (a Google Cloud project|a SLURM cluster|neural recordings)\.")
"""The first line of a block of commands that no test runs."""

PROGRAMS = {"make", "pip", "python", "python3", "source", "uv"}
"""Commands that install something or start the tests; `.ci/run` does so itself."""


def text(page):
    """Returns the text of a page."""
    return (ROOT / page).read_text()


def blocks(page):
    """Returns the blocks of commands on a page."""
    return re.findall(r"^```bash\n(.*?)^```$", text(page), re.MULTILINE | re.DOTALL)


def commands(block):
    """Returns the commands of a block as lists of words, as bash divides them."""
    lines = [line for line in re.sub(r"\\\n *", "", block).splitlines() if line and not line.startswith("#")]
    print_words = "printf '%s\\0' "
    found = []
    for line in lines:
        for command in line.split(" && "):
            done = subprocess.run(["bash", "-c", print_words + command], capture_output=True, text=True, check=True)
            found.append(done.stdout.split("\0")[:-1])
    return found


def spans(page):
    """Returns the commands in the text of a page; a word in capitals stands for a value."""
    return in_text(re.sub(r"^```.*?^```$", "", text(page), flags=re.MULTILINE | re.DOTALL))


def in_text(prose):
    """Returns the words of the commands in a text, without `neural-alignment`."""
    found = re.findall(r"`neural-alignment ([a-z][^`]*)`", prose)
    return [shlex.split(" ".join(each.split()), comments=True) for each in found]


def test_make_quickstart_replaces_no_run_of_the_command_on_the_pages():
    recipe = (ROOT / "Makefile").read_text().split("\nquickstart:")[1].split("\n\n")[0]
    arguments = shlex.split(recipe.partition("neural-alignment ")[2])
    assert "--force" in arguments  # It can be repeated.
    assert arguments[arguments.index("--run-dir") + 1] != "runs/quickstart"


BLOCKS = [(page, block) for page in PAGES for block in blocks(page)]


@functools.cache
def runnable():
    """Returns page and words of each command that is not marked."""
    return [(page, words) for page, block in BLOCKS if not NEEDS.match(block) for words in commands(block)]


def ours():
    """Returns page and words of each command of this package, without its name."""
    return [(page, words[1:]) for page, words in runnable() if words[0].endswith("neural-alignment")]


def parse(words):
    """Parses the words of a command without executing it; of a single word, only whether it is a command."""
    group = typer.main.get_command(cli.app)
    with group.make_context("neural-alignment", [words[0]], resilient_parsing=True) as outer:
        command = group.get_command(outer, words[0])
        assert command is not None, words
        if len(words) > 1:
            command.make_context(words[0], words[1:], parent=outer)


def test_every_block_runs_programs_that_a_test_starts_or_says_what_it_needs():
    assert len(ours()) > 35
    for page, words in runnable():
        assert Path(words[0]).name in {*PROGRAMS, "neural-alignment"}, f"{page}: {shlex.join(words)}"


def test_a_block_that_needs_something_names_it_in_words_of_the_page():
    """The words of the comment are those that the test knows: a wrong one would be run."""
    for page, block in BLOCKS:
        assert bool(NEEDS.match(block)) == ("# Needs" in block), f"{page}: {block}"


@pytest.mark.parametrize("page", PAGES)
def test_every_other_command_has_the_options_of_the_program(page, tmp_path, monkeypatch):
    """Those in the text, where a word in capitals stands for a value, and those in blocks that need something."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recordings.npz").touch()
    marked = [words for block in blocks(page) if NEEDS.match(block) for words in commands(block)]
    for words in [*spans(page), *(words[1:] for words in marked if words[0] == "neural-alignment")]:
        parse(words)


@pytest.mark.parametrize("page", ["README.md", "docs/first_run.md", "docs/clusters.md"])
def test_pages_that_install_the_package_activate_its_environment_before_its_first_command(page):
    """`source DIRECTORY/bin/activate` comes after the command that makes the environment."""
    found = [words for block in blocks(page) for words in commands(block)]
    made = [index for index, words in enumerate(found) if words[0] == "make" or words[1:3] == ["-m", "venv"]]
    [activated] = [index for index, words in enumerate(found) if words[0] == "source"]
    assert made[0] < activated
    assert "neural-alignment" not in {words[0] for words in found[:activated]}


def test_a_wrong_option_would_be_seen():
    with pytest.raises(Exception, match="--runz") as error:
        parse(["table", "two_routes/5", "--runz", "runs"])
    assert hasattr(error.value, "format_message")


def stop(engine, queue):
    """Stands in for an engine: a command that would train for hours ends before its first job."""
    del engine
    assert queue.left()
    raise Stopped("at its first job")


def executed(words, monkeypatch, capsys):
    """Runs a command and returns its last line on standard error if it did not succeed."""
    monkeypatch.setattr(sys, "argv", ["neural-alignment", *words])
    with pytest.raises(SystemExit) as end:
        cli.main()
    errors = capsys.readouterr().err
    return errors.splitlines()[-1] if end.value.code else None


SHORT = {"train": ["--smoke"], "score": ["--smoke"]}
"""Options that make a command short."""

STOPPED = "stopped: at its first job"


@pytest.mark.exhaustive
def test_every_command_runs(tmp_path, monkeypatch, capsys):
    """With two steps of training; those of hours until their first job. The pages of the guide share a directory."""
    for engine in (InProcess, SlotEngine):
        monkeypatch.setattr(engine, "run", stop)
    for name in ("readme", "guide"):
        (tmp_path / name).mkdir()
    for folder in ("results", "benchmarks/results"):
        shutil.copytree(ROOT / folder, tmp_path / "guide" / folder, ignore=shutil.ignore_patterns("runs"))
    (tmp_path / "guide" / "my_rules.py").write_text(
        re.search(r"```python\n(.*?)```", text("docs/plugins.md"), re.DOTALL)[1]
    )
    first, *_ = registry.find(papers.ITEMS, "table", "two_routes/4").cells["paper"]
    write_run(tmp_path / "guide" / "runs" / "two_routes", first, 0, 0.7)
    monkeypatch.setenv("TPU_COMPILER_PYTHON", str(tmp_path / "none"))
    ends = collections.defaultdict(set)
    for page, words in ours():
        monkeypatch.chdir(tmp_path / ("readme" if page == "README.md" else "guide"))
        end = executed([*words, *SHORT.get(words[0], ())], monkeypatch, capsys)
        assert end in (None, STOPPED) or "TPU_COMPILER_PYTHON" in end, f"{page}: {shlex.join(words)}: {end}"
        ends[end].add(words[0])
    assert ends.pop(STOPPED) == {"lab", "search", "compare", "table", "figure"}
    assert {*ends.pop(None)} >= {"train", "evaluate", "describe", "configs", "plot", "score", "table", "figure"}
    assert [*ends.values()] == [{"describe"}]


def test_the_other_commands_exist():
    """Targets of `make`, modules of Python and extras of the package are looked up."""
    for page, words in runnable():
        where = f"{page}: {shlex.join(words)}"
        if words[0] == "make":
            dry = subprocess.run(["make", "--dry-run", words[1]], cwd=ROOT, capture_output=True, text=True, check=False)
            assert dry.returncode == 0, where
        elif words[0] == "pip":
            assert words[1] == "install", where
            extras = re.search(r"\[(.*)\]", words[2])[1].split(",")
            assert all(f'"{extra}": [' in text("setup.py") for extra in extras), where
        elif words[:2] == ["python", "-m"]:
            assert (ROOT / f"{words[2].replace('.', '/')}.py").exists(), where


def test_commands_in_the_text_of_notebooks_have_the_options_of_the_program(tmp_path, monkeypatch):
    """Those in code cells are run by `make examples`, and at a small size by `make test`."""
    monkeypatch.chdir(tmp_path)
    cells = [cell for path in (ROOT / "examples").glob("*.ipynb") for cell in json.loads(path.read_text())["cells"]]
    found = [words for cell in cells if cell["cell_type"] == "markdown" for words in in_text("".join(cell["source"]))]
    assert len(found) > 3
    for words in found:
        parse(words)
