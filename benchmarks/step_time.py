"""Times a training step of each rule against plain Keras backpropagation, interleaved in one process.

Machine speed drifts; the ratio of two steps made right after one another does not. A round makes one step of every
contender in turn; the figure of a contender is the median over the rounds of its time over the baseline's.

    python benchmarks/step_time.py --rounds 15
    python benchmarks/step_time.py --check      # exits with 1 if a ratio is above its limit
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf

from neural_alignment.alignments import (
    Activation,
    Alignment,
    Feedback,
    Information,
    InputPath,
    KolenPollack,
    SignSymmetry,
    Symmetric,
    WeightMirror,
)
from neural_alignment.models import resnet
from neural_alignment.training import AlignedModel
from optimizers import MultiOptimizer

NOISE = InputPath(noise="normal", stddev=0.5)


@dataclass(frozen=True)
class Contender:
    """A rule, what counting convolutions allows at best, and the limit that the project holds to."""

    rule: Alignment
    floor: float
    limit: float | None


CONTENDERS = {
    "feedback": Contender(Feedback(), 1.0, 1.05),
    "sign_symmetry": Contender(SignSymmetry(), 1.0, None),
    "kolen_pollack": Contender(KolenPollack(decay=1e-4), 1.0, 1.05),
    "symmetric": Contender(Symmetric(self_=2e-3, decay=2e-3), 1.0, 1.10),
    "activation": Contender(Activation(amp=2e-3, sparse=2e-3), 5 / 3, 1.70),
    "weight_mirror": Contender(WeightMirror(amp=1e-3, decay=1e-3, input=NOISE), 5 / 3, 2.1),
    "information": Contender(Information(amp=1e-3, decay=1e-3, null=1e-3, input=NOISE), 2.0, 2.3),
}


def network(rule: Alignment | None, width: int) -> keras.Model:
    """Returns ResNet-18 for 32-pixel images."""
    return resnet(18, 1, 10, (32, 32, 3), alignment=rule, stem="cifar", width=width, weight_decay=1e-4)


def baseline(width: int) -> keras.Model:
    """Returns the network as plain Keras trains it: native layers, native model, one optimizer."""
    native = keras.models.clone_model(network(None, width), clone_function=_native)
    native.compile(keras.optimizers.SGD(0.01, 0.9, nesterov=True), _loss(), jit_compile=False)
    return native


def _native(layer: keras.Layer) -> keras.Layer:
    kinds = {"Dense": keras.layers.Dense, "Conv2D": keras.layers.Conv2D}
    config = {k: v for k, v in layer.get_config().items() if not k.startswith("alignment")}
    return kinds.get(type(layer).__name__, type(layer)).from_config(config)


def aligned(rule: Alignment, width: int) -> keras.Model:
    """Returns the network as this library trains it by `rule`."""
    model = network(rule, width)
    model = AlignedModel(model.inputs, model.outputs)
    optimizers = [keras.optimizers.SGD(0.01, 0.9, nesterov=True)]
    if not rule.tie_gradient:
        optimizers.append(keras.optimizers.Adam(1e-3))
    model.compile(MultiOptimizer(optimizers), _loss(), jit_compile=False)
    return model


def _loss() -> keras.losses.Loss:
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def stepper(model: keras.Model, images: tf.Tensor, labels: tf.Tensor) -> Callable[[], float]:
    """Returns a function that makes one step and returns its seconds."""
    batches = iter(tf.data.Dataset.from_tensors((images, labels)).repeat())
    function = model.make_train_function() or model.train_function

    def step() -> float:
        start = time.perf_counter()
        logs = function(batches)
        tf.nest.map_structure(lambda value: value.numpy(), logs)
        return time.perf_counter() - start

    return step


def measure(names: list[str], batch: int, width: int, rounds: int) -> dict[str, list[float]]:
    """Returns the ratios of every round, and under `baseline` the baseline's seconds."""
    generator = np.random.default_rng(0)
    images = tf.constant(generator.normal(size=(batch, 32, 32, 3)), tf.float32)
    labels = tf.constant(generator.integers(0, 10, batch), tf.int32)
    steps = {"baseline": stepper(baseline(width), images, labels)}
    steps |= {name: stepper(aligned(CONTENDERS[name].rule, width), images, labels) for name in names}
    for step in steps.values():
        step()
        step()
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            seconds[name].append(step())
    base = seconds["baseline"]
    ratios = {name: [t / b for t, b in zip(seconds[name], base, strict=True)] for name in names}
    return {"baseline": base, **ratios}


def main() -> int:
    """Prints the table; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--rules", nargs="*", default=list(CONTENDERS), choices=list(CONTENDERS))
    parser.add_argument("--check", action="store_true", help="exit with 1 if a ratio is above its limit")
    arguments = parser.parse_args()
    ratios = measure(arguments.rules, arguments.batch, arguments.width, arguments.rounds)
    base = statistics.median(ratios.pop("baseline"))
    print(
        f"CIFAR ResNet-18, width {arguments.width}, batch {arguments.batch}, {arguments.rounds} rounds; "
        f"baseline {base:.3f} s per step; TensorFlow {tf.__version__}, Keras {keras.__version__}, "
        f"Python {platform.python_version()}, {platform.machine()}, {os.cpu_count()} cores\n"
    )
    print("| rule | step time over backpropagation (median) | quartiles | floor | limit |")
    print("|---|---|---|---|---|")
    late = []
    for name, values in ratios.items():
        contender = CONTENDERS[name]
        median = statistics.median(values)
        low, _, high = statistics.quantiles(values, n=4)
        limit = "" if contender.limit is None else f"{contender.limit:.2f}"
        print(f"| {name} | {median:.2f} | {low:.2f} to {high:.2f} | {contender.floor:.2f} | {limit} |")
        if contender.limit is not None and median > contender.limit:
            late.append(name)
    if late:
        print(f"\nabove the limit: {', '.join(late)}")
    return int(bool(late) and arguments.check)


if __name__ == "__main__":
    sys.exit(main())
