"""`AlignedModel`: fit, evaluate, the losses of each step, minibatches, and values that are not finite."""

import collections
import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import LEARNING, RULE_CONFIGS, TABLE_5, assert_close, assert_differs, exhaustive_unless, two_replicas

from neural_alignment import convert, layers, models
from neural_alignment.alignments import (
    AlignZero,
    DirectFeedback,
    DirectTargetProjection,
    Feedback,
    Symmetric,
    from_config,
)
from neural_alignment.models.rnn import Recurrent
from neural_alignment.training import AlignedModel, aligned_layers
from neural_alignment.training.stepping import Stepper, Tracing
from optimizers import Momentum, MultiOptimizer, RateScheduler
from optimizers.keras_internals import call_count


def cross_entropy():
    """Returns the task loss, in the present dtype."""
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def network(rule, size=6, **options):
    """Returns an aligned model of two dense layers, not compiled."""
    keras.utils.set_random_seed(8)
    inputs = keras.Input((5,))
    x = layers.Dense(size, activation="relu", alignment=rule, name="first", **options)(inputs)
    return AlignedModel(inputs, layers.Dense(3, alignment=rule, name="second", **options)(x))


def data(n=24, seed=0):
    """Returns inputs and labels that a network can separate."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 5)).astype(keras.config.floatx())
    return x, np.argmax(x @ rng.normal(size=(5, 3)), axis=1)


def optimizer(scheduler=None, **options):
    """Returns the usual pair."""
    return MultiOptimizer([Momentum(0.1), keras.optimizers.Adam(0.02)], scheduler, **options)


def forward_and_backward(model):
    """Returns copies of the forward variables and of the backward kernels."""
    both = [[], []]
    for variable in model.trainable_variables:
        both["backward_kernel" in variable.path].append(variable.numpy().copy())
    return both


def same(before, after):
    """Whether two lists of arrays are equal to the bit."""
    return [bool((a == b).all()) for a, b in zip(before, after, strict=True)]


@pytest.mark.parametrize(
    "rule",
    exhaustive_unless(
        ["feedback", "align_prop", "sign_symmetry", "information", "kolen_pollack"],
        ("align_prop", "information", "kolen_pollack"),
    ),
)
def test_fit_evaluate_and_predict_work_with_every_kind_of_rule(rule):
    """Without R, with W(0) as B, without a variable for B, with R of signals, and with one optimizer."""
    model = network(from_config(RULE_CONFIGS[rule]))
    inner = [Momentum(0.1)] if rule == "kolen_pollack" else [Momentum(0.1), keras.optimizers.Adam(0.02)]
    model.compile(MultiOptimizer(inner), cross_entropy(), metrics=["accuracy"], jit_compile=False)
    x, y = data()
    untrained = model.evaluate(x, y, verbose=0, return_dict=True)
    history = model.fit(x, y, batch_size=2, epochs=4, verbose=0).history
    trained = model.evaluate(x, y, verbose=0, return_dict=True)
    assert set(history) == {"loss", "accuracy", "regulariser"}
    assert set(trained) == {"loss", "accuracy"}
    assert trained["loss"] < 0.8 * untrained["loss"]
    assert trained["accuracy"] > untrained["accuracy"]
    assert len(model.evaluate(x, y, verbose=0)) == 2
    logits = model.predict(x, verbose=0)
    assert_close(cross_entropy()(y, logits), trained["loss"], "float32")
    assert model.first_non_finite() is None
    assert (np.ptp(history["regulariser"]) > 0) == (rule in LEARNING)


def test_train_on_batch_reports_j_and_r(rng):
    model = network(Symmetric(self_=0.3, decay=0.2), kernel_regularizer=keras.regularizers.L2(0.01))
    model.compile(optimizer(), cross_entropy(), run_eagerly=True)
    x, y = data()
    task = float(cross_entropy()(y, model(x)))
    kernels = [(layer.kernel.numpy(), layer.backward_kernel.numpy().T) for layer in aligned_layers(model)]
    regulariser = sum(0.1 * (b**2).sum() - 0.3 * (w * b).sum() for w, b in kernels)
    penalty = 0.01 * sum((w**2).sum() for w, _ in kernels)
    logs = model.train_on_batch(x, y, return_dict=True)
    assert_close(logs["loss"], task + penalty, "float32")
    assert_close(logs["regulariser"], regulariser, "float32")


def test_without_an_optimizer_a_model_is_only_evaluated():
    """As in Keras."""
    model, other = network(Feedback()), network(Feedback())
    model.compile(optimizer=None, loss=cross_entropy())
    other.compile(optimizer(), cross_entropy())
    assert model.evaluate(*data(), verbose=0) == other.evaluate(*data(), verbose=0)
    assert model.predict(data()[0], verbose=0).shape == (24, 3)
    model.compile(optimizer(), cross_entropy())
    model.fit(*data(), verbose=0)
    assert int(call_count(model.optimizer)) == 1


@pytest.mark.parametrize("frozen", [True, False])
def test_in_a_frozen_model_no_rule_is_said_to_be_wrong(frozen):
    """Keras trains nothing in it, whatever its layers say."""
    model = network(from_config(RULE_CONFIGS["activation"]))
    if frozen:
        model.trainable = False
        model.layers[-1].trainable = True
    model.compile(optimizer(), cross_entropy(), jit_compile=False)
    before = model.get_weights()
    model.fit(*data(), verbose=0)
    assert all(same(before, model.get_weights())) == frozen


def test_r_is_averaged_over_the_steps_at_which_it_ran():
    model = network(Symmetric(self_=0.0, decay=0.2))
    model.compile(
        MultiOptimizer([Momentum(0.1), Momentum(0.0)], RateScheduler(10, alternation=2)),
        cross_entropy(),
        run_eagerly=True,
    )
    energy = 0.1 * sum((layer.backward_kernel.numpy() ** 2).sum() for layer in aligned_layers(model))
    x, y = data()
    assert_close(model.fit(x, y, batch_size=4, verbose=0).history["regulariser"], [energy], "float32")


def test_examples_weigh_by_their_sample_weights():
    x, y = data(8)
    weight = np.array([1, 1, 1, 1, 0, 0, 0, 0], np.float32)
    ends = []
    for arguments in [(x, y, weight), (x[:4], y[:4])]:
        model = network(Feedback())
        model.compile(
            MultiOptimizer([keras.optimizers.SGD(0.1), keras.optimizers.SGD(0.1)]), cross_entropy(), run_eagerly=True
        )
        model.train_on_batch(*arguments)
        ends.append(model.layers[1].kernel.numpy() - network(Feedback()).layers[1].kernel.numpy())
    assert_close(ends[0] * 2, ends[1], "float32")


@pytest.mark.parametrize("compiled", [True, False], ids=["graph", "eager"])
def test_a_loss_that_is_not_reduced_trains_by_the_sum_over_examples_and_reports_the_mean(compiled):
    """As in Keras. R counts once, and not once per example."""
    x, y = data(8)
    ends, logs = [], []
    for reduction in (None, "sum"):
        model = network(Symmetric(self_=1e-2, decay=1e-2))
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction=reduction)
        model.compile(optimizer(), loss, run_eagerly=not compiled, jit_compile=False, minibatches=2)
        logs.append(model.fit(x, y, batch_size=8, verbose=0).history)
        ends.append([weight.numpy() for weight in model.trainable_variables])
        assert model.first_non_finite() is None
    for one, other in zip(*ends, strict=True):
        assert_close(one, other)
    assert_close(8 * logs[0]["loss"][0], logs[1]["loss"][0], "float32")
    assert_close(logs[0]["regulariser"], logs[1]["regulariser"])


@pytest.mark.parametrize(("rule", "compiled"), [("symmetric", True), ("information", False)])
def test_an_r_only_step_leaves_w_in_place_and_a_j_only_step_b(rule, compiled):
    options = TABLE_5["IA"] if rule == "information" else {}
    penalty = {"kernel_regularizer": keras.regularizers.L2(0.1)}
    model = network(from_config({**RULE_CONFIGS[rule], **options}), **penalty)
    model.compile(
        optimizer(RateScheduler(2, delay_epochs=1, alternation=1)),
        cross_entropy(),
        run_eagerly=not compiled,
        jit_compile=False,
    )
    x, y = data(6)
    for turn in "RRRJRJ":
        forward, backward = forward_and_backward(model)
        model.train_on_batch(x, y)
        after_forward, after_backward = forward_and_backward(model)
        assert same(forward, after_forward) == [turn == "R"] * 4
        assert same(backward, after_backward) == [turn == "J"] * 2


def test_the_momentum_of_an_idle_loss_drifts_only_without_skip_idle():
    moved = {}
    for skip_idle in (True, False):
        model = network(Symmetric(self_=0.3, decay=0.2))
        model.compile(
            optimizer(RateScheduler(9, alternation=1), skip_idle=skip_idle), cross_entropy(), run_eagerly=True
        )
        x, y = data(6)
        for _ in range(2):
            model.train_on_batch(x, y)
        forward, _ = forward_and_backward(model)
        model.train_on_batch(x, y)  # Step 2: R's turn.
        moved[skip_idle] = not all(same(forward, forward_and_backward(model)[0]))
    assert moved == {True: False, False: True}


CALLS = {"R": tf.Variable(0, dtype=tf.int32), "noise": tf.Variable(0, dtype=tf.int32)}


class CountingRule(Symmetric):
    """Symmetric alignment that counts how often its R is executed."""

    def __call__(self, view):
        """Counts, then returns R_l."""
        CALLS["R"].assign_add(1)
        return super().__call__(view)


@pytest.mark.parametrize(("compiled", "minibatches"), [(False, 1), (True, 2)], ids=["eager", "graph"])
def test_at_a_j_only_step_no_operation_of_r_is_executed(compiled, minibatches):
    model = network(CountingRule(self_=0.3, decay=0.2))
    scheduler = RateScheduler(10, alternation=2)
    model.compile(
        optimizer(scheduler), cross_entropy(), run_eagerly=not compiled, jit_compile=False, minibatches=minibatches
    )
    x, y = data(6)
    counts = []
    for _ in range(6):
        before = int(CALLS["R"])
        model.train_on_batch(x, y)
        counts.append(int(CALLS["R"]) - before)
    assert counts == [2 * minibatches, 0, 0] * 2


def test_evaluation_computes_no_r():
    model = network(CountingRule(self_=0.3, decay=0.2))
    model.compile(optimizer(), cross_entropy(), run_eagerly=True)
    before = int(CALLS["R"])
    model.evaluate(*data(), verbose=0)
    model.predict(data()[0], verbose=0)
    assert int(CALLS["R"]) == before


# Evaluation, and how often anything is traced.


def evaluated(run_eagerly=False, **options):
    """Returns a compiled model, and its data: three batches of 8 and one of 3."""
    model = network(Symmetric(self_=0.3, decay=0.2))
    options = {"jit_compile": False, "run_eagerly": run_eagerly, **options}
    model.compile(optimizer(), cross_entropy(), metrics=["accuracy"], **options)
    return model, *data(27)


class Executions(keras.callbacks.Callback):
    """Notes the numbers of the batches at which Keras calls back in an evaluation."""

    def __init__(self):
        super().__init__()
        self.begins, self.ends, self.losses = [], [], []

    def on_test_batch_begin(self, batch, logs=None):
        """Notes the first batch of an execution."""
        self.begins.append(batch)

    def on_test_batch_end(self, batch, logs=None):
        """Notes the last one, and J so far."""
        self.ends.append(batch)
        self.losses.append(float(logs["loss"]))


@pytest.mark.parametrize(
    ("together", "mode"),
    [(1, {}), (3, {}), (3, {"run_eagerly": True}), (9, {"jit_compile": True})],
)
def test_evaluation_counts_every_example_once_and_calls_back_once_per_execution(together, mode):
    model, x, y = evaluated(steps_per_execution=together, **mode)
    seen = Executions()
    result = model.evaluate(x, y, batch_size=8, verbose=0, callbacks=[seen], return_dict=True)
    logits = model.predict(x, verbose=0)
    assert_close(result["loss"], cross_entropy()(y, logits), "float32")
    assert_close(result["accuracy"], np.mean(np.argmax(logits, axis=1) == y), "float32")
    means = [float(cross_entropy()(y[begin : begin + 8], logits[begin : begin + 8])) for begin in range(0, 27, 8)]
    assert_differs(result["loss"], np.mean(means))
    assert seen.begins == list(range(0, 4, together))
    assert seen.ends == [begin + together - 1 for begin in seen.begins]
    first = 8 * together
    assert_close(seen.losses[0], cross_entropy()(y[:first], logits[:first]), "float32")


def test_test_on_batch_evaluates_only_that_batch():
    model, x, y = evaluated(steps_per_execution=3)
    model.evaluate(x, y, verbose=0)
    loss = model.test_on_batch(x[:8], y[:8], return_dict=True)["loss"]
    assert_close(loss, cross_entropy()(y[:8], model.predict(x[:8], verbose=0)), "float32")


@pytest.mark.parametrize("run_eagerly", [False, True], ids=["graph", "eager"])
def test_steps_end_at_their_limit_or_time_and_drop_no_batch(run_eagerly):
    model, x, y = evaluated(run_eagerly)
    model.make_test_function()
    logits = model(x)
    batches = iter(tf.data.Dataset.from_tensor_slices((x, y)).batch(8))
    seen = 0
    # Two batches; one, because no time is left after it; the rest; none.
    for options, made in [({"limit": 2}, 2), ({"limit": 9, "seconds": 0.0}, 1), ({"limit": 9}, 1), ({"limit": 9}, 0)]:
        count, results = model.test_function.steps(batches, **options)
        assert count == made
        seen = min(27, seen + 8 * made)
        assert_close(results["loss"], cross_entropy()(y[:seen], logits[:seen]), "float32")


@pytest.mark.exhaustive
def test_fewer_steps_than_an_execution_has_are_made_by_the_same_graph(monkeypatch):
    ends = []
    for together, limits in [(1, [1] * 5), (4, [4, 1]), (4, [2, 3])]:
        traces = counted(monkeypatch, AlignedModel, "_replica_step")
        model, x, y = evaluated(steps_per_execution=together)
        model.make_train_function()
        batches = iter(tf.data.Dataset.from_tensor_slices((x, y)).batch(8).repeat())
        for limit in limits:
            model.train_function(batches, limit)
        assert model.global_step == 5
        assert len(traces) == 1
        ends.append(model.get_weights())
    for one, *others in zip(*ends, strict=True):
        for other in others:
            np.testing.assert_array_equal(other, one)


def counted(monkeypatch, owner, name):
    """Notes the arguments of every call that Python makes of a method."""
    original, calls = getattr(owner, name), []

    def method(self, *args, **kwargs):
        calls.append(args)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(owner, name, method)
    return calls


def modes(calls):
    """Returns how often each pair (J runs, R runs) was traced."""
    return collections.Counter(args[2][:2] for args in calls)


@pytest.mark.parametrize(
    ("scheduler", "together"),
    [(None, 3), (RateScheduler(4, alternation=1), 1)],
    ids=["simultaneous", "alternating"],
)
def test_a_step_and_an_evaluation_are_traced_once(monkeypatch, scheduler, together):
    steps = counted(monkeypatch, AlignedModel, "_replica_step")
    evaluations = counted(monkeypatch, AlignedModel, "test_step")
    model = network(Symmetric(self_=0.3, decay=0.2))
    options = {"jit_compile": False, "steps_per_execution": together}
    model.compile(optimizer(scheduler), cross_entropy(), metrics=["accuracy"], **options)
    x, y = data(27)
    model.fit(x, y, batch_size=8, epochs=2, validation_data=(x, y), verbose=0)
    assert modes(steps) == ({(True, True): 1} if scheduler is None else {(True, False): 1, (False, True): 1})
    assert len(evaluations) == 1


@pytest.mark.parametrize("together", [1, 3])
def test_the_graph_that_is_traced_aside_is_that_of_the_steps_and_makes_no_step(monkeypatch, together):
    steps = counted(monkeypatch, AlignedModel, "_replica_step")
    model, x, y = evaluated(steps_per_execution=together)
    before = model.get_weights()
    advance = Stepper(model, tf.data.Dataset.from_tensor_slices((x, y)).repeat().batch(8, drop_remainder=True))
    advance.trace_in_background()
    advance._tracing.result()
    assert modes(steps) == {(True, True): 1}
    assert model.global_step == 0
    for weight, start in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, start)
    for step in (together, 2 * together):
        advance(10)
        assert model.global_step == step
    assert modes(steps) == {(True, True): 1}


@pytest.mark.parametrize("together", exhaustive_unless([1, 3], (1,)))
def test_a_graph_is_traced_before_the_batches_exist_unless_they_differ(monkeypatch, together):
    steps = counted(monkeypatch, AlignedModel, "_replica_step")
    for announced, traced in ((8, 1), (4, 3)):
        model, x, y = evaluated(steps_per_execution=together)
        batches = tf.data.Dataset.from_tensor_slices((x, y)).repeat()
        spec = batches.batch(announced, drop_remainder=True).element_spec
        tracing = Tracing(model, tf.data.IteratorSpec(spec), spec)
        tracing.result()
        advance = Stepper(model, batches.batch(8, drop_remainder=True), tracing=tracing)
        advance.trace_in_background()
        advance(10)
        assert model.global_step == together
        assert modes(steps) == {(True, True): traced}


def test_eagerly_a_step_is_called_each_time(monkeypatch):
    """So that the counts above can be others."""
    steps = counted(monkeypatch, AlignedModel, "_replica_step")
    model, x, y = evaluated(run_eagerly=True)
    model.fit(x, y, batch_size=8, epochs=2, verbose=0)
    assert modes(steps) == {(True, True): 8}


# Minibatches.


def test_minibatches_with_an_embedding_make_the_step_of_the_full_batch(float64):
    """Its gradient has an entry per word, and words occur several times."""
    words, ends = np.random.default_rng(4).integers(0, 4, (8, 6)), []
    for parts in (1, 2):
        keras.utils.set_random_seed(8)
        inputs = keras.Input((6,), dtype="int32")
        x = keras.layers.Flatten()(keras.layers.Embedding(5, 3)(inputs))
        model = AlignedModel(inputs, layers.Dense(3, alignment=Symmetric(self_=0.1, decay=0.1), name="dense")(x))
        start = model.get_weights()
        model.compile(optimizer(), cross_entropy(), jit_compile=False, minibatches=parts)
        model.train_on_batch(words, np.arange(8) % 3)
        ends.append(model.get_weights())
    for whole, part, before in zip(*ends, start, strict=True):
        assert_close(part, whole)
        assert_differs(part, before)


@pytest.mark.parametrize(
    ("rule", "minibatches"),
    exhaustive_unless(
        [("symmetric", 6), ("information", 3), ("kolen_pollack", 2)], [("information", 3), ("kolen_pollack", 2)]
    ),
)
def test_minibatches_make_the_step_of_the_full_batch(float64, rule, minibatches):
    x, y = data(6)
    ends = []
    for parts in (1, minibatches):
        decay = RULE_CONFIGS[rule]["decay"] if rule == "kolen_pollack" else 0.02
        model = network(from_config(RULE_CONFIGS[rule]), kernel_regularizer=keras.regularizers.L2(decay / 2))
        start = model.get_weights()
        pair = MultiOptimizer([Momentum(0.1)]) if rule == "kolen_pollack" else optimizer()
        model.compile(pair, cross_entropy(), metrics=["accuracy"], run_eagerly=True, minibatches=parts)
        logs = [model.train_on_batch(x, y, return_dict=True) for _ in range(3)]
        ends.append([*model.get_weights(), *(log[k] for log in logs for k in ("loss", "accuracy"))])
    for full, cut in zip(*ends, strict=True):
        assert_close(cut, full)
    assert_differs(ends[0][0], start[0])


@pytest.mark.parametrize("reduction", ["sum", "none"])
@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
@pytest.mark.parametrize(
    "rule", [Symmetric(self_=0.1, decay=0.1), DirectTargetProjection()], ids=lambda rule: rule.rule
)
def test_minibatches_of_a_loss_that_is_a_sum_make_the_step_of_the_full_batch(float64, rule, weighted, reduction):
    """The mean over the parts would be smaller than the sum, and W would learn more slowly in relation to B."""
    x, y = data(6)
    weights = np.arange(1.0, 7) if weighted else None
    ends = []
    for parts in (1, 3):
        penalty = keras.regularizers.L2(0.02) if reduction == "sum" else None  # Keras cannot add it to a vector.
        model = network(rule, kernel_regularizer=penalty)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction=reduction)
        single = MultiOptimizer([Momentum(0.1)])
        model.compile(single if rule.rule == "drtp" else optimizer(), loss, jit_compile=False, minibatches=parts)
        logs = [model.train_on_batch(x, y, sample_weight=weights, return_dict=True)["loss"] for _ in range(2)]
        ends.append([*model.get_weights(), *logs])
    for full, part in zip(*ends, strict=True):
        assert_close(part, full)


def two_outputs(rule):
    """Returns an aligned model with the outputs `a` and `b`."""
    keras.utils.set_random_seed(3)
    inputs = keras.Input((5,))
    return AlignedModel(inputs, {name: layers.Dense(3, name=name, alignment=rule)(inputs) for name in "ab"})


@pytest.mark.parametrize("given", [None, "one", "both"])
def test_minibatches_of_sums_over_several_outputs(float64, given):
    x, y = data(6)
    weights = {None: None, "one": {"a": np.arange(6.0), "b": None}, "both": {"a": np.arange(6.0), "b": np.ones(6)}}
    ends = []
    for parts in (1, 2):
        model = two_outputs(Symmetric(self_=0.1, decay=0.1))
        losses = {name: keras.losses.SparseCategoricalCrossentropy(True, reduction="sum") for name in "ab"}
        model.compile(optimizer(), losses, run_eagerly=True, minibatches=parts)
        model.train_step((x, {"a": y, "b": y}, weights[given]))
        ends.append(model.get_weights())
    for full, part in zip(*ends, strict=True):
        assert_close(part, full)


def test_minibatches_of_a_sum_and_a_mean_are_refused():
    model = two_outputs(None)
    losses = {"a": cross_entropy(), "b": keras.losses.SparseCategoricalCrossentropy(True, reduction="sum")}
    with pytest.raises(ValueError, match=r"minibatches` must be 1 if the loss of one output is a sum .* Received 2"):
        model.compile(optimizer(), losses, minibatches=2)
    model.compile(MultiOptimizer([Momentum(0.1)]), losses)


@pytest.mark.parametrize("run_eagerly", [True, False], ids=["eager", "graph"])
def test_minibatches_do_not_move_variables_without_a_gradient(run_eagerly):
    """Weight decay would shrink the kernel of an output that has no loss if its gradient were zero."""
    x, y = data(8)
    ends = []
    for minibatches in (1, 2):
        keras.utils.set_random_seed(3)
        inputs = keras.Input((5,))
        model = AlignedModel(inputs, {name: layers.Dense(3, name=name)(inputs) for name in "ab"})
        decaying = keras.optimizers.SGD(0.1, weight_decay=0.5)
        options = {"minibatches": minibatches, "run_eagerly": run_eagerly, "jit_compile": False}
        model.compile(MultiOptimizer([decaying]), {"a": cross_entropy(), "b": None}, **options)
        start = model.get_layer("b").kernel.numpy()
        model.train_on_batch(x, {"a": y})
        np.testing.assert_array_equal(model.get_layer("b").kernel.numpy(), start)
        ends.append(model.get_layer("a").kernel.numpy())
    assert_close(*ends, "float32")


def normalised():
    """Returns the inputs and outputs of a batch normalisation with the statistics of the batch."""
    inputs = keras.Input((6,))
    return inputs, models.BatchAxisNormalization(name="norm")(inputs)


def unrolled(slots):
    """Returns the inputs and outputs of a recurrent layer with an initial state for each of `slots` examples."""
    inputs = keras.Input((4, 2))
    return inputs, Recurrent(5, slots, name="recurrent")(inputs)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (normalised, "layer 'norm' uses the statistics of the whole batch"),
        (lambda: unrolled(8), "layer 'recurrent' trains a row of its initial state for each example of the whole"),
    ],
    ids=["statistics", "initial states"],
)
def test_a_layer_that_needs_the_whole_batch_gets_no_part_of_it(build, message):
    with pytest.raises(ValueError, match=f"`minibatches` must be 1: the {message}.*Received 2. Example"):
        AlignedModel(*build()).compile(optimizer(), cross_entropy(), minibatches=2)
    AlignedModel(*build()).compile(optimizer(), cross_entropy())
    with two_replicas().scope():
        model = AlignedModel(*build())
        with pytest.raises(ValueError, match=f"`model` whose {message}.* must be on one replica. Received 2 replicas"):
            model.compile(optimizer(), cross_entropy())


def test_minibatches_train_an_initial_state_that_all_examples_share(float64):
    rng, ends = np.random.default_rng(2), []
    x, y = rng.normal(size=(8, 4, 2)), rng.integers(0, 5, (8, 4))
    for parts in (1, 2):
        keras.utils.set_random_seed(3)
        model = AlignedModel(*unrolled(1))
        model.compile(optimizer(), cross_entropy(), jit_compile=False, minibatches=parts)
        for _ in range(2):
            model.train_on_batch(x, y)
        ends.append(model.get_weights())
    for full, cut in zip(*ends, strict=True):
        assert_close(cut, full)


def test_batch_centring_differs_between_minibatches_and_the_full_batch(float64):
    """The exception, so that the test above can fail."""
    x, y = data(6)
    ends = []
    for parts in (1, 2):
        model = network(from_config({**RULE_CONFIGS["activation"], "forward_output": {"batch_center": True}}))
        model.compile(optimizer(), cross_entropy(), run_eagerly=True, minibatches=parts)
        model.train_on_batch(x, y)
        model.train_on_batch(x, y)
        ends.append(model.layers[1].backward_kernel.numpy())
    assert_differs(*ends)


WIDER = [*itertools.product(("information", "symmetric", "kolen_pollack"), (1, 2))]


@pytest.mark.parametrize(("rule", "minibatches"), exhaustive_unless(WIDER, [("information", 2)]))
def test_layers_may_be_wider_than_the_loss_and_each_other(rule, minibatches):
    def trained(first, second):
        keras.utils.set_random_seed(8)
        inputs, options = keras.Input((5,)), {"alignment": from_config(RULE_CONFIGS[rule])}
        x = layers.Dense(6, activation="relu", name="first", dtype=first, **options)(inputs)
        model = AlignedModel(inputs, layers.Dense(3, name="second", dtype=second, **options)(x))
        tied = rule == "kolen_pollack"
        sgd = [keras.optimizers.SGD(0.1) for _ in range(1 if tied else 2)]
        model.compile(MultiOptimizer(sgd), cross_entropy(), jit_compile=False, minibatches=minibatches)
        rng = np.random.default_rng(4)
        for weight in model.trainable_variables:
            weight.assign(rng.normal(size=weight.shape) / 4)
        history = model.fit(*data(), batch_size=8, epochs=2, shuffle=False, verbose=0).history
        return [*model.get_weights(), history["loss"][-1], history["regulariser"][-1]]

    expected = trained("float32", "float32")
    for dtypes in (("float64", "float64"), ("float32", "float64"), ("float64", "float32")):
        for found, value in zip(trained(*dtypes), expected, strict=True):
            assert_close(found, value, "float32")


@pytest.mark.parametrize("minibatches", [4, 5])
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "graph"])
def test_minibatches_that_do_not_divide_the_batch_are_an_error_that_says_so(minibatches, compiled):
    model = network(Feedback())
    model.compile(optimizer(), cross_entropy(), run_eagerly=not compiled, jit_compile=False, minibatches=minibatches)
    with pytest.raises(ValueError, match=rf"`minibatches` must divide.*Received {minibatches} and a batch of 6"):
        model.train_on_batch(*data(6))


def test_the_last_smaller_batch_of_fit_is_an_error_that_says_so():
    """`fit` does not know its batch size when it traces."""
    model = network(Feedback())
    model.compile(optimizer(), cross_entropy(), jit_compile=False, minibatches=2)
    with pytest.raises((ValueError, tf.errors.InvalidArgumentError), match="`minibatches`"):
        model.fit(*data(9), batch_size=6, verbose=0)


@pytest.mark.parametrize("minibatches", [0, -1, 1.5, "two", True])
def test_minibatches_must_be_a_positive_integer(minibatches):
    with pytest.raises(ValueError, match=f"`minibatches`.*{minibatches}.*Example"):
        network(Feedback()).compile(optimizer(), cross_entropy(), minibatches=minibatches)


# Values that are not finite.


@pytest.mark.parametrize(
    ("spoil", "names", "value"),
    [
        ("first", ["first"], np.inf),
        ("second", ["second"], np.nan),
        ("both", ["first", "second"], np.inf),
        ("J", ["J"], np.nan),
    ],
)
def test_first_non_finite_names_the_step_and_the_layers(value, spoil, names):
    model = network(Symmetric(self_=0.1, decay=0.2))
    model.compile(
        MultiOptimizer([keras.optimizers.SGD(0.0), keras.optimizers.SGD(0.0)]), cross_entropy(), run_eagerly=True
    )
    x, y = data(6)
    for _ in range(3):
        model.train_on_batch(x, y)
    assert model.first_non_finite() is None
    if spoil == "J":
        x = np.where(np.arange(5) == 2, value, x)
    for layer in aligned_layers(model):
        if spoil in (layer.name, "both"):
            layer._backward_kernel.assign(np.full(layer._backward_kernel.shape, value))
    for _ in range(3):
        model.train_on_batch(x, y)
    assert model.first_non_finite() == (3, names)


def test_the_first_step_counts_and_not_the_last():
    model = network(Symmetric(self_=0.1, decay=0.2))
    model.compile(
        MultiOptimizer([keras.optimizers.SGD(0.0), keras.optimizers.SGD(0.0)]), cross_entropy(), run_eagerly=True
    )
    x, y = data(6)
    kernel = model.get_layer("second")._backward_kernel
    good = kernel.numpy()
    for step in range(4):
        kernel.assign(good * np.inf if step == 1 else good)
        if step == 3:
            model.get_layer("first")._backward_kernel.assign(np.full((6, 5), np.nan))
        model.train_on_batch(x, y)
    assert model.first_non_finite() == (1, ["second"])


# Models that are saved, and layers that are left out.


@pytest.mark.parametrize("rule", exhaustive_unless(["symmetric", "information", "sign_symmetry"], ("information",)))
def test_a_loaded_model_trains_like_the_one_that_was_saved(rule, tmp_path):
    options = TABLE_5["IA"] if rule == "information" else {}
    model = network(from_config({**RULE_CONFIGS[rule], **options}))
    model.compile(optimizer(RateScheduler(2, alternation=1)), cross_entropy(), run_eagerly=True, minibatches=2)
    x, y = data(8)
    for _ in range(3):
        model.train_on_batch(x, y)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert type(loaded) is AlignedModel
    loaded.run_eagerly = True
    for _ in range(3):
        model.train_on_batch(x, y)
        loaded.train_on_batch(x, y)
    for ours, theirs in zip(model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert int(loaded.optimizer.iterations) == 6
    assert loaded.get_compile_config()["minibatches"] == 2


def test_a_model_in_the_old_format_is_loaded_with_custom_objects(tmp_path):
    model = network(Symmetric(self_=0.3, decay=0.2))
    model.save(tmp_path / "model.h5")
    loaded = keras.models.load_model(tmp_path / "model.h5", custom_objects={"AlignedModel": AlignedModel})
    assert type(loaded) is AlignedModel
    assert [layer.alignment for layer in aligned_layers(loaded)] == [layer.alignment for layer in aligned_layers(model)]
    assert same(model.get_weights(), loaded.get_weights()) == [True] * len(model.get_weights())


def test_aligned_layers_are_those_with_a_rule_in_the_order_of_the_forward_pass():
    inputs = keras.Input((6, 6, 1))
    x = layers.Conv2D(2, 3, alignment=Feedback(), name="a")(inputs)
    x = layers.Conv2D(2, 3, name="plain")(x)
    inner_inputs = keras.Input((2, 2, 2))
    inner = keras.Model(inner_inputs, layers.Conv2D(2, 1, alignment=Feedback(), name="b")(inner_inputs))
    x = layers.Dense(2, alignment=Feedback(), name="c")(keras.layers.Flatten()(inner(x)))
    assert [layer.name for layer in aligned_layers(AlignedModel(inputs, x))] == ["a", "b", "c"]


def test_an_ordinary_optimizer_takes_j_and_r_on_all_variables():
    model = network(Symmetric(self_=0.3, decay=0.2))
    model.compile(keras.optimizers.SGD(0.1), cross_entropy(), run_eagerly=True)
    layer = model.get_layer("second")
    w, b = layer.kernel.numpy(), layer.backward_kernel.numpy()
    model.train_on_batch(*data())
    assert_close(layer.backward_kernel.numpy(), b - 0.1 * (0.2 * b - 0.3 * w.T))
    assert_differs(layer.kernel.numpy(), w)


def test_compiling_again_reports_the_new_metrics():
    model = network(Symmetric(self_=0.3, decay=0.2))
    x, y = data(6)
    for _ in range(2):
        model.compile(optimizer(), cross_entropy(), metrics=["accuracy"], run_eagerly=True)
        logs = model.train_on_batch(x, y, return_dict=True)
    assert set(logs) == {"loss", "accuracy", "regulariser"}
    assert logs["regulariser"] != 0


def test_compiling_again_lists_each_metric_once(tmp_path):
    x, y = data()
    model = network(Symmetric(self_=1.0, decay=1.0))
    model.compile(optimizer(), cross_entropy())
    assert model.train_on_batch(x, y, return_dict=True)["regulariser"] > 0
    model.save(tmp_path / "model.keras")
    for compiled in (model, keras.models.load_model(tmp_path / "model.keras")):
        compiled.compile(optimizer(), cross_entropy())
        assert [metric.name for metric in compiled.metrics] == ["loss"]
        assert list(compiled.get_metrics_result()) == ["loss", "regulariser"]
        assert not any(variable.numpy() for variable in compiled.metrics_variables)
        assert not compiled.regulariser_is_defined


def test_mixed_float16_trains_at_the_speed_of_float32():
    """Keras wraps the optimizer so that the loss is scaled; the update must not be."""
    moves = []
    previous = keras.config.dtype_policy()
    for policy in ("float32", "mixed_float16"):
        try:
            keras.config.set_dtype_policy(policy)
            model = network(Symmetric(self_=0.3, decay=0.2))
        finally:
            keras.config.set_dtype_policy(previous)
        model.compile(optimizer(), cross_entropy(), run_eagerly=True)
        before = forward_and_backward(model)
        model.train_on_batch(*data())
        after = forward_and_backward(model)
        moves.append([a - b for k in (0, 1) for a, b in zip(after[k], before[k], strict=True)])
    for full, half in zip(*moves, strict=True):
        np.testing.assert_allclose(half, full, atol=0.02 * np.abs(full).max())


def test_two_aligned_layers_of_one_name_are_refused():
    """Their noise would be the same, and one would hide the measures of the other."""
    inputs = keras.Input((5,))
    rule = Symmetric(self_=0.0, decay=0.2)
    parts = [keras.Model(inputs, layers.Dense(5, alignment=rule, name="same")(inputs), name=n) for n in "ab"]
    model = AlignedModel(inputs, parts[1](parts[0](inputs)))
    with pytest.raises(
        ValueError, match=r"`name` of aligned layers must be different.*two layers named 'same'.*Example"
    ):
        model.compile(optimizer(), cross_entropy())


@pytest.mark.parametrize(
    ("optimizers", "scheduler"),
    [(2, None), (1, RateScheduler(1, alternation=1)), (1, RateScheduler(1, delay_epochs=1))],
)
def test_optimizers_that_would_move_w_without_b_are_refused_for_kolen_pollack(optimizers, scheduler):
    model = network(from_config(RULE_CONFIGS["kolen_pollack"]))
    with pytest.raises(
        ValueError,
        match=r"'kolen_pollack' needs one optimizer .* Received .* Example",
    ):
        model.compile(MultiOptimizer([Momentum(0.1) for _ in range(optimizers)], scheduler), cross_entropy())


WRAPPED = {"alone": lambda inner: inner, "in a multi-optimizer": lambda inner: MultiOptimizer([inner])}
CALLED = [*itertools.product(("train_on_batch", "fit"), WRAPPED)]


@pytest.mark.parametrize(("call", "place"), exhaustive_unless(CALLED, CALLED[2:3]))
def test_accumulated_gradients_are_those_of_successive_steps(call, place):
    """An update is the mean of those of steps 0 and 1 from the same weights, each with the noise of its step."""
    x, y = data(4)

    def changes(step, calls, **options):
        model = network(from_config({"rule": "weight_mirror", "amp": 1.0, "decay": 1.0, "input": {"noise": "normal"}}))
        model.compile(WRAPPED[place](keras.optimizers.SGD(0.1, **options)), cross_entropy())
        model.optimizer.build(model.trainable_variables)
        call_count(model.optimizer).assign(step)
        before = model.get_weights()
        if call == "fit":
            model.fit(np.tile(x, (calls, 1)), np.tile(y, calls), len(x), shuffle=False, verbose=0)
        else:
            for _ in range(calls):
                model.train_on_batch(x, y)
        assert model.global_step == step + calls
        return [after - start for after, start in zip(model.get_weights(), before, strict=True)]

    first, second = changes(0, 1), changes(1, 1)
    assert sum(not np.allclose(*pair, rtol=1e-3) for pair in zip(first, second, strict=True)) == 2  # The two B.
    for found, *pair in zip(changes(0, 2, gradient_accumulation_steps=2), first, second, strict=True):
        np.testing.assert_allclose(found, np.mean(pair, axis=0), rtol=1e-4, atol=1e-6)
    assert not any(change.any() for change in changes(0, 1, gradient_accumulation_steps=2))


class SumOfGiven(keras.layers.Layer):
    """The sum of its inputs, of which the second may be None."""

    def call(self, first, second=None):
        return first if second is None else first + second

    def compute_output_shape(self, first_shape, second_shape=None):
        return first_shape


COMPILED = [
    ("feedback", {}),
    ("feedback", {"steps_per_execution": 2, "minibatches": 2}),
    ("feedback", {"run_eagerly": True}),
    ("dfa", {"jit_compile": True}),
]


@pytest.mark.parametrize(("rule", "options"), exhaustive_unless(COMPILED, COMPILED[1:2]))
def test_none_in_the_batches_of_a_generator_is_none(rule, options):
    """Keras passes None from a generator as an empty optional."""

    def results(second, *weights):
        keras.utils.set_random_seed(8)
        inputs = keras.Input((5,), name="second", optional=True), keras.Input((5,), name="first")
        x = SumOfGiven()(*inputs[::-1])
        for name, units in (("hidden", 4), ("output", 3)):
            x = layers.Dense(units, alignment=from_config({"rule": rule}), name=name)(x)
        model = AlignedModel(inputs, x)
        model.compile(MultiOptimizer([Momentum(0.1)]), cross_entropy(), **options)

        def generator():
            for seed in itertools.count():
                x, y = data(4, seed)
                yield (second(x), x), y, *weights

        history = model.fit(
            generator(), steps_per_epoch=3, validation_data=generator(), validation_steps=3, shuffle=False, verbose=0
        )
        x, y = data(4)
        tested = model.test_on_batch((second(x), x), y, *weights)
        predicted = model.predict(((inputs,) for inputs, *_ in generator()), steps=3, verbose=0)
        return [*model.get_weights(), history.history["loss"], history.history["val_loss"], tested, predicted]

    expected = results(np.zeros_like)
    for found in (results(lambda x: None, None), results(lambda x: None)):
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5)


def test_minibatches_of_a_model_with_two_outputs():
    rule = Symmetric(self_=0.1, decay=0.2)
    x, y = data(8)
    ends = []
    for minibatches in (1, 2):
        keras.utils.set_random_seed(3)
        inputs = keras.Input((5,))
        outputs = [layers.Dense(3, alignment=rule, name=name)(inputs) for name in ("left", "right")]
        model = AlignedModel(inputs, outputs)
        start = model.get_weights()
        model.compile(optimizer(), [cross_entropy(), cross_entropy()], minibatches=minibatches, run_eagerly=True)
        model.train_on_batch(x, [y, y])
        ends.append(model.get_weights())
    for whole, halves in zip(*ends, strict=True):
        assert_close(halves, whole, "float32")
    assert_differs(ends[0][0], start[0])


# Subclasses.


class Doubled(AlignedModel):
    """Has custom steps: J counts double in training, and evaluation reports a constant."""

    def train_step(self, data):
        x, y, *_ = data
        with tf.GradientTape() as tape:
            loss = 2.0 * self.compute_loss(x=x, y=y, y_pred=self(x, training=True))
        self.optimizer.apply(tape.gradient(loss, self.trainable_variables), self.trainable_variables)
        return {"loss": loss, "doubled": loss}

    def test_step(self, data):
        return {"constant": tf.constant(3.0)}


class Extended(AlignedModel):
    """Adds to the step of an aligned model."""

    def train_step(self, data):
        return {**super().train_step(data), "added": tf.constant(1.0)}


class OwnLoss(AlignedModel):
    """Has a custom loss."""

    def compute_loss(self, *args, **kwargs):
        return 2.0 * super().compute_loss(*args, **kwargs)


def subclassed(kind, rule=None, **options):
    made = network(rule or Symmetric(self_=0.3, decay=0.3))
    model = kind(made.input, made.output)
    rates = {AlignedModel: 0.2}.get(kind, 0.1)
    model.compile(
        MultiOptimizer([keras.optimizers.SGD(rates), keras.optimizers.SGD(0.05)]),
        cross_entropy(),
        jit_compile=False,
        **options,
    )
    return model


@pytest.mark.parametrize(("run_eagerly", "together"), [(False, 3), (True, 1)])
def test_the_steps_of_a_subclass_are_called(run_eagerly, together):
    x, y = data()
    options = {"run_eagerly": run_eagerly, "steps_per_execution": together}
    doubled, plain = (subclassed(kind, Feedback(), **options) for kind in (Doubled, AlignedModel))
    history = doubled.fit(x, y, batch_size=8, shuffle=False, verbose=0).history
    plain.fit(x, y, batch_size=8, shuffle=False, verbose=0)
    assert "doubled" in history
    for a, b in zip(doubled.trainable_variables, plain.trainable_variables, strict=True):
        assert_close(a, b)
    assert doubled.evaluate(x, y, verbose=0, return_dict=True) == {"constant": 3.0}
    assert "doubled" in doubled.train_on_batch(x, y, return_dict=True)


@pytest.mark.parametrize(
    ("scheduler", "run_eagerly"), [(None, True), (RateScheduler(1, alternation=1), False)], ids=["eager", "graph"]
)
def test_a_subclass_may_add_to_the_step(scheduler, run_eagerly):
    x, y = data()
    ends = []
    for kind in (Extended, AlignedModel):
        made = network(Symmetric(self_=0.3, decay=0.3))
        model = kind(made.input, made.output)
        model.compile(optimizer(scheduler), cross_entropy(), jit_compile=False, run_eagerly=run_eagerly)
        history = model.fit(x, y, batch_size=8, shuffle=False, verbose=0).history
        assert ("added" in history) == (kind is Extended)
        assert history["regulariser"]
        ends.append(model.get_weights())
    for a, b in zip(*ends, strict=True):
        assert_close(a, b)


class FromTheGuide(AlignedModel):
    """Has the training step of Keras' guide "Customizing what happens in fit() with TensorFlow"."""

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            y_pred = self(x, training=True)
            loss = self.compute_loss(y=y, y_pred=y_pred)
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply(gradients, self.trainable_variables)
        for metric in self.metrics:
            if metric.name == "loss":
                metric.update_state(loss)
            else:
                metric.update_state(y, y_pred)
        return {m.name: m.result() for m in self.metrics}


