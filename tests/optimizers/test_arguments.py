"""Wrong arguments of all constructors are refused at once, in three sentences; NumPy's numbers are accepted."""

import json
import math
import re
from fractions import Fraction

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import for_each

from optimizers import (
    SWATS,
    Adam,
    ManualDrop,
    Momentum,
    MultiOptimizer,
    Noisy,
    RAdam,
    RateScheduler,
    RMSprop,
    WarmupAndDrops,
    WarmupAndSchedule,
)
from optimizers.noise import Seed

NAN, INF = math.nan, math.inf
NOT_NUMBERS = ("0.1", None, True, [0.1], 1j, NAN, INF, -INF, 10**400)
NOT_INTEGERS = ("10", 2.5, 10.0, True, [10], NAN, INF, np.float64(3.0), np.True_)


def drops(**options):
    return WarmupAndDrops(**{"learning_rate": 0.1, "steps_per_epoch": 10, **options})


def scheduled(**options):
    return WarmupAndSchedule(**{"schedule": 0.1, "steps_per_epoch": 10, **options})


def manual(**options):
    return ManualDrop(**{"learning_rate": 0.1, "steps_per_epoch": 10, "drop": 1, "drop_step": 3, **options})


def scheduler(**options):
    return RateScheduler(**{"steps_per_epoch": 10, **options})


def noisy(**options):
    return Noisy(**{"optimizer": Momentum(0.1), "variance": 0.1, **options})


BETA = (*NOT_NUMBERS, -0.1, 1.0, np.float32(1.0))
EPOCHS = (*NOT_NUMBERS, -1, -0.5)
CLOCK = {
    "steps_per_epoch": (*NOT_INTEGERS, None, 0, -3, np.int64(0)),
    "delay_epochs": EPOCHS,
    "alternation": (*NOT_INTEGERS, 0, -1),
}
DROPS = (30, None, "30", ["30"], [True], (60, 30), (1,), (NAN,), (30, INF), [[30]])
SHARED = {  # The arguments of Keras' base class.
    "learning_rate": (NAN, INF, WarmupAndDrops, keras.optimizers.schedules.CosineDecay),
    "weight_decay": ("0.1", [0.1], NAN, INF, np.float32(NAN)),
    **dict.fromkeys(("clipnorm", "global_clipnorm"), ("1", [1.0], NAN, INF, np.float64(INF))),
    "clipvalue": ("1", [1.0], NAN),
    "loss_scale_factor": ("8", NAN, INF),
    "gradient_accumulation_steps": ("2", 2.5, 2.0, NAN),
}
ADAM = {"beta_1": BETA, "beta_2": BETA, **SHARED}
WRONG = {
    scheduler: CLOCK,
    drops: {
        "learning_rate": NOT_NUMBERS,
        "warmup_epochs": EPOCHS,
        "drop_epochs": DROPS,
        "drop_factor": (*NOT_NUMBERS, -1, -0.1),
        **CLOCK,
    },
    scheduled: {"schedule": (*NOT_NUMBERS, Adam), "warmup_epochs": EPOCHS, **CLOCK},
    manual: {
        "learning_rate": NOT_NUMBERS,
        "drop": (*NOT_INTEGERS, None, -1),
        "drop_step": (*NOT_INTEGERS, None, -1),
        "drop_factor": (*NOT_NUMBERS, -1),
        "warmup_epochs": EPOCHS,
        **CLOCK,
    },
    noisy: {
        "variance": (*NOT_NUMBERS, -1.0),
        "distribution": (None, 3, ["normal"], "gaussian"),
        "only": (3, True, ["kernel"]),
        "seed": (*NOT_INTEGERS, None),
    },
    Momentum: {"momentum": BETA, "nesterov": ("no", 1, None), **SHARED},
    Adam: {"epsilon": (*NOT_NUMBERS, -1e-8), **ADAM},
    RAdam: {"epsilon": (*NOT_NUMBERS, 0, 0.0, -1e-9), **ADAM},
    SWATS: {"epsilon": (*NOT_NUMBERS, 0, 0.0, -1e-9), "rectified": ("no", 1, None), **ADAM},
    RMSprop: {
        "rho": BETA,
        "momentum": (*NOT_NUMBERS, -0.1, 1.5),
        "epsilon": (*NOT_NUMBERS, -1e-7),
        "initial_mean_square": (*NOT_NUMBERS, -1),
        **SHARED,
    },
}
ROWS = [(make, name, value) for make, table in WRONG.items() for name, values in table.items() for value in values]


