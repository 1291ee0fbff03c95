"""What happens around the steps of a run: evaluation, divergence, TensorBoard, progress."""

from __future__ import annotations

import fnmatch
import functools
import io
import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from neural_alignment import data
from neural_alignment.alignments import schedules
from neural_alignment.config import Config, Logging
from neural_alignment.errors import ConfigError, Diverged
from neural_alignment.training import probes
from neural_alignment.training.distribution import Distribution
from neural_alignment.training.files import write_whole
from neural_alignment.training.model import AlignedModel, aligned_layers, all_layers

Row = dict[str, float]
Listener = Callable[[Row], None]
"""What is told of every row of `metrics.csv` once it is written."""


def named(results: dict[str, float]) -> Row:
    """Returns evaluation results under the names they have in `metrics.csv`."""
    names = {"loss": "J", "regulariser": "R"}
    return {names.get(key, key): float(value) for key, value in results.items()}


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


class Alignment:
    """Measures the alignment of a model on a batch that is the same for all of a run: the first validation examples.

    Args:
        model: the model.
        devices: where it computes.
        examples: how many examples the batch has; less where there are not as many. 0 for what the kernels tell.
    """

    def __init__(self, model: AlignedModel, devices: Distribution, examples: int):
        self._model = model
        self._layers = aligned_layers(model)
        self._measure = devices.on_one_replica(functools.partial(probes.measure, model))
        self._examples = examples
        self._batch: tuple[tf.Tensor, tf.Tensor] | None = None

    def trace(self, facts: data.Facts) -> None:
        """Makes the graph before there are data, to use the time in which they are read."""
        if self._layers and self._examples:
            examples = min(self._examples, facts.validation_examples)
            images = tf.TensorSpec((examples, *facts.input_shape), tf.float32)
            self._measure.get_concrete_function(images, tf.TensorSpec((examples,), tf.int32))

    def row(self, dataset: data.Dataset) -> Row:
        """Returns `measure/layer` -> value; nothing where no layer has an alignment."""
        if not self._layers:
            return {}
        if self._examples == 0:
            measures = probes.measure_kernels(self._model)
        else:
            if self._batch is None:
                self._batch = next(iter(dataset.validation().unbatch().batch(self._examples)))
            measures = self._measure(*self._batch)
        return {
            f"{name}/{layer}": float(value)
            for name in probes.MEASURES
            for layer, value in measures.get(name, {}).items()
        }


class Evaluation:
    """Measures the model for a row of `metrics.csv`.

    Args:
        config: the run's configuration.
        dataset: the run's data.
        test: data whose validation part is evaluated as well, or none.
        epoch_steps: global steps in an epoch of J.
        model: the model.
        devices: where it computes.
        alignment: measures its alignment.
    """

    def __init__(
        self,
        config: Config,
        dataset: data.Dataset,
        test: data.Dataset | None,
        epoch_steps: int,
        model: AlignedModel,
        devices: Distribution,
        alignment: Alignment,
    ):
        self._model = model
        self._devices = devices
        self._epoch_steps = epoch_steps
        self._dataset = dataset
        self._test = test
        self._tested = () if test is None else ("J", "top1", "top5")
        self._alignment = alignment
        self._learns = any(rule.learns for rule in config.rules)
        self._weights = ScheduledWeights(config, dataset.steps_per_epoch)
        self._turns = (config.optimization.alternation or 0) + 1

    def row(self, training: dict[str, float], seconds: float, is_untrained: bool = False) -> Row:
        """Returns the row of the present step.

        The row of an untrained network has its alignment only: to evaluate it on all of the validation split would keep
        the user waiting for chance level. Rates and weights are those of the next step.

        Args:
            training: the means since the last evaluation.
            seconds: since the run began.
            is_untrained: whether the network is as it was drawn.

        Raises:
            Diverged: if J is not finite on the validation split.
        """
        model = self._model
        step = model.global_step
        validation: Row = {}
        if not is_untrained:
            validation = named(self._devices.evaluate(model, self._dataset))
            if not math.isfinite(validation["J"]):
                raise diverged(model, step)
        test = named(self._devices.evaluate(model, self._test)) if self._test is not None and not is_untrained else {}
        training = named(training)
        rates = [float(keras.ops.convert_to_numpy(rate)) for rate in model.optimizer.learning_rates]
        loss_rates = self._loss_rates(step)
        return {
            "step": step,
            "epoch": step / self._epoch_steps,
            "seconds": seconds,
            "J": validation.get("J", math.nan),
            "top1": validation.get("top1", math.nan),
            "top5": validation.get("top5", math.nan),
            **{f"test_{name}": test.get(name, math.nan) for name in self._tested},
            "train_J": training.get("J", math.nan),
            "R": training.get("R", math.nan) if self._learns else math.nan,
            "train_top1": training.get("top1", math.nan),
            "train_top5": training.get("top5", math.nan),
            "learning_rate_J": rates[0],
            "learning_rate_R": rates[1] if self._learns else math.nan,
            "loss_rate_J": loss_rates[0],
            "loss_rate_R": loss_rates[1] if self._learns else math.nan,
            **self._weights.row(step),
            "corrupt_records": self._dataset.corrupt_count(step),
            **self._alignment.row(self._dataset),
        }

    def _loss_rates(self, step: int) -> tuple[float, float]:
        """Returns the rates by which J and R are multiplied at the global step `step`, the one to be made next.

        Where J and R take turns, it is the rate at the next turn of each: at the step of a row it is always R's turn.
        """
        rates = [0.0, 0.0]
        for ahead in range(self._turns):
            present = map(float, self._model.optimizer.rates(step + ahead))
            rates = [rate or new for rate, new in zip(rates, present, strict=True)]
            if all(rates):
                break
        return rates[0], rates[1]


