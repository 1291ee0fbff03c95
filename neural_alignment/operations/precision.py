"""Half precision, which is too narrow for sums over a batch or a kernel, such as R."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

HALF = (tf.bfloat16, tf.float16)


def widened(value: Any) -> tf.Tensor:
    """Returns a tensor or variable of half precision as float32, and one of another dtype as a tensor."""
    tensor = tf.convert_to_tensor(value)
    return tf.cast(tensor, tf.float32) if tensor.dtype in HALF else tensor
