"""Starting from the weights of another run or of a saved model: `init_from` of a configuration."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import logging
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from neural_alignment.config import InitialState
from neural_alignment.errors import RunError, as_written
from neural_alignment.training.checkpoints import DamagedStateError, kept_steps, latest_step, read_state
from neural_alignment.training.loading import check_model_file, load_model
from neural_alignment.training.model import connections
from neural_alignment.training.run_directory import RunDirectory
from optimizers.keras_internals import call_count, is_call_count, is_trained
from optimizers.wrapping import without_loss_scaling

StateName = Literal["last", "best", "final"] | int | None
"""The name or the step of a saved state of a run; see `InitialState`."""

Values = dict[str, np.ndarray]
"""Name of a variable -> value."""

GLOBAL_STEP = "optimizer/iteration"
"""Name of the global step among the variables of an optimizer."""

ATTEMPTS = 5
"""Number of attempts to read a state, because the process that trains the source run may replace it meanwhile."""

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class StateSource:
    """A saved state from which weights can be loaded.

    Attributes:
        path: a .keras file, or the path of a checkpoint without the suffixes of its files.
        state: "last", "best" or "final", the requested step, or "file".
        step: its global step, or None if it is not known.
    """

    path: str
    state: str | int
    step: int | None

    def __str__(self) -> str:
        words = [] if self.state in ("file", self.step) else [self.state]
        words += [] if self.step is None else [f"step {self.step}"]
        return f"{self.path} ({', '.join(words)})" if words else self.path


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A state that was loaded into a model.

    Attributes:
        path: as in `StateSource`.
        state: as in `StateSource`.
        step: global step of the source, or None if it is not known.
        digest: SHA-256 of the names and values that were loaded.
        optimizer: whether the variables of the optimizer and the global step were loaded.
        first_step: global step at which training continues.
        left: names of the model's variables that kept their initial values.
        unused: names of the source's variables that the model does not have.
    """

    path: str
    state: str | int
    step: int | None
    digest: str
    optimizer: bool
    first_step: int
    left: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()

    def plain(self) -> dict[str, Any]:
        """Returns the attributes as plain data, for JSON."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in vars(self).items()}


def load(options: InitialState, model: keras.Model) -> Loaded:
    """Loads the state of `init_from` in a configuration into a compiled model.

    Args:
        options: the options `init_from`.
        model: the compiled model.

    Raises:
        RunError: as in `load_weights`.
    """
    return _load(model, options.path, options.state, options.optimizer, options.strict, _as_key)


def load_weights(
    model: keras.Model, path: str | Path, state: StateName = None, optimizer: bool = False, strict: bool = True
) -> Loaded:
    """Loads the weights of a run, or of a saved model, into a model.

    Weights are matched by the names of layer and weight, such as `conv1/backward_kernel`, never by their order. The
    moving statistics of batch normalization and the backward kernels of all rules are loaded too. W(0) of Align-prop,
    Align-zero and Align-ada is loaded only if `optimizer` is true, because this continues the run; otherwise the loaded
    W is the W(0) of the model. Learning rates are never loaded.

    No file in the directory of the source is changed. If the source is still running, its latest complete state is
    read.

    Args:
        model: a built model; compiled if `optimizer` is true.
        path: a run directory, or a .keras file.
        state: the state of a run: "last", "best", "final" for its model.keras, or the step of a saved state.
            Default: the last one, or the final model of a finished run without checkpoints.
        optimizer: whether to load the variables of the optimizer and the global step as well.
        strict: whether all weights must fit. If false, weights that do not fit keep their values, and a warning lists
            them.

    Returns:
        The state that was loaded.

    Raises:
        RunError: if the state is missing or damaged, or does not fit. In this case the model is unchanged.
    """
    return _load(model, str(path), state, optimizer, strict, _as_argument)


Written = Callable[[str, Any], str]
"""A function that returns an option of loading and its value as the caller writes them."""


def _as_argument(option: str, value: Any) -> str:
    return f"{option}={value!r}"


def _as_key(option: str, value: Any) -> str:
    return f"init_from.{option}: {as_written(value)}"


def _load(model: keras.Model, path: str, state: StateName, optimizer: bool, strict: bool, written: Written) -> Loaded:
    """Loads weights. The other arguments are those of `load_weights`; `written` forms options in messages."""
    variables = _named(model.weights, model.name)
    source, weights, slots = _read(path, state, optimizer, written)
    pairs, misfits = _match(variables, weights, _skipped(model, {*variables, *weights}, optimizer))
    if not pairs:
        here, there = (", ".join([*names][:3]) or "none" for names in (variables, weights))
        raise RunError(
            f"{source}: has no weight that fits this model; the model has weights such as {here}, the source "
            f"{there}{_numbered(misfits)}"
        )
    if optimizer:
        more, others = _match(_optimizer_variables(model.optimizer), slots, set())
        pairs, misfits = {**pairs, **more}, [*misfits, *others]
    _check_finite(source, {name: value for name, (_, value) in pairs.items()})
    if misfits:
        _report(source, misfits, strict, written)
    for variable, value in pairs.values():
        variable.assign(value)
    return Loaded(
        path=source.path,
        state=source.state,
        step=source.step,
        digest=_digest({name: value for name, (_, value) in pairs.items()}),
        optimizer=optimizer,
        first_step=int(pairs[GLOBAL_STEP][1]) if GLOBAL_STEP in pairs else 0,
        left=tuple(misfit.name for misfit in misfits if misfit.is_here),
        unused=tuple(misfit.name for misfit in misfits if not misfit.is_here),
    )


# Finding and reading a state.


def find(path: str, state: StateName = None) -> StateSource:
    """Returns the location of a state, without reading it.

    Args:
        path: as in `load_weights`.
        state: as in `load_weights`.

    Raises:
        RunError: if the state does not exist; the message lists the available states.
    """
    if path.endswith(".keras"):
        check_model_file(path)
        return StateSource(path, "file", None)
    directory = RunDirectory(path)
    directory.check_exists(others=", or a .keras file")
    status = directory.found_status() or {}
    folder = directory.file("checkpoints")
    folders = {name: tf.io.gfile.join(folder, name) for name in ("last", "best")}
    kept = {name: kept_steps(each) for name, each in folders.items()}
    finished = status.get("state") == "finished"
    if state in (None, "last") and not kept["last"] and finished:
        state = "final"
    if finished and state == "final":
        return StateSource(directory.model_path(status), state, status.get("step"))
    for name, steps in kept.items():
        if name == ("last" if state is None else state) and (latest := latest_step(folders[name])) is not None:
            return StateSource(tf.io.gfile.join(folders[name], f"ckpt-{latest}"), name, latest)
        if state in steps:
            return StateSource(tf.io.gfile.join(folders[name], f"ckpt-{state}"), state, state)
    if finished and state == status.get("step"):
        return StateSource(directory.model_path(status), state, state)
    available = [f"{name} (step {', '.join(map(str, steps))})" for name, steps in kept.items() if steps]
    available += [f"final (step {status.get('step')})"] if finished else []
    wanted = f"state {state or 'last'}" if not isinstance(state, int) else f"state of step {state}"
    raise RunError(f"{path}: has no {wanted}; available: {', '.join(available) or 'none'}")


def _read(path: str, state: StateName, optimizer: bool, written: Written) -> tuple[StateSource, Values, Values]:
    """Returns a source and its weights, and the variables of its optimizer if `optimizer` is true."""
    try:
        for attempt in range(ATTEMPTS):
            source = find(path, state)
            try:
                if source.path.endswith(".keras"):
                    return _read_model(source, optimizer, written)
                return source, *_read_checkpoint(source.path, optimizer)
            except RunError:
                # The process that trains the run may have replaced this state by a newer one.
                if attempt == ATTEMPTS - 1 or find(path, state) == source:
                    raise
    except DamagedStateError as error:  # The remedies in its message are for resuming the source run.
        raise RunError(
            f"{error.problem}; restore that run's files from a copy, or name another of its states, such as "
            f"{written('state', 'best')}"
        ) from None
    raise AssertionError("not reached")


def _read_model(source: StateSource, optimizer: bool, written: Written) -> tuple[StateSource, Values, Values]:
    model = load_model(source.path)
    weights = {name: keras.ops.convert_to_numpy(each) for name, each in _named(model.weights, model.name).items()}
    if not optimizer:
        return source, weights, {}
    if getattr(model, "optimizer", None) is None:
        raise RunError(f"{source.path}: contains no optimizer state; start without it ({written('optimizer', False)})")
    slots = {name: each.numpy() for name, each in _optimizer_variables(model.optimizer).items()}
    return dataclasses.replace(source, step=int(slots[GLOBAL_STEP])), weights, slots


def _read_checkpoint(prefix: str, optimizer: bool) -> tuple[Values, Values]:
    """Returns the weights, and the variables of the optimizer if `optimizer` is true."""

    def is_slot(key: str) -> bool:
        return key.startswith("optimizer/") and not is_trained(key)

    weights, count, slots = [], {}, []
    for key, name, value in read_state(prefix, lambda key: optimizer or not is_slot(key)):
        if not is_slot(key):
            weights.append((name, value))
        elif is_call_count(key):
            count[GLOBAL_STEP] = value
        elif match := re.match(r"optimizer/inner_optimizers/(\d+)/(?:_variables/(\d+)/)?", key):
            slots.append((int(match[1]), int(match[2] or -1), name, value))
    slots.sort(key=lambda slot: slot[:2])  # The order of the variables of each optimizer.
    named = _named_slots((index, name, value) for index, _, name, value in slots)
    return {name: value for name, value in _unique(weights).items() if name != "save_counter"}, count | named


# Names of variables.


def _named(variables: Iterable[Any], model: str) -> dict[str, Any]:
    """Returns name -> variable, as `_unique`. The name is the path of a weight without the name of the model."""
    return _unique((variable.path.removeprefix(f"{model}/"), variable) for variable in variables)


def _unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Returns pairs of a name and a weight, or its value, as a dictionary.

    Raises:
        RunError: if two weights have the same name.
    """
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise RunError(f"two weights are named {name}; weights are loaded by name, so these names must differ")
        found[name] = value
    return found


