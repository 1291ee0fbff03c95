"""The costs of layers that other layers contain or that a network uses several times, counted by hand."""

from __future__ import annotations

import keras
import pytest

from neural_alignment import config as configuration
from neural_alignment import layers
from neural_alignment.alignments import Feedback
from neural_alignment.training import AlignedModel
from neural_alignment.training.costs import backpropagation_step, layer_costs
from neural_alignment.training.describe import describe

STEPS, INPUTS, UNITS = 5, 4, 3


def costs(of_inputs, shape=(STEPS, INPUTS)):
    """Returns name -> (forward, backward, product) of the rows of a network."""
    inputs = keras.Input(shape)
    rows = layer_costs(AlignedModel(inputs, of_inputs(inputs)))
    assert len({row.name for row in rows}) == len(rows)
    return {row.name: (row.forward, row.backward, row.product) for row in rows}


def aligned(units=UNITS, name="dense", **options):
    return layers.Dense(units, alignment=Feedback(), name=name, **options)


def dense(uses, units=UNITS):
    return (INPUTS * units + units, INPUTS * units, 2 * INPUTS * units * uses)


def test_the_directions_of_a_bidirectional_layer_are_counted_once():
    found = costs(keras.layers.Bidirectional(layers.LSTM(UNITS, alignment=Feedback(), name="lstm"), name="both"))
    kernel, recurrent = INPUTS * 4 * UNITS, UNITS * 4 * UNITS
    assert found == {
        f"{direction}_lstm.{name}": (size + bias, size, 2 * size * STEPS)
        for direction in ("forward", "backward")
        for name, size, bias in (("kernel", kernel, 4 * UNITS), ("recurrent_kernel", recurrent, 0))
    }


@pytest.mark.parametrize("wrapper", [layers.TimeDistributed, keras.layers.TimeDistributed])
def test_a_wrapped_layer_is_counted_at_every_time_step(wrapper):
    assert costs(wrapper(aligned())) == {"dense": dense(STEPS)}
    native = costs(lambda x: wrapper(keras.layers.Dense(UNITS), name="native")(aligned(INPUTS)(x)))
    assert native == {
        "dense": dense(STEPS, INPUTS), "native": (INPUTS * UNITS + UNITS, 0, 2 * INPUTS * UNITS * STEPS)
    }  # fmt: skip


def test_a_layer_that_is_called_twice_counts_twice():
    ours, native = aligned(INPUTS), keras.layers.Dense(INPUTS, name="native")
    forward, _, product = dense(2, INPUTS)
    assert costs(lambda x: native(native(ours(ours(x)))), (INPUTS,)) == {
        "dense": dense(2, INPUTS), "native": (forward, 0, product)
    }  # fmt: skip


def test_the_layers_of_a_model_that_is_called_twice_count_twice():
    inner = keras.Sequential([keras.Input((INPUTS,)), aligned(INPUTS), keras.layers.Dense(INPUTS, name="native")])
    forward, _, product = dense(2, INPUTS)
    assert costs(lambda x: inner(inner(x)), (INPUTS,)) == {"dense": dense(2, INPUTS), "native": (forward, 0, product)}
    # In a wrapper, the layer without a connection belongs to the wrapper.
    found = costs(layers.TimeDistributed(inner, name="wrapper"))
    assert found == {
        "dense": dense(STEPS, INPUTS), "wrapper": (forward, 0, 2 * INPUTS * INPUTS * STEPS)
    }  # fmt: skip


def test_attention_has_its_kernels_and_its_products_of_activations():
    heads, size = 2, 3
    attention = layers.MultiHeadAttention(heads, size, alignment=Feedback(), name="attention")
    found = costs(lambda x: attention(x, value=x))
    width = heads * size
    kernel = (INPUTS * width, 2 * INPUTS * width * STEPS)
    for name, bias in {"query": width, "key": width, "value": width, "attention_output": INPUTS}.items():
        assert found.pop(f"attention.{name}") == (kernel[0] + bias, *kernel)
    assert found == {"attention": (0, 0, 2 * 2 * STEPS * STEPS * width)}  # Queries with keys, and scores with values.
    native = keras.layers.MultiHeadAttention(heads, size, name="native")
    whole = costs(lambda x: native(aligned(INPUTS)(x), x, use_causal_mask=True))["native"]
    assert whole == (4 * kernel[0] + 3 * width + INPUTS, 0, 4 * kernel[1] + 4 * STEPS * STEPS * width)


