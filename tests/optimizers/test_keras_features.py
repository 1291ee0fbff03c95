"""Each argument and method of Keras optimizers, and each Keras callback that uses one, works or is rejected."""

import functools
import inspect
import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import exhaustive_unless, two_replicas

from neural_alignment import layers
from neural_alignment.alignments import KolenPollack, Symmetric
from neural_alignment.training import AlignedModel
from optimizers import SWATS, Adam, Momentum, MultiOptimizer, Noisy, RAdam, RateScheduler

SGD, STEPS = keras.optimizers.SGD, 5

WORKS = {
    "learning_rate": 0.2,
    "weight_decay": 0.1,
    "clipnorm": 0.3,
    "clipvalue": 0.2,
    "global_clipnorm": 0.5,
    "use_ema": True,
    "ema_momentum": 0.7,
    "ema_overwrite_frequency": 3,
    "gradient_accumulation_steps": 2,
    "name": "other",
}
REFUSED = {"loss_scale_factor": 8.0}
NEEDS = {"ema_momentum": {"use_ema": True}, "ema_overwrite_frequency": {"use_ema": True}}


def options(argument):
    return {"learning_rate": 0.1, **NEEDS.get(argument, {}), argument: WORKS[argument]}


def variables():
    """Returns a kernel, a bias and a backward kernel."""
    rng = np.random.default_rng(0)
    shapes = {"kernel": (3, 2), "bias": (2,), "backward_kernel": (2, 3)}
    return [keras.Variable(rng.normal(size=shape), dtype="float32", name=name) for name, shape in shapes.items()]


def trained(optimizer, own, only=None):
    """Applies some steps to some of the variables, ends as `fit` does, and returns all of them."""
    chosen = [v for v in own if only is None or v.name in only]
    optimizer.build(chosen)
    for step in range(STEPS):
        gradients = [np.random.default_rng([step, len(v.name)]).normal(size=v.shape) for v in chosen]
        optimizer.apply([tf.constant(gradient, tf.float32) for gradient in gradients], chosen)
    optimizer.finalize_variable_values(chosen)
    return {v.name: v.numpy() for v in own}


@functools.cache
def unwrapped(kind, argument=None, only=None):
    """Returns the variables after steps of one optimizer, with this argument or with a learning rate of 0.1."""
    return trained(kind(**options(argument)) if argument else kind(0.1), variables(), only)


@functools.cache
def other():
    """Returns the backward kernel after steps of SGD at a rate of 0.05."""
    return trained(SGD(0.05), variables(), only=("backward_kernel",))["backward_kernel"]


def test_the_tables_know_every_argument():
    of_sgd = set(inspect.signature(SGD.__init__).parameters)
    assert {*WORKS, *REFUSED} == of_sgd - {"self", "momentum", "nesterov", "kwargs"}


@pytest.mark.parametrize(
    ("kind", "argument"),
    exhaustive_unless(
        itertools.product([SGD, Momentum, Adam, RAdam, SWATS], WORKS),
        lambda each: each[0] is Momentum or each[1] in ("clipnorm", "weight_decay"),
    ),
    ids=lambda value: getattr(value, "__name__", value),
)
def test_an_argument_does_to_one_loss_what_it_does_to_a_model(kind, argument):
    """An inner optimizer updates its variables as it would without the wrapper and does not affect the other loss."""
    both = trained(MultiOptimizer([kind(**options(argument)), SGD(0.05)]), variables())
    apart = {**unwrapped(kind, argument, only=("kernel", "bias")), "backward_kernel": other()}
    for name, value in both.items():
        np.testing.assert_allclose(value, apart[name], rtol=1e-6, err_msg=name)
    assert argument == "name" or np.abs(both["kernel"] - unwrapped(kind)["kernel"]).max() > 1e-3


