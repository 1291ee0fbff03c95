"""Requirements of a TPU: XLA compiles steps with static shapes; mixed precision has R and angles in float32."""

import contextlib
import functools
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import (
    LEARNING,
    RULE_CONFIGS,
    TABLE_5,
    TIED,
    ConvReference,
    DenseReference,
    assert_close,
    assert_differs,
    exhaustive_unless,
    finite_difference,
    reference_regulariser,
    relu,
)

from neural_alignment import config as configuration
from neural_alignment import models
from neural_alignment.alignments import LayerView, Symmetric, forward_pass, from_config, networkwise_rules
from neural_alignment.alignments.pathways import InputPath, draw_noise, noise_key
from neural_alignment.training import AlignedModel, aligned_layers, probes, setup
from optimizers import SWATS, Momentum, MultiOptimizer, Noisy, RAdam, RateScheduler, WarmupAndDrops

BATCH, CLASSES, SHAPE, STEPS, SEED = 8, 3, (6, 6, 2), 5, 4
COLUMNS = {
    name: {**RULE_CONFIGS["information" if name == "IA" else "weight_mirror"], **path, "seed": SEED}
    for name, path in TABLE_5.items()
}
RULES = {**RULE_CONFIGS, **COLUMNS, **{rule: {"rule": rule} for rule in networkwise_rules()}}


def data(steps=STEPS, shape=SHAPE):
    """Returns images and labels of some steps, `(steps, batch, ...)`, that a network can separate."""
    rng = np.random.default_rng(5)
    y = rng.integers(0, CLASSES, size=(steps, BATCH))
    x = 0.5 * rng.normal(size=(steps, BATCH, *shape)) + rng.normal(size=(CLASSES, *shape))[y]
    return x.astype(keras.config.floatx()), y


def network(config, name="convnet", shape=SHAPE, **options):
    """Returns a model, by default a convolution with batch normalisation and a dense layer, not compiled."""
    keras.utils.set_random_seed(1)
    options = options or {"filters": [4]}
    decay = config["decay"] if config["rule"] in TIED else 1e-3
    model = models.build(name, CLASSES, shape, from_config(config), weight_decay=decay, **options)
    return AlignedModel(model.input, model.output)


def compiled(model, config, scheduler=None, forward=None, backward=None, **options):
    """Compiles a model and builds its optimizers."""
    optimizers = [forward or Momentum(WarmupAndDrops(0.05, 2, warmup_epochs=1, drop_epochs=(2,)))]
    if config["rule"] not in TIED:
        optimizers.append(backward or Momentum(0.01))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(MultiOptimizer(optimizers, scheduler), loss, metrics=["accuracy"], **options)
    return model


def train(config, jit_compile, optimizers=dict, model=None, **options):
    """Trains and returns all variables, optimizer slots included, and what `fit` reports."""
    model = compiled(network(config, **(model or {})), config, jit_compile=jit_compile, **optimizers(), **options)
    history = model.fit(tf.data.Dataset.from_tensor_slices(data()), verbose=0, shuffle=False).history
    return [v.numpy() for v in [*model.variables, *model.optimizer.variables] if v.dtype != "string"], history


# XLA.


def agree(config, **options):
    """Fails unless XLA and the TensorFlow graph give the same final weights; returns the results of both."""
    graph, history = train(config, False, **options)
    xla, reported = train(config, True, **options)
    for expected, actual in zip(graph, xla, strict=True):
        assert_close(actual, expected)
    for name, values in history.items():
        assert_close(np.array(reported[name]), np.array(values), "float32")
    return history


def hlo(function, *arguments):
    """Returns a function compiled by XLA, which raises an error rather than fall back."""
    compiled_function = tf.function(function, jit_compile=True, autograph=False)
    return compiled_function.experimental_get_compiler_ir(*arguments)(stage="hlo")


def step_hlo(model, shape=SHAPE):
    """Returns the program that XLA makes of one training step: of the function that `fit` and a run compile."""
    x, y = data(1, shape)
    return hlo(model._step, (tf.constant(x[0]), tf.constant(y[0])))


