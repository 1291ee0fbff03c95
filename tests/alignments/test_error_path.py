"""Weights that an error passes through, compared with known layers and with the table of the layers of Keras."""

import keras
import pytest
import tensorflow as tf
from keras import layers
from keras_layer_table import REASONS, aligned_layers

from neural_alignment.alignments import error_path
from neural_alignment.alignments.error_path import error_weights


class Own(keras.layers.Layer):
    """A layer with weights of some shapes, which a function reads."""

    def __init__(self, shapes, function):
        super().__init__()
        self.shapes, self.function = shapes, function

    def build(self, input_shape):
        del input_shape
        self.all = [self.add_weight(name=f"w{number}", shape=shape) for number, shape in enumerate(self.shapes)]

    def call(self, inputs):
        return self.function(inputs, *map(tf.convert_to_tensor, self.all))


def found(function, *shapes, inputs=(6, 5)):
    """Returns the numbers of the weights of a custom layer that an error passes through."""
    layer = Own(shapes, function)
    layer(keras.Input(inputs))
    return [int(weight.name[1:]) for weight in error_weights(layer)]


def summed(x):
    return tf.reduce_sum(x, -1, keepdims=True)


def filtered(x, taps):
    """Returns the sum of three shifted copies of a sequence."""
    return x[:, :-2] * taps[0] + x[:, 1:-1] * taps[1] + x[:, 2:] * taps[2]


def circular(x, taps):
    """Returns the circular convolution over units, by Fourier transforms."""
    x, taps = (tf.signal.fft(tf.cast(each, tf.complex64)) for each in (x, taps))
    return tf.math.real(tf.signal.ifft(x * taps))


VECTORS = {
    "product of matrices": lambda x, u: x @ u[:, None],
    "matrix with a vector": tf.linalg.matvec,
    "tensordot": lambda x, u: tf.tensordot(x, u, 1),
    "einsum": lambda x, u: tf.einsum("btc,c->bt", x, u),
    "sum": lambda x, u: tf.reduce_sum(x * u, -1),
    "mean of a masked product": lambda x, u: tf.reduce_mean(x * u * tf.cast(x[..., :1] > 0, x.dtype), -1),
    "attention pooling": lambda x, u: tf.reduce_sum(x * tf.nn.softmax(tf.tanh(x) @ u[:, None], axis=1), 1),
    "attention pooling by a sum": lambda x, u: tf.reduce_sum(x * tf.nn.softmax(summed(tf.tanh(x) * u), axis=1), 1),
    "circulant matrix": lambda x, u: x @ tf.stack([tf.roll(u, shift, 0) for shift in range(5)]),
    "circular convolution": circular,
}
TAPS = {
    "convolution": lambda x, taps: tf.nn.conv1d(tf.reshape(x, [-1, 30, 1]), taps[:, None, None], 1, "SAME"),
    "shifts": filtered,
    "unstacked": lambda x, taps: sum(x[:, shift : shift + 4] * tap for shift, tap in enumerate(tf.unstack(taps))),
}


@pytest.mark.parametrize("name", [*VECTORS, *TAPS])
def test_vectors_that_connect_units_count(name):
    size, function = (5, VECTORS[name]) if name in VECTORS else (3, TAPS[name])
    assert found(function, (size,)) == [0]


MATRICES = {
    "product of matrices": lambda x, w: x @ w,
    "sum": lambda x, w: tf.reduce_sum(x[..., None] * w, -2),
    "one filter for each unit": lambda x, w: filtered(x, w[:3]),
    "modulated by the inputs": lambda x, w: tf.einsum("btc,bcd->btd", x, w * tf.reduce_mean(x, 1)[..., None]),
    "modulated by the inputs, sum": lambda x, w: tf.reduce_sum(
        x[..., None] * (w * tf.reduce_mean(x, 1)[..., None])[:, None], -2
    ),
    "function": lambda x, w: tf.function(tf.matmul)(x, w),
    "condition": lambda x, w: tf.cond(tf.reduce_sum(x) > 0, lambda: x @ w, lambda: x),
    "loop": lambda x, w: tf.while_loop(lambda i, _: i < 3, lambda i, h: (i + 1, tf.tanh(h @ w)), (0, x))[1],
    "map": lambda x, w: tf.map_fn(lambda row: row @ w, x),
}


@pytest.mark.parametrize("name", MATRICES)
def test_matrices_count(name):
    assert found(MATRICES[name], (5, 5)) == [0]


SCALES = {
    "scale": lambda x, g: x * g,
    "function of a scale": lambda x, g: x * tf.nn.softplus(g) + g,
    "quotient": lambda x, g: x / (1 + g**2),
    "a nonlinearity before the sum": lambda x, g: tf.reduce_sum(tf.tanh(x * g), -1),
    "threshold": lambda x, g: tf.where(x > g, x, 0.0),
    "nonlinearity with a slope": lambda x, g: tf.nn.relu(x) - g * tf.nn.relu(-x),
    "offset before a nonlinearity": lambda x, g: tf.tanh(x + g),
    "root mean square": lambda x, g: x * tf.math.rsqrt(tf.reduce_mean(x**2, -1, keepdims=True)) * g,
    "mean and variance": lambda x, g: (x - summed(x) / 5) * tf.math.rsqrt(summed(x**2)) * g,
}