def test_the_step_of_the_guide_of_keras_works():
    x, y = data()
    model = subclassed(FromTheGuide, Feedback(), metrics=["accuracy"])
    logs = model.fit(x, y, batch_size=len(x), verbose=0).history
    assert logs["loss"][0] > 0
    assert 0 <= logs["accuracy"][0] <= 1
    assert set(model.evaluate(x, y, verbose=0, return_dict=True)) == {"loss", "accuracy"}


class Compact(AlignedModel):
    """Has a step that calls no other one and returns all metrics."""

    def train_step(self, data):
        x, y, *_ = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(x=x, y=y, y_pred=self(x, training=True))
        self.optimizer.apply(tape.gradient(loss, self.trainable_variables), self.trainable_variables)
        self.metrics[0].update_state(loss)
        return self.get_metrics_result()


def test_a_step_that_does_not_call_ours_trains_and_reports_the_sum_of_j_and_r():
    x, y = data()
    model = subclassed(Compact)
    outputs = model(x, training=True)
    regulariser = float(sum(model.losses))
    assert regulariser > 0.1
    logs = model.train_on_batch(x, y, return_dict=True)
    assert list(logs) == ["loss"]
    assert_close(logs["loss"], float(tf.reduce_mean(model.loss(y, outputs))) + regulariser, "float32")


