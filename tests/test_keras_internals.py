"""Every function that uses Keras' private API works with every supported version of Keras."""

import ast
import inspect
import pydoc
import re
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from neural_alignment import keras_internals as internals
from optimizers import Momentum, MultiOptimizer
from optimizers import keras_internals as optimizer_internals

ROOT = Path(__file__).parent.parent


def shared_dense() -> keras.Model:
    """Returns a model that calls one layer twice and adds its outputs."""
    left, right = keras.Input((3,), name="left"), keras.Input((3,), name="right")
    shared = keras.layers.Dense(2, name="shared")
    return keras.Model({"left": left, "right": right}, keras.layers.Add(name="add")([shared(left), shared(right)]))


@pytest.mark.parametrize("module", [internals, optimizer_internals], ids=lambda module: module.__name__)
def test_every_public_name_is_tested_here(module):
    source = Path(__file__).read_text()
    alias = next(name for name, value in globals().items() if value is module)
    body = ast.parse(inspect.getsource(module)).body
    public = [node.name for node in body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    public += [node.target.id for node in body if isinstance(node, ast.AnnAssign)]
    assert public
    assert [name for name in public if not re.search(rf"\b{alias}\.{name}\b", source)] == []


@pytest.mark.parametrize("name", ["attention", "query"])
def test_a_layer_leaves_the_scopes_of_the_models_in_which_it_was_built(name):
    """The layers in it stay in its own scope."""
    layer, inputs = keras.layers.MultiHeadAttention(1, 2, name=name), keras.Input((3, 2))
    with keras.name_scope("outer"), keras.name_scope("inner"):
        layer(inputs, inputs)
    assert layer.weights[0].path == f"outer/inner/{name}/query/kernel"
    for _ in range(2):
        internals.leave_scopes(layer)
        assert layer.weights[0].path == f"{name}/query/kernel"
    internals.leave_scopes(keras.ops.add)  # Has no weights.


def test_calls_are_those_of_the_graph_in_order():
    model = shared_dense()
    shared, add = model.get_layer("shared"), model.get_layer("add")
    shared(keras.Input((3,)))  # No call of this model.
    found = list(internals.calls(model))
    assert [call.operation for call in found] == [shared, shared, add]
    assert [[parent.name for parent in call.parents] for call in found] == [["left"], ["right"], ["shared", "shared"]]
    assert (found[0].inputs[0], found[1].inputs[0]) == (model.input["left"], model.input["right"])
    assert [id(tensor) for tensor in found[2].inputs] == [id(call.outputs[0]) for call in found[:2]]
    assert found[2].outputs[0] is model.outputs[0]
    assert found[0].arguments == ((model.input["left"],), {})
    assert internals.Call(*found[0]) == found[0]
    assert found[0].first_argument is model.input["left"]
    assert [id(tensor) for tensor in found[2].first_argument] == [id(tensor) for tensor in found[2].inputs]


def test_the_calls_of_a_sequential_model_are_those_of_its_functional_model():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2), keras.layers.ReLU()])
    assert [call.operation for call in internals.calls(model)] == model.layers
    assert internals.functional(model).outputs == model.outputs
    other = shared_dense()
    assert internals.functional(other) is other
    assert internals.functional(keras.Sequential([keras.layers.Dense(2)])) is None


def test_the_creator_of_a_tensor_is_the_operation_that_returned_it():
    layer = keras.layers.Dense(2)
    outputs = layer(keras.Input((3,)))
    assert internals.creator(outputs) is layer
    assert type(internals.creator(keras.ops.relu(outputs))) is not type(internals.creator(keras.ops.tanh(outputs)))


def test_all_layers_includes_nested_layers_in_order():
    inner = keras.Sequential([keras.Input((4, 3)), keras.layers.Dense(3, name="first")], name="inner")
    inputs = keras.Input((4, 3), name="inputs")
    wrapped = keras.layers.TimeDistributed(keras.layers.Dense(2, name="wrapped"), name="wrapper")
    model = keras.Model(inputs, keras.layers.Flatten(name="last")(wrapped(inner(inputs))))
    names = [layer.name for layer in internals.all_layers(model) if not isinstance(layer, keras.layers.InputLayer)]
    assert names == ["first", "wrapper", "wrapped", "last"]


def test_functional_and_built_sequential_models_have_a_graph():
    class Subclassed(keras.Model):
        def call(self, inputs):
            return inputs

    model = keras.Sequential([keras.layers.Dense(2)])
    assert not internals.has_graph(model)
    model.build((None, 3))
    assert internals.has_graph(model)
    assert internals.has_graph(shared_dense())
    assert not internals.has_graph(Subclassed())
    assert not internals.has_graph(keras.layers.TimeDistributed(model))


