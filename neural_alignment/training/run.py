"""Trains and evaluates a run: `train` creates a run directory, and `evaluate` reads the model in it."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import tempfile
from pathlib import Path
from typing import Any

import tensorflow as tf

from neural_alignment import config as configuration
from neural_alignment import files
from neural_alignment.config import Config
from neural_alignment.errors import DataError, Diverged, InputError, RunError, Stopped, Unavailable
from neural_alignment.training import callbacks, distribution, existing_run, lock, rewind, setup
from neural_alignment.training.divergence import diverged
from neural_alignment.training.graphs import keep_graphs
from neural_alignment.training.preparation import Prepared, load_initial_state, prepare
from neural_alignment.training.run_directory import RunDirectory, RunResult
from neural_alignment.training.run_loop import RunLoop
from neural_alignment.training.saved_state import SavedState
from neural_alignment.training.stopping import Interrupted, Stop
from neural_alignment.training.trainer import Trainer

_PRECEDE_SIGNALS = (Diverged, Stopped, InputError, tf.errors.OpError, OSError)
"""Errors that take precedence over a signal as the reason a run ended."""


def train(
    config: Config,
    run_dir: str | Path,
    resume: bool = False,
    force: bool = False,
    progress: callbacks.Progress | None = None,
    resume_from: int | None = None,
) -> RunResult:
    """Trains one run from its configuration.

    Args:
        config: the configuration, from `neural_alignment.config.load`.
        run_dir: the run directory to create.
        resume: whether to continue from the last checkpoint, if there is one.
        force: whether to replace the files of an earlier run in the directory.
        progress: shows the progress of the run.
        resume_from: the step of a saved state to go back to and to continue from. Files of later steps are moved to
            `set_aside/` in the run directory. Implies `resume`.

    Returns:
        The result.

    Raises:
        RunError: if the directory already contains a run and neither `resume` nor `force` is true, or if it is in use,
            damaged, or of another configuration, or its path contains one of `*?[` or a backslash.
        ConfigError: if the pattern of a rule matches no layer.
        DataError: if the data cannot be read.
        Diverged: if J or R is not finite. Earlier rows and checkpoints stay.
        Stopped: after SIGTERM, SIGINT or SIGHUP (the state is saved first), if the disk is full, or if another worker
            has ended. `resume` continues such a run.
    """
    directory = RunDirectory(run_dir)
    directory.check_path()
    start = StartOptions(resume or resume_from is not None, force, resume_from)
    with distribution.report_errors_to_workers(config.runtime), files.full_disk_reported(directory.path):
        train_part = _train_as_chief if distribution.is_chief(config.runtime) else _train_as_assistant
        return train_part(config, directory, start, progress)


@dataclasses.dataclass(frozen=True)
class StartOptions:
    """The arguments of `train` that determine how it treats an existing run."""

    resume: bool
    force: bool
    resume_from: int | None


def _train_as_chief(
    config: Config, directory: RunDirectory, start: StartOptions, progress: callbacks.Progress | None
) -> RunResult:
    """Trains as the only process or as the chief of several workers; writes the run directory."""
    force = start.force
    with contextlib.ExitStack() as holding:
        check_held = back = None
        if directory.exists():
            if force or start.resume_from is not None or not existing_run.is_finished(directory):
                check_held = holding.enter_context(lock.held(directory.path))
            finished = existing_run.check_usable(directory, config, start.resume, force)
            back = None if force else rewind.target(directory, start.resume_from)
            if finished is not None and back is None:
                if directory.is_missing_or_empty("config.yaml"):
                    directory.write("config.yaml", configuration.dump(config))
                return finished
        elif start.resume_from is not None:
            raise RunError(f"{directory.path}: contains no run that could go back to step {start.resume_from}")
        resumes = not force and existing_run.has_own_state(directory)
        prepared, loaded = _prepared(config, directory, start, back, resumes)
        if check_held is None:
            directory.make()
            check_held = holding.enter_context(lock.held(directory.path))
            if directory.exists():
                raise RunError(f"{directory.path}: another process has created a run there meanwhile")
        elif force:
            directory.clear()
        elif back is not None:
            rewind.go_back(directory, config, back)
        state = SavedState(config, directory, prepared.trainer, check_held, loaded)
        return _finish(RunLoop(config, prepared, state), progress)


def _train_as_assistant(
    config: Config, directory: RunDirectory, start: StartOptions, progress: callbacks.Progress | None
) -> RunResult:
    """Trains as a worker other than the chief, from the chief's state, in a temporary directory.

    It reads the chief's directory before the first exchange between the workers, which is in `_prepared`. The chief
    changes the directory only after this exchange.
    """
    resumes = start.resume and directory.exists()
    finished = existing_run.check_usable(directory, config, start.resume, start.force) if resumes else None
    back = rewind.target(directory, start.resume_from) if resumes else None
    if finished is not None and back is None:
        return finished
    has_own_state = resumes and existing_run.has_own_state(directory)
    with tempfile.TemporaryDirectory() as folder:
        own = RunDirectory(folder)
        if resumes:
            for name in ("metrics.csv", "checkpoints", "corrupt_records.json"):
                files.copy(directory.file(name), own.file(name))
        if back is not None:
            rewind.cut(own, back, own.file("set_aside"))
        prepared, loaded = _prepared(config, directory, start, back, has_own_state)
        state = SavedState(config, own, prepared.trainer, lambda: None, loaded)
        result = _finish(RunLoop(config, prepared, state), progress)
    return dataclasses.replace(result, path=directory.path)


def _prepared(
    config: Config, directory: RunDirectory, start: StartOptions, back: int | None, resumes: bool
) -> tuple[Prepared, dict[str, Any] | None]:
    """Returns the parts of a run, and the description of the state that `init_from` has loaded, if there is one.

    No file of the run directory has been changed yet. If files of an earlier run are to be removed or moved, the step
    is traced first, because the code of a user's rule, model or loss may fail there.

    Args:
        config: the configuration of the run.
        directory: the run directory.
        start: how to treat an existing run.
        back: the step to go back to, or None.
        resumes: whether the run continues from a state in its directory.
    """
    prepared = prepare(config)
    loaded = load_initial_state(config, directory, prepared, resumes)
    if start.force or back is not None:
        prepared.trainer.trace(prepared.trainer.step if back is None else back)
    return prepared, loaded


def _finish(loop: RunLoop, progress: callbacks.Progress | None) -> RunResult:
    """Runs the loop to its end, and records in `status.json` how it ended."""
    with Stop(raises=loop.trainer.devices.workers == 1) as stop:
        loop.restore()
        with _recorded_end(loop), files.full_disk_reported(loop.directory.path):
            try:
                result = loop.run(stop, progress)
                keep_graphs(loop.trainer.model)
                return result
            except Interrupted:
                pass
            except Exception as error:
                # Code that runs while a graph is traced may catch `Interrupted` and then raise another error.
                if stop.signal is None or isinstance(error, _PRECEDE_SIGNALS):
                    raise
            loop.save()
            signal = stop.signal or "a signal to another worker"
            raise Stopped(f"{signal} at step {loop.step}, which is saved", "continue with --resume")


@contextlib.contextmanager
def _recorded_end(loop: RunLoop) -> Any:
    """Writes the state and the reason to `status.json` when an error ends a run."""

    def record(state: str, **facts: Any) -> None:
        with contextlib.suppress(tf.errors.OpError):  # The disk may be full.
            checksums = loop.directory.checksums(loop.config)
            loop.directory.write_status(state, checksums, **facts, **loop.state.origin)

    try:
        yield
    except Stopped as error:
        record(error.state, reason=str(error), step=loop.step)
        raise
    except Diverged as error:
        record("diverged", reason=str(error), step=error.step, layers=error.layers)
        raise
    except lock.Lost:
        raise  # Another process owns the directory now.
    except DataError as error:
        record("failed", reason=str(error))
        raise
    except tf.errors.OpError as error:
        explained = loop.trainer.dataset.explain(error) or distribution.explain(error)
        record("failed", reason=str(explained or error).splitlines()[0])
        if explained is None:
            raise
        raise explained from None
    except BaseException as error:
        record("failed", reason=f"{type(error).__name__}: {error}")
        raise


def evaluate(run_dir: str | Path, strategy: str | None = None) -> dict[str, float]:
    """Recomputes the final metrics of a run from its saved model.

    Args:
        run_dir: a finished run.
        strategy: the devices to use, a value of `runtime.strategy`. Default: those of the run; for a run of several
            workers `auto`, because one process can evaluate it.

    Returns:
        J and the metrics of the loss (such as top1 and top5) on the whole validation split. Every example counts once.

    Raises:
        RunError: if there is no saved model, a file is damaged, a weight is not finite, or a device is missing.
        ConfigError: if the options do not fit the devices or the data.
        DataError: if the data cannot be read.
        TPUUnavailable: if a TPU cannot be reached.
        Diverged: if the weights are finite and J is not.
    """
    directory = RunDirectory(run_dir)
    directory.check_exists()
    status = directory.status()
    path = directory.model_path(status)
    config = directory.checked_config(status)
    if strategy is None and config.runtime.strategy == "multi_worker":
        strategy = "auto"
    if strategy is not None:
        runtime = distribution.with_strategy(config.runtime, strategy).model_dump()
        config = configuration.parse({**config.model_dump(mode="json", exclude_none=True), "runtime": runtime})
    try:
        devices = distribution.create(config.runtime)
    except (RunError, Unavailable) as error:
        raise type(error)(f"{error}; --strategy cpu evaluates on the CPU") from None
    devices.check(config)
    dataset = setup.load_data(config)
    devices.check_evaluation(config, dataset)
    with devices.scope():
        model = setup.load_network(path)
    shapes = (model.input_shape[1:], model.output_shape[-1])
    if shapes != (tuple(dataset.input_shape), setup.output_units(config, dataset.classes)):
        raise RunError(
            f"{directory.path}: its model is for images of shape {shapes[0]} and {shapes[1]} outputs; "
            f"the data are of shape {tuple(dataset.input_shape)} and {dataset.classes} classes"
        )
    row = Trainer(model, dataset, devices).evaluate()
    if not math.isfinite(row["J"]):
        raise diverged(model, model.global_step)
    return row