@pytest.mark.parametrize(
    "rule", [DirectFeedback(), Symmetric(self_=0.3, decay=0.3, every=2)], ids=lambda rule: rule.rule
)
def test_the_message_to_a_step_that_does_not_call_ours_advises_the_call(rule):
    """The model is an `AlignedModel` already."""
    model = subclassed(Compact, rule)
    with pytest.raises(ValueError, match=r"Example: super\(\)\.train_step\(data\) in the custom `train_step`"):
        model.train_on_batch(*data())
    plain = keras.Model(model.inputs, model.outputs)
    plain.compile("sgd", cross_entropy())
    with pytest.raises(ValueError, match=r"Example: AlignedModel\(model.inputs, model.outputs\)"):
        plain.train_on_batch(*data())


def test_both_metrics_are_reset_and_reported_in_each_epoch():
    x, y = data()
    model = network(Symmetric(self_=0.3, decay=0.3))
    model.compile(optimizer(), cross_entropy(), metrics=["accuracy"], run_eagerly=True)
    first = model.train_on_batch(x, y, return_dict=True)
    assert set(first) == {"loss", "accuracy", "regulariser"}
    model.reset_metrics()
    assert set(map(float, model.get_metrics_result().values())) == {0.0}
    assert not model.regulariser_is_defined


