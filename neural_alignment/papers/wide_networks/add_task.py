"""The Add task of Boopathy and Fiete 2022 (Appendices F and K), trained as the published code trains it.

The code draws everything with NumPy's legacy generator, which it seeds anew before the data, before the weights and
before the shuffles. The same draws are made here, so that a loss may be compared with the printed one digit by digit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from neural_alignment import models
from neural_alignment.alignments import AlignAda, AlignZero, LastLayer
from neural_alignment.papers.pieces import Arrays, Tell
from neural_alignment.training.model import AlignedModel
from optimizers import MultiOptimizer

Array = np.ndarray

RULES = {"normal": None, "align_ada": AlignAda(), "align_zero": AlignZero(), "readout_only": LastLayer()}
"""Name of a rule in the table -> the rule, none for gradient descent."""

SEQUENCES, TIME, TRAINING = 400, 100, 300
"""All sequences, steps of each, and how many of them are trained on; the rest are the test set."""

BATCH = 50

RATE = 0.001

EPOCHS = 500
"""The text has 200 (Appendix F); the printed losses are those of 500 epochs of the published code."""

PUBLISHED_SEED = 99


class Part(NamedTuple):
    """Sequences of the task.

    Attributes:
        inputs: `(sequences, steps, 1)` float32, 0 or 1.
        targets: of the same shape.
    """

    inputs: Array
    targets: Array


class Orders(NamedTuple):
    """The order of the sequences in one epoch: the place in a batch decides which row of the initial state is read.

    Attributes:
        updates: `(TRAINING,)`, of the training.
        test: of the test loss.
        train: of the training loss.
    """

    updates: Array
    test: Array
    train: Array


def sequences(seed: int = PUBLISHED_SEED) -> tuple[Part, Part]:
    """Draws the task (equation 59): y(t) = 0.5 + 0.5 x(t - 2) - 0.25 x(t - 5), x(t) of a fair coin.

    As in the published code time wraps around, and what it sets to zero of the delayed inputs are not their first 2 and
    5 steps but their first 2 and 5 sequences.

    Args:
        seed: of the coins.

    Returns:
        The training and the test sequences.
    """
    x = np.random.RandomState(seed).binomial(1, 0.5, (SEQUENCES, TIME))
    delayed = {delay: np.roll(x, delay, axis=1) for delay in (2, 5)}
    for delay, values in delayed.items():
        values[:delay] = 0
    y = 0.5 + 0.5 * delayed[2] - 0.25 * delayed[5]
    x, y = (values[..., None].astype(np.float32) for values in (x, y))
    return Part(x[:TRAINING], y[:TRAINING]), Part(x[TRAINING:], y[TRAINING:])


def initial_kernels(width: int, seed: int) -> tuple[Array, Array, Array]:
    """Draws W_i `(1, width)`, W_h `(width, width)`, from row to column, and W_o `(width, 1)` from N(0, 1)."""
    draws = np.random.RandomState(seed)
    return tuple(draws.normal(size=shape) for shape in ((1, width), (width, width), (width, 1)))


def orders(seed: int, epochs: int) -> Iterator[Orders]:
    """Yields the orders of each epoch, drawn in turn."""
    draws = np.random.RandomState(seed)
    for _ in range(epochs):
        yield Orders(*(draws.permutation(number) for number in (TRAINING, SEQUENCES - TRAINING, TRAINING)))


class SumOverTime(keras.losses.Loss):
    """The squared error summed over time, a mean over the batch."""

    def call(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        """Returns the error of each sequence, `(batch,)`.

        Args:
            y_true: targets `(batch, steps, 1)`.
            y_pred: outputs, of the same shape.
        """
        return keras.ops.sum(keras.ops.square(y_pred - y_true), axis=(1, 2))


def build(rule: str, width: int, seed: int) -> AlignedModel:
    """Returns the network with its initial weights, compiled for the rule.

    Args:
        rule: one of `RULES`.
        width: hidden units m.
        seed: of the weights.

    Raises:
        ValueError: if there is no such rule.
    """
    if rule not in RULES:
        raise ValueError(f"`rule` must be one of {', '.join(RULES)}. Received {rule!r}. Example: rule='normal'.")
    network = models.rnn(width, BATCH, (TIME, 1), alignment=RULES[rule])
    recurrent, readout = network.get_layer("recurrent"), network.get_layer("dense")
    # Before the rule copies what it keeps of the beginning.
    for variable, kernel in zip(
        (recurrent.input_kernel, recurrent.kernel, readout.kernel), initial_kernels(width, seed), strict=True
    ):
        variable.assign(kernel)
    model = AlignedModel(network.input, network.output)
    model.compile(MultiOptimizer([keras.optimizers.SGD(RATE)]), loss=SumOverTime())
    return model


def batches(part: Part, order: Array) -> Iterator[tuple[Array, Array]]:
    """Yields the sequences in an order, `BATCH` at once."""
    for chosen in order.reshape(-1, BATCH):
        yield part.inputs[chosen], part.targets[chosen]


def compiled(model: AlignedModel) -> tuple[Callable[[Array, Array], None], Callable[[Array, Array], tf.Tensor]]:
    """Returns what makes an update on a batch, and what computes the losses of sequences; both are traced once."""
    batch, any_number = (tf.TensorSpec((number, TIME, 1), tf.float32) for number in (BATCH, None))

    @tf.function(input_signature=(batch, batch), autograph=False)
    def update(inputs: tf.Tensor, targets: tf.Tensor) -> None:
        model.train_step((inputs, targets))

    @tf.function(input_signature=(any_number, any_number), autograph=False)
    def losses(inputs: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
        return SumOverTime().call(targets, model(inputs, training=False))

    return update, losses


def mean_losses(losses: Callable[[Array, Array], tf.Tensor], *parts: tuple[Part, Array]) -> list[float]:
    """Returns the mean loss of each part in an order, each batch from the initial state as it is trained.

    All are computed at once, which takes a narrow network less time: the layer goes through its initial states again.

    Args:
        losses: what `compiled` returned.
        *parts: sequences, a multiple of `BATCH`, and their order.
    """
    chosen = [(part.inputs[order], part.targets[order]) for part, order in parts]
    found = losses(*map(np.concatenate, zip(*chosen, strict=True))).numpy()
    ends = np.cumsum([len(order) for _, order in parts])[:-1]
    return [float(each.mean()) for each in np.split(found, ends)]


def trained(tell: Tell, rule: str, width: int, seed: int, epochs: int = EPOCHS) -> Arrays:
    """Trains one network; after every epoch it computes both losses.

    Args:
        tell: told the progress.
        rule: one of `RULES`.
        width: hidden units m.
        seed: of the weights and the shuffles; the sequences are those of the published seed whatever it is, so that
            all losses have one chance level.
        epochs: how many.

    Returns:
        `train_loss`, `test_loss` (epochs,): means over the batches of the loss, in the order that the epoch has drawn.
    """
    train, test = sequences()
    model = build(rule, width, seed)
    update, losses_of = compiled(model)
    losses: dict[str, list[float]] = {"train_loss": [], "test_loss": []}
    for number, order in enumerate(orders(seed, epochs), start=1):
        for batch in batches(train, order.updates):
            update(*batch)
        found = mean_losses(losses_of, (test, order.test), (train, order.train))
        for name, loss in zip(("test_loss", "train_loss"), found, strict=True):
            losses[name].append(loss)
        tell(number / epochs)
    return {name: np.array(values) for name, values in losses.items()}


def best(losses: Array) -> float:
    """Returns the least loss over the epochs, as the paper reports it; NaN where none is finite."""
    finite = losses[np.isfinite(losses)]
    return float(finite.min()) if finite.size else float("nan")