def _optimizer_variables(optimizer: Any) -> dict[str, Any]:
    """Returns name -> variable of an optimizer, except the learning rates, which the configuration sets."""
    optimizer = without_loss_scaling(optimizer)
    inner = getattr(optimizer, "inner_optimizers", [optimizer])
    slots = ((index, each.path, each) for index, one in enumerate(inner) for each in one.variables)
    return {GLOBAL_STEP: call_count(optimizer), **_named_slots(slots)}


def _named_slots(slots: Iterable[tuple[int, str, Any]]) -> dict[str, Any]:
    """Returns name -> variable of the inner optimizers, without their learning rates.

    Some optimizers of Keras, such as Adafactor, give one path to several variables. From the second on, these are
    numbered.

    Args:
        slots: for each variable, the index of its optimizer, its path and the variable or its value; in the order of
            the variables of each optimizer.
    """
    found: dict[str, Any] = {}
    counts: collections.Counter[str] = collections.Counter()
    for index, path, value in slots:
        if path.endswith("/learning_rate"):
            continue
        name = _slot_name(index, path)
        counts[name] += 1
        found[name if counts[name] == 1 else f"{name} ({counts[name]})"] = value
    return found


def _slot_name(index: int, path: str) -> str:
    """Returns the name of a variable of the inner optimizer at `index`, without the number that Keras adds."""
    optimizer, separator, rest = path.partition("/")
    which = {0: "forward", 1: "backward"}.get(index, str(index))
    return f"optimizer {which}: {re.sub(r'_[0-9]+$', '', optimizer)}{separator}{rest}"


