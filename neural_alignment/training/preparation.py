"""The parts of a run that do not depend on its directory: devices, data, and the compiled model."""

from __future__ import annotations

import concurrent.futures
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from neural_alignment import data, paths
from neural_alignment.config import Config
from neural_alignment.errors import ConfigError, RunError, WrongValue
from neural_alignment.training import callbacks, distribution, initial_state, setup
from neural_alignment.training.evaluation import AlignmentProbe
from neural_alignment.training.graphs import reuse_graphs
from neural_alignment.training.run_directory import RunDirectory
from neural_alignment.training.stepping import Tracing, finish_tracing
from neural_alignment.training.trainer import Trainer


class Prepared(NamedTuple):
    """The parts of a run that do not depend on its directory.

    Attributes:
        trainer: the compiled model, the data and the devices.
        test: a data set whose validation split is evaluated as well, or None.
        alignment: measures the alignment of the model.
    """

    trainer: Trainer
    test: data.Dataset | None
    alignment: AlignmentProbe


def prepare(config: Config) -> Prepared:
    """Builds and compiles the model of a run, and begins to trace its graphs, while the data are loaded.

    Raises:
        ConfigError: if the options do not fit the devices, the data, the memory or the model.
        DataError: if the data cannot be read.
    """
    finish_tracing()  # Of an earlier run in this process that failed: graphs must not be traced at the same time.
    devices = distribution.create(config.runtime)
    devices.check(config)
    facts = setup.data_facts(config)
    devices.check_evaluation(config, facts)
    split = config.evaluation.test_split
    with concurrent.futures.ThreadPoolExecutor(1) as background:
        reading = background.submit(setup.load_data, config)
        testing = None
        if split is not None:  # After `reading`, because there is one thread.
            testing = background.submit(lambda: setup.load_test_data(config, split, reading.result()))
        model = setup.compiled_model(config, facts, devices.scope())
        callbacks.kernel_layers(model, config.logging.kernels)  # Checks the patterns.
        reuse_graphs(model, config, facts)
        alignment = AlignmentProbe(model, devices, config.evaluation.probe_examples)
        # One graph after the other: layers collect losses while they are traced.
        alignment.trace(facts)
        tracing, spec = None, facts.batch_spec
        if devices.reads_whole_batches:
            tracing = Tracing(model, tf.data.IteratorSpec(spec), spec)
        dataset, test = reading.result(), None if testing is None else testing.result()
    if test is not None:
        devices.check_evaluation(config, test)
    if test is not None and not _same_standardization(dataset, test):
        requirement = (
            "must be held in memory or streamed as the data of the run are, so that its images are standardised like "
            "these: choose a smaller or a larger part"
        )
        raise ConfigError(WrongValue("evaluation.test_split", requirement, split))
    return Prepared(Trainer(model, dataset, devices, tracing), test, alignment)


def _same_standardization(one: data.Dataset, other: data.Dataset) -> bool:
    """Whether two data sets subtract the same center from their pixels and divide by the same scale."""
    pairs = (np.broadcast_arrays(*pair) for pair in ((one.center, other.center), (one.scale, other.scale)))
    return all(np.allclose(*pair, rtol=1e-6, atol=0) for pair in pairs)


def load_initial_state(
    config: Config, directory: RunDirectory, prepared: Prepared, resumes: bool
) -> dict[str, Any] | None:
    """Loads the state of `init_from` into the model, unless the run continues from its saved state.

    Args:
        config: the configuration of the run.
        directory: the run directory.
        prepared: the model and the data.
        resumes: whether the run continues from a state in its directory.

    Returns:
        `Loaded.plain` of the state, or None if no state was loaded.

    Raises:
        RunError: if the state is missing or damaged, does not fit, is in the run directory itself, or is at or after
            the last step of the run, or if the workers do not see the same run or the same state.
    """
    devices = prepared.trainer.devices
    devices.check_same(resumes, directory.not_shared())
    if config.init_from is None or resumes:
        return None
    loaded = _load(config, directory, prepared).plain()
    devices.check_same(
        int(loaded["digest"][:8], 16),
        f"init_from: the workers do not see the same state of {config.init_from.path}; give all workers the same path, "
        "on a file system that they share; if that run is still running, set init_from.state to the step of a saved "
        "state",
    )
    return loaded


def _load(config: Config, directory: RunDirectory, prepared: Prepared) -> initial_state.Loaded:
    """Loads the state of `init_from` into the model."""
    options = config.init_from
    own, source = (paths.real(path.rstrip("/")) for path in (directory.path, options.path))
    if source == own or source.startswith(f"{own}/"):
        raise RunError(f"init_from: must not be in the run directory {directory.path}; found {options.path}")
    loaded = initial_state.load(options, prepared.trainer.model)
    end = total_steps(config, prepared.trainer.dataset)
    if loaded.first_step >= end:
        raise RunError(
            f"init_from: the run would continue at step {loaded.first_step} of {options.path}, but it ends at step "
            f"{end}; raise epochs or max_steps, or start at step 0 with init_from.optimizer: false"
        )
    return loaded


def epoch_steps(config: Config, dataset: data.Facts) -> int:
    """Returns the number of global steps in an epoch of the run, which alternation makes longer."""
    return dataset.steps_per_epoch * ((config.optimization.alternation or 0) + 1)


def total_steps(config: Config, dataset: data.Facts) -> int:
    """Returns the global step at which a run ends."""
    total = config.epochs * epoch_steps(config, dataset)
    return min(total, config.max_steps or total)
