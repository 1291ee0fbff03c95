"""Recurrent layers with a backward kernel for the inputs and one for the previous outputs.

The error travels back through time, and to the inputs, through the backward kernels. The products of gates and states
are differentiated as they are. R_l treats the time steps of a sequence like positions in space; masked steps count as
zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import keras
import tensorflow as tf

from neural_alignment.alignments import ForwardPass
from neural_alignment.errors import ArgumentError
from neural_alignment.keras_internals import dropout_masks
from neural_alignment.layers.base import AlignedLayer, dense_floats
from neural_alignment.layers.connection import Connection, KernelValues, tensor_of
from neural_alignment.operations import DenseMap
from neural_alignment.serialization import serializable

Tensor = tf.Tensor

RecurrentProduct = Callable[..., Tensor]
"""Previous outputs, or a list of them with one for each gate; optionally the gates -> products with W, with bias."""


class _RecurrentLayer(AlignedLayer):
    """Mixin for the recurrent layers of Keras.

    The layer has the backward kernels, its cell the forward kernels. The connections are called LAYER.kernel and
    LAYER.recurrent_kernel. A subclass defines one time step of its cell.
    """

    alignment_arguments = ("alignment",)

    initializer_arguments = ("kernel_initializer", "recurrent_initializer")

    kernel_names = ("kernel", "recurrent_kernel")

    gates = 1
    """Number of equal parts of a kernel along its last axis."""

    def step(self, projected: Tensor, states: list[Tensor], product: RecurrentProduct) -> list[Tensor]:
        """Returns the new states, the first of which is the output.

        Args:
            projected: the inputs' product with W, with the bias.
            states: the previous states.
            product: multiplies the previous output by the recurrent kernel.
        """
        raise NotImplementedError

    def gate_activations(self) -> list[Any]:
        """Returns the nonlinearity of each gate."""
        return [self.cell.activation]

    def check_arguments(self) -> None:
        """Checks that an aligned layer can run the loop over time. See `AlignedLayer.check_arguments`."""
        super().check_arguments()
        if getattr(self, "use_cudnn", None) is True and self.keeps_backward_kernel:
            requirement = "of an aligned layer must be 'auto' or False: cuDNN has one kernel for both directions"
            raise ArgumentError("use_cudnn", requirement, True, "use_cudnn='auto'")

    def build(self, sequences_shape: tuple[int | None, ...], initial_state_shape: Any = None) -> None:
        """Creates the weights of the cell and, if the rule has them, the backward kernels."""
        keras.layers.RNN.build(self, sequences_shape, initial_state_shape)
        self.add_backward_kernels()

    def call(self, sequences: Tensor, initial_state: Any = None, mask: Any = None, training: bool | None = None) -> Any:
        """Applies the layer. See `inner_loop`.

        Keras' default of `training`, False, would also hold for the layers after this one, so that custom training
        loops could not omit it.
        """
        if self.alignment is None:
            training = bool(training)
        return super().call(sequences, initial_state=initial_state, mask=mask, training=training)

    @property
    def backward_kernel(self) -> Any:
        """B of the inputs `(gates * units, inputs)`. See `SingleKernelLayer.backward_kernel`."""
        return self.connection("kernel").backward_kernel

    @property
    def backward_recurrent_kernel(self) -> Any:
        """B of the previous outputs `(gates * units, units)`. See `SingleKernelLayer.backward_kernel`."""
        return self.connection("recurrent_kernel").backward_kernel

    def make_connections(self) -> Sequence[Connection]:
        """Returns the connection from the inputs and that from the previous outputs."""
        bias, two_rows = self.cell.bias, self._has_recurrent_bias
        shared = {"holder": self.cell, "following_activation": self._activate_gates}
        return (
            self.connect(
                DenseMap(),
                "kernel",
                **{**shared, "bias": bias, "bias_row": 0 if two_rows else None},
            ),
            self.connect(
                DenseMap(),
                "recurrent_kernel",
                **{**shared, "bias": bias if two_rows else None, "bias_row": 1 if two_rows else None},
            ),
        )

    def input_shapes(self, inputs: Sequence[int | None] | None = None) -> list[tuple[int | None, ...]]:
        """Returns the shapes of inputs and previous outputs. See `AlignedLayer.input_shapes`."""
        config = self.get_build_config()
        built = config.get("input_shape") or config["shapes_dict"]["sequences_shape"]  # With an initial state.
        batch, steps, features = inputs or built
        return [(batch, steps, features), (batch, steps, self.cell.units)]

    @property
    def _has_recurrent_bias(self) -> bool:
        """Whether the bias has one row for the inputs and one for the previous outputs."""
        return self.cell.bias is not None and len(self.cell.bias.shape) == 2

    def initializer_of(self, connection: Connection) -> Any:
        """Returns the initializer of the W of a connection. See `AlignedLayer.initializer_of`."""
        return self.cell.kernel_initializer if connection.kernel_name == "kernel" else self.cell.recurrent_initializer

    def inner_loop(self, sequences: Tensor, initial_state: Any, mask: Any, training: bool | None = None) -> Any:
        """Runs over time, as the native layer does; in training, adds R_l if the rule learns B.

        Raises:
            ValueError: in training, if the rule is one for a whole network and the model is not an `AlignedModel`.
        """
        inputs = dense_floats(sequences, self.compute_dtype)
        state = self.forward_pass_of(inputs, training)
        if not self.keeps_backward_kernel:
            found = super().inner_loop(sequences, initial_state, mask=mask, training=bool(training))
            return self.refuse_gradient(found, training)
        states = keras.tree.flatten(initial_state)
        mask = _step_mask(mask)
        dropout = _Dropout(self.cell, inputs, states[0], training)
        from_inputs, from_outputs = self._kernels(state)
        input_bias, recurrent_bias = self._bias_values()

        seen = dropout.of_inputs(inputs)
        projection = self._product(from_inputs, seen, training)
        projected = projection if input_bias is None else projection + input_bias
        offset = None
        if state.probe is not None:
            projected = state.probe(from_inputs.connection, inputs, projected)
            offset = 0.0 * projected  # Zeros on the path of the tape: their gradient is the error of the products.

        def product(previous: Tensor, offset: Tensor | None, gates: Sequence[int]) -> Tensor:
            found = self._product(from_outputs, dropout.of_outputs(previous), training, gates)
            found = found if recurrent_bias is None else found + recurrent_bias
            return found if offset is None else found + offset[:, self._columns(gates)]

        last, outputs, new_states = self._over_time(product, projected, offset, states, mask, training)
        regularises = training and state.computes(self.alignment)
        if state.probe is not None or regularises:
            reversed_mask = mask if mask is None or not self.go_backwards else tf.reverse(mask, [1])
            previous = _previous(outputs, states[0], reversed_mask)
        if state.probe is not None:
            state.probe(from_outputs.connection, previous, offset)
        if regularises:
            whole = None if isinstance(seen, list) else projection
            from_inputs.regularise(_masked(dropout.one(seen, inputs), mask), _masked(whole, mask), input_bias)
            previous = _masked(dropout.one(dropout.of_outputs(previous), previous), reversed_mask)
            from_outputs.regularise(previous, None, recurrent_bias)
        if mask is not None and self.zero_output_for_mask:
            outputs = _masked(outputs, tf.reverse(mask, [1]) if self.go_backwards else mask)
            last = outputs[:, -1]
        return last, outputs, new_states

    def _kernels(self, state: ForwardPass) -> tuple[KernelValues, KernelValues]:
        """Reads W and B of both connections."""
        from_inputs, from_outputs = (connection.kernels(state) for connection in self.connections)
        if from_outputs.take_start is None:
            return from_inputs, from_outputs

        def take_both() -> None:
            from_inputs.take_start()
            from_outputs.take_start()

        # TensorFlow has no assignments in the backward pass of a loop; the product of the inputs is outside of it.
        return replace(from_inputs, take_start=take_both), replace(from_outputs, take_start=None)

    def _over_time(
        self,
        product: Callable[..., Tensor],
        projected: Tensor,
        offset: Tensor | None,
        states: list[Tensor],
        mask: Tensor | None,
        training: bool,
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Runs the steps of the cell; returns the last output, all outputs in their order, and the states."""

        def step(inputs: Tensor, states: list[Tensor]) -> list[Tensor]:
            part, added = (inputs, None) if offset is None else tf.split(inputs, 2, axis=-1)
            all_gates = range(self.gates)
            return self.step(part, states, lambda previous, gates=all_gates: product(previous, added, gates))

        loop = keras.layers.RNN(
            _Steps(step, self.cell.state_size),
            return_sequences=True,
            go_backwards=self.go_backwards,
            unroll=self.unroll,
            name=f"{self.name}_loop",
            dtype=self.dtype_policy,
        )
        sequences = projected if offset is None else tf.concat([projected, offset], axis=-1)
        return loop.inner_loop(sequences, states, mask, training)

    def _product(
        self, kernels: KernelValues, inputs: Tensor | list[Tensor], training: bool, gates: Sequence[int] | None = None
    ) -> Tensor:
        """Returns the products of inputs with a kernel for some gates, by default all."""
        gates = range(self.gates) if gates is None else gates
        if isinstance(inputs, list):
            each = [kernels.carry(inputs[gate], training, self._columns([gate])) for gate in gates]
            return tf.concat(each, axis=-1)
        return kernels.carry(inputs, training, None if len(gates) == self.gates else self._columns(gates))

    def _columns(self, gates: Sequence[int]) -> slice:
        units = self.cell.units
        return slice(gates[0] * units, (gates[-1] + 1) * units)

    def _bias_values(self) -> tuple[Tensor | None, Tensor | None]:
        """Returns the biases of the inputs and of the previous outputs; None where there is none."""
        if self.cell.bias is None:
            return None, None
        bias = tensor_of(self.cell.bias)
        return (bias[0], bias[1]) if self._has_recurrent_bias else (bias, None)

    @property
    def _activate_gates(self) -> Callable[[Tensor], Tensor] | None:
        """The nonlinearities of the gates, as one function of the products of all gates; None if they are linear."""
        functions = self.gate_activations()
        if all(function in (None, keras.activations.linear) for function in functions):
            return None

        def activate(products: Tensor) -> Tensor:
            parts = tf.split(products, len(functions), axis=-1)
            return tf.concat([function(part) for function, part in zip(functions, parts, strict=True)], axis=-1)

        return activate


