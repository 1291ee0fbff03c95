"""Creates the data, the model and the optimizers of a run from its configuration."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

from neural_alignment import data
from neural_alignment.config import Config
from neural_alignment.errors import ConfigError
from neural_alignment.keras_internals import all_layers
from neural_alignment.optimization import Clock
from neural_alignment.training import memory
from neural_alignment.training.model import AlignedModel
from optimizers import MultiOptimizer, RateScheduler


def load_data(config: Config) -> data.Dataset:
    """Returns the data set of a run.

    Raises:
        DataError: if it cannot be read as the configuration says.
    """
    return config.data.load(batching(config))


def load_test_data(config: Config, split: str) -> data.Dataset:
    """Returns a data set whose validation part is another split of the run's data, in batches of the validation's size.

    It is standardized as the data of the run are.

    Raises:
        DataError: if it cannot be read as the configuration says.
    """
    return config.data.for_test(split, config.batch_size).load(batching(config))


def data_facts(config: Config) -> data.Facts:
    """Returns shapes and counts of a run's data; reads the data only if nothing else says them.

    Raises:
        DataError: if the data must be read and cannot be.
    """
    return config.data.facts(batching(config))


def batching(config: Config) -> data.Batching:
    """Returns how the examples of a run become batches."""
    validation = config.evaluation.batch_size or config.batch_size
    return data.Batching(config.batch_size, config.seed, config.data.shuffle, validation)


def build_model(config: Config, classes: int, input_shape: tuple[int, ...], steps_per_epoch: int) -> AlignedModel:
    """Returns the model of a run, its weights drawn from the seed, not compiled.

    Raises:
        ConfigError: if the pattern of a rule fits no layer, or the weights do not fit into memory.
    """
    memory.check(config, output_units(config, classes), input_shape)
    keras.utils.set_random_seed(config.seed)
    # Keeps float32 exact, which in `mixed_bfloat16` R and the angles need: GPUs would multiply in TF32.
    tf.config.experimental.enable_tensor_float_32_execution(False)
    with _precision(config.runtime.precision), memory.exhaustion_reported(config):
        model = _draw_model(config, classes, input_shape, steps_per_epoch)
    if config.runtime.synchronize_batch_norm:
        for layer in all_layers(model):
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.synchronized = True
    return model


@contextlib.contextmanager
def _precision(policy: str) -> Iterator[None]:
    """Makes layers of one dtype policy, and losses and metrics as precise as their weights."""
    before = keras.config.dtype_policy(), keras.config.floatx()
    keras.config.set_dtype_policy(policy)
    keras.config.set_floatx(keras.config.dtype_policy().variable_dtype)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before[0])
        keras.config.set_floatx(before[1])


def _draw_model(config: Config, classes: int, input_shape: tuple[int, ...], steps_per_epoch: int) -> AlignedModel:
    rules = [rule.bind(config.seed, steps_per_epoch) for rule in config.rules]
    alignment = rules[0] if len(rules) == 1 else rules or None
    model = config.model.build(output_units(config, classes), input_shape, alignment, config.weight_decay)
    return AlignedModel(model.input, model.output, name=model.name)


def output_units(config: Config, classes: int) -> int:
    """Returns how many outputs the network of a run has: one per class, or the units of a code.

    Raises:
        ConfigError: if the codes do not fit into memory, or have too few units.
    """
    if (shape := config.loss.code_shape(classes)) is not None:
        memory.check_codes(*shape)
    config.loss.check_classes(classes)
    return config.loss.outputs(classes)


def build_optimizer(config: Config, steps_per_epoch: int) -> MultiOptimizer:
    """Returns the optimizers of a run, scheduled over its global steps."""
    plan = config.optimization
    # Where both losses move W, the two optimizers need different noise: it is a function of seed, path and step.
    apart = 2**31 if any(rule.trains_forward for rule in config.rules) else 0
    clock = Clock(steps_per_epoch, config.epochs_of_j, plan.delay_epochs, plan.alternation)
    optimizers = [
        options.make(config.batch_size, clock, config.seed + loss * apart)
        for loss, options in enumerate(plan.optimizers.values())
    ]
    scheduler = RateScheduler(steps_per_epoch, plan.delay_epochs, plan.alternation, plan.loss_rates.make(clock))
    return MultiOptimizer(optimizers, None if scheduler.constant else scheduler, plan.skip_idle)


def compiled_model(config: Config, facts: data.Facts, scope: contextlib.AbstractContextManager[Any]) -> AlignedModel:
    """Returns the compiled model of a run.

    Args:
        config: the configuration of the run.
        facts: facts about its data.
        scope: the scope of a distribution strategy, in which variables are created.

    Raises:
        ConfigError: as of `build_model` and `compile_model`.
    """
    with scope:
        model = build_model(config, facts.classes, facts.input_shape, facts.steps_per_epoch)
        compile_model(model, config, facts.classes, facts.steps_per_epoch)
    return model


def compile_model(model: AlignedModel, config: Config, classes: int, steps_per_epoch: int) -> None:
    """Compiles the model for a run.

    Raises:
        ConfigError: if an optimizer finds no variable that it is meant for.
    """
    with _precision(config.runtime.precision):
        loss, metrics = config.loss.make(classes, config.batch_size, config.seed)
        try:
            model.compile(
                optimizer=build_optimizer(config, steps_per_epoch),
                loss=loss,
                weighted_metrics=metrics,  # Weighted: examples that fill up a batch for the replicas have weight 0.
                minibatches=config.optimization.minibatches,
                jit_compile=config.runtime.jit_compile,
                steps_per_execution=config.runtime.steps_per_execution,
            )
        except ValueError as error:
            raise ConfigError(f"optimization: {error}") from None