def test_a_model_without_a_graph_is_refused():
    class Own(AlignedModel):
        def __init__(self, **options):
            super().__init__(**options)
            self.dense = keras.layers.Dense(2)

        def call(self, inputs):
            return self.dense(inputs)

    message = r"^`AlignedModel` must be functional.* Received Own without {}\. Example: AlignedModel\(inputs, outputs\)"
    inputs = keras.Input((3,))
    for options, missing in (({}, "inputs and outputs"), ({"name": "own", "inputs": inputs}, "outputs")):
        with pytest.raises(ValueError, match=message.format(missing)):
            Own(**options)
    with pytest.raises(ValueError, match="Received AlignedModel without outputs"):
        AlignedModel(inputs)
    assert Own(inputs=inputs, outputs=keras.layers.Dense(2)(inputs)).output_shape == (None, 2)


def wrapped(wrapper, rule, around=lambda layer: layer):
    """Returns the layers of a network with a wrapper of Keras around an aligned layer."""
    inputs = keras.Input((6, 2, 4))
    return inputs, wrapper(around(layers.Dense(4, alignment=rule, name="inner")), name="wrapper")(inputs)


def in_a_model(layer):
    return keras.Sequential([keras.Input((2, 4)), layer])


SIGNALS, TIED = from_config(RULE_CONFIGS["activation"]), from_config(RULE_CONFIGS["kolen_pollack"])
REFUSED_WRAPPERS = {
    "steps": (keras.layers.TimeDistributed, SIGNALS, in_a_model),
    "steps within steps": (lambda each, name: layers.TimeDistributed(keras.layers.TimeDistributed(each, name=name)),
                           SIGNALS, lambda layer: layer),
    "norm": (keras.layers.SpectralNormalization, TIED, lambda layer: layer),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED_WRAPPERS)
