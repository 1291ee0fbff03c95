"""What the rules for a whole network have in common, and the network as it was at initialisation."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import keras
import tensorflow as tf

from neural_alignment.alignments.base import Alignment, LayerView
from neural_alignment.alignments.forward_pass import side_pass
from neural_alignment.errors import ArgumentError
from neural_alignment.serialization import serializable

Tensor = tf.Tensor

Backward = Callable[[Tensor], list[Tensor]]
"""dJ/d(outputs) -> one pseudogradient for each variable that the rule trains."""


@serializable
class Kept(keras.layers.Layer):
    """What a rule keeps in a model beside its weights; none of it is trained, all of it is saved."""

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.built = True

    def keep(self, name: str, value: Tensor) -> Any:
        """Returns a new weight that begins as `value`, of its dtype."""
        weight = self.add_weight(
            name=name, shape=value.shape, dtype=value.dtype.name, initializer=lambda *_, **__: value, trainable=False
        )
        setattr(self, name, weight)  # So that TensorFlow's checkpoints find it.
        return weight


class NetworkRule(Alignment):
    """A rule for a whole network: it says how an error at the outputs becomes pseudogradients of all weights.

    It stands at every layer with a kernel, and `AlignedModel` finds it there. It trains no backward kernels: R = 0.
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

    def keep(self, model: keras.Model, kept: Kept) -> Any:
        """Creates the weights that the rule keeps in `model` and returns them, for `start` and `forward`.

        Raises:
            ValueError: if the rule has no meaning for the model.
        """
        del model, kept

    def start(self, kept: Any) -> None:
        """Called before training steps: takes a copy of the network at initialisation, if the rule needs one."""
        del kept

    def trained(self, model: keras.Model) -> list[Any]:
        """Returns the variables that the rule moves: all that are trainable, unless it says otherwise."""
        return list(model.trainable_variables)

    def forward(self, model: keras.Model, kept: Any, x: Tensor) -> tuple[Tensor, Backward]:
        """Runs the network in training mode on `x`; returns its outputs and what takes their error back.

        Args:
            model: the network.
            kept: what `keep` returned.
            x: inputs `(batch, ...)`.
        """
        raise NotImplementedError


class NetworkFeedback:
    """A rule for a whole network at work in one model.

    Args:
        model: a functional model.
        rule: its rule.

    Raises:
        ValueError: if the rule is not that of every layer with a kernel, or has no meaning for the model, such as one
            of several outputs.
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
        self.weights = Kept(name="kept")
        self._kept = rule.keep(model, self.weights)

    @property
    def numbers(self) -> list[Any]:
        """The weights that the rule keeps in the model, without the mark that W(0) is taken."""
        return [weight for weight in self.weights.weights if weight.dtype != "bool"]

    def start(self) -> None:
        """Lets the rule take its copy of the network at initialisation, before the first training step."""
        self._rule.start(self._kept)

    def forward(self, x: Tensor) -> Callable[[], Tensor]:
        """Runs the network; returns what gives the outputs to the tape that is open when it is called.

        The tape sees a function of the variables whose gradient is the rule's. The way to the outputs itself must not
        be on a tape, or gradients would travel it as well.
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
        """Whether the rule moves `variable`; weight decay alone does not."""
        return any(variable is each for each in self._rule.trained(self._model))


