"""R_l of every rule with every operation of Table 5, in value and in gradient to B, against NumPy."""

import dataclasses
import functools
import itertools
import typing
import zlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import (
    CASES,
    DENSE,
    LEARNING,
    READS_SIGNALS,
    RULE_CONFIGS,
    SAME,
    TABLE_5,
    VALID,
    assert_close,
    assert_differs,
    center_batch,
    exhaustive_unless,
    finite_difference,
    reference_regulariser,
    reference_signals,
    relu,
    standardise,
)

from neural_alignment.alignments import InputPath, LayerView, from_config, layerwise_rules
from neural_alignment.alignments.base import ActivationName
from neural_alignment.alignments.pathways import draw_noise, noise_key
from neural_alignment.errors import ConfigError
from neural_alignment.operations import ConvMap, DenseMap

SINGLE_OPTIONS = {
    "plain": {},
    **{f"noise {kind}": {"input": {"noise": kind, "stddev": 0.8}} for kind in ("normal", "uniform")},
    **{f"{path} {name}": {path: {name: True}}
       for path, names in {
           "input": ("feature_center", "feature_normalize", "batch_center"),
           "forward_output": ("bias", "relu", "batch_center", "feature_center", "feature_normalize"),
           "backward_output": ("bias", "relu", "feature_center", "feature_normalize"),
       }.items() for name in names},
}  # fmt: skip

EVERYTHING = {
    "input": {"noise": "uniform", "stddev": 1.2, "feature_center": True, "batch_center": True},
    "forward_output": {"bias": True, "relu": True, "batch_center": True, "feature_normalize": True},
    "backward_output": {"bias": True, "relu": True, "feature_center": True},
}

CENTRED = {
    "input": {"noise": "normal", "stddev": 0.8, "batch_center": True},
    "forward_output": {"bias": True, "relu": True, "batch_center": True, "feature_normalize": True},
    "backward_output": {"bias": True, "feature_center": True},
}
"""All operations with which the backward projection stays linear in B."""

OPTIONS = {**SINGLE_OPTIONS, **TABLE_5, "everything": EVERYTHING, "centred": CENTRED}

VARIANTS = {
    **{rule: {} for rule in READS_SIGNALS},
    "information sparse": {"sparse_decay": True},
    "information backward": {"reconstruct_backward": True},
    "information compare": {"compare_reconstruction": True},
    "information compare backward": {"compare_reconstruction": True, "reconstruct_backward": True},
    "information sparse backward": {"sparse_decay": True, "reconstruct_backward": True},
}

STEP, FIRST_EXAMPLE = 7, 8


def config_of(variant, options):
    """Returns the configuration of a variant of a rule with some path operations."""
    return {**RULE_CONFIGS[variant.split()[0]], **VARIANTS.get(variant, {}), **options}


def view_of(case, arrays, activation=tf.nn.relu, **changes):
    """Returns the layer view that the library's layer would hand to its rule."""
    linear = case.linear
    values = {
        "linear_map": DenseMap() if case is DENSE else ConvMap(linear.strides, linear.padding),
        "inputs": tf.constant(arrays["x"]),
        "forward_kernel": tf.constant(arrays["w"]),
        "backward_kernel": tf.constant(linear.layout(arrays["b"])),
        "bias": tf.constant(arrays["bias"]),
        "activation": activation,
        "projection": tf.constant(linear.project(arrays["x"], arrays["w"])),
        "name": case.name,
        "step": STEP,
        "first_example": FIRST_EXAMPLE,
    }
    return LayerView(**{**values, **changes})


def value_and_gradient(config, view):
    """Returns R_l of the library and its gradient to B, in the layout of W."""
    with tf.GradientTape() as tape:
        tape.watch(view.backward_kernel)
        value = from_config(config)(view)
    gradient = tape.gradient(value, view.backward_kernel)
    return value.numpy(), None if gradient is None else view.linear_map.transpose(gradient)


def with_noise(config, case, arrays):
    """Returns the arrays with the very noise of the library in place of the input, where the rule asks for it."""
    options = config.get("input", {})
    if "noise" not in options:
        return arrays
    key = noise_key(config.get("seed", 0), case.name, STEP)
    return {**arrays, "x": draw_noise(InputPath(**options), tf.constant(arrays["x"]), key, FIRST_EXAMPLE).numpy()}


