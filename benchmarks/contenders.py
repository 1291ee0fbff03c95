"""The contenders: the learning rules, backpropagation in Keras, and the theoretical minimum of a step."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from benchmarks.common import BASELINE, PLAIN, Samples, interleave
from neural_alignment.alignments import (
    Activation,
    Alignment,
    Feedback,
    FixedMagnitudes,
    Information,
    InputPath,
    KolenPollack,
    ProductFeedback,
    RedrawnMagnitudes,
    SignSymmetry,
    Symmetric,
    WeightMirror,
)
from neural_alignment.layers import ALIGNED_FORMS
from neural_alignment.models import BatchAxisNormalization, FusedBatchNormalization
from neural_alignment.training import AlignedModel
from neural_alignment.training.costs import LayerCost, products_of_weights
from optimizers import Adam, Momentum, MultiOptimizer, RateScheduler

NORMAL = InputPath(noise="normal", stddev=0.5)
CHEAP = InputPath(noise="sign", stddev=0.5)
"""The fastest noise: one random bit per number, with the same variance."""

Build = Callable[[Alignment | None], keras.Model]
Step = Callable[[], Mapping[str, float]]


@dataclass(frozen=True)
class Contender:
    """A rule and its allowed cost.

    Attributes:
        rule: the rule.
        products: number of products of a kernel with a batch that R needs in each layer. Drawing noise is not counted.
        allowance: allowed excess of the step time over the floor, as a fraction.
    """

    rule: Alignment
    products: int
    allowance: float


ALLOWANCE = 0.05
"""Allowed excess of the step time over the floor."""
NORMAL_NOISE = 0.08
"""As `ALLOWANCE`, for rules that draw normal noise for each input. The floor counts no random numbers, whose bits take
4 ns each."""
REDRAWING = 0.10
"""As `ALLOWANCE`, for the rule that draws a magnitude for each weight from the initial ones. Random bits and a read
from a table in the cache take about 13 ns of processor time for each."""

RULES = {
    "feedback": Contender(Feedback(), 0, ALLOWANCE),
    "sign_symmetry": Contender(SignSymmetry(), 0, ALLOWANCE),
    "frsf": Contender(FixedMagnitudes(), 0, ALLOWANCE),
    "brsf": Contender(RedrawnMagnitudes(), 0, REDRAWING),
    "kolen_pollack": Contender(KolenPollack(decay=1e-4), 0, ALLOWANCE),
    "pfa": Contender(ProductFeedback(decay=1e-4), 0, ALLOWANCE),
    "symmetric": Contender(Symmetric(self_=2e-3, decay=2e-3), 0, ALLOWANCE),
    "activation": Contender(Activation(amp=2e-3, sparse=2e-3), 2, ALLOWANCE),
    "weight_mirror": Contender(WeightMirror(amp=1e-3, decay=1e-3, input=NORMAL), 2, NORMAL_NOISE),
    "weight_mirror, sign noise": Contender(WeightMirror(amp=1e-3, decay=1e-3, input=CHEAP), 2, ALLOWANCE),
    "information": Contender(Information(amp=1e-3, decay=1e-3, null=1e-3, input=NORMAL), 3, NORMAL_NOISE),
    "information, sign noise": Contender(Information(amp=1e-3, decay=1e-3, null=1e-3, input=CHEAP), 3, ALLOWANCE),
}
"""All rules. Products: `activation` projects by B and correlates; `weight_mirror` projects the noise by W and
correlates; `information` also reconstructs by B."""


def floor(
    costs: Sequence[LayerCost], products: float, losses: Literal["J", "R", "JR"] = "JR", batch: int | None = None
) -> float:
    """Returns the minimum time of a step relative to backpropagation (the floor), counting only multiplications.

    Backpropagation takes three products per layer, except in the first layer, which sends no error back. A step that
    trains only R takes the forward pass and the products of R.

    Args:
        costs: costs of the layers.
        products: number of products of R with each kernel; a fraction if R uses fewer examples.
        losses: the losses that are trained.
        batch: number of examples in a step. Products of two weights are computed once in a step, so each example has
            1 / batch of their cost. Without it they are left out.
    """
    forward = sum(cost.product for cost in costs)
    backpropagation = 3 * forward - costs[0].product
    j_cost = backpropagation if "J" in losses else forward
    if "J" in losses and batch is not None:
        j_cost += products_of_weights(costs) / batch
    return (j_cost + (products * forward if "R" in losses else 0)) / backpropagation


def baseline(build: Build) -> keras.Model:
    """Returns the network in Keras: native layers, native model, one optimizer.

    Like all contenders except `PLAIN` it uses the batch normalisation of this library. With Keras' slower layer in the
    baseline, the rules would seem cheaper than they are.
    """
    return _compiled(keras.models.clone_model(build(None), clone_function=_native))


def plain(build: Build, optimizer: keras.optimizers.Optimizer | None = None) -> keras.Model | None:
    """Returns the network in Keras, with Keras' own batch normalisation; None if it is the same as `baseline`.

    Args:
        build: makes the network.
        optimizer: its optimizer. Default: `sgd()`.
    """
    model = build(None)
    if not any(isinstance(layer, tuple(_PLAIN_NORMS)) for layer in model.layers):
        return None
    copy = keras.models.clone_model(model, clone_function=lambda layer: _plain_norm(_native(layer)))
    return _compiled(copy, optimizer)


def backpropagation(build: Build) -> dict[str, keras.Model]:
    """Returns `BASELINE` and, if it differs, `PLAIN`, by name."""
    models = {BASELINE: baseline(build), PLAIN: plain(build)}
    return {name: model for name, model in models.items() if model is not None}


def _compiled(model: keras.Model, optimizer: keras.optimizers.Optimizer | None = None) -> keras.Model:
    model.compile(optimizer or sgd(), loss(), jit_compile=False)
    return model


ALIGNED_ONLY = ("alignment", "parameterization")
"""Prefixes of the options that native layers do not have."""


def _native(layer: keras.Layer) -> keras.Layer:
    kinds = {form: native for native, form in ALIGNED_FORMS.items()}
    config = {key: value for key, value in layer.get_config().items() if not key.startswith(ALIGNED_ONLY)}
    return kinds.get(type(layer), type(layer)).from_config(config)


_PLAIN_NORMS: dict[type, dict[str, Any]] = {
    FusedBatchNormalization: {},
    BatchAxisNormalization: {"center": False, "scale": False},
}
"""Maps each batch normalisation of this library to options of Keras' layer. Keras has no layer that normalises each
position of an image separately, as `BatchAxisNormalization` does; in its place each channel is normalised."""


def _plain_norm(layer: keras.Layer) -> keras.Layer:
    """Returns Keras' own layer in place of a batch normalisation of this library."""
    options = _PLAIN_NORMS.get(type(layer))
    if options is None:
        return layer
    return keras.layers.BatchNormalization.from_config({**layer.get_config(), **options})


