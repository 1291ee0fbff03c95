"""The accuracies of Boopathy and Fiete 2022: one network trained at several learning rates."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import tensorflow as tf

from neural_alignment.config import Config, override
from neural_alignment.jobs.pieces import Arrays, Tell
from neural_alignment.training import setup
from neural_alignment.training.trainer import Trainer

Tensor = tf.Tensor


def swept(tell: Tell, config: Config, rates: Sequence[float], test_split: str | None) -> Arrays:
    """Trains a network at several learning rates, each time from the same weights; evaluates it after every epoch.

    A run of dozens of steps takes less time than starting its process and tracing its graph, so the rates share both.
    Each rate gives the run that `train` would make of the configuration. A rate ends early if J is no longer finite.

    Args:
        tell: receives the progress.
        config: the configuration of the run. Its learning rate is not used, and it has no schedule.
        rates: learning rates of J's optimizer.
        test_split: the split of the data set for the test accuracy, or none.

    Returns:
        `train_loss` (rates, epochs), the mean of J over each epoch; `validation_accuracy` (rates, epochs), percent;
        both NaN after a divergence. `test_accuracy` (), percent, of the network of the best validation accuracy over
        rates and epochs, the first of equals; NaN without a test split, or if all rates diverge in the first epoch.
    """
    losses, accuracies = (np.full((len(rates), config.epochs), math.nan) for _ in range(2))
    best, weights = -math.inf, None
    whole_epoch = f"runtime.steps_per_execution={setup.data_facts(config).steps_per_epoch}"
    trainer = Trainer.from_config(override(config, [whole_epoch]))
    trainer.keep_initial_state()
    hits = trainer.inference(_hits)
    validation = list(trainer.dataset.validation())
    for row, rate in enumerate(rates):
        trainer.reset(rate)
        for epoch in range(config.epochs):
            losses[row, epoch] = trainer.train_epoch()["loss"]
            if not math.isfinite(losses[row, epoch]):
                break
            accuracies[row, epoch] = _accuracy(hits, validation)
            if accuracies[row, epoch] > best:
                best, weights = accuracies[row, epoch], trainer.model.get_weights()
            tell((row + (epoch + 1) / config.epochs) / len(rates))
    test = math.nan
    if test_split is not None and weights is not None:
        trainer.model.set_weights(weights)
        test = _accuracy(hits, setup.load_test_data(config, test_split, trainer.dataset).validation())
    return {"train_loss": losses, "validation_accuracy": accuracies, "test_accuracy": np.array(test)}


def _hits(labels: Tensor, outputs: Tensor) -> Tensor:
    """Returns the number of examples whose largest output is that of their class."""
    return tf.math.count_nonzero(tf.argmax(outputs, axis=-1, output_type=labels.dtype) == labels)


def _accuracy(hits: Callable[[Tensor, Tensor], Tensor], batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Returns the accuracy on some batches, percent."""
    counts = [(int(hits(images, labels)), len(labels)) for images, labels in batches]
    return 100.0 * sum(count for count, _ in counts) / sum(examples for _, examples in counts)
