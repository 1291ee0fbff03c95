"""Checkpoints of a run: weights, optimizer, global step, random states and means, so that it can resume exactly."""

from __future__ import annotations

import itertools
import json
import logging
import os
import re
import time
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import trackable_object_graph_pb2

from neural_alignment import files
from neural_alignment.errors import RunError, one_line
from neural_alignment.keras_internals import build_metrics
from neural_alignment.training.model import AlignedModel

_CLASS = tf.TensorSpec((), tf.int32)
"""The target of one example in classification."""

_log = logging.getLogger(__name__)


class DamagedStateError(RunError):
    """A state, or the file that names it, is damaged or missing.

    Attributes:
        problem: the first part of the message: the file and its damage, without the remedy.
    """

    def __init__(self, problem: str, remedy: str):
        super().__init__(f"{problem}; {remedy}")
        self.problem = problem


class TrainingMeans(tf.train.experimental.PythonState):
    """The running means of J, R and the metrics since the last evaluation, saved with a checkpoint.

    Keras resets them when an evaluation begins, and does not save them.

    Args:
        model: a compiled model; its metrics are built here.
        target: shape and dtype of the target of one example. Default: the number of a class.

    Attributes:
        record: plain data about the other files of the run, saved with the state. On resume, the files are compared
            with this record.
    """

    def __init__(self, model: AlignedModel, target: tf.TensorSpec = _CLASS):
        super().__init__()
        self._model = model
        self._kept: dict[str, Any] = {}
        self.record: dict[str, Any] = {}
        # Otherwise Keras would build them while it traces the first step, when it is too late to restore their values.
        with model.distribute_strategy.scope():
            targets = keras.KerasTensor((None, *target.shape), dtype=target.dtype.name)
            build_metrics(model, targets, keras.KerasTensor(model.output_shape))

    def keep(self) -> None:
        """Keeps a copy of the current values."""
        self._kept = {path: v.numpy().tolist() for path, v in self._variables()}

    def put_back(self) -> None:
        """Restores the kept values. They are exact, because `tolist` and JSON preserve every bit of a float."""
        for path, variable in self._variables():
            variable.assign(np.asarray(self._kept[path], variable.dtype))

    def serialize(self) -> str:
        """Returns the kept values, the record and the paths of the weights, for a checkpoint."""
        paths = [weight.path for weight in self._model.weights]
        return json.dumps({"means": self._kept, "record": self.record, _WEIGHTS: paths})

    def deserialize(self, string_value: str | bytes) -> None:
        """Reads the values and the record from a checkpoint."""
        state = json.loads(string_value)
        self._kept, self.record = state["means"], state["record"]

    def _variables(self) -> list[tuple[str, Any]]:
        return [(variable.path, variable) for variable in self._model.metrics_variables]


def _sync_state(prefix: str) -> None:
    """Flushes the files of a state to the disk."""
    if files.is_local(prefix):
        for path in [*tf.io.gfile.glob(f"{prefix}.*"), os.path.dirname(prefix)]:
            files.sync(path)


