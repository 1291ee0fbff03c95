"""Trains W*, the weights of a frozen copy of a network, with the output error only (Boopathy and Fiete 2022)."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from neural_alignment.alignments import side_pass
from neural_alignment.alignments.networkwise import Frozen, KeptWeights
from neural_alignment.alignments.networkwise.graph import kernel_layers
from neural_alignment.errors import ArgumentError
from neural_alignment.keras_internals import compute_loss
from neural_alignment.training.model import AlignedModel

Tensor = tf.Tensor

_MORE = (
    *("momentum", "weight_decay", "clipnorm", "clipvalue", "global_clipnorm", "use_ema", "loss_scale_factor"),
    "gradient_accumulation_steps",
)
"""Options of `keras.optimizers.SGD` with which an update is not only the learning rate times the gradient."""


class Lockstep:
    """Trains W* in lockstep with a network that is trained by gradient descent (equation 13).

    dW*_l = grad_{z_l} f(0) dJ/df(t) sigma(z_{l-1}(0))^T. This is the rule of Align-zero with the current output error
    dJ/df(t) of the network. W* starts at the weights that the network has before the first `step`. Both are trained by
    plain gradient descent with the same learning rate.

    `changes` and `reference_changes` have an entry for each layer with a trained weight `kernel`. Attention, separable
    convolutions, recurrent layers of Keras and wrappers have no weight of this name, and are left out.

    Args:
        model: a compiled model without alignment rules and without `minibatches`. Its optimizer is
            `keras.optimizers.SGD` with no other options than a learning rate, either directly or as the only optimizer
            of a `MultiOptimizer` without a scheduler.

    Raises:
        ArgumentError: if the optimizer is another one or skips steps, or if a layer has an alignment.
        ValueError: if a layer draws random numbers.
    """

    def __init__(self, model: AlignedModel):
        optimizer = getattr(model, "optimizer", None)
        inner = getattr(optimizer, "inner_optimizers", [optimizer])
        found = [_description(each) for each in inner]
        if not getattr(optimizer, "constant", True):
            found[0] += " that skips some steps"
        if getattr(model, "minibatches", 1) > 1:
            found[0] += f" in {model.minibatches} minibatches"
        if found != ["SGD"]:
            example = "MultiOptimizer([keras.optimizers.SGD(1.0)])"
            raise ArgumentError("model", "must be trained by plain gradient descent", ", ".join(found), example)
        aligned = [layer for layer in model.layers if getattr(layer, "alignment", None) is not None]
        if not isinstance(model, AlignedModel) or aligned:
            which = f"{aligned[0].alignment.rule} at {aligned[0].name}" if aligned else type(model).__name__
            requirement = "must be an AlignedModel trained by backpropagation"
            raise ArgumentError("model", requirement, which, "layers without `alignment`")
        self._model = model
        self._optimizer = inner[0]
        self._kept = KeptWeights(name="lockstep")
        self._frozen = Frozen(model, self._kept)
        self._variables = list(model.trainable_variables)
        self._changes = [tf.Variable(tf.zeros_like(variable.value), trainable=False) for variable in self._variables]
        self._step = tf.function(self._step_on, reduce_retracing=True, autograph=False)

    def step(self, x: Any, y: Any) -> None:
        """Makes one step of the network and of W* on one batch.

        Args:
            x: inputs `(batch, ...)`.
            y: targets, in the form that the compiled loss requires.
        """
        self._frozen.take()
        self._step(tf.convert_to_tensor(x), tf.convert_to_tensor(y))

    def _step_on(self, x: Tensor, y: Tensor) -> None:
        # Updates of variables, such as moving statistics, are left to the training step below.
        with keras.StatelessScope(), side_pass():
            outputs = self._model(x, training=True)
        with tf.GradientTape() as tape:
            tape.watch(outputs)
            loss = compute_loss(self._model, x, y, outputs, None, training=True)
        gradients = self._frozen.gradients(x, tape.gradient(loss, outputs))
        rate = tf.convert_to_tensor(self._optimizer.learning_rate)
        with tf.control_dependencies(gradients):
            for change, gradient in zip(self._changes, gradients, strict=True):
                change.assign_sub(tf.cast(rate, gradient.dtype) * gradient)
            self._model.train_step((x, y))

    def reference_changes(self) -> dict[str, Tensor]:
        """Returns W*(t) - W(0) of every layer with a trained `kernel`, by name."""
        changes = {id(variable): change for variable, change in zip(self._variables, self._changes, strict=True)}
        return {name: changes[id(kernel)].value() for name, kernel in self._kernels.items()}

    def changes(self) -> dict[str, Tensor]:
        """Returns W(t) - W(0) of every layer with a trained `kernel`, by name."""
        initial = {id(v): value for v, value in zip(self._variables, self._frozen.values(), strict=True)}
        return {
            name: tf.convert_to_tensor(kernel.value) - initial[id(kernel)] for name, kernel in self._kernels.items()
        }

    @property
    def _kernels(self) -> dict[str, Any]:
        """The trained variable `kernel` of each layer that has one, by the name of the layer."""
        trained = set(map(id, self._variables))
        found = {layer.name: getattr(layer, "kernel", None) for layer in kernel_layers(self._model)}
        return {name: kernel for name, kernel in found.items() if id(kernel) in trained}


def _description(optimizer: Any) -> str:
    """Returns the name of an optimizer, followed by the options of `_MORE` that are set."""
    if optimizer is None:
        return "a model that is not compiled"
    return " ".join([type(optimizer).__name__, *(name for name in _MORE if getattr(optimizer, name, None))])