def test_wrappers_of_keras_in_which_a_rule_is_not_defined_are_refused(name):
    wrapper, rule, around = REFUSED_WRAPPERS[name]
    found = f"`keras.layers.* must not contain a layer with the rule '{rule.rule}': .* Received 'inner' in 'wrapper'"
    with pytest.raises(ValueError, match=found) as raised:
        AlignedModel(*wrapped(wrapper, rule, around))
    assert "\n" not in str(raised.value)


def test_wrappers_of_keras_are_allowed_with_other_rules():
    for wrapper, rule in (
        (layers.TimeDistributed, SIGNALS),
        (keras.layers.TimeDistributed, Feedback()),
        (keras.layers.TimeDistributed, TIED),
        (keras.layers.SpectralNormalization, SIGNALS),
        (keras.layers.TimeDistributed, None),
    ):
        AlignedModel(*wrapped(wrapper, rule))


def test_the_inputs_and_outputs_of_every_kind_of_model_make_an_aligned_one(rng):
    """As messages advise. Warnings of Keras are errors here."""
    sequential = convert(keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]), AlignZero()).model
    left, right = keras.Input((3,), name="left"), keras.Input((3,), name="right")
    outputs = keras.layers.Add()([left, right])
    x, y = rng.normal(size=(4, 3)).astype(np.float32), np.zeros(4)
    for model, arrays in (
        (sequential, x),
        (keras.Model(left, layers.Dense(2, alignment=AlignZero())(left)), x),
        (keras.Model([left, right], layers.Dense(2, alignment=AlignZero())(outputs)), [x, x]),
    ):
        aligned = AlignedModel(model.inputs, model.outputs)
        aligned.compile(keras.optimizers.SGD(0.1), cross_entropy())
        aligned.fit(arrays, y, verbose=0)
        assert_close(aligned.predict(arrays, verbose=0), model.predict(arrays, verbose=0), "float32")


