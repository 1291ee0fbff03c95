"""Options of the measurements of a run, the files it writes and the states it keeps."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt

from neural_alignment.errors import ArgumentError
from neural_alignment.options import Options


class Evaluation(Options):
    """Which measurements are made, and how often."""

    every_epochs: PositiveInt = 1
    """Epochs between two evaluations."""
    batch_size: PositiveInt | None = None
    """Validation examples evaluated at once. Default: the training batch size."""
    probe_examples: NonNegativeInt = 64
    """Validation examples over which the angles of projections and gradients are averaged. With 0 only the angles of
    kernels are measured, which need no pass through the network."""
    test_split: Annotated[str | None, Field(exclude_if=lambda split: split is None)] = None
    """Another split of the same data that is evaluated too, if the source has `validation_split`: the columns
    `test_J`, `test_top1` and `test_top5` of `metrics.csv`."""

    def check_run(self, config: Any) -> None:
        """Checks that there is an evaluation within the run.

        Args:
            config: the configuration of the run.

        Raises:
            ArgumentError: if not.
        """
        if self.every_epochs > config.epochs:
            raise ArgumentError(
                "evaluation.every_epochs", f"must not exceed epochs ({config.epochs})", self.every_epochs
            )


class Logging(Options):
    """Files that a run writes in addition to `metrics.csv`: summaries for TensorBoard, and kernels."""

    tensorboard: bool = True
    """Whether summaries are written for TensorBoard."""
    histograms: bool = False
    """Whether they include histograms of all weights."""
    scatter: bool = True
    """Whether they include images of W against B for each layer."""
    kernels: list[str] = Field(default_factory=list)
    """Patterns of layer names. W and B of these layers are saved at every evaluation, in kernels/STEP.npz."""


class Checkpoints(Options):
    """When the state of a run is saved, and how many states are kept. A resumed run gives the same numbers."""

    every_minutes: NonNegativeFloat = 10.0
    """Minutes after which a state is saved between evaluations; 0 to save at evaluations only."""
    every_steps: PositiveInt | None = None
    """Global steps after which a state is saved too."""
    # Left out at its default, so that the files of earlier runs are written as they were.
    keep: Annotated[int, Field(gt=0, le=1000, exclude_if=lambda count: count == 1)] = 1
    """Number of last states to keep; `train --resume-from STEP` goes back to one of them."""
    keep_best: bool = True
    """Whether the state with the best validation top-1 is kept in addition."""
