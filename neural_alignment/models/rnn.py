"""The recurrent network of Boopathy and Fiete 2022 (Appendices E and F)."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import keras
import numpy as np
import tensorflow as tf
from pydantic import PositiveInt

from neural_alignment.alignments import RULES, Alignment, current_pass
from neural_alignment.errors import ArgumentError
from neural_alignment.keras_internals import outermost_call
from neural_alignment.layers.base import LayerWithRule, before_gradient, checked_rule
from neural_alignment.models.base import MODELS, ModelOptions
from neural_alignment.models.parts import Parts
from neural_alignment.options import NumpySeed
from neural_alignment.serialization import serializable

Tensor = tf.Tensor


@serializable
class Recurrent(LayerWithRule, keras.layers.Layer):
    """A fully recurrent layer in the NTK parameterization, unrolled over time (equation 60).

    z_k = x_k W_i + s_{k-1} W_h / sqrt(m) + b_h and s_k = relu(z_k), where x_k is the input and s_k the state at step k.
    All kernels are drawn from N(0, 1), and the bias starts at 0. The initial state s_0 is trained. It has one row for
    each example of a training batch, and starts at 0. For a larger batch the rows are repeated, so that several batches
    can be evaluated at once.

    Each state, including s_0, is passed to `ForwardPass.probe` where it enters the next state. The output at the same
    step does not pass through the probe, because equation 58 sums only over the outputs of later steps.

    Args:
        units: number of units m, positive.
        slots: rows of the initial state: the size of a training batch, positive.
        alignment: None, or a rule for a whole network.
        kernel_regularizer: regulariser of W_i and W_h, as in Keras.
        bias_regularizer: regulariser of b_h.
        **kwargs: as in `keras.layers.Layer`.

    Raises:
        ValueError: if `units` or `slots` is not positive, or `alignment` is not a rule for a whole network.
    """

    recurrent = True
    """Marks the layer for the rules for a whole network, which cut it where `ForwardPass.probe` is called."""

    def __init__(
        self,
        units: int,
        slots: int,
        alignment: Alignment | dict | None = None,
        kernel_regularizer: Any = None,
        bias_regularizer: Any = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        for name, value in (("units", units), ("slots", slots)):
            if value < 1:
                raise ArgumentError(name, "must be at least 1", value, f"{name}=50")
        alignment = checked_rule(alignment)
        if alignment is not None and alignment.keeps_kernel:
            requirement = "of a recurrent layer must be a rule for the whole network"
            raise ArgumentError("alignment", requirement, alignment.rule, "alignment=AlignAda()")
        self.units = units
        self.slots = slots
        self.alignment = alignment
        self.kernel_regularizer = keras.regularizers.get(kernel_regularizer)
        self.bias_regularizer = keras.regularizers.get(bias_regularizer)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Creates the weights.

        Args:
            input_shape: `(batch, steps, features)`.

        Raises:
            ValueError: if the input shape has another rank, or the number of steps or features is unknown.
        """
        if len(input_shape) != 3 or None in input_shape[1:]:
            requirement = "of a recurrent layer must be (batch, steps, features), with known steps and features"
            raise ArgumentError("input_shape", requirement, tuple(input_shape), "(None, 100, 1)")

        def kernel(name: str, inputs: int) -> Any:
            return self.add_weight(
                name=name,
                shape=(inputs, self.units),
                initializer=keras.initializers.RandomNormal(stddev=1.0),
                regularizer=self.kernel_regularizer,
            )

        self.input_kernel = kernel("input_kernel", input_shape[-1])
        self.kernel = kernel("kernel", self.units)
        self.bias = self.add_weight(
            name="bias", shape=(self.units,), initializer="zeros", regularizer=self.bias_regularizer
        )
        self.initial_state = self.add_weight(name="initial_state", shape=(self.slots, self.units), initializer="zeros")

    def call(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        """Returns the states s_1, s_2 and so on, `(batch, steps, units)`.

        Args:
            inputs: `(batch, steps, features)`.
            training: as in Keras.

        Raises:
            ValueError: in training outside of an `AlignedModel`, if the layer has an alignment.
        """
        state = current_pass()
        alone = state is None and self.alignment is not None
        if alone and training:
            self.refuse_training("is a rule for a whole network")
        probe = None if state is None else state.probe
        driven = tf.tensordot(inputs, _tensor(self.input_kernel), axes=1) + _tensor(self.bias)
        kernel = _tensor(self.kernel) * (1.0 / math.sqrt(self.units))
        batch = tf.shape(inputs)[0]
        activity = tf.tile(_tensor(self.initial_state), [-(-batch // self.slots), 1])[:batch]
        states = []
        for step in tf.unstack(driven, axis=1):
            if probe is not None:
                activity = probe(self, inputs, activity)
            activity = tf.nn.relu(step + tf.matmul(activity, kernel))
            states.append(activity)
        outputs = tf.stack(states, axis=1)
        refuse = functools.partial(self.refuse_training, "is a rule for a whole network", outermost_call(self).layer)
        return before_gradient(outputs, refuse) if alone and training is None else outputs

    @property
    def whole_batch_reason(self) -> str | None:
        """Why a batch must not be divided among replicas or into minibatches. See `AlignedModel.compile`."""
        return _whole_batch_reason(self.slots)

    @property
    def live_weights(self) -> list[Any]:
        """The initial state: frozen networks use its current value, as in the published code. Every rule trains it."""
        return [self.initial_state]

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """Returns `(batch, steps, units)`."""
        return (*input_shape[:-1], self.units)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor."""
        own = {
            "units": self.units,
            "slots": self.slots,
            "alignment": self.alignment and keras.saving.serialize_keras_object(self.alignment),
            "kernel_regularizer": keras.regularizers.serialize(self.kernel_regularizer),
            "bias_regularizer": keras.regularizers.serialize(self.bias_regularizer),
        }
        return {**super().get_config(), **own}


def rnn(
    units: int,
    slots: int,
    input_shape: tuple[int, ...],
    classes: int = 1,
    alignment: Alignment | None = None,
    weight_decay: float = 0.0,
    weights_seed: int | None = None,
) -> keras.Model:
    """Builds the network of the Add task: a recurrent layer, `recurrent`, and a readout at every step, `dense`.

    The output at step k is y_k = s_k W_o / sqrt(m) + b_o with W_o ~ N(0, 1), as in the published code. Equation 61
    omits the factor 1 / sqrt(m).

    Args:
        units: number of hidden units m.
        slots: batch size in training; the trained initial state has a row for each example of a batch.
        input_shape: `(steps, features)`.
        classes: number of outputs at each step.
        alignment: None, or a rule for a whole network.
        weight_decay: coefficient of J's L2 term, on all kernels and biases.
        weights_seed: seed of NumPy's legacy generator, with which W_i, W_h and W_o are drawn as in the published code.
            Default: they are drawn by Keras.

    Returns:
        A functional model, `(batch, steps, features)` -> `(batch, steps, classes)`.
    """
    parts = Parts(alignment, weight_decay)
    inputs = keras.Input(input_shape)
    recurrent = Recurrent(units, slots, alignment=alignment, name="recurrent", **parts.decay("kernel", "bias"))
    readout = parts.dense(classes, "dense", parameterization="ntk")
    outputs = readout(recurrent(inputs))
    if weights_seed is not None:
        kernels = recurrent.input_kernel, recurrent.kernel, readout.kernel
        for variable, value in zip(kernels, published_kernels([k.shape for k in kernels], weights_seed), strict=True):
            variable.assign(value)
    return parts.finish(inputs, outputs, "rnn")


def published_kernels(shapes: Sequence[tuple[int, ...]], seed: int) -> list[np.ndarray]:
    """Draws kernels of the given shapes from N(0, 1) with NumPy's legacy generator, as in the published code."""
    draws = np.random.RandomState(seed)
    return [draws.normal(size=tuple(shape)) for shape in shapes]


@MODELS.register
class RNN(ModelOptions):
    """A recurrent network with an output at each step, in the NTK parameterization."""

    builder = staticmethod(rnn)
    size_keys: ClassVar[tuple[str, ...]] = ("units",)
    targets: ClassVar[str] = "sequences"

    name: Literal["rnn"]
    units: PositiveInt
    """Hidden units."""
    slots: PositiveInt = 50
    """Rows of the trained initial state: the batch size, so that each example of a batch has a row. With fewer rows,
    examples share them."""
    weights_seed: NumpySeed | None = None
    """Seed of NumPy's legacy generator, with which the kernels are drawn as in the published code. Default: they are
    drawn from the seed of the run, as in other models."""

    def fewest_weights(self, outputs: int, input_shape: Sequence[int]) -> int:
        """Returns the number of weights in the forward kernels."""
        return self.units * (input_shape[-1] + self.units + outputs)

    @property
    def whole_batch_reason(self) -> str | None:
        """See `ModelOptions.whole_batch_reason`."""
        return _whole_batch_reason(self.slots)

    def check_run(self, config: Any) -> None:
        """Checks that every row of the initial state is trained, and that the rules can train recurrent networks.

        See `ModelOptions.check_run`.
        """
        if self.slots > config.batch_size:
            requirement = f"must be at most batch_size ({config.batch_size}), so that every row is trained"
            raise ArgumentError("model.slots", requirement, self.slots)
        for rule in config.rules:
            if not rule.takes_sequences:
                allowed = ", ".join(name for name, each in RULES.items() if each.takes_sequences)
                requirement = f"must be {allowed} with model.name {self.name}"
                raise ArgumentError(f"{config.key_path(rule)}.rule", requirement, rule.rule)


def _whole_batch_reason(slots: int) -> str | None:
    """Returns why a batch must not be divided: each part would train the first of several rows only."""
    return "trains a row of its initial state for each example of the whole batch" if slots > 1 else None


def _tensor(variable: Any) -> Tensor:
    return tf.convert_to_tensor(keras.ops.convert_to_tensor(variable))
