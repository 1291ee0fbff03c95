"""Builds the NumPy network of a configuration, with the weights, target codes and batches of the library.

It is the network that `train` trains; `tests/papers/test_fa_mechanism.py` compares both.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from neural_alignment.analysis import signals
from neural_alignment.analysis.trained_network import DirectNetwork, TrainedNetwork
from neural_alignment.config import Config
from neural_alignment.errors import ConfigError
from neural_alignment.keras_internals import all_layers
from neural_alignment.optimization import LossRates, SGDOptions
from neural_alignment.training import setup

ACTIVATIONS = {"relu": signals.RELU, "tanh_relu": signals.TANH_RELU}
"""Supported activations, by their names in a configuration."""

FEEDBACK_STREAM = 7004
"""Separates the random numbers of direct feedback matrices and disturbances from others of the same seed."""


def build(config: Config) -> TrainedNetwork:
    """Returns the network of a configuration, trained by its rule: feedback (BP-TRW), or none (backpropagation).

    Raises:
        ConfigError: unless it is a fully connected network with half-squared error and plain gradient descent.
        DataError: if the data cannot be read.
    """
    return TrainedNetwork(**_parts(config))


def build_direct(config: Config) -> DirectNetwork:
    """Returns the network trained by direct feedback alignment, with F_l drawn like the initial weights; as `build`."""
    parts = _parts(config)
    rng, outputs = np.random.default_rng((FEEDBACK_STREAM, config.seed)), parts["biases"][-1].size
    drawn = [rng.normal(0.0, config.model.initial_stddev, (outputs, bias.size)) for bias in parts["biases"][:-1]]
    return DirectNetwork(**parts, feedback=[None, *drawn])


def _parts(config: Config) -> dict[str, Any]:
    """Returns the arguments of `TrainedNetwork`."""
    _check(config)
    dataset = setup.load_data(config)
    model = setup.build_model(config, dataset.classes, dataset.input_shape, dataset.steps_per_epoch)
    setup.compile_model(model, config, dataset.classes, dataset.steps_per_epoch)
    layers = [layer for layer in all_layers(model) if isinstance(layer, keras.layers.Dense)]

    def batches() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for images, labels in dataset.train().as_numpy_iterator():
            yield images.reshape(len(images), -1).astype(np.float64), labels

    return {
        "kernels": [_float64(layer.kernel) for layer in layers],
        "biases": [_float64(layer.bias) for layer in layers],
        "backward": [None if layer.alignment is None else _float64(layer.backward_kernel) for layer in layers],
        "constraints": [layer.kernel_constraint for layer in layers],
        "targets": np.asarray(model.loss.targets, np.float64),
        "rate": config.optimization.forward.learning_rate,
        "activation": ACTIVATIONS[config.model.activation],
        "steps_per_epoch": dataset.steps_per_epoch,
        "batches": batches,
    }


def _float64(variable: keras.Variable) -> np.ndarray:
    return np.asarray(variable, np.float64)


def _check(config: Config) -> None:
    """Checks that the NumPy network trains as `train` would."""
    plan, model, beside = config.optimization.forward, config.model, "where signals are computed outside of the run"
    facts = {
        "model.name": (model.name, "fc"),
        "loss.kind": (config.loss.kind, "half_squared_error"),
        "optimization.forward": (plan, SGDOptions(name="sgd", learning_rate=plan.learning_rate)),
        "optimization.loss_rates": (config.optimization.loss_rates, LossRates()),
        "weight_decay": (config.weight_decay, 0.0),
    }
    for key, (found, allowed) in facts.items():
        if found != allowed:
            raise ConfigError(f"{key}: must be {allowed!r} {beside}; found {found!r}")
    if config.runtime.precision == "mixed_bfloat16":
        raise ConfigError(f"runtime.precision: must be 'float32' or 'float64' {beside}; found 'mixed_bfloat16'")
    if others := [rule.rule for rule in config.rules if rule.rule != "feedback"]:
        raise ConfigError(f"alignment: rules must be feedback, or none, {beside}; found {', '.join(others)}")
    if model.activation not in ACTIVATIONS or model.output_activation != model.activation:
        raise ConfigError(
            f"model.activation and model.output_activation must be one of {', '.join(ACTIVATIONS)}, the same; found "
            f"{model.activation} and {model.output_activation}"
        )
