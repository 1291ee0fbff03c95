"""Computed pieces: what a figure needs beside trained runs, computed once, kept in a file, and read.

A piece is a function of a module, the configurations it starts from and its other arguments. It is done in a process of
its own as a run is, waits in the same queue (`plans.py`), and is kept as arrays in NAME.npz below the folder of runs,
together with what it was computed from: what is there is not computed again, the result of something else is refused.
A piece that is interrupted starts anew, so it should take minutes, not hours: one seed of one condition.
"""

from __future__ import annotations

import contextlib
import io
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import numpy as np
import tensorflow as tf

from neural_alignment import config as configuration
from neural_alignment.errors import RunError
from neural_alignment.papers.plans import Run, decisive
from neural_alignment.search.records import Ending
from neural_alignment.search.trial import Children, ended
from neural_alignment.training import files
from neural_alignment.training.config_comparison import plain_difference

Arrays = dict[str, np.ndarray]
Tell = Callable[[float], None]
"""Is told which part of a computation is behind it, 0 to 1."""

ORIGIN = "computed_from"
"""Name of the array that says in JSON what a file was computed from."""

BEAT = 2.0
"""Seconds between two notes of how far a piece is."""


@dataclass(frozen=True)
class Piece:
    """One computation whose result is kept.

    Attributes:
        name: of its file below the folder of runs, without its ending.
        compute: `compute(tell, *configs, **arguments)` -> arrays by name; a function of a module, found by its name.
        starts: the configurations that it starts from, as runs of a plan have them; their names are not read.
        arguments: plain data.
    """

    name: str
    compute: Callable[..., Arrays]
    starts: tuple[Run, ...] = ()
    arguments: Mapping[str, Any] = field(default_factory=dict)
    kind: ClassVar[tuple[str, str]] = ("pieces", "compute")

    def is_waiting(self, folder: str, configs: str) -> bool:  # noqa: D102 (as in plans.Work)
        return self.read(folder, configs) is None

    def make(self, folder: str, configs: str, children: Children, threads: int) -> Ending:  # noqa: D102 (as in Work)
        return children.call(_make, (self, folder, configs), threads)

    def progress(self, folder: str, configs: str) -> float:  # noqa: D102 (as in Work)
        del configs
        with contextlib.suppress(tf.errors.OpError, ValueError), tf.io.gfile.GFile(self._note(folder), "r") as file:
            return float(file.read())
        return 0.0

    def result(self, folder: str, ending: Ending) -> str:  # noqa: D102 (as in Work)
        del folder
        return ending.state

    def read(self, folder: str, configs: str) -> Result | None:
        """Returns what is kept of it, or none where nothing is.

        Args:
            folder: of runs and pieces.
            configs: folder of the configurations.

        Raises:
            RunError: if the file is damaged, or the result of another computation.
            ConfigError: if a configuration is wrong.
        """
        path = self._path(folder)
        if not tf.io.gfile.exists(path):
            return None
        loaded = self._load(configs)
        arrays, origin = _read(path)
        difference = plain_difference(_located(origin), self._origin(loaded))
        if difference:
            raise RunError(
                f"{path}: is the result of another computation: {difference}; remove it, or choose another --runs"
            )
        return Result(loaded, arrays)

    def compute_and_keep(self, folder: str, configs: str) -> None:
        """Computes it in this process, and writes its file.

        Raises:
            InputError: if a configuration or the data are wrong.
            tf.errors.OpError: if the file cannot be written.
        """
        path, loaded, noted = self._path(folder), self._load(configs), [0.0]
        tf.io.gfile.makedirs(path.rpartition("/")[0])

        def tell(part: float) -> None:
            if part == 0 or time.monotonic() - noted[0] >= BEAT:
                noted[0] = time.monotonic()
                files.write_whole(self._note(folder), f"{part:.4f}")

        tell(0.0)
        arrays = self.compute(tell, *loaded, **self.arguments)
        content = io.BytesIO()
        np.savez_compressed(content, **arrays, **{ORIGIN: np.array(json.dumps(self._origin(loaded)))})
        files.write_whole(path, content.getvalue())
        files.remove(self._note(folder))

    def _load(self, configs: str) -> list[configuration.Config]:
        return [run.load(configs) for run in self.starts]

    def _origin(self, loaded: Sequence[configuration.Config]) -> dict[str, Any]:
        """Returns what it is computed from, as plain data."""
        facts = {
            "compute": _identity(f"{self.compute.__module__}.{self.compute.__qualname__}"),
            "configs": {str(number): decisive(config) for number, config in enumerate(loaded)},
            "arguments": dict(self.arguments),
        }
        return json.loads(json.dumps(facts))

    def _path(self, folder: str) -> str:
        return f"{files.confined(folder, self.name)}.npz"

    def _note(self, folder: str) -> str:
        return f"{files.confined(folder, self.name)}.progress"


class Result(NamedTuple):
    """What a piece came to.

    Attributes:
        configs: the configurations it started from.
        arrays: by name.
    """

    configs: list[configuration.Config]
    arrays: Arrays

    @property
    def seed(self) -> int:
        """That of the first configuration; 0 where there is none."""
        return self.configs[0].seed if self.configs else 0


@dataclass(frozen=True)
class Pieces:
    """Pieces that a figure takes together, such as the seeds of one condition: what a `Cell` is for runs.

    Attributes:
        labels: what they are called in figures.
        pieces: the pieces.
    """

    labels: Mapping[str, Any]
    pieces: tuple[Piece, ...]

    def runs(self) -> list[Piece]:
        """Returns the pieces, as a plan takes them."""
        return list(self.pieces)

    def read(self, folder: str, configs: str) -> list[Result]:
        """Returns the results that there are, in the order of the pieces; arguments and errors as of `Piece.read`."""
        found = (piece.read(folder, configs) for piece in self.pieces)
        return [result for result in found if result is not None]


def _identity(name: str) -> str:
    """Returns the dotted name of a function without its module inside the folder of its paper.

    A function of a paper may move within that folder: its stored results stay valid.
    """
    parts = name.split(".")
    return ".".join([*parts[:3], parts[-1]]) if name.startswith("neural_alignment.papers.") else name


def _located(origin: dict[str, Any]) -> dict[str, Any]:
    """Returns a stored origin with the name of its function as `_identity` gives it, also of earlier versions."""
    return {**origin, "compute": _identity(origin["compute"])} if "compute" in origin else origin


def _make(piece: Piece, folder: str, configs: str) -> Ending:
    """What the process of a piece does."""

    def work() -> Ending:
        piece.compute_and_keep(folder, configs)
        return Ending("finished")

    return ended(work)


def _read(path: str) -> tuple[Arrays, Any]:
    """Returns the arrays of a file, and what they were computed from."""
    try:
        arrays = files.read_arrays(path)
        return arrays, json.loads(str(arrays.pop(ORIGIN)))
    except (ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:150]
        raise RunError(f"{path}: is damaged: {reason}; remove it, and it is computed again") from None