def test_a_step_that_is_set_on_the_model_is_called():
    model = subclassed(AlignedModel)
    model.train_step = lambda data: {"own": tf.constant(2.0)}
    assert model.fit(*data(), verbose=0).history == {"own": [2.0]}


def test_a_sparse_batch_is_cut_into_minibatches():
    x, y = data(8)
    x[np.abs(x) < 0.7] = 0.0
    ends = []
    for inputs in (x, tf.sparse.from_dense(x)):
        model = network(Symmetric(self_=0.3, decay=0.3))
        model.compile(optimizer(), cross_entropy(), minibatches=2, run_eagerly=True)
        model.train_on_batch(inputs, y)
        ends.append(model.get_weights())
    for a, b in zip(*ends, strict=True):
        assert_close(a, b)


def test_a_loss_of_a_subclass_is_used():
    x, y = data()
    own, plain = (subclassed(kind, Feedback(), run_eagerly=True) for kind in (OwnLoss, AlignedModel))
    for model in (own, plain):
        model.fit(x, y, batch_size=8, shuffle=False, verbose=0)
    for a, b in zip(own.trainable_variables, plain.trainable_variables, strict=True):
        assert_close(a, b)


class WithoutTraining(AlignedModel):
    """Has a custom loss with the arguments that Keras had before `training`."""

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None):
        return 2.0 * super().compute_loss(x, y, y_pred, sample_weight)


