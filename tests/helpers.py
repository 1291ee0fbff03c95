"""Comparisons, and an independent float64 implementation of the layers in NumPy."""

from __future__ import annotations

import inspect
import sys
import traceback
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neural_alignment.alignments import layerwise_rules
from optimizers import noise

SMALL_RUN = """
epochs: 2
batch_size: 200
data: {source: digits}
model: {name: fc, hidden: [8]}
alignment: {rule: symmetric, self_: 2.0e-3, decay: 2.0e-3}
optimization:
  forward: {name: momentum, learning_rate: 0.02}
  backward: {name: sgd, learning_rate: 0.1}
evaluation: {batch_size: 360, probe_examples: 0}
logging: {tensorboard: false}
"""
"""A configuration that trains in a second."""

RUN_ON_REPLICAS = """
epochs: 2
batch_size: 256
max_steps: 12
data: {source: digits}
model: {name: convnet, filters: [4]}
alignment: {rule: weight_mirror, amp: 1.0e-2, decay: 1.0e-2, input: {noise: normal, batch_center: true}}
optimization:
  forward: {name: momentum, learning_rate: 0.02}
  backward: {name: adam, learning_rate: 2.0e-3}
  alternation: 1
evaluation: {batch_size: 56}
logging: {tensorboard: false}
checkpoints: {every_steps: 5}
runtime: {synchronize_batch_norm: true}
"""
"""A configuration of which several replicas and one must train the same weights."""

TOLERANCE = {"float64": 1e-9, "float32": 2e-5, "float16": 5e-3, "bfloat16": 3e-2, "finite difference": 1e-6}
"""Largest allowed error, relative to the largest expected entry."""

Array = np.ndarray


needs_functions = pytest.mark.skipif(
    [*map(int, metadata.version("keras").split(".")[:2])] < [3, 15],
    reason="Keras takes functions as regularizers and constraints since version 3.15",
)
"""Skips a test of layers with such functions if the installed Keras does not take them."""


def exhaustive_unless(cases: Iterable, often: Collection | Callable) -> list:
    """Returns parameters of a test. Cases that are not in `often` are only tested by `make test-exhaustive`.

    Args:
        cases: the cases, for several arguments as tuples.
        often: the cases that `make test` has too, or a function that returns whether it has a case.
    """
    chosen = often if callable(often) else often.__contains__
    rest = pytest.mark.exhaustive
    return [
        pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=() if chosen(case) else rest)
        for case in cases
    ]


def screen_of(line: Callable[[str], Any]) -> Any:
    """Returns a screen that passes lines on and shows no status."""
    from neural_alignment.jobs.batch import Screen

    return Screen(line, lambda status: None)


def table_in(page: Path, name: str = "table") -> list[str]:
    """Returns the lines between the comments `<!-- name -->` and `<!-- end -->` of a page."""
    return page.read_text().partition(f"<!-- {name} -->\n")[2].partition("<!-- end -->")[0].splitlines()


def for_each(names: str, rows: Iterable) -> Callable:
    """Runs a test function on every row in one test, which reports all failing rows by name.

    It replaces `parametrize` for hundreds of rows: pytest needs more time for a test than most of these take. Each row
    has a separate folder as `tmp_path`; it shares all other fixtures with the other rows.

    Args:
        names: the arguments that a row gives, separated by commas.
        rows: the values; tuples for several arguments.
    """
    arguments, rows = [name.strip() for name in names.split(",")], list(rows)
    assert rows

    def decorate(test: Callable) -> Callable:
        def on_all_rows(**fixtures: Any) -> None:
            failures = []
            for number, row in enumerate(rows):
                given = {**fixtures, **dict(zip(arguments, row if len(arguments) > 1 else (row,), strict=True))}
                if "tmp_path" in fixtures:
                    given["tmp_path"] = fixtures["tmp_path"] / str(number)
                    given["tmp_path"].mkdir()
                try:
                    test(**given)
                except (Exception, pytest.fail.Exception) as error:
                    trace = "".join(traceback.format_exception(type(error), error, error.__traceback__, limit=-2))
                    failures.append(f"{test.__name__}[{row}]:\n{trace}")
            if failures:
                pytest.fail(f"{len(failures)} of {len(rows)} rows fail\n\n" + "\n".join(failures), pytrace=False)

        signature = inspect.signature(test)
        others = [each for name, each in signature.parameters.items() if name not in arguments]
        assert len(signature.parameters) == len(others) + len(arguments)
        on_all_rows.__signature__ = signature.replace(parameters=others)
        for name in ("__name__", "__doc__", "__module__"):
            setattr(on_all_rows, name, getattr(test, name))
        return on_all_rows

    return decorate