def test_a_layer_that_replaces_another_takes_its_place():
    layer = keras.layers.Layer()
    layer.first, layer.second, layer.third = (keras.layers.Dense(units) for units in (1, 2, 3))
    old, new = layer.second, keras.layers.Dense(9)
    internals.replace_sublayer(layer, "second", new)
    assert layer.second is new
    assert internals.sublayers(layer) == [layer.first, new, layer.third]
    for each in internals.sublayers(layer):
        each.build((None, 4))
    old.build((None, 4))
    assert [weight.shape[-1] for weight in layer.weights] == [1, 1, 9, 9, 3, 3]
    assert not any(weight is old.kernel for weight in layer.weights)


class OwnCall(keras.Sequential):
    def call(self, inputs, training=None, mask=None):
        return 2 * super().call(inputs, training, mask)


def test_models_that_only_run_their_graph_have_no_own_call():
    inputs = keras.Input((3,))
    outputs = keras.layers.Dense(2)(inputs)
    graph = [keras.Model(inputs, outputs), internals.InterceptedModel(inputs, outputs)]
    graph.append(keras.Sequential([inputs, keras.layers.ReLU()]))
    others = [OwnCall([inputs, keras.layers.ReLU()]), keras.Sequential([keras.layers.ReLU()]), keras.layers.Dense(2)]
    assert [internals.only_runs_graph(model) for model in [*graph, *others]] == [True] * 3 + [False] * 3


def test_sublayers_are_those_of_a_layer_itself_each_once():
    inner = keras.layers.Dense(2)
    layer = keras.layers.Layer()
    layer.first, layer.wrapper, layer.again = inner, keras.layers.TimeDistributed(keras.layers.Dense(3)), inner
    assert internals.sublayers(layer) == [inner, layer.wrapper]


def test_a_copy_of_a_layer_has_its_arguments_and_the_functions_of_a_lambda():
    dense = keras.layers.Dense(2, use_bias=False, name="dense")
    dense.build((None, 3))
    copy = internals.copy_of(dense)
    assert (copy.get_config(), copy.built) == (dense.get_config(), False)
    factor = 2.0
    layer = keras.layers.Lambda(
        lambda inputs, power: factor * np.asarray(inputs) ** power, (7,), lambda *_: "mask", {"power": 3}, name="cube"
    )
    copy = internals.copy_of(layer)
    assert (copy.name, copy.function, copy.arguments) == ("cube", layer.function, {"power": 3})
    np.testing.assert_array_equal(copy(np.ones((1, 7))), np.full((1, 7), 2.0))
    assert (copy.compute_output_shape((1, 7)), copy.compute_mask(None), copy.supports_masking) == ((1, 7), "mask", True)


def test_fresh_names_are_those_of_a_new_process():
    before = keras.layers.Dense(2).name
    with internals.fresh_names():
        assert [keras.layers.Dense(2).name for _ in range(2)] == ["dense", "dense_1"]
    with pytest.raises(ZeroDivisionError), internals.fresh_names():
        keras.layers.Dense(1 / 0)
    number = int(before.removeprefix("dense").removeprefix("_") or 0)
    assert keras.layers.Dense(2).name == f"dense_{number + 1}"


def test_the_arguments_of_all_calls_of_a_layer_are_known():
    model = shared_dense()
    calls = internals.call_arguments(model.get_layer("shared"))
    given = [arguments[0] for arguments, _ in calls]
    assert [tensor is model.input[side] for tensor, side in zip(given, ("left", "right"), strict=True)] == [True, True]
    assert [options for _, options in calls] == [{}, {}]
    assert internals.call_arguments(keras.layers.Dense(2)) == []


def test_the_weights_to_train_are_those_that_a_layer_would_train_if_it_were_not_frozen():
    inner = keras.layers.BatchNormalization()
    layer = keras.layers.TimeDistributed(inner)
    outputs = layer(keras.Input((2, 3)))
    for trainable in (True, False):
        layer.trainable = trainable
        assert list(map(id, internals.weights_to_train(layer))) == [id(inner.gamma), id(inner.beta)]
    assert internals.weights_to_train(keras.layers.Normalization(mean=0.0, variance=1.0)) == []
    assert internals.weights_to_train(internals.creator(keras.ops.tanh(outputs))) == []


