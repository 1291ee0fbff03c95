"""Tables and figures by name: what they show, how they are made, and from which runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from neural_alignment.errors import InputError, nearest
from neural_alignment.jobs.estimates import Estimates
from neural_alignment.papers.pieces import Pieces, Result
from neural_alignment.papers.plans import Cell, Outcome, count_all, unique
from neural_alignment.reporting import Artifact


@dataclass(frozen=True)
class Source:
    """What a table or figure is made from.

    Attributes:
        profile: `"paper"`, the runs of the paper's size, or `"lab"`.
        folder: of the run directories.
        configs: folder of the configurations.
        output: folder of what is made.
        cells: the runs and pieces that are asked for.
        recordings: file of recorded responses, of what needs them.
        images: file of the images that they answer.
        say: told how far what takes long is.
    """

    profile: str
    folder: str
    configs: str
    output: str
    cells: Sequence[Cell | Pieces] = ()
    recordings: str | None = None
    images: str | None = None
    say: Callable[[str], None] = lambda line: None

    def read(self) -> list[tuple[Cell | Pieces, list[Outcome] | list[Result]]]:
        """Returns every cell with the runs of it that have ended, or the pieces of it that are computed.

        Raises:
            RunError: if a run directory or a piece is damaged or of another kind.
        """
        return [(cell, cell.read(self.folder, self.configs)) for cell in self.cells]


@dataclass(frozen=True)
class Item:
    """One table or figure.

    Attributes:
        kind: `"table"` or `"figure"`.
        name: as on the command line, such as `two_routes/3`.
        title: one line.
        make: makes it; returns nothing where it has written the files itself.
        cells: profile -> the runs and pieces it is made from; nothing of what needs none. What has the profile `lab`
            alone is always made from it.
        needs: an option that it cannot do without.
        check: raises `InputError` where what it needs is wrong; called before anything is trained.
    """

    kind: str
    name: str
    title: str
    make: Callable[[Source], Artifact | None]
    cells: Mapping[str, Sequence[Cell | Pieces]] = field(default_factory=dict)
    needs: str = ""
    check: Callable[[Source], None] = lambda source: None

    def profile(self, lab: bool) -> str:
        """Returns which profile it is made from.

        Args:
            lab: whether that of 2 cores is asked for.
        """
        return "lab" if lab or set(self.cells) == {"lab"} else "paper"

    @property
    def paper(self) -> str:
        """The paper's part of the name."""
        return self.name.partition("/")[0]

    @property
    def file(self) -> str:
        """Name of its files, without their ending."""
        return f"{self.kind}_{self.name.partition('/')[2]}"


def find(items: Sequence[Item], kind: str, name: str) -> Item:
    """Returns the table or figure of a name.

    Raises:
        InputError: if there is none; the message names what there is.
    """
    there = {item.name: item for item in items if item.kind == kind}
    if name not in there:
        raise InputError(f"{name}: no such {kind}; there are: {', '.join(there)}{nearest(name, there)}")
    return there[name]


def overview(items: Sequence[Item], kind: str, estimates: Callable[[str], Estimates], slots: int) -> list[list[str]]:
    """Returns a row per table or figure: name, title, and what it takes.

    Args:
        items: all there are.
        kind: `"table"` or `"figure"`.
        estimates: paper -> how long its runs take.
        slots: jobs at a time.
    """
    return [[item.name, item.title, _takes(item, estimates, slots)] for item in items if item.kind == kind]


def _takes(item: Item, estimates: Callable[[str], Estimates], slots: int) -> str:
    parts = [f"needs {item.needs}"] if item.needs else []
    if "lab" in item.cells:
        runs = unique(item.cells["lab"])
        option = "" if item.profile(lab=False) == "lab" else "--lab: "
        time = estimates(item.paper).describe([run.name for run in runs], slots)
        parts.append(f"{option}{count_all(runs)}, {time}")
    return ", ".join(parts) or "no runs"
