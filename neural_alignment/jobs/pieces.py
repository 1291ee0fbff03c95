"""Pieces: computations that a figure needs besides trained runs. Each result is stored in a file.

A piece is a module-level function with the configurations that it starts from and further arguments. A job computes it
and stores the resulting arrays in NAME.npz below the folder of runs, together with a description of the function and
its arguments. An existing result is not computed again; if its description differs, reading it is an error. An
interrupted piece starts from scratch, so a piece should take minutes: for example, one seed of one condition.
"""

from __future__ import annotations

import importlib
import io
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import numpy as np
import tensorflow as tf

from neural_alignment import config as configuration
from neural_alignment import files
from neural_alignment.errors import RunError, one_line
from neural_alignment.jobs.job import Computation, log_file
from neural_alignment.jobs.plans import Run, decisive
from neural_alignment.training.config_comparison import plain_difference

Arrays = dict[str, np.ndarray]
Tell = Callable[[float], None]
"""A function that is called with the completed fraction of a computation, 0 to 1."""

ORIGIN = "computed_from"
"""Name of the array with the description of the function and its arguments, as JSON."""

PROGRESS_INTERVAL = 2.0
"""Minimum number of seconds between two updates of the progress file of a piece."""


@dataclass(frozen=True)
class Piece:
    """One computation whose result is stored.

    Attributes:
        name: path of its file below the folder of runs, without extension.
        compute: a module-level function, `compute(tell, *configs, **arguments)`, that returns arrays by name; `tell` is
            a `Tell`.
        starts: runs whose configurations the function gets; their names are not used.
        arguments: further arguments, JSON data.
    """

    name: str
    compute: Callable[..., Arrays]
    starts: tuple[Run, ...] = ()
    arguments: Mapping[str, Any] = field(default_factory=dict)
    kind: ClassVar[tuple[str, str]] = ("pieces", "compute")

    def is_waiting(self, folder: str, configs: str) -> bool:  # noqa: D102 (as in plans.Work)
        return self.read(folder, configs) is None

    def job(self, folder: str, configs: str) -> Computation:  # noqa: D102 (as in plans.Work)
        plain = {
            "name": self.name,
            "compute": f"{self.compute.__module__}:{self.compute.__qualname__}",
            "starts": [{"config": run.config, "name": run.name, "overrides": run.overrides} for run in self.starts],
            "arguments": self.arguments,
        }
        arguments = {"piece": plain, "folder": folder, "configs": configs}
        place, log = self._progress_file(folder), log_file(folder, self.name)
        return Computation(self.name, f"{__name__}:compute", arguments, place, log)

    def read(self, folder: str, configs: str) -> Result | None:
        """Returns the stored result, or None if there is none.

        Args:
            folder: folder of runs and pieces.
            configs: folder of the configurations.

        Raises:
            RunError: if the file is damaged, or contains the result of another function or other arguments.
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
        """Computes the piece in this process and writes its file; arguments as for `read`.

        Raises:
            InputError: if a configuration or the data are wrong.
            tf.errors.OpError: if the file cannot be written.
        """
        path, loaded, written = self._path(folder), self._load(configs), [0.0]
        tf.io.gfile.makedirs(path.rpartition("/")[0])

        def tell(part: float) -> None:
            if part == 0 or time.monotonic() - written[0] >= PROGRESS_INTERVAL:
                written[0] = time.monotonic()
                files.write_whole(self._progress_file(folder), f"{part:.4f}")

        tell(0.0)
        arrays = self.compute(tell, *loaded, **self.arguments)
        content = io.BytesIO()
        np.savez_compressed(content, **arrays, **{ORIGIN: np.array(json.dumps(self._origin(loaded)))})
        files.write_whole(path, content.getvalue())
        files.remove(self._progress_file(folder))

    def _load(self, configs: str) -> list[configuration.Config]:
        return [run.load(configs) for run in self.starts]

    def _origin(self, loaded: Sequence[configuration.Config]) -> dict[str, Any]:
        """Returns the description of the function and its arguments, as plain data."""
        facts = {
            "compute": _identity(f"{self.compute.__module__}.{self.compute.__qualname__}"),
            "configs": {str(number): decisive(config) for number, config in enumerate(loaded)},
            "arguments": dict(self.arguments),
        }
        return json.loads(json.dumps(facts))

    def _path(self, folder: str) -> str:
        return f"{files.confined(folder, self.name)}.npz"

    def _progress_file(self, folder: str) -> str:
        return f"{files.confined(folder, self.name)}.progress"


class Result(NamedTuple):
    """The result of a piece.

    Attributes:
        configs: the configurations that it started from.
        arrays: arrays by name.
    """

    configs: list[configuration.Config]
    arrays: Arrays

    @property
    def seed(self) -> int:
        """The seed of the first configuration; 0 if there is none."""
        return self.configs[0].seed if self.configs else 0


@dataclass(frozen=True)
class Pieces:
    """Pieces that belong together in a figure, such as the seeds of one condition; the counterpart of `plans.Cell`.

    Attributes:
        labels: label columns of these pieces in the data of figures, such as the condition.
        pieces: the pieces.
    """

    labels: Mapping[str, Any]
    pieces: tuple[Piece, ...]

    def runs(self) -> list[Piece]:
        """Returns the pieces; has the same name as `Cell.runs`, so that a plan can contain both."""
        return list(self.pieces)

    def read(self, folder: str, configs: str) -> list[Result]:
        """Returns the existing results in the order of the pieces; arguments and errors as for `Piece.read`."""
        found = (piece.read(folder, configs) for piece in self.pieces)
        return [result for result in found if result is not None]


def _identity(name: str) -> str:
    """Returns the dotted name of a function; for a function of a paper, without the module inside the paper's folder.

    Stored results therefore stay valid if such a function moves within the folder of its paper.
    """
    parts = name.split(".")
    return ".".join([*parts[:3], parts[-1]]) if name.startswith("neural_alignment.papers.") else name


def _located(origin: dict[str, Any]) -> dict[str, Any]:
    """Returns a stored description whose function is named as by `_identity`; older results have the full name."""
    return {**origin, "compute": _identity(origin["compute"])} if "compute" in origin else origin


def compute(piece: Mapping[str, Any], folder: str, configs: str) -> None:
    """Computes a piece in this process and stores its result; called by the job of the piece.

    Args:
        piece: fields of the piece as JSON data, with `compute` as `package.module:function`.
        folder: folder of runs and pieces.
        configs: folder of the configurations.
    """
    module, _, name = piece["compute"].partition(":")
    starts = tuple(Run(start["config"], start["name"], tuple(start["overrides"])) for start in piece["starts"])
    function = getattr(importlib.import_module(module), name)
    Piece(piece["name"], function, starts, piece["arguments"]).compute_and_keep(folder, configs)


def _read(path: str) -> tuple[Arrays, Any]:
    """Returns the arrays of a file, and the description of the function and its arguments."""
    try:
        arrays = files.read_arrays(path)
        return arrays, json.loads(str(arrays.pop(ORIGIN)))
    except (ValueError, KeyError) as error:
        reason = one_line(error, 150)
        raise RunError(f"{path}: is damaged: {reason}; remove it, and it is computed again") from None
