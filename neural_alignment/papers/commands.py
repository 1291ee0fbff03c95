"""The commands `table`, `figure` and `lab`: find the items, train the runs that are missing, write the files."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from neural_alignment import paths, shipped
from neural_alignment.errors import InputError, nearest
from neural_alignment.jobs.batch import Execution
from neural_alignment.jobs.estimates import Estimates
from neural_alignment.jobs.plans import SECONDS, Work, carry_out, count_all, count_left, unique, waiting
from neural_alignment.papers import cifar10, fa_mechanism, pages, two_routes, wide_networks
from neural_alignment.papers.registry import Item, Source
from neural_alignment.reporting import check_writable, markdown, write

ITEMS = [*two_routes.ITEMS, *fa_mechanism.ITEMS, *wide_networks.ITEMS, *cifar10.ITEMS]
"""Every table and figure of every paper."""


@dataclasses.dataclass(frozen=True)
class Folders:
    """Folders that the user gave; None stands for the default of the paper.

    Attributes:
        runs: folder of the run directories. Default: runs/PAPER, and runs/lab/PAPER for the lab profile.
        output: folder of the files that are made. Default: results/PAPER for the lab profile and for items that need no
            runs, otherwise RUNS/results.
        configs: folder of the configurations. Default: they are found by name.
    """

    runs: str | None = None
    output: str | None = None
    configs: str = ""

    def check(self, item: Item) -> None:
        """Checks that the folders of runs and configurations have an effect.

        Raises:
            InputError: if the item is made without runs or configurations and their folder is given, or if the folder
                of the configurations does not exist.
        """
        runs = bool(item.cells or item.needs)
        configs = bool(item.cells) or item.reads_configs
        for option, kind, given, used in (
            ("--runs", "runs", self.runs, runs),
            ("--configs", "configurations", self.configs, configs),
        ):
            if given and not used:
                reason = f"has no effect on {item.kind} {item.name}, which is made without {kind}"
                raise InputError(f"{option} {reason}; leave it out")
        if self.configs and paths.is_local(self.configs) and not os.path.isdir(self.configs):
            raise InputError(f"--configs: must be a directory with configurations; found {self.configs}, which is none")

    def source(self, item: Item, profile: str, **options: Any) -> Source:
        """Returns the source of a table or figure; **options are `recordings`, `images` and `say` of `Source`.

        Raises:
            InputError: if the profile is `"lab"` and the item has none, or it is not made from recordings.
        """
        for option in ("recordings", "images"):
            if options.get(option) is not None and not item.needs.startswith("--recordings"):
                reason = f"has no effect on {item.kind} {item.name}, which is not made from recordings"
                raise InputError(f"--{option} {reason}; leave it out")
        lab = profile == "lab"
        if lab and "lab" not in item.cells:
            instead = f", and give {item.needs}" if item.needs else ""
            raise InputError(f"{item.kind} {item.name}: has no lab profile; leave out --lab{instead}")
        runs = self.runs or (f"runs/lab/{item.paper}" if lab else f"runs/{item.paper}")
        output = self.output or (_results(item.paper) if lab or not item.cells else f"{runs}/results")
        return Source(profile, runs, self.configs, output, item.cells.get(profile, ()), **options)


def _results(paper: str) -> str:
    """Returns the folder of the committed results of a paper."""
    return f"results/{paper}"


def estimates_of(paper: str, output: str | None = None) -> Estimates:
    """Returns the durations of the runs of a paper's lab profile.

    Args:
        paper: the paper.
        output: folder of the results that has the user's own durations, which take precedence over those that come with
            the package. Default: `results/PAPER`.
    """
    return Estimates(f"{output or _results(paper)}/{SECONDS}", str(shipped.results() / paper / SECONDS))


def listing(kind: str, slots: int) -> str:
    """Returns a table of all tables, or of all figures, with the time that each takes, `slots` jobs at a time."""
    rows = [(item.name, item.title, _cost(item, slots)) for item in ITEMS if item.kind == kind]
    return markdown([kind, "shows", "takes"], rows)


def _cost(item: Item, slots: int) -> str:
    """Returns the option that an item requires, and the size and duration of its lab profile."""
    parts = [f"needs {item.needs}"] if item.needs else []
    if "lab" in item.cells:
        runs = unique(item.cells["lab"])
        option = "" if item.profile(lab=False) == "lab" else "--lab: "
        time = estimates_of(item.paper).describe([run.name for run in runs], slots)
        parts.append(f"{option}{count_all(runs)}, {time}")
    return ", ".join(parts) or "no runs"


def make(item: Item, source: Source, execution: Execution) -> str:
    """Makes one table or figure, in the lab profile after training the missing runs.

    Returns:
        Its text, the names of the written files, and the commands that train the runs that it lacks.

    Raises:
        InputError: as of `make_all`, or if none of the runs has ended; nothing is written then.
        Stopped: as of `make_all`.
    """
    item.check(source)
    missing = [] if source.profile == "lab" else training_commands(source)
    if missing and not any(found for _, found in source.outcomes()):
        _refuse(item, source, missing)
    check_writable(source.output)
    if source.profile == "lab":
        _train([item], source, execution)
    text = _write(item, source, source.folder if item.cells or item.needs else None)
    return (
        "\n".join([text, f"Not yet run: {len(missing)}. Commands that train them:\n", *_some(missing)])
        if missing
        else text
    )


def training_commands(source: Source) -> list[str]:
    """Returns a command for each run that has not ended; of a cell without seeds, for its first seed if it has no run.

    Raises:
        RunError: if a run directory is damaged or belongs to another configuration.
    """
    found = [(cell, {outcome.config.seed for outcome in outcomes}) for cell, outcomes in source.outcomes()]
    return [
        cell.command(source.folder, source.configs, seed)
        for cell, seeds in found
        for seed in (cell.seeds or (() if seeds else (0,)))
        if seed not in seeds
    ]


_MOST_COMMANDS = 40
"""Maximum number of commands that are listed."""


def _some(missing: Sequence[str]) -> list[str]:
    """Returns indented lines with the first commands, and the number of the others."""
    others = len(missing) - _MOST_COMMANDS
    lines = [f"    {command}" for command in missing[:_MOST_COMMANDS]]
    return [*lines, f"    ... and {others} more"] if others > 0 else lines


def _refuse(item: Item, source: Source, missing: Sequence[str]) -> None:
    """Shows the commands that train the runs of an item that has none, and raises an `InputError`."""
    source.say("\n".join(["Commands that train its runs:\n", *_some(missing), ""]))
    name = f"{item.kind} {item.name}"
    reason = f"none of its {len(missing)} runs has ended below {source.folder}; train one with `{missing[0]}`"
    lab = f", or all of its lab profile for 2 cores with `neural-alignment {name} --lab`" if "lab" in item.cells else ""
    raise InputError(f"{name}: {reason}{lab}")


def make_all(paper: str, folders: Folders, execution: Execution) -> None:
    """Trains the whole lab profile of a paper, and makes all its tables and figures.

    Raises:
        InputError: if there is no such paper, or a run or configuration is wrong.
        Stopped: at SIGTERM, SIGINT or SIGHUP.
    """
    items = [item for item in ITEMS if item.paper == paper]
    if not items:
        papers = sorted({item.paper for item in ITEMS})
        raise InputError(f"{paper}: no such paper; there are: {', '.join(papers)}{nearest(paper, papers)}")
    sources = [(item, folders.source(item, "lab" if "lab" in item.cells else "paper")) for item in items]
    problems = [_problem(item, source) for item, source in sources]
    ready = [pair for pair, problem in zip(sources, problems, strict=True) if not problem]
    trained, [source, *_] = zip(*(pair for pair in ready if "lab" in pair[0].cells), strict=True)
    check_writable(source.output)
    _train(trained, source, execution)
    trained_runs = source.folder
    for item, source in ready:
        # Items without runs are made from the files of the others.
        page_runs = source.folder if item.cells or item.needs else trained_runs
        execution.screen.line(_write(item, source, page_runs))
    for item, problem in zip(items, problems, strict=True):
        if problem:
            execution.screen.line(f"{item.kind} {item.name}: not made here, {problem}")


def _problem(item: Item, source: Source) -> str:
    """Returns why the command `lab` does not make an item; empty if it does."""
    if item.apart:
        return f"takes hours: neural-alignment {item.kind} {item.name}"
    if item.needs:
        return f"needs {item.needs}"
    try:
        item.check(source)
    except InputError as error:
        return str(error)
    return ""


def _train(items: Sequence[Item], source: Source, execution: Execution) -> None:
    """Reports how long each item takes, and all together, and then trains their runs."""
    estimates, slots = estimates_of(items[0].paper, source.output), execution.engine.slots

    def report(title: str, works: Sequence[Work]) -> None:
        left = waiting(works, source.folder, source.configs)
        time = estimates.describe([work.name for work in left], slots)
        execution.screen.line(f"{title}: {count_left(left, works)}, {time}")

    for item in items:
        report(f"{item.kind} {item.name}", unique(item.cells["lab"]))
    works = unique(cell for item in items for cell in item.cells["lab"])
    if len(items) > 1:
        report("all, shared runs counted once", works)
    carry_out(works, source.folder, source.configs, dataclasses.replace(execution, estimates=estimates))


def _committed(item: Item, source: Source, runs: str | None) -> bool:
    """Returns whether the files of an item are the committed ones, whose tables are in pages of the guide.

    Args:
        item: the item.
        source: its source.
        runs: folder of the runs behind it, which are committed in the folder of the results; None without runs.
    """
    if item.cells and source.profile != "lab":
        return False
    results = Path(_results(item.paper)).resolve()
    return Path(source.output).resolve() == results and (not runs or Path(runs).resolve().is_relative_to(results))


def _write(item: Item, source: Source, runs: str | None) -> str:
    """Makes the files of one item, and its tables in pages of the guide if they are the committed ones.

    Args:
        item: the item.
        source: its source.
        runs: as of `_committed`.

    Returns:
        Its text and the names of all files.
    """
    artifact = item.make(source)
    title = f"{item.kind} {item.name}: {item.title}"
    if artifact is None:
        return f"{title}\n\nwritten to {source.output}"
    names = write(artifact, f"{source.output}/{item.file}")
    if _committed(item, source, runs):
        found = [Path(page) for page in item.pages if Path(page).exists()]
        for page in found:
            pages.fill(page, item.name, artifact.text)
        names += map(str, found)
    return f"{title}\n\n{artifact.text}\n\nwritten: {', '.join(names)}\n"
