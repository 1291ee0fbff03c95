"""R reaches B alone, and J reaches B only with rules that tie its gradient: in whole networks, by `tape.gradient`."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import LEARNING, RULE_CONFIGS, TIED, assert_close, assert_differs, product_kernel

from neural_alignment import layers
from neural_alignment.alignments import forward_pass, from_config

EVERYTHING = {
    "input": {"feature_center": True, "batch_center": True},
    "forward_output": {"bias": True, "relu": True, "batch_center": True},
    "backward_output": {"bias": True, "relu": True, "feature_normalize": True},
}
CASES = {
    **RULE_CONFIGS,
    "weight_mirror noise": {**RULE_CONFIGS["weight_mirror"], "input": {"noise": "normal"}},
    "information everything": {**RULE_CONFIGS["information"], **EVERYTHING},
    "information reconstructions": {
        **RULE_CONFIGS["information"], **EVERYTHING, "sparse_decay": True, "reconstruct_backward": True,
        "compare_reconstruction": True,
    },
    "activation everything": {**RULE_CONFIGS["activation"], **EVERYTHING},
}  # fmt: skip
ACTIVE = [name for name in CASES if name.split()[0] in LEARNING]


class Network:
    """Two convolutions and a dense layer, or two dense layers, all aligned by one rule; biases are not zero."""

    def __init__(self, kind, config, rng):
        options = {"alignment": from_config(config), "bias_initializer": keras.initializers.RandomNormal(0.0, 0.5, 3)}
        if kind == "conv":
            self.layers = [
                layers.Conv2D(3, 3, padding="same", activation="relu", name="first", **options),
                layers.Conv2D(2, 3, strides=2, alignment_activation="relu", name="second", **options),
                keras.layers.Flatten(),
                layers.Dense(4, name="third", **options),
            ]
            shape = (4, 6, 7, 2)
        else:
            self.layers = [
                layers.Dense(6, activation="relu", name="first", **options),
                layers.Dense(4, name="second", **options),
            ]
            shape = (4, 5)
        self.inputs = tf.constant(rng.normal(size=shape), tf.float32)
        self.target = tf.constant(rng.normal(size=(4, 4)), tf.float32)
        with forward_pass(regularise=False):
            self(self.inputs)
        self.aligned = [layer for layer in self.layers if isinstance(layer, layers.AlignedLayer)]
        self.forward = [v for layer in self.aligned for v in (layer.kernel, layer.bias)]
        self.backward = [layer._backward_kernel for layer in self.aligned]

    def __call__(self, x):
        """Applies the layers in training."""
        for layer in self.layers:
            x = layer(x, training=True)
        return x

    def gradients(self, of):
        """Returns the gradients of J, of R, or of J + R to the inputs, the forward variables and the B's."""
        with tf.GradientTape() as tape:
            tape.watch(self.inputs)
            with forward_pass(step=2) as state:
                outputs = self(self.inputs)
            loss = tf.reduce_mean(tf.reduce_sum(tf.square(outputs - self.target), axis=1))
            regulariser = sum(state.losses.values()) if state.losses else tf.zeros([])
            total = {"J": loss, "R": regulariser, "J+R": loss + regulariser}[of]
        sources = [self.inputs, *(v.value for v in self.forward), *(v.value for v in self.backward)]
        gradients = tape.gradient(total, sources)
        cut = 1 + len(self.forward)
        return gradients[:cut], gradients[cut:]


def is_zero(gradient):
    """Whether a gradient is none, or exactly zero."""
    return gradient is None or not np.any(gradient)


