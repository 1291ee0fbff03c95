"""Simple RNN, LSTM and GRU in NumPy: a loop through time forward with W, and one backward with B."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

Array = np.ndarray

Errors = tuple[Array, list[Array]]
"""Errors to the inputs and to the previous states."""


def sigmoid(x: Array) -> Array:
    """Returns 1 / (1 + exp(-x))."""
    return 1 / (1 + np.exp(-x))


@dataclass
class Weights:
    """W and B of the inputs and of the previous outputs, all in the layout of W, and the bias."""

    kernel: Array
    recurrent_kernel: Array
    bias: Array
    backward_kernel: Array
    backward_recurrent_kernel: Array


@dataclass
class Gradients:
    """Sums over time of the gradients to the weights."""

    kernel: Array
    recurrent_kernel: Array
    bias: Array

    def add(self, x: Array, projected: Array, previous: Array, product: Array) -> None:
        """Adds one step: the inputs and the error of their product, and the same of the previous outputs."""
        self.kernel += x.T @ projected
        self.recurrent_kernel += previous.T @ product
        if self.bias.ndim == 2:
            self.bias += np.stack([projected.sum(axis=0), product.sum(axis=0)])
        else:
            self.bias += projected.sum(axis=0)


class SimpleRNN:
    """h' = tanh(W x + b + U h)."""

    states = 1

    def forward(self, w: Weights, x: Array, states: list[Array]) -> tuple[list[Array], tuple]:
        """Returns the new states and the numbers that the backward pass reads."""
        output = np.tanh(x @ w.kernel + w.bias + states[0] @ w.recurrent_kernel)
        return [output], (x, states[0], output)

    def backward(
        self, w: Weights, saved: tuple, errors: list[Array], gradients: Gradients
    ) -> tuple[Array, list[Array]]:
        """Returns the errors to the inputs and to the previous states."""
        x, previous, output = saved
        error = errors[0] * (1 - output**2)
        gradients.add(x, error, previous, error)
        return error @ w.backward_kernel.T, [error @ w.backward_recurrent_kernel.T]


class LSTM:
    """Gates in the order input, forget, candidate, output."""

    states = 2

    def forward(self, w: Weights, x: Array, states: list[Array]) -> tuple[list[Array], tuple]:
        """Returns the new states and the numbers that the backward pass reads."""
        previous, memory = states
        into, forget, candidate, out = np.split(x @ w.kernel + w.bias + previous @ w.recurrent_kernel, 4, axis=-1)
        into, forget, out, candidate = sigmoid(into), sigmoid(forget), sigmoid(out), np.tanh(candidate)
        new = forget * memory + into * candidate
        return [out * np.tanh(new), new], (x, previous, memory, into, forget, candidate, out, new)

    def backward(
        self, w: Weights, saved: tuple, errors: list[Array], gradients: Gradients
    ) -> tuple[Array, list[Array]]:
        """Returns the errors to the inputs and to the previous states."""
        x, previous, memory, into, forget, candidate, out, new = saved
        to_output, to_memory = errors
        to_memory = to_memory + to_output * out * (1 - np.tanh(new) ** 2)
        error = np.concatenate(
            [
                to_memory * candidate * into * (1 - into),
                to_memory * memory * forget * (1 - forget),
                to_memory * into * (1 - candidate**2),
                to_output * np.tanh(new) * out * (1 - out),
            ],
            axis=-1,
        )
        gradients.add(x, error, previous, error)
        return error @ w.backward_kernel.T, [error @ w.backward_recurrent_kernel.T, to_memory * forget]


class GRU:
    """Gates in the order update, reset, candidate; the reset gate acts on the product with U."""

    states = 1

    def forward(self, w: Weights, x: Array, states: list[Array]) -> tuple[list[Array], tuple]:
        """Returns the new states and the numbers that the backward pass reads."""
        (previous,) = states
        z, r, c = np.split(x @ w.kernel + w.bias[0], 3, axis=-1)
        to_z, to_r, to_c = np.split(previous @ w.recurrent_kernel + w.bias[1], 3, axis=-1)
        z, r = sigmoid(z + to_z), sigmoid(r + to_r)
        c = np.tanh(c + r * to_c)
        return [z * previous + (1 - z) * c], (x, previous, z, r, c, to_c)

    def backward(
        self, w: Weights, saved: tuple, errors: list[Array], gradients: Gradients
    ) -> tuple[Array, list[Array]]:
        """Returns the errors to the inputs and to the previous states."""
        x, previous, z, r, c, to_c = saved
        (error,) = errors
        candidate = error * (1 - z) * (1 - c**2)
        update, reset = error * (previous - c) * z * (1 - z), candidate * to_c * r * (1 - r)
        projected = np.concatenate([update, reset, candidate], axis=-1)
        product = np.concatenate([update, reset, candidate * r], axis=-1)
        gradients.add(x, projected, previous, product)
        return projected @ w.backward_kernel.T, [error * z + product @ w.backward_recurrent_kernel.T]