def test_the_outermost_call_is_that_of_the_model_and_asks_about_each_layer_once():
    found = []

    class Asking(keras.layers.Layer):
        def call(self, inputs):
            outermost = internals.outermost_call(self)
            found.append((outermost.layer, outermost.is_first(self)))
            return inputs

    layer, inputs = Asking(), keras.Input((3,))
    model = keras.Model(inputs, layer(layer(inputs)))
    for function in (model, model, tf.function(model), layer):
        found.clear()
        function(tf.ones((2, 3)))
        outermost = layer if function is layer else model
        assert found == [(outermost, True), (outermost, False)][: len(found)]
        assert len(found) == (1 if function is layer else 2)
    assert internals.outermost_call(layer).layer is layer
    assert internals.OutermostCall(layer).is_first(layer)
    assert internals.outermost_call(layer).is_first(layer)


def test_a_branch_counts_as_another_graph():
    layer = keras.layers.Layer()
    outermost, found = internals.OutermostCall(layer), []

    @tf.function(autograph=False)
    def run(condition):
        found.append(outermost.is_first(layer))
        ask = lambda: tf.constant(found.append(outermost.is_first(layer)) is None)  # noqa: E731
        return tf.cond(condition, ask, ask)

    run(tf.constant(True))
    assert found == [True, True, True]


@pytest.mark.parametrize(
    ("scope", "expected"),
    [
        ({"mode": "full"}, True),
        ({"mode": "larger_than"}, True),
        ({"mode": "list_of_layers", "layer_names": ["one"]}, True),
        ({"mode": "list_of_layers", "layer_names": ["other"]}, False),
        ({"mode": "activations"}, False),
        ({"mode": None}, False),
    ],
    ids=str,
)
def test_layers_that_are_computed_again_are_those_of_the_scope(scope, expected):
    assert not internals.recomputes(keras.layers.Dense(2))
    with keras.RematScope(**scope):
        assert internals.recomputes(keras.layers.Dense(2, name="one")) == expected


def test_the_losses_of_a_layer_are_those_of_its_last_call():
    layer = keras.layers.Dense(2, activity_regularizer="l2")
    model = keras.Sequential([keras.Input((3,)), layer])
    for _ in range(2):
        model(tf.ones((1, 3)))
        assert len(internals.added_losses(layer)) == 1
    assert internals.added_losses(model) == []


def test_masks_are_kept_with_tensors():
    masked = keras.layers.Masking()(np.array([[[1.0], [0.0]]]))
    np.testing.assert_array_equal(internals.mask_of(masked), [[True, False]])
    other = tf.identity(masked)
    assert internals.mask_of(other) is None
    assert internals.mask_of(internals.keep_mask(other, masked)) is internals.mask_of(masked)


def test_keras_leaves_what_is_masked_out_of_a_loss():
    targets, outputs, error = tf.zeros((1, 2, 1)), tf.constant([[[1.0], [3.0]]]), keras.losses.MeanSquaredError()
    assert internals.mask_of(internals.set_mask(outputs, None)) is None
    assert float(error(targets, outputs)) == 5.0
    assert float(error(targets, internals.set_mask(outputs, tf.constant([[False, True]])))) == pytest.approx(9.0)


@pytest.mark.parametrize(("given", "factor"), [(None, 1.0), (2.0, 2.0), ([0.5], 0.5)])
def test_the_weight_of_the_loss_multiplies_it(given, factor):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="last")])
    losses = []
    for weights in (None, given):
        model.compile(loss="mse", loss_weights=weights)
        losses.append(model.evaluate(np.ones((4, 3)), np.zeros((4, 2)), verbose=0))
    assert internals.loss_weight(model) == factor
    assert losses[1] == pytest.approx(factor * losses[0])


def test_a_loss_of_a_function_gives_targets_the_rank_of_outputs():
    def difference(y_true, y_pred):
        return keras.ops.mean(keras.ops.abs(y_true - y_pred), axis=-1)

    y_true, y_pred = np.array([1.0, 2.0, 4.0]), np.array([[2.0], [0.0], [4.0]])
    loss = internals.LossOfFunction(difference, name="difference")
    assert isinstance(loss, keras.losses.Loss)
    assert float(loss(y_true, y_pred)) == 1.0
    assert float(keras.ops.mean(difference(y_true, y_pred))) != 1.0


def test_an_untracked_metric_is_no_longer_listed():
    model = compiled(keras.Sequential([keras.layers.Dense(1)]))
    model.own = keras.metrics.Mean(name="own")
    listed = [metric.name for metric in model.metrics]
    internals.untrack(model, model.own)
    assert [metric.name for metric in model.metrics] == [name for name in listed if name != "own"] != listed