def test_a_loss_of_a_subclass_need_not_have_the_argument_training():
    x, y = data()
    own, plain = (subclassed(kind, Feedback(), run_eagerly=True) for kind in (WithoutTraining, AlignedModel))
    losses = [model.train_on_batch(x, y, return_dict=True)["loss"] for model in (own, plain)]
    assert_close(losses[0], 2.0 * losses[1], "float32")
    for a, b in zip(own.trainable_variables, plain.trainable_variables, strict=True):
        assert_close(a, b)
    losses = [model.evaluate(x, y, verbose=0, return_dict=True)["loss"] for model in (own, plain)]
    assert_close(losses[0], 2.0 * losses[1], "float32")


class OwnMetrics(AlignedModel):
    """Returns one more value with the metrics: the mean of the outputs."""

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        return {**super().compute_metrics(x, y, y_pred, sample_weight), "mine": tf.reduce_mean(y_pred)}


@pytest.mark.parametrize(
    ("scheduler", "run_eagerly"), [(None, True), (RateScheduler(1, alternation=1), False)], ids=["eager", "graph"]
)
def test_metrics_of_a_subclass_are_reported(scheduler, run_eagerly):
    x, y = data()
    ends = []
    for kind in (OwnMetrics, AlignedModel):
        made = network(Symmetric(self_=0.3, decay=0.3))
        model = kind(made.input, made.output)
        model.compile(
            optimizer(scheduler), cross_entropy(), metrics=["accuracy"], jit_compile=False, run_eagerly=run_eagerly
        )
        means = [model.predict(x, verbose=0).mean()]
        logs = model.fit(x, y, batch_size=len(x), epochs=2, validation_data=(x, y), verbose=0).history
        means.append(model.predict(x, verbose=0).mean())
        names = {"loss", "accuracy", "regulariser", "val_loss", "val_accuracy"}
        if kind is OwnMetrics:
            assert_close(logs["mine"][0], means[0], "float32")
            assert_close(logs["val_mine"][-1], means[1], "float32")
            names |= {"mine", "val_mine"}
        assert set(logs) == names
        ends.append([*model.get_weights(), *logs["accuracy"], *logs["regulariser"]])
    for a, b in zip(*ends, strict=True):
        assert_close(a, b, "float32")