class _Steps:
    """A cell for `keras.layers.RNN` without weights."""

    def __init__(self, step: Callable[[Tensor, list[Tensor]], list[Tensor]], state_size: Any):
        self._step = step
        self.state_size = state_size

    def call(self, inputs: Tensor, states: Any) -> tuple[Tensor, list[Tensor]]:
        """Returns the output and the new states."""
        states = self._step(inputs, keras.tree.flatten(states))
        return states[0], states

    __call__ = call


class _Dropout:
    """The dropout masks of a cell in one call; each is a tensor, a list with one for each gate, or None."""

    def __init__(self, cell: Any, inputs: Tensor, state: Tensor, training: bool):
        of_inputs, self._outputs = dropout_masks(cell, inputs[:, 0], state) if training else (None, None)
        self._inputs = _over_steps(of_inputs)

    def of_inputs(self, inputs: Tensor) -> Tensor | list[Tensor]:
        """Returns the inputs `(batch, steps, inputs)` after dropout, as a list if the gates have different masks."""
        return _times(inputs, self._inputs)

    def of_outputs(self, outputs: Tensor) -> Tensor | list[Tensor]:
        """Returns previous outputs `(batch, units)` or `(batch, steps, units)` after dropout."""
        masks = self._outputs
        return _times(outputs, _over_steps(masks) if outputs.shape.rank == 3 else masks)

    @staticmethod
    def one(dropped: Tensor | list[Tensor], whole: Tensor) -> Tensor:
        """Returns the signal that R_l reads: after dropout, or before it if the gates have different masks."""
        return whole if isinstance(dropped, list) else dropped


