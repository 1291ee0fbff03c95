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
    """What a model asks of its aligned layers during one call, and what they leave there.

    Without one, a layer adds R_l with `add_loss` and counts its own steps: it works in any Keras model.

    Attributes:
        step: the global step.
        first_example: place in the step's batch of the first example of this call.
        regularise: whether the layers compute R_l.
        has_initial_weights: whether W(0) has been taken, as it has in every training step of an `AlignedModel`.
        weight_transport: whether the error travels back through W: true backpropagation, for comparison. Read when
            the error arrives, so that both kinds of backward pass may follow one forward pass.
        probe: called with each layer and its inputs and W^T x (+ bias); returns what to go on with.
        around: called with each operation of an `AlignedModel` and with what calls it; returns what to call.
        deferred: where it is a list, layers whose rule reads kernels alone put there themselves, the values of the
            kernels that R moves by name (`"backward"`, `"forward"`), and a function that returns R_l, for the model to
            call after the backward pass. Taken before, R's gradients, as large as the kernels, would be held through
            it.
        separate: called with a layer whose W is moved by R, and W; returns a copy of W for R to read, by which the
            caller tells R's gradient of W from J's. Where it is none, both gradients reach W.
        losses: R_l by layer name, filled by the layers.
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
        """Notes R_l; a layer that stands at two places of a network has the sum of both."""
        self.losses[layer] = regulariser + self.losses.get(layer, 0.0)


def first_example(examples: Tensor) -> Tensor | int:
    """Returns the place in the step's batch of this replica's first example.

    Replicas may have different numbers of examples: the last ones get fewer of a batch that does not divide evenly.

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
    """Makes a `ForwardPass` the one that this thread's layers see."""
    with _active(ForwardPass(**options)) as state:
        yield state


@contextlib.contextmanager
def side_pass(**changes: Any) -> Iterator[ForwardPass]:
    """Makes the present `ForwardPass` with some attributes changed, and no R, the one that this thread's layers see."""
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
    """Returns the innermost `forward_pass` of this thread, or none."""
    return getattr(_ACTIVE, "forward_pass", None)
