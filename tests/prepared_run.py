"""Data and models of runs, prepared once for several of them: building and tracing take most of their time."""

from unittest import mock

from neural_alignment import config as configuration
from neural_alignment.training import graphs, run
from neural_alignment.training.config_comparison import decisive_values
from neural_alignment.training.preparation import prepare


class PreparedRun:
    """Data and model of a run, and their initial values.

    Args:
        config: the configuration of every run that uses them.
    """

    def __init__(self, config):
        self._config = config
        self.prepared = prepare(config)
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

    def in_use(self):
        """Returns a context in which runs use this data and model."""
        return mock.patch.object(run, "prepare", self.prepare)


class PreparedRuns:
    """Data and models of any runs, each prepared when the first run of its configuration begins."""

    def __init__(self):
        self._runs = {}

    def prepare(self, config):
        """Replaces `run.prepare`: returns the same data and model for runs of the same configuration."""
        key = configuration.dump(config)
        if key not in self._runs:
            # A command may keep the graphs of its runs, and this model is for the runs of other commands as well.
            with mock.patch.object(graphs, "_are_kept", return_value=False):
                self._runs[key] = PreparedRun(config)
        return self._runs[key].prepare(config)

    def in_use(self):
        """Returns a context in which runs use these data and models."""
        return mock.patch.object(run, "prepare", self.prepare)
