"""The state of one forward pass, shared by a model and its aligned layers."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import tensorflow as tf

from neural_alignment.alignments.base import Alignment
from neural_alignment.operations import LinearMap

Tensor = tf.Tensor


def _project(linear_map: LinearMap, inputs: Tensor, kernel: Tensor) -> Tensor:
    return linear_map.project(inputs, kernel)


class DeferredTerm(NamedTuple):
    """R_l that is computed after the backward pass of J.

    Attributes:
        connection: the connection of the layer.
        kernels: the kernels that R trains, by the names `"backward"` and `"forward"`.
        regulariser: a function that returns R_l.
    """

    connection: Any
    kernels: dict[str, Tensor]
    regulariser: Callable[[], Tensor]


@dataclass
class ForwardPass:
    """The state of one call of a model: options that its aligned layers read, and the R_l of each layer.

    If no `ForwardPass` is active, a layer adds R_l with `add_loss` and counts its own steps. It therefore works in any
    Keras model.

    Attributes:
        step: the global step.
        first_example: index of the first example of this call within the batch of the step.
        parts: number of equal parts of the batch of the step, of which this call gets one. The replicas of the current
            strategy are further parts.
        rows: number of rows of a layer's inputs for each example. It is not 1 in a layer that is applied to all time
            steps at once.
        regularise: whether the layers compute R_l.
        intervals: the values of `Alignment.interval` whose rules compute R_l in this step; None means all.
        has_initial_weights: whether W(0), the weights before the first training step, have been recorded. True in
            every training step of an `AlignedModel`.
        weight_transport: whether the error travels back through W (true backpropagation, for comparison).
        probe: called with each layer, its inputs and its pre-activation W^T x (+ bias); returns the tensor that
            replaces the pre-activation.
        around: called with each operation of an `AlignedModel` and the function that calls the operation; returns
            the function to call in its place.
        product: called with the linear map, the inputs and W of each layer without a backward kernel; returns W^T x.
        deferred: None, or a list in which R_l is postponed until after the backward pass of J. Otherwise the gradients
            of R, which are as large as the kernels, and noise, which is as large as the inputs of a layer, would occupy
            memory during that pass. Each layer whose rule does not read the batch adds its R_l.
        separate: None, or a function that is called with a layer whose W is trained by R, and with W. It returns a
            copy of W for R, so that the caller can separate the gradients of R and J. With None the gradient to W is
            the sum of both.
        losses: R_l by layer name, added by the layers.
        seen: names of the connections for which `is_first` has been asked.
    """

    step: Tensor | int = 0
    first_example: Tensor | int = 0
    parts: int = 1
    rows: Tensor | int = 1
    regularise: bool = True
    intervals: frozenset[int] | None = None
    has_initial_weights: bool = False
    weight_transport: bool = False
    probe: Callable[[Any, Tensor, Tensor], Tensor] | None = None
    around: Callable[[Any, Callable[..., Any]], Callable[..., Any]] | None = None
    product: Callable[[LinearMap, Tensor, Tensor], Tensor] = _project
    deferred: list[DeferredTerm] | None = None
    separate: Callable[[Any, Tensor], Tensor] | None = None
    losses: dict[str, Tensor] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)

    def computes(self, rule: Alignment) -> bool:
        """Returns whether the layers with `rule` compute R_l."""
        return self.regularise and rule.learns and (self.intervals is None or rule.interval in self.intervals)

    def is_first(self, connection: str) -> bool:
        """Returns whether this is the first question about a connection, by its name, in this forward pass."""
        first = connection not in self.seen
        self.seen.add(connection)
        return first

    def add(self, layer: str, regulariser: Tensor) -> None:
        """Adds R_l to `losses`. A layer that is called twice gets the sum if its rule reads signals."""
        self.losses[layer] = regulariser + self.losses.get(layer, 0.0)


def first_example(examples: Tensor) -> Tensor | int:
    """Returns the index of the first example on this replica within the batch of the step.

    Replicas may have different numbers of examples: the last ones have fewer if the batch is not divisible.

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
    """Activates a new `ForwardPass` with the attributes `options` for the layers called in this thread."""
    with _active(ForwardPass(**options)) as state:
        yield state


@contextlib.contextmanager
def side_pass(**changes: Any) -> Iterator[ForwardPass]:
    """Activates a copy of the current `ForwardPass` that does not compute R, with the attributes `changes`."""
    with _active(replace(current_pass() or ForwardPass(), regularise=False, **changes)) as state:
        yield state


@contextlib.contextmanager
def changed_pass(**changes: Any) -> Iterator[ForwardPass]:
    """Activates a copy of the current `ForwardPass`, with the attributes `changes`, that fills the same `losses`."""
    with _active(replace(current_pass() or ForwardPass(), **changes)) as state:
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
