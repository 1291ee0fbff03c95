"""In the graph that is run, every variable is read before it is moved, or after: never at the same time.

TensorFlow keeps that order in the graph that is traced. Its optimiser then drops edges that it takes for redundant, and
what reads B late (the backward product) or W for R alone may see the new value, now and then. So the optimised graph is
looked at, not a few runs.
"""

import collections
import functools
import operator

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import RULE_CONFIGS, TABLE_5, exhaustive_unless
from tensorflow.python.eager import context  # What gives the optimised graph has no public name.

from neural_alignment import layers
from neural_alignment.alignments import SignalAlignment, from_config
from neural_alignment.config import Runtime
from neural_alignment.training import AlignedModel, distribution
from optimizers import Adam, Momentum, MultiOptimizer

UPDATES = {"ResourceApplyMomentum": 2, "ResourceApplyAdam": 3}
"""Operations that move a variable and its slots, and how many variables each moves."""
WRITES = ("AssignVariableOp", "AssignAddVariableOp", "AssignSubVariableOp", *UPDATES)
RULES = {
    **RULE_CONFIGS,
    "WM": {**RULE_CONFIGS["weight_mirror"], **TABLE_5["WM"]},
    "IA": {**RULE_CONFIGS["information"], **TABLE_5["IA"]},
}
PARTS = ("weight_mirror", "information")
"""Rules that are parts of WM and IA."""
RULES |= {f"{name}, W too": {**RULES[name], "update_forward": True} for name in ("WM", "IA", "symmetric", "activation")}


def optimised_graphs(rule, replicas, plain=False):
    """Trains one step and returns the graphs that were run for it."""
    runtime = Runtime(strategy="mirrored", replicas=replicas) if replicas > 1 else Runtime(strategy="cpu")
    with distribution.create(runtime).scope():
        inputs = keras.Input((6, 6, 2))
        x = layers.Conv2D(4, 3, alignment=rule, alignment_activation="relu", name="conv")(inputs)
        x = keras.layers.Flatten()(keras.layers.ReLU()(keras.layers.BatchNormalization()(x)))
        outputs = layers.Dense(3, alignment=rule, name="dense")(x)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        if plain:
            model = keras.Model(inputs, outputs)
            model.compile(keras.optimizers.Adam(0.1), loss, jit_compile=False)
            model.optimizer.build(model.trainable_variables)  # Keras itself would, in the step: outside of the scope.
        else:
            model = AlignedModel(inputs, outputs)
            optimizers = [Momentum(0.1)] if rule.tie_gradient else [Momentum(0.1), Adam(0.1)]
            model.compile(MultiOptimizer(optimizers), loss, jit_compile=False)
    rng = np.random.default_rng(0)
    batch = tf.data.Dataset.from_tensors((rng.normal(size=(4, 6, 6, 2)), rng.integers(0, 3, size=4)))
    context.context().enable_graph_collection()
    try:
        model.fit(batch, verbose=0, shuffle=False)
        metadata = context.context().export_run_metadata()
    finally:
        context.context().disable_graph_collection()
    return [graphs.post_optimization_graph for graphs in metadata.function_graphs]


def inputs_of(node):
    """Returns the names of the operations that an operation waits for."""
    return [each.lstrip("^").partition(":")[0] for each in node.input]


def unordered(graph):
    """Returns the pairs (update, read or update) of one variable between which no path leads, and how many it saw."""
    nodes = {node.name: node for node in graph.node}

    def inputs(name):
        return inputs_of(nodes[name])

    numbers = {name: number for number, name in enumerate(nodes)}
    ancestors = {}  # Of each node, as a set of bits.
    for start in nodes:
        waiting = [start]
        while waiting:
            name = waiting[-1]
            before = [each for each in inputs(name) if each in nodes]
            unknown = [each for each in before if each not in ancestors] if name not in ancestors else []
            if unknown:
                waiting += unknown
                continue
            waiting.pop()
            if name not in ancestors:
                ancestors[name] = functools.reduce(
                    operator.or_, (ancestors[each] | 1 << numbers[each] for each in before), 0
                )

    def precedes(one, other):
        return bool(ancestors[other] >> numbers[one] & 1)

    def variable(name):
        return variable(inputs(name)[0]) if nodes[name].op == "Identity" else name

    uses = collections.defaultdict(list)
    for node in graph.node:
        reads_or_writes = node.op == "ReadVariableOp" or node.op in WRITES
        handles = UPDATES.get(node.op, int(reads_or_writes))
        for handle in inputs(node.name)[:handles]:
            uses[variable(handle)].append(node.name)
    pairs = []
    for names in uses.values():
        for update in (name for name in names if nodes[name].op in WRITES):
            others = [name for name in names if name != update]
            pairs += [(update, other) for other in others if not (precedes(other, update) or precedes(update, other))]
    return pairs, sum(map(len, uses.values()))