class ScheduledWeights:
    """The values of those weights of rules that are schedules, as columns `weight/PRIMITIVE`.

    Where a run has several rules, their places in the list tell them apart, as in key paths of the configuration:
    `weight/0.amp`, `weight/1.amp`.

    Args:
        config: the run's configuration.
        steps_per_epoch: the length of an epoch of global steps.
    """

    def __init__(self, config: Config, steps_per_epoch: int):
        rules = [rule.bind(config.seed, steps_per_epoch) for rule in config.rules]
        self._rules = {f"{place}." if len(rules) > 1 else "": rule for place, rule in enumerate(rules)}

    def row(self, step: int) -> Row:
        """Returns column -> the weight at a global step."""
        return {
            f"weight/{place}{name}": float(schedules.evaluate(weight, step, rule.steps_per_epoch))
            for place, rule in self._rules.items()
            for name, weight in rule
            if isinstance(weight, schedules.Constant)
        }


def kernels(layer: Any) -> tuple[np.ndarray, np.ndarray]:
    """Returns W and B of an aligned layer, B in the layout of W."""
    backward = layer.linear_map().transpose(keras.ops.convert_to_tensor(layer.backward_kernel))
    return keras.ops.convert_to_numpy(layer.kernel), backward.numpy()


class Kernels:
    """Keeps W and B of some layers at every evaluation: `STEP.npz` with the arrays LAYER/forward and LAYER/backward.

    Both are in the layout of W: `(inputs, outputs)` or `(height, width, inputs, outputs)`. A file is a function of its
    step, so that a resumed run may write it again.

    Args:
        model: the model that is trained.
        path: the directory, made with the first file.
        patterns: of the layers' names, as in a shell; a network without alignment keeps none.

    Raises:
        ConfigError: if a pattern takes none of the aligned layers.
    """

    def __init__(self, model: AlignedModel, path: str, patterns: Sequence[str]):
        layers = aligned_layers(model)
        for pattern in patterns:
            if layers and not fnmatch.filter([layer.name for layer in layers], pattern):
                names = ", ".join(layer.name for layer in layers)
                raise ConfigError(f"logging.kernels: {pattern!r} takes no aligned layer; the layers are: {names}")
        self._layers = [layer for layer in layers if any(fnmatch.fnmatchcase(layer.name, name) for name in patterns)]
        self._path = path

    def __call__(self, row: Row) -> None:
        """Writes the kernels of one row."""
        if not self._layers:
            return
        arrays = {}
        for layer in self._layers:
            arrays[f"{layer.name}/forward"], arrays[f"{layer.name}/backward"] = kernels(layer)
        content = io.BytesIO()
        np.savez(content, **arrays)
        tf.io.gfile.makedirs(self._path)
        write_whole(tf.io.gfile.join(self._path, f"{int(row['step'])}.npz"), content.getvalue())


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
        self._plot: _Scatter | None = None

    def __call__(self, row: Row) -> None:
        """Writes one row."""
        step = int(row["step"])
        with self._writer.as_default(step=step):
            for key, value in row.items():
                if key != "step" and not math.isnan(value):
                    tf.summary.scalar(key, value)
            for layer in aligned_layers(self._model):
                forward, backward = kernels(layer)
                if self._options.histograms:
                    tf.summary.histogram(f"forward_kernel/{layer.name}", forward)
                    tf.summary.histogram(f"backward_kernel/{layer.name}", backward)
                if self._options.scatter:
                    chosen = np.linspace(0, forward.size - 1, min(self.POINTS, forward.size)).astype(int)
                    self._plot = self._plot or _Scatter()
                    image = self._plot.image(layer.name, forward.ravel()[chosen], backward.ravel()[chosen])
                    tf.summary.image(f"weights/{layer.name}", image[None])
        self._writer.flush()


