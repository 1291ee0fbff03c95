"""Loads saved models."""

from __future__ import annotations

import contextlib
import json
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

# These imports register the classes of saved models with Keras.
import optimizers  # noqa: F401
from neural_alignment import files, losses, models, paths, plugins  # noqa: F401
from neural_alignment.errors import ConfigError, RunError, WrongValue, one_line
from neural_alignment.serialization import PACKAGE
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
        raise RunError(f"{path}: cannot be loaded: {one_line(error)}") from None


def _modules(path: str) -> list[str]:
    """Returns the names of the modules in which the custom classes of a .keras file are defined."""
    names: dict[str, None] = {}
    with contextlib.suppress(Exception), tf.io.gfile.GFile(path, "rb") as file, zipfile.ZipFile(file) as archive:
        for node in _nodes(json.loads(archive.read("config.json"))):
            if node.get("registered_name") and isinstance(node.get("module"), str):
                names[node["module"]] = None
    return list(names)


def _nodes(config: Any) -> Iterator[dict[str, Any]]:
    """Yields the mappings in a configuration of Keras, which describe objects, their arguments and so on."""
    if isinstance(config, dict):
        yield config
    for inner in config.values() if isinstance(config, dict) else config if isinstance(config, list | tuple) else ():
        yield from _nodes(inner)


_REGISTERED = (
    "whose classes and functions are registered with `neural_alignment.serialization.serializable`, because the "
    "trained model could not be loaded otherwise"
)


def check_task(kind: str, loss: Any, metrics: Sequence[Any]) -> None:
    """Checks that a trained model with this loss and these metrics can be loaded again.

    Those of this package are left out: they can be loaded, and the codes of many classes are large.

    Args:
        kind: the name of the loss in the configuration, for the message.
        loss: a Keras loss, or a function.
        metrics: Keras metrics.

    Raises:
        ConfigError: if it cannot, because a class or function is not registered, or its configuration is incomplete.
    """
    for each in (loss, *metrics):
        if _is_ours(each):
            continue
        try:
            keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(each))
        except Exception as error:  # The constructor of a user's class can raise any error.
            name = getattr(each, "__name__", type(each).__name__)
            reason = one_line(error, 100)
            requirement = (
                f"must be a loss with metrics {_REGISTERED}, and whose `get_config` returns all arguments of "
                f"the constructor; {name} cannot be loaded ({reason})"
            )
            raise ConfigError(WrongValue("loss.kind", requirement, kind)) from error


def check_network(options: Any, model: keras.Model) -> None:
    """Checks that Keras finds the classes and functions in a model of a user when it loads the model.

    Args:
        options: the options of the model. Those of this package are not checked.
        model: the model.

    Raises:
        ConfigError: if a class or function is not registered, or a layer has no configuration.
    """
    if _is_ours(options):
        return
    try:
        config = model.get_config()
    except Exception as error:  # A user's layer without the method, for example.
        reason = one_line(error)
        requirement = f"must be a model {_REGISTERED}, and whose layers have a `get_config`; Keras says: {reason}"
        raise ConfigError(WrongValue("model.name", requirement, options.name)) from error
    if unknown := _unknown(config):
        requirement = f"must be a model {_REGISTERED}; {', '.join(unknown)} cannot be loaded"
        raise ConfigError(WrongValue("model.name", requirement, options.name))


def _is_ours(instance: Any) -> bool:
    return type(instance).__module__.partition(".")[0] == PACKAGE


def _unknown(config: dict[str, Any]) -> list[str]:
    """Returns the names of the classes and functions in a configuration that Keras would not find."""
    names: dict[str, None] = {}
    known = keras.saving.get_custom_objects()
    for node in _nodes(config):
        kind, registered = node.get("class_name"), node.get("registered_name")
        if kind in ("function", "__lambda__"):
            try:
                keras.saving.deserialize_keras_object(node)
            except (TypeError, ValueError):
                names[node["config"] if kind == "function" else "a lambda"] = None
        elif kind and registered not in (None, *known) and not str(node.get("module")).startswith("keras."):
            names[kind] = None
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
