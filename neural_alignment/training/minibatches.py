"""Computes the gradients of a batch in equal parts, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from neural_alignment.errors import ArgumentError, Words, WrongValue
from neural_alignment.keras_internals import mask_of, set_mask

Tensor = tf.Tensor


def replicas() -> int:
    """Returns the number of replicas that share a step."""
    return tf.distribute.get_strategy().num_replicas_in_sync


def cut(tensor: Tensor, parts: int) -> Tensor:
    """Splits a batch into equal parts along a new first axis."""
    if isinstance(tensor, tf.SparseTensor):
        tensor = tf.sparse.to_dense(tf.sparse.reorder(tensor))
    requirement, size = "must divide the batch size", tensor.shape[0]
    if size is not None and size % parts:
        found, example = Words(f"{parts} and a batch of {size}"), f"batches of {(size // parts + 1) * parts}"
        raise ArgumentError("minibatches", requirement, found, example)
    message = WrongValue("minibatches", requirement, parts, "batches made with drop_remainder=True").sentences
    whole = tf.debugging.assert_equal(tf.shape(tensor)[0] % parts, 0, message)
    with tf.control_dependencies([whole] if whole is not None else []):
        return tf.reshape(tensor, tf.concat([[parts, -1], tf.shape(tensor)[1:]], axis=0))


def accumulated(part: Callable[[Tensor | int], tuple[Any, ...]], parts: int) -> tuple[Any, ...]:
    """Averages gradients, J and R over the parts of a batch, one after the other, so that memory holds only one.

    Args:
        part: computes the gradients, J, the R_l and the outputs of the part with an index. A gradient may be None, then
            in all parts.
        parts: the number of parts.

    Returns:
        The means of the gradients, J and the R_l, and the outputs of all parts with their masks.
    """
    structures: list[Any] = []

    def tensors(index: Tensor | int) -> tuple[list[Tensor], list[Tensor]]:
        """Returns the tensors of a part to add up, and those to concatenate: a loop cannot pass None or masks."""
        *terms, outputs = part(index)
        structures[:] = terms, (outputs, tf.nest.map_structure(mask_of, outputs))
        return tuple([leaf for leaf in tf.nest.flatten(structure) if leaf is not None] for structure in structures)

    loop = _loop if replicas() == 1 else _unrolled  # Replicas cannot synchronize inside a TensorFlow loop.
    sums, joined = loop(tensors, parts)
    terms, (outputs, masks) = map(_packed, structures, ([total / parts for total in sums], joined))
    return *terms, tf.nest.map_structure(set_mask, outputs, masks)


def _packed(structure: Any, tensors: Sequence[Tensor]) -> Any:
    """Returns the structure with other tensors in place of those that it has; None remains."""
    rest = iter(tensors)
    return tf.nest.map_structure(lambda leaf: None if leaf is None else next(rest), structure)


def _unrolled(
    part: Callable[[int], tuple[list[Tensor], list[Tensor]]], parts: int
) -> tuple[list[Tensor], list[Tensor]]:
    """Returns the sums over the parts, and the tensors of all parts one after the other."""
    sums, pieces = part(0)
    collected = [[piece] for piece in pieces]
    for index in range(1, parts):
        with tf.control_dependencies(sums):
            terms, pieces = part(index)
        sums = list(map(tf.add, sums, terms))
        for pile, piece in zip(collected, pieces, strict=True):
            pile.append(piece)
    return sums, [tf.concat(pile, axis=0) for pile in collected]


def _loop(part: Callable[[Tensor], tuple[list[Tensor], list[Tensor]]], parts: int) -> tuple[list[Tensor], list[Tensor]]:
    """Like `_unrolled`, but the size of the graph does not depend on the number of parts."""
    first, pieces = part(tf.constant(0))
    arrays = [tf.TensorArray(piece.dtype, parts, element_shape=piece.shape).write(0, piece) for piece in pieces]

    def body(index, sums, arrays):
        terms, pieces = part(index)
        written = [array.write(index, piece) for array, piece in zip(arrays, pieces, strict=True)]
        return index + 1, list(map(tf.add, sums, terms)), written

    _, sums, arrays = tf.while_loop(
        lambda index, *_: index < parts, body, (tf.constant(1), first, arrays), parallel_iterations=1
    )
    return sums, [array.concat() for array in arrays]
