"""Rules that send errors or targets directly to each layer, and training of the readout only.

The readout is the last layer with a kernel.
"""

from __future__ import annotations

import math
import zlib
from typing import Any, ClassVar, Literal, NamedTuple

import keras
import tensorflow as tf

from neural_alignment.alignments.forward_pass import side_pass
from neural_alignment.alignments.networkwise.base import Backward, KeptWeights, NetworkRule, TrainingBatch
from neural_alignment.alignments.networkwise.cuts import CutPass, CutRule, Cuts
from neural_alignment.alignments.networkwise.graph import (
    after_weights,
    at_each_step,
    ends_nonlinear,
    has_kernel,
    has_weights,
    inner_cuts,
    is_nonlinear,
    kernel_layers,
    live_weights,
)
from neural_alignment.alignments.registry import register
from neural_alignment.errors import ArgumentError, Words
from neural_alignment.keras_internals import all_layers, calls, mask_of

Tensor = tf.Tensor


class _Map(NamedTuple):
    """The map of the error to one cut.

    Attributes:
        weight: the variable.
        positions: if the size of the images is unknown, the number of positions that determined the standard deviation;
            otherwise None.
    """

    weight: Any
    positions: int | None


@register
class DirectFeedback(CutRule):
    """Direct feedback alignment (Nøkland 2016): each layer gets the output error through its own fixed random map.

    The error at the output of a nonlinearity is M dJ/df, where f are the outputs of the network. They must be linear,
    because in Nøkland 2016 and in Boopathy and Fiete 2022 the error is that at the pre-activations of the last layer.
    From the nonlinearity the error passes through its current derivative and that of the batch normalisation before it.
    The map M has the shape `(height, width, channels, classes)` and the standard deviation
    1 / sqrt(height * width * channels), as in the published code of Boopathy and Fiete 2022. The readout gets dJ/df
    itself. Within attention and separable convolutions, each projection that enters another kernel of the layer gets an
    error through a map as well. Masked time steps get no error, except in the projections within attention.
    """

    needs_linear_outputs: ClassVar[bool] = True

    rule: Literal["dfa"] = "dfa"
    share_space: bool = False
    """Whether all positions of a layer share one map `(channels, classes)`, with the same standard deviation. Boopathy
    and Fiete 2022 describe this for ImageNet, to save memory. Images of any size can then be trained on."""
    seed: int = 0
    """Seed of the maps. Default in a run: the seed of the run. In a Keras model it is 0 unless this is set."""

    def keep(self, model: keras.Model, weights: KeptWeights) -> list[_Map]:
        """Draws a map for each cut. Maps are numbered, because layer names may differ between equal models.

        Raises:
            ValueError: if the outputs are not `(batch, classes)`, the size of a hidden layer is unknown, a layer is
                recurrent, or a layer that is cut inside is wrapped in `TimeDistributed`.
        """
        outputs = model.outputs[0].shape
        if len(outputs) != 2:
            requirement = f"{self.rule!r} needs a network with outputs (batch, classes)"
            raise ArgumentError("alignment", requirement, outputs, "a dense layer at the end")
        super().keep(model, weights)
        if recurrent := [layer for layer in all_layers(model) if getattr(layer, "recurrent", False)]:
            raise ArgumentError(
                "alignment",
                f"{self.rule!r} needs a network without recurrent layers, in which the error would travel back through "
                "time by the layer's own weights",
                Words(f"{type(recurrent[0]).__name__} {recurrent[0].name!r}"),
                "rule 'align_ada'",
            )
        self._check_wrappers(model)
        maps = []
        for operation, size in self._sizes(model):
            if None in size and not (self.share_space and size[-1] is not None):
                raise ArgumentError(
                    "alignment",
                    f"{self.rule!r} needs a network whose hidden sizes are known: a map has an entry for each unit",
                    Words(f"{operation!r} of shape {(None, *size)}"),
                    "share_space=True, or every size given, as in keras.Input((32, 32, 3))",
                )
            name = f"map_{len(maps)}"
            shape, fan = (size[-1:], [each for each in size if each]) if self.share_space else (size, size)
            drawn = weights.keep(name, _draw(name, (*shape, outputs[-1]), fan, self.seed))
            maps.append(_Map(drawn, math.prod(fan[:-1]) if None in size else None))
        return maps

    def _check_wrappers(self, model: keras.Model) -> None:
        """Raises a `ValueError` if all time steps of a cut are examples, so that there is no error for each of them."""
        for layer in kernel_layers(model):
            inner = at_each_step(layer)
            if inner is not layer and inner_cuts(inner):
                raise ArgumentError(
                    "alignment",
                    f"{self.rule!r} needs an error for each projection in a layer, which it does not have within "
                    "`TimeDistributed`",
                    Words(f"{type(inner).__name__} {inner.name!r} in {layer.name!r}"),
                    "the layer without the wrapper, or a convolution for each of its kernels",
                )

    def _sizes(self, model: keras.Model) -> list[tuple[str, tuple[int | None, ...]]]:
        """Returns the name of each cut and the shape of one example there, with None for an unknown size."""
        live = CutPass(self.cuts(model), lambda value: (value, value))
        specs = [tf.TensorSpec(tensor.shape, tensor.dtype) for tensor in model.inputs]

        def run(*inputs: Tensor) -> Tensor:
            with side_pass(**live.hooks):
                return model(keras.tree.pack_sequence_as(model.input, inputs), training=True)

        tf.function(run, autograph=False).get_concrete_function(*specs)
        return [(name, tuple(value.shape[1:])) for name, value in zip(live.names, live.values, strict=True)]

    def cuts(self, model: keras.Model) -> Cuts:
        """Returns the cuts: after every nonlinearity before the readout.

        A layer with a kernel is also cut at its inputs if there is no nonlinearity between it and the previous layer
        with weights, such as another kernel, an embedding, or a normalisation after the nonlinearity.
        """
        graph = list(calls(model))
        operations = [call.operation for call in graph]
        readout = max(place for place, operation in enumerate(operations) if has_kernel(operation))
        hidden = {each.name for each in operations[:readout] if is_nonlinear(each) or ends_nonlinear(each)}
        bare = after_weights(graph, blocks=lambda operation: operation.name in hidden)
        inner = set().union(*(inner_cuts(each) for each in operations))
        return Cuts(
            inputs=frozenset({each.name for each in operations if has_kernel(each)} & bare),
            activations=frozenset(inner),
            outputs=frozenset(
                hidden & (after_weights(graph) | {each.name for each in operations if has_weights(each)})
            ),
        )

    def errors(
        self, model: keras.Model, kept: list[_Map], batch: TrainingBatch, upstream: Tensor, values: list[Tensor]
    ) -> list[Tensor | None]:
        """Returns M dJ/df at each cut, and zeros at the steps that are masked there."""
        del model, batch
        return [_masked(self._mapped(each, upstream, value), value) for each, value in zip(kept, values, strict=True)]

    def _mapped(self, each: _Map, upstream: Tensor, value: Tensor) -> Tensor:
        matrix = tf.cast(tf.convert_to_tensor(each.weight.value), upstream.dtype)
        flat = tf.matmul(upstream, tf.reshape(matrix, [-1, matrix.shape[-1]]), transpose_b=True)
        if not self.share_space:
            return tf.cast(tf.reshape(flat, tf.shape(value)), value.dtype)
        if each.positions is not None:
            flat *= tf.math.rsqrt(tf.cast(tf.reduce_prod(tf.shape(value)[1:-1]) / each.positions, flat.dtype))
        spread = tf.reshape(flat, [-1, *[1] * (len(value.shape) - 2), matrix.shape[0]])
        return tf.cast(tf.broadcast_to(spread, tf.shape(value)), value.dtype)


