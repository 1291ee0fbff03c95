"""Cuts: points of a network where a rule replaces the backpropagated error by another error.

Between two cuts the network is differentiated as usual. Each path from a weight to the outputs contributes at its first
cut. The pseudogradient of the weight is the sum over these cuts of the error at the cut times the derivative of the
value at the cut with respect to the weight.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import keras
import tensorflow as tf

from neural_alignment.alignments.error_path import error_weights
from neural_alignment.alignments.forward_pass import side_pass
from neural_alignment.alignments.networkwise.base import Backward, KeptWeights, NetworkRule, TrainingBatch
from neural_alignment.alignments.networkwise.graph import has_known_cuts, is_nonlinear, kernel_layers, name_of
from neural_alignment.errors import ArgumentError, Words
from neural_alignment.keras_internals import all_layers, keep_mask
from neural_alignment.operations import LinearMap

Tensor = tf.Tensor


@dataclass(frozen=True)
class Cuts:
    """The points at which a network is cut, as sets of names of operations.

    Attributes:
        inputs: operations that are cut at their inputs, each of them if there are several.
        activations: layers that are cut before their own nonlinearity, and connections within a layer that are cut at
            their outputs. Recurrent layers of `models.rnn` are cut where a state enters the next time step.
        outputs: operations that are cut at their outputs.
        silent: operations that are cut at their outputs, where no error is supplied.
    """

    inputs: frozenset[str] = frozenset()
    activations: frozenset[str] = frozenset()
    outputs: frozenset[str] = frozenset()
    silent: frozenset[str] = frozenset()


def _recomputed(function: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    """Returns a function of a tensor. The backward pass calls the function again, once the upstream error is known."""
    results = []

    @tf.custom_gradient
    def operation(inputs: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        def gradient(upstream: Tensor) -> Tensor:
            with tf.control_dependencies([upstream]), tf.GradientTape() as tape:
                tape.watch(inputs)
                outputs = function(inputs)
            return tape.gradient(outputs, inputs, output_gradients=upstream)

        results.append(function(inputs))
        return results[0], gradient

    return keep_mask(operation(inputs), results[0])


@dataclass
class CutPass:
    """One forward pass through a network with cuts.

    Attributes:
        cuts: the points at which the network is cut.
        cut: called with the value at a cut; returns the value to record and the value with which the network continues.
        values: the recorded values, in the order of the forward pass.
        names: the operation or connection of each value.
        nonlinear: the outputs of nonlinearities, each with a function that computes it again; by the identity of the
            tensor.
        recipes: as `nonlinear`, for the values with which the network continues after a cut at such outputs.
    """

    cuts: Cuts
    cut: Callable[[Tensor], tuple[Tensor, Tensor]]
    values: list[Tensor] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    nonlinear: dict[int, tuple[Tensor, Callable[[], Tensor]]] = field(default_factory=dict)
    recipes: dict[int, tuple[Tensor, Callable[[], Tensor]]] = field(default_factory=dict)

    @property
    def hooks(self) -> dict[str, Any]:
        """The attributes of a `ForwardPass` that apply the cuts."""
        return {"probe": self._probe, "around": self._around}

    def _around(self, operation: Any, call: Callable[..., Any]) -> Callable[..., Any]:
        call = self._lean(call) if is_nonlinear(operation) and not getattr(operation, "variables", ()) else call

        def cut_call(*args: Any, **kwargs: Any) -> Any:
            if operation.name in self.cuts.inputs:
                record = functools.partial(self._record_signal, operation.name, {})
                args, kwargs = keras.tree.map_structure(record, (args, kwargs))
            outputs = call(*args, **kwargs)
            if operation.name in self.cuts.silent:
                return keep_mask(self.cut(outputs)[1], outputs)
            return self._record(operation.name, outputs) if operation.name in self.cuts.outputs else outputs

        return cut_call

    def _lean(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """Returns a nonlinearity that keeps its inputs for the backward pass, and not its outputs.

        Align-ada has two forward passes, whose values are kept until the errors are known. The outputs of a
        nonlinearity are computed again from its inputs, which the gradient of `BatchAxisNormalization` keeps in any
        case.
        """

        def lean(inputs: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            outputs = _recomputed(lambda x: call(x, *args, **kwargs), inputs)
            self.nonlinear[id(outputs)] = outputs, functools.partial(call, inputs, *args, **kwargs)
            return outputs

        return lean

    def _probe(self, layer: Any, inputs: Tensor, outputs: Tensor) -> Tensor:
        del inputs
        name = name_of(layer)
        return self._record(name, outputs) if name in self.cuts.activations else outputs

    def _record_signal(self, name: str, known: dict[int, Tensor], value: Any) -> Any:
        """Cuts a tensor of floats, once if it is passed twice; masks, options and the like are passed unchanged."""
        if not (tf.is_tensor(value) and value.dtype.is_floating):
            return value
        if id(value) not in known:
            known[id(value)] = self._record(name, value)
        return known[id(value)]

    def _record(self, name: str, value: Tensor) -> Tensor:
        recorded, continued = self.cut(value)
        self.values.append(recorded)
        self.names.append(name)
        if known := self.nonlinear.get(id(value), self.recipes.get(id(value))):
            self.recipes[id(continued)] = continued, known[1]
        return keep_mask(continued, value)

    def lean_product(self, linear_map: LinearMap, inputs: Tensor, kernel: Tensor) -> Tensor:
        """Returns W^T x. If x was cut at a nonlinearity, the backward pass computes x again; see `_lean`.

        Use this only where cuts are behind `tf.stop_gradient`, because no error is sent back to x.
        """
        if id(inputs) not in self.recipes:
            return linear_map.project(inputs, kernel)
        again = self.recipes[id(inputs)][1]

        @tf.custom_gradient
        def operation(kernel: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
            def gradient(upstream: Tensor) -> Tensor:
                with tf.control_dependencies([upstream]):
                    return linear_map.correlate(again(), upstream, like=kernel)

            return linear_map.project(inputs, kernel), gradient

        return operation(kernel)


class CutRule(NetworkRule):
    """A rule that runs the current network and supplies the errors at its cuts.

    A custom layer is cut at its inputs if the error would pass through a weight of it. It is treated as one linear map,
    with or without a nonlinearity at its end.
    """

    def keep(self, model: keras.Model, weights: KeptWeights) -> Any:
        """Checks that the network can be cut. See `NetworkRule.keep`.

        Raises:
            ValueError: if the network has a recurrent layer of Keras, or a custom layer in which the error would pass
                through several weights.
        """
        for layer in all_layers(model):
            if isinstance(layer, keras.layers.RNN):
                raise ArgumentError(
                    "alignment",
                    f"{self.rule!r} needs a network without recurrent layers of Keras, in which the error would travel "
                    "back through time by the layer's own weights",
                    Words(f"{type(layer).__name__} {layer.name!r}"),
                    "rule 'align_zero', or the network of models.rnn",
                )
        for layer in kernel_layers(model):
            if not has_known_cuts(layer) and len(found := error_weights(layer)) > 1:
                names = ", ".join(repr(weight.name) for weight in found)
                raise ArgumentError(
                    "alignment",
                    f"{self.rule!r} cuts a network between layers, so the error must pass through at most one weight "
                    "of a custom layer",
                    Words(f"{type(layer).__name__} {layer.name!r} with {names}"),
                    "one layer for each weight",
                )
        return super().keep(model, weights)

    def cuts(self, model: keras.Model) -> Cuts:
        """Returns the points at which the network is cut."""
        raise NotImplementedError

    def errors(
        self, model: keras.Model, kept: Any, batch: TrainingBatch, upstream: Tensor, values: list[Tensor]
    ) -> list[Tensor | None]:
        """Returns the error at each cut, in the shape of the value there; None for no error.

        Args:
            model: the network.
            kept: the object that `keep` returned.
            batch: the examples.
            upstream: dJ/d(outputs).
            values: the values at the cuts, in the order of the forward pass.
        """
        raise NotImplementedError

    def forward(self, model: keras.Model, kept: Any, batch: TrainingBatch) -> tuple[Tensor, Backward]:
        """Runs the network with its cuts. See `NetworkRule.forward`."""
        current = CutPass(self.cuts(model), lambda value: (value, tf.stop_gradient(value)))
        sources = [variable.value for variable in self.trained(model)]
        with tf.GradientTape() as tape:
            tape.watch(sources)
            with side_pass(**current.hooks, product=current.lean_product):
                outputs = model(batch.inputs, training=True)

        def backward(upstream: Tensor) -> list[Tensor]:
            errors = self.errors(model, kept, batch, upstream, current.values)
            pairs = [(outputs, upstream)]
            pairs += [(value, error) for value, error in zip(current.values, errors, strict=True) if error is not None]
            targets, gradients = map(list, zip(*pairs, strict=True))
            return tape.gradient(
                targets, sources, output_gradients=gradients, unconnected_gradients=tf.UnconnectedGradients.ZERO
            )

        return outputs, backward