def _over_steps(masks: Tensor | list[Tensor] | None) -> Tensor | list[Tensor] | None:
    """Returns masks `(batch, ...)` as `(batch, 1, ...)`, the same for all steps."""
    return None if masks is None else keras.tree.map_structure(lambda mask: mask[:, None], masks)


def _times(signal: Tensor, masks: Tensor | list[Tensor] | None) -> Tensor | list[Tensor]:
    if masks is None:
        return signal
    return [signal * mask for mask in masks] if isinstance(masks, (list, tuple)) else signal * masks


def _step_mask(mask: Any) -> Tensor | None:
    """Returns a mask as booleans `(batch, steps)`. Keras also takes numbers, and a third axis of size 1."""
    if mask is None:
        return None
    mask = tf.cast(keras.tree.flatten(mask)[0], tf.bool)
    return tf.squeeze(mask, -1) if mask.shape.rank == 3 else mask


def _masked(signal: Tensor | None, mask: Tensor | None) -> Tensor | None:
    """Returns a signal `(batch, steps, ...)` with zeros at the steps that are masked."""
    if signal is None or mask is None:
        return signal
    return tf.where(mask[..., None], signal, tf.zeros_like(signal))


def _previous(outputs: Tensor, initial: Tensor, mask: Tensor | None) -> Tensor:
    """Returns the output before each step.

    Args:
        outputs: `(batch, steps, units)`; at a masked step, the last output.
        initial: the initial state `(batch, units)`.
        mask: `(batch, steps)`, or None.
    """
    before = tf.concat([initial[:, None], outputs[:, :-1]], axis=1)
    if mask is None:
        return before
    begun = tf.cumsum(tf.cast(mask, tf.int32), axis=1, exclusive=True) > 0
    return tf.where(begun[..., None], before, initial[:, None])


