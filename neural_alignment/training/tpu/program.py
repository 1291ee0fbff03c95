"""Turns the training steps of a configuration into programs for a TPU's compiler."""

from __future__ import annotations

import contextlib
import math

import numpy as np
import tensorflow as tf

from neural_alignment.config import Config
from neural_alignment.data import Facts
from neural_alignment.errors import ConfigError, WrongValue
from neural_alignment.training import setup
from neural_alignment.training.preparation import total_steps

J, R, BOTH = "J", "R", "J + R"
"""The losses of a step."""


def turns(config: Config, facts: Facts) -> dict[str, int]:
    """Returns the number of steps of a whole run by the losses that they train: J, R, or J + R.

    Args:
        config: the configuration of the run.
        facts: shapes and counts of its data.
    """
    plan, total = config.optimization, total_steps(config, facts)
    delay = min(total, math.ceil(plan.delay_epochs * facts.steps_per_epoch))
    if plan.alternation is not None:
        of_r = delay + len(range(0, total, plan.turns)) - len(range(0, delay, plan.turns))
        counts = {J: total - of_r, R: of_r}
    else:
        steps = np.arange(delay, total)
        due = [steps % rule.interval == 0 for rule in config.rules if rule.learns]
        of_both = int(np.any(due, axis=0).sum()) if due else 0
        counts = {BOTH: of_both, J: len(steps) - of_both, R: delay}
    return {losses: count for losses, count in counts.items() if count}


def batch_per_core(config: Config, replicas: int) -> int:
    """Returns the number of examples of a batch on each core.

    Raises:
        ConfigError: if the cores cannot share the batch evenly.
    """
    if config.batch_size % replicas:
        requirement = f"is shared by {replicas} cores and must be a multiple of {replicas}"
        raise ConfigError(WrongValue("batch_size", requirement, config.batch_size))
    return config.batch_size // replicas


def lower(config: Config, replicas: int, losses: str) -> bytes:
    """Returns the program of one training step on one core: a serialized `HloModuleProto`.

    The model is built, but no step is executed and no image is read. The program does not depend on the kind of TPU. It
    lacks the sum of the gradients over the cores.

    Args:
        config: the configuration of the run.
        replicas: number of cores that share a batch.
        losses: the losses that the step trains: "J", "R" or "J + R".

    Raises:
        ConfigError: if the cores cannot share the batch evenly.
        DataError: if the configuration does not determine shapes and counts, and the data cannot be read.
    """
    examples = batch_per_core(config, replicas)
    facts = setup.data_facts(config)
    model = setup.compiled_model(config, facts, contextlib.nullcontext())
    batch = tuple(tf.TensorSpec((examples, *spec.shape), spec.dtype) for spec in facts.example_spec)
    return model.hlo(batch, losses != R, losses != J)