def test_the_stored_value_keeps_its_dtype_in_half_precision():
    seen = []

    class Seeing(keras.layers.Dense):
        def call(self, inputs):
            seen.append((self.kernel.value.dtype, internals.stored_value(self.kernel)))
            return super().call(inputs)

    layer = Seeing(2, dtype="mixed_bfloat16")
    layer(np.ones((1, 3), np.float32))
    (computed, stored), kernel = seen[-1], layer.kernel.numpy()
    assert (computed, stored.dtype) == (tf.bfloat16, tf.float32)
    np.testing.assert_array_equal(stored.numpy(), kernel)


def test_the_stored_value_is_that_of_the_stateless_scope_if_it_has_one():
    variable, other = keras.Variable(1.0), keras.Variable(2.0)
    with keras.StatelessScope([(variable, tf.constant(3.0))]):
        assert (float(internals.stored_value(variable)), float(internals.stored_value(other))) == (3.0, 2.0)
    assert float(internals.stored_value(variable)) == 1.0


def test_the_stored_value_is_none_until_the_variable_is_initialised():
    with keras.StatelessScope():
        variable = keras.Variable(initializer="ones", shape=(2,))
        assert internals.stored_value(variable) is None
    assert internals.stored_value(variable) is not None


def compiled(model: keras.Model) -> keras.Model:
    model.compile(optimizer=keras.optimizers.SGD(0.1), loss="mse", metrics=["mae"])
    return model


def variables_of_metrics(model: keras.Model) -> list:
    return [variable for metric in model.metrics for variable in metric.variables]


@pytest.mark.parametrize("kind", [keras.layers.SimpleRNNCell, keras.layers.LSTMCell])
def test_dropout_masks_are_those_of_the_cell(kind):
    cell = kind(4, dropout=0.5, recurrent_dropout=0.25)
    inputs, outputs = tf.ones((50, 3)), tf.ones((50, 4))
    for mask, size, kept in zip(internals.dropout_masks(cell, inputs, outputs), (3, 4), (0.5, 0.75), strict=True):
        for each in keras.tree.flatten(mask):  # A mask may be a list with one for each gate.
            assert each.shape == (50, size)
            assert set(np.unique(each)) == {0.0, np.float32(1 / kept)}
    assert internals.dropout_masks(kind(4), inputs, outputs) == (None, None)


def test_metrics_are_built_before_the_first_batch_and_once():
    model = compiled(shared_dense())
    assert len(variables_of_metrics(model)) == 2  # Total and count of the loss.
    labels = keras.KerasTensor((None, 2))
    internals.build_metrics(model, labels, model.output)
    built = variables_of_metrics(model)
    assert len(built) == 4
    x = {"left": np.ones((4, 3)), "right": np.ones((4, 3))}
    model.evaluate(x, np.zeros((4, 2)), verbose=0)
    internals.build_metrics(model, labels, model.output)
    assert list(map(id, variables_of_metrics(model))) == list(map(id, built))


def test_without_metrics_there_is_nothing_to_build():
    model = shared_dense()
    model.compile(optimizer="sgd", loss="mse")
    internals.build_metrics(model, keras.KerasTensor((None, 2)), model.output)
    assert len(variables_of_metrics(model)) == 2


def test_the_loss_of_a_model_need_not_have_the_argument_training():
    class Old(keras.Model):
        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None):
            return x, y, y_pred, sample_weight

    class New(keras.Model):
        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
            return x, y, y_pred, sample_weight, training

    inputs = keras.Input((3,))
    old, new = (kind(inputs, keras.layers.Dense(2)(inputs)) for kind in (Old, New))
    assert internals.compute_loss(old, 1, 2, 3, 4, training=False) == (1, 2, 3, 4)
    assert internals.compute_loss(new, 1, 2, 3, 4, training=False) == (1, 2, 3, 4, False)


def test_the_loss_tracker_is_the_loss_that_keras_reports():
    model = shared_dense()
    model.compile(optimizer="sgd", loss="mse")
    internals.loss_tracker(model).update_state(7.0)
    assert float(model.get_metrics_result()["loss"]) == 7.0
    model.reset_metrics()
    assert float(model.get_metrics_result()["loss"]) == 0.0


