"""Graphs that stay in memory for the next run of the same network in the same process.

Most of the time before the first step is spent on tracing. A graph contains no values of variables: the variables are
inputs that TensorFlow adds to each call. Every run creates a new model. If the graphs of the previous run would be
equal to those of the new model, they are called with the variables of the new model and need not be traced again.
"""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import tensorflow as tf
from tensorflow.python.eager import context as tf_context

from neural_alignment.config import Config
from neural_alignment.data import Facts
from neural_alignment.keras_internals import all_layers, stored_value
from neural_alignment.options import Options
from neural_alignment.training.model import AlignedModel
from optimizers import noise

FREE = {
    **dict.fromkeys(("seed", "epochs", "max_steps", "logging", "checkpoints"), True),
    "evaluation": {"every_epochs"},
    "optimization": {"forward": {"learning_rate"}, "backward": {"learning_rate"}},
}
"""Keys of a configuration that do not affect the graphs in themselves.

Graphs read the seed and a constant learning rate from variables. The learning rate and the epochs may affect a schedule
or a loss rate, and the seed the targets of a loss. These are in the compile configuration, which `graph_key` contains.
"""

_keeper: _Keeper | None = None
"""None outside of `graphs_kept`."""


@contextlib.contextmanager
def graphs_kept() -> Iterator[None]:
    """Keeps the graphs of the last finished run within the context, so that an equal network is not traced again."""
    global _keeper
    before, _keeper = _keeper, _Keeper()
    try:
        yield
    finally:
        _keeper = before


def run_seed(seed: int) -> int:
    """Returns a seed that the graphs of a run read from a variable if they may be kept; otherwise `seed` itself."""
    return noise.Seed(seed) if _are_kept() else seed


def reuse_graphs(model: AlignedModel, config: Config, facts: Facts) -> None:
    """Lets a compiled model use the kept graphs, if there are some and they are equal to those of the model.

    Graphs that XLA compiles are not kept. Call this function before a graph of the model is traced, and `keep_graphs`
    after the run.

    Args:
        model: the model of the run.
        config: the configuration of the run.
        facts: shapes and counts of its data.
    """
    if _are_kept() and _is_built_in(config) and not config.runtime.jit_compile:
        model.build_metrics(facts.batch_spec)  # The metrics contain variables of the graphs.
        model.graphs = RunGraphs(graph_key(model, config, facts), variables(model))


def keep_graphs(model: AlignedModel) -> None:
    """Keeps the graphs of a model for the next run, instead of those of other models. The model cannot be used again.

    It is called only after a run that has finished.
    """
    if model.graphs is not None:
        model.graphs.keep()


def clear_session() -> None:
    """Clears the global state of Keras, but not the executable forms of graphs that are kept."""
    with _executable():
        keras.backend.clear_session()


def set_random_seed(config: Config) -> None:
    """Sets the seed of Python, NumPy, TensorFlow and Keras to that of a run, and keeps graphs executable.

    TensorFlow also resets the states of operations with its global random numbers. The package has no such operations,
    but a plugin may.
    """
    with _executable() if _is_built_in(config) else contextlib.nullcontext():
        keras.utils.set_random_seed(config.seed)


@contextlib.contextmanager
def _executable() -> Iterator[None]:
    """Prevents TensorFlow from clearing its cache of the executable forms of graphs, if graphs are kept.

    Making a graph executable takes almost as long as tracing it.
    """
    context = tf_context.context()
    if _keeper is None or not _keeper.graphs:
        yield
        return

    def set_seed(seed: int) -> None:
        context._seed, context._rng = seed, random.Random(seed)

    context.clear_kernel_cache, context._set_global_seed = lambda: None, set_seed
    try:
        yield
    finally:
        del context.clear_kernel_cache, context._set_global_seed


def _are_kept() -> bool:
    """Whether graphs are kept. Under a distribution strategy a variable may have a copy on every device."""
    return _keeper is not None and not tf.distribute.has_strategy()


def _is_built_in(options: Any) -> bool:
    """Whether all options are of this package. Graphs of a plugin may depend on anything, so they are not kept."""
    if isinstance(options, (list, tuple)):
        return all(map(_is_built_in, options))
    if not isinstance(options, Options):
        return True
    return type(options).__module__.startswith("neural_alignment.") and all(_is_built_in(value) for _, value in options)


def graph_key(model: AlignedModel, config: Config, facts: Facts) -> str:
    """Returns a text that is the same for two models only if all their graphs are the same.

    Args:
        model: the compiled model of a run.
        config: the configuration of the run.
        facts: shapes and counts of its data.
    """
    compiled = model.get_compile_config()
    parts = {
        "config": config.model_dump(mode="json", exclude=FREE),
        "rules": [_plain_rule(layer) for layer in all_layers(model)],
        "facts": [list(facts.input_shape), facts.classes, facts.train_examples, facts.validation_examples],
        "compiled": {**compiled, "optimizer": _without_rate(compiled["optimizer"])},
        "variables": [[each.name, each.dtype.name, each.shape.as_list()] for each in variables(model)],
    }
    return json.dumps(parts, sort_keys=True)


def _plain_rule(layer: Any) -> list[Any]:
    """Returns the name of a layer and its rule as plain data, as it was bound to the run."""
    rule = getattr(layer, "alignment", None)
    if rule is None:
        return [layer.name, None]
    fed = {"seed": "variable"} if isinstance(getattr(rule, "seed", None), noise.Seed) else {}
    return [layer.name, {**rule.model_dump(mode="json"), **fed}]


