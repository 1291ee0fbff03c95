"""The Add task of Boopathy and Fiete 2022 (Appendices F and K), trained as the published code trains it."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from neural_alignment import models
from neural_alignment.alignments import AlignAda, AlignZero, LastLayer
from neural_alignment.data import Batching
from neural_alignment.data.add_task import PUBLISHED_SEED, AddTask, Sequences
from neural_alignment.papers.pieces import Arrays, Tell
from neural_alignment.training.model import AlignedModel
from neural_alignment.training.trainer import Trainer
from optimizers import MultiOptimizer

Array = np.ndarray

RULES = {"normal": None, "align_ada": AlignAda(), "align_zero": AlignZero(), "readout_only": LastLayer()}
"""Name of a rule in the table -> the rule; none for gradient descent."""

TIME = 100
"""Steps of a sequence."""

BATCH = 50

STEPS = 6
"""Training steps of an epoch, made in one graph call: 300 sequences."""

RATE = 0.001

EPOCHS = 500
"""The text has 200 (Appendix F); the printed losses are those of 500 epochs of the published code."""


class SumOverTime(keras.losses.Loss):
    """The squared error summed over time, a mean over the batch."""

    def call(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        """Returns the error of each sequence, `(batch,)`.

        Args:
            y_true: targets `(batch, steps, 1)`.
            y_pred: outputs, of the same shape.
        """
        return keras.ops.sum(keras.ops.square(y_pred - y_true), axis=(1, 2))


def initial_kernels(width: int, seed: int) -> tuple[Array, Array, Array]:
    """Draws W_i `(1, width)`, W_h `(width, width)`, from row to column, and W_o `(width, 1)` from N(0, 1)."""
    draws = np.random.RandomState(seed)
    return tuple(draws.normal(size=shape) for shape in ((1, width), (width, width), (width, 1)))


def build(rule: str, width: int, seed: int) -> AlignedModel:
    """Returns the network with its initial weights, compiled for the rule.

    Args:
        rule: one of `RULES`.
        width: hidden units m.
        seed: the seed of the weights.

    Raises:
        ValueError: if there is no such rule.
    """
    if rule not in RULES:
        raise ValueError(f"`rule` must be one of {', '.join(RULES)}. Received {rule!r}. Example: rule='normal'.")
    network = models.rnn(width, BATCH, (TIME, 1), alignment=RULES[rule])
    recurrent, readout = network.get_layer("recurrent"), network.get_layer("dense")
    # Before the rule copies the initial weights.
    for variable, kernel in zip(
        (recurrent.input_kernel, recurrent.kernel, readout.kernel), initial_kernels(width, seed), strict=True
    ):
        variable.assign(kernel)
    model = AlignedModel(network.input, network.output)
    model.compile(
        MultiOptimizer([keras.optimizers.SGD(RATE)]), loss=SumOverTime(), jit_compile=False, steps_per_execution=STEPS
    )
    return model


def trainer(rule: str, width: int, seed: int) -> Trainer:
    """Returns the trainer of a network; arguments and errors as of `build`.

    The seed also decides the orders. The sequences are those of the published seed, so that all losses have one chance
    level.
    """
    return Trainer(build(rule, width, seed), AddTask(Batching(BATCH, seed), sequences_seed=PUBLISHED_SEED))


def mean_losses(losses: Callable[[Array, Array], tf.Tensor], *parts: tuple[Sequences, Array]) -> list[float]:
    """Returns the mean loss of each part in an order. Each batch starts from the trained initial state.

    One call computes all parts, which is faster for a narrow network: the layer repeats its initial states.

    Args:
        losses: computes the loss of each sequence from inputs and targets.
        *parts: sequences, a multiple of `BATCH`, and their order.
    """
    chosen = [(part.inputs[order], part.targets[order]) for part, order in parts]
    found = losses(*map(np.concatenate, zip(*chosen, strict=True))).numpy()
    ends = np.cumsum([len(order) for _, order in parts])[:-1]
    return [float(each.mean()) for each in np.split(found, ends)]


def trained(tell: Tell, rule: str, width: int, seed: int, epochs: int = EPOCHS) -> Arrays:
    """Trains one network; computes both losses after every epoch.

    Args:
        tell: receives the progress.
        rule: one of `RULES`.
        width: hidden units m.
        seed: the seed of the weights and the orders.
        epochs: number of epochs.

    Returns:
        `train_loss`, `test_loss` (epochs,): means of the loss over the batches, in the order that the epoch has drawn.
    """
    running = trainer(rule, width, seed)
    data, losses_of = running.dataset, running.inference(SumOverTime().call)
    losses: dict[str, list[float]] = {"train_loss": [], "test_loss": []}
    running.start()
    for number, order in enumerate(itertools.islice(data.orders(), epochs), start=1):
        running.train_epoch()
        test, train = mean_losses(losses_of, (data.test_split, order.test), (data.train_split, order.train))
        losses["test_loss"].append(test)
        losses["train_loss"].append(train)
        tell(number / epochs)
    return {name: np.array(values) for name, values in losses.items()}


def best(losses: Array) -> float:
    """Returns the smallest loss over the epochs, as the paper reports it; NaN if none is finite."""
    finite = losses[np.isfinite(losses)]
    return float(finite.min()) if finite.size else float("nan")