def _skipped(model: keras.Model, names: set[str], optimizer: bool) -> set[str]:
    """Returns the names of the variables that are not loaded, because they belong to the progress of training.

    They are W(0), unless the optimizer is loaded too, and the step counters that layers have outside of an
    `AlignedModel`. The counters that mark that W(0) has been recorded are loaded with the optimizer.

    Args:
        model: the model that receives the weights.
        names: names of its variables and of the variables of the source.
        optimizer: whether the optimizer is loaded too.
    """
    starting = [each for each in connections(model) if each.alignment.starts_at_forward]
    steps = {name for name in names if "/alignment_step" in name}
    if optimizer:
        return steps - {*_named([each.step for each in starting], model.name)}
    copies = {name for name in names if name.startswith("kept/")} if "kept/taken" in names else set()
    return steps | copies | {*_named([each.stored_backward_kernel for each in starting], model.name)}


# Matching.


@dataclasses.dataclass(frozen=True)
class Misfit:
    """A variable that is only in the model or only in the source, or has different shapes in them.

    Attributes:
        name: the name of the variable.
        here: its shape in the model, or None if it is not in the model.
        there: its shape in the source, or None if it is not in the source.
    """

    name: str
    here: tuple[int, ...] | None
    there: tuple[int, ...] | None

    @property
    def is_here(self) -> bool:
        """Whether the model has the variable."""
        return self.here is not None

    def __str__(self) -> str:
        if self.there is None:
            return f"{self.name} of shape {self.here} is not in the source"
        if self.here is None:
            return f"{self.name} of shape {self.there} is in the source and not in this model"
        return f"{self.name} has shape {self.there} in the source and {self.here} in this model"


