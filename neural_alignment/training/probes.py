"""Measures the alignment of W and B without changing the model."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from neural_alignment.analysis.angles import angle, norm_ratio
from neural_alignment.layers import Connection
from neural_alignment.training.model import connections, measuring_pass

Tensor = tf.Tensor

MEASURES = ("weight_angle", "norm_ratio", "projection_angle", "local_gradient_angle", "pseudogradient_angle")
"""The measures of each aligned layer; angles in degrees.

weight_angle: between W and B^T. norm_ratio: ||B|| / ||W||. projection_angle: between W^T x and B^T x over the batch,
before bias and nonlinearity. local_gradient_angle: between the errors that B and W send back for the same upstream
error. pseudogradient_angle: between the gradient of J to W computed through the backward kernels and that of true
backpropagation.
"""


KERNEL_MEASURES = ("weight_angle", "norm_ratio")
"""The members of `MEASURES` that need only the kernels."""


def measure_kernels(model: keras.Model) -> dict[str, dict[str, Tensor]]:
    """Measures the alignment of each aligned layer from its kernels only.

    Returns:
        Measure of `KERNEL_MEASURES` -> connection name -> float32 scalar; NaN if it is not defined.
    """
    results: dict[str, dict[str, Tensor]] = {name: {} for name in KERNEL_MEASURES}
    with measuring_pass(model):
        for connection in connections(model):
            forward = keras.ops.convert_to_tensor(connection.kernel)
            backward = connection.linear_map.transpose(keras.ops.convert_to_tensor(connection.backward_kernel))
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
    angles: dict[str, Tensor] = {}

    def probe(connection: Any, inputs: Tensor, outputs: Tensor) -> Tensor:
        angles[connection.name] = _projection_angle(connection, inputs)
        return outputs

    mapping = [(variable, variable.value) for variable in model.variables]
    with keras.StatelessScope(state_mapping=mapping), measuring_pass(model, probe=probe):
        model(x, training=True)
    return {**measure_kernels(model), "projection_angle": angles}


def _projection_angle(connection: Connection, inputs: Tensor) -> Tensor:
    """Returns the angle between W^T x and B^T x, with the kernels in the dtype in which they are stored."""
    forward = tf.convert_to_tensor(connection.kernel.value)
    backward = connection.linear_map.transpose(tf.cast(connection.backward_kernel, forward.dtype))
    inputs = tf.cast(inputs, forward.dtype)
    return angle(connection.linear_map.project(inputs, forward), connection.linear_map.project(inputs, backward))


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
    pseudo, true, seen = _gradients(model, chosen, kernels, x, y)
    results: dict[str, dict[str, Tensor]] = {name: {} for name in MEASURES}
    for connection, forward, pseudogradient, gradient in zip(chosen, kernels, pseudo, true, strict=True):
        # The network may compute in half precision, which is too coarse for angles.
        inputs, upstream = (tf.cast(signal, forward.dtype) for signal in seen[connection.name])
        linear_map = connection.linear_map
        with measuring_pass(model):
            backward = linear_map.transpose(keras.ops.convert_to_tensor(connection.backward_kernel))
        row = (
            angle(forward, backward),
            norm_ratio(backward, forward),
            angle(linear_map.project(inputs, forward), linear_map.project(inputs, backward)),
            angle(
                linear_map.reconstruct(upstream, forward, like=inputs),
                linear_map.reconstruct(upstream, backward, like=inputs),
            ),
            angle(pseudogradient, gradient),
        )
        for name, value in zip(MEASURES, row, strict=True):
            results[name][connection.name] = value
    return results


def _gradients(
    model: keras.Model, chosen: list[Connection], kernels: list[Tensor], x: Tensor, y: Tensor
) -> tuple[list[Tensor], list[Tensor], dict[str, tuple[Tensor, Tensor]]]:
    """Returns the gradients of J to the forward kernels, through B and through W, and two signals of each layer.

    The signals are the inputs of the layer, and the error at its outputs that was sent through the backward kernels.
    """
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}

    def probe(connection: Any, layer_inputs: Tensor, layer_outputs: Tensor) -> Tensor:
        inputs[connection.name], outputs[connection.name] = layer_inputs, layer_outputs
        return layer_outputs

    kept = {id(connection.kernel): value for connection, value in zip(chosen, kernels, strict=True)}
    mapping = [(v, kept.get(id(v), v.value)) for v in model.variables if v.trainable or id(v) in kept]
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(kernels)
        scope = keras.StatelessScope(state_mapping=mapping)
        with scope, measuring_pass(model, probe=probe) as state:
            loss = model.compute_loss(x=x, y=y, y_pred=model(x, training=True), training=True)
    names = [connection.name for connection in chosen]
    zero = tf.UnconnectedGradients.ZERO  # Below frozen layers the tape has no error.
    sources = (kernels, [outputs[name] for name in names])
    pseudo, upstream = tape.gradient(loss, sources, unconnected_gradients=zero)
    state.weight_transport = True
    true = tape.gradient(loss, kernels, unconnected_gradients=zero)
    return pseudo, true, {name: (inputs[name], error) for name, error in zip(names, upstream, strict=True)}