def test_each_operation_of_a_model_can_be_intercepted():
    class Doubling(internals.InterceptedModel):
        def intercept(self, operation, call):
            return lambda *args, **kwargs: 2.0 * call(*args, **kwargs)

    inputs = keras.Input((3,))
    outputs = keras.layers.ReLU()(keras.layers.Dense(2, use_bias=False)(inputs))
    plain, doubling = keras.Model(inputs, outputs), Doubling(inputs, outputs)
    x = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    np.testing.assert_allclose(doubling(x), 4.0 * np.asarray(plain(x)), rtol=1e-6)
    np.testing.assert_allclose(doubling(x, training=True), 4.0 * np.asarray(plain(x)), rtol=1e-6)
    np.testing.assert_allclose(doubling.predict(x, verbose=0), 4.0 * np.asarray(plain(x)), rtol=1e-6)
    assert np.abs(plain(x)).max() > 0.1
    assert tuple(doubling.compute_output_spec(keras.KerasTensor((7, 3))).shape) == (7, 2)


def test_an_intercepted_model_that_intercepts_nothing_is_a_functional_model():
    inputs = keras.Input((3,))
    outputs = keras.layers.Dense(2)(inputs)
    x = np.ones((2, 3), np.float32)
    np.testing.assert_array_equal(internals.InterceptedModel(inputs, outputs)(x), keras.Model(inputs, outputs)(x))


# Optimizers.


def test_the_schedule_of_an_optimizer_is_the_one_that_it_was_given():
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.5)
    assert optimizer_internals.schedule_of(keras.optimizers.SGD(schedule)) is schedule
    assert optimizer_internals.schedule_of(keras.optimizers.SGD(0.1)) is None


def built(optimizer: keras.optimizers.Optimizer) -> tuple[keras.optimizers.Optimizer, list]:
    variables = [keras.Variable(np.full(size, float(size)), name=f"v{size}") for size in (2, 3)]
    optimizer.build(variables)
    return optimizer, variables


def test_the_index_of_a_variable_is_the_order_of_building():
    optimizer, variables = built(keras.optimizers.SGD(0.1))
    assert [optimizer_internals.trainable_variables(optimizer)[place] for place in (0, 1)] == variables
    assert [optimizer_internals.index_of(optimizer, variable) for variable in variables] == [0, 1]


def test_the_step_count_includes_steps_that_only_accumulate_gradients():
    optimizer, variables = built(keras.optimizers.SGD(0.1, gradient_accumulation_steps=3))
    gradients = [np.ones(2, np.float32), np.ones(3, np.float32)]
    for _ in range(4):
        optimizer.apply(gradients, variables)
    assert (int(optimizer_internals.call_count(optimizer)), int(optimizer.iterations)) == (4, 1)


def test_the_moving_averages_are_those_of_the_variables_in_order():
    optimizer, variables = built(keras.optimizers.SGD(1.0, use_ema=True, ema_momentum=0.5))
    optimizer.apply([np.ones(2, np.float32), np.ones(3, np.float32)], variables)
    averages = [average.numpy() for average in optimizer_internals.moving_averages(optimizer)]
    for average, size in zip(averages, (2, 3), strict=True):
        assert average.shape == (size,)
        assert np.unique(average).size == 1


def test_an_optimizer_that_copies_weights_is_known():
    """Also if a later Keras has another one."""
    for kind in {kind for kind in vars(keras.optimizers).values() if isinstance(kind, type)}:
        if issubclass(kind, keras.optimizers.Optimizer) and "learning_rate" in inspect.signature(kind).parameters:
            optimizer, variables = built(kind())
            values = [variable.numpy().tolist() for variable in variables]
            copies = any(slot.numpy().tolist() in values for slot in optimizer.variables)
            assert optimizer_internals.copies_weights(optimizer) == copies, kind


def test_an_optimizer_that_scales_by_weights_is_known():
    """Equal gradients move two variables apart. Also if a later Keras has another one."""
    generator = np.random.default_rng(0)
    gradients = generator.normal(size=(20, 5, 4)).astype(np.float32)
    start = generator.normal(size=(2, 5, 4)).astype(np.float32) * [[[1.0]], [[3.0]]]
    found = {}
    for name, kind in vars(keras.optimizers).items():
        if not isinstance(kind, type) or not issubclass(kind, keras.optimizers.Optimizer):
            continue
        if optimizer_internals.reads_paths(kind) or "learning_rate" not in inspect.signature(kind).parameters:
            continue
        optimizer, variables = kind(0.05), [keras.Variable(value, dtype="float32") for value in start]
        optimizer.build(variables)
        for gradient in gradients:
            optimizer.apply([gradient, gradient], variables)
        grows = np.linalg.norm(variables[0] - variables[1]) > 1.001 * np.linalg.norm(start[0] - start[1])
        found[name] = grows, optimizer_internals.scales_by_weights(kind)
    assert {name for name, (grows, _) in found.items() if grows} == {"Adafactor", "Lamb"}
    assert all(grows == known for grows, known in found.values()), found