def _match(
    variables: Mapping[str, Any], values: Values, skipped: set[str]
) -> tuple[dict[str, tuple[Any, np.ndarray]], list[Misfit]]:
    """Returns name -> variable and value of the variables that fit, and the misfits, different shapes first."""
    pairs, other, missing = {}, [], []
    for name, variable in variables.items():
        if name in skipped:
            continue
        here, value = tuple(variable.shape), values.get(name)
        if value is None:
            missing.append(Misfit(name, here, None))
        elif value.shape != here:
            other.append(Misfit(name, here, value.shape))
        else:
            pairs[name] = variable, value.astype(keras.backend.standardize_dtype(variable.dtype))
    extra = [Misfit(name, None, value.shape) for name, value in values.items() if name not in {*variables, *skipped}]
    return pairs, [*other, *missing, *extra]


def _numbered(misfits: list[Misfit]) -> str:
    """Returns the end of a message if names in the model and in the source differ only in the numbers of layers."""
    here, there = (
        {re.sub(r"_[0-9]+(?=/)", "", misfit.name) for misfit in misfits if getattr(misfit, side) is None}
        for side in ("there", "here")
    )
    return "; layers without a `name` are numbered anew in each process: give them names" if here & there else ""


def _report(source: StateSource, misfits: list[Misfit], strict: bool, written: Written) -> None:
    """Raises an error about the misfits, or lists them in a warning.

    Raises:
        RunError: if `strict`.
    """
    if strict:
        more = f" ({len(misfits) - 1} more)" if misfits[1:] else ""
        raise RunError(
            f"{source}: does not fit this model: {misfits[0]}{more}{_numbered(misfits)}; with "
            f"{written('strict', False)}, variables that do not fit keep their initial values"
        )
    for effect, names in (
        ("keep their initial values", [misfit.name for misfit in misfits if misfit.is_here]),
        ("are not used", [misfit.name for misfit in misfits if not misfit.is_here]),
    ):
        if names:
            listed = ", ".join(names)
            _log.warning("%s: %d variables %s: %s%s", source, len(names), effect, listed, _numbered(misfits))


def _check_finite(source: StateSource, values: Values) -> None:
    for name, value in values.items():
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise RunError(f"{source}: {name} is not finite: the model has diverged, or the file was changed")


def _digest(values: Values) -> str:
    total = hashlib.sha256()
    for name in sorted(values):
        total.update(f"{name} {values[name].dtype} {values[name].shape}\n".encode())
        total.update(np.ascontiguousarray(values[name]).tobytes())
    return total.hexdigest()
