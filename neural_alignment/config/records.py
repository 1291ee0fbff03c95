"""Options for the evaluations, the output files and the checkpoints of a run."""

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
    """Validation examples per batch. Default: the training batch size."""
    probe_examples: NonNegativeInt = 64
    """Number of validation examples in the batch on which the angles of projections and gradients are measured. With 0,
    only the angles of kernels are measured, which need no pass through the network."""
    test_split: Annotated[str | None, Field(exclude_if=lambda split: split is None)] = None
    """Another split of the same data that is evaluated as well, for sources with named splits. The results are the
    columns `test_J`, `test_top1` and `test_top5` of `metrics.csv`."""

    def check_run(self, config: Any) -> None:
        """Checks that the run is long enough for an evaluation.

        Args:
            config: the configuration of the run.

        Raises:
            ArgumentError: if `every_epochs` exceeds the epochs of the run.
        """
        if self.every_epochs > config.epochs:
            raise ArgumentError(
                "evaluation.every_epochs", f"must not exceed epochs ({config.epochs})", self.every_epochs
            )


class Logging(Options):
    """Which files a run writes in addition to `metrics.csv`: summaries for TensorBoard, and kernels."""

    tensorboard: bool = True
    """Whether summaries are written for TensorBoard."""
    histograms: bool = False
    """Whether the summaries include histograms of W and B for each aligned layer."""
    scatter: bool = True
    """Whether the summaries include images of W against B for each aligned layer."""
    kernels: list[str] = Field(default_factory=list)
    """Patterns of layer names. W and B of these layers are saved at every evaluation, in kernels/STEP.npz."""


class Checkpoints(Options):
    """When the state of a run is saved, and how many states are kept.

    The state is saved at every evaluation. A resumed run gives the same results as an uninterrupted one.
    """

    every_minutes: NonNegativeFloat = 10.0
    """Minutes since the last save after which the state is also saved between evaluations. 0: never."""
    every_steps: PositiveInt | None = None
    """Number of global steps between additional saves. Default: no additional saves."""
    # Not written at its default, so that the files of earlier runs are written as they were.
    keep: Annotated[int, Field(gt=0, le=1000, exclude_if=lambda count: count == 1)] = 1
    """Number of recent states to keep. `train --resume-from STEP` goes back to one of them."""
    keep_best: bool = True
    """Whether to keep in addition the best state, by the validation top-1 or another criterion of the loss."""