def dynamic(text):
    """Returns the sizes in `text` that are known as upper bounds only, written `f32[<=8]`."""
    return re.findall(r"<=\d+", text)


ALTERNATING = RateScheduler(2, alternation=1)
DELAYED = RateScheduler(1, delay_epochs=2, alternation=1)


PARTS = ("WM", "WM+AD", "weight_mirror")
"""Rules that are parts of WM+AD+OPS."""
FIRST = ("IA", "kolen_pollack", "align_ada")
"""One rule of each kind: R of signals, R of kernels with one optimizer, and a frozen network."""
WHOLE = [rule for rule in RULES if rule not in PARTS]
every_rule = pytest.mark.parametrize("rule", exhaustive_unless(WHOLE, FIRST))


@pytest.mark.parametrize("rule", exhaustive_unless(WHOLE, ("IA",)))
def test_every_rule_ends_under_xla_where_it_does_in_a_graph(float64, rule):
    """After a delay J and R take turns. Without R, or if one update moves W and B, each step has both.

    With symmetric alignment each step after the delay has both, too. Rules of the kernels need no convolution, and
    IA has none because information has one.
    """
    turns = rule in {*LEARNING, *COLUMNS} - {*TIED}
    delayed = RateScheduler(1, delay_epochs=2) if rule == "symmetric" else DELAYED
    model = {"name": "fc", "hidden": [4]} if rule in ("symmetric", *TIED, "IA") else None
    history = agree(RULES[rule], scheduler=delayed if turns else None, model=model)
    assert (history["regulariser"] != [0.0]) == (rule in {*LEARNING, *COLUMNS})


@every_rule
def test_the_step_of_every_rule_compiles_with_static_shapes(rule):
    text = step_hlo(compiled(network(RULES[rule]), RULES[rule]))
    assert not dynamic(text)
    assert " conditional(" not in text


@pytest.mark.exhaustive
def test_alternating_steps_of_minibatches_compile_with_static_shapes():
    rule = RULES["WM+AD+OPS"]
    text = step_hlo(compiled(network(rule), rule, ALTERNATING, minibatches=2))
    assert not dynamic(text)
    assert " conditional(" in text
    assert " while(" in text


def test_a_shape_that_depends_on_the_data_would_be_seen():
    x = tf.constant([1.0, -1.0])
    assert dynamic(hlo(lambda x: tf.boolean_mask(x, x > 0), x))
    assert not dynamic(hlo(lambda x: tf.where(x > 0, x, 0.0), x))


class HostRule(Symmetric):
    """Symmetric alignment that asks Python for something on the way."""

    def __call__(self, view):
        """Returns R_l."""
        return super().__call__(view) * tf.numpy_function(lambda: np.float32(1.0), [], tf.float32)


@pytest.mark.parametrize("jit_compile", [False, True], ids=["graph", "xla"])
def test_a_step_that_xla_cannot_compile_is_refused(jit_compile):
    """So that a run with `jit_compile` is known to be compiled, whole."""
    x, y = data(1)
    model = models.build("fc", CLASSES, SHAPE, HostRule(self_=0.1, decay=0.1), hidden=[])
    model = compiled(AlignedModel(model.input, model.output), RULES["symmetric"], jit_compile=jit_compile)
    refused = pytest.raises(tf.errors.InvalidArgumentError, match=r"unsupported operations when trying.*PyFunc")
    with refused if jit_compile else contextlib.nullcontext():
        model.fit(x[0], y[0], verbose=0)


VARIANTS = {
    "minibatches, with clipped and noisy updates": {
        "optimizers": lambda: {
            "forward": Noisy(Momentum(0.1, global_clipnorm=0.3), 1e-3, seed=3),
            "backward": keras.optimizers.Adam(0.02, global_clipnorm=0.3),
        },
        "minibatches": 2,
    },
    "several steps per execution": {"steps_per_execution": 2, "scheduler": ALTERNATING},
    "a change of phase and rectified steps": {
        "optimizers": lambda: {
            "forward": SWATS(0.02, epsilon=0.5, rectified=True),
            "backward": RAdam(0.02, beta_2=0.9),
        },
        "scheduler": RateScheduler(2, loss_rates=(WarmupAndDrops(0.5, 2, 1, (2,)), 2.0)),
    },
}


