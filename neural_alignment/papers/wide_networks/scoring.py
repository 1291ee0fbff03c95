"""What the alignment scores of Boopathy and Fiete 2022 are computed by: networks trained beside their W*."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from neural_alignment.analysis.alignment_score import alignment_score, permuted_change
from neural_alignment.config import Config
from neural_alignment.papers.pieces import Arrays, Tell
from neural_alignment.training import setup
from neural_alignment.training.lockstep import Lockstep
from neural_alignment.training.model import AlignedModel

NAMES = ("score", "score_sem", "permuted_score", "permuted_score_sem")
"""What is told of each layer: the score and that of the permuted baseline, and their standard errors."""


def scored(tell: Tell, config: Config, moments: Sequence[int], probes: int) -> Arrays:
    """Trains a network by gradient descent beside its W*, and scores its convolutions.

    Args:
        tell: told the progress.
        config: of the network, trained by plain gradient descent; its number of epochs is not read.
        moments: epochs after which the scores are computed, rising; the last one ends the training.
        probes: Gaussian samples of each score (Appendix F: 100).

    Returns:
        `epoch` (moments,); each of `NAMES` (moments, convolutions), in the order of the forward pass; `train_loss`
        (moments,), the mean of J over the epoch that a moment ends.
    """
    dataset = setup.load_data(config)
    steps = dataset.steps_per_epoch
    model = setup.build_model(config, dataset.classes, dataset.input_shape, steps)
    setup.compile_model(model, config, dataset.classes, steps)
    lockstep = Lockstep(model)
    batches = dataset.train().as_numpy_iterator()
    rows = []
    for epoch in range(1, moments[-1] + 1):
        model.reset_metrics()
        for step, batch in enumerate(itertools.islice(batches, steps), start=1):
            lockstep.step(*batch)
            tell((epoch - 1 + step / steps) / moments[-1])
        if epoch in moments:
            loss = float(model.get_metrics_result()["loss"])
            rows.append({"epoch": epoch, "train_loss": loss, **scores(model, lockstep, probes, config.seed)})
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def scores(model: AlignedModel, lockstep: Lockstep, probes: int, seed: int) -> dict[str, list[float]]:
    """Returns `NAMES`, a value per convolution.

    Args:
        model: the network.
        lockstep: what trains it and its W*.
        probes: Gaussian samples of each score.
        seed: of the samples and the permutation.
    """
    changes, references = lockstep.changes(), lockstep.reference_changes()
    found: dict[str, list[float]] = {name: [] for name in NAMES}
    for name, change in changes.items():
        layer = model.get_layer(name)
        if len(layer.kernel.shape) != 4:  # The paper scores convolutions alone.
            continue
        weights = np.asarray(layer.kernel)
        permuted = permuted_change(weights, weights - np.asarray(change), seed)
        for prefix, each in (("score", np.asarray(change)), ("permuted_score", permuted)):
            shape = tuple(layer.input.shape[1:])
            score = alignment_score(layer.linear_map(), each, np.asarray(references[name]), shape, probes, seed)
            found[prefix].append(score.value)
            found[f"{prefix}_sem"].append(score.standard_error)
    return found
