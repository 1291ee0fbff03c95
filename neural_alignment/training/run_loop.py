"""The loop of a run: training steps, evaluations and checkpoints, up to the last step."""

from __future__ import annotations

import math
import time

from neural_alignment import config as configuration
from neural_alignment import files
from neural_alignment.config import Config
from neural_alignment.training import callbacks, config_comparison, event_files, lock
from neural_alignment.training.divergence import diverged
from neural_alignment.training.evaluation import Evaluator
from neural_alignment.training.metrics import MetricsRow
from neural_alignment.training.model import connections
from neural_alignment.training.preparation import Prepared, epoch_steps, total_steps
from neural_alignment.training.run_directory import RunResult
from neural_alignment.training.saved_state import SavedState
from neural_alignment.training.stopping import Interrupted, Stop
from neural_alignment.training.tensorboard import TensorBoard


class RunLoop:
    """A run in progress.

    An evaluation saves the state before it writes its row, so that no row is later than the last checkpoint. A resumed
    run therefore finds all rows before its step, and perhaps the row of its step.

    Args:
        config: the configuration of the run.
        prepared: data, model and devices.
        state: the saved state of the run.
    """

    def __init__(self, config: Config, prepared: Prepared, state: SavedState):
        self.config = config
        self.state = state
        self.directory = state.directory
        self.trainer, test, alignment = prepared
        self.total_steps = total_steps(config, self.trainer.dataset)
        self._stride = config.evaluation.every_epochs * epoch_steps(config, self.trainer.dataset)
        self._evaluation = Evaluator(config, self.trainer, test, alignment)
        layers = callbacks.kernel_layers(self.trainer.model, config.logging.kernels)
        self._kernels = callbacks.Kernels(layers, self.directory.file("kernels"))
        self._listeners: list[callbacks.Listener] = []
        self._saved = time.monotonic()

    @property
    def step(self) -> int:
        """The number of global steps made."""
        return self.trainer.step

    def restore(self) -> None:
        """Restores the last checkpoint, if there is one.

        Raises:
            RunError: as in `SavedState.restore`.
        """
        self.state.restore(self._is_due)

    def run(self, stop: Stop, progress: callbacks.Progress | None) -> RunResult:
        """Trains from the current step to the last one.

        Args:
            stop: the signals that end the run.
            progress: shows the progress of the run.

        Raises:
            Diverged: if J or R is not finite.
            Interrupted: at a signal.
        """
        self._begin(progress)
        self.state.start_clock()
        rows = self.state.metrics.rows()
        events = self._open_events(rows)
        self.state.take_over()
        if progress is not None:
            progress.plan(self.step, self.total_steps)
        try:
            self._start(stop, [row["step"] for row in rows])
            self._train(stop, progress)
        finally:
            if progress is not None:
                progress.close()
            if events is not None:
                events.close()
        with stop.safe():
            self.state.check_held()
            self.directory.save_model(self.trainer.model)
        return self._finish()

    def _begin(self, progress: callbacks.Progress | None) -> None:
        """Writes the first files of the run, and creates the listeners."""
        checksums = {"config.yaml": config_comparison.digest(self.config)}
        self.directory.write_status("running", checksums, **lock.owner(), **self.state.origin)
        self.directory.write("config.yaml", configuration.dump(self.config))
        self.directory.remove_partial_files()
        self.state.checkpoints.remove_partial_files()
        # The final status needs this space: without it, the status would stay "running" on a full disk.
        files.reserve(self.directory.file("status.json"))
        if progress is not None:
            self._listeners.append(progress)

    def _open_events(self, rows: list[MetricsRow]) -> TensorBoard | None:
        """Adds the listener that writes the event files, if there are to be any, and returns it.

        Rows without an event get one: the last row if the process was killed after it was written to `metrics.csv`, and
        all earlier rows if the event files were turned off before.
        """
        if not self.config.logging.tensorboard:
            return None
        events = TensorBoard(self.trainer.model, self.directory.path, self.config.logging, rows)
        written = event_files.cut(self.directory.path, self.step)
        for row in rows:
            if row["step"] not in written:
                events.write(row, has_kernels=row["step"] == self.step)
        self._listeners.insert(0, events)
        return events

    def _start(self, stop: Stop, measured: list[float]) -> None:
        """Starts the batches, and evaluates the current step if its row is due and missing.

        Args:
            stop: the signals that end the run.
            measured: the steps that have a row.
        """
        start = self.step
        if start < self.total_steps:
            self.trainer.start(start)
        if self._is_due(start) and start not in measured:
            # Not with several workers: their all-reduces are matched by the order in which graphs are traced.
            if start < self.total_steps and self.trainer.devices.workers == 1:
                self.trainer.trace_in_background()
            row = self.state.measured_row()
            if row is None:
                self._measure(stop)
            else:
                self._finish_evaluation(row)
        self.state.keep_best()  # In case the run was killed between the last two writes of an evaluation.

    def _train(self, stop: Stop, progress: callbacks.Progress | None) -> None:
        """Makes all remaining steps."""
        step = self.step
        while step < self.total_steps:
            if self._is_due(step):
                self.trainer.model.reset_metrics()
            with stop.safe():
                results = self.trainer.advance(self._next_stop(step) - step)
            if not all(math.isfinite(results[name]) for name in ("loss", "regulariser")):  # A metric may be undefined.
                raise diverged(self.trainer.model, self.step - 1)
            before, step = step, self.step
            if progress is not None:
                progress.advance(step - before)
            stopped, is_save_due = self.trainer.devices.agree(stop.signal is not None, self._is_save_due(step))
            if stopped:
                raise Interrupted
            if self._is_due(step):
                self._measure(stop)
            elif is_save_due:
                self.save()

    def save(self, row: MetricsRow | None = None) -> None:
        """Saves the current state as the last one. Arguments and errors are those of `SavedState.save`."""
        self.state.save(row)
        self._saved = time.monotonic()

    def _is_due(self, step: int) -> bool:
        """Whether a step has an evaluation. The first and the last step always have one."""
        return step % self._stride == 0 or step in (self.state.first_step, self.total_steps)

    def _is_save_due(self, step: int) -> bool:
        """Whether to save the state at a step without an evaluation."""
        options = self.config.checkpoints
        if options.every_steps and step % options.every_steps == 0:
            return True
        return bool(options.every_minutes) and time.monotonic() - self._saved >= 60 * options.every_minutes

    def _next_stop(self, step: int) -> int:
        """Returns the next step after `step` with an evaluation or a checkpoint."""
        strides = [self._stride, self.config.checkpoints.every_steps or self._stride]
        return min(self.total_steps, *((step // stride + 1) * stride for stride in strides))

    def _measure(self, stop: Stop) -> None:
        """Evaluates the model, saves the state, and writes the row.

        Raises:
            Interrupted: at a signal.
        """
        is_first = self.step == self.state.first_step
        is_untrained = is_first and not self.state.origin
        with self.state.kept_means():
            training = {} if is_first else self.trainer.means()
            with stop.safe():
                row = self._evaluation.row(training, self.state.seconds, is_untrained)
        self._finish_evaluation(row)
        # A signal during the evaluation of several workers is only recorded, and the next steps could take long.
        if any(self.trainer.devices.agree(stop.signal is not None)):
            raise Interrupted

    def _finish_evaluation(self, row: MetricsRow) -> None:
        """Saves the state and writes the row of an evaluation."""
        self.save(row)
        self._kernels(row)  # Before the row is written, because a step with a row is not evaluated again.
        self.state.metrics.append(row)
        self.state.keep_best()
        for listener in self._listeners:
            listener(row)

    def _finish(self) -> RunResult:
        """Writes the final status."""
        seconds = round(self.state.seconds, 1)
        rows = self.state.metrics.rows()
        criterion = self.config.loss.criterion
        best, column = criterion.best(rows), criterion.column
        facts = {"step": int(rows[-1]["step"]), column: rows[-1][column], f"best_{column}": best[column]}
        dataset = self.trainer.dataset
        facts["pixels"] = {"center": dataset.center.tolist(), "scale": dataset.scale.tolist()}
        checksums = self.directory.checksums(self.config)
        self.directory.write_status(
            "finished", checksums, **facts, best_step=int(best["step"]), seconds=seconds, **self.state.origin
        )
        return RunResult(
            self.directory.path, rows[-1], [connection.name for connection in connections(self.trainer.model)]
        )
