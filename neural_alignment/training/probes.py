"""Measures the alignment of W and B without changing the model."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from neural_alignment.analysis.angles import angle, norm_ratio
from neural_alignment.keras_internals import all_layers, compute_loss, keep_mask
from neural_alignment.layers import Connection
from neural_alignment.training.model import connections, measuring_pass

Tensor = tf.Tensor

MEASURES = ("weight_angle", "norm_ratio", "projection_angle", "local_gradient_angle", "pseudogradient_angle")
"""The measures of each aligned layer; angles in degrees.

weight_angle: between W and B^T. norm_ratio: ||B|| / ||W||. projection_angle: between W^T x and B^T x over the batch,
before bias and nonlinearity. local_gradient_angle: between the errors that B and W send back for the same upstream
error. pseudogradient_angle: between the gradient of J to W computed through the backward kernels and that of true
backpropagation. The signals of a layer that is used several times are those of all uses; an angle without signals is
NaN.
"""


KERNEL_MEASURES = ("weight_angle", "norm_ratio")
"""The members of `MEASURES` that need only the kernels."""


def measure_kernels(model: keras.Model) -> dict[str, dict[str, Tensor]]:
    """Measures the alignment of each aligned layer from its kernels only.

    Returns:
        Measure of `KERNEL_MEASURES` -> connection name -> float32 scalar; NaN if it is not defined.
    """
    results: dict[str, dict[str, Tensor]] = {name: {} for name in KERNEL_MEASURES}
    for connection in connections(model):
        forward, backward = keras.ops.convert_to_tensor(connection.kernel), _backward(model, connection)
        results["weight_angle"][connection.name] = angle(forward, backward)
        results["norm_ratio"][connection.name] = norm_ratio(backward, forward)
    return results


def measure_projections(model: keras.Model, x: Tensor) -> dict[str, dict[str, Tensor]]:
    """Measures the alignment of each connection by its kernels and its projections of one batch, in training mode.

    Args:
        model: a model with aligned layers. No variable changes.
        x: inputs `(batch, ...)`.

    Returns:
        Measure of `KERNEL_MEASURES` and `"projection_angle"` -> connection name -> float32 scalar; NaN if it is not
        defined.
    """
    uses: dict[str, list[_Use]] = defaultdict(list)
    mapping = [(variable, variable.value) for variable in model.variables]
    with keras.StatelessScope(state_mapping=mapping), measuring_pass(model, probe=_recorder(uses)):
        model(x, training=True)
    angles = {}
    for connection in connections(model):
        forward = tf.convert_to_tensor(connection.kernel.value)
        inputs = [tf.cast(use.inputs, forward.dtype) for use in uses[connection.name]]
        angles[connection.name] = _projection_angle(connection, inputs, forward, _backward(model, connection))
    return {**measure_kernels(model), "projection_angle": angles}


def _backward(model: keras.Model, connection: Connection) -> Tensor:
    """Returns B in the layout of W, as the next step would use it."""
    with measuring_pass(model):
        return connection.linear_map.transpose(keras.ops.convert_to_tensor(connection.backward_kernel))


class _Use(NamedTuple):
    """The inputs and outputs of a connection in one call of its layer."""

    inputs: Tensor
    outputs: Tensor


def _recorder(uses: dict[str, list[_Use]]) -> Callable[[Connection, Tensor, Tensor], Tensor]:
    """Returns a `ForwardPass.probe` that adds each use of a connection to the list with its name."""

    def probe(connection: Connection, inputs: Tensor, outputs: Tensor) -> Tensor:
        uses[connection.name].append(_Use(inputs, outputs))
        return outputs

    return probe


def _projection_angle(connection: Connection, inputs: list[Tensor], forward: Tensor, backward: Tensor) -> Tensor:
    """Returns the angle between W^T x and B^T x over the inputs of all uses; B is in the layout of W."""
    project = connection.linear_map.project
    return _joint_angle([(project(each, forward), project(each, backward)) for each in inputs])


def _joint_angle(pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Returns the angle between the first members of all pairs, as one vector, and the second; NaN without pairs."""
    if not pairs:
        return tf.constant(math.nan)
    first, second = zip(*pairs, strict=True)
    return angle(*(tf.concat([tf.reshape(each, [-1]) for each in signals], axis=0) for signals in (first, second)))


