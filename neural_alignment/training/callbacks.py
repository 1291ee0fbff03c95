"""What happens around the steps of a run: evaluation, divergence, TensorBoard, checkpoints."""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from neural_alignment import data
from neural_alignment.config import Config, Logging
from neural_alignment.errors import Diverged, RunError
from neural_alignment.training import probes
from neural_alignment.training.metrics import MetricsFile
from neural_alignment.training.model import AlignedModel, aligned_layers, all_layers

Row = dict[str, float]
Listener = Callable[[Row], None]
"""What is told of every row of `metrics.csv` once it is written."""


def named(results: dict[str, float]) -> Row:
    """Returns evaluation results under the names they have in `metrics.csv`."""
    names = {"loss": "J", "regulariser": "R"}
    return {names.get(key, key): float(value) for key, value in results.items()}


class StopOnDivergence(keras.callbacks.Callback):
    """Stops the run at the step at which J or R is not finite."""

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        """Looks at the running means: once one value was not finite they are not."""
        if not all(math.isfinite(value) for value in (logs or {}).values()):
            raise diverged(self.model, int(self.model.optimizer.iterations) - 1)


def diverged(model: AlignedModel, step: int) -> Diverged:
    """Returns the error that says at which step, in which layer, and what to try.

    Args:
        model: whose J or R is not finite.
        step: the step to name where the model has not seen it in training.
    """
    step, sources = model.first_non_finite() or (step, ["J"])
    layers = [source for source in sources if source != "J"]
    if layers:
        what = f"R of layer {layers[0]}" + (f" and {len(layers) - 1} more" if layers[1:] else "")
        advice = "lower the backward learning rate, or raise the weight of decay, sparse or null against amp"
    else:
        layers = _damaged_layers(model)
        where = f" (first weights that are not finite: layer {layers[0]})" if layers else ""
        what = f"J{where}"
        advice = "lower the forward learning rate, clip the gradients, or delay J until B has aligned"
    return Diverged(f"{what} is not finite at step {step}; try this: {advice}", step, layers)


def _damaged_layers(model: AlignedModel) -> list[str]:
    """Returns the names of the layers that have a weight that is not finite."""
    return [
        layer.name
        for layer in all_layers(model)
        if not all(np.isfinite(keras.ops.convert_to_numpy(weight)).all() for weight in layer.weights)
    ]


