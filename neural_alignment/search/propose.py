"""Proposals by hyperopt: the settings of the next trial, given the trials so far."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import hyperopt
import numpy as np
from hyperopt import base

from neural_alignment.search.plan import Plan
from neural_alignment.search.spaces import Settings

ProposalState = tuple[str, float | None]
"""State of a proposal as hyperopt names it (`new`, `ok` or `fail`), and its score; None without a score."""


class Proposer:
    """Draws the settings of trials. They depend only on the seed of the plan and on the trials so far.

    hyperopt is called as its `fmin` calls it, for one trial at a time. Its store of trials is built from the records
    for each call, so that only settings and scores have to be saved.

    Args:
        plan: the search.
    """

    def __init__(self, plan: Plan):
        self._space = plan.checked_space()
        self._seed = plan.seed
        self._suggest: Callable[..., Any] = hyperopt.rand.suggest
        if plan.algorithm == "tpe":
            self._suggest = functools.partial(hyperopt.tpe.suggest, n_startup_jobs=plan.startup_trials, verbose=False)
        self._domain = base.Domain(lambda _: None, self._space.nodes())

    def propose(self, number: int, before: Mapping[int, tuple[Settings, ProposalState]]) -> Settings:
        """Returns name -> value of each sampled quantity.

        Args:
            number: number of the trial; together with the seed it determines the random numbers.
            before: number -> settings and state, for all trials so far. A running trial has no score and counts as a
                bad one, so that the others avoid its neighbourhood; so does a failed trial.
        """
        trials = base.Trials()
        documents = [self._document(trials, each, *known) for each, known in sorted(before.items())]
        if documents:
            trials.insert_trial_docs(documents)
        trials.refresh()
        seed = int(np.random.SeedSequence([self._seed, number]).generate_state(1)[0])
        (document,) = self._suggest([number], self._domain, trials, seed)
        draws = document["misc"]["vals"]
        return {name: kind.value(draws[name][0]) for name, kind in self._space.sampled.items()}

    def _document(self, trials: base.Trials, number: int, values: Settings, state: ProposalState) -> dict[str, Any]:
        """Returns a trial in the form in which hyperopt stores it."""
        word, score = state
        draws = {name: kind.draw(values[name]) for name, kind in self._space.sampled.items()}
        misc = {
            "tid": number,
            "cmd": self._domain.cmd,
            "workdir": self._domain.workdir,
            "idxs": {name: [number] for name in draws},
            "vals": {name: [draw] for name, draw in draws.items()},
        }
        result = {"status": word} if score is None else {"status": word, "loss": 1.0 - score}
        (document,) = trials.new_trial_docs([number], [None], [result], [misc])
        document["state"] = base.JOB_STATE_RUNNING if word == "new" else base.JOB_STATE_DONE
        return document
