"""Graphs that are kept for the next run: the same run bit for bit, and nothing left behind."""

import contextlib
import copy
import functools
import gc
import random
import re
import weakref
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf
import yaml
from helpers import LEARNING, RULE_CONFIGS, TABLE_5, TIED, exhaustive_unless
from tensorflow.python.eager import context as tf_context

from neural_alignment import config as configuration
from neural_alignment.alignments import Symmetric, networkwise_rules
from neural_alignment.errors import Diverged
from neural_alignment.jobs import children
from neural_alignment.optimization import OPTIMIZERS
from neural_alignment.training import graphs, run, setup
from neural_alignment.training.distribution import Distribution
from neural_alignment.training.evaluation import AlignmentProbe
from neural_alignment.training.model import connections
from neural_alignment.training.run_loop import RunLoop

CASES = {
    **RULE_CONFIGS,
    **{rule: {"rule": rule} for rule in networkwise_rules()},
    "operations": {**RULE_CONFIGS["weight_mirror"], **TABLE_5["WM+AD+OPS"], "examples": 0.5, "every": 2},
    "update_forward": {"rule": "information", "amp": 1e-3, "decay": 1e-2, "null": 1e-3, "update_forward": True},
    "own seed": {**RULE_CONFIGS["weight_mirror"], **TABLE_5["WM"], "seed": 1},
    **{rule: {**RULE_CONFIGS[rule], "decay": 1e-3} for rule in TIED},
    "backpropagation": None,
}
"""Options of each rule."""

TWO_OPTIMIZERS = {*LEARNING, "operations", "update_forward", "own seed"} - {*TIED}
"""The cases with an optimizer of R."""

CHANGES = {
    "seed": 5,
    "epochs": 3,
    "max_steps": 5,
    "logging": {"tensorboard": False, "kernels": ["*"]},
    "checkpoints": {"every_steps": 2, "keep": 3, "keep_best": False},
    "evaluation.every_epochs": 2,
    "optimization.forward.learning_rate": 0.07,
    "optimization.backward.learning_rate": 0.01,
}
"""A change of each key in `graphs.FREE`."""


def plan(case="symmetric", changes=None):
    """Returns the configuration of a case, with changes by key path."""
    document = {
        "epochs": 2,
        "batch_size": 400,
        "data": {"source": "digits", "augment": "crop"},
        "model": {"name": "convnet", "filters": [3]},
        "alignment": copy.deepcopy(CASES[case]),
        "weight_decay": 1e-3,
        "optimization": {"forward": {"name": "momentum", "learning_rate": 0.02}},
        "evaluation": {"probe_examples": 8},
        "logging": {"tensorboard": False},
        "runtime": {"strategy": "cpu"},
    }
    if case in TWO_OPTIMIZERS:
        document["optimization"]["backward"] = {"name": "sgd", "learning_rate": 0.1}
    for path, value in (changes or {}).items():
        *keys, last = path.split(".")
        place = document
        for key in keys:
            place = place.get(key, {})  # A key of an optimizer that the case does not have is left out.
        place[last] = value
    return configuration.parse(document)


def compiled(config):
    """Returns the compiled model of a configuration, whose graphs may be kept, and the facts of its data."""
    keras.backend.clear_session()
    facts = setup.data_facts(config)
    model = setup.compiled_model(config, facts, contextlib.nullcontext())
    graphs.reuse_graphs(model, config, facts)
    return model, facts


def key(config):
    """Returns the key of the graphs of a configuration."""
    model, facts = compiled(config)
    return graphs.graph_key(model, config, facts)


@functools.cache
def known_key(text):
    """Returns the key of a configuration in YAML, computed once."""
    return key(configuration.parse(yaml.safe_load(text)))


def traced(config):
    """Returns the key, and the texts of all graphs of a run with the constants that they capture."""
    model, facts = compiled(config)
    AlignmentProbe(model, Distribution(tf.distribute.get_strategy()), 8).trace(facts)
    model.make_train_function()
    model.make_test_function()
    for function in (model.train_function, model.test_function):
        function.trace(tf.data.IteratorSpec(facts.batch_spec))
    found = {}
    for types, graph in model.graphs.traced.items():
        constants = [each.numpy() for each in graph.captured_inputs if each.dtype != tf.resource]
        found[types] = text(graph.graph.as_graph_def()), [each.tolist() for each in constants]
    return graphs.graph_key(model, config, facts), found