def test_a_step_of_backpropagation_counts_the_loop_over_time_with_and_without_b():
    forward = 2 * STEPS * (INPUTS * 4 * UNITS + UNITS * 4 * UNITS)
    for rule in (None, Feedback()):
        inputs = keras.Input((STEPS, INPUTS))
        model = AlignedModel(inputs, layers.LSTM(UNITS, alignment=rule)(inputs))
        # The inputs get no error.
        assert backpropagation_step(layer_costs(model), model) == 3 * forward - 2 * STEPS * INPUTS * 4 * UNITS


@pytest.mark.parametrize("name", ["cifar10/vision_transformer/symmetric", "mnist/lstm/symmetric"])
def test_shipped_configurations_of_such_layers_are_described(name):
    config = configuration.load(name)
    text = describe(config)
    assert text.count(" symmetric ") >= 2
    assert "J + R" in text


def model_of(inputs, outputs):
    """Returns the rows of a network, and the network."""
    model = AlignedModel(inputs, outputs)
    return layer_costs(model), model


def test_every_use_of_a_layer_counts_at_its_own_size():
    shared = layers.Conv2D(2, 3, padding="same", alignment=Feedback(), name="shared")
    separable = layers.SeparableConv2D(2, 3, padding="same", alignment=Feedback(), name="separable")
    pool = keras.layers.MaxPooling2D(3)
    found = costs(lambda x: separable(pool(separable(shared(pool(shared(x)))))), (27, 27, 2))
    places = 27 * 27 + 9 * 9
    assert found["shared"][2] == 2 * 36 * places
    places = 9 * 9 + 3 * 3
    assert found["separable.depthwise_kernel"][2] == 2 * 18 * places
    assert found["separable.pointwise_kernel"][2] == 2 * 4 * places


def test_backpropagation_stops_at_the_first_trained_layer_of_each_input():
    x, y = keras.Input((5,)), keras.Input((4,))
    both = keras.layers.Concatenate()([aligned(5, "one")(x), aligned(5, "other")(y)])
    rows, model = model_of([x, y], aligned(2, "last")(both))
    assert backpropagation_step(rows, model) == 2 * (2 * (25 + 20) + 3 * 20)


def test_no_gradient_of_a_frozen_layer_counts():
    inputs = keras.Input((4,))
    frozen = aligned(4, "frozen")
    rows, model = model_of(inputs, aligned(3, "last")(frozen(inputs)))
    frozen.trainable = False
    assert backpropagation_step(rows, model) == 2 * (16 + 2 * 12)


def test_the_first_layer_sends_an_error_back_to_an_embedding():
    inputs = keras.Input((5,))
    rows, model = model_of(inputs, aligned()(keras.layers.Embedding(7, INPUTS)(inputs)))
    assert backpropagation_step(rows, model) == 2 * 3 * STEPS * INPUTS * UNITS


def test_a_loop_over_time_counts_beside_layers_of_keras():
    inputs = keras.Input((STEPS, INPUTS))
    lstm = layers.LSTM(UNITS, alignment=Feedback(), name="lstm")(inputs)
    rows, model = model_of(inputs, keras.layers.Dense(2)(lstm))
    of_inputs, of_states, of_dense = STEPS * INPUTS * 4 * UNITS, STEPS * UNITS * 4 * UNITS, UNITS * 2
    assert backpropagation_step(rows, model) == 2 * (2 * of_inputs + 3 * of_states + 3 * of_dense)


@pytest.mark.parametrize("equation", ["...x,xy->...y", "abx,xy->aby"])
def test_an_ellipsis_of_an_einsum_has_all_its_axes(equation):
    inputs = keras.Input((7, 4))
    outputs = 5 if "..." in equation else (7, 5)
    rows, model = model_of(inputs, keras.layers.EinsumDense(equation, outputs)(inputs))
    assert [row.product for row in rows] == [2 * 7 * 4 * 5]
    assert backpropagation_step(rows, model) == 2 * 2 * 7 * 4 * 5


@pytest.mark.parametrize(("config", "kinds"), [
    ("configs/mnist/fc/feedback.yaml", ["backpropagation", "J"]),
    ("configs/mnist/fc/symmetric.yaml", ["backpropagation", "J", "R", "J"]),
])  # fmt: skip
def test_only_steps_that_exist_have_a_cost(config, kinds):
    lines = [line.split() for line in describe(configuration.load(config)).splitlines() if "GFLOP" in line]
    assert [line[0] for line in lines] == kinds
    assert all(float(line[line.index("GFLOP") - 1]) > 0 for line in lines)
