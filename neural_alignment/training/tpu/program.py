"""Turns the training steps of a configuration into programs for a TPU's compiler."""

from __future__ import annotations

import contextlib

import tensorflow as tf

from neural_alignment.config import Config
from neural_alignment.data import Facts
from neural_alignment.training import setup
from neural_alignment.training.distribution import check_replicas
from neural_alignment.training.preparation import total_steps
from neural_alignment.training.step_modes import StepModes
from optimizers import philox


def turns(config: Config, facts: Facts) -> dict[str, int]:
    """Returns the number of steps of a run, from step 0, by the losses that they train: see `StepModes.name`.

    Args:
        config: the configuration of the run.
        facts: shapes and counts of its data.

    Raises:
        ConfigError: if the options do not fit the model, or no step is trained as they demand.
    """
    intervals = {rule.interval for rule in config.rules if rule.learns}
    if len(config.rules) > 1:  # Only the model knows which of them have a layer.
        modes = setup.compiled_model(config, facts, contextlib.nullcontext()).step_modes
    else:
        modes = StepModes(setup.build_optimizer(config, facts.steps_per_epoch), intervals)
    return modes.count(total_steps(config, facts))


def batch_per_core(config: Config, replicas: int) -> int:
    """Returns the number of examples of a batch on each core.

    Raises:
        ConfigError: if the cores cannot share the batches of the run, as replicas.
    """
    check_replicas(config, replicas)
    return config.batch_size // replicas


def lower(config: Config, replicas: int, losses: str) -> bytes:
    """Returns the program of one training step on one core: a serialized `HloModuleProto`.

    The model is built, but no step is executed and no image is read. The program does not depend on the kind of TPU. It
    lacks the sum of the gradients over the cores.

    Args:
        config: the configuration of the run.
        replicas: number of cores that share a batch.
        losses: the losses that the step trains, one of the names in `turns`.

    Raises:
        ConfigError: as in `batch_per_core`.
        DataError: if the configuration does not determine shapes and counts, and the data cannot be read.
    """
    examples = batch_per_core(config, replicas)
    facts = setup.data_facts(config)
    model = setup.compiled_model(config, facts, contextlib.nullcontext())
    batch = tuple(tf.TensorSpec((examples, *spec.shape), spec.dtype) for spec in facts.example_spec)
    with philox.program_for_tpu():
        return model.hlo(batch, model.step_modes.named(losses), replicas)