@pytest.mark.exhaustive
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_way_of_stepping_ends_under_xla_where_it_does_in_a_graph(float64, variant):
    """Every optimizer does in tests/test_optimization.py."""
    agree(RULES["activation"], model={"name": "fc", "hidden": []}, **VARIANTS[variant])


@pytest.mark.exhaustive
def test_the_step_of_residual_blocks_compiles_with_static_shapes():
    """With shortcuts that are the identity, a convolution, and a convolution with stride 2."""
    shape, rule = (16, 16, 3), RULES["activation"]
    whole = models.build("resnet", CLASSES, shape, from_config(rule), depth=18, version=1, stem="cifar", width=4)
    outputs = keras.layers.GlobalAveragePooling2D()(whole.get_layer("group2_block1_relu").output)
    model = compiled(AlignedModel(whole.input, outputs), rule)
    assert not dynamic(step_hlo(model, shape))


def test_evaluation_and_the_measures_compile_with_static_shapes():
    model = compiled(network(RULES["symmetric"]), RULES["symmetric"])
    x, y = (tf.constant(array[0]) for array in data(1))
    assert not dynamic(hlo(lambda x, y: model.test_step((x, y)), x, y))
    measure = functools.partial(probes.measure, model)
    xla = tf.function(measure, jit_compile=True, autograph=False)
    assert not dynamic(xla.experimental_get_compiler_ir(x, y)(stage="hlo"))
    compiled_values = xla(x, y)
    for name, row in measure(x, y).items():
        for layer, value in row.items():
            assert_close(compiled_values[name][layer], value, "float32")


# Mixed precision.


@pytest.fixture
def keep_tensor_float_32():
    """Restores the precision of the process after a run has set it."""
    before = tf.config.experimental.tensor_float_32_execution_enabled()
    yield
    tf.config.experimental.enable_tensor_float_32_execution(before)


def mixed(rule, backward=None, **runtime):
    """Returns a model with `runtime.precision: mixed_bfloat16`, compiled as a run compiles it."""
    optimizers = {"forward": {"name": "momentum", "learning_rate": 0.02}}
    tied = rule["rule"] in TIED
    if rule["rule"] in LEARNING and not tied:
        optimizers["backward"] = backward or {"name": "momentum", "learning_rate": 0.01}
    plan = configuration.parse(
        {
            "epochs": 1,
            "batch_size": BATCH,
            "data": {"source": "digits"},
            "model": {"name": "convnet", "filters": [4]},
            "alignment": rule,
            "weight_decay": rule["decay"] if tied else 0.0,
            "optimization": optimizers,
            "runtime": {"precision": "mixed_bfloat16", **runtime},
        }
    )
    model = setup.build_model(plan, CLASSES, SHAPE, steps_per_epoch=10)
    setup.compile_model(model, plan, CLASSES, steps_per_epoch=10)
    return model


def record(model, x):
    """Runs a model forward; returns the inputs and outputs of its aligned layers, R_l, and R's gradients to B."""
    seen = {}

    def probe(layer, inputs, outputs):
        seen[layer.name] = inputs, outputs
        return outputs

    with tf.GradientTape() as tape:
        with forward_pass(step=0, probe=probe) as state:
            model(x, training=True)
        total = sum(state.losses.values())
    kernels = {name: model.get_layer(name).connection().stored_backward_kernel.value for name in state.losses}
    return seen, state.losses, tape.gradient(total, kernels) if kernels else {}