def measure(model: keras.Model, x: Tensor, y: Tensor) -> dict[str, dict[str, Tensor]]:
    """Measures the alignment of each aligned layer on one batch, with batch normalization in training mode.

    No variable changes, neither moving statistics nor the state of the noise.

    Args:
        model: a compiled model.
        x: inputs `(batch, ...)`.
        y: targets `(batch, ...)`.

    Returns:
        Measure -> connection name -> float32 scalar; NaN if it is not defined.
    """
    chosen = connections(model)
    # All computations read the same tensor of a kernel, so that the graph optimizer can merge equal ones.
    kernels = [tf.identity(connection.kernel.value) for connection in chosen]
    uses: dict[str, list[_Use]] = defaultdict(list)
    pseudo, errors = _gradients(model, chosen, kernels, x, y, uses, probe=_recorder(uses))
    # Another forward pass, because TensorFlow traces the gradient of a loop over time together with the loop.
    true, _ = _gradients(model, chosen, kernels, x, y, {}, weight_transport=True)
    results: dict[str, dict[str, Tensor]] = {name: {} for name in MEASURES}
    for connection, forward, pseudogradient, gradient in zip(chosen, kernels, pseudo, true, strict=True):
        # The network may compute in half precision, which is too coarse for angles.
        inputs = [tf.cast(use.inputs, forward.dtype) for use in uses[connection.name]]
        upstream = [tf.cast(error, forward.dtype) for error in errors.get(connection.name, [])]
        backward = _backward(model, connection)
        row = (
            angle(forward, backward),
            norm_ratio(backward, forward),
            _projection_angle(connection, inputs, forward, backward),
            _local_gradient_angle(connection, inputs, upstream, forward, backward),
            angle(pseudogradient, gradient),
        )
        for name, value in zip(MEASURES, row, strict=True):
            results[name][connection.name] = value
    return results


def _local_gradient_angle(
    connection: Connection, inputs: list[Tensor], upstream: list[Tensor], forward: Tensor, backward: Tensor
) -> Tensor:
    """Returns the angle between the errors that W and B send back for the upstream errors of all uses."""
    reconstruct, signals = connection.linear_map.reconstruct, zip(upstream, inputs, strict=True)
    return _joint_angle([(reconstruct(d, forward, like=x), reconstruct(d, backward, like=x)) for d, x in signals])


def _gradients(
    model: keras.Model,
    chosen: list[Connection],
    kernels: list[Tensor],
    x: Tensor,
    y: Tensor,
    uses: dict[str, list[_Use]],
    **options: Any,
) -> tuple[list[Tensor], dict[str, list[Tensor]]]:
    """Returns the gradients of J to the forward kernels and to the outputs of the connections.

    Args:
        model: the model.
        chosen: its connections.
        kernels: the values of their forward kernels.
        x: inputs.
        y: targets.
        uses: the uses of the connections, which the forward pass may fill.
        **options: attributes of the `ForwardPass`.

    Returns:
        The gradients to `kernels`, and those to the outputs in `uses`. With float16 they have a common factor, so that
        neither small nor large errors are lost. It does not change their angles.
    """
    kept = {id(connection.kernel): value for connection, value in zip(chosen, kernels, strict=True)}
    mapping = [(v, kept.get(id(v), v.value)) for v in model.variables if v.trainable or id(v) in kept]
    half = any(layer.compute_dtype == "float16" for layer in all_layers(model))
    with tf.GradientTape(persistent=half) as tape:
        tape.watch(kernels)
        with keras.StatelessScope(state_mapping=mapping), measuring_pass(model, **options):
            predictions = model(x, training=True)
            if half:
                predictions = tf.nest.map_structure(_single_precision, predictions)
            loss = compute_loss(model, x, y, predictions, None, training=True)
    outputs = {name: [use.outputs for use in found] for name, found in uses.items()}
    zero = tf.UnconnectedGradients.ZERO  # Below frozen layers the tape has no error.
    factor = _factor(tape, loss, tf.nest.flatten(predictions)) if half else None
    return tape.gradient(loss, (kernels, outputs), output_gradients=factor, unconnected_gradients=zero)


def _single_precision(tensor: Tensor) -> Tensor:
    """Returns a float16 tensor as float32, with its mask; other tensors are unchanged."""
    return keep_mask(tf.cast(tensor, tf.float32), tensor) if tensor.dtype == tf.float16 else tensor


def _factor(tape: tf.GradientTape, loss: Tensor, predictions: list[Tensor]) -> Tensor:
    """Returns the factor of J, in the shape of J, with which the largest error at the outputs of the model is 1."""
    errors = tape.gradient(loss, predictions, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    largest = tf.reduce_max([tf.cast(tf.reduce_max(tf.abs(error)), loss.dtype) for error in errors])
    return tf.ones_like(loss) * tf.where(largest > 0, 1 / largest, tf.ones_like(largest))