class Frozen:
    """A network at initialisation: W(0) is a copy of every trainable variable, except those that layers keep live.

    W(0) is taken once, before the first training step, so values that are assigned or loaded before it count. It is
    saved with the model: a model that is loaded or resumed keeps it.

    Args:
        model: the network.
        kept: where the copies are kept.

    Raises:
        ValueError: if a layer draws random numbers, such as dropout: the frozen pass would draw others than the live
            one, and differ from it at the first step already.
    """

    def __init__(self, model: keras.Model, kept: Kept):
        if random := [layer for layer in model.layers if _draws(layer)]:
            raise ValueError(
                "A network that is frozen as it was at initialisation must have no layer that draws random numbers. "
                f"Received {type(random[0]).__name__} {random[0].name!r}. Example: the network without it."
            )
        self._model = model
        self._variables = list(model.trainable_variables)
        live = {id(variable) for variable in live_weights(model)}
        self._initial = [
            variable
            if id(variable) in live
            else kept.keep(f"initial_{number}_{variable.path.replace('/', '_')}", tf.convert_to_tensor(variable.value))
            for number, variable in enumerate(self._variables)
        ]
        self._taken = kept.keep("taken", tf.constant(False))

    def take(self) -> None:
        """Takes W(0), unless that has been done."""

        def take() -> Tensor:
            for initial, variable in zip(self._initial, self._variables, strict=True):
                if initial is not variable:
                    initial.assign(variable.value)
            self._taken.assign(True)
            return tf.constant(True)

        tf.cond(tf.convert_to_tensor(self._taken.value), lambda: tf.constant(True), take)

    def values(self) -> list[Tensor]:
        """Returns W(0), in the order of the variables that were trainable when this was made.

        Outside of a graph these are the present values until W(0) is taken.

        Raises:
            ValueError: if a variable is trainable that was not then.
        """
        frozen = set(map(id, self._variables))
        if new := [variable.path for variable in self._model.trainable_variables if id(variable) not in frozen]:
            raise ValueError(
                "What a rule freezes must be trainable when the AlignedModel is made. "
                f"Received {new[0]!r}, trainable since. Example: set `trainable` before AlignedModel(inputs, outputs)."
            )
        begun = not tf.executing_eagerly() or bool(self._taken.numpy())
        return values_of(self._initial if begun else self._variables)

    def gradients(self, x: Tensor, upstream: Tensor) -> list[Tensor]:
        """Returns what an error at the outputs is, taken back through the frozen network to each trainable variable.

        Args:
            x: inputs `(batch, ...)`.
            upstream: dJ/d(outputs), of whichever network.
        """
        values = self.values()
        places = {id(variable): value for variable, value in zip(self._variables, values, strict=True)}
        sources = [places[id(variable)] for variable in self._model.trainable_variables]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(sources)
            outputs = self(x, values)
        return tape.gradient(
            outputs, sources, output_gradients=upstream, unconnected_gradients=tf.UnconnectedGradients.ZERO
        )

    def __call__(self, x: Tensor, values: list[Tensor], **hooks: Any) -> Tensor:
        """Returns the outputs at initialisation, batch normalisation by the statistics of `x`; no variable changes.

        Args:
            x: inputs `(batch, ...)`.
            values: what `values` returned: what to differentiate by.
            **hooks: `probe` and `around` of the `ForwardPass`.
        """
        mapping = list(zip(self._variables, values, strict=True))
        with keras.StatelessScope(state_mapping=mapping), side_pass(**{"probe": None, "around": None, **hooks}):
            return self._model(x, training=True)


def network_rule(model: keras.Model) -> NetworkRule | None:
    """Returns the rule for a whole network that the layers of a model have, or none.

    Raises:
        ValueError: if there is one and the model has a model in it.
    """
    found = [getattr(layer, "alignment", None) for layer in all_layers(model)]
    rules = [rule for rule in found if isinstance(rule, NetworkRule)]
    if not rules:
        return None
    if nested := [layer.name for layer in model.layers if isinstance(layer, keras.Model)]:
        raise ValueError(
            f"{rules[0].rule!r} needs a network without models in it. Received {nested[0]!r}. "
            "Example: the layers of that model themselves."
        )
    return rules[0]


def graph(model: keras.Model) -> Iterator[tuple[Any, list[Any]]]:
    """Yields the operations of a functional model and what their inputs come from, in the order of the forward pass."""
    for depth in sorted(model._nodes_by_depth, reverse=True):
        for node in model._nodes_by_depth[depth]:
            if not node.is_input:
                yield node.operation, [tensor._keras_history.operation for tensor in node.input_tensors]


def has_kernel(operation: Any) -> bool:
    """Whether an operation is a layer with a kernel."""
    return any("kernel" in weight.name for weight in getattr(operation, "weights", []))


def kernel_layers(model: keras.Model) -> list[Any]:
    """Returns the layers with a kernel, in the order of the forward pass."""
    return [operation for operation, _ in graph(model) if has_kernel(operation)]


def live_weights(model: keras.Model) -> list[Any]:
    """Returns the variables that are no part of what a rule freezes: initial states."""
    return [variable for layer in model.layers for variable in getattr(layer, "live_weights", [])]


def values_of(variables: list[Any]) -> list[Tensor]:
    """Returns the values of some variables, as the open scope has them."""
    return [tf.convert_to_tensor(variable.value) for variable in variables]


def draw(name: str, shape: tuple[int, ...], fan: tuple[int, ...], seed: int) -> Tensor:
    """Draws numbers of standard deviation 1 / sqrt(product of `fan`), by `seed` and `name`."""
    initializer = keras.initializers.RandomNormal(
        stddev=1.0 / math.sqrt(math.prod(fan)), seed=zlib.crc32(f"{seed}/{name}/feedback".encode()) & 0x7FFFFFFF
    )
    return tf.convert_to_tensor(initializer(shape, dtype=keras.config.floatx()))


def all_layers(model: keras.Model) -> list[Any]:
    """Returns the layers of `model` and of the models in it, in the order of the forward pass."""
    layers = model._flatten_layers(include_self=False, recursive=True)
    return [layer for layer in layers if not isinstance(layer, keras.Model)]


def _draws(layer: Any) -> bool:
    """Whether a layer draws random numbers in a pass, by the state of a generator that it keeps."""
    return any(variable.path.endswith("seed_generator_state") for variable in layer.non_trainable_variables)
