"""The whole life of a run directory: `train` makes one, `evaluate` reads one.

runs/<name>/
    config.yaml      the configuration with all defaults; `train` takes it again
    metrics.csv      a row per evaluation
    tensorboard/     scalars, histograms, images
    checkpoints/     last/ and best/, resumable
    model.keras      the final model
    status.json      running | finished | stopped | diverged | failed, and why
"""

from __future__ import annotations

import contextlib
import json
import platform
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from neural_alignment import config as configuration
from neural_alignment import data
from neural_alignment.config import Config
from neural_alignment.errors import Diverged, RunError
from neural_alignment.training import callbacks, setup
from neural_alignment.training.files import write_whole
from neural_alignment.training.metrics import MetricsFile
from neural_alignment.training.model import AlignedModel, aligned_layers

FILES = ("config.yaml", "metrics.csv", "tensorboard", "checkpoints", "model.keras", "status.json")
"""What a run directory holds; `force` removes these and nothing else."""


@contextlib.contextmanager
def _reported(path: str) -> Iterator[None]:
    """Turns what the file system refuses into a `RunError`."""
    try:
        yield
    except tf.errors.OpError as error:
        raise RunError(f"{path}: cannot be used as a run directory: {' '.join(error.message.split())[:200]}") from None


class RunDirectory:
    """The files of one run."""

    def __init__(self, path: str | Path):
        self.path = str(path)

    def file(self, name: str) -> str:
        """Returns the path of one of `FILES`."""
        return tf.io.gfile.join(self.path, name)

    def exists(self) -> bool:
        """Whether anything is there.

        Raises:
            RunError: if the path cannot be looked at.
        """
        with _reported(self.path):
            if not tf.io.gfile.exists(self.path):
                return False
            return not tf.io.gfile.isdir(self.path) or bool(tf.io.gfile.listdir(self.path))

    def status(self) -> dict[str, Any]:
        """Returns what `status.json` says.

        Raises:
            RunError: if this is not a run directory.
        """
        try:
            with tf.io.gfile.GFile(self.file("status.json"), "r") as file:
                status = json.loads(file.read())
        except (tf.errors.OpError, ValueError):
            status = None
        if not isinstance(status, dict) or "state" not in status:
            raise RunError(
                f"{self.path}: is not a run directory (no readable status.json); give one that `train` has made"
            )
        return status

    def write_status(self, state: str, **facts: Any) -> None:
        """Writes `status.json`."""
        versions = {"tensorflow": tf.__version__, "keras": keras.__version__, "python": platform.python_version()}
        self.write("status.json", json.dumps({"state": state, **facts, "versions": versions}, indent=2) + "\n")

    def write(self, name: str, text: str) -> None:
        """Writes one of `FILES`, and makes the directory where there is none.

        Raises:
            RunError: if that is not possible.
        """
        with _reported(self.path):
            tf.io.gfile.makedirs(self.path)
            write_whole(self.file(name), text)

    def save_model(self, model: keras.Model) -> None:
        """Saves the final model as a whole or not at all."""
        with tempfile.TemporaryDirectory() as folder:
            local = str(Path(folder) / "model.keras")
            model.save(local)
            partial = self.file("model.partial.keras")
            tf.io.gfile.copy(local, partial, overwrite=True)
            tf.io.gfile.rename(partial, self.file("model.keras"), overwrite=True)

    def config(self) -> Config:
        """Returns the run's configuration.

        Raises:
            ConfigError: if it is missing or damaged.
        """
        return configuration.load(self.file("config.yaml"))

    def clear(self) -> None:
        """Removes the run's files; others that lie there stay."""
        for name in FILES:
            path = self.file(name)
            if tf.io.gfile.isdir(path):
                tf.io.gfile.rmtree(path)
            elif tf.io.gfile.exists(path):
                tf.io.gfile.remove(path)


@dataclass(frozen=True)
class Result:
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
        """Layer -> angle between W and B^T, degrees."""
        return {layer: self.metrics[f"weight_angle/{layer}"] for layer in self.layers}