@for_each("make, name, value", ROWS)
def test_wrong_arguments_are_errors(make, name, value):
    with pytest.raises(ValueError) as caught:
        make(**{name: value})
    message = str(caught.value)
    assert re.fullmatch(rf"`{name}` must be .+\. Received .+\. Example: .+\.", message, re.DOTALL), message


def test_the_averages_of_keras_are_checked_where_they_are_used():
    for value in ("0.9", None, NAN):
        with pytest.raises(ValueError, match=r"`ema_momentum` must be a finite number\. Received .*Example"):
            Momentum(0.1, use_ema=True, ema_momentum=value)
        assert Momentum(0.1, ema_momentum=value).ema_momentum is value
    with pytest.raises(ValueError, match=r"`ema_overwrite_frequency` must be an integer or None\. Received 'a'"):
        Momentum(0.1, use_ema=True, ema_overwrite_frequency="a")


@pytest.mark.parametrize("value", ["no", 1, None])
def test_skip_idle_is_a_boolean(value):
    """The text "no" would be true."""
    with pytest.raises(ValueError, match=rf"`skip_idle` must be True or False\. Received {value!r}\. Example"):
        MultiOptimizer([Momentum(0.1)], skip_idle=value)


def saved(made):
    """Returns the configuration, as plain data."""
    return json.loads(json.dumps(keras.saving.serialize_keras_object(made)["config"]))


NUMPY = [
    (scheduler, {"steps_per_epoch": np.int32(4), "delay_epochs": np.float32(0.5), "alternation": np.int64(2)}),
    (scheduler, {"loss_rates": (np.float32(0.5), np.int64(2))}),
    (drops, {"learning_rate": np.float32(0.5), "drop_epochs": np.array([30, 60]), "warmup_epochs": Fraction(1, 2)}),
    (scheduled, {"schedule": np.float32(0.5), "warmup_epochs": np.int16(2)}),
    (manual, {"drop": np.uint8(2), "drop_step": np.int64(7), "drop_factor": np.float64(0.5)}),
    (noisy, {"variance": np.float32(0.5), "seed": np.int64(3)}),
    (Momentum, {"momentum": np.float32(0.5), "nesterov": np.False_, "clipnorm": np.float32(0.5)}),
    (Adam, {"beta_1": np.float32(0.5), "gradient_accumulation_steps": np.int64(2)}),
    (RAdam, {"beta_2": np.float64(0.5), "weight_decay": np.float32(0.5)}),
    (SWATS, {"epsilon": np.float32(0.5), "rectified": np.True_}),
    (RMSprop, {"initial_mean_square": np.int64(1), "use_ema": True, "ema_momentum": np.float32(0.5)}),
]


@for_each("make, options", NUMPY)
def test_numbers_of_numpy_are_accepted_and_can_be_saved(make, options):
    config = saved(make(**options))
    for name, value in options.items():
        np.testing.assert_array_equal(np.array(config[name], float), np.array(value, float))


WORKS = [
    *((name, value) for name in ("weight_decay", "clipnorm", "clipvalue", "global_clipnorm") for value in (None, 0)),
    *(("weight_decay", value) for value in (-0.1, True, tf.constant(0.1), 1)),
    *(("clipnorm", value) for value in (False, True, -1.0)),
    *(("clipvalue", value) for value in (INF, 1)),
    *(("gradient_accumulation_steps", value) for value in (None, 0, 2)),
    *(("learning_rate", value) for value in (-0.1, 0.0, lambda: 0.1, drops(), keras.optimizers.schedules.CosineDecay)),
]


@for_each("kind, option", [(kind, each) for kind in (Momentum, Adam, RAdam, SWATS, RMSprop) for each in WORKS])
def test_what_works_in_keras_is_accepted(kind, option):
    name, value = option
    if value is keras.optimizers.schedules.CosineDecay:
        value = value(0.1, 10)
    own = keras.Variable(np.ones(3), dtype="float32", name="kernel")
    optimizer = kind(**{name: value})
    for _ in range(2):
        optimizer.apply([tf.ones(3)], [own])
    assert np.isfinite(own.numpy()).all()
    assert (own.numpy() != 1).all() or (name, value) == ("learning_rate", 0.0) or isinstance(value, WarmupAndDrops)


def test_a_schedule_may_have_a_variable_rate():
    rate = keras.Variable(0.5)
    schedule = drops(learning_rate=rate, warmup_epochs=0)
    rate.assign(0.25)
    assert float(schedule(0)) == 0.25


def test_a_seed_that_graphs_read_from_a_variable_is_kept():
    seed = Seed(3)
    assert noisy(seed=seed).seed is seed
