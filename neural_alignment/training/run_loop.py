"""The loop of a run: training steps, evaluations, checkpoints and rows of metrics, up to the last step."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from neural_alignment import config as configuration
from neural_alignment.config import Config
from neural_alignment.errors import RunError
from neural_alignment.training import callbacks, config_comparison, evaluation, files, lock
from neural_alignment.training.checkpoints import Checkpoints, TrainingMeans
from neural_alignment.training.metrics import MetricsFile
from neural_alignment.training.model import aligned_layers
from neural_alignment.training.preparation import Prepared, total_steps
from neural_alignment.training.run_directory import Result, RunDirectory
from neural_alignment.training.stepping import Stepper
from neural_alignment.training.stopping import Interrupted, Stop

_COLUMNS = ("step", "epoch", "seconds", "J", "R", "top1", "top5", "train_J", "learning_rate_J")
"""Columns that every `metrics.csv` has."""

_log = logging.getLogger(__name__)


class RunLoop:
    """One run while it lasts.

    At an evaluation the state is saved before its row is written, so that no row is ever ahead of the last checkpoint:
    a resumed run finds every row that is due, but perhaps the one of the very step it goes on from.
    """

    def __init__(
        self,
        config: Config,
        directory: RunDirectory,
        prepared: Prepared,
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
        self.total_steps = total_steps(config, dataset)
        self._loaded = loaded
        self._stride = config.evaluation.every_epochs * self.epoch_steps
        self.means = TrainingMeans(model)
        self.checkpoints = Checkpoints(model, self.means, directory.file("checkpoints"), config.checkpoints.keep)
        self.metrics = MetricsFile(directory.file("metrics.csv"))
        self._evaluation = evaluation.Evaluation(config, dataset, test, self.epoch_steps, model, devices, alignment)
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
        if not self.directory.is_missing_or_empty("status.json"):
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
        if self.directory.is_missing_or_empty("corrupt_records.json"):
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

    def check_workers_agree(self) -> None:
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
        checksums = {"config.yaml": config_comparison.digest(self.config)}
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
                raise evaluation.diverged(self.model, self.step - 1)
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
            raise evaluation.diverged(self.model, self.step - 1)
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
