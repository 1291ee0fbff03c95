"""A fully connected network that is trained step by step in float64, with access to every signal.

The learning rules are backpropagation, feedback alignment with a trained readout (BP-TRW) and direct feedback
alignment, as in Rahmansetayesh et al.; `signals` has the notation.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from neural_alignment.analysis import direct_feedback, signals
from neural_alignment.analysis.alignment_terms import LayerSignals

Array = np.ndarray


class Step(NamedTuple):
    """One iteration k before its update.

    Attributes:
        number: k, starting at 0.
        labels: labels of the batch, `(batch,)`.
        passed: the forward pass: L_0 to L_d and Z_1 to Z_d.
        error: delta_d.
        errors: delta_1 to delta_d of the learning rule.
        kernels: W_0 to W_(d-1).
        biases: b_1 to b_d.
        added: updates of the kernels, which the step adds.
        added_to_biases: updates of the biases.
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


@dataclass
class TrainedNetwork:
    """A network trained by plain gradient descent on the half-squared error.

    Errors go back through B_l, or through W_l^T in layers without B_l.

    Attributes:
        kernels: W_0 to W_(d-1).
        biases: b_1 to b_d.
        backward: B_0 to B_(d-1); `None` for a layer that uses W_l^T.
        constraints: a function per kernel that is applied after each update; `None` for no constraint.
        targets: target of each category, `(categories, outputs)`.
        rate: the learning rate.
        activation: the nonlinearity of all layers.
        steps_per_epoch: number of batches in an epoch.
        batches: a function that returns an iterator over training batches: inputs `(batch, inputs)`, labels `(batch,)`.
    """

    kernels: list[Array]
    biases: list[Array]
    backward: list[Array | None]
    constraints: Sequence[Callable[[Array], Array] | None]
    targets: Array
    rate: float
    activation: signals.Nonlinearity
    steps_per_epoch: int
    batches: Callable[[], Iterator[tuple[Array, Array]]]

    @property
    def hidden(self) -> range:
        """Numbers l of the hidden layers: 1 to d - 1."""
        return range(1, len(self.kernels))

    def aim(self, layer: int) -> Array:
        """Returns B_l^T, `(units, units above)`, the matrix that W_l is expected to align with."""
        return self.backward[layer].T

    def errors(self, error: Array, states: Sequence[Array]) -> list[Array]:
        """Returns delta_1 to delta_d of the learning rule, from delta_d and Z_1 to Z_d."""
        back = [w.T if b is None else b for w, b in zip(self.kernels, self.backward, strict=True)]
        return signals.sequential_errors(error, states, back, self.activation)

    def true_updates(self, step: Step) -> tuple[list[Array], list[Array]]:
        """Returns the updates that backpropagation would make to the kernels and to the biases."""
        return signals.updates(step.passed.outputs, self.true_errors(step), self.rate)

    def true_errors(self, step: Step) -> list[Array]:
        """Returns delta_1 to delta_d of backpropagation."""
        back = [kernel.T for kernel in step.kernels]
        return signals.sequential_errors(step.error, step.passed.states, back, self.activation)

    def signals(self, step: Step, layer: int) -> LayerSignals:
        """Returns the signals of a step that the alignment terms of a hidden layer need."""
        return LayerSignals.of_layer(layer, step.passed.outputs, step.errors, step.kernels, step.biases, self.backward)

    def look(self, inputs: Array, labels: Array, number: int = 0) -> Step:
        """Returns the step of a batch in the current network, without updating the network.

        Args:
            inputs: `(batch, inputs)`.
            labels: `(batch,)`.
            number: k of the step.
        """
        passed = signals.forward(inputs, self.kernels, self.biases, self.activation)
        error = signals.output_error(passed, self.targets[labels], self.activation)
        errors = self.errors(error, passed.states)
        added = signals.updates(passed.outputs, errors, self.rate)
        return Step(number, labels, passed, error, errors, self.kernels, self.biases, *added)

    def steps(self, iterations: int) -> Iterator[Step]:
        """Trains the network and yields each step before its update. The update of the last step is not made."""
        step = None
        for number, batch in enumerate(itertools.islice(self.batches(), iterations)):
            if step is not None:
                self._update(step)
            step = self.look(*batch, number)
            yield step

    def examples(self, number: int) -> tuple[Array, Array]:
        """Returns the first training examples, `(number, inputs)`, and their labels, `(number,)`."""
        found: list[tuple[Array, Array]] = []
        for batch in self.batches():
            found.append(batch)
            if sum(len(labels) for _, labels in found) >= number:
                break
        inputs, labels = (np.concatenate(part)[:number] for part in zip(*found, strict=True))
        return inputs, labels

    def _update(self, step: Step) -> None:
        kernels = [kernel + more for kernel, more in zip(step.kernels, step.added, strict=True)]
        pairs = zip(kernels, self.constraints, strict=True)
        self.kernels = [kernel if keep is None else np.asarray(keep(kernel)) for kernel, keep in pairs]
        self.biases = [bias + more for bias, more in zip(step.biases, step.added_to_biases, strict=True)]


@dataclass
class DirectNetwork(TrainedNetwork):
    """The same network, trained by direct feedback alignment (equation 6).

    Attributes:
        feedback: F_0 to F_(d-1), each `(outputs, units)`; F_0 is not read.
        factors: Q_0 to Q_(d-1) of equation 7; Q_0 is `None`.
    """

    feedback: list[Array | None]

    def __post_init__(self):
        self.factors = [None, *direct_feedback.factors(self.feedback[1:])]

    def aim(self, layer: int) -> Array:
        """Returns Q_l^T, `(units, units above)`."""
        return self.factors[layer].factor.T

    def errors(self, error: Array, states: Sequence[Array]) -> list[Array]:  # noqa: D102 (inherited)
        return signals.direct_errors(error, states, self.feedback, self.activation)

    def signals(self, step: Step, layer: int) -> LayerSignals:  # noqa: D102 (inherited)
        below, returned = layer - 1, step.error @ self.feedback[layer]
        outputs = step.passed.outputs[below]
        return LayerSignals(outputs, step.kernels[below], step.biases[below], step.errors[layer], returned)