@pytest.mark.parametrize("argument", WORKS)
def test_noise_of_variance_zero_changes_no_argument(argument):
    noisy, plain = (
        trained(make(SGD(**options(argument))), variables()) for make in (lambda o: Noisy(o, 0.0), lambda o: o)
    )
    for name, value in noisy.items():
        np.testing.assert_array_equal(value, plain[name])


@pytest.mark.parametrize("argument", REFUSED)
@pytest.mark.parametrize("wrap", [lambda o: Noisy(o, 0.1), lambda o: MultiOptimizer([o, SGD(0.1)]),
                                  lambda o: MultiOptimizer([SGD(0.1), Noisy(o, 0.1)])])  # fmt: skip
def test_arguments_that_concern_the_whole_loss_are_rejected(wrap, argument):
    with pytest.raises(
        ValueError, match=rf"`{argument}` must be None inside (Noisy|MultiOptimizer).*8\.0 of SGD.*Exam"
    ):
        wrap(SGD(0.1, **{argument: REFUSED[argument]}))


def keras_multi():
    return keras.optimizers.MultiOptimizer(keras.optimizers.OptimizerMap(SGD(0.1), {}))


DO_NOT_FIT = {
    "loss scale": lambda: keras.optimizers.LossScaleOptimizer(SGD(0.1)),
    "Keras' list": keras_multi,
    "list": lambda: MultiOptimizer([SGD(0.1)]),
}
WRAPPERS = {"noisy": lambda inner: Noisy(inner, 0.1), "list": lambda inner: MultiOptimizer([inner, SGD(0.1)])}


@pytest.mark.parametrize("inner", DO_NOT_FIT.values(), ids=DO_NOT_FIT)
@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_optimizers_that_do_not_fit_inside_are_refused(wrap, inner):
    if inner is keras_multi and not hasattr(keras.optimizers, "MultiOptimizer"):
        pytest.skip(f"Keras {keras.__version__} has no MultiOptimizer")
    with pytest.raises(ValueError, match=r"Received \w+ inside (Noisy|MultiOptimizer).*Example"):
        wrap(inner())


@pytest.mark.parametrize("argument", ["clipnorm", "use_ema", "weight_decay", "loss_scale_factor", "learning_rate"])
def test_arguments_of_a_keras_optimizer_are_not_taken_by_the_wrapper(argument):
    with pytest.raises(TypeError, match=argument):
        MultiOptimizer([SGD(0.1)], **{argument: 0.1})


# Methods.


def test_apply_gradients_is_apply():
    first, second = variables(), variables()
    gradients = [tf.ones(v.shape) for v in first]
    MultiOptimizer([SGD(0.1), SGD(0.2)]).apply(gradients, first)
    MultiOptimizer([SGD(0.1), SGD(0.2)]).apply_gradients(zip(gradients, second, strict=True))
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)


def test_gradients_without_variables_are_in_the_order_of_build():
    own = variables()
    before = [v.numpy() for v in own]
    optimizer = MultiOptimizer([SGD(1.0), SGD(1.0)])
    optimizer.build([own[2], own[0], own[1]])
    optimizer.apply([2 * tf.ones((2, 3)), tf.ones((3, 2)), 3 * tf.ones(2)])
    for variable, start, step in zip(own, before, (1, 3, 2), strict=True):
        np.testing.assert_allclose(variable, start - step, rtol=1e-6)


def test_exclusions_from_weight_decay_reach_both_optimizers():
    optimizer = MultiOptimizer([SGD(0.1, weight_decay=0.5), SGD(0.1, weight_decay=0.5)])
    optimizer.exclude_from_weight_decay(var_names=["bias", "backward"])
    apart = [trained(SGD(0.1, weight_decay=decay), variables()) for decay in (0.5, None)]
    found = trained(optimizer, variables())
    for name, value in found.items():
        np.testing.assert_allclose(value, apart[name != "kernel"][name], rtol=1e-6)


