"""The Add task of Boopathy and Fiete 2022 (Appendices F and K), trained as the published code trains it."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from neural_alignment import config as configuration
from neural_alignment.data.add_task import PUBLISHED_SEED, Sequences
from neural_alignment.errors import ArgumentError
from neural_alignment.jobs.pieces import Arrays, Tell
from neural_alignment.losses import SummedSquaredError
from neural_alignment.training.trainer import Trainer

Array = np.ndarray

ADD_TASK_RULES = {"normal": None, "align_ada": "align_ada", "align_zero": "align_zero", "readout_only": "last_layer"}
"""Name of a rule in the table -> `alignment.rule`; none for gradient descent."""

TIME, BATCH, RATE = 100, 50, 0.001
"""Steps of a sequence, sequences of a minibatch, learning rate."""

EPOCHS = 500
"""The text has 200 (Appendix F); the printed losses are those of 500 epochs of the published code."""


def build(rule: str, width: int, seed: int) -> Trainer:
    """Returns the trainer of a network with its initial weights; arguments as of `trained`.

    The sequences are those of the published seed, so that all losses have one chance level.

    Raises:
        ValueError: if there is no such rule.
    """
    if rule not in ADD_TASK_RULES:
        raise ArgumentError("rule", f"must be one of {', '.join(ADD_TASK_RULES)}", rule, "rule='normal'")
    options = {
        "seed": seed,
        "epochs": EPOCHS,
        "batch_size": BATCH,
        "data": {"source": "add_task", "steps": TIME, "sequences_seed": PUBLISHED_SEED},
        "model": {"name": "rnn", "units": width, "slots": BATCH, "weights_seed": seed},
        "loss": {"kind": "summed_squared_error"},
        "alignment": ADD_TASK_RULES[rule] and {"rule": ADD_TASK_RULES[rule]},
        "optimization": {"forward": {"name": "sgd", "learning_rate": RATE}},
        "runtime": {"steps_per_execution": 6},  # An epoch, in one graph call.
    }
    return Trainer.from_config(configuration.parse(options))


def mean_losses(losses: Callable[[Array, Array], tf.Tensor], *parts: tuple[Sequences, Array]) -> list[float]:
    """Returns the mean loss of each part in an order. Each batch starts from the trained initial state.

    One call computes all parts, which is faster for a narrow network: the layer repeats its initial states. `losses`
    computes the loss of each sequence from inputs and targets; a part has a multiple of `BATCH` sequences.
    """
    chosen = [(part.inputs[order], part.targets[order]) for part, order in parts]
    found = losses(*map(np.concatenate, zip(*chosen, strict=True))).numpy()
    ends = np.cumsum([len(order) for _, order in parts])[:-1]
    return [float(each.mean()) for each in np.split(found, ends)]


def trained(tell: Tell, rule: str, width: int, seed: int, epochs: int = EPOCHS) -> Arrays:
    """Trains one network, with `width` hidden units, by one of `ADD_TASK_RULES`; computes both losses every epoch.

    The seed is that of the weights and of the orders; `tell` receives the progress, 0 to 1.

    Returns:
        `train_loss`, `test_loss` (epochs,): means of the loss over the batches, in the order that the epoch has drawn.
    """
    trainer = build(rule, width, seed)
    data, losses_of = trainer.dataset, trainer.inference(SummedSquaredError().call)
    losses = []
    trainer.start()
    for number, order in enumerate(itertools.islice(data.orders(), epochs), start=1):
        trainer.train_epoch()
        losses.append(mean_losses(losses_of, (data.test_split, order.test), (data.train_split, order.train)))
        tell(number / epochs)
    return dict(zip(("test_loss", "train_loss"), np.transpose(losses), strict=True))


def best(losses: Array) -> float:
    """Returns the smallest loss over the epochs, as the paper reports it; NaN if none is finite."""
    finite = losses[np.isfinite(losses)]
    return float(finite.min()) if finite.size else float("nan")
