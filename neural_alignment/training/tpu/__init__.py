"""Compiles training steps for Cloud TPU with its own compiler, without a TPU."""

from neural_alignment.training.tpu.chips import Slice
from neural_alignment.training.tpu.compilation import Compiled, compile_program, interpreter
from neural_alignment.training.tpu.estimate import Estimate, describe
from neural_alignment.training.tpu.program import lower, turns

__all__ = ["Compiled", "Estimate", "Slice", "compile_program", "describe", "interpreter", "lower", "turns"]