class Evaluation(keras.callbacks.Callback):
    """Evaluates the model at the end of every epoch of `fit` and writes a row of `metrics.csv`.

    Args:
        config: the run's configuration.
        dataset: the run's data.
        epoch_steps: global steps in an epoch of J.
        metrics: the file.
        listeners: told of each row, in this order.
    """

    def __init__(
        self,
        config: Config,
        dataset: data.Dataset,
        epoch_steps: int,
        metrics: MetricsFile,
        listeners: Sequence[Listener],
    ):
        super().__init__()
        self._listeners = listeners
        self._epoch_steps = epoch_steps
        self._metrics = metrics
        self._dataset = dataset
        self._probe_examples = config.evaluation.probe_examples
        self._probe: Any = None
        self._learns = any(rule.learns for rule in config.rules)
        previous = metrics.rows()
        self._began = time.time() - (previous[-1]["seconds"] if previous else 0.0)

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Evaluates."""
        self.evaluate(logs or {})

    def evaluate(self, training: dict[str, float]) -> None:
        """Makes and writes the row of the present step; `training` holds the means since the last one."""
        model = self.model
        step = int(model.optimizer.iterations)
        validation = named(model.evaluate(self._dataset.validation(), verbose=0, return_dict=True))
        if not math.isfinite(validation["J"]):
            # Before a listener overwrites the last sound checkpoint.
            raise diverged(model, step)
        training = named(training)
        rates = [float(rate) for rate in model.optimizer.learning_rates]
        row = {
            "step": step,
            "epoch": step / self._epoch_steps,
            "seconds": time.time() - self._began,
            "J": validation["J"],
            "top1": validation["top1"],
            "top5": validation.get("top5", math.nan),
            "train_J": training.get("J", math.nan),
            "R": training.get("R", math.nan) if self._learns else math.nan,
            "train_top1": training.get("top1", math.nan),
            "train_top5": training.get("top5", math.nan),
            "learning_rate_J": rates[0],
            "learning_rate_R": rates[1] if self._learns else math.nan,
            **self._alignment(),
        }
        self._metrics.append(row)
        for listener in self._listeners:
            listener(row)

    def _alignment(self) -> Row:
        """Returns `measure/layer` -> value over the probe batch."""
        if not aligned_layers(self.model):
            return {}
        if self._probe is None:
            examples = self._dataset.validation().unbatch().batch(self._probe_examples)
            self._probe = (probes.compiled(self.model), *next(iter(examples)))
        measure, x, y = self._probe
        measures = measure(x, y)
        return {f"{name}/{layer}": float(v) for name in probes.MEASURES for layer, v in measures[name].items()}


class TensorBoard:
    """Writes every row for TensorBoard: scalars, and as asked histograms and images of W against B.

    Args:
        model: the model that is trained.
        path: the directory of the event files.
        options: what to write.
    """

    POINTS = 2000
    """Weights per layer in an image, evenly spaced through the kernel."""

    def __init__(self, model: AlignedModel, path: str, options: Logging):
        self._model = model
        self._writer = tf.summary.create_file_writer(path)
        self._options = options

    def __call__(self, row: Row) -> None:
        """Writes one row."""
        step = int(row["step"])
        with self._writer.as_default(step=step):
            for key, value in row.items():
                if key != "step" and not math.isnan(value):
                    tf.summary.scalar(key, value)
            for layer in aligned_layers(self._model):
                linear_map = layer.linear_map()
                forward = keras.ops.convert_to_numpy(layer.kernel)
                backward = linear_map.transpose(keras.ops.convert_to_tensor(layer.backward_kernel)).numpy()
                if self._options.histograms:
                    tf.summary.histogram(f"forward_kernel/{layer.name}", forward)
                    tf.summary.histogram(f"backward_kernel/{layer.name}", backward)
                if self._options.scatter:
                    tf.summary.image(f"weights/{layer.name}", self._scatter(layer.name, forward, backward)[None])
        self._writer.flush()

    def _scatter(self, name: str, forward: np.ndarray, backward: np.ndarray) -> np.ndarray:
        """Returns an image `(height, width, 4)`, uint8, of B^T against W."""
        from matplotlib.figure import Figure  # Costs half a second, and most runs of tests draw nothing.

        chosen = np.linspace(0, forward.size - 1, min(self.POINTS, forward.size)).astype(int)
        figure = Figure(figsize=(3.2, 3.2), dpi=100, layout="constrained")
        axes = figure.subplots()
        axes.plot(forward.ravel()[chosen], backward.ravel()[chosen], ".", markersize=2, color="0.2")
        axes.axline((0, 0), slope=1, linestyle=":", color="0.5")
        axes.set(xlabel="forward weight", ylabel="backward weight", title=name)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
        return tf.io.decode_png(buffer.getvalue(), channels=4).numpy()


class Checkpoints:
    """The last and the best state of a run on disk: weights, optimizer slots, global step.

    Args:
        model: a compiled model all of whose variables exist.
        path: the directory.
    """

    def __init__(self, model: AlignedModel, path: str):
        self._model = model
        checkpoint = tf.train.Checkpoint(model=model, optimizer=model.optimizer)
        self._managers = {
            name: tf.train.CheckpointManager(checkpoint, tf.io.gfile.join(path, name), max_to_keep=1)
            for name in ("last", "best")
        }
        self._checkpoint = checkpoint

    def save(self, name: str) -> None:
        """Saves the present state as `"last"` or `"best"`; the one before is removed afterwards."""
        self._managers[name].save(checkpoint_number=int(self._model.optimizer.iterations))

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
        return int(self._model.optimizer.iterations)


class SaveCheckpoints:
    """Saves the last state at every evaluation after the first step, and the best by validation top-1.

    Args:
        checkpoints: where to.
        metrics: the rows, by which the best is known.
    """

    def __init__(self, checkpoints: Checkpoints, metrics: MetricsFile):
        self._checkpoints = checkpoints
        self._metrics = metrics

    def __call__(self, row: Row) -> None:
        """Saves."""
        if not row["step"]:
            return
        # The row as the file has it: rounded like the others, or a tie would count as better.
        *earlier, row = (each for each in self._metrics.rows() if each["step"])
        if all(row["top1"] > other["top1"] for other in earlier):
            self._checkpoints.save("best")
        self._checkpoints.save("last")


class Progress(keras.callbacks.Callback):
    """Shows a bar over all steps of the run with the time left, and a line per evaluation.

    Args:
        write_line: what prints a line; `tqdm.write` fits, so that the bar stays below.
        bar: makes the bar from the total number of steps and the number already done, such as `tqdm.tqdm`.
    """

    def __init__(self, write_line: Callable[[str], None], bar: Callable[..., Any]):
        super().__init__()
        self.write_line = write_line
        self._make_bar = bar
        self._bar: Any = None
        self._seen = 0

    def plan(self, start: int, total: int) -> None:
        """Opens the bar: the run goes from step `start` to step `total`."""
        self._bar = self._make_bar(total=total, initial=start, unit="step", desc="training")

    def close(self) -> None:
        """Closes the bar."""
        if self._bar is not None:
            self._bar.close()

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Starts counting batches anew, as `fit` does."""
        self._seen = 0

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        """Moves the bar."""
        self._bar.update(batch + 1 - self._seen)
        self._seen = batch + 1

    def __call__(self, row: Row) -> None:
        """Prints the line of one evaluation."""
        angles = [v for key, v in row.items() if key.startswith("weight_angle/") and not math.isnan(v)]
        parts = [
            f"step {int(row['step'])}",
            f"epoch {row['epoch']:g}",
            f"J {row['J']:.4f}",
            f"top-1 {100 * row['top1']:.2f} %",
        ]
        if not math.isnan(row["R"]):
            parts.append(f"R {row['R']:.4g}")
        if angles:
            parts.append(f"angle of W to B^T {min(angles):.1f} to {max(angles):.1f} degrees")
        self.write_line("  ".join(parts))