@serializable
class SimpleRNN(_RecurrentLayer, keras.layers.SimpleRNN):
    """`keras.layers.SimpleRNN` whose error travels back through two backward kernels, also through time."""

    def step(self, projected: Tensor, states: list[Tensor], product: RecurrentProduct) -> list[Tensor]:
        """Returns the new output. See `_RecurrentLayer.step`."""
        output = projected + product(states[0])
        return [output if self.cell.activation is None else self.cell.activation(output)]


@serializable
class LSTM(_RecurrentLayer, keras.layers.LSTM):
    """`keras.layers.LSTM` whose error travels back through two backward kernels, also through time."""

    gates = 4

    def gate_activations(self) -> list[Any]:
        """Returns the nonlinearities of input gate, forget gate, candidate and output gate."""
        gate = self.cell.recurrent_activation
        return [gate, gate, self.cell.activation, gate]

    def step(self, projected: Tensor, states: list[Tensor], product: RecurrentProduct) -> list[Tensor]:
        """Returns the new output and carry. See `_RecurrentLayer.step`."""
        output, carry = states
        gate, activation = self.cell.recurrent_activation, self.cell.activation
        into, forget, candidate, out = tf.split(projected + product(output), 4, axis=-1)
        carry = gate(forget) * carry + gate(into) * activation(candidate)
        return [gate(out) * activation(carry), carry]


@serializable
class GRU(_RecurrentLayer, keras.layers.GRU):
    """`keras.layers.GRU` whose error travels back through two backward kernels, also through time.

    With `reset_after=False` the recurrent kernel has two inputs, the previous outputs before and after the reset gate.
    Rules that read signals refuse such a layer.
    """

    gates = 3

    def check_arguments(self) -> None:
        """Checks that the rule can read the inputs of the recurrent kernel. See `AlignedLayer.check_arguments`."""
        super().check_arguments()
        rule = self.alignment
        if not self.cell.reset_after and self.keeps_backward_kernel and rule.learns and rule.reads_signals:
            requirement = (
                f"must be True with {rule.rule!r}, which reads the inputs of the recurrent kernel; without it the "
                "kernel has two"
            )
            raise ArgumentError("reset_after", requirement, False, "reset_after=True")

    def gate_activations(self) -> list[Any]:
        """Returns the nonlinearities of update gate, reset gate and candidate."""
        gate = self.cell.recurrent_activation
        return [gate, gate, self.cell.activation]

    def step(self, projected: Tensor, states: list[Tensor], product: RecurrentProduct) -> list[Tensor]:
        """Returns the new output. See `_RecurrentLayer.step`."""
        (output,), gate, activation = states, self.cell.recurrent_activation, self.cell.activation
        update, reset, candidate = tf.split(projected, 3, axis=-1)
        if self.cell.reset_after:
            to_update, to_reset, to_candidate = tf.split(product(output), 3, axis=-1)
        else:
            to_update, to_reset = tf.split(product(output, gates=(0, 1)), 2, axis=-1)
        update, reset = gate(update + to_update), gate(reset + to_reset)
        to_candidate = reset * to_candidate if self.cell.reset_after else product(reset * output, gates=(2,))
        return [update * output + (1 - update) * activation(candidate + to_candidate)]
