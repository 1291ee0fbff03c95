"""The Add task of Boopathy and Fiete 2022."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import PositiveInt

from neural_alignment.data.add_task import PUBLISHED_SEED, AddTask
from neural_alignment.data.pipeline import Batching, Dataset
from neural_alignment.data.sources.base import SOURCES, SourceOptions
from neural_alignment.options import NumpySeed


@SOURCES.register
class AddTaskData(SourceOptions):
    """The Add task: sequences of coin tosses, and targets that add two earlier tosses. The defaults are the paper's.

    The seed of the run determines the order of the sequences, with the generator of the published code.
    """

    targets: ClassVar[str] = "sequences"

    source: Literal["add_task"]
    train_sequences: PositiveInt = 300
    """Number of training sequences."""
    test_sequences: PositiveInt = 100
    """Number of sequences in the validation split."""
    steps: PositiveInt = 100
    """Number of steps in each sequence."""
    sequences_seed: NumpySeed = PUBLISHED_SEED
    """Seed of the coin tosses."""

    def load(self, batching: Batching) -> Dataset:
        """Returns the sequences, in memory. See `SourceOptions.load`."""
        return AddTask(batching, self.train_sequences, self.test_sequences, self.steps, self.sequences_seed)
