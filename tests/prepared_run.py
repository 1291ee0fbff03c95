"""Data and model of one configuration, prepared once for several runs: building and tracing take most of their time."""

import contextlib
from unittest import mock

from neural_alignment.training import run
from neural_alignment.training.config_comparison import decisive_values


class PreparedRun:
    """Data and model of a run, and their initial values.

    Args:
        config: the configuration of every run that uses them.
    """

    def __init__(self, config):
        self._config = config
        self.prepared = run.prepare(config)
        self._initial = [variable.numpy() for variable in self.variables()]

    def variables(self):
        """Returns all variables that a step changes."""
        model = self.prepared.trainer.model
        optimizers = [model.optimizer, *model.optimizer.inner_optimizers]
        return [*model.weights, *(variable for optimizer in optimizers for variable in optimizer.variables)]

    def prepare(self, config):
        """Replaces `run.prepare`: returns the same data and model with their initial values."""
        if decisive_values(config) != decisive_values(self._config):
            raise AssertionError("another run is prepared")
        for variable, value in zip(self.variables(), self._initial, strict=True):
            variable.assign(value)
        self.prepared.trainer.model.reset_metrics()
        return self.prepared

    @contextlib.contextmanager
    def in_use(self):
        """Lets the runs within the context use this data and model."""
        with mock.patch.object(run, "prepare", self.prepare):
            yield
