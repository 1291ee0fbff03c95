"""Goes back to an earlier state of a run: `train --resume-from STEP`.

Files of later steps are moved to `set_aside/after-STEP/` in the run directory. If the process is killed during the
move, the next `--resume` finishes it, because `status.json` contains the step until the run trains again.
"""

from __future__ import annotations

import logging
import re

import tensorflow as tf

from neural_alignment import files
from neural_alignment.config import Config
from neural_alignment.errors import RunError
from neural_alignment.training import config_comparison, event_files
from neural_alignment.training.checkpoints import check_state, kept_steps, named_steps, write_named
from neural_alignment.training.metrics import MetricsFile
from neural_alignment.training.run_directory import RunDirectory

_log = logging.getLogger(__name__)


def target(directory: RunDirectory, step: int | None) -> int | None:
    """Returns the step to go back to, or None if the run continues from its last state.

    Args:
        directory: the run.
        step: the requested step. Default: the step of an earlier call that was killed, if there was one.

    Raises:
        RunError: if the state of the step is not saved, or is damaged.
    """
    begun = (directory.found_status() or {}).get("going_back")
    if step is None:
        step = begun["step"] if begun else None
    if step is None:
        return None
    kept = _kept(directory)
    if step not in kept:
        steps = ", ".join(map(str, sorted(kept))) or "none"
        raise RunError(
            f"{directory.path}: the state of step {step} is not saved; steps of saved states: {steps}; "
            "checkpoints.keep sets their number"
        )
    check_state(kept[step])
    MetricsFile(directory.file("metrics.csv")).rows()
    last = named_steps(_folder(directory, "last"))
    return None if begun is None and last and step == last[-1] else step


def _folder(directory: RunDirectory, name: str) -> str:
    return tf.io.gfile.join(directory.file("checkpoints"), name)


def _kept(directory: RunDirectory) -> dict[int, str]:
    """Returns step -> path of each saved state. The recent states take precedence over the best one."""
    folders = [_folder(directory, name) for name in ("best", "last")]
    return {step: tf.io.gfile.join(folder, f"ckpt-{step}") for folder in folders for step in kept_steps(folder)}


def go_back(directory: RunDirectory, config: Config, step: int) -> None:
    """Makes the state of a step the last state of a run. This process must hold the run directory.

    Args:
        directory: the run.
        config: its configuration.
        step: the step, as returned by `target`.
    """
    begun = (directory.found_status() or {}).get("going_back")
    name = begun["folder"] if begun and begun["step"] == step else _new_folder(directory, step)
    directory.write_status(
        "stopped",
        {"config.yaml": config_comparison.digest(config)},
        reason=f"going back to step {step}; continue with --resume",
        step=step,
        going_back={"step": step, "folder": name},
    )
    aside = tf.io.gfile.join(directory.file("set_aside"), name)
    cut(directory, step, aside)
    _log.warning("%s: goes back to step %d; files of later steps are moved to %s", directory.path, step, aside)


def _new_folder(directory: RunDirectory, step: int) -> str:
    """Returns the name of a folder below `set_aside` that does not exist yet."""
    name, number = f"after-{step}", 1
    while tf.io.gfile.exists(tf.io.gfile.join(directory.file("set_aside"), name)):
        number += 1
        name = f"after-{step}-{number}"
    return name


def cut(directory: RunDirectory, step: int, aside: str) -> None:
    """Moves the files of later steps to a folder. If this is interrupted, it can be called again.

    Args:
        directory: the run.
        step: the step of the new last state.
        aside: path of the folder.
    """
    tf.io.gfile.makedirs(aside)
    metrics, copy = MetricsFile(directory.file("metrics.csv")), tf.io.gfile.join(aside, "metrics.csv")
    if tf.io.gfile.exists(metrics.path) and not tf.io.gfile.exists(copy):
        with tf.io.gfile.GFile(metrics.path, "rb") as file:
            files.write_whole(copy, file.read())
    _move(directory.file("model.keras"), tf.io.gfile.join(aside, "model.keras"))
    prefix, (last, best) = _kept(directory)[step], (_folder(directory, name) for name in ("last", "best"))
    target = tf.io.gfile.join(aside, "best")
    if tf.io.gfile.isdir(target) or max(kept_steps(best), default=0) > step:
        tf.io.gfile.makedirs(target)
        for name in tf.io.gfile.listdir(best) if tf.io.gfile.isdir(best) else []:
            _move(tf.io.gfile.join(best, name), tf.io.gfile.join(target, name))
    if not prefix.startswith(f"{last}/"):
        tf.io.gfile.makedirs(last)
        for path in sorted(tf.io.gfile.glob(f"{prefix}.*")):
            files.copy(path, tf.io.gfile.join(last, path.rpartition("/")[2]))
    steps = [each for each in kept_steps(last) if each < step]
    write_named(tf.io.gfile.join(last, "checkpoint"), [*steps, step])
    _move_later(last, r"ckpt-(\d+)\..*", step, tf.io.gfile.join(aside, "last"))
    metrics.cut(step)
    _move_later(directory.file("kernels"), r"(\d+)\.npz", step, tf.io.gfile.join(aside, "kernels"))
    event_files.cut(directory.path, step, aside)


def _move(source: str, target: str) -> None:
    """Moves a file, if it exists. After a kill it is at one of the two paths.

    Files are moved one by one, because not every remote file system can move a folder.
    """
    if tf.io.gfile.exists(source):
        files.move(source, target)


def _move_later(folder: str, pattern: str, step: int, target: str) -> None:
    """Moves the files of later steps."""
    for name in tf.io.gfile.listdir(folder) if tf.io.gfile.isdir(folder) else []:
        if (match := re.fullmatch(pattern, name)) and int(match[1]) > step:
            tf.io.gfile.makedirs(target)
            _move(tf.io.gfile.join(folder, name), tf.io.gfile.join(target, name))