@pytest.mark.parametrize(
    "make", [lambda: MultiOptimizer([Momentum(0.1), Adam(0.1)]), lambda: Noisy(Momentum(0.1), 0.1)]
)
def test_set_weights_sets_all_variables_or_refuses(make):
    first, second = make(), make()
    trained(first, variables())
    with pytest.raises(ValueError, match="must have the shapes of the variables of a built optimizer"):
        second.set_weights([v.numpy() for v in first.variables])
    second.build(variables())
    second.set_weights([v.numpy() for v in first.variables])
    assert len(first.variables) > 4
    for a, b in zip(first.variables, second.variables, strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(ValueError, match="must have the shapes"):
        second.set_weights([v.numpy() for v in first.variables][:-1])


def test_stateless_updates_are_refused_by_keras():
    optimizer, own = MultiOptimizer([Momentum(0.1)]), variables()
    optimizer.build(own)
    with pytest.raises(ValueError, match="stateless_apply is not supported"):
        optimizer.stateless_apply(optimizer.variables, own, own)


# With noise.


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "graph"])
def test_no_noise_falls_on_a_step_without_an_update(compiled):
    own = [keras.Variable(np.zeros((50, 40)), dtype="float32", name="kernel")]
    optimizer = Noisy(SGD(0.1, gradient_accumulation_steps=3), variance=4.0)
    optimizer.build(own)
    step = (lambda: optimizer.apply([tf.zeros((50, 40))], own)) if not compiled else tf.function(
        lambda: optimizer.apply([tf.zeros((50, 40))], own)
    )  # fmt: skip
    states = [own[0].numpy()]
    for _ in range(6):
        step()
        states.append(own[0].numpy())
    moves = np.diff(states, axis=0)
    assert [bool(move.any()) for move in moves] == [False, False, True, False, False, True]
    for move in moves[[2, 5]]:
        assert move.std() == pytest.approx(0.1 * 2.0, rel=0.05)


def test_moving_averages_and_constraints_see_the_noise():
    own = [keras.Variable(np.ones(5), dtype="float32", name="kernel")]
    own[0].constraint = keras.constraints.NonNeg()
    optimizer = Noisy(SGD(1.0, use_ema=True, ema_momentum=0.5), variance=9.0)
    optimizer.build(own)
    average = None
    for _ in range(6):
        optimizer.apply([tf.zeros(5)], own)
        seen = optimizer.optimizer._model_variables_moving_average[0].numpy()
        assert (own[0].numpy() >= 0).all()
        assert average is None or np.abs(seen - average).max() > 0.1
        average = seen
    optimizer.finalize_variable_values(own)
    np.testing.assert_array_equal(own[0], average)


def test_noise_belongs_to_the_wrapper():
    """An inner optimizer that is used directly makes updates without noise, also after the wrapper is deleted."""
    inner = SGD(1.0)
    Noisy(inner, 100.0)
    kept, own = Noisy(inner, 1.0), [keras.Variable(np.zeros((60, 50)), dtype="float32", name="kernel")]
    kept.apply([tf.zeros((60, 50))], own)
    assert own[0].numpy().std() == pytest.approx(1.0, rel=0.05)
    before = own[0].numpy()
    inner.apply([tf.zeros((60, 50))], own)
    np.testing.assert_array_equal(own[0], before)


def test_noise_inside_noise_and_one_optimizer_for_both_losses_are_refused():
    with pytest.raises(ValueError, match="must not be a Noisy"):
        Noisy(Noisy(SGD(0.1), 1.0), 1.0)
    inner = SGD(0.1)
    with pytest.raises(ValueError, match="one or two different Keras optimizers"):
        MultiOptimizer([Noisy(inner, 1.0), inner])


def test_an_optimizer_inside_is_serialised_with_its_own_schedule():
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 2, 0.5)
    inner = Noisy(SGD(schedule), 0.1)
    optimizer = MultiOptimizer([inner, SGD(0.1)], RateScheduler(3, alternation=1))
    trained(optimizer, variables())
    again = keras.optimizers.deserialize(keras.optimizers.serialize(inner))
    assert float(again.learning_rate) == pytest.approx(0.1)
    assert type(again.optimizer._learning_rate) is type(schedule)
    copied = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    trained(copied, variables())
    assert float(copied.learning_rate) == pytest.approx(float(optimizer.learning_rate))


