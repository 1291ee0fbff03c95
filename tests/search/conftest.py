"""Fixtures of the tests of searches."""

import json

import pytest
from helpers import SMALL_RUN

from neural_alignment import config as configuration
from neural_alignment.jobs.ending import Ending

BASE = SMALL_RUN

SEARCH = """
config: base.yaml
trials: 4
seed: 7
startup_trials: 2
space:
  optimization.forward.learning_rate: {log_uniform: [1.0e-3, 0.1]}
  alignment.decay: {uniform: [0, 0.01]}
  optimization.forward.nesterov: {choice: [false, true]}
"""


@pytest.fixture
def plan_file(tmp_path):
    """Writes a search and its base configuration; returns what changes them and gives the path of the search."""

    def write(text=SEARCH, base=BASE, more=""):
        (tmp_path / "base.yaml").write_text(base)
        path = tmp_path / "search.yaml"
        path.write_text(f"{text}\n{more}")
        return str(path)

    write.text = SEARCH
    return write


class Scripted:
    """An engine that trains nothing.

    Args:
        judge: a trial's configuration and number -> ending.
        lives: after how many trials it is killed; never where none.
    """

    slots = 1

    def __init__(self, judge, lives=None):
        self.judge = judge
        self.lives = lives
        self.seen = []

    def run(self, queue):
        while job := queue.next():
            if self.lives is not None and len(self.seen) == self.lives:
                raise SystemExit("killed")
            config = configuration.load(job.config)
            self.seen.append((int(job.name), config))
            queue.ended(job, self.judge(config, int(job.name)))


@pytest.fixture
def scripted():
    """Returns the class of engines that train nothing, and a judge that likes a learning rate near 0.01."""

    def judge(config, number):
        rate = config.optimization.forward.learning_rate
        return Ending("finished", 1 / (1 + abs(rate - 0.01) / 0.01))

    return Scripted, judge


@pytest.fixture
def lines():
    """Returns what reads a file with one JSON object per line, knowing nothing of the library."""
    return lambda path: [json.loads(line) for line in path.read_text().splitlines()]
