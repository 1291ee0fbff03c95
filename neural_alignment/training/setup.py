"""Creates the data, the model and the optimizers of a run from its configuration."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from neural_alignment import data
from neural_alignment.alignments import Alignment
from neural_alignment.config import Config
from neural_alignment.errors import ArgumentError, ConfigError, InputError, WrongValue, one_line, shortened
from neural_alignment.keras_internals import all_layers, fresh_names, functional, has_graph
from neural_alignment.losses import LossOptions, mean_over_examples
from neural_alignment.optimization import Clock
from neural_alignment.registry import misfit
from neural_alignment.training import memory
from neural_alignment.training.graphs import run_seed, set_random_seed
from neural_alignment.training.loading import check_finite, check_network, check_task, load_model
from neural_alignment.training.model import AlignedModel
from optimizers import MultiOptimizer, RateScheduler


def load_data(config: Config) -> data.Dataset:
    """Returns the data set of a run.

    Raises:
        DataError: if the data cannot be read.
    """
    return config.data.loaded(batching(config))


def load_test_data(config: Config, split: str, dataset: data.Dataset) -> data.Dataset:
    """Returns a data set whose validation split is another split of the run's data.

    It is standardized like the data of the run, and its damaged records are listed and limited together with theirs.

    Args:
        config: the configuration of the run.
        split: the split, in the syntax of the data source.
        dataset: the data of the run.

    Raises:
        DataError: if the data cannot be read.
    """
    test = config.data.for_test(split, config.batch_size).loaded(batching(config))
    dataset.damage.include(test.damage)
    return test


def data_facts(config: Config) -> data.Facts:
    """Returns shapes and counts of the data of a run. Reads the data only if the configuration does not determine them.

    Raises:
        DataError: if the data must be read and cannot be read.
    """
    return config.data.facts(batching(config))


def batching(config: Config) -> data.Batching:
    """Returns the batch sizes, the seed and the shuffling of a run."""
    validation = config.evaluation.batch_size or config.batch_size
    return data.Batching(config.batch_size, config.seed, config.data.shuffle, validation)


def build_model(config: Config, classes: int, input_shape: tuple[int, ...], steps_per_epoch: int) -> AlignedModel:
    """Returns the model of a run with weights drawn from the seed. It is not compiled.

    Args:
        config: the configuration of the run.
        classes: number of classes.
        input_shape: shape of one input.
        steps_per_epoch: number of full batches in an epoch.

    Raises:
        ConfigError: if the model does not fit the data, a rule does not fit the model, no layer has a rule, the model
            could not be loaded after training, or the weights or the codes do not fit into memory.
    """
    return build_network(config, output_units(config, classes), input_shape, steps_per_epoch)


def build_network(config: Config, outputs: int, input_shape: tuple[int, ...], steps_per_epoch: int) -> AlignedModel:
    """Returns the model of a run as `build_model` does, for a known number of outputs instead of one of classes.

    The names of its layers, on which columns of `metrics.csv` and the draws of B depend, do not depend on the models
    that this process has built before.
    """
    with _reported("model", type(config.model).model_fields):
        config.model.check_inputs(input_shape)
    memory.check(config, outputs, input_shape)
    set_random_seed(config)
    _multiply_in_float32()
    with _precision(config.runtime.precision), fresh_names(), memory.exhaustion_reported(config):
        model = _draw_model(config, outputs, input_shape, steps_per_epoch)
    if config.runtime.synchronize_batch_norm:
        for layer in all_layers(model):
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.synchronized = True
    return model


def load_network(path: str) -> AlignedModel:
    """Returns the final model of a run, whose products are computed as in the training.

    Args:
        path: the `model.keras` of the run.

    Raises:
        RunError: as in `load_model`, or if a weight is not finite.
    """
    _multiply_in_float32()
    model = load_model(path)
    check_finite(model, path)
    return model


def _multiply_in_float32() -> None:
    """Makes GPUs and TPUs compute products of float32 numbers in float32 in this process.

    By default they use TF32 or bfloat16, which is too coarse for R and the angles.
    """
    tf.config.experimental.enable_tensor_float_32_execution(False)


@contextlib.contextmanager
def _precision(policy: str) -> Iterator[None]:
    """Sets the dtype policy of layers within the context, and for losses and metrics the dtype of the weights."""
    before = keras.config.dtype_policy(), keras.config.floatx()
    keras.config.set_dtype_policy(policy)
    keras.config.set_floatx(keras.config.dtype_policy().variable_dtype)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before[0])
        keras.config.set_floatx(before[1])


def _draw_model(config: Config, outputs: int, input_shape: tuple[int, ...], steps_per_epoch: int) -> AlignedModel:
    seed = run_seed(config.seed)
    rules = [rule.bind(seed, steps_per_epoch) for rule in config.rules]
    alignment = rules[0] if len(rules) == 1 else rules or None
    with _reported("model", type(config.model).model_fields):
        model = config.model.build(outputs, input_shape, alignment, config.weight_decay)
    if not has_graph(model):
        requirement = "must be a model whose builder returns a functional or built Sequential model of Keras, not a "
        raise ConfigError(WrongValue("model.name", requirement + type(model).__name__, config.model.name))
    _check_rules(config, rules, model)
    check_network(config.model, model)
    graph = functional(model)
    with _reported("alignment"):
        return AlignedModel(graph.input, graph.output, name=model.name)


def _check_rules(config: Config, rules: Sequence[Alignment], model: keras.Model) -> None:
    """Checks that every rule is that of a layer. Otherwise the layers would train by backpropagation.

    Raises:
        ConfigError: if the builder of the model, such as that of a user, does not pass a rule on to a layer.
    """
    layers = all_layers(model)
    # Not by identity: `Bidirectional` copies its layers with their rules.
    used = [layer.alignment for layer in layers if isinstance(getattr(layer, "alignment", None), Alignment)]
    for given, rule in zip(config.rules, rules, strict=True):
        if rule not in used:
            pattern = f" with the pattern {rule.layers!r}" if rule.layers else ""
            names = shortened(", ".join(layer.name for layer in layers))
            raise ConfigError(
                f"{config.key_path(given)}: no layer of the model {config.model.name!r} has the rule {rule.rule!r}"
                f"{pattern}; its builder must pass `alignment` on to layers of `neural_alignment.layers`. The layers "
                f"are: {names}."
            )


@contextlib.contextmanager
def _reported(key: str, options: Collection[str] = ()) -> Iterator[None]:
    """Reports a `ValueError` within the context, such as one that Keras raises, as an error of the configuration.

    Args:
        key: the key to name.
        options: the keys inside of it. An `ArgumentError` of one of them is reported for this key, and one of a key of
            the configuration, such as `alignment`, for that key.

    Raises:
        ConfigError: for any `ValueError` that is not an `InputError`; the message is one line.
    """
    try:
        yield
    except InputError:
        raise
    except ValueError as error:
        wrong = error.value if isinstance(error, ArgumentError) else None
        line = f"{key}: {error}" if wrong is None else _line_of(wrong, key, options)
        raise ConfigError(one_line(line, 500)) from error


def _line_of(wrong: WrongValue, key: str, options: Collection[str]) -> str:
    """Returns the line for an argument that is a key, or belongs to the Python code that a key configures."""
    first = wrong.name.partition(".")[0]
    if first in options:
        return dataclasses.replace(wrong, name=f"{key}.{wrong.name}").line
    if first in Config.model_fields:
        return wrong.line
    return f"{key}: `{wrong.name}` {wrong.reason}" if wrong.name else f"{key}: {wrong.reason}"


def output_units(config: Config, classes: int) -> int:
    """Returns the number of outputs of the network of a run: one per class, or the units of a target code.

    Args:
        config: the configuration of the run.
        classes: number of classes.

    Raises:
        ConfigError: if the codes do not fit into memory, or have too few units.
    """
    if (shape := config.loss.code_shape(classes)) is not None:
        memory.check_codes(*shape)
    config.loss.check_classes(classes)
    return config.loss.outputs(classes)


def build_optimizer(config: Config, steps_per_epoch: int) -> MultiOptimizer:
    """Returns the optimizers of a run with the schedule of J and R over its global steps."""
    plan = config.optimization
    # Where both losses move W, the two optimizers need different noise: it is a function of seed, path and step.
    seed_offset = 2**30 if any(rule.trains_forward for rule in config.rules) else 0
    clock = Clock(steps_per_epoch, config.epochs_of_j, plan.delay_epochs, plan.alternation)
    optimizers = [
        options.make(config.batch_size, clock, run_seed(config.seed + loss * seed_offset))
        for loss, options in enumerate(plan.optimizers.values())
    ]
    scheduler = RateScheduler(steps_per_epoch, plan.delay_epochs, plan.alternation, plan.loss_rates.make(clock))
    return MultiOptimizer(optimizers, None if scheduler.constant else scheduler, plan.skip_idle)


def compiled_model(config: Config, facts: data.Facts, scope: contextlib.AbstractContextManager[Any]) -> AlignedModel:
    """Returns the compiled model of a run.

    Args:
        config: the configuration of the run.
        facts: shapes and counts of its data.
        scope: the scope of a distribution strategy, in which variables are created.

    Raises:
        ConfigError: as in `build_model` and `compile_model`.
    """
    with scope:
        model = build_model(config, facts.classes, facts.input_shape, facts.steps_per_epoch)
        compile_model(model, config, facts.classes, facts.steps_per_epoch)
    return model


def compile_model(model: AlignedModel, config: Config, classes: int, steps_per_epoch: int) -> None:
    """Compiles the model of a run.

    Args:
        model: the model.
        config: the configuration of the run.
        classes: number of classes.
        steps_per_epoch: number of full batches in an epoch.

    Raises:
        ConfigError: if an optimizer does not fit the model, if no step would train J, if the loss has no metric for
            its criterion, or if the loss or a metric could not be loaded with the trained model.
    """
    _check_delay(config, steps_per_epoch)
    with _precision(config.runtime.precision):
        loss, metrics = _loss_and_metrics(config, classes)
        _check_criterion(config.loss, metrics)
        check_task(config.loss.kind, loss, metrics)
        with _reported("optimization", type(config.optimization).model_fields):
            model.compile(
                optimizer=build_optimizer(config, steps_per_epoch),
                loss=mean_over_examples(loss),
                weighted_metrics=metrics,  # Weighted, because examples that fill up a batch have weight 0.
                minibatches=config.optimization.minibatches,
                jit_compile=config.runtime.jit_compile,
                steps_per_execution=config.runtime.steps_per_execution,
            )


def _loss_and_metrics(config: Config, classes: int) -> tuple[Any, Sequence[Any]]:
    """Returns the result of `make` of the loss, which may be that of a user.

    Raises:
        ConfigError: if its arguments or its result are wrong.
    """
    options = config.loss
    is_defined = type(options).make is not LossOptions.make
    problem = misfit(options.make if is_defined else None, ["classes", "batch_size", "seed"])
    if not problem:
        made = options.make(classes, config.batch_size, config.seed)
        if isinstance(made, tuple | list) and len(made) == 2 and isinstance(made[1], tuple | list):
            return made
        problem = f"it returns {type(made).__name__}"
    requirement = (
        "must be a loss whose `make(classes, batch_size, seed)` returns a pair, the loss and a list of metrics "
        f"({problem})"
    )
    raise ConfigError(WrongValue("loss.kind", requirement, options.kind))


def _check_delay(config: Config, steps_per_epoch: int) -> None:
    """Checks that the delay ends before the run. `Optimization.check_run` compares it with the epochs.

    Raises:
        ConfigError: if it does not.
    """
    delay = config.optimization.delay_epochs
    if config.max_steps is not None and delay * steps_per_epoch >= config.max_steps:
        requirement = f"must be shorter than max_steps ({config.max_steps}), in epochs of {steps_per_epoch} steps"
        raise ConfigError(WrongValue("optimization.delay_epochs", requirement, delay))


def _check_criterion(options: LossOptions, metrics: Sequence[Any]) -> None:
    """Checks that the metric by which the states of a run are compared will be a column of `metrics.csv`.

    Raises:
        ConfigError: if the loss does not make the metric or does not list it.
    """
    column = options.criterion.column
    made = {getattr(metric, "name", metric) for metric in metrics}
    if column != "J" and not (column in made and column in options.metrics):
        requirement = (
            f"must be a loss whose `make` returns a metric named {column}, which its `metrics` list, because its "
            "`criterion` compares states by it; for a loss without such a metric set `criterion`, as to SMALLEST_LOSS"
        )
        raise ConfigError(WrongValue("loss.kind", requirement, options.kind))
