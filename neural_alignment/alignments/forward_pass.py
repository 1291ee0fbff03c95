"""The state of one forward pass, shared by a model and its aligned layers."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import tensorflow as tf

Tensor = tf.Tensor


@dataclass
class ForwardPass:
    """The options of one call of a model for its aligned layers, and the R_l that they return.

    Outside of a forward pass a layer adds R_l with `add_loss` and counts its own steps, so it works in any Keras model.

    Attributes:
        step: the global step.
        first_example: index of the first example of this call within the batch of the step.
        regularise: whether the layers compute R_l.
        has_initial_weights: whether W(0) has been taken. It has in every training step of an `AlignedModel`.
        weight_transport: whether the error travels back through W (true backpropagation, for comparison). It is read
            in the backward pass, so both kinds of backward pass can follow one forward pass.
        probe: called with each layer, its inputs and W^T x (+ bias); returns the value that replaces W^T x (+ bias).
        around: called with each operation of an `AlignedModel` and the function that calls it; returns the function
            that is called instead.
        deferred: None, or a list to which layers with rules that read only kernels add three items: the layer, the
            kernels that R moves by name (`"backward"`, `"forward"`), and a function that returns R_l. The model calls
            the function after the backward pass of J. Otherwise the gradients of R, which are as large as the kernels,
            would occupy memory during that pass.
        separate: None, or a function of a layer whose W is moved by R, and W. It returns a copy of W for R, so that
            the caller can separate the gradients of R and J. With None both gradients reach W.
        losses: R_l by layer name; the layers fill it.
    """

    step: Tensor | int = 0
    first_example: Tensor | int = 0
    regularise: bool = True
    has_initial_weights: bool = False
    weight_transport: bool = False
    probe: Callable[[Any, Tensor, Tensor], Tensor] | None = None
    around: Callable[[Any, Callable[..., Any]], Callable[..., Any]] | None = None
    deferred: list[tuple[Any, dict[str, Tensor], Callable[[], Tensor]]] | None = None
    separate: Callable[[Any, Tensor], Tensor] | None = None
    losses: dict[str, Tensor] = field(default_factory=dict)

    def add(self, layer: str, regulariser: Tensor) -> None:
        """Adds R_l to `losses`. A layer that is called twice gets the sum."""
        self.losses[layer] = regulariser + self.losses.get(layer, 0.0)


def first_example(examples: Tensor) -> Tensor | int:
    """Returns the index of the first example on this replica within the batch of the step.

    Replicas may have different numbers of examples: the last ones get fewer if the batch does not divide evenly.

    Args:
        examples: number of examples on this replica.
    """
    replica = tf.distribute.get_replica_context()
    if replica is None or replica.num_replicas_in_sync == 1:
        return 0
    places = tf.range(replica.num_replicas_in_sync)
    own = tf.where(places == replica.replica_id_in_sync_group, tf.cast(examples, tf.int64), 0)
    counts = replica.all_reduce(tf.distribute.ReduceOp.SUM, own)
    return tf.cast(tf.reduce_sum(tf.where(places < replica.replica_id_in_sync_group, counts, 0)), tf.int32)


_ACTIVE = threading.local()


@contextlib.contextmanager
def forward_pass(**options: Any) -> Iterator[ForwardPass]:
    """Activates a new `ForwardPass` for the layers of this thread. The options are its attributes."""
    with _active(ForwardPass(**options)) as state:
        yield state


@contextlib.contextmanager
def side_pass(**changes: Any) -> Iterator[ForwardPass]:
    """Activates a copy of the current `ForwardPass` without R and with other attributes changed."""
    with _active(replace(current_pass() or ForwardPass(), regularise=False, **changes)) as state:
        yield state


@contextlib.contextmanager
def _active(state: ForwardPass) -> Iterator[ForwardPass]:
    previous = current_pass()
    _ACTIVE.forward_pass = state
    try:
        yield _ACTIVE.forward_pass
    finally:
        _ACTIVE.forward_pass = previous


def current_pass() -> ForwardPass | None:
    """Returns the active `ForwardPass` of this thread, or None."""
    return getattr(_ACTIVE, "forward_pass", None)