def expected(config, case, arrays, activation=relu, **options):
    """Returns R_l of the NumPy reference and its gradient to B by central differences."""
    arrays = with_noise(config, case, arrays)

    def regulariser(b):
        return reference_regulariser(
            config, case.linear, arrays["x"], arrays["w"], b, arrays["bias"], activation, **options
        )

    return regulariser(arrays["b"]), finite_difference(regulariser, arrays["b"])


def turn(variant, options):
    """Returns a number that alternates along each row and each column of the product of variants and options."""
    return list(VARIANTS).index(variant) + list(OPTIONS).index(options)


@pytest.mark.parametrize(
    ("options", "variant", "case"),
    exhaustive_unless(
        itertools.product(OPTIONS, VARIANTS, ["dense", "conv"]),
        lambda each: (turn(each[1], each[0]) % 2 == 0) == (each[2] == "dense"),
    ),
)
def test_value_and_gradient_agree_with_numpy(variant, options, case):
    """Each pair of a variant and options on the dense map and on one of the two convolutions; often on one of these."""
    case = DENSE if case == "dense" else (SAME, VALID)[turn(variant, options) // 2 % 2]
    arrays = case.arrays(np.random.default_rng(zlib.crc32(f"{variant}{options}{case.name}".encode())))
    config = config_of(variant, OPTIONS[options])
    value, gradient = value_and_gradient(config, view_of(case, arrays))
    expected_value, expected_gradient = expected(config, case, arrays)
    assert_close(value, expected_value)
    assert_close(gradient, expected_gradient, "finite difference")


@pytest.mark.parametrize("case", [DENSE, SAME], ids=lambda case: case.name)
@pytest.mark.parametrize("variant", VARIANTS)
def test_without_examples_only_the_decay_of_b_is_left(rng, variant, case):
    """As on a replica that has no part of a small last batch."""
    arrays = case.arrays(rng)
    empty = {**arrays, "x": arrays["x"][:0]}
    projection = tf.constant(case.linear.project(arrays["x"], arrays["w"])[:0])
    view = view_of(case, arrays, inputs=tf.constant(empty["x"]), projection=projection)
    for options in (TABLE_5["WM+AD+OPS"], EVERYTHING, CENTRED):
        config = config_of(variant, options)
        decay = 0.0 if config.get("sparse_decay") else config.get("decay", 0.0)
        value, gradient = value_and_gradient(config, view)
        assert_close(value, decay * np.sum(arrays["b"] ** 2) / 2)
        assert_close(gradient, decay * arrays["b"])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("rule", [rule for rule in RULE_CONFIGS if rule not in READS_SIGNALS])
def test_rules_of_only_the_kernels_agree_with_numpy(rng, rule, case):
    arrays = case.arrays(rng)
    value, gradient = value_and_gradient(RULE_CONFIGS[rule], view_of(case, arrays))
    expected_value, expected_gradient = expected(RULE_CONFIGS[rule], case, arrays)
    assert_close(value, expected_value)
    if rule not in LEARNING:
        assert gradient is None
    else:
        assert_close(gradient, expected_gradient, "finite difference")


# `update_forward`: R moves W too.

LEARNING_KERNEL_RULES = [rule for rule in LEARNING if rule not in READS_SIGNALS]
"""Rules with an R of only the kernels."""


def both_gradients(config, view):
    """Returns R_l of the library and its gradients to B, in the layout of W, and to W."""
    kernels = [view.backward_kernel, view.forward_kernel]
    with tf.GradientTape() as tape:
        tape.watch(kernels)
        value = from_config(config)(dataclasses.replace(view, update_forward=True))
    backward, forward = tape.gradient(value, kernels)
    return value.numpy(), view.linear_map.transpose(backward), forward


def assert_both_gradients_agree(config, case, arrays, **options):
    """Compares value and gradients to W and B with the NumPy reference, with and without the layer's projection."""
    arrays, view = with_noise(config, case, arrays), view_of(case, arrays)
    config = {**config, "update_forward": True}
    tail = (arrays["bias"], relu)
    value, backward, forward = both_gradients(config, view)
    of_b = functools.partial(_regulariser_at, config, case, arrays, tail, options, "b")
    of_w = functools.partial(_regulariser_at, config, case, arrays, tail, options, "w")
    assert_close(value, of_b(arrays["b"]))
    assert_close(backward, finite_difference(of_b, arrays["b"]), "finite difference")
    assert_close(forward, finite_difference(of_w, arrays["w"]), "finite difference")
    again = both_gradients(config, dataclasses.replace(view, projection=None))
    assert_close(again[2], forward)


def _regulariser_at(config, case, arrays, tail, options, name, kernel):
    """Returns R_l of the NumPy reference with one kernel replaced."""
    kernels = {**arrays, name: kernel}
    return reference_regulariser(config, case.linear, arrays["x"], kernels["w"], kernels["b"], *tail, **options)


@pytest.mark.parametrize(
    ("options", "variant"),
    exhaustive_unless(itertools.product(OPTIONS, VARIANTS), lambda each: turn(each[1], each[0]) % 2 == 0),
)
def test_with_update_forward_both_gradients_agree_with_numpy(variant, options):
    case = DENSE if options in SINGLE_OPTIONS else VALID
    arrays = case.arrays(np.random.default_rng(zlib.crc32(f"{variant}{options} both".encode())))
    assert_both_gradients_agree(config_of(variant, OPTIONS[options]), case, arrays)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("variant", [*VARIANTS, *LEARNING_KERNEL_RULES])
def test_with_update_forward_both_gradients_agree_on_every_map(rng, variant, case):
    assert_both_gradients_agree(config_of(variant, {}), case, case.arrays(rng))


@pytest.mark.parametrize(
    ("variant", "options"),
    [("kolen_pollack", {}), ("symmetric", {}), ("activation", {}), ("information sparse", {})],
)
def test_with_update_forward_decay_and_sparse_have_a_half_for_w(rng, variant, options):
    """Without these halves R's gradient of W would have amp, null and self only."""
    arrays = SAME.arrays(rng)
    config = config_of(variant, options)
    _, _, forward = both_gradients({**config, "update_forward": True}, view_of(SAME, arrays))
    of_w = functools.partial(_regulariser_at, config, SAME, arrays, (arrays["bias"], relu), {}, "w")
    assert_differs(forward, finite_difference(of_w, arrays["w"]), by=0.1)


def test_with_update_forward_inputs_and_bias_stay_behind_stop_gradient(rng):
    arrays = SAME.arrays(rng)
    config = {**config_of("information sparse", EVERYTHING), "update_forward": True}
    fixed = [tf.constant(arrays["x"]), tf.constant(arrays["bias"])]
    with tf.GradientTape() as tape:
        tape.watch(fixed)
        view = view_of(SAME, arrays, inputs=fixed[0], bias=fixed[1], update_forward=True)
        value = from_config(config)(view)
    assert tape.gradient(value, fixed) == [None, None]


def test_every_rule_that_learns_has_update_forward_and_no_other():
    assert {name for name in RULE_CONFIGS if "update_forward" in layerwise_rules()[name].model_fields} == set(LEARNING)
    with pytest.raises(ConfigError, match=r"alignment.*update_forward"):
        from_config({"rule": "feedback", "update_forward": True})


# `activation`: another nonlinearity in place of the one that follows the layer.

NUMPY_ACTIVATIONS = {"relu": relu, "tanh": np.tanh, "sigmoid": lambda x: 1 / (1 + np.exp(-x))}


@pytest.mark.parametrize("following", [None, tf.nn.relu], ids=["linear", "relu"])
@pytest.mark.parametrize("name", NUMPY_ACTIVATIONS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_activation_overrides_the_nonlinearity_that_follows(rng, variant, name, following):
    """Also where none follows, as in the published code."""
    arrays = DENSE.arrays(rng)
    on = {"forward_output": {"relu": True}, "backward_output": {"relu": True}}
    config = {**config_of(variant, on), "activation": name}
    value, gradient = value_and_gradient(config, view_of(DENSE, arrays, activation=following))
    expected_value, expected_gradient = expected(config, DENSE, arrays, activation=NUMPY_ACTIVATIONS[name])
    assert_close(value, expected_value)
    assert_close(gradient, expected_gradient, "finite difference")


@pytest.mark.parametrize("output", ["forward_output", "backward_output"])
def test_activation_acts_on_the_outputs_that_ask_for_it(rng, output):
    arrays = DENSE.arrays(rng)
    config = {**config_of("activation", {output: {"relu": True}}), "activation": "tanh"}
    value, _ = value_and_gradient(config, view_of(DENSE, arrays))
    assert_close(value, expected(config, DENSE, arrays, activation=np.tanh)[0])
    assert_differs(value, expected(config, DENSE, arrays, activation=relu)[0])


def test_every_activation_keeps_the_shape():
    x = tf.constant(np.random.default_rng(12).normal(size=(3, 4)))
    for name in typing.get_args(ActivationName):
        assert keras.activations.get(name)(x).shape == x.shape, name


def test_activation_without_an_output_that_uses_it_is_refused():
    with pytest.raises(ConfigError, match=r"alignment\.activation: must be left out without `relu: true`"):
        from_config({**RULE_CONFIGS["activation"], "activation": "tanh"})


def test_every_option_of_the_three_paths_is_tried_alone():
    """A new operation must get its own row in `SINGLE_OPTIONS`."""
    from neural_alignment.alignments import BackwardOutput, ForwardOutput

    tried = {(path, name) for options in SINGLE_OPTIONS.values() for path, names in options.items() for name in names}
    paths = {"input": InputPath, "forward_output": ForwardOutput, "backward_output": BackwardOutput}
    assert tried == {(path, name) for path, kind in paths.items() for name in kind.model_fields}


@pytest.mark.parametrize("options", [o for o in SINGLE_OPTIONS if o not in ("plain",)])
def test_every_option_changes_the_gradient(options):
    """No option is ignored: each gives B another gradient than the plain rule."""
    config = {**RULE_CONFIGS["information"], "sparse_decay": True}
    arrays = SAME.arrays(np.random.default_rng(5))
    _, plain = value_and_gradient(config, view_of(SAME, arrays))
    _, changed = value_and_gradient({**config, **SINGLE_OPTIONS[options]}, view_of(SAME, arrays))
    assert_differs(changed, plain)


@pytest.mark.parametrize(
    ("options", "variant", "case"),
    exhaustive_unless(
        itertools.product(["plain", "WM", "WM+AD+OPS", "IA", "everything"], VARIANTS, CASES),
        lambda each: each[2] is CASES[turn(each[1], each[0]) % 3],
    ),
    ids=lambda value: getattr(value, "name", value),
)
def test_r_has_no_gradient_to_inputs_w_or_bias(variant, options, case):
    arrays = case.arrays(np.random.default_rng(1))
    config = config_of(variant, OPTIONS[options])
    arrays["b"] = case.linear.layout(arrays["b"])
    sources = {name: tf.constant(arrays[key]) for name, key in
               {"inputs": "x", "forward_kernel": "w", "bias": "bias", "backward_kernel": "b"}.items()}  # fmt: skip
    with tf.GradientTape() as tape:
        tape.watch(list(sources.values()))
        view = view_of(case, arrays, **sources, projection=None)
        value = from_config(config)(view)
    gradients = tape.gradient(value, sources)
    assert gradients.pop("backward_kernel") is not None
    assert set(gradients.values()) == {None}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_projection_of_the_layer_is_only_a_saving(variant):
    arrays = SAME.arrays(np.random.default_rng(2))
    config = config_of(variant, {"forward_output": {"bias": True, "relu": True}})
    given = value_and_gradient(config, view_of(SAME, arrays))
    absent = value_and_gradient(config, view_of(SAME, arrays, projection=None))
    assert_close(given[0], absent[0])
    assert_close(given[1], absent[1])


@pytest.mark.parametrize("variant", VARIANTS)
def test_relu_does_nothing_where_no_nonlinearity_follows(variant):
    arrays = SAME.arrays(np.random.default_rng(3))
    on = {"forward_output": {"relu": True}, "backward_output": {"relu": True}}
    linear, _ = value_and_gradient(config_of(variant, {}), view_of(SAME, arrays, activation=None))
    asked, _ = value_and_gradient(config_of(variant, on), view_of(SAME, arrays, activation=None))
    rectified, _ = value_and_gradient(config_of(variant, on), view_of(SAME, arrays))
    assert_close(asked, linear)
    assert_differs(rectified, linear)


def test_bias_does_nothing_where_the_layer_has_none():
    arrays = SAME.arrays(np.random.default_rng(3))
    on = {"forward_output": {"bias": True}, "backward_output": {"bias": True}}
    plain, _ = value_and_gradient(config_of("activation", {}), view_of(SAME, arrays, bias=None))
    asked, _ = value_and_gradient(config_of("activation", on), view_of(SAME, arrays, bias=None))
    assert asked == plain


def test_feature_center_changes_nothing_beside_feature_normalize():
    arrays = SAME.arrays(np.random.default_rng(4))
    for path in ("input", "forward_output", "backward_output"):
        normalised = config_of("activation", {path: {"feature_normalize": True}})
        both = config_of("activation", {path: {"feature_normalize": True, "feature_center": True}})
        assert_close(
            value_and_gradient(normalised, view_of(SAME, arrays))[0],
            value_and_gradient(both, view_of(SAME, arrays))[0],
        )


# Near misses: each is an implementation with one mistake, which a test must detect.


def centred_forward_input(config, linear, x, w, b, bias, activation):
    """The mistake: batch centring acts on the input of the forward path too."""
    signals = reference_signals(config, linear, x, w, b, bias, activation)
    wrong = reference_signals(config, linear, center_batch(x), w, b, bias, activation)
    return {**signals, "forward": wrong["forward"]}


def standardised_before_reconstruction(config, linear, x, w, b, bias, activation):
    """The mistake: the reconstruction is made from the standardised projection."""
    signals = reference_signals(config, linear, x, w, b, bias, activation)
    out = config["forward_output"]
    wrong = standardise(linear.reconstruct(signals["forward"], b, x.shape), out)
    return {**signals, "forward_reconstruction": wrong}


def bias_after_relu(config, linear, x, w, b, bias, activation):
    """The mistake: the bias is added after the nonlinearity."""
    signals = reference_signals(config, linear, x, w, b, None, activation)
    return {**signals, "forward": signals["forward"] + bias}


def relu_after_standardising(config, linear, x, w, b, bias, activation):
    """The mistake: the projection is centred before the nonlinearity."""
    signals = reference_signals(config, linear, x, w, b, bias, None)
    return {**signals, "forward": activation(signals["forward"])}


def space_averaged(config, linear, x, w, b, bias, activation):
    """The mistake: the mean over space in place of the sum."""
    signals = reference_signals(config, linear, x, w, b, bias, activation)
    space = np.sqrt(signals["forward"].shape[1] * signals["forward"].shape[2])
    return {name: signal / space for name, signal in signals.items()}


def centred_per_channel(config, linear, x, w, b, bias, activation):
    """The mistake: feature-wise means per channel, or only over space."""
    signals = reference_signals({**config, "forward_output": {}}, linear, x, w, b, bias, activation)
    forward = signals["forward"]
    return {**signals, "forward": forward - forward.mean(axis=(1, 2), keepdims=True)}


def centred_over_batch_and_space(config, linear, x, w, b, bias, activation):
    """The mistake: batch-wise means over space too, as batch normalisation takes them."""
    signals = reference_signals({**config, "forward_output": {}}, linear, x, w, b, bias, activation)
    forward = signals["forward"]
    return {**signals, "forward": forward - forward.mean(axis=(0, 1, 2))}


@pytest.mark.parametrize(
    ("mistake", "variant", "options"),
    [
        (centred_forward_input, "weight_mirror", {"input": {"batch_center": True}, "forward_output": {"relu": True}}),
        (standardised_before_reconstruction, "information", {"forward_output": {"feature_center": True}}),
        (bias_after_relu, "weight_mirror", {"forward_output": {"bias": True, "relu": True}}),
        (relu_after_standardising, "weight_mirror", {"forward_output": {"relu": True, "feature_center": True}}),
        (space_averaged, "weight_mirror", {}),
        (space_averaged, "activation", {}),
        (centred_per_channel, "weight_mirror", {"forward_output": {"feature_center": True}}),
        (centred_over_batch_and_space, "weight_mirror", {"forward_output": {"batch_center": True}}),
    ],
    ids=lambda value: getattr(value, "__name__", None) or (value if isinstance(value, str) else ""),
)
def test_a_near_miss_gives_another_gradient(mistake, variant, options):
    arrays = SAME.arrays(np.random.default_rng(6))
    config = config_of(variant, options)
    value, gradient = value_and_gradient(config, view_of(SAME, arrays))
    right_value, right_gradient = expected(config, SAME, arrays)
    wrong_value, wrong_gradient = expected(config, SAME, arrays, signals=mistake)
    assert_close(value, right_value)
    assert_close(gradient, right_gradient, "finite difference")
    assert_differs(value, wrong_value)
    assert_differs(gradient, wrong_gradient)


@pytest.mark.parametrize(
    ("variant", "weight"),
    [("weight_mirror", "decay"), ("information", "null"), ("activation", "sparse"), ("symmetric", "decay")],
)
def test_the_factor_one_half_of_table_1_is_there(variant, weight):
    """Without it a weight would count twice."""
    arrays = SAME.arrays(np.random.default_rng(7))
    config = config_of(variant, {})
    _, gradient = value_and_gradient(config, view_of(SAME, arrays))
    _, doubled = expected({**config, weight: 2 * config[weight]}, SAME, arrays)
    assert_differs(gradient, doubled, by=0.02)


def test_compare_reconstruction_reads_the_input_without_batch_centring():
    arrays = DENSE.arrays(np.random.default_rng(8))
    options = {"input": {"feature_center": True, "batch_center": True}}
    config = config_of("information compare", options)

    def centred(*arguments):
        signals = reference_signals(*arguments)
        return {**signals, "input": signals["backward_input"]}

    value, _ = value_and_gradient(config, view_of(DENSE, arrays))
    assert_close(value, expected(config, DENSE, arrays)[0])
    assert_differs(value, expected(config, DENSE, arrays, signals=centred)[0])


def test_backward_reconstruction_is_standardised_with_the_backward_options():
    arrays = SAME.arrays(np.random.default_rng(9))
    config = config_of("information backward", {"backward_output": {"feature_normalize": True}})

    def not_standardised(*arguments):
        signals = reference_signals(*arguments)
        raw = reference_signals({**arguments[0], "backward_output": {}}, *arguments[1:])
        return {**signals, "backward_reconstruction": raw["backward_reconstruction"]}

    value, _ = value_and_gradient(config, view_of(SAME, arrays))
    assert_close(value, expected(config, SAME, arrays)[0])
    assert_differs(value, expected(config, SAME, arrays, signals=not_standardised)[0])


def test_symmetric_with_equal_weights_is_at_rest_where_b_is_w(rng):
    """Section 5: B goes to W^T and not to W^T / 2."""
    arrays = DENSE.arrays(rng)
    config = {"rule": "symmetric", "self_": 2e-3, "decay": 2e-3}
    _, at_w = value_and_gradient(config, view_of(DENSE, {**arrays, "b": arrays["w"]}))
    _, at_half = value_and_gradient(config, view_of(DENSE, {**arrays, "b": arrays["w"] / 2}))
    assert_close(at_w, np.zeros_like(arrays["w"]))
    assert_close(at_half, -1e-3 * arrays["w"])


def test_activation_with_equal_weights_is_at_rest_where_b_is_w(rng):
    arrays = SAME.arrays(rng)
    config = {"rule": "activation", "amp": 2e-3, "sparse": 2e-3}
    _, at_w = value_and_gradient(config, view_of(SAME, {**arrays, "b": arrays["w"]}))
    _, elsewhere = value_and_gradient(config, view_of(SAME, arrays))
    assert np.abs(at_w).max() < 1e-12 < np.abs(elsewhere).max()


@pytest.mark.parametrize("variant", VARIANTS)
def test_float32_and_half_precision_agree_with_float64_within_their_precision(variant):
    arrays = SAME.arrays(np.random.default_rng(10))
    config = config_of(variant, {k: v for k, v in TABLE_5["IA"].items() if k != "input"})
    exact = expected(config, SAME, arrays)[1]
    for dtype in ("float32", "bfloat16"):
        tensors = {name: tf.cast(arrays[key], dtype) for name, key in
                   {"inputs": "x", "forward_kernel": "w", "bias": "bias", "backward_kernel": "b"}.items()}  # fmt: skip
        _, gradient = value_and_gradient(config, view_of(SAME, arrays, **tensors, projection=None))
        limit = {"float32": 1e-5, "bfloat16": 5e-2}[dtype]
        error = np.linalg.norm(tf.cast(gradient, tf.float64) - exact) / np.linalg.norm(exact)
        assert error < limit, (dtype, error)


def test_the_greek_letters_of_the_published_code_are_not_needed():
    """A weight c on decay, sparse or null in the published code is 2c here: R = c ||B||^2 there."""
    arrays = DENSE.arrays(np.random.default_rng(11))
    published = functools.reduce(lambda total, entry: total + 0.3 * entry**2, arrays["b"].ravel(), 0.0)
    value, _ = value_and_gradient({"rule": "kolen_pollack", "decay": 2 * 0.3}, view_of(DENSE, arrays))
    assert_close(value, published)