class CheckpointStore:
    """The most recent states and the best state of a run: weights, optimizer, global step, random states, means.

    TensorFlow finds most variables through the attributes of the model, but not those of layers in a list, a tuple or a
    dictionary, nor the states of random numbers. A state therefore also lists all weights, and the random states, in
    the order in which the model has them. Names would not do: a layer without a name gets one from Keras that depends
    on the models built before in the process.

    In each directory, the file `checkpoint` names the states. It is replaced atomically after a new state is complete.
    The content of a state depends only on its step, and no step is saved twice, so no file that `checkpoint` names is
    ever overwritten. `remove_partial_files` removes the files of an interrupted write. If `checkpoint` is missing or
    empty, the complete states beside it are used.

    Args:
        model: a compiled model whose variables have all been created.
        means: the running means of the model.
        path: the directory with the folders `last` and `best`.
        keep: number of recent states to keep. Older ones are removed at the next save.

    Raises:
        RunError: if a file `checkpoint` is damaged, or names files in another directory.
    """

    NAMES = ("last", "best")

    def __init__(self, model: AlignedModel, means: TrainingMeans, path: str, keep: int = 1):
        self._model = model
        self._means = means
        self._seeds = seed_generators(model)
        tracked = {"model": model, "optimizer": model.optimizer, "means": means}
        self._tracked = tf.train.Checkpoint(**tracked)  # The states of earlier versions have no lists.
        lists = {_WEIGHTS: list(model.weights), _SEEDS: [each.state for _, each in self._seeds]}
        self._checkpoint = tf.train.Checkpoint(**tracked, **lists)
        counts = {"last": keep, "best": 1}
        self._managers = {name: self._manager(tf.io.gfile.join(path, name), counts[name]) for name in self.NAMES}

    def _manager(self, directory: str, keep: int) -> tf.train.CheckpointManager:
        """Returns the manager of one directory, after a check of its file `checkpoint`."""
        path = tf.io.gfile.join(directory, "checkpoint")
        if _is_missing_or_empty(path):
            steps = _complete_steps(directory, keep)
            if steps:
                _log.warning("%s: is missing or empty; the complete state ckpt-%d beside it is used", path, steps[-1])
                write_named(path, steps)
        else:
            latest = _check_latest(path)
            if directory.endswith("best") and (problem := _problem(latest)):
                raise RunError(
                    f"{latest}: cannot be read ({problem}); restore its files from a copy, or remove {directory} to "
                    "continue without the best state"
                )
            # A process may be killed after it has removed a state and before it has replaced `checkpoint`.
            if (steps := kept_steps(directory)) != named_steps(directory):
                write_named(path, steps)
        return tf.train.CheckpointManager(self._checkpoint, directory, max_to_keep=keep)

    def step(self, name: str) -> int | None:
        """Returns the global step of the latest state saved as `name`, or None if there is none."""
        latest = self._managers[name].latest_checkpoint
        return step_of(latest) if latest else None

    def save(self, name: str) -> bool:
        """Saves the current state as `"last"` or `"best"`, then removes states beyond the number to keep.

        The state of step 0 is not saved if the seed determines it.

        Returns:
            False if a weight is not finite. Such a state is not saved, because no run can continue from it.

        Raises:
            tf.errors.OpError: if the file system refuses. The previous state stays complete, and partial files are
                removed.
        """
        step = self._model.global_step
        if not self._finite():
            return False
        saved = self.step(name)
        if saved == step or (saved is None and not step and "init_from" not in self._means.record):
            return True
        manager = self._managers[name]
        try:
            # Runs before the callback of the manager, which writes `checkpoint` and removes older states.
            durable = tf.train.CheckpointOptions(experimental_write_callbacks=[_sync_state])
            manager.save(checkpoint_number=step, options=durable)
        except tf.errors.OpError:
            self.remove_partial_files()
            raise
        for path in (tf.io.gfile.join(manager.directory, "checkpoint"), manager.directory):
            files.sync(path)
        return True

    def _finite(self) -> bool:
        return all(bool(tf.reduce_all(tf.math.is_finite(w))) for w in self._model.weights if "float" in w.dtype)

    def restore_last(self) -> int | None:
        """Restores the last state. Returns its global step, or None if there is no state.

        Raises:
            RunError: if the state is damaged or does not fit the model.
        """
        latest = self._managers["last"].latest_checkpoint
        if latest is None:
            return None
        # Everything is read first, because a failure within `restore` would leave a mixture of two states in the model.
        problem = _problem(latest)
        if problem is None:
            try:
                lists = _listed(_graph(latest))
                self._check_lists(latest, lists)
                (self._checkpoint if lists else self._tracked).restore(latest).assert_consumed()
            except RunError:
                raise
            except Exception as error:  # Unexpected content can cause any error.
                problem = one_line(error, 150)
        if problem is not None:
            raise RunError(f"{latest}: cannot be restored ({problem}); {_remedy(latest)}")
        if self._model.global_step != self.step("last"):
            raise RunError(f"{latest}: is the state of step {self._model.global_step}; {_REMEDY}")
        return self._model.global_step

    def _check_lists(self, prefix: str, lists: dict[str, list[str]]) -> None:
        """Checks that a state contains all weights and random states of the model, and no others.

        A state of an earlier version may lack random states: a warning names them.

        Args:
            prefix: path of the state.
            lists: the result of `_listed`.

        Raises:
            RunError: if it does not.
        """
        if lists:
            here, there = (len(self._model.weights), len(self._seeds)), (len(lists[_WEIGHTS]), len(lists[_SEEDS]))
            if here != there:
                has, needs = (f"{weights} weights and {seeds} random states" for weights, seeds in (there, here))
                raise RunError(f"{prefix}: has {has}, but the model has {needs}; {_REMEDY}")
            return
        earlier = f"{prefix}: was written by an earlier version of neural_alignment, which did not save"
        tracked = {id(each) for each in tf.train.TrackableView(self._tracked).descendants()}
        if lost := [weight.path for weight in self._model.weights if id(weight) not in tracked]:
            raise RunError(f"{earlier} {_first(lost)}; finish the run with that version, or start over with --force")
        if self._seeds:
            owners = _first([owner for owner, _ in self._seeds])
            _log.warning("%s the random state of %s; random masks, if there are any, begin again", earlier, owners)

    def remove_partial_files(self) -> None:
        """Removes the files of an interrupted write: all files that `checkpoint` does not name."""
        for manager in self._managers.values():
            if not tf.io.gfile.isdir(manager.directory):
                continue
            kept = tuple(f"ckpt-{step}." for step in kept_steps(manager.directory))
            for entry in tf.io.gfile.listdir(manager.directory):
                entry = entry.rstrip("/")
                if entry != "checkpoint" and not entry.startswith(kept):
                    files.remove(tf.io.gfile.join(manager.directory, entry))