class _Scatter:
    """Draws B^T against W. One figure serves all layers and rows: to lay one out takes longer than to draw it."""

    def __init__(self):
        from matplotlib.backends.backend_agg import FigureCanvasAgg  # Half a second, and most tests draw nothing.
        from matplotlib.figure import Figure

        figure = Figure(figsize=(3.2, 3.2), dpi=100)
        self._canvas = FigureCanvasAgg(figure)
        self._axes = figure.add_axes((0.22, 0.15, 0.74, 0.75))
        (self._points,) = self._axes.plot([], [], ".", markersize=2, color="0.2")
        self._axes.axline((0, 0), slope=1, linestyle=":", color="0.5")
        self._axes.set(xlabel="forward weight", ylabel="backward weight")

    def image(self, title: str, forward: np.ndarray, backward: np.ndarray) -> np.ndarray:
        """Returns an image `(height, width, 4)`, uint8.

        Args:
            title: stands above.
            forward: weights `(points,)` along the horizontal axis.
            backward: their backward weights, `(points,)`.
        """
        self._points.set_data(forward, backward)
        self._axes.set_title(title)
        self._axes.relim()
        self._axes.autoscale_view()
        self._canvas.draw()
        return np.array(self._canvas.buffer_rgba())


class Progress:
    """Shows a bar over all steps of the run with the time left, and a line per evaluation.

    Args:
        write_line: what prints a line; `tqdm.write` fits, so that the bar stays below.
        bar: makes the bar from the total number of steps and the number already done, such as `tqdm.tqdm`.
    """

    def __init__(self, write_line: Callable[[str], None], bar: Callable[..., Any]):
        self.write_line = write_line
        self._make_bar = bar
        self._bar: Any = None

    def plan(self, start: int, total: int) -> None:
        """Opens the bar: the run goes from step `start` to step `total`."""
        self._bar = self._make_bar(total=total, initial=start, unit="step", desc="training")

    def close(self) -> None:
        """Closes the bar."""
        if self._bar is not None:
            self._bar.close()

    def advance(self, steps: int) -> None:
        """Moves the bar by so many steps."""
        self._bar.update(steps)

    def __call__(self, row: Row) -> None:
        """Prints the line of one evaluation."""
        angles = [v for key, v in row.items() if key.startswith("weight_angle/") and not math.isnan(v)]
        parts = [f"step {int(row['step'])}", f"epoch {row['epoch']:g}"]
        if not math.isnan(row["J"]):
            parts += [f"J {row['J']:.4f}", f"top-1 {100 * row['top1']:.2f} %"]
        if not math.isnan(row["R"]):
            parts.append(f"R {row['R']:.4g}")
        if angles:
            parts.append(f"angle of W to B^T {min(angles):.1f} to {max(angles):.1f} degrees")
        self.write_line("  ".join(parts))
