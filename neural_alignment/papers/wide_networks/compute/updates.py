"""One network trained by gradient descent, Align-ada and Align-zero: distances of outputs and angles of updates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
from sklearn.datasets import load_digits

from neural_alignment.alignments import AlignAda, AlignZero
from neural_alignment.analysis.similarity import cosine_similarity
from neural_alignment.data.single_batch import SingleBatch
from neural_alignment.jobs.pieces import Arrays, Tell
from neural_alignment.losses import SquaredError
from neural_alignment.models.parts import Parts
from neural_alignment.training.model import AlignedModel
from neural_alignment.training.trainer import Trainer
from optimizers import MultiOptimizer

Array = np.ndarray

COMPARED_RULES = {"normal": None, "align_ada": AlignAda(), "align_zero": AlignZero()}
"""Name -> the rule; none for gradient descent."""

ALIGNED = ("align_ada", "align_zero")

PRECISION, CLASSES = "float64", 10


class Experiment(NamedTuple):
    """A network of some hidden layers of a width, trained on some examples at a learning rate.

    As many other examples are those whose outputs are compared after each of the steps `moments`, the last of which
    ends the training. `side` is the number of units of the second layer whose updates are returned, `seed` that of
    weights and data.
    """

    width: int
    hidden: int
    activation: str
    examples: int
    rate: float
    moments: Sequence[int]
    side: int
    seed: int


def digits(examples: int, seed: int) -> tuple[Array, Array, Array]:
    """Returns digits to train on, inputs `(examples, 64)` from 0 to 1 and classes, and as many other inputs."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(images))[: 2 * examples]
    inputs = images[order].astype(PRECISION) / 16.0
    return inputs[:examples], labels[order[:examples]], inputs[examples:]


def build(rule: str, experiment: Experiment) -> AlignedModel:
    """Returns the network in the NTK parameterization, compiled for the rule; all have the same initial weights."""
    keras.utils.set_random_seed(experiment.seed)
    parts = Parts(COMPARED_RULES[rule], 0.0)
    inputs = x = keras.Input((64,), dtype=PRECISION)
    hidden = [(experiment.width, f"dense{number + 1}", experiment.activation) for number in range(experiment.hidden)]
    for units, name, activation in (*hidden, (CLASSES, "dense", None)):
        initializer = keras.initializers.RandomNormal(stddev=1.0)
        options = {"parameterization": "ntk", "kernel_initializer": initializer, "dtype": PRECISION}
        x = parts.dense(units, name, activation=activation, **options)(x)
    network = parts.finish(inputs, x, "fc")
    model = AlignedModel(network.input, network.output)
    optimizer = MultiOptimizer([keras.optimizers.SGD(experiment.rate)])
    model.compile(optimizer, loss=SquaredError(0.1, dtype=PRECISION))
    return model


def parted(tell: Tell, **experiment: Any) -> Arrays:
    """Trains the same network by each of the rules, on all examples at once; **experiment are fields of `Experiment`.

    Returns:
        `step` (moments,). `movement` (moments,): ||f(t) - f(0)|| of gradient descent; this norm and the next are roots
        of the mean over examples of the squared norm. For each of `ALIGNED`: NAME_distance (moments,), ||f - f_align||;
        NAME_cosine (moments, hidden + 1), between the changes W(t) - W(0) of each layer and those of gradient descent.
        For each of `COMPARED_RULES` NAME_update (side, side): the corner of the second layer's change at the end.
    """
    own = Experiment(**experiment)
    inputs, labels, others = digits(own.examples, own.seed)
    dataset = SingleBatch(inputs, labels, CLASSES)
    histories: dict[str, _History] = {}
    for number, rule in enumerate(COMPARED_RULES):
        trainer = Trainer(build(rule, own), dataset)
        histories[rule] = _history(
            trainer, others, own.moments, lambda part, done=number: tell((done + part) / len(COMPARED_RULES))
        )
    normal = histories["normal"]
    first, *later = normal.outputs
    arrays = {"step": np.array(own.moments), "movement": np.array([_norm(each - first) for each in later])}
    for rule in ALIGNED:
        pairs = zip(histories[rule].outputs[1:], later, strict=True)
        arrays[f"{rule}_distance"] = np.array([_norm(ours - theirs) for ours, theirs in pairs])
        moved = zip(histories[rule].changes, normal.changes, strict=True)
        arrays[f"{rule}_cosine"] = np.array([list(map(cosine_similarity, *pair)) for pair in moved])
    corner = slice(own.side), slice(own.side)
    return arrays | {f"{rule}_update": history.changes[-1][1][corner] for rule, history in histories.items()}


class _History(NamedTuple):
    """Outputs `(examples, classes)` at the start and at each moment; at each moment, W(t) - W(0) of each layer."""

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


def _norm(difference: Array) -> float:
    return float(np.sqrt((difference**2).sum(axis=1).mean()))
