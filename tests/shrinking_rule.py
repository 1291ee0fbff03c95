"""A rule and a primitive as a user would write them. Tests copy this file or its text; they do not import it."""

from typing import Literal

import tensorflow as tf

from neural_alignment.alignments import TrainedAlignment, primitives, register
from neural_alignment.alignments.schedules import Weight


def quartic(backward_kernel):
    """Fourth power of the backward kernel: sum B^4."""
    return tf.reduce_sum(backward_kernel**4)


quartic.__module__ = primitives.__name__
primitives.quartic = quartic


@register
class Shrinking(TrainedAlignment):
    """R = quartic P_quartic."""

    rule: Literal["shrinking"] = "shrinking"
    quartic: Weight

    def __call__(self, view):
        return self.weight("quartic", view) * primitives.quartic(view.backward_kernel)
