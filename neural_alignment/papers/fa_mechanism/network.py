"""The network of Rahmansetayesh et al. in float64 NumPy, step by step, with access to every signal.

It takes its weights, target codes and batches from the library, so it is the network that `train` trains;
`tests/papers/test_fa_mechanism.py` compares both.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import keras
import numpy as np

from neural_alignment.analysis import direct_feedback, signals
from neural_alignment.analysis.alignment_terms import LayerSignals
from neural_alignment.config import Config
from neural_alignment.errors import ConfigError
from neural_alignment.optimization import LossRates, SGDOptions
from neural_alignment.training import setup
from neural_alignment.training.model import all_layers

Array = np.ndarray

ACTIVATIONS = {"relu": signals.RELU, "tanh_relu": signals.TANH_RELU}
"""Supported activations, by their names in a configuration."""

FEEDBACK_STREAM = 7004
"""Separates the random numbers of direct feedback matrices and disturbances from others of the same seed."""


class Step(NamedTuple):
    """One iteration k before its update.

    Attributes:
        number: k, from 0.
        labels: of the batch, `(batch,)`.
        passed: L_0 to L_d and Z_1 to Z_d.
        error: delta_d.
        errors: delta_1 to delta_d of the learning rule.
        kernels: W_0 to W_(d-1).
        biases: b_1 to b_d.
        added: change of the kernels by the step.
        added_to_biases: change of the biases by the step.
    """

    number: int
    labels: Array
    passed: signals.NetworkOutputs
    error: Array
    errors: list[Array]
    kernels: list[Array]
    biases: list[Array]
    added: list[Array]
    added_to_biases: list[Array]


class NumpyNetwork:
    """A fully connected network trained by backpropagation, or by BP-TRW if the configuration has the rule feedback.

    Args:
        config: configuration of a run: a fully connected network, half-squared error, plain gradient descent.

    Raises:
        ConfigError: if the configuration is another.
        DataError: if the data cannot be read.
    """

    def __init__(self, config: Config):
        _check(config)
        self.config = config
        self.dataset = setup.load_data(config)
        facts = self.dataset.classes, self.dataset.input_shape, self.dataset.steps_per_epoch
        model = setup.build_model(config, *facts)
        setup.compile_model(model, config, self.dataset.classes, self.dataset.steps_per_epoch)
        layers = [layer for layer in all_layers(model) if isinstance(layer, keras.layers.Dense)]
        self.kernels = [_float64(layer.kernel) for layer in layers]
        self.biases = [_float64(layer.bias) for layer in layers]
        self.backward = [None if layer.alignment is None else _float64(layer.backward_kernel) for layer in layers]
        self._constraints = [layer.kernel_constraint for layer in layers]
        self.targets = np.asarray(model.loss.targets, np.float64)
        self.rate = config.optimization.forward.learning_rate
        self.activation = ACTIVATIONS[config.model.activation]

    @property
    def depth(self) -> int:
        """d, the number of layers with weights."""
        return len(self.kernels)

    @property
    def hidden(self) -> range:
        """Numbers l of the layers that an error travels back into: 1 to d - 1."""
        return range(1, self.depth)

    def aim(self, layer: int) -> Array:
        """Returns B_l^T, `(units, units above)`, the matrix that W_l is expected to align with."""
        return self.backward[layer].T

    def errors(self, error: Array, states: Sequence[Array]) -> list[Array]:
        """Returns delta_1 to delta_d of the learning rule.

        Args:
            error: delta_d.
            states: Z_1 to Z_d.
        """
        back = [w.T if b is None else b for w, b in zip(self.kernels, self.backward, strict=True)]
        return signals.sequential_errors(error, states, back, self.activation)

    def true_errors(self, step: Step) -> list[Array]:
        """Returns delta_1 to delta_d of backpropagation."""
        back = [kernel.T for kernel in step.kernels]
        return signals.sequential_errors(step.error, step.passed.states, back, self.activation)

    def signals(self, step: Step, layer: int) -> LayerSignals:
        """Returns the signals of a step that the alignment terms of a hidden layer need."""
        return LayerSignals.of_layer(layer, step.passed.outputs, step.errors, step.kernels, step.biases, self.backward)

    def look(self, inputs: Array, labels: Array, number: int = 0) -> Step:
        """Returns the step of a batch in the present network, without an update.

        Args:
            inputs: `(batch, inputs)`.
            labels: `(batch,)`.
            number: k.
        """
        passed = signals.forward(inputs, self.kernels, self.biases, self.activation)
        error = signals.output_error(passed, self.targets[labels], self.activation)
        errors = self.errors(error, passed.states)
        added = signals.updates(passed.outputs, errors, self.rate)
        return Step(number, labels, passed, error, errors, self.kernels, self.biases, *added)

    def steps(self, iterations: int) -> Iterator[Step]:
        """Yields the steps of training; each is made when the next one is asked for.

        Args:
            iterations: number of steps; the update of the last one is not made.
        """
        step = None
        for number, (inputs, labels) in zip(range(iterations), self._batches(), strict=False):
            if step is not None:
                self._update(step)
            step = self.look(inputs, labels, number)
            yield step

    def examples(self, number: int) -> tuple[Array, Array]:
        """Returns the training examples of the first batches, `(number, inputs)`, and their labels."""
        size = self.config.batch_size
        batches = [batch for _, batch in zip(range(-(-number // size)), self._batches(), strict=False)]
        inputs, labels = (np.concatenate(part)[:number] for part in zip(*batches, strict=True))
        return inputs, labels

    def _batches(self) -> Iterator[tuple[Array, Array]]:
        for images, labels in self.dataset.train().as_numpy_iterator():
            yield images.reshape(len(images), -1).astype(np.float64), labels

    def _update(self, step: Step) -> None:
        kernels = [kernel + more for kernel, more in zip(step.kernels, step.added, strict=True)]
        pairs = zip(kernels, self._constraints, strict=True)
        self.kernels = [kernel if keep is None else np.asarray(keep(kernel)) for kernel, keep in pairs]
        self.biases = [bias + more for bias, more in zip(step.biases, step.added_to_biases, strict=True)]


class DirectNetwork(NumpyNetwork):
    """The same network, trained by direct feedback alignment (equation 6), with F_l drawn like the initial weights.

    Args:
        config: configuration of a run of backpropagation.
    """

    def __init__(self, config: Config):
        super().__init__(config)
        rng, outputs = np.random.default_rng((FEEDBACK_STREAM, config.seed)), self.biases[-1].size
        spread = config.model.initial_stddev
        self.feedback = [None, *(rng.normal(0.0, spread, (outputs, bias.size)) for bias in self.biases[:-1])]
        self.factors = [None, *direct_feedback.factors(self.feedback[1:])]

    def aim(self, layer: int) -> Array:
        """Returns Q_l^T of equation 7."""
        return self.factors[layer].factor.T

    def errors(self, error: Array, states: Sequence[Array]) -> list[Array]:  # noqa: D102 (inherited)
        return signals.direct_errors(error, states, self.feedback, self.activation)

    def signals(self, step: Step, layer: int) -> LayerSignals:  # noqa: D102 (inherited)
        below, error = layer - 1, step.error
        outputs, kernel, bias = step.passed.outputs[below], step.kernels[below], step.biases[below]
        return LayerSignals(outputs, kernel, bias, step.errors[layer], error @ self.feedback[layer])


def _float64(variable: keras.Variable) -> Array:
    return np.asarray(variable, np.float64)


def _check(config: Config) -> None:
    """Checks that this module trains as `train` would."""
    plan, model = config.optimization.forward, config.model
    facts = {
        "model.name": (model.name, "fc"),
        "loss.kind": (config.loss.kind, "half_squared_error"),
        "optimization.forward": (plan, SGDOptions(name="sgd", learning_rate=plan.learning_rate)),
        "optimization.loss_rates": (config.optimization.loss_rates, LossRates()),
        "weight_decay": (config.weight_decay, 0.0),
    }
    beside = "where signals are computed outside of the run"
    for key, (found, allowed) in facts.items():
        if found != allowed:
            raise ConfigError(f"{key}: must be {allowed!r} {beside}; found {found!r}")
    if config.runtime.precision == "mixed_bfloat16":
        raise ConfigError(f"runtime.precision: must be 'float32' or 'float64' {beside}; found 'mixed_bfloat16'")
    if others := [rule.rule for rule in config.rules if rule.rule != "feedback"]:
        raise ConfigError(f"alignment: rules must be feedback, or none, {beside}; found {', '.join(others)}")
    if model.activation not in ACTIVATIONS or model.output_activation != model.activation:
        names = ", ".join(ACTIVATIONS)
        raise ConfigError(
            f"model.activation and model.output_activation must be one of {names}, the same; found "
            f"{model.activation} and {model.output_activation}"
        )
