"""Options of optimizers, learning-rate schedules and loss rates, with methods that create the objects."""

from neural_alignment.optimization.base import OptimizerOptions, described
from neural_alignment.optimization.keras_optimizers import WITHOUT_FLOAT64
from neural_alignment.optimization.loss_rates import LossRates, ScheduledLossRate
from neural_alignment.optimization.optimizers import OPTIMIZERS, AnyOptimizer, SGDOptions
from neural_alignment.optimization.plan import Optimization
from neural_alignment.optimization.schedules import Clock

__all__ = [
    "OPTIMIZERS",
    "WITHOUT_FLOAT64",
    "AnyOptimizer",
    "Clock",
    "LossRates",
    "Optimization",
    "OptimizerOptions",
    "SGDOptions",
    "ScheduledLossRate",
    "described",
]