def seed_generators(model: keras.Model) -> list[tuple[str, keras.random.SeedGenerator]]:
    """Returns the generators of random numbers of a compiled model, such as those of `Dropout`.

    They belong to its layers, metrics, losses and optimizers.

    Args:
        model: a compiled model.

    Returns:
        The name of the owner and the generator, in the order in which the objects were assigned to their owners.
    """
    found: list[tuple[str, keras.random.SeedGenerator]] = []
    seen: set[int] = set()

    def visit(value: Any, owner: str) -> None:
        if isinstance(value, (list, tuple, dict)):
            for each in value.values() if isinstance(value, dict) else value:
                visit(each, owner)
        elif isinstance(value, (*_OWNERS, keras.random.SeedGenerator)) and id(value) not in seen:
            seen.add(id(value))
            if isinstance(value, _OWNERS):
                visit(vars(value), getattr(value, "path", None) or value.name)
            else:
                found.append((owner, value))

    visit(model, model.name)
    return found


_OWNERS = keras.layers.Layer, keras.metrics.Metric, keras.losses.Loss, keras.optimizers.Optimizer
"""Classes of objects that may hold generators of random numbers."""


def _first(names: Sequence[str]) -> str:
    """Returns the first name and the number of the others, for messages."""
    return f"{names[0]} ({len(names) - 1} more)" if names[1:] else names[0]


def step_of(prefix: str) -> int:
    """Returns the global step of a state, from its name ckpt-STEP."""
    return int(prefix.rpartition("-")[2])


def named_steps(directory: str) -> list[int]:
    """Returns the steps of the states that the file `checkpoint` of a directory names, in ascending order.

    If the file is missing or empty, returns the steps of all complete states. No file is changed.

    Raises:
        RunError: if `checkpoint` is damaged, or names files in another directory.
    """
    path = tf.io.gfile.join(directory, "checkpoint")
    if _is_missing_or_empty(path):
        return _complete_steps(directory)
    return sorted({step_of(prefix) for prefix in _checked_names(path)})


def kept_steps(directory: str) -> list[int]:
    """Returns those of `named_steps` whose files exist. Files may be missing after a kill or damage.

    Raises:
        RunError: as in `named_steps`.
    """
    return [step for step in named_steps(directory) if _has_files(f"{directory}/ckpt-{step}")]


def latest_step(directory: str) -> int | None:
    """Returns the step of the latest state in a directory, or None if there is none.

    Raises:
        RunError: as in `named_steps`, or if a file of the latest state is missing.
    """
    path = tf.io.gfile.join(directory, "checkpoint")
    if not _is_missing_or_empty(path):
        _check_latest(path)
    return max(named_steps(directory), default=None)


