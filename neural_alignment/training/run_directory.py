"""The files of a run directory, and whether they are complete.

runs/<name>/
    config.yaml      the configuration with all defaults; `train` accepts it
    metrics.csv      one row per evaluation
    kernels/         W and B of the layers that `logging.kernels` names, at every evaluation
    events.out.tfevents.*    scalars, histograms and images for TensorBoard
    checkpoints/     states to resume from: recent ones in last/, the best one in best/
    set_aside/       files of later steps, moved here when the run went back to an earlier step (`resume_from`)
    corrupt_records.json   damaged records of the data, if some were found and are tolerated
    model.keras      the final model
    summary.png      J, R, the metric, and angles and norm ratios of all layers over time
    status.json      running | finished | stopped | diverged | failed, the reason, plugins, the scale of the pixels
    lock.json        the process that is using the directory; present only during a run
    status.json.partial    disk space reserved for the final status; present only during a run

Checksums reveal damage. Checkpoints, .npz files and .keras files contain their own. `status.json` contains its own and,
once the run has ended, those of `metrics.csv` and `model.keras`. A checkpoint contains the checksum of `metrics.csv` at
its step. The checksum of `config.yaml` covers the values that affect the result: comments, and keys such as `runtime`,
may be edited. Committed runs of earlier versions have no such checksums and are read without them. `resume` recreates a
file that is missing or empty if that is possible. A damaged file is named in the error and is not changed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import math
import os
import platform
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from neural_alignment import config as configuration
from neural_alignment import files, paths, plugins
from neural_alignment.config import Config
from neural_alignment.errors import ConfigError, RunError, one_line
from neural_alignment.training import config_comparison, event_files, lock
from neural_alignment.training.checkpoints import CheckpointStore
from neural_alignment.training.metrics import MetricsFile

FILES = (
    *("config.yaml", "metrics.csv", "kernels", "checkpoints", "corrupt_records.json", "model.keras"),
    *("set_aside", "status.json", "summary.png"),
)
"""Names of the files in a run directory; `force` removes only these."""

STATES = ("running", "finished", "stopped", "diverged", "failed")
"""Allowed values of `state` in `status.json`."""

_HEADER = b"step,epoch,seconds,"
"""First bytes of every `metrics.csv`."""

_START_UP_FILES = {lock.NAME, lock.NAME + files.PARTIAL, "status.json" + files.PARTIAL}
"""Files left by a process that was killed before it wrote `status.json`."""

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def _reported(path: str) -> Iterator[None]:
    """Turns errors of the file system into a `RunError`."""
    try:
        yield
    except tf.errors.OpError as error:
        raise RunError(f"{path}: cannot be used as a run directory: {one_line(error)}") from None


@dataclasses.dataclass(frozen=True)
class RunResult:
    """How a run ended.

    Attributes:
        path: the run directory.
        metrics: the last row of `metrics.csv`.
        layers: names of the aligned layers.
    """

    path: str
    metrics: dict[str, float]
    layers: list[str]

    @property
    def weight_angles(self) -> dict[str, float]:
        """Layer -> angle between W and B^T in degrees."""
        return {layer: self.metrics[f"weight_angle/{layer}"] for layer in self.layers}


class NoRun(RunError):  # noqa: N818 - a fact about the directory
    """A directory contains no run, but other files."""


class RunDirectory:
    """The files of one run.

    Args:
        path: the directory, local or remote (gs://). It need not exist.
    """

    def __init__(self, path: str | Path):
        self.path = str(path)

    def file(self, name: str) -> str:
        """Returns the path of one of `FILES`."""
        return tf.io.gfile.join(self.path, name)

    def exists(self) -> bool:
        """Whether the directory contains more than the files of a process that was killed at start-up.

        Raises:
            RunError: if the path cannot be accessed.
        """
        with _reported(self.path):
            if not tf.io.gfile.exists(self.path):
                return False
            return not tf.io.gfile.isdir(self.path) or bool(self.content())

    def content(self) -> set[str]:
        """Returns the names in the directory, without the files of a process that was killed at start-up."""
        return {name.rstrip("/") for name in tf.io.gfile.listdir(self.path)} - _START_UP_FILES

    def check_exists(self, others: str = "") -> None:
        """Checks that there is a directory at the path.

        Args:
            others: what else than a run directory could be given, for the message.

        Raises:
            RunError: if there is nothing or a file, or the path cannot be accessed.
        """
        with _reported(self.path):
            exists = tf.io.gfile.exists(self.path)
            if not exists or not tf.io.gfile.isdir(self.path):
                problem = "is not a run directory but a file" if exists else "no such run directory"
                raise RunError(f"{self.path}: {problem}; give one that `train` has created{others}")

    def make(self) -> None:
        """Creates the directory if it does not exist.

        Raises:
            RunError: if this is not possible.
        """
        with _reported(self.path):
            tf.io.gfile.makedirs(self.path)

    def status(self) -> dict[str, Any]:
        """Returns the content of `status.json`.

        Raises:
            RunError: if it is missing or damaged, or this is not a run directory.
        """
        status = self.found_status()
        if status is None:
            path = self.file("status.json")
            remedy = "" if self.is_missing_or_empty("status.json") else "remove it, and "
            raise RunError(
                f"{path}: {self._status_problem()}; {remedy}{self.resuming()} creates it again from the last checkpoint"
            )
        return status

    def found_status(self) -> dict[str, Any] | None:
        """Returns the content of `status.json`, or None if the file is missing or damaged.

        Raises:
            NoRun: if no file shows that this is a run directory.
            RunError: if a file cannot be read or is not a regular file.
        """
        path = self.file("status.json")
        self._check_regular()
        try:
            with tf.io.gfile.GFile(path, "rb") as file:
                status = files.unsealed(json.loads(file.read()))
        except (tf.errors.NotFoundError, ValueError, RecursionError):
            status = None
        except tf.errors.OpError as error:
            if not tf.io.gfile.isdir(self.path):
                raise self._no_run() from None
            raise RunError(f"{path}: cannot be read: {one_line(error)}") from None
        if status is not None and status.get("state") in STATES and isinstance(status.get("files", {}), dict):
            return status
        if self._is_made_by_train():
            return None
        raise self._no_run()

    def _check_regular(self) -> None:
        """Checks that no file is a FIFO, a socket or a device, because reading it could block forever.

        Raises:
            RunError: if there is one.
        """
        if not files.is_local(self.path):
            return
        candidates = [self.file(name) for name in FILES]
        states = [os.path.join(self.file("checkpoints"), name) for name in CheckpointStore.NAMES]
        for folder in (self.file("kernels"), *states):
            if os.path.isdir(folder):
                candidates += [os.path.join(folder, name) for name in os.listdir(folder)]
        for path in candidates:
            if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
                raise RunError(f"{path}: is not a regular file but a FIFO, a socket or a device; remove it")

    def _is_made_by_train(self) -> bool:
        """Whether `config.yaml` and `metrics.csv` show that this is a run directory and not another folder."""
        try:
            self.config()
            with tf.io.gfile.GFile(self.file("metrics.csv"), "rb") as file:
                return file.read(len(_HEADER)) == _HEADER
        except (ConfigError, tf.errors.OpError):
            return False

    def _no_run(self) -> NoRun:
        return NoRun(
            f"{self.path}: is not a run directory (no readable status.json); give one that `train` has created"
        )

    def resuming(self, config: str = "the run's configuration") -> str:
        """Returns what resumes the run, for messages.

        Args:
            config: the configuration to give; the stored one may be missing.
        """
        return f"`train` with {config}, --run-dir {self.path} and --resume"

    def not_shared(self) -> str:
        """Returns the message for workers that find different runs at the path."""
        return (
            f"{self.path}: the workers do not see the same run; give all workers the same --run-dir, on a file system "
            "that they share, and the same --resume"
        )

    def _status_problem(self) -> str:
        return "is missing or empty" if self.is_missing_or_empty("status.json") else "is damaged"

    def is_missing_or_empty(self, name: str) -> bool:
        """Whether one of `FILES` is missing or empty, so that nothing is lost if it is created again."""
        path = self.file(name)
        return not tf.io.gfile.exists(path) or not tf.io.gfile.stat(path).length

    def check_resumable(self) -> None:
        """Checks that the run can be resumed although `status.json` is missing or damaged.

        Raises:
            RunError: if the file is damaged, because a damaged file is never overwritten.
        """
        path = self.file("status.json")
        if not self.is_missing_or_empty("status.json"):
            raise RunError(
                f"{path}: is damaged; remove it, and --resume continues from the last checkpoint; --force starts over"
            )
        _log.warning("%s: %s; the run continues from its last checkpoint", path, self._status_problem())

    def write_status(self, state: str, checksums: Mapping[str, str | None] | None = None, **facts: Any) -> None:
        """Writes `status.json`.

        Args:
            state: one of `STATES`.
            checksums: name of another file -> its checksum, or None to leave it out.
            **facts: other entries.
        """
        versions = {"tensorflow": tf.__version__, "keras": keras.__version__, "python": platform.python_version()}
        known = {name: checksum for name, checksum in (checksums or {}).items() if checksum is not None}
        used = {"imports": plugins.imported(), "installed_plugins": plugins.installed(), "files": known}
        status = {"state": state, **facts, "versions": versions, **{key: value for key, value in used.items() if value}}
        self.write("status.json", json.dumps(files.sealed(status), indent=2) + "\n")

    @staticmethod
    def pixel_scale(status: dict[str, Any]) -> tuple[np.ndarray, np.ndarray] | None:
        """Returns center and scale of the pixels of a finished run, or None for another run.

        Args:
            status: content of `status.json`.
        """
        stored = status.get("pixels")
        return stored and tuple(np.asarray(stored[name], np.float32) for name in ("center", "scale"))

    def checksums(self, config: Config) -> dict[str, str | None]:
        """Returns name -> checksum of the files of a run that ends, or None for a missing file."""
        own = {name: files.digest_of(self.file(name)) for name in ("metrics.csv", "model.keras")}
        return {"config.yaml": config_comparison.digest(config), **own}

    def write(self, name: str, text: str) -> None:
        """Writes one of `FILES`.

        Raises:
            tf.errors.OpError: if the file system refuses.
        """
        files.write_whole(self.file(name), text)

    def save_model(self, model: keras.Model) -> None:
        """Saves the final model atomically."""
        partial = self.file("model.partial.keras")
        try:
            if files.is_local(partial):
                model.save(partial)
                files.sync(partial)
            else:
                with tempfile.TemporaryDirectory() as folder:
                    local = str(Path(folder) / "model.keras")
                    model.save(local)
                    tf.io.gfile.copy(local, partial, overwrite=True)
            files.move(partial, self.file("model.keras"))
        except BaseException:
            files.remove(partial)
            raise

    def config(self) -> Config:
        """Returns the configuration of the run.

        Raises:
            ConfigError: if it is missing or damaged.
            RunError: if a plugin of the run is missing.
        """
        with self.plugins_checked():
            return configuration.load(self.file("config.yaml"))

    @contextlib.contextmanager
    def plugins_checked(self) -> Iterator[None]:
        """Within the context, an error in the configuration of the run names installed plugins that are missing.

        A run lists all installed plugins, also those that it does not use, so only an error shows that one is needed.

        Raises:
            RunError: if a plugin of the run is missing; the message names it.
        """
        self.check_plugins()
        try:
            yield
        except ConfigError as error:
            packages = self._plugins("installed_plugins", dict)
            if absent := plugins.absent(packages):
                names = ", ".join(f"{name} of the package {packages[name]}" for name in absent)
                reason = f"the run was trained with plugins that are not installed: {names}; without them {error}"
                raise RunError(f"{self.path}: {reason}") from None
            raise

    def check_plugins(self) -> None:
        """Checks that the plugins that the user named for the training are imported. It imports none.

        Raises:
            RunError: if one is not; the message names it.
        """
        if absent := plugins.absent(self._plugins("imports", list)):
            options = " ".join(f"--import {name}" for name in absent)
            raise RunError(f"{self.path}: the run needs modules that are not imported; give {options}")

    def _plugins(self, key: str, kind: type) -> Any:
        """Returns the names of plugins in `status.json`, a list or a dictionary; none if they are damaged."""
        try:
            with tf.io.gfile.GFile(self.file("status.json"), "rb") as file:
                found = json.loads(file.read()).get(key)
        except (tf.errors.OpError, ValueError, AttributeError, RecursionError):
            return kind()  # Those who read the status report the problem.
        return found if isinstance(found, kind) and all(isinstance(name, str) for name in found) else kind()

    def checked_config(self, status: dict[str, Any]) -> Config:
        """Returns the configuration of the run after a check that it has not changed since the training.

        Args:
            status: content of `status.json`.

        Raises:
            RunError: if it is missing, damaged or changed; the message names a remedy.
        """
        path, known = self.file("config.yaml"), status.get("files", {}).get("config.yaml")
        if known is None:
            return self.config()
        again = f"{self.resuming()} writes it again"
        if self.is_missing_or_empty("config.yaml"):
            raise RunError(f"{path}: is missing or empty; {again}")
        if problem := paths.problem_of_file(path):
            raise RunError(f"{path}: {problem}")
        try:
            config = self.config()
            if config_comparison.file_fits(known, path):
                return config
            problem = "a value differs from the one that the run was trained with"
        except ConfigError as error:
            problem = str(error).removeprefix(f"{path}: ")
        raise RunError(f"{path}: is damaged or was edited: {problem}; restore it from a copy, or remove it: {again}")

    def rows(self, status: dict[str, Any]) -> list[dict[str, float]]:
        """Returns the rows of `metrics.csv` of a run that has ended, after a check that they have not changed since.

        Args:
            status: content of `status.json`.

        Raises:
            RunError: if the file is missing or damaged; the message names a remedy.
        """
        metrics = MetricsFile(self.file("metrics.csv"))
        known, finished = status.get("files", {}).get("metrics.csv"), status["state"] == "finished"
        if known is not None and not tf.io.gfile.exists(metrics.path):
            raise RunError(f"{metrics.path}: is missing; restore it from a copy, or start over with --force")
        rows = metrics.rows()
        if known is not None and known != metrics.digest():
            raise metrics.damaged("it was changed after the run ended")
        if finished and rows:
            for name in ("step", "top1", "J"):
                if name in status and name in rows[-1] and _cell_differs(status[name], rows[-1][name]):
                    problem = f"its last row has {name} {rows[-1][name]:g}, but status.json has {status[name]}"
                    raise metrics.damaged(problem)
        return rows

    def model_problem(self, status: dict[str, Any]) -> str | None:
        """Returns the problem of the final model of a finished run, or None if no problem is known."""
        known = status.get("files", {}).get("model.keras")
        if known is None:
            return None
        if self.is_missing_or_empty("model.keras"):
            return "is missing or empty"
        return None if files.digest_of(self.file("model.keras")) == known else "is damaged"

    def model_path(self, status: dict[str, Any]) -> str:
        """Returns the path of the final model after a check of its checksum in `status.json`.

        Args:
            status: content of `status.json`.

        Raises:
            RunError: if the model is missing or damaged; the message names a remedy.
        """
        self.check_plugins()
        path = self.file("model.keras")
        if status["state"] != "finished" and not tf.io.gfile.exists(path):
            raise RunError(f"{self.path}: has no model.keras because the run is {status['state']}; finish it first")
        problem = "is missing or empty" if self.is_missing_or_empty("model.keras") else self.model_problem(status)
        if problem is not None:
            raise RunError(f"{path}: {problem}; {self.model_remedy()}")
        return path

    def model_remedy(self) -> str:
        """Returns the remedy for a missing or damaged final model, for messages."""
        missing = self.is_missing_or_empty("model.keras")
        if not self.has_last_state():
            if missing:  # As in the committed results.
                return f"to make one, train the run again: `train {self.file('config.yaml')} --run-dir DIRECTORY`"
            return "restore it from a copy, or start over with --force"
        remedy = "" if missing else "remove it, and "
        return f"{remedy}{self.resuming()} saves it again from the last checkpoint"

    def has_last_state(self) -> bool:
        """Whether there is a last checkpoint."""
        return bool(tf.io.gfile.glob(tf.io.gfile.join(self.file("checkpoints"), "last", "ckpt-*.index")))

    def check_path(self) -> None:
        """Checks that TensorFlow can read checkpoints in the directory.

        Raises:
            RunError: if its path contains an asterisk, a question mark, a bracket or a backslash.
        """
        if found := next((letter for letter in self.path if letter in "*?[\\"), None):
            raise RunError(
                f"{self.path}: the path of a run must not contain {found}, because TensorFlow reads the path of a "
                "checkpoint as a pattern; rename the directory, or give another one"
            )

    def has_begun(self) -> bool:
        """Whether there are other files than `status.json`, which is written first."""
        return any(tf.io.gfile.exists(self.file(name)) for name in FILES if name != "status.json")

    def clear(self) -> None:
        """Removes the files of the run, `status.json` last. Other files, and the targets of links, stay."""
        for name in (*event_files.names_in(self.path), *FILES):
            files.remove(self.file(name))
        self.remove_partial_files()
        files.remove(self.file("status.json" + files.PARTIAL))

    def remove_partial_files(self) -> None:
        """Removes incomplete files of a killed process, except the space reserved for the final status."""
        partial = {name + files.PARTIAL for name in FILES if name != "status.json"} | {"model.partial.keras"}
        for name in partial:
            files.remove(self.file(name))


def _cell_differs(value: Any, cell: float) -> bool:
    """Whether a value of `status.json` differs from a value of `metrics.csv`, which has seven digits."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return True
    return not (math.isclose(value, cell, rel_tol=1e-6) or (math.isnan(value) and math.isnan(cell)))


def check_different_seeds(runs: Iterable[tuple[str, int]]) -> None:
    """Checks that no seed counts twice in statistics over seeds.

    Args:
        runs: run directory and seed of each run.

    Raises:
        RunError: if two runs have the same seed.
    """
    found: dict[int, str] = {}
    for path, seed in runs:
        if seed in found:
            raise RunError(f"{path}: has the same seed as {found[seed]}, {seed}; keep one run of each seed")
        found[seed] = path