def text(definition):
    """Returns a graph as text, without the numbers that TensorFlow adds to the names of functions."""
    names = [function.signature.name for function in definition.library.function]
    numbered = re.compile("|".join([rf"{re.escape(name)}(?![0-9])" for name in names] + ["CustomGradient-[0-9]+"]))

    def plain(part):
        return numbered.sub(lambda found: found[0].rstrip("0123456789"), str(part))

    return sorted(map(plain, [*definition.library.function, *definition.node]))


def variables_of(folder):
    """Returns the arrays in the last checkpoint of a run: weights, optimizers, means."""
    reader = tf.train.load_checkpoint(tf.train.latest_checkpoint(str(folder / "checkpoints" / "last")))
    arrays = {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}
    return {name: array for name, array in arrays.items() if isinstance(array, np.ndarray) and array.dtype != object}


def files_of(folder):
    """Returns the rows without the seconds, and the configuration of the saved model."""
    rows = [line.split(",") for line in (folder / "metrics.csv").read_text().splitlines()]
    place = rows[0].index("seconds")
    with zipfile.ZipFile(folder / "model.keras") as model:
        config = re.sub(rb'"shared_object_id": \d+', b"", model.read("config.json"))  # It is an address in memory.
    return [row[:place] + row[place + 1 :] for row in rows], config


def assert_same_run(actual, expected):
    assert files_of(actual) == files_of(expected)
    found, wanted = variables_of(actual), variables_of(expected)
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def train(config, folder):
    """Trains a run and clears the global state, as a job does; returns the directory of the run."""
    graphs.clear_session()
    try:
        run.train(config, folder)
    finally:
        graphs.clear_session()
    return folder


@pytest.fixture
def keeping():
    """Keeps graphs during a test."""
    with graphs.graphs_kept():
        yield


@pytest.fixture
def reused(monkeypatch):
    """The number of graphs that each run of a test takes from an earlier run."""
    numbers, init = [], graphs.RunGraphs.__init__

    def recorded(self, *arguments):
        init(self, *arguments)
        numbers.append(len(self.traced))

    monkeypatch.setattr(graphs.RunGraphs, "__init__", recorded)
    return numbers


VARIANTS = {
    **{case: (case, {}) for case in CASES},
    "noisy optimizer": ("symmetric", {"optimization.forward.noise": {"variance": 0.01}}),
    "several steps per call": ("operations", {"runtime.steps_per_execution": 3}),
    "minibatches": ("weight_mirror", {"optimization.minibatches": 2}),
    "alternation": ("information", {"optimization.alternation": 1}),
    "adam": ("activation", {"optimization.forward": {"name": "adam", "learning_rate": 1e-3}}),
    "bfloat16": ("weight_mirror", {"runtime.precision": "mixed_bfloat16"}),
    "dropout": (
        "symmetric",
        {"model": {"name": "vision_transformer", "patch": 4, "width": 4, "heads": 2, "depth": 1, "dropout": 0.5}},
    ),
}
"""A case, and changes that are no free keys."""

ALWAYS = ("operations", "noisy optimizer")


def changed(variant, changes):
    """Returns the configuration of a variant with changes of free keys."""
    case, options = VARIANTS[variant]
    return plan(case, {**options, **changes})


@pytest.mark.parametrize("variant", exhaustive_unless(VARIANTS, ALWAYS))
def test_free_keys_do_not_change_the_graphs(keeping, variant):
    assert traced(changed(variant, {})) == traced(changed(variant, CHANGES))


def assert_same_with_kept_graphs(tmp_path, reused, first, others):
    """Fails unless runs with the graphs of a first run are bit for bit those with new graphs."""
    with graphs.graphs_kept():
        train(first, tmp_path / "first")
        for number, config in enumerate(others):
            train(config, tmp_path / f"kept{number}")
    number = 2 + bool(connections(compiled(first)[0]))  # Of a step, of the evaluation, and of the alignment.
    assert reused == [0, *[number] * len(others)]
    for number, config in enumerate(others):
        assert_same_run(tmp_path / f"kept{number}", train(config, tmp_path / f"new{number}"))