def train(
    config: Config,
    run_dir: str | Path,
    resume: bool = False,
    force: bool = False,
    progress: callbacks.Progress | None = None,
) -> Result:
    """Trains one run from its configuration.

    Args:
        config: what `neural_alignment.config.load` returned.
        run_dir: the directory to make.
        resume: go on from the last checkpoint, or start if there is none.
        force: replace what an earlier run has left there.
        progress: shows how far the run is.

    Returns:
        The result.

    Raises:
        RunError: if the directory is taken, or its checkpoint is of another configuration.
        ConfigError: if a rule's pattern fits no layer.
        DataError: if the data cannot be read.
        Diverged: if J or R is not finite; earlier rows and checkpoints stay.
    """
    directory = RunDirectory(run_dir)
    finished = _check_free(directory, config, resume, force)
    if finished is not None:
        return finished
    dataset = setup.load_data(config)
    model = setup.build_model(config, dataset.classes, dataset.input_shape, dataset.steps_per_epoch)
    setup.compile_model(model, config, dataset.classes, dataset.steps_per_epoch)
    if force and directory.exists():
        directory.clear()
    training = _Training(config, directory, dataset, model)
    start = training.restore()
    directory.write("config.yaml", configuration.dump(config))
    directory.write_status("running")
    try:
        return training.run(start, progress)
    except Diverged as error:
        directory.write_status("diverged", reason=str(error), step=error.step, layers=error.layers)
        raise
    except tf.errors.OpError as error:
        explained = dataset.explain(error)
        directory.write_status("failed", reason=str(explained or error).splitlines()[0])
        if explained is None:
            raise
        raise explained from None
    except KeyboardInterrupt:
        directory.write_status("stopped", reason="stopped by the user")
        raise
    except BaseException as error:
        directory.write_status("failed", reason=f"{type(error).__name__}: {error}")
        raise


def stored_state(directory: RunDirectory, config: Config) -> str | None:
    """Returns the state of the run that is there, or none where there is nothing.

    Raises:
        RunError: if it is of another configuration, or no run.
    """
    if not directory.exists():
        return None
    state = directory.status()["state"]
    _check_same(directory, config)
    return state


def _check_free(directory: RunDirectory, config: Config, resume: bool, force: bool) -> Result | None:
    """Checks that the directory may be used; returns the result of a run that is finished already."""
    if not directory.exists():
        return None
    status = directory.status()
    state = status["state"]
    if force:
        return None
    if not resume:
        advice = "--force replaces it" if state == "finished" else "--resume goes on, --force starts anew"
        raise RunError(f"{directory.path}: holds a run that is {state}; {advice}")
    _check_same(directory, config)
    if state != "finished":
        return None
    rows = MetricsFile(directory.file("metrics.csv")).rows()
    if not rows:
        raise RunError(f"{directory.path}: its metrics.csv is gone or empty; --force trains anew")
    metrics = rows[-1]
    layers = [key.partition("/")[2] for key in metrics if key.startswith("weight_angle/")]
    return Result(directory.path, metrics, layers)


def _check_same(directory: RunDirectory, config: Config) -> None:
    """Checks that a run's stored configuration is `config`."""
    stored = directory.config().model_dump(mode="json")
    for key, value in config.model_dump(mode="json").items():
        if stored[key] != value:
            raise RunError(
                f"{directory.path}: its checkpoint is of another configuration: {key} was {stored[key]!r}, is now "
                f"{value!r}; resume with its own config.yaml, or choose another --run-dir"
            )