def account(layer, inputs):
    """Returns the inputs of the float64 computation of R_l: map, input, W, B, bias and nonlinearity."""
    linear = DenseReference() if inputs.ndim == 2 else ConvReference(padding="SAME")
    options = getattr(layer.alignment, "input", InputPath())
    if options.noise is not None:
        inputs = draw_noise(options, tf.zeros(inputs.shape), noise_key(SEED, layer.name, 0)).numpy()
    bias = None if layer.bias is None else np.array(layer.bias.numpy(), np.float64)
    w, b = (each.numpy().astype(np.float64) for each in (layer.kernel, layer.connection().stored_backward_kernel))
    b = linear.layout(b)
    return linear, inputs.astype(np.float64), w, b, bias, relu if layer.name == "conv1" else None


def in_bfloat16(layer, inputs):
    """Returns the gradient to B, in the layout of W, of an R that reads its signals and kernels in bfloat16."""
    stored = layer.connection().stored_backward_kernel
    half = [tf.cast(value, tf.bfloat16) for value in (inputs, layer.kernel.value, stored.value)]
    bias = None if layer.bias is None else tf.cast(layer.bias.value, tf.bfloat16)
    linear_map = layer.linear_map()
    with tf.GradientTape() as tape:
        tape.watch(half[2])
        view = LayerView(linear_map, *half, bias, layer.following_activation, name=layer.name)
        regulariser = layer.alignment(view)
    return tf.cast(linear_map.transpose(tape.gradient(regulariser, half[2])), tf.float32).numpy()


@pytest.mark.parametrize(
    "rule", exhaustive_unless([*LEARNING, *COLUMNS], ("symmetric", "activation", "kolen_pollack", "WM+AD+OPS", "IA"))
)
def test_r_and_its_gradient_are_float32_where_the_network_is_bfloat16(keep_tensor_float_32, rng, rule):
    model = mixed(RULES[rule])
    model.get_layer("dense").bias.assign(rng.normal(size=CLASSES))
    seen, regularisers, gradients = record(model, data(1)[0][0])
    for layer in aligned_layers(model):
        inputs, outputs = seen[layer.name]
        assert inputs.dtype == outputs.dtype == tf.bfloat16
        linear, *arrays = account(layer, tf.cast(inputs, tf.float32).numpy())
        regulariser, gradient = regularisers[layer.name], linear.layout(gradients[layer.name].numpy())
        assert regulariser.dtype == gradients[layer.name].dtype == tf.float32

        def reference(b, linear=linear, arrays=arrays):
            return reference_regulariser(RULES[rule], linear, *arrays[:2], b, *arrays[3:])

        assert_close(regulariser, reference(arrays[2]))
        assert_close(gradient, finite_difference(reference, arrays[2]))
        assert_differs(in_bfloat16(layer, inputs), gradient)


def gradients_of_j(model, x, y):
    """Returns J's gradients to W of the aligned layers, by their names."""
    kernels = {layer.name: layer.kernel.value for layer in aligned_layers(model)}
    with tf.GradientTape() as tape:
        with forward_pass(step=0, regularise=False):
            outputs = model(x, training=True)
        loss = model.compute_loss(x=x, y=y, y_pred=outputs)
    return tape.gradient(loss, kernels)


def relative_error(value, exact):
    value, exact = (np.asarray(tf.cast(each, tf.float64)) for each in (value, exact))
    return np.linalg.norm(value - exact) / np.linalg.norm(exact)


def test_r_in_bfloat16_would_be_less_exact_than_j_where_b_is_near_w(keep_tensor_float_32, rng):
    """There the terms of activation alignment cancel, but not the errors of W and B, rounded to 8 bits."""
    rule = {"rule": "activation", "amp": 1.0, "sparse": 1.0}
    model, exact = (mixed(rule, precision=precision) for precision in ("mixed_bfloat16", "float64"))
    for layer in aligned_layers(model):
        w = layer.linear_map().transpose(layer.kernel.value).numpy()
        layer.backward_kernel.assign(w + 0.01 * w.std() * rng.normal(size=w.shape))
    exact.set_weights(model.get_weights())
    x, y = (array[0] for array in data(1))
    of_j, exact_of_j = gradients_of_j(model, x, y), gradients_of_j(exact, x, y)
    (seen, _, of_r), (_, _, exact_of_r) = record(model, x), record(exact, x)
    for layer in aligned_layers(model):
        name, transpose = layer.name, layer.linear_map().transpose
        rounded = relative_error(in_bfloat16(layer, seen[name][0]), transpose(exact_of_r[name]))
        assert rounded > 2 * relative_error(of_j[name], exact_of_j[name])
        assert relative_error(of_r[name], exact_of_r[name]) < 0.1 * rounded