def check_state(prefix: str) -> None:
    """Checks that all variables of a state can be read. TensorFlow compares their checksums.

    Raises:
        DamagedStateError: if a variable cannot be read.
    """
    if problem := _problem(prefix):
        raise DamagedStateError(f"{prefix}: cannot be read ({problem})", _REMEDY)


def read_state(prefix: str, wanted: Callable[[str], bool] = lambda key: True) -> list[tuple[str, str, np.ndarray]]:
    """Returns key, name and value of the weights in a state and of the variables of its optimizer.

    The name of a weight is its path, as `dense/kernel`.

    Args:
        prefix: path of the state, without the suffixes of its files.
        wanted: decides by its key whether a variable is read. Default: all are read.

    Raises:
        DamagedStateError: if the state is damaged.
    """
    check_state(prefix)
    reader, graph = tf.compat.v1.train.NewCheckpointReader(prefix), _graph(prefix)
    found = {each.checkpoint_key: each.full_name for node in graph.nodes for each in node.attributes if each.full_name}
    if lists := _listed(graph):
        # TensorFlow's names of weights leave out the layers between a weight and the outermost layer that was called.
        paths = json.loads(reader.get_tensor(_MEANS))[_WEIGHTS]
        of_optimizer = {key: name for key, name in found.items() if key.startswith("optimizer/")}
        found = of_optimizer | dict(zip(lists[_WEIGHTS], paths, strict=True))
    return [(key, name, reader.get_tensor(key)) for key, name in found.items() if wanted(key)]


_WEIGHTS, _SEEDS = "weights", "seeds"
"""Names of the lists of a state: all weights, and all states of random numbers."""

_MEANS = "means/.ATTRIBUTES/py_state"
"""Key of the running means in a TensorFlow checkpoint."""

_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
"""Key of the object graph in a TensorFlow checkpoint."""

_REMEDY = "restore its files from a copy, or start over with --force"


def _is_missing_or_empty(path: str) -> bool:
    return not tf.io.gfile.exists(path) or not tf.io.gfile.stat(path).length


def _complete_steps(directory: str, most: int | None = None) -> list[int]:
    """Returns the steps of the states in a directory that can be read completely, in ascending order.

    Args:
        directory: the directory, which need not exist.
        most: maximum number of steps; the newest are returned.
    """
    entries = tf.io.gfile.listdir(directory) if tf.io.gfile.isdir(directory) else []
    steps = [int(match[1]) for entry in entries if (match := re.fullmatch(r"ckpt-(\d+)\.index", entry))]
    complete = (step for step in sorted(steps, reverse=True) if _problem(f"{directory}/ckpt-{step}") is None)
    return sorted(itertools.islice(complete, most))


def _has_files(prefix: str) -> bool:
    """Whether the files of a state exist."""
    return tf.io.gfile.exists(f"{prefix}.index") and bool(tf.io.gfile.glob(f"{prefix}.data-*"))


def _graph(prefix: str) -> trackable_object_graph_pb2.TrackableObjectGraph:
    """Returns the objects in a state that can be read."""
    reader = tf.compat.v1.train.NewCheckpointReader(prefix)
    return trackable_object_graph_pb2.TrackableObjectGraph.FromString(reader.get_tensor(_GRAPH))


def _listed(graph: trackable_object_graph_pb2.TrackableObjectGraph) -> dict[str, list[str]]:
    """Returns the keys of the variables in the lists of a state; empty for a state of an earlier version."""
    children = {child.local_name: graph.nodes[child.node_id] for child in graph.nodes[0].children}
    return {
        name: [
            graph.nodes[child.node_id].attributes[0].checkpoint_key
            for child in sorted(children[name].children, key=lambda child: int(child.local_name))
        ]
        for name in (_WEIGHTS, _SEEDS)
        if name in children
    }


