"""The alignment scores of Boopathy and Fiete 2022: networks trained in lockstep with their W*."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from neural_alignment.analysis.alignment_score import alignment_score, permuted_change
from neural_alignment.config import Config
from neural_alignment.errors import ArgumentError, Diverged, InputError
from neural_alignment.jobs.pieces import Arrays, Tell
from neural_alignment.operations import ConvMap, DepthwiseMap, TransposedConvMap
from neural_alignment.papers.tables import spread, table
from neural_alignment.reporting import Artifact, Row
from neural_alignment.training import divergence
from neural_alignment.training.lockstep import Lockstep
from neural_alignment.training.model import AlignedModel
from neural_alignment.training.trainer import Trainer

NAMES = ("score", "score_sem", "permuted_score", "permuted_score_sem")
"""The arrays of each layer: the score, the score of the permuted baseline, and their standard errors."""


def scored(tell: Tell, config: Config, moments: Sequence[int], probes: int) -> Arrays:
    """Trains a network by gradient descent in lockstep with its W*, and scores its convolutions.

    Args:
        tell: receives the progress, 0 to 1.
        config: the configuration of the network: plain gradient descent. Its number of epochs is not used.
        moments: epochs after which the scores are computed, increasing. Training ends with the last one, or earlier at
            `max_steps`; this step then takes the place of all later moments.
        probes: Gaussian samples of each score (Appendix F: 100).

    Returns:
        `epoch` (moments,), not whole if `max_steps` ends the training within an epoch; each of `NAMES` (moments,
        convolutions), in the order of the forward pass; `train_loss` (moments,), the mean of J over the last epoch
        before each moment, or over the part of it that was trained.

    Raises:
        ArgumentError: before training, if the network has no convolution, or as in `Lockstep`.
        InputError: if the weights of a layer have not changed, so that it has no score.
        Diverged: if J or a score is not finite.
    """
    trainer = Trainer.from_config(config)
    model, lockstep = trainer.model, Lockstep(trainer.model)
    if not convolutions(model, lockstep):
        raise ArgumentError("model.name", "must be a network with convolutions, such as wide_cnn", config.model.name)
    trainer.start(train_on=lockstep.step)
    size, rows = trainer.dataset.steps_per_epoch, []
    ends = sorted({min(epoch * size, config.max_steps or math.inf) for epoch in moments})
    while trainer.step < ends[-1]:
        model.reset_metrics()
        done, steps = trainer.step, min(size, ends[-1] - trainer.step)
        loss = trainer.train(steps, lambda part, done=done, steps=steps: tell((done + part * steps) / ends[-1]))["loss"]
        if not math.isfinite(loss):
            raise divergence.diverged(model, trainer.step)
        if trainer.step in ends:
            epoch = trainer.step / size if trainer.step % size else trainer.step // size
            with np.errstate(over="ignore", invalid="ignore"):
                found = scores(model, lockstep, probes, config.seed)
            if not np.isfinite([found[name] for name in NAMES]).all():
                reason = f"the weights are too large for scores at step {trainer.step}"
                raise Diverged(f"{reason}; try this: lower the learning rate", trainer.step, [])
            rows.append({"epoch": epoch, "train_loss": loss, **found})
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


COLUMNS = ("epoch", "layer", "width", "seed", "score", "score_sem", "permuted_score")
"""Columns of the scores of one network."""


def rows(arrays: Arrays, width: int, seed: int) -> list[Row]:
    """Returns a row with `COLUMNS` for every moment and convolution of a network that `scored` has trained."""
    return [
        {"epoch": epoch.item(), "layer": layer, "width": width, "seed": seed}
        | {key: float(arrays[key][moment, layer - 1]) for key in NAMES[:3]}
        for moment, epoch in enumerate(arrays["epoch"])
        for layer in range(1, arrays["score"].shape[1] + 1)
    ]


def check(config: Config) -> None:
    """Checks a configuration, as far as this needs neither its data nor its network.

    Raises:
        InputError: if the network has no width, is trained by a rule, or begins with the weights of another run.
    """
    if not hasattr(config.model, "width"):
        raise InputError(f"model.name: must be a network with a width, such as wide_cnn; found {config.model.name}")
    if config.rules:
        found = ", ".join(rule.rule for rule in config.rules)
        raise InputError(f"alignment: must be null, because W* is the result of backpropagation; found {found}")
    if config.init_from is not None:
        reason = "has no effect on scores, which need the change of W from its random initial values; leave it out"
        raise InputError(f"init_from: {reason}")


def report(config: Config, moments: Sequence[int], probes: int, tell: Tell) -> Artifact:
    """Returns the scores of one network, with its mean scores over layers; arguments as of `scored`.

    Raises:
        InputError: before training, if `check` fails, or if the network has no convolution, draws random numbers, or is
            not trained by plain gradient descent; after training, if the weights of a layer have not changed.
        Diverged: if J or a score is not finite.
    """
    check(config)
    try:
        found = rows(scored(tell, config, sorted(moments), probes), config.model.width, config.seed)
    except ArgumentError as error:
        raise InputError(error.value) from None
    columns = {"epoch": lambda own: f"{own[0]['epoch']:.4g}"}
    columns["mean score"] = lambda own: f"{spread(own, 'score').mean:.3f}"
    columns["with permuted weights"] = lambda own: f"{spread(own, 'permuted_score').mean:.3f}"
    return Artifact(COLUMNS, found, table(found, ["epoch"], columns))


def convolutions(model: AlignedModel, lockstep: Lockstep) -> list[Any]:
    """Returns the layers that are scored, in the order of the forward pass: the paper scores convolutions only."""
    layers = map(model.get_layer, lockstep.changes())
    return [layer for layer in layers if isinstance(getattr(layer, "linear_map", lambda: None)(), _CONVOLUTIONS)]


_CONVOLUTIONS = (ConvMap, DepthwiseMap, TransposedConvMap)


def scores(model: AlignedModel, lockstep: Lockstep, probes: int, seed: int) -> dict[str, list[float]]:
    """Returns `NAMES`, a value per convolution; the seed is that of the samples and of the permutation."""
    changes, references = lockstep.changes(), lockstep.reference_changes()
    found: dict[str, list[float]] = {name: [] for name in NAMES}
    for layer in convolutions(model, lockstep):
        weights, change, reference = map(np.asarray, (layer.kernel, changes[layer.name], references[layer.name]))
        if not np.any(change) or not np.any(reference):
            reason = "its weights have not changed, so it has no score; train it with a higher rate, or for longer"
            raise InputError(f"layer {layer.name}: {reason}")
        permuted = permuted_change(weights, weights - change, seed)
        for prefix, each in (("score", change), ("permuted_score", permuted)):
            shape = tuple(layer.input.shape[1:])
            score = alignment_score(layer.linear_map(), each, reference, shape, probes, seed)
            found[prefix].append(score.value)
            found[f"{prefix}_sem"].append(score.standard_error)
    return found