class GRUResetBefore:
    """The GRU with `reset_after=False`: the reset gate acts on the previous output."""

    states = 1

    def forward(self, w: Weights, x: Array, states: list[Array]) -> tuple[list[Array], tuple]:
        """Returns the new states and the numbers that the backward pass reads."""
        (previous,) = states
        units = previous.shape[-1]
        z, r, c = np.split(x @ w.kernel + w.bias, 3, axis=-1)
        to_z, to_r = np.split(previous @ w.recurrent_kernel[:, : 2 * units], 2, axis=-1)
        z, r = sigmoid(z + to_z), sigmoid(r + to_r)
        c = np.tanh(c + (r * previous) @ w.recurrent_kernel[:, 2 * units :])
        return [z * previous + (1 - z) * c], (x, previous, z, r, c)

    def backward(
        self, w: Weights, saved: tuple, errors: list[Array], gradients: Gradients
    ) -> tuple[Array, list[Array]]:
        """Returns the errors to the inputs and to the previous states."""
        x, previous, z, r, c = saved
        (error,), units = errors, previous.shape[-1]
        candidate = error * (1 - z) * (1 - c**2)
        to_gated = candidate @ w.backward_recurrent_kernel[:, 2 * units :].T
        update, reset = error * (previous - c) * z * (1 - z), to_gated * previous * r * (1 - r)
        gates = np.concatenate([update, reset], axis=-1)
        projected = np.concatenate([gates, candidate], axis=-1)
        gradients.kernel += x.T @ projected
        gradients.bias += projected.sum(axis=0)
        gradients.recurrent_kernel += np.concatenate([previous.T @ gates, (r * previous).T @ candidate], axis=-1)
        through = gates @ w.backward_recurrent_kernel[:, : 2 * units].T
        return projected @ w.backward_kernel.T, [error * z + to_gated * r + through]


CELLS = {"SimpleRNN": SimpleRNN(), "LSTM": LSTM(), "GRU": GRU(), "GRU before": GRUResetBefore()}


@dataclass
class Run:
    """One run over time, as a recurrent layer of Keras makes it.

    Attributes:
        cell: one of `CELLS`.
        weights: W, B and bias.
        x: inputs `(batch, steps, inputs)`.
        initial: initial states; zeros by default.
        mask: `(batch, steps)`; at a masked step the states stay, and the output is repeated.
        zero_output_for_mask: whether the output at a masked step is zero instead.
        go_backwards: whether the run begins with the last inputs. The outputs stay in the order of the run.
    """

    cell: object
    weights: Weights
    x: Array
    initial: list[Array] | None = None
    mask: Array | None = None
    zero_output_for_mask: bool = False
    go_backwards: bool = False
    outputs: Array = field(init=False)
    previous: Array = field(init=False)

    def __post_init__(self):
        batch, steps, _ = self.x.shape
        units = self.weights.recurrent_kernel.shape[0]
        x = self.x[:, ::-1] if self.go_backwards else self.x
        mask = np.ones((batch, steps), bool) if self.mask is None else self.mask
        self._mask = mask[:, ::-1] if self.go_backwards else mask
        states = self.initial or [np.zeros((batch, units))] * self.cell.states
        outputs, previous, self._saved = [], [], []
        held = np.zeros((batch, units))
        for step in range(steps):
            previous.append(states[0])
            new, saved = self.cell.forward(self.weights, x[:, step], states)
            kept = self._mask[:, step, None]
            held = np.where(kept, new[0], 0 * held if self.zero_output_for_mask else held)
            states = [np.where(kept, now, before) for now, before in zip(new, states, strict=True)]
            outputs.append(held)
            self._saved.append(saved)
        self.outputs, self.states = np.stack(outputs, axis=1), states
        self.previous = np.stack(previous, axis=1)

    def masked(self, signal: Array, reverse: bool = False) -> Array:
        """Returns a signal `(batch, steps, ...)` in the order of the run with zeros at the masked steps.

        Args:
            signal: the signal.
            reverse: whether the signal and the result have the order of the inputs.
        """
        mask = self._mask[:, ::-1] if reverse and self.go_backwards else self._mask
        return signal * mask[..., None]

    def backward(self, upstream: Array) -> tuple[Array, Gradients, list[Array]]:
        """Returns the errors to inputs, weights and initial states.

        Args:
            upstream: the errors to all outputs, in the order of the run.
        """
        w = self.weights
        gradients = Gradients(*(np.zeros_like(each) for each in (w.kernel, w.recurrent_kernel, w.bias)))
        errors, held = [np.zeros_like(upstream[:, 0]) for _ in range(self.cell.states)], 0.0
        to_inputs = []
        for step in reversed(range(upstream.shape[1])):
            kept = self._mask[:, step, None]
            arriving = upstream[:, step] + held
            held = 0.0 if self.zero_output_for_mask else np.where(kept, 0.0, arriving)
            through = [np.where(kept, error, 0.0) for error in errors]
            through[0] = through[0] + np.where(kept, arriving, 0.0)
            to_x, before = self.cell.backward(w, self._saved[step], through, gradients)
            errors = [np.where(kept, 0.0, error) + each for error, each in zip(errors, before, strict=True)]
            to_inputs.append(to_x)
        dx = np.stack(to_inputs if self.go_backwards else to_inputs[::-1], axis=1)
        return dx, gradients, errors
