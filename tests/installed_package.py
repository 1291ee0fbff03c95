"""Builds both distributions, installs the wheel in a new environment, and uses it outside of the checkout.

`make package-test` runs this script. Every command runs in an empty directory, as for a user who has no checkout.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent

COMMANDS = [
    "--version",
    "configs",
    "configs quickstart --copy mine.yaml",
    "describe two_routes/resnet18/information",
    "train quickstart",
    "evaluate runs/quickstart",
    "train mine.yaml --run-dir runs/mine --set max_steps=20",
    "train two_routes/resnet18/symmetric --smoke --set model.width=4",
    "compare quickstart mine.yaml --seeds 0 --set max_steps=5 --runs runs/compared --output tables/compared",
    "search lab/information --config mine.yaml --trials 2 --search-dir runs/search",
    "table",
    "table two_routes/5",
    "figure",
    "figure fa_mechanism/S7 --lab",
]
"""Commands without `neural-alignment`; each must succeed."""

GUIDE = re.findall(r"^neural-alignment (.+)$", (ROOT / "docs" / "first_run.md").read_text(), re.MULTILINE)
"""The commands of the guide's first page, in their order."""


def python_block(page: str) -> str:
    """Returns the first Python example of a page."""
    return re.search(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)[1]


RULE = '--set "alignment={rule: shrinking, quartic: 0.5}"'
OWN_RULE = [
    f"train quickstart --import my_rules {RULE} --run-dir runs/shrinking --set epochs=2",
    "evaluate runs/shrinking --import my_rules",
    "search search.yaml --import my_rules --search-dir runs/search",
]
"""Commands with the rule of docs/plugins.md, and a search for its weight."""

SEARCH = """
config: shrinking.yaml
trials: 3
space: {alignment.quartic: {log_uniform: [0.01, 1]}}
"""

CONFIG = "base: quickstart\nepochs: 1\nalignment: {rule: shrinking, quartic: 0.5}\n"

FILES = [
    *("runs/quickstart/model.keras", "runs/mine/metrics.csv", "runs/smoke/two_routes/resnet18/symmetric/metrics.csv"),
    *("tables/compared.csv", "runs/search/best.yaml", "results/two_routes/table_5.csv"),
    *("results/fa_mechanism/figure_S7.png", "guide/rules.png", "guide/runs/mine/model.keras"),
    *("rule/runs/shrinking/summary.png", "rule/runs/search/scores.png", "rule/runs/search/best.yaml"),
]
"""Files that the commands write."""


def run(*command: str | Path, cwd: str | Path, **options: object) -> subprocess.CompletedProcess:
    """Runs a command, prints it with its duration, and stops the script if it fails."""
    begin = time.monotonic()
    done = subprocess.run([*map(str, command)], cwd=cwd, check=False, **options)
    print(f"{time.monotonic() - begin:6.1f} s  {shlex.join(map(str, command))[:150]}", flush=True)
    if done.returncode:
        print(done.stdout or "", done.stderr or "", sep="\n")
        sys.exit(f"exit code {done.returncode}")
    return done


def main() -> None:
    """Builds, installs, and runs all commands."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", default=sys.executable, help="interpreter of the new environment")
    python = parser.parse_args().python
    quiet = {"capture_output": True, "text": True}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        # The wheel is built from the source distribution, so both are tested.
        run(sys.executable, "-m", "build", "--outdir", folder / "dist", ROOT, cwd=folder, **quiet)
        [wheel] = (folder / "dist").glob("*.whl")
        run(python, "-m", "venv", folder / "venv", cwd=folder)
        pip = (folder / "venv" / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check")
        run(*pip, "--constraint", ROOT / "constraints.txt", f"{wheel}[cpu]", cwd=folder)
        use(folder / "venv" / "bin", folder / "empty")


def use(programs: Path, folder: Path) -> None:
    """Runs all commands with an installed package.

    Args:
        programs: folder of the environment's programs.
        folder: the directory to create and work in.
    """
    folder.mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    options = {"cwd": folder, "env": environment, "capture_output": True, "text": True}
    where = "import neural_alignment, optimizers; print(neural_alignment.__file__, optimizers.__file__)"
    paths = run(programs / "python", "-c", where, **options).stdout.split()
    assert all(Path(path).is_relative_to(programs.parent) for path in paths), paths
    guide, rule = folder / "guide", folder / "rule"
    guide.mkdir()
    rule.mkdir()
    (folder / "own_model.py").write_text(python_block("README.md"))
    (rule / "my_rules.py").write_text(python_block("docs/plugins.md"))
    (rule / "shrinking.yaml").write_text(CONFIG)
    (rule / "search.yaml").write_text(SEARCH)
    run(programs / "python", "own_model.py", **options)
    for place, commands in ((folder, COMMANDS), (guide, GUIDE), (rule, OWN_RULE)):
        for command in commands:
            run(programs / "neural-alignment", *shlex.split(command), **{**options, "cwd": place})
    for file in FILES:
        assert (folder / file).is_file(), file
    stopped(programs / "neural-alignment", options)


def stopped(program: Path, options: dict) -> None:
    """Starts the lab profile of a paper, which takes hours, and stops it after its first line."""
    options = {key: value for key, value in options.items() if key != "capture_output"}
    command = [program, "lab", "wide_networks"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)
    try:
        first = process.stdout.readline()
        process.terminate()  # A shell may have started this script with SIGINT ignored.
        output, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    assert first.startswith("table wide_networks/"), first + output + errors
    assert "(estimate)" in first, first
    # The signal may come before the command has begun to train, which is when it begins to catch it.
    assert process.returncode == -signal.SIGTERM or errors.splitlines()[-1].startswith("stopped"), errors
    print(f"{'':8} {shlex.join(map(str, command))}, stopped")


if __name__ == "__main__":
    main()