# Callbacks, in a model.


def model(optimizer, kind=AlignedModel, policy="float32", rule=None):
    """Returns a compiled model of two layers."""
    keras.utils.set_random_seed(3)
    inputs = keras.Input((4,))
    rule = rule or Symmetric(self_=0.3, decay=0.3)
    x = layers.Dense(5, activation="relu", alignment=rule, name="first", dtype=policy)(inputs)
    built = kind(inputs, layers.Dense(2, alignment=rule, name="second", dtype=policy)(x))
    built.dtype_policy = keras.dtype_policies.get(policy)
    built.compile(optimizer, loss="mse", jit_compile=False)
    return built


def data(examples=12):
    rng = np.random.default_rng(0)
    return rng.normal(size=(examples, 4)).astype("float32"), rng.normal(size=(examples, 2)).astype("float32")


def fit(built, epochs=3, **options):
    return built.fit(*data(), batch_size=4, epochs=epochs, shuffle=False, verbose=0, **options)


PLATEAU = {"monitor": "constant", "factor": 0.5, "patience": 1, "min_delta": 0.0, "mode": "min"}


class Constant(keras.callbacks.Callback):
    """Reports a value that never improves."""

    def on_epoch_end(self, epoch, logs=None):
        logs["constant"] = 1.0


@pytest.mark.parametrize(
    ("callback", "kind", "policy"),
    [
        ("scheduler", AlignedModel, "mixed_float16"),
        ("scheduler", keras.Model, "float32"),
        pytest.param("plateau", AlignedModel, "float32", marks=pytest.mark.exhaustive),
        pytest.param("plateau", keras.Model, "mixed_float16", marks=pytest.mark.exhaustive),
    ],
)
def test_learning_rate_callbacks_set_j_s_rate_only(callback, kind, policy):
    built = model(MultiOptimizer([SGD(0.1), SGD(0.01)]), kind, policy)
    assert hasattr(built.optimizer, "inner_optimizer") == (policy == "mixed_float16")
    callbacks = {
        "scheduler": [keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate * 0.5)],
        "plateau": [Constant(), keras.callbacks.ReduceLROnPlateau(**PLATEAU)],
    }[callback]
    history = fit(built, callbacks=callbacks).history
    multi = getattr(built.optimizer, "inner_optimizer", built.optimizer)
    j_rate = {"scheduler": 0.1 * 0.5**3, "plateau": 0.1 * 0.5**2}[callback]
    assert [float(rate) for rate in multi.learning_rates] == pytest.approx([j_rate, 0.01])
    reported = {"scheduler": [0.05, 0.025, 0.0125], "plateau": [0.1, 0.1, 0.05]}[callback]
    assert history["learning_rate"] == pytest.approx(reported)


@pytest.mark.parametrize(
    ("kind", "averaging"),
    [
        pytest.param(AlignedModel, (True, True), marks=pytest.mark.exhaustive),
        (AlignedModel, (True, False)),
        pytest.param(keras.Model, (False, True), marks=pytest.mark.exhaustive),
    ],
)
def test_fit_ends_at_the_moving_averages(kind, averaging):
    def make():
        rates = zip((0.1, 0.05), averaging, strict=True)
        return MultiOptimizer([SGD(rate, use_ema=use, ema_momentum=0.6) for rate, use in rates])

    stepwise, fitted = model(make(), kind), model(make(), kind)
    averages = {v.path: None for v in stepwise.trainable_variables}
    x, y = data()
    for step in range(9):
        batch = slice(4 * (step % 3), 4 * (step % 3) + 4)
        stepwise.train_on_batch(x[batch], y[batch])
        for v in stepwise.trainable_variables:
            old = averages[v.path]
            averages[v.path] = v.numpy() if old is None else 0.6 * old + 0.4 * v.numpy()
    fit(fitted)
    for v, last in zip(fitted.trainable_variables, stepwise.trainable_variables, strict=True):
        averaged = averaging["backward_kernel" in v.path]
        np.testing.assert_allclose(v, averages[last.path] if averaged else last, rtol=1e-4, atol=1e-6)
        assert not averaged or np.abs(v.numpy() - last.numpy()).max() > 1e-4


