"""One network trained by gradient descent, Align-ada and Align-zero: distances of outputs and angles of updates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import keras
import numpy as np
from sklearn.datasets import load_digits

from neural_alignment.alignments import AlignAda, AlignZero
from neural_alignment.data.single_batch import SingleBatch
from neural_alignment.jobs.pieces import Arrays, Tell
from neural_alignment.losses import SquaredError
from neural_alignment.models.parts import Parts
from neural_alignment.training.model import AlignedModel
from neural_alignment.training.trainer import Trainer
from optimizers import MultiOptimizer

Array = np.ndarray

RULES = {"normal": None, "align_ada": AlignAda(), "align_zero": AlignZero()}
"""Name -> the rule; none for gradient descent."""

ALIGNED = ("align_ada", "align_zero")

PRECISION = "float64"

CLASSES = 10


def digits(examples: int, seed: int) -> tuple[Array, Array, Array]:
    """Returns digits to train on, inputs `(examples, 64)` from 0 to 1 and classes, and as many other inputs."""
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
        activation: nonlinearity of the hidden layers.
        rate: learning rate.
        seed: the seed of the weights.
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
        tell: receives the progress.
        width: units of each hidden layer.
        seed: the seed of weights and data.
        hidden: number of hidden layers.
        activation: nonlinearity of the hidden layers.
        examples: number of examples to train on, and of other examples whose outputs are compared.
        rate: learning rate.
        moments: steps after which the networks are compared, increasing. Training ends with the last one.
        side: units of the second layer whose updates are returned.

    Returns:
        `step` (moments,). `movement` (moments,): ||f(t) - f(0)|| of gradient descent; this norm and the next are roots
        of the mean over examples of the squared norm. For each of `ALIGNED`: NAME_distance (moments,), ||f - f_align||;
        NAME_cosine (moments, hidden + 1), between the changes W(t) - W(0) of each layer and those of gradient descent.
        For each of `RULES` NAME_update (side, side): the corner of the second layer's change at the end.
    """
    inputs, labels, others = digits(examples, seed)
    dataset = SingleBatch(inputs, labels, CLASSES)
    histories: dict[str, _History] = {}
    for number, rule in enumerate(RULES):
        trainer = Trainer(build(rule, width, hidden, activation, rate, seed), dataset)

        def tell_part(part: float, number: int = number) -> None:
            tell((number + part) / len(RULES))

        histories[rule] = _history(trainer, others, moments, tell_part)
    return _compared(histories, moments, side)


class _History(NamedTuple):
    """The course of one training.

    Attributes:
        outputs: at the start and at each moment, `(examples, classes)`.
        changes: moment -> W(t) - W(0) of each layer.
    """

    outputs: list[Array]
    changes: list[list[Array]]


def _history(trainer: Trainer, inputs: Array, moments: Sequence[int], tell: Tell) -> _History:
    """Trains up to the last moment; returns the outputs for some inputs and the changes of the weights."""
    model = trainer.model
    kernels = [layer.kernel for layer in model.layers if hasattr(layer, "kernel")]
    initial = [kernel.numpy() for kernel in kernels]
    history = _History([np.asarray(model.predict_on_batch(inputs))], [])
    trainer.start()
    for moment in moments:
        trainer.train(moment - trainer.step)
        history.outputs.append(np.asarray(model.predict_on_batch(inputs)))
        history.changes.append([kernel.numpy() - start for kernel, start in zip(kernels, initial, strict=True)])
        tell(moment / moments[-1])
    return history


def _compared(histories: dict[str, _History], moments: Sequence[int], side: int) -> Arrays:
    """Returns the arrays of `parted` from rule -> history."""
    normal = histories["normal"]
    first, *later = normal.outputs
    arrays = {"step": np.array(moments), "movement": np.array([_norm(each - first) for each in later])}
    for rule in ALIGNED:
        pairs = zip(histories[rule].outputs[1:], later, strict=True)
        arrays[f"{rule}_distance"] = np.array([_norm(ours - theirs) for ours, theirs in pairs])
        moved = zip(histories[rule].changes, normal.changes, strict=True)
        arrays[f"{rule}_cosine"] = np.array([list(map(_cosine, *pair)) for pair in moved])
    return arrays | {f"{rule}_update": history.changes[-1][1][:side, :side] for rule, history in histories.items()}


def _norm(difference: Array) -> float:
    return float(np.sqrt((difference**2).sum(axis=1).mean()))


def _cosine(ours: Array, theirs: Array) -> float:
    return float((ours * theirs).sum() / (np.linalg.norm(ours) * np.linalg.norm(theirs)))