def float_dtypes(variables):
    """Returns the dtypes of variables, those of counters left out."""
    return {keras.backend.standardize_dtype(variable.dtype) for variable in variables} - {"int64", "uint32", "bool"}


@every_rule
def test_every_rule_trains_in_mixed_bfloat16_with_float32_weights(keep_tensor_float_32, rule):
    model = mixed(RULES[rule])
    x, y = data(1)
    logs = [model.train_on_batch(x[0], y[0], return_dict=True) for _ in range(20)]
    assert np.isfinite([list(log.values()) for log in logs]).all()
    assert logs[-1]["loss"] < 0.8 * logs[0]["loss"]
    assert model.first_non_finite() is None
    assert float_dtypes(model.variables) == float_dtypes(model.optimizer.variables) == {"float32"}
    outputs = [layer.output.dtype for layer in model.layers]
    assert outputs == ["float32", *["bfloat16"] * (len(outputs) - 1)]  # The first one is the input.


def degrees(a, b):
    """Returns the angle between two tensors in float64."""
    a, b = (np.asarray(value, np.float64).ravel() for value in (a, b))
    return np.degrees(np.arccos(a @ b / np.linalg.norm(a) / np.linalg.norm(b)))


@pytest.mark.parametrize("rule", exhaustive_unless(["feedback", "sign_symmetry", "symmetric", "IA"], ("IA",)))
def test_measures_are_float32_where_the_network_is_bfloat16(keep_tensor_float_32, rule):
    model = mixed(RULES[rule])
    x, y = (array[0] for array in data(1))
    seen = record(model, x)[0]
    measures = tf.function(functools.partial(probes.measure, model), autograph=False)(tf.constant(x), tf.constant(y))
    for layer in aligned_layers(model):
        row = {name: measures[name][layer.name] for name in probes.MEASURES}
        assert {value.dtype for value in row.values()} == {tf.float32}
        assert np.isfinite(list(row.values())).all()
        linear = DenseReference() if layer.name == "dense" else ConvReference(padding="SAME")
        w, b = layer.kernel.numpy(), linear.layout(np.asarray(layer.backward_kernel))
        assert abs(row["weight_angle"] - degrees(w, b)) < 1e-4
        assert float(row["norm_ratio"]) == pytest.approx(np.linalg.norm(b) / np.linalg.norm(w), rel=1e-5)
        inputs = tf.cast(seen[layer.name][0], tf.float64).numpy()
        projections = [linear.project(inputs, kernel.astype(np.float64)) for kernel in (w, b)]
        assert abs(row["projection_angle"] - degrees(*projections)) < 1e-4
        halved = [tf.cast(tf.cast(kernel, tf.bfloat16), tf.float64) for kernel in (w, b)]
        assert abs(degrees(*halved) - degrees(w, b)) > 1e-3  # What angles of bfloat16 kernels would be.


def test_measures_of_a_bfloat16_network_are_zero_where_b_is_w(keep_tensor_float_32):
    model = mixed(RULES["symmetric"])
    for layer in aligned_layers(model):
        layer.backward_kernel.assign(layer.linear_map().transpose(layer.kernel.value))
    x, y = (tf.constant(array[0]) for array in data(1))
    measures = probes.measure(model, x, y)
    for name in set(probes.MEASURES) - {"norm_ratio"}:
        for value in measures[name].values():
            assert_close(value, np.float32(0.0))


