"""Residual networks against the facts of the published ones."""

import functools

import keras
import numpy as np
import pytest
from helpers import exhaustive_unless

from neural_alignment.alignments import Feedback, Symmetric
from neural_alignment.models import resnet
from neural_alignment.training import aligned_layers

# depth, version: forward parameters (kernels, batch normalisation, bias; without B), aligned layers
PUBLISHED = {
    (18, 1): (11_693_736, 22),
    (50, 1): (25_557_032, 54),
    (18, 2): (11_691_816, 22),
    (50, 2): (25_549_352, 54),
    (101, 2): (44_541_480, 105),
    (152, 2): (60_185_128, 156),
}


def repeated(initializer, shape, dtype=None, **options):
    """Returns an array of 1,009 random numbers that repeat; to draw 60 million numbers takes seconds."""
    return np.resize(np.random.default_rng(0).normal(size=1009).astype(np.float32), shape)


def forward_parameters(model):
    return sum(int(np.prod(w.shape)) for w in model.trainable_weights if w.name != "backward_kernel")


@pytest.mark.parametrize(("depth", "version"), exhaustive_unless(PUBLISHED, [(18, 1), (50, 2)]))
def test_parameters_and_layers_are_the_published_ones(monkeypatch, depth, version):
    monkeypatch.setattr(keras.initializers.VarianceScaling, "__call__", repeated)
    size = 224 if version == 1 else 299
    model = resnet(depth, version, 1000, (size, size, 3), alignment=Feedback())
    assert (forward_parameters(model), len(aligned_layers(model))) == PUBLISHED[depth, version]
    assert model.output_shape == (None, 1000)


@functools.cache
def network(version, depth=18, **options):
    """Returns a narrow network. Tests share it, so they must not change it."""
    rule = Symmetric(self_=1e-3, decay=1e-3)
    return resnet(depth, version, 10, (32, 32, 3), alignment=rule, width=4, **options)


def followed_by_relu(model):
    return {layer.name for layer in aligned_layers(model) if layer.following_activation is keras.activations.relu}


def test_relu_follows_in_version_1_the_stem_and_all_but_the_last_convolution_of_a_block():
    names = followed_by_relu(network(1))
    assert names == {"stem", *(f"group{g}_block{b}_conv1" for g in (1, 2, 3, 4) for b in (1, 2))}


def test_relu_follows_in_version_2_not_the_stem():
    names = followed_by_relu(network(2, depth=50))
    blocks = {1: 3, 2: 4, 3: 6, 4: 3}
    assert names == {f"group{g}_block{b}_conv{c}" for g, n in blocks.items() for b in range(1, n + 1) for c in (1, 2)}


@pytest.mark.parametrize(("version", "momentum"), [(1, 0.9), (2, 0.997)])
def test_batch_normalisation(version, momentum):
    model = network(version)
    norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    assert {(layer.momentum, layer.epsilon) for layer in norms} == {(momentum, 1e-5)}
    zero = {layer.name for layer in norms if not layer.gamma.numpy().any()}
    last = {f"group{g}_block{b}_conv2_norm" for g in (1, 2, 3, 4) for b in (1, 2)}
    assert zero == (last if version == 1 else set())
    assert ("group1_block1_shortcut_norm" in [layer.name for layer in norms]) is (version == 1)
    assert ("stem_norm" in [layer.name for layer in norms]) is (version == 1)


def test_version_2_projects_the_preactivated_input():
    model = network(2)
    parents = {
        name: model.get_layer(f"group2_block1_{name}_pad" if name == "conv1" else f"group2_block1_{name}").input.name
        for name in ("shortcut", "conv1")
    }
    assert parents["shortcut"] == parents["conv1"] == model.get_layer("group2_block1_input_relu").output.name


@pytest.mark.parametrize("version", [1, 2])
def test_the_bottleneck_strides_in_its_3x3_with_fixed_padding(version):
    model = network(version, depth=50)
    conv = [model.get_layer(f"group2_block1_conv{number}") for number in (1, 2, 3)]
    assert [layer.strides for layer in conv] == [(1, 1), (2, 2), (1, 1)]
    assert [layer.padding for layer in conv] == ["same", "valid", "same"]
    assert model.get_layer("group2_block1_conv2_pad").padding == ((1, 1), (1, 1))
    assert model.get_layer("group2_block1_shortcut").strides == (2, 2)
    assert model.get_layer("stem_pad").padding == ((3, 3), (3, 3))


def test_every_group_begins_with_a_projection_in_the_shallow_networks_too():
    names = [layer.name for layer in network(1, depth=34).layers]
    shortcuts = [name for name in names if name.endswith("_shortcut")]
    assert shortcuts == [f"group{group}_block1_shortcut" for group in (1, 2, 3, 4)]


def test_stems():
    imagenet, cifar = network(1), network(1, stem="cifar")
    assert imagenet.get_layer("group1_block1_conv1").input.shape[1:3] == (8, 8)
    assert cifar.get_layer("group1_block1_conv1").input.shape[1:3] == (32, 32)
    assert cifar.get_layer("stem").kernel_size == (3, 3)


def test_initial_weights():
    keras.utils.set_random_seed(1)
    model = resnet(18, 1, 1000, (224, 224, 3), alignment=Feedback())
    for name in ("group3_block2_conv1", "group4_block1_conv2"):
        layer = model.get_layer(name)
        fan_in = np.prod(layer.kernel.shape[:3])
        for kernel in (layer.kernel.numpy(), layer.backward_kernel.numpy()):
            assert kernel.var() * fan_in == pytest.approx(1.0, rel=0.02)
            # Truncated at two standard deviations of the normal that it is cut from.
            assert np.abs(kernel).max() < 2.01 / 0.8796 / np.sqrt(fan_in)
    assert model.get_layer("dense").kernel.numpy().std() == pytest.approx(0.01, rel=0.02)
    assert model.get_layer("dense").backward_kernel.numpy().std() == pytest.approx(0.01, rel=0.02)
    v2 = network(2).get_layer("dense")
    bound = np.sqrt(6 / sum(v2.kernel.shape))
    assert 0.8 * bound < np.abs(v2.kernel.numpy()).max() <= bound
    assert not v2.bias.numpy().any()


def test_weight_decay_is_on_forward_kernels_and_the_dense_bias():
    model = network(1, stem="cifar", weight_decay=1e-2)  # No other test uses these options.
    model.get_layer("dense").bias.assign(np.ones(10))
    decayed = [layer.kernel.numpy() for layer in aligned_layers(model)] + [np.ones(10)]
    assert float(sum(model.losses)) == pytest.approx(
        0.5e-2 * sum((k.astype(float) ** 2).sum() for k in decayed), rel=1e-5
    )


@pytest.mark.parametrize(
    ("options", "word"),
    [({"depth": 20}, "depth"), ({"version": 3}, "version"), ({"stem": "mnist"}, "stem"), ({"width": 0}, "width")],
)
def test_wrong_arguments_are_errors(options, word):
    arguments = {"depth": 18, "version": 1, "classes": 10, "input_shape": (32, 32, 3), **options}
    with pytest.raises(ValueError, match=f"`{word}` must be .* Received .* Example"):
        resnet(**arguments)