@pytest.mark.parametrize("variant", exhaustive_unless(VARIANTS, ALWAYS[:1]))
def test_a_run_with_kept_graphs_is_bit_for_bit_that_with_new_graphs(tmp_path, reused, variant):
    assert_same_with_kept_graphs(tmp_path, reused, changed(variant, {}), [changed(variant, CHANGES)])
    with pytest.raises(AssertionError):
        assert_same_run(tmp_path / "kept0", tmp_path / "first")


@pytest.mark.exhaustive
@pytest.mark.parametrize("case", ["operations", "dfa"])
def test_each_free_key_may_change_while_graphs_are_kept(tmp_path, reused, case):
    others = [plan(case, {path: value}) for path, value in CHANGES.items()]
    assert_same_with_kept_graphs(tmp_path, reused, plan(case), others)


def paths(free, prefix=""):
    """Returns the key paths in a nested dictionary."""
    for name in free:
        inner = free[name] if isinstance(free, dict) else True
        yield from [f"{prefix}{name}"] if inner is True else paths(inner, f"{prefix}{name}.")


def test_every_free_key_is_tested():
    assert {*paths(graphs.FREE)} == {*CHANGES}


SCHEDULE = {"name": "momentum", "learning_rate": 0.02, "schedule": {"drop_epochs": [1]}}
COSINE = {**SCHEDULE, "schedule": {"kind": "cosine"}}
CODES = {"loss": {"kind": "half_squared_error", "ones": 2}}
OTHER = {
    "weight of a rule": ({}, {"alignment.decay": 0.5}),
    "seed of a rule": ({"alignment": {"rule": "brsf", "seed": 1}}, {"alignment": {"rule": "brsf", "seed": 2}}),
    "seed of a rule at its default": ({"alignment": {"rule": "brsf"}}, {"alignment": {"rule": "brsf", "seed": 0}}),
    "seed of one of two rules": (
        {"alignment": [{"rule": "brsf", "layers": "conv*", "seed": 0}, {"rule": "brsf"}]},
        {"alignment": [{"rule": "brsf", "layers": "conv*"}, {"rule": "brsf", "seed": 0}]},
    ),
    "length of an epoch": ({}, {"alignment.steps_per_epoch": 1}),
    "batch": ({}, {"batch_size": 200}),
    "probe": ({}, {"evaluation.probe_examples": 4}),
    "precision": ({}, {"runtime.precision": "float64"}),
    "steps": ({}, {"runtime.steps_per_execution": 2}),
    "compiler": ({}, {"runtime.jit_compile": True}),
    "momentum": ({}, {"optimization.forward.momentum": 0.8}),
    "minibatches": ({}, {"optimization.minibatches": 2}),
    "decay": ({}, {"weight_decay": 0.1}),
    "augmentation": ({}, {"data.augment": "crop_flip"}),
    "network": ({}, {"model.filters": [4]}),
    "rate of a schedule": (
        {"optimization.forward": SCHEDULE},
        {"optimization.forward": {**SCHEDULE, "learning_rate": 0.1}},
    ),
    "epochs of a schedule": ({"optimization.forward": COSINE}, {"optimization.forward": COSINE, "epochs": 4}),
    "codes": (CODES, {**CODES, "seed": 1}),
}
"""Changes that may change a graph."""


@pytest.mark.parametrize("name", OTHER)
def test_another_key_has_other_graphs(keeping, name):
    before, after = (
        {"alignment": {"rule": "symmetric", "self_": 0.1, "decay": 0.1}, **changes} for changes in OTHER[name]
    )
    without_r = "brsf" in str(before)
    case = "backpropagation" if without_r else "symmetric"
    keys = [known_key(configuration.dump(plan(case, changes))) for changes in (before, after)]
    assert keys[0] != keys[1]


def test_the_key_of_a_configuration_does_not_change(keeping):
    assert key(plan()) == known_key(configuration.dump(plan())) == key(plan())


