"""Computes the gradients of a batch in equal parts, one after the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

Tensor = tf.Tensor


def replicas() -> int:
    """Returns the number of replicas that share a step."""
    return tf.distribute.get_strategy().num_replicas_in_sync


def cut(tensor: Tensor, parts: int) -> Tensor:
    """Splits a batch into equal parts along a new first axis."""
    if isinstance(tensor, tf.SparseTensor):
        tensor = tf.sparse.to_dense(tf.sparse.reorder(tensor))
    message = f"`minibatches` must divide the batch size. Received minibatches={parts}"
    size = tensor.shape[0]
    if size is not None and size % parts:
        raise ValueError(f"{message} and a batch of {size}. Example: batches of {(size // parts + 1) * parts}.")
    whole = tf.debugging.assert_equal(tf.shape(tensor)[0] % parts, 0, f"{message}; drop a smaller last batch.")
    with tf.control_dependencies([whole] if whole is not None else []):
        return tf.reshape(tensor, tf.concat([[parts, -1], tf.shape(tensor)[1:]], axis=0))


def accumulated(part: Callable[[Tensor | int], tuple[Any, ...]], parts: int) -> tuple[Any, ...]:
    """Averages gradients, J and R over the parts of a batch, one after the other, so that memory holds only one."""
    loop = _loop if replicas() == 1 else _unrolled  # Replicas cannot synchronize inside a TensorFlow loop.
    sums, outputs = loop(part, parts)
    gradients, loss, regularisers = tf.nest.map_structure(lambda total: total / parts, sums)
    return gradients, loss, regularisers, outputs


def _unrolled(part: Callable[[int], tuple[Any, ...]], parts: int) -> tuple[tuple[Any, ...], Any]:
    """Returns the sums of gradients, J and R over the parts, and the outputs of all parts."""
    sums, outputs = None, []
    for index in range(parts):
        with tf.control_dependencies([] if sums is None else tf.nest.flatten(sums)):
            *terms, output = part(index)
        sums = tuple(terms) if sums is None else tf.nest.map_structure(tf.add, sums, tuple(terms))
        outputs.append(output)
    return sums, tf.nest.map_structure(lambda *each: tf.concat(each, axis=0), *outputs)


def _loop(part: Callable[[Tensor], tuple[Any, ...]], parts: int) -> tuple[tuple[Any, ...], Any]:
    """Like `_unrolled`, but the size of the graph does not depend on the number of parts."""
    gradients, loss, regularisers, outputs = part(tf.constant(0))
    arrays = [
        tf.TensorArray(output.dtype, parts, element_shape=output.shape).write(0, output)
        for output in tf.nest.flatten(outputs)
    ]

    def body(index, sums, arrays):
        *terms, outputs = part(index)
        sums = tf.nest.map_structure(tf.add, sums, tuple(terms))
        written = [array.write(index, output) for array, output in zip(arrays, tf.nest.flatten(outputs), strict=True)]
        return index + 1, sums, written

    _, sums, arrays = tf.while_loop(
        lambda index, *_: index < parts,
        body,
        (tf.constant(1), (gradients, loss, regularisers), arrays),
        parallel_iterations=1,
    )
    return sums, tf.nest.pack_sequence_as(outputs, [array.concat() for array in arrays])