class Anything:
    """An initializer, regularizer, constraint or activation that Keras cannot serialise."""

    def __call__(self, value, *args, **kwargs):
        return value


KINDS = ("initializer", "regularizer", "constraint", "activation")

SIZES = {
    "units": 3,
    "filters": 2,
    "kernel_size": 2,
    "equation": "ab,bc->ac",
    "output_shape": 3,
    "num_heads": 2,
    "key_dim": 2,
    "head_dim": 2,
    "num_query_heads": 2,
    "num_key_value_heads": 2,
    "input_dim": 3,
    "output_dim": 4,
}


def layers_with_objects():
    """Returns the layers of Keras with an argument of one of `KINDS`."""
    kinds = {kind for kind in vars(keras.layers).values() if isinstance(kind, type)} - {keras.layers.Layer}
    found = [kind for kind in kinds if any(name.endswith(KINDS) for name in inspect.signature(kind).parameters)]
    return sorted(found, key=lambda kind: kind.__name__)


@pytest.mark.parametrize("kind", layers_with_objects(), ids=lambda kind: kind.__name__)
def test_arguments_of_a_layer_are_its_own_objects(kind):
    parameters = inspect.signature(kind).parameters.values()
    sizes = {each.name: SIZES[each.name] for each in parameters if each.default is each.empty and each.name in SIZES}
    objects = {each.name: Anything() for each in parameters if each.name.endswith(KINDS)}
    if kind is keras.layers.SimpleRNN:
        del objects["activity_regularizer"]  # Keras ignores it.
    layer = kind(**sizes, **objects)
    for each in (layer, internals.copy_of(layer)):
        found = internals.arguments_of(each)
        assert {name: found[name] for name in objects} == objects
        assert found["name"] == layer.name
    with pytest.raises(TypeError, match="Cannot serialize"):  # What `arguments_of` is for. The layer is unchanged.
        layer.get_config()


def test_an_activation_that_is_a_layer_and_a_cell_are_serialised():
    layer = keras.layers.Dense(3, activation=keras.layers.PReLU())
    assert isinstance(internals.arguments_of(layer)["activation"], dict)
    assert internals.copy_of(layer).activation is not layer.activation
    loop = keras.layers.RNN(keras.layers.GRUCell(2, activation="relu"))
    assert internals.copy_of(loop).cell is not loop.cell
    assert internals.copy_of(loop).cell.activation is keras.activations.relu


def test_keras_swaps_the_averages_that_a_wrapper_gives():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    inner = keras.optimizers.SGD(0.1, use_ema=True)
    model.compile(optimizer=MultiOptimizer([inner]), loss="mse")
    model.fit(np.ones((8, 3)), np.ones((8, 2)), epochs=2, verbose=0)
    kernel, average = model.layers[0].kernel, optimizer_internals.moving_averages(inner)[0]
    before = kernel.numpy()
    average.assign(np.full((3, 2), 9.0))
    swap = keras.callbacks.SwapEMAWeights()
    swap.set_model(model)
    swap.on_test_begin()
    np.testing.assert_array_equal(kernel.numpy(), np.full((3, 2), 9.0))
    swap.on_test_end()
    # Keras swaps by sums and differences, which are rounded at the size of the averages.
    np.testing.assert_allclose(kernel.numpy(), before, rtol=0, atol=9 * np.finfo(np.float32).eps)


def test_keras_finds_the_averages_that_an_optimizer_computes():
    class Computing(optimizer_internals.AveragingOptimizer):
        def averages_of_variables(self):
            return ["computed"]

    assert optimizer_internals.moving_averages(Computing(0.1)) == ["computed"]
    with pytest.raises(NotImplementedError):
        optimizer_internals.moving_averages(optimizer_internals.AveragingOptimizer(0.1))


@pytest.mark.parametrize("left_to_caller", [True, False])
def test_an_optimizer_can_leave_the_sum_over_replicas_to_the_caller(left_to_caller):
    from helpers import two_replicas

    strategy = two_replicas()
    with strategy.scope():
        optimizer, (variable, _) = built(Momentum(1.0, momentum=0.0))
        if left_to_caller:
            optimizer_internals.leave_sum_to_caller(optimizer)

    def step():
        optimizer.apply([tf.ones(2)], [variable])
        return tf.convert_to_tensor(variable.value)

    moved = strategy.experimental_local_results(strategy.run(tf.function(step)))
    expected = 1.0 if left_to_caller else 0.0
    for each in moved:
        np.testing.assert_allclose(each, [expected] * 2)


