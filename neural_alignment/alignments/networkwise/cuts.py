"""Cuts: places where a rule takes the error away and brings another one.

Between two cuts a network is differentiated as it is. The gradient of a weight is then, summed over the cuts that it
reaches first, (the error at the cut) times (the derivative of the cut value to the weight).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import keras
import tensorflow as tf

from neural_alignment.alignments.forward_pass import side_pass
from neural_alignment.alignments.networkwise.base import Backward, NetworkRule, has_kernel

Tensor = tf.Tensor

_LAYERS = (
    *(keras.layers.Activation, keras.layers.ReLU, keras.layers.LeakyReLU, keras.layers.ELU, keras.layers.PReLU),
    keras.layers.Softmax,
)

_FUNCTIONS = (
    *(
        "celu",
        "elu",
        "gelu",
        "glu",
        "hard_shrink",
        "hard_sigmoid",
        "hard_silu",
        "hard_tanh",
        "leaky_relu",
        "log_sigmoid",
    ),
    *("log_softmax", "relu", "relu6", "selu", "sigmoid", "silu", "soft_shrink", "softmax", "softplus", "softsign"),
    *("sparse_plus", "sparse_sigmoid", "sparsemax", "squareplus", "tanh", "tanh_shrink", "exp", "threshold"),
)
"""Names of nonlinearities in `keras.ops`; not every version has all."""

_ARGUMENTS = {"threshold": (0.0, 0.0)}
"""Name of a nonlinearity -> what it must be called with besides its input."""


@functools.cache
def _nonlinearities() -> tuple[type, ...]:
    """Returns the classes of the operations that are nonlinearities: layers, and functions of a symbolic tensor."""
    symbolic = keras.KerasTensor((None, 2))
    outputs = [
        getattr(keras.ops, name)(symbolic, *_ARGUMENTS.get(name, ())) for name in _FUNCTIONS if hasattr(keras.ops, name)
    ]
    outputs.append(keras.activations.relu(symbolic))  # An operation of its own; other activations are of keras.ops.
    return (*_LAYERS, *{type(output._keras_history.operation) for output in outputs})


@dataclass(frozen=True)
class Places:
    """Where a network is cut, by names of its operations.

    Attributes:
        inputs: operations whose inputs are cut.
        activations: layers that are cut before the nonlinearity that they apply themselves; recurrent ones where a
            state enters the next.
        outputs: operations whose outputs are cut.
        silent: operations whose outputs are cut and get no error.
    """

    inputs: frozenset[str] = frozenset()
    activations: frozenset[str] = frozenset()
    outputs: frozenset[str] = frozenset()
    silent: frozenset[str] = frozenset()


@dataclass
class Pass:
    """One forward pass through the places of a network.

    Attributes:
        places: where.
        cut: what is done with a value at a cut; returns what to note, and what to go on with.
        values: what was noted, in the order of the forward pass.
    """

    places: Places
    cut: Callable[[Tensor], tuple[Tensor, Tensor]]
    values: list[Tensor] = field(default_factory=list)

    @property
    def hooks(self) -> dict[str, Any]:
        """What a `ForwardPass` takes to come by here."""
        return {"probe": self._probe, "around": self._around}

    def _around(self, operation: Any, call: Callable[..., Any]) -> Callable[..., Any]:
        def cut_call(first: Tensor, *args: Any, **kwargs: Any) -> Any:
            if operation.name in self.places.inputs:
                first = self._mark(first)
            outputs = call(first, *args, **kwargs)
            if operation.name in self.places.silent:
                return self.cut(outputs)[1]
            return self._mark(outputs) if operation.name in self.places.outputs else outputs

        return cut_call

    def _probe(self, layer: Any, inputs: Tensor, outputs: Tensor) -> Tensor:
        del inputs
        return self._mark(outputs) if layer.name in self.places.activations else outputs

    def _mark(self, value: Tensor) -> Tensor:
        noted, value = self.cut(value)
        self.values.append(noted)
        return value


class CutRule(NetworkRule):
    """A rule that runs the network as it is and brings errors of its own to cuts."""

    def places(self, model: keras.Model) -> Places:
        """Returns where the network is cut."""
        raise NotImplementedError

    def errors(
        self, model: keras.Model, kept: Any, x: Tensor, upstream: Tensor, values: list[Tensor]
    ) -> list[Tensor | None]:
        """Returns the error at each cut, or none where no error comes.

        Args:
            model: the network.
            kept: what `keep` returned.
            x: inputs `(batch, ...)`.
            upstream: dJ/d(outputs).
            values: of the cuts, in the order of the forward pass.
        """
        raise NotImplementedError

    def forward(self, model: keras.Model, kept: Any, x: Tensor) -> tuple[Tensor, Backward]:
        """Runs the network, cut; returns its outputs and what takes their error back."""
        live = Pass(self.places(model), lambda value: (value, tf.stop_gradient(value)))
        sources = [variable.value for variable in self.trained(model)]
        with tf.GradientTape() as tape:
            tape.watch(sources)
            with side_pass(**live.hooks):
                outputs = model(x, training=True)

        def backward(upstream: Tensor) -> list[Tensor]:
            errors = self.errors(model, kept, x, upstream, live.values)
            pairs = [(outputs, upstream)]
            pairs += [(value, error) for value, error in zip(live.values, errors, strict=True) if error is not None]
            targets, gradients = map(list, zip(*pairs, strict=True))
            return tape.gradient(
                targets, sources, output_gradients=gradients, unconnected_gradients=tf.UnconnectedGradients.ZERO
            )

        return outputs, backward


def is_nonlinear(operation: Any) -> bool:
    """Whether an operation is a nonlinearity and nothing else."""
    linear = getattr(operation, "activation", None) is keras.activations.linear
    return isinstance(operation, _nonlinearities()) and not linear


def ends_nonlinear(operation: Any) -> bool:
    """Whether a layer with a kernel applies a nonlinearity itself."""
    return getattr(operation, "ends_nonlinear", False)


def kernels_ahead(nodes: list[tuple[Any, list[Any]]]) -> dict[str, int]:
    """Returns name of an operation -> layers with a kernel on the way from its outputs on, on the longest such way.

    Args:
        nodes: what `graph` yields.
    """
    ahead = {operation.name: 0 for operation, _ in nodes}
    for operation, parents in reversed(nodes):
        passed = ahead[operation.name] + has_kernel(operation)
        for parent in parents:
            ahead[parent.name] = max(ahead.get(parent.name, 0), passed)
    return ahead


def reached(nodes: list[tuple[Any, list[Any]]], blocks: Callable[[Any], bool] = lambda _: False) -> set[str]:
    """Returns the names of the operations whose inputs depend on a layer with a kernel.

    Args:
        nodes: what `graph` yields.
        blocks: operations whose outputs do not count as depending on it.
    """
    carrying: set[str] = set()
    found: set[str] = set()
    for operation, parents in nodes:
        if any(parent.name in carrying for parent in parents):
            found.add(operation.name)
        if (operation.name in found or has_kernel(operation)) and not blocks(operation):
            carrying.add(operation.name)
    return found
