"""Align-zero and Align-ada (Boopathy and Fiete 2022): the error passes through the network at initialisation.

Of a value that changes during training, f(0) denotes the value in the network at initialisation, which is called
frozen, and f(t) that in the network at the current step t.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import keras
import tensorflow as tf

from neural_alignment.alignments.forward_pass import side_pass
from neural_alignment.alignments.networkwise.base import Backward, KeptWeights, NetworkRule, TrainingBatch, values_of
from neural_alignment.alignments.networkwise.cuts import CutPass, CutRule, Cuts
from neural_alignment.alignments.networkwise.graph import (
    after_weights,
    ends_nonlinear,
    has_kernel,
    inner_cuts,
    is_nonlinear,
    kernels_ahead,
    live_weights,
    name_of,
)
from neural_alignment.alignments.registry import register
from neural_alignment.errors import ArgumentError, Words
from neural_alignment.keras_internals import all_layers, calls, weights_to_train

Tensor = tf.Tensor


class Frozen:
    """A network at initialisation, with weights W(0).

    W(0) contains a copy of every variable that a layer trains unless its `trainable` is False, except those in
    `live_weights` of a layer: these keep their current values. Layers may therefore be frozen and thawed at any time,
    and a model has the same weights before and after. The copies are recorded once, just before the first training
    step, so they include values that were assigned or loaded earlier. W(0) is saved with the model, so a model that is
    loaded or resumed keeps it.

    Args:
        model: the network.
        weights: holds the copies.

    Raises:
        ValueError: if a layer draws random numbers, such as dropout. The frozen network would draw other numbers, so
            it would differ from the current network even at the first step.
    """

    def __init__(self, model: keras.Model, weights: KeptWeights):
        if random := [layer for layer in all_layers(model) if _draws(layer)]:
            found = Words(f"{type(random[0]).__name__} {random[0].name!r}")
            requirement = "is frozen at initialisation and must have no layer that draws random numbers"
            raise ArgumentError("model", requirement, found, "the network without this layer")
        self._model = model
        self._variables = list({id(variable): variable for variable in weights_to_train(model)}.values())
        live = {id(variable) for variable in live_weights(model)}
        self._initial = [
            variable
            if id(variable) in live
            else weights.keep(f"initial_{number}_{variable.path.replace('/', '_')}", values_of([variable])[0])
            for number, variable in enumerate(self._variables)
        ]
        self._taken = weights.keep("taken", tf.constant(False))

    def take(self) -> None:
        """Records W(0), unless it is already recorded."""

        def take() -> Tensor:
            for initial, variable in zip(self._initial, self._variables, strict=True):
                if initial is not variable:
                    initial.assign(variable.value)
            self._taken.assign(True)
            return tf.constant(True)

        tf.cond(tf.convert_to_tensor(self._taken.value), lambda: tf.constant(True), take)

    def values(self) -> list[Tensor]:
        """Returns W(0), in the order of the variables of this object.

        In eager execution these are the current values until W(0) is recorded.

        Raises:
            ValueError: if a layer has got another trainable variable since this object was created.
        """
        known = set(map(id, self._variables))
        if new := [variable.path for variable in self._model.trainable_variables if id(variable) not in known]:
            requirement = "must have all its variables before the AlignedModel is made, because the rule copies them"
            found = Words(f"{new[0]!r}, which was created later")
            raise ArgumentError("layer", requirement, found, "a layer that creates its variables in `build`")
        recorded = not tf.executing_eagerly() or bool(self._taken.numpy())
        return values_of(self._initial if recorded else self._variables)

    def gradients(self, x: Tensor, upstream: Tensor) -> list[Tensor]:
        """Propagates an error at the outputs back through the frozen network, to each trainable variable.

        Args:
            x: inputs `(batch, ...)`.
            upstream: dJ/d(outputs), usually of the current network.

        Returns:
            One gradient for each trainable variable of the model.
        """
        values = self.values()
        value_of = {id(variable): value for variable, value in zip(self._variables, values, strict=True)}
        sources = [value_of[id(variable)] for variable in self._model.trainable_variables]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(sources)
            outputs = self(x, values)
        return tape.gradient(
            outputs, sources, output_gradients=upstream, unconnected_gradients=tf.UnconnectedGradients.ZERO
        )

    def __call__(self, x: Tensor, values: list[Tensor], **hooks: Any) -> Tensor:
        """Returns the outputs of the frozen network. Batch normalisation uses the statistics of `x`.

        No variable is changed.

        Args:
            x: inputs `(batch, ...)`.
            values: W(0), from the method `values`. The outputs can be differentiated with respect to these tensors.
            **hooks: `probe` and `around` of the `ForwardPass`.
        """
        mapping = list(zip(self._variables, values, strict=True))
        with keras.StatelessScope(state_mapping=mapping), side_pass(**{"probe": None, "around": None, **hooks}):
            return self._model(x, training=True)


class FrozenRule(NetworkRule):
    """A rule that needs W(0), the weights before the first training step.

    The error is dJ/dz_N, that at the pre-activations of the last layer, which are the outputs f in the paper (equations
    1 and 15). With nonlinear outputs it would be divided by the current derivative and multiplied by the frozen one.
    """

    takes_sequences: ClassVar[bool] = True
    needs_linear_outputs: ClassVar[bool] = True

    def keep(self, model: keras.Model, weights: KeptWeights) -> Frozen:
        """Creates the weights that will hold W(0). See `NetworkRule.keep`."""
        super().keep(model, weights)
        return Frozen(model, weights)

    def start(self, kept: Frozen) -> None:
        """Records W(0), unless it is already recorded."""
        kept.take()


@register
class AlignZero(FrozenRule):
    """Align-zero (equation 15): the gradient of the frozen network, except that dJ/df is that of the current network.

    dW_l = grad_{z_l} f(0) dJ/df(t) sigma(z_{l-1}(0))^T, where f are the outputs, z_l the pre-activations of layer l and
    sigma the nonlinearity. The activities, the derivatives of nonlinearities and the batch statistics of normalisation
    layers are those of the frozen network on the current batch. A step needs one forward pass more than
    backpropagation. In recurrent networks the rule is applied to the network unrolled over all time steps (Appendix E).
    """

    rule: Literal["align_zero"] = "align_zero"

    def forward(self, model: keras.Model, kept: Frozen, batch: TrainingBatch) -> tuple[Tensor, Backward]:
        """Runs the network. Its error is propagated back through the frozen network. See `NetworkRule.forward`."""
        x = batch.inputs
        return model(x, training=True), lambda upstream: kept.gradients(x, upstream)


@register
class AlignAda(FrozenRule, CutRule):
    """Align-ada (equation 16): Align-zero with the presynaptic activities of the current network.

    dW_l = grad_{z_l} f(0) dJ/df(t) sigma(z_{l-1}(t))^T, in the notation of `AlignZero`. The network is cut at the
    inputs of each nonlinearity and of each layer with a kernel, except nonlinearities that are followed only by a
    readout. The error at a cut is that of the frozen network. Between a weight and the next cut the error passes
    through the current network, including the batch normalisation after the weight. The derivative of the last
    nonlinearity before the readout is therefore the current one, as in the published code; in equation 16 it is the
    frozen one. If several branches meet in the readout, this holds for the last nonlinearity of each branch.

    A recurrent layer is cut where a state enters the next time step. The error of the state comes only from the outputs
    of later steps (equation 58), and passes through the current derivative of its nonlinearity, as required to
    reproduce the losses of Table 8.
    """

    rule: Literal["align_ada"] = "align_ada"

    def cuts(self, model: keras.Model) -> Cuts:
        """Returns the cuts: at the inputs of kernel layers, and of nonlinearities that not only a readout follows."""
        graph = list(calls(model))
        operations = [call.operation for call in graph]
        ahead = kernels_ahead(graph)
        nonlinear = [
            each for each in operations if (is_nonlinear(each) or ends_nonlinear(each)) and ahead[each.name] > 1
        ]
        inputs = {each.name for each in nonlinear if is_nonlinear(each)}
        inputs |= {each.name for each in operations if has_kernel(each)}
        activations = {name_of(each) for each in nonlinear if ends_nonlinear(each)}
        activations |= set().union(*(inner_cuts(each) for each in operations))
        recurrent = frozenset(each.name for each in operations if getattr(each, "recurrent", False))
        return Cuts(frozenset(inputs & after_weights(graph)), recurrent.union(activations), silent=recurrent)

    def errors(
        self, model: keras.Model, kept: Frozen, batch: TrainingBatch, upstream: Tensor, values: list[Tensor]
    ) -> list[Tensor | None]:
        """Returns the errors at the same cuts of the frozen network. See `CutRule.errors`."""
        del values
        with tf.GradientTape(watch_accessed_variables=False) as tape:

            def watched(value: Tensor) -> tuple[Tensor, Tensor]:
                value = tf.identity(value)
                tape.watch(value)
                return value, value

            frozen = CutPass(self.cuts(model), watched)
            outputs = kept(batch.inputs, kept.values(), **frozen.hooks)
        return tape.gradient(outputs, frozen.values, output_gradients=upstream)


def _draws(layer: Any) -> bool:
    """Returns whether a layer itself draws random numbers in training: whether it has a random generator.

    Recurrent cells have one even without dropout.
    """
    rates = [getattr(layer, name, None) for name in ("dropout", "recurrent_dropout")]
    if None not in rates:
        return any(rates)
    return any(isinstance(value, keras.random.SeedGenerator) for value in vars(layer).values())