def test_the_moments_of_adam_are_those_of_a_variable():
    optimizer, variables = built(keras.optimizers.Adam(0.1, beta_1=0.75, beta_2=0.5))
    optimizer.apply([np.full(2, 2.0, np.float32), np.full(3, 4.0, np.float32)], variables)
    for variable, gradient in zip(variables, (2.0, 4.0), strict=True):
        first, second = optimizer_internals.moments(optimizer, variable)
        np.testing.assert_allclose(first.numpy(), np.full(variable.shape, gradient / 4))
        np.testing.assert_allclose(second.numpy(), np.full(variable.shape, gradient**2 / 2))


def test_the_mean_squares_of_rmsprop_are_those_of_the_variables_in_order():
    optimizer, variables = built(keras.optimizers.RMSprop(0.1, rho=0.75))
    optimizer.apply([np.full(2, 2.0, np.float32), np.full(3, 4.0, np.float32)], variables)
    averages = optimizer_internals.mean_squares(optimizer)
    for average, variable, gradient in zip(averages, variables, (2.0, 4.0), strict=True):
        np.testing.assert_allclose(average.numpy(), np.full(variable.shape, gradient**2 / 4))


def test_the_moments_that_an_optimizer_is_given_are_those_of_its_variables():
    optimizer, variables = built(keras.optimizers.Adam(0.1, beta_1=0.75, beta_2=0.5))
    first, second = ([keras.Variable(np.full(each.shape, value)) for each in variables] for value in (8.0, 2.0))
    optimizer_internals.keep_moments(optimizer, first, second)
    optimizer.apply([np.zeros(2, np.float32), np.zeros(3, np.float32)], variables)
    for own, variable in zip(zip(first, second, strict=True), variables, strict=True):
        assert optimizer_internals.moments(optimizer, variable) == own
        np.testing.assert_allclose([each.numpy()[0] for each in own], [6.0, 1.0])


def test_the_keys_of_a_checkpoint_tell_the_variables_of_an_optimizer(tmp_path):
    optimizer, variables = built(keras.optimizers.SGD(0.1, momentum=0.9, gradient_accumulation_steps=2))
    optimizer.apply([np.ones(2, np.float32), np.ones(3, np.float32)], variables)
    path = tf.train.Checkpoint(optimizer=optimizer, other=tf.Variable([7.0])).write(str(tmp_path / "state"))
    values = {key: tf.train.load_variable(path, key) for key, _ in tf.train.list_variables(path)}
    [count] = [value for key, value in values.items() if optimizer_internals.is_call_count(key)]
    assert count == int(optimizer_internals.call_count(optimizer)) == 1
    trained = [value.tolist() for key, value in values.items() if optimizer_internals.is_trained(key)]
    assert sorted(trained, key=len) == [[2.0, 2.0], [3.0, 3.0, 3.0]]


def test_no_common_optimizer_reads_paths():
    assert not any(map(optimizer_internals.reads_paths, (keras.optimizers.SGD, keras.optimizers.Adam)))


# Other modules.

OTHERS = {
    "neural_alignment/__init__.py": ["getattr(spec, '_initializing', False)"],  # Of Python's import system.
    "neural_alignment/jobs/children.py": ["getattr(ops.gradient_registry, '_registry', {})"],  # Of TensorFlow.
}
"""Module -> the private attributes of other libraries in it. `training/graphs.py` has many of TensorFlow."""
DOCUMENTED = {"_asdict", "_exit", "_fields", "_replace"}
"""Attributes with an underscore that are public API of Python."""


def test_no_other_module_uses_a_private_attribute_of_keras():
    paths = [*(ROOT / "neural_alignment").rglob("*.py"), *(ROOT / "optimizers").rglob("*.py")]
    modules = {path.relative_to(ROOT).as_posix(): path.read_text() for path in paths}
    classes, of_keras = classes_in(*modules.values()), private_names_of_keras()
    for path, source in modules.items():
        if path.endswith("/keras_internals.py"):
            continue
        assert "keras.src" not in source, path
        if path != "neural_alignment/training/graphs.py":
            assert private_uses(source, classes | classes_in(source), of_keras) == OTHERS.get(path, []), path