def aligned(
    build: Build,
    rule: Alignment,
    alternation: int | None = None,
    optimizers: Sequence[keras.optimizers.Optimizer] | None = None,
) -> AlignedModel:
    """Returns the network with the layers of this library and `rule`.

    Args:
        build: builds the network.
        rule: the rule of all layers.
        alternation: steps of J per step of R. None trains both at every step.
        optimizers: optimizers of W and B. Default: momentum and Adam, as in the paper.
    """
    model = build(rule)
    model = AlignedModel(model.input, model.output)
    if optimizers is None:
        optimizers = [Momentum(0.01)]
        if rule.learns and not rule.tie_gradient:
            optimizers.append(Adam(1e-3))
    scheduler = None if alternation is None else RateScheduler(steps_per_epoch=100, alternation=alternation)
    model.compile(MultiOptimizer(optimizers, scheduler), loss(), jit_compile=False)
    return model


def sgd() -> keras.optimizers.SGD:
    """Returns the optimizer of plain Keras: Nesterov momentum 0.9, as for J in all contenders."""
    return keras.optimizers.SGD(0.01, 0.9, nesterov=True)


def loss() -> keras.losses.Loss:
    """Returns the task loss, which is the same for all contenders."""
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def batch_of(shape: Sequence[int], classes: int = 10) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns random inputs of `shape` (batch axis first) and random labels."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, classes, shape[0])
    return tf.constant(generator.normal(size=tuple(shape)), tf.float32), tf.constant(labels, tf.int32)


def timed(step: Callable[[], object]) -> Step:
    """Returns a function that runs a step and returns its wall-clock seconds and the CPU seconds of all threads."""

    def measured() -> dict[str, float]:
        wall, cpu = time.perf_counter(), time.process_time()
        step()
        return {"seconds": time.perf_counter() - wall, "CPU seconds": time.process_time() - cpu}

    return measured


def stepper(model: keras.Model, batch: tuple[tf.Tensor, tf.Tensor]) -> Step:
    """Returns a function that runs and times one training step, as in `fit`. Replicas share the batch."""
    strategy = model.distribute_strategy
    size = len(batch[0]) // strategy.num_replicas_in_sync
    data = tf.data.Dataset.from_tensor_slices(batch).batch(size, drop_remainder=True).cache().repeat()
    batches = iter(strategy.distribute_datasets_from_function(lambda context: data))
    function = model.make_train_function() or model.train_function
    return timed(lambda: tf.nest.map_structure(lambda value: value.numpy(), function(batches)))


def measure_cases(samples: Samples, sizes: Mapping[str, Any], steps: Callable[[Any], Mapping[str, Step]]) -> None:
    """Adds the missing rounds of every case.

    Args:
        samples: the existing samples.
        sizes: the size of each case, with its number of `rounds`.
        steps: returns a stepper for each contender of a size.
    """
    for case, size in sizes.items():
        if samples.rounds(case) < size["rounds"]:
            interleave(samples, case, steps(size), size["rounds"])
            keras.backend.clear_session()


def alternating(model: AlignedModel, batch: tuple[tf.Tensor, tf.Tensor]) -> Step:
    """Returns a function that runs and times a step of J and a step of R in a model that alternates between them."""
    step = stepper(model, batch)

    def both() -> dict[str, float]:
        measured = {}
        for _ in range(2):
            kind = "J" if int(model.optimizer.iterations.numpy()) % 2 else "R"
            measured |= {f"{kind} {quantity}": value for quantity, value in step().items()}
        return measured

    return both


def regulariser_alone(build: Build, rule: Alignment, batch: tuple[tf.Tensor, tf.Tensor]) -> Step:
    """Returns a function that runs a hand-written step of R: forward pass, gradient of R, Adam on B."""
    model = build(rule)
    optimizer = Adam(1e-3)
    kernels = [weight for weight in model.trainable_variables if weight.name == "backward_kernel"]
    optimizer.build(kernels)
    objective = loss()

    @tf.function(jit_compile=False)
    def function() -> tf.Tensor:
        inputs, labels = batch
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([kernel.value for kernel in kernels])
            outputs = model(inputs, training=True)
            total = tf.add_n(model.losses)
        optimizer.apply(tape.gradient(total, [kernel.value for kernel in kernels]), kernels)
        return objective(labels, outputs) + total

    return timed(lambda: function().numpy())
