"""Proposition 1, Lemma 1 and equation 57 of Boopathy and Fiete 2022, measured on tanh networks of one width."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from neural_alignment.data.single_batch import SingleBatch
from neural_alignment.jobs.pieces import Arrays, Tell
from neural_alignment.papers.wide_networks.compute.updates import CLASSES, COMPARED_RULES, Experiment, build, digits
from neural_alignment.training.lockstep import Lockstep
from neural_alignment.training.model import AlignedModel
from neural_alignment.training.trainer import Trainer

Array = np.ndarray

QUANTITIES = {
    "proposition_1": "‖Σ / m − Δ‖ / √m (Proposition 1)",
    "activations": "change of z / √m (eq. 19)",
    "weights": "change of W / √m, layers 2 to 4 (eq. 20)",
    "first_weights": "change of W / √m, layer 1 (eq. 20)",
    "jacobian": "change of ∇f (eq. 21)",
    "linearised": "f − its linearisation, Align-zero (eq. 57)",
}
"""Quantity -> its title. Norms are operator norms, of activations and outputs roots of the mean squared norm."""


class TanhNetwork(NamedTuple):
    """Weights of a tanh network in the NTK parameterization: of each layer W `(inputs, units)` and b `(units,)`."""

    weights: list[Array]
    biases: list[Array]

    @classmethod
    def of(cls, model: AlignedModel) -> TanhNetwork:
        """Returns the weights of a model of `updates.build`."""
        layers = [layer for layer in model.layers if hasattr(layer, "kernel")]
        return cls([layer.kernel.numpy() for layer in layers], [layer.bias.numpy() for layer in layers])

    def potentials(self, inputs: Array) -> list[Array]:
        """Returns z of each layer `(examples, units)`; the last one is the output."""
        found, activities = [], inputs
        for weight, bias in zip(self.weights, self.biases, strict=True):
            found.append(activities @ weight / np.sqrt(len(weight)) + bias)
            activities = np.tanh(found[-1])
        return found

    def jacobians(self, potentials: Sequence[Array]) -> list[Array]:
        """Returns the gradient of every output by z of each layer `(examples, classes, units)`."""
        examples, classes = potentials[-1].shape
        found = [np.broadcast_to(np.eye(classes), (examples, classes, classes))]
        for weight, z in zip(self.weights[:0:-1], potentials[-2::-1], strict=True):
            found.insert(0, found[0] @ weight.T / np.sqrt(len(weight)) * (1 - np.tanh(z[:, None]) ** 2))
        return found

    def derivative(self, change: TanhNetwork, inputs: Array, potentials: Sequence[Array]) -> Array:
        """Returns the derivative of the outputs `(examples, classes)` in the direction of a change of the weights."""
        moved, activities = np.zeros_like(inputs), inputs
        for weight, d_weight, d_bias, z in zip(self.weights, *change, potentials, strict=True):
            d_z = (moved @ weight + activities @ d_weight) / np.sqrt(len(weight)) + d_bias
            activities = np.tanh(z)
            moved = d_z * (1 - activities**2)
        return d_z


def measured(tell: Tell, **experiment: Any) -> Arrays:
    """Trains the same network by each of the rules, on all examples at once; **experiment are fields of `Experiment`.

    Returns:
        At the end of training, the largest value over layers `()`: of gradient descent `normal_proposition_1`; of every
        rule RULE_activations, RULE_weights, RULE_first_weights and RULE_jacobian; of Align-zero
        `align_zero_linearised`.
    """
    own, arrays = Experiment(**experiment), {}
    inputs, labels, _ = digits(own.examples, own.seed)
    for number, rule in enumerate(COMPARED_RULES):
        trainer = Trainer(build(rule, own), SingleBatch(inputs, labels, CLASSES))
        lockstep = Lockstep(trainer.model) if rule == "normal" else None
        start = TanhNetwork.of(trainer.model)
        trainer.start(train_on=lockstep.step if lockstep else None)
        trainer.train(own.moments[-1])
        found = changes(start, TanhNetwork.of(trainer.model), inputs)
        if lockstep:
            pairs = zip(lockstep.changes().values(), lockstep.reference_changes().values(), strict=True)
            found["proposition_1"] = max(discrepancy(*map(np.asarray, pair)) for pair in pairs)
        if rule != "align_zero":
            del found["linearised"]
        arrays |= {f"{rule}_{name}": np.array(value) for name, value in found.items()}
        tell((number + 1) / len(COMPARED_RULES))
    return arrays


def discrepancy(change: Array, reference_change: Array) -> float:
    """Returns ||Sigma / m - Delta|| / sqrt(m) of a layer of m inputs, equation 8.

    Delta = A^T A of the change A = W(t) - W(0), and Sigma / m = A*^T A* of A* = W*(t) - W(0): by equations 12 and 13,
    Sigma is the error-weighted correlation of the layer's inputs at initialisation.
    """
    difference = reference_change @ reference_change.T - change @ change.T
    return float(np.abs(np.linalg.eigvalsh(difference)).max() / np.sqrt(len(change)))


def changes(start: TanhNetwork, end: TanhNetwork, inputs: Array) -> dict[str, float]:
    """Returns the other `QUANTITIES` of a network before and after training."""
    first, last = start.potentials(inputs), end.potentials(inputs)
    change = TanhNetwork(*([b - a for a, b in zip(*pair, strict=True)] for pair in zip(start, end, strict=True)))
    hidden = zip(first[:-1], last[:-1], strict=True)
    norms = [np.linalg.norm(each, 2) / np.sqrt(len(each)) for each in change.weights]
    linear = first[-1] + start.derivative(change, inputs, first)
    return {
        "activations": max(_root_mean_square(b - a) / np.sqrt(a.shape[1]) for a, b in hidden),
        "weights": max(norms[1:]),
        "first_weights": norms[0],
        "jacobian": jacobian_change((start, first), (end, last), inputs),
        "linearised": _root_mean_square(last[-1] - linear),
    }


_State = tuple[TanhNetwork, list[Array]]
"""Weights, and the potentials of some inputs."""


def jacobian_change(start: _State, end: _State, inputs: Array) -> float:
    """Returns the largest ||grad f(t) - grad f(0)|| over examples, of the gradients by all weights and biases.

    The gradient by W of a layer is the product of that by z with the layer's inputs, so that the scalar products of the
    differences for two outputs follow from those of the factors, without the gradient itself.
    """
    sides = []
    for network, potentials in (start, end):
        activities = [inputs, *map(np.tanh, potentials[:-1])]
        scaled = [np.insert(each / np.sqrt(each.shape[1]), 0, 1.0, axis=1) for each in activities]  # 1: the bias.
        sides.append((network.jacobians(potentials), scaled))
    products: Any = 0.0
    for (one, one_inputs), sign in ((sides[0], -1), (sides[1], 1)):
        for (other, other_inputs), other_sign in ((sides[0], -1), (sides[1], 1)):
            for a, x, b, y in zip(one, one_inputs, other, other_inputs, strict=True):
                products = products + sign * other_sign * (a @ b.swapaxes(1, 2)) * (x * y).sum(axis=1)[:, None, None]
    return float(np.sqrt(np.linalg.eigvalsh(products).max()))


def _root_mean_square(vectors: Array) -> float:
    """Returns the root of the mean over examples of the squared norm."""
    return float(np.sqrt((vectors**2).sum(axis=1).mean()))
