"""Runs jobs on Cloud TPUs, one at a time on each."""

from __future__ import annotations

import dataclasses
import itertools
import shlex
import shutil
from collections.abc import Sequence

import tensorflow as tf

from neural_alignment import config as configuration
from neural_alignment import files, plugins
from neural_alignment.errors import ConfigError
from neural_alignment.jobs.children import Children, is_stop
from neural_alignment.jobs.ending import Ending
from neural_alignment.jobs.job import Job, Training
from neural_alignment.jobs.pool import SlotEngine, SlotLost

LOST = {4: "no TPU is available; the last one was {tpu}", 5: "{tpu} is busy with another run"}
"""Exit codes of a launcher that has not started the run, so that another TPU can train it, and their reasons."""

FAILED = 6
"""Exit code of a launcher whose run has failed. After other codes it is unknown whether the run has even started."""

PLACEHOLDERS = ("{tpu}", "{config}", "{run_dir}")


class TPU(SlotEngine):
    """Trains one run at a time on each of several TPUs. Computations (`job.Computation`) run on this machine.

    Args:
        names: names of the TPUs, as in `runtime.tpu`.
        launcher: command that trains a run on a TPU, such as `tpu_scripts/train.sh {tpu} {config} --run-dir {run_dir}`.
            Exit code 4 means that the TPU could not be created, and 5 that it is busy; another TPU then gets the run.
            Exit code 6 means that the run failed. If None, a child process on this machine trains the run with
            `runtime.tpu` set to the name.

    Raises:
        ConfigError: if a name is empty or given twice, or the launcher is not a command with all three placeholders.
    """

    name = "tpu"
    usage = "tpu:NAME,NAME,..."
    option = "launcher"

    def __init__(self, names: Sequence[str], launcher: str | None = None):
        if len({*names}) < len(names) or not all(names):
            found = f"tpu:{','.join(names)}"
            raise ConfigError(f"--engine {self.usage}: must be names, each once, separated by commas; found {found!r}")
        super().__init__(names)
        self._launcher = None if launcher is None else _words(launcher)
        self._children = Children()

    @classmethod
    def parse(cls, text: str, option: str | Sequence[str] | None) -> TPU:  # noqa: D102 (as in Engine)
        return cls(text.split(","), option)

    def run_job(self, slot: str, job: Job) -> Ending:  # noqa: D102 (as in SlotEngine)
        if not isinstance(job, Training):
            return self._children.run(job)
        return self._train(slot, job) if self._launcher is None else self._launch(slot, job)

    def terminate(self) -> None:  # noqa: D102 (as in SlotEngine)
        self._children.terminate()

    def _train(self, tpu: str, job: Training) -> Ending:
        """Trains a run with a child process of this machine, which connects to the TPU."""
        overrides = [*job.overrides, "runtime.strategy=tpu", f"runtime.tpu={tpu}"]
        ending = self._children.run(dataclasses.replace(job, overrides=overrides))
        if ending.tpu_lost:
            raise SlotLost(ending.reason)
        return ending

    def _launch(self, tpu: str, job: Training) -> Ending:
        """Trains a run with the launcher."""
        values = dict(zip(PLACEHOLDERS, (tpu, _config_file(job), job.run_dir), strict=True))
        words = []
        for word in self._launcher:
            for placeholder, value in values.items():
                word = word.replace(placeholder, value)
            words.append(word)
        code = self._children.command(words)
        if code in LOST:
            raise SlotLost(LOST[code].format(tpu=tpu))
        if ending := job.ending():
            return ending
        if is_stop(code) or self.stopping.is_set():
            return Ending("stopped", reason="a signal to its launcher")
        problem = f"{words[0]} ended with code {code}" if code else f"{words[0]} ended, but the run did not"
        return Ending("failed" if code == FAILED else "unavailable", reason=problem)


def _config_file(job: Training) -> str:
    """Returns the path of a file with the whole configuration of a run, because a launcher takes no overrides."""
    if not job.overrides:
        return job.config
    folder, _, name = job.run_dir.rpartition("/")
    path = tf.io.gfile.join(folder, "settings", f"{name}.yaml")
    tf.io.gfile.makedirs(path.rpartition("/")[0])
    files.write_whole(path, configuration.dump(configuration.load(job.config, job.overrides)))
    return path


def _words(launcher: str) -> list[str]:
    """Returns the words of a launcher's command.

    Raises:
        ConfigError: if the command cannot be run, or a placeholder is missing.
    """
    for word in PLACEHOLDERS:
        if word not in launcher:
            raise ConfigError(f"--launcher must contain {{tpu}}, {{config}} and {{run_dir}}; {word} was not found")
    try:
        words = shlex.split(launcher)
    except ValueError as error:
        raise ConfigError(f"--launcher must be a command as a shell reads it: {error}; found {launcher!r}") from None
    if shutil.which(words[0]) is None:
        raise ConfigError(f"--launcher must begin with a program that can be run; found {words[0]!r}")
    for name in plugins.imported():
        if ("--import", name) not in itertools.pairwise(words):
            raise ConfigError(f"--launcher must import the plugins of this command too; --import {name} was not found")
    return words
