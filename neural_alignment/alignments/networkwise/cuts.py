"""Cuts: points of a network where a rule replaces the backpropagated error by another error.

Between two cuts the network is differentiated as usual. Each path from a weight to the outputs contributes at its first
cut. The pseudogradient of the weight is the sum over these cuts of the error at the cut times the derivative of the
value at the cut with respect to the weight.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import keras
import tensorflow as tf

from neural_alignment.alignments.forward_pass import side_pass
from neural_alignment.alignments.networkwise.base import Backward, NetworkRule, TrainingBatch

Tensor = tf.Tensor


@dataclass(frozen=True)
class Cuts:
    """The points at which a network is cut, as sets of names of operations.

    Attributes:
        inputs: operations that are cut at their inputs.
        activations: layers that are cut before their own nonlinearity. Recurrent layers are cut where a state enters
            the next time step.
        outputs: operations that are cut at their outputs.
        silent: operations that are cut at their outputs, where no error is supplied.
    """

    inputs: frozenset[str] = frozenset()
    activations: frozenset[str] = frozenset()
    outputs: frozenset[str] = frozenset()
    silent: frozenset[str] = frozenset()


@dataclass
class CutPass:
    """One forward pass through a network with cuts.

    Attributes:
        cuts: the points at which the network is cut.
        cut: called with the value at a cut; returns the value to record and the value with which the network continues.
        values: the recorded values, in the order of the forward pass.
    """

    cuts: Cuts
    cut: Callable[[Tensor], tuple[Tensor, Tensor]]
    values: list[Tensor] = field(default_factory=list)

    @property
    def hooks(self) -> dict[str, Any]:
        """The attributes of a `ForwardPass` that apply the cuts."""
        return {"probe": self._probe, "around": self._around}

    def _around(self, operation: Any, call: Callable[..., Any]) -> Callable[..., Any]:
        def cut_call(first: Tensor, *args: Any, **kwargs: Any) -> Any:
            if operation.name in self.cuts.inputs:
                first = self._record(first)
            outputs = call(first, *args, **kwargs)
            if operation.name in self.cuts.silent:
                return self.cut(outputs)[1]
            return self._record(outputs) if operation.name in self.cuts.outputs else outputs

        return cut_call

    def _probe(self, layer: Any, inputs: Tensor, outputs: Tensor) -> Tensor:
        del inputs
        return self._record(outputs) if layer.name in self.cuts.activations else outputs

    def _record(self, value: Tensor) -> Tensor:
        recorded, value = self.cut(value)
        self.values.append(recorded)
        return value


class CutRule(NetworkRule):
    """A rule that runs the current network and supplies the errors at its cuts."""

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
            with side_pass(**current.hooks):
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
