"""Loads saved models."""

from __future__ import annotations

import contextlib
import json
import zipfile
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

# These imports register the classes of saved models with Keras.
import optimizers  # noqa: F401
from neural_alignment import losses, models, paths, plugins  # noqa: F401
from neural_alignment.errors import RunError
from neural_alignment.training import files
from neural_alignment.training.model import AlignedModel


def check_model_file(path: str | Path) -> None:
    """Checks that a path names a readable .keras file.

    Raises:
        RunError: if it is not.
    """
    if Path(path).suffix != ".keras":
        raise RunError(f"{path}: must be a .keras file, such as the model.keras of a run")
    if problem := paths.problem_of_any_file(str(path)):
        raise RunError(f"{path}: {problem}; give a .keras file, such as the model.keras of a run")


def load_model(path: str | Path) -> AlignedModel:
    """Loads a model saved by a run or by `model.save`, in the safe mode of Keras: no code in the file is executed.

    Args:
        path: a .keras file.

    Returns:
        The model, compiled as when it was saved.

    Raises:
        RunError: if the file is missing, damaged, or of another kind, or contains something that safe mode refuses.
    """
    check_model_file(path)
    try:
        with tf.io.gfile.GFile(str(path), "rb") as file:
            files.check_zip(file)
    except (ValueError, tf.errors.OpError) as error:
        raise RunError(f"{path}: cannot be loaded: it is damaged ({error}); restore it from a copy") from None
    try:
        return keras.models.load_model(str(path), safe_mode=True)
    except Exception as error:  # A wrong file can cause any error in Keras.
        if absent := plugins.absent(_modules(str(path))):
            options = " ".join(f"--import {name}" for name in absent)
            reason = f"it has classes of modules that are not imported; import them, or give {options}"
            raise RunError(f"{path}: cannot be loaded: {reason}") from None
        raise RunError(f"{path}: cannot be loaded: {' '.join(str(error).split())[:200]}") from None


def _modules(path: str) -> list[str]:
    """Returns the names of the modules in which the custom classes of a .keras file are defined."""
    names: dict[str, None] = {}

    def visit(node: Any) -> None:
        if isinstance(node, dict) and node.get("registered_name") and isinstance(node.get("module"), str):
            names[node["module"]] = None
        for inner in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
            visit(inner)

    with contextlib.suppress(Exception), tf.io.gfile.GFile(path, "rb") as file, zipfile.ZipFile(file) as archive:
        visit(json.loads(archive.read("config.json")))
    return list(names)


def check_finite(model: keras.Model, path: str) -> None:
    """Checks that the weights of a loaded model are finite.

    Args:
        model: the model.
        path: its file, for the message.

    Raises:
        RunError: if a weight is not finite; the message names the first such weight.
    """
    bad = [each.path for each in model.weights if not np.isfinite(keras.ops.convert_to_numpy(each)).all()]
    if bad:
        more = f" and {len(bad) - 1} more" if bad[1:] else ""
        raise RunError(
            f"{path}: the weights {bad[0]}{more} are not finite: the model has diverged, or the file was changed; "
            "restore it from a copy, or start over with --force"
        )
