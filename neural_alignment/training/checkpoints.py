"""The states of a run on disk: what it takes to go on as if nothing had happened."""

from __future__ import annotations

import json
import os
import re
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from neural_alignment.errors import RunError
from neural_alignment.training import files
from neural_alignment.training.model import AlignedModel


class TrainingMeans(tf.train.experimental.PythonState):
    """The running means of J, R and the metrics since the last evaluation, kept with a checkpoint.

    Keras resets them where an evaluation begins, and leaves them out of its checkpoints.

    Args:
        model: a compiled model; its metrics are built here.
    """

    def __init__(self, model: AlignedModel):
        super().__init__()
        self._model = model
        self._kept: dict[str, Any] = {}
        if not model._compile_metrics.built:
            # Keras builds them while it traces the first step, which is too late to put values back.
            with model.distribute_strategy.scope():
                labels = keras.KerasTensor((None,), dtype="int32")
                model._compile_metrics.build(labels, keras.KerasTensor(model.output_shape))

    def keep(self) -> None:
        """Notes the present values."""
        self._kept = {path: v.numpy().tolist() for path, v in self._variables()}

    def put_back(self) -> None:
        """Gives the metrics the values noted last; `tolist` and JSON keep every bit of a float."""
        for path, variable in self._variables():
            variable.assign(np.asarray(self._kept[path], variable.dtype))

    def serialize(self) -> str:
        """Returns the noted values, for a checkpoint."""
        return json.dumps(self._kept)

    def deserialize(self, string_value: str | bytes) -> None:
        """Takes the values from a checkpoint."""
        self._kept = json.loads(string_value)

    def _variables(self) -> list[tuple[str, Any]]:
        return [(variable.path, variable) for metric in self._model.metrics for variable in metric.variables]


class Checkpoints:
    """The last and the best state of a run: weights, optimizer slots, global step, running means.

    What is written is found by the file `checkpoint`, which is replaced in one move once all is there. A state is a
    function of its step, and no step is saved twice, so that no file that `checkpoint` names is ever written over.
    What a killed write left behind is removed by `sweep`.

    Args:
        model: a compiled model all of whose variables exist.
        means: its running means.
        path: the directory.

    Raises:
        RunError: if a file `checkpoint` names files elsewhere.
    """

    NAMES = ("last", "best")

    def __init__(self, model: AlignedModel, means: TrainingMeans, path: str):
        self._model = model
        self._checkpoint = tf.train.Checkpoint(model=model, optimizer=model.optimizer, means=means)
        self._managers = {name: self._manager(tf.io.gfile.join(path, name)) for name in self.NAMES}

    def _manager(self, directory: str) -> tf.train.CheckpointManager:
        """Returns what manages one directory.

        Refuses a `checkpoint` file that names files elsewhere: the manager would remove them in time.
        """
        try:
            manager = tf.train.CheckpointManager(self._checkpoint, directory, max_to_keep=1)
        except UnicodeDecodeError:
            raise RunError(f"{directory}/checkpoint: is damaged; train anew with --force") from None
        for path in manager.checkpoints:
            folder, name = os.path.split(path)
            if folder != directory or not re.fullmatch(r"ckpt-\d+", name):
                raise RunError(
                    f"{directory}/checkpoint: names {path!r}; allowed: ckpt-STEP in its own folder; "
                    "train anew with --force"
                )
        return manager

    def step(self, name: str) -> int:
        """Returns the global step of the state saved as `name`; 0 where there is none."""
        latest = self._managers[name].latest_checkpoint
        return int(latest.rpartition("-")[2]) if latest else 0

    def save(self, name: str) -> bool:
        """Saves the present state as `"last"` or `"best"`; the one before is removed afterwards.

        Returns:
            False where a weight is not finite: that is not saved, because from there no run can go on.

        Raises:
            tf.errors.OpError: if the file system refuses; the state before is whole, and nothing is left behind.
        """
        step = self._model.global_step
        if not self._finite():
            return False
        if step == self.step(name):
            return True
        try:
            self._managers[name].save(checkpoint_number=step)
        except tf.errors.OpError:
            self.sweep()
            raise
        return True

    def _finite(self) -> bool:
        return all(bool(tf.reduce_all(tf.math.is_finite(w))) for w in self._model.weights if "float" in w.dtype)

    def restore_last(self) -> int:
        """Restores the last state, if there is one; returns the global step to go on from.

        Raises:
            RunError: if the checkpoint is damaged or of another model.
        """
        latest = self._managers["last"].latest_checkpoint
        if latest is not None:
            try:
                self._checkpoint.restore(latest).assert_consumed()
            # Besides its own errors TensorFlow lets an IndexError out of a truncated file.
            except (tf.errors.OpError, AssertionError, IndexError, ValueError) as error:
                reason = " ".join(str(error).split())[:150]
                raise RunError(f"{latest}: cannot be restored ({reason}); train anew with --force") from None
        return self._model.global_step

    def sweep(self) -> None:
        """Removes what a write that was cut short has left: all that `checkpoint` does not name."""
        for manager in self._managers.values():
            if not tf.io.gfile.isdir(manager.directory):
                continue
            named = tf.train.latest_checkpoint(manager.directory)
            keep = f"{os.path.basename(named)}." if named else None
            for entry in tf.io.gfile.listdir(manager.directory):
                entry = entry.rstrip("/")
                if entry != "checkpoint" and not (keep and entry.startswith(keep)):
                    files.remove(tf.io.gfile.join(manager.directory, entry))
