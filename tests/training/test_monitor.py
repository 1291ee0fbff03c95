"""`AlignmentMonitor`: measures of alignment in the logs of plain `fit`."""

import csv

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import assert_close, two_replicas

from neural_alignment import AlignedModel, AlignmentMonitor, convert, layers
from neural_alignment.alignments import Feedback, Symmetric
from neural_alignment.training import probes

RULE = Symmetric(self_=0.3, decay=0.3)


def angle(one, other):
    """Returns the angle between two arrays in degrees."""
    cosine = np.vdot(one, other) / (np.linalg.norm(one) * np.linalg.norm(other))
    return np.degrees(np.arccos(cosine))


def network(kind=keras.Model, rule=RULE):
    keras.utils.set_random_seed(3)
    inputs = keras.Input((6,))
    hidden = layers.Dense(20, activation="tanh", alignment=rule, name="hidden")(inputs)
    model = kind(inputs, layers.Dense(3, alignment=rule, name="last")(hidden))
    model.compile(keras.optimizers.SGD(0.2), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def data(examples=32):
    rng = np.random.default_rng(0)
    return rng.normal(size=(examples, 6)).astype("float32"), rng.integers(0, 3, examples)


@pytest.mark.parametrize("kind", [keras.Model, AlignedModel])
def test_the_logs_of_every_epoch_have_the_measures_of_numpy(kind, tmp_path):
    model, (x, y) = network(kind), data()
    monitor = AlignmentMonitor(x[:10])
    log = keras.callbacks.CSVLogger(tmp_path / "log.csv")
    w, b = model.layers[1].kernel.numpy(), model.layers[1].backward_kernel.numpy()
    history = model.fit(x, y, epochs=4, batch_size=8, verbose=0, callbacks=[monitor, log]).history
    assert_close(np.float32(monitor.start["weight_angle/hidden"]), angle(w, b.T))
    assert_close(np.float32(monitor.start["projection_angle/hidden"]), angle(x[:10] @ w, x[:10] @ b.T))
    for layer in model.layers[1:]:
        w, b = layer.kernel.numpy(), layer.backward_kernel.numpy()
        assert_close(np.float32(history[f"weight_angle/{layer.name}"][-1]), angle(w, b.T))
        assert_close(np.float32(history[f"norm_ratio/{layer.name}"][-1]), np.linalg.norm(b) / np.linalg.norm(w))
    assert history["weight_angle/hidden"][-1] < 45 < 70 < monitor.start["weight_angle/hidden"]
    with open(tmp_path / "log.csv") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["norm_ratio/last"]) for row in rows] == pytest.approx(history["norm_ratio/last"])


def test_measuring_changes_nothing_of_the_training():
    (x, y), weights = data(), []
    for callbacks in ([], [AlignmentMonitor(x, y)]):
        model = network()
        model.fit(x, y, epochs=2, batch_size=8, verbose=0, callbacks=callbacks, shuffle=False)
        weights.append(model.get_weights())
    for one, other in zip(*weights, strict=True):
        np.testing.assert_array_equal(one, other)


def test_with_targets_the_angle_of_the_pseudogradient_is_measured_as_in_a_run():
    model, (x, y) = network(), data()
    history = model.fit(x, y, epochs=1, verbose=0, callbacks=[AlignmentMonitor(x, y)]).history
    expected = probes.measure(model, tf.constant(x), tf.constant(y))
    for measure in probes.MEASURES:
        for layer in ("hidden", "last"):
            assert_close(np.float32(history[f"{measure}/{layer}"][0]), expected[measure][layer])


def test_every_second_epoch_and_the_last_are_measured():
    model, (x, y) = network(), data()
    history = model.fit(x, y, epochs=5, verbose=0, callbacks=[AlignmentMonitor(every=2)]).history
    assert len(history["loss"]) == 5
    measured = ~np.isnan(history["weight_angle/last"])
    assert measured.tolist() == [True, False, True, False, True]


@pytest.mark.exhaustive
def test_a_converted_model_on_two_replicas_has_the_measures_of_one():
    (x, y), rows = data(), []
    for strategy in (two_replicas(), tf.distribute.get_strategy()):
        with strategy.scope():
            keras.utils.set_random_seed(5)
            native = keras.Sequential(
                [
                    keras.Input((6,)),
                    keras.layers.Reshape((3, 2)),
                    keras.layers.LSTM(4, name="lstm"),
                    keras.layers.Dense(3, name="last"),
                ]
            )
            model = convert(native, Feedback()).model
            model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
            monitor = AlignmentMonitor(x, y)
            monitor.set_model(model)
            monitor.on_train_begin()
        rows.append(monitor.start)
    assert "projection_angle/lstm.recurrent_kernel" in rows[0]
    assert rows[0] == pytest.approx(rows[1], abs=0.1)


def test_a_strategy_that_takes_only_tensors_can_measure(monkeypatch):
    """`TPUStrategy` converts all arguments of `run` to tensors."""
    strategy = tf.distribute.OneDeviceStrategy("CPU:0")
    original = tf.distribute.OneDeviceStrategy.run

    def run(self, function, args=(), **options):
        return original(self, function, tuple(map(tf.convert_to_tensor, args)), **options)

    monkeypatch.setattr(tf.distribute.OneDeviceStrategy, "run", run)
    with strategy.scope():
        model = network()
    monitor = AlignmentMonitor(*data())
    monitor.set_model(model)
    monitor.on_train_begin()
    assert np.isfinite(list(monitor.start.values())).all()
    assert "pseudogradient_angle/hidden" in monitor.start


def test_wrong_use_is_an_error_in_three_parts():
    x, y = data()
    with pytest.raises(ValueError, match=r"`y` must be given together with `x`.*Example: AlignmentMonitor\(x, y\)"):
        AlignmentMonitor(y=y)
    with pytest.raises(ValueError, match=r"`every` must be a positive integer. Received 0"):
        AlignmentMonitor(every=0)
    model = network(rule=None)
    with pytest.raises(ValueError, match="only for a model with backward kernels"):
        model.fit(x, y, verbose=0, callbacks=[AlignmentMonitor()])


def test_a_model_that_is_not_built_is_an_error_that_says_so():
    x, y = data()
    model = keras.Sequential([keras.Sequential([layers.Dense(3, alignment=RULE, name="inner")])])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    line = r"only for a model whose layers are built. Received 'inner'. Example: model.build\(\(None, 784\)\)"
    with pytest.raises(ValueError, match=line):
        model.fit(x, y, verbose=0, callbacks=[AlignmentMonitor()])
    model.build((None, 6))
    assert "weight_angle/inner" in model.fit(x, y, verbose=0, callbacks=[AlignmentMonitor()]).history


def test_layers_that_are_frozen_have_measures_too(tmp_path):
    model, (x, y) = network(), data()
    model.get_layer("hidden").trainable = False
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    log = keras.callbacks.CSVLogger(tmp_path / "log.csv")
    history = model.fit(x, y, epochs=2, verbose=0, callbacks=[AlignmentMonitor(x, y, every=2), log]).history
    assert 0 < history["pseudogradient_angle/hidden"][0] < 180
    with open(tmp_path / "log.csv") as file:
        assert "weight_angle/hidden" in next(csv.DictReader(file))
