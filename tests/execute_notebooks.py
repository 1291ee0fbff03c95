"""Executes the notebooks of `examples/` as they are, and fails if a cell fails.

`make examples` runs this script. The results go to `runs/examples`, which git ignores. With `--write` they replace the
outputs of the committed notebooks, and the processor times in `examples/README.md`.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from traitlets.config import Config

from neural_alignment import processors

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
README = EXAMPLES / "README.md"

LIMIT = 180
"""Processor time in seconds above which a notebook is reported as too slow."""

METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
"""The metadata of every notebook, without the versions of the machine that executed it."""

LOG = re.compile(r"WARNING: All log messages before absl|[IW]0000 |To enable the following instructions:|\s*$")
"""Lines that TensorFlow prints when Keras is imported, and that no setting of TensorFlow suppresses."""


def normalised(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Returns an executed notebook without everything that differs between two executions.

    Raises:
        ValueError: if an output contains a path of this machine, or a cell writes to standard error.
    """
    notebook.metadata = nbformat.from_dict(METADATA)
    for number, cell in enumerate(notebook.cells, 1):
        cell.metadata = nbformat.from_dict({key: cell.metadata[key] for key in ("tags",) if key in cell.metadata})
        if cell.cell_type == "code":
            cell.outputs = _joined(cell.outputs)
            text = nbformat.v4.writes(nbformat.v4.new_notebook(cells=[cell]))
            if place := next((each for each in (tempfile.gettempdir(), str(ROOT)) if f"{each}/" in text), None):
                raise ValueError(f"cell {number}: its output contains the path {place}")
    return notebook


def _joined(outputs: list) -> list:
    """Returns outputs in which each stream is one text, as the kernel may divide it anywhere.

    Raises:
        ValueError: if a stream is standard error and contains more than the log of TensorFlow.
    """
    joined: list = []
    for output in outputs:
        before = joined[-1] if joined else None
        if output.output_type == "stream" and output.name == "stderr":
            if lines := [line for line in output.text.splitlines() if not LOG.match(line)]:
                raise ValueError(f"a cell writes to standard error: {lines[0]}")
        elif before is not None and before.output_type == output.output_type == "stream":
            before.text += output.text
        else:
            joined.append(output)
    return joined


class NotebookError(Exception):
    """A notebook failed; the message names it and says why."""


def execute(path: Path) -> tuple[nbformat.NotebookNode, float, float]:
    """Executes a notebook in a new kernel and a temporary folder.

    Returns:
        The notebook, its duration and its processor time in seconds.

    Raises:
        NotebookError: if a cell fails or writes to standard error, or an output contains a path of this machine.
    """
    notebook = nbformat.read(path, as_version=4)
    begin, before = time.monotonic(), os.times()
    with tempfile.TemporaryDirectory() as folder:
        # Sockets in a folder need no network, and other users cannot connect to them.
        sockets = Config({"KernelManager": {"transport": "ipc", "ip": f"{folder}/socket"}})
        paths = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
        environment = {**os.environ, "TMPDIR": folder, "PATH": paths, "TF_CPP_MIN_LOG_LEVEL": "3"}
        client = NotebookClient(notebook, timeout=None, kernel_name="python3", record_timing=False, config=sockets)
        # The kernel repeats its outputs on standard error.
        try:
            client.execute(cwd=folder, env=environment, stderr=subprocess.DEVNULL)
            notebook = normalised(notebook)
        except (CellExecutionError, ValueError) as error:
            raise NotebookError(f"{path.name}: {error}") from None
    after = os.times()
    return notebook, time.monotonic() - begin, sum(after[2:4]) - sum(before[2:4])


def with_time(readme: str, name: str, seconds: float) -> str:
    """Returns the text of the README with the processor time of a notebook in the last cell of its row."""
    row = re.compile(rf"^(\| \[{re.escape(name)}\].*\| )[^|]*\|$", re.MULTILINE)
    text, count = row.subn(rf"\g<1>{seconds:.0f} |", readme)
    if count != 1:
        raise ValueError(f"{README}: must have one row for {name}")
    return text


def main() -> None:
    """Executes the notebooks that are named, or all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("notebooks", nargs="*", type=Path, help="default: all notebooks in examples/")
    parser.add_argument("--write", action="store_true", help="replace the outputs of the notebooks")
    arguments = parser.parse_args()
    target = EXAMPLES if arguments.write else ROOT / "runs" / "examples"
    target.mkdir(parents=True, exist_ok=True)
    paths = arguments.notebooks or sorted(EXAMPLES.glob("*.ipynb"))
    # Processes, not threads: `execute` reads the processor time of the children of its process.
    with ProcessPoolExecutor(processors.count()) as pool:
        try:
            for path, (notebook, seconds, processor) in zip(paths, pool.map(execute, paths), strict=True):
                print(f"{seconds:6.1f} s, {processor:6.1f} s of processor time  {path.name}", flush=True)
                if processor > LIMIT:
                    print(f"warning: {path.name} took more than {LIMIT} s of processor time", file=sys.stderr)
                nbformat.write(notebook, target / path.name)
                if arguments.write:
                    README.write_text(with_time(README.read_text(), path.name, processor))
        except NotebookError as error:
            pool.shutdown(cancel_futures=True)
            sys.exit(str(error))


if __name__ == "__main__":
    main()