@pytest.mark.parametrize("shape", [(5,), (1, 1, 5), (6, 5)], ids=str)
@pytest.mark.parametrize("name", SCALES)
def test_scales_and_offsets_of_units_do_not_count(name, shape):
    """The last shape has a weight for each position and unit."""
    assert found(SCALES[name], shape) == []


def test_a_sum_over_positions_connects_them_by_a_weight_for_each_position():
    assert found(lambda x, g: tf.reduce_mean(x * g, 1), (5,)) == []
    for shape in ((6, 5), (6, 1)):
        assert found(lambda x, g: tf.reduce_mean(x * g, 1), shape) == [0]


def test_other_shapes_of_scales_and_kernels():
    assert found(lambda x, g: x * g, ()) == []
    assert found(lambda x, g: tf.reduce_sum(x * g, -1), (1,)) == []
    assert found(lambda x, w: x @ w, (1, 1), inputs=(6, 1)) == [0]
    assert found(lambda x, g: tf.transpose(tf.transpose(x, [0, 2, 1]) * g[:, None], [0, 2, 1]), (5,)) == []
    assert found(lambda x, g: tf.reshape(tf.reshape(x, [-1, 5]) * g, [-1, 6, 5]), (5,)) == []
    fused = tf.compat.v1.nn.fused_batch_norm
    assert found(lambda x, g, b: fused(x, g, b)[0], (5,), (5,), inputs=(6, 6, 5)) == []


def test_each_weight_is_judged_by_itself():
    assert found(lambda x, w, b, g: tf.tanh(x @ w + b) * g, (5, 4), (4,), (4,)) == [0]
    assert found(lambda x, a, b: x @ (a @ b), (5, 2), (2, 5)) == [0, 1]
    assert found(lambda x, a, b: x @ (a * b), (5, 1), (1, 5)) == [0, 1]


def test_unknown_sizes_are_traced():
    assert found(lambda x, w: tf.nn.conv2d(x, w, 1, "VALID"), (3, 3, 5, 2), inputs=(None, None, 5)) == [0]
    assert found(lambda x, g: x * g, (1, 1, 5), inputs=(None, 5)) == []


def image(size=4):
    return keras.Input((8, 8, size))


def sequence():
    return keras.Input((6, 5))


KERAS = {
    "AdditiveAttention": lambda kind: kind()([sequence(), sequence()]),
    "Attention": lambda kind: kind(use_scale=True)([sequence(), sequence()]),
    "BatchNormalization": lambda kind: kind()(image()),
    "ConvLSTM1D": lambda kind: kind(2, 3)(image()),
    "ConvLSTM2D": lambda kind: kind(2, 3)(keras.Input((3, 8, 8, 2))),
    "ConvLSTM3D": lambda kind: kind(2, 3)(keras.Input((3, 4, 4, 4, 2))),
    "Embedding": lambda kind: kind(5, 4)(keras.Input((6,), dtype="int32")),
    "GroupNormalization": lambda kind: kind(2)(image()),
    "LayerNormalization": lambda kind: kind(axis=[1, 2])(sequence()),
    "Normalization": lambda kind: kind(axis=(1, 2))(sequence()),
    "PReLU": lambda kind: kind()(image()),
    "Pipeline": lambda kind: kind([layers.Dense(3)])(sequence()),
    "RMSNormalization": lambda kind: kind()(sequence()),
    "RNN": lambda kind: kind(layers.GRUCell(3))(sequence()),
    "ReversibleEmbedding": lambda kind: kind(5, 4)(keras.Input((6, 4)), reverse=True),
    "STFTSpectrogram": lambda kind: kind("log", 8, 4, 8)(keras.Input((64, 1))),
    "SpectralNormalization": lambda kind: kind(layers.Dense(3))(sequence()),
}
UNCONNECTED = ("only scale", "a number that scales", "inputs are integers", "statistics of the data")
"""Parts of the reasons of layers whose weights do not connect units."""
OTHERS = {
    *("Bidirectional", "TimeDistributed", "Wrapper"),  # The layer in them decides.
    *("GRUCell", "LSTMCell", "SimpleRNNCell", "StackedRNNCells"),  # `RNN` has such a cell.
    *("FlaxLayer", "JaxLayer", "TFSMLayer", "TorchModuleWrapper"),
}


def test_every_reason_of_the_table_is_tried():
    assert set(REASONS) == set(KERAS) | OTHERS


@pytest.mark.parametrize("name", [name for name in KERAS if hasattr(layers, name)])
def test_keras_layers_agree_with_the_table(monkeypatch, name):
    """Layers that are not traced, because they are known, would be judged in the same way."""
    monkeypatch.setattr(error_path, "ELEMENTWISE", ())
    layer = None

    def kind(*args, **kwargs):
        nonlocal layer
        layer = getattr(layers, name)(*args, **kwargs)
        return layer

    KERAS[name](kind)
    assert layer.weights
    assert bool(error_weights(layer)) == (not any(part in REASONS[name] for part in UNCONNECTED))


def test_the_kernels_of_layers_with_an_aligned_form_count():
    assert {"Dense", "DepthwiseConv2D", "EinsumDense"} <= aligned_layers()
    one = layers.EinsumDense("abc,c->ab", (None,))
    for layer, inputs in ((layers.Dense(1), sequence()), (layers.DepthwiseConv2D(1), image()), (one, sequence())):
        layer(inputs)
        assert error_weights(layer) == [layer.kernel]
