"""Tables and figures by name: their titles, their functions, and the runs they are made from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from neural_alignment.errors import InputError, nearest
from neural_alignment.jobs.pieces import Pieces, Result
from neural_alignment.jobs.plans import Cell, Outcome
from neural_alignment.reporting import Artifact

Profiles = dict[str, list]
"""Profile, `"paper"` or `"lab"` -> the runs or pieces of a table or figure."""


@dataclass(frozen=True)
class Source:
    """The input of a table or figure.

    Attributes:
        profile: `"paper"` for runs of the paper's size, or `"lab"`.
        folder: folder of the run directories.
        configs: folder of the configurations.
        output: folder of tables and figures.
        cells: the runs and pieces that it is made from.
        recordings: file of recorded responses, for Figure 6 of two_routes.
        images: file of the images shown in the recordings.
        say: called with a line of text on the progress of long computations.
    """

    profile: str
    folder: str
    configs: str
    output: str
    cells: Sequence[Cell | Pieces] = ()
    recordings: str | None = None
    images: str | None = None
    say: Callable[[str], None] = lambda line: None
    _outcomes: dict[tuple, list[Outcome]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def read(self, kind: type = object, **labels: Any) -> list[tuple[Any, list]]:
        """Returns the cells of a kind that have some labels, each with its finished runs or computed pieces.

        Raises:
            RunError: if a run directory or a piece is damaged, or belongs to another configuration.
        """
        cells = (cell for cell in self.cells if isinstance(cell, kind) and labels.items() <= cell.labels.items())
        return [(cell, cell.read(self.folder, self.configs)) for cell in cells]

    def outcomes(self) -> list[tuple[Cell, list[Outcome]]]:
        """Returns the runs of each cell that have ended, which are read only once; errors as of `read`."""
        cells = [cell for cell in self.cells if isinstance(cell, Cell)]
        for cell in cells:
            if (cell.name, cell.seeds) not in self._outcomes:
                self._outcomes[cell.name, cell.seeds] = cell.read(self.folder, self.configs)
        return [(cell, self._outcomes[cell.name, cell.seeds]) for cell in cells]

    def results(self, **labels: Any) -> list[tuple[Mapping[str, Any], list[Result]]]:
        """Returns the labels and results of each set of pieces with some labels; errors as of `read`."""
        return [(pieces.labels, results) for pieces, results in self.read(Pieces, **labels)]

    def chosen(self, **labels: Any) -> list[Result]:
        """Returns the results of all pieces with some labels; errors as of `read`."""
        return [result for _, results in self.results(**labels) for result in results]


@dataclass(frozen=True)
class Item:
    """One table or figure.

    Attributes:
        kind: `"table"` or `"figure"`.
        name: as on the command line, such as `two_routes/3`.
        title: one line.
        make: makes it; returns `None` if it has written the files itself.
        cells: profile -> the runs and pieces it is made from; empty if it needs none. An item that has only the
            profile `lab` is always made from it.
        needs: a required option of the command line.
        check: raises `InputError` if required input is missing or wrong; called before training.
        reads_configs: whether it reads configurations, also without runs.
        written_as: name of its files without their extension. Default: kind and number, such as `table_3`.
        pages: pages of the guide that contain the table, or parts of it (`pages.py`).
        apart: whether the command `lab` leaves it out because it takes hours; it has a command to itself.
    """

    kind: str
    name: str
    title: str
    make: Callable[[Source], Artifact | None]
    cells: Mapping[str, Sequence[Cell | Pieces]] = field(default_factory=dict)
    needs: str = ""
    check: Callable[[Source], None] = lambda source: None
    reads_configs: bool = False
    written_as: str = ""
    pages: tuple[str, ...] = ()
    apart: bool = False

    def profile(self, lab: bool) -> str:
        """Returns the profile it is made from; `lab` is whether the user asked for the size for 2 cores."""
        return "lab" if lab or set(self.cells) == {"lab"} else "paper"

    @property
    def paper(self) -> str:
        """Name of the paper."""
        return self.name.partition("/")[0]

    @property
    def file(self) -> str:
        """Name of its files without their extension."""
        return self.written_as or f"{self.kind}_{self.name.partition('/')[2]}"


def find(items: Sequence[Item], kind: str, name: str) -> Item:
    """Returns the table or figure with a name.

    Raises:
        InputError: if there is none; the message lists all names.
    """
    there = {item.name: item for item in items if item.kind == kind}
    if name not in there:
        raise InputError(f"{name}: no such {kind}; there are: {', '.join(there)}{nearest(name, there)}")
    return there[name]
