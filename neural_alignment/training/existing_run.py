"""Checks of a directory that already contains a run: whether the run can be resumed, and whether it is finished."""

from __future__ import annotations

import logging
from typing import Any

import tensorflow as tf

from neural_alignment.config import Config
from neural_alignment.errors import RunError
from neural_alignment.training import config_comparison
from neural_alignment.training.checkpoints import kept_steps
from neural_alignment.training.metrics import by_layer
from neural_alignment.training.run_directory import NoRun, RunDirectory, RunResult

_log = logging.getLogger(__name__)


def stored_state(directory: RunDirectory, config: Config) -> str | None:
    """Returns the state of the run in a directory, such as "finished", or None if the directory contains no files.

    Args:
        directory: the directory.
        config: the configuration that the run must have.

    Raises:
        RunError: if the run is damaged or of another configuration, or the files are not those of a run.
    """
    if not directory.exists():
        return None
    status = _found_status(directory)
    if status is None:
        directory.check_resumable()
    _check_same_configuration(directory, config, status)
    return status["state"] if status is not None else "failed"


def check_usable(directory: RunDirectory, config: Config, resume: bool, force: bool) -> RunResult | None:
    """Checks that a run may use a directory. Returns the result of the run if it is already finished, otherwise None.

    Args:
        directory: the directory.
        config: the configuration of the run.
        resume: whether an existing run is to be continued.
        force: whether an existing run is to be replaced.

    Raises:
        RunError: if the directory contains a run and neither `resume` nor `force` is true, or the run is damaged or of
            another configuration, or the files are not those of a run.
    """
    if not directory.exists():
        return None
    status = _found_status(directory)
    if force:
        return None
    if not resume:
        state = status["state"] if status is not None else "damaged (status.json)"
        advice = "--force replaces it" if state == "finished" else "--resume continues it, --force starts over"
        raise RunError(f"{directory.path}: holds a run that is {state}; {advice}")
    if status is None:
        directory.check_resumable()
    _check_same_configuration(directory, config, status)
    if status is None or status["state"] != "finished":
        return None
    return _finished_result(directory, status)


def _found_status(directory: RunDirectory) -> dict[str, Any] | None:
    """Returns the content of `status.json` of a directory for a run, or None if the file is missing or damaged.

    Raises:
        RunError: if the directory contains other files than those of a run, or one cannot be read.
    """
    try:
        return directory.found_status()
    except NoRun:
        if not tf.io.gfile.isdir(directory.path):
            raise RunError(f"{directory.path}: is a file, not a directory; choose another path") from None
        raise RunError(
            f"{directory.path}: contains other files, such as {min(directory.content())}, and no run with a readable "
            "status.json; choose another directory"
        ) from None


def _finished_result(directory: RunDirectory, status: dict[str, Any]) -> RunResult | None:
    """Returns the result of a finished run, or None if its final model must be saved again."""
    rows = directory.rows(status)
    if not rows:
        raise RunError(f"{directory.path}: its metrics.csv is missing or empty; --force starts over")
    if not is_finished(directory):
        _log.warning("%s: is missing or empty; it is saved again", directory.file("model.keras"))
        return None
    if problem := directory.model_problem(status):
        _log.warning("%s: %s; %s", directory.file("model.keras"), problem, directory.model_remedy())
    return RunResult(directory.path, rows[-1], list(by_layer(rows[-1])))


def _check_same_configuration(directory: RunDirectory, config: Config, status: dict[str, Any] | None) -> None:
    """Checks that the stored configuration of a run is `config`.

    Args:
        directory: the run.
        config: the configuration to continue with.
        status: content of `status.json`, or None if the file is missing.

    Raises:
        RunError: if the configurations differ, or the stored one is damaged.
    """
    if not directory.has_begun():
        return
    known = status.get("files", {}).get("config.yaml") if status is not None else None
    if directory.is_missing_or_empty("config.yaml") and known == config_comparison.digest(config):
        _log.warning("%s: is missing or empty; it is written again", directory.file("config.yaml"))
        return
    stored = directory.checked_config(status or {})
    difference = config_comparison.first_difference(stored, config)
    if difference:
        advice = f"{directory.resuming(directory.file('config.yaml'))} continues it"
        if status is not None and status["state"] == "finished":
            advice = (
                "the run is finished, and a new run in another directory continues it with "
                f"init_from={{path: {directory.path}, optimizer: true}}"
            )
        raise RunError(
            f"{directory.path}: its checkpoint is of another configuration: {difference}; {advice}; otherwise move the "
            "directory away, or choose another one"
        )
    if moved := config_comparison.moved_data(stored, config):
        _log.warning("%s: is a run with data at another path, which must be the same data: %s", directory.path, moved)


def has_own_state(directory: RunDirectory) -> bool:
    """Whether the directory contains a state of the run, so that the run continues from it and ignores `init_from`."""
    last = tf.io.gfile.join(directory.file("checkpoints"), "last")
    return bool(kept_steps(last)) or tf.io.gfile.exists(directory.file("metrics.csv"))


def is_finished(directory: RunDirectory) -> bool:
    """Whether the run is finished. False if its final model is missing and can be saved again.

    Raises:
        RunError: if the files in the directory are not those of a run.
    """
    status = _found_status(directory)
    if status is None or status["state"] != "finished":
        return False
    lost = "model.keras" in status.get("files", {}) and directory.is_missing_or_empty("model.keras")
    return not (lost and directory.has_last_state())
