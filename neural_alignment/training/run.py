"""The whole life of a run directory: `train` makes one, `evaluate` reads one.

runs/<name>/
    config.yaml      the configuration with all defaults; `train` takes it again
    metrics.csv      a row per evaluation
    kernels/         W and B of the layers that `logging.kernels` names, at every evaluation
    tensorboard/     scalars, histograms, images
    checkpoints/     last/ and best/, resumable
    set_aside/       what came after a state that the run went back to (`resume_from`)
    corrupt_records.json   which records of the data were damaged, where some were and that is tolerated
    model.keras      the final model
    status.json      running | finished | stopped | diverged | failed, and why
    lock.json        who is at work here, while somebody is
    status.json.partial    while a run lasts: space on the disk for its final status

Damage is found by checksums. Checkpoints, .npz files and .keras files contain their own. `status.json` contains its own
and, once the run has ended, those of `metrics.csv` and `model.keras`. A checkpoint contains that of `metrics.csv` at
its step. The checksum of `config.yaml` is over the values that decide the result: comments, and keys such as `runtime`,
may be edited. Directories of earlier versions have no such checksums and are read without them; runs that those have
not finished cannot be resumed. `resume` recreates a
file that is missing or empty where that is possible; a damaged file is named in the error, and left as it is.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import json
import logging
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import tensorflow as tf

from neural_alignment import config as configuration
from neural_alignment import data, paths
from neural_alignment.config import Config
from neural_alignment.errors import ConfigError, Diverged, InputError, RunError, Stopped
from neural_alignment.training import callbacks, distribution, files, initial_state, lock, rewind, setup
from neural_alignment.training.checkpoints import Checkpoints, TrainingMeans, kept_steps
from neural_alignment.training.distribution import Distribution
from neural_alignment.training.loading import check_finite, load_model
from neural_alignment.training.metrics import MetricsFile
from neural_alignment.training.model import AlignedModel, aligned_layers
from neural_alignment.training.run_directory import (
    RunDirectory,
    essence_digest,
    first_difference,
)
from neural_alignment.training.stepping import Stepper
from neural_alignment.training.stopping import Interrupted, Stop

_COLUMNS = ("step", "epoch", "seconds", "J", "R", "top1", "top5", "train_J", "learning_rate_J")
"""Columns that every `metrics.csv` has."""

_OWN_ENDS = (Diverged, Stopped, InputError, tf.errors.OpError, OSError)
"""Errors that say themselves how a run has ended, whether a signal came as well or not."""

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
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
    resume_from: int | None = None,
) -> Result:
    """Trains one run from its configuration.

    Args:
        config: what `neural_alignment.config.load` returned.
        run_dir: the directory to make.
        resume: go on from the last checkpoint, or start if there is none.
        force: replace what an earlier run has left there.
        progress: shows how far the run is.
        resume_from: go back to the kept state of this step and on from there. What came after it is moved to
            `set_aside/` in the run directory. It implies `resume`.

    Returns:
        The result.

    Raises:
        RunError: if the directory is taken, in use, damaged, or of another configuration.
        ConfigError: if a rule's pattern fits no layer.
        DataError: if the data cannot be read.
        Diverged: if J or R is not finite; earlier rows and checkpoints stay.
        Stopped: at SIGTERM or SIGINT, once the state is saved, where the disk is full, or where another worker has
            ended; `resume` goes on.
    """
    directory = RunDirectory(run_dir)
    start = Start(resume or resume_from is not None, force, resume_from)
    with distribution.shared_fate(config.runtime), files.full_disk_told(directory.path):
        part = _lead if distribution.is_chief(config.runtime) else _assist
        return part(config, directory, start, progress)


@dataclasses.dataclass(frozen=True)
class Start:
    """How to treat a run that already exists; arguments as of `train`."""

    resume: bool
    force: bool
    resume_from: int | None


def _lead(config: Config, directory: RunDirectory, start: Start, progress: callbacks.Progress | None) -> Result:
    """Trains alone, or as the chief of several workers: what it does is in the run directory."""
    force = start.force
    with contextlib.ExitStack() as holding:
        check_held = back = None
        if directory.exists():
            if force or start.resume_from is not None or not _is_finished(directory):
                check_held = holding.enter_context(lock.held(directory.path))
            finished = _check_free(directory, config, start.resume, force)
            back = None if force else rewind.target(directory, start.resume_from)
            if finished is not None and back is None:
                if directory.lacks("config.yaml"):
                    directory.write("config.yaml", configuration.dump(config))
                return finished
        elif start.resume_from is not None:
            raise RunError(f"{directory.path}: has no run that could go back to step {start.resume_from}")
        prepared = _prepare(config)
        loaded = None if not force and _has_own_state(directory) else _load_initial_state(config, directory, prepared)
        if check_held is None:
            directory.make()
            check_held = holding.enter_context(lock.held(directory.path))
            if directory.exists():
                raise RunError(f"{directory.path}: another process has made a run there meanwhile")
        elif force:
            directory.clear()
        elif back is not None:
            rewind.go_back(directory, config, back)
        return _live(_Training(config, directory, prepared, check_held, loaded), progress)


def _has_own_state(directory: RunDirectory) -> bool:
    """Whether a run goes on from its own state, so that `init_from` is ignored."""
    last = tf.io.gfile.join(directory.file("checkpoints"), "last")
    return bool(kept_steps(last)) or tf.io.gfile.exists(directory.file("metrics.csv"))


def _load_initial_state(config: Config, directory: RunDirectory, prepared: _Prepared) -> dict[str, Any] | None:
    """Loads the state that `init_from` names, if there is one; returns its description as plain data.

    Raises:
        RunError: if it is missing, damaged, or does not fit, or would be replaced by the run.
    """
    options = config.init_from
    if options is None:
        return None
    own, source = (paths.real(path.rstrip("/")) for path in (directory.path, options.path))
    if source == own or source.startswith(f"{own}/"):
        raise RunError(f"init_from: must not be in the run directory {directory.path}; found {options.path}")
    loaded = initial_state.load(options, prepared.model)
    end = _total_steps(config, prepared.dataset)
    if loaded.first_step >= end:
        raise RunError(
            f"init_from: the run would go on at step {loaded.first_step} of {options.path}, but it ends at step {end}; "
            "raise epochs or max_steps, or start at step 0 with init_from.optimizer: false"
        )
    return loaded.plain()


def _is_finished(directory: RunDirectory) -> bool:
    """Whether nothing is left to do: not even to save the final model again, which is missing."""
    status = directory.found_status()
    if status is None or status["state"] != "finished":
        return False
    lost = "model.keras" in status.get("files", {}) and directory.lacks("model.keras")
    return not (lost and directory.has_last_state())


class _Prepared(NamedTuple):
    """The parts of a run that do not depend on its directory.

    Attributes:
        devices: where it computes.
        dataset: its data.
        test: data whose validation part is evaluated as well, or none.
        model: the compiled model.
        alignment: measures the alignment of the model.
    """

    devices: Distribution
    dataset: data.Dataset
    test: data.Dataset | None
    model: AlignedModel
    alignment: callbacks.Alignment


def _prepare(config: Config) -> _Prepared:
    """Makes the model while the data are read."""
    devices = distribution.create(config.runtime)
    devices.check(config)
    facts = setup.data_facts(config)
    split = config.evaluation.test_split
    with concurrent.futures.ThreadPoolExecutor(1) as background:
        reading = background.submit(setup.load_data, config)
        testing = None if split is None else background.submit(setup.load_test_data, config, split)
        with devices.scope():
            model = setup.build_model(config, facts.classes, facts.input_shape, facts.steps_per_epoch)
            setup.compile_model(model, config, facts.classes, facts.steps_per_epoch)
        alignment = callbacks.Alignment(model, devices, config.evaluation.probe_examples)
        alignment.trace(facts)
        dataset, test = reading.result(), None if testing is None else testing.result()
    if test is not None and config.data.standardize and type(test) is not type(dataset):
        raise ConfigError(
            "evaluation.test_split: must be held in memory, or read from files, as the run's data are, or its images "
            f"would be standardised otherwise; found {split}, too large or too small for that; allowed is a part of it"
        )
    return _Prepared(devices, dataset, test, model, alignment)


def _assist(config: Config, directory: RunDirectory, start: Start, progress: callbacks.Progress | None) -> Result:
    """Trains as a worker other than the chief, from the chief's state, in a temporary directory.

    All is read of the chief's directory before the workers meet, and changed by the chief afterwards.
    """
    resumes = start.resume and directory.exists()
    finished = _check_free(directory, config, start.resume, start.force) if resumes else None
    back = rewind.target(directory, start.resume_from) if resumes else None
    if finished is not None and back is None:
        return finished
    has_own_state = resumes and _has_own_state(directory)
    with tempfile.TemporaryDirectory() as folder:
        own = RunDirectory(folder)
        if resumes:
            for name in ("metrics.csv", "checkpoints", "corrupt_records.json"):
                files.copy(directory.file(name), own.file(name))
        if back is not None:
            rewind.cut(own, back, own.file("set_aside"))
        prepared = _prepare(config)
        loaded = None if has_own_state else _load_initial_state(config, directory, prepared)
        result = _live(_Training(config, own, prepared, lambda: None, loaded), progress)
    return dataclasses.replace(result, path=directory.path)


def _live(training: _Training, progress: callbacks.Progress | None) -> Result:
    """Runs a training to its end, whichever it is, and notes the end in `status.json`."""
    with Stop(raises=training.devices.workers == 1) as stop:
        return _noted(training, stop, progress)


def _noted(training: _Training, stop: Stop, progress: callbacks.Progress | None) -> Result:
    directory = training.directory
    training.restore()
    training.check_together()

    def note(state: str, **facts: Any) -> None:
        with contextlib.suppress(tf.errors.OpError):  # It may be the disk that is full.
            directory.write_status(state, directory.checksums(training.config), **facts, **training.origin)

    try:
        with files.full_disk_told(directory.path):
            try:
                return training.run(stop, progress)
            except Interrupted:
                pass
            except Exception as error:
                # What is interrupted may swallow that, as code does that is called while a graph is made, and go wrong.
                if stop.signal is None or isinstance(error, _OWN_ENDS):
                    raise
            training.save()
            signal = stop.signal or "a signal to another worker"
            raise Stopped(f"{signal} at step {training.step}, which is saved; go on with --resume")
    except Stopped as error:
        note(error.state, reason=str(error), step=training.step)
        raise
    except Diverged as error:
        note("diverged", reason=str(error), step=error.step, layers=error.layers)
        raise
    except lock.Lost:
        raise  # The directory is another's.
    except tf.errors.OpError as error:
        explained = training.dataset.explain(error) or distribution.explain(error)
        note("failed", reason=str(explained or error).splitlines()[0])
        if explained is None:
            raise
        raise explained from None
    except BaseException as error:
        note("failed", reason=f"{type(error).__name__}: {error}")
        raise


def stored_state(directory: RunDirectory, config: Config) -> str | None:
    """Returns the state of the run that is there, or none where there is nothing.

    Raises:
        RunError: if it is damaged, of another configuration, or no run.
    """
    if not directory.exists():
        return None
    status = directory.found_status()
    if status is None:
        directory.check_resumable()
    _check_same(directory, config, status)
    return status["state"] if status is not None else "failed"


def _check_free(directory: RunDirectory, config: Config, resume: bool, force: bool) -> Result | None:
    """Checks that the directory may be used; returns the result of a run that is finished already."""
    if not directory.exists():
        return None
    status = directory.found_status()
    if force:
        return None
    if not resume:
        state = status["state"] if status is not None else "damaged (status.json)"
        advice = "--force replaces it" if state == "finished" else "--resume goes on, --force starts anew"
        raise RunError(f"{directory.path}: holds a run that is {state}; {advice}")
    if status is None:
        directory.check_resumable()
    _check_same(directory, config, status)
    if status is None or status["state"] != "finished":
        return None
    rows = directory.rows(status)
    if not rows:
        raise RunError(f"{directory.path}: its metrics.csv is gone or empty; --force trains anew")
    if not _is_finished(directory):
        _log.warning("%s: is missing or empty; it is saved again", directory.file("model.keras"))
        return None
    if problem := directory.model_problem(status):
        _log.warning("%s: %s; %s", directory.file("model.keras"), problem, directory.model_remedy())
    metrics = rows[-1]
    layers = [key.partition("/")[2] for key in metrics if key.startswith("weight_angle/")]
    return Result(directory.path, metrics, layers)


def _check_same(directory: RunDirectory, config: Config, status: dict[str, Any] | None) -> None:
    """Checks that a run's stored configuration is `config`.

    Args:
        directory: the run.
        config: the configuration to go on with.
        status: content of `status.json`; none where it is missing.

    Raises:
        RunError: if it is not, or is damaged.
    """
    if not directory.has_begun():
        return
    known = status.get("files", {}).get("config.yaml") if status is not None else None
    if directory.lacks("config.yaml") and known == essence_digest(config):
        _log.warning("%s: is missing or empty; it is written again", directory.file("config.yaml"))
        return
    difference = first_difference(directory.checked_config(status or {}), config)
    if difference:
        raise RunError(
            f"{directory.path}: its checkpoint is of another configuration: {difference}; resume "
            "with its own config.yaml, or choose another --run-dir"
        )


def _total_steps(config: Config, dataset: data.Dataset) -> int:
    """Returns the global step at which a run ends."""
    total = config.epochs * dataset.steps_per_epoch * ((config.optimization.alternation or 0) + 1)
    return min(total, config.max_steps or total)


class _Training:
    """One run while it lasts.

    At an evaluation the state is saved before its row is written, so that no row is ever ahead of the last checkpoint:
    a resumed run finds every row that is due, but perhaps the one of the very step it goes on from.
    """

    def __init__(
        self,
        config: Config,
        directory: RunDirectory,
        prepared: _Prepared,
        check_held: Callable[[], None],
        loaded: dict[str, Any] | None = None,
    ):
        devices, dataset, test, model, alignment = prepared
        self.config = config
        self.directory = directory
        self.devices = devices
        self.dataset = dataset
        self.model = model
        self._check_held = check_held
        alternation = config.optimization.alternation or 0
        self.epoch_steps = dataset.steps_per_epoch * (alternation + 1)
        self.total_steps = _total_steps(config, dataset)
        self._loaded = loaded
        self._stride = config.evaluation.every_epochs * self.epoch_steps
        self.means = TrainingMeans(model)
        self.checkpoints = Checkpoints(model, self.means, directory.file("checkpoints"), config.checkpoints.keep)
        self.metrics = MetricsFile(directory.file("metrics.csv"))
        self._evaluation = callbacks.Evaluation(config, dataset, test, self.epoch_steps, model, devices, alignment)
        self._kernels = callbacks.Kernels(model, directory.file("kernels"), config.logging.kernels)
        self._saved = time.monotonic()

    @property
    def step(self) -> int:
        """The global steps that are made."""
        return self.model.global_step

    @property
    def origin(self) -> dict[str, Any]:
        """The facts for `status.json` about the state that the run started from; empty if its weights were drawn."""
        return {} if self._loaded is None else {"init_from": self._loaded}

    @property
    def first_step(self) -> int:
        """The global step at which the run has begun."""
        return self._loaded["first_step"] if self._loaded else 0

    def restore(self) -> None:
        """Restores the last checkpoint, if there is one.

        Raises:
            RunError: if the checkpoint or the metrics are damaged or do not fit each other.
        """
        restored, start = self.checkpoints.restore_last(), self.step
        record = self.means.record
        if restored is not None:
            self._loaded = record.get("init_from")
        elif self.config.init_from is not None and self._loaded is None:
            path = self.directory.file("checkpoints")
            raise RunError(f"{path}: has no whole state, but the run has begun; restore it, or train anew with --force")
        self._restore_corrupt_records(record.get("corrupt_records.json"))
        rows = self.metrics.rows()
        for column in _COLUMNS:
            if rows and column not in rows[0]:
                raise self.metrics.damaged(f"its first line does not name the column {column}")
        found = [row["step"] for row in rows]
        due = [step for step in range(self.first_step, start) if self._is_due(step)]
        if found != due and found != [*due, start]:
            if restored is not None:
                what = f"{self.metrics.path}: does not have the rows up to the checkpoint of step {start}; restore it"
            else:
                folder = self.directory.file("checkpoints")
                what = f"{folder}: is missing, but metrics.csv has rows; restore the folder"
            raise RunError(f"{what} from a copy, or train anew with --force")
        if "metrics.csv" in record and not self.metrics.fits(record["metrics.csv"], start, record.get("row")):
            raise self.metrics.damaged(f"it was changed after the state of step {start} had been saved")
        if not self.directory.lacks("status.json"):
            self.directory.rows(self.directory.found_status() or {"state": "failed"})

    def _restore_corrupt_records(self, kept: list[list[Any]] | None) -> None:
        """Tells the data which damaged records were met before.

        Args:
            kept: the records that the checkpoint holds; none of a checkpoint of an earlier version.

        Raises:
            RunError: if the file that names them is damaged.
            DataError: if it names more than the configuration tolerates.
        """
        path = self.directory.file("corrupt_records.json")
        if self.directory.lacks("corrupt_records.json"):
            if kept:
                _log.warning("%s: is missing or empty; the records are taken from the checkpoint", path)
                self.dataset.load_corrupt(kept)
            return
        try:
            with tf.io.gfile.GFile(path, "rb") as file:
                state = json.loads(file.read())
            # It is written before the checkpoint, and may have more.
            is_whole = all(list(map(type, entry)) == [str, int, str, int] for entry in state)
            is_whole = is_whole and all(entry in state for entry in kept or [])
        except (tf.errors.OpError, ValueError, TypeError, RecursionError):
            is_whole = False
        if not is_whole:
            remedy = "restore it, or train anew with --force"
            if kept is not None:
                remedy = "remove it, and --resume takes the records from the checkpoint"
            raise RunError(f"{path}: is damaged; {remedy}")
        self.dataset.load_corrupt(state)

    def check_together(self) -> None:
        """Checks that all workers go on from one step.

        Raises:
            RunError: if they do not.
        """
        if len({*self.devices.gathered(self.step)}) > 1:
            raise RunError(
                f"{self.directory.path}: the workers do not see the same run; give all the same --run-dir, on a file "
                "system that they share, and the same --resume"
            )
        digest = self._loaded["digest"] if self._loaded else "0"
        if len({*self.devices.gathered(int(digest[:8], 16))}) > 1:
            raise RunError(
                f"init_from: the workers do not see the same state of {self.config.init_from.path}; give all the same "
                "one, on a file system that they share, and of a run that goes on name a kept step (init_from.state)"
            )

    def run(self, stop: Stop, progress: callbacks.Progress | None) -> Result:
        """Trains from the present step to the end, or to a divergence."""
        checksums = {"config.yaml": essence_digest(self.config)}
        self.directory.write_status("running", checksums, **lock.owner(), **self.origin)
        self.directory.write("config.yaml", configuration.dump(self.config))
        self.directory.sweep()
        self.checkpoints.sweep()
        # Taken by the final status, which would otherwise stay "running" on a full disk.
        files.reserve(self.directory.file("status.json"))
        rows = self.metrics.rows()
        began = time.time()
        self._began = began - (rows[-1]["seconds"] if rows else 0.0)
        if self.checkpoints.step("last") is None and self._loaded is not None:
            self.save()  # Before the first row: from now on the run does not depend on its source.
        start = self.step
        if start:
            self.means.put_back()
        listeners = self._listeners(progress)
        if progress is not None:
            progress.plan(start, self.total_steps)
        try:
            advance = self._stepper(start) if start < self.total_steps else None
            if self._is_due(start) and start not in [row["step"] for row in rows]:
                # Several workers make their graphs in one order, by which the sums over all of them are known.
                if advance is not None and self.devices.workers == 1:
                    advance.trace_aside()
                row = self.means.record.get("row")
                if row and row["step"] == start:  # It was measured before a kill, and could be another one now.
                    self._finish_evaluation(row, listeners)
                else:
                    self._measure(stop, listeners)
            self._keep_best()  # Of a run that was killed between the last two writes of an evaluation.
            if advance is not None:
                self._train(advance, stop, listeners, progress)
        finally:
            if progress is not None:
                progress.close()
        with stop.safe():
            self._check_held()
            self.directory.save_model(self.model)
        return self._finish(round(time.time() - began, 1))

    def _train(
        self,
        advance: Stepper,
        stop: Stop,
        listeners: list[callbacks.Listener],
        progress: callbacks.Progress | None,
    ) -> None:
        """Makes all steps that are left."""
        step = self.step
        while step < self.total_steps:
            if self._is_due(step):
                self.model.reset_metrics()
            with stop.safe():
                results = advance(self._next_stop(step) - step)
            if not all(math.isfinite(value) for value in results.values()):
                raise callbacks.diverged(self.model, self.step - 1)
            before, step = step, self.step
            if progress is not None:
                progress.advance(step - before)
            stopped, is_save_due = self.devices.agree(stop.signal is not None, self._is_save_due(step))
            if stopped:
                raise Interrupted
            if self._is_due(step):
                self._measure(stop, listeners)
            elif is_save_due:
                self.save()

    def _stepper(self, start: int) -> Stepper:
        return Stepper(self.model, self.devices.train(self.dataset, start), self.devices.seconds_together)

    def save(self, row: dict[str, float] | None = None) -> None:
        """Saves the present state as the last one.

        Args:
            row: the row of an evaluation at this step, which is to be written to `metrics.csv` afterwards.

        Raises:
            Diverged: if a weight is not finite.
        """
        self._check_held()
        # Before the state: a record that is known too early is known all the same, one that is forgotten is not.
        if self.dataset.corrupt_records:
            self.directory.write("corrupt_records.json", json.dumps(self.dataset.corrupt_state(), indent=1) + "\n")
        self.means.keep()
        self.means.record = {
            "metrics.csv": self.metrics.digest(),
            "row": row and {name: float(value) for name, value in row.items()},
            "corrupt_records.json": self.dataset.corrupt_state(),
            **self.origin,
        }
        if not self.checkpoints.save("last"):
            raise callbacks.diverged(self.model, self.step - 1)
        self._saved = time.monotonic()

    def _is_due(self, step: int) -> bool:
        """Whether an evaluation belongs to a step; one does to the first."""
        return step % self._stride == 0 or step in (self.first_step, self.total_steps)

    def _is_save_due(self, step: int) -> bool:
        """Whether the state is to be saved at a step without an evaluation."""
        options = self.config.checkpoints
        if options.every_steps and step % options.every_steps == 0:
            return True
        return bool(options.every_minutes) and time.monotonic() - self._saved >= 60 * options.every_minutes

    def _next_stop(self, step: int) -> int:
        """Returns the next step after `step` at which something is to be done."""
        strides = [self._stride, self.config.checkpoints.every_steps or self._stride]
        return min(self.total_steps, *((step // stride + 1) * stride for stride in strides))

    def _measure(self, stop: Stop, listeners: list[callbacks.Listener]) -> None:
        """Evaluates, saves the state, and writes the row."""
        self.means.keep()
        training, is_first = {}, self.step == self.first_step
        if not is_first:
            training = {name: float(value) for name, value in self.model.get_metrics_result().items()}
        is_untrained = is_first and self._loaded is None
        try:
            with stop.safe():
                row = self._evaluation.row(training, time.time() - self._began, is_untrained)
        finally:
            self.means.put_back()  # Evaluating has used the same metrics.
        self._finish_evaluation(row, listeners)

    def _finish_evaluation(self, row: dict[str, float], listeners: list[callbacks.Listener]) -> None:
        """Saves the state and writes the row of an evaluation."""
        self.save(row)
        self._kernels(row)  # Before the row: a step that has its row is not measured again.
        self.metrics.append(row)
        self._keep_best()
        for listener in listeners:
            listener(row)

    def _keep_best(self) -> None:
        """Saves the present state as the best one, if its row is there and is that."""
        # Rows as the file has them: rounded all alike, or a tie would count as better.
        rows = [row for row in self.metrics.rows() if not math.isnan(row["top1"])]
        if not self.config.checkpoints.keep_best or not rows or rows[-1]["step"] != self.step:
            return
        *earlier, last = (row["top1"] for row in rows)
        if all(last > top1 for top1 in earlier):
            self._check_held()
            self.checkpoints.save("best")

    def _listeners(self, progress: callbacks.Progress | None) -> list[callbacks.Listener]:
        """Returns what is told of every row of metrics."""
        listeners: list[callbacks.Listener] = []
        if self.config.logging.tensorboard:
            path = self.directory.file("tensorboard")
            listeners.append(callbacks.TensorBoard(self.model, path, self.config.logging))
        if progress is not None:
            listeners.append(progress)
        return listeners

    def _finish(self, seconds: float) -> Result:
        """Writes how the run ended."""
        rows = self.metrics.rows()
        best = max((row for row in rows if not math.isnan(row["top1"])), key=lambda row: row["top1"])
        facts = {"step": int(rows[-1]["step"]), "top1": rows[-1]["top1"], "best_top1": best["top1"]}
        checksums = self.directory.checksums(self.config)
        self.directory.write_status(
            "finished", checksums, **facts, best_step=int(best["step"]), seconds=seconds, **self.origin
        )
        return Result(self.directory.path, rows[-1], [layer.name for layer in aligned_layers(self.model)])


def evaluate(run_dir: str | Path, strategy: str | None = None) -> dict[str, float]:
    """Recomputes the final accuracy of a run from its saved model.

    Args:
        run_dir: a finished run.
        strategy: where to compute, one of `runtime.strategy`; as the run did where none.

    Returns:
        J, top1 and top5 on the whole validation split, every example counted once.

    Raises:
        RunError: if there is no saved model, a file is damaged, or a weight is not finite.
        Diverged: if the weights are finite and J is not.
    """
    directory = RunDirectory(run_dir)
    if not tf.io.gfile.exists(directory.path):
        raise RunError(f"{directory.path}: no such run directory; give one that `train` has made")
    status = directory.status()
    path = directory.model_path(status)
    config = directory.checked_config(status)
    if strategy is not None:
        runtime = distribution.with_strategy(config.runtime, strategy).model_dump()
        config = configuration.parse({**config.model_dump(mode="json", exclude_none=True), "runtime": runtime})
    devices = distribution.create(config.runtime)
    devices.check(config)
    dataset = setup.load_data(config)
    with devices.scope():
        model = load_model(path)
    check_finite(model, path)
    shapes = (model.input_shape[1:], model.output_shape[-1])
    if shapes != (tuple(dataset.input_shape), setup.output_units(config, dataset.classes)):
        raise RunError(
            f"{directory.path}: its model is for images of shape {shapes[0]} and {shapes[1]} outputs; "
            f"the data are of shape {tuple(dataset.input_shape)} and {dataset.classes} classes"
        )
    try:
        results = devices.evaluate(model, dataset)
    except tf.errors.OpError as error:
        raise dataset.explain(error) or error from None
    named = callbacks.named(results)
    if not math.isfinite(named["J"]):
        raise callbacks.diverged(model, model.global_step)
    return named