def test_b_finds_w_in_mixed_precision(keep_tensor_float_32):
    """Not so a B that is bfloat16 itself: an update below half a unit in its last place is lost."""
    rate, steps = 0.01, 300
    model = mixed({"rule": "symmetric", "self_": 1.0, "decay": 1.0}, {"name": "sgd", "learning_rate": rate})
    x, y = data(1)
    model.fit(tf.data.Dataset.from_tensors((x[0], y[0])).repeat(steps), verbose=0, shuffle=False)
    for layer in aligned_layers(model):
        w = layer.linear_map().transpose(layer.kernel.value)
        assert degrees(w, layer.backward_kernel) < 5.0
        half, b = (tf.cast(kernel, tf.bfloat16) for kernel in (w, tf.random.stateless_normal(w.shape, [1, 2])))
        for _ in range(steps):
            b += rate * (half - b)
        assert degrees(tf.cast(half, tf.float32), tf.cast(b, tf.float32)) > 5.0


@pytest.fixture
def mixed_policy():
    """Makes mixed_bfloat16 the policy of new layers."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    yield
    keras.config.set_dtype_policy(before)


@pytest.mark.parametrize("rule", ["symmetric", "activation", "IA"])
def test_r_is_float32_in_a_plain_keras_model_of_a_mixed_policy(mixed_policy, rule):
    aligned = network(RULES[rule])
    model = keras.Model(aligned.input, aligned.output)
    with forward_pass(step=0) as state:
        model(data(1)[0][0], training=True)
    expected = sum(state.losses.values())
    assert model(data(1)[0][0], training=True).dtype == tf.bfloat16
    assert {loss.dtype for loss in model.losses} == {tf.float32}
    penalty = 0.5e-3 * sum((layer.kernel.numpy() ** 2).sum() for layer in aligned_layers(model))
    assert_close(sum(model.losses), expected + penalty, "float32")


# Both.


@pytest.mark.parametrize("rule", exhaustive_unless(["activation", "WM+AD+OPS"], ("WM+AD+OPS",)))
@pytest.mark.parametrize(("precision", "dtypes"), [("mixed_bfloat16", {"bf16", "f32"}), ("float32", {"f32"})])
def test_what_is_float32_is_multiplied_as_float32(keep_tensor_float_32, rule, precision, dtypes):
    """By default, a TPU rounds float32 numbers to bfloat16 before it multiplies them."""
    tf.config.experimental.enable_tensor_float_32_execution(True)
    text = step_hlo(mixed(RULES[rule], jit_compile=True, precision=precision))
    assert not dynamic(text)
    products = re.findall(r"= (\w+)\[.*(?:dot|convolution)\(.*", text)
    wide = re.findall(r"= f32\[.*(?:dot|convolution)\(.*", text)
    assert set(products) == dtypes
    assert wide
    assert all("operand_precision={highest,highest}" in product for product in wide)


def test_a_network_that_is_loaded_multiplies_as_in_its_training(keep_tensor_float_32, tmp_path):
    path = str(tmp_path / "model.keras")
    mixed(RULES["symmetric"], precision="float32").save(path)
    tf.config.experimental.enable_tensor_float_32_execution(True)
    model = setup.load_network(path)
    x, y = (tf.constant(array[0]) for array in data(1))
    products = re.findall(r"= f32\[.*(?:dot|convolution)\(.*", hlo(lambda x, y: model.test_step((x, y)), x, y))
    assert products
    assert all("operand_precision={highest,highest}" in product for product in products)


def test_mixed_bfloat16_trains_under_xla(keep_tensor_float_32):
    """Noise takes the place of the bfloat16 inputs, which XLA would round differently."""
    x, y = data(1)
    first = {}
    for jit_compile, steps in ((False, 1), (True, 20)):
        model = mixed(RULES["WM+AD+OPS"], jit_compile=jit_compile)
        model.run_eagerly = not jit_compile
        logs = [model.train_on_batch(x[0], y[0], return_dict=True) for _ in range(steps)]
        assert np.isfinite([list(log.values()) for log in logs]).all()
        assert logs[-1]["loss"] < 0.8 * logs[0]["loss"] or not jit_compile
        assert float_dtypes(model.variables) == {"float32"}
        first[jit_compile] = logs[0]["regulariser"]
    assert_close(first[True], first[False], "float32")
