"""Optimizers for networks with two losses: the task loss J and the alignment regulariser R.

J trains the weights of the forward pass. R trains the backward kernels, through which the error travels back.
"""

try:
    import tensorflow as _tensorflow  # noqa: F401
except ModuleNotFoundError as error:
    raise ImportError(
        "TensorFlow is not installed. Install one of the extras of neural_alignment: cpu, gpu or tpu, "
        "as in pip install 'neural_alignment[cpu]'."
    ) from error

from optimizers.adam import Adam
from optimizers.learning_rate import ManualDrop, WarmupAndDrops, WarmupAndSchedule
from optimizers.momentum import Momentum
from optimizers.noisy import Noisy
from optimizers.optimizers import MultiOptimizer
from optimizers.radam import RAdam
from optimizers.rate_scheduler import RateScheduler
from optimizers.rmsprop import RMSprop
from optimizers.swats import SWATS

__all__ = [
    "SWATS",
    "Adam",
    "ManualDrop",
    "Momentum",
    "MultiOptimizer",
    "Noisy",
    "RAdam",
    "RMSprop",
    "RateScheduler",
    "WarmupAndDrops",
    "WarmupAndSchedule",
]
