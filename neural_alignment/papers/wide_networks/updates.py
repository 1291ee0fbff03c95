"""One network trained by gradient descent, Align-ada and Align-zero: how far outputs and updates part, by width."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import numpy as np
from sklearn.datasets import load_digits

from neural_alignment.alignments import AlignAda, AlignZero
from neural_alignment.losses import SquaredError
from neural_alignment.models.parts import Parts
from neural_alignment.papers.pieces import Arrays, Tell
from neural_alignment.training.model import AlignedModel
from optimizers import MultiOptimizer

Array = np.ndarray

RULES = {"normal": None, "align_ada": AlignAda(), "align_zero": AlignZero()}
"""Name -> the rule, none for gradient descent."""

ALIGNED = ("align_ada", "align_zero")

PRECISION = "float64"

CLASSES = 10


def digits(examples: int, seed: int) -> tuple[Array, Array, Array]:
    """Draws digits: inputs `(examples, 64)` from 0 to 1 and classes to train on, and as many inputs to look at f on."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(images))[: 2 * examples]
    inputs = images[order].astype(PRECISION) / 16.0
    return inputs[:examples], labels[order[:examples]], inputs[examples:]


def build(rule: str, width: int, hidden: int, activation: str, rate: float, seed: int) -> AlignedModel:
    """Returns a fully connected network in the NTK parameterization, compiled for the rule.

    Args:
        rule: one of `RULES`; all have the same initial weights.
        width: units of each hidden layer.
        hidden: number of hidden layers.
        activation: nonlinearity of these.
        rate: learning rate.
        seed: of the weights.
    """
    keras.utils.set_random_seed(seed)
    parts = Parts(RULES[rule], 0.0)
    inputs = x = keras.Input((64,), dtype=PRECISION)
    layers = [(width, f"dense{number}", activation) for number in range(1, hidden + 1)]
    for units, name, nonlinearity in (*layers, (CLASSES, "dense", None)):
        initializer = keras.initializers.RandomNormal(stddev=1.0)
        x = parts.dense(
            units,
            name,
            activation=nonlinearity,
            parameterization="ntk",
            kernel_initializer=initializer,
            dtype=PRECISION,
        )(x)
    network = parts.finish(inputs, x, "fc")
    model = AlignedModel(network.input, network.output)
    loss = SquaredError(0.1, dtype=PRECISION)
    model.compile(MultiOptimizer([keras.optimizers.SGD(rate)]), loss=loss)
    return model


def parted(
    tell: Tell,
    width: int,
    seed: int,
    hidden: int,
    activation: str,
    examples: int,
    rate: float,
    moments: Sequence[int],
    side: int,
) -> Arrays:
    """Trains the same network by each of the rules, on all examples at once.

    Args:
        tell: told the progress.
        width: units of each hidden layer.
        seed: of weights and data.
        hidden: number of hidden layers.
        activation: nonlinearity.
        examples: to train on, and to look at the outputs on.
        rate: learning rate.
        moments: steps after which the networks are compared, rising; the last one ends the training.
        side: units of the second layer whose updates are kept to be shown.

    Returns:
        `step` (moments,). `movement` (moments,): ||f(t) - f(0)|| of gradient descent, like all these norms the root of
        the mean over examples of the squared norm. For each of `ALIGNED`: NAME_distance (moments,), ||f - f_align||;
        NAME_cosine (moments, hidden + 1), of the changes W(t) - W(0) of each layer to those of gradient descent. For
        each of `RULES` NAME_update (side, side): the corner of the second layer's change at the end.
    """
    inputs, labels, looked_at = digits(examples, seed)
    names = [f"dense{number}" for number in range(1, hidden + 1)] + ["dense"]
    outputs: dict[str, list[Array]] = {}
    changes: dict[str, list[list[Array]]] = {}
    for number, rule in enumerate(RULES):
        model = build(rule, width, hidden, activation, rate, seed)
        kernels = [model.get_layer(name).kernel for name in names]
        initial = [kernel.numpy() for kernel in kernels]
        outputs[rule], changes[rule] = [np.asarray(model.predict_on_batch(looked_at))], []
        for step in range(1, moments[-1] + 1):
            model.train_on_batch(inputs, labels)
            if step in moments:
                outputs[rule].append(np.asarray(model.predict_on_batch(looked_at)))
                changes[rule].append([kernel.numpy() - start for kernel, start in zip(kernels, initial, strict=True)])
            tell((number + step / moments[-1]) / len(RULES))
    return _told(outputs, changes, moments, side)


def _told(
    outputs: dict[str, list[Array]], changes: dict[str, list[list[Array]]], moments: Sequence[int], side: int
) -> Arrays:
    """Returns the arrays of `parted`.

    Args:
        outputs: rule -> outputs at the start and at each moment, `(examples, classes)`.
        changes: rule -> moment -> changes of each layer.
        moments: the steps.
        side: of the corner that is kept.
    """
    normal = outputs["normal"]
    arrays = {"step": np.array(moments), "movement": np.array([_norm(each - normal[0]) for each in normal[1:]])}
    for rule in ALIGNED:
        pairs = zip(outputs[rule][1:], normal[1:], strict=True)
        arrays[f"{rule}_distance"] = np.array([_norm(ours - theirs) for ours, theirs in pairs])
        moved = zip(changes[rule], changes["normal"], strict=True)
        arrays[f"{rule}_cosine"] = np.array([list(map(_cosine, *pair)) for pair in moved])
    return arrays | {f"{rule}_update": kept[-1][1][:side, :side] for rule, kept in changes.items()}


def _norm(difference: Array) -> float:
    return float(np.sqrt((difference**2).sum(axis=1).mean()))


def _cosine(ours: Array, theirs: Array) -> float:
    return float((ours * theirs).sum() / (np.linalg.norm(ours) * np.linalg.norm(theirs)))
