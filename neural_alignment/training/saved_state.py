"""The saved state of a run: its checkpoints, its rows of metrics, and the damaged records of its data."""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

from neural_alignment.config import Config
from neural_alignment.errors import RunError
from neural_alignment.training.checkpoints import CheckpointStore, TrainingMeans
from neural_alignment.training.divergence import diverged
from neural_alignment.training.metrics import MetricsFile, MetricsRow
from neural_alignment.training.run_directory import RunDirectory
from neural_alignment.training.trainer import Trainer

_log = logging.getLogger(__name__)


class SavedState:
    """Saves and restores the state of a run.

    Args:
        config: the configuration of the run.
        directory: its directory.
        trainer: its trainer.
        check_held: raises an error if this process no longer holds the directory.
        loaded: the description of the state that `init_from` has loaded, if there is one; see `Loaded.plain`.

    Attributes:
        directory: the run directory.
        check_held: as above.
        metrics: the file `metrics.csv`.
        checkpoints: the checkpoints of the run.
    """

    def __init__(
        self,
        config: Config,
        directory: RunDirectory,
        trainer: Trainer,
        check_held: Callable[[], None],
        loaded: dict[str, Any] | None = None,
    ):
        self.directory = directory
        self.check_held = check_held
        self.metrics = MetricsFile(directory.file("metrics.csv"))
        self._config = config
        self._trainer = trainer
        self._loaded = loaded
        self._means = TrainingMeans(trainer.model, trainer.dataset.example_spec[1])
        path = directory.file("checkpoints")
        self.checkpoints = CheckpointStore(trainer.model, self._means, path, config.checkpoints.keep)

    @property
    def origin(self) -> dict[str, Any]:
        """The entry of `status.json` about `init_from`; empty if the run started from random weights."""
        return {} if self._loaded is None else {"init_from": self._loaded}

    @property
    def first_step(self) -> int:
        """The global step at which the run began."""
        return self._loaded["first_step"] if self._loaded else 0

    def restore(self, is_due: Callable[[int], bool]) -> None:
        """Restores the last checkpoint, if there is one.

        Args:
            is_due: whether a step has a row of metrics.

        Raises:
            RunError: if the checkpoint or the metrics are damaged or do not fit each other, or if the workers do not
                continue from the same step.
        """
        restored, start = self.checkpoints.restore_last(), self._trainer.step
        record = self._means.record
        if restored is not None:
            self._loaded = record.get("init_from")
        elif self._config.init_from is not None and self._loaded is None:
            path = self.directory.file("checkpoints")
            raise RunError(
                f"{path}: has no complete state, but the run has begun; restore it, or start over with --force"
            )
        self._restore_corrupt_records(record.get("corrupt_records.json"))
        rows = self.metrics.rows()
        for column in ("step", "epoch", "seconds", "J", "R", *self._config.loss.metrics, "train_J", "learning_rate_J"):
            if rows and column not in rows[0]:
                raise self.metrics.damaged(f"its first line does not name the column {column}")
        found = [row["step"] for row in rows]
        due = [step for step in range(self.first_step, start) if is_due(step)]
        if found != due and found != [*due, start]:
            if restored is not None:
                problem = (
                    f"{self.metrics.path}: does not have the rows up to the checkpoint of step {start}; restore it"
                )
            else:
                folder = self.directory.file("checkpoints")
                problem = f"{folder}: is missing, but metrics.csv has rows; restore the folder"
            raise RunError(f"{problem} from a copy, or start over with --force")
        if "metrics.csv" in record and not self.metrics.fits(record["metrics.csv"], start, record.get("row")):
            raise self.metrics.damaged(f"it was changed after the state of step {start} was saved")
        if not self.directory.is_missing_or_empty("status.json"):
            self.directory.rows(self.directory.found_status() or {"state": "failed"})
        self._trainer.devices.check_same(start, self.directory.not_shared())

    def _restore_corrupt_records(self, kept: list[list[Any]] | None) -> None:
        """Passes the damaged records that were found before to the data.

        Args:
            kept: the records in the checkpoint, or None without a checkpoint.

        Raises:
            RunError: if the file of the records is damaged.
            DataError: if it names more records than the configuration tolerates.
        """
        path, dataset = self.directory.file("corrupt_records.json"), self._trainer.dataset
        if self.directory.is_missing_or_empty("corrupt_records.json"):
            if kept:
                _log.warning("%s: is missing or empty; the records are taken from the checkpoint", path)
                dataset.load_corrupt(kept)
            return
        try:
            with tf.io.gfile.GFile(path, "rb") as file:
                state = json.loads(file.read())
            # The file is written before the checkpoint, so it may have more records.
            is_intact = all(list(map(type, entry)) == [str, int, str, int] for entry in state)
            is_intact = is_intact and all(entry in state for entry in kept or [])
        except (tf.errors.OpError, ValueError, TypeError, RecursionError):
            is_intact = False
        if not is_intact:
            remedy = "restore it, or start over with --force"
            if kept is not None:
                remedy = "remove it, and --resume takes the records from the checkpoint"
            raise RunError(f"{path}: is damaged; {remedy}")
        dataset.load_corrupt(state)

    def start_clock(self) -> None:
        """Starts to count the time of this process, which is added to the time up to the restored state."""
        rows = self.metrics.rows()
        # Earlier versions did not save the time with a state.
        before = self._means.record.get("seconds", rows[-1]["seconds"] if rows else 0.0)
        self._began = time.monotonic() - before

    @property
    def seconds(self) -> float:
        """Seconds of training up to now. The time between the last save and the end of a killed process is left out."""
        return time.monotonic() - self._began

    def take_over(self) -> None:
        """Saves a state that `init_from` has loaded, so that resuming does not need its source, and restores the means.

        Called once, before training.
        """
        if self.checkpoints.step("last") is None and self._loaded is not None:
            self.save()
        if self._trainer.step:
            self._means.put_back()

    def save(self, row: MetricsRow | None = None) -> None:
        """Saves the current state as the last one.

        Args:
            row: the row of an evaluation at this step that will be written to `metrics.csv` afterwards.

        Raises:
            Diverged: if a weight is not finite.
        """
        self.check_held()
        dataset = self._trainer.dataset
        # Before the state is saved: it does no harm if a record is listed too early, but none must be missing.
        if dataset.corrupt_records:
            self.directory.write("corrupt_records.json", json.dumps(dataset.corrupt_state(), indent=1) + "\n")
        self._means.keep()
        self._means.record = {
            "metrics.csv": self.metrics.digest(),
            "row": row and {name: float(value) for name, value in row.items()},
            "corrupt_records.json": dataset.corrupt_state(),
            "seconds": self.seconds,
            **self.origin,
        }
        if not self.checkpoints.save("last"):
            raise diverged(self._trainer.model, self._trainer.step - 1)

    @contextlib.contextmanager
    def kept_means(self) -> Iterator[None]:
        """Restores the means since the last evaluation after the context, because an evaluation overwrites them."""
        self._means.keep()
        try:
            yield
        finally:
            self._means.put_back()

    def measured_row(self) -> MetricsRow | None:
        """Returns the row of the current step if it was measured before the run was killed, or None.

        It is not measured again, because a second evaluation could give different values.
        """
        row = self._means.record.get("row")
        return row if row and row["step"] == self._trainer.step else None

    def keep_best(self) -> None:
        """Saves the current state as the best one, if its row is written and is the best."""
        # Rows are read from the file, where values are rounded. Otherwise a tie could count as better.
        rows = self.metrics.rows()
        if not self._config.checkpoints.keep_best or not rows or rows[-1]["step"] != self._trainer.step:
            return
        if self._config.loss.criterion.best(rows) is rows[-1]:
            self.check_held()
            self.checkpoints.save("best")
