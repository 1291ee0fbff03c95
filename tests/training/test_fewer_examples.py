"""The options `examples` and `every` of a rule: training against NumPy, replicas, resume, means, refusals."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import assert_close, assert_differs, exhaustive_unless, two_replicas

from neural_alignment import config as configuration
from neural_alignment import layers
from neural_alignment.alignments import (
    Activation,
    AlignProp,
    AlignZero,
    Feedback,
    KolenPollack,
    Symmetric,
    WeightMirror,
    from_config,
)
from neural_alignment.alignments.examples import examples_used
from neural_alignment.errors import ConfigError
from neural_alignment.training import AlignedModel, aligned_layers, run
from neural_alignment.training.describe import describe
from neural_alignment.training.metrics import MetricsFile
from neural_alignment.training.step_modes import StepModes, combinations
from optimizers import Adam, Momentum, MultiOptimizer, Noisy, RateScheduler

INPUTS, CLASSES, BATCH = 4, 3, 8
AMP, SPARSE = 0.7, 0.4
MIRROR = {"amp": 0.6, "decay": 0.3, "input": {"noise": "normal"}}


def cross_entropy():
    """Returns J, in the precision that is set."""
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def batches(count, size=BATCH):
    """Returns the inputs and labels of several batches."""
    rng = np.random.default_rng(5)
    x = rng.normal(size=(count, size, INPUTS)) + 0.2
    return list(zip(x, rng.integers(0, CLASSES, (count, size)), strict=True))


def network(*rules):
    """Returns a model with a dense layer for each rule, the same at every call."""
    keras.utils.set_random_seed(3)
    x = inputs = keras.Input((INPUTS,))
    for index, rule in enumerate(rules):
        units = CLASSES if index == len(rules) - 1 else 5
        x = layers.Dense(units, alignment=rule, name=f"dense{index}", bias_initializer="glorot_uniform")(x)
    return AlignedModel(inputs, x)


def compiled(model, optimizer=None, **options):
    """Compiles a model with two optimizers by default; returns it."""
    pair = [Momentum(0.1), Adam(0.02)]
    model.compile(optimizer or MultiOptimizer(pair), cross_entropy(), **{"jit_compile": False, **options})
    return model


def trained(model, steps, size=BATCH):
    """Trains on consecutive batches in one call of `fit`; returns the history."""
    parts = zip(*batches(steps, size), strict=True)
    dataset = tf.data.Dataset.from_tensor_slices(tuple(np.array(part) for part in parts))
    return model.fit(dataset, epochs=1, verbose=0, shuffle=False).history


def state(model):
    """Returns copies of all weights and optimizer variables."""
    variables = [*model.variables, *model.optimizer.variables]
    return [v.numpy() for v in variables if v.dtype != "string"]


# The number of examples.


@pytest.mark.parametrize(
    ("examples", "batch", "parts", "expected"),
    [
        *[(0.25, 8, 1, 2), (0.25, 9, 1, 3), (0.25, 1, 1, 1), (1e-6, 8, 1, 1), (1.0, 8, 2, 8), (0.25, 0, 1, 0)],
        *[(0.07, 100, 1, 7), (1 / 3, 9, 1, 3)],  # In floats 0.07 * 100 > 7.
        *[(3, 8, 1, 3), (3, 8, 2, 2), (4, 8, 2, 2), (1, 8, 4, 1), (100, 8, 1, 8), (3, 0, 1, 0)],
    ],
)
def test_the_number_of_examples_is_rounded_up(examples, batch, parts, expected):
    assert examples_used(examples, batch, parts) == expected
    counted = tf.function(lambda n: examples_used(examples, n, parts), jit_compile=True)
    assert counted(tf.constant(batch)).numpy() == expected
    if examples == 0.07:
        assert math.ceil(examples * batch) != expected


def test_combinations_are_those_that_divide_a_step():
    for intervals in ([1], [4], [2, 4], [2, 3], [1, 4, 6], [3, 5, 15]):
        expected = {frozenset(k for k in intervals if step % k == 0) for step in range(math.lcm(*intervals))}
        found = combinations(intervals)
        assert set(found) == expected
        assert len(found) == len(expected)


# Against NumPy.


class Reference:
    """One dense layer with softmax cross entropy, activation alignment, Momentum for W and Adam for B.

    Args:
        layer: the layer, with its initial weights.
        used: number of examples from which R is computed.
        every: R is computed at the steps that are divisible by it.
        of_whole_batch: whether R is wrongly divided by the size of the whole batch.
        rests: what Adam wrongly does in the other steps: "zero" for an update by a gradient of zero, "count" for
            counting the step, or nothing.
    """

    def __init__(self, layer, used=BATCH, every=1, of_whole_batch=False, rests=None):
        self.w, self.b, self.bias = (
            value.numpy().astype(np.float64) for value in (layer.kernel, layer.backward_kernel, layer.bias)
        )
        self.used, self.every, self.of_whole_batch, self.rests = used, every, of_whole_batch, rests
        self.accumulated = [np.zeros_like(self.w), np.zeros_like(self.bias)]
        self.m, self.v, self.updates = np.zeros_like(self.b), np.zeros_like(self.b), 0

    def step(self, number, x, y, parts=1):
        """Makes one step; the examples of R are the first of each of some equal parts of the batch."""
        logits = x @ self.w + self.bias
        p = np.exp(logits - logits.max(axis=1, keepdims=True))
        error = (p / p.sum(axis=1, keepdims=True) - np.eye(CLASSES)[y]) / len(x)
        first = np.concatenate([part[: self.used // parts] for part in np.split(x, parts)])
        backward = first @ self.b.T
        d_b = (SPARSE * backward - AMP * first @ self.w).T @ first / (len(x) if self.of_whole_batch else len(first))
        for value, a, g in zip((self.w, self.bias), self.accumulated, (x.T @ error, error.sum(axis=0)), strict=True):
            a *= 0.9
            a += g
            value -= 0.1 * (g + 0.9 * a)
        if number % self.every == 0:
            self.adam(d_b)
        elif self.rests == "zero":
            self.adam(np.zeros_like(d_b))
        elif self.rests == "count":
            self.updates += 1

    def adam(self, gradient):
        """Updates B."""
        self.updates += 1
        self.m += 0.1 * (gradient - self.m)
        self.v += 0.001 * (gradient**2 - self.v)
        rate = 0.02 * np.sqrt(1 - 0.999**self.updates) / (1 - 0.9**self.updates)
        self.b -= rate * self.m / (np.sqrt(self.v) + 1e-8)


def reference(options, steps, parts=1):
    """Returns W and B of the reference after training."""
    (layer,) = aligned_layers(network(Activation(amp=AMP, sparse=SPARSE)))
    found = Reference(layer, **options)
    for number, (x, y) in enumerate(batches(steps)):
        found.step(number, x, y, parts)
    return found.w, found.b


STEPS = 8


WAYS = [
    ({"examples": 0.25}, {"used": 2}, {}),
    ({"examples": 2}, {"used": 2}, {"jit_compile": True}),
    ({"every": 3}, {"every": 3}, {"steps_per_execution": 3}),
    ({"every": 3, "examples": 0.5}, {"every": 3, "used": 4}, {"jit_compile": True}),
    ({"every": 2, "examples": 0.3}, {"every": 2, "used": 3}, {"run_eagerly": True}),
    ({"every": 3, "examples": 0.5}, {"every": 3, "used": 4}, {"minibatches": 2}),
    ({"every": 2, "examples": 4}, {"every": 2, "used": 4}, {"minibatches": 4}),
]


@pytest.mark.parametrize(
    ("rule", "options", "execution"), exhaustive_unless(WAYS, [WAYS[place] for place in (0, 2, 3, 4, 5)])
)
def test_w_and_b_are_those_of_numpy(float64, rule, options, execution):
    model = compiled(network(Activation(amp=AMP, sparse=SPARSE, **rule)), **execution)
    trained(model, STEPS)
    (layer,) = aligned_layers(model)
    parts = execution.get("minibatches", 1)
    w, b = reference(options, STEPS, parts)
    assert_close(layer.kernel, w)
    assert_close(layer.backward_kernel, b)
    wrong = [{"used": 8, "every": 1}]
    if "examples" in rule:
        wrong += [{**options, "used": 8}]
    if "every" in rule:
        wrong += [{**options, "every": 1}, {**options, "rests": "zero"}, {**options, "rests": "count"}]
    for other in wrong:
        assert_differs(layer.backward_kernel, reference(other, STEPS, parts)[1], by=1e-3)


@pytest.mark.parametrize("parts", [1, 2])
def test_r_and_its_gradient_are_means_over_the_examples_used(float64, parts):
    """A mask after the products, or a mean over the whole batch, would divide by all examples."""
    rule = Activation(amp=AMP, sparse=SPARSE, examples=0.25)
    sgd = [keras.optimizers.SGD(0.0), keras.optimizers.SGD(1.0)]
    model = compiled(network(rule), MultiOptimizer(sgd), minibatches=parts)
    (layer,) = aligned_layers(model)
    w, b = layer.kernel.numpy(), layer.backward_kernel.numpy()
    history = trained(model, 1)
    ((x, _),) = batches(1)
    first = np.concatenate([part[: 2 // parts] for part in np.split(x, parts)])
    gradient = (SPARSE * first @ b.T - AMP * first @ w).T @ first
    assert_close(b - layer.backward_kernel, gradient / 2)
    assert_differs(b - layer.backward_kernel, gradient / 8, by=0.5)
    value = (SPARSE / 2 * (first @ b.T) ** 2 - AMP * (first @ b.T) * (first @ w)).sum()
    assert_close(history["regulariser"], [value / 2], "float32")


# Several intervals, and the means.


def test_each_layer_has_its_own_interval_and_r_is_a_sum_of_means(float64):
    rules = [Symmetric(self_=0.0, decay=0.2, every=every) for every in (2, 1, 3)]
    sgd = [keras.optimizers.SGD(0.0), keras.optimizers.SGD(0.5)]
    model = compiled(network(*rules), MultiOptimizer(sgd))
    start = [layer.backward_kernel.numpy() for layer in aligned_layers(model)]
    history = trained(model, 6)
    counts, means = (3, 6, 2), []
    for layer, first, count in zip(aligned_layers(model), start, counts, strict=True):
        assert_close(layer.backward_kernel, first * 0.9**count)
        means.append(np.mean([0.1 * ((first * 0.9**k) ** 2).sum() for k in range(count)]))
    assert_close(history["regulariser"], [sum(means)], "float32")
    assert_differs(history["regulariser"], [np.dot(means, counts) / 6], by=0.05)
    assert int(model.optimizer.inner_optimizers[1].iterations) == 6


def test_the_optimizer_of_r_counts_only_its_steps(float64):
    model = compiled(network(Symmetric(self_=0.1, decay=0.2, every=4), Symmetric(self_=0.1, decay=0.2, every=2)))
    trained(model, 7)
    assert [int(each.iterations) for each in model.optimizer.inner_optimizers] == [7, 4]
    assert model.global_step == 7


def test_a_frozen_layer_has_no_r_and_no_interval(float64):
    model = network(Symmetric(self_=0.0, decay=0.2, every=4), Symmetric(self_=0.0, decay=0.2))
    trains, frozen = aligned_layers(model)
    frozen.trainable = False
    compiled(model, MultiOptimizer([keras.optimizers.SGD(0.0), keras.optimizers.SGD(0.0)]))
    history = trained(model, 7)
    assert_close(history["regulariser"], [0.1 * np.square(trains.backward_kernel).sum()], "float32")
    assert [int(each.iterations) for each in model.optimizer.inner_optimizers] == [7, 2]


def test_each_combination_is_traced_once(monkeypatch):
    original, calls = AlignedModel._replica_step, []

    def counted(self, data, step, mode):
        calls.append(mode)
        return original(self, data, step, mode)

    monkeypatch.setattr(AlignedModel, "_replica_step", counted)
    rules = Activation(amp=AMP, sparse=SPARSE, every=2), Symmetric(self_=0.1, decay=0.2, every=4)
    trained(compiled(network(*rules), steps_per_execution=2), 6)
    assert [mode.intervals for mode in calls] == [frozenset({2, 4}), frozenset({2}), frozenset()]
    assert [mode.r_runs for mode in calls] == [True, True, False]


def test_steps_without_r_have_no_products_of_r(monkeypatch):
    original, called = Activation.__call__, []
    monkeypatch.setattr(Activation, "__call__", lambda self, view: called.append(view) or original(self, view))
    model = compiled(network(Activation(amp=AMP, sparse=SPARSE, every=3, examples=2)), run_eagerly=True)
    trained(model, 7)
    assert len(called) == 3
    assert {tuple(view.inputs.shape) for view in called} == {(2, INPUTS)}
    assert {tuple(view.projection.shape) for view in called} == {(2, CLASSES)}


@pytest.mark.parametrize("kind", ["one", "keras", "minibatches"])
def test_b_rests_with_every_kind_of_optimizer(float64, kind):
    """Also if one optimizer with momentum moves W and B."""
    optimizer = {
        "one": lambda: MultiOptimizer([Momentum(0.1)]),
        "keras": lambda: keras.optimizers.Adam(0.1),
        "minibatches": lambda: MultiOptimizer([Momentum(0.1), Momentum(0.1)], skip_idle=False),
    }[kind]()
    rule = Symmetric(self_=0.4, decay=0.3, every=3, update_forward=kind == "one")
    model = compiled(network(rule), optimizer, run_eagerly=True, minibatches=2 if kind == "minibatches" else 1)
    (layer,) = aligned_layers(model)
    moved = []
    for x, y in batches(7):
        before = layer.kernel.numpy(), layer.backward_kernel.numpy()
        model.train_on_batch(x, y)
        pairs = zip((layer.kernel, layer.backward_kernel), before, strict=True)
        moved.append([bool((after.numpy() != old).any()) for after, old in pairs])
    assert moved == [[True, step % 3 == 0] for step in range(7)]


def test_w_that_r_trains_too_gets_the_gradient_of_j_only_in_the_other_steps(float64):
    model = compiled(
        network(Symmetric(self_=0.4, decay=0.3, every=2, update_forward=True)),
        MultiOptimizer([keras.optimizers.SGD(0.0), keras.optimizers.SGD(0.1)]),
        run_eagerly=True,
    )
    (layer,) = aligned_layers(model)
    for step, (x, y) in enumerate(batches(4)):
        w, b = layer.kernel.numpy(), layer.backward_kernel.numpy()
        model.train_on_batch(x, y)
        assert_close(layer.kernel, w - (step % 2 == 0) * 0.1 * (0.3 * w - 0.4 * b.T))


# Schedules.


def test_during_the_delay_r_is_computed_in_every_step(float64):
    rule = Symmetric(self_=0.0, decay=0.2, every=3)
    sgd = [keras.optimizers.SGD(0.1), keras.optimizers.SGD(0.5)]
    model = compiled(network(rule), MultiOptimizer(sgd, RateScheduler(4, delay_epochs=1)), run_eagerly=True)
    (layer,) = aligned_layers(model)
    moved = []
    for x, y in batches(10):
        before = layer.kernel.numpy(), layer.backward_kernel.numpy()
        model.train_on_batch(x, y)
        pairs = zip((layer.kernel, layer.backward_kernel), before, strict=True)
        moved.append(tuple(bool((after.numpy() != old).any()) for after, old in pairs))
    assert moved == [(False, True)] * 4 + [(True, step % 3 == 0) for step in range(4, 10)]


RESUMED = [Activation(amp=AMP, sparse=SPARSE, every=2, examples=0.5), WeightMirror(**MIRROR, every=3, examples=3)]


@pytest.fixture(scope="module")
def states():
    """The values of all variables before each of 7 steps, and after the last one."""
    whole = compiled(network(*RESUMED))
    whole.optimizer.build(whole.trainable_variables)
    found = []
    for x, y in batches(7):
        found.append([v.numpy() for v in (*whole.variables, *whole.optimizer.variables)])
        whole.train_on_batch(x, y)
    return [*found, [v.numpy() for v in (*whole.variables, *whole.optimizer.variables)]]


@pytest.mark.exhaustive
@pytest.mark.parametrize("at", exhaustive_unless([1, 2, 3, 5], (2,)))
def test_a_resumed_model_continues_exactly(at, states):
    resumed = compiled(network(*RESUMED))
    resumed.optimizer.build(resumed.trainable_variables)
    for variable, value in zip((*resumed.variables, *resumed.optimizer.variables), states[at], strict=True):
        variable.assign(value)
    for x, y in batches(7)[at:]:
        resumed.train_on_batch(x, y)
    for one, other in zip((*resumed.variables, *resumed.optimizer.variables), states[-1], strict=True):
        np.testing.assert_array_equal(one.numpy(), other)


# Replicas and precision.


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"examples": 0.25}, id="fraction", marks=pytest.mark.exhaustive),
        pytest.param({"examples": 4, "every": 2}, id="count", marks=pytest.mark.exhaustive),
        pytest.param({"examples": 3, "every": 3}, id="odd count"),
    ],
)
def test_two_replicas_train_as_two_minibatches(float64, options):
    """R is the mean over the first examples of both halves of the batch, in both cases."""
    rules = [WeightMirror(**MIRROR, **options), Activation(amp=AMP, sparse=SPARSE, examples=0.5)]
    one = compiled(network(*rules), minibatches=2)
    history = trained(one, 5)
    with two_replicas().scope():
        two = compiled(network(*rules))
    reported = trained(two, 5)
    for expected, actual in zip(state(one), state(two), strict=True):
        assert_close(actual, expected)
    assert_close(reported["regulariser"], history["regulariser"], "float32")
    undivided = compiled(network(*rules))
    trained(undivided, 5)
    differences = [np.abs(a - b).max() for a, b in zip(state(one)[:4], state(undivided)[:4], strict=True)]
    assert max(differences) > 1e-3


@pytest.mark.exhaustive
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_half_precision_computes_r_of_the_same_examples(policy):
    found = {}
    for name in ("float32", policy):
        keras.config.set_dtype_policy(name)
        try:
            sgd = [keras.optimizers.SGD(0.1), keras.optimizers.SGD(0.1)]
            rule = Activation(amp=AMP, sparse=SPARSE, examples=0.25, every=2)
            model = compiled(network(rule), MultiOptimizer(sgd))
        finally:
            keras.config.set_dtype_policy("float32")
        found[name] = [*trained(model, 5)["regulariser"], *aligned_layers(model)[0].backward_kernel.numpy().ravel()]
    assert_close(found[policy], found["float32"], "bfloat16")


def test_a_smaller_last_batch_uses_its_own_part():
    rule = Activation(amp=AMP, sparse=SPARSE, examples=0.5)
    model = compiled(
        network(rule), MultiOptimizer([keras.optimizers.SGD(0.0), keras.optimizers.SGD(0.0)]), run_eagerly=True
    )
    (layer,) = aligned_layers(model)
    w, b = layer.kernel.numpy(), layer.backward_kernel.numpy()
    ((x, y),) = batches(1, 5)
    history = model.fit(x, y, batch_size=4, shuffle=False, verbose=0).history

    def value(part):
        return (SPARSE / 2 * (part @ b.T) ** 2 - AMP * (part @ b.T) * (part @ w)).sum() / len(part)

    assert_close(history["regulariser"], [(value(x[:2]) + value(x[4:])) / 2], "float32")


# Layers in other models.


@pytest.mark.parametrize(
    ("examples", "sequences", "jit_compile"),
    exhaustive_unless([(0.5, 2, False), (0.5, 2, True), (3, 3, False), (3, 3, True)], ((0.5, 2, False), (3, 3, True))),
)
def test_examples_of_a_layer_that_is_applied_to_time_steps_are_sequences(float64, examples, sequences, jit_compile):
    rule = Activation(amp=AMP, sparse=SPARSE, examples=examples)
    keras.utils.set_random_seed(3)
    inputs = keras.Input((6, INPUTS))
    dense = layers.Dense(CLASSES, alignment=rule, name="dense")
    outputs = keras.layers.Lambda(lambda t: t[:, -1])(layers.TimeDistributed(dense)(inputs))
    zero = [keras.optimizers.SGD(0.0), keras.optimizers.SGD(0.0)]
    model = compiled(AlignedModel(inputs, outputs), MultiOptimizer(zero), jit_compile=jit_compile)
    x = np.random.default_rng(2).normal(size=(4, 6, INPUTS))
    logs = model.train_on_batch(x, np.zeros(4, int), return_dict=True)
    first, w, b = x[:sequences], dense.kernel.numpy(), dense.backward_kernel.numpy()
    value = SPARSE / 2 * (first @ b.T) ** 2 - AMP * (first @ b.T) * (first @ w)
    assert_close(logs["regulariser"], value.sum() / sequences / 6, "float32")


def test_a_plain_keras_model_takes_examples_and_refuses_every():
    inputs = keras.Input((INPUTS,))
    for options in ({"examples": 2}, {"every": 2}):
        layer = layers.Dense(CLASSES, alignment=Activation(amp=AMP, sparse=SPARSE, **options), name="dense")
        model = keras.Model(inputs, layer(inputs))
        ((x, _),) = batches(1)
        if "every" in options:
            with pytest.raises(ValueError, match="every=2 needs an `AlignedModel`, which skips the optimizer too"):
                model(x, training=True)
            continue
        model(x, training=True)
        first, w, b = x[:2], layer.kernel.numpy(), layer.backward_kernel.numpy()
        value = (SPARSE / 2 * (first @ b.T) ** 2 - AMP * (first @ b.T) * (first @ w)).sum() / 2
        assert_close(model.losses[0], value, "float32")


# Options and refusals.


def test_the_options_are_saved_only_if_they_are_set():
    plain = Activation(amp=1.0, sparse=1.0)
    assert not {"examples", "every"} & (plain.get_config().keys() | plain.model_dump().keys())
    assert Activation(amp=1.0, sparse=1.0, examples=1.0) == plain
    for options in ({"examples": 0.25, "every": 4}, {"examples": 1}):
        rule = Activation(amp=1.0, sparse=1.0, **options)
        again = Activation.from_config(rule.get_config())
        assert again == rule
        assert type(again.examples) is type(options["examples"])


@pytest.mark.parametrize("value", [0, -1, 0.0, 1.5, True, "half", "0.5", math.nan, math.inf, [1]])
def test_a_wrong_number_of_examples_is_refused_by_one_message_for_all_types(value):
    allowed = r"must be a fraction in \(0, 1\], or an integer of at least 1"
    with pytest.raises(ValueError, match=f"(?s)examples.* {allowed}"):
        Activation(amp=1.0, sparse=1.0, examples=value)
    with pytest.raises(ConfigError, match=rf"alignment\.examples: {allowed}; found [^(]*$"):
        from_config({"rule": "activation", "amp": 1.0, "sparse": 1.0, "examples": value})


@pytest.mark.parametrize("value", [0, 2.0, True])
def test_a_wrong_interval_is_refused(value):
    with pytest.raises(ValueError, match="every"):
        Symmetric(self_=1.0, decay=1.0, every=value)


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (
            lambda: Symmetric(self_=1.0, decay=1.0, examples=2),
            "examples.*symmetric, whose R depends only on the kernels",
        ),
        (lambda: KolenPollack(decay=1.0, examples=2), "examples.*kolen_pollack, whose R depends only on"),
        (lambda: KolenPollack(decay=1.0, every=2), "every.*whose B gets the update of W at every step"),
        (lambda: Feedback(examples=0.5), "examples.*feedback, whose R is 0"),
        (lambda: AlignProp(every=2), "every.*align_prop, whose R is 0"),
        (lambda: AlignZero(examples=2), "examples.*align_zero, whose R is 0"),
    ],
)
def test_a_rule_without_such_products_says_why_it_refuses(build, reason):
    with pytest.raises(ValueError, match=reason):
        build()


RUN = {
    "epochs": 1,
    "batch_size": 8,
    "data": {"source": "digits"},
    "model": {"name": "fc", "hidden": [6]},
    "alignment": {"rule": "activation", "amp": 0.1, "sparse": 0.1},
    "optimization": {
        "forward": {"name": "momentum", "learning_rate": 0.1},
        "backward": {"name": "adam", "learning_rate": 0.01},
    },
}


def parsed(plan=None, **rule):
    """Returns a configuration with options of its rule and of its optimization."""
    optimization = {**RUN["optimization"], **(plan or {})}
    return configuration.parse({**RUN, "alignment": {**RUN["alignment"], **rule}, "optimization": optimization})


def test_r_has_no_value_in_an_epoch_in_which_it_is_not_computed(tmp_path):
    config = parsed(every=30).model_copy(update={"batch_size": 128, "epochs": 2})
    rows = MetricsFile(run.train(config, tmp_path / "run").path + "/metrics.csv").rows()
    assert [math.isnan(row["R"]) for row in rows] == [True, False, True]
    assert not math.isnan(rows[-1]["train_J"])


def test_an_interval_is_refused_if_j_and_r_are_never_trained_together():
    with pytest.raises(ConfigError, match=r"alignment\.every: must be left out with optimization\.alternation, which"):
        parsed({"alternation": 2}, every=2)
    with pytest.raises(ConfigError, match=r"alignment\.every: must be left out with optimization\.loss_rates\.forward"):
        parsed({"loss_rates": {"forward": 0.0}}, every=2)
    optimizer = MultiOptimizer([Momentum(), Adam()], RateScheduler(9, alternation=1))
    with pytest.raises(ValueError, match="`every` of a rule must be 1 if no step trains both J and R"):
        compiled(network(Symmetric(self_=1.0, decay=1.0, every=2)), optimizer)


def test_accumulated_gradients_of_b_would_be_lost_in_the_steps_without_r():
    model = network(Symmetric(self_=1.0, decay=1.0, every=2))
    with pytest.raises(ValueError, match="`gradient_accumulation_steps` must be None if a rule has `every`"):
        compiled(model, MultiOptimizer([keras.optimizers.SGD(0.1, gradient_accumulation_steps=2)]))
    with pytest.raises(ValueError, match="`gradient_accumulation_steps` must be None if a rule has `every`"):
        compiled(model, MultiOptimizer([Noisy(keras.optimizers.SGD(0.1, gradient_accumulation_steps=2), 1.0)]))
    compiled(model, MultiOptimizer([keras.optimizers.SGD(0.1, gradient_accumulation_steps=2), Adam()]))


def test_accumulated_gradients_of_r_would_be_lost_if_layers_have_different_intervals():
    def pair():
        return MultiOptimizer([Momentum(0.1), keras.optimizers.SGD(0.1, gradient_accumulation_steps=2)])

    def model(every):
        return network(Symmetric(self_=1.0, decay=1.0, every=2), Symmetric(self_=1.0, decay=1.0, every=every))

    with pytest.raises(ValueError, match="`gradient_accumulation_steps` must be None if a rule has `every`"):
        compiled(model(1), pair())
    same = compiled(model(2), pair())
    before = [layer.backward_kernel.numpy() for layer in aligned_layers(same)]
    for step, batch in enumerate(batches(3)):
        same.train_on_batch(*batch)
        for layer, start in zip(aligned_layers(same), before, strict=True):
            assert np.array_equal(layer.backward_kernel, start) == (step < 2)  # R is computed at steps 0 and 2.


def test_too_many_kinds_of_steps_are_refused():
    optimizer = MultiOptimizer([Momentum(), Adam()])
    assert len(StepModes(optimizer, [1, 2, 4, 8, 16]).modes) == 5
    with pytest.raises(ValueError, match=r"give at most 16 kinds of steps.*Received \[1, 2, 3, 5, 7, 11\]"):
        StepModes(optimizer, [1, 2, 3, 5, 7, 11])


def test_describe_counts_both():
    def products(config):
        text = describe(config)
        (row,) = [line.split() for line in text.splitlines() if line.startswith("dense ")]
        costs = {line.split("  ")[0]: float(line.split()[-1]) for line in text.splitlines() if "GFLOP per" in line}
        return float(row[-1]), costs

    plain, costs = products(parsed())
    fewer, fewer_costs = products(parsed(examples=0.25, every=4))
    assert (plain, fewer) == (2.0, 2.0 / 16)
    assert products(parsed(examples=3))[0] == 2.0 * 3 / 8
    assert products(parsed({"minibatches": 2}, examples=3))[0] == 2.0 * 4 / 8
    assert costs["J + R step"] - 1 == pytest.approx(16 * (fewer_costs["J + R on average"] - 1), abs=0.1)
    assert fewer_costs["R step"] < costs["R step"]
    (rule,) = [line for line in describe(parsed(examples=0.25, every=4)).splitlines() if line.startswith("rule  ")]
    assert "examples 0.25" in rule
    assert "every 4" in rule