def noise_after_j(graphs):
    """Returns, for each operation that draws noise, whether it waits for the backward pass of J."""
    found = []
    for graph in graphs:
        nodes = {node.name: node for node in graph.node}
        for start in (node for node in graph.node if node.op.startswith("StatelessRandomUniform")):
            waiting, before = [start.name], set()
            while waiting:
                names = nodes.keys() & inputs_of(nodes[waiting.pop()])
                waiting += names - before
                before |= names
            found.append(any("CrossEntropy" in nodes[name].op for name in before))
    return found


@pytest.mark.parametrize("name", ["WM", "IA"])
def test_noise_is_drawn_when_the_backward_pass_of_j_has_freed_memory(name, monkeypatch):
    assert noise_after_j(optimised_graphs(rule_of(name), 1)) == [True, True]
    monkeypatch.setattr(SignalAlignment, "reads_batch", True)
    assert noise_after_j(optimised_graphs(rule_of(name), 1)) == [False, False]


def test_r_of_kernels_waits_for_all_gradients_of_j_also_after_noise(monkeypatch):
    """Its gradients are as large as the kernels."""
    inputs = keras.Input((4,))
    x = layers.Dense(5, name="plain")(inputs)
    x = layers.Dense(5, alignment=rule_of("WM"), alignment_activation="relu", name="noise")(x)
    outputs = layers.Dense(3, alignment=rule_of("symmetric"), name="kernels")(x)
    model = AlignedModel(inputs, outputs)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(MultiOptimizer([Momentum(0.1), Adam(0.1)]), loss, jit_compile=False)
    add_deferred, waits = AlignedModel._add_deferred, {}

    def spy(self, gradients, term, before):
        waits[term.connection.name] = len(before)
        return add_deferred(self, gradients, term, before)

    monkeypatch.setattr(AlignedModel, "_add_deferred", spy)
    rng = np.random.default_rng(0)
    model.train_on_batch(rng.normal(size=(4, 4)), rng.integers(0, 3, size=4))
    assert waits == {"noise": 1, "kernels": 6}  # All kernels and biases.


def rule_of(name):
    """Returns a rule with a seed where it draws noise."""
    return from_config({**RULES[name], **({"seed": 4} if "input" in RULES[name] else {})})


CASES = [
    *((name, 1) for name in RULES if name not in PARTS),
    *((name, 2) for name in ("IA", "kolen_pollack", "WM, W too")),
]
OFTEN = [*((name, 1) for name in ("align_prop", "brsf", "IA", "symmetric", "pfa")), ("WM, W too", 2)]
"""B is W(0), B is drawn anew, R of signals, R of kernels, one optimizer, and R moves W."""


@pytest.mark.parametrize(("name", "replicas"), exhaustive_unless(CASES, OFTEN))
def test_no_variable_is_moved_while_it_is_read(name, replicas):
    found = [unordered(graph) for graph in optimised_graphs(rule_of(name), replicas)]
    assert sum(count for _, count in found) > 20
    assert [pair for pairs, _ in found for pair in pairs] == []


@pytest.mark.exhaustive
@pytest.mark.parametrize(("name", "replicas"), [("WM", 2), ("kolen_pollack", 1)])
def test_nor_in_a_plain_keras_model(name, replicas):
    found = [unordered(graph) for graph in optimised_graphs(rule_of(name), replicas, plain=True)]
    assert sum(count for _, count in found) > 20
    assert [pair for pairs, _ in found for pair in pairs] == []


@pytest.mark.exhaustive
def test_weights_that_are_read_anew_for_r_would_be(monkeypatch):
    monkeypatch.setattr(layers.connection, "_in_float32", lambda value, variable: tf.convert_to_tensor(variable))
    assert any(unordered(graph)[0] for graph in optimised_graphs(rule_of("WM"), 2))