def assert_close(actual: Any, expected: Any, kind: str | None = None) -> None:
    """Fails unless `actual` equals `expected` within the tolerance of `kind`, by default the dtype of `actual`."""
    actual = np.asarray(actual)
    tolerance = TOLERANCE[kind or (str(actual.dtype) if actual.dtype.kind in "fV" else "float64")]
    actual, expected = actual.astype(np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape, f"shape {actual.shape}, expected {expected.shape}"
    scale = np.abs(expected).max(initial=0.0) or 1.0
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance * scale)


def distance(actual: Any, other: Any) -> float:
    """Returns ||actual - other|| / max(||actual||, ||other||), or 0 if both are 0."""
    actual, other = np.asarray(actual, np.float64), np.asarray(other, np.float64)
    scale = max(np.linalg.norm(actual), np.linalg.norm(other))
    return float(np.linalg.norm(actual - other) / scale) if scale else 0.0


def assert_differs(actual: Any, wrong: Any, by: float = 1e-3) -> None:
    """Fails unless `actual` differs clearly from `wrong`, the result of a plausible mistake."""
    assert distance(actual, wrong) > by


@dataclass(frozen=True)
class DenseReference:
    """x -> x W over the last axis."""

    def project(self, x: Array, kernel: Array) -> Array:
        """Returns x W."""
        return np.einsum("...i,io->...o", x, kernel)

    def reconstruct(self, y: Array, kernel: Array, shape: tuple[int, ...]) -> Array:
        """Returns y W^T."""
        assert y.shape[:-1] == shape[:-1]
        return np.einsum("...o,io->...i", y, kernel)

    def correlate(self, x: Array, y: Array, shape: tuple[int, ...]) -> Array:
        """Returns the sum of the outer products of x and y."""
        return np.einsum("pi,po->io", x.reshape(-1, shape[0]), y.reshape(-1, shape[1]))

    def layout(self, kernel: Array) -> Array:
        """Converts a kernel from the layout of W to that of B, or back."""
        return kernel.T


