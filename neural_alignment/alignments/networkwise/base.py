"""Base class of the rules for a whole network, and the binding of a rule to a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import keras
import tensorflow as tf

from neural_alignment.alignments.base import Alignment, LayerView
from neural_alignment.alignments.forward_pass import side_pass
from neural_alignment.alignments.networkwise.graph import kernel_layers
from neural_alignment.errors import ArgumentError
from neural_alignment.keras_internals import all_layers
from neural_alignment.serialization import serializable

Tensor = tf.Tensor

Backward = Callable[[Tensor], list[Tensor]]
"""dJ/d(outputs) -> one pseudogradient for each variable that the rule trains."""


@serializable
class KeptWeights(keras.layers.Layer):
    """The weights that a rule keeps in a model. They are saved with the model and never trained."""

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.built = True

    def keep(self, name: str, value: Tensor) -> Any:
        """Returns a new weight with the value and the dtype of `value`."""
        weight = self.add_weight(
            name=name, shape=value.shape, dtype=value.dtype.name, initializer=lambda *_, **__: value, trainable=False
        )
        setattr(self, name, weight)  # So that TensorFlow's checkpoints find it.
        return weight


class NetworkRule(Alignment):
    """A rule for a whole network: it turns the error at the outputs into pseudogradients of all weights.

    Every layer with a kernel has the rule as its `alignment`; `AlignedModel` finds it there. A network rule trains no
    backward kernels: R = 0.
    """

    keeps_kernel: ClassVar[bool] = False
    learns: ClassVar[bool] = False
    takes_sequences: ClassVar[bool] = True

    def __call__(self, view: LayerView) -> Tensor:
        """Returns zero."""
        return tf.zeros([], view.inputs.dtype)

    def check_run(self, config: Any) -> None:
        """Checks that no other rule stands beside this one. See `Alignment.check_run`."""
        if self.layers is None and len(config.rules) == 1:
            return
        found = {"layers": self.layers} if self.layers is not None else [rule.rule for rule in config.rules]
        requirement = f"must be one rule without `layers` with {self.rule}, which is a rule for the whole network"
        raise ArgumentError("alignment", requirement, found)

    def keep(self, model: keras.Model, weights: KeptWeights) -> Any:
        """Creates the weights that the rule keeps in `model`; returns the object that `start` and `forward` get.

        Raises:
            ValueError: if the rule is not defined for the model.
        """
        del model, weights

    def start(self, kept: Any) -> None:
        """Called before training steps: copies the network at initialisation, if the rule needs it."""
        del kept

    def trained(self, model: keras.Model) -> list[Any]:
        """Returns the variables that the rule moves; by default all trainable variables."""
        return list(model.trainable_variables)

    def forward(self, model: keras.Model, kept: Any, x: Tensor) -> tuple[Tensor, Backward]:
        """Runs the network in training mode; returns its outputs and the function that propagates their error back.

        Args:
            model: the network.
            kept: the object that `keep` returned.
            x: inputs `(batch, ...)`.
        """
        raise NotImplementedError


class BoundRule:
    """A rule for a whole network, bound to one model.

    Args:
        model: a functional model.
        rule: its rule.

    Raises:
        ValueError: if a layer with a kernel does not have the rule, or if the rule is not defined for the model, for
            example because the model has several outputs.
    """

    def __init__(self, model: keras.Model, rule: NetworkRule):
        self._model = model
        self._rule = rule
        if len(model.outputs) != 1:
            raise ValueError(
                f"{rule.rule!r} needs a network with one output. Received {len(model.outputs)}. "
                "Example: a dense layer at the end."
            )
        if rule.layers is not None:
            raise ValueError(
                f"{rule.rule!r} is a rule for a whole network. Received layers={rule.layers!r}. "
                "Example: one rule without `layers` for all of them."
            )
        for layer in kernel_layers(model):
            if getattr(layer, "alignment", None) != rule:
                other = getattr(getattr(layer, "alignment", None), "rule", "none")
                raise ValueError(
                    f"{rule.rule!r} is a rule for a whole network: every layer with a kernel must have it. Received "
                    f"{other!r} for layer {layer.name!r}. Example: one rule without `layers` for all of them."
                )
        self.weights = KeptWeights(name="kept")
        self._kept = rule.keep(model, self.weights)

    @property
    def kept_values(self) -> list[Any]:
        """The weights that the rule keeps in the model, except the flag that marks W(0) as taken."""
        return [weight for weight in self.weights.weights if weight.dtype != "bool"]

    def start(self) -> None:
        """Lets the rule copy the network at initialisation, before the first training step."""
        self._rule.start(self._kept)

    def forward(self, x: Tensor) -> Callable[[], Tensor]:
        """Runs the network; returns a function that gives the outputs to the gradient tape that is open when called.

        That tape records one operation of the trained variables, whose gradient is the pseudogradient of the rule. Call
        this method outside of the tape; otherwise the tape would also record the network itself.
        """
        variables = self._rule.trained(self._model)
        with side_pass():
            outputs, backward = self._rule.forward(self._model, self._kept, x)

        @tf.custom_gradient
        def operation(*values: Tensor) -> tuple[Tensor, Backward]:
            del values
            return tf.identity(outputs), backward

        return lambda: operation(*values_of(variables))

    def trains(self, variable: Any) -> bool:
        """Returns whether the rule moves `variable`. Weight decay does not move the other variables."""
        return any(variable is each for each in self._rule.trained(self._model))


def network_rule(model: keras.Model) -> NetworkRule | None:
    """Returns the rule for a whole network that the layers of a model have; None if they have none.

    Raises:
        ValueError: if there is such a rule and the model contains another model.
    """
    alignments = [getattr(layer, "alignment", None) for layer in all_layers(model)]
    rules = [alignment for alignment in alignments if isinstance(alignment, NetworkRule)]
    if not rules:
        return None
    if nested := [layer.name for layer in model.layers if isinstance(layer, keras.Model)]:
        raise ValueError(
            f"{rules[0].rule!r} needs a network without models in it. Received {nested[0]!r}. "
            "Example: the layers of that model themselves."
        )
    return rules[0]


def values_of(variables: list[Any]) -> list[Tensor]:
    """Returns the values of variables, as mapped by the open `keras.StatelessScope` if there is one."""
    return [tf.convert_to_tensor(variable.value) for variable in variables]