def _without_rate(optimizer: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the configuration of an optimizer without the numbers that its graph reads from variables.

    These are a learning rate without a schedule, and the seed of the noise.
    """
    config = dict(optimizer["config"])
    for key, value in config.items():
        if (key == "learning_rate" and isinstance(value, float)) or isinstance(value, noise.Seed):
            config[key] = "variable"
        elif key == "optimizer":
            config[key] = _without_rate(value)
        elif key == "optimizers":
            config[key] = [_without_rate(each) for each in value]
    return {**optimizer, "config": config}


def variables(model: AlignedModel) -> list[tf.Variable]:
    """Returns the variables of a compiled model, its optimizer, its metrics and the seeds of its rules, each once."""
    optimizers = [model.optimizer]
    for optimizer in optimizers:
        optimizers += getattr(optimizer, "inner_optimizers", [])
    rules = [getattr(layer, "alignment", None) for layer in all_layers(model)]
    seeds = [seed for each in (*rules, *optimizers) if isinstance(seed := getattr(each, "seed", None), noise.Seed)]
    kept = [*model.weights, *model.variables, *model.metrics_variables, *model.optimizer.variables]
    found = [*(stored_value(each) for each in kept), *model.watched, *(seed.variable for seed in seeds)]
    return list({id(each): each for each in found}.values())


class _Keeper:
    """The graphs of the last finished run.

    Attributes:
        key: the result of `graph_key` for its model.
        graphs: the name of a function and the types of its arguments -> the graph and its captures. A capture is the
            number of a variable of the model, or a constant.
    """

    def __init__(self) -> None:
        self.key: str | None = None
        self.graphs: dict[Any, tuple[Any, list[int | tf.Tensor]]] = {}


class BoundGraph:
    """A graph with the variables of a model.

    Args:
        function: an `AtomicFunction` of TensorFlow, the form of a graph that the runtime executes.
        captured_inputs: the tensors that are passed to it after the arguments of a call.
    """

    def __init__(self, function: Any, captured_inputs: list[tf.Tensor]):
        self.inference_fn = function
        self.captured_inputs = captured_inputs

    def __call__(self, *arguments: Any) -> Any:
        """Executes the graph."""
        types = self.inference_fn.function_type
        return self.inference_fn.call_preflattened(types.unpack_inputs(types.bind(*arguments)) + self.captured_inputs)


class RunGraphs:
    """The graphs of a run: those of an earlier run of an equal network, and those that it has traced itself.

    Args:
        key: the result of `graph_key` for the model.
        variables: the result of `variables` for the model.

    Attributes:
        traced: the name of a function and the types of its arguments -> the graph.
    """

    def __init__(self, key: str, variables: list[tf.Variable]):
        self._key = key
        self._handles = [each.handle for each in variables]
        self.traced: dict[Any, Any] = {}
        if key == _keeper.key:
            for name, (function, captures) in _keeper.graphs.items():
                inputs = [self._handles[each] if isinstance(each, int) else each for each in captures]
                self.traced[name] = BoundGraph(function, inputs)
        # An interrupted run keeps nothing, and the memory of the graphs of another network is freed.
        _keeper.key, _keeper.graphs = None, {}

    def reusable(self, name: str, function: Any) -> ReusableFunction:
        """Returns a function that uses the graphs of this run.

        Args:
            name: identifies the function among the functions of the run.
            function: a `tf.function`.
        """
        return ReusableFunction(name, function, self.traced)

    def keep(self) -> None:
        """Keeps the graphs for the next run, without the variables of this run.

        A graph that reads a variable or another resource that the next model may not have is not kept.
        """
        numbers = {id(handle): number for number, handle in enumerate(self._handles)}
        for name, graph in self.traced.items():
            captures = [numbers.get(id(each), each) for each in graph.captured_inputs]
            if all(isinstance(each, int) or each.dtype not in (tf.resource, tf.variant) for each in captures):
                _keeper.graphs[name] = graph.inference_fn, captures
                _forget_python(graph.inference_fn)
        _keeper.key = self._key


def _forget_python(function: Any) -> None:
    """Removes the Python objects of a graph and of the graphs in it, which refer to the variables of the run.

    TensorFlow would create them again if it needed them.
    """
    function._cached_graph = None
    for child in function.children:
        _forget_python(child)


class ReusableFunction:
    """A `tf.function` whose graphs belong to a run.

    Args:
        name: identifies the function among the functions of the run.
        function: the `tf.function`.
        graphs: the graphs of the run, to which those of this function are added.
    """

    def __init__(self, name: str, function: Any, graphs: dict[Any, Any]):
        self._name = name
        self._function = function
        self._graphs = graphs
        self._first: Any = None
        self._last: Any = None

    def get_concrete_function(self, *arguments: Any) -> Any:
        """Returns the graph for arguments, or for their types."""
        types = (
            self._name,
            *(each if isinstance(each, tf.TypeSpec) else tf.type_spec_from_value(each) for each in arguments),
        )
        if types not in self._graphs:
            self._graphs[types] = self._function.get_concrete_function(*arguments)
        return self._graphs[types]

    def __call__(self, *arguments: Any) -> Any:
        """Calls the graph for the arguments. The first one determines the types of the others."""
        if arguments[0] is not self._first:
            self._first, self._last = arguments[0], self.get_concrete_function(*arguments)
        return self._last(*arguments)