@pytest.mark.parametrize(
    ("wrap", "policy"),
    [(lambda o: o, "mixed_float16"), (lambda o: Noisy(o, 0.0), "float32")],
    ids=["plain, scaled loss", "noisy"],
)
def test_swapped_weights_are_the_averages_and_come_back(wrap, policy):
    inner = [wrap(SGD(rate, use_ema=True, ema_momentum=0.6)) for rate in (0.1, 0.05)]
    built = model(MultiOptimizer(inner), policy=policy)
    for _ in range(3):
        built.train_on_batch(*data())
    averages = {}
    for optimizer in inner:
        optimizer = getattr(optimizer, "optimizer", optimizer)
        pairs = zip(optimizer._trainable_variables, optimizer._model_variables_moving_average, strict=True)
        averages |= {v.path: average.numpy() for v, average in pairs}
    swap = keras.callbacks.SwapEMAWeights()
    swap.set_model(built)
    before = [v.numpy() for v in built.trainable_variables]
    swap.on_test_begin()
    for v in built.trainable_variables:
        np.testing.assert_allclose(v, averages[v.path], rtol=1e-4, atol=1e-6)
    swap.on_test_end()
    for v, start in zip(built.trainable_variables, before, strict=True):
        np.testing.assert_allclose(v, start, rtol=1e-5, atol=1e-6)
        assert np.abs(start - averages[v.path]).max() > 1e-4


@pytest.mark.parametrize(
    ("averaging", "message"),
    [((False, False), "SwapEMAWeights must be used when"), ((True, False), "needs `use_ema=True` in every.* 1 of 2")],
)
def test_swapping_without_averages_is_refused(averaging, message):
    built = model(MultiOptimizer([SGD(0.1, use_ema=averaging[0]), SGD(0.05, use_ema=averaging[1])]))
    with pytest.raises(ValueError, match=message):
        fit(built, validation_data=data(), callbacks=[keras.callbacks.SwapEMAWeights()])