@register
class DirectTargetProjection(DirectFeedback):
    """Direct random target projection, DRTP (Frenkel, Lefebvre and Bol 2021): hidden layers get the projected target.

    The error at the output of a nonlinearity is -M y* / N, where y* is the one-hot code of the class of an example and
    N the number of examples in the batch, if J is a mean over the batch. In general 1 / N is the derivative of J with
    respect to the loss of the example: 1 for a sum, and the share of the example in a weighted mean. A single logit has
    the class, 0 or 1, as its y*. A loss with other codes of the classes, such as `HalfSquaredError`, has these as y*.
    The target y* takes the place of the output error y* - y, so hidden layers need not wait for the outputs. Gradient
    descent changes the W of a hidden layer in proportion to x ((M y*) f'(z))^T, as in the paper, where x is its input,
    z its pre-activation and f its nonlinearity; the change is a mean over the batch. The readout gets dJ/df itself.
    Maps, cuts and options are those of `DirectFeedback`.
    """

    needs_linear_outputs: ClassVar[bool] = False  # Hidden layers get the target in place of an error.

    rule: Literal["drtp"] = "drtp"

    def errors(
        self, model: keras.Model, kept: list[_Map], batch: TrainingBatch, upstream: Tensor, values: list[Tensor]
    ) -> list[Tensor | None]:
        """Returns -M y* / N at each cut."""
        wide = tf.float64 if upstream.dtype == tf.float64 else tf.float32
        targets = batch.output_targets(model.outputs[0].shape[-1], wide) * -batch.shares(wide)[:, None]
        return super().errors(model, kept, batch, tf.cast(targets, upstream.dtype), values)