USES = {
    "model._layers": ["model._layers"],
    "getattr(tensor, '_keras_mask', None)": ["getattr(tensor, '_keras_mask', None)"],
    "class A(keras.optimizers.Adam):\n def f(self): self._momentums": ["self._momentums"],
    "class A(keras.Model):\n def f(self): super()._f()": ["super()._f"],
    "class A(keras.Layer):\n def f(self): self._layers = []": ["A._layers"],
    "class A(keras.Layer): pass\nclass B(A):\n def _layers(self): pass": ["B._layers"],
    "class A:\n _layers = 1\n def f(self, a): self._layers, a._layers": ["a._layers"],
    "class A:\n def f(self): self._x = 1\ndef g(a): a._x": ["a._x"],
    "class A:\n def f(self): self._x = 1\nclass B(A):\n def g(self, b): self._x, b._x": [],
    "row._replace(a=1)": [],
}
"""Source of a module -> the private attributes in it that are not its own."""


@pytest.mark.parametrize("source", USES)
def test_private_attributes_of_others_are_found(source):
    assert private_uses(source, classes_in(source), {"_layers", "_momentums"}) == USES[source]


def private_names_of_keras() -> set[str]:
    """Returns the private attributes of Keras' models, layers, tensors, variables, losses and optimizers."""
    model = compiled(keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]))
    masked = keras.layers.Embedding(3, 2, mask_zero=True)(keras.Input((4,)))
    adam = built(keras.optimizers.Adam(use_ema=True))[0]
    objects = [model, shared_dense(), model.layers[0], masked, model.weights[0], adam, model._compile_loss, keras]
    names = {name for each in objects for name in dir(each) if is_private(name)}
    assert {"_flatten_layers", "_keras_history", "_keras_mask", "_value", "_functional", "_learning_rate"} <= names
    assert {"_momentums", "_velocities", "_model_variables_moving_average", "_user_loss_weights"} <= names
    return names


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def is_self(node: ast.expr) -> bool:
    return ast.unparse(node) in ("self", "cls", "super()")


def classes_in(*sources: str) -> dict[str, ast.ClassDef]:
    """Returns the classes in modules by name."""
    trees = [ast.walk(ast.parse(source)) for source in sources]
    return {node.name: node for tree in trees for node in tree if isinstance(node, ast.ClassDef)}


def own_names(kind: ast.ClassDef) -> set[str]:
    """Returns the private attributes that a class defines, in its body or by assigning to `self`."""
    names = set()
    for node in ast.walk(kind):
        if isinstance(node, ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_self(node.value):
            names.add(node.attr)
    for node in kind.body:
        if isinstance(node, (ast.Assign, ast.AnnAssign)):
            names |= {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}
    return set(filter(is_private, names))


def names_in_keras(name: str) -> set[str]:
    """Returns the private attributes that a class of Keras and its bases define."""
    bases = [each for each in pydoc.locate(name).__mro__ if each.__module__.startswith("keras.")]
    return set().union(*(own_names(ast.parse(inspect.getsource(each)).body[0]) for each in bases))


def ancestry(name: str, classes: dict[str, ast.ClassDef]) -> set[str]:
    """Returns the names of a class and of its bases, of their bases as far as they are in `classes`."""
    bases = [ast.unparse(base).partition("[")[0] for base in classes[name].bases] if name in classes else []
    return {name}.union(*(ancestry(base, classes) for base in bases))


def private_uses(source: str, classes: dict[str, ast.ClassDef], of_keras: set[str]) -> list[str]:
    """Returns the private attributes in a module that are not its own.

    Within a class, those that it and its bases in `classes` define are its own. On another object than `self` a name
    that Keras has too may be that of Keras. A class must not define a name that its base in Keras has.
    """
    found = []

    def visit(node: ast.AST, own: set[str]) -> None:
        name, owner = "", None
        if isinstance(node, ast.ClassDef):
            names = ancestry(node.name, classes)
            own = set.union(*(own_names(classes[each]) for each in names if each in classes))
            inherited = set().union(*(names_in_keras(each) for each in names if each.startswith("keras.")))
            found.extend(f"{node.name}.{each}" for each in sorted(own_names(node) & inherited))
        elif isinstance(node, ast.Attribute):
            name, owner = node.attr, node.value
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr", "setattr"):
            owner, key = node.args[:2]
            name = key.value if isinstance(key, ast.Constant) else ""
        is_own = name in own and (is_self(owner) or name not in of_keras)
        if is_private(name) and name not in DOCUMENTED and not is_own:
            found.append(ast.unparse(node))
        for child in ast.iter_child_nodes(node):
            visit(child, own)

    visit(ast.parse(source), set())
    return found