class _Training:
    """One run while it lasts."""

    def __init__(self, config: Config, directory: RunDirectory, dataset: data.Dataset, model: AlignedModel):
        self.config = config
        self.directory = directory
        self.dataset = dataset
        self.model = model
        alternation = config.optimization.alternation or 0
        self.epoch_steps = dataset.steps_per_epoch * (alternation + 1)
        total = config.epochs * self.epoch_steps
        self.total_steps = min(total, config.max_steps or total)
        self.checkpoints = callbacks.Checkpoints(model, directory.file("checkpoints"))
        self.metrics = MetricsFile(directory.file("metrics.csv"))

    def restore(self) -> int:
        """Restores the last checkpoint, if there is one; returns the step to go on from.

        Raises:
            RunError: if the checkpoint or the metrics are damaged or one is there without the other.
        """
        start = self.checkpoints.restore_last()
        trained = [row for row in self.metrics.rows() if row["step"]]
        if bool(start) != bool(trained):
            missing = "checkpoints" if trained else "metrics.csv"
            raise RunError(f"{self.directory.path}: its {missing} are gone; --force trains anew")
        return start

    def run(self, start: int, progress: callbacks.Progress | None) -> Result:
        """Trains from step `start` to the end, or to a divergence."""
        self.metrics.keep_until(start)
        began = time.time()
        evaluation = callbacks.Evaluation(
            self.config, self.dataset, self.epoch_steps, self.metrics, self._listeners(progress)
        )
        fit_callbacks = [callbacks.StopOnDivergence(), evaluation]
        if progress is not None:
            progress.plan(start, self.total_steps)
            fit_callbacks.append(progress)
        try:
            if not self.metrics.rows():
                evaluation.set_model(self.model)
                evaluation.evaluate({})
            for first, epochs, steps in self._segments(start):
                batches = self.dataset.train(first)
                self.model.fit(
                    batches,
                    epochs=epochs,
                    steps_per_epoch=steps,
                    callbacks=fit_callbacks,
                    verbose=0,
                    shuffle=False,
                )
        finally:
            if progress is not None:
                progress.close()
        self.directory.save_model(self.model)
        return self._finish(round(time.time() - began, 1))

    def _listeners(self, progress: callbacks.Progress | None) -> list[callbacks.Listener]:
        """Returns what is told of every row of metrics."""
        listeners: list[callbacks.Listener] = [callbacks.SaveCheckpoints(self.checkpoints, self.metrics)]
        if self.config.logging.tensorboard:
            path = self.directory.file("tensorboard")
            listeners.append(callbacks.TensorBoard(self.model, path, self.config.logging))
        if progress is not None:
            listeners.append(progress)
        return listeners

    def _finish(self, seconds: float) -> Result:
        """Writes how the run ended."""
        rows = self.metrics.rows()
        best = max(rows, key=lambda row: row["top1"])
        facts = {"step": int(rows[-1]["step"]), "top1": rows[-1]["top1"], "best_top1": best["top1"]}
        self.directory.write_status("finished", **facts, best_step=int(best["step"]), seconds=seconds)
        return Result(self.directory.path, rows[-1], [layer.name for layer in aligned_layers(self.model)])

    def _segments(self, start: int) -> Iterator[tuple[int, int, int]]:
        """Cuts the steps from `start` on into calls of `fit`: (first step, epochs, steps per epoch).

        An epoch of `fit` ends where an evaluation is due; the last one may be shorter.
        """
        stride = self.config.evaluation.every_epochs * self.epoch_steps
        step = start
        if step % stride and step < self.total_steps:
            lead = min(stride - step % stride, self.total_steps - step)
            yield step, 1, lead
            step += lead
        if whole := (self.total_steps - step) // stride:
            yield step, whole, stride
            step += whole * stride
        if rest := self.total_steps - step:
            yield step, 1, rest


def evaluate(run_dir: str | Path) -> dict[str, float]:
    """Recomputes the final accuracy of a run from its saved model.

    Args:
        run_dir: a finished run.

    Returns:
        J, top1 and top5 on the whole validation split, every example counted once.

    Raises:
        RunError: if there is no saved model.
    """
    directory = RunDirectory(run_dir)
    if not tf.io.gfile.exists(directory.path):
        raise RunError(f"{directory.path}: no such run directory; give one that `train` has made")
    status = directory.status()
    path = directory.file("model.keras")
    if not tf.io.gfile.exists(path):
        raise RunError(f"{directory.path}: has no model.keras because the run is {status['state']}; finish it first")
    config = directory.config()
    dataset = setup.load_data(config)
    model = load_model(path)
    shapes = (model.input_shape[1:], model.output_shape[-1])
    if shapes != (tuple(dataset.input_shape), dataset.classes):
        raise RunError(
            f"{directory.path}: its model is for images of shape {shapes[0]} and {shapes[1]} classes; "
            f"the data are of shape {tuple(dataset.input_shape)} and {dataset.classes} classes"
        )
    try:
        results = model.evaluate(dataset.validation(), verbose=0, return_dict=True)
    except tf.errors.OpError as error:
        raise dataset.explain(error) or error from None
    return callbacks.named(results)


def load_model(path: str | Path) -> AlignedModel:
    """Loads a saved model in Keras' safe mode.

    Raises:
        RunError: if the file is damaged.
    """
    try:
        return keras.models.load_model(str(path), safe_mode=True)
    except Exception as error:
        raise RunError(f"{path}: cannot be loaded: {' '.join(str(error).split())[:200]}") from None
