"""Direct feedback alignment, and training of the readout alone."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import keras
import tensorflow as tf

from neural_alignment.alignments.networkwise.base import (
    Backward,
    Kept,
    NetworkRule,
    draw,
    graph,
    has_kernel,
    kernel_layers,
    live_weights,
)
from neural_alignment.alignments.networkwise.cuts import CutRule, Places, ends_nonlinear, is_nonlinear, reached
from neural_alignment.alignments.registry import register

Tensor = tf.Tensor


@register
class DirectFeedback(CutRule):
    """Direct feedback alignment (Nøkland 2016): each layer gets the output error through a fixed random map of its own.

    The error at the output of a nonlinearity is M dJ/df; the gate and the batch normalisation before it are live. M has
    the shape (height, width, channels, classes), standard deviation 1 / sqrt(height * width * channels), and is not
    shared over space (the published code of Boopathy and Fiete 2022). The readout gets the error itself.

    Attributes:
        share_space: one map (channels, classes) for all places of a layer, of the same standard deviation: what that
            paper describes for ImageNet, to save memory.
        seed: seed of the maps; the run's seed where a configuration does not say.
    """

    takes_sequences: ClassVar[bool] = False

    rule: Literal["dfa"] = "dfa"
    share_space: bool = False
    seed: int = 0

    def keep(self, model: keras.Model, kept: Kept) -> list[Any]:
        """Draws a map for each cut, by its place: Keras numbers the names of layers on from model to model.

        Raises:
            ValueError: if the outputs are not `(batch, classes)`, or the size of a hidden layer is not known.
        """
        if len(model.output_shape) != 2:
            raise ValueError(
                f"'dfa' needs a network with outputs (batch, classes). Received outputs {model.output_shape}. "
                "Example: a dense layer at the end."
            )
        places = self.places(model)
        maps = []
        for operation, _ in graph(model):
            shapes = [operation.input.shape] if operation.name in places.inputs else []
            shapes += [operation.output.shape] if operation.name in places.outputs else []
            for shape in shapes:
                size = tuple(shape[1:])
                if None in size:
                    raise ValueError(
                        "'dfa' needs a network whose hidden sizes are known: a map has an entry for each unit. "
                        f"Received {operation.name!r} of shape {tuple(shape)}. "
                        "Example: every size given, as in keras.Input((32, 32, 3))."
                    )
                drawn = size[-1:] if self.share_space else size
                name = f"map_{len(maps)}"
                maps.append(kept.keep(name, draw(name, (*drawn, model.output_shape[-1]), size, self.seed)))
        return maps

    def places(self, model: keras.Model) -> Places:
        """Returns where the network is cut: after every nonlinearity before the readout.

        A layer with a kernel that takes the outputs of another one straight away is cut before.
        """
        nodes = list(graph(model))
        readout = max(place for place, (operation, _) in enumerate(nodes) if has_kernel(operation))
        hidden = {each.name for each, _ in nodes[:readout] if is_nonlinear(each) or ends_nonlinear(each)}
        bare = reached(nodes, blocks=lambda operation: operation.name in hidden)
        inputs = {each.name for each, _ in nodes if has_kernel(each) and each.name in bare}
        outputs = hidden & (reached(nodes) | {each.name for each, _ in nodes if has_kernel(each)})
        return Places(inputs=frozenset(inputs), outputs=frozenset(outputs))

    def errors(
        self, model: keras.Model, kept: list[Any], x: Tensor, upstream: Tensor, values: list[Tensor]
    ) -> list[Tensor | None]:
        """Returns M dJ/df at each cut."""
        del model, x
        return [self._mapped(weight, upstream, value) for weight, value in zip(kept, values, strict=True)]

    def _mapped(self, weight: Any, upstream: Tensor, value: Tensor) -> Tensor:
        matrix = tf.cast(tf.convert_to_tensor(weight.value), upstream.dtype)
        flat = tf.matmul(upstream, tf.reshape(matrix, [-1, matrix.shape[-1]]), transpose_b=True)
        if not self.share_space:
            return tf.cast(tf.reshape(flat, tf.shape(value)), value.dtype)
        spread = tf.reshape(flat, [-1, *[1] * (len(value.shape) - 2), matrix.shape[0]])
        return tf.cast(tf.broadcast_to(spread, tf.shape(value)), value.dtype)


@register
class LastLayer(NetworkRule):
    """Training of the readout alone: the last layer with a kernel, and what follows it; all else stays as it was drawn.

    In a recurrent network this is readout-only training, which in the published code of Boopathy and Fiete 2022 moves
    the initial state as well, by its true gradient.
    """

    rule: Literal["last_layer"] = "last_layer"

    def trained(self, model: keras.Model) -> list[Any]:
        """Returns the variables of the readout and of what follows it, and initial states."""
        operations = [operation for operation, _ in graph(model)]
        after = operations[operations.index(kernel_layers(model)[-1]) :]
        moved = [variable for operation in after for variable in getattr(operation, "trainable_variables", [])]
        chosen = {id(variable) for variable in (*moved, *live_weights(model))}
        return [variable for variable in model.trainable_variables if id(variable) in chosen]

    def forward(self, model: keras.Model, kept: None, x: Tensor) -> tuple[Tensor, Backward]:
        """Runs the network; the error goes back as in backpropagation, to what is trained alone."""
        del kept
        sources = [variable.value for variable in self.trained(model)]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(sources)
            outputs = model(x, training=True)
        return outputs, lambda upstream: tape.gradient(outputs, sources, output_gradients=upstream)