@dataclass(frozen=True)
class ConvReference:
    """A two-dimensional convolution, NHWC, written as loops over the taps of the kernel."""

    strides: tuple[int, int] = (1, 1)
    padding: str = "VALID"
    dilations: tuple[int, int] = (1, 1)

    def _axis(self, size: int, taps: int, axis: int) -> tuple[int, int, int]:
        """Returns the output size and the padding before and after one axis."""
        stride, reach = self.strides[axis], (taps - 1) * self.dilations[axis] + 1
        if self.padding == "VALID":
            return (size - reach) // stride + 1, 0, 0
        out = -(-size // stride)
        total = max((out - 1) * stride + reach - size, 0)
        return out, total // 2, total - total // 2

    def _taps(self, shape: tuple[int, ...], kernel_shape: tuple[int, ...]):
        """Returns the padding, and for each tap the slice of the padded input that it reads."""
        (rows, top, bottom), (columns, left, right) = (self._axis(shape[1 + a], kernel_shape[a], a) for a in (0, 1))
        taps = {}
        for i in range(kernel_shape[0]):
            for j in range(kernel_shape[1]):
                r, c = i * self.dilations[0], j * self.dilations[1]
                taps[i, j] = (
                    slice(None),
                    slice(r, r + (rows - 1) * self.strides[0] + 1, self.strides[0]),
                    slice(c, c + (columns - 1) * self.strides[1] + 1, self.strides[1]),
                )
        return ((0, 0), (top, bottom), (left, right), (0, 0)), taps, (rows, columns)

    def project(self, x: Array, kernel: Array) -> Array:
        """Returns conv(x, W)."""
        pad, taps, (rows, columns) = self._taps(x.shape, kernel.shape)
        padded = np.pad(x, pad)
        out = np.zeros((x.shape[0], rows, columns, kernel.shape[3]))
        for tap, seen in taps.items():
            out += padded[seen] @ kernel[tap]
        return out

    def reconstruct(self, y: Array, kernel: Array, shape: tuple[int, ...]) -> Array:
        """Returns the adjoint of `project` at y."""
        pad, taps, _ = self._taps(shape, kernel.shape)
        padded = np.zeros([size + sum(p) for size, p in zip(shape, pad, strict=True)])
        for tap, seen in taps.items():
            padded[seen] += y @ kernel[tap].T
        return padded[:, pad[1][0] : pad[1][0] + shape[1], pad[2][0] : pad[2][0] + shape[2]]

    def correlate(self, x: Array, y: Array, shape: tuple[int, ...]) -> Array:
        """Returns the gradient of <project(x, W), y> to W."""
        pad, taps, _ = self._taps(x.shape, shape)
        padded = np.pad(x, pad)
        out = np.zeros(shape)
        for tap, seen in taps.items():
            out[tap] = np.einsum("nhwi,nhwo->io", padded[seen], y)
        return out

    def layout(self, kernel: Array) -> Array:
        """Returns `kernel`: both kernels of a convolution have the same layout."""
        return kernel


def finite_difference(function: Any, at: Array, epsilon: float = 1e-6) -> Array:
    """Returns the gradient of a scalar `function` by central differences."""
    gradient = np.zeros_like(at)
    for index in np.ndindex(*at.shape):
        step = np.zeros_like(at)
        step[index] = epsilon
        gradient[index] = (function(at + step) - function(at - step)) / (2 * epsilon)
    return gradient


def two_replicas() -> Any:
    """Returns the strategy of a run on two parts of the CPU.

    Two plain `tf.distribute.MirroredStrategy` in one process would share the keys of their collective operations.
    """
    from neural_alignment.config import Runtime
    from neural_alignment.training import distribution

    return distribution.create(Runtime(strategy="mirrored", replicas=2)).strategy


def run_command(monkeypatch: Any, capsys: Any, *arguments: Any) -> tuple[int, str, str]:
    """Runs the command line in this process; returns exit code, standard output and standard error."""
    from neural_alignment import cli

    monkeypatch.setattr(sys, "argv", ["neural-alignment", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    captured = capsys.readouterr()
    return end.value.code or 0, captured.out, captured.err


def install_plugin(folder: Path, module: str) -> None:
    """Makes a folder on the import path an installed package `outside` whose plugin, called ours, is a module."""
    metadata = folder / "outside-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: outside\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[neural_alignment.plugins]\nours = {module}\n")


def relu(x: Array) -> Array:
    """Returns max(x, 0)."""
    return np.maximum(x, 0.0)


def center_features(x: Array) -> Array:
    """Subtracts from each example its mean."""
    return x - x.reshape(len(x), -1).mean(axis=1).reshape([-1] + [1] * (x.ndim - 1))


def normalize_features(x: Array) -> Array:
    """Centres each example and divides it by its norm."""
    x = center_features(x)
    norms = np.sqrt((x.reshape(len(x), -1) ** 2).sum(axis=1))
    return x / np.maximum(norms, 1e-6).reshape([-1] + [1] * (x.ndim - 1))


def center_batch(x: Array) -> Array:
    """Subtracts from each position its mean over the batch."""
    return x - x.mean(axis=0)


def standardise(x: Array, options: dict) -> Array:
    """Applies feature centring, feature normalisation and batch centring, in this order, as set in `options`."""
    if options.get("feature_center"):
        x = center_features(x)
    if options.get("feature_normalize"):
        x = normalize_features(x)
    if options.get("batch_center"):
        x = center_batch(x)
    return x


def batch_mean(x: Array) -> float:
    """Returns the sum over all entries divided by the batch size."""
    return x.sum() / len(x)


def reference_signals(config: dict, linear: Any, x: Array, w: Array, b: Array, bias: Array | None, activation: Any):
    """Returns the signals of a layer, with the operations in the order of the published code.

    Args:
        config: the mapping under `alignment:`. Its noise is already in `x`.
        linear: `DenseReference` or `ConvReference`.
        x: the input.
        w: W.
        b: B in the layout of W.
        bias: the bias, or None.
        activation: the nonlinearity that follows, or None.
    """
    options = {"input": {}, "forward_output": {}, "backward_output": {}, **config}
    features = {k: v for k, v in options["input"].items() if k in ("feature_center", "feature_normalize")}
    x = standardise(x, features)
    x_back = center_batch(x) if options["input"].get("batch_center") else x

    def activity(projection, out):
        if out.get("bias") and bias is not None:
            projection = projection + bias
        return activation(projection) if out.get("relu") and activation is not None else projection

    forward = activity(linear.project(x, w), options["forward_output"])
    backward = activity(linear.project(x_back, b), options["backward_output"])
    return {
        "input": x,
        "backward_input": x_back,
        "forward": standardise(forward, options["forward_output"]),
        "backward": standardise(backward, options["backward_output"]),
        "forward_reconstruction": standardise(linear.reconstruct(forward, b, x.shape), options["forward_output"]),
        "backward_reconstruction": standardise(linear.reconstruct(backward, w, x.shape), options["backward_output"]),
    }


def product_kernel(learned: Array, fixed: Array) -> Array:
    """Returns the product of two backward kernels, in the layout of W, if the last axis of both is that of the outputs.

    Args:
        learned: `(..., inputs, groups * hidden units)`.
        fixed: `(groups, hidden units, outputs)`.
    """
    groups, hidden, _ = fixed.shape
    parts = learned.reshape(*learned.shape[:-1], groups, hidden)
    return np.concatenate([parts[..., group, :] @ fixed[group] for group in range(groups)], axis=-1)


def reference_carried(
    rule: str, w: Array, b: Array, name: str, step: int = 0, seed: int = 0, fixed: Any = None
) -> Array:
    """Returns the kernel through which a rule sends the error, in the layout of W.

    Args:
        rule: name of the rule.
        w: W.
        b: the stored B in the layout of W.
        name: name of the layer.
        step: the global step.
        seed: seed of the rule.
        fixed: the second backward weight, an array or a variable, or None.
    """
    if rule == "pfa":
        return product_kernel(b, np.asarray(fixed))
    signs = np.sign(w)
    if rule == "sign_symmetry":
        return signs * np.linalg.norm(b) / np.linalg.norm(signs)
    if rule == "frsf":
        return signs * np.abs(b)
    if rule == "brsf":
        places = noise.resample(np.arange(b.size), noise.key(seed, name, step)).numpy()
        return signs * np.abs(b.ravel()[places].reshape(b.shape))
    return b


PRIMITIVES = {
    "decay": lambda s: 0.5 * sum((kernel**2).sum() for kernel in s["moved kernels"]),
    "amp": lambda s: -batch_mean(s["backward"] * s["forward"]),
    "null": lambda s: 0.5 * batch_mean(s["reconstruction"] ** 2),
    "sparse": lambda s: 0.5 * sum(batch_mean(projection**2) for projection in s["moved projections"]),
    "self_": lambda s: -(s["w"] * s["b"]).sum(),
}
"""Every primitive by the formula of Table 1 (Kunin et al. 2020), except `angle`: `operations` gives B its gradient.

With `update_forward` decay and sparse have a half for W. A primitive that is not here fails
`test_every_primitive_has_a_row_in_the_test_table`.
"""


def reference_regulariser(
    config: dict,
    linear: Any,
    x: Array,
    w: Array,
    b: Array,
    bias: Array | None = None,
    activation: Any = None,
    signals: Any = reference_signals,
) -> float:
    """Returns R_l: the sum of the primitives, times the weights in `config`."""
    s = {**signals(config, linear, x, w, b, bias, activation), "w": w, "b": b}
    both = config.get("update_forward")
    s["moved kernels"] = [b, w] if both else [b]
    s["moved projections"] = [s["backward"], s["forward"]] if both else [s["backward"]]
    path = "backward" if config.get("reconstruct_backward") else "forward"
    s["reconstruction"] = s[f"{path}_reconstruction"]
    values = {name: primitive(s) for name, primitive in PRIMITIVES.items()}
    if config.get("compare_reconstruction"):
        values["amp"] = -batch_mean(s["input"] * s["reconstruction"])
    if config.get("sparse_decay"):
        values["decay"] = values["sparse"]
    return sum((config[name] * value for name, value in values.items() if name in config), 0.0)


@dataclass(frozen=True)
class LayerCase:
    """A small layer: its linear map, its shapes, and its constructor in `layers`."""

    name: str
    linear: Any
    input_shape: tuple[int, ...]
    kernel_shape: tuple[int, ...]

    def arrays(self, rng: Any) -> dict[str, Array]:
        """Draws an input, W, B in the layout of W, and a bias."""
        return {
            "x": rng.normal(size=self.input_shape) + 0.3,
            "w": rng.normal(size=self.kernel_shape),
            "b": rng.normal(size=self.kernel_shape),
            "bias": rng.normal(size=self.kernel_shape[-1]),
        }

    def build(self, **options: Any) -> Any:
        """Returns the built layer of this case."""
        from neural_alignment import layers

        if isinstance(self.linear, DenseReference):
            layer = layers.Dense(self.kernel_shape[1], **options)
        else:
            geometry = {"strides": self.linear.strides, "padding": self.linear.padding.lower()}
            layer = layers.Conv2D(self.kernel_shape[3], self.kernel_shape[:2], **geometry, **options)
        layer.build(self.input_shape)
        return layer


DENSE = LayerCase("dense", DenseReference(), (4, 5), (5, 3))
SAME = LayerCase("conv same", ConvReference((1, 1), "SAME"), (3, 4, 5, 2), (2, 3, 2, 2))
VALID = LayerCase("conv valid 2", ConvReference((2, 2), "VALID"), (3, 5, 5, 2), (3, 2, 2, 2))
CASES = (DENSE, SAME, VALID)


@dataclass(frozen=True)
class RuleRow:
    """One row of the test table of rules.

    Attributes:
        weights: of the primitives; R is their weighted sum. Without weights R = 0.
        options: other options of the rule.
        operations: linear operations that R and its gradient need in a convolution, beyond those of the layer.
        run: the other options that a run needs with this rule.
    """

    weights: dict[str, float] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    operations: dict[str, int] = field(default_factory=dict)
    run: dict[str, Any] = field(default_factory=dict)


PROJECT, RECONSTRUCT, CORRELATE = "Conv2D", "Conv2DBackpropInput", "Conv2DBackpropFilter"

RULE_TABLE = {
    "feedback": RuleRow(),
    "align_prop": RuleRow(),
    "sign_symmetry": RuleRow(),
    "frsf": RuleRow(),
    "brsf": RuleRow(),
    # x (x) x_out is the gradient itself: B^T x is not needed.
    "weight_mirror": RuleRow({"amp": 1.3, "decay": 0.7}, operations={CORRELATE: 1}),
    # amp and null share the reconstruction and one gradient.
    "information": RuleRow({"amp": 1.3, "decay": 0.7, "null": 0.4}, operations={RECONSTRUCT: 1, CORRELATE: 1}),
    "symmetric": RuleRow({"self_": 0.9, "decay": 1.1}),
    # B^T x, and its gradient; W^T x is there already.
    "activation": RuleRow({"amp": 1.2, "sparse": 0.8}, operations={PROJECT: 1, CORRELATE: 1}),
    "kolen_pollack": RuleRow({"decay": 0.6}, run={"weight_decay": 0.6}),
    # With one hidden unit for each output, L has the shape of W; tests/layers/test_product_feedback.py has more.
    "pfa": RuleRow({"decay": 0.6}, {"expansion": 1}, run={"weight_decay": 0.6}),
    "align_zero": RuleRow(),
    "align_ada": RuleRow(),
    "dfa": RuleRow(),
    "drtp": RuleRow(),
    "last_layer": RuleRow(),
}
"""One row for every rule of the registry; a missing row fails `test_every_rule_has_a_row_in_the_test_table`."""

RULE_CONFIGS: dict[str, dict] = {
    name: {"rule": name, **row.weights, **row.options} for name, row in RULE_TABLE.items() if name in layerwise_rules()
}
"""A configuration of every rule that acts layer by layer."""

LEARNING = tuple(rule for rule in RULE_CONFIGS if RULE_TABLE[rule].weights)
"""The rules whose R is not zero."""

TIED = tuple(rule for rule in RULE_CONFIGS if layerwise_rules()[rule].tie_gradient)
"""The rules in which B gets a gradient of J. One optimizer trains W and B."""

FIXED = tuple(rule for rule in RULE_CONFIGS if not RULE_TABLE[rule].weights)
"""The rules that act layer by layer and do not train B."""

READS_SIGNALS = tuple(rule for rule in RULE_CONFIGS if "input" in layerwise_rules()[rule].model_fields)
"""The rules with operations on the paths of a layer."""

TABLE_5 = {
    "WM": {
        "input": {"noise": "normal", "stddev": 0.6905, "batch_center": True},
        "forward_output": {"bias": True, "relu": True, "batch_center": True},
    },
    "WM+AD": {
        "input": {"noise": "normal", "stddev": 0.95, "batch_center": True},
        "forward_output": {"bias": True, "relu": True, "batch_center": True},
    },
    "WM+AD+OPS": {
        "input": {"noise": "normal", "stddev": 0.6402, "batch_center": True},
        "forward_output": {"bias": True, "relu": True, "batch_center": True, "feature_center": True},
        "backward_output": {"relu": True, "feature_normalize": True},
    },
    "IA": {
        "input": {"noise": "normal", "stddev": 0.8176},
        "forward_output": {"bias": True, "relu": True, "batch_center": True, "feature_center": True},
        "backward_output": {"bias": True, "feature_center": True, "feature_normalize": True},
    },
}
"""The operations of Table 5, column by column."""
