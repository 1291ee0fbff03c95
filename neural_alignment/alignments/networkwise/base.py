"""Base class of the rules for a whole network, and the class that binds such a rule to a model."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import keras
import tensorflow as tf

from neural_alignment.alignments.base import Alignment, LayerView
from neural_alignment.alignments.forward_pass import side_pass
from neural_alignment.alignments.networkwise.graph import (
    at_each_step,
    flat_outputs,
    kernel_layers,
    names_kernel,
    output_nonlinearity,
    unwrapped,
)
from neural_alignment.errors import ArgumentError, Words
from neural_alignment.keras_internals import added_losses, all_layers, keep_mask, only_runs_graph
from neural_alignment.serialization import serializable

Tensor = tf.Tensor

Backward = Callable[[Tensor], list[Tensor]]
"""Maps dJ/d(outputs) to the pseudogradients: one for each variable that the rule trains, in place of its gradient."""


@dataclass(frozen=True)
class TrainingBatch:
    """The examples of one forward pass, as a rule for a whole network reads them.

    Attributes:
        inputs: x, `(batch, ...)`; a list or dictionary if the network has several inputs.
        targets: targets as the loss takes them, such as classes `(batch,)`.
        sample_weight: weights of the examples in J `(batch,)`, or None.
        reduction: how J is made from the losses of the examples, as in `keras.losses.Loss`.
        scale: the factor between J and the reduced losses of the examples as it is differentiated, such as the loss
            scale of half precision.
        codes: the targets of the outputs for each class, `(classes, outputs)`; None for one-hot codes.
    """

    inputs: Tensor
    targets: Tensor
    sample_weight: Tensor | None = None
    reduction: str | None = "sum_over_batch_size"
    scale: Tensor | float = 1.0
    codes: Any = None

    def shares(self, dtype: tf.DType) -> Tensor:
        """Returns the derivative of J with respect to the loss of each example `(batch,)`."""
        losses = tf.ones([batch_size(self.inputs)], dtype)
        reduce = _Reduction("reduction", self.reduction, dtype.name)
        with tf.GradientTape() as tape:
            tape.watch(losses)
            total = reduce(losses, losses, self.sample_weight)
        return tape.gradient(total, losses) * tf.cast(self.scale, dtype)

    def output_targets(self, outputs: int, dtype: tf.DType) -> Tensor:
        """Returns the targets of the outputs, `(batch, outputs)`: codes of the classes. Such targets are only cast."""
        targets = tf.convert_to_tensor(self.targets)
        if self.codes is not None:
            return tf.gather(tf.cast(self.codes, dtype), tf.cast(tf.reshape(targets, [-1]), tf.int32))
        if outputs == 1:  # A single logit has the targets 0 and 1.
            return tf.cast(tf.reshape(targets, [-1, 1]), dtype)
        if targets.shape.rank == 2 and targets.shape[1] == outputs:
            return tf.cast(targets, dtype)
        return tf.one_hot(tf.cast(tf.reshape(targets, [-1]), tf.int32), outputs, dtype=dtype)


def batch_size(inputs: Any) -> Tensor:
    """Returns the number of examples in the inputs of a batch, a structure of tensors of which some may be None."""
    return tf.shape(next(each for each in tf.nest.flatten(inputs) if each is not None))[0]


class _Reduction(keras.losses.Loss):
    """Reduces the losses of examples, passed as `y_pred`, as Keras does with sample weights and over replicas."""

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """Returns the losses."""
        del y_true
        return y_pred


@serializable
class KeptWeights(keras.layers.Layer):
    """Holds the additional weights of a rule, such as W(0). They are saved with the model and never trained."""

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.built = True

    def keep(self, name: str, value: Tensor) -> Any:
        """Creates and returns a weight with the value, shape and dtype of `value`."""
        weight = self.add_weight(
            name=name, shape=value.shape, dtype=value.dtype.name, initializer=lambda *_, **__: value, trainable=False
        )
        setattr(self, name, weight)  # TensorFlow's checkpoints find weights by attribute.
        return weight


class NetworkRule(Alignment):
    """Base of the rules for a whole network, which compute pseudogradients of all weights from the output error.

    Every layer with a weight called kernel has the rule as its `alignment`, where `AlignedModel` finds it. Such a rule
    has no backward kernels, so R = 0.
    """

    keeps_kernel: ClassVar[bool] = False
    learns: ClassVar[bool] = False
    needs_linear_outputs: ClassVar[bool] = False
    """Whether the error of the rule is that at the pre-activations of the last layer, so these must be the outputs."""

    def __call__(self, view: LayerView) -> Tensor:
        """Returns zero."""
        return tf.zeros([], view.inputs.dtype)

    def check_run(self, config: Any) -> None:
        """Checks that this is the only rule of the run. See `Alignment.check_run`."""
        if self.layers is None and len(config.rules) == 1:
            return
        found = {"layers": self.layers} if self.layers is not None else [rule.rule for rule in config.rules]
        requirement = f"must be one rule without `layers` with {self.rule}, which is a rule for the whole network"
        raise ArgumentError("alignment", requirement, found)

    def keep(self, model: keras.Model, weights: KeptWeights) -> Any:
        """Creates the additional weights of the rule in `model`. By default there are none.

        Args:
            model: the network.
            weights: holds the weights that are created.

        Returns:
            The object that is passed as `kept` to the other methods.

        Raises:
            ValueError: if the rule is not defined for the model.
        """
        del model, weights

    def start(self, kept: Any) -> None:
        """Called before training steps. In the first call a rule can record the network at initialisation."""
        del kept

    def trained(self, model: keras.Model) -> list[Any]:
        """Returns the variables that the rule trains. By default these are all trainable variables."""
        return list(model.trainable_variables)

    def forward(self, model: keras.Model, kept: Any, batch: TrainingBatch) -> tuple[Tensor, Backward]:
        """Runs the network in training mode.

        Args:
            model: the network.
            kept: the object that `keep` returned.
            batch: the examples.

        Returns:
            The outputs as the model returns them, and the function that maps dJ/d(outputs) to the pseudogradients of
            the variables in `trained`.
        """
        raise NotImplementedError


class BoundRule:
    """A rule for a whole network, bound to one model.

    Args:
        model: a functional model.
        rule: its rule.

    Raises:
        ValueError: if the model has several outputs, or a nested model that has a custom `call` or is in
            `TimeDistributed`, a layer with a kernel does not have the rule, a
            layer has an `activity_regularizer`, the rule has a `layers` pattern, the outputs are nonlinear and the rule
            needs linear ones, or the rule is not defined for the model.
    """

    def __init__(self, model: keras.Model, rule: NetworkRule):
        self._model = model
        self._rule = rule
        if len(model.outputs) != 1:
            requirement = f"{rule.rule!r} needs a network with one output"
            raise ArgumentError("alignment", requirement, len(model.outputs), "a dense layer at the end")
        if rule.layers is not None:
            requirement = f"must be one rule without `layers` with {rule.rule!r}, which is a rule for a whole network"
            raise ArgumentError("alignment", requirement, Words(f"layers={rule.layers!r}"), f"{type(rule).__name__}()")
        if nested := [layer.name for layer in model.layers if isinstance(at_each_step(layer), keras.Model)]:
            requirement = (
                f"{rule.rule!r} needs a network without nested models that have a custom `call` or are in "
                "`TimeDistributed`"
            )
            raise ArgumentError("alignment", requirement, nested[0], "the layers of the nested model themselves")
        for layer in itertools.chain.from_iterable(map(unwrapped, kernel_layers(model))):
            if names_kernel(layer) and getattr(layer, "alignment", None) != rule:
                other = getattr(getattr(layer, "alignment", None), "rule", "none")
                raise ArgumentError(
                    "alignment",
                    f"{rule.rule!r} is a rule for a whole network: every layer with a kernel must have it",
                    Words(f"{other!r} for layer {layer.name!r}"),
                    "one rule without `layers` for all of them",
                )
        for layer in all_layers(model):
            if getattr(layer, "activity_regularizer", None) is not None:
                raise _no_gradient(rule, layer, "an `activity_regularizer`")
        self._check_outputs()
        self.weights = KeptWeights(name="kept")
        self._kept = rule.keep(model, self.weights)

    def _check_outputs(self) -> None:
        """Raises a `ValueError` if the rule would use the error after a nonlinearity as that before it."""
        nonlinear = output_nonlinearity(self._model) if self._rule.needs_linear_outputs else None
        if nonlinear is None:
            return
        function = getattr(at_each_step(nonlinear), "activation", nonlinear)
        raise ArgumentError(
            "alignment",
            f"{self._rule.rule!r} needs a network with linear outputs, where it takes the error of J",
            Words(f"{getattr(function, '__name__', type(function).__name__)!r} in {nonlinear.name!r}"),
            "a last layer without activation, and a loss with from_logits=True",
        )

    @property
    def kept_values(self) -> list[Any]:
        """The additional weights of the rule, except the flag that says whether W(0) is recorded."""
        return [weight for weight in self.weights.weights if weight.dtype != "bool"]

    def start(self) -> None:
        """Calls `NetworkRule.start`, which records the network at initialisation before the first training step."""
        self._rule.start(self._kept)

    def forward(self, batch: TrainingBatch) -> Callable[[], Any]:
        """Runs the network on a batch and returns a function without arguments that returns its outputs.

        The outputs keep the structure that the model has, such as a dictionary with one tensor, and their mask.

        Call that function inside a gradient tape. The tape then records a single operation, whose gradients to the
        trained variables are the pseudogradients of the rule. Call `forward` itself outside of the tape, which would
        otherwise record the network as well.

        Raises:
            ValueError: if a layer adds a loss, of which the rule computes no gradient.
        """
        variables = self._rule.trained(self._model)
        targets, sample_weight = map(_only, (batch.targets, batch.sample_weight))
        batch = dataclasses.replace(batch, targets=targets, sample_weight=sample_weight)
        with side_pass():
            structure, backward = self._rule.forward(self._model, self._kept, batch)
        if adding := [layer for layer in all_layers(self._model) if added_losses(layer)]:
            raise _no_gradient(self._rule, adding[0], "`add_loss`")
        outputs = _only(structure)

        @tf.custom_gradient
        def operation(*values: Tensor) -> tuple[Tensor, Backward]:
            del values
            return tf.identity(outputs), backward

        def run() -> Any:
            return keras.tree.pack_sequence_as(structure, [keep_mask(operation(*values_of(variables)), outputs)])

        return run

    def trains(self, variable: Any) -> bool:
        """Returns whether the rule trains `variable`. Weight decay does not apply to the other variables."""
        return any(variable is each for each in self._rule.trained(self._model))


def _no_gradient(rule: NetworkRule, layer: Any, found: str) -> ArgumentError:
    """Returns the error for a loss of the activities in the network, which would have no gradient."""
    requirement = (
        f"{rule.rule!r} propagates only the error at the outputs, so no layer may add a loss of its activities"
    )
    found = Words(f"{type(layer).__name__} {layer.name!r} with {found}")
    return ArgumentError("alignment", requirement, found, "`kernel_regularizer`")


def flat_network(inputs: Any, outputs: Any) -> tuple[Any, Any]:
    """Returns inputs and outputs of a network whose layers are also those of its nested models.

    They are returned unchanged if there are no nested models, or no rule for a whole network, which needs this.

    Args:
        inputs: inputs of the network, a structure of symbolic tensors.
        outputs: its outputs, a structure of symbolic tensors.

    Raises:
        ValueError: if a nested model is called with a mask, or with another structure or rank than that of its inputs.
    """
    model = keras.Model(inputs, outputs, name="network")
    rule = network_rule(model)
    if rule is None or not any(map(only_runs_graph, model.operations)):
        return inputs, outputs
    found = flat_outputs(model, model.inputs)
    pack = keras.tree.pack_sequence_as
    return pack(inputs, model.inputs), pack(outputs, found)


def network_rule(model: keras.Model) -> NetworkRule | None:
    """Returns the rule for a whole network that is the `alignment` of a model's layers, or None."""
    alignments = (getattr(layer, "alignment", None) for layer in all_layers(model))
    return next((each for each in alignments if isinstance(each, NetworkRule)), None)


def _only(structure: Any) -> Any:
    """Returns the tensor in a structure with one tensor, such as a dictionary; other structures are unchanged."""
    leaves = keras.tree.flatten(structure)
    return leaves[0] if len(leaves) == 1 else structure


def values_of(variables: list[Any]) -> list[Tensor]:
    """Returns the values of variables, or those that the active `keras.StatelessScope` maps them to."""
    return [tf.convert_to_tensor(variable.value) for variable in variables]