def test_epochs_do_not_change_the_key_with_drops(keeping):
    before = {"optimization.forward": SCHEDULE}
    assert key(plan(changes=before)) == key(plan(changes={**before, "epochs": 5}))


@pytest.mark.parametrize("name", exhaustive_unless(OPTIMIZERS, ("swats",)))
def test_no_optimizer_has_its_learning_rate_in_the_graph(keeping, name):
    low, high = (
        plan("feedback", {"optimization.forward": {"name": name, "learning_rate": rate}}) for rate in (0.1, 0.5)
    )
    assert traced(low) == traced(high)


class Doubled(Symmetric):
    """A rule of a user."""


def test_graphs_of_a_plugin_are_not_kept(keeping):
    config = plan()
    rule = Doubled(self_=0.1, decay=0.1)
    assert compiled(config)[0].graphs is not None
    assert compiled(config.model_copy(update={"alignment": rule}))[0].graphs is None
    assert (
        compiled(config.model_copy(update={"alignment": [Symmetric(self_=0.1, decay=0.1, layers="conv*"), rule]}))[
            0
        ].graphs
        is None
    )


def test_graphs_that_xla_compiles_are_not_kept(keeping):
    assert compiled(plan(changes={"runtime.jit_compile": True}))[0].graphs is None


def test_graphs_are_not_kept_outside_of_the_context():
    model, _ = compiled(plan("operations"))
    assert model.graphs is None
    assert type(model.layers[1].alignment.seed) is int


@pytest.mark.exhaustive
def test_only_the_graphs_of_the_last_network_are_kept(tmp_path, keeping, reused):
    for number, units in enumerate(([3], [4], [3], [3])):
        network = {"model": {"name": "fc", "hidden": units}}
        train(plan(changes={**network, "max_steps": 1}), tmp_path / str(number))
    assert reused == [0, 0, 0, 3]


@pytest.mark.exhaustive
def test_a_run_that_does_not_finish_keeps_no_graph(tmp_path, keeping, reused, monkeypatch):
    small = {"model": {"name": "fc", "hidden": [3]}, "max_steps": 4}
    config = plan(changes=small)
    train(config, tmp_path / "first")
    with pytest.raises(Diverged):
        train(plan(changes={**small, "optimization.forward.learning_rate": 1e30}), tmp_path / "diverged")
    train(config, tmp_path / "after")
    with monkeypatch.context() as patch:
        patch.delattr(RunLoop, "_finish")
        with pytest.raises(AttributeError, match="_finish"):
            train(config, tmp_path / "broken")
    train(config, tmp_path / "last")
    assert reused == [0, 3, 0, 3, 0]
    assert_same_run(tmp_path / "last", tmp_path / "first")


def test_kept_graphs_hold_no_variable(tmp_path, keeping, monkeypatch):
    found, keep = [], graphs.RunGraphs.keep

    def recorded(self):
        found.extend(weakref.ref(handle) for handle in self._handles)
        keep(self)

    monkeypatch.setattr(graphs.RunGraphs, "keep", recorded)
    for name in ("first", "second"):
        train(plan("operations"), tmp_path / name)
        children._forget_gradients()
        gc.collect()
        assert len(found) > 10
        assert [each() for each in found] == [None] * len(found)


@pytest.mark.exhaustive
def test_kept_graphs_stay_executable(tmp_path, keeping, monkeypatch):
    """The cache of executable graphs is cleared only if there are no kept graphs."""
    cleared, clear = [], tf_context.pywrap_tfe.TFE_ContextClearCaches
    monkeypatch.setattr(
        tf_context.pywrap_tfe, "TFE_ContextClearCaches", lambda handle: (cleared.append(1), clear(handle))
    )
    train(plan(), tmp_path / "first")
    assert cleared
    cleared.clear()
    train(plan(changes={"seed": 1}), tmp_path / "second")
    assert not cleared
    random.seed(7)
    graphs.set_random_seed(plan(changes={"seed": 1}))
    drawn = [random.random(), np.random.rand(), float(tf.random.uniform([])), keras.random.uniform([]).numpy()]
    keras.utils.set_random_seed(1)
    assert drawn == [random.random(), np.random.rand(), float(tf.random.uniform([])), keras.random.uniform([]).numpy()]