def _masked(error: Tensor, value: Tensor) -> Tensor:
    """Returns an error `(batch, steps, ...)` with zeros at the steps that are masked in the value at the cut."""
    mask = mask_of(value)
    if mask is None:
        return error
    shape = tf.concat([tf.shape(mask), tf.ones([error.shape.rank - mask.shape.rank], tf.int32)], axis=0)
    return error * tf.cast(tf.reshape(mask, shape), error.dtype)


def _draw(name: str, shape: tuple[int, ...], fan: tuple[int, ...], seed: int) -> Tensor:
    """Draws normal numbers with standard deviation 1 / sqrt(product of `fan`). `seed` and `name` determine them."""
    initializer = keras.initializers.RandomNormal(
        stddev=1.0 / math.sqrt(math.prod(fan)), seed=zlib.crc32(f"{seed}/{name}/feedback".encode()) & 0x7FFFFFFF
    )
    return tf.convert_to_tensor(initializer(shape, dtype=keras.config.floatx()))


@register
class LastLayer(NetworkRule):
    """Training of the readout only: the last layer with a kernel and the layers after it. All other weights are fixed.

    In a recurrent network the initial state is trained as well, by its true gradient, as in the published code of
    Boopathy and Fiete 2022.
    """

    takes_sequences: ClassVar[bool] = True

    rule: Literal["last_layer"] = "last_layer"

    def trained(self, model: keras.Model) -> list[Any]:
        """Returns the variables of the readout and of the layers after it, and initial states."""
        operations = [call.operation for call in calls(model)]
        after = operations[operations.index(kernel_layers(model)[-1]) :]
        moved = [variable for operation in after for variable in getattr(operation, "trainable_variables", [])]
        chosen = {id(variable) for variable in (*moved, *live_weights(model))}
        return [variable for variable in model.trainable_variables if id(variable) in chosen]

    def forward(self, model: keras.Model, kept: None, batch: TrainingBatch) -> tuple[Tensor, Backward]:
        """Runs the network; backpropagates the error to the trained variables only. See `NetworkRule.forward`."""
        del kept
        sources = [variable.value for variable in self.trained(model)]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(sources)
            outputs = model(batch.inputs, training=True)
        return outputs, lambda upstream: tape.gradient(outputs, sources, output_gradients=upstream)
