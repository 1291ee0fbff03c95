"""What the commands `table`, `figure` and `lab` do: find what is asked for, train what it lacks, write its files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from neural_alignment.errors import InputError, nearest
from neural_alignment.papers import fa_mechanism, two_routes, wide_networks
from neural_alignment.papers.plans import SECONDS, Estimates, Screen, carry_out, counted, unique, waiting
from neural_alignment.papers.registry import Item, Source, find, overview
from neural_alignment.reporting import check_writable, markdown, write

ITEMS = [*two_routes.ITEMS, *fa_mechanism.ITEMS, *wide_networks.ITEMS]
"""Every table and figure of every paper."""


@dataclass(frozen=True)
class Places:
    """Where things are; what is none is the default of the paper.

    Attributes:
        runs: folder of the run directories: runs/PAPER, and runs/lab/PAPER of the lab.
        output: folder of what is made: results/PAPER of the lab and of what needs no runs, else RUNS/results.
        configs: folder of the configurations.
    """

    runs: str | None = None
    output: str | None = None
    configs: str = "configs"

    def source(self, item: Item, profile: str, **options: Any) -> Source:
        """Returns what a table or figure is made from.

        Args:
            item: the table or figure.
            profile: `"paper"` or `"lab"`.
            **options: `recordings`, `images` and `say` of `Source`.

        Raises:
            InputError: if it has no lab profile and one is asked for.
        """
        lab = profile == "lab"
        if lab and "lab" not in item.cells:
            needs = item.needs or "no training"
            raise InputError(f"{item.kind} {item.name}: needs {needs} and has no lab profile; leave out --lab")
        runs = self.runs or (f"runs/lab/{item.paper}" if lab else f"runs/{item.paper}")
        output = self.output or (f"results/{item.paper}" if lab or not item.cells else f"{runs}/results")
        return Source(profile, runs, self.configs, output, item.cells.get(profile, ()), **options)


def estimates_of(paper: str, output: str | None = None) -> Estimates:
    """Returns how long the runs of a paper's lab profile take: as committed, and as measured in `output`."""
    committed = f"results/{paper}/{SECONDS}"
    return Estimates(f"{output}/{SECONDS}" if output else committed, committed)


def listing(kind: str, jobs: int) -> str:
    """Returns a table of all tables, or of all figures, and what each takes."""
    return markdown([kind, "shows", "takes"], overview(ITEMS, kind, estimates_of, jobs))


def make(
    kind: str, name: str, lab: bool, places: Places, jobs: int, screen: Screen, recordings=None, images=None
) -> str:
    """Makes one table or figure; in the lab profile it trains first what is not trained yet.

    Args:
        kind: `"table"` or `"figure"`.
        name: such as `two_routes/3`.
        lab: whether to train the profile for 2 cores, where the paper's size is another; else the runs that there are
            are read.
        places: where things are.
        jobs: processes at once.
        screen: told how far it is.
        recordings: file of recorded responses, for Figure 6.
        images: file of the images that they answer.

    Returns:
        Its text, and the names of the files written.

    Raises:
        InputError: if there is no such table or figure, or a run or configuration is wrong.
        Stopped: at SIGTERM or SIGINT.
    """
    item = find(ITEMS, kind, name)
    for option, value in (("--recordings", recordings), ("--images", images)):
        if value is not None and not item.needs.startswith("--recordings"):
            raise InputError(
                f"{option} has no effect on {kind} {name}, which is not made from recordings; leave it out"
            )
    profile = item.profile(lab)
    source = places.source(item, profile, recordings=recordings, images=images, say=screen.line)
    item.check(source)
    check_writable(source.output)
    if profile == "lab":
        _train([item], source, jobs, screen)
    return _write(item, source)


def make_all(paper: str, places: Places, jobs: int, screen: Screen) -> None:
    """Trains the whole lab profile of a paper, and makes all its tables and figures.

    Raises:
        InputError: if there is no such paper, or a run or configuration is wrong.
        Stopped: at SIGTERM or SIGINT.
    """
    items = [item for item in ITEMS if item.paper == paper]
    if not items:
        papers = sorted({item.paper for item in ITEMS})
        raise InputError(f"{paper}: no such paper; there are: {', '.join(papers)}{nearest(paper, papers)}")
    sources = [(item, places.source(item, "lab" if "lab" in item.cells else "paper")) for item in items]
    lacks = [_lack(item, source) for item, source in sources]
    ready = [pair for pair, lack in zip(sources, lacks, strict=True) if not lack]
    trained, [source, *_] = zip(*(pair for pair in ready if "lab" in pair[0].cells), strict=True)
    check_writable(source.output)
    _train(trained, source, jobs, screen)
    for item, source in ready:
        screen.line(_write(item, source))
    for item, lack in zip(items, lacks, strict=True):
        if lack:
            screen.line(f"{item.kind} {item.name}: not made here, {lack}")


def _lack(item: Item, source: Source) -> str:
    """Returns for a reader what is not there that an item cannot be made without; nothing where nothing lacks."""
    if item.needs:
        return f"needs {item.needs}"
    try:
        item.check(source)
    except InputError as error:
        return str(error)
    return ""


def _train(items: Sequence[Item], source: Source, jobs: int, screen: Screen) -> None:
    """Says how long each item takes, alone and together, then trains."""
    estimates = estimates_of(items[0].paper, source.output)
    for item in items:
        runs = unique(item.cells["lab"])
        left = waiting(runs, source.folder, source.configs)
        time = estimates.describe([run.name for run in left], jobs)
        screen.line(f"{item.kind} {item.name}: {counted(left, runs)}, {time}")
    runs = unique(cell for item in items for cell in item.cells["lab"])
    if len(items) > 1:
        left = waiting(runs, source.folder, source.configs)
        time = estimates.describe([run.name for run in left], jobs)
        screen.line(f"all, runs that they share once: {counted(left, runs)}, {time}")
    carry_out(runs, source.folder, source.configs, jobs, estimates, screen)


def _write(item: Item, source: Source) -> str:
    """Makes the files of one item."""
    product = item.make(source)
    title = f"{item.kind} {item.name}: {item.title}"
    if product is None:
        return f"{title}\n\nwritten to {source.output}"
    names = write(product, f"{source.output}/{item.file}")
    return f"{title}\n\n{product.text}\n\nwritten: {', '.join(names)}\n"