@pytest.mark.parametrize("kind", ["conv", "dense"])
@pytest.mark.parametrize("name", CASES)
def test_r_reaches_b_alone_and_j_everything_else(rng, name, kind):
    network = Network(kind, CASES[name], rng)
    j_forward, j_backward = network.gradients("J")
    r_forward, r_backward = network.gradients("R")
    both_forward, both_backward = network.gradients("J+R")

    assert set(r_forward) == {None} if name in ACTIVE else all(map(is_zero, r_forward))
    assert all(np.any(gradient) for gradient in j_forward)
    if name in ACTIVE:
        assert all(np.any(gradient) for gradient in r_backward)
    else:
        assert all(map(is_zero, r_backward))
    if name in TIED:
        for layer, kernel, gradient in zip(network.aligned, j_forward[1::2], j_backward, strict=True):
            fixed = layer.connection().fixed_kernel
            tied = kernel if fixed is None else product_kernel(np.asarray(kernel), np.swapaxes(fixed, 1, 2))
            assert_close(gradient, np.transpose(tied) if isinstance(layer, layers.Dense) else tied)
    else:
        assert all(map(is_zero, j_backward))

    for ours, alone in zip(both_forward, j_forward, strict=True):
        np.testing.assert_array_equal(ours, alone)
    for ours, from_r, from_j in zip(both_backward, r_backward, j_backward, strict=True):
        parts = [np.asarray(g) for g in (from_r, from_j) if g is not None]
        assert_close(np.zeros(()) if ours is None else ours, sum(parts) if parts else np.zeros(()))


@pytest.mark.parametrize("name", ACTIVE)
def test_r_of_a_layer_does_not_reach_the_b_of_another(rng, name):
    network = Network("conv", CASES[name], rng)
    with tf.GradientTape(persistent=True) as tape, forward_pass() as state:
        network(network.inputs)
    for index, layer in enumerate(network.aligned):
        gradients = tape.gradient(state.losses[layer.name], [v.value for v in network.backward])
        assert [gradient is not None for gradient in gradients] == [index == other for other in range(3)]


@pytest.mark.parametrize("kind", ["conv", "dense"])
@pytest.mark.parametrize("rule", sorted({*RULE_CONFIGS} - {"align_prop"}))  # Of which B is W before the first step.
def test_the_forward_pass_and_dw_of_the_last_layer_are_those_of_backpropagation(rng, rule, kind):
    """B touches neither: W's update in the last layer needs no B, and earlier layers differ."""
    network = Network(kind, RULE_CONFIGS[rule], rng)
    pseudo, _ = network.gradients("J")
    x = network.inputs
    kernels = [layer.kernel.value for layer in network.aligned]
    with tf.GradientTape() as tape:
        tape.watch(kernels)
        for layer in network.layers:
            if layer not in network.aligned:
                x = layer(x)
            elif isinstance(layer, layers.Dense):
                x = layer.activation(x @ kernels[network.aligned.index(layer)] + layer.bias)
            else:
                kernel = kernels[network.aligned.index(layer)]
                x = layer.activation(tf.nn.conv2d(x, kernel, layer.strides, layer.padding.upper()) + layer.bias)
        loss = tf.reduce_mean(tf.reduce_sum(tf.square(x - network.target), axis=1))
    true = tape.gradient(loss, kernels)
    assert_close(pseudo[-2], true[-1])
    assert_differs(pseudo[1], true[0], by=0.05)


@pytest.mark.parametrize("kind", ["conv", "dense"])
@pytest.mark.parametrize("rule", RULE_CONFIGS)
def test_weight_transport_is_true_backpropagation(rng, rule, kind):
    """`forward_pass(weight_transport=True)` gives the gradients of the native layers, whatever the rule."""
    network = Network(kind, RULE_CONFIGS[rule], rng)
    native = []
    for layer in network.layers:
        if layer not in network.aligned:
            native.append(layer)
            continue
        config = {k: v for k, v in layer.get_config().items() if not k.startswith(("alignment", "parameterization"))}
        copy = (keras.layers.Dense if isinstance(layer, layers.Dense) else keras.layers.Conv2D).from_config(config)
        copy.build(layer._build_shapes_dict["input_shape"])
        copy.set_weights([layer.kernel, layer.bias])
        native.append(copy)

    def gradients(stack, variables):
        with tf.GradientTape() as tape, forward_pass(weight_transport=True, regularise=False):
            x = network.inputs
            for layer in stack:
                x = layer(x, training=True)
            loss = tf.reduce_mean(tf.reduce_sum(tf.square(x - network.target), axis=1))
        return tape.gradient(loss, variables)

    ours = gradients(network.layers, [v.value for v in network.forward])
    copies = [v.value for layer in native if layer not in network.layers for v in (layer.kernel, layer.bias)]
    for actual, expected in zip(ours, gradients(native, copies), strict=True):
        assert_close(actual, expected)
