"""The numbers of examples of a batch: those from which a rule computes R, and that by which a sum is divided."""

from __future__ import annotations

from fractions import Fraction
from typing import Annotated, Any

import pydantic
import tensorflow as tf

from neural_alignment.errors import ArgumentError

SMALLEST_FRACTION = 1e-6


def _checked(examples: Any) -> Any:
    if isinstance(examples, int) and not isinstance(examples, bool):
        in_range = examples >= 1
    else:
        in_range = isinstance(examples, float) and SMALLEST_FRACTION <= examples <= 1
    if not in_range:
        raise ArgumentError("", "must be a fraction in (0, 1], or an integer of at least 1", examples)
    return examples


def _whole_as_none(examples: float) -> float | None:
    """Returns None for 1.0, because comparisons of configurations do not distinguish it from one example."""
    return None if isinstance(examples, float) and examples == 1 else examples


# Before pydantic checks the types, so that there is one message for values of all types.
PartOfBatch = Annotated[int | float, pydantic.BeforeValidator(_checked), pydantic.AfterValidator(_whole_as_none)]
"""A fraction of the batch (a float), or a number of examples (an integer). The fraction 1.0 becomes None."""


def examples_used(examples: float, batch: int | tf.Tensor, parts: int = 1) -> int | tf.Tensor:
    """Returns the number of examples of one part of a batch from which R is computed.

    It is ceil(fraction * batch), or ceil(count / parts) but at most `batch`.

    Args:
        examples: a fraction (a float), or a count for all parts together (an integer).
        batch: number of examples in the part: an integer, or a scalar tensor if the number is unknown in a graph.
        parts: number of equal parts of the whole batch.
    """
    known = isinstance(batch, int)
    if isinstance(examples, int):
        wanted = -(-examples // parts)
        return min(wanted, batch) if known else tf.minimum(wanted, batch)
    # A float such as 0.07 is slightly larger than the number that was meant: 0.07 * 100 > 7.
    share = Fraction(examples).limit_denominator(round(1 / SMALLEST_FRACTION))
    if known:
        return -(-batch * share.numerator // share.denominator)
    return tf.cast(-(-tf.cast(batch, tf.int64) * share.numerator // share.denominator), batch.dtype)


def divisor(signal: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """Returns the number of examples by which a sum over the batch is divided.

    It is at least 1, because a replica may have no example of a small batch. Its sum is then 0.
    """
    return tf.cast(tf.maximum(tf.shape(signal)[0], 1), dtype)