class Stops(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 2:
            raise KeyboardInterrupt


def pair():
    return MultiOptimizer([Momentum(0.1), Adam(0.02)], RateScheduler(3, alternation=1))


def test_training_continues_from_a_backup(tmp_path):
    whole = model(pair())
    fit(whole, 4)
    stopped = model(pair())
    with pytest.raises(KeyboardInterrupt):
        fit(stopped, 4, callbacks=[keras.callbacks.BackupAndRestore(str(tmp_path / "backup")), Stops()])
    resumed = model(pair())
    fit(resumed, 4, callbacks=[keras.callbacks.BackupAndRestore(str(tmp_path / "backup"))])
    for a, b in zip(resumed.optimizer.variables, whole.optimizer.variables, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
    for a, b in zip(resumed.weights, whole.weights, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("weights_only", exhaustive_unless([False, True], (True,)))
def test_checkpoints_of_keras_hold_both_optimizers(weights_only, tmp_path):
    path = tmp_path / ("last.weights.h5" if weights_only else "last.keras")
    first = model(pair())
    fit(first, callbacks=[keras.callbacks.ModelCheckpoint(str(path), save_weights_only=weights_only)])
    if weights_only:
        second = model(pair())
        second.load_weights(path)
    else:
        second = keras.models.load_model(path)
    for a, b in zip(first.optimizer.variables, second.optimizer.variables, strict=True):
        np.testing.assert_array_equal(a, b)


def test_callbacks_that_only_observe(tmp_path):
    built = model(pair())
    watching = [
        keras.callbacks.TensorBoard(str(tmp_path / "tensorboard")),
        keras.callbacks.CSVLogger(str(tmp_path / "log.csv")),
        keras.callbacks.EarlyStopping(monitor="loss", restore_best_weights=True),
        keras.callbacks.TerminateOnNaN(),
    ]
    history = fit(built, callbacks=watching).history
    assert {"loss", "regulariser"} <= set(history)
    assert list((tmp_path / "tensorboard").rglob("events*"))


# Kolen-Pollack: plain models refuse the same optimizers as an AlignedModel.

APART = {
    "two optimizers": lambda: MultiOptimizer([SGD(0.1), SGD(0.1)]),
    "in turn": lambda: MultiOptimizer([SGD(0.1)], RateScheduler(3, alternation=1)),
    "delayed": lambda: MultiOptimizer([SGD(0.1)], RateScheduler(3, delay_epochs=1)),
    "by unequal loss rates": lambda: MultiOptimizer([SGD(0.1)], RateScheduler(3, loss_rates=(1.0, 0.5))),
    "under loss scaling": lambda: keras.optimizers.LossScaleOptimizer(MultiOptimizer([SGD(0.1), SGD(0.1)])),
}
TOGETHER = {
    "one in a list": lambda: MultiOptimizer([SGD(0.1)]),
    "one": lambda: SGD(0.1),
    "by equal loss rates": lambda: MultiOptimizer([SGD(0.1)], RateScheduler(3, loss_rates=(0.5, 0.5))),
    "noisy": lambda: MultiOptimizer([Noisy(SGD(0.1), 1e-4, only="backward_kernel")]),
}


def on_both_models(optimizers, often):
    """Returns models and optimizers: `make test` has all optimizers in an AlignedModel, and one in a plain one."""
    return exhaustive_unless(
        itertools.product([AlignedModel, keras.Model], optimizers),
        lambda each: each[0] is AlignedModel or each[1] == often,
    )


@pytest.mark.parametrize(("kind", "optimizer"), on_both_models(APART, "in turn"))
def test_w_and_b_of_kolen_pollack_are_not_moved_apart(kind, optimizer):
    with pytest.raises(ValueError, match="'kolen_pollack' needs one optimizer that updates W and B at every step"):
        fit(model(APART[optimizer](), kind, rule=KolenPollack(decay=0.1)))


@pytest.mark.parametrize(("kind", "optimizer"), on_both_models(TOGETHER, "one in a list"))
def test_w_and_b_of_kolen_pollack_may_be_moved_by_one_optimizer(kind, optimizer):
    fit(model(TOGETHER[optimizer](), kind, rule=KolenPollack(decay=0.1)), epochs=1)


NOISE_ON_W = {
    "all": lambda: MultiOptimizer([Noisy(SGD(0.1), 1e-4)]),
    "part of the names of W and B": lambda: MultiOptimizer([Noisy(SGD(0.1), 1e-4, only="kernel")]),
    "one B": lambda: MultiOptimizer([Noisy(SGD(0.1), 1e-4, only="first/backward_kernel")]),
    "loss scaling": lambda: keras.optimizers.LossScaleOptimizer(MultiOptimizer([Noisy(SGD(0.1), 1e-4)])),
}


@pytest.mark.parametrize(("kind", "optimizer"), on_both_models(NOISE_ON_W, "all"))
def test_noise_of_kolen_pollack_is_only_on_b(kind, optimizer):
    """Noise on all updates is independent for W and B. The check of configurations has the same words."""
    message = (
        "`only` must be 'backward_kernel' with 'kolen_pollack', which allows noise only on the updates of B. Received"
    )
    with pytest.raises(ValueError, match=message):
        fit(model(NOISE_ON_W[optimizer](), kind, rule=KolenPollack(decay=0.1)))


def test_equal_loss_rates_bring_w_and_b_of_kolen_pollack_together():
    """W - B decays by (1 - rate * loss rate * decay) at each step for any J. With unequal rates it would not."""
    built = model(MultiOptimizer([SGD(0.1)], RateScheduler(3, loss_rates=(0.5, 0.5))), rule=KolenPollack(decay=0.1))
    layer = next(layer for layer in built.layers if hasattr(layer, "alignment"))
    layer.kernel.regularizer = keras.regularizers.L2(0.05)

    def apart():
        return layer.kernel.numpy() - layer._backward_kernel.numpy().T

    before = apart()
    fit(built, epochs=2)
    steps = int(built.optimizer.iterations)
    np.testing.assert_allclose(apart(), before * (1 - 0.1 * 0.5 * 0.1) ** steps, rtol=1e-4, atol=1e-6)


class ByNorms(SGD):
    scales_by_weights = True


@pytest.mark.parametrize("inner", [keras.optimizers.Lamb, keras.optimizers.Adafactor, ByNorms])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda inner: inner,
        lambda inner: MultiOptimizer([inner]),
        lambda inner: MultiOptimizer([Noisy(inner, 1e-4, only="backward_kernel")]),
        lambda inner: keras.optimizers.LossScaleOptimizer(inner),
    ],
    ids=["alone", "in a list", "noisy", "under loss scaling"],
)
def test_steps_that_depend_on_norms_move_w_and_b_of_kolen_pollack_apart(inner, wrap):
    with pytest.raises(ValueError, match=f"'kolen_pollack' needs an optimizer whose .*Received {inner.__name__}\\."):
        model(wrap(inner(0.1)), rule=KolenPollack(decay=0.1))
    model(wrap(inner(0.1)), rule=Symmetric(self_=0.1, decay=0.1))


def test_a_plain_model_refuses_steps_that_depend_on_norms():
    plain = model(MultiOptimizer([keras.optimizers.Lamb(0.1)]), keras.Model, rule=KolenPollack(decay=0.1))
    with pytest.raises(ValueError, match="'kolen_pollack' needs an optimizer whose"):
        fit(plain, epochs=1)


def test_kolen_pollack_refuses_keras_own_list_of_optimizers():
    if not hasattr(keras.optimizers, "MultiOptimizer"):
        pytest.skip(f"Keras {keras.__version__} has no MultiOptimizer")
    apart = keras.optimizers.MultiOptimizer(keras.optimizers.OptimizerMap(SGD(0.1), {".*backward_kernel": SGD(0.1)}))
    with pytest.raises(ValueError, match="'kolen_pollack' needs one optimizer"):
        model(apart, rule=KolenPollack(decay=0.1))


# On replicas.


def test_loss_scaling_of_losses_in_turn_is_refused_on_replicas():
    message = r"must not scale the loss .* with a rate scheduler on several replicas\. Received RateScheduler with 2"
    refused = pytest.raises(ValueError, match=message)
    with two_replicas().scope(), refused:
        model(pair(), policy="mixed_float16")


@pytest.mark.parametrize("argument", ["ema_overwrite_frequency", "gradient_accumulation_steps"])
def test_arguments_that_replicas_cannot_follow_are_refused(argument):
    with two_replicas().scope():
        replicated = model(MultiOptimizer([SGD(**options(argument)), SGD(0.05)]))
    with pytest.raises(ValueError, match=f"`{argument}` must be None on several replicas"):
        fit(replicated, 1)


@pytest.mark.exhaustive
def test_other_arguments_do_the_same_on_replicas():
    together = {**options("weight_decay"), **options("global_clipnorm"), **options("use_ema")}

    def make():
        return model(MultiOptimizer([SGD(**together), SGD(0.05)]))

    with two_replicas().scope():
        replicated = make()
    single = make()
    for each in (single, replicated):
        fit(each, 1)
    for a, b in zip(single.trainable_variables, replicated.trainable_variables, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