def _problem(prefix: str) -> str | None:
    """Returns the problem of a state, or None if it can be read completely."""
    try:
        reader = tf.compat.v1.train.NewCheckpointReader(prefix)
        for name in reader.get_variable_to_shape_map():
            reader.get_tensor(name)
    except Exception as error:  # Damaged bytes cause errors of many classes.
        return one_line(error, 150)
    return None


def write_named(path: str, steps: Sequence[int]) -> None:
    """Writes a file `checkpoint` that names the states of some steps, in ascending order.

    The manager later removes only states that have a timestamp.
    """
    lines = [f'model_checkpoint_path: "ckpt-{steps[-1]}"']
    lines += [f'all_model_checkpoint_paths: "ckpt-{step}"' for step in steps]
    lines += [f"all_model_checkpoint_timestamps: {time.time()}" for _ in steps]
    files.write_whole(path, "\n".join([*lines, ""]))


_LINE = re.compile(
    r'(?:model_checkpoint_path|all_model_checkpoint_paths): "(.*)"'
    r"|(?:all_model_checkpoint_timestamps|last_preserved_timestamp): \d+(?:\.\d+)?(?:e[-+]?\d+)?"
)
"""Pattern of a line in a file `checkpoint`."""


def _named(path: str) -> list[str] | None:
    """Returns the paths that a file `checkpoint` names, the latest first; None if the file is damaged."""
    try:
        with tf.io.gfile.GFile(path, "rb") as file:
            lines = [_LINE.fullmatch(line) for line in file.read().decode().splitlines()]
    except (tf.errors.OpError, UnicodeDecodeError):
        return None
    if not all(lines):
        return None
    latest = [line[1] for line in lines if line[0].startswith("model_")]
    others = [line[1] for line in lines if line[0].startswith("all_model_checkpoint_paths")]
    if len(latest) != 1:
        return None
    return [os.path.join(os.path.dirname(path), name) for name in (*latest, *others)]


def _checked_names(path: str) -> list[str]:
    """Returns the paths of the states that a file `checkpoint` names, the latest first.

    The states must be in the directory of the file, because the manager would remove the files of other states.

    Raises:
        DamagedStateError: if the file is damaged, or names files in another directory; the message names a remedy.
    """
    directory, named = os.path.dirname(path), _named(path)
    for other in named or []:
        folder, name = os.path.split(other)
        if folder != directory or not re.fullmatch(r"ckpt-\d+", name):
            raise DamagedStateError(
                f"{path}: must name ckpt-STEP in its own folder; found {other!r}",
                "remove this file, and --resume uses the complete state beside it",
            )
    if named and named[0] == named[-1]:  # The manager names the latest state last.
        return named
    raise _damaged_names(path)


def _damaged_names(path: str) -> RunError:
    """Returns the error that a file `checkpoint` is damaged."""
    if steps := _complete_steps(os.path.dirname(path), 1):
        return DamagedStateError(f"{path}: is damaged", f"remove it, and --resume uses ckpt-{steps[0]} beside it")
    return DamagedStateError(f"{path}: is damaged", _REMEDY)


def _check_latest(path: str) -> str:
    """Returns the path of the latest state that a file `checkpoint` names.

    Raises:
        DamagedStateError: as in `_checked_names`, or if a file of that state is missing.
    """
    directory, named = os.path.dirname(path), _checked_names(path)
    if _has_files(named[0]):
        return named[0]
    # If there is a complete state that the file does not name, then the file is wrong.
    if {*_complete_steps(directory)} - {step_of(prefix) for prefix in named}:
        raise _damaged_names(path)
    lost = ".data-00000-of-00001" if tf.io.gfile.exists(f"{named[0]}.index") else ".index"
    without = f", or remove {directory} to continue without the best state" if directory.endswith("best") else ""
    raise DamagedStateError(f"{named[0]}{lost}: is missing", f"{_remedy(named[0])}{without}")


def _remedy(prefix: str) -> str:
    """Returns the remedy for a damaged state, for messages: another saved state, if there is one."""
    directory = os.path.dirname(prefix)
    others = [step for step in kept_steps(directory) if step != step_of(prefix)]
    if not others or directory.endswith("best"):
        return _REMEDY
    return (
        f"restore its files from a copy, go back to a saved state with --resume-from {others[-1]}, or start over with "
        "--force"
    )