@pytest.mark.parametrize(
    ("kind", "call", "method"),
    [
        (Extended, "fit", "train_step"),
        (Doubled, "evaluate", "test_step"),
        (OwnMetrics, "fit", "compute_metrics"),
        (OwnMetrics, "evaluate", "compute_metrics"),
    ],
)
def test_the_steps_of_a_subclass_are_refused_under_a_strategy(kind, call, method):
    with two_replicas().scope():
        model = subclassed(kind)
    with pytest.raises(ValueError, match=f"`{method}` of an AlignedModel must not be overridden.*{kind.__name__}"):
        getattr(model, call)(*data(), verbose=0)


# Losses, sample weights and optimizers of `compile`.


@pytest.mark.parametrize("shape", ["array", "dictionary"])
def test_the_loss_of_an_evaluation_uses_the_sample_weights_of_its_one_output(shape):
    """Batches of 2 of 6 examples: a mean over batches that ignores their weights would be another one."""
    x, y = data(6)
    weights = np.array([1, 0, 2, 3, 0.5, 4], "float32")
    model = network(None)
    model = AlignedModel(model.input, {"o": model.output}) if shape == "dictionary" else model
    named = (lambda value: {"o": value}) if shape == "dictionary" else (lambda value: value)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="mean_with_sample_weight")
    model.compile(MultiOptimizer([Momentum(0.1)]), named(loss))
    logits = model(x)["o"] if shape == "dictionary" else model(x)
    each = keras.losses.sparse_categorical_crossentropy(y, logits, from_logits=True)
    found = model.evaluate(x, named(y), sample_weight=named(weights), batch_size=2, verbose=0)
    np.testing.assert_allclose(found, np.sum(weights * each) / np.sum(weights), rtol=1e-5)


def test_an_evaluation_of_two_outputs_may_have_weights_for_one():
    x, y = data(6)
    model = two_outputs(None)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="mean_with_sample_weight")
    model.compile(MultiOptimizer([Momentum(0.1)]), {"a": loss, "b": loss})
    targets, weights = {"a": y, "b": y}, {"a": np.arange(6.0), "b": None}
    found = model.test_step((tf.constant(x), targets, weights))
    native = keras.Model(model.input, model.output)
    native.compile("sgd", {"a": loss, "b": loss})
    np.testing.assert_allclose(found["loss"], native.test_step((tf.constant(x), targets, weights))["loss"], rtol=1e-6)


def test_a_model_without_a_loss_aligns_its_backward_kernels():
    """A regulariser alone also aligns B to a W that was trained elsewhere."""
    model = network(Symmetric(self_=1.0, decay=1.0))
    model.compile(MultiOptimizer([Momentum(0.1), Momentum(0.1)]))
    w, b = forward_and_backward(model)
    model.fit(data()[0], epochs=20, verbose=0)
    after = forward_and_backward(model)
    assert all(same(w, after[0]))
    assert not any(same(b, after[1]))
    for layer in aligned_layers(model):
        forward, backward = layer.kernel.numpy().ravel(), layer.backward_kernel.numpy().T.ravel()
        assert forward @ backward > 0.9 * np.linalg.norm(forward) * np.linalg.norm(backward)


def test_a_model_without_a_loss_and_without_a_regulariser_is_refused_as_in_keras():
    model = network(Feedback())
    model.compile(MultiOptimizer([Momentum(0.1)]))
    with pytest.raises(ValueError, match="No loss to compute"):
        model.fit(data()[0], verbose=0)


NEEDS_OPTIMIZER = {
    "train_step": lambda model: model.train_step(data()),
    "step_modes": lambda model: model.step_modes,
    "watched": lambda model: model.watched,
    "first_non_finite": lambda model: model.first_non_finite(),
    "global_step": lambda model: model.global_step,
    "regulariser_is_defined": lambda model: model.regulariser_is_defined,
}


@pytest.mark.parametrize("name", NEEDS_OPTIMIZER)
def test_what_needs_an_optimizer_says_so(name):
    model = network(Symmetric(self_=0.1, decay=0.1))
    with pytest.raises(ValueError, match=f"{name}` needs a model that is compiled .* Received a model that is not"):
        NEEDS_OPTIMIZER[name](model)
    model.compile(optimizer(), cross_entropy())
    model.compile(optimizer=None, loss=cross_entropy())
    with pytest.raises(ValueError, match=f"{name}` needs a model that is compiled .* Received optimizer=None"):
        NEEDS_OPTIMIZER[name](model)


def test_fit_without_an_optimizer_says_so():
    model = network(Symmetric(self_=0.1, decay=0.1))
    model.compile(optimizer=None, loss=cross_entropy())
    with pytest.raises(ValueError, match="fit` needs a model that is compiled with an optimizer"):
        model.fit(*data(), verbose=0)
    assert model.evaluate(*data(), verbose=0) > 0


def test_a_step_on_each_replica_is_refused():
    strategy = two_replicas()
    with strategy.scope():
        model = network(Symmetric(self_=0.1, decay=0.1))
        model.compile(optimizer(), cross_entropy())
    x, y = data(2)
    with pytest.raises(ValueError, match=r"train_step` must be called with the batch of all replicas.*`strategy\.run`"):
        strategy.run(model.train_step, args=((tf.constant(x), tf.constant(y)),))
