"""Proposals are those of hyperopt's `fmin`, and depend only on the seed and the trials so far."""

import random

import hyperopt
import numpy as np
import pytest

from neural_alignment.search.plan import Plan
from neural_alignment.search.propose import Proposer

SPACE = {
    "x": {"uniform": [0, 1]},
    "y": {"log_uniform": [1e-4, 1]},
    "z": {"choice": ["a", "b", "c"]},
    "n": {"integer": [1, 9]},
}


def plan(algorithm="tpe", seed=3, startup=5):
    return Plan(config="none", space=SPACE, trials=1, algorithm=algorithm, seed=seed, startup_trials=startup)


def score(values):
    return 0.9 - (values["x"] - 0.8) ** 2 - 0.1 * (values["z"] == "c")


def history(proposer, count, judge=score):
    known = {}
    for number in range(1, count + 1):
        values = proposer.propose(number, known)
        known[number] = (values, ("ok", judge(values)))
    return known


class Seeds:
    """Stands in for the generator of `fmin`: gives the seeds that a search gives to its trials."""

    def __init__(self, seed):
        self.seed, self.number = seed, 0

    def integers(self, _):
        self.number += 1
        return int(np.random.SeedSequence([self.seed, self.number]).generate_state(1)[0])


@pytest.mark.parametrize("algorithm", ["tpe", "random"])
def test_proposals_are_those_of_fmin(algorithm):
    """hyperopt's own loop, its own space, the same seeds: the same trials, with and without learning."""
    space = {
        "x": hyperopt.hp.uniform("x", 0, 1),
        "y": hyperopt.hp.loguniform("y", np.log(1e-4), np.log(1)),
        "z": hyperopt.hp.choice("z", ["a", "b", "c"]),
        "n": hyperopt.hp.quniform("n", -0.5, 8.5, 1),
    }
    suggest = hyperopt.rand.suggest
    if algorithm == "tpe":
        suggest = hyperopt.partial(hyperopt.tpe.suggest, n_startup_jobs=5)
    points = []

    def objective(point):
        points.append(point)
        return 1 - score(point)

    hyperopt.fmin(objective, space, suggest, 15, rstate=Seeds(3), show_progressbar=False, verbose=False)
    ours = [values for values, _ in history(Proposer(plan(algorithm)), 15).values()]
    for point, values in zip(points, ours, strict=True):
        assert values == {**point, "n": round(point["n"]) + 1}


def test_tpe_learns_from_scores_and_random_does_not():
    def late(algorithm, judge):
        known = history(Proposer(plan(algorithm)), 40, judge)
        return np.mean([known[number][0]["x"] for number in range(25, 41)])

    assert late("tpe", score) > 0.55
    # Told the opposite, as by a search that takes accuracy for a loss, it goes the other way.
    assert late("tpe", lambda values: 1 - score(values)) < 0.4
    assert late("random", score) == late("random", lambda values: 1 - score(values))


def test_a_proposal_depends_only_on_the_seed_and_the_trials():
    known = history(Proposer(plan()), 12)
    expected = Proposer(plan()).propose(13, known)
    used = Proposer(plan())
    for number in (20, 21):
        used.propose(number, {})
    np.random.seed(1)
    random.seed(1)
    assert used.propose(13, dict(reversed(known.items()))) == expected
    assert Proposer(plan(seed=4)).propose(13, known) != expected
    assert Proposer(plan()).propose(14, known) != expected


@pytest.mark.parametrize("state", [("new", None), ("fail", None), ("ok", 0.0)])
def test_running_failed_and_diverged_trials_repel_proposals(state):
    known = history(Proposer(plan()), 12)
    values = {"x": 0.1, "y": 0.01, "z": "a", "n": 5}

    def mean(ending):
        trials = {**known, **dict.fromkeys(range(13, 25), (values, ending))}
        return np.mean([Proposer(plan(seed=seed)).propose(25, trials)["x"] for seed in range(12)])

    assert mean(("ok", 0.99)) < 0.4  # A high score would attract them.
    assert mean(state) > 0.6
